//! Data objects: whether each has an image, lies within it, and is known to its object maps.
//!
//! Objects are met in the order of their names, so those of an image one after the other; one image's maps are held at a time.

use ferry_cls::rbd::{ObjectState, feature};
use ferry_store::check::Gravity;
use ferry_store::{IoCtx, PoolId};
use futures::stream::{StreamExt as _, TryStreamExt as _};

use super::found::judged;
use super::headers::{self, Known};
use super::maps::{self, Maps, version};
use super::mend::Mend;
use super::{Look, NAMES_PER_PAGE};
use crate::admin::CONCURRENT;
use crate::error::Result;
use crate::layout::ObjectNo;
use crate::migration::leftover;
use crate::names;
use crate::object_map::rebuild;

const PREFIX: &str = "rbd_data.";
/// Hex digits of an object's number.
const NUMBER_DIGITS: usize = 16;

/// The objects of one image, or of none, while they are met.
struct Owner {
    /// What the names of the objects start with.
    prefix: String,
    image: Option<(Known, Option<Maps>)>,
    /// Number below which objects may be; the greatest of all while an ended migration leaves objects to hide its source.
    objects_max: u64,
    /// Of nobody: how many.
    strays: u64,
    /// Beyond the end: how many, and the first.
    beyond: (u64, u64),
    /// By version: how many are marked wrongly, and the first.
    wrong: Vec<(u64, u64)>,
    /// By version: of how many it is marked that they are being removed, and the first.
    pending: Vec<(u64, u64)>,
    /// How many could not be looked at, and why the first could not.
    unread: (u64, String),
    /// Somebody else's business: another pool's image, or one whose header cannot be read.
    is_passed_over: bool,
}

/// Looks at the objects in the namespace, and at those of its images in `data_pools`.
pub(super) async fn look_at_all(look: &mut Look, data_pools: &[PoolId]) -> Result<()> {
    let io = look.io.clone();
    walk(look, &io, PREFIX).await?;
    let pools = io.store().pool_list().await?;
    for pool in data_pools {
        if *pool != io.pool() && pools.iter().any(|listed| listed.id == *pool) {
            let prefix = format!("{PREFIX}{}.", io.pool().0);
            walk(look, &io.with_pool(*pool), &prefix).await?;
        }
    }
    Ok(())
}

/// Looks at the objects of one image.
pub(super) async fn look_at_one(look: &mut Look, known: &Known) -> Result<()> {
    let io = known.data_io(&look.io);
    walk(look, &io, &format!("{}.", known.fixed.object_prefix)).await
}

async fn walk(look: &mut Look, data_io: &IoCtx, prefix: &str) -> Result<()> {
    let mut owner: Option<Owner> = None;
    let mut last = String::new();
    loop {
        let store = data_io.store();
        let page = store
            .list_objects(data_io.scope(), prefix, &last, NAMES_PER_PAGE)
            .await?;
        let is_last = page.len() < NAMES_PER_PAGE;
        let mut rest = page.as_slice();
        while let Some(first) = rest.first() {
            let of = prefix_of(first);
            let count = rest.iter().take_while(|name| prefix_of(name) == of).count();
            let (group, behind) = rest.split_at(count);
            rest = behind;
            if owner.as_ref().is_none_or(|owner| owner.prefix != of) {
                if let Some(done) = owner.take() {
                    done.tell(look, data_io);
                }
                owner = Some(Owner::find(look, data_io, of).await?);
            }
            if let Some(owner) = &mut owner {
                owner.meet(data_io, group).await?;
            }
        }
        match page.last() {
            Some(name) if !is_last => last.clone_from(name),
            _ => break,
        }
    }
    if let Some(done) = owner.take() {
        done.tell(look, data_io);
    }
    Ok(())
}

/// What names of an image's objects share; the whole name of something else.
fn prefix_of(name: &str) -> &str {
    match name.rsplit_once('.') {
        Some((prefix, number)) if number_of(number).is_some() => prefix,
        _ => name,
    }
}

