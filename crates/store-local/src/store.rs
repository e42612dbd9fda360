//! [`Store`] for [`LocalStore`]: which hold and which thread each operation needs.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use ferry_store::{
    CheckOptions, ClientInstance, CopyRange, CopyReply, Durability, Errno, Finding, NotifyReply, ObjectRef,
    PoolId, PoolInfo, PoolOptions, PoolUsage, ReadNow, ReadOp, ReadReply, Result, Scope, Setting,
    SnapContext, SnapId, SnapSet, Space, Store, StoreError, WatchCookie, WatchHandler, WatchInfo, WriteOp,
    WriteReply,
};

use crate::LocalStore;
use crate::client::{Client, UnderWay};
use crate::pool::Pool;
use crate::pool::key::ObjectKey;
use crate::root::Root;
use crate::watch::frame::{PAYLOAD_BYTES_MAX, Request};
use crate::watch::registry::Target;
use crate::watch::{self};

/// Most names in one listing.
const LISTING_MAX: usize = 100_000;

/// Runs an operation that reads: under the shared hold, and again under the exclusive one if something had to be put
/// right first (after a kill or a power loss).
async fn reading<T: Send + 'static>(
    client: &Arc<Client>,
    under_way: UnderWay,
    pool: Arc<Pool>,
    key: ObjectKey,
    work: impl Fn(&Pool, &ObjectKey, bool) -> Result<Option<T>> + Send + Sync + 'static,
) -> Result<T> {
    let under_way = Arc::new(under_way);
    let work = Arc::new(work);
    let hold = pool.slots.shared(key.slot()).await?;
    let first = {
        let (pool, key, work, under_way) = (pool.clone(), key.clone(), work.clone(), under_way.clone());
        client
            .blocking(move || {
                let _held = (hold, under_way);
                work(&pool, &key, false)
            })
            .await?
    };
    if let Some(answer) = first {
        return Ok(answer);
    }
    let hold = pool.slots.exclusive(key.slot()).await?;
    let name = key.to_string();
    let second = client
        .blocking(move || {
            let _held = (hold, under_way);
            work(&pool, &key, true)
        })
        .await?;
    second.ok_or_else(|| StoreError::new(Errno::EIO, format!("{name}: could not be put right")))
}

impl LocalStore {
    async fn changing<T: Send + 'static>(
        &self,
        object: ObjectRef<'_>,
        work: impl FnOnce(&Pool, &ObjectKey) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let under_way = self.client.begin().await?;
        let (pool, key) = self.client.locate(object).await?;
        let hold = pool.slots.exclusive(key.slot()).await?;
        self.client
            .blocking(move || {
                let _held = (hold, under_way);
                work(&pool, &key)
            })
            .await
    }

    async fn on_root<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Root) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let under_way = self.client.begin().await?;
        let client = self.client.clone();
        self.client
            .blocking(move || {
                let _held = under_way;
                work(&client.root)
            })
            .await
    }

    async fn on_pool<T: Send + 'static>(
        &self,
        pool: PoolId,
        work: impl FnOnce(&Pool) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let under_way = self.client.begin().await?;
        let pool = self.client.pool(pool).await?;
        self.client
            .blocking(move || {
                let _held = under_way;
                work(&pool)
            })
            .await
    }

    async fn must_exist(&self, object: ObjectRef<'_>, action: &'static str) -> Result<Target> {
        let under_way = self.client.begin().await?;
        let (pool, key) = self.client.locate(object).await?;
        let exists = reading(&self.client, under_way, pool, key, |pool, key, exclusive| {
            let loaded = pool.load(key, exclusive)?;
            Ok(loaded.map(|object| object.is_some_and(|object| object.head.is_some())))
        });
        if !exists.await? {
            return Err(StoreError::new(Errno::ENOENT, format!("{action} {object}")));
        }
        Ok(Target {
            pool: object.scope.pool.0,
            namespace: object.scope.namespace.to_string(),
            name: object.name.to_owned(),
        })
    }

    async fn watchers(&self, target: &Target) -> Result<Vec<WatchInfo>> {
        let table = self.client.watch_table().await?;
        let target = target.clone();
        self.client.blocking(move || table.list(&target)).await
    }
}

#[async_trait]
impl Store for LocalStore {
    fn instance(&self) -> ClientInstance {
        self.client.instance
    }

