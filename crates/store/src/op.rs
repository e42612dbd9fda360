//! The atomic lists of steps that a store runs: [`ReadOp`] and [`WriteOp`], and what they give back.
//!
//! Both are plain values, so engines interpret them, wrappers record and replay them, and tests compare them.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::error::Errno;
use crate::types::{ObjectRef, SnapId, Timestamp};

/// One step of a read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReadStep {
    /// `ENOENT` unless the object exists.
    AssertExists,
    /// `ERANGE` if the object's version is newer, `EOVERFLOW` if it is older.
    AssertVersion(u64),
    /// `EILSEQ` unless the bytes at `offset` equal `expected` (bytes past the end count as zero).
    CompareExtent {
        /// First byte.
        offset: u64,
        /// What must be there.
        expected: Bytes,
    },
    /// Size and modification time.
    Stat,
    /// Bytes; short when the object ends before.
    Read {
        /// First byte.
        offset: u64,
        /// Length in bytes.
        length_bytes: u64,
    },
    /// Bytes without holes: runs that the engine knows to be unallocated are left out. An engine may answer with one
    /// run that holds everything.
    SparseRead {
        /// First byte.
        offset: u64,
        /// Length in bytes.
        length_bytes: u64,
    },
    /// Up to `max` omap pairs after `start_after` whose keys start with `prefix`.
    OmapGetVals {
        /// Exclusive start.
        start_after: Bytes,
        /// Key prefix.
        prefix: Bytes,
        /// Most pairs to give.
        max: usize,
    },
    /// The omap pairs of these keys that exist.
    OmapGetValsByKeys(Vec<Bytes>),
    /// One xattr; `ENODATA` without it.
    GetXattr(String),
    /// All xattrs.
    GetXattrs,
    /// An object-class method that reads.
    Call {
        /// Class name.
        class: &'static str,
        /// Method name.
        method: &'static str,
        /// Encoded input.
        input: Bytes,
    },
}

/// What one read step gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReadResult {
    /// Steps that only assert.
    Done,
    /// [`ReadStep::Stat`].
    Stat {
        /// Size in bytes.
        size_bytes: u64,
        /// Time of the last change.
        mtime: Timestamp,
    },
    /// [`ReadStep::Read`].
    Data(Bytes),
    /// [`ReadStep::SparseRead`]: offset and bytes of each run, ascending.
    Sparse(Vec<(u64, Bytes)>),
    /// Omap pairs, and whether more follow.
    Omap {
        /// Pairs.
        values: BTreeMap<Bytes, Bytes>,
        /// More pairs match.
        more: bool,
    },
    /// [`ReadStep::GetXattr`].
    Xattr(Bytes),
    /// [`ReadStep::GetXattrs`].
    Xattrs(BTreeMap<String, Bytes>),
    /// [`ReadStep::Call`].
    Output(Bytes),
}

/// An atomic read: steps in order, all at one snapshot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReadOp {
    /// The steps.
    pub steps: Vec<ReadStep>,
}

impl ReadOp {
    /// No steps yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a step.
    pub fn step(mut self, step: ReadStep) -> Self {
        self.steps.push(step);
        self
    }

    /// Adds [`ReadStep::Stat`].
    pub fn stat(self) -> Self {
        self.step(ReadStep::Stat)
    }

    /// Adds [`ReadStep::Read`].
    pub fn read(self, offset: u64, length_bytes: u64) -> Self {
        self.step(ReadStep::Read { offset, length_bytes })
    }

    /// Adds [`ReadStep::SparseRead`].
    pub fn sparse_read(self, offset: u64, length_bytes: u64) -> Self {
        self.step(ReadStep::SparseRead { offset, length_bytes })
    }

    /// Adds [`ReadStep::Call`].
    pub fn call(self, class: &'static str, method: &'static str, input: impl Into<Bytes>) -> Self {
        self.step(ReadStep::Call {
            class,
            method,
            input: input.into(),
        })
    }
}

/// What a read gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadReply {
    /// One result per step.
    pub results: Vec<ReadResult>,
    /// Version of the object that was read: grows with each change of the head; equal versions mean equal contents.
    /// 0 when the object does not exist.
    pub version: u64,
}

