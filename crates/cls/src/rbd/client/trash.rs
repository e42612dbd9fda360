//! Requests on `rbd_trash`.

use std::collections::BTreeMap;

use super::{get, set};
use crate::call::{Call, payload};
use crate::rbd::types::{TrashImageSpec, TrashImageState};

/// Adds an entry; makes the object if missing. `EEXIST` if the id is there.
pub fn trash_add(id: &str, spec: &TrashImageSpec) -> Call<()> {
    set("trash_add", |input| {
        input.put(id).put(spec);
    })
}

/// Removes an entry. `ENOENT` without it.
pub fn trash_remove(id: &str) -> Call<()> {
    set("trash_remove", payload(id))
}

/// Up to `max` entries after id `start_after`.
pub fn trash_list(start_after: &str, max: u64) -> Call<BTreeMap<String, TrashImageSpec>> {
    get("trash_list", |input| {
        input.put(start_after).put(max);
    })
}

/// One entry. `ENOENT` without it.
pub fn trash_get(id: &str) -> Call<TrashImageSpec> {
    get("trash_get", payload(id))
}

/// Sets the state from `expected` to `new`; fine if it is `new` already, `ESTALE` for any other.
pub fn trash_state_set(id: &str, new: TrashImageState, expected: TrashImageState) -> Call<()> {
    set("trash_state_set", |input| {
        input.put(id).put(new).put(expected);
    })
}
