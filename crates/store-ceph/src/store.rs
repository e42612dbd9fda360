//! The contract over a connection.
//!
//! What a cluster gives and the contract leaves open: every write is durable when it returns, whatever was asked; watchers
//! of a killed process are waited for until the OSD gives them up (30 s by default); usage comes from the manager and lags.

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use ferry_store::{
    ClientInstance, CopyRange, CopyReply, Durability, Errno, NotifyReply, ObjectRef, PoolId, PoolInfo,
    PoolOptions, PoolUsage, ReadOp, ReadReply, ReadStep, Result, Scope, Setting, SnapContext, SnapId,
    SnapSet, Space, Store, StoreError, WatchCookie, WatchHandler, WatchInfo, WriteAround, WriteOp,
    WriteReply, WriteStep, check_copy, probing,
};
use parking_lot::Mutex;

use crate::config::{CephConfig, OpenError};
use crate::contexts::Contexts;
use crate::sys::{Cluster, Ioctx, Lending, OpError, Rc};
use crate::watches::Watches;
use crate::{addr, copying, reading, reply, settings, space, without_cxx, writing};

/// How often, and how long each time, a shutdown looks whether operations are still under way: 10 s in all.
const SHUTDOWN_POLLS: u32 = 2000;
const SHUTDOWN_POLL: Duration = Duration::from_millis(5);

/// What people may do about an error, to stand behind it.
fn why(errno: Errno) -> &'static str {
    match errno {
        Errno::EPERM | Errno::EACCES => {
            "; this user's capabilities do not allow it (Ceph's 'profile rbd' does)"
        }
        Errno::ESHUTDOWN => {
            "; this client was fenced (blocklisted), as one that is taken for dead: start it again"
        }
        Errno::ENOSPC => "; the cluster or the pool is full",
        Errno::EDQUOT => "; the pool's quota is used up",
        Errno::ETIMEDOUT => "; the cluster did not answer in time",
        _ => "",
    }
}

/// Calls of class methods in an operation: index of the step, class, method.
type Calls = Vec<(usize, &'static str, &'static str)>;

/// What is done and where, for errors; made only when there is one.
type What<'a> = &'a (dyn Fn() -> String + Sync);

/// A connection to a Ceph cluster.
#[derive(Debug)]
pub struct CephStore {
    cluster: Mutex<Option<Arc<Cluster>>>,
    instance: ClientInstance,
    contexts: Contexts,
    watches: Watches,
    /// What librados exports for C++ only is left alone.
    c_interface_only: bool,
    write_around: Option<WriteAround>,
    reads_ahead: bool,
    /// The cluster has said that this client is fenced; it is never let in again.
    fenced: AtomicBool,
}

impl CephStore {
    /// Whose the bytes of large reads and writes may stay.
    fn lending(&self) -> Lending {
        match self.c_interface_only {
            true => Lending::No,
            false => Lending::Large,
        }
    }

    /// Connects to a cluster.
    ///
    /// # Errors
    /// [`OpenError`], within [`CephConfig::connect_timeout`].
    pub async fn connect(config: CephConfig) -> std::result::Result<Arc<Self>, OpenError> {
        let c_interface_only = config.c_interface_only;
        let connected = tokio::task::spawn_blocking(move || {
            let cluster = config.connect()?;
            let addresses = cluster.addresses();
            let addresses =
                addresses.map_err(|errno| OpenError::Connect("no address of our own".to_owned(), errno))?;
            let addr = addr::parse(&addresses).ok_or_else(|| {
                let what = format!("this client's address at the cluster, {addresses}, is not IPv4");
                OpenError::Connect(what, Errno::EOPNOTSUPP)
            })?;
            let gid = cluster.instance_id();
            let cache = (
                CephConfig::write_around(&cluster),
                CephConfig::reads_ahead(&cluster),
            );
            Ok((cluster, ClientInstance { gid, addr }, cache))
        });
        let (cluster, instance, (write_around, reads_ahead)) = connected
            .await
            .map_err(|error| OpenError::Connect(error.to_string(), Errno::EIO))??;
        Ok(Arc::new(Self {
            cluster: Mutex::new(Some(Arc::new(cluster))),
            instance,
            contexts: Contexts::default(),
            watches: Watches::default(),
            c_interface_only,
            write_around,
            reads_ahead,
            fenced: AtomicBool::new(false),
        }))
    }

