//! Gives back the space of zeroes in the head: the store's class looks for them, so that no byte is read here, but of objects
//! that the object map calls unchanged: only such as have something to cut may become "changed" in it.
//!
//! Objects that a migration has still to copy are left to it, and one that must hide what lies below it stays, empty.
//! Runs in the owner of the lock, beside the clients' writes: an object is looked at and cut in one atomic step, and is taken
//! away with the gate held, so that the object map is right at every moment.

use std::collections::BTreeMap;

use bytes::Bytes;
use ferry_cls::CallExt as _;
use ferry_cls::rbd::{ObjectState, client};
use ferry_store::{Errno, ReadOp, ReadResult, SnapId, WriteOp};
use futures::stream::{StreamExt as _, TryStreamExt as _};

use super::CONCURRENT_OBJECTS;
use super::write::Writer;
use crate::error::{ImageError, Result, absent_is_fine, optional};
use crate::header::Header;
use crate::image::Image;
use crate::layering::copy_up::Shown;
use crate::layout::ObjectNo;
use crate::object_map::{head, mark};
use crate::object_set::{self, Candidates};
use crate::progress::Progress;
use crate::watch::messages::Request;

/// Granularity when nothing else is asked for.
pub const DEFAULT_SPARSE_SIZE_BYTES: u64 = 4096;

/// Most bytes that one look at an object reads, unless a unit is larger.
const READ_BYTES: u64 = 1 << 20;

impl Image {
    /// Gives back runs of zeroes of `sparse_size_bytes`, in the owner of the exclusive lock. `EINVAL` unless that is a power of
    /// two from 4096 to the object size.
    pub async fn sparsify(&self, sparse_size_bytes: u64, progress: &Progress) -> Result<()> {
        check(self, sparse_size_bytes)?;
        self.maintain(&Request::Sparsify { sparse_size_bytes }, progress)
            .await
    }
}

fn check(image: &Image, sparse_size_bytes: u64) -> Result<()> {
    let largest = image.layout().object_size_bytes();
    if sparse_size_bytes.is_power_of_two() && (4096..=largest).contains(&sparse_size_bytes) {
        return Ok(());
    }
    Err(
        ImageError::new(Errno::EINVAL, format!("sparse size of {sparse_size_bytes} bytes")).hint(format!(
            "use a power of two from 4096 to the object size, {largest}"
        )),
    )
}

pub(crate) async fn sparsify_here(image: &Image, sparse_size_bytes: u64, progress: &Progress) -> Result<()> {
    check(image, sparse_size_bytes)?;
    image.acquire_lock().await?;
    let total = image.layout().object_count(image.header().size_bytes);
    progress.update(0, total.max(1));
    let candidates: Candidates<'_> = match object_set::existing_of_many(image, &(0..total)).await? {
        Some(known) => Box::new(known.within(0..total).collect::<Vec<u64>>().into_iter()),
        None => Box::new(0..total),
    };
    let mut objects = futures::stream::iter(candidates)
        .map(|n| async move { object(image, ObjectNo(n), sparse_size_bytes).await.map(|()| n) })
        .buffered(CONCURRENT_OBJECTS);
    while let Some(n) = objects.try_next().await? {
        progress.update(n + 1, total);
    }
    drop(objects);
    image.flush_data().await?;
    progress.update(1, 1);
    Ok(())
}

async fn object(image: &Image, object_no: ObjectNo, sparse_size_bytes: u64) -> Result<()> {
    {
        let _guard = image.begin_write().await?;
        if !image.inner.head_map.may_exist(object_no) || needs_copy(image, object_no).await? {
            return Ok(());
        }
        if !is_worth_it(image, object_no, sparse_size_bytes).await? {
            return Ok(());
        }
        // The class may make it shorter, which a snapshot's map must be able to tell from "unchanged".
        let _kept = mark::mark_exists(image, object_no).await?;
        let op = WriteOp::buffered().class_call(&client::sparsify(sparse_size_bytes, false));
        let object = image.data_object(object_no.0);
        let snapc = &image.header().snapc;
        // A map may say "exists" of an object that does not.
        absent_is_fine(image.data_io().write(&object, snapc, op).await.map(|_| ()))?;
    }
    if size_bytes(image, object_no).await? == Some(0) {
        remove_empty(image, object_no, sparse_size_bytes).await?;
    }
    Ok(())
}

