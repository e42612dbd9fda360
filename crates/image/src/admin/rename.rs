//! Renames an image within its namespace.
//!
//! Order: new id object, directory, old id object. Interrupted, both names lead to the image (or the new one only), and
//! running it again finishes it.

use ferry_cls::CallExt as _;
use ferry_cls::rbd::client;
use ferry_store::{Errno, WriteOp};

use super::directory;
use crate::error::{ErrorKind, ImageError, Result, absent_is_fine, optional};
use crate::image::{Image, ImageKey, OpenOptions};
use crate::names;
use crate::progress::Progress;
use crate::watch::messages::Request;

/// Renames `name` to `new_name`. `EEXIST` ([`ErrorKind::ImageExists`]), `ENOENT` ([`ErrorKind::ImageMissing`]).
pub async fn rename(io: &ferry_store::IoCtx, name: &str, new_name: &str) -> Result<()> {
    names::check_image_name(new_name)?;
    let options = OpenOptions::read_write().ignoring_migration();
    let image = Image::open(io, ImageKey::Name(name), options).await?;
    let request = Request::Rename {
        new_name: new_name.to_owned(),
    };
    let renamed = image.maintain(&request, &Progress::silent()).await;
    renamed.and(image.close().await)
}

pub(crate) async fn rename_here(image: &Image, new_name: &str) -> Result<()> {
    names::check_image_name(new_name)?;
    let io = image.io();
    let old_name = directory::name_of_id(io, image.id()).await?;
    if old_name == new_name {
        return Err(taken(new_name));
    }
    let new_object = names::id_object(new_name);
    let op = WriteOp::new()
        .create(true)
        .class_call(&client::set_id(image.id()));
    match io.write_meta(&new_object, op).await {
        Ok(_) => {}
        Err(error) if error.errno == Errno::EEXIST => {
            let found = optional(ferry_cls::exec_read(io, &new_object, client::get_id()).await)?;
            if found.as_deref() != Some(image.id()) {
                return Err(taken(new_name));
            }
        }
        Err(error) => return Err(error.into()),
    }
    let call = client::dir_rename_image(&old_name, new_name, image.id());
    if let Err(error) = ferry_cls::exec_write(io, names::DIRECTORY, call).await {
        absent_is_fine(
            io.write_meta(&new_object, WriteOp::new().remove())
                .await
                .map(|_| ()),
        )?;
        return Err(if error.errno == Errno::EEXIST {
            taken(new_name)
        } else {
            error.into()
        });
    }
    let old_object = names::id_object(&old_name);
    absent_is_fine(
        io.write_meta(&old_object, WriteOp::new().remove())
            .await
            .map(|_| ()),
    )?;
    image.set_name(new_name);
    image.header_changed().await
}

fn taken(name: &str) -> ImageError {
    ImageError::of(ErrorKind::ImageExists, Errno::EEXIST, format!("image '{name}'"))
}
