//! Readers of the object classes: records, answers, object maps, and the methods on objects whose values are hostile.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use bytes::Bytes;
use ferry_cls::Call;
use ferry_cls::encoding::{BitVector, Decode, Encode, EntityAddress, EntityName};
use ferry_cls::lock::{LockInfo, client as lock};
use ferry_cls::rbd::client as rbd;
use ferry_cls::rbd::v1::{Tmap, V1Header};
use ferry_cls::rbd::*;
use ferry_cls::testing::samples::rich_object;
use ferry_cls::testing::{NOW, Object, REGISTRY, client};
use ferry_store::SnapId;

use crate::shape::Parts;

/// Methods of class `rbd` that run in engines without an OSD.
pub const METHODS: &[&str] = &[
    "get_size",
    "get_features",
    "get_all_features",
    "get_object_prefix",
    "get_data_pool",
    "get_stripe_unit_count",
    "get_create_timestamp",
    "get_access_timestamp",
    "get_modify_timestamp",
    "get_flags",
    "op_features_get",
    "get_snapcontext",
    "snapshot_get",
    "get_snapshot_name",
    "get_snapshot_timestamp",
    "get_protection_status",
    "snapshot_get_limit",
    "parent_get",
    "parent_overlap_get",
    "get_parent",
    "children_list",
    "get_children",
    "metadata_list",
    "metadata_get",
    "get_id",
    "dir_get_id",
    "dir_get_name",
    "dir_list",
    "dir_state_assert",
    "object_map_load",
    "migration_get",
    "trash_list",
    "trash_get",
    "namespace_list",
    "snap_list",
    "image_group_get",
    "group_image_list",
    "group_dir_list",
    "group_snap_get_by_id",
    "group_snap_list",
    "create",
    "set_size",
    "set_features",
    "set_stripe_unit_count",
    "set_access_timestamp",
    "set_modify_timestamp",
    "set_flags",
    "op_features_set",
    "snapshot_add",
    "snapshot_remove",
    "snapshot_rename",
    "snapshot_trash_add",
    "set_protection_status",
    "snapshot_set_limit",
    "parent_attach",
    "parent_detach",
    "set_parent",
    "remove_parent",
    "child_attach",
    "child_detach",
    "add_child",
    "remove_child",
    "metadata_set",
    "metadata_remove",
    "set_id",
    "dir_add_image",
    "dir_remove_image",
    "dir_rename_image",
    "dir_state_set",
    "object_map_save",
    "object_map_resize",
    "object_map_update",
    "object_map_snap_add",
    "object_map_snap_remove",
    "copyup",
    "sparse_copyup",
    "assert_snapc_seq",
    "sparsify",
    "migration_set",
    "migration_set_state",
    "migration_remove",
    "trash_add",
    "trash_remove",
    "trash_state_set",
    "namespace_add",
    "namespace_remove",
    "snap_add",
    "snap_remove",
    "snap_rename",
    "image_group_add",
    "image_group_remove",
    "group_image_set",
    "group_image_remove",
    "group_dir_add",
    "group_dir_remove",
    "group_dir_rename",
    "group_snap_set",
    "group_snap_remove",
];
/// Methods of class `lock`.
pub const LOCK_METHODS: &[&str] = &[
    "lock",
    "unlock",
    "break_lock",
    "set_cookie",
    "get_info",
    "assert_locked",
];

/// An object with a bit of everything.
pub(crate) static RICH: LazyLock<Object> = LazyLock::new(rich_object);

/// What decodes is encoded and decoded again: it must be the same.
fn record<T: Decode + Encode + PartialEq + std::fmt::Debug>(data: &[u8]) {
    if let Ok(value) = T::from_slice(data) {
        let again = T::from_slice(&value.to_bytes());
        assert_eq!(again.as_ref(), Ok(&value));
    }
}

/// Records of every kind; the first byte says which.
///
/// # Panics
/// When a record does not survive its encoding.
pub fn records(data: &[u8]) {
    const KINDS: &[fn(&[u8])] = &[
        record::<LockInfo>,
        |data| drop(SnapshotInfo::from_slice(data)),
        |data| drop(StoredSnapshot::from_slice(data)),
        |data| drop(StoredParent::from_slice(data)),
        record::<ParentImageSpec>,
        record::<ChildImageSpec>,
        record::<BTreeSet<ChildImageSpec>>,
        record::<MigrationSpec>,
        record::<TrashImageSpec>,
        record::<SnapshotNamespace>,
        record::<GroupSpec>,
        record::<GroupImageSpec>,
        record::<GroupImageStatus>,
        record::<ImageSnapshotSpec>,
        record::<GroupSnapshot>,
        record::<BTreeMap<String, Bytes>>,
        record::<BTreeMap<SnapId, SnapId>>,
        record::<Vec<String>>,
        |data| drop(V1Header::from_slice(data)),
        |data| drop(Tmap::from_slice(data)),
        |data| drop(EntityName::from_slice(data)),
        |data| drop(EntityAddress::from_slice(data)),
        |data| drop(SnapContextReply::from_slice(data)),
    ];
    let mut parts = Parts(data);
    let kind = usize::from(parts.byte()) % KINDS.len();
    KINDS[kind](parts.0);
}

