//! SQLite's own file layer with one thing added: a page of a database that has checksums ([`super::page`]) gets its own when it is
//! written into the file, and is refused when it is read and does not fit. What is added for logs is in [`super::logged`].
//!
//! Keeps invariant: no byte of a page whose checksum is wrong reaches anybody, whether the page is read whole or in part: the read
//! fails with `SQLITE_IOERR_DATA`. Only the header is read alone, and has to go on saying the same. Files without checksums are passed through. Does not know tables, nor who reads.

#![allow(unsafe_code)] // a file layer is a table of C functions

use std::ffi::{CStr, c_int, c_void};
use std::sync::OnceLock;

use rusqlite::{Connection, ffi};

use super::logged::{self, Logged};
use super::page::{self, HEADER, Kept, PAGE, RESERVED};

/// Name by which connections ask for the layer.
pub(crate) const NAME: &CStr = c"ferry-checked";

/// What the layer keeps of a database; SQLite's own record of the file follows behind it in the same memory.
#[repr(C, align(16))]
struct Checked {
    methods: *const ffi::sqlite3_io_methods,
    kept: Kept,
}

/// The layer below, in memory that is never given back.
struct Layer {
    below: *mut ffi::sqlite3_vfs,
    own: *mut ffi::sqlite3_vfs,
}

// SAFETY: both point to tables that are written once, before they are shared, and never freed; SQLite calls them from any thread.
unsafe impl Send for Layer {}
// SAFETY: as above.
unsafe impl Sync for Layer {}

static LAYER: OnceLock<Option<Layer>> = OnceLock::new();

static METHODS: ffi::sqlite3_io_methods = ffi::sqlite3_io_methods {
    // 2: with shared memory, without mapped pages, which would pass the check by.
    iVersion: 2,
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
    xShmMap: Some(shm_map),
    xShmLock: Some(shm_lock),
    xShmBarrier: Some(shm_barrier),
    xShmUnmap: Some(shm_unmap),
    xFetch: None,
    xUnfetch: None,
};

/// Makes the layer known to SQLite, once; false when SQLite has no file layer of its own to build on.
pub(crate) fn register() -> bool {
    LAYER
        .get_or_init(|| {
            // SAFETY: looks up the default table; SQLite's tables are never freed.
            let below = unsafe { ffi::sqlite3_vfs_find(std::ptr::null()) };
            if below.is_null() {
                return None;
            }
            // SAFETY: not null, and a table that SQLite keeps valid and unchanged.
            let mut own = unsafe { *below };
            own.zName = NAME.as_ptr();
            own.pNext = std::ptr::null_mut();
            own.szOsFile += size_of::<Checked>().max(size_of::<Logged>()) as c_int;
            own.xOpen = Some(open);
            let own = Box::into_raw(Box::new(own));
            // SAFETY: the table is leaked on purpose: SQLite links it into its list for good.
            let done = unsafe { ffi::sqlite3_vfs_register(own, 0) };
            (done == ffi::SQLITE_OK).then_some(Layer { below, own })
        })
        .as_ref()
        .is_some_and(|layer| !layer.own.is_null())
}

/// Lets a database that has no pages yet keep room for checksums; one that has is not changed.
pub(crate) fn reserve(connection: &Connection) {
    let mut bytes = RESERVED as c_int;
    // SAFETY: the connection is open, and the call reads and writes one int.
    unsafe {
        ffi::sqlite3_file_control(
            connection.handle(),
            std::ptr::null(),
            ffi::SQLITE_FCNTL_RESERVE_BYTES,
            (&raw mut bytes).cast::<c_void>(),
        );
    }
}

/// SQLite's record of the file, behind ours.
unsafe fn real(file: *mut ffi::sqlite3_file) -> *mut ffi::sqlite3_file {
    // SAFETY: SQLite gave `szOsFile` bytes, of which ours are the first.
    unsafe { file.cast::<u8>().add(size_of::<Checked>()).cast() }
}

/// Calls a method of the file below.
macro_rules! below {
    ($file:expr, $method:ident($($argument:expr),*), $absent:expr) => {{
        // SAFETY: SQLite calls methods of open files only, and `open` leaves an open file below with its methods.
        unsafe {
            let real = real($file);
            match (*(*real).pMethods).$method {
                Some(method) => method(real $(, $argument)*),
                None => $absent,
            }
        }
    }};
}

