//! Snapshots of a group: one snapshot of every image, all of one moment.
//!
//! Taking one: a record in the group's header (incomplete), a snapshot of each image while the exclusive locks of all of
//! them are held here and kept, the record again (complete, with the ids). What a kill leaves is an incomplete record that
//! names every image; removing it removes the parts that were taken. Removing: the record says incomplete again, so that nobody takes
//! what a kill leaves for whole; then the parts, the record last.

use bytes::Bytes;
use ferry_cls::encoding::{Decode as _, Encode as _};
use ferry_cls::rbd::names::group_snapshot_key;
use ferry_cls::rbd::{GroupSnapshot, GroupSnapshotState, ImageSnapshotSpec, SnapshotNamespace, client};
use ferry_store::{Errno, IoCtx, ReadOp, ReadResult, ReadStep, SnapId, WriteOp, WriteStep};
use futures::stream::{StreamExt as _, TryStreamExt as _};

use super::{Group, NO_PART, images, part_name};
use crate::admin::{CONCURRENT, pool};
use crate::error::{ErrorKind, ImageError, Result, absent_is_fine, optional};
use crate::exclusive_lock::KeptLock;
use crate::header::{self, Header, damaged};
use crate::image::{Image, ImageKey, OpenOptions};
use crate::names;
use crate::progress::Progress;
use crate::snapshot;

/// What an image's snapshot is a part of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartOf {
    /// Pool name of the group.
    pub pool: String,
    /// Name of the group; its id when it has none.
    pub group: String,
    /// Name of the group snapshot; its id when the group has forgotten it.
    pub snapshot: String,
}

/// Says of a snapshot of an image of `io` what it is a part of. `None` for snapshots that are no part of one.
pub async fn part_of(io: &IoCtx, namespace: &SnapshotNamespace) -> Result<Option<PartOf>> {
    let SnapshotNamespace::Group {
        group_pool,
        group_id,
        group_snapshot_id,
    } = namespace
    else {
        return Ok(None);
    };
    let there = io.with_pool(*group_pool);
    let pools = io.store().pool_list().await?;
    let (group, snapshot) = match pools.iter().any(|pool| pool.id == *group_pool) {
        true => {
            let name = client::dir_get_name(group_id);
            let directory = ferry_cls::rbd::names::GROUP_DIRECTORY;
            let record = client::group_snap_get_by_id(group_snapshot_id);
            let header = ferry_cls::rbd::names::group_header(group_id);
            (
                optional(ferry_cls::exec_read(&there, directory, name).await)?,
                optional(ferry_cls::exec_read(&there, &header, record).await)?.map(|snapshot| snapshot.name),
            )
        }
        false => (None, None),
    };
    Ok(Some(PartOf {
        pool: pool::name_of(io.store(), *group_pool).await?,
        group: group.unwrap_or_else(|| group_id.clone()),
        snapshot: snapshot.unwrap_or_else(|| group_snapshot_id.clone()),
    }))
}

impl Group {
    /// The snapshots of the group, by id, which is about the order in which they were taken.
    pub async fn snapshots(&self) -> Result<Vec<GroupSnapshot>> {
        Ok(client::group_snap_list_all(&self.io, &self.header()).await?)
    }

    /// The snapshot of this name. `ENOENT` ([`ErrorKind::SnapMissing`]).
    pub async fn snapshot(&self, name: &str) -> Result<GroupSnapshot> {
        let mut all = self.snapshots().await?.into_iter();
        all.find(|snapshot| snapshot.name == name).ok_or_else(|| {
            ImageError::of(
                ErrorKind::SnapMissing,
                Errno::ENOENT,
                format!("snapshot '{name}' of group '{}'", self.name),
            )
        })
    }

