//! Damage of every kind to every file of a store: bytes flipped, files cut, extended, removed, in each other's place. A seeded
//! damager takes one at a time on a store with inline and bulk objects, clones, chains of layers and namespaces; then everything
//! is read, and checked.
//!
//! Judged: a read gives what was written, or an error; never anything else, but for what docs/format-local.md, 10 excepts (bulk
//! bytes and the length of a head's file, and the live map until the machine is started again). Where anything fails, the check
//! names damage. `FERRY_DAMAGES` is how many are done, `FERRY_SEED` replays.

#![allow(clippy::unwrap_used)] // a test that cannot go on says so by panicking

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use common::{buffered, context, files_below, full, io, open};
use ferry_store::check::{CheckOptions, Finding, Gravity};
use ferry_store::{
    Errno, IoCtx, PoolId, PoolOptions, ReadOp, ReadResult, ReadStep, Scope, SnapId, Store, WriteOp, WriteStep,
};
use ferry_store_local::LocalStore;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

const BLOCK: usize = 4096;
/// How long a damaged store may take for anything.
const PATIENCE: Duration = Duration::from_secs(120);

/// What an object is at a snapshot.
type Seen = (Option<Bytes>, BTreeMap<Bytes, Bytes>);
/// By pool, object and snapshot.
type Expected = BTreeMap<(i64, String, u64), Seen>;

const OBJECTS: [&str; 5] = ["inline", "keys", "bulk", "chained", "flat"];

async fn look(io: &IoCtx, name: &str, snap: SnapId) -> Result<Seen, String> {
    let op = ReadOp::new().read(0, 4 << 20).step(ReadStep::OmapGetVals {
        start_after: Bytes::new(),
        prefix: Bytes::new(),
        max: 1000,
    });
    match io.read(name, snap, op).await {
        Ok(reply) => {
            let data = reply.data(0);
            match reply.results.into_iter().nth(1) {
                Some(ReadResult::Omap { values, .. }) => Ok((Some(data), values)),
                other => panic!("{other:?}"),
            }
        }
        Err(error) if error.errno == Errno::ENOENT => Ok((None, BTreeMap::new())),
        Err(error) => Err(error.to_string()),
    }
}

/// Where what was read first differs from what was written.
fn difference((data, keys): &Seen, (expected_data, expected_keys): &Seen) -> String {
    if let (Some(data), Some(expected)) = (data, expected_data)
        && data != expected
    {
        let at = data
            .iter()
            .zip(expected)
            .position(|(byte, expected)| byte != expected);
        let at = at.unwrap_or_else(|| data.len().min(expected.len()));
        let (have, should) = (data.get(at), expected.get(at));
        return format!(
            "{} bytes of {}; byte {at} is {have:02x?} and was {should:02x?}",
            data.len(),
            expected.len()
        );
    }
    if data.is_some() != expected_data.is_some() {
        return format!("there: {}, was: {}", data.is_some(), expected_data.is_some());
    }
    let wrong = |key: &&Bytes| keys.get(*key) != expected_keys.get(*key);
    let first = keys.keys().chain(expected_keys.keys()).find(wrong);
    format!(
        "{} keys of {}; the first wrong one: {first:?}",
        keys.len(),
        expected_keys.len()
    )
}

fn pool(store: &Arc<LocalStore>, id: i64) -> IoCtx {
    IoCtx::new(store.clone(), Scope::new(PoolId(id)))
}

