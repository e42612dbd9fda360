//! Constants and fixed-size headers of the NBD protocol.
//!
//! The promise: pure translation between bytes and values, nothing opened, nothing allocated. All integers on the
//! wire are big endian. Names follow the protocol document with the `NBD_` prefix and the group dropped:
//! `NBD_OPT_GO` is [`opt::GO`].

/// First eight bytes a server sends: ASCII `NBDMAGIC`.
pub const INIT_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// Second eight bytes a newstyle server sends, and the start of every option: ASCII `IHAVEOPT`.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Start of every reply to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Start of every request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Start of a request with extended headers.
pub const EXTENDED_REQUEST_MAGIC: u32 = 0x21e4_1c71;
/// Start of a simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Start of a structured reply chunk.
pub const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;
/// Start of a chunk with extended headers.
pub const EXTENDED_REPLY_MAGIC: u32 = 0x6e8a_278c;

/// Longest string the protocol allows (export names, descriptions, contexts, messages), in bytes.
pub const MAX_STRING_BYTES: usize = 4096;
/// Zero padding after the answer to `NBD_OPT_EXPORT_NAME` when `NO_ZEROES` was not agreed.
pub const EXPORT_NAME_PADDING_BYTES: usize = 124;
/// Most descriptors a block status chunk should carry.
pub const MAX_STATUS_DESCRIPTORS: usize = 1 << 20;
/// The one metadata context that the protocol itself defines.
pub const BASE_ALLOCATION: &str = "base:allocation";

/// Handshake flags (server to client) and client flags (client to server) share their bits.
pub mod handshake_flag {
    /// Fixed newstyle negotiation.
    pub const FIXED_NEWSTYLE: u16 = 1 << 0;
    /// No padding after the answer to `NBD_OPT_EXPORT_NAME`.
    pub const NO_ZEROES: u16 = 1 << 1;
}

/// Options of the handshake.
pub mod opt {
    /// Choose an export, without a way to report an error.
    pub const EXPORT_NAME: u32 = 1;
    /// End the session.
    pub const ABORT: u32 = 2;
    /// Name the exports.
    pub const LIST: u32 = 3;
    /// Start TLS.
    pub const STARTTLS: u32 = 5;
    /// Describe an export.
    pub const INFO: u32 = 6;
    /// Describe an export and enter the transmission phase.
    pub const GO: u32 = 7;
    /// Use structured replies.
    pub const STRUCTURED_REPLY: u32 = 8;
    /// Name the metadata contexts of an export.
    pub const LIST_META_CONTEXT: u32 = 9;
    /// Select metadata contexts for block status.
    pub const SET_META_CONTEXT: u32 = 10;
    /// Use extended headers, which include what structured replies are for.
    pub const EXTENDED_HEADERS: u32 = 11;
}

/// Types of replies to options. Errors have bit 31 set.
pub mod rep {
    /// Success, end of the replies to one option.
    pub const ACK: u32 = 1;
    /// One export of a list.
    pub const SERVER: u32 = 2;
    /// One piece of information about an export.
    pub const INFO: u32 = 3;
    /// One metadata context.
    pub const META_CONTEXT: u32 = 4;
    /// The bit that marks an error.
    pub const ERROR_BIT: u32 = 1 << 31;
    /// Option not known.
    pub const ERR_UNSUP: u32 = ERROR_BIT | 1;
    /// Forbidden by the server's policy.
    pub const ERR_POLICY: u32 = ERROR_BIT | 2;
    /// Malformed or not allowed now.
    pub const ERR_INVALID: u32 = ERROR_BIT | 3;
    /// Not possible on this platform.
    pub const ERR_PLATFORM: u32 = ERROR_BIT | 4;
    /// TLS must be started first.
    pub const ERR_TLS_REQD: u32 = ERROR_BIT | 5;
    /// No such export is available.
    pub const ERR_UNKNOWN: u32 = ERROR_BIT | 6;
    /// The server is going down.
    pub const ERR_SHUTDOWN: u32 = ERROR_BIT | 7;
    /// The client must ask for block sizes first.
    pub const ERR_BLOCK_SIZE_REQD: u32 = ERROR_BIT | 8;
    /// Request or reply too large.
    pub const ERR_TOO_BIG: u32 = ERROR_BIT | 9;
    /// Only possible with extended headers, or pointless beside them.
    pub const ERR_EXT_HEADER_REQD: u32 = ERROR_BIT | 10;
}

