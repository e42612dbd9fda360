//! Several processes on one store: killed in the middle, stopped, competing. The peers are this test binary, run again
//! with the (ignored) test `peer` and told by environment variables what to do.

#![allow(clippy::unwrap_used)]

mod common;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use common::{buffered, context, files_below, full, head, io, open};
use ferry_store::watch::Notification;
use ferry_store::{Errno, IoCtx, ReadOp, ReadStep, SnapId, Store, WatchHandler, WriteOp, WriteStep};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

const BLOCK: usize = 4096;
/// Objects that a hammering peer works on.
const OBJECTS: u64 = 6;

/// A process that ends, at the latest, with this value.
struct Peer {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl Peer {
    fn start(root: &Path, task: &str, seed: u64) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "peer", "--nocapture"])
            .env("FERRY_PEER_ROOT", root)
            .env("FERRY_PEER_TASK", task)
            .env("FERRY_PEER_SEED", seed.to_string())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self { child, lines }
    }

    /// The next line that begins with `peer `, without that; `None` at the end.
    fn line(&mut self) -> Option<String> {
        loop {
            let mut line = String::new();
            if self.lines.read_line(&mut line).unwrap() == 0 {
                return None;
            }
            // The test harness prints its own words before the first of ours.
            if let Some((_, said)) = line.trim_end().split_once("peer: ") {
                return Some(said.to_owned());
            }
        }
    }

    fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
        if signal == nix::sys::signal::Signal::SIGSTOP {
            // Its threads may run on for a moment after the signal was sent; this returns when all have stopped.
            let flags = nix::sys::wait::WaitPidFlag::WUNTRACED;
            let status = nix::sys::wait::waitpid(pid, Some(flags)).unwrap();
            assert!(
                matches!(status, nix::sys::wait::WaitStatus::Stopped(..)),
                "{status:?}"
            );
        }
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

fn say(text: impl std::fmt::Display) {
    println!("\npeer: {text}");
}

#[test]
#[ignore = "run by the other tests as a process of its own"]
fn peer() {
    let root = std::env::var("FERRY_PEER_ROOT").expect("run by the other tests");
    let task = std::env::var("FERRY_PEER_TASK").unwrap();
    let seed: u64 = std::env::var("FERRY_PEER_SEED").unwrap().parse().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let store = open(Path::new(&root), None).unwrap();
        let place = io(&store);
        match task.as_str() {
            "hammer" => hammer(&place, seed).await,
            "watch" => {
                store.watch(place.object("o"), Arc::new(Echo)).await.unwrap();
                say(store.instance().gid);
                std::future::pending::<()>().await;
            }
            "count" => count(&place).await,
            "buffered" => {
                place
                    .write_meta("o", buffered().write(0, vec![5; 9000]))
                    .await
                    .unwrap();
                say("written");
                std::future::pending::<()>().await;
            }
            other => panic!("no task {other}"),
        }
        store.shutdown().await.unwrap();
    });
}

struct Echo;

#[async_trait]
impl WatchHandler for Echo {
    async fn notified(&self, notification: Notification) -> Bytes {
        notification.payload
    }
    async fn lost(&self, _errno: Errno) {}
}

/// Writes generation after generation; each names itself in bytes and in an xattr, at once. Takes snapshots on the way.
async fn hammer(place: &IoCtx, seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut snaps = Vec::new();
    for generation in 1..=u64::MAX {
        let index = rng.random_range(0..OBJECTS);
        let mark = generation.to_le_bytes().repeat(BLOCK / 8);
        let xattr = WriteStep::SetXattr {
            name: "generation".into(),
            value: Bytes::copy_from_slice(&generation.to_le_bytes()),
        };
        // Even objects are bulk, odd ones inline.
        let op = if index % 2 == 0 { full() } else { WriteOp::new() };
        let op = op
            .write(0, mark.clone())
            .write(10 * BLOCK as u64, mark)
            .step(xattr);
        place
            .write(&format!("o{index}"), &context(&snaps), op)
            .await
            .unwrap();
        if generation % 7 == 0 {
            snaps.push(place.store().snap_id_create(place.pool()).await.unwrap());
        }
        if snaps.len() > 3 {
            place
                .store()
                .snap_id_remove(place.pool(), snaps.remove(0))
                .await
                .unwrap();
        }
        say(format!("{index} {generation}"));
    }
}

