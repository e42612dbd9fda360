//! Creating images: checks, header and object map, name.
//!
//! Everything that can be refused is refused before the first write. The objects are those of librbd (rbd-format sheet,
//! section 1.1); the name comes last, so that it never leads to half an image ([`super::staged`] keeps track till then).

use ferry_cls::CallExt as _;
use ferry_cls::encoding::MAX_OBJECTS;
use ferry_cls::rbd::{ObjectState, client, feature};
use ferry_store::{Errno, IoCtx, PoolId, SnapId, WriteOp};

use super::{directory, format_1, namespace, pool, staged};
use crate::error::{ImageError, Result};
use crate::image::Image;
use crate::layout::{DEFAULT_ORDER, Layout};
use crate::names;
use crate::progress::Progress;

/// Bytes written at a time by [`fill`].
const THICK_STEP_BYTES: u64 = 4 << 20;
/// Largest image: what file offsets and block devices can say.
pub const MAX_SIZE_BYTES: u64 = i64::MAX as u64;

/// How to create an image.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CreateOptions {
    /// Size in bytes.
    pub size_bytes: u64,
    /// Object size exponent, 12 to 25; `None`: 22.
    pub order: Option<u8>,
    /// Stripe unit in bytes; 0: the object size.
    pub stripe_unit_bytes: u64,
    /// Stripe count; 0: 1.
    pub stripe_count: u64,
    /// Pool of the data objects, if not that of the image.
    pub data_pool: Option<String>,
    /// Format 1: no features, no striping, no data pool, no namespace. For old clients; all else is better off without.
    pub format_1: bool,
    /// Feature bits; `None`: 61. The bits that tell of the layout, the data pool, migration and internal operations
    /// follow from what the image has, whatever is asked for.
    pub features: Option<u64>,
}

/// Options that were found to make sense.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CheckedOptions {
    /// Size in bytes.
    pub size_bytes: u64,
    /// How it is cut into objects.
    pub layout: Layout,
    /// All feature bits of the new image.
    pub features: u64,
    /// Pool of the data objects, if not that of the image.
    pub data_pool: Option<PoolId>,
}

/// Creates the image `name`. `EEXIST` ([`crate::ErrorKind::ImageExists`]); `EDOM` and `EINVAL` for a layout or features
/// that make no sense; `ENOENT` for a data pool ([`crate::ErrorKind::PoolMissing`]) or namespace
/// ([`crate::ErrorKind::NamespaceMissing`]) that is not there; `EOPNOTSUPP` for journaling. After a failure nothing remains.
pub async fn create(io: &IoCtx, name: &str, options: &CreateOptions) -> Result<()> {
    if options.format_1 {
        return create_format_1(io, name, options).await;
    }
    let checked = check(io, name, options).await?;
    staged::clear(io, name).await?;
    let id = staged::begin(io, name).await?;
    let created = async {
        write_objects(io, &id, &checked).await?;
        staged::finish(io, name, &id).await
    }
    .await;
    match created {
        Ok(()) => Ok(()),
        Err(error) => {
            staged::abandon(io, name, &id).await;
            Err(error.context(format!("image '{name}'")))
        }
    }
}

/// Creates an image of format 2 all of whose objects exist. It has no name before they do, so a kill leaves nothing under it.
/// Errors as [`create`], and `ENOSPC`.
pub async fn create_thick(
    io: &IoCtx,
    name: &str,
    options: &CreateOptions,
    progress: &Progress,
) -> Result<()> {
    super::import::make_image(
        io,
        name,
        options,
        |_| Ok(()),
        async |image: &Image| fill(image, progress).await,
    )
    .await
}

/// Makes all objects of an image exist.
pub async fn fill(image: &Image, progress: &Progress) -> Result<()> {
    let size_bytes = image.size_bytes();
    let mut at = 0;
    while at < size_bytes {
        let step = THICK_STEP_BYTES.min(size_bytes - at);
        image.write_zeroes(at, step, true).await?;
        at += step;
        progress.update(at, size_bytes);
    }
    Ok(())
}

