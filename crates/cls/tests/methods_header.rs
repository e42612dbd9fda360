//! Header methods: effects and the errno rules of fact sheet sections 3.1, 3.2 and 3.4.

#![allow(clippy::unwrap_used)] // in helpers of tests

use std::collections::BTreeMap;

use bytes::Bytes;
use ferry_cls::rbd::client as rbd;
use ferry_cls::rbd::*;
use ferry_cls::testing::{NOW, Object, step};
use ferry_store::{Errno, PoolId, SnapId, Timestamp};

const MIB: u64 = 1 << 20;
const HEAD: SnapId = SnapId::HEAD;
const USER: SnapshotNamespace = SnapshotNamespace::User;

/// An image of 8 MiB with features 61.
fn image() -> Object {
    let mut object = Object::default();
    let create = rbd::create(8 * MIB, 22, feature::DEFAULT, "rbd_data.abc", PoolId::NONE);
    object.call(create).unwrap();
    object
}

fn trash(name: &str) -> SnapshotNamespace {
    SnapshotNamespace::Trash {
        original_name: name.to_owned(),
        original_namespace_type: 0,
    }
}

#[test]
fn create_writes_ceph_s_keys() {
    let object = image();
    let time = "c086fd6a07000000".to_owned();
    assert_eq!(NOW.seconds.to_le_bytes(), [0xc0, 0x86, 0xfd, 0x6a]);
    let expected = [
        ("size", "0000800000000000"),
        ("order", "16"),
        ("features", "3d00000000000000"),
        ("object_prefix", "0c0000007262645f646174612e616263"),
        ("snap_seq", "0000000000000000"),
        ("create_timestamp", &time),
        ("access_timestamp", &time),
        ("modify_timestamp", &time),
    ];
    for (key, hex) in expected {
        assert_eq!(object.omap_hex(key).as_deref(), Some(hex), "{key}");
    }
    assert_eq!(object.omap.len(), expected.len());
}

#[test]
fn create_refuses_what_makes_no_image() {
    let create = |features, prefix, pool| rbd::create(MIB, 22, features, prefix, PoolId(pool));
    let mut new = Object::default();
    assert_eq!(new.refuses(create(1 << 12, "p", -1)), Errno::ENOSYS);
    assert_eq!(new.refuses(create(0, "", -1)), Errno::EINVAL);
    assert_eq!(new.refuses(create(feature::OPERATIONS, "p", -1)), Errno::EINVAL);
    assert_eq!(new.refuses(create(feature::DATA_POOL, "p", -1)), Errno::EINVAL);
    assert_eq!(new.refuses(create(0, "p", 3)), Errno::EINVAL);
    assert_eq!(image().refuses(create(0, "p", -1)), Errno::EEXIST);
    new.call(create(feature::DATA_POOL, "p", 3)).unwrap();
    assert_eq!(new.call(rbd::get_data_pool()), Ok(PoolId(3)));
}

#[test]
fn size_features_and_prefix_are_told() {
    let mut object = image();
    let size = object.call(rbd::get_size(HEAD)).unwrap();
    assert_eq!((size.order, size.size_bytes), (22, 8 * MIB));
    assert_eq!(object.refuses(rbd::get_size(SnapId(4))), Errno::ENOENT);
    let features = object.call(rbd::get_features(HEAD, true)).unwrap();
    assert_eq!((features.features, features.incompatible), (61, 1));
    let features = object.call(rbd::get_features(HEAD, false)).unwrap();
    assert_eq!((features.features, features.incompatible), (61, 61));
    assert_eq!(object.call(rbd::get_all_features()), Ok(0xfff));
    assert_eq!(
        object.call(rbd::get_object_prefix()),
        Ok("rbd_data.abc".to_owned())
    );
    assert_eq!(object.call(rbd::get_data_pool()), Ok(PoolId::NONE));
    assert_eq!(object.call(rbd::get_create_timestamp()), Ok(NOW));
    assert_eq!(
        Object::empty().call(rbd::get_create_timestamp()),
        Ok(Timestamp::default())
    );
    assert_eq!(Object::empty().refuses(rbd::set_size(1)), Errno::ENOENT);
    assert_eq!(
        Object::default().refuses(rbd::set_access_timestamp()),
        Errno::ENOENT
    );
    assert_eq!(
        Object::default().refuses(rbd::set_modify_timestamp()),
        Errno::ENOENT
    );
}

