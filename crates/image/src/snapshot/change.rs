//! Creating, removing, renaming and protecting.

use ferry_cls::rbd::{ProtectionStatus, SnapshotNamespace, client, feature};
use ferry_store::{Errno, SnapId};

use crate::error::{ErrorKind, ImageError, Result, absent_is_fine};
use crate::exclusive_lock::Tenure;
use crate::header::Header;
use crate::image::Image;
use crate::layering::links;
use crate::names;
use crate::progress::Progress;
use crate::watch::messages::{AsyncRequestId, Message};
use crate::watch::{self};

/// How often a new id is tried when another one came in between (`ESTALE`).
const MAX_ID_RACES: usize = 20;

/// Flag of a request to take a snapshot: nobody is asked to hold writes back (librbd's
/// `SNAP_CREATE_FLAG_SKIP_NOTIFY_QUIESCE`).
pub(crate) const SKIP_QUIESCE: u64 = 1 << 0;

pub(crate) async fn create_here(
    image: &Image,
    name: &str,
    namespace: SnapshotNamespace,
    flags: u64,
    only_in: Option<Tenure>,
    progress: &Progress,
) -> Result<()> {
    names::check_snap_name(name)?;
    check_is_new(image, name, &namespace)?;
    progress.update(1, 10);
    image.acquire_lock().await?;
    let asked = match flags & SKIP_QUIESCE == 0 {
        true => quiesce(image).await,
        false => None,
    };
    let added = match image.stop_writes(only_in).await {
        Ok(_stopped) => add(image, name, &namespace).await,
        Err(error) => Err(error),
    };
    unquiesce(image, asked).await;
    // Also after a failure: the header may name the snapshot already.
    let told = image.header_changed().await;
    added?;
    told?;
    progress.update(10, 10);
    Ok(())
}

/// `EEXIST` if the header that was read last has a snapshot of that name.
pub(crate) fn check_is_new(image: &Image, name: &str, namespace: &SnapshotNamespace) -> Result<()> {
    match *namespace == SnapshotNamespace::User && image.header().snap_by_name(name).is_some() {
        true => Err(exists(image, name)),
        false => Ok(()),
    }
}

/// Asks the image's users to hold their writes back; what was asked, to be told when they may go on.
pub(crate) async fn quiesce(image: &Image) -> Option<AsyncRequestId> {
    let id = image.next_request_id()?;
    watch::tell(image, Message::Quiesce(id)).await;
    Some(id)
}

/// Tells the image's users that they may go on.
pub(crate) async fn unquiesce(image: &Image, asked: Option<AsyncRequestId>) {
    if let Some(id) = asked {
        watch::tell(image, Message::Unquiesce(id)).await;
    }
}

/// The step itself; writes are stopped.
async fn add(image: &Image, name: &str, namespace: &SnapshotNamespace) -> Result<()> {
    image.flush_data().await?;
    let store = image.inner.data_io.store();
    let pool = image.inner.data_io.pool();
    for _ in 0..MAX_ID_RACES {
        let snap = store.snap_id_create(pool).await?;
        let call = match image.key().is_format_1() {
            true => client::snap_add(name, snap),
            false => client::snapshot_add(name, snap, namespace),
        };
        match ferry_cls::exec_write(&image.inner.io, &image.inner.header_object, call).await {
            Ok(()) => {
                // The snapshot exists: whatever fails now, nobody may write by the old context any more.
                image.refresh().await?;
                return make_map(image, snap).await;
            }
            Err(error) => {
                store.snap_id_remove(pool, snap).await?;
                match error.errno {
                    Errno::ESTALE => {}
                    Errno::EEXIST => return Err(exists(image, name)),
                    _ => return Err(error.into()),
                }
            }
        }
    }
    Err(ImageError::new(
        Errno::EAGAIN,
        format!("image '{}': snapshot ids keep changing", image.name()),
    ))
}

/// Makes the object map of a new snapshot. A map that cannot be made is marked as not to be believed.
async fn make_map(image: &Image, snap: SnapId) -> Result<()> {
    let made = async {
        crate::object_map::snap::create_from_head(image, snap).await?;
        crate::object_map::head::snapshot_taken(image).await
    }
    .await;
    if let Err(error) = made {
        tracing::error!(image = image.name(), snap = snap.0, %error, "object map of a new snapshot");
        crate::object_map::snap::invalidate(image, snap).await?;
        crate::object_map::head::invalidate(image).await?;
    }
    Ok(())
}

