//! Snapshots: listing clones with overlaps, rolling back, snapshot ids, trimming.

use ferry_store::{
    CloneInfo, Durability, Errno, Extent, Result, SnapContext, SnapId, SnapSet, StoreError, Timestamp,
};
use rusqlite::Connection;

use super::Pool;
use super::change::{Edit, FileEdit, doom, names_of};
use super::key::ObjectKey;
use super::schema::{meta_get, meta_set};
use crate::db::{Commit, SqlContext};
use crate::object::bitmap::{BLOCK_BYTES, Bitmap, blocks_of};
use crate::object::data::Bulk;
use crate::object::extents;
use crate::object::inline;
use crate::object::plan::Change;
use crate::object::rows::{Body, CloneBody, Layer, Object};

/// Layers named in one message.
const RING_NAMED_MAX: usize = 16;
/// Objects trimmed between two looks at the table.
pub(crate) const TRIM_BATCH: usize = 64;

/// Clones and head with overlaps.
pub(crate) fn list(files: &super::files::Files, key: &ObjectKey, object: &Object) -> Result<SnapSet> {
    let bulk = Bulk::new(files, object);
    let size = |body: &Body| match body.layer {
        Some(lid) => bulk.size(body, lid),
        None => Ok(body.size_bytes),
    };
    let mut clones = Vec::with_capacity(object.clones.len() + 1);
    for (index, clone) in object.clones.iter().enumerate() {
        let newer = object
            .clones
            .get(index + 1)
            .map(|clone| &clone.body)
            .or(object.head.as_ref());
        let overlap = match (clone.body.layer, newer) {
            (_, None) => Vec::new(),
            (None, Some(newer)) => match newer.layer {
                None => clone.overlap.clone(),
                Some(_) => Vec::new(),
            },
            (Some(old), Some(newer)) => match newer.layer {
                Some(new) => {
                    let size_bytes = clone.body.size_bytes.min(size(newer)?);
                    shared(&bulk, key, object, (old, new), size_bytes)?
                }
                None => Vec::new(),
            },
        };
        clones.push(CloneInfo {
            id: clone.id,
            snaps: clone.snaps.clone(),
            overlap: Some(overlap),
            size_bytes: clone.body.size_bytes,
        });
    }
    if let Some(head) = &object.head {
        clones.push(CloneInfo {
            id: SnapId::HEAD,
            snaps: Vec::new(),
            overlap: None,
            size_bytes: size(head)?,
        });
    }
    Ok(SnapSet {
        seq: object.snap_seq,
        clones,
    })
}

/// What layer `new` has in common with `old` in the first `size_bytes`: all that no layer from `new` down to, without,
/// `old` has of its own. Nothing when `new` was not made from `old`.
fn shared(
    bulk: &Bulk<'_>,
    key: &ObjectKey,
    object: &Object,
    (old, new): (i64, i64),
    size_bytes: u64,
) -> Result<Vec<Extent>> {
    let mut changed = Bitmap::empty(blocks_of(size_bytes));
    let mut end = size_bytes;
    let mut lid = new;
    let mut steps = 0;
    while lid != old {
        let Some(layer) = object.layer(lid) else {
            return Ok(Vec::new());
        };
        let Some(parent) = layer.parent else {
            return Ok(Vec::new());
        };
        steps += 1;
        if steps > object.layers.len() {
            return Err(ring(key, object, new));
        }
        changed.merge(&bulk.map_now(layer)?);
        end = end.min(layer.covered_bytes);
        lid = parent;
    }
    let mut overlap = Vec::new();
    for block in (0..blocks_of(end)).filter(|block| !changed.has(*block)) {
        let start = block * BLOCK_BYTES;
        extents::push(
            &mut overlap,
            Extent::new(start, end.min(start + BLOCK_BYTES) - start),
        );
    }
    Ok(overlap)
}

/// The error of layers of which each was made from the next, and the last from the first.
fn ring(key: &ObjectKey, object: &Object, lid: i64) -> StoreError {
    let layers = object
        .layers
        .iter()
        .filter_map(|layer| Some((layer.lid, layer.parent?)));
    let parents: Vec<String> = layers
        .take(RING_NAMED_MAX)
        .map(|(lid, parent)| format!("{lid} from {parent}"))
        .collect();
    let what = format!(
        "{key}: what layer {lid} was made from has no end ({}): its rows are damaged",
        parents.join(", ")
    );
    StoreError::new(Errno::EIO, what)
}

