//! How much of an image is in use: `rbd du`.
//!
//! Used by a snapshot (or the head) is what was written since the snapshot before and still is there. Without `exact`
//! whole objects count, as in a whole-object [`crate::diff`], from the object maps when they can be believed (no object is looked at then), else from the
//! clones of the objects that exist. With `exact` only the bytes that are data count. Costs follow data; what is held in
//! memory are the maps, and a few slices of objects.

use ferry_cls::BitVector;
use ferry_cls::rbd::{ObjectState, SnapshotNamespace};
use ferry_store::{Errno, IoCtx, ReadOp, ReadResult, SnapId, SnapSet};
use futures::stream::{StreamExt as _, TryStreamExt as _};

use super::CONCURRENT;
use crate::diff::maps::tells_changes;
use crate::error::{ImageError, Result, optional};
use crate::header::Header;
use crate::image::{Image, ImageKey, OpenOptions, SnapKey, find_snap};
use crate::layout::ObjectNo;
use crate::object_map;
use crate::snapshot::diff::{changed_runs, delta, serving};

/// Names of objects read in one listing.
const LIST_PAGE: usize = 1000;
/// Bytes looked at in one read.
const SLICE_BYTES: u64 = 4 << 20;

/// Usage of the head of an image, or of one snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsageRow {
    /// Name and id of the snapshot; `None` for the head.
    pub snapshot: Option<(String, SnapId)>,
    /// Size.
    pub provisioned_bytes: u64,
    /// What was written since the snapshot before.
    pub used_bytes: u64,
}

/// Usage of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageUsage {
    /// Image name.
    pub name: String,
    /// Image id.
    pub id: String,
    /// Snapshots, oldest first, then the head; or the one snapshot asked for.
    pub rows: Vec<UsageRow>,
    /// Whether the object maps told it. False without `exact`: the image has none that can be believed, objects had to
    /// be looked at.
    pub from_object_maps: bool,
}

/// Measures the image `name`, or one snapshot of it. `ENOENT` ([`crate::ErrorKind::ImageMissing`],
/// [`crate::ErrorKind::SnapMissing`]).
pub async fn usage(io: &IoCtx, name: &str, snap: Option<&SnapKey>, exact: bool) -> Result<ImageUsage> {
    let options = OpenOptions::read_only().ignoring_migration().ignoring_parent();
    let image = Image::open(io, ImageKey::Name(name), options).await?;
    let measured = measure(&image, name, snap, exact).await;
    let closed = image.close().await;
    let usage = measured?;
    closed?;
    Ok(usage)
}

async fn measure(image: &Image, name: &str, snap: Option<&SnapKey>, exact: bool) -> Result<ImageUsage> {
    let header = image.header();
    let wanted = snap.map(|key| find_snap(&header, key)).transpose()?;
    let mut spans = spans(&header);
    if let Some(wanted) = wanted {
        spans.retain(|span| span.snap == wanted);
    }
    let maps = if exact {
        None
    } else {
        Maps::load(image, &header).await?
    };
    let used = match &maps {
        Some(maps) => spans.iter().map(|span| maps.used_bytes(image, span)).collect(),
        None => walk(image, &header, &spans, exact).await?,
    };
    let rows = spans.iter().zip(used).map(|(span, used_bytes)| UsageRow {
        snapshot: header
            .snaps
            .get(&span.snap)
            .map(|snap| (snap.name.clone(), snap.id)),
        provisioned_bytes: span.size_bytes,
        used_bytes,
    });
    Ok(ImageUsage {
        name: name.to_owned(),
        id: image.id().to_owned(),
        rows: rows.collect(),
        from_object_maps: maps.is_some(),
    })
}

/// From one snapshot to the next.
#[derive(Debug, Clone, Copy)]
struct Span {
    before: Option<SnapId>,
    snap: SnapId,
    size_bytes: u64,
}

/// One for every user snapshot, and one for the head.
fn spans(header: &Header) -> Vec<Span> {
    let mut before = None;
    let mut out = Vec::new();
    let users = header
        .snaps
        .values()
        .filter(|snap| snap.namespace == SnapshotNamespace::User);
    for (snap, size_bytes) in users
        .map(|snap| (snap.id, snap.size_bytes))
        .chain([(SnapId::HEAD, header.size_bytes)])
    {
        out.push(Span {
            before,
            snap,
            size_bytes,
        });
        before = Some(snap);
    }
    out
}

