//! [`Encoder`]: writes Ceph's encoding. Cannot fail: lengths past 32 bits cannot be built by this crate's callers, whose
//! values are bounded far below (object sizes, names, at most 256,000,000 two-bit states).

use bytes::Bytes;

/// A value that can be written in Ceph's encoding.
pub trait Encode {
    /// Appends the value.
    fn encode(&self, encoder: &mut Encoder);

    /// The value alone.
    fn to_bytes(&self) -> Bytes {
        let mut encoder = Encoder::new();
        self.encode(&mut encoder);
        encoder.finish()
    }
}

impl<T: Encode + ?Sized> Encode for &T {
    fn encode(&self, encoder: &mut Encoder) {
        (**self).encode(encoder);
    }
}

/// A growing buffer.
#[derive(Debug, Default)]
pub struct Encoder {
    buffer: Vec<u8>,
}

impl Encoder {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a value.
    pub fn put(&mut self, value: impl Encode) -> &mut Self {
        value.encode(self);
        self
    }

    /// Appends bytes as they are, without a length.
    pub fn put_raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.buffer.extend_from_slice(bytes);
        self
    }

    /// Appends length-prefixed bytes.
    pub fn put_bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.put_length(bytes.len());
        self.put_raw(bytes)
    }

    pub(super) fn put_length(&mut self, length: usize) {
        debug_assert!(u32::try_from(length).is_ok(), "length {length} past 32 bits");
        self.put_raw(&(length as u32).to_le_bytes());
    }

    /// Appends a versioned section whose content `write` gives.
    pub fn frame(&mut self, version: u8, compat: u8, write: impl FnOnce(&mut Encoder)) -> &mut Self {
        self.put_raw(&[version, compat]);
        let length_at = self.buffer.len();
        self.put_raw(&[0; 4]);
        write(self);
        let length = self.buffer.len() - length_at - 4;
        self.buffer[length_at..length_at + 4].copy_from_slice(&(length as u32).to_le_bytes());
        self
    }

    /// What was written.
    pub fn finish(self) -> Bytes {
        self.buffer.into()
    }

    /// What was written, as a vector.
    pub fn into_vec(self) -> Vec<u8> {
        self.buffer
    }
}
