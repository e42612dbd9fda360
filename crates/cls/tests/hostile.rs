//! Bytes from outside: truncated, mutated and lying input never panics, never allocates by what it claims, and fails
//! with the right errno.

#![allow(clippy::unwrap_used)] // in helpers of tests

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use ferry_cls::encoding::Encode;
use ferry_cls::encoding::{BitVector, Decode, DecodeErrorKind, Decoder};
use ferry_cls::rbd::client as rbd;
use ferry_cls::rbd::v1::Tmap;
use ferry_cls::rbd::*;
use ferry_cls::testing::samples::{payloads, records, rich_object};
use ferry_cls::testing::{NOW, Object, REGISTRY, Random, client, from_hex};
use ferry_store::{Errno, SnapId};

/// Every method of the fact sheet's sections 3.1 to 3.12 and 4 that runs here: reads, then writes.
const READS: &str = "get_size get_features get_all_features get_object_prefix get_data_pool get_stripe_unit_count \
    get_create_timestamp get_access_timestamp get_modify_timestamp get_flags op_features_get get_snapcontext snapshot_get \
    get_snapshot_name get_snapshot_timestamp get_protection_status snapshot_get_limit parent_get parent_overlap_get \
    get_parent children_list get_children metadata_list metadata_get get_id dir_get_id dir_get_name dir_list \
    dir_state_assert object_map_load migration_get trash_list trash_get namespace_list snap_list image_group_get \
    group_image_list group_dir_list group_snap_get_by_id group_snap_list";
const WRITES: &str = "create set_size set_features set_stripe_unit_count set_access_timestamp set_modify_timestamp \
    set_flags op_features_set snapshot_add snapshot_remove snapshot_rename snapshot_trash_add set_protection_status \
    snapshot_set_limit parent_attach parent_detach set_parent remove_parent child_attach child_detach add_child \
    remove_child metadata_set metadata_remove set_id dir_add_image dir_remove_image dir_rename_image dir_state_set \
    object_map_save object_map_resize object_map_update object_map_snap_add object_map_snap_remove copyup sparse_copyup \
    assert_snapc_seq sparsify migration_set migration_set_state migration_remove trash_add trash_remove trash_state_set \
    namespace_add namespace_remove snap_add snap_remove snap_rename image_group_add image_group_remove group_image_set \
    group_image_remove group_dir_add group_dir_remove group_dir_rename \
    group_snap_set group_snap_remove";
/// Methods without a payload.
const NO_PAYLOAD: &str = "get_all_features get_object_prefix get_data_pool get_stripe_unit_count get_create_timestamp \
    get_access_timestamp get_modify_timestamp op_features_get get_snapcontext snapshot_get_limit parent_get get_id \
    object_map_load migration_get snap_list image_group_get set_access_timestamp set_modify_timestamp parent_detach \
    remove_parent object_map_snap_add migration_remove";

