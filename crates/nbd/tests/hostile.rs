//! Peers that send anything: the server and the client each against random and against crafted bytes.
//!
//! What is checked: no panic, no hang, no answer made of bytes that were not sent, and after a hostile client
//! the same exports serve a good one. A failing run prints its seed; `FERRY_SEED=<seed>` plays it again.

#![allow(clippy::unwrap_used)] // A test fails by panicking.

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::random::{SIZE, garbage, random_option, random_request};
use common::{EXPORT, Raw, connect, one_export, serve, string};
use ferry_nbd::client::{ClientConfig, ClientError, Negotiation};
use ferry_nbd::proto::{
    ChunkHeader, ExtendedChunkHeader, Framing, OptionHeader, OptionReplyHeader, SimpleReply, chunk, opt, rep,
};
use ferry_nbd::testing::MemoryDevice;
use ferry_nbd::{ServerConfig, ServerError};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

const ROUNDS: u64 = 300;

fn first_seed() -> (u64, u64) {
    match std::env::var("FERRY_SEED") {
        Ok(seed) => (seed.parse().unwrap(), 1),
        Err(_) => (ferry_reference::drawn(), ROUNDS),
    }
}

/// Runs the rounds, each with its own seed, printed when it fails.
async fn rounds(round: impl AsyncFn(StdRng)) {
    let (first, count) = first_seed();
    for seed in first..first + count {
        let told = TellSeed(seed);
        // The limit turns a hang into a failure; no round comes near it.
        tokio::time::timeout(Duration::from_secs(60), round(StdRng::seed_from_u64(seed)))
            .await
            .unwrap();
        std::mem::forget(told);
    }
}

struct TellSeed(u64);

impl Drop for TellSeed {
    fn drop(&mut self) {
        eprintln!("to play this round again: FERRY_SEED={}", self.0);
    }
}

/// Sends it all, takes whatever comes, and lets the server see the end.
async fn talk(stream: UnixStream, bytes: Vec<u8>) {
    let (mut reader, mut writer) = stream.into_split();
    let sender = tokio::spawn(async move {
        // The server may have closed.
        let _ = writer.write_all(&bytes).await;
    });
    let mut sink = vec![0; 64 << 10];
    while matches!(reader.read(&mut sink).await, Ok(1..)) {}
    sender.await.unwrap();
}

async fn serves_a_good_client(device: &Arc<MemoryDevice>) {
    let served = serve(one_export(device), ServerConfig::default());
    let client = connect(served.stream, ClientConfig::default()).await;
    client.write(0, vec![7; 512].into(), true).await.unwrap();
    assert_eq!(client.read(0, 512).await.unwrap(), [7; 512][..]);
    client.disconnect().await.unwrap();
    assert!(served.server.await.unwrap().is_clean());
}

#[tokio::test]
async fn the_server_survives_random_bytes_from_the_start() {
    rounds(async |mut rng| {
        let device = Arc::new(MemoryDevice::new(SIZE));
        let exports = one_export(&device);
        let served = serve(exports.clone(), ServerConfig::default());
        let mut bytes = if rng.random_bool(0.5) {
            vec![0, 0, 0, 3]
        } else {
            vec![]
        };
        bytes.extend(garbage(&mut rng, 5000));
        talk(served.stream, bytes).await;
        assert!(served.server.await.unwrap().is_clean());
        assert_eq!(exports.opened(), exports.closed());
        serves_a_good_client(&device).await;
    })
    .await;
}

#[tokio::test]
async fn the_server_survives_random_options() {
    rounds(async |mut rng| {
        let device = Arc::new(MemoryDevice::new(SIZE));
        let exports = one_export(&device);
        let served = serve(exports.clone(), ServerConfig::default());
        let mut bytes = vec![0, 0, 0, 3];
        for _ in 0..rng.random_range(0..40) {
            bytes.extend(random_option(&mut rng));
        }
        talk(served.stream, bytes).await;
        assert!(served.server.await.unwrap().is_clean());
        assert_eq!(exports.opened(), exports.closed());
        serves_a_good_client(&device).await;
    })
    .await;
}

