//! How a command ends: the one place that turns an errno into an exit code and an error line.
//!
//! A command body returns `Result<(), Failure>`. The constructors are the situations that `rbd` knows:
//!
//! * [`Failure::usage`]: the command line could not be parsed; exit 1;
//! * [`Failure::invalid`]: it parsed but asks for something impossible; exit 22 (EINVAL);
//! * [`Failure::errno`]: an operation failed; `rbd: <what>: (N) <text>`, exit N;
//! * [`Failure::errno_bare`]: the few lines that Ceph prints without the `rbd: ` in front;
//! * [`Failure::message`]: any other text with its own exit code;
//! * [`Failure::silent`]: everything has been said on stderr already;
//! * [`Failure::not_supported`]: known to `rbd`, not what Ferry does; exit 95.
//!
//! Invariant: the text of a failure goes to stderr and the code is never 0. This module does not know which
//! library error carries which errno; callers do.

use std::borrow::Cow;
use std::fmt;
use std::process::ExitCode;

/// Exit code of command-line errors, as Ceph's `rbd` uses it.
pub const EXIT_USAGE: u8 = 1;
/// EPERM.
pub const EPERM: i32 = 1;
/// ENOENT: an image, pool, snapshot or file is missing.
pub const ENOENT: i32 = 2;
/// EIO.
pub const EIO: i32 = 5;
/// EBUSY: watchers, children or a running migration stand in the way.
pub const EBUSY: i32 = 16;
/// EEXIST.
pub const EEXIST: i32 = 17;
/// EINVAL.
pub const EINVAL: i32 = 22;
/// ENOTEMPTY: an image that still has snapshots.
pub const ENOTEMPTY: i32 = 39;
/// EOPNOTSUPP: exit code of everything that Ferry knows but has not built.
pub const EOPNOTSUPP: i32 = 95;

/// Why a command did not succeed: the lines for stderr and the exit code.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub struct Failure {
    text: String,
    code: u8,
}

impl Failure {
    /// The command line cannot be parsed: `rbd: <what>`, exit 1.
    pub fn usage(what: impl fmt::Display) -> Self {
        Self {
            text: format!("rbd: {what}"),
            code: EXIT_USAGE,
        }
    }

    /// The arguments contradict each other or something is missing: `rbd: <what>`, exit 22.
    pub fn invalid(what: impl fmt::Display) -> Self {
        Self {
            text: format!("rbd: {what}"),
            code: exit_code(EINVAL),
        }
    }

    /// An operation failed: `rbd: <what>: (N) <strerror>`, exit N. The sign of `errno` does not matter.
    pub fn errno(what: impl fmt::Display, errno: i32) -> Self {
        Self {
            text: format!("rbd: {what}: {}", describe(errno)),
            code: exit_code(errno),
        }
    }

    /// Like [`Failure::errno`] without the leading `rbd: `, for the few lines where Ceph omits it
    /// (`error setting snapshot context: (2) ...`).
    pub fn errno_bare(what: impl fmt::Display, errno: i32) -> Self {
        Self {
            text: format!("{what}: {}", describe(errno)),
            code: exit_code(errno),
        }
    }

    /// Any text, printed as given, with the exit code of `errno`.
    pub fn message(text: impl Into<String>, errno: i32) -> Self {
        Self {
            text: text.into(),
            code: exit_code(errno),
        }
    }

    /// Everything has been reported already; only the exit code of `errno` is left.
    pub fn silent(errno: i32) -> Self {
        Self {
            text: String::new(),
            code: exit_code(errno),
        }
    }

    /// A command or option of `rbd` for what Ferry does not do, and why: exit 95.
    pub fn not_supported(what: &str, reason: &str) -> Self {
        Self {
            text: format!("rbd: {what} is not supported: {reason}"),
            code: exit_code(EOPNOTSUPP),
        }
    }

    /// Adds a line after the text, e.g. what to do now.
    pub fn with_line(mut self, line: impl fmt::Display) -> Self {
        if !self.text.is_empty() {
            self.text.push('\n');
        }
        self.text.push_str(&line.to_string());
        self
    }

    /// Puts lines before the text: warnings that belong to a command that then failed.
    pub fn after_warnings(mut self, warnings: &[String]) -> Self {
        for warning in warnings.iter().rev() {
            self.text = format!("{warning}\n{}", self.text);
        }
        self
    }

