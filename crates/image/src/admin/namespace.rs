//! Namespaces of a pool.

use ferry_cls::rbd::{DirectoryState, client};
use ferry_store::{Errno, IoCtx};

use super::{directory, trash};
use crate::error::{ErrorKind, ImageError, Result};
use crate::names;

/// All namespaces of the pool of `io`, sorted.
pub async fn list(io: &IoCtx) -> Result<Vec<String>> {
    Ok(client::namespace_list_all(&io.with_namespace("")).await?)
}

/// Whether the pool of `io` has the namespace.
pub async fn exists(io: &IoCtx, name: &str) -> Result<bool> {
    Ok(list(io).await?.iter().any(|found| found == name))
}

/// Makes a namespace. `EEXIST` if it is there.
pub async fn create(io: &IoCtx, name: &str) -> Result<()> {
    names::check_namespace_name(name)?;
    let io = io.with_namespace("");
    let added = ferry_cls::exec_write(&io, names::NAMESPACES, client::namespace_add(name)).await;
    let existed = match added {
        Ok(()) => false,
        Err(error) if error.errno == Errno::EEXIST => true,
        Err(error) => return Err(error.into()),
    };
    // Also for one that exists: an earlier create may have been interrupted here.
    let inside = io.with_namespace(name);
    let call = client::dir_state_set(DirectoryState::Ready);
    ferry_cls::exec_write(&inside, names::DIRECTORY, call).await?;
    if existed {
        return Err(ImageError::new(Errno::EEXIST, format!("namespace '{name}'")));
    }
    Ok(())
}

/// Removes a namespace. `EBUSY` while it has images (in the trash too), `ENOENT`
/// ([`ErrorKind::NamespaceMissing`]) without it.
pub async fn remove(io: &IoCtx, name: &str) -> Result<()> {
    let io = io.with_namespace("");
    let inside = io.with_namespace(name);
    let missing = || {
        ImageError::of(
            ErrorKind::NamespaceMissing,
            Errno::ENOENT,
            format!("namespace '{name}'"),
        )
    };
    if !exists(&io, name).await? {
        return Err(missing());
    }
    if !trash::list(&inside).await?.is_empty() {
        return Err(not_empty(name, "images in the trash"));
    }
    let call = client::dir_state_set(DirectoryState::AddDisabled);
    match ferry_cls::exec_write(&inside, names::DIRECTORY, call).await {
        Ok(()) => {}
        Err(error) if error.errno == Errno::EBUSY => return Err(not_empty(name, "images")),
        Err(error) => return Err(error.into()),
    }
    debug_assert!(
        directory::list(&inside)
            .await
            .is_ok_and(|images| images.is_empty())
    );
    match ferry_cls::exec_write(&io, names::NAMESPACES, client::namespace_remove(name)).await {
        Err(error) if error.errno == Errno::ENOENT => Err(missing()),
        result => Ok(result?),
    }
}

fn not_empty(name: &str, what: &str) -> ImageError {
    ImageError::new(Errno::EBUSY, format!("namespace '{name}' has {what}"))
}
