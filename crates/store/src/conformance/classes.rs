//! Object class `conf`: methods that show a case what a method sees and let it do what a method may do.
//!
//! Numbers in inputs are little-endian `u64`; [`offset_input`] builds them. The report of `capture` and `inspect` is
//! text, see [`Report`].

use bytes::Bytes;

use crate::class::{CallContext, ClassRegistry, ObjectHandle};
use crate::error::Errno;

/// Name of the class.
pub const CLASS: &str = "conf";
/// Xattr that `capture` leaves its report in.
pub const CAPTURED: &str = "captured";
/// Omap key that reports show.
pub const OMAP_KEY: &[u8] = b"key";
/// Xattr that reports show.
pub const XATTR: &str = "attribute";

/// Adds the class to an engine's registry.
///
/// Reading: `echo`, `fail` (errno), `inspect`, `client`, `seq`, `read` (offset, length), `omap_get` (key), `omap_list`
/// (max, prefix: keys joined by `,` and `+` when more follow), `xattr_get`, and `sneaky`, which is registered as reading
/// but tries to write. Writing: `capture`, `nothing`, `create` (byte: exclusive), `write` (offset, data), `write_full`,
/// `zero` (offset, length), `truncate` (size), `remove`, `omap_set` (`key=value`), `omap_add` (the same, `EEXIST` if the
/// key is there), `omap_remove`, `xattr_set`, `write_then_fail`.
pub fn register_test_class(registry: &mut ClassRegistry) {
    registry.register(CLASS, "echo", false, |_, _, input| Ok(input.to_vec()));
    registry.register(CLASS, "fail", false, |_, _, input| {
        let (errno, _) = number(input)?;
        Err(Errno(i32::try_from(errno).map_err(|_| Errno::EINVAL)?))
    });
    registry.register(CLASS, "inspect", false, |_, object, _| {
        Ok(report(object)?.into_bytes())
    });
    registry.register(CLASS, "client", false, |context, _, _| {
        Ok(context.client.gid.to_string().into_bytes())
    });
    registry.register(CLASS, "seq", false, |_, object, _| {
        Ok(object
            .snapset_seq()
            .map_or_else(|| "none".to_owned(), |seq| seq.to_string())
            .into_bytes())
    });
    registry.register(CLASS, "read", false, |_, object, input| {
        let (offset, rest) = number(input)?;
        let (length_bytes, _) = number(rest)?;
        Ok(object.read(offset, length_bytes)?.to_vec())
    });
    registry.register(CLASS, "omap_get", false, |_, object, input| {
        Ok(object.omap_get(input)?.ok_or(Errno::ENODATA)?.to_vec())
    });
    registry.register(CLASS, "omap_list", false, omap_list);
    registry.register(CLASS, "xattr_get", false, |_, object, input| {
        Ok(object.xattr_get(&text(input)?)?.ok_or(Errno::ENODATA)?.to_vec())
    });
    registry.register(CLASS, "sneaky", false, |_, object, _| {
        object.write_full(Bytes::from_static(b"sneaked in"))?;
        Ok(Vec::new())
    });
    register_writing(registry);
}

