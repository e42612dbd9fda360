//! Makes object maps anew from the objects themselves, or checks them.

use ferry_cls::BitVector;
use ferry_cls::rbd::{ObjectState, client, feature, flag};
use ferry_store::{Errno, IoCtx, ReadOp, SnapId};
use futures::stream::{StreamExt as _, TryStreamExt as _};

use crate::error::{ImageError, Result, optional};
use crate::image::Image;
use crate::layout::ObjectNo;
use crate::progress::Progress;
use crate::snapshot::diff;
use crate::watch::messages::Request;

/// Objects looked at at the same time.
const CONCURRENT_OBJECTS: usize = 10;

/// One object in the map of a snapshot or of the head.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seen {
    state: ObjectState,
    /// It exists, and the engine cannot tell whether it has changed since this snapshot: then it is said to have.
    maybe_as_at: Option<SnapId>,
}

impl Seen {
    /// Whether a map that marks the object so tells a lie; not where the engine cannot tell.
    pub(crate) fn is_surely_wrong(&self, marked: ObjectState) -> bool {
        let is_doubtful = self.maybe_as_at.is_some() && marked == ObjectState::ExistsClean;
        is_wrong(marked, self.state) && !is_doubtful
    }
}

/// One object in the maps of some snapshots and of the head.
pub(crate) type States = Vec<Seen>;

/// Most wrong entries that are told of.
const MISMATCHES_MAX: usize = 10_000;

/// One object whose map entry is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mismatch {
    /// The map's snapshot, or the head.
    pub snap: SnapId,
    /// The object.
    pub object_no: ObjectNo,
    /// What the map says.
    pub marked: ObjectState,
    /// What is true.
    pub actual: ObjectState,
}

impl Image {
    /// Rebuilds all object maps, in the owner of the exclusive lock. `EINVAL` without the object-map feature.
    pub async fn rebuild_object_map(&self, progress: &Progress) -> Result<()> {
        self.maintain(&Request::RebuildObjectMap, progress).await
    }
}

/// Rebuilds the maps of the head and of all snapshots and declares them valid.
/// `EINVAL` without the object-map feature.
pub async fn rebuild(image: &Image, progress: &Progress) -> Result<()> {
    check(image).await?;
    // Held from the first look at an object until the new map is in force, or a write in between would be missed.
    let gate = image.stop_writes(None).await?;
    let versions = versions(image);
    let mut maps = Vec::new();
    for &(snap, objects) in &versions {
        let map = BitVector::new(objects, ObjectState::Nonexistent.byte()).ok_or_else(|| too_many(image))?;
        maps.push((snap, map));
    }
    scan(image, &versions, progress, |object_no, states| {
        for ((_, map), seen) in maps.iter_mut().zip(states) {
            map.set(object_no.0, seen.state.byte());
        }
    })
    .await?;
    let bits = flag::OBJECT_MAP_INVALID | flag::FAST_DIFF_INVALID;
    for (snap, map) in maps {
        if snap.is_head() {
            super::head::replace(image, map).await?;
        } else {
            super::snap::save(image, snap, &map).await?;
        }
        let call = client::set_flags(0, bits, snap);
        ferry_cls::exec_write(&image.inner.io, &image.inner.header_object, call).await?;
    }
    drop(gate);
    image.header_changed().await
}

/// Compares the maps with the objects; wrong ones are marked invalid in the header and reported.
pub async fn verify(image: &Image, progress: &Progress) -> Result<Vec<Mismatch>> {
    check(image).await?;
    let gate = image.stop_writes(None).await?;
    let versions = versions(image);
    let mut maps = Vec::new();
    for &(snap, _) in &versions {
        maps.push(super::snap::load(image, snap).await?);
    }
    let mut wrong = Vec::new();
    let mut doubtful = Vec::new();
    scan(image, &versions, progress, |object_no, states| {
        for ((&(snap, objects), map), seen) in versions.iter().zip(&maps).zip(states) {
            let Some(map) = map else { continue };
            if object_no.0 >= objects {
                continue;
            }
            let marked = map
                .get(object_no.0)
                .and_then(ObjectState::from_byte)
                .unwrap_or(ObjectState::Nonexistent);
            let mismatch = Mismatch {
                snap,
                object_no,
                marked,
                actual: seen.state,
            };
            match seen.maybe_as_at {
                _ if !is_wrong(marked, seen.state) => {}
                Some(before) if marked == ObjectState::ExistsClean => doubtful.push((before, mismatch)),
                _ if wrong.len() < MISMATCHES_MAX => wrong.push(mismatch),
                _ => {}
            }
        }
    })
    .await?;
    for (before, mismatch) in doubtful {
        if wrong.len() < MISMATCHES_MAX && differs(image, mismatch.object_no, before, mismatch.snap).await? {
            wrong.push(mismatch);
        }
    }
    drop(gate);
    let bits = flag::OBJECT_MAP_INVALID | flag::FAST_DIFF_INVALID;
    let marked: std::collections::BTreeSet<SnapId> = wrong.iter().map(|mismatch| mismatch.snap).collect();
    for snap in &marked {
        let call = client::set_flags(bits, bits, *snap);
        ferry_cls::exec_write(&image.inner.io, &image.inner.header_object, call).await?;
    }
    if !marked.is_empty() {
        image.header_changed().await?;
    }
    Ok(wrong)
}

