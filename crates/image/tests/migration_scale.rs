//! Costs of a migration follow the data: an image of 16 TiB costs what one of 1 GiB with the same data costs.
//!
//! Counted in operations of the store, not in time.

#![allow(clippy::unwrap_used)] // a test that cannot go on says so by panicking

mod support;

use std::sync::Arc;

use ferry_cls::rbd::feature;
use ferry_image::admin::create::{self, CreateOptions};
use ferry_image::migration::commit::commit;
use ferry_image::migration::execute::execute;
use ferry_image::migration::prepare::{PrepareOptions, prepare};
use ferry_image::object_map::{rebuild, snap};
use ferry_image::{Image, ImageKey, OpenOptions, Progress};
use ferry_store::wrappers::{OpKind, RecordingStore};
use ferry_store::{IoCtx, Scope, SnapId};
use support::{Engine, pool};

const GIB: u64 = 1 << 30;
const SMALL: u64 = GIB;
const LARGE: u64 = 16 << 40;
/// Pieces of data in the image, whatever its size.
const PIECES: u64 = 40;

fn silent() -> Progress {
    Progress::silent()
}

async fn open(io: &IoCtx, name: &str) -> Image {
    Image::open(io, ImageKey::Name(name), OpenOptions::read_write())
        .await
        .unwrap()
}

/// Where the pieces lie: scattered over the image, the last in its last object.
fn pieces(size_bytes: u64) -> impl Iterator<Item = u64> {
    let step = size_bytes / PIECES;
    (1..=PIECES).map(move |n| (n * step - 8192) & !4095)
}

/// An image with pieces of data, half of them older than a snapshot if `snapshot` says so.
async fn source(io: &IoCtx, size_bytes: u64, features: u64, snapshot: bool) {
    let options = CreateOptions {
        size_bytes,
        features: Some(features),
        ..CreateOptions::default()
    };
    create::create(io, "src", &options).await.unwrap();
    let image = open(io, "src").await;
    for (n, offset) in pieces(size_bytes).enumerate() {
        if snapshot && n as u64 == PIECES / 2 {
            image.snap_create("s", &silent()).await.unwrap();
        }
        image.write(offset, vec![n as u8 + 1; 4096].into()).await.unwrap();
    }
    image.close().await.unwrap();
}

/// Operations that a client needs for prepare, and for execute.
async fn costs(size_bytes: u64, features: u64, snapshot: bool, order: Option<u8>) -> (usize, usize) {
    let engine = Engine::memory();
    let plain = pool(&engine.connect().await, "rbd").await;
    source(&plain, size_bytes, features, snapshot).await;
    let store = RecordingStore::new(engine.connect().await, 1_000_000);
    let io = IoCtx::new(store.clone(), Scope::new(plain.pool()));
    let options = PrepareOptions {
        order,
        ..PrepareOptions::default()
    };
    prepare(&io, "src", &io, "dst", &options).await.unwrap();
    let prepared = counted(&store);
    execute(&io, "dst", &silent()).await.unwrap();
    let executed = counted(&store);
    let image = Image::open(&plain, ImageKey::Name("dst"), OpenOptions::read_only())
        .await
        .unwrap();
    for (n, offset) in pieces(size_bytes).enumerate() {
        let data = image.read(offset, 4096).await.unwrap();
        assert!(data.iter().all(|byte| *byte == n as u8 + 1), "piece {n}");
    }
    image.close().await.unwrap();
    (prepared, executed)
}

/// Operations since the last time, apart from those that depend on the clock (how often progress is noted and told).
fn counted(store: &Arc<RecordingStore>) -> usize {
    let records = store.hook().records();
    assert_eq!(store.hook().dropped(), 0);
    store.hook().clear();
    let header = |name: &str| name.starts_with("rbd_header");
    records
        .iter()
        .filter(|record| record.kind != OpKind::Notify && !header(&record.name))
        .count()
}

