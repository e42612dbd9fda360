//! What a snapshot and the head over it hold after writes that nobody flushed: when the power goes, when the writer dies,
//! when the medium refuses; with one handle and with two. Random tests print a seed; `FERRY_SEED` replays it.

#![allow(clippy::unwrap_used)] // a test that cannot go on says so by panicking

mod common;

use common::scene::{BLOCK, SIZE, Scene, disks};
use common::{at, buffered, context, full};
use ferry_store::{Durability, SnapId, Store, WriteOp};
use ferry_store_local::disk::sim::Fault;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_histories_of_two_handles_survive_power_loss_kills_and_refusals() {
    let first = ferry_reference::seed();
    for seed in (0..40).map(|round| first.wrapping_add(round)) {
        for sim in disks() {
            let mut rng = StdRng::seed_from_u64(seed);
            let dir = tempfile::tempdir().unwrap();
            let mut scene = Scene::new(&dir.path().join("s"), sim);
            let steps = rng.random_range(4..22);
            for step in 0..steps {
                scene.random_step(&mut rng).await;
                scene.check(false, &format!("seed {seed}, step {step}")).await;
            }
            // The medium refuses at some moment of the last steps.
            match rng.random_range(0..5) {
                0 => scene
                    .sim
                    .fail_after(Fault::Writes, rng.random_range(0..12), u64::MAX),
                1 => scene.sim.fail_after(Fault::Writes, rng.random_range(0..12), 1),
                2 => scene.sim.fail_after(Fault::Syncs, rng.random_range(0..6), 1),
                3 => scene
                    .sim
                    .set_capacity(Some(scene.sim.used_bytes() + rng.random_range(0..6) * 4096)),
                _ => {}
            }
            for _ in 0..rng.random_range(0..5) {
                scene.random_step(&mut rng).await;
            }
            let crash = rng.random_bool(0.7).then(|| rng.random());
            scene.reopen(crash);
            scene
                .check(
                    crash.is_some(),
                    &format!("seed {seed}, reopened, crash {crash:?}"),
                )
                .await;
            scene.write(0, full(), 0, SIZE, 61).await;
            scene.snapshot().await;
            scene.write(1, buffered(), 5, 10, 62).await;
            let lost = crash.is_some();
            scene.head.check(
                at(scene.io(0), "o", SnapId::HEAD).await.as_deref(),
                lost,
                &format!("seed {seed}, later"),
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_grew_before_the_snapshot_and_was_not_flushed_never_makes_the_snapshot_unreadable() {
    for crash in 0..16 {
        for ending in 0..5 {
            let dir = tempfile::tempdir().unwrap();
            let mut scene = Scene::new(&dir.path().join("s"), disks()[crash as usize % 2].clone());
            assert!(scene.write(0, buffered(), 0, BLOCK, 2).await && scene.flush(0).await);
            scene.all_is_durable();
            // One grows it, another makes the clone.
            assert!(scene.write(0, buffered(), BLOCK, 6 * BLOCK, 3).await);
            scene.snapshot().await;
            assert!(scene.write(1, buffered(), 2 * BLOCK + 7, 100, 4).await);
            match ending {
                0 => {}
                // The clone's maker cannot make its block durable without what it lies on.
                1 => {
                    assert!(scene.flush(1).await);
                    scene.all_is_durable();
                }
                2 => {
                    let op = WriteOp {
                        steps: vec![ferry_store::WriteStep::Remove],
                        durability: Durability::Buffered,
                    };
                    scene.io(1).write("o", &context(&scene.snaps), op).await.unwrap();
                    scene.head.now.fill(1);
                    scene.head.after.iter_mut().for_each(|mask| *mask |= 1);
                }
                3 => {
                    let (store, io) = &scene.handles[1];
                    let now = context(&scene.snaps);
                    store
                        .rollback(io.object("o"), &now, scene.snaps[0], Durability::Buffered)
                        .await
                        .unwrap();
                    let target = scene.history[0].clone();
                    scene.changed(0..SIZE, &target, true, false);
                }
                _ => {
                    assert!(scene.write(1, full(), 3 * BLOCK, 10, 5).await);
                }
            }
            let place = format!("crash {crash}, ending {ending}");
            scene.check(false, &place).await;
            scene.reopen(Some(crash));
            scene.check(true, &place).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_write_whose_commit_the_power_took_leaves_the_old_head() {
    for crash in 0..20 {
        for sim in disks() {
            let dir = tempfile::tempdir().unwrap();
            let root = dir.path().join("s");
            let mut scene = Scene::new(&root, sim);
            assert!(scene.write(0, buffered(), 0, SIZE, 2).await && scene.flush(0).await);
            scene.all_is_durable();
            assert!(scene.write(0, buffered(), 3, 2 * BLOCK, 3).await);
            scene.snapshot().await;
            assert!(scene.write(1, buffered(), 5 * BLOCK + 9, 50, 4).await);
            assert!(scene.write(0, buffered(), 7 * BLOCK, BLOCK, 5).await);
            // A commit that nobody synced may be lost, with all behind it.
            let files = ["pool.db", "pool.db-wal", "pool.lock"].map(|name| root.join("pools/1").join(name));
            let [database, log, side] = files.clone().map(|file| std::fs::read(file).unwrap());
            let synced = common::synced_of_log(&side, &log);
            assert!(0 < synced && synced < log.len(), "crash {crash}");
            for (store, _) in scene.handles.drain(..) {
                store.abandon();
            }
            std::fs::write(&files[0], database).unwrap();
            std::fs::write(&files[1], &log[..synced]).unwrap();
            let _ = std::fs::remove_file(root.join("pools/1/pool.db-shm"));
            scene.reopen(Some(crash));
            scene.check(true, &format!("crash {crash}")).await;
            // Neither is what was written to the lost layer there, nor is its file.
            let head = at(scene.io(0), "o", SnapId::HEAD).await.unwrap();
            assert_eq!(head, at(scene.io(0), "o", scene.snaps[0]).await.unwrap());
            assert!(head[5 * BLOCK..].iter().all(|byte| *byte == 2), "crash {crash}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_write_after_a_snapshot_makes_one_file_and_syncs_nothing() {
    for sim in disks() {
        let dir = tempfile::tempdir().unwrap();
        let mut scene = Scene::new(&dir.path().join("s"), sim);
        assert!(scene.write(0, buffered(), 0, SIZE, 2).await && scene.flush(0).await);
        let files = scene.sim.file_names().len();
        for round in 0..3 {
            scene.snapshot().await;
            scene.sim.fail(Fault::Syncs, u64::MAX);
            assert!(
                scene.write(0, buffered(), round * BLOCK, BLOCK, 3).await,
                "round {round}"
            );
            scene.sim.fail(Fault::Syncs, 0);
            assert_eq!(scene.sim.file_names().len(), files + round + 1, "round {round}");
            assert!(scene.flush(0).await);
        }
    }
}
