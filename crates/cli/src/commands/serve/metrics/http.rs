//! The metrics over HTTP/1: `GET /metrics`, nothing else.
//!
//! Requests come from anywhere the address can be reached from: they are bounded in number, in time and in the size of
//! their heads, bodies are not read, and nothing in them is looked at but method and path.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::{ServeMetrics, render};

/// Connections at a time; more wait.
const MAX_CONNECTIONS: usize = 4;
/// Longest head of a request, in bytes.
const MAX_HEAD_BYTES: usize = 16 << 10;
/// Time for the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest life of a connection; scrapers connect again.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);
/// Pause after a failed accept, which no hurry mends.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A bound socket. Dropping the future of [`MetricsServer::run`] ends its connections too.
#[derive(Debug)]
pub(crate) struct MetricsServer {
    listener: TcpListener,
    address: SocketAddr,
}

impl MetricsServer {
    /// Binds; port 0 lets the system choose one.
    ///
    /// # Errors
    /// Those of the operating system.
    pub(crate) async fn bind(address: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        Ok(Self { listener, address })
    }

    /// Where the metrics can be asked for.
    pub(crate) fn url(&self) -> String {
        format!("http://{}/metrics", self.address)
    }

    /// Answers until it is dropped.
    pub(crate) async fn run(self, metrics: Arc<ServeMetrics>) -> Infallible {
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let mut connections = JoinSet::new();
        loop {
            while connections.try_join_next().is_some() {}
            // Nobody closes this semaphore.
            let place = Arc::clone(&places).acquire_owned().await;
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection for metrics");
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let metrics = Arc::clone(&metrics);
            connections.spawn(async move {
                let _place = place;
                let answering = service_fn(|request| {
                    let answer = answer(&request, &metrics);
                    async move { Ok::<_, Infallible>(answer) }
                });
                let connection = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEAD_TIMEOUT)
                    .max_buf_size(MAX_HEAD_BYTES)
                    .serve_connection(TokioIo::new(stream), answering);
                let mut connection = pin!(connection);
                if let Ok(Err(error)) = timeout(CONNECTION_TIMEOUT, connection.as_mut()).await {
                    tracing::debug!(%error, "a connection for metrics ended");
                }
            });
        }
    }
}

fn answer(request: &Request<Incoming>, metrics: &Arc<ServeMetrics>) -> Response<Full<Bytes>> {
    let path = request.uri().path();
    if path != "/metrics" {
        return say(StatusCode::NOT_FOUND, "Metrics are at /metrics.\n");
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = say(StatusCode::METHOD_NOT_ALLOWED, "Only GET and HEAD.\n");
        response
            .headers_mut()
            .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match render::render(metrics) {
        Ok(text) => {
            let mut response = Response::new(Full::from(text));
            response
                .headers_mut()
                .insert(CONTENT_TYPE, HeaderValue::from_static(render::CONTENT_TYPE));
            response
        }
        Err(error) => {
            tracing::error!(%error, "the metrics could not be written");
            say(
                StatusCode::INTERNAL_SERVER_ERROR,
                "The metrics could not be written.\n",
            )
        }
    }
}

fn say(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    response.headers_mut().insert(
        CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    response
}
