//! What an operation comes to: steps judged one by one against the object, changes collected, nothing done yet.
//!
//! The visibility rule is the contract's: class methods and comparisons see data, omap and xattrs as before the
//! operation; existence and size reflect the steps so far. A failing step fails the operation before anything changed.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use ferry_store::class::{CallContext, ClassRegistry, ObjectHandle};
use ferry_store::{Errno, ReadOp, ReadResult, ReadStep, Result, StoreError, WriteOp, WriteStep};

use super::data::DataStep;
use super::view::View;
use crate::pool::Place;
use crate::pool::schema::OBJECT_BYTES_MAX;

/// One thing that a write does to the head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    /// Makes it exist.
    Create,
    /// Changes bytes; the object exists.
    Data(DataStep),
    /// Replaces all bytes; the object exists.
    Replace(Bytes),
    /// Removes it.
    Remove,
    /// Sets omap pairs.
    OmapSet(BTreeMap<Bytes, Bytes>),
    /// Removes omap keys.
    OmapRemove(Vec<Bytes>),
    /// Sets an xattr.
    SetXattr(String, Bytes),
    /// Removes an xattr.
    RemoveXattr(String),
}

/// The changes of a write, in order. `Create` stands before the first change of an object that was missing.
#[derive(Debug)]
pub(crate) struct Plan {
    /// In order; empty when the write only asserts.
    pub(crate) changes: Vec<Change>,
    /// Whether an object made here is to hold bulk data.
    pub(crate) bulk_hint: bool,
    /// Whether the head exists afterwards.
    pub(crate) exists: bool,
    /// Size of the head afterwards.
    pub(crate) size_bytes: u64,
}

/// What planning needs to know besides the object.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Judge<'a> {
    /// For class calls.
    pub(crate) registry: &'a ClassRegistry,
    /// For class calls.
    pub(crate) context: &'a CallContext,
    /// Version of the head, 0 when absent.
    pub(crate) version: u64,
    /// For error messages.
    pub(crate) place: &'a Place<'a>,
}

struct Draft<'v, 'a> {
    view: &'v View<'a>,
    changes: Vec<Change>,
    exists: bool,
    size_bytes: u64,
    /// Xattrs set by earlier steps: their removal is no error.
    new_xattrs: BTreeSet<String>,
    failure: RefCell<Option<StoreError>>,
}

