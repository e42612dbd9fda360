//! Parents, children, directories, trash, namespaces, groups, migration and format 1: effects and the errno rules of
//! fact sheet sections 3.3, 3.5 and 3.8 to 3.12.

#![allow(clippy::unwrap_used)] // in helpers of tests

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use ferry_cls::encoding::{Decode, Encode};
use ferry_cls::rbd::client as rbd;
use ferry_cls::rbd::v1::{V1Header, V1Snapshot};
use ferry_cls::rbd::*;
use ferry_cls::testing::Object;
use ferry_store::{Errno, PoolId, SnapId, Timestamp};

const MIB: u64 = 1 << 20;
const HEAD: SnapId = SnapId::HEAD;
const USER: SnapshotNamespace = SnapshotNamespace::User;

fn image(features: u64) -> Object {
    let mut object = Object::default();
    let create = rbd::create(8 * MIB, 22, features, "rbd_data.abc", PoolId::NONE);
    object.call(create).unwrap();
    object
}

fn parent_in(namespace: &str) -> ParentImageSpec {
    ParentImageSpec {
        pool_id: PoolId(1),
        pool_namespace: namespace.to_owned(),
        image_id: "parent".to_owned(),
        snap_id: SnapId(3),
    }
}

fn child(id: &str) -> ChildImageSpec {
    ChildImageSpec {
        pool_id: PoolId(1),
        pool_namespace: String::new(),
        image_id: id.to_owned(),
    }
}

#[test]
fn a_parent_is_attached_once_unless_reattached() {
    let parent = parent_in("");
    let attach = rbd::parent_attach;
    let mut flat = image(0);
    assert_eq!(flat.refuses(attach(&parent, MIB, false)), Errno::ENOEXEC);
    assert_eq!(flat.refuses(rbd::parent_detach()), Errno::ENOEXEC);
    assert_eq!(flat.call(rbd::parent_get()), Ok(ParentImageSpec::none()));
    let mut object = image(1);
    assert_eq!(
        object.refuses(attach(&ParentImageSpec::none(), MIB, false)),
        Errno::EINVAL
    );
    assert_eq!(object.refuses(attach(&parent, 0, false)), Errno::EINVAL);
    assert_eq!(object.refuses(rbd::parent_detach()), Errno::ENOENT);
    object.call(attach(&parent, MIB, false)).unwrap();
    assert_eq!(object.call(rbd::parent_get()), Ok(parent.clone()));
    assert_eq!(object.refuses(attach(&parent, MIB, false)), Errno::EEXIST);
    let other = parent_in("ns");
    assert_eq!(object.refuses(attach(&other, MIB, false)), Errno::EEXIST);
    object.call(attach(&other, 2 * MIB, true)).unwrap();
    assert_eq!(object.call(rbd::parent_get()), Ok(other));
    assert_eq!(object.call(rbd::parent_overlap_get(HEAD)), Ok(Some(2 * MIB)));
    assert_eq!(object.refuses(rbd::get_parent(HEAD)), Errno::EXDEV);
    assert_eq!(object.refuses(rbd::remove_parent()), Errno::EXDEV);
}

#[test]
fn detaching_leaves_snapshots_their_parent_without_deep_flatten() {
    let mut object = image(1);
    object
        .call(rbd::parent_attach(&parent_in(""), MIB, false))
        .unwrap();
    object.call(rbd::op_features_set(2, 2)).unwrap();
    object.call(rbd::snapshot_add("s", SnapId(4), &USER)).unwrap();
    object.call(rbd::parent_detach()).unwrap();
    assert_eq!(object.call(rbd::parent_overlap_get(HEAD)), Ok(None));
    assert_eq!(object.call(rbd::parent_overlap_get(SnapId(4))), Ok(Some(MIB)));
    assert_eq!(object.call(rbd::parent_get()), Ok(parent_in("")));
    assert_eq!(object.refuses(rbd::parent_detach()), Errno::ENOENT);
    assert_eq!(object.call(rbd::op_features_get()), Ok(2));
    // A different parent is refused while the snapshot needs this one; the same may come back.
    let attach = rbd::parent_attach;
    assert_eq!(
        object.refuses(attach(&parent_in("ns"), MIB, false)),
        Errno::EEXIST
    );
    object.call(attach(&parent_in(""), MIB, false)).unwrap();
    object.call(rbd::parent_detach()).unwrap();
    // Removing the last snapshot removes the last trace.
    object.call(rbd::snapshot_remove(SnapId(4))).unwrap();
    assert_eq!(object.omap_hex("parent"), None);
    assert_eq!(object.call(rbd::op_features_get()), Ok(0));
    assert_eq!(object.call(rbd::parent_get()), Ok(ParentImageSpec::none()));
}

