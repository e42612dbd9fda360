//! The managed exclusive lock of an image (rbd-format sheet, section 4.1): one writer at a time, handed over on
//! request, taken from a dead owner after fencing it.
//!
//! Invariants:
//! * Between "is owner" turning true and turning false, the lock on the header names this handle's watch, or the one that was
//!   lost and is being replaced.
//! * It turns false only with the gate held exclusively: no write of this handle is under way at that moment, and
//!   all that was written is flushed.
//! * What a dead owner had written is durable before the lock is another's.
//! * The head's object map is loaded exactly while the lock is owned.
//! * However often others ask, it is given up once for it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use ferry_cls::lock::{self, LockInfo, LockKind};
use ferry_cls::rbd::client;
use ferry_store::{Errno, Timestamp, WatchCookie};
use tokio::sync::{Mutex, Notify, OwnedRwLockReadGuard, RwLockReadGuard, RwLockWriteGuard};

use crate::error::{ErrorKind, ImageError, Result, absent_is_fine, optional};
use crate::image::Image;
use crate::names;
use crate::watch::messages::Message;
use crate::watch::{self};

/// How long a writer asks a living owner for the lock before it gives up.
const REQUEST_LIMIT_MS: u64 = 60_000;
/// How often a writer notes the time in the header (`rbd_mtime_update_interval`).
const MODIFY_NOTE_SECONDS: u64 = 60;
/// Pause between two looks at a lock that somebody else holds, if nothing tells of a change.
const RETRY_MS: u64 = 200;

/// How often the lock may be given away between taking it and stopping the writes.
const MAX_HANDOVERS: usize = 20;

/// Lock state of one open handle.
#[derive(Debug, Default)]
pub struct ExclusiveLock {
    owner: AtomicBool,
    /// How often this handle has got the lock.
    tenures: AtomicU64,
    /// In which of these somebody asked for it last.
    asked_in: AtomicU64,
    /// The watch that the lock on the header names while it is owned: a lost one until its successor has been put in its place.
    named: parking_lot::Mutex<Option<WatchCookie>>,
    changing: Mutex<()>,
    changed: Notify,
    /// Held shared by who must not lose the lock to somebody that asks for it.
    kept: tokio::sync::RwLock<()>,
}

impl ExclusiveLock {
    /// Whether this handle owns the lock.
    pub fn is_owner(&self) -> bool {
        self.owner.load(Ordering::SeqCst)
    }

    pub(crate) fn owner_changed(&self) {
        self.changed.notify_waiters();
    }

    fn is_ours_now(&self, named: WatchCookie) {
        *self.named.lock() = Some(named);
        self.tenures.fetch_add(1, Ordering::SeqCst);
        self.owner.store(true, Ordering::SeqCst);
    }
}

/// Who holds the lock, seen from one handle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder {
    /// Nobody.
    Nobody,
    /// This handle.
    Us,
    /// Another handle that still watches the image.
    Alive(String),
    /// A handle whose process is gone.
    Dead(String),
    /// A lock taken by hand (`rbd lock add`).
    External(String),
}

/// The exclusive lock, or the lack of that feature; whoever asks for the lock waits until this is dropped.
#[derive(Debug)]
pub(crate) struct KeptLock<'a> {
    _kept: RwLockReadGuard<'a, ()>,
}

/// A time in which one handle owns the lock without a break. What was asked of the owner is done within it or not at all: whoever
/// asked asks the next owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tenure(u64);

/// Leave to write, held until the write is in the store.
#[derive(Debug)]
pub(crate) struct WriteGuard {
    _gate: OwnedRwLockReadGuard<()>,
}

impl Image {
    /// Makes sure that this handle may write: it is open for writing, knows the newest header, and owns the lock if the
    /// image has that feature.
    pub(crate) async fn begin_write(&self) -> Result<WriteGuard> {
        if self.inner.read_only {
            return Err(ImageError::new(
                Errno::EROFS,
                format!("image '{}' is open read-only", self.name()),
            ));
        }
        loop {
            self.check_open()?;
            self.acquire_lock().await?;
            self.refresh_for_client().await?;
            let gate = self.inner.gate.clone().read_owned().await;
            if !self.is_fresh() {
                continue;
            }
            if self.inner.lock.is_owner() || !self.header().needs_lock() {
                self.note_modification();
                return Ok(WriteGuard { _gate: gate });
            }
        }
    }

