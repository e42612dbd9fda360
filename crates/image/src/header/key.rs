//! Which header an image has: one of format 2 is found by its id, one of format 1 by its name.
//!
//! The one place that knows how an image is found when only its name is known. It does not know what headers say.

use ferry_cls::rbd::client;
use ferry_store::{Errno, IoCtx};

use crate::error::{ErrorKind, ImageError, Result, optional};
use crate::image::ImageKey;
use crate::names;

/// An image of a namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeaderKey {
    /// Format 2: the id.
    Id(String),
    /// Format 1: the name. Such an image has no id, and no clones.
    Name(String),
}

impl HeaderKey {
    /// The header object.
    pub fn object(&self) -> String {
        match self {
            Self::Id(id) => names::header_object(id),
            Self::Name(name) => names::v1_header_object(name),
        }
    }

    /// The id; empty for format 1, as in Ceph's records.
    pub fn id(&self) -> &str {
        match self {
            Self::Id(id) => id,
            Self::Name(_) => "",
        }
    }

    /// Whether the image is of format 1.
    pub fn is_format_1(&self) -> bool {
        matches!(self, Self::Name(_))
    }

    /// How the image is opened.
    pub fn as_image_key(&self) -> ImageKey<'_> {
        match self {
            Self::Id(id) => ImageKey::Id(id),
            Self::Name(name) => ImageKey::Format1(name),
        }
    }

    /// As records name an image: by its id, and one without an id by its name.
    pub fn of_record(id: &str, name: &str) -> Self {
        match id {
            "" => Self::Name(name.to_owned()),
            id => Self::Id(id.to_owned()),
        }
    }
}

impl From<&str> for HeaderKey {
    /// An id.
    fn from(id: &str) -> Self {
        Self::Id(id.to_owned())
    }
}

impl From<&String> for HeaderKey {
    /// An id.
    fn from(id: &String) -> Self {
        Self::Id(id.clone())
    }
}

impl From<&HeaderKey> for HeaderKey {
    fn from(key: &HeaderKey) -> Self {
        key.clone()
    }
}

impl std::fmt::Display for HeaderKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Id(id) => write!(f, "image with id '{id}'"),
            Self::Name(name) => write!(f, "image '{name}' of format 1"),
        }
    }
}

/// The image called `name`. Where there is one of each format (the source of a migration may still have its header), it is the
/// one of format 2. `ENOENT` ([`ErrorKind::ImageMissing`]) without one.
pub async fn find(io: &IoCtx, name: &str) -> Result<HeaderKey> {
    match find_id(io, name).await {
        Ok(id) => Ok(HeaderKey::Id(id)),
        Err(error) if error.kind == ErrorKind::ImageMissing && has_format_1(io, name).await? => {
            Ok(HeaderKey::Name(name.to_owned()))
        }
        Err(error) => Err(error),
    }
}

/// The id of the image of format 2 called `name`: `ENOENT` ([`ErrorKind::ImageMissing`]) without one.
pub async fn find_id(io: &IoCtx, name: &str) -> Result<String> {
    let found = optional(ferry_cls::exec_read(io, &names::id_object(name), client::get_id()).await)?;
    found.ok_or_else(|| ImageError::of(ErrorKind::ImageMissing, Errno::ENOENT, format!("image '{name}'")))
}

/// Whether there is a header of format 1 of this name.
pub(crate) async fn has_format_1(io: &IoCtx, name: &str) -> Result<bool> {
    Ok(io.exists(&names::v1_header_object(name)).await?)
}
