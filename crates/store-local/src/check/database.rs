//! Checks of a database file, of rows that no object leads to, and of counters.

use std::path::Path;
use std::sync::Arc;

use ferry_store::check::{CheckOptions, Gravity, Report};
use ferry_store::{Result, StoreError};
use rusqlite::{Connection, ErrorCode};

use super::place_of;
use crate::db::page::{self, Kept};
use crate::db::{Commit, Db, SqlContext, log};
use crate::pool::Pool;
use crate::pool::schema::{PAGE_BYTES, PAGE_SHIFT};
use crate::root::Root;

/// Damaged pages, and complaints of SQLite, that are told of one file.
const TOLD_MAX: usize = 100;

/// Looks at every page of a file on its own, so that each damaged one has a name.
pub(super) fn check_pages(place: &str, path: &Path, report: &mut Report) {
    let failed = |error: std::io::Error, report: &mut Report| {
        let what = format!("{}: {error}", path.display());
        report.note(Gravity::Damage, "database-file", place, what, RESTORE);
    };
    match page::kept(path) {
        Ok(Kept::Nothing) => {
            let what = format!(
                "{} is of an older program: its pages have no checksums",
                path.display()
            );
            let advice =
                "flipped bytes in it are found only where they make no sense; move the images to a new pool";
            return report.note(Gravity::Unjudged, "database-unchecked", place, what, advice);
        }
        Ok(Kept::Damaged) => {
            let what = format!("{}: the header is damaged", path.display());
            report.note(Gravity::Damage, "database-page", place, what, RESTORE);
        }
        Ok(Kept::Unknown) => {
            let what = format!("{} is empty, or its header is missing", path.display());
            return report.note(Gravity::Damage, "database-page", place, what, RESTORE);
        }
        Ok(Kept::Checksums) => {}
        Err(error) => return failed(error, report),
    }
    match page::misfits(path, TOLD_MAX) {
        Ok(numbers) => {
            for number in numbers {
                let what = format!(
                    "{}: page {} (bytes {} to {}) does not have its checksum",
                    path.display(),
                    number + 1,
                    number * page::PAGE as u64,
                    (number + 1) * page::PAGE as u64 - 1,
                );
                report.note(Gravity::Damage, "database-page", place, what, RESTORE);
            }
        }
        Err(error) => failed(error, report),
    }
}

const RESTORE: &str = "nothing reads it as data; put the file back from a copy of the whole store, or copy off the images that can still be read";

/// Looks at the log of a database that could not be opened.
pub(super) fn check_log(place: &str, path: &Path, report: &mut Report) {
    match log::damage(path) {
        Ok(None) => {}
        Ok(Some(what)) => report.note(Gravity::Damage, "database-log", place, what, log::WAY_OUT),
        Err(error) => {
            let what = format!("the log of {}: {error}", path.display());
            report.note(Gravity::Damage, "database-file", place, what, RESTORE);
        }
    }
}

/// The same of one that is open, and what SQLite reads of it, which is judged frame by frame.
fn check_open_log(place: &str, db: &Db, report: &mut Report) {
    let damage = match db.log_damage() {
        Ok(None) => {
            let copied = db.reader().and_then(|reader| {
                let copied = reader.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()));
                match copied {
                    // Somebody else is at it.
                    Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) => Ok(()),
                    copied => copied.at(db.path(), "copy the log into"),
                }
            });
            copied.err().map(|error| error.what)
        }
        Ok(damage) => damage,
        Err(error) => Some(error.what),
    };
    if let Some(what) = damage {
        report.note(Gravity::Damage, "database-log", place, what, log::WAY_OUT);
    }
}

