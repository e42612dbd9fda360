//! What this handle wrote buffered and has not made durable; flushing it; refusing to go on after a failure.
//!
//! Keeps invariant: a layer is entered after its bytes are in the file and before the write returns; a flush takes
//! entries out, reads the live map, syncs the file, and only then makes the map durable, so the durable map never
//! promises a block whose bytes might be lost. With a provisional layer, what it was made from is synced too. One flush at a time: a second one finds nothing to do only after the first
//! has made it durable, or has failed and said so. A failed sync poisons: the kernel may have dropped the bytes, and a second
//! sync would claim success. A map that finds no space in the database is another matter: its file is synced and stays entered, and
//! the next flush does it all again.

use std::collections::HashMap;
use std::collections::hash_map::Entry as MapEntry;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ferry_store::{Errno, Result, StoreError};
use parking_lot::Mutex;

use super::Pool;
use super::files::{Files, Sidecar};
use super::key::ObjectKey;
use super::layers::settled;
use crate::db::{Commit, SqlContext};
use crate::disk::DiskFile;
use crate::object::bitmap::Bitmap;
use crate::object::rows::Layer;

/// Files that may be dirty before a writer has to sync them itself.
const DIRTY_MAX: usize = 256;
/// From this many files on, one `syncfs` is cheaper than single syncs.
const SYNCFS_FROM: usize = 24;
/// Files that stay entered although their maps found no space; with more, they are poisoned.
const UNNOTED_MAX: usize = 4 * DIRTY_MAX;
/// Poisoned places told apart; with more, all are poisoned.
const POISONED_MAX: usize = 1024;
/// Layers looked at per database read by [`Pool::sync_all`].
const SYNC_BATCH: usize = 256;

/// The dirty files of a handle.
#[derive(Debug, Default)]
pub(crate) struct Dirty {
    entries: Mutex<HashMap<String, Entry>>,
    /// Held from taking entries out until they are durable or poisoned. Never taken while waiting for a slot's holder.
    flushing: Mutex<()>,
    poisoned: Mutex<Vec<(String, String)>>,
    all_poisoned: AtomicBool,
}

#[derive(Debug, Clone)]
struct Entry {
    key: ObjectKey,
    lid: i64,
    file: Arc<dyn DiskFile>,
    sidecar: Option<Sidecar>,
    blocks: u64,
    provisional: bool,
    /// Of a provisional layer: the file of the layer that it was made from, which may be unsynced.
    below: Option<(String, Arc<dyn DiskFile>)>,
}

impl Entry {
    /// Takes on what an older entry of the same file had yet to do.
    fn join(&mut self, older: Self) {
        self.blocks = self.blocks.max(older.blocks);
        self.provisional |= older.provisional;
        self.sidecar = self.sidecar.take().or(older.sidecar);
        self.below = self.below.take().or(older.below);
    }

    /// Syncs the file, after the one below; `sync` is how.
    fn sync(&self, files: &Files, name: &str, sync: impl Fn(&dyn DiskFile) -> io::Result<()>) -> Result<()> {
        if let Some((below, file)) = &self.below {
            files.at(sync(&**file), "sync", below)?;
        }
        files.at(sync(&*self.file), "sync", name)
    }
}

/// Why a flush did not succeed.
struct Unflushed {
    error: StoreError,
    /// Whether another one must not succeed.
    poisons: bool,
}

impl Dirty {
    /// Refuses further buffered writes to objects of `namespace` whose names start with `prefix`.
    pub(crate) fn poison(&self, namespace: &str, prefix: &str) {
        let mut poisoned = self.poisoned.lock();
        let place = (namespace.to_owned(), prefix.to_owned());
        if poisoned.len() >= POISONED_MAX {
            self.all_poisoned.store(true, Ordering::Relaxed);
        } else if !poisoned.contains(&place) {
            poisoned.push(place);
        }
    }

    /// Whether an object's writes were refused.
    pub(crate) fn is_poisoned(&self, namespace: &str, name: &str) -> bool {
        self.all_poisoned.load(Ordering::Relaxed)
            || self
                .poisoned
                .lock()
                .iter()
                .any(|(space, prefix)| space == namespace && name.starts_with(prefix.as_str()))
    }

    /// Whether any object below `prefix` is refused.
    fn is_poisoned_below(&self, namespace: &str, prefix: &str) -> bool {
        let poisoned = self.poisoned.lock();
        let touches =
            |poisoned: &String| poisoned.starts_with(prefix) || prefix.starts_with(poisoned.as_str());
        self.all_poisoned.load(Ordering::Relaxed)
            || poisoned
                .iter()
                .any(|(space, poisoned)| space == namespace && touches(poisoned))
    }

    fn take(&self, wanted: impl Fn(&ObjectKey) -> bool) -> Vec<(String, Entry)> {
        let mut entries = self.entries.lock();
        entries.extract_if(|_, entry| wanted(&entry.key)).collect()
    }

