//! Who may touch an object now: one lock, one generation and one cache per *slot* of objects.
//!
//! An object's name hashes to a slot. A read holds its slot shared, a write exclusively, against tasks of this handle
//! (a lock in memory) and against all other handles and processes (a byte-range lock on the file `slots`, or a
//! [`lease`] of the slot, which spares a handle that is alone the system calls). The file is mapped by everyone and
//! holds per slot
//! * a generation, raised under the exclusive hold before anything that a cached row depends on changes, so that
//!   a cache of any process is right as long as the generation is the one it was filled under;
//! * the versions of the bulk objects last overwritten, which change without touching the database;
//! * the lease, and who came in last without one.
//!
//! Keeps invariant: an operation holds one slot at a time. Does not know what an object is made of.

mod lease;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ferry_store::{Errno, Result, StoreError};
use parking_lot::Mutex;
use tokio::sync::{
    OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock, RwLockReadGuard, RwLockWriteGuard, Semaphore,
};

use crate::disk::BootId;
use crate::pool::key::{NamedHash, ObjectKey};
use crate::sys::alive;
use crate::sys::ofd::{self, Hold};
use crate::sys::words::SharedWords;
use lease::{Lease, Revoked};

/// Slots of a pool.
pub(crate) const SLOTS: usize = 4096;
const MAGIC: u64 = u64::from_le_bytes(*b"FERRYSLT");
const FORMAT: u64 = 2;
const HEADER_WORDS: usize = 512;
const SLOT_WORDS: usize = 16;
const WORDS: usize = HEADER_WORDS + SLOTS * SLOT_WORDS;
/// Objects of a slot whose version is remembered exactly.
const WAYS: usize = 3;
/// Words of a slot: its lease, and who came in last without one.
const SLOT_LEASE: usize = 8;
const SLOT_LAST: usize = 9;
const WORD_NEXT_VERSION: usize = 5;
const WORD_RESERVED_VERSION: usize = 6;
/// Byte whose lock guards making the file anew, and opening the pool.
const LOCK_OPEN: u64 = 0;
/// Byte whose lock is held by whoever cleans up.
const LOCK_MAINTENANCE: u64 = 1;
const LOCK_FIRST_SLOT: u64 = 4096;
/// Readers that may join a shared hold before others get their turn.
const JOINS_MAX: u32 = 256;
/// A slot is leased to who came in without a lease this often in a row, nobody else in between.
const LEASE_AFTER: u32 = 2;
/// Objects whose rows are cached per slot.
const CACHED_MAX: usize = 16;
/// Tasks that may wait for other processes at once.
const WAITERS_MAX: usize = 64;

/// The slots of one open pool, for cached values of type `T`.
#[derive(Debug)]
pub(crate) struct Slots<T> {
    file: File,
    words: SharedWords,
    local: Box<[Local<T>]>,
    waiters: Arc<Semaphore>,
    place: String,
    /// This handle, in leases.
    gid: u64,
    /// Where clients show that they live.
    run: PathBuf,
}

#[derive(Debug)]
struct Local<T> {
    lock: Arc<RwLock<()>>,
    inside: Mutex<Inside>,
    cache: Mutex<Cache<T>>,
}

/// How this handle's tasks are in a slot.
#[derive(Debug, Default)]
struct Inside {
    /// Tasks inside; above 0, the lease is busy or the byte-range lock is held.
    tasks: u32,
    /// Tasks that came in since then.
    joins: u32,
    /// Whether they are in by the lease.
    leased: bool,
    /// How often this handle came in without a lease, nobody else in between.
    streak: u32,
}

#[derive(Debug)]
struct Cache<T> {
    generation: u64,
    rows: Vec<(ObjectKey, T)>,
}

/// A hold of one slot, shared or exclusive by the guard `G` of the lock in memory. Dropped before it, so that the slot
/// is left before the next task of this handle comes in.
#[derive(Debug)]
pub(crate) struct Held<T, S: std::ops::Deref<Target = Slots<T>>, G> {
    _presence: Presence<T, S>,
    _guard: G,
}

