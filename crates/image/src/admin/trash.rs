//! The trash of a namespace: images without a name that can come back.
//!
//! Moving in: entry ("moving"), names off, entry "normal". Moving out: entry "restoring", names on, entry off. Removing:
//! entry "removing", then all else. So the entry is there whenever the names are not whole, and tells which way to go:
//! [`settle`] goes on with what was interrupted.

use std::collections::BTreeMap;

use ferry_cls::rbd::{TrashImageSource, TrashImageSpec, TrashImageState, client};
use ferry_store::{Errno, IoCtx, Timestamp};

use super::{directory, remove};
use crate::error::{ErrorKind, ImageError, Result, absent_is_fine, optional};
use crate::image::{Image, ImageKey, OpenOptions};
use crate::progress::Progress;
use crate::{header, names};

/// Everything in the trash: id to entry.
pub async fn list(io: &IoCtx) -> Result<BTreeMap<String, TrashImageSpec>> {
    Ok(client::trash_list_all(io).await?)
}

/// The entry of image `id`. `ENOENT` ([`ErrorKind::ImageMissing`]).
pub async fn get(io: &IoCtx, id: &str) -> Result<TrashImageSpec> {
    find(io, id).await?.ok_or_else(|| missing(id))
}

/// The entry of image `id`, if there is one.
pub(crate) async fn find(io: &IoCtx, id: &str) -> Result<Option<TrashImageSpec>> {
    optional(ferry_cls::exec_read(io, names::TRASH, client::trash_get(id)).await)
}

/// Moves the image `name` to the trash, protected until the given time. `ENOENT` ([`ErrorKind::ImageMissing`]), `EBUSY`
/// ([`ErrorKind::HasWatchers`], [`ErrorKind::Migrating`], [`ErrorKind::LockHeld`]).
pub async fn move_image(io: &IoCtx, name: &str, expires_at: Option<Timestamp>) -> Result<()> {
    let Some(id) = directory::resolve(io, name).await? else {
        if header::has_format_1(io, name).await? {
            return Err(ImageError::new(
                Errno::EOPNOTSUPP,
                format!("image '{name}' is of format 1, which the trash cannot hold"),
            )
            .hint("remove it with 'rbd rm', or migrate it to format 2 first"));
        }
        return finish_interrupted_move(io, name).await;
    };
    let image = Image::open(
        io,
        ImageKey::Id(&id),
        OpenOptions::read_write().ignoring_migration().ignoring_parent(),
    )
    .await?;
    let checked = async {
        remove::check_not_migrating(&image)?;
        remove::check_no_watchers(&image).await?;
        // Fences a dead writer: what it still had under way must not come later.
        image.acquire_lock().await
    }
    .await;
    let closed = image.close().await;
    checked?;
    closed?;
    let now = Timestamp::now();
    let end = expires_at.unwrap_or(now).max(now);
    add_and_unregister(io, &id, name, TrashImageSource::User, now, end).await
}

/// A user's move of an image called `name` whose names are off already.
async fn finish_interrupted_move(io: &IoCtx, name: &str) -> Result<()> {
    for (id, entry) in list(io).await? {
        let interrupted = entry.state == TrashImageState::Moving && entry.source == TrashImageSource::User;
        if interrupted && entry.name == name {
            return settle(io, name, &id, &entry).await;
        }
    }
    Err(directory::missing(name))
}

/// Moves image `id`, called `name`, to the trash, protected for `delay_s` seconds. Checks nothing. May be run again.
pub async fn move_to_trash(
    io: &IoCtx,
    id: &str,
    name: &str,
    source: TrashImageSource,
    delay_s: u32,
) -> Result<()> {
    let now = Timestamp::now();
    let end = Timestamp {
        seconds: now.seconds.saturating_add(delay_s),
        ..now
    };
    add_and_unregister(io, id, name, source, now, end).await
}

