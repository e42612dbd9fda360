//! Keeping chains of layers short: flattening a layer, and folding a layer into the one below.
//!
//! Both are crash-safe by the same fact: a block that a layer has of its own hides the parent's, and a block that it has
//! not is never read from its file. So bytes are first copied where nobody looks, synced, and then one transaction makes
//! them count.

use ferry_store::Result;

use super::Pool;
use super::change::doom;
use super::key::ObjectKey;
use super::layers::settled;
use crate::db::{Commit, SqlContext};
use crate::object::bitmap::{BLOCK_BYTES, blocks_of};
use crate::object::data::Bulk;
use crate::object::rows::{Layer, Object};

/// Layers that a read may have to touch before the chain is cut.
pub(crate) const CHAIN_MAX: usize = 8;
/// Merges tried per call; more layers than this are left to the next.
const MERGES_MAX: usize = 64;

impl Pool {
    /// Merges layers that only the layer above them needs. Only under the exclusive hold.
    pub(crate) fn compact(&self, key: &ObjectKey) -> Result<()> {
        for _ in 0..MERGES_MAX {
            let Some(object) = self.load_exclusive(key)? else {
                return Ok(());
            };
            let Some((lower, upper)) = mergeable(&object) else {
                return Ok(());
            };
            let blocks = blocks_of(upper.covered_bytes);
            let own = Bulk::new(&self.files, &object).map_now(&upper)?.count(blocks);
            match own * 2 >= blocks {
                true => self.flatten(key, &object, upper.lid)?,
                false => self.fold(key, &object, &lower, &upper)?,
            }
        }
        Ok(())
    }

    /// Copies what layer `lid` reads from below into it, so that it stands for itself. Only under the exclusive hold.
    pub(crate) fn flatten(&self, key: &ObjectKey, object: &Object, lid: i64) -> Result<()> {
        let Some(layer) = object.layer(lid).filter(|layer| layer.chained) else {
            return Ok(());
        };
        let Some(parent) = layer.parent else { return Ok(()) };
        let bulk = Bulk::new(&self.files, object);
        let mut map = bulk.map_now(layer)?;
        self.copy_blocks(&bulk, parent, layer, |block| !map.has(block), layer.covered_bytes)?;
        self.sync_layer(key, object, layer)?;
        // Where the parent is no body's, what counts is the difference to the layer that is.
        let below = object.layer(parent);
        let is_body =
            |lid: i64| object.clones.iter().any(|clone| clone.body.layer == Some(lid)) || object.is_live(lid);
        let (base, covered) = match below {
            Some(below) if !is_body(parent) => {
                map.merge(&below.map);
                (below.parent, layer.covered_bytes.min(below.covered_bytes))
            }
            _ => (Some(parent), layer.covered_bytes),
        };
        self.slots.bump(key.slot());
        if object.is_live(lid) && base.is_some() {
            self.files.extend_sidecar(layer, &map)?;
        }
        let used: Vec<i64> = object
            .clones
            .iter()
            .map(|clone| &clone.body)
            .chain(&object.head)
            .filter_map(|body| body.layer)
            .collect();
        let after = Object {
            oid: object.oid,
            snap_seq: object.snap_seq,
            head: object.head.clone(),
            clones: object.clones.clone(),
            layers: object
                .layers
                .iter()
                .map(|other| match other.lid == lid {
                    true => std::sync::Arc::new(Layer {
                        chained: false,
                        ..(**other).clone()
                    }),
                    false => other.clone(),
                })
                .collect(),
            redo: None,
            sidecar: object.sidecar,
        };
        let unused = super::change::names_of(object, after.unused_layers(&used));
        let (path, doomed) = (self.db.path().to_owned(), unused.clone());
        self.db.write(Commit::Full, move |connection| {
            settled(connection, &path, lid, &map)?;
            connection
                .execute(
                    "UPDATE layers SET chained = 0, parent = ?2, covered = ?3 WHERE lid = ?1",
                    (lid, base, covered as i64),
                )
                .at(&path, "write")?;
            doom(connection, &doomed).at(&path, "write")
        })?;
        self.remove_files(unused.into_iter().map(|(_, file)| file));
        Ok(())
    }

    /// Copies blocks below `end` for which `wanted` holds, as layer `from` reads them, into the file of `to`.
    fn copy_blocks(
        &self,
        bulk: &Bulk<'_>,
        from: i64,
        to: &Layer,
        wanted: impl Fn(u64) -> bool,
        end: u64,
    ) -> Result<()> {
        let file = self.files.open(&to.file)?;
        let mut buffer = vec![0u8; BLOCK_BYTES as usize];
        for block in (0..blocks_of(end)).filter(|block| wanted(*block)) {
            let start = block * BLOCK_BYTES;
            let part = &mut buffer[..(end - start).min(BLOCK_BYTES) as usize];
            bulk.read(from, start, part)?;
            // What the file held there counted for nothing and may be anything.
            let put = match part.iter().all(|byte| *byte == 0) {
                true => file.punch(start, part.len() as u64),
                false => file.write_at(part, start),
            };
            self.files.at(put, "write", &to.file)?;
        }
        Ok(())
    }

