//! What leads from a committed target to a source of format 1 that an interrupted commit left.
//!
//! A source of format 2 lies in the trash, where it is found. One of format 1 keeps its header under its name, so the commit notes
//! in the target's header, in the step that takes the record off, where that is (`ferry_source`: the record itself), and takes
//! the note off when the source is gone. Ceph's `rbd` does not look at it.

use bytes::Bytes;
use ferry_cls::encoding::{Decode as _, Decoder, Encode as _};
use ferry_cls::rbd::MigrationSpec;
use ferry_store::{IoCtx, WriteOp, WriteStep};

use super::record::{self, Side};
use super::settings;
use crate::error::{Result, absent_is_fine};
use crate::header::{HeaderKey, damaged};

const SOURCE_KEY: &[u8] = b"ferry_source";

/// Adds the note, if the source needs one.
pub(super) fn note(op: WriteOp, source: &Side, target: &Side) -> WriteOp {
    let Some(spec) = target.spec.as_ref().filter(|_| source.is_format_1()) else {
        return op;
    };
    let pairs = [(Bytes::from_static(SOURCE_KEY), spec.to_bytes())];
    op.step(WriteStep::OmapSet(pairs.into_iter().collect()))
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
    let op = WriteOp::new()
        .step(WriteStep::AssertExists)
        .step(WriteStep::OmapRemove(vec![Bytes::from_static(SOURCE_KEY)]));
    let object = HeaderKey::from(target_id).object();
    absent_is_fine(io.write_meta(&object, op).await.map(|_| ()))
}
