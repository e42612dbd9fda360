//! Bytes of one object version as shared blocks: a copy costs pointers, holes cost nothing.
//!
//! Invariant: bytes of blocks past `size_bytes` are zero, so that growing shows zeros.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

const BLOCK_BYTES: u64 = 4096;

type Block = [u8; BLOCK_BYTES as usize];

/// Bytes with holes.
#[derive(Debug, Clone, Default)]
pub(super) struct SparseBytes {
    size_bytes: u64,
    blocks: BTreeMap<u64, Arc<Block>>,
}

/// The part of `offset..end` in each block that it touches: block number, start and end in the block.
fn pieces(offset: u64, end: u64) -> impl Iterator<Item = (u64, usize, usize)> {
    let mut at = offset;
    std::iter::from_fn(move || {
        (at < end).then(|| {
            let (block, start) = (at / BLOCK_BYTES, at % BLOCK_BYTES);
            let stop = (start + (end - at)).min(BLOCK_BYTES);
            at += stop - start;
            (block, start as usize, stop as usize)
        })
    })
}

impl SparseBytes {
    /// Size in bytes.
    pub(super) fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Bytes that blocks hold.
    pub(super) fn allocated_bytes(&self) -> u64 {
        self.blocks.len() as u64 * BLOCK_BYTES
    }

    /// Writes, growing as needed. The caller has checked that the end does not overflow.
    pub(super) fn write(&mut self, offset: u64, data: &[u8]) {
        let end = offset + data.len() as u64;
        let mut rest = data;
        for (number, start, stop) in pieces(offset, end) {
            let (now, later) = rest.split_at(stop - start);
            let block = self
                .blocks
                .entry(number)
                .or_insert_with(|| Arc::new([0; BLOCK_BYTES as usize]));
            Arc::make_mut(block)[start..stop].copy_from_slice(now);
            rest = later;
        }
        if !data.is_empty() {
            self.size_bytes = self.size_bytes.max(end);
        }
    }

    /// Makes a range zero, inside the size.
    pub(super) fn zero(&mut self, offset: u64, length_bytes: u64) {
        let end = offset.saturating_add(length_bytes).min(self.size_bytes);
        for (number, start, stop) in pieces(offset, end) {
            let rest_is_hole = number * BLOCK_BYTES + stop as u64 >= self.size_bytes;
            if start == 0 && (stop as u64 == BLOCK_BYTES || rest_is_hole) {
                self.blocks.remove(&number);
            } else if let Some(block) = self.blocks.get_mut(&number) {
                Arc::make_mut(block)[start..stop].fill(0);
            }
        }
    }

    /// Sets the size.
    pub(super) fn truncate(&mut self, size_bytes: u64) {
        if size_bytes < self.size_bytes {
            self.zero(size_bytes, self.size_bytes - size_bytes);
        }
        self.size_bytes = size_bytes;
    }

    /// Bytes, short at the end.
    pub(super) fn read(&self, offset: u64, length_bytes: u64) -> Bytes {
        let end = offset.saturating_add(length_bytes).min(self.size_bytes);
        let mut data = BytesMut::with_capacity(end.saturating_sub(offset) as usize);
        for (number, start, stop) in pieces(offset, end) {
            match self.blocks.get(&number) {
                Some(block) => data.extend_from_slice(&block[start..stop]),
                None => data.resize(data.len() + stop - start, 0),
            }
        }
        data.freeze()
    }

    /// The runs of a range that blocks hold.
    pub(super) fn sparse_read(&self, offset: u64, length_bytes: u64) -> Vec<(u64, Bytes)> {
        let end = offset.saturating_add(length_bytes).min(self.size_bytes);
        let mut runs: Vec<(u64, BytesMut)> = Vec::new();
        for (number, start, stop) in pieces(offset, end) {
            let Some(block) = self.blocks.get(&number) else {
                continue;
            };
            let at = number * BLOCK_BYTES + start as u64;
            match runs.last_mut() {
                Some((first, run)) if *first + run.len() as u64 == at => {
                    run.extend_from_slice(&block[start..stop])
                }
                _ => runs.push((at, BytesMut::from(&block[start..stop]))),
            }
        }
        runs.into_iter().map(|(at, run)| (at, run.freeze())).collect()
    }

    /// Whether the bytes at `offset` equal `expected`; bytes past the end count as zero.
    pub(super) fn equals(&self, offset: u64, expected: &[u8]) -> bool {
        let found = self.read(offset, expected.len() as u64);
        let (head, tail) = expected.split_at(found.len());
        head == &found[..] && tail.iter().all(|byte| *byte == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_cost_nothing_and_read_as_zero() {
        let mut data = SparseBytes::default();
        data.write(1 << 20, b"x");
        assert_eq!(data.allocated_bytes(), BLOCK_BYTES);
        assert_eq!(data.read((1 << 20) - 2, 9), &b"\0\0x"[..]);
        assert_eq!(
            data.sparse_read(0, 2 << 20),
            vec![(1 << 20, Bytes::from_static(b"x"))]
        );
    }

    #[test]
    fn bytes_cut_off_do_not_come_back() {
        let mut data = SparseBytes::default();
        data.write(0, &[1; 5000]);
        data.truncate(10);
        data.truncate(5000);
        assert!(data.read(10, 5000).iter().all(|byte| *byte == 0));
        assert_eq!(data.allocated_bytes(), BLOCK_BYTES);
        data.zero(0, u64::MAX);
        assert_eq!((data.allocated_bytes(), data.size_bytes()), (0, 5000));
    }

    #[test]
    fn a_copy_does_not_see_later_writes() {
        let mut data = SparseBytes::default();
        data.write(0, &[1; 9000]);
        let copy = data.clone();
        data.write(4000, &[2; 200]);
        assert!(copy.equals(0, &[1; 9000]));
        assert!(data.equals(4000, &[2; 200]));
    }
}
