//! The head's object map, in memory while the exclusive lock is owned.
//!
//! Invariant: the stored map is changed before the object it speaks of comes into being, and after the object is
//! gone, and nobody makes an object between; the map in memory equals the stored one. Every change asserts the map's own
//! lock in the same operation.

use std::sync::atomic::{AtomicU64, Ordering};

use ferry_cls::BitVector;
use ferry_cls::CallExt as _;
use ferry_cls::lock::{self, LockKind};
use ferry_cls::rbd::{ObjectState, client, feature, flag};
use ferry_store::{Durability, Errno, SnapId, StoreError, Timestamp, WriteOp};
use parking_lot::RwLock;
use tokio::sync::{Mutex, RwLockReadGuard, RwLockWriteGuard};

use crate::error::{ImageError, Result, absent_is_fine};
use crate::image::Image;
use crate::layout::ObjectNo;
use crate::names;
use crate::object_map::mark::Wanted;

/// The map in memory; empty while the lock is not owned, or the image has no usable map.
#[derive(Debug, Default)]
pub struct HeadMap {
    pub(super) bits: RwLock<Option<BitVector>>,
    /// Held while the map, or that of a snapshot, is changed.
    pub(super) updating: Mutex<()>,
    /// What writers wait to see marked.
    pub(super) wanted: Wanted,
    users: Users,
    /// How often the map was loaded, dropped or replaced.
    epoch: AtomicU64,
    /// 1 + the epoch in which all that a migration will copy was marked; 0: never.
    marked_ahead: AtomicU64,
}

/// Who makes an object exist, and who removes it: a lock per object (shared by few).
///
/// A write between a removal and its mark would make an object of which the map says that it does not exist.
#[derive(Debug)]
struct Users(Vec<tokio::sync::RwLock<()>>);

/// Objects that share a lock are so far apart.
const USER_LOCKS: u64 = 256;

impl Default for Users {
    fn default() -> Self {
        Self((0..USER_LOCKS).map(|_| tokio::sync::RwLock::default()).collect())
    }
}

/// Nobody removes the object while this is kept.
#[must_use = "the object may be removed again once this is dropped"]
#[derive(Debug)]
pub(crate) struct Kept<'a> {
    _lock: RwLockReadGuard<'a, ()>,
}

/// Nobody makes the object exist while this is kept.
#[must_use = "the object may be made again once this is dropped"]
#[derive(Debug)]
pub(crate) struct Removing<'a> {
    _lock: RwLockWriteGuard<'a, ()>,
}

impl HeadMap {
    /// Keeps an object from being removed, for whoever is about to make it exist. Not to be asked for again while it is kept.
    pub(super) async fn keep(&self, object: ObjectNo) -> Kept<'_> {
        let lock = &self.users.0[(object.0 % USER_LOCKS) as usize];
        Kept {
            _lock: lock.read().await,
        }
    }

    /// Keeps an object from being made, for whoever removes it: from before [`mark_pending`] until [`mark_removed`].
    pub(crate) async fn removing(&self, object: ObjectNo) -> Removing<'_> {
        let lock = &self.users.0[(object.0 % USER_LOCKS) as usize];
        Removing {
            _lock: lock.write().await,
        }
    }

    /// State of an object; `None` when there is no map or the object is past its end.
    pub fn state(&self, object: ObjectNo) -> Option<ObjectState> {
        self.bits
            .read()
            .as_ref()?
            .get(object.0)
            .and_then(ObjectState::from_byte)
    }

    /// False only if the object surely does not exist.
    pub fn may_exist(&self, object: ObjectNo) -> bool {
        self.state(object) != Some(ObjectState::Nonexistent)
    }

    /// Calls `each` with those of `objects` that may exist; without a map, all of them.
    pub(crate) fn each_that_may_exist(&self, objects: std::ops::Range<u64>, mut each: impl FnMut(ObjectNo)) {
        let bits = self.bits.read();
        let nonexistent = Some(ObjectState::Nonexistent.byte());
        for object in objects {
            if bits.as_ref().is_none_or(|bits| bits.get(object) != nonexistent) {
                each(ObjectNo(object));
            }
        }
    }

    /// Whether there is a map that says which objects exist.
    pub(crate) fn is_loaded(&self) -> bool {
        self.bits.read().is_some()
    }

    /// A copy of the whole map.
    pub fn copy(&self) -> Option<BitVector> {
        self.bits.read().clone()
    }

    pub(crate) fn clear(&self) {
        *self.bits.write() = None;
        self.epoch.fetch_add(1, Ordering::SeqCst);
    }

    /// Whether the maps say of every object that the running migration will copy that it exists. Ask with the gate held.
    pub(crate) fn is_marked_ahead(&self) -> bool {
        self.marked_ahead.load(Ordering::SeqCst) == self.epoch.load(Ordering::SeqCst) + 1
    }

    /// All is marked.
    pub(super) fn set_marked_ahead(&self) {
        let value = self.epoch.load(Ordering::SeqCst) + 1;
        self.marked_ahead.store(value, Ordering::SeqCst);
    }

    pub(super) fn forget_marks(&self) {
        self.marked_ahead.store(0, Ordering::SeqCst);
    }
}

