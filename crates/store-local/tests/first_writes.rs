//! What a snapshot and the head over it hold after writes that nobody flushed: when the power goes, when the writer dies,
//! when the medium refuses; with one handle and with two. Random tests print a seed; `FERRY_SEED` replays it.

#![allow(clippy::unwrap_used)] // a test that cannot go on says so by panicking

mod common;

use std::path::Path;
use std::sync::Arc;

use common::{at, buffered, context, full, io, open};
use ferry_store::{Durability, IoCtx, SnapId, Store, WriteOp};
use ferry_store_local::LocalStore;
use ferry_store_local::disk::sim::{Fault, SimDisk};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

const BLOCK: usize = 4096;
const SIZE: usize = 12 * BLOCK;

fn seed() -> u64 {
    let seed = std::env::var("FERRY_SEED").map_or_else(|_| rand::random(), |seed| seed.parse().unwrap());
    eprintln!("FERRY_SEED={seed}");
    seed
}

fn disks() -> [SimDisk; 2] {
    [SimDisk::new(), SimDisk::with_reflinks()]
}

/// One version of the object. Per byte a bit for each value that it may have; past the end is zero.
#[derive(Clone)]
struct Version {
    /// As long as the power stays.
    now: Vec<u64>,
    /// After a power loss.
    after: Vec<u64>,
}

impl Version {
    fn check(&self, found: Option<&[u8]>, lost_power: bool, place: &str) {
        let masks = if lost_power { &self.after } else { &self.now };
        let found = found.unwrap_or_default();
        assert!(found.len() <= SIZE, "{place}: {} bytes", found.len());
        for (index, mask) in masks.iter().enumerate() {
            let byte = found.get(index).copied().unwrap_or(0);
            assert!(
                mask & (1 << byte) != 0,
                "{place}: byte {index} is {byte}, may be {mask:b}"
            );
        }
    }
}

struct Scene {
    sim: SimDisk,
    root: std::path::PathBuf,
    handles: Vec<(Arc<LocalStore>, IoCtx)>,
    snaps: Vec<SnapId>,
    history: Vec<Version>,
    head: Version,
}

impl Scene {
    fn new(root: &Path, sim: SimDisk) -> Self {
        let handles = (0..2).map(|_| {
            let store = open(root, Some(&sim)).unwrap();
            let io = io(&store);
            (store, io)
        });
        let head = Version {
            now: vec![1; SIZE],
            after: vec![1; SIZE],
        };
        Self {
            handles: handles.collect(),
            sim,
            root: root.to_owned(),
            snaps: Vec::new(),
            history: Vec::new(),
            head,
        }
    }

    fn io(&self, handle: usize) -> &IoCtx {
        &self.handles[handle].1
    }

    /// Notes that bytes were, or if it failed may have been, made these.
    fn changed(&mut self, range: std::ops::Range<usize>, new: &Version, ok: bool, durable: bool) {
        for index in range {
            let (now, after) = (new.now[index], new.after[index]);
            self.head.now[index] = if ok { now } else { self.head.now[index] | now };
            self.head.after[index] = if ok && durable {
                now
            } else {
                self.head.after[index] | now | after
            };
        }
    }

    async fn write(&mut self, handle: usize, op: WriteOp, offset: usize, length: usize, fill: u8) -> bool {
        let durable = op.durability == Durability::Full;
        let op = op.write(offset as u64, vec![fill; length]);
        let done = self.io(handle).write("o", &context(&self.snaps), op).await;
        let new = Version {
            now: vec![1 << fill; SIZE],
            after: vec![1 << fill; SIZE],
        };
        self.changed(offset..offset + length, &new, done.is_ok(), durable);
        done.is_ok()
    }

    async fn snapshot(&mut self) {
        self.snaps
            .push(self.handles[0].0.snap_id_create(self.io(0).pool()).await.unwrap());
        self.history.push(self.head.clone());
    }

    async fn flush(&mut self, handle: usize) -> bool {
        let (store, io) = &self.handles[handle];
        store.flush(io.scope(), "o").await.is_ok()
    }

    fn all_is_durable(&mut self) {
        for version in self.history.iter_mut().chain([&mut self.head]) {
            version.after.clone_from(&version.now);
        }
    }

