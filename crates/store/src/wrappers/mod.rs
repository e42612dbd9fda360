//! Stores around a store, for tests: [`FaultyStore`] fails and dies as told, [`SlowStore`] waits, [`RecordingStore`]
//! writes down what was asked and answered, [`ProbingStore`] has no list of clones, [`ScheduledStore`] makes calls wait for
//! their turn. They stack.
//!
//! All are one [`Wrapper`] with another [`Hook`]. Invariant: with nothing programmed a wrapper is not to be told
//! from the store inside; it has its instance and its engine's name.

mod faulty;
mod probing;
mod recording;
mod scheduled;
mod slow;

use std::fmt::Debug;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::error::Result;
use crate::op::{CopyRange, CopyReply, Durability, ReadOp, ReadReply, WriteOp, WriteReply};
use crate::types::{ClientInstance, ObjectRef, PoolId, Scope, SnapContext, SnapId, SnapSet};
use crate::watch::{NotifyReply, WatchCookie, WatchHandler, WatchInfo};
use crate::{CheckOptions, Finding, PoolInfo, PoolOptions, PoolUsage, Setting, Space, Store, WriteAround};

pub use faulty::{CountedFault, Fault, Faults, FaultyStore, Moment};
pub use probing::{Probing, ProbingStore};
pub use recording::{Record, Recorder, RecordingStore};
pub use scheduled::{Defect, Schedule, Scheduled, ScheduledStore, Stuck, Turn};
pub use slow::{Delays, SlowStore};

/// Operations of a store, by method.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)] // each is the method of its name
pub enum OpKind {
    PoolCreate,
    PoolRemove,
    PoolList,
    PoolUsage,
    SettingSet,
    SettingRemove,
    ListObjects,
    Read,
    Write,
    CopyInto,
    ListSnaps,
    Rollback,
    SnapIdCreate,
    SnapIdRemove,
    Watch,
    Unwatch,
    Notify,
    ListWatchers,
    BlocklistAdd,
    Flush,
    SyncAll,
    Shutdown,
}

impl OpKind {
    /// Whether it changes what is stored: the points between which a process may die with different results. Watches,
    /// notifies and flushes leave nothing that a later process reads.
    pub fn mutates(self) -> bool {
        matches!(
            self,
            Self::PoolCreate
                | Self::PoolRemove
                | Self::SettingSet
                | Self::SettingRemove
                | Self::Write
                | Self::CopyInto
                | Self::Rollback
                | Self::SnapIdCreate
                | Self::SnapIdRemove
                | Self::BlocklistAdd
        )
    }
}

/// One call, as hooks see it.
#[derive(Debug)]
pub struct Call<'a> {
    /// The method.
    pub kind: OpKind,
    /// Pool and namespace, of calls on objects.
    pub scope: Option<&'a Scope>,
    /// Name of the object or pool, or prefix of the objects; empty for calls without.
    pub name: &'a str,
    /// Of writes and rollbacks.
    pub durability: Option<Durability>,
    /// The arguments for people; empty unless the hook asked for them.
    pub arguments: String,
}

/// What a wrapper does around each call.
#[async_trait]
pub trait Hook: Send + Sync + Debug + 'static {
    /// Whether [`Call::arguments`] and answers are to be told.
    const DETAILED: bool = false;
    /// Whether clones are not listed but found by reading ([`crate::probing`]), and nobody knows where watchers are.
    const PROBES: bool = false;
    /// What is carried from before a call to after it.
    type Token: Send;

    /// Whether a write or a fence is answered as if it had been made, and not made: a defect, planted to see who notices.
    fn swallows(&self, call: &Call<'_>) -> bool {
        let _ = call;
        false
    }

    /// How long after its answer a write is made: a defect, planted like [`Hook::swallows`].
    fn postpones(&self, call: &Call<'_>) -> Option<Duration> {
        let _ = call;
        None
    }

    /// Runs before the call; an error is the answer, and the call is not made.
    async fn before(&self, call: &Call<'_>) -> Result<Self::Token>;

    /// Runs after the call with its result (`Ok`: the answer for people, when [`Hook::DETAILED`]); an error takes the
    /// result's place.
    async fn after(
        &self,
        call: &Call<'_>,
        token: Self::Token,
        result: Result<String, &crate::StoreError>,
    ) -> Result<()>;
}

