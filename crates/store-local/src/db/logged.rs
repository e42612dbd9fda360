//! SQLite's own file layer for logs, with two things added: a page that is read from a frame must have the frame's checksum
//! ([`super::log`]), and a log that is about to be recovered must have all that was synced into it.
//!
//! Keeps invariant: no byte of a frame whose checksum is wrong reaches a reader or, by a checkpoint, the database; and a recovery that
//! would take the first such frame for the end of the log fails with `SQLITE_IOERR_DATA` instead, if it was synced. Not judged are
//! frames of the handle's own transaction that is not committed yet: their checksums are made last. Does not know tables, nor who reads.

#![allow(unsafe_code)] // a file layer is a table of C functions

use std::ffi::{CStr, OsStr, c_int, c_void};
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, ffi};

use super::log::{self, FRAME_HEAD, Mark, Synced};
use super::page::PAGE;

/// What the layer keeps of a log; SQLite's own record of the file follows behind it in the same memory.
#[repr(C)]
pub(super) struct Logged {
    methods: *const ffi::sqlite3_io_methods,
    /// A box of ours, until the file is closed.
    state: *mut State,
}

/// What a handle has written of a log.
#[derive(Debug, Default)]
struct State {
    /// The file that has the note of what was synced; `None`: there is none.
    side: Option<PathBuf>,
    /// First frame that this handle wrote and has not committed.
    uncommitted: Option<u64>,
    /// Up to the last frame of a transaction that was written.
    ended: Option<Synced>,
    /// The same once the log was synced behind it.
    synced: Option<Synced>,
}

static METHODS: ffi::sqlite3_io_methods = ffi::sqlite3_io_methods {
    iVersion: 1,
    xClose: Some(close),
    xRead: Some(read),
    xWrite: Some(write),
    xTruncate: Some(truncate),
    xSync: Some(sync),
    xFileSize: Some(file_size),
    xLock: Some(lock),
    xUnlock: Some(unlock),
    xCheckReservedLock: Some(check_reserved_lock),
    xFileControl: Some(file_control),
    xSectorSize: Some(sector_size),
    xDeviceCharacteristics: Some(device_characteristics),
    xShmMap: None,
    xShmLock: None,
    xShmBarrier: None,
    xShmUnmap: None,
    xFetch: None,
    xUnfetch: None,
};

/// SQLite's record of the file, behind ours.
pub(super) unsafe fn real(file: *mut ffi::sqlite3_file) -> *mut ffi::sqlite3_file {
    // SAFETY: SQLite gave `szOsFile` bytes, of which ours are the first.
    unsafe { file.cast::<u8>().add(size_of::<Logged>()).cast() }
}

/// Makes the record of a log whose file below is open.
///
/// # Safety
/// `file` has room for the record, and SQLite's own behind it is open; `name` is null or a path that ends with zero.
pub(super) unsafe fn adopt(file: *mut ffi::sqlite3_file, name: ffi::sqlite3_filename) {
    let side = match name.is_null() {
        true => None,
        false => {
            // SAFETY: not null, and ends with zero.
            let name = unsafe { CStr::from_ptr(name) };
            let database = name.to_bytes().strip_suffix(b"-wal");
            database.map(|database| log::side_path(Path::new(OsStr::from_bytes(database))))
        }
    };
    let state = Box::into_raw(Box::new(State {
        side,
        ..State::default()
    }));
    // SAFETY: there is room for the record.
    unsafe {
        file.cast::<Logged>().write(Logged {
            methods: &raw const METHODS,
            state,
        });
    }
}

/// Calls a method of the file below.
macro_rules! below {
    ($file:expr, $method:ident($($argument:expr),*), $absent:expr) => {{
        // SAFETY: SQLite calls methods of open files only, and `adopt` was given an open file below with its methods.
        unsafe {
            let real = real($file);
            match (*(*real).pMethods).$method {
                Some(method) => method(real $(, $argument)*),
                None => $absent,
            }
        }
    }};
}

/// Our part of an open log.
unsafe fn state<'a>(file: *mut ffi::sqlite3_file) -> &'a mut State {
    // SAFETY: `adopt` made it, `close` ends it, and SQLite uses a file from one thread at a time.
    unsafe { &mut *(*file.cast::<Logged>()).state }
}

/// What a connection has committed and synced since it was asked last, if that is the last it committed. To be asked under the
/// writers' lock, after a commit: nobody else has written since.
pub(super) fn take_synced(connection: &Connection) -> Option<Synced> {
    let mut file: *mut ffi::sqlite3_file = std::ptr::null_mut();
    // SAFETY: the connection is open and used by nobody else, and the call writes one pointer: to the log's record, if it has a log.
    unsafe {
        ffi::sqlite3_file_control(
            connection.handle(),
            std::ptr::null(),
            ffi::SQLITE_FCNTL_JOURNAL_POINTER,
            (&raw mut file).cast::<c_void>(),
        );
        if file.is_null() || !std::ptr::eq((*file).pMethods, &raw const METHODS) {
            return None;
        }
        let state = state(file);
        state.ended = None;
        state.synced.take()
    }
}

/// Fills `bytes` from `offset` on; false when it cannot.
fn read_below(file: *mut ffi::sqlite3_file, offset: u64, bytes: &mut [u8]) -> bool {
    let Ok(offset) = ffi::sqlite3_int64::try_from(offset) else {
        return false;
    };
    let amount = bytes.len() as c_int;
    let read = below!(
        file,
        xRead(bytes.as_mut_ptr().cast::<c_void>(), amount, offset),
        ffi::SQLITE_IOERR_READ
    );
    read == ffi::SQLITE_OK
}