impl Judge<'_> {
    /// Judges a write.
    pub(crate) fn plan(&self, view: &View<'_>, op: &WriteOp) -> Result<Plan> {
        let mut draft = Draft {
            view,
            changes: Vec::new(),
            exists: view.exists(),
            size_bytes: view.size_bytes(),
            new_xattrs: BTreeSet::new(),
            failure: RefCell::new(None),
        };
        let mut bulk_hint = false;
        for (index, step) in op.steps.iter().enumerate() {
            bulk_hint |= matches!(step, WriteStep::AllocHint { .. });
            if let Err(errno) = self.step(&mut draft, step) {
                return Err(self.failed(errno, draft.failure.take(), index));
            }
        }
        Ok(Plan {
            changes: draft.changes,
            bulk_hint,
            exists: draft.exists,
            size_bytes: draft.size_bytes,
        })
    }

    fn failed(&self, errno: Errno, cause: Option<StoreError>, index: usize) -> StoreError {
        let what = match cause {
            Some(cause) if cause.errno == errno => format!("{}: {}", self.place, cause.what),
            _ => self.place.to_string(),
        };
        StoreError::at_step(errno, what, index)
    }

    fn step(&self, draft: &mut Draft<'_, '_>, step: &WriteStep) -> Result<(), Errno> {
        match step {
            WriteStep::Create { exclusive } => draft.create(*exclusive),
            WriteStep::AssertExists => ensure(draft.exists, Errno::ENOENT),
            WriteStep::AssertVersion(version) => self.assert_version(*version),
            WriteStep::CompareExtent { offset, expected } => {
                let equal = draft.seen(draft.view.equals(*offset, expected))?;
                ensure(equal, Errno::EILSEQ)
            }
            WriteStep::AllocHint { .. } => Ok(()),
            WriteStep::Write { offset, data } => draft.write(*offset, data.clone()),
            WriteStep::WriteFull { data } => draft.write_full(data.clone()),
            WriteStep::Zero { offset, length_bytes } => draft.zero(*offset, *length_bytes),
            WriteStep::Truncate { size_bytes } => draft.truncate(*size_bytes),
            WriteStep::Remove => draft.remove(),
            WriteStep::OmapSet(pairs) => {
                draft.make();
                draft.changes.push(Change::OmapSet(pairs.clone()));
                Ok(())
            }
            WriteStep::OmapRemove(keys) => {
                ensure(draft.exists, Errno::ENOENT)?;
                draft.changes.push(Change::OmapRemove(keys.clone()));
                Ok(())
            }
            WriteStep::OmapCompare { key, value } => {
                let have = draft.seen(draft.view.omap_get(key))?.unwrap_or_default();
                ensure(have == *value, Errno::ECANCELED)
            }
            WriteStep::SetXattr { name, value } => draft.xattr_set(name, value.clone()),
            WriteStep::RemoveXattr(name) => {
                let known =
                    draft.new_xattrs.remove(name) || draft.seen(draft.view.xattr_get(name))?.is_some();
                ensure(draft.exists && known, Errno::ENODATA)?;
                draft.changes.push(Change::RemoveXattr(name.clone()));
                Ok(())
            }
            WriteStep::Call { class, method, input } => {
                let method = self.registry.find(class, method)?;
                (method.run)(self.context, draft, input).map(|_| ())
            }
        }
    }

    fn assert_version(&self, asserted: u64) -> Result<(), Errno> {
        match self.version.cmp(&asserted) {
            std::cmp::Ordering::Greater => Err(Errno::ERANGE),
            std::cmp::Ordering::Less => Err(Errno::EOVERFLOW),
            std::cmp::Ordering::Equal => Ok(()),
        }
    }

    /// Runs a read.
    pub(crate) fn read(&self, view: &View<'_>, op: &ReadOp) -> Result<Vec<ReadResult>> {
        let mut results = Vec::with_capacity(op.steps.len());
        let only_calls = op.steps.iter().all(|step| matches!(step, ReadStep::Call { .. }));
        if !view.exists() && (!only_calls || op.steps.is_empty()) {
            return Err(StoreError::new(Errno::ENOENT, self.place.to_string()));
        }
        for (index, step) in op.steps.iter().enumerate() {
            let cause = RefCell::new(None);
            match self.read_step(view, step, &cause) {
                Ok(result) => results.push(result),
                Err(errno) => return Err(self.failed(errno, cause.take(), index)),
            }
        }
        Ok(results)
    }

    fn read_step(
        &self,
        view: &View<'_>,
        step: &ReadStep,
        cause: &RefCell<Option<StoreError>>,
    ) -> Result<ReadResult, Errno> {
        Ok(match step {
            ReadStep::AssertExists => ReadResult::Done,
            ReadStep::AssertVersion(version) => {
                self.assert_version(*version)?;
                ReadResult::Done
            }
            ReadStep::CompareExtent { offset, expected } => {
                ensure(keep(cause, view.equals(*offset, expected))?, Errno::EILSEQ)?;
                ReadResult::Done
            }
            ReadStep::Stat => ReadResult::Stat {
                size_bytes: view.size_bytes(),
                mtime: keep(cause, view.mtime())?,
            },
            ReadStep::Read { offset, length_bytes } => {
                ReadResult::Data(keep(cause, view.read(*offset, *length_bytes))?)
            }
            ReadStep::SparseRead { offset, length_bytes } => {
                ReadResult::Sparse(keep(cause, view.sparse_read(*offset, *length_bytes))?)
            }
            ReadStep::OmapGetVals {
                start_after,
                prefix,
                max,
            } => {
                let (values, more) = keep(cause, view.omap_list(start_after, prefix, *max))?;
                ReadResult::Omap { values, more }
            }
            ReadStep::OmapGetValsByKeys(keys) => {
                let mut values = BTreeMap::new();
                for key in keys {
                    if let Some(value) = keep(cause, view.omap_get(key))? {
                        values.insert(key.clone(), value);
                    }
                }
                ReadResult::Omap { values, more: false }
            }
            ReadStep::GetXattr(name) => {
                ReadResult::Xattr(keep(cause, view.xattr_get(name))?.ok_or(Errno::ENODATA)?)
            }
            ReadStep::GetXattrs => ReadResult::Xattrs(keep(cause, view.xattrs())?),
            ReadStep::Call { class, method, input } => {
                let method = self.registry.find(class, method)?;
                ensure(!method.writes, Errno::EINVAL)?;
                let mut draft = Draft {
                    view,
                    changes: Vec::new(),
                    exists: view.exists(),
                    size_bytes: view.size_bytes(),
                    new_xattrs: BTreeSet::new(),
                    failure: RefCell::new(None),
                };
                let output = (method.run)(self.context, &mut draft, input);
                *cause.borrow_mut() = draft.failure.take();
                let output = output?;
                // A method registered as reading that writes is a mistake of its class.
                ensure(draft.changes.is_empty(), Errno::EINVAL)?;
                ReadResult::Output(output.into())
            }
        })
    }
}

fn ensure(holds: bool, errno: Errno) -> Result<(), Errno> {
    holds.then_some(()).ok_or(errno)
}

