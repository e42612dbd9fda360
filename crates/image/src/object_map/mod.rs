//! Object maps: two bits per object that say which objects surely do not exist and which changed since the snapshot
//! before (rbd-format sheet, section 6.3).
//!
//! Invariant: a map never says "nonexistent" of an object that exists; it may say "exists" of one that does not.
//! [`head`] keeps the head's map in memory under the exclusive lock, [`snap`] works on maps of snapshots, [`rebuild`]
//! makes and checks maps from the objects themselves, [`mark`] marks what is about to be written, [`ahead`] at once what
//! a migration is going to copy.

pub mod ahead;
pub mod head;
pub(crate) mod mark;
pub mod rebuild;
pub mod snap;

pub use head::HeadMap;
