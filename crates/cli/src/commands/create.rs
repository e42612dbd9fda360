//! `rbd create`.

use ferry_cls::rbd::feature;
use ferry_image::admin::create::{self, CreateOptions};
use ferry_image::{ImageError, OpenOptions};
use ferry_store::Errno;

use super::error::Explain as _;
use super::session::Session;
use crate::exit::{EINVAL, Failure};
use crate::grammar::ImageOptions;
use crate::spec::{Check, ImageQuery, ImageSpec};

pub(super) async fn run(session: &Session) -> Result<(), Failure> {
    let args = session.args();
    let spec = args.image(ImageQuery::source().check(Check::Full))?;
    let options = ImageOptions::from_args(args)?.or_settings(&session.invocation().config_overrides);
    let size_bytes = args.required_size_bytes()?;
    args.finish()?;
    warn(&options);
    let options = match options.format {
        Some(1) => format_1(&options, size_bytes)?,
        _ => create_options(&options, size_bytes, "create error")?,
    };
    let io = session.place_of(&spec).await?;
    if args.flag("thick-provision") && !options.format_1 {
        let task = session.bytes_task("Thick provisioning");
        let made = create::create_thick(&io, &spec.image, &options, &task.library()).await;
        if let Err(error) = &made
            && error.errno == Errno::EEXIST
        {
            task.forget();
            return made.map_err(|error| error.failed("create error"));
        }
        return task.end(made).map_err(|error| error.failed("create error"));
    }
    create::create(&io, &spec.image, &options)
        .await
        .map_err(|error| error.failed("create error"))?;
    if args.flag("thick-provision") {
        fill(session, &spec).await?;
    }
    Ok(())
}

/// Prints what the options are worth warning of.
pub(super) fn warn(options: &ImageOptions) {
    for warning in &options.warnings {
        eprintln!("{warning}");
    }
}

/// Ceph's override for new images of format 1.
const ALLOW_FORMAT_1: &str = "RBD_FORCE_ALLOW_V1";

/// As Ceph's `rbd`: only on demand, whatever the value of the variable.
fn format_1(options: &ImageOptions, size_bytes: u64) -> Result<CreateOptions, Failure> {
    if std::env::var_os(ALLOW_FORMAT_1).is_none() {
        return Err(Failure::errno("create error", EINVAL).with_line(format!(
            "rbd: note: images of format 1 are for old clients; {ALLOW_FORMAT_1}=1 in the environment makes one all the same"
        )));
    }
    Ok(CreateOptions {
        size_bytes,
        order: options.order,
        stripe_unit_bytes: options.stripe_unit_bytes.unwrap_or(0),
        stripe_count: options.stripe_count.unwrap_or(0),
        data_pool: options.data_pool.clone(),
        format_1: true,
        features: None,
    })
}

/// What the library is told about a new image of format 2. `what` words the refusal of format 1.
pub(super) fn create_options(
    options: &ImageOptions,
    size_bytes: u64,
    what: &str,
) -> Result<CreateOptions, Failure> {
    refuse_format_1(options, what)?;
    let features = match options.features {
        None if options.features_clear != 0 => Some(feature::DEFAULT & !options.features_clear),
        features => features,
    };
    Ok(CreateOptions {
        size_bytes,
        order: options.order,
        stripe_unit_bytes: options.stripe_unit_bytes.unwrap_or(0),
        stripe_count: options.stripe_count.unwrap_or(0),
        data_pool: options.data_pool.clone(),
        format_1: false,
        features,
    })
}

/// Ceph's own answer to a new image of format 1.
pub(super) fn refuse_format_1(options: &ImageOptions, what: &str) -> Result<(), Failure> {
    if options.format == Some(1) {
        return Err(Failure::errno(what, EINVAL)
            .with_line("rbd: note: only 'rbd create' makes images of format 1; use --image-format 2"));
    }
    Ok(())
}

async fn fill(session: &Session, spec: &ImageSpec) -> Result<(), Failure> {
    let image = session.image(spec, OpenOptions::read_write()).await?;
    let task = session.bytes_task("Thick provisioning");
    let written = async {
        create::fill(&image, &task.library()).await?;
        image.flush().await
    }
    .await;
    let Err(error) = task.end(written) else {
        return Ok(());
    };
    // Nothing half-made remains; what cannot be taken back is told as well.
    let io = image.io().clone();
    let taken_back = async {
        image.close().await?;
        ferry_image::admin::remove::remove(&io, &spec.image, &ferry_image::Progress::silent()).await
    }
    .await;
    let failure = error.failed("thick provisioning error");
    Err(match taken_back {
        Ok(()) => failure,
        Err(error) => failure.with_line(left_behind(spec, &error)),
    })
}

/// The line for an image that could neither be finished nor removed.
pub(super) fn left_behind(spec: &ImageSpec, error: &ImageError) -> String {
    match error.errno {
        Errno::ENOENT => format!("rbd: note: image {spec} was not made"),
        _ => format!("rbd: note: image {spec} is incomplete and could not be removed: {error}"),
    }
}
