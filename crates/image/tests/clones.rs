//! Clones: what they show, what their links do, and what is said when a parent is missing.
#![allow(clippy::unwrap_used)] // a test that cannot go on says so by panicking

mod support;

use ferry_cls::rbd::{ChildImageSpec, ParentImageSpec, client, feature};
use ferry_image::admin::{config, create, namespace, remove, trash};
use ferry_image::layering::children::{ChildInfo, children, descendants};
use ferry_image::layering::clone::{CloneFormat, CloneOptions, clone};
use ferry_image::layering::parent::MAX_CHAIN;
use ferry_image::{ErrorKind, Image, ImageKey, OpenOptions, Progress, SnapKey, names};
use ferry_store::{Errno, IoCtx, PoolId, WriteOp};
use support::reference::{Compared as _, Reference, compare};
use support::{Engine, TestLayout, pool};

const SIZE: u64 = 200_000;
const LAYOUT: TestLayout = TestLayout(15, 0, 0);

fn silent() -> Progress {
    Progress::silent()
}

async fn open(io: &IoCtx, name: &str) -> Image {
    Image::open(io, ImageKey::Name(name), OpenOptions::read_write())
        .await
        .unwrap()
}

async fn open_read_only(io: &IoCtx, name: &str) -> Image {
    Image::open(io, ImageKey::Name(name), OpenOptions::read_only())
        .await
        .unwrap()
}

/// An image with `SIZE` bytes of 7 and a protected snapshot `s`.
async fn parent(io: &IoCtx, name: &str) {
    create::create(io, name, &LAYOUT.create(SIZE)).await.unwrap();
    let image = open(io, name).await;
    image.write(0, vec![7; SIZE as usize].into()).await.unwrap();
    image.snap_create("s", &silent()).await.unwrap();
    image.snap_protect("s").await.unwrap();
    image.close().await.unwrap();
}

async fn snap(io: &IoCtx, name: &str, snap: &str) {
    let image = open(io, name).await;
    image.snap_create(snap, &silent()).await.unwrap();
    image.snap_protect(snap).await.unwrap();
    image.close().await.unwrap();
}

fn format(format: CloneFormat) -> CloneOptions {
    CloneOptions {
        format: Some(format),
        ..CloneOptions::default()
    }
}

async fn clone_of(io: &IoCtx, parent: &str, child: &str, how: CloneFormat) {
    let key = SnapKey::Name("s".to_owned());
    clone(io, parent, &key, io, child, &format(how)).await.unwrap();
}

async fn id_of(io: &IoCtx, name: &str) -> String {
    let image = open_read_only(io, name).await;
    let id = image.id().to_owned();
    image.close().await.unwrap();
    id
}

async fn names_of_children(io: &IoCtx, name: &str) -> Vec<String> {
    names_of(children(io, &id_of(io, name).await, None).await.unwrap())
}