async fn create_format_1(io: &IoCtx, name: &str, options: &CreateOptions) -> Result<()> {
    let refused = |what: &str| {
        ImageError::new(
            Errno::EINVAL,
            format!("image '{name}': an image of format 1 has no {what}"),
        )
        .hint("use format 2")
    };
    if !io.scope().namespace.is_empty() {
        return Err(refused("namespace"));
    }
    if options.data_pool.is_some() {
        return Err(refused("data pool"));
    }
    if options.features.is_some_and(|features| features != 0) {
        return Err(refused("features"));
    }
    let plain = CreateOptions {
        features: Some(0),
        ..options.clone()
    };
    let checked = check(io, name, &plain).await?;
    if checked.layout.is_striped() {
        return Err(refused("striping"));
    }
    staged::clear(io, name).await?;
    pool::validate(io).await?;
    format_1::create(io, name, checked.size_bytes, checked.layout.order()).await
}

/// All checks of a creation.
pub(crate) async fn check(io: &IoCtx, name: &str, options: &CreateOptions) -> Result<CheckedOptions> {
    names::check_image_name(name)?;
    namespace::check(io).await?;
    check_name_free(io, name).await?;
    plan(io, options).await
}

/// `EEXIST` ([`crate::ErrorKind::ImageExists`]) when the name leads to an image. What interrupted commands left under it is
/// settled.
pub async fn check_name_free(io: &IoCtx, name: &str) -> Result<()> {
    directory::free_name(io, name).await
}

pub(crate) fn too_large(size_bytes: u64) -> ImageError {
    ImageError::new(Errno::EFBIG, format!("size of {size_bytes} bytes"))
        .hint(format!("the largest image has {MAX_SIZE_BYTES} bytes"))
}

/// Refuses layouts, features and data pools that make no sense. Changes nothing.
pub async fn check_options(io: &IoCtx, options: &CreateOptions) -> Result<()> {
    plan(io, options).await.map(|_| ())
}

pub(crate) async fn plan(io: &IoCtx, options: &CreateOptions) -> Result<CheckedOptions> {
    let order = options.order.unwrap_or(DEFAULT_ORDER);
    let layout = Layout::new(order, options.stripe_unit_bytes, options.stripe_count)?;
    if options.size_bytes > MAX_SIZE_BYTES {
        return Err(too_large(options.size_bytes));
    }
    let data_pool = match &options.data_pool {
        Some(name) => Some(pool::lookup(io.store(), name).await?).filter(|pool| *pool != io.pool()),
        None => None,
    };
    let features = features(
        options.features.unwrap_or(feature::DEFAULT),
        &layout,
        data_pool.is_some(),
    )?;
    let objects = layout.object_count(options.size_bytes);
    if features & feature::OBJECT_MAP != 0 && objects > MAX_OBJECTS {
        return Err(ImageError::new(
            Errno::EINVAL,
            format!("image of {objects} objects: an object map holds no more than {MAX_OBJECTS}"),
        )
        .hint("use larger objects, or no object map"));
    }
    Ok(CheckedOptions {
        size_bytes: options.size_bytes,
        layout,
        features,
        data_pool,
    })
}

/// All bits that the image will have, from those asked for.
fn features(asked: u64, layout: &Layout, has_data_pool: bool) -> Result<u64> {
    let unknown = asked & !feature::ALL;
    if unknown != 0 {
        return Err(ImageError::new(
            Errno::ENOSYS,
            format!("unknown feature bits {unknown:#x}"),
        ));
    }
    if asked & feature::JOURNALING != 0 {
        return Err(ImageError::new(Errno::EOPNOTSUPP, "feature journaling")
            .hint("this version of Ferry cannot write journals; leave the feature out"));
    }
    let internal = asked & (feature::NON_PRIMARY | feature::DIRTY_CACHE);
    if internal != 0 {
        return Err(ImageError::new(
            Errno::EINVAL,
            format!(
                "feature {} cannot be asked for",
                feature::names(internal).join(", ")
            ),
        ));
    }
    let follows = feature::STRIPINGV2 | feature::DATA_POOL | feature::OPERATIONS | feature::MIGRATING;
    let mut bits = asked & !follows;
    let needs = |bits: u64, one: u64, other: u64| {
        if bits & one != 0 && bits & other == 0 {
            let names = |bit| feature::names(bit).join("");
            return Err(ImageError::new(
                Errno::EINVAL,
                format!("feature {} needs feature {}", names(one), names(other)),
            ));
        }
        Ok(())
    };
    needs(bits, feature::FAST_DIFF, feature::OBJECT_MAP)?;
    needs(bits, feature::OBJECT_MAP, feature::EXCLUSIVE_LOCK)?;
    if bits & feature::OBJECT_MAP != 0 {
        bits |= feature::FAST_DIFF;
    }
    if layout.is_striped() {
        bits |= feature::STRIPINGV2;
    }
    if has_data_pool {
        bits |= feature::DATA_POOL;
    }
    Ok(bits)
}