/// Kinds of information about an export.
pub mod info {
    /// Size and transmission flags.
    pub const EXPORT: u16 = 0;
    /// Name of the export.
    pub const NAME: u16 = 1;
    /// Description for people.
    pub const DESCRIPTION: u16 = 2;
    /// Minimum, preferred and maximum block size.
    pub const BLOCK_SIZE: u16 = 3;
}

/// Transmission flags: what an export can do.
pub mod transmission_flag {
    /// Always set.
    pub const HAS_FLAGS: u16 = 1 << 0;
    /// Writes are refused.
    pub const READ_ONLY: u16 = 1 << 1;
    /// Flush is served.
    pub const SEND_FLUSH: u16 = 1 << 2;
    /// Force unit access is served.
    pub const SEND_FUA: u16 = 1 << 3;
    /// Trim is served.
    pub const SEND_TRIM: u16 = 1 << 5;
    /// Write zeroes is served.
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    /// "Don't fragment" is served on reads.
    pub const SEND_DF: u16 = 1 << 7;
    /// A flush on one connection covers the others.
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    /// Cache (prefetch) is served.
    pub const SEND_CACHE: u16 = 1 << 10;
    /// "Fail rather than be slow" is served on write zeroes.
    pub const SEND_FAST_ZERO: u16 = 1 << 11;
    /// Block status takes a payload that selects among the contexts. Not offered by this server.
    pub const BLOCK_STATUS_PAYLOAD: u16 = 1 << 12;
}

/// Commands of the transmission phase.
pub mod cmd {
    /// Read.
    pub const READ: u16 = 0;
    /// Write; the only command with a payload that this server takes.
    pub const WRITE: u16 = 1;
    /// Soft disconnect; has no reply.
    pub const DISC: u16 = 2;
    /// Make earlier writes durable.
    pub const FLUSH: u16 = 3;
    /// Discard.
    pub const TRIM: u16 = 4;
    /// Prefetch.
    pub const CACHE: u16 = 5;
    /// Write zeroes.
    pub const WRITE_ZEROES: u16 = 6;
    /// Ask which parts are holes.
    pub const BLOCK_STATUS: u16 = 7;
}

/// Flags of commands.
pub mod cmd_flag {
    /// Durable before the reply.
    pub const FUA: u16 = 1 << 0;
    /// Zeroes must be allocated.
    pub const NO_HOLE: u16 = 1 << 1;
    /// At most one content chunk.
    pub const DF: u16 = 1 << 2;
    /// One extent is enough.
    pub const REQ_ONE: u16 = 1 << 3;
    /// Fail rather than write zeroes slowly.
    pub const FAST_ZERO: u16 = 1 << 4;
    /// With extended headers: the length counts payload that follows, not a part of the export.
    pub const PAYLOAD_LEN: u16 = 1 << 5;
}

/// Structured replies: flag and chunk types.
pub mod chunk {
    /// Flag of the last chunk of a reply.
    pub const FLAG_DONE: u16 = 1 << 0;
    /// No content; always last.
    pub const NONE: u16 = 0;
    /// Offset and data.
    pub const OFFSET_DATA: u16 = 1;
    /// Offset and length of a range of zeroes.
    pub const OFFSET_HOLE: u16 = 2;
    /// Extents of one metadata context.
    pub const BLOCK_STATUS: u16 = 5;
    /// Extents of one metadata context with 64-bit fields; only with extended headers.
    pub const BLOCK_STATUS_EXT: u16 = 6;
    /// The bit that marks an error chunk.
    pub const ERROR_BIT: u16 = 1 << 15;
    /// An error with a message.
    pub const ERROR: u16 = ERROR_BIT | 1;
    /// An error with a message and the offset it happened at.
    pub const ERROR_OFFSET: u16 = ERROR_BIT | 2;
}

/// State bits of the context `base:allocation`.
pub mod allocation {
    /// Not allocated.
    pub const HOLE: u32 = 1 << 0;
    /// Reads as zeroes.
    pub const ZERO: u32 = 1 << 1;
}

/// The name of a command for messages.
#[must_use]
pub fn command_name(command: u16) -> &'static str {
    match command {
        cmd::READ => "read",
        cmd::WRITE => "write",
        cmd::DISC => "disconnect",
        cmd::FLUSH => "flush",
        cmd::TRIM => "trim",
        cmd::CACHE => "cache",
        cmd::WRITE_ZEROES => "write zeroes",
        cmd::BLOCK_STATUS => "block status",
        _ => "unknown command",
    }
}

