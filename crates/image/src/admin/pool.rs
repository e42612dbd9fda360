//! Pools: finding, creating, preparing and removing them, and their statistics.

use std::sync::Arc;

use bytes::Bytes;
use ferry_store::{Errno, IoCtx, PoolId, PoolInfo, PoolOptions, ReadOp, Scope, SnapId, Store, WriteOp};
use futures::stream::{StreamExt as _, TryStreamExt as _};

use super::{CONCURRENT, directory, namespace, trash};
use crate::error::{ErrorKind, ImageError, Result, optional};
use crate::header;
use crate::names;

/// What `rbd_info` holds while a pool is being validated.
const VALIDATING: &[u8] = b"validate";
/// Data objects of all images start so.
const DATA_PREFIX: &str = "rbd_data.";

/// All pools, sorted by name.
pub async fn list(store: &Arc<dyn Store>) -> Result<Vec<PoolInfo>> {
    Ok(store.pool_list().await?)
}

/// Id of the pool `name`. `ENOENT` ([`ErrorKind::PoolMissing`]).
pub async fn lookup(store: &Arc<dyn Store>, name: &str) -> Result<PoolId> {
    let found = store
        .pool_list()
        .await?
        .into_iter()
        .find(|pool| pool.name == name);
    found.map(|pool| pool.id).ok_or_else(|| missing(name))
}

/// Name of a pool; its number in angle brackets when it is gone.
pub async fn name_of(store: &Arc<dyn Store>, id: PoolId) -> Result<String> {
    let found = store.pool_list().await?.into_iter().find(|pool| pool.id == id);
    Ok(found.map_or_else(|| format!("<{id}>"), |pool| pool.name))
}

fn missing(name: &str) -> ImageError {
    ImageError::of(ErrorKind::PoolMissing, Errno::ENOENT, format!("pool '{name}'")).hint(format!(
        "'rbd pool ls' shows the pools; 'rbd pool create {name}' makes this one"
    ))
}

/// A namespace of a pool, both by name. `ENOENT` ([`ErrorKind::PoolMissing`], [`ErrorKind::NamespaceMissing`]).
pub async fn open(store: &Arc<dyn Store>, name: &str, in_namespace: &str) -> Result<IoCtx> {
    let io = IoCtx::new(
        store.clone(),
        Scope::with_namespace(lookup(store, name).await?, in_namespace),
    );
    namespace::check(&io)
        .await
        .map_err(|error| error.context(format!("pool '{name}'")))?;
    Ok(io)
}

/// Creates a pool, ready for images. `EEXIST`; `EINVAL` for its name or directory.
pub async fn create(store: &Arc<dyn Store>, name: &str, options: PoolOptions) -> Result<PoolId> {
    let id = store.pool_create(name, options).await?;
    let io = IoCtx::new(store.clone(), Scope::new(id));
    if let Err(error) = validate(&io).await {
        if let Err(undo) = store.pool_remove(name).await {
            tracing::warn!(pool = name, error = %undo, "cannot take back a half-made pool");
        }
        return Err(error.context(format!("pool '{name}'")));
    }
    Ok(id)
}

/// Makes a pool ready for images; fine if it is. Images do it to their pools when they are created.
pub async fn init(io: &IoCtx) -> Result<()> {
    validate(io).await
}

/// Sees once whether the pool can take images (snapshots, overwrites) and notes it in `rbd_info`.
pub(crate) async fn validate(io: &IoCtx) -> Result<()> {
    let io = io.with_namespace("");
    if is_validated(&io).await? {
        return Ok(());
    }
    let snap = io.store().snap_id_create(io.pool()).await.map_err(|error| {
        let refused = error.errno == Errno::EINVAL;
        let error = ImageError::from(error).context("pool cannot take image snapshots");
        if refused {
            error.hint("use a pool without snapshots of its own")
        } else {
            error
        }
    })?;
    let written = async {
        io.write_meta(
            names::INFO,
            WriteOp::new().write_full(Bytes::from_static(VALIDATING)),
        )
        .await?;
        io.write_meta(
            names::INFO,
            WriteOp::new().write(0, Bytes::from_static(names::INFO_VALIDATED)),
        )
        .await
    }
    .await;
    io.store().snap_id_remove(io.pool(), snap).await?;
    written?;
    Ok(())
}

