//! What the engine does when the medium fails, is full, is gone, or is of a newer program.

#![allow(clippy::unwrap_used)]

mod common;

use common::{at, buffered, context, files_below, full, head, io, open};
use ferry_store::{Errno, IoCtx, PoolOptions, ReadOp, Scope, SnapId, Store, WriteOp};
use ferry_store_local::disk::sim::{Fault, SimDisk};
use rusqlite::{Connection, OpenFlags};

fn two_threads() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
}

/// A database of a store that was opened in this process, by the store's own file layer: pages that are changed get their checksums.
fn database(path: &std::path::Path) -> Connection {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    Connection::open_with_flags_and_vfs(path, flags, "ferry-checked").unwrap()
}

#[test]
fn a_read_error_is_an_error_and_never_zeros() {
    two_threads().block_on(async {
        let (dir, sim) = (tempfile::tempdir().unwrap(), SimDisk::new());
        let store = open(&dir.path().join("s"), Some(&sim)).unwrap();
        let io = io(&store);
        io.write_meta("o", full().write(0, vec![7; 10_000]))
            .await
            .unwrap();
        sim.fail(Fault::Reads, 1);
        let error = io
            .read("o", SnapId::HEAD, ReadOp::new().read(0, 100))
            .await
            .unwrap_err();
        assert_eq!(error.errno, Errno::EIO);
        assert!(error.what.contains("data/"), "'{error}' names no file");
        assert_eq!(head(&io, "o").await.unwrap(), vec![7; 10_000]);
    });
}

#[test]
fn a_failed_sync_fails_the_flush_and_poisons_these_objects_only() {
    two_threads().block_on(async {
        let (dir, sim) = (tempfile::tempdir().unwrap(), SimDisk::new());
        let store = open(&dir.path().join("s"), Some(&sim)).unwrap();
        let io = io(&store);
        for name in ["a.1", "b.1"] {
            io.write_meta(name, buffered().write(0, vec![1; 5000]))
                .await
                .unwrap();
        }
        sim.fail(Fault::Syncs, 1);
        assert_eq!(store.flush(io.scope(), "a.").await.unwrap_err().errno, Errno::EIO);
        assert_eq!(store.flush(io.scope(), "a.").await.unwrap_err().errno, Errno::EIO);
        let refused = io.write_meta("a.2", buffered().write(0, "x")).await.unwrap_err();
        assert_eq!(refused.errno, Errno::EIO);
        io.write_meta("b.1", buffered().write(0, "x")).await.unwrap();
        store.flush(io.scope(), "b.").await.unwrap();
    });
}

#[test]
fn a_failed_sync_fails_the_full_write_that_needed_it() {
    two_threads().block_on(async {
        let (dir, sim) = (tempfile::tempdir().unwrap(), SimDisk::new());
        let store = open(&dir.path().join("s"), Some(&sim)).unwrap();
        let io = io(&store);
        io.write_meta("o", full().write(0, vec![1; 5000])).await.unwrap();
        sim.fail(Fault::Syncs, 1);
        let made = io.write_meta("new", full().write(0, "x")).await.unwrap_err();
        assert_eq!(made.errno, Errno::EIO);
        assert!(head(&io, "new").await.is_none(), "half-made");
        sim.fail(Fault::Syncs, 1);
        let error = io
            .write_meta("o", full().write(0, vec![2; 5000]))
            .await
            .unwrap_err();
        assert_eq!(error.errno, Errno::EIO);
        let found = head(&io, "o").await.unwrap();
        assert!(
            found == vec![1; 5000] || found == vec![2; 5000],
            "a mixture of old and new"
        );
    });
}

