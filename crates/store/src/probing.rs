//! What an object was at each snapshot, found by reading there: for engines that have no list of clones.
//!
//! Two things make it possible. Reads at two snapshots that one clone serves give the same version; and versions of an object
//! only grow, so what a snapshot shows with a smaller version than the head's is a clone.
//! What it keeps: the answer of [`list_snaps`] is one that was true at some instant while it was asked. What it does not know:
//! clones that serve none of the asked snapshots, and which bytes two versions share.

use std::collections::BTreeMap;

use futures::stream::{StreamExt as _, TryStreamExt as _};

use crate::op::{ReadOp, ReadResult};
use crate::types::{CloneInfo, ObjectRef, SnapId, SnapSet};
use crate::{Errno, Result, Store, StoreError};

/// How often it begins again because the object changed meanwhile.
const ATTEMPTS_MAX: usize = 100;
/// How many snapshots are asked about at a time.
const CONCURRENT: usize = 16;

/// An object at one moment and snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    version: u64,
    size_bytes: u64,
}

/// As [`Store::list_snaps`] of an engine that has no list of clones.
///
/// # Errors
/// Those of reads; `ENOENT` if the object exists neither at the head nor at any of `asked`; `EAGAIN` if it never stood still.
pub async fn list_snaps(store: &dyn Store, object: ObjectRef<'_>, asked: &[SnapId]) -> Result<SnapSet> {
    let mut asked: Vec<SnapId> = asked.iter().copied().filter(|snap| !snap.is_head()).collect();
    asked.sort_unstable();
    asked.dedup();
    for _ in 0..ATTEMPTS_MAX {
        let head = look(store, object, SnapId::HEAD).await?;
        let looks = asked.clone().into_iter().map(|snap| look(store, object, snap));
        let seen: Vec<Option<Seen>> = futures::stream::iter(looks)
            .buffered(CONCURRENT)
            .try_collect()
            .await?;
        // What shows the head's version is the head, and what shows a smaller one is a clone, whatever came later.
        let certain = |seen: &Option<Seen>| match (seen, head) {
            (Some(seen), Some(head)) => seen.version <= head.version,
            (None, None) => true,
            _ => false,
        };
        if !seen.iter().all(certain) && look(store, object, SnapId::HEAD).await? != head {
            continue;
        }
        if seen
            .iter()
            .flatten()
            .any(|seen| head.is_some_and(|head| seen.version > head.version))
        {
            continue;
        }
        let judged = judge(&asked, &seen, head);
        let mut set =
            judged.ok_or_else(|| StoreError::new(Errno::ENOENT, format!("list snapshots of {object}")))?;
        if head.is_none() {
            set.seq = reached(store, object, &asked, set.seq).await?;
        }
        return Ok(set);
    }
    let what = format!("list snapshots of {object}: it changed each time it was looked at");
    Err(StoreError::new(Errno::EAGAIN, what))
}

/// The greatest of `asked`, which ascend, that the object has reached; it is at least at `seq`. Without the right to ask it
/// stays there.
async fn reached(store: &dyn Store, object: ObjectRef<'_>, asked: &[SnapId], seq: u64) -> Result<u64> {
    let above = asked.partition_point(|snap| snap.0 <= seq);
    let (mut known, mut unknown) = (above, asked.len());
    while known < unknown {
        let middle = known + (unknown - known) / 2;
        match store.snap_seq_reached(object, asked[middle].0).await {
            Ok(true) => known = middle + 1,
            Ok(false) => unknown = middle,
            Err(error) if matches!(error.errno, Errno::EPERM | Errno::EACCES) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(asked[..known].last().map_or(seq, |snap| snap.0.max(seq)))
}

async fn look(store: &dyn Store, object: ObjectRef<'_>, snap: SnapId) -> Result<Option<Seen>> {
    let reply = match store.read(object, snap, ReadOp::new().stat()).await {
        Err(error) if error.errno == Errno::ENOENT => return Ok(None),
        other => other?,
    };
    match reply.results.first() {
        Some(ReadResult::Stat { size_bytes, .. }) => Ok(Some(Seen {
            version: reply.version,
            size_bytes: *size_bytes,
        })),
        _ => Err(StoreError::new(
            Errno::EBADMSG,
            format!("stat of {object} at {snap}"),
        )),
    }
}

/// `None`: the object exists nowhere.
fn judge(asked: &[SnapId], seen: &[Option<Seen>], head: Option<Seen>) -> Option<SnapSet> {
    let mut by_version: BTreeMap<u64, CloneInfo> = BTreeMap::new();
    let mut seq = 0;
    for (&snap, seen) in asked.iter().zip(seen) {
        match seen {
            Some(seen) if head.is_some_and(|head| head.version == seen.version) => {
                // The sequence is below it, so what does not exist above was given up meanwhile.
                break;
            }
            Some(seen) => {
                let clone = by_version.entry(seen.version).or_insert_with(|| CloneInfo {
                    id: snap,
                    snaps: Vec::new(),
                    overlap: None,
                    size_bytes: seen.size_bytes,
                });
                clone.id = snap;
                clone.snaps.push(snap);
                seq = snap.0;
            }
            // A head would serve it if it were newer than the sequence.
            None if head.is_some() => seq = snap.0,
            None => {}
        }
    }
    let mut clones: Vec<CloneInfo> = by_version.into_values().collect();
    clones.extend(head.map(|head| CloneInfo {
        id: SnapId::HEAD,
        snaps: Vec::new(),
        overlap: None,
        size_bytes: head.size_bytes,
    }));
    (!clones.is_empty()).then_some(SnapSet { seq, clones })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(version: u64) -> Option<Seen> {
        Some(Seen {
            version,
            size_bytes: version * 10,
        })
    }

    /// Sequence, and of each clone its id and snapshots.
    type Judged = (u64, Vec<(u64, Vec<u64>)>);

    fn judged(seen: &[Option<Seen>], head: Option<Seen>) -> Option<Judged> {
        let asked: Vec<SnapId> = (1..=seen.len() as u64).map(SnapId).collect();
        let set = judge(&asked, seen, head)?;
        let clones = set.clones.iter().map(|clone| {
            let snaps = clone.snaps.iter().map(|snap| snap.0).collect();
            (clone.id.0, snaps)
        });
        Some((set.seq, clones.collect()))
    }

    const HEAD: u64 = SnapId::HEAD.0;

    #[test]
    fn snapshots_with_one_version_share_a_clone() {
        let seen = [at(2), at(2), None, at(5)];
        let clones = vec![(2, vec![1, 2]), (4, vec![4]), (HEAD, vec![])];
        assert_eq!(judged(&seen, at(7)), Some((4, clones)));
    }

    #[test]
    fn what_shows_the_head_is_newer_than_the_sequence() {
        assert_eq!(judged(&[at(7), at(7)], at(7)), Some((0, vec![(HEAD, vec![])])));
        assert_eq!(judged(&[None, at(7)], at(7)), Some((1, vec![(HEAD, vec![])])));
        // The last one was given up while it was asked about.
        assert_eq!(judged(&[at(7), None], at(7)), Some((0, vec![(HEAD, vec![])])));
    }

    #[test]
    fn an_object_that_exists_nowhere_is_none() {
        assert_eq!(judged(&[None, None], None), None);
        assert_eq!(judged(&[at(3), None], None), Some((1, vec![(1, vec![1])])));
    }
}
