//! Watches and notifies between processes: a table of who watches what, a socket per client, frames on it.
//!
//! The table is volatile: a file of this boot in `run/`, made anew after a reboot. A row counts only while its client
//! lives (it holds its liveness lock), so dead watchers are noticed at once and nobody waits for them.
//!
//! Keeps invariant: a client listens before its first row is there; calls of one watch are made one after another.

pub(crate) mod frame;
pub(crate) mod registry;
pub(crate) mod server;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use ferry_store::{Errno, NotifyReply, Result, StoreError, WatchCookie, WatchHandler};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use frame::Request;
use registry::Target;

/// Notifies that may wait for one watch's handler.
const QUEUE_MAX: usize = 256;

/// A notify on its way to a handler.
#[derive(Debug)]
pub(crate) struct Delivery {
    notification: ferry_store::watch::Notification,
    answer: oneshot::Sender<Bytes>,
}

/// A watch, and where its answer will come from.
pub(crate) type Awaited = (WatchCookie, Option<oneshot::Receiver<Bytes>>);

/// The watches of this client.
#[derive(Debug)]
pub(crate) struct Watches {
    own: Mutex<HashMap<u64, Watch>>,
    next_cookie: AtomicU64,
    next_notify: AtomicU64,
}

struct Watch {
    target: Target,
    queue: mpsc::Sender<Delivery>,
    end: oneshot::Sender<()>,
    task: JoinHandle<()>,
    handler: Arc<dyn WatchHandler>,
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch")
            .field("target", &self.target)
            .finish_non_exhaustive()
    }
}

impl Watches {
    /// No watch yet.
    pub(crate) fn new() -> Self {
        Self {
            own: Mutex::default(),
            // Cookies look like the addresses that they are elsewhere; nobody may take them for small numbers.
            next_cookie: AtomicU64::new(0x5500_0000_0000 | u64::from(rand::random::<u32>()) << 4),
            next_notify: AtomicU64::new(1),
        }
    }

    /// Starts a watch's task; calls come once the row is in the registry.
    pub(crate) fn add(&self, target: Target, handler: Arc<dyn WatchHandler>) -> WatchCookie {
        let cookie = self.next_cookie.fetch_add(16, Ordering::Relaxed);
        let (queue, deliveries) = mpsc::channel(QUEUE_MAX);
        let (end, ended) = oneshot::channel();
        let watch = Watch {
            target,
            queue,
            end,
            task: tokio::spawn(call_in_turn(handler.clone(), deliveries, ended)),
            handler,
        };
        self.own.lock().insert(cookie, watch);
        WatchCookie(cookie)
    }

    /// Ends a watch and waits for the call that runs. `false`: there is no such watch.
    pub(crate) async fn remove(&self, cookie: WatchCookie) -> bool {
        let Some(watch) = self.own.lock().remove(&cookie.0) else {
            return false;
        };
        let _ = watch.end.send(());
        drop(watch.queue);
        let _ = watch.task.await;
        true
    }

    /// Whether there is such a watch.
    pub(crate) fn has(&self, cookie: WatchCookie) -> bool {
        self.own.lock().contains_key(&cookie.0)
    }

    /// Ends all watches without waiting and tells their handlers why, if there is a reason to tell.
    pub(crate) fn lose_all(&self, told: Option<Errno>) {
        let lost: Vec<Watch> = self.own.lock().drain().map(|(_, watch)| watch).collect();
        for watch in lost {
            watch.task.abort();
            if let Some(errno) = told {
                let handler = watch.handler;
                tokio::spawn(async move { handler.lost(errno).await });
            }
        }
    }

    /// Puts a notify into the queues of this client's watches of the object; gives where the answers will come from,
    /// `None` for a handler so far behind that it takes no more.
    pub(crate) fn deliver(&self, request: &Request) -> Vec<Awaited> {
        let own = self.own.lock();
        let mut answers = Vec::new();
        for (cookie, watch) in own.iter().filter(|(_, watch)| watch.target == request.target) {
            let (answer, answered) = oneshot::channel();
            let delivery = Delivery {
                notification: ferry_store::watch::Notification {
                    notify_id: request.notify_id,
                    cookie: WatchCookie(*cookie),
                    notifier_gid: request.notifier_gid,
                    payload: request.payload.clone(),
                },
                answer,
            };
            let taken = watch.queue.try_send(delivery).is_ok();
            answers.push((WatchCookie(*cookie), taken.then_some(answered)));
        }
        answers
    }

