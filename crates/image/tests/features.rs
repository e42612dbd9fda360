//! Features switched on and off under writers, and space of zeroes given back.
#![allow(clippy::unwrap_used)] // a test that cannot go on says so by panicking

mod support;

use ferry_cls::rbd::{feature, flag};
use ferry_image::admin::create;
use ferry_image::diff::Diff;
use ferry_image::migration::execute::execute;
use ferry_image::migration::prepare::{PrepareOptions, prepare};
use ferry_image::object_map::rebuild;
use ferry_image::{Image, ImageKey, OpenOptions, Progress};
use ferry_store::{Errno, IoCtx, SnapId};
use futures::StreamExt as _;
use support::{Engine, TestLayout, pool};

const SIZE: u64 = 200_000;
const LAYOUT: TestLayout = TestLayout(15, 0, 0);
const MAPS: u64 = feature::OBJECT_MAP | feature::FAST_DIFF;

fn silent() -> Progress {
    Progress::silent()
}

async fn open(io: &IoCtx, name: &str) -> Image {
    Image::open(io, ImageKey::Name(name), OpenOptions::read_write())
        .await
        .unwrap()
}

async fn image(io: &IoCtx) -> Image {
    create::create(io, "i", &LAYOUT.create(SIZE)).await.unwrap();
    let image = open(io, "i").await;
    image.write(0, vec![7; 100_000].into()).await.unwrap();
    image.snap_create("s", &silent()).await.unwrap();
    image.write(40_000, vec![8; 10].into()).await.unwrap();
    image
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_map_goes_with_fast_diff_and_is_not_believed_before_it_is_rebuilt() {
    for engine in [Engine::memory(), Engine::local()] {
        let io = pool(&engine.connect().await, "rbd").await;
        let image = image(&io).await;
        assert!(image.owns_lock());
        image.update_features(feature::FAST_DIFF, false).await.unwrap();
        assert_eq!(image.header().features & MAPS, 0);
        assert_eq!(image.header().flags, 0);
        image.write(150_000, vec![9; 10].into()).await.unwrap();
        image.update_features(feature::OBJECT_MAP, true).await.unwrap();
        assert!(image.header().has(MAPS));
        assert!(!image.header().object_map_valid(SnapId::HEAD));
        let snap = *image.header().snaps.keys().next().unwrap();
        assert!(!image.header().object_map_valid(snap));
        image.write(190_000, vec![9; 10].into()).await.unwrap();
        image.rebuild_object_map(&silent()).await.unwrap();
        assert_eq!(image.header().flags & flag::OBJECT_MAP_INVALID, 0);
        assert_eq!(rebuild::verify(&image, &silent()).await.unwrap(), []);
        image.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_lock_clients_write_at_once_and_with_it_one_at_a_time() {
    let engine = Engine::memory();
    let io = pool(&engine.connect().await, "rbd").await;
    let image = image(&io).await;
    let all = MAPS | feature::EXCLUSIVE_LOCK;
    let refused = image
        .update_features(feature::EXCLUSIVE_LOCK, false)
        .await
        .unwrap_err();
    assert_eq!(refused.errno, Errno::EINVAL);
    image.update_features(all, false).await.unwrap();
    assert!(!image.owns_lock());
    let other_io = pool(&engine.connect().await, "rbd").await;
    let other = open(&other_io, "i").await;
    other.write(0, vec![1; 10].into()).await.unwrap();
    image.write(100, vec![2; 10].into()).await.unwrap();
    assert!(!other.owns_lock() && !image.owns_lock());
    // Asked for through one handle, in force in the other.
    other.update_features(all, true).await.unwrap();
    image.write(200, vec![3; 10].into()).await.unwrap();
    assert!(image.owns_lock());
    other.write(300, vec![4; 10].into()).await.unwrap();
    assert!(other.owns_lock() && !image.owns_lock());
    // Done by the owner, who is somebody else.
    image.update_features(feature::DEEP_FLATTEN, false).await.unwrap();
    assert!(other.owns_lock());
    assert!(!image.header().has(feature::DEEP_FLATTEN));
    image.close().await.unwrap();
    other.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn features_that_make_no_sense_are_refused_and_change_nothing() {
    let engine = Engine::memory();
    let io = pool(&engine.connect().await, "rbd").await;
    let image = image(&io).await;
    let before = image.header().features;
    for (features, enabled, errno) in [
        (0, true, Errno::EINVAL),
        (feature::LAYERING, false, Errno::EINVAL),
        (feature::DEEP_FLATTEN, true, Errno::EINVAL),
        (feature::OBJECT_MAP, true, Errno::EINVAL),
        (feature::MIGRATING, false, Errno::EINVAL),
        (feature::DIRTY_CACHE, true, Errno::EINVAL),
        (feature::JOURNALING, true, Errno::EOPNOTSUPP),
        (1 << 40, true, Errno::EINVAL),
    ] {
        let error = image.update_features(features, enabled).await.unwrap_err();
        assert_eq!(error.errno, errno, "{features:#x} {enabled}");
        image.refresh().await.unwrap();
        assert_eq!(image.header().features, before);
    }
    image.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn sparsify_gives_back_zeroes_of_the_head_alone() {
    for engine in [Engine::memory(), Engine::local()] {
        let io = pool(&engine.connect().await, "rbd").await;
        let image = image(&io).await;
        // One object of nothing but zeroes, one with some at its end, one that keeps its data.
        let zeroes = vec![0; 32768 + 20_000];
        image.write(32768, zeroes.into()).await.unwrap();
        image.write(140_000, vec![0; 10_000].into()).await.unwrap();
        let before = image.read(0, SIZE).await.unwrap();
        image.sparsify(4096, &silent()).await.unwrap();
        assert!(image.read(0, SIZE).await.unwrap() == before);
        let exists = async |n: u64| {
            let name = format!("{}.{n:016x}", image.fixed().object_prefix);
            image.data_io().exists(&name).await.unwrap()
        };
        assert!(exists(0).await && exists(2).await && exists(3).await);
        assert!(!exists(1).await && !exists(4).await);
        assert_eq!(rebuild::verify(&image, &silent()).await.unwrap(), []);
        for size in [0, 100, 4095, 65536, u64::MAX] {
            let error = image.sparsify(size, &silent()).await.unwrap_err();
            assert_eq!(error.errno, Errno::EINVAL, "{size}");
        }
        image.close().await.unwrap();
        let snap = OpenOptions::read_only().at(ferry_image::SnapKey::Name("s".to_owned()));
        let snap = Image::open(&io, ImageKey::Name("i"), snap).await.unwrap();
        let bytes = snap.read(0, SIZE).await.unwrap();
        assert!(bytes[..100_000].iter().all(|byte| *byte == 7));
        snap.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sparsify_calls_no_object_changed_that_has_nothing_to_cut() {
    for engine in [Engine::memory(), Engine::local()] {
        let io = pool(&engine.connect().await, "rbd").await;
        let image = image(&io).await;
        // An object with zeroes of a unit between data, one that ends with some, and one whose unit is zero in part only.
        let with_zeroes = |range: std::ops::Range<usize>| {
            let mut bytes = vec![5; 16384];
            bytes[range].fill(0);
            bytes::Bytes::from(bytes)
        };
        image.write(131_072, with_zeroes(4096..8192)).await.unwrap();
        image.write(163_840, with_zeroes(10..4106)).await.unwrap();
        image.snap_create("t", &silent()).await.unwrap();
        let before = image.read(0, SIZE).await.unwrap();
        image.sparsify(4096, &silent()).await.unwrap();
        assert!(image.read(0, SIZE).await.unwrap() == before);
        assert_eq!(rebuild::verify(&image, &silent()).await.unwrap(), []);

        let newest = *image.header().snaps.keys().next_back().unwrap();
        let diff = Diff::new(&image, Some(newest), true).await.unwrap();
        let parts: Vec<_> = diff.extents().collect().await;
        let changed: Vec<(u64, u64)> = parts
            .into_iter()
            .flat_map(Result::unwrap)
            .map(|extent| (extent.offset.0, extent.length_bytes))
            .collect();
        assert_eq!(changed, [(131_072, 32_768)]);
        drop(diff);
        image.close().await.unwrap();
    }
}

/// librbd calls an object changed that has a clone of its own, and the maps must say what librbd's check expects.
#[tokio::test(flavor = "multi_thread")]
async fn the_map_of_a_migrated_head_says_changed_where_the_copy_gave_it_a_clone_of_its_own() {
    for mark_ahead in [true, false] {
        let engine = Engine::memory();
        let io = pool(&engine.connect().await, "rbd").await;
        let source = image(&io).await;
        if !mark_ahead {
            // Without the source's maps, copies mark for themselves.
            source.update_features(MAPS, false).await.unwrap();
        }
        source.close().await.unwrap();
        let options = PrepareOptions {
            features: Some(feature::DEFAULT),
            ..PrepareOptions::default()
        };
        prepare(&io, "i", &io, "t", &options).await.unwrap();
        execute(&io, "t", &silent()).await.unwrap();
        let target = open(&io, "t").await;
        target.acquire_lock().await.unwrap();
        assert_eq!(rebuild::verify(&target, &silent()).await.unwrap(), []);
        let map = ferry_image::object_map::snap::load(&target, SnapId::HEAD).await;
        let states: Vec<u8> = (0..4)
            .map(|n| map.as_ref().unwrap().as_ref().unwrap().get(n).unwrap())
            .collect();
        assert_eq!(states, [1, 1, 1, 1], "marked ahead: {mark_ahead}");
        target.close().await.unwrap();
    }
}
