//! The contract, on the shared state.

use std::fmt::Display;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::join_all;
use parking_lot::MutexGuard;
use tokio::time::Instant;

use super::journal::{Change, Slot};
use super::object::{Effect, Object, Under};
use super::ops::{draft_write, run_read};
use super::watches::{End, Place, Sent};
use super::{MemoryStore, Pool, State};
use crate::class::CallContext;
use crate::error::{Errno, Result, StoreError};
use crate::op::{
    CopyRange, CopyReply, Durability, ReadOp, ReadReply, WriteOp, WriteReply, WriteStep, check_copy,
};
use crate::types::{ClientInstance, ObjectRef, PoolId, Scope, SnapContext, SnapId, SnapSet, Timestamp};
use crate::watch::{NotifyReply, WatchCookie, WatchHandler, WatchInfo};
use crate::{PoolInfo, PoolOptions, PoolUsage, Setting, Space, Store};

impl Place {
    fn of(object: ObjectRef<'_>) -> Self {
        Self {
            pool: object.scope.pool,
            namespace: object.scope.namespace.clone(),
            name: object.name.to_owned(),
        }
    }
}

impl State {
    fn forget_setting(&mut self, section: &str, name: &str) {
        self.settings
            .retain(|one| one.section != section || one.name != name);
    }
}

impl Pool {
    fn slot(&self, object: ObjectRef<'_>) -> Option<&Slot> {
        self.namespaces.get(&object.scope.namespace)?.get(object.name)
    }

    /// Runs `change` on the object's slot, made when it is missing and dropped when nothing is left in it.
    fn with_slot<T>(&mut self, object: ObjectRef<'_>, change: impl FnOnce(&mut Slot) -> T) -> T {
        let objects = self.namespaces.entry(object.scope.namespace.clone()).or_default();
        let slot = objects.entry(object.name.to_owned()).or_default();
        let result = change(slot);
        if slot.is_void() {
            objects.remove(object.name);
        }
        result
    }

    fn slots_mut(&mut self, scope: &Scope, prefix: &str) -> impl Iterator<Item = &mut Slot> {
        let objects = self.namespaces.get_mut(&scope.namespace).into_iter().flatten();
        objects
            .filter(move |(name, _)| name.starts_with(prefix))
            .map(|(_, slot)| slot)
    }

    fn drop_void(&mut self) {
        for objects in self.namespaces.values_mut() {
            objects.retain(|_, slot| !slot.is_void());
        }
    }
}

impl MemoryStore {
    fn gid(&self) -> u64 {
        self.client.instance.gid
    }

    /// The state, for a client that may still act.
    fn state(&self, what: impl Display) -> Result<MutexGuard<'_, State>> {
        let state = self.shared.state.lock();
        if *self.client.ended.borrow() {
            return Err(StoreError::new(
                Errno::ESHUTDOWN,
                format!("{what}: this client has ended"),
            ));
        }
        if state.blocklist.contains(&self.gid()) {
            return Err(StoreError::new(
                Errno::ESHUTDOWN,
                format!("{what}: this client is blocklisted"),
            ));
        }
        Ok(state)
    }

    fn call_context(&self) -> CallContext {
        CallContext {
            client: self.client.instance,
            now: Timestamp::now(),
        }
    }
}

fn failed(errno: Errno, what: impl Display) -> StoreError {
    StoreError::new(errno, what.to_string())
}

fn check_name(object: ObjectRef<'_>, what: &impl Display) -> Result<()> {
    if object.name.len() > ObjectRef::MAX_NAME_BYTES {
        return Err(failed(Errno::ENAMETOOLONG, what));
    }
    Ok(())
}

fn head_exists(state: &mut State, object: ObjectRef<'_>) -> Result<(), Errno> {
    let slot = state.pool(object.scope.pool)?.slot(object);
    match slot.and_then(|slot| slot.object().head()) {
        Some(_) => Ok(()),
        None => Err(Errno::ENOENT),
    }
}

#[async_trait]
impl Store for MemoryStore {
    fn instance(&self) -> ClientInstance {
        self.client.instance
    }