async fn is_validated(io: &IoCtx) -> Result<bool> {
    let wanted = names::INFO_VALIDATED;
    let op = ReadOp::new().read(0, wanted.len() as u64);
    let reply = optional(io.read(names::INFO, SnapId::HEAD, op).await)?;
    Ok(reply.is_some_and(|reply| reply.data(0) == wanted))
}

/// Removes a pool. `ENOENT` ([`ErrorKind::PoolMissing`]); `EBUSY` ([`ErrorKind::WouldLose`]) while it holds images, also in the
/// trash, namespaces, or data of images of other pools.
pub async fn remove(store: &Arc<dyn Store>, name: &str) -> Result<()> {
    let id = lookup(store, name).await?;
    if let Some(what) = content(store, id).await? {
        return Err(ImageError::of(
            ErrorKind::WouldLose,
            Errno::EBUSY,
            format!("pool '{name}' contains {what}"),
        )
        .hint("remove them first"));
    }
    store.pool_remove(name).await.map_err(|error| match error.errno {
        Errno::ENOENT => missing(name),
        _ => error.into(),
    })
}

/// What of value is in a pool, if anything.
async fn content(store: &Arc<dyn Store>, id: PoolId) -> Result<Option<String>> {
    let io = IoCtx::new(store.clone(), Scope::new(id));
    let images = directory::list(&io).await?.len();
    let trashed = trash::list(&io).await?.len();
    let namespaces = namespace::list(&io).await?.len();
    if images + trashed + namespaces > 0 {
        return Ok(Some(format!(
            "{images} image(s), {trashed} in the trash and {namespaces} namespace(s)"
        )));
    }
    // It may be the data pool of images elsewhere; their namespaces are those of their own pools.
    for pool in store.pool_list().await? {
        for namespace in all_namespaces(&io.with_pool(pool.id)).await? {
            let inside = io.with_namespace(&namespace);
            if !store
                .list_objects(inside.scope(), DATA_PREFIX, "", 1)
                .await?
                .is_empty()
            {
                return Ok(Some("data of images of other pools".to_owned()));
            }
        }
    }
    Ok(None)
}

async fn all_namespaces(io: &IoCtx) -> Result<Vec<String>> {
    let mut all = vec![String::new()];
    all.extend(namespace::list(io).await?);
    Ok(all)
}

/// Counts of images, of the directory or of the trash.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ImageCounts {
    /// Images.
    pub count: u64,
    /// Largest size of each (head or snapshot), added up.
    pub provisioned_bytes: u64,
    /// Snapshots.
    pub snap_count: u64,
}

/// Statistics of a namespace of a pool.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PoolStats {
    /// Images that have names.
    pub images: ImageCounts,
    /// Images in the trash.
    pub trash: ImageCounts,
}

/// Counts the images of the namespace of `io`.
pub async fn stats(io: &IoCtx) -> Result<PoolStats> {
    // Asked first: an unknown pool is an error, not an empty one.
    io.store().pool_usage(io.pool()).await?;
    let listed: Vec<String> = directory::list(io).await?.into_values().collect();
    let trashed: Vec<String> = trash::list(io).await?.into_keys().collect();
    Ok(PoolStats {
        images: count(io, listed).await?,
        trash: count(io, trashed).await?,
    })
}

async fn count(io: &IoCtx, ids: Vec<String>) -> Result<ImageCounts> {
    futures::stream::iter(ids)
        .map(|id| async move {
            match header::load(io, &id, true).await {
                Ok(header) => Ok(Some(header)),
                // It is being created, or was removed in between.
                Err(error) if error.kind == ErrorKind::ImageMissing => Ok(None),
                Err(error) => Err(error),
            }
        })
        .buffer_unordered(CONCURRENT)
        .try_fold(ImageCounts::default(), |sum, found| async move {
            let Some(header) = found else { return Ok(sum) };
            let sizes = header.snaps.values().map(|snap| snap.size_bytes);
            let largest = sizes.chain([header.size_bytes]).max().unwrap_or(0);
            Ok(ImageCounts {
                count: sum.count + 1,
                provisioned_bytes: sum.provisioned_bytes.saturating_add(largest),
                snap_count: sum.snap_count + header.snaps.len() as u64,
            })
        })
        .await
}
