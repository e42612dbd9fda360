//! The memory engine keeps the store contract.

use std::sync::Arc;

use async_trait::async_trait;
use ferry_store::Store;
use ferry_store::class::ClassRegistry;
use ferry_store::conformance::{self, Harness};
use ferry_store::memory::MemoryCluster;

struct MemoryHarness(MemoryCluster);

impl MemoryHarness {
    fn new() -> Self {
        let mut classes = ClassRegistry::new();
        conformance::register_test_class(&mut classes);
        Self(MemoryCluster::new(classes))
    }
}

#[async_trait]
impl Harness for MemoryHarness {
    async fn client(&self) -> Arc<dyn Store> {
        self.0.connect()
    }

    async fn kill(&self, client: Arc<dyn Store>) -> bool {
        self.0.kill(&client.instance());
        true
    }

    async fn power_loss(&self, seed: u64) -> bool {
        self.0.power_loss(seed);
        true
    }
}

ferry_store::conformance_tests! { MemoryHarness::new() }

#[tokio::test]
async fn the_model_may_be_run_with_any_seed() {
    let seed = rand::random();
    if let Err(failure) = conformance::model::run(Arc::new(MemoryHarness::new()), seed, 400).await {
        panic!("{failure}");
    }
}