/// The four bytes at the start of a message were not what the protocol requires: the stream can't be followed
/// any further.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("bad magic {found:#x} at the start of a {what}")]
pub struct BadMagic {
    /// The message that was expected.
    pub what: &'static str,
    /// What stood there.
    pub found: u64,
}

// Fixed offsets inside arrays whose length the type guarantees.
fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}
fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
fn be64(bytes: &[u8], at: usize) -> u64 {
    (u64::from(be32(bytes, at)) << 32) | u64::from(be32(bytes, at + 4))
}

/// The form of requests and replies that the handshake agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// Compact requests, simple replies.
    Simple,
    /// Compact requests, structured replies.
    Structured,
    /// Extended headers both ways.
    Extended,
}

impl Framing {
    /// Whether replies come in chunks, which can carry holes, block status and errors with a message.
    #[must_use]
    pub const fn has_chunks(self) -> bool {
        !matches!(self, Self::Simple)
    }

    /// Bytes of the header of a request.
    #[must_use]
    pub const fn request_header_bytes(self) -> usize {
        match self {
            Self::Simple | Self::Structured => RequestHeader::SIZE_BYTES,
            Self::Extended => RequestHeader::EXTENDED_SIZE_BYTES,
        }
    }
}

/// Header of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestHeader {
    /// Bits of [`cmd_flag`].
    pub flags: u16,
    /// One of [`cmd`], or anything else from a hostile client.
    pub command: u16,
    /// The client's opaque mark, repeated in every reply.
    pub cookie: u64,
    /// Start of the range, in bytes.
    pub offset: u64,
    /// Length of the range in bytes; of the payload for a write, and wherever [`cmd_flag::PAYLOAD_LEN`] is set.
    pub length: u64,
}

impl RequestHeader {
    /// Bytes of a compact header.
    pub const SIZE_BYTES: usize = 28;
    /// Bytes of an extended header.
    pub const EXTENDED_SIZE_BYTES: usize = 32;

    /// Bytes of payload that follow this header. A write has its payload also where it lacks
    /// [`cmd_flag::PAYLOAD_LEN`], which extended headers demand: QEMU, at least in version 10.0, leaves it out.
    #[must_use]
    pub const fn payload_bytes(&self, framing: Framing) -> u64 {
        let follows = match framing {
            Framing::Simple | Framing::Structured => self.command == cmd::WRITE,
            Framing::Extended => self.command == cmd::WRITE || self.flags & cmd_flag::PAYLOAD_LEN != 0,
        };
        if follows { self.length } else { 0 }
    }

    /// The extended header as sent.
    #[must_use]
    pub fn encode_extended(&self) -> [u8; Self::EXTENDED_SIZE_BYTES] {
        let mut out = [0; Self::EXTENDED_SIZE_BYTES];
        out[..Self::SIZE_BYTES].copy_from_slice(&self.encode());
        out[0..4].copy_from_slice(&EXTENDED_REQUEST_MAGIC.to_be_bytes());
        out[24..32].copy_from_slice(&self.length.to_be_bytes());
        out
    }

    /// Reads an extended header.
    ///
    /// # Errors
    /// [`BadMagic`] when the stream is not at the start of a request.
    pub fn decode_extended(bytes: &[u8; Self::EXTENDED_SIZE_BYTES]) -> Result<Self, BadMagic> {
        expect_magic32("request with extended headers", EXTENDED_REQUEST_MAGIC, bytes)?;
        Ok(Self {
            flags: be16(bytes, 4),
            command: be16(bytes, 6),
            cookie: be64(bytes, 8),
            offset: be64(bytes, 16),
            length: be64(bytes, 24),
        })
    }

    /// The compact header as sent. It has room for a length of 4 GiB - 1, to which a longer one is cut.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::SIZE_BYTES] {
        let mut out = [0; Self::SIZE_BYTES];
        out[0..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        out[4..6].copy_from_slice(&self.flags.to_be_bytes());
        out[6..8].copy_from_slice(&self.command.to_be_bytes());
        out[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        out[16..24].copy_from_slice(&self.offset.to_be_bytes());
        let length = u32::try_from(self.length).unwrap_or(u32::MAX);
        out[24..28].copy_from_slice(&length.to_be_bytes());
        out
    }

    /// Reads a compact header.
    ///
    /// # Errors
    /// [`BadMagic`] when the stream is not at the start of a request.
    pub fn decode(bytes: &[u8; Self::SIZE_BYTES]) -> Result<Self, BadMagic> {
        expect_magic32("request", REQUEST_MAGIC, bytes)?;
        Ok(Self {
            flags: be16(bytes, 4),
            command: be16(bytes, 6),
            cookie: be64(bytes, 8),
            offset: be64(bytes, 16),
            length: u64::from(be32(bytes, 24)),
        })
    }
}

/// Header of an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionHeader {
    /// One of [`opt`], or anything else from a hostile client.
    pub option: u32,
    /// Bytes of data that follow.
    pub length: u32,
}

