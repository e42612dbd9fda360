//! The parent of a clone: opened at its snapshot, read where the clone has no object.
//!
//! A parent is opened read-only and watches nothing, so its users see for themselves whether it still is there: whatever
//! it does not have may have been removed, and is looked at again ([`check_still_there`]). A clone that finds its parent
//! gone reads its own header anew: somebody may have cut it loose, or moved its parent.

use std::sync::Arc;

use ferry_cls::rbd::ParentImageSpec;
use ferry_store::{Errno, ReadNow, ReadOp};

use crate::error::{ErrorKind, ImageError, Result, optional};
use crate::header::Header;
use crate::image::{Image, ImageKey, OpenOptions, SnapKey};
use crate::io::read::Found;
use crate::layout::{ImageExtent, ObjectExtent, ObjectNo, ObjectOffset};
use crate::snapshot::kept::check_still_there;

/// Longest chain of parents that is opened. Ceph's kernel client stops at 16.
pub const MAX_CHAIN: usize = 32;

/// An open parent.
#[derive(Debug)]
pub struct Parent {
    image: Image,
    spec: ParentImageSpec,
}

impl Parent {
    /// The parent that an image with this header shows, opening it unless `current` serves. `None`: nothing is shown.
    pub(crate) async fn for_header(
        child: &Image,
        header: &Header,
        current: Option<Arc<Self>>,
    ) -> Result<Option<Arc<Self>>> {
        let shown_bytes = match child.serves_as_parent() {
            true => header.parent_overlap_bytes(child.read_snap()),
            false => header.largest_parent_overlap_bytes(),
        };
        let Some(link) = header.parent.as_ref().filter(|_| shown_bytes > 0) else {
            return Ok(None);
        };
        match current {
            Some(current) if current.spec == link.spec => Ok(Some(current)),
            _ => Ok(Some(Arc::new(open(child, &link.spec).await?))),
        }
    }

    /// The parent image, open at the snapshot that the clone was made of.
    pub fn image(&self) -> &Image {
        &self.image
    }

    /// Reads `length_bytes` at `offset` of what the parent shows.
    pub(crate) async fn read(&self, offset: u64, length_bytes: u64) -> Result<Found> {
        let size_bytes = self.image.size_bytes();
        // An overlap may not exceed the parent; one that does shows nothing there.
        let length_bytes = length_bytes.min(size_bytes.saturating_sub(offset));
        if length_bytes == 0 {
            return Ok(Found::default());
        }
        Box::pin(
            self.image
                .read_found(offset, length_bytes, self.image.read_snap()),
        )
        .await
    }

    /// Reads what the parent shows through an extent of an object of the clone, and how many bytes of it it was asked for.
    pub(crate) async fn read_through(
        &self,
        child: &Image,
        extent: ObjectExtent,
        overlap_bytes: u64,
    ) -> Result<(Found, u64)> {
        let mut out = Found::default();
        let mut asked_bytes = 0;
        for piece in shown(child, extent, overlap_bytes) {
            asked_bytes += piece.length_bytes;
            let found = self.read(piece.offset.0, piece.length_bytes).await?;
            out.runs.extend(found.runs);
        }
        // Absent in the clone, whatever the parent has.
        out.some_absent = true;
        Ok((out, asked_bytes))
    }

    /// Fills `buffer` from the parent's own object, if that needs no waiting. What the parent does not have itself takes a
    /// closer look.
    pub(crate) fn read_now(&self, offset: u64, buffer: &mut [u8]) -> ReadNow {
        match self.image.read_own_now(offset, buffer) {
            ReadNow::Filled => ReadNow::Filled,
            ReadNow::Absent | ReadNow::WouldWait => ReadNow::WouldWait,
        }
    }

