//! Operations that need no waiting give what the others give, and hold objects as firmly as those. Random tests print a
//! seed; `FERRY_SEED` replays it.

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use common::{buffered, context, full, io, open};
use ferry_store::{Errno, IoCtx, ReadNow, ReadOp, SnapId, Store, WriteOp};
use ferry_store_local::disk::sim::SimDisk;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

const BLOCK: usize = 4096;
const BLOCKS: usize = 12;
const OBJECTS: usize = 3;

type Content = BTreeMap<usize, Vec<u8>>;

/// The bytes from `offset` on, by whichever way; `None` without the object.
async fn read(
    io: &IoCtx,
    object: usize,
    snap: SnapId,
    offset: usize,
    length: usize,
) -> (Option<Vec<u8>>, bool) {
    let name = format!("o{object}");
    let mut buffer = vec![0xee; length];
    match io.read_now(&name, snap, offset as u64, &mut buffer) {
        ReadNow::Filled => (Some(buffer), true),
        ReadNow::Absent => (None, true),
        ReadNow::WouldWait => {
            let op = ReadOp::new().read(offset as u64, length as u64);
            match io.read(&name, snap, op).await {
                Ok(reply) => {
                    let mut found = reply.data(0).to_vec();
                    found.resize(length, 0);
                    (Some(found), false)
                }
                Err(error) if error.errno == Errno::ENOENT => (None, false),
                Err(error) => panic!("{error}"),
            }
        }
    }
}

