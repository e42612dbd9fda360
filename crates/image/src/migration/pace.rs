//! How fast objects may be copied: a bucket of bytes, a number of objects at a time, and, where neither is set, yielding
//! to the clients of the image.
//!
//! Pure bookkeeping over instants that the caller gives; never waits. Invariants: over any time the bytes charged
//! exceed rate x time by no more than one tenth of a second's worth and the objects under way; while yielding, copying goes on at
//! [`YIELDING_BYTES_PER_SECOND`].

use std::time::Duration;

use tokio::time::Instant;

use super::settings::{ExecuteSettings, Rate};
use crate::client_activity::ClientActivity;

/// Bytes a second that are copied beside busy clients when no rate is set.
pub const YIELDING_BYTES_PER_SECOND: u64 = 16 << 20;
/// How long after the last operation of a client it counts as busy.
pub const QUIET_MS: u64 = 500;
/// How often client activity is looked at.
pub(super) const SAMPLE_MS: u64 = 50;
/// Share of a second's bytes that may be saved up.
const BURST_FRACTION: f64 = 0.1;

/// Bytes that may be copied now.
#[derive(Debug)]
struct Bucket {
    bytes_per_second: u64,
    /// Negative while objects were charged that the time since has not paid for.
    balance_bytes: f64,
    filled: Instant,
}

impl Bucket {
    fn new(bytes_per_second: u64, now: Instant) -> Self {
        Self {
            bytes_per_second: bytes_per_second.max(1),
            balance_bytes: 1.0,
            filled: now,
        }
    }

    fn fill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.filled).as_secs_f64();
        let rate = self.bytes_per_second as f64;
        let most = (rate * BURST_FRACTION).max(1.0);
        self.balance_bytes = (self.balance_bytes + passed * rate).min(most);
        self.filled = now;
    }

    /// When the next object may start, if not now.
    fn wait(&mut self, now: Instant) -> Option<Duration> {
        self.fill(now);
        if self.balance_bytes > 0.0 {
            return None;
        }
        // One byte more than nothing, and never so short that a clock of milliseconds spins.
        let seconds = (1.0 - self.balance_bytes) / self.bytes_per_second as f64;
        Some(Duration::from_secs_f64(seconds.clamp(0.001, 3600.0)))
    }
}

/// See the module's text.
#[derive(Debug)]
pub(super) struct Pace {
    settings: ExecuteSettings,
    default_concurrency: usize,
    bucket: Option<Bucket>,
    /// Operations of clients at the last look.
    seen: u64,
    /// When a client was last seen at work.
    busy: Option<Instant>,
}

impl Pace {
    pub(super) fn new(
        settings: ExecuteSettings,
        default_concurrency: usize,
        activity: &ClientActivity,
        now: Instant,
    ) -> Self {
        let mut pace = Self {
            settings,
            default_concurrency,
            bucket: None,
            seen: 0,
            busy: None,
        };
        // A handle that ever had clients begins as if they were busy.
        pace.sample(activity, now);
        pace
    }

    pub(super) fn settings(&self) -> &ExecuteSettings {
        &self.settings
    }

    pub(super) fn set(&mut self, settings: ExecuteSettings, now: Instant) {
        self.settings = settings;
        self.set_bucket(now);
    }

    /// Looks at what clients do.
    pub(super) fn sample(&mut self, activity: &ClientActivity, now: Instant) {
        let begun = activity.begun();
        if begun != self.seen || activity.in_flight() > 0 {
            self.busy = Some(now);
        }
        self.seen = begun;
        if self
            .busy
            .is_some_and(|busy| now.saturating_duration_since(busy) >= Duration::from_millis(QUIET_MS))
        {
            self.busy = None;
        }
        self.set_bucket(now);
    }

    /// Whether it copies little because clients are busy.
    pub(super) fn is_yielding(&self) -> bool {
        self.settings.is_adaptive() && self.busy.is_some()
    }

    /// Most objects that may be under way; 0 while paused.
    pub(super) fn concurrency(&self) -> usize {
        if self.settings.paused {
            0
        } else if let Some(concurrency) = self.settings.concurrency {
            usize::from(concurrency)
        } else if self.is_yielding() {
            1
        } else {
            self.default_concurrency
        }
    }

    fn set_bucket(&mut self, now: Instant) {
        let rate = match self.settings.rate {
            Rate::BytesPerSecond(bytes) => Some(bytes),
            Rate::Adaptive if self.is_yielding() => Some(YIELDING_BYTES_PER_SECOND),
            Rate::Adaptive | Rate::Unlimited => None,
        };
        match (rate, &mut self.bucket) {
            (None, bucket) => *bucket = None,
            (Some(rate), Some(bucket)) if bucket.bytes_per_second == rate => {}
            (Some(rate), Some(bucket)) => {
                // A debt stays a debt.
                bucket.fill(now);
                bucket.bytes_per_second = rate;
            }
            (Some(rate), bucket) => *bucket = Some(Bucket::new(rate, now)),
        }
    }

