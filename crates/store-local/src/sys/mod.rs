//! Leaf modules on single kernel facilities: shared memory words, byte-range locks, liveness locks, writeback, modes of directories.

pub(crate) mod alive;
pub(crate) mod ofd;
pub(crate) mod private;
pub(crate) mod words;
pub(crate) mod writeback;