/// Writes the header and object map of a new image `id` that has no name. `EEXIST` when there is an image of this id.
/// After a failure nothing remains.
pub async fn create_objects(io: &IoCtx, id: &str, options: &CreateOptions) -> Result<()> {
    let checked = plan(io, options).await?;
    write_objects(io, id, &checked).await
}

pub(crate) async fn write_objects(io: &IoCtx, id: &str, checked: &CheckedOptions) -> Result<()> {
    if let Some(pool) = checked.data_pool {
        pool::validate(&io.with_pool(pool)).await?;
    } else {
        pool::validate(io).await?;
    }
    let header = names::header_object(id);
    let prefix = names::object_prefix(id, io.pool(), checked.data_pool.is_some());
    let create = client::create(
        checked.size_bytes,
        checked.layout.order(),
        checked.features,
        &prefix,
        checked.data_pool.unwrap_or(PoolId::NONE),
    );
    io.write_meta(&header, WriteOp::new().create(true).class_call(&create))
        .await?;
    let rest = write_rest(io, id, &header, checked).await;
    if rest.is_err() {
        for object in [names::object_map_object(id, SnapId::HEAD), header] {
            if let Err(error) = io.write_meta(&object, WriteOp::new().remove()).await
                && error.errno != Errno::ENOENT
            {
                tracing::warn!(object, %error, "cannot take back a half-made image");
            }
        }
    }
    rest
}

async fn write_rest(io: &IoCtx, id: &str, header: &str, checked: &CheckedOptions) -> Result<()> {
    let layout = &checked.layout;
    if layout.is_striped() {
        let call = client::set_stripe_unit_count(layout.stripe_unit_bytes(), layout.stripe_count());
        ferry_cls::exec_write(io, header, call).await?;
    }
    if checked.features & feature::OBJECT_MAP != 0 {
        let objects = layout.object_count(checked.size_bytes);
        let call = client::object_map_resize(objects, ObjectState::Nonexistent);
        ferry_cls::exec_write(io, &names::object_map_object(id, SnapId::HEAD), call).await?;
    }
    Ok(())
}

/// Gives image `id` its name. May be run again. `EEXIST` ([`crate::ErrorKind::ImageExists`]) when the name leads to another
/// image.
pub async fn register_name(io: &IoCtx, name: &str, id: &str) -> Result<()> {
    directory::add(io, name, id).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain() -> Layout {
        Layout::new(22, 0, 0).unwrap()
    }

    #[test]
    fn object_map_brings_fast_diff_along() {
        let asked = feature::LAYERING | feature::EXCLUSIVE_LOCK | feature::OBJECT_MAP;
        assert_eq!(
            features(asked, &plain(), false).unwrap(),
            asked | feature::FAST_DIFF
        );
    }

    #[test]
    fn features_without_what_they_need_are_refused() {
        for (asked, errno) in [
            (feature::OBJECT_MAP, Errno::EINVAL),
            (feature::EXCLUSIVE_LOCK | feature::FAST_DIFF, Errno::EINVAL),
            (feature::EXCLUSIVE_LOCK | feature::JOURNALING, Errno::EOPNOTSUPP),
            (feature::NON_PRIMARY, Errno::EINVAL),
            (1 << 40, Errno::ENOSYS),
        ] {
            assert_eq!(
                features(asked, &plain(), false).unwrap_err().errno,
                errno,
                "{asked:#x}"
            );
        }
    }

    #[test]
    fn layout_and_data_pool_set_their_bits() {
        let striped = Layout::new(20, 65536, 4).unwrap();
        let asked = feature::LAYERING | feature::MIGRATING;
        let bits = features(asked, &striped, true).unwrap();
        assert_eq!(bits, feature::LAYERING | feature::STRIPINGV2 | feature::DATA_POOL);
        let inherited = feature::LAYERING | feature::STRIPINGV2;
        assert_eq!(features(inherited, &plain(), false).unwrap(), feature::LAYERING);
    }
}
