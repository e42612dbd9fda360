//! The transmission phase over any pair of streams.
//!
//! The promise is the one of the [module above](super). Reading and writing are two futures of one task: what the
//! reader completes without waiting is sent by the writer in the same turn, many replies with one call. A request
//! whose device needs to wait, or whose payload is large, moves to a task of its own.

use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;

use super::carry_out::{MAX_HEADER_BYTES, Session, payload_bytes, refusal};
use super::{BATCH_REPLIES, End, INLINE_PAYLOAD_BYTES, TransmissionError};
use crate::reply::{ReplyBody, Tag};
use crate::request::Command;
use crate::shutdown::Shutdown;
use crate::wire::{Batch, FrameReader};

/// Serves requests until the client leaves, the connection fails, or the server goes down; returns when every
/// request under way has ended and its reply was sent or can't be.
pub(crate) async fn serve<R, W>(
    frames: &mut FrameReader<R>,
    writer: &mut W,
    session: Session,
    shutdown: &mut Shutdown,
) -> Result<End, TransmissionError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let session = Arc::new(session);
    let bounds = session.bounds();
    // A reply in the queue holds one of the request permits, so the queue never fills.
    let (queue, replies) = mpsc::channel(bounds.requests);
    let mut sender = pin!(send_replies(replies, writer, Arc::clone(&session)));
    let mut requests = Requests {
        session,
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
    requests.session.leave();
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
    tag: Tag,
    body: ReplyBody,
    permits: Permits,
}

async fn send_replies<W: AsyncWrite + Unpin>(
    mut replies: mpsc::Receiver<QueuedReply>,
    writer: &mut W,
    session: Arc<Session>,
) -> io::Result<()> {
    let mut queued = Vec::with_capacity(BATCH_REPLIES);
    let mut permits = Vec::with_capacity(BATCH_REPLIES);
    let mut batch = Batch::default();
    while replies.recv_many(&mut queued, BATCH_REPLIES).await > 0 {
        for reply in queued.drain(..) {
            session.encode(reply.tag, reply.body, &mut batch);
            permits.push(reply.permits);
        }
        batch.write_to(writer).await?;
        permits.clear();
    }
    Ok(())
}

struct Requests {
    session: Arc<Session>,
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
            let mut header = [0; MAX_HEADER_BYTES];
            let header = &mut header[..self.session.header_bytes()];
            if !frames.read_header(header).await? {
                return Ok(End::Closed);
            }
            let header = self.session.decode(header)?;
            let slot = acquire(&self.slots, 1).await?;
            let tag = Tag::of(&header);
            let command = match self.session.judge(&header) {
                Ok(Command::Disconnect) => return Ok(End::Disconnect),
                Ok(command) => command,
                Err(violation) => {
                    frames.discard(self.session.sent_payload_bytes(&header)).await?;
                    let permits = Permits {
                        _slot: slot,
                        _payload: None,
                    };
                    let body = refusal(violation);
                    send(&self.queue, QueuedReply { tag, body, permits }).await;
                    continue;
                }
            };
            let payload_bytes = payload_bytes(command);
            let payload = if payload_bytes > 0 {
                Some(acquire(&self.payload, payload_bytes).await?)
            } else {
                None
            };
            let data = match command {
                Command::Write { length, .. } => frames.read_payload(length as usize).await?,
                _ => Bytes::new(),
            };
            let session = Arc::clone(&self.session);
            let queue = self.queue.clone();
            let permits = Permits {
                _slot: slot,
                _payload: payload,
            };
            self.start(payload_bytes, async move {
                let body = session.carry_out(command, data).await;
                send(&queue, QueuedReply { tag, body, permits }).await;
            });
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
