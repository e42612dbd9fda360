//! What an open image has done for its clients since it was opened, for whoever shows it.
//!
//! Counting costs a few relaxed additions where the work itself costs much more; a read or write that neither a migration
//! nor a parent concerns counts nothing. Every figure only grows. What this module does not know: who reads the figures, and in which
//! form they are shown.

mod histogram;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

pub use histogram::{BOUNDS_NS, LatencyHistogram, LatencySnapshot};

/// Counters of one open image.
#[derive(Debug, Default)]
pub struct ImageStats {
    source_reads: AtomicU64,
    source_read_bytes: AtomicU64,
    parent_reads: AtomicU64,
    parent_read_bytes: AtomicU64,
    copied_up_objects: AtomicU64,
    copied_up_bytes: AtomicU64,
    copy_up_waits: LatencyHistogram,
}

/// The figures of [`ImageStats`] at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ImageStatsSnapshot {
    /// Reads of one object each that the migration source was asked for, because the image did not have the object yet.
    pub source_reads: u64,
    /// Bytes that these asked for, holes included.
    pub source_read_bytes: u64,
    /// Reads of one object each that the parent of a clone was asked for, because the clone has no such object.
    pub parent_reads: u64,
    /// Bytes that these asked for, holes included.
    pub parent_read_bytes: u64,
    /// Objects that were copied because a client was about to change them.
    pub copied_up_objects: u64,
    /// Bytes of data that these copies wrote, with the history of the object.
    pub copied_up_bytes: u64,
    /// How long changes by clients waited until their object was copied, or known to need no copy. One entry for each
    /// change of an object that was not known to be complete.
    pub copy_up_waits: LatencySnapshot,
}

impl ImageStats {
    /// The figures now. Those of operations under way may be counted in part.
    pub fn snapshot(&self) -> ImageStatsSnapshot {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ImageStatsSnapshot {
            source_reads: load(&self.source_reads),
            source_read_bytes: load(&self.source_read_bytes),
            parent_reads: load(&self.parent_reads),
            parent_read_bytes: load(&self.parent_read_bytes),
            copied_up_objects: load(&self.copied_up_objects),
            copied_up_bytes: load(&self.copied_up_bytes),
            copy_up_waits: self.copy_up_waits.snapshot(),
        }
    }

    pub(crate) fn source_was_read(&self, length_bytes: u64) {
        self.source_reads.fetch_add(1, Ordering::Relaxed);
        self.source_read_bytes.fetch_add(length_bytes, Ordering::Relaxed);
    }

    pub(crate) fn parent_was_read(&self, length_bytes: u64) {
        self.parent_reads.fetch_add(1, Ordering::Relaxed);
        self.parent_read_bytes.fetch_add(length_bytes, Ordering::Relaxed);
    }

    /// A change has to wait for the copy of its object from now until the guard is dropped.
    pub(crate) fn copy_up(&self) -> CopyUp<'_> {
        CopyUp {
            stats: self,
            began: Instant::now(),
        }
    }
}

impl ImageStatsSnapshot {
    /// Adds the figures of another open of the same image.
    pub fn add(&mut self, other: &Self) {
        self.source_reads += other.source_reads;
        self.source_read_bytes += other.source_read_bytes;
        self.parent_reads += other.parent_reads;
        self.parent_read_bytes += other.parent_read_bytes;
        self.copied_up_objects += other.copied_up_objects;
        self.copied_up_bytes += other.copied_up_bytes;
        self.copy_up_waits.add(&other.copy_up_waits);
    }
}

/// A change that waits for a copy; see [`ImageStats::copy_up`].
#[derive(Debug)]
pub(crate) struct CopyUp<'a> {
    stats: &'a ImageStats,
    began: Instant,
}

impl CopyUp<'_> {
    /// The wait is over; `data_bytes` were copied for it.
    pub(crate) fn ended(self, data_bytes: u64) {
        if data_bytes > 0 {
            self.stats.copied_up_objects.fetch_add(1, Ordering::Relaxed);
            self.stats
                .copied_up_bytes
                .fetch_add(data_bytes, Ordering::Relaxed);
        }
    }
}

impl Drop for CopyUp<'_> {
    fn drop(&mut self) {
        self.stats.copy_up_waits.record(self.began.elapsed());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_of_nothing_is_a_wait_and_no_copy() {
        let stats = ImageStats::default();
        stats.copy_up().ended(0);
        stats.copy_up().ended(4096);
        drop(stats.copy_up());
        stats.source_was_read(512);
        stats.parent_was_read(100);
        let mut seen = stats.snapshot();
        assert_eq!((seen.copied_up_objects, seen.copied_up_bytes), (1, 4096));
        assert_eq!(seen.copy_up_waits.count(), 3);
        assert_eq!((seen.source_reads, seen.source_read_bytes), (1, 512));
        assert_eq!((seen.parent_reads, seen.parent_read_bytes), (1, 100));
        let again = seen.clone();
        seen.add(&again);
        assert_eq!((seen.copied_up_bytes, seen.copy_up_waits.count()), (8192, 6));
        assert_eq!((seen.source_reads, seen.parent_read_bytes), (2, 200));
    }
}
