//! What `rbd info` shows of one image.
//!
//! Reads headers and opens nothing, so that it answers whatever state the image and its migration are in.

use ferry_cls::CallExt as _;
use ferry_cls::rbd::{ProtectionStatus, SnapshotNamespace, client, feature, op_feature};
use ferry_store::{IoCtx, ReadOp, SnapId, Timestamp};

use super::{directory, pool, trash};
use crate::error::{ErrorKind, Result, optional};
use crate::group::GroupInfo;
use crate::header::{self, Fixed, Header, HeaderKey};
use crate::image::{ImageKey, SnapKey, find_snap};
use crate::names;

/// What an image is a clone of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParentInfo {
    /// Pool name.
    pub pool: String,
    /// Namespace; empty for the default one.
    pub pool_namespace: String,
    /// Image name.
    pub image: String,
    /// Image id.
    pub image_id: String,
    /// Snapshot name (the one it had, for a snapshot in the trash).
    pub snapshot: String,
    /// Whether the parent image is in the trash.
    pub trash: bool,
    /// Bytes that the parent still shows through; `None` when only snapshots have it.
    pub overlap_bytes: Option<u64>,
}

/// Everything that `rbd info` prints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageInfo {
    /// Name; the one it had, for an image in the trash.
    pub name: String,
    /// Id; empty for an image of format 1, which has nothing of what follows the prefix but the protection.
    pub id: String,
    /// Size of the head or of the snapshot asked for.
    pub size_bytes: u64,
    /// Objects that this size is cut into.
    pub object_count: u64,
    /// Object size exponent.
    pub order: u8,
    /// Object size.
    pub object_size_bytes: u64,
    /// Snapshots, of every kind.
    pub snapshot_count: u64,
    /// Name of the data pool, if not that of the image.
    pub data_pool: Option<String>,
    /// Prefix of the data objects.
    pub block_name_prefix: String,
    /// Feature bits ([`feature::names`]).
    pub features: u64,
    /// Operation feature bits ([`op_feature::names`]).
    pub op_features: u64,
    /// Flag bits ([`ferry_cls::rbd::flag::names`]) of the head or of the snapshot asked for.
    pub flags: u64,
    /// Group.
    pub group: Option<GroupInfo>,
    /// When it was created.
    pub create_timestamp: Timestamp,
    /// When it was last read, coarsely.
    pub access_timestamp: Timestamp,
    /// When it was last written, coarsely.
    pub modify_timestamp: Timestamp,
    /// Parent.
    pub parent: Option<ParentInfo>,
    /// Stripe unit and count, when the image has the striping feature.
    pub striping: Option<(u64, u64)>,
    /// Whether the snapshot asked for is protected; `None` when none was asked for.
    pub protected: Option<bool>,
    /// Most snapshots that the image may have; `None` without a limit.
    pub snapshot_limit: Option<u64>,
}

/// Reads what `rbd info` shows of an image, or of one of its snapshots. `ENOENT` ([`crate::ErrorKind::ImageMissing`],
/// [`crate::ErrorKind::SnapMissing`]).
pub async fn info(io: &IoCtx, key: ImageKey<'_>, snap: Option<&SnapKey>) -> Result<ImageInfo> {
    let (key, name) = key.resolve(io).await?;
    let fixed = header::load_fixed(io, &key).await?;
    let header = header::load(io, &key, true).await?;
    let snap_id = match snap {
        Some(key) => find_snap(&header, key)?,
        None => SnapId::HEAD,
    };
    let record = header.snaps.get(&snap_id);
    let size_bytes = header.size_at(snap_id).unwrap_or(header.size_bytes);
    let layout = fixed.layout;
    Ok(ImageInfo {
        name,
        size_bytes,
        object_count: layout.object_count(size_bytes),
        order: layout.order(),
        object_size_bytes: layout.object_size_bytes(),
        snapshot_count: header.snaps.len() as u64,
        data_pool: match fixed.data_pool {
            Some(pool) => Some(pool::name_of(io.store(), pool).await?),
            None => None,
        },
        block_name_prefix: fixed.object_prefix.to_string(),
        features: header.features,
        op_features: header.op_features,
        flags: record.map_or(header.flags, |record| record.flags),
        group: group(io, &fixed, &header).await?,
        create_timestamp: fixed.create_timestamp,
        access_timestamp: header.access_timestamp,
        modify_timestamp: header.modify_timestamp,
        parent: parent(io, &header, snap_id).await?,
        striping: header
            .has(feature::STRIPINGV2)
            .then(|| (layout.stripe_unit_bytes(), layout.stripe_count())),
        protected: record.map(|record| record.protection != ProtectionStatus::Unprotected),
        snapshot_limit: snapshot_limit(io, &key).await?,
        id: key.id().to_owned(),
    })
}

