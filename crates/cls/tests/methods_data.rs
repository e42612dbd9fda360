//! Object maps, data objects and locks: effects and the errno rules of fact sheet sections 3.6, 3.7 and 4.

#![allow(clippy::unwrap_used)] // in helpers of tests

use std::collections::BTreeMap;

use ferry_cls::BitVector;
use ferry_cls::encoding::{Decode, Encode, EntityName, MAX_OBJECTS, block_crc};
use ferry_cls::lock::{LockInfo, LockKind, client as lock, flag};
use ferry_cls::rbd::client as rbd;
use ferry_cls::rbd::*;
use ferry_cls::testing::{NOW, Object, client, step, to_hex};
use ferry_store::{Errno, Timestamp};

use ObjectState::{Exists, ExistsClean, Nonexistent, Pending};

fn map_of(states: &[u8]) -> BitVector {
    let mut map = BitVector::new(states.len() as u64, 0).unwrap();
    for (index, state) in states.iter().enumerate() {
        assert!(map.set(index as u64, *state));
    }
    map
}

fn saved(map: &BitVector) -> Object {
    let mut object = Object::default();
    object.call(rbd::object_map_save(map)).unwrap();
    object
}

fn loaded(object: &mut Object) -> Vec<u8> {
    object.call(rbd::object_map_load()).unwrap().iter().collect()
}

#[test]
fn object_maps_are_loaded_saved_and_resized() {
    assert_eq!(Object::default().refuses(rbd::object_map_load()), Errno::ENOENT);
    assert_eq!(Object::empty().refuses(rbd::object_map_load()), Errno::ENOENT);
    let mut object = Object::default();
    object.call(rbd::object_map_resize(5, Nonexistent)).unwrap();
    assert_eq!(
        to_hex(&object.data),
        "0e000000010108000000050000000000000000000c000000184596820100000000000000"
    );
    object.call(rbd::object_map_resize(7, Exists)).unwrap();
    assert_eq!(loaded(&mut object), [0, 0, 0, 0, 0, 1, 1]);
    assert_eq!(
        object.refuses(rbd::object_map_resize(6, Nonexistent)),
        Errno::ESTALE
    );
    object.call(rbd::object_map_resize(5, Exists)).unwrap();
    object.call(rbd::object_map_resize(8, Nonexistent)).unwrap();
    assert_eq!(loaded(&mut object), [0; 8]);
    object.call(rbd::object_map_resize(0, Nonexistent)).unwrap();
    assert_eq!(loaded(&mut object), Vec::<u8>::new());
    let too_many = rbd::object_map_resize(MAX_OBJECTS + 1, Nonexistent);
    assert_eq!(object.refuses(too_many), Errno::EINVAL);
}

#[test]
fn an_object_map_update_takes_objects_of_the_expected_state() {
    let mut object = saved(&map_of(&[0, 1, 2, 3, 1, 3]));
    let update = rbd::object_map_update;
    for (start, end) in [(2, 2), (3, 2), (0, 7), (u64::MAX, 1)] {
        assert_eq!(object.refuses(update(start, end, Exists, None)), Errno::ERANGE);
    }
    object.call(update(0, 6, Nonexistent, Some(Pending))).unwrap();
    assert_eq!(loaded(&mut object), [0, 1, 0, 3, 1, 3]);
    object.call(update(0, 4, Pending, Some(Exists))).unwrap();
    assert_eq!(
        loaded(&mut object),
        [0, 2, 0, 2, 1, 3],
        "clean objects count as existing"
    );
    object.call(update(4, 6, Nonexistent, Some(ExistsClean))).unwrap();
    assert_eq!(loaded(&mut object), [0, 2, 0, 2, 1, 0]);
    object.call(update(1, 3, ExistsClean, None)).unwrap();
    assert_eq!(loaded(&mut object), [0, 3, 3, 2, 1, 0]);
    assert_eq!(
        Object::default().refuses(update(0, 1, Exists, None)),
        Errno::ENOENT
    );
}

