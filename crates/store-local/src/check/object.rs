//! Checks of one object: its rows among themselves, its layers against their files, its index of snapshots.

use std::collections::BTreeSet;

use ferry_store::check::{CheckOptions, Finding, Gravity, Report};
use ferry_store::{Result, SnapId};

use super::place_of;
use crate::db::{Commit, SqlContext};
use crate::disk::DiskFile;
use crate::object::bitmap::blocks_of;
use crate::object::rows::{self, CloneBody, Layer, Object};
use crate::pool::Pool;
use crate::pool::files::sidecar_name;
use crate::pool::key::ObjectKey;
use crate::pool::label::Label;
use crate::pool::redo;

/// Bytes read at once when all data is read.
const READ_BYTES: usize = 1 << 20;
const RESTORE: &str = "reads of it fail; put the file back from a copy of the store, or remove the image";

/// Something that can be put right, under the exclusive hold.
pub(super) struct Mend {
    pub(super) finding: Finding,
    how: &'static str,
    sql: &'static str,
    numbers: (i64, i64),
}

/// Ids and keys of objects after `last`.
pub(super) fn keys_after(pool: &Pool, last: i64, max: usize) -> Result<Vec<(i64, ObjectKey)>> {
    let reader = pool.db.reader()?;
    let rows = reader
        .prepare_cached("SELECT oid, ns, name FROM objects WHERE oid > ?1 ORDER BY oid LIMIT ?2")
        .and_then(|mut statement| {
            let rows = statement.query_map((last, max as i64), |row| {
                let (oid, ns, name): (i64, String, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
                Ok((oid, ObjectKey::new(&ns.into(), &name)))
            })?;
            rows.collect()
        });
    rows.at(pool.db.path(), "read")
}

/// Looks at an object; gives what a repair can do. Only under a hold.
pub(super) fn check(pool: &Pool, key: &ObjectKey, options: CheckOptions, report: &mut Report) -> Vec<Mend> {
    let place = format!("{} {key}", place_of(pool));
    let loaded = pool
        .db
        .reader()
        .and_then(|reader| rows::load(&reader, pool.db.path(), key));
    let object = match loaded {
        Ok(Some(object)) => object,
        Ok(None) => return Vec::new(),
        Err(error) => {
            let advice =
                "reads of it fail; put the database back from a copy of the store, or remove the image";
            report.note(Gravity::Damage, "object-rows", place, error.what, advice);
            return Vec::new();
        }
    };
    let mut mends = Vec::new();
    check_clones(pool, &object, &place, report, &mut mends);
    check_layers(&object, &place, report, &mut mends);
    if let Some(steps) = &object.redo
        && (redo::decode(steps).is_none() || object.head_layer().is_none())
    {
        let what = "its unfinished change cannot be read";
        report.note(
            Gravity::Damage,
            "redo",
            &*place,
            what,
            "no operation on the object gets by it",
        );
    }
    for layer in &object.layers {
        check_file(pool, &object, layer, &place, options, report);
    }
    mends
}

fn check_clones(pool: &Pool, object: &Object, place: &str, report: &mut Report, mends: &mut Vec<Mend>) {
    let mut below = SnapId(0);
    for clone in &object.clones {
        let ascending = clone.snaps.is_sorted_by(|first, second| first < second);
        let inside = clone.snaps.iter().all(|snap| *snap > below && *snap <= clone.id);
        if clone.snaps.is_empty() || !ascending || !inside || clone.id.0 > object.snap_seq {
            let what = format!("clone {} serves snapshots that it cannot serve", clone.id.0);
            report.note(Gravity::Damage, "clone-snapshots", place, what, "");
        }
        let end = |extent: &ferry_store::Extent| extent.offset.saturating_add(extent.length_bytes);
        if clone
            .overlap
            .iter()
            .any(|extent| end(extent) > clone.body.size_bytes)
        {
            let what = format!(
                "clone {} says that more of it is unchanged than it has",
                clone.id.0
            );
            report.note(Gravity::Damage, "clone-overlap", place, what, "");
        }
        below = clone.id;
        check_index(pool, clone, place, report, mends);
    }
}

fn check_index(pool: &Pool, clone: &CloneBody, place: &str, report: &mut Report, mends: &mut Vec<Mend>) {
    let bid = clone.body.bid;
    let listed = pool.db.reader().and_then(|reader| {
        let rows: rusqlite::Result<BTreeSet<i64>> = reader
            .prepare_cached("SELECT snap FROM clone_snaps WHERE bid = ?1")
            .and_then(|mut statement| statement.query_map([bid], |row| row.get(0))?.collect());
        rows.at(pool.db.path(), "read")
    });
    let listed = match listed {
        Ok(listed) => listed,
        Err(error) => {
            report.note(Gravity::Damage, "database-rows", place, error.what, "");
            return;
        }
    };
    let served: BTreeSet<i64> = clone.snaps.iter().map(|snap| snap.0 as i64).collect();
    let mut entry = |snap: i64, missing: bool| {
        let (what, how, sql) = match missing {
            true => (
                "is missing in the index of snapshots: removing it leaves the clone",
                "the entry is made",
                "INSERT OR IGNORE INTO clone_snaps(snap, bid) VALUES(?1, ?2)",
            ),
            false => (
                "is in the index of snapshots, and the clone does not serve it: removing it does not end",
                "the entry is removed",
                "DELETE FROM clone_snaps WHERE snap = ?1 AND bid = ?2",
            ),
        };
        mends.push(Mend {
            finding: finding(
                place,
                "snapshot-index",
                format!("clone {}: snapshot {snap} {what}", clone.id.0),
            ),
            how,
            sql,
            numbers: (snap, bid),
        });
    };
    served.difference(&listed).for_each(|snap| entry(*snap, true));
    listed.difference(&served).for_each(|snap| entry(*snap, false));
}

fn finding(place: &str, kind: &'static str, what: String) -> Finding {
    Finding {
        gravity: Gravity::Damage,
        kind,
        place: place.to_owned(),
        what,
        advice: "'rbd fsck --repair' puts it right".to_owned(),
        mended: false,
    }
}

fn check_layers(object: &Object, place: &str, report: &mut Report, mends: &mut Vec<Mend>) {
    for layer in &object.layers {
        let (mut next, mut steps) = (layer.parent, 0);
        while let Some(below) = next.and_then(|lid| object.layer(lid)) {
            steps += 1;
            if steps > object.layers.len() {
                let what = format!("what layer {} was made from has no end", layer.lid);
                report.note(
                    Gravity::Damage,
                    "layer-ring",
                    place,
                    what,
                    "nothing is read from such layers",
                );
                break;
            }
            next = below.parent;
        }
        let dangles = layer.parent.is_some_and(|lid| object.layer(lid).is_none());
        if dangles && !layer.chained {
            mends.push(Mend {
                finding: finding(
                    place,
                    "layer-parent",
                    format!(
                        "layer {} names a layer that is not there, and does not need it",
                        layer.lid
                    ),
                ),
                how: "it names none any more",
                sql: "UPDATE layers SET parent = NULL WHERE lid = ?1 AND parent = ?2 AND chained = 0",
                numbers: (layer.lid, layer.parent.unwrap_or_default()),
            });
        }
        if layer.chained && (layer.map.bytes().len() as u64) < blocks_of(layer.covered_bytes).div_ceil(8) {
            let what = format!("the map of layer {} is too short for what it covers", layer.lid);
            report.note(Gravity::Damage, "layer-map", place, what, "");
        }
    }
    let bodies = object.clones.iter().map(|clone| &clone.body).chain(&object.head);
    let used: Vec<i64> = bodies.filter_map(|body| body.layer).collect();
    for lid in object.unused_layers(&used) {
        let what = format!("no version of the object has layer {lid}");
        let advice = "it is left as it is: it may be all that is left of a version";
        report.note(Gravity::Damage, "layer-unused", place, what, advice);
    }
}

/// Bytes that the file of `layer` must have.
fn promised_bytes(object: &Object, layer: &Layer) -> u64 {
    let own = if layer.chained { layer.covered_bytes } else { 0 };
    let above = object
        .layers
        .iter()
        .filter(|above| above.chained && above.parent == Some(layer.lid))
        .map(|above| above.covered_bytes);
    let clones = object
        .clones
        .iter()
        .filter(|clone| clone.body.layer == Some(layer.lid) && !object.is_live(layer.lid))
        .map(|clone| clone.body.size_bytes);
    above.chain(clones).fold(own, u64::max)
}

fn check_file(
    pool: &Pool,
    object: &Object,
    layer: &Layer,
    place: &str,
    options: CheckOptions,
    report: &mut Report,
) {
    if !rows::is_file_name(&layer.file) {
        let what = format!(
            "layer {} names '{}', which is no file of a pool",
            layer.lid, layer.file
        );
        return report.note(Gravity::Damage, "layer-file", place, what, "");
    }
    let path = pool.files.path_of(&layer.file);
    let at = |what: String| format!("{}: {what}", path.display());
    let file = match pool.files.disk().open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return report.note(
                Gravity::Damage,
                "file-missing",
                place,
                at("the data file is missing".to_owned()),
                RESTORE,
            );
        }
        Err(error) => {
            return report.note(
                Gravity::Damage,
                "file-not-read",
                place,
                at(error.to_string()),
                RESTORE,
            );
        }
    };
    let looked = file
        .stat()
        .and_then(|stat| Ok((stat, pool.files.label_of(&*file)?)));
    let (stat, label) = match looked {
        Ok(looked) => looked,
        Err(error) => {
            return report.note(
                Gravity::Damage,
                "file-not-read",
                place,
                at(error.to_string()),
                RESTORE,
            );
        }
    };
    if let Some(found) = label.filter(|label| *label != Label::Here(layer.file.clone())) {
        let error = pool.files.mislabelled(&layer.file, &found);
        let advice =
            "reads of it fail; 'rbd fsck --repair' puts files back whose labels say where they belong";
        return report.note(Gravity::Damage, "file-swapped", place, error.what, advice);
    }
    let promised = promised_bytes(object, layer);
    if stat.size_bytes < promised {
        let what = at(format!(
            "it has {} bytes, its rows promise {promised}",
            stat.size_bytes
        ));
        report.note(Gravity::Damage, "file-short", place, what, RESTORE);
    }
    if object.is_live(layer.lid) && layer.parent.is_some() {
        check_live_map(pool, layer, place, report);
    }
    if options.read_data
        && let Err(error) = read_all(&*file, stat.size_bytes)
    {
        report.note(
            Gravity::Damage,
            "file-not-read",
            place,
            at(error.to_string()),
            RESTORE,
        );
    }
}

