//! Changes of inline bytes, omap and xattrs, inside a transaction.
//!
//! A page is at most [`PAGE_BYTES`] long and never holds bytes past the body's size; missing pages and missing ends of
//! pages read as zero.

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension};

use super::data::DataStep;
use crate::pool::schema::{PAGE_BYTES, PAGE_SHIFT};

type Sql<T = ()> = rusqlite::Result<T>;

fn execute(connection: &Connection, sql: &str, parameters: impl rusqlite::Params) -> Sql<usize> {
    connection.prepare_cached(sql)?.execute(parameters)
}

fn page_key(bid: i64, page: u64) -> i64 {
    bid << PAGE_SHIFT | page as i64
}

/// Applies a change to the bytes of body `bid`, which are `size_bytes` long; gives the new size.
pub(crate) fn apply(connection: &Connection, bid: i64, size_bytes: u64, step: &DataStep) -> Sql<u64> {
    match step {
        DataStep::Write { offset, data } => {
            write(connection, bid, *offset, data)?;
            Ok(size_bytes.max(offset + data.len() as u64))
        }
        DataStep::Zero { offset, length_bytes } => {
            clear(
                connection,
                bid,
                *offset,
                offset.saturating_add(*length_bytes).min(size_bytes),
            )?;
            Ok(size_bytes)
        }
        DataStep::Truncate { size_bytes: new } => {
            if *new < size_bytes {
                cut(connection, bid, *new)?;
            }
            Ok(*new)
        }
    }
}

fn page(connection: &Connection, key: i64) -> Sql<Option<Vec<u8>>> {
    connection
        .prepare_cached("SELECT data FROM pages WHERE at = ?1")?
        .query_row([key], |row| row.get(0))
        .optional()
}

fn put(connection: &Connection, key: i64, data: &[u8]) -> Sql {
    execute(
        connection,
        "INSERT OR REPLACE INTO pages(at, data) VALUES(?1, ?2)",
        (key, data),
    )
    .map(|_| ())
}

fn write(connection: &Connection, bid: i64, offset: u64, data: &[u8]) -> Sql {
    let mut done = 0;
    while done < data.len() {
        let at = offset + done as u64;
        let (number, inside) = (at / PAGE_BYTES, (at % PAGE_BYTES) as usize);
        let length = (data.len() - done).min(PAGE_BYTES as usize - inside);
        let part = &data[done..done + length];
        let key = page_key(bid, number);
        if length == PAGE_BYTES as usize {
            put(connection, key, part)?;
        } else {
            let mut bytes = page(connection, key)?.unwrap_or_default();
            if bytes.len() < inside + length {
                bytes.resize(inside + length, 0);
            }
            bytes[inside..inside + length].copy_from_slice(part);
            put(connection, key, &bytes)?;
        }
        done += length;
    }
    Ok(())
}

/// Zeroes `offset..end`.
fn clear(connection: &Connection, bid: i64, offset: u64, end: u64) -> Sql {
    if offset >= end {
        return Ok(());
    }
    let (first_whole, end_whole) = (offset.div_ceil(PAGE_BYTES), end / PAGE_BYTES);
    let zero_inside = |number: u64, from: u64, to: u64| -> Sql {
        let key = page_key(bid, number);
        if let Some(mut bytes) = page(connection, key)? {
            let to = (to as usize).min(bytes.len());
            if (from as usize) < to {
                bytes[from as usize..to].fill(0);
                put(connection, key, &bytes)?;
            }
        }
        Ok(())
    };
    if first_whole > end_whole {
        return zero_inside(end_whole, offset % PAGE_BYTES, end % PAGE_BYTES);
    }
    if !offset.is_multiple_of(PAGE_BYTES) {
        zero_inside(offset / PAGE_BYTES, offset % PAGE_BYTES, PAGE_BYTES)?;
    }
    if !end.is_multiple_of(PAGE_BYTES) {
        zero_inside(end_whole, 0, end % PAGE_BYTES)?;
    }
    if first_whole < end_whole {
        let range = (page_key(bid, first_whole), page_key(bid, end_whole - 1));
        execute(connection, "DELETE FROM pages WHERE at BETWEEN ?1 AND ?2", range)?;
    }
    Ok(())
}