    /// Id for a notify of this client.
    pub(crate) fn next_notify_id(&self, gid: u64) -> u64 {
        gid << 32 | self.next_notify.fetch_add(1, Ordering::Relaxed) & 0xffff_ffff
    }
}

async fn call_in_turn(
    handler: Arc<dyn WatchHandler>,
    mut deliveries: mpsc::Receiver<Delivery>,
    mut ended: oneshot::Receiver<()>,
) {
    loop {
        let delivery = tokio::select! {
            biased;
            _ = &mut ended => return,
            delivery = deliveries.recv() => delivery,
        };
        let Some(delivery) = delivery else { return };
        let bytes = handler.notified(delivery.notification).await;
        // The notifier may have gone.
        let _ = delivery.answer.send(bytes);
    }
}

/// What one client's watches answered.
#[derive(Debug, Default)]
pub(crate) struct Answers {
    acks: Vec<(WatchCookie, Bytes)>,
    /// Watches that are alive but take no more.
    refused: Vec<WatchCookie>,
    /// Whether the client ended the connection: what is missing then will not come, and nobody waits for it.
    ended: bool,
}

impl Answers {
    /// Notes an answer; `None`: the watch takes no more.
    pub(crate) fn note(&mut self, cookie: WatchCookie, answer: Option<Bytes>) {
        match answer {
            Some(bytes) => self.acks.push((cookie, bytes)),
            None => self.refused.push(cookie),
        }
    }

    /// Notes the end of the connection.
    pub(crate) fn end(&mut self) {
        self.ended = true;
    }
}

/// Sends a notify to each client in `clients` (global ids, with the cookies it is known to watch with) and collects the answers.
pub(crate) async fn notify_all(
    watches: Arc<Watches>,
    own_gid: u64,
    sockets: Arc<server::Sockets>,
    request: Request,
    clients: Vec<(u64, Vec<WatchCookie>)>,
    timeout_ms: u64,
) -> Result<NotifyReply> {
    let deadline = Instant::now() + Duration::from_millis(timeout_ms.min(1 << 40));
    let request = Arc::new(request);
    let mut waiting = Vec::with_capacity(clients.len());
    for (gid, cookies) in clients {
        let (request, watches, sockets) = (request.clone(), watches.clone(), sockets.clone());
        let answers = Arc::new(Mutex::new(Answers::default()));
        let shared = answers.clone();
        let task = tokio::spawn(async move {
            let collect = async {
                match gid == own_gid {
                    true => collect_own(&watches, &request, &shared).await,
                    false => sockets.send(gid, &request, &shared).await,
                }
            };
            let _ = tokio::time::timeout_at(deadline, collect).await;
        });
        waiting.push((gid, cookies, answers, task));
    }
    let mut reply = NotifyReply::default();
    for (gid, cookies, answers, task) in waiting {
        if let Err(error) = task.await {
            return Err(StoreError::new(
                Errno::EIO,
                format!("notify client.{gid}: {error}"),
            ));
        }
        let answers = std::mem::take(&mut *answers.lock());
        let acked: Vec<WatchCookie> = answers.acks.iter().map(|(cookie, _)| *cookie).collect();
        let acks = answers
            .acks
            .into_iter()
            .map(|(cookie, bytes)| (gid, cookie, bytes));
        reply.acks.extend(acks);
        let late = match answers.ended {
            true => answers.refused,
            false => cookies
                .into_iter()
                .filter(|cookie| !acked.contains(cookie))
                .collect(),
        };
        reply
            .timeouts
            .extend(late.into_iter().map(|cookie| (gid, cookie)));
    }
    Ok(reply)
}

async fn collect_own(watches: &Watches, request: &Request, answers: &Mutex<Answers>) {
    for (cookie, answered) in watches.deliver(request) {
        match answered {
            None => answers.lock().note(cookie, None),
            // An answer that never comes (unwatched meanwhile) is not waited for.
            Some(answered) => {
                if let Ok(bytes) = answered.await {
                    answers.lock().note(cookie, Some(bytes));
                }
            }
        }
    }
    answers.lock().end();
}
