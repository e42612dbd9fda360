//! Ferry and Ceph's own `rbd` on the same images of a real cluster: each can go on where the other stopped.

#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::process::Command;
use std::time::{Duration, Instant};

use ferry_e2e::ceph::unique;
use ferry_e2e::{Background, Ferry, History, Shape, Side};

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

fn sides(mask: u32) -> [Side; 4] {
    std::array::from_fn(|bit| Side::BOTH[(mask >> bit & 1) as usize])
}

#[test]
fn every_verb_of_a_migration_can_follow_the_other_side_s() {
    let Some(ferry) = Ferry::on_ceph() else { return };
    for mask in 0..16 {
        let [maker, preparer, executor, committer] = sides(mask);
        let when = format!(
            "made by {maker:?}, prepared by {preparer:?}, executed by {executor:?}, committed by {committer:?}"
        );
        let source = source(&ferry, maker, u64::from(mask));
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
        ferry.ok_as(executor, &["migration", "execute", "--no-progress", &target]);
        source.check(&ferry, &target, &format!("{when}: executed"));
        ferry.ok_as(committer, &["migration", "commit", "--no-progress", &target]);
        source.check(&ferry, &target, &format!("{when}: committed"));
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
    for mask in 0..16 {
        let [maker, preparer, executor, aborter] = sides(mask);
        let when = format!(
            "made by {maker:?}, prepared by {preparer:?}, executed by {executor:?}, aborted by {aborter:?}"
        );
        let source = source(&ferry, maker, u64::from(mask));
        let target = format!("other/{}", unique("target"));
        ferry.ok_as(preparer, &["migration", "prepare", &source.name, &target]);
        // Ceph's own goes back only from what it has not wholly copied as well as from what it has.
        if mask % 3 != 0 {
            ferry.ok_as(executor, &["migration", "execute", "--no-progress", &target]);
        }
        ferry.ok_as(aborter, &["migration", "abort", "--no-progress", &target]);
        source.check(&ferry, &source.name, &format!("{when}: aborted"));
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
        ferry.ok_as(maker, &["migration", "execute", "--no-progress", &target]);
        compare(&target);
        ferry.ok_as(maker, &["migration", "abort", "--no-progress", &target]);
        compare(name);
    }
}

#[test]
fn a_cluster_that_does_not_answer_or_does_not_know_us_is_a_clear_error_in_time() {
    let Some(ferry) = Ferry::on_ceph() else { return };
    let started = Instant::now();
    // Nobody listens on port 1.
    ferry
        .rbd(&["-m", "127.0.0.1:1", "--connect-timeout", "2", "ls"])
        .fails(110, "no monitor answered in time");
    assert!(
        started.elapsed() < Duration::from_secs(60),
        "{:?}",
        started.elapsed()
    );
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

/// fio's job on 9 MiB: each block once, in an order that `seed` gives, with checksums.
fn fio(ferry: &Ferry, seed: u32, words: &[&str]) -> Command {
    let mut command = Command::new("fio");
    let seed = format!("--randseed={seed}");
    let job = [
        "--name=job",
        "--bs=4k",
        "--size=9M",
        "--iodepth=4",
        "--rw=randwrite",
        "--thread=1",
    ];
    command
        .args(job)
        .args(["--verify=crc32c", "--verify_state_save=0", &seed]);
    command.args(words).current_dir(ferry.path(""));
    command.env("CEPH_CONF", ferry.ceph_conf());
    command
}

#[test]
fn clients_of_either_side_keep_their_data_under_the_other_s_execute_and_after_a_kill() {
    let Some(ferry) = Ferry::on_ceph() else { return };
    for executor in Side::BOTH {
        let source = source(&ferry, executor, 11);
        let name = unique("target");
        let target = format!("other/{name}");
        ferry.ok_as(executor.other(), &["migration", "prepare", &source.name, &target]);
        let served = ferry.serve(&[&target]);
        let nbd = format!("--uri={}", served.uri(&target.replace('/', "%2f")));
        let librbd = [
            "--ioengine=rbd",
            "--clientname=admin",
            "--pool=other",
            "--rbdname",
            &name,
        ];
        let nbd = ["--ioengine=nbd", nbd.as_str()];
        // The other side's client has the lock and writes.
        let (writer, reader) = match executor {
            Side::Ferry => (&librbd[..], &nbd[..]),
            Side::Ceph => (&nbd[..], &librbd[..]),
        };
        let slowly = [writer, &["--rate_iops=800,800"]].concat();
        let mut load = Background::start(&mut fio(&ferry, 7, &slowly), &ferry.path(""), "load");
        std::thread::sleep(Duration::from_millis(500));
        assert!(load.is_running(), "{}", load.stderr());
        ferry.ok_as(executor, &["migration", "execute", "--no-progress", &target]);
        load.finish().ok();
        ferry_e2e::run(&mut fio(&ferry, 7, &[reader, &["--verify_only"]].concat())).ok();
        // Now the other way, and then the server is killed.
        ferry_e2e::run(&mut fio(&ferry, 9, reader)).ok();
        served.kill();
        ferry_e2e::run(&mut fio(&ferry, 9, &[&librbd[..], &["--verify_only"]].concat())).ok();
        let words = [
            "bench",
            "--io-type",
            "write",
            "--io-size",
            "4096",
            "--io-total",
            "65536",
            &target,
        ];
        ferry.ok_as(executor, &words);
        for (snap, expected) in &source.versions[..2] {
            let spec = format!("{target}@{snap}");
            assert!(ferry.export_as(executor, &spec) == *expected, "{spec}");
        }
        ferry.ok_as(executor, &["object-map", "check", "--no-progress", &target]);
        ferry.ok_as(executor, &["migration", "commit", "--no-progress", &target]);
    }
}
