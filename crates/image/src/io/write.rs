//! Writes, compare-and-write, and what a change of an object takes; [`super::discard`] says which objects a discard changes.
//!
//! Order of things for one object: copy it if the source may still have it, fill it with what a parent shows, tell the
//! object map, write. Buffered until [`crate::Image::flush`], except writes that make an object hide the source: these are durable when they return,
//! since half of one would show zeros where neither old nor new bytes are zero.

use bytes::Bytes;
use ferry_store::{Durability, Errno, ReadOp, SnapId, WriteOp, WriteStep};
use futures::stream::{StreamExt as _, TryStreamExt as _};

use super::CONCURRENT_OBJECTS;
use crate::deep_copy;
use crate::error::{ImageError, Result, absent_is_fine};
use crate::header::Header;
use crate::image::Image;
use crate::layering::copy_up::{CopiedUp, Shown, by_object_offset};
use crate::layout::{ImageExtent, ImageOffset, ObjectExtent, ObjectNo, ObjectOffset};
use crate::migration::source::MigrationSource;
use crate::object_map::head::{self, Kept};
use crate::object_map::mark;

/// Largest single write; callers cut larger ones.
pub const MAX_WRITE_BYTES: u64 = 64 << 20;

impl Image {
    /// Writes `data` at `offset`. `EINVAL` past the end, `EROFS` on a read-only handle.
    pub async fn write(&self, offset: u64, data: Bytes) -> Result<()> {
        let _client = self.inner.activity.begin();
        let length_bytes = data.len() as u64;
        self.settle(offset, length_bytes).await?;
        self.room_around(length_bytes).await;
        let guard = self.begin_write().await?;
        let _changing = self.changing(offset, length_bytes);
        self.check_range(&self.header(), offset, length_bytes, MAX_WRITE_BYTES)?;
        let Some(_guard) = self.write_around(offset, &data, guard) else {
            return Ok(());
        };
        self.write_through(offset, data).await
    }

    /// Writes a range that was checked, with the gate held.
    pub(crate) async fn write_through(&self, offset: u64, data: Bytes) -> Result<()> {
        let length_bytes = data.len() as u64;
        let header = self.header();
        let source = self.source();
        let writer = Writer::new(self, &header, source.as_deref());
        let extents = self.layout().map(ImageExtent {
            offset: ImageOffset(offset),
            length_bytes,
        });
        let piece = |extent: &ObjectExtent| {
            // A run joined over several stripe units of one object is contiguous in the image too.
            let start = (extent.image_offset.0 - offset) as usize;
            data.slice(start..start + extent.length_bytes as usize)
        };
        if let [extent] = extents.as_slice() {
            return writer.write(*extent, piece(extent)).await;
        }
        futures::stream::iter(extents)
            .map(|extent| writer.write(extent, piece(&extent)))
            .buffer_unordered(CONCURRENT_OBJECTS)
            .try_collect()
            .await
    }

    /// Writes runs of one object in one operation, with the gate held.
    pub(crate) async fn write_runs(
        &self,
        object_no: ObjectNo,
        runs: Vec<(ObjectOffset, Bytes)>,
    ) -> Result<()> {
        let header = self.header();
        let source = self.source();
        let writer = Writer::new(self, &header, source.as_deref());
        let _kept = writer.prepare(object_no).await?;
        let mut op = WriteOp::buffered().alloc_hint(writer.object_size());
        let runs = runs.into_iter();
        op.steps.extend(runs.map(|(offset, data)| WriteStep::Write {
            offset: offset.0,
            data,
        }));
        writer.submit(object_no, op).await?;
        writer.note_present(object_no);
        Ok(())
    }

    /// Makes a range read as zero; with `no_hole`, its space stays allocated.
    pub async fn write_zeroes(&self, offset: u64, length_bytes: u64, no_hole: bool) -> Result<()> {
        if !no_hole {
            return self.discard(offset, length_bytes).await;
        }
        const SLICE_BYTES: u64 = 4 << 20;
        let zeroes = Bytes::from(vec![0; length_bytes.min(SLICE_BYTES) as usize]);
        let mut at = offset;
        let end = offset
            .checked_add(length_bytes)
            .ok_or_else(|| self.range_error(offset, length_bytes))?;
        while at < end {
            let slice = (end - at).min(SLICE_BYTES);
            self.write(at, zeroes.slice(..slice as usize)).await?;
            at += slice;
        }
        Ok(())
    }