    /// The connection; `ESHUTDOWN` when there is none any more.
    fn cluster(&self, what: What<'_>) -> Result<Arc<Cluster>> {
        let cluster = match self.fenced.load(Ordering::SeqCst) {
            true => None,
            false => self.cluster.lock().clone(),
        };
        cluster
            .ok_or_else(|| StoreError::new(Errno::ESHUTDOWN, format!("{}{}", what(), why(Errno::ESHUTDOWN))))
    }

    /// An error with its place; notes when it says that we are fenced.
    fn failed(&self, error: impl Into<OpError>, what: What<'_>) -> StoreError {
        let OpError { errno, step } = error.into();
        if errno == Errno::ESHUTDOWN {
            self.fenced.store(true, Ordering::SeqCst);
        }
        StoreError {
            errno,
            what: format!("{}{}", what(), why(errno)),
            step,
        }
    }

    /// The same of an operation with calls of class methods; names what the OSD does not have or does not allow. An OSD that refuses
    /// the whole operation does not tell which it is.
    fn failed_calls(&self, error: OpError, calls: &Calls, what: What<'_>) -> StoreError {
        let is_possible = |call: &&(usize, &str, &str)| error.step.is_none_or(|step| call.0 == step);
        let possible = || calls.iter().filter(is_possible);
        let any_of = |names: BTreeSet<String>| Vec::from_iter(names).join(", or ");
        match error.errno {
            Errno::EOPNOTSUPP if possible().next().is_some() => {
                let methods = possible().map(|(_, class, method)| format!("'{method}' of class '{class}'"));
                let methods = any_of(methods.collect());
                self.failed(error, &|| format!("{}: the OSD has no method {methods}", what()))
            }
            // An OSD may be told which classes it loads.
            Errno::EPERM if possible().next().is_some() => {
                let classes = any_of(
                    possible()
                        .map(|(_, class, _)| format!("class '{class}'"))
                        .collect(),
                );
                self.failed(error, &|| format!("{}: {classes} is refused", what()))
            }
            _ => self.failed(error, what),
        }
    }

    /// What a step of the C++ interface gives; `None` where there is none.
    async fn by_cxx<T>(&self, step: impl Future<Output = Rc<T>>, what: What<'_>) -> Result<Option<T>> {
        if self.c_interface_only {
            return Ok(None);
        }
        match step.await {
            Err(Errno::EOPNOTSUPP) => Ok(None),
            done => done.map(Some).map_err(|errno| self.failed(errno, what)),
        }
    }

    async fn blocking<T: Send + 'static>(
        &self,
        what: What<'_>,
        work: impl FnOnce(&Arc<Cluster>) -> std::result::Result<T, Errno> + Send + 'static,
    ) -> Result<T> {
        let cluster = self.cluster(what)?;
        let done = tokio::task::spawn_blocking(move || work(&cluster)).await;
        done.unwrap_or(Err(Errno::EIO))
            .map_err(|errno| self.failed(errno, what))
    }

    /// The monitors' answer to a command; their own words are in the error.
    async fn monitors(&self, command: String, what: &str) -> Result<Vec<u8>> {
        let cluster = self.cluster(&|| what.to_owned())?;
        let done = tokio::task::spawn_blocking(move || cluster.monitors(&command)).await;
        match done {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err((errno, words))) => Err(self.failed(errno, &|| match words.is_empty() {
                true => what.to_owned(),
                false => format!("{what}: {words}"),
            })),
            Err(_) => Err(StoreError::new(Errno::EIO, what.to_owned())),
        }
    }

    /// The context for reads of heads, and for what needs a pool alone.
    async fn pool(&self, scope: &Scope, what: What<'_>) -> Result<Arc<Ioctx>> {
        let cluster = self.cluster(what)?;
        let ioctx = self.contexts.reading(&cluster, scope, SnapId::HEAD).await;
        ioctx.map_err(|errno| self.failed(errno, what))
    }
}

