//! Changes the size of an image's head.
//!
//! Order that a kill at any point leaves whole: growing tells the object map first and the header last; shrinking trims
//! the data first, then tells the header, then the object map. A map that is longer than the header says is cut at the
//! next time the lock is taken.

use ferry_cls::rbd::client;
use ferry_store::Errno;

use crate::error::{ImageError, Result};
use crate::image::Image;
use crate::layout::ObjectNo;
use crate::progress::Progress;
use crate::watch::messages::Request;

impl Image {
    /// Sets the size. `EINVAL` when it becomes smaller without `allow_shrink`.
    pub async fn resize(&self, size_bytes: u64, allow_shrink: bool, progress: &Progress) -> Result<()> {
        self.maintain(
            &Request::Resize {
                size_bytes,
                allow_shrink,
            },
            progress,
        )
        .await
    }
}

pub(crate) async fn resize_here(
    image: &Image,
    size_bytes: u64,
    allow_shrink: bool,
    progress: &Progress,
) -> Result<()> {
    image.acquire_lock().await?;
    {
        let _gate = image.inner.gate.write().await;
        still_ours(image)?;
        image.refresh_if_needed().await?;
        let header = image.header();
        if header.size_bytes == size_bytes {
            progress.update(1, 1);
            return Ok(());
        }
        check_size(image, size_bytes)?;
        let objects = image.layout().object_count(size_bytes);
        let set_size = client::set_size(size_bytes);
        let header_object = &image.inner.header_object;
        if size_bytes > header.size_bytes {
            crate::object_map::head::resize(image, objects).await?;
            show_hiding_objects(image, image.layout().object_count(header.size_bytes), objects).await?;
            ferry_cls::exec_write(&image.inner.io, header_object, set_size).await?;
        } else {
            if !allow_shrink {
                return Err(ImageError::new(
                    Errno::EINVAL,
                    format!("image '{}' would become smaller", image.name()),
                )
                .hint("allow it with --allow-shrink"));
            }
            crate::io::trim::trim(image, &header, size_bytes, progress).await?;
            // The trimmed bytes must not come back when the image grows again after a power loss.
            image.flush_data().await?;
            ferry_cls::exec_write(&image.inner.io, header_object, set_size).await?;
            crate::object_map::head::shrink(image, objects).await?;
        }
        // Before anybody writes again, by the old size.
        image.refresh().await?;
    }
    image.header_changed().await?;
    progress.update(1, 1);
    Ok(())
}

/// A shrink of a migration target leaves empty objects that hide the source; the map must not call them absent when it
/// covers them again.
async fn show_hiding_objects(image: &Image, from: u64, to: u64) -> Result<()> {
    let end = to.min(
        image
            .layout()
            .object_count(image.header().migration_overlap_bytes()),
    );
    let exists = ferry_cls::rbd::ObjectState::Exists;
    crate::object_map::head::update(image, ObjectNo(from), ObjectNo(end), exists, None).await
}

/// `ERESTART` when the lock was given up between taking it and taking the gate.
pub(crate) fn still_ours(image: &Image) -> Result<()> {
    if image.header().needs_lock() && !image.inner.lock.is_owner() {
        return Err(ImageError::new(
            Errno::ERESTART,
            format!("image '{}' lost its lock", image.name()),
        ));
    }
    Ok(())
}

fn check_size(image: &Image, size_bytes: u64) -> Result<()> {
    let objects = image.layout().object_count(size_bytes);
    if image.header().has(ferry_cls::rbd::feature::OBJECT_MAP) && objects > ferry_cls::encoding::MAX_OBJECTS {
        return Err(ImageError::new(
            Errno::EINVAL,
            format!(
                "image '{}' would have {objects} objects, more than its object map can hold",
                image.name()
            ),
        )
        .hint("use larger objects, or no object map"));
    }
    Ok(())
}
