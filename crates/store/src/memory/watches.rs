//! Watches of all clients, and the task that calls each watch's handler.
//!
//! One task per watch takes deliveries from a bounded queue, so that calls for one watch never overlap and keep their
//! order. A delivery that is dropped unanswered means that the watcher is gone.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::error::Errno;
use crate::types::{ClientInstance, Namespace, PoolId};
use crate::watch::{Notification, WatchCookie, WatchHandler, WatchInfo};

/// Unanswered notifies that one watch may have; a watcher with more is reported as not answering.
const MOST_WAITING: usize = 1024;

/// Where the watched object is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) pool: PoolId,
    pub(super) namespace: Namespace,
    pub(super) name: String,
}

/// Why a watch ends.
#[derive(Debug, Clone, Copy)]
pub(super) enum End {
    /// As the client wished.
    Unwatched,
    /// It broke.
    Lost(Errno),
}

struct Delivery {
    notification: Notification,
    answer: oneshot::Sender<Bytes>,
}

struct Watch {
    place: Place,
    info: WatchInfo,
    deliveries: mpsc::Sender<Delivery>,
    end: oneshot::Sender<End>,
}

/// What became of sending to one watcher.
pub(super) struct Sent {
    pub(super) gid: u64,
    pub(super) cookie: WatchCookie,
    /// `None` when its queue is full.
    pub(super) answer: Option<oneshot::Receiver<Bytes>>,
}

/// All living watches, oldest first.
#[derive(Default)]
pub(super) struct Watches {
    list: Vec<Watch>,
    last_cookie: u64,
    last_notify: u64,
}

impl Watches {
    /// Adds a watch; the task ends with it.
    pub(super) fn add(
        &mut self,
        place: Place,
        client: ClientInstance,
        handler: Arc<dyn WatchHandler>,
    ) -> (WatchCookie, JoinHandle<()>) {
        self.last_cookie += 1;
        let cookie = WatchCookie(self.last_cookie);
        let (deliveries, waiting) = mpsc::channel(MOST_WAITING);
        let (end, ended) = oneshot::channel();
        self.list.push(Watch {
            place,
            info: WatchInfo {
                gid: client.gid,
                addr: Some(client.addr),
                cookie,
            },
            deliveries,
            end,
        });
        (cookie, tokio::spawn(serve(handler, waiting, ended)))
    }

    /// Ends those watches for which `which` says so. How many there were.
    pub(super) fn end(&mut self, end: End, which: impl Fn(&Place, &WatchInfo) -> bool) -> usize {
        let mut ended = 0;
        for watch in self.list.extract_if(.., |watch| which(&watch.place, &watch.info)) {
            // Fails only when the task is gone already.
            let _ = watch.end.send(end);
            ended += 1;
        }
        ended
    }

    /// Watchers of an object.
    pub(super) fn of(&self, place: &Place) -> Vec<WatchInfo> {
        let watches = self.list.iter().filter(|watch| watch.place == *place);
        watches.map(|watch| watch.info).collect()
    }

    /// Sends to all watchers of an object.
    pub(super) fn send(&mut self, place: &Place, notifier_gid: u64, payload: &Bytes) -> Vec<Sent> {
        self.last_notify += 1;
        let watches = self.list.iter().filter(|watch| watch.place == *place);
        watches
            .map(|watch| {
                let cookie = watch.info.cookie;
                let (answer, receiver) = oneshot::channel();
                let notification = Notification {
                    notify_id: self.last_notify,
                    cookie,
                    notifier_gid,
                    payload: payload.clone(),
                };
                let sent = watch.deliveries.try_send(Delivery { notification, answer });
                let full = matches!(sent, Err(mpsc::error::TrySendError::Full(_)));
                Sent {
                    gid: watch.info.gid,
                    cookie,
                    answer: (!full).then_some(receiver),
                }
            })
            .collect()
    }
}

async fn serve(
    handler: Arc<dyn WatchHandler>,
    mut waiting: mpsc::Receiver<Delivery>,
    mut ended: oneshot::Receiver<End>,
) {
    loop {
        let delivery = tokio::select! {
            biased;
            end = &mut ended => {
                if let Ok(End::Lost(errno)) = end {
                    handler.lost(errno).await;
                }
                return;
            }
            delivery = waiting.recv() => delivery,
        };
        let Some(Delivery { notification, answer }) = delivery else {
            return;
        };
        // Fails only when the notifier no longer waits.
        let _ = answer.send(handler.notified(notification).await);
    }
}