    fn engine(&self) -> &'static str {
        "local"
    }

    async fn pool_create(&self, name: &str, options: PoolOptions) -> Result<PoolId> {
        let under_way = self.client.begin().await?;
        let (client, name) = (self.client.clone(), name.to_owned());
        self.client
            .blocking(move || {
                let _held = under_way;
                client.root.make_pool(&name, &options, &*client.disk)
            })
            .await
    }

    async fn pool_remove(&self, name: &str) -> Result<()> {
        let under_way = self.client.begin().await?;
        let (client, name) = (self.client.clone(), name.to_owned());
        self.client
            .blocking(move || {
                let _held = under_way;
                let id = client.root.remove_pool(&name, &*client.disk)?;
                client.forget_pool(id);
                Ok(())
            })
            .await
    }

    async fn pool_list(&self) -> Result<Vec<PoolInfo>> {
        self.on_root(Root::pools).await
    }

    async fn settings(&self) -> Result<Vec<Setting>> {
        self.on_root(Root::settings).await
    }

    async fn setting_set(&self, setting: &Setting) -> Result<()> {
        let setting = setting.clone();
        self.on_root(move |root| root.set_setting(&setting)).await
    }

    async fn setting_remove(&self, section: &str, name: &str) -> Result<()> {
        let (section, name) = (section.to_owned(), name.to_owned());
        self.on_root(move |root| root.remove_setting(&section, &name))
            .await
    }

    async fn setting(&self, name: &str) -> Result<Option<String>> {
        let settings = self.settings().await?;
        Ok(Setting::effective(&settings, Setting::ADMIN, name).map(str::to_owned))
    }

    async fn check(&self, pool: Option<PoolId>, options: CheckOptions) -> Result<Option<Vec<Finding>>> {
        crate::check::check(&self.client, pool, options).await.map(Some)
    }

    async fn pool_usage(&self, pool: PoolId) -> Result<PoolUsage> {
        self.on_pool(pool, Pool::usage).await
    }

    async fn space(&self, pool: PoolId) -> Result<Option<Space>> {
        self.on_pool(pool, |pool| pool.space().map(Some)).await
    }

    async fn list_objects(
        &self,
        scope: &Scope,
        prefix: &str,
        start_after: &str,
        max: usize,
    ) -> Result<Vec<String>> {
        let (namespace, prefix, after) = (scope.namespace.clone(), prefix.to_owned(), start_after.to_owned());
        // A shorter answer would be taken for the end, so a larger `max` is served in parts.
        self.on_pool(scope.pool, move |pool| {
            let mut names: Vec<String> = Vec::new();
            loop {
                let part = LISTING_MAX.min(max - names.len());
                let after = names.last().unwrap_or(&after);
                let more = pool.list_objects(&namespace, &prefix, after, part)?;
                let ended = more.len() < part;
                names.extend(more);
                if ended || names.len() >= max {
                    return Ok(names);
                }
            }
        })
        .await
    }

    async fn read(&self, object: ObjectRef<'_>, snap: SnapId, op: ReadOp) -> Result<ReadReply> {
        let under_way = self.client.begin().await?;
        let (pool, key) = self.client.locate(object).await?;
        let context = self.client.context();
        reading(&self.client, under_way, pool, key, move |pool, key, exclusive| {
            pool.read(key, snap, &op, &context, exclusive)
        })
        .await
    }

    async fn write(&self, object: ObjectRef<'_>, snapc: &SnapContext, op: WriteOp) -> Result<WriteReply> {
        let (snapc, context) = (snapc.clone(), self.client.context());
        self.changing(object, move |pool, key| pool.write(key, &snapc, &op, &context))
            .await
    }

    fn read_now(&self, object: ObjectRef<'_>, snap: SnapId, offset: u64, buffer: &mut [u8]) -> ReadNow {
        match self.client.begin_now(object.scope.pool) {
            Some((_under_way, pool)) => pool.read_now(object, snap, offset, buffer),
            None => ReadNow::WouldWait,
        }
    }

    fn write_now(&self, object: ObjectRef<'_>, snapc: &SnapContext, offset: u64, data: &[u8]) -> bool {
        match self.client.begin_now(object.scope.pool) {
            Some((_under_way, pool)) => pool.write_now(object, snapc, offset, data),
            None => false,
        }
    }

    fn snap_seq_now(&self, object: ObjectRef<'_>) -> Option<Option<u64>> {
        let (_under_way, pool) = self.client.begin_now(object.scope.pool)?;
        pool.snap_seq_now(object)
    }

    async fn copy_into(
        &self,
        target: ObjectRef<'_>,
        snapc: &SnapContext,
        op: WriteOp,
        ranges: &[CopyRange<'_>],
    ) -> Result<CopyReply> {
        crate::copy::copy_into(&self.client, target, snapc, op, ranges).await
    }

    async fn list_snaps(&self, object: ObjectRef<'_>, _asked: &[SnapId]) -> Result<SnapSet> {
        let under_way = self.client.begin().await?;
        let (pool, key) = self.client.locate(object).await?;
        reading(&self.client, under_way, pool, key, |pool, key, exclusive| {
            pool.list_snaps(key, exclusive)
        })
        .await
    }

    async fn rollback(
        &self,
        object: ObjectRef<'_>,
        snapc: &SnapContext,
        snap: SnapId,
        durability: Durability,
    ) -> Result<()> {
        let snapc = snapc.clone();
        self.changing(object, move |pool, key| {
            pool.rollback(key, &snapc, snap, durability)
        })
        .await
    }

    async fn snap_id_create(&self, pool: PoolId) -> Result<SnapId> {
        self.on_pool(pool, Pool::snap_id_create).await
    }

    async fn snap_id_remove(&self, pool: PoolId, snap: SnapId) -> Result<()> {
        if !self.on_pool(pool, move |pool| pool.snap_id_give_up(snap)).await? {
            return Ok(());
        }
        let _under_way = self.client.begin().await?;
        let pool = self.client.pool(pool).await?;
        self.client.trim(&pool, snap).await
    }

    async fn watch(&self, object: ObjectRef<'_>, handler: Arc<dyn WatchHandler>) -> Result<WatchCookie> {
        let target = self.must_exist(object, "watch").await?;
        let under_way = self.client.begin().await?;
        let table = self.client.watch_table().await?;
        self.client.listen()?;
        let cookie = self.client.watches.add(target.clone(), handler);
        let instance = self.client.instance;
        let added = self.client.blocking(move || {
            let _held = under_way;
            table.add(&target, &instance, cookie)
        });
        match added.await {
            Ok(()) => Ok(cookie),
            Err(error) => {
                self.client.watches.remove(cookie).await;
                Err(error)
            }
        }
    }

    async fn unwatch(&self, cookie: WatchCookie) -> Result<()> {
        let unknown = || StoreError::new(Errno::ENOENT, format!("there is no watch {}", cookie.0));
        if !self.client.watches.has(cookie) {
            // Also says so when this client may not act any more.
            self.client.begin().await?;
            return Err(unknown());
        }
        let table = self.client.watch_table().await?;
        let gid = self.client.instance.gid;
        let removed = self.client.blocking(move || table.remove(gid, cookie)).await;
        match self.client.watches.remove(cookie).await {
            true => removed,
            false => Err(unknown()),
        }
    }

    async fn notify(&self, object: ObjectRef<'_>, payload: Bytes, timeout_ms: u64) -> Result<NotifyReply> {
        if payload.len() > PAYLOAD_BYTES_MAX {
            return Err(StoreError::new(
                Errno::EINVAL,
                format!("notify {object}: more than {PAYLOAD_BYTES_MAX} bytes"),
            ));
        }
        let target = self.must_exist(object, "notify").await?;
        let mut clients: Vec<(u64, Vec<WatchCookie>)> = Vec::new();
        for watcher in self.watchers(&target).await? {
            match clients.iter_mut().find(|(gid, _)| *gid == watcher.gid) {
                Some((_, cookies)) => cookies.push(watcher.cookie),
                None => clients.push((watcher.gid, vec![watcher.cookie])),
            }
        }
        let gid = self.client.instance.gid;
        let request = Request {
            notify_id: self.client.watches.next_notify_id(gid),
            notifier_gid: gid,
            target,
            payload,
        };
        let (watches, sockets) = (self.client.watches.clone(), self.client.sockets.clone());
        watch::notify_all(watches, gid, sockets, request, clients, timeout_ms).await
    }

    async fn list_watchers(&self, object: ObjectRef<'_>) -> Result<Vec<WatchInfo>> {
        let target = self.must_exist(object, "list watchers of").await?;
        self.watchers(&target).await
    }

    async fn blocklist_add(&self, client: &ClientInstance) -> Result<()> {
        drop(self.client.begin().await?);
        let (by, fenced) = (self.client.clone(), *client);
        let outcome = self.client.blocking(move || by.root.fence(&fenced)).await;
        let (table, gid) = (self.client.watch_table().await?, client.gid);
        let forgotten = self.client.blocking(move || table.remove_client(gid)).await;
        self.client.sockets.hint(gid).await;
        outcome.and(forgotten)
    }

    async fn flush(&self, scope: &Scope, prefix: &str) -> Result<()> {
        let (namespace, prefix) = (scope.namespace.clone(), prefix.to_owned());
        self.on_pool(scope.pool, move |pool| pool.flush(&namespace, &prefix))
            .await
    }

    async fn sync_all(&self, scope: &Scope, prefix: &str) -> Result<()> {
        let (namespace, prefix) = (scope.namespace.clone(), prefix.to_owned());
        self.on_pool(scope.pool, move |pool| pool.sync_all(&namespace, &prefix))
            .await
    }

    async fn shutdown(&self) -> Result<()> {
        let client = self.client.clone();
        self.client.blocking(move || client.end()).await
    }
}
