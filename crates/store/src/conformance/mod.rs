//! The suite that every engine runs: one case per promise of [`crate::Store`], written against the trait alone.
//!
//! An engine's tests give a [`Harness`] that connects clients to a fresh store and say
//! `ferry_store::conformance_tests! { MyHarness::new() }`: that makes one named `#[test]` per case. The same cases are
//! to be had as a list from [`all`]. [`model::run`] compares random histories with a reference that is too simple to be
//! wrong. The suite uses two clients of one store (they may be two processes) and the object class of [`classes`],
//! which the harness registers.
//!
//! What it keeps: no case looks at wall-clock time; what an engine may do later (trimming, usage, loss of a watch) is
//! polled for, within a bound. What it does not know: any engine.

mod atomicity;
mod cases;
pub mod classes;
mod copying;
mod data;
mod durability;
mod fixture;
mod keys;
pub mod model;
mod pools;
mod rollback;
mod snapshots;
mod trimming;
mod visibility;
mod watches;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::future::BoxFuture;

use crate::error::Result;
use crate::types::Scope;
use crate::{PoolOptions, Store};

pub use cases::all;
pub use classes::register_test_class;

/// Longest that one case may take before it counts as hanging.
const CASE_LIMIT_SECONDS: u64 = 300;

/// What the suite asks of an engine's tests.
///
/// The engine behind it should know the classes of [`register_test_class`].
#[async_trait]
pub trait Harness: Send + Sync + 'static {
    /// Connects another client to the store: another instance, maybe in another process.
    async fn client(&self) -> Arc<dyn Store>;

    /// Place in which one case works: empty, and used by nothing else. The default makes a new pool.
    async fn scope(&self, client: &Arc<dyn Store>) -> Result<Scope> {
        let name = format!("conformance-{:016x}", rand::random::<u64>());
        Ok(Scope::new(
            client.pool_create(&name, PoolOptions::default()).await?,
        ))
    }

    /// Why this machine has no such store, if it has none: the cases say so and pass.
    fn absent(&self) -> Option<String> {
        None
    }

    /// Whether a real OSD is behind the engine. Where the contract leaves open what an engine does, the cases then ask for
    /// what an OSD does; and those that need the test class, which OSDs don't have, say so and pass.
    fn is_osd(&self) -> bool {
        false
    }

    /// Whether the engine has no list of clones ([`crate::probing`]) and does not know where watchers are: the cases then
    /// expect what such an engine tells.
    fn probes(&self) -> bool {
        false
    }

    /// Ends a client without any farewell, as `SIGKILL` ends a process. `false`: this harness cannot, and the cases
    /// that need it say so and pass.
    async fn kill(&self, client: Arc<dyn Store>) -> bool {
        drop(client);
        false
    }

    /// Ends all clients and cuts the power of the medium, as `seed` decides what of the unsynced bytes stays; clients
    /// made later see what is left. `false`: this harness cannot, and the cases that need it say so and pass.
    async fn power_loss(&self, seed: u64) -> bool {
        let _ = seed;
        false
    }
}

/// A case: runs on a fresh store, tells what was not as promised.
pub type CaseFn = fn(Arc<dyn Harness>) -> BoxFuture<'static, Result<(), String>>;

/// Runs case `name` (`group::case`) on the harness that `connect` makes; panics with what was not as promised. Made for
/// [`crate::conformance_tests`].
///
/// # Panics
/// When the case fails, hangs or does not exist.
pub fn run_case<H: Harness>(name: &str, connect: impl Future<Output = H>) {
    let Some((_, case)) = all().into_iter().find(|(known, _)| *known == name) else {
        panic!("no conformance case '{name}'");
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => panic!("{name}: no runtime: {error}"),
    };
    let outcome = runtime.block_on(async {
        let harness: Arc<dyn Harness> = Arc::new(connect.await);
        if let Some(why) = harness.absent() {
            eprintln!("not checked: {why}");
            return Ok(Ok(()));
        }
        tokio::time::timeout(Duration::from_secs(CASE_LIMIT_SECONDS), case(harness)).await
    });
    match outcome {
        Ok(Ok(())) => {}
        Ok(Err(failure)) => panic!("{name}: {failure}"),
        Err(_) => panic!("{name}: hangs (no end after {CASE_LIMIT_SECONDS} s)"),
    }
}
