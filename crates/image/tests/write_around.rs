//! Writes that are acknowledged before the store has them.

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
use ferry_store::wrappers::{Call, Fault, FaultyStore, Hook, OpKind, Wrapper};
use ferry_store::{Errno, IoCtx, Store, StoreError, WriteAround};
use futures::poll;
use support::{Engine, TestLayout, pool};
use tokio::sync::Semaphore;

const BLOCK: u64 = 4096;

/// Data are written only as far as the test lets them, and only if it lets them.
#[derive(Debug)]
struct Held {
    permits: Semaphore,
    /// Writes that fail, once they are let go.
    failures: AtomicUsize,
}

#[async_trait]
impl Hook for Held {
    type Token = ();

    async fn before(&self, call: &Call<'_>) -> Result<(), StoreError> {
        if call.kind == OpKind::Write && call.name.starts_with("rbd_data") {
            self.permits.acquire().await.unwrap().forget();
            let one_less = |failures: usize| failures.checked_sub(1);
            if self.failures.fetch_update(SeqCst, SeqCst, one_less).is_ok() {
                return Err(StoreError::new(Errno::ENOSPC, "refused by the test"));
            }
        }
        Ok(())
    }

    async fn after(&self, _: &Call<'_>, (): (), _: Result<String, &StoreError>) -> Result<(), StoreError> {
        Ok(())
    }
}

type HeldStore = Wrapper<Held>;

const AROUND: WriteAround = WriteAround {
    max_bytes: 64 << 10,
    until_flush: false,
};

fn around(around: WriteAround) -> OpenOptions {
    OpenOptions::read_write().writing_around(Some(around))
}

async fn open(io: &IoCtx, options: OpenOptions) -> Image {
    Image::open(io, ImageKey::Name("img"), options).await.unwrap()
}

fn block(byte: u8) -> Bytes {
    vec![byte; BLOCK as usize].into()
}

/// An image of 1 MiB; its pool through a store of the engine, and through the wrapper of another.
async fn image_of<S: Store>(wrap: impl FnOnce(Arc<dyn Store>) -> Arc<S>) -> (IoCtx, IoCtx, Arc<S>) {
    let engine = Engine::memory();
    let plain = pool(&engine.connect().await, "rbd").await;
    create::create(&plain, "img", &TestLayout(16, 0, 0).create(1 << 20))
        .await
        .unwrap();
    let wrapped = wrap(engine.connect().await);
    let store: Arc<dyn Store> = wrapped.clone();
    (plain, pool(&store, "rbd").await, wrapped)
}

async fn held() -> (IoCtx, IoCtx, Arc<HeldStore>) {
    image_of(|store| {
        let held = Held {
            permits: Semaphore::new(0),
            failures: AtomicUsize::new(0),
        };
        HeldStore::with_hook(store, held)
    })
    .await
}

#[tokio::test]
async fn a_write_is_acknowledged_before_the_store_has_it_and_flushes_and_readers_wait_for_it() {
    let (plain, io, store) = held().await;
    let image = open(&io, around(AROUND)).await;
    image.write(0, block(1)).await.unwrap();
    let other = open(&plain, OpenOptions::read_only()).await;
    assert_eq!(other.read(0, BLOCK).await.unwrap(), block(0));
    assert_eq!(image.read(BLOCK, BLOCK).await.unwrap(), block(0));
    {
        let mut reading = Box::pin(image.read(BLOCK - 1, 2));
        let mut flushing = Box::pin(image.flush());
        let mut durable = Box::pin(image.flush_range(0, 1));
        assert!(poll!(&mut reading).is_pending());
        assert!(poll!(&mut flushing).is_pending());
        assert!(poll!(&mut durable).is_pending());
        let mut buffer = [0; 8];
        assert_eq!(image.read_now(0, &mut buffer), ferry_store::ReadNow::WouldWait);
        store.hook().permits.add_permits(1);
        assert_eq!(&reading.await.unwrap()[..], [1, 0]);
        flushing.await.unwrap();
        durable.await.unwrap();
    }
    assert_eq!(other.read(0, BLOCK).await.unwrap(), block(1));
    image.close().await.unwrap();
}

#[tokio::test]
async fn a_write_waits_for_one_of_the_same_range_and_comes_after_it() {
    let (plain, io, store) = held().await;
    let image = open(&io, around(AROUND)).await;
    image.write(0, block(1)).await.unwrap();
    {
        let mut second = Box::pin(image.write(1, block(2)));
        assert!(poll!(&mut second).is_pending());
        store.hook().permits.add_permits(2);
        second.await.unwrap();
    }
    image.flush().await.unwrap();
    let other = open(&plain, OpenOptions::read_only()).await;
    assert_eq!(&other.read(0, 2).await.unwrap()[..], [1, 2]);
    image.close().await.unwrap();
}

