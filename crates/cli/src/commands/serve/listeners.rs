//! The sockets that a server listens on: those that are asked for, those that systemd passes on, or the usual one.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;

use ferry_nbd::{ListenError, Listener};

use super::options::ServeOptions;
use crate::commands::session::Session;
use crate::exit::{EEXIST, EINVAL, EIO, Failure};

/// Exit code when the socket cannot be listened on because another server has it.
const EADDRINUSE: i32 = 98;

/// See the module's text.
#[derive(Debug)]
pub(super) struct Listeners {
    all: Vec<Listener>,
    /// `nbd`, or `nbds` where clients must use TLS.
    scheme: &'static str,
}

impl Listeners {
    /// Opens all of them, or none.
    ///
    /// # Errors
    /// Exit 98 for a socket that another server has, 17 for a file that is no socket, 22 for inherited sockets that
    /// cannot be used, else the errno.
    pub(super) async fn open(session: &Session, options: &ServeOptions) -> Result<Self, Failure> {
        let mut all = Listener::from_systemd().map_err(failed)?;
        for path in &options.sockets {
            all.push(Listener::unix(path).await.map_err(failed)?);
        }
        for address in &options.addresses {
            all.push(Listener::tcp(*address).await.map_err(failed)?);
        }
        if all.is_empty() {
            all.push(Listener::unix(usual_socket(session)?).await.map_err(failed)?);
        }
        let scheme = if options.tls.is_some() { "nbds" } else { "nbd" };
        Ok(Self { all, scheme })
    }

    /// URIs of all these exports on all sockets.
    pub(super) fn uris<S: AsRef<str>>(&self, names: &[S]) -> String {
        let uris = names.iter().flat_map(|name| {
            self.all.iter().map(|listener| {
                let uri = listener.uri(name.as_ref());
                uri.replacen("nbd", self.scheme, 1)
            })
        });
        uris.collect::<Vec<_>>().join(" ")
    }

    pub(super) fn into_inner(self) -> Vec<Listener> {
        self.all
    }
}

/// `nbd.sock`, in a directory that others cannot enter, where this user's running programs have their sockets.
fn usual_socket(session: &Session) -> Result<PathBuf, Failure> {
    let directory = session.invocation().globals.run_directory()?;
    let made = DirBuilder::new().recursive(true).mode(0o700).create(&directory);
    made.map_err(|error| {
        Failure::errno(
            format_args!("cannot make '{}' for the socket", directory.display()),
            error.raw_os_error().unwrap_or(EIO),
        )
    })?;
    Ok(directory.join("nbd.sock"))
}

fn failed(error: ListenError) -> Failure {
    let errno = match &error {
        ListenError::InUse { .. } => EADDRINUSE,
        ListenError::NotASocket { .. } => EEXIST,
        ListenError::Inherited(_) | ListenError::Unusable { .. } => EINVAL,
        ListenError::Io { source, .. } => source.raw_os_error().unwrap_or(EINVAL),
        _ => EIO,
    };
    Failure::message(format!("rbd: {error}"), errno)
}
