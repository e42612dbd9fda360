//! Runs the steps of reads and writes on one object, and the class methods among them.
//!
//! A write is first drafted against the object as it is, then applied whole: a failing step leaves nothing to undo, and
//! what the methods may not see is not there to be seen.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::MAX_OBJECT_BYTES;
use super::object::{Content, Effect, Object};
use crate::class::{CallContext, ClassRegistry, ObjectHandle};
use crate::error::Errno;
use crate::op::{ReadOp, ReadReply, ReadResult, ReadStep, WriteOp, WriteStep};
use crate::types::SnapId;

/// A step's index, if one failed, and the errno.
pub(super) type Failed = (Option<usize>, Errno);

/// An object before an operation, and what the operation has done to it so far.
struct Draft<'a> {
    before: Option<&'a Content>,
    seq: Option<u64>,
    exists: bool,
    size_bytes: u64,
    writable: bool,
    effects: Vec<Effect>,
}

impl<'a> Draft<'a> {
    fn new(object: &'a Object, before: Option<&'a Content>) -> Self {
        Self {
            before,
            seq: object.seq(),
            exists: before.is_some(),
            size_bytes: before.map_or(0, |content| content.data.size_bytes()),
            writable: false,
            effects: Vec::new(),
        }
    }

    fn version(&self) -> u64 {
        self.before.map_or(0, |content| content.version)
    }

    fn assert_version(&self, version: u64) -> Result<(), Errno> {
        match self.version().cmp(&version) {
            std::cmp::Ordering::Greater => Err(Errno::ERANGE),
            std::cmp::Ordering::Less => Err(Errno::EOVERFLOW),
            std::cmp::Ordering::Equal => Ok(()),
        }
    }

    fn assert_exists(&self) -> Result<(), Errno> {
        if self.exists { Ok(()) } else { Err(Errno::ENOENT) }
    }

    fn compare_extent(&self, offset: u64, expected: &[u8]) -> Result<(), Errno> {
        let equal = match self.before {
            Some(content) => content.data.equals(offset, expected),
            None => expected.iter().all(|byte| *byte == 0),
        };
        if equal { Ok(()) } else { Err(Errno::EILSEQ) }
    }

    fn omap_compare(&self, key: &[u8], value: &[u8]) -> Result<(), Errno> {
        let found = self.omap_get(key)?.unwrap_or_default();
        if found == value {
            Ok(())
        } else {
            Err(Errno::ECANCELED)
        }
    }

    fn add(&mut self, effect: Effect) -> Result<(), Errno> {
        if !self.writable {
            return Err(Errno::EINVAL);
        }
        self.effects.push(effect);
        Ok(())
    }

    fn add_creating(&mut self, effect: Effect) -> Result<(), Errno> {
        self.add(effect)?;
        self.exists = true;
        Ok(())
    }

    fn remove_xattr(&mut self, name: &str) -> Result<(), Errno> {
        self.xattr_get(name)?.ok_or(Errno::ENODATA)?;
        self.add(Effect::XattrRemove(name.to_owned()))
    }

    fn call(
        &mut self,
        classes: &ClassRegistry,
        context: &CallContext,
        (class, method): (&'static str, &'static str),
        input: &[u8],
    ) -> Result<Bytes, Errno> {
        let may_write = self.writable;
        let method = classes.find(class, method)?;
        if method.writes && !may_write {
            return Err(Errno::EINVAL);
        }
        self.writable = method.writes;
        let output = (method.run)(context, self, input);
        self.writable = may_write;
        output.map(Bytes::from)
    }
}

fn end_of(offset: u64, length_bytes: u64) -> Result<u64, Errno> {
    let end = offset.checked_add(length_bytes).ok_or(Errno::EFBIG)?;
    if end > MAX_OBJECT_BYTES {
        Err(Errno::EFBIG)
    } else {
        Ok(end)
    }
}

