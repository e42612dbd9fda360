//! `migration prepare`: makes the target and cross-links it with the source.
//!
//! Rows "prepare" of `docs/migration.md`. Everything that can be refused is refused before the first change. Then: mark
//! the source (nobody can open it for writing from here on), see that nobody had, move it to the trash, make the target
//! without a name, link it to the parent of a clone, give it the snapshots, write its record, give it its name, give it the source's
//! place in a group, declare both prepared, move the source's own clones over. A failure takes all of it back; a kill is taken back by the next prepare of the
//! same source, or by abort; one after the target was prepared is made good by the next verb, whichever it is.

use std::collections::BTreeMap;

use ferry_cls::CallExt as _;
use ferry_cls::rbd::{
    MigrationHeaderType, MigrationSpec, MigrationState, MirrorImageMode, ObjectState, ParentImageSpec,
    ProtectionStatus, SnapshotNamespace, TrashImageSource, client, feature, op_feature,
};
use ferry_store::{Errno, IoCtx, SnapId, WriteOp};

use super::pair::{self, Found, Pair};
use super::record::Side;
use crate::admin::{self, create::CreateOptions};
use crate::error::{ErrorKind, ImageError, Result};
use crate::group;
use crate::header::{self, Header, SnapRecord};
use crate::image::{Image, ImageKey, OpenOptions};
use crate::layering::links::{self, Child, CloneFormat};
use crate::layout::Layout;
use crate::names;
use crate::progress::Progress;

/// What a target may be told; all else it has from the source.
#[derive(Debug, Clone, Default)]
pub struct PrepareOptions {
    /// Object size exponent.
    pub order: Option<u8>,
    /// Stripe unit in bytes.
    pub stripe_unit_bytes: Option<u64>,
    /// Stripe count.
    pub stripe_count: Option<u64>,
    /// Feature bits.
    pub features: Option<u64>,
    /// Data pool.
    pub data_pool: Option<String>,
    /// Cut the target loose from the source's parent. Images without a parent are not affected.
    pub flatten: bool,
}

/// Prepares the migration of `source_name` to `target_name`, which may be the same name in the same place.
pub async fn prepare(
    source_io: &IoCtx,
    source_name: &str,
    target_io: &IoCtx,
    target_name: &str,
    options: &PrepareOptions,
) -> Result<()> {
    names::check_image_name(target_name)?;
    take_back_interrupted(source_io, source_name).await?;
    let source = Image::open(
        source_io,
        ImageKey::Name(source_name),
        OpenOptions::read_write().ignoring_migration(),
    )
    .await?;
    let prepared = with_source(&source, target_io, target_name, options).await;
    let closed = source.close().await;
    prepared.and(closed)
}

/// Undoes what a killed prepare of the same source left.
async fn take_back_interrupted(io: &IoCtx, name: &str) -> Result<()> {
    let found = match pair::find(io, name).await {
        Ok(found) => found,
        Err(error) if error.kind == ErrorKind::ImageMissing => return Ok(()),
        Err(error) => return Err(error),
    };
    let Found::Pair(pair) = found else { return Ok(()) };
    if pair.source.io.scope() != io.scope() || pair.source.name != name {
        return Ok(());
    }
    let unprepared = pair.source.state() == Some(MigrationState::Preparing)
        && matches!(pair.target.state(), None | Some(MigrationState::Preparing));
    let half_prepared = pair.source.state() == Some(MigrationState::Prepared)
        && pair.target.state() == Some(MigrationState::Preparing);
    if !unprepared && !half_prepared {
        return Ok(());
    }
    let object = pair.source.header_object();
    if !io.store().list_watchers(io.object(&object)).await?.is_empty() {
        return Err(ImageError::of(
            ErrorKind::HasWatchers,
            Errno::EBUSY,
            format!("image '{name}' is being prepared by another process"),
        ));
    }
    // Whoever watched may have finished between the two looks.
    let pair = match pair::find(io, name).await? {
        Found::Pair(now)
            if now.source.state() == pair.source.state() && now.target.state() == pair.target.state() =>
        {
            now
        }
        _ => return Ok(()),
    };
    tracing::info!(image = name, "taking back an interrupted prepare");
    super::abort::undo(*pair, &Progress::silent()).await
}

