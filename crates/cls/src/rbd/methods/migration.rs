//! The migration record (fact sheet section 3.8). A format-2 header is marked by its `migrating` feature, a format-1
//! header by its text; either has the record in omap key `migration`.

use ferry_store::Errno;
use ferry_store::class::{CallContext, ObjectHandle};

use super::header_records::FEATURES;
use super::v1_snapshots::write_text;
use crate::object::{
    Outcome, answer, done, has_key, parse, parse_one, read_key, remove_key, require_key, require_object,
    write_key,
};
use crate::rbd::features::feature;
use crate::rbd::types::{MigrationHeaderType, MigrationSpec, MigrationState};
use crate::rbd::v1::{HEADER_TEXT, MIGRATING_TEXT};

const MIGRATION: &str = "migration";

/// How an image is marked.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mark {
    /// Format 2, with these features.
    Features(u64),
    /// Format 1 with the plain text.
    PlainText,
    /// Format 1 with the migrating text.
    MigratingText,
}

impl Mark {
    fn is_migrating(self) -> bool {
        match self {
            Self::Features(features) => features & feature::MIGRATING != 0,
            Self::PlainText => false,
            Self::MigratingText => true,
        }
    }
}

/// `ENOENT` without object, `ENXIO` for a format-1 header with another text.
fn read_mark(object: &dyn ObjectHandle) -> Result<Mark, Errno> {
    require_object(object)?;
    if let Some(features) = read_key(object, FEATURES)? {
        return Ok(Mark::Features(features));
    }
    // Ceph compares the text together with the first byte of its padding.
    let text = object.read(0, HEADER_TEXT.len() as u64 + 1)?;
    match text.split_last() {
        Some((0, text)) if text == HEADER_TEXT => Ok(Mark::PlainText),
        Some((0, text)) if text == MIGRATING_TEXT => Ok(Mark::MigratingText),
        _ => Err(Errno::ENXIO),
    }
}

/// The record of a migrating image.
fn read_spec(object: &dyn ObjectHandle) -> Result<MigrationSpec, Errno> {
    if !read_mark(object)?.is_migrating() {
        return Err(Errno::EINVAL);
    }
    require_key(object, MIGRATION)
}

pub(super) fn migration_set(_: &CallContext, object: &mut dyn ObjectHandle, input: &[u8]) -> Outcome {
    let spec: MigrationSpec = parse_one(input, "migration")?;
    if has_key(object, MIGRATION)? {
        return Err(Errno::EEXIST);
    }
    let is_source = spec.header_type == MigrationHeaderType::Source;
    match read_mark(object)? {
        Mark::MigratingText => return Err(Errno::EEXIST),
        Mark::PlainText if !is_source => return Err(Errno::EINVAL),
        Mark::PlainText => write_text(object, MIGRATING_TEXT)?,
        Mark::Features(features) if features & feature::MIGRATING == 0 => {
            write_key(object, FEATURES, features | feature::MIGRATING)?;
        }
        Mark::Features(_) if is_source => return Err(Errno::EEXIST),
        Mark::Features(_) => {} // a destination may have been created with the bit
    }
    write_key(object, MIGRATION, &spec)?;
    done()
}

pub(super) fn migration_set_state(_: &CallContext, object: &mut dyn ObjectHandle, input: &[u8]) -> Outcome {
    let (state, description): (MigrationState, String) = parse(input, |decoder| {
        Ok((
            decoder.get("migration state")?,
            decoder.get("migration state description")?,
        ))
    })?;
    let mut spec = read_spec(object)?;
    spec.state = state;
    spec.state_description = description;
    write_key(object, MIGRATION, &spec)?;
    done()
}

pub(super) fn migration_get(_: &CallContext, object: &mut dyn ObjectHandle, _: &[u8]) -> Outcome {
    answer(read_spec(object)?)
}

pub(super) fn migration_remove(_: &CallContext, object: &mut dyn ObjectHandle, _: &[u8]) -> Outcome {
    match read_mark(object)? {
        Mark::PlainText => return Err(Errno::EINVAL),
        Mark::MigratingText => write_text(object, HEADER_TEXT)?,
        Mark::Features(features) if features & feature::MIGRATING != 0 => {
            write_key(object, FEATURES, features & !feature::MIGRATING)?;
        }
        Mark::Features(_) => {}
    }
    remove_key(object, MIGRATION)?;
    done()
}
