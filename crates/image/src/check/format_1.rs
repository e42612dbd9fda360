//! Images of format 1: whether the list and the headers agree, whether the headers can be read, and whether data objects have one.
//!
//! Only its header knows what the data objects of such an image are called, and headers have no prefix in common; so the names of
//! all objects of the namespace are gone through.

use std::collections::{BTreeMap, BTreeSet};

use ferry_cls::rbd::MigrationSpec;
use ferry_store::check::Gravity;
use ferry_store::{Errno, IoCtx};

use super::found::judged;
use super::mend::Mend;
use super::names::each_name;
use super::{Look, data, migrations};
use crate::admin::format_1 as list_of_format_1;
use crate::error::{ErrorKind, ImageError, Result};
use crate::header::{self, HeaderKey};

const HEADER_SUFFIX: &str = ".rbd";
const DATA_PREFIX: &str = "rb.";
/// Hex digits of an object's number.
const NUMBER_DIGITS: usize = 12;

/// A header that could be read.
struct Known {
    name: String,
    object_prefix: String,
    /// Number below which its objects may have data in any version.
    objects_max: u64,
    migration: Option<MigrationSpec>,
}

impl Known {
    async fn read(io: &IoCtx, name: &str) -> Result<Self> {
        let key = HeaderKey::Name(name.to_owned());
        let fixed = header::load_fixed(io, &key).await?;
        let header = header::load(io, &key, true).await?;
        let snaps = header.snaps.values().map(|snap| snap.size_bytes);
        let sizes = snaps.chain([header.size_bytes]);
        Ok(Self {
            name: name.to_owned(),
            object_prefix: fixed.object_prefix.to_string(),
            objects_max: sizes
                .map(|size| fixed.layout.object_count(size))
                .max()
                .unwrap_or(0),
            migration: header.migration,
        })
    }
}

/// Data objects whose names begin alike.
#[derive(Debug, Default)]
struct Objects {
    count: u64,
    /// Beyond the end of their image: how many, and the lowest number.
    beyond: (u64, u64),
}

impl Objects {
    fn meet(&mut self, number: u64, image: Option<&Known>) {
        self.count += 1;
        if image.is_some_and(|image| number >= image.objects_max) {
            let lowest = if self.beyond.0 == 0 { number } else { self.beyond.1 };
            self.beyond = (self.beyond.0 + 1, lowest.min(number));
        }
    }
}

fn data_object(name: &str) -> Option<(&str, u64)> {
    let (prefix, number) = name.rsplit_once('.')?;
    if !prefix.starts_with(DATA_PREFIX) || number.len() != NUMBER_DIGITS {
        return None;
    }
    Some((prefix, u64::from_str_radix(number, 16).ok()?))
}

/// Looks at all of the namespace.
pub(super) async fn look(look: &mut Look) -> Result<()> {
    let listed: BTreeSet<String> = match judged(list_of_format_1::list(&look.io).await)? {
        Ok(listed) => listed.into_iter().collect(),
        Err(what) => {
            let advice = "images of format 1 cannot be listed; restore the directory from a backup";
            look.found.damage("directory", look.here(), what, advice);
            BTreeSet::new()
        }
    };
    let mut candidates = BTreeSet::new();
    each_name(&look.io, "", |object| {
        candidates.extend(object.strip_suffix(HEADER_SUFFIX).map(str::to_owned));
    })
    .await?;
    let mut known = Vec::new();
    for name in &listed {
        known.extend(look_at_listed(look, name).await?);
    }
    for name in candidates.difference(&listed) {
        let found = look_at_unlisted(look, name, &known).await?;
        known.extend(found);
    }
    for image in &known {
        look_at_migration(look, image).await?;
    }
    look_at_objects(look, DATA_PREFIX, &known).await
}

async fn look_at_migration(look: &mut Look, image: &Known) -> Result<()> {
    let Some(spec) = &image.migration else {
        return Ok(());
    };
    let (place, key) = (look.image(&image.name), HeaderKey::Name(image.name.clone()));
    migrations::look_at(look, &key, &image.name, &place, Some(spec)).await
}