/// What a cluster answers to requests; the first byte says to which.
pub fn answers(data: &[u8]) {
    fn decode<T>(call: Call<T>, data: &[u8]) {
        drop(call.decode(data));
    }
    const CALLS: &[fn(&[u8])] = &[
        |data| decode(rbd::get_size(SnapId::HEAD), data),
        |data| decode(rbd::get_features(SnapId::HEAD, true), data),
        |data| decode(rbd::get_object_prefix(), data),
        |data| decode(rbd::get_data_pool(), data),
        |data| decode(rbd::get_stripe_unit_count(), data),
        |data| decode(rbd::get_create_timestamp(), data),
        |data| decode(rbd::get_flags(SnapId::HEAD), data),
        |data| decode(rbd::get_snapcontext(), data),
        |data| decode(rbd::snapshot_get(SnapId(4)), data),
        |data| decode(rbd::get_protection_status(SnapId(4)), data),
        |data| decode(rbd::parent_get(), data),
        |data| decode(rbd::parent_overlap_get(SnapId(4)), data),
        |data| decode(rbd::get_parent(SnapId::HEAD), data),
        |data| decode(rbd::children_list(SnapId(4)), data),
        |data| decode(rbd::metadata_list("", 9), data),
        |data| decode(rbd::metadata_get("k"), data),
        |data| decode(rbd::get_id(), data),
        |data| decode(rbd::dir_list("", 9), data),
        |data| decode(rbd::object_map_load(), data),
        |data| decode(rbd::migration_get(), data),
        |data| decode(rbd::trash_list("", 9), data),
        |data| decode(rbd::trash_get("i"), data),
        |data| decode(rbd::namespace_list("", 9), data),
        |data| decode(rbd::snap_list(), data),
        |data| decode(rbd::image_group_get(), data),
        |data| decode(rbd::group_dir_list("", 9), data),
        |data| decode(rbd::group_snap_list("", 9), data),
        |data| decode(lock::get_info("l"), data),
        |data| decode(lock::list_locks(), data),
    ];
    let mut parts = Parts(data);
    let call = usize::from(parts.byte()) % CALLS.len();
    CALLS[call](parts.0);
}

/// Requests to methods, one behind the other, on an object with a bit of everything: a method's number, its payload.
///
/// # Panics
/// When a method that only reads has changed the object.
pub fn calls(data: &[u8]) {
    run_calls(RICH.clone(), Parts(data));
}

/// The same on an object that is hostile itself: bytes first, then pairs of omap until an empty key, then requests.
///
/// # Panics
/// As for [`calls`].
pub fn stored(data: &[u8]) {
    const KEYS: &[&str] = &[
        "size",
        "order",
        "features",
        "object_prefix",
        "snap_seq",
        "flags",
        "op_features",
        "parent",
        "migration",
        "snapshot_0000000000000004",
        "snap_children_0000000000000004",
        "data_pool_id",
        "stripe_unit",
        "stripe_count",
        "create_timestamp",
        "access_timestamp",
        "modify_timestamp",
        "snap_limit",
        "rbd_group_ref",
        "name_a",
        "id_a",
        "metadata_k",
        "dir_state",
        "image_2b",
        "snapshot_1a",
        "id_1a",
    ];
    let mut parts = Parts(data);
    let mut object = match parts.byte() & 1 {
        0 => RICH.clone(),
        _ => Object::empty(),
    };
    object.data = parts.part().to_vec();
    for _ in 0..16 {
        let choice = parts.byte();
        if choice == 0 {
            break;
        }
        let value = Bytes::copy_from_slice(parts.part());
        if choice == u8::MAX {
            object.xattrs.insert("lock.l".to_owned(), value);
            continue;
        }
        let key = KEYS[usize::from(choice) % KEYS.len()];
        object.omap.insert(Bytes::from_static(key.as_bytes()), value);
    }
    run_calls(object, parts);
}

fn run_calls(mut object: Object, mut parts: Parts<'_>) {
    for _ in 0..8 {
        if parts.is_empty() {
            return;
        }
        let number = usize::from(parts.byte());
        let (class, method) = match METHODS.get(number) {
            Some(method) => ("rbd", *method),
            None => ("lock", LOCK_METHODS[number % LOCK_METHODS.len()]),
        };
        assert!(
            REGISTRY.find(class, method).is_ok(),
            "{class}.{method} is not registered"
        );
        let payload = Bytes::copy_from_slice(parts.part());
        // Also sees that what only reads changes nothing.
        let _ = object.operate_as(client(7), NOW, &[(class, method, payload)]);
    }
}

/// An object map as it is stored and as it is answered, and requests that change it.
///
/// # Panics
/// When a map does not survive its encoding, or counts what it does not have.
pub fn object_map(data: &[u8]) {
    let mut parts = Parts(data);
    let (start, length, objects) = (parts.short(), parts.short(), parts.short());
    let (state, data) = (parts.byte() & 3, parts.0);
    if let Ok(mut map) = BitVector::from_slice(data) {
        let again = BitVector::from_slice(&map.to_bytes());
        assert_eq!(again.as_ref(), Ok(&map));
        let nonzero = map.iter_nonzero().count() as u64;
        assert_eq!(nonzero + map.count(0), map.len());
        assert!(map.resize(u64::from(objects), state));
        assert_eq!(map.len(), u64::from(objects));
    }
    let mut object = Object::with_data(data);
    let end = u64::from(start) + u64::from(length);
    let state = ObjectState::from_byte(state).unwrap_or(ObjectState::Exists);
    for call in [
        rbd::object_map_update(start.into(), end, state, None),
        rbd::object_map_snap_add(),
        rbd::object_map_resize(objects.into(), state),
    ] {
        let _ = object.call(call);
    }
    let _ = object.call(rbd::object_map_load());
}