async fn add_and_unregister(
    io: &IoCtx,
    id: &str,
    name: &str,
    source: TrashImageSource,
    now: Timestamp,
    end: Timestamp,
) -> Result<()> {
    let entry = TrashImageSpec {
        source,
        name: name.to_owned(),
        deletion_time: now,
        deferment_end_time: end,
        state: TrashImageState::Moving,
    };
    match ferry_cls::exec_write(io, names::TRASH, client::trash_add(id, &entry)).await {
        Ok(()) => {}
        Err(error) if error.errno == Errno::EEXIST => {
            let found = find(io, id).await?;
            let same = found.is_some_and(|found| {
                found.source == source
                    && found.name == name
                    && matches!(found.state, TrashImageState::Moving | TrashImageState::Normal)
            });
            if !same {
                return Err(ImageError::new(
                    Errno::EBUSY,
                    format!("image '{name}' (id {id}) is in the trash already"),
                ));
            }
        }
        Err(error) => return Err(error.into()),
    }
    finish_move(io, name, id).await
}

async fn finish_move(io: &IoCtx, name: &str, id: &str) -> Result<()> {
    directory::remove(io, name, id).await?;
    let call = client::trash_state_set(id, TrashImageState::Normal, TrashImageState::Moving);
    Ok(ferry_cls::exec_write(io, names::TRASH, call).await?)
}

/// Goes on with a move into the trash or out of it that was interrupted; `name` is where the entry's image was met.
pub(crate) async fn settle(io: &IoCtx, name: &str, id: &str, entry: &TrashImageSpec) -> Result<()> {
    match entry.state {
        TrashImageState::Moving => {
            let moved = finish_move(io, &entry.name, id).await;
            match moved {
                // Somebody else went on with it.
                Err(error) if matches!(error.errno, Errno::ENOENT | Errno::ESTALE) => Ok(()),
                moved => moved,
            }
        }
        TrashImageState::Restoring => {
            let listed = directory::listed_name(io, id).await?;
            directory::add(io, listed.as_deref().unwrap_or(name), id).await?;
            forget(io, id).await
        }
        TrashImageState::Normal | TrashImageState::Removing => Ok(()),
    }
}

/// Whether the image's data is being removed, or was when that was interrupted.
pub(crate) async fn is_being_removed(io: &IoCtx, id: &str) -> Result<bool> {
    let entry = optional(ferry_cls::exec_read(io, names::TRASH, client::trash_get(id)).await)?;
    Ok(entry.is_some_and(|entry| entry.state == TrashImageState::Removing))
}

/// Takes the entry of image `id` away. Fine if it is gone.
pub async fn forget(io: &IoCtx, id: &str) -> Result<()> {
    absent_is_fine(ferry_cls::exec_write(io, names::TRASH, client::trash_remove(id)).await)
}

/// Puts image `id` back as `name`, whoever moved it to the trash and however far. May be run again, also when it is not
/// in the trash. `EEXIST` ([`ErrorKind::ImageExists`]) when another image has the name; the image then stays where it is.
pub async fn relink(io: &IoCtx, id: &str, name: &str) -> Result<()> {
    let Some(entry) = find(io, id).await? else {
        return directory::add(io, name, id).await;
    };
    if entry.state == TrashImageState::Removing {
        return Err(
            ImageError::new(Errno::EBUSY, format!("image '{name}' (id {id}) is being removed"))
                .hint(format!("finish it with 'rbd trash rm {id}'")),
        );
    }
    let claim = client::trash_state_set(id, TrashImageState::Restoring, entry.state);
    ferry_cls::exec_write(io, names::TRASH, claim).await?;
    // An interrupted restore under another name.
    if let Some(listed) = directory::listed_name(io, id).await?
        && listed != name
    {
        directory::remove(io, &listed, id).await?;
    }
    if let Err(error) = directory::add(io, name, id).await {
        let back = client::trash_state_set(id, TrashImageState::Normal, TrashImageState::Restoring);
        ferry_cls::exec_write(io, names::TRASH, back).await?;
        return Err(error);
    }
    forget(io, id).await
}

fn missing(id: &str) -> ImageError {
    ImageError::of(
        ErrorKind::ImageMissing,
        Errno::ENOENT,
        format!("image id '{id}' is not in the trash"),
    )
}

