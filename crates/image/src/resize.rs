//! Changes the size of an image's head.
//!
//! Order that a kill at any point leaves whole: growing tells the object map first and the header last; shrinking trims
//! the data first, then tells the header, then the object map. A map that is longer than the header says is cut at the
//! next time the lock is taken. Of a clone the header is told first how little the parent will show, since an object that
//! is trimmed away would let it show again.

use std::sync::Arc;

use ferry_cls::CallExt as _;
use ferry_cls::rbd::client;
use ferry_cls::rbd::v1::IMAGE_SIZE_OFFSET;
use ferry_store::{Errno, SnapId, WriteOp, WriteStep};

use crate::admin::create::{MAX_SIZE_BYTES, too_large};
use crate::error::{ImageError, Result};
use crate::exclusive_lock::Tenure;
use crate::header::Header;
use crate::image::Image;
use crate::layout::ObjectNo;
use crate::migration::leftover;
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
    only_in: Option<Tenure>,
    progress: &Progress,
) -> Result<()> {
    if size_bytes < image.header().size_bytes {
        // What was acknowledged and failed is tried again while that can be.
        image.settle_all().await?;
    }
    let before = {
        let _stopped = image.stop_writes(only_in).await?;
        image.refresh_if_needed().await?;
        let header = image.header();
        if header.size_bytes == size_bytes {
            progress.update(1, 1);
            return Ok(());
        }
        check_size(image, size_bytes)?;
        let objects = image.layout().object_count(size_bytes);
        if size_bytes > header.size_bytes {
            crate::object_map::head::resize(image, objects).await?;
            show_hiding_objects(image, image.layout().object_count(header.size_bytes), objects).await?;
            set_size(image, size_bytes).await?;
            // Before anybody writes again, by the old size.
            image.refresh().await?;
        } else {
            if !allow_shrink {
                return Err(ImageError::new(
                    Errno::EINVAL,
                    format!("image '{}' would become smaller", image.name()),
                )
                .hint("allow it with --allow-shrink"));
            }
            // An acknowledged write that fails must not be found only when the rest is gone.
            image.settled().await?;
            let _changing = image.changing_all();
            let header = lower_overlap(image, size_bytes).await?;
            crate::io::trim::trim(image, &header, size_bytes, progress).await?;
            // The trimmed bytes must not come back when the image grows again after a power loss.
            image.flush_data().await?;
            set_size(image, size_bytes).await?;
            // Readers look at the size again after they have found an object denied by the map.
            image.refresh().await?;
            crate::object_map::head::shrink(image, objects).await?;
        }
        header
    };
    image.header_changed().await?;
    if before.migration_target().is_some() && image.header().migration_target().is_none() {
        // A commit came between, and found nothing yet that had hidden the source.
        let reach_bytes = before.size_bytes.max(before.migration_overlap_bytes());
        crate::io::trim::remove_hiding(image, reach_bytes).await?;
    }
    progress.update(1, 1);
    Ok(())
}

/// Writes the size into the header.
async fn set_size(image: &Image, size_bytes: u64) -> Result<()> {
    let op = match image.key().is_format_1() {
        true => WriteOp::new()
            .step(WriteStep::AssertExists)
            .write(IMAGE_SIZE_OFFSET, size_bytes.to_le_bytes().to_vec()),
        false => WriteOp::new().class_call(&client::set_size(size_bytes)),
    };
    image.io().write_meta(&image.inner.header_object, op).await?;
    Ok(())
}

/// Makes the parent of a clone show no further than `overlap_bytes` through the head; snapshots show what they did. The
/// header after that. The caller holds the gate exclusively and owns the lock.
pub(crate) async fn lower_overlap(image: &Image, overlap_bytes: u64) -> Result<Arc<Header>> {
    let header = image.header();
    if header.parent_overlap_bytes(SnapId::HEAD) > overlap_bytes {
        crate::io::trim::keep_for_snapshots(image, &header, overlap_bytes).await?;
        // A smaller size lowers the overlap, a larger one does not raise it; both in one step leave the size as it is.
        let op = WriteOp::new()
            .class_call(&client::set_size(overlap_bytes))
            .class_call(&client::set_size(header.size_bytes));
        image.io().write_meta(&image.inner.header_object, op).await?;
        // Every reader knows, before anything is removed that hides the parent.
        image.header_changed().await?;
    }
    Ok(image.header())
}

/// A shrink of a migration target leaves empty objects that hide the source, until a commit has removed them; the map must not
/// call them absent when it
/// covers them again. How far they may go is not known for sure: snapshots that came along may have been removed since.
async fn show_hiding_objects(image: &Image, from: u64, to: u64) -> Result<()> {
    let is_target = image.header().migration_target().is_some();
    if !is_target && !leftover::may_hide(image.io(), &image.inner.header_object).await? {
        return Ok(());
    }
    let exists = ferry_cls::rbd::ObjectState::Exists;
    for object in crate::object_set::existing(image).await?.iter() {
        if (from..to).contains(&object.0) {
            let end = ObjectNo(object.0 + 1);
            crate::object_map::head::update(image, object, end, exists, None).await?;
        }
    }
    Ok(())
}

fn check_size(image: &Image, size_bytes: u64) -> Result<()> {
    // One that others made larger may still be shrunk.
    if size_bytes > MAX_SIZE_BYTES && size_bytes > image.header().size_bytes {
        return Err(too_large(size_bytes));
    }
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