impl Pool {
    /// Makes the head as it was at `snap`. Only under the exclusive hold of the object.
    pub(crate) fn rollback(
        &self,
        key: &ObjectKey,
        snapc: &SnapContext,
        snap: SnapId,
        durability: Durability,
    ) -> Result<()> {
        let cached = self.load_exclusive(key)?;
        let Some(object) = cached.as_deref() else {
            return Ok(());
        };
        if durability == Durability::Buffered && self.dirty.is_poisoned(key.namespace(), key.name()) {
            return Err(StoreError::new(
                Errno::EIO,
                format!("roll back pool {} {key}: an earlier flush failed", self.id),
            ));
        }
        let target = object.at(snap);
        let target_is_head = match (target, &object.head) {
            (Some(target), Some(head)) => target.bid == head.bid,
            (None, None) => true,
            _ => false,
        };
        if target_is_head {
            return Ok(());
        }
        let source = target.cloned();
        let deep = |lid: &i64| object.depth(*lid) >= super::compact::CHAIN_MAX;
        if let Some(lid) = source.as_ref().and_then(|body| body.layer).filter(deep) {
            self.flatten(key, object, lid)?;
            return self.rollback(key, snapc, snap, durability);
        }
        let mut changes = Vec::new();
        if object.head.is_some() {
            changes.push(Change::Remove);
        }
        if source.is_some() {
            changes.push(Change::Create);
        }
        let size_before = match &object.head {
            Some(head) => match head.layer {
                Some(lid) => Bulk::new(&self.files, object).size(head, lid)?,
                None => head.size_bytes,
            },
            None => 0,
        };
        let edit = Edit {
            key: key.clone(),
            object: cached.clone(),
            size_before,
            version_before: self.version_of(key, Some(object)),
            clone: self.clone_due(Some(object), snapc)?,
            snap_seq: snapc.seq(),
            version: self.next_version()?,
            now: Timestamp::now(),
            exists: source.is_some(),
            size_bytes: source.as_ref().map_or(0, |body| body.size_bytes),
            bulk_if_new: source.as_ref().is_some_and(|body| body.layer.is_some()),
            changes,
            copied: source.as_ref().map(|body| body.bid),
        };
        let settled = match object.head_layer() {
            Some(layer) if edit.clone.is_some() => Some(self.settle(key, object, layer)?),
            _ => None,
        };
        if let Some(layer) = object.head_layer() {
            self.settle_below(key, object, layer)?;
        }
        let layer = source.as_ref().and_then(|body| object.layer(body.layer?));
        let new = match layer {
            Some(layer) => Some(self.new_child(object, layer, edit.size_bytes, &[], true)?),
            None => None,
        };
        self.commit_change(
            edit,
            FileEdit {
                settled,
                new,
                ..FileEdit::default()
            },
        )
    }

    /// A snapshot id greater than all before.
    pub(crate) fn snap_id_create(&self) -> Result<SnapId> {
        let path = self.db.path().to_owned();
        self.db.write(Commit::Full, move |connection| {
            let next = meta_get(connection, &path, "snap_id")?.unwrap_or(0) + 1;
            meta_set(connection, &path, "snap_id", next)?;
            Ok(SnapId(next as u64))
        })
    }

    /// Notes that an id is given up. `false`: it never was given out, or nothing is left to do.
    pub(crate) fn snap_id_give_up(&self, snap: SnapId) -> Result<bool> {
        let path = self.db.path().to_owned();
        self.db.write(Commit::Full, move |connection| {
            let given = meta_get(connection, &path, "snap_id")?.unwrap_or(0) as u64;
            if snap.0 == 0 || snap.0 > given {
                return Ok(false);
            }
            connection
                .execute(
                    "INSERT OR IGNORE INTO removed_snaps(snap, done) VALUES(?1, 0)",
                    [snap.0 as i64],
                )
                .at(&path, "write")?;
            let done: i64 = connection
                .query_row(
                    "SELECT done FROM removed_snaps WHERE snap = ?1",
                    [snap.0 as i64],
                    |row| row.get(0),
                )
                .at(&path, "read")?;
            Ok(done == 0)
        })
    }

