//! A client that writes and remembers what was flushed.
//!
//! Every block of an image carries its number and a version, repeated over the whole block, so that a lost, torn or
//! misplaced write is told apart from a good one. A [`Journal`] knows for each block the version that is durable and
//! the ones that were sent since: after a kill, the block must hold one of these and nothing else.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use ferry_nbd::client::{Client, ClientConfig, Negotiation};
use futures::future::join_all;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// Size of the blocks that journals count in.
pub const BLOCK_BYTES: u32 = 4096;

/// Blocks that one read of a check asks for.
const CHECK_BLOCKS: u32 = 256;

/// What is known of one block.
#[derive(Debug, Clone, Default)]
struct Block {
    /// The version that a flush or FUA write has made durable. 0: zeroes.
    durable: u64,
    /// Versions that were sent since, acknowledged or not.
    pending: Vec<u64>,
}

/// What is known of an image.
#[derive(Debug, Clone)]
pub struct Journal {
    blocks: Vec<Block>,
    next_version: u64,
}

impl Journal {
    /// An image of zeroes.
    pub fn zeroes(blocks: u32) -> Self {
        Self {
            blocks: vec![Block::default(); blocks as usize],
            next_version: 1,
        }
    }

    /// Number of blocks.
    pub fn blocks(&self) -> u32 {
        u32::try_from(self.blocks.len()).unwrap_or(u32::MAX)
    }

    /// The bytes of an image in which everything is durable.
    pub fn bytes(&self) -> Vec<u8> {
        (0..self.blocks())
            .flat_map(|number| content(number, self.blocks[number as usize].durable))
            .collect()
    }

    /// A journal with data in about `percent` of its blocks, all of it durable once somebody has stored its bytes.
    pub fn filled(blocks: u32, percent: u32, rng: &mut StdRng) -> Self {
        let mut journal = Self::zeroes(blocks);
        for block in &mut journal.blocks {
            if rng.random_range(0..100) < percent {
                block.durable = journal.next_version;
                journal.next_version += 1;
            }
        }
        journal
    }

    /// Compares an image with the journal, and settles what was open: what is there now must stay.
    ///
    /// # Errors
    /// Which block holds what, and what it should hold.
    pub fn settle(&mut self, image: &[u8]) -> Result<(), String> {
        if image.len() != self.blocks.len() * BLOCK_BYTES as usize {
            return Err(format!("the image has {} bytes", image.len()));
        }
        for (number, found) in image.chunks_exact(BLOCK_BYTES as usize).enumerate() {
            let block = &mut self.blocks[number];
            let number = number as u32;
            let version = u64::from_le_bytes(found[8..16].try_into().map_err(|_| "short block")?);
            if found != content(number, version) {
                return Err(format!(
                    "block {number} is torn or foreign: it starts with {:02x?}, expected {block:?}",
                    &found[..32]
                ));
            }
            if version != block.durable && !block.pending.contains(&version) {
                return Err(format!(
                    "block {number} holds version {version}, expected {block:?}"
                ));
            }
            block.durable = version;
            block.pending.clear();
        }
        Ok(())
    }
}

fn content(number: u32, version: u64) -> Vec<u8> {
    if version == 0 {
        return vec![0; BLOCK_BYTES as usize];
    }
    let mut unit = [0; 16];
    unit[..8].copy_from_slice(&(u64::from(number) | 0xf3_0000_0000).to_le_bytes());
    unit[8..].copy_from_slice(&version.to_le_bytes());
    unit.repeat(BLOCK_BYTES as usize / 16)
}

/// Connects to an export.
///
/// # Panics
/// If the server refuses.
pub async fn connect(socket: &Path, export: &str) -> Client {
    let negotiation = Negotiation::connect_unix(socket, ClientConfig::default())
        .await
        .unwrap_or_else(|error| panic!("{}: {error}", socket.display()));
    negotiation
        .go(export)
        .await
        .unwrap_or_else(|error| panic!("export {export}: {error}"))
}

/// Reads a whole export.
///
/// # Panics
/// If a read fails.
pub async fn read_all(client: &Client) -> Vec<u8> {
    let size_bytes = client.details().size_bytes;
    let mut image = Vec::new();
    while (image.len() as u64) < size_bytes {
        let offset = image.len() as u64;
        let length = (size_bytes - offset).min(u64::from(CHECK_BLOCKS * BLOCK_BYTES)) as u32;
        let data = client.read(offset, length).await;
        image.extend_from_slice(&data.unwrap_or_else(|error| panic!("reading at {offset}: {error}")));
    }
    image
}

