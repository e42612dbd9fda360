//! Frames in and out of a stream.
//!
//! The promise: [`FrameReader`] never buffers more than it was asked for plus one read-ahead buffer, tells a clean
//! end from one inside a frame, and hands payloads on without copying what it can split off. [`Batch`] collects
//! replies and sends them with as few calls as the stream allows, payloads uncopied.
//!
//! What it doesn't know: what the frames mean.

use std::io::{self, IoSlice};
use std::ops::Range;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Read-ahead of a connection; also the largest payload that is split off the read-ahead rather than read into
/// its own buffer.
const READ_AHEAD_BYTES: usize = 64 << 10;
/// Below this much free space the read-ahead buffer is renewed, so that reads don't become tiny.
const MIN_READ_BYTES: usize = 4 << 10;

/// Reads frames through a bounded read-ahead buffer.
#[derive(Debug)]
pub(crate) struct FrameReader<R> {
    inner: R,
    ahead: BytesMut,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    pub(crate) fn new(inner: R) -> Self {
        Self {
            inner,
            ahead: BytesMut::new(),
        }
    }

    /// Bytes that were read ahead and not handed out.
    pub(crate) fn buffered(&self) -> usize {
        self.ahead.len()
    }

    /// The stream, without what was read ahead.
    pub(crate) fn into_inner(self) -> R {
        self.inner
    }

    /// What was read ahead and not taken yet.
    pub(crate) fn into_buffered(self) -> Bytes {
        self.ahead.freeze()
    }

    /// Makes `length` bytes available, at most [`READ_AHEAD_BYTES`]. False when the stream ended before the first
    /// of them. Cancel safe: what was read stays.
    async fn fill(&mut self, length: usize) -> io::Result<bool> {
        debug_assert!(length <= READ_AHEAD_BYTES);
        while self.ahead.len() < length {
            let missing = length - self.ahead.len();
            if self.ahead.capacity() - self.ahead.len() < missing.max(MIN_READ_BYTES) {
                self.ahead.reserve(READ_AHEAD_BYTES);
            }
            if self.inner.read_buf(&mut self.ahead).await? == 0 {
                return if self.ahead.is_empty() {
                    Ok(false)
                } else {
                    Err(cut_short())
                };
            }
        }
        Ok(true)
    }

    /// The next `N` bytes, or `None` when the stream ended cleanly before them. Cancel safe.
    pub(crate) async fn read_array<const N: usize>(&mut self) -> io::Result<Option<[u8; N]>> {
        if !self.fill(N).await? {
            return Ok(None);
        }
        let mut out = [0; N];
        self.ahead.copy_to_slice(&mut out);
        Ok(Some(out))
    }

    /// Fills `target` with the next bytes; false when the stream ended cleanly before them. Cancel safe.
    pub(crate) async fn read_header(&mut self, target: &mut [u8]) -> io::Result<bool> {
        let there = self.fill(target.len()).await?;
        if there {
            self.ahead.copy_to_slice(target);
        }
        Ok(there)
    }

