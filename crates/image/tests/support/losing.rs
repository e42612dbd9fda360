//! A store with a defect, to show that tests notice: it answers one write of data in so many without making it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use ferry_store::wrappers::{Call, Hook, OpKind, Wrapper};
use ferry_store::{Result, Store, StoreError};

/// Writes of data that are made for each that is not.
const MADE: u64 = 7;

/// Writes of data so far, of all clients.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

/// One more client of such a store.
pub fn store(inner: Arc<dyn Store>, count: Arc<Count>) -> Arc<dyn Store> {
    Wrapper::with_hook(inner, Losing(count))
}

#[derive(Debug)]
struct Losing(Arc<Count>);

#[async_trait]
impl Hook for Losing {
    type Token = ();

    fn swallows(&self, call: &Call<'_>) -> bool {
        let is_data = call.kind == OpKind::Write && call.name.starts_with("rbd_data.");
        is_data && self.0.0.fetch_add(1, Ordering::Relaxed) % (MADE + 1) == MADE
    }

    async fn before(&self, _: &Call<'_>) -> Result<()> {
        Ok(())
    }

    async fn after(&self, _: &Call<'_>, (): (), _: Result<String, &StoreError>) -> Result<()> {
        Ok(())
    }
}
