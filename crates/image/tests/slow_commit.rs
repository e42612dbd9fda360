//! A commit that takes its time, or an abort, and what others do and see meanwhile.

#![allow(clippy::unwrap_used)] // a test that cannot go on says so by panicking

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use ferry_cls::rbd::feature;
use ferry_image::admin::create;
use ferry_image::migration::abort::{AbortOptions, abort};
use ferry_image::migration::commit::commit;
use ferry_image::migration::execute::execute;
use ferry_image::migration::prepare::{PrepareOptions, prepare};
use ferry_image::{ErrorKind, Image, ImageKey, OpenOptions, Progress};
use ferry_store::wrappers::{Call, Hook, OpKind, Wrapper};
use ferry_store::{IoCtx, StoreError};
use support::{Engine, TestLayout, pool};
use tokio::sync::Semaphore;

const OBJECT_BYTES: u64 = 32 << 10;
const SIZE: u64 = 3 * OBJECT_BYTES;

fn silent() -> Progress {
    Progress::silent()
}

async fn open(io: &IoCtx, options: OpenOptions) -> Image {
    Image::open(io, ImageKey::Name("dst"), options).await.unwrap()
}

/// Writes to the data of one image are held up until the test lets them go.
#[derive(Debug)]
struct Held {
    of_image: String,
    was: AtomicBool,
    let_go: Semaphore,
}

#[async_trait]
impl Hook for Held {
    type Token = ();

    async fn before(&self, call: &Call<'_>) -> Result<(), StoreError> {
        let is_data = call.kind == OpKind::Write && call.name.starts_with(&self.of_image);
        if is_data {
            self.was.store(true, Ordering::SeqCst);
            drop(self.let_go.acquire().await);
        }
        Ok(())
    }

    async fn after(&self, _: &Call<'_>, (): (), _: Result<String, &StoreError>) -> Result<(), StoreError> {
        Ok(())
    }
}

/// A commit of `dst` that stands still before it changes the first object of image `id`.
struct SlowCommit {
    store: Arc<Wrapper<Held>>,
    done: tokio::task::JoinHandle<ferry_image::Result<()>>,
}

impl SlowCommit {
    async fn begin(io: &IoCtx, id: &str) -> Self {
        let held = Held {
            of_image: format!("rbd_data.{id}"),
            was: AtomicBool::new(false),
            let_go: Semaphore::new(0),
        };
        let store = Wrapper::with_hook(io.store().clone(), held);
        let io = IoCtx::new(store.clone(), io.scope().clone());
        let done = tokio::spawn(async move { commit(&io, "dst", &silent()).await });
        while !store.hook().was.load(Ordering::SeqCst) {
            assert!(!done.is_finished(), "it changes no data of {id}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Self { store, done }
    }

    async fn end(self) {
        self.store.hook().let_go.add_permits(1);
        self.done.await.unwrap().unwrap();
    }
}

/// An image `src` with these features and bytes in its last object, and its id; the migration to `dst` is prepared.
async fn prepared(io: &IoCtx, features: Option<u64>) -> String {
    let options = create::CreateOptions {
        features,
        ..TestLayout(15, 0, 0).create(SIZE)
    };
    create::create(io, "src", &options).await.unwrap();
    let image = Image::open(io, ImageKey::Name("src"), OpenOptions::read_write())
        .await
        .unwrap();
    image.write(SIZE - 4096, vec![5; 4096].into()).await.unwrap();
    let id = image.id().to_owned();
    image.close().await.unwrap();
    prepare(io, "src", io, "dst", &PrepareOptions::default())
        .await
        .unwrap();
    id
}

#[tokio::test]
async fn who_reads_since_before_the_commit_is_not_shown_the_source_for_what_was_discarded_since() {
    let io = pool(&Engine::memory().connect().await, "rbd").await;
    let source_id = prepared(&io, None).await;
    let reader = open(&io, OpenOptions::read_only()).await;
    assert_eq!(reader.read(SIZE - 4096, 4096).await.unwrap(), vec![5; 4096]);
    execute(&io, "dst", &silent()).await.unwrap();
    // The migration has ended; the source has not gone yet.
    let slow = SlowCommit::begin(&io, &source_id).await;
    let writer = open(&io, OpenOptions::read_write()).await;
    writer.discard(SIZE - OBJECT_BYTES, OBJECT_BYTES).await.unwrap();
    writer.close().await.unwrap();
    let mut buffer = [9; 4096];
    if reader.read_now(SIZE - 4096, &mut buffer) == ferry_store::ReadNow::Filled {
        assert_eq!(buffer, [0; 4096]);
    }
    assert_eq!(reader.read(SIZE - 4096, 4096).await.unwrap(), vec![0; 4096]);
    slow.end().await;
    assert_eq!(reader.read(SIZE - 4096, 4096).await.unwrap(), vec![0; 4096]);
    reader.close().await.unwrap();
}

#[tokio::test]
async fn who_reads_since_before_an_abort_is_told_that_the_target_is_gone() {
    let io = pool(&Engine::memory().connect().await, "rbd").await;
    prepared(&io, None).await;
    let reader = open(&io, OpenOptions::read_only()).await;
    assert_eq!(reader.read(SIZE - 4096, 4096).await.unwrap(), vec![5; 4096]);
    abort(&io, "dst", AbortOptions::default(), &silent())
        .await
        .unwrap();
    for offset in [0, SIZE - 4096] {
        let refused = reader.read(offset, 4096).await.unwrap_err();
        assert_eq!(refused.kind, ErrorKind::Removed, "{refused}");
    }
    reader.close().await.unwrap();
}

#[tokio::test]
async fn what_is_written_beyond_the_former_end_while_a_commit_tidies_there_stays() {
    let io = pool(&Engine::memory().connect().await, "rbd").await;
    // Without the exclusive lock nobody is stopped.
    prepared(&io, Some(feature::LAYERING)).await;
    let image = open(&io, OpenOptions::read_write()).await;
    image.resize(OBJECT_BYTES, true, &silent()).await.unwrap();
    let target_id = image.id().to_owned();
    image.close().await.unwrap();
    execute(&io, "dst", &silent()).await.unwrap();
    let slow = SlowCommit::begin(&io, &target_id).await;
    let writer = open(&io, OpenOptions::read_write()).await;
    writer.resize(SIZE, true, &silent()).await.unwrap();
    writer.write(SIZE - 4096, vec![7; 4096].into()).await.unwrap();
    writer.flush().await.unwrap();
    slow.end().await;
    assert_eq!(writer.read(SIZE - 4096, 4096).await.unwrap(), vec![7; 4096]);
    assert_eq!(writer.read(OBJECT_BYTES, 4096).await.unwrap(), vec![0; 4096]);
    writer.close().await.unwrap();
}
