//! The byte changes of one operation, combined so that each byte and the length change at most once.
//!
//! Why: a buffered operation is done in place, and after a power loss any of its bytes may be the old or the new one, but
//! none may be what an earlier step of the same operation put there for a moment.

use bytes::Bytes;

use super::data::DataStep;

/// What a stretch of bytes becomes; `None`: zeros.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Piece {
    offset: u64,
    end: u64,
    data: Option<Bytes>,
}

impl Piece {
    /// The part between `from` and `to`, if any.
    fn part(&self, from: u64, to: u64) -> Option<Piece> {
        let (offset, end) = (self.offset.max(from), self.end.min(to));
        (offset < end).then(|| Piece {
            offset,
            end,
            data: self
                .data
                .as_ref()
                .map(|data| data.slice((offset - self.offset) as usize..(end - self.offset) as usize)),
        })
    }
}

/// Pieces, ascending and separate, over an object whose length is `size`.
struct Combined {
    pieces: Vec<Piece>,
    size: u64,
}

impl Combined {
    fn put(&mut self, piece: Piece) {
        if piece.offset >= piece.end {
            return;
        }
        let mut pieces = Vec::with_capacity(self.pieces.len() + 2);
        pieces.extend(self.pieces.iter().filter_map(|old| old.part(0, piece.offset)));
        let behind: Vec<Piece> = self
            .pieces
            .iter()
            .filter_map(|old| old.part(piece.end, u64::MAX))
            .collect();
        self.size = self.size.max(piece.end);
        pieces.push(piece);
        pieces.extend(behind);
        self.pieces = pieces;
    }

    fn zero(&mut self, offset: u64, end: u64) {
        let end = end.min(self.size);
        self.put(Piece {
            offset,
            end,
            data: None,
        });
    }
}

/// Steps with the effect of `steps` on an object of `size_bytes`.
pub(crate) fn combine(size_bytes: u64, steps: &[DataStep]) -> Vec<DataStep> {
    if let [_] = steps {
        return steps.to_vec();
    }
    let mut combined = Combined {
        pieces: Vec::new(),
        size: size_bytes,
    };
    for step in steps {
        match step {
            DataStep::Write { offset, data } => combined.put(Piece {
                offset: *offset,
                end: offset + data.len() as u64,
                data: Some(data.clone()),
            }),
            DataStep::Zero { offset, length_bytes } => {
                combined.zero(*offset, offset.saturating_add(*length_bytes))
            }
            DataStep::Truncate { size_bytes: new } => {
                // What is cut off reads as zero should the object grow again.
                combined.zero(*new, u64::MAX);
                combined.size = *new;
            }
        }
    }
    let final_size = combined.size;
    let mut result = Vec::with_capacity(combined.pieces.len() + 1);
    let mut reached = size_bytes;
    for piece in &combined.pieces {
        // Zeros behind the old end are there without doing anything.
        let end = if piece.data.is_some() {
            final_size
        } else {
            final_size.min(size_bytes)
        };
        let Some(piece) = piece.part(0, end) else { continue };
        reached = reached.max(piece.end);
        result.push(match piece.data {
            Some(data) => DataStep::Write {
                offset: piece.offset,
                data,
            },
            None => DataStep::Zero {
                offset: piece.offset,
                length_bytes: piece.end - piece.offset,
            },
        });
    }
    if reached != final_size {
        result.push(DataStep::Truncate {
            size_bytes: final_size,
        });
    }
    result
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    use super::*;

    fn run(mut bytes: Vec<u8>, steps: &[DataStep]) -> Vec<u8> {
        for step in steps {
            match step {
                DataStep::Write { offset, data } => {
                    let end = *offset as usize + data.len();
                    bytes.resize(bytes.len().max(end), 0);
                    bytes[*offset as usize..end].copy_from_slice(data);
                }
                DataStep::Zero { offset, length_bytes } => {
                    let end = bytes.len().min((offset + length_bytes) as usize);
                    bytes.get_mut(*offset as usize..end).unwrap_or_default().fill(0);
                }
                DataStep::Truncate { size_bytes } => bytes.resize(*size_bytes as usize, 0),
            }
        }
        bytes
    }

    #[test]
    fn combined_steps_do_the_same_and_touch_each_byte_once() {
        let seed = rand::random();
        let mut rng = StdRng::seed_from_u64(seed);
        for round in 0..5000 {
            let before = vec![0xee; rng.random_range(0..40)];
            let steps: Vec<DataStep> = (0..rng.random_range(1..6))
                .map(|fill: u8| {
                    let (offset, length) = (rng.random_range(0..50), rng.random_range(1..20));
                    match rng.random_range(0..3) {
                        0 => DataStep::Write {
                            offset,
                            data: vec![fill + 1; length].into(),
                        },
                        1 => DataStep::Zero {
                            offset,
                            length_bytes: length as u64,
                        },
                        _ => DataStep::Truncate { size_bytes: offset },
                    }
                })
                .collect();
            let combined = combine(before.len() as u64, &steps);
            let place = format!("seed {seed}, round {round}: {steps:?} became {combined:?}");
            assert_eq!(
                run(before.clone(), &combined),
                run(before.clone(), &steps),
                "{place}"
            );
            let mut touched = [0; 100];
            for step in &combined {
                let (from, to) = match step {
                    DataStep::Write { offset, data } => (*offset as usize, *offset as usize + data.len()),
                    DataStep::Zero { offset, length_bytes } => {
                        (*offset as usize, (offset + length_bytes) as usize)
                    }
                    DataStep::Truncate { .. } => continue,
                };
                touched[from..to].iter_mut().for_each(|count| *count += 1);
            }
            assert!(touched.iter().all(|count| *count <= 1), "{place}");
            let cuts = combined
                .iter()
                .filter(|step| matches!(step, DataStep::Truncate { .. }));
            assert!(cuts.count() <= 1, "{place}");
        }
    }
}