    /// The lines for stderr, without a final newline; empty for [`Failure::silent`].
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The exit code, 1..=255.
    pub fn code(&self) -> u8 {
        self.code
    }

    /// Prints the text on stderr and gives the code for `main` to return.
    pub fn report(&self) -> ExitCode {
        if !self.text.is_empty() {
            eprintln!("{}", self.text);
        }
        ExitCode::from(self.code)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Failure {}

/// The exit code for an errno of either sign: its low eight bits as a shell sees them, 1 where that would be 0.
pub fn exit_code(errno: i32) -> u8 {
    match (errno.unsigned_abs() & 0xff) as u8 {
        0 => EXIT_USAGE,
        code => code,
    }
}

/// `(N) <strerror>`, the form in which every `rbd` error names its errno.
pub fn describe(errno: i32) -> String {
    let errno = errno.saturating_abs();
    format!("({errno}) {}", strerror(errno))
}

/// glibc's text for an errno, independent of the C library in use for the ones that `rbd` meets.
pub fn strerror(errno: i32) -> Cow<'static, str> {
    let known = match errno.saturating_abs() {
        0 => "Success",
        1 => "Operation not permitted",
        2 => "No such file or directory",
        4 => "Interrupted system call",
        5 => "Input/output error",
        6 => "No such device or address",
        7 => "Argument list too long",
        9 => "Bad file descriptor",
        11 => "Resource temporarily unavailable",
        12 => "Cannot allocate memory",
        13 => "Permission denied",
        14 => "Bad address",
        16 => "Device or resource busy",
        17 => "File exists",
        18 => "Invalid cross-device link",
        19 => "No such device",
        20 => "Not a directory",
        21 => "Is a directory",
        22 => "Invalid argument",
        24 => "Too many open files",
        26 => "Text file busy",
        27 => "File too large",
        28 => "No space left on device",
        29 => "Illegal seek",
        30 => "Read-only file system",
        32 => "Broken pipe",
        33 => "Numerical argument out of domain",
        34 => "Numerical result out of range",
        36 => "File name too long",
        38 => "Function not implemented",
        39 => "Directory not empty",
        61 => "No data available",
        74 => "Bad message",
        75 => "Value too large for defined data type",
        84 => "Invalid or incomplete multibyte or wide character",
        85 => "Interrupted system call should be restarted",
        95 => "Operation not supported",
        97 => "Address family not supported by protocol",
        98 => "Address already in use",
        99 => "Cannot assign requested address",
        103 => "Software caused connection abort",
        104 => "Connection reset by peer",
        107 => "Transport endpoint is not connected",
        108 => "Cannot send after transport endpoint shutdown",
        110 => "Connection timed out",
        111 => "Connection refused",
        113 => "No route to host",
        115 => "Operation now in progress",
        116 => "Stale file handle",
        122 => "Disk quota exceeded",
        125 => "Operation canceled",
        other => {
            let text = std::io::Error::from_raw_os_error(other).to_string();
            let end = text.find(" (os error").unwrap_or(text.len());
            return Cow::Owned(text[..end].to_owned());
        }
    };
    Cow::Borrowed(known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errno_becomes_exit_code_and_line() {
        let failure = Failure::errno("error opening image x", -2);
        assert_eq!(
            failure.text(),
            "rbd: error opening image x: (2) No such file or directory"
        );
        assert_eq!(failure.code(), 2);
        let bare = Failure::errno_bare("error setting snapshot context", 2);
        assert_eq!(
            bare.text(),
            "error setting snapshot context: (2) No such file or directory"
        );
        assert_eq!(Failure::errno("failed to create snapshot", 122).code(), 122);
    }

    #[test]
    fn exit_code_is_never_zero() {
        assert_eq!(exit_code(0), 1);
        assert_eq!(exit_code(256), 1);
        assert_eq!(exit_code(-110), 110);
        assert_eq!(exit_code(i32::MIN), 1);
    }

    #[test]
    fn warnings_stand_before_the_failure_and_hints_after_it() {
        let failure = Failure::invalid("b")
            .after_warnings(&["rbd: a".to_owned()])
            .with_line("c");
        assert_eq!(failure.text(), "rbd: a\nrbd: b\nc");
    }

    #[test]
    fn unlisted_errnos_keep_the_system_text() {
        assert!(!strerror(71).contains("os error"));
    }
}