#[tokio::test]
async fn a_snapshot_has_what_was_acknowledged_before_it_and_nothing_after() {
    let (plain, io, store) = held().await;
    let image = open(&io, around(AROUND)).await;
    image.write(0, block(1)).await.unwrap();
    {
        let progress = Progress::silent();
        let mut taking = Box::pin(image.snap_create("s", &progress));
        assert!(poll!(&mut taking).is_pending());
        store.hook().permits.add_permits(100);
        taking.await.unwrap();
    }
    image.write(0, block(2)).await.unwrap();
    image.close().await.unwrap();
    let at = OpenOptions::read_only().at(SnapKey::Name("s".to_owned()));
    assert_eq!(open(&plain, at).await.read(0, BLOCK).await.unwrap(), block(1));
    let head = open(&plain, OpenOptions::read_only()).await;
    assert_eq!(head.read(0, BLOCK).await.unwrap(), block(2));
}

#[tokio::test]
async fn what_is_on_its_way_is_bounded_and_nothing_is_before_the_first_flush_if_so_configured() {
    let (_, io, store) = held().await;
    let bounded = WriteAround {
        max_bytes: 2 * BLOCK,
        until_flush: true,
    };
    let image = open(&io, around(bounded)).await;
    {
        let mut first = Box::pin(image.write(0, block(1)));
        assert!(poll!(&mut first).is_pending());
        store.hook().permits.add_permits(1);
        first.await.unwrap();
    }
    image.flush().await.unwrap();
    image.write(0, block(2)).await.unwrap();
    image.write(BLOCK, block(2)).await.unwrap();
    {
        let mut third = Box::pin(image.write(2 * BLOCK, block(2)));
        assert!(poll!(&mut third).is_pending());
        store.hook().permits.add_permits(3);
        third.await.unwrap();
    }
    image.close().await.unwrap();
}

