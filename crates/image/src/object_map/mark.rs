//! Says of objects, before they are written, that they exist: for all writers that wait, in one update.
//!
//! Why: after a snapshot the first write to every object changes the map. One update after the other would hold the
//! writers to the rate of updates; so whoever gets to the map marks what all the others wait for too. Nor does an update wait
//! for the medium where the writes that follow it cannot be durable without it.
//!
//! Invariants: an object is marked, in the stored map, before its writer goes on, and no power loss leaves the write without
//! the mark; what is marked has a writer that waits
//! (and thereby holds the image's guard) at that moment, so nothing is marked that nobody is about to write. The list of
//! those who wait is bounded by the writes in flight.

use std::collections::BTreeSet;
use std::ops::Range;

use ferry_cls::BitVector;
use ferry_cls::rbd::ObjectState;
use ferry_store::Durability;
use parking_lot::Mutex;

use super::head::{self, Kept};
use crate::error::Result;
use crate::image::Image;
use crate::layout::ObjectNo;

/// A separate update is worth that many bytes of the map: where storing the whole map writes less, it is stored whole. An
/// update rewrites 4 KiB of bits, and each is made durable.
const UPDATE_COSTS_BYTES: u64 = 16 << 10;
/// Objects per byte of the map.
const OBJECTS_PER_BYTE: u64 = 4;

/// Objects whose writers wait for the map.
#[derive(Debug, Default)]
pub(super) struct Wanted(Mutex<BTreeSet<u64>>);

/// One writer's wish, taken back when it is dropped.
struct Wish<'a> {
    wanted: &'a Wanted,
    object: u64,
}

impl Wanted {
    fn wish(&self, object: u64) -> Wish<'_> {
        self.0.lock().insert(object);
        Wish { wanted: self, object }
    }
}

impl Drop for Wish<'_> {
    fn drop(&mut self) {
        self.wanted.0.lock().remove(&self.object);
    }
}

/// Whether [`mark_exists`] has nothing to do.
pub(crate) fn is_marked(image: &Image, object_no: ObjectNo) -> bool {
    matches!(
        image.inner.head_map.state(object_no),
        None | Some(ObjectState::Exists)
    )
}

/// Says that an object is about to be written; what this gives is to be kept until it is.
pub(crate) async fn mark_exists(image: &Image, object_no: ObjectNo) -> Result<Kept<'_>> {
    let map = &image.inner.head_map;
    let kept = map.keep(object_no).await;
    if is_marked(image, object_no) {
        return Ok(kept);
    }
    let _wish = map.wanted.wish(object_no.0);
    let _one_at_a_time = map.updating.lock().await;
    // By now whoever was here before may have marked it.
    if is_marked(image, object_no) {
        return Ok(kept);
    }
    let mut objects = map.wanted.0.lock().clone();
    // Another writer of the same object may have taken the wish back.
    objects.insert(object_no.0);
    mark(image, &objects).await?;
    Ok(kept)
}

/// The caller holds `updating`.
async fn mark(image: &Image, objects: &BTreeSet<u64>) -> Result<()> {
    let exists = ObjectState::Exists.byte();
    let (runs, whole) = {
        let bits = image.inner.head_map.bits.read();
        let Some(bits) = bits.as_ref() else { return Ok(()) };
        let changes = |object: &u64| bits.get(*object).is_some_and(|state| state != exists);
        let runs = runs(objects.iter().copied().filter(changes));
        let map_bytes = bits.len().div_ceil(OBJECTS_PER_BYTE);
        let whole = runs.len() > 1 && map_bytes <= UPDATE_COSTS_BYTES * runs.len() as u64;
        (runs, whole.then(|| bits.clone()))
    };
    let durability = needed(image, &runs);
    if let Some(mut map) = whole {
        for object in runs.into_iter().flatten() {
            map.set(object, exists);
        }
        return store(image, map, durability).await;
    }
    for run in runs {
        head::set(image, run, ObjectState::Exists, None, durability).await?;
    }
    Ok(())
}

/// What marks must promise before their writers go on. Who writes to an object that the map calls absent or unchanged makes
/// it, or a clone of it; marks that lie before that in the order of the same pool cannot be lost without it.
fn needed(image: &Image, runs: &[Range<u64>]) -> Durability {
    let map = &image.inner.head_map;
    let (io, data) = (&image.inner.io, &image.inner.data_io);
    let makes = |object: u64| {
        let state = map.state(ObjectNo(object));
        matches!(state, Some(ObjectState::Nonexistent | ObjectState::ExistsClean))
    };
    let ordered = std::sync::Arc::ptr_eq(io.store(), data.store())
        && io.pool() == data.pool()
        && runs.iter().cloned().flatten().all(makes);
    match ordered {
        true => Durability::Ordered,
        false => Durability::Full,
    }
}

async fn store(image: &Image, map: BitVector, durability: Durability) -> Result<()> {
    match head::store(image, map, durability).await {
        Ok(()) => Ok(()),
        Err(error) => head::failed(image, error).await,
    }
}

/// Neighbours together.
fn runs(objects: impl Iterator<Item = u64>) -> Vec<Range<u64>> {
    let mut runs: Vec<Range<u64>> = Vec::new();
    for object in objects {
        match runs.last_mut() {
            Some(last) if last.end == object => last.end += 1,
            _ => runs.push(object..object + 1),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_one_run_and_a_wish_ends_with_its_writer() {
        assert_eq!(runs([1, 2, 3, 7, 9, 10].into_iter()), [1..4, 7..8, 9..11]);
        assert!(runs(std::iter::empty()).is_empty());
        let wanted = Wanted::default();
        let first = wanted.wish(4);
        drop(wanted.wish(5));
        assert_eq!(*wanted.0.lock(), BTreeSet::from([4]));
        drop(first);
        assert!(wanted.0.lock().is_empty());
    }
}
