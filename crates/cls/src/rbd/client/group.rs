//! Requests for groups: on image headers, `rbd_group_header.<id>` and `rbd_group_directory`.

use std::collections::BTreeMap;

use super::{get, nothing, set};
use crate::call::{Call, payload};
use crate::rbd::types::{GroupImageSpec, GroupImageStatus, GroupSnapshot, GroupSnapshotState, GroupSpec};

/// The group of an image, on its header; [`GroupSpec::none`] without one.
pub fn image_group_get() -> Call<GroupSpec> {
    get("image_group_get", nothing)
}

/// Puts an image into a group, on its header. `EEXIST` if it is in another.
pub fn image_group_add(group: &GroupSpec) -> Call<()> {
    set("image_group_add", payload(group))
}

/// Takes an image out of a group, on its header. `ENOENT` if it is in none, `EBADF` if it is in another.
pub fn image_group_remove(group: &GroupSpec) -> Call<()> {
    set("image_group_remove", payload(group))
}

/// Sets the link to an image, on the group's header.
pub fn group_image_set(status: &GroupImageStatus) -> Call<()> {
    set("group_image_set", payload(status))
}

/// Removes the link to an image, on the group's header.
pub fn group_image_remove(image: &GroupImageSpec) -> Call<()> {
    set("group_image_remove", payload(image))
}

/// Up to `max` images after `start_after` (pool 0 and an empty id to start), on the group's header.
pub fn group_image_list(start_after: &GroupImageSpec, max: u64) -> Call<Vec<GroupImageStatus>> {
    get("group_image_list", |input| {
        input.put(start_after).put(max);
    })
}

/// Up to `max` pairs of name and id after name `start_after`, on `rbd_group_directory`.
pub fn group_dir_list(start_after: &str, max: u64) -> Call<BTreeMap<String, String>> {
    get("group_dir_list", |input| {
        input.put(start_after).put(max);
    })
}

/// Adds a group, on `rbd_group_directory`. `EEXIST` for a used name, `EBADF` for a used id.
pub fn group_dir_add(name: &str, id: &str) -> Call<()> {
    set("group_dir_add", |input| {
        input.put(name).put(id);
    })
}

/// Removes a group, on `rbd_group_directory`. `ENOENT` without it, `ESTALE` when name and id do not belong together.
pub fn group_dir_remove(name: &str, id: &str) -> Call<()> {
    set("group_dir_remove", |input| {
        input.put(name).put(id);
    })
}

/// Renames a group, on `rbd_group_directory`.
pub fn group_dir_rename(old_name: &str, new_name: &str, id: &str) -> Call<()> {
    set("group_dir_rename", |input| {
        input.put(old_name).put(new_name).put(id);
    })
}

/// Notes a snapshot of a group, on its header. `EEXIST` when another has the name, or an incomplete one the id; `EINVAL`
/// without name or id.
pub fn group_snap_set(snapshot: &GroupSnapshot) -> Call<()> {
    set("group_snap_set", payload(snapshot))
}

/// Forgets the snapshot of a group with this id, on its header. Fine without it.
pub fn group_snap_remove(id: &str) -> Call<()> {
    set("group_snap_remove", |input| {
        input.put(id);
    })
}

/// The snapshot of a group with this id, on its header. `ENOENT` without it.
pub fn group_snap_get_by_id(id: &str) -> Call<GroupSnapshot> {
    get("group_snap_get_by_id", |input| {
        input.put(id);
    })
}

/// Up to `max` snapshots after the one with id `start_after` (empty to start), by id, on the group's header.
pub fn group_snap_list(start_after: &str, max: u64) -> Call<Vec<GroupSnapshot>> {
    let start_after = GroupSnapshot {
        id: start_after.to_owned(),
        name: String::new(),
        state: GroupSnapshotState::Incomplete,
        snaps: Vec::new(),
    };
    get("group_snap_list", |input| {
        input.put(&start_after).put(max);
    })
}
