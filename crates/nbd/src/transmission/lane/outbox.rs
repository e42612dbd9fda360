//! The write side of a lane: replies on their way to the socket.
//!
//! The promise: replies go out whole, one batch after the other, whoever sends them. The lane and the tasks of its
//! requests send without blocking; what the socket doesn't take at once is left to a writer thread, which is
//! started when it is first needed and may block, so a client that doesn't read never holds up a thread of the
//! runtime. What requests hold is counted here until their replies were handed to the socket, or can't be.
//!
//! Only the count's own lock is held while nothing is sent; whoever sends has taken the whole queue out.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use parking_lot::{Condvar, Mutex, MutexGuard};
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendFlags, Shutdown, sendmsg, shutdown};

use crate::transmission::{BATCH_REPLIES, Bounds};
use crate::wire::Batch;

/// Most slices that one call sends: two for each of a full batch.
const MAX_SLICES: usize = 2 * BATCH_REPLIES;
/// Emptied batches that are kept for their memory.
const SPARE_BATCHES: usize = 4;

/// Replies that are sent together, and what their requests hold until then.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    pub(super) batch: Batch,
    pub(super) requests: usize,
    pub(super) payload_bytes: usize,
    /// Bytes of the batch that the socket has taken.
    sent_bytes: usize,
}

impl Outgoing {
    pub(super) fn is_empty(&self) -> bool {
        self.requests == 0
    }

    /// Appends a reply.
    pub(super) fn add(&mut self, payload_bytes: usize, encode: impl FnOnce(&mut Batch)) {
        encode(&mut self.batch);
        self.count(payload_bytes);
    }

    /// Counts a reply that was appended.
    pub(super) fn count(&mut self, payload_bytes: usize) {
        self.requests += 1;
        self.payload_bytes += payload_bytes;
    }

    fn clear(&mut self) {
        self.batch.clear();
        self.requests = 0;
        self.payload_bytes = 0;
        self.sent_bytes = 0;
    }
}

/// Why a lane takes no more requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    /// The server goes down; replies are still sent.
    Shutdown,
    /// The socket failed, or the connection was given up.
    Broken,
}

/// See the module's text.
#[derive(Debug)]
pub(super) struct Outbox {
    socket: OwnedFd,
    bounds: Bounds,
    /// What requests hold that have a task or whose reply is queued. Changed under the lock, read anywhere.
    held_requests: AtomicUsize,
    held_bytes: AtomicUsize,
    stopping: AtomicBool,
    state: Mutex<State>,
    /// For the writer thread: there is something to send, or nothing more will come.
    work: Condvar,
    /// For the lane: something that was held is free, or the connection ends.
    room: Condvar,
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Outgoing>,
    /// Someone is at the socket, and looks at the queue again before leaving.
    sending: bool,
    /// Why nothing can be sent any more.
    broken: Option<io::Error>,
    writer: Option<thread::JoinHandle<()>>,
    closing: bool,
    spare: Vec<Outgoing>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sent {
    All,
    /// The socket takes no more without waiting.
    Part,
}

impl Outbox {
    pub(super) fn new(socket: OwnedFd, bounds: Bounds) -> Self {
        Self {
            socket,
            bounds,
            held_requests: AtomicUsize::new(0),
            held_bytes: AtomicUsize::new(0),
            stopping: AtomicBool::new(false),
            state: Mutex::default(),
            work: Condvar::new(),
            room: Condvar::new(),
        }
    }

    pub(super) fn socket(&self) -> &OwnedFd {
        &self.socket
    }

    /// Whether a request with that payload may start beside what is held and what the lane has yet to send.
    pub(super) fn has_room(&self, unsent: &Outgoing, payload_bytes: usize) -> bool {
        let requests = self.held_requests.load(Ordering::Relaxed) + unsent.requests;
        let bytes = self.held_bytes.load(Ordering::Relaxed) + unsent.payload_bytes;
        requests < self.bounds.requests
            && (payload_bytes == 0 || bytes + payload_bytes <= self.bounds.payload_bytes as usize)
    }

    /// Whether no request has a task or a queued reply.
    pub(super) fn is_idle(&self) -> bool {
        self.held_requests.load(Ordering::Relaxed) == 0
    }

    /// Waits until a request with that payload may start. The lane has sent everything before.
    pub(super) fn wait_for_room(&self, payload_bytes: usize) -> Result<(), Stop> {
        let mut state = self.state.lock();
        loop {
            if let Some(stop) = self.stop_of(&state) {
                return Err(stop);
            }
            if self.has_room(&Outgoing::default(), payload_bytes) {
                return Ok(());
            }
            self.room.wait(&mut state);
        }
    }

