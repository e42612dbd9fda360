//! [`IoCtx`]: a store and a scope in one cheap handle, with the calls that callers make most.

use std::sync::Arc;

use bytes::Bytes;

use crate::error::Result;
use crate::op::{CopyRange, CopyReply, ReadOp, ReadReply, WriteOp, WriteReply};
use crate::types::{ObjectRef, PoolId, Scope, SnapContext, SnapId, SnapSet};
use crate::{ReadNow, Store};

/// A place in a store: what librados calls an I/O context, without its mutable snapshot state.
#[derive(Debug, Clone)]
pub struct IoCtx {
    store: Arc<dyn Store>,
    scope: Scope,
}

impl IoCtx {
    /// A handle on `scope`; whether the pool exists shows at the first operation.
    pub fn new(store: Arc<dyn Store>, scope: Scope) -> Self {
        Self { store, scope }
    }

    /// The store.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// Pool and namespace.
    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    /// The pool.
    pub fn pool(&self) -> PoolId {
        self.scope.pool
    }

    /// The same namespace in another pool.
    pub fn with_pool(&self, pool: PoolId) -> Self {
        Self {
            store: self.store.clone(),
            scope: Scope {
                pool,
                namespace: self.scope.namespace.clone(),
            },
        }
    }

    /// Another namespace of the same pool.
    pub fn with_namespace(&self, namespace: &str) -> Self {
        Self {
            store: self.store.clone(),
            scope: Scope {
                pool: self.scope.pool,
                namespace: namespace.into(),
            },
        }
    }

    /// Full place of an object.
    pub fn object<'a>(&'a self, name: &'a str) -> ObjectRef<'a> {
        ObjectRef::new(&self.scope, name)
    }

    /// [`Store::read`].
    pub async fn read(&self, name: &str, snap: SnapId, op: ReadOp) -> Result<ReadReply> {
        self.store.read(self.object(name), snap, op).await
    }

    /// [`Store::write`].
    pub async fn write(&self, name: &str, snapc: &SnapContext, op: WriteOp) -> Result<WriteReply> {
        self.store.write(self.object(name), snapc, op).await
    }

    /// [`Store::read_now`].
    pub fn read_now(&self, name: &str, snap: SnapId, offset: u64, buffer: &mut [u8]) -> ReadNow {
        self.store.read_now(self.object(name), snap, offset, buffer)
    }

    /// [`Store::write_now`].
    pub fn write_now(&self, name: &str, snapc: &SnapContext, offset: u64, data: &[u8]) -> bool {
        self.store.write_now(self.object(name), snapc, offset, data)
    }

    /// [`Store::snap_seq_now`].
    pub fn snap_seq_now(&self, name: &str) -> Option<Option<u64>> {
        self.store.snap_seq_now(self.object(name))
    }

    /// [`Store::copy_into`].
    pub async fn copy_into(
        &self,
        name: &str,
        snapc: &SnapContext,
        op: WriteOp,
        ranges: &[CopyRange<'_>],
    ) -> Result<CopyReply> {
        self.store.copy_into(self.object(name), snapc, op, ranges).await
    }

    /// A write of metadata: no snapshots, fully durable.
    pub async fn write_meta(&self, name: &str, op: WriteOp) -> Result<WriteReply> {
        self.store
            .write(self.object(name), &SnapContext::empty(), op)
            .await
    }

    /// One reading class method on the head.
    pub async fn call_read(
        &self,
        name: &str,
        class: &'static str,
        method: &'static str,
        input: Bytes,
    ) -> Result<Bytes> {
        let reply = self
            .read(name, SnapId::HEAD, ReadOp::new().call(class, method, input))
            .await?;
        Ok(Bytes::copy_from_slice(reply.output(0)))
    }

    /// One writing class method on the head, without snapshots, fully durable.
    pub async fn call_write(
        &self,
        name: &str,
        class: &'static str,
        method: &'static str,
        input: Bytes,
    ) -> Result<()> {
        self.write_meta(name, WriteOp::new().call(class, method, input))
            .await
            .map(|_| ())
    }

    /// [`Store::list_snaps`].
    pub async fn list_snaps(&self, name: &str, asked: &[SnapId]) -> Result<SnapSet> {
        self.store.list_snaps(self.object(name), asked).await
    }

    /// [`Store::snap_seq_reached`].
    pub async fn snap_seq_reached(&self, name: &str, seq: u64) -> Result<bool> {
        self.store.snap_seq_reached(self.object(name), seq).await
    }

    /// Whether the object's head exists.
    pub async fn exists(&self, name: &str) -> Result<bool> {
        match self.read(name, SnapId::HEAD, ReadOp::new().stat()).await {
            Ok(_) => Ok(true),
            Err(error) if error.errno == crate::Errno::ENOENT => Ok(false),
            Err(error) => Err(error),
        }
    }
}
