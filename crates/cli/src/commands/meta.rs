//! `rbd image-meta *`.

use bytes::Bytes;
use ferry_image::admin::metadata;
use ferry_image::{Image, OpenOptions};
use ferry_store::Errno;

use super::error::Explain as _;
use super::session::{Session, say};
use crate::exit::{Failure, describe};
use crate::output::{Align, Document, Node, OutputFormat, TextTable};
use crate::spec::ImageQuery;

async fn image(session: &Session, options: OpenOptions) -> Result<(Image, String), Failure> {
    let args = session.args();
    let spec = args.image(ImageQuery::source())?;
    let key = args.positional("metadata key")?.to_owned();
    args.finish()?;
    Ok((session.image(&spec, options).await?, key))
}

pub(super) async fn get(session: &Session) -> Result<(), Failure> {
    let (image, key) = image(session, OpenOptions::read_only()).await?;
    let value = metadata::get(&image, &key).await.map_err(|error| {
        eprintln!(
            "failed to get metadata {key} of image : {}",
            describe(error.errno.0)
        );
        Failure::errno("getting metadata failed", error.errno.0)
    })?;
    say(&format!("{}\n", String::from_utf8_lossy(&value)))
}

pub(super) async fn set(session: &Session) -> Result<(), Failure> {
    let args = session.args();
    let spec = args.image(ImageQuery::source())?;
    let key = args.positional("metadata key")?;
    let value = args.positional("metadata value")?;
    args.finish()?;
    let image = session.image(&spec, OpenOptions::read_write()).await?;
    metadata::set(&image, key, Bytes::copy_from_slice(value.as_bytes()))
        .await
        .map_err(|error| {
            eprintln!(
                "failed to set metadata {key} of image : {}",
                describe(error.errno.0)
            );
            error.failed("setting metadata failed")
        })
}

pub(super) async fn remove(session: &Session) -> Result<(), Failure> {
    let (image, key) = image(session, OpenOptions::read_write()).await?;
    metadata::remove(&image, &key).await.map_err(|error| {
        let why = describe(error.errno.0);
        if error.errno == Errno::ENOENT {
            eprintln!("rbd: no existing metadata key {key} of image : {why}");
            return Failure::errno("removing metadata failed", error.errno.0);
        }
        eprintln!("failed to remove metadata {key} of image : {why}");
        error.failed("removing metadata failed")
    })
}

pub(super) async fn list(session: &Session) -> Result<(), Failure> {
    let args = session.args();
    let spec = args.image(ImageQuery::source())?;
    let format = args.output_format()?;
    args.finish()?;
    let image = session.image(&spec, OpenOptions::read_only()).await?;
    let pairs: Vec<(String, String)> = metadata::list(&image)
        .await
        .map_err(|error| error.failed("listing metadata failed"))?
        .into_iter()
        .map(|(key, value)| (key, String::from_utf8_lossy(&value).into_owned()))
        .collect();
    // Of nothing, there is no document either.
    if pairs.is_empty() && format != OutputFormat::Plain {
        return Ok(());
    }
    session.print(format, || table(&pairs), || document(&pairs))
}

fn table(pairs: &[(String, String)]) -> String {
    let count = match pairs.len() {
        0 => return "There are 0 metadata on this image.\n".to_owned(),
        1 => "There is 1 metadatum on this image:".to_owned(),
        count => format!("There are {count} metadata on this image:"),
    };
    let mut table = TextTable::new(&[("Key", Align::Left), ("Value", Align::Left)]);
    for (key, value) in pairs {
        table.row([key, value]);
    }
    format!("{count}\n\n{table}")
}

fn document(pairs: &[(String, String)]) -> Document {
    let map = pairs
        .iter()
        .fold(Node::map(), |map, (key, value)| map.with(key, value));
    Document::new("metadatas", map)
}
