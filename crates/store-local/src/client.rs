//! One running client: whether it may still act, its open pools, its watches, its background chores.
//!
//! Keeps invariant: an operation is counted in before it looks whether the client is fenced, and counted out only when
//! all its work is done, so a fence that waits for the count is final. Does not know what operations do.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use ferry_store::class::{CallContext, ClassRegistry};
use ferry_store::{ClientInstance, Errno, ObjectRef, PoolId, Result, SnapId, StoreError, Timestamp};
use parking_lot::Mutex;
use tokio::sync::{OnceCell, Semaphore};
use tokio::task::JoinHandle;

use crate::disk::Disk;
use crate::pool::Pool;
use crate::pool::key::ObjectKey;
use crate::root::Root;
use crate::sys::alive::Life;
use crate::watch::Watches;
use crate::watch::registry::Registry;
use crate::watch::server::{self, Sockets};

/// Operations of one client that block at once.
const BLOCKING_MAX: usize = 32;
/// How often files that nobody reads are closed.
const IDLE_INTERVAL: Duration = Duration::from_secs(10);

/// A running client.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) root: Root,
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) instance: ClientInstance,
    pub(crate) watches: Arc<Watches>,
    pub(crate) sockets: Arc<Sockets>,
    registry: Arc<ClassRegistry>,
    pools: Mutex<HashMap<PoolId, Arc<Pool>>>,
    opening: tokio::sync::Mutex<()>,
    watch_table: OnceCell<Arc<Registry>>,
    server: Mutex<Option<JoinHandle<()>>>,
    chores: AtomicBool,
    blocking: Arc<Semaphore>,
    epoch: AtomicU64,
    ended: AtomicBool,
    life: Mutex<Option<Arc<Life>>>,
}

/// An operation under way.
#[derive(Debug)]
pub(crate) struct UnderWay(Arc<Life>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.leave();
    }
}

fn shut_down() -> StoreError {
    StoreError::new(
        Errno::ESHUTDOWN,
        "this client of the store has ended or is blocklisted",
    )
}

impl Client {
    /// Opens the root and begins to live. Blocks.
    pub(crate) fn open(root: &Path, disk: Arc<dyn Disk>, registry: Arc<ClassRegistry>) -> Result<Arc<Self>> {
        let root = Root::open(root, &*disk)?;
        // Read before the id is made: what changes from then on is noticed.
        let epoch = root.epoch();
        let (instance, life) = root.begin_client()?;
        let sockets = Sockets::new(root.run())
            .map_err(|error| StoreError::io(&error, format!("open {}", root.run().display())))?;
        Ok(Arc::new(Self {
            root,
            disk,
            instance,
            watches: Arc::new(Watches::new()),
            sockets: Arc::new(sockets),
            registry,
            pools: Mutex::default(),
            opening: tokio::sync::Mutex::default(),
            watch_table: OnceCell::new(),
            server: Mutex::new(None),
            chores: AtomicBool::new(false),
            blocking: Arc::new(Semaphore::new(BLOCKING_MAX)),
            epoch: AtomicU64::new(epoch),
            ended: AtomicBool::new(false),
            life: Mutex::new(Some(Arc::new(life))),
        }))
    }

    /// Counts an operation in, if this client may still act.
    pub(crate) async fn begin(self: &Arc<Self>) -> Result<UnderWay> {
        if self.ended.load(Ordering::SeqCst) {
            return Err(shut_down());
        }
        let life = self.life.lock().clone().ok_or_else(shut_down)?;
        life.enter();
        let under_way = UnderWay(life);
        if self.root.epoch() != self.epoch.load(Ordering::SeqCst) {
            let client = self.clone();
            self.blocking(move || client.catch_up()).await?;
            if self.ended.load(Ordering::SeqCst) {
                return Err(shut_down());
            }
        }
        Ok(under_way)
    }

    /// As [`Client::begin`] and the pool, if nothing has to be looked up first.
    pub(crate) fn begin_now(&self, pool: PoolId) -> Option<(UnderWay, Arc<Pool>)> {
        if self.ended.load(Ordering::SeqCst) {
            return None;
        }
        let life = self.life.lock().clone()?;
        life.enter();
        let under_way = UnderWay(life);
        if self.root.epoch() != self.epoch.load(Ordering::SeqCst) {
            return None;
        }
        let pool = self.pools.lock().get(&pool)?.clone();
        Some((under_way, pool))
    }

