//! `rbd ls`.

use ferry_image::admin::info::ParentInfo;
use ferry_image::admin::list::{self, ListEntry, Listing};

use super::error::Explain as _;
use super::info::parent_name;
use super::session::Session;
use crate::exit::{Failure, describe};
use crate::output::{Align, Document, Node, TextTable, bytes};

pub(super) async fn run(session: &Session) -> Result<(), Failure> {
    const WHAT: &str = "listing images failed";
    let args = session.args();
    let place = args.pool_spec()?;
    let format = args.output_format()?;
    args.finish()?;
    session.store().await?;
    let io = match session.place(&place).await {
        Ok(io) => io,
        // Ceph says both that the pool cannot be opened and that nothing can be listed.
        Err(failure) => {
            let errno = failure.code().into();
            return Err(failure.with_line(Failure::errno(WHAT, errno)));
        }
    };
    if !args.flag("long") {
        let names = list::names(&io).await.map_err(|error| error.failed(WHAT))?;
        return session.print(
            format,
            || names.iter().map(|name| format!("{name}\n")).collect(),
            || Document::new("images", Node::list_of("name", &names)),
        );
    }
    let listing = list::long(&io).await.map_err(|error| error.failed(WHAT))?;
    session.print(format, || table(&listing.entries), || document(&listing.entries))?;
    unreadable(&listing)
}

/// Images that are there but cannot be read are named, and make the command fail.
fn unreadable(listing: &Listing) -> Result<(), Failure> {
    for (name, error) in &listing.failed {
        eprintln!("rbd: error opening {name}: {}", describe(error.errno.0));
        if let Some(note) = error.note() {
            eprintln!("{note}");
        }
    }
    match listing.failed.first() {
        Some((_, error)) => Err(Failure::errno("listing images failed", error.errno.0)),
        None => Ok(()),
    }
}

fn table(entries: &[ListEntry]) -> String {
    if entries.is_empty() {
        return String::new();
    }
    let mut table = TextTable::new(&[
        ("NAME", Align::Left),
        ("SIZE", Align::Right),
        ("PARENT", Align::Left),
        ("FMT", Align::Right),
        ("PROT", Align::Left),
        ("LOCK", Align::Left),
    ]);
    for entry in entries {
        table.row([
            match &entry.snapshot {
                Some((snapshot, _)) => format!("{}@{snapshot}", entry.name),
                None => entry.name.clone(),
            },
            bytes(entry.size_bytes),
            entry.parent.as_ref().map(parent_name).unwrap_or_default(),
            entry.format().to_string(),
            if entry.protected { "yes" } else { "" }.to_owned(),
            entry
                .lock
                .map(|lock| lock.short_name())
                .unwrap_or_default()
                .to_owned(),
        ]);
    }
    table.to_string()
}

fn document(entries: &[ListEntry]) -> Document {
    let mut list = Node::list("image");
    for entry in entries {
        let mut node = Node::map()
            .with("image", &entry.name)
            .with("id", &entry.id)
            .with_some("snapshot", entry.snapshot.as_ref().map(|(name, _)| name.as_str()))
            .with_some("snapshot_id", entry.snapshot.as_ref().map(|(_, id)| id.0))
            .with("size", entry.size_bytes);
        if let Some(parent) = &entry.parent {
            node.set("parent", listed_parent_node(parent));
        }
        node.set("format", entry.format());
        if entry.snapshot.is_some() {
            node.set("protected", Node::str_bool(entry.protected));
        }
        if let Some(lock) = entry.lock {
            let name = match lock.short_name() {
                "excl" => "exclusive",
                _ => "shared",
            };
            node.set("lock_type", name);
        }
        list.add(node);
    }
    Document::new("images", list)
}

/// A parent, as lists of images show it.
pub(super) fn listed_parent_node(parent: &ParentInfo) -> Node {
    Node::map()
        .with("pool", &parent.pool)
        .with("pool_namespace", &parent.pool_namespace)
        .with("image", &parent.image)
        .with("snapshot", &parent.snapshot)
}