async fn snapshot_limit(io: &IoCtx, key: &HeaderKey) -> Result<Option<u64>> {
    let call = client::snapshot_get_limit();
    let limit = ferry_cls::exec_read(io, &key.object(), call).await?;
    Ok(Some(limit).filter(|limit| *limit != u64::MAX))
}

async fn group(io: &IoCtx, fixed: &Fixed, header: &Header) -> Result<Option<GroupInfo>> {
    if header.op_features & op_feature::GROUP == 0 {
        return Ok(None);
    }
    crate::group::of_image(io, &fixed.id).await
}

/// The parent that the head or a snapshot shows through. What cannot be found any more is shown by its id.
pub(crate) async fn parent(io: &IoCtx, header: &Header, snap: SnapId) -> Result<Option<ParentInfo>> {
    let Some(link) = &header.parent else {
        return Ok(None);
    };
    let overlap_bytes = if snap.is_head() {
        link.head_overlap_bytes
    } else {
        header
            .snaps
            .get(&snap)
            .and_then(|record| record.parent_overlap_bytes)
    };
    if overlap_bytes.is_none() {
        return Ok(None);
    }
    let spec = &link.spec;
    let there = io.with_pool(spec.pool_id).with_namespace(&spec.pool_namespace);
    let listed = directory::listed_name(&there, &spec.image_id).await?;
    let (image, trash) = match listed {
        Some(name) => (name, false),
        None => match trash::find(&there, &spec.image_id).await? {
            Some(entry) => (entry.name, true),
            // It is gone: its id is all that there is of it.
            None => (spec.image_id.clone(), false),
        },
    };
    Ok(Some(ParentInfo {
        pool: pool::name_of(io.store(), spec.pool_id).await?,
        pool_namespace: spec.pool_namespace.clone(),
        image,
        image_id: spec.image_id.clone(),
        snapshot: parent_snapshot(&there, &spec.image_id, spec.snap_id).await?,
        trash,
        overlap_bytes,
    }))
}

/// The parent that the head of image `id` shows; `None` without one, or without such an image.
pub async fn parent_of(io: &IoCtx, id: &str) -> Result<Option<ParentInfo>> {
    match header::load(io, id, true).await {
        Ok(header) => parent(io, &header, SnapId::HEAD).await,
        Err(error) if error.kind == ErrorKind::ImageMissing => Ok(None),
        Err(error) => Err(error),
    }
}

async fn parent_snapshot(io: &IoCtx, image_id: &str, snap: SnapId) -> Result<String> {
    let call = client::snapshot_get(snap);
    let op = ReadOp::new().class_call(&call);
    let reply = optional(io.read(&names::header_object(image_id), SnapId::HEAD, op).await)?;
    let Some(reply) = reply else {
        return Ok(snap.to_string());
    };
    let info = call.decode(reply.output(0))?;
    Ok(match info.namespace {
        SnapshotNamespace::Trash { original_name, .. } => original_name,
        _ => info.name,
    })
}
