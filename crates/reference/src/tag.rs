//! Tags, and the bytes that a write with a tag consists of.
//!
//! Invariants: two of 255 consecutive tags differ in every byte but where a multiple of 255 lies between them; a tag's
//! bytes at one offset say little of those at another, so that misplaced data is noticed. No byte is zero: zeroes come
//! from trimming and from never having been written.

/// The moment at which a write began; no two things begin or end at the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag(pub u64);

/// Values that a byte of a write takes: all but zero.
const VALUES: u64 = 255;

/// Scrambles a number (the finaliser of `splitmix64`).
const fn mixed(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// One scrambled byte for each place in a run of this length.
const RUN: usize = 1 << 12;
const SCRAMBLED: [u8; RUN] = {
    let mut table = [0; RUN];
    let mut at = 0;
    while at < RUN {
        table[at] = mixed(at as u64) as u8;
        at += 1;
    }
    table
};

impl Tag {
    /// The byte that a write with this tag puts at `offset`.
    #[must_use]
    pub fn byte(self, offset: u64) -> u8 {
        let epoch = mixed(self.0 / VALUES);
        let run = mixed((offset >> 12) ^ epoch);
        let scrambled = SCRAMBLED[((offset ^ epoch) as usize) % RUN];
        (1 + (self.0 % VALUES + u64::from(scrambled) + run % VALUES) % VALUES) as u8
    }

    /// The bytes of a write of this length at `offset`.
    #[must_use]
    pub fn bytes(self, offset: u64, length_bytes: u64) -> Vec<u8> {
        let epoch = mixed(self.0 / VALUES);
        let mut bytes = Vec::with_capacity(length_bytes as usize);
        let mut at = offset;
        let end = offset + length_bytes;
        while at < end {
            let run_end = end.min(((at >> 12) + 1) << 12);
            let shift = self.0 % VALUES + mixed((at >> 12) ^ epoch) % VALUES;
            bytes.extend((at..run_end).map(|offset| {
                let scrambled = SCRAMBLED[((offset ^ epoch) as usize) % RUN];
                (1 + (shift + u64::from(scrambled)) % VALUES) as u8
            }));
            at = run_end;
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_of_one_time_differ_in_every_byte_and_none_is_zero() {
        for first in [0, 255, 25_500] {
            for offset in [0, 1, 4095, 4096, 1 << 40] {
                let mut seen = std::collections::BTreeSet::new();
                for tag in first..first + VALUES {
                    let byte = Tag(tag).byte(offset);
                    assert!(byte != 0 && seen.insert(byte), "tag {tag} at {offset}");
                }
            }
        }
    }

    #[test]
    fn the_same_write_looks_different_in_another_place_and_at_another_time() {
        let here = Tag(300).bytes(0, 64);
        for other in [
            Tag(300).bytes(4096, 64),
            Tag(300).bytes(512, 64),
            Tag(555).bytes(0, 64),
        ] {
            let same = here
                .iter()
                .zip(&other)
                .filter(|(left, right)| left == right)
                .count();
            assert!(same < 16, "{same} of 64 bytes are the same");
        }
        for offset in [0, 4000, 4096, 8190] {
            let bytes = Tag(7).bytes(offset, 200);
            assert!(
                bytes
                    .iter()
                    .zip(offset..)
                    .all(|(byte, at)| *byte == Tag(7).byte(at))
            );
        }
    }
}
