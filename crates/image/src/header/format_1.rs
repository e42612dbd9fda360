//! Reads headers of format 1: one object of packed bytes that holds everything, the snapshots too.
//!
//! Such an image has no features, flags, clones or protected snapshots, and no time of anything.

use ferry_cls::encoding::{Decode as _, Decoder};
use ferry_cls::rbd::v1::{HEADER_TEXT, MIGRATING_TEXT, V1Header};
use ferry_cls::rbd::{ProtectionStatus, SnapshotNamespace, client};
use ferry_cls::{CallExt as _, lock};
use ferry_store::{Errno, IoCtx, ReadOp, SnapContext, SnapId, Timestamp};

use super::{Fixed, Header, HeaderKey, SnapRecord, damaged, stored_layout};
use crate::error::{ErrorKind, ImageError, Result, optional};
use crate::names;

/// Longest header that is read: many times what Ceph's limits on snapshots and their names come to.
const MAX_HEADER_BYTES: u64 = 16 << 20;

fn missing(name: &str) -> ImageError {
    ImageError::of(ErrorKind::ImageMissing, Errno::ENOENT, format!("image '{name}'"))
}

fn decode(io: &IoCtx, object: &str, content: &[u8]) -> Result<V1Header> {
    let known = [HEADER_TEXT, MIGRATING_TEXT]
        .iter()
        .any(|text| content.starts_with(*text));
    if !known {
        // What else is called NAME.rbd is no image.
        return Err(ImageError::of(
            ErrorKind::Damaged,
            Errno::ENXIO,
            format!("{}: no header of format 1", io.object(object)),
        ));
    }
    V1Header::decode(&mut Decoder::new(content)).map_err(|error| damaged(io, object, error))
}

/// What is fixed.
pub(super) async fn load_fixed(io: &IoCtx, name: &str) -> Result<Fixed> {
    let object = names::v1_header_object(name);
    let op = ReadOp::new().read(0, MAX_HEADER_BYTES);
    let reply = optional(io.read(&object, SnapId::HEAD, op).await)?.ok_or_else(|| missing(name))?;
    let header = decode(io, &object, &reply.data(0))?;
    if header.block_name.is_empty() {
        return Err(damaged(io, &object, "the data objects have no name"));
    }
    Ok(Fixed {
        key: HeaderKey::Name(name.to_owned()),
        id: "".into(),
        object_prefix: header.block_name.into(),
        layout: stored_layout(io, &object, header.order, 0, 0)?,
        data_pool: None,
        create_timestamp: Timestamp::default(),
    })
}

/// What changes; `None` when a migration ended between two reads.
pub(super) async fn try_load(io: &IoCtx, name: &str) -> Result<Option<Header>> {
    let object = names::v1_header_object(name);
    let lock_info = lock::client::get_info(names::LOCK);
    let op = ReadOp::new().read(0, MAX_HEADER_BYTES).class_call(&lock_info);
    let reply = optional(io.read(&object, SnapId::HEAD, op).await)?.ok_or_else(|| missing(name))?;
    let header = decode(io, &object, &reply.data(0))?;
    let migration = match header.migrating {
        true => match optional(ferry_cls::exec_read(io, &object, client::migration_get()).await) {
            Ok(Some(spec)) => Some(spec),
            Ok(None) => return Ok(None),
            Err(error) if error.errno == Errno::EINVAL => return Ok(None),
            Err(error) => return Err(error),
        },
        false => None,
    };
    let ids = header.snaps.iter().map(|snap| snap.id).collect();
    let snapc = SnapContext::new(header.snap_seq, ids)
        .ok_or_else(|| damaged(io, &object, "snapshot ids do not descend"))?;
    let snaps = header.snaps.into_iter().map(|snap| {
        let record = SnapRecord {
            id: snap.id,
            name: snap.name,
            namespace: SnapshotNamespace::User,
            size_bytes: snap.image_size_bytes,
            timestamp: Timestamp::default(),
            child_count: 0,
            protection: ProtectionStatus::Unprotected,
            flags: 0,
            parent_overlap_bytes: None,
        };
        (snap.id, record)
    });
    Ok(Some(Header {
        size_bytes: header.image_size_bytes,
        features: 0,
        incompatible_features: 0,
        flags: 0,
        op_features: 0,
        snapc,
        snaps: snaps.collect(),
        parent: None,
        migration,
        lock: lock_info.decode(reply.output(1))?,
        access_timestamp: Timestamp::default(),
        modify_timestamp: Timestamp::default(),
    }))
}
