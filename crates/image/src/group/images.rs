//! Which images are in a group.
//!
//! Adding: the group's link (incomplete), the image's, the group's (attached). Removing: the group's (incomplete), the
//! image's, the group's goes. Each step may be repeated, so a second run finishes a killed one.

use std::fmt;

use ferry_cls::rbd::{GroupImageSpec, GroupImageStatus, GroupLinkState, GroupSpec, client};
use ferry_store::{Errno, IoCtx};

use super::Group;
use crate::admin::{directory, pool, trash};
use crate::error::{ErrorKind, ImageError, Result, absent_is_fine, optional};
use crate::names;
use crate::watch::notify_header_update;

/// An image of a group.
#[derive(Debug, Clone)]
pub struct GroupImage {
    /// Pool and namespace of the image.
    pub io: IoCtx,
    /// Its id.
    pub id: String,
    /// Its name; the one it had, if it is in the trash; its id, if it is gone.
    pub name: String,
    /// Whether both sides know of the link.
    pub is_attached: bool,
}

impl Group {
    /// The images of the group, by pool and name.
    pub async fn images(&self) -> Result<Vec<GroupImage>> {
        let mut images = Vec::new();
        for status in client::group_image_list_all(&self.io, &self.header()).await? {
            let io = self.io.with_pool(status.spec.pool_id);
            let id = status.spec.image_id;
            images.push(GroupImage {
                name: name_of(&io, &id).await?,
                io,
                id,
                is_attached: status.state == GroupLinkState::Attached,
            });
        }
        images.sort_by(|a, b| (a.io.pool(), &a.name).cmp(&(b.io.pool(), &b.name)));
        Ok(images)
    }

    /// Puts the image `name` of `image_io` into the group. Fine if it is in it; `EEXIST` if it is in another, `ENOENT`
    /// ([`ErrorKind::ImageMissing`]), `EINVAL` in another namespace.
    pub async fn add_image(&self, image_io: &IoCtx, name: &str) -> Result<()> {
        self.check_namespace(image_io)?;
        let id = find(image_io, name).await?;
        self.add_link(image_io, &id, name).await
    }

    pub(super) async fn add_link(&self, image_io: &IoCtx, id: &str, name: &str) -> Result<()> {
        let reference = reference(image_io, id).await?;
        if let Some(other) = reference.filter(|other| *other != self.spec()) {
            let held_by = Self::by_spec(image_io, &other).await?;
            let held_by = held_by.map_or(other.group_id, |group| group.name);
            return Err(in_another(name, &held_by));
        }
        self.set_link(image_io, id, GroupLinkState::Incomplete).await?;
        let object = names::header_object(id);
        match ferry_cls::exec_write(image_io, &object, client::image_group_add(&self.spec())).await {
            Ok(()) => {}
            Err(error) => {
                // Whoever came first has the image; our link says nothing true.
                self.forget_link(image_io, id).await?;
                return Err(match error.errno {
                    Errno::EEXIST => in_another(name, "another"),
                    _ => error.into(),
                });
            }
        }
        self.set_link(image_io, id, GroupLinkState::Attached).await?;
        notify_header_update(image_io, &object, None).await
    }

    /// Takes the image `name` of `image_io` out of the group; its parts of group snapshots stay. Fine if it is in no group;
    /// `EBADF` if it is in another, `ENOENT` ([`ErrorKind::ImageMissing`]).
    pub async fn remove_image(&self, image_io: &IoCtx, name: &str) -> Result<()> {
        self.check_namespace(image_io)?;
        let id = find(image_io, name).await?;
        self.remove_image_by_id(image_io, &id).await
    }

    /// The same by id; also for images in the trash, and for those that are gone.
    pub async fn remove_image_by_id(&self, image_io: &IoCtx, id: &str) -> Result<()> {
        self.check_namespace(image_io)?;
        let reference = reference(image_io, id).await?;
        if let Some(other) = reference.filter(|other| *other != self.spec()) {
            let held_by = Self::by_spec(image_io, &other).await?;
            let held_by = held_by.map_or(other.group_id, |group| group.name);
            // An add that was interrupted and then done for another group.
            self.forget_link(image_io, id).await?;
            return Err(ImageError::new(
                Errno::EBADF,
                format!("the image is in group '{held_by}', not in '{}'", self.name),
            ));
        }
        self.remove_link(image_io, id).await
    }

    pub(super) async fn remove_link(&self, image_io: &IoCtx, id: &str) -> Result<()> {
        let object = names::header_object(id);
        let ours = reference(image_io, id)
            .await?
            .is_some_and(|group| group == self.spec());
        if ours {
            self.set_link(image_io, id, GroupLinkState::Incomplete).await?;
            let call = client::image_group_remove(&self.spec());
            absent_is_fine(ferry_cls::exec_write(image_io, &object, call).await)?;
            notify_header_update(image_io, &object, None).await?;
        }
        self.forget_link(image_io, id).await
    }

