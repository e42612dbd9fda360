//! Samples: an object that has a bit of everything, one record of every kind, and requests to most methods.
//!
//! What is made here is right; tests make it wrong.

#![allow(clippy::unwrap_used)] // what is made here is right

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use ferry_store::{PoolId, SnapId, Timestamp};

use super::{NOW, Object};
use crate::Call;
use crate::encoding::{BitVector, Decode, Encode};
use crate::lock::{LockInfo, LockKind, client as lock};
use crate::rbd::client as rbd;
use crate::rbd::v1::{Tmap, V1Header};
use crate::rbd::*;

/// A format-2 header with a bit of everything.
pub fn rich_object() -> Object {
    let mut object = Object::default();
    let create = rbd::create(1 << 23, 22, feature::DEFAULT, "p", PoolId::NONE);
    object.call(create).unwrap();
    object
        .call(rbd::parent_attach(&parent(), 1 << 22, false))
        .unwrap();
    let user = SnapshotNamespace::User;
    object.call(rbd::snapshot_add("s", SnapId(4), &user)).unwrap();
    object.call(rbd::child_attach(SnapId(4), &child())).unwrap();
    object.call(rbd::migration_set(&migration())).unwrap();
    object
}

/// A parent.
pub fn parent() -> ParentImageSpec {
    ParentImageSpec {
        pool_id: PoolId(1),
        pool_namespace: "ns".to_owned(),
        image_id: "1a".to_owned(),
        snap_id: SnapId(3),
    }
}

/// A clone.
pub fn child() -> ChildImageSpec {
    ChildImageSpec {
        pool_id: PoolId(1),
        pool_namespace: String::new(),
        image_id: "2b".to_owned(),
    }
}

/// What a migration's target says.
pub fn migration() -> MigrationSpec {
    MigrationSpec {
        header_type: MigrationHeaderType::Destination,
        pool_id: PoolId(1),
        pool_namespace: String::new(),
        image_name: "m1".to_owned(),
        image_id: "3c".to_owned(),
        snap_seqs: BTreeMap::from([(SnapId(4), SnapId(5))]),
        overlap_bytes: 1 << 22,
        flatten: false,
        mirroring: false,
        state: MigrationState::Prepared,
        state_description: String::new(),
        mirror_image_mode: MirrorImageMode::Journal,
        source_spec: "{}".to_owned(),
    }
}

