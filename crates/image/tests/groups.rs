//! Groups: who is in them, and snapshots of all of them at one moment.

#![allow(clippy::unwrap_used)] // a test that cannot go on says so by panicking

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ferry_cls::rbd::{GroupSnapshotState, SnapshotNamespace};
use ferry_image::admin::{create, directory, info, remove, trash};
use ferry_image::group::{self, Group};
use ferry_image::{ErrorKind, Image, ImageKey, OpenOptions, Progress, SnapKey};
use ferry_store::{Errno, IoCtx, SnapId};
use support::{Engine, TestLayout};

const SIZE: u64 = 1 << 20;

async fn make(io: &IoCtx, name: &str) {
    create::create(io, name, &TestLayout(16, 0, 0).create(SIZE))
        .await
        .unwrap();
}

async fn open(io: &IoCtx, name: &str) -> Image {
    Image::open(io, ImageKey::Name(name), OpenOptions::read_write())
        .await
        .unwrap()
}

async fn write(io: &IoCtx, name: &str, byte: u8) {
    let image = open(io, name).await;
    image.write(70_000, vec![byte; 1000].into()).await.unwrap();
    image.close().await.unwrap();
}

async fn byte(io: &IoCtx, name: &str, snap: Option<SnapId>) -> u8 {
    let options = match snap {
        Some(snap) => OpenOptions::read_only().at(SnapKey::Id(snap)),
        None => OpenOptions::read_only(),
    };
    let image = Image::open(io, ImageKey::Name(name), options).await.unwrap();
    let read = image.read(70_000, 1000).await.unwrap();
    image.close().await.unwrap();
    assert!(read.iter().all(|byte| *byte == read[0]));
    read[0]
}

/// Images `a` and `b` in one pool and `c` in another, in group `g`.
async fn world(engine: &Engine) -> (IoCtx, IoCtx, Group) {
    let store = engine.connect().await;
    let (io, other) = (
        engine.place(&store, "rbd").await,
        engine.place(&store, "p2").await,
    );
    group::create(&io, "g").await.unwrap();
    let group = Group::open(&io, "g").await.unwrap();
    for (place, name) in [(&io, "a"), (&io, "b"), (&other, "c")] {
        make(place, name).await;
        group.add_image(place, name).await.unwrap();
    }
    (io, other, group)
}

async fn names(group: &Group) -> Vec<String> {
    let images = group.images().await.unwrap();
    images.into_iter().map(|image| image.name).collect()
}

async fn membership(engine: Engine) {
    let (io, other, group) = world(&engine).await;
    assert_eq!(names(&group).await, ["a", "b", "c"]);
    group.add_image(&io, "a").await.unwrap();
    let shown = info::info(&io, ImageKey::Name("a"), None)
        .await
        .unwrap()
        .group
        .unwrap();
    assert_eq!(shown.name, "g");

    group::create(&io, "h").await.unwrap();
    assert_eq!(group::create(&io, "h").await.unwrap_err().errno, Errno::EEXIST);
    let second = Group::open(&io, "h").await.unwrap();
    assert_eq!(second.add_image(&io, "a").await.unwrap_err().errno, Errno::EEXIST);
    assert_eq!(
        second.remove_image(&io, "a").await.unwrap_err().errno,
        Errno::EBADF
    );
    assert!(names(&second).await.is_empty(), "a refused one leaves no link");

    let refused = remove::remove(&io, "a", &Progress::silent()).await.unwrap_err();
    assert_eq!((refused.errno, refused.kind), (Errno::EMLINK, ErrorKind::InGroup));
    let id = directory::list(&io).await.unwrap()["a"].clone();
    trash::move_image(&io, "a", None).await.unwrap();
    assert_eq!(
        names(&group).await,
        ["a", "b", "c"],
        "shown by the name that it had"
    );
    let refused = trash::remove_image(&io, &id, true, &Progress::silent())
        .await
        .unwrap_err();
    assert_eq!(refused.errno, Errno::EMLINK);
    group.remove_image_by_id(&io, &id).await.unwrap();
    group.remove_image_by_id(&io, &id).await.unwrap();
    trash::remove_image(&io, &id, true, &Progress::silent())
        .await
        .unwrap();

    assert_eq!(
        group::rename(&io, "g", "h").await.unwrap_err().errno,
        Errno::EEXIST
    );
    group::rename(&io, "g", "k").await.unwrap();
    assert_eq!(group::list(&io).await.unwrap(), ["h", "k"]);
    let missing = Group::open(&io, "g").await.unwrap_err();
    assert_eq!(missing.kind, ErrorKind::GroupMissing);
    group::remove(&io, "k").await.unwrap();
    group::remove(&io, "k").await.unwrap();
    group::remove(&io, "h").await.unwrap();
    assert!(group::list(&io).await.unwrap().is_empty());
    remove::remove(&other, "c", &Progress::silent()).await.unwrap();
    remove::remove(&io, "b", &Progress::silent()).await.unwrap();
}

