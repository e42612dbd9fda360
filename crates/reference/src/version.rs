//! One version of an image, the head or a snapshot: for each byte the writes that it may come from.
//!
//! Invariants: the segments lie one behind the other from 0 to the size; in each, what may be seen now is never empty
//! and a part of what may be on the medium. Time is told by the caller ([`crate::History`]).

use std::collections::BTreeMap;
use std::fmt;

use crate::clock::Clock;
use crate::tag::Tag;

/// The end of what has not ended.
pub(crate) const UNDER_WAY: u64 = u64::MAX;

/// A write, a trim or a write of zeroes that a byte may come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Source {
    /// When it began.
    pub tag: Tag,
    /// When it ended; [`u64::MAX`] while it is under way.
    pub(crate) ended: u64,
    /// Whether its bytes are zero.
    pub(crate) zeroes: bool,
    /// Whether its bytes are not its tag's; the clock has them.
    given: bool,
    /// Whether it was acknowledged. Of those that a kill has cut off nobody knows.
    pub(crate) certain: bool,
    /// Who made it.
    client: usize,
}

impl Source {
    pub(crate) fn new(tag: u64, zeroes: bool) -> Self {
        Self {
            tag: Tag(tag),
            ended: UNDER_WAY,
            zeroes,
            given: false,
            certain: true,
            client: 0,
        }
    }

    pub(crate) fn by(self, client: usize) -> Self {
        Self { client, ..self }
    }

    /// A write whose bytes the clock was given.
    pub(crate) fn given(tag: u64) -> Self {
        Self {
            given: true,
            ..Self::new(tag, false)
        }
    }

    pub(crate) fn ended_at_once(tag: u64) -> Self {
        Self {
            ended: tag,
            ..Self::new(tag, true)
        }
    }

    fn byte(&self, clock: &Clock, offset: u64) -> u8 {
        self.content(clock, offset, offset + 1)
            .first()
            .copied()
            .unwrap_or(0)
    }

    /// Its bytes in a range that it covers.
    pub(crate) fn content(&self, clock: &Clock, start: u64, end: u64) -> Vec<u8> {
        if self.zeroes {
            vec![0; (end - start) as usize]
        } else if self.given {
            clock.given(self.tag, start, end)
        } else {
            self.tag.bytes(start, end - start)
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Segment {
    end: u64,
    /// What a read that begins now may see, if nothing else begins.
    now: Vec<Source>,
    /// What may be there after a loss of power: all since the last flush, and what that made durable.
    since: Vec<Source>,
}

/// See the module's text.
#[derive(Debug, Clone, Default)]
pub struct Version {
    clock: Clock,
    segments: BTreeMap<u64, Segment>,
    /// Between which moments a snapshot was taken, as far as what it shows has told; of a head nothing.
    point: Option<(u64, u64)>,
}

/// Candidates of a range, as they were when a read began.
#[derive(Debug, Clone)]
pub(crate) struct Piece {
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) sources: Vec<Source>,
}

/// A byte that comes from none of the writes that it may come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The first wrong byte.
    pub offset: u64,
    /// What it is.
    pub found: u8,
    /// What it may be, and what is known of where it comes from.
    pub explanation: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "byte {} is {:#04x}: {}",
            self.offset, self.found, self.explanation
        )
    }
}

impl std::error::Error for Violation {}

/// A run of bytes that come from exactly one of their candidates.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seen {
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) source: Source,
}

impl Version {
    /// Zeroes that have been there since `moment`.
    pub(crate) fn zeroes(clock: &Clock, size_bytes: u64, moment: u64) -> Self {
        let mut version = Self {
            clock: clock.clone(),
            ..Self::default()
        };
        version.grow(size_bytes, moment);
        version
    }

