//! Discards of any length, at the cost of what exists in the range.
//!
//! Whole objects are emptied, parts of objects zeroed. Where the range holds few whole objects each is visited: that costs less than
//! to find out which need it. Of many only those are that exist, or through which a version shows something from below: by the
//! object map, and without one by listings, as for a removal ([`object_set::existing_of_many`]). What somebody makes exist meanwhile
//! was written during the discard, so it may come after it.

use std::ops::Range;

use futures::stream::{StreamExt as _, TryStreamExt as _};

use super::CONCURRENT_OBJECTS;
use super::write::Writer;
use crate::error::Result;
use crate::header::Header;
use crate::image::Image;
use crate::layout::{ImageExtent, ImageOffset, ObjectExtent, ObjectNo};
use crate::migration::source::MigrationSource;
use crate::object_set::{self, Candidates, ObjectSet};

/// Bytes of the image that are cut into extents at a time, so that their list stays short.
const SLICE_BYTES: u64 = 1 << 30;
/// Whole objects up to which each is visited.
const VISITED_MAX: u64 = 1 << 12;
/// Objects of a map that are looked at without letting others run.
const LOOK_OBJECTS: usize = 1 << 16;

impl Image {
    /// Makes a range read as zero and gives its space back.
    pub async fn discard(&self, offset: u64, length_bytes: u64) -> Result<()> {
        let _client = self.inner.activity.begin();
        self.settle(offset, length_bytes).await?;
        let _guard = self.begin_write().await?;
        let _changing = self.changing(offset, length_bytes);
        let header = self.header();
        self.check_range(&header, offset, length_bytes, u64::MAX)?;
        let source = self.source();
        let writer = Writer::new(self, &header, source.as_deref());
        let range = offset..offset + length_bytes;
        let objects = whole_objects(self, &range);
        if objects.end - objects.start <= VISITED_MAX {
            return discard_pieces(&writer, range).await;
        }
        let (first, last) = (start_of_set(self, objects.start), start_of_set(self, objects.end));
        discard_pieces(&writer, range.start..first).await?;
        let touched = touched(self, &header, source.as_deref(), objects).await?;
        futures::stream::iter(touched)
            .map(|n| writer.empty(ObjectNo(n)))
            .buffer_unordered(CONCURRENT_OBJECTS)
            .try_collect::<()>()
            .await?;
        discard_pieces(&writer, last..range.end).await
    }
}

/// Objects of the object sets that lie in the range as a whole.
fn whole_objects(image: &Image, range: &Range<u64>) -> Range<u64> {
    let layout = image.layout();
    let set_bytes = layout.object_size_bytes() * layout.stripe_count();
    let (first, end) = (range.start.div_ceil(set_bytes), range.end / set_bytes);
    first * layout.stripe_count()..end.max(first) * layout.stripe_count()
}

/// Where in the image the object set lies that begins with an object.
fn start_of_set(image: &Image, first: u64) -> u64 {
    first * image.layout().object_size_bytes()
}

/// Extent by extent.
async fn discard_pieces(writer: &Writer<'_>, range: Range<u64>) -> Result<()> {
    let mut at = range.start;
    while at < range.end {
        let slice = (range.end - at).min(SLICE_BYTES);
        let extents = writer.image.layout().map(ImageExtent {
            offset: ImageOffset(at),
            length_bytes: slice,
        });
        futures::stream::iter(join_whole_objects(writer.image, extents))
            .map(|extent| discard_extent(writer, extent))
            .buffer_unordered(CONCURRENT_OBJECTS)
            .try_collect::<()>()
            .await?;
        at += slice;
    }
    Ok(())
}

/// Stripe units of one object that together are the whole object become one extent, so that it can be removed.
fn join_whole_objects(image: &Image, extents: Vec<ObjectExtent>) -> Vec<ObjectExtent> {
    if image.layout().stripe_count() == 1 {
        return extents;
    }
    let mut by_object: std::collections::BTreeMap<ObjectNo, Vec<ObjectExtent>> = Default::default();
    for extent in extents {
        by_object.entry(extent.object_no).or_default().push(extent);
    }
    let mut out = Vec::new();
    for pieces in by_object.into_values() {
        let mut joined: Vec<ObjectExtent> = Vec::new();
        for piece in pieces {
            match joined.last_mut() {
                Some(last) if last.offset.0 + last.length_bytes == piece.offset.0 => {
                    last.length_bytes += piece.length_bytes;
                }
                _ => joined.push(piece),
            }
        }
        out.extend(joined);
    }
    out
}

async fn discard_extent(writer: &Writer<'_>, extent: ObjectExtent) -> Result<()> {
    let layout = writer.image.layout();
    let used = layout.object_bytes_used(extent.object_no, writer.header.size_bytes);
    let to_the_end = extent.offset.0 + extent.length_bytes >= used;
    if extent.offset.0 == 0 && to_the_end {
        return writer.empty(extent.object_no).await;
    }
    let length_bytes = if to_the_end {
        writer.object_size() - extent.offset.0
    } else {
        extent.length_bytes
    };
    writer.zero(extent.object_no, extent.offset.0, length_bytes).await
}

/// Those of `objects` that [`Writer::empty`] may have to do something about: the others neither exist nor show anything.
async fn touched<'a>(
    image: &Image,
    header: &Header,
    source: Option<&MigrationSource>,
    objects: Range<u64>,
) -> Result<Candidates<'a>> {
    let Some(mut touched) = existing(image, &objects).await? else {
        return Ok(Box::new(objects));
    };
    // Through these each is looked at.
    let mut near = objects.start;
    if let Some(source) = source {
        touched.extend(source.objects_to_copy(image).await?.iter());
        near = near.max(source.parent_object_count(image));
    }
    let overlap_bytes = header.largest_parent_overlap_bytes();
    if header.parent.is_some() {
        let shown = image.layout().object_count(overlap_bytes).min(objects.end);
        let over = match object_set::is_many(&(objects.start..shown)) {
            true => object_set::over_parents(image, overlap_bytes).await?,
            false => None,
        };
        match over {
            Some(over) => touched.extend(over.iter()),
            None => near = near.max(shown),
        }
    }
    let near = near.clamp(objects.start, objects.end);
    let far: Vec<u64> = touched.within(near..objects.end).collect();
    Ok(Box::new((objects.start..near).chain(far)))
}

/// Objects that may exist: by the map, or by a listing. `None`: it costs less to try each.
async fn existing(image: &Image, objects: &Range<u64>) -> Result<Option<ObjectSet>> {
    if !image.inner.head_map.is_loaded() {
        return object_set::existing_of_many(image, objects).await;
    }
    let mut found = ObjectSet::default();
    for first in objects.clone().step_by(LOOK_OBJECTS) {
        let end = objects.end.min(first.saturating_add(LOOK_OBJECTS as u64));
        image.inner.head_map.each_that_may_exist(first..end, |object| {
            found.insert(object);
        });
        tokio::task::yield_now().await;
    }
    Ok(Some(found))
}
