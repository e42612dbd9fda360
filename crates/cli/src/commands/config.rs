//! `rbd config global *`, `rbd config image *` and `rbd config pool *`.

use ferry_image::admin::config::{self, Effective};
use ferry_image::{Image, ImageError, OpenOptions};
use ferry_store::{Errno, IoCtx, Setting};

use super::error::Explain as _;
use super::session::{Session, say};
use crate::exit::Failure;
use crate::grammar::Args;
use crate::output::{Align, Document, Node, TextTable};
use crate::spec::{ImageQuery, PoolSpec};

fn known(key: &str) -> Result<(), Failure> {
    if config::is_known(key) {
        return Ok(());
    }
    match key.starts_with("rbd_") {
        true => Err(Failure::invalid(format_args!("invalid config key: {key}"))),
        false => Err(Failure::invalid(format_args!("not rbd option: {key}"))),
    }
}

fn not_set(key: &str) -> Failure {
    Failure::message(format!("rbd: {key} is not set"), Errno::ENOENT.0)
}

fn removed(done: Result<bool, ImageError>, key: &str) -> Result<(), Failure> {
    let what = format_args!("failed to remove {key}");
    match done.map_err(|error| error.failed(what))? {
        true => Ok(()),
        false => Err(Failure::errno(what, Errno::ENOENT.0)),
    }
}

async fn image(session: &Session, options: OpenOptions) -> Result<(Image, String), Failure> {
    let args = session.args();
    let spec = args.image(ImageQuery::source())?;
    let key = args.positional("config key")?.to_owned();
    args.finish()?;
    known(&key)?;
    Ok((session.image(&spec, options).await?, key))
}

pub(super) async fn image_get(session: &Session) -> Result<(), Failure> {
    let (image, key) = image(session, OpenOptions::read_only()).await?;
    let value = config::of_image(&image, &key).await;
    let value = value.map_err(|error| error.failed(format_args!("failed to get {key}")))?;
    say(&format!("{}\n", value.ok_or_else(|| not_set(&key))?))
}

pub(super) async fn image_set(session: &Session) -> Result<(), Failure> {
    let args = session.args();
    let spec = args.image(ImageQuery::source())?;
    let key = args.positional("config key")?;
    let value = args.positional("image config value")?;
    args.finish()?;
    known(key)?;
    let image = session.image(&spec, OpenOptions::read_write()).await?;
    let set = config::set_of_image(&image, key, value).await;
    set.map_err(|error| error.failed(format_args!("failed to set {key}")))
}

pub(super) async fn image_remove(session: &Session) -> Result<(), Failure> {
    let (image, key) = image(session, OpenOptions::read_write()).await?;
    removed(config::remove_of_image(&image, &key).await, &key)
}

pub(super) async fn image_list(session: &Session) -> Result<(), Failure> {
    let args = session.args();
    let spec = args.image(ImageQuery::source())?;
    let format = args.output_format()?;
    args.finish()?;
    let image = session.image(&spec, OpenOptions::read_only()).await?;
    let listed = config::list(image.io(), Some(&image)).await;
    let listed = listed.map_err(|error| error.failed("failed to list config"))?;
    let count = match listed.len() {
        1 => "There is 1 value:".to_owned(),
        count => format!("There are {count} values:"),
    };
    session.print(
        format,
        || format!("{count}\n{}", table(&listed)),
        || document(&listed),
    )
}

async fn pool(session: &Session, name: &str) -> Result<IoCtx, Failure> {
    let place = PoolSpec {
        pool: name.to_owned(),
        namespace: String::new(),
    };
    session.place(&place).await
}

pub(super) async fn pool_get(session: &Session) -> Result<(), Failure> {
    let args = session.args();
    let name = args.required_pool_name()?;
    let key = args.positional("config key")?;
    args.finish()?;
    known(key)?;
    let value = config::of_pool(&pool(session, &name).await?, key).await;
    let value = value.map_err(|error| error.failed(format_args!("failed to get {key}")))?;
    say(&format!("{}\n", value.ok_or_else(|| not_set(key))?))
}

pub(super) async fn pool_set(session: &Session) -> Result<(), Failure> {
    let args = session.args();
    let name = args.required_pool_name()?;
    let key = args.positional("config key")?;
    let value = args.next_positional().unwrap_or_default();
    args.finish()?;
    known(key)?;
    let set = config::set_of_pool(&pool(session, &name).await?, key, value).await;
    set.map_err(|error| error.failed(format_args!("failed to set {key}")))
}

