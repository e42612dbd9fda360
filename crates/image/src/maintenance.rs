//! Maintenance: work that must not run beside another writer. Done here by the owner of the exclusive lock, or handed to
//! the owner if that is somebody else.

use ferry_store::Errno;

use crate::error::{ErrorKind, ImageError, Result};
use crate::exclusive_lock::{Holder, Tenure};
use crate::image::Image;
use crate::progress::Progress;
use crate::snapshot;
use crate::watch::messages::Request;
use crate::watch::remote;

/// How often work is begun anew because the lock changed hands or an owner fell silent.
const MAX_ATTEMPTS: usize = 20;
/// Pause before another attempt.
const RETRY_MS: u64 = 100;

impl Image {
    /// Does `request` here if this handle owns the lock or can get it from nobody or the dead, else through the owner.
    pub(crate) async fn maintain(&self, request: &Request, progress: &Progress) -> Result<()> {
        if self.inner.read_only {
            return Err(ImageError::new(
                Errno::EROFS,
                format!("image '{}' is open read-only", self.name()),
            ));
        }
        let mut last = None;
        let mut may_be_done = false;
        for attempt in 0..MAX_ATTEMPTS {
            self.refresh_for_client().await?;
            if attempt == 0
                && let Request::SnapCreate { name, namespace, .. } = request
            {
                // Or it would pass for the work of a first try that nobody heard of.
                snapshot::check_is_new(self, name, namespace)?;
            }
            match self.try_acquire_lock().await? {
                Holder::Us => match run(self, request, self.tenure(), progress).await {
                    // The lock was handed over in the middle; what is done stays done.
                    Err(error) if error.errno == Errno::ERESTART => last = Some(error),
                    // An abort that is about to find that it cannot be has marked the migration, perhaps after the work.
                    Err(error) if error.kind == ErrorKind::Migrating && error.errno == Errno::EROFS => {
                        may_be_done = true;
                        last = Some(error);
                        pause().await;
                    }
                    Err(error) if may_be_done && is_done(request, &error) => return self.refresh().await,
                    result => return result,
                },
                Holder::Nobody | Holder::Dead(_) => {}
                Holder::Alive(_) => match remote::forward(self, request, progress).await {
                    Ok(()) => return Ok(()),
                    // ESHUTDOWN: the owner closed the image in the middle. ENOTCONN: it had lost its watch. If it is this
                    // client that is fenced, the next look at the header says so.
                    Err(failed)
                        if matches!(
                            failed.error.errno,
                            Errno::ERESTART
                                | Errno::ETIMEDOUT
                                | Errno::EAGAIN
                                | Errno::ESHUTDOWN
                                | Errno::ENOTCONN
                                | Errno::EROFS
                        ) =>
                    {
                        may_be_done |= failed.accepted;
                        last = Some(failed.error);
                        pause().await;
                    }
                    // Nobody may be left to tell this handle of it.
                    Err(failed) if may_be_done && is_done(request, &failed.error) => {
                        return self.refresh().await;
                    }
                    Err(failed) => return Err(failed.error),
                },
                Holder::External(who) => {
                    return Err(ImageError::of(
                        ErrorKind::LockHeld,
                        Errno::EBUSY,
                        format!("image '{}': lock is held by {who}", self.name()),
                    )
                    .hint("remove it with 'rbd lock rm' if that client is gone"));
                }
            }
        }
        Err(last.unwrap_or_else(|| {
            ImageError::of(
                ErrorKind::LockHeld,
                Errno::EBUSY,
                format!("image '{}': exclusive lock changes hands too often", self.name()),
            )
        }))
    }
}

/// Before another attempt: what is in the way does not pass at once.
async fn pause() {
    tokio::time::sleep(std::time::Duration::from_millis(RETRY_MS)).await;
}

/// Whether an error of a repeated request says that the first one, whose end was never heard of, did its work.
fn is_done(request: &Request, error: &ImageError) -> bool {
    match request {
        Request::SnapCreate { .. } | Request::Rename { .. } | Request::SnapRename { .. } => {
            error.errno == Errno::EEXIST
        }
        Request::SnapRemove { .. } => error.errno == Errno::ENOENT,
        Request::SnapProtect { .. } => error.errno == Errno::EBUSY,
        Request::Flatten | Request::SnapUnprotect { .. } => error.errno == Errno::EINVAL,
        _ => false,
    }
}

/// Does the work; this handle owns the lock, or the image has none. What must not be done twice is done in that tenure or not at
/// all.
pub(crate) async fn run(
    image: &Image,
    request: &Request,
    tenure: Option<Tenure>,
    progress: &Progress,
) -> Result<()> {
    match request {
        Request::Resize {
            size_bytes,
            allow_shrink,
        } => crate::resize::resize_here(image, *size_bytes, *allow_shrink, tenure, progress).await,
        Request::SnapCreate {
            name,
            namespace,
            flags,
        } => crate::snapshot::create_here(image, name, namespace.clone(), *flags, tenure, progress).await,
        Request::SnapRemove { name, namespace } => {
            crate::snapshot::remove_here(image, name, namespace, tenure, progress).await
        }
        Request::SnapRename { snap, new_name } => crate::snapshot::rename_here(image, *snap, new_name).await,
        Request::SnapProtect { name, namespace } => {
            crate::snapshot::protect_here(image, name, namespace).await
        }
        Request::SnapUnprotect { name, namespace } => {
            crate::snapshot::unprotect_here(image, name, namespace).await
        }
        Request::RebuildObjectMap => crate::object_map::rebuild::rebuild(image, progress).await,
        Request::Rename { new_name } => crate::admin::rename::rename_here(image, new_name).await,
        Request::MetadataUpdate { key, value } => {
            crate::admin::metadata::update_here(image, key, value.clone()).await
        }
        Request::Migrate => crate::migration::execute::copy_all(image, progress).await,
        Request::Flatten => crate::layering::flatten::flatten_here(image, progress).await,
        Request::UpdateFeatures { features, enabled } => {
            crate::features::update_here(image, *features, *enabled, tenure).await
        }
        Request::Sparsify { sparse_size_bytes } => {
            crate::io::sparsify::sparsify_here(image, *sparse_size_bytes, progress).await
        }
    }
}
