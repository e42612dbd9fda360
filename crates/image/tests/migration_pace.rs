//! How fast an execute goes: rate, concurrency, pause, yielding to clients, all changeable while it runs.
//!
//! Bytes are counted by a wrapper around the copying client's store, time is virtual: it passes only when nothing can be done.

#![allow(clippy::unwrap_used)] // a test that cannot go on says so by panicking

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use ferry_image::admin::create::{self, CreateOptions};
use ferry_image::admin::status;
use ferry_image::migration::commit::commit;
use ferry_image::migration::execute::{execute, execute_with};
use ferry_image::migration::pace::YIELDING_BYTES_PER_SECOND;
use ferry_image::migration::prepare::{PrepareOptions, prepare};
use ferry_image::migration::settings::{self, ExecuteSettings, Rate, SettingsChange};
use ferry_image::{ErrorKind, Image, ImageKey, OpenOptions, Progress, Result};
use ferry_store::wrappers::{Call, Hook, OpKind, Wrapper};
use ferry_store::{IoCtx, Scope, StoreError};
use support::reference::{Compared as _, Reference};
use support::{Engine, pool};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 64 * MIB;

/// Counts copies of whole objects (written, or made by the engine), which take so many virtual milliseconds each.
#[derive(Debug, Default)]
struct Copies {
    delay_ms: AtomicU64,
    objects: AtomicU64,
    now: AtomicU64,
    most: AtomicU64,
}

#[async_trait]
impl Hook for Copies {
    type Token = bool;

    async fn before(&self, call: &Call<'_>) -> Result<bool, StoreError> {
        let copies =
            matches!(call.kind, OpKind::Write | OpKind::CopyInto) && call.name.starts_with("rbd_data.");
        if copies {
            let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
            self.most.fetch_max(now, Ordering::SeqCst);
            match self.delay_ms.load(Ordering::SeqCst) {
                0 => {}
                ms => tokio::time::sleep(Duration::from_millis(ms)).await,
            }
        }
        Ok(copies)
    }

    async fn after(
        &self,
        _: &Call<'_>,
        copies: bool,
        _: Result<String, &StoreError>,
    ) -> Result<(), StoreError> {
        if copies {
            self.now.fetch_sub(1, Ordering::SeqCst);
            self.objects.fetch_add(1, Ordering::SeqCst);
        }
        Ok(())
    }
}

struct World {
    engine: Engine,
    io: IoCtx,
    reference: Reference,
}

impl World {
    /// A prepared migration of an image that is full of data, in objects of 1 MiB.
    async fn new() -> Self {
        let engine = Engine::memory();
        let io = pool(&engine.connect().await, "rbd").await;
        let options = CreateOptions {
            size_bytes: SIZE,
            order: Some(20),
            ..CreateOptions::default()
        };
        create::create(&io, "src", &options).await.unwrap();
        let image = open(&io, "src").await;
        let mut reference = Reference::new(SIZE);
        for object in 0..SIZE / MIB {
            let data = vec![object as u8 + 1; MIB as usize];
            reference.write(object * MIB, &data);
            image.write(object * MIB, data.into()).await.unwrap();
        }
        image.close().await.unwrap();
        prepare(&io, "src", &io, "dst", &PrepareOptions::default())
            .await
            .unwrap();
        Self {
            engine,
            io,
            reference,
        }
    }

    /// One more client, whose copies are counted.
    async fn counting(&self) -> (Arc<Wrapper<Copies>>, IoCtx) {
        let store = Wrapper::with_hook(self.engine.connect().await, Copies::default());
        let io = IoCtx::new(store.clone(), Scope::new(self.io.pool()));
        (store, io)
    }

    async fn change(&self, change: SettingsChange) -> ExecuteSettings {
        settings::change(&self.io, "dst", &change).await.unwrap()
    }

    async fn finish(&self, when: &str) {
        self.reference.check_all(&self.io, "dst", when).await;
        commit(&self.io, "dst", &Progress::silent()).await.unwrap();
        self.reference
            .check_all(&self.io, "dst", &format!("committed, {when}"))
            .await;
    }
}

