//! Class `lock`: advisory locks on objects, kept in an xattr (fact sheet section 4).

pub mod client;
pub mod methods;
pub mod types;

pub use types::{LockInfo, LockKind, LockerId, LockerInfo, flag};

/// Name of the class.
pub const CLASS: &str = "lock";
/// The lock that RBD uses on headers and object maps.
pub const RBD_LOCK: &str = "rbd_lock";
/// Tag of the managed exclusive lock.
pub const MANAGED_TAG: &str = "internal";
/// Xattrs that hold locks start so; the lock's name follows.
pub const XATTR_PREFIX: &str = "lock.";
