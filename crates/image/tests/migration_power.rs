//! What a power loss leaves of a migration whose copies were buffered: objects are whole or not copied, what a client
//! flushed stays, and "executed" means that everything is on the medium. Each test runs with many seeds of what the loss
//! takes; a failure names the seed.

#![allow(clippy::unwrap_used)] // a test that cannot go on says so by panicking

mod support;

use ferry_image::migration::commit::commit;
use ferry_image::migration::execute::execute;
use ferry_image::migration::prepare::{PrepareOptions, prepare};
use ferry_image::{Image, ImageKey, OpenOptions, Progress};
use ferry_store::IoCtx;
use ferry_store::wrappers::Moment;
use support::reference::{Compared as _, Reference};
use support::{Engine, TestLayout, pool};

const SIZE: u64 = 256 << 10;
const OBJECT: u64 = 64 << 10;
const SEEDS: u64 = 24;

async fn open(io: &IoCtx, name: &str) -> Image {
    Image::open(io, ImageKey::Name(name), OpenOptions::read_write())
        .await
        .unwrap()
}

/// A prepared migration of an image without snapshots, all of it data; objects of the target are as large as the
/// source's, or half.
async fn prepared(engine: &Engine, order: u8) -> Reference {
    let io = pool(&engine.connect().await, "rbd").await;
    ferry_image::admin::create::create(&io, "src", &TestLayout(16, 0, 0).create(SIZE))
        .await
        .unwrap();
    let image = open(&io, "src").await;
    let mut reference = Reference::new(SIZE);
    for object in 0..SIZE / OBJECT {
        let data = vec![object as u8 + 1; OBJECT as usize];
        reference.write(object * OBJECT, &data);
        image.write(object * OBJECT, data.into()).await.unwrap();
    }
    image.flush().await.unwrap();
    image.close().await.unwrap();
    let options = PrepareOptions {
        order: Some(order),
        ..PrepareOptions::default()
    };
    prepare(&io, "src", &io, "dst", &options).await.unwrap();
    io.store().shutdown().await.unwrap();
    reference
}

fn engine(name: &str) -> Engine {
    Engine::named(name)
}

/// Runs `work` with a client that is dead when it returns, without having flushed more than `work` did; then the power goes.
async fn until_power_loss(engine: &Engine, seed: u64, work: impl AsyncFnOnce(&IoCtx)) {
    let doomed = engine.doomed(u64::MAX, Moment::Before).await;
    let io = pool(&(doomed.store.clone() as _), "rbd").await;
    work(&io).await;
    doomed.store.hook().kill_at(0, Moment::Before);
    // From the next change on everything fails: closing cannot flush.
    let _ = io
        .write_meta("the last", ferry_store::WriteOp::new().create(false))
        .await;
    assert!(doomed.is_dead(), "the client outlived its work");
    drop(io);
    doomed.bury().await;
    engine.power_loss(seed);
}

async fn content(engine: &Engine) -> Vec<u8> {
    let io = pool(&engine.connect().await, "rbd").await;
    let image = open(&io, "dst").await;
    let content = image.read(0, SIZE).await.unwrap();
    image.close().await.unwrap();
    content.to_vec()
}

/// The rest of the migration gives what the target showed.
async fn finish(engine: &Engine, expected: &[u8], when: &str) {
    let io = pool(&engine.connect().await, "rbd").await;
    execute(&io, "dst", &Progress::silent()).await.unwrap();
    let image = open(&io, "dst").await;
    support::reference::compare(&image, expected, when).await;
    image.close().await.unwrap();
    commit(&io, "dst", &Progress::silent()).await.unwrap();
    let image = open(&io, "dst").await;
    support::reference::compare(&image, expected, when).await;
    image.close().await.unwrap();
}

