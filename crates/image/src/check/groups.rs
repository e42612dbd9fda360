//! Groups: whether they and their images name each other, and whether their snapshots have all parts.

use std::collections::{BTreeMap, BTreeSet};

use ferry_cls::rbd::{
    GroupLinkState, GroupSnapshotState, GroupSpec, SnapshotNamespace, client, names as cls_names,
};
use ferry_store::check::Gravity;
use ferry_store::{IoCtx, ReadOp, SnapId};

use super::Look;
use super::found::judged;
use super::headers::Known;
use super::mend::Mend;
use super::names::each_name;
use crate::error::{ErrorKind, Result, optional};
use crate::group::reference;
use crate::header;
use crate::names;

/// Looks at the groups of the namespace.
pub(super) async fn look(look: &mut Look) -> Result<()> {
    let groups = match judged(client::group_dir_list_all(&look.io).await)? {
        Ok(groups) => groups,
        Err(what) => {
            let what = format!("the groups cannot be listed: {what}");
            let advice = "restore the object from a backup";
            look.found.damage("group-directory", look.here(), what, advice);
            return Ok(());
        }
    };
    look_for_strays(look, &groups).await?;
    for (name, id) in groups {
        let place = format!("group '{}/{name}'", look.at);
        let call = client::dir_get_name(&id);
        let reverse = judged(optional(
            ferry_cls::exec_read(&look.io, cls_names::GROUP_DIRECTORY, call).await,
        ))?;
        if reverse != Ok(Some(name.clone())) {
            let what = format!("the list of groups has it as group {id}, and that id not as this name");
            let advice = "restore the list from a backup";
            look.found.damage("group-directory", place.clone(), what, advice);
        }
        look_at_images(look, &place, &id).await?;
        look_at_snapshots(look, &place, &name, &id).await?;
    }
    Ok(())
}

/// Looks for headers of groups that the list of groups does not have, by name.
async fn look_for_strays(look: &mut Look, groups: &BTreeMap<String, String>) -> Result<()> {
    let listed: BTreeSet<String> = groups.values().map(|id| cls_names::group_header(id)).collect();
    let prefix = cls_names::group_header("");
    let mut ids = Vec::new();
    each_name(&look.io, &prefix, |object| {
        if !listed.contains(object) {
            ids.push(object[prefix.len()..].to_owned());
        }
    })
    .await?;
    for id in ids {
        let place = format!("{}, group with id {id}", look.here());
        match unnamed(&look.io, &id).await?.map(|found| found.count) {
            // It has a name by its id alone, which is told of there; or it is gone.
            None => {}
            Some(0) => {
                let what = "its header is left; nothing names it, and it has no images and no snapshots";
                let mend = Mend::RemoveGroupHeader { id };
                look.found
                    .mendable(Gravity::Leftover, "group-header-stray", place, what, mend);
            }
            Some(count) => {
                let what = format!(
                    "the list of groups does not have it, and its header has {count} images and snapshots"
                );
                let advice = "restore 'rbd_group_directory' from a backup; the header is left as it is";
                look.found.damage("group-header-stray", place, what, advice);
            }
        }
    }
    Ok(())
}

/// What the header of a group has that the list of groups does not have by its id.
pub(super) struct Unnamed {
    /// Version of the header before it was read.
    pub(super) version: u64,
    /// Images and snapshots; what cannot be read counts.
    pub(super) count: usize,
}

/// Looks at the header of a group; `None`: the list of groups has it by its id, or there is no such header.
pub(super) async fn unnamed(io: &IoCtx, id: &str) -> Result<Option<Unnamed>> {
    let call = client::dir_get_name(id);
    let name = optional(ferry_cls::exec_read(io, cls_names::GROUP_DIRECTORY, call).await)?;
    let object = cls_names::group_header(id);
    let header = optional(io.read(&object, SnapId::HEAD, ReadOp::new().stat()).await)?;
    let Some(header) = header.filter(|_| name.is_none()) else {
        return Ok(None);
    };
    let images = judged(client::group_image_list_all(io, &object).await)?;
    let snapshots = judged(client::group_snap_list_all(io, &object).await)?;
    Ok(Some(Unnamed {
        version: header.version,
        count: images.map_or(1, |images| images.len()) + snapshots.map_or(1, |snapshots| snapshots.len()),
    }))
}

async fn look_at_images(look: &mut Look, place: &str, id: &str) -> Result<()> {
    let header = cls_names::group_header(id);
    let group = GroupSpec {
        pool_id: look.io.pool(),
        group_id: id.to_owned(),
    };
    let listed = match judged(client::group_image_list_all(&look.io, &header).await)? {
        Ok(listed) => listed,
        Err(what) => {
            let what = format!("its images cannot be listed: {what}");
            look.found
                .damage("group-header", place, what, "restore its header from a backup");
            return Ok(());
        }
    };
    for status in listed {
        let io = look.io.with_pool(status.spec.pool_id);
        let image = format!("image {} of pool {}", status.spec.image_id, status.spec.pool_id);
        let named = match judged(reference(&io, &status.spec.image_id).await)? {
            Ok(named) => named,
            // Told of where the image is.
            Err(_) => continue,
        };
        let is_ours = named.as_ref() == Some(&group);
        if is_ours && status.state == GroupLinkState::Attached {
            continue;
        }
        let (gravity, what) = match (is_ours, status.state) {
            (true, _) => (
                Gravity::Leftover,
                format!("{image} was not wholly put into it, or taken out"),
            ),
            (false, GroupLinkState::Incomplete) => (
                Gravity::Leftover,
                format!("{image} was about to be put into it, and is not in it"),
            ),
            (false, GroupLinkState::Attached) => (
                Gravity::Damage,
                format!("it lists {image}, which is not in it, or is gone"),
            ),
        };
        let mend = Mend::GroupLink {
            header: header.clone(),
            image: status.spec,
            keep: is_ours,
        };
        look.found.mendable(gravity, "group-image", place, what, mend);
    }
    Ok(())
}

