//! What a case works with: two clients in an empty place, a flavour of object, and words for what must hold.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;

use super::Harness;
use crate::error::{Errno, StoreError};
use crate::op::{ReadOp, ReadReply, ReadResult, ReadStep, WriteOp};
use crate::types::{CloneInfo, Scope, SnapContext, SnapId, SnapSet};
use crate::{IoCtx, Store};

/// What was not as promised.
pub(crate) struct Failure(pub(crate) String);

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self(format!("unexpected error: {error}"))
    }
}

impl From<String> for Failure {
    fn from(text: String) -> Self {
        Self(text)
    }
}

/// Result of a case.
pub(crate) type Outcome<T = ()> = Result<T, Failure>;

/// Fails the case with place and text unless the condition holds.
macro_rules! ensure {
    ($condition:expr, $($text:tt)+) => {
        if !$condition {
            return Err($crate::conformance::fixture::Failure(format!(
                "{} ({}:{})", format_args!($($text)+), file!(), line!()
            )));
        }
    };
}

/// Fails the case unless both are equal.
macro_rules! ensure_eq {
    ($left:expr, $right:expr, $($text:tt)+) => {
        match (&$left, &$right) {
            (left, right) => {
                if *left != *right {
                    return Err($crate::conformance::fixture::Failure(format!(
                        "{}: is {}, must be {} ({}:{})",
                        format_args!($($text)+),
                        $crate::conformance::fixture::shown(left),
                        $crate::conformance::fixture::shown(right),
                        file!(),
                        line!()
                    )));
                }
            }
        }
    };
}

/// Fails the case unless the result is an error with one of the errnos, and, when given, that failing step.
macro_rules! ensure_errno {
    ($result:expr, $errno:ident $(| $other:ident)* $(, step $step:expr)?) => {{
        let allowed = [$crate::Errno::$errno $(, $crate::Errno::$other)*];
        #[allow(unused_mut, unused_assignments)]
        let mut step: Option<usize> = None;
        $( step = Some($step); )?
        $crate::conformance::fixture::check_errno($result, &allowed, step)
            .map_err(|text| $crate::conformance::fixture::Failure(format!("{text} ({}:{})", file!(), line!())))?
    }};
}

pub(crate) use {ensure, ensure_eq, ensure_errno};

/// A value for a failure's text: not more than the start of it.
pub(crate) fn shown(value: &(impl fmt::Debug + ?Sized)) -> String {
    const MOST_CHARS: usize = 600;
    let text = format!("{value:?}");
    match text.char_indices().nth(MOST_CHARS) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

/// Checks an error against what is allowed.
pub(crate) fn check_errno<T: fmt::Debug>(
    result: crate::Result<T>,
    allowed: &[Errno],
    step: Option<usize>,
) -> Result<StoreError, String> {
    match result {
        Ok(value) => Err(format!("succeeded with {value:?}, must fail with {allowed:?}")),
        Err(error) if !allowed.contains(&error.errno) => {
            Err(format!("failed with '{error}', must be {allowed:?}"))
        }
        Err(error) if step.is_some() && error.step != step => Err(format!(
            "'{error}' blames step {:?}, must be {step:?}",
            error.step
        )),
        Err(error) => Ok(error),
    }
}

/// How a case makes its objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flavour {
    /// Without a hint.
    Plain,
    /// Each write carries the hint for bulk data, as librbd's do.
    Bulk,
}

/// Size that the hint of bulk objects names.
pub(crate) const BULK_OBJECT_BYTES: u64 = 4 << 20;

/// A case's world.
pub(crate) struct Fixture {
    /// Where more clients come from.
    pub(crate) harness: Arc<dyn Harness>,
    /// First client, in the case's place.
    pub(crate) a: IoCtx,
    /// Second client, in the same place.
    pub(crate) b: IoCtx,
    flavour: Flavour,
    /// The snapshots of the case.
    snaps: Mutex<Vec<SnapId>>,
}

impl Fixture {
    /// Bytes in which overlaps are exact: engines may keep track of bulk objects in blocks of this size.
    pub(crate) fn grain_bytes(&self) -> u64 {
        match self.flavour {
            Flavour::Plain => 1,
            Flavour::Bulk => 4096,
        }
    }

    /// As many bytes as `count` grains, different for each seed.
    pub(crate) fn grains(&self, seed: u8, count: u64) -> Bytes {
        pattern(seed, (count * self.grain_bytes()) as usize)
    }

