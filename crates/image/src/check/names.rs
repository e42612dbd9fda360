//! Whether what names images agrees: the directory both ways, `rbd_id.*`, the trash, and the headers that they lead to.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use ferry_cls::encoding::Decode as _;
use ferry_cls::rbd::{TrashImageSource, TrashImageSpec, TrashImageState, client};
use ferry_store::check::Gravity;
use ferry_store::{IoCtx, ReadOp, ReadResult, ReadStep, SnapId};

use super::found::judged;
use super::mend::Mend;
use super::{Look, NAMES_PER_PAGE, migrations};
use crate::admin::{directory, trash};
use crate::error::{Result, optional};
use crate::header::HeaderKey;
use crate::names;

/// Keys of the directory, by name and by id.
pub(super) const BY_NAME: &str = "name_";
pub(super) const BY_ID: &str = "id_";
const ID_PREFIX: &str = "rbd_id.";
const HEADER_PREFIX: &str = "rbd_header.";
/// Keys of the directory that are read at a time.
const KEYS_PER_READ: usize = 1024;

/// Names of objects that start with `prefix`, ascending.
pub(super) async fn each_name(io: &IoCtx, prefix: &str, mut each: impl FnMut(&str)) -> Result<()> {
    let mut last = String::new();
    loop {
        let page = io
            .store()
            .list_objects(io.scope(), prefix, &last, NAMES_PER_PAGE)
            .await?;
        page.iter().for_each(|name| each(name));
        match page.last() {
            Some(name) if page.len() >= NAMES_PER_PAGE => last.clone_from(name),
            _ => return Ok(()),
        }
    }
}

/// The entries of the directory under one kind of key; what cannot be read of them is a finding.
async fn entries(look: &mut Look, prefix: &'static str) -> Result<BTreeMap<String, String>> {
    let mut out = BTreeMap::new();
    let mut start_after = Bytes::new();
    loop {
        let op = ReadOp::new().step(ReadStep::OmapGetVals {
            start_after: start_after.clone(),
            prefix: Bytes::from_static(prefix.as_bytes()),
            max: KEYS_PER_READ,
        });
        let reply = match judged(optional(look.io.read(names::DIRECTORY, SnapId::HEAD, op).await))? {
            Ok(reply) => reply,
            Err(what) => {
                let advice = "what it listed was not looked at";
                look.found.damage("directory", look.here(), what, advice);
                return Ok(out);
            }
        };
        let result = reply.and_then(|reply| reply.results.into_iter().next());
        let Some(ReadResult::Omap { values, more }) = result else {
            return Ok(out);
        };
        let last = values.keys().next_back().cloned();
        for (key, value) in values {
            let key_text = std::str::from_utf8(&key)
                .ok()
                .and_then(|key| key.strip_prefix(prefix));
            match (key_text, String::from_slice(&value)) {
                (Some(key), Ok(value)) => {
                    out.insert(key.to_owned(), value);
                }
                _ => {
                    let what = format!("entry '{}' of the directory makes no sense", key.escape_ascii());
                    let advice =
                        "the image that it was for cannot be listed; restore the directory from a backup";
                    look.found.damage("directory-entry", look.here(), what, advice);
                }
            }
        }
        match last {
            Some(last) if more && last > start_after => start_after = last,
            _ => return Ok(out),
        }
    }
}

