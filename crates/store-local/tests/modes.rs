//! Nobody but its owner gets at a store. The process's mask is 0 here, so this file has one test.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use common::{full, io, open};
use ferry_store::watch::Notification;
use ferry_store::{Errno, PoolOptions, SnapContext, Store, WatchHandler};
use rustix::fs::Mode;

struct Silent;

#[async_trait]
impl WatchHandler for Silent {
    async fn notified(&self, _: Notification) -> Bytes {
        Bytes::new()
    }

    async fn lost(&self, _: Errno) {}
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[tokio::test]
async fn stores_pools_and_sockets_are_closed_to_others_whatever_the_mask_says() {
    rustix::process::umask(Mode::empty());
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path().join("made/store");
    let elsewhere = scratch.path().join("disk");
    // As a mounted disk is: there, empty, and open to all.
    fs::create_dir(&elsewhere).unwrap();
    fs::set_permissions(&elsewhere, fs::Permissions::from_mode(0o755)).unwrap();
    let store = open(&root, None).unwrap();
    let options = PoolOptions {
        dir: Some(elsewhere.clone()),
    };
    store.pool_create("far", options).await.unwrap();
    let io = io(&store);
    io.write("object", &SnapContext::default(), full().write(0, vec![1; 100]))
        .await
        .unwrap();
    store.watch(io.object("object"), Arc::new(Silent)).await.unwrap();

    for directory in [&scratch.path().join("made"), &root, &root.join("run"), &elsewhere] {
        assert_eq!(mode(directory), 0o700, "{}", directory.display());
    }
    let sockets: Vec<_> = fs::read_dir(root.join("run"))
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.file_type().unwrap().is_socket())
        .collect();
    assert!(!sockets.is_empty());
    for socket in sockets {
        assert_eq!(mode(&socket.path()), 0o600, "{}", socket.path().display());
    }

    // What an operator opened afterwards stays open.
    fs::set_permissions(&root, fs::Permissions::from_mode(0o750)).unwrap();
    let again = open(&root, None).unwrap();
    assert_eq!(mode(&root), 0o750);
    again.shutdown().await.unwrap();
    store.shutdown().await.unwrap();
}
