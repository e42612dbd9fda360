//! Whether all that was done to a block and seen of it has an order, one after another, in which each read sees the last write:
//! linearizability of a register, in full.
//!
//! The promise: [`Order::check`] accepts exactly the histories that have such an order. What is judged at once
//! ([`crate::version`]) says less: of two reads that overlap it does not know that they contradict each other.
//!
//! Invariants: all requests are of whole blocks, and each block of a read is of one write. A write that never ended may have
//! happened at any time since it began, or not at all.

use std::collections::HashSet;
use std::fmt::Write as _;

use crate::clock::Clock;
use crate::tag::Tag;
use crate::version::{Piece, Source, UNDER_WAY, Version, Violation};

/// Most events of one block, as bits of a mask.
const MAX_EVENTS: usize = 128;

/// What a block shows: 0 for zeroes, else the tag of a write.
type Value = u64;

fn value(source: &Source) -> Value {
    if source.zeroes { 0 } else { source.tag.0 }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Done {
    Wrote(Value),
    Saw(Value),
}

#[derive(Debug, Clone, Copy)]
struct Event {
    begun: u64,
    ended: u64,
    done: Done,
}

#[derive(Debug)]
struct Block {
    initial: Value,
    events: Vec<Event>,
}

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Order {
    block_bytes: u64,
    blocks: Vec<Block>,
}

impl Order {
    /// Of an image that shows `head`, in which every byte comes from one write.
    pub(crate) fn new(head: &Version, block_bytes: u64) -> Self {
        let initial = |start| {
            let pieces = head.pieces(start, start + 1);
            let source = pieces.first().and_then(|piece| piece.sources.last());
            source.map_or(0, value)
        };
        let blocks = (0..head.size_bytes()).step_by(block_bytes as usize);
        Self {
            block_bytes,
            blocks: blocks
                .map(|start| Block {
                    initial: initial(start),
                    events: Vec::new(),
                })
                .collect(),
        }
    }

    fn over(&mut self, start: u64, end: u64) -> impl Iterator<Item = &mut Block> {
        let (first, last) = (start / self.block_bytes, end.div_ceil(self.block_bytes));
        self.blocks[first as usize..last as usize].iter_mut()
    }

    pub(crate) fn begin(&mut self, start: u64, end: u64, source: &Source) {
        let event = Event {
            begun: source.tag.0,
            ended: UNDER_WAY,
            done: Done::Wrote(value(source)),
        };
        self.over(start, end).for_each(|block| block.events.push(event));
    }

    pub(crate) fn end(&mut self, start: u64, end: u64, tag: Tag, moment: u64) {
        for block in self.over(start, end) {
            let event = block.events.iter_mut().rev().find(|event| event.begun == tag.0);
            if let Some(event) = event {
                event.ended = moment;
            }
        }
    }

    /// What each block of a read shows.
    ///
    /// # Errors
    /// A block that is not of one of the writes that it may come from.
    pub(crate) fn values(
        &self,
        clock: &Clock,
        pieces: &[Piece],
        offset: u64,
        bytes: &[u8],
    ) -> Result<Vec<Value>, Violation> {
        let mut values = Vec::new();
        for (start, found) in (offset..)
            .step_by(self.block_bytes as usize)
            .zip(bytes.chunks(self.block_bytes as usize))
        {
            let end = start + found.len() as u64;
            let piece = pieces
                .iter()
                .find(|piece| piece.start <= start && end <= piece.end);
            let sources = piece.map_or(&[][..], |piece| &piece.sources[..]);
            let is_there = |source: &&Source| source.content(clock, start, end) == found;
            let Some(source) = sources.iter().find(is_there) else {
                return Err(Violation {
                    offset: start,
                    found: found[0],
                    explanation: format!("the {} bytes from there on are not of one write", found.len()),
                });
            };
            values.push(value(source));
        }
        Ok(values)
    }

    /// A read between these moments has seen this from `offset` on.
    pub(crate) fn saw(&mut self, offset: u64, values: &[Value], begun: u64, ended: u64) {
        let end = offset + values.len() as u64 * self.block_bytes;
        for (block, value) in self.over(offset, end).zip(values) {
            block.events.push(Event {
                begun,
                ended,
                done: Done::Saw(*value),
            });
        }
    }

    /// Looks for an order of what happened to each block.
    ///
    /// # Errors
    /// A block without one, and what happened to it.
    pub(crate) fn check(&self) -> Result<(), String> {
        for (number, block) in self.blocks.iter().enumerate() {
            if !block.has_an_order()? {
                let mut told = String::new();
                for event in &block.events {
                    let _ = write!(told, "\n  {event:?}");
                }
                return Err(format!(
                    "block {number} showed at first {}, and there is no order of{told}",
                    block.initial
                ));
            }
        }
        Ok(())
    }
}

impl Block {
    /// Tries all orders that time allows, each state once.
    fn has_an_order(&self) -> Result<bool, String> {
        let seen = |value: Value| self.events.iter().any(|event| event.done == Done::Saw(value));
        // What never ended and was never seen need not have happened.
        let events: Vec<&Event> = self
            .events
            .iter()
            .filter(|event| match event.done {
                Done::Wrote(value) => event.ended != UNDER_WAY || seen(value),
                Done::Saw(_) => true,
            })
            .collect();
        if events.len() > MAX_EVENTS {
            return Err(format!(
                "{} events of one block are too many to judge",
                events.len()
            ));
        }
        let bits = |mask: u128, (n, is): (usize, bool)| mask | u128::from(is) << n;
        let must = events
            .iter()
            .map(|event| event.ended != UNDER_WAY)
            .enumerate()
            .fold(0, bits);
        let mut visited = HashSet::new();
        let mut open = vec![(0u128, self.initial)];
        while let Some((mut done, shown)) = open.pop() {
            let mut frontier;
            loop {
                let left = |(n, event): (usize, &&Event)| (done & (1 << n) == 0).then_some(event.ended);
                let ends = events.iter().enumerate().filter_map(left);
                frontier = ends.min().unwrap_or(UNDER_WAY);
                // Reads of what is there change nothing: the earlier the better.
                let read = events.iter().enumerate().find(|(n, event)| {
                    done & (1 << n) == 0 && event.begun < frontier && event.done == Done::Saw(shown)
                });
                match read {
                    Some((n, _)) => done |= 1 << n,
                    None => break,
                }
            }
            if done & must == must {
                return Ok(true);
            }
            if !visited.insert((done, shown)) {
                continue;
            }
            for (n, event) in events.iter().enumerate() {
                if let Done::Wrote(value) = event.done
                    && done & (1 << n) == 0
                    && event.begun < frontier
                {
                    open.push((done | 1 << n, value));
                }
            }
        }
        Ok(false)
    }
}
