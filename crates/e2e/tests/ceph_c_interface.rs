//! On a cluster with a librados that lacks the C++ steps (`FERRY_RADOS_CXX=0`): the same images, the same migrations.

#![allow(clippy::unwrap_used)] // A test fails by panicking.

use ferry_e2e::ceph::unique;
use ferry_e2e::{Ferry, Side, check_maps};
use serde_json::Value;

const MIB: usize = 1 << 20;

/// A program on a cluster that is left with the C interface.
fn with_c_alone() -> Option<Ferry> {
    Some(Ferry::on_ceph()?.with_variable("FERRY_RADOS_CXX", "0"))
}

/// Runs Python on an NBD handle `h`.
#[track_caller]
fn nbdsh(uri: &str, script: &str) {
    let mut command = std::process::Command::new("/usr/bin/python3");
    command.args(["-m", "nbd", "-u", uri, "-c", script]);
    ferry_e2e::run(&mut command).ok();
}

/// Bytes that differ from one block to the next.
fn pattern(seed: u8, length: usize) -> Vec<u8> {
    (0..length)
        .map(|at| seed.wrapping_add((at / 512 % 251) as u8) | 1)
        .collect()
}

/// An image of Ceph's whose objects came, changed in part, went and came again from snapshot to snapshot, and what each
/// version holds.
fn image_with_a_history(ferry: &Ferry) -> (String, Vec<(String, Vec<u8>)>) {
    let name = unique("history");
    let mut bytes = pattern(1, 6 * MIB);
    bytes[2 * MIB..3 * MIB].fill(0);
    let path = ferry.file("image");
    std::fs::write(&path, &bytes).unwrap();
    let words = ["import", "--no-progress", "--object-size", "1M", &path, &name];
    ferry.ok_as(Side::Ceph, &words);
    let mut versions = Vec::new();
    let snap = |bytes: &[u8], snap: &str| {
        ferry.ok_as(
            Side::Ceph,
            &["snap", "create", "--no-progress", &format!("{name}@{snap}")],
        );
        (snap.to_owned(), bytes.to_vec())
    };
    let served = ferry.serve(&[&name]);
    let uri = served.uri(&name);
    let change = |script: String| nbdsh(&uri, &script);
    versions.push(snap(&bytes, "s1"));
    // A few bytes of one object, all of another, and a third goes away.
    bytes[100_000..100_010].fill(7);
    bytes[MIB..2 * MIB].copy_from_slice(&pattern(9, MIB));
    bytes[3 * MIB..4 * MIB].fill(0);
    change(format!(
        "h.pwrite(b'\\x07'*10, 100000)\nh.pwrite(bytes((9+i//512%251)%256|1 for i in range({MIB})), {MIB})\nh.trim({MIB}, {})\nh.flush()",
        3 * MIB
    ));
    versions.push(snap(&bytes, "s2"));
    versions.push(snap(&bytes, "s3"));
    bytes[3 * MIB + 5000..3 * MIB + 5010].fill(8);
    bytes[5 * MIB..6 * MIB].fill(0);
    change(format!(
        "h.pwrite(b'\\x08'*10, {})\nh.trim({MIB}, {})\nh.flush()",
        3 * MIB + 5000,
        5 * MIB
    ));
    served.stop();
    versions.push((String::new(), bytes));
    (name, versions)
}

#[track_caller]
fn check(ferry: &Ferry, image: &str, versions: &[(String, Vec<u8>)], when: &str) {
    check_bytes(ferry, image, versions, when);
    let snaps = versions.iter().map(|(snap, _)| snap.as_str());
    let snaps: Vec<&str> = snaps.filter(|snap| !snap.is_empty()).collect();
    check_maps(ferry, image, &snaps, when);
}

#[track_caller]
fn check_bytes(ferry: &Ferry, image: &str, versions: &[(String, Vec<u8>)], when: &str) {
    for (snap, expected) in versions {
        let spec = match snap.is_empty() {
            true => image.to_owned(),
            false => format!("{image}@{snap}"),
        };
        for side in Side::BOTH {
            assert!(
                ferry.export_as(side, &spec) == *expected,
                "{when}: {side:?} reads {spec} otherwise"
            );
        }
    }
}

