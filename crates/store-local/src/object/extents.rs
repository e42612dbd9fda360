//! Sets of bytes as ascending, separate extents; and their stored form (pairs of little-endian `u64`).

use ferry_store::Extent;

/// The part of `set` outside `cut`.
pub(crate) fn subtract(set: &[Extent], cut: Extent) -> Vec<Extent> {
    let mut rest = Vec::with_capacity(set.len() + 1);
    for extent in set {
        let left_end = extent.end().min(cut.offset);
        if extent.offset < left_end {
            rest.push(Extent::new(extent.offset, left_end - extent.offset));
        }
        let right_start = extent.offset.max(cut.end());
        if right_start < extent.end() {
            rest.push(Extent::new(right_start, extent.end() - right_start));
        }
    }
    rest
}

/// What is in both.
pub(crate) fn intersect(first: &[Extent], second: &[Extent]) -> Vec<Extent> {
    let mut both = Vec::new();
    for one in first {
        for other in second {
            let (start, end) = (one.offset.max(other.offset), one.end().min(other.end()));
            if start < end {
                both.push(Extent::new(start, end - start));
            }
        }
    }
    both
}

/// `0~size`, or nothing.
pub(crate) fn whole(size_bytes: u64) -> Vec<Extent> {
    match size_bytes {
        0 => Vec::new(),
        size_bytes => vec![Extent::new(0, size_bytes)],
    }
}

/// Adds an extent that begins at or after the end of the last.
pub(crate) fn push(set: &mut Vec<Extent>, extent: Extent) {
    match set.last_mut() {
        _ if extent.length_bytes == 0 => {}
        Some(last) if last.end() == extent.offset => last.length_bytes += extent.length_bytes,
        _ => set.push(extent),
    }
}

/// Stored form.
pub(crate) fn encode(set: &[Extent]) -> Vec<u8> {
    set.iter()
        .flat_map(|extent| [extent.offset, extent.length_bytes])
        .flat_map(u64::to_le_bytes)
        .collect()
}

/// From the stored form; `None` when it is damaged.
pub(crate) fn decode(bytes: &[u8]) -> Option<Vec<Extent>> {
    let numbers = decode_numbers(bytes)?;
    let set: Vec<Extent> = numbers
        .chunks_exact(2)
        .map(|pair| Extent::new(pair[0], pair[1]))
        .collect();
    let ordered = set.windows(2).all(|pair| pair[0].end() <= pair[1].offset);
    (numbers.len().is_multiple_of(2) && ordered).then_some(set)
}

/// Little-endian numbers; `None` when the length is no multiple of 8.
pub(crate) fn decode_numbers(bytes: &[u8]) -> Option<Vec<u64>> {
    let (chunks, rest) = bytes.as_chunks::<8>();
    rest.is_empty()
        .then(|| chunks.iter().map(|chunk| u64::from_le_bytes(*chunk)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_agree_with_bits() {
        let set = vec![Extent::new(0, 10), Extent::new(20, 10)];
        assert_eq!(
            subtract(&set, Extent::new(5, 20)),
            vec![Extent::new(0, 5), Extent::new(25, 5)]
        );
        assert_eq!(
            subtract(&set, Extent::new(22, 2)),
            vec![Extent::new(0, 10), Extent::new(20, 2), Extent::new(24, 6)]
        );
        assert_eq!(
            intersect(&set, &[Extent::new(8, 14)]),
            vec![Extent::new(8, 2), Extent::new(20, 2)]
        );
        assert_eq!(decode(&encode(&set)), Some(set));
        assert_eq!(decode(&[1, 2, 3]), None);
        assert_eq!(decode(&encode(&[Extent::new(9, 9), Extent::new(0, 1)])), None);
    }
}
