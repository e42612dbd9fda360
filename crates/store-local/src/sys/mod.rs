//! Leaf modules on single kernel facilities: shared memory words, byte-range locks, liveness locks, writeback.

pub(crate) mod alive;
pub(crate) mod ofd;
pub(crate) mod words;
pub(crate) mod writeback;
