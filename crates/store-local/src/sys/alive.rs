//! Liveness of clients: `run/<gid>.lock`, exclusively locked as long as the client lives.
//!
//! The kernel lets go of the lock when the process dies, so a dead client is noticed at once and a stopped one is
//! rightly taken for alive. The file also holds one shared word: how many operations of the client are under way, for
//! whoever fences it.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use rustix::fs::FlockOperation;

use super::words::SharedWords;

/// This client's own life.
#[derive(Debug)]
pub(crate) struct Life {
    file: File,
    path: PathBuf,
    words: SharedWords,
}

fn lock_path(run: &Path, gid: u64) -> PathBuf {
    run.join(format!("{gid}.lock"))
}

impl Life {
    /// Begins to live.
    pub(crate) fn begin(run: &Path, gid: u64) -> io::Result<Self> {
        let path = lock_path(run, gid);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)?;
        rustix::fs::flock(&file, FlockOperation::LockExclusive)?;
        SharedWords::fill(&file, 1)?;
        let words =
            SharedWords::map(&file, 1)?.ok_or_else(|| io::Error::other("the liveness file shrank"))?;
        words.word(0).store(0, Ordering::SeqCst);
        Ok(Self { file, path, words })
    }

    /// Counts as dead from now on, whatever is still under way: for imitating a kill.
    pub(crate) fn release(&self) {
        if let Err(error) = rustix::fs::flock(&self.file, FlockOperation::Unlock) {
            tracing::warn!(%error, "the liveness lock stays");
        }
    }

    /// Counts an operation in.
    pub(crate) fn enter(&self) {
        self.words.word(0).fetch_add(1, Ordering::SeqCst);
    }

    /// Counts an operation out.
    pub(crate) fn leave(&self) {
        self.words.word(0).fetch_sub(1, Ordering::SeqCst);
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        // A file left behind is removed by whoever notices that nobody holds it.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Whether client `gid` lives. Removes what a dead one left in `run`.
pub(crate) fn is_alive(run: &Path, gid: u64) -> io::Result<bool> {
    let path = lock_path(run, gid);
    let file = match OpenOptions::new().read(true).write(true).open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => {
            let _ = std::fs::remove_file(run.join(format!("{gid}.sock")));
            let _ = std::fs::remove_file(&path);
            Ok(false)
        }
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(true),
        Err(errno) => Err(errno.into()),
    }
}

/// How many operations client `gid` has under way; 0 for a dead one.
pub(crate) fn operations_under_way(run: &Path, gid: u64) -> io::Result<u64> {
    if !is_alive(run, gid)? {
        return Ok(0);
    }
    match OpenOptions::new()
        .read(true)
        .write(true)
        .open(lock_path(run, gid))
    {
        Ok(file) => Ok(SharedWords::map(&file, 1)?.map_or(0, |words| words.word(0).load(Ordering::SeqCst))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error),
    }
}
