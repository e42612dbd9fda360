//! Images are made, renamed, removed, put into the trash and taken out of it; their metadata.

use bytes::Bytes;
use ferry_cls::rbd::{TrashImageSource, feature};
use ferry_image::admin::create::CreateOptions;
use ferry_image::admin::{create, directory, info, list, metadata, remove, rename, status, trash};
use ferry_image::migration::prepare::{PrepareOptions, prepare};
use ferry_image::{ErrorKind, ImageKey};
use ferry_store::{Errno, IoCtx, PoolOptions, Timestamp};

use super::{MIB, make, objects, open, rbd, silent, sized};

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
    metadata_is_kept_with_the_image,
}
