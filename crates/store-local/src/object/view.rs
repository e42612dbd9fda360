//! One body as readers and class methods see it: bytes, omap and xattrs, inline or bulk.
//!
//! Takes a read connection only when the database is needed, so reads of cached bulk objects touch none.

use std::cell::OnceCell;
use std::collections::BTreeMap;

use bytes::Bytes;
use ferry_store::{Errno, Extent, Result, StoreError, Timestamp};
use rusqlite::{Connection, OptionalExtension};

use super::data::Bulk;
use super::extents;
use super::rows::{Body, Object};
use crate::db::{Db, Reader, SqlContext};
use crate::pool::files::Files;
use crate::pool::schema::{PAGE_BYTES, PAGE_SHIFT};

/// Most bytes of omap pairs in one listing; longer listings say that more follow.
const LISTING_BYTES_MAX: usize = 16 << 20;

/// A body, or the absence of one.
#[derive(Debug)]
pub(crate) struct View<'a> {
    db: &'a Db,
    files: &'a Files,
    object: Option<&'a Object>,
    body: Option<&'a Body>,
    size_bytes: u64,
    reader: OnceCell<Reader<'a>>,
}

impl<'a> View<'a> {
    /// A view of `body` of `object`.
    pub(crate) fn new(
        db: &'a Db,
        files: &'a Files,
        object: Option<&'a Object>,
        body: Option<&'a Body>,
    ) -> Result<Self> {
        let size_bytes = match (object, body) {
            (Some(object), Some(body)) => match body.layer {
                Some(lid) => Bulk::new(files, object).size(body, lid)?,
                None => body.size_bytes,
            },
            _ => 0,
        };
        Ok(Self {
            db,
            files,
            object,
            body,
            size_bytes,
            reader: OnceCell::new(),
        })
    }

    /// Whether there is a body.
    pub(crate) fn exists(&self) -> bool {
        self.body.is_some()
    }

