//! An NBD client.
//!
//! The promise: the server's bytes are hostile. Every length is checked before memory is reserved for it, every
//! list and reply has a bound, and what breaks the protocol ends the connection with an error that says what it
//! was. No request is answered with data that the server didn't send.
//!
//! [`Negotiation`] connects and haggles; [`Negotiation::go`] turns it into a [`Client`], whose requests may run
//! concurrently from many tasks.
//!
//! ```no_run
//! # async fn example() -> Result<(), ferry_nbd::client::ClientError> {
//! use ferry_nbd::client::{ClientConfig, Negotiation};
//! let negotiation = Negotiation::connect_unix("/run/example.sock", ClientConfig::default()).await?;
//! let client = negotiation.go("rbd/image").await?;
//! let first = client.read(0, 512).await?;
//! # drop(first);
//! client.disconnect().await
//! # }
//! ```

mod negotiate;
mod replies;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::device::{BlockSizes, Errno, Extent};
use crate::proto::{Framing, RequestHeader, cmd, cmd_flag, transmission_flag};
use crate::tls::TlsClient;
use crate::wire::{Batch, FrameReader};

pub use negotiate::Negotiation;
use replies::{Answer, Pending, Waiting, receive_replies};

type BoxReader = Box<dyn AsyncRead + Send + Unpin>;
type BoxWriter = Box<dyn AsyncWrite + Send + Unpin>;

/// Requests of a client that are sent together.
const BATCH_REQUESTS: usize = 64;

/// Bounds and wishes of a client.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// Time for connecting, and for each step of the handshake.
    pub handshake_timeout: Duration,
    /// Most entries of an export list that are accepted.
    pub max_list_entries: usize,
    /// Most requests under way; further ones wait.
    pub max_in_flight_requests: usize,
    /// Longest read or write, in bytes, whatever the server offers.
    pub max_payload_bytes: u32,
    /// Ask for structured replies: needed for block status and for errors with messages.
    pub structured_replies: bool,
    /// Ask for extended headers, which include structured replies: needed for ranges of 4 GiB and more in one
    /// request.
    pub extended_headers: bool,
    /// Ask for `base:allocation`: needed for block status.
    pub block_status: bool,
    /// With it, the client starts TLS before anything else and goes no further with a server that won't.
    pub tls: Option<TlsClient>,
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self {
            handshake_timeout: Duration::from_secs(30),
            max_list_entries: 100_000,
            max_in_flight_requests: 64,
            max_payload_bytes: 32 << 20,
            structured_replies: true,
            extended_headers: true,
            block_status: true,
            tls: None,
        }
    }
}

/// Why a client could not do what it was asked.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The connection failed.
    #[error("NBD connection failed: {0}")]
    Io(Arc<io::Error>),
    /// The server broke the protocol; the connection is closed.
    #[error("the NBD server broke the protocol: {0}")]
    Protocol(String),
    /// The upgrade to TLS failed: the certificate of one end does not satisfy the other, or the peer speaks no TLS.
    #[error("TLS with the NBD server failed: {0}")]
    Tls(Arc<io::Error>),
    /// The server refused a step of the handshake.
    #[error("the NBD server refused: {}", refusal(*.kind, .message))]
    Refused {
        /// The type of its reply, one of the errors of [`rep`](crate::proto::rep).
        kind: u32,
        /// Its message, may be empty.
        message: String,
    },
    /// The server answered a request with an error. The connection goes on.
    #[error("the NBD server answered {errno}: {message}")]
    Server {
        /// The kind of error.
        errno: Errno,
        /// Its message, may be empty.
        message: String,
    },
    /// A request that this client won't send.
    #[error("NBD request not sent: {0}")]
    Unsupported(String),
    /// The server took too long in the handshake.
    #[error("the NBD server did not finish the handshake within {0:?}")]
    Timeout(Duration),
    /// The server closed the connection.
    #[error("the NBD server closed the connection")]
    Closed,
}

impl From<io::Error> for ClientError {
    fn from(error: io::Error) -> Self {
        Self::Io(Arc::new(error))
    }
}

