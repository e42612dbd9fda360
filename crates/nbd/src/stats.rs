//! What a server has done since it began to listen, for whoever shows it while it runs.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters of one server; put into its [`ServerConfig`](crate::ServerConfig) and kept by the caller.
#[derive(Debug, Default)]
pub struct ServerStats {
    served: AtomicU64,
    refused: AtomicU64,
    put_out: AtomicU64,
    ended: AtomicU64,
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
