//! `rbd du`.

use ferry_image::admin::list;
use ferry_image::admin::usage::{self, ImageUsage, UsageRow};
use ferry_image::{ErrorKind, SnapKey};
use ferry_store::IoCtx;

use super::error::Explain as _;
use super::session::Session;
use crate::exit::Failure;
use crate::output::{Align, Document, Node, TextTable, bytes};
use crate::spec::{ImageQuery, SnapRule};

const WHAT: &str = "du failed";

pub(super) async fn run(session: &Session) -> Result<(), Failure> {
    let args = session.args();
    let named = args.image_if_named(ImageQuery::source().snap(SnapRule::Optional))?;
    let format = args.output_format()?;
    args.finish()?;
    let from_snap = args.text("from-snap").filter(|name| !name.is_empty());
    if from_snap.is_some() && named.image.is_none() {
        return Err(Failure::invalid("specify --from-snap with an image only"));
    }
    let io = session.place(&named.place).await?;
    let of_pool = named.image.is_none();
    let mut images = match named.image {
        Some(name) => vec![one(session, &io, &name, named.snap, from_snap).await?],
        None => all(session, &io).await?,
    };
    if args.flag("merge-snapshots") {
        images.iter_mut().for_each(merge);
    }
    session.print(format, || table(&images), || document(&images, of_pool))
}

async fn one(
    session: &Session,
    io: &IoCtx,
    name: &str,
    snap: Option<String>,
    from_snap: Option<&str>,
) -> Result<ImageUsage, Failure> {
    let exact = session.args().flag("exact");
    // With a start, the rows between it and the snapshot are needed.
    let snap = snap.map(SnapKey::Name);
    let asked = if from_snap.is_some() { None } else { snap.as_ref() };
    let mut found = usage::usage(io, name, asked, exact).await.map_err(|error| {
        if error.kind == ErrorKind::ImageMissing {
            eprintln!("specified image {name} is not found.");
        }
        error.failed(WHAT)
    })?;
    if let Some(from) = from_snap {
        let index = position(&found, from)
            .ok_or_else(|| Failure::message(format!("specified snapshot {from} is not found."), 2))?;
        found.rows.drain(..=index);
        if let Some(SnapKey::Name(snap)) = snap {
            let index = position(&found, &snap)
                .ok_or_else(|| Failure::message(format!("specified snapshot {snap} is not found."), 2))?;
            found.rows.truncate(index + 1);
        }
    }
    warn_if_slow(&found);
    Ok(found)
}

fn position(usage: &ImageUsage, snap: &str) -> Option<usize> {
    usage
        .rows
        .iter()
        .position(|row| row.snapshot.as_ref().is_some_and(|(name, _)| name == snap))
}

async fn all(session: &Session, io: &IoCtx) -> Result<Vec<ImageUsage>, Failure> {
    let exact = session.args().flag("exact");
    let mut images = Vec::new();
    for name in list::names(io).await.map_err(|error| error.failed(WHAT))? {
        match usage::usage(io, &name, None, exact).await {
            Ok(found) => {
                warn_if_slow(&found);
                images.push(found);
            }
            // Removed meanwhile.
            Err(error) if error.kind == ErrorKind::ImageMissing => {}
            Err(error) => return Err(error.context(format!("image '{name}'")).failed(WHAT)),
        }
    }
    Ok(images)
}

fn warn_if_slow(usage: &ImageUsage) {
    const SLOW: &str = "operation may be slow.";
    let name = &usage.name;
    if !usage.has_fast_diff {
        eprintln!("warning: fast-diff map is not enabled for {name}. {SLOW}");
    }
    for row in usage.rows.iter().filter(|row| row.is_map_invalid) {
        let snap = row
            .snapshot
            .as_ref()
            .map_or_else(String::new, |(snap, _)| format!("@{snap}"));
        eprintln!("warning: fast-diff map is invalid for {name}{snap}. {SLOW}");
    }
}

/// One row for an image and all its snapshots.
fn merge(usage: &mut ImageUsage) {
    let used_bytes = usage.rows.iter().map(|row| row.used_bytes).sum();
    usage.rows = usage
        .rows
        .pop()
        .map(|last| UsageRow { used_bytes, ..last })
        .into_iter()
        .collect();
}

fn totals(images: &[ImageUsage]) -> (u64, u64) {
    let rows = || images.iter().flat_map(|image| &image.rows);
    // Where no head is shown, a snapshot was asked for, and all count.
    let of_heads = rows().any(|row| row.snapshot.is_none());
    (
        rows()
            .filter(|row| row.snapshot.is_none() || !of_heads)
            .map(|row| row.provisioned_bytes)
            .sum(),
        rows().map(|row| row.used_bytes).sum(),
    )
}

fn table(images: &[ImageUsage]) -> String {
    let mut table = TextTable::new(&[
        ("NAME", Align::Left),
        ("PROVISIONED", Align::Right),
        ("USED", Align::Right),
    ]);
    for image in images {
        for row in &image.rows {
            let name = match &row.snapshot {
                Some((snapshot, _)) => format!("{}@{snapshot}", image.name),
                None => image.name.clone(),
            };
            table.row([name, bytes(row.provisioned_bytes), bytes(row.used_bytes)]);
        }
    }
    if table.len() > 1 {
        let (provisioned_bytes, used_bytes) = totals(images);
        table.row(["<TOTAL>".to_owned(), bytes(provisioned_bytes), bytes(used_bytes)]);
    }
    table.to_string()
}

fn document(images: &[ImageUsage], of_pool: bool) -> Document {
    let mut list = Node::list("image");
    for image in images {
        for row in &image.rows {
            let mut node = Node::map().with("name", &image.name).with("id", &image.id);
            if let Some((name, id)) = &row.snapshot {
                node.set("snapshot", name);
                node.set("snapshot_id", id.0);
            }
            list.add(
                node.with("provisioned_size", row.provisioned_bytes)
                    .with("used_size", row.used_bytes),
            );
        }
    }
    let mut root = Node::map().with("images", list);
    if of_pool {
        let (provisioned_bytes, used_bytes) = totals(images);
        root.set("total_provisioned_size", provisioned_bytes);
        root.set("total_used_size", used_bytes);
    }
    Document::new("stats", root)
}