    /// As [`Image::begin_write`] if nothing has to be waited for.
    pub(crate) fn begin_write_now(&self) -> Option<WriteGuard> {
        if self.inner.read_only || self.check_open().is_err() {
            return None;
        }
        let gate = self.inner.gate.clone().try_read_owned().ok()?;
        if !self.is_fresh() || !self.inner.lock.is_owner() && self.header().needs_lock() {
            return None;
        }
        self.note_modification();
        Some(WriteGuard { _gate: gate })
    }

    /// Notes in the header, at most once in [`MODIFY_NOTE_SECONDS`], that the image is being written to.
    fn note_modification(&self) {
        let now = u64::from(Timestamp::now().seconds);
        let last = self.inner.modify_noted.load(Ordering::Relaxed);
        if now.saturating_sub(last) < MODIFY_NOTE_SECONDS
            || self
                .inner
                .modify_noted
                .compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed)
                .is_err()
        {
            return;
        }
        let image = self.clone();
        tokio::spawn(async move {
            let call = client::set_modify_timestamp();
            // A header that is gone, or a store that is shut down, has nobody left to read the time.
            if let Err(error) =
                ferry_cls::exec_write_ordered(&image.inner.io, &image.inner.header_object, call).await
            {
                tracing::debug!(image = image.name(), %error, "cannot note the time of a write");
            }
        });
    }

    /// Whether this handle owns the exclusive lock.
    pub fn owns_lock(&self) -> bool {
        self.inner.lock.is_owner()
    }

    /// Takes the exclusive lock, asking a living owner for it. Does nothing without the feature.
    /// `EBUSY` ([`ErrorKind::LockHeld`]) when the owner keeps it.
    pub async fn acquire_lock(&self) -> Result<()> {
        if self.inner.lock.is_owner() || !self.header().needs_lock() {
            return Ok(());
        }
        let deadline = tokio::time::Instant::now() + Duration::from_millis(REQUEST_LIMIT_MS);
        loop {
            let changed = self.inner.lock.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            match try_acquire(self).await? {
                Holder::Us => return Ok(()),
                Holder::Alive(who) => {
                    if tokio::time::Instant::now() >= deadline {
                        return Err(held(self, &who));
                    }
                    request(self, &who).await?;
                    let _ = tokio::time::timeout(Duration::from_millis(RETRY_MS), changed).await;
                }
                Holder::External(who) => return Err(held(self, &who)),
                Holder::Nobody | Holder::Dead(_) => {}
            }
        }
    }

    /// Takes the exclusive lock and keeps it: others that ask for it get it when the guard is dropped. Errors as
    /// [`Image::acquire_lock`].
    pub(crate) async fn keep_lock(&self) -> Result<KeptLock<'_>> {
        loop {
            self.acquire_lock().await?;
            let kept = self.inner.lock.kept.read().await;
            if self.inner.lock.is_owner() || !self.header().needs_lock() {
                return Ok(KeptLock { _kept: kept });
            }
        }
    }

    /// Since when this handle has owned the lock without a break; `None` if it does not.
    pub(crate) fn tenure(&self) -> Option<Tenure> {
        let tenure = Tenure(self.inner.lock.tenures.load(Ordering::SeqCst));
        self.inner.lock.is_owner().then_some(tenure)
    }

    /// Takes the exclusive lock and stops the writes of this handle; nobody is given the lock while the guard is held. Errors as
    /// [`Image::acquire_lock`], and `ERESTART` where somebody else got it each time, or it is not owned since `only_in` any more.
    pub(crate) async fn stop_writes(&self, only_in: Option<Tenure>) -> Result<RwLockWriteGuard<'_, ()>> {
        let is_over = || only_in.is_some() && self.tenure() != only_in;
        for _ in 0..MAX_HANDOVERS {
            if is_over() {
                break;
            }
            self.acquire_lock().await?;
            let gate = self.inner.gate.write().await;
            if is_over() {
                break;
            }
            if self.inner.lock.is_owner() || !self.header().needs_lock() {
                return Ok(gate);
            }
        }
        Err(ImageError::new(
            Errno::ERESTART,
            format!("image '{}' lost its lock", self.name()),
        ))
    }

    /// Takes the lock unless a living client has it; says who has it then.
    pub(crate) async fn try_acquire_lock(&self) -> Result<Holder> {
        if self.inner.lock.is_owner() || !self.header().needs_lock() {
            return Ok(Holder::Us);
        }
        try_acquire(self).await
    }
}

