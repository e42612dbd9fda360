//! Snapshots of format-1 images, on `<name>.rbd` (fact sheet section 3.11).

use bytes::Bytes;
use ferry_store::class::{CallContext, ObjectHandle};
use ferry_store::{Errno, SnapId};

use super::snapshots::read_limit;
use crate::encoding::{Encode, Encoder};
use crate::object::{Outcome, done, parse, parse_one, read_whole, require_object, stored};
use crate::rbd::v1::{FIXED_BYTES, V1Header, V1Snapshot};

/// The header: `ENOENT` without object, `EINVAL` when it is shorter than the fixed part, `EIO` when damaged.
pub(super) fn read_v1_header(object: &dyn ObjectHandle) -> Result<V1Header, Errno> {
    require_object(object)?;
    let content = read_whole(object)?;
    if content.len() < FIXED_BYTES {
        return Err(Errno::EINVAL);
    }
    stored("format-1 header", &content)
}

/// Replaces the header; a longer one before leaves nothing behind.
fn write_v1_header(object: &mut dyn ObjectHandle, header: &V1Header) -> Result<(), Errno> {
    object.write_full(header.to_bytes())
}

/// A name that the NUL-separated block of names can hold.
fn check_name(name: &str) -> Result<(), Errno> {
    if name.is_empty() || name.contains('\0') {
        Err(Errno::EINVAL)
    } else {
        Ok(())
    }
}

pub(super) fn snap_list(_: &CallContext, object: &mut dyn ObjectHandle, _: &[u8]) -> Outcome {
    let header = read_v1_header(object)?;
    let mut out = Encoder::new();
    out.put(header.snap_seq).put(header.snaps.len() as u32);
    for snap in &header.snaps {
        out.put(snap.id).put(snap.image_size_bytes).put(&snap.name);
    }
    Ok(out.into_vec())
}

pub(super) fn snap_add(_: &CallContext, object: &mut dyn ObjectHandle, input: &[u8]) -> Outcome {
    let (name, id): (String, SnapId) = parse(input, |decoder| {
        Ok((decoder.get("snapshot name")?, decoder.get("snapshot id")?))
    })?;
    check_name(&name)?;
    let mut header = read_v1_header(object)?;
    if header.snap_seq > id.0 {
        return Err(Errno::ESTALE);
    }
    let clash = |snap: &V1Snapshot| snap.name == name || snap.id == id;
    if header.snaps.iter().any(clash) {
        return Err(Errno::EEXIST);
    }
    if header.snaps.len() as u64 >= read_limit(object)? {
        return Err(Errno::EDQUOT);
    }
    header.snap_seq = id.0;
    let newest = V1Snapshot {
        id,
        image_size_bytes: header.image_size_bytes,
        name,
    };
    header.snaps.insert(0, newest);
    write_v1_header(object, &header)?;
    done()
}

pub(super) fn snap_remove(_: &CallContext, object: &mut dyn ObjectHandle, input: &[u8]) -> Outcome {
    let name: String = parse_one(input, "snapshot name")?;
    let mut header = read_v1_header(object)?;
    let found = header.snaps.iter().position(|snap| snap.name == name);
    header.snaps.remove(found.ok_or(Errno::ENOENT)?);
    write_v1_header(object, &header)?;
    done()
}

pub(super) fn snap_rename(_: &CallContext, object: &mut dyn ObjectHandle, input: &[u8]) -> Outcome {
    let (id, new_name): (SnapId, String) = parse(input, |decoder| {
        Ok((decoder.get("snapshot id")?, decoder.get("new snapshot name")?))
    })?;
    check_name(&new_name)?;
    let mut header = read_v1_header(object)?;
    if header.snaps.iter().any(|snap| snap.name == new_name) {
        return Err(Errno::EEXIST);
    }
    let found = header.snaps.iter_mut().find(|snap| snap.id == id);
    found.ok_or(Errno::ENOENT)?.name = new_name;
    write_v1_header(object, &header)?;
    done()
}

/// Overwrites the text at the start, which has the same length in both states.
pub(super) fn write_text(object: &mut dyn ObjectHandle, text: &'static [u8]) -> Result<(), Errno> {
    object.write(0, Bytes::from_static(text))
}