fn shown(content: &Content, object: usize, offset: usize, length: usize) -> Option<Vec<u8>> {
    let bytes = content.get(&object)?;
    let from = offset.min(bytes.len());
    let to = (offset + length).min(bytes.len());
    let mut shown = bytes[from..to].to_vec();
    shown.resize(length, 0);
    Some(shown)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_done_without_waiting_is_what_waiting_would_have_done() {
    let first = ferry_reference::seed();
    let (mut reads_now, mut writes_now) = (0, 0);
    for seed in (0..12).map(|round| first.wrapping_add(round)) {
        let sim = match seed % 3 {
            0 => Some(SimDisk::new()),
            1 => Some(SimDisk::with_reflinks()),
            _ => None,
        };
        let mut rng = StdRng::seed_from_u64(seed);
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("s");
        let stores = [
            open(&root, sim.as_ref()).unwrap(),
            open(&root, sim.as_ref()).unwrap(),
        ];
        let ios = [io(&stores[0]), io(&stores[1])];
        let (mut now, mut snaps) = (Content::new(), Vec::new());
        let mut history: Vec<(SnapId, Content)> = Vec::new();
        for step in 0..250 {
            // Runs of steps by one handle, so that it gets the lease.
            let by = &ios[(step / 20) % 2];
            let object = rng.random_range(0..OBJECTS);
            let name = format!("o{object}");
            let snapc = context(&snaps);
            let block = rng.random_range(0..BLOCKS);
            match rng.random_range(0..20) {
                0..8 => {
                    let offset = block * BLOCK;
                    let data = vec![rng.random(); BLOCK * rng.random_range(1..3)];
                    let bytes = now.entry(object).or_default();
                    bytes.resize(bytes.len().max(offset + data.len()), 0);
                    bytes[offset..offset + data.len()].copy_from_slice(&data);
                    match by.write_now(&name, &snapc, offset as u64, &data) {
                        true => writes_now += 1,
                        false => {
                            let op = buffered().write(offset as u64, data);
                            by.write(&name, &snapc, op).await.unwrap();
                        }
                    }
                }
                8..11 => {
                    let offset = block * BLOCK + rng.random_range(0..BLOCK);
                    let data = vec![rng.random(); rng.random_range(1..2 * BLOCK)];
                    let bytes = now.entry(object).or_default();
                    bytes.resize(bytes.len().max(offset + data.len()), 0);
                    bytes[offset..offset + data.len()].copy_from_slice(&data);
                    by.write(&name, &snapc, full().write(offset as u64, data))
                        .await
                        .unwrap();
                }
                11 => {
                    let size = rng.random_range(0..BLOCKS * BLOCK);
                    if let Some(bytes) = now.get_mut(&object) {
                        bytes.resize(size, 0);
                        by.write(&name, &snapc, buffered().truncate(size as u64))
                            .await
                            .unwrap();
                    }
                }
                12 if now.remove(&object).is_some() => {
                    by.write(&name, &snapc, WriteOp::new().remove()).await.unwrap();
                }
                13 if snaps.len() < 6 => {
                    let snap = stores[0].snap_id_create(by.pool()).await.unwrap();
                    snaps.push(snap);
                    history.push((snap, now.clone()));
                }
                14 => stores[(step / 20) % 2].flush(by.scope(), "o").await.unwrap(),
                _ => {}
            }
            for reader in [by, &ios[rng.random_range(0..2)]] {
                let head = (SnapId::HEAD, now.clone());
                let (snap, content) = match rng.random_range(0..history.len() + 2) {
                    index if index < history.len() => &history[index],
                    _ => &head,
                };
                let offset = rng.random_range(0..BLOCKS * BLOCK);
                let length = rng.random_range(1..3 * BLOCK);
                let (found, at_once) = read(reader, object, *snap, offset, length).await;
                reads_now += usize::from(at_once && found.is_some());
                assert!(
                    found == shown(content, object, offset, length),
                    "seed {seed} step {step} object {object} snapshot {snap} at {offset}, at once: {at_once}"
                );
            }
        }
        for store in stores {
            store.shutdown().await.unwrap();
        }
    }
    assert!(reads_now > 1000, "{reads_now} reads without waiting");
    assert!(writes_now > 100, "{writes_now} writes without waiting");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn handles_that_do_not_wait_exclude_each_other_and_those_that_do() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("s");
    let stores = [open(&root, None).unwrap(), open(&root, None).unwrap()];
    io(&stores[0])
        .write_meta("o", full().write(0, vec![0; 2 * BLOCK]))
        .await
        .unwrap();
    for store in &stores {
        // Alone, a handle that has looked at the object once need not wait.
        io(store)
            .read("o", SnapId::HEAD, ReadOp::new().read(0, 1))
            .await
            .unwrap();
        let data = vec![0; 2 * BLOCK];
        assert!((0..4).any(|_| io(store).write_now("o", &context(&[]), 0, &data)));
    }
    static DONE: AtomicBool = AtomicBool::new(false);
    let mut tasks = Vec::new();
    for store in &stores {
        for waits in [false, true] {
            let io = io(store);
            tasks.push(tokio::spawn(async move {
                for round in 0..1500u32 {
                    let data = vec![round as u8; 2 * BLOCK];
                    // Runs without pause on one handle bring the lease; what waits takes it away.
                    let now = !waits && io.write_now("o", &context(&[]), 0, &data);
                    if !now && round % 8 == 0 {
                        let op = buffered().write(0, data);
                        io.write("o", &context(&[]), op).await.unwrap();
                    }
                    if round % 64 == 0 {
                        tokio::task::yield_now().await;
                    }
                }
            }));
        }
        let io = io(store);
        tasks.push(tokio::spawn(async move {
            while !DONE.load(Ordering::Relaxed) {
                let mut buffer = vec![0; 2 * BLOCK];
                if io.read_now("o", SnapId::HEAD, 0, &mut buffer) == ReadNow::Filled {
                    assert!(buffer.iter().all(|byte| *byte == buffer[0]), "a torn read");
                } else {
                    let reply = io.read("o", SnapId::HEAD, ReadOp::new().read(0, 2 * BLOCK as u64));
                    let found = reply.await.unwrap().data(0);
                    assert!(found.iter().all(|byte| *byte == found[0]), "a torn read");
                }
            }
        }));
    }
    let readers = [tasks.remove(5), tasks.remove(2)];
    for writer in tasks {
        writer.await.unwrap();
    }
    DONE.store(true, Ordering::Relaxed);
    for reader in readers {
        reader.await.unwrap();
    }
}
