//! Acknowledged writes of one object, gathered: while one is on its way to an object, those that come for the same object
//! wait, and go together as one operation of the store when it is done. An OSD pays for an operation far more than for
//! a range in it, so a busy store is asked for less the more it has to do.
//!
//! Invariants: at most one operation of an object is on its way from here, and only with disjoint ranges (see
//! [`super::around`], which lets no two in); every piece ends exactly once, also when the work is dropped. Each holds the
//! gate until it ends. What it does not know: how an object is written, and what becomes of an error.
//!
//! Bounds: [`MAX_UNDER_WAY`] operations; [`MAX_PIECES`] pieces in one. What waits is bounded by [`super::around`].

use std::collections::{HashMap, VecDeque};

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;

use super::around::UnderWay;
use crate::exclusive_lock::WriteGuard;
use crate::image::Image;
use crate::layout::{ObjectExtent, ObjectNo, ObjectOffset};

/// Most operations of one image on their way; librados makes whoever asks for more than 1024 wait.
const MAX_UNDER_WAY: usize = 512;
/// Most pieces of one operation.
const MAX_PIECES: usize = 256;
/// Pieces from this size on stay apart: copying them to join them costs more than one range more.
const JOINED_BYTES: usize = 64 << 10;

/// What waits, by object, and the operations that are on their way.
#[derive(Debug, Default)]
pub(crate) struct Gathered(Mutex<Objects>);

#[derive(Debug, Default)]
struct Objects {
    /// Objects with an operation on its way.
    waiting: HashMap<ObjectNo, VecDeque<Piece>>,
    /// Operations of more than one object.
    apart: usize,
}

/// A write of a part of one object.
#[derive(Debug)]
pub(crate) struct Piece {
    /// Where.
    pub(crate) extent: ObjectExtent,
    /// The write.
    pub(crate) write: UnderWay,
    /// The gate, held until the end.
    pub(crate) guard: WriteGuard,
}

/// What is to be done with a write.
pub(crate) enum Turn {
    /// Nothing: it waits, and goes with others.
    Waits,
    /// The first of its object: to be carried out, and then what waits by then.
    First(Draining, Piece),
}

impl Gathered {
    /// Whether another operation may begin, for an object that has none on its way.
    pub(crate) fn has_room(&self, object_no: Option<ObjectNo>) -> bool {
        let objects = self.0.lock();
        object_no.is_some_and(|object_no| objects.waiting.contains_key(&object_no))
            || objects.waiting.len() + objects.apart < MAX_UNDER_WAY
    }

    /// Whose turn it is.
    pub(crate) fn add(&self, image: &Image, piece: Piece) -> Turn {
        let object_no = piece.extent.object_no;
        let mut objects = self.0.lock();
        if let Some(waiting) = objects.waiting.get_mut(&object_no) {
            waiting.push_back(piece);
            return Turn::Waits;
        }
        objects.waiting.insert(object_no, VecDeque::new());
        let draining = Draining {
            image: image.clone(),
            object_no,
            has_ended: false,
        };
        Turn::First(draining, piece)
    }

    /// Counts an operation of several objects, until it is dropped.
    pub(crate) fn apart(&self, image: &Image) -> Apart {
        self.0.lock().apart += 1;
        Apart { image: image.clone() }
    }

    /// What goes next to an object; nothing: it has no operation on its way any more, and the next piece is a first one.
    fn next(&self, object_no: ObjectNo) -> Vec<Piece> {
        let mut objects = self.0.lock();
        let Some(waiting) = objects.waiting.get_mut(&object_no) else {
            return Vec::new();
        };
        let count = waiting.len().min(MAX_PIECES);
        if count == 0 {
            objects.waiting.remove(&object_no);
            return Vec::new();
        }
        waiting.drain(..count).collect()
    }
}

/// An operation of several objects.
pub(crate) struct Apart {
    image: Image,
}

impl Drop for Apart {
    fn drop(&mut self) {
        self.image.inner.gathered.0.lock().apart -= 1;
    }
}

/// One object's turn. Dropped before its end, it lets go of what waits, which then counts as failed.
pub(crate) struct Draining {
    image: Image,
    object_no: ObjectNo,
    /// Then the object is another's turn already, or will be.
    has_ended: bool,
}

impl Draining {
    /// Carries out the first piece, then what has come meanwhile, until nothing has. Errors are the pieces'.
    pub(crate) async fn run(mut self, first: Piece) {
        let image = self.image.clone();
        let _client = image.inner.activity.begin();
        let mut pieces = vec![first];
        while !pieces.is_empty() {
            image.write_pieces(self.object_no, pieces).await;
            pieces = self.next();
        }
    }