#[test]
fn detaching_with_deep_flatten_detaches_snapshots_too() {
    let mut object = image(1 | feature::DEEP_FLATTEN);
    object
        .call(rbd::parent_attach(&parent_in(""), MIB, false))
        .unwrap();
    object.call(rbd::op_features_set(2, 2)).unwrap();
    object.call(rbd::snapshot_add("s", SnapId(4), &USER)).unwrap();
    object.call(rbd::parent_detach()).unwrap();
    assert_eq!(object.call(rbd::parent_overlap_get(SnapId(4))), Ok(None));
    assert_eq!(object.omap_hex("parent"), None);
    assert_eq!(object.call(rbd::op_features_get()), Ok(0));
}

#[test]
fn a_legacy_snapshot_s_parent_survives_its_rewrite() {
    let mut object = image(1);
    let body = "0400000000000000 01000000 73 0000800000000000 0100000000000000
        0101 22000000 0100000000000000 06000000 706172656e74 0300000000000000 0000100000000000
        00 0000000000000000 0101 04000000 00000000 0000000000000000 00000000 00";
    let body = ferry_cls::testing::from_hex(body);
    let frame = format!(
        "0801{}",
        ferry_cls::testing::to_hex(&(body.len() as u32).to_le_bytes())
    );
    object.set_omap_hex(
        "snapshot_0000000000000004",
        &(frame + &ferry_cls::testing::to_hex(&body)),
    );
    assert_eq!(object.call(rbd::parent_get()), Ok(parent_in("")));
    assert_eq!(object.call(rbd::parent_overlap_get(SnapId(4))), Ok(Some(MIB)));
    object.call(rbd::set_flags(1, 1, SnapId(4))).unwrap();
    let raw = &object.omap["snapshot_0000000000000004".as_bytes()];
    assert_eq!(raw[..2], [8, 8], "rewritten in today's form");
    let snap = StoredSnapshot::from_slice(raw).unwrap();
    assert_eq!((snap.parent_overlap_bytes, snap.legacy_parent), (Some(MIB), None));
    assert_eq!(object.call(rbd::parent_get()), Ok(parent_in("")));
    assert_eq!(object.call(rbd::parent_overlap_get(HEAD)), Ok(None));
}

#[test]
fn the_legacy_parent_methods_agree_with_today_s() {
    let mut object = image(1);
    let link = LegacyParent {
        pool_id: PoolId(1),
        image_id: "parent".to_owned(),
        snap_id: SnapId(3),
        overlap_bytes: MIB,
    };
    object.call(rbd::set_parent(&link)).unwrap();
    assert_eq!(object.call(rbd::get_parent(HEAD)), Ok(link.clone()));
    assert_eq!(object.call(rbd::parent_get()), Ok(parent_in("")));
    assert_eq!(object.refuses(rbd::set_parent(&link)), Errno::EEXIST);
    object.call(rbd::remove_parent()).unwrap();
    assert_eq!(object.call(rbd::get_parent(HEAD)).unwrap().pool_id, PoolId::NONE);
    assert_eq!(object.refuses(rbd::remove_parent()), Errno::ENOENT);
}

