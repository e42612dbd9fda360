//! The memory engine keeps the store contract.

// All of this file is test; the lint spares only functions that carry the attribute.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use async_trait::async_trait;
use ferry_store::Store;
use ferry_store::class::ClassRegistry;
use ferry_store::conformance::{self, Harness};
use ferry_store::memory::MemoryCluster;

struct MemoryHarness(MemoryCluster);

impl MemoryHarness {
    fn new() -> Self {
        let mut classes = ClassRegistry::new();
        conformance::register_test_class(&mut classes);
        Self(MemoryCluster::new(classes))
    }
}

#[async_trait]
impl Harness for MemoryHarness {
    async fn client(&self) -> Arc<dyn Store> {
        self.0.connect()
    }

    async fn kill(&self, client: Arc<dyn Store>) -> bool {
        self.0.kill(&client.instance());
        true
    }

    async fn power_loss(&self, seed: u64) -> bool {
        self.0.power_loss(seed);
        true
    }
}

ferry_store::conformance_tests! { MemoryHarness::new() }

#[tokio::test]
async fn long_random_histories_agree_with_the_reference() {
    let seed = ferry_reference::drawn();
    if let Err(failure) = conformance::model::run(Arc::new(MemoryHarness::new()), seed, 1000).await {
        panic!("{failure}");
    }
}

mod engine {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use bytes::Bytes;
    use ferry_store::memory::{MAX_OBJECT_BYTES, MemoryStore};
    use ferry_store::watch::Notification;
    use ferry_store::{
        Errno, IoCtx, PoolOptions, ReadOp, Scope, SnapContext, SnapId, WatchHandler, WriteOp, WriteStep,
    };

    use super::*;

    async fn place(store: &Arc<MemoryStore>) -> IoCtx {
        let pool = match store.pool_list().await.unwrap().first() {
            Some(pool) => pool.id,
            None => store.pool_create("pool", PoolOptions::default()).await.unwrap(),
        };
        IoCtx::new(store.clone(), Scope::new(pool))
    }

    async fn read(io: &IoCtx, name: &str) -> Bytes {
        io.read(name, SnapId::HEAD, ReadOp::new().read(0, 1 << 20))
            .await
            .unwrap()
            .data(0)
    }

    /// Old bytes `o`, unsynced new bytes `n`, in an object of eight sectors; what a power loss leaves.
    async fn left_by(seed: u64) -> Bytes {
        let cluster = MemoryHarness::new().0;
        let io = place(&cluster.connect()).await;
        io.write_meta("o", WriteOp::new().write(0, vec![b'o'; 4096]))
            .await
            .unwrap();
        io.write_meta("o", WriteOp::buffered().write(0, vec![b'n'; 4096]))
            .await
            .unwrap();
        cluster.power_loss(seed);
        read(&place(&cluster.connect()).await, "o").await
    }

    #[tokio::test]
    async fn power_loss_keeps_all_some_or_none_of_unsynced_sectors() {
        let mut seen = BTreeSet::new();
        for seed in 0..64 {
            let data = left_by(seed).await;
            assert_eq!(data, left_by(seed).await, "seed {seed} must leave the same twice");
            seen.insert(data);
        }
        let uniform = |byte: u8| seen.iter().any(|data| data.iter().all(|found| *found == byte));
        assert!(uniform(b'o'), "no seed lost the whole write");
        assert!(uniform(b'n'), "no seed kept the whole write");
        assert!(seen.len() > 8, "only {} different outcomes", seen.len());
    }

    #[tokio::test]
    async fn a_flush_settles_only_what_this_client_wrote() {
        let mut others_were_lost = false;
        for seed in 0..32 {
            let cluster = MemoryHarness::new().0;
            let (mine, other) = (cluster.connect(), cluster.connect());
            let (io, others) = (place(&mine).await, place(&other).await);
            io.write_meta("o", WriteOp::buffered().write(0, "mine"))
                .await
                .unwrap();
            others
                .write_meta("o", WriteOp::buffered().write(512, "others"))
                .await
                .unwrap();
            mine.flush(io.scope(), "").await.unwrap();
            cluster.power_loss(seed);
            let data = read(&place(&cluster.connect()).await, "o").await;
            assert_eq!(data[..4], b"mine"[..], "seed {seed}");
            others_were_lost |= data.len() == 4;
        }
        assert!(others_were_lost);
    }

