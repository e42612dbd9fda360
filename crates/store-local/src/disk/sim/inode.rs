//! A file of the simulated disk: what it holds, what of that is durable, and everything in between.

use std::collections::BTreeMap;

use ferry_store::Timestamp;
use rand::RngExt;
use rand::rngs::StdRng;

use super::SECTOR_BYTES;

pub(super) type Sector = [u8; SECTOR_BYTES as usize];
/// A sector's content; `None`: a hole.
type Content = Option<Box<Sector>>;

#[derive(Debug, Default, Clone)]
pub(super) struct Inode {
    pub(super) size: u64,
    pub(super) sectors: BTreeMap<u64, Box<Sector>>,
    durable_size: u64,
    durable: BTreeMap<u64, Box<Sector>>,
    /// Contents that sectors had since the last sync, oldest first.
    history: BTreeMap<u64, Vec<Content>>,
    /// Lengths since the last sync.
    pub(super) sizes: Vec<u64>,
    pub(super) mtime: Timestamp,
    pub(super) label: Option<Vec<u8>>,
    durable_label: Option<Vec<u8>>,
}

impl Inode {
    fn note(&mut self, sector: u64) {
        let content = self.sectors.get(&sector).cloned();
        self.history.entry(sector).or_default().push(content);
    }

    pub(super) fn put(&mut self, sector: u64, content: Content) {
        match content {
            Some(bytes) => self.sectors.insert(sector, bytes),
            None => self.sectors.remove(&sector),
        };
        self.note(sector);
    }

    pub(super) fn resize(&mut self, size: u64) {
        if size < self.size {
            let inside = (size % SECTOR_BYTES) as usize;
            let first = size.div_ceil(SECTOR_BYTES);
            if inside > 0
                && let Some(bytes) = self.sectors.get_mut(&(size / SECTOR_BYTES))
            {
                bytes[inside..].fill(0);
                self.note(size / SECTOR_BYTES);
            }
            let gone: Vec<u64> = self.sectors.range(first..).map(|(sector, _)| *sector).collect();
            for sector in gone {
                self.put(sector, None);
            }
        }
        self.size = size;
        self.sizes.push(size);
    }

    pub(super) fn sync(&mut self) {
        self.durable_label.clone_from(&self.label);
        for sector in std::mem::take(&mut self.history).into_keys() {
            match self.sectors.get(&sector) {
                Some(bytes) => self.durable.insert(sector, bytes.clone()),
                None => self.durable.remove(&sector),
            };
        }
        if !std::mem::take(&mut self.sizes).is_empty() {
            self.durable_size = self.size;
        }
    }

    pub(super) fn forget_unsynced(&mut self) {
        self.history.clear();
        self.sizes.clear();
    }

    /// How many lengths and sectors are not durable.
    pub(super) fn unsynced(&self) -> u64 {
        self.history.len() as u64 + u64::from(!self.sizes.is_empty())
    }

    /// What a power loss makes of it that keeps of each unsynced length and sector either the newest content or the synced one.
    /// `keeps` is asked for the length with `None`, for a sector with its number.
    pub(super) fn lose_by(&mut self, keeps: &mut dyn FnMut(Option<u64>) -> bool) {
        let newest = (self.size, std::mem::take(&mut self.sectors));
        self.sectors = std::mem::take(&mut self.durable);
        self.size = self.durable_size;
        if !std::mem::take(&mut self.sizes).is_empty() && keeps(None) {
            self.size = newest.0;
        }
        for sector in std::mem::take(&mut self.history).into_keys() {
            if keeps(Some(sector)) {
                match newest.1.get(&sector) {
                    Some(bytes) => self.sectors.insert(sector, bytes.clone()),
                    None => self.sectors.remove(&sector),
                };
            }
        }
        self.settle();
    }

    /// What a power loss makes of it.
    pub(super) fn lose(&mut self, rng: &mut StdRng) {
        self.size = self.durable_size;
        let lengths = self.sizes.len();
        if lengths > 0 && rng.random_bool(0.7) {
            self.size = self.sizes[rng.random_range(0..lengths)];
        }
        self.sectors = std::mem::take(&mut self.durable);
        for (sector, contents) in std::mem::take(&mut self.history) {
            if rng.random_bool(0.5) {
                match &contents[rng.random_range(0..contents.len())] {
                    Some(bytes) => self.sectors.insert(sector, bytes.clone()),
                    None => self.sectors.remove(&sector),
                };
            }
        }
        self.settle();
    }

    /// What is there now is what the medium holds.
    fn settle(&mut self) {
        let (size, inside) = (self.size, (self.size % SECTOR_BYTES) as usize);
        self.sectors.retain(|sector, _| sector * SECTOR_BYTES < size);
        if inside > 0
            && let Some(bytes) = self.sectors.get_mut(&(size / SECTOR_BYTES))
        {
            bytes[inside..].fill(0);
        }
        self.durable = self.sectors.clone();
        self.durable_size = size;
        self.label.clone_from(&self.durable_label);
        self.sizes.clear();
    }
}