fn held(image: &Image, who: &str) -> ImageError {
    ImageError::of(
        ErrorKind::LockHeld,
        Errno::EBUSY,
        format!("image '{}': exclusive lock is held by {who}", image.name()),
    )
    .hint("stop that client, or wait until it is done")
}

fn cookie_text(cookie: WatchCookie) -> String {
    format!("auto {}", cookie.0)
}

fn parse_cookie(text: &str) -> Option<WatchCookie> {
    text.strip_prefix("auto ")?.parse().ok().map(WatchCookie)
}

/// One try: takes a free lock or that of a dead owner.
async fn try_acquire(image: &Image) -> Result<Holder> {
    let _one_at_a_time = image.inner.lock.changing.lock().await;
    if image.inner.lock.is_owner() {
        return Ok(Holder::Us);
    }
    image.check_open()?;
    let io = &image.inner.io;
    let object = &image.inner.header_object;
    let cookie = watch::ensure(image).await?;
    let call = lock::client::lock(
        names::LOCK,
        LockKind::Exclusive,
        &cookie_text(cookie),
        names::LOCK_TAG,
        "",
        Timestamp::default(),
        0,
    );
    // Fully durable, and with it all marks in the object map that the former owner made: this owner makes none for objects
    // that it finds marked.
    match ferry_cls::exec_write(io, object, call).await {
        Ok(()) => {}
        // This very handle holds it already: an earlier try was interrupted.
        Err(error) if error.errno == Errno::EEXIST => {}
        Err(error) if error.errno == Errno::EBUSY => {
            let info = ferry_cls::exec_read(io, object, lock::client::get_info(names::LOCK)).await?;
            let holder = holder(image, &info).await?;
            if let Holder::Dead(who) = &holder {
                take_from_dead(image, &info, who).await?;
            }
            return Ok(holder);
        }
        Err(error) => return Err(error.into()),
    }
    if let Err(error) = after_acquire(image).await {
        let _ = unlock(image, cookie).await;
        return Err(error);
    }
    image.inner.lock.is_ours_now(cookie);
    if let Some(client) = image.client_id() {
        // Not awaited: others learn of it soon, and their acks are no condition for writing.
        let image = image.clone();
        tokio::spawn(async move { watch::tell(&image, Message::AcquiredLock(client)).await });
    }
    Ok(Holder::Us)
}

async fn after_acquire(image: &Image) -> Result<()> {
    // The last owner may have changed the header in ways whose notify is still on its way.
    image.want_refresh();
    image.refresh_for_client().await?;
    crate::object_map::head::load_under_lock(image).await
}

/// Whom a lock record names.
async fn holder(image: &Image, info: &LockInfo) -> Result<Holder> {
    let Some((id, _)) = info.lockers.iter().next() else {
        return Ok(Holder::Nobody);
    };
    let who = format!("client.{}", id.entity.number);
    let cookie = parse_cookie(&id.cookie);
    let managed = info.tag == names::LOCK_TAG && info.kind == LockKind::Exclusive;
    let Some(cookie) = cookie.filter(|_| managed) else {
        return Ok(Holder::External(who));
    };
    let gid = id.entity.client_gid();
    if gid == Some(image.inner.io.store().instance().gid) && image.inner.watch.cookie() == Some(cookie) {
        return Ok(Holder::Us);
    }
    let alive = image
        .watchers()
        .await?
        .iter()
        .any(|w| Some(w.gid) == gid && w.cookie == cookie);
    Ok(if alive {
        Holder::Alive(who)
    } else {
        Holder::Dead(who)
    })
}

