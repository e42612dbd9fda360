//! A server: its configuration, accepting connections, and the end.
//!
//! The promise: what happens on one connection ends at most that connection. The number of connections is
//! bounded; a handshake has a time limit, and gives its room to a newcomer where there is no other. After the shutdown signal no new work is accepted, requests under way
//! finish within a grace, every device is flushed and closed, and [`Server::run`] says what did not go well.

use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::{Instrument, debug, info, info_span, warn};

use crate::connection::Connection;
use crate::exports::Exports;
use crate::half_open::{HalfOpen, Peer, Place};
use crate::listen::{Accepted, Listener};
use crate::registry::Registry;
use crate::shutdown::Shutdown;
use crate::stats::ServerStats;
use crate::tls::TlsServer;

/// Pause after a failed accept: the cause is mostly a lack of file descriptors, which no hurry mends.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What becomes of a change that a device has no space for ([`DeviceError::out_of_space`](crate::DeviceError::out_of_space)).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OnNoSpace {
    /// The client gets `ENOSPC` at once.
    #[default]
    Fail,
    /// The request waits for space, at most as long as its connection lasts. It counts against `max_in_flight_requests` and
    /// `max_in_flight_bytes`; other requests go on.
    Pause,
}

/// Bounds and times of a server.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// Most connections at a time. For one more, one that is still in its handshake is ended, of the peer that has the most
    /// of these; where there is none, it is closed at once.
    pub max_connections: usize,
    /// Most requests that one connection has under way.
    pub max_in_flight_requests: usize,
    /// Most payload bytes that the requests of one connection hold. It bounds the maximum block size that clients
    /// are told. From 1 MiB to 1 GiB.
    pub max_in_flight_bytes: u32,
    /// Time for a client from connecting to the choice of an export, TLS included.
    pub handshake_timeout: Duration,
    /// Most options of one handshake, counted anew once TLS is active; one more ends the connection.
    pub max_handshake_options: u32,
    /// Longest data of an option that is looked at; longer data is skipped and refused. From 8 KiB to 1 MiB.
    pub max_option_bytes: u32,
    /// With it, clients must start TLS before anything else; without, the server speaks plain text only.
    pub tls: Option<TlsServer>,
    /// Time for requests under way after the shutdown signal; then they are dropped.
    pub shutdown_grace: Duration,
    /// Time for flushing and closing the devices after that.
    pub close_timeout: Duration,
    /// What becomes of changes that find no space.
    pub on_no_space: OnNoSpace,
    /// Where connections are counted, and requests that wait for space.
    pub stats: Arc<ServerStats>,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            max_connections: 128,
            max_in_flight_requests: 64,
            max_in_flight_bytes: 64 << 20,
            handshake_timeout: Duration::from_secs(30),
            max_handshake_options: 1024,
            max_option_bytes: 64 << 10,
            tls: None,
            shutdown_grace: Duration::from_secs(10),
            close_timeout: Duration::from_secs(60),
            on_no_space: OnNoSpace::Fail,
            stats: Arc::default(),
        }
    }
}

impl ServerConfig {
    fn validate(&self) -> Result<(), ServerError> {
        let refuse = |field, rule| Err(ServerError::Config { field, rule });
        if self.max_connections == 0 {
            return refuse("max_connections", "must not be zero");
        }
        if !(1..=65536).contains(&self.max_in_flight_requests) {
            return refuse("max_in_flight_requests", "must be from 1 to 65536");
        }
        if !(1 << 20..=1 << 30).contains(&self.max_in_flight_bytes) {
            return refuse("max_in_flight_bytes", "must be from 1 MiB to 1 GiB");
        }
        if self.max_handshake_options == 0 {
            return refuse("max_handshake_options", "must not be zero");
        }
        if !(8 << 10..=1 << 20).contains(&self.max_option_bytes) {
            return refuse("max_option_bytes", "must be from 8 KiB to 1 MiB");
        }
        Ok(())
    }
}

/// A server could not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// There is no socket to listen on.
    #[error("no socket to listen on: give at least one listener")]
    NoListener,
    /// A value of the configuration is out of range.
    #[error("server configuration: {field} {rule}")]
    Config {
        /// Name of the value.
        field: &'static str,
        /// What it must be.
        rule: &'static str,
    },
}

/// What a server did, told after its end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServeSummary {
    /// Connections that were accepted.
    pub connections_served: u64,
    /// Connections that were closed at once because there were too many.
    pub connections_refused: u64,
    /// Connections that were ended in their handshake to make room for others.
    pub connections_put_out: u64,
    /// Connections whose requests did not end within the grace.
    pub connections_aborted: usize,
    /// Devices whose flush or close failed, during the whole run.
    pub close_failures: u64,
    /// The last of these failures.
    pub last_close_failure: Option<String>,
    /// Devices that were not closed in time.
    pub devices_left_open: usize,
}

impl ServeSummary {
    /// Whether everything that clients were promised was kept: no request dropped, every device flushed and
    /// closed.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.connections_aborted == 0 && self.close_failures == 0 && self.devices_left_open == 0
    }
}

/// The NBD server.
#[derive(Debug)]
pub struct Server;

