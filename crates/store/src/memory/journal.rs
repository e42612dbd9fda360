//! What a power loss may take from an object: the durable state, and every change since, in order.
//!
//! Full changes are in the list because they may come after buffered ones; they always stay. Of a buffered change any
//! part of its bytes may stay; but a change that made the object stays whole, or goes with all that came after it. What a clone preserves is never lost with the change that made the clone: bytes that
//! were synced before the snapshot must be there after it.

use std::collections::{BTreeMap, BTreeSet};

use rand::RngExt;
use rand::rngs::StdRng;

use super::object::{Effect, Object, Under};
use crate::types::{SnapContext, SnapId, Timestamp};

/// Changes that one object may have unsynced; with more, all are synced (as an engine may at any time).
const MOST_ENTRIES: usize = 4096;

/// Unit in which bytes of one write get lost.
const SECTOR_BYTES: u64 = 512;

#[derive(Debug, Clone)]
pub(super) enum Change {
    Effects(Vec<Effect>),
    Rollback(SnapId),
    Trim(SnapId),
}

#[derive(Debug, Clone)]
struct Entry {
    owner_gid: u64,
    durable: bool,
    /// There was no head before it, and there is one after it.
    creates: bool,
    snapc: SnapContext,
    change: Change,
    now: Timestamp,
}

#[derive(Debug, Clone)]
struct Unsynced {
    base: Object,
    entries: Vec<Entry>,
}

/// An object as all see it, and what of it a power loss may take.
#[derive(Debug, Clone, Default)]
pub(super) struct Slot {
    object: Object,
    unsynced: Option<Box<Unsynced>>,
}

fn run(object: &mut Object, under: &Under<'_>, change: &Change) {
    match change {
        Change::Effects(effects) => object.apply(under, effects),
        Change::Rollback(snap) => object.roll_back(under, *snap),
        Change::Trim(snap) => object.trim(*snap),
    }
}

impl Unsynced {
    /// What makes a change durable makes the making of the object that it changed durable.
    fn settle_creations(&mut self) {
        let mut needed = false;
        for entry in self.entries.iter_mut().rev() {
            needed |= entry.durable;
            if entry.creates {
                entry.durable |= std::mem::take(&mut needed);
            }
        }
    }
}

impl Slot {
    /// The object as all see it.
    pub(super) fn object(&self) -> &Object {
        &self.object
    }

    /// Nothing is left, not even something that a power loss could bring back.
    pub(super) fn is_void(&self) -> bool {
        self.object.is_gone() && self.unsynced.is_none()
    }

    /// Makes a change that is visible at once.
    pub(super) fn change(&mut self, owner_gid: u64, durable: bool, under: &Under<'_>, change: Change) {
        if !durable && self.unsynced.is_none() {
            self.unsynced = Some(Box::new(Unsynced {
                base: self.object.clone(),
                entries: Vec::new(),
            }));
        }
        let was_there = self.object.head().is_some();
        run(&mut self.object, under, &change);
        let mut change = change;
        if let Change::Effects(effects) = &mut change
            && durable
            && was_there
        {
            // A full operation saw the object, so it also settles that the object exists.
            effects.insert(0, Effect::Create);
        }
        let creates = !was_there && self.object.head().is_some();
        if let Some(unsynced) = &mut self.unsynced {
            unsynced.entries.push(Entry {
                owner_gid,
                durable,
                creates,
                snapc: under.snapc.clone(),
                change,
                now: under.now,
            });
            unsynced.settle_creations();
            if unsynced.entries.len() > MOST_ENTRIES {
                self.unsynced = None;
            }
        }
    }

    /// Makes durable what one client wrote (`None`: what anyone wrote).
    pub(super) fn sync(&mut self, owner_gid: Option<u64>) {
        let Some(unsynced) = &mut self.unsynced else {
            return;
        };
        for entry in &mut unsynced.entries {
            entry.durable |= owner_gid.is_none_or(|gid| gid == entry.owner_gid);
        }
        unsynced.settle_creations();
        if unsynced.entries.iter().all(|entry| entry.durable) {
            self.unsynced = None;
        }
    }

