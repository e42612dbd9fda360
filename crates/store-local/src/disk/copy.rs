//! Bytes from file to file: in the kernel where both are its own, else through a buffer. And writing out early.

use std::io;

use rustix::io::Errno;

use super::DiskFile;
use crate::sys::writeback;

/// Bytes per read and write where the kernel does not copy.
const BUFFER_BYTES: u64 = 256 << 10;

/// Copies `length_bytes` from `from_offset` of one file to `to_offset` of another; the count is below that only at the end
/// of `from`. File systems that can share blocks share them. On an error any part may have been copied.
pub(crate) fn copy_range(
    from: &dyn DiskFile,
    from_offset: u64,
    to: &dyn DiskFile,
    to_offset: u64,
    length_bytes: u64,
) -> io::Result<u64> {
    let mut done = 0;
    if let (Some(source), Some(target)) = (from.as_fd(), to.as_fd()) {
        while done < length_bytes {
            let (mut read_at, mut write_at) = (from_offset + done, to_offset + done);
            let left = usize::try_from(length_bytes - done).unwrap_or(usize::MAX);
            let (read, written) = (Some(&mut read_at), Some(&mut write_at));
            match rustix::fs::copy_file_range(source, read, target, written, left) {
                Ok(0) => break,
                Ok(count) => done += count as u64,
                Err(Errno::INTR) => {}
                // Files of two file systems, or of one that cannot: the buffer can, or says what is wrong.
                Err(Errno::XDEV | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS | Errno::PERM) => break,
                Err(errno) => return Err(errno.into()),
            }
        }
    }
    if done == length_bytes {
        return Ok(done);
    }
    let mut buffer = vec![0; (length_bytes - done).min(BUFFER_BYTES) as usize];
    while done < length_bytes {
        let part = &mut buffer[..(length_bytes - done).min(BUFFER_BYTES) as usize];
        let count = from.read_at(part, from_offset + done)?;
        if count == 0 {
            break;
        }
        to.write_at(&part[..count], to_offset + done)?;
        done += count as u64;
    }
    Ok(done)
}

/// Lets the medium begin to write what is dirty. Only a hint: what fails shows at the sync.
pub(crate) fn start_writing(file: &dyn DiskFile) {
    if let Some(file) = file.as_fd() {
        let _ = writeback::start(file);
    }
}