    /// Enters again what was taken; false when there is too much.
    fn put_back(&self, taken: Vec<(String, Entry)>) -> bool {
        let mut entries = self.entries.lock();
        if entries.len() + taken.len() > UNNOTED_MAX {
            return false;
        }
        for (name, old) in taken {
            match entries.entry(name) {
                MapEntry::Vacant(place) => drop(place.insert(old)),
                MapEntry::Occupied(mut place) => place.get_mut().join(old),
            }
        }
        true
    }

    /// What becomes of entries that were taken, their files synced, and whose notes were not made. True: they are entered
    /// again; nothing is to be poisoned.
    fn unnoted(&self, error: &StoreError, taken: Vec<(String, Entry)>) -> bool {
        error.errno == Errno::ENOSPC && self.put_back(taken)
    }
}

impl Pool {
    /// Notes that a head's layer of `key` has bytes that are not durable; `sidecar`: whether it has one, `below`: the layer
    /// that it was made from. Only under the exclusive hold of the object.
    pub(crate) fn mark_dirty(
        &self,
        key: &ObjectKey,
        layer: &Layer,
        sidecar: bool,
        below: Option<&Arc<Layer>>,
    ) -> Result<()> {
        let blocks = layer.map.bytes().len() as u64 * 8;
        if let Some(entry) = self.dirty.entries.lock().get_mut(&layer.file)
            && entry.blocks >= blocks
            && (entry.sidecar.is_some() || !sidecar)
            && (entry.provisional || !layer.provisional)
        {
            return Ok(());
        }
        let entry = Entry {
            key: key.clone(),
            lid: layer.lid,
            file: self.files.open(&layer.file)?,
            sidecar: match sidecar {
                true => self.files.sidecar(layer)?,
                false => None,
            },
            blocks,
            provisional: layer.provisional,
            below: match below.filter(|_| layer.provisional) {
                Some(below) => Some((below.file.clone(), self.files.open(&below.file)?)),
                None => None,
            },
        };
        let full = {
            let mut entries = self.dirty.entries.lock();
            entries.insert(layer.file.clone(), entry);
            entries.len() > DIRTY_MAX
        };
        match full {
            true => {
                let _alone = self.dirty.flushing.lock();
                self.flush_where(|_| true).map_err(|unflushed| unflushed.error)
            }
            false => Ok(()),
        }
    }

    /// Makes this handle's writes to objects of `namespace` below `prefix` durable.
    pub(crate) fn flush(&self, namespace: &str, prefix: &str) -> Result<()> {
        let _alone = self.dirty.flushing.lock();
        if self.dirty.is_poisoned_below(namespace, prefix) {
            return Err(StoreError::new(
                Errno::EIO,
                format!("flush of pool {} '{prefix}*': an earlier sync failed", self.id),
            ));
        }
        let mine = |key: &ObjectKey| key.namespace() == namespace && key.name().starts_with(prefix);
        self.flush_where(mine).map_err(|unflushed| {
            if unflushed.poisons {
                self.dirty.poison(namespace, prefix);
            }
            unflushed.error
        })
    }

    /// The caller holds `flushing`.
    fn flush_where(&self, wanted: impl Fn(&ObjectKey) -> bool) -> Result<(), Unflushed> {
        let entries = self.dirty.take(wanted);
        let keys: Vec<_> = entries.iter().map(|(_, entry)| entry.key.clone()).collect();
        let unflushed = |error, poisons| {
            for key in keys.iter().filter(|_| poisons) {
                self.dirty.poison(key.namespace(), key.name());
            }
            Unflushed { error, poisons }
        };
        let rows = self
            .sync_entries(&entries)
            .map_err(|error| unflushed(error, true))?;
        self.persist_maps(rows).map_err(|error| {
            let poisons = !self.dirty.unnoted(&error, entries);
            unflushed(error, poisons)
        })
    }

    /// Makes the bytes durable; the maps that are to be are left to the caller.
    fn sync_entries(&self, entries: &[(String, Entry)]) -> Result<Vec<(i64, Bitmap)>> {
        let mut rows = Vec::new();
        for (name, entry) in entries {
            let map = match &entry.sidecar {
                Some(sidecar) => self
                    .files
                    .at(sidecar.whole(entry.blocks), "read the map of", name)?,
                None => Bitmap::default(),
            };
            if entry.sidecar.is_some() || entry.provisional {
                rows.push((entry.lid, map));
            }
        }
        if entries.len() >= SYNCFS_FROM {
            let synced = self.files.disk().sync_all(self.files.data());
            synced
                .map_err(|error| StoreError::io(&error, format!("sync {}", self.files.data().display())))?;
            // An error that somebody else's syncfs has taken shows here.
            for (name, entry) in entries {
                entry.sync(&self.files, name, |file| file.check_synced())?;
            }
        } else {
            let mut dirs = Vec::new();
            for (name, entry) in entries {
                entry.sync(&self.files, name, |file| file.sync_data())?;
                if entry.provisional {
                    let path = self.files.path_of(name);
                    if !dirs.contains(&path.parent().map(ToOwned::to_owned)) {
                        dirs.push(path.parent().map(ToOwned::to_owned));
                        self.files.sync_name(name)?;
                    }
                }
            }
        }
        Ok(rows)
    }

