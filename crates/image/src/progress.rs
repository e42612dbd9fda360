//! How long work tells how far it is.

use std::sync::Arc;

use crate::migration::execution::ExecuteProgress;

type ReportExecute = dyn Fn(&ExecuteProgress) + Send + Sync;

/// Called with (done, total); cheap to clone. `done` never exceeds `total`.
#[derive(Clone)]
pub struct Progress {
    report: Arc<dyn Fn(u64, u64) + Send + Sync>,
    report_execute: Option<Arc<ReportExecute>>,
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
            report_execute: None,
        }
    }

    /// Also reports what an execute of a migration has to say of itself, about twice a second.
    #[must_use]
    pub fn with_execute(mut self, report: impl Fn(&ExecuteProgress) + Send + Sync + 'static) -> Self {
        self.report_execute = Some(Arc::new(report));
        self
    }

    /// Who wants to hear of an execute's details.
    pub(crate) fn of_execute(&self) -> Option<&ReportExecute> {
        self.report_execute.as_deref()
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
