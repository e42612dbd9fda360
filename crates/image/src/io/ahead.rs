//! Read-ahead, where the store is far away: a client that reads on and on in small requests is answered from what was
//! read of a chunk of the image at once, which costs the store little more than one of the requests.
//!
//! Invariants:
//! * What is kept is what a read of now would give. It is read and believed only at a snapshot, or while this handle owns
//!   the exclusive lock, so that nobody else writes; whatever changes a range forgets it before it begins and again when it
//!   ends ([`Image::changing`]), and no chunk is read with a write of its range on its way.
//! * Reading ahead changes nothing and delays nobody: an error of it is forgotten, and whoever waited reads for himself.
//!
//! Ceph's settings decide: `rbd_cache=false` and `rbd_readahead_max_bytes=0` switch it off, in the store's configuration, of the pool
//! and of the image ([`super::cache_settings`]).
//!
//! Bounds: [`MAX_STREAMS`] readers are told apart, [`MAX_KEPT_BYTES`] are kept or on their way, [`MAX_AHEAD_BYTES`] before
//! any reader. What it does not know: where the bytes of the image are.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::background;
use super::read::Run;
use crate::image::Image;

/// Readers that are told apart.
const MAX_STREAMS: usize = 8;
/// Requests from this size on are not worth it.
const MAX_REQUEST_BYTES: u64 = 2 << 20;
/// So many requests that follow one another make a reader one that will go on.
const TRIGGER_REQUESTS: u32 = 4;
/// Requests of one reader come so far out of order, several being on their way.
const DISORDER_BYTES: u64 = 4 << 20;
/// What is read at once, and borders between.
const CHUNK_BYTES: u64 = 4 << 20;
/// Most bytes that are read before a reader asks for them; never more than he has read on end.
const MAX_AHEAD_BYTES: u64 = 8 << 20;
/// Most bytes that are kept or on their way.
const MAX_KEPT_BYTES: u64 = 32 << 20;

/// What was read ahead of one open image.
#[derive(Debug)]
pub(crate) struct Ahead {
    is_on: bool,
    /// Whether there are no chunks; whoever changes something looks at nothing else then.
    is_empty: AtomicBool,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// The one that read last is the last.
    streams: Vec<Stream>,
    /// By image offset; their ranges are apart.
    chunks: BTreeMap<u64, Chunk>,
    begun: u64,
}

#[derive(Debug)]
struct Stream {
    /// Where its next request is expected.
    next: u64,
    bytes: u64,
    requests: u32,
    /// To where was read ahead.
    ahead: u64,
}

#[derive(Debug)]
struct Chunk {
    number: u64,
    length_bytes: u64,
    /// Bytes that readers had of it.
    used_bytes: u64,
    /// `None` while it is on its way.
    runs: Option<Vec<Run>>,
}

/// A range that is to be read ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Wanted {
    offset: u64,
    length_bytes: u64,
    number: u64,
}

enum Found {
    Runs(Vec<Run>),
    OnTheWay,
    Nothing,
}

impl Ahead {
    pub(crate) fn new(is_on: bool) -> Self {
        Self {
            is_on,
            is_empty: AtomicBool::new(true),
            state: Mutex::default(),
            changed: Notify::new(),
        }
    }

    /// Forgets all.
    pub(crate) fn clear(&self) {
        self.forget(0, u64::MAX);
    }

    fn forget(&self, offset: u64, end: u64) {
        // Whoever begins a chunk says so before it looks for writes on their way.
        if self.is_empty.load(Ordering::SeqCst) {
            return;
        }
        let mut state = self.state.lock();
        let gone: Vec<u64> = state.overlapping(offset, end).map(|(at, _)| at).collect();
        for at in &gone {
            state.chunks.remove(at);
        }
        self.is_empty.store(state.chunks.is_empty(), Ordering::SeqCst);
        drop(state);
        if !gone.is_empty() {
            self.changed.notify_waiters();
        }
    }

