//! All that a repair writes. Each mend does what it says only if what it was found by is still so: it compares or asserts in the same
//! step, or uses a verb that does.
//!
//! Keeps invariant: no header of an image and no data object is removed, and no name is taken from an image that has a header.

use std::collections::BTreeSet;

use bytes::Bytes;
use ferry_cls::encoding::Encode as _;
use ferry_cls::rbd::{
    GroupImageSpec, GroupImageStatus, GroupLinkState, GroupSpec, ParentImageSpec, client, feature,
    names as cls_names,
};
use ferry_store::check::{Finding, Gravity, Report};
use ferry_store::{Errno, IoCtx, SnapId, WriteOp, WriteStep};

use super::found::{Found, Item};
use super::groups;
use super::names::{BY_ID, BY_NAME, has_data};
use crate::admin::{directory, format_1, trash};
use crate::error::{ImageError, Result, absent_is_fine};
use crate::header;
use crate::image::{Image, ImageKey, OpenOptions};
use crate::layering::links::{self, Child};
use crate::names;
use crate::progress::Progress;
use crate::watch::notify_header_update;

/// What puts a finding right.
#[derive(Debug)]
pub(super) enum Mend {
    /// Give the image its name, in both places.
    Register { name: String, id: String },
    /// The directory has the name: give it the id.
    ListId { name: String, id: String },
    /// The directory has the id: give it the name.
    ListName { name: String, id: String },
    /// Take a name off that leads to no header.
    Unlist { name: String, id: String },
    /// Remove an `rbd_id.*` that holds this id, or nothing.
    ClearIdObject { name: String, id: Option<String> },
    /// Take a name off the list of format 1.
    UnlistFormat1 { name: String },
    /// Put a name on the list of format 1.
    ListFormat1 { name: String },
    /// Take an entry without a header off the trash.
    ForgetTrash { id: String },
    /// Make the object maps anew.
    RebuildMaps { id: String },
    /// Remove an object map that no version has.
    RemoveMap {
        object: String,
        id: String,
        snap: Option<SnapId>,
    },
    /// Put a clone on its parent's list.
    ListClone { parent: ParentImageSpec, child: Child },
    /// Take what is no clone off a list.
    UnlistClone { parent: ParentImageSpec, child: Child },
    /// Remove a snapshot that only clones kept.
    RemoveSnapshot { parent: ParentImageSpec },
    /// Make a group's link to an image whole, or forget it.
    GroupLink {
        header: String,
        image: GroupImageSpec,
        keep: bool,
    },
    /// Remove the header of a group that nothing names, and that has nothing in it.
    RemoveGroupHeader { id: String },
    /// Make an image forget a group that does not know it.
    LeaveGroup { id: String, group: GroupSpec },
}

/// Reports what was found, and mends it first if that is wanted.
pub(super) async fn tell(io: &IoCtx, found: Found, repair: bool, report: &mut Report) {
    let (items, left_out) = found.into_items();
    let mut rebuilt = BTreeSet::new();
    for Item { finding, mend } in items {
        let place = finding.place.clone();
        report.add(finding);
        let Some(mend) = mend.filter(|_| repair) else {
            continue;
        };
        // One rebuild makes all maps of an image.
        if let Mend::RebuildMaps { id } = &mend
            && !rebuilt.insert(id.clone())
        {
            report.mended("the object maps were made anew");
            continue;
        }
        match run(io, mend).await {
            Ok(how) => report.mended(how),
            Err(error) => report.add(Finding {
                gravity: Gravity::Damage,
                kind: "repair-failed",
                place,
                what: error.to_string(),
                advice: "check again".to_owned(),
                mended: false,
            }),
        }
    }
    if left_out > 0 {
        let what = format!("{left_out} more findings of images are not told");
        report.note(
            Gravity::Damage,
            "and-more",
            "",
            what,
            "mend these, and check again",
        );
    }
}

