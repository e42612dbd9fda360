//! What an object of the target looked like at each version of the source, as changes from version to version.
//!
//! The source's objects tell by their clones and overlaps which bytes changed between two snapshots; only those are
//! read. An engine that does not know overlaps gives the clones alone: then both versions are read and compared.
//! Layouts may differ: one object of the target may take bytes from several objects of the source.
//!
//! The source may be a clone. What it shows of its parent is left to the target's own link to the parent, or, if the target is to
//! be flat, copied like its own bytes. An object of the target that exists hides the parent whole: it gets what the source
//! shows wherever the source has no object, in older versions too, and stays as long as the parent shows there.

use std::collections::BTreeMap;

use bytes::Bytes;
use ferry_store::{SnapId, SnapSet, WriteStep};
use futures::stream::{StreamExt as _, TryStreamExt as _};

use super::compare::{self, Side};
use super::engine::EngineCopy;
use super::{CopyOptions, zeroes};
use crate::error::{Result, optional};
use crate::image::Image;
use crate::io::read::Run;
use crate::layout::{ImageExtent, ObjectExtent, ObjectNo, ObjectOffset};
use crate::migration::source::{MigratedSnap, MigrationSource};
use crate::snapshot::diff::{changed_runs, is_guess, merge, serving};

/// Most bytes of one object's versions that are kept between reading and writing, unless only one has any.
const KEPT_BYTES: u64 = 16 << 20;
/// Pieces of one version that are read at the same time.
const CONCURRENT_READS: usize = 8;

/// One version of the object: at a snapshot of the target, or its head.
#[derive(Debug)]
pub(super) struct Version {
    /// The target's snapshot, or the head.
    pub snap: SnapId,
    /// Whether the target still has it.
    pub living: bool,
    /// Whether the object exists at this version.
    pub exists: bool,
    /// How it differs from the version before; `None`: not at all.
    pub change: Option<Change>,
}

/// A difference between two versions.
#[derive(Debug)]
pub(super) enum Change {
    /// The object goes away.
    Remove,
    /// The object comes into being, and the engine may make it.
    Copy(EngineCopy),
    /// Bytes change.
    Write(Contents),
}

/// The bytes of a change.
#[derive(Debug)]
pub(super) enum Contents {
    /// They were kept.
    Kept(Written),
    /// The object's versions are too large to keep them all: read again when they are written. The source stands still.
    ToRead(Difference),
}

/// What differs between a version and the one before, and how that is read.
#[derive(Debug)]
pub(super) struct Difference {
    changed: Vec<Piece>,
    now: Side,
    /// The version before, where only the bytes tell what has changed.
    was: Option<Side>,
    /// The target's object before: whether it exists, and its size.
    existed: bool,
    size_before_bytes: u64,
    /// Whether an absent object would show the parent where the source does not.
    hides_parent: bool,
}

impl Difference {
    /// Reads it.
    pub(super) async fn read(&self, source: &MigrationSource, options: CopyOptions) -> Result<Written> {
        let mut found = match self.was {
            Some(was) => compare::read(source, &self.changed, was, self.now).await?,
            None => read_pieces(source, &self.changed, self.now).await?,
        };
        let zero_bytes = if options.zero_detect {
            zeroes::leave_out(&mut found)
        } else {
            0
        };
        let data_bytes = found.data.iter().map(|(_, data)| data.len() as u64).sum();
        let make_empty = self.hides_parent && !self.existed;
        let (steps, size_bytes) = write_steps(found, self.size_before_bytes, self.existed, make_empty);
        Ok(Written {
            steps,
            size_bytes,
            data_bytes,
            zero_bytes,
        })
    }
}

/// A difference that was read.
#[derive(Debug, Default)]
pub(super) struct Written {
    /// Steps of one write; none: there is nothing to write.
    pub steps: Vec<WriteStep>,
    /// Bytes of data in them.
    pub data_bytes: u64,
    /// The object's size afterwards.
    size_bytes: u64,
    /// Bytes that were left out, being zero.
    zero_bytes: u64,
}

