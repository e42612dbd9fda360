//! `rbd serve`: images to NBD clients, in the foreground.
//!
//! Images named on the command line are opened at once and stay open as long as the server runs: they show as watchers
//! in `rbd status` and keep `migration prepare` away. Only they are served then. Without names, any image of the store,
//! or of the pool or namespace that is named, is found at the moment a client asks for it and closed after its last
//! client. With `--read-only`, images are neither watched nor locked, so that they can be in use elsewhere.
//!
//! A server that was fenced (a cluster blocklisted it) ends with exit code 108: a new one is let in again.
//! `SIGINT` and `SIGTERM` let requests under way finish, flush, give up locks and watches, and end with exit code 0.
//!
//! | file | what it holds |
//! |---|---|
//! | `options.rs` | what the command line asks for |
//! | `listeners.rs` | the sockets: asked for, passed on by systemd, or the usual one |
//! | `exports.rs`, `device.rs` | images as exports, one image as a block device |
//! | `metrics/` | counters, and how they are shown |

mod device;
mod exports;
mod listeners;
mod metrics;
mod options;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ferry_nbd::{Exports, OnNoSpace, ServeSummary, Server, ServerConfig, shutdown_channel};
use ferry_store::{Errno, Store};
use sd_notify::NotifyState;

use super::Signals;
use super::session::Session;
use crate::exit::{EIO, Failure};
use crate::spec::PoolSpec;
use exports::{ExportOptions, Scope, StoreExports};
use listeners::Listeners;
use metrics::{MetricsServer, ServeMetrics};
use options::ServeOptions;

/// How often a server looks whether it was fenced.
const FENCE_POLL: Duration = Duration::from_millis(500);

pub(super) async fn run(session: &Session, signals: &mut Signals) -> Result<(), Failure> {
    let options = ServeOptions::new(session.args())?;
    let mut config = ServerConfig {
        tls: options.tls.clone(),
        ..options::server_config(session.args())?
    };
    let store = session.store().await?.clone();
    let listeners = Listeners::open(session, &options).await?;
    let metrics = match options.metrics {
        Some(address) => Some(bind_metrics(address, &mut config).await?),
        None => None,
    };
    if let (Scope::Pool { pool, namespace }, []) = (&options.scope, options.images.as_slice()) {
        // A pool that is not there is more often mistyped than made later.
        let namespace = namespace.clone().unwrap_or_default();
        let pool = pool.clone();
        session.place(&PoolSpec { pool, namespace }).await?;
    }
    let exports = StoreExports::new(
        store.clone(),
        ExportOptions {
            place: options.place,
            scope: options.scope,
            read_only: options.read_only,
            on_no_space: config.on_no_space,
            metrics: metrics.as_ref().map(|(_, counters)| Arc::clone(counters)),
        },
    );
    let mut result = Ok(());
    for spec in &options.images {
        result = exports.keep_open(spec).await;
        if result.is_err() {
            break;
        }
    }
    if result.is_ok() {
        result = tokio::select! {
            result = serve(listeners, Arc::clone(&exports), config, metrics, signals) => result,
            () = fenced(&*store) => Err(Failure::errno("this server was fenced", Errno::ESHUTDOWN.0).with_line(
                "rbd: note: another client took it for dead, or an administrator did; start it again",
            )),
        };
    }
    let closed = exports.close_kept().await;
    result.and(closed)
}

/// See [`super::exports_of`].
pub(super) fn exports_of(store: Arc<dyn Store>) -> Arc<dyn Exports> {
    let options = ExportOptions {
        place: PoolSpec {
            pool: "rbd".to_owned(),
            namespace: String::new(),
        },
        scope: Scope::Store,
        read_only: false,
        on_no_space: OnNoSpace::Fail,
        metrics: None,
    };
    StoreExports::new(store, options)
}

/// Waits until the store has fenced this client. Nothing can be served from then on.
async fn fenced(store: &dyn Store) {
    let mut ticks = tokio::time::interval(FENCE_POLL);
    while !store.is_fenced() {
        ticks.tick().await;
    }
}

type Metrics = (MetricsServer, Arc<ServeMetrics>);

async fn bind_metrics(address: SocketAddr, config: &mut ServerConfig) -> Result<Metrics, Failure> {
    let server = MetricsServer::bind(address).await.map_err(|error| {
        Failure::errno(
            format_args!("cannot show metrics on {address}"),
            error.raw_os_error().unwrap_or(EIO),
        )
    })?;
    let counters = Arc::<ServeMetrics>::default();
    config.stats = Arc::clone(counters.server());
    Ok((server, counters))
}

async fn serve(
    listeners: Listeners,
    exports: Arc<StoreExports>,
    config: ServerConfig,
    metrics: Option<Metrics>,
    signals: &mut Signals,
) -> Result<(), Failure> {
    if let Some((server, _)) = &metrics {
        eprintln!("rbd: metrics on {}", server.url());
    }
    eprintln!("rbd: serving {}", what(&listeners, &exports).await);
    let (trigger, shutdown) = shutdown_channel();
    let server = Server::run(
        listeners.into_inner(),
        exports as Arc<dyn Exports>,
        config,
        shutdown,
    );
    tokio::pin!(server);
    // Until the NBD server has ended: what the last requests did can still be seen.
    let _metrics = metrics.map(|(server, counters)| AbortOnDrop(tokio::spawn(server.run(counters))));
    tell_systemd(&NotifyState::Ready);
    let summary = tokio::select! {
        summary = &mut server => summary,
        _ = signals.next() => {
            tell_systemd(&NotifyState::Stopping);
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

/// Where clients find what, as URIs.
async fn what(listeners: &Listeners, exports: &StoreExports) -> String {
    match (exports.kept_names().await.as_slice(), exports.scope()) {
        ([], Scope::Store) => format!("every image of the store, as {}", listeners.uris(&["POOL/IMAGE"])),
        ([], Scope::Pool { pool, namespace }) => {
            let (place, path) = match namespace.as_deref() {
                Some(namespace) if !namespace.is_empty() => (
                    format!("namespace {pool}/{namespace}"),
                    format!("{pool}/{namespace}/IMAGE"),
                ),
                _ => (format!("pool {pool}"), format!("{pool}/IMAGE")),
            };
            format!("every image of {place}, as {}", listeners.uris(&[path]))
        }
        (names, _) => listeners.uris(names),
    }
}

/// Says something to the service manager, if one has asked for it with `NOTIFY_SOCKET`.
fn tell_systemd(state: &NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(std::slice::from_ref(state)) {
        tracing::error!(%error, "cannot reach the service manager; check NOTIFY_SOCKET");
    }
}

/// A task that ends with its owner.
struct AbortOnDrop<T>(tokio::task::JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
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
