//! Bytes captured from Ceph 16.2.15 (fact sheet sections 1 to 6 and 14): each decodes to the value it was made from
//! and encodes back to the same bytes.

#![allow(clippy::unwrap_used)] // in helpers of tests

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use ferry_cls::encoding::{BitVector, Decode, Encode, Encoder, EntityAddress, EntityName};
use ferry_cls::lock::{LockInfo, LockKind, LockerId, LockerInfo, client as lock};
use ferry_cls::rbd::v1::{Tmap, V1Header, V1Snapshot};
use ferry_cls::rbd::*;
use ferry_cls::testing::{from_hex, to_hex};
use ferry_cls::{Call, rbd::client as rbd};
use ferry_store::{PoolId, SnapId, Timestamp};

/// Checks both directions.
fn same<T: Encode + Decode + PartialEq + std::fmt::Debug>(hex: &str, value: T) {
    let bytes = from_hex(hex);
    assert_eq!(T::from_slice(&bytes).unwrap(), value, "decoding {hex}");
    assert_eq!(to_hex(&value.to_bytes()), to_hex(&bytes), "encoding {value:?}");
}

/// Checks that the answer of a call decodes to a value that encodes back.
fn answers<T: Encode + PartialEq + std::fmt::Debug>(call: Call<T>, hex: &str, value: T) {
    let bytes = from_hex(hex);
    assert_eq!(call.decode(&bytes).unwrap(), value, "answer {hex}");
    assert_eq!(to_hex(&value.to_bytes()), to_hex(&bytes), "encoding {value:?}");
}

fn time(hex: &str) -> Timestamp {
    Timestamp::from_slice(&from_hex(hex)).unwrap()
}

#[test]
fn answers_on_headers_are_ceph_s() {
    answers(
        rbd::get_id(),
        "0c000000313031613631383934366236",
        "101a618946b6".to_owned(),
    );
    let size = SizeReply {
        order: 22,
        size_bytes: 8 << 20,
    };
    answers(rbd::get_size(SnapId::HEAD), "160000800000000000", size);
    let features = |incompatible| FeaturesReply {
        features: 61,
        incompatible,
    };
    answers(
        rbd::get_features(SnapId::HEAD, true),
        "3d000000000000000100000000000000",
        features(1),
    );
    answers(
        rbd::get_features(SnapId::HEAD, false),
        "3d000000000000003d00000000000000",
        features(61),
    );
    let snapc = SnapContextReply {
        snap_seq: 0x16,
        snap_ids: vec![SnapId(0x16), SnapId(0x15)],
    };
    answers(
        rbd::get_snapcontext(),
        "16000000000000000200000016000000000000001500000000000000",
        snapc.clone(),
    );
    assert_eq!(snapc.to_snap_context().unwrap().seq(), 0x16);
    answers(rbd::get_data_pool(), "ffffffffffffffff", PoolId::NONE);
    answers(
        rbd::metadata_list("", 0),
        "01000000010000006b0100000076",
        BTreeMap::from([("k".to_owned(), Bytes::from_static(b"v"))]),
    );
    answers(rbd::metadata_get("k"), "0100000076", Bytes::from_static(b"v"));
}

#[test]
fn parent_answers_are_ceph_s() {
    answers(
        rbd::parent_get(),
        "010118000000ffffffffffffffff0000000000000000feffffffffffffff",
        ParentImageSpec::none(),
    );
    answers(rbd::parent_overlap_get(SnapId::HEAD), "00", None);
    answers(
        rbd::get_parent(SnapId::HEAD),
        "ffffffffffffffff00000000feffffffffffffff0000000000000000",
        LegacyParent {
            pool_id: PoolId::NONE,
            image_id: String::new(),
            snap_id: SnapId::HEAD,
            overlap_bytes: 0,
        },
    );
    same(
        "02022d0000000100000000000000000000000c00000031303461313639393338643606000000000000000100004001 00000000",
        StoredParent {
            spec: ParentImageSpec {
                pool_id: PoolId(1),
                pool_namespace: String::new(),
                image_id: "104a169938d6".to_owned(),
                snap_id: SnapId(6),
            },
            head_overlap_bytes: Some(20 << 20),
        },
    );
    same(
        "0100000002011c00000001000000000000000c00000031303536346463633663383600000000",
        BTreeSet::from([ChildImageSpec {
            pool_id: PoolId(1),
            pool_namespace: String::new(),
            image_id: "10564dcc6c86".to_owned(),
        }]),
    );
}

