//! Object maps of snapshots: made when a snapshot is taken, merged into the next newer one when it is removed.

use ferry_cls::rbd::{ObjectState, client, feature, flag};
use ferry_cls::{BitVector, CallExt as _};
use ferry_store::{Errno, SnapId, WriteOp};

use crate::error::{Result, absent_is_fine};
use crate::header::Header;
use crate::image::Image;
use crate::layout::ObjectNo;
use crate::names;

/// Map of a snapshot (or, for readers without the lock, of the head); `None` when it is missing, damaged or marked.
pub async fn load(image: &Image, snap: SnapId) -> Result<Option<BitVector>> {
    if !image.header().object_map_valid(snap) {
        return Ok(None);
    }
    if snap.is_head()
        && let Some(map) = image.inner.head_map.copy()
    {
        return Ok(Some(map));
    }
    let object = names::object_map_object(image.id(), snap);
    match ferry_cls::exec_read(&image.inner.io, &object, client::object_map_load()).await {
        Ok(map) => Ok(Some(map)),
        Err(error) if matches!(error.errno, Errno::ENOENT | Errno::EINVAL | Errno::EIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Makes the map of a snapshot just added: a copy of the head's.
pub(crate) async fn create_from_head(image: &Image, snap: SnapId) -> Result<()> {
    if !image.header().has(feature::OBJECT_MAP) {
        return Ok(());
    }
    match image.inner.head_map.copy() {
        Some(map) => save(image, snap, &map).await,
        // The head has no usable map, so the snapshot's flags (copied from the head's) say the same.
        None => Ok(()),
    }
}

/// Writes the whole map of a snapshot.
pub(crate) async fn save(image: &Image, snap: SnapId, map: &BitVector) -> Result<()> {
    let object = names::object_map_object(image.id(), snap);
    let op = WriteOp::new().class_call(&client::object_map_save(map));
    image.inner.io.write_meta(&object, op).await?;
    Ok(())
}

/// Sets one object's state in a snapshot's map. A map that does not take it is marked as not to be believed.
pub(crate) async fn set(image: &Image, snap: SnapId, object_no: ObjectNo, state: ObjectState) -> Result<()> {
    if !image.header().object_map_valid(snap) {
        return Ok(());
    }
    let object = names::object_map_object(image.id(), snap);
    let call = client::object_map_update(object_no.0, object_no.0 + 1, state, None);
    let _one_at_a_time = image.inner.head_map.updating.lock().await;
    match ferry_cls::exec_write(&image.inner.io, &object, call).await {
        Ok(()) => Ok(()),
        // The image was smaller at this snapshot: the object did not exist.
        Err(error) if error.errno == Errno::ERANGE => Ok(()),
        Err(error) if error.errno == Errno::ESHUTDOWN => Err(error.into()),
        Err(error) => {
            tracing::error!(image = image.name(), snap = snap.0, %error, "object map update failed");
            invalidate(image, snap).await
        }
    }
}

/// Marks a snapshot's map as not to be believed.
pub(crate) async fn invalidate(image: &Image, snap: SnapId) -> Result<()> {
    let bits = flag::OBJECT_MAP_INVALID | flag::FAST_DIFF_INVALID;
    let call = client::set_flags(bits, bits, snap);
    ferry_cls::exec_write(&image.inner.io, &image.inner.header_object, call).await?;
    image.want_refresh();
    Ok(())
}

/// Folds the map of a snapshot that is going away into the next newer one, and removes it.
pub(crate) async fn remove(image: &Image, header: &Header, snap: SnapId) -> Result<()> {
    if !header.has(feature::OBJECT_MAP) {
        return Ok(());
    }
    let io = &image.inner.io;
    let object = names::object_map_object(image.id(), snap);
    let next = newer(header, snap).next().unwrap_or(SnapId::HEAD);
    if header.has(feature::FAST_DIFF) && header.object_map_valid(next) {
        let is_believed = header.object_map_valid(snap);
        match ferry_cls::exec_read(io, &object, client::object_map_load()).await {
            Ok(map) if is_believed => fold(image, header, snap, &map).await?,
            // Folded and removed by a run that was interrupted; or never made, and then the next one tells of what changed since
            // the one before. Not so of one that is not to be believed: who could not tell it of a change may have told the next
            // one that nothing changed since.
            Err(error) if error.errno == Errno::ENOENT && is_believed => {}
            Err(error) if error.errno == Errno::ESHUTDOWN => return Err(error.into()),
            // What it knew of changes is lost, so the next one does not know it either.
            _ if next.is_head() => super::head::invalidate(image).await?,
            _ => invalidate(image, next).await?,
        }
    }
    absent_is_fine(io.write_meta(&object, WriteOp::new().remove()).await.map(|_| ()))
}

/// Versions after a snapshot, the head last.
fn newer(header: &Header, snap: SnapId) -> impl Iterator<Item = SnapId> {
    let snaps = header.snaps.range(SnapId(snap.0 + 1)..);
    snaps.map(|(id, _)| *id).chain([SnapId::HEAD])
}

/// Into the next newer map that is there: one that a killed client did not come to make, or had removed already, keeps nothing,
/// and the one after it tells of what changed since `snap`.
async fn fold(image: &Image, header: &Header, snap: SnapId, map: &BitVector) -> Result<()> {
    for next in newer(header, snap).take_while(|next| header.object_map_valid(*next)) {
        if next.is_head()
            && let Some(mut merged) = image.inner.head_map.copy()
        {
            merge(&mut merged, map);
            return super::head::replace(image, merged).await;
        }
        let next_object = names::object_map_object(image.id(), next);
        let call = client::object_map_snap_remove(map);
        match ferry_cls::exec_write(&image.inner.io, &next_object, call).await {
            Err(error) if error.errno == Errno::ENOENT => {}
            folded => return Ok(folded?),
        }
    }
    Ok(())
}

/// What `object_map_snap_remove` does: clean objects that the removed map saw changed, or did not see, count as changed.
fn merge(newer: &mut BitVector, removed: &BitVector) {
    for n in 0..newer.len() {
        if newer.get(n) == Some(ObjectState::ExistsClean.byte())
            && (n >= removed.len() || removed.get(n) == Some(ObjectState::Exists.byte()))
        {
            newer.set(n, ObjectState::Exists.byte());
        }
    }
}
