//! Copies that the engine makes itself: bytes are staged in a file of the target's pool, then one transaction makes that
//! file the layer of a new head.
//!
//! Keeps invariant: one slot at a time (the source's, shared, while its bytes are staged; then the target's). A staged
//! file without a row is removed when it is given up, or collected like every file of a dead client.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ferry_store::class::CallContext;
use ferry_store::{CopyReply, Durability, Errno, Result, SnapContext, SnapId, StoreError, WriteOp};

use super::change::{Edit, FileEdit};
use super::key::ObjectKey;
use super::layers::{NewLayer, UNBORN};
use super::schema::OBJECT_BYTES_MAX;
use super::{Place, Pool};
use crate::disk::DiskFile;
use crate::disk::copy::{copy_range, start_writing};
use crate::object::bitmap::Bitmap;
use crate::object::data::Bulk;
use crate::object::plan::{Change, Judge};
use crate::object::rows::{Body, Layer, Object};
use crate::object::view::View;

/// A range of one object to be copied.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Piece {
    /// First byte in the object that is read.
    pub(crate) offset: u64,
    /// Length in bytes.
    pub(crate) length_bytes: u64,
    /// First byte in the copy.
    pub(crate) target_offset: u64,
}

/// What was staged.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Given {
    /// End of the last byte.
    pub(crate) size_bytes: u64,
    /// Bytes that are no holes.
    pub(crate) data_bytes: u64,
}

impl Given {
    /// Both together.
    pub(crate) fn and(self, other: Given) -> Given {
        Given {
            size_bytes: self.size_bytes.max(other.size_bytes),
            data_bytes: self.data_bytes + other.data_bytes,
        }
    }
}

/// A data file that no row names yet; removed when it is dropped before it was installed.
#[derive(Debug)]
pub(crate) struct Staged {
    pool: Arc<Pool>,
    name: String,
    file: Arc<dyn DiskFile>,
    /// Whether a row may name it now.
    installed: AtomicBool,
}

impl Drop for Staged {
    fn drop(&mut self) {
        if !self.installed.load(Ordering::Relaxed) {
            self.pool.discard(&self.name);
        }
    }
}

impl Pool {
    /// An empty file to stage a copy in.
    pub(crate) fn stage(self: &Arc<Self>) -> Result<Staged> {
        self.register_creator()?;
        let (name, file) = self.files.create()?;
        Ok(Staged {
            pool: self.clone(),
            name,
            file,
            installed: AtomicBool::new(false),
        })
    }

    /// Puts ranges of an object at `snap` into a staged file, of this or another pool. `None`: to be run again under the
    /// exclusive hold. Only under a hold of the object that is read.
    pub(crate) fn give(
        &self,
        key: &ObjectKey,
        snap: SnapId,
        pieces: &[Piece],
        to: &Staged,
        exclusive: bool,
    ) -> Result<Option<Given>> {
        let Some(object) = self.load(key, exclusive)? else {
            return Ok(None);
        };
        let place = || format!("copy from pool {} {key} at {snap}", self.id);
        let object = object.as_deref();
        let found = object.and_then(|object| Some((object, object.at(snap)?)));
        let (object, body) = found.ok_or_else(|| StoreError::new(Errno::ENOENT, place()))?;
        let view = View::new(&self.db, &self.files, Some(object), Some(body))?;
        let size_bytes = view.size_bytes();
        let mut given = Given::default();
        for piece in pieces {
            let end = piece.offset.saturating_add(piece.length_bytes).min(size_bytes);
            let Some(length_bytes) = end.checked_sub(piece.offset).filter(|length| *length > 0) else {
                continue;
            };
            if piece.target_offset.saturating_add(length_bytes) > OBJECT_BYTES_MAX {
                return Err(StoreError::new(Errno::EFBIG, place()));
            }
            let data_bytes = match body.layer {
                Some(lid) if pieces.len() == 1 && self.share_whole(object, lid, piece, end, to)? => {
                    self.data_bytes(object, lid, end)?
                }
                Some(lid) => self.give_bulk(object, lid, piece, end, to)?,
                None => give_inline(&view, piece, length_bytes, to)?,
            };
            given = given.and(Given {
                size_bytes: piece.target_offset + length_bytes,
                data_bytes,
            });
        }
        Ok(Some(given))
    }

    /// Shares all blocks of a file that holds the first `end` bytes of the object, if that is what is wanted and the file
    /// system can.
    fn share_whole(&self, object: &Object, lid: i64, piece: &Piece, end: u64, to: &Staged) -> Result<bool> {
        let itself = object.layer(lid).filter(|layer| !layer.chained);
        let Some(layer) = itself.filter(|_| piece.offset == 0 && piece.target_offset == 0) else {
            return Ok(false);
        };
        let from = self.files.open(&layer.file)?;
        let have = self.files.at(from.stat(), "read", &layer.file)?.size_bytes;
        let (from, target) = (self.files.path_of(&layer.file), to.pool.files.path_of(&to.name));
        if have < end || self.files.disk().clone_file(&from, &target).is_err() {
            return Ok(false);
        }
        if have > end {
            to.at(to.file.truncate(end), "resize")?;
        }
        Ok(true)
    }

