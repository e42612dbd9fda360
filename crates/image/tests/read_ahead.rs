//! Reads that are made before a client asks.

#![allow(clippy::unwrap_used)] // a test that cannot go on says so by panicking

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use ferry_cls::rbd::client;
use ferry_image::admin::{create, metadata};
use ferry_image::{Image, ImageKey, OpenOptions, Progress, SnapKey};
use ferry_store::wrappers::{Call, Hook, OpKind, Wrapper};
use ferry_store::{Errno, IoCtx, Store, StoreError};
use futures::poll;
use support::{Engine, TestLayout, pool};
use tokio::sync::Semaphore;

const BLOCK: u64 = 4096;
const SIZE: u64 = 1 << 20;
/// Far more than anything here takes: what hangs fails.
const SOON: Duration = Duration::from_secs(60);

/// Counts reads of data, and makes them only as far as the test lets them.
#[derive(Debug)]
struct Held {
    permits: Semaphore,
    reads: AtomicUsize,
    failures: AtomicUsize,
}

#[async_trait]
impl Hook for Held {
    type Token = ();

    async fn before(&self, call: &Call<'_>) -> Result<(), StoreError> {
        if call.kind == OpKind::Read && call.name.starts_with("rbd_data") {
            self.permits.acquire().await.unwrap().forget();
        }
        Ok(())
    }

    /// Held after it was made: what it has found may have been changed meanwhile.
    async fn after(&self, call: &Call<'_>, (): (), _: Result<String, &StoreError>) -> Result<(), StoreError> {
        if call.kind == OpKind::Read && call.name.starts_with("rbd_data") {
            self.reads.fetch_add(1, SeqCst);
            let one_less = |failures: usize| failures.checked_sub(1);
            if self.failures.fetch_update(SeqCst, SeqCst, one_less).is_ok() {
                return Err(StoreError::new(Errno::EIO, "refused by the test"));
            }
            self.permits.acquire().await.unwrap().forget();
        }
        Ok(())
    }
}

type HeldStore = Wrapper<Held>;

impl Held {
    fn count(&self) -> usize {
        self.reads.swap(0, SeqCst)
    }
}

async fn open(io: &IoCtx, options: OpenOptions) -> Image {
    Image::open(io, ImageKey::Name("img"), options).await.unwrap()
}

fn ahead() -> OpenOptions {
    OpenOptions::read_write().reading_ahead(Some(true))
}

fn block(byte: u8) -> Bytes {
    vec![byte; BLOCK as usize].into()
}

/// An image of 1 MiB in objects of 64 KiB, full of ones; its pool through a store of the engine, and through the wrapper of
/// another.
async fn full_image() -> (IoCtx, IoCtx, Arc<HeldStore>) {
    let engine = Engine::memory();
    let plain = pool(&engine.connect().await, "rbd").await;
    create::create(&plain, "img", &TestLayout(16, 0, 0).create(SIZE))
        .await
        .unwrap();
    let image = open(&plain, OpenOptions::read_write()).await;
    image.write(0, vec![1; SIZE as usize].into()).await.unwrap();
    image.close().await.unwrap();
    let held = Held {
        permits: Semaphore::new(Semaphore::MAX_PERMITS / 2),
        reads: AtomicUsize::new(0),
        failures: AtomicUsize::new(0),
    };
    let wrapped = HeldStore::with_hook(engine.connect().await, held);
    let store: Arc<dyn Store> = wrapped.clone();
    (plain, pool(&store, "rbd").await, wrapped)
}

async fn read_on(image: &Image, blocks: std::ops::Range<u64>) {
    for at in blocks {
        assert_eq!(
            image.read(at * BLOCK, BLOCK).await.unwrap(),
            block(1),
            "block {at}"
        );
    }
}

#[tokio::test]
async fn a_client_that_reads_on_costs_few_reads_and_one_that_may_not_be_alone_costs_each() {
    let (_, io, store) = full_image().await;
    let image = open(&io, ahead()).await;
    read_on(&image, 0..256).await;
    assert_eq!(
        store.hook().count(),
        256,
        "others may write: the lock is not taken"
    );
    image.write(0, block(1)).await.unwrap();
    read_on(&image, 0..256).await;
    let reads = store.hook().count();
    // Sixteen objects, and the small steps at the beginning.
    assert!((16..64).contains(&reads), "{reads} reads");
    for at in [7, 100, 3, 200, 50, 150, 22, 90] {
        read_on(&image, at..at + 1).await;
    }
    image.close().await.unwrap();
}

#[tokio::test]
async fn a_snapshot_is_read_ahead_without_a_lock() {
    let (plain, io, store) = full_image().await;
    let image = open(&plain, OpenOptions::read_write()).await;
    image.snap_create("s", &Progress::silent()).await.unwrap();
    image.write(0, vec![2; SIZE as usize].into()).await.unwrap();
    image.close().await.unwrap();
    let at = OpenOptions::read_only()
        .at(SnapKey::Name("s".to_owned()))
        .reading_ahead(Some(true));
    let image = open(&io, at).await;
    read_on(&image, 0..256).await;
    assert!(store.hook().count() < 64);
    let head = open(&io, OpenOptions::read_only().reading_ahead(Some(true))).await;
    assert_eq!(head.read(0, BLOCK).await.unwrap(), block(2));
}