/// A piece of the target's object and where its bytes lie in the image.
#[derive(Debug, Clone, Copy)]
pub(super) struct Piece {
    /// First byte in the target's object.
    pub offset: u64,
    /// Where its bytes lie in the image.
    pub image: ImageExtent,
}

/// What the source has for one object of the target.
#[derive(Debug)]
pub(super) struct Sources {
    /// The pieces of the target's object, ascending.
    pub pieces: Vec<Piece>,
    /// Those of the source's objects that exist in some version.
    snapsets: BTreeMap<ObjectNo, SnapSet>,
    /// Whether the engine may copy: both images are in one store, and what the source has is all there is to see.
    by_engine: bool,
}

impl Sources {
    /// How the engine may make a version of an object that is not there yet.
    fn engine_copy(&self, source: &MigrationSource, difference: &Difference) -> Option<EngineCopy> {
        self.by_engine
            .then(|| EngineCopy::new(source, self, difference.now.snap, difference.now.overlap_bytes))
            .flatten()
    }

    /// Asks the source.
    pub(super) async fn find(target: &Image, source: &MigrationSource, object_no: ObjectNo) -> Result<Self> {
        let pieces = pieces(target, object_no);
        let snapsets = snapsets(source, &pieces).await?;
        let from = source.image();
        let one_store = std::sync::Arc::ptr_eq(target.inner.data_io.store(), from.data_io().store());
        Ok(Self {
            pieces,
            snapsets,
            by_engine: one_store && from.header().parent.is_none(),
        })
    }

    /// Size of an object of the source at one of its snapshots; `None` if it does not exist there.
    pub(super) fn size_at(&self, object_no: ObjectNo, snap: SnapId) -> Option<u64> {
        let set = self.snapsets.get(&object_no)?;
        Some(set.clones[serving(set, snap)?].size_bytes)
    }
}

/// What one object looked like, before any of it is read.
pub(super) struct Outline<'a> {
    sources: &'a Sources,
    points: Vec<Point>,
}

/// One version of an outline.
struct Point {
    of: MigratedSnap,
    exists: bool,
    changed: Vec<Piece>,
    now: Side,
    was: Option<Side>,
    hides_parent: bool,
    /// Whether an absent object shows a parent.
    over_parent: bool,
}

impl Point {
    /// Bytes that are held at most.
    fn length_bytes(&self) -> u64 {
        let changed = self.changed.iter().map(|piece| piece.image.length_bytes);
        match (self.exists, self.was) {
            (false, _) => 0,
            (true, None) => changed.sum(),
            // Both versions, and what was read of one on its way there.
            (true, Some(_)) => changed.sum::<u64>().saturating_mul(3),
        }
    }
}

impl<'a> Outline<'a> {
    /// From what the source's objects tell of themselves.
    pub(super) fn new(source: &MigrationSource, sources: &'a Sources) -> Self {
        let Sources { pieces, snapsets, .. } = sources;
        let source_header = source.image().header();
        let head = MigratedSnap {
            target: SnapId::HEAD,
            source: source.head(),
            living: true,
        };
        // Of the head what it had at prepare: it may have shrunk since, but snapshots taken in between need the rest.
        let size_of = |snap: SnapId| match snap.is_head() {
            true => source.head_overlap_bytes(),
            false => source_header.size_at(snap).unwrap_or(0),
        };
        let own = |snap| exists_at(source, pieces, snapsets, snap, size_of(snap));
        let history: Vec<(MigratedSnap, bool)> = source
            .history()
            .iter()
            .copied()
            .chain([head])
            .map(|of| (of, own(of.source)))
            .collect();
        let last_own = history.iter().rposition(|(_, own)| *own);
        let mut before: Option<Side> = None;
        let points = history.into_iter().enumerate().map(|(index, (of, own))| {
            let overlap_bytes = size_of(of.source);
            let now = Side {
                snap: of.source,
                overlap_bytes,
            };
            let parent_bytes = source_header.parent_overlap_bytes(of.source);
            let shows_parent = pieces.iter().any(|piece| piece.image.offset.0 < parent_bytes);
            // What a version shows of the parent cannot be given to it once a newer one has the object.
            let is_needed = before.is_some() || source.is_flattened() || last_own > Some(index);
            let exists = own || shows_parent && is_needed;
            let changed = match exists {
                true => changed_pieces(source, pieces, snapsets, before.map(|was| was.snap), of.source),
                false => Vec::new(),
            };
            let guessed = |was: &Side| {
                let mut sets = snapsets.values();
                sets.any(|set| is_guess(set, was.snap, of.source))
            };
            let was = before.filter(guessed);
            before = exists.then_some(now);
            Point {
                of,
                exists,
                changed,
                now,
                was,
                hides_parent: own && shows_parent && !source.is_flattened(),
                over_parent: shows_parent && !source.is_flattened(),
            }
        });
        Self {
            sources,
            points: points.collect(),
        }
    }