#[test]
fn shrinking_lowers_the_overlap_and_growing_does_not_raise_it() {
    let mut object = image();
    let parent = ParentImageSpec {
        pool_id: PoolId(1),
        pool_namespace: String::new(),
        image_id: "a".to_owned(),
        snap_id: SnapId(3),
    };
    object.call(rbd::parent_attach(&parent, 100 * MIB, true)).unwrap();
    let overlap = |object: &mut Object| object.call(rbd::parent_overlap_get(HEAD)).unwrap();
    assert_eq!(overlap(&mut object), Some(8 * MIB));
    object.call(rbd::set_size(2 * MIB)).unwrap();
    assert_eq!(overlap(&mut object), Some(2 * MIB));
    object.call(rbd::set_size(16 * MIB)).unwrap();
    assert_eq!(overlap(&mut object), Some(2 * MIB));
}

#[test]
fn features_switch_as_far_as_they_may() {
    let mut object = image();
    let rows = [
        (feature::OPERATIONS, feature::OPERATIONS, Err(Errno::EINVAL)),
        (0, feature::MIGRATING, Err(Errno::EINVAL)),
        (feature::STRIPINGV2, feature::STRIPINGV2, Err(Errno::EINVAL)),
        (feature::DEEP_FLATTEN, feature::DEEP_FLATTEN, Err(Errno::EINVAL)),
        (0, feature::LAYERING, Err(Errno::EINVAL)),
        (0, feature::DEEP_FLATTEN, Ok(0x1d)),
        (feature::JOURNALING, feature::JOURNALING, Ok(0x5d)),
        (1 << 40, 1 << 40, Ok(0x5d)),
        (0, feature::OBJECT_MAP | feature::FAST_DIFF, Ok(0x45)),
    ];
    for (features, mask, expected) in rows {
        let call = rbd::set_features(features, mask);
        let found = match expected {
            Err(_) => Err(object.refuses(call)),
            Ok(_) => object
                .call(call)
                .map(|()| object.call(rbd::get_features(HEAD, false)).unwrap().features),
        };
        assert_eq!(found, expected, "features {features:#x} mask {mask:#x}");
    }
}

#[test]
fn striping_needs_its_feature_and_fits_the_object() {
    let mut plain = image();
    assert_eq!(plain.refuses(rbd::get_stripe_unit_count()), Errno::ENOEXEC);
    assert_eq!(plain.refuses(rbd::set_stripe_unit_count(4096, 2)), Errno::ENOEXEC);
    let mut object = Object::default();
    let create = rbd::create(MIB, 22, feature::STRIPINGV2, "p", PoolId::NONE);
    object.call(create).unwrap();
    let reply = |stripe_unit_bytes, stripe_count| StripeReply {
        stripe_unit_bytes,
        stripe_count,
    };
    assert_eq!(object.call(rbd::get_stripe_unit_count()), Ok(reply(4 * MIB, 1)));
    for (unit, count) in [(0, 1), (4096, 0), (5000, 2), (8 * MIB, 1)] {
        assert_eq!(
            object.refuses(rbd::set_stripe_unit_count(unit, count)),
            Errno::EINVAL
        );
    }
    object.call(rbd::set_stripe_unit_count(65536, 4)).unwrap();
    assert_eq!(object.call(rbd::get_stripe_unit_count()), Ok(reply(65536, 4)));
}

