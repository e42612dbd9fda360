//! What administration promises, on every engine: outcomes, refusals with their errno and kind, and what is shown.
#![allow(clippy::unwrap_used)] // in helpers of tests

mod support;

use std::io::{Seek as _, SeekFrom, Write as _};
use std::sync::Arc;

use bytes::Bytes;
use ferry_cls::rbd::{TrashImageSource, feature};
use ferry_image::admin::create::CreateOptions;
use ferry_image::admin::import::ImportOptions;
use ferry_image::admin::locks::LockShape;
use ferry_image::admin::{
    create, directory, export, import, info, list, locks, metadata, namespace, pool, remove, rename, status,
    trash, usage,
};
use ferry_image::migration::prepare::{PrepareOptions, prepare};
use ferry_image::{ErrorKind, Image, ImageKey, OpenOptions, Progress, SnapKey};
use ferry_store::wrappers::{Fault, FaultyStore, OpKind};
use ferry_store::{Errno, IoCtx, PoolOptions, Scope, Store, Timestamp};
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

async fn a_new_image_is_what_was_asked_for(on: &str) {
    let (_engine, io) = rbd(on).await;
    io.store()
        .pool_create("data", PoolOptions::default())
        .await
        .unwrap();
    let options = CreateOptions {
        size_bytes: 10 * MIB,
        order: Some(20),
        stripe_unit_bytes: 65536,
        stripe_count: 4,
        data_pool: Some("data".into()),
        features: None,
        format_1: false,
    };
    create::create(&io, "a", &options).await.unwrap();
    let shown = info::info(&io, ImageKey::Name("a"), None).await.unwrap();
    assert_eq!(
        (shown.size_bytes, shown.object_count, shown.order),
        (10 * MIB, 12, 20)
    );
    assert_eq!(
        shown.features,
        feature::DEFAULT | feature::STRIPINGV2 | feature::DATA_POOL
    );
    assert_eq!(shown.striping, Some((65536, 4)));
    assert_eq!(shown.data_pool.as_deref(), Some("data"));
    assert_eq!(
        shown.block_name_prefix,
        format!("rbd_data.{}.{}", io.pool(), shown.id)
    );
    assert_eq!((shown.flags, shown.op_features, shown.snapshot_count), (0, 0, 0));
    assert_eq!(shown.protected, None);
    let image = open(&io, "a").await;
    image.write(0, Bytes::from_static(b"x")).await.unwrap();
    image.close().await.unwrap();
    assert!(trash::list(&io).await.unwrap().is_empty());
}

async fn impossible_images_are_refused_before_anything_is_written(on: &str) {
    let (_engine, io) = rbd(on).await;
    let plain = sized(MIB);
    let cases = [
        ("a/b", plain.clone(), Errno::EINVAL),
        (
            "a",
            CreateOptions {
                order: Some(30),
                ..plain.clone()
            },
            Errno::EDOM,
        ),
        (
            "a",
            CreateOptions {
                stripe_unit_bytes: 3000,
                stripe_count: 2,
                ..plain.clone()
            },
            Errno::EINVAL,
        ),
        (
            "a",
            CreateOptions {
                data_pool: Some("nope".into()),
                ..plain.clone()
            },
            Errno::ENOENT,
        ),
        (
            "a",
            CreateOptions {
                features: Some(feature::OBJECT_MAP),
                ..plain.clone()
            },
            Errno::EINVAL,
        ),
        (
            "a",
            CreateOptions {
                size_bytes: u64::MAX,
                ..plain.clone()
            },
            Errno::EFBIG,
        ),
        (
            "a",
            CreateOptions {
                size_bytes: 1 << 50,
                order: Some(12),
                ..plain.clone()
            },
            Errno::EINVAL,
        ),
    ];
    for (name, options, errno) in cases {
        let error = create::create(&io, name, &options).await.unwrap_err();
        assert_eq!(error.errno, errno, "{options:?}: {error}");
    }
    assert!(objects(&io).await.is_empty());
}

