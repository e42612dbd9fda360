//! Typed requests of class `lock`. The locker is the client that sends the request; it is not in the payload.

use ferry_store::Timestamp;

use super::types::{LockInfo, LockKind};
use crate::call::Call;
use crate::encoding::{DecodeError, Decoder, Encoder, EntityName};

fn framed(write: impl FnOnce(&mut Encoder)) -> impl FnOnce(&mut Encoder) {
    move |input| {
        input.frame(1, 1, write);
    }
}

/// Takes a lock; makes the object if missing. `EEXIST` if this client holds it under this cookie (unless `flags` say
/// renew), `EBUSY` if others hold it in a way that excludes this, `ENOENT` with must-renew if it is not held.
/// `duration` zero is for ever.
pub fn lock(
    name: &str,
    kind: LockKind,
    cookie: &str,
    tag: &str,
    description: &str,
    duration: Timestamp,
    flags: u8,
) -> Call<()> {
    let input = framed(|body| {
        body.put(name)
            .put(kind)
            .put(cookie)
            .put(tag)
            .put(description)
            .put(duration)
            .put(flags);
    });
    Call::unit(super::CLASS, "lock", input)
}

/// Gives a lock up. `ENOENT` if this client does not hold it under this cookie.
pub fn unlock(name: &str, cookie: &str) -> Call<()> {
    let input = framed(|body| {
        body.put(name).put(cookie);
    });
    Call::unit(super::CLASS, "unlock", input)
}

/// Takes a lock away from a locker. `ENOENT` if it does not hold it.
pub fn break_lock(name: &str, locker: EntityName, cookie: &str) -> Call<()> {
    let input = framed(|body| {
        body.put(name).put(locker).put(cookie);
    });
    Call::unit(super::CLASS, "break_lock", input)
}

/// Who holds a lock; [`LockInfo::default`] if nobody ever did.
pub fn get_info(name: &str) -> Call<LockInfo> {
    let input = framed(|body| {
        body.put(name);
    });
    Call::new(super::CLASS, "get_info", input)
}

/// Names of the object's locks.
pub fn list_locks() -> Call<Vec<String>> {
    fn decode(out: &[u8]) -> Result<Vec<String>, DecodeError> {
        Decoder::new(out).frame("locks", 1, |_, _, body| body.get("lock names"))
    }
    Call::with_decoder(super::CLASS, "list_locks", |_| {}, decode)
}

/// `EBUSY` unless this client holds the lock with exactly these. A read; also as the first step of writes.
pub fn assert_locked(name: &str, kind: LockKind, cookie: &str, tag: &str) -> Call<()> {
    let input = framed(|body| {
        body.put(name).put(kind).put(cookie).put(tag);
    });
    Call::unit(super::CLASS, "assert_locked", input)
}

/// Changes the cookie of a lock that this client holds with exactly these. `EBUSY` otherwise.
pub fn set_cookie(name: &str, kind: LockKind, cookie: &str, tag: &str, new_cookie: &str) -> Call<()> {
    let input = framed(|body| {
        body.put(name).put(kind).put(cookie).put(tag).put(new_cookie);
    });
    Call::unit(super::CLASS, "set_cookie", input)
}
