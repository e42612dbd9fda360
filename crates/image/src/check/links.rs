//! Clones and parents: whether each names the other.

use std::collections::BTreeSet;

use bytes::Bytes;
use ferry_cls::encoding::{Decode as _, Decoder};
use ferry_cls::rbd::{
    ChildImageSpec, ParentImageSpec, ProtectionStatus, SnapshotNamespace, client, op_feature,
};
use ferry_store::check::Gravity;
use ferry_store::{IoCtx, PoolId, ReadOp, ReadResult, ReadStep, SnapId};

use super::found::judged;
use super::headers::Known;
use super::mend::Mend;
use super::{Look, migrations};
use crate::error::{ErrorKind, Result, optional};
use crate::header;
use crate::layering::links::{self, Child, CloneFormat};
use crate::names;

const KEYS_PER_READ: usize = 256;

pub(super) async fn look(look: &mut Look, known: &Known) -> Result<()> {
    look_at_parent(look, known).await?;
    look_at_children(look, known).await
}

async fn look_at_parent(look: &mut Look, known: &Known) -> Result<()> {
    let Some(link) = &known.header.parent else {
        return Ok(());
    };
    let spec = &link.spec;
    let place = known.place.clone();
    let parent = image_of(spec);
    let restore = "what it has not copied is lost unless the parent is restored from a backup";
    let io = io_of(look, spec);
    let pools = io.store().pool_list().await?;
    let loaded = match pools.iter().any(|pool| pool.id == spec.pool_id) {
        true => header::load(&io, &spec.image_id, true).await,
        false => {
            let what = format!("its parent is {parent}, and there is no such pool");
            look.found.damage("parent-missing", place, what, restore);
            return Ok(());
        }
    };
    let header = match loaded {
        Ok(header) => header,
        Err(error) if error.kind == ErrorKind::ImageMissing => {
            let what = format!("its parent, {parent}, is not there");
            look.found.damage("parent-missing", place, what, restore);
            return Ok(());
        }
        // Told of where the parent is.
        Err(error) => return judged(Err::<(), _>(error)).map(|_| ()),
    };
    let Some(snap) = header.snaps.get(&spec.snap_id) else {
        let what = format!(
            "its parent, {parent}, has lost the snapshot {} that it was made of",
            spec.snap_id
        );
        look.found.damage("parent-missing", place, what, restore);
        return Ok(());
    };
    let overlap = known.header.largest_parent_overlap_bytes();
    if overlap > snap.size_bytes {
        let what = format!(
            "it shows {overlap} bytes of its parent, {parent}, whose snapshot has {}",
            snap.size_bytes
        );
        let advice = "restore its header from a backup";
        look.found.damage("parent-overlap", place.clone(), what, advice);
    }
    if !known.is_passing() && !is_listed(look, &known.id, spec).await? {
        if let Some(twin) = migrations::twin(look, spec).await?
            && is_listed(look, &known.id, &twin).await?
        {
            let what = format!("{} knows it instead of {parent}, which it names", image_of(&twin));
            look.found.leftover("clone-moving", place, what, MOVING);
            return Ok(());
        }
        let what = format!("its parent, {parent}, does not know it: the snapshot could be removed under it");
        let two = known.header.op_features & op_feature::CLONE_CHILD != 0
            || snap.protection == ProtectionStatus::Unprotected;
        let child = Child {
            io: look.io.clone(),
            id: known.id.clone(),
            format: if two { CloneFormat::Two } else { CloneFormat::One },
        };
        match matches!(snap.namespace, SnapshotNamespace::Trash { .. }) {
            true => {
                let advice = "the snapshot is in the trash: 'rbd flatten' makes the clone independent of it";
                look.found.damage("clone-not-listed", place, what, advice);
            }
            false => {
                let parent = spec.clone();
                let mend = Mend::ListClone { parent, child };
                look.found
                    .mendable(Gravity::Damage, "clone-not-listed", place, what, mend);
            }
        }
    }
    Ok(())
}

const MOVING: &str = "its parent is being migrated, or taken back, and the clone was on its way with it: the next verb of that migration goes on with it";

fn image_of(spec: &ParentImageSpec) -> String {
    format!("image {} of pool {}", spec.image_id, spec.pool_id)
}

/// Whether either list has the clone `id`. A list that cannot be read is told of where it is.
async fn is_listed(look: &Look, id: &str, parent: &ParentImageSpec) -> Result<bool> {
    let io = io_of(look, parent);
    let header = names::header_object(&parent.image_id);
    let call = client::children_list(parent.snap_id);
    let is_self = |child: &ChildImageSpec| {
        child.image_id == id
            && child.pool_id == look.io.pool()
            && *child.pool_namespace == *look.io.scope().namespace
    };
    match judged(optional(ferry_cls::exec_read(&io, &header, call).await))? {
        Ok(listed) if !listed.iter().flatten().any(is_self) => {}
        _ => return Ok(true),
    }
    let call = client::get_children(parent.pool_id, &parent.image_id, parent.snap_id);
    let listed = ferry_cls::exec_read(&look.io, names::CHILDREN, call).await;
    let listed = judged(optional(listed))?;
    Ok(listed.map_or(true, |listed| listed.is_some_and(|ids| ids.contains(id))))
}

