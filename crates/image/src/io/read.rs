//! Reads: from the image's own objects, and through absent ones from the migration source or the parent of a clone.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use ferry_cls::rbd::{MigrationHeaderType, MigrationState};
use ferry_store::{Errno, ReadOp, ReadResult, SnapId};
use futures::stream::{StreamExt as _, TryStreamExt as _};

use super::CONCURRENT_OBJECTS;
use crate::error::{ErrorKind, ImageError, Result, optional};
use crate::header::Header;
use crate::image::Image;
use crate::layering::copy_on_read;
use crate::layering::parent::{Parent, is_gone};
use crate::layout::{ImageExtent, ImageOffset, ObjectExtent, ObjectOffset};
use crate::migration::source::MigrationSource;
use crate::snapshot::kept::check_still_there;

/// Largest single read; callers cut larger ones.
pub const MAX_READ_BYTES: u64 = 64 << 20;

/// How often one read meets a parent that was taken away.
const MAX_PARENT_CHANGES: usize = 4;

/// A run of data at an offset of the image.
pub type Run = (u64, Bytes);

/// What a read found.
#[derive(Debug, Default, Clone)]
pub struct Found {
    /// Runs of data, ascending; what lies between reads as zero.
    pub runs: Vec<Run>,
    /// Whether some object of the image was absent, whatever lies below it had there.
    pub some_absent: bool,
    /// Whether the source of a migration was asked for some of it.
    pub of_source: bool,
}

impl Image {
    /// Reads `length_bytes` at `offset`. `EINVAL` past the end of what this handle shows.
    pub async fn read(&self, offset: u64, length_bytes: u64) -> Result<Bytes> {
        let _client = self.inner.activity.begin();
        let found = self.read_for_client(offset, length_bytes).await?;
        if let [(at, data)] = found.runs.as_slice()
            && *at == offset
            && data.len() as u64 == length_bytes
        {
            return Ok(data.clone());
        }
        let mut out = BytesMut::zeroed(length_bytes as usize);
        for (at, data) in found.runs {
            let start = (at - offset) as usize;
            out[start..start + data.len()].copy_from_slice(&data);
        }
        Ok(out.freeze())
    }

    /// Reads without holes: runs of data, ascending. What lies between reads as zero.
    pub async fn read_sparse(&self, offset: u64, length_bytes: u64) -> Result<Vec<Run>> {
        let _client = self.inner.activity.begin();
        Ok(self.read_for_client(offset, length_bytes).await?.runs)
    }

    async fn read_for_client(&self, offset: u64, length_bytes: u64) -> Result<Found> {
        self.settle(offset, length_bytes).await?;
        if let Some(runs) = self.read_ahead(offset, length_bytes).await {
            return Ok(Found {
                runs,
                ..Found::default()
            });
        }
        let found = self
            .read_found(offset, length_bytes, self.inner.read_snap)
            .await?;
        if found.some_absent && self.copies_on_read() {
            copy_on_read::after_read(self, offset, length_bytes);
        }
        Ok(found)
    }

