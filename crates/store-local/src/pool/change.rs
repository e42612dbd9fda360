//! One transaction that changes an object: clone, head, keys, layers.
//!
//! Keeps invariant: files are ready before the transaction that names them, and removed only after the transaction that
//! forgets them (which leaves their names in `doomed`); the slot's generation is raised before anything changes.

use std::path::PathBuf;
use std::sync::atomic::Ordering;

use ferry_store::{Durability, Errno, Extent, Result, SnapId, StoreError, Timestamp};
use rusqlite::Connection;

use super::key::ObjectKey;
use super::layers::{NewLayer, settled};
use super::write::NewClone;
use super::{Cached, Pool};
use crate::db::{Commit, SqlContext};
use crate::object::data::DataStep;
use crate::object::extents;
use crate::object::inline;
use crate::object::plan::Change;
use crate::object::rows::{Layer, Object};

/// A change of an object through the database.
#[derive(Debug)]
pub(crate) struct Edit {
    pub(crate) key: ObjectKey,
    /// The object before.
    pub(crate) object: Cached,
    /// Size of the head before.
    pub(crate) size_before: u64,
    /// Version of the head before.
    pub(crate) version_before: u64,
    /// Clone to make of the head first.
    pub(crate) clone: Option<NewClone>,
    /// Sequence of the writer's context.
    pub(crate) snap_seq: u64,
    /// Version of the head afterwards.
    pub(crate) version: u64,
    /// Time of the change.
    pub(crate) now: Timestamp,
    /// Whether the head exists afterwards.
    pub(crate) exists: bool,
    /// Size of the head afterwards.
    pub(crate) size_bytes: u64,
    /// Whether a head made by the changes is bulk.
    pub(crate) bulk_if_new: bool,
    /// The changes, in order.
    pub(crate) changes: Vec<Change>,
    /// Body whose pages and keys a newly made head takes over (rollback).
    pub(crate) copied: Option<i64>,
}

/// What happens to files in the same step.
#[derive(Debug, Default)]
pub(crate) struct FileEdit {
    /// The old head's layer, if it was made durable.
    pub(crate) settled: Option<Layer>,
    /// The new head's layer.
    pub(crate) new: Option<NewLayer>,
    /// Lower covered length of the head's layer.
    pub(crate) covered: Option<(i64, u64)>,
    /// Byte changes to be done in the head's layer after the commit.
    pub(crate) redo: Option<Vec<u8>>,
}

/// The part of an edit that runs inside the transaction.
struct Transaction {
    edit: Edit,
    settled: Option<Layer>,
    new: Option<Layer>,
    covered: Option<(i64, u64)>,
    redo: Option<Vec<u8>>,
    unused: Vec<(i64, String)>,
    forget: Vec<String>,
    boot: [u8; 16],
    path: PathBuf,
}

impl Pool {
    /// Carries an edit out. Only under the exclusive hold of the object.
    pub(crate) fn change(&self, edit: Edit, durability: Durability) -> Result<()> {
        let files = self.prepare_files(&edit, durability)?;
        let rows_only =
            files.settled.is_none() && files.new.is_none() && files.covered.is_none() && files.redo.is_none();
        self.commit(edit, files, durability == Durability::Ordered && rows_only)
    }

    /// Commits an edit whose files are ready.
    pub(crate) fn commit_change(&self, edit: Edit, files: FileEdit) -> Result<()> {
        self.commit(edit, files, false)
    }

