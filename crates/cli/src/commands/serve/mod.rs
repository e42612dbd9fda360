//! `rbd serve`: images to NBD clients, in the foreground.
//!
//! Images named on the command line are opened at once and stay open as long as the server runs: they show as watchers
//! in `rbd status` and keep `migration prepare` away. Only they are served then. Without names, any image of the store is
//! found at the moment a client asks for it and closed after its last client.
//!
//! `SIGINT` and `SIGTERM` let requests under way finish, flush, give up locks and watches, and end with exit code 0.

mod device;
mod exports;

use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::PathBuf;
use std::sync::Arc;

use ferry_nbd::{Exports, ListenError, Listener, ServeSummary, Server, ServerConfig, shutdown_channel};

use super::Signals;
use super::session::Session;
use crate::exit::{EIO, Failure};
use crate::spec::PoolSpec;
use exports::StoreExports;

/// Exit code when the socket cannot be listened on because another server has it.
const EADDRINUSE: i32 = 98;

pub(super) async fn run(session: &Session, signals: &mut Signals) -> Result<(), Failure> {
    let args = session.args();
    args.at_most_one("socket", "listen")?;
    let specs = args.remaining_images()?;
    args.finish()?;
    let given = |option| args.text(option).filter(|text| !text.is_empty());
    let place = PoolSpec {
        pool: given("pool").unwrap_or(args.default_pool()).to_owned(),
        namespace: given("namespace").unwrap_or_default().to_owned(),
    };
    let address = match given("listen") {
        Some(text) => Some(tcp_address(text)?),
        None => None,
    };
    let exports = StoreExports::new(session.store().await?.clone(), place);
    for spec in &specs {
        exports.keep_open(spec).await?;
    }
    let listener = match address {
        Some(address) => Listener::tcp(address).await,
        None => Listener::unix(socket_path(session, given("socket"))?).await,
    };
    let result = match listener.map_err(listen_failed) {
        Ok(listener) => serve(listener, Arc::clone(&exports), signals).await,
        Err(failure) => Err(failure),
    };
    let closed = exports.close_kept().await;
    result.and(closed)
}

async fn serve(listener: Listener, exports: Arc<StoreExports>, signals: &mut Signals) -> Result<(), Failure> {
    let names = exports.kept_names().await;
    let what = match names.as_slice() {
        [] => format!("every image of the store, as {}", listener.uri("POOL/IMAGE")),
        names => names
            .iter()
            .map(|name| listener.uri(name))
            .collect::<Vec<_>>()
            .join(" "),
    };
    eprintln!("rbd: serving {what}");
    let (trigger, shutdown) = shutdown_channel();
    let server = Server::run(
        vec![listener],
        exports as Arc<dyn Exports>,
        ServerConfig::default(),
        shutdown,
    );
    tokio::pin!(server);
    let summary = tokio::select! {
        summary = &mut server => summary,
        _ = signals.next() => {
            trigger.shut_down();
            tokio::select! {
                summary = &mut server => summary,
                number = signals.next() => {
                    return Err(Failure::message(
                        "rbd: stopped before all clients were done and all images flushed",
                        128 + number,
                    ));
                }
            }
        }
    };
    match summary {
        Ok(summary) => end(&summary),
        Err(error) => Err(Failure::invalid(error)),
    }
}

fn end(summary: &ServeSummary) -> Result<(), Failure> {
    if summary.is_clean() {
        return Ok(());
    }
    let mut problems = Vec::new();
    if summary.connections_aborted > 0 {
        problems.push(format!(
            "{} connection(s) cut off in the middle of requests",
            summary.connections_aborted
        ));
    }
    if summary.close_failures > 0 {
        let last = summary.last_close_failure.as_deref().unwrap_or("unknown");
        problems.push(format!(
            "{} image(s) not flushed and closed, the last: {last}",
            summary.close_failures
        ));
    }
    if summary.devices_left_open > 0 {
        problems.push(format!(
            "{} image(s) not closed in time",
            summary.devices_left_open
        ));
    }
    Err(Failure::errno("serving ended with errors", EIO)
        .with_line(format_args!("rbd: note: {}", problems.join("; "))))
}

fn tcp_address(text: &str) -> Result<SocketAddr, Failure> {
    let found = text.to_socket_addrs().ok().and_then(|mut found| found.next());
    found.ok_or_else(|| {
        Failure::invalid(format_args!(
            "--listen '{text}' is not an address and a port, e.g. 127.0.0.1:10809"
        ))
    })
}

/// `--socket`, else `run/nbd.sock` in the store's directory.
fn socket_path(session: &Session, given: Option<&str>) -> Result<PathBuf, Failure> {
    if let Some(path) = given {
        return Ok(path.into());
    }
    let directory = session.invocation().globals.local_store()?.join("run");
    std::fs::create_dir_all(&directory).map_err(|error| {
        Failure::errno(
            format_args!("cannot make '{}' for the socket", directory.display()),
            error.raw_os_error().unwrap_or(EIO),
        )
    })?;
    Ok(directory.join("nbd.sock"))
}

fn listen_failed(error: ListenError) -> Failure {
    let errno = match &error {
        ListenError::InUse { .. } => EADDRINUSE,
        ListenError::NotASocket { .. } => crate::exit::EEXIST,
        ListenError::Io { source, .. } => source.raw_os_error().unwrap_or(crate::exit::EINVAL),
        _ => EIO,
    };
    Failure::message(format!("rbd: {error}"), errno)
}
