//! Everything that a client must not do, one connection each: what the server must answer, that it goes on where it
//! can, and that a good client beside it never notices.

#![allow(clippy::unwrap_used)] // A test fails by panicking.

mod common;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use common::abuses::{self, Abuse, COOKIE, SIZE, Stage, Then};
use common::{Raw, connect, one_export, serve};
use ferry_nbd::ServerConfig;
use ferry_nbd::client::{Client, ClientConfig};
use ferry_nbd::proto::{Framing, ReplyHeader, chunk, cmd, opt, rep};
use ferry_nbd::testing::{MemoryDevice, MemoryExports};
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

/// No abuse comes near it: the limit turns a hang into a failure.
const PATIENCE: Duration = Duration::from_secs(120);

fn framing_of(stage: Stage) -> Option<Framing> {
    match stage {
        Stage::Entered(framing) | Stage::ReadOnly(framing) => Some(framing),
        _ => None,
    }
}

/// Brings a client to where it misbehaves.
async fn bring_to(stage: Stage, mut stream: tokio::net::UnixStream) -> Raw {
    match stage {
        Stage::Greeted => {
            use tokio::io::AsyncReadExt as _;
            stream.read_exact(&mut [0; 18]).await.unwrap();
            Raw(stream)
        }
        Stage::Haggling => Raw::greet(stream, 3).await,
        Stage::HagglingStructured | Stage::HagglingExtended => {
            let mut raw = Raw::greet(stream, 3).await;
            let option = match stage {
                Stage::HagglingStructured => opt::STRUCTURED_REPLY,
                _ => opt::EXTENDED_HEADERS,
            };
            assert_eq!(raw.verdict(option, &[]).await, rep::ACK);
            raw
        }
        Stage::Entered(framing) | Stage::ReadOnly(framing) => match framing {
            Framing::Extended => Raw::enter_extended(stream).await,
            Framing::Simple => Raw::enter(stream, false).await,
            Framing::Structured => Raw::enter(stream, true).await,
        },
    }
}

/// The error of the next reply; 0 of a read that was answered.
async fn error_of_reply(raw: &mut Raw, framing: Framing) -> u32 {
    let (kind, data) = match framing {
        Framing::Simple => {
            let reply = raw.simple_reply().await;
            assert_eq!(reply.cookie, COOKIE);
            return reply.error;
        }
        // What has no content may have a simple reply all the same.
        Framing::Structured => match raw.reply_header().await {
            ReplyHeader::Simple(reply) => {
                assert_eq!(reply.cookie, COOKIE);
                return reply.error;
            }
            ReplyHeader::Chunk { kind, cookie, .. } => {
                assert_eq!(cookie, COOKIE);
                (kind, raw.chunk_data().await)
            }
        },
        Framing::Extended => {
            let (header, data) = raw.extended_chunk().await;
            assert_eq!(header.cookie, COOKIE);
            (header.kind, data)
        }
    };
    match kind & chunk::ERROR_BIT {
        0 => 0,
        _ => u32::from_be_bytes(*data.first_chunk().unwrap()),
    }
}

async fn commit(abuse: &Abuse, raw: &mut Raw) {
    match abuse.then {
        Then::Close | Then::End => {
            // It may close before it has read everything.
            let _ = raw.0.write_all(&abuse.bytes).await;
            let _ = raw.0.shutdown().await;
            let rest = raw.until_closed().await;
            let answered = match abuse.stage {
                // An abort is acknowledged, and options before the last have their answers.
                Stage::Haggling => false,
                _ => abuse.then == Then::Close && !rest.is_empty(),
            };
            assert!(!answered, "{}: {} bytes came", abuse.name, rest.len());
        }
        Then::Refuse(error) => {
            raw.0.write_all(&abuse.bytes).await.unwrap();
            let option = u32::from_be_bytes(*abuse.bytes[8..].first_chunk().unwrap());
            assert_eq!(raw.option_reply(option).await.0, error, "{}", abuse.name);
            // It goes on.
            assert_eq!(raw.verdict(opt::LIST, &[]).await, rep::ACK, "{}", abuse.name);
        }
        Then::Fail(error) => {
            let framing = framing_of(abuse.stage).unwrap();
            raw.0.write_all(&abuse.bytes).await.unwrap();
            assert_eq!(error_of_reply(raw, framing).await, error, "{}", abuse.name);
            // It goes on.
            let flush = abuses::request(framing, cmd::FLUSH, 0, 0, 0);
            raw.0.write_all(&flush).await.unwrap();
            assert_eq!(error_of_reply(raw, framing).await, 0, "{}", abuse.name);
        }
    }
}

/// Writes and reads back, each time other bytes.
async fn verify(client: &Client, round: usize) {
    let data = vec![round as u8; 4096];
    client.write(0, data.clone().into(), false).await.unwrap();
    assert_eq!(client.read(0, 4096).await.unwrap(), data);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_a_client_does_it_gets_an_error_or_its_end_and_others_go_on() {
    let all = abuses::all();
    let names: BTreeSet<&str> = all.iter().map(|abuse| abuse.name.as_str()).collect();
    assert_eq!(names.len(), all.len(), "two abuses have one name");
    assert!(all.len() >= 200, "only {}", all.len());
    let device = Arc::new(MemoryDevice::new(SIZE as usize));
    let exports = one_export(&device);
    let served = serve(exports.clone(), ServerConfig::default());
    let good = connect(served.stream, ClientConfig::default()).await;
    let mut failures = Vec::new();
    for (round, abuse) in all.iter().enumerate() {
        let read_only: Arc<MemoryExports> = match abuse.stage {
            Stage::ReadOnly(_) => one_export(&Arc::new(MemoryDevice::new(SIZE as usize).read_only())),
            _ => exports.clone(),
        };
        let hostile = serve(read_only, ServerConfig::default());
        let one = abuse.clone();
        // In a task: what goes wrong with one is told with what goes wrong with others.
        let done = tokio::spawn(timeout(PATIENCE, async move {
            let mut raw = bring_to(one.stage, hostile.stream).await;
            commit(&one, &mut raw).await;
            drop(raw);
            hostile.server.await.unwrap()
        }));
        match done.await {
            Ok(Ok(summary)) if summary.is_clean() => {}
            Ok(Ok(summary)) => failures.push(format!("{}: {summary:?}", abuse.name)),
            Ok(Err(_)) => failures.push(format!("{}: it hangs", abuse.name)),
            Err(error) => failures.push(format!("{}: {error}", abuse.name)),
        }
        verify(&good, round).await;
    }
    assert!(failures.is_empty(), "{failures:#?}");
    good.disconnect().await.unwrap();
    assert!(served.server.await.unwrap().is_clean());
    assert_eq!(exports.opened(), exports.closed());
    println!("{} abuses", all.len());
}