    /// `ordered`: becomes durable with the next full commit, before all that follows.
    fn commit(&self, edit: Edit, files: FileEdit, ordered: bool) -> Result<()> {
        let key = edit.key.clone();
        let unused = unused_after(&edit, &files);
        let forget = std::mem::take(&mut *self.removed.lock());
        let new = files.new.as_ref().map(|new| new.layer.clone());
        let provisional = new.as_ref().is_some_and(|layer| layer.provisional);
        let lazy = (provisional || ordered) && unused.is_empty();
        let size_bytes = files.new.as_ref().map(|new| new.size_bytes);
        let redo = files.redo.is_some();
        let below = match (&new, edit.object.as_deref()) {
            (Some(new), Some(object)) => object.below(new).cloned(),
            _ => None,
        };
        let mut transaction = Transaction {
            edit,
            settled: files.settled,
            new: new.clone(),
            covered: files.covered,
            redo: files.redo,
            unused: unused.clone(),
            forget: forget.clone(),
            boot: self.files.disk().boot_id(),
            path: self.db.path().to_owned(),
        };
        if let Some(size_bytes) = size_bytes {
            transaction.edit.size_bytes = size_bytes;
        }
        self.slots.bump(key.slot());
        let commit = if lazy { Commit::Lazy } else { Commit::Full };
        let lid = match self
            .db
            .write(commit, move |connection| transaction.run(connection))
        {
            Ok(lid) => lid,
            Err(error) => {
                self.removed.lock().extend(forget);
                match &new {
                    Some(new) if error.errno == Errno::ENOSPC => self.discard(&new.file),
                    // After an I/O error the commit may still turn up in the log; then its file must be there.
                    Some(_) => self.leaked.store(true, Ordering::Relaxed),
                    None => {}
                }
                return Err(error);
            }
        };
        if let (Some(new), Some(lid)) = (new, lid)
            && new.provisional
        {
            self.mark_dirty(&key, &Layer { lid, ..new }, false, below.as_ref())?;
        }
        self.remove_files(unused.into_iter().map(|(_, file)| file));
        if redo {
            // Loading finds the record and does it.
            self.load_exclusive(&key)?;
        }
        Ok(())
    }

    /// Removes files that no row names any more.
    pub(crate) fn remove_files(&self, files: impl IntoIterator<Item = String>) {
        for file in files {
            match self.files.remove(&file) {
                Ok(()) => self.removed.lock().push(file),
                Err(error) => tracing::warn!(%error, "the file is removed when the pool is next opened"),
            }
        }
    }
}

/// Layers (and their files) that nothing needs after the edit.
fn unused_after(edit: &Edit, files: &FileEdit) -> Vec<(i64, String)> {
    let Some(object) = edit.object.as_deref() else {
        return Vec::new();
    };
    let old = object.head.as_ref().and_then(|head| head.layer);
    let fresh = edit.changes.contains(&Change::Remove);
    let mut used: Vec<i64> = object
        .clones
        .iter()
        .filter_map(|clone| clone.body.layer)
        .collect();
    let kept = edit.clone.is_some() || files.new.is_none() && !fresh;
    used.extend(old.filter(|_| kept));
    used.extend(files.new.as_ref().and_then(|new| new.layer.parent));
    names_of(object, object.unused_layers(&used))
}

/// Layers with their files.
pub(crate) fn names_of(object: &Object, lids: Vec<i64>) -> Vec<(i64, String)> {
    let layers = lids.into_iter().filter_map(|lid| object.layer(lid));
    layers.map(|layer| (layer.lid, layer.file.clone())).collect()
}

/// Forgets layers; their files may be removed once this is committed.
pub(crate) fn doom(connection: &Connection, layers: &[(i64, String)]) -> rusqlite::Result<()> {
    for (lid, file) in layers {
        connection
            .prepare_cached("UPDATE layers SET parent = NULL WHERE parent = ?1 AND chained = 0")?
            .execute([lid])?;
        connection
            .prepare_cached("DELETE FROM layers WHERE lid = ?1")?
            .execute([lid])?;
        connection
            .prepare_cached("INSERT OR IGNORE INTO doomed(file) VALUES(?1)")?
            .execute([file])?;
    }
    Ok(())
}

/// The head while changes are applied.
struct Head {
    bid: i64,
    size_bytes: u64,
    bulk: bool,
}

/// The newest clone's overlap, when rows keep it.
struct Overlap {
    bid: i64,
    extents: Vec<Extent>,
    changed: bool,
}

impl Overlap {
    fn cut(&mut self, from: u64, to: u64) {
        if from < to {
            self.extents = extents::subtract(&self.extents, Extent::new(from, to - from));
            self.changed = true;
        }
    }
}

impl Transaction {
    fn run(mut self, connection: &Connection) -> Result<Option<i64>> {
        let path = self.path.clone();
        let changes = std::mem::take(&mut self.edit.changes);
        let oid = self.object_row(connection).at(&path, "write")?;
        if let Some(layer) = &self.settled {
            settled(connection, &path, layer.lid, &layer.map)?;
        }
        let new = match &self.new {
            Some(layer) => Some(Self::insert(connection, &path, oid, layer, &self.boot)?),
            None => None,
        };
        self.rest(connection, oid, new, changes).at(&path, "write")?;
        Ok(new)
    }

