//! Whether a header can be read, and says what makes sense.

use std::collections::HashSet;

use ferry_cls::rbd::{MigrationHeaderType, MigrationState, feature};
use ferry_store::{IoCtx, SnapId};

use super::Look;
use super::found::judged;
use crate::error::{Result, optional};
use crate::header::{self, Fixed, Header};
use crate::names;

/// An image whose header could be read.
pub(super) struct Known {
    pub(super) id: String,
    pub(super) name: String,
    /// For findings.
    pub(super) place: String,
    pub(super) fixed: Fixed,
    pub(super) header: Header,
    /// Whether somebody has it open for writing.
    pub(super) in_use: bool,
}

impl Known {
    /// Whether it is a side of a migration that is made or removed in steps: what it consists of need not fit together.
    pub(super) fn is_passing(&self) -> bool {
        self.header.migration.as_ref().is_some_and(|spec| {
            let is_steady = matches!(
                spec.state,
                MigrationState::Prepared | MigrationState::Executing | MigrationState::Executed
            );
            spec.header_type == MigrationHeaderType::Source || !is_steady
        })
    }

    /// Where its data objects are.
    pub(super) fn data_io(&self, io: &IoCtx) -> IoCtx {
        self.fixed
            .data_pool
            .map_or_else(|| io.clone(), |pool| io.with_pool(pool))
    }

    /// Snapshots ascending, then the head, each with its number of objects.
    pub(super) fn versions(&self) -> Vec<(SnapId, u64)> {
        let count = |size_bytes| self.fixed.layout.object_count(size_bytes);
        let snaps = self.header.snaps.values();
        snaps
            .map(|snap| (snap.id, count(snap.size_bytes)))
            .chain([(SnapId::HEAD, count(self.header.size_bytes))])
            .collect()
    }

    /// Numbers below which its objects may have data in any version.
    pub(super) fn objects_max(&self) -> u64 {
        let of_migration = self
            .fixed
            .layout
            .object_count(self.header.migration_overlap_bytes());
        let of_versions = self.versions().into_iter().map(|(_, objects)| objects);
        of_versions.max().unwrap_or(0).max(of_migration)
    }
}

/// Reads a header without judging it. `None`: it cannot be read, or there is none.
pub(super) async fn read(io: &IoCtx, id: &str, name: &str, place: String) -> Result<Result<Known, String>> {
    let fixed = match judged(header::load_fixed(io, id).await)? {
        Ok(fixed) => fixed,
        Err(what) => return Ok(Err(what)),
    };
    let header = match judged(header::load(io, id, true).await)? {
        Ok(header) => header,
        Err(what) => return Ok(Err(what)),
    };
    let object = names::header_object(id);
    let watchers = optional(io.store().list_watchers(io.object(&object)).await)?;
    Ok(Ok(Known {
        id: id.to_owned(),
        name: name.to_owned(),
        place,
        fixed,
        header,
        in_use: watchers.is_some_and(|watchers| !watchers.is_empty()),
    }))
}

/// Judges the header of image `id`.
pub(super) async fn look(look: &mut Look, id: &str, name: &str) -> Result<Option<Known>> {
    let place = look.image(name);
    let known = match read(&look.io, id, name, place.clone()).await? {
        Ok(known) => known,
        Err(what) => {
            let what = format!("header '{}' cannot be read: {what}", names::header_object(id));
            let advice = "restore the header from a backup; its data objects are left as they are";
            look.found.damage("header", place, what, advice);
            return Ok(None);
        }
    };
    judge(look, &known).await?;
    Ok(Some(known))
}

async fn judge(look: &mut Look, known: &Known) -> Result<()> {
    let (fixed, header) = (&known.fixed, &known.header);
    let restore = "restore the header from a backup";
    let mut damage = |kind, what: String| look.found.damage(kind, known.place.clone(), what, restore);
    let expected = names::object_prefix(&known.id, look.io.pool(), fixed.data_pool.is_some());
    if *fixed.object_prefix != *expected {
        let what = format!(
            "its data objects are called '{}', and those of an image with id '{}' are called '{expected}'",
            fixed.object_prefix, known.id
        );
        damage("header-prefix", what);
    }
    for (needed, by) in [
        (feature::EXCLUSIVE_LOCK, feature::OBJECT_MAP),
        (feature::OBJECT_MAP, feature::FAST_DIFF),
    ] {
        if header.has(by) && !header.has(needed) {
            let names = |bit| feature::names(bit).join(",");
            let what = format!("it has the feature {} without {}", names(by), names(needed));
            damage("header-features", what);
        }
    }
    if header.has(feature::DATA_POOL) != fixed.data_pool.is_some() {
        let what = match fixed.data_pool {
            Some(pool) => format!("it names data pool {pool} and lacks the feature data-pool"),
            None => "it has the feature data-pool and names none".to_owned(),
        };
        damage("header-features", what);
    }
    let mut names_seen = HashSet::new();
    for snap in header.snaps.values() {
        let name_key = (snap.namespace.kind(), snap.name.clone());
        if snap.namespace.kind() == ferry_cls::rbd::SnapshotNamespace::USER && !names_seen.insert(name_key) {
            let what = format!(
                "two snapshots are called '{}', one of them has id {}",
                snap.name, snap.id
            );
            damage("snapshot-name", what);
        }
    }
    let versions = header.snaps.keys().copied().chain([SnapId::HEAD]);
    for snap in versions {
        let (overlap, size) = (
            header.parent_overlap_bytes(snap),
            header.size_at(snap).unwrap_or(0),
        );
        if overlap > size {
            let what =
                format!("its parent shows through {overlap} bytes of snapshot {snap}, which has {size}");
            damage("parent-overlap", what);
        }
    }
    let unknown = header.features & !feature::ALL;
    if unknown != 0 {
        let advice = "a newer program made it: check it with that one";
        let what = format!("it has features that this program does not know ({unknown:#x})");
        look.found
            .unjudged("header-features", known.place.clone(), what, advice);
    }
    if let Some(pool) = fixed.data_pool
        && !look
            .io
            .store()
            .pool_list()
            .await?
            .iter()
            .any(|listed| listed.id == pool)
    {
        let what = format!("its data pool {pool} does not exist");
        let advice = "its data went with the pool; 'rbd rm' removes the rest";
        look.found.damage("data-pool", known.place.clone(), what, advice);
    }
    Ok(())
}
