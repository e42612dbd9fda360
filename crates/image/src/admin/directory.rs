//! Names and ids of images: `rbd_directory` and `rbd_id.<name>`.
//!
//! Every change here may be interrupted between its two objects and run again: adding and removing check the pair and
//! treat what is there already (or gone already) as done.

use std::collections::BTreeMap;

use ferry_cls::CallExt as _;
use ferry_cls::rbd::{DirectoryState, client};
use ferry_store::{Errno, IoCtx, WriteOp};

use crate::error::{ErrorKind, ImageError, Result, absent_is_fine, optional};
use crate::names;

/// All images of a namespace: name to id.
pub async fn list(io: &IoCtx) -> Result<BTreeMap<String, String>> {
    Ok(client::dir_list_all(io).await?)
}

/// The name of an image id: from the directory, else from the trash.
/// `ENOENT` ([`ErrorKind::ImageMissing`]) when neither knows it and there is no header; the id itself for a header that
/// nobody names.
pub async fn name_of_id(io: &IoCtx, id: &str) -> Result<String> {
    let call = client::dir_get_name(id);
    if let Some(name) = optional(ferry_cls::exec_read(io, names::DIRECTORY, call).await)? {
        return Ok(name);
    }
    if let Some(entry) = optional(ferry_cls::exec_read(io, names::TRASH, client::trash_get(id)).await)? {
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

/// The id that the directory has for a name.
pub async fn id_of_name(io: &IoCtx, name: &str) -> Result<Option<String>> {
    optional(ferry_cls::exec_read(io, names::DIRECTORY, client::dir_get_id(name)).await)
}

/// Gives an image its name. `EEXIST` ([`ErrorKind::ImageExists`]) when another image has it.
pub async fn add(io: &IoCtx, name: &str, id: &str) -> Result<()> {
    let taken = || ImageError::of(ErrorKind::ImageExists, Errno::EEXIST, format!("image '{name}'"));
    let mut op = WriteOp::new();
    if !io.scope().namespace.is_empty() {
        op = op.class_call(&client::dir_state_assert(DirectoryState::Ready));
    }
    let added = io
        .write_meta(names::DIRECTORY, op.class_call(&client::dir_add_image(name, id)))
        .await;
    match added {
        Ok(_) => {}
        Err(error) if error.errno == Errno::EEXIST => {
            if id_of_name(io, name).await?.as_deref() != Some(id) {
                return Err(taken());
            }
        }
        Err(error) if error.errno == Errno::ENOENT && !io.scope().namespace.is_empty() => {
            return Err(ImageError::of(
                ErrorKind::NamespaceMissing,
                Errno::ENOENT,
                format!("namespace '{}'", io.scope().namespace),
            ));
        }
        Err(error) => return Err(error.into()),
    }
    let id_object = names::id_object(name);
    let op = WriteOp::new().create(true).class_call(&client::set_id(id));
    match io.write_meta(&id_object, op).await {
        Ok(_) => Ok(()),
        Err(error) if error.errno == Errno::EEXIST => {
            let found = optional(ferry_cls::exec_read(io, &id_object, client::get_id()).await)?;
            if found.as_deref() == Some(id) {
                Ok(())
            } else {
                Err(taken())
            }
        }
        Err(error) => Err(error.into()),
    }
}

/// Takes a name from an image; a name that is another image's, or nobody's, is left alone.
pub async fn remove(io: &IoCtx, name: &str, id: &str) -> Result<()> {
    let id_object = names::id_object(name);
    let found = optional(ferry_cls::exec_read(io, &id_object, client::get_id()).await)?;
    if found.as_deref() == Some(id) {
        absent_is_fine(
            io.write_meta(&id_object, WriteOp::new().remove())
                .await
                .map(|_| ()),
        )?;
    }
    match ferry_cls::exec_write(io, names::DIRECTORY, client::dir_remove_image(name, id)).await {
        Err(error) if error.errno == Errno::ESTALE => Ok(()),
        result => absent_is_fine(result),
    }
}