    /// Ids given up whose clones are not all trimmed.
    pub(crate) fn snaps_to_trim(&self) -> Result<Vec<SnapId>> {
        let reader = self.db.reader()?;
        let rows = reader
            .prepare_cached("SELECT snap FROM removed_snaps WHERE done = 0 LIMIT ?1")
            .and_then(|mut statement| {
                let rows = statement.query_map([TRIM_BATCH as i64], |row| row.get::<_, i64>(0))?;
                rows.map(|snap| Ok(SnapId(snap? as u64))).collect()
            });
        rows.at(self.db.path(), "read")
    }

    /// Some objects with a clone that serves `snap`, after body `after`.
    pub(crate) fn objects_to_trim(&self, snap: SnapId) -> Result<Vec<ObjectKey>> {
        let reader = self.db.reader()?;
        let rows: rusqlite::Result<Vec<(String, String)>> = reader
            .prepare_cached(
                "SELECT o.ns, o.name FROM clone_snaps s JOIN bodies b ON b.bid = s.bid JOIN objects o ON o.oid = b.oid
                 WHERE s.snap = ?1 LIMIT ?2",
            )
            .and_then(|mut statement| {
                let rows = statement.query_map((snap.0 as i64, TRIM_BATCH as i64), |row| Ok((row.get(0)?, row.get(1)?)))?;
                rows.collect()
            });
        let rows = rows.at(self.db.path(), "read")?;
        Ok(rows
            .into_iter()
            .map(|(namespace, name)| ObjectKey::new(&namespace.into(), &name))
            .collect())
    }

    /// Notes that no clone serves `snap` any more, unless a writer that did not yet know of its end has just made one.
    pub(crate) fn snap_trimmed(&self, snap: SnapId) -> Result<()> {
        let path = self.db.path().to_owned();
        self.db.write(Commit::Full, move |connection| {
            connection
                .execute(
                    "UPDATE removed_snaps SET done = 1
                     WHERE snap = ?1 AND NOT EXISTS (SELECT 1 FROM clone_snaps WHERE snap = ?1)",
                    [snap.0 as i64],
                )
                .at(&path, "write")
                .map(|_| ())
        })
    }

    /// Takes `snap` from the object's clones; a clone without snapshots goes away. Only under the exclusive hold.
    pub(crate) fn trim(&self, key: &ObjectKey, snap: SnapId) -> Result<()> {
        let Some(object) = self.load_exclusive(key)? else {
            return Ok(());
        };
        let Some(index) = object.clones.iter().position(|clone| clone.snaps.contains(&snap)) else {
            return Ok(());
        };
        let clone = object.clones[index].clone();
        let rest: Vec<SnapId> = clone
            .snaps
            .iter()
            .copied()
            .filter(|other| *other != snap)
            .collect();
        let goes = rest.is_empty();
        let used: Vec<i64> = object
            .clones
            .iter()
            .filter(|other| !goes || other.id != clone.id)
            .map(|clone| &clone.body)
            .chain(&object.head)
            .filter_map(|body| body.layer)
            .collect();
        let unused = names_of(&object, object.unused_layers(&used));
        // Before a layer goes that a provisional one was made from, the latter must stand for itself.
        let settled = match object.head_layer() {
            Some(layer) if layer.provisional && goes => Some(self.settle(key, &object, layer)?),
            _ => None,
        };
        // First: a sidecar that is made for one of these layers voids what was cached.
        self.slots.bump(key.slot());
        let rebased = self.rebased(key, &object, &unused)?;
        // The next older clone's newer version is now the next newer one.
        let older = index.checked_sub(1).map(|older| &object.clones[older]);
        let older = older.filter(|older| older.body.layer.is_none()).map(|older| {
            let overlap = extents::intersect(&older.overlap, &clone.overlap);
            (older.body.bid, extents::encode(&overlap))
        });
        let last = goes && object.head.is_none() && object.clones.len() == 1;
        let (path, oid, doomed) = (self.db.path().to_owned(), object.oid, unused.clone());
        self.db.write(Commit::Full, move |connection| {
            if let Some(layer) = settled {
                super::layers::settled(connection, &path, layer.lid, &layer.map)?;
            }
            for layer in &rebased {
                rebase(connection, layer).at(&path, "write")?;
            }
            let trimmed = match goes {
                true => drop_clone(connection, &clone, older, &doomed, last.then_some(oid)),
                false => keep_clone(connection, &clone, snap, &rest),
            };
            trimmed.at(&path, "write")
        })?;
        self.remove_files(unused.into_iter().map(|(_, file)| file));
        if goes && !last {
            self.compact(key)?;
        }
        Ok(())
    }

