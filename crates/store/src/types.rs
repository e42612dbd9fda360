//! Ids, places and small values of the store contract. Different kinds are different types; nothing here does I/O.

use std::fmt;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// Pool id. Positive for real pools; `-1` stands for "none" in Ceph's encodings ([`PoolId::NONE`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PoolId(pub i64);

impl PoolId {
    /// "No pool" in Ceph's encodings.
    pub const NONE: PoolId = PoolId(-1);
}

impl fmt::Display for PoolId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Self-managed snapshot id; ids of one pool grow with time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SnapId(pub u64);

impl SnapId {
    /// The head (Ceph: `CEPH_NOSNAP`).
    pub const HEAD: SnapId = SnapId(0xffff_ffff_ffff_fffe);
    /// Largest id a snapshot may have.
    pub const MAX: SnapId = SnapId(0xffff_ffff_ffff_fffd);

    /// Whether this is the head.
    pub fn is_head(self) -> bool {
        self == Self::HEAD
    }
}

impl fmt::Display for SnapId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_head() {
            f.write_str("head")
        } else {
            write!(f, "{}", self.0)
        }
    }
}

/// The snapshots a writer knows of: the newest sequence number and the living ids, newest first.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SnapContext {
    seq: u64,
    snaps: Vec<SnapId>,
}

impl SnapContext {
    /// The context of an image that never had a snapshot.
    pub fn empty() -> Self {
        Self::default()
    }

    /// `None` unless `seq` is at least the first id and the ids strictly descend (Ceph's validity rule).
    pub fn new(seq: u64, snaps: Vec<SnapId>) -> Option<Self> {
        let descending = snaps.windows(2).all(|pair| pair[0] > pair[1]);
        let covered = snaps.first().is_none_or(|newest| newest.0 <= seq);
        (descending && covered).then_some(Self { seq, snaps })
    }

    /// Newest sequence number.
    pub fn seq(&self) -> u64 {
        self.seq
    }

    /// Living snapshot ids, newest first.
    pub fn snaps(&self) -> &[SnapId] {
        &self.snaps
    }
}

/// RADOS namespace inside a pool; the empty one is the default.
pub type Namespace = Arc<str>;

/// A pool and a namespace in it: where a set of objects lives.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Scope {
    /// The pool.
    pub pool: PoolId,
    /// The namespace; empty is the default one.
    pub namespace: Namespace,
}

impl Scope {
    /// The default namespace of `pool`.
    pub fn new(pool: PoolId) -> Self {
        Self {
            pool,
            namespace: "".into(),
        }
    }

    /// Namespace `namespace` of `pool`.
    pub fn with_namespace(pool: PoolId, namespace: &str) -> Self {
        Self {
            pool,
            namespace: namespace.into(),
        }
    }
}

/// One object's full place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ObjectRef<'a> {
    /// Pool and namespace.
    pub scope: &'a Scope,
    /// Name, at most [`ObjectRef::MAX_NAME_BYTES`] bytes.
    pub name: &'a str,
}

impl<'a> ObjectRef<'a> {
    /// Longest object name an engine must take.
    pub const MAX_NAME_BYTES: usize = 1024;

    /// Names `name` in `scope`.
    pub fn new(scope: &'a Scope, name: &'a str) -> Self {
        Self { scope, name }
    }
}

impl fmt::Display for ObjectRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pool {}", self.scope.pool)?;
        if !self.scope.namespace.is_empty() {
            write!(f, " namespace '{}'", self.scope.namespace)?;
        }
        write!(f, " object '{}'", self.name)
    }
}

/// A run of bytes of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Extent {
    /// First byte, from the start of the object.
    pub offset: u64,
    /// Length in bytes.
    pub length_bytes: u64,
}

impl Extent {
    /// `offset~length`.
    pub fn new(offset: u64, length_bytes: u64) -> Self {
        Self { offset, length_bytes }
    }

    /// First byte after the extent (saturating).
    pub fn end(self) -> u64 {
        self.offset.saturating_add(self.length_bytes)
    }
}

/// One clone of an object, as `list_snaps` tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CloneInfo {
    /// Clone id (the context sequence under which it was made, or where that is not known the newest snapshot it serves),
    /// or [`SnapId::HEAD`] for the head.
    pub id: SnapId,
    /// Snapshots that the clone serves, ascending; empty for the head.
    pub snaps: Vec<SnapId>,
    /// Extents equal to the next newer version, ascending; `None` for the head, and where they are not known.
    pub overlap: Option<Vec<Extent>>,
    /// Size in bytes.
    pub size_bytes: u64,
}

/// An object's snapshot state.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SnapSet {
    /// Newest context sequence that wrote to the object.
    pub seq: u64,
    /// Clones ascending by id, the head last if it exists.
    pub clones: Vec<CloneInfo>,
}

/// Seconds and nanoseconds since 1970 (Ceph's `utime_t`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash)]
pub struct Timestamp {
    /// Seconds.
    pub seconds: u32,
    /// Nanoseconds below one second.
    pub nanoseconds: u32,
}

impl Timestamp {
    /// The wall clock.
    pub fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            seconds: u32::try_from(since.as_secs()).unwrap_or(u32::MAX),
            nanoseconds: since.subsec_nanos(),
        }
    }
}

/// An IPv4 address as Ceph shows clients: `127.0.0.1:0/NONCE`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EntityAddr {
    /// IPv4 address.
    pub ip: [u8; 4],
    /// Port; 0 for clients.
    pub port: u16,
    /// Distinguishes processes at one address.
    pub nonce: u32,
}

impl fmt::Display for EntityAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d] = self.ip;
        write!(f, "{a}.{b}.{c}.{d}:{}/{}", self.port, self.nonce)
    }
}

/// One running client of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ClientInstance {
    /// Global id: the number in `client.4123`. Never reused within a store.
    pub gid: u64,
    /// Where it is said to be.
    pub addr: EntityAddr,
}

impl fmt::Display for ClientInstance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "client.{}", self.gid)
    }
}
