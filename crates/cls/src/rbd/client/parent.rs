//! Requests that link parents and children: on headers and on `rbd_children`.

use std::collections::BTreeSet;

use ferry_store::{PoolId, SnapId};

use super::{get, nothing, set};
use crate::call::{Call, payload};
use crate::rbd::types::{ChildImageSpec, LegacyParent, ParentImageSpec};

/// The parent; [`ParentImageSpec::none`] without one.
pub fn parent_get() -> Call<ParentImageSpec> {
    get("parent_get", nothing)
}

/// How many bytes of the head or of a snapshot come from the parent; `None` without parent.
pub fn parent_overlap_get(snap: SnapId) -> Call<Option<u64>> {
    get("parent_overlap_get", payload(snap))
}

/// Attaches a parent with overlap min(`overlap_bytes`, size). `EEXIST` with a parent unless `reattach`, `EINVAL` for no
/// spec or overlap 0, `ENOEXEC` without layering.
pub fn parent_attach(spec: &ParentImageSpec, overlap_bytes: u64, reattach: bool) -> Call<()> {
    set("parent_attach", |input| {
        input.put(spec).put(overlap_bytes).put(reattach);
    })
}

/// Detaches the head from the parent (snapshots too with deep flatten). `ENOENT` without parent, `ENOEXEC` without
/// layering.
pub fn parent_detach() -> Call<()> {
    set("parent_detach", nothing)
}

/// The parent of the head or of a snapshot (legacy). `EXDEV` when it is in a namespace.
pub fn get_parent(snap: SnapId) -> Call<LegacyParent> {
    get("get_parent", payload(snap))
}

/// Attaches a parent in the default namespace (legacy).
pub fn set_parent(parent: &LegacyParent) -> Call<()> {
    set("set_parent", payload(parent))
}

/// Detaches the parent (legacy). `EXDEV` when it is in a namespace.
pub fn remove_parent() -> Call<()> {
    set("remove_parent", nothing)
}

/// Registers a clone-v2 child of a snapshot, on the parent's header. `ENOENT` when the snapshot is missing or in the
/// trash, `EEXIST` for a known child.
pub fn child_attach(snap: SnapId, child: &ChildImageSpec) -> Call<()> {
    set("child_attach", |input| {
        input.put(snap).put(child);
    })
}

/// Forgets a clone-v2 child. `ENOENT` if it is not registered.
pub fn child_detach(snap: SnapId, child: &ChildImageSpec) -> Call<()> {
    set("child_detach", |input| {
        input.put(snap).put(child);
    })
}

/// Clone-v2 children of a snapshot, on the parent's header. `ENOENT` when there are none.
pub fn children_list(snap: SnapId) -> Call<BTreeSet<ChildImageSpec>> {
    get("children_list", payload(snap))
}

/// Registers a clone-v1 child, on `rbd_children` of the child's pool. `EEXIST` if it is known. Of `parent` the
/// namespace is not sent: clones of format 1 live in their parent's.
pub fn add_child(parent: &ParentImageSpec, child_id: &str) -> Call<()> {
    registry("add_child", parent, child_id)
}

/// Forgets a clone-v1 child, on `rbd_children`. `ENOENT` if it is not registered.
pub fn remove_child(parent: &ParentImageSpec, child_id: &str) -> Call<()> {
    registry("remove_child", parent, child_id)
}

/// Clone-v1 children of a parent's snapshot in the pool, on `rbd_children`. `ENOENT` when there are none.
pub fn get_children(parent_pool: PoolId, parent_id: &str, snap: SnapId) -> Call<BTreeSet<String>> {
    get("get_children", |input| {
        input.put(parent_pool).put(parent_id).put(snap);
    })
}

fn registry(method: &'static str, parent: &ParentImageSpec, child_id: &str) -> Call<()> {
    set(method, |input| {
        input
            .put(parent.pool_id)
            .put(&parent.image_id)
            .put(parent.snap_id)
            .put(child_id);
    })
}