async fn a_name_can_be_used_once(on: &str) {
    let (_engine, io) = rbd(on).await;
    make(&io, "a").await;
    let error = create::create(&io, "a", &sized(MIB)).await.unwrap_err();
    assert_eq!((error.errno, error.kind), (Errno::EEXIST, ErrorKind::ImageExists));
    assert_eq!(list::names(&io).await.unwrap(), ["a"]);
}

async fn of_many_creates_of_one_name_one_wins_and_nothing_else_remains(on: &str) {
    let (engine, io) = rbd(on).await;
    let creates = (0..8).map(|_| {
        let io = io.clone();
        let engine = &engine;
        async move {
            let store = engine.connect().await;
            create::create(&IoCtx::new(store, io.scope().clone()), "a", &sized(MIB)).await
        }
    });
    let results = futures::future::join_all(creates).await;
    let made = results.iter().filter(|result| result.is_ok()).count();
    assert_eq!(made, 1, "{results:?}");
    // What a loser could not clear away itself goes with the next command on that name.
    create::create(&io, "b", &sized(MIB)).await.unwrap();
    remove::remove(&io, "b", &silent()).await.unwrap();
    open(&io, "a").await.close().await.unwrap();
    remove::remove(&io, "a", &silent()).await.unwrap();
    let _ = remove::remove(&io, "a", &silent()).await;
    let left = objects(&io).await;
    assert!(
        left.iter()
            .all(|name| ["rbd_directory", "rbd_trash"].contains(&name.as_str())),
        "{left:?}"
    );
}

async fn an_image_that_is_listed_but_has_no_header_does_not_block_its_name(on: &str) {
    use ferry_cls::rbd::client;
    let (_engine, io) = rbd(on).await;
    // As Ceph's client leaves it when it dies after registering the name.
    ferry_cls::exec_write(&io, "rbd_directory", client::dir_add_image("a", "10aa"))
        .await
        .unwrap();
    make(&io, "a").await;
    ferry_cls::exec_write(&io, "rbd_directory", client::dir_add_image("b", "10bb"))
        .await
        .unwrap();
    let error = remove::remove(&io, "b", &silent()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::ImageMissing);
    assert_eq!(list::names(&io).await.unwrap(), ["a"]);
}

async fn removing_leaves_no_object(on: &str) {
    let (_engine, io) = rbd(on).await;
    make(&io, "a").await;
    let image = open(&io, "a").await;
    image.write(3 * MIB, Bytes::from(vec![7; 5000])).await.unwrap();
    image.snap_create("s", &silent()).await.unwrap();
    image.write(0, Bytes::from(vec![7; 5000])).await.unwrap();
    let error = remove::remove(&io, "a", &silent()).await.unwrap_err();
    assert_eq!(
        (error.errno, error.kind),
        (Errno::ENOTEMPTY, ErrorKind::HasSnapshots)
    );
    image.snap_remove("s", &silent()).await.unwrap();
    let error = remove::remove(&io, "a", &silent()).await.unwrap_err();
    assert_eq!((error.errno, error.kind), (Errno::EBUSY, ErrorKind::HasWatchers));
    image.close().await.unwrap();
    remove::remove(&io, "a", &silent()).await.unwrap();
    assert_eq!(objects(&io).await, ["rbd_directory", "rbd_trash"]);
    let error = remove::remove(&io, "a", &silent()).await.unwrap_err();
    assert_eq!(
        (error.errno, error.kind),
        (Errno::ENOENT, ErrorKind::ImageMissing)
    );
}

