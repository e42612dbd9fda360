//! Copies one object of a migration target from the source, with its whole snapshot history.
//!
//! How: the versions that the source had (one per snapshot that came along, then the head) are written oldest first,
//! each under a context that knows only older snapshots, so that the store's clones recreate the history. Each write
//! asserts that nobody has been there before (`assert_snapc_seq`); "somebody has" counts as done, so the copy may be
//! killed between any two writes and begun again, by anybody.
//!
//! The first version that has anything is copied by the engine itself where it can ([`engine`]).
//!
//! Invariants: every write is atomic; it is durable when it returns, but for the only write of an object with one version,
//! of which a power loss leaves all or nothing. The object is complete (see [`crate::migration::source`]) only after the
//! last one. Object maps say "exists" before the object does. What all copies of the process hold in memory is bounded
//! ([`memory`]).

mod compare;
mod delta;
mod engine;
pub(crate) mod memory;
mod zeroes;

use ferry_cls::CallExt as _;
use ferry_cls::rbd::{ObjectState, SnapcAssertion, client};
use ferry_store::{Durability, Errno, SnapContext, SnapId, WriteOp, WriteStep};

use crate::error::{ImageError, Result, optional};
use crate::image::Image;
use crate::layout::ObjectNo;
use crate::migration::source::MigrationSource;
use delta::{Change, Contents, Outline, Sources, Version};

/// What a copy did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Copied {
    /// Bytes of data written.
    pub data_bytes: u64,
    /// Bytes of data that were read and left out, being zero.
    pub zero_bytes: u64,
    /// Whether the target object exists or has history now; also true where that was not looked at.
    pub exists: bool,
}

impl Copied {
    /// Somebody else has copied it: what is there now is not known.
    fn by_others() -> Self {
        Self {
            exists: true,
            ..Self::default()
        }
    }
}

/// How to copy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CopyOptions {
    /// Blocks of 4 KiB that hold only zeroes are not written.
    pub zero_detect: bool,
}

/// Makes sure that the object is complete. The caller may write (holds the lock if the image has one).
pub(crate) async fn ensure_copied(
    target: &Image,
    source: &MigrationSource,
    object_no: ObjectNo,
) -> Result<Copied> {
    ensure_copied_with(target, source, object_no, CopyOptions::default()).await
}

/// The same, in another way.
pub(crate) async fn ensure_copied_with(
    target: &Image,
    source: &MigrationSource,
    object_no: ObjectNo,
    options: CopyOptions,
) -> Result<Copied> {
    if target.inner.complete.contains(object_no) || !source.covers(target, object_no) {
        return Ok(Copied::by_others());
    }
    let _one_at_a_time = target.inner.complete.lock(object_no).await;
    complete(target, source, object_no, options).await
}

/// The same for a caller that has the object's lock.
pub(crate) async fn ensure_copied_locked(
    target: &Image,
    source: &MigrationSource,
    object_no: ObjectNo,
) -> Result<Copied> {
    complete(target, source, object_no, CopyOptions::default()).await
}

async fn complete(
    target: &Image,
    source: &MigrationSource,
    object_no: ObjectNo,
    options: CopyOptions,
) -> Result<Copied> {
    if target.inner.complete.contains(object_no) || !source.covers(target, object_no) {
        return Ok(Copied::by_others());
    }
    // Together, as most objects that get here are not complete: each is a way to the engine and back.
    let complete = source.is_complete(target, object_no);
    let (is_complete, sources) = futures::try_join!(complete, Sources::find(target, source, object_no))?;
    if is_complete {
        return Ok(Copied::by_others());
    }
    let copied = copy(target, source, object_no, &sources, options).await?;
    target.inner.complete.insert(object_no);
    Ok(copied)
}

async fn copy(
    target: &Image,
    source: &MigrationSource,
    object_no: ObjectNo,
    sources: &Sources,
    options: CopyOptions,
) -> Result<Copied> {
    // Zeroes are found by whoever sees the bytes.
    for by_engine in [!options.zero_detect, false] {
        if let Some(copied) = copy_versions(target, source, object_no, sources, options, by_engine).await? {
            return Ok(copied);
        }
    }
    Err(ImageError::new(
        Errno::EIO,
        format!(
            "object {} of image '{}' was not copied",
            object_no.0,
            target.name()
        ),
    ))
}