/// Number of the frame whose page `amount` bytes at `offset` are.
fn page_at(amount: c_int, offset: i64) -> Option<u64> {
    (amount as usize == PAGE)
        .then(|| log::frame_of_page(u64::try_from(offset).ok()?))
        .flatten()
}

unsafe extern "C" fn close(file: *mut ffi::sqlite3_file) -> c_int {
    // SAFETY: a box that `adopt` made, given back once: SQLite uses no file after it was closed.
    drop(unsafe { Box::from_raw((*file.cast::<Logged>()).state) });
    below!(file, xClose(), ffi::SQLITE_OK)
}

unsafe extern "C" fn read(
    file: *mut ffi::sqlite3_file,
    buffer: *mut c_void,
    amount: c_int,
    offset: ffi::sqlite3_int64,
) -> c_int {
    let read = below!(file, xRead(buffer, amount, offset), ffi::SQLITE_IOERR_READ);
    let Some(frame) = page_at(amount, offset).filter(|_| read == ffi::SQLITE_OK) else {
        return read;
    };
    // SAFETY: the file is open.
    if unsafe { state(file) }
        .uncommitted
        .is_some_and(|first| frame >= first)
    {
        return read;
    }
    // SAFETY: the buffer has `amount` bytes, just filled.
    let page = unsafe { std::slice::from_raw_parts(buffer.cast::<u8>(), PAGE) };
    match log::page_fits(frame, page, |offset, bytes| read_below(file, offset, bytes)) {
        true => ffi::SQLITE_OK,
        false => ffi::SQLITE_IOERR_DATA,
    }
}

unsafe extern "C" fn write(
    file: *mut ffi::sqlite3_file,
    buffer: *const c_void,
    amount: c_int,
    offset: ffi::sqlite3_int64,
) -> c_int {
    let at = u64::try_from(offset).unwrap_or(u64::MAX);
    if amount as usize == FRAME_HEAD
        && let Some(frame) = log::frame_at(at)
    {
        // SAFETY: the buffer has `amount` bytes.
        let head = unsafe { std::slice::from_raw_parts(buffer.cast::<u8>(), FRAME_HEAD) };
        // SAFETY: the file is open.
        let state = unsafe { state(file) };
        (state.ended, state.synced) = (None, None);
        match log::is_commit(head) {
            true => {
                state.uncommitted = None;
                state.ended = log::salt_of_frame(head).map(|salt| Synced {
                    salt,
                    frames: frame + 1,
                });
            }
            false => state.uncommitted = Some(state.uncommitted.map_or(frame, |first| first.min(frame))),
        }
    }
    below!(file, xWrite(buffer, amount, offset), ffi::SQLITE_IOERR_WRITE)
}

unsafe extern "C" fn sync(file: *mut ffi::sqlite3_file, flags: c_int) -> c_int {
    let synced = below!(file, xSync(flags), ffi::SQLITE_IOERR_FSYNC);
    if synced == ffi::SQLITE_OK {
        // SAFETY: the file is open.
        let state = unsafe { state(file) };
        state.synced = state.ended;
    }
    synced
}

/// SQLite asks how long a log is when it begins to recover it, and at no other time.
unsafe extern "C" fn file_size(file: *mut ffi::sqlite3_file, size: *mut ffi::sqlite3_int64) -> c_int {
    let asked = below!(file, xFileSize(size), ffi::SQLITE_IOERR_FSTAT);
    if asked != ffi::SQLITE_OK {
        return asked;
    }
    // SAFETY: the file is open, and SQLite gave a place for the answer, which was filled.
    let (state, bytes) = unsafe { (state(file), u64::try_from(*size).unwrap_or(0)) };
    let side = state.side.as_ref().and_then(|side| File::open(side).ok());
    let mark = side.as_ref().and_then(Mark::read);
    let fault =
        mark.and_then(|mark| log::judge(&mark, bytes, |offset, bytes| read_below(file, offset, bytes)));
    match fault {
        Some(_) => ffi::SQLITE_IOERR_DATA,
        None => asked,
    }
}

unsafe extern "C" fn truncate(file: *mut ffi::sqlite3_file, size: ffi::sqlite3_int64) -> c_int {
    below!(file, xTruncate(size), ffi::SQLITE_IOERR_TRUNCATE)
}

unsafe extern "C" fn lock(file: *mut ffi::sqlite3_file, level: c_int) -> c_int {
    below!(file, xLock(level), ffi::SQLITE_IOERR_LOCK)
}

unsafe extern "C" fn unlock(file: *mut ffi::sqlite3_file, level: c_int) -> c_int {
    below!(file, xUnlock(level), ffi::SQLITE_IOERR_UNLOCK)
}

unsafe extern "C" fn check_reserved_lock(file: *mut ffi::sqlite3_file, held: *mut c_int) -> c_int {
    below!(
        file,
        xCheckReservedLock(held),
        ffi::SQLITE_IOERR_CHECKRESERVEDLOCK
    )
}

unsafe extern "C" fn file_control(
    file: *mut ffi::sqlite3_file,
    operation: c_int,
    argument: *mut c_void,
) -> c_int {
    below!(file, xFileControl(operation, argument), ffi::SQLITE_NOTFOUND)
}

unsafe extern "C" fn sector_size(file: *mut ffi::sqlite3_file) -> c_int {
    below!(file, xSectorSize(), PAGE as c_int)
}

unsafe extern "C" fn device_characteristics(file: *mut ffi::sqlite3_file) -> c_int {
    below!(file, xDeviceCharacteristics(), 0)
}