/// Whether an object that the map calls unchanged has something to cut; of others the class finds out.
async fn is_worth_it(image: &Image, object_no: ObjectNo, sparse_size_bytes: u64) -> Result<bool> {
    if image.inner.head_map.state(object_no) != Some(ObjectState::ExistsClean) {
        return Ok(true);
    }
    let Some(size_bytes) = size_bytes(image, object_no).await? else {
        return Ok(false);
    };
    let object = image.data_object(object_no.0);
    let chunk_bytes = READ_BYTES.max(sparse_size_bytes);
    let mut is_hole = true;
    for at in (0..size_bytes).step_by(usize::try_from(chunk_bytes).unwrap_or(usize::MAX)) {
        let op = ReadOp::new().sparse_read(at, chunk_bytes.min(size_bytes - at));
        let reply = optional(image.data_io().read(&object, SnapId::HEAD, op).await)?;
        let Some(ReadResult::Sparse(runs)) = reply.and_then(|reply| reply.results.into_iter().next()) else {
            return Ok(false);
        };
        is_hole &= runs.is_empty();
        if has_zero_units(&runs, sparse_size_bytes) {
            return Ok(true);
        }
    }
    // Nothing but holes: the whole object may go.
    Ok(is_hole)
}

/// Whether some unit of an object has data, all of it zeroes. Runs are of whole units and ascend.
fn has_zero_units(runs: &[(u64, Bytes)], unit_bytes: u64) -> bool {
    let mut zeroes: BTreeMap<u64, bool> = BTreeMap::new();
    for (at, data) in runs {
        let (mut at, mut rest) = (*at, data.as_ref());
        while !rest.is_empty() {
            let unit = at / unit_bytes;
            let room = usize::try_from((unit + 1) * unit_bytes - at).unwrap_or(usize::MAX);
            let (piece, after) = rest.split_at(room.min(rest.len()));
            *zeroes.entry(unit).or_insert(true) &= piece.iter().all(|byte| *byte == 0);
            at += piece.len() as u64;
            rest = after;
        }
    }
    zeroes.into_values().any(|is_zero| is_zero)
}

/// Whether a migration has still to copy the object.
async fn needs_copy(image: &Image, object_no: ObjectNo) -> Result<bool> {
    match image.source() {
        Some(source) => Ok(source.covers(image, object_no) && !source.is_complete(image, object_no).await?),
        None => Ok(false),
    }
}

async fn size_bytes(image: &Image, object_no: ObjectNo) -> Result<Option<u64>> {
    let object = image.data_object(object_no.0);
    let op = ReadOp::new().stat();
    let reply = optional(image.data_io().read(&object, SnapId::HEAD, op).await)?;
    Ok(reply.and_then(|reply| match reply.results.first() {
        Some(ReadResult::Stat { size_bytes, .. }) => Some(*size_bytes),
        _ => None,
    }))
}

/// Whether nothing lies below the object that would show if it were gone.
fn may_go(image: &Image, header: &Header, object_no: ObjectNo) -> bool {
    let source = image.source();
    let writer = Writer::new(image, header, source.as_deref());
    !writer.hides_source(object_no) && Shown::through(image, header, object_no).is_none()
}

/// Takes an empty object away, unless somebody has written to it meanwhile.
async fn remove_empty(image: &Image, object_no: ObjectNo, sparse_size_bytes: u64) -> Result<()> {
    let _stopped = image.stop_writes(None).await?;
    image.refresh_if_needed().await?;
    let header = image.header();
    if !may_go(image, &header, object_no) || !head::mark_pending(image, object_no).await? {
        return Ok(());
    }
    image.inner.present.remove(object_no);
    // Durable before the map says so: a power loss must not bring the object back under "nonexistent".
    let op = WriteOp::new().class_call(&client::sparsify(sparse_size_bytes, true));
    let object = image.data_object(object_no.0);
    let written = image.data_io().write(&object, &header.snapc, op).await;
    absent_is_fine(written.map(|_| ()))?;
    if size_bytes(image, object_no).await?.is_none() {
        return head::mark_removed(image, object_no).await;
    }
    let end = ObjectNo(object_no.0 + 1);
    let pending = Some(ObjectState::Pending);
    head::update(image, object_no, end, ObjectState::Exists, pending).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(at: u64, bytes: &[u8]) -> (u64, Bytes) {
        (at, Bytes::copy_from_slice(bytes))
    }

    #[test]
    fn a_unit_counts_when_it_has_data_and_all_of_it_is_zero() {
        assert!(has_zero_units(&[run(0, &[1, 0, 0, 0, 0, 0])], 3));
        assert!(!has_zero_units(&[run(0, &[1, 0, 0, 0, 0, 1])], 3));
        // Half of the second unit is a hole, and its data are in two runs.
        assert!(!has_zero_units(&[run(1, &[1, 1, 0]), run(5, &[1])], 3));
        assert!(has_zero_units(&[run(1, &[1, 1, 0]), run(5, &[0])], 3));
        assert!(!has_zero_units(&[], 3));
        assert!(has_zero_units(&[run(8, &[0])], 3));
    }
}
