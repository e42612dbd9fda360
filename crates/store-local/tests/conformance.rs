//! The local engine keeps the store contract, on the machine's own disk.

// All of this file is test; the lint spares only functions that carry the attribute.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use ferry_store::Store;
use ferry_store::class::ClassRegistry;
use ferry_store::conformance::{self, Harness};
use ferry_store_local::{LocalOptions, LocalStore};

struct LocalHarness {
    root: tempfile::TempDir,
    clients: Mutex<HashMap<u64, Arc<LocalStore>>>,
}

impl LocalHarness {
    fn new() -> Self {
        Self {
            root: tempfile::tempdir().unwrap(),
            clients: Mutex::default(),
        }
    }
}

#[async_trait]
impl Harness for LocalHarness {
    async fn client(&self) -> Arc<dyn Store> {
        let mut registry = ClassRegistry::new();
        conformance::register_test_class(&mut registry);
        let options = LocalOptions { registry, disk: None };
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
}

ferry_store::conformance_tests! { LocalHarness::new() }

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_random_histories_agree_with_the_reference() {
    let seed = rand::random();
    if let Err(failure) = conformance::model::run(Arc::new(LocalHarness::new()), seed, 600).await {
        panic!("{failure}");
    }
}
