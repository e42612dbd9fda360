//! Engines to run image tests on, and the byte-exact reference that images are compared with.
#![allow(dead_code)] // each test binary uses its part

pub mod reference;

use std::sync::Arc;

use ferry_image::admin::create::CreateOptions;
use ferry_store::memory::MemoryCluster;
use ferry_store::{IoCtx, PoolOptions, Scope, Store};

/// A store that can be opened several times, as by several processes.
pub enum Engine {
    Memory(MemoryCluster),
    Local(tempfile::TempDir),
}

impl Engine {
    pub fn memory() -> Self {
        Self::Memory(MemoryCluster::new(ferry_cls::registry()))
    }

    pub fn local() -> Self {
        Self::Local(tempfile::tempdir().unwrap())
    }

    /// By name, for test matrices.
    pub fn named(name: &str) -> Self {
        match name {
            "memory" => Self::memory(),
            "local" => Self::local(),
            other => panic!("no engine '{other}'"),
        }
    }

    /// One more client.
    pub async fn connect(&self) -> Arc<dyn Store> {
        match self {
            Self::Memory(cluster) => cluster.connect(),
            Self::Local(dir) => open_local(dir.path()),
        }
    }
}

pub fn open_local(path: &std::path::Path) -> Arc<dyn Store> {
    let options = ferry_store_local::LocalOptions {
        registry: ferry_cls::registry(),
        disk: None,
    };
    ferry_store_local::LocalStore::open(path, options).unwrap()
}

/// Default namespace of the pool called `name`, which is created if it is missing.
pub async fn pool(store: &Arc<dyn Store>, name: &str) -> IoCtx {
    let pools = store.pool_list().await.unwrap();
    let id = match pools.iter().find(|pool| pool.name == name) {
        Some(pool) => pool.id,
        None => store.pool_create(name, PoolOptions::default()).await.unwrap(),
    };
    IoCtx::new(store.clone(), Scope::new(id))
}

/// A layout to test with: order, stripe unit, stripe count.
#[derive(Debug, Clone, Copy)]
pub struct TestLayout(pub u8, pub u64, pub u64);

impl TestLayout {
    pub fn create(self, size_bytes: u64) -> CreateOptions {
        CreateOptions {
            size_bytes,
            order: Some(self.0),
            stripe_unit_bytes: self.1,
            stripe_count: self.2,
            ..CreateOptions::default()
        }
    }
}