fn methods(names: &'static str) -> impl Iterator<Item = &'static str> {
    names.split_whitespace()
}

#[test]
fn all_methods_are_registered_and_reads_of_missing_objects_are_enoent() {
    let mut missing = Object::default();
    for method in methods(READS) {
        assert!(!REGISTRY.find("rbd", method).unwrap().writes, "{method}");
        let found = missing.operate(&[("rbd", method, Bytes::new())]);
        assert_eq!(found, Err(Errno::ENOENT), "{method}");
    }
    for method in methods(WRITES) {
        assert!(REGISTRY.find("rbd", method).unwrap().writes, "{method}");
    }
    for method in ["lock", "unlock", "break_lock", "set_cookie"] {
        assert!(REGISTRY.find("lock", method).unwrap().writes, "{method}");
    }
    for method in ["get_info", "assert_locked"] {
        assert!(!REGISTRY.find("lock", method).unwrap().writes, "{method}");
    }
    assert_eq!(REGISTRY.find("rbd", "nothing").unwrap_err(), Errno::EOPNOTSUPP);
    assert_eq!(REGISTRY.find("nothing", "lock").unwrap_err(), Errno::EOPNOTSUPP);
}

#[test]
fn an_undecodable_payload_is_einval() {
    let without_payload: BTreeSet<&str> = methods(NO_PAYLOAD).chain(["copyup"]).collect();
    let rbd = methods(READS)
        .chain(methods(WRITES))
        .map(|method| ("rbd", method));
    let locks = [
        "lock",
        "unlock",
        "break_lock",
        "set_cookie",
        "get_info",
        "assert_locked",
    ];
    for (class, method) in rbd.chain(locks.map(|method| ("lock", method))) {
        if without_payload.contains(method) {
            continue;
        }
        for payload in [&[][..], &[0xff; 3], &[0xff; 200]] {
            // 200 bytes of 0xff do decode where only integers are wanted; those then ask for what is not there.
            let mut object = rich_object();
            let before = object.clone();
            let found = object.operate(&[(class, method, Bytes::from_static(payload))]);
            if payload.len() < 4 {
                assert_eq!(found, Err(Errno::EINVAL), "{class}.{method} {payload:?}");
            }
            if found.is_err() {
                assert_eq!(object, before, "{class}.{method} failed and changed the object");
            }
        }
    }
}

#[test]
fn counts_and_lengths_that_lie_are_refused_before_anything_is_allocated() {
    fn truncated<T: Decode + std::fmt::Debug>(hex: &str) {
        let error = T::from_slice(&from_hex(hex)).unwrap_err();
        let DecodeErrorKind::Truncated { needed, left } = error.kind else {
            panic!("{error}");
        };
        assert!(needed > left, "{error}");
    }
    truncated::<Vec<u64>>("ffffffff 0000000000000000");
    truncated::<BTreeSet<String>>("ffffffff 00000000");
    truncated::<BTreeMap<String, Bytes>>("ffffffff 00000000 00000000");
    truncated::<BTreeMap<SnapId, SnapId>>("00000010");
    truncated::<String>("ffffffff 61");
    truncated::<Bytes>("ffffffff 61");
    truncated::<GroupSpec>("0101 ffffffff 00");
    truncated::<BitVector>("0e000000 0101 08000000 0034420f00000000 00");
    truncated::<Tmap>("00000000 ffffffff 00");
    let too_many = from_hex("0e000000 0101 08000000 ffffffffffffffff 00");
    let error = BitVector::from_slice(&too_many).unwrap_err();
    assert_eq!(error.kind, DecodeErrorKind::BadValue(u64::MAX));
    let mut list = 7u64.to_bytes().to_vec();
    list.extend([0xff; 4]);
    let error = rbd::snap_list().decode(&list).unwrap_err();
    assert_eq!(error.errno, Errno::EIO);
    assert_eq!(
        error.to_string(),
        "answer of rbd.snap_list: field 'snapshot id' at byte 12: needs 8 bytes, 0 are left: (5) Input/output error"
    );
}

#[test]
fn a_frame_bounds_what_is_inside_it() {
    // The string says 4 bytes; its frame ends after 1, though more bytes follow.
    let bytes = from_hex("0101 0d000000 0100000000000000 04000000 61 62636465");
    let error = GroupSpec::from_slice(&bytes).unwrap_err();
    assert_eq!((error.field, error.offset), ("group id", 18));
    assert_eq!(error.kind, DecodeErrorKind::Truncated { needed: 4, left: 1 });
    let not_utf8 = from_hex("0101 0d000000 0100000000000000 01000000 ff");
    let error = GroupSpec::from_slice(&not_utf8).unwrap_err();
    assert_eq!(error.kind, DecodeErrorKind::NotUtf8);
}

#[test]
fn object_map_damage_is_told_apart() {
    let good = BitVector::new(20_000, 1).unwrap().to_bytes().to_vec();
    let kind = |at: usize| {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        BitVector::from_slice(&bytes).unwrap_err().kind
    };
    assert!(
        matches!(kind(18 + 4999), DecodeErrorKind::BadChecksum { .. }),
        "data"
    );
    assert!(
        matches!(kind(5018 + 4), DecodeErrorKind::BadChecksum { .. }),
        "header checksum"
    );
    assert!(
        matches!(kind(5018 + 8), DecodeErrorKind::BadValue(_)),
        "block count"
    );
    assert!(
        matches!(kind(5018 + 12), DecodeErrorKind::BadChecksum { .. }),
        "block checksum"
    );
}

#[test]
fn every_truncation_is_refused() {
    for (name, bytes, decodes) in records() {
        assert!(decodes(&bytes), "{name}");
        for end in 0..bytes.len() {
            // An empty tmap is one without entries; everything else needs all its bytes.
            let may_decode = name == "tmap" && end == 0;
            assert_eq!(decodes(&bytes[..end]), may_decode, "{name} cut to {end} bytes");
        }
    }
}

fn mutate(random: &mut Random, bytes: &mut Vec<u8>) {
    for _ in 0..=random.below(3) {
        if bytes.is_empty() {
            return;
        }
        let at = random.below(bytes.len() as u64) as usize;
        match random.below(4) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][random.below(5) as usize],
            2 => bytes.truncate(at),
            _ => bytes.insert(at, random.next() as u8),
        }
    }
}

