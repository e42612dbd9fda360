//! Finds blocks of zeroes in data that is about to be written, so that thin images stay thin. Pure bytes.

use bytes::Bytes;

use super::delta::Content;

/// Granularity, and alignment in the object.
const BLOCK_BYTES: u64 = 4096;

/// Makes zeroes of all whole blocks of data that hold nothing else; how many bytes these are.
pub(super) fn leave_out(content: &mut Content) -> u64 {
    let mut kept = Vec::with_capacity(content.data.len());
    let mut left_out_bytes = 0;
    for (offset, data) in content.data.drain(..) {
        for (at, run, is_zero) in runs(offset, &data) {
            if is_zero {
                left_out_bytes += run.len() as u64;
                content.zeroes.push((at, run.len() as u64));
            } else {
                kept.push((at, run));
            }
        }
    }
    content.data = kept;
    left_out_bytes
}

/// Cuts data into runs of zero blocks and runs of others, in order.
fn runs(offset: u64, data: &Bytes) -> Vec<(u64, Bytes, bool)> {
    let mut out: Vec<(usize, usize, bool)> = Vec::new();
    let mut start = 0;
    while start < data.len() {
        let room = BLOCK_BYTES - (offset + start as u64) % BLOCK_BYTES;
        let end = data.len().min(start + room as usize);
        let is_zero = (end - start) as u64 == BLOCK_BYTES && is_zero(&data[start..end]);
        match out.last_mut() {
            Some(last) if last.2 == is_zero => last.1 = end,
            _ => out.push((start, end, is_zero)),
        }
        start = end;
    }
    out.into_iter()
        .map(|(start, end, is_zero)| (offset + start as u64, data.slice(start..end), is_zero))
        .collect()
}

fn is_zero(block: &[u8]) -> bool {
    // Whole lines at a time: the compiler makes vector code of it, and data is seen to be some in its first line.
    block
        .chunks(64)
        .all(|line| line.iter().fold(0, |all, byte| all | byte) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_aligned_blocks_of_zeroes_are_left_out() {
        // From 100 bytes before a border to 100 before another; one byte is not zero.
        let mut data = vec![0u8; 5 * 4096];
        data[16_283 - 3_996] = 1;
        let mut content = Content {
            data: vec![(3_996, Bytes::from(data))],
            zeroes: vec![],
        };
        assert_eq!(leave_out(&mut content), 3 * 4096);
        assert_eq!(content.zeroes, [(4096, 8192), (16_384, 4096)]);
        let kept: Vec<_> = content.data.iter().map(|(at, run)| (*at, run.len())).collect();
        assert_eq!(kept, [(3_996, 100), (12_288, 4096), (20_480, 3_996)]);
    }
}
