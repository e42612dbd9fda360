//! The file of a database as it lies, whatever its checksums say, read through SQLite's own file layer.
//!
//! SQLite's locks on a file belong to the process: when anybody in it closes a descriptor of the file, whoever opened it, the kernel lets
//! go of all of them, and SQLite goes on as if it had them. Another process may then take the database for unused when it ends its own use,
//! and remove the log that is still being written here, with all that is committed into it later. (The SQLite that we bring looks at the
//! locks on the `-shm` too before it does so; those of a few years ago do not.) SQLite's layer knows what it has locked in a file, and keeps
//! what is closed meanwhile open until that is over.
//!
//! Keeps invariant: nothing in this crate opens a database, or its `-shm`, but SQLite and this module. The log (`-wal`) and the side file
//! may be opened by anybody: SQLite locks neither, and ours are locks of open file descriptions ([`crate::sys::ofd`]). Reads only, and makes no file.
//! Does not know pages.

#![allow(unsafe_code)] // SQLite's file layer is a table of C functions

use std::ffi::{CString, c_int, c_void};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rusqlite::ffi;

/// A path as SQLite's layer wants it.
struct Name(ffi::sqlite3_filename);

impl Name {
    fn of(path: &Path) -> io::Result<Self> {
        let path = CString::new(path.as_os_str().as_bytes())?;
        let none = c"".as_ptr();
        // SAFETY: three strings that end with zero, of which it makes copies, and no parameters.
        let name =
            unsafe { ffi::sqlite3_create_filename(path.as_ptr(), none, none, 0, std::ptr::null_mut()) };
        match name.is_null() {
            true => Err(io::ErrorKind::OutOfMemory.into()),
            false => Ok(Self(name)),
        }
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        // SAFETY: SQLite made it, and nobody has it any more: `Raw` closes its file first.
        unsafe { ffi::sqlite3_free_filename(self.0) }
    }
}

/// An open file of a database.
pub(super) struct Raw {
    /// SQLite's record of the file, in memory that is aligned for anything and stays where it is.
    record: Box<[u128]>,
    /// The record points to it.
    _name: Name,
}

