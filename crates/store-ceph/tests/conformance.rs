//! The Ceph engine keeps the store contract on a real cluster.
//!
//! `FERRY_TEST_CEPH` names the configuration of a cluster to use (`scripts/test` starts one); without it the cases say that they
//! were not checked.

// All of this file is test; the lint spares only functions that carry the attribute.
#![allow(clippy::unwrap_used)]

use std::ffi::OsString;
use std::sync::Arc;

use async_trait::async_trait;
use ferry_store::conformance::Harness;
use ferry_store::{Result, Scope, Store};
use ferry_store_ceph::{CephConfig, CephStore};

/// Connections to the cluster; each case works in a namespace of its own.
struct CephHarness {
    conf: Option<OsString>,
    c_interface_only: bool,
}

impl CephHarness {
    fn new(c_interface_only: bool) -> Self {
        Self {
            conf: std::env::var_os("FERRY_TEST_CEPH"),
            c_interface_only,
        }
    }
}

#[async_trait]
impl Harness for CephHarness {
    async fn client(&self) -> Arc<dyn Store> {
        let config = CephConfig {
            conf: self.conf.clone().map(Into::into),
            c_interface_only: self.c_interface_only,
            ..CephConfig::default()
        };
        CephStore::connect(config).await.unwrap()
    }

    async fn scope(&self, client: &Arc<dyn Store>) -> Result<Scope> {
        let pools = client.pool_list().await?;
        let pool = pools.iter().find(|pool| pool.name == "rbd").unwrap();
        let namespace = format!("conformance-{:016x}", rand::random::<u64>());
        Ok(Scope::with_namespace(pool.id, &namespace))
    }

    fn absent(&self) -> Option<String> {
        match self.conf {
            Some(_) => None,
            None => Some("FERRY_TEST_CEPH names no cluster".to_owned()),
        }
    }

    fn is_osd(&self) -> bool {
        true
    }

    fn probes(&self) -> bool {
        self.c_interface_only
    }
}

mod by_the_whole_library {
    use super::CephHarness;
    ferry_store::conformance_tests! { CephHarness::new(false) }
}

mod by_the_c_interface_alone {
    use super::CephHarness;
    ferry_store::conformance_tests! { CephHarness::new(true) }
}
