//! Rolls the head back to a snapshot: size, then every object, then the object map.
//!
//! Killed in between it leaves a head that is partly rolled back, as Ceph's does; running it again finishes it.

use ferry_store::{Errno, SnapId};
use futures::stream::{StreamExt as _, TryStreamExt as _};
use tokio::sync::RwLockWriteGuard;

use crate::error::{ImageError, Result};
use crate::image::{Image, SnapKey, find_snap};
use crate::io::CONCURRENT_OBJECTS;
use crate::io::write::Writer;
use crate::layering::copy_up::Shown;
use crate::layout::ObjectNo;
use crate::progress::Progress;

/// How often the head is given the snapshot's size anew because somebody else came in between.
const MAX_RESIZES: usize = 20;

pub(super) async fn roll_back(image: &Image, name: &str, progress: &Progress) -> Result<()> {
    image.refresh_for_client().await?;
    let snap = find_snap(&image.header(), &SnapKey::Name(name.to_owned()))?;
    roll_back_here(image, snap, progress).await
}

/// The same for a snapshot of any namespace.
pub(crate) async fn roll_back_here(image: &Image, snap: SnapId, progress: &Progress) -> Result<()> {
    // What was acknowledged and failed is tried again while that can be.
    image.settle_all().await?;
    image.acquire_lock().await?;
    {
        let (_stopped, size_bytes) = stop_at_size_of(image, snap).await?;
        // An acknowledged write that fails would come back over what is put back here.
        image.settled().await?;
        let _changing = image.changing_all();
        objects(image, snap, size_bytes, progress).await?;
        image.flush_data().await?;
    }
    image.header_changed().await
}

/// Gives the head the size that it had at a snapshot, and stops the writes. Looked up again whenever somebody may have removed the
/// snapshot meanwhile: one that is gone has no size and no bytes.
async fn stop_at_size_of(image: &Image, snap: SnapId) -> Result<(RwLockWriteGuard<'_, ()>, u64)> {
    for _ in 0..MAX_RESIZES {
        let size_bytes = size_of(image, snap)?;
        crate::resize::resize_here(image, size_bytes, true, None, &Progress::silent()).await?;
        let stopped = image.stop_writes(None).await?;
        image.refresh_if_needed().await?;
        if image.header().size_bytes == size_of(image, snap)? {
            return Ok((stopped, size_bytes));
        }
    }
    Err(ImageError::new(
        Errno::EAGAIN,
        format!("image '{}': its size keeps changing", image.name()),
    ))
}

fn size_of(image: &Image, snap: SnapId) -> Result<u64> {
    let header = image.header();
    let snap = find_snap(&header, &SnapKey::Id(snap))?;
    Ok(header.snaps[&snap].size_bytes)
}

async fn objects(image: &Image, snap: SnapId, size_bytes: u64, progress: &Progress) -> Result<()> {
    let header = image.header();
    let source = image.source();
    let writer = Writer::new(image, &header, source.as_deref());
    let total = image.layout().object_count(size_bytes);
    let map = crate::object_map::snap::load(image, snap).await?;
    let needs_visit = |n: u64| {
        let uncopied = source
            .as_ref()
            .is_some_and(|source| source.covers(image, ObjectNo(n)));
        let in_snap = map
            .as_ref()
            .is_none_or(|map| map.get(n).is_none_or(|state| state != 0));
        let shows_parent = Shown::through(image, &header, ObjectNo(n)).is_some();
        uncopied || in_snap || shows_parent || image.inner.head_map.may_exist(ObjectNo(n))
    };
    let mut done = futures::stream::iter((0..total).filter(|n| needs_visit(*n)))
        .map(|n| {
            let writer = &writer;
            async move { writer.roll_back(ObjectNo(n), snap, size_bytes).await.map(|()| n) }
        })
        .buffered(CONCURRENT_OBJECTS);
    while let Some(n) = done.try_next().await? {
        progress.update(n + 1, total);
    }
    progress.update(total.max(1), total.max(1));
    Ok(())
}