impl Server {
    /// Serves `exports` on all `listeners` until the shutdown is asked for. The socket files are removed as soon
    /// as the server stops accepting.
    ///
    /// # Errors
    /// [`ServerError`], before anything is served.
    pub async fn run(
        listeners: Vec<Listener>,
        exports: Arc<dyn Exports>,
        config: ServerConfig,
        mut shutdown: Shutdown,
    ) -> Result<ServeSummary, ServerError> {
        config.validate()?;
        if listeners.is_empty() {
            return Err(ServerError::NoListener);
        }
        let registry = Registry::new(exports);
        let config = Arc::new(config);
        let mut summary = ServeSummary::default();
        let mut connections = JoinSet::new();
        let half_open = Arc::<HalfOpen>::default();
        loop {
            let accepted = tokio::select! {
                biased;
                () = shutdown.requested() => break,
                Some(ended) = connections.join_next() => {
                    log_panic(ended);
                    continue;
                }
                accepted = accept_any(&listeners) => accepted,
            };
            let stream = match accepted {
                Ok(stream) => stream,
                Err(error) => {
                    warn!(%error, "can't accept a connection");
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            if connections.len() >= config.max_connections {
                // Those that are just ending make room first: else a flood that comes and goes would put out who stays.
                let mut ends = connections.len() > half_open.living();
                if !ends && half_open.put_one_out() {
                    summary.connections_put_out += 1;
                    config.stats.connection_put_out();
                    ends = true;
                }
                if ends && let Some(ended) = connections.join_next().await {
                    log_panic(ended);
                }
            }
            if connections.len() >= config.max_connections {
                summary.connections_refused += 1;
                config.stats.connection_refused();
                warn!(limit = config.max_connections, "connection refused: too many");
                continue;
            }
            summary.connections_served += 1;
            let ticket = half_open.enter(match &stream {
                Accepted::Unix(stream) => Peer::of_unix(stream),
                Accepted::Tcp(_, peer) => Peer::of_tcp(*peer),
            });
            let number = ticket.number();
            let connection = Connection {
                registry: Arc::clone(&registry),
                config: Arc::clone(&config),
                shutdown: shutdown.clone(),
                place: Place::HalfOpen(ticket),
                peer: None,
            };
            let span = info_span!("connection", id = summary.connections_served);
            let task = connections.spawn(
                async move {
                    match stream {
                        Accepted::Unix(stream) => {
                            debug!("accepted");
                            connection.run_socket(stream).await;
                        }
                        Accepted::Tcp(stream, peer) => {
                            debug!(%peer, "accepted");
                            connection.run_socket(stream).await;
                        }
                    }
                }
                .instrument(span),
            );
            half_open.started(number, task);
        }
        drop(listeners);
        info!(connections = connections.len(), "shutting down");
        let all_ended = async {
            while let Some(ended) = connections.join_next().await {
                log_panic(ended);
            }
        };
        if timeout(config.shutdown_grace, all_ended).await.is_err() {
            summary.connections_aborted = connections.len();
            warn!(
                connections = connections.len(),
                "requests did not end within the grace and are dropped"
            );
            connections.shutdown().await;
        }
        close_devices(&registry, &config, &mut summary).await;
        Ok(summary)
    }

    /// Serves one connection over any pair of streams, such as standard input and output, and closes its device.
    /// For sockets, [`run_unix_connection`](Self::run_unix_connection) is faster.
    ///
    /// # Errors
    /// [`ServerError::Config`], before anything is served.
    pub async fn run_connection<R, W>(
        reader: R,
        writer: W,
        exports: Arc<dyn Exports>,
        config: ServerConfig,
        shutdown: Shutdown,
    ) -> Result<ServeSummary, ServerError>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        Self::run_one(exports, config, shutdown, |connection| {
            connection.run(reader, writer)
        })
        .await
    }

    /// Serves one connection over a connected socket, such as an end of a socket pair, in the way of
    /// [`run`](Self::run), and closes its device.
    ///
    /// # Errors
    /// [`ServerError::Config`], before anything is served.
    pub async fn run_unix_connection(
        socket: UnixStream,
        exports: Arc<dyn Exports>,
        config: ServerConfig,
        shutdown: Shutdown,
    ) -> Result<ServeSummary, ServerError> {
        Self::run_one(exports, config, shutdown, |connection| {
            connection.run_socket(socket)
        })
        .await
    }

    async fn run_one<F: Future<Output = ()>>(
        exports: Arc<dyn Exports>,
        config: ServerConfig,
        shutdown: Shutdown,
        run: impl FnOnce(Connection) -> F,
    ) -> Result<ServeSummary, ServerError> {
        config.validate()?;
        let registry = Registry::new(exports);
        let config = Arc::new(config);
        let mut summary = ServeSummary {
            connections_served: 1,
            ..ServeSummary::default()
        };
        let mut signal = shutdown.clone();
        let connection = Connection {
            registry: Arc::clone(&registry),
            config: Arc::clone(&config),
            shutdown,
            place: Place::Alone,
            peer: None,
        };
        let grace_over = async {
            signal.requested().await;
            sleep(config.shutdown_grace).await;
        };
        tokio::select! {
            () = run(connection) => {}
            () = grace_over => summary.connections_aborted = 1,
        }
        close_devices(&registry, &config, &mut summary).await;
        Ok(summary)
    }
}

async fn close_devices(registry: &Registry, config: &ServerConfig, summary: &mut ServeSummary) {
    if timeout(config.close_timeout, registry.idle()).await.is_err() {
        summary.devices_left_open = registry.open_devices();
        warn!(
            devices = summary.devices_left_open,
            "devices were not closed in time"
        );
    }
    let failures = registry.close_failures();
    summary.close_failures = failures.count;
    summary.last_close_failure = failures.last;
}

/// The next connection of any listener.
async fn accept_any(listeners: &[Listener]) -> io::Result<Accepted> {
    poll_fn(|cx| {
        listeners
            .iter()
            .map(|listener| listener.poll_accept(cx))
            .find(Poll::is_ready)
            .unwrap_or(Poll::Pending)
    })
    .await
}

fn log_panic(ended: Result<(), tokio::task::JoinError>) {
    // One that was put out is cancelled.
    if let Err(failure) = ended
        && !failure.is_cancelled()
    {
        warn!(%failure, "a connection ended abnormally");
    }
}