    /// Takes a snapshot of all images at one moment. Their exclusive locks are asked from whoever has them, and kept until
    /// every image has its part. With `quiesce` the users of the images are asked to hold their writes back meanwhile.
    ///
    /// Errors: `EEXIST`; those of opening an image, of its lock ([`ErrorKind::LockHeld`]) and of its snapshot. What was
    /// taken till then is removed.
    pub async fn create_snapshot(&self, name: &str, quiesce: bool) -> Result<()> {
        names::check_snap_name(name)?;
        let mut record = GroupSnapshot {
            id: names::new_image_id(self.io.store().instance().gid),
            name: name.to_owned(),
            state: GroupSnapshotState::Incomplete,
            snaps: self.members().await?,
        };
        self.note(&record).await?;
        let taken = self.take_parts(&record, quiesce).await;
        let noted = match taken {
            Ok(parts) => {
                record.snaps = parts;
                record.state = GroupSnapshotState::Complete;
                self.note(&record).await
            }
            Err(error) => Err(error),
        };
        let Err(error) = noted else { return Ok(()) };
        match self.remove_snapshot(&record).await {
            Ok(()) => Err(error),
            Err(undo_error) => Err(error.hint(format!(
                "taking it back failed too ({undo_error}); run 'rbd group snap rm' for it"
            ))),
        }
    }

    /// The images whose own headers say that they are in the group.
    async fn members(&self) -> Result<Vec<ImageSnapshotSpec>> {
        let mut members = Vec::new();
        for status in client::group_image_list_all(&self.io, &self.header()).await? {
            let io = self.io.with_pool(status.spec.pool_id);
            let group = images::reference(&io, &status.spec.image_id).await?;
            if group.is_some_and(|group| group == self.spec()) {
                members.push(ImageSnapshotSpec {
                    pool_id: status.spec.pool_id,
                    image_id: status.spec.image_id,
                    snap_id: NO_PART,
                });
            }
        }
        Ok(members)
    }

    async fn note(&self, record: &GroupSnapshot) -> Result<()> {
        ferry_cls::exec_write(&self.io, &self.header(), client::group_snap_set(record))
            .await
            .map_err(|error| match error.errno {
                Errno::EEXIST => ImageError::new(
                    Errno::EEXIST,
                    format!("snapshot '{}' of group '{}'", record.name, self.name),
                ),
                _ => error.into(),
            })
    }

    async fn take_parts(&self, record: &GroupSnapshot, quiesce: bool) -> Result<Vec<ImageSnapshotSpec>> {
        let images = self.open_all(&record.snaps).await?;
        let taken = async {
            let mut asked = Vec::new();
            if quiesce {
                for image in &images {
                    asked.push(snapshot::quiesce(image).await);
                }
            }
            let taken = self.take_parts_quiesced(record, &images).await;
            for (image, asked) in images.iter().zip(asked) {
                snapshot::unquiesce(image, asked).await;
            }
            taken
        }
        .await;
        let closed = close_all(&images).await;
        let parts = taken?;
        closed?;
        Ok(parts)
    }

    async fn take_parts_quiesced(
        &self,
        record: &GroupSnapshot,
        images: &[Image],
    ) -> Result<Vec<ImageSnapshotSpec>> {
        let _kept = keep_all(images).await?;
        let (name, namespace) = (part_name(self, &record.id), self.namespace(record));
        let taken = futures::stream::iter(images.iter().map(|image| {
            let (name, namespace) = (name.clone(), namespace.clone());
            async move {
                snapshot::create_here(
                    image,
                    &name,
                    namespace,
                    snapshot::SKIP_QUIESCE,
                    None,
                    &Progress::silent(),
                )
                .await
            }
        }))
        .buffered(CONCURRENT)
        .try_collect::<Vec<()>>()
        .await;
        taken?;
        let mut parts = record.snaps.clone();
        for (part, image) in parts.iter_mut().zip(images) {
            part.snap_id = self
                .part_in(record, &image.header())
                .ok_or_else(|| self.without_part(record, &image.name()))?;
        }
        Ok(parts)
    }