    /// Bytes that are read of each version, at most.
    fn lengths(&self, by_engine: bool) -> impl Iterator<Item = u64> + Clone {
        let lengths = self.points.iter().map(Point::length_bytes);
        let first = self.points.iter().position(|point| point.length_bytes() > 0);
        let copied = first.filter(|_| by_engine && self.sources.by_engine);
        lengths
            .enumerate()
            .map(move |(index, length_bytes)| if copied == Some(index) { 0 } else { length_bytes })
    }

    /// Whether the bytes of all versions are kept between reading and writing.
    fn is_kept(&self, by_engine: bool) -> bool {
        let lengths = self.lengths(by_engine);
        let changes = lengths.clone().filter(|length_bytes| *length_bytes > 0);
        changes.count() <= 1 || lengths.sum::<u64>() <= KEPT_BYTES
    }

    /// Most bytes that are in memory at a time while the object is copied.
    pub(super) fn memory_bytes(&self, by_engine: bool) -> u64 {
        let mut lengths = self.lengths(by_engine);
        if self.is_kept(by_engine) {
            lengths.sum()
        } else {
            lengths.by_ref().max().unwrap_or(0)
        }
    }

    /// The versions, oldest first, the head last. Reads all of them, as only their bytes tell which ones have any; but for
    /// the first, if the engine may copy that.
    pub(super) async fn versions(
        self,
        source: &MigrationSource,
        options: CopyOptions,
        by_engine: bool,
        zero_bytes: &mut u64,
    ) -> Result<Vec<Version>> {
        let mut out: Vec<Version> = Vec::with_capacity(self.points.len());
        let mut size_before_bytes = 0;
        let mut existed = false;
        let keep = self.is_kept(by_engine);
        for point in self.points {
            let change = match (existed, point.exists) {
                (false, false) => None,
                (true, false) => {
                    size_before_bytes = 0;
                    Some(Change::Remove)
                }
                (existed, true) if point.changed.is_empty() && (existed || !point.hides_parent) => None,
                (_, true) => {
                    let difference = Difference {
                        changed: point.changed,
                        now: point.now,
                        was: point.was,
                        existed,
                        size_before_bytes,
                        hides_parent: point.hides_parent,
                    };
                    let is_first = out.iter().all(|version| version.change.is_none());
                    if by_engine
                        && is_first
                        && let Some(copy) = self.sources.engine_copy(source, &difference)
                    {
                        size_before_bytes = copy.size_bytes();
                        existed = true;
                        out.push(Version {
                            snap: point.of.target,
                            living: point.of.living,
                            exists: true,
                            change: Some(Change::Copy(copy)),
                        });
                        continue;
                    }
                    // Data that does not matter (all beyond the overlap) is no reason to make an object.
                    let written = difference.read(source, options).await?;
                    *zero_bytes += written.zero_bytes;
                    size_before_bytes = written.size_bytes;
                    let is_gone =
                        existed && !point.over_parent && written.size_bytes == 0 && source.is_copied_alone();
                    match (written.steps.is_empty(), keep) {
                        _ if is_gone => Some(Change::Remove),
                        (true, _) => None,
                        (false, true) => Some(Change::Write(Contents::Kept(written))),
                        (false, false) => Some(Change::Write(Contents::ToRead(difference))),
                    }
                }
            };
            existed = match &change {
                Some(Change::Remove) => false,
                Some(Change::Copy(_) | Change::Write(_)) => true,
                None => existed,
            };
            out.push(Version {
                snap: point.of.target,
                living: point.of.living,
                exists: existed,
                change,
            });
        }
        Ok(out)
    }
}

