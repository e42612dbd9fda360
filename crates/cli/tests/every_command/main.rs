//! Every command that changes a store, killed and refused at every step that is found by counting: its steps, and those of
//! its recovery. One table ([`rows`]) for all, compared with the grammar's: a new command cannot be forgotten.
//!
//! | tool | what it does | whole |
//! |---|---|---|
//! | kills | dies before and after each change, and at each with a power loss; then the command is run again | always |
//! | kills of the recovery | the run again dies too, at a sample of its changes; then a third | `FERRY_DEPTH2` samples a group |
//! | faults | the nth call fails with `EIO` (a flush: a failed sync), the nth change with `ENOSPC`, once and for ever | `FERRY_FAULTS=all`, else a sample |
//!
//! Judged by all that can be seen of the store ([`view`]): after the recovery it is as if nothing had happened. `FERRY_SEED`
//! replays samples. Each tool has a canary: a planted defect that it must find.

#![allow(clippy::unwrap_used)] // a test that cannot go on says so by panicking

mod rows;
mod tools;
mod view;
mod world;

use std::collections::BTreeSet;

use ferry_cli::grammar::CommandId;
use ferry_cli::grammar::table::{State, commands};
use rows::{GROUPS, Row};

/// What reads and shows, or writes elsewhere than into the store.
const CHANGE_NOTHING: [CommandId; 33] = [
    CommandId::Children,
    CommandId::ConfigGlobalGet,
    CommandId::ConfigGlobalList,
    CommandId::ConfigImageGet,
    CommandId::ConfigImageList,
    CommandId::ConfigPoolGet,
    CommandId::ConfigPoolList,
    CommandId::DeviceList,
    CommandId::Diff,
    CommandId::DiskUsage,
    CommandId::Export,
    CommandId::ExportDiff,
    CommandId::GroupImageList,
    CommandId::GroupList,
    CommandId::GroupSnapList,
    CommandId::ImageMetaGet,
    CommandId::ImageMetaList,
    CommandId::Info,
    CommandId::List,
    CommandId::LockList,
    CommandId::MergeDiff,
    CommandId::NamespaceList,
    CommandId::ObjectMapCheck,
    CommandId::PoolList,
    CommandId::PoolStats,
    CommandId::SnapList,
    CommandId::Status,
    CommandId::TrashList,
    CommandId::Watch,
    // Its repairs are killed by tests of their own: `image/tests/check_kills.rs`, and the real command by `fsck.rs`.
    CommandId::Fsck,
    // Has rows of its own, in which a client does what a server does for one; a device is a client of such a server.
    CommandId::Serve,
    CommandId::DeviceMap,
    CommandId::DeviceUnmap,
];

#[test]
fn every_command_that_changes_something_has_a_row() {
    let in_rows: BTreeSet<String> = GROUPS
        .iter()
        .flat_map(|(_, rows)| rows.iter())
        .filter_map(|row| row.command)
        .map(|command| format!("{command:?}"))
        .collect();
    let silent: BTreeSet<String> = CHANGE_NOTHING.map(|command| format!("{command:?}")).into();
    for command in commands() {
        let State::Built(id) = command.state else {
            continue;
        };
        let name = format!("{id:?}");
        assert!(
            in_rows.contains(&name) != silent.contains(&name),
            "{name}: has a row {}, is said to change nothing {}",
            in_rows.contains(&name),
            silent.contains(&name)
        );
    }
}

fn group(name: &str) -> &'static [Row] {
    let found = GROUPS.iter().find(|(group, _)| *group == name);
    found.unwrap_or_else(|| panic!("no group '{name}'")).1
}

macro_rules! groups {
    ($($module:ident: $group:literal;)*) => {
        $(mod $module {
            use super::{group, tools};

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn killed_at_every_step_each_is_finished_by_the_next() {
                tools::kills($group, group($group)).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn killed_again_while_it_recovers_each_is_finished_by_the_third() {
                tools::kills_of_the_recovery($group, group($group)).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn refused_at_any_call_each_says_so_and_can_be_run_again() {
                tools::faults($group, group($group)).await;
            }
        })*
    };
}

groups! {
    images: "images";
    trash: "trash";
    snapshots: "snapshots";
    clones: "clones";
    groups: "groups";
    properties: "properties";
    migrations: "migrations";
    servers: "servers";
}

/// The second abort found the source as the first had left it, wrote nothing, and so had nothing to flush; then it took the
/// target's objects away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_abort_had_copied_back_was_lost_with_the_power_after_the_next() {
    let aborts = group("migrations")
        .iter()
        .filter(|row| row.line.starts_with("migration abort"));
    for row in aborts {
        tools::second_run_cut_short(row, u64::MAX, 3).await;
    }
}

/// The second prepare took the first one back, and had removed the target: the source, marked as prepared, passed for what a
/// commit had left over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_whose_prepare_was_taken_back_in_part_passed_for_committed() {
    let prepares = group("migrations")
        .iter()
        .filter(|row| row.line.starts_with("migration prepare"));
    for row in prepares.take(2) {
        tools::second_run_cut_short(row, 6, 40).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn canary_a_step_that_the_store_lost_is_noticed() {
    tools::canary_of_a_lost_step(group("images")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn canary_a_command_that_nobody_finishes_is_noticed() {
    tools::canary_without_recovery(group("images")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn canary_a_recovery_that_nobody_finishes_is_noticed() {
    tools::canary_without_a_third_run(group("images")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn canary_an_error_that_is_swallowed_is_noticed() {
    tools::canary_of_a_swallowed_error(group("images")).await;
}
