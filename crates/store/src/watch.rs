//! Watch and notify: values and the callback.

use std::fmt;

use async_trait::async_trait;
use bytes::Bytes;

use crate::types::EntityAddr;

/// Handle of a watch; the number in `auto 140475025882368` lock cookies and `cookie=` of `rbd status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WatchCookie(pub u64);

/// One living watcher.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WatchInfo {
    /// Global id of the client.
    pub gid: u64,
    /// Where the client is; `None` where the engine cannot tell.
    pub addr: Option<EntityAddr>,
    /// Its handle.
    pub cookie: WatchCookie,
}

impl fmt::Display for WatchInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "client.{}", self.gid)?;
        match self.addr {
            Some(addr) => write!(f, " at {addr}"),
            None => Ok(()),
        }
    }
}

/// What a notify brought back.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NotifyReply {
    /// Watchers that answered, with their payloads.
    pub acks: Vec<(u64, WatchCookie, Bytes)>,
    /// Living watchers that did not answer in time: client gid and cookie.
    pub timeouts: Vec<(u64, WatchCookie)>,
}

/// A notify as it reaches a watcher.
#[derive(Debug, Clone)]
pub struct Notification {
    /// Unique per notify.
    pub notify_id: u64,
    /// The watch it came through.
    pub cookie: WatchCookie,
    /// Sender.
    pub notifier_gid: u64,
    /// What was sent.
    pub payload: Bytes,
}

/// Receives notifies. Calls for one watch are made one after another in the order they were sent.
#[async_trait]
pub trait WatchHandler: Send + Sync {
    /// Handles a notify; the returned bytes are the ack. Must answer soon: the notifier waits.
    async fn notified(&self, notification: Notification) -> Bytes;
    /// The watch broke (connection lost, blocklisted): no further notifies will come.
    async fn lost(&self, errno: crate::Errno);
}
