//! Image metadata: keys and values in the header that belong to the user (`rbd image-meta`).

use std::collections::BTreeMap;

use bytes::Bytes;
use ferry_cls::rbd::client;
use ferry_store::Errno;

use crate::error::{ImageError, Result, optional};
use crate::image::Image;
use crate::progress::Progress;
use crate::watch::messages::Request;

/// All metadata of an image.
pub async fn list(image: &Image) -> Result<BTreeMap<String, Bytes>> {
    Ok(client::metadata_list_all(image.io(), &image.inner.header_object).await?)
}

/// One value; `ENOENT` without it.
pub async fn get(image: &Image, key: &str) -> Result<Bytes> {
    let call = client::metadata_get(key);
    let found = optional(ferry_cls::exec_read(image.io(), &image.inner.header_object, call).await)?;
    found.ok_or_else(|| missing(image, key))
}

fn missing(image: &Image, key: &str) -> ImageError {
    ImageError::new(
        Errno::ENOENT,
        format!("metadata '{key}' of image '{}'", image.name()),
    )
}

/// Sets a value.
pub async fn set(image: &Image, key: &str, value: Bytes) -> Result<()> {
    update(image, key, Some(value)).await
}

/// Removes a value; `ENOENT` without it.
pub async fn remove(image: &Image, key: &str) -> Result<()> {
    get(image, key).await?;
    update(image, key, None).await
}

async fn update(image: &Image, key: &str, value: Option<Bytes>) -> Result<()> {
    let request = Request::MetadataUpdate {
        key: key.to_owned(),
        value,
    };
    image.maintain(&request, &Progress::silent()).await
}

pub(crate) async fn update_here(image: &Image, key: &str, value: Option<Bytes>) -> Result<()> {
    let object = &image.inner.header_object;
    match value {
        Some(value) => {
            let pairs = BTreeMap::from([(key.to_owned(), value)]);
            ferry_cls::exec_write(image.io(), object, client::metadata_set(&pairs)).await?;
        }
        None => ferry_cls::exec_write(image.io(), object, client::metadata_remove(key)).await?,
    }
    image.header_changed().await
}
