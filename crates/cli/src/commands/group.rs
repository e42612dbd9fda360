//! `rbd group *`.

use ferry_cls::rbd::{GroupSnapshot, GroupSnapshotState};
use ferry_image::group::{self, Group, GroupImage};
use ferry_image::{ErrorKind, ImageError};
use ferry_store::{Errno, Store};

use super::error::Explain as _;
use super::session::Session;
use crate::exit::Failure;
use crate::output::{Align, Document, Node, TextTable};
use crate::spec::{ImageQuery, ImageRef, ImageSpec};

pub(super) async fn create(session: &Session) -> Result<(), Failure> {
    let spec = only_group(session)?;
    let io = session.place_of(&spec).await?;
    group::create(&io, &spec.image)
        .await
        .map_err(|error| match error.errno {
            // The line says it all.
            Errno::EEXIST => Failure::errno("create error", error.errno.0),
            _ => error.failed("create error"),
        })
}

pub(super) async fn list(session: &Session) -> Result<(), Failure> {
    let args = session.args();
    let place = args.pool_spec()?;
    let format = args.output_format()?;
    args.finish()?;
    let io = session.place(&place).await?;
    let names = group::list(&io)
        .await
        .map_err(|error| error.failed("listing groups failed"))?;
    session.print(
        format,
        || lines(&names),
        || Document::new("groups", Node::list_of("name", &names)),
    )
}

pub(super) async fn remove(session: &Session) -> Result<(), Failure> {
    let spec = only_group(session)?;
    let io = session.place_of(&spec).await?;
    group::remove(&io, &spec.image)
        .await
        .map_err(|error| error.failed("remove error"))
}

pub(super) async fn rename(session: &Session) -> Result<(), Failure> {
    let args = session.args();
    let source = args.image(ImageQuery::group())?;
    let dest = args.image(ImageQuery::dest_group().inherit(&source))?;
    args.finish()?;
    for (what, from, to) in [
        ("pool", &source.pool, &dest.pool),
        ("namespace", &source.namespace, &dest.namespace),
    ] {
        if from != to {
            let line = format!("group rename across {what}s not supported");
            return Err(
                Failure::invalid(line).with_line(format_args!("source {what}: {from}, dest {what}: {to}"))
            );
        }
    }
    let io = session.place_of(&source).await?;
    group::rename(&io, &source.image, &dest.image)
        .await
        .map_err(|error| error.failed("failed to rename group"))
}

pub(super) async fn image_add(session: &Session) -> Result<(), Failure> {
    let args = session.args();
    let spec = args.image(ImageQuery::group_of_image())?;
    let image = args.image(ImageQuery::image_of_group())?;
    args.finish()?;
    check_namespaces(&spec, &image.namespace)?;
    let group_io = session.place_of(&spec).await?;
    let image_io = session.place_of(&image).await?;
    let added = match Group::open(&group_io, &spec.image).await {
        Ok(group) => group.add_image(&image_io, &image.image).await,
        Err(error) => Err(error),
    };
    added.map_err(|error| error.failed("add image error"))
}

pub(super) async fn image_remove(session: &Session) -> Result<(), Failure> {
    let args = session.args();
    let spec = args.image(ImageQuery::group_of_image())?;
    let image = args.image_or_id(ImageQuery::image_of_group())?;
    args.finish()?;
    let place = match &image {
        ImageRef::Name(spec) => spec.pool_spec(),
        ImageRef::Id { place, .. } => place.clone(),
    };
    check_namespaces(&spec, &place.namespace)?;
    let group_io = session.place_of(&spec).await?;
    let image_io = session.place(&place).await?;
    let removed = match (Group::open(&group_io, &spec.image).await, &image) {
        (Err(error), _) => Err(error),
        (Ok(group), ImageRef::Name(spec)) => group.remove_image(&image_io, &spec.image).await,
        (Ok(group), ImageRef::Id { id, .. }) => group.remove_image_by_id(&image_io, id).await,
    };
    removed.map_err(|error| error.failed("remove image error"))
}

fn check_namespaces(group: &ImageSpec, image_namespace: &str) -> Result<(), Failure> {
    if group.namespace == image_namespace {
        return Ok(());
    }
    Err(Failure::invalid("group and image namespace must match."))
}

pub(super) async fn image_list(session: &Session) -> Result<(), Failure> {
    let args = session.args();
    let spec = args.image(ImageQuery::group())?;
    let format = args.output_format()?;
    args.finish()?;
    let io = session.place_of(&spec).await?;
    let images = match Group::open(&io, &spec.image).await {
        Ok(group) => group.images().await,
        Err(error) => none_if_missing(error),
    };
    let images = images.map_err(|error| error.failed("listing the images of the group failed"))?;
    let mut rows = Vec::new();
    for image in &images {
        rows.push((pool_name(image).await?, image));
    }
    let namespace = &spec.namespace;
    session.print(
        format,
        || {
            let lines: Vec<String> = rows
                .iter()
                .map(|(pool, image)| line(pool, namespace, image))
                .collect();
            self::lines(&lines)
        },
        || {
            let mut list = Node::list("image");
            for (pool, image) in &rows {
                list.add(
                    Node::map()
                        .with("image", &image.name)
                        .with("pool", pool)
                        .with("namespace", namespace)
                        .with("state", u64::from(!image.is_attached)),
                );
            }
            Document::new("images", list)
        },
    )
}