impl ReadReply {
    /// Output of the class call at `step`; empty if that step was none.
    pub fn output(&self, step: usize) -> &[u8] {
        match self.results.get(step) {
            Some(ReadResult::Output(bytes)) => bytes,
            _ => &[],
        }
    }

    /// Bytes of the read at `step`; empty if that step was none.
    pub fn data(&self, step: usize) -> Bytes {
        match self.results.get(step) {
            Some(ReadResult::Data(bytes)) => bytes.clone(),
            _ => Bytes::new(),
        }
    }
}

/// One step of a write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WriteStep {
    /// Creates the object; with `exclusive`, `EEXIST` if it exists.
    Create {
        /// Fail if it exists.
        exclusive: bool,
    },
    /// `ENOENT` unless the object exists.
    AssertExists,
    /// As [`ReadStep::AssertVersion`].
    AssertVersion(u64),
    /// As [`ReadStep::CompareExtent`].
    CompareExtent {
        /// First byte.
        offset: u64,
        /// What must be there.
        expected: Bytes,
    },
    /// Says that the object will hold bulk data, and how large it and its writes are expected to be. Changes no content;
    /// an engine may store objects created by an operation with this step in another way. Creates nothing by itself.
    AllocHint {
        /// Expected size of the object.
        object_size_bytes: u64,
        /// Expected size of writes.
        write_size_bytes: u64,
    },
    /// Writes bytes, extending the object as needed. Empty `data` at 0 creates an empty object.
    Write {
        /// First byte.
        offset: u64,
        /// The bytes.
        data: Bytes,
    },
    /// Replaces the whole content.
    WriteFull {
        /// The bytes.
        data: Bytes,
    },
    /// Makes a range read as zero, clipped to the object's size; releases space. Does not create.
    /// A range that reaches the object's end may cut the object off where the range begins, and one that begins behind the
    /// end may then change nothing at all: an OSD does so.
    Zero {
        /// First byte.
        offset: u64,
        /// Length in bytes.
        length_bytes: u64,
    },
    /// Sets the size; grown parts read as zero. Does not create.
    Truncate {
        /// New size.
        size_bytes: u64,
    },
    /// Removes the head (clones stay). `ENOENT` without it. An engine may refuse a second one in an operation with
    /// `EOPNOTSUPP`: an OSD brings old bytes back.
    Remove,
    /// Sets omap pairs.
    OmapSet(BTreeMap<Bytes, Bytes>),
    /// Removes omap keys; missing ones are fine. `ENOENT` if the object does not exist.
    OmapRemove(Vec<Bytes>),
    /// `ECANCELED` unless the key has this value (a missing key equals an empty value).
    OmapCompare {
        /// Key.
        key: Bytes,
        /// Value it must have.
        value: Bytes,
    },
    /// Sets an xattr.
    SetXattr {
        /// Name.
        name: String,
        /// Value.
        value: Bytes,
    },
    /// Removes an xattr. Without it `ENODATA`, or nothing happens (an OSD does not mind).
    RemoveXattr(String),
    /// An object-class method.
    Call {
        /// Class name.
        class: &'static str,
        /// Method name.
        method: &'static str,
        /// Encoded input.
        input: Bytes,
    },
}

impl WriteStep {
    /// Bytes of the object's content that it brings.
    pub(crate) fn data_bytes(&self) -> u64 {
        match self {
            Self::Write { data, .. } | Self::WriteFull { data } => data.len() as u64,
            _ => 0,
        }
    }
}

/// What a write promises when it returns; see [`crate::Store`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// Atomic and durable across power loss.
    #[default]
    Full,
    /// Durable after the next flush; survives the process. An object that such a write makes is after a power loss absent
    /// or whole.
    Buffered,
    /// For keys, xattrs and bytes of objects that are not bulk, which say something about what is written next. Atomic;
    /// visible at once; survives the process. After a power loss it is whole, or absent together with every operation of
    /// any client that began later and made, cloned or removed an object of the same pool, or changed its keys.
    /// It is never lost once such an operation is durable. Engines may do more.
    Ordered,
}

/// An atomic write: steps in order, all or none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WriteOp {
    /// The steps.
    pub steps: Vec<WriteStep>,
    /// What is promised at return.
    pub durability: Durability,
}

impl WriteOp {
    /// No steps yet, fully durable.
    pub fn new() -> Self {
        Self::default()
    }

