//! `rbd config image *` and `rbd config pool *`.

use ferry_image::admin::config::{self, Effective};
use ferry_image::{Image, OpenOptions};
use ferry_store::{Errno, IoCtx};

use super::error::Explain as _;
use super::session::{Session, say};
use crate::exit::Failure;
use crate::output::{Align, Document, Node, OutputFormat, TextTable};
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
    Failure::errno(format_args!("{key} is not set"), Errno::ENOENT.0)
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
    let value = value.map_err(|error| error.failed("getting config failed"))?;
    say(&format!("{}\n", value.ok_or_else(|| not_set(&key))?))
}

pub(super) async fn image_set(session: &Session) -> Result<(), Failure> {
    let args = session.args();
    let spec = args.image(ImageQuery::source())?;
    let key = args.positional("config key")?;
    let value = args.positional("config value")?;
    args.finish()?;
    known(key)?;
    let image = session.image(&spec, OpenOptions::read_write()).await?;
    let set = config::set_of_image(&image, key, value).await;
    set.map_err(|error| error.failed("setting config failed"))
}

pub(super) async fn image_remove(session: &Session) -> Result<(), Failure> {
    let (image, key) = image(session, OpenOptions::read_write()).await?;
    let removed = config::remove_of_image(&image, &key).await;
    match removed.map_err(|error| error.failed("removing config failed"))? {
        true => Ok(()),
        false => Err(not_set(&key)),
    }
}

pub(super) async fn image_list(session: &Session) -> Result<(), Failure> {
    let args = session.args();
    let spec = args.image(ImageQuery::source())?;
    let format = args.output_format()?;
    args.finish()?;
    let image = session.image(&spec, OpenOptions::read_only()).await?;
    let listed = config::list(image.io(), Some(&image)).await;
    print(
        session,
        format,
        &listed.map_err(|error| error.failed("listing config failed"))?,
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
    let value = value.map_err(|error| error.failed("getting config failed"))?;
    say(&format!("{}\n", value.ok_or_else(|| not_set(key))?))
}

pub(super) async fn pool_set(session: &Session) -> Result<(), Failure> {
    let args = session.args();
    let name = args.required_pool_name()?;
    let key = args.positional("config key")?;
    let value = args.positional("config value")?;
    args.finish()?;
    known(key)?;
    let set = config::set_of_pool(&pool(session, &name).await?, key, value).await;
    set.map_err(|error| error.failed("setting config failed"))
}

pub(super) async fn pool_remove(session: &Session) -> Result<(), Failure> {
    let args = session.args();
    let name = args.required_pool_name()?;
    let key = args.positional("config key")?;
    args.finish()?;
    known(key)?;
    let removed = config::remove_of_pool(&pool(session, &name).await?, key).await;
    match removed.map_err(|error| error.failed("removing config failed"))? {
        true => Ok(()),
        false => Err(not_set(key)),
    }
}

pub(super) async fn pool_list(session: &Session) -> Result<(), Failure> {
    let args = session.args();
    let name = args.required_pool_name()?;
    let format = args.output_format()?;
    args.finish()?;
    let listed = config::list(&pool(session, &name).await?, None).await;
    print(
        session,
        format,
        &listed.map_err(|error| error.failed("listing config failed"))?,
    )
}

fn print(session: &Session, format: OutputFormat, settings: &[Effective]) -> Result<(), Failure> {
    session.print(format, || table(settings), || document(settings))
}

fn table(settings: &[Effective]) -> String {
    let columns = [
        ("Name", Align::Left),
        ("Value", Align::Left),
        ("Source", Align::Left),
    ];
    let mut table = TextTable::new(&columns);
    for setting in settings {
        table.row([setting.name, setting.value.as_str(), setting.source.name()]);
    }
    let count = match settings.len() {
        1 => "There is 1 value:".to_owned(),
        count => format!("There are {count} values:"),
    };
    format!("{count}\n{table}")
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
