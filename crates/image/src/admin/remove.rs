//! Removing images, for good.
//!
//! Order: into the trash (source "removing": the name is free, nothing opens it by name), data, object map, the entry that
//! names a clone at its parent, header, trash entry. A kill leaves the trash entry, so `rbd rm` of the same name (or `rbd trash rm`) finishes it. Objects are
//! removed without telling the object map: a map may say "exists" of what does not, and it goes soon itself.

use ferry_cls::rbd::{
    ProtectionStatus, SnapshotNamespace, TrashImageSource, TrashImageState, client, op_feature,
};
use ferry_store::{Errno, IoCtx, SnapId, WriteOp, WriteStep};
use futures::stream::{StreamExt as _, TryStreamExt as _};

use super::{CONCURRENT, directory, format_1, trash};
use crate::error::{ErrorKind, ImageError, Result, absent_is_fine};
use crate::header::{self, HeaderKey, SnapRecord};
use crate::image::{Image, ImageKey, OpenOptions};
use crate::layering::links;
use crate::layout::ObjectNo;
use crate::names;
use crate::object_set::{self, Candidates};
use crate::progress::Progress;

/// Removes the image `name`. `ENOENT` ([`ErrorKind::ImageMissing`]), `ENOTEMPTY` ([`ErrorKind::HasSnapshots`]), `EBUSY`
/// ([`ErrorKind::HasWatchers`], [`ErrorKind::Migrating`], [`ErrorKind::LockHeld`]).
pub async fn remove(io: &IoCtx, name: &str, progress: &Progress) -> Result<()> {
    let Some(id) = directory::resolve(io, name).await? else {
        if header::has_format_1(io, name).await? {
            return remove_format_1(io, name, progress).await;
        }
        return finish_interrupted(io, name, progress).await;
    };
    let image = Image::open(
        io,
        ImageKey::Id(&id),
        OpenOptions::read_write().ignoring_migration().ignoring_parent(),
    )
    .await?;
    let moved = move_out_of_use(&image, name).await;
    if let Err(error) = moved {
        let _ = image.close().await;
        return Err(error);
    }
    let removed = remove_opened(&image, progress).await;
    let _ = image.close().await;
    removed.map_err(|error| error.hint(format!("run 'rbd rm {name}' again to finish")))?;
    trash::forget(io, &id).await
}

/// Takes the name off an open image, provided that nothing speaks against removing it.
async fn move_out_of_use(image: &Image, name: &str) -> Result<()> {
    check_removable(image).await?;
    image.acquire_lock().await?;
    let io = image.io();
    trash::move_to_trash(io, image.id(), name, TrashImageSource::Removing, 0).await?;
    // Whoever opened it before the name was gone shows now.
    if let Err(error) = check_no_watchers(image).await {
        trash::relink(io, image.id(), name).await?;
        return Err(error);
    }
    set_state(io, image.id(), TrashImageState::Removing, TrashImageState::Normal).await
}

/// Without a trash: data, header, entry in the list. A kill leaves the name, and the same command finishes.
async fn remove_format_1(io: &IoCtx, name: &str, progress: &Progress) -> Result<()> {
    let options = OpenOptions::read_write().ignoring_migration();
    let image = Image::open(io, ImageKey::Format1(name), options).await?;
    let removed = async {
        check_removable(&image).await?;
        remove_opened(&image, progress).await
    }
    .await;
    let _ = image.close().await;
    removed?;
    format_1::remove(io, name).await
}

/// Finishes removals of images called `name` that were interrupted.
async fn finish_interrupted(io: &IoCtx, name: &str, progress: &Progress) -> Result<()> {
    let mut found = false;
    for (id, entry) in client::trash_list_all(io).await? {
        if entry.name != name || entry.source != TrashImageSource::Removing {
            continue;
        }
        found = true;
        trash::settle(io, name, &id, &entry).await?;
        if entry.state == TrashImageState::Restoring {
            // It has its name now, and goes the ordinary way.
            return Box::pin(remove(io, name, progress)).await;
        }
        match super::staged::is_staged(&entry) {
            true => remove_staged(io, &id, progress).await?,
            false => remove_trashed(io, &id, progress).await?,
        }
    }
    if format_1::remove_leftover(io, name).await? || found {
        Ok(())
    } else {
        Err(directory::missing(name))
    }
}

/// Removes an image whose trash entry says that it may go, and the entry. The entry must not be on its way in or out.
pub(crate) async fn remove_trashed(io: &IoCtx, id: &str, progress: &Progress) -> Result<()> {
    remove_unnamed(io, id, false, progress).await
}

