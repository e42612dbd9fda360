//! A store that takes its time, to bring out orders of events that a fast one never shows.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::{Call, Hook, OpKind, Wrapper};
use crate::Store;
use crate::error::{Result, StoreError};

/// A store with [`Delays`].
pub type SlowStore = Wrapper<Delays>;

/// How long operations wait before they are made, and their answers before they are given. The draws come from one
/// seed; with concurrent callers the order in which they draw is the scheduler's.
#[derive(Debug)]
pub struct Delays {
    settings: Mutex<Settings>,
}

#[derive(Debug)]
struct Settings {
    rng: StdRng,
    before_us: HashMap<OpKind, RangeInclusive<u64>>,
    after_us: HashMap<OpKind, RangeInclusive<u64>>,
}

impl SlowStore {
    /// Wraps a store; nothing is delayed yet.
    pub fn new(inner: Arc<dyn Store>, seed: u64) -> Arc<Self> {
        let settings = Settings {
            rng: StdRng::seed_from_u64(seed),
            before_us: HashMap::new(),
            after_us: HashMap::new(),
        };
        let settings = Mutex::new(settings);
        Self::with_hook(inner, Delays { settings })
    }
}

impl Delays {
    /// Delays operations of this kind by so many microseconds before they are made.
    pub fn before(&self, kind: OpKind, range_us: RangeInclusive<u64>) {
        self.settings.lock().before_us.insert(kind, range_us);
    }

    /// Delays answers of operations of this kind by so many microseconds.
    pub fn after(&self, kind: OpKind, range_us: RangeInclusive<u64>) {
        self.settings.lock().after_us.insert(kind, range_us);
    }

    /// Delays nothing any more.
    pub fn clear(&self) {
        let mut settings = self.settings.lock();
        settings.before_us.clear();
        settings.after_us.clear();
    }

    async fn wait(&self, kind: OpKind, answer: bool) {
        let delay = {
            let Settings {
                rng,
                before_us,
                after_us,
            } = &mut *self.settings.lock();
            let ranges = if answer { after_us } else { before_us };
            let range = ranges.get(&kind).filter(|range| !range.is_empty());
            range.map(|range| Duration::from_micros(rng.random_range(range.clone())))
        };
        if let Some(delay) = delay {
            tokio::time::sleep(delay).await;
        }
    }
}

#[async_trait]
impl Hook for Delays {
    type Token = ();

    async fn before(&self, call: &Call<'_>) -> Result<()> {
        self.wait(call.kind, false).await;
        Ok(())
    }

    async fn after(&self, call: &Call<'_>, (): (), _: Result<String, &StoreError>) -> Result<()> {
        self.wait(call.kind, true).await;
        Ok(())
    }
}