#[test]
fn clone_v2_children_are_counted_on_the_parent() {
    let mut object = image(1);
    let (a, b) = (child("a"), child("b"));
    assert_eq!(object.refuses(rbd::child_attach(SnapId(4), &a)), Errno::ENOENT);
    object.call(rbd::snapshot_add("s", SnapId(4), &USER)).unwrap();
    object.call(rbd::snapshot_add("t", SnapId(5), &USER)).unwrap();
    assert_eq!(object.refuses(rbd::children_list(SnapId(4))), Errno::ENOENT);
    object.call(rbd::child_attach(SnapId(4), &a)).unwrap();
    assert_eq!(object.refuses(rbd::child_attach(SnapId(4), &a)), Errno::EEXIST);
    object.call(rbd::child_attach(SnapId(4), &b)).unwrap();
    object.call(rbd::child_attach(SnapId(5), &a)).unwrap();
    assert_eq!(object.call(rbd::snapshot_get(SnapId(4))).unwrap().child_count, 2);
    let both = BTreeSet::from([a.clone(), b.clone()]);
    assert_eq!(object.call(rbd::children_list(SnapId(4))), Ok(both));
    assert_eq!(object.call(rbd::op_features_get()), Ok(op_feature::CLONE_PARENT));
    object.call(rbd::snapshot_trash_add(SnapId(5))).unwrap();
    assert_eq!(object.refuses(rbd::child_attach(SnapId(5), &b)), Errno::ENOENT);

    object.call(rbd::child_detach(SnapId(4), &a)).unwrap();
    assert_eq!(object.refuses(rbd::child_detach(SnapId(4), &a)), Errno::ENOENT);
    object.call(rbd::child_detach(SnapId(4), &b)).unwrap();
    assert_eq!(object.refuses(rbd::child_detach(SnapId(4), &b)), Errno::ENOENT);
    let both_bits = op_feature::CLONE_PARENT | op_feature::SNAP_TRASH;
    assert_eq!(object.call(rbd::op_features_get()), Ok(both_bits));
    object.call(rbd::child_detach(SnapId(5), &a)).unwrap();
    assert_eq!(object.call(rbd::op_features_get()), Ok(op_feature::SNAP_TRASH));
    assert_eq!(object.omap_hex("snap_children_0000000000000005"), None);
}

#[test]
fn a_child_count_that_contradicts_the_set_is_refused() {
    let mut object = image(1);
    object.call(rbd::snapshot_add("s", SnapId(4), &USER)).unwrap();
    object.call(rbd::child_attach(SnapId(4), &child("a"))).unwrap();
    let two = BTreeSet::from([child("a"), child("b")]).to_bytes();
    object.set_omap_hex(
        "snap_children_0000000000000004",
        &ferry_cls::testing::to_hex(&two),
    );
    assert_eq!(
        object.refuses(rbd::child_detach(SnapId(4), &child("a"))),
        Errno::EINVAL
    );
}

#[test]
fn the_clone_v1_registry_has_binary_keys() {
    let mut object = Object::default();
    let parent = parent_in("");
    assert_eq!(object.refuses(rbd::remove_child(&parent, "c1")), Errno::ENOENT);
    object.call(rbd::add_child(&parent, "c1")).unwrap();
    assert_eq!(object.refuses(rbd::add_child(&parent, "c1")), Errno::EEXIST);
    object.call(rbd::add_child(&parent, "c2")).unwrap();
    let key = ferry_cls::testing::from_hex("0100000000000000 06000000 706172656e74 0300000000000000");
    assert_eq!(
        ferry_cls::testing::to_hex(&object.omap[key.as_slice()]),
        "02000000020000006331020000006332"
    );
    let list = rbd::get_children(PoolId(1), "parent", SnapId(3));
    assert_eq!(object.call(list.clone()).unwrap().len(), 2);
    assert_eq!(
        object.refuses(rbd::get_children(PoolId(1), "parent", SnapId(4))),
        Errno::ENOENT
    );
    object.call(rbd::remove_child(&parent, "c1")).unwrap();
    assert_eq!(object.refuses(rbd::remove_child(&parent, "c1")), Errno::ENOENT);
    object.call(rbd::remove_child(&parent, "c2")).unwrap();
    assert_eq!(object.refuses(list), Errno::ENOENT);
    assert!(object.omap.is_empty());
}

#[test]
fn an_image_id_is_set_once_on_an_existing_object() {
    assert_eq!(Object::default().refuses(rbd::set_id("1a")), Errno::ENOENT);
    let mut object = Object::empty();
    assert_eq!(object.refuses(rbd::get_id()), Errno::ENOENT);
    for bad in ["", "a/b", "a b", "\u{e9}"] {
        assert_eq!(object.refuses(rbd::set_id(bad)), Errno::EINVAL);
    }
    object.call(rbd::set_id("101a618946b6")).unwrap();
    assert_eq!(
        ferry_cls::testing::to_hex(&object.data),
        "0c000000313031613631383934366236"
    );
    assert_eq!(object.call(rbd::get_id()), Ok("101a618946b6".to_owned()));
    assert_eq!(object.refuses(rbd::set_id("2b")), Errno::EEXIST);
}

