//! Checks of the data directories: files that no row names, files in each other's places. Repairs rename only.

use std::path::{Path, PathBuf};

use ferry_store::Result;
use ferry_store::check::{CheckOptions, Gravity, Report};

use super::place_of;
use crate::db::SqlContext;
use crate::object::rows::is_file_name;
use crate::pool::Pool;
use crate::pool::files::FAN_OUT;
use crate::pool::label::Label;
use crate::sys::alive;

/// Directory beside `data` that files without a place are put into.
pub(crate) const PUT_ASIDE: &str = "lost+found";

/// What became of a file: where it is, and, by its label, what it is called.
struct Stray {
    path: PathBuf,
    name: String,
    label: Option<Label>,
}

/// Looks through the directories.
pub(super) fn check(pool: &Pool, run: &Path, options: CheckOptions, report: &mut Report) {
    let aside = pool.files.data().with_file_name(PUT_ASIDE);
    let mut strays = Vec::new();
    let mut unlabelled = 0;
    let mut dirs: Vec<PathBuf> = (0..FAN_OUT)
        .map(|number| pool.files.data().join(format!("{number:02x}")))
        .collect();
    dirs.push(aside.clone());
    for dir in dirs {
        let mut names = Vec::new();
        let listed = pool
            .files
            .disk()
            .list(&dir, &mut |name| names.push(name.to_owned()));
        match listed {
            Ok(()) => {}
            Err(_) if dir == aside => continue,
            Err(error) => {
                let what = format!("{}: {error}", dir.display());
                report.note(
                    Gravity::Damage,
                    "directory",
                    place_of(pool),
                    what,
                    "make it again, and check again",
                );
                continue;
            }
        }
        names.sort();
        for name in names {
            let path = dir.join(&name);
            match look(pool, run, &dir, &name, &path) {
                Ok(Seen::InPlace { labelled }) => unlabelled += u64::from(!labelled),
                Ok(Seen::Gone | Seen::UnderWay) => {}
                // What is aside and belongs nowhere was told when it was put there.
                Ok(Seen::Stray(label)) if dir == aside && belongs(pool, label.as_ref()).is_none() => {}
                Ok(Seen::Stray(label)) => strays.push(Stray { path, name, label }),
                Err(error) => {
                    report.note(Gravity::Damage, "database-rows", place_of(pool), error.what, "");
                }
            }
        }
    }
    if unlabelled > 0 {
        let what = format!("{unlabelled} data files have no label");
        let advice = "they are of an older program, or were copied without extended attributes: whether any two are in each other's place cannot be told";
        report.note(Gravity::Unjudged, "file-unlabelled", place_of(pool), what, advice);
    }
    tell(pool, &aside, strays, options, report);
}

enum Seen {
    InPlace {
        labelled: bool,
    },
    /// Removed since it was listed.
    Gone,
    /// Its maker lives, or who cleans up after that one will see to it.
    UnderWay,
    Stray(Option<Label>),
}

fn look(pool: &Pool, run: &Path, dir: &Path, name: &str, path: &Path) -> Result<Seen> {
    let base = name.trim_end_matches(".map");
    let Ok(file) = pool.files.disk().open(path) else {
        return Ok(Seen::Gone);
    };
    let label = pool.files.label_of(&*file).ok().flatten();
    if !is_file_name(base) {
        return Ok(Seen::Stray(label));
    }
    let belongs_here = pool.files.dir_of(base) == dir;
    let mislabelled = label
        .as_ref()
        .is_some_and(|label| *label != Label::Here(base.to_owned()));
    if belongs_here && !mislabelled && pool.has_row(base)? {
        let labelled = label.is_some() || base != name;
        return Ok(Seen::InPlace { labelled });
    }
    if belongs_here && !mislabelled && is_under_way(pool, run, base)? {
        return Ok(Seen::UnderWay);
    }
    match pool.files.disk().open(path) {
        Ok(_) => Ok(Seen::Stray(label)),
        Err(_) => Ok(Seen::Gone),
    }
}

