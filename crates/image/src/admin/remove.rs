//! Removes images: data first, then snapshots' ids, object maps, header, names. May be interrupted anywhere and run again:
//! the header goes last among what it names, the names after it.

use ferry_cls::rbd::{ProtectionStatus, client};
use ferry_store::{Errno, IoCtx, SnapId, WriteOp};

use super::directory;
use crate::error::{ErrorKind, ImageError, Result, absent_is_fine};
use crate::header;
use crate::image::{Image, ImageKey, OpenOptions};
use crate::layout::ObjectNo;
use crate::names;
use crate::progress::Progress;

/// Removes the image called `name`.
///
/// `ENOTEMPTY` ([`ErrorKind::HasSnapshots`]), `EBUSY` ([`ErrorKind::HasWatchers`], [`ErrorKind::Migrating`]).
pub async fn remove(io: &IoCtx, name: &str, progress: &Progress) -> Result<()> {
    let id = match header::find_id(io, name).await {
        Ok(id) => id,
        Err(error) if error.kind == ErrorKind::ImageMissing => match directory::id_of_name(io, name).await? {
            Some(id) => id,
            None => return Err(error),
        },
        Err(error) => return Err(error),
    };
    check_removable(io, &id).await?;
    remove_by_id(io, &id, progress).await?;
    directory::remove(io, name, &id).await
}

/// Refuses to remove what has snapshots, watchers, or a migration. A header that is gone is fine.
pub(crate) async fn check_removable(io: &IoCtx, id: &str) -> Result<()> {
    let header = match header::load(io, id, true).await {
        Ok(header) => header,
        Err(error) if error.kind == ErrorKind::ImageMissing => return Ok(()),
        Err(error) => return Err(error),
    };
    if header.migration.is_some() {
        return Err(ImageError::of(
            ErrorKind::Migrating,
            Errno::EBUSY,
            format!("image with id '{id}' takes part in a migration"),
        )
        .hint("commit or abort the migration first"));
    }
    if header.user_snaps().next().is_some() {
        return Err(ImageError::of(
            ErrorKind::HasSnapshots,
            Errno::ENOTEMPTY,
            format!("image with id '{id}' has snapshots"),
        ));
    }
    let object = names::header_object(id);
    let watchers = io.store().list_watchers(io.object(&object)).await?;
    if let Some(watcher) = watchers.first() {
        return Err(in_use(id, &watcher.client.to_string()));
    }
    Ok(())
}

pub(crate) async fn check_no_watchers(image: &Image) -> Result<()> {
    match image.other_watchers().await?.first() {
        Some(watcher) => Err(in_use(image.id(), &watcher.client.to_string())),
        None => Ok(()),
    }
}

fn in_use(id: &str, who: &str) -> ImageError {
    ImageError::of(
        ErrorKind::HasWatchers,
        Errno::EBUSY,
        format!("image with id '{id}' is in use by {who}"),
    )
}

/// Removes everything but the names of an image: all snapshots (protected ones too), data, object maps, header. The
/// caller has made sure that it may go. What is gone already is fine.
pub async fn remove_by_id(io: &IoCtx, id: &str, progress: &Progress) -> Result<()> {
    let options = OpenOptions::read_write().ignoring_migration();
    let image = match Image::open(io, ImageKey::Id(id), options).await {
        Ok(image) => image,
        Err(error) if error.kind == ErrorKind::ImageMissing => {
            return remove_metadata(io, id).await;
        }
        Err(error) => return Err(error),
    };
    let emptied = empty(&image, progress).await;
    // The lock and the watch go with the header; what is left of closing is to forget them.
    let closed = image.close().await;
    emptied?;
    closed?;
    remove_metadata(io, id).await
}

async fn empty(image: &Image, progress: &Progress) -> Result<()> {
    check_no_watchers(image).await?;
    let snaps: Vec<SnapId> = image.header().snaps.keys().rev().copied().collect();
    for snap in snaps {
        let protected = image
            .header()
            .snaps
            .get(&snap)
            .is_some_and(|record| record.protection != ProtectionStatus::Unprotected);
        if protected {
            let call = client::set_protection_status(snap, ProtectionStatus::Unprotected);
            ferry_cls::exec_write(image.io(), &image.inner.header_object, call).await?;
            image.refresh().await?;
        }
        crate::snapshot::remove_snap(image, snap, &Progress::silent()).await?;
    }
    crate::io::trim::remove_from(image, ObjectNo(0), progress).await?;
    image.flush().await
}

/// Object maps (of snapshots too, if some were left behind) and the header.
async fn remove_metadata(io: &IoCtx, id: &str) -> Result<()> {
    let head_map = names::object_map_object(id, SnapId::HEAD);
    let of_snaps = format!("{head_map}.");
    loop {
        let page = io.store().list_objects(io.scope(), &of_snaps, "", 256).await?;
        for object in &page {
            absent_is_fine(io.write_meta(object, WriteOp::new().remove()).await.map(|_| ()))?;
        }
        if page.len() < 256 {
            break;
        }
    }
    for object in [head_map, names::header_object(id)] {
        absent_is_fine(io.write_meta(&object, WriteOp::new().remove()).await.map(|_| ()))?;
    }
    Ok(())
}

/// Takes an image's name away, if it has it.
pub async fn remove_names(io: &IoCtx, name: &str, id: &str) -> Result<()> {
    directory::remove(io, name, id).await
}