/// The same, and SQLite's own check of how pages hang together.
pub(super) fn check_file(place: &str, db: &Arc<Db>, report: &mut Report) {
    check_open_log(place, db, report);
    check_pages(place, db.path(), report);
    let complaints = || -> Result<Vec<String>> {
        let reader = db.reader()?;
        let rows = reader
            .prepare("PRAGMA integrity_check(100)")
            .and_then(|mut statement| statement.query_map([], |row| row.get(0))?.collect());
        rows.at(db.path(), "check")
    };
    match complaints() {
        Ok(complaints) => {
            for complaint in complaints.into_iter().filter(|complaint| complaint != "ok") {
                let what = format!("{}: {complaint}", db.path().display());
                report.note(Gravity::Damage, "database-structure", place, what, RESTORE);
            }
        }
        Err(error) => report.note(Gravity::Damage, "database-structure", place, error.what, RESTORE),
    }
}

/// Checks `store.db` and where pools should be.
pub(super) fn check_root(root: &Root) -> Report {
    let mut report = Report::default();
    check_file("store", root.database(), &mut report);
    match root.pools() {
        Ok(pools) => {
            for pool in pools {
                if let Err(error) = root.pool_place(pool.id).and_then(|place| place.check()) {
                    let place = format!("pool {} ('{}')", pool.id, pool.name);
                    report.note(Gravity::Damage, "pool-directory", place, error.what, "");
                }
            }
        }
        Err(error) => report.note(Gravity::Damage, "database-rows", "store", error.what, RESTORE),
    }
    if let Err(error) = root.counters_hold() {
        let advice = "ids would be given twice: end all users of the store before anything is written";
        report.note(Gravity::Damage, "counter", "store", error.what, advice);
    }
    report
}

/// A question whose answers are findings: rows of one number (how many, which) or none.
struct Orphans {
    kind: &'static str,
    sql: &'static str,
    what: &'static str,
    gravity: Gravity,
    /// What makes it right, if that loses nothing.
    mend: Option<(&'static str, &'static str)>,
}