fn exists(image: &Image, name: &str) -> ImageError {
    ImageError::new(
        Errno::EEXIST,
        format!("snapshot '{name}' of image '{}'", image.name()),
    )
}

fn missing(image: &Image, name: &str) -> ImageError {
    ImageError::of(
        ErrorKind::SnapMissing,
        Errno::ENOENT,
        format!("snapshot '{name}' of image '{}'", image.name()),
    )
}

fn find(image: &Image, header: &Header, name: &str, namespace: &SnapshotNamespace) -> Result<SnapId> {
    header
        .snaps
        .values()
        .find(|snap| snap.name == name && snap.namespace == *namespace)
        .map(|snap| snap.id)
        .ok_or_else(|| missing(image, name))
}

pub(super) fn check_removable(image: &Image, header: &Header, snap: SnapId) -> Result<()> {
    let Some(record) = header.snaps.get(&snap) else {
        return Ok(());
    };
    if record.protection != ProtectionStatus::Unprotected {
        return Err(ImageError::of(
            ErrorKind::SnapProtected,
            Errno::EBUSY,
            format!(
                "snapshot '{}' of image '{}' is protected",
                record.name,
                image.name()
            ),
        )
        .hint("unprotect it with 'rbd snap unprotect'"));
    }
    Ok(())
}

pub(crate) async fn remove_here(
    image: &Image,
    name: &str,
    namespace: &SnapshotNamespace,
    only_in: Option<Tenure>,
    progress: &Progress,
) -> Result<()> {
    image.refresh_if_needed().await?;
    let snap = find(image, &image.header(), name, namespace)?;
    remove_snap_in(image, snap, only_in, progress).await
}

/// The snapshot of this name whose removal was interrupted: it is in the trash, and no clone keeps it there.
pub(super) async fn interrupted(image: &Image, name: &str) -> Result<Option<SnapId>> {
    let header = image.header();
    let is_it = |snap: &SnapId| match header.snaps.get(snap).map(|record| &record.namespace) {
        Some(SnapshotNamespace::Trash { original_name, .. }) => original_name == name,
        _ => false,
    };
    Ok(all_interrupted(image).await?.into_iter().find(is_it))
}

/// All snapshots in the trash that no clone keeps there.
pub(super) async fn all_interrupted(image: &Image) -> Result<Vec<SnapId>> {
    let mut found = Vec::new();
    for snap in image.header().snaps.values() {
        if matches!(snap.namespace, SnapshotNamespace::Trash { .. })
            && links::settled_format_2(image.io(), image.id(), snap.id)
                .await?
                .is_empty()
        {
            found.push(snap.id);
        }
    }
    Ok(found)
}

/// Removes a snapshot by id, whatever its namespace. One that clones show stays in the trash until the last of them goes.
pub(crate) async fn remove_snap(image: &Image, snap: SnapId, progress: &Progress) -> Result<()> {
    remove_snap_in(image, snap, None, progress).await
}

async fn remove_snap_in(
    image: &Image,
    snap: SnapId,
    only_in: Option<Tenure>,
    progress: &Progress,
) -> Result<()> {
    let mut parent = None;
    {
        let _stopped = image.stop_writes(only_in).await?;
        image.refresh_if_needed().await?;
        let header = image.header();
        let Some(record) = header.snaps.get(&snap) else {
            return Err(missing(image, &format!("id {snap}")));
        };
        check_removable(image, &header, snap)?;
        let io = &image.inner.io;
        let header_object = &image.inner.header_object;
        // Into the trash first: from here on nobody sees it, no clone is made of it, and a second run finds it by id.
        let was_in_trash = matches!(record.namespace, SnapshotNamespace::Trash { .. });
        if !was_in_trash && !image.key().is_format_1() {
            ferry_cls::exec_write(io, header_object, client::snapshot_trash_add(snap)).await?;
        }
        let kept = !links::settled_format_2(io, image.id(), snap).await?.is_empty();
        if kept && was_in_trash {
            return Err(has_children(image, &record.name));
        }
        if !kept {
            parent = header.parent.clone();
            crate::object_map::snap::remove(image, &header, snap).await?;
            let data_io = &image.inner.data_io;
            data_io.store().snap_id_remove(data_io.pool(), snap).await?;
            let call = match image.key().is_format_1() {
                true => client::snap_remove(&record.name),
                false => client::snapshot_remove(snap),
            };
            absent_is_fine(ferry_cls::exec_write(io, header_object, call).await)?;
        }
        image.refresh().await?;
    }
    image.header_changed().await?;
    if let Some(link) = parent
        && image.header().parent.is_none()
    {
        // It was the last version that showed the parent.
        links::forget(image.io(), image.id(), &link.spec).await?;
    }
    progress.update(1, 1);
    Ok(())
}

