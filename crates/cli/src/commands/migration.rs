//! `rbd migration *`: the four verbs, and the settings of an execute.

use std::sync::atomic::{AtomicBool, Ordering};

use ferry_image::layering::children::descendants;
use ferry_image::migration::abort::{AbortOptions, abort as abort_verb};
use ferry_image::migration::commit::commit as commit_verb;
use ferry_image::migration::execute::execute_with as execute_verb;
use ferry_image::migration::pair::{self, Found};
use ferry_image::migration::prepare::{PrepareOptions, prepare as prepare_verb};
use ferry_image::migration::record::Side;
use ferry_image::migration::settings::{self, ExecuteSettings, OnNoSpace, Rate, SettingsChange};

use super::create::{refuse_format_1, warn};
use super::error::Explain as _;
use super::session::{Session, say};
use crate::VERSION;
use crate::exit::{EBUSY, EINVAL, EOPNOTSUPP, Failure};
use crate::grammar::{Args, ImageOptions};
use crate::output::bytes;
use crate::spec::{Check, ImageQuery, ImageSpec};

pub(super) async fn prepare(session: &Session) -> Result<(), Failure> {
    const WHAT: &str = "preparing migration failed";
    let args = session.args();
    for option in ["source-spec", "source-spec-path"] {
        if args.text(option).is_some() {
            return Err(not_yet(option));
        }
    }
    if args.flag("import-only") {
        return Err(not_yet("import-only"));
    }
    let source = args.image(ImageQuery::source())?;
    let dest = args.image_if_named(ImageQuery::dest().check(Check::Full))?;
    // Ceph takes all of the destination from the source only if nothing of it is named.
    let dest = match dest.into_image() {
        Some(dest) => dest,
        None => named_by_options(session, &source),
    };
    let options = ImageOptions::from_args(args)?;
    args.finish()?;
    warn(&options);
    refuse_format_1(&options, WHAT)?;
    let options = PrepareOptions {
        order: options.order,
        stripe_unit_bytes: options.stripe_unit_bytes,
        stripe_count: options.stripe_count,
        features: shared_features(session, &source, &options).await?,
        data_pool: options.data_pool,
        flatten: args.flag("flatten"),
    };
    let source_io = session.place_of(&source).await?;
    let dest_io = session.place_of(&dest).await?;
    prepare_verb(&source_io, &source.image, &dest_io, &dest.image, &options)
        .await
        .map_err(|error| error.failed(WHAT))
}

fn not_yet(option: &str) -> Failure {
    Failure::message(
        format!(
            "rbd: option '--{option}' is not implemented yet in Ferry {VERSION}: \
             images can only be migrated from pools of the same store"
        ),
        EOPNOTSUPP,
    )
}

/// The source's name, in the pool that the options name, if they name one.
fn named_by_options(session: &Session, source: &ImageSpec) -> ImageSpec {
    let args = session.args();
    let given = |option| {
        args.text(option)
            .filter(|text| !text.is_empty())
            .map(str::to_owned)
    };
    let (pool, namespace) = (given("dest-pool"), given("dest-namespace"));
    let elsewhere = pool.is_some() || namespace.is_some();
    ImageSpec {
        pool: pool.unwrap_or_else(|| source.pool.clone()),
        namespace: match namespace {
            Some(namespace) => namespace,
            None if elsewhere => String::new(),
            None => source.namespace.clone(),
        },
        image: source.image.clone(),
        snap: None,
    }
}

/// Feature bits that were asked for; `--image-shared` alone takes bits from those of the source.
async fn shared_features(
    session: &Session,
    source: &ImageSpec,
    options: &ImageOptions,
) -> Result<Option<u64>, Failure> {
    if options.features.is_some() || options.features_clear == 0 {
        return Ok(options.features);
    }
    let image = session
        .image(source, ferry_image::OpenOptions::read_only().ignoring_migration())
        .await?;
    let kept = image.header().features & !options.features_clear;
    let user_settable = ferry_cls::rbd::feature::DEFAULT;
    Ok(Some(kept & user_settable))
}

pub(super) async fn execute(session: &Session) -> Result<(), Failure> {
    let change = SettingsChange {
        zero_detect: session.args().flag("zero-detect").then_some(true),
        ..limits(session.args())
    };
    let spec = image(session)?;
    let io = session.place_of(&spec).await?;
    let task = session.task("Image migration");
    let told = AtomicBool::new(false);
    let told_of_space = AtomicBool::new(false);
    let name = spec.image.clone();
    let progress = task.library_of_execute(move |progress| {
        if progress.paused && !told.swap(true, Ordering::Relaxed) {
            eprintln!("rbd: note: the migration is paused; it goes on after 'rbd migration resume {name}'");
        }
        let told_already = told_of_space.swap(progress.no_space, Ordering::Relaxed);
        if progress.no_space && !told_already {
            eprintln!(
                "rbd: note: no space but what is left to clients; the migration goes on when there is more"
            );
        }
    });
    let executed = execute_verb(&io, &spec.image, &change, &progress).await;
    task.end(executed)
        .map_err(|error| error.failed("migration failed"))
}

