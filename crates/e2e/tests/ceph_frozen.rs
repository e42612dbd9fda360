//! Clients of both sides that stand still (SIGSTOP) for longer than the cluster keeps their watch, and go on: alone as if nothing had
//! been; after somebody took the lock over they are fenced, and nothing that they write then is seen.

#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use ferry_e2e::ceph::unique;
use ferry_e2e::ferry::wait_until;
use ferry_e2e::load::{connect, read_all};
use ferry_e2e::{Ferry, Librbd, Side, check_maps};
use ferry_nbd::client::Client;
use rustix::process::Signal;
use serde_json::Value;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

const BLOCK: usize = 4096;
/// How long whoever goes on may take to hear what became of it.
const BOUND: Duration = Duration::from_secs(60);
/// Between two looks at a client that stands still: it takes seconds, and each look is a process.
const PAUSE: Duration = Duration::from_millis(250);

/// An image of 8 MiB that Ceph's `rbd` has made: its name in the pool `rbd`, and with it.
fn image(ferry: &Ferry) -> (String, String) {
    let name = unique("frozen");
    let spec = format!("rbd/{name}");
    ferry.ok_as(
        Side::Ceph,
        &["create", "--size", "8M", "--object-size", "256K", &spec],
    );
    (name, spec)
}

/// What Ceph's `rbd` says, as JSON.
#[track_caller]
fn told(ferry: &Ferry, words: &[&str]) -> Value {
    let text = ferry.ok_as(Side::Ceph, &[words, &["--format", "json"]].concat());
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{words:?}: {error}: {text}"))
}

/// Addresses and cookies of who watches the image's header.
#[track_caller]
fn watchers(ferry: &Ferry, spec: &str) -> Vec<(String, u64)> {
    let status = told(ferry, &["status", spec]);
    let watchers = status["watchers"].as_array().cloned().unwrap_or_default();
    let watcher = |watcher: &Value| {
        let address = watcher["address"].as_str().unwrap().to_owned();
        (address, watcher["cookie"].as_u64().unwrap())
    };
    watchers.iter().map(watcher).collect()
}

/// The address of the only client there is.
#[track_caller]
fn only_address(ferry: &Ferry, spec: &str) -> String {
    let mut watchers = watchers(ferry, spec);
    assert_eq!(watchers.len(), 1, "{watchers:?}");
    watchers.remove(0).0
}

/// The cookie that the image's exclusive lock names.
#[track_caller]
fn lock_cookie(ferry: &Ferry, spec: &str) -> Option<String> {
    let locks = told(ferry, &["lock", "ls", spec]);
    locks[0]["id"].as_str().map(str::to_owned)
}

/// Whether there is one watch, of that client, and the lock names it.
#[track_caller]
fn alone_has_watch_and_lock(ferry: &Ferry, spec: &str, address: &str) -> bool {
    match &watchers(ferry, spec)[..] {
        [(watching, cookie)] => {
            let named = lock_cookie(ferry, spec);
            watching == address && named == Some(format!("auto {cookie}"))
        }
        _ => false,
    }
}

/// Whether the cluster has fenced that client.
#[track_caller]
fn is_fenced(ferry: &Ferry, address: &str) -> bool {
    let listed = ferry.ceph(&["osd", "blocklist", "ls"]);
    // A line is an address, and until when; some releases put the kind of address before it.
    let mut addresses = listed.lines().filter_map(|line| line.split_whitespace().next());
    addresses.any(|listed| listed.ends_with(address))
}

fn data(byte: u8) -> Bytes {
    Bytes::from(vec![byte; BLOCK])
}

fn place(block: usize) -> u64 {
    (block * BLOCK) as u64
}

/// A durable write of one block, which must succeed.
#[track_caller]
fn write(runtime: &Runtime, client: &Client, block: usize, byte: u8) {
    let written = within_bound(runtime, client.write(place(block), data(byte), true));
    written.unwrap_or_else(|error| panic!("block {block}: {error}"));
}

#[track_caller]
fn within_bound<F: Future>(runtime: &Runtime, client: F) -> F::Output {
    let answered = runtime.block_on(async { tokio::time::timeout(BOUND, client).await });
    answered.expect("an answer in time")
}

/// The blocks hold these bytes, one for each.
#[track_caller]
fn holds(found: &[u8], blocks: &[(usize, u8)], who: &str) {
    for (block, byte) in blocks {
        let at = block * BLOCK;
        let first = found[at];
        assert!(
            found[at..at + BLOCK].iter().all(|found| found == byte),
            "{who}: block {block} should hold {byte}, and begins with {first}"
        );
    }
}

/// A client that writes all the time, each block durably before the next.
struct Load {
    written: Arc<AtomicU64>,
    ends: Arc<AtomicBool>,
    task: JoinHandle<Vec<u8>>,
}

/// Blocks that a [`Load`] writes to, from the first on.
const LOAD_BLOCKS: usize = 16;

impl Load {
    fn start(runtime: &Runtime, client: Arc<Client>) -> Self {
        let (written, ends) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let task = runtime.spawn(write_on(client, Arc::clone(&written), Arc::clone(&ends)));
        Self { written, ends, task }
    }

