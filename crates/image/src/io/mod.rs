//! Reading and writing an open image.
//!
//! [`read`] and [`write`] are what clients see, [`now`] their short cut where nothing has to be waited for, [`around`] the
//! writes that are acknowledged before they are done, [`gather`] how those of one object go together, [`ahead`] what is
//! read before anybody asks; `discard` takes ranges of any length away, [`trim`] removes whole runs of objects; [`known`] remembers which
//! objects of a migration target hold all of their history, and which objects of a clone exist. Invariants: a read of an
//! absent object shows what the image is laid over (the migration source, the parent of a clone), never zeros instead of
//! it; a write to an object that has not been copied copies it first, with its history.

pub(crate) mod ahead;
pub(crate) mod around;
pub(crate) mod background;
pub(crate) mod cache_settings;
mod discard;
pub(crate) mod gather;
pub mod known;
pub mod now;
pub mod read;
pub mod sparsify;
pub mod trim;
pub mod write;

use std::sync::atomic::Ordering;

use crate::error::Result;
use crate::image::Image;
use crate::layout::ImageOffset;

/// Objects that one request works on at the same time.
pub(crate) const CONCURRENT_OBJECTS: usize = 16;

impl Image {
    /// Makes durable all that was written through this handle, and what those had written who were killed before it was opened:
    /// a client that lost its server goes on with the next one, and flushes there what the first one had acknowledged.
    pub async fn flush(&self) -> Result<()> {
        let _client = self.inner.activity.begin();
        self.check_open()?;
        self.inner.around.arm();
        self.settle_all().await?;
        self.sync_what_others_left().await?;
        self.flush_data().await
    }

    /// Once. An owner of the lock has done it when it took the lock from a dead one.
    async fn sync_what_others_left(&self) -> Result<()> {
        let inner = &self.inner;
        if inner.read_only || inner.others_synced.load(Ordering::SeqCst) || inner.lock.is_owner() {
            return Ok(());
        }
        self.sync_all_data().await?;
        inner.others_synced.store(true, Ordering::SeqCst);
        Ok(())
    }

    /// Makes durable what was written through this handle to the objects of a range, and maybe more.
    pub async fn flush_range(&self, offset: u64, length_bytes: u64) -> Result<()> {
        self.check_open()?;
        self.inner.around.arm();
        self.settle(offset, length_bytes).await?;
        let object_of = |at: u64| {
            let found = self.layout().map_one(ImageOffset(at), 0);
            found.map(|extent| extent.object_no)
        };
        let last = offset.saturating_add(length_bytes.saturating_sub(1));
        match (object_of(offset), object_of(last)) {
            // Without stripes over several objects, all between lies in it too.
            (Some(first), Some(last)) if first == last && self.layout().stripe_count() == 1 => {
                let io = &self.inner.data_io;
                let object = self.data_object(first.0);
                Ok(io.store().flush(io.scope(), &object).await?)
            }
            _ => self.flush_data().await,
        }
    }

    pub(crate) async fn flush_data(&self) -> Result<()> {
        if self.inner.read_only {
            return Ok(());
        }
        self.settled().await?;
        let io = &self.inner.data_io;
        Ok(io.store().flush(io.scope(), &self.data_prefix()).await?)
    }

    /// Makes durable all that anybody wrote to the image before.
    pub(crate) async fn sync_all_data(&self) -> Result<()> {
        let io = &self.inner.data_io;
        Ok(io.store().sync_all(io.scope(), &self.data_prefix()).await?)
    }
}