impl ObjectHandle for Draft<'_> {
    fn exists(&self) -> bool {
        self.exists
    }

    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn snapset_seq(&self) -> Option<u64> {
        self.seq
    }

    fn read(&self, offset: u64, length_bytes: u64) -> Result<Bytes, Errno> {
        Ok(self
            .before
            .map(|content| content.data.read(offset, length_bytes))
            .unwrap_or_default())
    }

    fn omap_get(&self, key: &[u8]) -> Result<Option<Bytes>, Errno> {
        Ok(self.before.and_then(|content| content.omap.get(key)).cloned())
    }

    fn omap_list(
        &self,
        start_after: &[u8],
        prefix: &[u8],
        max: usize,
    ) -> Result<(BTreeMap<Bytes, Bytes>, bool), Errno> {
        Ok(self
            .before
            .map(|content| omap_page(content, start_after, prefix, max))
            .unwrap_or_default())
    }

    fn xattr_get(&self, name: &str) -> Result<Option<Bytes>, Errno> {
        Ok(self.before.and_then(|content| content.xattrs.get(name)).cloned())
    }

    fn create(&mut self, exclusive: bool) -> Result<(), Errno> {
        if exclusive && self.exists {
            return Err(Errno::EEXIST);
        }
        self.add_creating(Effect::Create)
    }

    fn write(&mut self, offset: u64, data: Bytes) -> Result<(), Errno> {
        let end = end_of(offset, data.len() as u64)?;
        if data.is_empty() {
            return self.add_creating(Effect::Create);
        }
        self.add_creating(Effect::Write(offset, data))?;
        self.size_bytes = self.size_bytes.max(end);
        Ok(())
    }

    fn write_full(&mut self, data: Bytes) -> Result<(), Errno> {
        let end = end_of(0, data.len() as u64)?;
        self.add_creating(Effect::WriteFull(data))?;
        self.size_bytes = end;
        Ok(())
    }

    fn zero(&mut self, offset: u64, length_bytes: u64) -> Result<(), Errno> {
        if self.exists {
            self.add(Effect::Zero(offset, length_bytes))
        } else {
            Ok(())
        }
    }

    fn truncate(&mut self, size_bytes: u64) -> Result<(), Errno> {
        if self.exists {
            end_of(size_bytes, 0)?;
            self.add(Effect::Truncate(size_bytes))?;
            self.size_bytes = size_bytes;
        }
        Ok(())
    }

    fn remove(&mut self) -> Result<(), Errno> {
        self.assert_exists()?;
        self.add(Effect::Remove)?;
        (self.exists, self.size_bytes) = (false, 0);
        Ok(())
    }

    fn omap_set(&mut self, key: Bytes, value: Bytes) -> Result<(), Errno> {
        self.add_creating(Effect::OmapSet([(key, value)].into()))
    }

    fn omap_remove(&mut self, key: Bytes) -> Result<(), Errno> {
        self.assert_exists()?;
        self.add(Effect::OmapRemove(vec![key]))
    }

    fn xattr_set(&mut self, name: &str, value: Bytes) -> Result<(), Errno> {
        self.add_creating(Effect::XattrSet(name.to_owned(), value))
    }
}

fn omap_page(
    content: &Content,
    start_after: &[u8],
    prefix: &[u8],
    max: usize,
) -> (BTreeMap<Bytes, Bytes>, bool) {
    let from = start_after.max(prefix);
    let mut matching = content
        .omap
        .range(Bytes::copy_from_slice(from)..)
        .take_while(|(key, _)| key.starts_with(prefix))
        .filter(|(key, _)| start_after.is_empty() || key.as_ref() > start_after);
    let page = matching
        .by_ref()
        .take(max)
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    (page, matching.next().is_some())
}

