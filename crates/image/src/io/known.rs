//! Objects of an image of which something is known that need not be looked up again: on a migration target, that they hold
//! all that the source has for them; on a clone, that they exist.
//!
//! Invariant: what a bit says is never lost again while the bits are believed: where a source or a parent shows through,
//! objects are emptied, not removed. Completeness holds until the migration ends; existence as long as nobody else may write.
//! Bits cost one per object, in chunks that exist where work happens.

use std::collections::HashMap;

use parking_lot::RwLock;
use tokio::sync::{Mutex, MutexGuard};

use crate::layout::ObjectNo;

const WORDS_PER_CHUNK: usize = 64;
const OBJECTS_PER_CHUNK: u64 = 64 * WORDS_PER_CHUNK as u64;
const LOCKS: usize = 256;

/// The set of these objects, and a lock per object (shared by few) for whoever makes it true.
pub struct KnownObjects {
    chunks: RwLock<HashMap<u64, Box<[u64; WORDS_PER_CHUNK]>>>,
    locks: Vec<Mutex<()>>,
}

impl std::fmt::Debug for KnownObjects {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KnownObjects").finish_non_exhaustive()
    }
}

impl Default for KnownObjects {
    fn default() -> Self {
        Self {
            chunks: RwLock::new(HashMap::new()),
            locks: std::iter::repeat_with(Mutex::default).take(LOCKS).collect(),
        }
    }
}

impl KnownObjects {
    /// Whether it is known of the object.
    pub fn contains(&self, object: ObjectNo) -> bool {
        let (chunk, word, bit) = place(object);
        self.chunks
            .read()
            .get(&chunk)
            .is_some_and(|words| words[word] & bit != 0)
    }

    /// Notes that it is.
    pub fn insert(&self, object: ObjectNo) {
        let (chunk, word, bit) = place(object);
        let mut chunks = self.chunks.write();
        chunks
            .entry(chunk)
            .or_insert_with(|| Box::new([0; WORDS_PER_CHUNK]))[word] |= bit;
    }

    /// Notes that it may not be so any more.
    pub fn remove(&self, object: ObjectNo) {
        let (chunk, word, bit) = place(object);
        if let Some(words) = self.chunks.write().get_mut(&chunk) {
            words[word] &= !bit;
        }
    }

    /// Forgets everything: the migration is over, or another begins; others may write from now on.
    pub fn clear(&self) {
        self.chunks.write().clear();
    }

    /// Excludes others who complete, make, empty or roll back the same object.
    pub(crate) async fn lock(&self, object: ObjectNo) -> MutexGuard<'_, ()> {
        self.locks[(object.0 % LOCKS as u64) as usize].lock().await
    }
}

fn place(object: ObjectNo) -> (u64, usize, u64) {
    let inside = object.0 % OBJECTS_PER_CHUNK;
    (
        object.0 / OBJECTS_PER_CHUNK,
        (inside / 64) as usize,
        1 << (inside % 64),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_inserted_is_contained() {
        let set = KnownObjects::default();
        for n in [0, 63, 64, OBJECTS_PER_CHUNK, u64::MAX] {
            assert!(!set.contains(ObjectNo(n)));
            set.insert(ObjectNo(n));
            assert!(set.contains(ObjectNo(n)));
        }
        assert!(!set.contains(ObjectNo(1)));
        set.remove(ObjectNo(63));
        set.remove(ObjectNo(7 * OBJECTS_PER_CHUNK));
        assert!(!set.contains(ObjectNo(63)) && set.contains(ObjectNo(64)));
        set.clear();
        assert!(!set.contains(ObjectNo(0)));
    }
}
