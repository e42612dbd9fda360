//! A simulated disk: files in memory, and everything that a real one may do to them.
//!
//! Fault model. Until a sync returned,
//! * each sector (512 bytes) of a file may after a power loss hold its synced content or any content it had since: writes
//!   are lost, torn and reordered;
//! * the length may be the synced one or any it had since: growth and cuts are lost, and reordered against writes;
//! * each name made or removed in a directory may be there or not; an unsynced label is lost.
//!
//! On request reads and writes fail, space ends, and syncs fail. A failed sync loses what it should have synced: later
//! syncs of the file succeed without it, as kernels do. After [`SimDisk::crash`] all open files are dead and the boot is
//! another one. Every choice is drawn from the seed given to `crash`. Metadata in SQLite is not simulated: its full
//! commits are taken for durable.

mod inode;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ferry_store::{Space, Timestamp};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::{BootId, Disk, DiskFile, FileStat};
use inode::Inode;

/// What is lost or kept as one.
pub const SECTOR_BYTES: u64 = 512;
/// What space is given out in.
const BLOCK_SECTORS: u64 = 8;

/// What is to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// Reads give `EIO`.
    Reads,
    /// Writes give `EIO` and change nothing.
    Writes,
    /// Syncs give `EIO`, and what they should have synced never becomes durable.
    Syncs,
}

/// What a power loss takes of what was not synced: names, lengths and sectors, in an order that is always the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// All of it.
    All,
    /// Nothing.
    Nothing,
    /// Only the nth, from 0.
    Only(u64),
    /// All but the nth, from 0.
    AllBut(u64),
    /// Of each block of 4096 bytes all or nothing, as the seed decides; names and lengths one by one.
    Blocks(u64),
    /// Of each sector any content that it had since the sync, and so for lengths and names: what [`SimDisk::crash`] does.
    Sectors(u64),
}

/// A simulated disk.
#[derive(Debug, Clone, Default)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Clone, Default)]
struct State {
    boot: u64,
    next: u64,
    inodes: HashMap<u64, Inode>,
    names: BTreeMap<PathBuf, u64>,
    durable_names: BTreeMap<PathBuf, u64>,
    dirs: BTreeSet<PathBuf>,
    capacity_bytes: Option<u64>,
    reflinks: bool,
    /// How many more calls go well first, and how many then fail.
    faults: HashMap<Fault, (u64, u64)>,
    writes: u64,
    loses_syncs: bool,
}

fn error(errno: ferry_store::Errno) -> io::Error {
    io::Error::from_raw_os_error(errno.0)
}

impl State {
    fn fails(&mut self, fault: Fault) -> io::Result<()> {
        match self.faults.get_mut(&fault) {
            Some((before, left)) if *left > 0 => {
                if *before > 0 {
                    *before -= 1;
                    return Ok(());
                }
                *left -= 1;
                Err(error(ferry_store::Errno::EIO))
            }
            _ => Ok(()),
        }
    }

    fn used_bytes(&self) -> u64 {
        let named: BTreeSet<u64> = self.names.values().copied().collect();
        let inodes = self.inodes.iter().filter(|(id, _)| named.contains(id));
        let sectors: usize = inodes.map(|(_, inode)| inode.sectors.len()).sum();
        sectors as u64 * SECTOR_BYTES
    }

    fn room_for(&self, id: u64, offset: u64, length_bytes: u64) -> io::Result<()> {
        let Some(capacity) = self.capacity_bytes else {
            return Ok(());
        };
        let Some(inode) = self.inodes.get(&id) else {
            return Ok(());
        };
        let sectors = offset / SECTOR_BYTES..(offset + length_bytes).div_ceil(SECTOR_BYTES);
        let new = sectors
            .filter(|sector| !inode.sectors.contains_key(sector))
            .count() as u64;
        match self.used_bytes() + new * SECTOR_BYTES <= capacity {
            true => Ok(()),
            false => Err(error(ferry_store::Errno::ENOSPC)),
        }
    }

    fn unsynced_names(&self) -> Vec<PathBuf> {
        let paths: BTreeSet<&PathBuf> = self.names.keys().chain(self.durable_names.keys()).collect();
        let differs = |path: &&&PathBuf| self.names.get(**path) != self.durable_names.get(**path);
        paths.iter().filter(differs).map(|path| (*path).clone()).collect()
    }

    /// Drops files that no name leads to.
    fn collect(&mut self) {
        let named: BTreeSet<u64> = self.names.values().copied().collect();
        self.inodes.retain(|id, _| named.contains(id));
    }
}

