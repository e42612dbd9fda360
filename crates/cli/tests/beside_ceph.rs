//! What running beside Ceph's `rbd` has shown to be different, and is no more. The random sequence that found it is
//! `e2e/tests/ceph_differential`; here each has a short test on a local store.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use serde_json::Value;
use support::store::TestStore;

fn json(store: &TestStore, line: &str) -> Value {
    serde_json::from_str(&store.ok(&format!("{line} --format json"))).unwrap()
}

/// An image with data and two snapshots.
fn store() -> TestStore {
    let store = TestStore::new();
    let mut bytes = vec![0; 200_000];
    bytes[70_000..90_000].fill(7);
    std::fs::write(store.directory().join("raw"), bytes).unwrap();
    store.ok("import --no-progress --object-size 64K raw a");
    store.ok("snap create --no-progress a@s1");
    store.ok("bench --io-type write --io-size 4096 --io-total 4096 a");
    store.ok("snap create --no-progress a@s2");
    store
}

#[test]
fn info_shows_the_limit_of_snapshots_while_there_is_one() {
    let store = store();
    assert!(!store.ok("info a").contains("limit"));
    store.ok("snap limit set --limit 5 a");
    assert!(store.ok("info a").contains("\tsnapshot_limit: 5\n"));
    assert!(
        store
            .ok("info a@s1")
            .contains("\tprotected: False\n\tsnapshot_limit: 5\n")
    );
    assert_eq!(json(&store, "info a")["snapshot_limit"], 5);
    store.ok("snap limit clear a");
    assert!(!store.ok("info a").contains("limit"));
    let create = ["create", "--image-format", "1", "--size", "1M", "old"];
    let made = store.command(&create).env("RBD_FORCE_ALLOW_V1", "1").status();
    assert!(made.unwrap().success());
    store.ok("snap limit set --limit 1 old");
    assert!(
        store
            .ok("info old")
            .ends_with("\tformat: 1\n\tsnapshot_limit: 1\n")
    );
    store.ok("snap create --no-progress old@a");
    store.fails("snap create --no-progress old@b", 122);
    store.ok("snap limit clear old");
    assert!(!store.ok("info old").contains("limit"));
}

#[test]
fn long_lists_as_json_show_the_ids_of_snapshots() {
    let store = store();
    let listed = json(&store, "ls -l");
    let snaps = json(&store, "snap ls a");
    assert_eq!(listed[1]["snapshot_id"], snaps[0]["id"]);
    assert_eq!(listed[2]["snapshot_id"], snaps[1]["id"]);
    assert_eq!(listed[0]["snapshot_id"], Value::Null);
}

#[test]
fn usage_of_a_snapshot_lists_those_before_it_and_counts_all_of_them() {
    let store = store();
    let found = json(&store, "du a@s2");
    let names: Vec<&Value> = found["images"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| &row["snapshot"])
        .collect();
    assert_eq!(names, ["s1", "s2"]);
    let text = store.ok("du a@s2");
    let total = text.lines().find(|line| line.starts_with("<TOTAL>")).unwrap();
    assert!(total.contains("391 KiB"), "{text}");
    assert!(!store.ok("du a@s1").contains("<TOTAL>"));
}

#[test]
fn exact_usage_is_what_the_difference_tells_of() {
    let store = store();
    let sum = |extents: Value| -> u64 {
        let extents = extents.as_array().unwrap().clone();
        extents
            .iter()
            .map(|extent| extent["length"].as_u64().unwrap())
            .sum()
    };
    let rows = json(&store, "du --exact a");
    assert_eq!(rows["images"][0]["used_size"], sum(json(&store, "diff a@s1")));
    assert_eq!(
        rows["images"][1]["used_size"],
        sum(json(&store, "diff --from-snap s1 a@s2"))
    );
}

#[test]
fn usage_without_fast_diff_warns_also_when_it_is_exact() {
    let store = store();
    store.ok("feature disable a fast-diff");
    for line in ["du a", "du --exact a"] {
        let said = store.ok(line);
        assert!(
            said.contains("warning: fast-diff map is not enabled for a. operation may be slow."),
            "{said}"
        );
    }
}

#[test]
fn no_metadata_is_no_document() {
    let store = store();
    assert_eq!(store.ok("image-meta ls a --format json"), "");
    assert_eq!(store.ok("image-meta ls a --format xml"), "");
    assert!(store.ok("image-meta ls a").contains("0 metadata"));
}

#[test]
fn flattening_what_has_no_parent_is_invalid_during_a_migration_too() {
    let store = store();
    store.ok("migration prepare a b");
    let said = store.fails("flatten --no-progress b", 22);
    assert!(said.contains("no parent"), "{said}");
}