fn has_children(image: &Image, snap_name: &str) -> ImageError {
    ImageError::of(
        ErrorKind::HasChildren,
        Errno::EBUSY,
        format!("snapshot '{snap_name}' of image '{}' has clones", image.name()),
    )
    .hint("'rbd children' shows them; flatten or remove them first")
}

/// Removes the snapshots in the trash that no clone needs: those whose removal was interrupted, or whose last clone went
/// when they could not be removed.
pub(crate) async fn remove_unneeded(image: &Image) -> Result<()> {
    for snap in all_interrupted(image).await? {
        remove_snap(image, snap, &Progress::silent()).await?;
    }
    Ok(())
}

pub(crate) async fn rename_here(image: &Image, snap: SnapId, new_name: &str) -> Result<()> {
    names::check_snap_name(new_name)?;
    let call = match image.key().is_format_1() {
        true => client::snap_rename(snap, new_name),
        false => client::snapshot_rename(snap, new_name),
    };
    ferry_cls::exec_write(&image.inner.io, &image.inner.header_object, call)
        .await
        .map_err(|error| match error.errno {
            Errno::EEXIST => exists(image, new_name),
            _ => error.into(),
        })?;
    image.header_changed().await
}

pub(crate) async fn protect_here(image: &Image, name: &str, namespace: &SnapshotNamespace) -> Result<()> {
    image.refresh().await?;
    let header = image.header();
    if !header.has(feature::LAYERING) {
        return Err(ImageError::new(
            Errno::ENOSYS,
            format!("image '{}' does not have the layering feature", image.name()),
        ));
    }
    let snap = find(image, &header, name, namespace)?;
    if header
        .snaps
        .get(&snap)
        .is_some_and(|record| record.protection == ProtectionStatus::Protected)
    {
        return Err(ImageError::of(
            ErrorKind::SnapProtected,
            Errno::EBUSY,
            format!(
                "snapshot '{name}' of image '{}' is already protected",
                image.name()
            ),
        ));
    }
    let call = client::set_protection_status(snap, ProtectionStatus::Protected);
    ferry_cls::exec_write(&image.inner.io, &image.inner.header_object, call).await?;
    image.header_changed().await
}

pub(crate) async fn unprotect_here(image: &Image, name: &str, namespace: &SnapshotNamespace) -> Result<()> {
    image.refresh().await?;
    let header = image.header();
    let snap = find(image, &header, name, namespace)?;
    let record = header.snaps.get(&snap).ok_or_else(|| missing(image, name))?;
    if record.protection == ProtectionStatus::Unprotected {
        return Err(ImageError::new(
            Errno::EINVAL,
            format!(
                "snapshot '{name}' of image '{}' is already unprotected",
                image.name()
            ),
        ));
    }
    let io = &image.inner.io;
    let set = |status| {
        ferry_cls::exec_write(
            io,
            &image.inner.header_object,
            client::set_protection_status(snap, status),
        )
    };
    // From here on no clone can be made of it; now see whether there are any.
    set(ProtectionStatus::Unprotecting).await?;
    image.header_changed().await?;
    // Clones of format 2 do not count on it.
    let clones = links::settled_format_1(&image.inner.io, image.id(), snap).await?;
    let children = !clones.is_empty();
    let status = if children {
        ProtectionStatus::Protected
    } else {
        ProtectionStatus::Unprotected
    };
    set(status).await?;
    image.header_changed().await?;
    if children {
        return Err(has_children(image, name));
    }
    Ok(())
}

/// The most snapshots an image may have; `u64::MAX` without a limit.
pub async fn get_limit(image: &Image) -> Result<u64> {
    let call = client::snapshot_get_limit();
    Ok(ferry_cls::exec_read(&image.inner.io, &image.inner.header_object, call).await?)
}

/// Sets the limit, `u64::MAX` takes it away. `ERANGE` below the number of snapshots.
pub async fn set_limit(image: &Image, limit: u64) -> Result<()> {
    let call = client::snapshot_set_limit(limit);
    ferry_cls::exec_write(&image.inner.io, &image.inner.header_object, call).await?;
    image.header_changed().await
}