fn register_writing(registry: &mut ClassRegistry) {
    registry.register(CLASS, "capture", true, |_, object, _| {
        let seen = report(object)?;
        object.xattr_set(CAPTURED, seen.into_bytes().into())?;
        Ok(Vec::new())
    });
    registry.register(CLASS, "nothing", true, |_, _, _| Ok(Vec::new()));
    registry.register(CLASS, "create", true, |_, object, input| {
        object.create(input.first() == Some(&1))?;
        Ok(Vec::new())
    });
    registry.register(CLASS, "write", true, |_, object, input| {
        let (offset, data) = number(input)?;
        object.write(offset, Bytes::copy_from_slice(data))?;
        Ok(Vec::new())
    });
    registry.register(CLASS, "write_full", true, |_, object, input| {
        object.write_full(Bytes::copy_from_slice(input))?;
        Ok(Vec::new())
    });
    registry.register(CLASS, "zero", true, |_, object, input| {
        let (offset, rest) = number(input)?;
        let (length_bytes, _) = number(rest)?;
        object.zero(offset, length_bytes)?;
        Ok(Vec::new())
    });
    registry.register(CLASS, "truncate", true, |_, object, input| {
        object.truncate(number(input)?.0)?;
        Ok(Vec::new())
    });
    registry.register(CLASS, "remove", true, |_, object, _| {
        object.remove()?;
        Ok(Vec::new())
    });
    registry.register(CLASS, "omap_set", true, |_, object, input| {
        let (key, value) = pair(input)?;
        object.omap_set(key, value)?;
        Ok(Vec::new())
    });
    registry.register(CLASS, "omap_add", true, |_, object, input| {
        let (key, value) = pair(input)?;
        if object.omap_get(&key)?.is_some() {
            return Err(Errno::EEXIST);
        }
        object.omap_set(key, value)?;
        Ok(Vec::new())
    });
    registry.register(CLASS, "omap_remove", true, |_, object, input| {
        object.omap_remove(Bytes::copy_from_slice(input))?;
        Ok(Vec::new())
    });
    registry.register(CLASS, "xattr_set", true, |_, object, input| {
        let (name, value) = pair(input)?;
        object.xattr_set(&text(&name)?, value)?;
        Ok(Vec::new())
    });
    registry.register(CLASS, "write_then_fail", true, |_, object, _| {
        object.write_full(Bytes::from_static(b"must not stay"))?;
        object.omap_set(Bytes::from_static(OMAP_KEY), Bytes::from_static(b"must not stay"))?;
        Err(Errno::EDOM)
    });
}

/// What a method saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report<'a> {
    /// Existence.
    pub exists: bool,
    /// Size in bytes.
    pub size_bytes: u64,
    /// The first 16 bytes.
    pub data: &'a str,
    /// Value of [`OMAP_KEY`], `-` without it.
    pub omap: &'a str,
    /// Value of [`XATTR`], `-` without it.
    pub xattr: &'a str,
}

impl Report<'_> {
    /// The text of the report.
    pub fn text(&self) -> String {
        format!(
            "exists={} size={} data={} omap={} xattr={}",
            self.exists, self.size_bytes, self.data, self.omap, self.xattr
        )
    }
}

/// Input of methods that take an offset and then bytes.
pub fn offset_input(offset: u64, rest: &[u8]) -> Bytes {
    let mut input = offset.to_le_bytes().to_vec();
    input.extend_from_slice(rest);
    input.into()
}

/// Input of methods that take an offset and a length.
pub fn range_input(offset: u64, length_bytes: u64) -> Bytes {
    offset_input(offset, &length_bytes.to_le_bytes())
}

fn report(object: &dyn ObjectHandle) -> Result<String, Errno> {
    let shown = |value: Option<Bytes>| {
        value.map_or_else(
            || "-".to_owned(),
            |bytes| String::from_utf8_lossy(&bytes).into_owned(),
        )
    };
    let data = object.read(0, 16)?;
    Ok(Report {
        exists: object.exists(),
        size_bytes: object.size_bytes(),
        data: &String::from_utf8_lossy(&data),
        omap: &shown(object.omap_get(OMAP_KEY)?),
        xattr: &shown(object.xattr_get(XATTR)?),
    }
    .text())
}

fn omap_list(_: &CallContext, object: &mut dyn ObjectHandle, input: &[u8]) -> Result<Vec<u8>, Errno> {
    let (max, prefix) = number(input)?;
    let (values, more) = object.omap_list(b"", prefix, usize::try_from(max).map_err(|_| Errno::EINVAL)?)?;
    let keys: Vec<_> = values
        .keys()
        .map(|key| String::from_utf8_lossy(key).into_owned())
        .collect();
    let mut listed = keys.join(",");
    if more {
        listed.push('+');
    }
    Ok(listed.into_bytes())
}

fn number(input: &[u8]) -> Result<(u64, &[u8]), Errno> {
    let (head, rest) = input.split_first_chunk::<8>().ok_or(Errno::EINVAL)?;
    Ok((u64::from_le_bytes(*head), rest))
}

fn text(input: &[u8]) -> Result<String, Errno> {
    String::from_utf8(input.to_vec()).map_err(|_| Errno::EINVAL)
}

fn pair(input: &[u8]) -> Result<(Bytes, Bytes), Errno> {
    let at = input.iter().position(|byte| *byte == b'=').ok_or(Errno::EINVAL)?;
    Ok((
        Bytes::copy_from_slice(&input[..at]),
        Bytes::copy_from_slice(&input[at + 1..]),
    ))
}
