//! Administration: what can be done with images without reading or writing their bytes, and moving whole images in and
//! out. One file per concern; nothing here holds an image open longer than its own call.

pub mod create;
pub mod directory;
pub mod metadata;
pub mod namespace;
pub mod pool;
pub mod remove;
pub mod rename;
pub mod trash;

// NOTE for the author of `admin` (2026-11-23 21:10, from the lead): because nothing had landed yet I wrote and committed
// create, directory, metadata, namespace, pool, remove, rename and trash; the migration verbs and the CLI call them as they
// are. Keep these signatures (improve bodies if you see a fault, add what is missing). Yours to add now, quickly: info.rs
// (ImageInfo, ListEntry, Status), locks.rs, usage.rs, export.rs, import.rs and tests/admin.rs. Delete this note then.