#[test]
fn flags_are_kept_for_the_head_and_each_snapshot() {
    let mut object = image();
    assert_eq!(object.call(rbd::get_flags(HEAD)), Ok(0));
    object.call(rbd::set_flags(3, 3, HEAD)).unwrap();
    object.call(rbd::set_flags(0, 2, HEAD)).unwrap();
    assert_eq!(object.call(rbd::get_flags(HEAD)), Ok(1));
    assert_eq!(object.refuses(rbd::set_flags(1, 1, SnapId(4))), Errno::ENOENT);
    assert_eq!(object.refuses(rbd::get_flags(SnapId(4))), Errno::ENOENT);
    object.call(rbd::snapshot_add("s", SnapId(4), &USER)).unwrap();
    object.call(rbd::set_flags(2, 2, SnapId(4))).unwrap();
    assert_eq!(object.call(rbd::get_flags(SnapId(4))), Ok(3));
    assert_eq!(object.call(rbd::get_flags(HEAD)), Ok(1));
    assert_eq!(
        Object::default().refuses(rbd::set_flags(1, 1, HEAD)),
        Errno::ENOENT
    );
}

#[test]
fn operation_features_keep_the_feature_bit_in_step() {
    let mut object = image();
    assert_eq!(object.refuses(rbd::op_features_set(16, 16)), Errno::EINVAL);
    object.call(rbd::op_features_set(2, 2)).unwrap();
    let features = |object: &mut Object| object.call(rbd::get_features(HEAD, false)).unwrap().features;
    assert_eq!(features(&mut object), 61 | feature::OPERATIONS);
    object.call(rbd::op_features_set(4, 4)).unwrap();
    assert_eq!(object.call(rbd::op_features_get()), Ok(6));
    object.call(rbd::op_features_set(0, 6)).unwrap();
    assert_eq!(features(&mut object), 61);
    assert_eq!(object.omap_hex("op_features"), None);
    assert_eq!(Object::empty().refuses(rbd::op_features_set(2, 2)), Errno::ENOENT);
}

#[test]
fn snapshots_take_the_head_s_state_and_are_listed_newest_first() {
    let mut object = image();
    object.call(rbd::set_flags(1, 1, HEAD)).unwrap();
    object.call(rbd::snapshot_add("a", SnapId(4), &USER)).unwrap();
    object.call(rbd::set_size(16 * MIB)).unwrap();
    object.call(rbd::snapshot_add("b", SnapId(0x10), &USER)).unwrap();
    let reply = object.call(rbd::get_snapcontext()).unwrap();
    assert_eq!(
        (reply.snap_seq, reply.snap_ids),
        (0x10, vec![SnapId(0x10), SnapId(4)])
    );
    let info = object.call(rbd::snapshot_get(SnapId(4))).unwrap();
    assert_eq!(
        (info.name.as_str(), info.image_size_bytes, info.timestamp),
        ("a", 8 * MIB, NOW)
    );
    assert_eq!(
        object.call(rbd::get_snapshot_name(SnapId(16))),
        Ok("b".to_owned())
    );
    assert_eq!(object.call(rbd::get_snapshot_timestamp(SnapId(16))), Ok(NOW));
    assert_eq!(
        object.call(rbd::get_size(SnapId(16))).unwrap().size_bytes,
        16 * MIB
    );
    assert_eq!(object.call(rbd::get_flags(SnapId(4))), Ok(1));
    assert_eq!(object.refuses(rbd::snapshot_get(HEAD)), Errno::EINVAL);
    assert_eq!(object.refuses(rbd::snapshot_get(SnapId(5))), Errno::ENOENT);
}