/// Bytes that Ceph's own command finds changed between two snapshots.
fn changed(ferry: &Ferry, image: &str) -> u64 {
    let spec = format!("{image}@s2");
    let diff = ferry.ok_as(
        Side::Ceph,
        &["diff", "--from-snap", "s1", &spec, "--format", "json"],
    );
    let diff: Value = serde_json::from_str(&diff).unwrap();
    diff.as_array()
        .unwrap()
        .iter()
        .map(|extent| extent["length"].as_u64().unwrap())
        .sum()
}

#[test]
fn a_migration_is_right_and_copies_only_what_changed() {
    let Some(ferry) = with_c_alone() else { return };
    for [preparer, executor, ender] in [
        [Side::Ferry, Side::Ferry, Side::Ceph],
        [Side::Ceph, Side::Ferry, Side::Ferry],
    ] {
        let (name, versions) = image_with_a_history(&ferry);
        let target = format!("other/{}", unique("target"));
        let before = changed(&ferry, &name);
        ferry.ok_as(preparer, &["migration", "prepare", &name, &target]);
        check(&ferry, &target, &versions, "prepared");
        ferry.migrate_as(executor, "execute", &target);
        check(&ferry, &target, &versions, "executed");
        ferry.migrate_as(ender, "commit", &target);
        check(&ferry, &target, &versions, "committed");
        let after = changed(&ferry, &target);
        // What was compared is known to 4 KiB.
        assert!(
            after <= before + 2 * 4096,
            "{after} bytes changed after the copy, {before} before"
        );
        ferry.ok_as(
            Side::Ferry,
            &["snap", "rollback", "--no-progress", &format!("{target}@s1")],
        );
        assert!(
            ferry.export_as(Side::Ceph, &target) == versions[0].1,
            "rolled back"
        );
    }
}

#[test]
fn other_object_sizes_and_an_abort_are_right() {
    let Some(ferry) = with_c_alone() else { return };
    for object_size in ["512K", "4M"] {
        let (name, versions) = image_with_a_history(&ferry);
        let target = format!("other/{}", unique("target"));
        ferry.ok_as(
            Side::Ferry,
            &[
                "migration",
                "prepare",
                "--object-size",
                object_size,
                &name,
                &target,
            ],
        );
        ferry.migrate_as(Side::Ferry, "execute", &target);
        check_bytes(&ferry, &target, &versions, object_size);
        // In snapshots, an object that takes only a part of a changed one of the source counts as changed too, which Ceph's check
        // calls an error (docs/ceph.md).
        check_maps(&ferry, &target, &[], object_size);
        ferry.migrate_as(Side::Ferry, "abort", &target);
        check(&ferry, &name, &versions, "aborted");
    }
}

#[test]
fn watchers_are_counted_and_a_dead_owner_is_taken_over() {
    let Some(ferry) = with_c_alone() else { return };
    let name = unique("owned");
    ferry.ok_as(Side::Ceph, &["create", "--size", "8M", &name]);
    let served = ferry.serve(&[&name]);
    let uri = served.uri(&name);
    let write = |uri: &str, byte: u8| nbdsh(uri, &format!("h.pwrite(bytes([{byte}])*4096, 0)\nh.flush()"));
    write(&uri, 1);
    let watchers = ferry.json(&["status", &name])["watchers"].clone();
    assert_eq!(watchers.as_array().unwrap().len(), 1, "{watchers}");
    assert_eq!(watchers[0]["address"], "-", "{watchers}");
    ferry
        .rbd(&["rm", "--no-progress", &name])
        .fails(16, "still has watchers");
    served.kill();
    let next = ferry.serve(&[&name]);
    write(&next.uri(&name), 2);
    next.stop();
    assert_eq!(ferry.export_as(Side::Ceph, &name)[..4096], [2; 4096]);
    ferry.ok_as(Side::Ferry, &["rm", "--no-progress", &name]);
}
