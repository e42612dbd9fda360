//! Requests on `rbd_header.<id>`: snapshots.

use ferry_store::{SnapId, Timestamp};

use super::{get, nothing, set};
use crate::call::{Call, payload};
use crate::rbd::types::{ProtectionStatus, SnapContextReply, SnapshotInfo, SnapshotNamespace};

/// Newest sequence and living ids.
pub fn get_snapcontext() -> Call<SnapContextReply> {
    get("get_snapcontext", nothing)
}

/// One snapshot. `EINVAL` for the head, `ENOENT` without it.
pub fn snapshot_get(snap: SnapId) -> Call<SnapshotInfo> {
    get("snapshot_get", payload(snap))
}

/// Name of a snapshot (legacy). `EINVAL` for the head, `ENOENT` without it.
pub fn get_snapshot_name(snap: SnapId) -> Call<String> {
    get("get_snapshot_name", payload(snap))
}

/// When a snapshot was made (legacy). `EINVAL` for the head, `ENOENT` without it.
pub fn get_snapshot_timestamp(snap: SnapId) -> Call<Timestamp> {
    get("get_snapshot_timestamp", payload(snap))
}

/// Adds a snapshot with the head's size, flags and parent overlap. `ESTALE` when `snap` is older than the newest (take
/// a new id and retry), `EEXIST` for an id or a name and namespace in use, `EDQUOT` at the limit, `EINVAL` for an id
/// above [`SnapId::MAX`] or an unknown namespace.
pub fn snapshot_add(name: &str, snap: SnapId, namespace: &SnapshotNamespace) -> Call<()> {
    set("snapshot_add", |input| {
        input.put(name).put(snap).put(namespace);
    })
}

/// Removes a snapshot. `EBUSY` while it is protected or has children.
pub fn snapshot_remove(snap: SnapId) -> Call<()> {
    set("snapshot_remove", payload(snap))
}

/// Renames a user snapshot. `EEXIST` when a user snapshot has the name, `EINVAL` for another namespace.
pub fn snapshot_rename(snap: SnapId, new_name: &str) -> Call<()> {
    set("snapshot_rename", |input| {
        input.put(snap).put(new_name);
    })
}

/// Moves a snapshot to the trash namespace under a random name. `EBUSY` while it is protected, `EEXIST` if it is there.
pub fn snapshot_trash_add(snap: SnapId) -> Call<()> {
    set("snapshot_trash_add", payload(snap))
}

/// Protection of a snapshot. `EINVAL` for the head.
pub fn get_protection_status(snap: SnapId) -> Call<ProtectionStatus> {
    get("get_protection_status", payload(snap))
}

/// Sets the protection of a snapshot. `ENOEXEC` without layering.
pub fn set_protection_status(snap: SnapId, status: ProtectionStatus) -> Call<()> {
    set("set_protection_status", |input| {
        input.put(snap).put(status);
    })
}

/// Most snapshots the image may have; `u64::MAX` without limit.
pub fn snapshot_get_limit() -> Call<u64> {
    get("snapshot_get_limit", nothing)
}

/// Sets the limit (`u64::MAX` for none). `ERANGE` below the present count.
pub fn snapshot_set_limit(limit: u64) -> Call<()> {
    set("snapshot_set_limit", payload(limit))
}