    /// Notes a request, and begins the chunks that should follow it in an image of that size.
    fn note(&self, offset: u64, length_bytes: u64, size_bytes: u64) -> Vec<Wanted> {
        let mut state = self.state.lock();
        let wanted = state.note(offset, length_bytes, size_bytes);
        self.is_empty.store(state.chunks.is_empty(), Ordering::SeqCst);
        wanted
    }

    /// A chunk has come; `None`: it could not be had. It is kept if nobody forgot it meanwhile.
    fn arrived(&self, wanted: Wanted, runs: Option<Vec<Run>>) {
        let mut state = self.state.lock();
        let is_meant = |chunk: &Chunk| chunk.number == wanted.number;
        if state.chunks.get(&wanted.offset).is_some_and(is_meant) {
            match runs {
                Some(runs) => {
                    if let Some(chunk) = state.chunks.get_mut(&wanted.offset) {
                        chunk.runs = Some(runs);
                    }
                }
                None => {
                    state.chunks.remove(&wanted.offset);
                }
            }
        }
        self.is_empty.store(state.chunks.is_empty(), Ordering::SeqCst);
        drop(state);
        self.changed.notify_waiters();
    }

    /// Takes a range out of what was read ahead; waits for what is on its way.
    async fn take(&self, offset: u64, length_bytes: u64) -> Option<Vec<Run>> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let found = {
                let mut state = self.state.lock();
                let found = state.take(offset, offset.saturating_add(length_bytes));
                self.is_empty.store(state.chunks.is_empty(), Ordering::SeqCst);
                found
            };
            match found {
                Found::Runs(runs) => return Some(runs),
                Found::Nothing => return None,
                Found::OnTheWay => changed.await,
            }
        }
    }
}

impl State {
    fn overlapping(&self, offset: u64, end: u64) -> impl Iterator<Item = (u64, &Chunk)> {
        // Ranges are apart, so of those that begin before only the last can reach in.
        let before = self.chunks.range(..offset).next_back();
        let before = before.filter(move |(at, chunk)| **at + chunk.length_bytes > offset);
        let inside = self
            .chunks
            .range((Bound::Included(offset), Bound::Excluded(end.max(offset))));
        before.into_iter().chain(inside).map(|(at, chunk)| (*at, chunk))
    }

    fn note(&mut self, offset: u64, length_bytes: u64, size_bytes: u64) -> Vec<Wanted> {
        let end = offset + length_bytes;
        let is_of = |stream: &Stream| {
            offset.saturating_add(DISORDER_BYTES) >= stream.next && offset <= stream.next + DISORDER_BYTES
        };
        let Some(place) = self.streams.iter().rposition(is_of) else {
            if self.streams.len() >= MAX_STREAMS {
                self.streams.remove(0);
            }
            self.streams.push(Stream {
                next: end,
                bytes: length_bytes,
                requests: 1,
                ahead: end,
            });
            return Vec::new();
        };
        let mut stream = self.streams.remove(place);
        let wanted = self.follow(&mut stream, offset, end, size_bytes);
        self.streams.push(stream);
        wanted
    }

    fn follow(&mut self, stream: &mut Stream, offset: u64, end: u64, size_bytes: u64) -> Vec<Wanted> {
        if end <= stream.next {
            // Again, or one that was overtaken.
            return Vec::new();
        }
        let skipped = offset.saturating_sub(stream.next);
        if skipped > stream.bytes {
            // Near, by chance.
            *stream = Stream {
                next: end,
                bytes: end - offset,
                requests: 1,
                ahead: end,
            };
            return Vec::new();
        }
        stream.bytes = stream.bytes.saturating_add(end - stream.next.max(offset));
        stream.requests = stream.requests.saturating_add(1);
        stream.next = end;
        stream.ahead = stream.ahead.max(end);
        let mut wanted = Vec::new();
        let allowed_bytes = stream.bytes.min(MAX_AHEAD_BYTES);
        let is_far_ahead = stream.ahead - stream.next > allowed_bytes / 2;
        if stream.requests < TRIGGER_REQUESTS || is_far_ahead {
            return wanted;
        }
        let mut target = end + allowed_bytes;
        if allowed_bytes == MAX_AHEAD_BYTES {
            target -= target % CHUNK_BYTES;
        }
        let target = target.min(size_bytes);
        while stream.ahead < target {
            let border = (stream.ahead / CHUNK_BYTES + 1) * CHUNK_BYTES;
            let chunk_end = border.min(target);
            if self.overlapping(stream.ahead, chunk_end).next().is_none() {
                let length_bytes = chunk_end - stream.ahead;
                if !self.make_room(length_bytes) {
                    break;
                }
                wanted.push(self.begin(stream.ahead, length_bytes));
            }
            stream.ahead = chunk_end;
        }
        wanted
    }

