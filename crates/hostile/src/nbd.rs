//! Readers of the NBD protocol, both ends.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use ferry_nbd::client::{Client, ClientConfig, Negotiation};
use ferry_nbd::proto::{OptionReplyHeader, opt, rep};
use ferry_nbd::testing::{MemoryDevice, MemoryExports};
use ferry_nbd::{Server, ServerConfig, fuzzing, shutdown_channel};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::runtime::block_on;
use crate::shape::Parts;

/// Name of the export.
pub const EXPORT: &str = "d";
/// Its size in bytes.
pub const SIZE_BYTES: usize = 64 << 10;

/// Headers, data of options, requests against a device.
pub fn codec(data: &[u8]) {
    fuzzing::headers(data);
    fuzzing::option_data(data);
    fuzzing::request(data);
}

/// A whole connection of a server: all that the client sends, from its flags on. Whatever it is, the server closes what it
/// opened.
///
/// # Panics
/// When it does not.
pub fn server(data: &[u8]) {
    let device = Arc::new(MemoryDevice::new(SIZE_BYTES));
    let exports = Arc::new(MemoryExports::new().with(EXPORT, "", device));
    let (_trigger, shutdown) = shutdown_channel();
    let served = block_on(Server::run_connection(
        data,
        tokio::io::sink(),
        exports.clone(),
        ServerConfig::default(),
        shutdown,
    ));
    assert!(served.is_ok_and(|summary| summary.is_clean()));
    assert_eq!(exports.opened(), exports.closed());
}

/// A server's bytes to a client: the first byte says how far the server behaves, the rest is what it sends then.
pub fn client(data: &[u8]) {
    let mut parts = Parts(data);
    let mode = parts.byte();
    let config = ClientConfig {
        max_list_entries: 100,
        max_payload_bytes: 1 << 20,
        handshake_timeout: Duration::from_secs(60),
        extended_headers: mode & 1 != 0,
        structured_replies: mode & 3 != 0,
        ..ClientConfig::default()
    };
    let rest = parts.0.to_vec();
    block_on(async {
        if mode & 4 == 0 {
            converse(GatedReader::open(rest), config, mode).await;
            return;
        }
        let handshake = good_handshake(mode & 3);
        let written = Arc::new(AtomicUsize::new(0));
        let reader = GatedReader {
            first: handshake,
            then: rest,
            at: 0,
            written: Arc::clone(&written),
        };
        let Ok(negotiation) = Negotiation::over(reader, CountingWriter(Arc::clone(&written)), config).await
        else {
            return;
        };
        if let Ok(client) = negotiation.go(EXPORT).await {
            // From here on, the reader has something to say once a request was written.
            written.store(0, Ordering::Relaxed);
            ask(&client).await;
        }
    });
}

/// The handshake itself is hostile.
async fn converse(reader: GatedReader, config: ClientConfig, mode: u8) {
    let Ok(mut negotiation) = Negotiation::over(reader, tokio::io::sink(), config).await else {
        return;
    };
    match mode >> 3 & 3 {
        0 => drop(negotiation.list().await),
        1 => drop(negotiation.info(EXPORT).await),
        _ => {
            if let Ok(client) = negotiation.go(EXPORT).await {
                ask(&client).await;
            }
        }
    }
}

async fn ask(client: &Client) {
    let read = client.read(8192, 4096);
    let status = client.block_status(0, 8192, false);
    let write = client.write(0, vec![1; 16].into(), false);
    let (data, _, _) = tokio::join!(read, status, write);
    if let Ok(data) = data {
        assert_eq!(data.len(), 4096);
    }
}

/// What a good server says up to the transmission phase. `framing`: as in the mode, 1 extended, 2 structured.
#[must_use]
pub fn good_handshake(framing: u8) -> Vec<u8> {
    let mut out = b"NBDMAGICIHAVEOPT\0\x03".to_vec();
    let mut reply = |option, kind, data: &[u8]| {
        let length = data.len() as u32;
        out.extend_from_slice(&OptionReplyHeader { option, kind, length }.encode());
        out.extend_from_slice(data);
    };
    if framing & 1 != 0 {
        reply(opt::EXTENDED_HEADERS, rep::ACK, b"");
    } else if framing & 2 != 0 {
        reply(opt::STRUCTURED_REPLY, rep::ACK, b"");
    }
    if framing != 0 {
        reply(
            opt::SET_META_CONTEXT,
            rep::META_CONTEXT,
            b"\0\0\0\x05base:allocation",
        );
        reply(opt::SET_META_CONTEXT, rep::ACK, b"");
    }
    let export = [&[0, 0][..], &(SIZE_BYTES as u64).to_be_bytes(), &[0x05, 0xff]].concat();
    reply(opt::GO, rep::INFO, &export);
    reply(opt::GO, rep::ACK, b"");
    out
}

/// Gives the first bytes at once and the others when something was written again.
struct GatedReader {
    first: Vec<u8>,
    then: Vec<u8>,
    at: usize,
    written: Arc<AtomicUsize>,
}

impl GatedReader {
    /// Without a gate.
    fn open(bytes: Vec<u8>) -> Self {
        Self {
            first: bytes,
            then: Vec::new(),
            at: 0,
            written: Arc::new(AtomicUsize::new(1)),
        }
    }
}

impl AsyncRead for GatedReader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let behind_gate = self.at >= self.first.len();
        if behind_gate && self.written.load(Ordering::Relaxed) == 0 {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let left = match self.at.checked_sub(self.first.len()) {
            None => &self.first[self.at..],
            Some(at) => self.then.get(at..).unwrap_or_default(),
        };
        let count = left.len().min(buffer.remaining());
        buffer.put_slice(&left[..count]);
        self.at += count;
        Poll::Ready(Ok(()))
    }
}

/// Forgets what is written and counts how often.
struct CountingWriter(Arc<AtomicUsize>);

impl AsyncWrite for CountingWriter {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