/// A record: its name, its bytes, and whether bytes decode as one.
pub type Record = (&'static str, Vec<u8>, fn(&[u8]) -> bool);

/// One of every kind of record that is stored.
pub fn records() -> Vec<Record> {
    fn target<T: Decode>(name: &'static str, value: impl Encode) -> Record {
        (name, value.to_bytes().to_vec(), |bytes| {
            T::from_slice(bytes).is_ok()
        })
    }
    let mut object = rich_object();
    let cookie = "auto 140475025882368";
    let taken = lock::lock(
        "l",
        LockKind::Exclusive,
        cookie,
        "internal",
        "",
        Timestamp::default(),
        0,
    );
    object.call(taken).unwrap();
    let lock_info = LockInfo::from_slice(&object.xattrs["lock.l"]).unwrap();
    let snap = StoredSnapshot::from_slice(&object.omap["snapshot_0000000000000004".as_bytes()]).unwrap();
    let stored_parent = StoredParent::from_slice(&object.omap["parent".as_bytes()]).unwrap();
    let trash = TrashImageSpec {
        source: TrashImageSource::User,
        name: "x".to_owned(),
        deletion_time: NOW,
        deferment_end_time: NOW,
        state: TrashImageState::Normal,
    };
    let mirror = SnapshotNamespace::Mirror(MirrorNamespace {
        state: MirrorSnapshotState::Primary,
        complete: true,
        mirror_peer_uuids: BTreeSet::from(["peer".to_owned()]),
        primary_mirror_uuid: "uuid".to_owned(),
        primary_snap_id: SnapId(3),
        last_copied_object_number: 7,
        snap_seqs: BTreeMap::from([(SnapId(1), SnapId(2))]),
        group: Some((GroupSpec::none(), "g".to_owned())),
    });
    let mut v1 = Object::with_data(
        &V1Header {
            migrating: false,
            block_name: "rb.0.1".to_owned(),
            order: 22,
            image_size_bytes: 1 << 22,
            snap_seq: 0,
            snaps: Vec::new(),
        }
        .to_bytes(),
    );
    v1.call(rbd::snap_add("one", SnapId(1))).unwrap();
    let v1 = V1Header::from_slice(&v1.data).unwrap();
    let tmap = Tmap {
        header: Bytes::new(),
        entries: BTreeMap::from([("a".to_owned(), Bytes::new())]),
    };
    vec![
        target::<LockInfo>("lock", lock_info),
        target::<SnapshotInfo>("snapshot info", snap.info()),
        target::<StoredSnapshot>("snapshot", snap),
        target::<StoredParent>("parent", stored_parent),
        target::<ParentImageSpec>("parent spec", parent()),
        target::<BTreeSet<ChildImageSpec>>("children", BTreeSet::from([child()])),
        target::<MigrationSpec>("migration", migration()),
        target::<TrashImageSpec>("trash", trash),
        target::<SnapshotNamespace>("mirror namespace", mirror),
        target::<BitVector>("object map", BitVector::new(999, 2).unwrap()),
        target::<V1Header>("format-1 header", v1),
        target::<Tmap>("tmap", tmap),
    ]
}

/// Requests to methods: class, method, payload.
pub fn payloads() -> Vec<(&'static str, &'static str, Bytes)> {
    fn of<T>(call: Call<T>) -> (&'static str, &'static str, Bytes) {
        (call.class, call.method, call.input)
    }
    let head = SnapId::HEAD;
    let snap = SnapId(4);
    let map = BitVector::new(9, 1).unwrap();
    vec![
        of(rbd::get_size(snap)),
        of(rbd::set_size(1 << 20)),
        of(rbd::get_features(head, true)),
        of(rbd::set_features(0, feature::FAST_DIFF)),
        of(rbd::get_flags(snap)),
        of(rbd::set_flags(1, 1, snap)),
        of(rbd::op_features_set(2, 3)),
        of(rbd::get_snapcontext()),
        of(rbd::snapshot_get(snap)),
        of(rbd::snapshot_add("t", SnapId(9), &SnapshotNamespace::User)),
        of(rbd::snapshot_remove(snap)),
        of(rbd::snapshot_rename(snap, "u")),
        of(rbd::snapshot_trash_add(snap)),
        of(rbd::set_protection_status(snap, ProtectionStatus::Protected)),
        of(rbd::snapshot_set_limit(4)),
        of(rbd::parent_get()),
        of(rbd::parent_overlap_get(snap)),
        of(rbd::parent_attach(&parent(), 5, true)),
        of(rbd::parent_detach()),
        of(rbd::get_parent(head)),
        of(rbd::child_attach(snap, &child())),
        of(rbd::child_detach(snap, &child())),
        of(rbd::children_list(snap)),
        of(rbd::add_child(&parent(), "c")),
        of(rbd::metadata_set(&BTreeMap::from([(
            "k".to_owned(),
            Bytes::new(),
        )]))),
        of(rbd::metadata_list("", 9)),
        of(rbd::migration_set(&migration())),
        of(rbd::migration_set_state(MigrationState::Executed, "x")),
        of(rbd::migration_get()),
        of(rbd::migration_remove()),
        of(rbd::object_map_save(&map)),
        of(rbd::object_map_resize(70, ObjectState::Exists)),
        of(rbd::object_map_update(1, 3, ObjectState::Exists, None)),
        of(rbd::object_map_snap_remove(&map)),
        of(rbd::sparse_copyup(&BTreeMap::from([(0, 2)]), b"ab")),
        of(rbd::sparsify(4096, true)),
        of(rbd::image_group_add(&GroupSpec::none())),
        of(rbd::snap_add("s", snap)),
        of(lock::lock(
            "l",
            LockKind::Shared,
            "c",
            "t",
            "d",
            Timestamp::default(),
            0,
        )),
        of(lock::get_info("l")),
    ]
}