#[test]
fn a_full_disk_refuses_writes_and_leaves_nothing_half_made() {
    two_threads().block_on(async {
        let (dir, sim) = (tempfile::tempdir().unwrap(), SimDisk::new());
        let store = open(&dir.path().join("s"), Some(&sim)).unwrap();
        let io = io(&store);
        io.write_meta("o", full().write(0, vec![1; 100_000]))
            .await
            .unwrap();
        let snap = store.snap_id_create(io.pool()).await.unwrap();
        sim.set_capacity(Some(sim.used_bytes() + 20_000));
        let files = sim.file_names();
        for op in [full(), buffered()] {
            let error = io
                .write_meta("new", op.write(0, vec![2; 50_000]))
                .await
                .unwrap_err();
            assert_eq!(error.errno, Errno::ENOSPC);
        }
        for op in [full(), buffered()] {
            let grown = io
                .write_meta("o", op.clone().write(90_000, vec![2; 90_000]))
                .await
                .unwrap_err();
            assert_eq!(grown.errno, Errno::ENOSPC);
            let cloned = io
                .write("o", &context(&[snap]), op.write(0, vec![3; 90_000]))
                .await
                .unwrap_err();
            assert_eq!(cloned.errno, Errno::ENOSPC);
        }
        assert_eq!(sim.file_names(), files, "files of refused writes");
        assert!(head(&io, "new").await.is_none());
        assert_eq!(head(&io, "o").await.unwrap(), vec![1; 100_000]);
        assert_eq!(
            io.list_snaps("o", &[]).await.unwrap().clones.len(),
            1,
            "clones of refused writes"
        );
        sim.set_capacity(None);
        io.write("o", &context(&[snap]), full().write(0, vec![3; 90_000]))
            .await
            .unwrap();
        assert_eq!(at(&io, "o", snap).await.unwrap(), vec![1; 100_000]);
    });
}

#[test]
fn a_missing_or_short_data_file_is_an_error_with_its_place() {
    two_threads().block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("s");
        {
            let store = open(&root, None).unwrap();
            io(&store)
                .write_meta("short", full().write(0, vec![1; 9000]))
                .await
                .unwrap();
            let snap = store.snap_id_create(io(&store).pool()).await.unwrap();
            io(&store)
                .write("short", &context(&[snap]), full().write(0, "x"))
                .await
                .unwrap();
            store.shutdown().await.unwrap();
        }
        let data = root.join("pools/1/data");
        let mut files: Vec<_> = files_below(&data)
            .into_iter()
            .filter(|file| file.extension().is_none_or(|end| end != "map"))
            .collect();
        files.sort_by_key(|file| file.metadata().unwrap().modified().unwrap());
        assert_eq!(files.len(), 2);
        std::fs::File::options()
            .write(true)
            .open(&files[0])
            .unwrap()
            .set_len(5000)
            .unwrap();
        let store = open(&root, None).unwrap();
        let whole = ReadOp::new().read(0, 9000);
        let error = io(&store)
            .read("short", SnapId::HEAD, whole.clone())
            .await
            .unwrap_err();
        assert_eq!(error.errno, Errno::EIO);
        assert!(
            error.what.contains(files[0].to_str().unwrap()),
            "'{error}' does not name the file"
        );
        drop(store);
        std::fs::remove_file(&files[1]).unwrap();
        let store = open(&root, None).unwrap();
        let error = io(&store).read("short", SnapId::HEAD, whole).await.unwrap_err();
        assert_eq!(error.errno, Errno::EIO);
        assert!(
            error.what.contains(files[1].to_str().unwrap()),
            "'{error}' does not name the file"
        );
    });
}

#[test]
fn a_store_or_pool_of_a_newer_format_is_refused() {
    two_threads().block_on(async {
        for (file, opens) in [("store.db", false), ("pools/1/pool.db", true)] {
            let dir = tempfile::tempdir().unwrap();
            let root = dir.path().join("s");
            drop(open(&root, None).unwrap());
            let raise = |format: i64| {
                let connection = database(&root.join(file));
                connection
                    .execute("UPDATE meta SET value = ?1 WHERE key = 'format'", [format])
                    .unwrap();
            };
            raise(99);
            let error = match open(&root, None) {
                Err(error) => error,
                Ok(store) => {
                    assert!(opens, "{file} of format 99 was opened");
                    io(&store)
                        .write_meta("o", WriteOp::new().create(true))
                        .await
                        .unwrap_err()
                }
            };
            assert_eq!(error.errno, Errno::EOPNOTSUPP, "{error}");
            assert!(
                error.what.contains(file) && error.what.contains("99"),
                "'{error}'"
            );
            raise(1);
            let store = open(&root, None).unwrap();
            io(&store)
                .write_meta("o", WriteOp::new().create(true))
                .await
                .unwrap();
            let connection = database(&root.join(file));
            let format: i64 = connection
                .query_row("SELECT value FROM meta WHERE key = 'format'", [], |row| {
                    row.get(0)
                })
                .unwrap();
            assert_eq!(format, if opens { 2 } else { 1 }, "{file} after it was format 1");
        }
    });
}

#[test]
fn a_damaged_database_is_an_error_with_its_path() {
    two_threads().block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("s");
        drop(open(&root, None).unwrap());
        let database = root.join("pools/1/pool.db");
        std::fs::write(&database, vec![0x5a; 8192]).unwrap();
        let store = open(&root, None).unwrap();
        let error = io(&store)
            .read("o", SnapId::HEAD, ReadOp::new().stat())
            .await
            .unwrap_err();
        assert_eq!(error.errno, Errno::EIO);
        assert!(
            error.what.contains(database.to_str().unwrap()),
            "'{error}' does not name the file"
        );
    });
}

