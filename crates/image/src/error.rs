//! Errors of the image layer: an errno for exit codes, a kind to match on, the place, and what to do now.
//!
//! One type for the whole crate; the command turns it into its message and exit status in one place.

use std::fmt;

use ferry_store::{Errno, StoreError};

/// What happened, for callers that act on it. Everything else is [`ErrorKind::Other`] and told by the errno.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Only the errno matters.
    Other,
    /// No such image.
    ImageMissing,
    /// The name is taken.
    ImageExists,
    /// No such pool.
    PoolMissing,
    /// No such namespace.
    NamespaceMissing,
    /// No such group.
    GroupMissing,
    /// No such snapshot.
    SnapMissing,
    /// Somebody else has the image open.
    HasWatchers,
    /// The image has snapshots.
    HasSnapshots,
    /// A snapshot is protected.
    SnapProtected,
    /// The image takes part in a migration that forbids this.
    Migrating,
    /// The image takes part in no migration.
    NotMigrating,
    /// The migration is in another state than the verb needs.
    MigrationState,
    /// Something would be lost, and the force flag was not given.
    WouldLose,
    /// The deferment time of a trash entry is not over.
    NotExpired,
    /// The trash entry belongs to something else than a user's `trash mv`.
    TrashSource,
    /// Stored metadata does not make sense.
    Damaged,
    /// Another client owns the exclusive lock and keeps it.
    LockHeld,
    /// The parent of a clone, or the snapshot that it was made of, is gone or cannot be opened.
    ParentMissing,
    /// What an open handle reads was removed under it.
    Removed,
    /// Clones need what was to be changed or removed.
    HasChildren,
    /// The image is in a group.
    InGroup,
}

/// An error of an image operation.
#[derive(Debug, Clone, thiserror::Error)]
pub struct ImageError {
    /// For exit codes and for callers that know only errnos.
    pub errno: Errno,
    /// What happened.
    pub kind: ErrorKind,
    /// What and where, for people.
    pub message: String,
    /// What to do now, when there is something.
    pub hint: Option<String>,
}

impl fmt::Display for ImageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.message, self.errno)?;
        match &self.hint {
            Some(hint) => write!(f, "; {hint}"),
            None => Ok(()),
        }
    }
}

impl ImageError {
    /// An error told by its errno.
    pub fn new(errno: Errno, message: impl Into<String>) -> Self {
        Self {
            errno,
            kind: ErrorKind::Other,
            message: message.into(),
            hint: None,
        }
    }

    /// An error with a kind.
    pub fn of(kind: ErrorKind, errno: Errno, message: impl Into<String>) -> Self {
        Self {
            errno,
            kind,
            message: message.into(),
            hint: None,
        }
    }

    /// Adds what to do now.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Puts the place or the attempted action before the message.
    pub fn context(mut self, context: impl fmt::Display) -> Self {
        self.message = format!("{context}: {}", self.message);
        self
    }
}

impl From<StoreError> for ImageError {
    fn from(error: StoreError) -> Self {
        let message = match error.step {
            Some(step) => format!("{} (step {step})", error.what),
            None => error.what,
        };
        Self {
            errno: error.errno,
            kind: ErrorKind::Other,
            message,
            hint: None,
        }
    }
}

/// Result of image operations.
pub type Result<T, E = ImageError> = std::result::Result<T, E>;

/// Turns "not there" into `None`, for lookups where absence is an answer.
pub fn optional<T>(result: ferry_store::Result<T>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.errno == Errno::ENOENT => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Turns "not there" into success, for removals that may have happened before.
pub fn absent_is_fine(result: ferry_store::Result<()>) -> Result<()> {
    optional(result).map(|_| ())
}
