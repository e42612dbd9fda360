//! Damage to SQLite's log of a pool, which holds what was committed since it was last copied into the database: flipped bytes while the
//! store is open, and bytes flipped or cut off before it is recovered. What was acknowledged as durable is read as it was written,
//! or an error names the log; it is never read as something else, and never gone without a word. And what kills leave is no damage.
//!
//! `FERRY_SEED` replays.

#![allow(clippy::unwrap_used)] // a test that cannot go on says so by panicking

mod common;

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use common::{io, open};
use ferry_store::check::{CheckOptions, Gravity};
use ferry_store::{Errno, PoolId, ReadOp, ReadResult, ReadStep, SnapId, Store, WriteOp, WriteStep};
use ferry_store_local::LocalStore;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

const HEAD: u64 = 32;
const FRAME: u64 = 24 + 4096;
/// Flips of a test.
const FLIPS: u64 = 12;
/// Byte of which the values of the object are that is written last.
const LAST: u8 = 12;

type Held = BTreeMap<String, Bytes>;

fn log_of(root: &Path) -> PathBuf {
    root.join("pools/1/pool.db-wal")
}

/// How many frames the note beside the log says are synced (docs/format-local.md, 3.1).
fn synced(root: &Path) -> u64 {
    let mut frames = [0; 8];
    let side = File::open(root.join("pools/1/pool.lock")).unwrap();
    side.read_exact_at(&mut frames, 16 + 32).unwrap();
    u64::from_le_bytes(frames)
}

fn flip(path: &Path, at: u64, bit: u8) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1 << bit], at).unwrap();
}

/// The store as a kill of all its users would leave it, at a moment at which nothing is being committed.
fn killed(root: &Path, to: &Path) {
    const LOOKS: usize = 100;
    let state = || {
        ["pool.db", "pool.db-wal", "pool.lock"]
            .map(|name| std::fs::read(root.join("pools/1").join(name)).ok())
    };
    for _ in 0..LOOKS {
        let before = state();
        let _ = std::fs::remove_dir_all(to);
        let done = std::process::Command::new("cp")
            .arg("-a")
            .args([root, to])
            .status();
        assert!(done.unwrap().success());
        if state() == before {
            return;
        }
    }
    panic!("the store does not hold still");
}

/// Writes keys of an object, durably.
async fn write(store: &Arc<LocalStore>, held: &mut Held, name: &str, byte: u8) {
    let value = Bytes::from(vec![byte; 700]);
    let pairs = (0..9)
        .map(|n| (Bytes::from(format!("key-{n}")), value.clone()))
        .collect();
    io(store)
        .write_meta(name, WriteOp::new().step(WriteStep::OmapSet(pairs)))
        .await
        .unwrap();
    held.insert(name.to_owned(), value);
}

/// Reads everything: what is otherwise than it was written, and what cannot be read.
async fn look(store: &Arc<LocalStore>, held: &Held) -> (Vec<String>, Vec<String>) {
    let (mut wrong, mut failed) = (Vec::new(), Vec::new());
    for (name, value) in held {
        let op = ReadOp::new().step(ReadStep::OmapGetVals {
            start_after: Bytes::new(),
            prefix: Bytes::new(),
            max: 100,
        });
        match io(store).read(name, SnapId::HEAD, op).await {
            Ok(reply) => match &reply.results[..] {
                [ReadResult::Omap { values, .. }]
                    if values.len() == 9 && values.values().all(|found| found == value) => {}
                other => wrong.push(format!("{name}: {other:?}")),
            },
            Err(error) if error.errno == Errno::ENOENT => wrong.push(format!("{name} is gone")),
            Err(error) => failed.push(error.to_string()),
        }
    }
    (wrong, failed)
}

/// What the check says of the pool's log.
async fn told_of_the_log(store: &Arc<LocalStore>) -> Vec<String> {
    let found = store.check(Some(PoolId(1)), CheckOptions::default()).await;
    let found = found.unwrap().unwrap().into_iter();
    found
        .filter(|found| found.gravity == Gravity::Damage && found.kind == "database-log")
        .map(|found| found.what)
        .collect()
}