fn pieces(target: &Image, object_no: ObjectNo) -> Vec<Piece> {
    let layout = target.layout();
    let mut offset = 0;
    layout
        .unmap(object_no, ObjectOffset(0), layout.object_size_bytes())
        .into_iter()
        .map(|image| {
            let piece = Piece { offset, image };
            offset += image.length_bytes;
            piece
        })
        .collect()
}

async fn snapsets(source: &MigrationSource, pieces: &[Piece]) -> Result<BTreeMap<ObjectNo, SnapSet>> {
    let mut out = BTreeMap::new();
    let snaps: Vec<SnapId> = source.history().iter().map(|point| point.source).collect();
    let image = source.image();
    for piece in pieces {
        for extent in image.layout().map(piece.image) {
            if out.contains_key(&extent.object_no) || piece.image.offset.0 >= source.copy_overlap_bytes() {
                continue;
            }
            let object = image.data_object(extent.object_no.0);
            if let Some(set) = optional(image.data_io().list_snaps(&object, &snaps).await)? {
                out.insert(extent.object_no, set);
            }
        }
    }
    Ok(out)
}

/// Whether the source has an object for any of the pieces that begin before `size_bytes`. One behind the end (an empty one,
/// of the time when the source was a target itself) is in nobody's map.
fn exists_at(
    source: &MigrationSource,
    pieces: &[Piece],
    snapsets: &BTreeMap<ObjectNo, SnapSet>,
    snap: SnapId,
    size_bytes: u64,
) -> bool {
    pieces
        .iter()
        .flat_map(|piece| source.image().layout().map(piece.image))
        .filter(|extent| extent.image_offset.0 < size_bytes)
        .any(|extent| {
            snapsets
                .get(&extent.object_no)
                .is_some_and(|set| serving(set, snap).is_some())
        })
}

/// Pieces of the target's object that differ between two versions, ascending, adjoining ones joined. `before`: the version
/// before, if the target's object existed there.
fn changed_pieces(
    source: &MigrationSource,
    pieces: &[Piece],
    snapsets: &BTreeMap<ObjectNo, SnapSet>,
    before: Option<SnapId>,
    now: SnapId,
) -> Vec<Piece> {
    let layout = source.image().layout();
    let mut runs_of: BTreeMap<ObjectNo, Vec<(u64, u64)>> = BTreeMap::new();
    let mut out: Vec<Piece> = Vec::new();
    for piece in pieces {
        for extent in layout.map(piece.image) {
            let set = snapsets.get(&extent.object_no);
            let runs = match set {
                Some(set) => runs_of
                    .entry(extent.object_no)
                    .or_insert_with(|| changed_runs(set, before, now, layout.object_size_bytes()))
                    .as_slice(),
                None => &[],
            };
            let shown = changed_by_parent(source, extent, set, before, now);
            let runs = runs.iter().copied().map(|run| clip(run, &extent)).chain([shown]);
            for (from, to) in merge(runs.filter(|(from, to)| from < to).collect()) {
                let image_offset = extent.image_offset.0 + (from - extent.offset.0);
                let offset = piece.offset + (image_offset - piece.image.offset.0);
                push_piece(&mut out, offset, image_offset, to - from);
            }
        }
    }
    out
}

/// The part of a run of an object that lies in an extent of it; empty: start is not before end.
fn clip((start, end): (u64, u64), extent: &ObjectExtent) -> (u64, u64) {
    (
        start.max(extent.offset.0),
        end.min(extent.offset.0 + extent.length_bytes),
    )
}

