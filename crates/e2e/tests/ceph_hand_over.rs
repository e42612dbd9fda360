//! A migration that one side began and was killed in, and that the other side goes on with: Ferry after Ceph's own `rbd`, and
//! Ceph's after Ferry.

#![allow(clippy::unwrap_used)] // A test fails by panicking.

use ferry_e2e::ceph::unique;
use ferry_e2e::ferry::wait_until;
use ferry_e2e::{Ferry, History, Shape, Side};

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

/// It was done before it could be killed, as a busy machine may have it: nothing was tried.
struct TooFast;

/// Tries a scenario until its victim was killed in time; each try has images of its own.
fn until_killed_in_time(scenario: impl Fn() -> Result<(), TooFast>) {
    let tried = (0..6).any(|_| scenario().is_ok());
    assert!(tried, "each time it was done before it could be killed");
}

/// Runs a verb of `side` with one object at a time and kills it when it says that this much is done; the migration is in `state` then.
#[track_caller]
fn kill_at(
    ferry: &Ferry,
    side: Side,
    verb: &str,
    image: &str,
    least_percent: u32,
    state: &str,
) -> Result<(), TooFast> {
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
        percent(&running.stderr()) >= least_percent || !running.is_running()
    });
    let killed = running.kill();
    if killed.code != -1 {
        killed.ok();
        return Err(TooFast);
    }
    // The last steps of all may have been done, with the end itself still to come.
    if verb == "abort" && ferry.rbd(&["info", image]).code == 2 {
        return Err(TooFast);
    }
    let found = ferry.migration_state(image);
    if verb == "execute" && found == "executed" {
        return Err(TooFast);
    }
    assert_eq!(found, state);
    Ok(())
}

/// The hexadecimal id of an image.
fn id(ferry: &Ferry, image: &str) -> String {
    let info = ferry.ok_as(Side::Ceph, &["info", "--format", "json", image]);
    let info: serde_json::Value = serde_json::from_str(&info).unwrap();
    info["id"].as_str().unwrap().to_owned()
}

/// Nothing of the image that had this id is left.
#[track_caller]
fn nothing_is_left(ferry: &Ferry, pool: &str, id: &str, when: &str) {
    // The id ends with the name, or a dot follows.
    let left: Vec<_> = ferry
        .rados_objects(pool, id)
        .into_iter()
        .filter(|name| name.split('.').any(|part| part == id) || name.ends_with(&format!("_{id}")))
        .collect();
    assert!(left.is_empty(), "{when}: left behind: {left:?}");
}

#[test]
fn an_execute_that_was_killed_is_continued_and_committed_by_the_other_side() {
    let Some(ferry) = Ferry::on_ceph() else { return };
    for killed in Side::BOTH {
        until_killed_in_time(|| {
            let other = killed.other();
            let mut history = source(&ferry, killed, 21);
            let source_id = id(&ferry, &history.name);
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
            kill_at(&ferry, killed, "execute", &target, 30, "executing")?;
            let when = format!("killed {killed:?} in execute");
            // The other side's client writes into the half-copied target; it has to take the lock from the dead.
            history.write(&ferry, other, &target);
            history.check(&ferry, &target, &when);
            ferry.migrate_as(other, "execute", &target);
            assert_eq!(ferry.migration_state(&target), "executed");
            ferry.migrate_as(other, "commit", &target);
            history.check(&ferry, &target, &format!("{when}, continued and committed"));
            nothing_is_left(&ferry, "rbd", &source_id, &when);
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
            let mut history = source(&ferry, other, 22);
            let target = format!("other/{}", unique("target"));
            let words = [
                "migration",
                "prepare",
                "--object-size",
                "256K",
                &history.name,
                &target,
            ];
            ferry.ok_as(killed, &words);
            let target_id = id(&ferry, &target);
            history.write(&ferry, other, &target);
            kill_at(&ferry, killed, "execute", &target, 30, "executing")?;
            let when = format!("killed {killed:?} in execute, aborted by {other:?}");
            abort_when_the_dead_are_gone(&ferry, other, &target);
            history.check(&ferry, &history.name, &when);
            nothing_is_left(&ferry, "other", &target_id, &when);
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
            let target_id = id(&ferry, &target);
            // Much is different on the target, so that much is to be copied back.
            for side in Side::BOTH {
                history.write(&ferry, side, &target);
            }
            ferry.migrate_as(other, "execute", &target);
            kill_at(&ferry, killed, "abort", &target, 5, "aborting")?;
            let when = format!("killed {killed:?} in abort, finished by {other:?}");
            abort_when_the_dead_are_gone(&ferry, other, &target);
            history.check(&ferry, &history.name, &when);
            nothing_is_left(&ferry, "other", &target_id, &when);
            ferry.run_as(other, &["info", &target]).fails(2, "No such file");
            Ok(())
        });
    }
}
