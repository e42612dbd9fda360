//! Listening sockets.
//!
//! The promise: a Unix socket file of a living server is never taken away, one that a killed server left behind
//! is replaced, anything that is not a socket is left alone, and our own file is removed at the end unless
//! someone has put another one in its place. Nobody but its owner can ever connect to a socket that was made here.
//! A socket that was inherited is used as it is, its file left alone.

use std::fmt;
use std::fs::{self, File, Permissions, TryLockError};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::{Domain, SockAddr, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tracing::{debug, warn};

use crate::inherited::{self, InheritedError};

/// A TCP peer that vanished is noticed after about `IDLE + PROBES * INTERVAL`, so that it can't keep a device,
/// and with it an image's lock, for ever.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_PROBES: u32 = 6;

/// How often to try for the directory lock before binding without it, and the pause between.
const LOCK_ATTEMPTS: u32 = 20;
const LOCK_PAUSE: Duration = Duration::from_millis(50);

/// Mode of a Unix socket: whoever may connect may use every export.
const SOCKET_MODE: u32 = 0o600;
/// Connections that wait to be accepted; the system may allow fewer.
const BACKLOG: i32 = 1024;

/// A socket could not be listened on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ListenError {
    /// A living server has the socket.
    #[error("{}: another server is listening on this socket; stop it or choose another path", .path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// Something that is not a socket has the name.
    #[error("{}: exists and is not a socket; choose another path", .path.display())]
    NotASocket {
        /// The file.
        path: PathBuf,
    },
    /// The sockets that the environment promises can't be taken.
    #[error(transparent)]
    Inherited(#[from] InheritedError),
    /// An inherited descriptor can't be listened on.
    #[error("inherited descriptor {descriptor}: {problem}; pass a listening stream socket, Unix or TCP")]
    Unusable {
        /// Its number.
        descriptor: i32,
        /// What is wrong with it.
        problem: String,
    },
    /// The operating system refused.
    #[error("{address}: can't listen: {source}")]
    Io {
        /// Path or address.
        address: String,
        /// Why.
        source: io::Error,
    },
}

/// A socket that clients connect to. Made inside a tokio runtime.
#[derive(Debug)]
pub struct Listener(Kind);

#[derive(Debug)]
enum Kind {
    Unix {
        listener: UnixListener,
        path: PathBuf,
        /// Removes the file at the end; not for inherited sockets.
        _file: Option<SocketFile>,
    },
    Tcp {
        listener: TcpListener,
        address: SocketAddr,
    },
}

/// A connection that was accepted.
#[derive(Debug)]
pub(crate) enum Accepted {
    Unix(UnixStream),
    Tcp(TcpStream, SocketAddr),
}

impl Listener {
    /// Listens on a Unix socket, replacing the file of a server that is gone. Only its owner can connect (mode 0600); whoever
    /// wants others to, changes that afterwards or passes on a socket of their own.
    ///
    /// # Errors
    /// [`ListenError`], when the path is taken or can't be bound. The system limits such paths to 107 bytes.
    pub async fn unix(path: impl Into<PathBuf>) -> Result<Self, ListenError> {
        let path = path.into();
        let failed = |source| ListenError::Io {
            address: path.display().to_string(),
            source,
        };
        // Two servers that start at the same time must not both find a stale file and each remove the other's new
        // one. The lock on the directory lasts for these few calls and leaves nothing behind.
        let _lock = lock_directory(&path).await;
        match fs::symlink_metadata(&path) {
            Ok(found) if !found.file_type().is_socket() => return Err(ListenError::NotASocket { path }),
            Ok(_) => {
                if someone_listens(&path).map_err(failed)? {
                    return Err(ListenError::InUse { path });
                }
                debug!(path = %path.display(), "replacing the socket of a server that is gone");
                fs::remove_file(&path).map_err(failed)?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
        let listener = bind_private(&path).map_err(failed)?;
        let made = fs::symlink_metadata(&path).map_err(failed)?;
        // A later change of the working directory must not change which file is removed.
        let path = std::path::absolute(&path).map_err(failed)?;
        Ok(Self(Kind::Unix {
            listener,
            path: path.clone(),
            _file: Some(SocketFile {
                path,
                device: made.dev(),
                inode: made.ino(),
            }),
        }))
    }

    /// Listens on a TCP address; port 0 lets the system choose one.
    ///
    /// # Errors
    /// [`ListenError::Io`], when the address can't be bound.
    pub async fn tcp(address: SocketAddr) -> Result<Self, ListenError> {
        let failed = |source| ListenError::Io {
            address: address.to_string(),
            source,
        };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self(Kind::Tcp { listener, address }))
    }

    /// Uses a socket that another process made, such as a service manager. Unix sockets with a file name, and TCP.
    ///
    /// # Errors
    /// [`ListenError::Unusable`], when it is not a listening stream socket.
    pub fn inherited(socket: OwnedFd) -> Result<Self, ListenError> {
        let descriptor = socket.as_raw_fd();
        let unusable = |problem: &str| ListenError::Unusable {
            descriptor,
            problem: problem.to_owned(),
        };
        let failed = |error: io::Error| unusable(&error.to_string());
        let socket = Socket::from(socket);
        if socket.r#type().map_err(failed)? != Type::STREAM {
            return Err(unusable("not a stream socket"));
        }
        if !socket.is_listener().map_err(failed)? {
            return Err(unusable("not listening (in a systemd unit: Accept=no)"));
        }
        socket.set_nonblocking(true).map_err(failed)?;
        let address = socket.local_addr().map_err(failed)?;
        if let Some(address) = address.as_socket() {
            let listener = TcpListener::from_std(socket.into()).map_err(failed)?;
            return Ok(Self(Kind::Tcp { listener, address }));
        }
        if !address.is_unix() {
            return Err(unusable("neither Unix nor TCP"));
        }
        let Some(path) = address.as_pathname().map(Path::to_owned) else {
            return Err(unusable("a Unix socket without a file name"));
        };
        let listener = UnixListener::from_std(OwnedFd::from(socket).into()).map_err(failed)?;
        Ok(Self(Kind::Unix {
            listener,
            path,
            _file: None,
        }))
    }

    /// The sockets that systemd, or any program that keeps to its protocol of socket activation, handed to this
    /// process, in their order there. None when the process was not started that way. They can be taken once.
    ///
    /// # Errors
    /// [`ListenError::Inherited`] when the environment is not as it should be, [`ListenError::Unusable`] for a
    /// descriptor that is no listening socket.
    pub fn from_systemd() -> Result<Vec<Self>, ListenError> {
        inherited::take()?.into_iter().map(Self::inherited).collect()
    }

    /// The TCP address, with the port that was chosen; `None` for a Unix socket.
    #[must_use]
    pub fn tcp_address(&self) -> Option<SocketAddr> {
        match &self.0 {
            Kind::Tcp { address, .. } => Some(*address),
            Kind::Unix { .. } => None,
        }
    }

    /// The NBD URI of an export behind this socket, as qemu, libnbd and others take it. The empty name is the
    /// default export.
    #[must_use]
    pub fn uri(&self, export: &str) -> String {
        match &self.0 {
            Kind::Tcp { address, .. } => format!("nbd://{address}/{}", percent_encoded(export.as_bytes())),
            Kind::Unix { path, .. } => format!(
                "nbd+unix:///{}?socket={}",
                percent_encoded(export.as_bytes()),
                percent_encoded(path.as_os_str().as_encoded_bytes())
            ),
        }
    }

    pub(crate) fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<Accepted>> {
        match &self.0 {
            Kind::Unix { listener, .. } => listener
                .poll_accept(cx)
                .map_ok(|(stream, _)| Accepted::Unix(stream)),
            Kind::Tcp { listener, .. } => listener.poll_accept(cx).map_ok(|(stream, peer)| {
                prepare(&stream);
                Accepted::Tcp(stream, peer)
            }),
        }
    }
}

impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Unix { path, .. } => write!(f, "{}", path.display()),
            Kind::Tcp { address, .. } => write!(f, "{address}"),
        }
    }
}