async fn with_source(
    source: &Image,
    target_io: &IoCtx,
    target_name: &str,
    options: &PrepareOptions,
) -> Result<()> {
    let plan = check(source, target_io, target_name, options).await?;
    // Fences a dead writer, and makes what the target will show the same before and after a power loss.
    source.acquire_lock().await?;
    source.sync_all_data().await?;
    let source_io = source.io().clone();
    let target_id = names::new_image_id(source_io.store().instance().gid);
    let spec = MigrationSpec {
        header_type: MigrationHeaderType::Source,
        pool_id: target_io.pool(),
        pool_namespace: target_io.scope().namespace.to_string(),
        image_name: target_name.to_owned(),
        image_id: target_id.clone(),
        snap_seqs: BTreeMap::new(),
        overlap_bytes: 0,
        flatten: options.flatten,
        mirroring: false,
        state: MigrationState::Preparing,
        state_description: String::new(),
        mirror_image_mode: MirrorImageMode::Journal,
        source_spec: String::new(),
    };
    let mut pair = Pair {
        source: Side {
            io: source_io,
            id: source.id().to_owned(),
            name: source.name(),
            spec: None,
        },
        target: Side {
            io: target_io.clone(),
            id: target_id,
            name: target_name.to_owned(),
            spec: None,
        },
        target_exists: false,
    };
    pair.source.set(spec.clone()).await?;
    let made = async {
        // Whoever opened the source before the mark shows now; whoever comes later is refused.
        check_no_watchers(source).await?;
        make_target(source, &mut pair, &spec, &plan).await
    }
    .await;
    if let Err(error) = made {
        let mut undone = super::abort::undo(pair, &Progress::silent()).await;
        if let Err(undo_error) = &mut undone {
            return Err(error.hint(format!(
                "taking it back failed too ({undo_error}); run 'rbd migration abort {}'",
                source.name()
            )));
        }
        return Err(error);
    }
    Ok(())
}

/// Refuses what cannot work, and says how the target is to be made.
async fn check(
    source: &Image,
    target_io: &IoCtx,
    target_name: &str,
    options: &PrepareOptions,
) -> Result<Plan> {
    let header = source.header();
    let name = source.name();
    if header.migration.is_some() {
        return Err(ImageError::of(
            ErrorKind::Migrating,
            Errno::EBUSY,
            format!("image '{name}' takes part in a migration already"),
        )
        .hint("commit or abort that one first"));
    }
    check_no_watchers(source).await?;
    crate::snapshot::remove_unneeded(source).await?;
    let header = source.header();
    check_snaps(&header, &name)?;
    let features = options.features.unwrap_or(header.features & !not_inherited());
    if features & feature::LAYERING == 0 {
        check_needs_no_layering(source, &header).await?;
    }
    let parent = kept_parent(source, target_io, options).await?;
    check_group(source, target_io).await?;
    let in_place = source.io().scope() == target_io.scope() && name == target_name;
    if !in_place {
        admin::create::check_name_free(target_io, target_name).await?;
    }
    let (unit, count) = striping(source.layout(), options);
    let order = options.order.unwrap_or(source.layout().order());
    let largest_bytes = header
        .snaps
        .values()
        .map(|snap| snap.size_bytes)
        .chain([header.size_bytes])
        .max()
        .unwrap_or(0);
    let create = CreateOptions {
        size_bytes: header.size_bytes,
        order: Some(order),
        stripe_unit_bytes: unit,
        stripe_count: count,
        data_pool: options.data_pool.clone(),
        format_1: false,
        features: Some(features),
    };
    admin::create::check_options(
        target_io,
        &CreateOptions {
            size_bytes: largest_bytes,
            ..create.clone()
        },
    )
    .await?;
    Ok(Plan { create, parent })
}

/// How the target is to be made.
struct Plan {
    create: CreateOptions,
    /// The parent that it shares with the source, and how it is linked.
    parent: Option<(ParentImageSpec, CloneFormat)>,
}

/// A target without the layering feature can have no clones.
async fn check_needs_no_layering(source: &Image, header: &Header) -> Result<()> {
    for snap in header.snaps.keys() {
        if !links::children(source.io(), source.id(), *snap).await?.is_empty() {
            return Err(ImageError::of(
                ErrorKind::HasChildren,
                Errno::EINVAL,
                format!(
                    "image '{}' has clones, and the target no layering feature",
                    source.name()
                ),
            )
            .hint("flatten the clones first, or give the target the feature"));
        }
    }
    Ok(())
}

