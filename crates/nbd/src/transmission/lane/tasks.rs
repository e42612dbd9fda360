//! The requests of a lane that have to wait.
//!
//! The promise: a request that waits costs no task and no thread until what it waits for has come. Then it goes on on the
//! thread that woke it, if the device says that this one has the time ([`BlockDevice::go_on_here`]), or it becomes a task of
//! the runtime, which ends it. So a thread is woken for a request once, or not at all. Whatever waits or runs here ends
//! when the connection is given up.
//!
//! [`BlockDevice::go_on_here`]: crate::device::BlockDevice::go_on_here

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::task::JoinSet;

use crate::device::Next;

type Request = Pin<Box<dyn Future<Output = ()> + Send>>;

/// See the module's text. What is in it is bounded by what the connection's requests may hold.
pub(super) struct Tasks {
    runtime: Handle,
    go_on_here: Box<dyn Fn(Next) -> Result<(), Next> + Send + Sync>,
    state: Mutex<State>,
}

impl std::fmt::Debug for Tasks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tasks")
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

#[derive(Default)]
struct State {
    running: JoinSet<()>,
    waiting: HashMap<u64, Request>,
    next_id: u64,
    aborted: bool,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State")
            .field("running", &self.running.len())
            .field("waiting", &self.waiting.len())
            .finish_non_exhaustive()
    }
}

impl Tasks {
    pub(super) fn new(
        runtime: Handle,
        go_on_here: impl Fn(Next) -> Result<(), Next> + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self {
            runtime,
            go_on_here: Box::new(go_on_here),
            state: Mutex::default(),
        })
    }

    /// Makes a task of a request.
    pub(super) fn spawn(&self, request: Request) {
        self.spawn_locked(&mut self.state.lock(), request);
    }

    fn spawn_locked(&self, state: &mut State, request: Request) {
        while state.running.try_join_next().is_some() {}
        if !state.aborted {
            state.running.spawn_on(request, &self.runtime);
        }
    }

    /// Goes on with a request here, as far as it gets without waiting; what is left becomes a task when it is woken.
    pub(super) fn begin<T>(
        self: &Arc<Self>,
        mut request: Pin<Box<dyn Future<Output = T> + Send>>,
        then: impl FnOnce(T) + Send + 'static,
    ) -> Begun<T>
    where
        T: Send + 'static,
    {
        let id = {
            let mut state = self.state.lock();
            state.next_id += 1;
            state.next_id
        };
        let alarm = Arc::new(Alarm {
            tasks: Arc::clone(self),
            id,
            rung: AtomicBool::new(false),
        });
        let waker = Waker::from(Arc::clone(&alarm));
        if let Poll::Ready(done) = request.as_mut().poll(&mut Context::from_waker(&waker)) {
            return Begun::Done(done);
        }
        let rest: Request = Box::pin(async move { then(request.await) });
        let mut state = self.state.lock();
        if alarm.rung.load(Ordering::SeqCst) {
            self.spawn_locked(&mut state, rest);
        } else if !state.aborted {
            state.waiting.insert(id, rest);
        }
        Begun::Waits
    }

    /// Goes on with a request that was woken.
    fn go_on(self: &Arc<Self>, request: Request) {
        let tasks = Arc::clone(self);
        let next = Box::new(move || {
            let _runtime = tasks.runtime.enter();
            let (Begun::Done(()) | Begun::Waits) = tasks.begin(request, |()| ());
        });
        if let Err(next) = (self.go_on_here)(next) {
            self.spawn(Box::pin(async move { next() }));
        }
    }

    /// Ends everything.
    pub(super) fn abort(&self) {
        let waiting = {
            let mut state = self.state.lock();
            state.aborted = true;
            state.running.abort_all();
            std::mem::take(&mut state.waiting)
        };
        // Not under the lock: what is dropped may wake others.
        drop(waiting);
    }
}

/// How far a request got.
pub(super) enum Begun<T> {
    Done(T),
    /// It ends later.
    Waits,
}

/// What wakes a request that waits.
struct Alarm {
    tasks: Arc<Tasks>,
    id: u64,
    rung: AtomicBool,
}

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.rung.swap(true, Ordering::SeqCst) {
            return;
        }
        let request = self.tasks.state.lock().waiting.remove(&self.id);
        if let Some(request) = request {
            self.tasks.go_on(request);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use tokio::sync::oneshot;

    #[tokio::test]
    async fn what_need_not_wait_is_done_on_the_spot() {
        let tasks = Tasks::new(Handle::current(), Err);
        let begun = tasks.begin(Box::pin(async { 7 }), |_| panic!("done already"));
        assert!(matches!(begun, Begun::Done(7)));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_waits_goes_on_when_it_is_woken() {
        let tasks = Tasks::new(Handle::current(), Err);
        let (send, receive) = oneshot::channel();
        let (done, ended) = mpsc::channel();
        let begun = tasks.begin(Box::pin(receive), move |got| done.send(got).unwrap());
        assert!(matches!(begun, Begun::Waits));
        assert!(
            tasks.state.lock().running.is_empty(),
            "no task before it is woken"
        );
        send.send(7).unwrap();
        let ended = tokio::task::spawn_blocking(move || ended.recv());
        assert_eq!(ended.await.unwrap(), Ok(Ok(7)));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_request_that_is_woken_while_it_begins_is_not_lost() {
        let tasks = Tasks::new(Handle::current(), Err);
        let (done, ended) = mpsc::channel();
        let mut polls = 0;
        let request = std::future::poll_fn(move |context| {
            polls += 1;
            context.waker().wake_by_ref();
            if polls < 3 {
                Poll::Pending
            } else {
                Poll::Ready(polls)
            }
        });
        let begun = tasks.begin(Box::pin(request), move |got| done.send(got).unwrap());
        assert!(matches!(begun, Begun::Waits));
        let ended = tokio::task::spawn_blocking(move || ended.recv());
        assert_eq!(ended.await.unwrap(), Ok(3));
    }

    #[tokio::test]
    async fn what_waits_goes_on_where_it_is_woken_if_that_thread_has_the_time() {
        let left = Arc::new(Mutex::new(Vec::<Next>::new()));
        let tasks = Tasks::new(Handle::current(), {
            let left = Arc::clone(&left);
            move |next| {
                left.lock().push(next);
                Ok(())
            }
        });
        let ((first, one), (second, two)) = (oneshot::channel(), oneshot::channel());
        let (done, ended) = mpsc::channel();
        let request = async move { (one.await, two.await) };
        tasks.begin(Box::pin(request), move |got| done.send(got).unwrap());
        for (send, ends) in [(first, false), (second, true)] {
            send.send(7).unwrap();
            let [next] = <[Next; 1]>::try_from(std::mem::take(&mut *left.lock()))
                .unwrap_or_else(|next| panic!("{} pieces of work", next.len()));
            next();
            assert_eq!(ended.try_recv().is_ok(), ends);
        }
        assert!(tasks.state.lock().running.is_empty(), "no task was needed");
    }

    #[tokio::test]
    async fn what_waits_ends_with_the_connection() {
        let tasks = Tasks::new(Handle::current(), Err);
        let (send, receive) = oneshot::channel::<()>();
        tasks.begin(Box::pin(receive), |_| ());
        tasks.abort();
        assert!(send.is_closed(), "the request was dropped");
        let (send, receive) = oneshot::channel::<()>();
        tasks.begin(Box::pin(receive), |_| ());
        assert!(send.is_closed(), "a request after the end is dropped too");
    }
}