    /// Writes `data` if the bytes there equal `expected`; `EILSEQ` if they don't. Both have the same length and must
    /// not cross an object's border (`EINVAL`).
    pub async fn compare_and_write(&self, offset: u64, expected: Bytes, data: Bytes) -> Result<()> {
        let _client = self.inner.activity.begin();
        if expected.len() != data.len() {
            return Err(ImageError::new(
                Errno::EINVAL,
                "compare and write buffers differ in length",
            ));
        }
        let length_bytes = data.len() as u64;
        self.settle(offset, length_bytes).await?;
        let _guard = self.begin_write().await?;
        let _changing = self.changing(offset, length_bytes);
        let header = self.header();
        self.check_range(&header, offset, length_bytes, MAX_WRITE_BYTES)?;
        let extents = self.layout().map(ImageExtent {
            offset: ImageOffset(offset),
            length_bytes,
        });
        let [extent] = extents.as_slice() else {
            return Err(ImageError::new(
                Errno::EINVAL,
                format!("compare and write of {length_bytes} bytes at {offset} crosses objects"),
            ));
        };
        let source = self.source();
        let writer = Writer::new(self, &header, source.as_deref());
        writer.compare_and_write(*extent, expected, data).await
    }

    fn range_error(&self, offset: u64, length_bytes: u64) -> ImageError {
        ImageError::new(
            Errno::EINVAL,
            format!(
                "{length_bytes} bytes at {offset} are not inside image '{}'",
                self.name()
            ),
        )
    }

    pub(super) fn check_range(
        &self,
        header: &Header,
        offset: u64,
        length_bytes: u64,
        most: u64,
    ) -> Result<()> {
        let inside = offset
            .checked_add(length_bytes)
            .is_some_and(|end| end <= header.size_bytes);
        if inside && length_bytes <= most {
            Ok(())
        } else {
            Err(self.range_error(offset, length_bytes))
        }
    }
}

/// Writes to objects under one reading of the header. The caller holds a write guard.
pub(crate) struct Writer<'a> {
    pub(crate) image: &'a Image,
    pub(crate) header: &'a Header,
    source: Option<&'a MigrationSource>,
    /// Objects below this number are emptied, not removed: an absent one would show the migration source, to readers or
    /// (once all is copied) to an abort.
    hiding_objects: u64,
    /// Whether what the parent shows is taken away too.
    removing: bool,
}

impl<'a> Writer<'a> {
    /// Writes as clients do.
    pub(crate) fn new(image: &'a Image, header: &'a Header, source: Option<&'a MigrationSource>) -> Self {
        let hiding_objects = image.layout().object_count(header.migration_overlap_bytes());
        Self {
            image,
            header,
            source,
            hiding_objects,
            removing: false,
        }
    }

    /// Takes objects away for good.
    pub(crate) fn removing(image: &'a Image, header: &'a Header) -> Self {
        Self {
            image,
            header,
            source: None,
            hiding_objects: 0,
            removing: true,
        }
    }
}

