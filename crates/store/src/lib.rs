//! The object-store contract: RADOS semantics as one async trait.
//!
//! What it is for: every engine (memory, local, Ceph) implements [`Store`], and everything above talks to
//! nothing else. What holds for every engine is written on the trait and checked by [`conformance`].
//! What it does not know: images, headers, migration. An object is a name, bytes, an omap and xattrs.
//!
//! Reading order: [`types`] (ids and places), [`op`] (the atomic lists of steps), [`class`] (how object
//! classes run inside an engine), [`watch`], [`error`], then the trait below and [`IoCtx`], the handle
//! that callers hold.

pub mod check;
pub mod class;
pub mod conformance;
pub mod error;
pub mod here;
pub mod ioctx;
pub mod memory;
pub mod op;
pub mod probing;
mod setting;
pub mod types;
pub mod watch;
pub mod wrappers;

use std::fmt::Debug;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;

pub use check::{CheckOptions, Finding, Gravity, Report};
pub use error::{Errno, Result, StoreError};
pub use ioctx::IoCtx;
pub use op::{
    CopyRange, CopyReply, Durability, ReadOp, ReadReply, ReadResult, ReadStep, WriteOp, WriteReply,
    WriteStep, check_copy,
};
pub use setting::Setting;
pub use types::{
    ClientInstance, CloneInfo, EntityAddr, Extent, Namespace, ObjectRef, PoolId, Scope, SnapContext, SnapId,
    SnapSet, Timestamp,
};
pub use watch::{NotifyReply, WatchCookie, WatchHandler, WatchInfo};

/// What [`Store::pool_create`] may be told about a new pool.
#[derive(Debug, Clone, Default)]
pub struct PoolOptions {
    /// The pool's own data directory, for engines that keep pools in directories. `None`: the engine's default
    /// place. Engines without directories answer `EOPNOTSUPP` when it is given.
    pub dir: Option<PathBuf>,
}

/// How writes may be acknowledged before a store has them ([`Store::write_around`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WriteAround {
    /// Most bytes of one image that are on their way so.
    pub max_bytes: u64,
    /// Only after the first flush: whoever never flushes may not know that it must.
    pub until_flush: bool,
}

/// Most ranges of one [`Store::copy_into`].
pub const COPY_RANGES_MAX: usize = 16_384;

/// One pool, as listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolInfo {
    /// Id, never reused within a store.
    pub id: PoolId,
    /// Name, unique within a store.
    pub name: String,
    /// Data directory of an engine that has such; for messages only.
    pub dir: Option<PathBuf>,
}

/// Ceph's number of its release Luminous.
pub const RELEASE_LUMINOUS: u8 = 12;
/// Ceph's number of its release Mimic.
pub const RELEASE_MIMIC: u8 = 13;

/// Usage of one pool.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PoolUsage {
    /// Objects whose head exists.
    pub objects: u64,
    /// Bytes of object data allocated on the medium (heads and clones).
    pub used_bytes: u64,
    /// Bytes still free on the medium, when known.
    pub free_bytes: Option<u64>,
}

/// Room of the medium that a pool's bulk bytes are on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Bytes that this user may still fill.
    pub free_bytes: u64,
    /// Bytes that there are in all, as far as this pool may use them.
    pub total_bytes: u64,
}

/// What a read that must not wait came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadNow {
    /// The bytes are there.
    Filled,
    /// There is no object at that snapshot.
    Absent,
    /// It was not done; the buffer's content is undefined.
    WouldWait,
}