#[test]
fn snapshot_add_refuses_old_ids_duplicates_and_the_limit() {
    let mut object = image();
    let add = rbd::snapshot_add;
    object.call(add("a", SnapId(4), &USER)).unwrap();
    object.call(add("t", SnapId(5), &trash("x"))).unwrap();
    assert_eq!(object.call(rbd::op_features_get()), Ok(op_feature::SNAP_TRASH));
    let unknown = SnapshotNamespace::Unknown {
        version: 1,
        kind: 9,
        body: Bytes::new(),
    };
    let rows = [
        (add("b", SnapId(SnapId::MAX.0 + 1), &USER), Errno::EINVAL),
        (add("b", SnapId(9), &unknown), Errno::EINVAL),
        (add("b", SnapId(3), &USER), Errno::ESTALE),
        (add("b", SnapId(5), &USER), Errno::EEXIST),
        (add("a", SnapId(9), &USER), Errno::EEXIST),
        (add("t", SnapId(9), &trash("other")), Errno::EEXIST),
    ];
    for (call, errno) in rows {
        let name = format!("{call:?}");
        assert_eq!(object.refuses(call), errno, "{name}");
    }
    object.call(add("t", SnapId(6), &USER)).unwrap();
    assert_eq!(object.call(rbd::snapshot_get_limit()), Ok(u64::MAX));
    assert_eq!(object.refuses(rbd::snapshot_set_limit(2)), Errno::ERANGE);
    object.call(rbd::snapshot_set_limit(3)).unwrap();
    assert_eq!(object.call(rbd::snapshot_get_limit()), Ok(3));
    assert_eq!(object.refuses(add("b", SnapId(9), &USER)), Errno::EDQUOT);
    object.call(rbd::snapshot_set_limit(u64::MAX)).unwrap();
    assert_eq!(object.omap_hex("snap_limit"), None);
    object.call(add("b", SnapId(9), &USER)).unwrap();
}

#[test]
fn a_snapshot_in_use_is_not_removed() {
    let mut object = image();
    object.call(rbd::snapshot_add("a", SnapId(4), &USER)).unwrap();
    assert_eq!(object.refuses(rbd::snapshot_remove(SnapId(5))), Errno::ENOENT);
    for status in [ProtectionStatus::Protected, ProtectionStatus::Unprotecting] {
        object
            .call(rbd::set_protection_status(SnapId(4), status))
            .unwrap();
        assert_eq!(object.call(rbd::get_protection_status(SnapId(4))), Ok(status));
        assert_eq!(object.refuses(rbd::snapshot_remove(SnapId(4))), Errno::EBUSY);
        assert_eq!(object.refuses(rbd::snapshot_trash_add(SnapId(4))), Errno::EBUSY);
    }
    let unprotected = ProtectionStatus::Unprotected;
    object
        .call(rbd::set_protection_status(SnapId(4), unprotected))
        .unwrap();
    let child = ChildImageSpec {
        pool_id: PoolId(1),
        pool_namespace: String::new(),
        image_id: "c".to_owned(),
    };
    object.call(rbd::child_attach(SnapId(4), &child)).unwrap();
    assert_eq!(object.refuses(rbd::snapshot_remove(SnapId(4))), Errno::EBUSY);
    object.call(rbd::child_detach(SnapId(4), &child)).unwrap();
    object.call(rbd::snapshot_remove(SnapId(4))).unwrap();
    assert_eq!(object.refuses(rbd::snapshot_get(SnapId(4))), Errno::ENOENT);
    assert_eq!(object.call(rbd::get_snapcontext()).unwrap().snap_seq, 4);
}

#[test]
fn a_trashed_snapshot_gets_a_random_name_and_sets_the_operation_feature() {
    let mut object = image();
    object.call(rbd::snapshot_add("a", SnapId(4), &USER)).unwrap();
    object.call(rbd::snapshot_trash_add(SnapId(4))).unwrap();
    let info = object.call(rbd::snapshot_get(SnapId(4))).unwrap();
    assert_eq!(info.namespace, trash("a"));
    assert_eq!(info.name.len(), 36);
    assert_eq!(info.name.as_bytes()[14], b'4', "version 4: {}", info.name);
    assert_eq!(object.call(rbd::op_features_get()), Ok(op_feature::SNAP_TRASH));
    assert_eq!(object.refuses(rbd::snapshot_trash_add(SnapId(4))), Errno::EEXIST);
    assert_eq!(object.refuses(rbd::snapshot_trash_add(SnapId(5))), Errno::ENOENT);
    assert_eq!(
        object.refuses(rbd::snapshot_rename(SnapId(4), "b")),
        Errno::EINVAL
    );
    object.call(rbd::snapshot_remove(SnapId(4))).unwrap();
    assert_eq!(object.call(rbd::op_features_get()), Ok(0));
}

