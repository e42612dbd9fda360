//! The trash of a namespace: images without a name that can be brought back or are to be removed.
//!
//! An entry's state says what was being done with it, so every step may be interrupted and run again.

use std::collections::BTreeMap;

use ferry_cls::rbd::{TrashImageSource, TrashImageSpec, TrashImageState, client};
use ferry_store::{Errno, IoCtx, Timestamp};

use super::{directory, remove};
use crate::error::{ErrorKind, ImageError, Result, absent_is_fine, optional};
use crate::header;
use crate::image::{Image, ImageKey, OpenOptions};
use crate::names;
use crate::progress::Progress;

/// Everything in the trash: id to entry.
pub async fn list(io: &IoCtx) -> Result<BTreeMap<String, TrashImageSpec>> {
    Ok(client::trash_list_all(io).await?)
}

/// One entry; `ENOENT` without it.
pub async fn get(io: &IoCtx, id: &str) -> Result<TrashImageSpec> {
    let found = optional(ferry_cls::exec_read(io, names::TRASH, client::trash_get(id)).await)?;
    found.ok_or_else(|| {
        ImageError::of(
            ErrorKind::ImageMissing,
            Errno::ENOENT,
            format!("no image with id '{id}' in the trash"),
        )
    })
}

/// Moves an image to the trash for a user; it may not be removed before `expires_at` unless forced.
/// `EBUSY` when it has watchers or takes part in a migration.
pub async fn move_image(io: &IoCtx, name: &str, expires_at: Option<Timestamp>) -> Result<()> {
    let id = header::find_id(io, name).await?;
    let image = Image::open(
        io,
        ImageKey::Id(&id),
        OpenOptions::read_write().ignoring_migration(),
    )
    .await?;
    let moved = async {
        if image.header().migration.is_some() {
            return Err(ImageError::of(
                ErrorKind::Migrating,
                Errno::EBUSY,
                format!("image '{name}' takes part in a migration"),
            )
            .hint("commit or abort the migration first"));
        }
        remove::check_no_watchers(&image).await?;
        image.acquire_lock().await?;
        let now = Timestamp::now();
        let end = expires_at.unwrap_or(now).max(now);
        add_and_unlink(io, &id, name, TrashImageSource::User, now, end).await
    }
    .await;
    moved.and(image.close().await)
}

/// Moves an image to the trash on behalf of `source`, `delay_seconds` from now removable. The caller has made sure that
/// nobody uses it.
pub async fn move_to_trash(
    io: &IoCtx,
    id: &str,
    name: &str,
    source: TrashImageSource,
    delay_seconds: u32,
) -> Result<()> {
    let now = Timestamp::now();
    let end = Timestamp {
        seconds: now.seconds.saturating_add(delay_seconds),
        ..now
    };
    add_and_unlink(io, id, name, source, now, end).await
}

async fn add_and_unlink(
    io: &IoCtx,
    id: &str,
    name: &str,
    source: TrashImageSource,
    deletion_time: Timestamp,
    deferment_end_time: Timestamp,
) -> Result<()> {
    let entry = TrashImageSpec {
        source,
        name: name.to_owned(),
        deletion_time,
        deferment_end_time,
        state: TrashImageState::Moving,
    };
    match ferry_cls::exec_write(io, names::TRASH, client::trash_add(id, &entry)).await {
        Ok(()) => {}
        // An earlier move was interrupted.
        Err(error) if error.errno == Errno::EEXIST => {}
        Err(error) => return Err(error.into()),
    }
    directory::remove(io, name, id).await?;
    let call = client::trash_state_set(id, TrashImageState::Normal, TrashImageState::Moving);
    Ok(ferry_cls::exec_write(io, names::TRASH, call).await?)
}

