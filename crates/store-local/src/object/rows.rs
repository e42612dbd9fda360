//! An object's rows as one immutable value, loaded whole.
//!
//! Keeps invariant: a loaded object is checked (chains end, every layer a body names exists); damage is an error that
//! names the object. Does not know how bytes are read or changed.

use std::sync::Arc;

use ferry_store::{Errno, Extent, Result, SnapId, StoreError, Timestamp};
use rusqlite::{Connection, OptionalExtension, Row};

use super::bitmap::Bitmap;
use super::extents;
use crate::db::SqlContext;
use crate::pool::key::ObjectKey;

/// Layers a chain may have before it counts as damage.
const CHAIN_DAMAGED: usize = 64;

/// An object: a head, clones, or both.
#[derive(Debug)]
pub(crate) struct Object {
    /// Row id.
    pub(crate) oid: i64,
    /// Newest context sequence that wrote to it.
    pub(crate) snap_seq: u64,
    /// The head.
    pub(crate) head: Option<Body>,
    /// Clones, ascending.
    pub(crate) clones: Vec<CloneBody>,
    /// Layers of all bodies.
    pub(crate) layers: Vec<Arc<Layer>>,
    /// Changes that are committed but not yet in the head's file.
    pub(crate) redo: Option<Vec<u8>>,
    /// Whether the live map of the head's layer is in a sidecar; else the map of its row is the live one.
    pub(crate) sidecar: bool,
}

/// The head or a clone.
#[derive(Debug, Clone)]
pub(crate) struct Body {
    /// Row id.
    pub(crate) bid: i64,
    /// Size in bytes; of a bulk head the file's length counts instead.
    pub(crate) size_bytes: u64,
    /// Version at the last change that went through the database.
    pub(crate) version: u64,
    /// Time of the last change that went through the database.
    pub(crate) mtime: Timestamp,
    /// Layer with the bytes; `None`: inline.
    pub(crate) layer: Option<i64>,
}

/// A clone.
#[derive(Debug, Clone)]
pub(crate) struct CloneBody {
    /// Context sequence under which it was made.
    pub(crate) id: SnapId,
    /// Snapshots it serves, ascending.
    pub(crate) snaps: Vec<SnapId>,
    /// Of an inline clone: what equals the next newer version.
    pub(crate) overlap: Vec<Extent>,
    /// The bytes.
    pub(crate) body: Body,
}

/// A data file of a bulk object.
#[derive(Debug, Clone)]
pub(crate) struct Layer {
    /// Row id, never reused.
    pub(crate) lid: i64,
    /// Name of the file, never reused.
    pub(crate) file: String,
    /// Layer it was made from.
    pub(crate) parent: Option<i64>,
    /// Whether blocks outside the map are read from the parent.
    pub(crate) chained: bool,
    /// Bytes from the start that may equal the parent; what lies behind is this layer's own.
    pub(crate) covered_bytes: u64,
    /// The row's map of the blocks that differ from the parent. Of the head's layer a sidecar, if it has one, is ahead.
    pub(crate) map: Bitmap,
    /// Not durable yet: after the end of this boot it counts as never made.
    pub(crate) provisional: bool,
}

impl Object {
    /// The layer `lid`.
    pub(crate) fn layer(&self, lid: i64) -> Option<&Arc<Layer>> {
        self.layers.iter().find(|layer| layer.lid == lid)
    }

    /// The head's layer, if it is bulk.
    pub(crate) fn head_layer(&self) -> Option<&Arc<Layer>> {
        self.layer(self.head.as_ref()?.layer?)
    }

    /// The layer that `layer` was made from, if it is still there.
    pub(crate) fn below(&self, layer: &Layer) -> Option<&Arc<Layer>> {
        self.layer(layer.parent?)
    }

    /// Whether `lid` is written to in place.
    pub(crate) fn is_live(&self, lid: i64) -> bool {
        self.head.as_ref().is_some_and(|head| head.layer == Some(lid))
    }

    /// How many layers a read of `lid` may touch.
    pub(crate) fn depth(&self, lid: i64) -> usize {
        let mut depth = 1;
        let mut layer = self.layer(lid);
        while let Some(parent) = layer.filter(|layer| layer.chained).and_then(|layer| layer.parent) {
            depth += 1;
            layer = self.layer(parent);
        }
        depth
    }

    /// What a read at `snap` sees.
    pub(crate) fn at(&self, snap: SnapId) -> Option<&Body> {
        if snap.is_head() || snap.0 > self.snap_seq {
            return self.head.as_ref();
        }
        let clone = self.clones.iter().find(|clone| clone.id >= snap)?;
        clone.snaps.contains(&snap).then_some(&clone.body)
    }

    /// Layers that nothing needs when the bodies have the layers in `used`: neither a body nor, through a chain, the
    /// layer of one.
    pub(crate) fn unused_layers(&self, used: &[i64]) -> Vec<i64> {
        let mut needed: Vec<i64> = Vec::new();
        for start in used {
            let mut next = Some(*start);
            while let Some(lid) = next {
                if needed.contains(&lid) {
                    break;
                }
                needed.push(lid);
                next = self
                    .layer(lid)
                    .filter(|layer| layer.chained)
                    .and_then(|layer| layer.parent);
            }
        }
        let all = self.layers.iter().map(|layer| layer.lid);
        all.filter(|lid| !needed.contains(lid)).collect()
    }
}

fn time_of(row: &Row<'_>, seconds: usize) -> rusqlite::Result<Timestamp> {
    Ok(Timestamp {
        seconds: u32::try_from(row.get::<_, i64>(seconds)?).unwrap_or(0),
        nanoseconds: u32::try_from(row.get::<_, i64>(seconds + 1)?).unwrap_or(0),
    })
}