async fn run(io: &IoCtx, mend: Mend) -> Result<&'static str> {
    match mend {
        Mend::Register { name, id } => {
            directory::add(io, &name, &id).await?;
            Ok("it has its name again")
        }
        Mend::ListId { name, id } => {
            let (by_name, by_id) = (key(BY_NAME, &name), key(BY_ID, &id));
            complete(io, (by_name, id.to_bytes()), (by_id, name.to_bytes())).await?;
            Ok("the directory lists its id again")
        }
        Mend::ListName { name, id } => {
            let (by_name, by_id) = (key(BY_NAME, &name), key(BY_ID, &id));
            complete(io, (by_id, name.to_bytes()), (by_name, id.to_bytes())).await?;
            directory::add(io, &name, &id).await?;
            Ok("the directory lists its name again")
        }
        Mend::Unlist { name, id } => {
            still_without_header(io, &id).await?;
            directory::clear_id_object(io, &name, &id).await?;
            for (key, value) in [
                (key(BY_NAME, &name), id.to_bytes()),
                (key(BY_ID, &id), name.to_bytes()),
            ] {
                let op = WriteOp::new()
                    .step(WriteStep::AssertExists)
                    .step(WriteStep::OmapCompare {
                        key: key.clone(),
                        value,
                    })
                    .step(WriteStep::OmapRemove(vec![key]));
                match io.write_meta(names::DIRECTORY, op).await {
                    // Absent, or of another image by now.
                    Err(error) if error.errno == Errno::ECANCELED => {}
                    other => absent_is_fine(other.map(|_| ()))?,
                }
            }
            Ok("the name was taken off")
        }
        Mend::ClearIdObject { name, id } => {
            match id {
                Some(id) => directory::clear_id_object(io, &name, &id).await?,
                None => directory::clear_empty_id_object(io, &name).await?,
            }
            Ok("the object that led nowhere was removed")
        }
        Mend::UnlistFormat1 { name } => {
            format_1::remove_leftover(io, &name).await?;
            Ok("the name was taken off")
        }
        Mend::ListFormat1 { name } => {
            if !header::has_format_1(io, &name).await? {
                return Err(changed("its header is gone by now"));
            }
            format_1::add(io, &name).await?;
            Ok("the directory lists it again")
        }
        Mend::ForgetTrash { id } => {
            still_without_header(io, &id).await?;
            trash::forget(io, &id).await?;
            Ok("the entry was taken off the trash")
        }
        Mend::RebuildMaps { id } => {
            rebuild(io, &id).await?;
            Ok("the object maps were made anew")
        }
        Mend::RemoveMap { object, id, snap } => {
            remove_map(io, &object, &id, snap).await?;
            Ok("the object map was removed")
        }
        Mend::ListClone { parent, child } => {
            links::put_on_list(&parent, &child).await?;
            Ok("the parent lists it again")
        }
        Mend::UnlistClone { parent, child } => {
            if child.names_parent().await?.as_ref() == Some(&parent) {
                return Err(changed("it is a clone by now"));
            }
            links::take_off_list(&parent, &child).await?;
            Ok("it was taken off the list")
        }
        Mend::RemoveSnapshot { parent } => {
            links::sweep(io, &parent).await;
            let gone = header::load(io, &parent.image_id, true).await?;
            match gone.snaps.contains_key(&parent.snap_id) {
                true => Err(changed("the snapshot cannot be removed yet")),
                false => Ok("the snapshot was removed"),
            }
        }
        Mend::GroupLink { header, image, keep } => {
            let call = match keep {
                true => client::group_image_set(&GroupImageStatus {
                    spec: image,
                    state: GroupLinkState::Attached,
                }),
                false => client::group_image_remove(&image),
            };
            absent_is_fine(ferry_cls::exec_write(io, &header, call).await)?;
            Ok(match keep {
                true => "the image is in the group",
                false => "the group lists it no more",
            })
        }
        Mend::RemoveGroupHeader { id } => {
            match groups::unnamed(io, &id).await?.filter(|found| found.count == 0) {
                Some(found) => remove_group_header(io, &id, found.version).await?,
                None => return Err(changed("the group is in use by now")),
            }
            Ok("the header was removed")
        }
        Mend::LeaveGroup { id, group } => {
            let object = names::header_object(&id);
            ferry_cls::exec_write(io, &object, client::image_group_remove(&group)).await?;
            notify_header_update(io, &object, None).await?;
            Ok("it is in no group any more")
        }
    }
}

