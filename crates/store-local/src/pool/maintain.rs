//! Cleaning up after others: files that no row names, left by clients that died.
//!
//! Two kinds exist. Files whose rows were removed have their names in `doomed`. Files whose rows were never committed
//! belong to a client that has its gid in `creators` and is dead: only then are the directories searched, for that gid's
//! files. Keeps invariant: a file is removed only if its maker is dead and, after that was seen, no row names it.

use std::path::Path;

use ferry_store::Result;
use rusqlite::OptionalExtension;

use super::Pool;
use super::files::FAN_OUT;
use crate::db::{Commit, SqlContext};
use crate::object::rows::is_file_name;
use crate::sys::alive;

/// Names handled per transaction.
const BATCH: usize = 256;

impl Pool {
    /// Removes what dead clients left. Does nothing while another process is at it.
    pub(crate) fn clean(&self, run: &Path) -> Result<()> {
        let Some(_hold) = self.slots.try_hold_maintenance()? else {
            return Ok(());
        };
        loop {
            let files: Vec<String> = self.names("SELECT file FROM doomed LIMIT 256")?;
            for file in &files {
                if self.has_row(file)? {
                    // No operation leaves that. The row is what reads go by.
                    tracing::warn!(file, "a data file was to be removed that a layer has: it stays");
                } else if is_file_name(file) {
                    self.files.remove(file)?;
                }
            }
            let done = files.len() < BATCH;
            if !files.is_empty() {
                let path = self.db.path().to_owned();
                self.db.write(Commit::Full, move |connection| {
                    for file in files {
                        connection
                            .execute("DELETE FROM doomed WHERE file = ?1", [file])
                            .at(&path, "write")?;
                    }
                    Ok(())
                })?;
            }
            if done {
                break;
            }
        }
        let creators: Vec<i64> = self.names("SELECT gid FROM creators LIMIT 256")?;
        for gid in creators {
            let gid = gid as u64;
            let alive = gid == self.gid
                || alive::is_alive(run, gid).map_err(|error| {
                    ferry_store::StoreError::io(
                        &error,
                        format!("look after client {gid} in {}", run.display()),
                    )
                })?;
            if !alive {
                self.collect_files_of(gid)?;
            }
        }
        Ok(())
    }

    fn names<T: rusqlite::types::FromSql>(&self, sql: &str) -> Result<Vec<T>> {
        let reader = self.db.reader()?;
        let rows = reader.prepare_cached(sql).and_then(|mut statement| {
            let rows = statement.query_map([], |row| row.get(0))?;
            rows.collect()
        });
        rows.at(self.db.path(), "read")
    }

    fn collect_files_of(&self, gid: u64) -> Result<()> {
        let prefix = format!("{gid:x}.");
        for number in 0..FAN_OUT {
            let dir = self.files.data().join(format!("{number:02x}"));
            let mut orphans = Vec::new();
            let listed = self.files.disk().list(&dir, &mut |name| {
                if name.starts_with(&prefix) {
                    orphans.push(name.trim_end_matches(".map").to_owned());
                }
            });
            self.files
                .at(listed, "list the directory of", &format!("{prefix}{number:x}"))?;
            orphans.sort();
            orphans.dedup();
            for name in orphans {
                if is_file_name(&name) && !self.has_row(&name)? {
                    self.files.remove(&name)?;
                }
            }
        }
        let path = self.db.path().to_owned();
        self.db.write(Commit::Full, move |connection| {
            connection
                .execute("DELETE FROM creators WHERE gid = ?1", [gid as i64])
                .at(&path, "write")
                .map(|_| ())
        })
    }

    /// Whether a layer has the file.
    pub(crate) fn has_row(&self, file: &str) -> Result<bool> {
        let reader = self.db.reader()?;
        let found: Option<i64> = reader
            .prepare_cached("SELECT lid FROM layers WHERE file = ?1")
            .and_then(|mut statement| statement.query_row([file], |row| row.get(0)).optional())
            .at(self.db.path(), "read")?;
        Ok(found.is_some())
    }
}