#[test]
fn a_directory_keeps_names_and_ids_together() {
    let mut object = Object::default();
    for (name, id) in [("", "1a"), ("x", ""), ("x", "1_")] {
        assert_eq!(object.refuses(rbd::dir_add_image(name, id)), Errno::EINVAL);
    }
    object.call(rbd::dir_add_image("x", "1a")).unwrap();
    object.call(rbd::dir_add_image("y", "2b")).unwrap();
    assert_eq!(object.refuses(rbd::dir_add_image("x", "3c")), Errno::EEXIST);
    assert_eq!(object.refuses(rbd::dir_add_image("z", "1a")), Errno::EBADF);
    assert_eq!(object.call(rbd::dir_get_id("x")), Ok("1a".to_owned()));
    assert_eq!(object.call(rbd::dir_get_name("2b")), Ok("y".to_owned()));
    assert_eq!(object.refuses(rbd::dir_get_name("zz")), Errno::ENOENT);
    let rows = [
        (rbd::dir_remove_image("z", "1a"), Errno::ENOENT),
        (rbd::dir_remove_image("x", "9z"), Errno::ENOENT),
        (rbd::dir_remove_image("x", "2b"), Errno::ESTALE),
        (rbd::dir_rename_image("z", "n", "1a"), Errno::ENOENT),
        (rbd::dir_rename_image("x", "n", "2b"), Errno::ESTALE),
        (rbd::dir_rename_image("x", "y", "1a"), Errno::EEXIST),
    ];
    for (call, errno) in rows {
        let name = format!("{call:?}");
        assert_eq!(object.refuses(call), errno, "{name}");
    }
    object.call(rbd::dir_rename_image("x", "n", "1a")).unwrap();
    assert_eq!(object.refuses(rbd::dir_get_id("x")), Errno::ENOENT);
    let listed = object.call(rbd::dir_list("", 10)).unwrap();
    let expected = [("n", "1a"), ("y", "2b")];
    assert_eq!(listed, expected.map(|(n, i)| (n.to_owned(), i.to_owned())).into());
    assert_eq!(object.call(rbd::dir_list("n", 10)).unwrap().len(), 1);
    assert_eq!(object.call(rbd::dir_list("", 1)).unwrap().len(), 1);
    let closed = DirectoryState::AddDisabled;
    assert_eq!(
        object.refuses(rbd::dir_state_assert(DirectoryState::Ready)),
        Errno::ENOENT
    );
    assert_eq!(object.refuses(rbd::dir_state_set(closed)), Errno::EBUSY);
    object.call(rbd::dir_state_set(DirectoryState::Ready)).unwrap();
    object.call(rbd::dir_state_assert(DirectoryState::Ready)).unwrap();
    assert_eq!(object.refuses(rbd::dir_state_assert(closed)), Errno::ENOENT);
    object.call(rbd::dir_remove_image("n", "1a")).unwrap();
    object.call(rbd::dir_remove_image("y", "2b")).unwrap();
    object.call(rbd::dir_state_set(closed)).unwrap();
    object.call(rbd::dir_state_assert(closed)).unwrap();
}

#[test]
fn namespaces_are_names_with_empty_values() {
    let mut object = Object::default();
    assert_eq!(object.refuses(rbd::namespace_remove("a")), Errno::ENOENT);
    object.call(rbd::namespace_add("a")).unwrap();
    object.call(rbd::namespace_add("b")).unwrap();
    assert_eq!(object.refuses(rbd::namespace_add("a")), Errno::EEXIST);
    assert_eq!(object.omap_hex("name_a").as_deref(), Some(""));
    assert_eq!(object.call(rbd::namespace_list("a", 5)), Ok(vec!["b".to_owned()]));
    object.call(rbd::namespace_remove("a")).unwrap();
    assert_eq!(object.call(rbd::namespace_list("", 5)), Ok(vec!["b".to_owned()]));
}

