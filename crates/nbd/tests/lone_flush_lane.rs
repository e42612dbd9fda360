//! Who carries out a flush, on a plain socket, which gets a lane: the thread of the connection if its client waits for
//! every reply, a task if other requests may come meanwhile.

#![allow(clippy::unwrap_used)] // A test fails by panicking.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use common::{EXPORT, Raw, connect, serve, structured};
use ferry_nbd::proto::{RequestHeader, cmd};
use ferry_nbd::testing::MemoryExports;
use ferry_nbd::{BlockDevice, DeviceError, Errno, Extent, ServerConfig};
use tokio::io::AsyncWriteExt;

/// Counts its flushes by where they are done.
#[derive(Default)]
struct Device {
    here: AtomicU64,
    in_tasks: AtomicU64,
    refuses: bool,
}

#[async_trait]
impl BlockDevice for Device {
    fn size_bytes(&self) -> u64 {
        1 << 20
    }
    fn read_only(&self) -> bool {
        false
    }
    fn can_multi_conn(&self) -> bool {
        true
    }
    async fn read(&self, _offset: u64, length: u32) -> Result<Bytes, DeviceError> {
        Ok(vec![7; length as usize].into())
    }
    async fn write(&self, _offset: u64, _data: Bytes, _fua: bool) -> Result<(), DeviceError> {
        Ok(())
    }
    async fn trim(&self, _offset: u64, _length_bytes: u64, _fua: bool) -> Result<(), DeviceError> {
        Ok(())
    }
    async fn write_zeroes(&self, _: u64, _: u64, _: bool, _: bool) -> Result<(), DeviceError> {
        Ok(())
    }
    async fn flush(&self) -> Result<(), DeviceError> {
        self.in_tasks.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
    fn flush_here(&self) -> Option<Result<(), DeviceError>> {
        self.here.fetch_add(1, Ordering::SeqCst);
        Some(match self.refuses {
            true => Err(DeviceError::new(Errno::Io, "a failed flush")),
            false => Ok(()),
        })
    }
    async fn block_status(&self, _: u64, _: u64, _: usize) -> Result<Vec<Extent>, DeviceError> {
        Ok(Vec::new())
    }
}

fn served(device: &Arc<Device>) -> common::Served {
    let exports = MemoryExports::new().with(EXPORT, "", device.clone() as Arc<dyn BlockDevice>);
    serve(Arc::new(exports), ServerConfig::default())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_waits_for_every_reply_is_flushed_by_its_own_thread() {
    let device = Arc::new(Device::default());
    let served = served(&device);
    let client = connect(served.stream, structured()).await;
    for _ in 0..100 {
        client.write(4096, vec![1; 4096].into(), false).await.unwrap();
        client.flush().await.unwrap();
    }
    let (here, in_tasks) = (
        device.here.load(Ordering::SeqCst),
        device.in_tasks.load(Ordering::SeqCst),
    );
    assert_eq!(here + in_tasks, 100);
    assert!(here >= 80, "{here} of 100 flushes on the connection's thread");
    assert!(in_tasks > 0, "a client that nothing is known of");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_with_many_requests_under_way_never_waits_behind_a_flush() {
    let device = Arc::new(Device::default());
    let served = served(&device);
    let mut raw = Raw::enter(served.stream, false).await;
    // In one piece, however the threads are scheduled: the server never sees one request alone.
    let mut requests = Vec::new();
    for cookie in 0..12 {
        let (command, length) = if cookie < 8 {
            (cmd::WRITE, 64)
        } else {
            (cmd::FLUSH, 0)
        };
        let header = RequestHeader {
            flags: 0,
            command,
            cookie,
            offset: 0,
            length,
        };
        requests.extend_from_slice(&header.encode());
        requests.extend(vec![1; length as usize]);
    }
    for _ in 0..50 {
        raw.0.write_all(&requests).await.unwrap();
        for _ in 0..12 {
            assert_eq!(raw.simple_reply().await.error, 0);
        }
    }
    assert_eq!(device.here.load(Ordering::SeqCst), 0);
    assert_eq!(device.in_tasks.load(Ordering::SeqCst), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flush_that_fails_on_the_connections_thread_is_told() {
    let device = Arc::new(Device {
        refuses: true,
        ..Device::default()
    });
    let served = served(&device);
    let client = connect(served.stream, structured()).await;
    for _ in 0..100 {
        client.read(0, 4096).await.unwrap();
    }
    client.flush().await.unwrap_err();
    assert_eq!(device.here.load(Ordering::SeqCst), 1);
    client.read(0, 4096).await.unwrap();
}
