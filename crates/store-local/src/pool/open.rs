//! Making, opening, and emptying a pool's directory; what a power loss leaves to be put right.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use ferry_store::class::ClassRegistry;
use ferry_store::{Errno, PoolId, Result, StoreError};
use parking_lot::Mutex;

use super::dirty::Dirty;
use super::files::{FAN_OUT, Files};
use super::label::Identity;
use super::layers::settled;
use super::slots::Slots;
use super::{Pool, schema};
use crate::db::{Commit, Db, Lifetime, SqlContext};
use crate::disk::Disk;
use crate::object::bitmap::{Bitmap, blocks_of};
use crate::object::inline;
use crate::pool::change::doom;
use crate::sys::private;

/// File that tells a pool's directory from any other.
const MARKER: &str = "ferry-pool";
const DATABASE: &str = "pool.db";
const SLOTS: &str = "slots";
const DATA: &str = "data";
/// All that is ours in a pool's directory, besides `data`.
const OURS: [&str; 6] = [
    "pool.db",
    "pool.db-wal",
    "pool.db-shm",
    "pool.lock",
    "slots",
    "ferry-pool",
];

/// Which pool a directory belongs to.
#[derive(Debug, Clone)]
pub(crate) struct PoolPlace {
    /// Its id.
    pub(crate) id: PoolId,
    /// Its name, for messages.
    pub(crate) name: String,
    /// Its directory.
    pub(crate) dir: PathBuf,
    /// The store's uuid.
    pub(crate) store: String,
}

impl PoolPlace {
    fn marker(&self) -> String {
        format!("ferry pool\nstore {}\npool {}\n", self.store, self.id)
    }

    fn owner(&self) -> schema::Owner {
        schema::Owner {
            store: self.store.clone(),
            pool: self.id.0,
        }
    }

    fn io(&self, error: &io::Error, path: &Path, action: &str) -> StoreError {
        StoreError::io(
            error,
            format!("pool '{}': {action} {}", self.name, path.display()),
        )
    }

    /// Makes the directory, or finishes making it: it must be empty but for a marker of this very pool.
    pub(crate) fn make(&self, disk: &dyn Disk) -> Result<()> {
        let failed = |error: &io::Error| self.io(error, &self.dir, "make");
        private::create_dir_all(&self.dir).map_err(|error| failed(&error))?;
        self.clear_torn_marker().map_err(|error| failed(&error))?;
        let mut entries = std::fs::read_dir(&self.dir).map_err(|error| failed(&error))?;
        if entries.next().is_some() {
            return Err(StoreError::new(
                Errno::ENOTEMPTY,
                format!(
                    "pool '{}': {} is not empty: name an empty or new directory",
                    self.name,
                    self.dir.display()
                ),
            ));
        }
        private::close_dir(&self.dir);
        let marker = self.dir.join(MARKER);
        let write = || -> io::Result<()> {
            let mut file = std::fs::File::create_new(&marker)?;
            file.write_all(self.marker().as_bytes())?;
            file.sync_all()
        };
        if let Err(error) = write() {
            let _ = std::fs::remove_file(&marker);
            return Err(self.io(&error, &marker, "make"));
        }
        let data = self.dir.join(DATA);
        disk.create_dir_all(&data)
            .map_err(|error| self.io(&error, &data, "make"))?;
        // ext4 puts the files of a directory, and otherwise all directories of a directory, into one group of inodes, and
        // takes no inode again within a minute of its removal: making a file would search through all that were removed.
        disk.spread_dirs(&data);
        for number in 0..FAN_OUT {
            let dir = data.join(format!("{number:02x}"));
            disk.create_dir_all(&dir)
                .map_err(|error| self.io(&error, &dir, "make"))?;
        }
        disk.sync_dir(&data)
            .map_err(|error| self.io(&error, &data, "sync"))?;
        let path = self.dir.join(DATABASE);
        let prepared = path.clone();
        let owner = self.owner();
        drop(Db::open(&path, Lifetime::Forever, move |connection| {
            schema::prepare(connection, &prepared, &owner)
        })?);
        let sync = |dir: &Path| std::fs::File::open(dir).and_then(|dir| dir.sync_all());
        sync(&self.dir).map_err(|error| failed(&error))?;
        match self.dir.parent() {
            Some(parent) => {
                sync(parent).map_err(|error| self.io(&error, parent, "sync"))?;
                // The parent may have been made just now too; if its parent cannot be opened, it was not by us.
                match parent.parent().map(std::fs::File::open) {
                    Some(Ok(above)) => above.sync_all().map_err(|error| self.io(&error, parent, "sync")),
                    _ => Ok(()),
                }
            }
            None => Ok(()),
        }
    }