#[test]
fn trash_entries_change_state_from_the_expected_one_only() {
    let spec = TrashImageSpec {
        source: TrashImageSource::User,
        name: "x".to_owned(),
        deletion_time: Timestamp::default(),
        deferment_end_time: Timestamp::default(),
        state: TrashImageState::Moving,
    };
    let mut object = Object::default();
    object.call(rbd::trash_add("1a", &spec)).unwrap();
    assert_eq!(object.refuses(rbd::trash_add("1a", &spec)), Errno::EEXIST);
    assert_eq!(object.refuses(rbd::trash_get("2b")), Errno::ENOENT);
    assert_eq!(object.call(rbd::trash_get("1a")), Ok(spec.clone()));
    use TrashImageState::{Moving, Normal, Removing, Restoring};
    let set = rbd::trash_state_set;
    assert_eq!(object.refuses(set("2b", Normal, Moving)), Errno::ENOENT);
    assert_eq!(object.refuses(set("1a", Removing, Restoring)), Errno::ESTALE);
    object.call(set("1a", Normal, Moving)).unwrap();
    object.call(set("1a", Normal, Moving)).unwrap();
    assert_eq!(object.call(rbd::trash_get("1a")).unwrap().state, Normal);
    assert_eq!(object.call(rbd::trash_list("", 5)).unwrap().len(), 1);
    assert_eq!(object.call(rbd::trash_list("1a", 5)).unwrap().len(), 0);
    object.call(rbd::trash_remove("1a")).unwrap();
    assert_eq!(object.refuses(rbd::trash_remove("1a")), Errno::ENOENT);
}

fn migration(header_type: MigrationHeaderType) -> MigrationSpec {
    MigrationSpec {
        header_type,
        pool_id: PoolId(2),
        pool_namespace: String::new(),
        image_name: "m1".to_owned(),
        image_id: "10bc".to_owned(),
        snap_seqs: BTreeMap::new(),
        overlap_bytes: 0,
        flatten: false,
        mirroring: false,
        state: MigrationState::Preparing,
        state_description: String::new(),
        mirror_image_mode: MirrorImageMode::Journal,
        source_spec: String::new(),
    }
}

#[test]
fn migration_marks_a_format_2_header_by_its_feature() {
    let source = migration(MigrationHeaderType::Source);
    let destination = migration(MigrationHeaderType::Destination);
    let set_state = rbd::migration_set_state;
    let mut object = image(61);
    assert_eq!(object.refuses(rbd::migration_get()), Errno::EINVAL);
    assert_eq!(
        object.refuses(set_state(MigrationState::Prepared, "")),
        Errno::EINVAL
    );
    object.call(rbd::migration_remove()).unwrap();
    object.call(rbd::migration_set(&source)).unwrap();
    assert_eq!(object.refuses(rbd::migration_set(&destination)), Errno::EEXIST);
    let features = |object: &mut Object| object.call(rbd::get_features(HEAD, false)).unwrap().features;
    assert_eq!(features(&mut object), 61 | feature::MIGRATING);
    object
        .call(set_state(MigrationState::Executing, "7% complete"))
        .unwrap();
    let found = object.call(rbd::migration_get()).unwrap();
    assert_eq!(found.state, MigrationState::Executing);
    assert_eq!(found.state_description, "7% complete");
    assert_eq!(found.image_id, source.image_id);
    object.omap.remove("migration".as_bytes());
    assert_eq!(object.refuses(rbd::migration_get()), Errno::ENOENT);
    assert_eq!(object.refuses(rbd::migration_set(&source)), Errno::EEXIST);
    object.call(rbd::migration_set(&destination)).unwrap();
    object.call(rbd::migration_remove()).unwrap();
    assert_eq!(features(&mut object), 61);
    assert_eq!(object.omap_hex("migration"), None);
    assert_eq!(
        Object::default().refuses(rbd::migration_set(&source)),
        Errno::ENOENT
    );
    assert_eq!(Object::default().refuses(rbd::migration_remove()), Errno::ENOENT);
}

fn v1_image() -> (Object, V1Header) {
    let header = V1Header {
        migrating: false,
        block_name: "rb.0.1028.6b8b4567".to_owned(),
        order: 22,
        image_size_bytes: 8 * MIB,
        snap_seq: 0,
        snaps: Vec::new(),
    };
    (Object::with_data(&header.to_bytes()), header)
}

