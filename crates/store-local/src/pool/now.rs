//! Operations that need no waiting: bytes that are in the page cache, of bulk objects whose rows are cached.
//!
//! Keeps invariant: what is done here is just what [`Pool::read`] and [`Pool::write`] would have done; whatever is not
//! surely so, or would have to wait (for a slot, a file to be opened, the medium, the database), is left undone and to them,
//! errors included. Does not know threads: callers are where waiting is not allowed.

use ferry_store::{ObjectRef, ReadNow, SnapContext, SnapId};

use super::Pool;
use super::key::NamedHash;
use crate::object::bitmap::BLOCK_BYTES;
use crate::object::data::Bulk;
use crate::object::rows::{Layer, Object};

impl Pool {
    /// Fills `buffer` with the object's bytes at `snap` from `offset` on, zeroes past its end.
    pub(crate) fn read_now(
        &self,
        object: ObjectRef<'_>,
        snap: SnapId,
        offset: u64,
        buffer: &mut [u8],
    ) -> ReadNow {
        let name = NamedHash::of(object);
        let Ok(Some(_hold)) = self.slots.shared_now(name.slot()) else {
            return ReadNow::WouldWait;
        };
        let Some((_, cached)) = self.slots.cached_by_name(&name) else {
            return ReadNow::WouldWait;
        };
        let Some(object) = cached.as_deref() else {
            return ReadNow::Absent;
        };
        let Some(body) = object.at(snap) else {
            return ReadNow::Absent;
        };
        let Some(lid) = body.layer else {
            return ReadNow::WouldWait;
        };
        let bulk = Bulk::without_waiting(&self.files, object);
        // Most reads lie inside the file, which a full count shows as well as its length would.
        if bulk.read(lid, offset, buffer).is_ok() && object.is_live(lid) {
            return ReadNow::Filled;
        }
        let Ok(size_bytes) = bulk.size(body, lid) else {
            return ReadNow::WouldWait;
        };
        let inside = size_bytes.saturating_sub(offset).min(buffer.len() as u64) as usize;
        let (bytes, past) = buffer.split_at_mut(inside);
        if !bytes.is_empty() && bulk.read(lid, offset, bytes).is_err() {
            return ReadNow::WouldWait;
        }
        past.fill(0);
        ReadNow::Filled
    }

    /// Overwrites bytes of a bulk head in place, buffered; false when that is not all there is to do.
    pub(crate) fn write_now(
        &self,
        object: ObjectRef<'_>,
        snapc: &SnapContext,
        offset: u64,
        data: &[u8],
    ) -> bool {
        // Part of a page might have to be read first.
        if !offset.is_multiple_of(BLOCK_BYTES) || !(data.len() as u64).is_multiple_of(BLOCK_BYTES) {
            return false;
        }
        let name = NamedHash::of(object);
        let Ok(Some(_hold)) = self.slots.exclusive_now(name.slot()) else {
            return false;
        };
        let Some((key, Some(object))) = self.slots.cached_by_name(&name) else {
            return false;
        };
        let Some(layer) = object.head_layer() else {
            return false;
        };
        if data.is_empty()
            || snapc.seq() > object.snap_seq
            || self.dirty.is_poisoned(key.namespace(), key.name())
            || !self.is_ready(&object, layer, offset, data.len() as u64)
        {
            return false;
        }
        let Ok(version) = self.next_version() else {
            return false;
        };
        self.slots.set_overwrite_version(&key, version);
        let written = Bulk::new(&self.files, &object).write(layer, offset, data);
        // Also after a failure: some bytes may have changed.
        self.mark_dirty(&key, layer, object.sidecar, object.below(layer))
            .and(written)
            .is_ok()
    }

    /// Whether the file has room for the bytes, so that a full disk cannot cut the write short; what fits into one block
    /// fails whole.
    fn is_ready(&self, object: &Object, layer: &Layer, offset: u64, length_bytes: u64) -> bool {
        let Some(file) = self.files.opened(&layer.file) else {
            return false;
        };
        let has_map = match layer.parent {
            Some(_) if object.sidecar => self.files.opened_sidecar(layer).is_some(),
            _ => !Bulk::new(&self.files, object).adds_blocks(layer, offset, length_bytes),
        };
        if !has_map {
            return false;
        }
        let end = offset.saturating_add(length_bytes);
        let has_room = || {
            file.stat()
                .is_ok_and(|stat| end <= stat.size_bytes && stat.allocated_bytes >= stat.size_bytes)
        };
        end <= super::schema::OBJECT_BYTES_MAX && (length_bytes <= BLOCK_BYTES || has_room())
    }

    /// Sequence of the object's snapset; the inner `None`: there is no object. The outer: it is not known without waiting.
    pub(crate) fn snap_seq_now(&self, object: ObjectRef<'_>) -> Option<Option<u64>> {
        let name = NamedHash::of(object);
        let _hold = self.slots.shared_now(name.slot()).ok()??;
        let (_, cached) = self.slots.cached_by_name(&name)?;
        Some(cached.map(|object| object.snap_seq))
    }
}
