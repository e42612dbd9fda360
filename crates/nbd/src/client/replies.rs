//! The client's side of replies.
//!
//! The promise: a reply is matched to its request, every chunk is checked against what was asked before any byte
//! of it is taken, and a read succeeds only when each of its bytes arrived exactly once. The first breach of the
//! protocol fails every request that waits.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::{BoxReader, ClientError};
use crate::device::{Errno, Extent};
use crate::proto::{
    ChunkHeader, ExtendedChunkHeader, Framing, MAX_STATUS_DESCRIPTORS, MAX_STRING_BYTES, ReplyHeader,
    SimpleReply, allocation, chunk,
};
use crate::wire::FrameReader;

/// Longest payload of an error chunk: number, length, message, and what a later kind may add.
const MAX_ERROR_BYTES: u32 = 6 + MAX_STRING_BYTES as u32 + 64;
/// Most chunks of one reply.
const MAX_CHUNKS: usize = 65536;

/// What a request waits for, as far as it has come.
#[derive(Debug)]
pub(super) enum Pending {
    Plain,
    Read(PendingRead),
    Status {
        context: u32,
        length: u64,
        found: Option<Vec<Extent>>,
    },
}

#[derive(Debug)]
pub(super) struct PendingRead {
    offset: u64,
    buffer: Vec<u8>,
    /// Ranges that arrived, as start and end in `buffer`, sorted and apart.
    arrived: Vec<(usize, usize)>,
}

impl Pending {
    pub(super) fn read(offset: u64, length: u32) -> Self {
        Self::Read(PendingRead {
            offset,
            buffer: vec![0; length as usize],
            arrived: Vec::new(),
        })
    }

    /// The answer when the last chunk is in.
    fn complete(self) -> Result<Answer, ClientError> {
        match self {
            Self::Plain => Ok(Answer::Done),
            Self::Read(read) => {
                let all = (0, read.buffer.len());
                let whole = if all.1 == 0 {
                    read.arrived.is_empty()
                } else {
                    read.arrived == [all]
                };
                if !whole {
                    return breach("a read ended without all of its bytes");
                }
                Ok(Answer::Data(Bytes::from(read.buffer)))
            }
            Self::Status {
                found: Some(extents), ..
            } => Ok(Answer::Status(extents)),
            Self::Status { found: None, .. } => breach("a block status ended without extents"),
        }
    }
}

impl PendingRead {
    /// Takes note of a range; it must lie inside the request and be new.
    fn arrive(&mut self, offset: u64, length: u64) -> Result<&mut [u8], ClientError> {
        let size = self.buffer.len() as u64;
        let start = offset.checked_sub(self.offset);
        let Some(start) = start.filter(|start| *start < size && length > 0 && length <= size - start) else {
            return breach("a chunk lies outside of the read it answers");
        };
        // Both lie within the buffer.
        let (start, end) = (start as usize, (start + length) as usize);
        let at = self.arrived.partition_point(|range| range.1 <= start);
        if self.arrived.get(at).is_some_and(|next| next.0 < end) {
            return breach("two chunks of a read overlap");
        }
        // Joined with its neighbours, so that chunks in order keep the list at one range.
        let joins_before = at > 0 && self.arrived[at - 1].1 == start;
        let joins_after = self.arrived.get(at).is_some_and(|next| next.0 == end);
        match (joins_before, joins_after) {
            (true, true) => {
                self.arrived[at - 1].1 = self.arrived[at].1;
                self.arrived.remove(at);
            }
            (true, false) => self.arrived[at - 1].1 = end,
            (false, true) => self.arrived[at].0 = start,
            (false, false) => self.arrived.insert(at, (start, end)),
        }
        Ok(&mut self.buffer[start..end])
    }
}

/// What a request got.
#[derive(Debug)]
pub(super) enum Answer {
    Done,
    Data(Bytes),
    Status(Vec<Extent>),
}

/// The requests under way.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    requests: HashMap<u64, Request>,
    failure: Option<ClientError>,
}

#[derive(Debug)]
struct Request {
    pending: Pending,
    /// The first error chunk; the reply goes on after it.
    error: Option<ClientError>,
    chunks: usize,
    answer: oneshot::Sender<Result<Answer, ClientError>>,
}

impl Waiting {
    pub(super) fn add(
        &mut self,
        cookie: u64,
        pending: Pending,
        answer: oneshot::Sender<Result<Answer, ClientError>>,
    ) -> Result<(), ClientError> {
        if let Some(failure) = &self.failure {
            return Err(failure.clone());
        }
        self.requests.insert(
            cookie,
            Request {
                pending,
                error: None,
                chunks: 0,
                answer,
            },
        );
        Ok(())
    }

