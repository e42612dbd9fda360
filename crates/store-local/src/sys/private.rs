//! Directories for nobody but their owner.
//!
//! Keeps: what is made here is closed to others from the first moment, whatever the process's umask says. A directory that was
//! there is closed only by who asks for that.

use std::fs::{DirBuilder, Permissions, set_permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::Path;

/// Mode of a directory that its owner alone may enter.
const PRIVATE_DIRECTORY: u32 = 0o700;
/// Mode of a socket that its owner alone may connect to.
const PRIVATE_SOCKET: u32 = 0o600;

/// Makes a directory, and those above it that are missing.
pub(crate) fn create_dir_all(dir: &Path) -> io::Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(PRIVATE_DIRECTORY)
        .create(dir)
}

/// Closes a directory that a store or pool is about to be made in. Whoever cannot do that, for it is somebody else's, has
/// been given it as it is: that is said, and no error.
pub(crate) fn close_dir(dir: &Path) {
    if let Err(error) = set_permissions(dir, Permissions::from_mode(PRIVATE_DIRECTORY)) {
        tracing::warn!(dir = %dir.display(), %error, "cannot keep others out of this directory");
    }
}

/// Closes a socket.
pub(crate) fn close_socket(path: &Path) -> io::Result<()> {
    set_permissions(path, Permissions::from_mode(PRIVATE_SOCKET))
}