    fn engine(&self) -> &'static str {
        "memory"
    }

    async fn pool_create(&self, name: &str, options: PoolOptions) -> Result<PoolId> {
        let what = format!("create pool '{name}'");
        let mut state = self.state(&what)?;
        if name.is_empty() || name.contains(['/', '@']) {
            return Err(failed(Errno::EINVAL, what));
        }
        if options.dir.is_some() {
            return Err(failed(
                Errno::EOPNOTSUPP,
                format!("{what}: pools in memory have no directory"),
            ));
        }
        if state.pools.values().any(|pool| pool.name == name) {
            return Err(failed(Errno::EEXIST, what));
        }
        state.last_pool += 1;
        let id = PoolId(state.last_pool);
        let pool = Pool {
            name: name.to_owned(),
            last_snap: 0,
            removed_snaps: Default::default(),
            namespaces: Default::default(),
        };
        state.pools.insert(id, pool);
        Ok(id)
    }

    async fn pool_remove(&self, name: &str) -> Result<()> {
        let what = format!("remove pool '{name}'");
        let mut state = self.state(&what)?;
        let found = state
            .pools
            .iter()
            .find(|(_, pool)| pool.name == name)
            .map(|(id, _)| *id);
        let id = found.ok_or_else(|| failed(Errno::ENOENT, what))?;
        state.pools.remove(&id);
        state
            .watches
            .end(End::Lost(Errno::ENOENT), |place, _| place.pool == id);
        Ok(())
    }

    async fn pool_list(&self) -> Result<Vec<PoolInfo>> {
        let state = self.state("list pools")?;
        let pools = state.pools.iter().map(|(id, pool)| PoolInfo {
            id: *id,
            name: pool.name.clone(),
            dir: None,
        });
        let mut pools: Vec<_> = pools.collect();
        pools.sort_by(|left, right| left.name.cmp(&right.name));
        Ok(pools)
    }

    async fn settings(&self) -> Result<Vec<Setting>> {
        Ok(self.state("list settings")?.settings.clone())
    }

    async fn setting_set(&self, setting: &Setting) -> Result<()> {
        setting.check()?;
        let mut state = self.state("keep a setting")?;
        state.forget_setting(&setting.section, &setting.name);
        state.settings.push(setting.clone());
        Ok(())
    }

    async fn setting_remove(&self, section: &str, name: &str) -> Result<()> {
        self.state("give a setting up")?.forget_setting(section, name);
        Ok(())
    }

    async fn setting(&self, name: &str) -> Result<Option<String>> {
        let state = self.state("look at a setting")?;
        Ok(Setting::effective(&state.settings, Setting::ADMIN, name).map(str::to_owned))
    }

    async fn pool_usage(&self, pool: PoolId) -> Result<PoolUsage> {
        let what = format!("usage of pool {pool}");
        let mut state = self.state(&what)?;
        let pool = state.pool(pool).map_err(|errno| failed(errno, &what))?;
        let mut usage = PoolUsage::default();
        for slot in pool.namespaces.values().flat_map(|objects| objects.values()) {
            usage.objects += u64::from(slot.object().head().is_some());
            usage.used_bytes += slot.object().allocated_bytes();
        }
        Ok(usage)
    }

    async fn space(&self, pool: PoolId) -> Result<Option<Space>> {
        let what = format!("space of pool {pool}");
        let mut state = self.state(&what)?;
        state.pool(pool).map_err(|errno| failed(errno, &what))?;
        Ok(state.space())
    }

    async fn list_objects(
        &self,
        scope: &Scope,
        prefix: &str,
        start_after: &str,
        max: usize,
    ) -> Result<Vec<String>> {
        let what = format!("list objects of pool {}", scope.pool);
        let mut state = self.state(&what)?;
        let pool = state.pool(scope.pool).map_err(|errno| failed(errno, &what))?;
        let Some(objects) = pool.namespaces.get(&scope.namespace) else {
            return Ok(Vec::new());
        };
        let from = if start_after >= prefix && !start_after.is_empty() {
            Bound::Excluded(start_after)
        } else {
            Bound::Included(prefix)
        };
        Ok(objects
            .range::<str, _>((from, Bound::Unbounded))
            .take_while(|(name, _)| name.starts_with(prefix))
            .filter(|(_, slot)| !slot.object().is_gone())
            .take(max)
            .map(|(name, _)| name.clone())
            .collect())
    }

    async fn read(&self, object: ObjectRef<'_>, snap: SnapId, op: ReadOp) -> Result<ReadReply> {
        let what = format!("read of {object} at {snap}");
        let mut state = self.state(&what)?;
        let pool = state
            .pool(object.scope.pool)
            .map_err(|errno| failed(errno, &what))?;
        let missing = Object::default();
        let target = pool.slot(object).map_or(&missing, Slot::object);
        run_read(target, &self.shared.classes, &self.call_context(), snap, &op)
            .map_err(|(step, errno)| StoreError { errno, what, step })
    }

    async fn write(&self, object: ObjectRef<'_>, snapc: &SnapContext, op: WriteOp) -> Result<WriteReply> {
        let what = format!("write to {object}");
        let mut guard = self.state(&what)?;
        check_name(object, &what)?;
        let state = &mut *guard;
        let brought_bytes = op.steps.iter().map(WriteStep::data_bytes).sum();
        state
            .room_for(brought_bytes)
            .map_err(|errno| failed(errno, &what))?;
        let durable = op.durability != Durability::Buffered;
        let context = self.call_context();
        let version = state.last_version + 1;
        let pool = state
            .pool(object.scope.pool)
            .map_err(|errno| failed(errno, &what))?;
        let missing = Object::default();
        let target = pool.slot(object).map_or(&missing, Slot::object);
        let was_there = target.head().is_some();
        let old_version = target.head().map_or(0, |head| head.version);
        let effects = draft_write(target, &self.shared.classes, &context, op)
            .map_err(|(step, errno)| StoreError { errno, what, step })?;
        if effects.is_empty() {
            return Ok(WriteReply { version: old_version });
        }
        let removed = std::mem::take(&mut pool.removed_snaps);
        let under = Under {
            snapc,
            removed: &removed,
            version,
            now: context.now,
        };
        let is_there = pool.with_slot(object, |slot| {
            slot.change(self.gid(), durable, &under, Change::Effects(effects));
            slot.object().head().is_some()
        });
        pool.removed_snaps = removed;
        state.last_version = version;
        if was_there && !is_there {
            let place = Place::of(object);
            state
                .watches
                .end(End::Lost(Errno::ENOENT), |other, _| *other == place);
        }
        Ok(WriteReply { version })
    }

    async fn copy_into(
        &self,
        target: ObjectRef<'_>,
        snapc: &SnapContext,
        op: WriteOp,
        ranges: &[CopyRange<'_>],
    ) -> Result<CopyReply> {
        let what = format!("copy into {target}");
        let mut guard = self.state(&what)?;
        check_name(target, &what)?;
        let blame = |(errno, step)| StoreError {
            errno,
            what: what.clone(),
            step,
        };
        check_copy(&op, ranges).map_err(blame)?;
        let state = &mut *guard;
        let (copied, data_bytes) = copied_effects(state, ranges, &what)?;
        state.room_for(data_bytes).map_err(|errno| failed(errno, &what))?;
        let durable = op.durability != Durability::Buffered;
        let context = self.call_context();
        let version = state.last_version + 1;
        let pool = state
            .pool(target.scope.pool)
            .map_err(|errno| failed(errno, &what))?;
        let missing = Object::default();
        let object = pool.slot(target).map_or(&missing, Slot::object);
        let effects = draft_write(object, &self.shared.classes, &context, op)
            .map_err(|(step, errno)| blame((errno, step)))?;
        if !effects.is_empty() {
            return Err(failed(
                Errno::EINVAL,
                format!("{what}: a step changes the object"),
            ));
        }
        if object.head().is_some() {
            return Err(failed(Errno::EEXIST, &what));
        }
        let removed = std::mem::take(&mut pool.removed_snaps);
        let under = Under {
            snapc,
            removed: &removed,
            version,
            now: context.now,
        };
        pool.with_slot(target, |slot| {
            slot.change(self.gid(), durable, &under, Change::Effects(copied));
        });
        pool.removed_snaps = removed;
        state.last_version = version;
        Ok(CopyReply { version, data_bytes })
    }

    async fn list_snaps(&self, object: ObjectRef<'_>, _asked: &[SnapId]) -> Result<SnapSet> {
        let what = format!("list snapshots of {object}");
        let mut state = self.state(&what)?;
        let pool = state
            .pool(object.scope.pool)
            .map_err(|errno| failed(errno, &what))?;
        match pool.slot(object).map(Slot::object) {
            Some(target) if !target.is_gone() => Ok(target.snapset()),
            _ => Err(failed(Errno::ENOENT, what)),
        }
    }

    async fn rollback(
        &self,
        object: ObjectRef<'_>,
        snapc: &SnapContext,
        snap: SnapId,
        durability: Durability,
    ) -> Result<()> {
        let what = format!("roll {object} back to {snap}");
        let mut guard = self.state(&what)?;
        let state = &mut *guard;
        let version = state.last_version + 1;
        let pool = state
            .pool(object.scope.pool)
            .map_err(|errno| failed(errno, &what))?;
        let changes = pool
            .slot(object)
            .is_some_and(|slot| slot.object().rollback_changes(snap));
        if !changes {
            return Ok(());
        }
        let removed = std::mem::take(&mut pool.removed_snaps);
        let under = Under {
            snapc,
            removed: &removed,
            version,
            now: Timestamp::now(),
        };
        let is_there = pool.with_slot(object, |slot| {
            let durable = durability != Durability::Buffered;
            slot.change(self.gid(), durable, &under, Change::Rollback(snap));
            slot.object().head().is_some()
        });
        pool.removed_snaps = removed;
        state.last_version = version;
        if !is_there {
            let place = Place::of(object);
            state
                .watches
                .end(End::Lost(Errno::ENOENT), |other, _| *other == place);
        }
        Ok(())
    }

    async fn snap_id_create(&self, pool: PoolId) -> Result<SnapId> {
        let what = format!("create a snapshot id in pool {pool}");
        let mut state = self.state(&what)?;
        let pool = state.pool(pool).map_err(|errno| failed(errno, &what))?;
        pool.last_snap += 1;
        Ok(SnapId(pool.last_snap))
    }

    async fn snap_id_remove(&self, pool: PoolId, snap: SnapId) -> Result<()> {
        let what = format!("remove snapshot id {snap} of pool {pool}");
        let mut state = self.state(&what)?;
        let pool = state.pool(pool).map_err(|errno| failed(errno, &what))?;
        if !pool.removed_snaps.insert(snap) {
            return Ok(());
        }
        let (empty, none) = (SnapContext::empty(), Default::default());
        let under = Under {
            snapc: &empty,
            removed: &none,
            version: 0,
            now: Timestamp::default(),
        };
        let slots = pool
            .namespaces
            .values_mut()
            .flat_map(|objects| objects.values_mut());
        for slot in slots.filter(|slot| slot.object().serves(snap)) {
            slot.change(self.gid(), true, &under, Change::Trim(snap));
        }
        pool.drop_void();
        Ok(())
    }

    async fn watch(&self, object: ObjectRef<'_>, handler: Arc<dyn WatchHandler>) -> Result<WatchCookie> {
        let what = format!("watch {object}");
        let mut state = self.state(&what)?;
        head_exists(&mut state, object).map_err(|errno| failed(errno, &what))?;
        let (cookie, task) = state
            .watches
            .add(Place::of(object), self.client.instance, handler);
        self.client.tasks.lock().insert(cookie, task);
        Ok(cookie)
    }

    async fn unwatch(&self, cookie: WatchCookie) -> Result<()> {
        let what = format!("end watch {}", cookie.0);
        let (ended, task) = {
            let mut state = self.state(&what)?;
            let ended = state.watches.end(End::Unwatched, |_, info| {
                info.cookie == cookie && info.gid == self.gid()
            });
            (ended, self.client.tasks.lock().remove(&cookie))
        };
        let task = task.ok_or_else(|| failed(Errno::ENOENT, &what))?;
        if ended == 0 {
            // It was lost before: its handler is being told, or is the one that asks.
            return Ok(());
        }
        task.await
            .map_err(|error| failed(Errno::EIO, format!("{what}: its handler failed: {error}")))
    }

    async fn notify(&self, object: ObjectRef<'_>, payload: Bytes, timeout_ms: u64) -> Result<NotifyReply> {
        let what = format!("notify watchers of {object}");
        let sent = {
            let mut state = self.state(&what)?;
            head_exists(&mut state, object).map_err(|errno| failed(errno, &what))?;
            state.watches.send(&Place::of(object), self.gid(), &payload)
        };
        let deadline = Instant::now() + Duration::from_millis(timeout_ms);
        let answers = join_all(sent.into_iter().map(|sent| answer_of(sent, deadline)));
        let mut ended = self.client.ended.subscribe();
        let answers = tokio::select! {
            biased;
            answers = answers => answers,
            _ = ended.wait_for(|ended| *ended) => Vec::new(),
        };
        drop(self.state(&what)?);
        let mut reply = NotifyReply::default();
        for answer in answers {
            match answer {
                Answer::Ack(gid, cookie, payload) => reply.acks.push((gid, cookie, payload)),
                Answer::Late(gid, cookie) => reply.timeouts.push((gid, cookie)),
                Answer::Gone => {}
            }
        }
        Ok(reply)
    }

    async fn list_watchers(&self, object: ObjectRef<'_>) -> Result<Vec<WatchInfo>> {
        let what = format!("list watchers of {object}");
        let mut state = self.state(&what)?;
        head_exists(&mut state, object).map_err(|errno| failed(errno, &what))?;
        Ok(state.watches.of(&Place::of(object)))
    }

    async fn blocklist_add(&self, client: &ClientInstance) -> Result<()> {
        let mut state = self.state(format!("blocklist {client}"))?;
        state.blocklist.insert(client.gid);
        state
            .watches
            .end(End::Lost(Errno::ESHUTDOWN), |_, info| info.gid == client.gid);
        Ok(())
    }

    async fn flush(&self, scope: &Scope, prefix: &str) -> Result<()> {
        self.sync(scope, prefix, Some(self.gid()))
    }

    async fn sync_all(&self, scope: &Scope, prefix: &str) -> Result<()> {
        self.sync(scope, prefix, None)
    }

    async fn shutdown(&self) -> Result<()> {
        let tasks: Vec<_> = {
            let mut state = self.state("shut down")?;
            state
                .watches
                .end(End::Unwatched, |_, info| info.gid == self.gid());
            self.client.ended.send_replace(true);
            std::mem::take(&mut *self.client.tasks.lock())
                .into_iter()
                .collect()
        };
        for (_, task) in tasks {
            // A handler that panicked has nothing more to say.
            let _ = task.await;
        }
        Ok(())
    }
}

