//! `rbd status`.

use ferry_image::ImageKey;
use ferry_image::admin::status::{self, MigrationImage, MigrationStatus, Status};
use ferry_image::migration::execution::ExecuteProgress;
use ferry_image::migration::settings::{ExecuteSettings, OnNoSpace, Rate};
use ferry_store::WatchInfo;

use super::error::Explain as _;
use super::migration::settings_text;
use super::session::{Session, execute_text};
use crate::exit::Failure;
use crate::output::{Document, Node};
use crate::spec::ImageQuery;

pub(super) async fn run(session: &Session) -> Result<(), Failure> {
    let args = session.args();
    let spec = args.image(ImageQuery::source())?;
    let format = args.output_format()?;
    args.finish()?;
    let io = session.place_of(&spec).await?;
    let status = status::status(&io, ImageKey::Name(&spec.image))
        .await
        .map_err(|error| error.failed(format_args!("error opening image {}", spec.image)))?;
    session.print(format, || text(&status), || document(&status))
}

fn text(status: &Status) -> String {
    let mut text = String::new();
    if status.watchers.is_empty() {
        text.push_str("Watchers: none\n");
    } else {
        text.push_str("Watchers:\n");
        for watcher in &status.watchers {
            text.push_str(&format!(
                "\twatcher={} client.{} cookie={}\n",
                address(watcher),
                watcher.gid,
                watcher.cookie.0
            ));
        }
    }
    if let Some(migration) = &status.migration {
        let source = match migration.source_spec.as_str() {
            "" => name(&migration.source),
            spec => spec.to_owned(),
        };
        let description = match migration.state_description.as_str() {
            "" => String::new(),
            description => format!(" ({description})"),
        };
        text.push_str(&format!(
            "Migration:\n\tsource: {source}\n\tdestination: {}\n\tstate: {}{description}\n",
            name(&migration.dest),
            migration.state.name(),
        ));
        if let Some(progress) = &migration.progress {
            text.push_str(&format!("\tprogress: {}\n", execute_text(progress)));
        }
        if let Some(settings) = changed_settings(migration) {
            text.push_str(&format!("\tthrottle: {}\n", settings_text(settings)));
        }
    }
    text
}

/// Settings that are not those of every migration.
fn changed_settings(migration: &MigrationStatus) -> Option<&ExecuteSettings> {
    let settings = migration.settings.as_ref()?;
    (*settings != ExecuteSettings::default()).then_some(settings)
}

fn name(image: &MigrationImage) -> String {
    let mut text = format!("{}/", image.pool_name);
    if !image.pool_namespace.is_empty() {
        text.push_str(&format!("{}/", image.pool_namespace));
    }
    text.push_str(&image.image_name);
    if !image.image_id.is_empty() {
        text.push_str(&format!(" ({})", image.image_id));
    }
    text
}

/// Where a watcher is; as Ceph writes an address that it does not have when the engine cannot tell.
fn address(watcher: &WatchInfo) -> String {
    watcher
        .addr
        .map_or_else(|| "-".to_owned(), |addr| addr.to_string())
}

fn document(status: &Status) -> Document {
    let mut watchers = Node::list("watcher");
    for watcher in &status.watchers {
        watchers.add(
            Node::map()
                .with("address", address(watcher))
                .with("client", watcher.gid)
                .with("cookie", watcher.cookie.0),
        );
    }
    let root = Node::map()
        .with("watchers", watchers)
        .with_some("migration", status.migration.as_ref().map(migration));
    Document::new("status", root)
}

fn migration(migration: &MigrationStatus) -> Node {
    let side = |node: Node, prefix: &str, image: &MigrationImage| {
        node.with(&format!("{prefix}_pool_name"), &image.pool_name)
            .with(&format!("{prefix}_pool_namespace"), &image.pool_namespace)
            .with(&format!("{prefix}_image_name"), &image.image_name)
            .with(&format!("{prefix}_image_id"), &image.image_id)
    };
    let source = match migration.source_spec.as_str() {
        "" => side(Node::map(), "source", &migration.source),
        spec => Node::map().with("source_spec", spec),
    };
    side(source, "dest", &migration.dest)
        .with("state", migration.state.name())
        .with("state_description", &migration.state_description)
        .with_some("progress", migration.progress.as_ref().map(progress))
        .with_some("throttle", changed_settings(migration).map(throttle))
}

fn progress(progress: &ExecuteProgress) -> Node {
    Node::map()
        .with("objects_done", progress.objects_done)
        .with("objects_total", progress.objects_total)
        .with("bytes_copied", progress.bytes_copied)
        .with("bytes_skipped", progress.bytes_skipped)
        .with("bytes_left", progress.bytes_left)
        .with("bytes_per_second", progress.bytes_per_second)
        .with_some("seconds_left", progress.seconds_left)
        .with("paused", progress.paused)
        .with("yielding", progress.yielding)
        .with("no_space", progress.no_space)
}

/// A limit that is left to Ferry is left out; no limit at all is 0.
fn throttle(settings: &ExecuteSettings) -> Node {
    let rate = match settings.rate {
        Rate::Adaptive => None,
        Rate::Unlimited => Some(0),
        Rate::BytesPerSecond(bytes) => Some(bytes),
    };
    Node::map()
        .with_some("max_bytes_per_second", rate)
        .with_some("concurrency", settings.concurrency.map(u64::from))
        .with("paused", settings.paused)
        .with("zero_detect", settings.zero_detect)
        .with_some("reserve_bytes", settings.reserve_bytes)
        .with_some(
            "on_enospc",
            (settings.on_no_space == OnNoSpace::Fail).then_some("fail"),
        )
}