fn number_of(text: &str) -> Option<u64> {
    (text.len() == NUMBER_DIGITS)
        .then(|| u64::from_str_radix(text, 16).ok())
        .flatten()
}

impl Owner {
    async fn find(look: &mut Look, data_io: &IoCtx, prefix: &str) -> Result<Self> {
        let mut owner = Self {
            prefix: prefix.to_owned(),
            image: None,
            objects_max: 0,
            strays: 0,
            beyond: (0, 0),
            wrong: Vec::new(),
            pending: Vec::new(),
            unread: (0, String::new()),
            is_passed_over: false,
        };
        let text = prefix.strip_prefix(PREFIX).unwrap_or_default();
        let (pool, id) = match text.split_once('.') {
            Some((pool, id)) => (pool.parse().ok().map(PoolId), id),
            None => (Some(data_io.pool()), text),
        };
        let pools = look.io.store().pool_list().await?;
        let Some(pool) = pool.filter(|pool| pools.iter().any(|listed| listed.id == *pool)) else {
            return Ok(owner);
        };
        let io = look.io.with_pool(pool);
        if pool != look.io.pool() {
            // That pool's own check looks at them, if there is an image.
            owner.is_passed_over = io.exists(&names::header_object(id)).await?;
            return Ok(owner);
        }
        let name = crate::admin::directory::name_of_id(&io, id).await;
        let name = judged(name)?.unwrap_or_else(|_| id.to_owned());
        let place = look.image(&name);
        match headers::read(&io, id, &name, place).await? {
            Ok(known) if *known.fixed.object_prefix == *prefix => {
                let maps = maps::load_all(look, &io, &known).await?;
                owner.wrong = vec![(0, 0); known.versions().len()];
                owner.pending.clone_from(&owner.wrong);
                let is_hiding = leftover::may_hide(&io, &names::header_object(id)).await?;
                owner.objects_max = if is_hiding { u64::MAX } else { known.objects_max() };
                owner.image = Some((known, maps));
            }
            Ok(_) => {}
            // A header that is there and cannot be read is told of elsewhere.
            Err(_) => owner.is_passed_over = io.exists(&names::header_object(id)).await?,
        }
        Ok(owner)
    }

    async fn meet(&mut self, data_io: &IoCtx, names: &[String]) -> Result<()> {
        if self.is_passed_over {
            return Ok(());
        }
        let Some((known, maps)) = &self.image else {
            self.strays += names.len() as u64;
            return Ok(());
        };
        let max = self.objects_max;
        let numbers: Vec<u64> = names
            .iter()
            .filter_map(|name| number_of(name.rsplit_once('.')?.1))
            .collect();
        let beyond = numbers.iter().copied().filter(|number| *number >= max);
        for number in with_heads(data_io, &self.prefix, beyond).await? {
            count(&mut self.beyond, number);
        }
        let Some(maps) = maps else { return Ok(()) };
        let versions = known.versions();
        let has_fast_diff = known.header.has(feature::FAST_DIFF);
        let mut seen = futures::stream::iter(numbers.into_iter().filter(|number| *number < max))
            .map(|number| {
                let (prefix, versions) = (&self.prefix, &versions);
                async move {
                    let object = names::data_object(prefix, number);
                    let states = rebuild::states_of(data_io, &object, versions, has_fast_diff).await;
                    judged(states).map(|states| (number, states))
                }
            })
            .buffered(CONCURRENT);
        while let Some((number, states)) = seen.try_next().await? {
            let states = match states {
                Ok(states) => states,
                Err(what) => {
                    if self.unread.0 == 0 {
                        self.unread.1 = what;
                    }
                    self.unread.0 += 1;
                    continue;
                }
            };
            for (index, state) in states.into_iter().enumerate() {
                let (_, objects) = versions[index];
                let marked = maps[index].as_ref().and_then(|map| map.get(number));
                let marked = marked
                    .and_then(ObjectState::from_byte)
                    .filter(|_| number < objects);
                match marked {
                    Some(marked) if !state.is_surely_wrong(marked) => {}
                    // Everybody takes it for existing.
                    Some(ObjectState::Pending) => count(&mut self.pending[index], number),
                    Some(_) => count(&mut self.wrong[index], number),
                    None => {}
                }
            }
        }
        Ok(())
    }

