//! How much of an image is in use: `rbd du`.
//!
//! Used by a snapshot (or the head) is what was written since the snapshot before and still is there. Without `exact`
//! whole objects count, as in a whole-object [`crate::diff`], from the object maps when they can be believed (no object is looked at then), else from the
//! clones of the objects that exist. With `exact` the extents count of which [`crate::diff`] tells. Costs follow data; what is held in
//! memory are the maps.

use ferry_cls::BitVector;
use ferry_cls::rbd::{ObjectState, SnapshotNamespace, feature, flag};
use ferry_store::{IoCtx, SnapId};
use futures::stream::{StreamExt as _, TryStreamExt as _};

use super::CONCURRENT;
use crate::diff::maps::tells_changes;
use crate::error::{Result, optional};
use crate::header::Header;
use crate::image::{Image, ImageKey, OpenOptions, SnapKey, find_snap};
use crate::layout::ObjectNo;
use crate::object_map;
use crate::snapshot::diff::delta;

/// Names of objects read in one listing.
const LIST_PAGE: usize = 1000;

/// Usage of the head of an image, or of one snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsageRow {
    /// Name and id of the snapshot; `None` for the head.
    pub snapshot: Option<(String, SnapId)>,
    /// Size.
    pub provisioned_bytes: u64,
    /// What was written since the snapshot before.
    pub used_bytes: u64,
    /// Whether its object map is marked as wrong about changes.
    pub is_map_invalid: bool,
}

/// Usage of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageUsage {
    /// Image name.
    pub name: String,
    /// Image id.
    pub id: String,
    /// Snapshots, oldest first, then the head; or the snapshots up to the one asked for.
    pub rows: Vec<UsageRow>,
    /// Whether the image has the feature fast-diff.
    pub has_fast_diff: bool,
    /// Whether the object maps told it. False without `exact`: the image has none that can be believed, objects had to
    /// be looked at.
    pub from_object_maps: bool,
}

/// Measures the image `name`, or what it was up to a snapshot. `ENOENT` ([`crate::ErrorKind::ImageMissing`],
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
        spans.retain(|span| span.snap <= wanted);
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
        is_map_invalid: flags_of(&header, span.snap) & flag::FAST_DIFF_INVALID != 0,
    });
    Ok(ImageUsage {
        name: name.to_owned(),
        id: image.id().to_owned(),
        has_fast_diff: header.has(feature::FAST_DIFF),
        rows: rows.collect(),
        from_object_maps: maps.is_some(),
    })
}

fn flags_of(header: &Header, snap: SnapId) -> u64 {
    header.snaps.get(&snap).map_or(header.flags, |snap| snap.flags)
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
        let changed = delta(&set, span.before, span.snap, object_size, !exact).data;
        let within = |(start, end): &(u64, u64)| end.min(&limit) - start.min(&limit);
        out.push(changed.iter().map(within).sum());
    }
    Ok(out)
}
