//! The watch on an image's header: keeps the header reading fresh, answers lock requests, takes on work for others.
//!
//! Invariants: every notify is acked soon; only the lock owner's ack has a body. A handle never waits for its own ack
//! while it holds the gate: notifies that it sent itself are acked without looking at the image.
//! What it does not know: what the forwarded work does ([`crate::watch::remote`] hands it to the right module).

pub mod messages;
pub mod remote;

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use async_trait::async_trait;
use bytes::Bytes;
use ferry_cls::rbd::feature;
use ferry_store::watch::Notification;
use ferry_store::{Errno, IoCtx, WatchCookie, WatchHandler, WatchInfo};
use parking_lot::Mutex;

use crate::error::{Result, absent_is_fine};
use crate::image::{Image, Inner};
use messages::{ClientId, Message};

/// How long a notifier waits for acks (librbd's constant).
pub const NOTIFY_TIMEOUT_MS: u64 = 5_000;
/// How long a watcher may take to make a migration step its own before it acks all the same.
const REFRESH_BEFORE_ACK_MS: u64 = 4_000;

/// The watch of one open handle.
#[derive(Debug, Default)]
pub struct ImageWatch {
    cookie: Mutex<Option<WatchCookie>>,
    /// Held while a watch begins, and while one is given up: a watch may be lost before whoever began it has heard of it, and two
    /// that begin at a time would leave one behind. Never while a store is waited for that waits for this handle's callbacks.
    changing: tokio::sync::Mutex<()>,
    /// Header updates this handle is sending right now.
    sending: AtomicUsize,
    pub(crate) remote: remote::Pending,
    next_request: AtomicU64,
}

impl ImageWatch {
    /// The watch's cookie; `None` when the handle does not watch.
    pub fn cookie(&self) -> Option<WatchCookie> {
        *self.cookie.lock()
    }
}

impl Image {
    /// How this handle is named in notifies; `None` when it does not watch.
    pub(crate) fn client_id(&self) -> Option<ClientId> {
        Some(self.client_watching_as(self.inner.watch.cookie()?))
    }

    pub(crate) fn next_request_id(&self) -> Option<messages::AsyncRequestId> {
        Some(self.request_id(self.inner.watch.cookie()?))
    }

    fn request_id(&self, watch: WatchCookie) -> messages::AsyncRequestId {
        let client = self.client_watching_as(watch);
        let request = self.inner.watch.next_request.fetch_add(1, Ordering::SeqCst) + 1;
        messages::AsyncRequestId { client, request }
    }

    fn client_watching_as(&self, watch: WatchCookie) -> ClientId {
        ClientId {
            gid: self.inner.io.store().instance().gid,
            handle: watch.0,
        }
    }

    /// Everybody who watches the header, this handle too.
    pub async fn watchers(&self) -> Result<Vec<WatchInfo>> {
        let io = &self.inner.io;
        Ok(io
            .store()
            .list_watchers(io.object(&self.inner.header_object))
            .await?)
    }

    /// Everybody else who watches the header.
    pub async fn other_watchers(&self) -> Result<Vec<WatchInfo>> {
        let own_gid = self.inner.io.store().instance().gid;
        let own = self.inner.watch.cookie();
        let all = self.watchers().await?;
        Ok(all
            .into_iter()
            .filter(|w| w.gid != own_gid || Some(w.cookie) != own)
            .collect())
    }
}

/// Begins to watch the header.
pub(crate) async fn register(image: &Image) -> Result<()> {
    let _changing = image.inner.watch.changing.lock().await;
    begin(image).await.map(|_| ())
}

/// The watch of a handle that is open for writing. One that was lost is waited for, and begun anew if that failed.
pub(crate) async fn ensure(image: &Image) -> Result<WatchCookie> {
    if let Some(cookie) = image.inner.watch.cookie() {
        return Ok(cookie);
    }
    let _changing = image.inner.watch.changing.lock().await;
    image.check_open()?;
    match image.inner.watch.cookie() {
        Some(cookie) => Ok(cookie),
        None => begin(image).await,
    }
}

