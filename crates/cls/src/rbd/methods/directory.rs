//! Image ids, directories and namespaces (fact sheet sections 3.5 and 3.10).
//!
//! A directory keeps each entry twice, by name and by id; the two keys change together.

use std::collections::BTreeMap;

use bytes::Bytes;
use ferry_store::Errno;
use ferry_store::class::{CallContext, ObjectHandle};

use crate::encoding::Encode;
use crate::object::{
    Outcome, answer, done, has_key, list_keys, parse, parse_one, read_key, read_whole, remove_key,
    require_key, require_object, stored, write_key, write_raw,
};
use crate::rbd::names::is_valid_id;
use crate::rbd::types::DirectoryState;

const NAME_PREFIX: &str = "name_";
const ID_PREFIX: &str = "id_";
const STATE: &str = "state";

fn name_key(name: &str) -> String {
    format!("{NAME_PREFIX}{name}")
}

fn id_key(id: &str) -> String {
    format!("{ID_PREFIX}{id}")
}

pub(super) fn get_id(_: &CallContext, object: &mut dyn ObjectHandle, _: &[u8]) -> Outcome {
    let content = read_whole(object)?;
    if content.is_empty() {
        return Err(Errno::ENOENT);
    }
    answer(stored::<String>("image id", &content)?)
}

pub(super) fn set_id(_: &CallContext, object: &mut dyn ObjectHandle, input: &[u8]) -> Outcome {
    let id: String = parse_one(input, "image id")?;
    if !is_valid_id(&id) {
        return Err(Errno::EINVAL);
    }
    require_object(object)?;
    if object.size_bytes() != 0 {
        return Err(Errno::EEXIST);
    }
    object.write(0, id.to_bytes())?;
    done()
}

pub(super) fn dir_get_id(_: &CallContext, object: &mut dyn ObjectHandle, input: &[u8]) -> Outcome {
    let name: String = parse_one(input, "name")?;
    answer(require_key::<String>(object, &name_key(&name))?)
}

pub(super) fn dir_get_name(_: &CallContext, object: &mut dyn ObjectHandle, input: &[u8]) -> Outcome {
    let id: String = parse_one(input, "id")?;
    answer(require_key::<String>(object, &id_key(&id))?)
}

/// Also `group_dir_list`.
pub(super) fn dir_list(_: &CallContext, object: &mut dyn ObjectHandle, input: &[u8]) -> Outcome {
    let (start_after, max): (String, u64) = parse(input, |decoder| {
        Ok((decoder.get("start after")?, decoder.get("max")?))
    })?;
    let found = list_keys(object, NAME_PREFIX, &start_after, max, stored::<String>)?;
    answer(found.into_iter().collect::<BTreeMap<_, _>>())
}

fn parse_entry(input: &[u8]) -> Result<(String, String), Errno> {
    parse(input, |decoder| Ok((decoder.get("name")?, decoder.get("id")?)))
}

/// Also `group_dir_add`.
pub(super) fn dir_add_image(_: &CallContext, object: &mut dyn ObjectHandle, input: &[u8]) -> Outcome {
    let (name, id) = parse_entry(input)?;
    if name.is_empty() || !is_valid_id(&id) {
        return Err(Errno::EINVAL);
    }
    if has_key(object, &name_key(&name))? {
        return Err(Errno::EEXIST);
    }
    if has_key(object, &id_key(&id))? {
        return Err(Errno::EBADF);
    }
    write_key(object, &name_key(&name), &id)?;
    write_key(object, &id_key(&id), &name)?;
    done()
}

/// `ENOENT` unless both keys are there, `ESTALE` unless they name each other.
fn check_entry(object: &dyn ObjectHandle, name: &str, id: &str) -> Result<(), Errno> {
    let stored_id: String = require_key(object, &name_key(name))?;
    let stored_name: String = require_key(object, &id_key(id))?;
    if stored_id == id && stored_name == name {
        Ok(())
    } else {
        Err(Errno::ESTALE)
    }
}

/// Also `group_dir_remove`.
pub(super) fn dir_remove_image(_: &CallContext, object: &mut dyn ObjectHandle, input: &[u8]) -> Outcome {
    let (name, id) = parse_entry(input)?;
    check_entry(object, &name, &id)?;
    remove_key(object, &name_key(&name))?;
    remove_key(object, &id_key(&id))?;
    done()
}

/// Also `group_dir_rename`.
pub(super) fn dir_rename_image(_: &CallContext, object: &mut dyn ObjectHandle, input: &[u8]) -> Outcome {
    let (old_name, new_name, id) = parse(input, |decoder| {
        let old_name: String = decoder.get("old name")?;
        let new_name: String = decoder.get("new name")?;
        let id: String = decoder.get("id")?;
        Ok((old_name, new_name, id))
    })?;
    if new_name.is_empty() || !is_valid_id(&id) {
        return Err(Errno::EINVAL);
    }
    check_entry(object, &old_name, &id)?;
    if has_key(object, &name_key(&new_name))? {
        return Err(Errno::EEXIST);
    }
    remove_key(object, &name_key(&old_name))?;
    write_key(object, &name_key(&new_name), &id)?;
    write_key(object, &id_key(&id), &new_name)?;
    done()
}

pub(super) fn dir_state_assert(_: &CallContext, object: &mut dyn ObjectHandle, input: &[u8]) -> Outcome {
    let wanted: DirectoryState = parse_one(input, "directory state")?;
    if read_key(object, STATE)? == Some(wanted) {
        done()
    } else {
        Err(Errno::ENOENT)
    }
}

pub(super) fn dir_state_set(_: &CallContext, object: &mut dyn ObjectHandle, input: &[u8]) -> Outcome {
    let state: DirectoryState = parse_one(input, "directory state")?;
    if state == DirectoryState::AddDisabled
        && !list_keys(object, NAME_PREFIX, "", 1, |_, _| Ok(()))?.is_empty()
    {
        return Err(Errno::EBUSY);
    }
    write_key(object, STATE, state)?;
    done()
}

pub(super) fn namespace_add(_: &CallContext, object: &mut dyn ObjectHandle, input: &[u8]) -> Outcome {
    let name: String = parse_one(input, "namespace")?;
    if has_key(object, &name_key(&name))? {
        return Err(Errno::EEXIST);
    }
    write_raw(object, &name_key(&name), Bytes::new())?;
    done()
}

pub(super) fn namespace_remove(_: &CallContext, object: &mut dyn ObjectHandle, input: &[u8]) -> Outcome {
    let name: String = parse_one(input, "namespace")?;
    if !has_key(object, &name_key(&name))? {
        return Err(Errno::ENOENT);
    }
    remove_key(object, &name_key(&name))?;
    done()
}

pub(super) fn namespace_list(_: &CallContext, object: &mut dyn ObjectHandle, input: &[u8]) -> Outcome {
    let (start_after, max): (String, u64) = parse(input, |decoder| {
        Ok((decoder.get("start after")?, decoder.get("max")?))
    })?;
    let found = list_keys(object, NAME_PREFIX, &start_after, max, |_, _| Ok(()))?;
    let names: Vec<String> = found.into_iter().map(|(name, ())| name).collect();
    answer(names)
}
