//! Requests on `rbd_id.<name>`, `rbd_directory` and `rbd_namespace`.

use std::collections::BTreeMap;

use super::{get, set};
use crate::call::{Call, payload};
use crate::rbd::types::DirectoryState;

/// Image id, on `rbd_id.<name>`.
pub fn get_id() -> Call<String> {
    get("get_id", super::nothing)
}

/// Sets the image id, on `rbd_id.<name>`, which must exist and be empty (`ENOENT`, `EEXIST`): put a create step before.
/// `EINVAL` unless the id is letters and digits.
pub fn set_id(id: &str) -> Call<()> {
    set("set_id", payload(id))
}

/// Id of an image name.
pub fn dir_get_id(name: &str) -> Call<String> {
    get("dir_get_id", payload(name))
}

/// Name of an image id.
pub fn dir_get_name(id: &str) -> Call<String> {
    get("dir_get_name", payload(id))
}

/// Up to `max` pairs of name and id after name `start_after`.
pub fn dir_list(start_after: &str, max: u64) -> Call<BTreeMap<String, String>> {
    get("dir_list", |input| {
        input.put(start_after).put(max);
    })
}

/// Adds an image; makes the directory if missing. `EEXIST` for a used name, `EBADF` for a used id.
pub fn dir_add_image(name: &str, id: &str) -> Call<()> {
    set("dir_add_image", |input| {
        input.put(name).put(id);
    })
}

/// Removes an image. `ENOENT` without it, `ESTALE` when name and id do not belong together.
pub fn dir_remove_image(name: &str, id: &str) -> Call<()> {
    set("dir_remove_image", |input| {
        input.put(name).put(id);
    })
}

/// Renames an image. `ENOENT` and `ESTALE` as for removal, `EEXIST` for a used new name.
pub fn dir_rename_image(old_name: &str, new_name: &str, id: &str) -> Call<()> {
    set("dir_rename_image", |input| {
        input.put(old_name).put(new_name).put(id);
    })
}

/// `ENOENT` unless the directory has this state. A read; also as the first step of writes.
pub fn dir_state_assert(state: DirectoryState) -> Call<()> {
    set("dir_state_assert", payload(state))
}

/// Sets the directory's state; `EBUSY` when it is to be closed and has images.
pub fn dir_state_set(state: DirectoryState) -> Call<()> {
    set("dir_state_set", payload(state))
}

/// Adds a namespace, on `rbd_namespace`. `EEXIST` if it is there.
pub fn namespace_add(name: &str) -> Call<()> {
    set("namespace_add", payload(name))
}

/// Removes a namespace, on `rbd_namespace`. `ENOENT` without it.
pub fn namespace_remove(name: &str) -> Call<()> {
    set("namespace_remove", payload(name))
}

/// Up to `max` namespaces after `start_after`, on `rbd_namespace`.
pub fn namespace_list(start_after: &str, max: u64) -> Call<Vec<String>> {
    get("namespace_list", |input| {
        input.put(start_after).put(max);
    })
}