    /// Its size.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.segments.last_key_value().map_or(0, |(_, last)| last.end)
    }

    /// The same, whose later writes have the moments of another clock.
    pub(crate) fn with_clock(self, clock: &Clock) -> Self {
        Self {
            clock: clock.clone(),
            ..self
        }
    }

    /// Whose moments its writes have.
    pub(crate) fn clock(&self) -> &Clock {
        &self.clock
    }

    pub(crate) fn resize(&mut self, size_bytes: u64, moment: u64) {
        if size_bytes < self.size_bytes() {
            self.shrink(size_bytes);
        }
        self.grow(size_bytes, moment);
    }

    fn grow(&mut self, size_bytes: u64, moment: u64) {
        let start = self.size_bytes();
        if size_bytes > start {
            let sources = vec![Source::ended_at_once(moment)];
            self.segments.insert(
                start,
                Segment {
                    end: size_bytes,
                    now: sources.clone(),
                    since: sources,
                },
            );
        }
    }

    fn shrink(&mut self, size_bytes: u64) {
        self.split(size_bytes);
        self.segments.split_off(&size_bytes);
    }

    fn split(&mut self, offset: u64) {
        let Some((start, segment)) = self.segments.range_mut(..offset).next_back() else {
            return;
        };
        if *start < offset && offset < segment.end {
            let tail = segment.clone();
            segment.end = offset;
            self.segments.insert(offset, tail);
        }
    }

    fn over(&mut self, start: u64, end: u64) -> impl Iterator<Item = &mut Segment> {
        self.split(start);
        self.split(end);
        self.segments.range_mut(start..end).map(|(_, segment)| segment)
    }

    /// Joins neighbours that are alike.
    fn join(&mut self, start: u64, end: u64) {
        let mut at = self
            .segments
            .range(..start)
            .next_back()
            .map_or(start, |(start, _)| *start);
        while let Some(segment) = self.segments.get(&at) {
            let next = segment.end;
            if at >= end {
                return;
            }
            let alike = self
                .segments
                .get(&next)
                .is_some_and(|other| other.now == segment.now && other.since == segment.since);
            if !alike {
                at = next;
                continue;
            }
            if let Some(other) = self.segments.remove(&next)
                && let Some(segment) = self.segments.get_mut(&at)
            {
                segment.end = other.end;
            }
        }
    }

    pub(crate) fn begin(&mut self, start: u64, end: u64, source: Source) {
        for segment in self.over(start, end) {
            segment.now.push(source);
            segment.since.push(source);
        }
    }

    /// The write with that tag has ended: what had ended before it began is overwritten.
    pub(crate) fn end(&mut self, start: u64, end: u64, tag: Tag, moment: u64, durable: bool) {
        for segment in self.over(start, end) {
            let both = segment.now.iter_mut().chain(&mut segment.since);
            for source in both.filter(|source| source.tag == tag) {
                source.ended = moment;
            }
            let stays = |source: &Source| source.tag == tag || source.ended >= tag.0;
            segment.now.retain(stays);
            if durable {
                segment.since.retain(stays);
            }
        }
        self.join(start, end);
    }

    /// A flush that began at `begun` has succeeded: of what this client wrote, or everybody.
    pub(crate) fn flushed(&mut self, begun: u64, client: Option<usize>) {
        let is_flushed =
            |source: &Source| source.ended < begun && client.is_none_or(|client| source.client == client);
        for segment in self.segments.values_mut() {
            if segment.since.iter().all(is_flushed) {
                segment.since.clone_from(&segment.now);
                continue;
            }
            let durable = segment
                .since
                .iter()
                .filter(|source| source.certain && is_flushed(source))
                .map(|source| source.tag.0)
                .max();
            if let Some(durable) = durable {
                segment
                    .since
                    .retain(|source| source.tag.0 == durable || source.ended >= durable);
            }
        }
        self.join(0, u64::MAX);
    }

    /// Everybody who was at work is dead. With the power gone, only what was flushed is sure.
    pub(crate) fn killed(&mut self, moment: u64, power_lost: bool) {
        for segment in self.segments.values_mut() {
            for source in segment.now.iter_mut().chain(&mut segment.since) {
                if source.ended == UNDER_WAY {
                    source.ended = moment;
                    source.certain = false;
                }
            }
            if power_lost {
                // Which of several is there nobody knows, nor that a newer one hides an older one.
                let several = segment.since.len() > 1;
                for source in &mut segment.since {
                    source.certain &= !several;
                }
                segment.now.clone_from(&segment.since);
            }
        }
        if power_lost {
            self.point = None;
        }
    }

    /// What can be seen is what lies on the medium.
    pub(crate) fn is_durable(&mut self) {
        for segment in self.segments.values_mut() {
            segment.since.clone_from(&segment.now);
        }
        self.join(0, u64::MAX);
    }

    /// Becomes a snapshot that was taken between two moments.
    pub(crate) fn taken(&mut self, begun: u64, ended: u64) {
        for segment in self.segments.values_mut() {
            for source in segment.now.iter_mut().chain(&mut segment.since) {
                source.ended = source.ended.min(ended);
            }
        }
        self.point = Some((begun, ended));
    }

    pub(crate) fn pieces(&self, start: u64, end: u64) -> Vec<Piece> {
        let first = self
            .segments
            .range(..=start)
            .next_back()
            .map_or(start, |(start, _)| *start);
        self.segments
            .range(first..end)
            .filter(|(_, segment)| segment.end > start)
            .map(|(at, segment)| Piece {
                start: start.max(*at),
                end: end.min(segment.end),
                sources: segment.now.clone(),
            })
            .collect()
    }

    /// What a read that began at `begun` has seen was there, and not hidden: what had ended before the read, and what had ended
    /// before the seen write began, is overwritten.
    pub(crate) fn narrow(&mut self, seen: &Seen, begun: u64) {
        let source = seen.source;
        for segment in self.over(seen.start, seen.end) {
            let is_there = segment.now.iter().any(|other| other.tag == source.tag);
            let stays = |other: &Source| {
                other.tag == source.tag || (other.ended >= begun && other.ended >= source.tag.0)
            };
            // Something newer may have hidden it since, and all that it hid.
            if is_there || segment.now.iter().any(stays) {
                segment.now.retain(stays);
            }
            let same = segment.now.iter_mut().chain(&mut segment.since);
            for other in same.filter(|other| other.tag == source.tag) {
                other.certain = true;
            }
        }
        self.join(seen.start, seen.end);
    }

    /// What a snapshot shows narrows when it was taken: after the seen write began, and before what came after that had ended.
    pub(crate) fn narrow_point(&mut self, pieces: &[Piece], seen: &[Seen]) -> Result<(), Violation> {
        let Some((mut lower, mut upper)) = self.point else {
            return Ok(());
        };
        let mut pieces = pieces.iter();
        let mut piece = pieces.next();
        for run in seen {
            while piece.is_some_and(|piece| piece.end <= run.start) {
                piece = pieces.next();
            }
            let Some(piece) = piece else { break };
            lower = lower.max(run.source.tag.0);
            let newer = |other: &&Source| other.certain && other.tag.0 > run.source.ended;
            let hidden = piece.sources.iter().filter(newer).map(|other| other.ended).min();
            upper = upper.min(hidden.unwrap_or(upper));
            if lower > upper {
                return Err(Violation {
                    offset: run.start,
                    found: run.source.byte(&self.clock, run.start),
                    explanation: format!(
                        "the snapshot is of no single moment: it has what began at {lower}, and lacks what had ended at {upper}"
                    ),
                });
            }
        }
        self.point = Some((lower, upper));
        Ok(())
    }
}

