//! The transmission phase over a plain socket, on a thread of its own.
//!
//! The promise is the one of the [module above](super). The thread waits in one blocking call for requests, carries
//! out on the spot what the device can do at once, and sends all replies with one call when nothing more has
//! arrived; so a request that the page cache answers costs its system calls and little else. What has to wait
//! goes on where it is woken, if that thread has the time, or becomes a task of the runtime then, and sends its reply
//! itself.
//!
//! | file | what it holds |
//! |---|---|
//! | `inbox.rs` | the read side: buffers |
//! | `outbox.rs` | the write side: replies, what requests hold, who sends |
//! | `patience.rs` | how long to look for the next request before sleeping |
//! | `tasks.rs` | requests that wait |

use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::thread;

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tracing::Span;

use super::carry_out::{Session, payload_bytes, refusal};
use super::{BATCH_REPLIES, End, INLINE_PAYLOAD_BYTES, TransmissionError};
use crate::reply::{ReplyBody, Tag};
use crate::request::Command;
use crate::shutdown::Shutdown;
use crate::wire::cut_short;

mod inbox;
mod outbox;
mod patience;
mod tasks;

use inbox::Inbox;
use outbox::{Outbox, Outgoing, Stop};
use tasks::{Begun, Tasks};

/// Replies are sent when this much of them is collected.
const BATCH_BYTES: usize = 1 << 20;
/// When so many requests in a row came alone, the client waits for every reply, and a flush may keep the lane.
const LONE_REQUESTS: u32 = 32;
/// Longest read that is tried on the spot.
const QUICK_READ_BYTES: u32 = 1 << 20;

/// Serves requests on a connected socket in blocking mode until the client leaves, the connection fails, or the
/// server goes down; returns when every request under way has ended and its reply was sent or can't be. `early` is
/// what was read from the socket already; `held` is dropped at the end, before the client sees it. Dropping the
/// future aborts the requests under way.
pub(crate) async fn serve<H: Send + 'static>(
    socket: OwnedFd,
    early: Bytes,
    session: Session,
    held: H,
    shutdown: &mut Shutdown,
) -> Result<End, TransmissionError> {
    let outbox = Arc::new(Outbox::new(socket, session.bounds()));
    let session = Arc::new(session);
    let go_on_here = {
        let session = Arc::clone(&session);
        move |next| session.go_on_here(next)
    };
    let mut lane = Lane {
        inbox: Inbox::new(Arc::clone(&outbox), &early),
        outbox: Arc::clone(&outbox),
        outgoing: Outgoing::default(),
        session,
        tasks: Tasks::new(Handle::current(), go_on_here),
        runtime: Handle::current(),
        lone_requests: 0,
    };
    let connection = Connection {
        outbox,
        tasks: Arc::clone(&lane.tasks),
    };
    let (ended, mut end) = oneshot::channel();
    let span = Span::current();
    thread::Builder::new()
        .name("nbd-lane".to_owned())
        .spawn(move || {
            let _span = span.enter();
            let runtime = lane.runtime.clone();
            let _runtime = runtime.enter();
            let result = lane.run();
            drop(lane);
            drop(held);
            // Nobody waits when the connection was aborted.
            let _ = ended.send(result);
        })?;
    let result = tokio::select! {
        biased;
        result = &mut end => result,
        () = shutdown.requested() => {
            connection.outbox.stop();
            end.await
        }
    };
    result.unwrap_or_else(|_| Err(io::Error::other("the thread of the connection panicked").into()))
}

/// The connection as its task has it. Dropped before the end, it aborts what is under way.
struct Connection {
    outbox: Arc<Outbox>,
    tasks: Arc<Tasks>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.outbox.abort();
        self.tasks.abort();
    }
}

struct Lane {
    inbox: Inbox,
    outbox: Arc<Outbox>,
    outgoing: Outgoing,
    session: Arc<Session>,
    tasks: Arc<Tasks>,
    runtime: Handle,
    /// So many requests in a row came alone.
    lone_requests: u32,
}