/// Raises a counter that others raise too, by comparing and writing.
async fn count(place: &IoCtx) {
    for _ in 0..40 {
        loop {
            let step = ReadStep::OmapGetValsByKeys(vec!["n".into()]);
            let reply = place
                .read("counter", SnapId::HEAD, ReadOp::new().step(step))
                .await
                .unwrap();
            let ferry_store::ReadResult::Omap { values, .. } = &reply.results[0] else {
                panic!("an omap read answered {reply:?}");
            };
            let old = values.get(&b"n"[..]).cloned().unwrap_or_default();
            let number: u64 = std::str::from_utf8(&old).unwrap().parse().unwrap_or(0);
            let op = WriteOp::new()
                .step(WriteStep::OmapCompare {
                    key: "n".into(),
                    value: old,
                })
                .step(WriteStep::OmapSet(
                    [("n".into(), (number + 1).to_string().into())].into(),
                ));
            match place.write_meta("counter", op).await {
                Ok(_) => break,
                Err(error) if error.errno == Errno::ECANCELED => {}
                Err(error) => panic!("{error}"),
            }
        }
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
}

/// Generation that an object is of; checks that all its parts say the same.
async fn generation_of(place: &IoCtx, name: &str) -> u64 {
    let Some(data) = head(place, name).await else {
        return 0;
    };
    let reply = place
        .read(
            name,
            SnapId::HEAD,
            ReadOp::new().step(ReadStep::GetXattr("generation".into())),
        )
        .await
        .unwrap();
    let ferry_store::ReadResult::Xattr(xattr) = &reply.results[0] else {
        panic!("an xattr read answered {reply:?}");
    };
    let generation = u64::from_le_bytes(xattr[..].try_into().unwrap());
    let mark = generation.to_le_bytes().repeat(BLOCK / 8);
    assert_eq!(data.len(), 11 * BLOCK, "{name}");
    assert!(
        data[..BLOCK] == mark && data[10 * BLOCK..] == mark,
        "{name} is a mixture of generations"
    );
    generation
}

#[test]
fn a_process_killed_in_the_middle_leaves_whole_operations_and_nothing_to_clean() {
    let seed = ferry_reference::seed();
    let mut rng = StdRng::seed_from_u64(seed);
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("s");
    let runtime = runtime();
    // One client stays open all the time, with its caches.
    let store = runtime.block_on(async { open(&root, None).unwrap() });
    let place = io(&store);
    for round in 0..6 {
        runtime.block_on(async {
            for index in 0..OBJECTS {
                if place.exists(&format!("o{index}")).await.unwrap() {
                    place
                        .write_meta(&format!("o{index}"), WriteOp::new().remove())
                        .await
                        .unwrap();
                }
            }
        });
        let mut acked = [0u64; OBJECTS as usize];
        let mut peer = Peer::start(&root, "hammer", rng.random());
        for _ in 0..rng.random_range(5..60) {
            let line = peer.line().unwrap();
            let (index, generation) = line.split_once(' ').unwrap();
            acked[index.parse::<usize>().unwrap()] = generation.parse().unwrap();
        }
        std::thread::sleep(Duration::from_micros(rng.random_range(0..3000)));
        peer.kill();
        while let Some(line) = peer.line() {
            if let Some((index, generation)) = line.split_once(' ')
                && let (Ok(index), Ok(generation)) = (index.parse::<usize>(), generation.parse())
            {
                acked[index] = generation;
            }
        }
        runtime.block_on(async {
            let fresh = open(&root, None).unwrap();
            for (index, acked) in acked.iter().enumerate() {
                let name = format!("o{index}");
                let (first, second) = if round % 2 == 0 {
                    (&store, &fresh)
                } else {
                    (&fresh, &store)
                };
                let found = generation_of(&io(first), &name).await;
                assert!(
                    found >= *acked,
                    "{name} is of {found}, {acked} was promised, seed {seed}"
                );
                assert_eq!(
                    generation_of(&io(second), &name).await,
                    found,
                    "{name}, seed {seed}"
                );
            }
            fresh.shutdown().await.unwrap();
        });
    }
    runtime.block_on(async {
        for index in 0..OBJECTS {
            let name = format!("o{index}");
            if place.exists(&name).await.unwrap() {
                place.write_meta(&name, WriteOp::new().remove()).await.unwrap();
            }
        }
        let next = store.snap_id_create(place.pool()).await.unwrap();
        for snap in 1..=next.0 {
            store.snap_id_remove(place.pool(), SnapId(snap)).await.unwrap();
        }
        assert_eq!(
            store.list_objects(place.scope(), "", "", 10).await.unwrap(),
            Vec::<String>::new()
        );
        store.shutdown().await.unwrap();
        // Whoever opens the pool next collects what the dead left.
        let data = root.join("pools/1/data");
        for round in 0.. {
            let cleaner = open(&root, None).unwrap();
            cleaner.pool_usage(place.pool()).await.unwrap();
            let left = files_below(&data);
            if left.is_empty() {
                break;
            }
            assert!(round < 2400, "files that nobody collects: {left:?}, seed {seed}");
            tokio::time::sleep(Duration::from_millis(50)).await;
            cleaner.shutdown().await.unwrap();
        }
    });
}

#[test]
fn buffered_bytes_survive_the_writers_death_and_others_make_them_durable() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("s");
    runtime().block_on(async {
        let store = open(&root, None).unwrap();
        let place = io(&store);
        let mut peer = Peer::start(&root, "buffered", 0);
        assert_eq!(peer.line().as_deref(), Some("written"));
        peer.kill();
        assert_eq!(head(&place, "o").await.unwrap(), vec![5; 9000]);
        store.sync_all(place.scope(), "o").await.unwrap();
        place.write_meta("o", full().write(1, "x")).await.unwrap();
        assert_eq!(head(&place, "o").await.unwrap()[..3], [5, b'x', 5]);
    });
}

