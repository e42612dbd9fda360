//! What the object maps of an image's snapshots say of changes, where they can be believed.

use ferry_cls::BitVector;
use ferry_cls::rbd::{ObjectState, feature, flag};
use ferry_store::SnapId;

use super::Span;
use crate::error::Result;
use crate::header::Header;
use crate::image::Image;
use crate::layout::ObjectNo;
use crate::object_map;
use crate::object_set::ObjectSet;

/// Objects looked at before other tasks get their turn.
const OBJECTS_PER_TURN: u64 = 1 << 20;

/// Objects that changed between two snapshots.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    /// Those that exist at the end.
    pub data: ObjectSet,
    /// Those that existed at the start and do no more.
    pub gone: ObjectSet,
}

impl Changes {
    /// `None` unless the maps of the span can be believed, also in what they say of changes.
    pub(crate) async fn load(image: &Image, span: Span) -> Result<Option<Self>> {
        let header = image.header();
        if !tells_changes(&header) {
            return Ok(None);
        }
        let start = match span.from {
            Some(from) => match object_map::snap::load(image, from).await? {
                Some(map) => map,
                None => return Ok(None),
            },
            None => BitVector::default(),
        };
        // Later maps decide whether an object exists; any of them whether it was written.
        let mut written = ObjectSet::default();
        let mut last = BitVector::default();
        for snap in header.snaps.keys().copied().chain([SnapId::HEAD]) {
            if span.from.is_some_and(|from| snap <= from) || snap > span.to {
                continue;
            }
            let Some(map) = object_map::snap::load(image, snap).await? else {
                return Ok(None);
            };
            // What a killed discard had marked may be as it was, written too.
            let says_written =
                |state| state == ObjectState::Exists.byte() || state == ObjectState::Pending.byte();
            let states = map.iter_nonzero();
            written.extend(
                states
                    .filter(|(_, state)| says_written(*state))
                    .map(|(object, _)| ObjectNo(object)),
            );
            last = map;
            tokio::task::yield_now().await;
        }
        let mut changes = Self::default();
        for (object, _) in last.iter_nonzero() {
            let before = exists(&start, object);
            if span.from.is_none() || !before || written.contains(ObjectNo(object)) {
                changes.data.insert(ObjectNo(object));
            }
            if object % OBJECTS_PER_TURN == OBJECTS_PER_TURN - 1 {
                tokio::task::yield_now().await;
            }
        }
        let gone = start.iter_nonzero().filter(|(object, _)| !exists(&last, *object));
        changes.gone.extend(gone.map(|(object, _)| ObjectNo(object)));
        Ok(Some(changes))
    }
}

/// Whether the maps of an image tell which objects were written since the snapshot before.
pub(crate) fn tells_changes(header: &Header) -> bool {
    let flags = header
        .snaps
        .values()
        .map(|snap| snap.flags)
        .fold(header.flags, |all, flags| all | flags);
    header.has(feature::OBJECT_MAP | feature::FAST_DIFF) && flags & flag::FAST_DIFF_INVALID == 0
}

fn exists(map: &BitVector, object: u64) -> bool {
    map.get(object)
        .is_some_and(|state| state != ObjectState::Nonexistent.byte())
}
