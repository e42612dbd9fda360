//! A store of an older program: it is read, written, moved and checked as it is, and its images can be moved into a pool of now.
//!
//! `golden/store-format-2.tar.gz` was made by the program of 178756a (format 1 of `store.db`, 2 of `pool.db`; neither checksums nor labels) and
//! packed when nobody had it open: `plain` with two snapshots, `child`, a clone of `base@b`, and `moving`, whose migration to `moved` is prepared and
//! has been written to. What that program exported of every version lies in `expected` beside it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::path::Path;
use std::process::Command;

use support::store::TestStore;

const VERSIONS: [&str; 7] = [
    "plain@s1", "plain@s2", "plain", "base", "child", "moved@m", "moved",
];

fn unpacked() -> TestStore {
    let store = TestStore::new();
    let packed = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/store-format-2.tar.gz");
    let done = Command::new("tar")
        .arg("-xzf")
        .arg(packed)
        .current_dir(store.directory())
        .status();
    assert!(done.unwrap().success());
    store
}

fn holds(store: &TestStore, version: &str, expected: &str, when: &str) {
    let out = store.directory().join("out");
    store.ok(&format!("export --no-progress {version} out"));
    let now = std::fs::read(&out).unwrap();
    std::fs::remove_file(&out).unwrap();
    let then = std::fs::read(store.directory().join("expected").join(expected)).unwrap();
    assert!(now == then, "{when}: {version} is not what {expected} was");
}

#[test]
fn every_version_reads_as_the_older_program_wrote_it_and_nothing_is_called_damaged() {
    let store = unpacked();
    for version in VERSIONS {
        holds(&store, version, version, "unpacked");
    }
    let said = store.ok("fsck --no-progress");
    assert!(
        said.contains("[database-unchecked]") && said.contains("[file-unlabelled]"),
        "{said}"
    );
    assert!(
        said.ends_with("0 damaged, 0 left over, 0 repaired, 3 not checked\n"),
        "{said}"
    );
}

#[test]
fn a_migration_that_the_older_program_prepared_is_finished_or_taken_back() {
    let store = unpacked();
    store.ok("migration execute --no-progress moved");
    holds(&store, "moved", "moved", "executed");
    store.ok("migration commit --no-progress moved");
    for version in VERSIONS {
        holds(&store, version, version, "committed");
    }
    let store = unpacked();
    store.ok("migration abort --no-progress moved");
    holds(&store, "moving", "moved", "aborted");
    holds(&store, "moving@m", "moved@m", "aborted");
    let said = store.ok("fsck --no-progress");
    assert!(said.contains("0 damaged, 0 left over"), "{said}");
}

#[test]
fn its_images_are_changed_where_they_are_and_moved_to_a_pool_of_now() {
    let store = unpacked();
    store.ok("snap rollback --no-progress plain@s1");
    holds(&store, "plain", "plain@s1", "rolled back");
    store.ok("snap create --no-progress plain@s3");
    store.ok("flatten --no-progress child");
    holds(&store, "child", "child", "flattened");
    store.ok("pool create new");
    for image in ["plain", "child"] {
        store.ok(&format!("migration prepare {image} new/{image}"));
        store.ok(&format!("migration execute --no-progress new/{image}"));
        store.ok(&format!("migration commit --no-progress new/{image}"));
    }
    for (version, expected) in [
        ("new/plain@s1", "plain@s1"),
        ("new/plain@s2", "plain@s2"),
        ("new/plain@s3", "plain@s1"),
        ("new/plain", "plain@s1"),
        ("new/child", "child"),
        ("base", "base"),
    ] {
        holds(&store, version, expected, "moved");
    }
    assert_eq!(store.ok("image-meta get new/plain owner"), "somebody\n");
    // In the new pool nothing is out of sight of the checksums any more.
    let said = store.ok("fsck --no-progress --read-data new");
    assert!(
        !said.contains("pool 2") && said.contains("0 damaged, 0 left over"),
        "{said}"
    );
}
