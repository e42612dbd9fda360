//! Requests on `rbd_object_map.<id>[.<snap>]`.
//!
//! Put one changing call into an operation: methods see the map as it was before the operation, so a second change to
//! the same 4 KiB block would undo the first.

use super::{get, set};
use crate::call::{Call, payload};
use crate::encoding::BitVector;
use crate::rbd::types::ObjectState;

/// The whole map. `ENOENT` when the object is missing or empty, `EINVAL` when it is damaged.
pub fn object_map_load() -> Call<BitVector> {
    get("object_map_load", super::nothing)
}

/// Replaces the whole map; makes the object if missing.
pub fn object_map_save(map: &BitVector) -> Call<()> {
    set("object_map_save", payload(map))
}

/// Changes the number of objects; new ones get `state`; makes the map if missing. `ESTALE` when an object that would be
/// cut off has another state, `EINVAL` above [`crate::encoding::MAX_OBJECTS`].
pub fn object_map_resize(objects: u64, state: ObjectState) -> Call<()> {
    set("object_map_resize", |input| {
        input.put(objects).put(state);
    })
}

/// Sets objects `start..end` to `new`, those only that have state `current` if given (where
/// [`ObjectState::ExistsClean`] counts as [`ObjectState::Exists`]). `ERANGE` for an empty range or one past the end.
pub fn object_map_update(start: u64, end: u64, new: ObjectState, current: Option<ObjectState>) -> Call<()> {
    set("object_map_update", |input| {
        input.put(start).put(end).put(new).put(current);
    })
}

/// A snapshot was made: what existed is clean from now on.
pub fn object_map_snap_add() -> Call<()> {
    set("object_map_snap_add", super::nothing)
}

/// A snapshot was removed: what had changed in it counts as changed here.
pub fn object_map_snap_remove(removed: &BitVector) -> Call<()> {
    set("object_map_snap_remove", payload(removed))
}
