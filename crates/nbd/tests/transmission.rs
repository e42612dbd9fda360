//! Requests and replies, with the crate's own client and by hand.

#![allow(clippy::unwrap_used)] // A test fails by panicking.

mod common;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use common::{Raw, connect, one_export, serve, serve_device, settle, simple, structured, until};
use ferry_nbd::client::{Client, ClientConfig, ClientError};
use ferry_nbd::proto::{SimpleReply, chunk, cmd, cmd_flag};
use ferry_nbd::testing::{Fault, MemoryDevice, Operation};
use ferry_nbd::{BlockSizes, DeviceError, Errno, Extent, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Semaphore;

const SIZE: usize = 1 << 20;

fn device() -> Arc<MemoryDevice> {
    Arc::new(MemoryDevice::new(SIZE).tracking_durability())
}

fn pattern(length: usize, seed: u8) -> Bytes {
    (0..length)
        .map(|at| (at as u8).wrapping_mul(31).wrapping_add(seed))
        .collect()
}

#[track_caller]
fn expect_errno<T: std::fmt::Debug>(result: Result<T, ClientError>, expected: Errno) -> String {
    match result {
        Err(ClientError::Server { errno, message }) if errno == expected => message,
        other => panic!("{other:?} where {expected} was due"),
    }
}

async fn all_forms(check: impl AsyncFn(&Client, &MemoryDevice)) {
    for config in [ClientConfig::default(), structured(), simple()] {
        let device = device();
        let exports = one_export(&device);
        let served = serve(exports.clone(), ServerConfig::default());
        let client = connect(served.stream, config).await;
        check(&client, &device).await;
        client.disconnect().await.unwrap();
        assert!(served.server.await.unwrap().is_clean());
        assert_eq!((exports.opened(), exports.closed()), (1, 1));
    }
}

#[tokio::test]
async fn what_was_written_is_read_back_with_its_holes() {
    all_forms(async |client, device| {
        let mut model = vec![0; SIZE];
        for (offset, length) in [
            (0, 512),
            (4096, 100_000),
            (300_000, 1),
            (SIZE - 7, 7),
            (500_000, 0),
        ] {
            let data = pattern(length, offset as u8);
            client.write(offset as u64, data.clone(), false).await.unwrap();
            model[offset..offset + length].copy_from_slice(&data);
        }
        client.write_zeroes(10_000, 20_000, false, false).await.unwrap();
        model[10_000..30_000].fill(0);
        client.write_zeroes(40_000, 9000, true, true).await.unwrap();
        model[40_000..49_000].fill(0);
        client.trim(60_000, 8192, false).await.unwrap();
        model[60_000..68_192].fill(0);
        assert_eq!(client.read(0, SIZE as u32).await.unwrap(), model);
        assert_eq!(client.read(9_999, 3).await.unwrap(), model[9_999..10_002]);
        assert!(client.read(17, 0).await.unwrap().is_empty());
        assert_eq!(device.snapshot(), model);
    })
    .await;
}

#[tokio::test]
async fn flush_and_fua_make_durable_and_nothing_else_does() {
    all_forms(async |client, device| {
        client.write(0, pattern(10, 1), false).await.unwrap();
        assert_eq!(device.durable().unwrap(), vec![0; SIZE]);
        client.write(4096, pattern(10, 2), true).await.unwrap();
        assert_eq!(device.durable().unwrap()[..10], [0; 10]);
        assert_eq!(device.durable().unwrap()[4096..4106], pattern(10, 2));
        client.flush().await.unwrap();
        assert_eq!(device.durable().unwrap(), device.snapshot());
    })
    .await;
}

#[tokio::test]
async fn ranges_beyond_the_end_get_the_error_of_their_command_and_the_connection_lives() {
    all_forms(async |client, device| {
        let end = SIZE as u64;
        expect_errno(client.read(end - 1, 2).await, Errno::Inval);
        expect_errno(client.read(u64::MAX, 2).await, Errno::Inval);
        expect_errno(client.write(end - 1, pattern(2, 0), false).await, Errno::NoSpc);
        expect_errno(client.write_zeroes(end, 1, false, false).await, Errno::NoSpc);
        expect_errno(client.trim(end, 1, false).await, Errno::Inval);
        expect_errno(
            client.write_zeroes(0, u64::from(u32::MAX), false, false).await,
            Errno::NoSpc,
        );
        client.write(end - 1, pattern(1, 9), false).await.unwrap();
        assert_eq!(client.read(end - 1, 1).await.unwrap(), pattern(1, 9));
        assert_eq!(device.calls(Operation::Write), 1);
    })
    .await;
}

#[tokio::test]
async fn a_read_only_device_refuses_every_kind_of_write() {
    let device = Arc::new(MemoryDevice::with_data(vec![5; 8192]).read_only());
    let served = serve_device(&device);
    let mut raw = Raw::enter(served.stream, false).await;
    for (cookie, command) in [(1, cmd::WRITE), (2, cmd::TRIM), (3, cmd::WRITE_ZEROES)] {
        raw.send(command, 0, cookie, 0, 4096).await;
        if command == cmd::WRITE {
            raw.0.write_all(&[1; 4096]).await.unwrap();
        }
        assert_eq!(raw.simple_reply().await, SimpleReply { error: 1, cookie });
    }
    assert_eq!(device.snapshot(), vec![5; 8192]);
}

#[tokio::test]
async fn errors_of_the_device_arrive_with_number_and_message() {
    all_forms(async |client, device| {
        let error = |errno| Fault::Error(DeviceError::new(errno, "sector 7 is gone"));
        device.inject(Operation::Read, error(Errno::Io));
        device.inject(Operation::Write, error(Errno::NoSpc));
        device.inject(Operation::Flush, error(Errno::NoMem));
        let message = expect_errno(client.read(0, 10).await, Errno::Io);
        let structured = client.has_block_status();
        assert_eq!(message, if structured { "sector 7 is gone" } else { "" });
        expect_errno(client.write(0, pattern(9, 1), false).await, Errno::NoSpc);
        expect_errno(client.flush().await, Errno::NoMem);
        assert!(client.read(0, 10).await.is_ok());
    })
    .await;
}

#[tokio::test]
async fn a_panic_of_the_device_is_an_error_of_that_request_only() {
    all_forms(async |client, device| {
        for operation in [
            Operation::Read,
            Operation::Write,
            Operation::Flush,
            Operation::Trim,
        ] {
            device.inject(operation, Fault::Panic);
        }
        expect_errno(client.read(0, 10).await, Errno::Io);
        // Large enough for a task of its own.
        expect_errno(client.write(0, pattern(200_000, 1), false).await, Errno::Io);
        expect_errno(client.flush().await, Errno::Io);
        expect_errno(client.trim(0, 10, false).await, Errno::Io);
        client.write(0, pattern(10, 1), false).await.unwrap();
        assert_eq!(client.read(0, 10).await.unwrap(), pattern(10, 1));
    })
    .await;
}

#[tokio::test]
async fn malformed_requests_are_refused_and_the_connection_lives() {
    let device = device();
    let served = serve_device(&device);
    let mut raw = Raw::enter(served.stream, false).await;
    let too_long = (64 << 20) + 1;
    for (command, flags, offset, length) in [
        (cmd::CACHE, cmd_flag::NO_HOLE, 0, 0),
        (8, 0, 0, 0),
        (0xffff, 0xffff, u64::MAX, u32::MAX),
        (cmd::READ, cmd_flag::DF, 0, 1),
        (cmd::READ, 1 << 14, 0, 1),
        (cmd::READ, 0, 0, too_long),
        (cmd::READ, 0, 0, u32::MAX),
        (cmd::BLOCK_STATUS, 0, 0, 1),
        (cmd::FLUSH, 0, 0, 1),
        (cmd::WRITE_ZEROES, cmd_flag::DF, 0, 1),
    ] {
        raw.send(command, flags, 77, offset, length).await;
        assert_eq!(
            raw.simple_reply().await,
            SimpleReply {
                error: 22,
                cookie: 77
            },
            "command {command}, flags {flags}, offset {offset}, length {length}"
        );
    }
    raw.send(cmd::FLUSH, 0, 78, 0, 0).await;
    assert_eq!(raw.simple_reply().await, SimpleReply { error: 0, cookie: 78 });
}

#[tokio::test]
async fn a_write_that_is_too_long_is_skipped_and_the_next_request_is_found() {
    let device = device();
    let served = serve_device(&device);
    let (mut reader, mut writer) = Raw::enter(served.stream, true).await.0.into_split();
    let sender = tokio::spawn(async move {
        let block = vec![0x25; 1 << 20];
        let mut header = [0u8; 28];
        header[..8].copy_from_slice(&[0x25, 0x60, 0x95, 0x13, 0, 0, 0, 1]);
        header[24..].copy_from_slice(&(40u32 << 20).to_be_bytes());
        writer.write_all(&header).await.unwrap();
        for _ in 0..40 {
            writer.write_all(&block).await.unwrap();
        }
        header[7] = cmd::FLUSH as u8;
        header[24..].fill(0);
        writer.write_all(&header).await.unwrap();
        writer
    });
    let mut error = [0; 26];
    reader.read_exact(&mut error).await.unwrap();
    assert_eq!(error[4..8], [0, 1, 0x80, 1], "an error chunk, the last");
    assert_eq!(error[20..24], Errno::Inval.code().to_be_bytes());
    let mut message = vec![0; usize::from(u16::from_be_bytes([error[24], error[25]]))];
    reader.read_exact(&mut message).await.unwrap();
    assert_eq!(
        String::from_utf8(message).unwrap(),
        "write of 41943040 bytes refused: the maximum is 33554432"
    );
    let mut flushed = [0; 16];
    reader.read_exact(&mut flushed).await.unwrap();
    assert_eq!(flushed[..8], [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0]);
    assert_eq!(device.calls(Operation::Write), 0);
    drop(sender.await.unwrap());
}

#[tokio::test]
async fn a_read_that_is_too_long_overflows_with_structured_replies() {
    let served = serve_device(&device());
    let mut raw = Raw::enter(served.stream, true).await;
    raw.send(cmd::READ, 0, 9, 0, 33 << 20).await;
    let (header, data) = raw.chunk().await;
    assert_eq!(
        (header.kind, header.flags, header.cookie),
        (chunk::ERROR, chunk::FLAG_DONE, 9)
    );
    assert_eq!(data[..4], Errno::Overflow.code().to_be_bytes());
}

#[tokio::test]
async fn requests_off_the_minimum_block_size_are_refused() {
    let sizes = BlockSizes {
        minimum: 512,
        ..BlockSizes::default()
    };
    let device = Arc::new(MemoryDevice::new(SIZE).block_sizes(sizes));
    let served = serve_device(&device);
    let client = connect(served.stream, ClientConfig::default()).await;
    assert_eq!(client.details().block_sizes, sizes);
    let message = expect_errno(client.read(1, 512).await, Errno::Inval);
    assert!(message.contains("minimum block size 512"), "{message}");
    expect_errno(client.write(512, pattern(100, 0), false).await, Errno::Inval);
    client.write(512, pattern(512, 0), false).await.unwrap();
}

#[tokio::test]
async fn a_bad_request_magic_ends_the_connection() {
    let served = serve_device(&device());
    let mut raw = Raw::enter(served.stream, false).await;
    raw.0.write_all(&[0x25; 28]).await.unwrap();
    assert!(raw.until_closed().await.is_empty());
    assert!(served.server.await.unwrap().is_clean());
}

#[tokio::test]
async fn holes_are_sent_as_holes_unless_the_client_wants_one_piece() {
    let device = device();
    let served = serve_device(&device);
    let mut raw = Raw::enter(served.stream, true).await;
    raw.send(cmd::WRITE, 0, 1, 8192, 4096).await;
    raw.0.write_all(&[9; 4096]).await.unwrap();
    assert_eq!(raw.simple_reply().await, SimpleReply { error: 0, cookie: 1 });
    raw.send(cmd::READ, 0, 2, 4096, 12288).await;
    let mut seen = Vec::new();
    loop {
        let (header, data) = raw.chunk().await;
        seen.push((
            header.kind,
            u64::from_be_bytes(data[..8].try_into().unwrap()),
            data.len(),
        ));
        if header.flags == chunk::FLAG_DONE {
            break;
        }
    }
    assert_eq!(
        seen,
        [
            (chunk::OFFSET_HOLE, 4096, 12),
            (chunk::OFFSET_DATA, 8192, 8 + 4096),
            (chunk::OFFSET_HOLE, 12288, 12)
        ]
    );
    raw.send(cmd::READ, cmd_flag::DF, 3, 4096, 12288).await;
    let (header, data) = raw.chunk().await;
    assert_eq!(
        (header.kind, header.flags, data.len()),
        (chunk::OFFSET_DATA, chunk::FLAG_DONE, 8 + 12288)
    );
    assert_eq!(data[8..], [[0; 4096], [9; 4096], [0; 4096]].concat());
}

#[tokio::test]
async fn block_status_tells_holes_and_data() {
    let device = device();
    let served = serve_device(&device);
    let client = connect(served.stream, ClientConfig::default()).await;
    client.write(8192, pattern(4096, 1), false).await.unwrap();
    let extent = |length_bytes, hole| Extent {
        length_bytes,
        hole,
        zero: hole,
    };
    assert_eq!(
        client.block_status(4096, 65536, false).await.unwrap(),
        [extent(4096, true), extent(4096, false), extent(57344, true)]
    );
    assert_eq!(
        client.block_status(4096, 65536, true).await.unwrap(),
        [extent(4096, true)]
    );
    assert_eq!(
        client.block_status(8192 + 5, 10, true).await.unwrap(),
        [extent(10, false)]
    );
    expect_errno(client.block_status(0, 0, false).await, Errno::Inval);
    expect_errno(client.block_status(SIZE as u64, 1, false).await, Errno::Inval);
}

#[tokio::test]
async fn a_resize_counts_for_the_next_request() {
    all_forms(async |client, device| {
        let end = SIZE as u64;
        expect_errno(client.write(end, pattern(10, 3), false).await, Errno::NoSpc);
        device.resize(SIZE + 4096);
        client.write(end, pattern(10, 3), false).await.unwrap();
        assert_eq!(client.read(end, 10).await.unwrap(), pattern(10, 3));
        device.resize(SIZE / 2);
        expect_errno(client.read(end, 10).await, Errno::Inval);
    })
    .await;
}

#[tokio::test]
async fn a_slow_request_does_not_hold_up_the_others() {
    all_forms(async |client, device| {
        let gate = Arc::new(Semaphore::new(0));
        device.inject(Operation::Write, Fault::Wait(gate.clone()));
        let slow = client.write(0, pattern(4096, 1), false);
        let others = async {
            for round in 0..100 {
                client.write(8192, pattern(512, round), false).await.unwrap();
                assert_eq!(client.read(8192, 512).await.unwrap(), pattern(512, round));
            }
            assert_eq!(client.read(0, 1).await.unwrap(), [0][..]);
            gate.add_permits(1);
        };
        tokio::join!(async { slow.await.unwrap() }, others);
        assert_eq!(client.read(0, 4096).await.unwrap(), pattern(4096, 1));
    })
    .await;
}

#[tokio::test]
async fn many_requests_at_once_all_get_their_own_answer() {
    all_forms(async |client, _| {
        let requests = (0..500u64).map(|number| async move {
            let offset = number * 2048;
            let data = pattern(1 + number as usize * 4, number as u8);
            client.write(offset, data.clone(), false).await.unwrap();
            assert_eq!(client.read(offset, data.len() as u32).await.unwrap(), data);
        });
        futures::future::join_all(requests).await;
    })
    .await;
}

#[tokio::test]
async fn requests_beyond_the_bound_wait_for_their_turn() {
    let device = device();
    let gate = Arc::new(Semaphore::new(0));
    (0..3).for_each(|_| device.inject(Operation::Read, Fault::Wait(gate.clone())));
    let config = ServerConfig {
        max_in_flight_requests: 2,
        ..ServerConfig::default()
    };
    let served = serve(one_export(&device), config);
    let mut raw = Raw::enter(served.stream, false).await;
    for cookie in 1..=3 {
        raw.send(cmd::READ, 0, cookie, 0, 16).await;
    }
    until(|| device.calls(Operation::Read) >= 2).await;
    settle().await;
    assert_eq!(device.calls(Operation::Read), 2);
    gate.add_permits(3);
    let mut reply = [0; 3 * 32];
    raw.0.read_exact(&mut reply).await.unwrap();
    assert_eq!(device.calls(Operation::Read), 3);
}

#[tokio::test]
async fn payload_bytes_beyond_the_bound_wait_for_their_turn() {
    let device = device();
    let gate = Arc::new(Semaphore::new(0));
    (0..3).for_each(|_| device.inject(Operation::Read, Fault::Wait(gate.clone())));
    let config = ServerConfig {
        max_in_flight_bytes: 1 << 20,
        ..ServerConfig::default()
    };
    let served = serve(one_export(&device), config);
    let mut raw = Raw::enter(served.stream, false).await;
    for cookie in 1..=3 {
        raw.send(cmd::READ, 0, cookie, 0, 512 << 10).await;
    }
    until(|| device.calls(Operation::Read) >= 2).await;
    settle().await;
    assert_eq!(device.calls(Operation::Read), 2);
    gate.add_permits(3);
    let mut reply = vec![0; 3 * (16 + (512 << 10))];
    raw.0.read_exact(&mut reply).await.unwrap();
    assert_eq!(device.calls(Operation::Read), 3);
}

#[tokio::test]
async fn a_client_that_does_not_read_its_replies_stops_its_own_requests() {
    let device = device();
    let config = ServerConfig {
        max_in_flight_bytes: 1 << 20,
        ..ServerConfig::default()
    };
    let served = serve(one_export(&device), config);
    let mut raw = Raw::enter(served.stream, false).await;
    for cookie in 0..100 {
        raw.send(cmd::READ, 0, cookie, 0, 1 << 20).await;
    }
    until(|| device.calls(Operation::Read) > 0).await;
    settle().await;
    let reached = device.calls(Operation::Read);
    assert!(
        reached < 5,
        "{reached} reads were carried out for a client that took none"
    );
    for _ in 0..100 {
        assert_eq!(raw.simple_reply().await.error, 0);
        raw.0.read_exact(&mut vec![0; 1 << 20]).await.unwrap();
    }
    assert_eq!(device.calls(Operation::Read), 100);
}

#[tokio::test]
async fn goodbye_waits_for_the_requests_under_way() {
    let device = device();
    let gate = Arc::new(Semaphore::new(0));
    device.inject(Operation::Write, Fault::Wait(gate.clone()));
    let served = serve_device(&device);
    let mut raw = Raw::enter(served.stream, false).await;
    raw.send(cmd::WRITE, 0, 5, 0, 4).await;
    raw.0.write_all(b"last").await.unwrap();
    raw.send(cmd::DISC, 0, 0, 0, 0).await;
    until(|| device.calls(Operation::Write) == 1).await;
    settle().await;
    gate.add_permits(1);
    assert_eq!(raw.simple_reply().await, SimpleReply { error: 0, cookie: 5 });
    assert!(raw.until_closed().await.is_empty());
    assert!(served.server.await.unwrap().is_clean());
    assert_eq!(
        device.durable().unwrap()[..4],
        *b"last",
        "a device is flushed before it is closed"
    );
}

#[tokio::test]
async fn requests_of_a_client_that_vanished_are_finished_before_the_device_is_closed() {
    let device = device();
    let gate = Arc::new(Semaphore::new(0));
    device.inject(Operation::Write, Fault::Wait(gate.clone()));
    let exports = one_export(&device);
    let served = serve(exports.clone(), ServerConfig::default());
    let mut raw = Raw::enter(served.stream, false).await;
    raw.send(cmd::WRITE, 0, 5, 0, 4).await;
    raw.0.write_all(b"last").await.unwrap();
    until(|| device.calls(Operation::Write) == 1).await;
    drop(raw);
    settle().await;
    assert_eq!(exports.closed(), 0);
    gate.add_permits(1);
    assert!(served.server.await.unwrap().is_clean());
    assert_eq!(exports.closed(), 1);
    assert_eq!(device.snapshot()[..4], *b"last");
}

#[tokio::test]
async fn a_shutdown_answers_what_is_under_way_and_flushes() {
    let device = device();
    let gate = Arc::new(Semaphore::new(0));
    device.inject(Operation::Write, Fault::Wait(gate.clone()));
    let exports = one_export(&device);
    let served = serve(exports.clone(), ServerConfig::default());
    let mut raw = Raw::enter(served.stream, false).await;
    raw.send(cmd::WRITE, 0, 5, 0, 4).await;
    raw.0.write_all(b"last").await.unwrap();
    // A second write whose data never comes must not hold up the end.
    raw.send(cmd::WRITE, 0, 6, 0, 4096).await;
    until(|| device.calls(Operation::Write) == 1).await;
    served.trigger.shut_down();
    settle().await;
    gate.add_permits(1);
    assert_eq!(raw.simple_reply().await, SimpleReply { error: 0, cookie: 5 });
    assert!(raw.until_closed().await.is_empty());
    assert!(served.server.await.unwrap().is_clean());
    assert_eq!((exports.closed(), device.calls(Operation::Flush)), (1, 1));
    assert_eq!(device.durable().unwrap()[..4], *b"last");
}

#[tokio::test]
async fn requests_that_outlast_the_grace_are_dropped_and_told() {
    let device = device();
    device.inject(Operation::Write, Fault::Wait(Arc::new(Semaphore::new(0))));
    let exports = one_export(&device);
    let config = ServerConfig {
        shutdown_grace: Duration::from_millis(20),
        ..ServerConfig::default()
    };
    let served = serve(exports.clone(), config);
    let mut raw = Raw::enter(served.stream, false).await;
    raw.send(cmd::WRITE, 0, 5, 0, 4).await;
    raw.0.write_all(b"last").await.unwrap();
    until(|| device.calls(Operation::Write) == 1).await;
    served.trigger.shut_down();
    assert!(raw.until_closed().await.is_empty());
    let summary = served.server.await.unwrap();
    assert_eq!((summary.connections_aborted, summary.is_clean()), (1, false));
    assert_eq!(exports.closed(), 1);
}

#[tokio::test]
async fn a_flush_that_fails_at_the_end_is_told() {
    let device = device();
    let served = serve_device(&device);
    let client = connect(served.stream, ClientConfig::default()).await;
    device.inject(
        Operation::Flush,
        Fault::Error(DeviceError::new(Errno::Io, "medium lost")),
    );
    client.disconnect().await.unwrap();
    let summary = served.server.await.unwrap();
    assert_eq!((summary.close_failures, summary.is_clean()), (1, false));
    assert!(summary.last_close_failure.unwrap().contains("medium lost"));
}