impl Writer<'_> {
    pub(crate) fn object_size(&self) -> u64 {
        self.image.layout().object_size_bytes()
    }

    /// The source, if it may still have something for the object.
    pub(crate) fn incomplete_source(&self, object_no: ObjectNo) -> Option<&MigrationSource> {
        self.source.filter(|source| {
            source.covers(self.image, object_no) && !self.image.inner.complete.contains(object_no)
        })
    }

    pub(crate) fn hides_source(&self, object_no: ObjectNo) -> bool {
        object_no.0 < self.hiding_objects
    }

    /// Copies the object if the source may still have it; whoever changes it waits for that.
    pub(crate) async fn copy_up(&self, object_no: ObjectNo) -> Result<()> {
        if let Some(source) = self.incomplete_source(object_no) {
            let waiting = self.image.stats().copy_up();
            let copied = deep_copy::ensure_copied(self.image, source, object_no).await?;
            waiting.ended(copied.data_bytes);
        }
        Ok(())
    }

    async fn prepare(&self, object_no: ObjectNo) -> Result<Kept<'_>> {
        self.copy_up(object_no).await?;
        self.copy_up_parent(object_no, &[]).await?;
        mark::mark_exists(self.image, object_no).await
    }

    async fn submit(&self, object_no: ObjectNo, op: WriteOp) -> Result<()> {
        let object = self.image.data_object(object_no.0);
        self.image
            .inner
            .data_io
            .write(&object, &self.header.snapc, op)
            .await?;
        Ok(())
    }

    /// After the copy, an object of which the source had nothing may still be absent; the write that makes it hides
    /// the (empty) source either way, so it may be buffered like any other.
    async fn write(&self, extent: ObjectExtent, data: Bytes) -> Result<()> {
        let object_no = extent.object_no;
        let replaces_all = extent.length_bytes == self.object_size() && self.header.snaps.is_empty();
        if replaces_all && let Some(source) = self.incomplete_source(object_no) {
            return self.replace_uncopied(source, object_no, data).await;
        }
        self.copy_up(object_no).await?;
        let change = WriteStep::Write {
            offset: extent.offset.0,
            data,
        };
        if !replaces_all
            && self
                .copy_up_parent(object_no, std::slice::from_ref(&change))
                .await?
                == CopiedUp::WithChange
        {
            return Ok(());
        }
        let _kept = mark::mark_exists(self.image, object_no).await?;
        let op = WriteOp::buffered().alloc_hint(self.object_size()).step(change);
        self.submit(object_no, op).await?;
        self.note_present(object_no);
        Ok(())
    }

    /// A write of the whole object, with no history to keep, needs no copy.
    async fn replace_uncopied(
        &self,
        source: &MigrationSource,
        object_no: ObjectNo,
        data: Bytes,
    ) -> Result<()> {
        let _one_at_a_time = self.image.inner.complete.lock(object_no).await;
        let _kept = mark::mark_exists(self.image, object_no).await?;
        let mut op = WriteOp::new().alloc_hint(self.object_size()).write_full(data);
        if source.is_complete(self.image, object_no).await? || Self::makes_it(source) {
            op.durability = Durability::Buffered;
        }
        self.submit(object_no, op).await?;
        self.image.inner.complete.insert(object_no);
        Ok(())
    }

    /// Whether a write to an object that is not complete makes it: without history that came along, such a one is absent.
    /// Then the write may be buffered, as a power loss leaves all or nothing of it, and nothing shows the source.
    fn makes_it(source: &MigrationSource) -> bool {
        source.base_seq() == 0
    }

    /// Makes a part of an object read as zero.
    pub(crate) async fn zero(&self, object_no: ObjectNo, offset: u64, length_bytes: u64) -> Result<()> {
        self.copy_up(object_no).await?;
        self.copy_up_parent(object_no, &[]).await?;
        if self.source_shows_parent(object_no) && !self.is_present(object_no).await? {
            // It reads as zero by the target's own link; the source may show more, of the time before a shrink. What another
            // request writes to the rest of the object meanwhile stays.
            let op = WriteOp::new().alloc_hint(self.object_size()).create(false);
            self.make(object_no, op).await?;
        }
        if !self.image.inner.head_map.may_exist(object_no) {
            return Ok(());
        }
        let _kept = mark::mark_exists(self.image, object_no).await?;
        let op = WriteOp::buffered().zero(offset, length_bytes);
        absent_is_fine(
            self.image
                .inner
                .data_io
                .write(&self.image.data_object(object_no.0), &self.header.snapc, op)
                .await
                .map(|_| ()),
        )
    }

    /// Makes the head of an object read as zero altogether: removes it, or empties it where it must hide the source or the
    /// parent.
    pub(crate) async fn empty(&self, object_no: ObjectNo) -> Result<()> {
        if !self.removing
            && let Some(shown) = Shown::through(self.image, self.header, object_no)
        {
            return self.hide_parent(object_no, shown).await;
        }
        if self.hides_source(object_no) {
            return self.hide(object_no).await;
        }
        self.remove_head(object_no).await
    }

    async fn remove_head(&self, object_no: ObjectNo) -> Result<()> {
        let _removing = self.image.inner.head_map.removing(object_no).await;
        self.image.inner.present.remove(object_no);
        if !head::mark_pending(self.image, object_no).await? {
            return Ok(());
        }
        let object = self.image.data_object(object_no.0);
        // A map that is told at once, and durably, must not outlive the removal: the object would come back under "nonexistent".
        let told = self.image.inner.head_map.state(object_no).is_some();
        let op = WriteOp {
            steps: vec![WriteStep::Remove],
            durability: if told {
                Durability::Full
            } else {
                Durability::Buffered
            },
        };
        absent_is_fine(
            self.image
                .inner
                .data_io
                .write(&object, &self.header.snapc, op)
                .await
                .map(|_| ()),
        )?;
        head::mark_removed(self.image, object_no).await
    }

    /// As [`Writer::empty`], of an object through which some version shows the parent.
    async fn hide_parent(&self, object_no: ObjectNo, shown: Shown) -> Result<()> {
        if self.incomplete_source(object_no).is_some() && !self.header.snaps.is_empty() {
            self.copy_up(object_no).await?;
        }
        let hides = shown.head_overlap_bytes > 0 || self.hides_source(object_no);
        let hides_nothing = if shown.by_snaps() {
            self.copy_up_parent(object_no, &[]).await?;
            !self.is_present(object_no).await? && !self.source_shows_parent(object_no)
        } else {
            !self.is_present(object_no).await? && !self.below_shows(object_no).await?
        };
        if hides_nothing {
            return Ok(());
        }
        if !hides {
            return self.remove_head(object_no).await;
        }
        self.make_empty(object_no).await
    }

    /// Whether an absent head may show something of what lies below it.
    async fn below_shows(&self, object_no: ObjectNo) -> Result<bool> {
        Ok(self.incomplete_source(object_no).is_some()
            || self.source_shows_parent(object_no)
            || self.parent_shows(object_no).await?)
    }

    /// Whether the source may show its own parent through the object, however complete the object is.
    pub(crate) fn source_shows_parent(&self, object_no: ObjectNo) -> bool {
        self.source
            .is_some_and(|source| object_no.0 < source.parent_object_count(self.image))
    }

    /// Makes the object exist, empty.
    async fn make_empty(&self, object_no: ObjectNo) -> Result<()> {
        let op = WriteOp::new().alloc_hint(self.object_size());
        self.make(object_no, op.create(false).truncate(0)).await
    }

    /// Makes the object exist by `op`, durably if it was not copied.
    async fn make(&self, object_no: ObjectNo, mut op: WriteOp) -> Result<()> {
        let uncopied = self.incomplete_source(object_no);
        let _one_at_a_time = self.image.inner.complete.lock(object_no).await;
        if uncopied.is_none() {
            op.durability = Durability::Buffered;
        }
        let _kept = mark::mark_exists(self.image, object_no).await?;
        self.submit(object_no, op).await?;
        self.note_present(object_no);
        if uncopied.is_some() {
            self.image.inner.complete.insert(object_no);
        }
        Ok(())
    }

    async fn hide(&self, object_no: ObjectNo) -> Result<()> {
        let mut op = WriteOp::new()
            .alloc_hint(self.object_size())
            .create(false)
            .truncate(0);
        if let Some(source) = self.incomplete_source(object_no) {
            let _one_at_a_time = self.image.inner.complete.lock(object_no).await;
            if self.header.snaps.is_empty() {
                // No history to keep: nothing needs to be copied, only hidden.
                let _kept = mark::mark_exists(self.image, object_no).await?;
                self.submit(object_no, op).await?;
                self.image.inner.complete.insert(object_no);
                return Ok(());
            }
            let waiting = self.image.stats().copy_up();
            let copied = deep_copy::ensure_copied_locked(self.image, source, object_no).await?;
            waiting.ended(copied.data_bytes);
            if !copied.exists && !self.source_shows_parent(object_no) {
                return Ok(());
            }
        } else {
            let object = self.image.data_object(object_no.0);
            let is_absent = !self.image.inner.head_map.may_exist(object_no)
                || !self.image.inner.data_io.exists(&object).await?;
            if is_absent && !self.source_shows_parent(object_no) {
                // Complete and absent: the source has nothing either.
                return Ok(());
            }
        }
        op.durability = Durability::Buffered;
        let _kept = mark::mark_exists(self.image, object_no).await?;
        self.submit(object_no, op).await
    }

    async fn compare_and_write(&self, extent: ObjectExtent, expected: Bytes, data: Bytes) -> Result<()> {
        let _kept = self.prepare(extent.object_no).await?;
        let object = self.image.data_object(extent.object_no.0);
        let place = || {
            format!(
                "compare at {} of image '{}'",
                extent.image_offset.0,
                self.image.name()
            )
        };
        let op = WriteOp::buffered()
            .alloc_hint(self.object_size())
            .step(WriteStep::AssertExists)
            .step(WriteStep::CompareExtent {
                offset: extent.offset.0,
                expected: expected.clone(),
            })
            .write(extent.offset.0, data.clone());
        let written = self
            .image
            .inner
            .data_io
            .write(&object, &self.header.snapc, op)
            .await;
        match written {
            Ok(_) => Ok(()),
            Err(error) if error.errno == Errno::EILSEQ => Err(ImageError::new(Errno::EILSEQ, place())),
            Err(error) if error.errno == Errno::ENOENT => {
                if expected.iter().any(|byte| *byte != 0) {
                    return Err(ImageError::new(Errno::EILSEQ, place()));
                }
                // Absent reads as zero; an exclusive create keeps the comparison and the write one step.
                let op = WriteOp::buffered()
                    .create(true)
                    .alloc_hint(self.object_size())
                    .write(extent.offset.0, data);
                self.submit(extent.object_no, op).await
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Makes the head of an object what it was at `snap`.
    pub(crate) async fn roll_back(&self, object_no: ObjectNo, snap: SnapId, size_bytes: u64) -> Result<()> {
        if let Some(source) = self.incomplete_source(object_no) {
            deep_copy::ensure_copied(self.image, source, object_no).await?;
        }
        let io = &self.image.inner.data_io;
        let object = self.image.data_object(object_no.0);
        let in_snap = object_no.0 < self.image.layout().object_count(size_bytes);
        let stat = io.read(&object, snap, ReadOp::new().stat()).await;
        let existed = match stat {
            Ok(_) => in_snap,
            Err(error) if error.errno == Errno::ENOENT => false,
            Err(error) => return Err(error.into()),
        };
        if !existed && in_snap && self.header.parent.is_some() {
            return self.show_again(object_no, snap, size_bytes).await;
        }
        if !existed {
            return self.empty(object_no).await;
        }
        let _kept = mark::mark_exists(self.image, object_no).await?;
        io.store()
            .rollback(io.object(&object), &self.header.snapc, snap, Durability::Buffered)
            .await?;
        self.note_present(object_no);
        Ok(())
    }

    /// The head becomes what a snapshot shows through an object that it does not have.
    async fn show_again(&self, object_no: ObjectNo, snap: SnapId, size_bytes: u64) -> Result<()> {
        let (now, then) = (
            self.header.parent_overlap_bytes(SnapId::HEAD),
            self.header.parent_overlap_bytes(snap),
        );
        let used = |bytes: u64| self.image.layout().object_bytes_used(object_no, bytes);
        if used(now) == used(then) && !self.is_present(object_no).await? {
            return Ok(());
        }
        let mut content = Vec::new();
        for piece in self
            .image
            .layout()
            .unmap(object_no, ObjectOffset(0), self.object_size())
        {
            let length_bytes = piece.length_bytes.min(size_bytes.saturating_sub(piece.offset.0));
            if length_bytes > 0 {
                let found = self.image.read_found(piece.offset.0, length_bytes, snap).await?;
                content.extend(found.runs);
            }
        }
        let content = by_object_offset(self.image, object_no, content);
        if content.is_empty() {
            return self.empty(object_no).await;
        }
        let _kept = mark::mark_exists(self.image, object_no).await?;
        let mut op = WriteOp::new()
            .alloc_hint(self.object_size())
            .create(false)
            .truncate(0);
        let writes = content
            .into_iter()
            .map(|(offset, data)| WriteStep::Write { offset, data });
        op.steps.extend(writes);
        self.submit(object_no, op).await?;
        self.note_present(object_no);
        Ok(())
    }
}
