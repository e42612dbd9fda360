//! Copies of images: every version holds the same bytes, whatever the layouts, and object maps tell the truth.

#![allow(clippy::unwrap_used)] // a test that cannot go on says so by panicking

mod support;

use std::collections::BTreeMap;

use ferry_image::admin::copy::{ImageCopyOptions, copy, deep_copy};
use ferry_image::admin::create::{self, CreateOptions};
use ferry_image::admin::{list, metadata, usage};
use ferry_image::layering::clone::{CloneFormat, CloneOptions, clone};
use ferry_image::migration::prepare::{PrepareOptions, prepare};
use ferry_image::{ErrorKind, Image, ImageKey, OpenOptions, Progress, SnapKey};
use ferry_store::{Errno, IoCtx};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use support::{Engine, TestLayout, pool};

fn silent() -> Progress {
    Progress::silent()
}

async fn open(io: &IoCtx, name: &str, options: OpenOptions) -> Image {
    Image::open(io, ImageKey::Name(name), options).await.unwrap()
}

fn at(snap: &str) -> OpenOptions {
    match snap {
        "" => OpenOptions::read_only(),
        snap => OpenOptions::read_only().at(SnapKey::Name(snap.to_owned())),
    }
}

/// All versions by name; the head's is empty.
async fn versions(io: &IoCtx, name: &str) -> BTreeMap<String, Vec<u8>> {
    let image = open(io, name, OpenOptions::read_only()).await;
    let mut names: Vec<String> = image
        .header()
        .user_snaps()
        .map(|snap| snap.name.clone())
        .collect();
    image.close().await.unwrap();
    names.push(String::new());
    let mut out = BTreeMap::new();
    for snap in names {
        let image = open(io, name, at(&snap)).await;
        let bytes = image.read(0, image.size_bytes()).await.unwrap().to_vec();
        image.close().await.unwrap();
        out.insert(snap, bytes);
    }
    out
}

