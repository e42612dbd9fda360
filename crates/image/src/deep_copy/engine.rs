//! Copies that the engine makes itself, without the bytes passing through this process: the first version of an object that
//! has anything, which is most of what there is to copy.
//!
//! The copy of the only version is buffered, which is safe: a power loss leaves it whole, or absent, and absent means "not
//! copied yet". What flushes a client's write to it makes it durable, and execute syncs all before it says that it is done.

use ferry_store::{CopyRange, Errno, SnapContext, SnapId, WriteOp};

use super::delta::Sources;
use crate::error::Result;
use crate::image::Image;
use crate::layout::{ImageExtent, ObjectExtent};
use crate::migration::source::MigrationSource;

/// Where one version of the target's object gets its bytes.
#[derive(Debug)]
pub(super) struct EngineCopy {
    /// The source's snapshot.
    snap: SnapId,
    /// Extents of the source's objects that exist there, with offsets in the target's, ascending, adjoining ones joined.
    extents: Vec<(ObjectExtent, u64)>,
    size_bytes: u64,
}

impl EngineCopy {
    /// Of what the source has at `snap` in the first `overlap_bytes` of its image. `None`: no bytes at all.
    pub(super) fn new(
        source: &MigrationSource,
        sources: &Sources,
        snap: SnapId,
        overlap_bytes: u64,
    ) -> Option<Self> {
        let extents = extents(source, sources, snap, overlap_bytes);
        let ends = extents.iter().filter_map(|(extent, target_offset)| {
            let size_bytes = sources.size_at(extent.object_no, snap)?;
            let given_bytes = size_bytes.saturating_sub(extent.offset.0);
            (given_bytes > 0).then(|| target_offset + given_bytes.min(extent.length_bytes))
        });
        let size_bytes = ends.max()?;
        Some(Self {
            snap,
            extents,
            size_bytes,
        })
    }

    /// Size of the target's object afterwards.
    pub(super) fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Makes `object` of the target; `op` says what must hold. Gives the bytes that were copied, and whether there is an object
    /// now: not if they all turned out to be holes. `None`: it is to be read and written.
    pub(super) async fn run(
        &self,
        target: &Image,
        object: &str,
        source: &MigrationSource,
        context: &SnapContext,
        op: WriteOp,
    ) -> Result<Option<(u64, bool)>> {
        let from = source.image();
        let names: Vec<String> = self
            .extents
            .iter()
            .map(|(extent, _)| from.data_object(extent.object_no.0))
            .collect();
        let ranges: Vec<CopyRange<'_>> = self
            .extents
            .iter()
            .zip(&names)
            .map(|((extent, target_offset), name)| CopyRange {
                object: from.data_io().object(name),
                snap: self.snap,
                offset: extent.offset.0,
                length_bytes: extent.length_bytes,
                target_offset: *target_offset,
            })
            .collect();
        match target.inner.data_io.copy_into(object, context, op, &ranges).await {
            Ok(reply) => Ok(Some((reply.data_bytes, reply.data_bytes > 0))),
            // Somebody has copied it before.
            Err(error) if error.errno == Errno::ERANGE => Ok(Some((0, true))),
            Err(error)
                if matches!(
                    error.errno,
                    Errno::EOPNOTSUPP | Errno::EINVAL | Errno::EEXIST | Errno::ENOENT
                ) =>
            {
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }
}

fn extents(
    source: &MigrationSource,
    sources: &Sources,
    snap: SnapId,
    overlap_bytes: u64,
) -> Vec<(ObjectExtent, u64)> {
    let layout = source.image().layout();
    let mut out: Vec<(ObjectExtent, u64)> = Vec::new();
    for piece in &sources.pieces {
        let start = piece.image.offset.0;
        let visible = overlap_bytes.saturating_sub(start);
        let length_bytes = visible.min(piece.image.length_bytes);
        let image = ImageExtent {
            length_bytes,
            ..piece.image
        };
        for extent in layout.map(image) {
            if sources.size_at(extent.object_no, snap).is_none() {
                continue;
            }
            let offset = piece.offset + (extent.image_offset.0 - start);
            match out.last_mut() {
                Some((last, at))
                    if last.object_no == extent.object_no
                        && last.offset.0 + last.length_bytes == extent.offset.0
                        && *at + last.length_bytes == offset =>
                {
                    last.length_bytes += extent.length_bytes;
                }
                _ => out.push((extent, offset)),
            }
        }
    }
    out
}
