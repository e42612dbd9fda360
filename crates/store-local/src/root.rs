//! The store's root directory: `store.db` (who is who, which pools, who is fenced, settings) and `run/` (what lives now).
//!
//! Keeps invariant: ids of clients and pools are never given twice; making, removing and resuming the removal of pools
//! happen one at a time (a lock on the file `lock`). Every change that running clients must notice raises the epoch, a
//! word in shared memory that each operation looks at. Does not know objects.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ferry_store::{
    ClientInstance, EntityAddr, Errno, PoolId, PoolInfo, PoolOptions, Result, Setting, StoreError,
};
use rusqlite::{Connection, OptionalExtension};
use rustix::fs::FlockOperation;

use crate::db::{Commit, Db, Lifetime, SqlContext};
use crate::disk::Disk;
use crate::pool::open::PoolPlace;
use crate::pool::schema::{check_format, check_pages, meta_get, meta_set};
use crate::sys::alive::{self, Life};
use crate::sys::private;
use crate::sys::words::SharedWords;

/// Format of `store.db` of stores that are made now: its pages have checksums. Older ones stay as they are.
const FORMAT: i64 = 2;
/// First client id.
const FIRST_GID: i64 = 4100;
/// Pool that every store has.
const FIRST_POOL: &str = "rbd";
const FIRST_POOL_ID: i64 = 1;
/// Longest pool name in bytes.
const POOL_NAME_BYTES_MAX: usize = 255;
/// How long a fence waits for the operation that a stopped client has under way.
const FENCE_WAIT_MS: u64 = 30_000;

const TABLES: &str = "
CREATE TABLE meta(key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE pools(id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT UNIQUE, dir TEXT);
CREATE TABLE blocklist(gid INTEGER PRIMARY KEY, addr TEXT NOT NULL);
";
/// Stores that are older than this table get it when they are opened; programs that are older do not look at it.
const SETTINGS: &str = "
CREATE TABLE IF NOT EXISTS settings(section TEXT, name TEXT, value TEXT NOT NULL, PRIMARY KEY(section, name)) WITHOUT ROWID;
";

/// The open root of a store.
#[derive(Debug)]
pub(crate) struct Root {
    dir: PathBuf,
    run: PathBuf,
    db: Arc<Db>,
    uuid: String,
    epoch: SharedWords,
    lock: File,
}

/// Alone in making and removing pools; lets go when dropped.
struct Alone<'a>(&'a File);

impl Drop for Alone<'_> {
    fn drop(&mut self) {
        let _ = rustix::fs::flock(self.0, FlockOperation::Unlock);
    }
}

fn failed(path: &Path, action: &str) -> impl Fn(io::Error) -> StoreError {
    let what = format!("{action} {}", path.display());
    move |error| StoreError::io(&error, what.clone())
}

