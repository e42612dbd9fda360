//! A set of object numbers: one bit each, in chunks that exist where members are.
//!
//! Costs follow the members: an empty stretch of any length takes neither memory nor time.

use std::collections::BTreeMap;
use std::ops::Range;

use futures::FutureExt as _;
use futures::future::BoxFuture;

use crate::error::Result;
use crate::image::Image;
use crate::layout::ObjectNo;
use crate::snapshot::kept::check_still_there;

/// Most objects that are tried one by one.
const TRIED_MAX: u64 = 1 << 20;

/// Objects that are looked at without letting others run.
const OBJECTS_PER_TURN: usize = 1024;

/// Names listed at a time.
const LIST_PAGE: usize = 1024;

const WORDS_PER_CHUNK: usize = 64;
const OBJECTS_PER_CHUNK: u64 = 64 * WORDS_PER_CHUNK as u64;

/// Numbers of objects to look at, ascending.
pub(crate) type Candidates<'a> = Box<dyn Iterator<Item = u64> + Send + 'a>;

/// The set.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ObjectSet {
    chunks: BTreeMap<u64, Words>,
    members: u64,
}

impl ObjectSet {
    /// Whether the object is a member.
    pub fn contains(&self, object: ObjectNo) -> bool {
        let (chunk, word, bit) = place(object);
        self.chunks
            .get(&chunk)
            .is_some_and(|words| words[word] & bit != 0)
    }

    /// Makes the object a member; false if it was one.
    pub fn insert(&mut self, object: ObjectNo) -> bool {
        let (chunk, word, bit) = place(object);
        let words = self
            .chunks
            .entry(chunk)
            .or_insert_with(|| Box::new([0; WORDS_PER_CHUNK]));
        let new = words[word] & bit == 0;
        words[word] |= bit;
        self.members += u64::from(new);
        new
    }

    /// Number of members.
    pub fn len(&self) -> u64 {
        self.members
    }

    /// Whether there is no member.
    pub fn is_empty(&self) -> bool {
        self.members == 0
    }

    /// The members in `range`, ascending. Costs follow those, not the ones before and behind.
    pub fn within(&self, range: Range<u64>) -> impl Iterator<Item = u64> + '_ {
        let chunks = range.start / OBJECTS_PER_CHUNK..range.end.div_ceil(OBJECTS_PER_CHUNK);
        // A range that ends before it begins has no members.
        let chunks = chunks.start..chunks.end.max(chunks.start);
        let members = self.chunks.range(chunks).flat_map(members_of);
        members
            .map(|object| object.0)
            .filter(move |object| range.contains(object))
    }

    /// The members, ascending.
    pub fn iter(&self) -> impl Iterator<Item = ObjectNo> + '_ {
        self.chunks.iter().flat_map(members_of)
    }
}

type Words = Box<[u64; WORDS_PER_CHUNK]>;

fn members_of<'a>((chunk, words): (&'a u64, &'a Words)) -> impl Iterator<Item = ObjectNo> + 'a {
    let first = chunk * OBJECTS_PER_CHUNK;
    words
        .iter()
        .enumerate()
        .filter(|(_, bits)| **bits != 0)
        .flat_map(move |(index, bits)| {
            let (base, bits) = (first + 64 * index as u64, *bits);
            (0..64)
                .filter(move |bit| bits >> bit & 1 != 0)
                .map(move |bit| ObjectNo(base + bit))
        })
}

impl Extend<ObjectNo> for ObjectSet {
    fn extend<T: IntoIterator<Item = ObjectNo>>(&mut self, objects: T) {
        for object in objects {
            self.insert(object);
        }
    }
}

impl FromIterator<ObjectNo> for ObjectSet {
    fn from_iter<T: IntoIterator<Item = ObjectNo>>(objects: T) -> Self {
        let mut set = Self::default();
        set.extend(objects);
        set
    }
}

