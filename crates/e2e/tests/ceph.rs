//! Ferry and Ceph's own `rbd` on the same images of a real cluster: each can go on where the other stopped.

#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::time::{Duration, Instant};

use ferry_e2e::ceph::unique;
use ferry_e2e::tools::seed;
use ferry_e2e::{Ferry, History, Shape, Side};

const IMAGE_BYTES: usize = 9 << 20;

/// 9 MiB with holes.
fn source(ferry: &Ferry, maker: Side, seed: u64) -> History {
    let shape = Shape {
        image_bytes: IMAGE_BYTES,
        data_bytes: 2_500_000,
        options: &["--object-size", "1M"],
    };
    History::new(ferry, maker, seed, shape)
}

/// Which combinations have their turn: half of them, in which any three steps have all sides; which half, the seed says.
/// `FERRY_COMBINATIONS=all` asks for all.
fn combinations() -> impl Iterator<Item = u32> {
    let all = std::env::var("FERRY_COMBINATIONS").is_ok_and(|value| value == "all");
    let half = seed("combinations") % 2;
    (0..16u32).filter(move |mask| all || u64::from(mask.count_ones() % 2) == half)
}

fn sides(mask: u32) -> [Side; 4] {
    std::array::from_fn(|bit| Side::BOTH[(mask >> bit & 1) as usize])
}

#[test]
fn every_verb_of_a_migration_can_follow_the_other_side_s() {
    let Some(ferry) = Ferry::on_ceph() else { return };
    for mask in combinations() {
        let [maker, preparer, executor, committer] = sides(mask);
        let when = format!(
            "made by {maker:?}, prepared by {preparer:?}, executed by {executor:?}, committed by {committer:?}"
        );
        let source = source(&ferry, maker, u64::from(mask));
        let source_id = ferry.image_id(&source.name);
        let target = format!("other/{}", unique("target"));
        ferry.ok_as(
            preparer,
            &[
                "migration",
                "prepare",
                "--object-size",
                "2M",
                &source.name,
                &target,
            ],
        );
        source.check(&ferry, &target, &format!("{when}: prepared"));
        ferry.migrate_as(executor, "execute", &target);
        source.check(&ferry, &target, &format!("{when}: executed"));
        ferry.migrate_as(committer, "commit", &target);
        source.check(&ferry, &target, &format!("{when}: committed"));
        ferry.nothing_is_left("rbd", &source_id, &when);
        for side in Side::BOTH {
            ferry
                .run_as(side, &["info", &source.name])
                .fails(2, "No such file");
        }
    }
}

#[test]
fn an_abort_can_follow_the_other_side_s_verbs() {
    let Some(ferry) = Ferry::on_ceph() else { return };
    for mask in combinations() {
        let [maker, preparer, executor, aborter] = sides(mask);
        let when = format!(
            "made by {maker:?}, prepared by {preparer:?}, executed by {executor:?}, aborted by {aborter:?}"
        );
        let source = source(&ferry, maker, u64::from(mask));
        let target = format!("other/{}", unique("target"));
        ferry.ok_as(preparer, &["migration", "prepare", &source.name, &target]);
        let target_id = ferry.image_id(&target);
        // One goes back from what has not been copied as well as from what has.
        if (mask ^ (mask >> 3)) & 1 == 1 {
            ferry.migrate_as(executor, "execute", &target);
        }
        ferry.migrate_as(aborter, "abort", &target);
        source.check(&ferry, &source.name, &format!("{when}: aborted"));
        ferry.nothing_is_left("other", &target_id, &when);
        for side in Side::BOTH {
            ferry.run_as(side, &["info", &target]).fails(2, "No such file");
        }
    }
}

#[test]
fn both_sides_print_the_same() {
    let Some(ferry) = Ferry::on_ceph() else { return };
    for maker in Side::BOTH {
        let source = source(&ferry, maker, 7);
        let name = source.name.as_str();
        let target = format!("other/{}", unique("target"));
        let compare = |image: &str| {
            for words in [
                &["info", image][..],
                &["info", image, "--format", "json"],
                &["info", image, "--format", "xml", "--pretty-format"],
                &["snap", "ls", image],
                &["snap", "ls", image, "--format", "json"],
                &["status", image],
                &["status", image, "--format", "json"],
                &["du", image],
                &["du", image, "--format", "json"],
            ] {
                let [ours, theirs] = Side::BOTH.map(|side| ferry.ok_as(side, words));
                assert_eq!(ours, theirs, "{words:?} of an image made by {maker:?}");
            }
        };
        compare(name);
        ferry.ok_as(maker, &["migration", "prepare", name, &target]);
        compare(&target);
        let target_id = ferry.image_id(&target);
        ferry.migrate_as(maker, "execute", &target);
        compare(&target);
        ferry.migrate_as(maker, "abort", &target);
        compare(name);
        ferry.nothing_is_left("other", &target_id, &format!("aborted by {maker:?}"));
    }
}

#[test]
fn a_cluster_that_does_not_answer_or_does_not_know_us_is_a_clear_error_in_time() {
    let Some(ferry) = Ferry::on_ceph() else { return };
    // Nobody listens on port 1.
    let nobody = ["-m", "127.0.0.1:1", "--connect-timeout", "2"];
    let socket = ferry.file("nobody.sock");
    for words in [
        &["ls"][..],
        &["migration", "execute", "--no-progress", "other/image"],
        &["serve", "--socket", &socket, "rbd/image"],
    ] {
        let begun = Instant::now();
        ferry
            .rbd(&[&nobody[..], words].concat())
            .fails(110, "no monitor answered in time");
        // Not how fast this machine is: Ceph's own bound, were ours lost, is five minutes.
        assert!(begun.elapsed() < Duration::from_secs(60), "{words:?}");
    }
    assert!(!ferry.path("nobody.sock").exists(), "nothing can be served");
    let keyring = ferry.file("keyring");
    let secret = "AQBZ0mRnAAAAABAAZ1gT3o5c9d0S6q0p3vN8xw==";
    std::fs::write(&keyring, format!("[client.admin]\n\tkey = {secret}\n")).unwrap();
    let refused = ferry.rbd(&["-k", keyring.as_str(), "ls"]);
    assert!(!format!("{}{}", refused.stdout, refused.stderr).contains(secret));
    refused.fails(13, "does not accept this user's key");
    ferry
        .rbd(&["-c", "/nowhere/ceph.conf", "ls"])
        .fails(2, "'/nowhere/ceph.conf'");
    ferry.rbd(&["ls", "no-such-pool"]).fails(2, "no-such-pool");
}

#[test]
fn without_librados_the_program_says_what_to_install() {
    let ferry = Ferry::bare();
    let mut command = ferry.command(&["version"]);
    ferry_e2e::run(command.env("FERRY_LIBRADOS", "librados-of-nowhere.so")).ok();
    let mut command = std::process::Command::new(ferry_e2e::ferry::binary());
    command
        .args(["--store", "ceph", "ls"])
        .env("FERRY_LIBRADOS", "librados-of-nowhere.so");
    ferry_e2e::run(&mut command).fails(2, "package 'librados2'");
}