/// The same for an image that never was whole: nobody has any use for its snapshots.
pub(crate) async fn remove_staged(io: &IoCtx, id: &str, progress: &Progress) -> Result<()> {
    remove_unnamed(io, id, true, progress).await
}

async fn remove_unnamed(io: &IoCtx, id: &str, staged: bool, progress: &Progress) -> Result<()> {
    let options = OpenOptions::read_write().ignoring_migration().ignoring_parent();
    match Image::open(io, ImageKey::Id(id), options).await {
        Ok(image) => {
            let removed = async {
                if staged {
                    check_no_watchers(&image).await?;
                    remove_snapshots(&image).await?;
                }
                remove_trashed_opened(&image, progress).await
            }
            .await;
            let _ = image.close().await;
            removed?;
        }
        Err(error) if error.kind == ErrorKind::ImageMissing => {
            match set_state(io, id, TrashImageState::Removing, TrashImageState::Normal).await {
                Err(error) if error.errno == Errno::ENOENT => return Ok(()),
                claimed => claimed?,
            }
            remove_head_map(io, id).await?;
        }
        Err(error) => return Err(error),
    }
    trash::forget(io, id).await
}

async fn remove_trashed_opened(image: &Image, progress: &Progress) -> Result<()> {
    check_removable(image).await?;
    let io = image.io();
    set_state(io, image.id(), TrashImageState::Removing, TrashImageState::Normal).await?;
    if let Err(error) = check_no_watchers(image).await {
        set_state(io, image.id(), TrashImageState::Normal, TrashImageState::Removing).await?;
        return Err(error);
    }
    remove_opened(image, progress).await
}

async fn set_state(io: &IoCtx, id: &str, new: TrashImageState, expected: TrashImageState) -> Result<()> {
    let call = client::trash_state_set(id, new, expected);
    ferry_cls::exec_write(io, names::TRASH, call)
        .await
        .map_err(|error| match error.errno {
            Errno::ESTALE => ImageError::new(
                Errno::EBUSY,
                format!("trash entry '{id}' is in use by another command"),
            ),
            _ => error.into(),
        })
}

/// Removes everything of an image, snapshots included, except its names and trash entry; for migrations. Fine if
/// there is nothing. The caller knows that nobody needs the image, and that its objects reach up to `reach_bytes` where that is
/// beyond its end.
pub async fn remove_unneeded(
    io: &IoCtx,
    key: ImageKey<'_>,
    reach_bytes: u64,
    progress: &Progress,
) -> Result<()> {
    let options = OpenOptions::read_write().ignoring_migration().ignoring_parent();
    let image = match Image::open(io, key, options).await {
        Ok(image) => image,
        Err(error) if error.kind == ErrorKind::ImageMissing => {
            return match key {
                ImageKey::Id(id) => remove_head_map(io, id).await,
                ImageKey::Name(_) | ImageKey::Format1(_) => Ok(()),
            };
        }
        Err(error) => return Err(error),
    };
    let removed = async {
        remove_snapshots(&image).await?;
        check_no_snapshots(&image)?;
        remove_reaching(&image, reach_bytes, progress).await
    }
    .await;
    let _ = image.close().await;
    removed
}

/// Takes the name off image `id`. Fine if it is off.
pub async fn remove_names(io: &IoCtx, name: &str, id: &str) -> Result<()> {
    directory::remove(io, name, id).await
}

/// Removes all snapshots, newest first, protected or not.
async fn remove_snapshots(image: &Image) -> Result<()> {
    let header = image.header();
    for snap in header.snaps.values().rev() {
        if snap.protection != ProtectionStatus::Unprotected {
            let call = client::set_protection_status(snap.id, ProtectionStatus::Unprotected);
            ferry_cls::exec_write(image.io(), &image.inner.header_object, call).await?;
            image.refresh().await?;
        }
        crate::snapshot::remove_snap(image, snap.id, &Progress::silent()).await?;
    }
    Ok(())
}

/// Refuses to remove what is in use or has snapshots; removes snapshots whose own removal was interrupted.
async fn check_removable(image: &Image) -> Result<()> {
    let name = image.name();
    image.refresh().await?;
    check_not_migrating(image)?;
    let in_trash = |snap: &SnapRecord| matches!(snap.namespace, SnapshotNamespace::Trash { .. });
    if !image.header().snaps.values().all(in_trash) {
        return Err(ImageError::of(
            ErrorKind::HasSnapshots,
            Errno::ENOTEMPTY,
            format!("image '{name}' has snapshots"),
        )
        .hint("remove them first with 'rbd snap purge'"));
    }
    check_no_watchers(image).await?;
    check_no_group(image).await?;
    crate::snapshot::remove_unneeded(image).await?;
    check_no_snapshots(image)
}