#[test]
fn migration_marks_a_format_1_header_by_its_text() {
    let source = migration(MigrationHeaderType::Source);
    let (mut object, header) = v1_image();
    let plain = object.data.clone();
    assert_eq!(object.refuses(rbd::migration_get()), Errno::EINVAL);
    assert_eq!(object.refuses(rbd::migration_remove()), Errno::EINVAL);
    let destination = migration(MigrationHeaderType::Destination);
    assert_eq!(object.refuses(rbd::migration_set(&destination)), Errno::EINVAL);
    object.call(rbd::migration_set(&source)).unwrap();
    let marked = V1Header::from_slice(&object.data).unwrap();
    assert_eq!(
        marked,
        V1Header {
            migrating: true,
            ..header
        }
    );
    assert_eq!(object.call(rbd::migration_get()), Ok(source.clone()));
    object.omap.clear();
    assert_eq!(object.refuses(rbd::migration_set(&source)), Errno::EEXIST);
    object.call(rbd::migration_remove()).unwrap();
    assert_eq!(object.data, plain);
    let mut other = Object::with_data(b"<<< something else");
    assert_eq!(other.refuses(rbd::migration_set(&source)), Errno::ENXIO);
}

#[test]
fn format_1_snapshots_are_kept_newest_first() {
    let (mut object, header) = v1_image();
    object.call(rbd::snap_add("a", SnapId(4))).unwrap();
    object.call(rbd::snap_add("bb", SnapId(6))).unwrap();
    assert_eq!(object.refuses(rbd::snap_add("c", SnapId(5))), Errno::ESTALE);
    assert_eq!(object.refuses(rbd::snap_add("a", SnapId(7))), Errno::EEXIST);
    object.call(rbd::snapshot_set_limit(2)).unwrap();
    assert_eq!(object.refuses(rbd::snap_add("c", SnapId(7))), Errno::EDQUOT);
    assert_eq!(object.refuses(rbd::snapshot_set_limit(1)), Errno::ERANGE);
    let snap = |id, name: &str| V1Snapshot {
        id: SnapId(id),
        image_size_bytes: 8 * MIB,
        name: name.to_owned(),
    };
    let listed = object.call(rbd::snap_list()).unwrap();
    assert_eq!(listed.snap_seq, 6);
    assert_eq!(listed.snaps, [snap(6, "bb"), snap(4, "a")]);
    assert_eq!(object.refuses(rbd::snap_rename(SnapId(4), "bb")), Errno::EEXIST);
    assert_eq!(object.refuses(rbd::snap_rename(SnapId(5), "x")), Errno::ENOENT);
    object.call(rbd::snap_rename(SnapId(4), "x")).unwrap();
    assert_eq!(object.refuses(rbd::snap_remove("a")), Errno::ENOENT);
    object.call(rbd::snap_remove("bb")).unwrap();
    let left = V1Header::from_slice(&object.data).unwrap();
    let expected = V1Header {
        snap_seq: 6,
        snaps: vec![snap(4, "x")],
        ..header
    };
    assert_eq!(left, expected);
    assert_eq!(
        Object::with_data(&[0; 111]).refuses(rbd::snap_list()),
        Errno::EINVAL
    );
}

#[test]
fn an_image_is_in_one_group() {
    let group = |id: &str| GroupSpec {
        pool_id: PoolId(1),
        group_id: id.to_owned(),
    };
    let mut object = image(1);
    assert_eq!(object.call(rbd::image_group_get()), Ok(GroupSpec::none()));
    assert_eq!(
        object.refuses(rbd::image_group_remove(&group("g"))),
        Errno::ENOENT
    );
    object.call(rbd::image_group_add(&group("g"))).unwrap();
    object.call(rbd::image_group_add(&group("g"))).unwrap();
    assert_eq!(object.refuses(rbd::image_group_add(&group("h"))), Errno::EEXIST);
    assert_eq!(object.refuses(rbd::image_group_remove(&group("h"))), Errno::EBADF);
    assert_eq!(object.call(rbd::op_features_get()), Ok(op_feature::GROUP));
    assert_eq!(object.call(rbd::image_group_get()), Ok(group("g")));
    object.call(rbd::image_group_remove(&group("g"))).unwrap();
    assert_eq!(object.call(rbd::op_features_get()), Ok(0));
}

