//! Changes that find no space are held until there is some, where the server's configuration says so.
//!
//! The promise: such a request is made again, at growing distances, until it succeeds, fails in another way, or its
//! connection ends: the client says goodbye or goes, or the server goes down. Then it gets the error that it would have got
//! at once. What is held counts against the bounds of its connection like any request, and holds up no other. A flush is
//! made again like the rest: a device whose flush succeeds has everything ([`BlockDevice::flush`]), whatever failed before.
//!
//! What it doesn't know: why there is no space, and for whom.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::watch;
use tracing::{error, info};

use crate::device::{BlockDevice, BlockSizes, DeviceError, Extent, ReadExtent};
use crate::stats::ServerStats;

/// Pause before the second attempt; each is twice as long as the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// Longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// Zeroes that have to be written are written in steps of so many bytes, so that what is made again is never much.
const ZEROES_STEP_BYTES: u64 = 4 << 20;

/// Tells whether the client is gone, without waiting.
pub(crate) type PeerIsGone = Box<dyn Fn() -> bool + Send + Sync>;

/// Holds the requests of one connection.
pub(crate) struct Hold {
    leaving: watch::Sender<bool>,
    peer_is_gone: PeerIsGone,
    stats: Arc<ServerStats>,
}

impl fmt::Debug for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hold")
            .field("leaving", &self.leaving)
            .finish_non_exhaustive()
    }
}

impl Hold {
    pub(crate) fn new(peer_is_gone: PeerIsGone, stats: Arc<ServerStats>) -> Self {
        Self {
            leaving: watch::Sender::new(false),
            peer_is_gone,
            stats,
        }
    }

    /// The connection ends: nothing is held any longer.
    pub(super) fn leave(&self) {
        self.leaving.send_replace(true);
    }

    async fn until_there_is_space<F>(&self, attempt: impl Fn() -> F) -> Result<(), DeviceError>
    where
        F: Future<Output = Result<(), DeviceError>>,
    {
        let mut leaving = self.leaving.subscribe();
        let mut held = None;
        let mut pause = FIRST_PAUSE;
        loop {
            let error = match attempt().await {
                Err(error) if error.is_out_of_space() => error,
                other => return other,
            };
            held.get_or_insert_with(|| Held::new(&self.stats, &error));
            let left = tokio::time::timeout(pause, leaving.wait_for(|leaving| *leaving)).await;
            if left.is_ok() || (self.peer_is_gone)() {
                return Err(error);
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

/// Counts a held request until it is dropped.
struct Held<'a>(&'a ServerStats);

impl<'a> Held<'a> {
    fn new(stats: &'a ServerStats, error: &DeviceError) -> Self {
        if stats.request_held() == 0 {
            error!(%error, "no space: requests that need some are held until there is room");
        }
        Self(stats)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if self.0.request_released() == 0 {
            info!("no request is held for want of space any more");
        }
    }
}

/// A device whose changes are held.
pub(super) struct HoldingDevice<'a> {
    device: &'a dyn BlockDevice,
    hold: &'a Hold,
}

impl<'a> HoldingDevice<'a> {
    pub(super) fn new(device: &'a dyn BlockDevice, hold: &'a Hold) -> Self {
        Self { device, hold }
    }
}

#[async_trait]
impl BlockDevice for HoldingDevice<'_> {
    fn size_bytes(&self) -> u64 {
        self.device.size_bytes()
    }

    fn read_only(&self) -> bool {
        self.device.read_only()
    }

    fn block_sizes(&self) -> BlockSizes {
        self.device.block_sizes()
    }

    fn can_multi_conn(&self) -> bool {
        self.device.can_multi_conn()
    }

    async fn read(&self, offset: u64, length: u32) -> Result<Bytes, DeviceError> {
        self.device.read(offset, length).await
    }

    async fn read_sparse(&self, offset: u64, length: u32) -> Result<Vec<ReadExtent>, DeviceError> {
        self.device.read_sparse(offset, length).await
    }

    async fn write(&self, offset: u64, data: Bytes, fua: bool) -> Result<(), DeviceError> {
        let attempt = || self.device.write(offset, data.clone(), fua);
        self.hold.until_there_is_space(attempt).await
    }

    async fn trim(&self, offset: u64, length_bytes: u64, fua: bool) -> Result<(), DeviceError> {
        let attempt = || self.device.trim(offset, length_bytes, fua);
        self.hold.until_there_is_space(attempt).await
    }

    async fn write_zeroes(
        &self,
        offset: u64,
        length_bytes: u64,
        no_hole: bool,
        fua: bool,
    ) -> Result<(), DeviceError> {
        if !no_hole || length_bytes <= ZEROES_STEP_BYTES {
            let attempt = || self.device.write_zeroes(offset, length_bytes, no_hole, fua);
            return self.hold.until_there_is_space(attempt).await;
        }
        let mut done = 0;
        while done < length_bytes {
            let step = (length_bytes - done).min(ZEROES_STEP_BYTES);
            let attempt = || self.device.write_zeroes(offset + done, step, no_hole, false);
            self.hold.until_there_is_space(attempt).await?;
            done += step;
        }
        if fua { self.flush().await } else { Ok(()) }
    }

    fn is_fast_zero(&self, offset: u64, length_bytes: u64, no_hole: bool) -> bool {
        self.device.is_fast_zero(offset, length_bytes, no_hole)
    }

    async fn cache(&self, offset: u64, length_bytes: u64) -> Result<(), DeviceError> {
        self.device.cache(offset, length_bytes).await
    }

    async fn flush(&self) -> Result<(), DeviceError> {
        self.hold.until_there_is_space(|| self.device.flush()).await
    }

    async fn block_status(
        &self,
        offset: u64,
        length_bytes: u64,
        max_extents: usize,
    ) -> Result<Vec<Extent>, DeviceError> {
        self.device.block_status(offset, length_bytes, max_extents).await
    }
}