#[tokio::test]
async fn the_server_survives_random_requests() {
    rounds(async |mut rng| {
        let device = Arc::new(MemoryDevice::new(SIZE));
        let exports = one_export(&device);
        let served = serve(exports.clone(), ServerConfig::default());
        let extended = rng.random();
        let raw = if extended {
            Raw::enter_extended(served.stream).await
        } else {
            Raw::enter(served.stream, rng.random()).await
        };
        let mut bytes = Vec::new();
        for _ in 0..rng.random_range(0..60) {
            bytes.extend(random_request(&mut rng, extended));
        }
        talk(raw.0, bytes).await;
        assert!(served.server.await.unwrap().is_clean());
        assert_eq!((exports.opened(), exports.closed()), (1, 1));
        serves_a_good_client(&device).await;
    })
    .await;
}

/// A server that answers the handshake well and then sends these bytes.
async fn false_server(mut stream: UnixStream, framing: Framing, bytes: Vec<u8>) {
    let mut greeting = b"NBDMAGICIHAVEOPT".to_vec();
    greeting.extend_from_slice(&[0, 3]);
    stream.write_all(&greeting).await.unwrap();
    stream.read_exact(&mut [0; 4]).await.unwrap();
    loop {
        let mut header = [0; 16];
        stream.read_exact(&mut header).await.unwrap();
        let header = OptionHeader::decode(&header).unwrap();
        stream
            .read_exact(&mut vec![0; header.length as usize])
            .await
            .unwrap();
        let mut replies = Vec::new();
        let mut reply = |kind, data: &[u8]| {
            let head = OptionReplyHeader {
                option: header.option,
                kind,
                length: data.len() as u32,
            };
            replies.extend_from_slice(&head.encode());
            replies.extend_from_slice(data);
        };
        match header.option {
            opt::STRUCTURED_REPLY if framing == Framing::Simple => reply(rep::ERR_UNSUP, b""),
            opt::EXTENDED_HEADERS if framing != Framing::Extended => reply(rep::ERR_UNSUP, b""),
            opt::SET_META_CONTEXT => {
                reply(rep::META_CONTEXT, b"\0\0\0\x05base:allocation");
                reply(rep::ACK, b"");
            }
            opt::GO => {
                reply(
                    rep::INFO,
                    &[&[0, 0][..], &(SIZE as u64).to_be_bytes(), &[0, 0xff]].concat(),
                );
                reply(rep::ACK, b"");
            }
            _ => reply(rep::ACK, b""),
        }
        stream.write_all(&replies).await.unwrap();
        if header.option == opt::GO {
            break;
        }
    }
    // One request is awaited, so that the client has something to misunderstand.
    let mut request = vec![0; framing.request_header_bytes()];
    stream.read_exact(&mut request).await.unwrap();
    let _ = stream.write_all(&bytes).await;
    let _ = stream.shutdown().await;
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest).await;
}

/// What a read of 4096 bytes at 8192 gets from a server that sends these bytes. Its cookie is 1.
async fn read_from(structured: bool, bytes: Vec<u8>) -> Result<bytes::Bytes, ClientError> {
    let framing = if structured {
        Framing::Structured
    } else {
        Framing::Simple
    };
    read_in_form(framing, bytes).await
}

async fn read_in_form(framing: Framing, bytes: Vec<u8>) -> Result<bytes::Bytes, ClientError> {
    let (near, far) = UnixStream::pair().unwrap();
    let server = tokio::spawn(false_server(far, framing, bytes));
    let client = connect(near, ClientConfig::default()).await;
    let result = client.read(8192, 4096).await;
    drop(client);
    server.await.unwrap();
    result
}

fn part(flags: u16, kind: u16, cookie: u64, payload: &[u8]) -> Vec<u8> {
    let header = ChunkHeader {
        flags,
        kind,
        cookie,
        length: payload.len() as u32,
    };
    [&header.encode()[..], payload].concat()
}

fn data_part(flags: u16, offset: u64, length: usize) -> Vec<u8> {
    part(
        flags,
        chunk::OFFSET_DATA,
        1,
        &[&offset.to_be_bytes()[..], &vec![3; length]].concat(),
    )
}

fn hole_part(flags: u16, offset: u64, length: u32) -> Vec<u8> {
    part(
        flags,
        chunk::OFFSET_HOLE,
        1,
        &[&offset.to_be_bytes()[..], &length.to_be_bytes()].concat(),
    )
}

