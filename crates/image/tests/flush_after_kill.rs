//! A flush covers what a handle that was killed had acknowledged: a client that lost its server goes on with the next one.

#![allow(clippy::unwrap_used)] // a test that cannot go on says so by panicking

mod support;

use ferry_cls::rbd::feature;
use ferry_image::admin::create;
use ferry_image::{Image, ImageKey, OpenOptions};
use ferry_store::IoCtx;
use ferry_store::wrappers::Moment;
use support::{Engine, TestLayout, pool};

const SIZE: u64 = 256 << 10;
const SEEDS: u64 = 6;

async fn open(io: &IoCtx) -> Image {
    Image::open(io, ImageKey::Name("image"), OpenOptions::read_write())
        .await
        .unwrap()
}

/// Does some work in a process that is killed then: nothing is flushed or closed.
async fn until_killed(engine: &Engine, work: impl AsyncFnOnce(&Image)) {
    let doomed = engine.doomed(u64::MAX, Moment::Before).await;
    let io = pool(&(doomed.store.clone() as _), "rbd").await;
    let image = open(&io).await;
    work(&image).await;
    doomed.store.hook().kill_at(0, Moment::Before);
    let _ = io
        .write_meta("the last", ferry_store::WriteOp::new().create(false))
        .await;
    assert!(doomed.is_dead(), "the client outlived its work");
    std::mem::forget(image);
    drop(io);
    doomed.bury().await;
}

async fn survives(engine: &str, features: Option<u64>, next: impl AsyncFn(&Image)) {
    for seed in 0..SEEDS {
        let engine = Engine::named(engine);
        let io = pool(&engine.connect().await, "rbd").await;
        let mut options = TestLayout(16, 0, 0).create(SIZE);
        options.features = features;
        create::create(&io, "image", &options).await.unwrap();
        let image = open(&io).await;
        image.write(0, vec![1; SIZE as usize].into()).await.unwrap();
        image.close().await.unwrap();
        drop((image, io));
        until_killed(&engine, async |image| {
            image.write(5_000, vec![2; 100_000].into()).await.unwrap();
        })
        .await;
        until_killed(&engine, async |image| next(image).await).await;
        engine.power_loss(seed);
        let io = pool(&engine.connect().await, "rbd").await;
        let image = open(&io).await;
        let found = image.read(5_000, 100_000).await.unwrap();
        assert!(
            found.iter().all(|byte| *byte == 2),
            "seed {seed}: a flush succeeded, and what the killed one had written is lost"
        );
        image.close().await.unwrap();
    }
}

async fn writes_and_flushes(image: &Image) {
    image.write(200_000, vec![3; 10].into()).await.unwrap();
    image.flush().await.unwrap();
}

async fn only_flushes(image: &Image) {
    image.flush().await.unwrap();
}

macro_rules! on {
    ($($test:ident: $engine:literal, $features:expr, $next:ident;)*) => {
        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $test() {
            survives($engine, $features, $next).await;
        })*
    };
}

on! {
    the_next_owner_s_flush_covers_what_a_killed_one_wrote_in_memory: "memory", None, writes_and_flushes;
    the_next_owner_s_flush_covers_what_a_killed_one_wrote_on_disk: "simulated", None, writes_and_flushes;
    a_flush_without_a_write_covers_what_a_killed_one_wrote_in_memory: "memory", None, only_flushes;
    a_flush_without_a_write_covers_what_a_killed_one_wrote_on_disk: "simulated", None, only_flushes;
    a_flush_without_the_lock_covers_what_a_killed_one_wrote_in_memory:
        "memory", Some(feature::LAYERING), writes_and_flushes;
    a_flush_without_the_lock_covers_what_a_killed_one_wrote_on_disk:
        "simulated", Some(feature::LAYERING), writes_and_flushes;
}
