//! The directory of a namespace: which image has which name.
//!
//! Two places say it: `rbd_directory` (both ways) and `rbd_id.<name>`, which `open` reads. Names are registered in that
//! order and taken away in the other, so that what can be opened is listed. Every function here may be run again after
//! a kill in the middle; none touches an entry that speaks of another image.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use ferry_cls::CallExt as _;
use ferry_cls::encoding::Encode as _;
use ferry_cls::rbd::{DirectoryState, TrashImageSpec, TrashImageState, client};
use ferry_store::{Errno, IoCtx, WriteOp, WriteStep};

use super::trash;
use crate::error::{ErrorKind, ImageError, Result, absent_is_fine, optional};
use crate::{header, names};

/// How long another client gets to finish what looks half-made before it is taken for dead.
const HALF_MADE_WAIT_MS: u64 = 2_000;
const HALF_MADE_POLL_MS: u64 = 50;
/// Bounds the loops that clear one leftover after the other.
const MAX_LEFTOVERS: usize = 8;

/// All images of the namespace: name to id, sorted by name.
pub async fn list(io: &IoCtx) -> Result<BTreeMap<String, String>> {
    Ok(client::dir_list_all(io).await?)
}

/// Id of the image that opens as `name`.
pub async fn id_of_name(io: &IoCtx, name: &str) -> Result<Option<String>> {
    optional(ferry_cls::exec_read(io, &names::id_object(name), client::get_id()).await)
}

/// Name of image `id`: in the directory, else in the trash, else (an image that has no name yet) the id itself.
/// `ENOENT` ([`ErrorKind::ImageMissing`]) if there is no such image.
pub async fn name_of_id(io: &IoCtx, id: &str) -> Result<String> {
    if let Some(name) = listed_name(io, id).await? {
        return Ok(name);
    }
    if let Some(entry) = trash::find(io, id).await? {
        return Ok(entry.name);
    }
    if io.exists(&names::header_object(id)).await? {
        return Ok(id.to_owned());
    }
    Err(ImageError::of(
        ErrorKind::ImageMissing,
        Errno::ENOENT,
        format!("image with id '{id}'"),
    ))
}

/// Name under which the directory lists `id`.
pub(crate) async fn listed_name(io: &IoCtx, id: &str) -> Result<Option<String>> {
    optional(ferry_cls::exec_read(io, names::DIRECTORY, client::dir_get_name(id)).await)
}

/// Id that the directory lists for `name`.
pub(crate) async fn listed_id(io: &IoCtx, name: &str) -> Result<Option<String>> {
    optional(ferry_cls::exec_read(io, names::DIRECTORY, client::dir_get_id(name)).await)
}

/// Gives image `id` the name, in both places. May be run again. `EEXIST` ([`ErrorKind::ImageExists`]) when the name
/// leads to another image; `ENOENT` ([`ErrorKind::NamespaceMissing`]) when the namespace is not there.
pub async fn add(io: &IoCtx, name: &str, id: &str) -> Result<()> {
    for _ in 0..MAX_LEFTOVERS {
        add_if_missing(io, name, id).await?;
        let op = WriteOp::new().create(true).class_call(&client::set_id(id));
        match io.write_meta(&names::id_object(name), op).await {
            Ok(_) => return Ok(()),
            Err(error) if error.errno == Errno::EEXIST => {}
            Err(error) => return Err(error.into()),
        }
        match id_of_name(io, name).await? {
            Some(found) if found == id => return Ok(()),
            // The directory lists our image by this name, so the other one is an alias that a rename left.
            Some(other) => clear_id_object(io, name, &other).await?,
            None => clear_empty_id_object(io, name).await?,
        }
    }
    Err(busy(name))
}

/// Takes the name away from image `id`, in both places. May be run again; entries of other images stay.
pub async fn remove(io: &IoCtx, name: &str, id: &str) -> Result<()> {
    clear_id_object(io, name, id).await?;
    match ferry_cls::exec_write(io, names::DIRECTORY, client::dir_remove_image(name, id)).await {
        Err(error) if error.errno == Errno::ESTALE => Ok(()),
        result => absent_is_fine(result),
    }
}

/// Lists `id` as `name`. Fine if it is listed so already.
async fn add_if_missing(io: &IoCtx, name: &str, id: &str) -> Result<()> {
    for _ in 0..MAX_LEFTOVERS {
        let mut op = WriteOp::new();
        if !io.scope().namespace.is_empty() {
            op = op.class_call(&client::dir_state_assert(DirectoryState::Ready));
        }
        let added = io
            .write_meta(names::DIRECTORY, op.class_call(&client::dir_add_image(name, id)))
            .await;
        match added {
            Ok(_) => return Ok(()),
            Err(error) if error.errno == Errno::ENOENT && !io.scope().namespace.is_empty() => {
                return Err(super::namespace::missing(&io.scope().namespace));
            }
            Err(error) if matches!(error.errno, Errno::EEXIST | Errno::EBADF) => {}
            Err(error) => return Err(error.into()),
        }
        if let Some(other_name) = listed_name(io, id).await?
            && other_name != name
        {
            return Err(ImageError::new(
                Errno::EBADF,
                format!("image id '{id}' is in use by image '{other_name}'"),
            ));
        }
        match listed_id(io, name).await? {
            Some(found) if found == id => return Ok(()),
            Some(_) => free_name(io, name).await?,
            None => {}
        }
    }
    Err(busy(name))
}