/// `EMLINK` ([`ErrorKind::InGroup`]) for an image in a group.
async fn check_no_group(image: &Image) -> Result<()> {
    if image.header().op_features & op_feature::GROUP == 0 {
        return Ok(());
    }
    let Some(group) = crate::group::of_image(image.io(), image.id()).await? else {
        return Ok(());
    };
    Err(ImageError::of(
        ErrorKind::InGroup,
        Errno::EMLINK,
        format!("image belongs to a group {group}"),
    ))
}

/// Removed snapshots that clones still show.
fn check_no_snapshots(image: &Image) -> Result<()> {
    if image.header().snaps.is_empty() {
        return Ok(());
    }
    Err(ImageError::of(
        ErrorKind::HasChildren,
        Errno::ENOTEMPTY,
        format!(
            "image '{}' has removed snapshots that clones still show",
            image.name()
        ),
    )
    .hint("flatten or remove the clones first"))
}

/// `EBUSY` ([`ErrorKind::Migrating`]) for both sides of a migration.
pub(crate) fn check_not_migrating(image: &Image) -> Result<()> {
    if image.header().migration.is_none() {
        return Ok(());
    }
    let name = image.name();
    Err(ImageError::of(
        ErrorKind::Migrating,
        Errno::EBUSY,
        format!("image '{name}' is being migrated"),
    )
    .hint("finish with 'rbd migration commit' or go back with 'rbd migration abort' first"))
}

/// `EBUSY` ([`ErrorKind::HasWatchers`]) when anybody else has the image open.
pub(crate) async fn check_no_watchers(image: &Image) -> Result<()> {
    let others = image.other_watchers().await?;
    let Some(first) = others.first() else {
        return Ok(());
    };
    Err(ImageError::of(
        ErrorKind::HasWatchers,
        Errno::EBUSY,
        format!(
            "image '{}' still has watchers ({} and {} more)",
            image.name(),
            first,
            others.len() - 1
        ),
    )
    .hint("close it there first; a crashed client's watch lapses by itself"))
}

/// Removes data, object map, a clone's link and the header, in this order, and closes the image. It has no snapshots and no
/// names.
async fn remove_opened(image: &Image, progress: &Progress) -> Result<()> {
    remove_reaching(image, 0, progress).await
}

async fn remove_reaching(image: &Image, reach_bytes: u64, progress: &Progress) -> Result<()> {
    remove_data(image, reach_bytes, progress).await?;
    // Durable before the header goes: without it nobody would find what is left.
    image.flush().await?;
    // Also what a removal that was killed had taken away, and this one therefore did not find.
    image.sync_all_data().await?;
    let io = image.io().clone();
    let key = image.key().clone();
    let header_object = image.inner.header_object.clone();
    let parent = image.header().parent.clone();
    image.close().await?;
    if let HeaderKey::Id(id) = &key {
        remove_head_map(&io, id).await?;
    }
    if let Some(link) = parent {
        // While the header still names it, so that a second run finds it.
        links::forget(&io, key.id(), &link.spec).await?;
    }
    absent_is_fine(
        io.write_meta(&header_object, WriteOp::new().remove())
            .await
            .map(|_| ()),
    )
}

async fn remove_data(image: &Image, reach_bytes: u64, progress: &Progress) -> Result<()> {
    let _guard = image.begin_write().await?;
    let header = image.header();
    let total = image.layout().object_count(header.size_bytes);
    // A migration target that shrank may have empty objects past its end.
    let overlap = header.migration.as_ref().map_or(0, |spec| spec.overlap_bytes);
    let end = total.max(image.layout().object_count(overlap.max(reach_bytes)));
    let known = object_set::existing_of_many(image, &(0..end)).await?;
    let objects: Candidates<'_> = match &known {
        Some(known) => Box::new(known.within(0..end)),
        None => Box::new((0..end).filter(|n| image.inner.head_map.may_exist(ObjectNo(*n)))),
    };
    let mut done = futures::stream::iter(objects)
        .map(|n| {
            let header = &header;
            async move {
                let op = WriteOp::buffered().step(WriteStep::Remove);
                let object = image.data_object(n);
                let removed = image.data_io().write(&object, &header.snapc, op).await;
                absent_is_fine(removed.map(|_| ())).map(|()| n)
            }
        })
        .buffered(CONCURRENT);
    while let Some(n) = done.try_next().await? {
        progress.update(n + 1, end.max(1));
    }
    progress.update(end.max(1), end.max(1));
    Ok(())
}

async fn remove_head_map(io: &IoCtx, id: &str) -> Result<()> {
    let object = names::object_map_object(id, SnapId::HEAD);
    absent_is_fine(io.write_meta(&object, WriteOp::new().remove()).await.map(|_| ()))
}
