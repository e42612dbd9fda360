//! What a server has done since it began to listen, for whoever shows it while it runs.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters of one server; put into its [`ServerConfig`](crate::ServerConfig) and kept by the caller.
#[derive(Debug, Default)]
pub struct ServerStats {
    served: AtomicU64,
    refused: AtomicU64,
    put_out: AtomicU64,
    ended: AtomicU64,
    held: AtomicU64,
    held_now: AtomicU64,
}

impl ServerStats {
    /// Connections that were accepted and not refused, ended ones included.
    #[must_use]
    pub fn connections_served(&self) -> u64 {
        self.served.load(Ordering::Relaxed)
    }

    /// Connections that were closed at once because there were too many.
    #[must_use]
    pub fn connections_refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Connections that were ended in their handshake to make room for others.
    #[must_use]
    pub fn connections_put_out(&self) -> u64 {
        self.put_out.load(Ordering::Relaxed)
    }

    /// Connections that live now, those in their handshake included.
    #[must_use]
    pub fn connections_now(&self) -> u64 {
        // In this order, so that the difference is never negative.
        let ended = self.ended.load(Ordering::Acquire);
        self.connections_served().saturating_sub(ended)
    }

    /// Requests that wait for space now; see [`OnNoSpace::Pause`](crate::OnNoSpace::Pause).
    #[must_use]
    pub fn requests_held_now(&self) -> u64 {
        self.held_now.load(Ordering::Relaxed)
    }

    /// Requests that have waited for space, those that do now included.
    #[must_use]
    pub fn requests_held(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }

    /// A request begins to wait for space; how many did before.
    pub(crate) fn request_held(&self) -> u64 {
        self.held.fetch_add(1, Ordering::Relaxed);
        self.held_now.fetch_add(1, Ordering::Relaxed)
    }

    /// It waits no longer; how many do now.
    pub(crate) fn request_released(&self) -> u64 {
        self.held_now.fetch_sub(1, Ordering::Relaxed).saturating_sub(1)
    }

    pub(crate) fn connection_refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn connection_put_out(&self) {
        self.put_out.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a connection as living until the guard is dropped.
    pub(crate) fn connection_served(&self) -> LivingConnection<'_> {
        self.served.fetch_add(1, Ordering::Relaxed);
        LivingConnection(self)
    }
}

/// See [`ServerStats::connection_served`].
#[derive(Debug)]
pub(crate) struct LivingConnection<'a>(&'a ServerStats);

impl Drop for LivingConnection<'_> {
    fn drop(&mut self) {
        self.0.ended.fetch_add(1, Ordering::Release);
    }
}