impl MemoryStore {
    fn sync(&self, scope: &Scope, prefix: &str, owner_gid: Option<u64>) -> Result<()> {
        let what = format!("flush pool {}, objects '{prefix}*'", scope.pool);
        let mut state = self.state(&what)?;
        let pool = state.pool(scope.pool).map_err(|errno| failed(errno, &what))?;
        for slot in pool.slots_mut(scope, prefix) {
            slot.sync(owner_gid);
        }
        pool.drop_void();
        Ok(())
    }
}

/// What makes an object with the bytes of `ranges`, and how many bytes of data these are.
fn copied_effects(state: &mut State, ranges: &[CopyRange<'_>], what: &str) -> Result<(Vec<Effect>, u64)> {
    let mut effects = vec![Effect::Create];
    let (mut size_bytes, mut data_bytes) = (0, 0);
    for range in ranges {
        let place = |errno| failed(errno, format!("{what}: read {} at {}", range.object, range.snap));
        let slot = state
            .pool(range.object.scope.pool)
            .map_err(place)?
            .slot(range.object);
        let content = slot.and_then(|slot| slot.object().at(range.snap));
        let data = &content.ok_or_else(|| place(Errno::ENOENT))?.data;
        for (at, bytes) in data.sparse_read(range.offset, range.length_bytes) {
            data_bytes += bytes.len() as u64;
            effects.push(Effect::Write(range.target_offset + (at - range.offset), bytes));
        }
        let given = range
            .length_bytes
            .min(data.size_bytes().saturating_sub(range.offset));
        if given > 0 {
            size_bytes = range.target_offset + given;
        }
    }
    if size_bytes > super::MAX_OBJECT_BYTES {
        return Err(failed(Errno::EFBIG, what));
    }
    effects.push(Effect::Truncate(size_bytes));
    Ok((effects, data_bytes))
}

enum Answer {
    Ack(u64, WatchCookie, Bytes),
    Late(u64, WatchCookie),
    Gone,
}

async fn answer_of(sent: Sent, deadline: Instant) -> Answer {
    let Some(answer) = sent.answer else {
        return Answer::Late(sent.gid, sent.cookie);
    };
    match tokio::time::timeout_at(deadline, answer).await {
        Ok(Ok(payload)) => Answer::Ack(sent.gid, sent.cookie, payload),
        Ok(Err(_)) => Answer::Gone,
        Err(_) => Answer::Late(sent.gid, sent.cookie),
    }
}
