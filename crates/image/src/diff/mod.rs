//! Which parts of an image differ between two snapshots, or between its creation and what a handle shows: `rbd diff`, and
//! what `export-diff` writes.
//!
//! Promises: every byte that differs lies in an extent that is told; an extent may also hold bytes that are equal. Extents
//! come in image order, do not overlap, and end at the image's end; adjoining ones of a kind are one within a stripe
//! period. They are those of Ceph's `rbd`, but that an object which shrinking took away is told by whole-object diffs too.
//! Costs follow the objects that exist; with object maps that can be believed, those that changed. Reads only; holds some
//! periods' extents in memory, and one bit or two per object.
//!
//! Where an image shows what lies under it (the source of a migration, the parent of a clone) what lies under it is asked
//! ([`below`]); [`delta`] of the snapshot arithmetic says what became of one object; [`maps`] is what the object maps
//! say.

mod below;
pub(crate) mod maps;

use ferry_store::{Errno, SnapId};
use futures::stream::{Stream, StreamExt as _};

use crate::error::{ErrorKind, ImageError, Result, optional};
use crate::image::Image;
use crate::io::CONCURRENT_OBJECTS;
use crate::layout::{ImageExtent, ImageOffset, Layout, ObjectNo, ObjectOffset};
use crate::object_set::ObjectSet;
use crate::snapshot::diff::{Delta, delta, serving};

/// A part of the image that differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiffExtent {
    /// First byte.
    pub offset: ImageOffset,
    /// Length in bytes, at most a stripe period.
    pub length_bytes: u64,
    /// Whether there is data now; otherwise it reads as zero, and there was something before.
    pub exists: bool,
}

impl DiffExtent {
    /// Offset behind the last byte.
    pub fn end(&self) -> u64 {
        self.offset.0 + self.length_bytes
    }
}

/// What is compared.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Span {
    /// From here; `None`: from the image's creation.
    pub from: Option<SnapId>,
    /// To here.
    pub to: SnapId,
    /// Whether objects are compared as wholes.
    pub whole_object: bool,
}

/// A comparison that is about to be made: which objects have to be looked at.
#[derive(Debug)]
pub struct Diff {
    image: Image,
    span: Span,
    size_bytes: u64,
    objects: Objects,
}

#[derive(Debug)]
enum Objects {
    /// The maps say it all: objects that hold data now, and those that are gone.
    Known { data: ObjectSet, gone: ObjectSet },
    /// These have to be looked at.
    Ask(ObjectSet),
}

impl Diff {
    /// Compares what `image` shows with its snapshot `from`, or with nothing. `ENOENT`
    /// ([`ErrorKind::SnapMissing`]) without that snapshot, `EINVAL` if it is newer than what the handle shows.
    pub async fn new(image: &Image, from: Option<SnapId>, whole_object: bool) -> Result<Self> {
        image.refresh_for_client().await?;
        image.flush_data().await?;
        let header = image.header();
        let to = image.read_snap();
        if let Some(from) = from {
            if !header.snaps.contains_key(&from) {
                return Err(ImageError::of(
                    ErrorKind::SnapMissing,
                    Errno::ENOENT,
                    format!("snapshot id {from} of image '{}'", image.name()),
                ));
            }
            if from > to {
                return Err(ImageError::new(
                    Errno::EINVAL,
                    format!(
                        "the start of the difference (snapshot id {from}) is newer than its end (id {to})"
                    ),
                ));
            }
        }
        let size_bytes = image.size_bytes();
        let span = Span {
            from,
            to,
            whole_object,
        };
        let objects = match from == Some(to) {
            true => Objects::Ask(ObjectSet::default()),
            false => objects(image, span, size_bytes).await?,
        };
        Ok(Self {
            image: image.clone(),
            span,
            size_bytes,
            objects,
        })
    }

    /// Size of what is shown at the end.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// The extents, in order; each item is what one stripe period has of them.
    pub fn extents(&self) -> impl Stream<Item = Result<Vec<DiffExtent>>> + Send + '_ {
        let period = self.image.layout().stripe_count();
        let objects: Box<dyn Iterator<Item = (ObjectNo, Asked)> + Send + '_> = match &self.objects {
            Objects::Ask(objects) => Box::new(objects.iter().map(|object| (object, Asked::Store))),
            Objects::Known { data, gone } => Box::new(merged(data, gone)),
        };
        let mut objects = objects.peekable();
        let periods = std::iter::from_fn(move || {
            let first = objects.next()?;
            let number = first.0.0 / period;
            let mut together = vec![first];
            while let Some(next) = objects.next_if(|(object, _)| object.0 / period == number) {
                together.push(next);
            }
            Some(together)
        });
        futures::stream::iter(periods)
            .map(|objects| self.period(objects))
            .buffered(CONCURRENT_OBJECTS)
    }

    async fn period(&self, objects: Vec<(ObjectNo, Asked)>) -> Result<Vec<DiffExtent>> {
        let mut out = Vec::new();
        for (object_no, asked) in objects {
            let whole = vec![(0, self.image.layout().object_size_bytes())];
            let delta = match asked {
                Asked::Data => Delta {
                    data: whole,
                    zero: Vec::new(),
                },
                Asked::Gone => Delta {
                    data: Vec::new(),
                    zero: whole,
                },
                Asked::Store => object_delta(&self.image, self.span, object_no).await?,
            };
            let layout = self.image.layout();
            push_runs(layout, object_no, &delta.data, true, self.size_bytes, &mut out);
            push_runs(layout, object_no, &delta.zero, false, self.size_bytes, &mut out);
        }
        Ok(joined(out))
    }
}