#[tokio::test]
async fn the_client_takes_good_replies_in_any_cut() {
    let whole = data_part(chunk::FLAG_DONE, 8192, 4096);
    assert_eq!(read_from(true, whole).await.unwrap(), [3; 4096][..]);
    let mixed = [
        hole_part(0, 8192 + 1000, 3096),
        data_part(0, 8192, 1000),
        part(1, chunk::NONE, 1, b""),
    ];
    let expected = [&[3; 1000][..], &[0; 3096]].concat();
    assert_eq!(read_from(true, mixed.concat()).await.unwrap(), expected);
    let simple = [&SimpleReply { error: 0, cookie: 1 }.encode()[..], &[4; 4096]].concat();
    assert_eq!(read_from(false, simple).await.unwrap(), [4; 4096][..]);
}

#[tokio::test]
async fn the_client_refuses_replies_that_break_the_protocol() {
    let huge = ChunkHeader {
        flags: 1,
        kind: chunk::OFFSET_DATA,
        cookie: 1,
        length: u32::MAX,
    }
    .encode();
    let huge_error = ChunkHeader {
        flags: 1,
        kind: chunk::ERROR,
        cookie: 1,
        length: u32::MAX,
    }
    .encode();
    for (what, structured, bytes) in [
        ("an unknown magic", true, vec![1; 16]),
        ("an unknown cookie", true, part(1, chunk::NONE, 99, b"")),
        (
            "a simple reply to a read",
            true,
            SimpleReply { error: 0, cookie: 1 }.encode().to_vec(),
        ),
        ("a chunk that was not agreed", false, data_part(1, 8192, 4096)),
        ("data before the range", true, data_part(1, 8191, 4096)),
        ("data beyond the range", true, data_part(1, 8192, 4097)),
        ("data far away", true, data_part(1, u64::MAX, 1)),
        ("a huge chunk", true, [&huge[..], &8192u64.to_be_bytes()].concat()),
        ("a data chunk without data", true, data_part(1, 8192, 0)),
        ("an empty hole", true, hole_part(1, 8192, 0)),
        ("a hole beyond the range", true, hole_part(1, 8192, u32::MAX)),
        (
            "overlapping data",
            true,
            [data_part(0, 8192, 10), data_part(1, 8192, 4096)].concat(),
        ),
        (
            "missing data",
            true,
            [data_part(0, 8192, 10), part(1, chunk::NONE, 1, b"")].concat(),
        ),
        ("no data", true, part(1, chunk::NONE, 1, b"")),
        (
            "an empty chunk that is not the last",
            true,
            part(0, chunk::NONE, 1, b""),
        ),
        ("an empty chunk with content", true, part(1, chunk::NONE, 1, b"x")),
        (
            "a chunk of block status",
            true,
            part(1, chunk::BLOCK_STATUS, 1, &[0; 12]),
        ),
        ("a chunk of an unknown kind", true, part(1, 77, 1, b"")),
        ("an error without error", true, part(1, chunk::ERROR, 1, &[0; 6])),
        ("an error cut short", true, part(1, chunk::ERROR, 1, &[0; 5])),
        (
            "an error with a lying message",
            true,
            part(1, chunk::ERROR, 1, &[0, 0, 0, 5, 0, 9, b'x']),
        ),
        ("a huge error", true, huge_error.to_vec()),
    ] {
        match read_from(structured, bytes).await {
            Err(ClientError::Protocol(_)) => {}
            other => panic!("{what}: {other:?}"),
        }
    }
}

fn extended_part(kind: u16, cookie: u64, length: u64, payload: &[u8]) -> Vec<u8> {
    let header = ExtendedChunkHeader {
        flags: chunk::FLAG_DONE,
        kind,
        cookie,
        offset: 8192,
        length,
    };
    [&header.encode()[..], payload].concat()
}