/// The run of an extent of a source's object that shows something else because the parent shows there, or did.
fn changed_by_parent(
    source: &MigrationSource,
    extent: ObjectExtent,
    set: Option<&SnapSet>,
    before: Option<SnapId>,
    now: SnapId,
) -> (u64, u64) {
    let header = source.image().header();
    // Where what the parent shows ends, in the object; its start if the object exists or there was none.
    let shown_until = |snap: SnapId| {
        let exists = set.is_some_and(|set| serving(set, snap).is_some());
        let overlap_bytes = if exists {
            0
        } else {
            header.parent_overlap_bytes(snap)
        };
        let shown_bytes = overlap_bytes.saturating_sub(extent.image_offset.0);
        extent.offset.0 + shown_bytes.min(extent.length_bytes)
    };
    let start = extent.offset.0;
    let until = shown_until(now);
    match before.map(shown_until) {
        // What both show of the parent is the same.
        Some(before) if before > start && until > start => (before.min(until), before.max(until)),
        Some(before) => (start, before.max(until)),
        None => (start, until),
    }
}

fn push_piece(out: &mut Vec<Piece>, offset: u64, image_offset: u64, length_bytes: u64) {
    if let Some(last) = out.last_mut()
        && last.offset + last.image.length_bytes == offset
        && last.image.offset.0 + last.image.length_bytes == image_offset
    {
        last.image.length_bytes += length_bytes;
        return;
    }
    let image = ImageExtent {
        offset: crate::layout::ImageOffset(image_offset),
        length_bytes,
    };
    out.push(Piece { offset, image });
}

/// What the changed pieces hold, by offsets in the target's object.
#[derive(Debug, Default)]
pub(super) struct Content {
    /// Runs of data.
    pub data: Vec<(u64, Bytes)>,
    /// Runs of zeroes: offset and length.
    pub zeroes: Vec<(u64, u64)>,
}

/// What one piece has: runs of data by offsets in the image.
async fn read_piece(source: &MigrationSource, piece: Piece, now: Side) -> Result<(Piece, Vec<Run>)> {
    let start = piece.image.offset.0;
    let visible = now
        .overlap_bytes
        .saturating_sub(start)
        .min(piece.image.length_bytes);
    let runs = match visible {
        0 => Vec::new(),
        _ => source.read(start, visible, now.snap).await?.runs,
    };
    Ok((piece, runs))
}

async fn read_pieces(source: &MigrationSource, changed: &[Piece], now: Side) -> Result<Content> {
    let reads = changed
        .iter()
        .map(|piece| read_piece(source, *piece, now))
        .collect::<Vec<_>>();
    let mut reads = futures::stream::iter(reads).buffered(CONCURRENT_READS);
    let mut content = Content::default();
    while let Some((piece, runs)) = reads.try_next().await? {
        let start = piece.image.offset.0;
        let mut at = 0;
        for (run_at, data) in runs {
            let relative = run_at - start;
            if relative > at {
                content.zeroes.push((piece.offset + at, relative - at));
            }
            at = relative + data.len() as u64;
            content.data.push((piece.offset + relative, data));
        }
        if at < piece.image.length_bytes {
            content
                .zeroes
                .push((piece.offset + at, piece.image.length_bytes - at));
        }
    }
    Ok(content)
}

/// How to write what was found, and the object's size afterwards.
fn write_steps(
    content: Content,
    size_before_bytes: u64,
    existed: bool,
    make_empty: bool,
) -> (Vec<WriteStep>, u64) {
    let Content { data, zeroes } = content;
    if !existed && data.is_empty() {
        let steps = match make_empty {
            true => vec![WriteStep::Create { exclusive: false }],
            false => Vec::new(),
        };
        return (steps, size_before_bytes);
    }
    let mut steps = Vec::with_capacity(data.len() + zeroes.len());
    let mut size_bytes = size_before_bytes;
    // From the back, as what only zeroes follow is the end.
    for (offset, length_bytes) in zeroes.into_iter().rev() {
        if !existed || offset >= size_bytes {
            // Past the end everything reads as zero already.
        } else if offset + length_bytes >= size_bytes {
            size_bytes = offset;
        } else {
            steps.push(WriteStep::Zero { offset, length_bytes });
        }
    }
    if size_bytes < size_before_bytes {
        steps.insert(0, WriteStep::Truncate { size_bytes });
    }
    for (offset, data) in data {
        size_bytes = size_bytes.max(offset + data.len() as u64);
        steps.push(WriteStep::Write { offset, data });
    }
    (steps, size_bytes)
}