#[test]
fn snapshots_turn_objects_clean_and_their_removal_turns_them_back() {
    let mut object = saved(&map_of(&[0, 1, 2, 3]));
    object.call(rbd::object_map_snap_add()).unwrap();
    assert_eq!(loaded(&mut object), [0, 3, 2, 3]);
    let mut object = saved(&map_of(&[3, 3, 3, 1, 0, 3]));
    object
        .call(rbd::object_map_snap_remove(&map_of(&[1, 3, 0, 1, 1])))
        .unwrap();
    assert_eq!(
        loaded(&mut object),
        [1, 3, 3, 1, 0, 1],
        "beyond the snapshot's end counts as changed"
    );
    assert_eq!(
        Object::default().refuses(rbd::object_map_snap_add()),
        Errno::ENOENT
    );
    let remove = rbd::object_map_snap_remove(&map_of(&[1]));
    assert_eq!(Object::default().refuses(remove), Errno::ENOENT);
    saved(&map_of(&[])).call(rbd::object_map_snap_add()).unwrap();
}

#[test]
fn an_update_rewrites_only_the_blocks_it_touches() {
    // Three blocks of 16384 objects; the first one is damaged, with a checksum that tells.
    let mut object = saved(&BitVector::new(40_000, 0).unwrap());
    object.data[18] ^= 0x40;
    let before = object.data.clone();
    object
        .call(rbd::object_map_update(16_384, 32_769, Exists, None))
        .unwrap();
    let data_end = 18 + 10_000;
    assert_eq!(object.data[..18 + 4096], before[..18 + 4096]);
    assert_eq!(object.data[18 + 4096..18 + 8192], [0x55; 4096]);
    assert_eq!(object.data[18 + 8192], 0x40);
    assert_eq!(
        object.data[18 + 8193..data_end + 16],
        before[18 + 8193..data_end + 16]
    );
    let crc = |index: usize| {
        let at = data_end + 12 + 4 * index;
        u32::from_le_bytes(object.data[at..at + 4].try_into().unwrap())
    };
    assert_eq!(crc(1), block_crc(&[0x55; 4096]));
    assert_eq!(crc(2), block_crc(&object.data[18 + 8192..data_end]));

    let touches_damage = rbd::object_map_update(0, 1, Exists, None);
    assert_eq!(object.refuses(touches_damage), Errno::EIO);
    assert_eq!(object.refuses(rbd::object_map_snap_add()), Errno::EIO);
    assert_eq!(
        object.refuses(rbd::object_map_resize(50_000, Nonexistent)),
        Errno::EIO
    );
    assert_eq!(object.refuses(rbd::object_map_load()), Errno::EINVAL);
    object.data[18] ^= 0x40;
    assert_eq!(object.call(rbd::object_map_load()).unwrap().count(1), 16_385);
}

#[test]
fn block_wise_changes_equal_changes_of_the_whole_map() {
    let seed = ferry_reference::seed();
    let mut random = ferry_cls::testing::Random(seed);
    for round in 0..60 {
        let objects = 1 + random.below(40_000);
        let mut model = BitVector::new(objects, 0).unwrap();
        for _ in 0..random.below(200) {
            model.set(random.below(objects), random.below(4) as u8);
        }
        let mut object = saved(&model);
        for _ in 0..6 {
            let start = random.below(objects);
            let end = start + 1 + random.below(objects - start);
            let new = ObjectState::from_byte(random.below(4) as u8).unwrap();
            let current = ObjectState::from_byte(random.below(6) as u8);
            object
                .call(rbd::object_map_update(start, end, new, current))
                .unwrap();
            for index in start..end {
                let state = model.get(index).unwrap();
                let matches = current.is_none_or(|wanted| {
                    wanted.byte() == state || (wanted == Exists && state == ExistsClean.byte())
                });
                if matches {
                    model.set(index, new.byte());
                }
            }
            assert_eq!(object.data, model.to_bytes(), "seed {seed}, round {round}");
        }
    }
}