    /// Whether the lane is to end before its next request.
    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    fn stop_of(&self, state: &State) -> Option<Stop> {
        if state.broken.is_some() {
            Some(Stop::Broken)
        } else {
            self.is_stopping().then_some(Stop::Shutdown)
        }
    }

    /// Why the lane takes no more requests.
    pub(super) fn stopped(&self) -> Option<Stop> {
        self.stop_of(&self.state.lock())
    }

    /// Counts a request that moves to a task.
    pub(super) fn hold(self: &Arc<Self>, payload_bytes: usize) -> Held {
        let _state = self.state.lock();
        self.take_hold(1, payload_bytes);
        Held {
            outbox: Some(Arc::clone(self)),
            payload_bytes,
        }
    }

    fn take_hold(&self, requests: usize, payload_bytes: usize) {
        self.held_requests.fetch_add(requests, Ordering::Relaxed);
        self.held_bytes.fetch_add(payload_bytes, Ordering::Relaxed);
    }

    /// Called with the lock held, so that a wait can't miss it.
    fn release(&self, requests: usize, payload_bytes: usize) {
        self.held_requests.fetch_sub(requests, Ordering::Relaxed);
        self.held_bytes.fetch_sub(payload_bytes, Ordering::Relaxed);
        self.room.notify_all();
    }

    /// Sends what the lane has collected, or queues it behind what is being sent. An empty one is left behind.
    pub(super) fn send(self: &Arc<Self>, outgoing: &mut Outgoing) -> Result<(), Stop> {
        if outgoing.is_empty() {
            return Ok(());
        }
        let mut state = self.state.lock();
        if state.broken.is_some() {
            outgoing.clear();
            return Err(Stop::Broken);
        }
        if state.sending || !state.queue.is_empty() {
            self.enqueue(&mut state, outgoing);
            return Ok(());
        }
        state.sending = true;
        drop(state);
        let sent = self.send_one(outgoing, SendFlags::DONTWAIT);
        let mut state = self.state.lock();
        match sent {
            Ok(Sent::All) => {
                outgoing.clear();
                if state.queue.is_empty() {
                    state.sending = false;
                    return Ok(());
                }
            }
            Ok(Sent::Part) => {
                self.take_hold(outgoing.requests, outgoing.payload_bytes);
                let spare = state.spare.pop().unwrap_or_default();
                state.queue.push_front(std::mem::replace(outgoing, spare));
                state.sending = false;
                self.wake_writer(&mut state);
                return Ok(());
            }
            Err(error) => {
                outgoing.clear();
                state.sending = false;
                self.break_off(&mut state, error);
                return Err(Stop::Broken);
            }
        }
        self.drain(state, SendFlags::DONTWAIT);
        Ok(())
    }

    /// Queues a lane's replies; they are counted as held from here on.
    fn enqueue(&self, state: &mut State, outgoing: &mut Outgoing) {
        self.take_hold(outgoing.requests, outgoing.payload_bytes);
        let spare = state.spare.pop().unwrap_or_default();
        state.queue.push_back(std::mem::replace(outgoing, spare));
    }

    /// Sends the queue until it is empty or the socket takes no more. `sending` is set and is this caller's.
    fn drain<'a>(self: &'a Arc<Self>, mut state: MutexGuard<'a, State>, flags: SendFlags) {
        while let Some(mut outgoing) = state.queue.pop_front() {
            drop(state);
            let sent = self.send_one(&mut outgoing, flags);
            state = self.state.lock();
            match sent {
                Ok(Sent::All) => {
                    self.release(outgoing.requests, outgoing.payload_bytes);
                    outgoing.clear();
                    if state.spare.len() < SPARE_BATCHES {
                        state.spare.push(outgoing);
                    }
                }
                Ok(Sent::Part) => {
                    state.queue.push_front(outgoing);
                    state.sending = false;
                    self.wake_writer(&mut state);
                    return;
                }
                Err(error) => {
                    self.release(outgoing.requests, outgoing.payload_bytes);
                    self.break_off(&mut state, error);
                }
            }
        }
        state.sending = false;
    }