    pub(super) fn failure(&self) -> Option<ClientError> {
        self.failure.clone()
    }

    /// Ends every request, now and later, with this error.
    pub(super) fn fail(&mut self, error: ClientError) {
        for (_, request) in self.requests.drain() {
            // The caller may have stopped waiting.
            let _ = request.answer.send(Err(error.clone()));
        }
        self.failure.get_or_insert(error);
    }
}

/// Reads replies until the connection ends, and fails what still waits then.
pub(super) async fn receive_replies(
    mut frames: FrameReader<BoxReader>,
    waiting: Arc<Mutex<Waiting>>,
    framing: Framing,
) {
    let mut current = None;
    let error = match receive_all(&mut frames, &waiting, framing, &mut current).await {
        Ok(()) => ClientError::Closed,
        Err(error) => error,
    };
    if let Some(Request { answer, .. }) = current {
        let _ = answer.send(Err(error.clone()));
    }
    waiting.lock().fail(error);
}

/// `current` holds the request whose reply is being read, so that it is not lost when reading fails.
async fn receive_all(
    frames: &mut FrameReader<BoxReader>,
    waiting: &Mutex<Waiting>,
    framing: Framing,
    current: &mut Option<Request>,
) -> Result<(), ClientError> {
    while let Some(header) = next_reply(frames, framing).await? {
        let cookie = match header {
            NextReply::Simple(SimpleReply { cookie, .. }) | NextReply::Chunk(ChunkHeader { cookie, .. }) => {
                cookie
            }
        };
        let Some(taken) = waiting.lock().requests.remove(&cookie) else {
            return breach("a reply belongs to no request");
        };
        let request = current.insert(taken);
        let done = match header {
            NextReply::Simple(simple) => {
                simple_reply(frames, simple, framing, request).await?;
                true
            }
            NextReply::Chunk(header) => {
                request.chunks += 1;
                if request.chunks > MAX_CHUNKS {
                    return breach("a request was answered in too many chunks");
                }
                chunk_of(frames, header, framing, request).await?;
                header.flags & chunk::FLAG_DONE != 0
            }
        };
        let Some(request) = current.take() else { continue };
        if !done {
            waiting.lock().requests.insert(cookie, request);
            continue;
        }
        let result = match request.error {
            Some(error) => Err(error),
            None => request.pending.complete(),
        };
        let broken = match &result {
            Err(error @ ClientError::Protocol(_)) => Some(error.clone()),
            _ => None,
        };
        // The caller may have stopped waiting.
        let _ = request.answer.send(result);
        if let Some(error) = broken {
            return Err(error);
        }
    }
    Ok(())
}

enum NextReply {
    Simple(SimpleReply),
    Chunk(ChunkHeader),
}

/// The next header in the form that was agreed on; `None` at the end of the stream.
async fn next_reply(
    frames: &mut FrameReader<BoxReader>,
    framing: Framing,
) -> Result<Option<NextReply>, ClientError> {
    if framing == Framing::Extended {
        let Some(header) = frames.read_array().await? else {
            return Ok(None);
        };
        let ExtendedChunkHeader {
            flags,
            kind,
            cookie,
            length,
            ..
        } = ExtendedChunkHeader::decode(&header)?;
        // No chunk that can be asked for is as long as that.
        let Ok(length) = u32::try_from(length) else {
            return breach("a chunk is longer than 4 GiB");
        };
        return Ok(Some(NextReply::Chunk(ChunkHeader {
            flags,
            kind,
            cookie,
            length,
        })));
    }
    let Some(header) = frames.read_array().await? else {
        return Ok(None);
    };
    match ReplyHeader::decode(&header)? {
        ReplyHeader::Simple(simple) => Ok(Some(NextReply::Simple(simple))),
        ReplyHeader::Chunk { .. } if framing == Framing::Simple => {
            breach("a structured reply was sent that was not agreed on")
        }
        ReplyHeader::Chunk { flags, kind, cookie } => Ok(Some(NextReply::Chunk(ChunkHeader {
            flags,
            kind,
            cookie,
            length: u32::from_be_bytes(frames.require_array().await?),
        }))),
    }
}

