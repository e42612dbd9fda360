//! The methods of class `lock`, for engines without an OSD (fact sheet section 4). The locker is the calling client.
//!
//! `list_locks` is not here: it has to list an object's xattrs, which [`ObjectHandle`] does not offer; calling it is
//! `EOPNOTSUPP`, as any unknown method.

use ferry_store::class::{CallContext, ClassRegistry, ObjectHandle};
use ferry_store::{Errno, Timestamp};

use super::types::{LockInfo, LockKind, LockerId, LockerInfo, flag};
use super::{CLASS, XATTR_PREFIX};
use crate::encoding::{DecodeError, Decoder, Encode, EntityAddress, EntityName};
use crate::object::{Outcome, answer, done, parse, require_object, stored};

/// Adds the methods of class `lock`.
pub fn register(registry: &mut ClassRegistry) {
    registry.register(CLASS, "lock", true, lock);
    registry.register(CLASS, "unlock", true, unlock);
    registry.register(CLASS, "break_lock", true, break_lock);
    registry.register(CLASS, "set_cookie", true, set_cookie);
    registry.register(CLASS, "get_info", false, get_info);
    registry.register(CLASS, "assert_locked", false, assert_locked);
}

fn parse_framed<'a, T>(
    input: &'a [u8],
    read: impl FnOnce(&mut Decoder<'a>) -> Result<T, DecodeError>,
) -> Result<T, Errno> {
    parse(input, |decoder| {
        decoder.frame("lock request", 1, |_, _, body| read(body))
    })
}

/// A lock's name; `EINVAL` when empty.
fn checked_name(name: String) -> Result<String, Errno> {
    if name.is_empty() {
        Err(Errno::EINVAL)
    } else {
        Ok(name)
    }
}

/// A kind that can be held.
fn checked_kind(kind: LockKind) -> Result<LockKind, Errno> {
    if kind == LockKind::None {
        Err(Errno::EINVAL)
    } else {
        Ok(kind)
    }
}

fn xattr_of(name: &str) -> String {
    format!("{XATTR_PREFIX}{name}")
}

/// The lock without lapsed lockers.
fn read_lock(context: &CallContext, object: &dyn ObjectHandle, name: &str) -> Result<LockInfo, Errno> {
    let xattr = xattr_of(name);
    let value = match object.xattr_get(&xattr) {
        Err(Errno::ENOENT | Errno::ENODATA) => None, // an engine may say so of a missing object or xattr
        other => other?,
    };
    let mut info = match value {
        Some(value) => stored::<LockInfo>(&xattr, &value)?,
        None => LockInfo::default(),
    };
    info.lockers
        .retain(|_, locker| locker.expiration == Timestamp::default() || locker.expiration >= context.now);
    Ok(info)
}

fn write_lock(object: &mut dyn ObjectHandle, name: &str, info: &LockInfo) -> Result<(), Errno> {
    object.xattr_set(&xattr_of(name), info.to_bytes())
}

fn caller(context: &CallContext, cookie: String) -> LockerId {
    LockerId {
        entity: EntityName::client(context.client.gid),
        cookie,
    }
}

fn lock(context: &CallContext, object: &mut dyn ObjectHandle, input: &[u8]) -> Outcome {
    struct Request {
        name: String,
        kind: LockKind,
        cookie: String,
        tag: String,
        description: String,
        duration: Timestamp,
        flags: u8,
    }
    let request = parse_framed(input, |body| {
        Ok(Request {
            name: body.get("lock name")?,
            kind: body.get("lock type")?,
            cookie: body.get("lock cookie")?,
            tag: body.get("lock tag")?,
            description: body.get("lock description")?,
            duration: body.get("lock duration")?,
            flags: body.get("lock flags")?,
        })
    })?;
    let name = checked_name(request.name)?;
    let kind = checked_kind(request.kind)?;
    let may_renew = request.flags & flag::MAY_RENEW != 0;
    let must_renew = request.flags & flag::MUST_RENEW != 0;
    if may_renew && must_renew {
        return Err(Errno::EINVAL);
    }

    let mut info = read_lock(context, object, &name)?;
    if !info.lockers.is_empty() && info.tag != request.tag {
        return Err(Errno::EBUSY);
    }
    let id = caller(context, request.cookie);
    if info.lockers.remove(&id).is_some() {
        if !may_renew && !must_renew {
            return Err(Errno::EEXIST);
        }
    } else if must_renew {
        return Err(Errno::ENOENT);
    }
    if !info.lockers.is_empty() && (kind.is_exclusive() || info.kind != kind) {
        return Err(Errno::EBUSY);
    }
    info.kind = kind;
    info.tag = request.tag;
    let locker = LockerInfo {
        expiration: expiration(context.now, request.duration),
        address: EntityAddress::legacy(context.client.addr),
        description: request.description,
    };
    info.lockers.insert(id, locker);
    write_lock(object, &name, &info)?;
    done()
}

