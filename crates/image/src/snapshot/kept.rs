//! Whether an open snapshot is still there: read-only handles watch nothing, so nobody is told when one is removed.
//!
//! An absent object of a snapshot is a hole, or one that its removal took. A removal marks the snapshot before it touches
//! an object, so a look at the mark behind the read tells which. It does not know what was read.

use ferry_cls::CallExt as _;
use ferry_cls::rbd::{SnapshotNamespace, client};
use ferry_store::{Errno, ReadOp, SnapId};

use crate::error::{ErrorKind, ImageError, Result, optional};
use crate::header;
use crate::image::Image;

/// `ESTALE` ([`ErrorKind::Removed`]) if the snapshot that the handle shows was removed, or is being: then an absent object
/// says nothing. A snapshot goes to the trash before any of it is touched, and no clone counts on it then. Images of format 1
/// have no trash: of those it is only told once the header forgot it, a moment after its objects may have gone.
pub(crate) async fn check_still_there(image: &Image) -> Result<()> {
    let snap = image.read_snap();
    let is_kept = match image.key().is_format_1() {
        true => header::load(image.io(), image.key(), true)
            .await?
            .snaps
            .contains_key(&snap),
        false => is_kept(image, snap).await?,
    };
    if is_kept {
        return Ok(());
    }
    let noun = match image.serves_as_parent() {
        true => "parent image",
        false => "image",
    };
    Err(ImageError::of(
        ErrorKind::Removed,
        Errno::ESTALE,
        format!("snapshot id {snap} of {noun} '{}' was removed", image.name()),
    ))
}

async fn is_kept(image: &Image, snap: SnapId) -> Result<bool> {
    let call = client::snapshot_get(snap);
    let op = ReadOp::new().class_call(&call);
    let reply = image
        .io()
        .read(&image.inner.header_object, SnapId::HEAD, op)
        .await;
    let Some(reply) = optional(reply)? else {
        return Ok(false);
    };
    let info = call.decode(reply.output(0))?;
    let in_trash = matches!(info.namespace, SnapshotNamespace::Trash { .. });
    Ok(!in_trash || info.child_count > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::create;
    use crate::image::{ImageKey, OpenOptions, SnapKey};
    use crate::in_memory;
    use crate::progress::Progress;

    /// Reads a snapshot that somebody has removed since it was opened, and whose bytes went with it.
    async fn read_removed(format_1: bool) -> Result<bytes::Bytes> {
        let io = in_memory::pool().await;
        let options = create::CreateOptions {
            size_bytes: 1 << 20,
            format_1,
            ..create::CreateOptions::default()
        };
        create::create(&io, "disk", &options).await.unwrap();
        let image = Image::open(&io, ImageKey::Name("disk"), OpenOptions::read_write())
            .await
            .unwrap();
        image.write(0, vec![7; 4096].into()).await.unwrap();
        image.snap_create("s", &Progress::silent()).await.unwrap();
        image.discard(0, image.size_bytes()).await.unwrap();
        let at = OpenOptions::read_only().at(SnapKey::Name("s".to_owned()));
        let shown = Image::open(&io, ImageKey::Name("disk"), at).await.unwrap();
        assert_eq!(shown.read(0, 4096).await.unwrap(), vec![7; 4096]);
        assert_eq!(shown.read(1 << 19, 4096).await.unwrap(), vec![0; 4096]);
        image.snap_remove("s", &Progress::silent()).await.unwrap();
        shown.read(0, 4096).await
    }

    #[tokio::test]
    async fn a_snapshot_that_was_removed_under_its_reader_is_not_shown_as_zeros() {
        for format_1 in [false, true] {
            let refused = read_removed(format_1).await.unwrap_err();
            assert_eq!(refused.kind, ErrorKind::Removed, "{refused}");
        }
    }
}
