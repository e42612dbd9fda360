//! The read side of a lane: requests from the socket.
//!
//! The promise: one blocking call takes whatever has arrived, up to one buffer, which is used again and again;
//! small payloads are looked at where they lie. Before it blocks it may look for a while ([`super::patience`]). A large payload gets a buffer of its own, which comes back when
//! whoever has it lets go. Memory for a payload that was announced is touched only as its bytes arrive.

use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use bytes::Bytes;
use parking_lot::Mutex;
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

use super::outbox::Outbox;
use super::patience::Patience;
use crate::wire::cut_short;

/// Size of the buffer.
const INBOX_BYTES: usize = 256 << 10;
/// When less than this is free behind what is buffered, the rest is moved to the front.
const MIN_READ_BYTES: usize = 32 << 10;
/// Buffers of large payloads that are kept, and the largest that is.
const KEPT_BUFFERS: usize = 8;
const KEPT_BUFFER_BYTES: usize = 1 << 20;

/// See the module's text.
#[derive(Debug)]
pub(super) struct Inbox {
    outbox: Arc<Outbox>,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    kept: Arc<Kept>,
    patience: Patience,
}

impl Inbox {
    /// `early` is what was read from the socket before.
    pub(super) fn new(outbox: Arc<Outbox>, early: &[u8]) -> Self {
        let mut buffer = vec![0; INBOX_BYTES.max(early.len())];
        buffer[..early.len()].copy_from_slice(early);
        Self {
            outbox,
            buffer,
            start: 0,
            end: early.len(),
            kept: Arc::default(),
            patience: Patience::default(),
        }
    }

    /// What is buffered.
    pub(super) fn buffered(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// Takes the next bytes that are buffered.
    pub(super) fn take(&mut self, length: usize) -> &[u8] {
        let start = self.start;
        self.start += length;
        &self.buffer[start..self.start]
    }

    /// Waits for more bytes. False when the stream has ended.
    pub(super) fn receive(&mut self) -> io::Result<bool> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.buffer.len() - self.end < MIN_READ_BYTES {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let received = self.receive_some()?;
        self.end += received;
        Ok(received > 0)
    }

    fn receive_some(&mut self) -> io::Result<usize> {
        let target = &mut self.buffer[self.end..];
        // The device has requests that wait: what comes next waits for them, and they for the processor.
        if !self.outbox.is_idle() {
            return receive(&self.outbox, target);
        }
        let begin = Instant::now();
        if let Some(looking) = self.patience.look() {
            loop {
                match recv(self.outbox.socket(), &mut *target, RecvFlags::DONTWAIT) {
                    Ok((_, received)) => {
                        self.patience.waited(begin.elapsed());
                        return Ok(received);
                    }
                    Err(Errno::INTR) => {}
                    Err(Errno::AGAIN) if looking.is_over(begin.elapsed()) => break,
                    Err(Errno::AGAIN) => thread::yield_now(),
                    Err(errno) => return Err(errno.into()),
                }
            }
        }
        let received = receive(&self.outbox, target)?;
        self.patience.waited(begin.elapsed());
        Ok(received)
    }

    /// Skips bytes, in bounded memory.
    pub(super) fn discard(&mut self, mut length: u64) -> io::Result<()> {
        loop {
            let step = length.min(self.buffered().len() as u64);
            // At most the buffer's size.
            self.start += step as usize;
            length -= step;
            if length == 0 {
                return Ok(());
            }
            if !self.receive()? {
                return Err(cut_short());
            }
        }
    }

    /// Receives a payload into a buffer of its own.
    pub(super) fn large_payload(&mut self, length: usize) -> io::Result<Payload> {
        let mut payload = Payload {
            buffer: self.kept.take(length),
            length,
            kept: Arc::clone(&self.kept),
        };
        let mut filled = length.min(self.buffered().len());
        payload.buffer[..filled].copy_from_slice(self.take(filled));
        while filled < length {
            let received = receive(&self.outbox, &mut payload.buffer[filled..length])?;
            if received == 0 {
                return Err(cut_short());
            }
            filled += received;
        }
        Ok(payload)
    }
}

fn receive(outbox: &Outbox, target: &mut [u8]) -> io::Result<usize> {
    loop {
        match recv(outbox.socket(), &mut *target, RecvFlags::empty()) {
            Ok((_, received)) => return Ok(received),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Buffers of one connection that are free: their pages need not be made again.
#[derive(Debug, Default)]
struct Kept(Mutex<Vec<Vec<u8>>>);

impl Kept {
    fn take(&self, length: usize) -> Vec<u8> {
        if length <= KEPT_BUFFER_BYTES {
            let mut kept = self.0.lock();
            if let Some(at) = kept.iter().rposition(|buffer| buffer.len() >= length) {
                return kept.swap_remove(at);
            }
        }
        vec![0; length]
    }

    fn give(&self, buffer: Vec<u8>) {
        if buffer.len() <= KEPT_BUFFER_BYTES {
            let mut kept = self.0.lock();
            if kept.len() < KEPT_BUFFERS {
                kept.push(buffer);
            }
        }
    }
}

/// A payload in a buffer of its own.
#[derive(Debug)]
pub(super) struct Payload {
    buffer: Vec<u8>,
    length: usize,
    kept: Arc<Kept>,
}

impl AsRef<[u8]> for Payload {
    fn as_ref(&self) -> &[u8] {
        &self.buffer[..self.length]
    }
}

impl From<Payload> for Bytes {
    fn from(payload: Payload) -> Self {
        Self::from_owner(payload)
    }
}

impl Drop for Payload {
    fn drop(&mut self) {
        self.kept.give(std::mem::take(&mut self.buffer));
    }
}