/// The link to a parent that the target is to have. `None`: the source shows none, or it is to be cut loose.
pub(crate) async fn kept_parent(
    source: &Image,
    target_io: &IoCtx,
    options: &PrepareOptions,
) -> Result<Option<(ParentImageSpec, CloneFormat)>> {
    let header = source.header();
    let Some(link) = header.parent.as_ref().filter(|_| {
        let shown_bytes = header.largest_parent_overlap_bytes();
        shown_bytes > 0 && !options.flatten
    }) else {
        return Ok(None);
    };
    let name = source.name();
    let lacks_layering = options
        .features
        .is_some_and(|features| features & feature::LAYERING == 0);
    if lacks_layering {
        return Err(ImageError::new(
            Errno::EINVAL,
            format!("image '{name}' is a clone, and the target would have no layering feature"),
        )
        .hint("cut it loose from its parent with --flatten"));
    }
    let parent_io = target_io
        .with_pool(link.spec.pool_id)
        .with_namespace(&link.spec.pool_namespace);
    let parent = header::load(&parent_io, &link.spec.image_id, true).await?;
    let snap = parent.snaps.get(&link.spec.snap_id);
    let in_trash = |snap: &SnapRecord| matches!(snap.namespace, SnapshotNamespace::Trash { .. });
    if snap.is_none_or(in_trash) {
        return Err(ImageError::of(
            ErrorKind::ParentMissing,
            Errno::EBUSY,
            format!("the snapshot that image '{name}' is a clone of was removed; no new clone can show it"),
        )
        .hint("cut the target loose from it with --flatten"));
    }
    let is_protected = snap.is_some_and(|snap| snap.protection == ProtectionStatus::Protected);
    let is_format_1 = header.op_features & op_feature::CLONE_CHILD == 0
        && is_protected
        && *target_io.scope().namespace == *link.spec.pool_namespace;
    let format = match is_format_1 {
        true => CloneFormat::One,
        false => CloneFormat::Two,
    };
    Ok(Some((link.spec.clone(), format)))
}

/// Features that come with what an image has, not from its source.
pub(crate) fn not_inherited() -> u64 {
    feature::STRIPINGV2 | feature::DATA_POOL | feature::OPERATIONS | feature::MIGRATING
}

/// A new object size alone means default striping at that size.
fn striping(source: &Layout, options: &PrepareOptions) -> (u64, u64) {
    match (options.stripe_unit_bytes, options.stripe_count) {
        (None, None) if options.order.is_some() || !source.is_striped() => (0, 0),
        (None, None) => (source.stripe_unit_bytes(), source.stripe_count()),
        (unit, count) => (
            unit.unwrap_or(if source.is_striped() {
                source.stripe_unit_bytes()
            } else {
                0
            }),
            count.unwrap_or(if source.is_striped() {
                source.stripe_count()
            } else {
                0
            }),
        ),
    }
}

async fn check_no_watchers(source: &Image) -> Result<()> {
    let others = source.other_watchers().await?;
    let Some(first) = others.first() else {
        return Ok(());
    };
    Err(ImageError::of(
        ErrorKind::HasWatchers,
        Errno::EBUSY,
        format!("image '{}' has watchers ({first}) - not migrating", source.name()),
    )
    .hint("stop the clients of the image first"))
}

fn check_snaps(header: &Header, name: &str) -> Result<()> {
    for snap in header.snaps.values() {
        if snap.namespace != SnapshotNamespace::User {
            return Err(ImageError::new(
                Errno::EBUSY,
                format!(
                    "image '{name}' has snapshot '{}' of type {}, which a migration cannot carry over",
                    snap.name,
                    snap.namespace.type_name()
                ),
            ));
        }
    }
    Ok(())
}

/// An image's group is in its own namespace, and the target is to take the source's place in it.
async fn check_group(source: &Image, target_io: &IoCtx) -> Result<()> {
    if source.io().scope().namespace == target_io.scope().namespace {
        return Ok(());
    }
    match group::of_image(source.io(), source.id()).await? {
        None => Ok(()),
        Some(group) => Err(ImageError::of(
            ErrorKind::InGroup,
            Errno::EINVAL,
            format!(
                "image '{}' is in group {group}, and the target would be in another namespace",
                source.name()
            ),
        )
        .hint("take the image out of the group first")),
    }
}

async fn make_target(source: &Image, pair: &mut Pair, spec: &MigrationSpec, plan: &Plan) -> Result<()> {
    let header = source.header();
    let from = &pair.source;
    if from.is_format_1() {
        admin::format_1::remove(&from.io, &from.name).await?;
    } else {
        let why = TrashImageSource::Migration;
        admin::trash::move_to_trash(&from.io, &from.id, &from.name, why, 0).await?;
    }
    admin::create::create_objects(&pair.target.io, &pair.target.id, &plan.create).await?;
    pair.target_exists = true;
    let options = OpenOptions::read_write().ignoring_migration();
    let target = Image::open(&pair.target.io, ImageKey::Id(&pair.target.id), options).await?;
    let filled = fill_target(source, &target, &header, plan.parent.as_ref()).await;
    let closed = target.close().await;
    let snap_seqs = filled?;
    closed?;
    pair.target
        .set(MigrationSpec {
            header_type: MigrationHeaderType::Destination,
            pool_id: pair.source.io.pool(),
            pool_namespace: pair.source.io.scope().namespace.to_string(),
            image_name: pair.source.name.clone(),
            image_id: pair.source.id.clone(),
            snap_seqs,
            overlap_bytes: header.size_bytes,
            ..spec.clone()
        })
        .await?;
    admin::create::register_name(&pair.target.io, &pair.target.name, &pair.target.id).await?;
    group::move_membership(&pair.source.io, &pair.source.id, &pair.target.io, &pair.target.id).await?;
    pair.source.set_state(MigrationState::Prepared, "").await?;
    pair.target.set_state(MigrationState::Prepared, "").await?;
    super::relink::to_target(pair).await
}