/// Lists of clones of format 2, and snapshots that only clones keep.
async fn look_at_children(look: &mut Look, known: &Known) -> Result<()> {
    for snap in known.header.snaps.values() {
        let parent = links::parent_spec(&look.io, &known.id, snap.id);
        let is_trash = matches!(snap.namespace, SnapshotNamespace::Trash { .. });
        let call = client::children_list(snap.id);
        let object = names::header_object(&known.id);
        let place = format!("{}, snapshot {}", known.place, snap.id);
        let listed = optional(ferry_cls::exec_read(&look.io, &object, call).await);
        let listed: BTreeSet<ChildImageSpec> = match judged(listed)? {
            Ok(listed) => listed.unwrap_or_default(),
            Err(what) => {
                let what = format!("the list of its clones cannot be read: {what}");
                let advice = "restore the header from a backup; till then the snapshot cannot be removed";
                look.found.damage("clone-list", place, what, advice);
                continue;
            }
        };
        if listed.len() as u64 != u64::from(snap.child_count) {
            let what = format!(
                "{} clones are counted, and {} are listed",
                snap.child_count,
                listed.len()
            );
            let advice =
                "restore the header from a backup; till then its clones cannot be taken off the list";
            look.found.damage("clone-list", place, what, advice);
            continue;
        }
        if listed.is_empty() && is_trash && known.header.migration.is_none() {
            let what = "it is in the trash, and no clone needs it";
            let mend = Mend::RemoveSnapshot { parent };
            look.found
                .mendable(Gravity::Leftover, "snapshot-in-trash", place, what, mend);
            continue;
        }
        for spec in listed {
            let io = look
                .io
                .with_pool(spec.pool_id)
                .with_namespace(&spec.pool_namespace);
            let child = Child {
                io,
                id: spec.image_id,
                format: CloneFormat::Two,
            };
            look_at_entry(look, place.clone(), &parent, child).await?;
        }
    }
    Ok(())
}

fn io_of(look: &Look, image: &ParentImageSpec) -> IoCtx {
    look.io
        .with_pool(image.pool_id)
        .with_namespace(&image.pool_namespace)
}

/// An entry of a list of clones, which the clone has to confirm.
async fn look_at_entry(look: &mut Look, place: String, parent: &ParentImageSpec, child: Child) -> Result<()> {
    // What cannot be read is told of where the clone is.
    let Ok(named) = judged(child.names_parent().await)? else {
        return Ok(());
    };
    if named.as_ref() != Some(parent) {
        if let Some(named) = named
            && migrations::twin(look, parent).await?.as_ref() == Some(&named)
            && !links::listed(&io_of(look, &named), &named.image_id, named.snap_id)
                .await?
                .iter()
                .any(|listed| listed.id == child.id && listed.io.scope() == child.io.scope())
        {
            // The only list that has it: it stays there until the other one has it too.
            let what = format!(
                "image {} of pool {} is listed as a clone of it, and names {}, which does not list it yet",
                child.id,
                child.io.pool(),
                image_of(&named)
            );
            look.found.leftover("clone-moving", place, what, MOVING);
            return Ok(());
        }
        let what = format!(
            "image {} of pool {} is listed as a clone of it, and is none",
            child.id,
            child.io.pool()
        );
        let mend = Mend::UnlistClone {
            parent: parent.clone(),
            child,
        };
        look.found
            .mendable(Gravity::Leftover, "clone-listed", place, what, mend);
    }
    Ok(())
}

/// The list of clones of format 1 of the namespace.
pub(super) async fn look_at_registry(look: &mut Look) -> Result<()> {
    let mut start_after = Bytes::new();
    loop {
        let op = ReadOp::new().step(ReadStep::OmapGetVals {
            start_after: start_after.clone(),
            prefix: Bytes::new(),
            max: KEYS_PER_READ,
        });
        let reply = match judged(optional(look.io.read(names::CHILDREN, SnapId::HEAD, op).await))? {
            Ok(reply) => reply,
            Err(what) => {
                let what = format!("the list of clones of format 1 cannot be read: {what}");
                let advice = "restore 'rbd_children' from a backup";
                look.found.damage("clone-list", look.here(), what, advice);
                return Ok(());
            }
        };
        let result = reply.and_then(|reply| reply.results.into_iter().next());
        let Some(ReadResult::Omap { values, more }) = result else {
            return Ok(());
        };
        let last = values.keys().next_back().cloned();
        for (key, value) in values {
            let (Ok(parent), Ok(children)) = (parse_key(look, &key), BTreeSet::<String>::from_slice(&value))
            else {
                let what = format!(
                    "entry '{}' of the list of clones makes no sense",
                    key.escape_ascii()
                );
                let advice = "restore 'rbd_children' from a backup";
                look.found.damage("clone-list", look.here(), what, advice);
                continue;
            };
            for id in children {
                let place = format!("{}, list of clones", look.here());
                let child = Child {
                    io: look.io.clone(),
                    id,
                    format: CloneFormat::One,
                };
                look_at_entry(look, place, &parent, child).await?;
            }
        }
        match last {
            Some(last) if more && last > start_after => start_after = last,
            _ => return Ok(()),
        }
    }
}

fn parse_key(look: &Look, key: &[u8]) -> Result<ParentImageSpec, ferry_cls::encoding::DecodeError> {
    let mut decoder = Decoder::new(key);
    Ok(ParentImageSpec {
        pool_id: decoder.get::<PoolId>("parent pool")?,
        image_id: decoder.get("parent image id")?,
        snap_id: decoder.get("parent snapshot id")?,
        pool_namespace: look.io.scope().namespace.to_string(),
    })
}
