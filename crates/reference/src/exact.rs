//! An image that one client at a time uses: every read has one answer.
//!
//! The promise: the same model as [`crate::History`], in which every write has ended, durably, before anything else begins. Each
//! byte of the head and of a snapshot comes from one write, and a [`Violation`] names the write that is seen in its place.
//!
//! What it does not know: which versions the image has under which names; that is the caller's to say.

use std::collections::BTreeMap;

use crate::clock::Clock;
use crate::tag::Tag;
use crate::version::{Source, Version, Violation, judge};

/// See the module's text.
#[derive(Debug, Clone)]
pub struct Exact {
    clock: Clock,
    /// What the image shows.
    pub head: Version,
    /// What its snapshots show, by name.
    pub snaps: BTreeMap<String, Version>,
}

impl Exact {
    /// An image of zeroes.
    #[must_use]
    pub fn new(size_bytes: u64) -> Self {
        let clock = Clock::default();
        let head = Version::zeroes(&clock, size_bytes, clock.tick());
        Self {
            clock,
            head,
            snaps: BTreeMap::new(),
        }
    }

    /// An image that holds `data`.
    #[must_use]
    pub fn showing(data: &[u8]) -> Self {
        let mut image = Self::new(data.len() as u64);
        image.write(0, data);
        image
    }

    /// Another image, without snapshots, that shows `version`: a clone.
    #[must_use]
    pub fn of(version: &Version) -> Self {
        Self {
            clock: version.clock().clone(),
            head: version.clone(),
            snaps: BTreeMap::new(),
        }
    }

    /// Size of the head.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.head.size_bytes()
    }

    /// `data` was written. The range lies inside the image.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        let source = Source::given(self.clock.tick());
        self.clock.give(source.tag, offset, data);
        self.put(offset, data.len() as u64, source);
    }

    /// A write of bytes that tell where they belong, which are returned. The range lies inside the image.
    pub fn write_tagged(&mut self, offset: u64, length_bytes: u64) -> Vec<u8> {
        let tag = Tag(self.clock.tick());
        self.clock.remember(tag, offset, offset + length_bytes);
        self.put(offset, length_bytes, Source::new(tag.0, false));
        tag.bytes(offset, length_bytes)
    }

    /// A range was made zeroes. It lies inside the image.
    pub fn zero(&mut self, offset: u64, length_bytes: u64) {
        let source = Source::new(self.clock.tick(), true);
        self.put(offset, length_bytes, source);
    }

    fn put(&mut self, offset: u64, length_bytes: u64, source: Source) {
        let (start, end) = (offset, offset + length_bytes);
        if start == end {
            return;
        }
        self.head.begin(start, end, source);
        self.head.end(start, end, source.tag, self.clock.tick(), true);
    }

    /// The size was changed.
    pub fn resize(&mut self, size_bytes: u64) {
        self.head.resize(size_bytes, self.clock.tick());
    }

    /// A snapshot was taken.
    pub fn snap(&mut self, name: &str) {
        self.snaps.insert(name.to_owned(), self.head.clone());
    }
}

impl Version {
    /// Judges bytes that were read at `offset` of a version of an [`Exact`] image.
    ///
    /// # Errors
    /// The first byte that is another.
    pub fn check(&self, offset: u64, bytes: &[u8]) -> Result<(), Violation> {
        let pieces = self.pieces(offset, offset + bytes.len() as u64);
        judge(self.clock(), &pieces, offset, bytes).map(|_| ())
    }

    /// What a version of an [`Exact`] image shows in a range.
    #[must_use]
    pub fn bytes_at(&self, offset: u64, length_bytes: u64) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(length_bytes as usize);
        for piece in self.pieces(offset, offset + length_bytes) {
            if let Some(source) = piece.sources.last() {
                bytes.extend(source.content(self.clock(), piece.start, piece.end));
            }
        }
        bytes
    }

    /// All of it.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        self.bytes_at(0, self.size_bytes())
    }
}
