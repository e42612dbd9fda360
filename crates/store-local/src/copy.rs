//! [`ferry_store::Store::copy_into`]: which holds a copy takes, one after the other.

use std::sync::Arc;

use ferry_store::{
    CopyRange, CopyReply, ObjectRef, Result, SnapContext, SnapId, StoreError, WriteOp, check_copy,
};

use crate::client::{Client, UnderWay};
use crate::pool::copy::{Given, Piece, Staged};

/// Ranges of one object at one snapshot.
struct Source<'a> {
    object: ObjectRef<'a>,
    snap: SnapId,
    pieces: Vec<Piece>,
}

pub(crate) async fn copy_into(
    client: &Arc<Client>,
    target: ObjectRef<'_>,
    snapc: &SnapContext,
    op: WriteOp,
    ranges: &[CopyRange<'_>],
) -> Result<CopyReply> {
    check_copy(&op, ranges).map_err(|(errno, step)| StoreError {
        errno,
        what: format!("copy into {target}"),
        step,
    })?;
    let under_way = Arc::new(client.begin().await?);
    let (pool, key) = client.locate(target).await?;
    let staging = pool.clone();
    let staged = Arc::new(client.blocking(move || staging.stage()).await?);
    let mut given = Given::default();
    for source in sources(ranges) {
        given = given.and(give(client, &under_way, source, &staged).await?);
    }
    let hold = pool.slots.exclusive(key.slot()).await?;
    let (snapc, context) = (snapc.clone(), client.context());
    client
        .blocking(move || {
            let _held = (hold, under_way);
            pool.install(&key, &snapc, &op, &context, &staged, given)
        })
        .await
}

/// Under the shared hold of what is read, and again under the exclusive one if something had to be put right first.
async fn give(
    client: &Arc<Client>,
    under_way: &Arc<UnderWay>,
    source: Source<'_>,
    staged: &Arc<Staged>,
) -> Result<Given> {
    let (pool, key) = client.locate(source.object).await?;
    let (snap, pieces) = (source.snap, Arc::new(source.pieces));
    let run = |hold: Box<dyn Send>, exclusive| {
        let (pool, key, pieces) = (pool.clone(), key.clone(), pieces.clone());
        let (under_way, staged) = (under_way.clone(), staged.clone());
        client.blocking(move || {
            let _held = (hold, under_way);
            pool.give(&key, snap, &pieces, &staged, exclusive)
        })
    };
    let hold = pool.slots.shared(key.slot()).await?;
    if let Some(given) = run(Box::new(hold), false).await? {
        return Ok(given);
    }
    let hold = pool.slots.exclusive(key.slot()).await?;
    let given = run(Box::new(hold), true).await?;
    given.ok_or_else(|| StoreError::new(ferry_store::Errno::EIO, format!("{key}: could not be put right")))
}

fn sources<'a>(ranges: &[CopyRange<'a>]) -> Vec<Source<'a>> {
    let mut sources: Vec<Source<'a>> = Vec::new();
    for range in ranges {
        let piece = Piece {
            offset: range.offset,
            length_bytes: range.length_bytes,
            target_offset: range.target_offset,
        };
        match sources.last_mut() {
            Some(last) if last.object == range.object && last.snap == range.snap => last.pieces.push(piece),
            _ => sources.push(Source {
                object: range.object,
                snap: range.snap,
                pieces: vec![piece],
            }),
        }
    }
    sources
}
