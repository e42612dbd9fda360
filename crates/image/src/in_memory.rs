//! What unit tests of this crate stand on: a pool in memory, and an image of 1 MiB in it.

use std::sync::Arc;

use ferry_store::memory::MemoryCluster;
use ferry_store::{IoCtx, PoolOptions, Scope, Store};

use crate::admin::create;
use crate::image::{Image, ImageKey, OpenOptions};

pub(crate) async fn pool() -> IoCtx {
    let store: Arc<dyn Store> = MemoryCluster::new(ferry_cls::registry()).connect();
    let pool = store.pool_create("rbd", PoolOptions::default()).await.unwrap();
    IoCtx::new(store, Scope::new(pool))
}

pub(crate) async fn create_small(io: &IoCtx, name: &str) {
    let options = create::CreateOptions {
        size_bytes: 1 << 20,
        ..create::CreateOptions::default()
    };
    create::create(io, name, &options).await.unwrap();
}

/// A small image in a pool of its own, open for writing.
pub(crate) async fn open_small() -> Image {
    let io = pool().await;
    create_small(&io, "disk").await;
    Image::open(&io, ImageKey::Name("disk"), OpenOptions::read_write())
        .await
        .unwrap()
}