/// Puts an image back under its old name or a new one. `ENOENT` ([`ErrorKind::ImageMissing`]), `EINVAL`
/// ([`ErrorKind::TrashSource`]), `EEXIST` ([`ErrorKind::ImageExists`]).
pub async fn restore(io: &IoCtx, id: &str, new_name: Option<&str>) -> Result<()> {
    let entry = get(io, id).await?;
    let hint = match entry.source {
        TrashImageSource::User | TrashImageSource::UserParent | TrashImageSource::Mirroring => None,
        TrashImageSource::Migration => {
            Some("run 'rbd migration abort' to get a migration's source back".to_owned())
        }
        TrashImageSource::Removing => Some(format!(
            "its data is gone in part; finish with 'rbd trash rm {id}'"
        )),
    };
    if let Some(hint) = hint {
        return Err(ImageError::of(
            ErrorKind::TrashSource,
            Errno::EINVAL,
            format!(
                "image '{}' (id {id}) was put into the trash by: {}",
                entry.name,
                entry.source.name()
            ),
        )
        .hint(hint));
    }
    let name = new_name.unwrap_or(&entry.name);
    names::check_image_name(name)?;
    if directory::listed_name(io, id).await?.as_deref() != Some(name) {
        directory::free_name(io, name).await?;
    }
    relink(io, id, name).await
}

/// Removes an image for good. `ENOENT` ([`ErrorKind::ImageMissing`]), `EPERM` ([`ErrorKind::NotExpired`]) while it is
/// protected, unless `force`; `EROFS` ([`ErrorKind::Migrating`]) for a migration's source; `ENOTEMPTY`
/// ([`ErrorKind::HasSnapshots`]), `EBUSY` ([`ErrorKind::HasWatchers`]).
pub async fn remove_image(io: &IoCtx, id: &str, force: bool, progress: &Progress) -> Result<()> {
    let entry = get(io, id).await?;
    let place = format!("image '{}' (id {id})", entry.name);
    if entry.source == TrashImageSource::Migration && io.exists(&names::header_object(id)).await? {
        return Err(ImageError::of(
            ErrorKind::Migrating,
            Errno::EROFS,
            format!("{place} is the source of a migration"),
        )
        .hint("'rbd migration commit' removes it, 'rbd migration abort' brings it back"));
    }
    let by_user = matches!(
        entry.source,
        TrashImageSource::User | TrashImageSource::UserParent
    );
    if by_user && !force && entry.deferment_end_time > Timestamp::now() {
        return Err(ImageError::of(
            ErrorKind::NotExpired,
            Errno::EPERM,
            format!("{place}: deferment time has not expired"),
        )
        .hint("use --force to remove it all the same"));
    }
    match entry.state {
        TrashImageState::Restoring => {
            return Err(
                ImageError::new(Errno::EBUSY, format!("{place} is being restored")).hint(format!(
                    "if that was interrupted, finish it with 'rbd trash restore {id}'"
                )),
            );
        }
        TrashImageState::Moving => settle(io, &entry.name, id, &entry).await?,
        TrashImageState::Normal | TrashImageState::Removing => {}
    }
    remove::remove_trashed(io, id, progress).await
}

/// Removes images that users moved to the trash and that are protected no longer at `expired_before`, and finishes
/// removals that were interrupted; gives how many images that were. Goes on after one that cannot be removed, and
/// reports the first such error at the end.
pub async fn purge(io: &IoCtx, expired_before: Timestamp, progress: &Progress) -> Result<usize> {
    let due: Vec<(String, TrashImageSpec)> = list(io)
        .await?
        .into_iter()
        .filter(|(_, entry)| {
            entry.state != TrashImageState::Restoring
                && match entry.source {
                    TrashImageSource::User | TrashImageSource::UserParent => {
                        entry.deferment_end_time <= expired_before
                    }
                    TrashImageSource::Removing => true,
                    TrashImageSource::Migration | TrashImageSource::Mirroring => false,
                }
        })
        .collect();
    let total = due.len() as u64;
    let mut removed = 0;
    let mut first_error = None;
    for (done, (id, entry)) in (1..).zip(&due) {
        match remove_image(io, id, true, &Progress::silent()).await {
            Ok(()) => removed += 1,
            // Somebody else was faster.
            Err(error) if error.kind == ErrorKind::ImageMissing => {}
            // Not asked for: somebody still makes the image, or removes it.
            Err(error) if entry.source == TrashImageSource::Removing => {
                tracing::info!(id, %error, "an unfinished removal stays");
            }
            Err(error) => {
                first_error.get_or_insert(error);
            }
        }
        progress.update(done, total);
    }
    match first_error {
        Some(error) => Err(error),
        None => Ok(removed),
    }
}
