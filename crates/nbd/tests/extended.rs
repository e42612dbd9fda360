//! Extended headers, caching and fast zeroes: by hand, and with the crate's own client on a disk of 16 TiB.

#![allow(clippy::unwrap_used)] // A test fails by panicking.

mod common;

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use common::{EXPORT, Raw, connect, serve, serve_device, simple, structured};
use ferry_nbd::client::{Client, ClientError};
use ferry_nbd::proto::{chunk, cmd, cmd_flag, transmission_flag};
use ferry_nbd::testing::{MemoryDevice, MemoryExports, Operation};
use ferry_nbd::{BlockDevice, DeviceError, Errno, Extent, ServerConfig};
use parking_lot::Mutex;
use tokio::io::AsyncWriteExt;

const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

fn device() -> Arc<MemoryDevice> {
    Arc::new(MemoryDevice::new(1 << 20))
}

/// Offset, length and durability of the ranges that a device was asked to change.
type Ranges = Vec<(u64, u64, bool)>;

/// A disk of 16 TiB without content, which notes what it is asked for.
#[derive(Default)]
struct Vast {
    fast: bool,
    refuses_zeroes: bool,
    trimmed: Mutex<Ranges>,
    zeroed: Mutex<Ranges>,
    cached: Mutex<Vec<(u64, u64)>>,
    flushes: Mutex<u64>,
}

#[async_trait]
impl BlockDevice for Vast {
    fn size_bytes(&self) -> u64 {
        16 * TIB
    }
    fn read_only(&self) -> bool {
        false
    }
    fn can_multi_conn(&self) -> bool {
        true
    }
    async fn read(&self, _offset: u64, length: u32) -> Result<Bytes, DeviceError> {
        Ok(vec![0; length as usize].into())
    }
    async fn write(&self, _offset: u64, _data: Bytes, _fua: bool) -> Result<(), DeviceError> {
        Ok(())
    }
    async fn trim(&self, offset: u64, length_bytes: u64, fua: bool) -> Result<(), DeviceError> {
        self.trimmed.lock().push((offset, length_bytes, fua));
        Ok(())
    }
    async fn write_zeroes(
        &self,
        offset: u64,
        length_bytes: u64,
        _no_hole: bool,
        fua: bool,
    ) -> Result<(), DeviceError> {
        if self.refuses_zeroes {
            return Err(DeviceError::new(Errno::NotSup, "no zeroes here"));
        }
        self.zeroed.lock().push((offset, length_bytes, fua));
        Ok(())
    }
    fn is_fast_zero(&self, _offset: u64, _length_bytes: u64, no_hole: bool) -> bool {
        self.fast && !no_hole
    }
    async fn cache(&self, offset: u64, length_bytes: u64) -> Result<(), DeviceError> {
        self.cached.lock().push((offset, length_bytes));
        Ok(())
    }
    async fn flush(&self) -> Result<(), DeviceError> {
        *self.flushes.lock() += 1;
        Ok(())
    }
    async fn block_status(
        &self,
        offset: u64,
        length_bytes: u64,
        _max_extents: usize,
    ) -> Result<Vec<Extent>, DeviceError> {
        let half = length_bytes / 2;
        let extent = |length_bytes, hole| Extent {
            length_bytes,
            hole,
            zero: hole,
        };
        assert!(offset + length_bytes <= 16 * TIB);
        Ok(vec![extent(half, true), extent(length_bytes - half, false)])
    }
}

async fn vast_client(device: Vast) -> (Client, Arc<Vast>, common::ShutdownOnDrop) {
    let device = Arc::new(device);
    let exports = MemoryExports::new().with(EXPORT, "", device.clone() as Arc<dyn BlockDevice>);
    let served = serve(Arc::new(exports), ServerConfig::default());
    let client = connect(served.stream, Default::default()).await;
    (client, device, common::ShutdownOnDrop(served.trigger))
}

