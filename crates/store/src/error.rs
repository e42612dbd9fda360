//! Errors of the store contract: an errno to act on, the place, and what was being done.

use std::fmt;

/// Linux errno, positive. Display gives glibc's text.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Errno(pub i32);

macro_rules! errnos {
    ($($name:ident = $value:literal, $text:literal;)*) => {
        #[allow(missing_docs)] // each is the errno of its name
        impl Errno {
            $(pub const $name: Errno = Errno($value);)*

            /// Symbolic name, when known.
            pub fn name(self) -> Option<&'static str> {
                match self.0 { $($value => Some(stringify!($name)),)* _ => None }
            }

            /// The text that `strerror` gives for it.
            pub fn text(self) -> String {
                match self.0 { $($value => $text.to_owned(),)* other => format!("Unknown error {other}") }
            }
        }
    };
}

errnos! {
    EPERM = 1, "Operation not permitted";
    ENOENT = 2, "No such file or directory";
    EINTR = 4, "Interrupted system call";
    EIO = 5, "Input/output error";
    ENXIO = 6, "No such device or address";
    E2BIG = 7, "Argument list too long";
    ENOEXEC = 8, "Exec format error";
    EBADF = 9, "Bad file descriptor";
    EAGAIN = 11, "Resource temporarily unavailable";
    ENOMEM = 12, "Cannot allocate memory";
    EACCES = 13, "Permission denied";
    EBUSY = 16, "Device or resource busy";
    EEXIST = 17, "File exists";
    EXDEV = 18, "Invalid cross-device link";
    ENOTDIR = 20, "Not a directory";
    EISDIR = 21, "Is a directory";
    EINVAL = 22, "Invalid argument";
    EMFILE = 24, "Too many open files";
    EFBIG = 27, "File too large";
    ENOSPC = 28, "No space left on device";
    EROFS = 30, "Read-only file system";
    EMLINK = 31, "Too many links";
    EPIPE = 32, "Broken pipe";
    EDOM = 33, "Numerical argument out of domain";
    ERANGE = 34, "Numerical result out of range";
    ENAMETOOLONG = 36, "File name too long";
    ENOSYS = 38, "Function not implemented";
    ENOTEMPTY = 39, "Directory not empty";
    ELOOP = 40, "Too many levels of symbolic links";
    ENODATA = 61, "No data available";
    EBADMSG = 74, "Bad message";
    EOVERFLOW = 75, "Value too large for defined data type";
    EILSEQ = 84, "Invalid or incomplete multibyte or wide character";
    ERESTART = 85, "Interrupted system call should be restarted";
    EOPNOTSUPP = 95, "Operation not supported";
    EADDRINUSE = 98, "Address already in use";
    ECONNRESET = 104, "Connection reset by peer";
    ENOTCONN = 107, "Transport endpoint is not connected";
    ESHUTDOWN = 108, "Cannot send after transport endpoint shutdown";
    ETIMEDOUT = 110, "Connection timed out";
    ECONNREFUSED = 111, "Connection refused";
    ESTALE = 116, "Stale file handle";
    EDQUOT = 122, "Disk quota exceeded";
    ECANCELED = 125, "Operation canceled";
}

impl Errno {
    /// The errno of an I/O error, `EIO` when it has none.
    pub fn of_io(error: &std::io::Error) -> Self {
        match error.raw_os_error() {
            Some(code) => Self(code),
            None => Self::EIO,
        }
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "Errno({})", self.0),
        }
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "({}) {}", self.0, self.text())
    }
}

/// What went wrong in a store operation, and where.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{what}: {errno}{}", StepSuffix(*.step))]
pub struct StoreError {
    /// What the caller may act on.
    pub errno: Errno,
    /// Operation and place, for people: `write to pool 1 object 'rbd_data.x.0'`.
    pub what: String,
    /// Index of the failing step in the operation, when one step failed.
    pub step: Option<usize>,
}

struct StepSuffix(Option<usize>);

impl fmt::Display for StepSuffix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(step) => write!(f, " (step {step})"),
            None => Ok(()),
        }
    }
}

impl StoreError {
    /// An error without a failing step.
    pub fn new(errno: Errno, what: impl Into<String>) -> Self {
        Self {
            errno,
            what: what.into(),
            step: None,
        }
    }

    /// The same, naming the failing step.
    pub fn at_step(errno: Errno, what: impl Into<String>, step: usize) -> Self {
        Self {
            errno,
            what: what.into(),
            step: Some(step),
        }
    }

    /// An I/O error at a place (a path, a pool).
    pub fn io(error: &std::io::Error, what: impl Into<String>) -> Self {
        Self::new(Errno::of_io(error), format!("{} ({error})", what.into()))
    }
}

/// Result of store operations.
pub type Result<T, E = StoreError> = std::result::Result<T, E>;
