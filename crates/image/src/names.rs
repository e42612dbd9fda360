//! Names of the objects an image consists of (rbd-format sheet, section 1), image ids, and the rules for names of
//! images, snapshots and pools. Pure text; knows no store.

use ferry_store::{Errno, PoolId, SnapId};
use rand::RngExt as _;

use crate::error::{ImageError, Result};

/// Directory of images of a namespace.
pub const DIRECTORY: &str = "rbd_directory";
/// Trash of a namespace.
pub const TRASH: &str = "rbd_trash";
/// Pool validation marker and pool-level configuration.
pub const INFO: &str = "rbd_info";
/// List of namespaces, in the default namespace.
pub const NAMESPACES: &str = "rbd_namespace";
/// Registry of format-1 clones.
pub const CHILDREN: &str = "rbd_children";
/// What [`INFO`] holds after validation.
pub const INFO_VALIDATED: &[u8] = b"overwrite validated";
/// Name of the lock on headers and object maps.
pub const LOCK: &str = "rbd_lock";
/// Tag of the managed exclusive lock.
pub const LOCK_TAG: &str = "internal";

/// Longest image name in bytes (Ceph's limit).
pub const MAX_IMAGE_NAME_BYTES: usize = 96;

/// `rbd_id.<name>`.
pub fn id_object(image_name: &str) -> String {
    format!("rbd_id.{image_name}")
}

/// `rbd_header.<id>`.
pub fn header_object(image_id: &str) -> String {
    format!("rbd_header.{image_id}")
}

/// `<name>.rbd`, of an image of format 1.
pub fn v1_header_object(image_name: &str) -> String {
    format!("{image_name}.rbd")
}

/// `rbd_object_map.<id>` for the head, `rbd_object_map.<id>.<snap id>` for a snapshot.
pub fn object_map_object(image_id: &str, snap: SnapId) -> String {
    if snap.is_head() {
        format!("rbd_object_map.{image_id}")
    } else {
        format!("rbd_object_map.{image_id}.{:016x}", snap.0)
    }
}

/// Prefix of data objects; with a data pool it names the metadata pool.
pub fn object_prefix(image_id: &str, metadata_pool: PoolId, has_data_pool: bool) -> String {
    if has_data_pool {
        format!("rbd_data.{metadata_pool}.{image_id}")
    } else {
        format!("rbd_data.{image_id}")
    }
}

/// `<prefix>.<object number, 16 hex digits>`.
pub fn data_object(object_prefix: &str, object_no: u64) -> String {
    format!("{object_prefix}.{object_no:016x}")
}

/// `<prefix>.<object number, 12 hex digits>`, of an image of format 1.
pub fn v1_data_object(object_prefix: &str, object_no: u64) -> String {
    format!("{object_prefix}.{object_no:012x}")
}

/// Makes an image id: the client's number and a random one in hex, the last 14 characters of both together.
pub fn new_image_id(client_gid: u64) -> String {
    let random: u32 = rand::rng().random();
    let long = format!("{client_gid:x}{random:x}");
    long[long.len().saturating_sub(14)..].to_owned()
}

/// Refuses names that the directory can't hold or that the spec grammar can't say.
pub fn check_image_name(name: &str) -> Result<()> {
    if name.is_empty() || name.len() > MAX_IMAGE_NAME_BYTES || name.contains(['/', '@', '\0']) {
        return Err(
            ImageError::new(Errno::EINVAL, format!("image name '{}'", printable(name))).hint(format!(
                "use 1 to {MAX_IMAGE_NAME_BYTES} bytes without '/' and '@'"
            )),
        );
    }
    Ok(())
}

/// Refuses group names that the directory can't hold or that the spec grammar can't say.
pub fn check_group_name(name: &str) -> Result<()> {
    if name.is_empty() || name.len() > 1024 || name.contains(['/', '@', '\0']) {
        return Err(
            ImageError::new(Errno::EINVAL, format!("group name '{}'", printable(name)))
                .hint("use a name without '/' and '@'"),
        );
    }
    Ok(())
}

/// Refuses snapshot names that the spec grammar can't say.
pub fn check_snap_name(name: &str) -> Result<()> {
    if name.is_empty() || name.len() > 1024 || name.contains(['/', '@', '\0']) {
        return Err(
            ImageError::new(Errno::EINVAL, format!("snapshot name '{}'", printable(name)))
                .hint("use a name without '/' and '@'"),
        );
    }
    Ok(())
}

/// Refuses namespace names that the spec grammar can't say.
pub fn check_namespace_name(name: &str) -> Result<()> {
    if name.is_empty() || name.len() > 256 || name.contains(['/', '@', '\0']) {
        return Err(
            ImageError::new(Errno::EINVAL, format!("namespace name '{}'", printable(name)))
                .hint("use a name without '/' and '@'"),
        );
    }
    Ok(())
}

fn printable(name: &str) -> String {
    name.chars().take(128).flat_map(char::escape_default).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn image_ids_are_at_most_fourteen_hex_digits() {
        for gid in [1, 4123, u64::MAX] {
            let id = new_image_id(gid);
            assert!(!id.is_empty() && id.len() <= 14, "{id}");
            assert!(id.chars().all(|c| c.is_ascii_hexdigit()), "{id}");
        }
    }

    #[test]
    fn names_follow_ceph() {
        assert_eq!(data_object("rbd_data.10", 255), "rbd_data.10.00000000000000ff");
        assert_eq!(
            object_map_object("10", SnapId(10)),
            "rbd_object_map.10.000000000000000a"
        );
        assert_eq!(object_prefix("10", PoolId(1), true), "rbd_data.1.10");
    }

    #[test]
    fn names_that_the_grammar_cannot_say_are_refused() {
        for bad in ["", "a/b", "a@b", &"x".repeat(97)] {
            assert!(check_image_name(bad).is_err(), "{bad}");
        }
        assert!(check_image_name(&"x".repeat(96)).is_ok());
    }
}
