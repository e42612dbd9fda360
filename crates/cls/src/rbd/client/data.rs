//! Requests on data objects.

use std::collections::BTreeMap;

use super::set;
use crate::call::Call;
use crate::rbd::types::SnapcAssertion;

/// Writes `data` at 0 if the object does not exist (empty data make an empty object); nothing otherwise.
pub fn copyup(data: &[u8]) -> Call<()> {
    set("copyup", |input| {
        input.put_raw(data);
    })
}

/// Writes extents (offset to length, ascending; `data` holds their bytes one after the other) if the object does not
/// exist; without extents makes an empty object; nothing if it exists. `EINVAL` when the lengths do not add up.
pub fn sparse_copyup(extents: &BTreeMap<u64, u64>, data: &[u8]) -> Call<()> {
    set("sparse_copyup", |input| {
        input.put(extents).put_bytes(data);
    })
}

/// Fails with `ERANGE` unless the object's newest snapshot sequence relates to `snapc_seq` as asked. Changes nothing and
/// does not make the object; for write operations.
pub fn assert_snapc_seq(snapc_seq: u64, assertion: SnapcAssertion) -> Call<()> {
    set("assert_snapc_seq", |input| {
        input.put(snapc_seq).put(assertion);
    })
}

/// Gives up zero runs of `sparse_size_bytes` (`EINVAL` for 0) and of an all-zero object everything, or the object itself
/// with `remove_empty`.
pub fn sparsify(sparse_size_bytes: u64, remove_empty: bool) -> Call<()> {
    set("sparsify", |input| {
        input.put(sparse_size_bytes).put(remove_empty);
    })
}
