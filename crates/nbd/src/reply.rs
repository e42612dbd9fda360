//! Encoding of replies.
//!
//! The promise: a reply becomes valid frames of the form that the handshake agreed on, with payloads passed on
//! uncopied. Without structured replies everything is a simple reply. With them, data, block status and errors
//! are structured, and the success of a command without data stays a simple reply, which is the shorter of the
//! two forms that the protocol allows.

use crate::device::{DeviceError, Errno, Extent, ReadExtent, wire_string};
use crate::proto::{ChunkHeader, SimpleReply, allocation, chunk};
use crate::wire::Batch;

/// The number that names `base:allocation` in this server's replies.
pub(crate) const ALLOCATION_CONTEXT_ID: u32 = 1;

/// A reply to one request.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) cookie: u64,
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
    /// At least one extent, none longer than 4 GiB - 1.
    Status(Vec<Extent>),
    Error(DeviceError),
}

impl Reply {
    /// Appends the frames of this reply.
    pub(crate) fn encode(self, structured: bool, batch: &mut Batch) {
        let cookie = self.cookie;
        match self.body {
            ReplyBody::Done => batch.put_head(&SimpleReply { error: 0, cookie }.encode()),
            ReplyBody::Data {
                offset,
                extents,
                fragment,
            } if structured => {
                encode_chunks(cookie, offset, extents, fragment, batch);
            }
            ReplyBody::Data { extents, .. } => {
                batch.put_head(&SimpleReply { error: 0, cookie }.encode());
                extents.into_iter().for_each(|extent| put_extent(extent, batch));
            }
            ReplyBody::Status(extents) if structured => encode_status(cookie, &extents, batch),
            // Validation lets no block status pass without structured replies.
            ReplyBody::Status(_) => {
                batch.put_head(
                    &SimpleReply {
                        error: Errno::Inval.code(),
                        cookie,
                    }
                    .encode(),
                );
            }
            ReplyBody::Error(error) if structured => encode_error(cookie, &error, batch),
            ReplyBody::Error(error) => {
                batch.put_head(
                    &SimpleReply {
                        error: error.errno.code(),
                        cookie,
                    }
                    .encode(),
                );
            }
        }
    }
}

fn put_extent(extent: ReadExtent, batch: &mut Batch) {
    match extent {
        ReadExtent::Data(data) => batch.put_payload(data),
        ReadExtent::Zeroes { length_bytes } => batch.put_zeroes(length_bytes as usize),
    }
}

/// Neighbouring pieces of data share a chunk; a hole is one of its own. With `fragment` off, everything is one
/// data chunk with its zeroes spelled out.
fn encode_chunks(cookie: u64, offset: u64, extents: Vec<ReadExtent>, fragment: bool, batch: &mut Batch) {
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
        let none = ChunkHeader {
            flags: chunk::FLAG_DONE,
            kind: chunk::NONE,
            cookie,
            length: 0,
        };
        batch.put_head(&none.encode());
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
            batch.put_head(
                &ChunkHeader {
                    flags,
                    kind: chunk::OFFSET_HOLE,
                    cookie,
                    length: 12,
                }
                .encode(),
            );
            batch.put_head(&at.to_be_bytes());
            batch.put_head(&length.to_be_bytes());
        } else {
            let header = ChunkHeader {
                flags,
                kind: chunk::OFFSET_DATA,
                cookie,
                length: length + 8,
            };
            batch.put_head(&header.encode());
            batch.put_head(&at.to_be_bytes());
            run_pieces.cloned().for_each(|extent| put_extent(extent, batch));
        }
        at += run.length_bytes;
    }
}

fn encode_status(cookie: u64, extents: &[Extent], batch: &mut Batch) {
    let length = 4 + 8 * extents.len() as u32;
    let header = ChunkHeader {
        flags: chunk::FLAG_DONE,
        kind: chunk::BLOCK_STATUS,
        cookie,
        length,
    };
    batch.put_head(&header.encode());
    batch.put_head(&ALLOCATION_CONTEXT_ID.to_be_bytes());
    for extent in extents {
        let mut state = 0;
        if extent.hole {
            state |= allocation::HOLE;
        }
        if extent.zero {
            state |= allocation::ZERO;
        }
        batch.put_head(&(extent.length_bytes as u32).to_be_bytes());
        batch.put_head(&state.to_be_bytes());
    }
}

fn encode_error(cookie: u64, error: &DeviceError, batch: &mut Batch) {
    let message = wire_string(&error.message);
    let length = 6 + message.len() as u32;
    let header = ChunkHeader {
        flags: chunk::FLAG_DONE,
        kind: chunk::ERROR,
        cookie,
        length,
    };
    batch.put_head(&header.encode());
    batch.put_head(&error.errno.code().to_be_bytes());
    batch.put_head(&(message.len() as u16).to_be_bytes());
    batch.put_head(message.as_bytes());
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn encoded(body: ReplyBody, structured: bool) -> Vec<u8> {
        let mut batch = Batch::default();
        Reply { cookie: 0x11, body }.encode(structured, &mut batch);
        batch.to_vec()
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
