//! One asynchronous operation: from the library's completion to a future.
//!
//! Invariants: the memory that an operation writes to (`state`) belongs to the completion from the submission until its
//! callback runs, wherever the future is; each completion serves one operation (two are a known crash); the callback
//! never blocks: what it wakes may go on in it ([`ferry_store::here`]), but starts no operation there, as the library
//! lets whoever has many under way wait.

#![allow(unsafe_code)]

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::ptr;
use std::sync::Arc;
use std::task::Poll;

use ferry_store::Errno;
use tokio::sync::oneshot;

use super::ioctx::Ioctx;
use super::library::{Functions, RawCompletion};
use super::{Rc, check, errno_of};

thread_local! {
    /// Set on threads that have called back.
    static LIBRARY_THREAD: Cell<bool> = const { Cell::new(false) };
}

/// Whether this is one of the library's threads.
pub(super) fn is_library_thread() -> bool {
    LIBRARY_THREAD.get()
}

/// What an operation came to.
#[derive(Debug)]
pub(super) struct Done<T> {
    /// What it returned: negative errno, or what the operation says.
    pub(super) returned: c_int,
    /// Version of the object.
    pub(super) version: u64,
    /// What was handed in, as the library left it.
    pub(super) state: Box<T>,
}

impl<T> Done<T> {
    /// The state, or the errno.
    pub(super) fn ok(self) -> Rc<Box<T>> {
        check(self.returned).map(|_| self.state)
    }
}

struct Pending<T> {
    functions: &'static Functions,
    state: Box<T>,
    answer: oneshot::Sender<Done<T>>,
    ioctx: Option<Arc<Ioctx>>,
}

/// Submits what `start` starts and waits for it. `start` gets the state's address and the completion; it must do nothing
/// with the state after it handed the completion over, and returns what the library returned.
pub(super) async fn run<T: Send + 'static>(
    functions: &'static Functions,
    ioctx: Option<&Arc<Ioctx>>,
    state: Box<T>,
    start: impl FnOnce(*mut T, RawCompletion) -> c_int,
) -> Rc<Done<T>> {
    leave_the_callback().await;
    let waiting = submit(functions, ioctx, state, start)?;
    // The sender goes without an answer only when the library is torn down.
    waiting.await.map_err(|_| Errno::ESHUTDOWN)
}

/// Goes on on a thread of the runtime, if this is one that calls back.
async fn leave_the_callback() {
    let mut left = !ferry_store::here::is_hurried();
    std::future::poll_fn(|context| {
        if std::mem::replace(&mut left, true) {
            return Poll::Ready(());
        }
        let waker = context.waker().clone();
        tokio::spawn(async move { waker.wake() });
        Poll::Pending
    })
    .await;
}

fn submit<T: Send + 'static>(
    functions: &'static Functions,
    ioctx: Option<&Arc<Ioctx>>,
    state: Box<T>,
    start: impl FnOnce(*mut T, RawCompletion) -> c_int,
) -> Rc<oneshot::Receiver<Done<T>>> {
    let (answer, waiting) = oneshot::channel();
    let pending = Box::into_raw(Box::new(Pending {
        functions,
        state,
        answer,
        ioctx: ioctx.cloned(),
    }));
    let mut completion: RawCompletion = ptr::null_mut();
    // SAFETY: `pending` stays valid until `finished::<T>` takes it back, or until below when nothing was submitted.
    let made =
        unsafe { (functions.rados_aio_create_completion2)(pending.cast(), finished::<T>, &mut completion) };
    if made < 0 {
        // SAFETY: no completion has it.
        drop(unsafe { Box::from_raw(pending) });
        return Err(errno_of(made));
    }
    // SAFETY: nobody else has it yet; only the address of the state is taken.
    let state: *mut T = unsafe { &raw mut *(*pending).state };
    let started = start(state, completion);
    if started < 0 {
        // SAFETY: the operation was refused, so the callback will not run: both are still ours.
        unsafe {
            (functions.rados_aio_release)(completion);
            drop(Box::from_raw(pending));
        }
        return Err(errno_of(started));
    }
    Ok(waiting)
}

unsafe extern "C" fn finished<T: Send>(completion: RawCompletion, argument: *mut c_void) {
    LIBRARY_THREAD.set(true);
    // SAFETY: the argument is what `submit` gave, and this is the one call for it.
    let pending = unsafe { Box::from_raw(argument.cast::<Pending<T>>()) };
    let Pending {
        functions,
        state,
        answer,
        ioctx,
    } = *pending;
    // SAFETY: the completion is complete, and is released once, after its last use.
    let (returned, version) = unsafe {
        let returned = (functions.rados_aio_get_return_value)(completion);
        let version = (functions.rados_aio_get_version)(completion);
        (functions.rados_aio_release)(completion);
        (returned, version)
    };
    let done = Done {
        returned,
        version,
        state,
    };
    // Before the answer: whoever has all answers may end the connection.
    drop(ioctx);
    ferry_store::here::bringing(|| {
        // Whoever asked has gone: the state goes here, unread.
        let _ = answer.send(done);
    });
}
