//! A migration that one side began and was killed in, and that the other side goes on with: Ferry after Ceph's own `rbd`, and
//! Ceph's after Ferry.

#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::ops::RangeInclusive;

use ferry_e2e::ceph::unique;
use ferry_e2e::ferry::wait_until;
use ferry_e2e::{Ferry, History, Shape, Side, check_maps, map_fault};

/// How much of an `execute` is done when it is killed: enough to have begun, and with enough to come that it was in the middle.
const MIDDLE: RangeInclusive<u32> = 30..=80;

/// 24 MiB in objects of 64 KiB: enough of them to be caught in the middle of copying.
fn source(ferry: &Ferry, maker: Side, seed: u64) -> History {
    let shape = Shape {
        image_bytes: 24 << 20,
        data_bytes: 16 << 20,
        options: &["--object-size", "64K"],
    };
    History::new(ferry, maker, seed, shape)
}

/// The largest `N% complete` that a command has printed so far.
fn percent(progress: &str) -> u32 {
    progress
        .split("% complete")
        .filter_map(|text| text.rsplit(' ').next()?.parse().ok())
        .max()
        .unwrap_or(0)
}

/// It was done, or nearly, before it could be killed, as a busy machine may have it, or it died by itself before: nothing was tried.
struct Missed;

/// Tries a scenario until its victim was killed in time; each try has images of its own.
fn until_killed_in_time(scenario: impl Fn() -> Result<(), Missed>) {
    let tried = (0..6).any(|_| scenario().is_ok());
    assert!(tried, "each time it was done before it could be killed");
}

/// Runs a verb of `side` with one object at a time and kills it when it says that so many percent are done; the migration is in
/// `state` then.
#[track_caller]
fn kill_at(
    ferry: &Ferry,
    side: Side,
    verb: &str,
    image: &str,
    percents: RangeInclusive<u32>,
    state: &str,
) -> Result<(), Missed> {
    let words: &[&str] = match (side, verb) {
        (Side::Ceph, _) => &["--rbd_concurrent_management_ops=1", "migration", verb, image],
        (Side::Ferry, "execute") => &[
            "migration",
            verb,
            "--concurrency",
            "1",
            "--max-bytes-per-second",
            "4M",
            image,
        ],
        (Side::Ferry, _) => &["migration", verb, image],
    };
    let mut running = ferry.start_as(side, words);
    wait_until("the verb is under way", || {
        percent(&running.stderr()) >= *percents.start() || !running.is_running()
    });
    let killed = running.kill();
    if killed.code != -1 {
        killed.ok();
        return Err(Missed);
    }
    if !percents.contains(&percent(&killed.stderr)) {
        return Err(Missed);
    }
    // The last steps of all may have been done, with the end itself still to come.
    if verb == "abort" && ferry.rbd(&["info", image]).code == 2 {
        return Err(Missed);
    }
    let found = ferry.migration_state(image);
    if verb == "execute" && found == "executed" {
        return Err(Missed);
    }
    assert_eq!(found, state);
    Ok(())
}

#[test]
fn an_execute_that_was_killed_is_continued_and_committed_by_the_other_side() {
    let Some(ferry) = Ferry::on_ceph() else { return };
    for killed in Side::BOTH {
        until_killed_in_time(|| {
            let other = killed.other();
            let mut history = source(&ferry, killed, 21);
            let source_id = ferry.image_id(&history.name);
            let target = format!("other/{}", unique("target"));
            let words = [
                "migration",
                "prepare",
                "--object-size",
                "128K",
                &history.name,
                &target,
            ];
            ferry.ok_as(killed, &words);
            history.write(&ferry, killed, &target);
            kill_at(&ferry, killed, "execute", &target, MIDDLE, "executing")?;
            let when = format!("killed {killed:?} in execute");
            // The other side's client writes into the half-copied target; it has to take the lock from the dead.
            history.write(&ferry, other, &target);
            history.check(&ferry, &target, &when);
            ferry.migrate_as(other, "execute", &target);
            assert_eq!(ferry.migration_state(&target), "executed");
            history.write(&ferry, killed, &target);
            ferry.migrate_as(other, "commit", &target);
            history.check(&ferry, &target, &format!("{when}, continued and committed"));
            ferry.nothing_is_left("rbd", &source_id, &when);
            assert_eq!(ferry.migration_state(&target), "");
            Ok(())
        });
    }
}

