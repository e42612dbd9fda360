//! Consistency groups: images that are snapshotted, and rolled back, at one moment.
//!
//! A group is an entry of its namespace's group directory and a header of its own, which lists the images and keeps one
//! record a snapshot; every image names its group in its own header. The objects and the order of most steps are librbd's,
//! so both work on the same groups.
//!
//! Invariants: an image is in one group at most, and its own header decides in which; a link that only the group's header
//! has is *incomplete*, is shown as such, and goes away when the image is added or removed again. A group snapshot is
//! *complete* only when every image of the record has its part, and all parts are of one moment as far as the images have
//! exclusive locks. Everything here may be killed and run again.
//!
//! What it does not know: the command line; what an image's snapshot is made of ([`crate::snapshot`]).

mod images;
mod snapshot;

use ferry_cls::rbd::{GroupSpec, client, names};
use ferry_store::{Errno, IoCtx, SnapId, WriteOp};

use crate::error::{ErrorKind, ImageError, Result, absent_is_fine, optional};
use crate::names::new_image_id;

pub use images::{GroupImage, GroupInfo, of_image};
pub(crate) use images::{move_membership, reference};
pub use snapshot::{PartOf, part_of};

/// A group that was found.
#[derive(Debug, Clone)]
pub struct Group {
    io: IoCtx,
    name: String,
    id: String,
}

impl Group {
    /// Finds the group `name` of `io`'s namespace. `ENOENT` ([`ErrorKind::GroupMissing`]).
    pub async fn open(io: &IoCtx, name: &str) -> Result<Self> {
        let call = client::dir_get_id(name);
        let id = optional(ferry_cls::exec_read(io, names::GROUP_DIRECTORY, call).await)?;
        let id = id.ok_or_else(|| missing(name))?;
        Ok(Self {
            io: io.clone(),
            name: name.to_owned(),
            id,
        })
    }

    /// The group that an image's header names; `None` when its directory does not know it.
    pub(crate) async fn by_spec(image_io: &IoCtx, spec: &GroupSpec) -> Result<Option<Self>> {
        let io = image_io.with_pool(spec.pool_id);
        let call = client::dir_get_name(&spec.group_id);
        let name = optional(ferry_cls::exec_read(&io, names::GROUP_DIRECTORY, call).await)?;
        Ok(name.map(|name| Self {
            io,
            name,
            id: spec.group_id.clone(),
        }))
    }

    /// Its name, when it was found.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// How images name it.
    pub(crate) fn spec(&self) -> GroupSpec {
        GroupSpec {
            pool_id: self.io.pool(),
            group_id: self.id.clone(),
        }
    }

    fn header(&self) -> String {
        names::group_header(&self.id)
    }
}

fn missing(name: &str) -> ImageError {
    ImageError::of(ErrorKind::GroupMissing, Errno::ENOENT, format!("group '{name}'"))
}

/// Names of the groups of `io`'s namespace, sorted.
pub async fn list(io: &IoCtx) -> Result<Vec<String>> {
    Ok(client::group_dir_list_all(io).await?.into_keys().collect())
}

/// Makes an empty group. `EEXIST`.
///
/// Killed before the group has a header it leaves a group that is empty, and works.
pub async fn create(io: &IoCtx, name: &str) -> Result<()> {
    crate::names::check_group_name(name)?;
    let id = new_image_id(io.store().instance().gid);
    let add = client::group_dir_add(name, &id);
    ferry_cls::exec_write(io, names::GROUP_DIRECTORY, add)
        .await
        .map_err(|error| match error.errno {
            Errno::EEXIST => exists(name),
            _ => error.into(),
        })?;
    // Another may have put an image into it already, which made the header.
    let op = WriteOp::new().create(false);
    io.write_meta(&names::group_header(&id), op).await?;
    Ok(())
}

fn exists(name: &str) -> ImageError {
    ImageError::new(Errno::EEXIST, format!("group '{name}'"))
}

/// Gives a group another name. `ENOENT`; `EEXIST`, also for the name that it has.
pub async fn rename(io: &IoCtx, name: &str, new_name: &str) -> Result<()> {
    crate::names::check_group_name(new_name)?;
    let group = Group::open(io, name).await?;
    let taken = client::dir_get_id(new_name);
    // The class, too, refuses another group's name, but not one's own.
    if optional(ferry_cls::exec_read(io, names::GROUP_DIRECTORY, taken).await)?.is_some() {
        return Err(exists(new_name));
    }
    let call = client::group_dir_rename(name, new_name, &group.id);
    ferry_cls::exec_write(io, names::GROUP_DIRECTORY, call)
        .await
        .map_err(|error| match error.errno {
            Errno::EEXIST => exists(new_name),
            Errno::ENOENT => missing(name),
            _ => error.into(),
        })
}

/// Deletes a group with its snapshots; the images stay. Fine if there is no such group.
///
/// Order: snapshots, links to the images, header, name; killed in between, a second run finds the rest.
pub async fn remove(io: &IoCtx, name: &str) -> Result<()> {
    let group = match Group::open(io, name).await {
        Ok(group) => group,
        Err(error) if error.kind == ErrorKind::GroupMissing => return Ok(()),
        Err(error) => return Err(error),
    };
    for snapshot in group.snapshots().await? {
        group.remove_snapshot(&snapshot).await?;
    }
    for image in group.images().await? {
        group.remove_link(&image.io, &image.id).await?;
    }
    absent_is_fine(
        io.write_meta(&group.header(), WriteOp::new().remove())
            .await
            .map(|_| ()),
    )?;
    let call = client::group_dir_remove(name, &group.id);
    absent_is_fine(ferry_cls::exec_write(io, names::GROUP_DIRECTORY, call).await)
}

/// Name of the snapshot that an image has for its part in a group snapshot.
fn part_name(group: &Group, snapshot_id: &str) -> String {
    format!(".group.{:x}_{}_{snapshot_id}", group.io.pool().0, group.id)
}

/// A part that is not taken yet.
const NO_PART: SnapId = SnapId(0);
