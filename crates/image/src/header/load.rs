//! Reads headers: a few atomic read operations, retried when a snapshot goes away in between.

use std::collections::BTreeMap;

use ferry_cls::CallExt as _;
use ferry_cls::lock;
use ferry_cls::rbd::{client, feature};
use ferry_store::{Errno, IoCtx, PoolId, ReadOp, SnapId, StoreError};

use super::{Fixed, Header, HeaderKey, ParentLink, SnapRecord, damaged, format_1, stored_layout};
use crate::error::{ErrorKind, ImageError, Result, optional};
use crate::names;

/// Snapshots read in one operation; bounds the size of one request.
const SNAPS_PER_READ: usize = 256;
/// How often a reading is begun anew because snapshots went away under it.
const MAX_RACES: usize = 100;

/// Reads what is fixed. `ENOENT` ([`ErrorKind::ImageMissing`]) when there is no such header.
pub async fn load_fixed(io: &IoCtx, key: impl Into<HeaderKey>) -> Result<Fixed> {
    let key = key.into();
    match &key {
        HeaderKey::Id(id) => load_fixed_format_2(io, id).await,
        HeaderKey::Name(name) => format_1::load_fixed(io, name).await,
    }
}

async fn load_fixed_format_2(io: &IoCtx, id: &str) -> Result<Fixed> {
    let object = names::header_object(id);
    let size = client::get_size(SnapId::HEAD);
    let prefix = client::get_object_prefix();
    let feature_bits = client::get_features(SnapId::HEAD, true);
    let data_pool = client::get_data_pool();
    let created = client::get_create_timestamp();
    let op = ReadOp::new()
        .class_call(&size)
        .class_call(&prefix)
        .class_call(&feature_bits)
        .class_call(&data_pool)
        .class_call(&created);
    let reply = io
        .read(&object, SnapId::HEAD, op)
        .await
        .map_err(|error| missing_image(id, error))?;
    let size = size.decode(reply.output(0))?;
    let feature_bits = feature_bits.decode(reply.output(2))?;
    let (unit, count) = if feature_bits.features & feature::STRIPINGV2 != 0 {
        let striping = ferry_cls::exec_read(io, &object, client::get_stripe_unit_count()).await?;
        (striping.stripe_unit_bytes, striping.stripe_count)
    } else {
        (0, 0)
    };
    let data_pool = data_pool.decode(reply.output(3))?;
    Ok(Fixed {
        key: id.into(),
        id: id.into(),
        object_prefix: prefix.decode(reply.output(1))?.into(),
        layout: stored_layout(io, &object, size.order, unit, count)?,
        data_pool: (data_pool != PoolId::NONE).then_some(data_pool),
        create_timestamp: created.decode(reply.output(4))?,
    })
}

/// Reads what changes.
pub async fn load(io: &IoCtx, key: impl Into<HeaderKey>, read_only: bool) -> Result<Header> {
    let key = key.into();
    for _ in 0..MAX_RACES {
        let header = match &key {
            HeaderKey::Id(id) => try_load(io, id, read_only).await?,
            HeaderKey::Name(name) => format_1::try_load(io, name).await?,
        };
        if let Some(header) = header {
            return Ok(header);
        }
    }
    Err(ImageError::new(
        Errno::EAGAIN,
        format!("header of {key} changes faster than it can be read"),
    ))
}

fn missing_image(id: &str, error: StoreError) -> ImageError {
    if error.errno == Errno::ENOENT {
        ImageError::of(
            ErrorKind::ImageMissing,
            Errno::ENOENT,
            format!("image with id '{id}'"),
        )
    } else {
        error.into()
    }
}