    /// Removes a marker that was cut short by a kill or a full disk, if the directory holds nothing else.
    fn clear_torn_marker(&self) -> io::Result<()> {
        let names: Vec<_> = std::fs::read_dir(&self.dir)?
            .take(2)
            .map(|entry| entry.map(|entry| entry.file_name()))
            .collect::<io::Result<_>>()?;
        if !matches!(names.as_slice(), [name] if *name == *MARKER) {
            return Ok(());
        }
        let marker = self.dir.join(MARKER);
        let text = std::fs::read(&marker)?;
        if text.len() < self.marker().len() && self.marker().as_bytes().starts_with(&text) {
            std::fs::remove_file(&marker)?;
        }
        Ok(())
    }

    /// Its database.
    pub(crate) fn database(&self) -> PathBuf {
        self.dir.join(DATABASE)
    }

    /// Whether the directory is there and is this pool's.
    pub(crate) fn check(&self) -> Result<()> {
        let marker = self.dir.join(MARKER);
        match std::fs::read_to_string(&marker) {
            Ok(text) if text == self.marker() => Ok(()),
            Ok(_) => Err(StoreError::new(
                Errno::EIO,
                format!(
                    "pool '{}': {} is the directory of another pool; mount the right disk there",
                    self.name,
                    self.dir.display()
                ),
            )),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(StoreError::new(
                Errno::EIO,
                format!(
                    "pool '{}': its directory {} is missing or empty; mount its disk there, or remove the pool",
                    self.name,
                    self.dir.display()
                ),
            )),
            Err(error) => Err(self.io(&error, &marker, "read")),
        }
    }

    /// Removes what is ours from the directory, and the directory if nothing else is in it. A directory that is not this
    /// pool's is left alone.
    pub(crate) fn empty(&self, disk: &dyn Disk) -> Result<()> {
        if let Err(error) = self.check() {
            tracing::warn!(%error, "nothing of the pool's directory is removed");
            return Ok(());
        }
        let data = self.dir.join(DATA);
        for number in 0..FAN_OUT {
            let dir = data.join(format!("{number:02x}"));
            let mut names = Vec::new();
            let listed = disk.list(&dir, &mut |name| names.push(name.to_owned()));
            if listed.is_err() {
                continue;
            }
            for name in names {
                let path = dir.join(name);
                match disk.unlink(&path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        return Err(self.io(&error, &path, "remove"));
                    }
                    _ => {}
                }
            }
            let _ = std::fs::remove_dir(&dir);
        }
        let _ = std::fs::remove_dir(&data);
        for name in OURS {
            let path = self.dir.join(name);
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(self.io(&error, &path, "remove"));
                }
                _ => {}
            }
        }
        let _ = std::fs::remove_dir(&self.dir);
        Ok(())
    }

    /// Opens the pool.
    pub(crate) fn open(
        &self,
        disk: Arc<dyn Disk>,
        registry: Arc<ClassRegistry>,
        gid: u64,
        run: &Path,
    ) -> Result<Pool> {
        self.check()?;
        let path = self.dir.join(DATABASE);
        if !path.exists() {
            return Err(StoreError::new(
                Errno::EIO,
                format!("pool '{}': its database {} is missing", self.name, path.display()),
            ));
        }
        let prepared = path.clone();
        let owner = self.owner();
        let identity = Identity {
            store: u128::from_str_radix(&self.store, 16).unwrap_or_default(),
            pool: self.id.0,
        };
        let db = Db::open(&path, Lifetime::Forever, move |connection| {
            schema::check(connection, &prepared, &owner)
        })?;
        let pool = Pool {
            id: self.id,
            slots: Arc::new(Slots::open(&self.dir.join(SLOTS), gid, run)?),
            files: Files::new(disk, self.dir.join(DATA), gid, identity),
            db,
            registry,
            gid,
            dirty: Dirty::default(),
            creator: Mutex::new(false),
            leaked: AtomicBool::new(false),
            removed: Mutex::default(),
        };
        {
            let _hold = pool.slots.hold_open()?;
            let boot = pool.files.disk().boot_id();
            if !pool.slots.is_of_boot(&boot) {
                pool.recover()?;
                let version = schema::meta_get(&*pool.db.reader()?, pool.db.path(), "version_high")?;
                pool.slots.start(&boot, version.unwrap_or(0) as u64);
            }
        }
        Ok(pool)
    }
}

