//! librados behind safe types: the only place of the engine with `unsafe` code.
//!
//! What it keeps: memory that the library writes to lives until the operation's completion was called, also when nobody
//! waits for the answer any more; handles are destroyed after everything that was made from them; no future blocks a
//! thread of the runtime. What it does not know: the store contract beyond its plain values.

mod allocator;
mod budget;
mod cluster;
mod completion;
mod cxx;
mod cxx_buffer;
mod cxx_copy;
mod cxx_lend;
mod given_up;
mod ioctx;
mod library;
mod list;
mod read;
mod watch;
mod write;

pub(crate) use cluster::Cluster;
pub(crate) use ioctx::{Ioctx, ReadAt};
pub use library::LoadError;
pub(crate) use library::library;
pub(crate) use read::{Lending, OpError, StepAnswer};
pub(crate) use watch::{WatchEvent, Watching};

use std::ffi::{CString, c_int};

use ferry_store::Errno;

/// What librados' calls return.
pub(crate) type Rc<T> = Result<T, Errno>;

/// A negative return value as an errno.
pub(crate) fn errno_of(returned: c_int) -> Errno {
    match returned {
        ..=-4095 => Errno::EILSEQ,
        -4094..0 => Errno(-returned),
        _ => Errno::EIO,
    }
}

/// Values from 0 on, or the errno.
pub(crate) fn check(returned: c_int) -> Rc<c_int> {
    match returned {
        0.. => Ok(returned),
        _ => Err(errno_of(returned)),
    }
}

/// Text for the library; one with a NUL byte is refused.
fn text(value: &str) -> Rc<CString> {
    CString::new(value).map_err(|_| Errno::EINVAL)
}