#[test]
fn a_pool_whose_directory_is_gone_is_named_and_others_go_on() {
    two_threads().block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let (root, disk) = (dir.path().join("s"), dir.path().join("disk"));
        let pool = {
            let store = open(&root, None).unwrap();
            let options = PoolOptions {
                dir: Some(disk.clone()),
            };
            let pool = store.pool_create("far", options.clone()).await.unwrap();
            let again = store.pool_create("other", options).await.unwrap_err();
            assert_eq!(again.errno, Errno::ENOTEMPTY, "{again}");
            let far = IoCtx::new(store.clone(), Scope::new(pool));
            far.write_meta("o", full().write(0, "far away")).await.unwrap();
            pool
        };
        let aside = dir.path().join("aside");
        std::fs::rename(&disk, &aside).unwrap();
        for replaced in [false, true] {
            if replaced {
                std::fs::create_dir(&disk).unwrap();
            }
            let store = open(&root, None).unwrap();
            let far = IoCtx::new(store.clone(), Scope::new(pool));
            let error = far
                .read("o", SnapId::HEAD, ReadOp::new().stat())
                .await
                .unwrap_err();
            assert_eq!(error.errno, Errno::EIO);
            let text = error.to_string();
            assert!(
                text.contains("'far'") && text.contains(disk.to_str().unwrap()),
                "{text}"
            );
            io(&store).write_meta("o", full().write(0, "near")).await.unwrap();
            assert_eq!(store.pool_list().await.unwrap().len(), 2);
        }
        std::fs::remove_dir(&disk).unwrap();
        std::fs::rename(&aside, &disk).unwrap();
        let store = open(&root, None).unwrap();
        let far = IoCtx::new(store.clone(), Scope::new(pool));
        assert_eq!(head(&far, "o").await.unwrap(), "far away");
        store.pool_remove("far").await.unwrap();
        assert!(!disk.exists(), "the directory of a removed pool stays");
    });
}

#[test]
fn a_directory_with_other_things_is_neither_taken_for_a_store_nor_for_a_pool() {
    two_threads().block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let precious = dir.path().join("precious");
        std::fs::write(&precious, "data").unwrap();
        assert_eq!(open(dir.path(), None).unwrap_err().errno, Errno::EINVAL);
        let store = open(&dir.path().join("s"), None).unwrap();
        for (path, errno) in [
            (dir.path().to_owned(), Errno::ENOTEMPTY),
            ("relative".into(), Errno::EINVAL),
        ] {
            let error = store
                .pool_create("p", PoolOptions { dir: Some(path) })
                .await
                .unwrap_err();
            assert_eq!(error.errno, errno, "{error}");
        }
        assert_eq!(std::fs::read_to_string(&precious).unwrap(), "data");
        assert_eq!(store.pool_list().await.unwrap().len(), 1);
    });
}

#[test]
fn a_flush_beside_one_that_fails_fails_too() {
    two_threads().block_on(async {
        let (dir, sim) = (tempfile::tempdir().unwrap(), SimDisk::new());
        let store = open(&dir.path().join("s"), Some(&sim)).unwrap();
        let io = io(&store);
        for round in 0..50 {
            let prefix = format!("r{round}.");
            io.write_meta(&format!("{prefix}x"), buffered().write(0, vec![1; 5000]))
                .await
                .unwrap();
            sim.fail(Fault::Syncs, 1);
            let flush = || {
                let (io, prefix) = (io.clone(), prefix.clone());
                tokio::spawn(async move { io.store().flush(io.scope(), &prefix).await })
            };
            let (one, other) = (flush(), flush());
            let (one, other) = (one.await.unwrap(), other.await.unwrap());
            assert!(
                one.is_err() && other.is_err(),
                "round {round}: {one:?}, {other:?}"
            );
        }
    });
}

#[test]
fn a_pool_whose_making_was_cut_short_is_made_at_the_next_try() {
    two_threads().block_on(async {
        for marker in ["", "fe"] {
            let dir = tempfile::tempdir().unwrap();
            let root = dir.path().join("s");
            drop(open(&root, None).unwrap());
            let pool = dir.path().join("disk");
            std::fs::create_dir(&pool).unwrap();
            std::fs::write(pool.join("ferry-pool"), marker).unwrap();
            let store = open(&root, None).unwrap();
            let options = PoolOptions { dir: Some(pool) };
            let made = store.pool_create("p", options).await;
            let whole = std::fs::read_to_string(dir.path().join("disk/ferry-pool")).unwrap();
            assert!(
                made.is_ok() && whole.starts_with(marker),
                "marker '{marker}': {made:?}"
            );
        }
    });
}

