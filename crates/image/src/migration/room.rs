//! Whether there is room for one more object: an execute leaves the last space of the medium to clients.
//!
//! The promise: an object is begun only if what is free, without those that are under way, is enough for it beside the reserve,
//! as far as the store tells; where it tells nothing, always. The store is asked when what it said is used up or old, and
//! not more often than every [`LOOK_MS`] while there is no room. A store that is slow to say (monitors without a quorum) holds up the copies
//! under way, which clients may wait for, no longer than [`ANSWER_MS`]; until it has answered what it said before counts.

use std::time::Duration;

use ferry_store::{IoCtx, Result, Space};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

/// How old the store's answer may be; also how often an execute that waits looks.
pub(super) const LOOK_MS: u64 = 1_000;
/// How long an answer is waited for while copies are under way.
const ANSWER_MS: u64 = 200;
/// While there are none.
const IDLE_ANSWER_MS: u64 = 5_000;

/// What is left to clients of a medium of so many bytes when nobody says otherwise: a hundredth of it, but not less than 64 MiB
/// (of a small one, a sixteenth) and not more than 4 GiB.
pub fn default_reserve_bytes(total_bytes: u64) -> u64 {
    (total_bytes / 100)
        .max((64 << 20).min(total_bytes / 16))
        .min(4 << 30)
}

/// See the module's text.
#[derive(Debug)]
pub(super) struct Room {
    io: IoCtx,
    /// The question that is not answered yet: one at most.
    asked: JoinSet<Result<Option<Space>>>,
    looked: Option<Instant>,
    /// What may still be taken; `None`: no end is known.
    left_bytes: Option<u64>,
    /// What the store said last, and what of it is left to clients.
    seen: Option<(Space, u64)>,
    short: bool,
}

impl Room {
    /// Of the pool of `io`, where the data go.
    pub(super) fn new(io: &IoCtx) -> Self {
        Self {
            io: io.clone(),
            asked: JoinSet::new(),
            looked: None,
            left_bytes: None,
            seen: None,
            short: false,
        }
    }

    /// Whether there was no room for the last object that asked.
    pub(super) fn is_short(&self) -> bool {
        self.short
    }

    /// Takes room for an object, if there is. `reserve_bytes`: as the settings say; `under_way_bytes`: of objects that may not
    /// have taken theirs yet.
    pub(super) async fn take(
        &mut self,
        object_bytes: u64,
        under_way_bytes: u64,
        reserve_bytes: Option<u64>,
    ) -> bool {
        let is_fresh = self
            .looked
            .is_some_and(|looked| looked.elapsed() < Duration::from_millis(LOOK_MS));
        if is_fresh && self.short {
            return false;
        }
        if reserve_bytes == Some(0) {
            return true;
        }
        if !(is_fresh && self.has(object_bytes)) {
            let answer_ms = answer_ms(under_way_bytes > 0);
            self.look(under_way_bytes, reserve_bytes, answer_ms).await;
        }
        self.short = !self.has(object_bytes);
        if let Some(left) = &mut self.left_bytes
            && !self.short
        {
            *left -= object_bytes;
        }
        !self.short
    }

    /// Asks the store whether there is no room for an object, whatever else is under way: it has just been refused, or it is
    /// the reason for giving up.
    pub(super) async fn confirms(
        &mut self,
        object_bytes: u64,
        reserve_bytes: Option<u64>,
        others_run: bool,
    ) -> bool {
        self.look(0, reserve_bytes, answer_ms(others_run)).await;
        self.short = !self.has(object_bytes);
        self.short
    }

    /// An object was copied: where nobody looks for room, only this shows that there is some again.
    pub(super) fn copied(&mut self, reserve_bytes: Option<u64>) {
        if reserve_bytes == Some(0) {
            self.short = false;
        }
    }

    /// The settings have changed: what was seen counts no longer.
    pub(super) fn forget(&mut self) {
        self.looked = None;
    }

    /// For people: what is free, and what is left to clients.
    pub(super) fn text(&self) -> String {
        match self.seen {
            Some((space, reserve_bytes)) => format!(
                "{} bytes are free where its data go, of which {reserve_bytes} are left to clients",
                space.free_bytes
            ),
            None => "no space is free where its data go".to_owned(),
        }
    }

    fn has(&self, object_bytes: u64) -> bool {
        self.left_bytes.is_none_or(|left| left >= object_bytes)
    }

    async fn look(&mut self, under_way_bytes: u64, reserve_bytes: Option<u64>, answer_ms: u64) {
        if self.asked.is_empty() {
            let io = self.io.clone();
            self.asked.spawn(async move { io.store().space(io.pool()).await });
        }
        let answer = timeout(Duration::from_millis(answer_ms), self.asked.join_next()).await;
        self.looked = Some(Instant::now());
        let space = match answer {
            Err(_) => return,
            Ok(Some(Ok(Ok(space)))) => space,
            Ok(failed) => {
                tracing::debug!(?failed, "cannot see how much space there is");
                None
            }
        };
        self.seen = space.map(|space| {
            let reserve = reserve_bytes.unwrap_or_else(|| default_reserve_bytes(space.total_bytes));
            (space, reserve)
        });
        self.left_bytes = self.seen.map(|(space, reserve)| {
            let above = space.free_bytes.saturating_sub(reserve);
            above.saturating_sub(under_way_bytes)
        });
    }
}

fn answer_ms(others_run: bool) -> u64 {
    if others_run { ANSWER_MS } else { IDLE_ANSWER_MS }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_reserve_grows_with_the_medium_within_limits() {
        for (total, reserve) in [
            (16 << 20, 1 << 20),
            (1 << 30, 64 << 20),
            (4 << 30, 64 << 20),
            (100 << 30, 1 << 30),
            (4 << 40, 4 << 30),
            (0, 0),
        ] {
            assert_eq!(default_reserve_bytes(total), reserve, "{total}");
        }
    }
}
