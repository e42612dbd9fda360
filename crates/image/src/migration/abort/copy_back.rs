//! Makes the source's head what the target's head is: size, bytes, metadata, names of snapshots. Then checks it.
//!
//! Only objects that hold the target's own data are looked at; all others show the source anyway. Bytes are compared,
//! and only what differs is written, so that running it again costs reads only, and that the source's objects grow by nothing but data.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use ferry_cls::rbd::{SnapshotNamespace, client};
use ferry_store::{Errno, SnapId};
use futures::stream::{StreamExt as _, TryStreamExt as _};

use super::super::pair::Pair;
use super::super::source::MigrationSource;
use super::open;
use crate::error::{ErrorKind, ImageError, Result};
use crate::image::{Image, OpenOptions};
use crate::io::CONCURRENT_OBJECTS;
use crate::layout::{ObjectNo, ObjectOffset};
use crate::object_set::{self, ObjectSet};
use crate::progress::Progress;

/// Bytes compared at a time.
const COMPARE_BYTES: u64 = 64 << 10;

/// Differences with fewer equal bytes between them are written as one: a second request costs more than these bytes.
const JOINED_BYTES: usize = 4 << 10;

pub(super) async fn copy_back(pair: &Pair, progress: &Progress) -> Result<()> {
    let source = open(&pair.source, OpenOptions::read_write()).await?;
    let done = with_source(&source, pair, progress).await;
    let closed = source.close().await;
    done.and(closed)
}

async fn with_source(source: &Image, pair: &Pair, progress: &Progress) -> Result<()> {
    let target = open(&pair.target, OpenOptions::read_only()).await?;
    let below = MigrationSource::new(
        source.clone(),
        &target.header(),
        pair.target.spec.as_ref().ok_or_else(|| {
            ImageError::of(
                ErrorKind::Damaged,
                Errno::EIO,
                format!("'{}' lost its record", pair.target.name),
            )
        })?,
    );
    let below = Arc::new(below);
    let size_bytes = target.header().size_bytes;
    if source.header().size_bytes != size_bytes {
        source.resize(size_bytes, true, &Progress::silent()).await?;
    }
    lower_overlap(source, &target).await?;
    let objects = own_objects(&target, &below).await?;
    let total = objects.len() as u64 * 2;
    let both = Both {
        source,
        target: &target,
    };
    each(&objects, |n| both.copy(n), progress, 0, total).await?;
    // Also what an abort that was killed had written, and this one therefore found equal: the target's objects go next.
    source.flush().await?;
    source.sync_all_data().await?;
    each(
        &objects,
        |n| both.verify(n),
        progress,
        objects.len() as u64,
        total,
    )
    .await?;
    copy_metadata(source, &target).await?;
    rename_snaps(source, &target, pair).await
}

/// Where the target was smaller in between, its head shows no more of a parent that both share; nor must the source's.
async fn lower_overlap(source: &Image, target: &Image) -> Result<()> {
    let (ours, theirs) = (source.header(), target.header());
    let same_parent = match (&ours.parent, &theirs.parent) {
        (Some(ours), Some(theirs)) => ours.spec == theirs.spec,
        _ => false,
    };
    let shown_bytes = theirs.parent_overlap_bytes(SnapId::HEAD);
    if !same_parent || shown_bytes >= ours.parent_overlap_bytes(SnapId::HEAD) {
        return Ok(());
    }
    let _stopped = source.stop_writes(None).await?;
    source.refresh_if_needed().await?;
    crate::resize::lower_overlap(source, shown_bytes).await?;
    Ok(())
}

async fn each<F: Future<Output = Result<()>>>(
    objects: &[ObjectNo],
    work: impl Fn(ObjectNo) -> F,
    progress: &Progress,
    before: u64,
    total: u64,
) -> Result<()> {
    let mut done = before;
    let mut running = futures::stream::iter(objects.iter().copied())
        .map(work)
        .buffer_unordered(CONCURRENT_OBJECTS);
    while running.try_next().await?.is_some() {
        done += 1;
        progress.update(done, total + 1);
    }
    Ok(())
}

/// Objects whose head on the target is the truth: those that exist and are complete.
async fn own_objects(target: &Image, below: &MigrationSource) -> Result<Vec<ObjectNo>> {
    let candidates: ObjectSet = match crate::object_map::snap::load(target, SnapId::HEAD).await? {
        Some(map) => (0..map.len())
            .filter(|n| map.get(*n) != Some(0))
            .map(ObjectNo)
            .collect(),
        None => object_set::existing(target).await?,
    };
    let mut out = Vec::new();
    for object_no in candidates.iter() {
        if object_no.0 >= target.layout().object_count(target.header().size_bytes) {
            continue;
        }
        let exists = target.data_io().exists(&target.data_object(object_no.0)).await?;
        if exists && (!below.covers(target, object_no) || below.is_complete(target, object_no).await?) {
            out.push(object_no);
        }
    }
    Ok(out)
}

struct Both<'a> {
    source: &'a Image,
    target: &'a Image,
}

