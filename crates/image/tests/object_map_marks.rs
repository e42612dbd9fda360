//! How the object map is told of objects that are about to be written: before they are, and of many at once.

#![allow(clippy::unwrap_used)] // a test that cannot go on says so by panicking

mod support;

use std::sync::Arc;

use ferry_cls::rbd::ObjectState;
use ferry_image::admin::create::{self, CreateOptions};
use ferry_image::migration::execute::execute;
use ferry_image::migration::prepare::{PrepareOptions, prepare};
use ferry_image::object_map::{rebuild, snap};
use ferry_image::{Image, ImageKey, OpenOptions, Progress};
use ferry_store::wrappers::{Fault, FaultyStore, OpKind, Record, RecordingStore};
use ferry_store::{Errno, IoCtx, Scope, SnapId};
use support::{Engine, pool};

const OBJECT_BYTES: u64 = 4 << 20;
const OBJECTS: u64 = 64;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn first_writes_that_come_together_are_marked_together_and_before_they_are_made() {
    for stride in [1, 3] {
        let engine = Engine::local();
        let store = RecordingStore::new(engine.connect().await, 100_000);
        let id = pool(&engine.connect().await, "rbd").await.pool();
        let io = IoCtx::new(store.clone(), Scope::new(id));
        let options = CreateOptions {
            size_bytes: OBJECTS * OBJECT_BYTES,
            ..CreateOptions::default()
        };
        create::create(&io, "image", &options).await.unwrap();
        let image = Image::open(&io, ImageKey::Name("image"), OpenOptions::read_write())
            .await
            .unwrap();
        let write = |object: u64, fill: u8| image.write(object * OBJECT_BYTES, vec![fill; 4096].into());
        for object in 0..OBJECTS {
            write(object, 1).await.unwrap();
        }
        image.snap_create("snap", &Progress::silent()).await.unwrap();
        store.hook().clear();
        let written: Vec<u64> = (0..OBJECTS).filter(|object| object % stride == 0).collect();
        let all = futures::future::join_all(written.iter().map(|object| write(*object, 2))).await;
        assert!(all.into_iter().all(|done| done.is_ok()));
        let records: Vec<Record> = store
            .hook()
            .records()
            .into_iter()
            .filter(|record| record.kind == OpKind::Write)
            .collect();
        let (marks, data): (Vec<&Record>, Vec<&Record>) = records
            .iter()
            .partition(|record| record.name.starts_with("rbd_object_map"));
        assert_eq!(data.len(), written.len(), "{records:#?}");
        assert!(
            data.iter().all(|write| write.begun > marks[0].begun),
            "{records:#?}"
        );
        // One of the first, one of all that came meanwhile.
        assert!(marks.len() <= 3, "stride {stride}: {marks:#?}");
        let map = snap::load(&image, SnapId::HEAD).await.unwrap().unwrap();
        for object in 0..OBJECTS {
            let expected = match object % stride {
                0 => ObjectState::Exists,
                _ => ObjectState::ExistsClean,
            };
            assert_eq!(
                map.get(object),
                Some(expected.byte()),
                "object {object}, stride {stride}"
            );
        }
        image.close().await.unwrap();
    }
}

/// A store that can fail, with an image of four objects.
async fn faulty() -> (Arc<FaultyStore>, IoCtx) {
    let engine = Engine::memory();
    let store = FaultyStore::new(engine.connect().await);
    let io = IoCtx::new(
        store.clone(),
        pool(&engine.connect().await, "rbd").await.scope().clone(),
    );
    let options = CreateOptions {
        size_bytes: 4 * OBJECT_BYTES,
        ..CreateOptions::default()
    };
    create::create(&io, "image", &options).await.unwrap();
    (store, io)
}

async fn open(io: &IoCtx, name: &str) -> Image {
    Image::open(io, ImageKey::Name(name), OpenOptions::read_write())
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshots_map_that_execute_could_not_read_did_not_hear_of_the_copies_and_was_believed() {
    let (store, io) = faulty().await;
    let silent = Progress::silent();
    let image = open(&io, "image").await;
    image.write(0, vec![1; 4096].into()).await.unwrap();
    image.snap_create("snap", &silent).await.unwrap();
    image.write(0, vec![2; 4096].into()).await.unwrap();
    image.close().await.unwrap();
    let options = PrepareOptions::default();
    prepare(&io, "image", &io, "target", &options).await.unwrap();
    let target = open(&io, "target").await;
    let snap = target.header().snap_by_name("snap").unwrap().id;
    let map = format!("rbd_object_map.{}.{:016x}", target.id(), snap.0);
    target.close().await.unwrap();
    store
        .hook()
        .add(Fault::new(OpKind::Read, Errno::EIO).on(&map).times(1));
    execute(&io, "target", &silent).await.unwrap();
    let target = open(&io, "target").await;
    assert!(
        !target.header().object_map_valid(snap),
        "it knows nothing of the copy"
    );
    rebuild::rebuild(&target, &silent).await.unwrap();
    assert!(rebuild::verify(&target, &silent).await.unwrap().is_empty());
    target.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_map_that_cannot_be_read_when_its_snapshot_goes_leaves_the_next_one_declared_invalid() {
    let (store, io) = faulty().await;
    let image = open(&io, "image").await;
    let silent = Progress::silent();
    image.snap_create("old", &silent).await.unwrap();
    image.write(0, vec![1; 4096].into()).await.unwrap();
    image.snap_create("going", &silent).await.unwrap();
    image.snap_create("next", &silent).await.unwrap();
    let snap = |name: &str| image.header().snap_by_name(name).map(|snap| snap.id);
    let (going, next) = (snap("going").unwrap(), snap("next").unwrap());
    let map = format!("rbd_object_map.{}.{:016x}", image.id(), going.0);
    store
        .hook()
        .add(Fault::new(OpKind::Read, Errno::EIO).on(&map).times(u64::MAX));
    image.snap_remove("going", &silent).await.unwrap();
    image.refresh().await.unwrap();
    // Only the map that is gone knew that the object had changed since "old".
    assert!(snap("going").is_none());
    assert!(!image.header().object_map_valid(next));
    assert!(image.header().object_map_valid(SnapId::HEAD));
    image.close().await.unwrap();
}