#[test]
fn a_map_without_checksums_is_updated_without_them() {
    let mut encoder = ferry_cls::encoding::Encoder::new();
    map_of(&[0, 3, 1]).encode_without_crc(&mut encoder);
    let mut object = Object::with_data(&encoder.finish());
    object.call(rbd::object_map_update(0, 1, Pending, None)).unwrap();
    assert_eq!(loaded(&mut object), [2, 3, 1]);
}

#[test]
fn copyup_fills_missing_objects_only() {
    let mut object = Object::default();
    object.call(rbd::copyup(b"abc")).unwrap();
    assert_eq!(object.data, b"abc");
    object.call(rbd::copyup(b"xyzw")).unwrap();
    assert_eq!(object.data, b"abc");
    let mut object = Object::default();
    object.call(rbd::copyup(b"")).unwrap();
    assert_eq!(object, Object::empty());
}

#[test]
fn sparse_copyup_fills_missing_objects_only() {
    let mut object = Object::default();
    object.call(rbd::sparse_copyup(&BTreeMap::new(), b"")).unwrap();
    assert_eq!(object, Object::empty());
    let extents = BTreeMap::from([(1, 2), (5, 1)]);
    let copyup = rbd::sparse_copyup(&extents, b"abc");
    object.call(copyup.clone()).unwrap();
    assert_eq!(object, Object::empty());
    let mut object = Object::default();
    object.call(copyup).unwrap();
    assert_eq!(object.data, b"\0ab\0\0c");
    let mut object = Object::default();
    for (extents, data) in [
        (BTreeMap::from([(0, 4)]), &b"abc"[..]),
        (BTreeMap::from([(0, 2)]), b"abc"),
        (BTreeMap::from([(u64::MAX, 3)]), b"abc"),
        (BTreeMap::from([(0, u64::MAX), (1, 4)]), b"abc"),
    ] {
        assert_eq!(object.refuses(rbd::sparse_copyup(&extents, data)), Errno::EINVAL);
    }
}

#[test]
fn assert_snapc_seq_follows_the_object_s_sequence() {
    use SnapcAssertion::{GreaterThanObject as Gt, LessOrEqualObject as Le};
    let rows = [
        (None, 5, Gt, true),
        (None, 0, Gt, true),
        (None, 5, Le, false),
        (Some(5), 6, Gt, true),
        (Some(5), 5, Gt, false),
        (Some(5), 4, Gt, false),
        (Some(5), 4, Le, true),
        (Some(5), 5, Le, true),
        (Some(5), 6, Le, false),
    ];
    for (seq, given, assertion, passes) in rows {
        // A removed head with clones counts as present: the head does not exist in any row.
        let mut object = Object {
            snapset_seq: seq,
            ..Object::default()
        };
        let before = object.clone();
        let found = object.call(rbd::assert_snapc_seq(given, assertion));
        let expected = if passes { Ok(()) } else { Err(Errno::ERANGE) };
        assert_eq!(found, expected, "{given} {assertion:?} {seq:?}");
        assert_eq!(object, before, "an assertion changes nothing");
    }
    let mut bad = rbd::assert_snapc_seq(1, Gt);
    bad.input = vec![1, 0, 0, 0, 0, 0, 0, 0, 2].into();
    assert_eq!(Object::default().refuses(bad), Errno::EINVAL);
}