    /// Connects two clients and makes the place.
    pub(crate) async fn new(harness: Arc<dyn Harness>, flavour: Flavour) -> Outcome<Self> {
        let first = harness.client().await;
        let second = harness.client().await;
        let scope = harness.scope(&first).await?;
        Ok(Self {
            a: IoCtx::new(first, scope.clone()),
            b: IoCtx::new(second, scope),
            harness,
            flavour,
            snaps: Mutex::default(),
        })
    }

    /// Connects one more client in the same place.
    pub(crate) async fn another(&self) -> IoCtx {
        IoCtx::new(self.harness.client().await, self.scope().clone())
    }

    /// The case's place.
    pub(crate) fn scope(&self) -> &Scope {
        self.a.scope()
    }

    /// First client's store.
    pub(crate) fn store(&self) -> &Arc<dyn Store> {
        self.a.store()
    }

    /// A fully durable write of this flavour. With bulk objects the first step is the hint.
    pub(crate) fn op(&self) -> WriteOp {
        self.flavoured(WriteOp::new())
    }

    /// A buffered write of this flavour.
    pub(crate) fn buffered(&self) -> WriteOp {
        self.flavoured(WriteOp::buffered())
    }

    fn flavoured(&self, op: WriteOp) -> WriteOp {
        match self.flavour {
            Flavour::Plain => op,
            Flavour::Bulk => op.alloc_hint(BULK_OBJECT_BYTES),
        }
    }

    /// Steps that [`Fixture::op`] already has.
    pub(crate) fn lead(&self) -> usize {
        self.op().steps.len()
    }

    /// A new snapshot id.
    pub(crate) async fn snap(&self) -> Outcome<SnapId> {
        let id = self.store().snap_id_create(self.a.pool()).await?;
        self.snaps.lock().push(id);
        Ok(id)
    }

    /// What the second client is told of an object when it asks about every snapshot of the case.
    pub(crate) async fn listed(&self, name: &str) -> Outcome<SnapSet> {
        let asked = self.snaps.lock().clone();
        Ok(self.b.list_snaps(name, &asked).await?)
    }

    /// What this engine tells of an object with these clones, the newest of its snapshots last.
    pub(crate) fn told(&self, set: SnapSet) -> SnapSet {
        if !self.harness.probes() {
            return set;
        }
        let asked = self.snaps.lock();
        let reached = asked
            .iter()
            .map(|snap| snap.0)
            .filter(|snap| *snap <= set.seq)
            .max();
        SnapSet {
            seq: reached.unwrap_or(0),
            clones: self.told_clones(set.clones),
        }
    }

    /// The same of clones alone.
    pub(crate) fn told_clones(&self, mut clones: Vec<CloneInfo>) -> Vec<CloneInfo> {
        if self.harness.probes() {
            for clone in &mut clones {
                clone.overlap = None;
                clone.id = clone.snaps.last().copied().unwrap_or(clone.id);
            }
        }
        clones
    }

    /// `count` new snapshot ids, ascending.
    pub(crate) async fn snaps<const COUNT: usize>(&self) -> Outcome<[SnapId; COUNT]> {
        let mut ids = [SnapId(0); COUNT];
        for id in &mut ids {
            *id = self.snap().await?;
        }
        Ok(ids)
    }
}

/// The context that knows exactly `ids` (in any order).
pub(crate) fn context(ids: &[SnapId]) -> SnapContext {
    let mut ids = ids.to_vec();
    ids.sort_unstable_by(|left, right| right.cmp(left));
    let seq = ids.first().map_or(0, |newest| newest.0);
    SnapContext::new(seq, ids).unwrap_or_default()
}

/// `length` bytes that differ from their neighbours, by `tag`.
pub(crate) fn pattern(tag: u8, length: usize) -> Bytes {
    (0..length)
        .map(|index| tag.wrapping_mul(31).wrapping_add((index % 251) as u8) | 1)
        .collect::<Vec<u8>>()
        .into()
}