/// Looks at all names of the namespace. Gives the images that have headers: id to name.
pub(super) async fn look(look: &mut Look) -> Result<BTreeMap<String, String>> {
    let by_name = entries(look, BY_NAME).await?;
    let by_id = entries(look, BY_ID).await?;
    let mut id_objects = Vec::new();
    each_name(&look.io, ID_PREFIX, |name| {
        id_objects.push(name[ID_PREFIX.len()..].to_owned())
    })
    .await?;
    let mut headers = BTreeSet::new();
    each_name(&look.io, HEADER_PREFIX, |name| {
        headers.insert(name[HEADER_PREFIX.len()..].to_owned());
    })
    .await?;
    for (name, id) in &by_name {
        look_at_name(look, name, id).await?;
    }
    for (id, name) in &by_id {
        if !by_name.contains_key(name) {
            look_at_reverse(look, name, id).await?;
        }
    }
    for name in &id_objects {
        if !by_name.contains_key(name) {
            look_at_unlisted(look, name).await?;
        }
    }
    let trashed = look_at_trash(look).await?;
    let mut images = BTreeMap::new();
    for id in headers {
        // Listed by the prefix, so a clone without a head is among them.
        if !look.io.exists(&names::header_object(&id)).await? {
            continue;
        }
        if trashed.get(&id).is_some_and(is_removal) {
            // Told of with the trash; what is left of it need not fit together.
            continue;
        }
        let named = by_id
            .get(&id)
            .or_else(|| by_name.iter().find(|(_, of)| **of == id).map(|(name, _)| name));
        let name = match (named, trashed.get(&id)) {
            (Some(name), _) => name.clone(),
            (None, Some(entry)) => entry.name.clone(),
            (None, None) => {
                if let Some((whose, advice)) = migrations::target_of_a_source(look, &id).await? {
                    // What there is of it need not fit together.
                    let what = format!("image {id}, which has no name, is {whose}");
                    look.found
                        .leftover("migration-half-prepared", look.image(&id), what, advice);
                    continue;
                }
                look_at_nameless(look, &id, &id_objects).await?;
                id.clone()
            }
        };
        images.insert(id, name);
    }
    Ok(images)
}

/// A name that the directory has.
pub(super) async fn look_at_name(look: &mut Look, name: &str, id: &str) -> Result<()> {
    let place = look.image(name);
    if !look.io.exists(&names::header_object(id)).await? {
        let entry = trash::find(&look.io, id).await?;
        if entry.is_none() {
            let unlist = Mend::Unlist {
                name: name.to_owned(),
                id: id.to_owned(),
            };
            without_header(look, id, place, "the directory lists it", unlist).await?;
        }
        return Ok(());
    }
    match judged(directory::listed_name(&look.io, id).await)? {
        Ok(Some(other)) if other != name => {
            let what = format!("the directory lists it as image {id}, and that one as '{other}'");
            let advice = format!(
                "'rbd rm' of neither is safe; look which of them opens what, and restore the directory from a backup ({id})"
            );
            look.found.damage("directory-two-names", place, what, advice);
            return Ok(());
        }
        Ok(Some(_)) => {}
        Ok(None) => {
            let what = format!("the directory lists it as image {id}, and that id not at all");
            let mend = Mend::ListId {
                name: name.to_owned(),
                id: id.to_owned(),
            };
            look.found
                .mendable(Gravity::Damage, "directory-one-way", place.clone(), what, mend);
        }
        // Told with the entries.
        Err(_) => {}
    }
    let object = names::id_object(name);
    match judged(directory::id_of_name(&look.io, name).await)? {
        Ok(Some(found)) if found == id => {}
        // Between the two steps of a move to the trash or out of it, which are told of there.
        Ok(None) if trash::find(&look.io, id).await?.is_some() => {}
        Ok(None) => {
            if let Some((whose, advice)) = migrations::unfinished_target(look, id).await? {
                let what = format!("'{object}', which leads to image {id}, is not there: it is {whose}");
                look.found.leftover("migration-half-named", place, what, advice);
                return Ok(());
            }
            let what = format!(
                "'{object}', which leads to image {id}, is missing or empty: it cannot be opened by name"
            );
            let mend = Mend::Register {
                name: name.to_owned(),
                id: id.to_owned(),
            };
            look.found
                .mendable(Gravity::Damage, "id-object", place, what, mend);
        }
        Ok(Some(other)) => {
            let what = format!("'{object}' leads to image {other}, and the directory says {id}");
            let advice = "look which of both is the image, and restore the other entry from a backup";
            look.found.damage("id-object", place, what, advice);
        }
        Err(what) => {
            let what = format!("'{object}' cannot be read: {what}");
            let advice =
                format!("the directory says that it is image {id}; restore the object from a backup");
            look.found.damage("id-object", place, what, advice);
        }
    }
    Ok(())
}

