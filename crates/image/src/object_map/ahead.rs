//! Marks in the target's object maps, at once, all objects that a migration is going to copy; and takes the marks back
//! from those that it found nothing to copy for.
//!
//! Why: a mark is a durable write, and an execute that marks object by object pays one for each. The states follow from
//! the source's own maps, so this costs a few writes per snapshot, whatever the image holds.
//!
//! Invariants: maps say "exists" before the object does, so a mark only ever raises a state (nonexistent, clean,
//! exists); what snapshots, removals and resizes do to maps afterwards is what they would do had the objects been there
//! already. Whoever replaces a map otherwise (a rebuild, another owner of the lock) starts a new epoch, in which the marks do not
//! count any more.

use ferry_cls::BitVector;
use ferry_cls::rbd::{ObjectState, feature, flag};
use ferry_store::SnapId;

use super::{head, snap};
use crate::error::{Result, optional};
use crate::image::Image;
use crate::layout::ObjectNo;
use crate::migration::source::MigrationSource;
use crate::object_set::ObjectSet;

/// Objects whose marks are taken back while writers wait.
const TAKEN_BACK_AT_A_TIME: usize = 256;

/// Objects that exist at one version of the target, and those of them that changed since the version before.
#[derive(Debug, Clone, Default)]
struct States {
    existing: ObjectSet,
    changed: ObjectSet,
}

impl States {
    /// Raises what `map` says to these states; whether that changed anything.
    fn raise(&self, map: &mut BitVector) -> bool {
        let mut any = false;
        for object in self.existing.iter() {
            let new = if self.changed.contains(object) {
                ObjectState::Exists
            } else {
                ObjectState::ExistsClean
            };
            let old = map.get(object.0).and_then(ObjectState::from_byte);
            let raised = match old {
                None | Some(ObjectState::Exists) => false,
                Some(ObjectState::ExistsClean) => new == ObjectState::Exists,
                Some(ObjectState::Nonexistent | ObjectState::Pending) => true,
            };
            any |= raised && map.set(object.0, new.byte());
        }
        any
    }
}

/// Marks `objects` (all that the source may have data for). False: the source's maps do not tell the states, mark object
/// by object. The caller may write, and holds its guard.
pub(crate) async fn mark(image: &Image, source: &MigrationSource, objects: &ObjectSet) -> Result<bool> {
    let header = image.header();
    if !header.has(feature::OBJECT_MAP) {
        image.inner.head_map.set_marked_ahead();
        return Ok(true);
    }
    if source.image().header().parent.is_some() {
        // Objects of the target may also exist for what the source shows of its parent.
        return Ok(false);
    }
    let taken_since = SnapId(source.base_seq() + 1);
    let mut state = if source.history().is_empty() {
        let all = States {
            existing: objects.clone(),
            changed: objects.clone(),
        };
        Some(all)
    } else {
        mark_history(image, source).await?
    };
    let Some(states) = &mut state else {
        return Ok(false);
    };
    for snap in header.snaps.range(taken_since..) {
        // They see what the source's head was; all but the first of them see it unchanged.
        raise_snap(image, *snap.0, states).await?;
        states.changed = ObjectSet::default();
    }
    raise_head(image, states).await?;
    image.inner.head_map.set_marked_ahead();
    Ok(true)
}

/// Marks the snapshots that came along; the states of the head. `None`: a map of the source cannot be believed.
async fn mark_history(image: &Image, source: &MigrationSource) -> Result<Option<States>> {
    let below = source.image();
    let believed = |snap| {
        let header = below.header();
        let flags = if snap == SnapId::HEAD {
            Some(header.flags)
        } else {
            header.snaps.get(&snap).map(|record| record.flags)
        };
        header.has(feature::FAST_DIFF) && flags.is_some_and(|flags| flags & flag::FAST_DIFF_INVALID == 0)
    };
    let mut before = ObjectSet::default();
    // Objects of the target behind the end of the version before: what the source's object had there belonged to nobody.
    let mut inside_before = 0;
    let mut ever = ObjectSet::default();
    // What changed at a snapshot that was removed since has changed for the next one that lives.
    let mut carried = ObjectSet::default();
    let versions = source
        .history()
        .iter()
        .map(|point| (point.source, point.target, point.living));
    for (source_snap, target_snap, living) in versions.chain([(SnapId::HEAD, SnapId::HEAD, true)]) {
        let map = match snap::load(below, source_snap).await? {
            Some(map) if believed(source_snap) => map,
            _ => return Ok(None),
        };
        let mut states = States {
            existing: ObjectSet::default(),
            changed: std::mem::take(&mut carried),
        };
        let mut now = ObjectSet::default();
        for (object, state) in map.iter_nonzero() {
            now.insert(ObjectNo(object));
            source.each_target_object(image, ObjectNo(object), |object| {
                states.existing.insert(object);
                if state != ObjectState::ExistsClean.byte() || object.0 >= inside_before {
                    states.changed.insert(object);
                }
            });
        }
        drop(map);
        for gone in before.iter().filter(|object| !now.contains(*object)) {
            source.each_target_object(image, gone, |object| {
                states.changed.insert(object);
            });
        }
        before = now;
        let size_bytes = below.header().size_at(source_snap).unwrap_or(0);
        inside_before = image.layout().object_count(size_bytes);
        ever.extend(states.existing.iter());
        if source_snap.is_head() {
            // Each gets a head of its own, to say how far its history has got, even if that is empty or shares all bytes.
            for object in ever.iter() {
                states.existing.insert(object);
                states.changed.insert(object);
            }
            return Ok(Some(states));
        }
        if living {
            raise_snap(image, target_snap, &states).await?;
        } else {
            carried = states.changed;
        }
        tokio::task::yield_now().await;
    }
    Ok(None)
}