    async fn random_step(&mut self, rng: &mut StdRng) {
        let handle = rng.random_range(0..2);
        let fill = rng.random_range(2..60);
        match rng.random_range(0..100) {
            0..55 => {
                let offset = rng.random_range(0..SIZE - 1);
                let length = rng.random_range(1..=(SIZE - offset).min(2 * BLOCK));
                let op = if rng.random_bool(0.9) { buffered() } else { full() };
                self.write(handle, op, offset, length, fill).await;
            }
            55..75 => self.snapshot().await,
            75..83 => {
                let both = [self.flush(0).await, self.flush(1).await];
                if both == [true, true] {
                    self.all_is_durable();
                }
            }
            83..86 => {
                self.flush(handle).await;
            }
            86..89 => {
                let (store, io) = &self.handles[handle];
                if store.sync_all(io.scope(), "").await.is_ok() {
                    self.all_is_durable();
                }
            }
            89..94 if !self.snaps.is_empty() => {
                let index = rng.random_range(0..self.snaps.len());
                let snap = self.snaps.remove(index);
                self.history.remove(index);
                let _ = self.handles[handle]
                    .0
                    .snap_id_remove(self.io(0).pool(), snap)
                    .await;
            }
            94..97 if !self.snaps.is_empty() => {
                let index = rng.random_range(0..self.snaps.len());
                let (store, io) = &self.handles[handle];
                let now = context(&self.snaps);
                let done = store
                    .rollback(io.object("o"), &now, self.snaps[index], Durability::Buffered)
                    .await;
                let target = self.history[index].clone();
                self.changed(0..SIZE, &target, done.is_ok(), false);
            }
            _ => {
                let op = WriteOp {
                    steps: vec![ferry_store::WriteStep::Remove],
                    durability: Durability::Buffered,
                };
                let done = self.io(handle).write("o", &context(&self.snaps), op).await;
                let gone = Version {
                    now: vec![1; SIZE],
                    after: vec![1; SIZE],
                };
                self.changed(0..SIZE, &gone, done.is_ok(), false);
            }
        }
    }

    async fn check(&self, lost_power: bool, place: &str) {
        for (handle, (_, io)) in self.handles.iter().enumerate() {
            let place = format!("{place}, handle {handle}");
            let head = at(io, "o", SnapId::HEAD).await;
            self.head
                .check(head.as_deref(), lost_power, &format!("{place}, head"));
            let mut found = Vec::new();
            for (snap, version) in self.snaps.iter().zip(&self.history) {
                let bytes = at(io, "o", *snap).await;
                version.check(bytes.as_deref(), lost_power, &format!("{place}, snapshot {snap}"));
                found.push((*snap, bytes));
            }
            let Ok(set) = io.list_snaps("o", &[]).await else {
                continue;
            };
            for pair in set.clones.windows(2) {
                // What is said to be the same is the same.
                let of = |clone: &ferry_store::CloneInfo| match clone.snaps.last() {
                    Some(snap) => found
                        .iter()
                        .find(|(id, _)| id == snap)
                        .and_then(|(_, bytes)| bytes.clone()),
                    None => head.clone(),
                };
                let (Some(old), Some(new)) = (of(&pair[0]), of(&pair[1])) else {
                    continue;
                };
                for extent in pair[0].overlap.iter().flatten() {
                    let range = extent.offset as usize..extent.end() as usize;
                    assert!(
                        old[range.clone()] == new[range.clone()],
                        "{place}: overlap {range:?} differs"
                    );
                }
            }
        }
    }

    /// Ends all handles, as a kill does, and opens the store anew; before that the power is cut if so wanted.
    fn reopen(&mut self, crash: Option<u64>) {
        for (store, _) in self.handles.drain(..) {
            store.abandon();
        }
        if let Some(seed) = crash {
            self.sim.crash(seed);
        }
        for fault in [Fault::Reads, Fault::Writes, Fault::Syncs] {
            self.sim.fail(fault, 0);
        }
        self.sim.set_capacity(None);
        for _ in 0..2 {
            let store = open(&self.root, Some(&self.sim)).unwrap();
            let io = io(&store);
            self.handles.push((store, io));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_histories_of_two_handles_survive_power_loss_kills_and_refusals() {
    let first = seed();
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
            // A commit that nobody synced may be lost, with all behind it: then the database is as it was before.
            let files = ["pool.db", "pool.db-wal"].map(|name| root.join("pools/1").join(name));
            let before = files.clone().map(|file| std::fs::read(file).unwrap());
            assert!(scene.write(1, buffered(), 5 * BLOCK + 9, 50, 4).await);
            assert!(scene.write(0, buffered(), 7 * BLOCK, BLOCK, 5).await);
            for (store, _) in scene.handles.drain(..) {
                store.abandon();
            }
            for (file, bytes) in files.iter().zip(before) {
                std::fs::write(file, bytes).unwrap();
            }
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