impl SimDisk {
    /// An empty disk.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty disk whose files can share blocks.
    pub fn with_reflinks() -> Self {
        let disk = Self::default();
        disk.state.lock().reflinks = true;
        disk
    }

    /// Another disk with the same content, synced and unsynced.
    pub fn fork(&self) -> Self {
        let state = self.state.lock().clone();
        Self {
            state: Arc::new(Mutex::new(state)),
        }
    }

    /// The same in another boot, and with everything below `from` moved to below `to`.
    pub fn fork_at(&self, from: &Path, to: &Path) -> Self {
        let moved = |path: &PathBuf| match path.strip_prefix(from) {
            Ok(rest) => to.join(rest),
            Err(_) => path.clone(),
        };
        let mut state = self.state.lock().clone();
        state.boot += 1;
        for names in [&mut state.names, &mut state.durable_names] {
            *names = names.iter().map(|(path, id)| (moved(path), *id)).collect();
        }
        state.dirs = state.dirs.iter().map(moved).collect();
        Self {
            state: Arc::new(Mutex::new(state)),
        }
    }

    /// How many names, lengths and sectors are not synced.
    pub fn unsynced(&self) -> u64 {
        let state = self.state.lock();
        let files: u64 = state.inodes.values().map(Inode::unsynced).sum();
        state.unsynced_names().len() as u64 + files
    }

    /// As [`SimDisk::crash`], with a chosen loss.
    pub fn crash_with(&self, loss: Loss) {
        let seed = match loss {
            Loss::Sectors(seed) => return self.crash(seed),
            Loss::Blocks(seed) => seed,
            _ => 0,
        };
        let mut rng = StdRng::seed_from_u64(seed);
        let mut counter = 0;
        let mut keeps_next = |rng: &mut StdRng| {
            let nth = counter;
            counter += 1;
            match loss {
                Loss::All => false,
                Loss::Nothing => true,
                Loss::Only(lost) => nth != lost,
                Loss::AllBut(kept) => nth == kept,
                Loss::Blocks(_) | Loss::Sectors(_) => rng.random_bool(0.5),
            }
        };
        let mut state = self.state.lock();
        state.boot += 1;
        for path in state.unsynced_names() {
            if !keeps_next(&mut rng) {
                match state.durable_names.get(&path).copied() {
                    Some(id) => state.names.insert(path, id),
                    None => state.names.remove(&path),
                };
            }
        }
        state.durable_names = state.names.clone();
        let mut ids: Vec<u64> = state.inodes.keys().copied().collect();
        ids.sort_unstable();
        for id in ids {
            let Some(inode) = state.inodes.get_mut(&id) else {
                continue;
            };
            let mut block = None;
            inode.lose_by(&mut |sector| match (loss, sector) {
                (Loss::Blocks(_), Some(sector)) => match block {
                    Some((of, kept)) if of == sector / BLOCK_SECTORS => kept,
                    _ => {
                        let kept = keeps_next(&mut rng);
                        block = Some((sector / BLOCK_SECTORS, kept));
                        kept
                    }
                },
                _ => keeps_next(&mut rng),
            });
        }
        state.collect();
        state.faults.clear();
    }

    /// Cuts the power: what was not synced is kept, lost or torn as `seed` decides. Stores on the disk must have ended;
    /// what they still do fails.
    pub fn crash(&self, seed: u64) {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut state = self.state.lock();
        state.boot += 1;
        let state = &mut *state;
        let paths: BTreeSet<PathBuf> = state
            .names
            .keys()
            .chain(state.durable_names.keys())
            .cloned()
            .collect();
        for path in paths {
            let (now, synced) = (
                state.names.get(&path).copied(),
                state.durable_names.get(&path).copied(),
            );
            if now != synced && rng.random_bool(0.5) {
                match synced {
                    Some(id) => state.names.insert(path, id),
                    None => state.names.remove(&path),
                };
            }
        }
        state.durable_names = state.names.clone();
        state.collect();
        let mut ids: Vec<u64> = state.inodes.keys().copied().collect();
        ids.sort_unstable();
        for id in ids {
            if let Some(inode) = state.inodes.get_mut(&id) {
                inode.lose(&mut rng);
            }
        }
        state.faults.clear();
    }

    /// Makes the next `calls` calls of a kind fail; 0 ends it.
    pub fn fail(&self, fault: Fault, calls: u64) {
        self.fail_after(fault, 0, calls);
    }

    /// Lets `before` calls of a kind through and makes the `calls` after them fail; 0 ends it.
    pub fn fail_after(&self, fault: Fault, before: u64, calls: u64) {
        self.state.lock().faults.insert(fault, (before, calls));
    }