    /// Waits until it has written every block once more.
    #[track_caller]
    fn goes_on(&self) {
        let goal = self.written.load(Ordering::SeqCst) + 2 * LOAD_BLOCKS as u64;
        wait_until("the load goes on", || {
            assert!(!self.task.is_finished(), "a write has failed");
            self.written.load(Ordering::SeqCst) >= goal
        });
    }

    /// Ends it; what its blocks hold.
    #[track_caller]
    fn stop(self, runtime: &Runtime) -> Vec<u8> {
        self.ends.store(true, Ordering::SeqCst);
        within_bound(runtime, self.task).unwrap()
    }
}

async fn write_on(client: Arc<Client>, written: Arc<AtomicU64>, ends: Arc<AtomicBool>) -> Vec<u8> {
    let mut blocks = vec![0_u8; LOAD_BLOCKS * BLOCK];
    let mut number: u64 = 0;
    while !ends.load(Ordering::SeqCst) {
        number += 1;
        let block = number as usize % LOAD_BLOCKS;
        // No byte is that of the same block's last write.
        let byte = (number / LOAD_BLOCKS as u64 % 251) as u8 + 1;
        blocks[block * BLOCK..][..BLOCK].fill(byte);
        let answer = client.write(place(block), data(byte), true).await;
        answer.unwrap_or_else(|error| panic!("write {number}: {error}"));
        written.store(number, Ordering::SeqCst);
    }
    blocks
}

#[test]
fn a_server_that_stood_still_with_nobody_there_watches_again_writes_on_and_gives_the_lock_when_asked() {
    let Some(ferry) = Ferry::on_ceph() else { return };
    let (name, spec) = image(&ferry);
    let served = ferry.serve(&[&spec]);
    let runtime = Runtime::new().unwrap();
    let client = Arc::new(runtime.block_on(connect(&served.socket, &spec)));
    let load = Load::start(&runtime, Arc::clone(&client));
    load.goes_on();
    let address = only_address(&ferry, &spec);
    assert!(alone_has_watch_and_lock(&ferry, &spec, &address));

    // In the middle of a write, as the load is.
    served.process.signal(Signal::STOP);
    wait_until("the cluster has given the watch up", || {
        std::thread::sleep(PAUSE);
        watchers(&ferry, &spec).is_empty()
    });
    served.process.signal(Signal::CONT);
    wait_until("it watches again, and the lock names the new watch", || {
        std::thread::sleep(PAUSE);
        alone_has_watch_and_lock(&ferry, &spec, &address)
    });
    load.goes_on();
    let loaded = load.stop(&runtime);
    // No second watch has come meanwhile.
    assert!(
        alone_has_watch_and_lock(&ferry, &spec, &address),
        "watchers {:?}, lock {:?}",
        watchers(&ferry, &spec),
        lock_cookie(&ferry, &spec)
    );
    let found = ferry.export_as(Side::Ceph, &spec);
    assert!(found[..loaded.len()] == loaded, "Ceph's rbd reads otherwise");

    // If the lock named another watch, its owner would pass for dead and be fenced.
    let mut librbd = Librbd::open(&ferry, "rbd", &name);
    librbd.ok(&format!("write {} {BLOCK} 7", place(100)));
    librbd.ok("flush");
    assert_eq!(librbd.ok("owner"), "True");
    write(&runtime, &client, 101, 8);
    librbd.ok(&format!("write {} {BLOCK} 9", place(102)));
    librbd.ok("flush");
    assert!(!is_fenced(&ferry, &address), "{address} was taken for dead");
    let read = within_bound(&runtime, read_all(&client));
    librbd.close();
    drop(client);
    served.stop();
    for side in Side::BOTH {
        let found = ferry.export_as(side, &spec);
        let who = format!("{side:?}");
        assert!(found == read, "{who} and the server's client read otherwise");
        assert!(found[..loaded.len()] == loaded, "{who} reads the load otherwise");
        holds(&found, &[(100, 7), (101, 8), (102, 9), (103, 0)], &who);
    }
    check_maps(&ferry, &spec, &[], "watched again");
}