#[test]
fn an_execute_that_was_killed_is_aborted_by_the_other_side() {
    let Some(ferry) = Ferry::on_ceph() else { return };
    for killed in Side::BOTH {
        until_killed_in_time(|| {
            let other = killed.other();
            let mut history = source(&ferry, killed, 22);
            let target = format!("other/{}", unique("target"));
            let words = [
                "migration",
                "prepare",
                "--object-size",
                "256K",
                &history.name,
                &target,
            ];
            // Who is killed has not prepared it, and who aborts has.
            ferry.ok_as(other, &words);
            let target_id = ferry.image_id(&target);
            history.write(&ferry, other, &target);
            kill_at(&ferry, killed, "execute", &target, MIDDLE, "executing")?;
            let when = format!("killed {killed:?} in execute, aborted by {other:?}");
            // What is written to the half-copied target has to come back with the rest.
            history.write(&ferry, other, &target);
            abort_when_the_dead_are_gone(&ferry, other, &target);
            history.check(&ferry, &history.name, &when);
            ferry.nothing_is_left("other", &target_id, &when);
            ferry.run_as(other, &["info", &target]).fails(2, "No such file");
            Ok(())
        });
    }
}

/// A killed client counts as a watcher for some seconds, and an abort refuses while there are any.
fn abort_when_the_dead_are_gone(ferry: &Ferry, side: Side, target: &str) {
    wait_until("the dead client's watch is gone", || {
        let status = ferry.ok_as(Side::Ceph, &["status", target]);
        status.contains("Watchers: none")
    });
    ferry.migrate_as(side, "abort", target);
}

#[test]
fn an_abort_that_was_killed_is_finished_by_the_other_side() {
    let Some(ferry) = Ferry::on_ceph() else { return };
    for killed in Side::BOTH {
        until_killed_in_time(|| {
            let other = killed.other();
            let mut history = source(&ferry, killed, 23);
            let target = format!("other/{}", unique("target"));
            ferry.ok_as(killed, &["migration", "prepare", &history.name, &target]);
            let target_id = ferry.image_id(&target);
            // Much is different on the target, so that much is to be copied back.
            history.write(&ferry, other, &target);
            ferry.migrate_as(other, "execute", &target);
            history.write(&ferry, killed, &target);
            kill_at(&ferry, killed, "abort", &target, 5..=100, "aborting")?;
            let when = format!("killed {killed:?} in abort, finished by {other:?}");
            // In this state nobody may write: it would be lost with the target.
            let words = ["bench", "--io-type", "write", "--io-total", "4096", &target];
            ferry.run_as(other, &words).fails(30, "");
            abort_when_the_dead_are_gone(&ferry, other, &target);
            history.check(&ferry, &history.name, &when);
            ferry.nothing_is_left("other", &target_id, &when);
            ferry.run_as(other, &["info", &target]).fails(2, "No such file");
            Ok(())
        });
    }
}

/// A canary: what all of these tests judge object maps with is shown maps that are wrong.
#[test]
fn an_object_that_its_map_denies_is_noticed_from_either_side() {
    let Some(ferry) = Ferry::on_ceph() else { return };
    let spec = format!("rbd/{}", unique("denied"));
    let mut bytes = vec![0u8; 8 << 20];
    bytes[..100_000].fill(1);
    ferry.import(&bytes, &spec, &["--object-size", "1M"]);
    check_maps(&ferry, &spec, &[], "new");
    let id = ferry.image_id(&spec);
    let path = ferry.file("stray");
    std::fs::write(&path, [1u8; 4096]).unwrap();
    for (number, side, said) in [
        (5, Side::Ferry, "wrong entries"),
        (6, Side::Ceph, "object map error"),
    ] {
        // One that is missing would be no fault: both sides may mark more than there is.
        let object = format!("rbd_data.{id}.{number:016x}");
        ferry.rados(&["-p", "rbd", "put", &object, &path]);
        let fault = map_fault(&ferry, side, &spec).unwrap_or_default();
        assert!(
            fault.contains(said),
            "{side:?} has not noticed {object}: {fault:?}"
        );
        // The map is marked as invalid since. Not every check compares such a one, and it must not pass for right.
        assert!(
            map_fault(&ferry, side.other(), &spec).is_some(),
            "{side:?} has marked the map as invalid, and the other takes it for right"
        );
        ferry.ok_as(side, &["object-map", "rebuild", "--no-progress", &spec]);
        check_maps(&ferry, &spec, &[], "made anew");
    }
}
