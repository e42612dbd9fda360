//! A server on one end of a socket pair, and the bytes of the protocol by hand on the other.

#![allow(dead_code)] // Every test file uses another part.

pub mod abuses;
pub mod certificates;
pub mod random;
pub mod tools;

use std::sync::Arc;
use std::time::Duration;

use ferry_nbd::client::{Client, ClientConfig, Negotiation};
use ferry_nbd::proto::{
    ChunkHeader, ExtendedChunkHeader, OptionHeader, OptionReplyHeader, ReplyHeader, RequestHeader,
    SimpleReply, opt, rep,
};
use ferry_nbd::testing::{MemoryDevice, MemoryExports};
use ferry_nbd::{Exports, ServeSummary, Server, ServerConfig, ShutdownTrigger, shutdown_channel};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::task::JoinHandle;

/// The export that the tests use.
pub const EXPORT: &str = "disk";

/// Whether [`serve`] takes the way of plain sockets, a lane, rather than that of any stream. Suites that hold for
/// both are compiled twice; the second time under a name that says so.
fn over_lane() -> bool {
    env!("CARGO_CRATE_NAME").ends_with("_lane")
}

/// One connection of a server.
pub struct Served {
    pub trigger: ShutdownTrigger,
    pub server: JoinHandle<ServeSummary>,
    pub stream: UnixStream,
}

pub fn serve(exports: Arc<dyn Exports>, config: ServerConfig) -> Served {
    let (near, stream) = UnixStream::pair().unwrap();
    let (trigger, shutdown) = shutdown_channel();
    let server = tokio::spawn(async move {
        if over_lane() {
            return Server::run_unix_connection(near, exports, config, shutdown)
                .await
                .unwrap();
        }
        let (reader, writer) = near.into_split();
        Server::run_connection(reader, writer, exports, config, shutdown)
            .await
            .unwrap()
    });
    Served {
        trigger,
        server,
        stream,
    }
}

pub fn one_export(device: &Arc<MemoryDevice>) -> Arc<MemoryExports> {
    Arc::new(MemoryExports::new().with(EXPORT, "the disk of the tests", device.clone()))
}

pub fn serve_device(device: &Arc<MemoryDevice>) -> Served {
    serve(one_export(device), ServerConfig::default())
}

/// A client in the transmission phase on that connection.
pub async fn connect(stream: UnixStream, config: ClientConfig) -> Client {
    let (reader, writer) = stream.into_split();
    Negotiation::over(reader, writer, config)
        .await
        .unwrap()
        .go(EXPORT)
        .await
        .unwrap()
}

pub fn structured() -> ClientConfig {
    ClientConfig {
        extended_headers: false,
        ..ClientConfig::default()
    }
}

pub fn simple() -> ClientConfig {
    ClientConfig {
        structured_replies: false,
        extended_headers: false,
        ..ClientConfig::default()
    }
}

/// The protocol by hand.
pub struct Raw(pub UnixStream);

