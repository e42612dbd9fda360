//! A histogram of durations that many threads record into without a lock.
//!
//! Recording finds one of [`BOUNDS_NS`]' buckets by a search in a small constant table and adds to two counters. A snapshot
//! is not one instant: a duration recorded meanwhile may be in its bucket and not in the sum yet.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds of the buckets, inclusive, in nanoseconds: 1, 2 and 5 times every power of ten from 1 us to 10 s. What
/// took longer falls into one more bucket.
pub const BOUNDS_NS: [u64; 22] = {
    let mut bounds = [0; 22];
    let mut unit = 1_000;
    let mut index = 0;
    while index < bounds.len() {
        bounds[index] = match index % 3 {
            0 => unit,
            1 => 2 * unit,
            _ => 5 * unit,
        };
        if index % 3 == 2 {
            unit *= 10;
        }
        index += 1;
    }
    bounds
};

const BUCKETS: usize = BOUNDS_NS.len() + 1;

/// See the module's text.
#[derive(Debug, Default)]
pub struct LatencyHistogram {
    buckets: [AtomicU64; BUCKETS],
    sum_ns: AtomicU64,
}

impl LatencyHistogram {
    /// Counts one duration.
    pub fn record(&self, duration: Duration) {
        let ns = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let bucket = BOUNDS_NS.partition_point(|bound| *bound < ns);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum_ns.fetch_add(ns, Ordering::Relaxed);
    }

    /// The counts now.
    pub fn snapshot(&self) -> LatencySnapshot {
        LatencySnapshot {
            buckets: std::array::from_fn(|bucket| self.buckets[bucket].load(Ordering::Relaxed)),
            sum_ns: self.sum_ns.load(Ordering::Relaxed),
        }
    }
}

/// The counts of a [`LatencyHistogram`] at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LatencySnapshot {
    buckets: [u64; BUCKETS],
    sum_ns: u64,
}

impl LatencySnapshot {
    /// Durations counted.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// Their sum in nanoseconds.
    pub fn sum_ns(&self) -> u64 {
        self.sum_ns
    }

    /// Each bucket's inclusive upper bound in nanoseconds (`None` for the last, which has none) and what fell into it and
    /// into none before it.
    pub fn buckets(&self) -> impl Iterator<Item = (Option<u64>, u64)> + '_ {
        let bounds = BOUNDS_NS.iter().copied().map(Some).chain([None]);
        bounds.zip(self.buckets.iter().copied())
    }

    /// Adds the counts of another.
    pub fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.buckets.iter_mut().zip(other.buckets) {
            *mine += theirs;
        }
        self.sum_ns += other.sum_ns;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_go_from_a_microsecond_to_ten_seconds_in_steps_of_one_two_five() {
        assert_eq!(BOUNDS_NS[..4], [1_000, 2_000, 5_000, 10_000]);
        assert_eq!(BOUNDS_NS[21], 10_000_000_000);
    }

    #[test]
    fn a_duration_falls_into_the_first_bucket_whose_bound_it_does_not_exceed() {
        let histogram = LatencyHistogram::default();
        for ns in [0, 1_000, 1_001, 2_000, 10_000_000_000, 10_000_000_001] {
            histogram.record(Duration::from_nanos(ns));
        }
        histogram.record(Duration::MAX);
        let seen = histogram.snapshot();
        let filled: Vec<_> = seen.buckets().filter(|(_, count)| *count > 0).collect();
        assert_eq!(
            filled,
            [
                (Some(1_000), 2),
                (Some(2_000), 2),
                (Some(10_000_000_000), 1),
                (None, 2)
            ]
        );
        assert_eq!(seen.count(), 7);
    }
}
