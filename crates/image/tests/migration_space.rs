//! An execute leaves the last space to clients. The store is in memory and has an end; time is virtual.

#![allow(clippy::unwrap_used)] // a test that cannot go on says so by panicking

mod support;

use std::sync::Arc;
use std::time::Duration;

use ferry_image::admin::create::{self, CreateOptions};
use ferry_image::admin::status;
use ferry_image::migration::commit::commit;
use ferry_image::migration::execute::execute_with;
use ferry_image::migration::execution::ExecuteProgress;
use ferry_image::migration::prepare::{PrepareOptions, prepare};
use ferry_image::migration::settings::{self, OnNoSpace, SettingsChange};
use ferry_image::{Image, ImageKey, OpenOptions, Progress, Result};
use ferry_store::memory::MemoryCluster;
use ferry_store::{Errno, IoCtx, Store};
use support::pool;
use support::reference::{Compared as _, Reference};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 32 * MIB;

/// A prepared migration of an image that is full of data, in objects of 1 MiB.
async fn prepared() -> (MemoryCluster, IoCtx, Reference) {
    prepared_with(MIB).await
}

/// The same with so many bytes of data in each object.
async fn prepared_with(data_bytes: u64) -> (MemoryCluster, IoCtx, Reference) {
    let cluster = MemoryCluster::new(ferry_cls::registry());
    let store: Arc<dyn Store> = cluster.connect();
    let io = pool(&store, "rbd").await;
    let options = CreateOptions {
        size_bytes: SIZE,
        order: Some(20),
        ..CreateOptions::default()
    };
    create::create(&io, "src", &options).await.unwrap();
    let image = open(&io, "src").await;
    let mut reference = Reference::new(SIZE);
    for object in 0..SIZE / MIB {
        let data = vec![object as u8 + 1; data_bytes as usize];
        reference.write(object * MIB, &data);
        image.write(object * MIB, data.into()).await.unwrap();
    }
    image.close().await.unwrap();
    prepare(&io, "src", &io, "dst", &PrepareOptions::default())
        .await
        .unwrap();
    (cluster, io, reference)
}

async fn open(io: &IoCtx, name: &str) -> Image {
    Image::open(io, ImageKey::Name(name), OpenOptions::read_write())
        .await
        .unwrap()
}

fn leaving(reserve_bytes: u64, on_no_space: OnNoSpace) -> SettingsChange {
    SettingsChange {
        reserve_bytes: Some(Some(reserve_bytes)),
        on_no_space: Some(on_no_space),
        concurrency: Some(Some(4)),
        ..SettingsChange::default()
    }
}

fn start(io: &IoCtx, change: SettingsChange) -> tokio::task::JoinHandle<Result<()>> {
    let io = io.clone();
    tokio::spawn(async move { execute_with(&io, "dst", &change, &Progress::silent()).await })
}

async fn progress(io: &IoCtx) -> ExecuteProgress {
    let shown = status::status(io, ImageKey::Name("dst")).await.unwrap();
    shown.migration.unwrap().progress.unwrap()
}

async fn seconds(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

#[tokio::test(start_paused = true)]
async fn the_copy_stands_still_before_the_reserve_and_goes_on_by_itself() {
    let (cluster, io, mut reference) = prepared().await;
    cluster.set_capacity(Some(cluster.used_bytes() + 14 * MIB));
    let running = start(&io, leaving(4 * MIB, OnNoSpace::Pause));
    seconds(60).await;
    assert!(!running.is_finished(), "{:?}", running.await);
    let shown = progress(&io).await;
    assert!(shown.no_space && !shown.paused, "{shown:?}");
    assert!((8..=10).contains(&shown.objects_done), "{shown:?}");
    // What is left is for clients: this one has to copy an object first.
    let client = open(&io, "dst").await;
    client.write(31 * MIB + 5, vec![99; 4096].into()).await.unwrap();
    reference.write(31 * MIB + 5, &[99; 4096]);
    seconds(60).await;
    let done = progress(&io).await.objects_done;
    assert!(done <= shown.objects_done + 1, "{done}: copied into the reserve");
    cluster.set_capacity(Some(cluster.used_bytes() + 12 * MIB));
    seconds(10).await;
    let later = progress(&io).await;
    assert!(later.objects_done >= shown.objects_done + 7, "{later:?}");
    assert!(later.no_space, "{later:?}");
    // Another reserve counts at once.
    cluster.set_capacity(Some(cluster.used_bytes() + SIZE + MIB));
    settings::change(&io, "dst", &leaving(MIB / 2, OnNoSpace::Pause))
        .await
        .unwrap();
    running.await.unwrap().unwrap();
    client.close().await.unwrap();
    reference.check_all(&io, "dst", "after waiting for space").await;
    commit(&io, "dst", &Progress::silent()).await.unwrap();
    reference.check_all(&io, "dst", "committed").await;
}

#[tokio::test(start_paused = true)]
async fn an_execute_that_is_not_to_wait_ends_with_an_error_and_can_be_run_again() {
    let (cluster, io, reference) = prepared().await;
    cluster.set_capacity(Some(cluster.used_bytes() + 14 * MIB));
    let ended = start(&io, leaving(4 * MIB, OnNoSpace::Fail)).await.unwrap();
    let error = ended.unwrap_err();
    assert_eq!(error.errno, Errno::ENOSPC);
    assert!(error.to_string().contains("left to clients"), "{error}");
    reference.check_all(&io, "dst", "without space").await;
    cluster.set_capacity(None);
    start(&io, SettingsChange::default()).await.unwrap().unwrap();
    reference.check_all(&io, "dst", "with space").await;
}

#[tokio::test(start_paused = true)]
async fn without_a_reserve_the_copy_goes_on_until_the_store_refuses() {
    let (cluster, io, reference) = prepared().await;
    cluster.set_capacity(Some(cluster.used_bytes() + 6 * MIB));
    let ended = start(&io, leaving(0, OnNoSpace::Fail)).await.unwrap();
    assert_eq!(ended.unwrap_err().errno, Errno::ENOSPC);
    // A refusal that the store confirms is waited out.
    let running = start(&io, leaving(0, OnNoSpace::Pause));
    seconds(60).await;
    assert!(!running.is_finished(), "{:?}", running.await);
    assert!(progress(&io).await.no_space);
    cluster.set_capacity(None);
    running.await.unwrap().unwrap();
    reference.check_all(&io, "dst", "with space").await;
}

#[tokio::test(start_paused = true)]
async fn objects_that_take_less_than_their_size_are_no_reason_to_give_up() {
    let (cluster, io, reference) = prepared_with(4096).await;
    cluster.set_capacity(Some(cluster.used_bytes() + 8 * MIB));
    // There is room for all, but not for four that are full beside the reserve.
    start(&io, leaving(5 * MIB, OnNoSpace::Fail))
        .await
        .unwrap()
        .unwrap();
    reference.check_all(&io, "dst", "sparse").await;
}