unsafe extern "C" fn open(
    _layer: *mut ffi::sqlite3_vfs,
    name: ffi::sqlite3_filename,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    let Some(Some(layer)) = LAYER.get() else {
        return ffi::SQLITE_CANTOPEN;
    };
    // SAFETY: the table below is valid; `file` has room for both records; name and flags are handed on as they came.
    unsafe {
        let Some(open) = (*layer.below).xOpen else {
            return ffi::SQLITE_CANTOPEN;
        };
        if flags & ffi::SQLITE_OPEN_WAL != 0 {
            let real = logged::real(file);
            (*real).pMethods = std::ptr::null();
            (*file).pMethods = std::ptr::null();
            let opened = open(layer.below, name, real, flags, out_flags);
            if !(*real).pMethods.is_null() {
                logged::adopt(file, name);
            }
            return opened;
        }
        if flags & ffi::SQLITE_OPEN_MAIN_DB == 0 {
            return open(layer.below, name, file, flags, out_flags);
        }
        let real = real(file);
        (*real).pMethods = std::ptr::null();
        (*file).pMethods = std::ptr::null();
        let opened = open(layer.below, name, real, flags, out_flags);
        if !(*real).pMethods.is_null() {
            // With methods set, SQLite closes the file, also after a failure.
            file.cast::<Checked>().write(Checked {
                methods: &raw const METHODS,
                kept: Kept::Unknown,
            });
        }
        opened
    }
}

unsafe extern "C" fn close(file: *mut ffi::sqlite3_file) -> c_int {
    below!(file, xClose(), ffi::SQLITE_OK)
}

/// Whether the file has checksums: asked of its header until it has one.
unsafe fn kept(file: *mut ffi::sqlite3_file) -> Kept {
    // SAFETY: `open` wrote our record, and SQLite uses a file from one thread at a time.
    let own = unsafe { &mut *file.cast::<Checked>() };
    if own.kept == Kept::Unknown {
        let mut head = [0u8; PAGE];
        let read = below!(
            file,
            xRead(head.as_mut_ptr().cast::<c_void>(), PAGE as c_int, 0),
            ffi::SQLITE_IOERR
        );
        own.kept = match read {
            ffi::SQLITE_OK => page::judge(&head),
            _ => Kept::Unknown,
        };
    }
    own.kept
}

/// Number of the page at `offset`, if that many bytes are one.
fn page_at(amount: c_int, offset: i64) -> Option<u64> {
    let offset = u64::try_from(offset).ok()?;
    (amount as usize == PAGE && offset.is_multiple_of(PAGE as u64)).then_some(offset / PAGE as u64)
}

unsafe extern "C" fn read(
    file: *mut ffi::sqlite3_file,
    buffer: *mut c_void,
    amount: c_int,
    offset: ffi::sqlite3_int64,
) -> c_int {
    let read = below!(file, xRead(buffer, amount, offset), ffi::SQLITE_IOERR_READ);
    if read == ffi::SQLITE_IOERR_SHORT_READ {
        // SAFETY: the file is open.
        return match unsafe { is_cut_at(file, offset) } {
            true => ffi::SQLITE_IOERR_DATA,
            false => read,
        };
    }
    if read != ffi::SQLITE_OK {
        return read;
    }
    // SAFETY: the file is open; the buffer has `amount` bytes, just filled.
    let (kept, bytes) = unsafe {
        (
            kept(file),
            std::slice::from_raw_parts_mut(buffer.cast::<u8>(), usize::try_from(amount).unwrap_or(0)),
        )
    };
    let wrong = match (kept, page_at(amount, offset)) {
        (Kept::Damaged, _) => true,
        (Kept::Checksums, Some(number)) => !page::fits(number, bytes),
        (Kept::Checksums, None) => match usize::try_from(offset) {
            // The header alone, before the first page is read.
            Ok(0) if bytes.len() == HEADER => page::judge(bytes) != Kept::Checksums,
            // The count of changes in it: it is compared, and decides of no value.
            Ok(at) if at.saturating_add(bytes.len()) <= HEADER => false,
            // SAFETY: the file is open.
            Ok(at) => !unsafe { read_parts(file, at, bytes) },
            Err(_) => true,
        },
        _ => false,
    };
    match wrong {
        true => ffi::SQLITE_IOERR_DATA,
        false => ffi::SQLITE_OK,
    }
}