    fn tell(self, look: &mut Look, data_io: &IoCtx) {
        if self.strays > 0 {
            tell_strays(look, data_io, &self.prefix, self.strays);
        }
        let Some((known, _)) = self.image else { return };
        let place = known.place.clone();
        if self.unread.0 > 0 {
            let (count, first) = &self.unread;
            let what = format!("{count} of its data objects cannot be looked at; of the first: {first}");
            look.found.damage(
                "data-object",
                place.clone(),
                what,
                "what they held has to come from a backup",
            );
        }
        tell_beyond(look, place.clone(), self.beyond);
        for ((snap, _), (count, first)) in known.versions().into_iter().zip(self.pending) {
            if count > 0 {
                let what = format!(
                    "the object map of {} says of {count} objects that they are being removed, the first of them number {first}: that was interrupted",
                    version(snap)
                );
                let mend = Mend::RebuildMaps { id: known.id.clone() };
                look.found
                    .mendable(Gravity::Leftover, "object-map-pending", place.clone(), what, mend);
            }
        }
        for ((snap, _), (count, first)) in known.versions().into_iter().zip(self.wrong) {
            if count > 0 {
                let what = format!(
                    "the object map of {} is wrong of {count} objects that exist, the first of them number {first}",
                    version(snap)
                );
                let mend = Mend::RebuildMaps { id: known.id.clone() };
                look.found
                    .mendable(Gravity::Damage, "object-map-wrong", place.clone(), what, mend);
            }
        }
    }
}

/// Those of the objects that a growing image would show. The others are there for snapshots alone, in which they end before
/// their first byte (an object written without a snapshot context has that of its removal), and go with them.
async fn with_heads(
    data_io: &IoCtx,
    prefix: &str,
    numbers: impl Iterator<Item = u64> + Send,
) -> Result<Vec<u64>> {
    futures::stream::iter(numbers)
        .map(|number| async move {
            let exists = judged(exists(data_io, &names::data_object(prefix, number)).await)?;
            // One that cannot be looked at may well be there.
            Ok(exists.unwrap_or(true).then_some(number))
        })
        .buffered(CONCURRENT)
        .try_filter_map(|number| std::future::ready(Ok(number)))
        .try_collect()
        .await
}

async fn exists(data_io: &IoCtx, object: &str) -> Result<bool> {
    Ok(data_io.exists(object).await?)
}

/// Tells of `count` objects, called `prefix` and a number, that no image has.
pub(super) fn tell_strays(look: &mut Look, data_io: &IoCtx, prefix: &str, count: u64) {
    let what = format!("{count} data objects '{prefix}.*' are of no image");
    let mut advice =
        "they are left as they are: they may be all that is left of an image whose header is lost".to_owned();
    if data_io.store().engine() == "ceph" {
        advice.push_str("; 'rados rm' removes them one by one");
    }
    look.found.leftover("data-stray", look.here(), what, advice);
}

/// Tells of objects beyond the end of an image, if there are any: how many, and the number of the first.
pub(super) fn tell_beyond(look: &mut Look, place: String, (count, first): (u64, u64)) {
    if count == 0 {
        return;
    }
    let what = format!(
        "{count} data objects lie beyond its end, from number {} on",
        ObjectNo(first).0
    );
    let advice = "a shrink was interrupted: they would show if it grew; 'rbd resize' to a size above them and back removes them";
    look.found.leftover("data-beyond-end", place, what, advice);
}

fn count((count, first): &mut (u64, u64), number: u64) {
    if *count == 0 {
        *first = number;
    }
    *count += 1;
}