    /// Looks what changed: fences and pools. Blocks.
    fn catch_up(&self) -> Result<()> {
        let epoch = self.root.epoch();
        if self.root.is_fenced(self.instance.gid)? {
            self.ended.store(true, Ordering::SeqCst);
            self.watches.lose_all(Some(Errno::ESHUTDOWN));
            return Ok(());
        }
        let known = self.root.pools()?;
        self.pools
            .lock()
            .retain(|id, _| known.iter().any(|pool| pool.id == *id));
        self.epoch.store(epoch, Ordering::SeqCst);
        Ok(())
    }

    /// Runs `work` where blocking is allowed (here, if it is), a bounded number at a time. `work` never waits for a slot, so those who
    /// hold slots always get their turn.
    pub(crate) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let permit = self.blocking.clone().acquire_owned().await;
        let run = move || {
            let _permit = permit;
            work()
        };
        if ferry_store::here::may_block() {
            let worked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
            return worked.unwrap_or_else(|_| {
                Err(StoreError::new(
                    Errno::EIO,
                    "an operation broke off: it panicked".to_owned(),
                ))
            });
        }
        match tokio::task::spawn_blocking(run).await {
            Ok(result) => result,
            Err(error) => Err(StoreError::new(
                Errno::EIO,
                format!("an operation broke off: {error}"),
            )),
        }
    }

    /// What class methods are told.
    pub(crate) fn context(&self) -> CallContext {
        CallContext {
            client: self.instance,
            now: Timestamp::now(),
        }
    }

    /// The open pool `id`.
    pub(crate) async fn pool(self: &Arc<Self>, id: PoolId) -> Result<Arc<Pool>> {
        if let Some(pool) = self.pools.lock().get(&id) {
            return Ok(pool.clone());
        }
        let _opening = self.opening.lock().await;
        if let Some(pool) = self.pools.lock().get(&id) {
            return Ok(pool.clone());
        }
        let client = self.clone();
        let pool = self
            .blocking(move || {
                let place = client.root.pool_place(id)?;
                place.open(
                    client.disk.clone(),
                    client.registry.clone(),
                    client.instance.gid,
                    client.root.run(),
                )
            })
            .await?;
        let pool = Arc::new(pool);
        self.pools.lock().insert(id, pool.clone());
        tokio::spawn(clean_up(Arc::downgrade(self), Arc::downgrade(&pool)));
        if !self.chores.swap(true, Ordering::Relaxed) {
            tokio::spawn(close_idle(Arc::downgrade(self)));
        }
        Ok(pool)
    }

    /// The pool and key of an object.
    pub(crate) async fn locate(self: &Arc<Self>, object: ObjectRef<'_>) -> Result<(Arc<Pool>, ObjectKey)> {
        let (name, namespace) = (object.name, &object.scope.namespace);
        if name.len() > ObjectRef::MAX_NAME_BYTES || namespace.len() > ObjectRef::MAX_NAME_BYTES {
            return Err(StoreError::new(
                Errno::ENAMETOOLONG,
                format!("{object}: names have at most {} bytes", ObjectRef::MAX_NAME_BYTES),
            ));
        }
        if name.is_empty() {
            return Err(StoreError::new(
                Errno::EINVAL,
                format!("{object}: an object needs a name"),
            ));
        }
        Ok((self.pool(object.scope.pool).await?, ObjectKey::of(object)))
    }

    /// Forgets pool `id` after its removal.
    pub(crate) fn forget_pool(&self, id: PoolId) {
        self.pools.lock().remove(&id);
    }

    /// Takes `snap` from all clones that serve it. Can be done again at any time.
    pub(crate) async fn trim(self: &Arc<Self>, pool: &Arc<Pool>, snap: SnapId) -> Result<()> {
        let mut before = Vec::new();
        loop {
            let of = pool.clone();
            let keys = self.blocking(move || of.objects_to_trim(snap)).await?;
            if keys.is_empty() {
                break;
            }
            if keys == before {
                return Err(StoreError::new(
                    Errno::EIO,
                    format!(
                        "{}: clones of snapshot {snap} do not go away",
                        pool.db.path().display()
                    ),
                ));
            }
            for key in &keys {
                let hold = pool.slots.exclusive(key.slot()).await?;
                let (of, key) = (pool.clone(), key.clone());
                self.blocking(move || {
                    let _hold = hold;
                    of.trim(&key, snap)
                })
                .await?;
            }
            before = keys;
        }
        let of = pool.clone();
        self.blocking(move || of.snap_trimmed(snap)).await
    }

    /// The table of watches.
    pub(crate) async fn watch_table(self: &Arc<Self>) -> Result<Arc<Registry>> {
        let client = self.clone();
        let open = || async move {
            let opener = client.clone();
            client
                .blocking(move || Registry::open(opener.root.run(), &opener.disk.boot_id()).map(Arc::new))
                .await
        };
        self.watch_table.get_or_try_init(open).await.cloned()
    }

    /// Starts to listen for notifies, if not done yet.
    pub(crate) fn listen(self: &Arc<Self>) -> Result<()> {
        let mut server = self.server.lock();
        if server.is_none() {
            let listener = self.sockets.listen(self.instance.gid).map_err(|error| {
                StoreError::io(
                    &error,
                    format!("listen for notifies in {}", self.root.run().display()),
                )
            })?;
            let client = Arc::downgrade(self);
            let check = Arc::new(move || {
                if let Some(client) = client.upgrade() {
                    tokio::spawn(async move { drop(client.begin().await) });
                }
            });
            *server = Some(tokio::spawn(server::serve(listener, self.watches.clone(), check)));
        }
        Ok(())
    }

    /// Ends in good order. Blocks.
    pub(crate) fn end(&self) -> Result<()> {
        if self.ended.swap(true, Ordering::SeqCst) {
            self.leave();
            return Ok(());
        }
        let mut outcome = Ok(());
        if let Some(table) = self.watch_table.get() {
            outcome = table.remove_client(self.instance.gid);
        }
        let pools: Vec<Arc<Pool>> = self.pools.lock().drain().map(|(_, pool)| pool).collect();
        for pool in pools {
            outcome = outcome.and(pool.unregister_creator());
        }
        self.leave();
        outcome
    }

    /// Lets go of everything that tells others of this client.
    pub(crate) fn leave(&self) {
        self.ended.store(true, Ordering::SeqCst);
        if let Some(server) = self.server.lock().take() {
            server.abort();
            self.sockets.remove(self.instance.gid);
        }
        self.watches.lose_all(None);
        self.pools.lock().clear();
        // Last: from now on this client counts as dead.
        self.life.lock().take();
    }

    /// As a kill would.
    pub(crate) fn abandon(&self) {
        self.ended.store(true, Ordering::SeqCst);
        if let Some(server) = self.server.lock().take() {
            server.abort();
        }
        self.watches.lose_all(None);
        self.pools.lock().clear();
        if let Some(life) = self.life.lock().take() {
            life.release();
        }
    }
}