/// Whether a file with checksums ends inside what is read from `offset` on: SQLite would take what is missing for zeros. Behind its end
/// there is nothing to be judged.
unsafe fn is_cut_at(file: *mut ffi::sqlite3_file, offset: ffi::sqlite3_int64) -> bool {
    let mut size: ffi::sqlite3_int64 = 0;
    let asked = below!(file, xFileSize(&raw mut size), ffi::SQLITE_IOERR_FSTAT);
    // SAFETY: the file is open.
    let kept = unsafe { kept(file) };
    matches!(kept, Kept::Checksums | Kept::Damaged) && (asked != ffi::SQLITE_OK || size > offset)
}

/// Fills `bytes`, from `offset` on, out of whole pages; false when one of them does not fit. SQLite is told not to ask for parts
/// ([`device_characteristics`]); were it to, an unchecked part would be data.
unsafe fn read_parts(file: *mut ffi::sqlite3_file, offset: usize, bytes: &mut [u8]) -> bool {
    let mut page = [0u8; PAGE];
    let mut done = 0;
    while done < bytes.len() {
        let (number, inside) = ((offset + done) / PAGE, (offset + done) % PAGE);
        let start = (number * PAGE) as ffi::sqlite3_int64;
        let read = below!(
            file,
            xRead(page.as_mut_ptr().cast::<c_void>(), PAGE as c_int, start),
            ffi::SQLITE_IOERR
        );
        if read != ffi::SQLITE_OK || !page::fits(number as u64, &page) {
            return false;
        }
        let part = (PAGE - inside).min(bytes.len() - done);
        bytes[done..done + part].copy_from_slice(&page[inside..inside + part]);
        done += part;
    }
    true
}

unsafe extern "C" fn write(
    file: *mut ffi::sqlite3_file,
    buffer: *const c_void,
    amount: c_int,
    offset: ffi::sqlite3_int64,
) -> c_int {
    let plain = |buffer| below!(file, xWrite(buffer, amount, offset), ffi::SQLITE_IOERR_WRITE);
    let Some(number) = page_at(amount, offset) else {
        return plain(buffer);
    };
    // SAFETY: the buffer has `amount` bytes, which are PAGE.
    let bytes = unsafe { std::slice::from_raw_parts(buffer.cast::<u8>(), PAGE) };
    if number == 0 {
        // SAFETY: as in `kept`.
        unsafe { (*file.cast::<Checked>()).kept = page::judge(&bytes[..HEADER]) };
    }
    // SAFETY: the file is open.
    match unsafe { kept(file) } {
        Kept::Checksums => {
            let mut stamped = [0u8; PAGE];
            stamped.copy_from_slice(bytes);
            page::stamp(number, &mut stamped);
            plain(stamped.as_ptr().cast())
        }
        _ => plain(buffer),
    }
}

unsafe extern "C" fn truncate(file: *mut ffi::sqlite3_file, size: ffi::sqlite3_int64) -> c_int {
    below!(file, xTruncate(size), ffi::SQLITE_IOERR_TRUNCATE)
}

unsafe extern "C" fn sync(file: *mut ffi::sqlite3_file, flags: c_int) -> c_int {
    below!(file, xSync(flags), ffi::SQLITE_IOERR_FSYNC)
}

