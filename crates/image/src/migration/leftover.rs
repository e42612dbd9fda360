//! What leads from a committed target to a source of format 1 that an interrupted commit left.
//!
//! A source of format 2 lies in the trash, where it is found. One of format 1 keeps its header under its name, so the commit notes
//! in the target's header, in the step that takes the record off, where that is (`ferry_source`: the record itself), and takes
//! the note off when the source is gone. Ceph's `rbd` does not look at it.
//!
//! The same step notes `ferry_hiding`: beyond the target's end there may be empty objects that hid the source, which the
//! commit removes next. Until that is done whoever lets the image grow over them has to tell the object map.

use std::collections::BTreeMap;

use bytes::Bytes;
use ferry_cls::encoding::{Decode as _, Decoder, Encode as _};
use ferry_cls::rbd::MigrationSpec;
use ferry_store::{IoCtx, WriteOp, WriteStep};

use super::record::{self, Side};
use super::settings;
use crate::error::{Result, absent_is_fine};
use crate::header::{HeaderKey, damaged};

const SOURCE_KEY: &[u8] = b"ferry_source";
const HIDING_KEY: &[u8] = b"ferry_hiding";

/// Adds the notes: that objects may hide the source, and where that is, if it is not found otherwise.
pub(super) fn note(op: WriteOp, source: &Side, target: &Side) -> WriteOp {
    let mut pairs = BTreeMap::from([(Bytes::from_static(HIDING_KEY), Bytes::from_static(b"1"))]);
    if let Some(spec) = target.spec.as_ref().filter(|_| source.is_format_1()) {
        pairs.insert(Bytes::from_static(SOURCE_KEY), spec.to_bytes());
    }
    op.step(WriteStep::OmapSet(pairs.into_iter().collect()))
}

/// Whether objects beyond the end may still hide what was the source.
pub(crate) async fn may_hide(io: &IoCtx, header_object: &str) -> Result<bool> {
    let noted = settings::read_keys(io, header_object, &[HIDING_KEY]).await?;
    Ok(noted.into_iter().flatten().next().is_some())
}

/// Nothing hides any more. Fine without a target.
pub(super) async fn nothing_hides(io: &IoCtx, target_id: &str) -> Result<()> {
    remove_key(io, target_id, HIDING_KEY).await
}

/// The source that the target's note, or an image of the same name, leads to, with its record if it has one.
pub(super) async fn find(target: &Side) -> Result<Option<Side>> {
    if target.is_format_1() {
        return Ok(None);
    }
    let object = target.header_object();
    let noted = settings::read_keys(&target.io, &object, &[SOURCE_KEY]).await?;
    let side = match noted.into_iter().next().flatten() {
        Some(raw) => {
            let spec = MigrationSpec::decode(&mut Decoder::new(&raw))
                .map_err(|error| damaged(&target.io, &object, error))?;
            let io = target
                .io
                .with_pool(spec.pool_id)
                .with_namespace(&spec.pool_namespace);
            source(io, spec.image_name).await?
        }
        // A commit of Ceph's in place.
        None => source(target.io.clone(), target.name.clone()).await?,
    };
    Ok(Some(side))
}

async fn source(io: IoCtx, name: String) -> Result<Side> {
    let spec = match record::read(&io, &HeaderKey::Name(name.clone())).await {
        Ok(found) => found.flatten(),
        // Something else is called so.
        Err(error) if error.errno == ferry_store::Errno::ENXIO => None,
        Err(error) => return Err(error),
    };
    Ok(Side {
        io,
        id: String::new(),
        name,
        spec,
    })
}

/// Takes the note off. Fine if there is none, or no target any more.
pub(super) async fn forget(io: &IoCtx, target_id: &str) -> Result<()> {
    remove_key(io, target_id, SOURCE_KEY).await
}

async fn remove_key(io: &IoCtx, target_id: &str, key: &'static [u8]) -> Result<()> {
    let op = WriteOp::new()
        .step(WriteStep::AssertExists)
        .step(WriteStep::OmapRemove(vec![Bytes::from_static(key)]));
    let object = HeaderKey::from(target_id).object();
    absent_is_fine(io.write_meta(&object, op).await.map(|_| ()))
}