pub(super) async fn pool_remove(session: &Session) -> Result<(), Failure> {
    let args = session.args();
    let name = args.required_pool_name()?;
    let key = args.positional("config key")?;
    args.finish()?;
    known(key)?;
    removed(
        config::remove_of_pool(&pool(session, &name).await?, key).await,
        key,
    )
}

pub(super) async fn pool_list(session: &Session) -> Result<(), Failure> {
    let args = session.args();
    let name = args.required_pool_name()?;
    let format = args.output_format()?;
    args.finish()?;
    let listed = config::list(&pool(session, &name).await?, None).await;
    let listed = listed.map_err(|error| error.failed("failed to list config"))?;
    session.print(format, || table(&listed).to_string(), || document(&listed))
}

/// Section and setting.
fn global(args: &Args) -> Result<(&str, &str), Failure> {
    let entity = entity(args)?;
    let key = args.positional("config key")?;
    known(key)?;
    Ok((entity, key))
}

fn entity(args: &Args) -> Result<&str, Failure> {
    let entity = args.next_positional().unwrap_or_default();
    match entity {
        "global" | "client" => Ok(entity),
        _ if entity.starts_with("client.") => Ok(entity),
        _ => Err(Failure::invalid(format_args!(
            "invalid config entity: {entity} (must be global, client or client.<id>)"
        ))),
    }
}

pub(super) async fn global_get(session: &Session) -> Result<(), Failure> {
    let args = session.args();
    let (entity, key) = global(args)?;
    args.finish()?;
    let value = config::of_store(session.store().await?, entity, key).await;
    let value = value.map_err(|error| error.failed("error reading config"))?;
    say(&format!("{}\n", value.ok_or_else(|| not_set(key))?))
}

pub(super) async fn global_set(session: &Session) -> Result<(), Failure> {
    let args = session.args();
    let (entity, key) = global(args)?;
    let value = args.next_positional().unwrap_or_default();
    args.finish()?;
    let set = config::set_of_store(session.store().await?, entity, key, value).await;
    set.map_err(|error| error.failed(format_args!("error setting {key}")))
}

pub(super) async fn global_remove(session: &Session) -> Result<(), Failure> {
    let args = session.args();
    let (entity, key) = global(args)?;
    args.finish()?;
    let removed = config::remove_of_store(session.store().await?, entity, key).await;
    removed.map_err(|error| error.failed(format_args!("error removing {key}")))
}

pub(super) async fn global_list(session: &Session) -> Result<(), Failure> {
    let args = session.args();
    let entity = entity(args)?;
    let format = args.output_format()?;
    args.finish()?;
    let listed = config::list_of_store(session.store().await?, entity).await;
    let listed = listed.map_err(|error| error.failed("error reading config"))?;
    session.print(format, || global_table(&listed), || global_document(&listed))
}

fn global_table(settings: &[Setting]) -> String {
    if settings.is_empty() {
        return String::new();
    }
    let columns = [
        ("Name", Align::Left),
        ("Value", Align::Left),
        ("Section", Align::Left),
    ];
    let mut table = TextTable::new(&columns);
    for setting in settings {
        table.row([&setting.name, &setting.value, &setting.section]);
    }
    table.to_string()
}

fn global_document(settings: &[Setting]) -> Document {
    let mut list = Node::list("option");
    for setting in settings {
        list.add(
            Node::map()
                .with("name", &setting.name)
                .with("value", &setting.value)
                .with("section", &setting.section),
        );
    }
    Document::new("config", list)
}

fn table(settings: &[Effective]) -> TextTable {
    let columns = [
        ("Name", Align::Left),
        ("Value", Align::Left),
        ("Source", Align::Left),
    ];
    let mut table = TextTable::new(&columns);
    for setting in settings {
        table.row([setting.name, setting.value.as_str(), setting.source.name()]);
    }
    table
}

fn document(settings: &[Effective]) -> Document {
    let mut list = Node::list("option");
    for setting in settings {
        list.add(
            Node::map()
                .with("name", setting.name)
                .with("value", &setting.value)
                .with("source", setting.source.name()),
        );
    }
    Document::new("config", list)
}
