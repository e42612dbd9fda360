//! Images of format 1: their whole life, and what they cannot be.

#![allow(clippy::unwrap_used)] // a test that cannot go on says so by panicking

mod support;

use ferry_image::admin::create::{self, CreateOptions};
use ferry_image::admin::{directory, format_1, info, list, metadata, namespace, remove, rename, trash};
use ferry_image::layering::clone::{CloneOptions, clone};
use ferry_image::migration::abort::{AbortOptions, abort};
use ferry_image::migration::commit::commit;
use ferry_image::migration::execute::execute;
use ferry_image::migration::prepare::{PrepareOptions, prepare};
use ferry_image::snapshot::{get_limit, set_limit};
use ferry_image::{ErrorKind, Image, ImageKey, OpenOptions, Progress, SnapKey};
use ferry_store::{Errno, IoCtx, ReadOp, SnapId};
use support::reference::{Compared as _, Reference};
use support::{Engine, TestLayout, pool};

const SIZE: u64 = 200_000;

fn silent() -> Progress {
    Progress::silent()
}

fn old(size_bytes: u64) -> CreateOptions {
    CreateOptions {
        format_1: true,
        ..TestLayout(15, 0, 0).create(size_bytes)
    }
}

async fn open(io: &IoCtx, name: &str) -> Image {
    Image::open(io, ImageKey::Name(name), OpenOptions::read_write())
        .await
        .unwrap()
}