#[test]
fn group_answers_are_ceph_s() {
    answers(
        rbd::image_group_get(),
        "01010c000000ffffffffffffffff00000000",
        GroupSpec::none(),
    );
    same(
        "01011800000001000000000000000c000000313134663662386234353637",
        GroupSpec {
            pool_id: PoolId(1),
            group_id: "114f6b8b4567".to_owned(),
        },
    );
}

#[test]
fn group_snapshots_are_ceph_s() {
    let part = |pool, id: &str, snap| ImageSnapshotSpec {
        pool_id: PoolId(pool),
        image_id: id.to_owned(),
        snap_id: SnapId(snap),
    };
    let snapshot = GroupSnapshot {
        id: "11496b8b4567".to_owned(),
        name: "one".to_owned(),
        state: GroupSnapshotState::Complete,
        snaps: vec![part(1, "10156be8fd49", 14), part(2, "10175c7551ec", 8)],
    };
    answers(
        rbd::group_snap_get_by_id("11496b8b4567"),
        "0101680000000c000000313134393662386234353637030000006f6e650102000000\
         01012000000001000000000000000c0000003130313536626538666434390e00000000000000\
         01012000000002000000000000000c0000003130313735633735353165630800000000000000",
        snapshot,
    );
}

#[test]
fn snapshot_records_are_ceph_s() {
    answers(
        rbd::snapshot_get(SnapId(0x15)),
        "01012b00000015000000000000000101040000000000000001000000730000800000000000978d036b0412d33a00000000",
        SnapshotInfo {
            id: SnapId(0x15),
            namespace: SnapshotNamespace::User,
            name: "s".to_owned(),
            image_size_bytes: 8 << 20,
            timestamp: time("978d036b0412d33a"),
            child_count: 0,
        },
    );
    let protected = StoredSnapshot {
        id: SnapId(6),
        name: "s1".to_owned(),
        image_size_bytes: 20 << 20,
        protection_status: ProtectionStatus::Protected,
        flags: 0,
        namespace: SnapshotNamespace::User,
        timestamp: time("118c036bee77761a"),
        child_count: 1,
        parent_overlap_bytes: None,
        legacy_parent: None,
    };
    same(
        "0808 36000000 0600000000000000 02000000 7331 0000400100000000 02 0000000000000000 0101 04000000 00000000
         118c036b ee77761a 01000000 00",
        protected.clone(),
    );
    same(
        "08083d0000000c000000000000000100000078000040010000000000000000000000000001010400000000000000878c036b3f9a320b\
         00000000010000400100000000",
        StoredSnapshot {
            id: SnapId(0xc),
            name: "x".to_owned(),
            protection_status: ProtectionStatus::Unprotected,
            timestamp: time("878c036b3f9a320b"),
            child_count: 0,
            parent_overlap_bytes: Some(20 << 20),
            ..protected.clone()
        },
    );
    same(
        "08086200000006000000000000002400000033623735323436382d313635622d343637372d383237372d343830346339343330343261\
         000040010000000000000000000000000001010e0000000200000002000000733100000000118c036bee77761a0100000000",
        StoredSnapshot {
            name: "3b752468-165b-4677-8277-4804c943042a".to_owned(),
            protection_status: ProtectionStatus::Unprotected,
            namespace: SnapshotNamespace::Trash {
                original_name: "s1".to_owned(),
                original_namespace_type: SnapshotNamespace::USER,
            },
            ..protected
        },
    );
}