async fn both_sides_of_a_migration_cannot_be_removed_or_trashed(on: &str) {
    let (_engine, io) = rbd(on).await;
    let source_id = make(&io, "src").await;
    prepare(&io, "src", &io, "dst", &PrepareOptions::default())
        .await
        .unwrap();
    for result in [
        remove::remove(&io, "dst", &silent()).await,
        trash::move_image(&io, "dst", None).await,
    ] {
        let error = result.unwrap_err();
        assert_eq!(
            (error.errno, error.kind),
            (Errno::EBUSY, ErrorKind::Migrating),
            "{error}"
        );
    }
    let error = trash::remove_image(&io, &source_id, true, &silent())
        .await
        .unwrap_err();
    assert_eq!((error.errno, error.kind), (Errno::EROFS, ErrorKind::Migrating));
    let error = trash::restore(&io, &source_id, None).await.unwrap_err();
    assert_eq!((error.errno, error.kind), (Errno::EINVAL, ErrorKind::TrashSource));
    assert_eq!(trash::purge(&io, Timestamp::now(), &silent()).await.unwrap(), 0);
    let shown = status::status(&io, ImageKey::Name("dst")).await.unwrap();
    let migration = shown.migration.unwrap();
    assert!(shown.watchers.is_empty());
    assert_eq!(
        (
            migration.source.image_name.as_str(),
            migration.source.pool_name.as_str()
        ),
        ("src", "rbd")
    );
    assert_eq!(migration.source.image_id, source_id);
    assert_eq!(migration.dest.image_name, "dst");
    assert_eq!(migration.state.name(), "prepared");
    // The source, by its id, shows the same two.
    let from_source = status::status(&io, ImageKey::Id(&source_id))
        .await
        .unwrap()
        .migration
        .unwrap();
    assert_eq!(from_source, migration);
    // The target can be renamed.
    rename::rename(&io, "dst", "dst2").await.unwrap();
    open(&io, "dst2").await.close().await.unwrap();
}

async fn renaming_moves_the_name_and_nothing_else(on: &str) {
    let (_engine, io) = rbd(on).await;
    let id = make(&io, "a").await;
    make(&io, "b").await;
    for (from, to, kind) in [
        ("a", "b", ErrorKind::ImageExists),
        ("a", "a", ErrorKind::ImageExists),
        ("nosuch", "c", ErrorKind::ImageMissing),
    ] {
        assert_eq!(
            rename::rename(&io, from, to).await.unwrap_err().kind,
            kind,
            "{from} to {to}"
        );
    }
    rename::rename(&io, "a", "c").await.unwrap();
    assert_eq!(list::names(&io).await.unwrap(), ["b", "c"]);
    assert_eq!(directory::id_of_name(&io, "c").await.unwrap().unwrap(), id);
    assert_eq!(directory::id_of_name(&io, "a").await.unwrap(), None);
    make(&io, "a").await;
}

async fn renaming_an_open_image_is_done_by_its_lock_owner(on: &str) {
    let (engine, io) = rbd(on).await;
    make(&io, "a").await;
    let image = open(&io, "a").await;
    image.write(0, Bytes::from_static(b"owner")).await.unwrap();
    let other = IoCtx::new(engine.connect().await, io.scope().clone());
    rename::rename(&other, "a", "b").await.unwrap();
    assert_eq!(image.name(), "b");
    make(&other, "c").await;
    let error = rename::rename(&other, "b", "c").await.unwrap_err();
    assert_eq!((error.errno, error.kind), (Errno::EEXIST, ErrorKind::ImageExists));
    image.write(0, Bytes::from_static(b"still")).await.unwrap();
    image.close().await.unwrap();
}