#[async_trait]
impl Store for CephStore {
    fn instance(&self) -> ClientInstance {
        self.instance
    }

    fn engine(&self) -> &'static str {
        "ceph"
    }

    fn is_fenced(&self) -> bool {
        self.fenced.load(Ordering::SeqCst)
    }

    fn write_around(&self) -> Option<WriteAround> {
        self.write_around
    }

    fn reads_ahead(&self) -> bool {
        self.reads_ahead
    }

    async fn pool_create(&self, name: &str, options: PoolOptions) -> Result<PoolId> {
        let what = &|| format!("create pool '{name}'");
        if name.is_empty() || name.contains(['/', '@', '\0']) {
            return Err(StoreError::new(Errno::EINVAL, what()));
        }
        if options.dir.is_some() {
            let what = format!("create pool '{name}': pools of a Ceph cluster have no directory");
            return Err(StoreError::new(Errno::EOPNOTSUPP, what));
        }
        let owned = name.to_owned();
        let id = self.blocking(what, move |cluster| {
            // The monitors take a pool that is there for made.
            cluster.wait_for_latest_map()?;
            match cluster.pool_id(&owned) {
                Err(Errno::ENOENT) => cluster.create_pool(&owned)?,
                other => return other.and(Err(Errno::EEXIST)),
            }
            cluster.wait_for_latest_map()?;
            let id = PoolId(cluster.pool_id(&owned)?);
            let scope = Scope::new(id);
            let read = crate::sys::ReadAt::Snap(SnapId::HEAD);
            Ioctx::new(cluster, &scope, read, &SnapContext::empty())?.enable_rbd()?;
            Ok(id)
        });
        id.await
    }

    async fn pool_remove(&self, name: &str) -> Result<()> {
        let what = &|| format!("remove pool '{name}'");
        let owned = name.to_owned();
        let removed = self.blocking(what, move |cluster| {
            cluster.wait_for_latest_map()?;
            cluster.remove_pool(&owned)?;
            cluster.wait_for_latest_map()
        });
        removed.await.map_err(|error| match error.errno {
            Errno::EPERM => StoreError::new(
                Errno::EPERM,
                format!(
                    "{} (the monitors must allow it: mon_allow_pool_delete)",
                    error.what
                ),
            ),
            _ => error,
        })
    }

    async fn pool_list(&self) -> Result<Vec<PoolInfo>> {
        let what = &|| "list pools".to_owned();
        let pools = self.blocking(what, |cluster| {
            cluster.wait_for_latest_map()?;
            let mut pools = Vec::new();
            for name in cluster.pools()? {
                // One that was removed meanwhile is none.
                if let Ok(id) = cluster.pool_id(&name) {
                    pools.push(PoolInfo {
                        id: PoolId(id),
                        name,
                        dir: None,
                    });
                }
            }
            pools.sort_by(|left, right| left.name.cmp(&right.name));
            Ok(pools)
        });
        pools.await
    }

    async fn oldest_client_release(&self) -> Result<u8> {
        let what = &|| "oldest release of clients".to_owned();
        self.blocking(what, |cluster| cluster.oldest_client_release())
            .await
    }

    async fn settings(&self) -> Result<Vec<Setting>> {
        let what = "list the settings of the cluster";
        let answer = self.monitors(settings::dump(), what).await?;
        settings::parse(&answer).ok_or_else(|| {
            StoreError::new(Errno::EIO, format!("{what}: the monitors' answer makes no sense"))
        })
    }

    async fn setting_set(&self, setting: &Setting) -> Result<()> {
        setting.check()?;
        let what = format!("set {} for {}", setting.name, setting.section);
        self.monitors(settings::set(setting), &what).await.map(drop)
    }

    async fn setting_remove(&self, section: &str, name: &str) -> Result<()> {
        let what = format!("remove {name} for {section}");
        self.monitors(settings::remove(section, name), &what)
            .await
            .map(drop)
    }

    async fn setting(&self, name: &str) -> Result<Option<String>> {
        Ok(self.cluster(&|| format!("look at setting {name}"))?.get(name))
    }

    async fn pool_usage(&self, pool: PoolId) -> Result<PoolUsage> {
        let what = &|| format!("usage of pool {pool}");
        let ioctx = self.pool(&Scope::new(pool), what).await?;
        let usage = self.blocking(what, move |cluster| {
            let (objects, clones, used_bytes) = ioctx.pool_usage()?;
            Ok(PoolUsage {
                objects: objects.saturating_sub(clones),
                used_bytes,
                free_bytes: Some(cluster.free_bytes()?),
            })
        });
        usage.await
    }

    async fn space(&self, pool: PoolId) -> Result<Option<Space>> {
        let what = format!("space of pool {pool}");
        let answer = self.monitors(space::ask(), &what).await?;
        Ok(space::parse(&answer, pool))
    }

    async fn list_objects(
        &self,
        scope: &Scope,
        prefix: &str,
        start_after: &str,
        max: usize,
    ) -> Result<Vec<String>> {
        let what = &|| format!("list objects '{prefix}*' of pool {}", scope.pool);
        let ioctx = self.pool(scope, what).await?;
        let (prefix, start_after) = (prefix.to_owned(), start_after.to_owned());
        // A cluster lists in the order of its hash, so each page is the least names of a whole listing.
        let pool = scope.pool;
        let names = self.blocking(what, move |cluster| {
            let mut least = BTreeSet::new();
            ioctx.list(&mut |name| {
                if !name.starts_with(&prefix) || name <= start_after.as_str() {
                    return;
                }
                least.insert(name.to_owned());
                if least.len() > max {
                    least.pop_last();
                }
            })?;
            if least.is_empty() {
                // A pool that was removed lists nothing.
                cluster.check_pool(pool.0)?;
            }
            Ok(least.into_iter().collect())
        });
        names.await
    }

    async fn read(&self, object: ObjectRef<'_>, snap: SnapId, op: ReadOp) -> Result<ReadReply> {
        let what = &|| format!("read of {object} at {snap}");
        let cluster = self.cluster(what)?;
        let ioctx = self.contexts.reading(&cluster, object.scope, snap).await;
        let ioctx = ioctx.map_err(|errno| self.failed(errno, what))?;
        let calls = op
            .steps
            .iter()
            .enumerate()
            .filter_map(|(index, step)| match step {
                ReadStep::Call { class, method, .. } => Some((index, *class, *method)),
                _ => None,
            });
        let calls: Calls = calls.collect();
        reading::run(&ioctx, object.name, op, self.lending())
            .await
            .map_err(|error| self.failed_calls(error, &calls, what))
    }

    async fn write(&self, object: ObjectRef<'_>, snapc: &SnapContext, op: WriteOp) -> Result<WriteReply> {
        let what = &|| format!("write to {object}");
        let cluster = self.cluster(what)?;
        let ioctx = self.contexts.writing(&cluster, object.scope, snapc).await;
        let ioctx = ioctx.map_err(|errno| self.failed(errno, what))?;
        let calls = op
            .steps
            .iter()
            .enumerate()
            .filter_map(|(index, step)| match step {
                WriteStep::Call { class, method, .. } => Some((index, *class, *method)),
                _ => None,
            });
        let calls: Calls = calls.collect();
        writing::run(&ioctx, object.name, op, self.lending())
            .await
            .map_err(|error| self.failed_calls(error, &calls, what))
    }

    async fn copy_into(
        &self,
        target: ObjectRef<'_>,
        snapc: &SnapContext,
        op: WriteOp,
        ranges: &[CopyRange<'_>],
    ) -> Result<CopyReply> {
        let what = &|| format!("copy into {target}");
        check_copy(&op, ranges).map_err(|(errno, step)| StoreError {
            errno,
            what: what(),
            step,
        })?;
        let range = copying::whole(ranges).filter(|_| !self.c_interface_only);
        let Some(range) = range else {
            let what = format!("{}: an OSD copies whole objects only", what());
            return Err(StoreError::new(Errno::EOPNOTSUPP, what));
        };
        let cluster = self.cluster(what)?;
        let to = self.contexts.writing(&cluster, target.scope, snapc).await;
        let to = to.map_err(|errno| self.failed(errno, what))?;
        let from = self
            .contexts
            .reading(&cluster, range.object.scope, range.snap)
            .await;
        let from = from.map_err(|errno| self.failed(errno, what))?;
        copying::run(&to, target.name, op, &from, range)
            .await
            .map_err(|error| self.failed(error, what))
    }

    async fn list_snaps(&self, object: ObjectRef<'_>, asked: &[SnapId]) -> Result<SnapSet> {
        let what = &|| format!("list snapshots of {object}");
        let cluster = self.cluster(what)?;
        let ioctx = self.contexts.listing(&cluster, object.scope).await;
        let ioctx = ioctx.map_err(|errno| self.failed(errno, what))?;
        match self.by_cxx(ioctx.list_snaps(object.name), what).await? {
            Some(set) => Ok(set),
            None => probing::list_snaps(self, object, asked).await,
        }
    }

    async fn snap_seq_reached(&self, object: ObjectRef<'_>, seq: u64) -> Result<bool> {
        let what = &|| format!("look whether {object} has reached snapshot {seq}");
        let cluster = self.cluster(what)?;
        let ioctx = self.contexts.listing(&cluster, object.scope).await;
        let ioctx = ioctx.map_err(|errno| self.failed(errno, what))?;
        match self.by_cxx(ioctx.list_snaps(object.name), what).await {
            Ok(Some(set)) => Ok(set.seq >= seq),
            Ok(None) => without_cxx::snap_seq_reached(self, object, seq).await,
            Err(error) if error.errno == Errno::ENOENT => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn rollback(
        &self,
        object: ObjectRef<'_>,
        snapc: &SnapContext,
        snap: SnapId,
        _durability: Durability,
    ) -> Result<()> {
        let what = &|| format!("roll {object} back to {snap}");
        let cluster = self.cluster(what)?;
        let ioctx = self.contexts.writing(&cluster, object.scope, snapc).await;
        let ioctx = ioctx.map_err(|errno| self.failed(errno, what))?;
        if let Some(()) = self.by_cxx(ioctx.rollback(object.name, snap), what).await? {
            return Ok(());
        }
        let name = object.name.to_owned();
        let blocking = tokio::task::spawn_blocking(move || ioctx.rollback_blocking(&name, snap));
        let rolled = blocking.await.unwrap_or(Err(Errno::EIO));
        rolled.map_err(|errno| self.failed(errno, what))
    }

    async fn snap_id_create(&self, pool: PoolId) -> Result<SnapId> {
        let what = &|| format!("create a snapshot id in pool {pool}");
        let ioctx = self.pool(&Scope::new(pool), what).await?;
        ioctx
            .create_snap()
            .await
            .map_err(|errno| self.failed(errno, what))
    }

    async fn snap_id_remove(&self, pool: PoolId, snap: SnapId) -> Result<()> {
        let what = &|| format!("remove snapshot id {snap} of pool {pool}");
        let ioctx = self.pool(&Scope::new(pool), what).await?;
        ioctx
            .remove_snap(snap)
            .await
            .map_err(|errno| self.failed(errno, what))
    }

    async fn watch(&self, object: ObjectRef<'_>, handler: Arc<dyn WatchHandler>) -> Result<WatchCookie> {
        let what = &|| format!("watch {object}");
        let ioctx = self.pool(object.scope, what).await?;
        self.watches
            .begin(&ioctx, object.name, handler)
            .await
            .map_err(|errno| self.failed(errno, what))
    }

    async fn unwatch(&self, cookie: WatchCookie) -> Result<()> {
        let what = &|| format!("end watch {}", cookie.0);
        self.watches
            .end(cookie)
            .await
            .map_err(|errno| self.failed(errno, what))
    }

    async fn notify(&self, object: ObjectRef<'_>, payload: Bytes, timeout_ms: u64) -> Result<NotifyReply> {
        // The OSD counts whole seconds, and takes none for its default.
        const LEAST_MS: u64 = 1000;
        let what = &|| format!("notify watchers of {object}");
        let ioctx = self.pool(object.scope, what).await?;
        let sent = ioctx
            .notify(object.name, &payload, timeout_ms.max(LEAST_MS))
            .await;
        let (answer, _) = sent.map_err(|errno| self.failed(errno, what))?;
        reply::decode(answer)
            .ok_or_else(|| StoreError::new(Errno::EBADMSG, format!("{}: answer of the OSD", what())))
    }

    async fn list_watchers(&self, object: ObjectRef<'_>) -> Result<Vec<WatchInfo>> {
        let what = &|| format!("list watchers of {object}");
        let ioctx = self.pool(object.scope, what).await?;
        let Some(watchers) = self.by_cxx(ioctx.list_watchers(object.name), what).await? else {
            return without_cxx::list_watchers(self, object).await;
        };
        let known = watchers.into_iter().map(|watcher| {
            let addr = addr::parse(&watcher.addr).ok_or_else(|| {
                let what = format!("{}: address {} is not IPv4", what(), watcher.addr);
                StoreError::new(Errno::EOPNOTSUPP, what)
            })?;
            Ok(WatchInfo {
                gid: watcher.gid,
                addr: Some(addr),
                cookie: WatchCookie(watcher.cookie),
            })
        });
        known.collect()
    }

    async fn blocklist_add(&self, client: &ClientInstance) -> Result<()> {
        let what = &|| format!("blocklist {client} at {}", client.addr);
        let address = client.addr.to_string();
        let added = self.blocking(what, move |cluster| {
            cluster.blocklist(&address)?;
            // What we send from here on carries the map that fences, so no OSD takes our word before it has it.
            cluster.wait_for_latest_map()
        });
        added.await
    }

    async fn flush(&self, scope: &Scope, _prefix: &str) -> Result<()> {
        let what = &|| format!("flush pool {}", scope.pool);
        // What is answered is durable; what nobody waits for is to have its effect now, or none.
        let cluster = self.cluster(what)?;
        cluster.given_up.ended().await;
        Ok(())
    }

    async fn sync_all(&self, scope: &Scope, prefix: &str) -> Result<()> {
        self.flush(scope, prefix).await
    }

    async fn shutdown(&self) -> Result<()> {
        let what = &|| "shut down".to_owned();
        let taken = self.cluster.lock().take();
        let Some(cluster) = taken else {
            return Err(StoreError::new(Errno::ESHUTDOWN, what()));
        };
        self.watches.end_all().await;
        self.contexts.clear();
        // Operations under way hold the connection for a little while longer.
        let mut cluster = cluster;
        for _ in 0..SHUTDOWN_POLLS {
            match Arc::try_unwrap(cluster) {
                Ok(cluster) => {
                    let ended = tokio::task::spawn_blocking(move || cluster.end()).await;
                    return ended
                        .map_err(|error| StoreError::new(Errno::EIO, format!("{}: {error}", what())));
                }
                Err(shared) => cluster = shared,
            }
            tokio::time::sleep(SHUTDOWN_POLL).await;
        }
        // Whoever still works with it ends it.
        tracing::warn!("the connection to Ceph is still in use at its shutdown");
        Ok(())
    }
}