#[test]
fn trash_entries_are_ceph_s() {
    same(
        "02011800000000020000006b32888c036ba87d3e1b888c036ba87d3e1b00",
        TrashImageSpec {
            source: TrashImageSource::User,
            name: "k2".to_owned(),
            deletion_time: time("888c036ba87d3e1b"),
            deferment_end_time: time("888c036ba87d3e1b"),
            state: TrashImageState::Normal,
        },
    );
    same(
        "02011800000002020000006d31c28c036bcfdf090cc28c036bcfdf090c00",
        TrashImageSpec {
            source: TrashImageSource::Migration,
            name: "m1".to_owned(),
            deletion_time: time("c28c036bcfdf090c"),
            deferment_end_time: time("c28c036bcfdf090c"),
            state: TrashImageState::Normal,
        },
    );
}

fn migration(header_type: MigrationHeaderType, image_name: &str, image_id: &str) -> MigrationSpec {
    MigrationSpec {
        header_type,
        pool_id: PoolId(2),
        pool_namespace: String::new(),
        image_name: image_name.to_owned(),
        image_id: image_id.to_owned(),
        snap_seqs: BTreeMap::new(),
        overlap_bytes: 0,
        flatten: false,
        mirroring: false,
        state: MigrationState::Prepared,
        state_description: String::new(),
        mirror_image_mode: MirrorImageMode::Journal,
        source_spec: String::new(),
    }
}

fn snap_seqs(pairs: &[(u64, u64)]) -> BTreeMap<SnapId, SnapId> {
    pairs
        .iter()
        .map(|(from, to)| (SnapId(*from), SnapId(*to)))
        .collect()
}

#[test]
fn migration_records_are_ceph_s() {
    same(
        "03013b00000001020000000000000000000000020000006d310c000000313062636365316536343766000000000000000000000000\
         000002000000000000000000",
        migration(MigrationHeaderType::Source, "m1", "10bcce1e647f"),
    );
    same(
        "03015b00000002010000000000000000000000020000006d310c000000313062363834386632666238020000000f000000000000000400\
         000000000000100000000000000005000000000000000000000100000000000002000000000000000000",
        MigrationSpec {
            pool_id: PoolId(1),
            snap_seqs: snap_seqs(&[(0xf, 4), (0x10, 5)]),
            overlap_bytes: 0x0100_0000,
            ..migration(MigrationHeaderType::Destination, "m1", "10b6848f2fb8")
        },
    );
    same(
        "03015100000002010000000000000000000000040000006f6c6431000000000200000013000000000000000600000000000000140000\
         000000000007000000000000000000a00000000000000002000000000000000000",
        MigrationSpec {
            pool_id: PoolId(1),
            snap_seqs: snap_seqs(&[(0x13, 6), (0x14, 7)]),
            overlap_bytes: 10 << 20,
            ..migration(MigrationHeaderType::Destination, "old1", "")
        },
    );
}

#[test]
fn an_import_s_migration_record_demands_version_3() {
    let json = "{".to_owned() + &" ".repeat(0x51 - 2) + "}";
    let head = "0303 7e000000 02 ffffffffffffffff 00000000 00000000 00000000 00000000 0000300000000000 01 00 02 00000000 \
                00 51000000";
    let spec = MigrationSpec {
        pool_id: PoolId::NONE,
        overlap_bytes: 3 << 20,
        flatten: true,
        source_spec: json.clone(),
        ..migration(MigrationHeaderType::Destination, "", "")
    };
    same(&(head.to_owned() + &to_hex(json.as_bytes())), spec);
}

#[test]
fn locks_are_ceph_s() {
    let address = EntityAddress::legacy(ferry_cls::testing::client(4190).addr);
    same(
        "01 0101 1c000000 01000000 25b17c42 10000000 0200 0000 7f000001 0000000000000000",
        address.clone(),
    );
    assert_eq!(address.to_string(), "127.0.0.1:0/1115468069");
    let id = LockerId {
        entity: EntityName::client(4190),
        cookie: "auto 140475025882368".to_owned(),
    };
    assert_eq!(id.entity.to_string(), "client.4190");
    assert_eq!(
        address.client_instance(id.entity),
        Some(ferry_cls::testing::client(4190))
    );
    let info = LockerInfo {
        expiration: Timestamp::default(),
        address,
        description: String::new(),
    };
    let held = LockInfo {
        lockers: BTreeMap::from([(id, info)]),
        kind: LockKind::Exclusive,
        tag: "internal".to_owned(),
    };
    let free = LockInfo {
        lockers: BTreeMap::new(),
        ..held.clone()
    };
    answers(
        lock::get_info("rbd_lock"),
        "01016d00000001000000010121000000085e10000000000000140000006175746f203134303437353032353838323336380101\
         2f00000000000000000000000101011c0000000100000025b17c4210000000020000007f0000010000000000000000000000000108000000\
         696e7465726e616c",
        held,
    );
    same("010111000000000000000108000000696e7465726e616c", free);
}

