//! Bytes from outside against every reader of Ferry: one function per reader, the bounds that all of them keep, and
//! mutations that replay from a seed.
//!
//! Promise: a [`Target`] takes any bytes and returns. It panics only where the reader breaks a promise; [`judge`] makes
//! of that, of more than [`TIME_LIMIT`] and of more than [`MEMORY_LIMIT_BYTES`] one [`Verdict`] each, and the tests of
//! this crate show with [`canary`] that it does. The same functions are called by `cargo fuzz` (`fuzz/`), which finds
//! inputs, and by `tests/replay.rs`, which holds what was found against the code of today.
//!
//! What it does not know: what good input means. Seeds of the corpora are made of it all the same ([`seeds`]).
//!
//! * [`bounds`]: limits and verdicts; [`memory`]: counting what is allocated;
//! * [`cls`], [`image`], [`nbd`], [`local`], [`cli`]: the targets, by the crate whose readers they are;
//! * [`mutate`]: seeded mutations.

pub mod bounds;
pub mod canary;
pub mod cli;
pub mod cls;
pub mod image;
pub mod local;
pub mod memory;
pub mod mutate;
pub mod nbd;
mod runtime;
pub mod seeds;
pub mod shape;

pub use bounds::{MEMORY_LIMIT_BYTES, TIME_LIMIT, Verdict, judge};

/// A reader that is handed any bytes.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name: of the fuzz target, of its corpus, of its test.
    pub name: &'static str,
    /// Hands it bytes.
    pub run: fn(&[u8]),
}

/// All targets.
pub const TARGETS: &[Target] = &[
    target("cls_records", cls::records),
    target("cls_answers", cls::answers),
    target("cls_calls", cls::calls),
    target("cls_stored", cls::stored),
    target("object_map", cls::object_map),
    target("image_header", image::header),
    target("image_header_v1", image::header_v1),
    target("image_messages", image::messages),
    target("export_files", image::export_files),
    target("import_files", image::import_files),
    target("nbd_codec", nbd::codec),
    target("nbd_server", nbd::server),
    target("nbd_client", nbd::client),
    target("local_columns", local::columns),
    target("local_rows", local::rows),
    target("local_files", local::files),
    target("cli_names", cli::names),
    target("cli_lines", cli::lines),
];

const fn target(name: &'static str, run: fn(&[u8])) -> Target {
    Target { name, run }
}

/// The target of this name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}
