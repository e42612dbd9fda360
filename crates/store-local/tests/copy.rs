//! Copies made by the engine: what failing media leave, and file systems that share blocks.

#![allow(clippy::unwrap_used)]

mod common;

use common::{OBJECT_BYTES, at, buffered, context, full, head, io, open};
use ferry_store::{CopyRange, Errno, IoCtx, PoolId, Result, Scope, SnapContext, SnapId, Store, WriteOp};
use ferry_store_local::disk::sim::{Fault, SimDisk};

async fn copy(io: &IoCtx, from: &str, snap: SnapId, to: &str, op: WriteOp) -> Result<()> {
    let range = CopyRange {
        object: io.object(from),
        snap,
        offset: 0,
        length_bytes: OBJECT_BYTES,
        target_offset: 0,
    };
    io.copy_into(to, &SnapContext::empty(), op, &[range])
        .await
        .map(|_| ())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_the_medium_refuses_leaves_no_file_behind() {
    for sim in [SimDisk::new(), SimDisk::with_reflinks()] {
        let dir = tempfile::tempdir().unwrap();
        let store = open(&dir.path().join("s"), Some(&sim)).unwrap();
        let io = io(&store);
        io.write_meta(
            "o",
            full().write(0, vec![7; 100_000]).write(1 << 20, vec![8; 5000]),
        )
        .await
        .unwrap();
        io.write_meta("inline", WriteOp::new().write(0, vec![9; 5000]))
            .await
            .unwrap();
        let snap = store.snap_id_create(io.pool()).await.unwrap();
        io.write("o", &context(&[snap]), full().write(5000, vec![1; 10]))
            .await
            .unwrap();
        let files = sim.file_names();
        let mut refused = 0;
        for (from, fault) in [
            ("o", Fault::Writes),
            ("o", Fault::Reads),
            ("o", Fault::Syncs),
            ("inline", Fault::Writes),
        ] {
            for before in 0..20 {
                sim.fail_after(fault, before, u64::MAX);
                let outcome = copy(&io, from, SnapId::HEAD, "c", full()).await;
                sim.fail(fault, 0);
                if outcome.is_ok() {
                    io.write_meta("c", WriteOp::new().remove()).await.unwrap();
                    break;
                }
                refused += 1;
                assert_eq!(outcome.unwrap_err().errno, Errno::EIO);
                assert!(head(&io, "c").await.is_none(), "{fault:?} after {before}");
                assert_eq!(sim.file_names(), files, "{fault:?} after {before}");
            }
        }
        assert!(refused > 3, "{refused} copies were refused");
        sim.set_capacity(Some(sim.used_bytes() + 20_000));
        let error = copy(&io, "o", snap, "c", buffered()).await;
        if let Err(error) = error {
            assert_eq!(error.errno, Errno::ENOSPC);
            assert_eq!(sim.file_names(), files, "files of a copy without room");
        }
        sim.set_capacity(None);
        assert_eq!(at(&io, "o", snap).await.unwrap()[..100_000], vec![7; 100_000]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_file_that_is_shorter_than_its_rows_say_is_damage_and_not_a_hole() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("s");
    let snap = {
        let store = open(&root, None).unwrap();
        let io = io(&store);
        io.write_meta("o", full().write(0, vec![7; 100_000]))
            .await
            .unwrap();
        let snap = store.snap_id_create(io.pool()).await.unwrap();
        io.write("o", &context(&[snap]), full().write(0, "x"))
            .await
            .unwrap();
        store.shutdown().await.unwrap();
        snap
    };
    let file = common::files_below(&root.join("pools/1/data"))
        .into_iter()
        .find(|file| file.metadata().unwrap().len() == 100_000 && std::fs::read(file).unwrap()[0] == 7)
        .unwrap();
    let opened = std::fs::File::options().write(true).open(&file).unwrap();
    opened.set_len(50_000).unwrap();
    let store = open(&root, None).unwrap();
    let io = IoCtx::new(store.clone(), Scope::new(PoolId(1)));
    for snap in [snap, SnapId::HEAD] {
        let error = copy(&io, "o", snap, "c", full()).await.unwrap_err();
        assert_eq!(error.errno, Errno::EIO);
        assert!(error.what.contains(file.to_str().unwrap()), "{error}");
    }
    assert!(head(&io, "c").await.is_none());
}
