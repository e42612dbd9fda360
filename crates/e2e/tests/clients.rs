//! Real NBD clients against `rbd serve`: QEMU's tools, libnbd's tools, fio.

#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::process::Command;

use ferry_e2e::tools::{installed, seed};
use ferry_e2e::{Ferry, run, run_ok};
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};

const MIB: usize = 1 << 20;

/// An image with data, zeroes and holes.
fn picture(bytes: usize, seed: u64) -> Vec<u8> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut data = vec![0; bytes];
    for _ in 0..12 {
        let start = rng.random_range(0..bytes);
        let end = (start + rng.random_range(1..600_000)).min(bytes);
        rng.fill_bytes(&mut data[start..end]);
    }
    data
}

#[test]
fn qemu_img_converts_compares_and_maps_a_served_image() {
    if !installed(&["qemu-img"]) {
        return;
    }
    let ferry = Ferry::new();
    let data = picture(24 * MIB, seed("qemu_img"));
    std::fs::write(ferry.path("raw"), &data).unwrap();
    ferry.ok(&["create", "rbd/disk", "--size", "24M", "--object-size", "1M"]);
    let served = ferry.serve(&["rbd/disk"]);
    let uri = served.uri("rbd/disk");

    let raw = ferry.file("raw");
    run_ok(
        "qemu-img",
        &["convert", "-n", "-f", "raw", "-O", "raw", &raw, &uri],
    );
    run_ok("qemu-img", &["compare", "-f", "raw", "-F", "raw", &raw, &uri]);
    let qcow2 = ferry.file("disk.qcow2");
    run_ok("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &uri, &qcow2]);
    run_ok("qemu-img", &["compare", "-f", "raw", "-F", "qcow2", &uri, &qcow2]);

    let map: serde_json::Value =
        serde_json::from_str(&run_ok("qemu-img", &["map", "-f", "raw", "--output=json", &uri])).unwrap();
    let mut covered = 0;
    for extent in map.as_array().unwrap() {
        let (start, length) = (
            extent["start"].as_u64().unwrap(),
            extent["length"].as_u64().unwrap(),
        );
        assert_eq!(start, covered, "{map}");
        covered += length;
        if extent["zero"] == true {
            let hole = &data[start as usize..(start + length) as usize];
            assert!(
                hole.iter().all(|byte| *byte == 0),
                "data reported as a hole: {extent}"
            );
        }
    }
    assert_eq!(covered, data.len() as u64);
    assert!(
        map.as_array()
            .unwrap()
            .iter()
            .any(|extent| extent["zero"] == true),
        "the image has holes: {map}"
    );
    served.stop();
    assert!(ferry.export("rbd/disk") == data);
}

#[test]
fn qemu_io_patterns_discards_and_zeroes_read_back() {
    if !installed(&["qemu-io"]) {
        return;
    }
    let ferry = Ferry::new();
    ferry.ok(&["create", "rbd/disk", "--size", "16M", "--object-size", "512K"]);
    let served = ferry.serve(&["rbd/disk"]);
    let uri = served.uri("rbd/disk");
    let words = [
        "write -P 0x5a 300k 900k",
        "write -f -P 0xa5 4M 64k",
        "write -z 400k 128k",
        "write -z -u 1M 100k",
        "discard 4M 512k",
        "flush",
        "read -P 0x5a 300k 100k",
        "read -P 0 400k 128k",
        "read -P 0x5a 528k 496k",
        "read -P 0 1M 100k",
        "read -P 0x5a 1124k 76k",
        "read -P 0 4M 64k",
    ];
    let mut command = Command::new("qemu-io");
    command.args(["-f", "raw", "-d", "unmap"]);
    for word in words {
        command.args(["-c", word]);
    }
    let finished = run(command.arg(&uri)).ok();
    assert!(!finished.stdout.contains("verification failed"), "{finished}");
    // Beyond the end: an error for the client, and the server lives.
    let beyond = run(Command::new("qemu-io").args(["-f", "raw", "-c", "write 17M 4k", &uri]));
    assert!(beyond.code != 0 || !beyond.stdout.contains("wrote"), "{beyond}");
    let again = run(Command::new("qemu-io").args(["-f", "raw", "-c", "read -P 0x5a 300k 4k", &uri])).ok();
    assert!(again.stdout.contains("read 4096/4096"), "{again}");
    served.stop();
}

#[test]
fn nbdinfo_lists_exports_and_maps_holes_and_snapshots_are_read_only() {
    if !installed(&["nbdinfo"]) {
        return;
    }
    let ferry = Ferry::new();
    let mut data = vec![0; 8 * MIB];
    data[..MIB].fill(7);
    ferry.import(&data, "rbd/disk", &["--object-size", "1M"]);
    ferry.ok(&["snap", "create", "rbd/disk@s1", "--no-progress"]);
    ferry.ok(&["create", "fast/other", "--size", "4M"]);
    let served = ferry.serve(&["rbd/disk", "rbd/disk@s1", "fast/other"]);

    let list: serde_json::Value =
        serde_json::from_str(&run_ok("nbdinfo", &["--list", "--json", &served.uri("")])).unwrap();
    let exports = list["exports"].as_array().unwrap();
    let names: Vec<_> = exports
        .iter()
        .map(|export| export["export-name"].as_str().unwrap())
        .collect();
    for name in ["rbd/disk", "rbd/disk@s1", "fast/other"] {
        assert!(names.contains(&name), "{names:?}");
    }
    let snapshot: serde_json::Value =
        serde_json::from_str(&run_ok("nbdinfo", &["--json", &served.uri("rbd/disk@s1")])).unwrap();
    assert_eq!(snapshot["exports"][0]["is_read_only"], true, "{snapshot}");
    let head: serde_json::Value =
        serde_json::from_str(&run_ok("nbdinfo", &["--json", &served.uri("rbd/disk")])).unwrap();
    assert_eq!(head["exports"][0]["is_read_only"], false, "{head}");
    assert_eq!(head["exports"][0]["can_flush"], true, "{head}");
    assert_eq!(head["exports"][0]["can_fua"], true, "{head}");
    assert_eq!(head["exports"][0]["export-size"], 8 * MIB as u64, "{head}");

    let map: serde_json::Value =
        serde_json::from_str(&run_ok("nbdinfo", &["--map", "--json", &served.uri("rbd/disk")])).unwrap();
    let data_bytes: u64 = map
        .as_array()
        .unwrap()
        .iter()
        .filter(|extent| extent["type"] == 0)
        .map(|extent| extent["length"].as_u64().unwrap())
        .sum();
    assert_eq!(data_bytes, MIB as u64, "{map}");
    served.stop();
}

#[test]
fn a_server_without_specs_finds_images_at_the_moment_a_client_asks() {
    if !installed(&["nbdinfo"]) {
        return;
    }
    let ferry = Ferry::new();
    let served = ferry.serve(&[]);
    ferry.ok(&["create", "rbd/late", "--size", "4M"]);
    assert_eq!(
        run_ok("nbdinfo", &["--size", &served.uri("rbd/late")]).trim(),
        "4194304"
    );
    let missing = run(Command::new("nbdinfo").args(["--size", &served.uri("rbd/never")]));
    assert_ne!(missing.code, 0, "{missing}");
    assert_eq!(
        run_ok("nbdinfo", &["--size", &served.uri("rbd/late")]).trim(),
        "4194304"
    );
    served.stop();
}

#[test]
fn nbdcopy_moves_bytes_in_and_out_while_the_image_migrates() {
    if !installed(&["nbdcopy"]) {
        return;
    }
    let ferry = Ferry::new();
    let old = picture(24 * MIB, seed("nbdcopy"));
    ferry.import(&old, "rbd/disk", &["--object-size", "1M"]);
    ferry.ok(&[
        "migration",
        "prepare",
        "rbd/disk",
        "fast/disk",
        "--object-size",
        "256K",
    ]);
    let served = ferry.serve(&["fast/disk"]);
    let (out, back) = (ferry.file("out"), ferry.file("in"));
    run_ok("nbdcopy", &[&served.uri("fast/disk"), &out]);
    assert!(std::fs::read(&out).unwrap() == old, "nothing copied yet");

    let new = picture(24 * MIB, 99);
    std::fs::write(&back, &new).unwrap();
    let execute = ferry.start(&["migration", "execute", "fast/disk"]);
    run_ok("nbdcopy", &["--flush", &back, &served.uri("fast/disk")]);
    execute.finish().ok();
    run_ok("nbdcopy", &[&served.uri("fast/disk"), &out]);
    assert!(std::fs::read(&out).unwrap() == new, "after the copy");
    served.stop();
    ferry.ok(&["migration", "commit", "fast/disk", "--no-progress"]);
    assert!(ferry.export("fast/disk") == new);
}

#[test]
fn fio_finds_no_wrong_byte_while_the_image_migrates() {
    if !installed(&["fio"]) {
        return;
    }
    let ferry = Ferry::new();
    ferry.import(&picture(32 * MIB, 5), "rbd/disk", &["--object-size", "4M"]);
    ferry.ok(&["snap", "create", "rbd/disk@before", "--no-progress"]);
    let before = ferry.export("rbd/disk@before");
    ferry.ok(&[
        "migration",
        "prepare",
        "rbd/disk",
        "fast/disk",
        "--object-size",
        "512K",
    ]);
    let served = ferry.serve(&["fast/disk"]);
    let uri = format!("--uri={}", served.uri("fast/disk"));
    let fio = ferry_e2e::Background::start(
        Command::new("fio").args([
            "--name=verify",
            "--ioengine=nbd",
            &uri,
            "--rw=randwrite",
            "--bsrange=4k-64k",
            "--size=24M",
            "--offset=4M",
            "--iodepth=8",
            "--fsync=64",
            "--loops=2",
            "--verify=crc32c",
            "--verify_state_save=0",
            "--verify_fatal=1",
            "--do_verify=1",
            "--verify_state_save=0",
        ]),
        &ferry.path(""),
        "fio",
    );
    let execute = ferry.start(&["migration", "execute", "fast/disk"]).finish().ok();
    assert!(
        execute.stderr.contains("Image migration: 100% complete...done."),
        "{execute}"
    );
    let fio = fio.finish().ok();
    assert!(fio.stdout.contains("err= 0"), "{fio}");
    served.stop();
    ferry.ok(&["migration", "commit", "fast/disk", "--no-progress"]);
    assert!(ferry.export("fast/disk@before") == before);
}