/// Data objects of an image that have a head or clones.
pub(crate) async fn existing(image: &Image) -> Result<ObjectSet> {
    let io = image.data_io();
    let prefix = image.data_prefix();
    let mut out = ObjectSet::default();
    let mut after = String::new();
    loop {
        let page = io
            .store()
            .list_objects(io.scope(), &prefix, &after, LIST_PAGE)
            .await?;
        out.extend(page.iter().filter_map(|name| {
            u64::from_str_radix(name.get(prefix.len()..)?, 16)
                .ok()
                .map(ObjectNo)
        }));
        match page.last() {
            Some(last) if page.len() == LIST_PAGE => after.clone_from(last),
            _ => return Ok(out),
        }
    }
}

/// The same where it costs less than to try each of the objects `range`: there are many, and no object map says which there
/// are. An image of exabytes without a map would keep its remover busy for years.
pub(crate) async fn existing_of_many(image: &Image, range: &Range<u64>) -> Result<Option<ObjectSet>> {
    match is_many(range) && !image.inner.head_map.is_loaded() {
        true => existing(image).await.map(Some),
        false => Ok(None),
    }
}

/// Whether there are so many objects that a listing costs less than to try each.
pub(crate) fn is_many(range: &Range<u64>) -> bool {
    range.end.saturating_sub(range.start) > TRIED_MAX
}

/// Objects of a clone that lie, within `overlap_bytes`, over objects of its parent or of that one's parents: through all others
/// only zeroes show. `None`: it cannot be listed what shows, as one of them is opened without its parent or is under migration from
/// a clone.
pub(crate) fn over_parents(clone: &Image, overlap_bytes: u64) -> BoxFuture<'_, Result<Option<ObjectSet>>> {
    async move {
        let Some(parent) = clone.parent() else {
            return Ok(None);
        };
        let image = parent.image();
        let mut theirs = existing(image).await?;
        if let Some(source) = image.source() {
            if source.parent_object_count(image) > 0 {
                return Ok(None);
            }
            theirs.extend(source.objects_to_copy(image).await?.iter());
        }
        let below_bytes = image.header().parent_overlap_bytes(image.read_snap());
        if below_bytes > 0 {
            let Some(below) = over_parents(image, below_bytes).await? else {
                return Ok(None);
            };
            theirs.extend(below.iter());
        }
        // What is gone is on no list either.
        check_still_there(image).await?;
        let (from, to) = (image.layout(), clone.layout());
        let shown = to.object_count(overlap_bytes);
        let mut over = ObjectSet::default();
        for (index, object) in theirs.iter().enumerate() {
            from.each_object_over(object, to, |object| {
                if object.0 < shown {
                    over.insert(object);
                }
            });
            if index % OBJECTS_PER_TURN == OBJECTS_PER_TURN - 1 {
                tokio::task::yield_now().await;
            }
        }
        Ok(Some(over))
    }
    .boxed()
}

fn place(object: ObjectNo) -> (u64, usize, u64) {
    let inside = object.0 % OBJECTS_PER_CHUNK;
    (
        object.0 / OBJECTS_PER_CHUNK,
        (inside / 64) as usize,
        1 << (inside % 64),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_come_out_once_and_ascending() {
        let members = [u64::MAX, 0, 63, 64, OBJECTS_PER_CHUNK, 64, 1 << 40];
        let mut set = ObjectSet::default();
        for n in members {
            set.insert(ObjectNo(n));
            assert!(set.contains(ObjectNo(n)));
        }
        assert!(!set.contains(ObjectNo(1)));
        let out: Vec<u64> = set.iter().map(|object| object.0).collect();
        assert_eq!(out, [0, 63, 64, OBJECTS_PER_CHUNK, 1 << 40, u64::MAX]);
        let within = |range: Range<u64>| set.within(range).collect::<Vec<u64>>();
        assert_eq!(within(1..65), [63, 64]);
        assert_eq!(within(OBJECTS_PER_CHUNK + 1..u64::MAX), [1 << 40]);
        assert_eq!(within(Range { start: 70, end: 60 }), [0; 0]);
        assert_eq!(set.len(), 6);
        assert!(!set.insert(ObjectNo(63)));
        assert_eq!(set.len(), 6);
    }
}
