//! `copy` and `deep copy`: a new image that holds what another one shows, without or with its snapshots.
//!
//! The objects are copied as those of a migration ([`crate::deep_copy`]): with their history, sparse, by the engine itself
//! where it can, and whatever the two layouts are. What an image shows of a parent or of a migration source is read and
//! written. The new image has no name until it is whole ([`super::staged`]). The head of an image that is written to
//! meanwhile is copied as it comes; snapshots are copied as they are.

use std::collections::BTreeMap;

use ferry_cls::rbd::{
    MigrationHeaderType, MigrationSpec, MigrationState, MirrorImageMode, ParentImageSpec, SnapshotNamespace,
    client, feature,
};
use ferry_store::{Errno, IoCtx, SnapId};
use futures::stream::{StreamExt as _, TryStreamExt as _};

use super::CONCURRENT;
use super::create::CreateOptions;
use super::import::{self, write_sparse};
use crate::deep_copy::{CopyOptions, ensure_copied_with};
use crate::error::{ErrorKind, ImageError, Result};
use crate::header::Header;
use crate::image::Image;
use crate::layering::clone::CloneFormat;
use crate::migration::prepare;
use crate::migration::source::MigrationSource;
use crate::object_map::ahead;
use crate::object_set::ObjectSet;
use crate::progress::Progress;

/// Bytes read and written at a time where objects are not copied.
const SLICE_BYTES: u64 = 4 << 20;

/// How the copy is made. What is `None` is as in the source.
#[derive(Debug, Clone, Default)]
pub struct ImageCopyOptions {
    /// Object size exponent.
    pub order: Option<u8>,
    /// Stripe unit in bytes; together with the count.
    pub stripe_unit_bytes: Option<u64>,
    /// Stripe count.
    pub stripe_count: Option<u64>,
    /// Feature bits.
    pub features: Option<u64>,
    /// Feature bits to leave out of the source's.
    pub features_clear: u64,
    /// Pool of the data objects; without it, that of the image.
    pub data_pool: Option<String>,
    /// Zeroes are left out in units of this many bytes; without it only holes are.
    pub sparse_size_bytes: Option<u64>,
}

/// Copies what the handle shows (head or snapshot) to the new image `name`, with its metadata. Errors are those of
/// [`super::create::create`].
pub async fn copy(
    source: &Image,
    io: &IoCtx,
    name: &str,
    options: &ImageCopyOptions,
    progress: &Progress,
) -> Result<()> {
    let mut header = Header::clone(&*source.header());
    header.size_bytes = source.size_bytes();
    header.snaps.clear();
    let by_bytes = options.sparse_size_bytes.is_some() || lies_over_another(source);
    make(source, &header, io, name, options, async |target| {
        if by_bytes {
            let unit = options
                .sparse_size_bytes
                .unwrap_or(import::DEFAULT_SPARSE_SIZE_BYTES);
            return bytes(source, target, unit, progress).await;
        }
        objects(source, target, &header, None, false, progress).await
    })
    .await
}

/// Copies what the handle shows and all user snapshots that are not newer, protection included. The copy of a clone has the
/// same parent, unless `flatten`. `EBUSY` ([`ErrorKind::Migrating`]) for a migration target that does not have all of its
/// data yet.
pub async fn deep_copy(
    source: &Image,
    io: &IoCtx,
    name: &str,
    options: &ImageCopyOptions,
    flatten: bool,
    progress: &Progress,
) -> Result<()> {
    if source.source().is_some() {
        return Err(ImageError::of(
            ErrorKind::Migrating,
            Errno::EBUSY,
            format!("image '{}' is being migrated", source.name()),
        )
        .hint("execute the migration first"));
    }
    let mut header = Header::clone(&*source.header());
    header.size_bytes = source.size_bytes();
    let end = source.read_snap();
    let shown_bytes = header.parent_overlap_bytes(end);
    if let Some(link) = &mut header.parent {
        link.head_overlap_bytes = Some(shown_bytes).filter(|bytes| *bytes > 0);
    }
    header
        .snaps
        .retain(|id, snap| *id <= end && snap.namespace == SnapshotNamespace::User);
    let wanted = prepare::PrepareOptions {
        features: options.features,
        flatten,
        ..prepare::PrepareOptions::default()
    };
    let parent = prepare::kept_parent(source, io, &wanted).await?;
    make(source, &header, io, name, options, async |target| {
        objects(source, target, &header, parent.as_ref(), flatten, progress).await
    })
    .await
}

/// Whether an image shows what is not its own.
fn lies_over_another(image: &Image) -> bool {
    image.source().is_some() || image.parent().is_some()
}

