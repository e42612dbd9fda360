//! Watches and notifies.
//!
//! Invariants: the library's threads only put events into a bounded queue; the queue's address outlives every call the
//! library may still make (a watch is ended, then all calls under way are waited for, then the queue goes).

#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};
use std::fmt;
use std::ptr;
use std::slice;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, Ordering};

use bytes::Bytes;
use ferry_store::Errno;
use tokio::sync::mpsc;

use super::ioctx::{Ioctx, Raw};
use super::{Rc, check, completion, errno_of, text};

/// Most events of one watch that wait for its handler. What comes beyond is dropped: the notifier sees a timeout.
const EVENTS_MAX: usize = 1024;

/// What a watch hears.
#[derive(Debug)]
pub(crate) enum WatchEvent {
    /// A notify, which must be acked.
    Notify {
        /// Names the notify.
        notify_id: u64,
        /// The watch's handle.
        cookie: u64,
        /// Who sent it.
        notifier_gid: u64,
        /// What was sent.
        payload: Bytes,
    },
    /// The watch is gone.
    Lost(Errno),
}

/// A running watch.
pub(crate) struct Watching {
    ioctx: Arc<Ioctx>,
    object: String,
    cookie: u64,
    /// What the library calls with; taken back, and null, when the watch has ended.
    events: AtomicPtr<mpsc::Sender<WatchEvent>>,
}

impl fmt::Debug for Watching {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Watching({} of '{}')", self.cookie, self.object)
    }
}

struct WatchState {
    cookie: u64,
    events: *mut mpsc::Sender<WatchEvent>,
}

// SAFETY: the sender may be used by any thread.
unsafe impl Send for WatchState {}

unsafe extern "C" fn notified(
    events: *mut c_void,
    notify_id: u64,
    cookie: u64,
    notifier_gid: u64,
    data: *mut c_void,
    length: usize,
) {
    let payload = match data.is_null() || length == 0 {
        true => Bytes::new(),
        // SAFETY: the library says that so many bytes are there.
        false => Bytes::copy_from_slice(unsafe { slice::from_raw_parts(data.cast(), length) }),
    };
    // SAFETY: the queue lives until the watch has ended and all calls were waited for.
    let events = unsafe { &*events.cast::<mpsc::Sender<WatchEvent>>() };
    let event = WatchEvent::Notify {
        notify_id,
        cookie,
        notifier_gid,
        payload,
    };
    if events.try_send(event).is_err() {
        tracing::warn!(cookie, notify_id, "a notify is not heard: too many are waiting");
    }
}

unsafe extern "C" fn lost(events: *mut c_void, cookie: u64, error: c_int) {
    // SAFETY: as in `notified`.
    let events = unsafe { &*events.cast::<mpsc::Sender<WatchEvent>>() };
    if events.try_send(WatchEvent::Lost(errno_of(error))).is_err() {
        tracing::warn!(
            cookie,
            error,
            "the loss of a watch is not heard: too much is waiting"
        );
    }
}

impl Watching {
    /// Begins to watch; events go to the receiver.
    pub(crate) async fn begin(ioctx: &Arc<Ioctx>, object: &str) -> Rc<(Self, mpsc::Receiver<WatchEvent>)> {
        let (sender, events) = mpsc::channel(EVENTS_MAX);
        let sender = Box::into_raw(Box::new(sender));
        let state = Box::new(WatchState {
            cookie: 0,
            events: sender,
        });
        let name = text(object)?;
        let (functions, raw) = (ioctx.functions(), Raw(ioctx.raw));
        let done = completion::run(functions, Some(ioctx), state, move |state, completion| {
            let raw = raw;
            // SAFETY: places in a state that stays until the completion is called, and a queue that stays until
            // `Watching::end`; a string, copied. Timeout 0 is the OSD's default.
            unsafe {
                (functions.rados_aio_watch2)(
                    raw.0,
                    name.as_ptr(),
                    completion,
                    &mut (*state).cookie,
                    notified,
                    lost,
                    0,
                    (*state).events.cast(),
                )
            }
        });
        let done = done.await?;
        match check(done.returned) {
            Ok(_) => Ok((
                Self {
                    ioctx: ioctx.clone(),
                    object: object.to_owned(),
                    cookie: done.state.cookie,
                    events: AtomicPtr::new(done.state.events),
                },
                events,
            )),
            Err(errno) => {
                // The library has dropped a watch that failed, and may be calling for the last time.
                let _ = ioctx.cluster.flush_watches().await;
                // SAFETY: no more calls will come.
                drop(unsafe { Box::from_raw(done.state.events) });
                Err(errno)
            }
        }
    }

