//! Write-around: writes that are acknowledged to the client before the store has them, where the store is far away
//! ([`ferry_store::Store::write_around`]). A flush waits for them.
//!
//! Invariants:
//! * Such a write holds the gate from before its acknowledgement until it is in the store: whoever takes the gate
//!   exclusively (a snapshot, a resize, giving the lock up) finds none under way.
//! * No two of one range are on their way, and what a client asks for a range waits for what was acknowledged there before.
//! * One that failed is kept, and tried again by the next flush and by whoever needs its range; until it succeeds, these
//!   fail with its error. No flush succeeds over it. When the lock is given up it is dropped, and every write and flush of
//!   the handle fails from then on: its range may be another's by now.
//!
//! Bounds: [`WriteAround::max_bytes`] and [`MAX_WRITES`]; a write that finds no room waits for some, and where none will come
//! (writes that failed have it) for its own end. Those of one object go together ([`super::gather`]).
//!
//! Ceph's settings of the cache decide: those of the store, which the image's and the pool's ([`super::cache_settings`]) can only
//! narrow. What it does not know: how an object is written.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::Bytes;
use ferry_store::{Errno, WriteAround};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::error::{ImageError, Result};
use crate::exclusive_lock::WriteGuard;
use crate::image::Image;
use crate::io::background;
use crate::io::gather::{self, Piece, Turn};
use crate::layout::{ImageExtent, ImageOffset, ObjectNo};

/// Most writes of one image on their way.
const MAX_WRITES: usize = 8192;
/// Shorter data are copied: they may lie in a large buffer that they would keep.
const COPIED_BYTES: usize = 32 << 10;

/// The acknowledged writes of one open image that the store does not have yet.
#[derive(Debug, Default)]
pub(crate) struct Around {
    limits: Option<WriteAround>,
    /// Whether writes may be acknowledged early by now.
    armed: AtomicBool,
    /// Writes, and one for what was lost; an image without any looks at nothing else.
    count: AtomicUsize,
    state: Mutex<State>,
    ended: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// By image offset; their ranges are apart.
    writes: BTreeMap<u64, Write>,
    /// Offsets of those under way, by the order in which they began.
    under_way: BTreeMap<u64, u64>,
    bytes: u64,
    begun: u64,
    lost: Option<ImageError>,
}

#[derive(Debug)]
struct Write {
    data: Bytes,
    number: u64,
    failed: Option<ImageError>,
}

/// A range of the image, or all of it.
#[derive(Debug, Clone, Copy)]
struct Range {
    start: u64,
    end: u64,
}

impl Range {
    const ALL: Self = Self {
        start: 0,
        end: u64::MAX,
    };

    fn new(offset: u64, length_bytes: u64) -> Self {
        Self {
            start: offset,
            end: offset.saturating_add(length_bytes),
        }
    }
}

impl State {
    fn overlapping(&self, range: Range) -> impl Iterator<Item = (u64, &Write)> {
        // Ranges are apart, so of those that begin before only the last can reach in.
        let before = self.writes.range(..range.start).next_back();
        let before = before.filter(|(at, write)| **at + write.data.len() as u64 > range.start);
        let inside = self.writes.range(range.start..range.end.max(range.start));
        before.into_iter().chain(inside).map(|(at, write)| (*at, write))
    }

    fn count(&self) -> usize {
        self.writes.len() + usize::from(self.lost.is_some())
    }

    fn is_full(&self, limits: WriteAround, length_bytes: u64) -> bool {
        self.bytes + length_bytes > limits.max_bytes || self.writes.len() >= MAX_WRITES
    }

    fn is_under_way(&self, range: Range) -> bool {
        self.overlapping(range).any(|(_, write)| write.failed.is_none())
    }

    /// The error of one that failed, whatever else is under way.
    fn failure(&self, range: Range) -> Option<ImageError> {
        self.overlapping(range)
            .find_map(|(_, write)| write.failed.clone())
    }
}

impl Around {
    /// `None`: every write waits for its own end.
    pub(crate) fn new(limits: Option<WriteAround>) -> Self {
        Self {
            armed: AtomicBool::new(limits.is_some_and(|limits| !limits.until_flush)),
            limits,
            ..Self::default()
        }
    }

    /// The client knows how to flush.
    pub(crate) fn arm(&self) {
        if self.limits.is_some() {
            self.armed.store(true, Ordering::Relaxed);
        }
    }

    fn is_empty(&self) -> bool {
        self.count.load(Ordering::SeqCst) == 0
    }