/// A store with something of every kind, ended in good order; and what it holds.
async fn make(root: &Path) -> Expected {
    let store = open(root, None).unwrap();
    let second = store.pool_create("p2", PoolOptions::default()).await.unwrap();
    let mut snaps = Vec::new();
    for id in [PoolId(1), second] {
        let io = pool(&store, id.0);
        let tag = id.0 as u8;
        let keys = |from: u8| {
            let pair = |n: u8| (Bytes::from(format!("key-{n}")), Bytes::from(vec![n ^ tag; 300]));
            WriteOp::new().step(WriteStep::OmapSet((from..from + 40).map(pair).collect()))
        };
        io.write_meta("inline", WriteOp::new().write(0, vec![tag; 9000]))
            .await
            .unwrap();
        io.write_meta("keys", keys(0)).await.unwrap();
        io.write_meta("bulk", full().write(0, vec![tag + 10; 20 * BLOCK]))
            .await
            .unwrap();
        io.write_meta("chained", full().write(0, vec![tag + 20; 16 * BLOCK]))
            .await
            .unwrap();
        io.write_meta("flat", full().write(0, vec![tag + 30; 16 * BLOCK]))
            .await
            .unwrap();
        snaps.clear();
        for round in 0..3u8 {
            let snap = store.snap_id_create(id).await.unwrap();
            snaps.push(snap);
            let now = context(&snaps);
            let at = u64::from(round) * 5000;
            io.write("inline", &now, WriteOp::new().write(at, vec![round + 40; 600]))
                .await
                .unwrap();
            io.write("keys", &now, keys(20 * (round + 1))).await.unwrap();
            io.write("chained", &now, buffered().write(at, vec![round + 50; 5000]))
                .await
                .unwrap();
            io.write("flat", &now, buffered().write(at, vec![round + 60; 60000]))
                .await
                .unwrap();
        }
        store.flush(io.scope(), "").await.unwrap();
    }
    let mut expected = Expected::new();
    for id in [1, second.0] {
        for name in OBJECTS {
            for snap in snaps.iter().copied().chain([SnapId::HEAD]) {
                let seen = look(&pool(&store, id), name, snap).await.unwrap();
                expected.insert((id, name.to_owned(), snap.0), seen);
            }
        }
    }
    store.shutdown().await.unwrap();
    drop(store);
    // What lies in SQLite's log would hide what happens to the file below it.
    let logs = || {
        files_below(root)
            .into_iter()
            .filter(|path| path.to_str().unwrap().ends_with("-wal"))
    };
    for _ in 0..12_000 {
        if logs().next().is_none() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(logs().next(), None);
    expected
}

fn copy_tree(from: &Path, to: &Path) {
    // With extended attributes.
    let done = std::process::Command::new("cp")
        .arg("-a")
        .arg(from)
        .arg(to)
        .status()
        .unwrap();
    assert!(done.success());
}

#[derive(Debug, Clone)]
enum Harm {
    Flip(PathBuf, u64),
    Cut(PathBuf, u64),
    Extend(PathBuf, u64),
    Remove(PathBuf),
    Swap(PathBuf, PathBuf),
}

impl Harm {
    fn random(files: &[PathBuf], root: &Path, rng: &mut StdRng) -> Self {
        let path = files[rng.random_range(0..files.len())].clone();
        let length = std::fs::metadata(root.join(&path)).unwrap().len();
        match rng.random_range(0..8) {
            0..=2 if length > 0 => Self::Flip(path, rng.random_range(0..length)),
            3 | 4 if length > 0 => Self::Cut(path, rng.random_range(0..length)),
            5 => Self::Extend(path, rng.random_range(1..20_000)),
            6 => Self::Remove(path),
            _ => {
                let kind = |path: &PathBuf| match path.to_str().unwrap() {
                    text if text.contains("/data/") => "data".to_owned(),
                    _ => path.file_name().unwrap().to_str().unwrap().to_owned(),
                };
                let others: Vec<&PathBuf> = files
                    .iter()
                    .filter(|other| **other != path && kind(other) == kind(&path))
                    .collect();
                match others.is_empty() {
                    true => Self::Remove(path),
                    false => Self::Swap(path.clone(), others[rng.random_range(0..others.len())].clone()),
                }
            }
        }
    }

    fn paths(&self) -> Vec<&PathBuf> {
        match self {
            Self::Flip(path, _) | Self::Cut(path, _) | Self::Extend(path, _) | Self::Remove(path) => {
                vec![path]
            }
            Self::Swap(first, second) => vec![first, second],
        }
    }

    fn apply(&self, root: &Path, rng: &mut StdRng) {
        let edit = |path: &PathBuf| {
            std::fs::File::options()
                .read(true)
                .write(true)
                .open(root.join(path))
                .unwrap()
        };
        use std::os::unix::fs::FileExt;
        match self {
            Self::Flip(path, at) => {
                let mut byte = [0];
                edit(path).read_exact_at(&mut byte, *at).unwrap();
                edit(path)
                    .write_all_at(&[byte[0] ^ 1 << rng.random_range(0..8u8)], *at)
                    .unwrap();
            }
            Self::Cut(path, length) => edit(path).set_len(*length).unwrap(),
            Self::Extend(path, bytes) => {
                let end = edit(path).metadata().unwrap().len();
                let junk: Vec<u8> = (0..*bytes).map(|_| rng.random()).collect();
                edit(path).write_all_at(&junk, end).unwrap();
            }
            Self::Remove(path) => std::fs::remove_file(root.join(path)).unwrap(),
            Self::Swap(first, second) => {
                let aside = root.join("aside");
                std::fs::rename(root.join(first), &aside).unwrap();
                std::fs::rename(root.join(second), root.join(first)).unwrap();
                std::fs::rename(&aside, root.join(second)).unwrap();
            }
        }
    }

    /// Whether docs/format-local.md excepts what this may make of bytes: nothing keeps a checksum of them.
    fn is_excepted(&self) -> bool {
        let data = |path: &&PathBuf| path.to_str().unwrap().contains("/data/");
        match self {
            Self::Flip(path, _) | Self::Cut(path, _) | Self::Extend(path, _) => data(&path),
            // The live map is a file beside the data, and has no label.
            Self::Remove(path) => path.to_str().unwrap().ends_with(".map"),
            Self::Swap(first, second) => {
                let maps = |path: &PathBuf| path.to_str().unwrap().ends_with(".map");
                maps(first) || maps(second)
            }
        }
    }
}

struct Verdict {
    wrong: Vec<String>,
    failed: Vec<String>,
    found: Vec<Finding>,
}

/// Reads everything and checks everything; what cannot be opened is a finding.
async fn judge(root: &Path, expected: &Expected) -> Verdict {
    let mut verdict = Verdict {
        wrong: Vec::new(),
        failed: Vec::new(),
        found: Vec::new(),
    };
    let store = match open(root, None) {
        Ok(store) => store,
        Err(error) => {
            verdict.failed.push(format!("open: {error}"));
            verdict.found.push(Finding {
                gravity: Gravity::Damage,
                kind: "store",
                place: String::new(),
                what: error.to_string(),
                advice: String::new(),
                mended: false,
            });
            return verdict;
        }
    };
    for ((id, name, snap), expected) in expected {
        match look(&pool(&store, *id), name, SnapId(*snap)).await {
            Ok(seen) if seen == *expected => {}
            Ok(seen) => verdict.wrong.push(format!(
                "pool {id} {name} at {snap}: {}",
                difference(&seen, expected)
            )),
            Err(error) => verdict.failed.push(error),
        }
    }
    let options = CheckOptions {
        repair: false,
        read_data: true,
    };
    let known: Vec<Option<PoolId>> = match store.pool_list().await {
        Ok(pools) => pools.iter().map(|pool| Some(pool.id)).chain([None]).collect(),
        Err(error) => {
            verdict.failed.push(error.to_string());
            vec![None]
        }
    };
    for pool in known {
        match store.check(pool, options).await {
            Ok(found) => verdict.found.extend(found.unwrap()),
            Err(error) => verdict.failed.push(error.to_string()),
        }
    }
    let _ = store.shutdown().await;
    verdict
}

fn damage_of(verdict: &Verdict) -> Vec<&Finding> {
    verdict
        .found
        .iter()
        .filter(|found| found.gravity == Gravity::Damage)
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_is_found_and_named_or_does_no_harm_and_is_never_returned_as_data() {
    let wanted: u64 = std::env::var("FERRY_DAMAGES").map_or(24, |text| text.parse().unwrap());
    let first = ferry_reference::seed();
    let dir = tempfile::tempdir().unwrap();
    let sound = dir.path().join("sound");
    let expected = make(&sound).await;
    let fresh = judge(&sound, &expected).await;
    assert!(
        fresh.wrong.is_empty() && fresh.failed.is_empty(),
        "{:?}",
        fresh.failed
    );
    assert!(damage_of(&fresh).is_empty(), "{:?}", fresh.found);
    let lasting = |path: &PathBuf| {
        let text = path.to_str().unwrap();
        !text.starts_with("run/") && !text.ends_with("slots") && !text.ends_with("lock")
    };
    let files: Vec<PathBuf> = {
        let below = files_below(&sound);
        let mut files: Vec<PathBuf> = below
            .iter()
            .map(|path| path.strip_prefix(&sound).unwrap().to_owned())
            .filter(lasting)
            .collect();
        files.sort();
        files
    };
    let (mut found, mut harmless, mut excepted) = (0, 0, 0);
    for nth in 0..wanted {
        let seed = first.wrapping_add(nth);
        let mut rng = StdRng::seed_from_u64(seed);
        let root = dir.path().join(format!("damaged-{nth}"));
        copy_tree(&sound, &root);
        let harm = Harm::random(&files, &root, &mut rng);
        harm.apply(&root, &mut rng);
        let verdict = tokio::time::timeout(PATIENCE, judge(&root, &expected)).await;
        let Ok(verdict) = verdict else {
            panic!("FERRY_SEED={seed}: {harm:?}: the damaged store hangs");
        };
        let damage = damage_of(&verdict);
        if !verdict.failed.is_empty() {
            assert!(
                !damage.is_empty(),
                "FERRY_SEED={seed}: {harm:?}: reads fail ({:?}), and nothing is found",
                verdict.failed
            );
        }
        if !damage.is_empty() {
            let text: String = damage.iter().map(|found| found.what.as_str()).collect();
            let named = harm.paths().iter().any(|path| {
                let name = path.file_name().unwrap().to_str().unwrap();
                let dir = path.parent().unwrap().to_str().unwrap();
                text.contains(name.trim_end_matches(".map")) || !dir.is_empty() && text.contains(dir)
            });
            assert!(
                named,
                "FERRY_SEED={seed}: {harm:?} is found, not named: {damage:?}"
            );
            found += 1;
        } else if verdict.wrong.is_empty() {
            harmless += 1;
        }
        if harm.is_excepted() {
            excepted += u64::from(!verdict.wrong.is_empty());
        } else {
            assert!(
                verdict.wrong.is_empty(),
                "FERRY_SEED={seed}: {harm:?}: read as data: {:?}; found: {damage:?}",
                verdict.wrong
            );
        }
        let _ = std::fs::remove_dir_all(&root);
    }
    println!(
        "campaign: damage seed={first} executions={wanted} found={found} harmless={harmless} excepted={excepted}"
    );
}

/// SQLite fetched long values from their overflow pages in parts, past the checksums: most pages were never looked at. Found by
/// `FERRY_SEED=3476736876984138480`, which is the first place here.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flipped_byte_of_any_page_of_a_pools_database_is_never_returned_as_data() {
    let dir = tempfile::tempdir().unwrap();
    let sound = dir.path().join("sound");
    let expected = make(&sound).await;
    let database = PathBuf::from("pools/2/pool.db");
    let pages = std::fs::metadata(sound.join(&database)).unwrap().len() / BLOCK as u64;
    let first = ferry_reference::seed();
    let mut rng = StdRng::seed_from_u64(first);
    let mut places = vec![144_712];
    places.extend((0..pages).map(|page| page * BLOCK as u64 + rng.random_range(0..BLOCK as u64)));
    let mut failed = 0;
    for (nth, at) in places.into_iter().enumerate() {
        let root = dir.path().join(format!("damaged-{nth}"));
        copy_tree(&sound, &root);
        Harm::Flip(database.clone(), at).apply(&root, &mut rng);
        let verdict = judge(&root, &expected).await;
        assert!(
            verdict.wrong.is_empty(),
            "byte {at}: read as data: {:?}",
            verdict.wrong
        );
        assert!(
            !damage_of(&verdict).is_empty(),
            "FERRY_SEED={first}: byte {at}: nothing is found"
        );
        failed += usize::from(!verdict.failed.is_empty());
        std::fs::remove_dir_all(&root).unwrap();
    }
    assert!(
        failed > pages as usize / 2,
        "{failed} of {pages} flips stopped a read"
    );
}

/// SQLite takes what is missing of a page for zeros, and the check went only to the last whole one. Found by
/// `FERRY_SEED=10199435970254`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_was_cut_inside_its_last_page_is_never_returned_as_data() {
    let dir = tempfile::tempdir().unwrap();
    let sound = dir.path().join("sound");
    let expected = make(&sound).await;
    let database = PathBuf::from("pools/2/pool.db");
    let length = std::fs::metadata(sound.join(&database)).unwrap().len();
    for missing in [113, 1, 9, 2000, BLOCK as u64 - 1, BLOCK as u64] {
        let root = dir.path().join(format!("damaged-{missing}"));
        copy_tree(&sound, &root);
        Harm::Cut(database.clone(), length - missing).apply(&root, &mut StdRng::seed_from_u64(0));
        let verdict = judge(&root, &expected).await;
        assert!(
            verdict.wrong.is_empty(),
            "{missing}: read as data: {:?}",
            verdict.wrong
        );
        assert!(!damage_of(&verdict).is_empty(), "{missing}: nothing is found");
    }
}

/// A database without checksums, as older programs made it, returns some flips as data: the tool must notice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn canary_a_value_that_was_changed_behind_a_fitting_checksum_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("s");
    let expected = make(&root).await;
    let store = open(&root, None).unwrap();
    let io = io(&store);
    io.write_meta(
        "keys",
        WriteOp::new().step(WriteStep::OmapSet(
            [(Bytes::from_static(b"key-70"), Bytes::from_static(b"other"))].into(),
        )),
    )
    .await
    .unwrap();
    store.shutdown().await.unwrap();
    assert!(!judge(&root, &expected).await.wrong.is_empty());
}