    /// A defect, planted to see who notices: syncs of files succeed and make nothing durable.
    pub fn lose_syncs(&self, lose: bool) {
        self.state.lock().loses_syncs = lose;
    }

    /// Limits the space; `None` for endless.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.state.lock().capacity_bytes = bytes;
    }

    /// Bytes allocated.
    pub fn used_bytes(&self) -> u64 {
        self.state.lock().used_bytes()
    }

    /// Files that have names, sidecars included.
    pub fn file_names(&self) -> Vec<PathBuf> {
        self.state.lock().names.keys().cloned().collect()
    }

    /// Writes so far.
    pub fn writes(&self) -> u64 {
        self.state.lock().writes
    }
}

/// An open file of a simulated disk.
#[derive(Debug)]
struct SimFile {
    state: Arc<Mutex<State>>,
    id: u64,
    boot: u64,
}

impl SimFile {
    fn with<T>(&self, work: impl FnOnce(&mut State) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.state.lock();
        match state.boot == self.boot && state.inodes.contains_key(&self.id) {
            true => work(&mut state),
            false => Err(error(ferry_store::Errno::EIO)),
        }
    }

    fn inode<'a>(&self, state: &'a mut State) -> io::Result<&'a mut Inode> {
        let inode = state.inodes.get_mut(&self.id);
        inode.ok_or_else(|| error(ferry_store::Errno::EIO))
    }
}

impl DiskFile for SimFile {
    fn try_read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<Option<usize>> {
        self.read_at(buffer, offset).map(Some)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.with(|state| {
            state.fails(Fault::Reads)?;
            let inode = self.inode(state)?;
            let count = inode.size.saturating_sub(offset).min(buffer.len() as u64) as usize;
            let mut done = 0;
            while done < count {
                let at = offset + done as u64;
                let inside = (at % SECTOR_BYTES) as usize;
                let length = (count - done).min(SECTOR_BYTES as usize - inside);
                let part = &mut buffer[done..done + length];
                match inode.sectors.get(&(at / SECTOR_BYTES)) {
                    Some(bytes) => part.copy_from_slice(&bytes[inside..inside + length]),
                    None => part.fill(0),
                }
                done += length;
            }
            Ok(count)
        })
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.with(|state| {
            state.fails(Fault::Writes)?;
            state.room_for(self.id, offset, data.len() as u64)?;
            state.writes += 1;
            let inode = self.inode(state)?;
            let mut done = 0;
            while done < data.len() {
                let at = offset + done as u64;
                let inside = (at % SECTOR_BYTES) as usize;
                let length = (data.len() - done).min(SECTOR_BYTES as usize - inside);
                let sector = at / SECTOR_BYTES;
                let mut bytes = inode
                    .sectors
                    .get(&sector)
                    .cloned()
                    .unwrap_or_else(|| Box::new([0; SECTOR_BYTES as usize]));
                bytes[inside..inside + length].copy_from_slice(&data[done..done + length]);
                inode.put(sector, Some(bytes));
                done += length;
            }
            let end = offset + data.len() as u64;
            if !data.is_empty() && end > inode.size {
                inode.size = end;
                inode.sizes.push(end);
            }
            inode.mtime = Timestamp::now();
            Ok(())
        })
    }

    fn allocate(&self, offset: u64, length_bytes: u64) -> io::Result<()> {
        self.with(|state| state.room_for(self.id, offset, length_bytes))
    }

    fn punch(&self, offset: u64, length_bytes: u64) -> io::Result<()> {
        self.with(|state| {
            state.fails(Fault::Writes)?;
            state.writes += 1;
            let inode = self.inode(state)?;
            let end = (offset + length_bytes).min(inode.size.next_multiple_of(SECTOR_BYTES));
            for sector in offset / SECTOR_BYTES..end.div_ceil(SECTOR_BYTES) {
                let start = sector * SECTOR_BYTES;
                let (from, to) = (start.max(offset), (start + SECTOR_BYTES).min(end));
                let Some(bytes) = inode.sectors.get(&sector) else {
                    continue;
                };
                if to - from == SECTOR_BYTES {
                    inode.put(sector, None);
                } else if from < to {
                    let mut bytes = bytes.clone();
                    bytes[(from - start) as usize..(to - start) as usize].fill(0);
                    inode.put(sector, Some(bytes));
                }
            }
            inode.mtime = Timestamp::now();
            Ok(())
        })
    }

