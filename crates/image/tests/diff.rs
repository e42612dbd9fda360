//! Differences between snapshots: every byte that differs is told, whatever the image is laid over, and `du` agrees.

#![allow(clippy::unwrap_used)] // a test that cannot go on says so by panicking

mod support;

use ferry_image::admin::create::{self, CreateOptions};
use ferry_image::admin::usage;
use ferry_image::diff::{Diff, DiffExtent};
use ferry_image::layering::clone::{CloneFormat, CloneOptions, clone};
use ferry_image::migration::prepare::{PrepareOptions, prepare};
use ferry_image::{Image, ImageKey, OpenOptions, Progress, SnapKey};
use ferry_store::{Errno, IoCtx, SnapId};
use futures::TryStreamExt as _;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use support::{Engine, TestLayout, pool};

fn silent() -> Progress {
    Progress::silent()
}

async fn extents(image: &Image, from: Option<SnapId>, whole_object: bool) -> Vec<DiffExtent> {
    let diff = Diff::new(image, from, whole_object).await.unwrap();
    let found: Vec<Vec<DiffExtent>> = diff.extents().try_collect().await.unwrap();
    found.into_iter().flatten().collect()
}

/// What one version holds.
async fn bytes(io: &IoCtx, name: &str, snap: Option<SnapId>) -> Vec<u8> {
    let image = open_at(io, name, snap).await;
    let data = image.read(0, image.size_bytes()).await.unwrap().to_vec();
    image.close().await.unwrap();
    data
}

async fn open_at(io: &IoCtx, name: &str, snap: Option<SnapId>) -> Image {
    let options = match snap {
        Some(snap) => OpenOptions::read_only().at(SnapKey::Id(snap)),
        None => OpenOptions::read_only(),
    };
    Image::open(io, ImageKey::Name(name), options).await.unwrap()
}

/// Compares all pairs of versions of an image with what reads show.
async fn check(io: &IoCtx, name: &str, when: &str) {
    let image = open_at(io, name, None).await;
    let mut versions: Vec<Option<SnapId>> = image.header().snaps.keys().copied().map(Some).collect();
    versions.push(None);
    image.close().await.unwrap();
    let mut held = Vec::new();
    for version in &versions {
        held.push(bytes(io, name, *version).await);
    }
    for (index, to) in versions.iter().enumerate() {
        let image = open_at(io, name, *to).await;
        let now = &held[index];
        for before in std::iter::once(None).chain(versions[..index].iter().enumerate().map(Some)) {
            let from = before.and_then(|(_, snap)| *snap);
            let was: &[u8] = before.map_or(&[], |(index, _)| &held[index]);
            for whole_object in [false, true] {
                let when = format!("{when}: {from:?} to {to:?}, whole objects: {whole_object}");
                let mut at = 0;
                let mut told = vec![None; now.len()];
                for extent in extents(&image, from, whole_object).await {
                    assert!(
                        extent.length_bytes > 0 && extent.offset.0 >= at,
                        "{when}: {extent:?}"
                    );
                    at = extent.end();
                    assert!(at <= now.len() as u64, "{when}: {extent:?}");
                    told[extent.offset.0 as usize..at as usize].fill(Some(extent.exists));
                }
                for (offset, byte) in now.iter().enumerate() {
                    let old = was.get(offset).copied().unwrap_or(0);
                    let wrong = match told[offset] {
                        None => old != *byte,
                        Some(true) => false,
                        Some(false) => *byte != 0,
                    };
                    assert!(
                        !wrong,
                        "{when}: byte {offset} was {old}, is {byte}, told as {:?}",
                        told[offset]
                    );
                }
            }
        }
        image.close().await.unwrap();
    }
}

/// Used is what a whole-object difference from the version before says.
async fn check_usage(io: &IoCtx, name: &str, when: &str) {
    let rows = usage::usage(io, name, None, false).await.unwrap().rows;
    let mut from = None;
    for row in rows {
        let snap = row.snapshot.as_ref().map(|(_, id)| *id);
        let image = open_at(io, name, snap).await;
        let differs: u64 = extents(&image, from, true)
            .await
            .iter()
            .filter(|extent| extent.exists)
            .map(|extent| extent.length_bytes)
            .sum();
        image.close().await.unwrap();
        assert_eq!(row.used_bytes, differs, "{when}: {:?}", row.snapshot);
        from = snap;
    }
}