#[tokio::test]
async fn the_client_refuses_extended_replies_that_break_the_protocol() {
    let data = [&8192u64.to_be_bytes()[..], &[3; 4096]].concat();
    let good = extended_part(chunk::OFFSET_DATA, 1, data.len() as u64, &data);
    assert_eq!(
        read_in_form(Framing::Extended, good).await.unwrap(),
        [3; 4096][..]
    );
    for (what, bytes) in [
        (
            "a simple reply",
            SimpleReply { error: 0, cookie: 1 }.encode().repeat(2),
        ),
        ("a structured chunk", data_part(1, 8192, 4096)),
        (
            "a length whose lower half is right",
            extended_part(chunk::OFFSET_DATA, 1, (1 << 32) + data.len() as u64, &data),
        ),
        (
            "the longest length",
            extended_part(chunk::OFFSET_DATA, 1, u64::MAX, &data),
        ),
        (
            "a longer chunk than was asked for",
            extended_part(chunk::OFFSET_DATA, 1, data.len() as u64 + 1, &data),
        ),
        ("an unknown cookie", extended_part(chunk::NONE, 2, 0, b"")),
        ("a huge error", extended_part(chunk::ERROR, 1, 1 << 20, b"")),
        (
            "a block status for a read",
            extended_part(chunk::BLOCK_STATUS_EXT, 1, 24, &[0; 24]),
        ),
    ] {
        match read_in_form(Framing::Extended, bytes).await {
            Err(ClientError::Protocol(_)) => {}
            other => panic!("{what}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn the_client_gets_the_error_of_a_read_that_came_in_part() {
    let error = [&5u32.to_be_bytes()[..], &[0, 3], b"bad", &9000u64.to_be_bytes()].concat();
    let bytes = [
        data_part(0, 8192, 100),
        part(0, chunk::ERROR_OFFSET, 1, &error),
        part(1, chunk::NONE, 1, b""),
    ];
    match read_from(true, bytes.concat()).await {
        Err(ClientError::Server {
            errno: ferry_nbd::Errno::Io,
            message,
        }) => assert_eq!(message, "bad"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn the_client_reports_a_server_that_closes_halfway() {
    for cut in [0, 10, 20, 28, 1000] {
        let mut bytes = data_part(1, 8192, 4096);
        bytes.truncate(cut);
        match read_from(true, bytes).await {
            Err(ClientError::Closed | ClientError::Io(_)) => {}
            other => panic!("cut at {cut}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn the_client_survives_random_replies() {
    rounds(async |mut rng| {
        let structured = rng.random();
        let mut bytes = Vec::new();
        for _ in 0..rng.random_range(0..20) {
            let offset = 8192 + rng.random_range(0..5000);
            let next = match rng.random_range(0..5) {
                0 => data_part(0, offset, rng.random_range(0..3000)),
                1 => hole_part(0, offset, rng.random_range(0..3000)),
                2 => part(rng.random_range(0..2), chunk::ERROR, 1, &garbage(&mut rng, 20)),
                3 => SimpleReply {
                    error: rng.random_range(0..3),
                    cookie: rng.random_range(0..3),
                }
                .encode()
                .to_vec(),
                _ => garbage(&mut rng, 100),
            };
            bytes.extend(next);
        }
        // Any answer is fine as long as there is one; a success must have the length that was asked for.
        if let Ok(data) = read_from(structured, bytes).await {
            assert_eq!(data.len(), 4096);
        }
    })
    .await;
}

/// A server that greets well and answers every option with these bytes.
async fn answers_options_with(bytes: Vec<u8>) -> (Negotiation, tokio::task::JoinHandle<()>) {
    let (near, mut far) = UnixStream::pair().unwrap();
    let server = tokio::spawn(async move {
        far.write_all(b"NBDMAGICIHAVEOPT\0\x03").await.unwrap();
        far.read_exact(&mut [0; 4]).await.unwrap();
        far.read_exact(&mut [0; 16]).await.unwrap();
        let _ = far.write_all(&bytes).await;
        let _ = far.shutdown().await;
        let mut rest = Vec::new();
        let _ = far.read_to_end(&mut rest).await;
    });
    let (reader, writer) = near.into_split();
    let config = ClientConfig {
        max_list_entries: 10,
        ..ClientConfig::default()
    };
    (Negotiation::over(reader, writer, config).await.unwrap(), server)
}

#[tokio::test]
async fn the_client_refuses_a_handshake_that_breaks_the_protocol() {
    let reply = |option, kind, data: &[u8]| {
        let header = OptionReplyHeader {
            option,
            kind,
            length: data.len() as u32,
        };
        [&header.encode()[..], data].concat()
    };
    let huge = OptionReplyHeader {
        option: opt::LIST,
        kind: rep::SERVER,
        length: u32::MAX,
    }
    .encode();
    for (what, bytes) in [
        ("a bad magic", vec![0; 20]),
        ("a reply to another option", reply(opt::GO, rep::ACK, b"")),
        ("a huge reply", huge.to_vec()),
        (
            "a reply that does not belong",
            reply(opt::LIST, rep::INFO, b"\0\0"),
        ),
        ("an acknowledgement with data", reply(opt::LIST, rep::ACK, b"x")),
        (
            "an entry with a lying length",
            reply(opt::LIST, rep::SERVER, b"\0\0\0\x09x"),
        ),
        (
            "a name that is no text",
            reply(opt::LIST, rep::SERVER, b"\0\0\0\x01\xff"),
        ),
        (
            "a list without end",
            reply(opt::LIST, rep::SERVER, &string("again")).repeat(1000),
        ),
    ] {
        let (mut negotiation, server) = answers_options_with(bytes).await;
        match negotiation.list().await {
            Err(ClientError::Protocol(_)) => {}
            other => panic!("{what}: {other:?}"),
        }
        drop(negotiation);
        server.await.unwrap();
    }
    let (mut negotiation, _server) = answers_options_with(vec![]).await;
    assert!(matches!(negotiation.list().await, Err(ClientError::Closed)));
}

#[tokio::test]
async fn the_client_refuses_information_that_breaks_the_protocol() {
    let info = |data: &[u8]| {
        let header = OptionReplyHeader {
            option: opt::INFO,
            kind: rep::INFO,
            length: data.len() as u32,
        };
        [&header.encode()[..], data].concat()
    };
    let end = OptionReplyHeader {
        option: opt::INFO,
        kind: rep::ACK,
        length: 0,
    }
    .encode()
    .to_vec();
    let export = info(&[0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 1]);
    let sizes = |numbers: [u32; 3]| info(&[&[0, 3][..], &numbers.map(u32::to_be_bytes).concat()].concat());
    for (what, bytes) in [
        ("no size", end.clone()),
        (
            "the size twice",
            [export.clone(), export.clone(), end.clone()].concat(),
        ),
        (
            "flags without their mark",
            [info(&[0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 2]), end.clone()].concat(),
        ),
        (
            "impossible block sizes",
            [export.clone(), sizes([3, 4096, 1 << 20]), end.clone()].concat(),
        ),
        (
            "no maximum",
            [export.clone(), sizes([1, 4096, 0]), end.clone()].concat(),
        ),
        ("information cut short", [info(&[0, 0, 1]), end.clone()].concat()),
    ] {
        let (near, mut far) = UnixStream::pair().unwrap();
        let server = tokio::spawn(async move {
            far.write_all(b"NBDMAGICIHAVEOPT\0\x03").await.unwrap();
            far.write_all(&bytes).await.unwrap();
            let mut rest = Vec::new();
            let _ = far.read_to_end(&mut rest).await;
        });
        let (reader, writer) = near.into_split();
        let mut negotiation = Negotiation::over(reader, writer, ClientConfig::default())
            .await
            .unwrap();
        match negotiation.info(EXPORT).await {
            Err(ClientError::Protocol(_)) => {}
            other => panic!("{what}: {other:?}"),
        }
        drop(negotiation);
        server.await.unwrap();
    }
}

#[tokio::test]
async fn the_client_gives_up_on_a_server_that_says_nothing() {
    let (near, _far) = UnixStream::pair().unwrap();
    let (reader, writer) = near.into_split();
    let config = ClientConfig {
        handshake_timeout: Duration::from_millis(20),
        ..ClientConfig::default()
    };
    assert!(matches!(
        Negotiation::over(reader, writer, config).await,
        Err(ClientError::Timeout(_))
    ));
}

#[tokio::test]
async fn bounds_that_make_no_sense_are_refused_before_anything_is_served() {
    for config in [
        ServerConfig {
            max_connections: 0,
            ..ServerConfig::default()
        },
        ServerConfig {
            max_in_flight_requests: 0,
            ..ServerConfig::default()
        },
        ServerConfig {
            max_in_flight_bytes: 1 << 19,
            ..ServerConfig::default()
        },
        ServerConfig {
            max_handshake_options: 0,
            ..ServerConfig::default()
        },
        ServerConfig {
            max_option_bytes: 4096,
            ..ServerConfig::default()
        },
        ServerConfig {
            max_option_bytes: 2 << 20,
            ..ServerConfig::default()
        },
        ServerConfig {
            max_in_flight_bytes: u32::MAX,
            ..ServerConfig::default()
        },
    ] {
        let exports = one_export(&Arc::new(MemoryDevice::new(0)));
        let (_trigger, shutdown) = ferry_nbd::shutdown_channel();
        let refused = ferry_nbd::Server::run_connection(
            tokio::io::empty(),
            tokio::io::sink(),
            exports,
            config,
            shutdown,
        )
        .await;
        assert!(matches!(refused, Err(ServerError::Config { .. })), "{refused:?}");
    }
}
