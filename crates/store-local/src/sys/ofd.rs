//! Byte-range locks that belong to an open file description, not to a process.
//!
//! Two handles in one process exclude each other like two processes do; the kernel lets go when the last descriptor is
//! closed, also by `SIGKILL`. Within one description locks do not exclude: callers put an in-process lock above.

use std::fs::File;
use std::io;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

/// How a range is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hold {
    /// With others.
    Shared,
    /// Alone.
    Exclusive,
}

fn range(kind: libc::c_int, start: u64) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start as libc::off_t,
        l_len: 1,
        l_pid: 0,
    }
}

fn kind_of(hold: Hold) -> libc::c_int {
    match hold {
        Hold::Shared => libc::F_RDLCK,
        Hold::Exclusive => libc::F_WRLCK,
    }
}

/// Takes byte `at` unless somebody is in the way; tells whether it was taken.
pub(crate) fn try_lock(file: &File, at: u64, hold: Hold) -> io::Result<bool> {
    match fcntl(file, FcntlArg::F_OFD_SETLK(&range(kind_of(hold), at))) {
        Ok(_) => Ok(true),
        Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// Takes byte `at`, waiting.
pub(crate) fn lock(file: &File, at: u64, hold: Hold) -> io::Result<()> {
    loop {
        match fcntl(file, FcntlArg::F_OFD_SETLKW(&range(kind_of(hold), at))) {
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Lets go of byte `at`.
pub(crate) fn unlock(file: &File, at: u64) {
    // Unlocking a range of an open file cannot fail but for a wrong descriptor, which `File` rules out.
    let _ = fcntl(file, FcntlArg::F_OFD_SETLK(&range(libc::F_UNLCK, at)));
}