impl Both<'_> {
    /// Image ranges of an object, cut to what the image has and to what is compared at a time.
    fn ranges(&self, object_no: ObjectNo) -> Vec<(u64, u64)> {
        let size = self.target.header().size_bytes;
        let layout = self.target.layout();
        let mut out = Vec::new();
        for extent in layout.unmap(object_no, ObjectOffset(0), layout.object_size_bytes()) {
            let end = extent.offset.0.saturating_add(extent.length_bytes).min(size);
            let mut at = extent.offset.0;
            while at < end {
                let length = (end - at).min(COMPARE_BYTES);
                out.push((at, length));
                at += length;
            }
        }
        out
    }

    async fn copy(&self, object_no: ObjectNo) -> Result<()> {
        for (offset, length) in self.ranges(object_no) {
            let wanted = self.target.read(offset, length).await?;
            let found = self.source.read(offset, length).await?;
            for run in differences(&found, &wanted) {
                let at = offset + run.start as u64;
                let data = wanted.slice(run);
                if data.iter().all(|byte| *byte == 0) {
                    self.source.discard(at, data.len() as u64).await?;
                } else {
                    self.source.write(at, data).await?;
                }
            }
        }
        Ok(())
    }

    async fn verify(&self, object_no: ObjectNo) -> Result<()> {
        for (offset, length) in self.ranges(object_no) {
            if self.source.read(offset, length).await? != self.target.read(offset, length).await? {
                return Err(ImageError::new(
                    Errno::EIO,
                    format!(
                        "copying back to '{}': bytes at {offset} differ from the target's after the copy",
                        self.source.name()
                    ),
                )
                .hint("nothing was dropped; run 'rbd migration abort' again"));
            }
        }
        Ok(())
    }
}

/// Where two buffers of one length differ: each run begins and ends with a byte that does, and between two runs at least
/// [`JOINED_BYTES`] are equal.
fn differences(found: &[u8], wanted: &[u8]) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    // Most of it is equal, and that is seen in large steps.
    for (n, (ours, theirs)) in found
        .chunks(JOINED_BYTES)
        .zip(wanted.chunks(JOINED_BYTES))
        .enumerate()
    {
        if ours == theirs {
            continue;
        }
        let differing = ours
            .iter()
            .zip(theirs)
            .enumerate()
            .filter(|(_, (our, their))| our != their)
            .map(|(at, _)| n * JOINED_BYTES + at);
        for at in differing {
            match runs.last_mut() {
                Some(last) if at - last.end < JOINED_BYTES => last.end = at + 1,
                _ => runs.push(at..at + 1),
            }
        }
    }
    runs
}

async fn copy_metadata(source: &Image, target: &Image) -> Result<()> {
    let io = source.io();
    let header = &source.inner.header_object;
    let before = client::metadata_list_all(io, header).await?;
    let wanted = client::metadata_list_all(target.io(), &target.inner.header_object).await?;
    for key in before.keys().filter(|key| !wanted.contains_key(*key)) {
        ferry_cls::exec_write(io, header, client::metadata_remove(key)).await?;
    }
    if wanted != before && !wanted.is_empty() {
        ferry_cls::exec_write(io, header, client::metadata_set(&wanted)).await?;
    }
    Ok(())
}

/// Gives the source's snapshots the names that the target's have now. Names may have been swapped, or given on after a
/// removal, so all that change go through names that nobody has; a snapshot that only the source still has gives way.
async fn rename_snaps(source: &Image, target: &Image, pair: &Pair) -> Result<()> {
    let Some(spec) = &pair.target.spec else {
        return Ok(());
    };
    let theirs = target.header();
    let wanted: BTreeMap<SnapId, String> = spec
        .snap_seqs
        .iter()
        .filter_map(|(ours, id)| Some((*ours, theirs.snaps.get(id)?)))
        // One that was removed and that only clones keep has a name that nobody gave it.
        .filter(|(_, snap)| snap.namespace == SnapshotNamespace::User)
        .map(|(ours, snap)| (ours, snap.name.clone()))
        .collect();
    let ours = source.header();
    let mut moving = Vec::new();
    for snap in ours.user_snaps() {
        match wanted.get(&snap.id) {
            Some(name) if *name == snap.name => {}
            Some(name) => moving.push((snap.id, name.clone())),
            None if wanted.values().any(|name| *name == snap.name) => {
                let new_name = format!("{}.{}", snap.name, snap.id);
                tracing::warn!(
                    snapshot = snap.name,
                    new_name,
                    "another snapshot has this name now"
                );
                moving.push((snap.id, new_name));
            }
            None => {}
        }
    }
    for (id, _) in &moving {
        crate::snapshot::rename_here(source, *id, &format!(".migration-abort.{id}")).await?;
    }
    for (id, name) in moving {
        crate::snapshot::rename_here(source, id, &name).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_differences_begin_and_end_with_one_and_small_gaps_are_joined() {
        let found = vec![0; 5 * JOINED_BYTES + 100];
        let with = |places: &[usize]| {
            let mut wanted = found.clone();
            for place in places {
                wanted[*place] = 1;
            }
            let runs = differences(&found, &wanted);
            runs.iter().map(|run| (run.start, run.end)).collect::<Vec<_>>()
        };
        assert_eq!(with(&[]), []);
        assert_eq!(with(&[found.len() - 1]), [(found.len() - 1, found.len())]);
        assert_eq!(with(&[7, 9, 7 + JOINED_BYTES]), [(7, 8 + JOINED_BYTES)]);
        assert_eq!(
            with(&[0, JOINED_BYTES, 2 * JOINED_BYTES + 1]),
            [
                (0, JOINED_BYTES + 1),
                (2 * JOINED_BYTES + 1, 2 * JOINED_BYTES + 2)
            ]
        );
    }
}
