//! Copy-on-read: what a client reads of the parent becomes the clone's own, in the background of its reads.
//!
//! Off unless it is asked for when the image is opened, or by a setting of the image, its pool or the store
//! (Ceph's `rbd_clone_copy_on_read`, see [`config`]). Only a handle that may write without asking anybody does it:
//! one that owns the lock. A copy that cannot begin at once, as [`MAX_RUNNING`] run already, is left to the next read; one
//! that fails is nobody's error.

use tokio::sync::Semaphore;

use super::copy_up::Shown;
use crate::admin::config;
use crate::error::Result;
use crate::image::Image;
use crate::io::write::Writer;
use crate::layout::{ImageExtent, ImageOffset, ObjectNo};

/// Copies of this process that run at the same time.
const MAX_RUNNING: usize = 4;
static RUNNING: Semaphore = Semaphore::const_new(MAX_RUNNING);

/// Whether the image, its pool or the store asks for it.
pub(crate) async fn is_wanted(image: &Image) -> Result<bool> {
    config::is_on(image, config::CLONE_COPY_ON_READ).await
}

/// A client has read this range, and some of it was not the clone's own.
pub(crate) fn after_read(image: &Image, offset: u64, length_bytes: u64) {
    let header = image.header();
    let may_write = image.inner.lock.is_owner() || !header.needs_lock();
    if !may_write || image.source().is_some() || header.parent.is_none() {
        return;
    }
    let extents = image.layout().map(ImageExtent {
        offset: ImageOffset(offset),
        length_bytes,
    });
    let mut last = None;
    for extent in extents {
        let object_no = extent.object_no;
        let is_own = image.inner.present.contains(object_no) || last == Some(object_no);
        if is_own || Shown::through(image, &header, object_no).is_none() {
            continue;
        }
        last = Some(object_no);
        let Ok(running) = RUNNING.try_acquire() else {
            return;
        };
        let image = image.clone();
        tokio::spawn(async move {
            let _running = running;
            if let Err(error) = copy(&image, object_no).await {
                tracing::debug!(image = image.name(), object = object_no.0, %error, "copy on read");
            }
        });
    }
}

async fn copy(image: &Image, object_no: ObjectNo) -> Result<()> {
    let Some(_guard) = image.begin_write_now() else {
        return Ok(());
    };
    let header = image.header();
    let writer = Writer::new(image, &header, None);
    writer.copy_up_parent(object_no, &[]).await.map(|_| ())
}
