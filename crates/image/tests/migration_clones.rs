//! Migrations of clones and of parents, in the scenarios that matter: sizes and snapshots that change around prepare, chains,
//! what is copied and what is not, and what an abort must refuse.
#![allow(clippy::unwrap_used)] // a test that cannot go on says so by panicking

mod support;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use ferry_cls::rbd::{ProtectionStatus, feature};
use ferry_image::admin::{namespace, remove, trash};
use ferry_image::layering::children::children;
use ferry_image::layering::clone::{CloneFormat, CloneOptions, clone};
use ferry_image::migration::abort::{AbortOptions, abort};
use ferry_image::migration::commit::commit;
use ferry_image::migration::execute::execute;
use ferry_image::migration::prepare::{PrepareOptions, prepare};
use ferry_image::{ErrorKind, Image, ImageKey, OpenOptions, Progress, SnapKey};
use ferry_store::wrappers::{Call, Hook, OpKind, Wrapper};
use ferry_store::{Errno, IoCtx, StoreError};
use support::reference::{Compared as _, Reference, compare, compare_version};
use support::{Engine, TestLayout, pool, sound};

const SIZE: u64 = 300_000;

fn silent() -> Progress {
    Progress::silent()
}

async fn open(io: &IoCtx, name: &str) -> Image {
    Image::open(io, ImageKey::Name(name), OpenOptions::read_write())
        .await
        .unwrap()
}

/// An image of objects of 32 KiB with bytes in the middle, and a snapshot `s`.
async fn base(io: &IoCtx, name: &str) -> Vec<u8> {
    ferry_image::admin::create::create(io, name, &TestLayout(15, 0, 0).create(SIZE))
        .await
        .unwrap();
    let image = open(io, name).await;
    image.write(50_000, vec![5; 180_000].into()).await.unwrap();
    image.snap_create("s", &silent()).await.unwrap();
    image.snap_protect("s").await.unwrap();
    image.close().await.unwrap();
    let mut bytes = vec![0; SIZE as usize];
    bytes[50_000..230_000].fill(5);
    bytes
}

async fn clone_of(io: &IoCtx, parent: &str, snap: &str, child: &str, format: CloneFormat) {
    let options = CloneOptions {
        format: Some(format),
        ..CloneOptions::default()
    };
    let snap = SnapKey::Name(snap.to_owned());
    clone(io, parent, &snap, io, child, &options).await.unwrap();
}

fn order(order: u8) -> PrepareOptions {
    PrepareOptions {
        order: Some(order),
        ..PrepareOptions::default()
    }
}

async fn names_of_children(io: &IoCtx, name: &str) -> Vec<String> {
    let image = Image::open(io, ImageKey::Name(name), OpenOptions::read_only())
        .await
        .unwrap();
    let found = children(io, image.id(), None).await.unwrap();
    image.close().await.unwrap();
    found.into_iter().map(|child| child.image).collect()
}

async fn finish(io: &IoCtx, name: &str, reference: &Reference) {
    reference.check_all(io, name, "prepared").await;
    execute(io, name, &silent()).await.unwrap();
    reference.check_all(io, name, "executed").await;
    commit(io, name, &silent()).await.unwrap();
    reference.check_all(io, name, "committed").await;
}

