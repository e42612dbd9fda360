//! Namespaces of a pool (rbd-format sheet, section 3.10).
//!
//! A namespace is listed in the pool's default namespace, and its own directory says "ready". Creating does it in this
//! order and removing in the other; what a kill leaves in between takes no images, and either verb run again finishes.

use ferry_cls::CallExt as _;
use ferry_cls::rbd::{DirectoryState, client};
use ferry_store::{Errno, IoCtx, WriteOp};

use crate::error::{ErrorKind, ImageError, Result, absent_is_fine};
use crate::names;

/// Names of the pool's namespaces, sorted; the default one has none.
pub async fn list(io: &IoCtx) -> Result<Vec<String>> {
    Ok(client::namespace_list_all(&io.with_namespace("")).await?)
}

/// Whether the pool has the namespace. The default one is always there.
pub async fn exists(io: &IoCtx, name: &str) -> Result<bool> {
    if name.is_empty() {
        return Ok(true);
    }
    Ok(list(io).await?.iter().any(|listed| listed == name))
}

/// `ENOENT` ([`ErrorKind::NamespaceMissing`]) unless the namespace of `io` is there and ready. Looks at nothing outside it, as
/// a user may have no rights elsewhere.
pub async fn check(io: &IoCtx) -> Result<()> {
    let name = &io.scope().namespace;
    if name.is_empty() {
        return Ok(());
    }
    match ferry_cls::exec_read(
        io,
        names::DIRECTORY,
        client::dir_state_assert(DirectoryState::Ready),
    )
    .await
    {
        Err(error) if matches!(error.errno, Errno::ENOENT | Errno::EBUSY) => Err(missing(name)),
        other => Ok(other?),
    }
}

pub(crate) fn missing(name: &str) -> ImageError {
    ImageError::of(
        ErrorKind::NamespaceMissing,
        Errno::ENOENT,
        format!("namespace '{name}' does not exist"),
    )
}

/// Creates a namespace in the pool of `io`. `EEXIST`.
pub async fn create(io: &IoCtx, name: &str) -> Result<()> {
    names::check_namespace_name(name)?;
    let inside = io.with_namespace(name);
    let added = ferry_cls::exec_write(
        &io.with_namespace(""),
        names::NAMESPACES,
        client::namespace_add(name),
    )
    .await;
    match added {
        Ok(()) => {}
        Err(error) if error.errno == Errno::EEXIST => {
            let op = WriteOp::new().class_call(&client::dir_state_assert(DirectoryState::Ready));
            match inside.write_meta(names::DIRECTORY, op).await {
                Ok(_) => {
                    return Err(ImageError::new(
                        Errno::EEXIST,
                        format!("namespace '{name}' already exists"),
                    ));
                }
                // An interrupted creation or removal.
                Err(error) if error.errno == Errno::ENOENT => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(error) => return Err(error.into()),
    }
    Ok(ferry_cls::exec_write(
        &inside,
        names::DIRECTORY,
        client::dir_state_set(DirectoryState::Ready),
    )
    .await?)
}

/// Removes a namespace of the pool of `io`. `ENOENT` ([`ErrorKind::NamespaceMissing`]), `EBUSY` while it has images, also
/// in the trash.
pub async fn remove(io: &IoCtx, name: &str) -> Result<()> {
    if name.is_empty() || !exists(io, name).await? {
        return Err(missing(name));
    }
    let inside = io.with_namespace(name);
    let busy = |what: &str| {
        ImageError::new(Errno::EBUSY, format!("namespace '{name}' contains {what}")).hint("remove them first")
    };
    if !client::trash_list_all(&inside).await?.is_empty() {
        return Err(busy("images in the trash"));
    }
    if !client::group_dir_list_all(&inside).await?.is_empty() {
        return Err(busy("groups"));
    }
    // Closing and removing the directory is one step: nothing is added in between.
    let op = WriteOp::new()
        .class_call(&client::dir_state_set(DirectoryState::AddDisabled))
        .remove();
    match inside.write_meta(names::DIRECTORY, op).await {
        Ok(_) => {}
        Err(error) if error.errno == Errno::ENOENT => {}
        Err(error) if error.errno == Errno::EBUSY => return Err(busy("images")),
        Err(error) => return Err(error.into()),
    }
    absent_is_fine(
        inside
            .write_meta(names::TRASH, WriteOp::new().remove())
            .await
            .map(|_| ()),
    )?;
    ferry_cls::exec_write(
        &io.with_namespace(""),
        names::NAMESPACES,
        client::namespace_remove(name),
    )
    .await
    .map_err(|error| match error.errno {
        Errno::ENOENT => missing(name),
        _ => error.into(),
    })
}
