//! `rbd clone`, `rbd flatten` and `rbd children`.

use ferry_image::layering::children::{ChildInfo, children as list_children, descendants};
use ferry_image::layering::clone::{CloneFormat, CloneOptions, clone as make_clone};
use ferry_image::{ErrorKind, ImageKey, OpenOptions, SnapKey, find_snap};
use ferry_store::{Errno, SnapId};

use super::create::warn;
use super::error::Explain as _;
use super::session::{Session, open_failed};
use crate::exit::Failure;
use crate::grammar::ImageOptions;
use crate::output::{Document, Node};
use crate::spec::{Check, ImageQuery, SnapRule};

pub(super) async fn run(session: &Session) -> Result<(), Failure> {
    const WHAT: &str = "clone error";
    let args = session.args();
    let (parent, snap) = args.snap(ImageQuery::source())?;
    let child = args.image(ImageQuery::dest().check(Check::Full))?;
    let options = ImageOptions::of_format_2(args)?;
    args.finish()?;
    warn(&options);
    let format = session.invocation().config_overrides.clone_format();
    let options = CloneOptions {
        order: options.order,
        stripe_unit_bytes: options.stripe_unit_bytes,
        stripe_count: options.stripe_count,
        data_pool: options.data_pool,
        features: options.features,
        features_clear: options.features_clear,
        format: format.map(|number| match number {
            1 => CloneFormat::One,
            _ => CloneFormat::Two,
        }),
    };
    let parent_io = session.place_of(&parent).await?;
    let child_io = session.place_of(&child).await?;
    let snap = SnapKey::Name(snap);
    make_clone(
        &parent_io,
        &parent.image,
        &snap,
        &child_io,
        &child.image,
        &options,
    )
    .await
    .map_err(|error| match error.errno {
        Errno::EXDEV => error.said("rbd: clone v2 required for cross-namespace clones."),
        _ => error.failed(WHAT),
    })
}

pub(super) async fn flatten(session: &Session) -> Result<(), Failure> {
    let spec = session.args().image(ImageQuery::source())?;
    session.args().finish()?;
    let image = session.image(&spec, OpenOptions::read_write()).await?;
    let task = session.task("Image flatten");
    let flattened = image.flatten(&task.library()).await;
    task.end(flattened).map_err(|error| error.failed("flatten error"))
}

pub(super) async fn children(session: &Session) -> Result<(), Failure> {
    let args = session.args();
    let spec = args.image(ImageQuery::source().snap(SnapRule::Optional))?;
    let format = args.output_format()?;
    args.finish()?;
    let (all, deep) = (args.flag("all"), args.flag("descendants"));
    let key = match (&spec.snap, args.number("snap-id")) {
        (Some(_), Some(_)) => {
            return Err(Failure::invalid(
                "trying to access snapshot using both name and id.",
            ));
        }
        (Some(name), None) => Some(SnapKey::Name(name.clone())),
        (None, id) => id.map(|id| SnapKey::Id(SnapId(id))),
    };
    let io = session.place_of(&spec).await?;
    let options = OpenOptions::read_only().ignoring_migration().ignoring_parent();
    let image = session
        .open_image(&io, ImageKey::Name(&spec.image), options)
        .await?;
    let snap = match &key {
        Some(key) => {
            let found = find_snap(&image.header(), key);
            Some(found.map_err(|error| open_failed(error, &spec.image))?)
        }
        None => None,
    };
    let found = if deep {
        descendants(&io, image.id(), snap).await
    } else {
        list_children(&io, image.id(), snap).await
    };
    let mut found = found.map_err(|error| error.failed("listing children failed"))?;
    found.retain(|child| all || !child.trash);
    session.print(
        format,
        || found.iter().map(|child| format!("{}\n", text(child))).collect(),
        || document(&found, all),
    )
}

/// `POOL/[NAMESPACE/]IMAGE`, and where it is if it has no name.
pub(super) fn text(child: &ChildInfo) -> String {
    let namespace = match child.pool_namespace.as_str() {
        "" => String::new(),
        namespace => format!("{namespace}/"),
    };
    let trash = match child.trash {
        true => format!(" (trash {})", child.image_id),
        false => String::new(),
    };
    format!("{}/{namespace}{}{trash}", child.pool, child.image)
}

fn document(found: &[ChildInfo], all: bool) -> Document {
    let mut list = Node::list("child");
    for child in found {
        let mut node = Node::map()
            .with("pool", &child.pool)
            .with("pool_namespace", &child.pool_namespace)
            .with("image", &child.image);
        if all {
            node = node.with("id", &child.image_id).with("trash", child.trash);
        }
        list.add(node);
    }
    Document::new("children", list)
}

/// Cuts all clones of a snapshot loose: `snap rm --force`.
pub(super) async fn flatten_children(
    session: &Session,
    image: &ferry_image::Image,
    snap: SnapId,
) -> Result<(), Failure> {
    let failed = |error: ferry_image::ImageError| error.failed("failed to remove snapshot");
    let found = list_children(image.io(), image.id(), Some(snap))
        .await
        .map_err(failed)?;
    for child in found {
        let io = ferry_image::admin::pool::open(session.store().await?, &child.pool, &child.pool_namespace)
            .await
            .map_err(failed)?;
        let clone = session
            .open_image(&io, ImageKey::Id(&child.image_id), OpenOptions::read_write())
            .await?;
        let flattened = clone.flatten(&ferry_image::Progress::silent()).await;
        match flattened {
            // Only its snapshots still show the parent.
            Err(error) if error.errno == Errno::EINVAL && error.kind == ErrorKind::Other => {}
            flattened => flattened.map_err(failed)?,
        }
    }
    Ok(())
}
