//! What an OSD refuses is told with its place and what to do about it.
//!
//! On the cluster that `FERRY_TEST_CEPH` names; without it the tests say that they were left out.

// All of this file is test; the lint spares only functions that carry the attribute.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ferry_store::{Errno, IoCtx, PoolId, ReadOp, ReadStep, Scope, Store, WriteOp, WriteStep};
use ferry_store_ceph::{CephConfig, CephStore};

/// A place of this test's own.
async fn place() -> Option<IoCtx> {
    let Some(conf) = std::env::var_os("FERRY_TEST_CEPH") else {
        eprintln!("LEFT OUT: FERRY_TEST_CEPH names no cluster");
        return None;
    };
    let config = CephConfig {
        conf: Some(conf.into()),
        op_timeout: Some(Duration::from_secs(120)),
        ..CephConfig::default()
    };
    let store: Arc<dyn Store> = CephStore::connect(config).await.unwrap();
    let pools = store.pool_list().await.unwrap();
    let pool = pools.iter().find(|pool| pool.name == "rbd").unwrap().id;
    let namespace = format!("errors-{:016x}", rand::random::<u64>());
    Some(IoCtx::new(store, Scope::with_namespace(pool, &namespace)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_class_method_that_the_osd_does_not_have_is_named() {
    let Some(io) = place().await else { return };
    io.write_meta("o", WriteOp::new().write(0, "x")).await.unwrap();
    // A class that is not on the OSD's list is not permitted; one that is may be too old.
    let unlisted = (Errno::EPERM, "class 'class_of_the_future' is refused");
    let too_old = (
        Errno::EOPNOTSUPP,
        "no method 'method_of_the_future' of class 'rbd'",
    );
    for (class, method, (errno, named)) in [
        ("rbd", "method_of_the_future", too_old),
        ("class_of_the_future", "method", unlisted),
    ] {
        let write = WriteStep::Call {
            class,
            method,
            input: Bytes::new(),
        };
        let read = ReadStep::Call {
            class,
            method,
            input: Bytes::new(),
        };
        let written = io
            .write_meta("o", WriteOp::new().write(0, "y").step(write))
            .await
            .unwrap_err();
        let found = io
            .read("o", ferry_store::SnapId::HEAD, ReadOp::new().stat().step(read))
            .await;
        for error in [written, found.unwrap_err()] {
            assert_eq!(error.errno, errno, "{error}");
            assert!(
                error.what.contains(named) && error.what.contains("object 'o'"),
                "{error}"
            );
        }
    }
    let read = io
        .read("o", ferry_store::SnapId::HEAD, ReadOp::new().read(0, 10))
        .await
        .unwrap();
    assert_eq!(read.data(0), "x", "half an operation was done");
    io.store().shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_was_fenced_knows_it_after_its_next_word() {
    let Some(io) = place().await else { return };
    let Some(other) = place().await else { return };
    assert!(!io.store().is_fenced());
    other.store().blocklist_add(&io.store().instance()).await.unwrap();
    // The OSD may hear of it a moment later than we.
    let mut last = None;
    for _ in 0..6000 {
        match io.write_meta("o", WriteOp::new().write(0, "x")).await {
            Ok(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            Err(error) => {
                last = Some(error);
                break;
            }
        }
    }
    let error = last.unwrap();
    assert_eq!(error.errno, Errno::ESHUTDOWN, "{error}");
    assert!(error.what.contains("fenced"), "{error}");
    assert!(io.store().is_fenced() && !other.store().is_fenced());
    other.store().shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_room_of_a_pool_is_told_once_a_manager_has_reported() {
    let Some(io) = place().await else { return };
    // A manager's first reports know nothing of this pool.
    let mut seen = None;
    for _ in 0..40 {
        seen = io.store().space(io.pool()).await.unwrap();
        if seen.is_some_and(|space| space.free_bytes > 0) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    match seen {
        Some(space) if space.free_bytes > 0 => {
            let usage = io.store().pool_usage(io.pool()).await.unwrap();
            println!("{space:?}, {usage:?}");
            assert!(space.total_bytes >= space.free_bytes, "{space:?}");
        }
        other => eprintln!("LEFT OUT: no manager has reported yet ({other:?})"),
    }
    let nowhere = io.store().space(PoolId(1 << 40)).await.unwrap();
    assert_eq!(nowhere, None);
}
