//! The trash (fact sheet section 3.9).

use std::collections::BTreeMap;

use ferry_store::Errno;
use ferry_store::class::{CallContext, ObjectHandle};

use crate::object::{
    Outcome, answer, done, has_key, list_keys, parse, parse_one, remove_key, require_key, stored, write_key,
};
use crate::rbd::types::{TrashImageSpec, TrashImageState};

const PREFIX: &str = "id_";

fn key_of(id: &str) -> String {
    format!("{PREFIX}{id}")
}

pub(super) fn trash_add(_: &CallContext, object: &mut dyn ObjectHandle, input: &[u8]) -> Outcome {
    let (id, spec): (String, TrashImageSpec) = parse(input, |decoder| {
        Ok((decoder.get("image id")?, decoder.get("trash entry")?))
    })?;
    if has_key(object, &key_of(&id))? {
        return Err(Errno::EEXIST);
    }
    write_key(object, &key_of(&id), &spec)?;
    done()
}

pub(super) fn trash_remove(_: &CallContext, object: &mut dyn ObjectHandle, input: &[u8]) -> Outcome {
    let id: String = parse_one(input, "image id")?;
    if !has_key(object, &key_of(&id))? {
        return Err(Errno::ENOENT);
    }
    remove_key(object, &key_of(&id))?;
    done()
}

pub(super) fn trash_list(_: &CallContext, object: &mut dyn ObjectHandle, input: &[u8]) -> Outcome {
    let (start_after, max): (String, u64) = parse(input, |decoder| {
        Ok((decoder.get("start after")?, decoder.get("max")?))
    })?;
    let found = list_keys(object, PREFIX, &start_after, max, stored::<TrashImageSpec>)?;
    answer(found.into_iter().collect::<BTreeMap<_, _>>())
}

pub(super) fn trash_get(_: &CallContext, object: &mut dyn ObjectHandle, input: &[u8]) -> Outcome {
    let id: String = parse_one(input, "image id")?;
    answer(require_key::<TrashImageSpec>(object, &key_of(&id))?)
}

pub(super) fn trash_state_set(_: &CallContext, object: &mut dyn ObjectHandle, input: &[u8]) -> Outcome {
    let (id, new, expected) = parse(input, |decoder| {
        let id: String = decoder.get("image id")?;
        let new: TrashImageState = decoder.get("new trash state")?;
        let expected: TrashImageState = decoder.get("expected trash state")?;
        Ok((id, new, expected))
    })?;
    let mut spec: TrashImageSpec = require_key(object, &key_of(&id))?;
    if spec.state == expected {
        spec.state = new;
        write_key(object, &key_of(&id), &spec)?;
    } else if spec.state != new {
        return Err(Errno::ESTALE);
    }
    done()
}