    /// Size in bytes; 0 without a body.
    pub(crate) fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// The object.
    pub(crate) fn object(&self) -> Option<&'a Object> {
        self.object
    }

    fn connection(&self) -> Result<&Connection> {
        if self.reader.get().is_none() {
            let reader = self.db.reader()?;
            let _ = self.reader.set(reader);
        }
        match self.reader.get() {
            Some(reader) => Ok(reader),
            None => Err(StoreError::new(Errno::EIO, "no read connection")),
        }
    }

    /// The bulk data, if the body has such.
    fn bulk(&self) -> Option<(Bulk<'a>, i64)> {
        let lid = self.body?.layer?;
        Some((Bulk::new(self.files, self.object?), lid))
    }

    /// Time of the last change.
    pub(crate) fn mtime(&self) -> Result<Timestamp> {
        let (Some(object), Some(body)) = (self.object, self.body) else {
            return Ok(Timestamp::default());
        };
        match object.head_layer() {
            Some(layer) if body.layer == Some(layer.lid) => {
                let stat = self.files.open(&layer.file)?.stat();
                Ok(self.files.at(stat, "read", &layer.file)?.mtime.max(body.mtime))
            }
            _ => Ok(body.mtime),
        }
    }

    /// Bytes; short at the end.
    pub(crate) fn read(&self, offset: u64, length_bytes: u64) -> Result<Bytes> {
        let end = offset.saturating_add(length_bytes).min(self.size_bytes);
        if offset >= end {
            return Ok(Bytes::new());
        }
        let mut buffer = vec![0; (end - offset) as usize];
        match self.bulk() {
            Some((bulk, lid)) => bulk.read(lid, offset, &mut buffer)?,
            None => self.pages(offset, end, |page, data| {
                let (from, to) = overlap_of(page, data.len(), offset, end);
                if from < to {
                    let start = page * PAGE_BYTES;
                    buffer[(from - offset) as usize..(to - offset) as usize]
                        .copy_from_slice(&data[(from - start) as usize..(to - start) as usize]);
                }
            })?,
        }
        Ok(buffer.into())
    }

    /// Runs that are allocated, with their bytes.
    pub(crate) fn sparse_read(&self, offset: u64, length_bytes: u64) -> Result<Vec<(u64, Bytes)>> {
        let end = offset.saturating_add(length_bytes).min(self.size_bytes);
        if offset >= end {
            return Ok(Vec::new());
        }
        let mut runs = Vec::new();
        match self.bulk() {
            Some((bulk, lid)) => bulk.runs(lid, offset, end, &mut runs)?,
            None => self.pages(offset, end, |page, _| {
                let (from, to) = overlap_of(page, PAGE_BYTES as usize, offset, end);
                extents::push(&mut runs, Extent::new(from, to.saturating_sub(from)));
            })?,
        }
        let read = |run: Extent| Ok((run.offset, self.read(run.offset, run.length_bytes)?));
        runs.into_iter().map(read).collect()
    }

    /// Hands the inline pages between `offset` and `end` to `visit`, ascending.
    fn pages(&self, offset: u64, end: u64, mut visit: impl FnMut(u64, &[u8])) -> Result<()> {
        let Some(body) = self.body else { return Ok(()) };
        let base = body.bid << PAGE_SHIFT;
        let (first, last) = (offset / PAGE_BYTES, (end - 1) / PAGE_BYTES);
        let connection = self.connection()?;
        let mut run = || -> rusqlite::Result<()> {
            let mut statement = connection
                .prepare_cached("SELECT at, data FROM pages WHERE at BETWEEN ?1 AND ?2 ORDER BY at")?;
            let mut rows = statement.query((base + first as i64, base + last as i64))?;
            while let Some(row) = rows.next()? {
                let at: i64 = row.get(0)?;
                visit((at - base) as u64, row.get_ref(1)?.as_blob()?);
            }
            Ok(())
        };
        run().at(self.db.path(), "read")
    }

    /// One omap value.
    pub(crate) fn omap_get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        let Some(body) = self.body else { return Ok(None) };
        self.connection()?
            .prepare_cached("SELECT value FROM omap WHERE bid = ?1 AND key = ?2")
            .and_then(|mut statement| {
                statement
                    .query_row((body.bid, key), |row| row.get::<_, Vec<u8>>(0))
                    .optional()
            })
            .at(self.db.path(), "read")
            .map(|value| value.map(Bytes::from))
    }

    /// Up to `max` omap pairs after `start_after` with `prefix`; and whether more follow.
    pub(crate) fn omap_list(
        &self,
        start_after: &[u8],
        prefix: &[u8],
        max: usize,
    ) -> Result<(BTreeMap<Bytes, Bytes>, bool)> {
        let mut values = BTreeMap::new();
        let Some(body) = self.body else {
            return Ok((values, false));
        };
        let mut list = |connection: &Connection| -> rusqlite::Result<bool> {
            let mut statement = connection.prepare_cached(
                "SELECT key, value FROM omap WHERE bid = ?1 AND key > ?2 AND key >= ?3 ORDER BY key",
            )?;
            let mut rows = statement.query((body.bid, start_after, prefix))?;
            let mut total_bytes = 0;
            while let Some(row) = rows.next()? {
                let key = row.get_ref(0)?.as_blob()?;
                if !key.starts_with(prefix) {
                    return Ok(false);
                }
                if values.len() >= max || total_bytes > LISTING_BYTES_MAX {
                    return Ok(true);
                }
                let value = row.get_ref(1)?.as_blob()?;
                total_bytes += key.len() + value.len();
                values.insert(Bytes::copy_from_slice(key), Bytes::copy_from_slice(value));
            }
            Ok(false)
        };
        let more = list(self.connection()?).at(self.db.path(), "read")?;
        Ok((values, more))
    }

    /// One xattr.
    pub(crate) fn xattr_get(&self, name: &str) -> Result<Option<Bytes>> {
        let Some(body) = self.body else { return Ok(None) };
        self.connection()?
            .prepare_cached("SELECT value FROM xattrs WHERE bid = ?1 AND name = ?2")
            .and_then(|mut statement| {
                statement
                    .query_row((body.bid, name), |row| row.get::<_, Vec<u8>>(0))
                    .optional()
            })
            .at(self.db.path(), "read")
            .map(|value| value.map(Bytes::from))
    }

    /// All xattrs.
    pub(crate) fn xattrs(&self) -> Result<BTreeMap<String, Bytes>> {
        let Some(body) = self.body else {
            return Ok(BTreeMap::new());
        };
        let pairs: rusqlite::Result<BTreeMap<String, Bytes>> = self
            .connection()?
            .prepare_cached("SELECT name, value FROM xattrs WHERE bid = ?1")
            .and_then(|mut statement| {
                let rows = statement.query_map([body.bid], |row| {
                    Ok((row.get(0)?, Bytes::from(row.get::<_, Vec<u8>>(1)?)))
                })?;
                rows.collect()
            });
        pairs.at(self.db.path(), "read")
    }

    /// Whether the bytes at `offset` equal `expected`, bytes past the end counting as zero.
    pub(crate) fn equals(&self, offset: u64, expected: &[u8]) -> Result<bool> {
        let have = self.read(offset, expected.len() as u64)?;
        let (there, past) = expected.split_at(have.len());
        Ok(*have == *there && past.iter().all(|byte| *byte == 0))
    }
}

/// The part of page `page`, `length` bytes of it, between `offset` and `end`.
fn overlap_of(page: u64, length: usize, offset: u64, end: u64) -> (u64, u64) {
    let start = page * PAGE_BYTES;
    (start.max(offset), (start + length as u64).min(end))
}
