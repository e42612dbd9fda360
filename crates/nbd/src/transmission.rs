//! The transmission phase of one connection, server side.
//!
//! The promise: requests run concurrently within two bounds, their number and the bytes of their payloads; a
//! request counts against both until its reply has been handed to the socket, so a client that doesn't read its
//! replies stops its own requests and nobody else's. Every request gets exactly one reply. A panic of the device
//! is an error reply. At the end, whatever caused it, requests under way are run to completion.
//!
//! Reading and writing are two futures of one task: what the reader completes without waiting is sent by the
//! writer in the same turn, many replies with one call. A request whose device needs to wait, or whose payload is
//! large, moves to a task of its own.

use std::future::Future;
use std::io;
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use futures::FutureExt;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tracing::{debug, error};

use crate::device::{BlockDevice, DeviceError, Errno, Extent, ReadExtent};
use crate::proto::{BadMagic, Framing, RequestHeader};
use crate::reply::{Reply, ReplyBody, Tag};
use crate::request::{Command, Limits, validate};
use crate::shutdown::Shutdown;
use crate::steps;
use crate::wire::{Batch, FrameReader};

/// Most extents in one block status reply; clients ask again for the rest.
const MAX_STATUS_EXTENTS: usize = 8192;
/// Requests with a larger payload get their own task at once, so that copying them does not hold up the others
/// of the connection.
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

/// Serves requests until the client leaves, the connection fails, or the server goes down; returns when every
/// request under way has ended and its reply was sent or can't be.
pub(crate) async fn serve<R, W>(
    frames: &mut FrameReader<R>,
    writer: &mut W,
    agreement: Agreement,
    bounds: Bounds,
    shutdown: &mut Shutdown,
) -> Result<End, TransmissionError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    // A reply in the queue holds one of the request permits, so the queue never fills.
    let (queue, replies) = mpsc::channel(bounds.requests);
    let mut sender = pin!(send_replies(replies, writer, agreement.framing));
    let mut requests = Requests {
        agreement,
        bounds,
        slots: Arc::new(Semaphore::new(bounds.requests)),
        payload: Arc::new(Semaphore::new(bounds.payload_bytes as usize)),
        queue,
        tasks: JoinSet::new(),
    };
    let (end, sent) = tokio::select! {
        biased;
        end = requests.receive(frames, shutdown) => (Some(end), None),
        // The sender ends early only when the socket fails.
        sent = &mut sender => (None, Some(sent)),
    };
    let finish = async move {
        while requests.tasks.join_next().await.is_some() {}
        // The last handle on the queue goes, and with it the sender's work.
        drop(requests);
    };
    let sent = match sent {
        Some(sent) => {
            finish.await;
            sent
        }
        None => tokio::join!(finish, sender).1,
    };
    match end {
        Some(end) => end.and_then(|end| sent.map(|()| end).map_err(TransmissionError::from)),
        None => sent.map(|()| End::Closed).map_err(TransmissionError::from),
    }
}

/// What a request holds until its reply is sent.
struct Permits {
    _slot: OwnedSemaphorePermit,
    _payload: Option<OwnedSemaphorePermit>,
}

struct QueuedReply {
    reply: Reply,
    permits: Permits,
}

async fn send_replies<W: AsyncWrite + Unpin>(
    mut replies: mpsc::Receiver<QueuedReply>,
    writer: &mut W,
    framing: Framing,
) -> io::Result<()> {
    let mut queued = Vec::with_capacity(BATCH_REPLIES);
    let mut permits = Vec::with_capacity(BATCH_REPLIES);
    let mut batch = Batch::default();
    while replies.recv_many(&mut queued, BATCH_REPLIES).await > 0 {
        for QueuedReply { reply, permits: held } in queued.drain(..) {
            reply.encode(framing, &mut batch);
            permits.push(held);
        }
        batch.write_to(writer).await?;
        permits.clear();
    }
    Ok(())
}

struct Requests {
    agreement: Agreement,
    bounds: Bounds,
    slots: Arc<Semaphore>,
    payload: Arc<Semaphore>,
    queue: mpsc::Sender<QueuedReply>,
    tasks: JoinSet<()>,
}

impl Requests {
    async fn receive<R: AsyncRead + Unpin>(
        &mut self,
        frames: &mut FrameReader<R>,
        shutdown: &mut Shutdown,
    ) -> Result<End, TransmissionError> {
        // A request that is cut off by the shutdown was not received whole, or not started: it has no reply to
        // wait for.
        tokio::select! {
            biased;
            () = shutdown.requested() => Ok(End::Shutdown),
            end = self.receive_all(frames) => end,
        }
    }

