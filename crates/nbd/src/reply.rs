//! Encoding of replies.
//!
//! The promise: a reply becomes valid frames of the form that the handshake agreed on, with payloads passed on
//! uncopied. Without structured replies everything is a simple reply. With them, data, block status and errors
//! are structured, and the success of a command without data stays a simple reply, which is the shorter of the
//! two forms that the protocol allows. With extended headers everything is a chunk with such a header.

use crate::device::{DeviceError, Errno, Extent, ReadExtent, wire_string};
use crate::proto::{
    ChunkHeader, ExtendedChunkHeader, Framing, RequestHeader, SimpleReply, allocation, chunk,
};
use crate::wire::Batch;

/// The number that names `base:allocation` in this server's replies.
pub(crate) const ALLOCATION_CONTEXT_ID: u32 = 1;

/// What a reply repeats of its request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tag {
    pub(crate) cookie: u64,
    pub(crate) offset: u64,
}

impl Tag {
    pub(crate) fn of(request: &RequestHeader) -> Self {
        Self {
            cookie: request.cookie,
            offset: request.offset,
        }
    }
}

/// A reply to one request.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) tag: Tag,
    pub(crate) body: ReplyBody,
}

/// What a reply says. Data and status come from [`Transmission`](crate::transmission) checked: lengths add up.
#[derive(Debug)]
pub(crate) enum ReplyBody {
    /// Success without data.
    Done,
    /// Content of a read; in one chunk unless `fragment`.
    Data {
        offset: u64,
        extents: Vec<ReadExtent>,
        fragment: bool,
    },
    /// At least one extent, without extended headers none longer than 4 GiB - 1.
    Status(Vec<Extent>),
    Error(DeviceError),
}

impl Reply {
    /// Appends the frames of this reply.
    pub(crate) fn encode(self, framing: Framing, batch: &mut Batch) {
        let Self { tag, body } = self;
        if framing == Framing::Simple {
            return encode_simple(tag, body, batch);
        }
        match body {
            ReplyBody::Done if framing == Framing::Structured => put_simple(tag, 0, batch),
            ReplyBody::Done => put_chunk(framing, tag, chunk::FLAG_DONE, chunk::NONE, 0, batch),
            ReplyBody::Data {
                offset,
                extents,
                fragment,
            } => encode_chunks(framing, tag, offset, extents, fragment, batch),
            ReplyBody::Status(extents) => encode_status(framing, tag, &extents, batch),
            ReplyBody::Error(error) => encode_error(framing, tag, &error, batch),
        }
    }
}

fn encode_simple(tag: Tag, body: ReplyBody, batch: &mut Batch) {
    match body {
        ReplyBody::Done => put_simple(tag, 0, batch),
        ReplyBody::Data { extents, .. } => {
            put_simple(tag, 0, batch);
            extents.into_iter().for_each(|extent| put_extent(extent, batch));
        }
        // Validation lets no block status pass without structured replies.
        ReplyBody::Status(_) => put_simple(tag, Errno::Inval.code(), batch),
        ReplyBody::Error(error) => put_simple(tag, error.errno.code(), batch),
    }
}

fn put_simple(tag: Tag, error: u32, batch: &mut Batch) {
    let cookie = tag.cookie;
    batch.put_head(&SimpleReply { error, cookie }.encode());
}

/// The header of a chunk whose `length` bytes follow.
fn put_chunk(framing: Framing, tag: Tag, flags: u16, kind: u16, length: u32, batch: &mut Batch) {
    let Tag { cookie, offset } = tag;
    match framing {
        Framing::Extended => batch.put_head(
            &ExtendedChunkHeader {
                flags,
                kind,
                cookie,
                offset,
                length: u64::from(length),
            }
            .encode(),
        ),
        Framing::Simple | Framing::Structured => batch.put_head(
            &ChunkHeader {
                flags,
                kind,
                cookie,
                length,
            }
            .encode(),
        ),
    }
}

/// Appends what stands before the bytes of a read that is answered in one piece; exactly `length` bytes must
/// follow.
pub(crate) fn put_data_head(framing: Framing, tag: Tag, offset: u64, length: u32, batch: &mut Batch) {
    if framing == Framing::Simple {
        return put_simple(tag, 0, batch);
    }
    put_chunk(
        framing,
        tag,
        chunk::FLAG_DONE,
        chunk::OFFSET_DATA,
        length + 8,
        batch,
    );
    batch.put_head(&offset.to_be_bytes());
}

fn put_extent(extent: ReadExtent, batch: &mut Batch) {
    match extent {
        ReadExtent::Data(data) => batch.put_payload(data),
        ReadExtent::Zeroes { length_bytes } => batch.put_zeroes(length_bytes as usize),
    }
}

