//! Wrappers keep the contract while nothing is programmed, and do what they are programmed to.

// All of this file is test; the lint spares only functions that carry the attribute.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use ferry_store::class::ClassRegistry;
use ferry_store::conformance::{self, Harness};
use ferry_store::memory::MemoryCluster;
use ferry_store::watch::Notification;
use ferry_store::wrappers::{
    Fault, FaultyStore, Moment, OpKind, Probing, ProbingStore, RecordingStore, SlowStore,
};
use ferry_store::{
    CopyRange, Durability, Errno, IoCtx, PoolOptions, ReadOp, Scope, SnapContext, SnapId, Store,
    WatchHandler, WriteOp,
};

fn cluster() -> MemoryCluster {
    let mut classes = ClassRegistry::new();
    conformance::register_test_class(&mut classes);
    MemoryCluster::new(classes)
}

/// All wrappers around one another, around the memory engine.
struct Stack(MemoryCluster);

#[async_trait]
impl Harness for Stack {
    async fn client(&self) -> Arc<dyn Store> {
        let slow = SlowStore::new(self.0.connect(), 1);
        for kind in [OpKind::Read, OpKind::Write, OpKind::Notify] {
            slow.hook().before(kind, 0..=50);
            slow.hook().after(kind, 0..=50);
        }
        RecordingStore::new(FaultyStore::new(slow), 100)
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

mod stacked {
    use super::*;
    ferry_store::conformance_tests! { Stack(cluster()) }
}

/// The memory engine as if it had no list of clones.
struct Blind(MemoryCluster);

#[async_trait]
impl Harness for Blind {
    async fn client(&self) -> Arc<dyn Store> {
        ProbingStore::with_hook(self.0.connect(), Probing)
    }

    fn probes(&self) -> bool {
        true
    }
}

mod probing {
    use super::*;
    ferry_store::conformance_tests! { Blind(cluster()) }
}

/// A faulty client and a healthy one in one new pool.
async fn pair() -> (Arc<FaultyStore>, IoCtx, IoCtx) {
    let cluster = cluster();
    let memory = cluster.connect();
    let faulty = {
        let memory = memory.clone();
        FaultyStore::with_death(memory.clone(), move || memory.kill())
    };
    let healthy = cluster.connect();
    let pool = healthy.pool_create("pool", PoolOptions::default()).await.unwrap();
    let scope = Scope::new(pool);
    (
        faulty.clone(),
        IoCtx::new(faulty, scope.clone()),
        IoCtx::new(healthy, scope),
    )
}

fn write(data: &'static str) -> WriteOp {
    WriteOp::new().write_full(data)
}

async fn content(io: &IoCtx, name: &str) -> Option<Bytes> {
    match io.read(name, SnapId::HEAD, ReadOp::new().read(0, 100)).await {
        Ok(reply) => Some(reply.data(0)),
        Err(error) if error.errno == Errno::ENOENT => None,
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test]
async fn the_chosen_write_fails_before_it_is_made() {
    let (faulty, io, healthy) = pair().await;
    faulty
        .hook()
        .add(Fault::new(OpKind::Write, Errno::ENOSPC).skipping(1).times(2));
    io.write_meta("o", write("1")).await.unwrap();
    for _ in 0..2 {
        assert_eq!(
            io.write_meta("o", write("2")).await.unwrap_err().errno,
            Errno::ENOSPC
        );
    }
    assert_eq!(content(&healthy, "o").await, Some("1".into()));
    io.write_meta("o", write("3")).await.unwrap();
    assert_eq!(content(&healthy, "o").await, Some("3".into()));
}

#[tokio::test]
async fn a_write_that_fails_after_it_was_made_has_its_effect() {
    let (faulty, io, healthy) = pair().await;
    faulty
        .hook()
        .add(Fault::new(OpKind::Write, Errno::ETIMEDOUT).after());
    assert_eq!(
        io.write_meta("o", write("made")).await.unwrap_err().errno,
        Errno::ETIMEDOUT
    );
    assert_eq!(content(&healthy, "o").await, Some("made".into()));
}

#[tokio::test]
async fn a_copy_is_a_mutating_operation_that_fails_dies_and_is_recorded() {
    let (faulty, io, healthy) = pair().await;
    io.write_meta("o", write("data")).await.unwrap();
    let recording = RecordingStore::new(faulty.clone(), 10);
    let io = IoCtx::new(recording.clone(), io.scope().clone());
    let range = CopyRange {
        object: io.object("o"),
        snap: SnapId::HEAD,
        offset: 0,
        length_bytes: 100,
        target_offset: 0,
    };
    let copy = |name| {
        let (op, none) = (WriteOp::buffered().alloc_hint(4096), SnapContext::empty());
        let io = io.clone();
        async move { io.copy_into(name, &none, op, &[range]).await }
    };
    faulty.hook().add(Fault::new(OpKind::CopyInto, Errno::ENOSPC));
    assert_eq!(copy("c").await.unwrap_err().errno, Errno::ENOSPC);
    assert_eq!(content(&healthy, "c").await, None);
    copy("c").await.unwrap();
    assert_eq!(content(&healthy, "c").await, Some("data".into()));
    let record = recording.hook().records().pop().unwrap();
    assert_eq!((record.kind, record.name.as_str()), (OpKind::CopyInto, "c"));
    assert!(record.arguments.contains("'o' at head 0~100 to 0"), "{record}");
    let before = faulty.hook().mutations();
    faulty.hook().kill_at(before + 1, Moment::Before);
    assert_eq!(copy("d").await.unwrap_err().errno, Errno::ESHUTDOWN);
    assert_eq!(content(&healthy, "d").await, None);
}

#[tokio::test]
async fn faults_can_be_bound_to_names_and_cleared() {
    let (faulty, io, healthy) = pair().await;
    faulty
        .hook()
        .add(Fault::new(OpKind::Write, Errno::EIO).on("header").times(u64::MAX));
    io.write_meta("data", write("x")).await.unwrap();
    for _ in 0..3 {
        assert_eq!(
            io.write_meta("header.1", write("x")).await.unwrap_err().errno,
            Errno::EIO
        );
    }
    faulty.hook().clear();
    io.write_meta("header.1", write("y")).await.unwrap();
    assert_eq!(content(&healthy, "header.1").await, Some("y".into()));
}

#[tokio::test]
async fn reads_and_notifies_fail_as_told() {
    let (faulty, io, _) = pair().await;
    io.write_meta("o", write("x")).await.unwrap();
    faulty.hook().add(Fault::new(OpKind::Read, Errno::EIO));
    faulty
        .hook()
        .add(Fault::new(OpKind::Notify, Errno::ETIMEDOUT).after());
    let error = io
        .read("o", SnapId::HEAD, ReadOp::new().stat())
        .await
        .unwrap_err();
    assert_eq!(error.errno, Errno::EIO);
    let error = io
        .store()
        .notify(io.object("o"), Bytes::new(), 1000)
        .await
        .unwrap_err();
    assert_eq!(error.errno, Errno::ETIMEDOUT);
    assert!(io.exists("o").await.unwrap());
    io.store()
        .notify(io.object("o"), Bytes::new(), 1000)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_failed_flush_refuses_buffered_writes_to_its_objects_for_good() {
    let (faulty, io, _) = pair().await;
    let empty = SnapContext::empty();
    io.write_meta("data.1", WriteOp::buffered().write(0, "x"))
        .await
        .unwrap();
    faulty.hook().add(Fault::new(OpKind::Flush, Errno::EIO));
    assert_eq!(
        io.store().flush(io.scope(), "data.").await.unwrap_err().errno,
        Errno::EIO
    );
    faulty.hook().clear();
    let refused = io
        .write_meta("data.2", WriteOp::buffered().write(0, "x"))
        .await
        .unwrap_err();
    assert_eq!(refused.errno, Errno::EIO);
    let refused = io
        .store()
        .rollback(io.object("data.1"), &empty, SnapId(1), Durability::Buffered)
        .await;
    assert_eq!(refused.unwrap_err().errno, Errno::EIO);
    for prefix in ["data.", "data.1", ""] {
        assert_eq!(
            io.store().flush(io.scope(), prefix).await.unwrap_err().errno,
            Errno::EIO,
            "flush of '{prefix}'"
        );
    }
    io.write_meta("data.1", write("full")).await.unwrap();
    io.write_meta("other", WriteOp::buffered().write(0, "x"))
        .await
        .unwrap();
    io.store().flush(io.scope(), "other").await.unwrap();
    let elsewhere = io.with_namespace("n");
    elsewhere
        .write_meta("data.1", WriteOp::buffered().write(0, "x"))
        .await
        .unwrap();
}

/// Five mutations and some that are none; every operation must come after the one before.
async fn scenario(io: &IoCtx) -> ferry_store::Result<()> {
    io.write_meta("a", write("1")).await?;
    io.exists("a").await?;
    let id = io.store().snap_id_create(io.pool()).await?;
    io.store().flush(io.scope(), "").await?;
    io.write_meta("b", WriteOp::buffered().write(0, "2")).await?;
    io.store()
        .rollback(io.object("a"), &SnapContext::empty(), id, Durability::Full)
        .await?;
    io.write_meta("c", write("3")).await?;
    Ok(())
}

#[tokio::test]
async fn every_kill_point_can_be_enumerated() {
    let (faulty, io, _) = pair().await;
    scenario(&io).await.unwrap();
    assert_eq!(faulty.hook().mutations(), 5);
    for nth in 1..=5 {
        for moment in [Moment::Before, Moment::After] {
            let (faulty, io, healthy) = pair().await;
            faulty.hook().kill_at(nth, moment);
            assert_eq!(scenario(&io).await.unwrap_err().errno, Errno::ESHUTDOWN);
            assert!(faulty.hook().is_dead());
            assert_eq!(io.exists("a").await.unwrap_err().errno, Errno::ESHUTDOWN);
            assert_eq!(
                io.write_meta("late", write("x")).await.unwrap_err().errno,
                Errno::ESHUTDOWN
            );
            let made = if moment == Moment::Before { nth - 1 } else { nth };
            let expected = [
                ("a", made >= 1),
                ("b", made >= 3),
                ("c", made >= 5),
                ("late", false),
            ];
            for (name, expected) in expected {
                let found = content(&healthy, name).await.is_some();
                assert_eq!(found, expected, "'{name}' after a death at {nth}, {moment:?}");
            }
        }
    }
}

struct Silent;

#[async_trait]
impl WatchHandler for Silent {
    async fn notified(&self, _: Notification) -> Bytes {
        Bytes::new()
    }
    async fn lost(&self, _: Errno) {}
}

#[tokio::test]
async fn watches_of_a_killed_client_go_away() {
    let (faulty, io, healthy) = pair().await;
    healthy.write_meta("o", write("x")).await.unwrap();
    io.store().watch(io.object("o"), Arc::new(Silent)).await.unwrap();
    faulty.hook().kill_at(1, Moment::After);
    io.write_meta("o", write("y")).await.unwrap_err();
    assert!(
        healthy
            .store()
            .list_watchers(healthy.object("o"))
            .await
            .unwrap()
            .is_empty()
    );
    assert_eq!(content(&healthy, "o").await, Some("y".into()));
}

#[tokio::test]
async fn without_a_better_way_a_dead_client_is_shut_down() {
    let cluster = cluster();
    let inner = cluster.connect();
    let faulty = FaultyStore::new(inner.clone());
    faulty.hook().kill_at(1, Moment::Before);
    faulty
        .pool_create("pool", PoolOptions::default())
        .await
        .unwrap_err();
    while inner.pool_list().await.is_ok() {
        tokio::task::yield_now().await;
    }
    assert!(cluster.connect().pool_list().await.unwrap().is_empty());
}

#[tokio::test]
async fn an_operation_under_way_at_the_death_is_not_answered() {
    let cluster = cluster();
    let slow = SlowStore::new(cluster.connect(), 7);
    let faulty = FaultyStore::new(slow.clone());
    let pool = faulty.pool_create("pool", PoolOptions::default()).await.unwrap();
    let io = IoCtx::new(faulty.clone(), Scope::new(pool));
    slow.hook().after(OpKind::Read, 20_000..=20_000);
    let reading = {
        let io = io.clone();
        tokio::spawn(async move {
            io.call_read("o", conformance::classes::CLASS, "echo", "x".into())
                .await
        })
    };
    tokio::task::yield_now().await;
    assert!(!reading.is_finished(), "the read must be under way");
    faulty.hook().kill_at(1, Moment::Before);
    io.write_meta("o", write("x")).await.unwrap_err();
    assert_eq!(reading.await.unwrap().unwrap_err().errno, Errno::ESHUTDOWN);
}

#[tokio::test(start_paused = true)]
async fn delays_come_before_and_after_as_set() {
    let slow = SlowStore::new(cluster().connect(), 3);
    let pool = slow.pool_create("pool", PoolOptions::default()).await.unwrap();
    let io = IoCtx::new(slow.clone(), Scope::new(pool));
    slow.hook().before(OpKind::Write, 5_000_000..=6_000_000);
    slow.hook().after(OpKind::Read, 1_000_000..=1_000_000);
    // Virtual time: it moves only when all tasks sleep.
    let start = tokio::time::Instant::now();
    io.write_meta("o", write("x")).await.unwrap();
    let written = start.elapsed();
    assert!(
        written >= Duration::from_secs(5) && written <= Duration::from_millis(6_100),
        "{written:?}"
    );
    io.exists("o").await.unwrap();
    assert!(start.elapsed() - written >= Duration::from_secs(1));
    slow.hook().clear();
    let start = tokio::time::Instant::now();
    io.write_meta("o", write("x")).await.unwrap();
    assert_eq!(start.elapsed(), Duration::ZERO);
}

#[tokio::test]
async fn a_recording_tells_what_was_asked_and_answered() {
    let recording = RecordingStore::new(cluster().connect(), 4);
    let pool = recording
        .pool_create("pool", PoolOptions::default())
        .await
        .unwrap();
    let io = IoCtx::new(recording.clone(), Scope::with_namespace(pool, "n"));
    let op = WriteOp::buffered().alloc_hint(4096).write(5, "data").call(
        conformance::classes::CLASS,
        "nothing",
        "",
    );
    io.write_meta("o", op).await.unwrap();
    io.read("o", SnapId::HEAD, ReadOp::new().stat().read(0, 100))
        .await
        .unwrap();
    io.write_meta("o", WriteOp::new().create(true)).await.unwrap_err();
    let told: Vec<_> = recording
        .hook()
        .records()
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        told[0],
        "PoolCreate 'pool' PoolOptions { dir: None } -> PoolId(1)"
    );
    assert_eq!(
        told[1],
        "Write 'o' Buffered under 0: alloc_hint 4096, write 5~4, call conf.nothing 0 -> WriteReply { version: 1 }"
    );
    assert_eq!(
        told[2],
        "Read 'o' at head: stat, read 0~100 -> version 1, size 9, 9 bytes"
    );
    assert_eq!(told[3], "Write 'o' Full under 0: create exclusively -> EEXIST");
    assert_eq!(recording.hook().records()[1].namespace, "n");
    io.exists("o").await.unwrap();
    assert_eq!(
        (recording.hook().records().len(), recording.hook().dropped()),
        (4, 1)
    );
    assert_eq!(
        (
            recording.hook().count(OpKind::Write),
            recording.hook().count(OpKind::Read)
        ),
        (2, 2)
    );
    recording.hook().clear();
    assert!(recording.hook().records().is_empty());
}