    #[tokio::test]
    async fn power_loss_ends_every_client() {
        let cluster = MemoryHarness::new().0;
        let store = cluster.connect();
        let io = place(&store).await;
        io.write_meta("o", WriteOp::new().create(true)).await.unwrap();
        cluster.power_loss(1);
        assert_eq!(io.exists("o").await.unwrap_err().errno, Errno::ESHUTDOWN);
        assert!(place(&cluster.connect()).await.exists("o").await.unwrap());
    }

    struct Stuck(tokio::sync::mpsc::UnboundedSender<&'static str>);

    #[async_trait]
    impl WatchHandler for Stuck {
        async fn notified(&self, _: Notification) -> Bytes {
            let _ = self.0.send("notified");
            std::future::pending().await
        }
        async fn lost(&self, errno: Errno) {
            let _ = self.0.send(if errno == Errno::ENOENT {
                "lost: gone"
            } else {
                "lost"
            });
        }
    }

    #[tokio::test]
    async fn a_killed_notifier_returns_at_once() {
        let cluster = MemoryHarness::new().0;
        let (watcher, notifier) = (cluster.connect(), cluster.connect());
        let io = place(&watcher).await;
        io.write_meta("o", WriteOp::new().create(true)).await.unwrap();
        let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
        watcher
            .watch(io.object("o"), Arc::new(Stuck(tell)))
            .await
            .unwrap();
        let task = {
            let io = place(&notifier).await;
            tokio::spawn(async move {
                io.store()
                    .notify(io.object("o"), Bytes::new(), u64::from(u32::MAX))
                    .await
            })
        };
        assert_eq!(told.recv().await, Some("notified"));
        notifier.kill();
        let ended = tokio::time::timeout(Duration::from_secs(60), task)
            .await
            .unwrap()
            .unwrap();
        assert_eq!(ended.unwrap_err().errno, Errno::ESHUTDOWN);
    }

    #[tokio::test]
    async fn a_dropped_client_watches_nothing() {
        let cluster = MemoryHarness::new().0;
        let (leaving, staying) = (cluster.connect(), cluster.connect());
        let io = place(&staying).await;
        io.write_meta("o", WriteOp::new().create(true)).await.unwrap();
        let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
        leaving
            .watch(io.object("o"), Arc::new(Stuck(tell)))
            .await
            .unwrap();
        drop(leaving);
        assert!(staying.list_watchers(io.object("o")).await.unwrap().is_empty());
        assert_eq!(told.recv().await, None, "a vanished watch makes no call");
    }

    #[tokio::test]
    async fn watchers_hear_that_their_object_is_gone() {
        let cluster = MemoryHarness::new().0;
        let store = cluster.connect();
        let io = place(&store).await;
        io.write_meta("o", WriteOp::new().create(true)).await.unwrap();
        let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
        let cookie = store.watch(io.object("o"), Arc::new(Stuck(tell))).await.unwrap();
        io.write_meta("o", WriteOp::new().remove()).await.unwrap();
        assert_eq!(told.recv().await, Some("lost: gone"));
        store.unwatch(cookie).await.unwrap();
    }

    #[tokio::test]
    async fn objects_and_names_have_limits() {
        let cluster = MemoryHarness::new().0;
        let io = place(&cluster.connect()).await;
        let empty = SnapContext::empty();
        let errno = async |name: &str, op: WriteOp| io.write(name, &empty, op).await.unwrap_err().errno;
        assert_eq!(
            errno("o", WriteOp::new().write(MAX_OBJECT_BYTES, "x")).await,
            Errno::EFBIG
        );
        assert_eq!(
            errno("o", WriteOp::new().create(true).truncate(MAX_OBJECT_BYTES + 1)).await,
            Errno::EFBIG
        );
        assert_eq!(
            errno(&"n".repeat(1025), WriteOp::new().create(true)).await,
            Errno::ENAMETOOLONG
        );
        let last = WriteStep::Write {
            offset: MAX_OBJECT_BYTES - 1,
            data: "x".into(),
        };
        io.write("o", &empty, WriteOp::new().step(last)).await.unwrap();
        let usage = io.store().pool_usage(io.pool()).await.unwrap();
        assert!(
            usage.used_bytes < 1 << 20,
            "a hole of 128 MiB uses {} bytes",
            usage.used_bytes
        );
        let options = PoolOptions {
            dir: Some("/anywhere".into()),
        };
        let error = io.store().pool_create("other", options).await.unwrap_err();
        assert_eq!(error.errno, Errno::EOPNOTSUPP);
    }
}