#[test]
fn a_killed_watcher_is_noticed_at_once_and_a_stopped_one_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    // A path too long for a socket's address.
    let root = dir.path().join("long".repeat(20)).join("s");
    runtime().block_on(async {
        let store = open(&root, None).unwrap();
        let place = io(&store);
        place.write_meta("o", WriteOp::new().create(true)).await.unwrap();
        let mut peer = Peer::start(&root, "watch", 0);
        let gid: u64 = peer.line().unwrap().parse().unwrap();
        let watchers = store.list_watchers(place.object("o")).await.unwrap();
        assert_eq!(
            watchers.iter().map(|watcher| watcher.gid).collect::<Vec<_>>(),
            [gid]
        );
        let reply = store
            .notify(place.object("o"), "hello".into(), 60_000)
            .await
            .unwrap();
        assert_eq!(reply.acks, [(gid, watchers[0].cookie, "hello".into())]);
        peer.signal(nix::sys::signal::Signal::SIGSTOP);
        let reply = store
            .notify(place.object("o"), "stopped?".into(), 300)
            .await
            .unwrap();
        assert_eq!(
            (reply.acks.len(), reply.timeouts),
            (0, vec![(gid, watchers[0].cookie)])
        );
        assert_eq!(
            store.list_watchers(place.object("o")).await.unwrap().len(),
            1,
            "stopped is alive"
        );
        peer.signal(nix::sys::signal::Signal::SIGCONT);
        let reply = store
            .notify(place.object("o"), "again".into(), 60_000)
            .await
            .unwrap();
        assert_eq!(reply.acks.len(), 1);
        peer.kill();
        assert_eq!(store.list_watchers(place.object("o")).await.unwrap(), []);
        let reply = store
            .notify(place.object("o"), "anyone?".into(), 3_600_000)
            .await
            .unwrap();
        assert_eq!(reply, ferry_store::NotifyReply::default());
        let left = files_below(&root.join("run"));
        let of_dead = left.iter().filter(|file| {
            file.file_name()
                .unwrap()
                .to_str()
                .unwrap()
                .starts_with(&gid.to_string())
        });
        assert_eq!(of_dead.count(), 0, "{left:?}");
    });
}

#[test]
fn competing_processes_lose_no_update() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("s");
    let runtime = runtime();
    let store = runtime.block_on(async { open(&root, None).unwrap() });
    let place = io(&store);
    runtime
        .block_on(place.write_meta("counter", WriteOp::new().create(true)))
        .unwrap();
    let mut peers: Vec<Peer> = (0..3).map(|seed| Peer::start(&root, "count", seed)).collect();
    runtime.block_on(count(&place));
    for peer in &mut peers {
        assert!(peer.child.wait().unwrap().success());
    }
    let step = ReadStep::OmapGetValsByKeys(vec!["n".into()]);
    let reply = runtime
        .block_on(place.read("counter", SnapId::HEAD, ReadOp::new().step(step)))
        .unwrap();
    let ferry_store::ReadResult::Omap { values, .. } = &reply.results[0] else {
        panic!("an omap read answered {reply:?}");
    };
    assert_eq!(values[&b"n"[..]], "160");
}

#[test]
fn a_fenced_process_writes_nothing_more() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("s");
    runtime().block_on(async {
        let store = open(&root, None).unwrap();
        let place = io(&store);
        let mut peer = Peer::start(&root, "hammer", 1);
        let (index, _) = peer
            .line()
            .unwrap()
            .split_once(' ')
            .map(|(a, b)| (a.to_owned(), b.to_owned()))
            .unwrap();
        // The hammering client is the one that came after this one.
        let victim = ferry_store::ClientInstance {
            gid: store.instance().gid + 1,
            ..store.instance()
        };
        store.blocklist_add(&victim).await.unwrap();
        let name = format!("o{index}");
        let fenced = place
            .read(&name, SnapId::HEAD, ReadOp::new().stat())
            .await
            .unwrap()
            .version;
        // It may have said so much meanwhile that it waits for a reader.
        while peer.line().is_some() {}
        assert!(!peer.child.wait().unwrap().success(), "a fenced client went on");
        let later = place
            .read(&name, SnapId::HEAD, ReadOp::new().stat())
            .await
            .unwrap()
            .version;
        assert_eq!(fenced, later, "a write after the fence");
    });
}