    /// Adds blocks to the durable maps of layers whose files (with the names of these) have just been synced.
    fn persist_maps(&self, rows: Vec<(i64, Bitmap)>) -> Result<()> {
        if rows.is_empty() {
            return Ok(());
        }
        let path = self.db.path().to_owned();
        self.db.write(Commit::Full, move |connection| {
            for (lid, live) in rows {
                if live.bytes().is_empty() {
                    // Nothing beyond what the row says.
                    connection
                        .prepare_cached("UPDATE layers SET provisional = NULL WHERE lid = ?1")
                        .and_then(|mut statement| statement.execute([lid]))
                        .at(&path, "write")?;
                    continue;
                }
                let stored: Option<Vec<u8>> = connection
                    .prepare_cached("SELECT map FROM layers WHERE lid = ?1")
                    .and_then(|mut statement| {
                        let mut found = statement.query([lid])?;
                        found.next()?.map(|row| row.get(0)).transpose()
                    })
                    .at(&path, "read")?;
                // A layer that is gone was merged or dropped, and what replaced it was synced then.
                if let Some(stored) = stored {
                    let mut map = Bitmap::from_bytes(stored);
                    map.merge(&live);
                    settled(connection, &path, lid, &map)?;
                }
            }
            Ok(())
        })
    }

    /// Makes every client's writes to objects of `namespace` below `prefix` durable.
    pub(crate) fn sync_all(&self, namespace: &str, prefix: &str) -> Result<()> {
        let _alone = self.dirty.flushing.lock();
        let mine = |key: &ObjectKey| key.namespace() == namespace && key.name().starts_with(prefix);
        let taken = self.dirty.take(mine);
        let maps = self
            .sync_everyones(namespace, prefix)
            .inspect_err(|_| self.dirty.poison(namespace, prefix))?;
        self.persist_maps(maps).inspect_err(|error| {
            if !self.dirty.unnoted(error, taken) {
                self.dirty.poison(namespace, prefix);
            }
        })
    }

    /// Makes everyone's bytes durable; the maps that are to be are left to the caller.
    fn sync_everyones(&self, namespace: &str, prefix: &str) -> Result<Vec<(i64, Bitmap)>> {
        if self.dirty.is_poisoned_below(namespace, prefix) {
            return Err(StoreError::new(
                Errno::EIO,
                format!("sync of pool {} '{prefix}*': an earlier sync failed", self.id),
            ));
        }
        // The maps are read before the files are synced: what is set later may not be durable yet.
        let mut maps = Vec::new();
        let mut last = 0;
        loop {
            let batch = self.live_layers_after(last, namespace, prefix)?;
            let Some(newest) = batch.last() else { break };
            last = newest.lid;
            for layer in batch {
                let live = match layer.parent {
                    Some(_) => self.files.sidecar(&layer)?,
                    None => None,
                };
                let map = match live {
                    Some(sidecar) => {
                        let whole = sidecar.whole(layer.map.bytes().len() as u64 * 8);
                        self.files.at(whole, "read the map of", &layer.file)?
                    }
                    None => layer.map.clone(),
                };
                if map != layer.map || layer.provisional {
                    maps.push((layer.lid, map));
                }
            }
        }
        let synced = self.files.disk().sync_all(self.files.data());
        synced.map_err(|error| StoreError::io(&error, format!("sync {}", self.files.data().display())))?;
        Ok(maps)
    }

    /// Heads' layers of matching objects whose rows may lag behind: those with a parent and provisional ones.
    fn live_layers_after(&self, last: i64, namespace: &str, prefix: &str) -> Result<Vec<Layer>> {
        let reader = self.db.reader()?;
        let rows = reader
            .prepare_cached(
                "SELECT l.lid, l.file, l.parent, l.chained, l.covered, l.map, l.provisional IS NOT NULL
                 FROM layers l JOIN objects o ON o.oid = l.oid JOIN bodies b ON b.layer = l.lid AND b.oid = l.oid
                 WHERE l.lid > ?1 AND b.clone IS NULL AND (l.parent IS NOT NULL OR l.provisional IS NOT NULL)
                   AND o.ns = ?2 AND substr(o.name, 1, ?3) = ?4
                 ORDER BY l.lid LIMIT ?5",
            )
            .and_then(|mut statement| {
                let characters = prefix.chars().count() as i64;
                let rows = statement.query_map(
                    (last, namespace, characters, prefix, SYNC_BATCH as i64),
                    |row| {
                        Ok(Layer {
                            lid: row.get(0)?,
                            file: row.get(1)?,
                            parent: row.get(2)?,
                            chained: row.get(3)?,
                            covered_bytes: row.get::<_, i64>(4)? as u64,
                            map: Bitmap::from_bytes(row.get(5)?),
                            provisional: row.get(6)?,
                        })
                    },
                )?;
                rows.collect()
            });
        rows.at(self.db.path(), "read")
    }
}