impl Root {
    /// Opens a store, or makes one in a directory that is missing or empty. Blocks.
    pub(crate) fn open(dir: &Path, disk: &dyn Disk) -> Result<Self> {
        private::create_dir_all(dir).map_err(failed(dir, "make"))?;
        let dir = std::fs::canonicalize(dir).map_err(failed(dir, "find"))?;
        let database = dir.join("store.db");
        if !database.exists() && dir.join("pools").exists() {
            return Err(StoreError::new(
                Errno::EIO,
                format!(
                    "{} is missing, and there are pools: put it back from a copy",
                    database.display()
                ),
            ));
        }
        if !database.exists() && holds_other_things(&dir)? {
            return Err(StoreError::new(
                Errno::EINVAL,
                format!(
                    "{} is not a Ferry store, and not empty: name a store or a new directory",
                    dir.display()
                ),
            ));
        }
        if !database.exists() {
            private::close_dir(&dir);
        }
        let run = dir.join("run");
        private::create_dir_all(&run).map_err(failed(&run, "make"))?;
        let lock_path = dir.join("lock");
        let lock = open_shared(&lock_path)?;
        let alone = hold(&lock, &lock_path)?;
        let prepared = database.clone();
        let lost = holds_other_things(&dir)?;
        let db = Db::open(&database, Lifetime::Forever, move |connection| {
            prepare(connection, &prepared, lost)
        })?;
        let epoch_path = run.join("epoch");
        let epoch = open_shared(&epoch_path)?;
        SharedWords::fill(&epoch, 1).map_err(failed(&epoch_path, "fill"))?;
        let epoch = SharedWords::map(&epoch, 1)
            .map_err(failed(&epoch_path, "map"))?
            .ok_or_else(|| StoreError::new(Errno::EIO, format!("{} shrank", epoch_path.display())))?;
        let uuid = db
            .reader()?
            .query_row("SELECT value FROM meta WHERE key = 'uuid'", [], |row| row.get(0))
            .at(db.path(), "read")?;
        drop(alone);
        let root = Self {
            dir,
            run,
            db,
            uuid,
            epoch,
            lock,
        };
        let (first, unfinished) = root.chores()?;
        if first || unfinished {
            let _alone = root.alone()?;
            root.do_chores(disk)?;
        }
        Ok(root)
    }