    fn begin(&mut self, offset: u64, length_bytes: u64) -> Wanted {
        self.begun += 1;
        let number = self.begun;
        let chunk = Chunk {
            number,
            length_bytes,
            used_bytes: 0,
            runs: None,
        };
        self.chunks.insert(offset, chunk);
        Wanted {
            offset,
            length_bytes,
            number,
        }
    }

    /// Forgets what was read longest ago, until so much more may be kept.
    fn make_room(&mut self, length_bytes: u64) -> bool {
        loop {
            let kept: u64 = self.chunks.values().map(|chunk| chunk.length_bytes).sum();
            if kept + length_bytes <= MAX_KEPT_BYTES {
                return true;
            }
            let ready = self.chunks.iter().filter(|(_, chunk)| chunk.runs.is_some());
            let Some((&oldest, _)) = ready.min_by_key(|(_, chunk)| chunk.number) else {
                return false;
            };
            self.chunks.remove(&oldest);
        }
    }

    fn take(&mut self, offset: u64, end: u64) -> Found {
        let mut covered = offset;
        let mut runs = Vec::new();
        let mut used = Vec::new();
        let mut is_on_the_way = false;
        for (at, chunk) in self.overlapping(offset, end) {
            if at > covered {
                return Found::Nothing;
            }
            covered = at + chunk.length_bytes;
            match &chunk.runs {
                None => is_on_the_way = true,
                Some(all) => runs.extend(cut(all, offset, end)),
            }
            used.push((at, covered.min(end) - at.max(offset)));
        }
        if covered < end {
            return Found::Nothing;
        }
        if is_on_the_way {
            return Found::OnTheWay;
        }
        for (at, bytes) in used {
            if let Some(chunk) = self.chunks.get_mut(&at) {
                chunk.used_bytes += bytes;
                if chunk.used_bytes >= chunk.length_bytes {
                    self.chunks.remove(&at);
                }
            }
        }
        Found::Runs(runs)
    }
}

/// The parts of runs that lie in a range.
fn cut(runs: &[Run], offset: u64, end: u64) -> impl Iterator<Item = Run> {
    runs.iter().filter_map(move |(at, data)| {
        let from = offset.max(*at);
        let to = end.min(at + data.len() as u64);
        (from < to).then(|| {
            let part = (from - at) as usize..(to - at) as usize;
            (from, data.slice(part))
        })
    })
}

/// Somebody changes a range: what was read ahead of it is forgotten now, and again when this is dropped.
#[derive(Debug)]
pub(crate) struct Changing<'a> {
    image: &'a Image,
    offset: u64,
    end: u64,
}

impl<'a> Changing<'a> {
    fn new(image: &'a Image, offset: u64, end: u64) -> Self {
        image.inner.ahead.forget(offset, end);
        Self { image, offset, end }
    }
}

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        self.image.inner.ahead.forget(self.offset, self.end);
    }
}