    /// No steps yet, durable after the next flush.
    pub fn buffered() -> Self {
        Self {
            steps: Vec::new(),
            durability: Durability::Buffered,
        }
    }

    /// No steps yet, durable with what is done later ([`Durability::Ordered`]).
    pub fn ordered() -> Self {
        Self {
            steps: Vec::new(),
            durability: Durability::Ordered,
        }
    }

    /// Adds a step.
    pub fn step(mut self, step: WriteStep) -> Self {
        self.steps.push(step);
        self
    }

    /// Adds [`WriteStep::Create`].
    pub fn create(self, exclusive: bool) -> Self {
        self.step(WriteStep::Create { exclusive })
    }

    /// Adds [`WriteStep::AllocHint`] with equal object and write sizes, as librbd does.
    pub fn alloc_hint(self, object_size_bytes: u64) -> Self {
        self.step(WriteStep::AllocHint {
            object_size_bytes,
            write_size_bytes: object_size_bytes,
        })
    }

    /// Adds [`WriteStep::Write`].
    pub fn write(self, offset: u64, data: impl Into<Bytes>) -> Self {
        self.step(WriteStep::Write {
            offset,
            data: data.into(),
        })
    }

    /// Adds [`WriteStep::WriteFull`].
    pub fn write_full(self, data: impl Into<Bytes>) -> Self {
        self.step(WriteStep::WriteFull { data: data.into() })
    }

    /// Adds [`WriteStep::Zero`].
    pub fn zero(self, offset: u64, length_bytes: u64) -> Self {
        self.step(WriteStep::Zero { offset, length_bytes })
    }

    /// Adds [`WriteStep::Truncate`].
    pub fn truncate(self, size_bytes: u64) -> Self {
        self.step(WriteStep::Truncate { size_bytes })
    }

    /// Adds [`WriteStep::Remove`].
    pub fn remove(self) -> Self {
        self.step(WriteStep::Remove)
    }

    /// Adds [`WriteStep::Call`].
    pub fn call(self, class: &'static str, method: &'static str, input: impl Into<Bytes>) -> Self {
        self.step(WriteStep::Call {
            class,
            method,
            input: input.into(),
        })
    }
}

/// What a write gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WriteReply {
    /// Version of the object after the write.
    pub version: u64,
}

/// A run of bytes that [`crate::Store::copy_into`] takes from another object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CopyRange<'a> {
    /// The object to read; its pool and namespace may be others than the target's.
    pub object: ObjectRef<'a>,
    /// Snapshot to read it at, or the head.
    pub snap: SnapId,
    /// First byte in it.
    pub offset: u64,
    /// Length in bytes.
    pub length_bytes: u64,
    /// Where the bytes begin in the target.
    pub target_offset: u64,
}

impl CopyRange<'_> {
    /// First byte after the range in the target (saturating).
    pub fn target_end(&self) -> u64 {
        self.target_offset.saturating_add(self.length_bytes)
    }
}

/// What a copy gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CopyReply {
    /// Version of the target after the copy.
    pub version: u64,
    /// Bytes of data in it, holes left out as far as the engine knows them.
    pub data_bytes: u64,
}

/// What every engine refuses in a [`crate::Store::copy_into`] before it looks at any object; the index of the step when one
/// is to blame.
pub fn check_copy(op: &WriteOp, ranges: &[CopyRange<'_>]) -> Result<(), (Errno, Option<usize>)> {
    let fits = |step: &WriteStep| matches!(step, WriteStep::Call { .. } | WriteStep::AllocHint { .. });
    if let Some(index) = op.steps.iter().position(|step| !fits(step)) {
        return Err((Errno::EINVAL, Some(index)));
    }
    let hint = op
        .steps
        .iter()
        .any(|step| matches!(step, WriteStep::AllocHint { .. }));
    let ascend = ranges
        .windows(2)
        .all(|pair| pair[0].target_end() <= pair[1].target_offset);
    if !hint || !ascend || ranges.len() > crate::COPY_RANGES_MAX {
        return Err((Errno::EINVAL, None));
    }
    let overflows = |range: &CopyRange<'_>| {
        [range.offset, range.target_offset]
            .iter()
            .any(|start| start.checked_add(range.length_bytes).is_none())
    };
    match ranges.iter().any(overflows) {
        true => Err((Errno::EFBIG, None)),
        false => Ok(()),
    }
}
