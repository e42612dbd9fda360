//! Making layers and making them durable.
//!
//! A new layer is *provisional* when its operation is buffered: neither its file nor its name is synced before the row
//! is committed, and after a power loss it counts as never made (docs/format-local.md, "Provisional layers"). What lies
//! below it may be unsynced too, below any other layer nothing is.

use std::cell::RefCell;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ferry_store::{Errno, Result, StoreError};
use rusqlite::Connection;

use super::Pool;
use super::key::ObjectKey;
use crate::db::{Commit, SqlContext};
use crate::disk::DiskFile;
use crate::object::bitmap::{Bitmap, blocks_of};
use crate::object::data::{Bulk, DataStep};
use crate::object::rows::{Body, Layer, Object};

/// Id of a layer that has no row yet.
pub(crate) const UNBORN: i64 = -1;

/// A layer whose row is still to be written.
#[derive(Debug)]
pub(crate) struct NewLayer {
    /// What the row will say; `lid` is [`UNBORN`].
    pub(crate) layer: Layer,
    /// Its length.
    pub(crate) size_bytes: u64,
}

/// Writes that a layer is durable with this map.
pub(crate) fn settled(connection: &Connection, path: &Path, lid: i64, map: &Bitmap) -> Result<()> {
    connection
        .prepare_cached("UPDATE layers SET map = ?2, provisional = NULL WHERE lid = ?1")
        .and_then(|mut statement| statement.execute((lid, map.bytes())))
        .at(path, "write")
        .map(|_| ())
}

impl Pool {
    /// Makes content and, of a provisional layer, name of a layer durable, and first what a provisional layer was made
    /// from. A failure poisons the object for this handle; `EIO` if an earlier one has: the bytes that were lost then are
    /// not on the medium, whatever another sync says.
    pub(crate) fn sync_layer(&self, key: &ObjectKey, object: &Object, layer: &Layer) -> Result<()> {
        if self.dirty.is_poisoned(key.namespace(), key.name()) {
            return Err(StoreError::new(
                Errno::EIO,
                format!("sync of object '{}': an earlier sync failed", key.name()),
            ));
        }
        self.sync_written(key, object, layer)
    }

    /// The same for one who has just written anew, from a record, all that an earlier failed sync may have lost of its
    /// writes.
    pub(crate) fn sync_written(&self, key: &ObjectKey, object: &Object, layer: &Layer) -> Result<()> {
        let sync = || -> Result<()> {
            let below = object.below(layer).filter(|_| layer.provisional);
            for name in below.map(|below| &below.file).into_iter().chain([&layer.file]) {
                let file = self.files.open(name)?;
                self.files.at(file.sync_data(), "sync", name)?;
            }
            match layer.provisional {
                true => self.files.sync_name(&layer.file),
                false => Ok(()),
            }
        };
        sync().inspect_err(|_| self.dirty.poison(key.namespace(), key.name()))
    }

    /// Leaves word, once, that this client makes files: whoever notices its death looks for those without rows.
    pub(super) fn register_creator(&self) -> Result<()> {
        let mut registered = self.creator.lock();
        if !*registered {
            let (gid, path) = (self.gid, self.db.path().to_owned());
            self.db.write(Commit::Full, move |connection| {
                connection
                    .execute("INSERT OR IGNORE INTO creators(gid) VALUES(?1)", [gid as i64])
                    .at(&path, "write")
            })?;
            *registered = true;
        }
        Ok(())
    }

    /// Says that all files of this client have rows or are gone, if that is so.
    pub(crate) fn unregister_creator(&self) -> Result<()> {
        let mut registered = self.creator.lock();
        if *registered && !self.leaked.load(Ordering::Relaxed) {
            let (gid, path) = (self.gid, self.db.path().to_owned());
            self.db.write(Commit::Full, move |connection| {
                connection
                    .execute("DELETE FROM creators WHERE gid = ?1", [gid as i64])
                    .at(&path, "write")
            })?;
            *registered = false;
        }
        Ok(())
    }

    /// A layer of its own holding what `steps` make of nothing.
    pub(crate) fn new_base(&self, steps: &[DataStep], durable: bool) -> Result<NewLayer> {
        self.new_layer(durable, |layer, _| Ok(layer), steps, None)
    }

    /// A layer on top of `parent` (of `object`, durable, `size_bytes` of it), changed by `steps`.
    pub(crate) fn new_child(
        &self,
        object: &Object,
        parent: &Layer,
        size_bytes: u64,
        steps: &[DataStep],
        durable: bool,
    ) -> Result<NewLayer> {
        let begin = |layer: Layer, file: &Arc<dyn DiskFile>| {
            self.files.at(file.truncate(size_bytes), "resize", &layer.file)?;
            Ok(Layer {
                parent: Some(parent.lid),
                chained: true,
                covered_bytes: size_bytes,
                map: Bitmap::empty(blocks_of(size_bytes)),
                ..layer
            })
        };
        self.new_layer(durable, begin, steps, Some((object, parent)))
    }

