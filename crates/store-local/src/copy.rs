//! [`ferry_store::Store::copy_into`]: which holds a copy takes, one after the other.
//!
//! All of it is first tried on one thread without waiting for anybody; what that could not do is done step by step.

use std::sync::Arc;

use ferry_store::class::CallContext;
use ferry_store::{
    CopyRange, CopyReply, ObjectRef, Result, SnapContext, SnapId, StoreError, WriteOp, check_copy,
};

use crate::client::{Client, UnderWay};
use crate::pool::Pool;
use crate::pool::copy::{Given, Piece, Staged};
use crate::pool::key::ObjectKey;

/// Ranges of one object at one snapshot.
struct Source<'a> {
    object: ObjectRef<'a>,
    snap: SnapId,
    pieces: Vec<Piece>,
}

/// The same, and where it is.
struct Located {
    pool: Arc<Pool>,
    key: ObjectKey,
    snap: SnapId,
    pieces: Vec<Piece>,
}

/// Where a copy goes, and how.
struct Target {
    pool: Arc<Pool>,
    key: ObjectKey,
    snapc: SnapContext,
    op: WriteOp,
    context: CallContext,
}

/// How far a copy got without waiting.
enum Attempt {
    Done(CopyReply),
    /// Somebody holds the target.
    Staged(Staged, Given),
    /// Somebody holds a source, or something has to be put right there first.
    Nothing,
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
    let target = Arc::new(Target {
        pool,
        key,
        snapc: snapc.clone(),
        op,
        context: client.context(),
    });
    let mut located = Vec::new();
    for Source { object, snap, pieces } in sources(ranges) {
        let (pool, key) = client.locate(object).await?;
        located.push(Located {
            pool,
            key,
            snap,
            pieces,
        });
    }
    let located = Arc::new(located);
    let (to, from, held) = (target.clone(), located.clone(), under_way.clone());
    let attempt = client.blocking(move || {
        let _held = held;
        to.attempt(&from)
    });
    let (staged, given) = match attempt.await? {
        Attempt::Done(reply) => return Ok(reply),
        Attempt::Staged(staged, given) => (Arc::new(staged), given),
        Attempt::Nothing => {
            let staging = target.pool.clone();
            let staged = Arc::new(client.blocking(move || staging.stage()).await?);
            let mut given = Given::default();
            for index in 0..located.len() {
                given = given.and(give(client, &under_way, &located, index, &staged).await?);
            }
            (staged, given)
        }
    };
    let hold = target.pool.slots.exclusive(target.key.slot()).await?;
    client
        .blocking(move || {
            let _held = (hold, under_way);
            target.install(&staged, given)
        })
        .await
}

impl Target {
    fn attempt(&self, sources: &[Located]) -> Result<Attempt> {
        let staged = self.pool.stage()?;
        let mut given = Given::default();
        for source in sources {
            let Some(_hold) = source.pool.slots.shared_now(source.key.slot())? else {
                return Ok(Attempt::Nothing);
            };
            match source.give(&staged, false)? {
                Some(part) => given = given.and(part),
                None => return Ok(Attempt::Nothing),
            }
        }
        let Some(_hold) = self.pool.slots.exclusive_now(self.key.slot())? else {
            return Ok(Attempt::Staged(staged, given));
        };
        self.install(&staged, given).map(Attempt::Done)
    }

    fn install(&self, staged: &Staged, given: Given) -> Result<CopyReply> {
        self.pool
            .install(&self.key, &self.snapc, &self.op, &self.context, staged, given)
    }
}

impl Located {
    fn give(&self, staged: &Staged, exclusive: bool) -> Result<Option<Given>> {
        self.pool
            .give(&self.key, self.snap, &self.pieces, staged, exclusive)
    }
}

/// Under the shared hold of what is read, and again under the exclusive one if something had to be put right first.
async fn give(
    client: &Arc<Client>,
    under_way: &Arc<UnderWay>,
    located: &Arc<Vec<Located>>,
    index: usize,
    staged: &Arc<Staged>,
) -> Result<Given> {
    let Located { pool, key, .. } = &located[index];
    let run = |hold: Box<dyn Send>, exclusive| {
        let (under_way, located, staged) = (under_way.clone(), located.clone(), staged.clone());
        client.blocking(move || {
            let _held = (hold, under_way);
            located[index].give(&staged, exclusive)
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