async fn the_trash_gives_back_what_it_took(on: &str) {
    let (_engine, io) = rbd(on).await;
    let id = make(&io, "a").await;
    let image = open(&io, "a").await;
    image.write(5, Bytes::from_static(b"kept")).await.unwrap();
    image.snap_create("s", &silent()).await.unwrap();
    let error = trash::move_image(&io, "a", None).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::HasWatchers);
    image.close().await.unwrap();
    let end = Timestamp {
        seconds: Timestamp::now().seconds + 1000,
        nanoseconds: 0,
    };
    trash::move_image(&io, "a", Some(end)).await.unwrap();
    assert!(list::names(&io).await.unwrap().is_empty());
    let entry = trash::get(&io, &id).await.unwrap();
    assert_eq!((entry.name.as_str(), entry.source), ("a", TrashImageSource::User));
    assert_eq!(entry.deferment_end_time, end);
    let error = trash::remove_image(&io, &id, false, &silent()).await.unwrap_err();
    assert_eq!((error.errno, error.kind), (Errno::EPERM, ErrorKind::NotExpired));
    let error = trash::remove_image(&io, &id, true, &silent()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::HasSnapshots);
    assert_eq!(
        trash::purge(&io, Timestamp::now(), &silent()).await.unwrap(),
        0,
        "protected"
    );
    let other = make(&io, "a").await;
    let error = trash::restore(&io, &id, None).await.unwrap_err();
    assert_eq!((error.errno, error.kind), (Errno::EEXIST, ErrorKind::ImageExists));
    trash::restore(&io, &id, Some("b")).await.unwrap();
    assert!(trash::list(&io).await.unwrap().is_empty());
    let image = open(&io, "b").await;
    assert_eq!(
        (image.id(), image.read(5, 4).await.unwrap().as_ref()),
        (id.as_str(), &b"kept"[..])
    );
    image.close().await.unwrap();
    trash::move_image(&io, "a", None).await.unwrap();
    assert_eq!(trash::purge(&io, Timestamp::now(), &silent()).await.unwrap(), 1);
    assert_eq!(
        trash::remove_image(&io, &other, false, &silent())
            .await
            .unwrap_err()
            .kind,
        ErrorKind::ImageMissing
    );
}

async fn pools_with_something_in_them_stay(on: &str) {
    let (_engine, io) = rbd(on).await;
    let store = io.store();
    pool::create(store, "data", PoolOptions::default()).await.unwrap();
    let options = CreateOptions {
        data_pool: Some("data".into()),
        ..sized(4 * MIB)
    };
    create::create(&io, "a", &options).await.unwrap();
    let image = open(&io, "a").await;
    image.write(0, Bytes::from_static(b"x")).await.unwrap();
    image.snap_create("s", &silent()).await.unwrap();
    image.resize(2 * MIB, true, &silent()).await.unwrap();
    image.close().await.unwrap();
    for name in ["rbd", "data"] {
        assert_eq!(
            pool::remove(store, name).await.unwrap_err().errno,
            Errno::EBUSY,
            "{name}"
        );
    }
    let stats = pool::stats(&io).await.unwrap();
    assert_eq!((stats.images.count, stats.images.snap_count), (1, 1));
    assert_eq!(
        stats.images.provisioned_bytes,
        4 * MIB,
        "the largest of head and snapshots"
    );
    assert_eq!(
        pool::remove(store, "nope").await.unwrap_err().kind,
        ErrorKind::PoolMissing
    );
    let image = open(&io, "a").await;
    image.snap_remove("s", &silent()).await.unwrap();
    image.close().await.unwrap();
    trash::move_image(&io, "a", None).await.unwrap();
    let stats = pool::stats(&io).await.unwrap();
    assert_eq!((stats.images.count, stats.trash.count), (0, 1));
    assert_eq!(
        pool::remove(store, "rbd").await.unwrap_err().errno,
        Errno::EBUSY,
        "trash counts"
    );
    trash::purge(&io, Timestamp::now(), &silent()).await.unwrap();
    for name in ["data", "rbd"] {
        pool::remove(store, name).await.unwrap();
    }
    assert!(pool::list(store).await.unwrap().is_empty());
}

async fn a_pool_is_prepared_once_and_stays_so(on: &str) {
    let (_engine, io) = rbd(on).await;
    pool::init(&io).await.unwrap();
    pool::init(&io).await.unwrap();
    let op = ferry_store::ReadOp::new().read(0, 100);
    let reply = io.read("rbd_info", ferry_store::SnapId::HEAD, op).await.unwrap();
    assert_eq!(reply.data(0).as_ref(), b"overwrite validated");
}