async fn live(rng: &mut StdRng, image: &Image, steps: usize, snaps: &mut u32) {
    for _ in 0..steps {
        let size = image.size_bytes();
        let offset = rng.random_range(0..size);
        let length = rng.random_range(1..=60_000u64).min(size - offset);
        match rng.random_range(0..20) {
            0..11 => {
                let data = vec![rng.random_range(0..5u8); length as usize];
                image.write(offset, data.into()).await.unwrap();
            }
            11..15 => image.discard(offset, length).await.unwrap(),
            15 => image
                .resize(rng.random_range(1..400_000), true, &silent())
                .await
                .unwrap(),
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

fn to_layout(TestLayout(order, unit, count): TestLayout) -> ImageCopyOptions {
    ImageCopyOptions {
        order: Some(order),
        stripe_unit_bytes: Some(unit),
        stripe_count: Some(count),
        ..ImageCopyOptions::default()
    }
}

/// The maps say of every version what a look at all objects says.
async fn check_maps(io: &IoCtx, name: &str, when: &str) {
    let image = open(io, name, OpenOptions::read_write()).await;
    image.acquire_lock().await.unwrap();
    let by_maps = usage::usage(io, name, None, false).await.unwrap();
    assert!(by_maps.from_object_maps, "{when}");
    image.close().await.unwrap();
}

async fn random_images(engine: Engine, rounds: usize) {
    let seed = ferry_reference::seed();
    println!("FERRY_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let store = engine.connect().await;
    let (io, other) = (pool(&store, "rbd").await, pool(&store, "other").await);
    for round in 0..rounds {
        let mut of = format!("image{round}");
        create::create(&io, &of, &LAYOUTS[round % 3].create(300_000))
            .await
            .unwrap();
        for _ in 0..2 {
            let image = open(&io, &of, OpenOptions::read_write()).await;
            let mut snaps = 0;
            live(&mut rng, &image, 20, &mut snaps).await;
            image.snap_create("base", &silent()).await.unwrap();
            image.snap_protect("base").await.unwrap();
            metadata::set(&image, "key", "value".into()).await.unwrap();
            live(&mut rng, &image, 4, &mut snaps).await;
            image.close().await.unwrap();
            let expected = versions(&io, &of).await;
            for (number, layout) in LAYOUTS.into_iter().enumerate() {
                for flatten in [false, true] {
                    let when = format!("{of} to {layout:?}, flattened: {flatten}");
                    let name = format!("{of}-{number}-{flatten}");
                    let source = open(&io, &of, OpenOptions::read_only()).await;
                    let had_parent = source.header().largest_parent_overlap_bytes() > 0;
                    deep_copy(&source, &other, &name, &to_layout(layout), flatten, &silent())
                        .await
                        .unwrap();
                    source.close().await.unwrap();
                    assert!(versions(&other, &name).await == expected, "{when}");
                    check_maps(&other, &name, &when).await;
                    let copied = open(&other, &name, OpenOptions::read_only()).await;
                    assert_eq!(metadata::list(&copied).await.unwrap()["key"], "value");
                    let shows_parent = copied.header().largest_parent_overlap_bytes() > 0;
                    assert_eq!(shows_parent, had_parent && !flatten, "{when}");
                    copied.close().await.unwrap();
                }
            }
            for (snap, bytes) in &expected {
                let name = format!("{of}-one-{snap}");
                let source = open(&io, &of, at(snap)).await;
                let mut options = to_layout(LAYOUTS[(round + 1) % 3]);
                options.sparse_size_bytes = [None, Some(4096)][round % 2];
                copy(&source, &other, &name, &options, &silent()).await.unwrap();
                let until = format!("{of}-until-{snap}");
                deep_copy(
                    &source,
                    &other,
                    &until,
                    &to_layout(LAYOUTS[round % 3]),
                    false,
                    &silent(),
                )
                .await
                .unwrap();
                let end = source.read_snap();
                let header = source.header();
                source.close().await.unwrap();
                let copied = versions(&other, &name).await;
                assert!(copied.len() == 1 && copied[""] == *bytes, "{name}");
                let mut wanted: BTreeMap<String, Vec<u8>> = expected
                    .iter()
                    .filter(|(snap, _)| header.snap_by_name(snap).is_some_and(|snap| snap.id <= end))
                    .map(|(snap, bytes)| (snap.clone(), bytes.clone()))
                    .collect();
                wanted.insert(String::new(), bytes.clone());
                assert!(versions(&other, &until).await == wanted, "{until}");
            }
            let child = format!("{of}c");
            let options = CloneOptions {
                order: Some(14),
                format: Some(CloneFormat::Two),
                ..CloneOptions::default()
            };
            let base = SnapKey::Name("base".into());
            clone(&io, &of, &base, &io, &child, &options).await.unwrap();
            of = child;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_version_is_copied_in_memory() {
    random_images(Engine::memory(), 6).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_version_is_copied_by_the_local_engine() {
    random_images(Engine::local(), 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_counts_what_did_not_change_once_and_nothing_for_what_was_zeroed() {
    for engine in [Engine::local(), Engine::memory()] {
        let io = pool(&engine.connect().await, "rbd").await;
        let layout = TestLayout(16, 1 << 16, 1);
        create::create(&io, "a", &layout.create(200_000)).await.unwrap();
        let image = open(&io, "a", OpenOptions::read_write()).await;
        image.write(0, vec![7; 110_592].into()).await.unwrap();
        image.snap_create("one", &silent()).await.unwrap();
        image.write(66_000, vec![8; 1000].into()).await.unwrap();
        image.snap_create("two", &silent()).await.unwrap();
        image.discard(98_304, 32_768).await.unwrap();
        image.snap_create("three", &silent()).await.unwrap();
        image.close().await.unwrap();
        let expected = versions(&io, "a").await;
        // Objects that each version has made or changed.
        for (order, wanted) in [(16, [2, 1, 1, 0]), (15, [4, 1, 0, 0])] {
            let name = format!("copy{order}");
            let source = open(&io, "a", OpenOptions::read_only()).await;
            let layout = to_layout(TestLayout(order, 1 << order, 1));
            deep_copy(&source, &io, &name, &layout, false, &silent())
                .await
                .unwrap();
            source.close().await.unwrap();
            assert!(versions(&io, &name).await == expected, "{name}");
            check_maps(&io, &name, &name).await;
            let said = usage::usage(&io, &name, None, false).await.unwrap();
            let used: Vec<u64> = said.rows.iter().map(|row| row.used_bytes >> order).collect();
            assert_eq!(used, wanted, "{name}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_of_nothing_but_holes_is_not_counted_in_a_copy() {
    // The engines differ in whether a copy of holes makes an object.
    for engine in [Some(Engine::local()), Some(Engine::memory()), Engine::ceph()] {
        let Some(engine) = engine else { continue };
        let io = pool(&engine.connect().await, "rbd").await;
        let layout = TestLayout(16, 1 << 16, 1);
        create::create(&io, "a", &layout.create(200_000)).await.unwrap();
        let image = open(&io, "a", OpenOptions::read_write()).await;
        image.write(60_000, vec![7; 20_000].into()).await.unwrap();
        image.discard(20_000, 45_536).await.unwrap();
        image.flush().await.unwrap();
        deep_copy(
            &image,
            &io,
            "copy",
            &ImageCopyOptions::default(),
            false,
            &silent(),
        )
        .await
        .unwrap();
        image.close().await.unwrap();
        let copy = open(&io, "copy", OpenOptions::read_write()).await;
        let name = format!("rbd_data.{}.{:016x}", copy.id(), 0);
        let is_there = io
            .store()
            .list_objects(io.scope(), &name, "", 1)
            .await
            .unwrap()
            .len() as u64;
        copy.close().await.unwrap();
        let said = usage::usage(&io, "copy", None, false).await.unwrap();
        assert_eq!(said.rows[0].used_bytes, (1 + is_there) << 16);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_name_or_a_migration_under_way_is_refused_and_leaves_nothing() {
    let io = pool(&Engine::memory().connect().await, "rbd").await;
    create::create(
        &io,
        "a",
        &CreateOptions {
            size_bytes: 1 << 20,
            ..CreateOptions::default()
        },
    )
    .await
    .unwrap();
    let image = open(&io, "a", OpenOptions::read_write()).await;
    image.write(0, vec![7; 5000].into()).await.unwrap();
    image.close().await.unwrap();
    let source = open(&io, "a", OpenOptions::read_only()).await;
    let options = ImageCopyOptions::default();
    for error in [
        copy(&source, &io, "a", &options, &silent()).await.unwrap_err(),
        deep_copy(&source, &io, "a", &options, false, &silent())
            .await
            .unwrap_err(),
    ] {
        assert_eq!(
            (error.kind, error.errno),
            (ErrorKind::ImageExists, Errno::EEXIST),
            "{error}"
        );
    }
    source.close().await.unwrap();
    prepare(&io, "a", &io, "b", &PrepareOptions::default())
        .await
        .unwrap();
    let target = open(&io, "b", OpenOptions::read_only()).await;
    let error = deep_copy(&target, &io, "c", &options, false, &silent())
        .await
        .unwrap_err();
    assert_eq!(
        (error.kind, error.errno),
        (ErrorKind::Migrating, Errno::EBUSY),
        "{error}"
    );
    copy(&target, &io, "d", &options, &silent()).await.unwrap();
    target.close().await.unwrap();
    assert_eq!(list::names(&io).await.unwrap(), ["b", "d"]);
    assert_eq!(
        versions(&io, "d").await[""][..5001],
        [vec![7; 5000], vec![0]].concat()
    );
}