    async fn receive_all<R: AsyncRead + Unpin>(
        &mut self,
        frames: &mut FrameReader<R>,
    ) -> Result<End, TransmissionError> {
        loop {
            while self.tasks.try_join_next().is_some() {}
            let Some(header) = self.next_header(frames).await? else {
                return Ok(End::Closed);
            };
            let slot = acquire(&self.slots, 1).await?;
            let tag = Tag::of(&header);
            let command = match validate(&header, &self.limits()) {
                Ok(Command::Disconnect) => return Ok(End::Disconnect),
                Ok(command) => command,
                Err(violation) => {
                    debug!(%violation, "request refused");
                    frames
                        .discard(header.payload_bytes(self.agreement.framing))
                        .await?;
                    let error = DeviceError::new(violation.errno(), violation.to_string());
                    let reply = Reply {
                        tag,
                        body: ReplyBody::Error(error),
                    };
                    let permits = Permits {
                        _slot: slot,
                        _payload: None,
                    };
                    send(&self.queue, QueuedReply { reply, permits }).await;
                    continue;
                }
            };
            let payload_bytes = match command {
                Command::Read { length, .. } | Command::Write { length, .. } => length,
                _ => 0,
            };
            let payload = if payload_bytes > 0 {
                Some(acquire(&self.payload, payload_bytes).await?)
            } else {
                None
            };
            let data = match command {
                Command::Write { length, .. } => frames.read_payload(length as usize).await?,
                _ => Bytes::new(),
            };
            let device = Arc::clone(&self.agreement.device);
            let queue = self.queue.clone();
            let permits = Permits {
                _slot: slot,
                _payload: payload,
            };
            self.start(payload_bytes, async move {
                let body = carry_out_caught(device.as_ref(), command, data).await;
                send(
                    &queue,
                    QueuedReply {
                        reply: Reply { tag, body },
                        permits,
                    },
                )
                .await;
            });
        }
    }

    /// The next header; `None` when the client has closed.
    async fn next_header<R: AsyncRead + Unpin>(
        &self,
        frames: &mut FrameReader<R>,
    ) -> Result<Option<RequestHeader>, TransmissionError> {
        let framing = self.agreement.framing;
        let header = match framing {
            Framing::Simple | Framing::Structured => match frames.read_array().await? {
                Some(header) => RequestHeader::decode(&header)?,
                None => return Ok(None),
            },
            Framing::Extended => match frames.read_array().await? {
                Some(header) => RequestHeader::decode_extended(&header)?,
                None => return Ok(None),
            },
        };
        // With compact headers the length is bounded by its 32 bits, and such clients expect an answer.
        let limit = u64::from(self.bounds.payload_bytes).max(MIN_SKIPPED_PAYLOAD_BYTES);
        let length = header.payload_bytes(framing);
        if framing == Framing::Extended && length > limit {
            return Err(TransmissionError::PayloadTooLong { length, limit });
        }
        Ok(Some(header))
    }

    fn limits(&self) -> Limits {
        let device = &self.agreement.device;
        Limits {
            size_bytes: device.size_bytes(),
            read_only: device.read_only(),
            sizes: device.block_sizes().limited_to(self.bounds.payload_bytes),
            framing: self.agreement.framing,
            allocation: self.agreement.allocation,
        }
    }

    /// Runs a request here as far as it gets without waiting, and the rest in a task of its own. The first poll
    /// needs no waker: a task polls what it is given at least once.
    fn start(&mut self, payload_bytes: u32, request: impl Future<Output = ()> + Send + 'static) {
        let mut request: Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(request);
        let done = payload_bytes <= INLINE_PAYLOAD_BYTES
            && request.as_mut().poll(&mut Context::from_waker(Waker::noop())) == Poll::Ready(());
        if !done {
            self.tasks.spawn(request);
        }
    }
}

async fn acquire(semaphore: &Arc<Semaphore>, permits: u32) -> io::Result<OwnedSemaphorePermit> {
    // Nobody closes these semaphores.
    Arc::clone(semaphore)
        .acquire_many_owned(permits)
        .await
        .map_err(io::Error::other)
}

/// Queues a reply. When the sender is gone the socket has failed, and the reply has no one to reach.
async fn send(queue: &mpsc::Sender<QueuedReply>, reply: QueuedReply) {
    let _ = queue.send(reply).await;
}

