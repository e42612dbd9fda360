//! Renaming an image.
//!
//! Order, as librbd's: `rbd_id.<new>`, the directory's pair in one step, `rbd_id.<old>` off. A kill leaves two names that
//! open the image, of which the directory lists one; the same rename run again finishes, and any other command that
//! meets the name that is not listed clears it away.

use ferry_cls::CallExt as _;
use ferry_cls::rbd::client;
use ferry_store::{Errno, IoCtx, WriteOp};

use super::directory;
use crate::error::{ErrorKind, ImageError, Result};
use crate::image::{Image, ImageKey, OpenOptions};
use crate::progress::Progress;
use crate::watch::messages::Request;
use crate::{header, names};

/// Calls the image `name` `new_name`. `ENOENT` ([`ErrorKind::ImageMissing`]), `EEXIST` ([`ErrorKind::ImageExists`]). Done by
/// the lock owner, if that is somebody else.
pub async fn rename(io: &IoCtx, name: &str, new_name: &str) -> Result<()> {
    names::check_image_name(new_name)?;
    if name == new_name {
        return Err(directory::exists(new_name));
    }
    if header::find(io, name).await?.is_format_1() {
        return super::format_1::rename(io, name, new_name).await;
    }
    let image = Image::open(
        io,
        ImageKey::Name(name),
        OpenOptions::read_write().ignoring_migration(),
    )
    .await?;
    let renamed = image
        .maintain(
            &Request::Rename {
                new_name: new_name.to_owned(),
            },
            &Progress::silent(),
        )
        .await
        .map_err(|error| match error.errno {
            // From a lock owner elsewhere only the errno comes back.
            Errno::EEXIST => ImageError {
                kind: ErrorKind::ImageExists,
                ..error
            },
            _ => error,
        });
    let closed = image.close().await;
    renamed.and(closed)
}

/// The renaming itself; this handle owns the lock, or the image has none.
pub(crate) async fn rename_here(image: &Image, new_name: &str) -> Result<()> {
    names::check_image_name(new_name)?;
    let io = image.io();
    let id = image.id();
    let opened_as = image.name();
    let Some(name) = directory::listed_name(io, id).await? else {
        return Err(ImageError::of(
            ErrorKind::ImageMissing,
            Errno::ENOENT,
            format!("image '{opened_as}' (id {id}) has no name that could change"),
        )
        .hint("images in the trash get a new name with 'rbd trash restore --image'"));
    };
    if name != new_name {
        if !is_alias_of(io, new_name, id).await? {
            directory::free_name(io, new_name).await?;
        }
        let op = WriteOp::new().create(true).class_call(&client::set_id(id));
        match io.write_meta(&names::id_object(new_name), op).await {
            Ok(_) => {}
            Err(error) if error.errno == Errno::EEXIST => {
                if !is_alias_of(io, new_name, id).await? {
                    return Err(directory::exists(new_name));
                }
            }
            Err(error) => return Err(error.into()),
        }
        let call = client::dir_rename_image(&name, new_name, id);
        if let Err(error) = ferry_cls::exec_write(io, names::DIRECTORY, call).await {
            if directory::listed_name(io, id).await?.as_deref() != Some(new_name) {
                directory::clear_id_object(io, new_name, id).await?;
            }
            return Err(if error.errno == Errno::EEXIST {
                directory::exists(new_name)
            } else {
                error.into()
            });
        }
        directory::clear_id_object(io, &name, id).await?;
    }
    // The old name of a rename that was interrupted before.
    if opened_as != new_name && opened_as != name {
        directory::clear_id_object(io, &opened_as, id).await?;
    }
    image.set_name(new_name);
    image.header_changed().await
}

async fn is_alias_of(io: &IoCtx, name: &str, id: &str) -> Result<bool> {
    Ok(directory::id_of_name(io, name).await?.as_deref() == Some(id)
        && directory::listed_id(io, name)
            .await?
            .is_none_or(|listed| listed == id))
}
