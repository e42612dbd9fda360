//! What administration promises, on every engine: outcomes, refusals with their errno and kind, and what is shown.
#![allow(clippy::unwrap_used)] // in helpers of tests

/// Each test on each engine.
macro_rules! on_every_engine {
    ($($test:ident,)*) => {
        mod memory {
            $(#[tokio::test] async fn $test() { super::$test("memory").await; })*
        }
        mod local {
            $(#[tokio::test] async fn $test() { super::$test("local").await; })*
        }
    };
}

#[path = "../support/mod.rs"]
mod support;

mod files;
mod images;
mod pools;
mod shows;

use bytes::Bytes;
use ferry_image::admin::create::CreateOptions;
use ferry_image::admin::{create, directory};
use ferry_image::{Image, ImageKey, OpenOptions, Progress};
use ferry_store::IoCtx;
use support::{Engine, pool as pool_called};

const MIB: u64 = 1 << 20;

async fn rbd(on: &str) -> (Engine, IoCtx) {
    let engine = Engine::named(on);
    let store = engine.connect().await;
    let io = pool_called(&store, "rbd").await;
    (engine, io)
}

fn sized(size_bytes: u64) -> CreateOptions {
    CreateOptions {
        size_bytes,
        order: Some(20),
        ..CreateOptions::default()
    }
}

async fn open(io: &IoCtx, name: &str) -> Image {
    Image::open(io, ImageKey::Name(name), OpenOptions::read_write())
        .await
        .unwrap()
}

async fn make(io: &IoCtx, name: &str) -> String {
    create::create(io, name, &sized(4 * MIB)).await.unwrap();
    directory::id_of_name(io, name).await.unwrap().unwrap()
}

/// Names of all objects of the namespace except the pool's marker.
async fn objects(io: &IoCtx) -> Vec<String> {
    let all = io.store().list_objects(io.scope(), "", "", 10_000).await.unwrap();
    all.into_iter().filter(|name| name != "rbd_info").collect()
}

fn silent() -> Progress {
    Progress::silent()
}

/// Writes, snapshots and removals whose usage is known: objects of 1 MiB.
async fn image_with_history(io: &IoCtx, features: Option<u64>) -> Image {
    create::create(
        io,
        "a",
        &CreateOptions {
            features,
            ..sized(5 * MIB + 4096)
        },
    )
    .await
    .unwrap();
    let image = open(io, "a").await;
    image.write(0, Bytes::from(vec![1; 4096])).await.unwrap();
    image.write(MIB, Bytes::from(vec![1; 8192])).await.unwrap();
    image.write(5 * MIB, Bytes::from(vec![1; 4096])).await.unwrap();
    image.snap_create("s1", &Progress::silent()).await.unwrap();
    image.write(MIB + 4096, Bytes::from(vec![2; 4096])).await.unwrap();
    image.snap_create("s2", &Progress::silent()).await.unwrap();
    image.discard(0, MIB).await.unwrap();
    image.write(2 * MIB, Bytes::from(vec![3; 4096])).await.unwrap();
    image.flush().await.unwrap();
    image
}