    fn insert(
        connection: &Connection,
        path: &std::path::Path,
        oid: i64,
        layer: &Layer,
        boot: &[u8],
    ) -> Result<i64> {
        if layer.lid != super::layers::UNBORN {
            return Err(StoreError::new(Errno::EIO, "a layer was to be made twice"));
        }
        Pool::insert_layer(connection, path, oid, layer, boot)
    }

    fn object_row(&self, connection: &Connection) -> rusqlite::Result<i64> {
        match self.edit.object.as_deref() {
            Some(object) => {
                if self.edit.snap_seq > object.snap_seq {
                    connection
                        .prepare_cached("UPDATE objects SET snap_seq = ?2 WHERE oid = ?1")?
                        .execute((object.oid, self.edit.snap_seq as i64))?;
                }
                Ok(object.oid)
            }
            None => connection
                .prepare_cached("INSERT INTO objects(ns, name, snap_seq) VALUES(?1, ?2, ?3)")?
                .insert((
                    self.edit.key.namespace(),
                    self.edit.key.name(),
                    self.edit.snap_seq as i64,
                )),
        }
    }

    fn rest(
        &self,
        connection: &Connection,
        oid: i64,
        new: Option<i64>,
        changes: Vec<Change>,
    ) -> rusqlite::Result<()> {
        let edit = &self.edit;
        let old = edit.object.as_deref();
        let old_head = old.and_then(|object| object.head.as_ref());
        let mut overlap = self.make_clone(connection, oid)?.or_else(|| {
            let newest = old?.clones.last()?;
            Some(Overlap {
                bid: newest.body.bid,
                extents: newest.overlap.clone(),
                changed: false,
            })
        });
        let mut head = old_head.map(|body| Head {
            bid: body.bid,
            size_bytes: edit.size_before,
            bulk: body.layer.is_some(),
        });
        for change in &changes {
            self.apply(connection, oid, &mut head, overlap.as_mut(), change)?;
        }
        if let Some(overlap) = overlap.filter(|overlap| overlap.changed) {
            connection
                .prepare_cached("UPDATE bodies SET overlap = ?2 WHERE bid = ?1")?
                .execute((overlap.bid, extents::encode(&overlap.extents)))?;
        }
        if let Some((lid, covered)) = self.covered {
            connection
                .prepare_cached("UPDATE layers SET covered = ?2 WHERE lid = ?1")?
                .execute((lid, covered as i64))?;
        }
        if let Some(head) = &head {
            let layer = new.or_else(|| old_head.and_then(|body| body.layer).filter(|_| head.bulk));
            connection
                .prepare_cached(
                    "UPDATE bodies SET size = ?2, version = ?3, mtime_s = ?4, mtime_ns = ?5, layer = ?6 WHERE bid = ?1",
                )?
                .execute((
                    head.bid,
                    if head.bulk { edit.size_bytes } else { head.size_bytes } as i64,
                    edit.version as i64,
                    edit.now.seconds,
                    edit.now.nanoseconds,
                    layer,
                ))?;
        }
        doom(connection, &self.unused)?;
        if let Some(redo) = &self.redo {
            connection
                .prepare_cached("INSERT OR REPLACE INTO redo(oid, steps) VALUES(?1, ?2)")?
                .execute((oid, redo))?;
        }
        let clones = edit.clone.is_some() || old.is_some_and(|object| !object.clones.is_empty());
        if head.is_none() && !clones {
            connection
                .prepare_cached("DELETE FROM objects WHERE oid = ?1")?
                .execute([oid])?;
        }
        for file in &self.forget {
            connection
                .prepare_cached("DELETE FROM doomed WHERE file = ?1")?
                .execute([file])?;
        }
        Ok(())
    }

