//! `rbd snap *`.

use ferry_cls::rbd::{ProtectionStatus, SnapshotNamespace};
use ferry_image::group::{self, PartOf};
use ferry_image::header::SnapRecord;
use ferry_image::{ErrorKind, Image, OpenOptions, snapshot};
use ferry_store::{Errno, SnapId};

use super::clone::flatten_children;
use super::error::Explain as _;
use super::session::Session;
use crate::exit::{ENOENT, Failure};
use crate::output::{Align, Document, Node, TextTable, bytes, timestamp};
use crate::spec::{Check, ImageQuery, SnapRule};

pub(super) async fn create(session: &Session) -> Result<(), Failure> {
    let (spec, snap) = session.args().snap(ImageQuery::source().check(Check::SnapName))?;
    session.args().finish()?;
    let image = session.image(&spec, OpenOptions::read_write()).await?;
    let task = session.task("Creating snap");
    let created = if session.args().flag("skip-quiesce") {
        image.snap_create_unquiesced(&snap, &task.library()).await
    } else {
        image.snap_create(&snap, &task.library()).await
    };
    task.end(created)
        .map_err(|error| error.failed("failed to create snapshot"))
}

pub(super) async fn list(session: &Session) -> Result<(), Failure> {
    let args = session.args();
    let image = args.image_or_id(ImageQuery::source())?;
    let format = args.output_format()?;
    args.finish()?;
    let all = args.flag("all");
    let image = session
        .image_ref(
            &image,
            OpenOptions::read_only().ignoring_migration().ignoring_parent(),
        )
        .await?;
    let header = image.header();
    let snaps: Vec<&SnapRecord> = header
        .snaps
        .values()
        .filter(|snap| all || snap.namespace == SnapshotNamespace::User)
        .collect();
    let mut parts = Vec::new();
    if all {
        for snap in &snaps {
            let part = group::part_of(image.io(), &snap.namespace).await;
            parts.push(part.map_err(|error| error.failed("failed to list snapshots"))?);
        }
    }
    session.print(
        format,
        || table(&snaps, all, &parts),
        || document(&snaps, all, &parts),
    )
}

/// `parts`: with `all`, the group snapshot that each is a part of.
fn table(snaps: &[&SnapRecord], all: bool, parts: &[Option<PartOf>]) -> String {
    if snaps.is_empty() {
        return String::new();
    }
    let mut table = TextTable::new(&[
        ("SNAPID", Align::Right),
        ("NAME", Align::Left),
        ("SIZE", Align::Right),
        ("PROTECTED", Align::Left),
        ("TIMESTAMP", Align::Left),
    ]);
    if all {
        table.add_column("NAMESPACE", Align::Left);
    }
    for (index, snap) in snaps.iter().enumerate() {
        let mut row = vec![
            snap.id.to_string(),
            snap.name.clone(),
            bytes(snap.size_bytes),
            if is_protected(snap) { "yes" } else { "" }.to_owned(),
            taken_at(snap),
        ];
        if all {
            row.push(namespace_text(&snap.namespace, parts[index].as_ref()));
        }
        table.row(row);
    }
    table.to_string()
}

fn document(snaps: &[&SnapRecord], all: bool, parts: &[Option<PartOf>]) -> Document {
    let mut list = Node::list("snapshot");
    for (index, snap) in snaps.iter().enumerate() {
        let mut node = Node::map()
            .with("id", snap.id.0)
            .with("name", &snap.name)
            .with("size", snap.size_bytes)
            .with("protected", Node::str_bool(is_protected(snap)))
            .with("timestamp", taken_at(snap));
        if all {
            node.set(
                "namespace",
                namespace_node(&snap.namespace, parts[index].as_ref()),
            );
        }
        list.add(node);
    }
    Document::new("snapshots", list)
}

/// A snapshot counts as protected until it is unprotected for good.
pub(super) fn is_protected(snap: &SnapRecord) -> bool {
    snap.protection != ProtectionStatus::Unprotected
}

