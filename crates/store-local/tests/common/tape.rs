//! What SQLite does to its files, in order, so that what a kill or a power loss may leave of them can be made of it.
//!
//! The file layer that SQLite takes by default is replaced by one whose files note what they do; the engine builds its own on top of
//! it. Beside each write the notes of the log (docs/format-local.md, 3.1) are read as they are just then. One tape for a process.

#![allow(unsafe_code)] // a file layer is a table of C functions

use std::collections::BTreeMap;
use std::ffi::{CStr, OsStr, c_int, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Once;

use parking_lot::Mutex;
use rusqlite::ffi;

/// What a file was asked to do, and did.
#[derive(Debug, Clone)]
pub enum Done {
    Write(u64, Vec<u8>),
    Truncate(u64),
    Sync,
}

/// One moment.
#[derive(Debug, Clone)]
pub struct Event {
    pub path: PathBuf,
    pub done: Done,
    /// The side file of that database before.
    pub side: Vec<u8>,
}

/// By the address of SQLite's record of a file: its own methods, and its path.
static FILES: Mutex<BTreeMap<usize, (usize, PathBuf)>> = Mutex::new(BTreeMap::new());
static EVENTS: Mutex<Vec<Event>> = Mutex::new(Vec::new());
/// The file layer of before, and its copy of methods that is ours, by the table it was made of.
static BELOW: Mutex<usize> = Mutex::new(0);
static TABLES: Mutex<BTreeMap<usize, usize>> = Mutex::new(BTreeMap::new());

/// How much has happened.
pub fn now() -> usize {
    EVENTS.lock().len()
}

/// What happened from moment `from` on.
pub fn since(from: usize) -> Vec<Event> {
    EVENTS.lock()[from..].to_vec()
}

/// The side file of a database or of its log.
pub fn side_of(path: &Path) -> PathBuf {
    path.with_extension("lock")
}

/// Begins the tape; before any database is opened.
pub fn begin() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: SQLite's default table is valid for good; ours is a leaked copy of it.
        unsafe {
            let below = ffi::sqlite3_vfs_find(std::ptr::null());
            assert!(!below.is_null());
            *BELOW.lock() = below as usize;
            let mut own = *below;
            own.zName = c"taped".as_ptr();
            own.pNext = std::ptr::null_mut();
            own.xOpen = Some(open);
            let own = Box::into_raw(Box::new(own));
            assert_eq!(ffi::sqlite3_vfs_register(own, 1), ffi::SQLITE_OK);
        }
    });
}

unsafe extern "C" fn open(
    _layer: *mut ffi::sqlite3_vfs,
    name: ffi::sqlite3_filename,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    let below = *BELOW.lock() as *mut ffi::sqlite3_vfs;
    // SAFETY: all is handed on as it came; a file that was opened has a table of methods, of which ours is a copy.
    unsafe {
        let opened = (*below).xOpen.unwrap()(below, name, file, flags, out_flags);
        if opened == ffi::SQLITE_OK && !name.is_null() && !(*file).pMethods.is_null() {
            let theirs = (*file).pMethods as usize;
            let ours = *TABLES.lock().entry(theirs).or_insert_with(|| {
                let mut methods = *(theirs as *const ffi::sqlite3_io_methods);
                methods.xClose = Some(close);
                methods.xWrite = Some(write);
                methods.xTruncate = Some(truncate);
                methods.xSync = Some(sync);
                Box::into_raw(Box::new(methods)) as usize
            });
            let path = PathBuf::from(OsStr::from_bytes(CStr::from_ptr(name).to_bytes()));
            FILES.lock().insert(file as usize, (theirs, path));
            (*file).pMethods = ours as *const ffi::sqlite3_io_methods;
        }
        opened
    }
}

fn of(file: *mut ffi::sqlite3_file) -> (&'static ffi::sqlite3_io_methods, PathBuf) {
    let (theirs, path) = FILES.lock()[&(file as usize)].clone();
    // SAFETY: a table of SQLite's, which is never freed.
    (unsafe { &*(theirs as *const ffi::sqlite3_io_methods) }, path)
}

/// Does it and notes it as one, so that the order is the one in which it happened.
fn noted(path: PathBuf, done: Done, doing: impl FnOnce() -> c_int) -> c_int {
    let mut events = EVENTS.lock();
    let side = std::fs::read(side_of(&path)).unwrap_or_default();
    let code = doing();
    if code == ffi::SQLITE_OK {
        events.push(Event { path, done, side });
    }
    code
}

unsafe extern "C" fn close(file: *mut ffi::sqlite3_file) -> c_int {
    let (methods, _) = of(file);
    FILES.lock().remove(&(file as usize));
    // SAFETY: the file is open, and these are its own methods.
    unsafe { methods.xClose.unwrap()(file) }
}

unsafe extern "C" fn write(
    file: *mut ffi::sqlite3_file,
    buffer: *const c_void,
    amount: c_int,
    offset: ffi::sqlite3_int64,
) -> c_int {
    let (methods, path) = of(file);
    // SAFETY: the buffer has `amount` bytes.
    let bytes = unsafe { std::slice::from_raw_parts(buffer.cast::<u8>(), amount as usize) };
    // SAFETY: as in `close`.
    noted(path, Done::Write(offset as u64, bytes.to_vec()), || unsafe {
        methods.xWrite.unwrap()(file, buffer, amount, offset)
    })
}

unsafe extern "C" fn truncate(file: *mut ffi::sqlite3_file, size: ffi::sqlite3_int64) -> c_int {
    let (methods, path) = of(file);
    // SAFETY: as in `close`.
    noted(path, Done::Truncate(size as u64), || unsafe {
        methods.xTruncate.unwrap()(file, size)
    })
}

unsafe extern "C" fn sync(file: *mut ffi::sqlite3_file, flags: c_int) -> c_int {
    let (methods, path) = of(file);
    // SAFETY: as in `close`.
    noted(path, Done::Sync, || unsafe {
        methods.xSync.unwrap()(file, flags)
    })
}