/// Writes, zeroes and flushes with `workers` requests at a time until the server is gone or `requests` were made, and
/// gives back the journal.
pub async fn write_until_gone(
    client: Client,
    journal: Journal,
    workers: u32,
    requests: u32,
    seed: u64,
) -> Journal {
    let client = Arc::new(client);
    let total = journal.blocks();
    let share = total / workers;
    let parts = (0..workers).map(|worker| {
        // Every worker owns a range, so that its flushes cover its own writes and no two writes of a block overlap.
        let first = worker * share;
        let end = if worker + 1 == workers {
            total
        } else {
            first + share
        };
        let part = Journal {
            blocks: journal.blocks[first as usize..end as usize].to_vec(),
            next_version: journal.next_version + u64::from(worker),
        };
        let client = Arc::clone(&client);
        tokio::spawn(work(
            client,
            part,
            first,
            u64::from(workers),
            requests / workers,
            StdRng::seed_from_u64(seed ^ u64::from(worker)),
        ))
    });
    let parts = join_all(parts.collect::<Vec<_>>()).await;
    let mut joined = Journal {
        blocks: Vec::with_capacity(total as usize),
        next_version: journal.next_version,
    };
    for part in parts {
        let part = part.expect("a worker that ended");
        joined.next_version = joined.next_version.max(part.next_version);
        joined.blocks.extend(part.blocks);
    }
    joined
}

async fn work(
    client: Arc<Client>,
    mut part: Journal,
    first: u32,
    version_step: u64,
    requests: u32,
    mut rng: StdRng,
) -> Journal {
    let mut acknowledged: Vec<(u32, u64)> = Vec::new();
    for _ in 0..requests {
        let kind = rng.random_range(0..10);
        let length = rng.random_range(1..=4).min(part.blocks());
        let start = rng.random_range(0..=part.blocks() - length);
        let range = start..start + length;
        let offset = u64::from(first + start) * u64::from(BLOCK_BYTES);
        if kind == 0 {
            if client.flush().await.is_err() {
                break;
            }
            for (number, version) in acknowledged.drain(..) {
                part.made_durable(number, version);
            }
            continue;
        }
        let version = if kind == 1 { 0 } else { part.next_version };
        part.next_version += version_step;
        let fua = kind == 2;
        for number in range.clone() {
            part.blocks[number as usize].pending.push(version);
        }
        let result = if kind == 1 {
            client
                .write_zeroes(offset, u64::from(length * BLOCK_BYTES), false, fua)
                .await
        } else {
            let data: Vec<u8> = range
                .clone()
                .flat_map(|number| content(first + number, version))
                .collect();
            client.write(offset, Bytes::from(data), fua).await
        };
        if result.is_err() {
            break;
        }
        for number in range {
            if fua {
                part.made_durable(number, version);
            } else {
                acknowledged.push((number, version));
            }
        }
    }
    part
}

impl Journal {
    /// `version` was acknowledged before a flush that has succeeded: what was sent before it can't be there any more.
    fn made_durable(&mut self, number: u32, version: u64) {
        let block = &mut self.blocks[number as usize];
        if let Some(position) = block.pending.iter().rposition(|sent| *sent == version) {
            block.pending.drain(..=position);
            block.durable = version;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_a_torn_and_a_misplaced_block_are_noticed() {
        let mut rng = StdRng::seed_from_u64(1);
        let mut journal = Journal::filled(8, 100, &mut rng);
        let good = journal.bytes();
        assert_eq!(journal.settle(&good), Ok(()));
        let block = BLOCK_BYTES as usize;
        let mut lost = good.clone();
        lost[block..2 * block].fill(0);
        assert!(journal.settle(&lost).is_err());
        let mut torn = good.clone();
        torn[2 * block - 16..2 * block].fill(0);
        assert!(journal.settle(&torn).is_err());
        let mut misplaced = good.clone();
        misplaced.copy_within(0..block, block);
        assert!(journal.settle(&misplaced).is_err());
    }

    #[test]
    fn an_unflushed_version_may_be_there_or_not_but_then_it_stays() {
        let mut journal = Journal::zeroes(1);
        journal.blocks[0].pending = vec![5, 6];
        let mut other = journal.clone();
        assert_eq!(journal.settle(&content(0, 6)), Ok(()));
        assert!(journal.settle(&content(0, 5)).is_err());
        other.made_durable(0, 5);
        assert!(other.settle(&content(0, 0)).is_err());
        assert_eq!(other.settle(&content(0, 6)), Ok(()));
    }
}
