//! `rbd trash *`.

use std::collections::BTreeMap;

use ferry_cls::rbd::{TrashImageSource, TrashImageSpec};
use ferry_image::admin::info::{self, ParentInfo};
use ferry_image::admin::trash;
use ferry_image::{ErrorKind, ImageError};
use ferry_store::{Errno, IoCtx, Timestamp};
use jiff::civil;
use jiff::tz::TimeZone;

use super::error::Explain as _;
use super::info::parent_name;
use super::lifecycle::remove_failed;
use super::list::listed_parent_node;
use super::session::{Session, Task};
use crate::exit::Failure;
use crate::output::{Align, Document, Node, TextTable, timestamp};
use crate::spec::ImageQuery;

pub(super) async fn list(session: &Session) -> Result<(), Failure> {
    let args = session.args();
    let place = args.pool_spec()?;
    let format = args.output_format()?;
    args.finish()?;
    let (all, long) = (args.flag("all"), args.flag("long"));
    let io = session.place(&place).await?;
    let entries: Vec<(String, TrashImageSpec)> = trash::list(&io)
        .await
        .map_err(|error| error.failed("trash list failed"))?
        .into_iter()
        .filter(|(_, entry)| all || is_users(entry))
        .collect();
    let mut parents = BTreeMap::new();
    if long {
        for (id, _) in &entries {
            let parent = info::parent_of(&io, id).await;
            let parent = parent.map_err(|error| error.failed("trash list failed"))?;
            parents.extend(parent.map(|parent| (id.clone(), parent)));
        }
    }
    session.print(
        format,
        || {
            if long {
                table(&entries, &parents)
            } else {
                entries
                    .iter()
                    .map(|(id, entry)| format!("{id} {}\n", entry.name))
                    .collect()
            }
        },
        || document(&entries, &parents, long),
    )
}

/// What `trash ls` shows without `--all`: what a user put there.
fn is_users(entry: &TrashImageSpec) -> bool {
    matches!(
        entry.source,
        TrashImageSource::User | TrashImageSource::UserParent
    )
}

fn status(entry: &TrashImageSpec) -> String {
    let end = timestamp(entry.deferment_end_time.seconds.into());
    if entry.deferment_end_time > Timestamp::now() {
        format!("protected until {end}")
    } else {
        format!("expired at {end}")
    }
}

fn table(entries: &[(String, TrashImageSpec)], parents: &BTreeMap<String, ParentInfo>) -> String {
    if entries.is_empty() {
        return String::new();
    }
    let columns = ["ID", "NAME", "SOURCE", "DELETED_AT", "STATUS", "PARENT"].map(|name| (name, Align::Left));
    let mut table = TextTable::new(&columns);
    for (id, entry) in entries {
        table.row([
            id.clone(),
            entry.name.clone(),
            entry.source.name().to_owned(),
            timestamp(entry.deletion_time.seconds.into()),
            status(entry),
            parents.get(id).map(parent_name).unwrap_or_default(),
        ]);
    }
    table.to_string()
}

fn document(
    entries: &[(String, TrashImageSpec)],
    parents: &BTreeMap<String, ParentInfo>,
    long: bool,
) -> Document {
    let mut list = Node::list("image");
    for (id, entry) in entries {
        let mut node = Node::map().with("id", id).with("name", &entry.name);
        if long {
            node = node
                .with("source", entry.source.name())
                .with("deleted_at", timestamp(entry.deletion_time.seconds.into()))
                .with("status", status(entry));
        }
        if let Some(parent) = parents.get(id) {
            node.set("parent", listed_parent_node(parent));
        }
        list.add(node);
    }
    Document::new("trash", list)
}

pub(super) async fn move_image(session: &Session) -> Result<(), Failure> {
    let args = session.args();
    let spec = args.image(ImageQuery::source())?;
    args.finish()?;
    let expires_at = match args.text("expires-at") {
        None | Some("now") => None,
        Some(text) => Some(date("expires-at", text)?),
    };
    if expires_at.is_some_and(|end| end < Timestamp::now()) {
        return Err(Failure::invalid(
            "cannot use a date/time in the past as deferment end time",
        ));
    }
    let io = session.place_of(&spec).await?;
    trash::move_image(&io, &spec.image, expires_at)
        .await
        .map_err(|error| error.failed("deferred delete error"))
}

