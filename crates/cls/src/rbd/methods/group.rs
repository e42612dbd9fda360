//! Groups (fact sheet section 3.12): the link on the image's header, the links and the snapshots on the group's header, and
//! the group directory, which works as the image directory does.

use ferry_store::Errno;
use ferry_store::class::{CallContext, ObjectHandle};

use super::header_records::set_op_features;
use crate::object::{
    Outcome, answer, done, has_key, list_keys, parse, parse_one, read_key, remove_key, require_key,
    require_object, stored, write_key,
};
use crate::rbd::features::op_feature;
use crate::rbd::names;
use crate::rbd::types::{
    GroupImageSpec, GroupImageStatus, GroupLinkState, GroupSnapshot, GroupSnapshotState, GroupSpec,
};

pub(super) use super::directory::{
    dir_add_image as group_dir_add, dir_list as group_dir_list, dir_remove_image as group_dir_remove,
    dir_rename_image as group_dir_rename,
};

const GROUP_REF: &str = "rbd_group_ref";
const IMAGE_PREFIX: &str = "image_";

pub(super) fn image_group_get(_: &CallContext, object: &mut dyn ObjectHandle, _: &[u8]) -> Outcome {
    answer(read_key::<GroupSpec>(object, GROUP_REF)?.unwrap_or_else(GroupSpec::none))
}

pub(super) fn image_group_add(_: &CallContext, object: &mut dyn ObjectHandle, input: &[u8]) -> Outcome {
    let group: GroupSpec = parse_one(input, "group spec")?;
    match read_key::<GroupSpec>(object, GROUP_REF)? {
        Some(present) if present == group => return done(),
        Some(_) => return Err(Errno::EEXIST),
        None => {}
    }
    set_op_features(object, op_feature::GROUP, op_feature::GROUP)?;
    write_key(object, GROUP_REF, &group)?;
    done()
}

pub(super) fn image_group_remove(_: &CallContext, object: &mut dyn ObjectHandle, input: &[u8]) -> Outcome {
    let group: GroupSpec = parse_one(input, "group spec")?;
    let present: GroupSpec = require_key(object, GROUP_REF)?;
    if present != group {
        return Err(Errno::EBADF);
    }
    remove_key(object, GROUP_REF)?;
    set_op_features(object, 0, op_feature::GROUP)?;
    done()
}

/// Pool and id, as the key after its prefix.
fn image_name(image: &GroupImageSpec) -> String {
    format!("{:016x}_{}", image.pool_id.0, image.image_id)
}

pub(super) fn group_image_set(_: &CallContext, object: &mut dyn ObjectHandle, input: &[u8]) -> Outcome {
    let status: GroupImageStatus = parse_one(input, "group image status")?;
    let key = format!("{IMAGE_PREFIX}{}", image_name(&status.spec));
    write_key(object, &key, status.state)?;
    done()
}

pub(super) fn group_image_remove(_: &CallContext, object: &mut dyn ObjectHandle, input: &[u8]) -> Outcome {
    let image: GroupImageSpec = parse_one(input, "group image spec")?;
    require_object(object)?;
    remove_key(object, &format!("{IMAGE_PREFIX}{}", image_name(&image)))?;
    done()
}

pub(super) fn group_image_list(_: &CallContext, object: &mut dyn ObjectHandle, input: &[u8]) -> Outcome {
    let (start_after, max): (GroupImageSpec, u64) = parse(input, |decoder| {
        Ok((decoder.get("start after")?, decoder.get("max")?))
    })?;
    let start_after = image_name(&start_after);
    let found = list_keys(object, IMAGE_PREFIX, &start_after, max, |key, value| {
        let state: GroupLinkState = stored(key, value)?;
        let spec = key
            .strip_prefix(IMAGE_PREFIX)
            .and_then(parse_image_name)
            .ok_or(Errno::EIO)?;
        Ok(GroupImageStatus { spec, state })
    })?;
    let statuses: Vec<GroupImageStatus> = found.into_iter().map(|(_, status)| status).collect();
    answer(statuses)
}

fn parse_image_name(name: &str) -> Option<GroupImageSpec> {
    let (pool, image_id) = name.split_once('_')?;
    let pool = u64::from_str_radix(pool, 16).ok()?;
    Some(GroupImageSpec {
        image_id: image_id.to_owned(),
        pool_id: ferry_store::PoolId(pool as i64), // written as the two's complement of the signed id
    })
}

fn list_snapshots(
    object: &dyn ObjectHandle,
    start_after: &str,
    max: u64,
) -> Result<Vec<GroupSnapshot>, Errno> {
    let found = list_keys(
        object,
        names::GROUP_SNAPSHOT_PREFIX,
        start_after,
        max,
        stored::<GroupSnapshot>,
    )?;
    Ok(found.into_iter().map(|(_, snapshot)| snapshot).collect())
}

pub(super) fn group_snap_set(_: &CallContext, object: &mut dyn ObjectHandle, input: &[u8]) -> Outcome {
    let snapshot: GroupSnapshot = parse_one(input, "group snapshot")?;
    if snapshot.name.is_empty() || snapshot.id.is_empty() {
        return Err(Errno::EINVAL);
    }
    let takes_the_name = |other: &GroupSnapshot| other.name == snapshot.name && other.id != snapshot.id;
    if list_snapshots(object, "", u64::MAX)?.iter().any(takes_the_name) {
        return Err(Errno::EEXIST);
    }
    let key = names::group_snapshot_key(&snapshot.id);
    // An incomplete one is a new one.
    if snapshot.state == GroupSnapshotState::Incomplete && has_key(object, &key)? {
        return Err(Errno::EEXIST);
    }
    write_key(object, &key, &snapshot)?;
    done()
}

pub(super) fn group_snap_remove(_: &CallContext, object: &mut dyn ObjectHandle, input: &[u8]) -> Outcome {
    let id: String = parse_one(input, "group snapshot id")?;
    require_object(object)?;
    remove_key(object, &names::group_snapshot_key(&id))?;
    done()
}

pub(super) fn group_snap_get_by_id(_: &CallContext, object: &mut dyn ObjectHandle, input: &[u8]) -> Outcome {
    let id: String = parse_one(input, "group snapshot id")?;
    answer(require_key::<GroupSnapshot>(
        object,
        &names::group_snapshot_key(&id),
    )?)
}

pub(super) fn group_snap_list(_: &CallContext, object: &mut dyn ObjectHandle, input: &[u8]) -> Outcome {
    let (start_after, max): (GroupSnapshot, u64) = parse(input, |decoder| {
        Ok((decoder.get("start after")?, decoder.get("max")?))
    })?;
    answer(list_snapshots(object, &start_after.id, max)?)
}