async fn pool_name(image: &GroupImage) -> Result<String, Failure> {
    let pool = image.io.pool();
    let store: &dyn Store = &**image.io.store();
    let pools = store
        .pool_list()
        .await
        .map_err(|error| error.failed("listing pools failed"))?;
    let found = pools.into_iter().find(|known| known.id == pool);
    Ok(found.map_or_else(|| format!("<missing image pool {pool}>"), |known| known.name))
}

fn line(pool: &str, namespace: &str, image: &GroupImage) -> String {
    let slash = if namespace.is_empty() { "" } else { "/" };
    let state = if image.is_attached { "" } else { "incomplete" };
    format!("{pool}/{namespace}{slash}{} {state}", image.name)
}

fn lines(lines: &[String]) -> String {
    lines.iter().flat_map(|line| [line, "\n"]).collect()
}

/// Ceph's `rbd` shows a group that is not there as one that is empty.
fn none_if_missing<T>(error: ImageError) -> Result<Vec<T>, ImageError> {
    match error.kind {
        ErrorKind::GroupMissing => Ok(Vec::new()),
        _ => Err(error),
    }
}

pub(super) async fn snap_create(session: &Session) -> Result<(), Failure> {
    let (spec, snap) = session.args().snap(ImageQuery::group())?;
    session.args().finish()?;
    let quiesce = !session.args().flag("skip-quiesce");
    let io = session.place_of(&spec).await?;
    let created = match Group::open(&io, &spec.image).await {
        Ok(group) => group.create_snapshot(&snap, quiesce).await,
        Err(error) => Err(error),
    };
    created.map_err(|error| error.failed("failed to create group snapshot"))
}

pub(super) async fn snap_list(session: &Session) -> Result<(), Failure> {
    let args = session.args();
    let spec = args.image(ImageQuery::group())?;
    let format = args.output_format()?;
    args.finish()?;
    let io = session.place_of(&spec).await?;
    let snapshots = match Group::open(&io, &spec.image).await {
        Ok(group) => group.snapshots().await,
        Err(error) => none_if_missing(error),
    };
    let snapshots = snapshots.map_err(|error| error.failed("listing the snapshots of the group failed"))?;
    session.print(
        format,
        || {
            if snapshots.is_empty() {
                return String::new();
            }
            let mut table = TextTable::new(&[("NAME", Align::Left), ("STATUS", Align::Right)]);
            for snapshot in &snapshots {
                table.row([&*snapshot.name, state(snapshot)]);
            }
            table.to_string()
        },
        || {
            let mut list = Node::list("group_snap");
            for snapshot in &snapshots {
                list.add(
                    Node::map()
                        .with("snapshot", &snapshot.name)
                        .with("state", state(snapshot)),
                );
            }
            Document::new("group_snaps", list)
        },
    )
}

fn state(snapshot: &GroupSnapshot) -> &'static str {
    match snapshot.state {
        GroupSnapshotState::Complete => "ok",
        GroupSnapshotState::Incomplete => "incomplete",
    }
}

pub(super) async fn snap_remove(session: &Session) -> Result<(), Failure> {
    let (spec, snap) = session.args().snap(ImageQuery::group())?;
    session.args().finish()?;
    let io = session.place_of(&spec).await?;
    let removed = async {
        let group = Group::open(&io, &spec.image).await?;
        let snapshot = group.snapshot(&snap).await?;
        group.remove_snapshot(&snapshot).await
    };
    removed
        .await
        .map_err(|error: ImageError| error.failed("failed to remove group snapshot"))
}

pub(super) async fn snap_rename(session: &Session) -> Result<(), Failure> {
    let args = session.args();
    let (spec, snap) = args.snap(ImageQuery::group())?;
    let new_name = match args.text("dest-snap").filter(|name| !name.is_empty()) {
        Some(name) => name,
        None => args.positional("destination snapshot name")?,
    };
    args.finish()?;
    if new_name.contains(['/', '@']) {
        return Err(Failure::invalid(format_args!("invalid snap name '{new_name}'")));
    }
    let io = session.place_of(&spec).await?;
    let renamed = match Group::open(&io, &spec.image).await {
        Ok(group) => group.rename_snapshot(&snap, new_name).await,
        Err(error) => Err(error),
    };
    renamed.map_err(|error| error.failed("failed to rename group snapshot"))
}

pub(super) async fn snap_rollback(session: &Session) -> Result<(), Failure> {
    let (spec, snap) = session.args().snap(ImageQuery::group())?;
    session.args().finish()?;
    let io = session.place_of(&spec).await?;
    let task = session.task("Rolling back to group snapshot");
    let rolled_back = match Group::open(&io, &spec.image).await {
        Ok(group) => group.roll_back(&snap, &task.library()).await,
        Err(error) => Err(error),
    };
    task.end(rolled_back)
        .map_err(|error| error.failed("rollback group to snapshot failed"))
}

/// The group of a command that names nothing else.
fn only_group(session: &Session) -> Result<ImageSpec, Failure> {
    let spec = session.args().image(ImageQuery::group())?;
    session.args().finish()?;
    Ok(spec)
}
