//! Key-value metadata of headers and `rbd_info` (fact sheet section 3.4). Values are stored as they are, without a
//! length.

use std::collections::BTreeMap;

use bytes::Bytes;
use ferry_store::Errno;
use ferry_store::class::{CallContext, ObjectHandle};

use crate::object::{
    Outcome, answer, done, list_keys, parse, parse_one, read_raw, remove_key, require_object, write_raw,
};

const PREFIX: &str = "metadata_";
/// What a request for 0 pairs means.
const DEFAULT_MAX: u64 = 64;

pub(super) fn metadata_list(_: &CallContext, object: &mut dyn ObjectHandle, input: &[u8]) -> Outcome {
    let (start_after, max): (String, u64) = parse(input, |decoder| {
        Ok((decoder.get("start after")?, decoder.get("max")?))
    })?;
    let max = if max == 0 { DEFAULT_MAX } else { max };
    let found = list_keys(object, PREFIX, &start_after, max, |_, value| {
        Ok(Bytes::copy_from_slice(value))
    })?;
    answer(found.into_iter().collect::<BTreeMap<_, _>>())
}

pub(super) fn metadata_set(_: &CallContext, object: &mut dyn ObjectHandle, input: &[u8]) -> Outcome {
    let pairs: BTreeMap<String, Bytes> = parse_one(input, "metadata")?;
    for (key, value) in pairs {
        write_raw(object, &format!("{PREFIX}{key}"), value)?;
    }
    done()
}

pub(super) fn metadata_remove(_: &CallContext, object: &mut dyn ObjectHandle, input: &[u8]) -> Outcome {
    let key: String = parse_one(input, "metadata key")?;
    require_object(object)?;
    remove_key(object, &format!("{PREFIX}{key}"))?;
    done()
}

pub(super) fn metadata_get(_: &CallContext, object: &mut dyn ObjectHandle, input: &[u8]) -> Outcome {
    let key: String = parse_one(input, "metadata key")?;
    let value = read_raw(object, format!("{PREFIX}{key}").as_bytes())?;
    answer(value.ok_or(Errno::ENOENT)?)
}
