//! Every command of the page that the project was founded on, typed as written there, gives the output shown there.
//! Ids, addresses and percentages are normalised.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail their test")]

mod support;

use support::assert_same;
use support::store::TestStore;

fn source() -> TestStore {
    let store = TestStore::new();
    store.ok("create --size 16M migration_source");
    store.ok("bench --io-type write --io-size 64K --io-total 1M migration_source");
    store
}

#[track_caller]
fn shows(store: &TestStore, line: &str, expected: &str) {
    assert_same(expected, &store.ok(line), line);
}

fn status(state: &str) -> String {
    format!(
        "Watchers: none\n\
         Migration:\n\
         \tsource: rbd/migration_source (5e2cba2f62e)\n\
         \tdestination: rbd/migration_target (5e2ed95ed806)\n\
         \tstate: {state}\n"
    )
}

#[test]
fn prepare_execute_and_commit_read_as_in_the_document() {
    let store = source();
    shows(&store, "migration prepare migration_source migration_target", "");
    shows(&store, "status migration_target", &status("prepared"));
    assert_same(
        "rbd: error opening image migration_source: (2) No such file or directory\n",
        &store.fails("info migration_source", 2),
        "info",
    );
    shows(&store, "trash ls --all", "5e2cba2f62e migration_source\n");
    shows(
        &store,
        "migration execute migration_target",
        "Image migration: 100% complete...done.\n",
    );
    shows(&store, "status migration_target", &status("executed"));
    shows(
        &store,
        "migration commit migration_target",
        "Commit image migration: 100% complete...done.\n",
    );
    shows(&store, "trash list --all", "");
    shows(&store, "ls", "migration_target\n");
}

#[test]
fn abort_reads_as_in_the_document() {
    let store = source();
    shows(&store, "migration prepare migration_source migration_target", "");
    shows(
        &store,
        "migration abort migration_target",
        "Abort image migration: 100% complete...done.\n",
    );
    shows(&store, "ls", "migration_source\n");
}

#[test]
fn a_target_that_is_left_out_keeps_the_name_in_a_new_layout() {
    let store = source();
    shows(&store, "migration prepare migration_source --object-size 1M", "");
    let info = store.ok("info migration_source");
    assert!(info.contains("order 20 (1 MiB objects)"), "{info}");
}

#[test]
fn prepare_fails_while_a_client_has_the_source_open() {
    let store = source();
    let served = store.serve("migration_source");
    let said = store.fails("migration prepare migration_source migration_target", 16);
    assert!(
        said.starts_with("rbd: preparing migration failed: (16) Device or resource busy\n"),
        "{said}"
    );
    assert_same(
        "Watchers:\n\twatcher=1.2.3.4:0/3695551461 client.123 cookie=123\n",
        &store.ok("status migration_source"),
        "status",
    );
    assert_eq!(served.stop().1, 0);
    shows(&store, "migration prepare migration_source migration_target", "");
    // Restarting the client under the source's name fails.
    let said = store.fails("serve migration_source", 2);
    assert!(
        said.starts_with("rbd: error opening image rbd/migration_source: (2)"),
        "{said}"
    );
}