#[tokio::test]
async fn what_is_changed_after_it_was_read_ahead_is_seen() {
    let (plain, io, store) = full_image().await;
    let image = open(&io, ahead()).await;
    image.write(0, block(1)).await.unwrap();
    image.snap_create("s", &Progress::silent()).await.unwrap();
    read_on(&image, 0..20).await;
    assert!(store.hook().count() < 20, "some were read ahead");
    image.write(23 * BLOCK, block(2)).await.unwrap();
    read_on(&image, 22..23).await;
    assert_eq!(image.read(23 * BLOCK, BLOCK).await.unwrap(), block(2));
    read_on(&image, 24..40).await;
    image.discard(41 * BLOCK, BLOCK).await.unwrap();
    assert_eq!(image.read(41 * BLOCK, BLOCK).await.unwrap(), block(0));
    read_on(&image, 42..60).await;
    image.resize(64 * BLOCK, true, &Progress::silent()).await.unwrap();
    image.resize(SIZE, false, &Progress::silent()).await.unwrap();
    assert_eq!(image.read(65 * BLOCK, BLOCK).await.unwrap(), block(0));
    image.write(0, vec![3; SIZE as usize].into()).await.unwrap();
    for at in 0..20 {
        assert_eq!(image.read(at * BLOCK, BLOCK).await.unwrap(), block(3));
    }
    image.snap_rollback("s", &Progress::silent()).await.unwrap();
    read_on(&image, 20..30).await;
    // Another client takes the lock over.
    let other = open(&plain, OpenOptions::read_write()).await;
    other.write(0, vec![4; SIZE as usize].into()).await.unwrap();
    other.close().await.unwrap();
    assert_eq!(image.read(30 * BLOCK, BLOCK).await.unwrap(), block(4));
    image.close().await.unwrap();
}

#[tokio::test]
async fn what_is_changed_while_it_is_read_ahead_is_seen() {
    let (_, io, store) = full_image().await;
    let image = open(&io, ahead()).await;
    image.write(0, block(1)).await.unwrap();
    read_on(&image, 0..3).await;
    let permits = &store.hook().permits;
    permits.forget_permits(Semaphore::MAX_PERMITS);
    // The fourth begins to read ahead: that is made, and what it has found is held.
    permits.add_permits(1);
    {
        let mut fourth = Box::pin(image.read(3 * BLOCK, BLOCK));
        assert!(poll!(&mut fourth).is_pending());
        image.write(5 * BLOCK, block(2)).await.unwrap();
        permits.add_permits(100);
        let fourth = tokio::time::timeout(SOON, fourth).await.unwrap();
        assert_eq!(fourth.unwrap(), block(1));
    }
    assert_eq!(image.read(5 * BLOCK, BLOCK).await.unwrap(), block(2));
    permits.add_permits(1000);
    image.close().await.unwrap();
}

#[tokio::test]
async fn a_failure_of_reading_ahead_is_nobodys() {
    let (_, io, store) = full_image().await;
    let image = open(&io, ahead()).await;
    image.write(0, block(1)).await.unwrap();
    read_on(&image, 0..3).await;
    let permits = &store.hook().permits;
    // The fourth begins to read ahead; that fails, the fourth itself does not.
    store.hook().failures.store(1, SeqCst);
    read_on(&image, 3..20).await;
    assert_eq!(store.hook().failures.load(SeqCst), 0);
    assert!(permits.available_permits() > 0);
    image.close().await.unwrap();
}

#[tokio::test]
async fn an_image_whose_settings_or_pool_forbid_it_is_not_read_ahead() {
    let (_, io, store) = full_image().await;
    for (key, value) in [("conf_rbd_cache", "false"), ("conf_rbd_readahead_max_bytes", "0")] {
        let image = open(&io, OpenOptions::read_write()).await;
        metadata::set(&image, key, value.into()).await.unwrap();
        image.close().await.unwrap();
        let image = open(&io, ahead()).await;
        image.write(0, block(1)).await.unwrap();
        store.hook().count();
        read_on(&image, 0..64).await;
        assert_eq!(store.hook().count(), 64, "{key}");
        metadata::remove(&image, key).await.unwrap();
        image.close().await.unwrap();
        // The same of its pool.
        let pool = io.with_namespace("");
        let set = BTreeMap::from([(key.to_owned(), value.into())]);
        let of_pool = client::metadata_set(&set);
        ferry_cls::exec_write(&pool, "rbd_info", of_pool).await.unwrap();
        let image = open(&io, ahead()).await;
        image.write(0, block(1)).await.unwrap();
        store.hook().count();
        read_on(&image, 0..64).await;
        assert_eq!(store.hook().count(), 64, "{key} of the pool");
        image.close().await.unwrap();
        let nothing = client::metadata_remove(key);
        ferry_cls::exec_write(&pool, "rbd_info", nothing).await.unwrap();
    }
    let image = open(&io, ahead()).await;
    image.write(0, block(1)).await.unwrap();
    store.hook().count();
    read_on(&image, 0..64).await;
    assert!(store.hook().count() < 64, "nothing forbids it any more");
    image.close().await.unwrap();
}