/// Small replies go out at once, and a vanished peer is noticed.
pub(crate) fn prepare(stream: &TcpStream) {
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_PROBES);
    let set = stream
        .set_nodelay(true)
        .and_then(|()| SockRef::from(stream).set_tcp_keepalive(&keepalive));
    if let Err(error) = set {
        warn!(%error, "can't set the options of a TCP connection");
    }
}

/// Binds a socket that its owner alone can connect to: it takes connections only once its mode is set.
fn bind_private(path: &Path) -> io::Result<UnixListener> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.bind(&SockAddr::unix(path)?)?;
    let listening = fs::set_permissions(path, Permissions::from_mode(SOCKET_MODE))
        .and_then(|()| socket.set_nonblocking(true))
        .and_then(|()| socket.listen(BACKLOG))
        .and_then(|()| UnixListener::from_std(OwnedFd::from(socket).into()));
    if listening.is_err() {
        // It is of no use to anybody; if it cannot be removed, the next server does.
        let _ = fs::remove_file(path);
    }
    listening
}

fn someone_listens(path: &Path) -> io::Result<bool> {
    match StdUnixStream::connect(path) {
        Ok(_) => Ok(true),
        Err(error) => match error.kind() {
            io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => Ok(false),
            // The queue of a living server is full.
            io::ErrorKind::WouldBlock => Ok(true),
            _ => Err(error),
        },
    }
}

/// A lock that lasts until it is dropped. When another program holds on to the lock of this directory, or the
/// file system has none, binding goes on without: only a start of two servers in the same instant is then
/// undecided.
async fn lock_directory(path: &Path) -> Option<File> {
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let directory = File::open(parent).ok()?;
    for _ in 0..LOCK_ATTEMPTS {
        match directory.try_lock() {
            Ok(()) => return Some(directory),
            Err(TryLockError::WouldBlock) => tokio::time::sleep(LOCK_PAUSE).await,
            Err(TryLockError::Error(_)) => return None,
        }
    }
    None
}

/// Removes the socket when dropped, if it is still the one that was made.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|found| (found.dev(), found.ino()) == (self.device, self.inode));
        if ours && let Err(error) = fs::remove_file(&self.path) {
            warn!(path = %self.path.display(), %error, "can't remove the socket");
        }
    }
}

fn percent_encoded(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for &byte in bytes {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}