/// A provisional layer of an earlier boot.
struct Lost {
    lid: i64,
    oid: i64,
    file: String,
    parent: Option<(String, bool)>,
    /// Length that the parent had at least, when the layer was made.
    covered_bytes: u64,
}

impl Pool {
    /// Takes back what was provisional when the power went: heads made of nothing are gone, layers on top of others are
    /// made anew, empty.
    fn recover(&self) -> Result<()> {
        loop {
            let lost = self.lost()?;
            if lost.is_empty() {
                return Ok(());
            }
            for layer in &lost {
                if let Some((parent, chained)) = &layer.parent {
                    self.remake(layer, parent, *chained)?;
                }
            }
            let path = self.db.path().to_owned();
            self.db.write(Commit::Full, move |connection| {
                for layer in lost {
                    let map = Bitmap::empty(blocks_of(layer.covered_bytes));
                    match layer.parent {
                        Some(_) => settled(connection, &path, layer.lid, &map)?,
                        None => take_back(connection, &layer).at(&path, "write")?,
                    }
                }
                Ok(())
            })?;
        }
    }

    fn lost(&self) -> Result<Vec<Lost>> {
        let reader = self.db.reader()?;
        let rows = reader
            .prepare_cached(
                "SELECT l.lid, l.oid, l.file, p.file, l.chained, l.covered FROM layers l
                 LEFT JOIN layers p ON p.lid = l.parent
                 WHERE l.provisional IS NOT NULL AND l.provisional <> ?1 LIMIT 256",
            )
            .and_then(|mut statement| {
                let rows = statement.query_map([self.files.disk().boot_id()], |row| {
                    let parent: Option<String> = row.get(3)?;
                    let chained = row.get(4)?;
                    Ok(Lost {
                        lid: row.get(0)?,
                        oid: row.get(1)?,
                        file: row.get(2)?,
                        parent: parent.map(|parent| (parent, chained)),
                        covered_bytes: row.get::<_, i64>(5)? as u64,
                    })
                })?;
                rows.collect()
            });
        rows.at(self.db.path(), "read")
    }

    fn remake(&self, layer: &Lost, parent: &str, chained: bool) -> Result<()> {
        let path = self.files.path_of(&layer.file);
        let disk = self.files.disk();
        let remake = || -> io::Result<()> {
            let file = match disk.open(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => disk.create_new(&path)?,
                opened => opened?,
            };
            file.truncate(0)?;
            if !chained {
                self.files.share(parent, &layer.file)?;
            }
            file.truncate(layer.covered_bytes)?;
            file.sync_data()?;
            // What grew the parent, before the clone that rests on it was made, may be lost too.
            let below = match disk.open(&self.files.path_of(parent)) {
                // Damage is for those to report who read there.
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                opened => opened?,
            };
            if below.stat()?.size_bytes < layer.covered_bytes {
                below.truncate(layer.covered_bytes)?;
                below.sync_data()?;
            }
            Ok(())
        };
        remake().map_err(|error| StoreError::io(&error, format!("make anew {}", path.display())))?;
        self.files.sync_name(&layer.file)
    }
}

fn take_back(connection: &rusqlite::Connection, layer: &Lost) -> rusqlite::Result<()> {
    let bids: Vec<i64> = connection
        .prepare_cached("SELECT bid FROM bodies WHERE oid = ?1 AND layer = ?2")?
        .query_map((layer.oid, layer.lid), |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    for bid in bids {
        inline::drop_keys(connection, bid)?;
        connection.execute("DELETE FROM bodies WHERE bid = ?1", [bid])?;
    }
    doom(connection, &[(layer.lid, layer.file.clone())])?;
    connection
        .execute(
            "DELETE FROM objects WHERE oid = ?1 AND NOT EXISTS (SELECT 1 FROM bodies WHERE bodies.oid = ?1)",
            [layer.oid],
        )
        .map(|_| ())
}
