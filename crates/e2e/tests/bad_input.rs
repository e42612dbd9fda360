//! What goes wrong outside: a full disk, an unreadable, newer or damaged store, a pool whose directory is gone. Ferry
//! says what, where and what to do; nothing half-made remains, and what is not concerned goes on.

#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use bytes::Bytes;
use ferry_e2e::ferry::binary;
use ferry_e2e::load::connect;
use ferry_e2e::tools::{is_root, skip};
use ferry_e2e::{Ferry, run, run_ok};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const MIB: usize = 1 << 20;

fn noise(bytes: usize) -> Vec<u8> {
    let mut data = vec![0; bytes];
    StdRng::seed_from_u64(7).fill_bytes(&mut data);
    data
}

/// A small file system of its own, unmounted at the end.
struct Tmpfs(PathBuf);

impl Tmpfs {
    fn mount(place: PathBuf, size: &str) -> Option<Self> {
        if !is_root() {
            skip("mounting a tmpfs needs root");
            return None;
        }
        std::fs::create_dir_all(&place).unwrap();
        run_ok(
            "mount",
            &[
                "-t",
                "tmpfs",
                "-o",
                &format!("size={size}"),
                "tmpfs",
                &place.to_string_lossy(),
            ],
        );
        Some(Self(place))
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        run(Command::new("umount").arg("--lazy").arg(&self.0));
    }
}

/// Bytes that the file system of `path` has left.
fn free_bytes(path: &Path) -> u64 {
    let stat = rustix::fs::statvfs(path).unwrap();
    stat.f_bavail * stat.f_frsize
}

#[test]
fn an_import_onto_a_full_disk_leaves_nothing_and_the_store_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let Some(disk) = Tmpfs::mount(directory.path().join("disk"), "16M") else {
        return;
    };
    let ferry = Ferry::at(disk.0.join("store"), directory);
    ferry.import(&noise(2 * MIB), "kept", &["--object-size", "1M"]);
    let before = free_bytes(&disk.0);
    let big = ferry.file("big");
    std::fs::write(&big, noise(24 * MIB)).unwrap();
    let failed = ferry
        .rbd(&["import", &big, "big"])
        .fails(28, "rbd: import failed: (28) No space left on device");
    assert!(
        failed.stderr.contains(&*ferry.store().to_string_lossy()),
        "it says where: {failed}"
    );
    assert_eq!(ferry.ok(&["ls"]), "kept\n");
    assert_eq!(ferry.ok(&["trash", "ls", "--all"]), "");
    assert!(
        before.saturating_sub(free_bytes(&disk.0)) < MIB as u64,
        "the space is back: {before} before, {} after",
        free_bytes(&disk.0)
    );
    assert!(ferry.export("kept") == noise(2 * MIB));
    ferry.ok(&["create", "small", "--size", "1M"]);
}

