//! Clients of both sides on the same images of a real cluster: fio with librbd, and fio over NBD through `rbd serve`. What one has
//! written the other verifies.

#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::process::Command;

use ferry_e2e::ceph::unique;
use ferry_e2e::ferry::wait_until;
use ferry_e2e::{Background, Ferry, History, Shape, Side, check_maps};

/// fio's job: each block once, in an order that `seed` gives, with checksums. Which blocks of which image, `words` say.
fn fio(ferry: &Ferry, seed: u32, words: &[&str]) -> Command {
    let mut command = Command::new("fio");
    let seed = format!("--randseed={seed}");
    let job = [
        "--name=job",
        "--bs=4k",
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

/// A load whose client owns the image's lock, and is not done.
fn under_way(ferry: &Ferry, image: &str, writer: &[&str]) -> Background {
    // A busy machine may not look in time: then once more, for longer.
    for iops in [400, 100, 25, 5] {
        let rate = format!("--rate_iops={iops},{iops}");
        let slowly = [writer, &[rate.as_str()]].concat();
        let mut load = Background::start(&mut fio(ferry, 7, &slowly), &ferry.path(""), "load");
        wait_until("the load is under way", || {
            let locks = ferry.json(&["lock", "ls", image]);
            locks.as_array().is_some_and(|locks| !locks.is_empty()) || !load.is_running()
        });
        if load.is_running() {
            return load;
        }
        load.finish().ok();
    }
    panic!("each time the load was done before anybody saw it");
}

/// The part of the image that fio writes to under an `execute`. At both ends it shares an object with what only `execute` copies.
const PART: std::ops::Range<usize> = 512 << 10..4608 << 10;

#[test]
fn clients_of_either_side_keep_their_data_under_the_other_s_execute_and_after_a_kill() {
    let Some(ferry) = Ferry::on_ceph() else { return };
    for executor in Side::BOTH {
        let shape = Shape {
            image_bytes: 9 << 20,
            data_bytes: 6 << 20,
            options: &["--object-size", "1M"],
        };
        let mut history = History::new(&ferry, executor, 11, shape);
        let name = unique("target");
        let target = format!("other/{name}");
        ferry.ok_as(
            executor.other(),
            &["migration", "prepare", &history.name, &target],
        );
        let served = ferry.serve(&[&target]);
        let nbd = format!("--uri={}", served.uri(&target.replace('/', "%2f")));
        let (offset, size) = (
            format!("--offset={}", PART.start),
            format!("--size={}", PART.len()),
        );
        let librbd = [
            "--ioengine=rbd",
            "--clientname=admin",
            "--pool=other",
            "--rbdname",
            &name,
            &offset,
            &size,
        ];
        let nbd = ["--ioengine=nbd", nbd.as_str(), &offset, &size];
        // The other side's client has the lock and writes.
        let (writer, reader) = match executor {
            Side::Ferry => (&librbd[..], &nbd[..]),
            Side::Ceph => (&nbd[..], &librbd[..]),
        };
        let load = under_way(&ferry, &target, writer);
        ferry.migrate_as(executor, "execute", &target);
        load.finish().ok();
        ferry_e2e::run(&mut fio(&ferry, 7, &[reader, &["--verify_only"]].concat())).ok();
        // Now the other way, and then the server is killed.
        ferry_e2e::run(&mut fio(&ferry, 9, reader)).ok();
        served.kill();
        ferry_e2e::run(&mut fio(&ferry, 9, &[&librbd[..], &["--verify_only"]].concat())).ok();
        // What fio has written it has judged itself; around that all must be as it was.
        history.was_written(&ferry, &target, PART);
        history.write(&ferry, executor, &target);
        let when = format!("executed by {executor:?} beside the other's client");
        history.check(&ferry, &target, &when);
        ferry.migrate_as(executor, "commit", &target);
    }
}

#[test]
fn what_one_side_s_client_wrote_the_other_s_verifies_in_every_layout_and_at_snapshots() {
    let Some(ferry) = Ferry::on_ceph() else { return };
    let layouts: [&[&str]; 4] = [
        &[],
        &["--object-size", "64K"],
        &[
            "--object-size",
            "1M",
            "--stripe-unit",
            "16K",
            "--stripe-count",
            "5",
        ],
        &["--object-size", "1M", "--data-pool", "other"],
    ];
    for (n, layout) in layouts.into_iter().enumerate() {
        let maker = Side::BOTH[n % 2];
        let name = unique("clients");
        let spec = format!("rbd/{name}");
        ferry.ok_as(maker, &[&["create", "--size", "9M", &spec], layout].concat());
        let served = ferry.serve(&[&spec]);
        let nbd = format!("--uri={}", served.uri(&spec.replace('/', "%2f")));
        let nbd = ["--ioengine=nbd", nbd.as_str(), "--size=9M"];
        let librbd = [
            "--ioengine=rbd",
            "--clientname=admin",
            "--pool=rbd",
            "--rbdname",
            &name,
            "--size=9M",
        ];
        let turns = [
            (1, &librbd[..], &nbd[..]),
            (2, &nbd[..], &librbd[..]),
            (3, &librbd[..], &nbd[..]),
        ];
        let mut versions = Vec::new();
        for (seed, writer, reader) in turns {
            ferry_e2e::run(&mut fio(&ferry, seed, writer)).ok();
            ferry_e2e::run(&mut fio(&ferry, seed, &[reader, &["--verify_only"]].concat())).ok();
            versions.push((format!("{spec}@{seed}"), ferry.export_as(maker, &spec)));
            ferry.ok_as(
                maker,
                &["snap", "create", "--no-progress", &format!("{spec}@{seed}")],
            );
        }
        for (at, expected) in versions {
            for side in Side::BOTH {
                assert!(ferry.export_as(side, &at) == expected, "{at} {layout:?} {side:?}");
            }
        }
        check_maps(&ferry, &spec, &["1", "2", "3"], &format!("{layout:?}"));
    }
}