/// Neighbouring pieces of data share a chunk; a hole is one of its own. With `fragment` off, everything is one
/// data chunk with its zeroes spelled out.
fn encode_chunks(
    framing: Framing,
    tag: Tag,
    offset: u64,
    extents: Vec<ReadExtent>,
    fragment: bool,
    batch: &mut Batch,
) {
    struct Run {
        hole: bool,
        extents: usize,
        length_bytes: u64,
    }
    let mut runs: Vec<Run> = Vec::with_capacity(1);
    let extents = || extents.iter().filter(|extent| extent.length_bytes() > 0);
    for extent in extents() {
        let hole = fragment && matches!(extent, ReadExtent::Zeroes { .. });
        let length_bytes = extent.length_bytes();
        match runs.last_mut() {
            Some(run) if run.hole == hole => {
                run.extents += 1;
                run.length_bytes += length_bytes;
            }
            _ => runs.push(Run {
                hole,
                extents: 1,
                length_bytes,
            }),
        }
    }
    if runs.is_empty() {
        put_chunk(framing, tag, chunk::FLAG_DONE, chunk::NONE, 0, batch);
    }
    let mut pieces = extents();
    let mut at = offset;
    let last = runs.len().saturating_sub(1);
    for (index, run) in runs.iter().enumerate() {
        let flags = if index == last { chunk::FLAG_DONE } else { 0 };
        // A read is bounded by the maximum block size, so the length of a part of it and a header fit.
        let length = run.length_bytes as u32;
        let run_pieces = pieces.by_ref().take(run.extents);
        if run.hole {
            run_pieces.for_each(drop);
            put_chunk(framing, tag, flags, chunk::OFFSET_HOLE, 12, batch);
            batch.put_head(&at.to_be_bytes());
            batch.put_head(&length.to_be_bytes());
        } else {
            put_chunk(framing, tag, flags, chunk::OFFSET_DATA, length + 8, batch);
            batch.put_head(&at.to_be_bytes());
            run_pieces.cloned().for_each(|extent| put_extent(extent, batch));
        }
        at += run.length_bytes;
    }
}

fn encode_status(framing: Framing, tag: Tag, extents: &[Extent], batch: &mut Batch) {
    // The number of extents is bounded far below what would not fit.
    let count = extents.len() as u32;
    let extended = framing == Framing::Extended;
    if extended {
        let length = 8 + 16 * count;
        put_chunk(
            framing,
            tag,
            chunk::FLAG_DONE,
            chunk::BLOCK_STATUS_EXT,
            length,
            batch,
        );
        batch.put_head(&ALLOCATION_CONTEXT_ID.to_be_bytes());
        batch.put_head(&count.to_be_bytes());
    } else {
        let length = 4 + 8 * count;
        put_chunk(framing, tag, chunk::FLAG_DONE, chunk::BLOCK_STATUS, length, batch);
        batch.put_head(&ALLOCATION_CONTEXT_ID.to_be_bytes());
    }
    for extent in extents {
        let mut state = 0;
        if extent.hole {
            state |= allocation::HOLE;
        }
        if extent.zero {
            state |= allocation::ZERO;
        }
        if extended {
            batch.put_head(&extent.length_bytes.to_be_bytes());
            batch.put_head(&u64::from(state).to_be_bytes());
        } else {
            batch.put_head(&(extent.length_bytes as u32).to_be_bytes());
            batch.put_head(&state.to_be_bytes());
        }
    }
}