#[test]
fn object_maps_are_ceph_s() {
    let mut two = BitVector::new(2, 0).unwrap();
    two.set(0, 3);
    let loaded = "0e0000000101080000000200000000000000c000000000";
    assert_eq!(rbd::object_map_load().decode(&from_hex(loaded)).unwrap(), two);
    let mut out = Encoder::new();
    two.encode_without_crc(&mut out);
    assert_eq!(to_hex(&out.finish()), loaded);

    same(
        "0e000000010108000000050000000000000000000c000000184596820100000000000000",
        BitVector::new(5, 0).unwrap(),
    );

    let mut large = BitVector::new(20480, 0).unwrap();
    large.set(0, 1);
    large.set(20000, 1);
    let bytes = large.to_bytes();
    assert_eq!(bytes.len(), 5158);
    assert_eq!(to_hex(&bytes[..18]), "0e0000000101080000000050000000000000");
    assert_eq!(bytes[18], 0x40);
    assert_eq!(bytes[18 + 5000], 0x40);
    assert_eq!(to_hex(&bytes[5138..]), "100000008e475b0c02000000b026244a93bfec40");
    assert_eq!(BitVector::from_slice(&bytes).unwrap(), large);
}

#[test]
fn format_1_headers_and_directories_are_ceph_s() {
    let mib = 1 << 20;
    let snap = |id, name: &str| V1Snapshot {
        id: SnapId(id),
        image_size_bytes: 10 * mib,
        name: name.to_owned(),
    };
    let header = V1Header {
        migrating: false,
        block_name: "rb.0.1028.6b8b4567".to_owned(),
        order: 22,
        image_size_bytes: 10 * mib,
        snap_seq: 0x14,
        snaps: vec![snap(0x14, "o22"), snap(0x13, "o1")],
    };
    let mut start = b"<<< Rados Block Device Image >>>\n".to_vec();
    start.resize(40, 0);
    start.extend(b"rb.0.1028.6b8b4567");
    start.resize(64, 0);
    start.extend(b"RBD\x00001.005\x00");
    start.extend([22, 0, 0, 0]);
    let rest = "0000a00000000000 1400000000000000 02000000 00000000 0700000000000000 1400000000000000 0000a00000000000 \
                1300000000000000 0000a00000000000 6f3232006f3100";
    same(&(to_hex(&start) + rest), header);
    same(
        "00000000 01000000 04000000 6f6c6431 00000000",
        Tmap {
            header: Bytes::new(),
            entries: BTreeMap::from([("old1".to_owned(), Bytes::new())]),
        },
    );
    assert_eq!(Tmap::from_slice(&[]).unwrap(), Tmap::from_slice(&[0; 8]).unwrap());
}

