//! Where the server finds its devices.
//!
//! The promise: a name is looked up at the moment a client asks for it, and a device that was opened is closed
//! once, after the last connection that used it has ended.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;

use crate::device::{BlockDevice, DeviceError};

/// The devices of a server.
///
/// # Sharing and closing
/// [`open`](Exports::open) is called once per connection and may return a device that is open already: devices
/// are told apart by their `Arc`. When the last connection of one has ended, the server flushes it (unless it is
/// read-only) and calls [`close`](Exports::close) once. A device is never handed to a connection while or after it
/// is closed: when `open` returns such a one because it ran at the same time, the server waits for the `close`
/// to return and calls `open` again. An implementation that shares devices therefore only has to forget a device
/// inside `close`.
///
/// An `open` runs to its end even when its client gives up waiting; the device is then closed again.
#[async_trait]
pub trait Exports: Send + Sync {
    /// The exports that clients are told of. More may be open to those who know the name. The empty name is the
    /// default export.
    async fn list(&self) -> Result<Vec<ExportInfo>, OpenError>;

    /// Opens the export of that name: valid UTF-8 without NUL, at most 4096 bytes, otherwise as hostile as the
    /// client.
    async fn open(&self, name: &str) -> Result<Arc<dyn BlockDevice>, OpenError>;

    /// Gives a device back: the place to release locks and watches. An error is logged and counted in
    /// [`ServeSummary`](crate::ServeSummary); the device counts as closed.
    async fn close(&self, device: Arc<dyn BlockDevice>) -> Result<(), DeviceError>;

    /// One more connection uses the device. Called between its `open` and its `close`, in balance with
    /// [`disconnected`](Exports::disconnected); must not wait for anything.
    fn connected(&self, device: &Arc<dyn BlockDevice>) {
        let _ = device;
    }

    /// One connection less uses the device.
    fn disconnected(&self, device: &Arc<dyn BlockDevice>) {
        let _ = device;
    }
}

/// One line of an export list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportInfo {
    /// The name to open it by, at most 4096 bytes.
    pub name: String,
    /// For people; may be empty.
    pub description: String,
}

/// Why an export can't be opened, as a client can act on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum OpenErrorKind {
    /// There is no export of that name.
    Unknown,
    /// It exists but this server won't serve it, or not now.
    Policy,
    /// Opening failed.
    Io,
    /// The server is going down.
    Shutdown,
}

impl fmt::Display for OpenErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "no such export",
            Self::Policy => "export refused",
            Self::Io => "export failed to open",
            Self::Shutdown => "server is shutting down",
        })
    }
}

/// An export could not be opened or the list not be made. Kind and message reach the client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind}: {message}")]
pub struct OpenError {
    /// What a client can do about it.
    pub kind: OpenErrorKind,
    /// What and where, for a person.
    pub message: String,
}

impl OpenError {
    /// An error of the given kind.
    pub fn new(kind: OpenErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
        }
    }
}