async fn snapshots(engine: Engine) {
    let (io, other, group) = world(&engine).await;
    let places = [(&io, "a"), (&io, "b"), (&other, "c")];
    for (place, name) in places {
        write(place, name, 1).await;
    }
    group.create_snapshot("s", true).await.unwrap();
    assert_eq!(
        group.create_snapshot("s", true).await.unwrap_err().errno,
        Errno::EEXIST
    );
    for (place, name) in places {
        write(place, name, 2).await;
    }
    group.create_snapshot("t", false).await.unwrap();
    let record = group.snapshot("s").await.unwrap();
    assert_eq!(record.state, GroupSnapshotState::Complete);
    for (place, name) in places {
        let image = open(place, name).await;
        let mut parts = record.snaps.iter();
        let part = parts.find(|part| part.image_id == image.id()).unwrap();
        let header = image.header();
        let snap = &header.snaps[&part.snap_id];
        let of = group::part_of(place, &snap.namespace).await.unwrap().unwrap();
        assert_eq!((&*of.group, &*of.snapshot), ("g", "s"));
        assert_eq!(header.user_snaps().count(), 0);
        let by_name = OpenOptions::read_only().at(SnapKey::Name(snap.name.clone()));
        let refused = Image::open(place, ImageKey::Name(name), by_name)
            .await
            .unwrap_err();
        assert_eq!(
            refused.kind,
            ErrorKind::SnapMissing,
            "parts have no names for users"
        );
        let refused = image
            .snap_remove(&snap.name, &Progress::silent())
            .await
            .unwrap_err();
        assert_eq!(refused.kind, ErrorKind::SnapMissing);
        image.close().await.unwrap();
        assert_eq!(byte(place, name, Some(part.snap_id)).await, 1);
    }

    group.rename_snapshot("s", "u").await.unwrap();
    for bad in ["t", "u"] {
        assert_eq!(
            group.rename_snapshot("u", bad).await.unwrap_err().errno,
            Errno::EEXIST
        );
    }
    group.roll_back("u", &Progress::silent()).await.unwrap();
    for (place, name) in places {
        assert_eq!(byte(place, name, None).await, 1, "{name}");
    }

    // One that has lost a part rolls nothing back.
    let record = group.snapshot("t").await.unwrap();
    let image = open(&io, "b").await;
    let part = record
        .snaps
        .iter()
        .find(|part| part.image_id == image.id())
        .unwrap();
    image
        .snap_remove_by_id(part.snap_id, &Progress::silent())
        .await
        .unwrap();
    image.close().await.unwrap();
    let refused = group.roll_back("t", &Progress::silent()).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::SnapMissing);
    assert_eq!(byte(&io, "a", None).await, 1);

    // An image that left keeps its parts until the group snapshot goes.
    group.remove_image(&io, "a").await.unwrap();
    let refused = remove::remove(&io, "a", &Progress::silent()).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::HasSnapshots);
    for name in ["t", "u"] {
        let record = group.snapshot(name).await.unwrap();
        group.remove_snapshot(&record).await.unwrap();
    }
    assert!(group.snapshots().await.unwrap().is_empty());
    remove::remove(&io, "a", &Progress::silent()).await.unwrap();
    group::remove(&io, "g").await.unwrap();
}

/// Two clients write ascending numbers, first to `a` and then to `b`, each as an own process. A snapshot that is of one moment
/// never has a number in `b` that is not in `a` yet.
async fn one_moment(engine: Engine) {
    let (io, _, group) = world(&engine).await;
    let stop = Arc::new(AtomicU64::new(0));
    let writer = {
        let store = engine.connect().await;
        let (io, stop) = (IoCtx::new(store, io.scope().clone()), stop.clone());
        tokio::spawn(async move {
            let (a, b) = (open(&io, "a").await, open(&io, "b").await);
            let mut number = 0u64;
            while stop.load(Ordering::SeqCst) == 0 {
                number += 1;
                let bytes = bytes::Bytes::copy_from_slice(&number.to_be_bytes());
                a.write(0, bytes.clone()).await.unwrap();
                b.write(0, bytes).await.unwrap();
            }
            a.close().await.unwrap();
            b.close().await.unwrap();
            number
        })
    };
    let mut seen = Vec::new();
    for turn in 0..8 {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        let name = format!("s{turn}");
        group.create_snapshot(&name, true).await.unwrap();
        let record = group.snapshot(&name).await.unwrap();
        let mut numbers = Vec::new();
        for part in &record.snaps {
            let io = io.with_pool(part.pool_id);
            let options = OpenOptions::read_only().at(SnapKey::Id(part.snap_id));
            let image = Image::open(&io, ImageKey::Id(&part.image_id), options)
                .await
                .unwrap();
            let bytes = image.read(0, 8).await.unwrap();
            numbers.push((image.name(), u64::from_be_bytes(bytes[..].try_into().unwrap())));
            image.close().await.unwrap();
        }
        let number = |name: &str| numbers.iter().find(|(known, _)| known == name).unwrap().1;
        let (a, b) = (number("a"), number("b"));
        assert!(a == b || a == b + 1, "{name}: a has {a}, b has {b}");
        seen.push(a);
    }
    stop.store(1, Ordering::SeqCst);
    let last = writer.await.unwrap();
    assert!(
        seen.is_sorted() && seen[0] < last,
        "the writer went on: {seen:?}, {last}"
    );
    group::remove(&io, "g").await.unwrap();
}