async fn carry_out_caught(device: &dyn BlockDevice, command: Command, data: Bytes) -> ReplyBody {
    let result = AssertUnwindSafe(carry_out(device, command, data))
        .catch_unwind()
        .await;
    result
        .unwrap_or_else(|_| {
            error!(?command, "the device panicked");
            Err(DeviceError::new(
                Errno::Io,
                "the server met an internal error in this request; its log says more",
            ))
        })
        .unwrap_or_else(|error| {
            debug!(?command, %error, "request failed");
            ReplyBody::Error(error)
        })
}

async fn carry_out(
    device: &dyn BlockDevice,
    command: Command,
    data: Bytes,
) -> Result<ReplyBody, DeviceError> {
    match command {
        // An empty range is valid and there is nothing to do.
        Command::Read {
            offset,
            length: 0,
            fragment,
        } => {
            return Ok(ReplyBody::Data {
                offset,
                extents: vec![],
                fragment,
            });
        }
        Command::Write { length: 0, .. } | Command::Trim { length: 0, .. } => {}
        Command::WriteZeroes { length: 0, .. } | Command::Disconnect => {}
        Command::Read {
            offset,
            length,
            fragment,
        } => {
            let extents = device.read_sparse(offset, length).await?;
            let found = extents
                .iter()
                .map(ReadExtent::length_bytes)
                .fold(0, u64::saturating_add);
            if found != u64::from(length) {
                return Err(DeviceError::new(
                    Errno::Io,
                    format!("the device returned {found} bytes for a read of {length} at offset {offset}"),
                ));
            }
            return Ok(ReplyBody::Data {
                offset,
                extents,
                fragment,
            });
        }
        Command::Write { offset, fua, .. } => device.write(offset, data, fua).await?,
        Command::Flush => device.flush().await?,
        Command::Trim { offset, length, fua } => steps::trim(device, offset, length, fua).await?,
        Command::Cache { offset, length } => steps::cache(device, offset, length).await?,
        Command::WriteZeroes {
            offset,
            length,
            no_hole,
            fua,
            fast,
        } => steps::write_zeroes(device, offset, length, (no_hole, fua, fast)).await?,
        Command::BlockStatus { offset, length, one } => {
            let max_extents = if one { 1 } else { MAX_STATUS_EXTENTS };
            let found = device.block_status(offset, length, max_extents).await?;
            let extents = tidy_extents(found, length, max_extents);
            if extents.is_empty() {
                return Err(DeviceError::new(
                    Errno::Io,
                    format!("the device returned no extent at offset {offset}"),
                ));
            }
            return Ok(ReplyBody::Status(extents));
        }
    }
    Ok(ReplyBody::Done)
}

/// The extents as the protocol wants them: none empty, neighbours of the same state joined, nothing beyond the
/// range, not too many.
fn tidy_extents(found: Vec<Extent>, length: u64, max_extents: usize) -> Vec<Extent> {
    let mut left = length;
    let mut tidy: Vec<Extent> = Vec::with_capacity(found.len().min(max_extents));
    for extent in found {
        let length_bytes = extent.length_bytes.min(left);
        if length_bytes == 0 {
            continue;
        }
        let full = tidy.len() == max_extents;
        match tidy.last_mut() {
            Some(last) if (last.hole, last.zero) == (extent.hole, extent.zero) => {
                last.length_bytes += length_bytes;
            }
            _ if full => break,
            _ => tidy.push(Extent {
                length_bytes,
                ..extent
            }),
        }
        left -= length_bytes;
    }
    tidy
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(length_bytes: u64, hole: bool) -> Extent {
        Extent {
            length_bytes,
            hole,
            zero: hole,
        }
    }

    #[test]
    fn extents_are_joined_cut_and_counted() {
        let found = vec![
            extent(0, true),
            extent(10, false),
            extent(5, false),
            extent(20, true),
            extent(9, false),
        ];
        assert_eq!(
            tidy_extents(found.clone(), 100, 8),
            [extent(15, false), extent(20, true), extent(9, false)]
        );
        assert_eq!(
            tidy_extents(found.clone(), 16, 8),
            [extent(15, false), extent(1, true)]
        );
        assert_eq!(tidy_extents(found, 100, 1), [extent(15, false)]);
        assert_eq!(
            tidy_extents(vec![extent(u64::MAX, true)], 5 << 32, 1),
            [extent(5 << 32, true)]
        );
        assert!(tidy_extents(vec![extent(0, true)], 5, 1).is_empty());
    }
}
