//! Pools as users see them: by name, validated for images, with counts.

use std::sync::Arc;

use ferry_store::{Errno, IoCtx, PoolId, PoolInfo, PoolOptions, Scope, Store, WriteOp};

use super::{directory, namespace, trash};
use crate::error::{ErrorKind, ImageError, Result, optional};
use crate::header;
use crate::names;

/// The id of a pool. `ENOENT` ([`ErrorKind::PoolMissing`]).
pub async fn lookup(store: &Arc<dyn Store>, name: &str) -> Result<PoolId> {
    let pools = store.pool_list().await?;
    pools
        .into_iter()
        .find(|pool| pool.name == name)
        .map(|pool| pool.id)
        .ok_or_else(|| {
            ImageError::of(ErrorKind::PoolMissing, Errno::ENOENT, format!("pool '{name}'")).hint(format!(
                "'rbd pool ls' shows the pools; 'rbd pool create {name}' makes this one"
            ))
        })
}

/// The name of a pool; its number in angle brackets when it is gone.
pub async fn name_of(store: &Arc<dyn Store>, id: PoolId) -> Result<String> {
    let pools = store.pool_list().await?;
    Ok(pools
        .into_iter()
        .find(|pool| pool.id == id)
        .map_or_else(|| format!("<{id}>"), |pool| pool.name))
}

/// A pool and namespace by name. `ENOENT` for either ([`ErrorKind::PoolMissing`], [`ErrorKind::NamespaceMissing`]).
pub async fn open(store: &Arc<dyn Store>, name: &str, in_namespace: &str) -> Result<IoCtx> {
    let io = IoCtx::new(store.clone(), Scope::new(lookup(store, name).await?));
    if in_namespace.is_empty() {
        return Ok(io);
    }
    if !namespace::exists(&io, in_namespace).await? {
        return Err(ImageError::of(
            ErrorKind::NamespaceMissing,
            Errno::ENOENT,
            format!("namespace '{in_namespace}' of pool '{name}'"),
        ));
    }
    Ok(io.with_namespace(in_namespace))
}

/// All pools, sorted by name.
pub async fn list(store: &Arc<dyn Store>) -> Result<Vec<PoolInfo>> {
    Ok(store.pool_list().await?)
}

/// Makes a pool and declares it fit for images.
pub async fn create(store: &Arc<dyn Store>, name: &str, options: PoolOptions) -> Result<PoolId> {
    let id = store.pool_create(name, options).await?;
    init(&IoCtx::new(store.clone(), Scope::new(id))).await?;
    Ok(id)
}

/// Removes a pool. `EBUSY` while it has images, trash or namespaces.
pub async fn remove(store: &Arc<dyn Store>, name: &str) -> Result<()> {
    let id = lookup(store, name).await?;
    let io = IoCtx::new(store.clone(), Scope::new(id));
    let stats = stats(&io).await?;
    let namespaces = namespace::list(&io).await?;
    if stats.images.count + stats.trash.count > 0 || !namespaces.is_empty() {
        return Err(ImageError::new(
            Errno::EBUSY,
            format!(
                "pool '{name}' has {} image(s), {} of them in the trash, and {} namespace(s)",
                stats.images.count + stats.trash.count,
                stats.trash.count,
                namespaces.len()
            ),
        )
        .hint("remove them first"));
    }
    let data = store.list_objects(io.scope(), "rbd_data.", "", 1).await?;
    if !data.is_empty() {
        return Err(ImageError::new(
            Errno::EBUSY,
            format!("pool '{name}' holds the data of images in other pools"),
        ));
    }
    Ok(store.pool_remove(name).await?)
}

/// Declares a pool fit for images; running it again is fine.
pub async fn init(io: &IoCtx) -> Result<()> {
    validate(io).await
}

/// Makes sure that the pool carries the validation marker.
pub(crate) async fn validate(io: &IoCtx) -> Result<()> {
    let io = io.with_namespace("");
    let op = ferry_store::ReadOp::new().read(0, names::INFO_VALIDATED.len() as u64);
    let found = optional(io.read(names::INFO, ferry_store::SnapId::HEAD, op).await)?;
    if found.is_some_and(|reply| reply.data(0) == names::INFO_VALIDATED) {
        return Ok(());
    }
    io.write_meta(names::INFO, WriteOp::new().write_full(names::INFO_VALIDATED))
        .await?;
    Ok(())
}

/// Counts over images.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ImageCounts {
    /// Images.
    pub count: u64,
    /// Largest size of each (head or snapshot), added up.
    pub provisioned_bytes: u64,
    /// Snapshots.
    pub snap_count: u64,
}

/// What `rbd pool stats` tells of one namespace.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PoolStats {
    /// Images with a name.
    pub images: ImageCounts,
    /// Images in the trash.
    pub trash: ImageCounts,
}

/// Counts images, sizes and snapshots.
pub async fn stats(io: &IoCtx) -> Result<PoolStats> {
    let mut stats = PoolStats::default();
    for id in directory::list(io).await?.values() {
        count(io, id, &mut stats.images).await?;
    }
    for id in trash::list(io).await?.keys() {
        count(io, id, &mut stats.trash).await?;
    }
    Ok(stats)
}

async fn count(io: &IoCtx, id: &str, counts: &mut ImageCounts) -> Result<()> {
    let header = match header::load(io, id, true).await {
        Ok(header) => header,
        Err(error) if error.kind == ErrorKind::ImageMissing => return Ok(()),
        Err(error) => return Err(error),
    };
    counts.count += 1;
    let sizes = header.snaps.values().map(|snap| snap.size_bytes);
    counts.provisioned_bytes += sizes.chain([header.size_bytes]).max().unwrap_or(0);
    counts.snap_count += header.snaps.len() as u64;
    Ok(())
}
