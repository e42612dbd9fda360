//! One open pool: its database, its data files, its slots, and what this handle has not yet flushed.
//!
//! Everything here is synchronous and may block; [`crate::LocalStore`] takes the slot first and then runs it on a thread
//! where blocking is allowed, with the hold moved in, so a caller that goes away leaves no half-done operation.

pub(crate) mod change;
pub(crate) mod compact;
pub(crate) mod copy;
pub(crate) mod dirty;
pub(crate) mod files;
pub(crate) mod key;
pub(crate) mod label;
pub(crate) mod layers;
pub(crate) mod maintain;
pub(crate) mod now;
pub(crate) mod open;
pub(crate) mod redo;
pub(crate) mod schema;
pub(crate) mod slots;
pub(crate) mod snaps;
pub(crate) mod write;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use ferry_store::class::{CallContext, ClassRegistry};
use ferry_store::{Errno, PoolId, PoolUsage, ReadOp, ReadReply, Result, SnapId, SnapSet, Space, StoreError};
use parking_lot::Mutex;

use crate::db::{Commit, Db, SqlContext};
use crate::object::bitmap::Bitmap;
use crate::object::plan::Judge;
use crate::object::rows::{self, Layer, Object};
use crate::object::view::View;
use dirty::Dirty;
use files::Files;
use key::ObjectKey;
use slots::Slots;

/// What is cached per name: the object, or its absence.
pub(crate) type Cached = Option<Arc<Object>>;

/// Versions reserved at a time.
const VERSION_STEP: u64 = 1 << 20;
/// Objects whose files are looked at per database read.
const USAGE_BATCH: usize = 512;

/// An open pool.
#[derive(Debug)]
pub(crate) struct Pool {
    pub(crate) id: PoolId,
    pub(crate) db: Arc<Db>,
    pub(crate) files: Files,
    pub(crate) slots: Arc<Slots<Cached>>,
    pub(crate) registry: Arc<ClassRegistry>,
    pub(crate) gid: u64,
    pub(crate) dirty: Dirty,
    /// Whether the row that lets others collect files of this client is there.
    creator: Mutex<bool>,
    /// Whether a file of this client may have been left without a row.
    leaked: AtomicBool,
    /// Removed files whose `doomed` row is still there.
    removed: Mutex<Vec<String>>,
}

/// A place for messages.
#[derive(Debug)]
pub(crate) struct Place<'a> {
    pub(crate) pool: PoolId,
    pub(crate) key: &'a ObjectKey,
    pub(crate) action: &'static str,
}

impl std::fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} pool {} {}", self.action, self.pool, self.key)
    }
}

impl Pool {
    /// The object's rows, from the cache or the database. The outer `None`: something must be put right first, and that
    /// needs the exclusive hold. Only under a hold.
    pub(crate) fn load(&self, key: &ObjectKey, exclusive: bool) -> Result<Option<Cached>> {
        if let Some(cached) = self.slots.cached(key) {
            return Ok(Some(cached));
        }
        loop {
            let object = rows::load(&*self.db.reader()?, self.db.path(), key)?;
            let Some(mut object) = object else {
                self.slots.remember(key, None);
                return Ok(Some(None));
            };
            let live = object.head_layer().filter(|layer| layer.parent.is_some());
            if let Some(layer) = live.cloned() {
                object.sidecar = self.files.sidecar(&layer)?.is_some();
                // Without a sidecar of this boot no block was added in it. A chained layer then has what its row says;
                // in one that stands for itself any block may have been written before the power was lost, so all count
                // as different from the parent.
                if !object.sidecar && (!layer.chained || object.redo.is_some()) {
                    if !exclusive {
                        return Ok(None);
                    }
                    let map = match layer.chained {
                        true => layer.map.clone(),
                        false => Bitmap::from_bytes(vec![0xff; layer.map.bytes().len()]),
                    };
                    self.make_live_sidecar(key, &layer, &map)?;
                    object.sidecar = true;
                }
            }
            if object.redo.is_some() {
                if !exclusive {
                    return Ok(None);
                }
                self.slots.bump(key.slot());
                self.redo(key, &object)?;
                continue;
            }
            let object = Some(Arc::new(object));
            self.slots.remember(key, object.clone());
            return Ok(Some(object));
        }
    }

    /// Gives the head's layer a sidecar; what was cached of the object is void then. Only under the exclusive hold.
    pub(crate) fn make_live_sidecar(&self, key: &ObjectKey, layer: &Layer, map: &Bitmap) -> Result<()> {
        // First: whoever went on believing the row would miss what the sidecar gets.
        self.slots.bump(key.slot());
        self.files.make_sidecar(&layer.file, map)
    }

    /// As [`Pool::load`] under an exclusive hold.
    pub(crate) fn load_exclusive(&self, key: &ObjectKey) -> Result<Cached> {
        match self.load(key, true)? {
            Some(object) => Ok(object),
            None => Err(StoreError::new(
                Errno::EIO,
                format!("{key}: could not be put right"),
            )),
        }
    }

    /// Version of the head; 0 without one.
    pub(crate) fn version_of(&self, key: &ObjectKey, object: Option<&Object>) -> u64 {
        match object.and_then(|object| object.head.as_ref()) {
            Some(head) if head.layer.is_some() => head.version.max(self.slots.overwrite_version(key)),
            Some(head) => head.version,
            None => 0,
        }
    }

