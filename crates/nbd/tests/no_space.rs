//! A device without space: clients get the error, or wait for space, as the server was told.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![cfg(unix)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use common::{EXPORT, Raw, connect, serve};
use ferry_nbd::client::{Client, ClientConfig};
use ferry_nbd::proto::cmd;
use ferry_nbd::testing::{MemoryDevice, MemoryExports};
use ferry_nbd::{BlockDevice, DeviceError, Errno, Exports, Extent, OnNoSpace, ServerConfig, ServerStats};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const SIZE: usize = 64 << 20;
const ENOSPC: u32 = 28;
/// No test is so slow, unless it hangs.
const PATIENCE: Duration = Duration::from_secs(120);

/// Refuses every change while it is full.
#[derive(Debug)]
struct Disk {
    inner: MemoryDevice,
    full: AtomicBool,
    /// The size in a file has an end, too, which no space moves.
    too_big: AtomicBool,
    flushes_fail: AtomicBool,
    refused: AtomicU64,
}

impl Disk {
    fn full() -> Arc<Self> {
        Arc::new(Self {
            inner: MemoryDevice::new(SIZE),
            full: AtomicBool::new(true),
            too_big: AtomicBool::new(false),
            flushes_fail: AtomicBool::new(false),
            refused: AtomicU64::new(0),
        })
    }

    fn make_room(&self) {
        self.full.store(false, Ordering::SeqCst);
    }

    fn refused(&self) -> u64 {
        self.refused.load(Ordering::SeqCst)
    }

    fn room(&self) -> Result<(), DeviceError> {
        if self.too_big.load(Ordering::SeqCst) {
            return Err(DeviceError::new(Errno::NoSpc, "behind every offset, as ordered"));
        }
        if self.full.load(Ordering::SeqCst) {
            self.refused.fetch_add(1, Ordering::SeqCst);
            return Err(DeviceError::out_of_space("full, as ordered"));
        }
        Ok(())
    }
}

#[async_trait]
impl BlockDevice for Disk {
    fn size_bytes(&self) -> u64 {
        self.inner.size_bytes()
    }

    fn read_only(&self) -> bool {
        false
    }

    fn can_multi_conn(&self) -> bool {
        true
    }

    async fn read(&self, offset: u64, length: u32) -> Result<Bytes, DeviceError> {
        self.inner.read(offset, length).await
    }

    fn try_write(&self, offset: u64, data: &[u8], fua: bool) -> Option<Result<(), DeviceError>> {
        match self.room() {
            Ok(()) => self.inner.try_write(offset, data, fua),
            Err(error) => Some(Err(error)),
        }
    }

    async fn write(&self, offset: u64, data: Bytes, fua: bool) -> Result<(), DeviceError> {
        self.room()?;
        self.inner.write(offset, data, fua).await
    }

    async fn trim(&self, offset: u64, length_bytes: u64, fua: bool) -> Result<(), DeviceError> {
        self.room()?;
        self.inner.trim(offset, length_bytes, fua).await
    }

    async fn write_zeroes(
        &self,
        offset: u64,
        length_bytes: u64,
        no_hole: bool,
        fua: bool,
    ) -> Result<(), DeviceError> {
        self.room()?;
        self.inner.write_zeroes(offset, length_bytes, no_hole, fua).await
    }

    async fn flush(&self) -> Result<(), DeviceError> {
        if self.flushes_fail.load(Ordering::SeqCst) {
            self.room()?;
        }
        self.inner.flush().await
    }

    async fn block_status(
        &self,
        offset: u64,
        length_bytes: u64,
        max_extents: usize,
    ) -> Result<Vec<Extent>, DeviceError> {
        self.inner.block_status(offset, length_bytes, max_extents).await
    }
}

fn exports(disk: &Arc<Disk>) -> Arc<dyn Exports> {
    Arc::new(MemoryExports::new().with(EXPORT, "a disk that may be full", disk.clone()))
}

