//! The lease of one slot: who may come and go without a lock of the kernel's.
//!
//! A slot that one handle uses again and again is leased to it: one shared word names the handle, whether it is inside
//! now, and whether somebody else waits. Coming in and going out are then one atomic operation each, no system call.
//!
//! Keeps invariant: a lease is given only under the exclusive byte-range lock of the slot, and taken away only by its
//! owner or under that lock; whoever comes in by the byte-range lock takes the lease away first. An idle lease is taken
//! without its owner's help, so a stopped process is in nobody's way; that of a dead one counts as idle.
//! Does not know slots, objects or caches.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const BUSY: u64 = 1;
const WANTED: u64 = 2;
const FLAG_BITS: u32 = 2;
/// First and longest pause of whoever waits for a busy owner to leave.
const PAUSES_US: (u64, u64) = (20, 1000);
/// How long an owner that is inside is waited for before it is asked whether it still lives.
const LIVENESS_AFTER_MS: u64 = 50;

/// A slot's lease word.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lease<'a>(pub(super) &'a AtomicU64);

/// What became of an attempt to take a lease away without waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Revoked {
    /// Nobody has it now.
    Yes,
    /// Its owner is inside and has been told to give it up when it leaves.
    Busy,
}

fn idle(gid: u64) -> u64 {
    gid << FLAG_BITS
}

impl Lease<'_> {
    /// Comes in by a lease that `gid` has; false when it has none.
    pub(super) fn enter(self, gid: u64) -> bool {
        self.swap(idle(gid), idle(gid) | BUSY)
    }

    /// Whether `gid` is inside and nobody waits.
    pub(super) fn is_unwanted(self, gid: u64) -> bool {
        self.0.load(Ordering::SeqCst) == idle(gid) | BUSY
    }

    /// Gives `gid` the lease and comes in. Only under the exclusive byte-range lock, after [`Lease::revoke_now`].
    pub(super) fn grant(self, gid: u64) {
        self.0.store(idle(gid) | BUSY, Ordering::SeqCst);
    }

    /// Goes out; gives the lease up if somebody waits.
    pub(super) fn leave(self, gid: u64) {
        if !self.swap(idle(gid) | BUSY, idle(gid)) {
            self.swap(idle(gid) | BUSY | WANTED, 0);
        }
    }

    /// Takes the lease away if its owner is not inside. Only under a byte-range lock.
    pub(super) fn revoke_now(self) -> Revoked {
        loop {
            let word = self.0.load(Ordering::SeqCst);
            if word == 0 {
                return Revoked::Yes;
            }
            if word & BUSY != 0 {
                if word & WANTED != 0 || self.swap(word, word | WANTED) {
                    return Revoked::Busy;
                }
            } else if self.swap(word, 0) {
                return Revoked::Yes;
            }
        }
    }

    /// Takes the lease away, waiting for its owner to leave or to be dead. Blocks. Only under a byte-range lock.
    pub(super) fn revoke(self, is_alive: impl Fn(u64) -> bool) {
        let (mut pause_us, longest_us) = PAUSES_US;
        let mut asked = Instant::now();
        while self.revoke_now() == Revoked::Busy {
            std::thread::sleep(Duration::from_micros(pause_us));
            pause_us = (pause_us * 2).min(longest_us);
            if asked.elapsed() >= Duration::from_millis(LIVENESS_AFTER_MS) {
                asked = Instant::now();
                let word = self.0.load(Ordering::SeqCst);
                if word & BUSY != 0 && !is_alive(word >> FLAG_BITS) {
                    self.swap(word, 0);
                }
            }
        }
    }

    fn swap(self, from: u64, to: u64) -> bool {
        self.0
            .compare_exchange(from, to, Ordering::SeqCst, Ordering::SeqCst)
            .is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_owner_comes_in_by_a_lease() {
        let word = AtomicU64::new(0);
        let lease = Lease(&word);
        assert!(!lease.enter(7));
        lease.grant(7);
        assert!(lease.is_unwanted(7));
        lease.leave(7);
        assert!(!lease.enter(8));
        assert!(lease.enter(7));
        assert!(!lease.enter(7), "it is inside already");
    }

    #[test]
    fn an_idle_lease_is_taken_and_a_busy_one_is_given_up_at_the_end() {
        let word = AtomicU64::new(0);
        let lease = Lease(&word);
        lease.grant(7);
        assert_eq!(lease.revoke_now(), Revoked::Busy);
        assert!(!lease.is_unwanted(7));
        lease.leave(7);
        assert_eq!(lease.revoke_now(), Revoked::Yes);
        assert!(!lease.enter(7));
        lease.grant(7);
        lease.leave(7);
        assert_eq!(lease.revoke_now(), Revoked::Yes);
        assert!(!lease.enter(7));
    }

    #[test]
    fn the_lease_of_a_dead_owner_that_was_inside_is_taken() {
        let word = AtomicU64::new(0);
        let lease = Lease(&word);
        lease.grant(7);
        lease.revoke(|gid| {
            assert_eq!(gid, 7);
            false
        });
        assert_eq!(word.load(Ordering::SeqCst), 0);
        lease.leave(7);
        assert_eq!(
            word.load(Ordering::SeqCst),
            0,
            "who was taken for dead changes nothing"
        );
    }

    #[test]
    fn a_living_owner_is_waited_for() {
        let word = AtomicU64::new(0);
        let lease = Lease(&word);
        lease.grant(7);
        std::thread::scope(|scope| {
            let taker = scope.spawn(|| Lease(&word).revoke(|_| true));
            while lease.is_unwanted(7) {
                std::thread::yield_now();
            }
            lease.leave(7);
            taker.join().unwrap();
        });
        assert_eq!(word.load(Ordering::SeqCst), 0);
    }
}
