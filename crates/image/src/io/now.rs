//! Reads and writes that need no waiting: small ones inside one object, of bytes that the engine has at hand.
//!
//! Invariant: what is done here is just what [`Image::read`] and [`Image::write`] would have done. Whatever is not surely
//! so (a header to be read again, a lock to be taken, an object to be copied first, a map to be changed, an error) is left
//! undone and to them.

use ferry_store::{ReadNow, SnapId};

use crate::header::Header;
use crate::image::Image;
use crate::layout::{ImageOffset, ObjectExtent, ObjectNo};
use crate::migration::source::MigrationSource;

impl Image {
    /// Fills `buffer` from `offset` on. [`ReadNow::Absent`]: there is nothing but zeroes, and the buffer is as it was.
    /// [`ReadNow::WouldWait`]: that would have to wait, or cannot be done; [`Image::read`] does it, or tells why not.
    pub fn read_now(&self, offset: u64, buffer: &mut [u8]) -> ReadNow {
        let _client = self.inner.activity.begin();
        if !self.is_settled(offset, buffer.len() as u64) {
            return ReadNow::WouldWait;
        }
        self.read_now_at(offset, buffer, self.inner.read_snap)
    }

    fn read_now_at(&self, offset: u64, buffer: &mut [u8], snap: SnapId) -> ReadNow {
        if self.check_open().is_err() || !self.is_fresh() {
            return ReadNow::WouldWait;
        }
        let header = self.header();
        let length_bytes = buffer.len() as u64;
        let inside = |size: u64| offset.checked_add(length_bytes).is_some_and(|end| end <= size);
        if !header.size_at(snap).is_some_and(inside) {
            return ReadNow::WouldWait;
        }
        let Some(extent) = self.layout().map_one(ImageOffset(offset), length_bytes) else {
            return ReadNow::WouldWait;
        };
        let source = self.source();
        let below = source
            .as_deref()
            .filter(|source| source.covers(self, extent.object_no));
        let found = match below {
            None => match self.own_now(extent, snap, buffer) {
                ReadNow::Absent => self.parent_now(&header, extent, snap, buffer),
                found => found,
            },
            Some(source) => self.through_now(&header, source, extent, snap, buffer),
        };
        match found {
            // A handle that does not watch must look whether the image still is there.
            ReadNow::Absent if self.looks_for_itself() => ReadNow::WouldWait,
            found => found,
        }
    }

    fn own_now(&self, extent: ObjectExtent, snap: SnapId, buffer: &mut [u8]) -> ReadNow {
        if snap.is_head() && !self.inner.head_map.may_exist(extent.object_no) {
            return ReadNow::Absent;
        }
        let object = self.data_object(extent.object_no.0);
        self.inner
            .data_io
            .read_now(&object, snap, extent.offset.0, buffer)
    }

    /// From the image's own object at the snapshot that the handle shows.
    pub(crate) fn read_own_now(&self, offset: u64, buffer: &mut [u8]) -> ReadNow {
        if self.check_open().is_err() || !self.is_fresh() || self.source().is_some() {
            return ReadNow::WouldWait;
        }
        let Some(end) = offset.checked_add(buffer.len() as u64) else {
            return ReadNow::WouldWait;
        };
        match self.layout().map_one(ImageOffset(offset), buffer.len() as u64) {
            Some(extent) if end <= self.size_bytes() => self.own_now(extent, self.inner.read_snap, buffer),
            _ => ReadNow::WouldWait,
        }
    }

