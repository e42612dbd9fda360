//! Differences of an object that is not the image's own: what the migration source had between the twins of two snapshots,
//! and what the parent of a clone shows.

use super::{Delta, Span, object_delta};
use crate::error::Result;
use crate::image::Image;
use crate::layering::parent::Parent;
use crate::layout::{ImageExtent, Layout, ObjectNo, ObjectOffset};
use crate::migration::source::MigrationSource;
use crate::object_map;
use crate::object_set::{self, ObjectSet};

/// What became of an object that the migration source still has to answer for.
pub(super) async fn source_delta(
    image: &Image,
    source: &MigrationSource,
    span: Span,
    object_no: ObjectNo,
) -> Result<Delta> {
    let header = image.header();
    let Some((to, to_bytes)) = source.view(&header, span.to) else {
        return Ok(Delta::default());
    };
    let (from, from_bytes) = match span.from.map(|snap| source.view(&header, snap)) {
        Some(Some((snap, bytes))) => (Some(snap), bytes),
        Some(None) | None => (None, 0),
    };
    if from == Some(to) {
        return Ok(Delta::default());
    }
    let below = Span {
        from,
        to,
        whole_object: false,
    };
    let largest = to_bytes.max(from_bytes);
    let found = seen_through(image.layout(), object_no, source.image(), below, largest).await?;
    // Beyond what shows through at the end there is nothing any more.
    let delta = cut(image.layout(), object_no, found, to_bytes, from.is_some());
    let object_size = image.layout().object_size_bytes();
    Ok(match span.whole_object && !delta.data.is_empty() {
        true => Delta {
            data: vec![(0, object_size)],
            zero: Vec::new(),
        },
        false => delta,
    })
}

/// What a clone's parent makes of an object that the clone has at neither end of the span.
pub(super) async fn parent_delta(
    image: &Image,
    parent: &Parent,
    span: Span,
    object_no: ObjectNo,
) -> Result<Delta> {
    let header = image.header();
    let to_bytes = header.parent_overlap_bytes(span.to);
    let from_bytes = span.from.map_or(0, |from| header.parent_overlap_bytes(from));
    let below = Span {
        from: None,
        to: parent.image().read_snap(),
        whole_object: span.whole_object,
    };
    if span.from.is_none() {
        let found = seen_through(image.layout(), object_no, parent.image(), below, to_bytes).await?;
        return Ok(cut(image.layout(), object_no, found, to_bytes, false));
    }
    if from_bytes <= to_bytes {
        return Ok(Delta::default());
    }
    // The image was smaller in between: what the parent showed then is hidden now.
    let found = seen_through(image.layout(), object_no, parent.image(), below, from_bytes).await?;
    let delta = cut(image.layout(), object_no, found, to_bytes, true);
    Ok(Delta {
        data: Vec::new(),
        zero: delta.zero,
    })
}

/// Objects of a clone that its parent may show at a snapshot.
pub(super) async fn parent_objects(image: &Image, parent: &Parent, overlap_bytes: u64) -> Result<ObjectSet> {
    let below = parent.image();
    let mut existing = match object_map::snap::load(below, below.read_snap()).await? {
        Some(map) if below.source().is_none() => {
            map.iter_nonzero().map(|(object, _)| ObjectNo(object)).collect()
        }
        _ => object_set::existing(below).await?,
    };
    if let Some(source) = below.source() {
        existing.extend(source.objects_to_copy(below).await?.iter());
    }
    if let Some(next) = below.parent() {
        let overlap_bytes = below.header().parent_overlap_bytes(below.read_snap());
        existing.extend(
            Box::pin(parent_objects(below, &next, overlap_bytes))
                .await?
                .iter(),
        );
    }
    let (from, to) = (below.layout(), image.layout());
    let mut out = ObjectSet::default();
    for object in existing.iter() {
        for extent in from.unmap(object, ObjectOffset(0), from.object_size_bytes()) {
            let shown = ImageExtent {
                length_bytes: extent
                    .length_bytes
                    .min(overlap_bytes.saturating_sub(extent.offset.0)),
                ..extent
            };
            out.extend(to.map(shown).iter().map(|piece| piece.object_no));
        }
    }
    Ok(out)
}

/// What became of the bytes of an image that lie under an object of another one, up to an offset of the image.
async fn seen_through(
    layout: &Layout,
    object_no: ObjectNo,
    below: &Image,
    span: Span,
    end_bytes: u64,
) -> Result<Delta> {
    let mut found = Delta::default();
    let mut at = 0;
    for piece in layout.unmap(object_no, ObjectOffset(0), layout.object_size_bytes()) {
        let visible = ImageExtent {
            length_bytes: piece.length_bytes.min(end_bytes.saturating_sub(piece.offset.0)),
            ..piece
        };
        for extent in below.layout().map(visible) {
            let delta = Box::pin(object_delta(below, span, extent.object_no)).await?;
            let start = at + (extent.image_offset.0 - piece.offset.0);
            let shift = |(from, to): (u64, u64)| {
                let first = from.max(extent.offset.0);
                let last = to.min(extent.offset.0 + extent.length_bytes);
                (first < last).then(|| (start + first - extent.offset.0, start + last - extent.offset.0))
            };
            found.data.extend(delta.data.into_iter().filter_map(shift));
            found.zero.extend(delta.zero.into_iter().filter_map(shift));
        }
        at += piece.length_bytes;
    }
    found.data.sort_unstable();
    found.zero.sort_unstable();
    Ok(found)
}

/// Of data beyond an offset of the image nothing is left; it is told as zero if it was there before.
fn cut(layout: &Layout, object_no: ObjectNo, found: Delta, end_bytes: u64, was_there: bool) -> Delta {
    let mut out = Delta {
        data: Vec::new(),
        zero: found.zero,
    };
    for (first, last) in found.data {
        let mut at = first;
        for piece in layout.unmap(object_no, ObjectOffset(first), last - first) {
            let seen = piece.length_bytes.min(end_bytes.saturating_sub(piece.offset.0));
            if seen > 0 {
                out.data.push((at, at + seen));
            }
            if seen < piece.length_bytes && was_there {
                out.zero.push((at + seen, at + piece.length_bytes));
            }
            at += piece.length_bytes;
        }
    }
    out.zero.sort_unstable();
    out
}
