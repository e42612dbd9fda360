//! Requests on `rbd_header.<id>`: size, features, times, flags, metadata.

use std::collections::BTreeMap;

use bytes::Bytes;
use ferry_store::{PoolId, SnapId, Timestamp};

use super::{get, nothing, set};
use crate::call::{Call, payload};
use crate::rbd::types::{FeaturesReply, SizeReply, StripeReply};

/// Makes the object an image header. `EEXIST` if it is one, `ENOSYS` for unknown feature bits, `EINVAL` when the prefix
/// is empty or `data_pool` does not fit the feature. Pass [`PoolId::NONE`] without data pool.
pub fn create(size_bytes: u64, order: u8, features: u64, object_prefix: &str, data_pool: PoolId) -> Call<()> {
    set("create", |input| {
        input
            .put(size_bytes)
            .put(order)
            .put(features)
            .put(object_prefix)
            .put(data_pool);
    })
}

/// Object order and size of the head or of a snapshot (`ENOENT` without it).
pub fn get_size(snap: SnapId) -> Call<SizeReply> {
    get("get_size", payload(snap))
}

/// Sets the head's size; shrinking lowers the parent overlap.
pub fn set_size(size_bytes: u64) -> Call<()> {
    set("set_size", payload(size_bytes))
}

/// Features, and those that must be known to open the image in this way.
pub fn get_features(snap: SnapId, read_only: bool) -> Call<FeaturesReply> {
    get("get_features", |input| {
        input.put(snap).put(read_only);
    })
}

/// Switches the features in `mask`: on where `features` has the bit, off elsewhere. `EINVAL` for bits that cannot be
/// switched so.
pub fn set_features(features: u64, mask: u64) -> Call<()> {
    set("set_features", |input| {
        input.put(features).put(mask);
    })
}

/// All features that the store's class knows. For any object.
pub fn get_all_features() -> Call<u64> {
    get("get_all_features", nothing)
}

/// Prefix of the data objects' names.
pub fn get_object_prefix() -> Call<String> {
    get("get_object_prefix", nothing)
}

/// Pool of the data objects; [`PoolId::NONE`] when they are beside the header.
pub fn get_data_pool() -> Call<PoolId> {
    get("get_data_pool", nothing)
}

/// Striping; `ENOEXEC` without the feature.
pub fn get_stripe_unit_count() -> Call<StripeReply> {
    get("get_stripe_unit_count", nothing)
}

/// Sets striping; `ENOEXEC` without the feature, `EINVAL` unless the unit divides the object size.
pub fn set_stripe_unit_count(stripe_unit_bytes: u64, stripe_count: u64) -> Call<()> {
    set("set_stripe_unit_count", |input| {
        input.put(stripe_unit_bytes).put(stripe_count);
    })
}

/// When the image was made; zero if unknown.
pub fn get_create_timestamp() -> Call<Timestamp> {
    get("get_create_timestamp", nothing)
}

/// When it was last read, coarsely; zero if unknown.
pub fn get_access_timestamp() -> Call<Timestamp> {
    get("get_access_timestamp", nothing)
}

/// When it was last written, coarsely; zero if unknown.
pub fn get_modify_timestamp() -> Call<Timestamp> {
    get("get_modify_timestamp", nothing)
}

/// Sets the access time to the store's clock.
pub fn set_access_timestamp() -> Call<()> {
    set("set_access_timestamp", nothing)
}

/// Sets the modify time to the store's clock.
pub fn set_modify_timestamp() -> Call<()> {
    set("set_modify_timestamp", nothing)
}

/// Flags of the head or of a snapshot (`ENOENT` without it).
pub fn get_flags(snap: SnapId) -> Call<u64> {
    get("get_flags", payload(snap))
}

/// Sets the flags in `mask` to those of `flags`, of the head or of a snapshot.
pub fn set_flags(flags: u64, mask: u64, snap: SnapId) -> Call<()> {
    set("set_flags", |input| {
        input.put(flags).put(mask).put(snap);
    })
}

/// Operation features.
pub fn op_features_get() -> Call<u64> {
    get("op_features_get", nothing)
}

/// Sets the operation features in `mask`; keeps the `operations` feature in step. `EINVAL` for unknown bits.
pub fn op_features_set(op_features: u64, mask: u64) -> Call<()> {
    set("op_features_set", |input| {
        input.put(op_features).put(mask);
    })
}

/// Up to `max` metadata pairs (0: 64) after key `start_after`. Also on `rbd_info`.
pub fn metadata_list(start_after: &str, max: u64) -> Call<BTreeMap<String, Bytes>> {
    get("metadata_list", |input| {
        input.put(start_after).put(max);
    })
}

/// Sets metadata; makes the object if missing.
pub fn metadata_set(pairs: &BTreeMap<String, Bytes>) -> Call<()> {
    set("metadata_set", payload(pairs))
}

/// Removes a metadata key; no error without it.
pub fn metadata_remove(key: &str) -> Call<()> {
    set("metadata_remove", payload(key))
}

/// One metadata value; `ENOENT` without it.
pub fn metadata_get(key: &str) -> Call<Bytes> {
    get("metadata_get", payload(key))
}