/// An image `old` with two snapshots; it was larger at the second.
async fn with_history(io: &IoCtx) -> Reference {
    create::create(io, "old", &old(SIZE)).await.unwrap();
    let image = open(io, "old").await;
    let mut reference = Reference::new(SIZE);
    for (offset, byte, length, snap) in [
        (1_000, 1u8, 90_000, "s1"),
        (50_000, 2, 9_000, "s2"),
        (0, 3, 3_000, ""),
    ] {
        image.write(offset, vec![byte; length].into()).await.unwrap();
        reference.write(offset, &vec![byte; length]);
        if snap == "s2" {
            image.resize(SIZE + 100_000, false, &silent()).await.unwrap();
            reference.resize(SIZE + 100_000);
            image.write(SIZE + 5, vec![4; 80_000].into()).await.unwrap();
            reference.write(SIZE + 5, &[4; 80_000]);
        }
        if !snap.is_empty() {
            image.snap_create(snap, &silent()).await.unwrap();
            reference.snap(snap);
        }
        if snap == "s2" {
            image.resize(SIZE, true, &silent()).await.unwrap();
            reference.resize(SIZE);
        }
    }
    image.discard(65_536, 32_768).await.unwrap();
    reference.zero(65_536, 32_768);
    image.close().await.unwrap();
    reference
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_of_format_1_lives_like_any_other() {
    for engine in [Engine::memory(), Engine::local(), Engine::probing()] {
        let io = pool(&engine.connect().await, "rbd").await;
        create::create(&io, "new", &TestLayout(15, 0, 0).create(SIZE))
            .await
            .unwrap();
        let mut reference = with_history(&io).await;
        reference.check_all(&io, "old", "made").await;
        assert_eq!(list::names(&io).await.unwrap(), ["old", "new"]);
        let shown = info::info(&io, ImageKey::Name("old"), None).await.unwrap();
        assert_eq!((shown.id.as_str(), shown.snapshot_count), ("", 2));
        assert!(
            shown.block_name_prefix.starts_with("rb."),
            "{}",
            shown.block_name_prefix
        );

        let image = open(&io, "old").await;
        image.snap_rename("s1", "first").await.unwrap();
        let renamed = reference.snaps.remove("s1").unwrap();
        reference.snaps.insert("first".to_owned(), renamed);
        image.snap_rollback("first", &silent()).await.unwrap();
        reference.head = reference.snaps["first"].clone();
        metadata::set(&image, "owner", "me".into()).await.unwrap();
        set_limit(&image, 7).await.unwrap();
        image.close().await.unwrap();
        reference.check_all(&io, "old", "rolled back").await;

        rename::rename(&io, "old", "older").await.unwrap();
        assert_eq!(list::names(&io).await.unwrap(), ["older", "new"]);
        reference.check_all(&io, "older", "renamed").await;
        let image = open(&io, "older").await;
        assert_eq!(metadata::get(&image, "owner").await.unwrap(), "me");
        assert_eq!(get_limit(&image).await.unwrap(), 7);
        let error = remove::remove(&io, "older", &silent()).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::HasSnapshots);
        for snap in ["first", "s2"] {
            image.snap_remove(snap, &silent()).await.unwrap();
        }
        let error = rename::rename(&io, "older", "oldest").await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::HasWatchers);
        image.close().await.unwrap();
        reference.snaps.clear();
        reference.check_all(&io, "older", "without snapshots").await;
        remove::remove(&io, "older", &silent()).await.unwrap();
        assert_eq!(list::names(&io).await.unwrap(), ["new"]);
        let error = remove::remove(&io, "older", &silent()).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::ImageMissing);
        let left = io.store().list_objects(io.scope(), "rb.", "", 10).await.unwrap();
        assert!(left.is_empty(), "{left:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_format_1_cannot_have_is_refused_and_changes_nothing() {
    let engine = Engine::memory();
    let io = pool(&engine.connect().await, "rbd").await;
    pool(&engine.connect().await, "p2").await;
    namespace::create(&io, "ns").await.unwrap();
    for options in [
        CreateOptions {
            data_pool: Some("p2".to_owned()),
            ..old(SIZE)
        },
        CreateOptions {
            features: Some(1),
            ..old(SIZE)
        },
        CreateOptions {
            stripe_unit_bytes: 4096,
            stripe_count: 2,
            ..old(SIZE)
        },
    ] {
        let error = create::create(&io, "no", &options).await.unwrap_err();
        assert_eq!(error.errno, Errno::EINVAL, "{options:?}");
    }
    let error = create::create(&io.with_namespace("ns"), "no", &old(SIZE))
        .await
        .unwrap_err();
    assert_eq!(error.errno, Errno::EINVAL);
    assert!(list::names(&io).await.unwrap().is_empty());

    with_history(&io).await;
    create::create(&io, "new", &TestLayout(15, 0, 0).create(SIZE))
        .await
        .unwrap();
    for name in ["old", "new"] {
        for options in [old(SIZE), TestLayout(15, 0, 0).create(SIZE)] {
            let error = create::create(&io, name, &options).await.unwrap_err();
            assert_eq!(error.kind, ErrorKind::ImageExists);
        }
    }
    let error = rename::rename(&io, "old", "new").await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::ImageExists);
    let error = trash::move_image(&io, "old", None).await.unwrap_err();
    assert_eq!(error.errno, Errno::EOPNOTSUPP);
    let snap = SnapKey::Name("s1".to_owned());
    let cloned = clone(&io, "old", &snap, &io, "child", &CloneOptions::default()).await;
    assert_eq!(cloned.unwrap_err().errno, Errno::ENOENT);
    let image = open(&io, "old").await;
    assert_eq!(image.snap_protect("s1").await.unwrap_err().errno, Errno::ENOSYS);
    assert_eq!(image.snap_unprotect("s1").await.unwrap_err().errno, Errno::EINVAL);
    let enabled = image.update_features(4, true).await;
    assert_eq!(enabled.unwrap_err().errno, Errno::EINVAL);
    let flattened = image.flatten(&silent()).await;
    assert_eq!(flattened.unwrap_err().errno, Errno::EINVAL);
    image.close().await.unwrap();
    assert_eq!(list::names(&io).await.unwrap(), ["old", "new"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_a_kill_left_in_the_list_is_free_and_can_be_removed() {
    let engine = Engine::memory();
    let io = pool(&engine.connect().await, "rbd").await;
    with_history(&io).await;
    let header = "old.rbd";
    io.write_meta(header, ferry_store::WriteOp::new().remove())
        .await
        .unwrap();
    assert_eq!(format_1::list(&io).await.unwrap(), ["old"]);
    assert!(list::long(&io).await.unwrap().entries.is_empty());
    remove::remove(&io, "old", &silent()).await.unwrap();
    assert!(format_1::list(&io).await.unwrap().is_empty());
    create::create(&io, "old", &TestLayout(15, 0, 0).create(SIZE))
        .await
        .unwrap();
    assert_eq!(list::names(&io).await.unwrap(), ["old"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_and_headers_of_nonsense_are_errors_with_their_place() {
    let engine = Engine::memory();
    let io = pool(&engine.connect().await, "rbd").await;
    let reference = with_history(&io).await;
    let reply = io
        .read("old.rbd", SnapId::HEAD, ReadOp::new().read(0, 1 << 20))
        .await
        .unwrap();
    let good = reply.data(0);
    for (at, byte) in [(0, b'x'), (64, b'x'), (76, 200), (96, 255), (104, 255)] {
        let mut bad = good.to_vec();
        bad[at] = byte;
        let op = ferry_store::WriteOp::new().write_full(bad);
        io.write_meta("old.rbd", op).await.unwrap();
        let error = Image::open(&io, ImageKey::Name("old"), OpenOptions::read_only())
            .await
            .unwrap_err();
        assert_eq!(error.kind, ErrorKind::Damaged, "byte {at}: {error}");
        assert!(error.message.contains("old.rbd"), "{error}");
    }
    let op = ferry_store::WriteOp::new().write_full(good);
    io.write_meta("old.rbd", op).await.unwrap();
    reference.check_all(&io, "old", "mended").await;
    let op = ferry_store::WriteOp::new().write_full(vec![0, 0, 0, 0, 255, 255, 255, 255, 9]);
    io.write_meta("rbd_directory", op).await.unwrap();
    let error = list::names(&io).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Damaged, "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_migration_from_format_1_takes_the_whole_history_and_goes_back_again() {
    for engine in [Engine::memory(), Engine::local(), Engine::probing()] {
        for target in ["old", "fresh"] {
            let io = pool(&engine.connect().await, &format!("pool-{target}")).await;
            let mut reference = with_history(&io).await;
            let options = PrepareOptions {
                order: Some(14),
                ..PrepareOptions::default()
            };
            prepare(&io, "old", &io, target, &options).await.unwrap();
            assert_eq!(list::names(&io).await.unwrap(), [target]);
            reference.check_all(&io, target, "prepared").await;
            if target != "old" {
                let opened = Image::open(&io, ImageKey::Name("old"), OpenOptions::read_write()).await;
                assert_eq!(opened.unwrap_err().errno, Errno::EROFS);
                let taken = create::create(&io, "old", &TestLayout(15, 0, 0).create(SIZE)).await;
                assert_eq!(taken.unwrap_err().kind, ErrorKind::ImageExists);
            }
            let image = open(&io, target).await;
            image.write(10, vec![9; 70_000].into()).await.unwrap();
            reference.write(10, &[9; 70_000]);
            image.resize(SIZE + 50_000, false, &silent()).await.unwrap();
            reference.resize(SIZE + 50_000);
            image.snap_rename("s1", "first").await.unwrap();
            let renamed = reference.snaps.remove("s1").unwrap();
            reference.snaps.insert("first".to_owned(), renamed);
            image.close().await.unwrap();
            abort(&io, target, AbortOptions::default(), &silent())
                .await
                .unwrap();
            assert_eq!(list::names(&io).await.unwrap(), ["old"]);
            assert!(directory::list(&io).await.unwrap().is_empty());
            reference.check_all(&io, "old", "aborted").await;

            prepare(&io, "old", &io, target, &options).await.unwrap();
            execute(&io, "old", &silent()).await.unwrap();
            reference.check_all(&io, target, "executed").await;
            commit(&io, "old", &silent()).await.unwrap();
            reference.check_all(&io, target, "committed").await;
            assert_eq!(list::names(&io).await.unwrap(), [target]);
            for prefix in ["rb.", "old.rbd"] {
                let left = io.store().list_objects(io.scope(), prefix, "", 10).await.unwrap();
                assert!(left.is_empty(), "{left:?}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clones_of_a_target_whose_source_is_of_format_1_keep_it_from_being_aborted() {
    let engine = Engine::memory();
    let io = pool(&engine.connect().await, "rbd").await;
    let reference = with_history(&io).await;
    let options = PrepareOptions {
        features: Some(61),
        ..PrepareOptions::default()
    };
    prepare(&io, "old", &io, "old", &options).await.unwrap();
    let image = open(&io, "old").await;
    image.snap_protect("s1").await.unwrap();
    image.close().await.unwrap();
    let snap = SnapKey::Name("s1".to_owned());
    clone(&io, "old", &snap, &io, "child", &CloneOptions::default())
        .await
        .unwrap();
    for force in [false, true] {
        let aborted = abort(&io, "old", AbortOptions { force }, &silent()).await;
        assert_eq!(aborted.unwrap_err().kind, ErrorKind::HasChildren);
    }
    remove::remove(&io, "child", &silent()).await.unwrap();
    abort(&io, "old", AbortOptions::default(), &silent())
        .await
        .unwrap();
    reference.check_all(&io, "old", "aborted").await;
    assert_eq!(format_1::list(&io).await.unwrap(), ["old"]);
}
