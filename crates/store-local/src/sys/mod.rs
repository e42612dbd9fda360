//! Leaf modules on single kernel facilities: shared memory words, byte-range locks, liveness locks.

pub(crate) mod alive;
pub(crate) mod ofd;
pub(crate) mod words;