/// A date, or date and time, in the local zone; or seconds since 1970 behind `@`.
fn date(option: &str, text: &str) -> Result<Timestamp, Failure> {
    let local = |time: civil::DateTime| {
        time.to_zoned(TimeZone::system())
            .ok()
            .map(|zoned| zoned.timestamp())
    };
    let parsed = match text.strip_prefix('@') {
        Some(seconds) => seconds
            .parse()
            .ok()
            .and_then(|s| jiff::Timestamp::from_second(s).ok()),
        None => text
            .parse::<jiff::Timestamp>()
            .ok()
            .or_else(|| text.parse::<civil::DateTime>().ok().and_then(local))
            .or_else(|| {
                let date = text.parse::<civil::Date>().ok()?;
                local(date.to_datetime(civil::Time::midnight()))
            }),
    };
    let seconds = parsed.and_then(|time| u32::try_from(time.as_second()).ok());
    seconds
        .map(|seconds| Timestamp {
            seconds,
            nanoseconds: 0,
        })
        .ok_or_else(|| {
            Failure::invalid(format_args!(
                "--{option} '{text}' is not a date; use e.g. 2030-01-31 or '2030-01-31 18:00:00'"
            ))
        })
}

pub(super) async fn purge(session: &Session) -> Result<(), Failure> {
    let args = session.args();
    let place = args.pool_spec()?;
    args.finish()?;
    let before = match args.text("expired-before") {
        None | Some("now") => Timestamp::now(),
        Some(text) => date("expired-before", text)?,
    };
    let io = session.place(&place).await?;
    let task = session.task("Removing images");
    let purged = match args.fraction("threshold") {
        Some(share) => purge_down_to(&io, share, before, &task).await,
        None => trash::purge(&io, before, &task.library()).await,
    };
    task.end(purged)
        .map(|_| ())
        .map_err(|error| error.failed("trash purge error"))
}

/// Removes expired images, those that expired first first, until the data of the pool is down to `share` of its space.
async fn purge_down_to(io: &IoCtx, share: f64, before: Timestamp, task: &Task) -> ferry_image::Result<usize> {
    let mut due: Vec<(String, TrashImageSpec)> = trash::list(io)
        .await?
        .into_iter()
        .filter(|(_, entry)| is_users(entry) && entry.deferment_end_time <= before)
        .collect();
    due.sort_by_key(|(_, entry)| entry.deferment_end_time);
    let total = due.len() as u64;
    for (removed, (id, _)) in due.iter().enumerate() {
        let usage = io.store().pool_usage(io.pool()).await?;
        let free_bytes = usage.free_bytes.ok_or_else(|| {
            ImageError::new(
                Errno::EOPNOTSUPP,
                "the space that is free in the pool is not known",
            )
        })?;
        let space_bytes = usage.used_bytes.saturating_add(free_bytes);
        if usage.used_bytes as f64 <= share * space_bytes as f64 {
            return Ok(removed);
        }
        trash::remove_image(io, id, true, &ferry_image::Progress::silent()).await?;
        task.update(removed as u64 + 1, total);
    }
    Ok(due.len())
}

pub(super) async fn remove(session: &Session) -> Result<(), Failure> {
    let args = session.args();
    let (place, id) = args.trash_id()?;
    args.finish()?;
    let io = session.place(&place).await?;
    let task = session.task("Removing image");
    let removed = trash::remove_image(&io, &id, args.flag("force"), &task.library()).await;
    let Err(error) = removed else {
        return task.end(Ok(()));
    };
    // Here Ceph says why before it ends the progress.
    let failure = trash_remove_failed(error);
    eprintln!("{}", failure.text());
    drop(task);
    Err(Failure::silent(failure.code().into()))
}

fn trash_remove_failed(error: ImageError) -> Failure {
    match error.kind {
        ErrorKind::NotExpired => Failure::message(
            "Deferment time has not expired, please use --force if you really want to remove the image",
            error.errno.0,
        ),
        // Ceph's line has no more either.
        ErrorKind::ImageMissing => Failure::errno("remove error", error.errno.0),
        _ => remove_failed(error, "remove error"),
    }
}

pub(super) async fn restore(session: &Session) -> Result<(), Failure> {
    let args = session.args();
    let (place, id) = args.trash_id()?;
    args.finish()?;
    let io = session.place(&place).await?;
    let name = args.text("image").filter(|name| !name.is_empty());
    trash::restore(&io, &id, name)
        .await
        .map_err(|error| match error.errno {
            Errno::ENOENT => Failure::message("rbd: error: image does not exist in trash", error.errno.0),
            Errno::EEXIST => Failure::message(
                "rbd: error: an image with the same name already exists, try again with a different name",
                error.errno.0,
            ),
            _ => error.failed("restore error"),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_read_in_the_forms_that_people_write() {
        for text in [
            "2030-01-31",
            "2030-01-31 18:00:00",
            "2030-01-31T18:00",
            "@1900000000",
            "2030-01-31T18:00:00Z",
        ] {
            assert!(
                date("expires-at", text).is_ok_and(|t| t.seconds > 1_800_000_000),
                "{text}"
            );
        }
        for text in ["", "soon", "2030-13-01", "@-1", "2200-01-01"] {
            assert_eq!(date("expires-at", text).unwrap_err().code(), 22, "{text}");
        }
    }
}