#[test]
fn sparsify_gives_zeros_up_and_keeps_the_content() {
    assert_eq!(
        Object::default().refuses(rbd::sparsify(4096, true)),
        Errno::ENOENT
    );
    assert_eq!(Object::empty().refuses(rbd::sparsify(0, true)), Errno::EINVAL);
    let mut zeros = Object::with_data(&[0; 10_000]);
    zeros.call(rbd::sparsify(4096, false)).unwrap();
    assert_eq!(zeros, Object::empty());
    let mut zeros = Object::with_data(&[0; 10_000]);
    zeros.call(rbd::sparsify(4096, true)).unwrap();
    assert!(!zeros.exists);
    for sparse_size in [1, 4096, 5000, u64::MAX] {
        let mut data = vec![0; 6 << 20];
        data[9_000] = 1;
        data[5 << 20] = 2;
        let mut object = Object::with_data(&data);
        object.call(rbd::sparsify(sparse_size, true)).unwrap();
        let end = object.data.len();
        assert_eq!(object.data, data[..end], "unit {sparse_size}");
        assert!(
            data[end..].iter().all(|byte| *byte == 0),
            "unit {sparse_size} lost data"
        );
        assert!(end > 5 << 20);
    }
}

const FOREVER: Timestamp = Timestamp {
    seconds: 0,
    nanoseconds: 0,
};

fn take(kind: LockKind, cookie: &str, tag: &str, flags: u8) -> ferry_cls::Call<()> {
    lock::lock("l", kind, cookie, tag, "", FOREVER, flags)
}

#[test]
fn an_exclusive_lock_is_held_by_one() {
    let mut object = Object::default();
    let exclusive = LockKind::Exclusive;
    object.call_as(1, take(exclusive, "c", "t", 0)).unwrap();
    assert!(object.exists, "locking makes the object");
    let rows = [
        (1, take(exclusive, "c", "t", 0), Err(Errno::EEXIST)),
        (1, take(exclusive, "c", "t", flag::MAY_RENEW), Ok(())),
        (1, take(exclusive, "c", "t", flag::MUST_RENEW), Ok(())),
        (1, take(exclusive, "c", "u", flag::MAY_RENEW), Err(Errno::EBUSY)),
        (1, take(exclusive, "c", "t", 3), Err(Errno::EINVAL)),
        (1, take(LockKind::None, "c", "t", 0), Err(Errno::EINVAL)),
        (
            1,
            lock::lock("", exclusive, "c", "t", "", FOREVER, 0),
            Err(Errno::EINVAL),
        ),
        (1, take(exclusive, "d", "t", 0), Err(Errno::EBUSY)),
        (2, take(exclusive, "c", "t", 0), Err(Errno::EBUSY)),
        (2, take(exclusive, "c", "t", flag::MUST_RENEW), Err(Errno::ENOENT)),
        (2, take(LockKind::Shared, "c", "t", 0), Err(Errno::EBUSY)),
        (2, lock::unlock("l", "c"), Err(Errno::ENOENT)),
        (
            2,
            lock::assert_locked("l", exclusive, "c", "t"),
            Err(Errno::EBUSY),
        ),
        (1, lock::assert_locked("l", exclusive, "c", "t"), Ok(())),
        (
            1,
            lock::assert_locked("l", exclusive, "c", "u"),
            Err(Errno::EBUSY),
        ),
        (
            1,
            lock::assert_locked("l", exclusive, "d", "t"),
            Err(Errno::EBUSY),
        ),
        (
            1,
            lock::assert_locked("l", LockKind::Shared, "c", "t"),
            Err(Errno::EBUSY),
        ),
        (
            1,
            lock::assert_locked("m", exclusive, "c", "t"),
            Err(Errno::EBUSY),
        ),
        (
            2,
            lock::set_cookie("l", exclusive, "c", "t", "e"),
            Err(Errno::EBUSY),
        ),
        (
            1,
            lock::set_cookie("l", exclusive, "c", "t", "c"),
            Err(Errno::EBUSY),
        ),
        (1, lock::set_cookie("l", exclusive, "c", "t", "e"), Ok(())),
        (1, lock::unlock("l", "c"), Err(Errno::ENOENT)),
        (
            2,
            lock::break_lock("l", EntityName::client(1), "c"),
            Err(Errno::ENOENT),
        ),
        (2, lock::break_lock("l", EntityName::client(1), "e"), Ok(())),
        (2, take(exclusive, "x", "another tag", 0), Ok(())),
    ];
    for (index, (gid, call, expected)) in rows.into_iter().enumerate() {
        let name = format!("row {index}: client {gid} {call:?}");
        assert_eq!(object.call_as(gid, call), expected, "{name}");
    }
}

