//! Who may touch an object now: one lock, one generation and one cache per *slot* of objects.
//!
//! An object's name hashes to a slot. A read holds its slot shared, a write exclusively, against tasks of this handle
//! (a lock in memory) and against all other handles and processes (a byte-range lock on the file `slots`). The file
//! is mapped by everyone and holds per slot
//! * a generation, raised under the exclusive hold before anything that a cached row depends on changes, so that
//!   a cache of any process is right as long as the generation is the one it was filled under;
//! * the versions of the bulk objects last overwritten, which change without touching the database.
//!
//! Keeps invariant: an operation holds one slot at a time. Does not know what an object is made of.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ferry_store::{Errno, Result, StoreError};
use parking_lot::Mutex;
use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock, Semaphore};

use crate::disk::BootId;
use crate::pool::key::ObjectKey;
use crate::sys::ofd::{self, Hold};
use crate::sys::words::SharedWords;

/// Slots of a pool.
pub(crate) const SLOTS: usize = 4096;
const MAGIC: u64 = u64::from_le_bytes(*b"FERRYSLT");
const FORMAT: u64 = 1;
const HEADER_WORDS: usize = 512;
const SLOT_WORDS: usize = 8;
const WORDS: usize = HEADER_WORDS + SLOTS * SLOT_WORDS;
/// Objects of a slot whose version is remembered exactly.
const WAYS: usize = 3;
const WORD_NEXT_VERSION: usize = 5;
const WORD_RESERVED_VERSION: usize = 6;
/// Byte whose lock guards making the file anew, and opening the pool.
const LOCK_OPEN: u64 = 0;
/// Byte whose lock is held by whoever cleans up.
const LOCK_MAINTENANCE: u64 = 1;
const LOCK_FIRST_SLOT: u64 = 4096;
/// Readers that may join a shared hold before others get their turn.
const JOINS_MAX: u32 = 256;
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
}

#[derive(Debug)]
struct Local<T> {
    lock: Arc<RwLock<()>>,
    readers: Mutex<Readers>,
    cache: Mutex<Cache<T>>,
}

#[derive(Debug, Default)]
struct Readers {
    /// Tasks inside; the byte-range lock is held while above 0.
    inside: u32,
    /// Tasks that came in since it was taken.
    joins: u32,
}

#[derive(Debug)]
struct Cache<T> {
    generation: u64,
    rows: Vec<(ObjectKey, T)>,
}

/// A shared hold of one slot.
#[derive(Debug)]
pub(crate) struct SharedHold<T> {
    slots: Arc<Slots<T>>,
    slot: usize,
    _local: OwnedRwLockReadGuard<()>,
}

/// The exclusive hold of one slot.
#[derive(Debug)]
pub(crate) struct ExclusiveHold<T> {
    slots: Arc<Slots<T>>,
    slot: usize,
    _local: OwnedRwLockWriteGuard<()>,
}

impl<T> Drop for SharedHold<T> {
    fn drop(&mut self) {
        let mut readers = self.slots.local[self.slot].readers.lock();
        readers.inside -= 1;
        if readers.inside == 0 {
            ofd::unlock(&self.slots.file, lock_byte(self.slot));
        }
    }
}

impl<T> Drop for ExclusiveHold<T> {
    fn drop(&mut self) {
        ofd::unlock(&self.slots.file, lock_byte(self.slot));
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
    pub(crate) fn open(path: &Path) -> Result<Self> {
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
                readers: Mutex::default(),
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
        self.get(0) == MAGIC && self.get(3) == first && self.get(4) == second
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

    /// Takes a slot together with other readers.
    pub(crate) async fn shared(self: &Arc<Self>, slot: usize) -> Result<SharedHold<T>> {
        let local = &self.local[slot];
        let guard = local.lock.clone().read_owned().await;
        {
            let mut readers = local.readers.lock();
            let joins = readers.inside > 0 && readers.joins < JOINS_MAX;
            let first = readers.inside == 0
                && ofd::try_lock(&self.file, lock_byte(slot), Hold::Shared)
                    .map_err(|error| self.failed(&error))?;
            if joins || first {
                readers.inside += 1;
                readers.joins = if first { 0 } else { readers.joins + 1 };
                drop(readers);
                return Ok(SharedHold {
                    slots: self.clone(),
                    slot,
                    _local: guard,
                });
            }
        }
        drop(guard);
        // Somebody else is in, or waits: let all readers of this handle leave, queue at the kernel, come in again.
        let guard = local.lock.clone().write_owned().await;
        let slots = self.clone();
        self.wait(move || {
            ofd::lock(&slots.file, lock_byte(slot), Hold::Shared).map_err(|error| slots.failed(&error))?;
            let mut readers = slots.local[slot].readers.lock();
            readers.inside += 1;
            readers.joins = 0;
            drop(readers);
            Ok(SharedHold {
                _local: guard.downgrade(),
                slots,
                slot,
            })
        })
        .await
    }

    /// Takes a slot alone.
    pub(crate) async fn exclusive(self: &Arc<Self>, slot: usize) -> Result<ExclusiveHold<T>> {
        let guard = self.local[slot].lock.clone().write_owned().await;
        let hold = move |slots: Arc<Self>, guard| ExclusiveHold {
            slots,
            slot,
            _local: guard,
        };
        if ofd::try_lock(&self.file, lock_byte(slot), Hold::Exclusive).map_err(|error| self.failed(&error))? {
            return Ok(hold(self.clone(), guard));
        }
        let slots = self.clone();
        self.wait(move || {
            ofd::lock(&slots.file, lock_byte(slot), Hold::Exclusive).map_err(|error| slots.failed(&error))?;
            Ok(hold(slots, guard))
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
