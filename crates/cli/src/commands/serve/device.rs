//! An open image as a block device for NBD.
//!
//! Holes are what the image does not store; they read as zeroes, in block status as in reads.

use async_trait::async_trait;
use bytes::Bytes;
use ferry_image::{Image, ImageError};
use ferry_nbd::{BlockDevice, BlockSizes, DeviceError, Errno, Extent, Next, QuickRead, ReadExtent};
use ferry_store::ReadNow;

/// Bytes looked at in one step of a block status.
const STATUS_STEP_BYTES: u64 = 16 << 20;
/// Bytes of data that one block status reads at the most; it ends early then, and the client asks again.
const STATUS_DATA_BYTES: u64 = 32 << 20;
/// Steps of one block status, for images of nothing but holes.
const STATUS_STEPS: usize = 256;

/// See the module's text.
#[derive(Debug)]
pub(super) struct ImageDevice {
    image: Image,
}

impl ImageDevice {
    pub(super) fn new(image: Image) -> Self {
        Self { image }
    }

    async fn durable(&self, fua: bool, offset: u64, length_bytes: u64) -> Result<(), DeviceError> {
        match fua {
            true => self
                .image
                .flush_range(offset, length_bytes)
                .await
                .map_err(device_error),
            false => Ok(()),
        }
    }
}

pub(super) fn device_error(error: ImageError) -> DeviceError {
    match error.errno {
        ferry_store::Errno::ENOSPC | ferry_store::Errno::EDQUOT => {
            DeviceError::out_of_space(error.to_string())
        }
        errno => DeviceError::new(Errno::from_linux(errno.0), error.to_string()),
    }
}

#[async_trait]
impl BlockDevice for ImageDevice {
    fn size_bytes(&self) -> u64 {
        self.image.size_bytes()
    }

    fn read_only(&self) -> bool {
        self.image.is_read_only()
    }

    fn block_sizes(&self) -> BlockSizes {
        BlockSizes::default()
    }

    fn can_multi_conn(&self) -> bool {
        // All connections share one handle, and a flush is one of the handle.
        true
    }

    async fn read(&self, offset: u64, length: u32) -> Result<Bytes, DeviceError> {
        self.image.read(offset, length.into()).await.map_err(device_error)
    }

    async fn read_sparse(&self, offset: u64, length: u32) -> Result<Vec<ReadExtent>, DeviceError> {
        let runs = self
            .image
            .read_sparse(offset, length.into())
            .await
            .map_err(device_error)?;
        let mut pieces = Vec::with_capacity(runs.len() * 2 + 1);
        let mut at = offset;
        let end = offset + u64::from(length);
        for (start, data) in runs {
            push_hole(&mut pieces, start - at);
            at = start + data.len() as u64;
            if !data.is_empty() {
                pieces.push(ReadExtent::Data(data));
            }
        }
        push_hole(&mut pieces, end - at);
        Ok(pieces)
    }

    fn try_read(&self, offset: u64, out: &mut [u8]) -> Option<Result<QuickRead, DeviceError>> {
        match self.image.read_now(offset, out) {
            ReadNow::Filled => Some(Ok(QuickRead::Data)),
            ReadNow::Absent => Some(Ok(QuickRead::Zeroes)),
            ReadNow::WouldWait => None,
        }
    }

    fn try_write(&self, offset: u64, data: &[u8], fua: bool) -> Option<Result<(), DeviceError>> {
        (!fua && self.image.write_now(offset, data)).then_some(Ok(()))
    }

    fn flush_here(&self) -> Option<Result<(), DeviceError>> {
        let runtime = tokio::runtime::Handle::current();
        let flushed = ferry_store::here::blocking(|| runtime.block_on(self.image.flush()));
        Some(flushed.map_err(device_error))
    }

    fn go_on_here(&self, next: Next) -> Result<(), Next> {
        ferry_store::here::next(next)
    }

    async fn write(&self, offset: u64, data: Bytes, fua: bool) -> Result<(), DeviceError> {
        let length_bytes = data.len() as u64;
        self.image.write(offset, data).await.map_err(device_error)?;
        self.durable(fua, offset, length_bytes).await
    }

    async fn trim(&self, offset: u64, length_bytes: u64, fua: bool) -> Result<(), DeviceError> {
        self.image
            .discard(offset, length_bytes)
            .await
            .map_err(device_error)?;
        self.durable(fua, offset, length_bytes).await
    }

    async fn write_zeroes(
        &self,
        offset: u64,
        length_bytes: u64,
        no_hole: bool,
        fua: bool,
    ) -> Result<(), DeviceError> {
        self.image
            .write_zeroes(offset, length_bytes, no_hole)
            .await
            .map_err(device_error)?;
        self.durable(fua, offset, length_bytes).await
    }

    fn is_fast_zero(&self, _offset: u64, _length_bytes: u64, no_hole: bool) -> bool {
        // Holes are made by removing and cutting. In the target of a migration, and in a clone, objects may have to be
        // copied up first.
        let header = self.image.header();
        !no_hole && header.migration_target().is_none() && header.parent.is_none()
    }

    async fn flush(&self) -> Result<(), DeviceError> {
        self.image.flush().await.map_err(device_error)
    }

    async fn block_status(
        &self,
        offset: u64,
        length_bytes: u64,
        max_extents: usize,
    ) -> Result<Vec<Extent>, DeviceError> {
        let mut extents = Extents {
            found: Vec::new(),
            max: max_extents.max(1),
        };
        let mut at = offset;
        let end = offset + length_bytes;
        let mut data_bytes = 0;
        for _ in 0..STATUS_STEPS {
            let step = STATUS_STEP_BYTES.min(end - at);
            if step == 0 || data_bytes >= STATUS_DATA_BYTES {
                break;
            }
            let runs = self.image.read_sparse(at, step).await.map_err(device_error)?;
            let mut here = at;
            at += step;
            for (start, data) in runs {
                let length = data.len() as u64;
                if !extents.push(start - here, true) || !extents.push(length, false) {
                    return Ok(extents.found);
                }
                here = start + length;
                data_bytes += length;
            }
            if !extents.push(at - here, true) {
                break;
            }
        }
        Ok(extents.found)
    }
}

fn push_hole(pieces: &mut Vec<ReadExtent>, length_bytes: u64) {
    // A read is at most as long as a u32 says, and so is a hole in it.
    if let Ok(length_bytes @ 1..) = u32::try_from(length_bytes) {
        pieces.push(ReadExtent::Zeroes { length_bytes });
    }
}

/// Consecutive extents, neighbours of one kind joined.
struct Extents {
    found: Vec<Extent>,
    max: usize,
}

impl Extents {
    /// Adds a run; false when there is no room for another extent.
    fn push(&mut self, length_bytes: u64, hole: bool) -> bool {
        if length_bytes == 0 {
            return true;
        }
        let full = self.found.len() == self.max;
        match self.found.last_mut() {
            Some(last) if last.hole == hole => last.length_bytes += length_bytes,
            _ if full => return false,
            _ => self.found.push(Extent {
                length_bytes,
                hole,
                zero: hole,
            }),
        }
        true
    }
}
