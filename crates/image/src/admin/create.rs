//! Creates images: checks first, then names, header, object map; a failure takes back what was made.
//!
//! A create that was killed leaves a name without a header; the next create or remove of that name clears it away.

use ferry_cls::CallExt as _;
use ferry_cls::encoding::MAX_OBJECTS;
use ferry_cls::rbd::{ObjectState, client, feature};
use ferry_store::{Errno, IoCtx, PoolId, SnapId, WriteOp};

use super::{directory, pool};
use crate::error::{ErrorKind, ImageError, Result, absent_is_fine};
use crate::layout::{DEFAULT_ORDER, Layout};
use crate::names;

/// What a new image is to be.
#[derive(Debug, Clone, Default)]
pub struct CreateOptions {
    /// Size in bytes.
    pub size_bytes: u64,
    /// Object size exponent, 12 to 25; 22 without.
    pub order: Option<u8>,
    /// Stripe unit in bytes; 0: the object size.
    pub stripe_unit_bytes: u64,
    /// Stripe count; 0: 1.
    pub stripe_count: u64,
    /// Name of the pool for the data, if not the image's own.
    pub data_pool: Option<String>,
    /// Feature bits; layering, exclusive-lock, object-map, fast-diff and deep-flatten without.
    pub features: Option<u64>,
}

/// [`CreateOptions`], checked against a store.
#[derive(Debug, Clone)]
struct Plan {
    layout: Layout,
    features: u64,
    data_pool: Option<PoolId>,
}

/// Features a user may ask for.
const SETTABLE: u64 = feature::LAYERING
    | feature::STRIPINGV2
    | feature::EXCLUSIVE_LOCK
    | feature::OBJECT_MAP
    | feature::FAST_DIFF
    | feature::DEEP_FLATTEN
    | feature::DATA_POOL;

/// Creates an image. Checks everything before the first write.
///
/// Errors: `EEXIST` ([`ErrorKind::ImageExists`]); `EDOM`, `EINVAL` for impossible layouts and features; `ENOENT` for an
/// unknown data pool or namespace.
pub async fn create(io: &IoCtx, name: &str, options: &CreateOptions) -> Result<()> {
    let id = names::new_image_id(io.store().instance().gid);
    create_with_id(io, name, &id, options).await
}

/// The same with an id of the caller's choice.
pub async fn create_with_id(io: &IoCtx, name: &str, id: &str, options: &CreateOptions) -> Result<()> {
    names::check_image_name(name)?;
    check_options(io, options).await?;
    check_name_free(io, name).await?;
    directory::add(io, name, id).await?;
    let made = create_objects(io, id, options).await;
    let result = match made {
        // A second create that took this one for dead has the name now.
        Ok(()) if directory::id_of_name(io, name).await?.as_deref() != Some(id) => Err(ImageError::of(
            ErrorKind::ImageExists,
            Errno::EEXIST,
            format!("image '{name}'"),
        )),
        made => made,
    };
    if result.is_err() {
        remove_objects(io, id).await?;
        directory::remove(io, name, id).await?;
    }
    result
}

/// `EEXIST` when the name is taken; clears away what a killed create left under it.
pub async fn check_name_free(io: &IoCtx, name: &str) -> Result<()> {
    let Some(id) = directory::id_of_name(io, name).await? else {
        return if io.exists(&names::id_object(name)).await? {
            clear_stray_id(io, name).await
        } else {
            Ok(())
        };
    };
    if io.exists(&names::header_object(&id)).await? {
        return Err(ImageError::of(
            ErrorKind::ImageExists,
            Errno::EEXIST,
            format!("image '{name}'"),
        ));
    }
    tracing::info!(name, id, "clearing away what an interrupted create left");
    remove_objects(io, &id).await?;
    directory::remove(io, name, &id).await
}

/// An id object without a directory entry.
async fn clear_stray_id(io: &IoCtx, name: &str) -> Result<()> {
    let id = crate::header::find_id(io, name).await;
    match id {
        Ok(id) if io.exists(&names::header_object(&id)).await? => Err(ImageError::of(
            ErrorKind::ImageExists,
            Errno::EEXIST,
            format!("image '{name}'"),
        )),
        Ok(id) => directory::remove(io, name, &id).await,
        Err(error) if error.kind == ErrorKind::ImageMissing => absent_is_fine(
            io.write_meta(&names::id_object(name), WriteOp::new().remove())
                .await
                .map(|_| ()),
        ),
        Err(error) => Err(error),
    }
}

/// Refuses options that cannot be. Writes nothing.
pub async fn check_options(io: &IoCtx, options: &CreateOptions) -> Result<()> {
    plan(io, options).await.map(|_| ())
}

