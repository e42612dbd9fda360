//! A signal that is given once and seen by all.
//!
//! The promise: [`Shutdown::requested`] returns after the trigger was pulled or dropped, however often and
//! wherever it is awaited, and may be cancelled and awaited again.

use tokio::sync::watch;

/// Makes a connected pair.
#[must_use]
pub fn shutdown_channel() -> (ShutdownTrigger, Shutdown) {
    let (sender, receiver) = watch::channel(false);
    (ShutdownTrigger(sender), Shutdown(receiver))
}

/// Asks for the shutdown. Dropping it asks too: nobody would be left who could.
#[derive(Debug)]
pub struct ShutdownTrigger(watch::Sender<bool>);

impl ShutdownTrigger {
    /// Asks for the shutdown. Asking again changes nothing.
    pub fn shut_down(&self) {
        self.0.send_replace(true);
    }
}

/// Learns of the shutdown.
#[derive(Debug, Clone)]
pub struct Shutdown(watch::Receiver<bool>);

impl Shutdown {
    /// Returns once the shutdown was asked for.
    pub async fn requested(&mut self) {
        // An error means that the trigger is gone, which asks for the shutdown as well.
        let _ = self.0.wait_for(|asked| *asked).await;
    }

    /// Whether the shutdown was asked for.
    #[must_use]
    pub fn is_requested(&self) -> bool {
        *self.0.borrow() || self.0.has_changed().is_err()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn pulling_and_dropping_the_trigger_are_both_seen_by_every_clone() {
        let (trigger, mut first) = shutdown_channel();
        let mut second = first.clone();
        assert!(!first.is_requested());
        trigger.shut_down();
        first.requested().await;
        second.requested().await;
        assert!(second.is_requested());

        let (trigger, mut third) = shutdown_channel();
        drop(trigger);
        third.requested().await;
        assert!(third.is_requested());
    }
}
