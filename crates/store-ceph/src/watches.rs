//! The watches of a connection: each has a task that calls its handler, one event after another.
//!
//! Invariants: every notify is acked, with nothing if the handler fails; after [`Watches::end`] the handler is called no
//! more. A handler may end its own watch once it was told that the watch is lost, and only then.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use ferry_store::watch::Notification;
use ferry_store::{Errno, WatchCookie, WatchHandler};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::sys::{Ioctx, WatchEvent, Watching};

#[derive(Debug)]
struct Entry {
    watching: Arc<Watching>,
    lost: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

/// The watches.
#[derive(Debug, Default)]
pub(crate) struct Watches {
    entries: Mutex<HashMap<WatchCookie, Entry>>,
}

impl Watches {
    /// Begins a watch.
    pub(crate) async fn begin(
        &self,
        ioctx: &Arc<Ioctx>,
        object: &str,
        handler: Arc<dyn WatchHandler>,
    ) -> Result<WatchCookie, Errno> {
        let (watching, events) = Watching::begin(ioctx, object).await?;
        let watching = Arc::new(watching);
        let lost = Arc::new(AtomicBool::new(false));
        let cookie = WatchCookie(watching.cookie());
        let task = tokio::spawn(listen(watching.clone(), events, handler, lost.clone()));
        let entry = Entry { watching, lost, task };
        self.entries.lock().insert(cookie, entry);
        Ok(cookie)
    }

    /// Ends a watch. `ENOENT` for one that is not ours.
    pub(crate) async fn end(&self, cookie: WatchCookie) -> Result<(), Errno> {
        let entry = self.entries.lock().remove(&cookie).ok_or(Errno::ENOENT)?;
        let ended = match entry.watching.end().await {
            // Lost before, or gone with its object: ended all the same.
            Err(Errno::ENOTCONN | Errno::ENOENT | Errno::ESHUTDOWN) => Ok(()),
            other => other,
        };
        // A lost watch's task is over, or is the one that asks.
        if !entry.lost.load(Ordering::SeqCst) {
            // Its queue is closed: what is in it is worked off, and that is the end.
            let _ = entry.task.await;
        }
        ended
    }

    /// Ends all.
    pub(crate) async fn end_all(&self) {
        let cookies: Vec<WatchCookie> = self.entries.lock().keys().copied().collect();
        for cookie in cookies {
            let _ = self.end(cookie).await;
        }
    }
}

async fn listen(
    watching: Arc<Watching>,
    mut events: mpsc::Receiver<WatchEvent>,
    handler: Arc<dyn WatchHandler>,
    lost: Arc<AtomicBool>,
) {
    while let Some(event) = events.recv().await {
        match event {
            WatchEvent::Notify {
                notify_id,
                cookie,
                notifier_gid,
                payload,
            } => {
                let notification = Notification {
                    notify_id,
                    cookie: WatchCookie(cookie),
                    notifier_gid,
                    payload,
                };
                // In a task of its own: a handler that panics costs its answer, not the watch.
                let handler = handler.clone();
                let answered = tokio::spawn(async move { handler.notified(notification).await });
                let answer = answered.await.unwrap_or_else(|error| {
                    tracing::error!(%error, "a watch's handler failed");
                    Bytes::new()
                });
                if let Err(errno) = watching.ack(notify_id, cookie, &answer) {
                    tracing::debug!(%errno, "an answer to a notify was not sent");
                }
            }
            WatchEvent::Lost(errno) => {
                lost.store(true, Ordering::SeqCst);
                drop(watching);
                handler.lost(errno).await;
                return;
            }
        }
    }
}