/// An id that the directory lists with a name that it does not list.
async fn look_at_reverse(look: &mut Look, name: &str, id: &str) -> Result<()> {
    let place = look.image(name);
    let unlist = Mend::Unlist {
        name: name.to_owned(),
        id: id.to_owned(),
    };
    if !look.io.exists(&names::header_object(id)).await? {
        return match trash::find(&look.io, id).await? {
            Some(_) => Ok(()),
            None => without_header(look, id, place, "the directory lists its id", unlist).await,
        };
    }
    let what = format!("the directory lists image {id} with this name, and the name not at all");
    let leads_here = judged(directory::id_of_name(&look.io, name).await)?;
    let is_other = leads_here.is_ok_and(|found| found.is_some_and(|found| found != id));
    if is_other {
        let advice = "another image has the name; restore the directory from a backup";
        look.found.damage("directory-one-way", place, what, advice);
        return Ok(());
    }
    let mend = Mend::ListName {
        name: name.to_owned(),
        id: id.to_owned(),
    };
    look.found
        .mendable(Gravity::Damage, "directory-one-way", place, what, mend);
    Ok(())
}

/// A name that opens something and that the directory does not have.
pub(super) async fn look_at_unlisted(look: &mut Look, name: &str) -> Result<()> {
    let (place, object) = (look.image(name), names::id_object(name));
    let clear = |id: Option<String>| Mend::ClearIdObject {
        name: name.to_owned(),
        id,
    };
    let id = match judged(directory::id_of_name(&look.io, name).await)? {
        Ok(Some(id)) => id,
        Ok(None) => {
            let what = format!("'{object}' leads nowhere: it is empty");
            look.found
                .mendable(Gravity::Leftover, "id-object-stray", place, what, clear(None));
            return Ok(());
        }
        Err(what) => {
            let what = format!("'{object}' cannot be read: {what}");
            look.found
                .damage("id-object", place, what, "restore it from a backup");
            return Ok(());
        }
    };
    if trash::find(&look.io, &id)
        .await?
        .is_some_and(|entry| entry.state != TrashImageState::Normal)
    {
        return Ok(());
    }
    if !look.io.exists(&names::header_object(&id)).await? {
        return without_header(
            look,
            &id,
            place,
            &format!("'{object}' leads to it"),
            clear(Some(id.clone())),
        )
        .await;
    }
    if let Ok(Some(other)) = judged(directory::listed_name(&look.io, &id).await)? {
        if other != name {
            let what =
                format!("'{object}' leads to image {id}, which is called '{other}': an interrupted rename");
            look.found
                .mendable(Gravity::Leftover, "id-object-stray", place, what, clear(Some(id)));
        }
        // Else only the name's own entry is missing, which is told of where the id's is looked at.
        return Ok(());
    }
    let what = format!("image {id} can be opened by this name, and the directory does not list it");
    let mend = Mend::Register {
        name: name.to_owned(),
        id,
    };
    look.found
        .mendable(Gravity::Damage, "directory-unlisted", place, what, mend);
    Ok(())
}

/// Something leads to image `id`, whose header is not there: a leftover that `mend` takes away, unless data of it is left.
async fn without_header(look: &mut Look, id: &str, place: String, by: &str, mend: Mend) -> Result<()> {
    let what = format!(
        "{by} as image {id}, whose header '{}' is not there",
        names::header_object(id)
    );
    match has_data(&look.io, id).await? {
        true => {
            let advice = "its data objects are left: restore the header from a backup";
            look.found.damage("header-missing", place, what, advice);
        }
        false => look
            .found
            .mendable(Gravity::Leftover, "name-of-nothing", place, what, mend),
    }
    Ok(())
}

