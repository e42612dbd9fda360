//! What is done with a librados that does not export the C++ steps of `sys::cxx`: by the C interface alone.
//!
//! What an object was at each snapshot is found by reading there ([`ferry_store::probing`]). Here are the two questions that
//! need more: how far an object's snapshots have got, and who watches it.

use bytes::Bytes;
use ferry_store::{
    Durability, Errno, ObjectRef, ReadOp, Result, SnapContext, SnapId, Store, StoreError, WatchInfo, WriteOp,
    WriteStep,
};

/// How long watchers have to answer when they are counted. Who does not is counted all the same.
const CENSUS_MS: u64 = 1000;

/// As [`Store::snap_seq_reached`].
///
/// The class `rbd` of the OSD compares, which takes the right to write, though nothing is written. For a user without it,
/// versions tell: of objects that have a head.
pub(crate) async fn snap_seq_reached(store: &dyn Store, object: ObjectRef<'_>, seq: u64) -> Result<bool> {
    let op = WriteOp {
        steps: vec![WriteStep::Call {
            class: "rbd",
            method: "assert_snapc_seq",
            input: at_most_the_object_s(seq),
        }],
        durability: Durability::Full,
    };
    match store.write(object, &SnapContext::empty(), op).await {
        Ok(_) => Ok(true),
        // The class has no other way to say no.
        Err(error) if error.errno == Errno::ERANGE => Ok(false),
        Err(error)
            if matches!(
                error.errno,
                Errno::EPERM | Errno::EACCES | Errno::ENOSPC | Errno::EDQUOT
            ) =>
        {
            by_versions(store, object, seq).await?.ok_or_else(|| {
                let what = "; this librados cannot tell without the right to write";
                StoreError::new(error.errno, format!("{}{what}", error.what))
            })
        }
        Err(error) => Err(error),
    }
}

/// What `assert_snapc_seq` takes: a sequence, and that it must be at most the object's own.
fn at_most_the_object_s(seq: u64) -> Bytes {
    const LESS_OR_EQUAL: u8 = 1;
    let mut input = seq.to_le_bytes().to_vec();
    input.push(LESS_OR_EQUAL);
    input.into()
}

/// `None`: versions do not tell.
async fn by_versions(store: &dyn Store, object: ObjectRef<'_>, seq: u64) -> Result<Option<bool>> {
    let version = async |snap| match store.read(object, snap, ReadOp::new().stat()).await {
        Ok(reply) => Ok(Some(reply.version)),
        Err(error) if error.errno == Errno::ENOENT => Ok(None),
        Err(error) => Err(error),
    };
    let Some(head) = version(SnapId::HEAD).await? else {
        return Ok(None);
    };
    if seq == 0 {
        return Ok(Some(true));
    }
    // The head serves every snapshot above the sequence; a clone is older than the head. Of what is not there, or has become
    // newer meanwhile, nothing can be said.
    Ok(match version(SnapId(seq)).await? {
        Some(seen) if seen == head => Some(false),
        Some(seen) if seen < head => Some(true),
        _ => None,
    })
}

/// As [`Store::list_watchers`]: a notify names all whom it reached and all whom it did not. An empty one, which a client of an
/// image takes for "the header has changed". It does not tell where they are.
pub(crate) async fn list_watchers(store: &dyn Store, object: ObjectRef<'_>) -> Result<Vec<WatchInfo>> {
    let reply = store.notify(object, Bytes::new(), CENSUS_MS).await?;
    let answered = reply.acks.into_iter().map(|(gid, cookie, _)| (gid, cookie));
    let watchers = answered.chain(reply.timeouts).map(|(gid, cookie)| WatchInfo {
        gid,
        addr: None,
        cookie,
    });
    Ok(watchers.collect())
}

#[cfg(test)]
mod tests {
    use ferry_cls::rbd::{SnapcAssertion, client};

    use super::*;

    #[test]
    fn the_class_is_asked_in_its_own_encoding() {
        let asked = client::assert_snapc_seq(0x1234, SnapcAssertion::LessOrEqualObject);
        assert_eq!((asked.class, asked.method), ("rbd", "assert_snapc_seq"));
        assert_eq!(asked.input, at_most_the_object_s(0x1234));
    }
}