/// Leaves the slot when dropped.
#[derive(Debug)]
struct Presence<T, S: std::ops::Deref<Target = Slots<T>>> {
    slots: S,
    slot: usize,
}

impl<T, S: std::ops::Deref<Target = Slots<T>>> Drop for Presence<T, S> {
    fn drop(&mut self) {
        self.slots.leave(self.slot);
    }
}

/// A shared hold of one slot.
pub(crate) type SharedHold<T> = Held<T, Arc<Slots<T>>, OwnedRwLockReadGuard<()>>;
/// The exclusive hold of one slot.
pub(crate) type ExclusiveHold<T> = Held<T, Arc<Slots<T>>, OwnedRwLockWriteGuard<()>>;
/// A shared hold taken without waiting.
pub(crate) type SharedNow<'a, T> = Held<T, &'a Slots<T>, RwLockReadGuard<'a, ()>>;
/// An exclusive hold taken without waiting.
pub(crate) type ExclusiveNow<'a, T> = Held<T, &'a Slots<T>, RwLockWriteGuard<'a, ()>>;

impl<T, S: std::ops::Deref<Target = Slots<T>>, G> Held<T, S, G> {
    fn new(slots: S, slot: usize, guard: G) -> Self {
        Self {
            _presence: Presence { slots, slot },
            _guard: guard,
        }
    }
}

impl<T> Slots<T> {
    fn lease(&self, slot: usize) -> Lease<'_> {
        Lease(self.words.word(slot_base(slot) + SLOT_LEASE))
    }

    /// One task of this handle goes out.
    fn leave(&self, slot: usize) {
        let mut inside = self.local[slot].inside.lock();
        inside.tasks -= 1;
        if inside.tasks == 0 {
            match inside.leased {
                true => self.lease(slot).leave(self.gid),
                false => ofd::unlock(&self.file, lock_byte(slot)),
            }
        }
    }
}

fn lock_byte(slot: usize) -> u64 {
    LOCK_FIRST_SLOT + slot as u64
}

/// Held while a pool is opened; lets go when dropped.
#[derive(Debug)]
pub(crate) struct OpenHold<'a>(&'a File, u64);

impl Drop for OpenHold<'_> {
    fn drop(&mut self) {
        ofd::unlock(self.0, self.1);
    }
}