    /// Takes note of a write that is about to be acknowledged; `None` if it must not be.
    pub(super) fn begin(&self, image: &Image, offset: u64, data: &Bytes) -> Option<UnderWay> {
        let limits = self.limits.filter(|_| self.armed.load(Ordering::Relaxed))?;
        let length_bytes = data.len() as u64;
        let mut state = self.state.lock();
        let taken = || {
            state
                .overlapping(Range::new(offset, length_bytes))
                .next()
                .is_some()
        };
        if state.is_full(limits, length_bytes) || length_bytes == 0 || state.lost.is_some() || taken() {
            return None;
        }
        let data = match data.len() {
            ..COPIED_BYTES => Bytes::copy_from_slice(data),
            _ => data.clone(),
        };
        state.begun += 1;
        let number = state.begun;
        state.bytes += length_bytes;
        state.under_way.insert(number, offset);
        let write = Write {
            data: data.clone(),
            number,
            failed: None,
        };
        state.writes.insert(offset, write);
        self.count.store(state.count(), Ordering::SeqCst);
        Some(UnderWay {
            image: image.clone(),
            offset,
            data,
            ended: false,
        })
    }

    /// One that failed in the range, under way again.
    fn take_failed(&self, image: &Image, range: Range) -> Option<UnderWay> {
        let mut state = self.state.lock();
        let mut failed = state
            .overlapping(range)
            .filter(|(_, write)| write.failed.is_some());
        let (offset, _) = failed.next()?;
        drop(failed);
        state.begun += 1;
        let number = state.begun;
        state.under_way.insert(number, offset);
        let write = state.writes.get_mut(&offset)?;
        write.failed = None;
        write.number = number;
        let data = write.data.clone();
        Some(UnderWay {
            image: image.clone(),
            offset,
            data,
            ended: false,
        })
    }

    fn end(&self, offsets: impl Iterator<Item = u64>, result: &Result<()>) {
        let mut state = self.state.lock();
        for offset in offsets {
            let Some(write) = state.writes.get_mut(&offset) else {
                continue;
            };
            let number = write.number;
            match result {
                Ok(()) => {
                    let length_bytes = write.data.len() as u64;
                    state.writes.remove(&offset);
                    state.bytes -= length_bytes;
                }
                Err(error) => write.failed = Some(error.clone()),
            }
            state.under_way.remove(&number);
        }
        self.count.store(state.count(), Ordering::SeqCst);
        drop(state);
        self.ended.notify_waiters();
    }

    /// Waits until there is room for a write, or none can be hoped for.
    async fn wait_for_room(&self, length_bytes: u64) {
        let Some(limits) = self.limits.filter(|_| self.armed.load(Ordering::Relaxed)) else {
            return;
        };
        if length_bytes > limits.max_bytes {
            return;
        }
        self.wait_until(|state| !state.is_full(limits, length_bytes) || state.under_way.is_empty())
            .await;
    }

    /// Waits until none of those that are under way now is.
    async fn wait(&self, range: Range) {
        let last = self.state.lock().begun;
        self.wait_until(|state| match range.end {
            u64::MAX => state
                .under_way
                .first_key_value()
                .is_none_or(|(number, _)| *number > last),
            _ => !state.is_under_way(range),
        })
        .await;
    }

    async fn wait_until(&self, done: impl Fn(&State) -> bool) {
        loop {
            let ended = self.ended.notified();
            tokio::pin!(ended);
            ended.as_mut().enable();
            if done(&self.state.lock()) {
                return;
            }
            ended.await;
        }
    }

    /// The error of a write that was acknowledged and is not in the store.
    fn check(&self, range: Range) -> Result<()> {
        let state = self.state.lock();
        match state.lost.clone().or_else(|| state.failure(range)) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// Drops what failed: the image may be another's from now on.
    pub(crate) fn give_up(&self) {
        if self.is_empty() {
            return;
        }
        let mut state = self.state.lock();
        let State {
            writes, bytes, lost, ..
        } = &mut *state;
        writes.retain(|_, write| {
            let Some(error) = &write.failed else { return true };
            *bytes -= write.data.len() as u64;
            tracing::error!(%error, "an acknowledged write is lost");
            lost.get_or_insert_with(|| {
                let error = error.clone();
                error
                    .context("writes acknowledged before were lost")
                    .hint("open the image again, and write again what was written since the last flush")
            });
            false
        });
        self.count.store(state.count(), Ordering::SeqCst);
    }
}

/// One that is under way. Dropped before its end, it counts as failed.
pub(crate) struct UnderWay {
    image: Image,
    offset: u64,
    data: Bytes,
    ended: bool,
}

impl UnderWay {
    pub(crate) fn data(&self) -> &Bytes {
        &self.data
    }