fn namespace_text(namespace: &SnapshotNamespace, part: Option<&PartOf>) -> String {
    if let Some(part) = part {
        return format!(
            "{} ({}/{}@{})",
            namespace.type_name(),
            part.pool,
            part.group,
            part.snapshot
        );
    }
    match namespace {
        SnapshotNamespace::Trash { original_name, .. } => {
            format!("{} ({original_name})", namespace.type_name())
        }
        _ => namespace.type_name().to_owned(),
    }
}

fn namespace_node(namespace: &SnapshotNamespace, part: Option<&PartOf>) -> Node {
    let node = Node::map().with("type", namespace.type_name());
    if let Some(part) = part {
        return node
            .with("pool", &part.pool)
            .with("group", &part.group)
            .with("group snap", &part.snapshot);
    }
    match namespace {
        SnapshotNamespace::Trash { original_name, .. } => node.with("original_name", original_name),
        _ => node,
    }
}

pub(super) async fn remove(session: &Session) -> Result<(), Failure> {
    let args = session.args();
    let spec = args.image_or_id(ImageQuery::source().snap(SnapRule::Optional))?;
    args.finish()?;
    let id = args.number("snap-id");
    let (name, spec) = without_snap(spec);
    let image = match (&name, id) {
        (None, None) => return Err(Failure::invalid("snapshot name was not specified")),
        (Some(_), Some(_)) => {
            return Err(Failure::invalid(
                "trying to access snapshot using both name and id.",
            ));
        }
        _ => session.image_ref(&spec, OpenOptions::read_write()).await?,
    };
    let record = find(&image, name.as_deref(), id);
    if id.is_some() && record.is_none() {
        return Err(Failure::errno("failed to remove snapshot", ENOENT));
    }
    if args.flag("force")
        && let Some(record) = record.as_ref()
    {
        flatten_children(session, &image, record.id).await?;
        if is_protected(record) {
            image
                .snap_unprotect(&record.name)
                .await
                .map_err(|error| error.failed("failed to remove snapshot"))?;
        }
    }
    let task = session.task("Removing snap");
    let removed = match (name, id) {
        (Some(name), _) => image.snap_remove(&name, &task.library()).await,
        (None, id) => {
            image
                .snap_remove_by_id(SnapId(id.unwrap_or(0)), &task.library())
                .await
        }
    };
    task.end(removed).map_err(|error| match (error.kind, &record) {
        (ErrorKind::SnapProtected, Some(record)) => error.said(format!(
            "rbd: snapshot '{}' is protected from removal.",
            record.name
        )),
        _ => error.failed("failed to remove snapshot"),
    })
}

/// The image without its snapshot, and the snapshot's name.
fn without_snap(image: crate::spec::ImageRef) -> (Option<String>, crate::spec::ImageRef) {
    use crate::spec::ImageRef;
    match image {
        ImageRef::Name(mut spec) => {
            let snap = spec.snap.take();
            (snap, ImageRef::Name(spec))
        }
        ImageRef::Id { place, id, snap } => (
            snap,
            ImageRef::Id {
                place,
                id,
                snap: None,
            },
        ),
    }
}

fn find(image: &Image, name: Option<&str>, id: Option<u64>) -> Option<SnapRecord> {
    let header = image.header();
    match (name, id) {
        (Some(name), _) => header.snap_by_name(name).cloned(),
        (None, Some(id)) => header.snaps.get(&SnapId(id)).cloned(),
        (None, None) => None,
    }
}

pub(super) async fn purge(session: &Session) -> Result<(), Failure> {
    let args = session.args();
    let image = args.image_or_id(ImageQuery::source())?;
    args.finish()?;
    let image = session.image_ref(&image, OpenOptions::read_write()).await?;
    let header = image.header();
    let silent = ferry_image::Progress::silent();
    let interrupted = image.snap_finish_removals(&silent).await;
    interrupted.map_err(|error| error.failed("removing snaps failed"))?;
    let snaps: Vec<&SnapRecord> = header.user_snaps().collect();
    if snaps.is_empty() {
        return Ok(());
    }
    let total = snaps.len() as u64;
    let (kept, going): (Vec<&SnapRecord>, Vec<&SnapRecord>) =
        snaps.into_iter().partition(|snap| is_protected(snap));
    if !kept.is_empty() {
        // All in one pair of quotes, as Ceph's prints them.
        let names: Vec<&str> = kept.iter().map(|snap| snap.name.as_str()).collect();
        eprintln!(
            "rbd: error removing snapshot(s) '{}', which {} protected - these must be unprotected with `rbd snap unprotect`.",
            names.join(","),
            if kept.len() == 1 { "is" } else { "are" }
        );
    }
    let task = session.task("Removing all snapshots");
    for (done, snap) in (1..).zip(&going) {
        if let Err(error) = image
            .snap_remove(&snap.name, &ferry_image::Progress::silent())
            .await
        {
            return task.end(Err(error.failed("removing snaps failed")));
        }
        task.update(done, total);
    }
    if kept.is_empty() {
        return task.end(Ok(()));
    }
    // Ceph's exit code for this is 0: all that could be removed is.
    drop(task);
    Ok(())
}