impl<T: Clone + Send + Sync + 'static> Slots<T> {
    /// Opens or makes the file. Blocks.
    pub(crate) fn open(path: &Path, gid: u64, run: &Path) -> Result<Self> {
        let place = path.display().to_string();
        let failed = |error: io::Error| StoreError::io(&error, format!("open {place}"));
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(failed)?;
        let mut head = [0u8; 16];
        let have = file.read_at(&mut head, 0).map_err(failed)?;
        let magic = u64::from_le_bytes([
            head[0], head[1], head[2], head[3], head[4], head[5], head[6], head[7],
        ]);
        if have == 16 && magic != 0 && magic != MAGIC {
            return Err(StoreError::new(
                Errno::EIO,
                format!(
                    "{place} is not a slots file; it holds nothing of value: end all users of the store and remove it"
                ),
            ));
        }
        let format = u64::from(head[8]);
        if magic == MAGIC && format > FORMAT {
            return Err(StoreError::new(
                Errno::EOPNOTSUPP,
                format!("{place} has format {format}, this program knows {FORMAT}: use a newer one"),
            ));
        }
        ofd::lock(&file, LOCK_OPEN, Hold::Exclusive).map_err(failed)?;
        let filled = SharedWords::fill(&file, WORDS);
        ofd::unlock(&file, LOCK_OPEN);
        filled.map_err(failed)?;
        let words = SharedWords::map(&file, WORDS)
            .map_err(failed)?
            .ok_or_else(|| StoreError::new(Errno::EIO, format!("{place} is shorter than it was made")))?;
        let local = (0..SLOTS)
            .map(|_| Local {
                lock: Arc::default(),
                inside: Mutex::default(),
                cache: Mutex::new(Cache {
                    generation: 0,
                    rows: Vec::new(),
                }),
            })
            .collect();
        Ok(Self {
            file,
            words,
            local,
            waiters: Arc::new(Semaphore::new(WAITERS_MAX)),
            place,
            gid,
            run: run.to_owned(),
        })
    }

    /// Excludes other openers. Blocks.
    pub(crate) fn hold_open(&self) -> Result<OpenHold<'_>> {
        ofd::lock(&self.file, LOCK_OPEN, Hold::Exclusive).map_err(|error| self.failed(&error))?;
        Ok(OpenHold(&self.file, LOCK_OPEN))
    }

    /// The right to clean up, unless somebody has it.
    pub(crate) fn try_hold_maintenance(&self) -> Result<Option<OpenHold<'_>>> {
        let taken = ofd::try_lock(&self.file, LOCK_MAINTENANCE, Hold::Exclusive)
            .map_err(|error| self.failed(&error))?;
        Ok(taken.then_some(OpenHold(&self.file, LOCK_MAINTENANCE)))
    }

    fn failed(&self, error: &io::Error) -> StoreError {
        StoreError::io(error, format!("lock {}", self.place))
    }

    /// Whether the content is of this boot. Only under [`Slots::hold_open`].
    pub(crate) fn is_of_boot(&self, boot: &BootId) -> bool {
        let [first, second] = boot_words(boot);
        self.get(0) == MAGIC && self.get(1) == FORMAT && self.get(3) == first && self.get(4) == second
    }

    /// Starts anew for this boot; versions go on from `version`. Only under [`Slots::hold_open`], and only when
    /// [`Slots::is_of_boot`] is false: then no other process of this boot has got past opening.
    pub(crate) fn start(&self, boot: &BootId, version: u64) {
        self.set(0, 0);
        for slot in 0..SLOTS {
            let base = slot_base(slot);
            self.set(base, 1);
            self.set(base + 1, version);
            for word in 2..SLOT_WORDS {
                self.set(base + word, 0);
            }
        }
        let [first, second] = boot_words(boot);
        self.set(1, FORMAT);
        self.set(2, SLOTS as u64);
        self.set(3, first);
        self.set(4, second);
        self.set(WORD_NEXT_VERSION, version + 1);
        self.set(WORD_RESERVED_VERSION, version);
        self.set(0, MAGIC);
    }

    fn get(&self, word: usize) -> u64 {
        self.words.word(word).load(Ordering::SeqCst)
    }

    fn set(&self, word: usize, value: u64) {
        self.words.word(word).store(value, Ordering::SeqCst);
    }

    /// A version never given before; and whether the reservation in the database must grow before it is used.
    pub(crate) fn next_version(&self) -> (u64, bool) {
        let version = self.words.word(WORD_NEXT_VERSION).fetch_add(1, Ordering::SeqCst);
        (version, version >= self.get(WORD_RESERVED_VERSION))
    }

    /// Says that the database has reserved all versions below `version`.
    pub(crate) fn versions_reserved(&self, version: u64) {
        self.words
            .word(WORD_RESERVED_VERSION)
            .fetch_max(version, Ordering::SeqCst);
    }

    /// Version of a bulk object as far as overwrites made it: exact for the objects last written, else a bound from
    /// above. Only under a hold.
    pub(crate) fn overwrite_version(&self, key: &ObjectKey) -> u64 {
        let base = slot_base(key.slot());
        for way in 0..WAYS {
            if self.get(base + 2 + 2 * way) == key.tag() {
                return self.get(base + 3 + 2 * way);
            }
        }
        self.get(base + 1)
    }

    /// Fills up the words with the version of an overwrite. Only under an exclusive hold.
    pub(crate) fn set_overwrite_version(&self, key: &ObjectKey, version: u64) {
        let base = slot_base(key.slot());
        let (mut oldest, mut oldest_version) = (0, u64::MAX);
        for way in 0..WAYS {
            let (tag, at) = (self.get(base + 2 + 2 * way), self.get(base + 3 + 2 * way));
            if tag == key.tag() {
                return self.set(base + 3 + 2 * way, version);
            }
            let at = if tag == 0 { 0 } else { at };
            if at < oldest_version {
                (oldest, oldest_version) = (way, at);
            }
        }
        let floor = self.get(base + 1).max(oldest_version);
        self.set(base + 1, floor);
        self.set(base + 2 + 2 * oldest, 0);
        self.set(base + 3 + 2 * oldest, version);
        self.set(base + 2 + 2 * oldest, key.tag());
    }

    /// Comes in without waiting, with the lock in memory held as `hold` says; false when somebody is in the way.
    fn enter(&self, slot: usize, hold: Hold) -> Result<bool> {
        let lease = self.lease(slot);
        let mut inside = self.local[slot].inside.lock();
        if inside.tasks > 0 {
            // Only readers meet others of this handle here. They join, but not for ever while somebody waits.
            let join = match inside.leased {
                true => lease.is_unwanted(self.gid),
                false => inside.joins < JOINS_MAX,
            };
            inside.tasks += u32::from(join);
            inside.joins += u32::from(join);
            return Ok(join);
        }
        if lease.enter(self.gid) {
            (inside.tasks, inside.joins, inside.leased) = (1, 0, true);
            return Ok(true);
        }
        let try_lock =
            |hold| ofd::try_lock(&self.file, lock_byte(slot), hold).map_err(|error| self.failed(&error));
        if !try_lock(hold)? {
            return Ok(false);
        }
        if lease.revoke_now() == Revoked::Busy {
            ofd::unlock(&self.file, lock_byte(slot));
            return Ok(false);
        }
        let last = self.words.word(slot_base(slot) + SLOT_LAST);
        inside.streak = match last.swap(self.gid, Ordering::SeqCst) == self.gid {
            true => inside.streak.saturating_add(1),
            false => 0,
        };
        let alone = inside.streak >= LEASE_AFTER && (hold == Hold::Exclusive || try_lock(Hold::Exclusive)?);
        if alone {
            lease.grant(self.gid);
            ofd::unlock(&self.file, lock_byte(slot));
        }
        (inside.tasks, inside.joins, inside.leased) = (1, 0, alone);
        Ok(true)
    }

    /// Comes in by queueing at the kernel; the lock in memory is held exclusively. Blocks.
    fn enter_queued(&self, slot: usize, hold: Hold) -> Result<()> {
        ofd::lock(&self.file, lock_byte(slot), hold).map_err(|error| self.failed(&error))?;
        // A client whose lock file cannot be looked at counts as alive.
        self.lease(slot)
            .revoke(|gid| alive::is_alive(&self.run, gid).unwrap_or(true));
        self.words
            .word(slot_base(slot) + SLOT_LAST)
            .store(self.gid, Ordering::SeqCst);
        let mut inside = self.local[slot].inside.lock();
        (inside.tasks, inside.joins, inside.leased, inside.streak) = (1, 0, false, 0);
        Ok(())
    }

    /// Takes a slot together with other readers, if that needs no waiting.
    pub(crate) fn shared_now(&self, slot: usize) -> Result<Option<SharedNow<'_, T>>> {
        let Ok(guard) = self.local[slot].lock.try_read() else {
            return Ok(None);
        };
        let entered = self.enter(slot, Hold::Shared)?;
        Ok(entered.then(|| Held::new(self, slot, guard)))
    }

    /// Takes a slot alone, if that needs no waiting.
    pub(crate) fn exclusive_now(&self, slot: usize) -> Result<Option<ExclusiveNow<'_, T>>> {
        let Ok(guard) = self.local[slot].lock.try_write() else {
            return Ok(None);
        };
        let entered = self.enter(slot, Hold::Exclusive)?;
        Ok(entered.then(|| Held::new(self, slot, guard)))
    }

    /// Takes a slot together with other readers.
    pub(crate) async fn shared(self: &Arc<Self>, slot: usize) -> Result<SharedHold<T>> {
        let local = &self.local[slot];
        let guard = local.lock.clone().read_owned().await;
        if self.enter(slot, Hold::Shared)? {
            return Ok(Held::new(self.clone(), slot, guard));
        }
        drop(guard);
        // Somebody else is in, or waits: let all readers of this handle leave, queue at the kernel, come in again.
        let guard = local.lock.clone().write_owned().await;
        let slots = self.clone();
        self.wait(move || {
            slots.enter_queued(slot, Hold::Shared)?;
            Ok(Held::new(slots, slot, guard.downgrade()))
        })
        .await
    }

    /// Takes a slot alone.
    pub(crate) async fn exclusive(self: &Arc<Self>, slot: usize) -> Result<ExclusiveHold<T>> {
        let guard = self.local[slot].lock.clone().write_owned().await;
        if self.enter(slot, Hold::Exclusive)? {
            return Ok(Held::new(self.clone(), slot, guard));
        }
        let slots = self.clone();
        self.wait(move || {
            slots.enter_queued(slot, Hold::Exclusive)?;
            Ok(Held::new(slots, slot, guard))
        })
        .await
    }

    /// Waits for the kernel on another thread. These waiters have their own bound: they must never take the threads
    /// that those they wait for need.
    async fn wait<R: Send + 'static>(&self, take: impl FnOnce() -> Result<R> + Send + 'static) -> Result<R> {
        let _permit = self.waiters.clone().acquire_owned().await;
        match tokio::task::spawn_blocking(take).await {
            Ok(result) => result,
            Err(error) => Err(StoreError::new(
                Errno::EIO,
                format!("lock {}: {error}", self.place),
            )),
        }
    }

    /// Tells every process that what it cached of the slot is no longer right. Only under an exclusive hold.
    pub(crate) fn bump(&self, slot: usize) {
        self.words.word(slot_base(slot)).fetch_add(1, Ordering::SeqCst);
    }

    /// A cached value that is still right. Only under a hold.
    pub(crate) fn cached(&self, key: &ObjectKey) -> Option<T> {
        let mut cache = self.local[key.slot()].cache.lock();
        let generation = self.get(slot_base(key.slot()));
        if cache.generation != generation {
            cache.rows.clear();
            cache.generation = generation;
        }
        cache
            .rows
            .iter()
            .find(|row| row.0 == *key)
            .map(|row| row.1.clone())
    }

    /// As [`Slots::cached`], of the object with this name, with its key. Only under a hold.
    pub(crate) fn cached_by_name(&self, name: &NamedHash<'_>) -> Option<(ObjectKey, T)> {
        let cache = self.local[name.slot()].cache.lock();
        if cache.generation != self.get(slot_base(name.slot())) {
            return None;
        }
        cache
            .rows
            .iter()
            .find(|row| row.0.is(name))
            .map(|row| (row.0.clone(), row.1.clone()))
    }

    /// Remembers a value just loaded. Only under a hold.
    pub(crate) fn remember(&self, key: &ObjectKey, value: T) {
        let mut cache = self.local[key.slot()].cache.lock();
        let generation = self.get(slot_base(key.slot()));
        if cache.generation != generation {
            cache.rows.clear();
            cache.generation = generation;
        }
        cache.rows.retain(|row| row.0 != *key);
        if cache.rows.len() >= CACHED_MAX {
            cache.rows.remove(0);
        }
        cache.rows.push((key.clone(), value));
    }
}

fn slot_base(slot: usize) -> usize {
    HEADER_WORDS + slot * SLOT_WORDS
}

fn boot_words(boot: &BootId) -> [u64; 2] {
    let (first, second) = boot.split_at(8);
    let word = |bytes: &[u8]| bytes.iter().fold(0u64, |word, byte| word << 8 | u64::from(*byte));
    [word(first), word(second)]
}