async fn try_load(io: &IoCtx, id: &str, read_only: bool) -> Result<Option<Header>> {
    let object = names::header_object(id);
    let size = client::get_size(SnapId::HEAD);
    let feature_bits = client::get_features(SnapId::HEAD, read_only);
    let flags = client::get_flags(SnapId::HEAD);
    let snapc = client::get_snapcontext();
    let lock_info = lock::client::get_info(names::LOCK);
    let parent = client::parent_get();
    let overlap = client::parent_overlap_get(SnapId::HEAD);
    let op_features = client::op_features_get();
    let accessed = client::get_access_timestamp();
    let modified = client::get_modify_timestamp();
    let op = ReadOp::new()
        .class_call(&size)
        .class_call(&feature_bits)
        .class_call(&flags)
        .class_call(&snapc)
        .class_call(&lock_info)
        .class_call(&parent)
        .class_call(&overlap)
        .class_call(&op_features)
        .class_call(&accessed)
        .class_call(&modified);
    let reply = io
        .read(&object, SnapId::HEAD, op)
        .await
        .map_err(|error| missing_image(id, error))?;
    let feature_bits = feature_bits.decode(reply.output(1))?;
    let migration = if feature_bits.features & feature::MIGRATING != 0 {
        match optional(ferry_cls::exec_read(io, &object, client::migration_get()).await) {
            Ok(Some(spec)) => Some(spec),
            // The bit and the record go together; gone between two reads means that the migration just ended.
            Ok(None) => return Ok(None),
            Err(error) if error.errno == Errno::EINVAL => return Ok(None),
            Err(error) => return Err(error),
        }
    } else {
        None
    };
    let context = snapc.decode(reply.output(3))?;
    let ids = context.snap_ids.clone();
    let Some(snapc) = context.to_snap_context() else {
        return Err(damaged(io, &object, "snapshot ids do not descend"));
    };
    let Some(snaps) = load_snaps(io, &object, &ids).await? else {
        return Ok(None);
    };
    let spec = parent.decode(reply.output(5))?;
    let head_overlap_bytes = overlap.decode(reply.output(6))?;
    let has_parent = spec.exists();
    Ok(Some(Header {
        size_bytes: size.decode(reply.output(0))?.size_bytes,
        features: feature_bits.features,
        incompatible_features: feature_bits.incompatible,
        flags: flags.decode(reply.output(2))?,
        op_features: op_features.decode(reply.output(7))?,
        snapc,
        snaps,
        parent: has_parent.then_some(ParentLink {
            spec,
            head_overlap_bytes,
        }),
        migration,
        lock: lock_info.decode(reply.output(4))?,
        access_timestamp: accessed.decode(reply.output(8))?,
        modify_timestamp: modified.decode(reply.output(9))?,
    }))
}

/// `None` when a snapshot went away in between.
async fn load_snaps(
    io: &IoCtx,
    object: &str,
    ids: &[SnapId],
) -> Result<Option<BTreeMap<SnapId, SnapRecord>>> {
    let mut out = BTreeMap::new();
    for chunk in ids.chunks(SNAPS_PER_READ) {
        let mut op = ReadOp::new();
        for &id in chunk {
            op = op
                .class_call(&client::snapshot_get(id))
                .class_call(&client::parent_overlap_get(id))
                .class_call(&client::get_flags(id))
                .class_call(&client::get_protection_status(id));
        }
        let Some(reply) = optional(io.read(object, SnapId::HEAD, op).await)? else {
            return Ok(None);
        };
        for (index, &id) in chunk.iter().enumerate() {
            let info = client::snapshot_get(id).decode(reply.output(index * 4))?;
            let record = SnapRecord {
                id,
                name: info.name,
                namespace: info.namespace,
                size_bytes: info.image_size_bytes,
                timestamp: info.timestamp,
                child_count: info.child_count,
                parent_overlap_bytes: client::parent_overlap_get(id).decode(reply.output(index * 4 + 1))?,
                flags: client::get_flags(id).decode(reply.output(index * 4 + 2))?,
                protection: client::get_protection_status(id).decode(reply.output(index * 4 + 3))?,
            };
            out.insert(id, record);
        }
    }
    Ok(Some(out))
}