/// Whether there are data objects of image `id` in any pool.
pub(super) async fn has_data(io: &IoCtx, id: &str) -> Result<bool> {
    for pool in io.store().pool_list().await? {
        let there = io.with_pool(pool.id);
        // In its own pool they may be called either way.
        let ways: &[bool] = if pool.id == io.pool() {
            &[false, true]
        } else {
            &[true]
        };
        for has_data_pool in ways {
            let prefix = format!("{}.", names::object_prefix(id, io.pool(), *has_data_pool));
            let store = there.store();
            if !store
                .list_objects(there.scope(), &prefix, "", 1)
                .await?
                .is_empty()
            {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// Looks at the entries of the trash, and gives them.
async fn look_at_trash(look: &mut Look) -> Result<BTreeMap<String, TrashImageSpec>> {
    let entries = match judged(client::trash_list_all(&look.io).await)? {
        Ok(entries) => entries,
        Err(what) => {
            let what = format!("the trash cannot be listed: {what}");
            let advice = "images in it show as images without names; restore 'rbd_trash' from a backup";
            look.found.damage("trash", look.here(), what, advice);
            return Ok(BTreeMap::new());
        }
    };
    for (id, entry) in &entries {
        look_at_trash_entry(look, id, entry).await?;
    }
    Ok(entries)
}

/// Whether the image is on its way out, or not wholly made yet.
fn is_removal(entry: &TrashImageSpec) -> bool {
    entry.source == TrashImageSource::Removing || entry.state == TrashImageState::Removing
}

async fn look_at_trash_entry(look: &mut Look, id: &str, entry: &TrashImageSpec) -> Result<()> {
    let place = format!("{} (id {id}) in the trash", look.image(&entry.name));
    let object = names::header_object(id);
    let forget = Mend::ForgetTrash { id: id.to_owned() };
    if !look.io.exists(&object).await? {
        return without_header(look, id, place, "the trash has it", forget).await;
    }
    if is_removal(entry) {
        let watchers = optional(look.io.store().list_watchers(look.io.object(&object)).await)?;
        if watchers.is_some_and(|watchers| !watchers.is_empty()) {
            let what = "it is being made or removed just now";
            look.found
                .unjudged("image-in-use", place, what, "check it again later");
        } else {
            let what = "it was not finished when it was made, or when it was removed";
            let advice = format!("'rbd trash rm {}/{id}' removes it", look.at);
            look.found.leftover("removal-unfinished", place, what, advice);
        }
        return Ok(());
    }
    match entry.state {
        TrashImageState::Moving => {
            let what = "its move to the trash was not finished";
            let advice = format!("'rbd trash mv {}/{}' finishes it", look.at, entry.name);
            look.found.leftover("trash-unfinished", place, what, advice);
        }
        TrashImageState::Restoring => {
            let what = "its restoring from the trash was not finished";
            let advice = format!("'rbd trash restore {}/{id}' finishes it", look.at);
            look.found.leftover("trash-unfinished", place, what, advice);
        }
        TrashImageState::Normal | TrashImageState::Removing => {
            if let Ok(Some(name)) = judged(directory::listed_name(&look.io, id).await)? {
                let what = format!("the directory lists it too, as '{name}'");
                let advice = format!("'rbd trash restore {}/{id}' makes it an image again", look.at);
                look.found.damage("trash-and-listed", place, what, advice);
            }
        }
    }
    Ok(())
}

/// A header that neither the directory nor the trash knows.
async fn look_at_nameless(look: &mut Look, id: &str, id_objects: &[String]) -> Result<()> {
    for name in id_objects {
        if judged(directory::id_of_name(&look.io, name).await)?
            .is_ok_and(|found| found.as_deref() == Some(id))
        {
            // Told of with the name.
            return Ok(());
        }
    }
    let record = judged(crate::migration::record::read(&look.io, &HeaderKey::from(id)).await)?;
    if record.is_ok_and(|record| record.flatten().is_some()) {
        // A target in the making, or on its way out: told of with its source.
        return Ok(());
    }
    let what = format!("image {id} has no name and is not in the trash");
    let advice = "a command was killed, which finishes it when it is run again, or an entry of the directory or of the trash was lost: restore it from a backup then";
    look.found
        .leftover("image-nameless", look.image(id), what, advice);
    Ok(())
}