/// "Exists" where nothing is, or where nothing changed, costs time but tells no lie.
fn is_wrong(marked: ObjectState, actual: ObjectState) -> bool {
    match actual {
        ObjectState::Nonexistent | ObjectState::Pending => false,
        ObjectState::Exists => marked != ObjectState::Exists,
        ObjectState::ExistsClean => matches!(marked, ObjectState::Nonexistent | ObjectState::Pending),
    }
}

async fn check(image: &Image) -> Result<()> {
    if !image.header().has(feature::OBJECT_MAP) {
        return Err(ImageError::new(
            Errno::EINVAL,
            format!("image '{}' has no object map (feature object-map)", image.name()),
        ));
    }
    image.acquire_lock().await
}

fn too_many(image: &Image) -> ImageError {
    ImageError::new(
        Errno::EINVAL,
        format!("image '{}' has too many objects for a map", image.name()),
    )
}

/// Snapshots ascending, then the head, each with its number of objects.
fn versions(image: &Image) -> Vec<(SnapId, u64)> {
    let header = image.header();
    let count = |size_bytes| image.layout().object_count(size_bytes);
    header
        .snaps
        .values()
        .map(|snap| (snap.id, count(snap.size_bytes)))
        .chain([(SnapId::HEAD, count(header.size_bytes))])
        .collect()
}

async fn scan(
    image: &Image,
    versions: &[(SnapId, u64)],
    progress: &Progress,
    mut each: impl FnMut(ObjectNo, States),
) -> Result<()> {
    let total = versions.iter().map(|(_, objects)| *objects).max().unwrap_or(0);
    let mut results = futures::stream::iter(0..total)
        .map(|n| async move {
            states(image, versions, ObjectNo(n))
                .await
                .map(|states| (ObjectNo(n), states))
        })
        .buffered(CONCURRENT_OBJECTS);
    let mut done = 0;
    while let Some((object_no, states)) = results.try_next().await? {
        each(object_no, states);
        done += 1;
        progress.update(done, total);
    }
    progress.update(total.max(1), total.max(1));
    Ok(())
}

/// State of one object at each version, from its clones. As librbd sees it, a clone of its own counts as a change, even if
/// it shares all of its bytes.
async fn states(image: &Image, versions: &[(SnapId, u64)], object_no: ObjectNo) -> Result<States> {
    let object = image.data_object(object_no.0);
    let fast_diff = image.header().has(feature::FAST_DIFF);
    states_of(&image.inner.data_io, &object, versions, fast_diff).await
}

/// The same of an object of an image that is not open.
pub(crate) async fn states_of(
    data_io: &IoCtx,
    object: &str,
    versions: &[(SnapId, u64)],
    fast_diff: bool,
) -> Result<States> {
    let snaps: Vec<SnapId> = versions.iter().map(|(snap, _)| *snap).collect();
    let Some(snapset) = optional(data_io.list_snaps(object, &snaps).await)? else {
        let absent = Seen {
            state: ObjectState::Nonexistent,
            maybe_as_at: None,
        };
        return Ok(vec![absent; versions.len()]);
    };
    let mut before: Option<(SnapId, usize)> = None;
    Ok(versions
        .iter()
        .map(|&(snap, _)| {
            let serving = diff::serving(&snapset, snap);
            let state = match (serving, before) {
                (None, _) => ObjectState::Nonexistent,
                (Some(now), Some((_, before))) if fast_diff && now == before => ObjectState::ExistsClean,
                (Some(_), _) => ObjectState::Exists,
            };
            let seen = Seen {
                state,
                maybe_as_at: before
                    .map(|(before, _)| before)
                    .filter(|before| diff::is_guess(&snapset, *before, snap)),
            };
            before = serving.map(|serving| (snap, serving));
            seen
        })
        .collect())
}

/// Whether two versions of an object, both of which exist, hold different bytes.
async fn differs(image: &Image, object_no: ObjectNo, before: SnapId, now: SnapId) -> Result<bool> {
    let object = image.data_object(object_no.0);
    let whole = async |snap| {
        let op = ReadOp::new().read(0, image.layout().object_size_bytes());
        let reply = optional(image.inner.data_io.read(&object, snap, op).await)?;
        Ok::<_, ImageError>(reply.map(|reply| reply.data(0)))
    };
    let (before, now) = futures::try_join!(whole(before), whole(now))?;
    Ok(before != now)
}
