//! Settings kept with an image or a pool (`rbd config`), for those who open images: only such as Ferry honours.
//!
//! Where Ceph keeps them: metadata `conf_NAME` of the image, or of the object `rbd_info` in the pool's default namespace. The image's
//! comes before the pool's, that before the default. A handle goes by what it found when it was opened.

use std::collections::BTreeMap;

use ferry_cls::rbd::client;
use ferry_store::{Errno, IoCtx};

use super::{metadata, pool};
use crate::error::{ImageError, Result, absent_is_fine, optional};
use crate::image::Image;
use crate::names;

/// Whether what clients read of a parent becomes the clone's own.
pub const CLONE_COPY_ON_READ: &str = "rbd_clone_copy_on_read";

/// A setting: its name, and what holds where nobody has set it. All are switches so far.
const SETTINGS: &[(&str, &str)] = &[(CLONE_COPY_ON_READ, "false")];

/// Where a value comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Nobody set it.
    Config,
    /// The pool.
    Pool,
    /// The image.
    Image,
}

impl Source {
    /// As `rbd config * list` calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::Pool => "pool",
            Self::Image => "image",
        }
    }
}

/// A setting in effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Effective {
    /// Name.
    pub name: &'static str,
    /// Value, as it was set.
    pub value: String,
    /// Who set it.
    pub source: Source,
}

/// Whether Ferry honours a setting of this name.
pub fn is_known(name: &str) -> bool {
    SETTINGS.iter().any(|(known, _)| *known == name)
}

/// The switch that a value stands for.
pub(crate) fn switch(value: &str) -> Option<bool> {
    match value {
        "true" | "yes" | "on" | "1" => Some(true),
        "false" | "no" | "off" | "0" => Some(false),
        _ => None,
    }
}

fn check(name: &str, value: &str) -> Result<()> {
    if !is_known(name) {
        return Err(ImageError::new(
            Errno::EINVAL,
            format!("setting '{name}' is not known"),
        ));
    }
    if switch(value).is_none() {
        return Err(
            ImageError::new(Errno::EINVAL, format!("value '{value}' of {name}")).hint("use true or false"),
        );
    }
    Ok(())
}

fn key(name: &str) -> String {
    format!("conf_{name}")
}

/// What the pool of `io` sets; `None`: nothing.
pub async fn of_pool(io: &IoCtx, name: &str) -> Result<Option<String>> {
    let call = client::metadata_get(&key(name));
    let found = optional(ferry_cls::exec_read(&io.with_namespace(""), names::INFO, call).await)?;
    Ok(found.map(|value| String::from_utf8_lossy(&value).into_owned()))
}

/// Sets it for the pool. `EINVAL` for an unknown name, or a value that makes no sense.
pub async fn set_of_pool(io: &IoCtx, name: &str, value: &str) -> Result<()> {
    check(name, value)?;
    let io = io.with_namespace("");
    pool::validate(&io).await?;
    let pairs = BTreeMap::from([(key(name), value.to_owned().into())]);
    Ok(ferry_cls::exec_write(&io, names::INFO, client::metadata_set(&pairs)).await?)
}

/// Takes the pool's value away; whether there was one.
pub async fn remove_of_pool(io: &IoCtx, name: &str) -> Result<bool> {
    let was_set = of_pool(io, name).await?.is_some();
    let call = client::metadata_remove(&key(name));
    if was_set {
        absent_is_fine(ferry_cls::exec_write(&io.with_namespace(""), names::INFO, call).await)?;
    }
    Ok(was_set)
}

/// What the image itself sets; `None`: nothing.
pub async fn of_image(image: &Image, name: &str) -> Result<Option<String>> {
    let call = client::metadata_get(&key(name));
    let found = optional(ferry_cls::exec_read(image.io(), image.header_object(), call).await)?;
    Ok(found.map(|value| String::from_utf8_lossy(&value).into_owned()))
}

/// Sets it for the image. Errors as [`set_of_pool`].
pub async fn set_of_image(image: &Image, name: &str, value: &str) -> Result<()> {
    check(name, value)?;
    metadata::set(image, &key(name), value.to_owned().into()).await
}

/// Takes the image's value away; whether there was one.
pub async fn remove_of_image(image: &Image, name: &str) -> Result<bool> {
    match metadata::remove(image, &key(name)).await {
        Ok(()) => Ok(true),
        Err(error) if error.errno == Errno::ENOENT => Ok(false),
        Err(error) => Err(error),
    }
}

/// All settings, as they are for a pool, or for an image in it.
pub async fn list(io: &IoCtx, image: Option<&Image>) -> Result<Vec<Effective>> {
    let mut out = Vec::new();
    for (name, default) in SETTINGS {
        let by_image = match image {
            Some(image) => of_image(image, name).await?,
            None => None,
        };
        let (value, source) = match by_image {
            Some(value) => (value, Source::Image),
            None => match of_pool(io, name).await? {
                Some(value) => (value, Source::Pool),
                None => ((*default).to_owned(), Source::Config),
            },
        };
        out.push(Effective { name, value, source });
    }
    Ok(out)
}