#[test]
fn a_change_that_a_full_disk_could_not_finish_is_refused_before_it_counts() {
    two_threads().block_on(async {
        let (dir, sim) = (tempfile::tempdir().unwrap(), SimDisk::new());
        let store = open(&dir.path().join("s"), Some(&sim)).unwrap();
        let io = io(&store);
        io.write_meta("o", full().write(0, vec![1; 65_536]))
            .await
            .unwrap();
        let snap = store.snap_id_create(io.pool()).await.unwrap();
        let now = context(&[snap]);
        io.write("o", &now, full().write(0, vec![2; 4096])).await.unwrap();
        let before = head(&io, "o").await.unwrap();
        sim.set_capacity(Some(sim.used_bytes()));
        for op in [
            full().write(20_490, "x"),
            full().zero(20_490, 4096),
            // The first block of it needs no room.
            full().zero(20_480, 6000),
            buffered().zero(20_480, 6000),
        ] {
            let error = io.write("o", &now, op).await.unwrap_err();
            assert_eq!(error.errno, Errno::ENOSPC, "{error}");
            assert_eq!(head(&io, "o").await.unwrap(), before);
        }
        // Room that suffices for each block, but not for both: as if another took it after the commit.
        sim.set_capacity(Some(sim.used_bytes() + 4096));
        let op = full().write(20_490, "x").write(40_970, "y");
        let error = io.write("o", &now, op).await.unwrap_err();
        assert_eq!(error.errno, Errno::EIO, "{error}");
        assert!(error.what.contains("committed, not yet applied"), "{error}");
        sim.set_capacity(None);
        let mut after = before.to_vec();
        after[20_490] = b'x';
        after[40_970] = b'y';
        assert_eq!(head(&io, "o").await.unwrap(), after);
        assert_eq!(at(&io, "o", snap).await.unwrap(), vec![1; 65_536]);
    });
}

#[test]
fn layers_made_from_one_another_are_damage_and_no_endless_loop() {
    two_threads().block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("s");
        let store = open(&root, None).unwrap();
        let writer = io(&store);
        let mut snaps = Vec::new();
        for round in 0..3 {
            let op = full().write(round * 4096, vec![1; 4096]);
            writer.write("o", &context(&snaps), op).await.unwrap();
            snaps.push(store.snap_id_create(writer.pool()).await.unwrap());
        }
        store.shutdown().await.unwrap();
        drop((writer, store));
        let damage = |head_is_in: bool| {
            let connection = database(&root.join("pools/1/pool.db"));
            connection.execute("UPDATE layers SET chained = 0", []).unwrap();
            let ring = match head_is_in {
                // The head's and the clone's below it from each other: neither comes to the oldest clone.
                true => "UPDATE layers SET parent = CASE lid WHEN 3 THEN 2 WHEN 2 THEN 3 END",
                // Two that go, below one that stays.
                false => "UPDATE layers SET parent = CASE lid WHEN 3 THEN 1 WHEN 1 THEN 2 WHEN 2 THEN 1 END",
            };
            assert_eq!(connection.execute(ring, []).unwrap(), 3);
        };
        damage(true);
        let store = open(&root, None).unwrap();
        let error = io(&store).list_snaps("o", &[]).await.unwrap_err();
        assert_eq!(error.errno, Errno::EIO, "{error}");
        assert!(
            error.what.contains("object 'o'") && error.what.contains("3 from 2"),
            "{error}"
        );
        drop(store);
        damage(false);
        {
            // Both clones go with one snapshot.
            let connection = database(&root.join("pools/1/pool.db"));
            let moved = connection
                .execute("UPDATE bodies SET layer = 2 WHERE layer = 1", [])
                .unwrap();
            assert_eq!(moved, 1);
            let kept = connection
                .execute("DELETE FROM bodies WHERE clone = 1", [])
                .unwrap();
            assert_eq!(kept, 1);
        }
        let store = open(&root, None).unwrap();
        let error = store
            .snap_id_remove(io(&store).pool(), snaps[1])
            .await
            .unwrap_err();
        assert_eq!(error.errno, Errno::EIO, "{error}");
        assert!(
            error.what.contains("object 'o'") && error.what.contains("1 from 2"),
            "{error}"
        );
    });
}
