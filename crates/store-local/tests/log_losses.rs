//! Kills and power losses at any moment of what SQLite does to a database and its log, with the engine's note of what was synced
//! (docs/format-local.md, 3.1) as old as the machine may have left it. None of that is damage: each image is opened, has what was
//! acknowledged as durable, and the check of the store finds nothing wrong in its databases. Histories have two handles, commits that are
//! durable and commits that are not, copies of the log into the database and logs that begin anew.
//!
//! `FERRY_POWER` is how many images are looked at, `FERRY_SEED` replays.

#![allow(clippy::unwrap_used)] // a test that cannot go on says so by panicking

mod common;
#[path = "common/tape.rs"]
mod tape;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use common::{files_below, io, open};
use ferry_store::check::{CheckOptions, Gravity};
use ferry_store::{PoolId, ReadOp, ReadResult, ReadStep, SnapId, Store, WriteOp, WriteStep};
use ferry_store_local::LocalStore;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tape::{Done, Event};

const SECTOR: usize = 512;
/// Where the boot is in the note of a log.
const BOOT: std::ops::Range<usize> = 24..40;
const NOTE_END: usize = 64;
/// Images of one history.
const IMAGES: u64 = 40;

/// What becomes of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// All users are killed.
    Kill,
    /// The power goes.
    Power,
    /// The same, and the disk has lost what was synced as well, in this many of hundred syncs.
    Liar(u32),
}

/// A history: files at its beginning, what was done to them, and what was promised when.
struct History {
    files: BTreeMap<PathBuf, Vec<u8>>,
    root: PathBuf,
    events: Vec<Event>,
    /// What each key was given: number of events before it was asked for, and when it was durable.
    writes: Vec<(String, u8, usize, usize)>,
}

async fn write(store: &Arc<LocalStore>, name: &str, byte: u8) {
    let pairs = (0..4)
        .map(|n| (Bytes::from(format!("key-{n}")), Bytes::from(vec![byte; 900])))
        .collect();
    io(store)
        .write_meta(name, WriteOp::new().step(WriteStep::OmapSet(pairs)))
        .await
        .unwrap();
}

/// The byte that all keys of an object have; 0: there is no object.
async fn read(store: &Arc<LocalStore>, name: &str) -> Result<u8, String> {
    let op = ReadOp::new().step(ReadStep::OmapGetVals {
        start_after: Bytes::new(),
        prefix: Bytes::new(),
        max: 100,
    });
    let reply = match io(store).read(name, SnapId::HEAD, op).await {
        Ok(reply) => reply,
        Err(error) if error.errno == ferry_store::Errno::ENOENT => return Ok(0),
        Err(error) => return Err(error.to_string()),
    };
    match &reply.results[..] {
        [ReadResult::Omap { values, .. }] => {
            let bytes: BTreeSet<u8> = values.values().flatten().copied().collect();
            match (values.len(), bytes.len(), bytes.first()) {
                (4, 1, Some(byte)) => Ok(*byte),
                _ => Err(format!("{} keys of {bytes:?}", values.len())),
            }
        }
        other => Err(format!("{other:?}")),
    }
}

/// What the check finds wrong with databases.
async fn found(store: &Arc<LocalStore>) -> Vec<String> {
    let found = match store.check(Some(PoolId(1)), CheckOptions::default()).await {
        Ok(found) => found.unwrap().into_iter(),
        Err(error) => return vec![error.to_string()],
    };
    found
        .filter(|found| found.gravity == Gravity::Damage && found.kind.starts_with("database"))
        .map(|found| found.what)
        .collect()
}

async fn history(root: &Path, rng: &mut StdRng) -> History {
    let stores = [open(root, None).unwrap(), open(root, None).unwrap()];
    for store in &stores {
        write(store, "first", 1).await;
    }
    let from = tape::now();
    let lasting = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        !path.starts_with(root.join("run")) && !name.ends_with("-shm") && name != "slots"
    };
    let files = files_below(root).into_iter().filter(lasting);
    let files = files
        .map(|path| (path.clone(), std::fs::read(path).unwrap()))
        .collect();
    let mut writes = vec![("first".to_owned(), 1, 0, 0)];
    for byte in 2..rng.random_range(12..40) {
        let store = &stores[rng.random_range(0..2)];
        match rng.random_range(0..8) {
            0 => assert_eq!(found(store).await, [""; 0]),
            1 | 2 => {
                let op = common::buffered().write(0, vec![byte; 9000]);
                let name = format!("bulk-{}", rng.random_range(0..40));
                io(store).write(&name, &common::context(&[]), op).await.unwrap();
            }
            _ => {
                let name = format!("object-{}", rng.random_range(0..5));
                let asked = tape::now() - from;
                write(store, &name, byte).await;
                writes.push((name, byte, asked, tape::now() - from));
            }
        }
    }
    let events = tape::since(from);
    for store in stores {
        store.abandon();
    }
    History {
        files,
        root: root.to_owned(),
        events,
        writes,
    }
}

