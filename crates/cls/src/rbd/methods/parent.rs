//! Parents and children (fact sheet section 3.3): the link on a clone's header, clone-v2 children on the parent's
//! header, and the clone-v1 registry.

use std::collections::BTreeSet;

use bytes::Bytes;
use ferry_store::class::{CallContext, ObjectHandle};
use ferry_store::{Errno, PoolId, SnapId};

use super::header_records::{
    FEATURES, PARENT, SIZE, all_snapshots, read_parent, read_snapshot, require_feature, set_op_features,
    write_snapshot,
};
use crate::encoding::{Decoder, Encode, Encoder};
use crate::object::{
    Outcome, answer, done, parse, parse_one, read_key, read_raw, remove_key, require_key, require_object,
    stored, write_key,
};
use crate::rbd::features::{feature, op_feature};
use crate::rbd::types::{
    ChildImageSpec, LegacyParent, ParentImageSpec, SnapshotNamespace, StoredParent, StoredSnapshot,
};

/// The link, from the `parent` key or, in headers last written before Nautilus, from a snapshot.
fn find_parent(object: &dyn ObjectHandle) -> Result<Option<ParentImageSpec>, Errno> {
    if let Some(parent) = read_parent(object)? {
        return Ok(Some(parent.spec));
    }
    let legacy = all_snapshots(object)?
        .into_iter()
        .find_map(|snap| snap.legacy_parent);
    Ok(legacy.map(|parent| parent.spec))
}

fn has_layering(object: &dyn ObjectHandle) -> Result<bool, Errno> {
    let features: u64 = require_key(object, FEATURES)?;
    Ok(features & feature::LAYERING != 0)
}

fn overlap_of(object: &dyn ObjectHandle, snap: SnapId) -> Result<Option<u64>, Errno> {
    if snap.is_head() {
        Ok(read_parent(object)?.and_then(|parent| parent.head_overlap_bytes))
    } else {
        Ok(read_snapshot(object, snap)?.effective_parent_overlap_bytes())
    }
}

pub(super) fn parent_get(_: &CallContext, object: &mut dyn ObjectHandle, _: &[u8]) -> Outcome {
    let spec = if has_layering(object)? {
        find_parent(object)?
    } else {
        None
    };
    answer(spec.unwrap_or_else(ParentImageSpec::none))
}

pub(super) fn parent_overlap_get(_: &CallContext, object: &mut dyn ObjectHandle, input: &[u8]) -> Outcome {
    let snap: SnapId = parse_one(input, "snapshot id")?;
    answer(overlap_of(object, snap)?)
}

pub(super) fn parent_attach(_: &CallContext, object: &mut dyn ObjectHandle, input: &[u8]) -> Outcome {
    let (spec, overlap, reattach) = parse(input, |decoder| {
        let spec: ParentImageSpec = decoder.get("parent spec")?;
        let overlap: u64 = decoder.get("parent overlap")?;
        let reattach: Option<bool> = decoder.get_trailing("reattach")?;
        Ok((spec, overlap, reattach.unwrap_or(false)))
    })?;
    attach(object, spec, overlap, reattach)
}

fn attach(object: &mut dyn ObjectHandle, spec: ParentImageSpec, overlap: u64, reattach: bool) -> Outcome {
    require_object(object)?;
    require_feature(object, feature::LAYERING)?;
    if !spec.exists() || overlap == 0 {
        return Err(Errno::EINVAL);
    }
    if !reattach && let Some(present) = read_parent(object)? {
        let head_attached = present.head_overlap_bytes.is_some();
        if head_attached || present.spec != spec {
            return Err(Errno::EEXIST);
        }
    }
    let size: u64 = require_key(object, SIZE)?;
    let parent = StoredParent {
        spec,
        head_overlap_bytes: Some(overlap.min(size)),
    };
    write_key(object, PARENT, &parent)?;
    done()
}

pub(super) fn parent_detach(_: &CallContext, object: &mut dyn ObjectHandle, _: &[u8]) -> Outcome {
    detach(object, false)
}

fn detach(object: &mut dyn ObjectHandle, legacy_request: bool) -> Outcome {
    require_object(object)?;
    require_feature(object, feature::LAYERING)?;
    let features: u64 = require_key(object, FEATURES)?;
    let parent = read_parent(object)?.ok_or(Errno::ENOENT)?;
    if legacy_request && !parent.spec.pool_namespace.is_empty() {
        return Err(Errno::EXDEV);
    }
    if parent.head_overlap_bytes.is_none() {
        return Err(Errno::ENOENT);
    }
    let mut snaps = all_snapshots(object)?;
    snaps.retain(StoredSnapshot::has_parent);
    if !snaps.is_empty() && features & feature::DEEP_FLATTEN == 0 {
        let spec_only = StoredParent {
            head_overlap_bytes: None,
            ..parent
        };
        write_key(object, PARENT, &spec_only)?;
        return done();
    }
    for mut snap in snaps {
        snap.parent_overlap_bytes = None;
        snap.legacy_parent = None;
        write_snapshot(object, snap)?;
    }
    remove_key(object, PARENT)?;
    set_op_features(object, 0, op_feature::CLONE_CHILD)?;
    done()
}

