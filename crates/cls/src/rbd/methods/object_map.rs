//! Object maps (fact sheet sections 3.6 and 6.3).
//!
//! Keeps: a change of states rewrites only the 4 KiB blocks that it touches, with their checksums; a block whose stored
//! checksum does not match is `EIO` and left as it is.

use bytes::Bytes;
use ferry_store::Errno;
use ferry_store::class::{CallContext, ObjectHandle};

use crate::encoding::{
    BLOCK_BYTES, BitVector, Decode, DecodeError, DecodeErrorKind, Decoder, Encode, Encoder, MAX_OBJECTS,
    MapLayout, block_crc, parse_header,
};
use crate::object::{Outcome, damaged, done, parse, parse_one, read_whole, stored};
use crate::rbd::types::ObjectState;

const OBJECTS_PER_BLOCK: u64 = BLOCK_BYTES * 4;
/// Bytes read for a header: as written here plus room for newer writers' fields.
const HEADER_READ_BYTES: u64 = 256;
const PLACE: &str = "object map";

/// The content; `ENOENT` when the object is missing or empty.
fn content(object: &dyn ObjectHandle) -> Result<Bytes, Errno> {
    let content = if object.exists() {
        read_whole(object)?
    } else {
        Bytes::new()
    };
    if content.is_empty() {
        Err(Errno::ENOENT)
    } else {
        Ok(content)
    }
}

pub(super) fn object_map_load(_: &CallContext, object: &mut dyn ObjectHandle, _: &[u8]) -> Outcome {
    // Here damage is EINVAL, as Ceph's method has it: clients take it for "rebuild the map".
    let map = BitVector::from_slice(&content(object)?).map_err(|error| {
        damaged(PLACE, &error);
        Errno::EINVAL
    })?;
    let mut out = Encoder::new();
    map.encode_without_crc(&mut out);
    Ok(out.into_vec())
}

pub(super) fn object_map_save(_: &CallContext, object: &mut dyn ObjectHandle, input: &[u8]) -> Outcome {
    let map: BitVector = parse_one(input, "object map")?;
    object.write_full(map.to_bytes())?;
    done()
}

pub(super) fn object_map_resize(_: &CallContext, object: &mut dyn ObjectHandle, input: &[u8]) -> Outcome {
    let (objects, state): (u64, ObjectState) = parse(input, |decoder| {
        Ok((decoder.get("object count")?, decoder.get("default state")?))
    })?;
    if objects > MAX_OBJECTS {
        return Err(Errno::EINVAL);
    }
    let mut map = match content(object) {
        Ok(content) => stored::<BitVector>(PLACE, &content)?,
        Err(Errno::ENOENT) => BitVector::default(),
        Err(error) => return Err(error),
    };
    let cut_off = objects..map.len();
    if cut_off
        .into_iter()
        .any(|index| map.get(index) != Some(state.byte()))
    {
        return Err(Errno::ESTALE);
    }
    if !map.resize(objects, state.byte()) {
        return Err(Errno::EINVAL);
    }
    object.write_full(map.to_bytes())?;
    done()
}

pub(super) fn object_map_update(_: &CallContext, object: &mut dyn ObjectHandle, input: &[u8]) -> Outcome {
    let (start, end, new, current) = parse(input, |decoder| {
        let start: u64 = decoder.get("first object")?;
        let end: u64 = decoder.get("end object")?;
        let new: ObjectState = decoder.get("new state")?;
        let current: Option<ObjectState> = decoder.get("current state")?;
        Ok((start, end, new, current))
    })?;
    let layout = read_layout(object)?;
    if start >= end || end > layout.objects {
        return Err(Errno::ERANGE);
    }
    change_states(object, &layout, start, end, |_, state| {
        let matches = match current {
            None => true,
            Some(ObjectState::Exists) => matches!(state, ObjectState::Exists | ObjectState::ExistsClean),
            Some(current) => state == current,
        };
        matches.then_some(new)
    })
}

pub(super) fn object_map_snap_add(_: &CallContext, object: &mut dyn ObjectHandle, _: &[u8]) -> Outcome {
    let layout = read_layout(object)?;
    change_states(object, &layout, 0, layout.objects, |_, state| {
        (state == ObjectState::Exists).then_some(ObjectState::ExistsClean)
    })
}