impl Raw {
    /// Opens a file that is there.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        // SQLite's layer follows no link at the end of a path; and this says best what is wrong with one.
        let name = Name::of(&path.canonicalize()?)?;
        // SAFETY: looks up the default table, which is valid as long as the process lives.
        let layer = unsafe { ffi::sqlite3_vfs_find(std::ptr::null()) };
        if layer.is_null() {
            return Err(io::Error::other("SQLite has no files here"));
        }
        // SAFETY: not null.
        let (open, bytes) = unsafe { ((*layer).xOpen, (*layer).szOsFile) };
        let (Some(open), Ok(bytes)) = (open, usize::try_from(bytes)) else {
            return Err(io::Error::other("SQLite opens no files here"));
        };
        let bytes = bytes.max(size_of::<ffi::sqlite3_file>());
        let mut raw = Self {
            record: vec![0; bytes.div_ceil(size_of::<u128>())].into(),
            _name: name,
        };
        // A database, not any file: of others the layer does not look after locks.
        let flags = ffi::SQLITE_OPEN_MAIN_DB | ffi::SQLITE_OPEN_READONLY;
        // SAFETY: the record has the room that the layer asks for, and name and record live until the file is closed (`drop`).
        let opened = unsafe {
            open(
                layer,
                raw._name.0,
                raw.record.as_mut_ptr().cast(),
                flags,
                std::ptr::null_mut(),
            )
        };
        match opened {
            ffi::SQLITE_OK => Ok(raw),
            // The layer's last call was the one that could not open it.
            ffi::SQLITE_CANTOPEN => Err(io::Error::last_os_error()),
            code => Err(said(code)),
        }
    }

    /// Fills `bytes` from `offset` on, as far as the file goes, and says how far that is.
    pub(super) fn read_at(&mut self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        let too_much = |_| io::Error::from(io::ErrorKind::InvalidInput);
        let amount = c_int::try_from(bytes.len()).map_err(too_much)?;
        let start = ffi::sqlite3_int64::try_from(offset).map_err(too_much)?;
        let (file, methods) = self.file().ok_or_else(closed)?;
        let read = methods.xRead.ok_or_else(closed)?;
        // SAFETY: the file is open, and the buffer has that many bytes.
        match unsafe { read(file, bytes.as_mut_ptr().cast::<c_void>(), amount, start) } {
            ffi::SQLITE_OK => Ok(bytes.len()),
            ffi::SQLITE_IOERR_SHORT_READ => {
                let there = self.size()?.saturating_sub(offset);
                // It was short: what has grown since is not in the buffer.
                let most = bytes.len().saturating_sub(1);
                Ok(usize::try_from(there).unwrap_or(most).min(most))
            }
            code => Err(self.failed(code)),
        }
    }

    fn size(&mut self) -> io::Result<u64> {
        let mut size: ffi::sqlite3_int64 = 0;
        let (file, methods) = self.file().ok_or_else(closed)?;
        let ask = methods.xFileSize.ok_or_else(closed)?;
        // SAFETY: the file is open, and the call writes one number.
        match unsafe { ask(file, &raw mut size) } {
            ffi::SQLITE_OK => Ok(u64::try_from(size).unwrap_or(0)),
            code => Err(self.failed(code)),
        }
    }

    /// What the kernel said, as far as the layer kept it.
    fn failed(&mut self, code: c_int) -> io::Error {
        let mut errno: c_int = 0;
        let asked = self.file().and_then(|(file, methods)| {
            let ask = methods.xFileControl?;
            // SAFETY: the file is open, and the call writes one int.
            Some(unsafe {
                ask(
                    file,
                    ffi::SQLITE_FCNTL_LAST_ERRNO,
                    (&raw mut errno).cast::<c_void>(),
                )
            })
        });
        match (asked, errno) {
            (Some(ffi::SQLITE_OK), 1..) => io::Error::from_raw_os_error(errno),
            _ => said(code),
        }
    }

    /// SQLite's record of the file and the methods in it; `None`: it is not open.
    fn file(&mut self) -> Option<(*mut ffi::sqlite3_file, &'static ffi::sqlite3_io_methods)> {
        let file: *mut ffi::sqlite3_file = self.record.as_mut_ptr().cast();
        // SAFETY: the record is zeros or was filled by the layer, and begins with a pointer that is null or to one of the layer's
        // tables, which are never freed.
        Some((file, unsafe { (*file).pMethods.as_ref() }?))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Some((file, methods)) = self.file()
            && let Some(close) = methods.xClose
        {
            // SAFETY: the file is open, and not used after this. Nothing was written to it that could be lost.
            unsafe { close(file) };
        }
    }
}

fn said(code: c_int) -> io::Error {
    io::Error::other(format!("SQLite's error {code}"))
}

fn closed() -> io::Error {
    io::Error::other("SQLite does not read this file")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_as_it_lies_up_to_its_end_and_through_a_link() {
        let dir = tempfile::tempdir().unwrap();
        let (path, link) = (dir.path().join("d"), dir.path().join("link"));
        std::fs::write(&path, b"no database at all").unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        for path in [path, link] {
            let mut raw = Raw::open(&path).unwrap();
            let mut bytes = [7; 8];
            assert_eq!(raw.read_at(&mut bytes, 3).unwrap(), 8);
            assert_eq!(&bytes, b"database");
            assert_eq!(raw.read_at(&mut bytes, 15).unwrap(), 3);
            assert_eq!(&bytes[..3], b"all");
            assert_eq!(raw.read_at(&mut bytes, 18).unwrap(), 0);
            assert_eq!(raw.read_at(&mut bytes, 1 << 40).unwrap(), 0);
        }
    }

    #[test]
    fn what_cannot_be_read_is_said_as_the_kernel_says_it_and_nothing_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("missing");
        let kind = Raw::open(&missing).err().map(|error| error.kind());
        assert_eq!(kind, Some(io::ErrorKind::NotFound));
        assert!(!missing.exists());
        let read = Raw::open(dir.path()).and_then(|mut raw| raw.read_at(&mut [0; 8], 0));
        assert_eq!(read.unwrap_err().kind(), io::ErrorKind::IsADirectory);
    }
}
