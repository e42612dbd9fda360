//! An engine that has no list of clones and does not know where watchers are.

use async_trait::async_trait;

use super::{Call, Hook, Wrapper};
use crate::{Result, StoreError};

/// A store whose [`crate::Store::list_snaps`] is that of [`crate::probing`], and whose watchers have no address.
pub type ProbingStore = Wrapper<Probing>;

/// The hook of a [`ProbingStore`]; does nothing by itself.
#[derive(Debug, Clone, Copy, Default)]
pub struct Probing;

#[async_trait]
impl Hook for Probing {
    const PROBES: bool = true;
    type Token = ();

    async fn before(&self, _call: &Call<'_>) -> Result<()> {
        Ok(())
    }

    async fn after(
        &self,
        _call: &Call<'_>,
        (): (),
        _result: std::result::Result<String, &StoreError>,
    ) -> Result<()> {
        Ok(())
    }
}