unsafe extern "C" fn file_size(file: *mut ffi::sqlite3_file, size: *mut ffi::sqlite3_int64) -> c_int {
    below!(file, xFileSize(size), ffi::SQLITE_IOERR_FSTAT)
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

/// Without the right to read parts of pages: SQLite would fetch long values from overflow pages past their checksums.
unsafe extern "C" fn device_characteristics(file: *mut ffi::sqlite3_file) -> c_int {
    below!(file, xDeviceCharacteristics(), 0) & !ffi::SQLITE_IOCAP_SUBPAGE_READ
}

unsafe extern "C" fn shm_map(
    file: *mut ffi::sqlite3_file,
    region: c_int,
    size: c_int,
    extend: c_int,
    memory: *mut *mut c_void,
) -> c_int {
    below!(
        file,
        xShmMap(region, size, extend, memory),
        ffi::SQLITE_IOERR_SHMMAP
    )
}

unsafe extern "C" fn shm_lock(
    file: *mut ffi::sqlite3_file,
    offset: c_int,
    count: c_int,
    flags: c_int,
) -> c_int {
    below!(file, xShmLock(offset, count, flags), ffi::SQLITE_IOERR_SHMLOCK)
}

unsafe extern "C" fn shm_barrier(file: *mut ffi::sqlite3_file) {
    below!(file, xShmBarrier(), ());
}

unsafe extern "C" fn shm_unmap(file: *mut ffi::sqlite3_file, delete: c_int) -> c_int {
    below!(file, xShmUnmap(delete), ffi::SQLITE_OK)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;
    use std::path::Path;

    use rusqlite::OpenFlags;

    use super::*;

    const PAGES_OF_VALUE: usize = 5;

    fn connect(path: &Path) -> Connection {
        assert!(register());
        let connection = Connection::open_with_flags_and_vfs(path, OpenFlags::default(), NAME).unwrap();
        reserve(&connection);
        connection
    }

    /// A database with one value that lies in overflow pages, and one of these as it lies in the file.
    fn with_a_long_value(path: &Path) -> usize {
        let _ = std::fs::remove_file(path);
        let connection = connect(path);
        connection.execute_batch("CREATE TABLE t(v BLOB)").unwrap();
        let value = vec![b'v'; PAGES_OF_VALUE * PAGE];
        connection.execute("INSERT INTO t VALUES(?1)", [&value]).unwrap();
        drop(connection);
        let bytes = std::fs::read(path).unwrap();
        let is_full = |page: &[u8]| page[4..PAGE - RESERVED].iter().all(|byte| *byte == b'v');
        bytes.chunks(PAGE).position(is_full).unwrap()
    }

    fn flip(path: &Path, at: usize) {
        let file = std::fs::File::options()
            .read(true)
            .write(true)
            .open(path)
            .unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at as u64).unwrap();
        file.write_all_at(&[byte[0] ^ 4], at as u64).unwrap();
    }

    #[test]
    fn a_flipped_byte_of_a_value_in_overflow_pages_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d");
        let number = with_a_long_value(&path);
        let value = |connection: Connection| {
            connection.query_row("SELECT v FROM t", [], |row| row.get::<_, Vec<u8>>(0))
        };
        assert_eq!(value(connect(&path)).unwrap(), vec![b'v'; PAGES_OF_VALUE * PAGE]);
        flip(&path, number * PAGE + 1352);
        let error = value(connect(&path)).unwrap_err();
        let code = error.sqlite_error().map(|error| error.extended_code);
        assert_eq!(code, Some(ffi::SQLITE_IOERR_DATA));
    }

    #[test]
    fn a_last_page_that_was_cut_is_an_error_and_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d");
        with_a_long_value(&path);
        let pages = std::fs::metadata(&path).unwrap().len() / PAGE as u64;
        let last = (pages - 1) * PAGE as u64;
        for inside in [1, 100, PAGE as u64 - RESERVED as u64, PAGE as u64 - 1] {
            let file = std::fs::File::options().write(true).open(&path).unwrap();
            file.set_len(last + inside).unwrap();
            let read = connect(&path).query_row("SELECT v FROM t", [], |row| row.get::<_, Vec<u8>>(0));
            let code = read.unwrap_err().sqlite_error().map(|error| error.extended_code);
            assert_eq!(code, Some(ffi::SQLITE_IOERR_DATA), "{inside}");
            assert_eq!(page::misfits(&path, 9).unwrap(), [pages - 1], "{inside}");
            with_a_long_value(&path);
        }
    }

    #[test]
    fn a_part_of_a_page_is_checked_like_the_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d");
        let number = with_a_long_value(&path);
        let read_part = |offset: usize, amount: usize| {
            let connection = connect(&path);
            let mut file: *mut ffi::sqlite3_file = std::ptr::null_mut();
            let mut bytes = vec![0u8; amount];
            // SAFETY: the connection is open while its file is used, and the buffer has `amount` bytes.
            let read = unsafe {
                ffi::sqlite3_file_control(
                    connection.handle(),
                    std::ptr::null(),
                    ffi::SQLITE_FCNTL_FILE_POINTER,
                    (&raw mut file).cast::<c_void>(),
                );
                super::read(
                    file,
                    bytes.as_mut_ptr().cast(),
                    amount as c_int,
                    offset as ffi::sqlite3_int64,
                )
            };
            (read, bytes)
        };
        let start = number * PAGE;
        let parts = [(start, PAGE - RESERVED), (start + 900, 7), (start - 10, 20)];
        let sound = std::fs::read(&path).unwrap();
        for (offset, amount) in parts {
            let expected = sound[offset..offset + amount].to_vec();
            assert_eq!(read_part(offset, amount), (ffi::SQLITE_OK, expected));
        }
        flip(&path, start + 3000);
        for (offset, amount) in parts {
            assert_eq!(
                read_part(offset, amount).0,
                ffi::SQLITE_IOERR_DATA,
                "{offset} {amount}"
            );
        }
    }
}