fn names_of(found: Vec<ChildInfo>) -> Vec<String> {
    found.into_iter().map(|child| child.image).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_without_its_parent_says_what_is_missing_and_can_be_removed() {
    let engine = Engine::memory();
    let io = pool(&engine.connect().await, "rbd").await;
    for (how, child) in [(CloneFormat::One, "one"), (CloneFormat::Two, "two")] {
        let base = format!("base-{child}");
        parent(&io, &base).await;
        clone_of(&io, &base, child, how).await;
        let id = id_of(&io, &base).await;
        io.write_meta(&names::header_object(&id), WriteOp::new().remove())
            .await
            .unwrap();
        let options = [OpenOptions::read_only(), OpenOptions::read_write()];
        for options in options {
            let error = Image::open(&io, ImageKey::Name(child), options)
                .await
                .unwrap_err();
            assert_eq!(
                (error.kind, error.errno),
                (ErrorKind::ParentMissing, Errno::ENOENT)
            );
            assert!(error.message.contains(&id), "{error}");
        }
        remove::remove(&io, child, &silent()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_whose_snapshot_is_missing_says_so() {
    let engine = Engine::memory();
    let io = pool(&engine.connect().await, "rbd").await;
    parent(&io, "base").await;
    clone_of(&io, "base", "child", CloneFormat::Two).await;
    let link = ParentImageSpec {
        pool_id: io.pool(),
        pool_namespace: String::new(),
        image_id: id_of(&io, "base").await,
        snap_id: ferry_store::SnapId(999),
    };
    let header = names::header_object(&id_of(&io, "child").await);
    ferry_cls::exec_write(&io, &header, client::parent_attach(&link, SIZE, true))
        .await
        .unwrap();
    let error = Image::open(&io, ImageKey::Name("child"), OpenOptions::read_only())
        .await
        .unwrap_err();
    assert_eq!(error.kind, ErrorKind::ParentMissing);
    assert!(error.message.contains("999"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn parents_in_a_circle_are_refused() {
    let engine = Engine::memory();
    let io = pool(&engine.connect().await, "rbd").await;
    // A parent that is the clone of its clone, and one that is its own.
    for (base, child) in [("base", "child"), ("own", "own")] {
        parent(&io, base).await;
        if child != base {
            clone_of(&io, base, child, CloneFormat::Two).await;
            snap(&io, child, "s").await;
        }
        let end = open_read_only(&io, child).await;
        let link = ParentImageSpec {
            pool_id: io.pool(),
            pool_namespace: String::new(),
            image_id: end.id().to_owned(),
            snap_id: end.header().snap_by_name("s").unwrap().id,
        };
        let id = id_of(&io, base).await;
        let (header, entry) = (
            names::header_object(&id),
            ChildImageSpec {
                pool_id: io.pool(),
                pool_namespace: String::new(),
                image_id: id.clone(),
            },
        );
        // Snapshot `s` of the base has an overlap only if it is taken with the link there.
        ferry_cls::exec_write(&io, &header, client::parent_attach(&link, SIZE, false))
            .await
            .unwrap();
        let listed = client::child_attach(link.snap_id, &entry);
        ferry_cls::exec_write(&io, &names::header_object(&link.image_id), listed)
            .await
            .unwrap();
        for options in [OpenOptions::read_only(), OpenOptions::read_write()] {
            let error = Image::open(&io, ImageKey::Name(base), options).await.unwrap_err();
            assert_eq!(error.errno, Errno::ELOOP, "{error}");
        }
        assert_eq!(
            names_of(children(&io, &link.image_id, None).await.unwrap()),
            [base]
        );
        let below = names_of(descendants(&io, &id, None).await.unwrap());
        assert!(below.contains(&base.to_owned()) && below.len() < 3, "{below:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_is_read_to_its_end_and_one_that_is_too_long_is_refused() {
    let engine = Engine::memory();
    let io = pool(&engine.connect().await, "rbd").await;
    parent(&io, "i0").await;
    for n in 1..=MAX_CHAIN + 1 {
        let (below, name) = (format!("i{}", n - 1), format!("i{n}"));
        clone_of(&io, &below, &name, CloneFormat::Two).await;
        if n == MAX_CHAIN {
            let image = open(&io, &name).await;
            compare(&image, &vec![7; SIZE as usize], "through the whole chain").await;
            image.write(100_000, vec![8; 10].into()).await.unwrap();
            assert_eq!(image.read(99_999, 12).await.unwrap()[..2], [7, 8]);
            image.close().await.unwrap();
        }
        let snapped = Image::open(&io, ImageKey::Name(&name), OpenOptions::read_write()).await;
        match snapped {
            Ok(image) => {
                image.snap_create("s", &silent()).await.unwrap();
                image.close().await.unwrap();
                assert!(n <= MAX_CHAIN);
            }
            Err(error) => {
                assert_eq!((n, error.errno), (MAX_CHAIN + 1, Errno::ELOOP), "{error}");
            }
        }
    }
    let all = descendants(&io, &id_of(&io, "i0").await, None).await.unwrap();
    assert_eq!(all.len(), MAX_CHAIN + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn formats_and_places_follow_their_rules() {
    let engine = Engine::memory();
    let store = engine.connect().await;
    let (io, other) = (pool(&store, "rbd").await, pool(&store, "p2").await);
    namespace::create(&io, "ns").await.unwrap();
    let inside = io.with_namespace("ns");
    parent(&io, "base").await;
    let key = SnapKey::Name("s".to_owned());
    let (one, two) = (format(CloneFormat::One), format(CloneFormat::Two));
    clone(&io, "base", &key, &other, "v1", &one).await.unwrap();
    clone(&io, "base", &key, &other, "v2", &two).await.unwrap();
    clone(&io, "base", &key, &inside, "v2", &two).await.unwrap();
    // As a fresh cluster does.
    clone(&io, "base", &key, &io, "auto", &CloneOptions::default())
        .await
        .unwrap();
    let error = clone(&io, "base", &key, &inside, "v1", &one).await.unwrap_err();
    assert_eq!(error.errno, Errno::EXDEV, "{error}");
    // Before the parent is looked at, as Ceph's does.
    let missing = SnapKey::Name("missing".to_owned());
    let error = clone(&io, "base", &missing, &inside, "v1", &one)
        .await
        .unwrap_err();
    assert_eq!(error.errno, Errno::EXDEV, "{error}");
    let error = clone(&io, "base", &key, &io, "auto", &two).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::ImageExists, "{error}");
    let without = CloneOptions {
        features: Some(feature::EXCLUSIVE_LOCK),
        ..two.clone()
    };
    let error = clone(&io, "base", &key, &io, "x", &without).await.unwrap_err();
    assert_eq!(error.errno, Errno::ENOSYS, "{error}");
    let base = open(&io, "base").await;
    let error = base.snap_unprotect("s").await.unwrap_err();
    assert_eq!((error.kind, error.errno), (ErrorKind::HasChildren, Errno::EBUSY));
    base.snap_create("open", &silent()).await.unwrap();
    base.resize(0, true, &silent()).await.unwrap();
    base.snap_create("empty", &silent()).await.unwrap();
    base.close().await.unwrap();
    for (snap, how) in [("open", &one), ("empty", &two)] {
        let key = SnapKey::Name(snap.to_owned());
        let error = clone(&io, "base", &key, &io, "x", how).await.unwrap_err();
        assert_eq!(error.errno, Errno::EINVAL, "{error}");
    }
    let found = children(&io, &id_of(&io, "base").await, None).await.unwrap();
    let places: Vec<_> = found
        .iter()
        .map(|child| format!("{}/{}/{}", child.pool, child.pool_namespace, child.image))
        .collect();
    assert_eq!(places, ["p2//v1", "p2//v2", "rbd//auto", "rbd/ns/v2"]);
    for (at, name) in [(&other, "v1"), (&other, "v2"), (&inside, "v2"), (&io, "auto")] {
        let image = open(at, name).await;
        compare(&image, &vec![7; SIZE as usize], name).await;
        image.flatten(&silent()).await.unwrap();
        assert!(image.header().parent.is_none());
        compare(&image, &vec![7; SIZE as usize], name).await;
        image.close().await.unwrap();
    }
    let base = open(&io, "base").await;
    base.snap_unprotect("s").await.unwrap();
    base.snap_remove("s", &silent()).await.unwrap();
    base.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_is_striped_as_its_parent_unless_told_otherwise() {
    let io = pool(&Engine::memory().connect().await, "rbd").await;
    let options = create::CreateOptions {
        size_bytes: 1 << 20,
        order: Some(16),
        stripe_unit_bytes: 4096,
        stripe_count: 3,
        ..create::CreateOptions::default()
    };
    create::create(&io, "p", &options).await.unwrap();
    snap(&io, "p", "s").await;
    for (child, order, striping, wanted) in [
        ("a", None, None, (16, 4096, 3)),
        ("b", Some(14), None, (14, 4096, 3)),
        ("c", Some(14), Some((16384, 1)), (14, 16384, 1)),
    ] {
        let options = CloneOptions {
            order,
            stripe_unit_bytes: striping.map(|(unit, _)| unit),
            stripe_count: striping.map(|(_, count)| count),
            format: Some(CloneFormat::Two),
            ..CloneOptions::default()
        };
        let key = SnapKey::Name("s".to_owned());
        clone(&io, "p", &key, &io, child, &options).await.unwrap();
        let image = open_read_only(&io, child).await;
        let layout = image.layout();
        let found = (layout.order(), layout.stripe_unit_bytes(), layout.stripe_count());
        assert_eq!(found, wanted, "{child}");
        image.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_snapshot_serves_its_clones_until_the_last_one_goes() {
    let engine = Engine::memory();
    let io = pool(&engine.connect().await, "rbd").await;
    parent(&io, "base").await;
    for name in ["a", "b"] {
        clone_of(&io, "base", name, CloneFormat::Two).await;
    }
    let base = open(&io, "base").await;
    base.snap_unprotect("s").await.unwrap();
    base.snap_remove("s", &silent()).await.unwrap();
    assert!(base.header().user_snaps().next().is_none());
    assert_eq!(base.header().snaps.len(), 1);
    let trashed = *base.header().snaps.keys().next().unwrap();
    let error = base.snap_remove_by_id(trashed, &silent()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::HasChildren, "{error}");
    base.write(0, vec![1; SIZE as usize].into()).await.unwrap();
    base.close().await.unwrap();
    // The parent may go to the trash, but not away.
    let base_id = id_of(&io, "base").await;
    trash::move_image(&io, "base", None).await.unwrap();
    let error = trash::remove_image(&io, &base_id, false, &silent())
        .await
        .unwrap_err();
    assert_eq!(
        (error.kind, error.errno),
        (ErrorKind::HasChildren, Errno::ENOTEMPTY)
    );
    let child = open(&io, "a").await;
    compare(&child, &vec![7; SIZE as usize], "through a parent in the trash").await;
    child.flatten(&silent()).await.unwrap();
    child.close().await.unwrap();
    remove::remove(&io, "b", &silent()).await.unwrap();
    let base = Image::open(&io, ImageKey::Id(&base_id), OpenOptions::read_only())
        .await
        .unwrap();
    assert!(base.header().snaps.is_empty(), "{:?}", base.header().snaps);
    base.close().await.unwrap();
    trash::remove_image(&io, &base_id, false, &silent())
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_was_not_told_follows_a_clone_that_was_cut_loose() {
    let engine = Engine::memory();
    let store = engine.connect().await;
    let io = pool(&store, "rbd").await;
    let reading = IoCtx::new(engine.connect().await, io.scope().clone());
    parent(&io, "base").await;
    clone_of(&io, "base", "middle", CloneFormat::Two).await;
    snap(&io, "middle", "s").await;
    clone_of(&io, "middle", "child", CloneFormat::Two).await;
    let reader = open_read_only(&reading, "child").await;
    compare(&reader, &vec![7; SIZE as usize], "before").await;
    // First the grandparent goes, then the parent.
    for (cut, gone) in [("middle", "base"), ("child", "middle")] {
        let image = open(&io, cut).await;
        image.flatten(&silent()).await.unwrap();
        image.close().await.unwrap();
        let image = open(&io, gone).await;
        image.snap_unprotect("s").await.unwrap();
        image.snap_remove("s", &silent()).await.unwrap();
        image.close().await.unwrap();
        remove::remove(&io, gone, &silent()).await.unwrap();
        compare(&reader, &vec![7; SIZE as usize], gone).await;
    }
    remove::remove(&io, "child", &silent()).await.unwrap();
    let error = reader.read(0, SIZE).await.unwrap_err();
    assert_eq!(error.errno, Errno::ESTALE, "{error}");
    reader.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_of_clones_that_are_none_are_not_shown_and_are_in_nobodys_way() {
    let engine = Engine::memory();
    let io = pool(&engine.connect().await, "rbd").await;
    parent(&io, "base").await;
    clone_of(&io, "base", "other", CloneFormat::Two).await;
    let other = id_of(&io, "other").await;
    let image = open(&io, "other").await;
    image.flatten(&silent()).await.unwrap();
    image.close().await.unwrap();
    let base = open(&io, "base").await;
    let link = ParentImageSpec {
        pool_id: io.pool(),
        pool_namespace: String::new(),
        image_id: base.id().to_owned(),
        snap_id: base.header().snap_by_name("s").unwrap().id,
    };
    // One that was cut loose, one that is gone, one in a pool that is gone; in both lists.
    for (pool_id, id) in [
        (io.pool(), other.as_str()),
        (io.pool(), "gone"),
        (PoolId(77), "gone"),
    ] {
        let child = ChildImageSpec {
            pool_id,
            pool_namespace: String::new(),
            image_id: id.to_owned(),
        };
        let call = client::child_attach(link.snap_id, &child);
        ferry_cls::exec_write(&io, &names::header_object(base.id()), call)
            .await
            .unwrap();
    }
    for id in [other.as_str(), "gone"] {
        ferry_cls::exec_write(&io, names::CHILDREN, client::add_child(&link, id))
            .await
            .unwrap();
    }
    assert_eq!(names_of_children(&io, "base").await, Vec::<String>::new());
    base.snap_unprotect("s").await.unwrap();
    base.snap_remove("s", &silent()).await.unwrap();
    assert!(base.header().snaps.is_empty());
    base.close().await.unwrap();
    remove::remove(&io, "base", &silent()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_the_parent_has_is_copied_up() {
    let engine = Engine::memory();
    let io = pool(&engine.connect().await, "rbd").await;
    create::create(&io, "base", &LAYOUT.create(SIZE)).await.unwrap();
    let base = open(&io, "base").await;
    base.write(0, vec![0; 40_000].into()).await.unwrap();
    base.write(70_000, vec![7; 10_000].into()).await.unwrap();
    base.snap_create("s", &silent()).await.unwrap();
    base.close().await.unwrap();
    clone_of(&io, "base", "child", CloneFormat::Two).await;
    let image = open(&io, "child").await;
    let size_of = async |n: u64| {
        let object = format!("{}.{n:016x}", image.fixed().object_prefix);
        let set = image.data_io().list_snaps(&object, &[]).await;
        set.ok().and_then(|set| Some(set.clones.last()?.size_bytes))
    };
    image.write(0, vec![1; 512].into()).await.unwrap();
    image.write(70_000, vec![1; 512].into()).await.unwrap();
    // Whole objects: over zeroes, over nothing, over data.
    for n in [1, 3, 4] {
        image.discard(n << 15, 1 << 15).await.unwrap();
    }
    assert_eq!(size_of(0).await, Some(512), "zeroes are not copied");
    assert_eq!(size_of(2).await, Some(80_000 - 65_536), "data is");
    assert_eq!(size_of(3).await, None, "there was nothing to hide");
    image.flatten(&silent()).await.unwrap();
    assert_eq!(size_of(3).await, None);
    let mut reference = Reference::new(SIZE);
    reference.write(70_000, &[7; 10_000]);
    reference.write(0, &[1; 512]);
    reference.write(70_000, &[1; 512]);
    reference.check_head(&image, "flattened").await;
    image.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_keep_the_parent_when_an_image_without_deep_flatten_is_cut_loose() {
    for deep in [false, true] {
        let engine = Engine::memory();
        let io = pool(&engine.connect().await, "rbd").await;
        parent(&io, "base").await;
        let mut options = format(CloneFormat::Two);
        if !deep {
            options.features = Some(feature::DEFAULT & !feature::DEEP_FLATTEN);
        }
        let key = SnapKey::Name("s".to_owned());
        clone(&io, "base", &key, &io, "child", &options).await.unwrap();
        let mut reference = Reference::new(SIZE);
        reference.write(0, &vec![7; SIZE as usize]);
        let image = open(&io, "child").await;
        image.write(50_000, vec![9; 100].into()).await.unwrap();
        reference.write(50_000, &[9; 100]);
        image.snap_create("kept", &silent()).await.unwrap();
        reference.snap("kept");
        image.write(0, vec![3; 100].into()).await.unwrap();
        reference.write(0, &[3; 100]);
        image.flatten(&silent()).await.unwrap();
        assert_eq!(image.header().parent.is_some(), !deep);
        reference.check_all(&io, "child", "flattened").await;
        let listed = names_of_children(&io, "base").await;
        assert_eq!(listed.len(), usize::from(!deep), "{listed:?}");
        image.snap_remove("kept", &silent()).await.unwrap();
        assert!(image.header().parent.is_none());
        assert_eq!(names_of_children(&io, "base").await, Vec::<String>::new());
        let error = image.flatten(&silent()).await.unwrap_err();
        assert_eq!(error.errno, Errno::EINVAL, "{error}");
        image.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_power_loss_leaves_parent_or_copy_and_all_that_was_flushed() {
    for engine in ["memory", "simulated"] {
        for round in 0..6u64 {
            let seed = ferry_reference::drawn();
            println!("{engine}, power loss of seed {seed}");
            let engine = Engine::named(engine);
            let store = engine.connect().await;
            let io = pool(&store, "rbd").await;
            parent(&io, "base").await;
            clone_of(&io, "base", "child", CloneFormat::Two).await;
            let image = open(&io, "child").await;
            if round % 2 == 1 {
                image.snap_create("before", &silent()).await.unwrap();
            }
            image.write(100, vec![1; 300].into()).await.unwrap();
            image.flush().await.unwrap();
            for object in 0..6u64 {
                image
                    .write(object * 32_768 + 5_000, vec![2; 700].into())
                    .await
                    .unwrap();
            }
            image.discard(3 << 15, 1 << 15).await.unwrap();
            drop(image);
            store.shutdown().await.unwrap();
            engine.power_loss(seed);
            let io = IoCtx::new(engine.connect().await, io.scope().clone());
            let image = open(&io, "child").await;
            let got = image.read(0, SIZE).await.unwrap();
            for (at, byte) in got.iter().enumerate() {
                let allowed: &[u8] = match (at as u64, at as u64 % 32_768) {
                    (100..400, _) => &[1],
                    (_, 5_000..5_700) => &[7, 2, 0],
                    (98_304..131_072, _) => &[7, 0],
                    _ => &[7],
                };
                assert!(allowed.contains(byte), "byte {at} is {byte}");
            }
            if round % 2 == 1 {
                let mut reference = Reference::new(SIZE);
                reference.write(0, &vec![7; SIZE as usize]);
                let options = OpenOptions::read_only().at(SnapKey::Name("before".to_owned()));
                let snap = Image::open(&io, ImageKey::Name("child"), options).await.unwrap();
                reference.check_head(&snap, "snapshot").await;
                snap.close().await.unwrap();
            }
            image.close().await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn small_reads_and_writes_that_do_not_wait_see_the_parent_too() {
    use ferry_store::ReadNow;
    for engine in ["memory", "local"] {
        let engine = Engine::named(engine);
        let io = pool(&engine.connect().await, "rbd").await;
        parent(&io, "base").await;
        clone_of(&io, "base", "child", CloneFormat::Two).await;
        let image = open(&io, "child").await;
        image.acquire_lock().await.unwrap();
        for _ in 0..2 {
            let mut buffer = [0; 512];
            match image.read_now(4096, &mut buffer) {
                ReadNow::Filled => assert_eq!(buffer, [7; 512]),
                ReadNow::WouldWait => {}
                ReadNow::Absent => panic!("the parent was not asked"),
            }
            assert_eq!(image.read(4096, 512).await.unwrap(), [7; 512][..]);
        }
        assert!(!image.write_now(0, &[1; 512]), "nothing was copied up yet");
        image.write(0, vec![1; 512].into()).await.unwrap();
        image.write_now(512, &[2; 512]);
        let got = image.read(0, 2048).await.unwrap();
        assert_eq!(got[..512], [1; 512]);
        assert!(got[512..1024] == [2; 512] || got[512..1024] == [7; 512]);
        assert_eq!(got[1024..], [7; 1024]);
        image.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flatten_is_done_by_whoever_owns_the_lock() {
    let engine = Engine::memory();
    let io = pool(&engine.connect().await, "rbd").await;
    parent(&io, "base").await;
    clone_of(&io, "base", "child", CloneFormat::One).await;
    let owner = open(&io, "child").await;
    owner.write(0, vec![1; 100].into()).await.unwrap();
    let other = open(&IoCtx::new(engine.connect().await, io.scope().clone()), "child").await;
    other.flatten(&silent()).await.unwrap();
    assert!(owner.owns_lock());
    assert!(owner.header().parent.is_none());
    other.close().await.unwrap();
    owner.write(SIZE - 10, vec![2; 10].into()).await.unwrap();
    assert_eq!(owner.read(SIZE - 11, 11).await.unwrap()[..2], [7, 2]);
    owner.close().await.unwrap();
    let base = open(&io, "base").await;
    base.snap_unprotect("s").await.unwrap();
    base.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_read_becomes_the_clone_s_own_where_that_is_asked_for() {
    for by_pool in [false, true] {
        let engine = Engine::memory();
        let io = pool(&engine.connect().await, "rbd").await;
        parent(&io, "base").await;
        clone_of(&io, "base", "child", CloneFormat::Two).await;
        let objects = async |image: &Image| {
            let prefix = format!("{}.", image.fixed().object_prefix);
            let data = image.data_io();
            let found = data.store().list_objects(data.scope(), &prefix, "", 100).await;
            found.unwrap().len()
        };
        let image = open(&io, "child").await;
        image.acquire_lock().await.unwrap();
        image.read(0, 100).await.unwrap();
        let key = config::CLONE_COPY_ON_READ;
        match by_pool {
            true => config::set_of_pool(&io, key, "true").await.unwrap(),
            false => config::set_of_image(&image, key, "true").await.unwrap(),
        }
        assert_eq!(objects(&image).await, 0);
        image.close().await.unwrap();
        let image = open(&io, "child").await;
        // Not before it may write without asking anybody.
        image.read(0, 100).await.unwrap();
        image.acquire_lock().await.unwrap();
        image.read(40_000, 100).await.unwrap();
        for _ in 0..12_000 {
            if objects(&image).await > 0 {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        assert_eq!(objects(&image).await, 1);
        compare(&image, &vec![7; SIZE as usize], "copied on read").await;
        image.close().await.unwrap();
    }
}
