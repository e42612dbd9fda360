//! Gives back the space of zeroes in the head: the store's class looks for them, so that no byte is read here.
//!
//! Objects that a migration has still to copy are left to it, and one that must hide what lies below it stays, empty.
//! Runs in the owner of the lock, beside the clients' writes: an object is looked at and cut in one atomic step, and is taken
//! away with the gate held, so that the object map is right at every moment.

use ferry_cls::CallExt as _;
use ferry_cls::rbd::{ObjectState, client};
use ferry_store::{Errno, ReadOp, ReadResult, SnapId, WriteOp};
use futures::stream::{StreamExt as _, TryStreamExt as _};

use super::CONCURRENT_OBJECTS;
use super::write::Writer;
use crate::error::{ImageError, Result, absent_is_fine, optional};
use crate::header::Header;
use crate::image::Image;
use crate::layering::copy_up::Shown;
use crate::layout::ObjectNo;
use crate::object_map::{head, mark};
use crate::progress::Progress;
use crate::watch::messages::Request;

/// Granularity when nothing else is asked for.
pub const DEFAULT_SPARSE_SIZE_BYTES: u64 = 4096;

impl Image {
    /// Gives back runs of zeroes of `sparse_size_bytes`, in the owner of the exclusive lock. `EINVAL` unless that is a power of
    /// two from 4096 to the object size.
    pub async fn sparsify(&self, sparse_size_bytes: u64, progress: &Progress) -> Result<()> {
        check(self, sparse_size_bytes)?;
        self.maintain(&Request::Sparsify { sparse_size_bytes }, progress)
            .await
    }
}

fn check(image: &Image, sparse_size_bytes: u64) -> Result<()> {
    let largest = image.layout().object_size_bytes();
    if sparse_size_bytes.is_power_of_two() && (4096..=largest).contains(&sparse_size_bytes) {
        return Ok(());
    }
    Err(
        ImageError::new(Errno::EINVAL, format!("sparse size of {sparse_size_bytes} bytes")).hint(format!(
            "use a power of two from 4096 to the object size, {largest}"
        )),
    )
}

pub(crate) async fn sparsify_here(image: &Image, sparse_size_bytes: u64, progress: &Progress) -> Result<()> {
    check(image, sparse_size_bytes)?;
    image.acquire_lock().await?;
    let total = image.layout().object_count(image.header().size_bytes);
    progress.update(0, total.max(1));
    let mut done = 0;
    let mut objects = futures::stream::iter(0..total)
        .map(|n| object(image, ObjectNo(n), sparse_size_bytes))
        .buffer_unordered(CONCURRENT_OBJECTS);
    while objects.try_next().await?.is_some() {
        done += 1;
        progress.update(done, total);
    }
    drop(objects);
    image.flush_data().await?;
    progress.update(1, 1);
    Ok(())
}

async fn object(image: &Image, object_no: ObjectNo, sparse_size_bytes: u64) -> Result<()> {
    {
        let _guard = image.begin_write().await?;
        if !image.inner.head_map.may_exist(object_no) || needs_copy(image, object_no).await? {
            return Ok(());
        }
        // The class may make it shorter, which a snapshot's map must be able to tell from "unchanged".
        mark::mark_exists(image, object_no).await?;
        let op = WriteOp::buffered().class_call(&client::sparsify(sparse_size_bytes, false));
        let object = image.data_object(object_no.0);
        let snapc = &image.header().snapc;
        // A map may say "exists" of an object that does not.
        absent_is_fine(image.data_io().write(&object, snapc, op).await.map(|_| ()))?;
    }
    if size_bytes(image, object_no).await? == Some(0) {
        remove_empty(image, object_no, sparse_size_bytes).await?;
    }
    Ok(())
}

/// Whether a migration has still to copy the object.
async fn needs_copy(image: &Image, object_no: ObjectNo) -> Result<bool> {
    match image.source() {
        Some(source) => Ok(source.covers(image, object_no) && !source.is_complete(image, object_no).await?),
        None => Ok(false),
    }
}

async fn size_bytes(image: &Image, object_no: ObjectNo) -> Result<Option<u64>> {
    let object = image.data_object(object_no.0);
    let op = ReadOp::new().stat();
    let reply = optional(image.data_io().read(&object, SnapId::HEAD, op).await)?;
    Ok(reply.and_then(|reply| match reply.results.first() {
        Some(ReadResult::Stat { size_bytes, .. }) => Some(*size_bytes),
        _ => None,
    }))
}

/// Whether nothing lies below the object that would show if it were gone.
fn may_go(image: &Image, header: &Header, object_no: ObjectNo) -> bool {
    let source = image.source();
    let writer = Writer::new(image, header, source.as_deref());
    !writer.hides_source(object_no) && Shown::through(image, header, object_no).is_none()
}

/// Takes an empty object away, unless somebody has written to it meanwhile.
async fn remove_empty(image: &Image, object_no: ObjectNo, sparse_size_bytes: u64) -> Result<()> {
    image.acquire_lock().await?;
    let _gate = image.inner.gate.write().await;
    crate::resize::still_ours(image)?;
    image.refresh_if_needed().await?;
    let header = image.header();
    if !may_go(image, &header, object_no) || !head::mark_pending(image, object_no).await? {
        return Ok(());
    }
    image.inner.present.remove(object_no);
    // Durable before the map says so: a power loss must not bring the object back under "nonexistent".
    let op = WriteOp::new().class_call(&client::sparsify(sparse_size_bytes, true));
    let object = image.data_object(object_no.0);
    let written = image.data_io().write(&object, &header.snapc, op).await;
    absent_is_fine(written.map(|_| ()))?;
    if size_bytes(image, object_no).await?.is_none() {
        return head::mark_removed(image, object_no).await;
    }
    let end = ObjectNo(object_no.0 + 1);
    let pending = Some(ObjectState::Pending);
    head::update(image, object_no, end, ObjectState::Exists, pending).await
}
