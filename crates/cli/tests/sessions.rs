//! Whole sessions recorded with rbd 16.2.15, replayed command by command against the real binary.
//!
//! Compared after `support::normalise`, with three things more taken off: lines that Ferry adds (`rbd: note: ...`), the
//! numbers of `bench`, and image ids in commands, which are translated. Every deliberate difference is in
//! `support::differences`. `sessions_on_ceph.rs` takes the same sessions on a cluster, beside Ceph's own command.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail their test")]

mod support;

use support::differences::{DIFFERENCES, difference};
use support::session::{Session, Step, bare, bench_line, steps};
use support::store::{Ran, TestStore};
use support::{Case, assert_same};

/// Replays one file.
fn replay(file: &str) {
    let store = TestStore::new();
    let mut session = Session::new(&store);
    let mut used = 0;
    let mut wrong = Vec::new();
    for step in steps(file) {
        if let (Some(ran), Step::Command(case)) = (session.take(&step), &step)
            && let Err(text) = check(file, case, &ran, &mut used)
        {
            wrong.push(text);
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let listed = DIFFERENCES
        .iter()
        .filter(|difference| difference.file == file)
        .count();
    assert_eq!(used, listed, "{file}: differences that are listed but no more");
}

fn check(file: &str, case: &Case, ran: &Ran, used: &mut usize) -> Result<(), String> {
    let command = case.command();
    let (output, code) = match difference(file, &command) {
        Some(difference) => {
            *used += 1;
            assert_ne!(
                (bare(&case.output), case.code),
                (bare(difference.output), difference.code),
                "{file}: {command}: no difference"
            );
            (difference.output.to_owned(), difference.code)
        }
        None => (case.output.clone(), case.code),
    };
    let (expected, actual) = (bare(&output), bare(&ran.output));
    if (&expected, code) == (&actual, ran.code) {
        return Ok(());
    }
    Err(format!(
        "{file}:{} $ {command}\n--- expected\n{expected}[rc={code}]\n--- actual\n{actual}[rc={}]",
        case.line, ran.code
    ))
}

#[test]
fn images_snapshots_and_sizes_read_as_recorded() {
    replay("session-1.txt");
}

#[test]
fn a_migration_to_another_pool_and_layout_reads_as_recorded() {
    replay("session-2.txt");
}

#[test]
fn aborts_and_migrations_in_place_read_as_recorded() {
    replay("session-3.txt");
}

#[test]
fn watchers_and_lock_owners_read_as_recorded() {
    replay("session-4.txt");
}

#[test]
fn clones_and_their_children_read_as_recorded() {
    replay("session-5.txt");
}

#[test]
fn a_migration_of_a_parent_and_of_a_clone_reads_as_recorded() {
    replay("session-6.txt");
}

#[test]
fn files_metadata_namespaces_and_trash_read_as_recorded() {
    replay("session-7.txt");
}

#[test]
fn groups_features_and_devices_read_as_recorded() {
    replay("session-8.txt");
}

#[test]
fn differences_between_snapshots_read_as_recorded() {
    replay("session-diff.txt");
}

#[test]
fn files_of_differences_and_exports_with_snapshots_read_as_recorded() {
    replay("session-files.txt");
}

#[test]
fn copies_with_and_without_snapshots_read_as_recorded() {
    replay("session-copy.txt");
}

#[test]
fn locks_taken_by_hand_read_as_recorded() {
    replay("session-locks.txt");
}

#[test]
fn groups_and_their_snapshots_read_as_recorded() {
    replay("session-groups.txt");
}

#[test]
fn bench_numbers_are_hidden_and_nothing_else() {
    assert_eq!(
        bench_line("elapsed: 0   ops: 16   ops/sec: 4000   bytes/sec: 16 MiB/s\n"),
        bench_line("elapsed: 3   ops: 16   ops/sec: inf   bytes/sec: 0 B/s\n")
    );
    assert_ne!(
        bench_line("elapsed: 0   ops: 16\n"),
        bench_line("elapsed: 0   ops: 17\n")
    );
    assert_same("a\n", "a\n", "equal texts");
}
