//! Object maps: whether they are there, whole and long enough, and whether any is left of an image or a snapshot that is gone.
//!
//! What they say of each object is compared in [`super::data`], where the objects are met.

use ferry_cls::BitVector;
use ferry_cls::rbd::{client, feature};
use ferry_store::check::Gravity;
use ferry_store::{IoCtx, SnapId};

use super::Look;
use super::found::judged;
use super::headers::{self, Known};
use super::mend::Mend;
use super::names::{each_name, has_data};
use crate::error::{Result, optional};
use crate::names;

/// Most bytes of the maps of one image that are held at a time.
const BYTES_MAX: u64 = 256 << 20;
/// Objects that a byte of a map is for.
const OBJECTS_PER_BYTE: u64 = 4;
const PREFIX: &str = "rbd_object_map.";

/// Words for a version of an image.
pub(super) fn version(snap: SnapId) -> String {
    match snap.is_head() {
        true => "the image".to_owned(),
        false => format!("snapshot {}", snap.0),
    }
}

/// Looks at the maps of one image.
pub(super) async fn look(look: &mut Look, known: &Known) -> Result<()> {
    if !known.header.has(feature::OBJECT_MAP) || known.is_passing() {
        return Ok(());
    }
    if known.in_use {
        let what = "somebody has it open, so its object maps were not compared with its objects";
        let advice = "check it again when nobody uses it";
        look.found
            .unjudged("image-in-use", known.place.clone(), what, advice);
    }
    let rebuild = || Mend::RebuildMaps { id: known.id.clone() };
    for (snap, objects) in known.versions() {
        let place = known.place.clone();
        if !known.header.object_map_valid(snap) {
            let what = format!(
                "the object map of {} is marked as invalid, and not used",
                version(snap)
            );
            look.found
                .mendable(Gravity::Leftover, "object-map-invalid", place, what, rebuild());
            continue;
        }
        match load(&look.io, known, snap).await? {
            Err(what) => {
                let what = format!("the object map of {} cannot be read: {what}", version(snap));
                look.found
                    .mendable(Gravity::Damage, "object-map", place, what, rebuild());
            }
            Ok(None) => {
                let what = format!("the object map of {} is missing, and not used", version(snap));
                look.found
                    .mendable(Gravity::Leftover, "object-map-missing", place, what, rebuild());
            }
            Ok(Some(map)) if map.len() < objects => {
                let what = format!(
                    "the object map of {} is for {} objects, and there may be {objects}",
                    version(snap),
                    map.len()
                );
                look.found
                    .mendable(Gravity::Damage, "object-map", place, what, rebuild());
            }
            Ok(_) => {}
        }
    }
    Ok(())
}

async fn load(io: &IoCtx, known: &Known, snap: SnapId) -> Result<Result<Option<BitVector>, String>> {
    let object = names::object_map_object(&known.id, snap);
    let loaded = ferry_cls::exec_read(io, &object, client::object_map_load()).await;
    judged(optional(loaded))
}

/// Maps that are to be believed, by version; `None` of a version: it has no such map.
pub(super) type Maps = Vec<Option<BitVector>>;

/// The maps of an image, in the order of its versions. `None`: there is nothing to compare.
pub(super) async fn load_all(look: &mut Look, io: &IoCtx, known: &Known) -> Result<Option<Maps>> {
    if known.in_use || !known.header.has(feature::OBJECT_MAP) {
        return Ok(None);
    }
    let versions = known.versions();
    let objects: u64 = versions.iter().map(|(_, objects)| objects).sum();
    if objects / OBJECTS_PER_BYTE > BYTES_MAX {
        let what = "its object maps are too long, or too many, to be compared with its objects";
        let advice = "'rbd object-map check' compares them";
        look.found
            .unjudged("object-map-large", known.place.clone(), what, advice);
        return Ok(None);
    }
    let mut maps = Vec::new();
    for (snap, _) in versions {
        let map = match known.header.object_map_valid(snap) {
            true => load(io, known, snap).await?.ok().flatten(),
            false => None,
        };
        maps.push(map);
    }
    Ok(Some(maps))
}

/// Whose a map is.
enum Of {
    Image(Box<Known>),
    /// Of an image that is told of elsewhere: its header cannot be read, or is lost and may come back.
    Broken,
    Nobody,
}

async fn whose(look: &Look, id: &str) -> Result<Of> {
    if !look.io.exists(&names::header_object(id)).await? {
        return Ok(match has_data(&look.io, id).await? {
            true => Of::Broken,
            false => Of::Nobody,
        });
    }
    let read = headers::read(&look.io, id, id, String::new()).await?;
    Ok(read.map_or(Of::Broken, |known| Of::Image(Box::new(known))))
}

/// Looks for maps of images and snapshots that are not there.
pub(super) async fn look_for_strays(look: &mut Look) -> Result<()> {
    let mut names = Vec::new();
    each_name(&look.io, PREFIX, |name| names.push(name.to_owned())).await?;
    let mut current: Option<(String, Of)> = None;
    for object in names {
        let rest = &object[PREFIX.len()..];
        let (id, snap) = match rest.split_once('.') {
            Some((id, snap)) => (id, u64::from_str_radix(snap, 16).ok().map(SnapId)),
            None => (rest, Some(SnapId::HEAD)),
        };
        if current.as_ref().is_none_or(|(of, _)| of != id) {
            current = Some((id.to_owned(), whose(look, id).await?));
        }
        let of_nobody = match &current {
            Some((_, Of::Image(known))) => {
                let has_version = snap.is_some_and(|snap| known.header.size_at(snap).is_some());
                !has_version || !known.header.has(feature::OBJECT_MAP)
            }
            Some((_, Of::Nobody)) => true,
            _ => false,
        };
        if of_nobody {
            let what = format!("'{object}' is an object map of no image, or of no version of it");
            let mend = Mend::RemoveMap {
                object: object.clone(),
                id: id.to_owned(),
                snap,
            };
            look.found
                .mendable(Gravity::Leftover, "object-map-stray", look.here(), what, mend);
        }
    }
    Ok(())
}