fn encode_error(framing: Framing, tag: Tag, error: &DeviceError, batch: &mut Batch) {
    let message = wire_string(&error.message);
    let length = 6 + message.len() as u32;
    put_chunk(framing, tag, chunk::FLAG_DONE, chunk::ERROR, length, batch);
    batch.put_head(&error.errno.code().to_be_bytes());
    batch.put_head(&(message.len() as u16).to_be_bytes());
    batch.put_head(message.as_bytes());
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    const TAG: Tag = Tag {
        cookie: 0x11,
        offset: 4096,
    };

    fn in_form(body: ReplyBody, framing: Framing) -> Vec<u8> {
        let mut batch = Batch::default();
        Reply { tag: TAG, body }.encode(framing, &mut batch);
        batch.to_vec()
    }

    fn encoded(body: ReplyBody, structured: bool) -> Vec<u8> {
        in_form(
            body,
            if structured {
                Framing::Structured
            } else {
                Framing::Simple
            },
        )
    }

    fn extended_chunk(flags: u16, kind: u16, payload: &[u8]) -> Vec<u8> {
        let mut out = ExtendedChunkHeader {
            flags,
            kind,
            cookie: TAG.cookie,
            offset: TAG.offset,
            length: payload.len() as u64,
        }
        .encode()
        .to_vec();
        out.extend_from_slice(payload);
        out
    }

    #[test]
    fn with_extended_headers_every_reply_is_such_a_chunk() {
        assert_eq!(
            in_form(ReplyBody::Done, Framing::Extended),
            extended_chunk(chunk::FLAG_DONE, chunk::NONE, b"")
        );
        let error = ReplyBody::Error(DeviceError::new(Errno::NoSpc, "full"));
        assert_eq!(
            in_form(error, Framing::Extended),
            extended_chunk(chunk::FLAG_DONE, chunk::ERROR, b"\0\0\0\x1c\0\x04full")
        );
        let mut expected = extended_chunk(0, chunk::OFFSET_DATA, b"\0\0\0\0\0\0\x10\0abcd");
        expected.extend(extended_chunk(
            0,
            chunk::OFFSET_HOLE,
            b"\0\0\0\0\0\0\x10\x04\0\0\0\x05",
        ));
        expected.extend(extended_chunk(
            chunk::FLAG_DONE,
            chunk::OFFSET_DATA,
            b"\0\0\0\0\0\0\x10\x09e",
        ));
        assert_eq!(in_form(mixed(true), Framing::Extended), expected);
        let status = ReplyBody::Status(vec![
            Extent {
                length_bytes: 5 << 32,
                hole: true,
                zero: true,
            },
            Extent {
                length_bytes: 512,
                hole: false,
                zero: false,
            },
        ]);
        assert_eq!(
            in_form(status, Framing::Extended),
            extended_chunk(
                chunk::FLAG_DONE,
                chunk::BLOCK_STATUS_EXT,
                &[
                    0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0,
                    2, 0, 0, 0, 0, 0, 0, 0, 0, 0
                ]
            )
        );
    }

    fn chunk_bytes(flags: u16, kind: u16, payload: &[u8]) -> Vec<u8> {
        let mut out = ChunkHeader {
            flags,
            kind,
            cookie: 0x11,
            length: payload.len() as u32,
        }
        .encode()
        .to_vec();
        out.extend_from_slice(payload);
        out
    }

    fn mixed(fragment: bool) -> ReplyBody {
        ReplyBody::Data {
            offset: 4096,
            extents: vec![
                ReadExtent::Data(Bytes::from_static(b"ab")),
                ReadExtent::Data(Bytes::from_static(b"cd")),
                ReadExtent::Zeroes { length_bytes: 3 },
                ReadExtent::Zeroes { length_bytes: 0 },
                ReadExtent::Zeroes { length_bytes: 2 },
                ReadExtent::Data(Bytes::from_static(b"e")),
            ],
            fragment,
        }
    }

    #[test]
    fn a_simple_reply_carries_holes_as_zeroes() {
        let mut expected = SimpleReply {
            error: 0,
            cookie: 0x11,
        }
        .encode()
        .to_vec();
        expected.extend_from_slice(b"abcd\0\0\0\0\0e");
        assert_eq!(encoded(mixed(true), false), expected);
    }

    #[test]
    fn a_structured_read_sends_data_and_holes_in_chunks() {
        let mut expected = chunk_bytes(0, chunk::OFFSET_DATA, b"\0\0\0\0\0\0\x10\0abcd");
        expected.extend(chunk_bytes(
            0,
            chunk::OFFSET_HOLE,
            b"\0\0\0\0\0\0\x10\x04\0\0\0\x05",
        ));
        expected.extend(chunk_bytes(
            chunk::FLAG_DONE,
            chunk::OFFSET_DATA,
            b"\0\0\0\0\0\0\x10\x09e",
        ));
        assert_eq!(encoded(mixed(true), true), expected);
    }

    #[test]
    fn an_unfragmented_read_is_one_chunk() {
        let expected = chunk_bytes(
            chunk::FLAG_DONE,
            chunk::OFFSET_DATA,
            b"\0\0\0\0\0\0\x10\0abcd\0\0\0\0\0e",
        );
        assert_eq!(encoded(mixed(false), true), expected);
    }

    #[test]
    fn an_empty_read_is_a_chunk_without_content() {
        let body = ReplyBody::Data {
            offset: 0,
            extents: vec![],
            fragment: true,
        };
        assert_eq!(
            encoded(body, true),
            chunk_bytes(chunk::FLAG_DONE, chunk::NONE, b"")
        );
    }

    #[test]
    fn errors_carry_their_message_only_where_the_client_can_read_it() {
        let error = || ReplyBody::Error(DeviceError::new(Errno::NoSpc, "full"));
        assert_eq!(
            encoded(error(), false),
            SimpleReply {
                error: 28,
                cookie: 0x11
            }
            .encode()
        );
        assert_eq!(
            encoded(error(), true),
            chunk_bytes(chunk::FLAG_DONE, chunk::ERROR, b"\0\0\0\x1c\0\x04full")
        );
        let long = ReplyBody::Error(DeviceError::new(Errno::Io, "x".repeat(10_000)));
        assert_eq!(encoded(long, true).len(), 20 + 6 + 4096);
    }

    #[test]
    fn block_status_names_context_length_and_state() {
        let body = ReplyBody::Status(vec![
            Extent {
                length_bytes: 4096,
                hole: false,
                zero: false,
            },
            Extent {
                length_bytes: 512,
                hole: true,
                zero: true,
            },
        ]);
        assert_eq!(
            encoded(body, true),
            chunk_bytes(
                chunk::FLAG_DONE,
                chunk::BLOCK_STATUS,
                &[0, 0, 0, 1, 0, 0, 0x10, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 3]
            )
        );
    }
}
