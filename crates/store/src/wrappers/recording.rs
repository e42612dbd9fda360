//! A store that writes down each operation and its answer, for tests that ask what was done, and in what order.

use std::collections::VecDeque;
use std::fmt::{self, Write as _};
use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;

use super::{Call, Hook, OpKind, Wrapper};
use crate::Store;
use crate::error::{Errno, Result, StoreError};
use crate::op::{CopyRange, ReadOp, ReadResult, ReadStep, WriteOp, WriteStep};

/// A store with a [`Recorder`].
pub type RecordingStore = Wrapper<Recorder>;

/// Steps that a summary of an operation shows.
const MOST_STEPS_SHOWN: usize = 16;

/// One operation that has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Place in the order in which operations began, from 0.
    pub begun: u64,
    /// The method.
    pub kind: OpKind,
    /// Namespace of the object; empty for the default one and for calls without.
    pub namespace: String,
    /// Name of the object or pool, or prefix of the objects.
    pub name: String,
    /// The arguments, for people: sizes instead of bytes.
    pub arguments: String,
    /// The answer in the same way, or the errno.
    pub result: Result<String, Errno>,
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} '{}' {} -> ", self.kind, self.name, self.arguments)?;
        match &self.result {
            Ok(answer) => f.write_str(answer),
            Err(errno) => write!(f, "{errno:?}"),
        }
    }
}

/// The newest operations, in the order in which they ended.
#[derive(Debug)]
pub struct Recorder {
    most: usize,
    log: Mutex<Log>,
}

#[derive(Debug, Default)]
struct Log {
    records: VecDeque<Record>,
    begun: u64,
    dropped: u64,
}

impl RecordingStore {
    /// Wraps a store and keeps the newest `most` operations.
    pub fn new(inner: Arc<dyn Store>, most: usize) -> Arc<Self> {
        let log = Mutex::default();
        Self::with_hook(inner, Recorder { most, log })
    }
}

impl Recorder {
    /// The operations, in the order in which they ended.
    pub fn records(&self) -> Vec<Record> {
        self.log.lock().records.iter().cloned().collect()
    }

    /// How many of one kind there are.
    pub fn count(&self, kind: OpKind) -> usize {
        self.log
            .lock()
            .records
            .iter()
            .filter(|record| record.kind == kind)
            .count()
    }

    /// Operations that were forgotten because there were too many.
    pub fn dropped(&self) -> u64 {
        self.log.lock().dropped
    }

    /// Forgets all.
    pub fn clear(&self) {
        self.log.lock().records.clear();
    }
}

#[async_trait]
impl Hook for Recorder {
    const DETAILED: bool = true;
    type Token = u64;

    async fn before(&self, _: &Call<'_>) -> Result<u64> {
        let mut log = self.log.lock();
        log.begun += 1;
        Ok(log.begun - 1)
    }

    async fn after(&self, call: &Call<'_>, begun: u64, result: Result<String, &StoreError>) -> Result<()> {
        let record = Record {
            begun,
            kind: call.kind,
            namespace: call
                .scope
                .map(|scope| scope.namespace.to_string())
                .unwrap_or_default(),
            name: call.name.to_owned(),
            arguments: call.arguments.clone(),
            result: result.map_err(|error| error.errno),
        };
        let mut log = self.log.lock();
        log.records.push_back(record);
        while log.records.len() > self.most {
            log.records.pop_front();
            log.dropped += 1;
        }
        Ok(())
    }
}

fn joined<T>(items: &[T], tell: impl Fn(&T) -> String) -> String {
    let shown: Vec<_> = items.iter().take(MOST_STEPS_SHOWN).map(tell).collect();
    let mut text = shown.join(", ");
    if items.len() > MOST_STEPS_SHOWN {
        // Writing to a string cannot fail.
        let _ = write!(text, ", and {} more", items.len() - MOST_STEPS_SHOWN);
    }
    text
}