    /// A version greater than all before.
    pub(crate) fn next_version(&self) -> Result<u64> {
        let (version, exhausted) = self.slots.next_version();
        if exhausted {
            let path = self.db.path().to_owned();
            let reserved = self.db.write(Commit::Full, move |connection| {
                let stored = schema::meta_get(connection, &path, "version_high")?.unwrap_or(0) as u64;
                // Others may have reserved meanwhile; what counts is to be above.
                let high = match stored > version {
                    true => stored,
                    false => version + VERSION_STEP,
                };
                schema::meta_set(connection, &path, "version_high", high as i64)?;
                Ok(high)
            })?;
            self.slots.versions_reserved(reserved);
        }
        Ok(version)
    }

    /// Runs a read. `None`: to be run again under the exclusive hold.
    pub(crate) fn read(
        &self,
        key: &ObjectKey,
        snap: SnapId,
        op: &ReadOp,
        context: &CallContext,
        exclusive: bool,
    ) -> Result<Option<ReadReply>> {
        let place = Place {
            pool: self.id,
            key,
            action: "read from",
        };
        let Some(object) = self.load(key, exclusive)? else {
            return Ok(None);
        };
        let object = object.as_deref();
        let body = object.and_then(|object| object.at(snap));
        let is_head = object.is_some_and(|object| match (&object.head, body) {
            (Some(head), Some(body)) => head.bid == body.bid,
            _ => false,
        });
        let version = match body {
            _ if is_head => self.version_of(key, object),
            Some(body) => body.version,
            None => 0,
        };
        let view = View::new(&self.db, &self.files, object, body)?;
        let judge = Judge {
            registry: &self.registry,
            context,
            version,
            place: &place,
        };
        let results = judge.read(&view, op)?;
        Ok(Some(ReadReply { results, version }))
    }

    /// Clones and head with overlaps. `None`: to be run again under the exclusive hold.
    pub(crate) fn list_snaps(&self, key: &ObjectKey, exclusive: bool) -> Result<Option<SnapSet>> {
        match self.load(key, exclusive)? {
            None => Ok(None),
            Some(Some(object)) => snaps::list(&self.files, key, &object).map(Some),
            Some(None) => Err(StoreError::new(
                Errno::ENOENT,
                format!("list snapshots of pool {} {key}", self.id),
            )),
        }
    }

    /// Names of objects, ascending.
    pub(crate) fn list_objects(
        &self,
        namespace: &str,
        prefix: &str,
        start_after: &str,
        max: usize,
    ) -> Result<Vec<String>> {
        let reader = self.db.reader()?;
        let list = || -> rusqlite::Result<Vec<String>> {
            let mut statement = reader.prepare_cached(
                "SELECT name FROM objects WHERE ns = ?1 AND name > ?2 AND name >= ?3 ORDER BY name",
            )?;
            let mut rows = statement.query((namespace, start_after, prefix))?;
            let mut names = Vec::new();
            while names.len() < max
                && let Some(row) = rows.next()?
            {
                let name: String = row.get(0)?;
                if !name.starts_with(prefix) {
                    break;
                }
                names.push(name);
            }
            Ok(names)
        };
        list().at(self.db.path(), "list objects in")
    }

    /// Counts and room.
    pub(crate) fn usage(&self) -> Result<PoolUsage> {
        let count = |sql: &str| -> Result<i64> {
            let reader = self.db.reader()?;
            let count = reader.query_row(sql, [], |row| row.get(0));
            count.at(self.db.path(), "read")
        };
        let objects = count("SELECT count(*) FROM bodies WHERE clone IS NULL")?;
        let inline = count("SELECT coalesce(sum(length(data)), 0) FROM pages")?;
        let mut used_bytes = inline as u64;
        let mut last = 0i64;
        loop {
            let batch = self.layer_files_after(last)?;
            let Some((newest, _)) = batch.last() else { break };
            last = *newest;
            for (_, file) in &batch {
                // Not through the cache: a pass over all files would empty it.
                if let Ok(stat) = self
                    .files
                    .disk()
                    .open(&self.files.path_of(file))
                    .and_then(|file| file.stat())
                {
                    used_bytes += stat.allocated_bytes;
                }
            }
        }
        Ok(PoolUsage {
            objects: objects as u64,
            used_bytes,
            free_bytes: self.space().ok().map(|space| space.free_bytes),
        })
    }

    /// Room of the file system that the data files are on.
    pub(crate) fn space(&self) -> Result<Space> {
        let space = self.files.disk().space(self.files.data());
        space.map_err(|error| StoreError::io(&error, format!("look at {}", self.files.data().display())))
    }

    fn layer_files_after(&self, last: i64) -> Result<Vec<(i64, String)>> {
        let reader = self.db.reader()?;
        let rows = reader
            .prepare_cached("SELECT lid, file FROM layers WHERE lid > ?1 ORDER BY lid LIMIT ?2")
            .and_then(|mut statement| {
                let rows =
                    statement.query_map((last, USAGE_BATCH as i64), |row| Ok((row.get(0)?, row.get(1)?)))?;
                rows.collect()
            });
        rows.at(self.db.path(), "read")
    }
}
