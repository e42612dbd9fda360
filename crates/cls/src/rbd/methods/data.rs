//! Data objects (fact sheet section 3.7).

use std::collections::BTreeMap;

use bytes::Bytes;
use ferry_store::Errno;
use ferry_store::class::{CallContext, ObjectHandle};

use crate::object::{Outcome, done, parse, require_object};
use crate::rbd::types::SnapcAssertion;

/// Most bytes that `sparsify` looks at in one go.
const SPARSIFY_CHUNK_BYTES: u64 = 4 << 20;

fn write_or_create(object: &mut dyn ObjectHandle, offset: u64, data: &[u8]) -> Result<(), Errno> {
    if data.is_empty() {
        object.create(false)
    } else {
        object.write(offset, Bytes::copy_from_slice(data))
    }
}

pub(super) fn copyup(_: &CallContext, object: &mut dyn ObjectHandle, input: &[u8]) -> Outcome {
    if !object.exists() {
        write_or_create(object, 0, input)?;
    }
    done()
}

pub(super) fn sparse_copyup(_: &CallContext, object: &mut dyn ObjectHandle, input: &[u8]) -> Outcome {
    let (extents, mut data) = parse(input, |decoder| {
        let extents: BTreeMap<u64, u64> = decoder.get("extents")?;
        Ok((extents, decoder.bytes("data")?))
    })?;
    let mut total = 0u64;
    for (offset, length) in &extents {
        offset.checked_add(*length).ok_or(Errno::EINVAL)?;
        total = total.checked_add(*length).ok_or(Errno::EINVAL)?;
    }
    if total != data.len() as u64 {
        return Err(Errno::EINVAL);
    }
    if object.exists() {
        return done();
    }
    if extents.is_empty() {
        object.create(false)?;
    }
    for (offset, length) in extents {
        let (run, rest) = data.split_at(length as usize); // fits: the lengths add up to the data's
        write_or_create(object, offset, run)?;
        data = rest;
    }
    done()
}

pub(super) fn assert_snapc_seq(_: &CallContext, object: &mut dyn ObjectHandle, input: &[u8]) -> Outcome {
    let (snapc_seq, assertion): (u64, SnapcAssertion) = parse(input, |decoder| {
        Ok((
            decoder.get("snapshot context sequence")?,
            decoder.get("assertion")?,
        ))
    })?;
    let holds = match (assertion, object.snapset_seq()) {
        (SnapcAssertion::GreaterThanObject, None) => true,
        (SnapcAssertion::GreaterThanObject, Some(seq)) => snapc_seq > seq,
        (SnapcAssertion::LessOrEqualObject, None) => false,
        (SnapcAssertion::LessOrEqualObject, Some(seq)) => snapc_seq <= seq,
    };
    if holds { done() } else { Err(Errno::ERANGE) }
}

pub(super) fn sparsify(_: &CallContext, object: &mut dyn ObjectHandle, input: &[u8]) -> Outcome {
    let (sparse_size, remove_empty): (u64, bool) = parse(input, |decoder| {
        Ok((decoder.get("sparse size")?, decoder.get("remove empty")?))
    })?;
    require_object(object)?;
    if sparse_size == 0 {
        return Err(Errno::EINVAL);
    }
    let size = object.size_bytes();
    // Whole units per read where they fit; a larger unit is looked at in one go, but never past the object.
    let unit = sparse_size.min(size.max(1));
    let chunk = (SPARSIFY_CHUNK_BYTES / unit).max(1).saturating_mul(unit);
    let mut zero_runs: Vec<(u64, u64)> = Vec::new();
    let mut data_end = 0;
    let mut offset = 0;
    while offset < size {
        let data = object.read(offset, chunk.min(size - offset))?;
        if data.is_empty() {
            break;
        }
        for piece in data.chunks(usize::try_from(unit).unwrap_or(usize::MAX)) {
            let length = piece.len() as u64;
            if piece.iter().any(|byte| *byte != 0) {
                data_end = offset + length;
            } else if let Some((_, end)) = zero_runs.last_mut().filter(|(_, end)| *end == offset) {
                *end += length;
            } else {
                zero_runs.push((offset, offset + length));
            }
            offset += length;
        }
    }
    if data_end == 0 && remove_empty {
        object.remove()?;
        return done();
    }
    for (start, end) in zero_runs {
        if end < data_end {
            object.zero(start, end - start)?;
        }
    }
    if data_end < size {
        object.truncate(data_end)?;
    }
    done()
}
