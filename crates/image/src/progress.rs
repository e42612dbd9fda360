//! How long work tells how far it is.

use std::sync::Arc;

/// Called with (done, total); cheap to clone. `done` never exceeds `total`.
#[derive(Clone)]
pub struct Progress {
    report: Arc<dyn Fn(u64, u64) + Send + Sync>,
}

impl std::fmt::Debug for Progress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Progress")
    }
}

impl Progress {
    /// Reports to `report`.
    pub fn new(report: impl Fn(u64, u64) + Send + Sync + 'static) -> Self {
        Self {
            report: Arc::new(report),
        }
    }

    /// Reports to nobody.
    pub fn silent() -> Self {
        Self::new(|_, _| {})
    }

    /// Says how far the work is.
    pub fn update(&self, done: u64, total: u64) {
        (self.report)(done.min(total), total);
    }
}