async fn assert_flat(features: u64, snapshot: bool, order: Option<u8>) {
    let small = costs(SMALL, features, snapshot, order).await;
    let large = costs(LARGE, features, snapshot, order).await;
    assert!(
        large.0 <= small.0 && large.1 <= small.1 + small.1 / 20,
        "operations of prepare and execute: {small:?} for 1 GiB, {large:?} for 16 TiB"
    );
    assert!(
        large.1 as u64 <= 12 * PIECES + 100,
        "execute of {PIECES} pieces: {} operations",
        large.1
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn sixteen_tebibytes_cost_what_their_data_cost() {
    assert_flat(feature::DEFAULT, false, None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn history_costs_no_more_in_a_large_image() {
    assert_flat(feature::DEFAULT, true, None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_object_size_costs_no_more_in_a_large_image() {
    assert_flat(feature::DEFAULT, true, Some(23)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_object_maps_only_objects_that_exist_are_visited() {
    assert_flat(feature::LAYERING | feature::EXCLUSIVE_LOCK, true, None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn object_maps_are_written_a_few_times_per_execute_not_once_per_object() {
    let engine = Engine::memory();
    let plain = pool(&engine.connect().await, "rbd").await;
    source(&plain, SMALL, feature::DEFAULT, true).await;
    prepare(&plain, "src", &plain, "dst", &PrepareOptions::default())
        .await
        .unwrap();
    let store = RecordingStore::new(engine.connect().await, 1_000_000);
    let io = IoCtx::new(store.clone(), Scope::new(plain.pool()));
    execute(&io, "dst", &silent()).await.unwrap();
    let maps = store.hook().records();
    let maps = maps
        .iter()
        .filter(|record| record.kind == OpKind::Write && record.name.starts_with("rbd_object_map."))
        .count();
    // Lock, head, snapshot, unlock.
    assert!(maps <= 4, "{maps} writes to object maps");
}

/// States of the objects that a map calls existing.
async fn existing(image: &Image, snap: SnapId) -> Vec<(u64, u8)> {
    snap::load(image, snap)
        .await
        .unwrap()
        .unwrap()
        .iter_nonzero()
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn maps_marked_ahead_end_as_those_of_the_source() {
    for (order, name) in [(None, "the same layout"), (Some(21), "smaller objects")] {
        let engine = Engine::memory();
        let io = pool(&engine.connect().await, "rbd").await;
        source(&io, 64 << 20, feature::DEFAULT, false).await;
        let image = open(&io, "src").await;
        image.snap_create("s1", &silent()).await.unwrap();
        image.write(0, vec![9; 4096].into()).await.unwrap();
        image.discard(8 << 20, 4 << 20).await.unwrap();
        // An object that exists, but holds nothing.
        image.write(1 << 20, vec![8; 4096].into()).await.unwrap();
        image.snap_create("s2", &silent()).await.unwrap();
        image.write(20 << 20, vec![7; 4096].into()).await.unwrap();
        image.close().await.unwrap();
        let options = PrepareOptions {
            order,
            ..PrepareOptions::default()
        };
        prepare(&io, "src", &io, "dst", &options).await.unwrap();
        execute(&io, "dst", &silent()).await.unwrap();
        let image = open(&io, "dst").await;
        let wrong = rebuild::verify(&image, &silent()).await.unwrap();
        assert_eq!(wrong, [], "{name}");
        // Not only true, but as exact as maps made from the objects themselves.
        let snaps: Vec<SnapId> = image.header().snaps.keys().copied().collect();
        let mut marked = Vec::new();
        for snap in snaps.iter().copied().chain([SnapId::HEAD]) {
            marked.push(existing(&image, snap).await);
        }
        image.rebuild_object_map(&silent()).await.unwrap();
        for (snap, marked) in snaps.iter().copied().chain([SnapId::HEAD]).zip(marked) {
            let rebuilt = existing(&image, snap).await;
            let objects = |states: &[(u64, u8)]| states.iter().map(|(n, _)| *n).collect::<Vec<_>>();
            assert_eq!(objects(&marked), objects(&rebuilt), "{name}, snapshot {snap}");
        }
        image.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_that_turn_out_to_hold_nothing_lose_their_marks() {
    let engine = Engine::memory();
    let io = pool(&engine.connect().await, "rbd").await;
    source(&io, 64 << 20, feature::DEFAULT, false).await;
    let image = open(&io, "src").await;
    for object in [1, 5] {
        // Exists afterwards, without any data.
        image.discard(object << 22, 4 << 20).await.unwrap();
        image.write(object << 22, vec![1; 4096].into()).await.unwrap();
        image.discard(object << 22, 4096).await.unwrap();
    }
    image.close().await.unwrap();
    prepare(&io, "src", &io, "dst", &PrepareOptions::default())
        .await
        .unwrap();
    execute(&io, "dst", &silent()).await.unwrap();
    let image = Image::open(&io, ImageKey::Name("dst"), OpenOptions::read_only())
        .await
        .unwrap();
    let marked = existing(&image, SnapId::HEAD).await;
    for object in 0..16 {
        let name = format!("{}.{object:016x}", image.fixed().object_prefix);
        assert_eq!(
            marked.iter().any(|(n, _)| *n == object),
            image.data_io().exists(&name).await.unwrap(),
            "object {object}"
        );
    }
    image.close().await.unwrap();
}

/// A map may call existing what is gone; the next migration must not take its word for an object that becomes an empty one.
#[tokio::test(flavor = "multi_thread")]
async fn maps_stay_true_when_an_object_was_removed_between_snapshots_and_migrated_twice() {
    for snapshot_since in [false, true] {
        let engine = Engine::memory();
        let io = pool(&engine.connect().await, "rbd").await;
        source(&io, 64 << 20, feature::DEFAULT, false).await;
        let image = open(&io, "src").await;
        image.write(8 << 20, vec![9; 4096].into()).await.unwrap();
        image.snap_create("s1", &silent()).await.unwrap();
        image.discard(8 << 20, 4 << 20).await.unwrap();
        image.close().await.unwrap();
        let options = PrepareOptions::default();
        prepare(&io, "src", &io, "dst", &options).await.unwrap();
        execute(&io, "dst", &silent()).await.unwrap();
        commit(&io, "dst", &silent()).await.unwrap();
        let image = open(&io, "dst").await;
        image.snap_create("s2", &silent()).await.unwrap();
        image.close().await.unwrap();

        prepare(&io, "dst", &io, "third", &options).await.unwrap();
        let image = open(&io, "third").await;
        if snapshot_since {
            image.snap_create("s3", &silent()).await.unwrap();
        }
        execute(&io, "third", &silent()).await.unwrap();
        let wrong = rebuild::verify(&image, &silent()).await.unwrap();
        assert_eq!(wrong, [], "snapshot since prepare: {snapshot_since}");
        image.close().await.unwrap();
    }
}