/// Link to a parent, snapshots, metadata and limit; the map from the source's snapshot ids to the target's.
async fn fill_target(
    source: &Image,
    target: &Image,
    header: &Header,
    parent: Option<&(ParentImageSpec, CloneFormat)>,
) -> Result<BTreeMap<SnapId, SnapId>> {
    let snap_seqs = make_history(target, header, parent).await?;
    let object = &target.inner.header_object;
    let metadata = client::metadata_list_all(source.io(), &source.inner.header_object).await?;
    if !metadata.is_empty() {
        ferry_cls::exec_write(target.io(), object, client::metadata_set(&metadata)).await?;
    }
    let limit = crate::snapshot::get_limit(source).await?;
    if limit != u64::MAX {
        crate::snapshot::set_limit(target, limit).await?;
    }
    Ok(snap_seqs)
}

/// Gives an empty image the link to a parent, the snapshots and the size that a header says; the map from that header's
/// snapshot ids to its own.
pub(crate) async fn make_history(
    target: &Image,
    header: &Header,
    parent: Option<&(ParentImageSpec, CloneFormat)>,
) -> Result<BTreeMap<SnapId, SnapId>> {
    target.acquire_lock().await?;
    let io = target.io();
    let object = &target.inner.header_object;
    let mut snap_seqs = BTreeMap::new();
    for snap in header.snaps.values() {
        set_size(target, snap.size_bytes).await?;
        show_parent(target, header, snap.id, parent).await?;
        let id = target
            .data_io()
            .store()
            .snap_id_create(target.data_io().pool())
            .await?;
        let add = client::snapshot_add(&snap.name, id, &SnapshotNamespace::User);
        ferry_cls::exec_write(io, object, add).await?;
        if target.header().has(feature::OBJECT_MAP) {
            let objects = target.layout().object_count(snap.size_bytes);
            let map = names::object_map_object(target.id(), id);
            let resize = client::object_map_resize(objects, ObjectState::Nonexistent);
            ferry_cls::exec_write(io, &map, resize).await?;
        }
        if snap.protection == ProtectionStatus::Protected && target.header().has(feature::LAYERING) {
            let protect = client::set_protection_status(id, ProtectionStatus::Protected);
            ferry_cls::exec_write(io, object, protect).await?;
        }
        snap_seqs.insert(snap.id, id);
    }
    set_size(target, header.size_bytes).await?;
    show_parent(target, header, SnapId::HEAD, parent).await?;
    Ok(snap_seqs)
}

/// Sets the size of a target that has no data yet.
async fn set_size(target: &Image, size_bytes: u64) -> Result<()> {
    target.refresh().await?;
    let objects = target.layout().object_count(size_bytes);
    if size_bytes >= target.header().size_bytes {
        crate::object_map::head::resize(target, objects).await?;
    }
    let call = client::set_size(size_bytes);
    ferry_cls::exec_write(target.io(), &target.inner.header_object, call).await?;
    crate::object_map::head::resize(target, objects).await?;
    target.refresh().await
}

/// Makes the target's head show as much of the parent as the source does at `snap`, or in its head. From version to version
/// it becomes less.
async fn show_parent(
    target: &Image,
    header: &Header,
    snap: SnapId,
    parent: Option<&(ParentImageSpec, CloneFormat)>,
) -> Result<()> {
    let Some((spec, format)) = parent else {
        return Ok(());
    };
    let wanted_bytes = header.parent_overlap_bytes(snap);
    let io = target.io();
    let object = &target.inner.header_object;
    let now = target.header();
    if now.parent.is_none() && wanted_bytes > 0 {
        let child = Child {
            io: io.clone(),
            id: target.id().to_owned(),
            format: *format,
        };
        links::name_parent(&child, spec, wanted_bytes, false).await?;
        links::put_on_list(spec, &child).await?;
        return target.refresh().await;
    }
    if now.parent_overlap_bytes(SnapId::HEAD) <= wanted_bytes {
        return Ok(());
    }
    if wanted_bytes == 0 && !now.has(feature::DEEP_FLATTEN) {
        // As flattening leaves it; the snapshots go on showing the parent.
        ferry_cls::exec_write(io, object, client::parent_detach()).await?;
    } else {
        let op = WriteOp::new()
            .class_call(&client::set_size(wanted_bytes))
            .class_call(&client::set_size(now.size_bytes));
        io.write_meta(object, op).await?;
    }
    target.refresh().await
}
