//! The transmission phase of one connection, server side.
//!
//! The promise, on either of the two ways: requests run concurrently within two bounds, their number and the bytes
//! of their payloads; a request counts against both until its reply has been handed to the socket, so a client
//! that doesn't read its replies stops its own requests and nobody else's. Every request gets exactly one reply. A
//! panic of the device is an error reply. At the end, whatever caused it, requests under way are run to completion.
//!
//! | file | what it holds |
//! |---|---|
//! | `carry_out.rs` | one request on a device, from header to reply body: shared by both ways |
//! | `hold.rs` | requests that wait for space, if they may |
//! | `lane/` | plain sockets: a thread of its own per connection, system calls without a hop |
//! | `stream.rs` | any other stream, such as TLS: futures of the connection's task |

use std::io;
use std::sync::Arc;

use crate::device::BlockDevice;
use crate::proto::{BadMagic, Framing};

mod carry_out;
mod hold;
pub(crate) mod lane;
pub(crate) mod stream;

pub(crate) use carry_out::Session;
pub(crate) use hold::{Hold, PeerIsGone};

/// Requests with a larger payload get their own task at once when they need one, so that copying them does not hold
/// up the others of the connection.
const INLINE_PAYLOAD_BYTES: u32 = 64 << 10;
/// Most replies that are sent together.
const BATCH_REPLIES: usize = 64;

/// A payload up to this length is read over when its request is refused, even where less is allowed: the protocol
/// counts no shorter one as an attack.
const MIN_SKIPPED_PAYLOAD_BYTES: u64 = 32 << 20;

/// Bounds of one connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    pub(crate) requests: usize,
    /// At least the largest payload.
    pub(crate) payload_bytes: u32,
}

/// What was agreed for this connection.
pub(crate) struct Agreement {
    pub(crate) device: Arc<dyn BlockDevice>,
    pub(crate) framing: Framing,
    pub(crate) allocation: bool,
}

/// How the phase ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// The client said goodbye.
    Disconnect,
    /// The client closed the connection between two requests.
    Closed,
    /// The server goes down.
    Shutdown,
}

/// The connection could not go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TransmissionError {
    #[error("connection failed: {0}")]
    Io(#[from] io::Error),
    #[error(transparent)]
    BadMagic(#[from] BadMagic),
    #[error("the client announced a payload of {length} bytes, more than the {limit} that are read over")]
    PayloadTooLong { length: u64, limit: u64 },
}
