//! `rbd lock add`, `ls` and `rm`.

use ferry_image::admin::locks::{self, HeldLock, LockShape};
use ferry_image::{ErrorKind, ImageError};

use super::error::Explain as _;
use super::session::Session;
use crate::exit::{EINVAL, Failure};
use crate::output::{Align, Document, Node, TextTable};
use crate::spec::ImageQuery;

pub(super) async fn list(session: &Session) -> Result<(), Failure> {
    let args = session.args();
    let spec = args.image(ImageQuery::source())?;
    let format = args.output_format()?;
    args.finish()?;
    let io = session.place_of(&spec).await?;
    let held = locks::list(&io, &spec.image)
        .await
        .map_err(|error| error.failed(format_args!("error opening image {}", spec.image)))?;
    session.print(
        format,
        || held.as_ref().map(text).unwrap_or_default(),
        || document(held.as_ref()),
    )
}

pub(super) async fn add(session: &Session) -> Result<(), Failure> {
    let args = session.args();
    let spec = args.image(ImageQuery::source())?;
    let lock_id = args.positional("lock id")?;
    args.finish()?;
    let tag = args.text("shared").filter(|tag| !tag.is_empty());
    let io = session.place_of(&spec).await?;
    locks::add(&io, &spec.image, lock_id, tag)
        .await
        .map_err(|error| match (error.kind, tag) {
            (ErrorKind::LockHeld, None) => {
                Failure::message("rbd: lock is already held by someone else", error.errno.0)
            }
            (ErrorKind::LockHeld, Some(_)) => Failure::message(
                "rbd: lock is already held by someone else with a different tag",
                error.errno.0,
            ),
            _ => failed(error, &spec.image, "taking lock failed"),
        })
}

pub(super) async fn remove(session: &Session) -> Result<(), Failure> {
    const WHAT: &str = "releasing lock failed";
    let args = session.args();
    let spec = args.image(ImageQuery::source())?;
    let lock_id = args.positional("lock id")?;
    let locker = args.positional("locker")?;
    args.finish()?;
    let io = session.place_of(&spec).await?;
    // An image that is missing is told first.
    locks::list(&io, &spec.image)
        .await
        .map_err(|error| failed(error, &spec.image, WHAT))?;
    let number = locker.strip_prefix("client.").map(str::parse::<u64>);
    if !matches!(number, Some(Ok(_))) {
        return Err(Failure::errno(WHAT, EINVAL).with_line(format_args!(
            "rbd: note: '{locker}' is no client; see 'rbd lock ls'"
        )));
    }
    locks::remove(&io, &spec.image, lock_id, locker)
        .await
        .map_err(|error| failed(error, &spec.image, WHAT))
}

fn failed(error: ImageError, image: &str, what: &str) -> Failure {
    match error.kind {
        ErrorKind::ImageMissing => error.failed(format_args!("error opening image {image}")),
        _ => error.failed(what),
    }
}

fn text(held: &HeldLock) -> String {
    let kind = match held.shape {
        LockShape::Exclusive => "exclusive",
        LockShape::Shared => "shared",
    };
    let count = match held.lockers.len() {
        1 => format!("There is 1 {kind} lock on this image.\n"),
        count => format!("There are {count} {kind} locks on this image.\n"),
    };
    let tag = match held.shape {
        LockShape::Exclusive => String::new(),
        LockShape::Shared => format!("Lock tag: {}\n", held.tag),
    };
    let mut table = TextTable::new(&[
        ("Locker", Align::Left),
        ("ID", Align::Left),
        ("Address", Align::Left),
    ]);
    for locker in &held.lockers {
        table.row([&locker.client, &locker.cookie, &locker.address]);
    }
    format!("{count}{tag}{table}")
}

fn document(held: Option<&HeldLock>) -> Document {
    let mut list = Node::list("lock");
    for locker in held.iter().flat_map(|held| &held.lockers) {
        list.add(
            Node::map()
                .with("id", &locker.cookie)
                .with("locker", &locker.client)
                .with("address", &locker.address),
        );
    }
    Document::new("locks", list)
}
