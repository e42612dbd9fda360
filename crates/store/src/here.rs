//! Threads that may block: a caller with a thread of its own, and nothing else to do, says so, and an engine may then do
//! on that thread what it otherwise hands to another one.
//!
//! Only what is polled on the thread itself while [`blocking`] runs is meant; tasks that it spawns are not.

use std::cell::Cell;

thread_local! {
    static MAY_BLOCK: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work` on this thread, which may block meanwhile. Not for threads of a runtime.
pub fn blocking<R>(work: impl FnOnce() -> R) -> R {
    struct Before(bool);
    impl Drop for Before {
        fn drop(&mut self) {
            MAY_BLOCK.set(self.0);
        }
    }
    let _before = Before(MAY_BLOCK.replace(true));
    work()
}

/// Whether this thread may block.
pub fn may_block() -> bool {
    MAY_BLOCK.get()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_may_block_while_it_said_so_and_no_longer_also_after_a_panic() {
        assert!(!may_block());
        blocking(|| {
            assert!(may_block());
            blocking(|| ());
            assert!(may_block(), "the inner one has taken the outer's permission");
            assert!(!std::thread::spawn(may_block).join().unwrap_or(true));
        });
        assert!(!may_block());
        let panicked = std::panic::catch_unwind(|| blocking(|| panic!("on purpose")));
        assert!(panicked.is_err());
        assert!(!may_block());
    }
}
