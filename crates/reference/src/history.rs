//! An image that several clients use at once, and what they may see of it.
//!
//! What is judged, byte by byte, is linearizability of one register: a read sees a write that began before the read ended and
//! that no other write has surely hidden before the read began; and once a read has seen a write, no later read sees what
//! that hid. A snapshot is the image of one moment between its beginning and its end. After a loss of power each
//! byte comes from the last flushed write or a later one.
//!
//! A history of blocks ([`History::of_blocks`]) is judged at its end too: whether there is an order of everything
//! ([`History::check_order`]).
//!
//! The caller promises: a resize touches no range that other requests touch at the same time; nothing is under way during a
//! rollback, a prepare, an abort, and when a clone is made.

use std::collections::{BTreeMap, VecDeque};

use crate::clock::Clock;
use crate::exact::Exact;
use crate::order::Order;
use crate::tag::Tag;
use crate::version::{Piece, Source, Version, Violation, judge};

/// A write under way.
#[derive(Debug, Clone, Copy)]
#[must_use = "a write that began has to end, or to be killed"]
pub struct Writing {
    tag: Tag,
    start: u64,
    end: u64,
}

impl Writing {
    /// Its bytes; not for trims and writes of zeroes.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        self.tag.bytes(self.start, self.end - self.start)
    }
}

/// A read under way.
#[derive(Debug)]
#[must_use = "a read is judged at its end"]
pub struct Reading {
    begun: u64,
    offset: u64,
    pieces: Vec<Piece>,
}

/// A flush under way.
#[derive(Debug)]
#[must_use = "a flush counts when it has ended"]
pub struct Flushing {
    begun: u64,
    /// Whose writes it is of; of all without.
    client: Option<usize>,
}

/// A snapshot that is being taken.
#[derive(Debug)]
#[must_use = "a snapshot counts when it has been taken"]
pub struct Taking {
    begun: u64,
    version: Version,
}

/// See the module's text.
#[derive(Debug)]
pub struct History {
    clock: Clock,
    head: Version,
    snaps: BTreeMap<String, Version>,
    /// The snapshots at the time of the prepare, while a migration is under way.
    before: Option<BTreeMap<String, Version>>,
    /// Writes that began since the oldest read or snapshot under way did, in their order.
    recent: VecDeque<(Source, u64, u64)>,
    /// Reads and snapshots under way, by their beginning.
    looking: BTreeMap<u64, ()>,
    /// Of a history of blocks: all that happened.
    order: Option<Order>,
    /// Between which moments snapshots were taken that nobody has looked at yet, in a history of blocks.
    unseen: BTreeMap<String, (u64, u64)>,
}

impl History {
    /// An image of zeroes.
    #[must_use]
    pub fn new(clock: &Clock, size_bytes: u64) -> Self {
        Self::of(clock, Version::zeroes(clock, size_bytes, clock.tick()))
    }

    fn of(clock: &Clock, head: Version) -> Self {
        Self {
            clock: clock.clone(),
            head,
            snaps: BTreeMap::new(),
            before: None,
            recent: VecDeque::new(),
            looking: BTreeMap::new(),
            order: None,
            unseen: BTreeMap::new(),
        }
    }

    /// The history of a small image from here on, with a clock of its own, in which everything is kept. All requests are of whole
    /// blocks of this size, and each block of a read has to be of one write. There are no rollbacks and no resizes: a
    /// shrink is told as a write of zeroes.
    #[must_use]
    pub fn of_blocks(image: &Exact, block_bytes: u64) -> Self {
        let clock = image.head.clock().fork();
        let head = image.head.clone().with_clock(&clock);
        Self {
            order: Some(Order::new(&head, block_bytes)),
            ..Self::of(&clock, head)
        }
    }

    /// A clone of a snapshot; `None` if there is no such snapshot. What that shows should have been read before, or both
    /// may show different of two writes that overlapped.
    #[must_use]
    pub fn clone_of(&self, snap: &str) -> Option<Self> {
        Some(Self::of(&self.clock, self.snaps.get(snap)?.clone()))
    }

