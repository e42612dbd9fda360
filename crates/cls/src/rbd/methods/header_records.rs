//! A header's omap keys and the records behind them: what several topics read and change (fact sheet section 2).

use ferry_store::class::ObjectHandle;
use ferry_store::{Errno, SnapId};

use crate::object::{list_keys, read_key, remove_key, require_key, stored, write_key};
use crate::rbd::features::{feature, op_feature};
use crate::rbd::types::{StoredParent, StoredSnapshot};

pub(super) const SIZE: &str = "size";
pub(super) const ORDER: &str = "order";
pub(super) const FEATURES: &str = "features";
pub(super) const OBJECT_PREFIX: &str = "object_prefix";
pub(super) const SNAP_SEQ: &str = "snap_seq";
pub(super) const SNAP_LIMIT: &str = "snap_limit";
pub(super) const FLAGS: &str = "flags";
pub(super) const OP_FEATURES: &str = "op_features";
pub(super) const PARENT: &str = "parent";
pub(super) const SNAPSHOT_PREFIX: &str = "snapshot_";

pub(super) fn snapshot_key(snap: SnapId) -> String {
    format!("{SNAPSHOT_PREFIX}{:016x}", snap.0)
}

/// A snapshot; `ENOENT` without it.
pub(super) fn read_snapshot(object: &dyn ObjectHandle, snap: SnapId) -> Result<StoredSnapshot, Errno> {
    require_key(object, &snapshot_key(snap))
}

/// All snapshots, ascending by id (fixed-width hex keys sort so).
pub(super) fn all_snapshots(object: &dyn ObjectHandle) -> Result<Vec<StoredSnapshot>, Errno> {
    let found = list_keys(object, SNAPSHOT_PREFIX, "", u64::MAX, |key, value| {
        stored::<StoredSnapshot>(key, value)
    })?;
    Ok(found.into_iter().map(|(_, snap)| snap).collect())
}

/// Writes a snapshot in today's form. A legacy record's link to the parent first gets a `parent` key, so that nothing
/// is lost when the header has none.
pub(super) fn write_snapshot(object: &mut dyn ObjectHandle, mut snap: StoredSnapshot) -> Result<(), Errno> {
    if let Some(legacy) = snap.legacy_parent.take() {
        if read_parent(object)?.is_none() {
            let spec_only = StoredParent {
                spec: legacy.spec,
                head_overlap_bytes: None,
            };
            write_key(object, PARENT, &spec_only)?;
        }
        snap.parent_overlap_bytes = snap.parent_overlap_bytes.or(legacy.head_overlap_bytes);
    }
    write_key(object, &snapshot_key(snap.id), &snap)
}

/// The `parent` key, if it names a parent.
pub(super) fn read_parent(object: &dyn ObjectHandle) -> Result<Option<StoredParent>, Errno> {
    let parent: Option<StoredParent> = read_key(object, PARENT)?;
    Ok(parent.filter(|parent| parent.spec.exists()))
}

/// `ENOEXEC` unless the image has all of `bits`; `ENOENT` without features.
pub(super) fn require_feature(object: &dyn ObjectHandle, bits: u64) -> Result<(), Errno> {
    let features: u64 = require_key(object, FEATURES)?;
    if features & bits == bits {
        Ok(())
    } else {
        Err(Errno::ENOEXEC)
    }
}

/// Sets the operation features in `mask`, and keeps the `operations` feature and the presence of the key in step. Must be
/// called once per method: it reads what was before the operation.
pub(super) fn set_op_features(object: &mut dyn ObjectHandle, bits: u64, mask: u64) -> Result<(), Errno> {
    debug_assert_eq!(mask & !op_feature::ALL, 0);
    let features: u64 = require_key(object, FEATURES)?;
    let before: u64 = read_key(object, OP_FEATURES)?.unwrap_or(0);
    let after = (before & !mask) | (bits & mask);
    if after == before {
        return Ok(());
    }
    let new_features = if after == 0 {
        remove_key(object, OP_FEATURES)?;
        features & !feature::OPERATIONS
    } else {
        write_key(object, OP_FEATURES, after)?;
        features | feature::OPERATIONS
    };
    if new_features != features {
        write_key(object, FEATURES, new_features)?;
    }
    Ok(())
}
