//! Images in the making: known to the trash only, until they are whole.
//!
//! An entry with source "removing" whose protection ends at the epoch is staged. It is there before the first object of
//! the image and goes after its name is registered, so a kill at any point leaves either a staged entry (which the next
//! create, import or removal of that name clears away) or a whole image. Whoever clears it sets its state to "removing"
//! first, whoever finishes it to "restoring": only one of them can, from "normal".

use ferry_cls::rbd::{TrashImageSource, TrashImageSpec, TrashImageState, client};
use ferry_store::{Errno, IoCtx, SnapId, Timestamp, WriteOp};

use super::{directory, remove, trash};
use crate::error::{ErrorKind, ImageError, Result, absent_is_fine};
use crate::image::ImageKey;
use crate::names;
use crate::progress::Progress;

/// How many ids are tried before the store is taken to be out of its mind.
const MAX_IDS: usize = 16;

/// Begins an image that will be called `name`; its new id.
pub(crate) async fn begin(io: &IoCtx, name: &str) -> Result<String> {
    let entry = TrashImageSpec {
        source: TrashImageSource::Removing,
        name: name.to_owned(),
        deletion_time: Timestamp::now(),
        deferment_end_time: Timestamp::default(),
        state: TrashImageState::Normal,
    };
    for _ in 0..MAX_IDS {
        let id = names::new_image_id(io.store().instance().gid);
        if io.exists(&names::header_object(&id)).await? || directory::listed_name(io, &id).await?.is_some() {
            continue;
        }
        match ferry_cls::exec_write(io, names::TRASH, client::trash_add(&id, &entry)).await {
            Ok(()) => return Ok(id),
            Err(error) if error.errno == Errno::EEXIST => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(ImageError::new(
        Errno::EEXIST,
        format!("image '{name}': no free image id found"),
    ))
}

/// Gives the image, now whole, its name. `EEXIST` ([`ErrorKind::ImageExists`]) when the name was taken meanwhile.
pub(crate) async fn finish(io: &IoCtx, name: &str, id: &str) -> Result<()> {
    let claim = client::trash_state_set(id, TrashImageState::Restoring, TrashImageState::Normal);
    ferry_cls::exec_write(io, names::TRASH, claim)
        .await
        .map_err(|error| match error.errno {
            Errno::ENOENT | Errno::ESTALE => ImageError::new(
                Errno::ECANCELED,
                format!("image '{name}' was cleared away while it was being made"),
            )
            .hint("another command worked on the same name; run this one again"),
            _ => error.into(),
        })?;
    if let Err(error) = directory::add(io, name, id).await {
        let back = client::trash_state_set(id, TrashImageState::Normal, TrashImageState::Restoring);
        ferry_cls::exec_write(io, names::TRASH, back).await?;
        return Err(error);
    }
    trash::forget(io, id).await
}

/// Gives up on an image in the making and removes what there is of it. What cannot be removed now stays staged and is
/// cleared by the next command that uses the name.
pub(crate) async fn abandon(io: &IoCtx, name: &str, id: &str) {
    let removed = async {
        remove::remove_names(io, name, id).await?;
        remove::remove_unneeded(io, ImageKey::Id(id), 0, &Progress::silent()).await?;
        // Without a header nobody knows of a map: one made after another command had cleared the image away.
        let map = names::object_map_object(id, SnapId::HEAD);
        absent_is_fine(io.write_meta(&map, WriteOp::new().remove()).await.map(|_| ()))?;
        trash::forget(io, id).await
    }
    .await;
    if let Err(error) = removed {
        tracing::warn!(image = name, id, %error, "cannot clear away a half-made image yet");
    }
}

/// Clears away images in the making that an interrupted command left under `name`. Those that somebody still works on
/// stay. `EEXIST` ([`ErrorKind::ImageExists`]) if one of them was whole: it has the name now.
pub(crate) async fn clear(io: &IoCtx, name: &str) -> Result<()> {
    let mut settled = false;
    for (id, entry) in client::trash_list_all(io).await? {
        if entry.name != name || !is_staged(&entry) {
            continue;
        }
        if entry.state == TrashImageState::Restoring {
            // All but its name was done.
            match trash::settle(io, name, &id, &entry).await {
                Ok(()) => {
                    settled = true;
                    continue;
                }
                Err(error) if error.kind == ErrorKind::ImageExists => {
                    let back =
                        client::trash_state_set(&id, TrashImageState::Normal, TrashImageState::Restoring);
                    ferry_cls::exec_write(io, names::TRASH, back).await?;
                }
                Err(error) => return Err(error),
            }
        }
        if let Err(error) = remove::remove_staged(io, &id, &Progress::silent()).await {
            tracing::info!(image = name, id, %error, "an image in the making stays");
        }
    }
    match settled {
        true => directory::free_name(io, name).await,
        false => Ok(()),
    }
}

/// Whether the entry is of an image in the making.
pub(crate) fn is_staged(entry: &TrashImageSpec) -> bool {
    entry.source == TrashImageSource::Removing && entry.deferment_end_time == Timestamp::default()
}