/// The caller holds `changing`.
async fn begin(image: &Image) -> Result<WatchCookie> {
    let io = &image.inner.io;
    let handler = Arc::new(Handler {
        image: Arc::downgrade(&image.inner),
    });
    let cookie = io
        .store()
        .watch(io.object(&image.inner.header_object), handler)
        .await?;
    *image.inner.watch.cookie.lock() = Some(cookie);
    Ok(cookie)
}

/// Ends the watch of a closed handle, if there is one; none begins any more.
pub(crate) async fn unregister(image: &Image) -> Result<()> {
    let cookie = {
        let _changing = image.inner.watch.changing.lock().await;
        image.inner.watch.cookie.lock().take()
    };
    match cookie {
        Some(cookie) => absent_is_fine(image.inner.io.store().unwatch(cookie).await),
        None => Ok(()),
    }
}

/// Sends a message to everybody who watches `header_object`, and waits for the acks.
pub async fn notify(io: &IoCtx, header_object: &str, message: &Message) -> Result<ferry_store::NotifyReply> {
    Ok(io
        .store()
        .notify(io.object(header_object), message.encode(), NOTIFY_TIMEOUT_MS)
        .await?)
}

/// Tells every open handle of the image to read its header again. `sender`: the handle that made the change, which
/// has read it already. A header that is gone has no watchers: that is no error.
pub async fn notify_header_update(io: &IoCtx, header_object: &str, sender: Option<&Image>) -> Result<()> {
    if let Some(sender) = sender {
        sender.inner.watch.sending.fetch_add(1, Ordering::SeqCst);
    }
    let sent = io
        .store()
        .notify(
            io.object(header_object),
            Message::HeaderUpdate.encode(),
            NOTIFY_TIMEOUT_MS,
        )
        .await;
    if let Some(sender) = sender {
        sender.inner.watch.sending.fetch_sub(1, Ordering::SeqCst);
    }
    absent_is_fine(sent.map(|_| ()))
}

/// Tells everybody something that needs no answer; a failure to tell is logged and is not the caller's failure.
pub(crate) async fn tell(image: &Image, message: Message) {
    if let Err(error) = notify(&image.inner.io, &image.inner.header_object, &message).await {
        tracing::debug!(image = image.name(), %error, message = message.name(), "notify failed");
    }
}

#[derive(Debug)]
struct Handler {
    image: Weak<Inner>,
}

#[async_trait]
impl WatchHandler for Handler {
    async fn notified(&self, notification: Notification) -> Bytes {
        let Some(inner) = self.image.upgrade() else {
            return Bytes::new();
        };
        let image = Image { inner };
        match Message::decode(&notification.payload) {
            Ok(message) => handle(&image, message, notification.notifier_gid).await,
            Err(error) => {
                tracing::warn!(image = image.name(), %error, "notify that does not decode");
                Bytes::new()
            }
        }
    }

    async fn lost(&self, errno: Errno) {
        let Some(inner) = self.image.upgrade() else { return };
        let image = Image { inner };
        tracing::warn!(image = image.name(), %errno, "watch lost");
        image.want_refresh();
        if errno == Errno::ESHUTDOWN {
            return;
        }
        match watch_again(&image).await {
            Ok(()) => crate::exclusive_lock::rename_after_rewatch(&image).await,
            Err(error) => tracing::error!(image = image.name(), %error, "cannot watch again"),
        }
    }
}

/// Puts a watch in the place of one that was lost, unless the handle is closed.
pub(crate) async fn watch_again(image: &Image) -> Result<()> {
    let _changing = image.inner.watch.changing.lock().await;
    if image.check_open().is_err() {
        return Ok(());
    }
    let old = image.inner.watch.cookie.lock().take();
    if let Some(old) = old {
        // The one whose callback this is.
        let _ = image.inner.io.store().unwatch(old).await;
    }
    begin(image).await.map(|_| ())
}

