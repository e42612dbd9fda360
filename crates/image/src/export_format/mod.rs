//! The files of `export --export-format 2`, `export-diff` and `merge-diff`, as Ceph's `rbd` 16.2.15 writes them.
//!
//! Promises: pure translation between bytes and records; nothing here opens, names or creates anything, it reads from what
//! it is given. Whatever the bytes say, memory stays bounded (names, metadata and data are read in bounded pieces), a
//! run of data lies inside the size that the file itself states, and what is truncated, out of place or contradicts
//! itself is an error that tells the byte at which it stands ([`ErrorKind::Damaged`]).
//!
//! A diff is a banner, metadata (start and end snapshot, size), runs of data and zeroes, and an end mark. Version 1 stands
//! in files of its own; version 2, whose records state their length, stands in exports. An export is a banner, properties and
//! metadata of the image, a second banner, the number of diffs, and that many diffs: one for each snapshot, one for the head.
//! Numbers are little-endian.
//!
//! * [`input`]: where bytes come from, with their position;
//! * [`diff`]: one diff;
//! * [`image`]: what precedes the diffs of an export;
//! * [`merge`]: two diffs that follow each other become one.

pub mod diff;
pub mod image;
pub mod input;
pub mod merge;

use ferry_store::Errno;

use crate::error::{ErrorKind, ImageError};

pub use diff::{DiffHead, DiffReader, Run, RunKind, Version};
pub use image::ImageHead;
pub use input::Input;

/// Longest name of a snapshot in bytes.
const MAX_NAME_BYTES: u64 = 4096;

/// An error in the bytes: what is wrong where.
pub(crate) fn damaged(at: u64, what: impl std::fmt::Display) -> ImageError {
    ImageError::of(
        ErrorKind::Damaged,
        Errno::EINVAL,
        format!("byte {at} of the file: {what}"),
    )
}

/// The bytes end too early.
pub(crate) fn truncated(at: u64, what: impl std::fmt::Display) -> ImageError {
    ImageError::of(
        ErrorKind::Damaged,
        Errno::EBADMSG,
        format!("the file ends at byte {at}, in the middle of {what}"),
    )
}