/// The whole content at `snap`; `None` when the object does not exist there. Also checks that stat, read and sparse
/// read agree.
pub(crate) async fn content(io: &IoCtx, name: &str, snap: SnapId) -> Outcome<Option<Bytes>> {
    let op = ReadOp::new()
        .stat()
        .read(0, BULK_OBJECT_BYTES)
        .sparse_read(0, BULK_OBJECT_BYTES);
    let reply = match io.read(name, snap, op).await {
        Ok(reply) => reply,
        Err(error) if error.errno == Errno::ENOENT => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let data = reply.data(1);
    let size = size_of(&reply, 0)?;
    ensure_eq!(
        data.len() as u64,
        size,
        "length of a whole read of {name}@{snap} against its stat"
    );
    let runs = sparse_of(&reply, 2)?;
    ensure_eq!(
        filled(&runs, size)?,
        data,
        "sparse read of {name}@{snap} against a plain read"
    );
    Ok(Some(data))
}

/// Content of the head; fails when absent.
pub(crate) async fn head(io: &IoCtx, name: &str) -> Outcome<Bytes> {
    match content(io, name, SnapId::HEAD).await? {
        Some(data) => Ok(data),
        None => Err(Failure(format!("{name} does not exist"))),
    }
}

/// Version of the head; 0 when absent.
pub(crate) async fn version(io: &IoCtx, name: &str) -> Outcome<u64> {
    match io.read(name, SnapId::HEAD, ReadOp::new().stat()).await {
        Ok(reply) => Ok(reply.version),
        Err(error) if error.errno == Errno::ENOENT => Ok(0),
        Err(error) => Err(error.into()),
    }
}

/// The size in the stat at `step`.
pub(crate) fn size_of(reply: &ReadReply, step: usize) -> Outcome<u64> {
    match reply.results.get(step) {
        Some(ReadResult::Stat { size_bytes, .. }) => Ok(*size_bytes),
        other => Err(Failure(format!("a stat answered {other:?}"))),
    }
}

/// The runs in the sparse read at `step`.
pub(crate) fn sparse_of(reply: &ReadReply, step: usize) -> Outcome<Vec<(u64, Bytes)>> {
    match reply.results.get(step) {
        Some(ReadResult::Sparse(runs)) => Ok(runs.clone()),
        other => Err(Failure(format!("a sparse read answered {other:?}"))),
    }
}

/// Bytes of `size` with the runs in place and zeros between; fails when runs overlap, descend or leave the object.
pub(crate) fn filled(runs: &[(u64, Bytes)], size: u64) -> Outcome<Bytes> {
    let mut data = vec![0; usize::try_from(size).unwrap_or(0)];
    let mut end = 0;
    for (offset, bytes) in runs {
        ensure!(
            *offset >= end,
            "runs of a sparse read overlap or descend at {offset}"
        );
        end = offset + bytes.len() as u64;
        ensure!(
            end <= size,
            "a run of a sparse read ends at {end}, behind the object's end {size}"
        );
        data[*offset as usize..end as usize].copy_from_slice(bytes);
    }
    Ok(data.into())
}

/// All omap pairs at `snap`.
pub(crate) async fn omap(io: &IoCtx, name: &str, snap: SnapId) -> Outcome<Vec<(Bytes, Bytes)>> {
    let step = ReadStep::OmapGetVals {
        start_after: Bytes::new(),
        prefix: Bytes::new(),
        max: 10_000,
    };
    let reply = io.read(name, snap, ReadOp::new().step(step)).await?;
    match reply.results.into_iter().next() {
        Some(ReadResult::Omap { values, more: false }) => Ok(values.into_iter().collect()),
        other => Err(Failure(format!("an omap listing of {name} answered {other:?}"))),
    }
}

/// One xattr of the head, `None` without it.
pub(crate) async fn xattr(io: &IoCtx, name: &str, attribute: &str) -> Outcome<Option<Bytes>> {
    let op = ReadOp::new().step(ReadStep::GetXattr(attribute.to_owned()));
    match io.read(name, SnapId::HEAD, op).await {
        Ok(reply) => match reply.results.into_iter().next() {
            Some(ReadResult::Xattr(value)) => Ok(Some(value)),
            other => Err(Failure(format!("an xattr read of {name} answered {other:?}"))),
        },
        Err(error) if error.errno == Errno::ENODATA => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Polls until `holds` says yes; fails with `what` when it still does not after about 20 s.
pub(crate) async fn eventually<F, Fut>(what: &str, mut holds: F) -> Outcome
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Outcome<bool>>,
{
    for attempt in 0..400u64 {
        if holds().await? {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(attempt.min(50))).await;
    }
    Err(Failure(format!("never came true: {what}")))
}
