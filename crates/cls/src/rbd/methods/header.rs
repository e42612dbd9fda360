//! Header: create, size, features, striping, times, flags (fact sheet section 3.1).

use ferry_store::class::{CallContext, ObjectHandle};
use ferry_store::{Errno, PoolId, SnapId, Timestamp};

use super::header_records::{
    FEATURES, FLAGS, OBJECT_PREFIX, OP_FEATURES, ORDER, PARENT, SIZE, SNAP_SEQ, read_parent, read_snapshot,
    require_feature, set_op_features as change_op_features, write_snapshot,
};
use crate::object::{
    Outcome, answer, done, has_key, parse, parse_one, read_key, require_key, require_object, write_key,
};
use crate::rbd::features::{feature, op_feature};
use crate::rbd::types::{FeaturesReply, SizeReply, StripeReply};

const DATA_POOL_ID: &str = "data_pool_id";
const STRIPE_UNIT: &str = "stripe_unit";
const STRIPE_COUNT: &str = "stripe_count";
const CREATE_TIMESTAMP: &str = "create_timestamp";
const ACCESS_TIMESTAMP: &str = "access_timestamp";
const MODIFY_TIMESTAMP: &str = "modify_timestamp";

pub(super) fn create(context: &CallContext, object: &mut dyn ObjectHandle, input: &[u8]) -> Outcome {
    let (size, order, features, prefix, data_pool) = parse(input, |decoder| {
        let size: u64 = decoder.get("size")?;
        let order: u8 = decoder.get("order")?;
        let features: u64 = decoder.get("features")?;
        let prefix: String = decoder.get("object prefix")?;
        let data_pool: Option<PoolId> = decoder.get_trailing("data pool id")?;
        Ok((size, order, features, prefix, data_pool.unwrap_or(PoolId::NONE)))
    })?;
    if features & !feature::ALL != 0 {
        return Err(Errno::ENOSYS);
    }
    if prefix.is_empty() {
        return Err(Errno::EINVAL);
    }
    if has_key(object, OBJECT_PREFIX)? {
        return Err(Errno::EEXIST);
    }
    let has_data_pool = features & feature::DATA_POOL != 0;
    if features & feature::OPERATIONS != 0 || has_data_pool != (data_pool != PoolId::NONE) {
        return Err(Errno::EINVAL);
    }
    write_key(object, SIZE, size)?;
    write_key(object, ORDER, order)?;
    write_key(object, FEATURES, features)?;
    write_key(object, OBJECT_PREFIX, prefix)?;
    write_key(object, SNAP_SEQ, 0u64)?;
    for key in [CREATE_TIMESTAMP, ACCESS_TIMESTAMP, MODIFY_TIMESTAMP] {
        write_key(object, key, context.now)?;
    }
    if has_data_pool {
        write_key(object, DATA_POOL_ID, data_pool)?;
    }
    done()
}

pub(super) fn get_size(_: &CallContext, object: &mut dyn ObjectHandle, input: &[u8]) -> Outcome {
    let snap: SnapId = parse_one(input, "snapshot id")?;
    let order = require_key(object, ORDER)?;
    let size_bytes = if snap.is_head() {
        require_key(object, SIZE)?
    } else {
        read_snapshot(object, snap)?.image_size_bytes
    };
    answer(SizeReply { order, size_bytes })
}

pub(super) fn set_size(_: &CallContext, object: &mut dyn ObjectHandle, input: &[u8]) -> Outcome {
    let size: u64 = parse_one(input, "size")?;
    let before: u64 = require_key(object, SIZE)?;
    write_key(object, SIZE, size)?;
    if size < before
        && let Some(mut parent) = read_parent(object)?
        && parent.head_overlap_bytes.is_some_and(|overlap| overlap > size)
    {
        parent.head_overlap_bytes = Some(size);
        write_key(object, PARENT, &parent)?;
    }
    done()
}

pub(super) fn get_features(_: &CallContext, object: &mut dyn ObjectHandle, input: &[u8]) -> Outcome {
    let read_only = parse(input, |decoder| {
        let _snap: SnapId = decoder.get("snapshot id")?;
        decoder.get_trailing("read only")
    })?
    .unwrap_or(false);
    let features: u64 = require_key(object, FEATURES)?;
    let mask = if read_only {
        feature::INCOMPATIBLE
    } else {
        feature::RW_INCOMPATIBLE
    };
    answer(FeaturesReply {
        features,
        incompatible: features & mask,
    })
}

pub(super) fn set_features(_: &CallContext, object: &mut dyn ObjectHandle, input: &[u8]) -> Outcome {
    let (features, mask): (u64, u64) = parse(input, |decoder| {
        Ok((decoder.get("features")?, decoder.get("mask")?))
    })?;
    let before: u64 = require_key(object, FEATURES)?;
    if mask & feature::INTERNAL != 0 {
        return Err(Errno::EINVAL);
    }
    let mask = mask & feature::ALL;
    let enabled = features & mask;
    let disabled = !features & mask;
    let may_disable = feature::MUTABLE | feature::DISABLE_ONLY;
    if enabled & !feature::MUTABLE != 0 || disabled & !may_disable != 0 {
        return Err(Errno::EINVAL);
    }
    write_key(object, FEATURES, (before & !mask) | enabled)?;
    done()
}