impl Lane {
    fn run(&mut self) -> Result<End, TransmissionError> {
        let received = self.receive_all();
        self.session.leave();
        // What was carried out is answered, whatever ended the connection.
        let _ = self.outbox.send(&mut self.outgoing);
        let sent = self.outbox.finish();
        match received {
            Ok(end) => sent.map(|()| end).map_err(TransmissionError::from),
            Err(Ended::Stop(Stop::Shutdown)) => Ok(End::Shutdown),
            Err(Ended::Stop(Stop::Broken)) => sent.map(|()| End::Closed).map_err(TransmissionError::from),
            Err(Ended::Failed(error)) => Err(error),
        }
    }

    fn receive_all(&mut self) -> Result<End, Ended> {
        let header_bytes = self.session.header_bytes();
        loop {
            while self.inbox.buffered().len() >= header_bytes {
                if self.outbox.is_stopping() {
                    return Err(self.stopped());
                }
                if let Some(end) = self.request(header_bytes)? {
                    return Ok(end);
                }
            }
            self.outbox.send(&mut self.outgoing)?;
            if !self.inbox.receive().map_err(|error| self.failed(error))? {
                return if let Some(stop) = self.outbox.stopped() {
                    Err(Ended::Stop(stop))
                } else if self.inbox.buffered().is_empty() {
                    Ok(End::Closed)
                } else {
                    Err(self.failed(cut_short()))
                };
            }
        }
    }

    /// Takes the next request, whose header is buffered.
    fn request(&mut self, header_bytes: usize) -> Result<Option<End>, Ended> {
        let header = self
            .session
            .decode(self.inbox.take(header_bytes))
            .map_err(Ended::Failed)?;
        let tag = Tag::of(&header);
        let command = match self.session.judge(&header) {
            Ok(Command::Disconnect) => return Ok(Some(End::Disconnect)),
            Ok(command) => command,
            Err(violation) => {
                self.make_room(0)?;
                self.outgoing.add(0, |batch| {
                    self.session.encode(tag, refusal(violation), batch);
                });
                let payload_bytes = self.session.sent_payload_bytes(&header);
                if payload_bytes > 0 {
                    self.outbox.send(&mut self.outgoing)?;
                    self.inbox
                        .discard(payload_bytes)
                        .map_err(|error| self.failed(error))?;
                }
                return Ok(None);
            }
        };
        let payload_bytes = payload_bytes(command) as usize;
        self.count_lone(command);
        self.make_room(payload_bytes)?;
        match command {
            Command::Read {
                offset,
                length: length @ 1..=QUICK_READ_BYTES,
                fragment,
            } => {
                if self.outgoing.batch.head_bytes() + payload_bytes > BATCH_BYTES {
                    self.outbox.send(&mut self.outgoing)?;
                }
                let batch = &mut self.outgoing.batch;
                if self
                    .session
                    .try_read(tag, offset, length, fragment, batch)
                    .is_some()
                {
                    self.outgoing.count(payload_bytes);
                } else {
                    self.start(tag, command, Bytes::new(), payload_bytes);
                }
            }
            Command::Write { offset, length, fua } if length > 0 => {
                self.write(tag, command, (offset, length, fua))?;
            }
            Command::Flush if self.lone_requests >= LONE_REQUESTS => match self.session.flush_here() {
                Some(body) => self
                    .outgoing
                    .add(0, |batch| self.session.encode(tag, body, batch)),
                None => self.start(tag, command, Bytes::new(), payload_bytes),
            },
            _ => self.start(tag, command, Bytes::new(), payload_bytes),
        }
        if self.outgoing.requests >= BATCH_REPLIES || self.outgoing.batch.head_bytes() >= BATCH_BYTES {
            self.outbox.send(&mut self.outgoing)?;
        }
        Ok(None)
    }