/// One store, seen by one client (one *instance*: a watch, a lock or a blocklist entry belongs to it).
///
/// Semantics are those of RADOS:
/// * A write is one atomic list of steps: it happens whole or not at all, and a failing step fails it whole.
/// * A write carries a [`SnapContext`]. The first write to an object whose snapset sequence is below the context's
///   makes a clone that keeps the old bytes for the snapshots in between. A write with an older context than the object
///   has seen goes to the head under the newer one.
/// * A read is one atomic list of steps at one snapshot, or at [`SnapId::HEAD`].
/// * Inside one write, class methods and comparisons see data, omap and xattrs as they were before the operation;
///   existence and size reflect earlier steps.
/// * An operation with [`Durability::Full`] is durable and atomic across power loss when it returns. One with
///   [`Durability::Buffered`] is visible to everyone at once and survives the death of the process; after a power loss
///   any of its bytes may be the old or the new ones until [`Store::flush`] returned.
/// * An operation with [`Durability::Ordered`] may be lost in a power loss, whole, and only with all that came after it.
/// * A buffered operation that makes an object (none was there before it) is after a power loss either kept whole, or lost
///   together with all that was written to the object since, and the object is absent. What makes a later write to the
///   object durable, a flush of any client or a full operation, makes its creation durable too.
/// * Ids that were given up with [`Store::snap_id_remove`] count as absent from every context that still names them.
/// * Everything in a pool that does not exist is `ENOENT`.
/// * Errors carry an errno ([`Errno`]), the index of the failing step and the place.
#[async_trait]
pub trait Store: Send + Sync + Debug + 'static {
    /// Who this client is: the number locks, watches and notifies name it by.
    fn instance(&self) -> ClientInstance;

    /// Short name of the engine, for messages (`local`, `memory`, `ceph`).
    fn engine(&self) -> &'static str;

    /// Whether this client has heard that it was fenced ([`Store::blocklist_add`]). It may have been before it hears of it;
    /// every operation fails from then on, and nothing brings it back.
    fn is_fenced(&self) -> bool {
        false
    }

    /// Whether writes of images should be acknowledged to clients before the store has them, to be waited for by a flush, as
    /// the store's configuration says. `None` where a buffered write waits for no other machine.
    fn write_around(&self) -> Option<WriteAround> {
        None
    }

    /// Whether images should read ahead of clients that read on and on, as the store's configuration says. Not where the
    /// bytes are at hand anyway.
    fn reads_ahead(&self) -> bool {
        false
    }

    /// Creates a pool. `EEXIST` if the name is taken, `EINVAL` for a name that is empty or has `/` or `@`.
    async fn pool_create(&self, name: &str, options: PoolOptions) -> Result<PoolId>;

    /// Removes a pool and all in it. `ENOENT` without it. Other clients may find it for a moment longer.
    async fn pool_remove(&self, name: &str) -> Result<()>;

    /// All pools, sorted by name.
    async fn pool_list(&self) -> Result<Vec<PoolInfo>>;

    /// Number of the oldest release of Ceph's clients that use the store, or may: 12 is Luminous. An engine that serves none
    /// but Ferry gives what a fresh cluster gives.
    async fn oldest_client_release(&self) -> Result<u8> {
        Ok(RELEASE_LUMINOUS)
    }

    /// All settings that the store keeps, in any order.
    async fn settings(&self) -> Result<Vec<Setting>>;

    /// Keeps a setting, in place of the one of the same section and name. `EINVAL` for another section than [`Setting`]
    /// names, for names and values of no sensible length, and for what the engine knows to make no sense.
    async fn setting_set(&self, setting: &Setting) -> Result<()>;

    /// Gives a setting up; one that is not there is not missed.
    async fn setting_remove(&self, section: &str, name: &str) -> Result<()>;

    /// What a setting is for this client; `None` if nobody says anything. An engine whose clients are configured elsewhere too
    /// takes that into account, and its own defaults, and may go on with what it knew when the client began.
    async fn setting(&self, name: &str) -> Result<Option<String>>;

    /// Usage of a pool. `ENOENT` without it.
    async fn pool_usage(&self, pool: PoolId) -> Result<PoolUsage>;

    /// Room for bulk bytes of a pool: cheap, for asking again and again, and may be some seconds old. `None`: there is no end
    /// that the engine knows of. Without the pool `ENOENT` or `None`.
    async fn space(&self, pool: PoolId) -> Result<Option<Space>> {
        let _ = pool;
        Ok(None)
    }

    /// What the engine's own check of what it keeps finds: of a pool, or, without one, of all that is no pool's. What cannot be
    /// opened is a finding too. An engine that has no check of its own (a cluster checks itself) finds nothing and says `None`.
    async fn check(&self, pool: Option<PoolId>, options: CheckOptions) -> Result<Option<Vec<Finding>>> {
        let _ = (pool, options);
        Ok(None)
    }

    /// Names of up to `max` objects of `scope` whose head exists or that have clones, starting with `prefix`, after
    /// `start_after`, in ascending byte order. A shorter answer than `max` is the end.
    async fn list_objects(
        &self,
        scope: &Scope,
        prefix: &str,
        start_after: &str,
        max: usize,
    ) -> Result<Vec<String>>;

    /// Runs a read at `snap`. `ENOENT` when the object does not exist there, unless the operation has only
    /// class calls, whose methods then see a missing object.
    async fn read(&self, object: ObjectRef<'_>, snap: SnapId, op: ReadOp) -> Result<ReadReply>;

    /// Runs a write under `snapc`. Steps that need the object to exist (`Remove`, `Truncate`, `Zero` excepted: on a
    /// missing object `Truncate` and `Zero` do nothing, `Remove` is `ENOENT`) create it otherwise, except assertions,
    /// comparisons and class methods that write nothing.
    async fn write(&self, object: ObjectRef<'_>, snapc: &SnapContext, op: WriteOp) -> Result<WriteReply>;

    /// Fills `buffer` with the object's bytes at `snap` from `offset` on, zeroes past its end, if that needs no waiting:
    /// no medium, no lock that another has, no thread. An engine that cannot promise that says [`ReadNow::WouldWait`], as it
    /// does in place of an error; [`Store::read`] tells then.
    fn read_now(&self, object: ObjectRef<'_>, snap: SnapId, offset: u64, buffer: &mut [u8]) -> ReadNow {
        let _ = (object, snap, offset, buffer);
        ReadNow::WouldWait
    }

    /// Writes `data` under `snapc` with [`Durability::Buffered`], if that needs no waiting but for room in memory. False:
    /// it was not done, or not wholly; [`Store::write`] does it, and tells why not.
    fn write_now(&self, object: ObjectRef<'_>, snapc: &SnapContext, offset: u64, data: &[u8]) -> bool {
        let _ = (object, snapc, offset, data);
        false
    }

    /// Sequence of the object's snapset, as [`Store::snap_seq_reached`] judges it, if that needs no waiting; the inner
    /// `None`: it has neither head nor clones.
    fn snap_seq_now(&self, object: ObjectRef<'_>) -> Option<Option<u64>> {
        let _ = object;
        None
    }

    /// Makes `target`, whose head must not exist, with the bytes of `ranges`, as one atomic write under `snapc`, where the
    /// engine can move bytes itself; a caller that is told otherwise reads and writes.
    ///
    /// * `op` says what must hold and what the object is to be: class methods that write nothing, an allocation hint, which
    ///   must be there, and the durability. They are judged before the object is made, so that of several copiers one
    ///   makes it; a step that fails fails the copy.
    /// * The bytes are those of the ranges, read before `op` is judged: the caller promises that they do not change
    ///   meanwhile. They may be read one after the other. Holes stay holes as far as the engine knows them, and so does
    ///   what lies between ranges. A range may reach behind the end of what it reads; the target ends with the last byte
    ///   that a range gave.
    /// * [`Durability::Buffered`] is that of a buffered write that makes an object: after a power loss absent or whole.
    ///
    /// `EOPNOTSUPP`: this engine does not copy, or not these ranges. `EEXIST`: the target has a head. `ENOENT`: an object
    /// to read does not exist at its snapshot. `EINVAL`: another step in `op`, no hint, more than
    /// [`COPY_RANGES_MAX`] ranges, or ranges that do not ascend in the target without touching each other's bytes.
    /// `EFBIG`: a range ends behind every offset. Nothing has changed then.
    async fn copy_into(
        &self,
        target: ObjectRef<'_>,
        snapc: &SnapContext,
        op: WriteOp,
        ranges: &[CopyRange<'_>],
    ) -> Result<CopyReply> {
        let _ = (snapc, op, ranges);
        Err(StoreError::new(
            Errno::EOPNOTSUPP,
            format!("copy into {target}: engine '{}' does not copy", self.engine()),
        ))
    }

    /// The object's clones and head. `ENOENT` when it has neither.
    ///
    /// `asked` are the living snapshots that the caller wants to know about, in any order. An engine that has a list of
    /// clones gives all of it. One that has none ([`probing`]) tells what the object is at the head and at each of `asked`:
    /// * of clones that serve none of them it says nothing, and an object that has nothing else is `ENOENT`;
    /// * a clone is named by the newest of `asked` that it serves, and serves no others;
    /// * the sequence is the greatest of `asked` that is not above the object's own, 0 if there is none; of an object
    ///   without a head, a user without the right to write may be told less;
    /// * overlaps are not known.
    ///
    /// Overlaps hold only equal bytes. They are exact for objects made without an allocation hint; of others an engine may
    /// leave out every block of 4 KiB that has changed in part.
    async fn list_snaps(&self, object: ObjectRef<'_>, asked: &[SnapId]) -> Result<SnapSet>;

    /// Whether the sequence of the object's snapset is `seq` or above; false when it has neither head nor clones. Exact on
    /// every engine, whatever is written meanwhile.
    async fn snap_seq_reached(&self, object: ObjectRef<'_>, seq: u64) -> Result<bool> {
        match self.list_snaps(object, &[]).await {
            Ok(set) => Ok(set.seq >= seq),
            Err(error) if error.errno == Errno::ENOENT => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Makes the head of the object as it was at `snap` (absent there: removed), as a write under `snapc`: data, omap and
    /// xattrs. Where nothing was and nothing is, nothing happens.
    async fn rollback(
        &self,
        object: ObjectRef<'_>,
        snapc: &SnapContext,
        snap: SnapId,
        durability: Durability,
    ) -> Result<()>;

    /// Allocates a self-managed snapshot id of the pool: greater than every id it has given before.
    async fn snap_id_create(&self, pool: PoolId) -> Result<SnapId>;

    /// Gives an id up: clones that serve no other snapshot go away. Removing an id twice is not an error.
    async fn snap_id_remove(&self, pool: PoolId, snap: SnapId) -> Result<()>;

    /// Watches an object (`ENOENT` if it does not exist). The handler is called for every notify, also of this client,
    /// until [`Store::unwatch`]. Cookies are unique within an instance.
    async fn watch(&self, object: ObjectRef<'_>, handler: Arc<dyn WatchHandler>) -> Result<WatchCookie>;

    /// Ends a watch; returns after its handler's last call, so a handler must not end its own watch. Unknown cookies are
    /// `ENOENT`; a watch that broke still has to be ended.
    async fn unwatch(&self, cookie: WatchCookie) -> Result<()>;

    /// Sends `payload` to all watchers of the object and collects what they answer, for `timeout_ms` at the most.
    /// Watchers of dead processes are not waited for. `ENOENT` if the object does not exist.
    async fn notify(
        &self,
        object: ObjectRef<'_>,
        payload: bytes::Bytes,
        timeout_ms: u64,
    ) -> Result<NotifyReply>;

    /// The living watchers of the object, in any order. `ENOENT` if the object does not exist.
    async fn list_watchers(&self, object: ObjectRef<'_>) -> Result<Vec<WatchInfo>>;

    /// Fences a client instance: from the return of this call on, every operation of it fails with `ESHUTDOWN`.
    async fn blocklist_add(&self, client: &ClientInstance) -> Result<()>;

    /// Makes durable every write through this handle, buffered or not, to objects of `scope` whose name starts with
    /// `prefix`. After a failed flush the handle refuses further buffered writes to these objects with `EIO`.
    async fn flush(&self, scope: &Scope, prefix: &str) -> Result<()>;

    /// Makes durable every write to these objects by *any* client that returned before this call.
    async fn sync_all(&self, scope: &Scope, prefix: &str) -> Result<()>;

    /// Ends the instance: its watches go away. Operations after it fail with `ESHUTDOWN`.
    async fn shutdown(&self) -> Result<()>;
}