/// Makes the image and has it filled. `header` says of the source what is copied.
async fn make(
    source: &Image,
    header: &Header,
    io: &IoCtx,
    name: &str,
    options: &ImageCopyOptions,
    fill: impl AsyncFnOnce(&Image) -> Result<()>,
) -> Result<()> {
    let layout = source.layout();
    let same_striping = layout.is_striped() && options.stripe_unit_bytes.is_none();
    let inherited = header.features & !prepare::not_inherited() & !options.features_clear;
    let create = CreateOptions {
        format_1: false,
        // The largest version, so that all of them are checked.
        size_bytes: header
            .snaps
            .values()
            .map(|snap| snap.size_bytes)
            .fold(header.size_bytes, u64::max),
        order: Some(options.order.unwrap_or(layout.order())),
        stripe_unit_bytes: match same_striping {
            true => layout.stripe_unit_bytes(),
            false => options.stripe_unit_bytes.unwrap_or(0),
        },
        stripe_count: match same_striping {
            true => layout.stripe_count(),
            false => options.stripe_count.unwrap_or(0),
        },
        data_pool: options.data_pool.clone(),
        features: Some(options.features.unwrap_or(inherited & !feature::NON_PRIMARY)),
    };
    let accept = |object_size_bytes| match options.sparse_size_bytes {
        Some(unit) => import::check_unit(unit, object_size_bytes),
        None => Ok(()),
    };
    import::make_image(io, name, &create, accept, async |target: &Image| {
        let metadata = client::metadata_list_all(source.io(), &source.inner.header_object).await?;
        if !metadata.is_empty() {
            let set = client::metadata_set(&metadata);
            ferry_cls::exec_write(target.io(), &target.inner.header_object, set).await?;
        }
        fill(target).await
    })
    .await
}

/// Makes the snapshots, and copies every object with its history.
async fn objects(
    source: &Image,
    target: &Image,
    header: &Header,
    parent: Option<&(ParentImageSpec, CloneFormat)>,
    flatten: bool,
    progress: &Progress,
) -> Result<()> {
    let snap_seqs = prepare::make_history(target, header, parent).await?;
    let spec = spec(source, snap_seqs, header.size_bytes, flatten);
    let below = MigrationSource::new(source.clone(), &target.header(), &spec).for_copy(source.read_snap());
    let objects = below.objects_to_copy(target).await?;
    let total = objects.len().max(1);
    let mut copied = futures::stream::iter(objects.iter())
        .map(async |object| {
            let copied = ensure_copied_with(target, &below, object, CopyOptions::default()).await?;
            Ok::<_, ImageError>((object, copied))
        })
        .buffer_unordered(CONCURRENT);
    let mut done = 0;
    let mut uncopied = ObjectSet::default();
    while let Some((object, copied)) = copied.try_next().await? {
        if !copied.exists {
            uncopied.insert(object);
        }
        done += 1;
        progress.update(done, total);
    }
    drop(copied);
    // What has nothing but holes was marked before that was known.
    ahead::take_back(target, &uncopied).await?;
    target.sync_all_data().await?;
    progress.update(total, total);
    Ok(())
}

/// The mapping of two images that no header holds.
fn spec(
    source: &Image,
    snap_seqs: BTreeMap<SnapId, SnapId>,
    overlap_bytes: u64,
    flatten: bool,
) -> MigrationSpec {
    MigrationSpec {
        header_type: MigrationHeaderType::Destination,
        pool_id: source.io().pool(),
        pool_namespace: source.io().scope().namespace.to_string(),
        image_name: source.name(),
        image_id: source.id().to_owned(),
        snap_seqs,
        overlap_bytes,
        flatten,
        mirroring: false,
        state: MigrationState::Executing,
        state_description: String::new(),
        mirror_image_mode: MirrorImageMode::Journal,
        source_spec: String::new(),
    }
}

/// Copies what is shown, byte by byte, in units of `unit`.
async fn bytes(source: &Image, target: &Image, unit: u64, progress: &Progress) -> Result<()> {
    let size_bytes = source.size_bytes();
    if target.header().size_bytes != size_bytes {
        target.resize(size_bytes, true, &Progress::silent()).await?;
    }
    let mut slices = futures::stream::iter((0..size_bytes).step_by(SLICE_BYTES as usize))
        .map(|offset| async move {
            let length_bytes = SLICE_BYTES.min(size_bytes - offset);
            for (at, data) in source.read_sparse(offset, length_bytes).await? {
                write_sparse(target, at, data, unit).await?;
            }
            Ok::<_, ImageError>(offset + length_bytes)
        })
        .buffered(CONCURRENT);
    while let Some(done) = slices.try_next().await? {
        progress.update(done, size_bytes);
    }
    progress.update(size_bytes.max(1), size_bytes.max(1));
    Ok(())
}
