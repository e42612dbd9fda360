//! What an image's and its pool's settings of the cache leave of what the store's configuration allows: acknowledging writes early, and
//! reading ahead.
//!
//! They can only narrow it, so that no image makes its clients keep more than they allow. Which names there are, what values they have
//! and where they are kept, [`config`] knows.

use ferry_store::{IoCtx, WriteAround};

use crate::admin::config::{self, Held};
use crate::error::Result;

/// What an image and its pool say; the default: nothing.
#[derive(Debug, Default)]
pub(crate) struct CacheSettings(Held);

impl CacheSettings {
    /// Reads them of the image of that header, and of its pool.
    pub(crate) async fn read(io: &IoCtx, header_object: &str) -> Result<Self> {
        Ok(Self(Held::read(io, Some(header_object)).await?))
    }

    /// What they leave of acknowledging writes early.
    pub(crate) fn write_around(&self, around: WriteAround) -> Option<WriteAround> {
        if self.is_off(config::CACHE) || self.value(config::CACHE_POLICY).as_deref() == Some("writethrough") {
            return None;
        }
        let max_dirty = self.size_bytes(config::CACHE_MAX_DIRTY);
        let max_bytes = max_dirty.unwrap_or(around.max_bytes).min(around.max_bytes);
        (max_bytes > 0).then(|| WriteAround {
            max_bytes,
            until_flush: around.until_flush && !self.is_off(config::CACHE_UNTIL_FLUSH),
        })
    }

    /// Whether they leave reading ahead.
    pub(crate) fn reads_ahead(&self) -> bool {
        !self.is_off(config::CACHE) && self.size_bytes(config::READAHEAD_MAX) != Some(0)
    }

    fn value(&self, name: &str) -> Option<String> {
        self.0.value(name).map(|(value, _)| value)
    }

    fn size_bytes(&self, name: &str) -> Option<u64> {
        config::size_bytes(&self.value(name)?)
    }

    fn is_off(&self, name: &str) -> bool {
        self.value(name).and_then(|value| config::switch(&value)) == Some(false)
    }
}