fn key(prefix: &str, rest: &str) -> Bytes {
    Bytes::from(format!("{prefix}{rest}"))
}

fn changed(what: &str) -> ImageError {
    ImageError::new(Errno::EAGAIN, format!("not repaired: {what}"))
}

/// Adds the entry of the directory that is missing to the one that is there.
async fn complete(io: &IoCtx, there: (Bytes, Bytes), missing: (Bytes, Bytes)) -> Result<()> {
    let op = WriteOp::new()
        .step(WriteStep::OmapCompare {
            key: there.0,
            value: there.1,
        })
        .step(WriteStep::OmapCompare {
            key: missing.0.clone(),
            value: Bytes::new(),
        })
        .step(WriteStep::OmapSet([missing].into()));
    match io.write_meta(names::DIRECTORY, op).await {
        Err(error) if error.errno == Errno::ECANCELED => Err(changed("the directory has changed")),
        other => Ok(other.map(|_| ())?),
    }
}

async fn still_without_header(io: &IoCtx, id: &str) -> Result<()> {
    if io.exists(&names::header_object(id)).await? || has_data(io, id).await? {
        return Err(changed("the image has a header or data by now"));
    }
    Ok(())
}

/// Removes the header of a group, if it is as it was at `version`.
async fn remove_group_header(io: &IoCtx, id: &str, version: u64) -> Result<()> {
    let op = WriteOp::new().step(WriteStep::AssertVersion(version)).remove();
    match io.write_meta(&cls_names::group_header(id), op).await {
        Err(error) if matches!(error.errno, Errno::ERANGE | Errno::EOVERFLOW) => {
            Err(changed("the group is in use by now"))
        }
        other => absent_is_fine(other.map(|_| ())),
    }
}

async fn rebuild(io: &IoCtx, id: &str) -> Result<()> {
    let options = OpenOptions::read_write().ignoring_parent();
    let image = Image::open(io, ImageKey::Id(id), options).await?;
    let done = image.rebuild_object_map(&Progress::silent()).await;
    let closed = image.close().await;
    done.and(closed)
}

async fn remove_map(io: &IoCtx, object: &str, id: &str, snap: Option<SnapId>) -> Result<()> {
    if io.exists(&names::header_object(id)).await? {
        let header = header::load(io, id, true).await?;
        let has_version = snap.is_some_and(|snap| header.size_at(snap).is_some());
        if has_version && header.has(feature::OBJECT_MAP) {
            return Err(changed("an image has the map by now"));
        }
    }
    absent_is_fine(io.write_meta(object, WriteOp::new().remove()).await.map(|_| ()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_header_of_a_group_that_gets_an_image_after_it_was_looked_at_stays() {
        let io = crate::in_memory::pool().await;
        let object = cls_names::group_header("cafe");
        let create = WriteOp::new().create(true);
        io.write_meta(&object, create).await.unwrap();
        let seen = groups::unnamed(&io, "cafe").await.unwrap().unwrap();
        assert_eq!(seen.count, 0);
        let call = client::group_image_set(&GroupImageStatus {
            spec: GroupImageSpec {
                image_id: "17".to_owned(),
                pool_id: io.pool(),
            },
            state: GroupLinkState::Attached,
        });
        ferry_cls::exec_write(&io, &object, call).await.unwrap();
        let refused = remove_group_header(&io, "cafe", seen.version).await.unwrap_err();
        assert_eq!(refused.errno, Errno::EAGAIN);
        let seen = groups::unnamed(&io, "cafe").await.unwrap().unwrap();
        assert_eq!(seen.count, 1);
        remove_group_header(&io, "cafe", seen.version).await.unwrap();
        assert!(!io.exists(&object).await.unwrap());
    }
}
