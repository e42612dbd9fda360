//! One connection, from its greeting to its end.
//!
//! The promise: a handshake within its time limit, TLS first where the server demands it, then the transmission
//! phase in the way that fits: a plain socket leaves the runtime and gets a lane, everything else stays a stream.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, timeout, timeout_at};
use tracing::{debug, info};

use crate::half_open::Place;
use crate::handshake::{ClientFlags, HandshakeError, Negotiated, Outcome, Terms, TlsState, greet, negotiate};
use crate::registry::Registry;
use crate::server::{OnNoSpace, ServerConfig};
use crate::shutdown::Shutdown;
use crate::tls::TlsServer;
use crate::transmission::{
    Agreement, Bounds, End, Hold, PeerIsGone, Session, TransmissionError, lane, stream,
};
use crate::wire::FrameReader;

/// Time for the last bytes of a TLS connection.
const TLS_GOODBYE: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
enum ConnectionError {
    #[error("handshake: {0}")]
    Handshake(#[from] HandshakeError),
    #[error("handshake: not finished within {0:?}")]
    HandshakeTimeout(Duration),
    #[error("handshake: TLS failed: {0}")]
    Tls(io::Error),
    #[error(transparent)]
    Transmission(#[from] TransmissionError),
}

/// A socket that a lane can take over.
pub(crate) trait PlainSocket: AsFd {
    type Reader<'a>: AsyncRead + Unpin
    where
        Self: 'a;
    type Writer<'a>: AsyncWrite + Unpin
    where
        Self: 'a;

    fn halves(&mut self) -> (Self::Reader<'_>, Self::Writer<'_>);

    /// The socket in blocking mode, out of the runtime's hands.
    fn into_blocking(self) -> io::Result<OwnedFd>;
}

impl PlainSocket for UnixStream {
    type Reader<'a> = tokio::net::unix::ReadHalf<'a>;
    type Writer<'a> = tokio::net::unix::WriteHalf<'a>;

    fn halves(&mut self) -> (Self::Reader<'_>, Self::Writer<'_>) {
        self.split()
    }

    fn into_blocking(self) -> io::Result<OwnedFd> {
        let socket = self.into_std()?;
        socket.set_nonblocking(false)?;
        Ok(socket.into())
    }
}

impl PlainSocket for TcpStream {
    type Reader<'a> = tokio::net::tcp::ReadHalf<'a>;
    type Writer<'a> = tokio::net::tcp::WriteHalf<'a>;

    fn halves(&mut self) -> (Self::Reader<'_>, Self::Writer<'_>) {
        self.split()
    }

    fn into_blocking(self) -> io::Result<OwnedFd> {
        let socket = self.into_std()?;
        socket.set_nonblocking(false)?;
        Ok(socket.into())
    }
}

/// How far the unencrypted part of a handshake got.
enum Opened<R> {
    Ended(Option<End>),
    Entered(FrameReader<R>, Negotiated),
    StartTls(FrameReader<R>, Upgrade),
}

/// What starting TLS needs.
struct Upgrade {
    tls: TlsServer,
    client: ClientFlags,
    terms: Terms,
    deadline: Instant,
}

/// One client.
pub(crate) struct Connection {
    pub(crate) registry: Arc<Registry>,
    pub(crate) config: Arc<ServerConfig>,
    pub(crate) shutdown: Shutdown,
    /// Until the handshake is done, others may need its room.
    pub(crate) place: Place,
    /// A second handle on a plain socket, where requests may have to wait for longer than its client stays.
    pub(crate) peer: Option<OwnedFd>,
}

impl Connection {
    /// Serves a socket; unless TLS is spoken, the transmission phase has a lane.
    pub(crate) async fn run_socket<S: PlainSocket>(mut self, socket: S) {
        let config = Arc::clone(&self.config);
        let _living = config.stats.connection_served();
        log_end(self.serve_socket(socket).await);
        // Its place is free before it counts as ended.
        drop(self);
    }

    /// Serves any pair of streams.
    pub(crate) async fn run<R, W>(mut self, reader: R, mut writer: W)
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let config = Arc::clone(&self.config);
        let _living = config.stats.connection_served();
        log_end(self.serve(reader, &mut writer).await);
        // The peer may be gone already.
        let _ = writer.shutdown().await;
        drop(self);
    }

    async fn serve_socket<S: PlainSocket>(&mut self, mut socket: S) -> Result<Option<End>, ConnectionError> {
        if self.config.on_no_space == OnNoSpace::Pause {
            let handle = socket.as_fd().try_clone_to_owned();
            self.peer = Some(handle.map_err(TransmissionError::from)?);
        }
        let (reader, mut writer) = socket.halves();
        let (frames, negotiated) = match self.open(reader, &mut writer).await? {
            Opened::Ended(end) => return Ok(end),
            Opened::StartTls(frames, upgrade) => return self.serve_tls(frames, &mut writer, upgrade).await,
            Opened::Entered(frames, negotiated) => (frames, negotiated),
        };
        let early = frames.into_buffered();
        drop(writer);
        let socket = socket.into_blocking().map_err(TransmissionError::from)?;
        let session = self.session(&negotiated);
        let end = lane::serve(socket, early, session, negotiated.export, &mut self.shutdown).await?;
        Ok(Some(end))
    }

    async fn serve<R, W>(&mut self, reader: R, writer: &mut W) -> Result<Option<End>, ConnectionError>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        match self.open(reader, writer).await? {
            Opened::Ended(end) => Ok(end),
            Opened::StartTls(frames, upgrade) => self.serve_tls(frames, writer, upgrade).await,
            Opened::Entered(mut frames, negotiated) => self.transmit(&mut frames, writer, negotiated).await,
        }
    }