/// Object maps of all snapshots and of the head, ascending.
struct Maps(Vec<(SnapId, BitVector)>);

impl Maps {
    /// `None` unless all of them can be believed, also in what they say of changes.
    async fn load(image: &Image, header: &Header) -> Result<Option<Self>> {
        if !tells_changes(header) {
            return Ok(None);
        }
        let mut maps = Vec::new();
        for snap in header.snaps.keys().copied().chain([SnapId::HEAD]) {
            match object_map::snap::load(image, snap).await? {
                Some(map) => maps.push((snap, map)),
                None => return Ok(None),
            }
        }
        Ok(Some(Self(maps)))
    }

    /// Objects that exist at the end of the span and that some map in it says were written.
    fn used_bytes(&self, image: &Image, span: &Span) -> u64 {
        let within: Vec<&BitVector> = self
            .0
            .iter()
            .filter(|(snap, _)| span.before.is_none_or(|before| *snap > before) && *snap <= span.snap)
            .map(|(_, map)| map)
            .collect();
        let Some(last) = within.last() else { return 0 };
        let is = |map: &BitVector, n, state: ObjectState| map.get(n) == Some(state.byte());
        let objects = image.layout().object_count(span.size_bytes).min(last.len());
        (0..objects)
            .filter(|n| !is(last, *n, ObjectState::Nonexistent))
            // What was there before the oldest snapshot that is left was written by somebody now forgotten.
            .filter(|n| span.before.is_none() || within.iter().any(|map| is(map, *n, ObjectState::Exists)))
            .map(|n| object_bytes(image, ObjectNo(n), span.size_bytes))
            .sum()
    }
}

/// Bytes of an object that belong to an image of this size.
fn object_bytes(image: &Image, object_no: ObjectNo, size_bytes: u64) -> u64 {
    let layout = image.layout();
    let period = layout.object_size_bytes() * layout.stripe_count();
    // Only objects of the last, partly filled set can be cut.
    if object_no.0 < size_bytes / period * layout.stripe_count() {
        layout.object_size_bytes()
    } else {
        layout.object_bytes_used(object_no, size_bytes)
    }
}

/// Looks at every object that exists in some version; bytes used by each span.
async fn walk(image: &Image, header: &Header, spans: &[Span], exact: bool) -> Result<Vec<u64>> {
    let largest = header
        .snaps
        .values()
        .map(|snap| snap.size_bytes)
        .fold(header.size_bytes, u64::max);
    let end = image.layout().object_count(largest);
    let mut used = vec![0u64; spans.len()];
    let mut start_after = String::new();
    let prefix = image.data_prefix();
    let io = image.data_io();
    loop {
        let page = io
            .store()
            .list_objects(io.scope(), &prefix, &start_after, LIST_PAGE)
            .await?;
        let objects: Vec<u64> = page
            .iter()
            .filter_map(|name| u64::from_str_radix(name.strip_prefix(&prefix)?, 16).ok())
            .filter(|n| *n < end)
            .collect();
        let mut found = futures::stream::iter(objects)
            .map(|n| object(image, spans, ObjectNo(n), exact))
            .buffer_unordered(CONCURRENT);
        while let Some(bytes) = found.try_next().await? {
            for (sum, bytes) in used.iter_mut().zip(bytes) {
                *sum += bytes;
            }
        }
        let more = page.len() >= LIST_PAGE;
        match page.into_iter().next_back() {
            Some(last) if more => start_after = last,
            _ => return Ok(used),
        }
    }
}