async fn simple_reply(
    frames: &mut FrameReader<BoxReader>,
    reply: SimpleReply,
    framing: Framing,
    request: &mut Request,
) -> Result<(), ClientError> {
    if framing.has_chunks() && !matches!(request.pending, Pending::Plain) {
        return breach("a simple reply was sent where a structured one was agreed on");
    }
    if reply.error != 0 {
        let errno = Errno::from_code(reply.error);
        request.error.get_or_insert(ClientError::Server {
            errno,
            message: String::new(),
        });
    } else if let Pending::Read(read) = &mut request.pending {
        let (offset, length) = (read.offset, read.buffer.len() as u64);
        if length > 0 {
            frames.read_into(read.arrive(offset, length)?).await?;
        }
    }
    Ok(())
}

async fn chunk_of(
    frames: &mut FrameReader<BoxReader>,
    header: ChunkHeader,
    framing: Framing,
    request: &mut Request,
) -> Result<(), ClientError> {
    let ChunkHeader {
        flags, kind, length, ..
    } = header;
    match (kind, &mut request.pending) {
        (chunk::NONE, _) => {
            if length != 0 || flags & chunk::FLAG_DONE == 0 {
                return breach("an empty chunk has content or is not the last");
            }
        }
        (chunk::OFFSET_DATA, Pending::Read(read)) => {
            if length < 9 {
                return breach("a data chunk has no data");
            }
            let offset = u64::from_be_bytes(frames.require_array().await?);
            frames
                .read_into(read.arrive(offset, u64::from(length - 8))?)
                .await?;
        }
        (chunk::OFFSET_HOLE, Pending::Read(read)) => {
            if length != 12 {
                return breach("a hole chunk is not of 12 bytes");
            }
            let offset = u64::from_be_bytes(frames.require_array().await?);
            let hole = u32::from_be_bytes(frames.require_array().await?);
            // The buffer was made of zeroes.
            read.arrive(offset, u64::from(hole))?;
        }
        (
            chunk::BLOCK_STATUS | chunk::BLOCK_STATUS_EXT,
            Pending::Status {
                context,
                length: range,
                found,
            },
        ) => {
            let layout = if kind == chunk::BLOCK_STATUS {
                StatusLayout::Compact
            } else if framing == Framing::Extended {
                StatusLayout::Extended
            } else {
                return breach("an extended block status was sent that was not agreed on");
            };
            layout.check_length(length)?;
            let payload = frames.read_payload(length as usize).await?;
            if found.is_some() || payload[..4] != context.to_be_bytes() {
                return breach("a block status chunk is of a context that was not selected, or comes twice");
            }
            *found = Some(layout.extents(&payload[4..], *range)?);
        }
        (kind, _) if kind & chunk::ERROR_BIT != 0 => {
            if !(6..=MAX_ERROR_BYTES).contains(&length) {
                return breach("an error chunk has a wrong length");
            }
            let payload = frames.read_payload(length as usize).await?;
            let code = u32::from_be_bytes([payload[0], payload[1], payload[2], payload[3]]);
            let message = usize::from(u16::from_be_bytes([payload[4], payload[5]]));
            let Some(message) = payload[6..].get(..message).filter(|_| code != 0) else {
                return breach("an error chunk has no error, or a message longer than itself");
            };
            let message = String::from_utf8_lossy(message).into_owned();
            request.error.get_or_insert(ClientError::Server {
                errno: Errno::from_code(code),
                message,
            });
        }
        _ => return breach("a chunk does not belong to the request it answers"),
    }
    Ok(())
}

/// The two forms of a block status chunk. Both start with the number of the context.
#[derive(Debug, Clone, Copy)]
enum StatusLayout {
    /// Descriptors of two 32-bit fields.
    Compact,
    /// A count, which may be left at zero, and descriptors of two 64-bit fields.
    Extended,
}

impl StatusLayout {
    /// Bytes before the descriptors, and of each of them.
    const fn sizes(self) -> (u32, u32) {
        match self {
            Self::Compact => (4, 8),
            Self::Extended => (8, 16),
        }
    }

    fn check_length(self, length: u32) -> Result<(), ClientError> {
        let (head, each) = self.sizes();
        let descriptors = length.checked_sub(head).filter(|rest| rest % each == 0);
        match descriptors.map(|rest| rest / each) {
            Some(count) if count > 0 && count as usize <= MAX_STATUS_DESCRIPTORS => Ok(()),
            _ => breach("a block status chunk has a wrong length"),
        }
    }