fn server_errno(result: Result<(), ClientError>) -> Errno {
    match result {
        Err(ClientError::Server { errno, .. }) => errno,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn replies_carry_extended_headers_and_the_offset_of_the_request() {
    let device = device();
    let served = serve_device(&device);
    let mut raw = Raw::enter_extended(served.stream).await;
    raw.send_extended(cmd::WRITE, cmd_flag::PAYLOAD_LEN | cmd_flag::FUA, 1, 8192, 4096)
        .await;
    raw.0.write_all(&[9; 4096]).await.unwrap();
    let (header, data) = raw.extended_chunk().await;
    assert_eq!(
        (
            header.flags,
            header.kind,
            header.cookie,
            header.offset,
            data.len()
        ),
        (chunk::FLAG_DONE, chunk::NONE, 1, 8192, 0)
    );
    // QEMU's writes lack the flag that the protocol asks for.
    raw.send_extended(cmd::WRITE, 0, 6, 8192, 4096).await;
    raw.0.write_all(&[9; 4096]).await.unwrap();
    assert_eq!(raw.extended_chunk().await.0.kind, chunk::NONE);
    raw.send_extended(cmd::READ, 0, 2, 4096, 8192).await;
    let (hole, data) = raw.extended_chunk().await;
    assert_eq!(
        (hole.flags, hole.kind, hole.cookie, hole.offset),
        (0, chunk::OFFSET_HOLE, 2, 4096)
    );
    assert_eq!(
        data,
        [&4096u64.to_be_bytes()[..], &4096u32.to_be_bytes()].concat()
    );
    let (header, data) = raw.extended_chunk().await;
    assert_eq!(
        (header.flags, header.kind, header.cookie, header.offset),
        (chunk::FLAG_DONE, chunk::OFFSET_DATA, 2, 4096)
    );
    assert_eq!(data, [&8192u64.to_be_bytes()[..], &[9; 4096]].concat());
    raw.send_extended(cmd::READ, cmd_flag::DF, 3, 4096, 8192).await;
    let (header, data) = raw.extended_chunk().await;
    assert_eq!((header.kind, data.len()), (chunk::OFFSET_DATA, 8 + 8192));
    raw.send_extended(cmd::BLOCK_STATUS, 0, 4, 0, 1 << 20).await;
    let (header, data) = raw.extended_chunk().await;
    assert_eq!((header.kind, data.len()), (chunk::BLOCK_STATUS_EXT, 8 + 3 * 16));
    assert_eq!(data[..8], [0, 0, 0, 1, 0, 0, 0, 3]);
    raw.send_extended(cmd::READ, 0, 5, 1 << 20, 1).await;
    let (header, data) = raw.extended_chunk().await;
    assert_eq!((header.kind, header.offset), (chunk::ERROR, 1 << 20));
    assert_eq!(data[..4], Errno::Inval.code().to_be_bytes());
}

#[tokio::test]
async fn payloads_that_do_not_belong_are_skipped_and_refused() {
    let served = serve_device(&device());
    let mut raw = Raw::enter_extended(served.stream).await;
    // The filter of block status is among them, and a payload up to the protocol's 32 MiB is read over.
    for (cookie, (command, flags, payload)) in [
        (cmd::BLOCK_STATUS, cmd_flag::PAYLOAD_LEN, 12),
        (cmd::READ, cmd_flag::PAYLOAD_LEN, 100_000),
        (cmd::FLUSH, cmd_flag::PAYLOAD_LEN, 7),
        (77, cmd_flag::PAYLOAD_LEN, 32 << 20),
        (cmd::WRITE, cmd_flag::PAYLOAD_LEN | cmd_flag::DF, 512),
        (cmd::WRITE, cmd_flag::DF, 512),
    ]
    .into_iter()
    .enumerate()
    {
        let cookie = cookie as u64;
        raw.send_extended(command, flags, cookie, 0, payload as u64).await;
        raw.0.write_all(&vec![0xaa; payload]).await.unwrap();
        let (header, data) = raw.extended_chunk().await;
        assert_eq!((header.cookie, header.kind), (cookie, chunk::ERROR), "{command}");
        assert_eq!(data[..4], Errno::Inval.code().to_be_bytes(), "{command}");
    }
    raw.send_extended(cmd::READ, 0, 99, 0, 512).await;
    assert_eq!(
        raw.extended_chunk().await.0.cookie,
        99,
        "the stream is still in step"
    );
}

#[tokio::test]
async fn a_payload_beyond_every_bound_and_a_compact_header_end_the_connection() {
    for length in [65 << 20, 1 << 32, u64::MAX] {
        let served = serve_device(&device());
        let mut raw = Raw::enter_extended(served.stream).await;
        raw.send_extended(cmd::WRITE, cmd_flag::PAYLOAD_LEN, 1, 0, length)
            .await;
        assert!(raw.until_closed().await.is_empty(), "{length}");
        assert!(served.server.await.unwrap().is_clean());
    }
    let served = serve_device(&device());
    let mut raw = Raw::enter_extended(served.stream).await;
    raw.send(cmd::READ, 0, 1, 0, 512).await;
    raw.0.write_all(&[0; 4]).await.unwrap();
    assert!(raw.until_closed().await.is_empty());
    assert!(served.server.await.unwrap().is_clean());
}

#[tokio::test]
async fn lengths_that_wrap_are_refused_and_the_session_goes_on() {
    let served = serve_device(&device());
    let mut raw = Raw::enter_extended(served.stream).await;
    for (cookie, (command, offset, length, errno)) in [
        (cmd::READ, 0, u64::MAX, Errno::Overflow),
        (cmd::READ, 0, (1 << 32) + 1, Errno::Overflow),
        (cmd::TRIM, 1, u64::MAX, Errno::Inval),
        (cmd::TRIM, u64::MAX, 1, Errno::Inval),
        (cmd::WRITE_ZEROES, 4096, u64::MAX - 4095, Errno::NoSpc),
        (cmd::CACHE, 1 << 19, u64::MAX, Errno::Inval),
        (cmd::BLOCK_STATUS, 0, (1 << 20) + 1, Errno::Inval),
        (cmd::FLUSH, 0, 1 << 40, Errno::Inval),
    ]
    .into_iter()
    .enumerate()
    {
        raw.send_extended(command, 0, cookie as u64, offset, length).await;
        let (header, data) = raw.extended_chunk().await;
        assert_eq!((header.cookie, header.kind), (cookie as u64, chunk::ERROR));
        assert_eq!(
            data[..4],
            errno.code().to_be_bytes(),
            "{command} {offset} {length}"
        );
    }
}

#[tokio::test]
async fn one_request_covers_a_disk_of_many_tebibytes() {
    let (client, device, _running) = vast_client(Vast::default()).await;
    assert!(client.has_extended_headers());
    let extents = client.block_status(0, 16 * TIB, false).await.unwrap();
    assert_eq!(
        extents
            .iter()
            .map(|extent| extent.length_bytes)
            .collect::<Vec<_>>(),
        [8 * TIB, 8 * TIB]
    );
    client.trim(TIB - 5, 3 * GIB, true).await.unwrap();
    let trimmed = device.trimmed.lock().clone();
    assert_eq!(
        trimmed,
        [
            (TIB - 5, 5, false),
            (TIB, GIB, false),
            (TIB + GIB, GIB, false),
            (TIB + 2 * GIB, GIB - 5, false)
        ]
    );
    assert_eq!(*device.flushes.lock(), 1, "durable once, at the end");
    client.write_zeroes(0, 5 * GIB, true, false).await.unwrap();
    let zeroed: u64 = device.zeroed.lock().iter().map(|range| range.1).sum();
    assert_eq!(zeroed, 5 * GIB);
    client.trim(GIB, GIB, true).await.unwrap();
    assert_eq!(
        device.trimmed.lock().last(),
        Some(&(GIB, GIB, true)),
        "one step is durable by itself"
    );
    assert_eq!(*device.flushes.lock(), 1);
    client.cache(7, 16 * TIB - 7).await.unwrap();
    assert_eq!(
        *device.cached.lock(),
        [(7, 64 << 20)],
        "what is cached is bounded"
    );
}

#[tokio::test]
async fn a_slow_zero_is_refused_at_once_when_the_client_would_rather_write() {
    let (client, device, _running) = vast_client(Vast::default()).await;
    assert!(client.details().has(transmission_flag::SEND_FAST_ZERO));
    assert_eq!(
        server_errno(client.write_zeroes_fast(0, 4096, false, false).await),
        Errno::NotSup
    );
    assert!(device.zeroed.lock().is_empty());

    let (client, device, _running) = vast_client(Vast {
        fast: true,
        ..Vast::default()
    })
    .await;
    client.write_zeroes_fast(0, 16 * TIB, false, true).await.unwrap();
    assert_eq!(device.zeroed.lock().len(), 16 << 10);
    assert_eq!(
        server_errno(client.write_zeroes_fast(0, 4096, true, false).await),
        Errno::NotSup
    );

    let (client, _device, _running) = vast_client(Vast {
        refuses_zeroes: true,
        ..Vast::default()
    })
    .await;
    assert_eq!(
        server_errno(client.write_zeroes(0, 4096, false, false).await),
        Errno::Inval,
        "ENOTSUP is only for those who asked for speed"
    );
}

#[tokio::test]
async fn caching_reaches_the_device_and_by_default_reads() {
    let device = device();
    for config in [Default::default(), structured(), simple()] {
        let served = serve_device(&device);
        let client = connect(served.stream, config).await;
        assert!(client.details().has(transmission_flag::SEND_CACHE));
        client.cache(4096, 1 << 19).await.unwrap();
        client.cache(4096, 0).await.unwrap();
        assert_eq!(
            server_errno(client.cache(1 << 20, 1).await),
            Errno::Inval,
            "beyond the end"
        );
        drop(client);
    }
    assert_eq!(device.calls(Operation::Cache), 3);
    assert_eq!(device.calls(Operation::Read), 0);

    /// Only what a device must have, over a memory device.
    struct Plain(MemoryDevice);
    #[async_trait]
    impl BlockDevice for Plain {
        fn size_bytes(&self) -> u64 {
            self.0.size_bytes()
        }
        fn read_only(&self) -> bool {
            false
        }
        fn can_multi_conn(&self) -> bool {
            true
        }
        async fn read(&self, offset: u64, length: u32) -> Result<Bytes, DeviceError> {
            self.0.read(offset, length).await
        }
        async fn write(&self, offset: u64, data: Bytes, fua: bool) -> Result<(), DeviceError> {
            self.0.write(offset, data, fua).await
        }
        async fn trim(&self, offset: u64, length_bytes: u64, fua: bool) -> Result<(), DeviceError> {
            self.0.trim(offset, length_bytes, fua).await
        }
        async fn write_zeroes(
            &self,
            offset: u64,
            length_bytes: u64,
            no_hole: bool,
            fua: bool,
        ) -> Result<(), DeviceError> {
            self.0.write_zeroes(offset, length_bytes, no_hole, fua).await
        }
        async fn flush(&self) -> Result<(), DeviceError> {
            self.0.flush().await
        }
        async fn block_status(
            &self,
            offset: u64,
            length_bytes: u64,
            max_extents: usize,
        ) -> Result<Vec<Extent>, DeviceError> {
            self.0.block_status(offset, length_bytes, max_extents).await
        }
    }
    let plain = Plain(MemoryDevice::new(5 << 20));
    plain.cache(100, (5 << 20) - 100).await.unwrap();
    assert_eq!(plain.0.calls(Operation::Read), 5);
    assert!(
        !plain.is_fast_zero(0, 4096, false),
        "nothing is promised by default"
    );
}

#[tokio::test]
async fn without_extended_headers_a_range_of_four_gibibytes_is_not_sent() {
    let device = Arc::new(Vast::default());
    let exports = MemoryExports::new().with(EXPORT, "", device.clone() as Arc<dyn BlockDevice>);
    let served = serve(Arc::new(exports), ServerConfig::default());
    let client = connect(served.stream, structured()).await;
    assert!(!client.has_extended_headers());
    assert!(matches!(
        client.trim(0, 1 << 32, false).await,
        Err(ClientError::Unsupported(_))
    ));
    client.trim(0, (1 << 32) - 1, false).await.unwrap();
    let extents = client.block_status(0, u64::from(u32::MAX), false).await.unwrap();
    assert_eq!(
        extents.iter().map(|extent| extent.length_bytes).sum::<u64>(),
        u64::from(u32::MAX)
    );
}