async fn object(image: &Image, spans: &[Span], object_no: ObjectNo, exact: bool) -> Result<Vec<u64>> {
    let name = image.data_object(object_no.0);
    let snaps = spans
        .iter()
        .flat_map(|span| span.before.into_iter().chain([span.snap]));
    let snaps: Vec<SnapId> = snaps.collect();
    let Some(set) = optional(image.data_io().list_snaps(&name, &snaps).await)? else {
        return Ok(vec![0; spans.len()]);
    };
    let mut out = Vec::with_capacity(spans.len());
    for span in spans {
        let limit = object_bytes(image, object_no, span.size_bytes);
        let object_size = image.layout().object_size_bytes();
        if !exact {
            let changed = delta(&set, span.before, span.snap, object_size, true).data;
            let within = |(start, end): &(u64, u64)| end.min(&limit) - start.min(&limit);
            out.push(changed.iter().map(within).sum());
            continue;
        }
        let runs = present_runs(&set, span.before, span.snap, object_size);
        out.push(match runs.is_empty() {
            true => 0,
            false => data_bytes(image, &name, span.snap, &runs, limit).await?,
        });
    }
    Ok(out)
}

/// Bytes of data in some runs of an object.
async fn data_bytes(image: &Image, name: &str, snap: SnapId, runs: &[(u64, u64)], limit: u64) -> Result<u64> {
    let mut sum = 0;
    for &(start, end) in runs {
        let mut at = start;
        while at < end {
            let length_bytes = (end - at).min(SLICE_BYTES);
            let op = ReadOp::new().sparse_read(at, length_bytes);
            // Removed in between: nothing is used any more.
            let Some(reply) = optional(image.data_io().read(name, snap, op).await)? else {
                return Ok(0);
            };
            let Some(ReadResult::Sparse(pieces)) = reply.results.into_iter().next() else {
                return Err(ImageError::new(
                    Errno::EIO,
                    format!("sparse read of '{name}' gave no data"),
                ));
            };
            sum += pieces.iter().map(|(_, data)| data.len() as u64).sum::<u64>();
            at += length_bytes;
        }
    }
    Ok(sum.min(limit))
}

/// Runs of an object that exist at `now` and differ from `before`.
fn present_runs(set: &SnapSet, before: Option<SnapId>, now: SnapId, object_size: u64) -> Vec<(u64, u64)> {
    let Some(version) = serving(set, now) else {
        return Vec::new();
    };
    let size_bytes = set.clones[version].size_bytes;
    changed_runs(set, before, now, object_size)
        .into_iter()
        .map(|(start, end)| (start, end.min(size_bytes)))
        .filter(|(start, end)| start < end)
        .collect()
}

#[cfg(test)]
mod tests {
    use ferry_store::{CloneInfo, Extent};

    use super::*;

    fn version(id: SnapId, snaps: &[u64], overlap: &[(u64, u64)], size_bytes: u64) -> CloneInfo {
        CloneInfo {
            id,
            snaps: snaps.iter().map(|id| SnapId(*id)).collect(),
            overlap: Some(
                overlap
                    .iter()
                    .map(|(at, length)| Extent::new(*at, *length))
                    .collect(),
            ),
            size_bytes,
        }
    }

    #[test]
    fn only_what_changed_and_still_is_there_counts() {
        let set = SnapSet {
            seq: 5,
            clones: vec![
                version(SnapId(4), &[4], &[(0, 10), (20, 80)], 100),
                version(SnapId(5), &[5], &[(0, 50)], 100),
                version(SnapId::HEAD, &[], &[], 60),
            ],
        };
        assert_eq!(present_runs(&set, None, SnapId(4), 1 << 22), [(0, 100)]);
        assert_eq!(
            present_runs(&set, Some(SnapId(4)), SnapId(5), 1 << 22),
            [(10, 20)]
        );
        assert_eq!(
            present_runs(&set, Some(SnapId(5)), SnapId::HEAD, 1 << 22),
            [(50, 60)]
        );
        assert_eq!(
            present_runs(&set, Some(SnapId(4)), SnapId::HEAD, 1 << 22),
            [(10, 20), (50, 60)]
        );
        assert_eq!(
            present_runs(&set, Some(SnapId(3)), SnapId(4), 1 << 22),
            [(0, 100)],
            "absent before"
        );
        assert_eq!(
            present_runs(&set, Some(SnapId(6)), SnapId::HEAD, 1 << 22),
            [],
            "written under seq 5, unchanged since 6"
        );
    }
}