/// Drops all bytes from `size_bytes` on.
fn cut(connection: &Connection, bid: i64, size_bytes: u64) -> Sql {
    let inside = (size_bytes % PAGE_BYTES) as usize;
    if inside > 0 {
        let key = page_key(bid, size_bytes / PAGE_BYTES);
        if let Some(mut bytes) = page(connection, key)?
            && bytes.len() > inside
        {
            bytes.truncate(inside);
            put(connection, key, &bytes)?;
        }
    }
    let from = bid << PAGE_SHIFT | size_bytes.div_ceil(PAGE_BYTES) as i64;
    let range = (from, (bid + 1) << PAGE_SHIFT);
    execute(connection, "DELETE FROM pages WHERE at >= ?1 AND at < ?2", range).map(|_| ())
}

/// Drops all bytes of a body.
pub(crate) fn drop_pages(connection: &Connection, bid: i64) -> Sql {
    cut(connection, bid, 0)
}

/// Drops omap and xattrs of a body.
pub(crate) fn drop_keys(connection: &Connection, bid: i64) -> Sql {
    execute(connection, "DELETE FROM omap WHERE bid = ?1", [bid])?;
    execute(connection, "DELETE FROM xattrs WHERE bid = ?1", [bid]).map(|_| ())
}

/// Copies omap and xattrs of a body to another that has none.
pub(crate) fn copy_keys(connection: &Connection, from: i64, to: i64) -> Sql {
    let omap = "INSERT INTO omap(bid, key, value) SELECT ?2, key, value FROM omap WHERE bid = ?1";
    execute(connection, omap, (from, to))?;
    let xattrs = "INSERT INTO xattrs(bid, name, value) SELECT ?2, name, value FROM xattrs WHERE bid = ?1";
    execute(connection, xattrs, (from, to)).map(|_| ())
}

/// Copies the pages of a body to another that has none.
pub(crate) fn copy_pages(connection: &Connection, from: i64, to: i64) -> Sql {
    let sql = "INSERT INTO pages(at, data) SELECT at - ?1 + ?2, data FROM pages WHERE at >= ?1 AND at < ?3";
    let keys = (from << PAGE_SHIFT, to << PAGE_SHIFT, (from + 1) << PAGE_SHIFT);
    execute(connection, sql, keys).map(|_| ())
}

/// Sets omap pairs.
pub(crate) fn omap_set<'a>(
    connection: &Connection,
    bid: i64,
    pairs: impl IntoIterator<Item = (&'a Bytes, &'a Bytes)>,
) -> Sql {
    let mut statement =
        connection.prepare_cached("INSERT OR REPLACE INTO omap(bid, key, value) VALUES(?1, ?2, ?3)")?;
    for (key, value) in pairs {
        statement.execute((bid, &key[..], &value[..]))?;
    }
    Ok(())
}

/// Removes omap keys.
pub(crate) fn omap_remove(connection: &Connection, bid: i64, keys: &[Bytes]) -> Sql {
    let mut statement = connection.prepare_cached("DELETE FROM omap WHERE bid = ?1 AND key = ?2")?;
    for key in keys {
        statement.execute((bid, &key[..]))?;
    }
    Ok(())
}

/// Sets or, with `None`, removes an xattr.
pub(crate) fn xattr_put(connection: &Connection, bid: i64, name: &str, value: Option<&Bytes>) -> Sql {
    match value {
        Some(value) => {
            let sql = "INSERT OR REPLACE INTO xattrs(bid, name, value) VALUES(?1, ?2, ?3)";
            execute(connection, sql, (bid, name, &value[..])).map(|_| ())
        }
        None => execute(
            connection,
            "DELETE FROM xattrs WHERE bid = ?1 AND name = ?2",
            (bid, name),
        )
        .map(|_| ()),
    }
}
