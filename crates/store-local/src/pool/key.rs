//! An object's place inside a pool, and its hash.
//!
//! The hash is part of the format of the `slots` file: every process must compute the same one.

use std::fmt;
use std::sync::Arc;

use ferry_store::ObjectRef;

use super::slots::SLOTS;

/// Namespace and name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ObjectKey {
    inner: Arc<Inner>,
    hash: u64,
}

#[derive(Debug, PartialEq, Eq)]
struct Inner {
    namespace: Arc<str>,
    name: Box<str>,
}

impl ObjectKey {
    /// Key of namespace and name.
    pub(crate) fn new(namespace: &Arc<str>, name: &str) -> Self {
        Self {
            hash: hash(namespace, name),
            inner: Arc::new(Inner {
                namespace: namespace.clone(),
                name: name.into(),
            }),
        }
    }

    /// Key of a reference.
    pub(crate) fn of(object: ObjectRef<'_>) -> Self {
        Self::new(&object.scope.namespace, object.name)
    }

    /// Namespace.
    pub(crate) fn namespace(&self) -> &str {
        &self.inner.namespace
    }

    /// Name.
    pub(crate) fn name(&self) -> &str {
        &self.inner.name
    }

    /// Slot that guards the object.
    pub(crate) fn slot(&self) -> usize {
        (self.hash % SLOTS as u64) as usize
    }

    /// Tells objects of a slot apart; never 0.
    pub(crate) fn tag(&self) -> u64 {
        self.hash | 1
    }
}

/// An object's name with its hash: a key for looking up only.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NamedHash<'a> {
    namespace: &'a str,
    name: &'a str,
    hash: u64,
}

impl<'a> NamedHash<'a> {
    /// Of a reference.
    pub(crate) fn of(object: ObjectRef<'a>) -> Self {
        Self {
            namespace: &object.scope.namespace,
            name: object.name,
            hash: hash(&object.scope.namespace, object.name),
        }
    }

    /// Slot that guards the object.
    pub(crate) fn slot(&self) -> usize {
        (self.hash % SLOTS as u64) as usize
    }
}

impl ObjectKey {
    /// Whether it is the key of that name.
    pub(crate) fn is(&self, name: &NamedHash<'_>) -> bool {
        self.hash == name.hash && self.name() == name.name && self.namespace() == name.namespace
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.namespace().is_empty() {
            write!(f, "namespace '{}' ", self.namespace())?;
        }
        write!(f, "object '{}'", self.name())
    }
}

/// FNV-1a over namespace, a zero byte and name, finished with the mixer of SplitMix64.
fn hash(namespace: &str, name: &str) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for byte in namespace.bytes().chain([0]).chain(name.bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    hash = (hash ^ hash >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ hash >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ hash >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_the_one_of_the_format() {
        assert_eq!(hash("", "rbd_data.1.0000000000000000"), 0xfb6b22aae9316b13);
        assert_eq!(hash("ns", "name"), 0xc8f7cafd6c548d7e);
        assert_ne!(
            hash("a", "b"),
            hash("", "ab"),
            "the border between namespace and name counts"
        );
    }
}
