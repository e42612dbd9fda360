//! Writing out a file's dirty pages without the cost of a sync: nothing here makes anything durable.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::libc;

fn sync_file_range(file: BorrowedFd<'_>, flags: libc::c_uint) -> io::Result<()> {
    // SAFETY: the descriptor is open as long as it is borrowed, and the call touches no memory of this process.
    #[allow(unsafe_code)]
    let done = unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, flags) };
    match done {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Waits for what is being written out, and reports the error, if any, that this opening of the file has not reported yet.
pub(crate) fn check(file: BorrowedFd<'_>) -> io::Result<()> {
    sync_file_range(file, libc::SYNC_FILE_RANGE_WAIT_BEFORE)
}

/// Lets the medium begin with what is dirty, so that a later sync finds less to do.
pub(crate) fn start(file: BorrowedFd<'_>) -> io::Result<()> {
    sync_file_range(file, libc::SYNC_FILE_RANGE_WRITE)
}