    /// Size of the head.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.head.size_bytes()
    }

    /// Names of the snapshots, sorted.
    #[must_use]
    pub fn snap_names(&self) -> Vec<String> {
        self.snaps.keys().cloned().collect()
    }

    /// Size of a snapshot; 0 if there is none of that name.
    #[must_use]
    pub fn snap_size_bytes(&self, name: &str) -> u64 {
        self.snaps.get(name).map_or(0, Version::size_bytes)
    }

    /// A write begins, or with `zeroes` a trim or a write of zeroes. The range lies inside the image.
    pub fn begin_write(&mut self, offset: u64, length_bytes: u64, zeroes: bool) -> Writing {
        self.begin_write_by(0, offset, length_bytes, zeroes)
    }

    /// The same, where a flush is of what its client wrote.
    pub fn begin_write_by(&mut self, client: usize, offset: u64, length_bytes: u64, zeroes: bool) -> Writing {
        let source = Source::new(self.clock.tick(), zeroes).by(client);
        let (start, end) = (offset, offset + length_bytes);
        self.head.begin(start, end, source);
        if let Some(order) = &mut self.order {
            order.begin(start, end, &source);
        }
        if !zeroes {
            self.clock.remember(source.tag, start, end);
        }
        if !self.looking.is_empty() {
            self.recent.push_back((source, start, end));
        }
        Writing {
            tag: source.tag,
            start,
            end,
        }
    }

    /// It was acknowledged; `durable` says that it asked for that.
    pub fn end_write(&mut self, write: Writing, durable: bool) {
        let moment = self.clock.tick();
        self.head.end(write.start, write.end, write.tag, moment, durable);
        if let Some(order) = &mut self.order {
            order.end(write.start, write.end, write.tag, moment);
        }
        let began = self
            .recent
            .binary_search_by_key(&write.tag, |(source, ..)| source.tag);
        if let Ok(index) = began {
            self.recent[index].0.ended = moment;
        }
    }

    /// A read of the head begins.
    pub fn begin_read(&mut self, offset: u64, length_bytes: u64) -> Reading {
        let begun = self.clock.tick();
        self.looking.insert(begun, ());
        Reading {
            begun,
            offset,
            pieces: self.head.pieces(offset, offset + length_bytes),
        }
    }

    /// It was answered; with fewer bytes than asked for, these are the first.
    ///
    /// # Errors
    /// A byte that it must not have seen.
    pub fn end_read(&mut self, read: Reading, bytes: &[u8]) -> Result<(), Violation> {
        let pieces = self.pieces_of(&read, bytes.len());
        let moment = self.clock.tick();
        let seen = judge(&self.clock, &pieces, read.offset, bytes)?;
        if let Some(order) = &mut self.order {
            let values = order.values(&self.clock, &pieces, read.offset, bytes)?;
            order.saw(read.offset, &values, read.begun, moment);
        }
        for run in &seen {
            self.head.narrow(run, read.begun);
        }
        Ok(())
    }

    /// It was answered at a time when not all clients need see the same, or is of a medium that may still change. Later reads
    /// are judged as if it had not been.
    ///
    /// # Errors
    /// A byte that comes from no write that it may come from.
    pub fn end_unsettled_read(&mut self, read: &Reading, bytes: &[u8]) -> Result<(), Violation> {
        let pieces = self.pieces_of(read, bytes.len());
        judge(&self.clock, &pieces, read.offset, bytes)?;
        match &self.order {
            Some(order) => order.values(&self.clock, &pieces, read.offset, bytes).map(|_| ()),
            None => Ok(()),
        }
    }

    /// Candidates of a read that has ended, of its first bytes.
    fn pieces_of(&mut self, read: &Reading, length: usize) -> Vec<Piece> {
        let mut pieces = read.pieces.clone();
        let end = read.offset + length as u64;
        pieces.retain(|piece| piece.start < end);
        if let Some(last) = pieces.last_mut() {
            last.end = last.end.min(end);
        }
        for (source, start, end) in &self.recent {
            if source.tag.0 > read.begun {
                add(&mut pieces, *source, *start, *end);
            }
        }
        self.looked(read.begun);
        pieces
    }

    /// The read was not answered.
    pub fn forget_read(&mut self, read: &Reading) {
        self.looked(read.begun);
    }

    fn looked(&mut self, begun: u64) {
        self.looking.remove(&begun);
        match self.looking.first_key_value() {
            None => self.recent.clear(),
            Some((oldest, ())) => {
                while self
                    .recent
                    .front()
                    .is_some_and(|(source, ..)| source.tag.0 < *oldest)
                {
                    self.recent.pop_front();
                }
            }
        }
    }

    /// A flush begins.
    pub fn begin_flush(&self) -> Flushing {
        Flushing {
            begun: self.clock.tick(),
            client: None,
        }
    }

    /// A flush begins that is of what this client wrote.
    pub fn begin_flush_by(&self, client: usize) -> Flushing {
        Flushing {
            client: Some(client),
            ..self.begin_flush()
        }
    }

    /// It succeeded.
    pub fn end_flush(&mut self, flush: &Flushing) {
        self.head.flushed(flush.begun, flush.client);
        for snap in self.snaps.values_mut() {
            snap.flushed(flush.begun, flush.client);
        }
        for snap in self.before.iter_mut().flat_map(BTreeMap::values_mut) {
            snap.flushed(flush.begun, flush.client);
        }
    }

    /// A snapshot is asked for.
    pub fn begin_snap(&mut self) -> Taking {
        let begun = self.clock.tick();
        self.looking.insert(begun, ());
        Taking {
            begun,
            version: self.head.clone(),
        }
    }

    /// It was taken.
    pub fn end_snap(&mut self, taking: Taking, name: &str) {
        let mut version = taking.version;
        for (source, start, end) in &self.recent {
            if source.tag.0 > taking.begun {
                version.begin(*start, *end, *source);
            }
        }
        self.looked(taking.begun);
        let ended = self.clock.tick();
        version.taken(taking.begun, ended);
        if self.order.is_some() {
            self.unseen.insert(name.to_owned(), (taking.begun, ended));
        }
        self.snaps.insert(name.to_owned(), version);
    }

    /// A snapshot was removed.
    pub fn remove_snap(&mut self, name: &str) {
        self.snaps.remove(name);
    }

    /// Judges what a snapshot shows from `offset` on. The first look settles what was open.
    ///
    /// # Errors
    /// A byte that it must not show.
    pub fn check_snap(&mut self, name: &str, offset: u64, bytes: &[u8]) -> Result<(), Violation> {
        self.clock.tick();
        let Some(version) = self.snaps.get_mut(name) else {
            return Ok(());
        };
        let pieces = version.pieces(offset, offset + bytes.len() as u64);
        let seen = judge(&self.clock, &pieces, offset, bytes)?;
        version.narrow_point(&pieces, &seen)?;
        for run in &seen {
            version.narrow(run, u64::MAX);
        }
        let Some(order) = &mut self.order else {
            return Ok(());
        };
        // What a snapshot shows was there when it was taken.
        let values = order.values(&self.clock, &pieces, offset, bytes)?;
        if let Some((begun, ended)) = self.unseen.remove(name) {
            order.saw(offset, &values, begun, ended);
            for run in &seen {
                self.head.narrow(run, begun);
            }
        }
        Ok(())
    }

    /// Whether all that happened to each block of a history of blocks has an order in which every read sees the last write.
    ///
    /// # Errors
    /// A block without one, and what happened to it.
    pub fn check_order(&self) -> Result<(), String> {
        self.order.as_ref().map_or(Ok(()), Order::check)
    }

    /// The size was changed.
    pub fn resize(&mut self, size_bytes: u64) {
        self.head.resize(size_bytes, self.clock.tick());
    }

    /// The head is what a snapshot is.
    pub fn roll_back(&mut self, name: &str) {
        if let Some(snap) = self.snaps.get(name) {
            self.head = snap.clone();
        }
    }

    /// All clients are dead, and with `power_lost` what was not flushed may be gone. [`History::is_durable`] has to be told
    /// once all has been read.
    pub fn killed(&mut self, power_lost: bool) {
        let moment = self.clock.tick();
        self.head.killed(moment, power_lost);
        let before = self.before.iter_mut().flat_map(BTreeMap::values_mut);
        for snap in self.snaps.values_mut().chain(before) {
            snap.killed(moment, power_lost);
        }
        self.looking.clear();
        self.recent.clear();
    }

    /// What was read after a loss of power will not go away.
    pub fn is_durable(&mut self) {
        self.head.is_durable();
        for snap in self.snaps.values_mut() {
            snap.is_durable();
        }
    }

    /// A migration was prepared.
    pub fn prepared(&mut self) {
        self.before = Some(self.snaps.clone());
    }

    /// The migration was committed.
    pub fn committed(&mut self) {
        self.before = None;
    }

    /// Snapshots that an abort would lose.
    #[must_use]
    pub fn new_snap_names(&self) -> Vec<String> {
        let before = self.before.as_ref();
        let is_new = |name: &&String| before.is_some_and(|before| !before.contains_key(*name));
        self.snaps.keys().filter(is_new).cloned().collect()
    }

    /// The migration was aborted: the head stays, the snapshots are those of before.
    pub fn aborted(&mut self) {
        for (name, then) in self.before.take().unwrap_or_default() {
            self.snaps.entry(name).or_insert(then);
        }
    }

    /// The same, and the snapshots taken since are gone.
    pub fn aborted_dropping_new_snaps(&mut self) {
        for name in self.new_snap_names() {
            self.snaps.remove(&name);
        }
        self.aborted();
    }

    /// The moment; for messages.
    #[must_use]
    pub fn moment(&self) -> u64 {
        self.clock.now()
    }
}

/// Adds a candidate to the part of the pieces that lies in a range.
fn add(pieces: &mut Vec<Piece>, source: Source, start: u64, end: u64) {
    if pieces.first().is_none_or(|first| first.start >= end)
        || pieces.last().is_none_or(|last| last.end <= start)
    {
        return;
    }
    let mut result = Vec::with_capacity(pieces.len() + 2);
    for piece in pieces.drain(..) {
        let (from, to) = (
            start.clamp(piece.start, piece.end),
            end.clamp(piece.start, piece.end),
        );
        if from >= to {
            result.push(piece);
            continue;
        }
        for (start, end) in [(piece.start, from), (from, to), (to, piece.end)] {
            if start < end {
                let mut part = Piece {
                    start,
                    end,
                    sources: piece.sources.clone(),
                };
                if start == from {
                    part.sources.push(source);
                }
                result.push(part);
            }
        }
    }
    *pieces = result;
}
