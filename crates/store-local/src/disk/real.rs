//! [`Disk`] on the kernel's files.
//!
//! Content goes through the page cache. `sync_all` is `syncfs`, whose error report covers what was written since the
//! directory was first synced through this value.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use ferry_store::{Space, Timestamp};
use parking_lot::Mutex;
use rustix::fs::{FallocateFlags, IFlags, SeekFrom};

use super::{BootId, Disk, DiskFile, FileStat};
use crate::pool::label;

/// More bytes than a label has.
const LABEL_BYTES_MAX: usize = 64;
/// What `statfs` says of a tmpfs.
const TMPFS_MAGIC: rustix::fs::FsWord = 0x0102_1994;

/// Most bytes of one write to the kernel. A file system with large folios makes one page-cache entry of what one write
/// brings; ext4 then goes through all blocks of that entry at every later write of 4 KiB and at its flush. Entries of 2 MiB made
/// such a write and flush 1.6 times as long as those of 128 KiB, and big writes are no faster with them.
const WRITE_BYTES: usize = 128 << 10;

/// The machine's own disks.
#[derive(Debug)]
pub struct RealDisk {
    boot_id: BootId,
    /// Directories kept open for `syncfs`: the kernel reports each write error once per open description.
    synced: Mutex<HashMap<PathBuf, Arc<File>>>,
}

/// Most directories kept open for `syncfs`.
const SYNCED_MAX: usize = 64;

impl RealDisk {
    /// Reads the boot id of the kernel.
    pub fn new() -> io::Result<Self> {
        let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        let mut boot_id = [0u8; 16];
        let digits: Vec<u8> = text
            .bytes()
            .filter_map(|byte| (byte as char).to_digit(16).map(|digit| digit as u8))
            .collect();
        if digits.len() != 32 {
            return Err(io::Error::other(
                "the kernel's boot id is not a UUID: /proc/sys/kernel/random/boot_id",
            ));
        }
        for (index, byte) in boot_id.iter_mut().enumerate() {
            *byte = digits[2 * index] << 4 | digits[2 * index + 1];
        }
        Ok(Self {
            boot_id,
            synced: Mutex::default(),
        })
    }
}

/// An open file of the kernel.
#[derive(Debug)]
struct RealFile {
    file: File,
    /// Reads never wait, as the file system is in memory; found out when the kernel cannot promise it per read.
    in_memory: OnceLock<bool>,
}

impl RealFile {
    fn new(file: File) -> Self {
        Self {
            file,
            in_memory: OnceLock::new(),
        }
    }

    fn is_in_memory(&self) -> bool {
        *self
            .in_memory
            .get_or_init(|| rustix::fs::fstatfs(&self.file).is_ok_and(|stat| stat.f_type == TMPFS_MAGIC))
    }
}

