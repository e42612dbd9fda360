//! What methods share: reading input and stored values with the right errno, and omap keys of an object.
//!
//! Keeps: an undecodable payload is `EINVAL`, a damaged stored value is `EIO` and is logged with its key, field and
//! byte (an errno has no room for them); every list is read in pages.

use bytes::Bytes;
use ferry_store::Errno;
use ferry_store::class::ObjectHandle;

use crate::encoding::{Decode, DecodeError, Decoder, Encode};

/// Result of methods.
pub(crate) type Outcome = Result<Vec<u8>, Errno>;

/// Most bytes of an object that a method reads at once: above any object map (65 MiB) and any format-1 header.
const MAX_WHOLE_READ_BYTES: u64 = 128 << 20;
/// Omap pairs read at a time.
const SCAN_PAGE: usize = 256;

/// Reads the payload; `EINVAL` when it does not decode.
pub(crate) fn parse<'a, T>(
    input: &'a [u8],
    read: impl FnOnce(&mut Decoder<'a>) -> Result<T, DecodeError>,
) -> Result<T, Errno> {
    read(&mut Decoder::new(input)).map_err(|error| {
        tracing::debug!(%error, "payload does not decode");
        Errno::EINVAL
    })
}

/// A payload that is one value.
pub(crate) fn parse_one<T: Decode>(input: &[u8], field: &'static str) -> Result<T, Errno> {
    parse(input, |decoder| decoder.get(field))
}

/// The answer that is one value.
pub(crate) fn answer(value: impl Encode) -> Outcome {
    Ok(value.to_bytes().to_vec())
}

/// The empty answer.
pub(crate) fn done() -> Outcome {
    Ok(Vec::new())
}

/// Decodes a stored value; `EIO` when it is damaged.
pub(crate) fn stored<T: Decode>(place: &str, value: &[u8]) -> Result<T, Errno> {
    T::from_slice(value).map_err(|error| damaged(place, &error))
}

/// `EIO`, logged with its place.
pub(crate) fn damaged(place: &str, error: &DecodeError) -> Errno {
    tracing::error!(place, %error, "stored value is damaged");
    Errno::EIO
}

/// `ENOENT` unless the object exists.
pub(crate) fn require_object(object: &dyn ObjectHandle) -> Result<(), Errno> {
    if object.exists() {
        Ok(())
    } else {
        Err(Errno::ENOENT)
    }
}

/// The raw value of a key.
pub(crate) fn read_raw(object: &dyn ObjectHandle, key: &[u8]) -> Result<Option<Bytes>, Errno> {
    match object.omap_get(key) {
        Err(Errno::ENOENT) => Ok(None), // an engine may say so of a missing object
        other => other,
    }
}

/// The value of a key, if the key is there.
pub(crate) fn read_key<T: Decode>(object: &dyn ObjectHandle, key: &str) -> Result<Option<T>, Errno> {
    match read_raw(object, key.as_bytes())? {
        Some(value) => stored(key, &value).map(Some),
        None => Ok(None),
    }
}

/// The value of a key; `ENOENT` without it.
pub(crate) fn require_key<T: Decode>(object: &dyn ObjectHandle, key: &str) -> Result<T, Errno> {
    read_key(object, key)?.ok_or(Errno::ENOENT)
}

/// Whether a key is there.
pub(crate) fn has_key(object: &dyn ObjectHandle, key: &str) -> Result<bool, Errno> {
    Ok(read_raw(object, key.as_bytes())?.is_some())
}

/// Sets a key.
pub(crate) fn write_key(object: &mut dyn ObjectHandle, key: &str, value: impl Encode) -> Result<(), Errno> {
    write_raw(object, key, value.to_bytes())
}

/// Sets a key to raw bytes.
pub(crate) fn write_raw(object: &mut dyn ObjectHandle, key: &str, value: Bytes) -> Result<(), Errno> {
    object.omap_set(Bytes::copy_from_slice(key.as_bytes()), value)
}

/// Removes a key.
pub(crate) fn remove_key(object: &mut dyn ObjectHandle, key: &str) -> Result<(), Errno> {
    object.omap_remove(Bytes::copy_from_slice(key.as_bytes()))
}

/// Up to `max` pairs whose key starts with `prefix`, after key `prefix` + `start_after`; keys without the prefix.
pub(crate) fn list_keys<T>(
    object: &dyn ObjectHandle,
    prefix: &str,
    start_after: &str,
    max: u64,
    read: impl Fn(&str, &[u8]) -> Result<T, Errno>,
) -> Result<Vec<(String, T)>, Errno> {
    let max = usize::try_from(max).unwrap_or(usize::MAX);
    let mut found = Vec::new();
    let mut after = Bytes::from(format!("{prefix}{start_after}"));
    while found.len() < max {
        let page = SCAN_PAGE.min(max - found.len());
        let (pairs, more) = match object.omap_list(&after, prefix.as_bytes(), page) {
            Err(Errno::ENOENT) => break,
            other => other?,
        };
        let Some(last) = pairs.keys().next_back().cloned() else {
            break;
        };
        for (key, value) in &pairs {
            let key = std::str::from_utf8(key).map_err(|_| Errno::EIO)?;
            let name = key.strip_prefix(prefix).ok_or(Errno::EIO)?;
            found.push((name.to_owned(), read(key, value)?));
        }
        if !more || last <= after {
            break;
        }
        after = last;
    }
    Ok(found)
}

/// The whole content; `EIO` when it is larger than anything a class stores.
pub(crate) fn read_whole(object: &dyn ObjectHandle) -> Result<Bytes, Errno> {
    let size = object.size_bytes();
    if size > MAX_WHOLE_READ_BYTES {
        return Err(Errno::EIO);
    }
    if size == 0 {
        return Ok(Bytes::new());
    }
    object.read(0, size)
}