async fn handle(image: &Image, message: Message, notifier_gid: u64) -> Bytes {
    let own = image.client_id();
    match message {
        Message::HeaderUpdate => {
            let own_gid = image.inner.io.store().instance().gid;
            let own_update = notifier_gid == own_gid && image.inner.watch.sending.load(Ordering::SeqCst) > 0;
            image.want_refresh();
            if !own_update {
                refresh_before_ack(image).await;
            }
            Bytes::new()
        }
        Message::AcquiredLock(client) => {
            if Some(client) != own {
                image.inner.lock.owner_changed();
                image.inner.watch.remote.lock_acquired(client);
            }
            Bytes::new()
        }
        Message::ReleasedLock(client) => {
            if Some(client) != own {
                image.inner.lock.owner_changed();
                image.inner.watch.remote.lock_released(client);
            }
            Bytes::new()
        }
        Message::RequestLock { client, .. } => {
            if Some(client) == own || !image.inner.lock.is_owner() {
                return Bytes::new();
            }
            crate::exclusive_lock::asked(image);
            messages::encode_response(0)
        }
        Message::AsyncProgress { id, offset, total } => {
            image.inner.watch.remote.progress(id, offset, total);
            Bytes::new()
        }
        Message::AsyncComplete { id, result } => {
            image.inner.watch.remote.complete(id, result);
            Bytes::new()
        }
        Message::Request { request, id } => remote::take_on(image, request, id).await,
        Message::Quiesce(_) | Message::Unquiesce(_) => Bytes::new(),
        Message::Unknown(op) => {
            if image.inner.lock.is_owner() {
                tracing::debug!(image = image.name(), op, "unknown request");
                messages::encode_response(-Errno::EOPNOTSUPP.0)
            } else {
                Bytes::new()
            }
        }
    }
}

/// A handle on a migration target makes the new state its own before it acks: whoever changed it relies on that.
async fn refresh_before_ack(image: &Image) {
    let migrating = image.header().has(feature::MIGRATING);
    let refreshing = {
        let image = image.clone();
        async move {
            if migrating {
                // Whoever looked at the old state is done with it when the gate is ours.
                let _drained = image.inner.gate.write().await;
                image.refresh_if_needed().await
            } else {
                image.refresh_if_needed().await
            }
        }
    };
    let limit = std::time::Duration::from_millis(REFRESH_BEFORE_ACK_MS);
    match tokio::time::timeout(limit, refreshing).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(image = image.name(), %error, "cannot read the changed header"),
        Err(_) => tracing::warn!(image = image.name(), "still reading the changed header"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::in_memory;
    use crate::progress::Progress;

    #[tokio::test]
    async fn a_writer_whose_lost_watch_could_not_be_begun_anew_begins_it_when_it_needs_it() {
        let image = in_memory::open_small().await;
        let lost = image.inner.watch.cookie.lock().take().unwrap();
        image.inner.io.store().unwatch(lost).await.unwrap();
        assert_eq!(image.watchers().await.unwrap().len(), 0);
        image.write(0, Bytes::from_static(b"written")).await.unwrap();
        assert_eq!(image.watchers().await.unwrap().len(), 1);
        // So does who asks that writer for something.
        let other = Image::open(
            image.io(),
            crate::ImageKey::Name("disk"),
            crate::OpenOptions::read_write(),
        )
        .await
        .unwrap();
        let lost = other.inner.watch.cookie.lock().take().unwrap();
        other.inner.io.store().unwatch(lost).await.unwrap();
        other.snap_create("s", &Progress::silent()).await.unwrap();
        assert!(image.owns_lock());
        other.close().await.unwrap();
        image.close().await.unwrap();
    }
}