#[test]
fn a_group_lists_its_images_and_directories_their_groups() {
    let spec = |pool, id: &str| GroupImageSpec {
        image_id: id.to_owned(),
        pool_id: PoolId(pool),
    };
    let status = |pool, id| GroupImageStatus {
        spec: spec(pool, id),
        state: GroupLinkState::Attached,
    };
    let mut object = Object::default();
    for (pool, id) in [(16, "b"), (1, "a"), (1, "c")] {
        object.call(rbd::group_image_set(&status(pool, id))).unwrap();
    }
    assert_eq!(object.omap_hex("image_0000000000000010_b").as_deref(), Some("00"));
    let listed = object.call(rbd::group_image_list(&spec(0, ""), 10)).unwrap();
    assert_eq!(listed, [status(1, "a"), status(1, "c"), status(16, "b")]);
    object.call(rbd::group_image_remove(&spec(1, "a"))).unwrap();
    assert_eq!(
        object.call(rbd::group_image_list(&spec(1, "c"), 10)).unwrap(),
        [status(16, "b")]
    );

    let mut directory = Object::default();
    directory.call(rbd::group_dir_add("g", "1a")).unwrap();
    assert_eq!(directory.refuses(rbd::group_dir_add("g", "2b")), Errno::EEXIST);
    directory.call(rbd::group_dir_rename("g", "h", "1a")).unwrap();
    assert_eq!(directory.call(rbd::group_dir_list("", 5)).unwrap()["h"], "1a");
    assert_eq!(directory.refuses(rbd::group_dir_remove("g", "1a")), Errno::ENOENT);
    directory.call(rbd::group_dir_remove("h", "1a")).unwrap();
}

#[test]
fn a_group_s_snapshots_have_names_of_their_own() {
    let snapshot = |id: &str, name: &str, state| GroupSnapshot {
        id: id.to_owned(),
        name: name.to_owned(),
        state,
        snaps: Vec::new(),
    };
    let (incomplete, complete) = (GroupSnapshotState::Incomplete, GroupSnapshotState::Complete);
    let mut group = Object::default();
    for (id, name) in [("", "s"), ("1a", "")] {
        assert_eq!(
            group.refuses(rbd::group_snap_set(&snapshot(id, name, incomplete))),
            Errno::EINVAL
        );
    }
    group
        .call(rbd::group_snap_set(&snapshot("1a", "s", incomplete)))
        .unwrap();
    let again = rbd::group_snap_set(&snapshot("1a", "s", incomplete));
    assert_eq!(
        group.refuses(again),
        Errno::EEXIST,
        "a new one cannot replace another"
    );
    let same_name = rbd::group_snap_set(&snapshot("0b", "s", incomplete));
    assert_eq!(group.refuses(same_name), Errno::EEXIST);
    group
        .call(rbd::group_snap_set(&snapshot("1a", "s", complete)))
        .unwrap();
    group
        .call(rbd::group_snap_set(&snapshot("0b", "t", complete)))
        .unwrap();
    let renamed = rbd::group_snap_set(&snapshot("0b", "s", complete));
    assert_eq!(group.refuses(renamed), Errno::EEXIST);
    let all = [snapshot("0b", "t", complete), snapshot("1a", "s", complete)];
    assert_eq!(group.call(rbd::group_snap_list("", 10)).unwrap(), all);
    assert_eq!(group.call(rbd::group_snap_list("", 1)).unwrap(), all[..1]);
    assert_eq!(group.call(rbd::group_snap_list("0b", 10)).unwrap(), all[1..]);
    assert_eq!(group.call(rbd::group_snap_get_by_id("1a")).as_ref(), Ok(&all[1]));
    group.call(rbd::group_snap_remove("1a")).unwrap();
    group.call(rbd::group_snap_remove("1a")).unwrap();
    assert_eq!(group.refuses(rbd::group_snap_get_by_id("1a")), Errno::ENOENT);
    group.set_omap_hex("snapshot_0b", "0101ff000000");
    assert_eq!(group.refuses(rbd::group_snap_list("", 10)), Errno::EIO);
}

#[test]
fn a_damaged_stored_value_is_an_i_o_error() {
    let mut object = image(1);
    object.call(rbd::snapshot_add("s", SnapId(4), &USER)).unwrap();
    object.set_omap_hex("snapshot_0000000000000004", "0808ff0000");
    assert_eq!(object.refuses(rbd::snapshot_get(SnapId(4))), Errno::EIO);
    assert_eq!(object.refuses(rbd::get_snapcontext()), Errno::EIO);
    assert_eq!(object.refuses(rbd::snapshot_remove(SnapId(4))), Errno::EIO);
    object.set_omap_hex("size", "01");
    assert_eq!(object.refuses(rbd::get_size(HEAD)), Errno::EIO);
    object.set_omap_hex("metadata_k", "ff");
    assert_eq!(
        object.call(rbd::metadata_get("k")),
        Ok(Bytes::from_static(&[0xff]))
    );
}
