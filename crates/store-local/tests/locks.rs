//! SQLite's locks on the databases of an open store, which say to other processes that somebody has them open. They are the process's,
//! and the kernel lets go of them when anybody in it closes a descriptor of the file: nothing that a client does, or another client of
//! the same process, may take them away. Other processes are this test binary, run again with the (ignored) test `peer`.

#![allow(clippy::unwrap_used)] // a test that cannot go on says so by panicking

mod common;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use bytes::Bytes;
use common::{io, open};
use ferry_store::check::CheckOptions;
use ferry_store::{PoolId, ReadOp, ReadResult, ReadStep, SnapId, Store, WriteOp, WriteStep};
use ferry_store_local::LocalStore;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

/// What SQLite locks of a store: databases, and what their users share.
const LOCKED: [&str; 4] = [
    "store.db",
    "store.db-shm",
    "pools/1/pool.db",
    "pools/1/pool.db-shm",
];
/// Byte of SQLite's header that says how much of each page is reserved.
const RESERVED_AT: u64 = 20;

/// Runs a task in another process to its end; what it said.
fn peer_does(task: &str, path: &Path) -> String {
    let ended = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "peer", "--nocapture"])
        .env("FERRY_PEER_TASK", task)
        .env("FERRY_PEER_PATH", path)
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    assert!(ended.status.success(), "{task}: {}", ended.status);
    let said = String::from_utf8(ended.stdout).unwrap();
    // The test harness prints its own words around ours.
    let said = said.lines().filter_map(|line| line.strip_prefix("peer: "));
    said.collect::<Vec<_>>().join("\n")
}

#[test]
#[ignore = "run by the other tests as a process of its own"]
fn peer() {
    let task = std::env::var("FERRY_PEER_TASK").expect("run by the other tests");
    let path = PathBuf::from(std::env::var_os("FERRY_PEER_PATH").unwrap());
    let said = match task.as_str() {
        "who has locks" => LOCKED
            .map(|name| format!("{name}: {}", holder(&path.join(name))))
            .join("\npeer: "),
        "flip" => {
            let file = File::options().read(true).write(true).open(&path).unwrap();
            let mut byte = [0];
            file.read_exact_at(&mut byte, RESERVED_AT).unwrap();
            file.write_all_at(&[byte[0] ^ 1], RESERVED_AT).unwrap();
            String::new()
        }
        other => panic!("no task {other}"),
    };
    println!("\npeer: {said}");
}

/// The process that has a lock on any byte of a file.
fn holder(path: &Path) -> libc::pid_t {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut lock = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    fcntl(&file, FcntlArg::F_GETLK(&mut lock)).unwrap();
    match i32::from(lock.l_type) {
        libc::F_UNLCK => 0,
        _ => lock.l_pid,
    }
}

/// That this process has all its locks, as another one sees it.
#[track_caller]
fn all_are_held(root: &Path, when: &str) {
    let own = std::process::id();
    let expected = LOCKED.map(|name| format!("{name}: {own}")).join("\n");
    assert_eq!(peer_does("who has locks", root), expected, "{when}");
}

async fn write(store: &Arc<LocalStore>, value: &'static str) {
    let pairs = [(Bytes::from("key"), Bytes::from(value))].into();
    let op = WriteOp::new().step(WriteStep::OmapSet(pairs));
    io(store).write_meta("o", op).await.unwrap();
}

async fn read(store: &Arc<LocalStore>) -> String {
    let step = ReadStep::OmapGetValsByKeys(vec!["key".into()]);
    let reply = io(store).read("o", SnapId::HEAD, ReadOp::new().step(step)).await;
    match &reply.unwrap().results[..] {
        [ReadResult::Omap { values, .. }] => String::from_utf8(values[&b"key"[..]].to_vec()).unwrap(),
        other => panic!("{other:?}"),
    }
}

/// What the check finds in the store and its pool.
async fn found(store: &Arc<LocalStore>) -> Vec<&'static str> {
    let mut found = Vec::new();
    for pool in [None, Some(PoolId(1))] {
        let told = store.check(pool, CheckOptions::default()).await.unwrap().unwrap();
        found.extend(told.into_iter().map(|finding| finding.kind));
    }
    found
}

/// A store that was just made, with something in it.
async fn made(root: &Path) -> Arc<LocalStore> {
    let store = open(root, None).unwrap();
    write(&store, "first").await;
    store
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_was_there_is_locked_when_it_was_opened() {
    let dir = tempfile::tempdir().unwrap();
    made(dir.path()).await.shutdown().await.unwrap();
    let store = open(dir.path(), None).unwrap();
    assert_eq!(read(&store).await, "first");
    all_are_held(dir.path(), "opened");
    write(&store, "second").await;
    all_are_held(dir.path(), "written");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_check_takes_no_lock_away() {
    let dir = tempfile::tempdir().unwrap();
    let store = made(dir.path()).await;
    all_are_held(dir.path(), "made");
    assert_eq!(found(&store).await, [""; 0]);
    all_are_held(dir.path(), "checked");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_client_that_comes_and_goes_takes_no_lock_of_the_first_away() {
    let dir = tempfile::tempdir().unwrap();
    let store = made(dir.path()).await;
    all_are_held(dir.path(), "made");
    for _ in 0..3 {
        let second = open(dir.path(), None).unwrap();
        assert_eq!(read(&second).await, "first");
        all_are_held(dir.path(), "the second is there");
        assert_eq!(found(&second).await, [""; 0]);
        second.shutdown().await.unwrap();
        drop(second);
        all_are_held(dir.path(), "the second is gone");
    }
    assert_eq!(read(&store).await, "first");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_that_cannot_be_opened_is_looked_at_without_taking_a_lock_of_its_users_away() {
    let dir = tempfile::tempdir().unwrap();
    let _store = made(dir.path()).await;
    all_are_held(dir.path(), "made");
    peer_does("flip", &dir.path().join("pools/1/pool.db"));
    let second = open(dir.path(), None).unwrap();
    assert_eq!(
        found(&second).await,
        ["pool-not-opened", "database-page", "database-page"]
    );
    all_are_held(dir.path(), "looked at");
    second.shutdown().await.unwrap();
    drop(second);
    all_are_held(dir.path(), "the second is gone");
}