/// The limits that were given.
fn limits(args: &Args) -> SettingsChange {
    let rate = args
        .number_or_auto("max-bytes-per-second")
        .map(|rate| match rate {
            None => Rate::Adaptive,
            Some(0) => Rate::Unlimited,
            Some(bytes) => Rate::BytesPerSecond(bytes),
        });
    let concurrency = args
        .number_or_auto("concurrency")
        .map(|number| number.and_then(|number| u16::try_from(number).ok()));
    let on_no_space = args.text("on-enospc").map(|word| match word {
        "fail" => OnNoSpace::Fail,
        _ => OnNoSpace::Pause,
    });
    SettingsChange {
        rate,
        concurrency,
        reserve_bytes: args.number_or_auto("reserve-bytes"),
        on_no_space,
        ..SettingsChange::default()
    }
}

pub(super) async fn throttle(session: &Session) -> Result<(), Failure> {
    let change = limits(session.args());
    let settings = change_settings(session, &change).await?;
    if change.is_empty() {
        say(&format!("{}\n", settings_text(&settings)))?;
    }
    Ok(())
}

pub(super) async fn pause(session: &Session, paused: bool) -> Result<(), Failure> {
    let change = SettingsChange {
        paused: Some(paused),
        ..SettingsChange::default()
    };
    change_settings(session, &change).await.map(|_| ())
}

async fn change_settings(session: &Session, change: &SettingsChange) -> Result<ExecuteSettings, Failure> {
    let spec = image(session)?;
    let io = session.place_of(&spec).await?;
    settings::change(&io, &spec.image, change)
        .await
        .map_err(|error| error.failed("changing the migration failed"))
}

/// Settings in one line: `max-bytes-per-second: 8 MiB, concurrency: auto, paused`.
pub(super) fn settings_text(settings: &ExecuteSettings) -> String {
    let rate = match settings.rate {
        Rate::Adaptive => "auto".to_owned(),
        Rate::Unlimited => "none".to_owned(),
        Rate::BytesPerSecond(rate) => bytes(rate),
    };
    let concurrency = settings
        .concurrency
        .map_or("auto".to_owned(), |number| number.to_string());
    let mut text = format!("max-bytes-per-second: {rate}, concurrency: {concurrency}");
    if let Some(reserve) = settings.reserve_bytes {
        text.push_str(&format!(", reserve-bytes: {}", bytes(reserve)));
    }
    for (word, is_on) in [
        (", on-enospc: fail", settings.on_no_space == OnNoSpace::Fail),
        (", zero-detect", settings.zero_detect),
        (", paused", settings.paused),
    ] {
        if is_on {
            text.push_str(word);
        }
    }
    text
}

pub(super) async fn commit(session: &Session) -> Result<(), Failure> {
    let spec = image(session)?;
    let io = session.place_of(&spec).await?;
    let found = pair::find(&io, &spec.image)
        .await
        .map_err(|error| error.failed("getting migration status failed"))?;
    match &found {
        Found::NotMigrating(_) => return Err(Failure::errno("getting migration status failed", EINVAL)),
        Found::Pair(pair) => check_descendants(session, &pair.target).await?,
        Found::Leftover(_) | Found::TrashEntry(_) => {}
    }
    let task = session.task("Commit image migration");
    let committed = commit_verb(&io, &spec.image, &task.library()).await;
    task.end(committed)
        .map_err(|error| error.failed("committing migration failed"))
}

/// Clones of the target get another parent. With `--force` they are named, without it the commit is refused.
async fn check_descendants(session: &Session, target: &Side) -> Result<(), Failure> {
    let found = descendants(&target.io, &target.id, None)
        .await
        .map_err(|error| error.failed("listing descendants failed"))?;
    if found.is_empty() {
        return Ok(());
    }
    let what = match found.len() {
        1 => "a descendant",
        _ => "descendants",
    };
    let mut text = format!("rbd: the image has {what}: \n");
    for child in &found {
        text.push_str(&format!("  {}\n", super::clone::text(child)));
    }
    text.push_str("Warning: in-use, read-only descendant images will not detect the parent update.\n");
    if session.args().flag("force") {
        eprintln!("{text}Proceeding anyway due to force flag set.");
        return Ok(());
    }
    text.push_str("Ensure no descendant images are opened read-only and run again with force flag.");
    Err(Failure::message(text, EBUSY))
}

pub(super) async fn abort(session: &Session) -> Result<(), Failure> {
    let spec = image(session)?;
    let io = session.place_of(&spec).await?;
    let options = AbortOptions {
        force: session.args().flag("force"),
    };
    let task = session.task("Abort image migration");
    let aborted = abort_verb(&io, &spec.image, options, &task.library()).await;
    task.end(aborted)
        .map_err(|error| error.failed("aborting migration failed"))
}

fn image(session: &Session) -> Result<ImageSpec, Failure> {
    let spec = session.args().image(ImageQuery::source())?;
    session.args().finish()?;
    Ok(spec)
}
