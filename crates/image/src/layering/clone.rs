//! `clone`: makes an image that shows a snapshot of another.
//!
//! As any image it is made without a name (see [`crate::admin::create`]); the name comes when the clone is linked both ways.
//! A kill leaves an image in the making, which the next command that uses its name clears away, links and all.

use ferry_cls::rbd::{ProtectionStatus, SnapshotNamespace, client, feature};
use ferry_store::{Errno, IoCtx};

pub use super::links::CloneFormat;
use super::links::{self, Child};
use crate::admin::create::{self, CheckedOptions, CreateOptions};
use crate::admin::staged;
use crate::error::{ErrorKind, ImageError, Result};
use crate::header::{self, SnapRecord};
use crate::image::{SnapKey, find_snap};
use crate::layout::Layout;
use crate::names;

/// What a clone may be told; all else it has from its parent.
#[derive(Debug, Clone, Default)]
pub struct CloneOptions {
    /// Object size exponent; `None`: the parent's.
    pub order: Option<u8>,
    /// Stripe unit in bytes, with the count; `None`: the parent's if that is striped, else the object size.
    pub stripe_unit_bytes: Option<u64>,
    /// Stripe count.
    pub stripe_count: Option<u64>,
    /// Pool of the data objects, if not that of the image.
    pub data_pool: Option<String>,
    /// Feature bits; `None`: the parent's.
    pub features: Option<u64>,
    /// Bits to leave out of the parent's.
    pub features_clear: u64,
    /// How it is linked; `None`: as the clients that the store must serve understand it.
    pub format: Option<CloneFormat>,
}

/// Makes `child_name` a clone of a snapshot of `parent_name`. `ENOENT` ([`ErrorKind::ImageMissing`],
/// [`ErrorKind::SnapMissing`]), `EEXIST` ([`ErrorKind::ImageExists`]); `EINVAL` for format 1 of a snapshot that is not
/// protected, and for a snapshot of no size; `EXDEV` for format 1 in another namespace; `ENOSYS` without the layering
/// feature; `EROFS` ([`ErrorKind::Migrating`]) for the source of a migration; layouts as [`create::create`].
pub async fn clone(
    parent_io: &IoCtx,
    parent_name: &str,
    snap: &SnapKey,
    child_io: &IoCtx,
    child_name: &str,
    options: &CloneOptions,
) -> Result<()> {
    let parent_id = header::find_id(parent_io, parent_name).await?;
    let format = format(child_io, options).await?;
    let in_one_namespace = parent_io.scope().namespace == child_io.scope().namespace;
    if format == CloneFormat::One && !in_one_namespace {
        return Err(ImageError::new(
            Errno::EXDEV,
            format!("image '{parent_name}': a clone of format 1 lies in the namespace of its parent"),
        )
        .hint(USE_FORMAT_2));
    }
    let of = Of::look(parent_io, &parent_id, parent_name, snap).await?;
    if format == CloneFormat::One && of.snap.protection != ProtectionStatus::Protected {
        return Err(
            ImageError::new(Errno::EINVAL, format!("{} is not protected", of.place()))
                .hint(format!("protect it with 'rbd snap protect', or {USE_FORMAT_2}")),
        );
    }
    let inherited = of.layout.is_striped() && options.stripe_unit_bytes.is_none();
    let (stripe_unit_bytes, stripe_count) = match inherited {
        true => (of.layout.stripe_unit_bytes(), of.layout.stripe_count()),
        false => (
            options.stripe_unit_bytes.unwrap_or(0),
            options.stripe_count.unwrap_or(0),
        ),
    };
    let created = CreateOptions {
        format_1: false,
        size_bytes: of.snap.size_bytes,
        order: Some(options.order.unwrap_or(of.layout.order())),
        stripe_unit_bytes,
        stripe_count,
        data_pool: options.data_pool.clone(),
        features: Some(of.features(options)?),
    };
    let checked = create::check(child_io, child_name, &created).await?;
    staged::clear(child_io, child_name).await?;
    let id = staged::begin(child_io, child_name).await?;
    let child = Child {
        io: child_io.clone(),
        id,
        format,
    };
    let made = async {
        make(&of, &child, &checked).await?;
        staged::finish(child_io, child_name, &child.id).await
    }
    .await;
    match made {
        Ok(()) => Ok(()),
        Err(error) => {
            staged::abandon(child_io, child_name, &child.id).await;
            Err(error.context(format!("image '{child_name}'")))
        }
    }
}

