//! RBD images on any Ferry store: what librbd does.
//!
//! One folder per concern; [`image::Image`] is the handle that joins them. What it does not know: which engine it runs
//! on, NBD, the command line.

pub mod admin;
pub mod check;
pub mod client_activity;
pub mod deep_copy;
pub mod diff;
pub mod error;
pub mod exclusive_lock;
pub mod export_format;
pub mod features;
#[doc(hidden)]
pub mod fuzzing;
pub mod group;
pub mod header;
pub mod image;
#[cfg(test)]
#[allow(clippy::unwrap_used)] // a test that cannot go on says so by panicking
mod in_memory;
pub mod io;
pub mod layering;
pub mod layout;
pub mod maintenance;
pub mod migration;
pub mod names;
pub mod object_map;
pub mod object_set;
pub mod progress;
pub mod resize;
pub mod snapshot;
pub mod stats;
pub mod watch;

pub use error::{ErrorKind, ImageError, Result};
pub use image::{Image, ImageKey, OpenOptions, SnapKey, find_snap};
pub use progress::Progress;
pub use stats::{ImageStats, ImageStatsSnapshot};
