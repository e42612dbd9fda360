//! Snapshots (fact sheet section 3.2).

use ferry_store::class::{CallContext, ObjectHandle};
use ferry_store::{Errno, SnapId};

use super::header_records::{
    FLAGS, PARENT, SIZE, SNAP_LIMIT, SNAP_SEQ, all_snapshots, read_parent, read_snapshot, require_feature,
    set_op_features, snapshot_key, write_snapshot,
};
use super::v1_snapshots::read_v1_header;
use crate::object::{
    Outcome, answer, done, parse, parse_one, read_key, remove_key, require_key, require_object, write_key,
};
use crate::rbd::features::{feature, op_feature};
use crate::rbd::types::{ProtectionStatus, SnapContextReply, SnapshotNamespace, StoredSnapshot};

pub(super) fn get_snapcontext(_: &CallContext, object: &mut dyn ObjectHandle, _: &[u8]) -> Outcome {
    let snap_seq = require_key(object, SNAP_SEQ)?;
    let mut snap_ids: Vec<SnapId> = all_snapshots(object)?.iter().map(|snap| snap.id).collect();
    snap_ids.reverse();
    answer(SnapContextReply { snap_seq, snap_ids })
}

/// The snapshot that the payload names; `EINVAL` for the head.
fn named_snapshot(object: &dyn ObjectHandle, input: &[u8]) -> Result<StoredSnapshot, Errno> {
    let snap: SnapId = parse_one(input, "snapshot id")?;
    if snap.is_head() {
        return Err(Errno::EINVAL);
    }
    read_snapshot(object, snap)
}

pub(super) fn snapshot_get(_: &CallContext, object: &mut dyn ObjectHandle, input: &[u8]) -> Outcome {
    answer(named_snapshot(object, input)?.info())
}

pub(super) fn get_snapshot_name(_: &CallContext, object: &mut dyn ObjectHandle, input: &[u8]) -> Outcome {
    answer(named_snapshot(object, input)?.name)
}

pub(super) fn get_snapshot_timestamp(
    _: &CallContext,
    object: &mut dyn ObjectHandle,
    input: &[u8],
) -> Outcome {
    answer(named_snapshot(object, input)?.timestamp)
}

pub(super) fn get_protection_status(_: &CallContext, object: &mut dyn ObjectHandle, input: &[u8]) -> Outcome {
    answer(named_snapshot(object, input)?.protection_status)
}

pub(super) fn snapshot_add(context: &CallContext, object: &mut dyn ObjectHandle, input: &[u8]) -> Outcome {
    let (name, id, namespace) = parse(input, |decoder| {
        let name: String = decoder.get("snapshot name")?;
        let id: SnapId = decoder.get("snapshot id")?;
        let namespace = decoder.get_trailing("snapshot namespace")?;
        Ok((name, id, namespace.unwrap_or(SnapshotNamespace::User)))
    })?;
    if matches!(namespace, SnapshotNamespace::Unknown { .. }) || id > SnapId::MAX {
        return Err(Errno::EINVAL);
    }
    let snap_seq: u64 = require_key(object, SNAP_SEQ)?;
    if id.0 < snap_seq {
        return Err(Errno::ESTALE);
    }
    let image_size_bytes = require_key(object, SIZE)?;
    let others = all_snapshots(object)?;
    let clash = |other: &StoredSnapshot| {
        other.id == id || (other.name == name && other.namespace.clashes_with(&namespace))
    };
    if others.iter().any(clash) {
        return Err(Errno::EEXIST);
    }
    if others.len() as u64 >= read_limit(object)? {
        return Err(Errno::EDQUOT);
    }
    let is_trash = matches!(namespace, SnapshotNamespace::Trash { .. });
    let parent = read_parent(object)?;
    let snap = StoredSnapshot {
        id,
        name,
        image_size_bytes,
        protection_status: ProtectionStatus::Unprotected,
        flags: read_key(object, FLAGS)?.unwrap_or(0),
        namespace,
        timestamp: context.now,
        child_count: 0,
        parent_overlap_bytes: parent.and_then(|parent| parent.head_overlap_bytes),
        legacy_parent: None,
    };
    write_snapshot(object, snap)?;
    write_key(object, SNAP_SEQ, id)?;
    if is_trash {
        set_op_features(object, op_feature::SNAP_TRASH, op_feature::SNAP_TRASH)?;
    }
    done()
}

