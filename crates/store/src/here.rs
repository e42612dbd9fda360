//! What the thread that runs this very code may do, so that work need not go to another thread: waking one costs more than
//! a small request does.
//!
//! * A caller with a thread of its own, and nothing else to do, says that the thread may block ([`blocking`]); an engine may
//!   then do there what it otherwise hands to another one. Only what is polled on the thread itself while [`blocking`] runs
//!   is meant; tasks that it spawns are not.
//! * An engine whose thread brings an answer says that it has time for a little work ([`bringing`]); whoever the answer wakes
//!   may leave what is to be done next ([`next`]). That runs when the answer has been handed over, with nothing held, and
//!   must not block.

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Work that [`next`] takes.
pub type Work = Box<dyn FnOnce() + Send>;

thread_local! {
    static MAY_BLOCK: Cell<bool> = const { Cell::new(false) };
    /// What to do when the answer is handed over; `None` on other threads.
    static NEXT: RefCell<Option<Vec<Work>>> = const { RefCell::new(None) };
    /// Whether such work runs.
    static HURRIED: Cell<bool> = const { Cell::new(false) };
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

/// Hands an answer over, then does what it made necessary. For threads of an engine that call back; what wakes whom must
/// be the last thing that `hand_over` does.
pub fn bringing(hand_over: impl FnOnce()) {
    if NEXT.with_borrow(Option::is_some) {
        // Work that brings an answer itself: what is woken by it comes behind.
        return hand_over();
    }
    NEXT.set(Some(Vec::new()));
    HURRIED.set(true);
    hand_over();
    loop {
        let all = NEXT.with_borrow_mut(|next| next.as_mut().map(std::mem::take));
        let Some(all) = all.filter(|all| !all.is_empty()) else {
            break;
        };
        for work in all {
            if catch_unwind(AssertUnwindSafe(work)).is_err() {
                tracing::error!("work that an answer woke panicked");
            }
        }
    }
    NEXT.set(None);
    HURRIED.set(false);
}

/// Leaves work to this thread, if it brings an answer just now; otherwise the work comes back.
pub fn next(work: Work) -> Result<(), Work> {
    NEXT.with_borrow_mut(|next| match next {
        Some(all) => {
            all.push(work);
            Ok(())
        }
        None => Err(work),
    })
}

/// Whether this thread is wanted elsewhere: what could block it has to go to another one.
pub fn is_hurried() -> bool {
    HURRIED.get()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_answer_wakes_is_done_when_it_is_handed_over_and_nowhere_else() {
        use std::sync::{Arc, Mutex};
        let log = Arc::new(Mutex::new(Vec::new()));
        let note = |word: &'static str| {
            let log = Arc::clone(&log);
            Box::new(move || log.lock().unwrap().push((word, is_hurried()))) as Work
        };
        assert!(next(note("refused")).is_err(), "nobody brings anything");
        bringing(|| {
            assert!(next(note("first")).is_ok());
            assert!(next(Box::new(|| panic!("on purpose"))).is_ok());
            let last = note("last");
            let inner = Box::new(move || bringing(|| assert!(next(last).is_ok())));
            assert!(next(inner).is_ok());
            note("handed over")();
        });
        let expected = [("handed over", true), ("first", true), ("last", true)];
        assert_eq!(*log.lock().unwrap(), expected);
        assert!(next(note("refused")).is_err());
        assert!(!is_hurried());
    }

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