async fn open(io: &IoCtx, name: &str) -> Image {
    Image::open(io, ImageKey::Name(name), OpenOptions::read_write())
        .await
        .unwrap()
}

fn at_rate(mib_per_second: u64) -> SettingsChange {
    SettingsChange {
        rate: Some(Rate::BytesPerSecond(mib_per_second * MIB)),
        ..SettingsChange::default()
    }
}

fn paused(paused: bool) -> SettingsChange {
    SettingsChange {
        paused: Some(paused),
        ..SettingsChange::default()
    }
}

fn unlimited() -> SettingsChange {
    SettingsChange {
        rate: Some(Rate::Unlimited),
        ..SettingsChange::default()
    }
}

fn start(io: &IoCtx, change: SettingsChange) -> tokio::task::JoinHandle<Result<()>> {
    let io = io.clone();
    tokio::spawn(async move { execute_with(&io, "dst", &change, &Progress::silent()).await })
}

async fn seconds(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

fn objects(store: &Wrapper<Copies>) -> u64 {
    store.hook().objects.load(Ordering::SeqCst)
}

#[track_caller]
fn assert_about(objects: u64, expected: u64) {
    assert!(
        objects.abs_diff(expected) <= 2,
        "{objects} MiB copied instead of {expected}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_rate_holds_and_can_be_changed_by_another_process_while_the_copy_runs() {
    let world = World::new().await;
    let (store, io) = world.counting().await;
    let running = start(&io, at_rate(1));
    seconds(10).await;
    assert_about(objects(&store), 10);
    world.change(at_rate(4)).await;
    seconds(5).await;
    assert_about(objects(&store), 10 + 4 * 5);
    world.change(unlimited()).await;
    seconds(1).await;
    running.await.unwrap().unwrap();
    assert_eq!(objects(&store), SIZE / MIB);
    world.finish("throttled").await;
}

#[tokio::test(start_paused = true)]
async fn a_paused_copy_stands_still_through_the_death_of_its_process_until_it_is_resumed() {
    let world = World::new().await;
    let (store, io) = world.counting().await;
    let running = start(&io, at_rate(2));
    seconds(5).await;
    world.change(paused(true)).await;
    let before = objects(&store);
    assert_about(before, 10);
    seconds(120).await;
    assert_eq!(objects(&store), before, "copied while paused");
    let shown = status::status(&world.io, ImageKey::Name("dst")).await.unwrap();
    let shown = shown.migration.unwrap();
    assert!(shown.settings.unwrap().paused);
    let progress = shown.progress.unwrap();
    assert!(progress.paused);
    assert_eq!(progress.objects_done, before);
    assert_eq!(progress.bytes_left, SIZE - before * MIB);
    // The process dies; the next execute finds the pause.
    running.abort();
    let _ = running.await;
    store.inner().shutdown().await.unwrap();
    let (store, io) = world.counting().await;
    let running = start(&io, SettingsChange::default());
    seconds(120).await;
    assert_eq!(objects(&store), 0, "copied while paused");
    let settings = world.change(paused(false)).await;
    assert_eq!(settings.rate, Rate::BytesPerSecond(2 * MIB), "the rate stays");
    seconds(5).await;
    assert_about(objects(&store), 10);
    seconds(60).await;
    running.await.unwrap().unwrap();
    assert_eq!(before + objects(&store), SIZE / MIB);
    world.finish("paused").await;
}

#[tokio::test(start_paused = true)]
async fn a_throttled_copy_can_be_killed_and_goes_on_at_the_same_rate() {
    let world = World::new().await;
    let mut copied = 0;
    for _ in 0..3 {
        let (store, io) = world.counting().await;
        let change = if copied == 0 {
            at_rate(2)
        } else {
            SettingsChange::default()
        };
        let running = start(&io, change);
        seconds(5).await;
        running.abort();
        let _ = running.await;
        store.inner().shutdown().await.unwrap();
        assert_about(objects(&store), 10);
        copied += objects(&store);
        world.reference.check_all(&world.io, "dst", "killed").await;
    }
    let (store, io) = world.counting().await;
    execute_with(&io, "dst", &unlimited(), &Progress::silent())
        .await
        .unwrap();
    assert_eq!(copied + objects(&store), SIZE / MIB, "nothing was copied twice");
    world.finish("killed and run again").await;
}

#[tokio::test(start_paused = true)]
async fn no_more_objects_are_under_way_than_asked_for_and_the_number_can_be_changed() {
    let world = World::new().await;
    let (store, io) = world.counting().await;
    store.hook().delay_ms.store(500, Ordering::SeqCst);
    let with = |objects| SettingsChange {
        concurrency: Some(Some(objects)),
        ..SettingsChange::default()
    };
    let running = start(&io, with(3));
    seconds(3).await;
    assert_eq!(store.hook().most.load(Ordering::SeqCst), 3);
    world.change(with(7)).await;
    seconds(2).await;
    assert_eq!(store.hook().most.load(Ordering::SeqCst), 7);
    world.change(with(1)).await;
    seconds(2).await;
    store.hook().most.store(0, Ordering::SeqCst);
    seconds(2).await;
    assert_eq!(store.hook().most.load(Ordering::SeqCst), 1);
    world.change(with(64)).await;
    running.await.unwrap().unwrap();
    world.finish("with other numbers of objects").await;
}

#[tokio::test(start_paused = true)]
async fn the_copy_yields_to_clients_of_the_process_that_copies_and_speeds_up_when_they_are_quiet() {
    let world = World::new().await;
    // The client's process owns the lock, so it copies, whoever asks.
    let (store, io) = world.counting().await;
    let client = open(&io, "dst").await;
    client.write(0, vec![1; 4096].into()).await.unwrap();
    let before = objects(&store);
    let asked = start(&world.io, SettingsChange::default());
    let busy = tokio::spawn({
        let client = client.clone();
        async move {
            loop {
                client.read(0, 4096).await.unwrap();
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    });
    seconds(2).await;
    let progress = client.execute_progress().unwrap();
    assert!(progress.yielding, "{progress:?}");
    let copied = objects(&store) - before;
    let most = 2 * YIELDING_BYTES_PER_SECOND / MIB + 3;
    assert!(
        copied <= most,
        "{copied} MiB copied beside a busy client, more than {most}"
    );
    assert!(
        copied >= most / 2,
        "{copied} MiB: no progress beside a busy client"
    );
    busy.abort();
    seconds(2).await;
    let copied = objects(&store) - before;
    assert!(
        copied + 1 >= SIZE / MIB,
        "{copied} MiB: not at full speed after the client went quiet"
    );
    asked.await.unwrap().unwrap();
    client.close().await.unwrap();
    world.finish("beside a client").await;
}

#[tokio::test(start_paused = true)]
async fn a_rate_reaches_the_process_that_copies_for_another() {
    let world = World::new().await;
    let (store, io) = world.counting().await;
    let client = open(&io, "dst").await;
    client.write(0, vec![1; 4096].into()).await.unwrap();
    let before = objects(&store);
    let asked = start(&world.io, at_rate(1));
    seconds(10).await;
    assert_about(objects(&store) - before, 10);
    world.change(paused(true)).await;
    let paused_at = objects(&store);
    // Longer than an asker waits for a sign of life.
    seconds(300).await;
    assert_eq!(objects(&store), paused_at);
    assert!(!asked.is_finished());
    world
        .change(SettingsChange {
            paused: Some(false),
            ..unlimited()
        })
        .await;
    asked.await.unwrap().unwrap();
    client.close().await.unwrap();
    world.finish("copied by the client's process").await;
}

#[tokio::test(start_paused = true)]
async fn figures_add_up_and_settings_end_with_the_migration() {
    let world = World::new().await;
    let image = open(&world.io, "dst").await;
    // An object that is there already, and one that a client has emptied.
    image.write(3 * MIB, vec![9; MIB as usize].into()).await.unwrap();
    image.discard(5 * MIB, MIB).await.unwrap();
    world.change(at_rate(1000)).await;
    execute(&world.io, "dst", &Progress::silent()).await.unwrap();
    let progress = image.execute_progress().unwrap();
    assert_eq!(progress.objects_done, progress.objects_total);
    assert_eq!(progress.bytes_left, 0);
    assert_eq!(progress.bytes_copied, SIZE - 2 * MIB);
    assert_eq!(progress.bytes_skipped, 2 * MIB);
    image.close().await.unwrap();
    let refused = settings::change(&world.io, "dst", &paused(true))
        .await
        .unwrap_err();
    assert_eq!(refused.kind, ErrorKind::MigrationState);
    commit(&world.io, "dst", &Progress::silent()).await.unwrap();
    // The next migration of the image begins without settings.
    prepare(&world.io, "dst", &world.io, "next", &PrepareOptions::default())
        .await
        .unwrap();
    let settings = settings::change(&world.io, "next", &SettingsChange::default())
        .await
        .unwrap();
    assert_eq!(settings, ExecuteSettings::default());
}

#[tokio::test(flavor = "multi_thread")]
async fn with_zero_detect_thin_images_stay_thin_and_equal() {
    for engine in [Engine::memory(), Engine::local()] {
        let io = pool(&engine.connect().await, "rbd").await;
        let options = CreateOptions {
            size_bytes: 16 * MIB,
            order: Some(20),
            ..CreateOptions::default()
        };
        create::create(&io, "src", &options).await.unwrap();
        let image = open(&io, "src").await;
        let mut reference = Reference::new(16 * MIB);
        let mut write = async |offset: u64, data: Vec<u8>| {
            reference.write(offset, &data);
            image.write(offset, data.into()).await.unwrap();
        };
        // All zero, zero but for one byte, data that a later version zeroes.
        write(0, vec![0; MIB as usize]).await;
        write(MIB, vec![0; MIB as usize]).await;
        write(MIB + 300_000, vec![7]).await;
        write(2 * MIB, vec![5; MIB as usize]).await;
        image.snap_create("s", &Progress::silent()).await.unwrap();
        reference.snap("s");
        let data = vec![0; 600_000];
        reference.write(2 * MIB + 1000, &data);
        image.write(2 * MIB + 1000, data.into()).await.unwrap();
        image.close().await.unwrap();
        prepare(&io, "src", &io, "dst", &PrepareOptions::default())
            .await
            .unwrap();
        let change = SettingsChange {
            zero_detect: Some(true),
            ..SettingsChange::default()
        };
        let image = open(&io, "dst").await;
        image.acquire_lock().await.unwrap();
        execute_with(&io, "dst", &change, &Progress::silent())
            .await
            .unwrap();
        let progress = image.execute_progress().unwrap();
        // One block of the second object, the third object, and what of it changed and is not a whole block of zeroes.
        let most = 4096 + MIB + 2 * 4096;
        assert!(progress.bytes_copied <= most, "{progress:?}");
        assert!(progress.bytes_skipped >= 14 * MIB - 4096, "{progress:?}");
        let prefix = image.fixed().object_prefix.clone();
        image.close().await.unwrap();
        reference.check_all(&io, "dst", "zeroes left out").await;
        assert!(!io.exists(&format!("{prefix}.{:016x}", 0)).await.unwrap());
        let image = Image::open(&io, ImageKey::Name("dst"), OpenOptions::read_only())
            .await
            .unwrap();
        let map = ferry_image::object_map::snap::load(&image, ferry_store::SnapId::HEAD)
            .await
            .unwrap()
            .unwrap();
        assert_eq!(
            map.iter_nonzero().map(|(n, _)| n).collect::<Vec<_>>(),
            [1, 2],
            "the map knows which objects exist"
        );
        image.close().await.unwrap();
        commit(&io, "dst", &Progress::silent()).await.unwrap();
        reference.check_all(&io, "dst", "committed").await;
    }
}