fn refusal(kind: u32, message: &str) -> String {
    use crate::proto::rep;
    let kind = match kind {
        rep::ERR_UNSUP => "not supported".to_owned(),
        rep::ERR_POLICY => "forbidden by policy".to_owned(),
        rep::ERR_INVALID => "not valid".to_owned(),
        rep::ERR_PLATFORM => "not possible on its platform".to_owned(),
        rep::ERR_TLS_REQD => "TLS required".to_owned(),
        rep::ERR_UNKNOWN => "no such export".to_owned(),
        rep::ERR_SHUTDOWN => "shutting down".to_owned(),
        rep::ERR_BLOCK_SIZE_REQD => "block sizes must be asked for".to_owned(),
        rep::ERR_TOO_BIG => "too big".to_owned(),
        other => format!("reply {other:#x}"),
    };
    if message.is_empty() {
        kind
    } else {
        format!("{kind}: {message}")
    }
}

/// What the server says of an export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportDetails {
    /// Size in bytes.
    pub size_bytes: u64,
    /// Bits of [`transmission_flag`].
    pub flags: u16,
    /// Limits for requests; the protocol's defaults when the server named none.
    pub block_sizes: BlockSizes,
    /// The server's name of the export, when it gave one.
    pub canonical_name: Option<String>,
}

impl ExportDetails {
    /// Whether all of these bits of [`transmission_flag`] are set.
    #[must_use]
    pub fn has(&self, flags: u16) -> bool {
        self.flags & flags == flags
    }

    /// Whether writes are refused.
    #[must_use]
    pub fn read_only(&self) -> bool {
        self.has(transmission_flag::READ_ONLY)
    }
}

/// A connection in the transmission phase. Dropping it closes the connection at once;
/// [`disconnect`](Client::disconnect) says goodbye first.
#[derive(Debug)]
pub struct Client {
    details: ExportDetails,
    config: ClientConfig,
    framing: Framing,
    allocation: Option<u32>,
    next_cookie: AtomicU64,
    slots: Semaphore,
    waiting: Arc<Mutex<Waiting>>,
    queue: mpsc::Sender<Frame>,
    sender: JoinHandle<()>,
    receiver: JoinHandle<()>,
}

#[derive(Debug)]
struct Frame {
    header: RequestHeader,
    payload: Bytes,
}

impl Client {
    fn start(
        frames: FrameReader<BoxReader>,
        writer: BoxWriter,
        details: ExportDetails,
        config: ClientConfig,
        framing: Framing,
        allocation: Option<u32>,
    ) -> Self {
        let waiting = Arc::new(Mutex::new(Waiting::default()));
        let (queue, requests) = mpsc::channel(config.max_in_flight_requests);
        let sender = tokio::spawn(send_requests(requests, writer, framing, Arc::clone(&waiting)));
        let receiver = tokio::spawn(receive_replies(frames, Arc::clone(&waiting), framing));
        Self {
            details,
            framing,
            allocation,
            next_cookie: AtomicU64::new(1),
            slots: Semaphore::new(config.max_in_flight_requests),
            waiting,
            queue,
            sender,
            receiver,
            config,
        }
    }

    /// What the server said of the export.
    #[must_use]
    pub fn details(&self) -> &ExportDetails {
        &self.details
    }

    /// Whether [`block_status`](Client::block_status) can be asked.
    #[must_use]
    pub fn has_block_status(&self) -> bool {
        self.allocation.is_some()
    }

    /// Whether extended headers are in use, so that requests without payload may name any range.
    #[must_use]
    pub fn has_extended_headers(&self) -> bool {
        self.framing == Framing::Extended
    }

    /// Longest read or write in bytes.
    #[must_use]
    pub fn max_payload_bytes(&self) -> u32 {
        self.details
            .block_sizes
            .maximum
            .min(self.config.max_payload_bytes)
    }

    /// Reads `length` bytes at `offset`. The range is for the server to check.
    ///
    /// # Errors
    /// [`ClientError::Server`] with the server's error; any other kind means that the connection is of no more
    /// use, except [`ClientError::Unsupported`] for a length above [`max_payload_bytes`](Client::max_payload_bytes).
    pub async fn read(&self, offset: u64, length: u32) -> Result<Bytes, ClientError> {
        self.check_payload(u64::from(length))?;
        let pending = Pending::read(offset, length);
        match self
            .request(cmd::READ, 0, offset, u64::from(length), Bytes::new(), pending)
            .await?
        {
            Answer::Data(data) => Ok(data),
            _ => Err(ClientError::Protocol("a read was answered without data".into())),
        }
    }

