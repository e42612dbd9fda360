//! Writes that nobody waits for any more and that librados has not ended yet: they may still take effect.
//!
//! Whoever gives a lock up must not leave one behind, as it could come after what the next owner writes. So each write leaves
//! a trace from the moment in which its asker goes until the library has answered, and [`GivenUp::ended`] waits for those.
//! Writes whose askers wait are not counted: these know themselves.

use std::sync::Arc;
use std::sync::atomic::{AtomicIsize, AtomicU8, Ordering};

use tokio::sync::Notify;

const ASKED_FOR: u8 = 0;
const GIVEN_UP: u8 = 1;
const ENDED: u8 = 2;

/// The writes of one connection that were given up and have not ended.
#[derive(Debug, Default)]
pub(crate) struct GivenUp {
    /// Below zero for a moment, where the end of one is counted before it was given up.
    count: AtomicIsize,
    changed: Notify,
}

/// One write's state, in two hands.
#[derive(Debug)]
struct Flight {
    state: AtomicU8,
    of: Arc<GivenUp>,
}

/// With the operation: dropped when it has ended.
#[derive(Debug)]
pub(super) struct Operation(Arc<Flight>);

/// With who asked: dropped when nobody waits any more.
#[derive(Debug)]
pub(super) struct Asker(Arc<Flight>);

impl GivenUp {
    /// A new write.
    pub(super) fn begin(self: &Arc<Self>) -> (Asker, Operation) {
        let flight = Arc::new(Flight {
            state: AtomicU8::new(ASKED_FOR),
            of: self.clone(),
        });
        (Asker(flight.clone()), Operation(flight))
    }

    /// Waits until no write is under way that was given up.
    pub(crate) async fn ended(&self) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.count.load(Ordering::SeqCst) <= 0 {
                return;
            }
            changed.await;
        }
    }
}

impl Drop for Asker {
    fn drop(&mut self) {
        if self.0.state.swap(GIVEN_UP, Ordering::SeqCst) == ASKED_FOR {
            self.0.of.count.fetch_add(1, Ordering::SeqCst);
        }
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        if self.0.state.swap(ENDED, Ordering::SeqCst) == GIVEN_UP {
            self.0.of.count.fetch_sub(1, Ordering::SeqCst);
            self.0.of.changed.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[test]
    fn who_gives_a_write_up_and_ends_waits_for_it() {
        let all = Arc::new(GivenUp::default());
        let (waiting, of_waiting) = all.begin();
        assert!(all.ended().now_or_never().is_some());
        let (gone, of_gone) = all.begin();
        drop(gone);
        let mut ended = Box::pin(all.ended());
        assert!(ended.as_mut().now_or_never().is_none());
        // In the usual order: the operation ends, and then who asked has the answer.
        drop(of_waiting);
        drop(waiting);
        assert!(ended.as_mut().now_or_never().is_none());
        drop(of_gone);
        assert!(ended.now_or_never().is_some());
    }
}
