//! Several clients of an NBD server at once on images that are migrated, cloned, snapshotted and resized meanwhile, and
//! killed now and then; every byte that they read is judged by [`ferry_reference`].
//!
//! A history is a seed. `FERRY_SEED` replays one, `FERRY_PHASES` and `FERRY_HISTORIES` make runs longer, `FERRY_TRACE` shows what
//! is done. Requests that overlap take effect in another order each time; the histories of one request at a
//! time replay to the byte.
//!
//! | file | what it holds |
//! |---|---|
//! | `world.rs` | the store, its server, the images and what is known of them |
//! | `phase.rs` | clients that overlap, and what is done beside them |
//! | `verbs.rs` | what is done while no client is connected |
//! | `kills.rs` | servers that die, with the power or without |
//! | `liar.rs` | canaries: devices that do not do what they answer |

#![allow(clippy::unwrap_used)] // A test fails by panicking.

mod kills;
mod liar;
mod phase;
mod verbs;
mod world;

use std::time::Instant;

use liar::Lie;
use world::{Plan, Stats, World};

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}

/// Runs histories until one fails or all are done, and says what they were.
async fn histories(what: &str, plan: Plan, histories: u64) {
    let plan = Plan {
        phases: number("FERRY_PHASES", plan.phases),
        ..plan
    };
    // The short run takes the same histories each time; campaigns take fresh ones.
    let first = number("FERRY_SEED", 1);
    let usual = match std::env::var_os("FERRY_SEED") {
        Some(_) => 1,
        None => histories,
    };
    let histories = number("FERRY_HISTORIES", usual);
    let mut total = Stats::default();
    let begun = Instant::now();
    for seed in (0..histories).map(|turn| first.wrapping_add(turn)) {
        let (stats, result) = World::run(plan, seed).await;
        total.add(&stats);
        if let Err(problem) = result {
            panic!(
                "fsx {what}, FERRY_SEED={seed} FERRY_PHASES={}: {problem}",
                plan.phases
            );
        }
    }
    println!(
        "campaign: fsx {what} seed={first} histories={histories} {total} seconds={:.0}",
        begun.elapsed().as_secs_f64()
    );
}

const MEMORY: Plan = Plan {
    local: false,
    one_at_a_time: false,
    phases: 60,
    lie: Lie::Never,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_overlap_read_what_was_written_through_migrations_and_kills() {
    histories("engine=memory", MEMORY, 4).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_take_turns_read_what_was_written_through_migrations_and_kills() {
    let plan = Plan {
        one_at_a_time: true,
        ..MEMORY
    };
    histories("engine=memory turns", plan, 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_overlap_read_what_was_written_through_migrations_on_the_local_engine() {
    let plan = Plan {
        local: true,
        phases: 30,
        ..MEMORY
    };
    histories("engine=local", plan, 1).await;
}

/// Runs histories on a device that lies until one fails; none may go through for long.
async fn is_noticed(lie: Lie) {
    let plan = Plan { lie, ..MEMORY };
    let first = number("FERRY_SEED", 1);
    for seed in first..first + 8 {
        if let (_, Err(problem)) = World::run(plan, seed).await {
            println!("{lie:?} was noticed: {problem}");
            assert!(
                problem.contains("byte "),
                "noticed otherwise, FERRY_SEED={seed}: {problem}"
            );
            return;
        }
    }
    panic!("{lie:?} went unnoticed in 8 histories from FERRY_SEED={first} on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_byte_is_noticed() {
    is_noticed(Lie::WrongByte).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_write_is_noticed() {
    is_noticed(Lie::LostWrite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stale_read_is_noticed() {
    is_noticed(Lie::StaleRead).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forgotten_flush_is_noticed() {
    is_noticed(Lie::ForgottenFlush).await;
}