/// Writes that nobody flushed, small ones (which copy the block first) and whole objects: every byte is old or new.
async fn an_unflushed_write_costs_no_other_byte(name: &str) {
    for seed in 0..SEEDS {
        let engine = engine(name);
        let reference = prepared(&engine, if seed % 2 == 0 { 16 } else { 15 }).await;
        until_power_loss(&engine, seed, async |io| {
            let image = open(io, "dst").await;
            image.write(5_000, vec![91; 3_000].into()).await.unwrap();
            image
                .write(OBJECT, vec![92; OBJECT as usize].into())
                .await
                .unwrap();
            image.discard(2 * OBJECT + 100, 9_000).await.unwrap();
            std::mem::forget(image);
        })
        .await;
        let found = content(&engine).await;
        for (at, (&byte, &old)) in found.iter().zip(&reference.head.bytes()).enumerate() {
            let new = match at as u64 {
                5_000..8_000 => 91,
                at if (OBJECT..2 * OBJECT).contains(&at) => 92,
                at if (2 * OBJECT + 100..2 * OBJECT + 9_100).contains(&at) => 0,
                _ => old,
            };
            assert!(
                byte == old || byte == new,
                "seed {seed}: byte {at} is {byte}, neither {old} nor {new}"
            );
        }
        finish(&engine, &found, &format!("seed {seed}")).await;
    }
}

/// The same with a flush behind them: all is there.
async fn a_flush_keeps_the_copy_under_a_write(name: &str) {
    for seed in 0..SEEDS {
        let engine = engine(name);
        let mut reference = prepared(&engine, if seed % 2 == 0 { 16 } else { 15 }).await;
        until_power_loss(&engine, seed, async |io| {
            let image = open(io, "dst").await;
            image.write(5_000, vec![91; 3_000].into()).await.unwrap();
            image
                .write(OBJECT, vec![92; OBJECT as usize].into())
                .await
                .unwrap();
            image.flush().await.unwrap();
            std::mem::forget(image);
        })
        .await;
        reference.write(5_000, &[91; 3_000]);
        reference.write(OBJECT, &[92; OBJECT as usize]);
        let found = content(&engine).await;
        if let Err(violation) = reference.head.check(0, &found) {
            panic!("seed {seed}: something flushed is missing: {violation}");
        }
        finish(&engine, &reference.head.bytes(), &format!("seed {seed}")).await;
    }
}

/// An execute that said that it is done, and no flush after it.
async fn what_is_executed_is_on_the_medium(name: &str) {
    for seed in 0..SEEDS {
        let engine = engine(name);
        let reference = prepared(&engine, if seed % 2 == 0 { 16 } else { 15 }).await;
        until_power_loss(&engine, seed, async |io| {
            execute(io, "dst", &Progress::silent()).await.unwrap();
        })
        .await;
        let io = pool(&engine.connect().await, "rbd").await;
        // Commit takes the source away, so all of it must be in the target.
        commit(&io, "dst", &Progress::silent()).await.unwrap();
        reference.check_all(&io, "dst", &format!("seed {seed}")).await;
    }
}

/// Copies are lost when they were not flushed: without this the other tests would show nothing.
async fn a_copy_that_nobody_flushed_is_lost_whole(name: &str) {
    let mut lost = 0;
    for seed in 0..SEEDS {
        let engine = engine(name);
        let reference = prepared(&engine, 16).await;
        until_power_loss(&engine, seed, async |io| {
            let image = open(io, "dst").await;
            image.write(0, vec![91; 4_096].into()).await.unwrap();
            std::mem::forget(image);
        })
        .await;
        let found = content(&engine).await;
        lost += usize::from(reference.head.check(0, &found).is_ok());
        let torn = reference.head.check(4_096, &found[4_096..]);
        assert!(torn.is_ok(), "seed {seed}: torn: {torn:?}");
    }
    assert!(lost > 0, "no power loss took an unflushed copy");
}

macro_rules! on {
    ($($test:ident: $name:ident, $engine:literal;)*) => {
        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $test() {
            $name($engine).await;
        })*
    };
}

on! {
    an_unflushed_write_costs_no_other_byte_in_memory: an_unflushed_write_costs_no_other_byte, "memory";
    an_unflushed_write_costs_no_other_byte_on_disk: an_unflushed_write_costs_no_other_byte, "simulated";
    a_flush_keeps_the_copy_under_a_write_in_memory: a_flush_keeps_the_copy_under_a_write, "memory";
    a_flush_keeps_the_copy_under_a_write_on_disk: a_flush_keeps_the_copy_under_a_write, "simulated";
    what_is_executed_is_on_the_medium_in_memory: what_is_executed_is_on_the_medium, "memory";
    what_is_executed_is_on_the_medium_on_disk: what_is_executed_is_on_the_medium, "simulated";
    a_copy_that_nobody_flushed_is_lost_whole_on_disk: a_copy_that_nobody_flushed_is_lost_whole, "simulated";
}