fn put(file: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    if file.len() < offset + bytes.len() {
        file.resize(offset + bytes.len(), 0);
    }
    file[offset..offset + bytes.len()].copy_from_slice(bytes);
}

/// What is left of a write that was not synced: all, nothing, or some of its sectors.
fn put_torn(file: &mut Vec<u8>, offset: usize, bytes: &[u8], kept_of_ten: u32, rng: &mut StdRng) {
    match rng.random_range(0..3) {
        0 => {
            let mut at = 0;
            while at < bytes.len() {
                let end = bytes.len().min(at + SECTOR - (offset + at) % SECTOR);
                if rng.random_ratio(kept_of_ten, 10) {
                    put(file, offset + at, &bytes[at..end]);
                }
                at = end;
            }
        }
        _ if rng.random_ratio(kept_of_ten, 10) => put(file, offset, bytes),
        _ => {}
    }
}

/// A file of which some is not synced.
struct Half {
    durable: Vec<u8>,
    unsynced: Vec<Done>,
}

impl Half {
    fn new(durable: Vec<u8>) -> Self {
        Self {
            durable,
            unsynced: Vec::new(),
        }
    }

    fn settle(&mut self, mut keep: impl FnMut(&mut Vec<u8>, usize, &[u8])) {
        for done in self.unsynced.drain(..) {
            match done {
                Done::Write(offset, bytes) => keep(&mut self.durable, offset as usize, &bytes),
                Done::Truncate(size) => self.durable.resize(size as usize, 0),
                Done::Sync => {}
            }
        }
    }
}

impl History {
    /// Makes the image of the first `count` events at `to`.
    fn image(&self, count: usize, ending: Ending, to: &Path, rng: &mut StdRng) {
        let mut files: BTreeMap<PathBuf, Half> = BTreeMap::new();
        let mut sides: BTreeMap<PathBuf, Vec<Vec<u8>>> = BTreeMap::new();
        for (path, bytes) in &self.files {
            files.insert(path.clone(), Half::new(bytes.clone()));
            if path.extension().is_some_and(|name| name == "lock") {
                sides.entry(path.clone()).or_default().push(bytes.clone());
            }
        }
        let run = self.root.join("run");
        for (nth, event) in self.events.iter().enumerate().take(count + 1) {
            // Of a history before, whose users are still ending; or good for one boot.
            if !event.path.starts_with(&self.root) || event.path.starts_with(&run) {
                continue;
            }
            let seen = sides.entry(tape::side_of(&event.path)).or_default();
            if seen.last() != Some(&event.side) {
                seen.push(event.side.clone());
            }
            if nth == count {
                break;
            }
            let file = files
                .entry(event.path.clone())
                .or_insert_with(|| Half::new(Vec::new()));
            match (&event.done, ending) {
                (Done::Sync, Ending::Liar(percent)) if rng.random_ratio(percent, 100) => {}
                (Done::Sync, _) => file.settle(put),
                (done, _) => file.unsynced.push(done.clone()),
            }
        }
        let kept_of_ten = rng.random_range(0..=10);
        for file in files.values_mut() {
            match ending {
                Ending::Kill => file.settle(put),
                _ => file.settle(|file, at, bytes| put_torn(file, at, bytes, kept_of_ten, rng)),
            }
        }
        for (path, versions) in sides {
            let mut side = match ending {
                Ending::Kill => versions[versions.len() - 1].clone(),
                // A disk that lies is mended by time: what was noted long ago is there.
                Ending::Liar(_) => versions[versions.len() - 1].clone(),
                Ending::Power => versions[rng.random_range(0..versions.len())].clone(),
            };
            if ending != Ending::Kill && side.len() >= NOTE_END {
                // Of another boot.
                side[BOOT.start] ^= 1;
                let sum = note_sum(&side[16..NOTE_END - 8]);
                match rng.random_ratio(1, 12) {
                    true => side[rng.random_range(16..NOTE_END)] ^= 1 << rng.random_range(0..8),
                    false => side[NOTE_END - 8..NOTE_END].copy_from_slice(&sum.to_le_bytes()),
                }
            }
            files.insert(path, Half::new(side));
        }
        for (path, file) in files {
            let path = to.join(path.strip_prefix(&self.root).unwrap());
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, file.durable).unwrap();
        }
        // Files of data: rows that are there have theirs.
        for path in files_below(&self.root) {
            let inside = path.strip_prefix(&self.root).unwrap();
            let name = inside.file_name().unwrap().to_str().unwrap();
            let target = to.join(inside);
            if inside.starts_with("pools") && name != "slots" && !name.ends_with("-shm") && !target.exists() {
                std::fs::create_dir_all(target.parent().unwrap()).unwrap();
                std::fs::copy(&path, target).unwrap();
            }
        }
    }

    /// What each object may be after `count` events: what was durable last, or what was asked for since.
    fn allowed(&self, count: usize) -> BTreeMap<&str, BTreeSet<u8>> {
        let mut allowed: BTreeMap<&str, BTreeSet<u8>> = BTreeMap::new();
        for (name, byte, asked, durable) in &self.writes {
            let bytes = allowed.entry(name).or_insert_with(|| [0].into());
            if *durable <= count {
                bytes.clear();
            }
            if *asked <= count {
                bytes.insert(*byte);
            }
        }
        allowed
    }
}

