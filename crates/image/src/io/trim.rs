//! Removes what lies beyond a size: whole objects, and the tails of those that the border runs through.
//!
//! Costs follow data: with an object map only objects that exist are visited, and on a migration target only those
//! that the source may have. Of a clone those are visited too through which snapshots, or the source, show the parent.

use std::ops::Range;

use ferry_cls::rbd::feature;
use ferry_store::{Errno, ReadOp, SnapId, WriteOp, WriteStep};
use futures::stream::{StreamExt as _, TryStreamExt as _};

use super::CONCURRENT_OBJECTS;
use super::write::Writer;
use crate::error::{Result, absent_is_fine, optional};
use crate::header::Header;
use crate::image::Image;
use crate::layering::copy_up::Shown;
use crate::layout::ObjectNo;
use crate::object_set::{self, Candidates, ObjectSet};
use crate::progress::Progress;

/// Empties everything beyond `new_size_bytes`. The caller holds the gate exclusively and owns the lock. The head shows its
/// parent no further than that, so what is beyond may be removed.
pub(crate) async fn trim(
    image: &Image,
    header: &Header,
    new_size_bytes: u64,
    progress: &Progress,
) -> Result<()> {
    let source = image.source();
    let below = match &source {
        Some(source) => source.objects_to_copy(image).await?,
        None => ObjectSet::default(),
    };
    let writer = Writer::new(image, header, source.as_deref());
    let layout = image.layout();
    let total = layout.object_count(header.size_bytes);
    let first_touched = first_touched(image, new_size_bytes);
    let source_shows = source
        .as_ref()
        .map_or(0, |source| source.parent_object_count(image));
    let needs_visit = |n: u64| {
        let object_no = ObjectNo(n);
        let uncopied = below.contains(object_no) && !image.inner.complete.contains(object_no);
        let by_snaps = Shown::through(image, header, object_no).is_some_and(Shown::by_snaps);
        uncopied || n < source_shows || by_snaps || image.inner.head_map.may_exist(object_no)
    };
    let range = first_touched..total;
    let objects: Candidates<'_> = match object_set::existing_of_many(image, &range).await? {
        Some(mut known) => {
            known.extend(below.iter());
            // As far as something shows from below, each is looked at.
            let near = source_shows.max(layout.object_count(header.largest_parent_overlap_bytes()));
            let near = near.clamp(first_touched, total);
            let far: Vec<u64> = known.within(near..total).collect();
            Box::new((first_touched..near).chain(far))
        }
        None => Box::new(range),
    };
    let objects = objects.filter(|n| needs_visit(*n));
    let mut done = futures::stream::iter(objects)
        .map(|n| {
            let writer = &writer;
            async move {
                let used = layout.object_bytes_used(ObjectNo(n), new_size_bytes);
                writer.cut(ObjectNo(n), used).await.map(|()| n)
            }
        })
        .buffered(CONCURRENT_OBJECTS);
    while let Some(n) = done.try_next().await? {
        progress.update(n, total);
    }
    progress.update(total, total);
    Ok(())
}

/// Fills the objects beyond a size through which snapshots show the parent, so that these do not count on an overlap which
/// the head is about to lose. The caller holds the gate exclusively and owns the lock.
pub(crate) async fn keep_for_snapshots(image: &Image, header: &Header, new_size_bytes: u64) -> Result<()> {
    let source = image.source();
    let writer = Writer::new(image, header, source.as_deref());
    let layout = image.layout();
    let by_snaps = |n: &u64| Shown::through(image, header, ObjectNo(*n)).is_some_and(Shown::by_snaps);
    let end = layout.object_count(header.largest_parent_overlap_bytes());
    futures::stream::iter((first_touched(image, new_size_bytes)..end).filter(by_snaps))
        .map(|n| writer.fill_for_snapshots(ObjectNo(n)))
        .buffer_unordered(CONCURRENT_OBJECTS)
        .try_collect()
        .await
}

/// The first object that a new end may cut: the border may run through any object of the set that it lies in.
fn first_touched(image: &Image, new_size_bytes: u64) -> u64 {
    let layout = image.layout();
    let period = layout.object_size_bytes() * layout.stripe_count();
    (new_size_bytes / period) * layout.stripe_count()
}