#[test]
fn snapshots_are_renamed_to_free_names_only() {
    let mut object = image();
    object.call(rbd::snapshot_add("a", SnapId(4), &USER)).unwrap();
    object.call(rbd::snapshot_add("b", SnapId(5), &USER)).unwrap();
    assert_eq!(
        object.refuses(rbd::snapshot_rename(SnapId(4), "b")),
        Errno::EEXIST
    );
    assert_eq!(
        object.refuses(rbd::snapshot_rename(SnapId(6), "c")),
        Errno::ENOENT
    );
    object.call(rbd::snapshot_rename(SnapId(4), "c")).unwrap();
    assert_eq!(object.call(rbd::get_snapshot_name(SnapId(4))), Ok("c".to_owned()));
}

#[test]
fn protection_needs_layering_and_a_known_status() {
    let mut object = Object::default();
    object.call(rbd::create(MIB, 22, 0, "p", PoolId::NONE)).unwrap();
    let protect = |snap| rbd::set_protection_status(SnapId(snap), ProtectionStatus::Protected);
    assert_eq!(object.refuses(protect(4)), Errno::ENOEXEC);
    let mut object = image();
    assert_eq!(object.refuses(protect(4)), Errno::ENOENT);
    assert_eq!(object.refuses(protect(HEAD.0)), Errno::EINVAL);
    assert_eq!(object.refuses(rbd::get_protection_status(HEAD)), Errno::EINVAL);
    let mut bad = protect(4);
    let mut input = bad.input.to_vec();
    input[8] = 3;
    bad.input = input.into();
    assert_eq!(object.refuses(bad), Errno::EINVAL);
}

#[test]
fn metadata_are_stored_raw_and_listed_in_pages() {
    let mut object = Object::default();
    let pairs: BTreeMap<String, Bytes> = (0..70)
        .map(|index| (format!("k{index:02}"), Bytes::from(vec![0xff, index])))
        .collect();
    object.call(rbd::metadata_set(&pairs)).unwrap();
    assert_eq!(object.omap_hex("metadata_k05").as_deref(), Some("ff05"));
    object.set_omap_hex("migration", "00");
    assert_eq!(object.call(rbd::metadata_list("", 0)).unwrap().len(), 64);
    let rest = object.call(rbd::metadata_list("k63", 64)).unwrap();
    assert_eq!(rest.keys().next().map(String::as_str), Some("k64"));
    assert_eq!(rest.len(), 6);
    assert_eq!(
        object.call(rbd::metadata_get("k01")),
        Ok(Bytes::from_static(&[0xff, 1]))
    );
    assert_eq!(object.refuses(rbd::metadata_get("k")), Errno::ENOENT);
    object.call(rbd::metadata_remove("k01")).unwrap();
    object.call(rbd::metadata_remove("k01")).unwrap();
    assert_eq!(object.refuses(rbd::metadata_get("k01")), Errno::ENOENT);
}

#[test]
fn a_method_does_not_see_what_the_same_operation_wrote() {
    let mut directory = Object::default();
    let add = step(&rbd::dir_add_image("img", "1a"));
    directory.operate(&[add.clone(), add]).unwrap();
    assert_eq!(directory.call(rbd::dir_get_id("img")), Ok("1a".to_owned()));
    // A failing step takes the whole operation back.
    let steps = [
        step(&rbd::dir_add_image("b", "2b")),
        step(&rbd::dir_add_image("img", "3c")),
    ];
    assert_eq!(directory.operate(&steps), Err(Errno::EEXIST));
    assert_eq!(directory.refuses(rbd::dir_get_id("b")), Errno::ENOENT);
}