/// Fences a dead owner and breaks its lock, provided that it still is the one who holds it.
async fn take_from_dead(image: &Image, seen: &LockInfo, who: &str) -> Result<()> {
    let io = &image.inner.io;
    let object = &image.inner.header_object;
    let now = ferry_cls::exec_read(io, object, lock::client::get_info(names::LOCK)).await?;
    if now != *seen {
        return Ok(());
    }
    let Some((id, locker)) = seen.lockers.iter().next() else {
        return Ok(());
    };
    tracing::info!(
        image = image.name(),
        owner = who,
        "taking the exclusive lock from a dead owner"
    );
    let own_gid = io.store().instance().gid;
    if id.entity.client_gid() != Some(own_gid)
        && let Some(instance) = locker.address.client_instance(id.entity)
    {
        io.store().blocklist_add(&instance).await?;
    }
    // It can write no more, and whoever owns the lock next flushes only what it writes itself. While the lock is the dead
    // one's, so that whoever comes after a kill here does it again.
    image.sync_all_data().await?;
    let call = lock::client::break_lock(names::LOCK, id.entity, &id.cookie);
    absent_is_fine(ferry_cls::exec_write(io, object, call).await)
}

/// Asks the living owner for the lock.
async fn request(image: &Image, who: &str) -> Result<()> {
    let Some(client) = image.client_id() else {
        return Ok(());
    };
    let message = Message::RequestLock { client, force: false };
    let Some(reply) = optional(
        image
            .inner
            .io
            .store()
            .notify(
                image.inner.io.object(&image.inner.header_object),
                message.encode(),
                watch::NOTIFY_TIMEOUT_MS,
            )
            .await,
    )?
    else {
        return Ok(());
    };
    for (_, _, payload) in &reply.acks {
        if !payload.is_empty()
            && let Ok(result) = watch::messages::decode_response(payload)
            && result == -Errno::EROFS.0
        {
            return Err(held(image, who));
        }
    }
    Ok(())
}

async fn unlock(image: &Image, cookie: WatchCookie) -> Result<()> {
    let call = lock::client::unlock(names::LOCK, &cookie_text(cookie));
    absent_is_fine(ferry_cls::exec_write_ordered(&image.inner.io, &image.inner.header_object, call).await)
}

/// Somebody asks this owner for the lock, perhaps not for the first time: gives it up, once, as soon as nothing keeps it.
pub(crate) fn asked(image: &Image) {
    let lock = &image.inner.lock;
    let tenure = lock.tenures.load(Ordering::SeqCst);
    if lock.asked_in.swap(tenure, Ordering::SeqCst) == tenure {
        return;
    }
    let image = image.clone();
    tokio::spawn(async move {
        if let Err(error) = release_in(&image, Some(tenure)).await {
            tracing::error!(image = image.name(), %error, "cannot release the exclusive lock");
        }
    });
}

/// Gives the lock up: waits until nobody keeps it and for writes under way, flushes, unlocks. Does nothing when not owned.
pub(crate) async fn release(image: &Image) -> Result<()> {
    release_in(image, None).await
}

/// As [`release`], but only in that tenure: who asked in an earlier one has been given the lock since.
async fn release_in(image: &Image, tenure: Option<u64>) -> Result<()> {
    let _not_kept = image.inner.lock.kept.write().await;
    let _one_at_a_time = image.inner.lock.changing.lock().await;
    let is_another = |tenure| image.inner.lock.tenures.load(Ordering::SeqCst) != tenure;
    if !image.inner.lock.is_owner() || tenure.is_some_and(is_another) {
        return Ok(());
    }
    let gate = image.inner.gate.write().await;
    let flushed = image.flush_data().await;
    image.inner.around.give_up();
    image.inner.lock.owner.store(false, Ordering::SeqCst);
    image.inner.ahead.clear();
    let unloaded = crate::object_map::head::unload(image).await;
    let named = image.inner.lock.named.lock().take();
    let unlocked = match named {
        Some(cookie) => unlock(image, cookie).await,
        None => Ok(()),
    };
    drop(gate);
    if let Some(client) = image.client_id() {
        let image = image.clone();
        tokio::spawn(async move { watch::tell(&image, Message::ReleasedLock(client)).await });
    }
    flushed.and(unloaded).and(unlocked)
}

/// Last act of a handle: flushes and gives the lock up, also one that it is just about to get.
pub(crate) async fn close(image: &Image) -> Result<()> {
    let flushed = image.flush_data().await;
    flushed.and(release(image).await)
}

