//! From errors of the library to what `rbd` prints: the one place that turns an [`ImageError`] into an exit code.
//!
//! Ceph's line comes first and unchanged, so that scripts that look for it find it. What the library knows beyond it
//! follows on a line of its own: `rbd: note: <what and where>; <what to do now>`.

use std::fmt;

use ferry_image::{ErrorKind, ImageError};
use ferry_store::StoreError;

use crate::exit::Failure;

/// Words the failure of an operation.
pub(crate) trait Explain {
    /// `rbd: <what>: (N) <strerror>` and the note, exit N.
    fn failed(self, what: impl fmt::Display) -> Failure;
    /// A line of Ceph's that names no errno, and the note.
    fn said(self, line: impl Into<String>) -> Failure;
    /// The note alone, for failures whose lines are special.
    fn note(&self) -> Option<String>;
}

impl Explain for ImageError {
    fn failed(self, what: impl fmt::Display) -> Failure {
        with_note(Failure::errno(what, self.errno.0), self.note())
    }

    fn said(self, line: impl Into<String>) -> Failure {
        with_note(Failure::message(line, self.errno.0), self.note())
    }

    fn note(&self) -> Option<String> {
        // Ceph's line names the image or the snapshot already.
        let says_nothing_new = matches!(
            self.kind,
            ErrorKind::ImageMissing | ErrorKind::ImageExists | ErrorKind::SnapMissing
        );
        match &self.hint {
            // And what to do about it.
            _ if self.kind == ErrorKind::HasSnapshots => None,
            Some(hint) => Some(format!("rbd: note: {}; {hint}", self.message)),
            None if says_nothing_new => None,
            None => Some(format!("rbd: note: {}", self.message)),
        }
    }
}

impl Explain for StoreError {
    fn failed(self, what: impl fmt::Display) -> Failure {
        ImageError::from(self).failed(what)
    }

    fn said(self, line: impl Into<String>) -> Failure {
        ImageError::from(self).said(line)
    }

    fn note(&self) -> Option<String> {
        Some(format!("rbd: note: {}", self.what))
    }
}

fn with_note(failure: Failure, note: Option<String>) -> Failure {
    match note {
        Some(note) => failure.with_line(note),
        None => failure,
    }
}

#[cfg(test)]
mod tests {
    use ferry_store::Errno;

    use super::*;

    #[test]
    fn the_note_follows_the_line_that_scripts_know() {
        let error =
            ImageError::of(ErrorKind::HasWatchers, Errno::EBUSY, "image 'a' has watchers").hint("stop them");
        let failure = error.failed("preparing migration failed");
        assert_eq!(
            failure.text(),
            "rbd: preparing migration failed: (16) Device or resource busy\n\
             rbd: note: image 'a' has watchers; stop them"
        );
        assert_eq!(failure.code(), 16);
    }

    #[test]
    fn what_the_line_says_already_is_not_said_again() {
        let error = ImageError::of(ErrorKind::ImageMissing, Errno::ENOENT, "image 'a'");
        assert_eq!(
            error.failed("error opening image a").text(),
            "rbd: error opening image a: (2) No such file or directory"
        );
    }
}
