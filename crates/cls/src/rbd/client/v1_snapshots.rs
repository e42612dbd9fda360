//! Requests on format-1 headers, `<name>.rbd` (fact sheet section 3.11).

use ferry_store::SnapId;

use super::set;
use crate::call::{Call, payload};
use crate::encoding::{DecodeError, Decoder};
use crate::rbd::v1::V1Snapshot;

/// What `snap_list` answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct V1SnapList {
    /// Newest snapshot id.
    pub snap_seq: u64,
    /// Snapshots, newest first.
    pub snaps: Vec<V1Snapshot>,
}

fn decode_list(data: &[u8]) -> Result<V1SnapList, DecodeError> {
    let mut decoder = Decoder::new(data);
    let snap_seq = decoder.get("snapshot sequence")?;
    let count: u32 = decoder.get("snapshot count")?;
    let mut snaps = Vec::new(); // grows with what really decodes, not with what the count claims
    for _ in 0..count {
        snaps.push(V1Snapshot {
            id: decoder.get("snapshot id")?,
            image_size_bytes: decoder.get("snapshot image size")?,
            name: decoder.get("snapshot name")?,
        });
    }
    Ok(V1SnapList { snap_seq, snaps })
}

/// All snapshots. `EINVAL` when the header is too short.
pub fn snap_list() -> Call<V1SnapList> {
    Call::with_decoder(crate::rbd::CLASS, "snap_list", super::nothing, decode_list)
}

/// Adds a snapshot. `ESTALE` for an id below the newest, `EEXIST` for a used name, `EDQUOT` at the limit.
pub fn snap_add(name: &str, snap: SnapId) -> Call<()> {
    set("snap_add", |input| {
        input.put(name).put(snap);
    })
}

/// Removes a snapshot. `ENOENT` without it.
pub fn snap_remove(name: &str) -> Call<()> {
    set("snap_remove", payload(name))
}

/// Renames a snapshot. `ENOENT` without it, `EEXIST` for a used name.
pub fn snap_rename(snap: SnapId, new_name: &str) -> Call<()> {
    set("snap_rename", |input| {
        input.put(snap).put(new_name);
    })
}