/// The checksum of a note (docs/format-local.md, 3.1).
fn note_sum(bytes: &[u8]) -> u64 {
    const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut sum = 0x5bd1_e995_0000_0001_u64.wrapping_mul(ODD);
    for word in bytes.as_chunks::<8>().0 {
        sum = (sum ^ u64::from_le_bytes(*word)).wrapping_mul(ODD);
        sum ^= sum >> 29;
    }
    sum ^ sum >> 32
}

/// What is wrong with an image.
async fn judged(root: &Path, allowed: &BTreeMap<&str, BTreeSet<u8>>) -> Vec<String> {
    let store = match open(root, None) {
        Ok(store) => store,
        Err(error) => return vec![format!("not opened: {error}")],
    };
    let mut wrong = Vec::new();
    for (name, bytes) in allowed {
        match read(&store, name).await {
            Ok(byte) if bytes.contains(&byte) => {}
            other => wrong.push(format!("{name} is {other:?} and not of {bytes:?}")),
        }
    }
    wrong.extend(found(&store).await);
    store.abandon();
    wrong
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_kills_and_power_losses_leave_of_a_log_is_opened_and_nothing_of_it_is_called_damage() {
    tape::begin();
    let wanted: u64 = std::env::var("FERRY_POWER").map_or(120, |text| text.parse().unwrap());
    let first = ferry_reference::seed();
    let (mut images, mut histories, mut noticed) = (0, 0, 0);
    while images < wanted {
        let seed = first.wrapping_add(histories);
        let mut rng = StdRng::seed_from_u64(seed);
        let dir = tempfile::tempdir().unwrap();
        let history = history(&dir.path().join("s"), &mut rng).await;
        assert!(history.events.len() > 20, "FERRY_SEED={seed}");
        for nth in 0..IMAGES {
            let count = rng.random_range(0..=history.events.len());
            let ending = [Ending::Kill, Ending::Power, Ending::Power][nth as usize % 3];
            let root = dir.path().join(nth.to_string());
            history.image(count, ending, &root, &mut rng);
            let wrong = judged(&root, &history.allowed(count)).await;
            assert_eq!(
                wrong, [""; 0],
                "FERRY_SEED={seed}: image {nth}, after {count} events, {ending:?}"
            );
            let _ = std::fs::remove_dir_all(&root);
            images += 1;
        }
        // Canary: a disk that lies about syncs is noticed, or has not lost anything that counts.
        for nth in 0..4 {
            let root = dir.path().join(format!("liar-{nth}"));
            history.image(history.events.len(), Ending::Liar(60), &root, &mut rng);
            noticed += judged(&root, &history.allowed(history.events.len())).await.len();
        }
        histories += 1;
    }
    assert!(noticed > 0, "FERRY_SEED={first}: no lost sync was noticed");
    println!("campaign: log-losses seed={first} of_seeds={histories} images={images}");
}