/// `None`: the engine does not copy the first version; nothing has changed but object maps.
async fn copy_versions(
    target: &Image,
    source: &MigrationSource,
    object_no: ObjectNo,
    sources: &Sources,
    options: CopyOptions,
    by_engine: bool,
) -> Result<Option<Copied>> {
    let outline = Outline::new(source, sources);
    let _room = memory::room(outline.memory_bytes(by_engine)).await;
    let mut zero_bytes = 0;
    let versions = outline
        .versions(source, options, by_engine, &mut zero_bytes)
        .await?;
    if versions.iter().all(|version| version.change.is_none()) {
        return Ok(Some(Copied {
            zero_bytes,
            ..Copied::default()
        }));
    }
    let object = target.data_object(object_no.0);
    let seen = versions.iter().any(|version| version.living && version.exists);
    let snaps: Vec<SnapId> = target.header().snaps.keys().copied().collect();
    if !seen && optional(target.data_io().list_snaps(&object, &snaps).await)?.is_none() {
        // Only snapshots that are removed by now had it, and nothing is left of an earlier copy. An OSD may remember the
        // sequence of one that is gone, and would refuse the removal that follows the bytes.
        return Ok(Some(Copied {
            zero_bytes,
            ..Copied::default()
        }));
    }
    if !target.inner.head_map.is_marked_ahead() {
        mark_maps(target, source, &versions, object_no).await?;
    }
    let object_size = target.layout().object_size_bytes();
    let mut copied = Copied {
        zero_bytes,
        ..Copied::default()
    };
    let base = source.base_context();
    let mut last_seq = None;
    let changes = versions.iter().filter(|version| version.change.is_some());
    let only_head = changes.count() == 1 && versions.last().is_some_and(|head| head.change.is_some());
    for (index, version) in versions.iter().enumerate() {
        let Some(change) = &version.change else { continue };
        let context = if version.snap.is_head() {
            base.clone()
        } else {
            older_than(&versions[..index])
        };
        let mut op = guarded(context.seq());
        if only_head {
            // Absent or whole after a power loss.
            op.durability = Durability::Buffered;
        }
        last_seq = Some(context.seq());
        match change {
            Change::Remove => op = op.remove(),
            Change::Copy(copy) => {
                op = op.alloc_hint(object_size);
                // The first change of all, so nothing has been written if the engine does not copy.
                let Some((bytes, exists)) = copy.run(target, &object, source, &context, op).await? else {
                    return Ok(None);
                };
                copied.data_bytes += bytes;
                copied.exists = exists;
                continue;
            }
            Change::Write(contents) => {
                let (steps, data_bytes) = match contents {
                    Contents::Kept(written) => (written.steps.clone(), written.data_bytes),
                    Contents::ToRead(difference) => {
                        let written = difference.read(source, options).await?;
                        (written.steps, written.data_bytes)
                    }
                };
                copied.data_bytes += data_bytes;
                op = op.alloc_hint(object_size);
                op.steps.extend(steps);
            }
        }
        write(target, &object, &context, op).await?;
        copied.exists = true;
    }
    if !source.is_copied_alone() && last_seq.is_some_and(|seq| seq < base.seq()) {
        // Nothing changed after an old snapshot; say that the object has reached the newest one all the same.
        let op = guarded(base.seq());
        let op = if versions_end_absent(&versions) {
            // An absent head with history: being removed once more is not possible, being empty is the same to readers
            // of an image whose source shows nothing here.
            op.alloc_hint(object_size).create(false).truncate(0)
        } else {
            op.write(0, bytes::Bytes::new())
        };
        write(target, &object, &base, op).await?;
        copied.exists = true;
    }
    Ok(Some(copied))
}

fn guarded(seq: u64) -> WriteOp {
    WriteOp::new().class_call(&client::assert_snapc_seq(seq, SnapcAssertion::GreaterThanObject))
}

/// The context of a write that only `versions` precede. Removed snapshots count for the sequence, which says how far the
/// history has got, but get no clones.
fn older_than(versions: &[Version]) -> SnapContext {
    let seq = versions.last().map_or(0, |version| version.snap.0);
    let living = versions.iter().rev().filter(|version| version.living);
    SnapContext::new(seq, living.map(|version| version.snap).collect()).unwrap_or_default()
}

fn versions_end_absent(versions: &[Version]) -> bool {
    versions.last().is_some_and(|version| !version.exists)
}

/// `ERANGE`: somebody has written this version before.
async fn write(target: &Image, object: &str, context: &SnapContext, op: WriteOp) -> Result<()> {
    debug_assert!(
        op.steps
            .iter()
            .any(|step| !matches!(step, WriteStep::Call { .. }))
    );
    match target.inner.data_io.write(object, context, op).await {
        Ok(_) => Ok(()),
        Err(error) if error.errno == Errno::ERANGE => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Tells the object maps of the target's snapshots and head what will exist.
async fn mark_maps(
    target: &Image,
    source: &MigrationSource,
    versions: &[Version],
    object_no: ObjectNo,
) -> Result<()> {
    let header = target.header();
    // What changed at a snapshot that was removed since has changed for the next one that lives.
    let mut changed = false;
    for version in versions {
        changed |= version.change.is_some();
        if !version.living || version.snap.is_head() {
            continue;
        }
        let state = match (version.exists, changed) {
            (false, _) => None,
            (true, true) => Some(ObjectState::Exists),
            (true, false) => Some(ObjectState::ExistsClean),
        };
        changed = false;
        if let Some(state) = state {
            crate::object_map::snap::set(target, version.snap, object_no, state).await?;
        }
    }
    let mut state = match versions.last() {
        Some(head) if source.is_copied_alone() => match (head.exists, changed || head.change.is_some()) {
            (false, _) => None,
            (true, true) => Some(ObjectState::Exists),
            (true, false) => Some(ObjectState::ExistsClean),
        },
        // It gets a head of its own, to say how far the history has got, even if that is empty or shares all bytes.
        _ => {
            let exists = versions.iter().any(|version| version.exists);
            exists.then_some(ObjectState::Exists)
        }
    };
    for snap in header.snaps.range(SnapId(source.base_seq() + 1)..) {
        // Snapshots taken since see what the source's head was; all but the first of them see it unchanged.
        if let Some(seen) = state {
            crate::object_map::snap::set(target, *snap.0, object_no, seen).await?;
        }
        state = state.map(|_| ObjectState::ExistsClean);
    }
    if let Some(state) = state {
        let end = ObjectNo(object_no.0 + 1);
        crate::object_map::head::update(target, object_no, end, state, None).await?;
    }
    Ok(())
}