async fn raise_snap(image: &Image, snap: SnapId, states: &States) -> Result<()> {
    change_snap(image, snap, |map| states.raise(map)).await
}

/// Changes the map of a snapshot, if it has one that can be believed. One that cannot be read just now must not be believed
/// later, without the change.
async fn change_snap(image: &Image, snap: SnapId, change: impl FnOnce(&mut BitVector) -> bool) -> Result<()> {
    if !image.header().object_map_valid(snap) {
        return Ok(());
    }
    let _one_at_a_time = image.inner.head_map.updating.lock().await;
    let Some(mut map) = snap::load(image, snap).await? else {
        tracing::error!(
            image = image.name(),
            snap = snap.0,
            "the object map of a snapshot cannot be read"
        );
        return snap::invalidate(image, snap).await;
    };
    if change(&mut map) {
        snap::save(image, snap, &map).await?;
    }
    Ok(())
}

async fn raise_head(image: &Image, states: &States) -> Result<()> {
    let _one_at_a_time = image.inner.head_map.updating.lock().await;
    let Some(mut map) = image.inner.head_map.copy() else {
        return Ok(());
    };
    if states.raise(&mut map) {
        head::save(image, map).await?;
    }
    Ok(())
}

/// Takes the marks back from those of `objects` that exist in no version. Writers wait while that is done, a few hundred
/// objects at a time.
pub(crate) async fn take_back(image: &Image, objects: &ObjectSet) -> Result<()> {
    // From here on copies mark for themselves.
    image.inner.head_map.forget_marks();
    if !image.header().has(feature::OBJECT_MAP) {
        return Ok(());
    }
    let mut absent = Vec::new();
    for object in objects.iter() {
        let marked = image.inner.head_map.may_exist(object);
        if marked && is_absent(image, object).await? {
            absent.push(object);
        }
        if absent.len() == TAKEN_BACK_AT_A_TIME {
            unmark(image, &std::mem::take(&mut absent)).await?;
        }
    }
    unmark(image, &absent).await
}

async fn is_absent(image: &Image, object: ObjectNo) -> Result<bool> {
    let name = image.data_object(object.0);
    let snaps: Vec<SnapId> = image.header().snaps.keys().copied().collect();
    Ok(optional(image.data_io().list_snaps(&name, &snaps).await)?.is_none())
}

async fn unmark(image: &Image, objects: &[ObjectNo]) -> Result<()> {
    if objects.is_empty() {
        return Ok(());
    }
    let _stopped = image.stop_writes(None).await?;
    image.refresh_if_needed().await?;
    let mut absent = Vec::with_capacity(objects.len());
    for &object in objects {
        // Somebody may have written it since.
        if is_absent(image, object).await? {
            absent.push(object);
        }
    }
    let clear = |map: &mut BitVector| {
        let mut any = false;
        for object in &absent {
            any |= map.get(object.0).is_some_and(|state| state != 0)
                && map.set(object.0, ObjectState::Nonexistent.byte());
        }
        any
    };
    for snap in image.header().snaps.keys() {
        change_snap(image, *snap, clear).await?;
    }
    let _one_at_a_time = image.inner.head_map.updating.lock().await;
    if let Some(mut map) = image.inner.head_map.copy()
        && clear(&mut map)
    {
        head::save(image, map).await?;
    }
    Ok(())
}