    /// How long the next object has to wait for the bytes of those before; `None`: it may start.
    pub(super) fn wait(&mut self, now: Instant) -> Option<Duration> {
        self.bucket.as_mut().and_then(|bucket| bucket.wait(now))
    }

    /// An object begins that may take so many bytes.
    pub(super) fn charge(&mut self, bytes: u64) {
        if let Some(bucket) = &mut self.bucket {
            bucket.balance_bytes -= bytes as f64;
        }
    }

    /// It took others.
    pub(super) fn settle(&mut self, charged_bytes: u64, taken_bytes: u64) {
        if let Some(bucket) = &mut self.bucket {
            bucket.balance_bytes += charged_bytes as f64 - taken_bytes as f64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(start: Instant, ms: u64) -> Instant {
        start + Duration::from_millis(ms)
    }

    fn pace(settings: ExecuteSettings, activity: &ClientActivity, now: Instant) -> Pace {
        Pace::new(settings, 10, activity, now)
    }

    /// Bytes of objects that may start in the milliseconds from `start` on, objects taking no time.
    fn started(pace: &mut Pace, start: Instant, ms: u64, object_bytes: u64) -> u64 {
        let mut bytes = 0;
        for now in 0..ms {
            while pace.wait(at(start, now)).is_none() {
                pace.charge(object_bytes);
                bytes += object_bytes;
            }
        }
        bytes
    }

    #[test]
    fn a_rate_is_kept_on_average_whatever_the_size_of_objects() {
        let activity = ClientActivity::default();
        for object_bytes in [1000, 4 << 20] {
            let settings = ExecuteSettings {
                rate: Rate::BytesPerSecond(1_000_000),
                ..ExecuteSettings::default()
            };
            let start = Instant::now();
            let mut pace = pace(settings, &activity, start);
            let bytes = started(&mut pace, start, 60_000, object_bytes);
            assert!(bytes >= 59_900_000, "{bytes}");
            assert!(bytes <= 60_100_000 + object_bytes, "{bytes}");
        }
    }

    #[test]
    fn what_was_not_taken_is_given_back() {
        let activity = ClientActivity::default();
        let settings = ExecuteSettings {
            rate: Rate::BytesPerSecond(1000),
            ..ExecuteSettings::default()
        };
        let start = Instant::now();
        let mut pace = pace(settings, &activity, start);
        for _ in 0..100 {
            assert_eq!(pace.wait(start), None);
            pace.charge(4 << 20);
            pace.settle(4 << 20, 0);
        }
        pace.charge(1000);
        assert!(pace.wait(start).is_some());
    }

    #[test]
    fn clients_at_work_slow_the_copy_down_until_they_have_been_quiet_for_a_while() {
        let activity = ClientActivity::default();
        let start = Instant::now();
        let mut pace = pace(ExecuteSettings::default(), &activity, start);
        assert_eq!((pace.concurrency(), pace.is_yielding()), (10, false));
        let operation = activity.begin();
        pace.sample(&activity, at(start, 50));
        assert_eq!((pace.concurrency(), pace.is_yielding()), (1, true));
        pace.sample(&activity, at(start, 5_000));
        assert!(pace.is_yielding(), "the operation is still under way");
        drop(operation);
        pace.sample(&activity, at(start, 5_000 + QUIET_MS - 1));
        assert!(pace.is_yielding());
        let bytes = started(&mut pace, at(start, 6_000), 2_000, 1 << 20);
        assert!(bytes > 0 && bytes <= YIELDING_BYTES_PER_SECOND * 3, "{bytes}");
        pace.sample(&activity, at(start, 9_000));
        assert_eq!((pace.concurrency(), pace.wait(at(start, 9_000))), (10, None));
    }

    #[test]
    fn explicit_settings_do_not_yield() {
        let activity = ClientActivity::default();
        let _operation = activity.begin();
        let now = Instant::now();
        for settings in [
            ExecuteSettings {
                rate: Rate::Unlimited,
                ..ExecuteSettings::default()
            },
            ExecuteSettings {
                concurrency: Some(10),
                ..ExecuteSettings::default()
            },
        ] {
            let mut pace = pace(settings, &activity, now);
            assert_eq!((pace.concurrency(), pace.wait(now)), (10, None), "{settings:?}");
        }
    }

    #[test]
    fn a_new_rate_does_not_forgive_what_was_taken_at_the_old_one() {
        let activity = ClientActivity::default();
        let with_rate = |bytes| ExecuteSettings {
            rate: Rate::BytesPerSecond(bytes),
            ..ExecuteSettings::default()
        };
        let now = Instant::now();
        let mut pace = pace(with_rate(1000), &activity, now);
        pace.charge(1 << 20);
        pace.set(with_rate(2000), now);
        assert!(pace.wait(now).is_some_and(|wait| wait > Duration::from_secs(500)));
    }
}
