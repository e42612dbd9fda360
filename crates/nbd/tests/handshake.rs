//! Option haggling with the server, by hand and with the crate's own client.

#![allow(clippy::unwrap_used)] // A test fails by panicking.

mod common;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use common::{EXPORT, Raw, connect, go_data, meta_data, one_export, serve, serve_device, string};
use ferry_nbd::client::{ClientConfig, ClientError, Negotiation};
use ferry_nbd::proto::{OptionHeader, SimpleReply, cmd, info, opt, rep, transmission_flag};
use ferry_nbd::testing::{MemoryDevice, MemoryExports};
use ferry_nbd::{
    BlockDevice, BlockSizes, DeviceError, Errno, ExportInfo, Exports, OpenError, OpenErrorKind, ServerConfig,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn device() -> Arc<MemoryDevice> {
    Arc::new(MemoryDevice::new(1 << 20))
}

#[tokio::test]
async fn client_flags_that_are_not_known_end_the_connection() {
    let served = serve_device(&device());
    let mut raw = Raw::greet(served.stream, 4).await;
    assert!(raw.until_closed().await.is_empty());
    assert!(served.server.await.unwrap().is_clean());
}

#[tokio::test]
async fn options_that_are_not_known_are_refused_and_the_session_goes_on() {
    let served = serve_device(&device());
    let mut raw = Raw::greet(served.stream, 3).await;
    for option in [0, 4, 12, 12345, u32::MAX] {
        assert_eq!(
            raw.verdict(option, b"with data").await,
            rep::ERR_UNSUP,
            "option {option}"
        );
    }
    assert_eq!(raw.verdict(opt::LIST, &[]).await, rep::ACK);
}

#[tokio::test]
async fn option_data_that_is_too_long_is_skipped_and_refused() {
    let served = serve_device(&device());
    let mut raw = Raw::greet(served.stream, 3).await;
    let long = vec![7; 1 << 20];
    assert_eq!(raw.verdict(opt::GO, &long).await, rep::ERR_TOO_BIG);
    assert_eq!(raw.verdict(999, &long).await, rep::ERR_UNSUP);
    assert_eq!(raw.verdict(opt::GO, &go_data(EXPORT, &[])).await, rep::ACK);
}

#[tokio::test]
async fn a_bad_option_magic_ends_the_connection() {
    let served = serve_device(&device());
    let mut raw = Raw::greet(served.stream, 3).await;
    raw.0.write_all(&[0; 16]).await.unwrap();
    assert!(raw.until_closed().await.is_empty());
    assert!(served.server.await.unwrap().is_clean());
}

#[tokio::test]
async fn options_with_malformed_data_are_refused_and_the_session_goes_on() {
    let served = serve_device(&device());
    let mut raw = Raw::greet(served.stream, 3).await;
    assert_eq!(raw.verdict(opt::STRUCTURED_REPLY, b"x").await, rep::ERR_INVALID);
    assert_eq!(raw.verdict(opt::STRUCTURED_REPLY, b"").await, rep::ACK);
    assert_eq!(raw.verdict(opt::LIST, b"x").await, rep::ERR_INVALID);
    for option in [opt::INFO, opt::GO, opt::LIST_META_CONTEXT, opt::SET_META_CONTEXT] {
        for data in [
            &b""[..],
            b"\0\0\0\xff",
            b"\0\0\0\x01\xff\0\0",
            b"\0\0\0\x02a\0\0\0\0\0",
        ] {
            assert_eq!(
                raw.verdict(option, data).await,
                rep::ERR_INVALID,
                "option {option}, {data:?}"
            );
        }
    }
    let mut trailing = go_data(EXPORT, &[info::BLOCK_SIZE]);
    trailing.push(0);
    assert_eq!(raw.verdict(opt::GO, &trailing).await, rep::ERR_INVALID);
    assert_eq!(
        raw.verdict(opt::GO, &go_data(&"x".repeat(4097), &[])).await,
        rep::ERR_INVALID
    );
    assert_eq!(
        raw.verdict(opt::GO, &go_data(EXPORT, &[info::BLOCK_SIZE])).await,
        rep::ACK
    );
}

#[tokio::test]
async fn abort_is_acknowledged_with_or_without_data() {
    for data in [&b""[..], b"ignored"] {
        let served = serve_device(&device());
        let mut raw = Raw::greet(served.stream, 3).await;
        assert_eq!(raw.verdict(opt::ABORT, data).await, rep::ACK);
        assert!(raw.until_closed().await.is_empty());
    }
}

#[tokio::test]
async fn export_name_answers_with_and_without_padding() {
    for (flags, padding) in [(1, 124), (3, 0)] {
        let served = serve_device(&device());
        let mut raw = Raw::greet(served.stream, flags).await;
        raw.send_option(opt::EXPORT_NAME, EXPORT.as_bytes()).await;
        let mut answer = vec![0; 10 + padding];
        raw.0.read_exact(&mut answer).await.unwrap();
        assert_eq!(answer[..8], (1u64 << 20).to_be_bytes());
        assert_eq!(answer[10..], vec![0; padding]);
        raw.send(cmd::FLUSH, 0, 5, 0, 0).await;
        assert_eq!(raw.simple_reply().await, SimpleReply { error: 0, cookie: 5 });
    }
}

#[tokio::test]
async fn export_name_that_can_not_be_opened_ends_the_connection() {
    for name in ["unknown".to_owned(), "x".repeat(5000), "nul\0".to_owned()] {
        let served = serve_device(&device());
        let mut raw = Raw::greet(served.stream, 3).await;
        let header = OptionHeader {
            option: opt::EXPORT_NAME,
            length: name.len() as u32,
        };
        raw.0.write_all(&header.encode()).await.unwrap();
        // The server may close before it has read it all.
        let _ = raw.0.write_all(name.as_bytes()).await;
        assert!(raw.until_closed().await.is_empty());
        assert!(served.server.await.unwrap().is_clean());
    }
}

#[tokio::test]
async fn the_list_has_names_and_descriptions() {
    let exports = MemoryExports::new()
        .with("", "the default", device())
        .with("rbd/a", "first", device())
        .with(
            &"n".repeat(5000),
            "a name that the protocol can't carry",
            device(),
        )
        .with("rbd/b@snap", "", device());
    let served = serve(Arc::new(exports), ServerConfig::default());
    let (reader, writer) = served.stream.into_split();
    let mut client = Negotiation::over(reader, writer, ClientConfig::default())
        .await
        .unwrap();
    let listed = client.list().await.unwrap();
    let listed: Vec<_> = listed
        .iter()
        .map(|info| (info.name.as_str(), info.description.as_str()))
        .collect();
    assert_eq!(
        listed,
        [("", "the default"), ("rbd/a", "first"), ("rbd/b@snap", "")]
    );
    client.abort().await.unwrap();
}

#[tokio::test]
async fn a_long_list_arrives_whole() {
    let mut exports = MemoryExports::new();
    let device = device();
    for number in 0..5000 {
        exports = exports.with(
            &format!("pool/image-{number:05}"),
            "some description",
            device.clone(),
        );
    }
    let served = serve(Arc::new(exports), ServerConfig::default());
    let (reader, writer) = served.stream.into_split();
    let mut client = Negotiation::over(reader, writer, ClientConfig::default())
        .await
        .unwrap();
    assert_eq!(client.list().await.unwrap().len(), 5000);
}

#[tokio::test]
async fn an_unknown_export_is_refused_and_another_can_be_chosen() {
    let served = serve_device(&device());
    let mut raw = Raw::greet(served.stream, 3).await;
    let (kind, message) = raw.option(opt::GO, &go_data("nope", &[])).await.pop().unwrap();
    assert_eq!(kind, rep::ERR_UNKNOWN);
    assert_eq!(String::from_utf8(message).unwrap(), "there is no export \"nope\"");
    assert_eq!(raw.verdict(opt::GO, &go_data(EXPORT, &[])).await, rep::ACK);
}

#[tokio::test]
async fn info_and_go_tell_what_was_asked() {
    let device = Arc::new(MemoryDevice::new(1 << 20).block_sizes(BlockSizes {
        minimum: 512,
        preferred: 4 << 20,
        maximum: 32 << 20,
    }));
    let config = ServerConfig {
        max_in_flight_bytes: 1 << 20,
        ..ServerConfig::default()
    };
    let exports = one_export(&device);
    let served = serve(exports.clone(), config);
    let mut raw = Raw::greet(served.stream, 3).await;
    let replies = raw.option(opt::INFO, &go_data(EXPORT, &[])).await;
    assert_eq!(replies.len(), 2, "size and flags, and the end");
    let replies = raw
        .option(opt::GO, &go_data(EXPORT, &[info::NAME, info::BLOCK_SIZE, 77]))
        .await;
    let data: Vec<&[u8]> = replies.iter().map(|(_, data)| data.as_slice()).collect();
    assert_eq!(data[0][..10], [0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0]);
    assert_eq!(data[1], b"\0\x01disk");
    assert_eq!(
        data[2],
        [0, 3, 0, 0, 2, 0, 0, 0x10, 0, 0, 0, 0x10, 0, 0],
        "cut to the server's own limit"
    );
    drop(raw);
    assert!(served.server.await.unwrap().is_clean());
    assert_eq!(
        (exports.opened(), exports.closed()),
        (1, 1),
        "the choice reuses what the question opened"
    );
}

#[tokio::test]
async fn flags_follow_the_device_and_the_agreement() {
    let cases = [
        (MemoryDevice::new(0), true, 0b1101_1110_1101u16),
        (MemoryDevice::new(0).multi_conn(false), true, 0b1100_1110_1101),
        (MemoryDevice::new(0), false, 0b1101_0110_1101),
        (MemoryDevice::new(0).read_only(), true, 0b101_1000_1111),
    ];
    for (device, structured_replies, flags) in cases {
        let served = serve_device(&Arc::new(device));
        let client = connect(
            served.stream,
            ClientConfig {
                structured_replies,
                extended_headers: false,
                ..ClientConfig::default()
            },
        )
        .await;
        assert_eq!(client.details().flags, flags);
        assert_eq!(
            client.details().read_only(),
            flags & transmission_flag::READ_ONLY != 0
        );
    }
}

#[tokio::test]
async fn the_form_of_replies_is_agreed_in_any_order_that_makes_sense() {
    let extended = opt::EXTENDED_HEADERS;
    let structured = opt::STRUCTURED_REPLY;
    for (steps, chunks) in [
        (vec![(structured, rep::ACK), (extended, rep::ACK)], true),
        (
            vec![
                (extended, rep::ACK),
                (structured, rep::ERR_EXT_HEADER_REQD),
                (extended, rep::ACK),
            ],
            true,
        ),
        (vec![(structured, rep::ACK), (structured, rep::ACK)], true),
        (vec![], false),
    ] {
        let served = serve_device(&device());
        let mut raw = Raw::greet(served.stream, 3).await;
        assert_eq!(raw.verdict(extended, b"data").await, rep::ERR_INVALID);
        for (option, verdict) in &steps {
            assert_eq!(raw.verdict(*option, &[]).await, *verdict, "{option} of {steps:?}");
        }
        let query = meta_data(EXPORT, &["base:allocation"]);
        let expected = if chunks { rep::ACK } else { rep::ERR_INVALID };
        assert_eq!(raw.verdict(opt::SET_META_CONTEXT, &query).await, expected);
        assert_eq!(raw.verdict(opt::GO, &go_data(EXPORT, &[])).await, rep::ACK);
        if steps.contains(&(extended, rep::ACK)) {
            raw.send_extended(cmd::FLUSH, 0, 7, 0, 0).await;
            assert_eq!(raw.extended_chunk().await.0.cookie, 7);
        } else {
            raw.send(cmd::FLUSH, 0, 7, 0, 0).await;
            assert_eq!(raw.simple_reply().await.cookie, 7);
        }
    }
}

#[tokio::test]
async fn export_name_after_extended_headers_ends_the_connection() {
    let served = serve_device(&device());
    let mut raw = Raw::greet(served.stream, 3).await;
    assert_eq!(raw.verdict(opt::EXTENDED_HEADERS, &[]).await, rep::ACK);
    raw.send_option(opt::EXPORT_NAME, EXPORT.as_bytes()).await;
    assert!(raw.until_closed().await.is_empty());
    assert!(served.server.await.unwrap().is_clean());
}

#[tokio::test]
async fn too_many_options_end_the_connection_and_too_long_ones_are_skipped() {
    let config = ServerConfig {
        max_handshake_options: 5,
        max_option_bytes: 8 << 10,
        ..ServerConfig::default()
    };
    let served = serve(one_export(&device()), config);
    let mut raw = Raw::greet(served.stream, 3).await;
    let long = vec![0; (8 << 10) + 1];
    assert_eq!(raw.verdict(opt::SET_META_CONTEXT, &long).await, rep::ERR_TOO_BIG);
    for _ in 0..4 {
        assert_eq!(raw.verdict(opt::LIST, &[]).await, rep::ACK);
    }
    // Nothing is awaited from the client any more.
    assert!(raw.until_closed().await.is_empty());
    assert!(served.server.await.unwrap().is_clean());
}

#[tokio::test]
async fn a_client_that_trickles_is_cut_off_at_the_time_limit() {
    let config = ServerConfig {
        handshake_timeout: Duration::from_secs(100),
        ..ServerConfig::default()
    };
    let served = serve(one_export(&device()), config);
    let mut raw = Raw::greet(served.stream, 3).await;
    // However slow the machine is, a second passes between two bytes.
    tokio::time::pause();
    // Each byte is progress, and yet the whole takes for ever: only a limit on the whole ends it.
    let header = OptionHeader {
        option: opt::LIST,
        length: 1 << 30,
    };
    raw.0.write_all(&header.encode()).await.unwrap();
    while raw.0.write_all(&[0]).await.is_ok() {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert!(served.server.await.unwrap().is_clean());
}

#[tokio::test]
async fn metadata_contexts_follow_the_rules_of_the_base_namespace() {
    let served = serve_device(&device());
    let mut raw = Raw::greet(served.stream, 3).await;
    let any = meta_data(EXPORT, &["base:allocation"]);
    for option in [opt::LIST_META_CONTEXT, opt::SET_META_CONTEXT] {
        assert_eq!(
            raw.verdict(option, &any).await,
            rep::ERR_INVALID,
            "structured replies come first"
        );
    }
    assert_eq!(raw.verdict(opt::STRUCTURED_REPLY, &[]).await, rep::ACK);
    let listed = |id: u8| {
        (
            rep::META_CONTEXT,
            [&[0, 0, 0, id], &b"base:allocation"[..]].concat(),
        )
    };
    let end = (rep::ACK, vec![]);
    for (option, queries, found) in [
        (opt::LIST_META_CONTEXT, &[][..], true),
        (opt::LIST_META_CONTEXT, &["base:"], true),
        (opt::LIST_META_CONTEXT, &["qemu:", "base:allocation"], true),
        (
            opt::LIST_META_CONTEXT,
            &["base:allocations", "qemu:dirty-bitmap:x", "no colon"],
            false,
        ),
        (opt::SET_META_CONTEXT, &[], false),
        (opt::SET_META_CONTEXT, &["base:"], false),
        (opt::SET_META_CONTEXT, &["base:other", "x-some:thing"], false),
        (
            opt::SET_META_CONTEXT,
            &["base:allocation", "base:allocation"],
            true,
        ),
    ] {
        let expected = match found {
            true => vec![listed(u8::from(option == opt::SET_META_CONTEXT)), end.clone()],
            false => vec![end.clone()],
        };
        assert_eq!(
            raw.option(option, &meta_data(EXPORT, queries)).await,
            expected,
            "{option} {queries:?}"
        );
    }
    assert_eq!(
        raw.verdict(opt::SET_META_CONTEXT, &meta_data("nope", &["base:allocation"]))
            .await,
        rep::ERR_UNKNOWN
    );
}

#[tokio::test]
async fn a_selection_counts_only_for_its_export_and_until_the_next() {
    let first = MemoryExports::new()
        .with(EXPORT, "", device())
        .with("other", "", device());
    let exports = Arc::new(first);
    for (steps, works) in [
        (vec![(EXPORT, "base:allocation")], true),
        (vec![("other", "base:allocation")], false),
        (vec![(EXPORT, "base:allocation"), (EXPORT, "base:unknown")], false),
        (
            vec![(EXPORT, "base:allocation"), ("nope", "base:allocation")],
            false,
        ),
    ] {
        let served = serve(exports.clone(), ServerConfig::default());
        let mut raw = Raw::greet(served.stream, 3).await;
        assert_eq!(raw.verdict(opt::STRUCTURED_REPLY, &[]).await, rep::ACK);
        for (name, query) in &steps {
            raw.option(opt::SET_META_CONTEXT, &meta_data(name, &[*query]))
                .await;
        }
        assert_eq!(raw.verdict(opt::GO, &go_data(EXPORT, &[])).await, rep::ACK);
        raw.send(cmd::BLOCK_STATUS, 0, 1, 0, 4096).await;
        let (header, data) = raw.chunk().await;
        assert_eq!(header.kind, if works { 5 } else { 0x8001 }, "{steps:?}");
        assert_eq!(
            data[..4],
            if works { 1u32 } else { Errno::Inval.code() }.to_be_bytes()
        );
    }
}

/// Refuses everything in the way it is told.
struct Refusing(OpenErrorKind);

#[async_trait]
impl Exports for Refusing {
    async fn list(&self) -> Result<Vec<ExportInfo>, OpenError> {
        Err(OpenError::new(self.0, "no list today"))
    }
    async fn open(&self, name: &str) -> Result<Arc<dyn BlockDevice>, OpenError> {
        assert_ne!(name, "panic", "as ordered");
        Err(OpenError::new(self.0, format!("{name} stays shut")))
    }
    async fn close(&self, _device: Arc<dyn BlockDevice>) -> Result<(), DeviceError> {
        panic!("nothing was opened");
    }
}

#[tokio::test]
async fn reasons_for_a_refusal_reach_the_client() {
    for (kind, reply) in [
        (OpenErrorKind::Unknown, rep::ERR_UNKNOWN),
        (OpenErrorKind::Policy, rep::ERR_POLICY),
        (OpenErrorKind::Io, rep::ERR_UNKNOWN),
        (OpenErrorKind::Shutdown, rep::ERR_SHUTDOWN),
    ] {
        let served = serve(Arc::new(Refusing(kind)), ServerConfig::default());
        let (reader, writer) = served.stream.into_split();
        let mut client = Negotiation::over(reader, writer, ClientConfig::default())
            .await
            .unwrap();
        match client.info("image").await.unwrap_err() {
            ClientError::Refused { kind, message } => {
                assert_eq!((kind, message.as_str()), (reply, "image stays shut"));
            }
            other => panic!("{other}"),
        }
        assert!(matches!(
            client.info("panic").await,
            Err(ClientError::Refused { .. })
        ));
        let refused = client.list().await.unwrap_err();
        assert!(
            matches!(
                &refused,
                ClientError::Refused {
                    kind: rep::ERR_PLATFORM,
                    ..
                }
            ),
            "{refused}"
        );
        assert!(refused.to_string().contains("no list today"), "{refused}");
        assert!(client.go("image").await.is_err());
        assert!(served.server.await.unwrap().is_clean());
    }
}

#[tokio::test]
async fn a_device_with_impossible_block_sizes_is_refused_and_closed() {
    let device = Arc::new(MemoryDevice::new(4096).block_sizes(BlockSizes {
        minimum: 3,
        ..BlockSizes::default()
    }));
    let exports = one_export(&device);
    let served = serve(exports.clone(), ServerConfig::default());
    let mut raw = Raw::greet(served.stream, 3).await;
    assert_eq!(
        raw.verdict(opt::GO, &go_data(EXPORT, &[])).await,
        rep::ERR_UNKNOWN
    );
    drop(raw);
    assert!(served.server.await.unwrap().is_clean());
    assert_eq!((exports.opened(), exports.closed()), (1, 1));
}

#[tokio::test]
async fn a_client_that_does_not_finish_the_handshake_is_sent_away() {
    let exports = one_export(&device());
    let served = serve(exports.clone(), ServerConfig::default());
    let mut raw = Raw::greet(served.stream, 3).await;
    raw.0.write_all(&string("half an option")[..9]).await.unwrap();
    // From here on the time that nobody needs is skipped.
    tokio::time::pause();
    assert!(raw.until_closed().await.is_empty());
    assert!(served.server.await.unwrap().is_clean());
    assert_eq!(exports.opened(), exports.closed());
}

#[tokio::test]
async fn a_shutdown_ends_a_handshake() {
    let served = serve_device(&device());
    let mut raw = Raw::greet(served.stream, 3).await;
    served.trigger.shut_down();
    assert!(raw.until_closed().await.is_empty());
    assert!(served.server.await.unwrap().is_clean());
}