    /// Whether the parent, or one of its own parents, has an object where it shows through `object_no` of the clone. It may
    /// hold nothing but zeroes.
    pub(crate) async fn has_object_under(
        &self,
        child: &Image,
        object_no: ObjectNo,
        overlap_bytes: u64,
    ) -> Result<bool> {
        let whole = ObjectExtent {
            object_no,
            offset: ObjectOffset(0),
            length_bytes: child.layout().object_size_bytes(),
            image_offset: crate::layout::ImageOffset(0),
        };
        for piece in shown(child, whole, overlap_bytes) {
            if Box::pin(self.has_object_in(piece)).await? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn has_object_in(&self, range: ImageExtent) -> Result<bool> {
        let image = &self.image;
        if image.source().is_some() {
            // Under migration its objects do not tell.
            return Ok(true);
        }
        let header = image.header();
        let below = image.parent();
        for extent in image.layout().map(range) {
            let object = image.data_object(extent.object_no.0);
            let op = ReadOp::new().stat();
            let found = optional(image.data_io().read(&object, image.read_snap(), op).await)?;
            if found.is_some() {
                return Ok(true);
            }
            let overlap_bytes = header.parent_overlap_bytes(image.read_snap());
            if let Some(below) = &below
                && Box::pin(below.has_object_under(image, extent.object_no, overlap_bytes)).await?
            {
                return Ok(true);
            }
        }
        check_still_there(image).await?;
        Ok(false)
    }
}

/// Runs of the image that an extent of an object stands for, as far as the overlap goes.
fn shown(child: &Image, extent: ObjectExtent, overlap_bytes: u64) -> Vec<ImageExtent> {
    let runs = child
        .layout()
        .unmap(extent.object_no, extent.offset, extent.length_bytes);
    let cut = |run: ImageExtent| ImageExtent {
        length_bytes: run.length_bytes.min(overlap_bytes.saturating_sub(run.offset.0)),
        ..run
    };
    let runs = runs.into_iter().map(cut);
    runs.filter(|run| run.length_bytes > 0).collect()
}

/// Whether an error says that what an image shows from below was taken away.
pub(crate) fn is_gone(error: &ImageError) -> bool {
    matches!(
        error.kind,
        ErrorKind::Removed | ErrorKind::ParentMissing | ErrorKind::ImageMissing | ErrorKind::SnapMissing
    )
}

async fn open(child: &Image, spec: &ParentImageSpec) -> Result<Parent> {
    let place = format!(
        "parent of image '{}' (image id '{}', snapshot id {}, pool id {}{})",
        child.name(),
        spec.image_id,
        spec.snap_id,
        spec.pool_id,
        match spec.pool_namespace.as_str() {
            "" => String::new(),
            namespace => format!(", namespace '{namespace}'"),
        }
    );
    let mut chain = child.inner.serves.clone();
    chain.push(ImageId::of(child));
    let parent_id = ImageId {
        pool: spec.pool_id,
        namespace: spec.pool_namespace.clone(),
        image_id: spec.image_id.clone(),
    };
    if chain.contains(&parent_id) {
        return Err(ImageError::of(
            ErrorKind::Damaged,
            Errno::ELOOP,
            format!("{place}: the image is its own ancestor"),
        )
        .hint("the stored links are damaged; restore the metadata from a backup"));
    }
    if chain.len() > MAX_CHAIN {
        return Err(ImageError::new(
            Errno::ELOOP,
            format!("{place}: the chain of parents is longer than {MAX_CHAIN} images"),
        )
        .hint("flatten one of the images in the middle of the chain"));
    }
    let io = child
        .io()
        .with_pool(spec.pool_id)
        .with_namespace(&spec.pool_namespace);
    let mut options = OpenOptions::read_only().at(SnapKey::Id(spec.snap_id));
    options.serves = chain;
    let opened = Box::pin(Image::open(&io, ImageKey::Id(&spec.image_id), options)).await;
    match opened {
        Ok(image) => Ok(Parent {
            image,
            spec: spec.clone(),
        }),
        Err(error) if matches!(error.kind, ErrorKind::ImageMissing | ErrorKind::SnapMissing) => {
            Err(ImageError::of(
                ErrorKind::ParentMissing,
                error.errno,
                format!("{place} is missing: {}", error.message),
            )
            .hint(
                "the image's own data is whole, but shows nothing without its parent; bring the parent back",
            ))
        }
        Err(error) => Err(error.context(place)),
    }
}

/// Where an image is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ImageId {
    pub(crate) pool: ferry_store::PoolId,
    pub(crate) namespace: String,
    pub(crate) image_id: String,
}

impl ImageId {
    pub(crate) fn of(image: &Image) -> Self {
        Self {
            pool: image.io().pool(),
            namespace: image.io().scope().namespace.to_string(),
            image_id: image.id().to_owned(),
        }
    }
}
