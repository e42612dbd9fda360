//! How object classes run inside an engine that has no OSD.
//!
//! An engine hands a method an [`ObjectHandle`] on the object of the operation. Reads through it see data, omap and
//! xattrs as they were *before* the operation; existence and size reflect earlier steps; writes become part of the
//! operation's atomic effect. Methods are synchronous and short; engines run them where blocking is allowed.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use bytes::Bytes;

use crate::error::Errno;
use crate::types::{ClientInstance, Timestamp};

/// What a method knows about the operation it is part of.
#[derive(Debug, Clone, Copy)]
pub struct CallContext {
    /// Who sent the operation.
    pub client: ClientInstance,
    /// The engine's clock.
    pub now: Timestamp,
}

/// The object, as a class method sees and changes it.
pub trait ObjectHandle {
    /// Whether the head exists (after the earlier steps of this operation).
    fn exists(&self) -> bool;
    /// Size in bytes (after the earlier steps of this operation); 0 when absent.
    fn size_bytes(&self) -> u64;
    /// Newest snapshot sequence that wrote to the object, if the object exists or has clones; `None` when it does
    /// not exist and has no clones.
    fn snapset_seq(&self) -> Option<u64>;
    /// Bytes before this operation; short at the end; empty when absent.
    fn read(&self, offset: u64, length_bytes: u64) -> Result<Bytes, Errno>;
    /// One omap value before this operation.
    fn omap_get(&self, key: &[u8]) -> Result<Option<Bytes>, Errno>;
    /// Up to `max` omap pairs after `start_after` with `prefix`, before this operation; and whether more follow.
    fn omap_list(
        &self,
        start_after: &[u8],
        prefix: &[u8],
        max: usize,
    ) -> Result<(BTreeMap<Bytes, Bytes>, bool), Errno>;
    /// One xattr before this operation.
    fn xattr_get(&self, name: &str) -> Result<Option<Bytes>, Errno>;

    /// Creates the object; `EEXIST` with `exclusive` if it exists.
    fn create(&mut self, exclusive: bool) -> Result<(), Errno>;
    /// Writes bytes (creates).
    fn write(&mut self, offset: u64, data: Bytes) -> Result<(), Errno>;
    /// Replaces the content (creates).
    fn write_full(&mut self, data: Bytes) -> Result<(), Errno>;
    /// Zeroes a range inside the object.
    fn zero(&mut self, offset: u64, length_bytes: u64) -> Result<(), Errno>;
    /// Sets the size.
    fn truncate(&mut self, size_bytes: u64) -> Result<(), Errno>;
    /// Removes the object.
    fn remove(&mut self) -> Result<(), Errno>;
    /// Sets one omap pair (creates).
    fn omap_set(&mut self, key: Bytes, value: Bytes) -> Result<(), Errno>;
    /// Removes one omap key.
    fn omap_remove(&mut self, key: Bytes) -> Result<(), Errno>;
    /// Sets an xattr (creates).
    fn xattr_set(&mut self, name: &str, value: Bytes) -> Result<(), Errno>;
}

/// A class method: input bytes in, output bytes or errno out. Methods registered as reading must not change the object.
pub type MethodFn = fn(&CallContext, &mut dyn ObjectHandle, &[u8]) -> Result<Vec<u8>, Errno>;

/// One registered method.
#[derive(Clone, Copy)]
pub struct Method {
    /// Whether it may change the object; such methods are refused in read operations with `EINVAL`.
    pub writes: bool,
    /// The function.
    pub run: MethodFn,
}

impl fmt::Debug for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Method")
            .field("writes", &self.writes)
            .finish_non_exhaustive()
    }
}

/// The classes an engine knows.
#[derive(Debug, Clone, Default)]
pub struct ClassRegistry {
    methods: HashMap<(&'static str, &'static str), Method>,
}

impl ClassRegistry {
    /// Knows nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a method; a later one of the same name replaces it.
    pub fn register(&mut self, class: &'static str, method: &'static str, writes: bool, run: MethodFn) {
        self.methods.insert((class, method), Method { writes, run });
    }

    /// Finds a method; `EOPNOTSUPP` for an unknown class or method, as an OSD answers.
    pub fn find(&self, class: &'static str, method: &'static str) -> Result<Method, Errno> {
        self.methods
            .get(&(class, method))
            .copied()
            .ok_or(Errno::EOPNOTSUPP)
    }
}