    /// Copies the head into a clone; gives the clone's overlap if rows keep it.
    fn make_clone(&self, connection: &Connection, oid: i64) -> rusqlite::Result<Option<Overlap>> {
        let edit = &self.edit;
        let head = edit.object.as_deref().and_then(|object| object.head.as_ref());
        let (Some((id, snaps)), Some(head)) = (&edit.clone, head) else {
            return Ok(None);
        };
        let inline = head.layer.is_none();
        let overlap = if inline {
            extents::whole(edit.size_before)
        } else {
            Vec::new()
        };
        let snap_bytes: Vec<u8> = snaps.iter().flat_map(|snap| snap.0.to_le_bytes()).collect();
        let bid = connection
            .prepare_cached(
                "INSERT INTO bodies(oid, clone, snaps, size, version, mtime_s, mtime_ns, layer, overlap)
                 VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
            )?
            .insert((
                oid,
                id.0 as i64,
                snap_bytes,
                edit.size_before as i64,
                edit.version_before as i64,
                head.mtime.seconds,
                head.mtime.nanoseconds,
                head.layer,
                extents::encode(&overlap),
            ))?;
        for SnapId(snap) in snaps {
            connection
                .prepare_cached("INSERT INTO clone_snaps(snap, bid) VALUES(?1, ?2)")?
                .execute((*snap as i64, bid))?;
            // Given up since the clone was found due: what was trimmed then is to be trimmed again.
            connection
                .prepare_cached("UPDATE removed_snaps SET done = 0 WHERE snap = ?1")?
                .execute([*snap as i64])?;
        }
        inline::copy_keys(connection, head.bid, bid)?;
        if inline {
            inline::copy_pages(connection, head.bid, bid)?;
        }
        Ok(Some(Overlap {
            bid,
            extents: overlap,
            changed: false,
        }))
    }

    fn apply(
        &self,
        connection: &Connection,
        oid: i64,
        head: &mut Option<Head>,
        mut overlap: Option<&mut Overlap>,
        change: &Change,
    ) -> rusqlite::Result<()> {
        match (change, head.as_mut()) {
            (Change::Create, _) => {
                *head = Some(self.make_head(connection, oid)?);
                // A head rolled back to the newest clone equals it.
                if let Some(overlap) = overlap.filter(|overlap| self.edit.copied == Some(overlap.bid)) {
                    overlap.extents = extents::whole(self.edit.size_bytes);
                    overlap.changed = true;
                }
            }
            (Change::Remove, Some(old)) => {
                inline::drop_pages(connection, old.bid)?;
                inline::drop_keys(connection, old.bid)?;
                connection
                    .prepare_cached("DELETE FROM bodies WHERE bid = ?1")?
                    .execute([old.bid])?;
                if let Some(overlap) = overlap.as_mut() {
                    overlap.cut(0, u64::MAX);
                }
                *head = None;
            }
            (Change::Data(step), Some(head)) if !head.bulk => {
                let before = head.size_bytes;
                head.size_bytes = inline::apply(connection, head.bid, before, step)?;
                if let Some(overlap) = overlap.as_mut() {
                    match step {
                        DataStep::Write { offset, data } => overlap.cut(*offset, offset + data.len() as u64),
                        DataStep::Zero { offset, length_bytes } => {
                            overlap.cut(*offset, offset.saturating_add(*length_bytes));
                        }
                        DataStep::Truncate { size_bytes } => overlap.cut(*size_bytes, before),
                    }
                }
            }
            (Change::Replace(data), Some(head)) if !head.bulk => {
                inline::drop_pages(connection, head.bid)?;
                if let Some(overlap) = overlap.as_mut() {
                    overlap.cut(0, u64::MAX);
                }
                let step = DataStep::Write {
                    offset: 0,
                    data: data.clone(),
                };
                head.size_bytes = inline::apply(connection, head.bid, 0, &step)?;
            }
            (Change::OmapSet(pairs), Some(head)) => inline::omap_set(connection, head.bid, pairs)?,
            (Change::OmapRemove(keys), Some(head)) => inline::omap_remove(connection, head.bid, keys)?,
            (Change::SetXattr(name, value), Some(head)) => {
                inline::xattr_put(connection, head.bid, name, Some(value))?;
            }
            (Change::RemoveXattr(name), Some(head)) => inline::xattr_put(connection, head.bid, name, None)?,
            // Bytes of bulk heads change in files; without a head there is nothing to change.
            _ => {}
        }
        Ok(())
    }

    fn make_head(&self, connection: &Connection, oid: i64) -> rusqlite::Result<Head> {
        let bid = connection
            .prepare_cached(
                "INSERT INTO bodies(oid, clone, snaps, size, version, mtime_s, mtime_ns, layer, overlap)
                 VALUES(?1, NULL, x'', 0, 0, 0, 0, NULL, x'')",
            )?
            .insert([oid])?;
        let mut size_bytes = 0;
        if let Some(from) = self.edit.copied {
            inline::copy_keys(connection, from, bid)?;
            if !self.edit.bulk_if_new {
                inline::copy_pages(connection, from, bid)?;
                size_bytes = self.edit.size_bytes;
            }
        }
        Ok(Head {
            bid,
            size_bytes,
            bulk: self.edit.bulk_if_new,
        })
    }
}