#[test]
fn an_execute_that_runs_out_of_space_stops_and_goes_on_once_there_is_room() {
    let directory = tempfile::tempdir().unwrap();
    let Some(disk) = Tmpfs::mount(directory.path().join("disk"), "16M") else {
        return;
    };
    let ferry = Ferry::at(directory.path().join("store"), directory);
    let pool = disk.0.join("pool");
    ferry.ok(&["pool", "create", "tight", "--path", &pool.to_string_lossy()]);
    let data = noise(8 * MIB);
    ferry.import(&data, "disk", &["--object-size", "1M"]);
    ferry.ok(&["migration", "prepare", "disk", "tight/disk"]);
    let ballast = disk.0.join("ballast");
    std::fs::write(&ballast, vec![1; free_bytes(&disk.0) as usize - 3 * MIB]).unwrap();
    ferry
        .rbd(&["migration", "execute", "tight/disk", "--on-enospc", "fail"])
        .fails(28, "rbd: migration failed: (28) No space left on device");
    assert_eq!(ferry.migration_state("tight/disk"), "executing");
    assert!(ferry.export("tight/disk") == data, "every byte can still be read");
    std::fs::remove_file(&ballast).unwrap();
    ferry.ok(&["migration", "execute", "tight/disk", "--no-progress"]);
    ferry.ok(&["migration", "commit", "tight/disk", "--no-progress"]);
    assert!(ferry.export("tight/disk") == data);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_served_write_onto_a_full_disk_gets_the_protocol_s_error_and_the_server_lives() {
    let directory = tempfile::tempdir().unwrap();
    let Some(disk) = Tmpfs::mount(directory.path().join("disk"), "16M") else {
        return;
    };
    let ferry = Ferry::at(disk.0.join("store"), directory);
    ferry.ok(&["create", "disk", "--size", "64M", "--object-size", "1M"]);
    let served = ferry.serve(&["rbd/disk"]);
    let client = connect(&served.socket, "rbd/disk").await;
    let block = Bytes::from(noise(MIB));
    let mut written = 0;
    let error = loop {
        match client.write(written * MIB as u64, block.clone(), false).await {
            Ok(()) => written += 1,
            Err(error) => break error,
        }
        assert!(written < 64, "16 MiB hold no 64");
    };
    assert!(error.to_string().to_uppercase().contains("ENOSPC"), "{error}");
    for place in 0..written {
        let data = client.read(place * MIB as u64, MIB as u32).await.unwrap();
        assert!(data == block, "MiB {place} was acknowledged");
    }
    drop(client);
    served.stop();
}

#[test]
fn what_is_no_store_is_named_and_left_alone() {
    let ferry = Ferry::bare();
    std::fs::write(ferry.path("file"), "text").unwrap();
    std::fs::create_dir(ferry.path("other")).unwrap();
    std::fs::write(ferry.path("other/letter"), "dear").unwrap();
    for name in ["file", "other"] {
        let path = ferry.file(name);
        let failed = run(Command::new(binary()).args(["--store", &path, "create", "disk", "--size", "1M"]));
        assert_ne!(failed.code, 0, "{failed}");
        assert!(
            failed.stderr.contains(&format!("cannot open the store '{path}'")),
            "{failed}"
        );
    }
    let left: Vec<_> = std::fs::read_dir(ferry.path("other")).unwrap().collect();
    assert_eq!(left.len(), 1, "{left:?}");
    assert_eq!(std::fs::read_to_string(ferry.path("file")).unwrap(), "text");
}

#[test]
fn a_store_that_this_user_may_not_read_is_named() {
    if !is_root() {
        // Root reads everything, so the test plays another user; others have no such choice.
        skip("becoming another user needs root");
        return;
    }
    let ferry = Ferry::new();
    ferry.ok(&["create", "disk", "--size", "1M"]);
    // The binary may lie where other users can't go.
    let public = tempfile::tempdir().unwrap();
    std::fs::set_permissions(public.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let copy = public.path().join("rbd");
    std::fs::copy(binary(), &copy).unwrap();
    let failed = run(Command::new(&copy)
        .arg("--store")
        .arg(ferry.store())
        .arg("ls")
        .current_dir("/")
        .uid(65534)
        .gid(65534))
    .fails(13, "(13) Permission denied");
    assert!(
        failed.stderr.contains(&*ferry.store().to_string_lossy()),
        "{failed}"
    );
    assert_eq!(ferry.ok(&["ls"]), "disk\n");
}

#[test]
fn a_store_of_a_newer_format_is_refused_and_not_touched() {
    let ferry = Ferry::new();
    ferry.ok(&["create", "disk", "--size", "1M"]);
    let database = ferry.store().join("store.db");
    without_checksums(&database);
    let set_format = |format: i64| {
        let connection = rusqlite::Connection::open(&database).unwrap();
        let changed = connection
            .execute("UPDATE meta SET value = ?1 WHERE key = 'format'", [format])
            .unwrap();
        assert_eq!(changed, 1);
        connection
            .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
            .unwrap();
    };
    set_format(1000);
    let bytes = std::fs::read(&database).unwrap();
    for words in [&["ls"][..], &["create", "new", "--size", "1M"]] {
        let failed = ferry.rbd(words).fails(95, "use a newer version");
        assert!(failed.stderr.contains("1000"), "{failed}");
    }
    assert!(std::fs::read(&database).unwrap() == bytes);
    set_format(1);
    assert_eq!(ferry.ok(&["ls"]), "disk\n");
    ferry.ok(&["create", "new", "--size", "1M"]);
    assert_eq!(ferry.ok(&["ls"]), "disk\nnew\n");
}

/// Makes a database one of a time before its pages had checksums: such a one can be changed by any program.
fn without_checksums(database: &std::path::Path) {
    let copy = database.with_extension("copy");
    let new = rusqlite::Connection::open(&copy).unwrap();
    new.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))
        .unwrap();
    new.execute("ATTACH ?1 AS old", [database.to_str().unwrap()])
        .unwrap();
    let objects: Vec<(String, String, String)> = new
        .prepare("SELECT type, name, sql FROM old.sqlite_master WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite_%'")
        .unwrap()
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap();
    for (_, _, sql) in &objects {
        new.execute_batch(sql).unwrap();
    }
    for (_, table, _) in objects.iter().filter(|(kind, ..)| kind == "table") {
        new.execute_batch(&format!(
            "INSERT INTO main.\"{table}\" SELECT * FROM old.\"{table}\""
        ))
        .unwrap();
    }
    new.execute_batch("DETACH old").unwrap();
    new.close().unwrap();
    for log in ["db-wal", "db-shm"] {
        let _ = std::fs::remove_file(database.with_extension(log));
    }
    std::fs::rename(copy, database).unwrap();
}

