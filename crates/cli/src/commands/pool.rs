//! `rbd pool *`.

use ferry_image::admin::pool;
use ferry_store::{PoolInfo, PoolOptions};

use super::error::Explain as _;
use super::session::Session;
use crate::exit::Failure;
use crate::output::{Document, Node, bytes};
use crate::spec::PoolSpec;

pub(super) async fn create(session: &Session) -> Result<(), Failure> {
    let args = session.args();
    let name = args.required_pool_name()?;
    args.finish()?;
    let dir = match args.text("path").filter(|path| !path.is_empty()) {
        // A later command may be run in another directory.
        Some(path) => Some(std::path::absolute(path).map_err(|error| {
            Failure::errno(
                format_args!("--path {path}"),
                error.raw_os_error().unwrap_or(crate::exit::EIO),
            )
        })?),
        None => None,
    };
    pool::create(session.store().await?, &name, PoolOptions { dir })
        .await
        .map(|_| ())
        .map_err(|error| error.failed(format_args!("failed to create pool '{name}'")))
}

pub(super) async fn remove(session: &Session) -> Result<(), Failure> {
    let args = session.args();
    let name = args.required_pool_name()?;
    args.finish()?;
    pool::remove(session.store().await?, &name)
        .await
        .map_err(|error| error.failed(format_args!("failed to remove pool '{name}'")))
}

pub(super) async fn list(session: &Session) -> Result<(), Failure> {
    let args = session.args();
    let format = args.output_format()?;
    args.finish()?;
    let pools = pool::list(session.store().await?)
        .await
        .map_err(|error| error.failed("listing pools failed"))?;
    session.print(
        format,
        || pools.iter().map(|pool| format!("{}\n", pool.name)).collect(),
        || document(&pools),
    )
}

fn document(pools: &[PoolInfo]) -> Document {
    let mut list = Node::list("pool");
    for pool in pools {
        let path = pool.dir.as_ref().map(|dir| dir.display().to_string());
        list.add(
            Node::map()
                .with("id", pool.id.0)
                .with("name", &pool.name)
                .with_some("path", path),
        );
    }
    Document::new("pools", list)
}

pub(super) async fn init(session: &Session) -> Result<(), Failure> {
    let args = session.args();
    let name = args.pool_name()?;
    args.finish()?;
    let io = session
        .place(&PoolSpec {
            pool: name,
            namespace: String::new(),
        })
        .await?;
    pool::init(&io)
        .await
        .map_err(|error| error.failed("error registered application"))
}

pub(super) async fn stats(session: &Session) -> Result<(), Failure> {
    let args = session.args();
    let place = args.pool_spec()?;
    let format = args.output_format()?;
    args.finish()?;
    let io = session.place(&place).await?;
    let stats = pool::stats(&io)
        .await
        .map_err(|error| error.failed("failed to query pool stats"))?;
    let in_trash = |count: u64, text: String| match count {
        0 => String::new(),
        _ => format!(" ({text} in trash)"),
    };
    session.print(
        format,
        || {
            let (images, trash) = (&stats.images, &stats.trash);
            format!(
                "Total Images: {}{}\nTotal Snapshots: {}{}\nProvisioned Size: {}{}\n",
                images.count,
                in_trash(trash.count, trash.count.to_string()),
                images.snap_count,
                in_trash(trash.count, trash.snap_count.to_string()),
                bytes(images.provisioned_bytes),
                in_trash(trash.count, bytes(trash.provisioned_bytes)),
            )
        },
        || {
            let counts = |counts: &pool::ImageCounts| {
                Node::map()
                    .with("count", counts.count)
                    .with("provisioned_bytes", counts.provisioned_bytes)
                    .with("snap_count", counts.snap_count)
            };
            Document::new(
                "stats",
                Node::map()
                    .with("images", counts(&stats.images))
                    .with("trash", counts(&stats.trash)),
            )
        },
    )
}
