//! Tables of `pool.db`.
//!
//! A *body* is what an object is made of at one moment: the head or one clone. Its bytes are pages in the table of that
//! name (inline) or a layer (bulk). docs/format-local.md tells what every column means.

use std::path::Path;

use ferry_store::{Errno, Result, StoreError};
use rusqlite::{Connection, OptionalExtension};

use crate::db::page::Kept;
use crate::db::{Db, SqlContext};

/// Format of pools that are made now: their database's pages have checksums, and it says whose it is.
pub(crate) const FORMAT: i64 = 3;
/// Format without these; format 1 becomes it when a pool is opened (docs/format-local.md, 11).
const FORMAT_PLAIN: i64 = 2;
/// Bytes of an inline page.
pub(crate) const PAGE_BYTES: u64 = 4096;
/// Page keys are `bid << PAGE_SHIFT | page`; the shift covers the largest object.
pub(crate) const PAGE_SHIFT: u32 = 18;
/// Largest object.
pub(crate) const OBJECT_BYTES_MAX: u64 = PAGE_BYTES << PAGE_SHIFT;

const TABLES: &str = "
CREATE TABLE meta(key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE objects(
  oid INTEGER PRIMARY KEY AUTOINCREMENT, ns TEXT NOT NULL, name TEXT NOT NULL, snap_seq INTEGER NOT NULL,
  UNIQUE(ns, name));
CREATE TABLE bodies(
  bid INTEGER PRIMARY KEY AUTOINCREMENT, oid INTEGER NOT NULL, clone INTEGER, snaps BLOB NOT NULL,
  size INTEGER NOT NULL, version INTEGER NOT NULL, mtime_s INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
  layer INTEGER, overlap BLOB NOT NULL);
CREATE INDEX bodies_of ON bodies(oid);
CREATE TABLE pages(at INTEGER PRIMARY KEY, data BLOB NOT NULL);
CREATE TABLE omap(bid INTEGER NOT NULL, key BLOB NOT NULL, value BLOB NOT NULL, PRIMARY KEY(bid, key)) WITHOUT ROWID;
CREATE TABLE xattrs(bid INTEGER NOT NULL, name TEXT NOT NULL, value BLOB NOT NULL, PRIMARY KEY(bid, name))
  WITHOUT ROWID;
CREATE TABLE clone_snaps(snap INTEGER NOT NULL, bid INTEGER NOT NULL, PRIMARY KEY(snap, bid)) WITHOUT ROWID;
CREATE TABLE layers(
  lid INTEGER PRIMARY KEY AUTOINCREMENT, oid INTEGER NOT NULL, file TEXT NOT NULL, parent INTEGER,
  chained INTEGER NOT NULL, covered INTEGER NOT NULL, map BLOB NOT NULL, provisional BLOB);
CREATE INDEX layers_of ON layers(oid);
CREATE UNIQUE INDEX layers_file ON layers(file);
CREATE INDEX layers_provisional ON layers(provisional) WHERE provisional IS NOT NULL;
CREATE TABLE redo(oid INTEGER PRIMARY KEY, steps BLOB NOT NULL);
CREATE TABLE doomed(file TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE creators(gid INTEGER PRIMARY KEY);
CREATE TABLE removed_snaps(snap INTEGER PRIMARY KEY, done INTEGER NOT NULL);
";

/// The pool that a database is of.
#[derive(Debug, Clone)]
pub(crate) struct Owner {
    /// The store's uuid.
    pub(crate) store: String,
    /// The pool's id.
    pub(crate) pool: i64,
}

/// Makes the tables, or refuses a database that this program does not understand, or that is another pool's.
pub(crate) fn prepare(connection: &Connection, path: &Path, owner: &Owner) -> Result<()> {
    match has_tables(connection, path)? {
        true => check(connection, path, owner),
        false => make(connection, path, owner),
    }
}

fn has_tables(connection: &Connection, path: &Path) -> Result<bool> {
    let tables: i64 = connection
        .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
        .at(path, "read")?;
    Ok(tables > 0)
}

fn make(connection: &Connection, path: &Path, owner: &Owner) -> Result<()> {
    connection.execute_batch(TABLES).at(path, "make tables in")?;
    connection
        .execute("INSERT INTO meta(key, value) VALUES('store', ?1)", [&owner.store])
        .at(path, "write")?;
    meta_set(connection, path, "pool", owner.pool)?;
    meta_set(connection, path, "format", FORMAT)
}

/// Refuses a database that this program does not understand, that is another pool's, or that has lost everything.
pub(crate) fn check(connection: &Connection, path: &Path, owner: &Owner) -> Result<()> {
    if !has_tables(connection, path)? {
        return Err(StoreError::new(
            Errno::EIO,
            format!("{} is empty, and was not: it is damaged", path.display()),
        ));
    }
    let found = meta_get(connection, path, "format")?;
    check_format(found, FORMAT, path)?;
    match found {
        Some(FORMAT) => {
            check_pages(path)?;
            check_owner(connection, path, owner)
        }
        Some(FORMAT_PLAIN) => Ok(()),
        _ => meta_set(connection, path, "format", FORMAT_PLAIN),
    }
}

/// Refuses a database that should have checksums and says that it has none: else its pages would go unchecked.
pub(crate) fn check_pages(path: &Path) -> Result<()> {
    match Db::kept(path)? {
        Kept::Checksums => Ok(()),
        _ => Err(StoreError::new(
            Errno::EIO,
            format!("{}: its header is damaged: it names no checksums", path.display()),
        )),
    }
}

fn check_owner(connection: &Connection, path: &Path, owner: &Owner) -> Result<()> {
    let store: Option<String> = connection
        .query_row("SELECT value FROM meta WHERE key = 'store'", [], |row| row.get(0))
        .optional()
        .at(path, "read")?;
    let pool = meta_get(connection, path, "pool")?;
    if store.as_deref() == Some(&owner.store) && pool == Some(owner.pool) {
        return Ok(());
    }
    let whose = |store: Option<&str>, pool: Option<i64>| {
        let pool = pool.map_or("?".to_owned(), |pool| pool.to_string());
        format!("pool {pool} of store {}", store.unwrap_or("?"))
    };
    Err(StoreError::new(
        Errno::EIO,
        format!(
            "{} is the database of {}, and should be that of {}: put the right one back",
            path.display(),
            whose(store.as_deref(), pool),
            whose(Some(&owner.store), Some(owner.pool)),
        ),
    ))
}

/// Refuses formats newer than `known`, and files without one.
pub(crate) fn check_format(found: Option<i64>, known: i64, path: &Path) -> Result<()> {
    match found {
        Some(format) if (1..=known).contains(&format) => Ok(()),
        Some(format) if format > known => Err(StoreError::new(
            Errno::EOPNOTSUPP,
            format!(
                "{} has format {format}, this program knows up to {known}: use a newer version of it",
                path.display()
            ),
        )),
        _ => Err(StoreError::new(
            Errno::EIO,
            format!(
                "{} names no format: it is damaged or not of a Ferry store",
                path.display()
            ),
        )),
    }
}

/// A number of the table `meta`.
pub(crate) fn meta_get(connection: &Connection, path: &Path, key: &str) -> Result<Option<i64>> {
    connection
        .prepare_cached("SELECT value FROM meta WHERE key = ?1")
        .and_then(|mut statement| statement.query_row([key], |row| row.get(0)).optional())
        .at(path, "read")
}

/// Sets a number of the table `meta`.
pub(crate) fn meta_set(connection: &Connection, path: &Path, key: &str, value: i64) -> Result<()> {
    connection
        .prepare_cached(
            "INSERT INTO meta(key, value) VALUES(?1, ?2) ON CONFLICT(key) DO UPDATE SET value = ?2",
        )
        .and_then(|mut statement| statement.execute((key, value)))
        .at(path, "write")
        .map(|_| ())
}