fn object(image: &Image) -> String {
    names::object_map_object(image.id(), SnapId::HEAD)
}

fn asserted() -> WriteOp {
    WriteOp::new().class_call(&lock::client::assert_locked(
        names::LOCK,
        LockKind::Exclusive,
        "",
        "",
    ))
}

/// Locks and loads the map; the image's lock has just been taken.
pub(crate) async fn load_under_lock(image: &Image) -> Result<()> {
    let header = image.header();
    image.inner.head_map.clear();
    // Others may have written, and rolled back, in between.
    image.inner.present.clear();
    if !header.has(feature::OBJECT_MAP) {
        return Ok(());
    }
    lock_map(image).await?;
    if !header.object_map_valid(SnapId::HEAD) {
        return Ok(());
    }
    let io = &image.inner.io;
    let objects = image.layout().object_count(header.size_bytes);
    let loaded = ferry_cls::exec_read(io, &object(image), client::object_map_load()).await;
    let mut map = match loaded {
        Ok(map) => map,
        Err(error) if matches!(error.errno, Errno::ENOENT | Errno::EINVAL | Errno::EIO) => {
            tracing::warn!(image = image.name(), %error, "object map cannot be used");
            return invalidate(image).await;
        }
        Err(error) => return Err(error.into()),
    };
    if map.len() != objects {
        // A resize was interrupted between the map and the header.
        let call = client::object_map_resize(objects, ObjectState::Nonexistent);
        match io.write_meta(&object(image), asserted().class_call(&call)).await {
            Ok(_) => {
                map.resize(objects, ObjectState::Nonexistent.byte());
            }
            Err(error) if error.errno == Errno::ESTALE => return invalidate(image).await,
            Err(error) => return Err(error.into()),
        }
    }
    *image.inner.head_map.bits.write() = Some(map);
    Ok(())
}

