//! What concurrent clients of one image did and saw, in blocks with write tags, and whether that can be: every block is a
//! register, and its history must be linearizable.
//!
//! A write (discard, shrink) that was never acknowledged may have happened at any time since, or not at all. After a power loss
//! a block may show any write that was not surely followed by one that was flushed.

use std::collections::HashSet;
use std::fmt::Write as _;

use parking_lot::Mutex;

/// What one block shows: 0, or the number of the write that made it so.
pub type Tag = u64;

pub const BLOCK_BYTES: u64 = 512;
const TAG_BYTES: usize = 8;
/// Most events of one block, as bits of a mask.
const MAX_EVENTS: usize = 128;

/// The bytes of a block with this tag.
pub fn block(tag: Tag) -> Vec<u8> {
    tag.to_le_bytes().repeat(BLOCK_BYTES as usize / TAG_BYTES)
}

/// Tags of whole blocks; an error if a block is of several writes.
pub fn tags(bytes: &[u8]) -> Result<Vec<Tag>, String> {
    let mut tags = Vec::new();
    for (n, block) in bytes.chunks(BLOCK_BYTES as usize).enumerate() {
        let all: HashSet<Tag> = block
            .chunks(TAG_BYTES)
            .map(|tag| Tag::from_le_bytes(tag.try_into().unwrap_or([0xff; TAG_BYTES])))
            .collect();
        match all.into_iter().collect::<Vec<_>>()[..] {
            [tag] => tags.push(tag),
            ref several => return Err(format!("block {n} of what was read is torn: {several:?}")),
        }
    }
    Ok(tags)
}

/// What was done to one block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Done {
    Wrote(Tag),
    Saw(Tag),
}

#[derive(Debug, Clone, Copy)]
struct Event {
    begun: u64,
    /// `u64::MAX`: never.
    ended: u64,
    client: usize,
    done: Done,
    /// Whether a flush that began after its end has made it so.
    durable: bool,
}

/// A write that has begun.
#[derive(Debug, Clone)]
pub struct Begun {
    first: usize,
    places: Vec<usize>,
}

#[derive(Debug, Default)]
struct Inner {
    clock: u64,
    last_tag: Tag,
    initial: Vec<Tag>,
    events: Vec<Vec<Event>>,
}

/// The history of one image.
#[derive(Debug, Default)]
pub struct History {
    inner: Mutex<Inner>,
}

impl History {
    /// An image that shows this, durably; later tags are larger than `last_tag`.
    pub fn new(initial: Vec<Tag>, last_tag: Tag) -> Self {
        let inner = Inner {
            events: vec![Vec::new(); initial.len()],
            initial,
            last_tag,
            clock: 0,
        };
        Self {
            inner: Mutex::new(inner),
        }
    }

    /// A tag that nobody has used.
    pub fn next_tag(&self) -> Tag {
        let mut inner = self.inner.lock();
        inner.last_tag += 1;
        inner.last_tag
    }

    /// The time now, which is never the same twice.
    pub fn now(&self) -> u64 {
        let mut inner = self.inner.lock();
        inner.clock += 1;
        inner.clock
    }

    /// A client begins to make `blocks` blocks from `first` on show `tag`.
    pub fn begin(&self, client: usize, first: usize, blocks: usize, tag: Tag) -> Begun {
        let begun = self.now();
        let mut inner = self.inner.lock();
        let event = Event {
            begun,
            ended: u64::MAX,
            client,
            done: Done::Wrote(tag),
            durable: false,
        };
        let places = inner.events[first..first + blocks]
            .iter_mut()
            .map(|events| {
                events.push(event);
                events.len() - 1
            })
            .collect();
        Begun { first, places }
    }

    /// It was acknowledged.
    pub fn acknowledged(&self, write: &Begun) {
        let ended = self.now();
        let mut inner = self.inner.lock();
        for (n, place) in write.places.iter().enumerate() {
            inner.events[write.first + n][*place].ended = ended;
        }
    }

    /// A read that began at `begun` has ended, and has seen this.
    pub fn saw(&self, begun: u64, client: usize, first: usize, tags: &[Tag]) {
        self.saw_until(begun, self.now(), client, first, tags);
    }

    /// As [`History::saw`], of what was made at some moment between the two and read at leisure.
    pub fn saw_until(&self, begun: u64, ended: u64, client: usize, first: usize, tags: &[Tag]) {
        let mut inner = self.inner.lock();
        for (n, tag) in tags.iter().enumerate() {
            inner.events[first + n].push(Event {
                begun,
                ended,
                client,
                done: Done::Saw(*tag),
                durable: false,
            });
        }
    }

    /// Whether what a read that began at `begun` has seen was not hidden for sure before it began. That says less than
    /// [`History::saw`].
    pub fn check_not_hidden(&self, begun: u64, first: usize, tags: &[Tag]) -> Result<(), String> {
        let inner = self.inner.lock();
        for (n, tag) in (first..).zip(tags) {
            let events = &inner.events[n];
            let is_write = |event: &&Event| matches!(event.done, Done::Wrote(_));
            let hidden = |ended: u64| {
                events
                    .iter()
                    .filter(is_write)
                    .any(|event| event.begun > ended && event.ended < begun)
            };
            let initially = (inner.initial[n] == *tag).then_some(0);
            let mut ends = events
                .iter()
                .filter(|event| event.done == Done::Wrote(*tag))
                .map(|event| event.ended)
                .chain(initially);
            if ends.all(hidden) {
                return Err(format!(
                    "block {n} shows {tag} to a read that began at {begun}, which was hidden; at first it showed {}, then {events:?}",
                    inner.initial[n]
                ));
            }
        }
        Ok(())
    }

