//! Images as a whole: creating, removing, renaming, trash, pools and namespaces, what the command lists and shows, and
//! imports and exports.
//!
//! Invariants: a name leads to a whole image or to none (an image in the making or on its way out is known to the trash
//! only), and every change of several steps may be killed between any two of them and run again. What half-made things
//! a kill can leave, and who clears them, is told where the steps are: [`staged`], [`trash`], [`rename`], [`namespace`].
//! What it does not know: the data path, the command line.

pub mod config;
pub mod copy;
pub mod create;
pub mod directory;
pub mod export;
pub mod export_diff;
pub mod format_1;
pub mod import;
pub mod import_diff;
pub mod info;
pub mod list;
pub mod locks;
pub mod metadata;
pub mod namespace;
pub mod pool;
pub mod remove;
pub mod rename;
pub mod staged;
pub mod status;
pub mod trash;
pub mod usage;

/// Requests on different images or objects that are under way at the same time (`rbd_concurrent_management_ops`).
pub(crate) const CONCURRENT: usize = 10;
