//! Copy-up: an object of a clone gets what the parent shows there, before its first change.
//!
//! Made with an exclusive creation, so that of several who try one does it and the others find it done. With no snapshot
//! that saw the parent through the object, the copy and the change are one write. With such snapshots there are two: the
//! copy under an empty snapshot context, which makes the object for all of them and for the head, then the change. Both
//! are buffered: a power loss leaves the object whole or absent, and absent it shows the parent again.
//!
//! Where the parent shows only zeroes nothing is copied: an absent object does as well.

use bytes::Bytes;
use ferry_cls::rbd::ObjectState;
use ferry_store::{Errno, SnapContext, SnapId, WriteOp, WriteStep};

use super::parent::Parent;
use crate::deep_copy::memory;
use crate::error::{ErrorKind, ImageError, Result, optional};
use crate::header::Header;
use crate::image::Image;
use crate::io::write::Writer;
use crate::layout::{ImageOffset, ObjectExtent, ObjectNo, ObjectOffset};
use crate::object_map::{mark, snap};

/// What a copy-up did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CopiedUp {
    /// The object exists, or an absent one shows only zeroes: the change can be made like any other.
    Ready,
    /// The change was made with it.
    WithChange,
}

/// How far versions of a clone show the parent through one object, in bytes of the object that are shown.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shown {
    /// Overlap of the head.
    pub head_overlap_bytes: u64,
    /// Largest overlap of a snapshot.
    pub snaps_overlap_bytes: u64,
}

impl Shown {
    /// Of an object of an image with this header; `None`: no version shows the parent there.
    pub(crate) fn through(image: &Image, header: &Header, object_no: ObjectNo) -> Option<Self> {
        header.parent.as_ref()?;
        let first_bytes = first_byte(image, object_no);
        let clip = |overlap_bytes: u64| {
            if overlap_bytes > first_bytes {
                overlap_bytes
            } else {
                0
            }
        };
        let overlaps = header.snaps.keys().map(|snap| header.parent_overlap_bytes(*snap));
        let shown = Self {
            head_overlap_bytes: clip(header.parent_overlap_bytes(SnapId::HEAD)),
            snaps_overlap_bytes: clip(overlaps.max().unwrap_or(0)),
        };
        (shown.head_overlap_bytes > 0 || shown.snaps_overlap_bytes > 0).then_some(shown)
    }

    /// Whether snapshots need what the head shows, or more.
    pub(crate) fn by_snaps(self) -> bool {
        self.snaps_overlap_bytes > 0
    }
}

/// Where the first byte of an object lies in the image.
fn first_byte(image: &Image, object_no: ObjectNo) -> u64 {
    let first = image.layout().unmap(object_no, ObjectOffset(0), 1);
    first.first().map_or(u64::MAX, |run| run.offset.0)
}

