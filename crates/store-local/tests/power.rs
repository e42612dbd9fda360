//! Power losses by the thousand: random histories of one object under two handles, frozen after every step, and each frozen
//! disk brought back in many ways: with nothing that was unsynced, with all of it, without or with only each single length,
//! name and sector (exhaustive where there are few), torn into sectors and into blocks, and, where the last steps were
//! buffered, with the tail of SQLite's log cut off at any byte.
//!
//! Judged by the versions that each byte may have ([`common::scene`]). `FERRY_POWER` is how many images are looked at,
//! `FERRY_SEED` replays. What is not covered: losses in the middle of a step; of SQLite's steps `log_losses.rs` has those.

#![allow(clippy::unwrap_used)] // a test that cannot go on says so by panicking

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use common::files_below;
use common::scene::{Scene, Version, disks};
use ferry_store::SnapId;
use ferry_store_local::disk::sim::{Loss, SimDisk};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// Unsynced things up to which each single loss is tried.
const EXHAUSTIVE: u64 = 24;
/// Of each random kind, for each frozen moment.
const RANDOM: u64 = 6;

/// How often a store that goes on in the background is looked at before it holds still.
const LOOKS: usize = 100;

/// A moment of a history, to be brought back.
struct Frozen {
    root: PathBuf,
    disk: SimDisk,
    /// SQLite's files and markers, by path below the root.
    files: Files,
    /// How long the log of the pool was when all before it was durable.
    log_floor: u64,
    snaps: Vec<SnapId>,
    history: Vec<Version>,
    head: Version,
}

type Files = BTreeMap<PathBuf, Vec<u8>>;

/// The log of the pool, below the root.
const LOG: &str = "pools/1/pool.db-wal";
/// The file with the note of what of it was synced.
const SIDE: &str = "pools/1/pool.lock";

fn log_bytes(root: &Path) -> u64 {
    std::fs::metadata(root.join(LOG)).map_or(0, |metadata| metadata.len())
}

/// SQLite's files and markers; what is not there any more when it is read is left out.
fn lasting_files(root: &Path) -> Files {
    let lasting = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_str().unwrap();
        !path.starts_with("run") && !name.ends_with("-shm") && name != "slots"
    };
    let below = files_below(root).into_iter();
    let paths = below.map(|path| path.strip_prefix(root).unwrap().to_owned());
    paths
        .filter(lasting)
        .filter_map(|path| Some((path.clone(), std::fs::read(root.join(path)).ok()?)))
        .collect()
}

/// Files and disk as they are at one moment: the engine may remove files in the background, after a commit.
fn freeze(scene: &Scene, mut log_floor: u64) -> Frozen {
    for _ in 0..LOOKS {
        let files = lasting_files(&scene.root);
        let disk = scene.sim.fork();
        if files == lasting_files(&scene.root) {
            // A buffered step may have durable parts: who makes a file says so first.
            if let (Some(side), Some(log)) = (files.get(Path::new(SIDE)), files.get(Path::new(LOG))) {
                log_floor = log_floor.max(common::synced_of_log(side, log) as u64);
            }
            return Frozen {
                root: scene.root.clone(),
                disk,
                files,
                log_floor,
                snaps: scene.snaps.clone(),
                history: scene.history.clone(),
                head: scene.head.clone(),
            };
        }
    }
    panic!("the store does not hold still");
}

/// The ways in which a moment is brought back: what is lost, and bytes cut off the log.
fn losses(frozen: &Frozen, rng: &mut StdRng) -> Vec<(Loss, u64)> {
    let unsynced = frozen.disk.unsynced();
    let mut losses = vec![Loss::All, Loss::Nothing];
    let singles: Vec<u64> = match unsynced <= EXHAUSTIVE {
        true => (0..unsynced).collect(),
        false => (0..RANDOM).map(|_| rng.random_range(0..unsynced)).collect(),
    };
    for nth in singles {
        losses.extend([Loss::Only(nth), Loss::AllBut(nth)]);
    }
    for _ in 0..RANDOM {
        losses.extend([Loss::Blocks(rng.random()), Loss::Sectors(rng.random())]);
    }
    let log = frozen
        .files
        .get(Path::new(LOG))
        .map_or(0, |bytes| bytes.len() as u64);
    let tail = log - frozen.log_floor.min(log);
    let mut all = Vec::new();
    for loss in losses {
        all.push((loss, 0));
        if tail > 0 {
            all.push((loss, rng.random_range(1..=tail)));
        }
    }
    all
}