    /// Writes `data` at `offset`, durably if `fua`.
    ///
    /// # Errors
    /// As for [`read`](Client::read).
    pub async fn write(&self, offset: u64, data: Bytes, fua: bool) -> Result<(), ClientError> {
        self.check_payload(data.len() as u64)?;
        let length = data.len() as u64;
        let flags = fua_flag(fua)
            | match self.framing {
                Framing::Extended => cmd_flag::PAYLOAD_LEN,
                Framing::Simple | Framing::Structured => 0,
            };
        self.request(cmd::WRITE, flags, offset, length, data, Pending::Plain)
            .await
            .map(drop)
    }

    /// Tells the server that a range is no longer needed. Without extended headers it is shorter than 4 GiB.
    ///
    /// # Errors
    /// As for [`read`](Client::read).
    pub async fn trim(&self, offset: u64, length_bytes: u64, fua: bool) -> Result<(), ClientError> {
        self.require(transmission_flag::SEND_TRIM, "trim")?;
        self.plain(cmd::TRIM, fua_flag(fua), offset, length_bytes).await
    }

    /// Makes a range read as zeroes; allocated ones if `no_hole`. Without extended headers it is shorter than
    /// 4 GiB.
    ///
    /// # Errors
    /// As for [`read`](Client::read).
    pub async fn write_zeroes(
        &self,
        offset: u64,
        length_bytes: u64,
        no_hole: bool,
        fua: bool,
    ) -> Result<(), ClientError> {
        self.require(transmission_flag::SEND_WRITE_ZEROES, "write zeroes")?;
        let flags = fua_flag(fua) | no_hole_flag(no_hole);
        self.plain(cmd::WRITE_ZEROES, flags, offset, length_bytes).await
    }

    /// Makes a range read as zeroes if that is faster than writing them, and otherwise fails with
    /// [`Errno::NotSup`] and changes nothing.
    ///
    /// # Errors
    /// As for [`read`](Client::read).
    pub async fn write_zeroes_fast(
        &self,
        offset: u64,
        length_bytes: u64,
        no_hole: bool,
        fua: bool,
    ) -> Result<(), ClientError> {
        self.require(transmission_flag::SEND_FAST_ZERO, "fast write zeroes")?;
        let flags = fua_flag(fua) | no_hole_flag(no_hole) | cmd_flag::FAST_ZERO;
        self.plain(cmd::WRITE_ZEROES, flags, offset, length_bytes).await
    }

    /// Tells the server that a range will be read soon.
    ///
    /// # Errors
    /// As for [`read`](Client::read).
    pub async fn cache(&self, offset: u64, length_bytes: u64) -> Result<(), ClientError> {
        self.require(transmission_flag::SEND_CACHE, "cache")?;
        self.plain(cmd::CACHE, 0, offset, length_bytes).await
    }

    /// Makes durable every write that was answered before.
    ///
    /// # Errors
    /// As for [`read`](Client::read).
    pub async fn flush(&self) -> Result<(), ClientError> {
        self.require(transmission_flag::SEND_FLUSH, "flush")?;
        self.plain(cmd::FLUSH, 0, 0, 0).await
    }

    /// What is allocated, from `offset` on. The extents cover at least one byte and at most the range; ask again
    /// from their end for the rest. With `one`, the server need not look further than the first extent.
    ///
    /// # Errors
    /// As for [`read`](Client::read).
    pub async fn block_status(
        &self,
        offset: u64,
        length_bytes: u64,
        one: bool,
    ) -> Result<Vec<Extent>, ClientError> {
        let Some(context) = self.allocation else {
            return Err(ClientError::Unsupported(
                "block status was not agreed on in the handshake".into(),
            ));
        };
        let flags = if one { cmd_flag::REQ_ONE } else { 0 };
        let pending = Pending::Status {
            context,
            length: length_bytes,
            found: None,
        };
        match self
            .request(
                cmd::BLOCK_STATUS,
                flags,
                offset,
                length_bytes,
                Bytes::new(),
                pending,
            )
            .await?
        {
            Answer::Status(extents) => Ok(extents),
            _ => Err(ClientError::Protocol(
                "a block status was answered without extents".into(),
            )),
        }
    }