/// Finds the sources of the bytes of each piece, where there is a choice.
///
/// # Errors
/// A byte that comes from none of its candidates.
pub(crate) fn judge(
    clock: &Clock,
    pieces: &[Piece],
    offset: u64,
    bytes: &[u8],
) -> Result<Vec<Seen>, Violation> {
    let mut seen = Vec::new();
    for piece in pieces {
        let found = &bytes[(piece.start - offset) as usize..(piece.end - offset) as usize];
        let sources = &piece.sources;
        if let [only] = &sources[..] {
            judge_settled(clock, only, piece, found)?;
            continue;
        }
        let contents: Vec<Vec<u8>> = sources
            .iter()
            .map(|source| source.content(clock, piece.start, piece.end))
            .collect();
        // Where the run began, and the only candidate that its bytes come from.
        let mut run: (u64, Option<usize>) = (piece.start, None);
        for (index, byte) in found.iter().enumerate() {
            let at = piece.start + index as u64;
            let mut fitting = (0..contents.len()).filter(|number| contents[*number][index] == *byte);
            let only = match (fitting.next(), fitting.next()) {
                (None, _) => return Err(violation(clock, piece, at, &found[index..])),
                (first, None) => first,
                _ => None,
            };
            if only != run.1 {
                push_run(&mut seen, run, at, sources);
                run = (at, only);
            }
        }
        push_run(&mut seen, run, piece.end, sources);
    }
    Ok(seen)
}

fn judge_settled(clock: &Clock, only: &Source, piece: &Piece, found: &[u8]) -> Result<(), Violation> {
    let wrong = if only.zeroes {
        found.iter().position(|byte| *byte != 0)
    } else {
        let expected = only.content(clock, piece.start, piece.end);
        (expected != found)
            .then(|| expected.iter().zip(found).position(|(left, right)| left != right))
            .flatten()
    };
    match wrong {
        None => Ok(()),
        Some(index) => Err(violation(
            clock,
            piece,
            piece.start + index as u64,
            &found[index..],
        )),
    }
}

fn push_run(seen: &mut Vec<Seen>, (start, only): (u64, Option<usize>), end: u64, sources: &[Source]) {
    if let Some(only) = only
        && start < end
    {
        let source = sources[only];
        seen.push(Seen { start, end, source });
    }
}

/// Says what a wrong byte may have been, and which write it seems to come from.
fn violation(clock: &Clock, piece: &Piece, at: u64, found: &[u8]) -> Violation {
    let allowed: Vec<String> = piece
        .sources
        .iter()
        .map(|source| {
            let what = if source.zeroes { "zeroes" } else { "write" };
            let ended = match source.ended {
                UNDER_WAY => "under way".to_owned(),
                ended => format!("ended {ended}"),
            };
            format!(
                "{what} {} ({ended}, {:#04x})",
                source.tag.0,
                source.byte(clock, at)
            )
        })
        .collect();
    // Long enough that no other write looks like it by chance.
    let sample = &found[..found.len().min(16)];
    let origin = if sample.iter().all(|byte| *byte == 0) {
        "zeroes".to_owned()
    } else if sample.len() < 4 {
        "too few bytes to tell whose".to_owned()
    } else {
        match clock.origin(at, sample) {
            Some((tag, place)) if place == at => format!("they are write {}'s", tag.0),
            Some((tag, place)) => format!("they are what write {} put at {place}", tag.0),
            None => "no write has such bytes".to_owned(),
        }
    };
    Violation {
        offset: at,
        found: found[0],
        explanation: format!(
            "may come from {}; {origin} (moment {})",
            allowed.join(", "),
            clock.now()
        ),
    }
}
