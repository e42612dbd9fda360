//! The lock of an image: who holds it, and locks that are taken and broken by hand (rbd-format sheet, section 4).

use ferry_cls::lock::{self, LockInfo, LockKind};
use ferry_store::{Errno, IoCtx, Timestamp};

use super::directory;
use crate::error::{ErrorKind, ImageError, Result, optional};
use crate::{header, names};

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
    let object = header_of(io, name).await?;
    let call = lock::client::get_info(names::LOCK);
    let info = optional(ferry_cls::exec_read(io, &object, call).await)?;
    info.map(held).ok_or_else(|| directory::missing(name))
}

/// Takes an advisory lock on the image `name`: exclusive, or shared with the holders of the same tag. It stays until it is
/// removed, whatever becomes of this process. `ENOENT` ([`crate::ErrorKind::ImageMissing`]); `EBUSY` and `EEXIST` if it is
/// held already.
pub async fn add(io: &IoCtx, name: &str, lock_id: &str, shared_tag: Option<&str>) -> Result<()> {
    let header = header_of(io, name).await?;
    let (kind, tag) = match shared_tag {
        Some(tag) => (LockKind::Shared, tag),
        None => (LockKind::Exclusive, ""),
    };
    let call = lock::client::lock(names::LOCK, kind, lock_id, tag, "", Timestamp::default(), 0);
    ferry_cls::exec_write(io, &header, call)
        .await
        .map_err(|error| match error.errno {
            Errno::EBUSY | Errno::EEXIST => ImageError::of(
                ErrorKind::LockHeld,
                error.errno,
                format!("the lock of image '{name}' is held already"),
            ),
            _ => error.into(),
        })?;
    crate::watch::notify_header_update(io, &header, None).await
}

/// Takes a lock away from `locker` (`client.4123`). A holder of an exclusive lock is fenced first, so that nothing that it
/// still has under way is written. `ENOENT` if it does not hold the lock, `EINVAL` for what is no client's name.
pub async fn remove(io: &IoCtx, name: &str, lock_id: &str, locker: &str) -> Result<()> {
    let header = header_of(io, name).await?;
    let info = ferry_cls::exec_read(io, &header, lock::client::get_info(names::LOCK)).await?;
    let found = info
        .lockers
        .iter()
        .find(|(id, _)| id.cookie == lock_id && id.entity.to_string() == locker);
    let Some((id, held)) = found else {
        let what = format!("'{locker}' holds no lock '{lock_id}' on image '{name}'");
        return Err(ImageError::new(Errno::ENOENT, what).hint("see who does with 'rbd lock ls'"));
    };
    if info.kind.is_exclusive()
        && id.entity.client_gid() != Some(io.store().instance().gid)
        && let Some(instance) = held.address.client_instance(id.entity)
    {
        io.store().blocklist_add(&instance).await?;
    }
    let call = lock::client::break_lock(names::LOCK, id.entity, &id.cookie);
    ferry_cls::exec_write(io, &header, call).await?;
    crate::watch::notify_header_update(io, &header, None).await
}

/// The header object of the image `name`.
async fn header_of(io: &IoCtx, name: &str) -> Result<String> {
    Ok(header::find(io, name).await?.object())
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
