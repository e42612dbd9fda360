//! Work that is done by the lock owner for somebody else: asking for it, and taking it on.
//!
//! The asker names its request, sends it, and waits for progress and the end; if nothing comes for
//! [`REQUEST_TIMEOUT_MS`] or the lock changes hands, it starts over (`ERESTART`, `ETIMEDOUT`). The owner takes every
//! request on once, however often it is told of it. Bounds: [`MAX_TAKEN_ON`] requests at a time.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use bytes::Bytes;
use ferry_store::Errno;
use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::messages::{AsyncRequestId, ClientId, Message, Request, decode_response, encode_response};
use crate::error::{ErrorKind, ImageError, Result};
use crate::image::Image;
use crate::progress::Progress;

/// How long an asker waits without a sign of progress (`rbd_request_timed_out_seconds`).
pub const REQUEST_TIMEOUT_MS: u64 = 30_000;
/// How often an asker looks whether a silent owner still lives.
const LIVENESS_MS: u64 = 500;
/// Requests of others that an owner works on at the same time.
const MAX_TAKEN_ON: usize = 64;
/// Pause between two progress messages.
const PROGRESS_PAUSE_MS: u64 = 100;

#[derive(Debug)]
enum Event {
    Progress(u64, u64),
    Complete(i32),
    OwnerChanged,
}

/// A request that somebody else works on.
#[derive(Debug)]
struct Asked {
    events: mpsc::Sender<Event>,
    /// Who took it on; unknown until the ack is there.
    owner: Option<ClientId>,
}

/// Requests of one handle: asked, and taken on.
#[derive(Debug, Default)]
pub struct Pending {
    asked: Mutex<HashMap<AsyncRequestId, Asked>>,
    taken: Mutex<HashSet<AsyncRequestId>>,
}

impl Pending {
    pub(crate) fn progress(&self, id: AsyncRequestId, offset: u64, total: u64) {
        self.send(id, Event::Progress(offset, total));
    }

    pub(crate) fn complete(&self, id: AsyncRequestId, result: i32) {
        self.send(id, Event::Complete(result));
    }

    /// `client` owns the lock now: whoever else works on our requests does not own it any more.
    pub(crate) fn lock_acquired(&self, client: ClientId) {
        self.owner_gone(|owner| owner != client);
    }

    /// `client` owns the lock no longer.
    pub(crate) fn lock_released(&self, client: ClientId) {
        self.owner_gone(|owner| owner == client);
    }

    fn owner_gone(&self, is_gone: impl Fn(ClientId) -> bool) {
        for asked in self.asked.lock().values() {
            if asked.owner.is_some_and(&is_gone) {
                let _ = asked.events.try_send(Event::OwnerChanged);
            }
        }
    }

    fn send(&self, id: AsyncRequestId, event: Event) {
        if let Some(asked) = self.asked.lock().get(&id) {
            // A full channel loses progress only: the end is sent again by the owner's next answer, or times out.
            let _ = asked.events.try_send(event);
        }
    }
}

/// Asks the lock owner to do `request`, and waits until it is done.
pub(crate) async fn forward(image: &Image, request: &Request, progress: &Progress) -> Result<(), Failed> {
    let id = image.request_id(super::ensure(image).await?);
    let (sender, mut events) = mpsc::channel(256);
    image.inner.watch.remote.asked.lock().insert(
        id,
        Asked {
            events: sender,
            owner: None,
        },
    );
    let result = ask(image, request, id, progress, &mut events).await;
    image.inner.watch.remote.asked.lock().remove(&id);
    if result.is_ok() {
        // Done, whatever this handle can read of it now.
        image.refresh().await.map_err(|error| Failed {
            error,
            accepted: true,
        })?;
    }
    result
}

async fn ask(
    image: &Image,
    request: &Request,
    id: AsyncRequestId,
    progress: &Progress,
    events: &mut mpsc::Receiver<Event>,
) -> Result<(), Failed> {
    let message = Message::Request {
        request: request.clone(),
        id: Some(id),
    };
    let what = || {
        format!(
            "image '{}': lock owner asked for {}",
            image.name(),
            message.name()
        )
    };
    let owner = offer(image, &message, id, what).await?;
    wait(image, owner, events, progress, what)
        .await
        .map_err(|error| Failed {
            error,
            accepted: true,
        })
}

/// Sends the request; the owner, who is named, takes it on or says why not.
async fn offer(
    image: &Image,
    message: &Message,
    id: AsyncRequestId,
    what: impl Fn() -> String,
) -> Result<ClientId, Failed> {
    // An owner that ends may have taken it on without being heard.
    let unheard = |error| Failed {
        error,
        accepted: true,
    };
    let reply = super::notify(&image.inner.io, &image.inner.header_object, message)
        .await
        .map_err(unheard)?;
    let mut answers = reply.acks.iter().filter(|(_, _, payload)| !payload.is_empty());
    let Some((gid, cookie, payload)) = answers.next() else {
        return Err(unheard(ImageError::new(
            Errno::ETIMEDOUT,
            format!("{}: nobody answered", what()),
        )));
    };
    if answers.next().is_some() {
        return Err(unheard(ImageError::new(
            Errno::EINVAL,
            format!("{}: two owners answered", what()),
        )));
    }
    let owner = ClientId {
        gid: *gid,
        handle: cookie.0,
    };
    if let Some(asked) = image.inner.watch.remote.asked.lock().get_mut(&id) {
        asked.owner = Some(owner);
    }
    let accepted = decode_response(payload)
        .map_err(|error| ImageError::new(Errno::EIO, format!("{}: {error}", what())))?;
    check(accepted, what)?;
    Ok(owner)
}