impl OptionHeader {
    /// Bytes of an encoded header.
    pub const SIZE_BYTES: usize = 16;

    /// The header as sent.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::SIZE_BYTES] {
        let mut out = [0; Self::SIZE_BYTES];
        out[0..8].copy_from_slice(&OPTION_MAGIC.to_be_bytes());
        out[8..12].copy_from_slice(&self.option.to_be_bytes());
        out[12..16].copy_from_slice(&self.length.to_be_bytes());
        out
    }

    /// Reads a header.
    ///
    /// # Errors
    /// [`BadMagic`] when the stream is not at the start of an option.
    pub fn decode(bytes: &[u8; Self::SIZE_BYTES]) -> Result<Self, BadMagic> {
        expect_magic64("option", OPTION_MAGIC, bytes)?;
        Ok(Self {
            option: be32(bytes, 8),
            length: be32(bytes, 12),
        })
    }
}

/// Header of a reply to an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionReplyHeader {
    /// The option this answers.
    pub option: u32,
    /// One of [`rep`].
    pub kind: u32,
    /// Bytes of data that follow.
    pub length: u32,
}

impl OptionReplyHeader {
    /// Bytes of an encoded header.
    pub const SIZE_BYTES: usize = 20;

    /// The header as sent.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::SIZE_BYTES] {
        let mut out = [0; Self::SIZE_BYTES];
        out[0..8].copy_from_slice(&OPTION_REPLY_MAGIC.to_be_bytes());
        out[8..12].copy_from_slice(&self.option.to_be_bytes());
        out[12..16].copy_from_slice(&self.kind.to_be_bytes());
        out[16..20].copy_from_slice(&self.length.to_be_bytes());
        out
    }

    /// Reads a header.
    ///
    /// # Errors
    /// [`BadMagic`] when the stream is not at the start of a reply.
    pub fn decode(bytes: &[u8; Self::SIZE_BYTES]) -> Result<Self, BadMagic> {
        expect_magic64("reply to an option", OPTION_REPLY_MAGIC, bytes)?;
        Ok(Self {
            option: be32(bytes, 8),
            kind: be32(bytes, 12),
            length: be32(bytes, 16),
        })
    }
}

/// Header of a simple reply, after its magic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SimpleReply {
    /// Zero, or an error number of the protocol.
    pub error: u32,
    /// Mark of the request.
    pub cookie: u64,
}

impl SimpleReply {
    /// Bytes of an encoded header.
    pub const SIZE_BYTES: usize = 16;

    /// The header as sent.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::SIZE_BYTES] {
        let mut out = [0; Self::SIZE_BYTES];
        out[0..4].copy_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
        out[4..8].copy_from_slice(&self.error.to_be_bytes());
        out[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        out
    }
}

/// Header of a structured reply chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkHeader {
    /// [`chunk::FLAG_DONE`] or nothing.
    pub flags: u16,
    /// One of [`chunk`].
    pub kind: u16,
    /// Mark of the request.
    pub cookie: u64,
    /// Bytes of payload that follow.
    pub length: u32,
}

impl ChunkHeader {
    /// Bytes of an encoded header.
    pub const SIZE_BYTES: usize = 20;

    /// The header as sent.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::SIZE_BYTES] {
        let mut out = [0; Self::SIZE_BYTES];
        out[0..4].copy_from_slice(&STRUCTURED_REPLY_MAGIC.to_be_bytes());
        out[4..6].copy_from_slice(&self.flags.to_be_bytes());
        out[6..8].copy_from_slice(&self.kind.to_be_bytes());
        out[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        out[16..20].copy_from_slice(&self.length.to_be_bytes());
        out
    }
}