#[test]
fn mutated_records_never_panic_decoders() {
    let seed = ferry_reference::seed();
    let mut random = Random(seed);
    for (name, bytes, decodes) in records() {
        let mut refused = 0;
        for _ in 0..3_000 {
            let mut mutant = bytes.clone();
            mutate(&mut random, &mut mutant);
            refused += u32::from(!decodes(&mutant));
        }
        assert!(
            refused > 100,
            "{name}: mutations hardly ever noticed, seed {seed}"
        );
    }
}

#[test]
fn mutated_payloads_and_stored_values_never_panic_methods() {
    let seed = ferry_reference::seed();
    let mut random = Random(seed);
    let payloads: Vec<(&'static str, &'static str, Bytes)> = payloads();
    let mut failures = 0;
    for round in 0..4_000 {
        let mut object = rich_object();
        if round % 2 == 0 {
            let keys: Vec<Bytes> = object.omap.keys().cloned().collect();
            let key = keys[random.below(keys.len() as u64) as usize].clone();
            let mut value = object.omap[&key].to_vec();
            mutate(&mut random, &mut value);
            object.omap.insert(key, value.into());
        }
        let (class, method, payload) = &payloads[random.below(payloads.len() as u64) as usize];
        let mut payload = payload.to_vec();
        if round % 3 == 0 {
            mutate(&mut random, &mut payload);
        }
        let before = object.clone();
        let found = object.operate_as(client(7), NOW, &[(class, method, payload.into())]);
        if found.is_err() {
            failures += 1;
            assert_eq!(object, before, "{class}.{method}, seed {seed}");
        }
    }
    assert!(failures > 100, "only {failures} failures, seed {seed}");
}

#[test]
fn mutated_object_maps_never_panic_methods() {
    let seed = ferry_reference::seed();
    let mut random = Random(seed);
    let map = BitVector::new(20_000, 1).unwrap();
    let good = map.to_bytes();
    for _ in 0..400 {
        let mut bytes = good.to_vec();
        // The head and the footer are where lengths and counts are.
        let at = if random.below(2) == 0 {
            random.below(18)
        } else {
            5018 + random.below(20)
        } as usize;
        bytes[at] = random.next() as u8;
        if random.below(4) == 0 {
            bytes.truncate(random.below(5038) as usize);
        }
        let mut object = Object::with_data(&bytes);
        let calls = [
            rbd::object_map_update(random.below(20_000), 20_000, ObjectState::Pending, None),
            rbd::object_map_snap_add(),
            rbd::object_map_snap_remove(&map),
            rbd::object_map_resize(20_001, ObjectState::Exists),
        ];
        for call in calls {
            if object.call(call).is_err() {
                assert_eq!(object.data, bytes, "seed {seed}");
            } else {
                bytes = object.data.clone();
            }
        }
        let _ = object.call(rbd::object_map_load());
    }
    assert!(Decoder::new(&good).get::<BitVector>("map").is_ok());
}