/// Looks at the data objects whose names begin with `prefix`.
async fn look_at_objects(look: &mut Look, prefix: &str, known: &[Known]) -> Result<()> {
    let by_prefix: BTreeMap<&str, &Known> = known
        .iter()
        .map(|image| (image.object_prefix.as_str(), image))
        .collect();
    let mut objects: BTreeMap<String, Objects> = BTreeMap::new();
    each_name(&look.io, prefix, |object| {
        let Some((prefix, number)) = data_object(object) else {
            return;
        };
        let image = by_prefix.get(prefix).copied();
        match objects.get_mut(prefix) {
            Some(objects) => objects.meet(number, image),
            None => objects.entry(prefix.to_owned()).or_default().meet(number, image),
        }
    })
    .await?;
    let io = look.io.clone();
    for (prefix, found) in objects {
        match by_prefix.get(prefix.as_str()) {
            Some(image) => data::tell_beyond(look, look.image(&image.name), found.beyond),
            None => data::tell_strays(look, &io, &prefix, found.count),
        }
    }
    Ok(())
}

/// Looks at one image. Whether there is one.
pub(super) async fn look_at_one(look: &mut Look, name: &str) -> Result<bool> {
    if !header::has_format_1(&look.io, name).await? {
        return Ok(false);
    }
    let listed = judged(list_of_format_1::list(&look.io).await)?;
    let is_listed = listed.is_ok_and(|listed| listed.iter().any(|listed| listed == name));
    let known = match is_listed {
        true => look_at_listed(look, name).await?,
        false => look_at_unlisted(look, name, &[]).await?,
    };
    if let Some(image) = known {
        look_at_migration(look, &image).await?;
        let prefix = format!("{}.", image.object_prefix);
        look_at_objects(look, &prefix, &[image]).await?;
    }
    Ok(true)
}

async fn look_at_listed(look: &mut Look, name: &str) -> Result<Option<Known>> {
    let place = look.image(name);
    match Known::read(&look.io, name).await {
        Ok(known) => return Ok(Some(known)),
        Err(error) if error.kind == ErrorKind::ImageMissing => {
            let what = "it is listed as one of format 1 and has no header";
            let mend = Mend::UnlistFormat1 {
                name: name.to_owned(),
            };
            look.found
                .mendable(Gravity::Leftover, "name-of-nothing", place, what, mend);
        }
        Err(error) => tell_unread(look, place, error)?,
    }
    Ok(None)
}

/// What is called like a header, and that the list does not have.
async fn look_at_unlisted(look: &mut Look, name: &str, listed: &[Known]) -> Result<Option<Known>> {
    let place = look.image(name);
    let known = match Known::read(&look.io, name).await {
        Ok(known) => known,
        // Something else that is called so.
        Err(error) if error.errno == Errno::ENXIO || error.kind != ErrorKind::Damaged => {
            return judged(Err::<(), _>(error)).map(|_| None);
        }
        Err(error) => {
            tell_unread(look, place, error)?;
            return Ok(None);
        }
    };
    if known.migration.is_some() {
        // The source of a migration, which is told of there.
        return Ok(Some(known));
    }
    if let Some(other) = listed
        .iter()
        .find(|other| other.object_prefix == known.object_prefix)
    {
        let what = format!(
            "it has the same data as '{}', and is not listed: an interrupted rename",
            other.name
        );
        let advice = "the same 'rbd rename' run again finishes it";
        look.found.leftover("rename-unfinished", place, what, advice);
        return Ok(Some(known));
    }
    let what = "it can be opened by this name, and the directory does not list it";
    let mend = Mend::ListFormat1 {
        name: name.to_owned(),
    };
    look.found
        .mendable(Gravity::Damage, "directory-unlisted", place, what, mend);
    Ok(Some(known))
}

fn tell_unread(look: &mut Look, place: String, error: ImageError) -> Result<()> {
    if let Err(what) = judged(Err::<(), _>(error))? {
        let what = format!("its header of format 1 cannot be read: {what}");
        look.found
            .damage("header", place, what, "restore the header from a backup");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_ends_with_twelve_digits_is_a_data_object() {
        assert_eq!(data_object("rb.0.1.2.00000000000a"), Some(("rb.0.1.2", 10)));
        for other in [
            "rb.0.1.2.0000000000000001",
            "rbd_data.1.000000000001",
            "rb.0.1.2.00000000000g",
        ] {
            assert_eq!(data_object(other), None, "{other}");
        }
    }
}