/// Waits for the end of a request that was taken on. The death of the owner is noticed by the watch that it had.
async fn wait(
    image: &Image,
    owner: ClientId,
    events: &mut mpsc::Receiver<Event>,
    progress: &Progress,
    what: impl Fn() -> String,
) -> Result<()> {
    let mut silent_ms = 0;
    loop {
        let slice = Duration::from_millis(LIVENESS_MS);
        match tokio::time::timeout(slice, events.recv()).await {
            Ok(Some(Event::Progress(done, total))) => {
                silent_ms = 0;
                progress.update(done, total);
            }
            Ok(Some(Event::Complete(result))) => return check(result, what),
            Ok(Some(Event::OwnerChanged)) => {
                let message = format!("{}: the lock changed hands", what());
                return Err(ImageError::new(Errno::ERESTART, message));
            }
            Ok(None) => silent_ms = REQUEST_TIMEOUT_MS,
            Err(_) => {
                silent_ms += LIVENESS_MS;
                let watchers = image.watchers().await?;
                if !watchers
                    .iter()
                    .any(|w| w.gid == owner.gid && w.cookie.0 == owner.handle)
                {
                    let message = format!("{}: client.{} is gone", what(), owner.gid);
                    return Err(ImageError::new(Errno::ERESTART, message));
                }
            }
        }
        if silent_ms >= REQUEST_TIMEOUT_MS {
            let message = format!("{}: no sign of progress", what());
            return Err(ImageError::new(Errno::ETIMEDOUT, message));
        }
    }
}

fn check(result: i32, what: impl Fn() -> String) -> Result<()> {
    match result {
        0 => Ok(()),
        code => {
            let errno = Errno(code.saturating_neg());
            let kind = match errno {
                Errno::ENOENT => ErrorKind::SnapMissing,
                _ => ErrorKind::Other,
            };
            Err(ImageError::of(kind, errno, what()))
        }
    }
}

/// Why a request to the lock owner came to nothing.
#[derive(Debug)]
pub(crate) struct Failed {
    /// What went wrong.
    pub error: ImageError,
    /// Whether the owner had taken the request on, or may have: then its work may be done all the same.
    pub accepted: bool,
}

impl From<ImageError> for Failed {
    fn from(error: ImageError) -> Self {
        Self {
            error,
            accepted: false,
        }
    }
}

/// Answers a request of somebody else; the body of the ack.
pub(crate) async fn take_on(image: &Image, request: Request, id: Option<AsyncRequestId>) -> Bytes {
    let tenure = image.tenure();
    if tenure.is_none() {
        return Bytes::new();
    }
    let Some(id) = id else {
        // Old clients wait for the ack; they get the result in it.
        let result = crate::maintenance::run(image, &request, tenure, &Progress::silent()).await;
        return encode_response(result_code(&result));
    };
    if Some(id.client) == image.client_id() {
        return encode_response(-Errno::ERESTART.0);
    }
    {
        let mut taken = image.inner.watch.remote.taken.lock();
        if taken.contains(&id) {
            return encode_response(0);
        }
        if taken.len() >= MAX_TAKEN_ON {
            return encode_response(-Errno::EAGAIN.0);
        }
        taken.insert(id);
    }
    let image = image.clone();
    tokio::spawn(async move {
        let (progress, report) = reporter(&image, id);
        let result = crate::maintenance::run(&image, &request, tenure, &progress).await;
        if let Err(error) = &result {
            tracing::info!(image = image.name(), %error, "request of another client failed");
        }
        report.abort();
        super::tell(
            &image,
            Message::AsyncComplete {
                id,
                result: result_code(&result),
            },
        )
        .await;
        image.inner.watch.remote.taken.lock().remove(&id);
    });
    encode_response(0)
}

fn result_code(result: &Result<()>) -> i32 {
    match result {
        Ok(()) => 0,
        Err(error) => -error.errno.0,
    }
}

/// Sends the newest progress on, not more often than every [`PROGRESS_PAUSE_MS`].
fn reporter(image: &Image, id: AsyncRequestId) -> (Progress, tokio::task::JoinHandle<()>) {
    let (sender, mut receiver) = tokio::sync::watch::channel((0, 0));
    let image = image.clone();
    let task = tokio::spawn(async move {
        while receiver.changed().await.is_ok() {
            let (offset, total) = *receiver.borrow_and_update();
            super::tell(&image, Message::AsyncProgress { id, offset, total }).await;
            tokio::time::sleep(Duration::from_millis(PROGRESS_PAUSE_MS)).await;
        }
    });
    let progress = Progress::new(move |done, total| {
        // librbd divides by the total.
        let _ = sender.send((done, total.max(1)));
    });
    (progress, task)
}
