//! SQLite's errors as errnos with the place of the file.

use std::path::Path;

use ferry_store::{Errno, Result, StoreError};
use rusqlite::ErrorCode;

/// Says where an SQLite call failed.
pub(crate) trait SqlContext<T> {
    /// Adds file and action.
    fn at(self, path: &Path, action: &str) -> Result<T>;
}

impl<T> SqlContext<T> for rusqlite::Result<T> {
    fn at(self, path: &Path, action: &str) -> Result<T> {
        self.map_err(|error| {
            let errno = match error.sqlite_error_code() {
                Some(ErrorCode::DiskFull) => Errno::ENOSPC,
                Some(ErrorCode::ReadOnly) => Errno::EROFS,
                Some(ErrorCode::PermissionDenied) => Errno::EACCES,
                Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Errno::EBUSY,
                Some(ErrorCode::OutOfMemory) => Errno::ENOMEM,
                Some(ErrorCode::TooBig) => Errno::EFBIG,
                _ => Errno::EIO,
            };
            let error = match error.sqlite_error().map(|error| error.extended_code) {
                Some(rusqlite::ffi::SQLITE_IOERR_DATA) => {
                    "a page of it, or of its log, is damaged: its checksum is wrong; 'rbd fsck' says which"
                        .to_owned()
                }
                _ => error.to_string(),
            };
            StoreError::new(errno, format!("{action} {} ({error})", path.display()))
        })
    }
}