/// Removes `rbd_id.<name>` if it holds `id`.
pub(crate) async fn clear_id_object(io: &IoCtx, name: &str, id: &str) -> Result<()> {
    clear_object_holding(io, name, id.to_bytes()).await
}

/// Removes an `rbd_id.<name>` that holds nothing: missing bytes compare as zeros, and no id has a length of zero.
pub(crate) async fn clear_empty_id_object(io: &IoCtx, name: &str) -> Result<()> {
    clear_object_holding(io, name, Bytes::from_static(&[0; 8])).await
}

async fn clear_object_holding(io: &IoCtx, name: &str, expected: Bytes) -> Result<()> {
    let op = WriteOp::new()
        .step(WriteStep::AssertExists)
        .step(WriteStep::CompareExtent { offset: 0, expected })
        .remove();
    match io.write_meta(&names::id_object(name), op).await {
        Err(error) if error.errno == Errno::EILSEQ => Ok(()),
        result => absent_is_fine(result.map(|_| ())),
    }
}

/// Makes sure that `name` leads to no image, settling what interrupted work left under it.
/// `EEXIST` ([`ErrorKind::ImageExists`]) when there is one.
pub(crate) async fn free_name(io: &IoCtx, name: &str) -> Result<()> {
    if header::has_format_1(io, name).await? || resolve(io, name).await?.is_some() {
        return Err(exists(name));
    }
    Ok(())
}

/// Id of the image called `name`, after what interrupted work left under that name is settled. `None`: no such image.
pub(crate) async fn resolve(io: &IoCtx, name: &str) -> Result<Option<String>> {
    for _ in 0..MAX_LEFTOVERS {
        match look_up(io, name).await? {
            Under::Nothing => return Ok(None),
            Under::Image(id) => return Ok(Some(id)),
            Under::Alias(id) => clear_id_object(io, name, &id).await?,
            // Boxed: settling may register a name, which may free one.
            Under::InTrash(id, entry) => Box::pin(trash::settle(io, name, &id, &entry)).await?,
            Under::HalfMade(id) => clear_half_made(io, name, &id).await?,
        }
    }
    Err(busy(name))
}

/// What is under a name.
enum Under {
    Nothing,
    /// An image.
    Image(String),
    /// `rbd_id.<name>` of an image that is called otherwise (an interrupted rename) or does not exist.
    Alias(String),
    /// The image is being moved to the trash, or out of it.
    InTrash(String, TrashImageSpec),
    /// Listed, but without a header.
    HalfMade(String),
}

async fn look_up(io: &IoCtx, name: &str) -> Result<Under> {
    let listed = listed_id(io, name).await?;
    let opened = id_of_name(io, name).await?;
    let id = match (&listed, opened) {
        (Some(listed), _) => listed.clone(),
        (None, None) => return Ok(Under::Nothing),
        (None, Some(id)) => {
            let called_otherwise = listed_name(io, &id).await?.is_some_and(|other| other != name);
            if called_otherwise {
                return Ok(Under::Alias(id));
            }
            id
        }
    };
    if let Some(entry) = trash::find(io, &id).await?
        && matches!(entry.state, TrashImageState::Moving | TrashImageState::Restoring)
    {
        return Ok(Under::InTrash(id, entry));
    }
    if io.exists(&names::header_object(&id)).await? {
        return Ok(Under::Image(id));
    }
    Ok(if listed.is_some() {
        Under::HalfMade(id)
    } else {
        Under::Alias(id)
    })
}

/// A listed image without a header: Ceph's client lists an image before it makes the header. It gets time to do so.
async fn clear_half_made(io: &IoCtx, name: &str, id: &str) -> Result<()> {
    let mut waited_ms = 0;
    while waited_ms < HALF_MADE_WAIT_MS {
        tokio::time::sleep(Duration::from_millis(HALF_MADE_POLL_MS)).await;
        waited_ms += HALF_MADE_POLL_MS;
        if io.exists(&names::header_object(id)).await? || listed_id(io, name).await?.as_deref() != Some(id) {
            return Ok(());
        }
    }
    tracing::info!(name, id, "clearing what an interrupted create left");
    remove(io, name, id).await
}

fn busy(name: &str) -> ImageError {
    ImageError::new(Errno::EAGAIN, format!("name '{name}' keeps changing"))
}

/// The error for a name that is taken.
pub(crate) fn exists(name: &str) -> ImageError {
    ImageError::of(
        ErrorKind::ImageExists,
        Errno::EEXIST,
        format!("image '{name}' already exists"),
    )
}

/// The error for a name that leads nowhere.
pub(crate) fn missing(name: &str) -> ImageError {
    ImageError::of(ErrorKind::ImageMissing, Errno::ENOENT, format!("image '{name}'"))
}
