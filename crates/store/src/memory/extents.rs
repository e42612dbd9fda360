//! A set of bytes as ascending extents that neither touch nor overlap: what a clone shares with the next version.

use crate::types::Extent;

/// Ascending, disjoint, non-empty extents.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct ExtentSet(Vec<Extent>);

impl ExtentSet {
    /// All bytes of `0..size_bytes`.
    pub(super) fn whole(size_bytes: u64) -> Self {
        let mut set = Self::default();
        set.push(0, size_bytes);
        set
    }

    /// The extents.
    pub(super) fn extents(&self) -> &[Extent] {
        &self.0
    }

    fn push(&mut self, start: u64, end: u64) {
        if start < end {
            self.0.push(Extent::new(start, end - start));
        }
    }

    /// Takes a range out.
    pub(super) fn subtract(&mut self, offset: u64, length_bytes: u64) {
        let (start, end) = (offset, offset.saturating_add(length_bytes));
        let mut left = Self::default();
        for extent in &self.0 {
            left.push(extent.offset, extent.end().min(start));
            left.push(extent.offset.max(end), extent.end());
        }
        if start < end {
            *self = left;
        }
    }

    /// Keeps what is in both.
    pub(super) fn intersect(&mut self, other: &Self) {
        let mut both = Self::default();
        let (mut mine, mut others) = (self.0.iter().peekable(), other.0.iter().peekable());
        while let (Some(left), Some(right)) = (mine.peek(), others.peek()) {
            both.push(left.offset.max(right.offset), left.end().min(right.end()));
            if left.end() <= right.end() {
                mine.next();
            } else {
                others.next();
            }
        }
        *self = both;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(set: &ExtentSet) -> Vec<(u64, u64)> {
        set.0.iter().map(|extent| (extent.offset, extent.end())).collect()
    }

    #[test]
    fn subtracting_splits_trims_and_empties() {
        let mut set = ExtentSet::whole(100);
        set.subtract(10, 10);
        set.subtract(50, 0);
        set.subtract(90, u64::MAX);
        assert_eq!(pairs(&set), [(0, 10), (20, 90)]);
        set.subtract(5, 20);
        assert_eq!(pairs(&set), [(0, 5), (25, 90)]);
        set.subtract(0, 100);
        assert_eq!(pairs(&set), []);
    }

    #[test]
    fn intersection_keeps_only_what_both_have() {
        let (mut left, mut right) = (ExtentSet::whole(100), ExtentSet::whole(80));
        left.subtract(10, 20);
        right.subtract(25, 15);
        left.intersect(&right);
        assert_eq!(pairs(&left), [(0, 10), (40, 80)]);
        left.intersect(&ExtentSet::default());
        assert_eq!(pairs(&left), []);
    }
}