/// Some steps of a client's life.
async fn live(rng: &mut StdRng, image: &Image, steps: usize, snaps: &mut u32) {
    for _ in 0..steps {
        let size = image.size_bytes();
        let offset = rng.random_range(0..size);
        let length = rng.random_range(1..=60_000u64).min(size - offset);
        match rng.random_range(0..20) {
            0..10 => {
                let data = vec![rng.random_range(0..5u8); length as usize];
                image.write(offset, data.into()).await.unwrap();
            }
            10..15 => image.discard(offset, length).await.unwrap(),
            15..17 => {
                let size = rng.random_range(1..400_000);
                image.resize(size, true, &silent()).await.unwrap();
            }
            _ => {
                *snaps += 1;
                image.snap_create(&format!("s{snaps}"), &silent()).await.unwrap();
            }
        }
    }
}

const LAYOUTS: [TestLayout; 3] = [
    TestLayout(15, 0, 0),
    TestLayout(14, 4096, 3),
    TestLayout(16, 16_384, 2),
];

async fn random_images(engine: Engine) {
    let seed = ferry_reference::seed();
    println!("FERRY_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let store = engine.connect().await;
    let (io, other) = (pool(&store, "rbd").await, pool(&store, "other").await);
    for round in 0..6 {
        let name = format!("image{round}");
        let features = [None, Some(1)][round % 2];
        let options = CreateOptions {
            features,
            ..LAYOUTS[round % 3].create(300_000)
        };
        create::create(&io, &name, &options).await.unwrap();
        let image = Image::open(&io, ImageKey::Name(&name), OpenOptions::read_write())
            .await
            .unwrap();
        let mut snaps = 0;
        live(&mut rng, &image, 25, &mut snaps).await;
        image.close().await.unwrap();
        check(&io, &name, &name).await;
        check_usage(&io, &name, &name).await;
        let TestLayout(order, unit, count) = LAYOUTS[(round / 3 + round) % 3];
        let options = PrepareOptions {
            order: Some(order),
            stripe_unit_bytes: Some(unit).filter(|unit| *unit > 0),
            stripe_count: Some(count).filter(|count| *count > 0),
            ..PrepareOptions::default()
        };
        prepare(&io, &name, &other, &name, &options).await.unwrap();
        check(&other, &name, &format!("{name} prepared")).await;
        let target = Image::open(&other, ImageKey::Name(&name), OpenOptions::read_write())
            .await
            .unwrap();
        live(&mut rng, &target, 12, &mut snaps).await;
        target.close().await.unwrap();
        check(&other, &name, &format!("{name} under way")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_byte_that_differs_is_told_in_memory() {
    random_images(Engine::memory()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_byte_that_differs_is_told_by_the_local_engine() {
    random_images(Engine::local()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_byte_that_differs_in_a_clone_of_a_clone_is_told() {
    let seed = ferry_reference::seed();
    println!("FERRY_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let io = pool(&Engine::memory().connect().await, "rbd").await;
    for round in 0..4 {
        let parent = format!("parent{round}");
        create::create(&io, &parent, &LAYOUTS[round % 3].create(300_000))
            .await
            .unwrap();
        let mut of = parent;
        for depth in 0..3 {
            let image = Image::open(&io, ImageKey::Name(&of), OpenOptions::read_write())
                .await
                .unwrap();
            live(&mut rng, &image, 12, &mut 0).await;
            image.snap_create("base", &silent()).await.unwrap();
            image.close().await.unwrap();
            check(&io, &of, &of).await;
            let child = format!("{of}-{depth}");
            let TestLayout(order, unit, count) = LAYOUTS[(round + depth) % 3];
            let options = CloneOptions {
                order: Some(order),
                stripe_unit_bytes: Some(unit),
                stripe_count: Some(count),
                format: Some(CloneFormat::Two),
                ..CloneOptions::default()
            };
            let base = SnapKey::Name("base".into());
            clone(&io, &of, &base, &io, &child, &options).await.unwrap();
            check(&io, &child, &child).await;
            of = child;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_is_missing_or_newer_than_the_end_is_refused() {
    let io = pool(&Engine::memory().connect().await, "rbd").await;
    create::create(&io, "image", &LAYOUTS[0].create(100_000))
        .await
        .unwrap();
    let image = Image::open(&io, ImageKey::Name("image"), OpenOptions::read_write())
        .await
        .unwrap();
    for snap in ["a", "b"] {
        image.snap_create(snap, &silent()).await.unwrap();
    }
    image.close().await.unwrap();
    let image = open_at(&io, "image", None).await;
    let ids: Vec<SnapId> = image.header().snaps.keys().copied().collect();
    let error = Diff::new(&image, Some(SnapId(999)), false).await.unwrap_err();
    assert_eq!(error.errno, Errno::ENOENT, "{error}");
    let old = open_at(&io, "image", Some(ids[0])).await;
    let error = Diff::new(&old, Some(ids[1]), false).await.unwrap_err();
    assert_eq!(error.errno, Errno::EINVAL, "{error}");
    assert_eq!(extents(&old, Some(ids[0]), false).await, []);
}