/// Brings an image back, under `new_name` if given.
/// `EEXIST` when the name is taken, `EINVAL` ([`ErrorKind::TrashSource`]) for what is not a user's.
pub async fn restore(io: &IoCtx, id: &str, new_name: Option<&str>) -> Result<()> {
    let entry = get(io, id).await?;
    if !matches!(
        entry.source,
        TrashImageSource::User | TrashImageSource::Mirroring | TrashImageSource::UserParent
    ) {
        let error = ImageError::of(
            ErrorKind::TrashSource,
            Errno::EINVAL,
            format!(
                "image '{}' (id {id}) was put in the trash by {}",
                entry.name,
                entry.source.name()
            ),
        );
        return Err(match entry.source {
            TrashImageSource::Migration => error.hint("bring it back with 'rbd migration abort'"),
            _ => error,
        });
    }
    let name = new_name.unwrap_or(&entry.name);
    names::check_image_name(name)?;
    if let Some(other) = directory::id_of_name(io, name).await?
        && other != id
    {
        return Err(
            ImageError::of(ErrorKind::ImageExists, Errno::EEXIST, format!("image '{name}'"))
                .hint("give another name with --image"),
        );
    }
    if entry.state == TrashImageState::Removing {
        return Err(ImageError::new(
            Errno::EBUSY,
            format!("image '{}' (id {id}) is being removed", entry.name),
        )
        .hint("finish with 'rbd trash rm'"));
    }
    let call = client::trash_state_set(id, TrashImageState::Restoring, entry.state);
    ferry_cls::exec_write(io, names::TRASH, call).await?;
    relink(io, id, name).await
}

/// Gives an image of the trash its name and forgets the entry; also when it was interrupted before.
pub async fn relink(io: &IoCtx, id: &str, name: &str) -> Result<()> {
    directory::add(io, name, id).await?;
    forget(io, id).await
}

/// Removes an entry, if there is one.
pub async fn forget(io: &IoCtx, id: &str) -> Result<()> {
    absent_is_fine(ferry_cls::exec_write(io, names::TRASH, client::trash_remove(id)).await)
}

/// Removes an image of the trash for good.
/// [`ErrorKind::NotExpired`] before its time without `force`; `EROFS` for the source of a migration.
pub async fn remove_image(io: &IoCtx, id: &str, force: bool, progress: &Progress) -> Result<()> {
    let entry = get(io, id).await?;
    if entry.source == TrashImageSource::Migration && io.exists(&names::header_object(id)).await? {
        return Err(ImageError::of(
            ErrorKind::Migrating,
            Errno::EROFS,
            format!("image '{}' (id {id}) is the source of a migration", entry.name),
        )
        .hint("commit or abort the migration"));
    }
    if !force && entry.deferment_end_time > Timestamp::now() {
        return Err(ImageError::of(
            ErrorKind::NotExpired,
            Errno::EPERM,
            format!("image '{}' (id {id}) may not be removed yet", entry.name),
        ));
    }
    remove::check_removable(io, id).await?;
    if entry.state != TrashImageState::Removing {
        let call = client::trash_state_set(id, TrashImageState::Removing, entry.state);
        ferry_cls::exec_write(io, names::TRASH, call).await?;
    }
    remove::remove_by_id(io, id, progress).await?;
    forget(io, id).await
}

/// Removes every user's image whose time was over before `expired_before`; gives how many. Goes on after an image
/// that cannot be removed and reports the first such error at the end.
pub async fn purge(io: &IoCtx, expired_before: Timestamp, progress: &Progress) -> Result<usize> {
    let due: Vec<String> = list(io)
        .await?
        .into_iter()
        .filter(|(_, entry)| {
            entry.source == TrashImageSource::User && entry.deferment_end_time <= expired_before
        })
        .map(|(id, _)| id)
        .collect();
    let total = due.len() as u64;
    let mut removed = 0;
    let mut first_error = None;
    for (index, id) in due.iter().enumerate() {
        match remove_image(io, id, true, &Progress::silent()).await {
            Ok(()) => removed += 1,
            Err(error) => {
                first_error.get_or_insert(error);
            }
        }
        progress.update(index as u64 + 1, total);
    }
    match first_error {
        Some(error) => Err(error),
        None => Ok(removed),
    }
}