    /// A flush of `client` that began at `begun` has succeeded.
    pub fn flushed(&self, begun: u64, client: usize) {
        let mut inner = self.inner.lock();
        for event in inner.events.iter_mut().flatten() {
            event.durable |= event.client == client && event.ended < begun;
        }
    }

    /// Whether there is an order of events, one after another, in which every read saw the last write.
    pub fn check(&self) -> Result<(), String> {
        let inner = self.inner.lock();
        for (n, events) in inner.events.iter().enumerate() {
            if !is_linearizable(inner.initial[n], events)? {
                let mut told = String::new();
                for event in events {
                    let _ = write!(told, "\n  {event:?}");
                }
                return Err(format!(
                    "block {n} showed at first {}, and there is no order of{told}",
                    inner.initial[n]
                ));
            }
        }
        Ok(())
    }

    /// Whether the image may show this after a power loss: nothing that was flushed is lost, nothing else is made up.
    pub fn check_after_power_loss(&self, shown: &[Tag]) -> Result<(), String> {
        let inner = self.inner.lock();
        for (n, tag) in shown.iter().enumerate() {
            let events = &inner.events[n];
            let wrote = |event: &&Event| event.done == Done::Wrote(*tag);
            let superseded = |ended: u64| {
                events
                    .iter()
                    .any(|event| matches!(event.done, Done::Wrote(_)) && event.durable && event.begun > ended)
            };
            let initially = (inner.initial[n] == *tag).then_some(0);
            let mut ends = events
                .iter()
                .filter(wrote)
                .map(|event| event.ended)
                .chain(initially);
            if !ends.any(|ended| !superseded(ended)) {
                return Err(format!(
                    "block {n} shows {tag} after the power loss; at first it showed {}, then {events:?}",
                    inner.initial[n]
                ));
            }
        }
        Ok(())
    }

    /// Whether what a snapshot shows is of a moment: if it has a write, it has what was acknowledged before that began.
    pub fn check_moment(&self, shown: &[Tag]) -> Result<(), String> {
        let inner = self.inner.lock();
        let write_of = |n: usize, tag: Tag| {
            let of_tag = |event: &&Event| event.done == Done::Wrote(tag);
            inner.events[n].iter().find(of_tag)
        };
        let has: Vec<(usize, &Event)> = shown
            .iter()
            .enumerate()
            .filter(|(_, tag)| **tag != 0)
            .filter_map(|(n, tag)| Some((n, write_of(n, *tag)?)))
            .collect();
        for (n, tag) in shown.iter().enumerate().filter(|(_, tag)| **tag != 0) {
            let until = match write_of(n, *tag) {
                Some(event) => event.ended,
                None => 0,
            };
            let missed = |event: &&Event| {
                matches!(event.done, Done::Wrote(_)) && event.begun > until && event.ended != u64::MAX
            };
            for lost in inner.events[n].iter().filter(missed) {
                if let Some((other, later)) = has.iter().find(|(_, later)| later.begun > lost.ended) {
                    return Err(format!(
                        "a snapshot shows {later:?} in block {other}, and in block {n} still {tag}, not {lost:?}"
                    ));
                }
            }
        }
        Ok(())
    }
}

/// Looks for an order by trying all that time allows, each state once.
fn is_linearizable(initial: Tag, events: &[Event]) -> Result<bool, String> {
    let seen = |tag: Tag| events.iter().any(|event| event.done == Done::Saw(tag));
    // What never ended and was never seen need not have happened.
    let events: Vec<&Event> = events
        .iter()
        .filter(|event| match event.done {
            Done::Wrote(tag) => event.ended != u64::MAX || seen(tag),
            Done::Saw(_) => true,
        })
        .collect();
    if events.len() > MAX_EVENTS {
        return Err(format!(
            "{} events of one block are too many to judge",
            events.len()
        ));
    }
    let must: u128 = bits(events.iter().map(|event| event.ended != u64::MAX));
    let mut visited = HashSet::new();
    let mut open = vec![(0u128, initial)];
    while let Some((mut done, value)) = open.pop() {
        let mut frontier;
        loop {
            let left = |(n, event): (usize, &&Event)| (done & (1 << n) == 0).then_some(event.ended);
            frontier = events
                .iter()
                .enumerate()
                .filter_map(left)
                .min()
                .unwrap_or(u64::MAX);
            // Reads of what is there change nothing: the earlier the better.
            let read = events.iter().enumerate().find(|(n, event)| {
                done & (1 << n) == 0 && event.begun < frontier && event.done == Done::Saw(value)
            });
            match read {
                Some((n, _)) => done |= 1 << n,
                None => break,
            }
        }
        if done & must == must {
            return Ok(true);
        }
        if !visited.insert((done, value)) {
            continue;
        }
        for (n, event) in events.iter().enumerate() {
            if let Done::Wrote(tag) = event.done
                && done & (1 << n) == 0
                && event.begun < frontier
            {
                open.push((done | 1 << n, tag));
            }
        }
    }
    Ok(false)
}

fn bits(set: impl Iterator<Item = bool>) -> u128 {
    set.enumerate()
        .fold(0, |mask, (n, is)| mask | u128::from(is) << n)
}
