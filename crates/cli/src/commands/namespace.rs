//! `rbd namespace *`.

use ferry_image::ErrorKind;
use ferry_image::admin::namespace;
use ferry_store::Errno;

use super::error::Explain as _;
use super::session::Session;
use crate::exit::Failure;
use crate::output::{Align, Document, Node, TextTable};
use crate::spec::PoolSpec;

pub(super) async fn create(session: &Session) -> Result<(), Failure> {
    let place = session.args().namespace_spec()?;
    session.args().finish()?;
    let io = session.place(&pool_of(&place)).await?;
    namespace::create(&io, &place.namespace)
        .await
        .map_err(|error| match error.errno {
            // The line says it all.
            Errno::EEXIST => Failure::errno("failed to created namespace", error.errno.0),
            _ => error.failed("failed to created namespace"),
        })
}

pub(super) async fn list(session: &Session) -> Result<(), Failure> {
    let args = session.args();
    let pool = args.pool_name()?;
    let format = args.output_format()?;
    args.finish()?;
    let namespace = String::new();
    let io = session.place(&PoolSpec { pool, namespace }).await?;
    let names = namespace::list(&io)
        .await
        .map_err(|error| error.failed("listing namespaces failed"))?;
    session.print(format, || table(&names), || document(&names))
}

fn table(names: &[String]) -> String {
    if names.is_empty() {
        return String::new();
    }
    let mut table = TextTable::new(&[("NAME", Align::Left)]);
    for name in names {
        table.row([name]);
    }
    table.to_string()
}

fn document(names: &[String]) -> Document {
    let mut list = Node::list("namespace");
    for name in names {
        list.add(Node::map().with("name", name));
    }
    Document::new("namespaces", list)
}

pub(super) async fn remove(session: &Session) -> Result<(), Failure> {
    let place = session.args().namespace_spec()?;
    session.args().finish()?;
    let io = session.place(&pool_of(&place)).await?;
    let removed = namespace::remove(&io, &place.namespace).await;
    removed.map_err(|error| match (error.errno, error.kind) {
        (Errno::EBUSY, _) => error.said("rbd: namespace contains images which must be deleted first."),
        (_, ErrorKind::NamespaceMissing) => Failure::message("rbd: namespace does not exist.", error.errno.0),
        _ => error.failed("failed to remove namespace"),
    })
}

fn pool_of(place: &PoolSpec) -> PoolSpec {
    PoolSpec {
        pool: place.pool.clone(),
        namespace: String::new(),
    }
}