/// The snapshot to clone.
struct Of {
    io: IoCtx,
    id: String,
    name: String,
    snap: SnapRecord,
    layout: Layout,
    image_features: u64,
}

impl Of {
    async fn look(io: &IoCtx, id: &str, name: &str, snap: &SnapKey) -> Result<Self> {
        let fixed = header::load_fixed(io, id).await?;
        let header = header::load(io, id, true).await?;
        let place = |error: ImageError| error.context(format!("image '{name}'"));
        let snap = find_snap(&header, snap).map_err(place)?;
        if header.migration_source().is_some() {
            return Err(ImageError::of(
                ErrorKind::Migrating,
                Errno::EROFS,
                format!("image '{name}' is the source of a migration"),
            )
            .hint("clone a snapshot of the migration's target"));
        }
        if !header.has(feature::LAYERING) {
            return Err(ImageError::new(
                Errno::ENOSYS,
                format!("parent image '{name}' does not have the layering feature"),
            ));
        }
        let of = Self {
            io: io.clone(),
            id: id.to_owned(),
            name: name.to_owned(),
            snap: header.snaps[&snap].clone(),
            layout: fixed.layout,
            image_features: header.features,
        };
        if matches!(of.snap.namespace, SnapshotNamespace::Trash { .. }) {
            return Err(ImageError::of(
                ErrorKind::SnapMissing,
                Errno::ENOENT,
                format!("{} was removed; only its clones keep it", of.place()),
            ));
        }
        if of.snap.size_bytes == 0 {
            return Err(ImageError::new(
                Errno::EINVAL,
                format!("{} has no bytes that a clone could show", of.place()),
            )
            .hint("create an image instead"));
        }
        Ok(of)
    }

    fn place(&self) -> String {
        format!("snapshot '{}' of image '{}'", self.snap.name, self.name)
    }

    fn features(&self, options: &CloneOptions) -> Result<u64> {
        let inherited = self.image_features & !feature::IMPLICIT_ENABLE & !options.features_clear;
        // What Ferry cannot write is not taken over.
        let bits = options.features.unwrap_or(inherited & !feature::JOURNALING);
        if bits & feature::LAYERING == 0 {
            return Err(ImageError::new(
                Errno::ENOSYS,
                "a clone needs the layering feature",
            ));
        }
        Ok(bits)
    }
}

const USE_FORMAT_2: &str = "use format 2: --rbd-default-clone-format 2";

/// Format 1 unless all clients that the store must serve know format 2.
async fn format(child_io: &IoCtx, options: &CloneOptions) -> Result<CloneFormat> {
    Ok(match options.format {
        Some(format) => format,
        None if child_io.store().oldest_client_release().await? >= ferry_store::RELEASE_MIMIC => {
            CloneFormat::Two
        }
        None => CloneFormat::One,
    })
}

async fn make(of: &Of, child: &Child, checked: &CheckedOptions) -> Result<()> {
    create::write_objects(&child.io, &child.id, checked).await?;
    let parent = links::parent_spec(&of.io, &of.id, of.snap.id);
    links::name_parent(child, &parent, of.snap.size_bytes, false).await?;
    links::put_on_list(&parent, child)
        .await
        .map_err(|error| match error.errno {
            Errno::ENOENT => error.context(format!("{} was removed meanwhile", of.place())),
            _ => error,
        })?;
    if child.format == CloneFormat::One {
        // Whoever unprotects looks at the lists after that; one of both sees the other.
        let now = header::load(&of.io, &of.id, true).await?;
        let protection = now.snaps.get(&of.snap.id).map(|snap| snap.protection);
        if protection != Some(ProtectionStatus::Protected) {
            return Err(ImageError::new(
                Errno::EINVAL,
                format!("{} was unprotected meanwhile", of.place()),
            ));
        }
    }
    let metadata = client::metadata_list_all(&of.io, &names::header_object(&of.id)).await?;
    if !metadata.is_empty() {
        let call = client::metadata_set(&metadata);
        ferry_cls::exec_write(&child.io, &child.header_object(), call).await?;
    }
    Ok(())
}