    /// Copies what `upper` has of its own into `lower`, which takes its place. Only under the exclusive hold.
    fn fold(&self, key: &ObjectKey, object: &Object, lower: &Layer, upper: &Layer) -> Result<()> {
        let bulk = Bulk::new(&self.files, object);
        let own = bulk.map_now(upper)?;
        let (from, to) = (self.files.open(&upper.file)?, self.files.open(&lower.file)?);
        let size = self.files.at(from.stat(), "read", &upper.file)?.size_bytes;
        let covered = upper.covered_bytes;
        // The part that `upper` does not read from below becomes exactly its own.
        self.files
            .at(to.truncate(covered.min(size)), "resize", &lower.file)?;
        self.files.at(to.truncate(size), "resize", &lower.file)?;
        self.copy_own(upper, lower, |block| own.has(block), covered.min(size))?;
        self.copy_behind(upper, lower, covered, size)?;
        self.files.at(to.sync_data(), "sync", &lower.file)?;
        let mut map = lower.map.clone();
        map.merge(&own);
        let lower_covered = lower.covered_bytes.min(covered);
        if object.is_live(upper.lid) && lower.parent.is_some() {
            self.files.make_sidecar(&lower.file, &map)?;
        }
        self.slots.bump(key.slot());
        let path = self.db.path().to_owned();
        let (oid, below, above, file) = (object.oid, lower.lid, upper.lid, upper.file.clone());
        let upper_name = upper.file.clone();
        self.db.write(Commit::Full, move |connection| {
            settled(connection, &path, below, &map)?;
            let steps = || -> rusqlite::Result<()> {
                connection.execute(
                    "UPDATE layers SET covered = ?2 WHERE lid = ?1",
                    (below, lower_covered as i64),
                )?;
                connection.execute(
                    "UPDATE bodies SET layer = ?2 WHERE oid = ?3 AND layer = ?1",
                    (above, below, oid),
                )?;
                connection.execute(
                    "UPDATE layers SET parent = ?2 WHERE oid = ?3 AND parent = ?1 AND lid <> ?2",
                    (above, below, oid),
                )?;
                doom(connection, &[(above, file)])
            };
            steps().at(&path, "write")
        })?;
        self.remove_files([upper_name]);
        Ok(())
    }

    fn copy_own(&self, from: &Layer, to: &Layer, wanted: impl Fn(u64) -> bool, end: u64) -> Result<()> {
        let (source, target) = (self.files.open(&from.file)?, self.files.open(&to.file)?);
        let mut buffer = vec![0u8; BLOCK_BYTES as usize];
        for block in (0..blocks_of(end)).filter(|block| wanted(*block)) {
            let start = block * BLOCK_BYTES;
            let part = &mut buffer[..(end - start).min(BLOCK_BYTES) as usize];
            part.fill(0);
            self.files.at(source.read_at(part, start), "read", &from.file)?;
            self.files.at(target.write_at(part, start), "write", &to.file)?;
        }
        Ok(())
    }

    fn copy_behind(&self, from: &Layer, to: &Layer, start: u64, end: u64) -> Result<()> {
        let (source, target) = (self.files.open(&from.file)?, self.files.open(&to.file)?);
        let mut buffer = vec![0u8; 1 << 18];
        let mut at = start;
        while at < end {
            let Some((data, stop)) = self.files.at(source.next_data(at), "read", &from.file)? else {
                break;
            };
            at = data.max(at);
            let stop = stop.min(end);
            while at < stop {
                let part_bytes = (stop - at).min(buffer.len() as u64) as usize;
                let count =
                    self.files
                        .at(source.read_at(&mut buffer[..part_bytes], at), "read", &from.file)?;
                if count == 0 {
                    return Ok(());
                }
                self.files
                    .at(target.write_at(&buffer[..count], at), "write", &to.file)?;
                at += count as u64;
            }
        }
        Ok(())
    }
}

/// A layer that is no body's, and the only one that reads through it.
fn mergeable(object: &Object) -> Option<(Layer, Layer)> {
    let is_body = |lid: i64| {
        let mut bodies = object.clones.iter().map(|clone| &clone.body).chain(&object.head);
        bodies.any(|body| body.layer == Some(lid))
    };
    object
        .layers
        .iter()
        .filter(|lower| !is_body(lower.lid))
        .find_map(|lower| {
            let mut above = object
                .layers
                .iter()
                .filter(|layer| layer.parent == Some(lower.lid));
            let upper = above.next().filter(|upper| upper.chained)?;
            above
                .next()
                .is_none()
                .then(|| ((**lower).clone(), (**upper).clone()))
        })
}
