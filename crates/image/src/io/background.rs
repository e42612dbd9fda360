//! Work that nobody waits for: it begins on the thread that starts it, and goes on on the thread that wakes it if that one
//! has the time ([`ferry_store::here::next`]), else as a task. So a write that is on its way costs no change of thread.
//!
//! Invariant: it is polled by one thread at a time, and once more whenever it was woken. What it does not know: what the
//! work is, and when it ends.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use ferry_store::here;
use parking_lot::Mutex;
use tokio::runtime::Handle;

/// Nobody polls it; a wake has to see to it.
const WAITS: u8 = 0;
/// Somebody polls it, or is about to.
const POLLED: u8 = 1;
/// Somebody polls it, and has to do so again.
const POLLED_AGAIN: u8 = 2;

/// How often one thread polls work that wakes itself before it becomes a task.
const POLLS_MAX: usize = 16;

struct Work {
    runtime: Handle,
    state: AtomicU8,
    /// `None` when it has ended.
    future: Mutex<Option<Pin<Box<dyn Future<Output = ()> + Send>>>>,
}

/// Starts work here and now, as far as it gets without waiting. To be called in a runtime.
pub(crate) fn start(future: impl Future<Output = ()> + Send + 'static) {
    let work = Arc::new(Work {
        runtime: Handle::current(),
        state: AtomicU8::new(POLLED),
        future: Mutex::new(Some(Box::pin(future))),
    });
    work.poll();
}

impl Work {
    /// With the state at [`POLLED`] or [`POLLED_AGAIN`], by this thread.
    fn poll(self: &Arc<Self>) {
        let waker = Waker::from(Arc::clone(self));
        for _ in 0..POLLS_MAX {
            self.state.store(POLLED, Ordering::SeqCst);
            let mut future = self.future.lock();
            let Some(polled) = future.as_mut() else { return };
            let mut context = Context::from_waker(&waker);
            let polled = catch_unwind(AssertUnwindSafe(|| polled.as_mut().poll(&mut context)));
            if !matches!(polled, Ok(Poll::Pending)) {
                if polled.is_err() {
                    tracing::error!("background work panicked");
                }
                *future = None;
                return;
            }
            drop(future);
            let waits = self
                .state
                .compare_exchange(POLLED, WAITS, Ordering::SeqCst, Ordering::SeqCst);
            if waits.is_ok() {
                return;
            }
        }
        self.spawn();
    }

    fn spawn(self: &Arc<Self>) {
        let work = Arc::clone(self);
        self.runtime.spawn(async move { work.poll() });
    }
}

impl Wake for Work {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let before = self
            .state
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |state| {
                Some(if state == WAITS { POLLED } else { POLLED_AGAIN })
            });
        if before != Ok(WAITS) {
            return;
        }
        let work = Arc::clone(self);
        let next = Box::new(move || {
            let _runtime = work.runtime.enter();
            work.poll();
        });
        if here::next(next).is_err() {
            self.spawn();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use tokio::sync::oneshot;

    use super::*;

    const SOON: Duration = Duration::from_secs(30);

    #[tokio::test(flavor = "multi_thread")]
    async fn work_begins_at_once_and_goes_on_as_a_task() {
        let (send, receive) = oneshot::channel::<()>();
        let (done, ended) = mpsc::channel();
        let begun = done.clone();
        start(async move {
            begun.send("begun").unwrap();
            receive.await.unwrap();
            done.send("ended").unwrap();
        });
        assert_eq!(ended.try_recv(), Ok("begun"));
        assert!(ended.try_recv().is_err());
        send.send(()).unwrap();
        let ended = tokio::task::spawn_blocking(move || ended.recv_timeout(SOON));
        assert_eq!(ended.await.unwrap(), Ok("ended"));
    }

    #[tokio::test]
    async fn it_goes_on_on_the_thread_that_brings_what_it_waited_for() {
        let (send, receive) = oneshot::channel::<()>();
        let (done, ended) = mpsc::channel();
        start(async move {
            receive.await.unwrap();
            tokio::spawn(async {});
            done.send(std::thread::current().id()).unwrap();
        });
        let bringer = std::thread::spawn(move || {
            here::bringing(|| send.send(()).unwrap());
            std::thread::current().id()
        });
        let bringer = tokio::task::spawn_blocking(move || bringer.join());
        assert_eq!(ended.recv_timeout(SOON), Ok(bringer.await.unwrap().unwrap()));
    }

    #[tokio::test]
    async fn work_that_wakes_itself_ends_and_keeps_no_thread() {
        let (done, ended) = mpsc::channel();
        let mut polls = 0;
        start(std::future::poll_fn(move |context| {
            polls += 1;
            context.waker().wake_by_ref();
            if polls < 100 {
                return Poll::Pending;
            }
            done.send(polls).unwrap();
            Poll::Ready(())
        }));
        assert!(ended.try_recv().is_err(), "the rest is a task's");
        let ended = tokio::task::spawn_blocking(move || ended.recv_timeout(SOON));
        assert_eq!(ended.await.unwrap(), Ok(100));
    }
}