/// Header of a chunk with extended headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExtendedChunkHeader {
    /// [`chunk::FLAG_DONE`] or nothing.
    pub flags: u16,
    /// One of [`chunk`].
    pub kind: u16,
    /// Mark of the request.
    pub cookie: u64,
    /// The offset that the request named.
    pub offset: u64,
    /// Bytes of payload that follow.
    pub length: u64,
}

impl ExtendedChunkHeader {
    /// Bytes of an encoded header.
    pub const SIZE_BYTES: usize = 32;

    /// The header as sent.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::SIZE_BYTES] {
        let mut out = [0; Self::SIZE_BYTES];
        out[0..4].copy_from_slice(&EXTENDED_REPLY_MAGIC.to_be_bytes());
        out[4..6].copy_from_slice(&self.flags.to_be_bytes());
        out[6..8].copy_from_slice(&self.kind.to_be_bytes());
        out[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        out[16..24].copy_from_slice(&self.offset.to_be_bytes());
        out[24..32].copy_from_slice(&self.length.to_be_bytes());
        out
    }

    /// Reads a header.
    ///
    /// # Errors
    /// [`BadMagic`] when the stream is not at the start of a chunk with extended headers.
    pub fn decode(bytes: &[u8; Self::SIZE_BYTES]) -> Result<Self, BadMagic> {
        expect_magic32("reply with extended headers", EXTENDED_REPLY_MAGIC, bytes)?;
        Ok(Self {
            flags: be16(bytes, 4),
            kind: be16(bytes, 6),
            cookie: be64(bytes, 8),
            offset: be64(bytes, 16),
            length: be64(bytes, 24),
        })
    }
}

/// Header of a simple or structured reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplyHeader {
    /// A simple reply.
    Simple(SimpleReply),
    /// A chunk of a structured reply; four more bytes follow the common sixteen.
    Chunk {
        /// [`chunk::FLAG_DONE`] or nothing.
        flags: u16,
        /// One of [`chunk`].
        kind: u16,
        /// Mark of the request.
        cookie: u64,
    },
}

impl ReplyHeader {
    /// Bytes that both forms have. A chunk's length follows as four bytes more.
    pub const SIZE_BYTES: usize = 16;

    /// Reads the part that both forms have.
    ///
    /// # Errors
    /// [`BadMagic`] when the stream is not at the start of a reply.
    pub fn decode(bytes: &[u8; Self::SIZE_BYTES]) -> Result<Self, BadMagic> {
        match be32(bytes, 0) {
            SIMPLE_REPLY_MAGIC => Ok(Self::Simple(SimpleReply {
                error: be32(bytes, 4),
                cookie: be64(bytes, 8),
            })),
            STRUCTURED_REPLY_MAGIC => Ok(Self::Chunk {
                flags: be16(bytes, 4),
                kind: be16(bytes, 6),
                cookie: be64(bytes, 8),
            }),
            found => Err(BadMagic {
                what: "reply",
                found: u64::from(found),
            }),
        }
    }
}

fn expect_magic32(what: &'static str, magic: u32, bytes: &[u8]) -> Result<(), BadMagic> {
    let found = be32(bytes, 0);
    if found == magic {
        Ok(())
    } else {
        Err(BadMagic {
            what,
            found: u64::from(found),
        })
    }
}