/// How it is known what became of an object.
#[derive(Debug, Clone, Copy)]
enum Asked {
    Store,
    Data,
    Gone,
}

/// Two sets without common members as one ascending row.
fn merged<'a>(
    data: &'a ObjectSet,
    gone: &'a ObjectSet,
) -> impl Iterator<Item = (ObjectNo, Asked)> + Send + 'a {
    let (mut data, mut gone) = (data.iter().peekable(), gone.iter().peekable());
    std::iter::from_fn(move || match (data.peek(), gone.peek()) {
        (Some(one), Some(other)) if other < one => gone.next().map(|object| (object, Asked::Gone)),
        (Some(_), _) => data.next().map(|object| (object, Asked::Data)),
        (None, _) => gone.next().map(|object| (object, Asked::Gone)),
    })
}

/// The objects that a comparison has to do with.
async fn objects(image: &Image, span: Span, size_bytes: u64) -> Result<Objects> {
    let end = image.layout().object_count(size_bytes);
    let within =
        |objects: ObjectSet| -> ObjectSet { objects.iter().filter(|object| object.0 < end).collect() };
    let source = image.source();
    let changes = match source {
        Some(_) => None,
        None => maps::Changes::load(image, span).await?,
    };
    let parent = image.parent();
    let shown_bytes = span.from.into_iter().chain([span.to]);
    let shown_bytes = shown_bytes.map(|snap| image.header().parent_overlap_bytes(snap));
    let shown_bytes = shown_bytes.max().unwrap_or(0);
    let mut ask = match changes {
        Some(changes) if span.whole_object && (parent.is_none() || shown_bytes == 0) => {
            return Ok(Objects::Known {
                data: within(changes.data),
                gone: within(changes.gone),
            });
        }
        Some(mut changes) => {
            changes.data.extend(changes.gone.iter());
            changes.data
        }
        None => crate::object_set::existing(image).await?,
    };
    if let Some(source) = source {
        ask.extend(source.objects_to_copy(image).await?.iter());
    }
    if let Some(parent) = parent {
        ask.extend(below::parent_objects(image, &parent, shown_bytes).await?.iter());
    }
    Ok(Objects::Ask(within(ask)))
}

/// What became of one object, wherever its bytes are.
pub(crate) async fn object_delta(image: &Image, span: Span, object_no: ObjectNo) -> Result<Delta> {
    if let Some(source) = image.source()
        && source.covers(image, object_no)
        && !source.is_complete(image, object_no).await?
    {
        return below::source_delta(image, &source, span, object_no).await;
    }
    let object = image.data_object(object_no.0);
    let snaps: Vec<SnapId> = image.header().snaps.keys().copied().collect();
    let set = optional(image.data_io().list_snaps(&object, &snaps).await)?;
    let exists_at = |snap| set.as_ref().is_some_and(|set| serving(set, snap).is_some());
    if let Some(parent) = image.parent()
        && !exists_at(span.to)
        && !span.from.is_some_and(exists_at)
    {
        return below::parent_delta(image, &parent, span, object_no).await;
    }
    let Some(set) = set else {
        return Ok(Delta::default());
    };
    let object_size = image.layout().object_size_bytes();
    Ok(delta(&set, span.from, span.to, object_size, span.whole_object))
}

/// Runs of an object as extents of the image, as far as the image goes.
fn push_runs(
    layout: &Layout,
    object_no: ObjectNo,
    runs: &[(u64, u64)],
    exists: bool,
    size_bytes: u64,
    out: &mut Vec<DiffExtent>,
) {
    for &(start, end) in runs {
        for piece in layout.unmap(object_no, ObjectOffset(start), end - start) {
            let ImageExtent { offset, length_bytes } = piece;
            let length_bytes = length_bytes.min(size_bytes.saturating_sub(offset.0));
            if length_bytes > 0 {
                out.push(DiffExtent {
                    offset,
                    length_bytes,
                    exists,
                });
            }
        }
    }
}

fn joined(mut extents: Vec<DiffExtent>) -> Vec<DiffExtent> {
    extents.sort_unstable_by_key(|extent| extent.offset);
    let mut out: Vec<DiffExtent> = Vec::with_capacity(extents.len());
    for extent in extents {
        match out.last_mut() {
            Some(last) if last.end() == extent.offset.0 && last.exists == extent.exists => {
                last.length_bytes += extent.length_bytes;
            }
            _ => out.push(extent),
        }
    }
    out
}