    /// Through an absent object from the parent. Whoever watches nothing must look whether the image still is there, and
    /// whoever reads a migration source whether the target has the object by now.
    fn parent_now(&self, header: &Header, extent: ObjectExtent, snap: SnapId, buffer: &mut [u8]) -> ReadNow {
        let overlap_bytes = header.parent_overlap_bytes(snap);
        if extent.image_offset.0 >= overlap_bytes {
            return ReadNow::Absent;
        }
        let inside = extent.image_offset.0 + buffer.len() as u64 <= overlap_bytes;
        match self.parent() {
            Some(parent) if inside && !self.inner.read_only && !self.copies_on_read() => {
                let found = parent.read_now(extent.image_offset.0, buffer);
                if found == ReadNow::Filled {
                    self.stats().parent_was_read(buffer.len() as u64);
                    // A shrink may have removed what hid the parent.
                    if !self.is_fresh() {
                        return ReadNow::WouldWait;
                    }
                }
                found
            }
            _ => ReadNow::WouldWait,
        }
    }

    /// From the object if it is complete, from the source if it is not.
    fn through_now(
        &self,
        header: &Header,
        source: &MigrationSource,
        extent: ObjectExtent,
        snap: SnapId,
        buffer: &mut [u8],
    ) -> ReadNow {
        match source.is_complete_now(self, extent.object_no) {
            Some(true) => {
                // An absent one still shows the source.
                return match self.own_now(extent, snap, buffer) {
                    ReadNow::Filled => ReadNow::Filled,
                    ReadNow::Absent | ReadNow::WouldWait => ReadNow::WouldWait,
                };
            }
            Some(false) => {}
            None => return ReadNow::WouldWait,
        }
        let shown = source.view(header, snap);
        let Some((below, overlap)) = shown else {
            return ReadNow::WouldWait;
        };
        let end = extent.image_offset.0 + buffer.len() as u64;
        // A snapshot that only the target has needs a look at the header behind the read, and so does a head that nobody tells of a
        // commit.
        let looks_behind = match snap.is_head() {
            true => self.looks_for_itself(),
            false => below.is_head(),
        };
        if end > overlap || looks_behind {
            return ReadNow::WouldWait;
        }
        let found = source.image().read_now_at(extent.image_offset.0, buffer, below);
        // What is absent may have been removed under us by a commit; then the object is complete by now.
        let is_gone = || source.is_complete_now(self, extent.object_no) != Some(false);
        match found {
            ReadNow::WouldWait => return ReadNow::WouldWait,
            ReadNow::Absent if is_gone() => return ReadNow::WouldWait,
            ReadNow::Filled | ReadNow::Absent => {}
        }
        self.stats().source_was_read(buffer.len() as u64);
        found
    }

    /// Whether something may have to be copied into the object before it is written to, from a migration source or a parent.
    pub(crate) fn may_need_copy(&self, header: &Header, object_no: ObjectNo) -> bool {
        let may_show_source = self
            .source()
            .is_some_and(|source| source.covers(self, object_no) && !self.inner.complete.contains(object_no));
        may_show_source
            || header.parent.is_some()
                && !self.inner.present.contains(object_no)
                && object_no.0 < self.layout().object_count(header.largest_parent_overlap_bytes())
    }

    /// Writes `data` at `offset`, buffered; false when that would have to wait, or cannot be done: then [`Image::write`]
    /// does it, or tells why not.
    pub fn write_now(&self, offset: u64, data: &[u8]) -> bool {
        let _client = self.inner.activity.begin();
        if !self.is_settled(offset, data.len() as u64) {
            return false;
        }
        let Some(_guard) = self.begin_write_now() else {
            return false;
        };
        let header = self.header();
        let length_bytes = data.len() as u64;
        if offset
            .checked_add(length_bytes)
            .is_none_or(|end| end > header.size_bytes)
        {
            return false;
        }
        let Some(extent) = self.layout().map_one(ImageOffset(offset), length_bytes) else {
            return false;
        };
        if self.may_need_copy(&header, extent.object_no)
            || !crate::object_map::mark::is_marked(self, extent.object_no)
        {
            return false;
        }
        let object = self.data_object(extent.object_no.0);
        let _changing = self.changing(offset, length_bytes);
        self.inner
            .data_io
            .write_now(&object, &header.snapc, extent.offset.0, data)
    }
}
