//! Commands beside a server that has the image open: forwarded work, snapshots, sizes, locks, notifications.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail their test")]

mod support;

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::Stdio;

use bytes::Bytes;
use support::nbd::{connect, negotiate};
use support::normalise;
use support::store::TestStore;

const BLOCK: usize = 4096;

fn block(value: u8) -> Bytes {
    Bytes::from(vec![value; BLOCK])
}

/// Runs a blocking command while a client's runtime goes on.
macro_rules! beside {
    ($store:expr, $line:expr) => {
        tokio::task::block_in_place(|| $store.ok($line))
    };
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn execute_beside_a_serving_writer_is_forwarded_and_loses_nothing() {
    let store = TestStore::new();
    beside!(store, "pool create fast");
    beside!(store, "create --size 32M --object-size 1M src");
    beside!(store, "bench --io-type write --io-size 4K --io-total 128K src");
    beside!(store, "migration prepare src fast/dst --object-size 2M");
    let served = tokio::task::block_in_place(|| store.serve("fast/dst"));
    let client = connect(&served.socket, "fast/dst").await;
    client.write(0, block(1), false).await.unwrap();
    let writing = async {
        for n in 1..64u64 {
            client
                .write(n * (512 << 10), block(n as u8), false)
                .await
                .unwrap();
        }
        client.flush().await.unwrap();
    };
    let executing = async {
        let said = beside!(store, "migration execute fast/dst");
        assert_eq!(normalise(&said), "Image migration: 100% complete...done.\n");
    };
    tokio::join!(writing, executing);
    let status = beside!(store, "status fast/dst");
    assert!(
        status.contains("state: executed") && status.contains("watcher="),
        "{status}"
    );
    let lock = beside!(store, "lock ls fast/dst");
    assert!(
        lock.starts_with("There is 1 exclusive lock"),
        "the server keeps its lock: {lock}"
    );
    beside!(store, "migration commit fast/dst --no-progress");
    for n in 1..64u64 {
        assert_eq!(
            client.read(n * (512 << 10), BLOCK as u32).await.unwrap(),
            block(n as u8),
            "block {n}"
        );
    }
    client.disconnect().await.unwrap();
    assert_eq!(served.stop(), (String::new(), 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_made_on_a_served_image_keeps_what_was_written_before() {
    let store = TestStore::new();
    beside!(store, "create --size 8M disk");
    // No images are named: any is found when it is asked for.
    let served = tokio::task::block_in_place(|| store.serve(""));
    let client = connect(&served.socket, "rbd/disk").await;
    client.write(0, block(1), false).await.unwrap();
    beside!(store, "snap create disk@before --no-progress");
    client.write(0, block(2), false).await.unwrap();
    let old = connect(&served.socket, "disk@before").await;
    assert!(old.details().read_only());
    assert_eq!(old.read(0, BLOCK as u32).await.unwrap(), block(1));
    assert!(old.write(0, block(3), false).await.is_err());
    assert_eq!(client.read(0, BLOCK as u32).await.unwrap(), block(2));
    old.disconnect().await.unwrap();
    client.disconnect().await.unwrap();
    assert_eq!(served.stop(), (String::new(), 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_resize_is_seen_by_the_server_at_once() {
    let store = TestStore::new();
    beside!(store, "create --size 8M disk");
    let served = tokio::task::block_in_place(|| store.serve("disk"));
    let client = connect(&served.socket, "").await;
    client.write(0, block(1), false).await.unwrap();
    assert_eq!(client.details().size_bytes, 8 << 20);
    beside!(store, "resize disk --size 16M --no-progress");
    let mut negotiation = negotiate(&served.socket).await;
    assert_eq!(negotiation.info("rbd/disk").await.unwrap().size_bytes, 16 << 20);
    negotiation.abort().await.unwrap();
    // A connection keeps the size that it was told; a new one can use all of it.
    let grown = connect(&served.socket, "rbd/disk").await;
    grown
        .write((16 << 20) - BLOCK as u64, block(9), true)
        .await
        .unwrap();
    beside!(store, "resize disk --size 4M --allow-shrink --no-progress");
    assert!(grown.read(8 << 20, BLOCK as u32).await.is_err(), "cut off");
    assert_eq!(grown.read(0, BLOCK as u32).await.unwrap(), block(1));
    grown.disconnect().await.unwrap();
    client.disconnect().await.unwrap();
    assert_eq!(served.stop(), (String::new(), 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_writer_is_handed_the_lock_and_both_see_one_image() {
    let store = TestStore::new();
    beside!(store, "create --size 8M disk");
    let first = tokio::task::block_in_place(|| store.serve("disk"));
    let second = tokio::task::block_in_place(|| store.serve("disk --listen 127.0.0.1:0"));
    let address = second
        .first
        .split("nbd://")
        .nth(1)
        .unwrap()
        .split('/')
        .next()
        .unwrap()
        .to_owned();
    let one = connect(&first.socket, "").await;
    let two = ferry_nbd::client::Negotiation::connect_tcp(address.as_str(), Default::default())
        .await
        .unwrap()
        .go("")
        .await
        .unwrap();
    for round in 0..5u8 {
        one.write(0, block(round), false).await.unwrap();
        assert_eq!(two.read(0, BLOCK as u32).await.unwrap(), block(round));
        two.write(BLOCK as u64, block(round + 100), false).await.unwrap();
        assert_eq!(
            one.read(BLOCK as u64, BLOCK as u32).await.unwrap(),
            block(round + 100)
        );
    }
    let status = beside!(store, "status disk");
    assert_eq!(status.matches("watcher=").count(), 2, "{status}");
    let lock = beside!(store, "lock ls disk");
    assert!(lock.starts_with("There is 1 exclusive lock"), "{lock}");
    one.disconnect().await.unwrap();
    two.disconnect().await.unwrap();
    assert_eq!((first.stop().1, second.stop().1), (0, 0));
    assert_eq!(beside!(store, "lock ls disk"), "");
    assert_eq!(beside!(store, "status disk"), "Watchers: none\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_named_images_are_served_and_only_existing_ones_are_found() {
    let store = TestStore::new();
    for line in [
        "create --size 1M a",
        "create --size 1M b",
        "namespace create rbd/ns",
        "create --size 1M rbd/ns/c",
    ] {
        beside!(store, line);
    }
    let names =
        |list: Vec<ferry_nbd::ExportInfo>| list.into_iter().map(|export| export.name).collect::<Vec<_>>();
    let served = tokio::task::block_in_place(|| store.serve("a"));
    let mut negotiation = negotiate(&served.socket).await;
    assert_eq!(names(negotiation.list().await.unwrap()), ["rbd/a"]);
    assert!(negotiation.info("rbd/b").await.is_err());
    assert_eq!(negotiation.info("a").await.unwrap().size_bytes, 1 << 20);
    negotiation.abort().await.unwrap();
    assert_eq!(served.stop().1, 0);

    let served = tokio::task::block_in_place(|| store.serve(""));
    let mut negotiation = negotiate(&served.socket).await;
    assert_eq!(
        names(negotiation.list().await.unwrap()),
        ["rbd/a", "rbd/b", "rbd/ns/c"]
    );
    for bad in ["", "rbd/nosuch", "nopool/a", "a@nosnap", "/", "@", "rbd/ns/a"] {
        assert!(negotiation.info(bad).await.is_err(), "{bad}");
    }
    beside!(store, "create --size 2M late");
    assert_eq!(negotiation.info("late").await.unwrap().size_bytes, 2 << 20);
    negotiation.abort().await.unwrap();
    // Nothing is open, so nothing is in the way of a removal.
    assert_eq!(beside!(store, "status late"), "Watchers: none\n");
    beside!(store, "rm late --no-progress");
    assert_eq!(served.stop(), (String::new(), 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn holes_are_told_where_the_image_stores_nothing() {
    let store = TestStore::new();
    beside!(store, "create --size 16M --object-size 1M disk");
    let served = tokio::task::block_in_place(|| store.serve("disk"));
    let client = connect(&served.socket, "").await;
    client
        .write(4 << 20, Bytes::from(vec![5; 1 << 20]), true)
        .await
        .unwrap();
    client
        .write(8 << 20, Bytes::from(vec![6; 2 << 20]), true)
        .await
        .unwrap();
    client.trim(9 << 20, 1 << 20, false).await.unwrap();
    let mut at = 0;
    let mut data = Vec::new();
    while at < 16 << 20 {
        for extent in client.block_status(at, (16 << 20) - at, false).await.unwrap() {
            assert_eq!(extent.hole, extent.zero);
            if !extent.hole {
                data.push((at, extent.length_bytes));
            }
            at += extent.length_bytes;
        }
    }
    assert_eq!(data, [(4 << 20, 1 << 20), (8 << 20, 1 << 20)]);
    client.disconnect().await.unwrap();
    assert_eq!(served.stop().1, 0);
}

#[test]
fn watch_prints_every_notification_until_its_input_ends() {
    let store = TestStore::new();
    store.ok("create --size 8M se");
    let mut child = store
        .command(&["watch", "se"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap())
        .lines()
        .map(|line| line.unwrap());
    assert_eq!(lines.next().unwrap(), "press enter to exit...");
    let status = store.ok("status se");
    assert_eq!(status.matches("watcher=").count(), 1, "{status}");
    store.ok("snap create se@s --no-progress");
    let mut operations = Vec::new();
    while operations.last().is_none_or(|last| last != "HeaderUpdate") {
        let line = lines.next().unwrap();
        let rest = line.strip_prefix("se received notification: notify_id=").unwrap();
        let fields: Vec<&str> = rest.split(", ").collect();
        assert!(
            fields[1].starts_with("cookie=") && fields[2].starts_with("notifier_id="),
            "{line}"
        );
        assert!(fields[3].starts_with("bl.length="), "{line}");
        operations.push(fields[4].strip_prefix("notify_op=").unwrap().to_owned());
    }
    for wanted in ["Quiesce", "Unquiesce", "HeaderUpdate"] {
        assert!(
            operations.iter().any(|op| op == wanted),
            "{wanted}: {operations:?}"
        );
    }
    store.ok("snap create se@t --skip-quiesce --no-progress");
    // What the first command still told; the second one's own change comes last.
    let mut seen = Vec::new();
    while seen
        .last()
        .is_none_or(|last: &String| !last.ends_with("notify_op=HeaderUpdate"))
    {
        seen.push(lines.next().unwrap());
    }
    assert!(seen.iter().all(|line| !line.ends_with("uiesce")), "{seen:?}");
    child.stdin.take().unwrap().write_all(b"\n").unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(store.ok("status se"), "Watchers: none\n");
}
