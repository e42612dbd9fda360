//! The embedded engine: a directory on one machine, pools on any disks, several processes at once, nothing to set up.
//!
//! Metadata and small objects live in SQLite, image data in sparse files; docs/format-local.md is the contract of the
//! format. Reading order: [`disk`] (the narrow trait under all data-file I/O), `pool` (one pool: slots, files,
//! transactions, snapshots), `object` (rows, layers, plans), `root` (the store's directory), `watch`, and here the
//! [`ferry_store::Store`] that ties them together: check that this client may go on, take the object's slot, run the
//! operation where blocking is allowed.
//!
//! What it does not know: images.

mod check;
mod client;
mod copy;
mod db;
pub mod disk;
#[doc(hidden)]
pub mod fuzzing;
mod object;
mod pool;
mod root;
mod store;
mod sys;
mod watch;

use std::path::Path;
use std::sync::Arc;

use ferry_store::class::ClassRegistry;
use ferry_store::{Result, StoreError};

use client::Client;
use disk::Disk;
use disk::real::RealDisk;

/// What a store is opened with.
#[derive(Debug, Clone, Default)]
pub struct LocalOptions {
    /// The object classes whose methods operations may call.
    pub registry: ClassRegistry,
    /// The disk under the data files; `None`: the machine's own. Tests put [`disk::sim::SimDisk`] here.
    pub disk: Option<Arc<dyn Disk>>,
}

/// A client of a local store. Several may be open at once, in one process or many.
#[derive(Debug)]
pub struct LocalStore {
    client: Arc<Client>,
}

impl LocalStore {
    /// Opens the store in `root`, making it if the directory is missing or empty. Blocks for some milliseconds; raises
    /// the process's soft limit of open files to the hard one. Operations need a tokio runtime with time and I/O.
    ///
    /// # Errors
    /// `EINVAL`: the directory holds something else. `EOPNOTSUPP`: the store is of a newer program. Otherwise what the
    /// file system or SQLite says, with the path.
    pub fn open(root: &Path, options: LocalOptions) -> Result<Arc<Self>> {
        raise_file_limit();
        let disk: Arc<dyn Disk> = match options.disk {
            Some(disk) => disk,
            None => Arc::new(
                RealDisk::new().map_err(|error| StoreError::io(&error, "read the kernel's boot id"))?,
            ),
        };
        let client = Client::open(root, disk, Arc::new(options.registry))?;
        Ok(Arc::new(Self { client }))
    }

    /// Ends this client without any farewell, as far as that can be done inside a living process: for tests of what a
    /// killed client leaves behind.
    #[doc(hidden)]
    pub fn abandon(&self) {
        self.client.abandon();
    }
}

impl Drop for LocalStore {
    fn drop(&mut self) {
        self.client.leave();
    }
}

/// Data files are kept open; the usual soft limit of 1024 is for programs that use `select`.
fn raise_file_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        limit.current = limit.maximum;
        if let Err(error) = setrlimit(Resource::Nofile, limit) {
            tracing::debug!(%error, "the limit of open files stays");
        }
    }
}