    fn new_layer(
        &self,
        durable: bool,
        begin: impl FnOnce(Layer, &Arc<dyn DiskFile>) -> Result<Layer>,
        steps: &[DataStep],
        below: Option<(&Object, &Layer)>,
    ) -> Result<NewLayer> {
        self.register_creator()?;
        let (name, file) = self.files.create()?;
        let made = (|| {
            let layer = Layer {
                lid: UNBORN,
                file: name.clone(),
                parent: None,
                chained: false,
                covered_bytes: 0,
                map: Bitmap::default(),
                provisional: !durable,
            };
            let layer = self.fill(begin(layer, &file)?, steps, below)?;
            if durable {
                self.files.at(file.sync_data(), "sync", &name)?;
                self.files.sync_name(&name)?;
            }
            let size_bytes = self.files.at(file.stat(), "read", &name)?.size_bytes;
            Ok(NewLayer { layer, size_bytes })
        })();
        made.inspect_err(|_: &StoreError| self.discard(&name))
    }

    /// Removes a file that will get no row.
    pub(crate) fn discard(&self, name: &str) {
        if let Err(error) = self.files.remove(name) {
            self.leaked.store(true, Ordering::Relaxed);
            tracing::warn!(%error, "a file without a row stays until this client has ended");
        }
    }

    /// An object in which `layer` is the head's.
    fn scene(&self, layer: &Layer, below: Option<(&Object, &Layer)>) -> Object {
        let mut layers = vec![Arc::new(layer.clone())];
        if let Some((object, parent)) = below {
            layers.push(Arc::new(parent.clone()));
            layers.extend(
                object
                    .layers
                    .iter()
                    .filter(|other| other.lid != parent.lid)
                    .cloned(),
            );
        }
        Object {
            oid: 0,
            snap_seq: 0,
            head: Some(Body {
                bid: 0,
                size_bytes: 0,
                version: 0,
                mtime: Default::default(),
                layer: Some(UNBORN),
            }),
            clones: Vec::new(),
            layers,
            redo: None,
            sidecar: false,
        }
    }

    fn fill(&self, mut layer: Layer, steps: &[DataStep], below: Option<(&Object, &Layer)>) -> Result<Layer> {
        let map = RefCell::new(std::mem::take(&mut layer.map));
        for step in steps {
            if let DataStep::Truncate { size_bytes } = step {
                layer.covered_bytes = layer.covered_bytes.min(*size_bytes);
            }
            let scene = self.scene(&layer, below);
            let bulk = Bulk::unborn(&self.files, &scene, &map);
            bulk.reserve(&layer, std::slice::from_ref(step), false)?;
            bulk.apply(&layer, step)?;
        }
        layer.map = map.into_inner();
        Ok(layer)
    }

    /// The head's layer as it is now, synced: what a clone may rest on. Only under the exclusive hold.
    pub(crate) fn settle(&self, key: &ObjectKey, object: &Object, layer: &Layer) -> Result<Layer> {
        let map = Bulk::new(&self.files, object).map_now(layer)?;
        self.sync_layer(key, object, layer)?;
        Ok(Layer {
            map,
            provisional: false,
            ..layer.clone()
        })
    }

    /// The head's layer as it is now, if its row already says all of it: then a clone may rest on it unsynced, below a
    /// provisional layer (docs/format-local.md, 4.3). Only under the exclusive hold.
    pub(crate) fn in_row(&self, object: &Object, layer: &Layer) -> Result<Option<Layer>> {
        let map = Bulk::new(&self.files, object).map_now(layer)?;
        // What is cached may lag behind flushes.
        if layer.provisional || map != layer.map {
            let stored: (Vec<u8>, bool) = self
                .db
                .reader()?
                .prepare_cached("SELECT map, provisional IS NOT NULL FROM layers WHERE lid = ?1")
                .and_then(|mut statement| {
                    statement.query_row([layer.lid], |row| Ok((row.get(0)?, row.get(1)?)))
                })
                .at(self.db.path(), "read")?;
            if stored.1 || Bitmap::from_bytes(stored.0) != map {
                return Ok(None);
            }
        }
        Ok(Some(Layer {
            map,
            provisional: false,
            ..layer.clone()
        }))
    }

    /// Syncs what the head's layer, provisional and about to go, was made from: nobody else may have.
    pub(crate) fn settle_below(&self, key: &ObjectKey, object: &Object, layer: &Layer) -> Result<()> {
        match object.below(layer).filter(|_| layer.provisional) {
            Some(below) => self.sync_layer(key, object, below),
            None => Ok(()),
        }
    }

    /// Inserts the row of a new layer; gives its id.
    pub(crate) fn insert_layer(
        connection: &Connection,
        path: &Path,
        oid: i64,
        layer: &Layer,
        boot: &[u8],
    ) -> Result<i64> {
        let inserted = connection
            .prepare_cached(
                "INSERT INTO layers(oid, file, parent, chained, covered, map, provisional)
                 VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            )
            .and_then(|mut statement| {
                statement.insert((
                    oid,
                    &layer.file,
                    layer.parent,
                    layer.chained,
                    layer.covered_bytes as i64,
                    layer.map.bytes(),
                    layer.provisional.then_some(boot),
                ))
            });
        match inserted.at(path, "write")? {
            lid if lid > 0 => Ok(lid),
            _ => Err(StoreError::new(
                Errno::EIO,
                format!("{}: layer ids are used up", path.display()),
            )),
        }
    }
}