pub(super) fn get_all_features(_: &CallContext, _: &mut dyn ObjectHandle, _: &[u8]) -> Outcome {
    answer(feature::ALL)
}

pub(super) fn get_object_prefix(_: &CallContext, object: &mut dyn ObjectHandle, _: &[u8]) -> Outcome {
    answer(require_key::<String>(object, OBJECT_PREFIX)?)
}

pub(super) fn get_data_pool(_: &CallContext, object: &mut dyn ObjectHandle, _: &[u8]) -> Outcome {
    answer(read_key::<PoolId>(object, DATA_POOL_ID)?.unwrap_or(PoolId::NONE))
}

pub(super) fn get_stripe_unit_count(_: &CallContext, object: &mut dyn ObjectHandle, _: &[u8]) -> Outcome {
    require_feature(object, feature::STRIPINGV2)?;
    let stripe_unit_bytes = match read_key(object, STRIPE_UNIT)? {
        Some(unit) => unit,
        None => object_size_bytes(object)?,
    };
    answer(StripeReply {
        stripe_unit_bytes,
        stripe_count: read_key(object, STRIPE_COUNT)?.unwrap_or(1),
    })
}

pub(super) fn set_stripe_unit_count(_: &CallContext, object: &mut dyn ObjectHandle, input: &[u8]) -> Outcome {
    let stripe = parse_one::<StripeReply>(input, "stripe unit and count")?;
    require_feature(object, feature::STRIPINGV2)?;
    if stripe.stripe_unit_bytes == 0 || stripe.stripe_count == 0 {
        return Err(Errno::EINVAL);
    }
    if !object_size_bytes(object)?.is_multiple_of(stripe.stripe_unit_bytes) {
        return Err(Errno::EINVAL);
    }
    write_key(object, STRIPE_UNIT, stripe.stripe_unit_bytes)?;
    write_key(object, STRIPE_COUNT, stripe.stripe_count)?;
    done()
}

fn object_size_bytes(object: &dyn ObjectHandle) -> Result<u64, Errno> {
    let order: u8 = require_key(object, ORDER)?;
    1u64.checked_shl(u32::from(order)).ok_or(Errno::EIO)
}

fn get_time(object: &dyn ObjectHandle, key: &str) -> Outcome {
    answer(read_key::<Timestamp>(object, key)?.unwrap_or_default())
}

pub(super) fn get_create_timestamp(_: &CallContext, object: &mut dyn ObjectHandle, _: &[u8]) -> Outcome {
    get_time(object, CREATE_TIMESTAMP)
}

pub(super) fn get_access_timestamp(_: &CallContext, object: &mut dyn ObjectHandle, _: &[u8]) -> Outcome {
    get_time(object, ACCESS_TIMESTAMP)
}

pub(super) fn get_modify_timestamp(_: &CallContext, object: &mut dyn ObjectHandle, _: &[u8]) -> Outcome {
    get_time(object, MODIFY_TIMESTAMP)
}

pub(super) fn set_access_timestamp(
    context: &CallContext,
    object: &mut dyn ObjectHandle,
    _: &[u8],
) -> Outcome {
    require_object(object)?;
    write_key(object, ACCESS_TIMESTAMP, context.now)?;
    done()
}

pub(super) fn set_modify_timestamp(
    context: &CallContext,
    object: &mut dyn ObjectHandle,
    _: &[u8],
) -> Outcome {
    require_object(object)?;
    write_key(object, MODIFY_TIMESTAMP, context.now)?;
    done()
}

pub(super) fn get_flags(_: &CallContext, object: &mut dyn ObjectHandle, input: &[u8]) -> Outcome {
    let snap: SnapId = parse_one(input, "snapshot id")?;
    answer(if snap.is_head() {
        read_key(object, FLAGS)?.unwrap_or(0)
    } else {
        read_snapshot(object, snap)?.flags
    })
}

pub(super) fn set_flags(_: &CallContext, object: &mut dyn ObjectHandle, input: &[u8]) -> Outcome {
    let (flags, mask, snap) = parse(input, |decoder| {
        let flags: u64 = decoder.get("flags")?;
        let mask: u64 = decoder.get("mask")?;
        let snap = decoder.get_trailing("snapshot id")?;
        Ok((flags, mask, snap.unwrap_or(SnapId::HEAD)))
    })?;
    require_object(object)?;
    let merge = |before: u64| (before & !mask) | (flags & mask);
    if snap.is_head() {
        let before: u64 = read_key(object, FLAGS)?.unwrap_or(0);
        write_key(object, FLAGS, merge(before))?;
    } else {
        let mut record = read_snapshot(object, snap)?;
        record.flags = merge(record.flags);
        write_snapshot(object, record)?;
    }
    done()
}

pub(super) fn op_features_get(_: &CallContext, object: &mut dyn ObjectHandle, _: &[u8]) -> Outcome {
    answer(read_key::<u64>(object, OP_FEATURES)?.unwrap_or(0))
}

pub(super) fn op_features_set(_: &CallContext, object: &mut dyn ObjectHandle, input: &[u8]) -> Outcome {
    let (bits, mask): (u64, u64) = parse(input, |decoder| {
        Ok((decoder.get("operation features")?, decoder.get("mask")?))
    })?;
    if mask & !op_feature::ALL != 0 {
        return Err(Errno::EINVAL);
    }
    change_op_features(object, bits, mask)?;
    done()
}