struct BodyRow {
    body: Body,
    clone: Option<i64>,
    snaps: Vec<u8>,
    overlap: Vec<u8>,
}

/// Loads the object of `key`, if there is one.
pub(crate) fn load(
    connection: &Connection,
    place: &std::path::Path,
    key: &ObjectKey,
) -> Result<Option<Object>> {
    let sql = |result| SqlContext::at(result, place, "read");
    let found: rusqlite::Result<Option<(i64, i64)>> = connection
        .prepare_cached("SELECT oid, snap_seq FROM objects WHERE ns = ?1 AND name = ?2")
        .and_then(|mut statement| {
            statement
                .query_row((key.namespace(), key.name()), |row| {
                    Ok((row.get(0)?, row.get(1)?))
                })
                .optional()
        });
    let Some((oid, snap_seq)) = found.at(place, "read")? else {
        return Ok(None);
    };
    let bodies: Vec<BodyRow> = sql(connection
        .prepare_cached(
            "SELECT bid, size, version, mtime_s, mtime_ns, layer, clone, snaps, overlap FROM bodies WHERE oid = ?1",
        )
        .and_then(|mut statement| {
            let rows = statement.query_map([oid], |row| {
                Ok(BodyRow {
                    body: Body {
                        bid: row.get(0)?,
                        size_bytes: row.get::<_, i64>(1)? as u64,
                        version: row.get::<_, i64>(2)? as u64,
                        mtime: time_of(row, 3)?,
                        layer: row.get(5)?,
                    },
                    clone: row.get(6)?,
                    snaps: row.get(7)?,
                    overlap: row.get(8)?,
                })
            })?;
            rows.collect()
        }))?;
    let layers: Vec<Arc<Layer>> = if bodies.iter().all(|row| row.body.layer.is_none()) {
        Vec::new()
    } else {
        load_layers(connection, oid).at(place, "read")?
    };
    let redo = connection
        .prepare_cached("SELECT steps FROM redo WHERE oid = ?1")
        .and_then(|mut statement| statement.query_row([oid], |row| row.get(0)).optional())
        .at(place, "read")?;
    let damaged = |what: &str| StoreError::new(Errno::EIO, format!("{}: {key}: {what}", place.display()));
    let mut object = Object {
        oid,
        snap_seq: snap_seq as u64,
        head: None,
        clones: Vec::new(),
        layers,
        redo,
        sidecar: false,
    };
    for row in bodies {
        if row.body.size_bytes > crate::pool::schema::OBJECT_BYTES_MAX {
            return Err(damaged("a body's size is damaged"));
        }
        match row.clone {
            None if object.head.is_some() => return Err(damaged("two heads")),
            None => object.head = Some(row.body),
            Some(id) => object.clones.push(CloneBody {
                id: SnapId(id as u64),
                snaps: extents::decode_numbers(&row.snaps)
                    .ok_or_else(|| damaged("a clone's snapshots are damaged"))?
                    .into_iter()
                    .map(SnapId)
                    .collect(),
                overlap: extents::decode(&row.overlap)
                    .ok_or_else(|| damaged("a clone's overlap is damaged"))?,
                body: row.body,
            }),
        }
    }
    object.clones.sort_by_key(|clone| clone.id);
    check(&object).map_err(damaged)?;
    Ok(Some(object))
}

fn load_layers(connection: &Connection, oid: i64) -> rusqlite::Result<Vec<Arc<Layer>>> {
    let mut statement = connection.prepare_cached(
        "SELECT lid, file, parent, chained, covered, map, provisional IS NOT NULL FROM layers WHERE oid = ?1",
    )?;
    let rows = statement.query_map([oid], |row| {
        Ok(Arc::new(Layer {
            lid: row.get(0)?,
            file: row.get(1)?,
            parent: row.get(2)?,
            chained: row.get(3)?,
            covered_bytes: row.get::<_, i64>(4)? as u64,
            map: Bitmap::from_bytes(row.get(5)?),
            provisional: row.get(6)?,
        }))
    })?;
    rows.collect()
}

fn check(object: &Object) -> Result<(), &'static str> {
    let bodies = object
        .head
        .iter()
        .chain(object.clones.iter().map(|clone| &clone.body));
    for lid in bodies.filter_map(|body| body.layer) {
        let (mut next, mut steps) = (Some(lid), 0);
        while let Some(lid) = next {
            let layer = object.layer(lid).ok_or("a layer's row is missing")?;
            if steps > CHAIN_DAMAGED {
                return Err("the layers' chain has no end");
            }
            if layer.covered_bytes > crate::pool::schema::OBJECT_BYTES_MAX {
                return Err("a layer's covered length is damaged");
            }
            if layer.chained && layer.parent.is_none() {
                return Err("a layer lacks its parent");
            }
            if !is_file_name(&layer.file) {
                return Err("a layer's file name is damaged");
            }
            next = layer.parent.filter(|_| layer.chained);
            steps += 1;
        }
    }
    Ok(())
}

/// Whether `name` has the form of a data file's name: two numbers in hexadecimal. Names from the database lead to no
/// other file.
pub(crate) fn is_file_name(name: &str) -> bool {
    let hex = |part: &str| {
        !part.is_empty() && part.len() <= 16 && part.bytes().all(|byte| byte.is_ascii_hexdigit())
    };
    name.split_once('.')
        .is_some_and(|(gid, number)| hex(gid) && hex(number))
}
