//! Live migration: the four verbs, what a target shows of its source, and the status of both.
//!
//! The states, what is durable in each, and what every verb does in each are the table of `docs/migration.md`; the
//! functions here are named after its rows. [`source`] is how a target reads through; [`prepare`], [`execute`],
//! [`commit`] and [`abort`] are the verbs; [`pair`] finds both images from either name (what an interrupted commit left, with [`leftover`]); [`record`] reads and writes
//! the records in both headers; [`relink`] moves the clones of one side to the other. How fast an execute goes is told by [`settings`] and kept by its pace; how far it is,
//! by [`execution`].

pub mod abort;
pub mod commit;
pub mod execute;
pub mod execution;
pub(crate) mod leftover;
pub mod pace;
pub mod pair;
pub mod prepare;
pub mod record;
pub(crate) mod relink;
pub mod room;
pub mod settings;
pub mod source;
