//! Changes of bulk bytes that must be atomic: committed as a record first, then done in the file.
//!
//! A full overwrite, a shrinking of a layer that has a parent, and an operation that changes bytes and rows at once are
//! committed with their bytes in the table `redo`. Whoever next loads the object under the exclusive hold (normally the
//! writer itself, at once) does them in the file, syncs it, and removes the record. All steps may be done twice.

use bytes::Bytes;
use ferry_store::{Errno, Result, StoreError};

use super::Pool;
use super::key::ObjectKey;
use crate::db::{Commit, SqlContext};
use crate::object::data::{Bulk, DataStep};
use crate::object::rows::Object;

const WRITE: u8 = 1;
const ZERO: u8 = 2;
const TRUNCATE: u8 = 3;

/// Stored form: per step a kind, two little-endian `u64`, and for writes the bytes.
pub(crate) fn encode(steps: &[DataStep]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut put = |kind: u8, first: u64, second: u64, data: &[u8]| {
        bytes.push(kind);
        bytes.extend_from_slice(&first.to_le_bytes());
        bytes.extend_from_slice(&second.to_le_bytes());
        bytes.extend_from_slice(data);
    };
    for step in steps {
        match step {
            DataStep::Write { offset, data } => put(WRITE, *offset, data.len() as u64, data),
            DataStep::Zero { offset, length_bytes } => put(ZERO, *offset, *length_bytes, &[]),
            DataStep::Truncate { size_bytes } => put(TRUNCATE, *size_bytes, 0, &[]),
        }
    }
    bytes
}

/// From the stored form; `None` when it is damaged.
pub(crate) fn decode(mut bytes: &[u8]) -> Option<Vec<DataStep>> {
    let mut steps = Vec::new();
    while let Some((kind, rest)) = bytes.split_first() {
        let (first, rest) = rest.split_first_chunk::<8>()?;
        let (second, rest) = rest.split_first_chunk::<8>()?;
        let (first, second) = (u64::from_le_bytes(*first), u64::from_le_bytes(*second));
        if first.checked_add(second)? > super::schema::OBJECT_BYTES_MAX {
            return None;
        }
        bytes = rest;
        steps.push(match *kind {
            WRITE => {
                let (data, rest) = bytes.split_at_checked(second as usize)?;
                bytes = rest;
                DataStep::Write {
                    offset: first,
                    data: Bytes::copy_from_slice(data),
                }
            }
            ZERO => DataStep::Zero {
                offset: first,
                length_bytes: second,
            },
            TRUNCATE => DataStep::Truncate { size_bytes: first },
            _ => return None,
        });
    }
    Some(steps)
}

impl Pool {
    /// Does what the object's record says, durably. Only under the exclusive hold, after the generation was raised.
    /// The change counts already, so a full disk is no refusal of it: that is `EIO`, until there is room again.
    pub(crate) fn redo(&self, key: &ObjectKey, object: &Object) -> Result<()> {
        self.redo_steps(key, object).map_err(|error| match error.errno {
            Errno::ENOSPC | Errno::EDQUOT => StoreError::new(
                Errno::EIO,
                format!(
                    "pool {} {key}: committed, not yet applied; free space on the pool's disk ({error})",
                    self.id
                ),
            ),
            _ => error,
        })
    }

    fn redo_steps(&self, key: &ObjectKey, object: &Object) -> Result<()> {
        let damaged = |what: &str| StoreError::new(Errno::EIO, format!("pool {} {key}: {what}", self.id));
        let record = object.redo.as_deref().unwrap_or_default();
        let steps = decode(record).ok_or_else(|| damaged("the record of its last change is damaged"))?;
        let layer = object
            .head_layer()
            .ok_or_else(|| damaged("a change is recorded, but there is no file to make it in"))?;
        let bulk = Bulk::new(&self.files, object);
        for step in &steps {
            bulk.apply(layer, step)?;
        }
        let map = bulk.map_now(layer)?;
        self.sync_written(key, object, layer)?;
        let (oid, lid) = (object.oid, layer.lid);
        let path = self.db.path().to_owned();
        self.db.write(Commit::Full, move |connection| {
            super::layers::settled(connection, &path, lid, &map)?;
            connection
                .execute("DELETE FROM redo WHERE oid = ?1", [oid])
                .at(&path, "write")
                .map(|_| ())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_back_and_damaged_ones_are_refused() {
        let steps = vec![
            DataStep::Write {
                offset: 5,
                data: Bytes::from_static(b"abc"),
            },
            DataStep::Zero {
                offset: 1,
                length_bytes: 2,
            },
            DataStep::Truncate { size_bytes: 7 },
        ];
        let bytes = encode(&steps);
        assert_eq!(decode(&bytes), Some(steps));
        for end in 1..bytes.len() {
            let cut = decode(&bytes[..end]);
            assert!(cut.is_none_or(|steps| steps.len() < 3), "cut at {end}");
        }
        assert_eq!(decode(&[9; 17]), None);
        let huge = [&[WRITE][..], &[0xff; 16]].concat();
        assert_eq!(decode(&huge), None);
    }
}