    /// Reads at any snapshot of the image.
    pub(crate) async fn read_found(&self, offset: u64, length_bytes: u64, snap: SnapId) -> Result<Found> {
        for _ in 0..MAX_PARENT_CHANGES {
            match self.read_once(offset, length_bytes, snap).await {
                Ok((found, header)) => {
                    let is_own = !found.some_absent && !found.of_source;
                    if is_own || self.shows_as_much(&header, snap, found.of_source).await? {
                        return Ok(found);
                    }
                }
                // Whoever takes a parent away has told the header before; a handle that watches nothing did not hear of it.
                Err(error) if is_gone(&error) && self.parent().is_some() => {
                    let before = self.header().parent.clone();
                    if self.refresh().await.is_err() || self.header().parent == before {
                        return Err(error);
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(self.read_once(offset, length_bytes, snap).await?.0)
    }

    /// Whether the parent, or the source of a migration, still shows as much through the head as under `header`, by which it was read.
    /// Who shrinks a clone tells how little the parent will show before anything is removed, and who shrinks a target knows its size
    /// before its map denies objects; what is absent since then is nothing of theirs.
    async fn shows_as_much(&self, header: &Header, snap: SnapId, of_source: bool) -> Result<bool> {
        let shown_bytes = header.parent_overlap_bytes(snap);
        let is_target = header.migration_target().is_some();
        if !snap.is_head() || shown_bytes == 0 && !is_target {
            return Ok(true);
        }
        if of_source && self.looks_for_itself() && self.was_committed().await? {
            self.refresh().await?;
            return Ok(false);
        }
        self.refresh_for_client().await?;
        let now = self.header();
        let is_as_large = !is_target || now.size_bytes >= header.size_bytes;
        Ok(is_as_large && now.parent_overlap_bytes(snap) >= shown_bytes)
    }

    /// What a read finds under one reading of the header, and that.
    async fn read_once(&self, offset: u64, length_bytes: u64, snap: SnapId) -> Result<(Found, Arc<Header>)> {
        self.check_open()?;
        self.refresh_for_client().await?;
        let header = self.header();
        let size = header.size_at(snap).ok_or_else(|| {
            ImageError::new(
                Errno::ENOENT,
                format!("snapshot id {snap} of image '{}'", self.name()),
            )
        })?;
        if length_bytes > MAX_READ_BYTES || offset.checked_add(length_bytes).is_none_or(|end| end > size) {
            return Err(ImageError::new(
                Errno::EINVAL,
                format!(
                    "read of {length_bytes} bytes at {offset} of image '{}' of {size} bytes",
                    self.name()
                ),
            ));
        }
        let source = self.source();
        let parent = self.parent();
        let extents = self.layout().map(ImageExtent {
            offset: ImageOffset(offset),
            length_bytes,
        });
        let view = View {
            image: self,
            header: &header,
            snap,
            source: source.as_deref(),
            parent: parent.as_deref(),
        };
        if let [extent] = extents.as_slice() {
            let found = view.object(*extent).await?;
            self.check_not_removed(found.some_absent).await?;
            return Ok((found, header));
        }
        let mut parts: Vec<Found> = futures::stream::iter(extents)
            .map(|extent| view.object(extent))
            .buffered(CONCURRENT_OBJECTS)
            .try_collect()
            .await?;
        let some_absent = parts.iter().any(|part| part.some_absent);
        let of_source = parts.iter().any(|part| part.of_source);
        self.check_not_removed(some_absent).await?;
        let mut runs: Vec<Run> = parts.iter_mut().flat_map(|part| part.runs.drain(..)).collect();
        runs.sort_by_key(|(at, _)| *at);
        let found = Found {
            runs,
            some_absent,
            of_source,
        };
        Ok((found, header))
    }
}

impl Image {
    /// Whether nobody tells this handle of a commit, an abort or a removal, as it watches nothing.
    pub(crate) fn looks_for_itself(&self) -> bool {
        self.inner.read_only && !self.inner.ignore_migration
    }

    /// `ESTALE`: the image that this handle shows is gone, or going.
    pub(crate) fn was_removed(&self, hint: &str) -> ImageError {
        let what = format!("image '{}' was removed", self.name());
        ImageError::of(ErrorKind::Removed, Errno::ESTALE, what).hint(hint)
    }

    /// Whether the migration that this handle was opened in has ended. Its source has bytes then, until they are removed, for objects
    /// that the image's users may have discarded since.
    async fn was_committed(&self) -> Result<bool> {
        match crate::migration::record::read(&self.inner.io, self.key()).await? {
            None => Err(self.was_removed("if its migration was aborted, open the source")),
            Some(record) => Ok(record.is_none()),
        }
    }

    /// A handle that does not watch is not in the way of a commit, an abort or a removal; it must not take what these removed
    /// for holes. `ESTALE` when the image, or the snapshot that it shows, is gone or going.
    async fn check_not_removed(&self, some_absent: bool) -> Result<()> {
        if !some_absent || !self.looks_for_itself() {
            return Ok(());
        }
        if self.serves_as_parent() {
            return check_still_there(self).await;
        }
        let gone = match crate::migration::record::read(&self.inner.io, self.key()).await? {
            None => true,
            Some(None) => false,
            Some(Some(spec)) => {
                spec.header_type == MigrationHeaderType::Source
                    && matches!(spec.state, MigrationState::Executed | MigrationState::Aborting)
            }
        };
        if gone || crate::admin::trash::is_being_removed(&self.inner.io, self.id()).await? {
            return Err(self.was_removed("if it was migrated, open the target"));
        }
        if self.inner.read_snap.is_head() {
            return Ok(());
        }
        check_still_there(self).await
    }
}

/// One snapshot of an image, read under one reading of its header.
struct View<'a> {
    image: &'a Image,
    header: &'a Header,
    snap: SnapId,
    source: Option<&'a MigrationSource>,
    parent: Option<&'a Parent>,
}

impl View<'_> {
    async fn object(&self, extent: ObjectExtent) -> Result<Found> {
        let below = self
            .source
            .filter(|source| source.covers(self.image, extent.object_no));
        let Some(source) = below else {
            return match self.own(extent).await? {
                Some(found) => Ok(found),
                None => self.through_parent(extent).await,
            };
        };
        if source.is_complete(self.image, extent.object_no).await?
            && let Some(found) = self.own(extent).await?
        {
            return Ok(found);
        }
        let found = self.below(source, extent).await?;
        if !found.some_absent && source.image().parent().is_none() {
            return Ok(found);
        }
        // Absent below may also mean: copied and committed meanwhile, the source is being removed. The image itself
        // has the data then. A source that is a clone shows its parent in the place of what was removed.
        if source.is_complete(self.image, extent.object_no).await?
            && let Some(found) = self.own(extent).await?
        {
            return Ok(found);
        }
        Ok(found)
    }

    /// From the image's own object; `None` when it does not exist.
    async fn own(&self, extent: ObjectExtent) -> Result<Option<Found>> {
        if self.snap.is_head() && !self.image.inner.head_map.may_exist(extent.object_no) {
            return Ok(None);
        }
        let object = self.image.data_object(extent.object_no.0);
        let op = ReadOp::new().sparse_read(extent.offset.0, extent.length_bytes);
        let Some(reply) = optional(self.image.inner.data_io.read(&object, self.snap, op).await)? else {
            return Ok(None);
        };
        let Some(ReadResult::Sparse(pieces)) = reply.results.into_iter().next() else {
            return Err(ImageError::new(
                Errno::EIO,
                format!("sparse read of '{object}' gave no data"),
            ));
        };
        let mut runs = Vec::with_capacity(pieces.len());
        for (at, data) in pieces {
            let end = at.saturating_add(data.len() as u64);
            if at < extent.offset.0 || end > extent.offset.0 + extent.length_bytes {
                return Err(ImageError::new(
                    Errno::EIO,
                    format!("read of '{object}' gave bytes not asked for"),
                ));
            }
            push_mapped(self.image, extent, at, data, &mut runs);
        }
        Ok(Some(Found {
            runs,
            ..Found::default()
        }))
    }

    /// From the parent, as far as it shows through.
    async fn through_parent(&self, extent: ObjectExtent) -> Result<Found> {
        let overlap_bytes = self.header.parent_overlap_bytes(self.snap);
        match self.parent.filter(|_| overlap_bytes > 0) {
            Some(parent) => {
                let (found, asked_bytes) = parent.read_through(self.image, extent, overlap_bytes).await?;
                if asked_bytes > 0 {
                    self.image.stats().parent_was_read(asked_bytes);
                }
                Ok(found)
            }
            None => Ok(Found {
                some_absent: true,
                ..Found::default()
            }),
        }
    }

    /// From the source, where it shows through.
    async fn below(&self, source: &MigrationSource, extent: ObjectExtent) -> Result<Found> {
        let Some((snap, overlap)) = source.view(self.header, self.snap) else {
            return Ok(Found {
                some_absent: true,
                ..Found::default()
            });
        };
        let mut out = Found::default();
        let mut asked_bytes = 0;
        for piece in self
            .image
            .layout()
            .unmap(extent.object_no, extent.offset, extent.length_bytes)
        {
            if piece.offset.0 >= overlap {
                continue;
            }
            let length = piece.length_bytes.min(overlap - piece.offset.0);
            asked_bytes += length;
            let found = source.read(piece.offset.0, length, snap).await?;
            out.runs.extend(found.runs);
            out.some_absent |= found.some_absent;
        }
        if asked_bytes > 0 {
            out.of_source = true;
            self.image.stats().source_was_read(asked_bytes);
            if snap.is_head() && !self.snap.is_head() {
                MigrationSource::check_head_is_kept(self.image).await?;
            }
        }
        Ok(out)
    }
}

/// Adds a run of an object as runs of the image (an object's bytes may lie apart in the image).
fn push_mapped(image: &Image, extent: ObjectExtent, at: u64, mut data: Bytes, runs: &mut Vec<Run>) {
    for piece in image
        .layout()
        .unmap(extent.object_no, ObjectOffset(at), data.len() as u64)
    {
        let head = data.split_to((piece.length_bytes as usize).min(data.len()));
        runs.push((piece.offset.0, head));
    }
}