#[test]
fn locks_of_missing_objects_are_missing() {
    let mut missing = Object::default();
    assert_eq!(missing.refuses(lock::get_info("l")), Errno::ENOENT);
    assert_eq!(missing.refuses(lock::unlock("l", "c")), Errno::ENOENT);
    let assertion = lock::assert_locked("l", LockKind::Exclusive, "", "");
    assert_eq!(missing.refuses(assertion), Errno::ENOENT);
    assert_eq!(Object::empty().call(lock::get_info("l")), Ok(LockInfo::default()));
    assert_eq!(Object::empty().refuses(lock::unlock("l", "c")), Errno::ENOENT);
    let mut damaged = Object::empty();
    damaged.xattrs.insert("lock.l".to_owned(), vec![1, 1, 9].into());
    assert_eq!(damaged.refuses(lock::get_info("l")), Errno::EIO);
    assert_eq!(damaged.refuses(take(LockKind::Exclusive, "", "", 0)), Errno::EIO);
}

#[test]
fn shared_lockers_agree_on_tag_and_kind() {
    let mut object = Object::default();
    object.call_as(1, take(LockKind::Shared, "c", "t", 0)).unwrap();
    object.call_as(2, take(LockKind::Shared, "c", "t", 0)).unwrap();
    assert_eq!(
        object.call_as(3, take(LockKind::Shared, "c", "u", 0)),
        Err(Errno::EBUSY)
    );
    assert_eq!(
        object.call_as(3, take(LockKind::Exclusive, "c", "t", 0)),
        Err(Errno::EBUSY)
    );
    let info = object.call(lock::get_info("l")).unwrap();
    assert_eq!(info.lockers.len(), 2);
    let (id, locker) = info.lockers.first_key_value().unwrap();
    assert_eq!(id.entity, EntityName::client(1));
    assert_eq!(locker.address.to_store_addr(), Some(client(1).addr));
}

#[test]
fn an_unlocked_lock_keeps_kind_and_tag() {
    let mut object = Object::default();
    object
        .call(lock::lock(
            "rbd_lock",
            LockKind::Exclusive,
            "auto 1",
            "internal",
            "",
            FOREVER,
            0,
        ))
        .unwrap();
    object.call(lock::unlock("rbd_lock", "auto 1")).unwrap();
    let raw = &object.xattrs["lock.rbd_lock"];
    assert_eq!(to_hex(raw), "010111000000000000000108000000696e7465726e616c");
}

#[test]
fn lapsed_lockers_are_dropped_and_ephemeral_locks_take_the_object_with_them() {
    let mut object = Object::default();
    let second = Timestamp {
        seconds: 1,
        nanoseconds: 999_999_999,
    };
    let timed = lock::lock("l", LockKind::Exclusive, "c", "t", "", second, 0);
    object.call_as(1, timed).unwrap();
    let at = |seconds| Timestamp {
        seconds: NOW.seconds + seconds,
        ..NOW
    };
    let other = step(&take(LockKind::ExclusiveEphemeral, "c", "u", 0));
    let early = object.operate_as(client(2), at(1), std::slice::from_ref(&other));
    assert_eq!(early, Err(Errno::EBUSY));
    object.operate_as(client(2), at(2), &[other]).unwrap();
    let info = LockInfo::from_slice(&object.xattrs["lock.l"]).unwrap();
    assert_eq!(info.lockers.len(), 1);
    object.call_as(2, lock::unlock("l", "c")).unwrap();
    assert!(!object.exists);
}
