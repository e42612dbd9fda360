//! Clones: images that show a snapshot of another image, their parent, wherever they have no object of their own.
//!
//! [`parent`] opens the chain of parents and reads through it, [`copy_up`] fills an object before its first change
//! ([`copy_on_read`]: after it was read),
//! [`links`] keeps the lists of who is whose child, [`children`] shows them, [`clone`] makes clones and [`flatten`] cuts
//! them loose.
//!
//! Invariants:
//! * A parent is only read, at a snapshot that does not change. What is shown ends at the overlap of the version that is
//!   read; overlaps of the head only ever become smaller.
//! * An object that exists hides the parent whole, so it is made with all that the parent showed. Where older snapshots
//!   saw the parent through it, it is made for them first, before the first change of the head: a snapshot of which an
//!   object is absent never needs to be given one later.
//! * A clone names its parent before the parent's list names the clone, and until the list has forgotten it or a
//!   moment longer. An entry of the list counts only if the clone says the same.
//!
//! What it does not know: migrations, which move links ([`crate::migration`]) and put a source under an image in the same
//! way.

pub mod children;
pub mod clone;
pub(crate) mod copy_on_read;
pub(crate) mod copy_up;
pub mod flatten;
pub(crate) mod links;
pub mod parent;