/// A store with a hook around each of its operations.
#[derive(Debug)]
pub struct Wrapper<H: Hook> {
    inner: Arc<dyn Store>,
    hook: H,
}

/// An answer in a few words.
trait Told {
    fn told(&self) -> String;
}

macro_rules! told_as_debug {
    ($($answer:ty),*) => {
        $(impl Told for $answer {
            fn told(&self) -> String {
                format!("{self:?}")
            }
        })*
    };
}

told_as_debug!(
    (),
    bool,
    PoolId,
    SnapId,
    WatchCookie,
    PoolUsage,
    SnapSet,
    WriteReply,
    CopyReply,
    Vec<PoolInfo>,
    Vec<WatchInfo>
);

impl Told for ReadReply {
    fn told(&self) -> String {
        format!("version {}, {}", self.version, recording::results(&self.results))
    }
}

impl Told for NotifyReply {
    fn told(&self) -> String {
        format!("{} acks, timeouts {:?}", self.acks.len(), self.timeouts)
    }
}

impl Told for Vec<String> {
    fn told(&self) -> String {
        format!("{} names", self.len())
    }
}

impl<H: Hook> Wrapper<H> {
    /// Wraps a store.
    pub fn with_hook(inner: Arc<dyn Store>, hook: H) -> Arc<Self> {
        Arc::new(Self { inner, hook })
    }

    /// The store inside.
    pub fn inner(&self) -> &Arc<dyn Store> {
        &self.inner
    }

    /// The hook, to program it and to ask it.
    pub fn hook(&self) -> &H {
        &self.hook
    }

    fn arguments(text: impl FnOnce() -> String) -> String {
        if H::DETAILED { text() } else { String::new() }
    }

    async fn around<T: Told + Send>(
        &self,
        call: Call<'_>,
        made: impl Future<Output = Result<T>> + Send,
    ) -> Result<T> {
        let token = self.hook.before(&call).await?;
        let result = made.await;
        let told = match &result {
            Ok(answer) if H::DETAILED => Ok(answer.told()),
            Ok(_) => Ok(String::new()),
            Err(error) => Err(error),
        };
        self.hook.after(&call, token, told).await?;
        result
    }
}

fn on_object<'a>(kind: OpKind, object: ObjectRef<'a>, arguments: String) -> Call<'a> {
    Call {
        kind,
        scope: Some(object.scope),
        name: object.name,
        durability: None,
        arguments,
    }
}

fn on_scope<'a>(kind: OpKind, scope: &'a Scope, name: &'a str, arguments: String) -> Call<'a> {
    Call {
        scope: Some(scope),
        ..elsewhere(kind, name, arguments)
    }
}

fn elsewhere(kind: OpKind, name: &str, arguments: String) -> Call<'_> {
    Call {
        kind,
        scope: None,
        name,
        durability: None,
        arguments,
    }
}

#[async_trait]
impl<H: Hook> Store for Wrapper<H> {
    fn instance(&self) -> ClientInstance {
        self.inner.instance()
    }