    /// Counts requests that came when all others were answered, with nothing behind them.
    fn count_lone(&mut self, command: Command) {
        let sent_bytes = match command {
            Command::Write { length, .. } => length as usize,
            _ => 0,
        };
        let others = !self.outbox.is_idle() || !self.outgoing.is_empty();
        let more_came = self.inbox.buffered().len() > sent_bytes;
        self.lone_requests = if others || more_came {
            0
        } else {
            self.lone_requests.saturating_add(1)
        };
    }

    fn write(
        &mut self,
        tag: Tag,
        command: Command,
        (offset, length, fua): (u64, u32, bool),
    ) -> Result<(), Ended> {
        let payload_bytes = length as usize;
        if length > INLINE_PAYLOAD_BYTES {
            self.outbox.send(&mut self.outgoing)?;
            let payload = self
                .inbox
                .large_payload(payload_bytes)
                .map_err(|error| self.failed(error))?;
            let held = self.outbox.hold(payload_bytes);
            let session = Arc::clone(&self.session);
            self.tasks.spawn(Box::pin(async move {
                let body = match session.try_write(offset, payload.as_ref(), fua) {
                    Some(body) => body,
                    None => session.carry_out(command, payload.into()).await,
                };
                held.reply(|batch| session.encode(tag, body, batch));
            }));
            return Ok(());
        }
        while self.inbox.buffered().len() < payload_bytes {
            self.outbox.send(&mut self.outgoing)?;
            if !self.inbox.receive().map_err(|error| self.failed(error))? {
                return Err(self.failed(cut_short()));
            }
        }
        let data = self.inbox.take(payload_bytes);
        match self.session.try_write(offset, data, fua) {
            Some(body) => self
                .outgoing
                .add(payload_bytes, |batch| self.session.encode(tag, body, batch)),
            None => {
                let data = Bytes::copy_from_slice(data);
                self.start(tag, command, data, payload_bytes);
            }
        }
        Ok(())
    }

    /// Makes sure that the bounds allow one more request.
    fn make_room(&mut self, payload_bytes: usize) -> Result<(), Ended> {
        if !self.outbox.has_room(&self.outgoing, payload_bytes) {
            self.outbox.send(&mut self.outgoing)?;
            self.outbox.wait_for_room(payload_bytes)?;
        }
        Ok(())
    }

    /// Carries a request out here as far as it gets without waiting, unless it is about a lot of data.
    fn start(&mut self, tag: Tag, command: Command, data: Bytes, payload_bytes: usize) {
        let session = Arc::clone(&self.session);
        let request: Pin<Box<dyn Future<Output = ReplyBody> + Send>> =
            Box::pin(async move { session.carry_out(command, data).await });
        let held = self.outbox.hold(payload_bytes);
        let session = Arc::clone(&self.session);
        let reply = move |body| held.reply(|batch| session.encode(tag, body, batch));
        if payload_bytes > INLINE_PAYLOAD_BYTES as usize {
            self.tasks.spawn(Box::pin(async move { reply(request.await) }));
            return;
        }
        if let Begun::Done(body) = self.tasks.begin(request, reply) {
            self.outgoing
                .add(payload_bytes, |batch| self.session.encode(tag, body, batch));
        }
    }

    fn failed(&self, error: io::Error) -> Ended {
        match self.outbox.stopped() {
            Some(stop) => Ended::Stop(stop),
            None => Ended::Failed(error.into()),
        }
    }

    fn stopped(&self) -> Ended {
        Ended::Stop(self.outbox.stopped().unwrap_or(Stop::Shutdown))
    }
}

/// Why a lane ended other than by the client's wish.
enum Ended {
    Stop(Stop),
    Failed(TransmissionError),
}

impl From<Stop> for Ended {
    fn from(stop: Stop) -> Self {
        Self::Stop(stop)
    }
}