async fn namespaces_keep_images_apart(on: &str) {
    let (_engine, io) = rbd(on).await;
    let inside = io.with_namespace("ns1");
    let error = create::create(&inside, "a", &sized(MIB)).await.unwrap_err();
    assert_eq!(
        (error.errno, error.kind),
        (Errno::ENOENT, ErrorKind::NamespaceMissing)
    );
    namespace::create(&io, "ns1").await.unwrap();
    assert_eq!(
        namespace::create(&io, "ns1").await.unwrap_err().errno,
        Errno::EEXIST
    );
    assert_eq!(
        namespace::create(&io, "a/b").await.unwrap_err().errno,
        Errno::EINVAL
    );
    assert_eq!(namespace::list(&io).await.unwrap(), ["ns1"]);
    make(&inside, "a").await;
    make(&io, "a").await;
    assert_eq!(
        namespace::remove(&io, "ns1").await.unwrap_err().errno,
        Errno::EBUSY
    );
    trash::move_image(&inside, "a", None).await.unwrap();
    assert_eq!(
        namespace::remove(&io, "ns1").await.unwrap_err().errno,
        Errno::EBUSY,
        "trash counts"
    );
    trash::purge(&inside, Timestamp::now(), &silent()).await.unwrap();
    namespace::remove(&io, "ns1").await.unwrap();
    let error = namespace::remove(&io, "ns1").await.unwrap_err();
    assert_eq!(
        (error.errno, error.kind),
        (Errno::ENOENT, ErrorKind::NamespaceMissing)
    );
    assert!(objects(&inside).await.is_empty());
    assert_eq!(list::names(&io).await.unwrap(), ["a"]);
    assert_eq!(
        pool::open(io.store(), "rbd", "ns1").await.unwrap_err().kind,
        ErrorKind::NamespaceMissing
    );
}

async fn metadata_is_kept_with_the_image(on: &str) {
    let (_engine, io) = rbd(on).await;
    make(&io, "a").await;
    let image = open(&io, "a").await;
    metadata::set(&image, "k", Bytes::from_static(b"v"))
        .await
        .unwrap();
    assert_eq!(metadata::get(&image, "k").await.unwrap(), "v");
    assert_eq!(metadata::list(&image).await.unwrap().len(), 1);
    metadata::remove(&image, "k").await.unwrap();
    assert_eq!(
        metadata::remove(&image, "k").await.unwrap_err().errno,
        Errno::ENOENT
    );
    image.close().await.unwrap();
}

async fn listings_show_snapshots_and_locks(on: &str) {
    let (_engine, io) = rbd(on).await;
    make(&io, "b").await;
    make(&io, "a").await;
    let image = open(&io, "a").await;
    image.write(0, Bytes::from_static(b"x")).await.unwrap();
    for snap in ["s2", "s1"] {
        image.snap_create(snap, &silent()).await.unwrap();
    }
    image.snap_protect("s1").await.unwrap();
    let listing = list::long(&io).await.unwrap();
    let rows: Vec<_> = listing
        .entries
        .iter()
        .map(|entry| {
            (
                entry.name.as_str(),
                entry.snapshot.as_ref().map(|(name, _)| name.as_str()),
                entry.protected,
                entry.lock,
            )
        })
        .collect();
    let excl = Some(LockShape::Exclusive);
    assert_eq!(
        rows,
        [
            ("a", None, false, excl),
            ("a", Some("s2"), false, None),
            ("a", Some("s1"), true, None),
            ("b", None, false, None)
        ]
    );
    assert!(listing.failed.is_empty());
    let held = locks::list(&io, "a").await.unwrap().unwrap();
    assert_eq!(
        (held.shape, held.tag.as_str(), held.lockers.len()),
        (LockShape::Exclusive, "internal", 1)
    );
    assert_eq!(held.lockers[0].client, io.store().instance().to_string());
    assert!(held.lockers[0].cookie.starts_with("auto "), "{held:?}");
    let watchers = status::status(&io, ImageKey::Name("a")).await.unwrap().watchers;
    assert_eq!(watchers.len(), 1);
    let at = info::info(&io, ImageKey::Name("a"), Some(&SnapKey::Name("s1".into())))
        .await
        .unwrap();
    assert_eq!((at.protected, at.snapshot_count), (Some(true), 2));
    image.close().await.unwrap();
    assert_eq!(locks::list(&io, "a").await.unwrap(), None);
    assert_eq!(
        status::status(&io, ImageKey::Name("a")).await.unwrap().watchers,
        []
    );
}

