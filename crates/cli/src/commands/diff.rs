//! `rbd diff`.

use ferry_image::diff::{Diff, DiffExtent};
use ferry_image::image::find_snap;
use ferry_image::{Image, ImageError, OpenOptions, SnapKey};
use ferry_store::SnapId;
use futures::stream::TryStreamExt as _;

use super::error::Explain as _;
use super::session::Session;
use crate::exit::Failure;
use crate::grammar::Args;
use crate::output::{Align, Document, Node, TextTable};
use crate::spec::{ImageQuery, SnapRule};

pub(super) async fn run(session: &Session) -> Result<(), Failure> {
    let args = session.args();
    let mut spec = args.image(ImageQuery::source().snap(SnapRule::Optional))?;
    let format = args.output_format()?;
    args.finish()?;
    let options = match spec.snap.take() {
        Some(snap) => OpenOptions::read_only().at(SnapKey::Name(snap)),
        None => OpenOptions::read_only(),
    };
    let image = session.image(&spec, options).await?;
    let found = async {
        let from = from_snap(args, &image)?;
        let diff = Diff::new(&image, from, args.flag("whole-object")).await?;
        let extents: Vec<Vec<DiffExtent>> = diff.extents().try_collect().await?;
        Ok(extents)
    }
    .await;
    let extents: Vec<DiffExtent> = found
        .map_err(|error: ImageError| error.failed("diff error"))?
        .into_iter()
        .flatten()
        .collect();
    session.print(format, || table(&extents), || document(&extents))
}

/// The snapshot that `--from-snap` names.
pub(super) fn from_snap(args: &Args, image: &Image) -> Result<Option<SnapId>, ImageError> {
    let name = args.text("from-snap").filter(|name| !name.is_empty());
    name.map(|name| find_snap(&image.header(), &SnapKey::Name(name.to_owned())))
        .transpose()
}

fn table(extents: &[DiffExtent]) -> String {
    if extents.is_empty() {
        return String::new();
    }
    let mut table = TextTable::new(&[
        ("Offset", Align::Left),
        ("Length", Align::Left),
        ("Type", Align::Left),
    ]);
    for extent in extents {
        let kind = if extent.exists { "data" } else { "zero" };
        table.row([
            extent.offset.0.to_string(),
            extent.length_bytes.to_string(),
            kind.to_owned(),
        ]);
    }
    table.to_string()
}

fn document(extents: &[DiffExtent]) -> Document {
    let mut list = Node::list("extent");
    for extent in extents {
        list.add(
            Node::map()
                .with("offset", extent.offset.0)
                .with("length", extent.length_bytes)
                .with("exists", if extent.exists { "true" } else { "false" }),
        );
    }
    Document::new("extents", list)
}