    /// Extents of a payload whose length was checked, without the number of its context; cut to the range that
    /// was asked for.
    fn extents(self, payload: &[u8], range: u64) -> Result<Vec<Extent>, ClientError> {
        let (head, each) = self.sizes();
        let (count, descriptors) = payload.split_at(head as usize - 4);
        let each = each as usize;
        let found = descriptors.len() / each;
        if !matches!(self, Self::Compact) && ![0, found as u64].contains(&number(count)) {
            return breach("a block status chunk counts its extents wrongly");
        }
        let mut left = range;
        let mut extents = Vec::with_capacity(found);
        for descriptor in descriptors.chunks_exact(each) {
            let (length, state) = descriptor.split_at(each / 2);
            let (length, state) = (number(length), number(state));
            if length == 0 || left == 0 {
                return breach("a block status has an empty extent, or one beyond the range");
            }
            let length_bytes = length.min(left);
            left -= length_bytes;
            extents.push(Extent {
                length_bytes,
                hole: state & u64::from(allocation::HOLE) != 0,
                zero: state & u64::from(allocation::ZERO) != 0,
            });
        }
        Ok(extents)
    }
}

/// A big-endian number of up to eight bytes.
fn number(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

fn breach<T>(what: &str) -> Result<T, ClientError> {
    Err(ClientError::Protocol(what.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read() -> PendingRead {
        match Pending::read(1000, 100) {
            Pending::Read(read) => read,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn chunks_in_any_order_make_a_whole_read() {
        let mut read = read();
        for (offset, length) in [(1050, 10), (1000, 20), (1060, 40), (1020, 30)] {
            assert_eq!(read.arrive(offset, length).unwrap().len() as u64, length);
        }
        assert_eq!(read.arrived, [(0, 100)]);
        assert!(matches!(Pending::Read(read).complete(), Ok(Answer::Data(data)) if data.len() == 100));
    }

    #[test]
    fn chunks_outside_or_over_each_other_are_refused() {
        for (offset, length) in [
            (999, 1),
            (1100, 1),
            (1099, 2),
            (1000, 101),
            (1000, 0),
            (0, u64::MAX),
            (u64::MAX, 1),
        ] {
            assert!(read().arrive(offset, length).is_err(), "{offset} {length}");
        }
        let mut read = read();
        read.arrive(1010, 10).unwrap();
        for (offset, length) in [(1010, 10), (1005, 6), (1019, 1), (1000, 100), (1012, 2)] {
            assert!(read.arrive(offset, length).is_err(), "{offset} {length}");
        }
        assert!(Pending::Read(read).complete().is_err(), "bytes are missing");
    }

    #[test]
    fn extents_are_cut_to_the_range_and_must_not_be_empty() {
        let good = [0, 0, 0, 10, 0, 0, 0, 3, 0, 0, 1, 0, 0, 0, 0, 0];
        assert_eq!(
            StatusLayout::Compact.extents(&good, 100).unwrap(),
            [
                Extent {
                    length_bytes: 10,
                    hole: true,
                    zero: true
                },
                Extent {
                    length_bytes: 90,
                    hole: false,
                    zero: false
                }
            ]
        );
        assert!(
            StatusLayout::Compact.extents(&good, 10).is_err(),
            "an extent beyond the range"
        );
        assert!(
            StatusLayout::Compact.extents(&[0; 8], 10).is_err(),
            "an empty extent"
        );
    }

    #[test]
    fn extended_extents_may_be_long_and_count_themselves_or_not() {
        let one = [0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3];
        for (count, good) in [(0, true), (1, true), (2, false)] {
            let payload = [&[0, 0, 0, count][..], &one].concat();
            let parsed = StatusLayout::Extended.extents(&payload, 1 << 40);
            assert_eq!(parsed.is_ok(), good, "count {count}");
            if let Ok(extents) = parsed {
                assert_eq!(
                    extents,
                    [Extent {
                        length_bytes: 2 << 32,
                        hole: true,
                        zero: true
                    }]
                );
            }
        }
        for (layout, length, good) in [
            (StatusLayout::Compact, 12, true),
            (StatusLayout::Compact, 4, false),
            (StatusLayout::Compact, 3, false),
            (StatusLayout::Compact, 13, false),
            (StatusLayout::Compact, 4 + 8 * ((1 << 20) + 1), false),
            (StatusLayout::Extended, 24, true),
            (StatusLayout::Extended, 8, false),
            (StatusLayout::Extended, 12, false),
            (StatusLayout::Extended, u32::MAX, false),
        ] {
            assert_eq!(layout.check_length(length).is_ok(), good, "{layout:?} {length}");
        }
    }
}
