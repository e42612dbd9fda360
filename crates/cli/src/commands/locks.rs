//! `rbd lock ls`.

use ferry_image::admin::locks::{self, HeldLock, LockShape};

use super::error::Explain as _;
use super::session::Session;
use crate::exit::Failure;
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