    /// Layers that stand for themselves and were made from one that goes: what they differ in from the layer that one
    /// was made from. Of a live layer the sidecar already says so afterwards, which errs on the safe side.
    fn rebased(&self, key: &ObjectKey, object: &Object, unused: &[(i64, String)]) -> Result<Vec<Layer>> {
        let goes = |lid: i64| unused.iter().any(|(unused, _)| *unused == lid);
        let bulk = Bulk::new(&self.files, object);
        let mut rebased = Vec::new();
        for layer in object
            .layers
            .iter()
            .filter(|layer| !goes(layer.lid) && !layer.chained)
        {
            let mut layer = (**layer).clone();
            let Some(gone) = layer.parent.filter(|parent| goes(*parent)) else {
                continue;
            };
            layer.map = bulk.map_now(&layer)?;
            let (mut next, mut steps) = (Some(gone), 0);
            while let Some(below) = next.filter(|lid| goes(*lid)).and_then(|lid| object.layer(lid)) {
                steps += 1;
                if steps > object.layers.len() {
                    return Err(ring(key, object, layer.lid));
                }
                layer.map.merge(&below.map);
                layer.covered_bytes = layer.covered_bytes.min(below.covered_bytes);
                next = below.parent;
            }
            layer.parent = next;
            if next.is_some() && object.is_live(layer.lid) {
                self.files.extend_sidecar(&layer, &layer.map)?;
            }
            rebased.push(layer);
        }
        Ok(rebased)
    }
}

/// Lets a layer that stands for itself be told apart from another layer than so far.
fn rebase(connection: &Connection, layer: &Layer) -> rusqlite::Result<()> {
    connection
        .prepare_cached("UPDATE layers SET parent = ?2, covered = ?3, map = ?4 WHERE lid = ?1")?
        .execute((
            layer.lid,
            layer.parent,
            layer.covered_bytes as i64,
            layer.map.bytes(),
        ))
        .map(|_| ())
}

fn keep_clone(
    connection: &Connection,
    clone: &CloneBody,
    snap: SnapId,
    rest: &[SnapId],
) -> rusqlite::Result<()> {
    let bytes: Vec<u8> = rest.iter().flat_map(|snap| snap.0.to_le_bytes()).collect();
    connection.execute(
        "UPDATE bodies SET snaps = ?2 WHERE bid = ?1",
        (clone.body.bid, bytes),
    )?;
    connection
        .execute(
            "DELETE FROM clone_snaps WHERE snap = ?1 AND bid = ?2",
            (snap.0 as i64, clone.body.bid),
        )
        .map(|_| ())
}

fn drop_clone(
    connection: &Connection,
    clone: &CloneBody,
    older: Option<(i64, Vec<u8>)>,
    doomed: &[(i64, String)],
    last: Option<i64>,
) -> rusqlite::Result<()> {
    let bid = clone.body.bid;
    inline::drop_keys(connection, bid)?;
    inline::drop_pages(connection, bid)?;
    connection.execute("DELETE FROM bodies WHERE bid = ?1", [bid])?;
    for snap in &clone.snaps {
        connection.execute(
            "DELETE FROM clone_snaps WHERE snap = ?1 AND bid = ?2",
            (snap.0 as i64, bid),
        )?;
    }
    if let Some(older) = older {
        connection.execute("UPDATE bodies SET overlap = ?2 WHERE bid = ?1", older)?;
    }
    doom(connection, doomed)?;
    if let Some(oid) = last {
        connection.execute("DELETE FROM objects WHERE oid = ?1", [oid])?;
    }
    Ok(())
}