pub(super) fn object_map_snap_remove(
    _: &CallContext,
    object: &mut dyn ObjectHandle,
    input: &[u8],
) -> Outcome {
    let removed: BitVector = parse_one(input, "removed snapshot's object map")?;
    let layout = read_layout(object)?;
    change_states(object, &layout, 0, layout.objects, |index, state| {
        let changed_in_removed = match removed.get(index) {
            None => true, // beyond the snapshot's end
            Some(state) => state == ObjectState::Exists.byte(),
        };
        (state == ObjectState::ExistsClean && changed_in_removed).then_some(ObjectState::Exists)
    })
}

/// Where things are in the stored map; `ENOENT` when it is missing or empty.
fn read_layout(object: &dyn ObjectHandle) -> Result<MapLayout, Errno> {
    let size = object.size_bytes();
    if !object.exists() || size == 0 {
        return Err(Errno::ENOENT);
    }
    let head = object.read(0, HEADER_READ_BYTES.min(size))?;
    parse_header(&mut Decoder::new(&head)).map_err(|error| damaged(PLACE, &error))
}

/// Changes the states of objects `start..end` as `change` says (`None`: leave), block by block.
fn change_states(
    object: &mut dyn ObjectHandle,
    layout: &MapLayout,
    start: u64,
    end: u64,
    change: impl Fn(u64, ObjectState) -> Option<ObjectState>,
) -> Outcome {
    if start >= end {
        return done();
    }
    let first_block = start / OBJECTS_PER_BLOCK;
    let last_block = (end - 1) / OBJECTS_PER_BLOCK;
    let crcs = read_block_crcs(object, layout, first_block, last_block)?;
    for block in first_block..=last_block {
        let offset = block * BLOCK_BYTES;
        let length = BLOCK_BYTES.min(layout.data_bytes() - offset);
        let data = object.read(layout.data_offset + offset, length)?;
        let short = data.len() as u64 != length;
        let stored_crc = crcs.get((block - first_block) as usize).copied();
        let computed = block_crc(&data);
        if short || stored_crc.is_some_and(|crc| crc != computed) {
            let error = DecodeError {
                kind: DecodeErrorKind::BadChecksum {
                    stored: stored_crc.unwrap_or(0),
                    computed,
                },
                field: "object map block",
                offset: (layout.data_offset + offset) as usize,
            };
            return Err(damaged(PLACE, &error));
        }
        let base = block * OBJECTS_PER_BLOCK;
        let objects = OBJECTS_PER_BLOCK.min(layout.objects - base);
        let mut states = BitVector::from_data(objects, data.to_vec());
        let mut changed = false;
        for index in start.max(base)..end.min(base + objects) {
            let state = states.get(index - base).and_then(ObjectState::from_byte);
            let before = state.ok_or(Errno::EIO)?;
            if let Some(after) = change(index, before).filter(|after| *after != before) {
                changed |= states.set(index - base, after.byte());
            }
        }
        if !changed {
            continue;
        }
        let data = Bytes::copy_from_slice(states.data());
        if stored_crc.is_some() {
            let crc = block_crc(&data).to_bytes();
            object.write(layout.block_crc_offset(block), crc)?;
        }
        object.write(layout.data_offset + offset, data)?;
    }
    done()
}

/// Checks the footer's head and gives the checksums of some blocks; none when the map has no checksums.
fn read_block_crcs(
    object: &dyn ObjectHandle,
    layout: &MapLayout,
    first: u64,
    last: u64,
) -> Result<Vec<u32>, Errno> {
    let head = object.read(layout.footer_offset(), 12)?;
    let mut decoder = Decoder::new(&head);
    let mut field = |name| decoder.get::<u32>(name).map_err(|error| damaged(PLACE, &error));
    let footer_length = field("object map footer length")?;
    if footer_length == 0 {
        return Ok(Vec::new());
    }
    let header_crc = field("header checksum")?;
    let blocks = field("block count")?;
    if u64::from(footer_length) != layout.footer_length()
        || header_crc != layout.header_crc
        || u64::from(blocks) != layout.blocks()
    {
        tracing::error!(
            place = PLACE,
            footer_length,
            header_crc,
            blocks,
            "footer is damaged"
        );
        return Err(Errno::EIO);
    }
    let count = last - first + 1;
    let raw = object.read(layout.block_crc_offset(first), 4 * count)?;
    let mut decoder = Decoder::new(&raw);
    let mut crcs = Vec::new();
    for _ in 0..count {
        let crc = decoder.get("block checksum");
        crcs.push(crc.map_err(|error| damaged(PLACE, &error))?);
    }
    Ok(crcs)
}