    /// Takes back a random part of what is not durable. `next_version` gives versions for what is made anew.
    pub(super) fn lose_power(
        &mut self,
        removed: &BTreeSet<SnapId>,
        rng: &mut StdRng,
        mut next_version: impl FnMut() -> u64,
    ) {
        let Some(unsynced) = self.unsynced.take() else {
            return;
        };
        let Unsynced { mut base, entries } = *unsynced;
        // What the object has seen stays known even when what made it known is lost: a later write with an older context
        // must not appear in snapshots that it came after.
        let mut seen = SnapContext::empty();
        let mut lost = false;
        for entry in entries {
            if entry.creates {
                lost = !entry.durable && rng.random();
            }
            if entry.snapc.seq() > seen.seq() {
                seen = SnapContext::new(entry.snapc.seq(), Vec::new()).unwrap_or_default();
            }
            let old = entry.snapc.seq() < seen.seq();
            let under = Under {
                snapc: if old { &seen } else { &entry.snapc },
                removed,
                version: next_version(),
                now: entry.now,
            };
            match entry.change {
                _ if lost => {}
                Change::Effects(effects) if !entry.durable && !entry.creates => {
                    let kept = survivors(effects, rng);
                    base.apply_preserving(&under, &kept);
                }
                // A rollback is one rename of a whole version: it stays or goes as one.
                Change::Rollback(_) if !entry.durable && !entry.creates && rng.random() => {
                    base.apply_preserving(&under, &[])
                }
                change => run(&mut base, &under, &change),
            }
            if (entry.durable || lost) && base.is_gone() {
                seen = SnapContext::empty();
            }
        }
        self.object = base;
    }
}

/// What is left of the unsynced effects of one operation: each byte is as it was before or as it is after, never as it
/// was between two steps.
fn survivors(effects: Vec<Effect>, rng: &mut StdRng) -> Vec<Effect> {
    // Often all or nothing of a write is on the medium: make both likely.
    let chance = [0.0, 0.1, 0.5, 0.9, 1.0][rng.random_range(0..5usize)];
    let mut fate = BTreeMap::new();
    let mut stays = |start: u64, rng: &mut StdRng| {
        *fate
            .entry(start / SECTOR_BYTES)
            .or_insert_with(|| rng.random_bool(chance))
    };
    let mut kept = Vec::new();
    match &effects[..] {
        [Effect::WriteFull(data)] => {
            if rng.random_bool(chance) {
                kept.push(Effect::Truncate(data.len() as u64));
            }
            let pieces = sectors(0, data.len() as u64).filter(|(start, _)| stays(*start, rng));
            kept.extend(
                pieces.map(|(start, end)| Effect::Write(start, data.slice(start as usize..end as usize))),
            );
        }
        steps
            if steps
                .iter()
                .all(|step| matches!(step, Effect::Write(..) | Effect::Zero(..))) =>
        {
            for step in steps {
                match step {
                    Effect::Write(offset, data) => {
                        let pieces =
                            sectors(*offset, data.len() as u64).filter(|(start, _)| stays(*start, rng));
                        kept.extend(pieces.map(|(start, end)| {
                            Effect::Write(
                                start,
                                data.slice((start - offset) as usize..(end - offset) as usize),
                            )
                        }));
                    }
                    Effect::Zero(offset, length_bytes) => {
                        let pieces = sectors(*offset, *length_bytes).filter(|(start, _)| stays(*start, rng));
                        kept.extend(pieces.map(|(start, end)| Effect::Zero(start, end - start)));
                    }
                    _ => {}
                }
            }
        }
        _ if rng.random() => kept = effects,
        _ => {}
    }
    kept
}

/// The parts of a range that lie in different sectors. Bounded: ranges are inside the largest object.
fn sectors(offset: u64, length_bytes: u64) -> impl Iterator<Item = (u64, u64)> {
    let end = offset.saturating_add(length_bytes).min(super::MAX_OBJECT_BYTES);
    let mut at = offset;
    std::iter::from_fn(move || {
        (at < end).then(|| {
            let start = at;
            at = ((at / SECTOR_BYTES + 1) * SECTOR_BYTES).min(end);
            (start, at)
        })
    })
}