    fn alone(&self) -> Result<Alone<'_>> {
        hold(&self.lock, &self.dir.join("lock"))
    }

    /// Whether the first pool is still to be made, and whether removals are unfinished.
    fn chores(&self) -> Result<(bool, bool)> {
        let reader = self.db.reader()?;
        let first = meta_get(&reader, self.db.path(), "first_pool")?.is_none();
        let unfinished: i64 = reader
            .query_row("SELECT count(*) FROM pools WHERE name IS NULL", [], |row| {
                row.get(0)
            })
            .at(self.db.path(), "read")?;
        Ok((first, unfinished > 0))
    }

    fn do_chores(&self, disk: &dyn Disk) -> Result<()> {
        let (first, _) = self.chores()?;
        if first {
            let place = self.place(FIRST_POOL_ID, FIRST_POOL, None);
            self.make_dir(&place, disk)?;
            let path = self.db.path().to_owned();
            self.db.write(Commit::Full, move |connection| {
                connection
                    .execute(
                        "INSERT INTO pools(id, name) VALUES(?1, ?2)",
                        (FIRST_POOL_ID, FIRST_POOL),
                    )
                    .at(&path, "write")?;
                meta_set(connection, &path, "first_pool", 1)
            })?;
        }
        for (id, dir) in self.removed_pools()? {
            self.finish_removal(&self.place(id, "", dir), disk)?;
        }
        Ok(())
    }

    fn removed_pools(&self) -> Result<Vec<(i64, Option<String>)>> {
        let reader = self.db.reader()?;
        let rows = reader
            .prepare("SELECT id, dir FROM pools WHERE name IS NULL")
            .and_then(|mut statement| {
                let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
                rows.collect()
            });
        rows.at(self.db.path(), "read")
    }

    fn finish_removal(&self, place: &PoolPlace, disk: &dyn Disk) -> Result<()> {
        place.empty(disk)?;
        let (id, path) = (place.id.0, self.db.path().to_owned());
        self.db.write(Commit::Full, move |connection| {
            connection
                .execute("DELETE FROM pools WHERE id = ?1", [id])
                .at(&path, "write")
                .map(|_| ())
        })
    }

    fn place(&self, id: i64, name: &str, dir: Option<String>) -> PoolPlace {
        PoolPlace {
            id: PoolId(id),
            name: name.to_owned(),
            dir: match dir {
                Some(dir) => PathBuf::from(dir),
                None => self.dir.join("pools").join(id.to_string()),
            },
            store: self.uuid.clone(),
        }
    }

    /// Its database.
    pub(crate) fn database(&self) -> &Arc<Db> {
        &self.db
    }

    /// `EIO` when the counter of clients is not above all that are known to have been.
    pub(crate) fn counters_hold(&self) -> Result<()> {
        let reader = self.db.reader()?;
        let next = meta_get(&reader, self.db.path(), "next_gid")?.unwrap_or(FIRST_GID);
        let fenced: Option<i64> = reader
            .query_row("SELECT max(gid) FROM blocklist", [], |row| row.get(0))
            .at(self.db.path(), "read")?;
        match fenced {
            Some(gid) if gid >= next => Err(StoreError::new(
                Errno::EIO,
                format!("client {gid} was fenced, and the next client would have the id {next}"),
            )),
            _ => Ok(()),
        }
    }

    /// What lives now.
    pub(crate) fn run(&self) -> &Path {
        &self.run
    }

    /// Number that changes with pools and fences.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.word(0).load(Ordering::SeqCst)
    }

    fn raise_epoch(&self) {
        self.epoch.word(0).fetch_add(1, Ordering::SeqCst);
    }

    /// A new client, alive from now on.
    pub(crate) fn begin_client(&self) -> Result<(ClientInstance, Life)> {
        let path = self.db.path().to_owned();
        let gid = self.db.write(Commit::Full, move |connection| {
            let gid = meta_get(connection, &path, "next_gid")?.unwrap_or(FIRST_GID);
            meta_set(connection, &path, "next_gid", gid + 1)?;
            Ok(gid as u64)
        })?;
        let life = Life::begin(&self.run, gid).map_err(failed(&self.run, "begin to live in"))?;
        let instance = ClientInstance {
            gid,
            addr: EntityAddr {
                ip: [127, 0, 0, 1],
                port: 0,
                // Distinct among the clients of a store, and not the same after every start.
                nonce: (gid as u32).wrapping_mul(0x9e37_79b1) ^ 0x5bd1_e995,
            },
        };
        Ok((instance, life))
    }

    /// Whether a client is fenced.
    pub(crate) fn is_fenced(&self, gid: u64) -> Result<bool> {
        let reader = self.db.reader()?;
        let found: Option<i64> = reader
            .prepare_cached("SELECT gid FROM blocklist WHERE gid = ?1")
            .and_then(|mut statement| statement.query_row([gid as i64], |row| row.get(0)).optional())
            .at(self.db.path(), "read")?;
        Ok(found.is_some())
    }

    /// Fences a client, and waits for what it has under way. Blocks.
    pub(crate) fn fence(&self, client: &ClientInstance) -> Result<()> {
        let (path, client) = (self.db.path().to_owned(), *client);
        self.db.write(Commit::Full, move |connection| {
            let row = (client.gid as i64, client.addr.to_string());
            connection
                .execute("INSERT OR IGNORE INTO blocklist(gid, addr) VALUES(?1, ?2)", row)
                .at(&path, "write")
                .map(|_| ())
        })?;
        self.raise_epoch();
        // Whatever passed its check before the epoch was raised has been counted in before.
        for _ in 0..FENCE_WAIT_MS {
            let under_way =
                alive::operations_under_way(&self.run, client.gid).map_err(failed(&self.run, "look into"))?;
            if under_way == 0 {
                return Ok(());
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        Err(StoreError::new(
            Errno::ETIMEDOUT,
            format!("fence {client}: it is stopped in the middle of an operation; kill its process"),
        ))
    }

    /// All settings.
    pub(crate) fn settings(&self) -> Result<Vec<Setting>> {
        let reader = self.db.reader()?;
        let rows = reader
            .prepare_cached("SELECT section, name, value FROM settings")
            .and_then(|mut statement| {
                let rows = statement.query_map([], |row| {
                    Ok(Setting {
                        section: row.get(0)?,
                        name: row.get(1)?,
                        value: row.get(2)?,
                    })
                })?;
                rows.collect()
            });
        rows.at(self.db.path(), "read")
    }

    /// Keeps a setting. Blocks.
    pub(crate) fn set_setting(&self, setting: &Setting) -> Result<()> {
        setting.check()?;
        let (path, row) = (self.db.path().to_owned(), setting.clone());
        self.db.write(Commit::Full, move |connection| {
            let row = (row.section, row.name, row.value);
            connection
                .execute("INSERT OR REPLACE INTO settings VALUES(?1, ?2, ?3)", row)
                .at(&path, "write")
                .map(|_| ())
        })
    }

    /// Gives a setting up. Blocks.
    pub(crate) fn remove_setting(&self, section: &str, name: &str) -> Result<()> {
        let (path, row) = (self.db.path().to_owned(), (section.to_owned(), name.to_owned()));
        self.db.write(Commit::Full, move |connection| {
            connection
                .execute("DELETE FROM settings WHERE section = ?1 AND name = ?2", row)
                .at(&path, "write")
                .map(|_| ())
        })
    }

    /// All pools, sorted by name.
    pub(crate) fn pools(&self) -> Result<Vec<PoolInfo>> {
        let reader = self.db.reader()?;
        let rows: rusqlite::Result<Vec<(i64, String, Option<String>)>> = reader
            .prepare_cached("SELECT id, name, dir FROM pools WHERE name IS NOT NULL ORDER BY name")
            .and_then(|mut statement| {
                let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
                rows.collect()
            });
        let rows = rows.at(self.db.path(), "read")?;
        Ok(rows
            .into_iter()
            .map(|(id, name, dir)| {
                let place = self.place(id, &name, dir);
                PoolInfo {
                    id: place.id,
                    name,
                    dir: Some(place.dir),
                }
            })
            .collect())
    }

    /// Where pool `id` is.
    pub(crate) fn pool_place(&self, id: PoolId) -> Result<PoolPlace> {
        let reader = self.db.reader()?;
        let found: Option<(String, Option<String>)> = reader
            .prepare_cached("SELECT name, dir FROM pools WHERE id = ?1 AND name IS NOT NULL")
            .and_then(|mut statement| {
                statement
                    .query_row([id.0], |row| Ok((row.get(0)?, row.get(1)?)))
                    .optional()
            })
            .at(self.db.path(), "read")?;
        match found {
            Some((name, dir)) => Ok(self.place(id.0, &name, dir)),
            None => Err(StoreError::new(Errno::ENOENT, format!("there is no pool {id}"))),
        }
    }

    fn pool_id(&self, name: &str) -> Result<Option<i64>> {
        let reader = self.db.reader()?;
        let found = reader
            .prepare_cached("SELECT id FROM pools WHERE name = ?1")
            .and_then(|mut statement| statement.query_row([name], |row| row.get(0)).optional());
        found.at(self.db.path(), "read")
    }

    /// Makes a pool. Blocks.
    pub(crate) fn make_pool(&self, name: &str, options: &PoolOptions, disk: &dyn Disk) -> Result<PoolId> {
        if name.is_empty() || name.len() > POOL_NAME_BYTES_MAX || name.contains(['/', '@', '\0']) {
            return Err(StoreError::new(
                Errno::EINVAL,
                format!(
                    "'{name}' is no name for a pool: it must have 1 to {POOL_NAME_BYTES_MAX} bytes, without / and @"
                ),
            ));
        }
        let dir = match &options.dir {
            None => None,
            Some(dir) if dir.is_absolute() => match dir.to_str() {
                Some(text) => Some(text.to_owned()),
                None => {
                    return Err(StoreError::new(
                        Errno::EINVAL,
                        format!("pool '{name}': the path {} is not UTF-8", dir.display()),
                    ));
                }
            },
            Some(dir) => {
                return Err(StoreError::new(
                    Errno::EINVAL,
                    format!("pool '{name}': {} is not an absolute path", dir.display()),
                ));
            }
        };
        let _alone = self.alone()?;
        if self.pool_id(name)?.is_some() {
            return Err(StoreError::new(Errno::EEXIST, format!("pool '{name}' exists")));
        }
        // Under the lock the next id is nobody else's, so what is found under it was left by someone who was killed.
        let path = self.db.path().to_owned();
        let id: i64 = self
            .db
            .reader()?
            .query_row(
                "SELECT coalesce(max(seq), 0) + 1 FROM sqlite_sequence WHERE name = 'pools'",
                [],
                |row| row.get(0),
            )
            .at(&path, "read")?;
        let place = self.place(id, name, dir.clone());
        self.make_dir(&place, disk)?;
        let row = (id, name.to_owned(), dir);
        let inserted = self.db.write(Commit::Full, move |connection| {
            connection
                .execute("INSERT INTO pools(id, name, dir) VALUES(?1, ?2, ?3)", row)
                .at(&path, "write")
        });
        if let Err(error) = inserted {
            if let Err(left) = place.empty(disk) {
                tracing::warn!(error = %left, "the directory of a pool that was not made stays");
            }
            return Err(error);
        }
        self.raise_epoch();
        Ok(place.id)
    }

    /// Makes a pool's directory; one that a killed client left half-made under this very id is emptied first.
    fn make_dir(&self, place: &PoolPlace, disk: &dyn Disk) -> Result<()> {
        if place.check().is_ok() {
            place.empty(disk)?;
        }
        place.make(disk)
    }

    /// Removes a pool. Blocks.
    pub(crate) fn remove_pool(&self, name: &str, disk: &dyn Disk) -> Result<PoolId> {
        let _alone = self.alone()?;
        let Some(id) = self.pool_id(name)? else {
            return Err(StoreError::new(
                Errno::ENOENT,
                format!("there is no pool '{name}'"),
            ));
        };
        let place = self.pool_place(PoolId(id))?;
        let path = self.db.path().to_owned();
        self.db.write(Commit::Full, move |connection| {
            connection
                .execute("UPDATE pools SET name = NULL WHERE id = ?1", [id])
                .at(&path, "write")
                .map(|_| ())
        })?;
        self.raise_epoch();
        self.finish_removal(&place, disk)?;
        Ok(place.id)
    }
}

fn open_shared(path: &Path) -> Result<File> {
    File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(failed(path, "open"))
}

fn hold<'a>(lock: &'a File, path: &Path) -> Result<Alone<'a>> {
    rustix::fs::flock(lock, FlockOperation::LockExclusive)
        .map_err(|errno| failed(path, "lock")(errno.into()))?;
    Ok(Alone(lock))
}