#[test]
fn payloads_have_ceph_s_lengths() {
    let parent = ParentImageSpec {
        pool_id: PoolId(1),
        pool_namespace: String::new(),
        image_id: "104a169938d6".to_owned(),
        snap_id: SnapId(6),
    };
    let child = ChildImageSpec {
        pool_id: PoolId(1),
        pool_namespace: String::new(),
        image_id: "10564dcc6c86".to_owned(),
    };
    let trash = TrashImageSpec {
        source: TrashImageSource::User,
        name: "k2".to_owned(),
        deletion_time: Timestamp::default(),
        deferment_end_time: Timestamp::default(),
        state: TrashImageState::Normal,
    };
    let never = Timestamp::default();
    let exclusive = LockKind::Exclusive;
    let rows: [(Call<()>, usize); 16] = [
        (rbd::create(1, 22, 61, "rbd_data.101a618946b6", PoolId::NONE), 50),
        (rbd::snapshot_add("s1", SnapId(6), &SnapshotNamespace::User), 24),
        (rbd::parent_attach(&parent, 1, false), 51),
        (rbd::child_attach(SnapId(6), &child), 42),
        (rbd::add_child(&parent, "10564dcc6c86"), 48),
        (rbd::trash_add("101a618946b6", &trash), 46),
        (
            rbd::trash_state_set("101a618946b6", TrashImageState::Normal, TrashImageState::Moving),
            18,
        ),
        (
            lock::lock(
                "rbd_lock",
                exclusive,
                "auto 140475025882368",
                "internal",
                "",
                never,
                0,
            ),
            68,
        ),
        (lock::lock("rbd_lock", exclusive, "", "", "", never, 0), 40),
        (lock::assert_locked("rbd_lock", exclusive, "", ""), 27),
        (rbd::object_map_update(0, 1, ObjectState::Exists, None), 18),
        (
            rbd::object_map_update(0, 1, ObjectState::Nonexistent, Some(ObjectState::Pending)),
            19,
        ),
        (rbd::set_flags(0, 3, SnapId::HEAD), 24),
        (rbd::assert_snapc_seq(4, SnapcAssertion::LessOrEqualObject), 9),
        (rbd::sparse_copyup(&BTreeMap::new(), &[]), 8),
        (rbd::migration_set_state(MigrationState::Prepared, ""), 5),
    ];
    for (call, length) in rows {
        assert_eq!(call.input.len(), length, "{call:?}");
    }
}

#[test]
fn legacy_records_decode() {
    // Snapshot before Nautilus: version 8, compat 1, an embedded parent of version 1.
    let parent =
        "0101 28000000 0100000000000000 0c000000 313034613136393933386436 0600000000000000 0000400100000000";
    let body = "0600000000000000 02000000 7331 0000400100000000 0000000000000000".to_owned()
        + parent
        + "02 0100000000000000 0101 04000000 00000000 118c036b ee77761a 00000000 00";
    let body = from_hex(&body);
    let mut bytes = vec![8, 1];
    bytes.extend((body.len() as u32).to_le_bytes());
    bytes.extend(body);
    let snap = StoredSnapshot::from_slice(&bytes).unwrap();
    assert_eq!(snap.parent_overlap_bytes, None);
    assert_eq!(snap.effective_parent_overlap_bytes(), Some(20 << 20));
    assert_eq!(snap.legacy_parent.unwrap().spec.image_id, "104a169938d6");
    assert_eq!(snap.protection_status, ProtectionStatus::Protected);
    assert_eq!(snap.flags, 1);

    // Trash entry of version 1 and child of version 1: shorter.
    let trash = from_hex("0101 17000000 00 02000000 6b32 888c036ba87d3e1b 888c036ba87d3e1b");
    assert_eq!(
        TrashImageSpec::from_slice(&trash).unwrap().state,
        TrashImageState::Normal
    );
    let child = from_hex("0101 0e000000 0100000000000000 02000000 3130");
    assert_eq!(ChildImageSpec::from_slice(&child).unwrap().pool_namespace, "");
}

#[test]
fn fields_of_newer_writers_are_skipped_and_newer_compat_is_refused() {
    let newer = from_hex("0901 1a000000 0100000000000000 0c000000 313134663662386234353637 ffff");
    let spec = GroupSpec::from_slice(&newer).unwrap();
    assert_eq!(spec.group_id, "114f6b8b4567");
    let refused = from_hex("0902 18000000 0100000000000000 0c000000 313134663662386234353637");
    let error = GroupSpec::from_slice(&refused).unwrap_err();
    assert_eq!(
        error.to_string(),
        "field 'group spec' at byte 0: written for decoders of version 2 or newer, this one knows 1"
    );
    let unknown = from_hex("0201 06000000 09000000 abcd");
    let namespace = SnapshotNamespace::from_slice(&unknown).unwrap();
    assert_eq!(namespace.type_name(), "unknown");
    assert_eq!(
        namespace.to_bytes(),
        unknown,
        "an unknown namespace survives a rewrite"
    );
}
