//! Names of objects and omap keys (fact sheet sections 1 and 2): the one place that spells them.

use ferry_store::{PoolId, SnapId};

/// Names and ids of all images of a namespace.
pub const DIRECTORY: &str = "rbd_directory";
/// Clone-v1 registry of a pool.
pub const CHILDREN: &str = "rbd_children";
/// Trash of a namespace.
pub const TRASH: &str = "rbd_trash";
/// Pool marker and pool-level configuration.
pub const INFO: &str = "rbd_info";
/// Namespaces of a pool.
pub const NAMESPACE: &str = "rbd_namespace";
/// Names and ids of all groups of a namespace.
pub const GROUP_DIRECTORY: &str = "rbd_group_directory";

/// Object that maps an image name to its id.
pub fn id_object(image_name: &str) -> String {
    format!("rbd_id.{image_name}")
}

/// Header of a format-2 image.
pub fn header_object(image_id: &str) -> String {
    format!("rbd_header.{image_id}")
}

/// Header of a format-1 image.
pub fn v1_header_object(image_name: &str) -> String {
    format!("{image_name}.rbd")
}

/// Prefix of a format-2 image's data objects. `meta_pool` is given when the data are in another pool than the header.
pub fn data_prefix(image_id: &str, meta_pool: Option<PoolId>) -> String {
    match meta_pool {
        Some(pool) => format!("rbd_data.{pool}.{image_id}"),
        None => format!("rbd_data.{image_id}"),
    }
}

/// Data object `number` of a format-2 image.
pub fn data_object(prefix: &str, number: u64) -> String {
    format!("{prefix}.{number:016x}")
}

/// Data object `number` of a format-1 image.
pub fn v1_data_object(prefix: &str, number: u64) -> String {
    format!("{prefix}.{number:012x}")
}

/// Object map of the head or of a snapshot.
pub fn object_map(image_id: &str, snap: SnapId) -> String {
    if snap.is_head() {
        format!("rbd_object_map.{image_id}")
    } else {
        format!("rbd_object_map.{image_id}.{:016x}", snap.0)
    }
}

/// What the keys of a group's snapshots begin with, in its header.
pub const GROUP_SNAPSHOT_PREFIX: &str = "snapshot_";

/// Key of a snapshot of a group, in its header.
pub fn group_snapshot_key(snapshot_id: &str) -> String {
    format!("{GROUP_SNAPSHOT_PREFIX}{snapshot_id}")
}

/// Header of a group.
pub fn group_header(group_id: &str) -> String {
    format!("rbd_group_header.{group_id}")
}

/// Whether `id` can be an image id: not empty, ASCII letters and digits only.
pub fn is_valid_id(id: &str) -> bool {
    !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_alphanumeric())
}