fn is_under_way(pool: &Pool, run: &Path, file: &str) -> Result<bool> {
    let gid = file
        .split_once('.')
        .and_then(|(gid, _)| u64::from_str_radix(gid, 16).ok())
        .unwrap_or(0);
    if gid == pool.gid || alive::is_alive(run, gid).unwrap_or(true) {
        return Ok(true);
    }
    let reader = pool.db.reader()?;
    let count: rusqlite::Result<i64> = reader.query_row(
        "SELECT (SELECT count(*) FROM doomed WHERE file = ?1) + (SELECT count(*) FROM creators WHERE gid = ?2)",
        (file, gid as i64),
        |row| row.get(0),
    );
    Ok(count.at(pool.db.path(), "read")? > 0)
}

/// Where a file belongs by its label, if that place is in this pool and a layer has it.
fn belongs(pool: &Pool, label: Option<&Label>) -> Option<PathBuf> {
    match label {
        Some(Label::Here(name)) if pool.has_row(name).unwrap_or(false) => Some(pool.files.path_of(name)),
        _ => None,
    }
}

fn tell(pool: &Pool, aside: &Path, strays: Vec<Stray>, options: CheckOptions, report: &mut Report) {
    let disk = pool.files.disk();
    let mut moved = Vec::new();
    for stray in strays {
        let home = belongs(pool, stray.label.as_ref());
        let (gravity, kind, what) = match (&stray.label, &home) {
            (_, Some(home)) => (
                Gravity::Damage,
                "file-misplaced",
                format!("by its label it belongs at {}", home.display()),
            ),
            (Some(Label::Elsewhere), None) => (
                Gravity::Damage,
                "file-foreign",
                "by its label it is a file of another pool or store".to_owned(),
            ),
            _ => (
                Gravity::Leftover,
                "file-without-row",
                "no layer has it".to_owned(),
            ),
        };
        let advice = match home {
            Some(_) => "'rbd fsck --repair' puts it there".to_owned(),
            None => format!("'rbd fsck --repair' puts it aside, into {}", aside.display()),
        };
        let what = format!("{}: {what}", stray.path.display());
        report.note(gravity, kind, place_of(pool), what, advice);
        if !options.repair {
            continue;
        }
        // Two in each other's places: both leave before either arrives.
        let waiting = match stray.path.starts_with(aside) {
            true => Ok(stray.path.clone()),
            false => put_aside(pool, aside, &stray),
        };
        match (waiting, home) {
            (Ok(waiting), Some(home)) => {
                report.mended(format!("it was moved to {}", home.display()));
                moved.push((waiting, home));
            }
            (Ok(waiting), None) => report.mended(format!("it was moved to {}", waiting.display())),
            (Err(error), _) => {
                let what = format!("{}: {error}", stray.path.display());
                report.note(Gravity::Damage, "repair-failed", place_of(pool), what, "");
            }
        }
    }
    for (waiting, home) in moved {
        let arrived = disk.rename(&waiting, &home).and_then(|()| match home.parent() {
            Some(dir) => disk.sync_dir(dir),
            None => Ok(()),
        });
        if let Err(error) = arrived {
            let what = format!("{} stays: {}: {error}", waiting.display(), home.display());
            report.note(Gravity::Damage, "repair-failed", place_of(pool), what, "");
        }
    }
}

fn put_aside(pool: &Pool, aside: &Path, stray: &Stray) -> std::io::Result<PathBuf> {
    let disk = pool.files.disk();
    disk.create_dir_all(aside)?;
    let from = stray.path.parent().and_then(Path::file_name).unwrap_or_default();
    let mut to = aside.join(format!("{}-{}", from.display(), stray.name));
    for again in 1..100 {
        match disk.rename(&stray.path, &to) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                to = aside.join(format!("{}-{}-{again}", from.display(), stray.name));
            }
            renamed => {
                renamed?;
                disk.sync_dir(aside)?;
                if let Some(dir) = stray.path.parent() {
                    disk.sync_dir(dir)?;
                }
                return Ok(to);
            }
        }
    }
    Err(std::io::ErrorKind::AlreadyExists.into())
}
