//! The narrow trait through which all data-file I/O passes.
//!
//! What it is for: tests put a simulated disk ([`sim`]) under the engine, production puts the kernel's ([`real`]).
//! What holds: a [`DiskFile`] stays usable after its name is gone; reads and writes at offsets do not disturb each
//! other; nothing here is durable before a sync call returned. What it does not know: objects, layers, SQLite.

pub(crate) mod copy;
pub mod real;
pub mod sim;

use std::fmt::Debug;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::Arc;

use ferry_store::{Space, Timestamp};

/// Names one boot of the machine: page cache and locks of another boot are gone.
pub type BootId = [u8; 16];

/// What a file says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileStat {
    /// Length in bytes.
    pub size_bytes: u64,
    /// Bytes allocated on the medium.
    pub allocated_bytes: u64,
    /// Time of the last change of content.
    pub mtime: Timestamp,
    /// Whether no name leads to the file any more.
    pub unlinked: bool,
}

/// An open data file. All methods but [`DiskFile::try_read_at`] and [`DiskFile::stat`]
/// may block.
pub trait DiskFile: Send + Sync + Debug {
    /// Fills `buffer` from `offset`; the count is below its length only at the end of the file.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// As [`DiskFile::read_at`] if that needs no waiting for the medium; `None` otherwise. The count may also be short
    /// where the rest would have to be waited for.
    fn try_read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<Option<usize>>;
    /// Writes all of `data`, growing the file as needed.
    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()>;
    /// Reserves room for a range, so that writes to it do not fail for space. Changes neither content nor length.
    fn allocate(&self, offset: u64, length_bytes: u64) -> io::Result<()>;
    /// Makes a range read as zero and gives its room back; the length stays.
    fn punch(&self, offset: u64, length_bytes: u64) -> io::Result<()>;
    /// Sets the length; grown parts read as zero.
    fn truncate(&self, size_bytes: u64) -> io::Result<()>;
    /// Length, room, time.
    fn stat(&self) -> io::Result<FileStat>;
    /// Makes content and length durable.
    fn sync_data(&self) -> io::Result<()>;
    /// After [`Disk::sync_all`]: whether writing out this file has failed, as far as this opening of it has not been told.
    /// Unlike another sync it does not make the medium empty its cache.
    fn check_synced(&self) -> io::Result<()> {
        self.sync_data()
    }
    /// What the file was labelled with; `None`: nothing, or the file system keeps no labels.
    fn label(&self) -> io::Result<Option<Vec<u8>>> {
        Ok(None)
    }
    /// Labels the file, where the file system can; durable with the file's other content.
    fn set_label(&self, label: &[u8]) -> io::Result<()> {
        let _ = label;
        Ok(())
    }
    /// First run of allocated bytes at or after `offset`: start and end; `None` when only a hole follows.
    fn next_data(&self, offset: u64) -> io::Result<Option<(u64, u64)>>;
    /// The kernel's file, where that is what it is: two such can exchange bytes without this process in between.
    fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// A place for data files.
pub trait Disk: Send + Sync + Debug {
    /// Opens an existing file.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;
    /// Creates a file that must not exist.
    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;
    /// Gives a file another name, which must be free.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a name.
    fn unlink(&self, path: &Path) -> io::Result<()>;
    /// Creates a directory and its parents; no error if it exists.
    fn create_dir_all(&self, path: &Path) -> io::Result<()>;
    /// Asks for directories that are made in `dir` from now on to lie far from one another on the medium. A wish: where the
    /// file system does not know it, nothing happens.
    fn spread_dirs(&self, dir: &Path) {
        let _ = dir;
    }
    /// Hands each name in a directory to `visit`, in any order.
    fn list(&self, dir: &Path, visit: &mut dyn FnMut(&str)) -> io::Result<()>;
    /// Makes the names in a directory durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// Makes all below `dir` durable, files and names of every process.
    fn sync_all(&self, dir: &Path) -> io::Result<()>;
    /// Makes the empty file `to` share the content of `from` until either is written.
    fn clone_file(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Room of the file system that `dir` is on, for users without privileges.
    fn space(&self, dir: &Path) -> io::Result<Space>;
    /// This boot.
    fn boot_id(&self) -> BootId;
}