impl Raw {
    /// Takes the greeting and answers with these client flags.
    pub async fn greet(mut stream: UnixStream, flags: u32) -> Self {
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting).await.unwrap();
        assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
        assert_eq!(greeting[16..], [0, 3]);
        stream.write_all(&flags.to_be_bytes()).await.unwrap();
        Self(stream)
    }

    pub async fn send_option(&mut self, option: u32, data: &[u8]) {
        let header = OptionHeader {
            option,
            length: data.len() as u32,
        };
        self.0.write_all(&header.encode()).await.unwrap();
        self.0.write_all(data).await.unwrap();
    }

    pub async fn option_reply(&mut self, option: u32) -> (u32, Vec<u8>) {
        let mut header = [0; 20];
        self.0.read_exact(&mut header).await.unwrap();
        let header = OptionReplyHeader::decode(&header).unwrap();
        assert_eq!(header.option, option);
        let mut data = vec![0; header.length as usize];
        self.0.read_exact(&mut data).await.unwrap();
        (header.kind, data)
    }

    /// Sends an option and returns all replies up to the last.
    pub async fn option(&mut self, option: u32, data: &[u8]) -> Vec<(u32, Vec<u8>)> {
        self.send_option(option, data).await;
        let mut replies = Vec::new();
        loop {
            let reply = self.option_reply(option).await;
            let last = reply.0 == rep::ACK || reply.0 & rep::ERROR_BIT != 0;
            replies.push(reply);
            if last {
                return replies;
            }
        }
    }

    /// The kind of the last reply.
    pub async fn verdict(&mut self, option: u32, data: &[u8]) -> u32 {
        self.option(option, data).await.pop().unwrap().0
    }

    /// Enters the export.
    pub async fn enter(stream: UnixStream, structured: bool) -> Self {
        let mut raw = Self::greet(stream, 3).await;
        if structured {
            assert_eq!(raw.verdict(opt::STRUCTURED_REPLY, &[]).await, rep::ACK);
        }
        assert_eq!(raw.verdict(opt::GO, &go_data(EXPORT, &[])).await, rep::ACK);
        raw
    }

    pub async fn send(&mut self, command: u16, flags: u16, cookie: u64, offset: u64, length: u32) {
        let header = RequestHeader {
            flags,
            command,
            cookie,
            offset,
            length: u64::from(length),
        };
        self.0.write_all(&header.encode()).await.unwrap();
    }

    /// Enters the export with extended headers and block status.
    pub async fn enter_extended(stream: UnixStream) -> Self {
        let mut raw = Self::greet(stream, 3).await;
        assert_eq!(raw.verdict(opt::EXTENDED_HEADERS, &[]).await, rep::ACK);
        let contexts = meta_data(EXPORT, &["base:allocation"]);
        assert_eq!(raw.verdict(opt::SET_META_CONTEXT, &contexts).await, rep::ACK);
        assert_eq!(raw.verdict(opt::GO, &go_data(EXPORT, &[])).await, rep::ACK);
        raw
    }

    pub async fn send_extended(&mut self, command: u16, flags: u16, cookie: u64, offset: u64, length: u64) {
        let header = RequestHeader {
            flags,
            command,
            cookie,
            offset,
            length,
        };
        self.0.write_all(&header.encode_extended()).await.unwrap();
    }

    pub async fn extended_chunk(&mut self) -> (ExtendedChunkHeader, Vec<u8>) {
        let mut header = [0; 32];
        self.0.read_exact(&mut header).await.unwrap();
        let header = ExtendedChunkHeader::decode(&header).unwrap();
        let mut data = vec![0; header.length as usize];
        self.0.read_exact(&mut data).await.unwrap();
        (header, data)
    }

    pub async fn simple_reply(&mut self) -> SimpleReply {
        match self.reply_header().await {
            ReplyHeader::Simple(reply) => reply,
            other => panic!("{other:?} where a simple reply was due"),
        }
    }

    /// The header of a reply where both forms may come.
    pub async fn reply_header(&mut self) -> ReplyHeader {
        let mut header = [0; 16];
        self.0.read_exact(&mut header).await.unwrap();
        ReplyHeader::decode(&header).unwrap()
    }

    /// What follows the header of a chunk.
    pub async fn chunk_data(&mut self) -> Vec<u8> {
        let length = self.0.read_u32().await.unwrap();
        let mut data = vec![0; length as usize];
        self.0.read_exact(&mut data).await.unwrap();
        data
    }

    pub async fn chunk(&mut self) -> (ChunkHeader, Vec<u8>) {
        let ReplyHeader::Chunk { flags, kind, cookie } = self.reply_header().await else {
            panic!("a simple reply where a chunk was due")
        };
        let data = self.chunk_data().await;
        let header = ChunkHeader {
            flags,
            kind,
            cookie,
            length: data.len() as u32,
        };
        (header, data)
    }

    /// Waits for the server to close; what it sends before is returned.
    pub async fn until_closed(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        // A reset is a way to close as well.
        let _ = self.0.read_to_end(&mut rest).await;
        rest
    }
}

pub fn string(text: &str) -> Vec<u8> {
    let mut out = (text.len() as u32).to_be_bytes().to_vec();
    out.extend_from_slice(text.as_bytes());
    out
}

pub fn go_data(name: &str, wanted: &[u16]) -> Vec<u8> {
    let mut out = string(name);
    out.extend_from_slice(&(wanted.len() as u16).to_be_bytes());
    wanted
        .iter()
        .for_each(|kind| out.extend_from_slice(&kind.to_be_bytes()));
    out
}

pub fn meta_data(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut out = string(name);
    out.extend_from_slice(&(queries.len() as u32).to_be_bytes());
    queries
        .iter()
        .for_each(|query| out.extend_from_slice(&string(query)));
    out
}

/// Waits for something that will be so; a test that hangs here has failed.
pub async fn until(condition: impl Fn() -> bool) {
    while !condition() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Lets every other task, and every thread, get as far as it can: for showing that something does not happen.
pub async fn settle() {
    for _ in 0..1000 {
        tokio::task::yield_now().await;
    }
    tokio::time::sleep(Duration::from_millis(30)).await;
}

/// Keeps a server running as long as a test wants it.
pub struct ShutdownOnDrop(pub ShutdownTrigger);
