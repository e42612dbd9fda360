//! File systems, loop-mounted over `nbdfuse` on a served image, live through a whole migration with files changing.

#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use ferry_e2e::mount::Mounted;
use ferry_e2e::tools::{can_mount, installed, seed};
use ferry_e2e::{Ferry, run, run_ok};
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};

/// Files with their content, as they were written.
type Files = BTreeMap<String, Vec<u8>>;

/// Writes, rewrites, renames and removes files until told to stop, at least `rounds` times.
fn change_files(place: &Path, files: &mut Files, rng: &mut StdRng, rounds: u32, stop: &AtomicBool) {
    let mut round = 0;
    while round < rounds || !stop.load(Ordering::Relaxed) {
        round += 1;
        let name = format!("file{}", rng.random_range(0..40));
        match rng.random_range(0..6) {
            0 if files.contains_key(&name) => {
                std::fs::remove_file(place.join(&name)).unwrap();
                files.remove(&name);
            }
            1 if files.contains_key(&name) => {
                let moved = format!("file{}", rng.random_range(0..40));
                std::fs::rename(place.join(&name), place.join(&moved)).unwrap();
                let content = files.remove(&name).unwrap();
                files.insert(moved, content);
            }
            _ => {
                let mut content = vec![0; rng.random_range(1..300_000)];
                rng.fill_bytes(&mut content);
                std::fs::write(place.join(&name), &content).unwrap();
                files.insert(name, content);
            }
        }
        if round % 8 == 0 {
            let directory = std::fs::File::open(place).unwrap();
            rustix::fs::syncfs(&directory).unwrap();
        }
    }
}

fn check_files(place: &Path, files: &Files) {
    let mut names: Vec<_> = std::fs::read_dir(place)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name != "lost+found")
        .collect();
    names.sort();
    assert_eq!(names, files.keys().cloned().collect::<Vec<_>>());
    for (name, content) in files {
        assert!(&std::fs::read(place.join(name)).unwrap() == content, "{name}");
    }
}

fn lives_through_a_migration(make: &[&str], check: &[&str], size: &str) {
    if !can_mount() || !installed(&["nbdfuse", "losetup", make[0], check[0]]) {
        return;
    }
    let ferry = Ferry::new();
    let mut rng = StdRng::seed_from_u64(seed(make[0]));
    let mut files = Files::new();
    let never = AtomicBool::new(true);
    ferry.ok(&["create", "rbd/src", "--size", size, "--object-size", "4M"]);
    let served = ferry.serve(&["rbd/src"]);
    let mut disk = Mounted::attach(&served, "rbd/src", &ferry.path(""));
    let words: Vec<_> = make[1..].iter().copied().chain([disk.device()]).collect();
    run_ok(make[0], &words);
    let place = disk.mount();
    change_files(&place, &mut files, &mut rng, 60, &never);
    // A snapshot by the command, of an image that another process writes.
    ferry.ok(&["snap", "create", "rbd/src@one", "--no-progress"]);
    change_files(&place, &mut files, &mut rng, 30, &never);
    ferry
        .rbd(&["migration", "prepare", "rbd/src", "fast/dst"])
        .fails(16, "(16) Device or resource busy");
    disk.detach();
    served.stop();
    let snapshot = ferry.export("rbd/src@one");

    ferry.ok(&[
        "migration",
        "prepare",
        "rbd/src",
        "fast/dst",
        "--object-size",
        "1M",
    ]);
    ferry
        .rbd(&["info", "rbd/src"])
        .fails(2, "(2) No such file or directory");
    let served = ferry.serve(&["fast/dst"]);
    let mut disk = Mounted::attach(&served, "fast/dst", &ferry.path(""));
    let place = disk.mount();
    check_files(&place, &files);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| change_files(&place, &mut files, &mut rng, 60, &stop));
        let execute = ferry.start(&["migration", "execute", "fast/dst"]).finish();
        ferry
            .rbd(&["snap", "create", "fast/dst@two", "--no-progress"])
            .ok();
        let state = ferry.migration_state("fast/dst");
        let commit = ferry.rbd(&["migration", "commit", "fast/dst", "--no-progress"]);
        stop.store(true, Ordering::Relaxed);
        writer.join().unwrap();
        execute.ok();
        assert_eq!(state, "executed");
        commit.ok();
    });
    check_files(&place, &files);
    disk.detach();
    let served = {
        served.stop();
        ferry.serve(&["fast/dst"])
    };

    // A fresh client, nothing cached anywhere.
    let disk = Mounted::attach(&served, "fast/dst", &ferry.path(""));
    let words: Vec<_> = check[1..].iter().copied().chain([disk.device()]).collect();
    run(Command::new(check[0]).args(words)).ok();
    let mut disk = disk;
    let place = disk.mount();
    check_files(&place, &files);
    disk.detach();
    served.stop();
    assert!(
        ferry.export("fast/dst@one") == snapshot,
        "the snapshot has changed"
    );
    assert_eq!(ferry.ok(&["trash", "ls", "--all"]), "");
}

#[test]
fn an_ext4_in_use_lives_through_a_migration_and_checks_clean() {
    lives_through_a_migration(&["mkfs.ext4", "-q", "-F"], &["e2fsck", "-f", "-n"], "64M");
}

#[test]
fn an_xfs_in_use_lives_through_a_migration_and_checks_clean() {
    // Newer mkfs.xfs refuses less than 300 MiB.
    lives_through_a_migration(&["mkfs.xfs", "-q", "-f"], &["xfs_repair", "-n"], "320M");
}