    fn next(&mut self) -> Vec<Piece> {
        let pieces = self.image.inner.gathered.next(self.object_no);
        self.has_ended = pieces.is_empty();
        pieces
    }
}

impl Drop for Draining {
    fn drop(&mut self) {
        if self.has_ended {
            return;
        }
        let left = self.image.inner.gathered.0.lock().waiting.remove(&self.object_no);
        // Outside the lock: each piece says that it has ended.
        drop(left);
    }
}

/// The pieces as runs of an object, ascending; small neighbours are one.
pub(crate) fn runs(pieces: &[Piece]) -> Vec<(ObjectOffset, Bytes)> {
    let mut parts: Vec<_> = pieces
        .iter()
        .map(|piece| (piece.extent.offset, piece.write.data()))
        .collect();
    parts.sort_unstable_by_key(|(offset, _)| *offset);
    joined(parts)
}

fn joined<'a>(parts: impl IntoIterator<Item = (ObjectOffset, &'a Bytes)>) -> Vec<(ObjectOffset, Bytes)> {
    let mut runs: Vec<(ObjectOffset, Bytes)> = Vec::new();
    // What is being joined to the last run.
    let mut tail: Option<BytesMut> = None;
    for (offset, data) in parts {
        if let Some((start, run)) = runs.last_mut() {
            let length = tail.as_ref().map_or(run.len(), BytesMut::len);
            let is_small = data.len() < JOINED_BYTES && run.len() < JOINED_BYTES;
            if is_small && start.0 + length as u64 == offset.0 {
                tail.get_or_insert_with(|| BytesMut::from(&run[..]))
                    .extend_from_slice(data);
                continue;
            }
            if let Some(whole) = tail.take() {
                *run = whole.freeze();
            }
        }
        runs.push((offset, data.clone()));
    }
    if let (Some((_, run)), Some(whole)) = (runs.last_mut(), tail) {
        *run = whole.freeze();
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{ImageKey, OpenOptions};
    use crate::in_memory;

    #[tokio::test]
    async fn the_end_of_one_turn_leaves_what_waits_for_the_next_alone() {
        let io = in_memory::pool().await;
        in_memory::create_small(&io, "disk").await;
        let options = OpenOptions::read_write().writing_around(Some(ferry_store::WriteAround {
            max_bytes: 1 << 20,
            until_flush: false,
        }));
        let image = Image::open(&io, ImageKey::Name("disk"), options).await.unwrap();
        let object_no = ObjectNo(0);
        let add = async |at: u64| {
            let data = Bytes::from_static(&[1; 512]);
            let guard = image.begin_write().await.unwrap();
            let write = image.inner.around.begin(&image, at, &data).unwrap();
            let extent = ObjectExtent {
                object_no,
                offset: ObjectOffset(at),
                length_bytes: 512,
                image_offset: crate::layout::ImageOffset(at),
            };
            image.inner.gathered.add(&image, Piece { extent, write, guard })
        };
        let Turn::First(mut first, piece) = add(0).await else {
            panic!("it is the first");
        };
        image.write_pieces(object_no, vec![piece]).await;
        assert!(first.next().is_empty());
        // Between the end of the turn and its going, the next has begun, and a piece waits for it.
        let Turn::First(second, piece) = add(1024).await else {
            panic!("the turn has ended");
        };
        assert!(matches!(add(2048).await, Turn::Waits));
        drop(first);
        second.run(piece).await;
        // Not a flush, which would try a failed one again.
        image.settled().await.unwrap();
        assert!(image.is_settled(0, 1 << 20));
        assert_eq!(image.read(2048, 512).await.unwrap(), vec![1; 512]);
        image.close().await.unwrap();
    }

    #[test]
    fn small_neighbours_are_joined_and_nothing_else_is() {
        let block = |byte: u8, length: usize| Bytes::from(vec![byte; length]);
        let parts = [
            (ObjectOffset(0), block(1, 10)),
            (ObjectOffset(10), block(2, 10)),
            (ObjectOffset(20), block(3, 5)),
            (ObjectOffset(30), block(4, 5)),
            (ObjectOffset(35), block(5, JOINED_BYTES)),
            (ObjectOffset(35 + JOINED_BYTES as u64), block(6, 1)),
        ];
        let runs = joined(parts.iter().map(|(offset, data)| (*offset, data)));
        let offsets: Vec<_> = runs.iter().map(|(offset, data)| (offset.0, data.len())).collect();
        let large = 35 + JOINED_BYTES as u64;
        assert_eq!(offsets, [(0, 25), (30, 5), (35, JOINED_BYTES), (large, 1)]);
        assert_eq!(&runs[0].1[8..22], [1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 3, 3]);
        assert_eq!(joined([]), []);
    }
}