async fn lock_map(image: &Image) -> Result<()> {
    let io = &image.inner.io;
    let name = object(image);
    let take = || {
        lock::client::lock(
            names::LOCK,
            LockKind::Exclusive,
            "",
            "",
            "",
            Timestamp::default(),
            0,
        )
    };
    for _ in 0..10 {
        match ferry_cls::exec_write_ordered(io, &name, take()).await {
            Ok(()) => return Ok(()),
            Err(error) if error.errno == Errno::EEXIST => return Ok(()),
            Err(error) if error.errno == Errno::EBUSY => {
                // The header's lock is ours, so whoever is named here is gone.
                let info = ferry_cls::exec_read(io, &name, lock::client::get_info(names::LOCK)).await?;
                for id in info.lockers.keys() {
                    let call = lock::client::break_lock(names::LOCK, id.entity, &id.cookie);
                    absent_is_fine(ferry_cls::exec_write(io, &name, call).await)?;
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
    Err(ImageError::new(
        Errno::EBUSY,
        format!("{}: lock cannot be broken", io.object(&name)),
    ))
}

/// Forgets the map and unlocks it; the image's lock is about to be given up.
pub(crate) async fn unload(image: &Image) -> Result<()> {
    image.inner.head_map.clear();
    image.inner.present.clear();
    if !image.header().has(feature::OBJECT_MAP) {
        return Ok(());
    }
    let call = lock::client::unlock(names::LOCK, "");
    absent_is_fine(ferry_cls::exec_write_ordered(&image.inner.io, &object(image), call).await)
}

/// Marks the head's map as not to be believed, in the header and in memory.
pub(crate) async fn invalidate(image: &Image) -> Result<()> {
    let bits = flag::OBJECT_MAP_INVALID | flag::FAST_DIFF_INVALID;
    let call = client::set_flags(bits, bits, SnapId::HEAD);
    ferry_cls::exec_write(&image.inner.io, &image.inner.header_object, call).await?;
    // Only now: without a map nobody marks what he writes, which is right only if nobody believes the stored one.
    image.inner.head_map.clear();
    image.want_refresh();
    Ok(())
}

/// Sets objects `first..end` to `new`, if they are in `current` (any state without it).
pub(crate) async fn update(
    image: &Image,
    first: ObjectNo,
    end: ObjectNo,
    new: ObjectState,
    current: Option<ObjectState>,
) -> Result<()> {
    if first >= end {
        return Ok(());
    }
    let _one_at_a_time = image.inner.head_map.updating.lock().await;
    let end = {
        let bits = image.inner.head_map.bits.read();
        let Some(bits) = bits.as_ref() else { return Ok(()) };
        let end = end.0.min(bits.len());
        if !(first.0..end).any(|n| changes(bits.get(n), new, current)) {
            return Ok(());
        }
        end
    };
    set(image, first.0..end, new, current, Durability::Full).await
}

/// As [`update`], for objects inside the map. The caller holds `updating`.
pub(super) async fn set(
    image: &Image,
    objects: std::ops::Range<u64>,
    new: ObjectState,
    current: Option<ObjectState>,
    durability: Durability,
) -> Result<()> {
    let call = client::object_map_update(objects.start, objects.end, new, current);
    let mut op = asserted().class_call(&call);
    op.durability = durability;
    match image.inner.io.write_meta(&object(image), op).await {
        Ok(_) => {
            if let Some(bits) = image.inner.head_map.bits.write().as_mut() {
                for n in objects {
                    if changes(bits.get(n), new, current) {
                        bits.set(n, new.byte());
                    }
                }
            }
            Ok(())
        }
        Err(error) => failed(image, error).await,
    }
}

/// What follows from an update that failed: a client that was fenced says so, else the map is given up and the write
/// goes on.
pub(super) async fn failed(image: &Image, error: StoreError) -> Result<()> {
    if error.errno == Errno::ESHUTDOWN {
        return Err(error.into());
    }
    tracing::error!(image = image.name(), %error, "object map update failed");
    invalidate(image).await
}

fn changes(state: Option<u8>, new: ObjectState, current: Option<ObjectState>) -> bool {
    let Some(state) = state.and_then(ObjectState::from_byte) else {
        return false;
    };
    if state == new {
        return false;
    }
    match current {
        None => true,
        Some(current) => {
            state == current || (current == ObjectState::Exists && state == ObjectState::ExistsClean)
        }
    }
}

/// Says that an object is about to be removed, by who keeps others from making it ([`HeadMap::removing`]). False: it surely does
/// not exist, there is nothing to remove.
pub(crate) async fn mark_pending(image: &Image, object_no: ObjectNo) -> Result<bool> {
    match image.inner.head_map.state(object_no) {
        None | Some(ObjectState::Pending) => Ok(true),
        Some(ObjectState::Nonexistent) => Ok(false),
        Some(_) => {
            update(
                image,
                object_no,
                ObjectNo(object_no.0 + 1),
                ObjectState::Pending,
                None,
            )
            .await?;
            Ok(true)
        }
    }
}

/// Says that a removal marked before has happened.
pub(crate) async fn mark_removed(image: &Image, object_no: ObjectNo) -> Result<()> {
    let end = ObjectNo(object_no.0 + 1);
    update(
        image,
        object_no,
        end,
        ObjectState::Nonexistent,
        Some(ObjectState::Pending),
    )
    .await
}

/// Changes the number of objects; the caller holds the gate and knows that dropped objects are gone.
pub(crate) async fn resize(image: &Image, objects: u64) -> Result<()> {
    let _one_at_a_time = image.inner.head_map.updating.lock().await;
    if image
        .inner
        .head_map
        .bits
        .read()
        .as_ref()
        .is_none_or(|bits| bits.len() == objects)
    {
        return Ok(());
    }
    let call = client::object_map_resize(objects, ObjectState::Nonexistent);
    image
        .inner
        .io
        .write_meta(&object(image), asserted().class_call(&call))
        .await?;
    if let Some(bits) = image.inner.head_map.bits.write().as_mut() {
        bits.resize(objects, ObjectState::Nonexistent.byte());
    }
    Ok(())
}

/// Drops the tail of the map, whatever it says: what lies there is empty or gone.
pub(crate) async fn shrink(image: &Image, objects: u64) -> Result<()> {
    let end = image
        .inner
        .head_map
        .bits
        .read()
        .as_ref()
        .map_or(0, BitVector::len);
    update(
        image,
        ObjectNo(objects),
        ObjectNo(end),
        ObjectState::Nonexistent,
        None,
    )
    .await?;
    resize(image, objects).await
}

/// Notes that a snapshot was taken: what exists has not changed since.
pub(crate) async fn snapshot_taken(image: &Image) -> Result<()> {
    if !image.header().has(feature::FAST_DIFF) {
        return Ok(());
    }
    let _one_at_a_time = image.inner.head_map.updating.lock().await;
    if image.inner.head_map.bits.read().is_none() {
        return Ok(());
    }
    let op = asserted().class_call(&client::object_map_snap_add());
    image.inner.io.write_meta(&object(image), op).await?;
    if let Some(bits) = image.inner.head_map.bits.write().as_mut() {
        for n in 0..bits.len() {
            if bits.get(n) == Some(ObjectState::Exists.byte()) {
                bits.set(n, ObjectState::ExistsClean.byte());
            }
        }
    }
    Ok(())
}

/// Replaces the whole map (rebuild, a removed snapshot).
pub(crate) async fn replace(image: &Image, map: BitVector) -> Result<()> {
    let _one_at_a_time = image.inner.head_map.updating.lock().await;
    image.inner.head_map.epoch.fetch_add(1, Ordering::SeqCst);
    save(image, map).await
}

/// Stores the whole map. The caller holds `updating`.
pub(super) async fn save(image: &Image, map: BitVector) -> Result<()> {
    Ok(store(image, map, Durability::Full).await?)
}

/// As [`save`], with the store's own error.
pub(super) async fn store(image: &Image, map: BitVector, durability: Durability) -> ferry_store::Result<()> {
    let mut op = asserted().class_call(&client::object_map_save(&map));
    op.durability = durability;
    image.inner.io.write_meta(&object(image), op).await?;
    *image.inner.head_map.bits.write() = Some(map);
    Ok(())
}