fn check_live_map(pool: &Pool, layer: &Layer, place: &str, report: &mut Report) {
    let blocks = layer.map.bytes().len() as u64 * 8;
    let live = pool.files.sidecar(layer).and_then(|sidecar| match sidecar {
        Some(sidecar) => pool
            .files
            .at(sidecar.whole(blocks), "read the map of", &layer.file)
            .map(Some),
        None => Ok(None),
    });
    match live {
        Ok(Some(live)) if (0..blocks).any(|block| layer.map.has(block) && !live.has(block)) => {
            let path = pool.files.path_of_any(&sidecar_name(&layer.file));
            let what = format!("{} lacks blocks that the layer's row has", path.display());
            let advice =
                "older bytes would be read in their place: end all users of the store and remove the map";
            report.note(Gravity::Damage, "live-map", place, what, advice);
        }
        Ok(_) => {}
        Err(error) => report.note(Gravity::Damage, "live-map", place, error.what, RESTORE),
    }
}

fn read_all(file: &dyn DiskFile, size_bytes: u64) -> std::io::Result<()> {
    let mut buffer = vec![0; READ_BYTES];
    let mut at = 0;
    while let Some((start, end)) = file.next_data(at)?.filter(|(start, _)| *start < size_bytes) {
        at = start;
        while at < end {
            let part = (end - at).min(READ_BYTES as u64) as usize;
            match file.read_at(&mut buffer[..part], at)? {
                0 => return Ok(()),
                count => at += count as u64,
            }
        }
    }
    Ok(())
}

/// Puts something right. Only under the exclusive hold, the generation raised.
pub(super) fn mend(pool: &Pool, mend: Mend, report: &mut Report) {
    report.add(mend.finding);
    let (path, sql, numbers) = (pool.db.path().to_owned(), mend.sql, mend.numbers);
    let done = pool.db.write(Commit::Full, move |connection| {
        connection.execute(sql, numbers).at(&path, "repair").map(|_| ())
    });
    match done {
        Ok(()) => report.mended(mend.how),
        Err(error) => report.note(Gravity::Damage, "repair-failed", place_of(pool), error.what, ""),
    }
}