pub(super) async fn rename(session: &Session) -> Result<(), Failure> {
    let args = session.args();
    let (source, old_name) = args.snap(ImageQuery::source())?;
    let (dest, new_name) = args.snap(ImageQuery::dest().check(Check::SnapName).inherit(&source))?;
    args.finish()?;
    for (what, same) in [
        ("pool", source.pool == dest.pool),
        ("namespace", source.namespace == dest.namespace),
        ("image name", source.image == dest.image),
    ] {
        if !same {
            return Err(Failure::invalid(format_args!(
                "source and destination {what} must be the same"
            )));
        }
    }
    let image = session.image(&source, OpenOptions::read_write()).await?;
    image
        .snap_rename(&old_name, &new_name)
        .await
        .map_err(|error| error.failed("renaming snap failed"))
}

pub(super) async fn rollback(session: &Session) -> Result<(), Failure> {
    let (spec, snap) = session.args().snap(ImageQuery::source())?;
    session.args().finish()?;
    let image = session.image(&spec, OpenOptions::read_write()).await?;
    let task = session.task("Rolling back to snapshot");
    let rolled_back = image.snap_rollback(&snap, &task.library()).await;
    task.end(rolled_back)
        .map_err(|error| error.failed("rollback failed"))
}

pub(super) async fn protect(session: &Session) -> Result<(), Failure> {
    let (spec, snap) = session.args().snap(ImageQuery::source())?;
    session.args().finish()?;
    let image = session.image(&spec, OpenOptions::read_write()).await?;
    let done = image.snap_protect(&snap).await;
    done.map_err(|error| match error.kind {
        ErrorKind::SnapProtected => Failure::message("rbd: snap is already protected", error.errno.0),
        _ => error.failed("protecting snap failed"),
    })
}

pub(super) async fn unprotect(session: &Session) -> Result<(), Failure> {
    let args = session.args();
    let image = args.image_or_id(ImageQuery::source().snap(SnapRule::Required))?;
    args.finish()?;
    let (snap, image) = without_snap(image);
    let Some(snap) = snap else {
        return Err(Failure::invalid("snapshot name was not specified"));
    };
    let image = session.image_ref(&image, OpenOptions::read_write()).await?;
    let done = image.snap_unprotect(&snap).await;
    done.map_err(|error| match error.errno {
        Errno::EINVAL => Failure::invalid("snap is already unprotected"),
        _ => error.failed("unprotecting snap failed"),
    })
}

pub(super) async fn limit_set(session: &Session) -> Result<(), Failure> {
    let limit = session.args().required_limit()?;
    set_limit(session, limit, "setting snapshot limit failed").await
}

pub(super) async fn limit_clear(session: &Session) -> Result<(), Failure> {
    set_limit(session, u64::MAX, "removing snapshot limit failed").await
}

async fn set_limit(session: &Session, limit: u64, what: &str) -> Result<(), Failure> {
    let spec = session.args().image(ImageQuery::source())?;
    session.args().finish()?;
    let image = session.image(&spec, OpenOptions::read_write()).await?;
    snapshot::set_limit(&image, limit)
        .await
        .map_err(|error| error.failed(what))
}

/// When a snapshot was taken; nothing for one of an image of format 1, which does not know.
fn taken_at(snap: &SnapRecord) -> String {
    match snap.timestamp.seconds {
        0 => String::new(),
        seconds => timestamp(seconds.into()),
    }
}