    /// The next `N` bytes; the end of the stream is an error. Cancel safe.
    pub(crate) async fn require_array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        self.read_array().await?.ok_or_else(cut_short)
    }

    /// The next `length` bytes. The caller has bounded `length`; memory for a long payload is reserved, but
    /// touched only as bytes arrive. Not cancel safe.
    pub(crate) async fn read_payload(&mut self, length: usize) -> io::Result<Bytes> {
        if length == 0 {
            return Ok(Bytes::new());
        }
        if length <= READ_AHEAD_BYTES / 2 || length <= self.ahead.len() {
            if length > self.ahead.len() && !self.fill(length).await? {
                return Err(cut_short());
            }
            return Ok(self.ahead.split_to(length).freeze());
        }
        let mut payload = BytesMut::with_capacity(length);
        payload.extend_from_slice(&self.ahead);
        self.ahead.clear();
        while payload.len() < length {
            let missing = length - payload.len();
            if self.inner.read_buf(&mut (&mut payload).limit(missing)).await? == 0 {
                return Err(cut_short());
            }
        }
        Ok(payload.freeze())
    }

    /// Fills `target` with the next bytes. Not cancel safe.
    pub(crate) async fn read_into(&mut self, target: &mut [u8]) -> io::Result<()> {
        let buffered = target.len().min(self.ahead.len());
        let (head, rest) = target.split_at_mut(buffered);
        self.ahead.copy_to_slice(head);
        if rest.is_empty() {
            return Ok(());
        }
        self.inner.read_exact(rest).await.map(|_| ())
    }

    /// Skips `length` bytes in bounded memory. Not cancel safe.
    pub(crate) async fn discard(&mut self, mut length: u64) -> io::Result<()> {
        while length > 0 {
            if !self.fill(1).await? {
                return Err(cut_short());
            }
            let step = length.min(self.ahead.len() as u64);
            // `step` is at most the length of a buffer, so it fits.
            self.ahead.advance(step as usize);
            length -= step;
        }
        Ok(())
    }
}

pub(crate) fn cut_short() -> io::Error {
    io::Error::new(
        io::ErrorKind::UnexpectedEof,
        "the peer ended the stream inside a message",
    )
}

/// Where padding and zero ranges of replies come from.
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// Buffers up to this size are kept for the next batch.
const KEPT_HEAD_BYTES: usize = 2 << 20;

/// Messages to be sent together.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    /// Initialised memory, used up to `filled`; what lies behind are old bytes.
    heads: Vec<u8>,
    filled: usize,
    parts: Vec<Part>,
}

#[derive(Debug)]
enum Part {
    /// A range of `heads`.
    Head(Range<usize>),
    Payload(Bytes),
}

/// A state of a batch to go back to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mark {
    filled: usize,
    parts: usize,
}

impl Batch {
    /// Appends a small piece by copying it; neighbours become one slice.
    pub(crate) fn put_head(&mut self, bytes: &[u8]) {
        self.slot(bytes.len()).copy_from_slice(bytes);
    }

    /// Appends `length` bytes, which hold anything until the caller fills them.
    pub(crate) fn slot(&mut self, length: usize) -> &mut [u8] {
        let start = self.filled;
        self.filled += length;
        if self.heads.len() < self.filled {
            self.heads.resize(self.filled.next_power_of_two(), 0);
        }
        match self.parts.last_mut() {
            Some(Part::Head(range)) if range.end == start => range.end = self.filled,
            _ => self.parts.push(Part::Head(start..self.filled)),
        }
        &mut self.heads[start..self.filled]
    }

    /// Appends a payload without copying it.
    pub(crate) fn put_payload(&mut self, payload: Bytes) {
        if !payload.is_empty() {
            self.parts.push(Part::Payload(payload));
        }
    }

    /// Appends zero bytes without making a buffer of them.
    pub(crate) fn put_zeroes(&mut self, mut length: usize) {
        while length > 0 {
            let step = length.min(ZEROES.len());
            self.put_payload(Bytes::from_static(&ZEROES[..step]));
            length -= step;
        }
    }

    /// The state now, for [`roll_back`](Self::roll_back).
    pub(crate) fn mark(&self) -> Mark {
        Mark {
            filled: self.filled,
            parts: self.parts.len(),
        }
    }

    /// Takes back everything that was appended since the mark.
    pub(crate) fn roll_back(&mut self, mark: Mark) {
        self.filled = mark.filled;
        self.parts.truncate(mark.parts);
        if let Some(Part::Head(range)) = self.parts.last_mut() {
            range.end = range.end.min(mark.filled);
        }
    }

    /// Bytes that were copied or filled in; payloads that are passed on don't count.
    pub(crate) fn head_bytes(&self) -> usize {
        self.filled
    }

