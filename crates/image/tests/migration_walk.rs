//! One migration from end to end, with a client that writes, discards, snapshots and resizes in every state.

#![allow(clippy::unwrap_used)] // a test that cannot go on says so by panicking

mod support;

use ferry_image::admin::{create, trash};
use ferry_image::migration::abort::{AbortOptions, abort};
use ferry_image::migration::commit::commit;
use ferry_image::migration::execute::execute;
use ferry_image::migration::prepare::{PrepareOptions, prepare};
use ferry_image::{Image, ImageKey, OpenOptions, Progress};
use ferry_store::Errno;
use support::reference::{Compared as _, Reference};
use support::{Engine, TestLayout, pool};

const SIZE: u64 = 1 << 20;

fn pattern(seed: u8, length: usize) -> Vec<u8> {
    (0..length)
        .map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed) | 1)
        .collect()
}

async fn write(image: &Image, reference: &mut Reference, offset: u64, seed: u8, length: usize) {
    let data = pattern(seed, length);
    image.write(offset, data.clone().into()).await.unwrap();
    reference.write(offset, &data);
}

async fn discard(image: &Image, reference: &mut Reference, offset: u64, length: u64) {
    image.discard(offset, length).await.unwrap();
    reference.zero(offset, length);
}

/// A source with two snapshots and holes, over several objects.
async fn make_source(io: &ferry_store::IoCtx, layout: TestLayout) -> Reference {
    create::create(io, "src", &layout.create(SIZE)).await.unwrap();
    let image = Image::open(io, ImageKey::Name("src"), OpenOptions::read_write())
        .await
        .unwrap();
    let mut reference = Reference::new(SIZE);
    write(&image, &mut reference, 0, 1, 100_000).await;
    write(&image, &mut reference, 500_000, 2, 30_000).await;
    image.snap_create("s1", &Progress::silent()).await.unwrap();
    reference.snap("s1");
    write(&image, &mut reference, 50_000, 3, 10_000).await;
    discard(&image, &mut reference, 500_000, 20_000).await;
    write(&image, &mut reference, 900_000, 4, 50_000).await;
    image.snap_create("s2", &Progress::silent()).await.unwrap();
    reference.snap("s2");
    write(&image, &mut reference, 10, 5, 5_000).await;
    discard(&image, &mut reference, 900_000, 60_000).await;
    image.flush().await.unwrap();
    image.close().await.unwrap();
    reference.check_all(io, "src", "before prepare").await;
    reference
}

async fn walk(engine: Engine, from: TestLayout, to: TestLayout, end_by_abort: bool) {
    let store = engine.connect().await;
    let io = pool(&store, "rbd").await;
    let other = pool(&store, "p2").await;
    let mut reference = make_source(&io, from).await;

    let options = PrepareOptions {
        order: Some(to.0),
        stripe_unit_bytes: Some(to.1).filter(|unit| *unit != 0),
        stripe_count: Some(to.2).filter(|count| *count != 0),
        ..PrepareOptions::default()
    };
    prepare(&io, "src", &other, "dst", &options).await.unwrap();
    reference.check_all(&other, "dst", "after prepare").await;
    let gone = Image::open(&io, ImageKey::Name("src"), OpenOptions::read_only())
        .await
        .unwrap_err();
    assert_eq!(gone.errno, Errno::ENOENT);
    assert_eq!(trash::list(&io).await.unwrap().len(), 1);

    // Another client writes while this one migrates.
    let client_store = engine.connect().await;
    let client_io = ferry_store::IoCtx::new(client_store, other.scope().clone());
    let client = Image::open(&client_io, ImageKey::Name("dst"), OpenOptions::read_write())
        .await
        .unwrap();
    write(&client, &mut reference, 60_000, 6, 3_000).await;
    discard(&client, &mut reference, 510_000, 5_000).await;
    reference
        .check_all(&other, "dst", "after writes to the prepared target")
        .await;
    if !end_by_abort {
        client.snap_create("s3", &Progress::silent()).await.unwrap();
        reference.snap("s3");
    }
    write(&client, &mut reference, 700_000, 7, 40_000).await;
    client.resize(800_000, true, &Progress::silent()).await.unwrap();
    reference.resize(800_000);
    client.resize(1_100_000, true, &Progress::silent()).await.unwrap();
    reference.resize(1_100_000);
    write(&client, &mut reference, 1_050_000, 8, 40_000).await;
    reference
        .check_all(&other, "dst", "after snapshot and resizes")
        .await;

    execute(&other, "dst", &Progress::silent()).await.unwrap();
    reference.check_all(&other, "dst", "after execute").await;
    write(&client, &mut reference, 0, 9, 1_000).await;
    client.flush().await.unwrap();

    if end_by_abort {
        let busy = abort(&other, "dst", AbortOptions::default(), &Progress::silent())
            .await
            .unwrap_err();
        assert_eq!(busy.errno, Errno::EBUSY);
        client.close().await.unwrap();
        abort(&other, "dst", AbortOptions::default(), &Progress::silent())
            .await
            .unwrap();
        reference.check_all(&io, "src", "after abort").await;
        let gone = Image::open(&other, ImageKey::Name("dst"), OpenOptions::read_only())
            .await
            .unwrap_err();
        assert_eq!(gone.errno, Errno::ENOENT);
    } else {
        commit(&other, "dst", &Progress::silent()).await.unwrap();
        reference
            .check_head(&client, "after commit, in the open client")
            .await;
        write(&client, &mut reference, 300_000, 10, 1_000).await;
        client.close().await.unwrap();
        reference.check_all(&other, "dst", "after commit").await;
        let left = store.list_objects(io.scope(), "rbd_", "", 1000).await.unwrap();
        assert!(
            !left
                .iter()
                .any(|name| name.starts_with("rbd_data") || name.starts_with("rbd_header")),
            "{left:?}"
        );
    }
    assert!(trash::list(&io).await.unwrap().is_empty());
}

const PLAIN: TestLayout = TestLayout(16, 0, 0);
const SMALL: TestLayout = TestLayout(12, 0, 0);
const STRIPED: TestLayout = TestLayout(15, 4096, 3);
/// The largest objects that there are; [`SMALL`] ones are the smallest.
const LARGE: TestLayout = TestLayout(25, 0, 0);

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_image_becomes_striped_and_commits() {
    walk(Engine::memory(), PLAIN, STRIPED, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_striped_image_becomes_plain_and_commits() {
    walk(Engine::memory(), STRIPED, PLAIN, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_become_smaller_and_the_changes_come_back_at_abort() {
    walk(Engine::memory(), PLAIN, SMALL, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_become_larger_and_the_changes_come_back_at_abort() {
    walk(Engine::memory(), SMALL, STRIPED, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_image_becomes_striped_and_commits_on_the_local_engine() {
    walk(Engine::local(), PLAIN, STRIPED, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_become_larger_and_the_changes_come_back_at_abort_on_the_local_engine() {
    walk(Engine::local(), SMALL, STRIPED, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_smallest_objects_become_the_largest_and_commit() {
    walk(Engine::memory(), SMALL, LARGE, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_largest_objects_become_the_smallest_and_the_changes_come_back_at_abort() {
    walk(Engine::memory(), LARGE, SMALL, true).await;
}
