//! The table of watches: a small database in `run/`, good for one boot.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ferry_store::{ClientInstance, EntityAddr, Result, StoreError, WatchCookie, WatchInfo};

use crate::db::{Commit, Db, Lifetime, SqlContext};
use crate::disk::BootId;
use crate::sys::alive;

/// A watched object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) pool: i64,
    pub(crate) namespace: String,
    pub(crate) name: String,
}

/// The table.
#[derive(Debug)]
pub(crate) struct Registry {
    db: Arc<Db>,
    run: PathBuf,
}

impl Registry {
    /// Opens the table of this boot; tables of earlier boots are removed. Blocks.
    pub(crate) fn open(run: &Path, boot: &BootId) -> Result<Self> {
        let boot: String = boot.iter().map(|byte| format!("{byte:02x}")).collect();
        let stem = format!("watch-{boot}");
        if let Ok(entries) = std::fs::read_dir(run) {
            for entry in entries.flatten() {
                let name = entry.file_name();
                let name = name.to_string_lossy();
                if name.starts_with("watch-") && !name.starts_with(&stem) {
                    let _ = std::fs::remove_file(entry.path());
                }
            }
        }
        let path = run.join(format!("{stem}.db"));
        let prepared = path.clone();
        let db = Db::open(&path, Lifetime::ThisBoot, move |connection| {
            connection
                .execute_batch(
                    "CREATE TABLE IF NOT EXISTS watches(
                       seq INTEGER PRIMARY KEY AUTOINCREMENT, pool INTEGER NOT NULL, ns TEXT NOT NULL, name TEXT NOT NULL,
                       gid INTEGER NOT NULL, nonce INTEGER NOT NULL, cookie INTEGER NOT NULL, UNIQUE(gid, cookie));
                     CREATE INDEX IF NOT EXISTS watches_of ON watches(pool, ns, name)",
                )
                .at(&prepared, "make tables in")
        })?;
        Ok(Self {
            db,
            run: run.to_owned(),
        })
    }

    /// Adds a watch.
    pub(crate) fn add(&self, target: &Target, client: &ClientInstance, cookie: WatchCookie) -> Result<()> {
        let (path, target, client) = (self.db.path().to_owned(), target.clone(), *client);
        self.db.write(Commit::Lazy, move |connection| {
            connection
                .execute(
                    "INSERT INTO watches(pool, ns, name, gid, nonce, cookie) VALUES(?1, ?2, ?3, ?4, ?5, ?6)",
                    (
                        target.pool,
                        target.namespace,
                        target.name,
                        client.gid as i64,
                        client.addr.nonce,
                        cookie.0 as i64,
                    ),
                )
                .at(&path, "write")
                .map(|_| ())
        })
    }

    /// Removes a watch.
    pub(crate) fn remove(&self, gid: u64, cookie: WatchCookie) -> Result<()> {
        let path = self.db.path().to_owned();
        self.db.write(Commit::Lazy, move |connection| {
            connection
                .execute(
                    "DELETE FROM watches WHERE gid = ?1 AND cookie = ?2",
                    (gid as i64, cookie.0 as i64),
                )
                .at(&path, "write")
                .map(|_| ())
        })
    }

    /// Removes all watches of a client.
    pub(crate) fn remove_client(&self, gid: u64) -> Result<()> {
        let path = self.db.path().to_owned();
        self.db.write(Commit::Lazy, move |connection| {
            connection
                .execute("DELETE FROM watches WHERE gid = ?1", [gid as i64])
                .at(&path, "write")
                .map(|_| ())
        })
    }

    /// The living watchers of an object, oldest first. Rows of dead clients are removed.
    pub(crate) fn list(&self, target: &Target) -> Result<Vec<WatchInfo>> {
        let mut watchers = self.rows(target)?;
        let mut gids: Vec<u64> = watchers.iter().map(|watcher| watcher.gid).collect();
        gids.sort_unstable();
        gids.dedup();
        for gid in gids {
            let alive = alive::is_alive(&self.run, gid).map_err(|error| {
                StoreError::io(
                    &error,
                    format!("look after client {gid} in {}", self.run.display()),
                )
            })?;
            if !alive {
                watchers.retain(|watcher| watcher.gid != gid);
                self.remove_client(gid)?;
            }
        }
        Ok(watchers)
    }

    fn rows(&self, target: &Target) -> Result<Vec<WatchInfo>> {
        let reader = self.db.reader()?;
        let rows = reader
            .prepare_cached(
                "SELECT gid, nonce, cookie FROM watches WHERE pool = ?1 AND ns = ?2 AND name = ?3 ORDER BY seq",
            )
            .and_then(|mut statement| {
                let rows = statement.query_map((target.pool, &target.namespace, &target.name), |row| {
                    Ok(WatchInfo {
                        gid: row.get::<_, i64>(0)? as u64,
                        addr: Some(EntityAddr {
                            ip: [127, 0, 0, 1],
                            port: 0,
                            nonce: row.get(1)?,
                        }),
                        cookie: WatchCookie(row.get::<_, i64>(2)? as u64),
                    })
                })?;
                rows.collect()
            });
        rows.at(self.db.path(), "read")
    }
}
