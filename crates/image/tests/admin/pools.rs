//! Pools and namespaces, and the settings of pools.

use bytes::Bytes;
use ferry_image::ErrorKind;
use ferry_image::admin::create::CreateOptions;
use ferry_image::admin::{config, create, list, namespace, pool, trash};
use ferry_store::{Errno, IoCtx, PoolOptions, Timestamp};

use super::{MIB, make, objects, open, rbd, silent, sized};

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

/// When Ceph's running clients were told last that settings of pools have changed.
async fn told(io: &IoCtx) -> Option<String> {
    let settings = io.store().settings().await.unwrap().into_iter();
    let mut told = settings.filter(|setting| setting.name == "rbd_config_pool_override_update_timestamp");
    told.next().map(|setting| setting.value)
}

async fn running_clients_are_told_of_a_setting_that_a_killed_removal_took_away(on: &str) {
    let (_engine, io) = rbd(on).await;
    pool::init(&io).await.unwrap();
    assert_eq!(told(&io).await, None);
    // As it is when the first run died behind its first step.
    assert!(
        !config::remove_of_pool(&io, config::CLONE_COPY_ON_READ)
            .await
            .unwrap()
    );
    assert!(told(&io).await.is_some());
}

on_every_engine! {
    running_clients_are_told_of_a_setting_that_a_killed_removal_took_away,
    pools_with_something_in_them_stay,
    a_pool_is_prepared_once_and_stays_so,
    namespaces_keep_images_apart,
}
