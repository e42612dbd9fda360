//! What differs between two versions whose engine does not know which bytes they share: both are read and compared.

use bytes::Bytes;
use ferry_store::SnapId;

use super::delta::{Content, Piece};
use crate::error::Result;
use crate::migration::source::MigrationSource;

/// What is compared at a time; what differs in part counts as changed.
const BLOCK_BYTES: usize = 4096;

/// A version of the source, and how many of its bytes count.
#[derive(Debug, Clone, Copy)]
pub(super) struct Side {
    pub snap: SnapId,
    pub overlap_bytes: u64,
}

/// What of `pieces` is not as it was. Holds both versions of one piece at a time.
pub(super) async fn read(
    source: &MigrationSource,
    pieces: &[Piece],
    was: Side,
    now: Side,
) -> Result<Content> {
    let mut content = Content::default();
    for piece in pieces {
        let was = flat(source, piece, was).await?;
        let now = flat(source, piece, now).await?;
        changes(piece.offset, &was, now.into(), &mut content);
    }
    Ok(content)
}

/// The bytes of a piece, with its holes.
async fn flat(source: &MigrationSource, piece: &Piece, side: Side) -> Result<Vec<u8>> {
    let start = piece.image.offset.0;
    let visible = side
        .overlap_bytes
        .saturating_sub(start)
        .min(piece.image.length_bytes);
    let mut bytes = vec![0; piece.image.length_bytes as usize];
    if visible > 0 {
        for (at, data) in source.read(start, visible, side.snap).await?.runs {
            let at = (at - start) as usize;
            bytes[at..at + data.len()].copy_from_slice(&data);
        }
    }
    Ok(bytes)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Same,
    Zeroes,
    Data,
}

/// Adds what differs between two versions of a piece that begins at `offset` of the target's object.
fn changes(offset: u64, was: &[u8], now: Bytes, content: &mut Content) {
    let mut add = |from: usize, to: usize, kind: Kind| match kind {
        Kind::Same => {}
        Kind::Zeroes => content.zeroes.push((offset + from as u64, (to - from) as u64)),
        Kind::Data => content.data.push((offset + from as u64, now.slice(from..to))),
    };
    let mut begin = 0;
    let mut open = Kind::Same;
    let mut at = 0;
    while at < now.len() {
        // Blocks are those of the target's object.
        let rest = BLOCK_BYTES - (offset as usize + at) % BLOCK_BYTES;
        let end = now.len().min(at + rest);
        let block = &now[at..end];
        let kind = match block == &was[at..end] {
            true => Kind::Same,
            false if block.iter().all(|byte| *byte == 0) => Kind::Zeroes,
            false => Kind::Data,
        };
        if kind != open {
            add(begin, at, open);
            (begin, open) = (at, kind);
        }
        at = end;
    }
    add(begin, at, open);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_blocks_that_differ_are_told_of() {
        let was: Vec<u8> = (0..5 * BLOCK_BYTES)
            .map(|at| (at / BLOCK_BYTES) as u8 + 1)
            .collect();
        let mut now = was.clone();
        now[BLOCK_BYTES] = 77;
        now[2 * BLOCK_BYTES..3 * BLOCK_BYTES].fill(0);
        now[5 * BLOCK_BYTES - 1] = 99;
        let now = Bytes::from(now);
        let mut content = Content::default();
        changes(3 * BLOCK_BYTES as u64, &was, now.clone(), &mut content);
        let block = |n: usize| now.slice(n * BLOCK_BYTES..(n + 1) * BLOCK_BYTES);
        let place = |n: usize| (n * BLOCK_BYTES) as u64;
        assert_eq!(content.data, [(place(4), block(1)), (place(7), block(4))]);
        assert_eq!(content.zeroes, [(place(5), BLOCK_BYTES as u64)]);
    }

    #[test]
    fn blocks_are_those_of_the_object() {
        let was = vec![1u8; 2 * BLOCK_BYTES];
        let mut now = was.clone();
        now[0] = 2;
        let now = Bytes::from(now);
        let mut content = Content::default();
        changes(1000, &was, now.clone(), &mut content);
        assert_eq!(content.data, [(1000, now.slice(..BLOCK_BYTES - 1000))]);
        let mut same = Content::default();
        changes(1000, &was, was.clone().into(), &mut same);
        assert!(same.data.is_empty() && same.zeroes.is_empty());
    }
}