/// Removes all data objects from `first` on and keeps the object map true. The caller owns the lock; nobody else writes.
/// On a migration target that goes for objects beyond its size too, which hid the source after a shrink.
pub async fn remove_from(image: &Image, first: ObjectNo, progress: &Progress) -> Result<()> {
    let _guard = image.begin_write().await?;
    let header = image.header();
    let layout = image.layout();
    let inside = layout.object_count(header.size_bytes);
    let total = inside.max(layout.object_count(header.migration_overlap_bytes()));
    remove_heads(image, &header, first.0..total, progress).await
}

/// Removes the objects that a shrunk migration target keeps beyond its size. The migration has ended; `overlap_bytes` is how far they
/// may go. Without the exclusive lock others may let the image grow meanwhile and write there.
pub(crate) async fn remove_hiding(image: &Image, overlap_bytes: u64) -> Result<()> {
    let _guard = image.begin_write().await?;
    let header = image.header();
    let layout = image.layout();
    let range = layout.object_count(header.size_bytes)..layout.object_count(overlap_bytes);
    if header.has(feature::EXCLUSIVE_LOCK) {
        return remove_heads(image, &header, range, &Progress::silent()).await;
    }
    let objects: Candidates<'_> = match object_set::existing_of_many(image, &range).await? {
        Some(known) => Box::new(known.within(range).collect::<Vec<_>>().into_iter()),
        None => Box::new(range),
    };
    futures::stream::iter(objects)
        .map(|n| remove_if_beyond(image, &header, ObjectNo(n)))
        .buffer_unordered(CONCURRENT_OBJECTS)
        .try_collect()
        .await
}

/// Removes an object if the image still ends before it, unless somebody writes to it: who does has let the image grow before.
async fn remove_if_beyond(image: &Image, header: &Header, object_no: ObjectNo) -> Result<()> {
    let object = image.data_object(object_no.0);
    let op = ReadOp::new().stat();
    let Some(reply) = optional(image.data_io().read(&object, SnapId::HEAD, op).await)? else {
        return Ok(());
    };
    let now = crate::header::load(image.io(), image.key(), false).await?;
    if object_no.0 < image.layout().object_count(now.size_bytes) {
        return Ok(());
    }
    let op = WriteOp::new()
        .step(WriteStep::AssertVersion(reply.version))
        .remove();
    match image.data_io().write(&object, &header.snapc, op).await {
        Err(error) if matches!(error.errno, Errno::ERANGE | Errno::EOVERFLOW) => Ok(()),
        removed => absent_is_fine(removed.map(|_| ())),
    }
}

async fn remove_heads(image: &Image, header: &Header, range: Range<u64>, progress: &Progress) -> Result<()> {
    let writer = Writer::removing(image, header);
    let inside = image.layout().object_count(header.size_bytes);
    let total = range.end.max(1);
    let known = object_set::existing_of_many(image, &range).await?;
    let objects: Candidates<'_> = match &known {
        Some(known) => Box::new(known.within(range)),
        None => Box::new(range),
    };
    // The map knows nothing beyond the image's size.
    let objects = objects.filter(|n| *n >= inside || image.inner.head_map.may_exist(ObjectNo(*n)));
    let mut done = futures::stream::iter(objects)
        .map(|n| {
            let writer = &writer;
            async move { writer.empty(ObjectNo(n)).await.map(|()| n) }
        })
        .buffered(CONCURRENT_OBJECTS);
    while let Some(n) = done.try_next().await? {
        progress.update(n + 1, total);
    }
    progress.update(total, total);
    Ok(())
}

impl Writer<'_> {
    async fn fill_for_snapshots(&self, object_no: ObjectNo) -> Result<()> {
        self.copy_up(object_no).await?;
        self.copy_up_parent(object_no, &[]).await.map(|_| ())
    }

    /// Empties an object beyond `keep_bytes` of it.
    async fn cut(&self, object_no: ObjectNo, keep_bytes: u64) -> Result<()> {
        if keep_bytes == 0 {
            return self.empty(object_no).await;
        }
        let object_size = self.object_size();
        if keep_bytes >= object_size {
            return Ok(());
        }
        let shown = Shown::through(self.image, self.header, object_no);
        if self.incomplete_source(object_no).is_none()
            && !self.source_shows_parent(object_no)
            && shown.is_some_and(|shown| !shown.by_snaps())
            && !self.is_present(object_no).await?
        {
            // The head shows the parent no further than is kept.
            return Ok(());
        }
        self.zero(object_no, keep_bytes, object_size - keep_bytes).await
    }
}