#[test]
fn a_server_that_stood_still_while_librbd_took_the_lock_over_ends_and_none_of_its_late_writes_is_seen() {
    let Some(ferry) = Ferry::on_ceph() else { return };
    let (name, spec) = image(&ferry);
    let served = ferry.serve(&[&spec]);
    let runtime = Runtime::new().unwrap();
    let client = Arc::new(runtime.block_on(connect(&served.socket, &spec)));
    for block in 0..8 {
        write(&runtime, &client, block, 1);
    }
    let address = only_address(&ferry, &spec);
    // Acknowledged, not flushed: it may be lost, but it may not come later.
    within_bound(&runtime, client.write(place(8), data(2), false)).unwrap();

    served.process.signal(Signal::STOP);
    // These lie in the server's socket until it goes on. Some are for blocks that the new owner writes.
    let late: Vec<_> = [0, 4, 5, 9, 200]
        .into_iter()
        .map(|block| {
            let client = Arc::clone(&client);
            runtime.spawn(async move { client.write(place(block), data(9), true).await })
        })
        .collect();
    let flush = {
        let client = Arc::clone(&client);
        runtime.spawn(async move {
            // It need not be durable to be acknowledged; the flush must tell.
            let _ = client.write(place(10), data(9), false).await;
            client.flush().await
        })
    };
    let mut librbd = Librbd::open(&ferry, "rbd", &name);
    // It waits until the watch is gone.
    librbd.ok(&format!("write 0 {} 3", 2 * BLOCK));
    librbd.ok(&format!("write {} {BLOCK} 4", place(5)));
    librbd.ok("flush");
    assert_eq!(librbd.ok("owner"), "True");
    assert!(is_fenced(&ferry, &address), "{address} could write on");
    let before = ferry.export_as(Side::Ceph, &spec);

    served.process.signal(Signal::CONT);
    let start = Instant::now();
    for (number, late) in late.into_iter().enumerate() {
        let answer = within_bound(&runtime, late).unwrap();
        assert!(answer.is_err(), "late write {number} was acknowledged as durable");
    }
    let flushed = within_bound(&runtime, flush).unwrap();
    assert!(flushed.is_err(), "a flush after a late write succeeded");
    served.process.finish().fails(108, "start it again");
    let took = start.elapsed();
    assert!(took < BOUND, "it took {took:?} until the server ended");

    let known = [
        (0, 3),
        (1, 3),
        (2, 1),
        (3, 1),
        (4, 1),
        (5, 4),
        (6, 1),
        (7, 1),
        (9, 0),
        (10, 0),
        (200, 0),
    ];
    for side in Side::BOTH {
        let found = ferry.export_as(side, &spec);
        holds(&found, &known, &format!("{side:?}"));
        assert!(found == before, "{side:?}: something came after the takeover");
    }
    let unflushed = before[8 * BLOCK];
    assert!([0, 2].contains(&unflushed), "block 8 begins with {unflushed}");
    holds(&before, &[(8, unflushed)], "Ceph");

    // One that is started anew is let in.
    let served = ferry.serve(&[&spec]);
    let client = runtime.block_on(connect(&served.socket, &spec));
    write(&runtime, &client, 10, 5);
    librbd.ok(&format!("write {} {BLOCK} 6", place(9)));
    librbd.close();
    runtime.block_on(client.disconnect()).unwrap();
    served.stop();
    for side in Side::BOTH {
        let found = ferry.export_as(side, &spec);
        holds(&found, &[(0, 3), (4, 1), (9, 6), (10, 5)], &format!("{side:?}"));
    }
    check_maps(&ferry, &spec, &[], "taken over from a server");
}

#[test]
fn librbd_that_stood_still_while_a_server_took_the_lock_over_is_told_and_its_late_writes_are_not_seen() {
    let Some(ferry) = Ferry::on_ceph() else { return };
    let (name, spec) = image(&ferry);
    let mut librbd = Librbd::open(&ferry, "rbd", &name);
    librbd.ok(&format!("write 0 {} 1", 4 * BLOCK));
    librbd.ok("flush");
    assert_eq!(librbd.ok("owner"), "True");
    let address = only_address(&ferry, &spec);

    librbd.signal(Signal::STOP);
    // It reads these when it goes on: blocks that the new owner writes, one that it leaves, one of an object that is not there.
    let late = [0, 2, 3, 200];
    for block in late {
        librbd.tell(&format!("write {} {BLOCK} 9", place(block)));
    }
    librbd.tell("flush");
    let served = ferry.serve(&[&spec]);
    let runtime = Runtime::new().unwrap();
    let client = runtime.block_on(connect(&served.socket, &spec));
    // It waits until the watch is gone.
    write(&runtime, &client, 0, 3);
    write(&runtime, &client, 2, 4);
    assert!(is_fenced(&ferry, &address), "{address} could write on");
    let before = ferry.export_as(Side::Ceph, &spec);

    librbd.signal(Signal::CONT);
    let mut answers = Vec::new();
    for _ in 0..=late.len() {
        match librbd.answer_within(BOUND) {
            Some(answer) => answers.push(answer),
            None => panic!("no more answers after {answers:?}"),
        }
    }
    // librbd may acknowledge a write early, and tells of its failure in the flush.
    let (flush, writes) = answers.split_last().unwrap();
    let all_failed = writes.iter().all(|answer| answer.starts_with("error"));
    assert!(flush.starts_with("error") || all_failed, "{answers:?}");
    librbd.kill();

    for side in Side::BOTH {
        assert!(
            ferry.export_as(side, &spec) == before,
            "{side:?}: something came after the takeover"
        );
    }
    write(&runtime, &client, 5, 6);
    runtime.block_on(client.disconnect()).unwrap();
    served.stop();
    for side in Side::BOTH {
        let found = ferry.export_as(side, &spec);
        let known = [(0, 3), (1, 1), (2, 4), (3, 1), (4, 0), (5, 6), (200, 0)];
        holds(&found, &known, &format!("{side:?}"));
    }
    check_maps(&ferry, &spec, &[], "taken over from librbd");
}