    fn send_one(&self, outgoing: &mut Outgoing, flags: SendFlags) -> io::Result<Sent> {
        let dont_wait = flags.contains(SendFlags::DONTWAIT);
        let mut slices = [IoSlice::new(&[]); MAX_SLICES];
        loop {
            let mut skip = outgoing.sent_bytes;
            let left = outgoing.batch.slices().filter_map(|slice| {
                let skipped = skip.min(slice.len());
                skip -= skipped;
                (skipped < slice.len()).then(|| IoSlice::new(&slice[skipped..]))
            });
            let mut count = 0;
            let mut wanted_bytes = 0;
            for (place, slice) in slices.iter_mut().zip(left) {
                wanted_bytes += slice.len();
                *place = slice;
                count += 1;
            }
            if count == 0 {
                return Ok(Sent::All);
            }
            let sent = sendmsg(
                &self.socket,
                &slices[..count],
                &mut SendAncillaryBuffer::default(),
                flags | SendFlags::NOSIGNAL,
            );
            match sent {
                Ok(bytes) => {
                    outgoing.sent_bytes += bytes;
                    if dont_wait && bytes < wanted_bytes {
                        return Ok(Sent::Part);
                    }
                    if bytes == wanted_bytes && count < MAX_SLICES {
                        return Ok(Sent::All);
                    }
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(Sent::Part),
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Nothing can be sent any more: what is queued is let go, and everyone who waits learns of it.
    fn break_off(&self, state: &mut State, error: io::Error) {
        if state.broken.is_none() {
            state.broken = Some(error);
        }
        let queue = std::mem::take(&mut state.queue);
        for outgoing in queue {
            self.release(outgoing.requests, outgoing.payload_bytes);
        }
        // The lane may be waiting for a request, and the writer for the client to read.
        let _ = shutdown(&self.socket, Shutdown::Both);
        self.work.notify_all();
        self.room.notify_all();
    }

    fn wake_writer(self: &Arc<Self>, state: &mut State) {
        if state.writer.is_some() {
            self.work.notify_one();
            return;
        }
        let outbox = Arc::clone(self);
        let spawned = thread::Builder::new()
            .name("nbd-writer".to_owned())
            .spawn(move || outbox.write());
        match spawned {
            Ok(writer) => state.writer = Some(writer),
            Err(error) => self.break_off(state, error),
        }
    }

    /// The writer thread.
    fn write(self: &Arc<Self>) {
        let mut state = self.state.lock();
        loop {
            if !state.queue.is_empty() && !state.sending {
                state.sending = true;
                self.drain(state, SendFlags::empty());
                state = self.state.lock();
            } else if state.closing {
                return;
            } else {
                self.work.wait(&mut state);
            }
        }
    }

    /// Takes no more requests; those under way go on.
    pub(super) fn stop(&self) {
        let _state = self.state.lock();
        self.stopping.store(true, Ordering::Relaxed);
        let _ = shutdown(&self.socket, Shutdown::Read);
        self.room.notify_all();
    }

    /// Gives the connection up.
    pub(super) fn abort(&self) {
        let mut state = self.state.lock();
        self.stopping.store(true, Ordering::Relaxed);
        let error = io::Error::new(
            io::ErrorKind::ConnectionAborted,
            "the server gave the connection up",
        );
        self.break_off(&mut state, error);
    }

    /// Waits until nothing is held, ends the writer thread, and says what broke the connection.
    pub(super) fn finish(&self) -> io::Result<()> {
        let mut state = self.state.lock();
        while self.held_requests.load(Ordering::Relaxed) > 0 {
            self.room.wait(&mut state);
        }
        state.closing = true;
        self.work.notify_all();
        let writer = state.writer.take();
        drop(state);
        if let Some(writer) = writer {
            // It ends without a panic, or there is nothing more to be done about it.
            let _ = writer.join();
        }
        // The client may be gone already.
        let _ = shutdown(&self.socket, Shutdown::Write);
        self.state.lock().broken.take().map_or(Ok(()), Err)
    }
}

/// What a request in a task holds. Dropping it without a reply, as when the task is aborted, lets go.
#[derive(Debug)]
pub(super) struct Held {
    /// None once the hold has passed to the queue.
    outbox: Option<Arc<Outbox>>,
    payload_bytes: usize,
}

impl Held {
    /// Sends the reply that `encode` appends, or queues it. Does not block.
    pub(super) fn reply(mut self, encode: impl FnOnce(&mut Batch)) {
        let Some(outbox) = self.outbox.take() else {
            return;
        };
        let mut state = outbox.state.lock();
        if state.broken.is_some() {
            outbox.release(1, self.payload_bytes);
            return;
        }
        let idle = !state.sending && state.queue.is_empty();
        let joins = |last: &&mut Outgoing| last.sent_bytes == 0 && last.requests < BATCH_REPLIES;
        if let Some(last) = state.queue.back_mut().filter(joins) {
            last.add(self.payload_bytes, encode);
        } else {
            let mut outgoing = state.spare.pop().unwrap_or_default();
            outgoing.add(self.payload_bytes, encode);
            state.queue.push_back(outgoing);
        }
        if idle {
            state.sending = true;
            outbox.drain(state, SendFlags::DONTWAIT);
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(outbox) = &self.outbox {
            let _state = outbox.state.lock();
            outbox.release(1, self.payload_bytes);
        }
    }
}