/// The moment after the loss, at a place of its own: whoever had the store before may still be ending there.
fn bring_back(root: &Path, frozen: &Frozen, loss: Loss, cut_bytes: u64) -> Scene {
    for (path, bytes) in &frozen.files {
        let kept = match path == Path::new(LOG) {
            true => bytes.len() - cut_bytes as usize,
            false => bytes.len(),
        };
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, &bytes[..kept]).unwrap();
    }
    let sim = frozen.disk.fork_at(&frozen.root, root);
    sim.crash_with(loss);
    let mut scene = Scene {
        sim,
        root: root.to_owned(),
        handles: Vec::new(),
        snaps: frozen.snaps.clone(),
        history: frozen.history.clone(),
        head: frozen.head.clone(),
    };
    scene.reopen(None);
    scene
}

async fn frozen_history(scene: &mut Scene, rng: &mut StdRng) -> Vec<Frozen> {
    let mut moments = Vec::new();
    let mut floor = log_bytes(&scene.root);
    for _ in 0..rng.random_range(3..14) {
        let only_buffered = scene.random_step(rng).await;
        if !only_buffered {
            floor = log_bytes(&scene.root);
        }
        moments.push(freeze(scene, floor));
    }
    moments
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_image_that_a_power_loss_may_leave_has_what_was_flushed() {
    let wanted: u64 = std::env::var("FERRY_POWER").map_or(200, |text| text.parse().unwrap());
    let first = ferry_reference::seed();
    let mut images = 0;
    let mut histories = 0;
    while images < wanted {
        let seed = first.wrapping_add(histories);
        let mut rng = StdRng::seed_from_u64(seed);
        let dir = tempfile::tempdir().unwrap();
        let mut scene = Scene::new(&dir.path().join("s"), disks()[histories as usize % 2].clone());
        let moments = frozen_history(&mut scene, &mut rng).await;
        for (step, frozen) in moments.iter().enumerate() {
            let losses = losses(frozen, &mut rng);
            for (loss, cut_bytes) in losses {
                let root = dir.path().join(format!("image-{images}"));
                let mut scene = bring_back(&root, frozen, loss, cut_bytes);
                let place =
                    format!("FERRY_SEED={seed}, after step {step}, {loss:?}, {cut_bytes} bytes off the log");
                scene.check(true, &place).await;
                for (store, _) in scene.handles.drain(..) {
                    store.abandon();
                }
                let _ = std::fs::remove_dir_all(&root);
                images += 1;
                if images >= wanted && step > 0 {
                    break;
                }
            }
        }
        histories += 1;
    }
    println!("campaign: power seed={first} of_seeds={histories} images={images}");
}

/// A disk that loses a sector that was synced.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn canary_a_disk_that_loses_what_was_synced_is_noticed() {
    let mut noticed = 0;
    for seed in 0..4 {
        let dir = tempfile::tempdir().unwrap();
        let mut scene = Scene::new(&dir.path().join("s"), SimDisk::new());
        scene.sim.lose_syncs(true);
        assert!(scene.write(0, common::buffered(), 0, 9 * 4096, 2).await);
        assert!(scene.flush(0).await);
        scene.all_is_durable();
        let frozen = freeze(&scene, log_bytes(&scene.root));
        let scene = bring_back(&dir.path().join("image"), &frozen, Loss::Sectors(seed), 0);
        let check = tokio::spawn(async move { scene.check(true, "canary").await });
        noticed += u64::from(check.await.is_err());
    }
    assert!(noticed > 0);
}