const ORPHANS: &[Orphans] = &[
    Orphans {
        kind: "rows-without-object",
        sql: "SELECT count(*) FROM bodies WHERE oid NOT IN (SELECT oid FROM objects)",
        what: "versions of objects whose own rows are missing",
        gravity: Gravity::Damage,
        mend: None,
    },
    Orphans {
        kind: "rows-without-object",
        sql: "SELECT count(*) FROM layers WHERE oid NOT IN (SELECT oid FROM objects)",
        what: "layers of objects whose own rows are missing; their files stay",
        gravity: Gravity::Damage,
        mend: None,
    },
    Orphans {
        kind: "rows-without-object",
        sql: "SELECT count(*) FROM redo WHERE oid NOT IN (SELECT oid FROM objects)",
        what: "unfinished changes of objects whose own rows are missing",
        gravity: Gravity::Damage,
        mend: None,
    },
    Orphans {
        kind: "rows-without-version",
        sql: "SELECT count(*) FROM pages WHERE at >> 18 NOT IN (SELECT bid FROM bodies)",
        what: "pages of versions whose rows are missing",
        gravity: Gravity::Damage,
        mend: None,
    },
    Orphans {
        kind: "rows-without-version",
        sql: "SELECT count(*) FROM omap WHERE bid NOT IN (SELECT bid FROM bodies)",
        what: "keys of versions whose rows are missing",
        gravity: Gravity::Damage,
        mend: None,
    },
    Orphans {
        kind: "rows-without-version",
        sql: "SELECT count(*) FROM xattrs WHERE bid NOT IN (SELECT bid FROM bodies)",
        what: "attributes of versions whose rows are missing",
        gravity: Gravity::Damage,
        mend: None,
    },
    Orphans {
        kind: "object-without-version",
        sql: "SELECT count(*) FROM objects WHERE oid NOT IN (SELECT oid FROM bodies)",
        what: "objects without a head and without clones",
        gravity: Gravity::Damage,
        mend: None,
    },
    Orphans {
        kind: "page-outside",
        sql: "SELECT count(*) FROM pages p JOIN bodies b ON b.bid = p.at >> 18
              WHERE b.layer IS NOT NULL OR length(p.data) > 4096
                 OR (p.at & 262143) * 4096 + length(p.data) > b.size",
        what: "pages behind the end of their version, or of a version that has none",
        gravity: Gravity::Damage,
        mend: None,
    },
    Orphans {
        kind: "snapshot-index",
        sql: "SELECT count(*) FROM clone_snaps WHERE bid NOT IN (SELECT bid FROM bodies WHERE clone IS NOT NULL)",
        what: "entries of the index of snapshots that lead nowhere; removals of these snapshots do not end",
        gravity: Gravity::Damage,
        mend: Some((
            "DELETE FROM clone_snaps WHERE bid NOT IN (SELECT bid FROM bodies WHERE clone IS NOT NULL)",
            "the entries are removed",
        )),
    },
    Orphans {
        kind: "doomed-layer",
        sql: "SELECT count(*) FROM doomed WHERE file IN (SELECT file FROM layers)",
        what: "data files of living layers that are listed for removal",
        gravity: Gravity::Damage,
        mend: Some((
            "DELETE FROM doomed WHERE file IN (SELECT file FROM layers)",
            "they are taken off the list",
        )),
    },
    Orphans {
        kind: "counter",
        sql: "SELECT max(s) FROM (SELECT max(snap) s FROM clone_snaps UNION ALL SELECT max(snap) FROM removed_snaps)
              WHERE s > (SELECT coalesce(max(value), 0) FROM meta WHERE key = 'snap_id')",
        what: "is the id of a snapshot that was given out, and the counter of these ids is below it",
        gravity: Gravity::Damage,
        mend: Some((
            "INSERT OR REPLACE INTO meta(key, value) SELECT 'snap_id', max(s) FROM
               (SELECT max(snap) s FROM clone_snaps UNION ALL SELECT max(snap) FROM removed_snaps)",
            "the counter is raised",
        )),
    },
    Orphans {
        kind: "counter",
        sql: "SELECT max(version) FROM bodies
              WHERE version > (SELECT coalesce(max(value), 0) FROM meta WHERE key = 'version_high')",
        what: "is the version of an object, and the counter of versions is below it",
        gravity: Gravity::Damage,
        mend: Some((
            "INSERT OR REPLACE INTO meta(key, value) SELECT 'version_high', max(version) FROM bodies",
            "the counter is raised",
        )),
    },
];

/// Rows that no object leads to, indexes and counters.
pub(super) fn check_tables(pool: &Pool, options: CheckOptions, report: &mut Report) {
    // The questions have these numbers in them.
    const { assert!(PAGE_BYTES == 4096 && PAGE_SHIFT == 18) };
    let path = pool.db.path().to_owned();
    for orphans in ORPHANS {
        let asked = pool.db.reader().and_then(|reader| {
            let count: rusqlite::Result<Option<i64>> = reader.query_row(orphans.sql, [], |row| row.get(0));
            count.at(&path, "check")
        });
        let count = match asked {
            Ok(None | Some(0)) => continue,
            Ok(Some(count)) => count,
            Err(error) => {
                report.note(
                    Gravity::Damage,
                    "database-rows",
                    place_of(pool),
                    error.what,
                    RESTORE,
                );
                continue;
            }
        };
        let advice = match orphans.mend {
            Some(_) => "'rbd fsck --repair' puts it right",
            None => "they are left as they are: they may be all that is left of an object",
        };
        report.note(
            orphans.gravity,
            orphans.kind,
            place_of(pool),
            format!("{count} {}", orphans.what),
            advice,
        );
        if let Some((sql, how)) = orphans.mend.filter(|_| options.repair) {
            let at = path.clone();
            let done: Result<(), StoreError> = pool.db.write(Commit::Full, move |connection: &Connection| {
                connection.execute(sql, []).at(&at, "repair").map(|_| ())
            });
            match done {
                Ok(()) => report.mended(how),
                Err(error) => report.note(Gravity::Damage, "repair-failed", place_of(pool), error.what, ""),
            }
        }
    }
}