    fn engine(&self) -> &'static str {
        self.inner.engine()
    }

    fn is_fenced(&self) -> bool {
        self.inner.is_fenced()
    }

    fn write_around(&self) -> Option<WriteAround> {
        self.inner.write_around()
    }

    fn reads_ahead(&self) -> bool {
        self.inner.reads_ahead()
    }

    async fn pool_create(&self, name: &str, options: PoolOptions) -> Result<PoolId> {
        let call = elsewhere(
            OpKind::PoolCreate,
            name,
            Self::arguments(|| format!("{options:?}")),
        );
        self.around(call, self.inner.pool_create(name, options)).await
    }

    async fn pool_remove(&self, name: &str) -> Result<()> {
        let call = elsewhere(OpKind::PoolRemove, name, String::new());
        self.around(call, self.inner.pool_remove(name)).await
    }

    async fn pool_list(&self) -> Result<Vec<PoolInfo>> {
        let call = elsewhere(OpKind::PoolList, "", String::new());
        self.around(call, self.inner.pool_list()).await
    }

    async fn oldest_client_release(&self) -> Result<u8> {
        self.inner.oldest_client_release().await
    }

    async fn settings(&self) -> Result<Vec<Setting>> {
        self.inner.settings().await
    }

    async fn setting_set(&self, setting: &Setting) -> Result<()> {
        let arguments = Self::arguments(|| format!("for {}", setting.section));
        let call = elsewhere(OpKind::SettingSet, &setting.name, arguments);
        self.around(call, self.inner.setting_set(setting)).await
    }

    async fn setting_remove(&self, section: &str, name: &str) -> Result<()> {
        let arguments = Self::arguments(|| format!("for {section}"));
        let call = elsewhere(OpKind::SettingRemove, name, arguments);
        self.around(call, self.inner.setting_remove(section, name)).await
    }

    async fn setting(&self, name: &str) -> Result<Option<String>> {
        self.inner.setting(name).await
    }

    async fn pool_usage(&self, pool: PoolId) -> Result<PoolUsage> {
        let call = elsewhere(OpKind::PoolUsage, "", Self::arguments(|| format!("pool {pool}")));
        self.around(call, self.inner.pool_usage(pool)).await
    }

    async fn space(&self, pool: PoolId) -> Result<Option<Space>> {
        self.inner.space(pool).await
    }

    async fn check(&self, pool: Option<PoolId>, options: CheckOptions) -> Result<Option<Vec<Finding>>> {
        self.inner.check(pool, options).await
    }

    async fn list_objects(
        &self,
        scope: &Scope,
        prefix: &str,
        start_after: &str,
        max: usize,
    ) -> Result<Vec<String>> {
        let arguments = Self::arguments(|| format!("after '{start_after}', at most {max}"));
        let call = on_scope(OpKind::ListObjects, scope, prefix, arguments);
        self.around(call, self.inner.list_objects(scope, prefix, start_after, max))
            .await
    }

    async fn read(&self, object: ObjectRef<'_>, snap: SnapId, op: ReadOp) -> Result<ReadReply> {
        let arguments = Self::arguments(|| format!("at {snap}: {}", recording::read_steps(&op)));
        let call = on_object(OpKind::Read, object, arguments);
        self.around(call, self.inner.read(object, snap, op)).await
    }

    async fn write(&self, object: ObjectRef<'_>, snapc: &SnapContext, op: WriteOp) -> Result<WriteReply> {
        let durability = Some(op.durability);
        let arguments = Self::arguments(|| {
            format!(
                "{:?} under {}: {}",
                op.durability,
                snapc.seq(),
                recording::write_steps(&op)
            )
        });
        let call = Call {
            durability,
            ..on_object(OpKind::Write, object, arguments)
        };
        if self.hook.swallows(&call) {
            return Ok(WriteReply::default());
        }
        if let Some(delay) = self.hook.postpones(&call) {
            let (inner, snapc) = (self.inner.clone(), snapc.clone());
            let (scope, name) = (object.scope.clone(), object.name.to_owned());
            tokio::spawn(async move {
                tokio::time::sleep(delay).await;
                let object = ObjectRef {
                    scope: &scope,
                    name: &name,
                };
                // Nobody waits for the answer any more.
                let _ = inner.write(object, &snapc, op).await;
            });
            return Ok(WriteReply::default());
        }
        self.around(call, self.inner.write(object, snapc, op)).await
    }

    async fn copy_into(
        &self,
        target: ObjectRef<'_>,
        snapc: &SnapContext,
        op: WriteOp,
        ranges: &[CopyRange<'_>],
    ) -> Result<CopyReply> {
        let durability = Some(op.durability);
        let arguments = Self::arguments(|| {
            format!(
                "{:?} under {}: {}; {}",
                op.durability,
                snapc.seq(),
                recording::write_steps(&op),
                recording::copy_ranges(ranges)
            )
        });
        let call = Call {
            durability,
            ..on_object(OpKind::CopyInto, target, arguments)
        };
        self.around(call, self.inner.copy_into(target, snapc, op, ranges))
            .await
    }

    async fn list_snaps(&self, object: ObjectRef<'_>, asked: &[SnapId]) -> Result<SnapSet> {
        let call = on_object(OpKind::ListSnaps, object, String::new());
        if H::PROBES {
            let probed = crate::probing::list_snaps(&*self.inner, object, asked);
            return self.around(call, probed).await;
        }
        self.around(call, self.inner.list_snaps(object, asked)).await
    }

    async fn snap_seq_reached(&self, object: ObjectRef<'_>, seq: u64) -> Result<bool> {
        let arguments = Self::arguments(|| format!("reached {seq}"));
        let call = on_object(OpKind::ListSnaps, object, arguments);
        self.around(call, self.inner.snap_seq_reached(object, seq)).await
    }

    async fn rollback(
        &self,
        object: ObjectRef<'_>,
        snapc: &SnapContext,
        snap: SnapId,
        durability: Durability,
    ) -> Result<()> {
        let arguments = Self::arguments(|| format!("{durability:?} under {} to {snap}", snapc.seq()));
        let call = Call {
            durability: Some(durability),
            ..on_object(OpKind::Rollback, object, arguments)
        };
        self.around(call, self.inner.rollback(object, snapc, snap, durability))
            .await
    }

    async fn snap_id_create(&self, pool: PoolId) -> Result<SnapId> {
        let call = elsewhere(
            OpKind::SnapIdCreate,
            "",
            Self::arguments(|| format!("pool {pool}")),
        );
        self.around(call, self.inner.snap_id_create(pool)).await
    }

    async fn snap_id_remove(&self, pool: PoolId, snap: SnapId) -> Result<()> {
        let call = elsewhere(
            OpKind::SnapIdRemove,
            "",
            Self::arguments(|| format!("pool {pool} id {snap}")),
        );
        self.around(call, self.inner.snap_id_remove(pool, snap)).await
    }

    async fn watch(&self, object: ObjectRef<'_>, handler: Arc<dyn WatchHandler>) -> Result<WatchCookie> {
        let call = on_object(OpKind::Watch, object, String::new());
        self.around(call, self.inner.watch(object, handler)).await
    }

    async fn unwatch(&self, cookie: WatchCookie) -> Result<()> {
        let call = elsewhere(OpKind::Unwatch, "", Self::arguments(|| format!("{}", cookie.0)));
        self.around(call, self.inner.unwatch(cookie)).await
    }

    async fn notify(&self, object: ObjectRef<'_>, payload: Bytes, timeout_ms: u64) -> Result<NotifyReply> {
        let arguments = Self::arguments(|| format!("{} bytes, {timeout_ms} ms", payload.len()));
        let call = on_object(OpKind::Notify, object, arguments);
        self.around(call, self.inner.notify(object, payload, timeout_ms))
            .await
    }

    async fn list_watchers(&self, object: ObjectRef<'_>) -> Result<Vec<WatchInfo>> {
        let call = on_object(OpKind::ListWatchers, object, String::new());
        let listed = async {
            let mut watchers = self.inner.list_watchers(object).await?;
            for watcher in watchers.iter_mut().filter(|_| H::PROBES) {
                watcher.addr = None;
            }
            Ok(watchers)
        };
        self.around(call, listed).await
    }

    async fn blocklist_add(&self, client: &ClientInstance) -> Result<()> {
        let call = elsewhere(OpKind::BlocklistAdd, "", Self::arguments(|| format!("{client}")));
        if self.hook.swallows(&call) {
            return Ok(());
        }
        self.around(call, self.inner.blocklist_add(client)).await
    }

    async fn flush(&self, scope: &Scope, prefix: &str) -> Result<()> {
        let call = on_scope(OpKind::Flush, scope, prefix, String::new());
        self.around(call, self.inner.flush(scope, prefix)).await
    }

    async fn sync_all(&self, scope: &Scope, prefix: &str) -> Result<()> {
        let call = on_scope(OpKind::SyncAll, scope, prefix, String::new());
        self.around(call, self.inner.sync_all(scope, prefix)).await
    }

    async fn shutdown(&self) -> Result<()> {
        let call = elsewhere(OpKind::Shutdown, "", String::new());
        self.around(call, self.inner.shutdown()).await
    }
}