fn pausing() -> (ServerConfig, Arc<ServerStats>) {
    let stats = Arc::<ServerStats>::default();
    let config = ServerConfig {
        on_no_space: OnNoSpace::Pause,
        stats: Arc::clone(&stats),
        ..ServerConfig::default()
    };
    (config, stats)
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting)
        .await
        .unwrap_or_else(|_| panic!("never: {what}"));
}

/// Requests of every kind that needs space, each in a place of its own.
fn changes(client: &Arc<Client>) -> Vec<tokio::task::JoinHandle<Result<(), String>>> {
    let mut tasks = Vec::new();
    for kind in 0..6u64 {
        let client = Arc::clone(client);
        let offset = kind * (8 << 20);
        tasks.push(tokio::spawn(async move {
            let done = match kind {
                0 => client.write(offset, vec![1; 4096].into(), false).await,
                1 => client.write(offset, vec![2; 1 << 20].into(), true).await,
                2 => client.trim(offset, 1 << 20, false).await,
                3 => client.write_zeroes(offset, 4096, false, false).await,
                4 => client.write_zeroes(offset, 8 << 20, true, true).await,
                _ => client.write(offset, vec![3; 512].into(), true).await,
            };
            done.map_err(|error| error.to_string())
        }));
    }
    tasks
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_being_told_otherwise_a_server_tells_its_client_at_once() {
    let disk = Disk::full();
    let served = serve(exports(&disk), ServerConfig::default());
    let client = Arc::new(connect(served.stream, ClientConfig::default()).await);
    for task in changes(&client) {
        let told = tokio::time::timeout(PATIENCE, task).await.unwrap().unwrap();
        assert!(told.unwrap_err().to_uppercase().contains("ENOSPC"));
    }
    disk.make_room();
    for task in changes(&client) {
        task.await.unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn held_requests_wait_for_space_and_hold_up_no_other() {
    let disk = Disk::full();
    let (config, stats) = pausing();
    let served = serve(exports(&disk), config);
    let client = Arc::new(connect(served.stream, ClientConfig::default()).await);
    let tasks = changes(&client);
    until("all are held", || stats.requests_held_now() == 6).await;
    let (began, refused) = (Instant::now(), disk.refused());
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(tasks.iter().all(|task| !task.is_finished()));
    let attempts = disk.refused() - refused;
    // No pause is shorter than 50 ms, however long this took.
    let most = 6 * (2 + began.elapsed().as_millis() / 50);
    assert!(
        u128::from(attempts) <= most,
        "{attempts} attempts where {most} are allowed: too busy"
    );
    // Reads go on, and a flush that needs no space; one that does is held too.
    assert_eq!(client.read(0, 4096).await.unwrap(), vec![0; 4096]);
    let flushed = tokio::time::timeout(PATIENCE, client.flush()).await;
    flushed.unwrap().unwrap();
    disk.flushes_fail.store(true, Ordering::SeqCst);
    let flush = tokio::spawn({
        let client = Arc::clone(&client);
        async move { client.flush().await }
    });
    until("the flush is held", || stats.requests_held_now() == 7).await;
    disk.make_room();
    let flushed = tokio::time::timeout(PATIENCE, flush).await;
    flushed.unwrap().unwrap().unwrap();
    for task in tasks {
        tokio::time::timeout(PATIENCE, task)
            .await
            .unwrap()
            .unwrap()
            .unwrap();
    }
    assert_eq!((stats.requests_held_now(), stats.requests_held()), (0, 7));
    for (offset, byte, length) in [(0, 1u8, 4096), (8 << 20, 2, 1 << 20), (40 << 20, 3, 512)] {
        assert_eq!(
            client.read(offset, length).await.unwrap(),
            vec![byte; length as usize]
        );
    }
    client.flush().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_space_would_not_help_is_told_at_once() {
    let disk = Disk::full();
    disk.too_big.store(true, Ordering::SeqCst);
    let (config, stats) = pausing();
    let served = serve(exports(&disk), config);
    let client = Arc::new(connect(served.stream, ClientConfig::default()).await);
    let told = tokio::time::timeout(PATIENCE, client.write(0, vec![1; 512].into(), false)).await;
    assert!(
        told.unwrap()
            .unwrap_err()
            .to_string()
            .to_uppercase()
            .contains("ENOSPC")
    );
    assert_eq!(stats.requests_held(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_are_held_than_may_be_under_way_and_a_shutdown_ends_the_wait() {
    let disk = Disk::full();
    let (config, stats) = pausing();
    let config = ServerConfig {
        max_in_flight_requests: 3,
        ..config
    };
    let served = serve(exports(&disk), config);
    let mut raw = Raw::enter(served.stream, false).await;
    for cookie in 0..5u64 {
        raw.send(cmd::WRITE, 0, cookie, cookie * 512, 512).await;
        raw.0.write_all(&[7; 512]).await.unwrap();
    }
    until("three are held", || stats.requests_held_now() == 3).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(stats.requests_held(), 3);
    served.trigger.shut_down();
    for _ in 0..3 {
        let reply = tokio::time::timeout(PATIENCE, raw.simple_reply()).await.unwrap();
        assert_eq!(reply.error, ENOSPC);
    }
    let summary = tokio::time::timeout(PATIENCE, served.server)
        .await
        .unwrap()
        .unwrap();
    assert!(summary.is_clean(), "{summary:?}");
    assert_eq!(disk.inner.snapshot()[..4096], [0; 4096], "nothing was written");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn goodbye_ends_the_wait_with_the_error() {
    let disk = Disk::full();
    let (config, stats) = pausing();
    let served = serve(exports(&disk), config);
    let mut raw = Raw::enter(served.stream, false).await;
    raw.send(cmd::WRITE, 0, 5, 0, 4).await;
    raw.0.write_all(b"last").await.unwrap();
    until("it is held", || stats.requests_held_now() == 1).await;
    raw.send(cmd::DISC, 0, 0, 0, 0).await;
    let reply = tokio::time::timeout(PATIENCE, raw.simple_reply()).await.unwrap();
    assert_eq!((reply.cookie, reply.error), (5, ENOSPC));
    assert_eq!(raw.0.read(&mut [0; 16]).await.unwrap(), 0);
    let summary = tokio::time::timeout(PATIENCE, served.server)
        .await
        .unwrap()
        .unwrap();
    assert!(summary.is_clean(), "{summary:?}");
}

/// Only a socket tells that its peer is gone while nobody reads from it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_goes_while_all_its_requests_are_held_is_not_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("sock");
    let listener = ferry_nbd::Listener::unix(&path).await.unwrap();
    let disk = Disk::full();
    let (config, stats) = pausing();
    let config = ServerConfig {
        max_in_flight_requests: 2,
        ..config
    };
    let (trigger, shutdown) = ferry_nbd::shutdown_channel();
    let server = tokio::spawn(ferry_nbd::Server::run(
        vec![listener],
        exports(&disk),
        config,
        shutdown,
    ));
    let stream = tokio::net::UnixStream::connect(&path).await.unwrap();
    let mut raw = Raw::enter(stream, false).await;
    for cookie in 0..4u64 {
        raw.send(cmd::WRITE, 0, cookie, 0, 512).await;
        raw.0.write_all(&[7; 512]).await.unwrap();
    }
    until("two are held", || stats.requests_held_now() == 2).await;
    drop(raw);
    until("its connection has ended", || stats.connections_now() == 0).await;
    assert_eq!(stats.requests_held_now(), 0);
    trigger.shut_down();
    let summary = tokio::time::timeout(PATIENCE, server)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert!(summary.is_clean(), "{summary:?}");
}
