//! `rbd copy` and `rbd deep copy`.

use ferry_image::admin::copy::{self, ImageCopyOptions};
use ferry_image::{OpenOptions, SnapKey};

use super::create::warn;
use super::error::Explain as _;
use super::session::Session;
use crate::exit::Failure;
use crate::grammar::ImageOptions;
use crate::spec::{Check, ImageQuery, SnapRule};

/// Copies one version, or with `deep` the whole history.
pub(super) async fn run(session: &Session, deep: bool) -> Result<(), Failure> {
    let args = session.args();
    let mut from = args.image(ImageQuery::source().snap(SnapRule::Optional))?;
    let to = args.image(ImageQuery::dest().check(Check::Full).snap(SnapRule::Optional))?;
    if to.snap.is_some() {
        return Err(Failure::invalid(
            "destination snapshot name specified for a command that doesn't use it",
        ));
    }
    let asked = ImageOptions::of_format_2(args)?;
    args.finish()?;
    warn(&asked);
    let options = ImageCopyOptions {
        order: asked.order,
        stripe_unit_bytes: asked.stripe_unit_bytes,
        stripe_count: asked.stripe_count,
        features: asked.features,
        features_clear: asked.features_clear,
        data_pool: asked.data_pool,
        sparse_size_bytes: if deep {
            None
        } else {
            args.size_bytes("sparse-size")
        },
    };
    let open = match from.snap.take() {
        Some(snap) => OpenOptions::read_only().at(SnapKey::Name(snap)),
        None => OpenOptions::read_only(),
    };
    let image = session.image(&from, open).await?;
    let io = session.place_of(&to).await?;
    let (task, what) = match deep {
        true => (session.task("Image deep copy"), "deep copy failed"),
        false => (session.task("Image copy"), "copy failed"),
    };
    let progress = task.library();
    let copied = match deep {
        true => {
            let flatten = args.flag("flatten");
            copy::deep_copy(&image, &io, &to.image, &options, flatten, &progress).await
        }
        false => copy::copy(&image, &io, &to.image, &options, &progress).await,
    };
    task.end(copied).map_err(|error| error.failed(what))
}