macro_rules! on_engines {
    ($($name:ident: $body:ident on $engine:ident;)*) => {
        $(
            #[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                $body(Engine::$engine()).await;
            }
        )*
    };
}

on_engines! {
    an_image_is_in_one_group_and_goes_only_after_it_left_memory: membership on memory;
    an_image_is_in_one_group_and_goes_only_after_it_left_local: membership on local;
    a_group_snapshot_holds_rolls_back_and_goes_memory: snapshots on memory;
    a_group_snapshot_holds_rolls_back_and_goes_local: snapshots on local;
    a_group_snapshot_is_of_one_moment_under_another_process_s_writer_memory: one_moment on memory;
    a_group_snapshot_is_of_one_moment_under_another_process_s_writer_local: one_moment on local;
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_work_on_a_cluster() {
    for body in [0, 1, 2] {
        let Some(engine) = Engine::ceph() else { return };
        match body {
            0 => membership(engine).await,
            1 => snapshots(engine).await,
            _ => one_moment(engine).await,
        }
    }
}

#[tokio::test]
async fn what_a_killed_add_leaves_is_in_no_snapshot_and_can_be_added_or_removed() {
    use ferry_cls::rbd::{GroupImageSpec, GroupImageStatus, GroupLinkState, client};
    let engine = Engine::memory();
    let (io, _, group) = world(&engine).await;
    make(&io, "late").await;
    let id = directory::list(&io).await.unwrap()["late"].clone();
    let header = ferry_cls::rbd::names::group_header(group.id());
    for image_id in [id, "gone".to_owned()] {
        let status = GroupImageStatus {
            spec: GroupImageSpec {
                image_id,
                pool_id: io.pool(),
            },
            state: GroupLinkState::Incomplete,
        };
        ferry_cls::exec_write(&io, &header, client::group_image_set(&status))
            .await
            .unwrap();
    }
    let images = group.images().await.unwrap();
    let incomplete: Vec<_> = images
        .iter()
        .filter(|image| !image.is_attached)
        .map(|image| &*image.name)
        .collect();
    assert_eq!(incomplete, ["gone", "late"]);
    group.create_snapshot("s", true).await.unwrap();
    assert_eq!(group.snapshot("s").await.unwrap().snaps.len(), 3);
    group.add_image(&io, "late").await.unwrap();
    group.remove_image_by_id(&io, "gone").await.unwrap();
    let images = group.images().await.unwrap();
    assert!(images.len() == 4 && images.iter().all(|image| image.is_attached));
}

#[tokio::test]
async fn an_incomplete_group_snapshot_is_refused_and_removed_with_what_it_has() {
    use ferry_cls::rbd::client;
    let engine = Engine::memory();
    let (io, _, group) = world(&engine).await;
    group.create_snapshot("s", true).await.unwrap();
    let mut record = group.snapshot("s").await.unwrap();
    record.state = GroupSnapshotState::Incomplete;
    let header = ferry_cls::rbd::names::group_header(group.id());
    let forget = client::group_snap_remove(&record.id);
    ferry_cls::exec_write(&io, &header, forget).await.unwrap();
    ferry_cls::exec_write(&io, &header, client::group_snap_set(&record))
        .await
        .unwrap();
    // As a removal that was killed leaves it: one part is in the trash already.
    let image = open(&io, "a").await;
    let part = *image.header().snaps.keys().next().unwrap();
    let object = ferry_cls::rbd::names::header_object(image.id());
    ferry_cls::exec_write(&io, &object, client::snapshot_trash_add(part))
        .await
        .unwrap();
    image.close().await.unwrap();
    let image = open(&io, "a").await;
    let trashed = image
        .header()
        .snaps
        .values()
        .all(|snap| matches!(snap.namespace, SnapshotNamespace::Trash { .. }));
    assert!(trashed);
    image.close().await.unwrap();

    let refused = group.roll_back("s", &Progress::silent()).await.unwrap_err();
    assert_eq!(refused.errno, Errno::EINVAL);
    assert!(group.rename_snapshot("s", "t").await.is_err());
    group.remove_snapshot(&record).await.unwrap();
    for name in ["a", "b"] {
        let image = open(&io, name).await;
        assert!(image.header().snaps.is_empty(), "{name}");
        image.close().await.unwrap();
    }
    assert!(group.snapshots().await.unwrap().is_empty());
}