/// The steps of a write in a few words.
pub(super) fn write_steps(op: &WriteOp) -> String {
    joined(&op.steps, |step| match step {
        WriteStep::Create { exclusive: true } => "create exclusively".to_owned(),
        WriteStep::Create { exclusive: false } => "create".to_owned(),
        WriteStep::AssertExists => "assert_exists".to_owned(),
        WriteStep::AssertVersion(version) => format!("assert_version {version}"),
        WriteStep::CompareExtent { offset, expected } => format!("cmpext {offset}~{}", expected.len()),
        WriteStep::AllocHint {
            object_size_bytes, ..
        } => format!("alloc_hint {object_size_bytes}"),
        WriteStep::Write { offset, data } => format!("write {offset}~{}", data.len()),
        WriteStep::WriteFull { data } => format!("write_full {}", data.len()),
        WriteStep::Zero { offset, length_bytes } => format!("zero {offset}~{length_bytes}"),
        WriteStep::Truncate { size_bytes } => format!("truncate {size_bytes}"),
        WriteStep::Remove => "remove".to_owned(),
        WriteStep::OmapSet(pairs) => format!("omap_set {} keys", pairs.len()),
        WriteStep::OmapRemove(keys) => format!("omap_remove {} keys", keys.len()),
        WriteStep::OmapCompare { key, .. } => format!("omap_cmp '{}'", key.escape_ascii()),
        WriteStep::SetXattr { name, .. } => format!("setxattr {name}"),
        WriteStep::RemoveXattr(name) => format!("rmxattr {name}"),
        WriteStep::Call { class, method, input } => format!("call {class}.{method} {}", input.len()),
    })
}

/// The ranges of a copy in a few words.
pub(super) fn copy_ranges(ranges: &[CopyRange<'_>]) -> String {
    joined(ranges, |range| {
        format!(
            "'{}' at {} {}~{} to {}",
            range.object.name, range.snap, range.offset, range.length_bytes, range.target_offset
        )
    })
}

/// The steps of a read in a few words.
pub(super) fn read_steps(op: &ReadOp) -> String {
    joined(&op.steps, |step| match step {
        ReadStep::AssertExists => "assert_exists".to_owned(),
        ReadStep::AssertVersion(version) => format!("assert_version {version}"),
        ReadStep::CompareExtent { offset, expected } => format!("cmpext {offset}~{}", expected.len()),
        ReadStep::Stat => "stat".to_owned(),
        ReadStep::Read { offset, length_bytes } => format!("read {offset}~{length_bytes}"),
        ReadStep::SparseRead { offset, length_bytes } => format!("sparse_read {offset}~{length_bytes}"),
        ReadStep::OmapGetVals { max, .. } => format!("omap_get_vals {max}"),
        ReadStep::OmapGetValsByKeys(keys) => format!("omap_get_vals_by_keys {}", keys.len()),
        ReadStep::GetXattr(name) => format!("getxattr {name}"),
        ReadStep::GetXattrs => "getxattrs".to_owned(),
        ReadStep::Call { class, method, input } => format!("call {class}.{method} {}", input.len()),
    })
}

/// The results of a read in a few words.
pub(super) fn results(results: &[ReadResult]) -> String {
    joined(results, |result| match result {
        ReadResult::Done => "done".to_owned(),
        ReadResult::Stat { size_bytes, .. } => format!("size {size_bytes}"),
        ReadResult::Data(data) => format!("{} bytes", data.len()),
        ReadResult::Sparse(runs) => format!("{} runs", runs.len()),
        ReadResult::Omap { values, more } => format!("{} pairs, more: {more}", values.len()),
        ReadResult::Xattr(value) => format!("{} bytes", value.len()),
        ReadResult::Xattrs(values) => format!("{} xattrs", values.len()),
        ReadResult::Output(output) => format!("{} bytes", output.len()),
    })
}
