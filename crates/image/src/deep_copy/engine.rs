//! Copies that the engine makes itself, without the bytes passing through this process.
//!
//! For objects that have one version to copy: the source had nothing at its snapshots. The copy is buffered, which is
//! safe: a power loss leaves it whole, or absent, and absent means "not copied yet". What flushes a client's write to it
//! makes it durable, and execute syncs all before it says that it is done.

use ferry_store::{CopyRange, Durability, Errno, SnapId};

use super::delta::Sources;
use super::{Copied, guarded};
use crate::error::Result;
use crate::image::Image;
use crate::layout::{ImageExtent, ObjectExtent, ObjectNo};
use crate::migration::source::MigrationSource;

/// Copies the object if that can be done; `None`: it is to be read and written. The caller has marked the object maps,
/// or `mark` does.
pub(super) async fn copy(
    target: &Image,
    source: &MigrationSource,
    object_no: ObjectNo,
    sources: &Sources,
    mark: impl AsyncFnOnce() -> Result<()>,
) -> Result<Option<Copied>> {
    let (to, from) = (&target.inner.data_io, source.image());
    let one_store = std::sync::Arc::ptr_eq(to.store(), from.data_io().store());
    if !one_store || from.header().parent.is_some() || !sources.only_at_head(source) {
        return Ok(None);
    }
    let extents = extents(source, sources);
    if extents.is_empty() {
        return Ok(Some(Copied::default()));
    }
    let names: Vec<String> = extents
        .iter()
        .map(|(extent, _)| from.data_object(extent.object_no.0))
        .collect();
    let ranges: Vec<CopyRange<'_>> = extents
        .iter()
        .zip(&names)
        .map(|((extent, target_offset), name)| CopyRange {
            object: from.data_io().object(name),
            snap: SnapId::HEAD,
            offset: extent.offset.0,
            length_bytes: extent.length_bytes,
            target_offset: *target_offset,
        })
        .collect();
    mark().await?;
    let base = source.base_context();
    let mut op = guarded(base.seq()).alloc_hint(target.layout().object_size_bytes());
    op.durability = Durability::Buffered;
    let name = target.data_object(object_no.0);
    match to.copy_into(&name, &base, op, &ranges).await {
        Ok(reply) => Ok(Some(Copied {
            data_bytes: reply.data_bytes,
            zero_bytes: 0,
            exists: true,
        })),
        // Somebody has copied it before.
        Err(error) if error.errno == Errno::ERANGE => Ok(Some(Copied {
            data_bytes: 0,
            zero_bytes: 0,
            exists: true,
        })),
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

/// Where the target's object gets its bytes: extents of the source's objects that exist, with offsets in the target's,
/// ascending, adjoining ones joined.
fn extents(source: &MigrationSource, sources: &Sources) -> Vec<(ObjectExtent, u64)> {
    let layout = source.image().layout();
    let mut out: Vec<(ObjectExtent, u64)> = Vec::new();
    for piece in &sources.pieces {
        let start = piece.image.offset.0;
        let visible = source.head_overlap_bytes().saturating_sub(start);
        let length_bytes = visible.min(piece.image.length_bytes);
        let image = ImageExtent {
            length_bytes,
            ..piece.image
        };
        for extent in layout.map(image) {
            if !sources.exists_at_head(extent.object_no) {
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