    async fn set_link(&self, image_io: &IoCtx, id: &str, state: GroupLinkState) -> Result<()> {
        let status = GroupImageStatus {
            spec: image_spec(image_io, id),
            state,
        };
        Ok(ferry_cls::exec_write(&self.io, &self.header(), client::group_image_set(&status)).await?)
    }

    async fn forget_link(&self, image_io: &IoCtx, id: &str) -> Result<()> {
        let call = client::group_image_remove(&image_spec(image_io, id));
        absent_is_fine(ferry_cls::exec_write(&self.io, &self.header(), call).await)
    }

    /// Links name no namespace.
    fn check_namespace(&self, image_io: &IoCtx) -> Result<()> {
        if self.io.scope().namespace == image_io.scope().namespace {
            return Ok(());
        }
        Err(ImageError::new(
            Errno::EINVAL,
            "group and image are in different namespaces",
        ))
    }
}

fn image_spec(image_io: &IoCtx, id: &str) -> GroupImageSpec {
    GroupImageSpec {
        image_id: id.to_owned(),
        pool_id: image_io.pool(),
    }
}

fn in_another(image: &str, group: &str) -> ImageError {
    ImageError::new(
        Errno::EEXIST,
        format!("image '{image}' is in another group ({group})"),
    )
    .hint("take it out of that group first")
}

async fn find(io: &IoCtx, name: &str) -> Result<String> {
    let id = directory::listed_id(io, name).await?;
    id.ok_or_else(|| {
        ImageError::of(ErrorKind::ImageMissing, Errno::ENOENT, format!("image '{name}'"))
            .hint("'rbd ls' lists the images; one of format 1 has to be migrated to format 2 first")
    })
}

async fn name_of(io: &IoCtx, id: &str) -> Result<String> {
    if let Some(name) = directory::listed_name(io, id).await? {
        return Ok(name);
    }
    let entry = trash::find(io, id).await?;
    Ok(entry.map_or_else(|| id.to_owned(), |entry| entry.name))
}

/// The group that an image's own header names. `None` also for an image that is gone.
pub(crate) async fn reference(io: &IoCtx, id: &str) -> Result<Option<GroupSpec>> {
    let call = client::image_group_get();
    let spec = optional(ferry_cls::exec_read(io, &names::header_object(id), call).await)?;
    Ok(spec.filter(GroupSpec::exists))
}

/// A group, as people call it: `POOL/[NAMESPACE/]NAME`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupInfo {
    /// Pool name of the group.
    pub pool: String,
    /// Namespace of the group; empty for the default one.
    pub namespace: String,
    /// Name of the group; its id when it has none.
    pub name: String,
}

impl fmt::Display for GroupInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/", self.pool)?;
        if !self.namespace.is_empty() {
            write!(f, "{}/", self.namespace)?;
        }
        f.write_str(&self.name)
    }
}

/// The group that image `id` of `io` is in.
pub async fn of_image(io: &IoCtx, id: &str) -> Result<Option<GroupInfo>> {
    let Some(spec) = reference(io, id).await? else {
        return Ok(None);
    };
    let group = Group::by_spec(io, &spec).await?;
    Ok(Some(GroupInfo {
        pool: pool::name_of(io.store(), spec.pool_id).await?,
        namespace: io.scope().namespace.to_string(),
        name: group.map_or(spec.group_id, |group| group.name),
    }))
}

/// The group that an image is in, to move the membership. `None` without one, or when its directory does not know it.
async fn membership(io: &IoCtx, id: &str) -> Result<Option<Group>> {
    match reference(io, id).await? {
        Some(spec) => Group::by_spec(io, &spec).await,
        None => Ok(None),
    }
}

/// Makes image `to` a member of the group that `from` is in, in its place. Fine if `from` is in none. The new one joins
/// before the old one leaves, so that a kill loses nothing and a second run finishes.
pub(crate) async fn move_membership(
    from_io: &IoCtx,
    from_id: &str,
    to_io: &IoCtx,
    to_id: &str,
) -> Result<()> {
    let Some(group) = membership(from_io, from_id).await? else {
        // An earlier run may have been killed before the old one's link was gone; one in the other direction, before the
        // newcomer's own header knew.
        if let Some(group) = membership(to_io, to_id).await? {
            group.set_link(to_io, to_id, GroupLinkState::Attached).await?;
            group.forget_link(from_io, from_id).await?;
        }
        return Ok(());
    };
    group.check_namespace(to_io)?;
    group.add_link(to_io, to_id, to_id).await?;
    group.remove_link(from_io, from_id).await
}