/// Removes what dead clients left in a pool, and finishes trimming that was broken off.
async fn clean_up(client: Weak<Client>, pool: Weak<Pool>) {
    let (Some(client), Some(pool)) = (client.upgrade(), pool.upgrade()) else {
        return;
    };
    let Ok(under_way) = client.begin().await else {
        return;
    };
    let (of, cleaner) = (pool.clone(), client.clone());
    let cleaned = client.blocking(move || of.clean(cleaner.root.run())).await;
    let of = pool.clone();
    let trimmed = match client.blocking(move || of.snaps_to_trim()).await {
        Ok(snaps) => {
            let mut outcome = Ok(());
            for snap in snaps {
                outcome = outcome.and(client.trim(&pool, snap).await);
            }
            outcome
        }
        Err(error) => Err(error),
    };
    if let Err(error) = cleaned.and(trimmed) {
        tracing::warn!(%error, "what others left in pool {} is not all cleaned up", pool.id);
    }
    drop(under_way);
}

async fn close_idle(client: Weak<Client>) {
    loop {
        tokio::time::sleep(IDLE_INTERVAL).await;
        let Some(client) = client.upgrade() else { return };
        if client.ended.load(Ordering::SeqCst) {
            return;
        }
        let pools: Vec<Arc<Pool>> = client.pools.lock().values().cloned().collect();
        let closed = client.blocking(move || {
            for pool in pools {
                pool.files.close_idle();
            }
            Ok(())
        });
        if closed.await.is_err() {
            return;
        }
    }
}
