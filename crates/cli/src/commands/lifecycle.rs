//! `rbd rm`, `rbd mv`, `rbd resize` and `rbd sparsify`.

use ferry_image::io::sparsify::DEFAULT_SPARSE_SIZE_BYTES;
use ferry_image::{ErrorKind, ImageError, OpenOptions, admin};
use ferry_store::Errno;

use super::error::Explain as _;
use super::session::Session;
use crate::exit::Failure;
use crate::spec::{Check, ImageQuery};

/// Ceph's text for an image that cannot be removed because it has snapshots.
const HAS_SNAPSHOTS: &str =
    "rbd: image has snapshots - these must be deleted with 'rbd snap purge' before the image can be removed.";
/// Ceph's text for an image that cannot be removed because clones show its removed snapshots.
const HAS_CLONES: &str = "rbd: image has snapshots with linked clones - these must be deleted or flattened before the image can be removed.";
/// Ceph's text for an image that cannot be removed because it is open.
const HAS_WATCHERS: &str = "rbd: error: image still has watchers\n\
     This means the image is still open or the client using it crashed. Try again after closing/unmapping it or \
     waiting 30s for the crashed client to timeout.";

pub(super) async fn remove(session: &Session) -> Result<(), Failure> {
    let spec = session.args().image(ImageQuery::source())?;
    session.args().finish()?;
    let io = session.place_of(&spec).await?;
    let task = session.task("Removing image");
    let removed = admin::remove::remove(&io, &spec.image, &task.library()).await;
    task.end(removed)
        .map_err(|error| remove_failed(error, "delete error"))
}

/// Why an image was not removed, in Ceph's words; also used by the trash.
pub(super) fn remove_failed(error: ImageError, what: &str) -> Failure {
    match error.errno {
        Errno::ENOTEMPTY if error.kind == ErrorKind::HasChildren => error.said(HAS_CLONES),
        Errno::ENOTEMPTY => error.said(HAS_SNAPSHOTS),
        _ if error.kind == ErrorKind::InGroup => {
            let line = format!("rbd: error: {}", error.message);
            Failure::message(line, error.errno.0).with_line("Remove the image from the group and try again.")
        }
        Errno::EBUSY if matches!(error.kind, ErrorKind::HasWatchers | ErrorKind::Migrating) => {
            error.said(HAS_WATCHERS)
        }
        _ => error.failed(what),
    }
}

pub(super) async fn rename(session: &Session) -> Result<(), Failure> {
    let args = session.args();
    let source = args.image(ImageQuery::source())?;
    let dest = args.image(ImageQuery::dest().check(Check::Full).inherit(&source))?;
    args.finish()?;
    if source.pool != dest.pool {
        return Err(
            Failure::invalid("mv/rename across pools not supported").with_line(format_args!(
                "source pool: {} dest pool: {}",
                source.pool, dest.pool
            )),
        );
    }
    if source.namespace != dest.namespace {
        return Err(
            Failure::invalid("mv/rename across namespaces not supported").with_line(format_args!(
                "source namespace: {} dest namespace: {}",
                source.namespace, dest.namespace
            )),
        );
    }
    let io = session.place_of(&source).await?;
    admin::rename::rename(&io, &source.image, &dest.image)
        .await
        .map_err(|error| error.failed("rename error"))
}

pub(super) async fn resize(session: &Session) -> Result<(), Failure> {
    let args = session.args();
    let spec = args.image(ImageQuery::source())?;
    let size_bytes = args.required_size_bytes()?;
    args.finish()?;
    let allow_shrink = args.flag("allow-shrink");
    let image = session.image(&spec, OpenOptions::read_write()).await?;
    let now_bytes = image.size_bytes();
    if size_bytes == now_bytes {
        return Err(Failure::invalid("new size is equal to original size "));
    }
    if size_bytes < now_bytes && !allow_shrink {
        return Err(Failure::invalid(
            "shrinking an image is only allowed with the --allow-shrink flag",
        ));
    }
    let task = session.task("Resizing image");
    let resized = image.resize(size_bytes, allow_shrink, &task.library()).await;
    task.end(resized).map_err(|error| error.failed("resize error"))
}

pub(super) async fn sparsify(session: &Session) -> Result<(), Failure> {
    let args = session.args();
    let spec = args.image(ImageQuery::source())?;
    let sparse_size_bytes = args
        .size_bytes("sparse-size")
        .unwrap_or(DEFAULT_SPARSE_SIZE_BYTES);
    args.finish()?;
    let image = session.image(&spec, OpenOptions::read_write()).await?;
    let task = session.task("Image sparsify");
    let sparsified = image.sparsify(sparse_size_bytes, &task.library()).await;
    task.end(sparsified)
        .map_err(|error| error.failed("sparsify error"))
}