    fn truncate(&self, size_bytes: u64) -> io::Result<()> {
        self.with(|state| {
            state.fails(Fault::Writes)?;
            state.writes += 1;
            let inode = self.inode(state)?;
            inode.resize(size_bytes);
            inode.mtime = Timestamp::now();
            Ok(())
        })
    }

    fn stat(&self) -> io::Result<FileStat> {
        self.with(|state| {
            let unlinked = !state.names.values().any(|id| *id == self.id);
            let inode = self.inode(state)?;
            Ok(FileStat {
                size_bytes: inode.size,
                allocated_bytes: inode.sectors.len() as u64 * SECTOR_BYTES,
                mtime: inode.mtime,
                unlinked,
            })
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.with(|state| {
            let outcome = state.fails(Fault::Syncs);
            if state.loses_syncs {
                return outcome;
            }
            let inode = self.inode(state)?;
            match outcome {
                Ok(()) => inode.sync(),
                Err(_) => inode.forget_unsynced(),
            }
            outcome
        })
    }

    fn label(&self) -> io::Result<Option<Vec<u8>>> {
        self.with(|state| Ok(self.inode(state)?.label.clone()))
    }

    fn set_label(&self, label: &[u8]) -> io::Result<()> {
        self.with(|state| {
            self.inode(state)?.label = Some(label.to_vec());
            Ok(())
        })
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<(u64, u64)>> {
        self.with(|state| {
            let inode = self.inode(state)?;
            let block_bytes = BLOCK_SECTORS * SECTOR_BYTES;
            let first = offset / block_bytes * BLOCK_SECTORS;
            let Some((sector, _)) = inode.sectors.range(first..).next() else {
                return Ok(None);
            };
            let mut block = sector / BLOCK_SECTORS;
            let start = (block * block_bytes).max(offset);
            while inode
                .sectors
                .range(block * BLOCK_SECTORS..(block + 1) * BLOCK_SECTORS)
                .next()
                .is_some()
            {
                block += 1;
            }
            let end = (block * block_bytes).min(inode.size);
            Ok((start < end).then_some((start, end)))
        })
    }
}

impl Disk for SimDisk {
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let state = self.state.lock();
        match state.names.get(path) {
            Some(id) => Ok(Arc::new(SimFile {
                state: self.state.clone(),
                id: *id,
                boot: state.boot,
            })),
            None => Err(error(ferry_store::Errno::ENOENT)),
        }
    }

    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.state.lock();
        if state.names.contains_key(path) {
            return Err(error(ferry_store::Errno::EEXIST));
        }
        if path.parent().is_none_or(|dir| !state.dirs.contains(dir)) {
            return Err(error(ferry_store::Errno::ENOENT));
        }
        state.fails(Fault::Writes)?;
        state.next += 1;
        let id = state.next;
        state.inodes.insert(id, Inode::default());
        state.names.insert(path.to_owned(), id);
        Ok(Arc::new(SimFile {
            state: self.state.clone(),
            id,
            boot: state.boot,
        }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.fails(Fault::Writes)?;
        if state.names.contains_key(to) {
            return Err(error(ferry_store::Errno::EEXIST));
        }
        let id = state.names.remove(from);
        let id = id.ok_or_else(|| error(ferry_store::Errno::ENOENT))?;
        state.names.insert(to.to_owned(), id);
        Ok(())
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        // The content stays until the next crash: an unsynced removal may be undone, and open files go on.
        match state.names.remove(path) {
            Some(_) => Ok(()),
            None => Err(error(ferry_store::Errno::ENOENT)),
        }
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        for dir in path.ancestors() {
            state.dirs.insert(dir.to_owned());
        }
        Ok(())
    }

    fn list(&self, dir: &Path, visit: &mut dyn FnMut(&str)) -> io::Result<()> {
        let state = self.state.lock();
        if !state.dirs.contains(dir) {
            return Err(error(ferry_store::Errno::ENOENT));
        }
        for path in state.names.keys().filter(|path| path.parent() == Some(dir)) {
            if let Some(name) = path.file_name().and_then(|name| name.to_str()) {
                visit(name);
            }
        }
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.fails(Fault::Syncs)?;
        let State {
            names, durable_names, ..
        } = &mut *state;
        durable_names.retain(|path, _| path.parent() != Some(dir));
        let here = names.iter().filter(|(path, _)| path.parent() == Some(dir));
        durable_names.extend(here.map(|(path, id)| (path.clone(), *id)));
        Ok(())
    }

    fn sync_all(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        let outcome = state.fails(Fault::Syncs);
        if state.loses_syncs {
            return outcome;
        }
        let state = &mut *state;
        let ids: Vec<u64> = state
            .names
            .iter()
            .filter(|(path, _)| path.starts_with(dir))
            .map(|(_, id)| *id)
            .collect();
        for id in ids {
            if let Some(inode) = state.inodes.get_mut(&id) {
                match outcome {
                    Ok(()) => inode.sync(),
                    Err(_) => inode.forget_unsynced(),
                }
            }
        }
        if outcome.is_ok() {
            state.durable_names.retain(|path, _| !path.starts_with(dir));
            let here = state.names.iter().filter(|(path, _)| path.starts_with(dir));
            state
                .durable_names
                .extend(here.map(|(path, id)| (path.clone(), *id)));
        }
        outcome
    }

    fn clone_file(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        if !state.reflinks {
            return Err(error(ferry_store::Errno::EOPNOTSUPP));
        }
        let (Some(from), Some(to)) = (state.names.get(from).copied(), state.names.get(to).copied()) else {
            return Err(error(ferry_store::Errno::ENOENT));
        };
        let Some(source) = state.inodes.get(&from).cloned() else {
            return Err(error(ferry_store::Errno::EIO));
        };
        if let Some(target) = state.inodes.get_mut(&to) {
            for (sector, bytes) in source.sectors {
                target.put(sector, Some(bytes));
            }
            target.size = source.size;
            target.sizes.push(source.size);
        }
        Ok(())
    }

    fn space(&self, _dir: &Path) -> io::Result<Space> {
        let state = self.state.lock();
        let total_bytes = state.capacity_bytes.unwrap_or(1 << 40);
        Ok(Space {
            free_bytes: total_bytes.saturating_sub(state.used_bytes()),
            total_bytes,
        })
    }

    fn boot_id(&self) -> BootId {
        let mut id = [0x5a; 16];
        id[..8].copy_from_slice(&self.state.lock().boot.to_le_bytes());
        id
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk_with(path: &Path) -> (SimDisk, Arc<dyn DiskFile>) {
        let disk = SimDisk::new();
        disk.create_dir_all(path.parent().unwrap()).unwrap();
        let file = disk.create_new(path).unwrap();
        (disk, file)
    }

    #[test]
    fn synced_bytes_and_names_survive_every_crash() {
        let path = Path::new("/d/f");
        for seed in 0..50 {
            let (disk, file) = disk_with(path);
            file.write_at(&[1; 3000], 100).unwrap();
            file.sync_data().unwrap();
            disk.sync_dir(Path::new("/d")).unwrap();
            disk.crash(seed);
            assert!(file.stat().is_err(), "files of the last boot are dead");
            let mut bytes = [9; 4000];
            assert_eq!(
                disk.open(path).unwrap().read_at(&mut bytes, 0).unwrap(),
                3100,
                "seed {seed}"
            );
            assert!(
                bytes[..100].iter().all(|byte| *byte == 0) && bytes[100..3100].iter().all(|byte| *byte == 1)
            );
        }
    }

    #[test]
    fn unsynced_bytes_sizes_and_names_are_sometimes_lost_and_sometimes_kept() {
        let path = Path::new("/d/f");
        let (mut named, mut torn, mut short) = (0, 0, 0);
        for seed in 0..200 {
            let (disk, file) = disk_with(path);
            if seed % 2 == 0 {
                disk.sync_dir(Path::new("/d")).unwrap();
            }
            file.write_at(&[1; 4096], 0).unwrap();
            disk.crash(seed);
            let Ok(file) = disk.open(path) else {
                assert!(seed % 2 == 1, "a synced name is lost, seed {seed}");
                continue;
            };
            named += 1;
            let mut bytes = [0; 4096];
            let count = file.read_at(&mut bytes, 0).unwrap();
            short += usize::from(count < 4096);
            let ones = bytes.iter().filter(|byte| **byte == 1).count();
            torn += usize::from(ones > 0 && ones < 4096);
        }
        assert!(
            (101..200).contains(&named) && torn > 20 && short > 20,
            "{named} {torn} {short}"
        );
    }

    #[test]
    fn what_a_failed_sync_dropped_never_becomes_durable() {
        let path = Path::new("/d/f");
        let (disk, file) = disk_with(path);
        disk.sync_dir(Path::new("/d")).unwrap();
        file.write_at(&[1; 512], 0).unwrap();
        disk.fail(Fault::Syncs, 1);
        assert!(file.sync_data().is_err());
        file.sync_data().unwrap();
        disk.crash(0);
        assert_eq!(disk.open(path).unwrap().stat().unwrap().size_bytes, 0);
    }
}