/// Keeps the whole error for the message, hands on the errno.
fn keep<T>(cause: &RefCell<Option<StoreError>>, result: Result<T>) -> Result<T, Errno> {
    result.map_err(|error| {
        let errno = error.errno;
        *cause.borrow_mut() = Some(error);
        errno
    })
}

impl Draft<'_, '_> {
    fn seen<T>(&self, result: Result<T>) -> Result<T, Errno> {
        keep(&self.failure, result)
    }

    fn make(&mut self) {
        if !self.exists {
            self.exists = true;
            self.size_bytes = 0;
            self.changes.push(Change::Create);
        }
    }

    /// A change without effect on bytes: it counts for snapshots and versions all the same.
    fn touch(&mut self) {
        self.changes.push(Change::Data(DataStep::Zero {
            offset: 0,
            length_bytes: 0,
        }));
    }
}

/// End of a range, if an object may reach that far.
fn end_of(offset: u64, length_bytes: u64) -> Result<u64, Errno> {
    let end = offset.checked_add(length_bytes).ok_or(Errno::EFBIG)?;
    ensure(end <= OBJECT_BYTES_MAX, Errno::EFBIG)?;
    Ok(end)
}

impl ObjectHandle for Draft<'_, '_> {
    fn exists(&self) -> bool {
        self.exists
    }

    fn size_bytes(&self) -> u64 {
        match self.exists {
            true => self.size_bytes,
            false => 0,
        }
    }

    fn snapset_seq(&self) -> Option<u64> {
        self.view.object().map(|object| object.snap_seq)
    }

    fn read(&self, offset: u64, length_bytes: u64) -> Result<Bytes, Errno> {
        self.seen(self.view.read(offset, length_bytes))
    }

    fn omap_get(&self, key: &[u8]) -> Result<Option<Bytes>, Errno> {
        self.seen(self.view.omap_get(key))
    }

    fn omap_list(
        &self,
        start_after: &[u8],
        prefix: &[u8],
        max: usize,
    ) -> Result<(BTreeMap<Bytes, Bytes>, bool), Errno> {
        self.seen(self.view.omap_list(start_after, prefix, max))
    }

    fn xattr_get(&self, name: &str) -> Result<Option<Bytes>, Errno> {
        self.seen(self.view.xattr_get(name))
    }

    fn create(&mut self, exclusive: bool) -> Result<(), Errno> {
        ensure(!(exclusive && self.exists), Errno::EEXIST)?;
        self.make();
        self.touch();
        Ok(())
    }

    fn write(&mut self, offset: u64, data: Bytes) -> Result<(), Errno> {
        let end = end_of(offset, data.len() as u64)?;
        self.make();
        if data.is_empty() {
            self.touch();
            return Ok(());
        }
        self.changes.push(Change::Data(DataStep::Write { offset, data }));
        self.size_bytes = self.size_bytes.max(end);
        Ok(())
    }

    fn write_full(&mut self, data: Bytes) -> Result<(), Errno> {
        let end = end_of(0, data.len() as u64)?;
        self.make();
        self.size_bytes = end;
        self.changes.push(Change::Replace(data));
        Ok(())
    }

    fn zero(&mut self, offset: u64, length_bytes: u64) -> Result<(), Errno> {
        if self.exists {
            // Also a range outside the object is a change as far as snapshots and versions go.
            let end = offset.saturating_add(length_bytes).min(self.size_bytes);
            let offset = offset.min(end);
            let length_bytes = end - offset;
            self.changes
                .push(Change::Data(DataStep::Zero { offset, length_bytes }));
        }
        Ok(())
    }

    fn truncate(&mut self, size_bytes: u64) -> Result<(), Errno> {
        end_of(size_bytes, 0)?;
        if self.exists {
            self.size_bytes = size_bytes;
            self.changes.push(Change::Data(DataStep::Truncate { size_bytes }));
        }
        Ok(())
    }

    fn remove(&mut self) -> Result<(), Errno> {
        ensure(self.exists, Errno::ENOENT)?;
        self.exists = false;
        self.size_bytes = 0;
        self.new_xattrs.clear();
        self.changes.push(Change::Remove);
        Ok(())
    }

    fn omap_set(&mut self, key: Bytes, value: Bytes) -> Result<(), Errno> {
        self.make();
        self.changes.push(Change::OmapSet([(key, value)].into()));
        Ok(())
    }

    fn omap_remove(&mut self, key: Bytes) -> Result<(), Errno> {
        ensure(self.exists, Errno::ENOENT)?;
        self.changes.push(Change::OmapRemove(vec![key]));
        Ok(())
    }

    fn xattr_set(&mut self, name: &str, value: Bytes) -> Result<(), Errno> {
        self.make();
        self.new_xattrs.insert(name.to_owned());
        self.changes.push(Change::SetXattr(name.to_owned(), value));
        Ok(())
    }
}
