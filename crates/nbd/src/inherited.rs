//! Sockets that another process opened and handed down: systemd socket activation.
//!
//! The promise: the environment is only believed when it names this very process, descriptors are taken once per
//! process, each is checked to be open before anything owns it, and none leaks into programs started later.
//!
//! The rules are those of `sd_listen_fds(3)`: `LISTEN_PID` is the process meant, `LISTEN_FDS` the number of
//! descriptors, which start at 3.

use std::env;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};

/// The first descriptor that is handed down.
const FIRST: RawFd = 3;
/// Most sockets that are taken; far more than any unit file lists.
const MAX_SOCKETS: u32 = 256;

/// Why inherited sockets can't be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InheritedError {
    /// A variable of the environment is no number.
    #[error(
        "{name}=\"{value}\" is not a number: start the server through systemd or systemd-socket-activate, or \
         unset it"
    )]
    Variable {
        /// `LISTEN_PID` or `LISTEN_FDS`.
        name: &'static str,
        /// What it holds.
        value: String,
    },
    /// More sockets than any server needs.
    #[error("LISTEN_FDS={count}: at most {MAX_SOCKETS} inherited sockets are taken; list fewer in the unit")]
    TooMany {
        /// Their number.
        count: u32,
    },
    /// A descriptor that should be there is not open.
    #[error("LISTEN_FDS promises descriptor {descriptor}, which is not open: {source}")]
    NotOpen {
        /// Its number.
        descriptor: RawFd,
        /// Why.
        source: std::io::Error,
    },
    /// They were taken before.
    #[error("the inherited sockets were taken before: only one server of a process can have them")]
    Taken,
}

/// The sockets meant for this process, in the order of the unit; none when it was not started that way.
pub(crate) fn take() -> Result<Vec<OwnedFd>, InheritedError> {
    let variable = |name| env::var_os(name).map(|value| value.to_string_lossy().into_owned());
    let count = promised(variable("LISTEN_PID"), variable("LISTEN_FDS"), std::process::id())?;
    if count == 0 {
        return Ok(Vec::new());
    }
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::SeqCst) {
        return Err(InheritedError::Taken);
    }
    // Bounded by MAX_SOCKETS.
    let descriptors = FIRST..FIRST + count as RawFd;
    for descriptor in descriptors.clone() {
        keep_from_children(descriptor).map_err(|source| InheritedError::NotOpen { descriptor, source })?;
    }
    Ok(descriptors.map(own).collect())
}

/// How many sockets the environment promises to the process `own_pid`.
fn promised(pid: Option<String>, count: Option<String>, own_pid: u32) -> Result<u32, InheritedError> {
    let (Some(pid), Some(count)) = (pid, count) else {
        return Ok(0);
    };
    let number = |name, value: String| match value.parse::<u32>() {
        Ok(number) => Ok(number),
        Err(_) => Err(InheritedError::Variable { name, value }),
    };
    // The variables of another process were inherited by mistake, which is common and harmless.
    if number("LISTEN_PID", pid)? != own_pid {
        return Ok(0);
    }
    match number("LISTEN_FDS", count)? {
        count if count > MAX_SOCKETS => Err(InheritedError::TooMany { count }),
        count => Ok(count),
    }
}

/// Closes the descriptor in programs that this process starts; fails when it is not open.
#[allow(unsafe_code)]
fn keep_from_children(descriptor: RawFd) -> std::io::Result<()> {
    // SAFETY: the borrow ends with this function, and a descriptor that is not open only makes the calls fail.
    let borrowed = unsafe { BorrowedFd::borrow_raw(descriptor) };
    let flags = fcntl_getfd(borrowed)?;
    fcntl_setfd(borrowed, flags | FdFlags::CLOEXEC)?;
    Ok(())
}

#[allow(unsafe_code)]
fn own(descriptor: RawFd) -> OwnedFd {
    // SAFETY: the descriptor is open, was handed to this process by its parent for this purpose, and `TAKEN`
    // makes this the only place and time that takes ownership of it.
    unsafe { OwnedFd::from_raw_fd(descriptor) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(pid: Option<&str>, count: Option<&str>) -> Result<u32, InheritedError> {
        promised(pid.map(str::to_owned), count.map(str::to_owned), 42)
    }

    #[test]
    fn only_the_process_that_is_meant_gets_the_sockets() {
        assert_eq!(check(Some("42"), Some("2")).unwrap(), 2);
        assert_eq!(check(Some("42"), Some("0")).unwrap(), 0);
        for (pid, count) in [
            (None, None),
            (None, Some("2")),
            (Some("42"), None),
            (Some("43"), Some("2")),
            (Some("43"), Some("nonsense")),
        ] {
            assert_eq!(check(pid, count).unwrap(), 0, "{pid:?} {count:?}");
        }
    }

    #[test]
    fn numbers_that_are_none_or_too_large_are_named() {
        for (pid, count) in [("42", "-1"), ("42", ""), ("42", "2 "), ("me", "1")] {
            assert!(
                matches!(
                    check(Some(pid), Some(count)),
                    Err(InheritedError::Variable { .. })
                ),
                "{pid} {count}"
            );
        }
        assert!(matches!(
            check(Some("42"), Some("257")),
            Err(InheritedError::TooMany { count: 257 })
        ));
    }

    #[test]
    fn a_descriptor_that_is_not_open_is_not_taken() {
        assert!(keep_from_children(1 << 20).is_err());
    }
}