/// A clone `src` of `base@s` with a change, a snapshot `a`, another change.
async fn clone_with_history(io: &IoCtx) -> Reference {
    let bytes = base(io, "base").await;
    clone_of(io, "base", "s", "src", CloneFormat::Two).await;
    let mut reference = Reference::showing(&bytes);
    let image = open(io, "src").await;
    for (offset, byte, snap) in [(60_000, 1u8, "a"), (200_000, 2, "")] {
        image.write(offset, vec![byte; 1_000].into()).await.unwrap();
        reference.write(offset, &[byte; 1_000]);
        if !snap.is_empty() {
            image.snap_create(snap, &silent()).await.unwrap();
            reference.snap(snap);
        }
    }
    image.close().await.unwrap();
    reference
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_clone_only_shows_is_not_copied() {
    for engine in ["memory", "local"] {
        let engine = Engine::named(engine);
        let io = pool(&engine.connect().await, "rbd").await;
        let reference = clone_with_history(&io).await;
        prepare(&io, "src", &io, "dst", &order(15)).await.unwrap();
        finish(&io, "dst", &reference).await;
        let image = open(&io, "dst").await;
        let prefix = format!("{}.", image.fixed().object_prefix);
        let store = image.data_io().store();
        let objects = store
            .list_objects(image.data_io().scope(), &prefix, "", 100)
            .await
            .unwrap();
        // Those that hold 60000 and 200000.
        assert_eq!(objects.len(), 2, "{objects:?}");
        image.close().await.unwrap();
        assert_eq!(names_of_children(&io, "base").await, ["dst"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_of_an_unprotected_snapshot_is_migrated_and_flattened() {
    for flatten in [false, true] {
        let engine = Engine::memory();
        let io = pool(&engine.connect().await, "rbd").await;
        let reference = clone_with_history(&io).await;
        let parent = open(&io, "base").await;
        parent.snap_unprotect("s").await.unwrap();
        let options = PrepareOptions { flatten, ..order(14) };
        prepare(&io, "src", &io, "dst", &options).await.unwrap();
        assert_eq!(
            names_of_children(&io, "base").await.len(),
            2 - usize::from(flatten)
        );
        finish(&io, "dst", &reference).await;
        let left = names_of_children(&io, "base").await;
        assert_eq!(left.len(), usize::from(!flatten), "{left:?}");
        if flatten {
            parent.snap_remove("s", &silent()).await.unwrap();
            assert!(parent.header().snaps.is_empty());
            parent.close().await.unwrap();
            remove::remove(&io, "base", &silent()).await.unwrap();
            reference.check_all(&io, "dst", "without its parent").await;
        } else {
            parent.close().await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_whose_snapshot_was_removed_can_only_be_flattened() {
    let engine = Engine::memory();
    let io = pool(&engine.connect().await, "rbd").await;
    let reference = clone_with_history(&io).await;
    let parent = open(&io, "base").await;
    parent.snap_unprotect("s").await.unwrap();
    parent.snap_remove("s", &silent()).await.unwrap();
    let error = prepare(&io, "src", &io, "dst", &order(15)).await.unwrap_err();
    assert_eq!(
        (error.kind, error.errno),
        (ErrorKind::ParentMissing, Errno::EBUSY)
    );
    reference.check_all(&io, "src", "as it was").await;
    let options = PrepareOptions {
        flatten: true,
        ..order(15)
    };
    prepare(&io, "src", &io, "dst", &options).await.unwrap();
    finish(&io, "dst", &reference).await;
    parent.refresh().await.unwrap();
    assert!(parent.header().snaps.is_empty(), "the last clone took it along");
    parent.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn sizes_and_snapshots_may_change_before_and_after_prepare() {
    for flatten in [false, true] {
        for sizes in [
            [SIZE, 0, SIZE],
            [100_000, 70_000, 250_000],
            [400_000, 450_000, 120_000],
        ] {
            let engine = Engine::memory();
            let io = pool(&engine.connect().await, "rbd").await;
            let mut reference = clone_with_history(&io).await;
            let source = open(&io, "src").await;
            source.resize(sizes[0], true, &silent()).await.unwrap();
            reference.resize(sizes[0]);
            source.snap_create("b", &silent()).await.unwrap();
            reference.snap("b");
            source.close().await.unwrap();
            let options = PrepareOptions { flatten, ..order(16) };
            prepare(&io, "src", &io, "dst", &options).await.unwrap();
            let target = open(&io, "dst").await;
            for (index, size) in sizes[1..].iter().enumerate() {
                target.resize(*size, true, &silent()).await.unwrap();
                reference.resize(*size);
                let name = format!("after{index}");
                target.snap_create(&name, &silent()).await.unwrap();
                reference.snap(&name);
            }
            target.write(1_000, vec![9; 60_000].into()).await.unwrap();
            reference.write(1_000, &[9; 60_000]);
            target.snap_rollback("b", &silent()).await.unwrap();
            reference.head = reference.snaps["b"].clone();
            target.close().await.unwrap();
            finish(&io, "dst", &reference).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_striped_target_that_shrank_shows_nothing_of_the_parent_again() {
    let engine = Engine::memory();
    let io = pool(&engine.connect().await, "rbd").await;
    let bytes = base(&io, "base").await;
    clone_of(&io, "base", "s", "src", CloneFormat::Two).await;
    let options = PrepareOptions {
        stripe_unit_bytes: Some(4096),
        stripe_count: Some(3),
        ..order(14)
    };
    prepare(&io, "src", &io, "dst", &options).await.unwrap();
    let mut reference = Reference::showing(&bytes);
    // Of the objects that the border runs through, the parent has nothing in the part that is kept.
    let target = open(&io, "dst").await;
    for size in [9_000, SIZE] {
        target.resize(size, true, &silent()).await.unwrap();
        reference.resize(size);
    }
    target.close().await.unwrap();
    finish(&io, "dst", &reference).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_abort_gives_the_source_what_the_target_shows_of_the_parent() {
    for executed in [false, true] {
        let engine = Engine::memory();
        let io = pool(&engine.connect().await, "rbd").await;
        let mut reference = clone_with_history(&io).await;
        prepare(&io, "src", &io, "dst", &order(16)).await.unwrap();
        if executed {
            execute(&io, "dst", &silent()).await.unwrap();
        }
        let target = open(&io, "dst").await;
        // The region is never shown by the parent again, neither by the target nor by the source.
        target.resize(110_000, true, &silent()).await.unwrap();
        target.resize(SIZE, true, &silent()).await.unwrap();
        reference.resize(110_000);
        reference.resize(SIZE);
        target.discard(65_536, 32_768).await.unwrap();
        reference.zero(65_536, 32_768);
        target.write(250_000, vec![9; 10].into()).await.unwrap();
        reference.write(250_000, &[9; 10]);
        target.close().await.unwrap();
        reference.check_all(&io, "dst", "changed").await;
        abort(&io, "dst", AbortOptions::default(), &silent())
            .await
            .unwrap();
        reference.check_all(&io, "src", "aborted").await;
        assert_eq!(names_of_children(&io, "base").await, ["src"]);
        let source = open(&io, "src").await;
        source.flatten(&silent()).await.unwrap();
        source.close().await.unwrap();
        reference.check_all(&io, "src", "aborted and flattened").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clones_move_with_their_parent_and_back_and_open_ones_notice() {
    let engine = Engine::memory();
    let store = engine.connect().await;
    let (io, other) = (pool(&store, "rbd").await, pool(&store, "p2").await);
    namespace::create(&other, "ns").await.unwrap();
    let inside = other.with_namespace("ns");
    let bytes = base(&io, "base").await;
    clone_of(&io, "base", "s", "one", CloneFormat::One).await;
    clone_of(&io, "base", "s", "two", CloneFormat::Two).await;
    clone_of(&io, "base", "s", "trashed", CloneFormat::Two).await;
    trash::move_image(&io, "trashed", None).await.unwrap();
    let one = open(&io, "one").await;
    let reader = Image::open(&io, ImageKey::Name("two"), OpenOptions::read_only())
        .await
        .unwrap();
    // Format 1 cannot say that its parent is in another namespace.
    prepare(&io, "base", &inside, "moved", &order(17)).await.unwrap();
    assert_eq!(
        names_of_children(&inside, "moved").await,
        ["one", "trashed", "two"]
    );
    let link = one.header().parent.clone().unwrap();
    assert_eq!(
        (link.spec.pool_id, link.spec.pool_namespace.as_str()),
        (inside.pool(), "ns")
    );
    compare(&one, &bytes, "through the target").await;
    one.write(0, vec![1; 10].into()).await.unwrap();
    abort(&inside, "moved", AbortOptions::default(), &silent())
        .await
        .unwrap();
    assert_eq!(names_of_children(&io, "base").await, ["one", "trashed", "two"]);
    assert_eq!(one.header().parent.as_ref().unwrap().spec.pool_id, io.pool());
    compare(&reader, &bytes, "after abort").await;
    let target = PrepareOptions {
        features: Some(feature::EXCLUSIVE_LOCK),
        ..PrepareOptions::default()
    };
    let error = prepare(&io, "base", &inside, "moved", &target).await.unwrap_err();
    assert_eq!((error.kind, error.errno), (ErrorKind::HasChildren, Errno::EINVAL));
    prepare(&io, "base", &inside, "moved", &order(17)).await.unwrap();
    execute(&inside, "moved", &silent()).await.unwrap();
    commit(&inside, "moved", &silent()).await.unwrap();
    compare(&reader, &bytes, "whom nobody told").await;
    let mut written = bytes.clone();
    written[..10].fill(1);
    compare(&one, &written, "after commit").await;
    one.flatten(&silent()).await.unwrap();
    one.close().await.unwrap();
    reader.close().await.unwrap();
    remove::remove(&io, "two", &silent()).await.unwrap();
    trash::purge(&io, ferry_store::Timestamp::now(), &silent())
        .await
        .unwrap();
    let moved = open(&inside, "moved").await;
    moved.snap_unprotect("s").await.unwrap();
    moved.snap_remove("s", &silent()).await.unwrap();
    assert!(moved.header().snaps.is_empty());
    moved.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_in_the_middle_of_a_chain_keeps_both_ends() {
    for engine in ["memory", "local"] {
        let engine = Engine::named(engine);
        let io = pool(&engine.connect().await, "rbd").await;
        let mut reference = clone_with_history(&io).await;
        let source = open(&io, "src").await;
        source.snap_protect("a").await.unwrap();
        source.close().await.unwrap();
        clone_of(&io, "src", "a", "leaf", CloneFormat::One).await;
        let leaf = Reference::of(&reference.snaps["a"]);
        prepare(&io, "src", &io, "dst", &order(13)).await.unwrap();
        leaf.check_all(&io, "leaf", "prepared").await;
        let image = open(&io, "leaf").await;
        image.write(51_000, vec![3; 20].into()).await.unwrap();
        image.discard(51_000, 20).await.unwrap();
        image.write(51_000, vec![5; 20].into()).await.unwrap();
        image.close().await.unwrap();
        // The base moves too, while its clone is on its way.
        prepare(&io, "base", &io, "base", &order(16)).await.unwrap();
        leaf.check_all(&io, "leaf", "both prepared").await;
        reference.check_all(&io, "dst", "both prepared").await;
        let target = open(&io, "dst").await;
        target.write(100_000, vec![4; 40_000].into()).await.unwrap();
        reference.write(100_000, &[4; 40_000]);
        target.close().await.unwrap();
        for name in ["base", "dst"] {
            execute(&io, name, &silent()).await.unwrap();
            leaf.check_all(&io, "leaf", name).await;
            reference.check_all(&io, "dst", name).await;
            commit(&io, name, &silent()).await.unwrap();
            leaf.check_all(&io, "leaf", name).await;
            reference.check_all(&io, "dst", name).await;
        }
        assert_eq!(names_of_children(&io, "base").await, ["dst"]);
        assert_eq!(names_of_children(&io, "dst").await, ["leaf"]);
    }
}

/// Ends a migration in one of both ways.
async fn end(io: &IoCtx, target: &str, goes_back: bool) {
    if goes_back {
        return abort(io, target, AbortOptions::default(), &silent())
            .await
            .unwrap();
    }
    execute(io, target, &silent()).await.unwrap();
    commit(io, target, &silent()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parent_and_its_clone_migrate_at_the_same_time_and_each_of_them_may_go_back() {
    for order_and_ends in 0..16 {
        let bit = |bit: u32| order_and_ends >> bit & 1 == 1;
        let [clone_first, clone_ends_first, clone_goes_back, parent_goes_back] = [0, 1, 2, 3].map(bit);
        let when = format!(
            "clone prepared first: {clone_first}, ends first: {clone_ends_first}, goes back: {clone_goes_back}; parent \
             goes back: {parent_goes_back}"
        );
        let engine = Engine::memory();
        let store = engine.connect().await;
        let io = pool(&store, "rbd").await;
        let mut reference = clone_with_history(&io).await;
        let (clone, parent) = (["src", "dst"], ["base", "moved"]);
        let in_order = if clone_first {
            [clone, parent]
        } else {
            [parent, clone]
        };
        for [source, target] in in_order {
            prepare(&io, source, &io, target, &order(14)).await.unwrap();
        }
        reference.check_all(&io, "dst", &when).await;
        let target = open(&io, "dst").await;
        // One object of which the parent has a part.
        target.write(220_000, vec![8; 100].into()).await.unwrap();
        reference.write(220_000, &[8; 100]);
        target.close().await.unwrap();
        let ends = [(clone, clone_goes_back), (parent, parent_goes_back)];
        let in_order = if clone_ends_first {
            [ends[0], ends[1]]
        } else {
            [ends[1], ends[0]]
        };
        for (names, goes_back) in in_order {
            end(&io, names[1], goes_back).await;
            let name = if clone_goes_back && (clone_ends_first || names == clone) {
                "src"
            } else {
                "dst"
            };
            reference.check_all(&io, name, &when).await;
        }
        let clone = if clone_goes_back { "src" } else { "dst" };
        let parent = if parent_goes_back { "base" } else { "moved" };
        assert_eq!(names_of_children(&io, parent).await, [clone], "{when}");
        sound(&store, &when).await;
        remove_with_snapshots(&io, clone).await;
        remove_with_snapshots(&io, parent).await;
        assert!(trash::list(&io).await.unwrap().is_empty(), "{when}");
    }
}

async fn remove_with_snapshots(io: &IoCtx, name: &str) {
    let image = open(io, name).await;
    let snaps: Vec<String> = image
        .header()
        .user_snaps()
        .map(|snap| snap.name.clone())
        .collect();
    for snap in snaps {
        if image.header().snap_by_name(&snap).unwrap().protection != ProtectionStatus::Unprotected {
            image.snap_unprotect(&snap).await.unwrap();
        }
        image.snap_remove(&snap, &silent()).await.unwrap();
    }
    assert!(
        image.header().snaps.is_empty(),
        "something keeps a snapshot of {name}"
    );
    image.close().await.unwrap();
    remove::remove(io, name, &silent()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_abort_that_would_orphan_clones_is_refused_before_anything_changes() {
    let engine = Engine::memory();
    let io = pool(&engine.connect().await, "rbd").await;
    let reference = clone_with_history(&io).await;
    prepare(&io, "src", &io, "dst", &order(15)).await.unwrap();
    let target = open(&io, "dst").await;
    target.snap_create("new", &silent()).await.unwrap();
    target.close().await.unwrap();
    clone_of(&io, "dst", "new", "kid", CloneFormat::Two).await;
    clone_of(&io, "dst", "a", "moves", CloneFormat::Two).await;
    let force = AbortOptions { force: true };
    let error = abort(&io, "dst", force, &silent()).await.unwrap_err();
    assert_eq!((error.kind, error.errno), (ErrorKind::HasChildren, Errno::EBUSY));
    let kid = open(&io, "kid").await;
    reference.check_head(&kid, "of kid").await;
    kid.flatten(&silent()).await.unwrap();
    kid.close().await.unwrap();
    abort(&io, "dst", force, &silent()).await.unwrap();
    reference.check_all(&io, "src", "aborted").await;
    assert_eq!(names_of_children(&io, "src").await, ["moves"]);
    let moved = open(&io, "moves").await;
    compare_version(&moved, &reference.snaps["a"], "moved").await;
    moved.close().await.unwrap();
}

/// A snapshot `s` of `base` in one pool, and clones of both formats of it in another.
async fn apart(io: &IoCtx, other: &IoCtx) -> Vec<u8> {
    let bytes = base(io, "base").await;
    let snap = SnapKey::Name("s".to_owned());
    for (name, format) in [("one", CloneFormat::One), ("two", CloneFormat::Two)] {
        let options = CloneOptions {
            format: Some(format),
            ..CloneOptions::default()
        };
        clone(io, "base", &snap, other, name, &options).await.unwrap();
    }
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn clones_in_a_pool_that_is_gone_are_in_nobodys_way_and_not_relinked() {
    for engine in ["memory", "local"] {
        let engine = Engine::named(engine);
        let store = engine.connect().await;
        let (io, other) = (pool(&store, "rbd").await, pool(&store, "p2").await);
        let bytes = apart(&io, &other).await;
        clone_of(&io, "base", "s", "here", CloneFormat::Two).await;
        store.pool_remove("p2").await.unwrap();
        assert_eq!(names_of_children(&io, "base").await, ["here"]);
        prepare(&io, "base", &io, "moved", &order(17)).await.unwrap();
        assert_eq!(names_of_children(&io, "moved").await, ["here"]);
        abort(&io, "moved", AbortOptions::default(), &silent())
            .await
            .unwrap();
        assert_eq!(names_of_children(&io, "base").await, ["here"]);
        prepare(&io, "base", &io, "moved", &order(17)).await.unwrap();
        execute(&io, "moved", &silent()).await.unwrap();
        commit(&io, "moved", &silent()).await.unwrap();
        let here = open(&io, "here").await;
        compare(&here, &bytes, "after commit").await;
        here.close().await.unwrap();
        let moved = open(&io, "moved").await;
        remove::remove(&io, "here", &silent()).await.unwrap();
        moved.snap_unprotect("s").await.unwrap();
        moved.snap_remove("s", &silent()).await.unwrap();
        assert!(moved.header().snaps.is_empty());
        moved.close().await.unwrap();
        remove::remove(&io, "moved", &silent()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_whose_parent_s_pool_is_gone_says_so_is_not_migrated_and_can_be_removed() {
    for engine in ["memory", "local"] {
        let engine = Engine::named(engine);
        let store = engine.connect().await;
        let (io, other) = (pool(&store, "rbd").await, pool(&store, "p2").await);
        apart(&other, &io).await;
        store.pool_remove("p2").await.unwrap();
        for name in ["one", "two"] {
            for options in [OpenOptions::read_only(), OpenOptions::read_write()] {
                let error = Image::open(&io, ImageKey::Name(name), options).await.unwrap_err();
                assert_eq!(
                    (error.kind, error.errno),
                    (ErrorKind::ParentMissing, Errno::ENOENT),
                    "{error}"
                );
            }
            for flatten in [false, true] {
                let options = PrepareOptions { flatten, ..order(17) };
                let error = prepare(&io, name, &io, "moved", &options).await.unwrap_err();
                assert_eq!(error.kind, ErrorKind::ParentMissing, "{error}");
                let names = ferry_image::admin::list::names(&io).await.unwrap();
                assert!(names.contains(&name.to_owned()), "{names:?}");
                assert!(!names.contains(&"moved".to_owned()), "{names:?}");
                assert!(trash::list(&io).await.unwrap().is_empty());
            }
            remove::remove(&io, name, &silent()).await.unwrap();
        }
    }
}

/// The first write of data is held up until the test lets it go.
#[derive(Debug, Default)]
struct FirstHeld {
    was: AtomicBool,
    let_go: tokio::sync::Notify,
}

#[async_trait]
impl Hook for FirstHeld {
    type Token = ();

    async fn before(&self, call: &Call<'_>) -> Result<(), StoreError> {
        let is_data = call.kind == OpKind::Write && call.name.starts_with("rbd_data");
        if is_data && !self.was.swap(true, Ordering::SeqCst) {
            self.let_go.notified().await;
        }
        Ok(())
    }

    async fn after(&self, _: &Call<'_>, (): (), _: Result<String, &StoreError>) -> Result<(), StoreError> {
        Ok(())
    }
}

#[tokio::test]
async fn a_trim_of_a_part_of_an_absent_object_spares_what_is_written_beside_it() {
    let engine = Engine::memory();
    let io = pool(&engine.connect().await, "rbd").await;
    base(&io, "base").await;
    clone_of(&io, "base", "s", "src", CloneFormat::Two).await;
    prepare(&io, "src", &io, "dst", &PrepareOptions::default())
        .await
        .unwrap();
    let store = Wrapper::with_hook(io.store().clone(), FirstHeld::default());
    let held = IoCtx::new(store.clone(), io.scope().clone());
    let image = open(&held, "dst").await;
    // Nothing of the parent is in the first object.
    let trimmed = {
        let image = image.clone();
        tokio::spawn(async move { image.discard(4096, 4096).await })
    };
    while !store.hook().was.load(Ordering::SeqCst) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    image.write(16_384, vec![7; 4096].into()).await.unwrap();
    store.hook().let_go.notify_one();
    trimmed.await.unwrap().unwrap();
    let mut expected = vec![0; 32_768];
    expected[16_384..20_480].fill(7);
    assert_eq!(image.read(0, 32_768).await.unwrap(), expected);
    image.close().await.unwrap();
}