    /// The handshake up to the choice of an export or the start of TLS.
    async fn open<R, W>(&mut self, reader: R, writer: &mut W) -> Result<Opened<R>, ConnectionError>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let deadline = Instant::now() + self.config.handshake_timeout;
        let mut frames = FrameReader::new(reader);
        let greeted = self.within(deadline, greet(&mut frames, writer)).await?;
        let Some(Some(client)) = greeted else {
            return Ok(Opened::Ended(greeted.map_or(Some(End::Shutdown), |_| None)));
        };
        let tls = self.config.tls.clone();
        let terms = Terms {
            max_payload_bytes: self.config.max_in_flight_bytes,
            max_options: self.config.max_handshake_options,
            max_option_bytes: self.config.max_option_bytes,
            tls: match tls {
                Some(_) => TlsState::Required,
                None => TlsState::Off,
            },
        };
        let haggled = self.haggle(&mut frames, writer, client, terms, deadline).await?;
        Ok(match (haggled, tls) {
            (Some(Outcome::StartTls), Some(tls)) => Opened::StartTls(
                frames,
                Upgrade {
                    tls,
                    client,
                    terms,
                    deadline,
                },
            ),
            (Some(Outcome::Entered(entered)), _) => Opened::Entered(frames, entered),
            (Some(_), _) => Opened::Ended(None),
            (None, _) => Opened::Ended(Some(End::Shutdown)),
        })
    }

    /// The rest of the handshake and the transmission phase, encrypted.
    async fn serve_tls<R, W>(
        &mut self,
        frames: FrameReader<R>,
        writer: &mut W,
        upgrade: Upgrade,
    ) -> Result<Option<End>, ConnectionError>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let Upgrade {
            tls,
            client,
            terms,
            deadline,
        } = upgrade;
        let plain = tokio::io::join(frames.into_inner(), writer);
        let accepting = async { tls.accept(plain).await.map_err(ConnectionError::Tls) };
        let Some(stream) = self.within(deadline, accepting).await? else {
            return Ok(Some(End::Shutdown));
        };
        debug!("TLS started");
        let (reader, mut writer) = tokio::io::split(stream);
        let mut frames = FrameReader::new(reader);
        let terms = Terms {
            tls: TlsState::Active,
            ..terms
        };
        let haggled = self
            .haggle(&mut frames, &mut writer, client, terms, deadline)
            .await?;
        let ended = match haggled {
            Some(Outcome::Entered(entered)) => self.transmit(&mut frames, &mut writer, entered).await,
            Some(_) => Ok(None),
            None => Ok(Some(End::Shutdown)),
        };
        // The peer may be gone, or not reading.
        let _ = timeout(TLS_GOODBYE, writer.shutdown()).await;
        ended
    }

    async fn haggle<R, W>(
        &mut self,
        frames: &mut FrameReader<R>,
        writer: &mut W,
        client: ClientFlags,
        terms: Terms,
        deadline: Instant,
    ) -> Result<Option<Outcome>, ConnectionError>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let registry = Arc::clone(&self.registry);
        let mut place = std::mem::take(&mut self.place);
        let haggling = negotiate(frames, writer, &registry, &mut place, client, terms);
        let haggled = self.within(deadline, haggling).await;
        self.place = place;
        haggled
    }

    /// Runs a step of the handshake; `None` when the server goes down first.
    async fn within<T, E: Into<ConnectionError>>(
        &mut self,
        deadline: Instant,
        step: impl Future<Output = Result<T, E>>,
    ) -> Result<Option<T>, ConnectionError> {
        tokio::select! {
            biased;
            () = self.shutdown.requested() => Ok(None),
            done = timeout_at(deadline, step) => match done {
                Ok(done) => done.map(Some).map_err(Into::into),
                Err(_) => Err(ConnectionError::HandshakeTimeout(self.config.handshake_timeout)),
            },
        }
    }

    async fn transmit<R, W>(
        &mut self,
        frames: &mut FrameReader<R>,
        writer: &mut W,
        negotiated: Negotiated,
    ) -> Result<Option<End>, ConnectionError>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let session = self.session(&negotiated);
        let end = stream::serve(frames, writer, session, &mut self.shutdown).await?;
        drop(negotiated.export);
        Ok(Some(end))
    }

    /// What the transmission phase needs to know, now that the handshake is done.
    fn session(&mut self, negotiated: &Negotiated) -> Session {
        debug!(
            export = negotiated.name,
            framing = ?negotiated.framing,
            allocation = negotiated.allocation,
            "handshake done"
        );
        let bounds = Bounds {
            requests: self.config.max_in_flight_requests,
            payload_bytes: self.config.max_in_flight_bytes,
        };
        let agreement = Agreement {
            device: Arc::clone(negotiated.export.device()),
            framing: negotiated.framing,
            allocation: negotiated.allocation,
        };
        let hold = (self.config.on_no_space == OnNoSpace::Pause).then(|| {
            let peer = self.peer.take();
            let is_gone: PeerIsGone = Box::new(move || peer.as_ref().is_some_and(is_gone));
            Hold::new(is_gone, Arc::clone(&self.config.stats))
        });
        Session::new(agreement, bounds, hold)
    }
}

/// Whether the client will send no more: it has closed the socket, or its side of it.
fn is_gone(socket: &OwnedFd) -> bool {
    let mut watched = [PollFd::new(socket, PollFlags::RDHUP)];
    let at_once = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    match poll(&mut watched, Some(&at_once)) {
        Ok(_) => watched[0]
            .revents()
            .intersects(PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR),
        // Interrupted: the next look tells.
        Err(_) => false,
    }
}

fn log_end(ended: Result<Option<End>, ConnectionError>) {
    match ended {
        Ok(end) => debug!(?end, "connection ended"),
        Err(error) => info!(%error, "connection ended"),
    }
}