/// Finds out what a write does, without doing it.
pub(super) fn draft_write(
    object: &Object,
    classes: &ClassRegistry,
    context: &CallContext,
    op: WriteOp,
) -> Result<Vec<Effect>, Failed> {
    let mut draft = Draft::new(object, object.head());
    draft.writable = true;
    for (index, step) in op.steps.into_iter().enumerate() {
        let result = match step {
            WriteStep::Create { exclusive } => draft.create(exclusive),
            WriteStep::AssertExists => draft.assert_exists(),
            WriteStep::AssertVersion(version) => draft.assert_version(version),
            WriteStep::CompareExtent { offset, expected } => draft.compare_extent(offset, &expected),
            WriteStep::AllocHint { .. } => Ok(()),
            WriteStep::Write { offset, data } => draft.write(offset, data),
            WriteStep::WriteFull { data } => draft.write_full(data),
            WriteStep::Zero { offset, length_bytes } => draft.zero(offset, length_bytes),
            WriteStep::Truncate { size_bytes } => draft.truncate(size_bytes),
            WriteStep::Remove => draft.remove(),
            WriteStep::OmapSet(pairs) => draft.add_creating(Effect::OmapSet(pairs)),
            WriteStep::OmapRemove(keys) => draft
                .assert_exists()
                .and_then(|()| draft.add(Effect::OmapRemove(keys))),
            WriteStep::OmapCompare { key, value } => draft.omap_compare(&key, &value),
            WriteStep::SetXattr { name, value } => draft.add_creating(Effect::XattrSet(name, value)),
            WriteStep::RemoveXattr(name) => draft.remove_xattr(&name),
            WriteStep::Call { class, method, input } => {
                draft.call(classes, context, (class, method), &input).map(|_| ())
            }
        };
        result.map_err(|errno| (Some(index), errno))?;
    }
    Ok(draft.effects)
}

/// Runs a read.
pub(super) fn run_read(
    object: &Object,
    classes: &ClassRegistry,
    context: &CallContext,
    snap: SnapId,
    op: &ReadOp,
) -> Result<ReadReply, Failed> {
    let content = object.at(snap);
    let only_calls = op.steps.iter().all(|step| matches!(step, ReadStep::Call { .. }));
    if content.is_none() && !only_calls {
        return Err((None, Errno::ENOENT));
    }
    let mut draft = Draft::new(object, content);
    let mut results = Vec::with_capacity(op.steps.len());
    for (index, step) in op.steps.iter().enumerate() {
        let result = read_step(&mut draft, classes, context, step);
        results.push(result.map_err(|errno| (Some(index), errno))?);
    }
    Ok(ReadReply {
        results,
        version: draft.version(),
    })
}

fn read_step(
    draft: &mut Draft<'_>,
    classes: &ClassRegistry,
    context: &CallContext,
    step: &ReadStep,
) -> Result<ReadResult, Errno> {
    if let ReadStep::Call { class, method, input } = step {
        return Ok(ReadResult::Output(draft.call(
            classes,
            context,
            (class, method),
            input,
        )?));
    }
    let content = draft.before.ok_or(Errno::ENOENT)?;
    Ok(match step {
        ReadStep::AssertExists => ReadResult::Done,
        ReadStep::AssertVersion(version) => {
            draft.assert_version(*version)?;
            ReadResult::Done
        }
        ReadStep::CompareExtent { offset, expected } => {
            draft.compare_extent(*offset, expected)?;
            ReadResult::Done
        }
        ReadStep::Stat => ReadResult::Stat {
            size_bytes: content.data.size_bytes(),
            mtime: content.mtime,
        },
        ReadStep::Read { offset, length_bytes } => {
            ReadResult::Data(content.data.read(*offset, *length_bytes))
        }
        ReadStep::SparseRead { offset, length_bytes } => {
            ReadResult::Sparse(content.data.sparse_read(*offset, *length_bytes))
        }
        ReadStep::OmapGetVals {
            start_after,
            prefix,
            max,
        } => {
            let (values, more) = omap_page(content, start_after, prefix, *max);
            ReadResult::Omap { values, more }
        }
        ReadStep::OmapGetValsByKeys(keys) => {
            let pairs = keys.iter().filter_map(|key| content.omap.get_key_value(key));
            ReadResult::Omap {
                values: pairs.map(|(key, value)| (key.clone(), value.clone())).collect(),
                more: false,
            }
        }
        ReadStep::GetXattr(name) => {
            ReadResult::Xattr(content.xattrs.get(name).cloned().ok_or(Errno::ENODATA)?)
        }
        ReadStep::GetXattrs => ReadResult::Xattrs(content.xattrs.clone()),
        ReadStep::Call { .. } => return Err(Errno::EINVAL),
    })
}