async fn plan(io: &IoCtx, options: &CreateOptions) -> Result<Plan> {
    let layout = Layout::new(
        options.order.unwrap_or(DEFAULT_ORDER),
        options.stripe_unit_bytes,
        options.stripe_count,
    )?;
    let data_pool = match &options.data_pool {
        None => None,
        Some(name) => {
            let id = pool::lookup(io.store(), name).await?;
            (id != io.pool()).then_some(id)
        }
    };
    let features = features(options, &layout, data_pool.is_some())?;
    let objects = layout.object_count(options.size_bytes);
    if features & feature::OBJECT_MAP != 0 && objects > MAX_OBJECTS {
        return Err(ImageError::new(
            Errno::EINVAL,
            format!(
                "an image of {} bytes has {objects} objects, more than an object map can hold",
                options.size_bytes
            ),
        )
        .hint("use larger objects, or leave the object-map feature out"));
    }
    Ok(Plan {
        layout,
        features,
        data_pool,
    })
}

fn features(options: &CreateOptions, layout: &Layout, has_data_pool: bool) -> Result<u64> {
    let mut features = options.features.unwrap_or(feature::DEFAULT);
    let unknown = features & !feature::ALL;
    if unknown != 0 {
        return Err(ImageError::new(
            Errno::ENOSYS,
            format!("unknown feature bits {unknown:#x}"),
        ));
    }
    let internal = features & feature::INTERNAL;
    if internal != 0 {
        return Err(ImageError::new(
            Errno::EINVAL,
            format!(
                "feature(s) that cannot be asked for: {}",
                feature::names(internal).join(", ")
            ),
        ));
    }
    let unsupported = features & !SETTABLE;
    if unsupported != 0 {
        return Err(ImageError::new(
            Errno::EOPNOTSUPP,
            format!(
                "feature(s) that Ferry does not support: {}",
                feature::names(unsupported).join(", ")
            ),
        ));
    }
    // Ceph switches these two on and off together.
    if features & (feature::OBJECT_MAP | feature::FAST_DIFF) != 0 {
        if features & feature::OBJECT_MAP == 0 {
            return Err(needs("fast-diff", "object-map"));
        }
        features |= feature::FAST_DIFF;
        if features & feature::EXCLUSIVE_LOCK == 0 {
            return Err(needs("object-map", "exclusive-lock"));
        }
    }
    features &= !(feature::STRIPINGV2 | feature::DATA_POOL);
    if layout.is_striped() {
        features |= feature::STRIPINGV2;
    }
    if has_data_pool {
        features |= feature::DATA_POOL;
    }
    Ok(features)
}

fn needs(one: &str, other: &str) -> ImageError {
    ImageError::new(Errno::EINVAL, format!("feature {one} needs feature {other}"))
}

/// Makes header and object map of a new image that has no name yet.
pub async fn create_objects(io: &IoCtx, id: &str, options: &CreateOptions) -> Result<()> {
    let plan = plan(io, options).await?;
    let data_pool = plan.data_pool.unwrap_or(io.pool());
    pool::validate(&io.with_pool(data_pool)).await?;
    let prefix = names::object_prefix(id, io.pool(), plan.data_pool.is_some());
    let header = names::header_object(id);
    let op = WriteOp::new().create(true).class_call(&client::create(
        options.size_bytes,
        plan.layout.order(),
        plan.features,
        &prefix,
        plan.data_pool.unwrap_or(PoolId::NONE),
    ));
    io.write_meta(&header, op).await?;
    if plan.layout.is_striped() {
        let call = client::set_stripe_unit_count(plan.layout.stripe_unit_bytes(), plan.layout.stripe_count());
        ferry_cls::exec_write(io, &header, call).await?;
    }
    if plan.features & feature::OBJECT_MAP != 0 {
        let objects = plan.layout.object_count(options.size_bytes);
        let call = client::object_map_resize(objects, ObjectState::Nonexistent);
        ferry_cls::exec_write(io, &names::object_map_object(id, SnapId::HEAD), call).await?;
    }
    Ok(())
}

/// Gives an image made by [`create_objects`] its name.
pub async fn register_name(io: &IoCtx, name: &str, id: &str) -> Result<()> {
    directory::add(io, name, id).await
}

async fn remove_objects(io: &IoCtx, id: &str) -> Result<()> {
    for object in [
        names::object_map_object(id, SnapId::HEAD),
        names::header_object(id),
    ] {
        absent_is_fine(io.write_meta(&object, WriteOp::new().remove()).await.map(|_| ()))?;
    }
    Ok(())
}
