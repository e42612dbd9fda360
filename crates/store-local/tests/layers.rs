//! Layers: power loss between a snapshot and a flush, long chains, and what removing snapshots gives back. Random tests
//! print a seed; `FERRY_SEED` replays it.

#![allow(clippy::unwrap_used)]

mod common;

use bytes::Bytes;
use common::{at, buffered, context, full, head, io, open};
use ferry_store::{SnapId, Store, WriteOp};
use ferry_store_local::disk::sim::{Fault, SimDisk};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

const BLOCK: usize = 4096;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unflushed_blocks_of_a_new_layer_fall_back_to_the_snapshots_bytes_never_to_zeros() {
    let first = ferry_reference::seed();
    for seed in (0..30).map(|round| first.wrapping_add(round)) {
        for sim in [SimDisk::new(), SimDisk::with_reflinks()] {
            let dir = tempfile::tempdir().unwrap();
            let root = dir.path().join("s");
            let store = open(&root, Some(&sim)).unwrap();
            let before = io(&store);
            before
                .write_meta("o", full().write(0, vec![1; 16 * BLOCK]))
                .await
                .unwrap();
            let snap = store.snap_id_create(before.pool()).await.unwrap();
            let now = context(&[snap]);
            before
                .write("o", &now, buffered().write(100, vec![2; 3 * BLOCK]))
                .await
                .unwrap();
            if seed % 2 == 0 {
                store.flush(before.scope(), "o").await.unwrap();
            }
            before
                .write("o", &now, buffered().write(8 * BLOCK as u64 + 5, vec![3; BLOCK]))
                .await
                .unwrap();
            store.abandon();
            sim.crash(seed);
            let store = open(&root, Some(&sim)).unwrap();
            let after = io(&store);
            assert_eq!(
                at(&after, "o", snap).await.unwrap(),
                vec![1; 16 * BLOCK],
                "seed {seed}"
            );
            let found = head(&after, "o").await.unwrap();
            assert_eq!(found.len(), 16 * BLOCK, "seed {seed}");
            for (index, byte) in found.iter().enumerate() {
                let second = (100..100 + 3 * BLOCK).contains(&index);
                let third = (8 * BLOCK + 5..9 * BLOCK + 5).contains(&index);
                let right = match byte {
                    1 => !(second && seed % 2 == 0),
                    2 => second,
                    3 => third,
                    _ => false,
                };
                assert!(right, "byte {index} is {byte}, seed {seed}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unflushed_new_object_is_whole_or_absent_after_power_loss() {
    let first = ferry_reference::seed();
    for seed in (0..20).map(|round| first.wrapping_add(round)) {
        let (dir, sim) = (tempfile::tempdir().unwrap(), SimDisk::new());
        let root = dir.path().join("s");
        let store = open(&root, Some(&sim)).unwrap();
        let before = io(&store);
        for name in ["flushed", "lost", "settled"] {
            before
                .write_meta(name, buffered().write(0, vec![9; 50_000]))
                .await
                .unwrap();
        }
        store.flush(before.scope(), "flushed").await.unwrap();
        // A full operation makes what it rests on durable too.
        let key = ferry_store::WriteStep::SetXattr {
            name: "x".into(),
            value: "y".into(),
        };
        before
            .write_meta("settled", WriteOp::new().step(key))
            .await
            .unwrap();
        store.abandon();
        sim.crash(seed);
        let store = open(&root, Some(&sim)).unwrap();
        let after = io(&store);
        for name in ["flushed", "settled"] {
            assert_eq!(
                head(&after, name).await.unwrap(),
                vec![9; 50_000],
                "{name}, seed {seed}"
            );
        }
        assert_eq!(
            head(&after, "lost").await,
            None,
            "bytes that were never durable, seed {seed}"
        );
        let listed = store.list_objects(after.scope(), "", "", 10).await.unwrap();
        assert_eq!(listed, ["flushed", "settled"], "seed {seed}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_snapshots_read_right_and_their_removal_gives_the_room_back() {
    let seed = ferry_reference::seed();
    let mut rng = StdRng::seed_from_u64(seed);
    let (dir, sim) = (tempfile::tempdir().unwrap(), SimDisk::new());
    let store = open(&dir.path().join("s"), Some(&sim)).unwrap();
    let io = io(&store);
    let mut now = vec![0u8; 64 * BLOCK];
    rng.fill(&mut now[..]);
    io.write_meta("o", full().write(0, now.clone())).await.unwrap();
    let (mut snaps, mut history): (Vec<SnapId>, Vec<Bytes>) = (Vec::new(), Vec::new());
    for _ in 0..40 {
        snaps.push(store.snap_id_create(io.pool()).await.unwrap());
        history.push(now.clone().into());
        for _ in 0..2 {
            let (start, length) = (rng.random_range(0..60 * BLOCK), rng.random_range(1..2 * BLOCK));
            let fill = rng.random::<u8>();
            now[start..start + length].fill(fill);
            let op = buffered().write(start as u64, vec![fill; length]);
            io.write("o", &context(&snaps), op).await.unwrap();
        }
    }
    while !snaps.is_empty() {
        let index = rng.random_range(0..snaps.len());
        store
            .snap_id_remove(io.pool(), snaps.remove(index))
            .await
            .unwrap();
        history.remove(index);
        for (snap, expected) in snaps.iter().zip(&history) {
            assert!(
                at(&io, "o", *snap).await.unwrap() == *expected,
                "{snap}, seed {seed}"
            );
        }
        assert!(head(&io, "o").await.unwrap() == now, "head, seed {seed}");
    }
    let files = sim.file_names();
    let data: Vec<_> = files
        .iter()
        .filter(|file| file.extension().is_none_or(|end| end != "map"))
        .collect();
    // What is left is the head, and at the most one layer below that was too different to merge yet.
    let limit = now.len() as u64 + 64 * 1024;
    assert!(
        data.len() <= 2 && sim.used_bytes() <= 2 * limit,
        "{data:?} {} bytes, seed {seed}",
        sim.used_bytes()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_small_write_after_a_snapshot_does_not_copy_the_object() {
    let (dir, sim) = (tempfile::tempdir().unwrap(), SimDisk::new());
    let store = open(&dir.path().join("s"), Some(&sim)).unwrap();
    let io = io(&store);
    io.write_meta("o", full().write(0, vec![1; 256 * BLOCK]))
        .await
        .unwrap();
    let used = sim.used_bytes();
    let snap = store.snap_id_create(io.pool()).await.unwrap();
    io.write("o", &context(&[snap]), full().write(5000, vec![2; 10]))
        .await
        .unwrap();
    assert!(
        sim.used_bytes() - used <= 3 * BLOCK as u64,
        "{} more bytes",
        sim.used_bytes() - used
    );
    let listed = io.list_snaps("o", &[]).await.unwrap();
    assert_eq!(listed.clones[0].overlap.as_ref().unwrap().len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_dies_while_cutting_a_chain_takes_no_unflushed_block_along() {
    for sim_of in [SimDisk::new, SimDisk::with_reflinks] {
        for trims in [false, true] {
            let mut died = 0;
            for before in 0.. {
                let (dir, sim) = (tempfile::tempdir().unwrap(), sim_of());
                let root = dir.path().join("s");
                let store = open(&root, Some(&sim)).unwrap();
                let writer = io(&store);
                let mut now = vec![1; 16 * BLOCK];
                writer
                    .write_meta("o", full().write(0, now.clone()))
                    .await
                    .unwrap();
                let (mut snaps, mut history) = (Vec::new(), Vec::new());
                // Eight layers, so that the next clone makes the head stand for itself first; and the head has blocks enough
                // for that to happen too when the layer below is merged.
                for round in 0..7u8 {
                    snaps.push(store.snap_id_create(writer.pool()).await.unwrap());
                    history.push(now.clone());
                    let start = usize::from(round) * BLOCK + 7;
                    now[start..start + 2 * BLOCK].fill(10 + round);
                    let op = buffered().write(start as u64, vec![10 + round; 2 * BLOCK]);
                    writer.write("o", &context(&snaps), op).await.unwrap();
                }
                now[9 * BLOCK..].fill(99);
                let last = buffered().write(9 * BLOCK as u64, vec![99; 7 * BLOCK]);
                writer.write("o", &context(&snaps), last).await.unwrap();
                let next = store.snap_id_create(writer.pool()).await.unwrap();
                sim.fail_after(Fault::Writes, before, u64::MAX);
                let outcome = match trims {
                    true => store.snap_id_remove(writer.pool(), snaps.remove(6)).await,
                    false => {
                        let op = buffered().write(0, now[..10].to_vec());
                        let all: Vec<SnapId> = snaps.iter().copied().chain([next]).collect();
                        writer.write("o", &context(&all), op).await.map(|_| ())
                    }
                };
                store.abandon();
                sim.fail(Fault::Writes, 0);
                let store = open(&root, Some(&sim)).unwrap();
                let after = io(&store);
                assert!(
                    head(&after, "o").await.unwrap() == now,
                    "head, {before} writes, trims: {trims}"
                );
                for (snap, expected) in snaps.iter().zip(&history) {
                    assert!(
                        at(&after, "o", *snap).await.unwrap() == *expected,
                        "{snap}, {before} writes"
                    );
                }
                match outcome {
                    Ok(()) => break,
                    Err(_) => died += 1,
                }
                assert!(before < 200, "it never got through");
            }
            assert!(died > 0, "nothing failed");
        }
    }
}
