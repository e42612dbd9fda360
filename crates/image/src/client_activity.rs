//! How busy the clients of one open image are, for background work that yields to them.
//!
//! Two relaxed counters; an operation costs an addition when it begins and one when it ends. What the module does not
//! know: what the operations are, and who yields.

use std::sync::atomic::{AtomicU64, Ordering};

/// Operations of clients through one handle.
#[derive(Debug, Default)]
pub struct ClientActivity {
    begun: AtomicU64,
    ended: AtomicU64,
}

impl ClientActivity {
    /// An operation is under way until the guard is dropped.
    pub fn begin(&self) -> Operation<'_> {
        self.begun.fetch_add(1, Ordering::Relaxed);
        Operation { activity: self }
    }

    /// Operations begun since the image was opened.
    pub fn begun(&self) -> u64 {
        self.begun.load(Ordering::Relaxed)
    }

    /// Operations under way.
    pub fn in_flight(&self) -> u64 {
        // In this order an operation that ends in between makes the figure too high, never negative.
        let ended = self.ended.load(Ordering::Relaxed);
        self.begun().saturating_sub(ended)
    }
}

/// One operation of a client.
#[derive(Debug)]
pub struct Operation<'a> {
    activity: &'a ClientActivity,
}

impl Drop for Operation<'_> {
    fn drop(&mut self) {
        self.activity.ended.fetch_add(1, Ordering::Relaxed);
    }
}