pub(crate) fn expect_magic64(what: &'static str, magic: u64, bytes: &[u8]) -> Result<(), BadMagic> {
    let found = be64(bytes, 0);
    if found == magic {
        Ok(())
    } else {
        Err(BadMagic { what, found })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_magics_are_the_ascii_that_the_protocol_names() {
        assert_eq!(&INIT_MAGIC.to_be_bytes(), b"NBDMAGIC");
        assert_eq!(&OPTION_MAGIC.to_be_bytes(), b"IHAVEOPT");
    }

    #[test]
    fn a_request_header_has_the_documented_bytes() {
        let header = RequestHeader {
            flags: cmd_flag::FUA,
            command: cmd::WRITE,
            cookie: 0x0102_0304_0506_0708,
            offset: 0x1_0000_0000,
            length: 512,
        };
        let bytes = header.encode();
        assert_eq!(
            bytes,
            [
                0x25, 0x60, 0x95, 0x13, 0, 1, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 2,
                0
            ]
        );
        assert_eq!(RequestHeader::decode(&bytes), Ok(header));
    }

    #[test]
    fn extended_headers_have_the_documented_bytes() {
        let header = RequestHeader {
            flags: cmd_flag::FUA | cmd_flag::PAYLOAD_LEN,
            command: cmd::WRITE,
            cookie: 0x0102_0304_0506_0708,
            offset: 0x1_0000_0000,
            length: 0x2_0000_0200,
        };
        let bytes = header.encode_extended();
        assert_eq!(
            bytes,
            [
                0x21, 0xe4, 0x1c, 0x71, 0, 0x21, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0,
                0, 2, 0, 0, 2, 0
            ]
        );
        assert_eq!(RequestHeader::decode_extended(&bytes), Ok(header));
        let chunk = ExtendedChunkHeader {
            flags: chunk::FLAG_DONE,
            kind: chunk::BLOCK_STATUS_EXT,
            cookie: 9,
            offset: 4096,
            length: 24,
        };
        let bytes = chunk.encode();
        assert_eq!(
            bytes,
            [
                0x6e, 0x8a, 0x27, 0x8c, 0, 1, 0, 6, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0,
                0, 0, 0, 0, 0, 24
            ]
        );
        assert_eq!(ExtendedChunkHeader::decode(&bytes), Ok(chunk));
        assert!(ExtendedChunkHeader::decode(&header.encode_extended()).is_err());
        assert!(RequestHeader::decode_extended(&bytes).is_err());
        let mut compact = [0; 32];
        compact[..28].copy_from_slice(&header.encode());
        assert!(
            RequestHeader::decode_extended(&compact).is_err(),
            "a compact header"
        );
    }

    #[test]
    fn a_payload_follows_a_write_or_where_the_flag_says_so() {
        let header = |command, flags| RequestHeader {
            flags,
            command,
            cookie: 0,
            offset: 0,
            length: 7,
        };
        for (framing, command, flags, expected) in [
            (Framing::Simple, cmd::WRITE, 0, 7),
            (Framing::Structured, cmd::WRITE, cmd_flag::PAYLOAD_LEN, 7),
            (Framing::Structured, cmd::READ, cmd_flag::PAYLOAD_LEN, 0),
            (Framing::Extended, cmd::WRITE, cmd_flag::PAYLOAD_LEN, 7),
            (Framing::Extended, cmd::WRITE, 0, 7),
            (Framing::Extended, cmd::BLOCK_STATUS, cmd_flag::PAYLOAD_LEN, 7),
            (Framing::Extended, cmd::READ, cmd_flag::FUA, 0),
        ] {
            assert_eq!(
                header(command, flags).payload_bytes(framing),
                expected,
                "{framing:?} {command} {flags}"
            );
        }
    }

    #[test]
    fn headers_of_options_survive_the_round_trip() {
        let option = OptionHeader {
            option: opt::GO,
            length: 77,
        };
        assert_eq!(OptionHeader::decode(&option.encode()), Ok(option));
        let reply = OptionReplyHeader {
            option: opt::GO,
            kind: rep::ERR_UNKNOWN,
            length: 3,
        };
        assert_eq!(OptionReplyHeader::decode(&reply.encode()), Ok(reply));
        assert_eq!(reply.encode()[..8], [0, 3, 0xe8, 0x89, 4, 0x55, 0x65, 0xa9]);
    }

    #[test]
    fn replies_of_both_forms_are_told_apart() {
        let simple = SimpleReply { error: 5, cookie: 9 };
        assert_eq!(
            ReplyHeader::decode(&simple.encode()),
            Ok(ReplyHeader::Simple(simple))
        );
        let part = ChunkHeader {
            flags: chunk::FLAG_DONE,
            kind: chunk::NONE,
            cookie: 9,
            length: 0,
        };
        let mut first = [0; 16];
        first.copy_from_slice(&part.encode()[..16]);
        assert_eq!(
            ReplyHeader::decode(&first),
            Ok(ReplyHeader::Chunk {
                flags: chunk::FLAG_DONE,
                kind: chunk::NONE,
                cookie: 9
            })
        );
    }

    #[test]
    fn a_wrong_magic_is_named_not_followed() {
        let mut bytes = RequestHeader {
            flags: 0,
            command: 0,
            cookie: 0,
            offset: 0,
            length: 0,
        }
        .encode();
        bytes[3] ^= 1;
        assert_eq!(
            RequestHeader::decode(&bytes),
            Err(BadMagic {
                what: "request",
                found: 0x2560_9512
            })
        );
        assert!(OptionHeader::decode(&[0; 16]).is_err());
        assert!(OptionReplyHeader::decode(&[0; 20]).is_err());
        assert!(ReplyHeader::decode(&[0; 16]).is_err());
    }
}