async fn a_damaged_header_is_named_and_does_not_hide_the_others(on: &str) {
    let (_engine, io) = rbd(on).await;
    make(&io, "a").await;
    let id = make(&io, "b").await;
    let key = Bytes::from_static(b"snap_seq");
    let op = ferry_store::WriteOp::new().step(ferry_store::WriteStep::OmapSet(
        [(key, Bytes::from_static(b"?"))].into_iter().collect(),
    ));
    io.write_meta(&format!("rbd_header.{id}"), op).await.unwrap();
    let listing = list::long(&io).await.unwrap();
    assert_eq!(listing.entries.len(), 1);
    assert_eq!((listing.failed.len(), listing.failed[0].0.as_str()), (1, "b"));
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

fn used(usage: &usage::ImageUsage) -> Vec<u64> {
    usage.rows.iter().map(|row| row.used_bytes).collect()
}

async fn usage_is_what_was_written_since_the_snapshot_before(on: &str) {
    for features in [None, Some(feature::LAYERING)] {
        let (_engine, io) = rbd(on).await;
        let image = image_with_history(&io, features).await;
        let whole = usage::usage(&io, "a", None, false).await.unwrap();
        assert_eq!(whole.from_object_maps, features.is_none());
        assert_eq!(used(&whole), [2 * MIB + 4096, MIB, MIB], "{features:?}");
        let names: Vec<_> = whole
            .rows
            .iter()
            .map(|row| row.snapshot.as_ref().map(|snap| &snap.0[..]))
            .collect();
        assert_eq!(names, [Some("s1"), Some("s2"), None]);
        assert!(
            whole
                .rows
                .iter()
                .all(|row| row.provisioned_bytes == 5 * MIB + 4096)
        );
        let exact = usage::usage(&io, "a", None, true).await.unwrap();
        assert_eq!(used(&exact), [16384, 4096, 4096], "{features:?}");
        let one = usage::usage(&io, "a", Some(&SnapKey::Name("s2".into())), false)
            .await
            .unwrap();
        assert_eq!(used(&one), [2 * MIB + 4096, MIB], "up to the snapshot");
        image.close().await.unwrap();
    }
}

async fn exports_are_sparse_and_byte_exact(on: &str) {
    let (_engine, io) = rbd(on).await;
    let image = image_with_history(&io, None).await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("head.raw");
    export::to_file(&image, &path, &silent()).await.unwrap();
    let mut expected = vec![0; (5 * MIB + 4096) as usize];
    expected[MIB as usize..][..4096].fill(1);
    expected[MIB as usize + 4096..][..4096].fill(2);
    expected[2 * MIB as usize..][..4096].fill(3);
    expected[5 * MIB as usize..].fill(1);
    assert!(std::fs::read(&path).unwrap() == expected);
    let blocks = std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(&path).unwrap());
    assert!(blocks * 512 < MIB, "{blocks} blocks");
    let error = export::to_file(&image, &path, &silent()).await.unwrap_err();
    assert_eq!(error.errno, Errno::EEXIST);
    let mut pipe = Vec::new();
    export::to_writer(&image, &mut pipe, &silent()).await.unwrap();
    assert!(pipe == expected);
    let at = OpenOptions::read_only().at(SnapKey::Name("s1".into()));
    let snap = Image::open(&io, ImageKey::Name("a"), at).await.unwrap();
    let mut pipe = Vec::new();
    export::to_writer(&snap, &mut pipe, &silent()).await.unwrap();
    expected[..4096].fill(1);
    expected[MIB as usize..][..8192].fill(1);
    expected[2 * MIB as usize..][..4096].fill(0);
    assert!(pipe == expected);
    snap.close().await.unwrap();
    image.close().await.unwrap();
}

async fn a_failed_export_leaves_no_file(on: &str) {
    let (_engine, io) = rbd(on).await;
    image_with_history(&io, None).await.close().await.unwrap();
    let faulty = FaultyStore::new(io.store().clone());
    let image = open(&IoCtx::new(faulty.clone(), io.scope().clone()), "a").await;
    faulty.hook().add(
        Fault::new(OpKind::Read, Errno::EIO)
            .on("rbd_data.")
            .times(u64::MAX),
    );
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("half.raw");
    assert_eq!(
        export::to_file(&image, &path, &silent()).await.unwrap_err().errno,
        Errno::EIO
    );
    assert!(!path.exists());
    image.close().await.unwrap();
}