    /// Empties the batch and keeps its memory for the next, unless it is much.
    pub(crate) fn clear(&mut self) {
        self.parts.clear();
        self.filled = 0;
        if self.heads.len() > KEPT_HEAD_BYTES {
            self.heads = Vec::new();
        }
    }

    /// The pieces in their order.
    pub(crate) fn slices(&self) -> impl Iterator<Item = &[u8]> {
        self.parts.iter().map(|part| match part {
            Part::Head(range) => &self.heads[range.clone()],
            Part::Payload(payload) => payload.as_ref(),
        })
    }

    /// Sends everything and empties the batch.
    pub(crate) async fn write_to<W: AsyncWrite + Unpin>(&mut self, writer: &mut W) -> io::Result<()> {
        let mut slices: Vec<IoSlice<'_>> = self.slices().map(IoSlice::new).collect();
        let mut remaining = slices.as_mut_slice();
        while !remaining.is_empty() {
            let written = writer.write_vectored(remaining).await?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            IoSlice::advance_slices(&mut remaining, written);
        }
        writer.flush().await?;
        self.clear();
        Ok(())
    }

    /// Everything as one buffer.
    #[cfg(test)]
    pub(crate) fn to_vec(&self) -> Vec<u8> {
        self.slices().flatten().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn small_and_large_payloads_arrive_whole_and_in_order() {
        let data: Vec<u8> = (0..300_000u32).map(|i| (i % 251) as u8).collect();
        let mut frames = FrameReader::new(data.as_slice());
        assert_eq!(frames.require_array::<4>().await.unwrap(), [0, 1, 2, 3]);
        assert_eq!(frames.read_payload(1000).await.unwrap(), data[4..1004]);
        assert_eq!(frames.read_payload(200_000).await.unwrap(), data[1004..201_004]);
        frames.discard(50_000).await.unwrap();
        let mut rest = vec![0; 48_996];
        frames.read_into(&mut rest).await.unwrap();
        assert_eq!(rest, data[251_004..]);
        assert_eq!(frames.read_array::<1>().await.unwrap(), None);
    }

    #[tokio::test]
    async fn the_end_inside_a_frame_is_an_error() {
        for_each_read(async |mut frames: FrameReader<&[u8]>| frames.read_array::<4>().await.map(|_| ()))
            .await;
        for_each_read(async |mut frames: FrameReader<&[u8]>| frames.read_payload(4).await.map(|_| ())).await;
        for_each_read(async |mut frames: FrameReader<&[u8]>| frames.read_payload(100_000).await.map(|_| ()))
            .await;
        for_each_read(async |mut frames: FrameReader<&[u8]>| frames.discard(4).await).await;
        for_each_read(async |mut frames: FrameReader<&[u8]>| frames.read_into(&mut [0; 4]).await).await;
    }

    async fn for_each_read(read: impl AsyncFnOnce(FrameReader<&[u8]>) -> io::Result<()>) {
        let error = read(FrameReader::new([1u8, 2, 3].as_slice())).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[tokio::test]
    async fn a_batch_keeps_its_order_through_a_stream_that_takes_little_at_a_time() {
        let mut batch = Batch::default();
        batch.put_head(b"ab");
        batch.put_head(b"cd");
        batch.put_payload(Bytes::from_static(b"payload"));
        batch.put_zeroes(70_000);
        batch.put_head(b"end");
        let expected = batch.to_vec();
        let (mut near, mut far) = tokio::io::duplex(7);
        let sender = tokio::spawn(async move {
            batch.write_to(&mut near).await.unwrap();
            batch
        });
        let mut received = Vec::new();
        far.read_to_end(&mut received).await.unwrap();
        assert_eq!(received, expected);
        assert_eq!(received.len(), 4 + 7 + 70_000 + 3);
        assert!(sender.await.unwrap().to_vec().is_empty());
    }
}
