//! How much of one client may be under way at a time: librados' own bounds, kept here.
//!
//! The library makes whoever submits too much sleep until an answer comes. That would be a thread of the runtime, and while an
//! OSD is away, all of them: no timer, no signal, no other client would be heard. So its two bounds are taken from it before it
//! connects, and whoever is over them waits here, without a thread.
//!
//! Invariant: a share is held until the library has answered, also when nobody waits for the answer any more. What the monitors
//! alone say of these bounds is not known before connecting, and not followed.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes are counted in pages; a semaphore counts up to a little more than 2^28.
const PAGE_BYTES: u64 = 4096;

/// The bounds of a connection.
#[derive(Debug, Default)]
pub(crate) struct Budget {
    requests: Option<Bound>,
    pages: Option<Bound>,
}

#[derive(Debug)]
struct Bound {
    left: Arc<Semaphore>,
    most: u32,
}

/// A part of the budget, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Share {
    _parts: [Option<OwnedSemaphorePermit>; 2],
}

impl Budget {
    /// So many requests, and bytes of data; 0 is no bound, as in the library.
    pub(super) fn new(requests: u64, bytes: u64) -> Self {
        Self {
            requests: Bound::new(requests),
            pages: Bound::new(bytes.div_ceil(PAGE_BYTES)),
        }
    }

    /// Waits until one more request of so many bytes may be under way. One that is larger than all goes alone.
    pub(super) async fn take(&self, bytes: u64) -> Share {
        let request = Bound::take(self.requests.as_ref(), 1).await;
        let pages = Bound::take(self.pages.as_ref(), bytes.div_ceil(PAGE_BYTES)).await;
        Share {
            _parts: [request, pages],
        }
    }
}

impl Bound {
    fn new(most: u64) -> Option<Self> {
        let most = most.min(Semaphore::MAX_PERMITS as u64).min(u64::from(u32::MAX)) as u32;
        (most > 0).then(|| Self {
            left: Arc::new(Semaphore::new(most as usize)),
            most,
        })
    }

    async fn take(bound: Option<&Self>, count: u64) -> Option<OwnedSemaphorePermit> {
        let bound = bound?;
        let count = count.min(u64::from(bound.most)) as u32;
        // Never closed.
        bound.left.clone().acquire_many_owned(count).await.ok()
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[test]
    fn what_is_over_the_bounds_waits_without_a_thread_until_something_is_answered() {
        let budget = Budget::new(3, 10 * PAGE_BYTES);
        let mut under_way: Vec<Share> = (0..3)
            .map(|_| budget.take(2 * PAGE_BYTES).now_or_never().expect("room"))
            .collect();
        assert!(budget.take(0).now_or_never().is_none());
        under_way.pop();
        assert!(budget.take(7 * PAGE_BYTES).now_or_never().is_none());
        let rest = budget.take(6 * PAGE_BYTES).now_or_never().expect("room");
        drop((under_way, rest));
        let all = budget.take(u64::MAX).now_or_never().expect("it goes alone");
        assert!(budget.take(1).now_or_never().is_none());
        assert!(budget.take(0).now_or_never().is_some());
        drop(all);
        assert!(budget.take(1).now_or_never().is_some());
    }

    #[test]
    fn without_bounds_nobody_waits() {
        let budget = Budget::new(0, 0);
        let shares: Vec<Share> = (0..10_000)
            .map(|_| budget.take(u64::MAX).now_or_never().expect("no bound"))
            .collect();
        assert_eq!(shares.len(), 10_000);
    }
}