async fn imports_of_files_keep_holes_and_leave_zeros_out(on: &str) {
    let (_engine, io) = rbd(on).await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.raw");
    let mut file = std::fs::File::create(&path).unwrap();
    file.write_all(&[5; 3000]).unwrap();
    file.seek(SeekFrom::Start(6 * MIB)).unwrap();
    file.write_all(&[6; 100]).unwrap();
    // Zeros that are written, not a hole.
    file.seek(SeekFrom::Start(7 * MIB)).unwrap();
    file.write_all(&vec![0; MIB as usize]).unwrap();
    file.set_len(9 * MIB + 77).unwrap();
    let options = ImportOptions {
        create: sized(0),
        ..ImportOptions::default()
    };
    import::from_path(&io, "a", &path, &options, &silent())
        .await
        .unwrap();
    let image = open(&io, "a").await;
    assert_eq!(image.size_bytes(), 9 * MIB + 77);
    let mut back = Vec::new();
    export::to_writer(&image, &mut back, &silent()).await.unwrap();
    assert!(back == std::fs::read(&path).unwrap());
    image.close().await.unwrap();
    let data = io
        .store()
        .list_objects(io.scope(), "rbd_data.", "", 100)
        .await
        .unwrap();
    assert_eq!(data.len(), 2, "{data:?}");
    assert!(trash::list(&io).await.unwrap().is_empty());
    let error = import::from_path(&io, "a", &path, &options, &silent())
        .await
        .unwrap_err();
    assert_eq!(error.kind, ErrorKind::ImageExists);
    let error = import::from_path(&io, "b", &dir.path().join("no"), &options, &silent())
        .await
        .unwrap_err();
    assert_eq!(error.errno, Errno::ENOENT);
    let odd = ImportOptions {
        sparse_size_bytes: 3000,
        ..options
    };
    assert_eq!(
        import::from_path(&io, "b", &path, &odd, &silent())
            .await
            .unwrap_err()
            .errno,
        Errno::EINVAL
    );
    assert_eq!(list::names(&io).await.unwrap(), ["a"]);
}

async fn imports_of_pipes_end_with_the_size_that_came(on: &str) {
    for length in [0u64, 1, 4 * MIB, 70 * MIB + 123] {
        let (_engine, io) = rbd(on).await;
        let data: Vec<u8> = (0..length).map(|at| (at / 100_000 % 3) as u8).collect();
        let mut pipe = &data[..];
        let options = ImportOptions::default();
        import::from_reader(&io, "a", &mut pipe, &options, &silent())
            .await
            .unwrap();
        let image = open(&io, "a").await;
        assert_eq!(image.size_bytes(), length);
        let mut back = Vec::new();
        export::to_writer(&image, &mut back, &silent()).await.unwrap();
        assert!(back == data, "{length}");
        assert_eq!(
            ferry_image::object_map::rebuild::verify(&image, &silent())
                .await
                .unwrap(),
            []
        );
        image.close().await.unwrap();
    }
}

/// A pipe that breaks.
struct Broken(u64);

impl tokio::io::AsyncRead for Broken {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
        buffer: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        if self.0 == 0 {
            return std::task::Poll::Ready(Err(std::io::ErrorKind::BrokenPipe.into()));
        }
        let length = buffer.remaining().min(self.0 as usize);
        buffer.initialize_unfilled_to(length).fill(9);
        buffer.advance(length);
        self.0 -= length as u64;
        std::task::Poll::Ready(Ok(()))
    }
}

