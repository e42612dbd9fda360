//! Doors for tests that hand any bytes to what this crate reads back: values of rows, records, frames of watchers.
//!
//! Promise: each function takes any bytes and returns; it panics only where a reader breaks a promise that the rest of
//! the crate relies on. Whole damaged directories are opened through [`LocalStore`](crate::LocalStore).

use std::cell::RefCell;
use std::path::Path;
use std::sync::Arc;

use ferry_store::SnapId;
use rusqlite::Connection;
use rusqlite::types::Value;

use crate::object::data::DataStep;
use crate::object::{extents, rows};
use crate::pool::key::ObjectKey;
use crate::pool::schema::OBJECT_BYTES_MAX;
use crate::pool::{redo, schema};
use crate::watch::frame;

/// Values of columns: overlaps, lists of snapshots, recorded changes.
///
/// # Panics
/// When what was decoded does not encode to the same bytes, or a recorded change leaves the largest object.
pub fn columns(data: &[u8]) {
    if let Some(set) = extents::decode(data) {
        assert_eq!(extents::encode(&set), data);
        assert!(extents::intersect(&set, &extents::whole(OBJECT_BYTES_MAX)).len() <= set.len());
    }
    if let Some(numbers) = extents::decode_numbers(data) {
        assert_eq!(numbers.len() * 8, data.len());
    }
    if let Some(steps) = redo::decode(data) {
        for step in &steps {
            let end = match step {
                DataStep::Write { offset, data } => offset + data.len() as u64,
                DataStep::Zero { offset, length_bytes } => offset + length_bytes,
                DataStep::Truncate { size_bytes } => *size_bytes,
            };
            assert!(end <= OBJECT_BYTES_MAX, "{step:?}");
        }
        let again = redo::decode(&redo::encode(&steps));
        assert_eq!(again.as_ref(), Some(&steps));
    }
    if let Ok(text) = std::str::from_utf8(data) {
        let leads_elsewhere = text.contains(['/', '\0']) || text.starts_with("..");
        assert!(!(rows::is_file_name(text) && leads_elsewhere), "{text:?}");
    }
}

/// What comes in on the socket of a client that watches, and what its answers look like to whoever notified it. Frames
/// follow each other until one is refused.
pub async fn watch_frames(data: &[u8]) {
    let mut requests = data;
    while frame::read_request(&mut requests).await.is_ok() {}
    let mut answers = data;
    while frame::read_answer(&mut answers).await.is_ok() {}
}

thread_local! {
    /// A database in memory with the tables of a pool; rows are taken back after each use.
    static POOL: RefCell<Option<Connection>> = const { RefCell::new(None) };
}

const OBJECT: &str = "INSERT INTO objects VALUES(1, '', 'o', ?1)";
const BODY: &str = "INSERT INTO bodies(oid, clone, snaps, size, version, mtime_s, mtime_ns, layer, overlap) \
     VALUES(1, ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";
const LAYER: &str = "INSERT INTO layers(lid, oid, file, parent, chained, covered, map, provisional) \
     VALUES(?1, 1, ?2, ?3, ?4, ?5, ?6, ?7)";
const REDO: &str = "INSERT INTO redo VALUES(1, ?1)";

/// The rows of one object, with values of any type: it loads and can be looked at, or it is damaged.
///
/// # Panics
/// When an object counts as sound whose chains of layers do not end or leave its rows.
pub fn rows(data: &[u8]) {
    POOL.with_borrow_mut(|pool| {
        let path = Path::new("pool.db");
        if pool.is_none() {
            let connection = Connection::open_in_memory().ok();
            let owner = schema::Owner {
                store: String::new(),
                pool: 1,
            };
            *pool = connection.filter(|connection| schema::prepare(connection, path, &owner).is_ok());
        }
        let Some(connection) = pool else { return };
        if connection.execute_batch("BEGIN").is_ok() {
            insert(connection, Values(data));
            look(connection, path);
            // What fails here fails the next BEGIN, too.
            let _ = connection.execute_batch("ROLLBACK");
        }
    });
}

fn insert(connection: &Connection, mut values: Values<'_>) {
    let mut put = |sql: &str, count: usize| {
        let parameters: Vec<Value> = (0..count).map(|_| values.next()).collect();
        // A table may refuse a value, such as NULL; the object then lacks that row.
        let _ = connection
            .prepare_cached(sql)
            .and_then(|mut statement| statement.execute(rusqlite::params_from_iter(parameters)));
        !values.0.is_empty()
    };
    if !put(OBJECT, 1) {
        return;
    }
    for _ in 0..16 {
        if !put(BODY, 8) || !put(LAYER, 7) {
            return;
        }
    }
    put(REDO, 1);
}

fn look(connection: &Connection, path: &Path) {
    let key = ObjectKey::new(&Arc::from(""), "o");
    let Ok(Some(object)) = rows::load(connection, path, &key) else {
        return;
    };
    let bodies = object
        .head
        .iter()
        .chain(object.clones.iter().map(|clone| &clone.body));
    let used: Vec<i64> = bodies.filter_map(|body| body.layer).collect();
    for lid in &used {
        assert!(object.layer(*lid).is_some() && object.depth(*lid) <= 70);
    }
    let unused = object.unused_layers(&used);
    assert!(used.iter().all(|lid| !unused.contains(lid)));
    for snap in [1, 2, u64::MAX / 2, object.snap_seq] {
        let _ = object.at(SnapId(snap));
    }
    if let Some(layer) = object.head_layer() {
        let _ = (
            object.below(layer),
            object.is_live(layer.lid),
            layer.map.count(1 << 10),
        );
    }
}

/// Values of columns from bytes: a kind, then what it needs.
struct Values<'a>(&'a [u8]);

impl Values<'_> {
    fn next(&mut self) -> Value {
        let Some((kind, rest)) = self.0.split_first() else {
            return Value::Null;
        };
        let (value, used) = match kind % 6 {
            0 => (Value::Null, 0),
            1 => (Value::Integer(i64::from(rest.first().copied().unwrap_or(0))), 1),
            2 => {
                let number = rest.first_chunk::<8>().copied().unwrap_or_default();
                (Value::Integer(i64::from_le_bytes(number)), 8)
            }
            3 => (
                Value::Text(format!("{:x}.{:x}", kind / 6, rest.first().copied().unwrap_or(0))),
                1,
            ),
            kind => {
                let length = rest.first().map_or(0, |length| usize::from(*length));
                let bytes = rest.get(1..).unwrap_or_default();
                let bytes = &bytes[..length.min(bytes.len())];
                let value = match kind {
                    4 => Value::Blob(bytes.to_vec()),
                    _ => Value::Text(String::from_utf8_lossy(bytes).into_owned()),
                };
                (value, 1 + length)
            }
        };
        self.0 = rest.get(used..).unwrap_or_default();
        value
    }
}
