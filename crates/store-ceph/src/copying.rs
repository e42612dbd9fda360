//! Copies that the OSDs make themselves ([`ferry_store::Store::copy_into`]): the bytes go from one OSD to the other.
//!
//! An OSD copies objects whole, and fills their holes with zeroes, which are taken out again in the same operation. So what is
//! copied here are whole objects with more data than holes; anything else is the caller's to read and write, as it is where
//! librados has no such step.

use std::sync::Arc;

use ferry_store::{CopyRange, CopyReply, Errno, Extent, ReadStep, WriteOp, WriteStep};

use crate::sys::{Ioctx, Lending, OpError, StepAnswer};

/// Most holes that are worth it.
const HOLES_MAX: usize = 64;

/// The only range of a copy, if it is one that an OSD may be asked for: from the start of one object to the start of the other.
pub(crate) fn whole<'a>(ranges: &'a [CopyRange<'a>]) -> Option<&'a CopyRange<'a>> {
    match ranges {
        [range] if range.offset == 0 && range.target_offset == 0 => Some(range),
        _ => None,
    }
}

/// Copies a [`whole`] range; `from` reads at its snapshot.
pub(crate) async fn run(
    to: &Arc<Ioctx>,
    target: &str,
    op: WriteOp,
    from: &Arc<Ioctx>,
    range: &CopyRange<'_>,
) -> Result<CopyReply, OpError> {
    let source = range.object.name;
    let size_bytes = size_of_plain(from, source).await?;
    if size_bytes == 0 || size_bytes > range.length_bytes {
        return Err(Errno::EOPNOTSUPP.into());
    }
    let extents = {
        let (from, source) = (from.clone(), source.to_owned());
        let asked = tokio::task::spawn_blocking(move || from.data_extents(&source, size_bytes));
        asked.await.unwrap_or(Err(Errno::EIO))?
    };
    let holes = holes(&extents, size_bytes).ok_or(Errno::EOPNOTSUPP)?;
    let hole_bytes: u64 = holes.iter().map(|hole| hole.length_bytes).sum();
    // A hint makes the object, so it goes behind the step that must.
    let is_hint = |step: &WriteStep| matches!(step, WriteStep::AllocHint { .. });
    let (hints, mut steps): (Vec<_>, Vec<_>) = op.steps.into_iter().partition(is_hint);
    steps.push(WriteStep::Create { exclusive: true });
    steps.extend(hints);
    let version = to.copy_from(target, &steps, from, source, &holes).await?;
    Ok(CopyReply {
        version,
        data_bytes: size_bytes - hole_bytes,
    })
}

/// Size of an object that has bytes and nothing else; `EOPNOTSUPP` for one with xattrs or omap, which would be copied too.
async fn size_of_plain(from: &Arc<Ioctx>, source: &str) -> Result<u64, OpError> {
    let any = ReadStep::OmapGetVals {
        start_after: bytes::Bytes::new(),
        prefix: bytes::Bytes::new(),
        max: 1,
    };
    let answer = from
        .read(source, &[ReadStep::Stat, ReadStep::GetXattrs, any], Lending::No)
        .await?;
    match answer.steps.as_slice() {
        [
            StepAnswer::Stat(size_bytes, _),
            StepAnswer::Xattrs(xattrs),
            StepAnswer::Omap(values, _),
        ] if xattrs.is_empty() && values.is_empty() => Ok(*size_bytes),
        _ => Err(Errno::EOPNOTSUPP.into()),
    }
}

/// What ascending extents leave out of an object's bytes; `None` if that is more than half of it, or more than is worth a
/// step each, or lies at its end, where a zeroing would cut it off.
fn holes(extents: &[Extent], size_bytes: u64) -> Option<Vec<Extent>> {
    let mut holes = Vec::new();
    let (mut end, mut hole_bytes) = (0, 0);
    for extent in extents {
        if extent.offset > end {
            hole_bytes += extent.offset - end;
            holes.push(Extent::new(end, extent.offset - end));
        }
        end = end.max(extent.end());
    }
    (end >= size_bytes && hole_bytes <= size_bytes / 2 && holes.len() <= HOLES_MAX).then_some(holes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_are_what_extents_leave_out() {
        let extent = Extent::new;
        assert_eq!(holes(&[extent(0, 4096), extent(4096, 100)], 4196), Some(vec![]));
        assert_eq!(holes(&[extent(0, 9000)], 4196), Some(vec![]));
        assert_eq!(
            holes(&[extent(10, 90), extent(150, 100)], 200),
            Some(vec![extent(0, 10), extent(100, 50)])
        );
    }

    #[test]
    fn objects_of_more_holes_than_data_or_with_one_at_the_end_are_not_for_an_osd() {
        let extent = Extent::new;
        assert_eq!(holes(&[], 1), None);
        assert_eq!(holes(&[extent(0, 4096)], 4097), None);
        assert_eq!(holes(&[extent(101, 99)], 200), None);
        let many: Vec<Extent> = (0..100).map(|n| extent(n * 100, 99)).collect();
        assert_eq!(holes(&many, 9_999), None);
    }
}