    /// Writes it, with the gate held.
    async fn carry_out(mut self) -> Result<()> {
        let result = self.image.write_through(self.offset, self.data.clone()).await;
        self.ended = true;
        self.image.inner.around.end([self.offset].into_iter(), &result);
        result
    }
}

impl std::fmt::Debug for UnderWay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { offset, data, .. } = self;
        write!(f, "{} bytes at {offset}", data.len())
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        if !self.ended {
            let error = ImageError::new(
                Errno::EINTR,
                format!("write of {} bytes at {}", self.data.len(), self.offset),
            );
            self.image
                .inner
                .around
                .end([self.offset].into_iter(), &Err(error));
        }
    }
}

impl Image {
    /// Acknowledges a write early: it goes on in the background, with the guard. Gives the guard back if it must not.
    pub(crate) fn write_around(&self, offset: u64, data: &Bytes, guard: WriteGuard) -> Option<WriteGuard> {
        let around = &self.inner.around;
        let length_bytes = data.len() as u64;
        if !around.armed.load(Ordering::Relaxed) || self.may_need_copies(offset, length_bytes) {
            return Some(guard);
        }
        let extent = self.layout().map_one(ImageOffset(offset), length_bytes);
        let gathered = &self.inner.gathered;
        if !gathered.has_room(extent.map(|extent| extent.object_no)) {
            return Some(guard);
        }
        let Some(write) = around.begin(self, offset, data) else {
            return Some(guard);
        };
        let Some(extent) = extent else {
            let apart = gathered.apart(self);
            background::start(async move {
                let image = write.image.clone();
                let _client = image.inner.activity.begin();
                // Its error waits for the next flush.
                let _ = write.carry_out().await;
                drop((apart, guard));
            });
            return None;
        };
        let piece = Piece { extent, write, guard };
        if let Turn::First(draining, piece) = gathered.add(self, piece) {
            background::start(draining.run(piece));
        }
        None
    }

    /// Writes pieces of one object, whose errors wait for the next flush.
    pub(crate) async fn write_pieces(&self, object_no: ObjectNo, mut pieces: Vec<Piece>) {
        if pieces.len() == 1
            && let Some(Piece { write, guard, .. }) = pieces.pop()
        {
            let _ = write.carry_out().await;
            drop(guard);
            return;
        }
        let result = self.write_runs(object_no, gather::runs(&pieces)).await;
        for piece in &mut pieces {
            piece.write.ended = true;
        }
        let offsets = pieces.iter().map(|piece| piece.write.offset);
        self.inner.around.end(offsets, &result);
    }

    /// Waits for room among the writes that are acknowledged early. Not to be called with the gate held.
    pub(crate) async fn room_around(&self, length_bytes: u64) {
        if !self.inner.around.is_empty() {
            self.inner.around.wait_for_room(length_bytes).await;
        }
    }

    /// An error of a copy belongs to who made it necessary.
    fn may_need_copies(&self, offset: u64, length_bytes: u64) -> bool {
        let header = self.header();
        if header.parent.is_none() && self.source().is_none() {
            return false;
        }
        let offset = ImageOffset(offset);
        let extents = self.layout().map(ImageExtent { offset, length_bytes });
        let mut objects = extents.iter().map(|extent| extent.object_no);
        objects.any(|object_no| self.may_need_copy(&header, object_no))
    }

    /// Waits for what was acknowledged in a range before; tries again what failed there. Not to be called with the gate
    /// held.
    pub(crate) async fn settle(&self, offset: u64, length_bytes: u64) -> Result<()> {
        if self.inner.around.is_empty() {
            return Ok(());
        }
        self.settle_range(Range::new(offset, length_bytes)).await
    }

    /// The same for all of the image.
    pub(crate) async fn settle_all(&self) -> Result<()> {
        if self.inner.around.is_empty() {
            return Ok(());
        }
        self.settle_range(Range::ALL).await
    }

    async fn settle_range(&self, range: Range) -> Result<()> {
        let around = &self.inner.around;
        around.wait(range).await;
        if around.check(range).is_ok() {
            return Ok(());
        }
        let _guard = self.begin_write().await?;
        while let Some(write) = around.take_failed(self, range) {
            write.carry_out().await?;
        }
        // Another may be trying one again.
        around.wait(range).await;
        around.check(range)
    }

    /// Waits for all that was acknowledged, and fails with what failed of it; also with the gate held.
    pub(crate) fn settled(&self) -> impl Future<Output = Result<()>> + '_ {
        let around = &self.inner.around;
        async move {
            if around.is_empty() {
                return Ok(());
            }
            around.wait(Range::ALL).await;
            around.check(Range::ALL)
        }
    }

    /// Whether nothing was acknowledged in a range that the store may not have.
    pub(crate) fn is_settled(&self, offset: u64, length_bytes: u64) -> bool {
        let around = &self.inner.around;
        around.is_empty()
            || around
                .state
                .lock()
                .overlapping(Range::new(offset, length_bytes))
                .next()
                .is_none()
    }
}
