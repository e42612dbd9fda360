//! Ceph's settings of the cache, as an image's metadata have them (`conf_rbd_...`): they narrow what the store's configuration allows.

use bytes::Bytes;
use ferry_cls::rbd::client;
use ferry_store::{IoCtx, WriteAround};

use crate::error::{Result, optional};

/// Words that mean no.
const NO: &[&[u8]] = &[b"false", b"no", b"off", b"0"];

/// What an image says; `None`: nothing.
#[derive(Debug, Default)]
pub(crate) struct CacheSettings {
    cache: Option<Bytes>,
    policy: Option<Bytes>,
    max_dirty: Option<Bytes>,
    until_flush: Option<Bytes>,
    readahead_max: Option<Bytes>,
}

impl CacheSettings {
    /// Reads them from the image of that header.
    pub(crate) async fn read(io: &IoCtx, header_object: &str) -> Result<Self> {
        let value = async |key: &str| {
            let call = client::metadata_get(key);
            optional(ferry_cls::exec_read(io, header_object, call).await)
        };
        let (cache, policy, max_dirty, until_flush, readahead_max) = futures::try_join!(
            value("conf_rbd_cache"),
            value("conf_rbd_cache_policy"),
            value("conf_rbd_cache_max_dirty"),
            value("conf_rbd_cache_writethrough_until_flush"),
            value("conf_rbd_readahead_max_bytes"),
        )?;
        Ok(Self {
            cache,
            policy,
            max_dirty,
            until_flush,
            readahead_max,
        })
    }

    /// What they leave of acknowledging writes early.
    pub(crate) fn write_around(&self, around: WriteAround) -> Option<WriteAround> {
        if is(&self.cache, NO) || is(&self.policy, &[b"writethrough"]) {
            return None;
        }
        let max_dirty = self.max_dirty.as_ref();
        let max_dirty = max_dirty.and_then(|value| std::str::from_utf8(value).ok()?.parse().ok());
        let max_bytes = max_dirty.unwrap_or(around.max_bytes).min(around.max_bytes);
        (max_bytes > 0).then(|| WriteAround {
            max_bytes,
            until_flush: around.until_flush && !is(&self.until_flush, NO),
        })
    }

    /// Whether they leave reading ahead.
    pub(crate) fn reads_ahead(&self) -> bool {
        !is(&self.cache, NO) && !is(&self.readahead_max, NO)
    }
}

fn is(value: &Option<Bytes>, words: &[&[u8]]) -> bool {
    value.as_ref().is_some_and(|value| words.contains(&&value[..]))
}
