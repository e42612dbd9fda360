//! Which blocks of a layer differ from its parent: one bit per block of [`BLOCK_BYTES`].
//!
//! Bits past the end read as 0. The byte form (bit 0 of byte 0 is block 0) is part of the format.

/// Bytes of a block.
pub(crate) const BLOCK_BYTES: u64 = 4096;

/// A set of blocks.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Bitmap {
    bytes: Vec<u8>,
}

impl Bitmap {
    /// No block of `blocks`.
    pub(crate) fn empty(blocks: u64) -> Self {
        Self {
            bytes: vec![0; blocks.div_ceil(8) as usize],
        }
    }

    /// From the byte form.
    pub(crate) fn from_bytes(bytes: Vec<u8>) -> Self {
        Self { bytes }
    }

    /// The byte form.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Whether `block` is in.
    pub(crate) fn has(&self, block: u64) -> bool {
        let byte = self.bytes.get((block / 8) as usize).copied().unwrap_or(0);
        byte & (1 << (block % 8)) != 0
    }

    /// Puts `block` in; tells whether it was out. Blocks past the end cannot be put in.
    pub(crate) fn insert(&mut self, block: u64) -> bool {
        match self.bytes.get_mut((block / 8) as usize) {
            Some(byte) => {
                let was = *byte;
                *byte |= 1 << (block % 8);
                was != *byte
            }
            None => false,
        }
    }

    /// Adds all blocks of `other`, growing as needed.
    pub(crate) fn merge(&mut self, other: &Bitmap) {
        if self.bytes.len() < other.bytes.len() {
            self.bytes.resize(other.bytes.len(), 0);
        }
        for (byte, more) in self.bytes.iter_mut().zip(&other.bytes) {
            *byte |= more;
        }
    }

    /// How many of the first `blocks` are in.
    pub(crate) fn count(&self, blocks: u64) -> u64 {
        (0..blocks).filter(|block| self.has(*block)).count() as u64
    }
}

/// Blocks that begin before `bytes`.
pub(crate) fn blocks_of(bytes: u64) -> u64 {
    bytes.div_ceil(BLOCK_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_come_back_as_they_were_put_in() {
        let mut map = Bitmap::empty(20);
        assert!(map.insert(0) && map.insert(9) && map.insert(19) && !map.insert(9));
        assert!(!map.insert(24), "past the end");
        let back = Bitmap::from_bytes(map.bytes().to_vec());
        assert_eq!(
            (0..40).filter(|block| back.has(*block)).collect::<Vec<_>>(),
            [0, 9, 19]
        );
        assert_eq!(back.count(10), 2);
        let mut wider = Bitmap::empty(1);
        wider.merge(&back);
        assert_eq!(wider, back);
    }
}
