//! The local engine keeps the store contract, on the machine's own disk, and on a simulated one
//! that loses power: with and without files that share blocks.

// All of this file is test; the lint spares only functions that carry the attribute.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use ferry_store::Store;
use ferry_store::class::ClassRegistry;
use ferry_store::conformance::{self, Harness};
use ferry_store_local::disk::Disk;
use ferry_store_local::disk::sim::SimDisk;
use ferry_store_local::{LocalOptions, LocalStore};

/// Clients in this process, each with its own descriptors and locks, as if in processes of their own.
struct LocalHarness {
    root: tempfile::TempDir,
    sim: Option<SimDisk>,
    clients: Mutex<HashMap<u64, Arc<LocalStore>>>,
}

impl LocalHarness {
    fn real() -> Self {
        Self::on(None)
    }

    fn on(sim: Option<SimDisk>) -> Self {
        Self {
            root: tempfile::tempdir().unwrap(),
            sim,
            clients: Mutex::default(),
        }
    }
}

#[async_trait]
impl Harness for LocalHarness {
    async fn client(&self) -> Arc<dyn Store> {
        let mut registry = ClassRegistry::new();
        conformance::register_test_class(&mut registry);
        let disk = self.sim.clone().map(|sim| Arc::new(sim) as Arc<dyn Disk>);
        let options = LocalOptions { registry, disk };
        let store = LocalStore::open(&self.root.path().join("store"), options).unwrap();
        self.clients
            .lock()
            .unwrap()
            .insert(store.instance().gid, store.clone());
        store
    }

    async fn kill(&self, client: Arc<dyn Store>) -> bool {
        let store = self.clients.lock().unwrap().remove(&client.instance().gid);
        store.unwrap().abandon();
        true
    }

    async fn power_loss(&self, seed: u64) -> bool {
        let Some(sim) = &self.sim else { return false };
        for (_, store) in self.clients.lock().unwrap().drain() {
            store.abandon();
        }
        sim.crash(seed);
        true
    }
}

mod real_disk {
    use super::*;

    ferry_store::conformance_tests! { LocalHarness::real() }
}

mod simulated_disk {
    use super::*;

    ferry_store::conformance_tests! { LocalHarness::on(Some(SimDisk::new())) }
}

mod simulated_disk_with_reflinks {
    use super::*;

    ferry_store::conformance_tests! { LocalHarness::on(Some(SimDisk::with_reflinks())) }
}

async fn long_history(sim: Option<SimDisk>, steps: usize) {
    let seed = ferry_reference::drawn();
    if let Err(failure) = conformance::model::run(Arc::new(LocalHarness::on(sim)), seed, steps).await {
        panic!("{failure}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_random_histories_agree_with_the_reference() {
    long_history(None, 600).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_random_histories_agree_with_the_reference_where_files_share_blocks() {
    long_history(Some(SimDisk::with_reflinks()), 600).await;
}
