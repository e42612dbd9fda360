//! [`Decoder`]: reads Ceph's encoding from untrusted bytes.
//!
//! Keeps: every read is checked against the end of the innermost versioned section. Strings must be UTF-8 (Ceph takes
//! any bytes; the store contract names objects by `str`), values that may be anything are read as bytes.

use std::fmt;

use bytes::Bytes;

/// Why bytes could not be decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DecodeErrorKind {
    /// The data ends before the field does.
    Truncated {
        /// Bytes the field needs.
        needed: u64,
        /// Bytes that are left.
        left: u64,
    },
    /// The writer says that decoders older than `compat` must not try.
    TooNew {
        /// Oldest version that may decode this.
        compat: u8,
        /// Newest version known here.
        supported: u8,
    },
    /// A string is not UTF-8.
    NotUtf8,
    /// A value outside what the field allows.
    BadValue(u64),
    /// A checksum does not match the bytes it covers.
    BadChecksum {
        /// What is written.
        stored: u32,
        /// What the bytes give.
        computed: u32,
    },
}

/// Bytes that do not decode: why, which field, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecodeError {
    /// Why.
    pub kind: DecodeErrorKind,
    /// Field being read, or the structure when its frame is at fault.
    pub field: &'static str,
    /// Offset of the field from the start of the data, in bytes.
    pub offset: usize,
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, field, offset } = self;
        write!(f, "field '{field}' at byte {offset}: ")?;
        match kind {
            DecodeErrorKind::Truncated { needed, left } => {
                write!(f, "needs {needed} bytes, {left} are left")
            }
            DecodeErrorKind::TooNew { compat, supported } => {
                write!(
                    f,
                    "written for decoders of version {compat} or newer, this one knows {supported}"
                )
            }
            DecodeErrorKind::NotUtf8 => f.write_str("not UTF-8"),
            DecodeErrorKind::BadValue(value) => write!(f, "value {value} is not allowed"),
            DecodeErrorKind::BadChecksum { stored, computed } => {
                write!(f, "checksum is {stored:#010x}, the bytes give {computed:#010x}")
            }
        }
    }
}

impl std::error::Error for DecodeError {}

/// A value that can be read from Ceph's encoding.
pub trait Decode: Sized {
    /// Fewest bytes an encoded value can have (at least 1): bounds the counts of collections.
    const MIN_BYTES: usize = 1;

    /// Reads one value.
    fn decode(decoder: &mut Decoder<'_>) -> Result<Self, DecodeError>;

    /// Reads one value from the start of `data`; what follows it is ignored, as Ceph does.
    fn from_slice(data: &[u8]) -> Result<Self, DecodeError> {
        Self::decode(&mut Decoder::new(data))
    }
}

/// A cursor over untrusted bytes.
#[derive(Debug, Clone)]
pub struct Decoder<'a> {
    data: &'a [u8],
    position: usize,
    field: &'static str,
}

impl<'a> Decoder<'a> {
    /// Starts at the first byte of `data`.
    pub fn new(data: &'a [u8]) -> Self {
        Self {
            data,
            position: 0,
            field: "start",
        }
    }

    /// Offset of the next byte.
    pub fn offset(&self) -> usize {
        self.position
    }

    /// Bytes left (in the innermost section).
    pub fn remaining(&self) -> usize {
        self.data.len() - self.position
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.remaining() == 0
    }

    /// Reads one value, naming it in errors.
    pub fn get<T: Decode>(&mut self, field: &'static str) -> Result<T, DecodeError> {
        self.field = field;
        T::decode(self)
    }

    /// Reads one value if anything is left: fields that newer writers append to a payload without a frame.
    pub fn get_trailing<T: Decode>(&mut self, field: &'static str) -> Result<Option<T>, DecodeError> {
        if self.is_empty() {
            return Ok(None);
        }
        self.get(field).map(Some)
    }

    /// The next `length` bytes.
    pub fn take(&mut self, length: usize) -> Result<&'a [u8], DecodeError> {
        let left = self.remaining();
        if length > left {
            return Err(self.error(DecodeErrorKind::Truncated {
                needed: length as u64,
                left: left as u64,
            }));
        }
        let taken = &self.data[self.position..self.position + length];
        self.position += length;
        Ok(taken)
    }

    /// Everything that is left (in the innermost section).
    pub fn take_rest(&mut self) -> &'a [u8] {
        let rest = &self.data[self.position..];
        self.position = self.data.len();
        rest
    }

    /// A length-prefixed run of bytes, borrowed.
    pub fn bytes(&mut self, field: &'static str) -> Result<&'a [u8], DecodeError> {
        self.field = field;
        self.take_prefixed()
    }

    pub(super) fn take_prefixed(&mut self) -> Result<&'a [u8], DecodeError> {
        let length = u32::decode(self)?;
        self.take(length as usize)
    }

    /// The number of items of a collection, refused when that many could not fit into what is left.
    pub(super) fn count(&mut self, item_min_bytes: usize) -> Result<usize, DecodeError> {
        let start = self.position;
        let count = u32::decode(self)? as usize;
        let needed = count as u64 * item_min_bytes.max(1) as u64;
        let left = self.remaining() as u64;
        if needed > left {
            self.position = start;
            return Err(self.error(DecodeErrorKind::Truncated { needed, left }));
        }
        Ok(count)
    }

    /// Reads a versioned section: `read` gets its version, its compat version and a decoder that ends where the
    /// section does. What `read` leaves unread (fields of newer writers) is skipped.
    pub fn frame<T>(
        &mut self,
        name: &'static str,
        supported: u8,
        read: impl FnOnce(u8, u8, &mut Decoder<'a>) -> Result<T, DecodeError>,
    ) -> Result<T, DecodeError> {
        self.field = name;
        let start = self.position;
        let version = u8::decode(self)?;
        let compat = u8::decode(self)?;
        if supported < compat {
            self.position = start;
            return Err(self.error(DecodeErrorKind::TooNew { compat, supported }));
        }
        let length = u32::decode(self)? as usize;
        let body_start = self.position;
        self.take(length)?;
        let mut body = Decoder {
            data: &self.data[..body_start + length],
            position: body_start,
            field: name,
        };
        read(version, compat, &mut body)
    }

    /// An error at the current field and offset.
    pub fn error(&self, kind: DecodeErrorKind) -> DecodeError {
        DecodeError {
            kind,
            field: self.field,
            offset: self.position,
        }
    }

    /// A value just read that its field does not allow.
    pub fn bad_value(&self, field: &'static str, value: u64) -> DecodeError {
        DecodeError {
            kind: DecodeErrorKind::BadValue(value),
            field,
            offset: self.position,
        }
    }
}

impl Decode for Bytes {
    const MIN_BYTES: usize = 4;

    fn decode(decoder: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        decoder.take_prefixed().map(Bytes::copy_from_slice)
    }
}

impl Decode for String {
    const MIN_BYTES: usize = 4;

    fn decode(decoder: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        let bytes = decoder.take_prefixed()?;
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text.to_owned()),
            Err(_) => Err(decoder.error(DecodeErrorKind::NotUtf8)),
        }
    }
}