impl DiskFile for RealFile {
    fn try_read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<Option<usize>> {
        if self.in_memory.get() == Some(&true) {
            return self.read_at(buffer, offset).map(Some);
        }
        let flags = rustix::io::ReadWriteFlags::NOWAIT;
        match rustix::io::preadv2(&self.file, &mut [io::IoSliceMut::new(buffer)], offset, flags) {
            Ok(count) => Ok(Some(count)),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(None),
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => match self.is_in_memory() {
                true => self.read_at(buffer, offset).map(Some),
                false => Ok(None),
            },
            Err(errno) => Err(errno.into()),
        }
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.file.read_at(&mut buffer[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }

    fn write_at(&self, mut data: &[u8], mut offset: u64) -> io::Result<()> {
        while data.len() > WRITE_BYTES {
            let into = (offset % WRITE_BYTES as u64) as usize;
            let (part, rest) = data.split_at(WRITE_BYTES - into);
            self.file.write_all_at(part, offset)?;
            offset += part.len() as u64;
            data = rest;
        }
        self.file.write_all_at(data, offset)
    }

    fn allocate(&self, offset: u64, length_bytes: u64) -> io::Result<()> {
        match rustix::fs::fallocate(&self.file, FallocateFlags::KEEP_SIZE, offset, length_bytes) {
            // Not every file system can reserve; there the write itself tells of a full disk.
            Ok(()) | Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    fn punch(&self, offset: u64, length_bytes: u64) -> io::Result<()> {
        if length_bytes == 0 {
            return Ok(());
        }
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(&self.file, flags, offset, length_bytes) {
            Ok(()) => Ok(()),
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {
                let end = self.stat()?.size_bytes.min(offset.saturating_add(length_bytes));
                let zeros = [0u8; 16 << 10];
                let mut at = offset;
                while at < end {
                    let length = (end - at).min(zeros.len() as u64);
                    self.write_at(&zeros[..length as usize], at)?;
                    at += length;
                }
                Ok(())
            }
            Err(errno) => Err(errno.into()),
        }
    }

    fn truncate(&self, size_bytes: u64) -> io::Result<()> {
        self.file.set_len(size_bytes)
    }

    fn stat(&self) -> io::Result<FileStat> {
        use std::os::unix::fs::MetadataExt;
        let stat = self.file.metadata()?;
        Ok(FileStat {
            size_bytes: stat.size(),
            allocated_bytes: stat.blocks() * 512,
            mtime: Timestamp {
                seconds: u32::try_from(stat.mtime()).unwrap_or(0),
                nanoseconds: u32::try_from(stat.mtime_nsec()).unwrap_or(0),
            },
            unlinked: stat.nlink() == 0,
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn check_synced(&self) -> io::Result<()> {
        crate::sys::writeback::check(self.file.as_fd())
    }

    fn label(&self) -> io::Result<Option<Vec<u8>>> {
        let mut label = [0u8; LABEL_BYTES_MAX];
        match rustix::fs::fgetxattr(&self.file, label::ATTRIBUTE, &mut label[..]) {
            Ok(length) => Ok(Some(label[..length.min(LABEL_BYTES_MAX)].to_vec())),
            // Longer than any: handed on as what it is not.
            Err(rustix::io::Errno::RANGE) => Ok(Some(Vec::new())),
            Err(rustix::io::Errno::NODATA | rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {
                Ok(None)
            }
            Err(errno) => Err(errno.into()),
        }
    }

    fn set_label(&self, label: &[u8]) -> io::Result<()> {
        let flags = rustix::fs::XattrFlags::empty();
        match rustix::fs::fsetxattr(&self.file, label::ATTRIBUTE, label, flags) {
            Ok(()) => Ok(()),
            // A file system that keeps none, or has no room for one: the file goes without.
            Err(errno) => {
                tracing::debug!(%errno, "a data file has no label");
                Ok(())
            }
        }
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<(u64, u64)>> {
        let start = match rustix::fs::seek(&self.file, SeekFrom::Data(offset)) {
            Ok(start) => start,
            Err(rustix::io::Errno::NXIO) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
        Ok(Some((
            start,
            rustix::fs::seek(&self.file, SeekFrom::Hole(start))?,
        )))
    }

    fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.file.as_fd())
    }
}

impl Disk for RealDisk {
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        Ok(Arc::new(RealFile::new(file)))
    }

    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path)?;
        Ok(Arc::new(RealFile::new(file)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let flags = rustix::fs::RenameFlags::NOREPLACE;
        let root = rustix::fs::CWD;
        match rustix::fs::renameat_with(root, from, root, to, flags) {
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) if !to.exists() => {
                std::fs::rename(from, to)
            }
            renamed => Ok(renamed?),
        }
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        std::fs::create_dir_all(path)
    }

    fn spread_dirs(&self, dir: &Path) {
        let spread = || -> io::Result<()> {
            let dir = File::open(dir)?;
            let flags = rustix::fs::ioctl_getflags(&dir)?;
            Ok(rustix::fs::ioctl_setflags(&dir, flags | IFlags::TOPDIR)?)
        };
        if let Err(error) = spread() {
            tracing::debug!(dir = %dir.display(), %error, "directories are placed as the file system likes");
        }
    }

    fn list(&self, dir: &Path, visit: &mut dyn FnMut(&str)) -> io::Result<()> {
        for entry in std::fs::read_dir(dir)? {
            if let Some(name) = entry?.file_name().to_str() {
                visit(name);
            }
        }
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }

    fn sync_all(&self, dir: &Path) -> io::Result<()> {
        let file = {
            let mut synced = self.synced.lock();
            match synced.get(dir) {
                Some(file) => file.clone(),
                None => {
                    if synced.len() >= SYNCED_MAX {
                        synced.clear();
                    }
                    let file = Arc::new(File::open(dir)?);
                    synced.insert(dir.to_owned(), file.clone());
                    file
                }
            }
        };
        Ok(rustix::fs::syncfs(&*file)?)
    }

    fn clone_file(&self, from: &Path, to: &Path) -> io::Result<()> {
        let from = File::open(from)?;
        let to = OpenOptions::new().read(true).write(true).open(to)?;
        Ok(rustix::fs::ioctl_ficlone(&to, &from)?)
    }

    fn space(&self, dir: &Path) -> io::Result<Space> {
        let stat = rustix::fs::statvfs(dir)?;
        Ok(Space {
            free_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
            total_bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
        })
    }

    fn boot_id(&self) -> BootId {
        self.boot_id
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spreading_directories_keeps_the_other_flags_and_is_no_error_anywhere() {
        let scratch = tempfile::tempdir().unwrap();
        let flags = |dir: &Path| rustix::fs::ioctl_getflags(File::open(dir).unwrap());
        let disk = RealDisk::new().unwrap();
        disk.spread_dirs(Path::new("/nowhere/at/all"));
        let before = flags(scratch.path());
        disk.spread_dirs(scratch.path());
        match before {
            Ok(before) => {
                let file = File::open(scratch.path()).unwrap();
                let known = rustix::fs::ioctl_setflags(file, before | IFlags::TOPDIR).is_ok();
                let wanted = if known { before | IFlags::TOPDIR } else { before };
                disk.spread_dirs(scratch.path());
                assert_eq!(flags(scratch.path()).unwrap(), wanted);
            }
            Err(_) => eprintln!("not checked: this file system has no flags"),
        }
        disk.create_dir_all(&scratch.path().join("a")).unwrap();
    }
}
