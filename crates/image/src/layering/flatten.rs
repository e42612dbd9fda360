//! `flatten`: gives a clone all that it shows of its parent, and cuts it loose.
//!
//! Runs in the owner of the lock, object by object beside the clients' writes. Killed, it leaves a clone that owns more of
//! its data; run again it goes on. Order at the end: everything is made durable, the clone stops naming its parent, the
//! parent's list forgets it. A kill between the last two leaves an entry that no clone confirms, which is dropped when it
//! would be in the way ([`super::links`]).
//!
//! Snapshots that were taken of the clone get the data too. They stop naming the parent where the image has the feature
//! deep-flatten; else they keep showing it, and the clone stays listed until they are gone.

use ferry_cls::rbd::client;
use ferry_store::Errno;
use futures::stream::{StreamExt as _, TryStreamExt as _};

use super::copy_up::Shown;
use super::links;
use crate::error::{ErrorKind, ImageError, Result, absent_is_fine};
use crate::image::Image;
use crate::io::write::Writer;
use crate::layout::ObjectNo;
use crate::progress::Progress;
use crate::watch::messages::Request;

/// Objects filled at the same time (`rbd_concurrent_management_ops`).
const CONCURRENT_OBJECTS: usize = 10;

impl Image {
    /// Cuts a clone loose from its parent, in the owner of the exclusive lock. `EINVAL` for an image without a parent.
    pub async fn flatten(&self, progress: &Progress) -> Result<()> {
        self.maintain(&Request::Flatten, progress).await
    }
}

pub(crate) async fn flatten_here(image: &Image, progress: &Progress) -> Result<()> {
    image.acquire_lock().await?;
    image.refresh_if_needed().await?;
    let header = image.header();
    let Some(link) = header
        .parent
        .clone()
        .filter(|link| link.head_overlap_bytes.is_some())
    else {
        return Err(ImageError::new(
            Errno::EINVAL,
            format!("image '{}' has no parent", image.name()),
        ));
    };
    if header.migration_target().is_some() {
        return Err(ImageError::of(
            ErrorKind::Migrating,
            Errno::EBUSY,
            format!("image '{}' is being migrated", image.name()),
        )
        .hint("finish the migration first, or prepare it with --flatten"));
    }
    let total = image.layout().object_count(header.largest_parent_overlap_bytes());
    let mut done = 0;
    progress.update(done, total.max(1));
    let mut filled = futures::stream::iter(0..total)
        .map(|n| fill(image, ObjectNo(n)))
        .buffer_unordered(CONCURRENT_OBJECTS);
    while filled.try_next().await?.is_some() {
        done += 1;
        progress.update(done, total.max(1));
    }
    drop(filled);
    {
        // All is filled: who asks for the lock now waits for these few steps, and not the other way round.
        let _kept = image.keep_lock().await?;
        let _stopped = image.stop_writes(None).await?;
        // Whoever wrote it: without the parent nothing of it can be read again.
        image.sync_all_data().await?;
        image.flush_data().await?;
        let detach = client::parent_detach();
        absent_is_fine(ferry_cls::exec_write(image.io(), &image.inner.header_object, detach).await)?;
        image.refresh().await?;
    }
    image.header_changed().await?;
    if image.header().parent.is_none() {
        links::forget(image.io(), image.id(), &link.spec).await?;
    }
    progress.update(1, 1);
    Ok(())
}

/// Gives an object what the parent shows through it, for the head and for snapshots.
async fn fill(image: &Image, object_no: ObjectNo) -> Result<()> {
    if image.inner.present.contains(object_no) {
        return Ok(());
    }
    let _guard = image.begin_write().await?;
    let header = image.header();
    if Shown::through(image, &header, object_no).is_some() {
        let writer = Writer::new(image, &header, None);
        writer.copy_up_parent(object_no, &[]).await?;
    }
    Ok(())
}