async fn made(root: &Path) -> (Arc<LocalStore>, Held) {
    let (store, mut held) = (open(root, None).unwrap(), Held::new());
    for n in 1..=LAST {
        write(&store, &mut held, &format!("object-{n}"), n).await;
    }
    (store, held)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flipped_byte_in_the_log_of_an_open_store_is_never_returned_as_data_and_is_found() {
    let seed = ferry_reference::seed();
    let mut rng = StdRng::seed_from_u64(seed);
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("s");
    let (_store, held) = made(&root).await;
    let log = std::fs::read(log_of(&root)).unwrap();
    // What was written last is read from where it lies last.
    let in_a_value = log
        .windows(64)
        .rposition(|bytes| bytes.iter().all(|byte| *byte == LAST));
    for nth in 0..FLIPS {
        let at = match nth {
            0 => in_a_value.unwrap() as u64,
            _ => HEAD + rng.random_range(0..synced(&root) * FRAME),
        };
        let bit = rng.random_range(0..8);
        flip(&log_of(&root), at, bit);
        // Another client, which has nothing in its memory.
        match open(&root, None) {
            Ok(other) => {
                let (wrong, failed) = look(&other, &held).await;
                assert_eq!(wrong, [""; 0], "FERRY_SEED={seed}: byte {at}");
                assert!(
                    nth > 0 || !failed.is_empty(),
                    "FERRY_SEED={seed}: byte {at} was not met"
                );
                let told = told_of_the_log(&other).await;
                assert!(
                    told.iter().any(|what| what.contains("pool.db-wal")),
                    "FERRY_SEED={seed}: byte {at}: {told:?}"
                );
            }
            Err(error) => panic!("FERRY_SEED={seed}: byte {at}: {error}"),
        }
        flip(&log_of(&root), at, bit);
    }
    let other = open(&root, None).unwrap();
    assert_eq!(look(&other, &held).await, (vec![], vec![]));
    assert_eq!(told_of_the_log(&other).await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_was_damaged_before_it_is_recovered_is_named_and_nothing_of_it_lost_without_a_word() {
    let seed = ferry_reference::seed();
    let mut rng = StdRng::seed_from_u64(seed);
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("s");
    let (_store, held) = made(&root).await;
    let sound = dir.path().join("killed");
    killed(&root, &sound);
    let frames = synced(&sound);
    assert!(frames > 20, "{frames}");
    let length = std::fs::metadata(log_of(&sound)).unwrap().len();
    for nth in 0..FLIPS {
        let damaged = dir.path().join(format!("damaged-{nth}"));
        killed(&sound, &damaged);
        let log = log_of(&damaged);
        let what = match nth {
            // The head of the log.
            0 => rng.random_range(0..HEAD),
            // The last frame: there is none behind it that would tell.
            1 => HEAD + (frames - 1) * FRAME + rng.random_range(24..FRAME),
            _ => HEAD + rng.random_range(0..frames * FRAME),
        };
        match nth % 3 {
            2 => File::options()
                .write(true)
                .open(&log)
                .unwrap()
                .set_len(what)
                .unwrap(),
            _ => flip(&log, what, rng.random_range(0..8)),
        }
        let when = format!("FERRY_SEED={seed}: {nth}: at {what} of {length}");
        let store = open(&damaged, None).unwrap();
        let (wrong, failed) = look(&store, &held).await;
        assert_eq!(wrong, [""; 0], "{when}");
        assert!(
            failed.iter().all(|error| error.contains("pool.db-wal")),
            "{when}: {failed:?}"
        );
        assert_eq!(failed.len(), held.len(), "{when}");
        let told = told_of_the_log(&store).await;
        assert!(
            told.iter().any(|what| what.contains("pool.db-wal")),
            "{when}: {told:?}"
        );
        drop(store);
        // The way out, which the message names: what was in the log is given up.
        std::fs::remove_file(&log).unwrap();
        let store = open(&damaged, None).unwrap();
        assert_eq!(told_of_the_log(&store).await, [""; 0], "{when}");
    }
    // Behind what was synced it may end anywhere.
    let torn = dir.path().join("torn");
    killed(&sound, &torn);
    let end = HEAD + frames * FRAME;
    let log = File::options().write(true).open(log_of(&torn)).unwrap();
    log.set_len(end).unwrap();
    log.write_all_at(&[7; 6000], end).unwrap();
    let store = open(&torn, None).unwrap();
    assert_eq!(look(&store, &held).await, (vec![], vec![]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_and_logs_that_begin_anew_are_no_damage() {
    let seed = ferry_reference::seed();
    let mut rng = StdRng::seed_from_u64(seed);
    let dir = tempfile::tempdir().unwrap();
    let (mut root, mut held) = (dir.path().join("0"), Held::new());
    for round in 1..12 {
        let stores = [open(&root, None).unwrap(), open(&root, None).unwrap()];
        for _ in 0..rng.random_range(1..12) {
            let store = &stores[rng.random_range(0..2)];
            match rng.random_range(0..6) {
                // Copies the log into the database, so that the next commit begins it anew.
                0 => assert_eq!(told_of_the_log(store).await, [""; 0]),
                // Commits that nobody waits for.
                1 => {
                    let op = common::buffered().write(0, vec![rng.random(); 9000]);
                    let name = format!("bulk-{}", rng.random_range(0..40));
                    io(store).write(&name, &common::context(&[]), op).await.unwrap();
                }
                _ => {
                    let name = format!("object-{}", rng.random_range(0..9));
                    write(store, &mut held, &name, rng.random()).await;
                }
            }
        }
        let next = dir.path().join(round.to_string());
        killed(&root, &next);
        root = next;
        let store = open(&root, None).unwrap();
        let seen = look(&store, &held).await;
        assert_eq!(seen, (vec![], vec![]), "FERRY_SEED={seed}, round {round}");
        assert_eq!(
            told_of_the_log(&store).await,
            [""; 0],
            "FERRY_SEED={seed}, round {round}"
        );
    }
}
