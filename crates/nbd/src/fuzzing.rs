//! Doors for tests that hand any bytes to the parsers of this crate, which are otherwise its own business.
//!
//! Promise: each function takes any bytes and returns; it panics only where a parser breaks a promise that the rest of
//! the crate relies on. Whole conversations are driven through [`Server`](crate::Server) and [`client`](crate::client).

use crate::device::BlockSizes;
use crate::option::{self, Info, InfoRequest, MetaRequest};
use crate::proto::{
    BadMagic, ExtendedChunkHeader, Framing, MAX_STRING_BYTES, OptionHeader, OptionReplyHeader, ReplyHeader,
    RequestHeader,
};
use crate::request::{Command, Limits, validate};

/// Data of options and of their replies, through every parser there is; what one takes is encoded and parsed again.
///
/// # Panics
/// When a parsed value does not survive its encoding.
pub fn option_data(data: &[u8]) {
    if let Ok(request) = InfoRequest::parse(data) {
        assert!(request.name.len() <= MAX_STRING_BYTES);
        assert_eq!(InfoRequest::parse(&request.encode()), Ok(request));
    }
    if let Ok(request) = MetaRequest::parse(data) {
        // Every query has its length at least.
        assert!(request.queries as usize <= data.len() / 4);
    }
    if let Ok((name, description)) = option::parse_server(data) {
        assert!(name.len().max(description.len()) <= MAX_STRING_BYTES);
    }
    match Info::parse(data) {
        Ok(Info::Other) | Err(_) => {}
        Ok(info) => assert_eq!(Info::parse(&info.encode()), Ok(info)),
    }
    if let Ok((_, name)) = option::parse_meta_context(data) {
        assert!(name.len() <= MAX_STRING_BYTES);
    }
}

/// Headers of fixed size, of both directions: what is decoded encodes to the bytes that it came from.
///
/// # Panics
/// When it does not.
pub fn headers(data: &[u8]) {
    header(data, RequestHeader::decode, RequestHeader::encode);
    header(
        data,
        RequestHeader::decode_extended,
        RequestHeader::encode_extended,
    );
    header(data, OptionHeader::decode, OptionHeader::encode);
    header(data, OptionReplyHeader::decode, OptionReplyHeader::encode);
    header(data, ExtendedChunkHeader::decode, ExtendedChunkHeader::encode);
    let _ = data.first_chunk().map(ReplyHeader::decode);
}

fn header<const SIZE: usize, T>(
    data: &[u8],
    decode: fn(&[u8; SIZE]) -> Result<T, BadMagic>,
    encode: fn(&T) -> [u8; SIZE],
) {
    if let Some(bytes) = data.first_chunk()
        && let Ok(header) = decode(bytes)
    {
        assert_eq!(encode(&header), *bytes);
    }
}

/// One request, judged as one to a device that the first bytes describe.
///
/// # Panics
/// When a range is let through that the device does not have, or that its block sizes forbid.
pub fn request(data: &[u8]) {
    let Some(([flags, minimum, size @ ..], rest)) = data.split_first_chunk::<10>() else {
        return;
    };
    let framing = match flags >> 2 & 3 {
        0 => Framing::Simple,
        1 => Framing::Structured,
        _ => Framing::Extended,
    };
    let limits = Limits {
        size_bytes: u64::from_be_bytes(*size),
        read_only: flags & 1 != 0,
        sizes: BlockSizes {
            minimum: 1 << (minimum % 17),
            preferred: 1 << 16,
            maximum: 1 << 25,
        },
        framing,
        allocation: flags & 2 != 0,
    };
    let header = match framing {
        Framing::Extended => rest.first_chunk().map(RequestHeader::decode_extended),
        Framing::Simple | Framing::Structured => rest.first_chunk().map(RequestHeader::decode),
    };
    let Some(Ok(header)) = header else { return };
    // What is read behind a header is bounded by what its length says, whatever the verdict.
    assert!(header.payload_bytes(framing) <= header.length);
    let Ok(command) = validate(&header, &limits) else {
        return;
    };
    let (offset, length, writes) = match command {
        Command::Read { offset, length, .. } => (offset, u64::from(length), false),
        Command::Write { offset, length, .. } => (offset, u64::from(length), true),
        Command::Trim { offset, length, .. } | Command::WriteZeroes { offset, length, .. } => {
            (offset, length, true)
        }
        Command::Cache { offset, length } | Command::BlockStatus { offset, length, .. } => {
            (offset, length, false)
        }
        Command::Flush | Command::Disconnect => return,
    };
    let end = offset.checked_add(length);
    assert!(end.is_some_and(|end| end <= limits.size_bytes), "{command:?}");
    assert!(!(writes && limits.read_only), "{command:?}");
    let minimum = u64::from(limits.sizes.minimum);
    assert!(
        offset.is_multiple_of(minimum) && length.is_multiple_of(minimum),
        "{command:?}"
    );
    if matches!(command, Command::Read { .. } | Command::Write { .. }) {
        assert!(length <= u64::from(limits.sizes.maximum), "{command:?}");
    }
}