/// Whether a directory has anything but what a store being made has.
fn holds_other_things(dir: &Path) -> Result<bool> {
    for entry in std::fs::read_dir(dir).map_err(failed(dir, "list"))? {
        let name = entry.map_err(failed(dir, "list"))?.file_name();
        let ours = [
            "lock",
            "run",
            "store.lock",
            "store.db",
            "store.db-wal",
            "store.db-shm",
        ];
        if !ours.iter().any(|known| name == *known) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Makes or checks the tables. `holds_others`: whether there is more in the directory than a store has that is being made.
fn prepare(connection: &Connection, path: &Path, holds_others: bool) -> Result<()> {
    let tables: i64 = connection
        .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
        .at(path, "read")?;
    if tables > 0 {
        let found = meta_get(connection, path, "format")?;
        check_format(found, FORMAT, path)?;
        if found == Some(FORMAT) {
            check_pages(path)?;
        }
        return connection.execute_batch(SETTINGS).at(path, "make tables in");
    }
    if holds_others {
        return Err(StoreError::new(
            Errno::EIO,
            format!("{} is empty, and was not: it is damaged", path.display()),
        ));
    }
    connection.execute_batch(TABLES).at(path, "make tables in")?;
    connection.execute_batch(SETTINGS).at(path, "make tables in")?;
    let uuid = format!("{:032x}", rand::random::<u128>());
    connection
        .execute("INSERT INTO meta(key, value) VALUES('uuid', ?1)", [uuid])
        .at(path, "write")?;
    meta_set(connection, path, "format", FORMAT)
}
