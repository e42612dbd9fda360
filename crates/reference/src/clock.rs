//! Moments, and what was written at each.
//!
//! Invariants: no two moments are the same. What is remembered of writes is for naming those that turn up where they do not
//! belong, and bounded, but for data that a test gave itself: that is kept as long as the clock, since reads are judged by it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::tag::Tag;

/// Most writes that are remembered for their names.
const REMEMBERED: usize = 4096;

/// Gives every beginning and every end a moment of its own. Images that are cloned from one another share one.
#[derive(Debug, Clone, Default)]
pub struct Clock(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    now: AtomicU64,
    writes: Mutex<Writes>,
}

#[derive(Debug, Clone, Default)]
struct Writes {
    /// Data that did not come from a tag, by the tag of its write, with the offset.
    given: BTreeMap<u64, (u64, Vec<u8>)>,
    /// The last writes of a tag's own bytes, with their ranges.
    recent: VecDeque<(Tag, u64, u64)>,
}

impl Clock {
    pub(crate) fn tick(&self) -> u64 {
        self.0.now.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(crate) fn now(&self) -> u64 {
        self.0.now.load(Ordering::Relaxed)
    }

    /// Another one that goes on from the same moment, with the same past.
    pub(crate) fn fork(&self) -> Self {
        Self(Arc::new(Inner {
            now: AtomicU64::new(self.now()),
            writes: Mutex::new(self.writes().clone()),
        }))
    }

    fn writes(&self) -> MutexGuard<'_, Writes> {
        self.0.writes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A write with these bytes instead of its tag's.
    pub(crate) fn give(&self, tag: Tag, offset: u64, data: &[u8]) {
        self.writes().given.insert(tag.0, (offset, data.to_vec()));
    }

    /// A write with its tag's bytes.
    pub(crate) fn remember(&self, tag: Tag, start: u64, end: u64) {
        let mut writes = self.writes();
        if writes.recent.len() == REMEMBERED {
            writes.recent.pop_front();
        }
        writes.recent.push_back((tag, start, end));
    }

    /// Bytes of a write that was given its data.
    pub(crate) fn given(&self, tag: Tag, start: u64, end: u64) -> Vec<u8> {
        let writes = self.writes();
        writes.given.get(&tag.0).map_or_else(Vec::new, |(offset, data)| {
            data[(start - offset) as usize..(end - offset) as usize].to_vec()
        })
    }

    /// The newest write that put `sample` at `offset`; else one that put it elsewhere, and where.
    pub(crate) fn origin(&self, offset: u64, sample: &[u8]) -> Option<(Tag, u64)> {
        let writes = self.writes();
        let length = sample.len() as u64;
        let here = (0..=self.now())
            .rev()
            .map(Tag)
            .find(|tag| match writes.given.get(&tag.0) {
                Some((start, data)) => offset
                    .checked_sub(*start)
                    .and_then(|at| data.get(at as usize..(at + length) as usize))
                    .is_some_and(|bytes| bytes == sample),
                None => tag.byte(offset) == sample[0] && tag.bytes(offset, length) == sample,
            });
        if let Some(tag) = here {
            return Some((tag, offset));
        }
        let given = writes.given.iter().rev().find_map(|(tag, (start, data))| {
            let at = data.windows(sample.len()).position(|bytes| bytes == sample)?;
            Some((Tag(*tag), start + at as u64))
        });
        let tagged = || {
            writes.recent.iter().rev().find_map(|(tag, start, end)| {
                let mut places = *start..(end + 1).saturating_sub(length);
                let is_there = |at: &u64| tag.byte(*at) == sample[0] && tag.bytes(*at, length) == sample;
                Some((*tag, places.find(is_there)?))
            })
        };
        given.or_else(tagged)
    }
}