#[test]
fn a_damaged_database_is_reported_with_its_place_never_taken_for_an_empty_store() {
    let ferry = Ferry::new();
    ferry.ok(&["create", "disk", "--size", "1M"]);
    let database = ferry.store().join("store.db");
    std::fs::write(&database, noise(64 * 1024)).unwrap();
    for words in [&["ls"][..], &["create", "disk", "--size", "1M"]] {
        let failed = ferry.rbd(words);
        assert_ne!(failed.code, 0, "{failed}");
        assert!(failed.stderr.contains("store.db"), "{failed}");
    }
}

#[test]
fn a_pool_whose_directory_is_gone_is_named_and_the_others_go_on() {
    let ferry = Ferry::new();
    let (place, away) = (ferry.path("far"), ferry.path("far.away"));
    ferry.ok(&["pool", "create", "far", "--path", &place.to_string_lossy()]);
    ferry.import(&noise(MIB), "far/disk", &[]);
    ferry.import(&noise(2 * MIB), "near", &[]);
    std::fs::rename(&place, &away).unwrap();

    for words in [
        &["ls", "far"][..],
        &["info", "far/disk"],
        &["create", "far/new", "--size", "1M"],
        &["migration", "prepare", "near", "far/near"],
    ] {
        let failed = ferry.rbd(words).fails(5, "(5) Input/output error");
        assert!(
            failed.stderr.contains("'far'") && failed.stderr.contains(&*place.to_string_lossy()),
            "it says which pool and where: {failed}"
        );
    }
    assert!(!place.exists(), "nothing was made in its place");
    assert_eq!(ferry.ok(&["ls"]), "near\n");
    assert_eq!(ferry.ok(&["trash", "ls", "--all"]), "");
    assert!(ferry.export("near") == noise(2 * MIB));

    std::fs::rename(&away, &place).unwrap();
    assert!(ferry.export("far/disk") == noise(MIB));
}

#[test]
fn a_taken_socket_and_a_missing_export_are_named() {
    let ferry = Ferry::new();
    ferry.ok(&["create", "disk", "--size", "1M"]);
    let served = ferry.serve(&["rbd/disk"]);
    let second = ferry.rbd(&["serve", "--socket", &served.socket.to_string_lossy(), "rbd/disk"]);
    assert_ne!(second.code, 0, "{second}");
    assert!(
        second.stderr.contains(&*served.socket.to_string_lossy()),
        "{second}"
    );
    served.stop();
    let socket = ferry.file("other.sock");
    ferry
        .rbd(&["serve", "--socket", &socket, "rbd/never"])
        .fails(2, "(2) No such file or directory");
    assert!(!Path::new(&socket).exists());
}