    /// Removes a group snapshot: the images' parts, as far as there are any, then the record. The images of an incomplete
    /// one, or of one whose removal was killed, need not have theirs.
    pub async fn remove_snapshot(&self, record: &GroupSnapshot) -> Result<()> {
        if record.state == GroupSnapshotState::Complete {
            self.declare_incomplete(&record.id).await?;
        }
        for part in &record.snaps {
            self.remove_part(record, part).await?;
        }
        let call = client::group_snap_remove(&record.id);
        absent_is_fine(ferry_cls::exec_write(&self.io, &self.header(), call).await)
    }

    /// Makes a record say that not all images have their part. No class method does that with one that is there.
    async fn declare_incomplete(&self, snapshot_id: &str) -> Result<()> {
        let (header, key) = (self.header(), Bytes::from(group_snapshot_key(snapshot_id)));
        let op = ReadOp::new().step(ReadStep::OmapGetValsByKeys(vec![key.clone()]));
        let found = optional(self.io.read(&header, SnapId::HEAD, op).await)?;
        let found = found.and_then(|reply| reply.results.into_iter().next());
        let Some(ReadResult::Omap { mut values, .. }) = found else {
            return Ok(());
        };
        let Some(value) = values.remove(&key) else {
            return Ok(());
        };
        let mut record =
            GroupSnapshot::from_slice(&value).map_err(|error| damaged(&self.io, &header, error))?;
        record.state = GroupSnapshotState::Incomplete;
        let op = WriteOp::new()
            .step(WriteStep::OmapCompare {
                key: key.clone(),
                value,
            })
            .step(WriteStep::OmapSet([(key, record.to_bytes())].into()));
        match self.io.write_meta(&header, op).await {
            // Renamed, declared or removed by another at this moment.
            Err(error) if matches!(error.errno, Errno::ECANCELED | Errno::ENOENT) => Ok(()),
            other => Ok(other.map(|_| ())?),
        }
    }

    async fn remove_part(&self, record: &GroupSnapshot, part: &ImageSnapshotSpec) -> Result<()> {
        let io = self.io.with_pool(part.pool_id);
        let header = match header::load(&io, &part.image_id, true).await {
            Ok(header) => header,
            Err(error) if error.kind == ErrorKind::ImageMissing => return Ok(()),
            Err(error) => return Err(error),
        };
        let name = part_name(self, &record.id);
        let namespace = self.namespace(record);
        let found: Vec<SnapId> = header
            .snaps
            .values()
            .filter(|snap| match &snap.namespace {
                // A removal that was killed.
                SnapshotNamespace::Trash { original_name, .. } => *original_name == name,
                other => *other == namespace,
            })
            .map(|snap| snap.id)
            .collect();
        if found.is_empty() {
            return Ok(());
        }
        let image = Image::open(&io, ImageKey::Id(&part.image_id), OpenOptions::read_write()).await?;
        let removed = async {
            for snap in found {
                match image.snap_remove_by_id(snap, &Progress::silent()).await {
                    Err(error) if error.kind == ErrorKind::SnapMissing => {}
                    removed => removed?,
                }
            }
            Ok(())
        }
        .await;
        let closed = image.close().await;
        removed.and(closed)
    }

    /// Renames a snapshot. `ENOENT`; `EEXIST`, also for the name that it has, and for one that is incomplete.
    pub async fn rename_snapshot(&self, name: &str, new_name: &str) -> Result<()> {
        names::check_snap_name(new_name)?;
        let record = self.snapshot(name).await?;
        if record.state == GroupSnapshotState::Incomplete {
            return Err(ImageError::new(
                Errno::EEXIST,
                format!("snapshot '{name}' of group '{}' is incomplete", self.name),
            )
            .hint("remove it with 'rbd group snap rm'"));
        }
        if name == new_name {
            return Err(ImageError::new(
                Errno::EEXIST,
                format!("snapshot '{name}' of group '{}'", self.name),
            ));
        }
        self.note(&GroupSnapshot {
            name: new_name.to_owned(),
            ..record
        })
        .await
    }