async fn a_failed_import_leaves_nothing(on: &str) {
    let (_engine, io) = rbd(on).await;
    let options = ImportOptions {
        create: sized(0),
        ..ImportOptions::default()
    };
    let error = import::from_reader(&io, "a", &mut Broken(9 * MIB), &options, &silent())
        .await
        .unwrap_err();
    assert_eq!(error.errno, Errno::EIO, "{error}");
    let left = objects(&io).await;
    assert!(
        left.iter()
            .all(|name| ["rbd_directory", "rbd_trash"].contains(&name.as_str())),
        "{left:?}"
    );
    assert!(trash::list(&io).await.unwrap().is_empty());
    // Out of space in the middle.
    let faulty = FaultyStore::new(io.store().clone());
    faulty.hook().add(
        Fault::new(OpKind::Write, Errno::ENOSPC)
            .on("rbd_data.")
            .skipping(3)
            .times(u64::MAX),
    );
    let full = IoCtx::new(faulty, io.scope().clone());
    let data = vec![1; 8 << 20];
    let error = import::from_reader(&full, "a", &mut &data[..], &options, &silent())
        .await
        .unwrap_err();
    assert_eq!(error.errno, Errno::ENOSPC);
    // Removing needs writes to the data too, which fail here; the next command clears up.
    import::from_reader(&io, "a", &mut &data[..], &options, &silent())
        .await
        .unwrap();
    remove::remove(&io, "a", &silent()).await.unwrap();
    assert!(
        io.store()
            .list_objects(io.scope(), "rbd_data.", "", 100)
            .await
            .unwrap()
            .is_empty()
    );
}

async fn an_image_being_imported_is_not_cleared_away_by_others(on: &str) {
    let (engine, io) = rbd(on).await;
    let (mut writer, mut reader) = tokio::io::duplex(1 << 16);
    let importing = {
        let io = io.clone();
        tokio::spawn(async move {
            let options = ImportOptions::default();
            import::from_reader(&io, "a", &mut reader, &options, &Progress::silent()).await
        })
    };
    use tokio::io::AsyncWriteExt as _;
    writer.write_all(&vec![4; 5 << 20]).await.unwrap();
    let store: Arc<dyn Store> = engine.connect().await;
    let other = IoCtx::new(store, Scope::clone(io.scope()));
    let error = remove::remove(&other, "a", &silent()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::HasWatchers, "{error}");
    assert_eq!(
        trash::purge(&other, Timestamp::now(), &silent()).await.unwrap(),
        0
    );
    create::create(&other, "b", &sized(MIB)).await.unwrap();
    // Somebody takes the name meanwhile: the import says so, and its image goes.
    create::create(&other, "a", &sized(MIB)).await.unwrap();
    drop(writer);
    let error = importing.await.unwrap().unwrap_err();
    assert_eq!(error.kind, ErrorKind::ImageExists, "{error}");
    assert_eq!(list::names(&io).await.unwrap(), ["a", "b"]);
    assert!(trash::list(&io).await.unwrap().is_empty());
    assert!(
        io.store()
            .list_objects(io.scope(), "rbd_data.", "", 100)
            .await
            .unwrap()
            .is_empty()
    );
}

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

on_every_engine! {
    a_new_image_is_what_was_asked_for,
    impossible_images_are_refused_before_anything_is_written,
    a_name_can_be_used_once,
    of_many_creates_of_one_name_one_wins_and_nothing_else_remains,
    an_image_that_is_listed_but_has_no_header_does_not_block_its_name,
    removing_leaves_no_object,
    both_sides_of_a_migration_cannot_be_removed_or_trashed,
    renaming_moves_the_name_and_nothing_else,
    renaming_an_open_image_is_done_by_its_lock_owner,
    the_trash_gives_back_what_it_took,
    pools_with_something_in_them_stay,
    a_pool_is_prepared_once_and_stays_so,
    namespaces_keep_images_apart,
    metadata_is_kept_with_the_image,
    listings_show_snapshots_and_locks,
    a_damaged_header_is_named_and_does_not_hide_the_others,
    usage_is_what_was_written_since_the_snapshot_before,
    exports_are_sparse_and_byte_exact,
    a_failed_export_leaves_no_file,
    imports_of_files_keep_holes_and_leave_zeros_out,
    imports_of_pipes_end_with_the_size_that_came,
    a_failed_import_leaves_nothing,
    an_image_being_imported_is_not_cleared_away_by_others,
}