pub(super) fn snapshot_remove(_: &CallContext, object: &mut dyn ObjectHandle, input: &[u8]) -> Outcome {
    let id: SnapId = parse_one(input, "snapshot id")?;
    let snap = read_snapshot(object, id)?;
    if snap.protection_status != ProtectionStatus::Unprotected || snap.child_count > 0 {
        return Err(Errno::EBUSY);
    }
    let mut others = all_snapshots(object)?;
    others.retain(|other| other.id != id);
    remove_key(object, &snapshot_key(id))?;

    let parent = read_parent(object)?;
    let head_has_parent = parent
        .as_ref()
        .is_some_and(|parent| parent.head_overlap_bytes.is_some());
    let parent_in_use = head_has_parent || others.iter().any(StoredSnapshot::has_parent);
    if parent.is_some() && !parent_in_use {
        remove_key(object, PARENT)?;
    }
    let mut obsolete = 0;
    if !parent_in_use {
        obsolete |= op_feature::CLONE_CHILD;
    }
    let is_trash = |snap: &StoredSnapshot| matches!(snap.namespace, SnapshotNamespace::Trash { .. });
    if !others.iter().any(is_trash) {
        obsolete |= op_feature::SNAP_TRASH;
    }
    if obsolete != 0 {
        set_op_features(object, 0, obsolete)?;
    }
    done()
}

pub(super) fn snapshot_rename(_: &CallContext, object: &mut dyn ObjectHandle, input: &[u8]) -> Outcome {
    let (id, new_name) = parse(input, |decoder| {
        let id: SnapId = decoder.get("snapshot id")?;
        let name: String = decoder.get("new snapshot name")?;
        Ok((id, name))
    })?;
    let mut snap = read_snapshot(object, id)?;
    let taken =
        |other: &StoredSnapshot| other.name == new_name && matches!(other.namespace, SnapshotNamespace::User);
    if all_snapshots(object)?.iter().any(taken) {
        return Err(Errno::EEXIST);
    }
    if !matches!(snap.namespace, SnapshotNamespace::User) {
        return Err(Errno::EINVAL);
    }
    snap.name = new_name;
    write_snapshot(object, snap)?;
    done()
}

pub(super) fn snapshot_trash_add(_: &CallContext, object: &mut dyn ObjectHandle, input: &[u8]) -> Outcome {
    let id: SnapId = parse_one(input, "snapshot id")?;
    let mut snap = read_snapshot(object, id)?;
    if snap.protection_status != ProtectionStatus::Unprotected {
        return Err(Errno::EBUSY);
    }
    if matches!(snap.namespace, SnapshotNamespace::Trash { .. }) {
        return Err(Errno::EEXIST);
    }
    snap.namespace = SnapshotNamespace::Trash {
        original_namespace_type: snap.namespace.kind(),
        original_name: std::mem::replace(&mut snap.name, random_uuid()),
    };
    write_snapshot(object, snap)?;
    set_op_features(object, op_feature::SNAP_TRASH, op_feature::SNAP_TRASH)?;
    done()
}

/// A random (version 4) UUID as text.
fn random_uuid() -> String {
    let mut bytes: [u8; 16] = rand::random();
    bytes[6] = (bytes[6] & 0x0f) | 0x40;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    let mut text = String::with_capacity(36);
    for (index, byte) in bytes.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

pub(super) fn set_protection_status(_: &CallContext, object: &mut dyn ObjectHandle, input: &[u8]) -> Outcome {
    let (id, status): (SnapId, u8) = parse(input, |decoder| {
        Ok((decoder.get("snapshot id")?, decoder.get("protection status")?))
    })?;
    require_feature(object, feature::LAYERING)?;
    let status = ProtectionStatus::from_byte(status).ok_or(Errno::EINVAL)?;
    if id.is_head() {
        return Err(Errno::EINVAL);
    }
    let mut snap = read_snapshot(object, id)?;
    snap.protection_status = status;
    write_snapshot(object, snap)?;
    done()
}

/// Most snapshots allowed. Also on format-1 headers.
pub(super) fn read_limit(object: &dyn ObjectHandle) -> Result<u64, Errno> {
    Ok(read_key(object, SNAP_LIMIT)?.unwrap_or(u64::MAX))
}

pub(super) fn snapshot_get_limit(_: &CallContext, object: &mut dyn ObjectHandle, _: &[u8]) -> Outcome {
    answer(read_limit(object)?)
}

pub(super) fn snapshot_set_limit(_: &CallContext, object: &mut dyn ObjectHandle, input: &[u8]) -> Outcome {
    let limit: u64 = parse_one(input, "snapshot limit")?;
    require_object(object)?;
    if limit == u64::MAX {
        remove_key(object, SNAP_LIMIT)?;
        return done();
    }
    let count = match read_key::<u64>(object, SNAP_SEQ)? {
        Some(_) => all_snapshots(object)?.len(),
        None if object.size_bytes() > 0 => read_v1_header(object)?.snaps.len(),
        None => 0,
    };
    if limit < count as u64 {
        return Err(Errno::ERANGE);
    }
    write_key(object, SNAP_LIMIT, limit)?;
    done()
}