pub(super) fn get_parent(_: &CallContext, object: &mut dyn ObjectHandle, input: &[u8]) -> Outcome {
    let snap: SnapId = parse_one(input, "snapshot id")?;
    let mut found = None;
    if has_layering(object)? {
        let overlap = overlap_of(object, snap)?;
        found = find_parent(object)?.zip(overlap);
    }
    let none = (ParentImageSpec::none(), 0);
    let (spec, overlap_bytes) = found.unwrap_or(none);
    if !spec.pool_namespace.is_empty() {
        return Err(Errno::EXDEV);
    }
    answer(LegacyParent {
        pool_id: spec.pool_id,
        image_id: spec.image_id,
        snap_id: spec.snap_id,
        overlap_bytes,
    })
}

pub(super) fn set_parent(_: &CallContext, object: &mut dyn ObjectHandle, input: &[u8]) -> Outcome {
    let parent: LegacyParent = parse_one(input, "parent")?;
    attach(object, parent.spec(), parent.overlap_bytes, false)
}

pub(super) fn remove_parent(_: &CallContext, object: &mut dyn ObjectHandle, _: &[u8]) -> Outcome {
    detach(object, true)
}

fn children_key(snap: SnapId) -> String {
    format!("snap_children_{:016x}", snap.0)
}

fn parse_child(input: &[u8]) -> Result<(SnapId, ChildImageSpec), Errno> {
    parse(input, |decoder| {
        Ok((decoder.get("snapshot id")?, decoder.get("child spec")?))
    })
}

pub(super) fn child_attach(_: &CallContext, object: &mut dyn ObjectHandle, input: &[u8]) -> Outcome {
    let (id, child) = parse_child(input)?;
    let mut snap = read_snapshot(object, id)?;
    if matches!(snap.namespace, SnapshotNamespace::Trash { .. }) {
        return Err(Errno::ENOENT);
    }
    let key = children_key(id);
    let mut children: BTreeSet<ChildImageSpec> = read_key(object, &key)?.unwrap_or_default();
    if !children.insert(child) {
        return Err(Errno::EEXIST);
    }
    write_key(object, &key, &children)?;
    snap.child_count = snap.child_count.checked_add(1).ok_or(Errno::EIO)?;
    write_snapshot(object, snap)?;
    set_op_features(object, op_feature::CLONE_PARENT, op_feature::CLONE_PARENT)?;
    done()
}

pub(super) fn child_detach(_: &CallContext, object: &mut dyn ObjectHandle, input: &[u8]) -> Outcome {
    let (id, child) = parse_child(input)?;
    let mut snap = read_snapshot(object, id)?;
    let key = children_key(id);
    let mut children: BTreeSet<ChildImageSpec> = require_key(object, &key)?;
    if u64::from(snap.child_count) != children.len() as u64 {
        return Err(Errno::EINVAL);
    }
    if !children.remove(&child) {
        return Err(Errno::ENOENT);
    }
    if children.is_empty() {
        remove_key(object, &key)?;
    } else {
        write_key(object, &key, &children)?;
    }
    snap.child_count -= 1; // not 0: a child was removed from a set of that size
    let parent_no_more = snap.child_count == 0
        && all_snapshots(object)?
            .iter()
            .all(|other| other.id == id || other.child_count == 0);
    write_snapshot(object, snap)?;
    if parent_no_more {
        set_op_features(object, 0, op_feature::CLONE_PARENT)?;
    }
    done()
}

pub(super) fn children_list(_: &CallContext, object: &mut dyn ObjectHandle, input: &[u8]) -> Outcome {
    let id: SnapId = parse_one(input, "snapshot id")?;
    answer(require_key::<BTreeSet<ChildImageSpec>>(
        object,
        &children_key(id),
    )?)
}

/// The registry's binary key: parent's pool, image id and snapshot.
fn registry_key(decoder: &mut Decoder<'_>) -> Result<Bytes, crate::encoding::DecodeError> {
    let pool: PoolId = decoder.get("parent pool")?;
    let image: String = decoder.get("parent image id")?;
    let snap: SnapId = decoder.get("parent snapshot id")?;
    let mut key = Encoder::new();
    key.put(pool).put(image).put(snap);
    Ok(key.finish())
}

fn registered(object: &dyn ObjectHandle, key: &[u8]) -> Result<Option<BTreeSet<String>>, Errno> {
    match read_raw(object, key)? {
        Some(value) => stored("clone registry", &value).map(Some),
        None => Ok(None),
    }
}

pub(super) fn add_child(_: &CallContext, object: &mut dyn ObjectHandle, input: &[u8]) -> Outcome {
    let (key, child): (Bytes, String) = parse(input, |decoder| {
        Ok((registry_key(decoder)?, decoder.get("child id")?))
    })?;
    let mut children = registered(object, &key)?.unwrap_or_default();
    if !children.insert(child) {
        return Err(Errno::EEXIST);
    }
    object.omap_set(key, children.to_bytes())?;
    done()
}

pub(super) fn remove_child(_: &CallContext, object: &mut dyn ObjectHandle, input: &[u8]) -> Outcome {
    let (key, child): (Bytes, String) = parse(input, |decoder| {
        Ok((registry_key(decoder)?, decoder.get("child id")?))
    })?;
    let mut children = registered(object, &key)?.ok_or(Errno::ENOENT)?;
    if !children.remove(&child) {
        return Err(Errno::ENOENT);
    }
    if children.is_empty() {
        object.omap_remove(key)?;
    } else {
        object.omap_set(key, children.to_bytes())?;
    }
    done()
}

pub(super) fn get_children(_: &CallContext, object: &mut dyn ObjectHandle, input: &[u8]) -> Outcome {
    let key = parse(input, registry_key)?;
    answer(registered(object, &key)?.ok_or(Errno::ENOENT)?)
}