    fn data_bytes(&self, object: &Object, lid: i64, end: u64) -> Result<u64> {
        let mut data_bytes = 0;
        Bulk::new(&self.files, object).parts(lid, 0, end, &mut |_, run| {
            data_bytes += run.length_bytes;
            Ok(())
        })?;
        Ok(data_bytes)
    }

    fn give_bulk(&self, object: &Object, lid: i64, piece: &Piece, end: u64, to: &Staged) -> Result<u64> {
        let mut data_bytes = 0;
        let bulk = Bulk::new(&self.files, object);
        bulk.parts(lid, piece.offset, end, &mut |layer, run| {
            let from = self.files.open(&layer.file)?;
            let at = piece.target_offset + (run.offset - piece.offset);
            // In one go, which also keeps the file together and lets a full disk refuse early.
            to.at(to.file.allocate(at, run.length_bytes), "reserve room in")?;
            let copied = copy_range(&*from, run.offset, &*to.file, at, run.length_bytes);
            let copied = self.files.at(copied, "copy", &layer.file)?;
            if copied < run.length_bytes {
                return Err(bulk.ends_early(layer, run.offset + copied));
            }
            data_bytes += copied;
            Ok(())
        })?;
        start_writing(&*to.file);
        Ok(data_bytes)
    }

    /// Makes a staged file the head of an object that has none. Only under the exclusive hold of the object.
    pub(crate) fn install(
        &self,
        key: &ObjectKey,
        snapc: &SnapContext,
        op: &WriteOp,
        context: &CallContext,
        staged: &Staged,
        given: Given,
    ) -> Result<CopyReply> {
        let place = Place {
            pool: self.id,
            key,
            action: "copy into",
        };
        let refused = |errno, why: &str| StoreError::new(errno, format!("{place}: {why}"));
        let cached = self.load_exclusive(key)?;
        let object = cached.as_deref();
        let head: Option<&Body> = object.and_then(|object| object.head.as_ref());
        let plan = {
            let view = View::new(&self.db, &self.files, object, head)?;
            let judge = Judge {
                registry: &self.registry,
                context,
                version: self.version_of(key, object),
                place: &place,
            };
            judge.plan(&view, op)?
        };
        if !plan.changes.is_empty() {
            return Err(refused(Errno::EINVAL, "a step changes the object"));
        }
        if head.is_some() {
            return Err(refused(Errno::EEXIST, "the object exists"));
        }
        let durable = op.durability != Durability::Buffered;
        if !durable && self.dirty.is_poisoned(key.namespace(), key.name()) {
            let why = "an earlier flush failed; reopen the store to write there again";
            return Err(refused(Errno::EIO, why));
        }
        let have = staged.at(staged.file.stat(), "read")?.size_bytes;
        if have != given.size_bytes {
            staged.at(staged.file.truncate(given.size_bytes), "resize")?;
        }
        if durable {
            staged.at(staged.file.sync_data(), "sync")?;
            self.files.sync_name(&staged.name)?;
        }
        let version = self.next_version()?;
        let edit = Edit {
            key: key.clone(),
            object: cached.clone(),
            size_before: 0,
            version_before: 0,
            clone: None,
            snap_seq: snapc.seq(),
            version,
            now: context.now,
            exists: true,
            size_bytes: given.size_bytes,
            bulk_if_new: true,
            changes: vec![Change::Create],
            copied: None,
        };
        let layer = Layer {
            lid: UNBORN,
            file: staged.name.clone(),
            parent: None,
            chained: false,
            covered_bytes: 0,
            map: Bitmap::default(),
            provisional: !durable,
        };
        let files = FileEdit {
            new: Some(NewLayer {
                layer,
                size_bytes: given.size_bytes,
            }),
            ..FileEdit::default()
        };
        staged.installed.store(true, Ordering::Relaxed);
        self.commit_change(edit, files)?;
        Ok(CopyReply {
            version,
            data_bytes: given.data_bytes,
        })
    }
}

impl Staged {
    fn at<T>(&self, result: std::io::Result<T>, action: &str) -> Result<T> {
        self.pool.files.at(result, action, &self.name)
    }
}

fn give_inline(view: &View<'_>, piece: &Piece, length_bytes: u64, to: &Staged) -> Result<u64> {
    let mut data_bytes = 0;
    for (at, data) in view.sparse_read(piece.offset, length_bytes)? {
        let write = to.file.write_at(&data, piece.target_offset + (at - piece.offset));
        to.at(write, "write")?;
        data_bytes += data.len() as u64;
    }
    Ok(data_bytes)
}
