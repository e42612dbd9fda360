//! Who holds the lock of an image (rbd-format sheet, section 4).

use ferry_cls::lock::{self, LockInfo};
use ferry_store::IoCtx;

use super::directory;
use crate::error::{Result, optional};
use crate::names;

/// Whether a lock excludes others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockShape {
    /// One holder (`excl`).
    Exclusive,
    /// Holders of one tag (`shr`).
    Shared,
}

impl LockShape {
    /// Short name, as `rbd ls -l` shows it.
    pub fn short_name(self) -> &'static str {
        match self {
            Self::Exclusive => "excl",
            Self::Shared => "shr",
        }
    }
}

/// One holder of a lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Locker {
    /// The client: `client.4123`.
    pub client: String,
    /// Its cookie, which users call the lock's id; `auto ...` for the managed lock.
    pub cookie: String,
    /// Its address: `127.0.0.1:0/1115468069`.
    pub address: String,
}

/// A held lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldLock {
    /// Whether it excludes others.
    pub shape: LockShape,
    /// Tag; `internal` for the managed lock.
    pub tag: String,
    /// Who holds it; at least one.
    pub lockers: Vec<Locker>,
}

/// The lock of the image `name`, if anybody holds it. `ENOENT` ([`crate::ErrorKind::ImageMissing`]).
pub async fn list(io: &IoCtx, name: &str) -> Result<Option<HeldLock>> {
    let id = directory::id_of_name(io, name)
        .await?
        .ok_or_else(|| directory::missing(name))?;
    let call = lock::client::get_info(names::LOCK);
    let info = optional(ferry_cls::exec_read(io, &names::header_object(&id), call).await)?;
    info.map(held).ok_or_else(|| directory::missing(name))
}

/// What a lock record says.
pub(crate) fn held(info: LockInfo) -> Option<HeldLock> {
    let shape = if info.kind.is_exclusive() {
        LockShape::Exclusive
    } else {
        LockShape::Shared
    };
    let lockers: Vec<Locker> = info
        .lockers
        .into_iter()
        .map(|(id, info)| Locker {
            client: id.entity.to_string(),
            cookie: id.cookie,
            address: info.address.to_string(),
        })
        .collect();
    if lockers.is_empty() {
        None
    } else {
        Some(HeldLock {
            shape,
            tag: info.tag,
            lockers,
        })
    }
}