    /// Says goodbye and waits until the server has closed the connection. Requests of other tasks that are still
    /// under way are answered first.
    ///
    /// # Errors
    /// When the server closes with anything but a clean end.
    pub async fn disconnect(mut self) -> Result<(), ClientError> {
        let header = RequestHeader {
            flags: 0,
            command: cmd::DISC,
            cookie: 0,
            offset: 0,
            length: 0,
        };
        let _ = self
            .queue
            .send(Frame {
                header,
                payload: Bytes::new(),
            })
            .await;
        let _ = (&mut self.receiver).await;
        match self.waiting.lock().failure() {
            None | Some(ClientError::Closed) => Ok(()),
            // Servers, QEMU's among them, leave TLS without its own goodbye; everything was answered by then.
            Some(ClientError::Io(error)) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(()),
            Some(error) => Err(error),
        }
    }

    fn require(&self, flag: u16, what: &str) -> Result<(), ClientError> {
        if self.details.has(flag) {
            Ok(())
        } else {
            Err(ClientError::Unsupported(format!(
                "the server offers no {what} on this export"
            )))
        }
    }

    fn check_payload(&self, length: u64) -> Result<(), ClientError> {
        let limit = self.max_payload_bytes();
        if length > u64::from(limit) {
            return Err(ClientError::Unsupported(format!(
                "{length} bytes are above the limit of {limit}: split the request"
            )));
        }
        Ok(())
    }

    /// A request without payload in either direction.
    async fn plain(&self, command: u16, flags: u16, offset: u64, length: u64) -> Result<(), ClientError> {
        self.request(command, flags, offset, length, Bytes::new(), Pending::Plain)
            .await
            .map(drop)
    }

    async fn request(
        &self,
        command: u16,
        flags: u16,
        offset: u64,
        length: u64,
        payload: Bytes,
        pending: Pending,
    ) -> Result<Answer, ClientError> {
        if !self.has_extended_headers() && length > u64::from(u32::MAX) {
            return Err(ClientError::Unsupported(format!(
                "{length} bytes are too many without extended headers: split the request"
            )));
        }
        // Nobody closes the semaphore.
        let _slot = self.slots.acquire().await.map_err(|_| ClientError::Closed)?;
        let cookie = self.next_cookie.fetch_add(1, Ordering::Relaxed);
        let (answer, answered) = oneshot::channel();
        self.waiting.lock().add(cookie, pending, answer)?;
        let header = RequestHeader {
            flags,
            command,
            cookie,
            offset,
            length,
        };
        if self.queue.send(Frame { header, payload }).await.is_err() {
            return Err(self.waiting.lock().failure().unwrap_or(ClientError::Closed));
        }
        answered.await.unwrap_or(Err(ClientError::Closed))
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.sender.abort();
        self.receiver.abort();
    }
}

fn fua_flag(fua: bool) -> u16 {
    if fua { cmd_flag::FUA } else { 0 }
}

fn no_hole_flag(no_hole: bool) -> u16 {
    if no_hole { cmd_flag::NO_HOLE } else { 0 }
}

/// Sends whole frames, so that a caller who stops waiting can't leave half a request on the wire.
async fn send_requests(
    mut requests: mpsc::Receiver<Frame>,
    mut writer: BoxWriter,
    framing: Framing,
    waiting: Arc<Mutex<Waiting>>,
) {
    let mut queued = Vec::with_capacity(BATCH_REQUESTS);
    let mut batch = Batch::default();
    while requests.recv_many(&mut queued, BATCH_REQUESTS).await > 0 {
        for Frame { header, payload } in queued.drain(..) {
            match framing {
                Framing::Extended => batch.put_head(&header.encode_extended()),
                Framing::Simple | Framing::Structured => batch.put_head(&header.encode()),
            }
            batch.put_payload(payload);
        }
        if let Err(error) = batch.write_to(&mut writer).await {
            waiting.lock().fail(error.into());
            return;
        }
    }
    let _ = writer.shutdown().await;
}