/// After a lost watch was registered anew: moves the lock to the new cookie, or drops it.
pub(crate) async fn rename_after_rewatch(image: &Image) {
    let lock = &image.inner.lock;
    let _one_at_a_time = lock.changing.lock().await;
    let (named, watched) = (*lock.named.lock(), image.inner.watch.cookie());
    let (Some(old), Some(new)) = (named, watched) else {
        return;
    };
    if old == new || !lock.is_owner() {
        return;
    }
    let call = lock::client::set_cookie(
        names::LOCK,
        LockKind::Exclusive,
        &cookie_text(old),
        names::LOCK_TAG,
        &cookie_text(new),
    );
    match ferry_cls::exec_write(&image.inner.io, &image.inner.header_object, call).await {
        Ok(()) => *lock.named.lock() = Some(new),
        Err(error) => {
            tracing::warn!(image = image.name(), %error, "cannot keep the exclusive lock after a lost watch");
            let _gate = image.inner.gate.write().await;
            image.inner.around.give_up();
            lock.owner.store(false, Ordering::SeqCst);
            *lock.named.lock() = None;
            image.inner.ahead.clear();
            image.inner.head_map.clear();
            image.inner.present.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::in_memory;

    /// Who holds the lock according to the header.
    async fn named(image: &Image) -> Vec<String> {
        let call = lock::client::get_info(names::LOCK);
        let info = ferry_cls::exec_read(&image.inner.io, &image.inner.header_object, call)
            .await
            .unwrap();
        info.lockers.keys().map(|id| id.cookie.clone()).collect()
    }

    #[tokio::test]
    async fn a_lock_that_is_given_up_right_after_its_watch_was_lost_is_nobodys() {
        let image = in_memory::open_small().await;
        image.acquire_lock().await.unwrap();
        watch::watch_again(&image).await.unwrap();
        release(&image).await.unwrap();
        rename_after_rewatch(&image).await;
        assert_eq!(named(&image).await, [""; 0]);
        image.close().await.unwrap();
    }

    #[tokio::test]
    async fn a_lock_whose_watch_was_lost_names_the_next_one() {
        let image = in_memory::open_small().await;
        image.acquire_lock().await.unwrap();
        let first = named(&image).await;
        watch::watch_again(&image).await.unwrap();
        rename_after_rewatch(&image).await;
        let second = cookie_text(image.inner.watch.cookie().unwrap());
        assert_ne!(first, [second.as_str()]);
        assert_eq!(named(&image).await, [second]);
        assert!(image.owns_lock());
        image.close().await.unwrap();
    }

    #[tokio::test]
    async fn who_asked_in_an_earlier_tenure_is_not_given_the_lock_again() {
        let image = in_memory::open_small().await;
        image.acquire_lock().await.unwrap();
        let first = image.inner.lock.tenures.load(Ordering::SeqCst);
        release_in(&image, Some(first)).await.unwrap();
        assert!(!image.owns_lock());
        image.acquire_lock().await.unwrap();
        release_in(&image, Some(first)).await.unwrap();
        assert!(image.owns_lock(), "asked before it was given up the last time");
        // Whoever asks now is heard all the same.
        asked(&image);
        while image.owns_lock() {
            tokio::task::yield_now().await;
        }
        image.close().await.unwrap();
    }

    #[tokio::test]
    async fn what_an_owner_was_asked_for_is_not_done_in_a_later_tenure() {
        let image = in_memory::open_small().await;
        image.acquire_lock().await.unwrap();
        let asked_in = image.tenure();
        release(&image).await.unwrap();
        image.acquire_lock().await.unwrap();
        let silent = crate::Progress::silent();
        let user = ferry_cls::rbd::SnapshotNamespace::User;
        let late = crate::snapshot::create_here(&image, "s", user.clone(), 0, asked_in, &silent).await;
        assert_eq!(late.unwrap_err().errno, Errno::ERESTART);
        image.refresh().await.unwrap();
        assert!(image.header().snap_by_name("s").is_none());
        let now = image.tenure();
        crate::snapshot::create_here(&image, "s", user, 0, now, &silent)
            .await
            .unwrap();
        image.close().await.unwrap();
    }

    #[test]
    fn lock_cookies_are_those_of_librbd() {
        assert_eq!(
            cookie_text(WatchCookie(140_475_025_882_368)),
            "auto 140475025882368"
        );
        assert_eq!(parse_cookie("auto 7"), Some(WatchCookie(7)));
        assert_eq!(parse_cookie("mine"), None);
    }
}
