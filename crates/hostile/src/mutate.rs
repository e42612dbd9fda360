//! Mutations of bytes, the same for the same seed.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// Longest mutant, in bytes.
const MAX_BYTES: usize = 64 << 10;

/// Makes mutants of a set of inputs.
#[derive(Debug)]
pub struct Mutations<'a> {
    inputs: &'a [Vec<u8>],
    random: StdRng,
}

impl<'a> Mutations<'a> {
    /// Of these inputs; without any, of nothing at all.
    #[must_use]
    pub fn new(inputs: &'a [Vec<u8>], seed: u64) -> Self {
        Self {
            inputs,
            random: StdRng::seed_from_u64(seed),
        }
    }

    /// The next mutant.
    pub fn next_mutant(&mut self) -> Vec<u8> {
        let mut bytes = self.pick();
        for _ in 0..self.random.random_range(1..=4) {
            self.change(&mut bytes);
        }
        bytes.truncate(MAX_BYTES);
        bytes
    }

    fn pick(&mut self) -> Vec<u8> {
        match self.inputs.len() {
            0 => Vec::new(),
            count => self.inputs[self.random.random_range(0..count)].clone(),
        }
    }

    fn change(&mut self, bytes: &mut Vec<u8>) {
        let at = self.random.random_range(0..=bytes.len());
        match self.random.random_range(0..8) {
            0 if at < bytes.len() => bytes[at] ^= 1 << self.random.random_range(0..8),
            1 if at < bytes.len() => bytes[at] = self.random.random(),
            2 => bytes.truncate(at),
            3 => bytes.insert(at, self.random.random()),
            4 => self.put_number(bytes, at),
            5 => {
                let end = (at + self.random.random_range(0..32)).min(bytes.len());
                bytes.drain(at..end);
            }
            6 => {
                let end = (at + self.random.random_range(0..32)).min(bytes.len());
                let again = bytes[at..end].to_vec();
                bytes.splice(at..at, again);
            }
            _ => {
                let other = self.pick();
                let from = self.random.random_range(0..=other.len());
                bytes.truncate(at);
                bytes.extend_from_slice(&other[from..]);
            }
        }
    }

    /// Puts a number that is often near a boundary over what is there, in either order of bytes.
    fn put_number(&mut self, bytes: &mut [u8], at: usize) {
        let near = [
            0,
            1,
            0x7f,
            0x80,
            0xff,
            1 << 15,
            1 << 16,
            1 << 31,
            1 << 32,
            1 << 63,
            u64::MAX,
        ];
        let number = near[self.random.random_range(0..near.len())]
            .wrapping_add(self.random.random_range(0..3))
            .wrapping_sub(1);
        let width = [1, 2, 4, 8][self.random.random_range(0..4)];
        let little = number.to_le_bytes();
        let mut word = little[..width].to_vec();
        if self.random.random() {
            word.reverse();
        }
        for (place, byte) in bytes.iter_mut().skip(at).zip(word) {
            *place = byte;
        }
    }
}
