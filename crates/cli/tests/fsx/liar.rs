//! Canaries: exports whose devices now and then do not do what they answer.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use ferry_nbd::{BlockDevice, DeviceError, ExportInfo, Exports, Extent, OpenError};
use parking_lot::Mutex;

/// Requests of a kind between two lies.
const SELDOM: u64 = 40;

/// What a device lies about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lie {
    Never,
    /// A read has one bit changed.
    WrongByte,
    /// A write is answered and not made.
    LostWrite,
    /// A read shows what an earlier read of the same range has shown.
    StaleRead,
    /// Flushes, and what asks to be durable, are answered and not made.
    ForgottenFlush,
}

type Device = Arc<dyn BlockDevice>;

/// Exports that lie.
pub struct Lying {
    inner: Arc<dyn Exports>,
    lie: Lie,
    /// By the address of the device that lies: that, and the one that does not.
    devices: Mutex<HashMap<usize, (Device, Device)>>,
}

impl Lying {
    pub fn over(inner: Arc<dyn Exports>, lie: Lie) -> Arc<dyn Exports> {
        match lie {
            Lie::Never => inner,
            _ => Arc::new(Self {
                inner,
                lie,
                devices: Mutex::default(),
            }),
        }
    }
}

fn address(device: &Arc<dyn BlockDevice>) -> usize {
    Arc::as_ptr(device).cast::<()>() as usize
}

#[async_trait]
impl Exports for Lying {
    async fn list(&self) -> Result<Vec<ExportInfo>, OpenError> {
        self.inner.list().await
    }

    async fn open(&self, name: &str) -> Result<Arc<dyn BlockDevice>, OpenError> {
        let honest = self.inner.open(name).await?;
        let mut devices = self.devices.lock();
        let known = devices
            .values()
            .find(|(_, inner)| address(inner) == address(&honest));
        if let Some((device, _)) = known {
            return Ok(Arc::clone(device));
        }
        let device: Arc<dyn BlockDevice> = Arc::new(Liar {
            inner: Arc::clone(&honest),
            lie: self.lie,
            reads: AtomicU64::new(0),
            writes: AtomicU64::new(0),
            shown: Mutex::default(),
        });
        devices.insert(address(&device), (Arc::clone(&device), honest));
        Ok(device)
    }

    async fn close(&self, device: Arc<dyn BlockDevice>) -> Result<(), DeviceError> {
        let found = self.devices.lock().remove(&address(&device));
        match found {
            Some((_, honest)) => self.inner.close(honest).await,
            None => Ok(()),
        }
    }
}

struct Liar {
    inner: Arc<dyn BlockDevice>,
    lie: Lie,
    reads: AtomicU64,
    writes: AtomicU64,
    /// A range and what it showed long ago.
    shown: Mutex<Option<(u64, Bytes)>>,
}

impl Liar {
    fn is_due(count: &AtomicU64) -> bool {
        count.fetch_add(1, Ordering::Relaxed) % SELDOM == SELDOM - 1
    }

    fn durable(&self, fua: bool) -> bool {
        fua && self.lie != Lie::ForgottenFlush
    }
}

#[async_trait]
impl BlockDevice for Liar {
    fn size_bytes(&self) -> u64 {
        self.inner.size_bytes()
    }

    fn read_only(&self) -> bool {
        self.inner.read_only()
    }

    fn can_multi_conn(&self) -> bool {
        self.inner.can_multi_conn()
    }

    async fn read(&self, offset: u64, length: u32) -> Result<Bytes, DeviceError> {
        let mut bytes = self.inner.read(offset, length).await?.to_vec();
        match self.lie {
            Lie::WrongByte if Self::is_due(&self.reads) => {
                let middle = bytes.len() / 2;
                bytes[middle] ^= 4;
            }
            Lie::StaleRead => {
                let mut shown = self.shown.lock();
                let (at, old) = shown.get_or_insert_with(|| (offset, bytes.clone().into()));
                let end = (*at + old.len() as u64).min(offset + bytes.len() as u64);
                let start = (*at).max(offset);
                if start < end {
                    let part = &old[(start - *at) as usize..(end - *at) as usize];
                    bytes[(start - offset) as usize..(end - offset) as usize].copy_from_slice(part);
                }
            }
            _ => {}
        }
        Ok(bytes.into())
    }

    async fn write(&self, offset: u64, data: Bytes, fua: bool) -> Result<(), DeviceError> {
        if self.lie == Lie::LostWrite && Self::is_due(&self.writes) {
            return Ok(());
        }
        self.inner.write(offset, data, self.durable(fua)).await
    }

    async fn trim(&self, offset: u64, length_bytes: u64, fua: bool) -> Result<(), DeviceError> {
        self.inner.trim(offset, length_bytes, self.durable(fua)).await
    }

    async fn write_zeroes(
        &self,
        offset: u64,
        length_bytes: u64,
        no_hole: bool,
        fua: bool,
    ) -> Result<(), DeviceError> {
        let fua = self.durable(fua);
        self.inner.write_zeroes(offset, length_bytes, no_hole, fua).await
    }

    async fn flush(&self) -> Result<(), DeviceError> {
        match self.lie {
            Lie::ForgottenFlush => Ok(()),
            _ => self.inner.flush().await,
        }
    }

    async fn block_status(
        &self,
        offset: u64,
        length_bytes: u64,
        max_extents: usize,
    ) -> Result<Vec<Extent>, DeviceError> {
        self.inner.block_status(offset, length_bytes, max_extents).await
    }
}