impl Image {
    /// To be held from before a range is changed until it is, or until the change is one that
    /// [`super::around`] tells of.
    pub(crate) fn changing(&self, offset: u64, length_bytes: u64) -> Changing<'_> {
        Changing::new(self, offset, offset.saturating_add(length_bytes))
    }

    /// The same for all of the image.
    pub(crate) fn changing_all(&self) -> Changing<'_> {
        Changing::new(self, 0, u64::MAX)
    }

    /// Whether nobody but this handle can change what it shows.
    fn shows_what_only_it_changes(&self) -> bool {
        !self.inner.read_snap.is_head() || self.inner.lock.is_owner() && !self.inner.io.store().is_fenced()
    }

    /// A client's read from what was read ahead; `None`: it has to be read.
    pub(crate) async fn read_ahead(&self, offset: u64, length_bytes: u64) -> Option<Vec<Run>> {
        let ahead = &self.inner.ahead;
        let is_small = (1..=MAX_REQUEST_BYTES).contains(&length_bytes);
        if !ahead.is_on
            || !is_small
            || !self.shows_what_only_it_changes()
            || self.copies_on_read()
            || !self.is_fresh()
            || self.check_open().is_err()
        {
            return None;
        }
        let size_bytes = self.header().size_at(self.inner.read_snap)?;
        if offset
            .checked_add(length_bytes)
            .is_none_or(|end| end > size_bytes)
        {
            return None;
        }
        for wanted in ahead.note(offset, length_bytes, size_bytes) {
            let image = self.clone();
            background::start(async move { image.fetch(wanted).await });
        }
        if ahead.is_empty.load(Ordering::SeqCst) {
            return None;
        }
        let runs = ahead.take(offset, length_bytes).await?;
        // The lock may have gone while this waited.
        self.shows_what_only_it_changes().then_some(runs)
    }

    async fn fetch(&self, wanted: Wanted) {
        /// Dropped before the end, the chunk is forgotten.
        struct Fetching<'a>(&'a Ahead, Wanted, Option<Vec<Run>>);
        impl Drop for Fetching<'_> {
            fn drop(&mut self) {
                self.0.arrived(self.1, self.2.take());
            }
        }
        let mut fetching = Fetching(&self.inner.ahead, wanted, None);
        let Wanted {
            offset, length_bytes, ..
        } = wanted;
        if !self.is_settled(offset, length_bytes) || !self.shows_what_only_it_changes() {
            return;
        }
        let found = self.read_found(offset, length_bytes, self.inner.read_snap).await;
        if self.shows_what_only_it_changes() {
            fetching.2 = found.ok().map(|found| found.runs);
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    const KIB: u64 = 1 << 10;
    const MIB: u64 = 1 << 20;
    const SIZE: u64 = 64 * MIB;

    fn ranges(wanted: &[Wanted]) -> Vec<(u64, u64)> {
        wanted
            .iter()
            .map(|wanted| (wanted.offset, wanted.length_bytes))
            .collect()
    }

    /// Reads on from `at`; what is wanted ahead at the last.
    fn read_on(state: &mut State, at: u64, length_bytes: u64, count: u64) -> Vec<(u64, u64)> {
        let mut wanted = Vec::new();
        for n in 0..count {
            wanted = state.note(at + n * length_bytes, length_bytes, SIZE);
        }
        ranges(&wanted)
    }

    #[test]
    fn a_reader_that_goes_on_is_read_ahead_of_and_one_that_jumps_is_not() {
        let mut state = State::default();
        assert_eq!(read_on(&mut state, MIB, 64 * KIB, 3), []);
        let next = MIB + 256 * KIB;
        assert_eq!(
            ranges(&state.note(next - 64 * KIB, 64 * KIB, SIZE)),
            [(next, 256 * KIB)],
            "as much as he has read"
        );
        assert_eq!(ranges(&state.note(next, 64 * KIB, SIZE)), [], "enough for now");
        let mut begun = Vec::new();
        for n in 1..1000 {
            begun.extend(state.note(next + n * 64 * KIB, 64 * KIB, 1 << 40));
            // As if they had come and were read.
            state.chunks.clear();
        }
        let ends: Vec<u64> = begun
            .iter()
            .map(|wanted| wanted.offset + wanted.length_bytes)
            .collect();
        assert!(
            begun
                .windows(2)
                .all(|two| two[0].offset + two[0].length_bytes == two[1].offset)
        );
        assert!(
            ends[ends.len() - 8..].iter().all(|end| end % CHUNK_BYTES == 0),
            "whole chunks in the end: {ends:?}"
        );
        let mut state = State::default();
        for n in 0..1000 {
            let at = (n * 7919 % 1000) * 16 * MIB;
            assert_eq!(state.note(at, 4 * KIB, 1 << 40), [], "jump {n}");
        }
        assert!(state.streams.len() <= MAX_STREAMS);
    }

    #[test]
    fn requests_that_overtake_one_another_are_one_reader() {
        let mut state = State::default();
        let mut wanted = Vec::new();
        for n in [1, 0, 3, 2, 4, 6, 5] {
            wanted.extend(state.note(n * MIB, MIB, SIZE));
        }
        assert_eq!(state.streams.len(), 1);
        assert!(!wanted.is_empty());
    }

    #[test]
    fn no_more_is_read_ahead_than_is_kept_and_the_end_of_the_image_is_the_end() {
        let mut state = State::default();
        for reader in 0..100 {
            for n in 0..64 {
                state.note((reader * 100 + n) * MIB, MIB, 1 << 40);
            }
            let kept: u64 = state.chunks.values().map(|chunk| chunk.length_bytes).sum();
            assert!(kept <= MAX_KEPT_BYTES);
        }
        let mut state = State::default();
        let at = SIZE - 300 * KIB;
        assert_eq!(read_on(&mut state, at, 64 * KIB, 4), [(at + 256 * KIB, 44 * KIB)]);
    }

    #[test]
    fn what_has_come_is_given_out_and_what_was_forgotten_meanwhile_is_not() {
        let ahead = Ahead::new(true);
        let wanted = [0, 1, 2, 3].map(|n| ahead.note(2 * MIB + n * MIB, MIB, SIZE));
        // Up to the border of a chunk, and behind it.
        let [first, second] = wanted[3][..] else {
            panic!("{wanted:?}");
        };
        let runs = |wanted: Wanted| vec![(wanted.offset, Bytes::from(vec![1; 4096]))];
        let (at, end) = (first.offset, first.offset + first.length_bytes);
        assert!(matches!(ahead.state.lock().take(at, at + 4), Found::OnTheWay));
        assert!(matches!(ahead.state.lock().take(at - 1, at + 4), Found::Nothing));
        ahead.arrived(first, Some(runs(first)));
        let Found::Runs(found) = ahead.state.lock().take(at + 4090, at + 5000) else {
            panic!("it has come");
        };
        assert_eq!(found, [(at + 4090, Bytes::from(vec![1; 6]))]);
        assert!(matches!(
            ahead.state.lock().take(end - 4, end + 4),
            Found::OnTheWay
        ));
        ahead.forget(end, end + 1);
        ahead.arrived(second, Some(runs(second)));
        assert!(matches!(
            ahead.state.lock().take(end - 4, end + 4),
            Found::Nothing
        ));
        ahead.clear();
        assert!(ahead.is_empty.load(Ordering::SeqCst));
    }

    #[test]
    fn a_chunk_that_was_read_to_its_end_is_let_go() {
        let ahead = Ahead::new(true);
        let mut wanted = Vec::new();
        for n in 0..4 {
            wanted = ahead.note(n * 64 * KIB, 64 * KIB, SIZE);
        }
        let first = wanted[0];
        ahead.arrived(first, Some(Vec::new()));
        let chunks = ahead.state.lock().chunks.len();
        let mut at = first.offset;
        while at < first.offset + first.length_bytes {
            assert!(matches!(
                ahead.state.lock().take(at, at + 64 * KIB),
                Found::Runs(_)
            ));
            at += 64 * KIB;
        }
        assert_eq!(ahead.state.lock().chunks.len(), chunks - 1);
    }
}
