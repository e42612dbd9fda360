//! `rbd feature enable` and `rbd feature disable`.

use ferry_cls::rbd::feature;
use ferry_image::OpenOptions;

use super::error::Explain as _;
use super::session::Session;
use crate::exit::Failure;
use crate::spec::ImageQuery;

pub(super) async fn enable(session: &Session) -> Result<(), Failure> {
    update(session, true).await
}

pub(super) async fn disable(session: &Session) -> Result<(), Failure> {
    update(session, false).await
}

async fn update(session: &Session, enabled: bool) -> Result<(), Failure> {
    let args = session.args();
    let spec = args.image(ImageQuery::source())?;
    let mut features = 0;
    while let Some(names) = args.next_positional() {
        for name in names.split(',') {
            features |= feature::from_name(name)
                .ok_or_else(|| Failure::message("rbd: the argument for option is invalid", 1))?;
        }
    }
    args.finish()?;
    if features == 0 {
        return Err(Failure::invalid("at least one feature name must be specified"));
    }
    let image = session.image(&spec, OpenOptions::read_write()).await?;
    image
        .update_features(features, enabled)
        .await
        .map_err(|error| error.failed("failed to update image features"))
}