impl Writer<'_> {
    /// Whether the object surely exists. The caller holds its lock, or accepts that somebody makes it right now.
    pub(crate) async fn is_present(&self, object_no: ObjectNo) -> Result<bool> {
        let image = self.image;
        if image.inner.present.contains(object_no) {
            return Ok(true);
        }
        if !image.inner.head_map.may_exist(object_no) {
            return Ok(false);
        }
        let exists = image.data_io().exists(&image.data_object(object_no.0)).await?;
        if exists {
            self.note_present(object_no);
        }
        Ok(exists)
    }

    /// Remembers that the object exists, if nobody else can take it away.
    pub(crate) fn note_present(&self, object_no: ObjectNo) {
        if self.header.needs_lock() && self.header.parent.is_some() {
            self.image.inner.present.insert(object_no);
        }
    }

    /// Makes sure that an object that changes hides nothing of the parent. `change`, if given, is made with it where that
    /// is one write.
    pub(crate) async fn copy_up_parent(&self, object_no: ObjectNo, change: &[WriteStep]) -> Result<CopiedUp> {
        let image = self.image;
        if self.header.parent.is_none() || image.inner.present.contains(object_no) {
            return Ok(CopiedUp::Ready);
        }
        let Some(shown) = Shown::through(image, self.header, object_no) else {
            return Ok(CopiedUp::Ready);
        };
        let _one_at_a_time = image.inner.present.lock(object_no).await;
        if self.is_present(object_no).await? {
            return Ok(CopiedUp::Ready);
        }
        let waiting = image.stats().copy_up();
        let (done, copied_bytes) = self.fill(object_no, shown, change).await?;
        waiting.ended(copied_bytes);
        Ok(done)
    }

    /// The object is absent; its lock is held.
    async fn fill(&self, object_no: ObjectNo, shown: Shown, change: &[WriteStep]) -> Result<(CopiedUp, u64)> {
        let image = self.image;
        let Some(parent) = image.parent() else {
            return Err(no_parent(image));
        };
        let object = image.data_object(object_no.0);
        let snaps = match shown.by_snaps() {
            true => self.snaps_that_see(&object, object_no).await?,
            false => Vec::new(),
        };
        let used = |snap| {
            let overlap_bytes = self.header.parent_overlap_bytes(snap);
            image.layout().object_bytes_used(object_no, overlap_bytes)
        };
        let versions = snaps.iter().copied().chain([SnapId::HEAD]);
        let overlaps = versions.map(|snap| self.header.parent_overlap_bytes(snap));
        let overlap_bytes = overlaps.max().unwrap_or(0);
        let _room = memory::room(self.object_size()).await;
        let content = content(image, &parent, object_no, overlap_bytes).await?;
        if content.is_empty() {
            return Ok((CopiedUp::Ready, 0));
        }
        let copied_bytes = content.iter().map(|(_, data)| data.len() as u64).sum();
        let steps = content
            .into_iter()
            .map(|(offset, data)| WriteStep::Write { offset, data });
        let mut op = WriteOp::buffered().create(true).alloc_hint(self.object_size());
        op.steps.extend(steps);
        if snaps.is_empty() {
            op.steps.extend_from_slice(change);
            let _kept = mark::mark_exists(image, object_no).await?;
            let made = image.data_io().write(&object, &self.header.snapc, op).await;
            let done = match made {
                Ok(_) if !change.is_empty() => CopiedUp::WithChange,
                Ok(_) => CopiedUp::Ready,
                Err(error) if error.errno == Errno::EEXIST => CopiedUp::Ready,
                Err(error) => return Err(error.into()),
            };
            self.note_present(object_no);
            return Ok((done, copied_bytes));
        }
        let mut state = ObjectState::Exists;
        for snap in &snaps {
            snap::set(image, *snap, object_no, state).await?;
            state = ObjectState::ExistsClean;
        }
        let _kept = mark::mark_exists(image, object_no).await?;
        match image.data_io().write(&object, &SnapContext::empty(), op).await {
            Ok(_) => {}
            Err(error) if error.errno == Errno::EEXIST => {}
            Err(error) => return Err(error.into()),
        }
        // A shrink copies up before it lowers the overlap, so all of these are the same, but for images that somebody else
        // has shrunk.
        let mut shown_bytes = used(snaps[0]);
        for snap in snaps.iter().skip(1).copied().chain([SnapId::HEAD]) {
            if used(snap) < shown_bytes {
                shown_bytes = used(snap);
                let op = WriteOp::buffered().truncate(shown_bytes);
                image.data_io().write(&object, &self.older_than(snap), op).await?;
            }
        }
        self.note_present(object_no);
        Ok((CopiedUp::Ready, copied_bytes))
    }

    /// Snapshots that will see the object when it is made, ascending: those newer than what it has lived through, which saw
    /// it absent and still do.
    async fn snaps_that_see(&self, object: &str, object_no: ObjectNo) -> Result<Vec<SnapId>> {
        let asked: Vec<SnapId> = self.header.snaps.keys().copied().collect();
        let snapset = optional(self.image.data_io().list_snaps(object, &asked).await)?;
        let since = SnapId(snapset.map_or(0, |set| set.seq) + 1);
        let first_bytes = first_byte(self.image, object_no);
        let snaps = self.header.snaps.range(since..).map(|(id, _)| *id);
        Ok(snaps
            .filter(|snap| self.header.parent_overlap_bytes(*snap) > first_bytes)
            .collect())
    }

    /// The context of a write that `snap` is the first to see.
    fn older_than(&self, snap: SnapId) -> SnapContext {
        if snap.is_head() {
            return self.header.snapc.clone();
        }
        let older: Vec<SnapId> = self.header.snaps.range(..snap).map(|(id, _)| *id).rev().collect();
        SnapContext::new(older.first().map_or(0, |newest| newest.0), older).unwrap_or_default()
    }

    /// Whether the parent may show something else than zeroes through the head of the object.
    pub(crate) async fn parent_shows(&self, object_no: ObjectNo) -> Result<bool> {
        let Some(shown) = Shown::through(self.image, self.header, object_no) else {
            return Ok(false);
        };
        let overlap_bytes = shown.head_overlap_bytes.max(shown.snaps_overlap_bytes);
        match self.image.parent() {
            Some(parent) => {
                parent
                    .has_object_under(self.image, object_no, overlap_bytes)
                    .await
            }
            None => Err(no_parent(self.image)),
        }
    }
}

fn no_parent(image: &Image) -> ImageError {
    ImageError::of(
        ErrorKind::ParentMissing,
        Errno::EROFS,
        format!("image '{}' was opened without its parent", image.name()),
    )
}

/// What the parent shows through an object, by offsets in the object; runs of nothing but zeroes are left out.
async fn content(
    image: &Image,
    parent: &Parent,
    object_no: ObjectNo,
    overlap_bytes: u64,
) -> Result<Vec<(u64, Bytes)>> {
    let whole = ObjectExtent {
        object_no,
        offset: ObjectOffset(0),
        length_bytes: image.layout().object_size_bytes(),
        image_offset: ImageOffset(first_byte(image, object_no)),
    };
    let (found, _) = parent.read_through(image, whole, overlap_bytes).await?;
    Ok(by_object_offset(image, object_no, found.runs))
}

/// Runs of an image that lie in one object, by offsets in it; zeroes are left out.
pub(crate) fn by_object_offset(
    image: &Image,
    object_no: ObjectNo,
    runs: Vec<(u64, Bytes)>,
) -> Vec<(u64, Bytes)> {
    let layout = image.layout();
    let mut out = Vec::with_capacity(runs.len());
    for (at, mut data) in runs {
        let run = crate::layout::ImageExtent {
            offset: ImageOffset(at),
            length_bytes: data.len() as u64,
        };
        for extent in layout.map(run) {
            let piece = data.split_to((extent.length_bytes as usize).min(data.len()));
            debug_assert_eq!(extent.object_no, object_no);
            if extent.object_no == object_no && piece.iter().any(|byte| *byte != 0) {
                out.push((extent.offset.0, piece));
            }
        }
    }
    out.sort_by_key(|(offset, _)| *offset);
    out
}