#[tokio::test]
async fn an_image_whose_settings_or_pool_forbid_it_acknowledges_nothing_early() {
    let (plain, io, store) = held().await;
    for (key, value) in [
        ("conf_rbd_cache", "false"),
        ("conf_rbd_cache_policy", "writethrough"),
        ("conf_rbd_cache_max_dirty", "0"),
    ] {
        let image = open(&plain, OpenOptions::read_write()).await;
        metadata::set(&image, key, value.into()).await.unwrap();
        image.close().await.unwrap();
        let image = open(&io, around(AROUND)).await;
        {
            let mut writing = Box::pin(image.write(0, block(1)));
            assert!(poll!(&mut writing).is_pending(), "{key}");
            store.hook().permits.add_permits(1);
            writing.await.unwrap();
        }
        metadata::remove(&image, key).await.unwrap();
        image.close().await.unwrap();
        // The same of its pool, which the image overrules.
        let pool = plain.with_namespace("");
        let set = BTreeMap::from([(key.to_owned(), value.into())]);
        ferry_cls::exec_write(&pool, "rbd_info", client::metadata_set(&set))
            .await
            .unwrap();
        let image = open(&io, around(AROUND)).await;
        {
            let mut writing = Box::pin(image.write(0, block(1)));
            assert!(poll!(&mut writing).is_pending(), "{key} of the pool");
            store.hook().permits.add_permits(1);
            writing.await.unwrap();
        }
        let allowed = match key {
            "conf_rbd_cache" => "true",
            "conf_rbd_cache_policy" => "writeback",
            _ => "32M",
        };
        metadata::set(&image, key, allowed.into()).await.unwrap();
        image.close().await.unwrap();
        let image = open(&io, around(AROUND)).await;
        image.write(0, block(2)).await.unwrap();
        store.hook().permits.add_permits(1);
        image.flush().await.unwrap();
        metadata::remove(&image, key).await.unwrap();
        image.close().await.unwrap();
        ferry_cls::exec_write(&pool, "rbd_info", client::metadata_remove(key))
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn a_failed_write_is_tried_again_by_each_flush_and_none_succeeds_before_it_does() {
    let (plain, io, store) = image_of(FaultyStore::new).await;
    let image = open(&io, around(AROUND)).await;
    let full = Fault::new(OpKind::Write, Errno::ENOSPC);
    store.hook().add(full.on("rbd_data").times(3));
    image.write(0, block(1)).await.unwrap();
    assert_eq!(image.flush().await.unwrap_err().errno, Errno::ENOSPC);
    assert_eq!(image.read(0, BLOCK).await.unwrap_err().errno, Errno::ENOSPC);
    assert_eq!(image.read(BLOCK, BLOCK).await.unwrap(), block(0));
    image.flush().await.unwrap();
    assert_eq!(image.read(0, BLOCK).await.unwrap(), block(1));
    let other = open(&plain, OpenOptions::read_only()).await;
    assert_eq!(other.read(0, BLOCK).await.unwrap(), block(1));
    image.close().await.unwrap();
}

#[tokio::test]
async fn a_snapshot_is_refused_while_an_acknowledged_write_fails() {
    let (_, io, store) = image_of(FaultyStore::new).await;
    let image = open(&io, around(AROUND)).await;
    let full = Fault::new(OpKind::Write, Errno::ENOSPC);
    store.hook().add(full.on("rbd_data").times(1));
    image.write(0, block(1)).await.unwrap();
    let refused = image.snap_create("s", &Progress::silent()).await;
    assert_eq!(refused.unwrap_err().errno, Errno::ENOSPC);
    image.flush().await.unwrap();
    image.snap_create("t", &Progress::silent()).await.unwrap();
    image.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_the_lock_is_given_up_a_failed_write_is_never_made_and_the_handle_says_that_it_is_lost() {
    let (plain, io, store) = image_of(FaultyStore::new).await;
    let image = open(&io, around(AROUND)).await;
    let broken = Fault::new(OpKind::Write, Errno::EIO);
    store.hook().add(broken.on("rbd_data").times(2));
    image.write(0, block(1)).await.unwrap();
    assert_eq!(image.flush().await.unwrap_err().errno, Errno::EIO);
    let other = open(&plain, OpenOptions::read_write()).await;
    other.write(0, block(2)).await.unwrap();
    other.close().await.unwrap();
    for _ in 0..2 {
        assert_eq!(image.flush().await.unwrap_err().errno, Errno::EIO);
        assert_eq!(image.write(0, block(3)).await.unwrap_err().errno, Errno::EIO);
    }
    let other = open(&plain, OpenOptions::read_only()).await;
    assert_eq!(other.read(0, BLOCK).await.unwrap(), block(2));
    assert_eq!(image.close().await.unwrap_err().errno, Errno::EIO);
}

/// Far more than anything here takes: what hangs fails.
const SOON: Duration = Duration::from_secs(60);

#[tokio::test]
async fn writes_of_one_object_go_together_while_another_is_on_its_way_there() {
    let (plain, io, store) = held().await;
    let image = open(&io, around(AROUND)).await;
    // Not in order, two next to each other, and one in another object.
    for (at, byte) in [(2, 1), (7, 2), (4, 3), (6, 4), (20, 5)] {
        image.write(at * BLOCK, block(byte)).await.unwrap();
    }
    // The first, all that came behind it, and that of the other object.
    store.hook().permits.add_permits(3);
    tokio::time::timeout(SOON, image.flush()).await.unwrap().unwrap();
    assert_eq!(store.hook().permits.available_permits(), 0);
    let other = open(&plain, OpenOptions::read_only()).await;
    for (at, byte) in [
        (1, 0),
        (2, 1),
        (3, 0),
        (4, 3),
        (5, 0),
        (6, 4),
        (7, 2),
        (8, 0),
        (20, 5),
    ] {
        assert_eq!(
            other.read(at * BLOCK, BLOCK).await.unwrap(),
            block(byte),
            "block {at}"
        );
    }
    image.close().await.unwrap();
}

#[tokio::test]
async fn what_went_together_and_failed_is_tried_again_each_for_itself() {
    let (plain, io, store) = held().await;
    let image = open(&io, around(AROUND)).await;
    for at in 0..4 {
        image.write(at * BLOCK, block(1)).await.unwrap();
    }
    store.hook().failures.store(3, SeqCst);
    store.hook().permits.add_permits(3);
    // The first write and what came behind it fail, and the first that is tried again.
    let flushed = tokio::time::timeout(SOON, image.flush()).await.unwrap();
    assert_eq!(flushed.unwrap_err().errno, Errno::ENOSPC);
    assert_eq!(store.hook().permits.available_permits(), 0);
    store.hook().permits.add_permits(4);
    tokio::time::timeout(SOON, image.flush()).await.unwrap().unwrap();
    let other = open(&plain, OpenOptions::read_only()).await;
    for at in 0..4 {
        assert_eq!(
            other.read(at * BLOCK, BLOCK).await.unwrap(),
            block(1),
            "block {at}"
        );
    }
    image.close().await.unwrap();
}

#[tokio::test]
async fn a_flush_does_not_pass_over_a_write_that_failed_because_a_later_one_is_on_its_way() {
    let (plain, io, store) = held().await;
    let image = open(&io, around(AROUND)).await;
    // Each in an object of its own; the first fails.
    let [failing, before, behind] = [0, 16, 32].map(|at| at * BLOCK);
    image.write(failing, block(1)).await.unwrap();
    store.hook().failures.store(1, SeqCst);
    store.hook().permits.add_permits(1);
    while store.hook().failures.load(SeqCst) > 0 {
        tokio::task::yield_now().await;
    }
    image.write(before, block(2)).await.unwrap();
    {
        let mut flushing = Box::pin(image.flush());
        assert!(poll!(&mut flushing).is_pending());
        image.write(behind, block(3)).await.unwrap();
        // What was there before the flush arrives; the flush has still to see to what failed.
        store.hook().permits.add_permits(1);
        for _ in 0..100 {
            tokio::task::yield_now().await;
            assert!(poll!(&mut flushing).is_pending());
        }
        store.hook().permits.add_permits(2);
        tokio::time::timeout(SOON, flushing).await.unwrap().unwrap();
    }
    let other = open(&plain, OpenOptions::read_only()).await;
    assert_eq!(other.read(failing, BLOCK).await.unwrap(), block(1));
    image.close().await.unwrap();
}

#[tokio::test]
async fn neither_a_shrink_nor_a_rollback_takes_anything_while_an_acknowledged_write_fails() {
    let (plain, io, store) = image_of(FaultyStore::new).await;
    let quiet = Progress::silent();
    let image = open(&io, around(AROUND)).await;
    image.snap_create("s", &quiet).await.unwrap();
    image.write(200 * BLOCK, block(7)).await.unwrap();
    image.flush().await.unwrap();
    let full = Fault::new(OpKind::Write, Errno::ENOSPC);
    for takes in ["shrink", "rollback"] {
        // It fails, and again when it is tried again.
        store.hook().add(full.clone().on("rbd_data").times(2));
        image.write(0, block(1)).await.unwrap();
        let refused = match takes {
            "shrink" => image.resize(100 * BLOCK, true, &quiet).await,
            _ => image.snap_rollback("s", &quiet).await,
        };
        assert_eq!(refused.unwrap_err().errno, Errno::ENOSPC, "{takes}");
        image.flush().await.unwrap();
        let other = open(&plain, OpenOptions::read_only()).await;
        assert_eq!(other.read(200 * BLOCK, BLOCK).await.unwrap(), block(7), "{takes}");
        assert_eq!(other.read(0, BLOCK).await.unwrap(), block(1), "{takes}");
    }
    image.close().await.unwrap();
}

#[tokio::test]
async fn a_write_that_finds_no_room_waits_for_some_and_is_acknowledged_early_then() {
    let (_, io, store) = held().await;
    let bounded = WriteAround {
        max_bytes: 2 * BLOCK,
        until_flush: false,
    };
    let image = open(&io, around(bounded)).await;
    image.write(0, block(1)).await.unwrap();
    image.write(20 * BLOCK, block(1)).await.unwrap();
    {
        let mut third = Box::pin(image.write(BLOCK, block(1)));
        assert!(poll!(&mut third).is_pending());
        store.hook().permits.add_permits(1);
        // Its own write is still held.
        tokio::time::timeout(SOON, third).await.unwrap().unwrap();
    }
    store.hook().permits.add_permits(2);
    image.close().await.unwrap();
}

#[tokio::test]
async fn where_failed_writes_have_all_the_room_a_write_waits_for_its_own_end() {
    let (_, io, store) = held().await;
    let bounded = WriteAround {
        max_bytes: BLOCK,
        until_flush: false,
    };
    let image = open(&io, around(bounded)).await;
    store.hook().failures.store(1, SeqCst);
    store.hook().permits.add_permits(2);
    image.write(0, block(1)).await.unwrap();
    tokio::time::timeout(SOON, image.write(20 * BLOCK, block(1)))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(store.hook().permits.available_permits(), 0);
    store.hook().permits.add_permits(1);
    image.flush().await.unwrap();
    image.close().await.unwrap();
}

#[tokio::test]
async fn closing_tries_a_failed_write_once_more() {
    let (plain, io, store) = image_of(FaultyStore::new).await;
    let image = open(&io, around(AROUND)).await;
    let full = Fault::new(OpKind::Write, Errno::ENOSPC);
    store.hook().add(full.on("rbd_data").times(1));
    image.write(0, block(1)).await.unwrap();
    image.close().await.unwrap();
    let other = open(&plain, OpenOptions::read_only()).await;
    assert_eq!(other.read(0, BLOCK).await.unwrap(), block(1));
}
