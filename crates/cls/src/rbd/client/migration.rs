//! Requests for the migration record, on `rbd_header.<id>` and, as source only, on `<name>.rbd`.

use super::{get, nothing, set};
use crate::call::{Call, payload};
use crate::rbd::types::{MigrationSpec, MigrationState};

/// Marks the image as migrating. `EEXIST` if it is; `EINVAL` for a format-1 destination; `ENXIO` when a format-1 header
/// has another text.
pub fn migration_set(spec: &MigrationSpec) -> Call<()> {
    set("migration_set", payload(spec))
}

/// Sets state and description. `EINVAL` when the image is not migrating.
pub fn migration_set_state(state: MigrationState, description: &str) -> Call<()> {
    set("migration_set_state", |input| {
        input.put(state).put(description);
    })
}

/// The record. `EINVAL` when the image is not migrating, `ENOENT` when it is being unmarked (refresh and retry).
pub fn migration_get() -> Call<MigrationSpec> {
    get("migration_get", nothing)
}

/// Removes record and mark. No error for a format-2 image without them, `EINVAL` for such a format-1 image.
pub fn migration_remove() -> Call<()> {
    set("migration_remove", nothing)
}