async fn look_at_snapshots(look: &mut Look, place: &str, name: &str, id: &str) -> Result<()> {
    let object = cls_names::group_header(id);
    let snapshots = match judged(client::group_snap_list_all(&look.io, &object).await)? {
        Ok(snapshots) => snapshots,
        Err(what) => {
            let what = format!("its snapshots cannot be listed: {what}");
            look.found
                .damage("group-header", place, what, "restore its header from a backup");
            return Ok(());
        }
    };
    for snapshot in snapshots {
        let place = format!("{place}, snapshot '{}'", snapshot.name);
        let remove = format!(
            "'rbd group snap rm {}/{name}@{}' removes it",
            look.at, snapshot.name
        );
        if snapshot.state == GroupSnapshotState::Incomplete {
            let what = "it was not finished: not all images have their part of it";
            look.found
                .leftover("group-snapshot-unfinished", place, what, remove);
            continue;
        }
        for part in &snapshot.snaps {
            let io = look.io.with_pool(part.pool_id);
            let has_part = match header::load(&io, &part.image_id, true).await {
                Ok(header) => header.snaps.contains_key(&part.snap_id),
                Err(error) if error.kind == ErrorKind::ImageMissing => false,
                // Told of where the image is.
                Err(error) => judged(Err::<(), _>(error))?.is_err(),
            };
            if !has_part {
                let what = format!(
                    "image {} of pool {} has lost its part of it",
                    part.image_id, part.pool_id
                );
                let advice = format!("it cannot be rolled back to; {remove}");
                look.found
                    .damage("group-snapshot-part", place.clone(), what, advice);
            }
        }
    }
    Ok(())
}

/// Looks at what an image says of the group that it is in, and of group snapshots.
pub(super) async fn look_at_image(look: &mut Look, known: &Known) -> Result<()> {
    let place = known.place.clone();
    let call = client::image_group_get();
    let object = names::header_object(&known.id);
    let named = match judged(optional(ferry_cls::exec_read(&look.io, &object, call).await))? {
        Ok(named) => named.filter(GroupSpec::exists),
        Err(what) => {
            let what = format!("the group that it is in cannot be read: {what}");
            look.found
                .damage("header", place, what, "restore the header from a backup");
            return Ok(());
        }
    };
    if let Some(group) = named {
        look_at_reference(look, known, &group).await?;
    }
    for snap in known.header.snaps.values() {
        let SnapshotNamespace::Group {
            group_pool,
            group_id,
            group_snapshot_id,
        } = &snap.namespace
        else {
            continue;
        };
        let io = look.io.with_pool(*group_pool);
        let call = client::group_snap_get_by_id(group_snapshot_id);
        let record = ferry_cls::exec_read(&io, &cls_names::group_header(group_id), call).await;
        if judged(optional(record))? == Ok(None) {
            let what = format!("snapshot {} is a part of a group snapshot that is gone", snap.id);
            let advice = format!(
                "'rbd snap rm --snap-id {} {}/{}' removes it",
                snap.id, look.at, known.name
            );
            look.found
                .leftover("group-snapshot-part", place.clone(), what, advice);
        }
    }
    Ok(())
}

async fn look_at_reference(look: &mut Look, known: &Known, group: &GroupSpec) -> Result<()> {
    let io = look.io.with_pool(group.pool_id);
    let call = client::dir_get_name(&group.group_id);
    let name = optional(ferry_cls::exec_read(&io, cls_names::GROUP_DIRECTORY, call).await);
    let what = match judged(name)? {
        Ok(Some(name)) => {
            let header = cls_names::group_header(&group.group_id);
            let Ok(listed) = judged(client::group_image_list_all(&io, &header).await)? else {
                return Ok(());
            };
            let is_self = |image: &str, pool| image == known.id && pool == look.io.pool();
            if listed
                .iter()
                .any(|status| is_self(&status.spec.image_id, status.spec.pool_id))
            {
                return Ok(());
            }
            format!("it is in group '{name}', which does not list it")
        }
        Ok(None) if io.exists(&cls_names::group_header(&group.group_id)).await? => {
            let what = format!("it is in a group that has no name (id {})", group.group_id);
            let advice = "restore 'rbd_group_directory' from a backup";
            look.found
                .damage("group-image", known.place.clone(), what, advice);
            return Ok(());
        }
        Ok(None) => format!("it is in a group that is gone (id {})", group.group_id),
        Err(_) => return Ok(()),
    };
    let mend = Mend::LeaveGroup {
        id: known.id.clone(),
        group: group.clone(),
    };
    look.found
        .mendable(Gravity::Damage, "group-image", known.place.clone(), what, mend);
    Ok(())
}