/// Zero (never) for no duration; saturates at the end of 32-bit time.
fn expiration(now: Timestamp, duration: Timestamp) -> Timestamp {
    if duration == Timestamp::default() {
        return duration;
    }
    let nanoseconds = u64::from(now.nanoseconds) + u64::from(duration.nanoseconds);
    let seconds = u64::from(now.seconds) + u64::from(duration.seconds) + nanoseconds / 1_000_000_000;
    Timestamp {
        seconds: u32::try_from(seconds).unwrap_or(u32::MAX),
        nanoseconds: (nanoseconds % 1_000_000_000) as u32,
    }
}

fn unlock(context: &CallContext, object: &mut dyn ObjectHandle, input: &[u8]) -> Outcome {
    let (name, cookie): (String, String) = parse_framed(input, |body| {
        Ok((body.get("lock name")?, body.get("lock cookie")?))
    })?;
    remove_locker(context, object, &checked_name(name)?, &caller(context, cookie))
}

fn break_lock(context: &CallContext, object: &mut dyn ObjectHandle, input: &[u8]) -> Outcome {
    let (name, id) = parse_framed(input, |body| {
        let name: String = body.get("lock name")?;
        let entity = body.get("locker")?;
        let cookie = body.get("lock cookie")?;
        Ok((name, LockerId { entity, cookie }))
    })?;
    remove_locker(context, object, &checked_name(name)?, &id)
}

fn remove_locker(context: &CallContext, object: &mut dyn ObjectHandle, name: &str, id: &LockerId) -> Outcome {
    require_object(object)?;
    let mut info = read_lock(context, object, name)?;
    if info.lockers.remove(id).is_none() {
        return Err(Errno::ENOENT);
    }
    if info.kind == LockKind::ExclusiveEphemeral {
        object.remove()?;
    } else {
        write_lock(object, name, &info)?;
    }
    done()
}

fn get_info(context: &CallContext, object: &mut dyn ObjectHandle, input: &[u8]) -> Outcome {
    require_object(object)?;
    let name: String = parse_framed(input, |body| body.get("lock name"))?;
    answer(read_lock(context, object, &name)?)
}

struct Held {
    name: String,
    kind: LockKind,
    id: LockerId,
    tag: String,
}

fn parse_held(context: &CallContext, body: &mut Decoder<'_>) -> Result<Held, DecodeError> {
    Ok(Held {
        name: body.get("lock name")?,
        kind: body.get("lock type")?,
        id: caller(context, body.get("lock cookie")?),
        tag: body.get("lock tag")?,
    })
}

/// The lock; `EBUSY` unless the calling client holds it exactly so.
fn require_held(context: &CallContext, object: &dyn ObjectHandle, held: &Held) -> Result<LockInfo, Errno> {
    checked_kind(held.kind)?;
    if held.name.is_empty() {
        return Err(Errno::EINVAL);
    }
    require_object(object)?;
    let info = read_lock(context, object, &held.name)?;
    if info.lockers.contains_key(&held.id) && info.kind == held.kind && info.tag == held.tag {
        Ok(info)
    } else {
        Err(Errno::EBUSY)
    }
}

fn assert_locked(context: &CallContext, object: &mut dyn ObjectHandle, input: &[u8]) -> Outcome {
    let held = parse_framed(input, |body| parse_held(context, body))?;
    require_held(context, object, &held)?;
    done()
}

fn set_cookie(context: &CallContext, object: &mut dyn ObjectHandle, input: &[u8]) -> Outcome {
    let (held, new_cookie): (Held, String) = parse_framed(input, |body| {
        Ok((parse_held(context, body)?, body.get("new lock cookie")?))
    })?;
    let mut info = require_held(context, object, &held)?;
    let new_id = caller(context, new_cookie);
    if info.lockers.contains_key(&new_id) {
        return Err(Errno::EBUSY);
    }
    if let Some(locker) = info.lockers.remove(&held.id) {
        info.lockers.insert(new_id, locker);
    }
    write_lock(object, &held.name, &info)?;
    done()
}