    /// The watch's handle.
    pub(crate) fn cookie(&self) -> u64 {
        self.cookie
    }

    /// Answers a notify.
    pub(crate) fn ack(&self, notify_id: u64, cookie: u64, answer: &[u8]) -> Rc<()> {
        let object = text(&self.object)?;
        let length = c_int::try_from(answer.len()).map_err(|_| Errno::E2BIG)?;
        // SAFETY: a string and a buffer of the length that is named, both copied.
        check(unsafe {
            (self.ioctx.functions().rados_notify_ack)(
                self.ioctx.raw,
                object.as_ptr(),
                notify_id,
                cookie,
                answer.as_ptr().cast(),
                length,
            )
        })
        .map(drop)
    }

    /// Ends the watch. When this returns, its queue is closed: what is in it is the last. The errno is what the OSD said.
    pub(crate) async fn end(&self) -> Rc<()> {
        let (functions, raw, cookie) = (self.ioctx.functions(), Raw(self.ioctx.raw), self.cookie);
        let unwatched = completion::run(
            functions,
            Some(&self.ioctx),
            Box::new(()),
            move |_, completion| {
                let raw = raw;
                // SAFETY: a context that the completion keeps.
                unsafe { (functions.rados_aio_unwatch)(raw.0, cookie, completion) }
            },
        );
        let ended = match unwatched.await {
            Ok(done) => done.ok().map(drop),
            Err(errno) => Err(errno),
        };
        self.ioctx.cluster.flush_watches().await?;
        let events = self.events.swap(ptr::null_mut(), Ordering::SeqCst);
        if !events.is_null() {
            // SAFETY: the watch has ended and every call was waited for; the swap gives it to one taker.
            drop(unsafe { Box::from_raw(events) });
        }
        ended
    }
}

struct NotifyState {
    functions: &'static super::library::Functions,
    reply: *mut std::ffi::c_char,
    length: usize,
}

// SAFETY: owned by the state, used by one thread at a time.
unsafe impl Send for NotifyState {}

impl Drop for NotifyState {
    fn drop(&mut self) {
        if !self.reply.is_null() {
            // SAFETY: the library's buffer, given back once.
            unsafe { (self.functions.rados_buffer_free)(self.reply) }
        }
    }
}

impl Ioctx {
    /// Notifies an object's watchers. Gives the encoded answers, and whether all watchers answered in time.
    pub(crate) async fn notify(
        self: &Arc<Self>,
        object: &str,
        payload: &[u8],
        timeout_ms: u64,
    ) -> Rc<(Bytes, bool)> {
        let object = text(object)?;
        let length = c_int::try_from(payload.len()).map_err(|_| Errno::E2BIG)?;
        let functions = self.functions();
        let state = Box::new(NotifyState {
            functions,
            reply: ptr::null_mut(),
            length: 0,
        });
        let (ioctx, data) = (Raw(self.raw), payload.to_vec());
        let done = completion::run(functions, Some(self), state, move |state, completion| {
            let ioctx = ioctx;
            // SAFETY: places in a state that stays until the completion is called; a string and a buffer, copied.
            unsafe {
                (functions.rados_aio_notify)(
                    ioctx.0,
                    object.as_ptr(),
                    completion,
                    data.as_ptr().cast(),
                    length,
                    timeout_ms,
                    &mut (*state).reply,
                    &mut (*state).length,
                )
            }
        });
        let done = done.await?;
        let all = match check(done.returned) {
            Ok(_) => true,
            Err(Errno::ETIMEDOUT) => false,
            Err(errno) => return Err(errno),
        };
        let reply = match done.state.reply.is_null() {
            true => Bytes::new(),
            // SAFETY: the library says that so many bytes are there.
            false => Bytes::copy_from_slice(unsafe {
                slice::from_raw_parts(done.state.reply.cast(), done.state.length)
            }),
        };
        Ok((reply, all))
    }
}
