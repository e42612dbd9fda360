//! How long a lane looks for the next request before it sleeps.
//!
//! A client that waits for each reply sends its next request some microseconds after it, sooner than a thread falls
//! asleep and is woken again. So a lane whose last requests came that soon looks a little while longer, giving way to
//! whoever else wants the processor; one whose client takes its time sleeps at once. At most half of the processors
//! are spent so, by all lanes of the process together, and none while requests of the lane wait for the device: that may need
//! the processor.

use std::num::NonZero;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// A request that comes within that time was worth looking for.
const SOON: Duration = Duration::from_micros(100);
/// So long is looked for it.
const LOOK: Duration = Duration::from_micros(50);
/// So many waits in a row must have been short.
const SHORT_WAITS: u8 = 4;

/// Lanes that look right now.
static LOOKING: AtomicUsize = AtomicUsize::new(0);

/// What the last waits of a lane were like.
#[derive(Debug, Default)]
pub(super) struct Patience {
    short_waits: u8,
}

impl Patience {
    /// How long to look before sleeping, if at all. The permission ends when it is dropped.
    pub(super) fn look(&self) -> Option<Looking> {
        (self.short_waits >= SHORT_WAITS).then(Looking::begin).flatten()
    }

    /// A request came after that time.
    pub(super) fn waited(&mut self, time: Duration) {
        self.short_waits = if time <= SOON {
            self.short_waits.saturating_add(1).min(SHORT_WAITS)
        } else {
            0
        };
    }
}

/// Permission to look for `LOOK`.
#[derive(Debug)]
pub(super) struct Looking(());

impl Looking {
    fn begin() -> Option<Self> {
        static MOST: OnceLock<usize> = OnceLock::new();
        let most = *MOST.get_or_init(|| {
            std::thread::available_parallelism()
                .map_or(1, NonZero::get)
                .div_ceil(2)
        });
        if LOOKING.fetch_add(1, Ordering::Relaxed) < most {
            return Some(Self(()));
        }
        LOOKING.fetch_sub(1, Ordering::Relaxed);
        None
    }

    /// Whether the time is over.
    pub(super) fn is_over(&self, looked: Duration) -> bool {
        looked >= LOOK
    }
}

impl Drop for Looking {
    fn drop(&mut self) {
        LOOKING.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_client_that_asks_again_at_once_is_looked_for_and_one_pause_ends_it() {
        let mut patience = Patience::default();
        assert!(patience.look().is_none(), "nothing is known of a new client");
        for _ in 0..SHORT_WAITS - 1 {
            patience.waited(Duration::from_micros(20));
            assert!(patience.look().is_none(), "too early to tell");
        }
        patience.waited(SOON);
        let looking = patience.look().expect("its requests come soon");
        assert!(!looking.is_over(Duration::from_micros(49)));
        assert!(looking.is_over(LOOK));
        drop(looking);
        patience.waited(SOON + Duration::from_micros(1));
        assert!(patience.look().is_none(), "it takes its time now");
        for _ in 0..1000 {
            patience.waited(Duration::ZERO);
        }
        patience.waited(Duration::from_secs(1));
        assert!(
            patience.look().is_none(),
            "many short waits count no more than a few"
        );

        let most = std::thread::available_parallelism().unwrap().get().div_ceil(2);
        for _ in 0..SHORT_WAITS {
            patience.waited(Duration::ZERO);
        }
        let all: Vec<_> = (0..most).map(|_| patience.look().unwrap()).collect();
        assert!(patience.look().is_none(), "the other processors are for others");
        drop(all);
        assert!(patience.look().is_some());
    }
}
