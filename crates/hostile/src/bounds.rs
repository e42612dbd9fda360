//! What an input may cost, and whether it stayed within it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use crate::memory;

/// Longest that one input may keep a processor busy. The clock is the thread's own: a busy machine is no fault.
pub const TIME_LIMIT: Duration = Duration::from_secs(1);
/// Most memory that one input may take at a time, beside what was there before, in bytes.
pub const MEMORY_LIMIT_BYTES: usize = 256 << 20;

/// What became of one input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It was taken or refused, within the bounds.
    Fine,
    /// It made the reader panic.
    Crash,
    /// It took longer than [`TIME_LIMIT`].
    OverTime,
    /// It took more than [`MEMORY_LIMIT_BYTES`], or asked for that much at once. Seen only in programs whose allocator
    /// is [`memory::Counting`].
    OverMemory,
}

/// Hands the bytes to a target and judges it. A target that never returns is for whoever runs this to notice.
#[must_use]
pub fn judge(run: fn(&[u8]), bytes: &[u8]) -> Verdict {
    let began = busy();
    let before = memory::start();
    let outcome = catch_unwind(AssertUnwindSafe(|| run(bytes)));
    let peak_bytes = memory::peak_bytes().saturating_sub(before);
    if peak_bytes > MEMORY_LIMIT_BYTES {
        return Verdict::OverMemory;
    }
    if outcome.is_err() {
        return Verdict::Crash;
    }
    if busy().saturating_sub(began) > TIME_LIMIT {
        return Verdict::OverTime;
    }
    Verdict::Fine
}

/// How long this thread has kept a processor busy.
fn busy() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    // Neither is negative, and a second has fewer nanoseconds than fit.
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
