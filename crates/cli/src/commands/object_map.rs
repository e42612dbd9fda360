//! `rbd object-map check` and `rbd object-map rebuild`.
//!
//! Both work on the maps of the head and of all snapshots at once; a snapshot that is named must exist.

use ferry_image::image::find_snap;
use ferry_image::object_map::rebuild;
use ferry_image::{Image, OpenOptions, SnapKey};

use super::error::Explain as _;
use super::session::{Session, open_failed};
use crate::exit::Failure;
use crate::spec::{ImageQuery, SnapRule};

async fn image(session: &Session) -> Result<Image, Failure> {
    let args = session.args();
    let mut spec = args.image(ImageQuery::source().snap(SnapRule::Optional))?;
    args.finish()?;
    let snap = spec.snap.take();
    let image = session.image(&spec, OpenOptions::read_write()).await?;
    if let Some(snap) = snap {
        find_snap(&image.header(), &SnapKey::Name(snap)).map_err(|error| open_failed(error, &spec.image))?;
    }
    Ok(image)
}

pub(super) async fn check(session: &Session) -> Result<(), Failure> {
    let image = image(session).await?;
    let task = session.task("Object Map Check");
    let verified = rebuild::verify(&image, &task.library()).await;
    let wrong = task
        .end(verified)
        .map_err(|error| error.failed("checking object map failed"))?;
    if let Some(first) = wrong.first() {
        eprintln!(
            "rbd: note: {} wrong entries, the first for object {} ({}: {:?}, should be {:?}); \
             the map is marked invalid, repair it with 'rbd object-map rebuild {}'",
            wrong.len(),
            first.object_no.0,
            if first.snap.is_head() {
                "head".to_owned()
            } else {
                format!("snapshot id {}", first.snap)
            },
            first.marked,
            first.actual,
            image.name(),
        );
    }
    Ok(())
}

pub(super) async fn rebuild(session: &Session) -> Result<(), Failure> {
    let image = image(session).await?;
    let task = session.task("Object Map Rebuild");
    let rebuilt = image.rebuild_object_map(&task.library()).await;
    task.end(rebuilt)
        .map_err(|error| error.failed("rebuilding object map failed"))
}
