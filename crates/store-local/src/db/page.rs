//! The checksum at the end of every page of a database: what it is made of, and where it does not fit.
//!
//! Bytes in, answers out; [`kept`] and [`misfits`] look at a file, which may be in use ([`super::raw`]). docs/format-local.md, 3.1 is the
//! contract. Does not know SQLite's way of reading and writing ([`super::checked`] does), nor tables.

use std::io;
use std::path::Path;

use super::raw::Raw;

/// Bytes of a page, checksum included.
pub(crate) const PAGE: usize = 4096;
/// Bytes at the end of a page that SQLite leaves to its file system layer.
pub(crate) const RESERVED: usize = 8;
/// What a database begins with.
const MAGIC: &[u8; 16] = b"SQLite format 3\0";
/// Bytes of the header that are looked at.
pub(crate) const HEADER: usize = 100;
/// Where the header says how long pages are, and how much of each is reserved.
const PAGE_SIZE_AT: usize = 16;
const RESERVED_AT: usize = 20;

/// Whether a database has checksums, as its header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kept {
    /// Every page has one.
    Checksums,
    /// It is of before they were, or of another program.
    Nothing,
    /// Its header is neither: damaged.
    Damaged,
    /// There is no header yet.
    Unknown,
}

/// What the first bytes of a database say; at least [`HEADER`] of them, else [`Kept::Unknown`]. Given all of the first page, a flip
/// of the very byte that says so is noticed.
pub(crate) fn judge(head: &[u8]) -> Kept {
    if head.len() < HEADER || head[..HEADER].iter().all(|byte| *byte == 0) {
        return Kept::Unknown;
    }
    if &head[..MAGIC.len()] != MAGIC {
        // SQLite itself says so, better.
        return Kept::Nothing;
    }
    let size = u16::from_be_bytes([head[PAGE_SIZE_AT], head[PAGE_SIZE_AT + 1]]);
    match (usize::from(size), usize::from(head[RESERVED_AT])) {
        (PAGE, RESERVED) => Kept::Checksums,
        (PAGE, 0) if !fits_but_for_its_header(head) => Kept::Nothing,
        _ => Kept::Damaged,
    }
}

fn fits_but_for_its_header(head: &[u8]) -> bool {
    head.get(..PAGE).is_some_and(|page| {
        let mut page = page.to_vec();
        page[RESERVED_AT] = RESERVED as u8;
        fits(0, &page)
    })
}

/// The checksum of page `number`, from 0: over all of it but its reserved end, and its number, so that pages in each
/// other's place are noticed. Each step is a bijection, so one changed word always changes it.
fn checksum(number: u64, page: &[u8]) -> u64 {
    sum_of(number, &page[..PAGE - RESERVED])
}

/// The checksum of `bytes`, whose length is a multiple of eight, and of a number.
pub(super) fn sum_of(number: u64, bytes: &[u8]) -> u64 {
    const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut sum = (number ^ 0x5bd1_e995_0000_0001).wrapping_mul(ODD);
    for word in bytes.as_chunks::<8>().0 {
        sum = (sum ^ u64::from_le_bytes(*word)).wrapping_mul(ODD);
        sum ^= sum >> 29;
    }
    sum ^ sum >> 32
}

/// Puts the checksum into page `number`, which has [`PAGE`] bytes.
pub(crate) fn stamp(number: u64, page: &mut [u8]) {
    let sum = checksum(number, page);
    page[PAGE - RESERVED..PAGE].copy_from_slice(&sum.to_le_bytes());
}

/// Whether page `number` has its checksum.
pub(crate) fn fits(number: u64, page: &[u8]) -> bool {
    page.get(PAGE - RESERVED..PAGE) == Some(&checksum(number, page).to_le_bytes()[..])
}

/// Whether the database at `path` has checksums.
pub(crate) fn kept(path: &Path) -> io::Result<Kept> {
    let mut page = vec![0; PAGE];
    let have = Raw::open(path)?.read_at(&mut page, 0)?;
    Ok(judge(&page[..have]))
}

/// Numbers of pages, from 0, whose checksums do not fit, at most `max` of them. Pages that were given out and never written hold
/// zeros and are passed over: whoever needed one would be told. A page that somebody is writing just now is looked at again.
pub(crate) fn misfits(path: &Path, max: usize) -> io::Result<Vec<u64>> {
    const LOOKS: u32 = 5;
    let mut file = Raw::open(path)?;
    let mut page = vec![0; PAGE];
    let mut found = Vec::new();
    let mut number = 0;
    while found.len() < max {
        let mut looks = 0;
        loop {
            let have = file.read_at(&mut page, number * PAGE as u64)?;
            if have == 0 {
                return Ok(found);
            }
            if have == PAGE && (fits(number, &page) || page.iter().all(|byte| *byte == 0)) {
                break;
            }
            looks += 1;
            if looks == LOOKS {
                found.push(number);
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        number += 1;
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(seed: u64) -> Vec<u8> {
        let mut page: Vec<u8> = (0..PAGE as u64)
            .map(|at| (at.wrapping_mul(seed | 1) >> 3) as u8)
            .collect();
        stamp(3, &mut page);
        page
    }

    #[test]
    fn every_flipped_bit_and_every_other_place_is_noticed() {
        let page = page(77);
        assert!(fits(3, &page));
        assert!(!fits(4, &page) && !fits(2, &page), "in another's place");
        for at in 0..PAGE {
            for bit in 0..8 {
                let mut damaged = page.clone();
                damaged[at] ^= 1 << bit;
                assert!(!fits(3, &damaged), "byte {at} bit {bit}");
            }
        }
        assert!(!fits(3, &page[..PAGE - 1]));
    }

    #[test]
    fn a_header_that_lost_the_word_that_there_are_checksums_is_damaged_not_old() {
        let mut page = vec![0; PAGE];
        page[..16].copy_from_slice(MAGIC);
        page[PAGE_SIZE_AT] = 16;
        assert_eq!(judge(&page), Kept::Nothing);
        page[RESERVED_AT] = RESERVED as u8;
        page[30] = 9;
        stamp(0, &mut page);
        assert_eq!(judge(&page), Kept::Checksums);
        page[RESERVED_AT] = 0;
        assert_eq!(judge(&page), Kept::Damaged);
        page[RESERVED_AT] = 12;
        assert_eq!(judge(&page[..HEADER]), Kept::Damaged);
        assert_eq!(judge(&page[..HEADER - 1]), Kept::Unknown);
        assert_eq!(judge(&[0; HEADER]), Kept::Unknown);
    }
}