    /// Makes the heads of all images what they were at the snapshot. Their locks are kept until all are done. Killed in
    /// between it leaves some images rolled back; running it again finishes.
    ///
    /// Nothing is changed unless every image has its part: `EINVAL` for an incomplete snapshot, `ENOENT`
    /// ([`ErrorKind::SnapMissing`], [`ErrorKind::ImageMissing`]).
    pub async fn roll_back(&self, name: &str, progress: &Progress) -> Result<()> {
        let record = self.snapshot(name).await?;
        if record.state == GroupSnapshotState::Incomplete {
            return Err(ImageError::new(
                Errno::EINVAL,
                format!("snapshot '{name}' of group '{}' is incomplete", self.name),
            )
            .hint("remove it with 'rbd group snap rm'"));
        }
        let images = self.open_all(&record.snaps).await?;
        let done = self.roll_back_opened(&record, &images, progress).await;
        let closed = close_all(&images).await;
        done.and(closed)
    }

    async fn roll_back_opened(
        &self,
        record: &GroupSnapshot,
        images: &[Image],
        progress: &Progress,
    ) -> Result<()> {
        let _kept = keep_all(images).await?;
        let mut parts = Vec::new();
        for image in images {
            image.refresh().await?;
            let part = self.part_in(record, &image.header());
            parts.push(part.ok_or_else(|| self.without_part(record, &image.name()))?);
        }
        let count = images.len() as u64;
        for ((before, image), part) in (0..).zip(images).zip(parts) {
            let whole = progress.clone();
            let of_one = Progress::new(move |done, total| {
                let share = done.min(total) * PROGRESS_PARTS / total.max(1);
                whole.update(before * PROGRESS_PARTS + share, count * PROGRESS_PARTS);
            });
            snapshot::roll_back_here(image, part, &of_one).await?;
        }
        Ok(())
    }

    /// The namespace of the parts of a snapshot.
    fn namespace(&self, record: &GroupSnapshot) -> SnapshotNamespace {
        SnapshotNamespace::Group {
            group_pool: self.io.pool(),
            group_id: self.id.clone(),
            group_snapshot_id: record.id.clone(),
        }
    }

    fn part_in(&self, record: &GroupSnapshot, header: &Header) -> Option<SnapId> {
        let namespace = self.namespace(record);
        let mut snaps = header.snaps.values();
        snaps.find(|snap| snap.namespace == namespace).map(|snap| snap.id)
    }

    fn without_part(&self, record: &GroupSnapshot, image: &str) -> ImageError {
        ImageError::of(
            ErrorKind::SnapMissing,
            Errno::ENOENT,
            format!(
                "image '{image}' has lost its part of snapshot '{}' of group '{}'",
                record.name, self.name
            ),
        )
        .hint("the group snapshot is of no use any more; remove it with 'rbd group snap rm'")
    }

    async fn open_all(&self, parts: &[ImageSnapshotSpec]) -> Result<Vec<Image>> {
        let opened: Vec<Result<Image>> = futures::stream::iter(parts.iter().map(|part| {
            let io = self.io.with_pool(part.pool_id);
            async move { Image::open(&io, ImageKey::Id(&part.image_id), OpenOptions::read_write()).await }
        }))
        .buffered(CONCURRENT)
        .collect()
        .await;
        let mut images = Vec::new();
        let mut failed = None;
        for image in opened {
            match image {
                Ok(image) => images.push(image),
                Err(error) => failed = Some(error),
            }
        }
        match failed {
            None => Ok(images),
            Some(error) => {
                let _ = close_all(&images).await;
                Err(error)
            }
        }
    }
}

/// What the progress of one image counts of the whole.
const PROGRESS_PARTS: u64 = 1000;

/// Takes the exclusive locks of all images, one after the other and in the order of the group's list, so that two who do
/// the same wait for one another at the first image and not crosswise.
async fn keep_all(images: &[Image]) -> Result<Vec<KeptLock<'_>>> {
    let mut kept = Vec::new();
    for image in images {
        kept.push(image.keep_lock().await?);
    }
    Ok(kept)
}

async fn close_all(images: &[Image]) -> Result<()> {
    let mut result = Ok(());
    for image in images {
        result = result.and(image.close().await);
    }
    result
}
