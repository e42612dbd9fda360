//! Devices in memory, for tests of this crate and of those that build on it.
//!
//! The promise: [`MemoryDevice`] behaves as a plain sparse disk, and does what it is told to do wrong exactly when
//! it is told. Every second read and write is answered at once where the server asks for that, so that both ways
//! are used. It keeps a copy of what was durable at the last flush, so that a test can look at what a crash
//! would leave.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use crate::device::{BlockDevice, BlockSizes, DeviceError, Errno, Extent, QuickRead, ReadExtent};
use crate::exports::{ExportInfo, Exports, OpenError, OpenErrorKind};

/// Granularity of allocation, in bytes.
pub const MEMORY_BLOCK_BYTES: usize = 4096;

/// The calls that a fault can be ordered for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// [`BlockDevice::read`] and [`BlockDevice::read_sparse`].
    Read,
    /// [`BlockDevice::write`].
    Write,
    /// [`BlockDevice::trim`].
    Trim,
    /// [`BlockDevice::write_zeroes`].
    WriteZeroes,
    /// [`BlockDevice::cache`].
    Cache,
    /// [`BlockDevice::flush`].
    Flush,
    /// [`BlockDevice::block_status`].
    BlockStatus,
}

/// What goes wrong in a call.
#[derive(Debug, Clone)]
pub enum Fault {
    /// It fails.
    Error(DeviceError),
    /// It panics.
    Panic,
    /// It waits for a permit of the semaphore, and then goes on as usual.
    Wait(Arc<Semaphore>),
}

/// A disk in memory. Blocks that were never written, or were trimmed, are holes and read as zeroes.
#[derive(Debug)]
pub struct MemoryDevice {
    state: Mutex<State>,
    faults: Mutex<HashMap<Operation, VecDeque<Fault>>>,
    read_only: bool,
    multi_conn: bool,
    block_sizes: BlockSizes,
}

#[derive(Debug)]
struct State {
    data: Vec<u8>,
    allocated: Vec<bool>,
    durable: Option<Vec<u8>>,
    calls: HashMap<Operation, u64>,
}

impl MemoryDevice {
    /// An empty writable disk.
    #[must_use]
    pub fn new(size_bytes: usize) -> Self {
        Self {
            state: Mutex::new(State {
                data: vec![0; size_bytes],
                allocated: vec![false; size_bytes.div_ceil(MEMORY_BLOCK_BYTES)],
                durable: None,
                calls: HashMap::new(),
            }),
            faults: Mutex::default(),
            read_only: false,
            multi_conn: true,
            block_sizes: BlockSizes::default(),
        }
    }

    /// A disk that holds `data`, fully allocated.
    #[must_use]
    pub fn with_data(data: Vec<u8>) -> Self {
        let device = Self::new(0);
        {
            let mut state = device.state.lock();
            state.allocated = vec![true; data.len().div_ceil(MEMORY_BLOCK_BYTES)];
            state.data = data;
        }
        device
    }

    /// Refuses writes.
    #[must_use]
    pub fn read_only(mut self) -> Self {
        self.read_only = true;
        self
    }

    /// Says whether clients may use several connections; they may by default.
    #[must_use]
    pub fn multi_conn(mut self, allowed: bool) -> Self {
        self.multi_conn = allowed;
        self
    }

    /// Sets the block sizes.
    #[must_use]
    pub fn block_sizes(mut self, sizes: BlockSizes) -> Self {
        self.block_sizes = sizes;
        self
    }

    /// Keeps what each flush made durable, at the price of a second copy of the disk; see
    /// [`durable`](MemoryDevice::durable).
    #[must_use]
    pub fn tracking_durability(self) -> Self {
        {
            let mut state = self.state.lock();
            state.durable = Some(state.data.clone());
        }
        self
    }

    /// Orders a fault for the next call of that kind that has none yet.
    pub fn inject(&self, operation: Operation, fault: Fault) {
        self.faults.lock().entry(operation).or_default().push_back(fault);
    }

    /// Grows or shrinks the disk.
    pub fn resize(&self, size_bytes: usize) {
        let mut state = self.state.lock();
        state.data.resize(size_bytes, 0);
        state
            .allocated
            .resize(size_bytes.div_ceil(MEMORY_BLOCK_BYTES), false);
    }

    /// The content.
    #[must_use]
    pub fn snapshot(&self) -> Vec<u8> {
        self.state.lock().data.clone()
    }

    /// What a crash would leave: the content at the last flush and all that was written with FUA since. `None`
    /// unless [`tracking_durability`](MemoryDevice::tracking_durability).
    #[must_use]
    pub fn durable(&self) -> Option<Vec<u8>> {
        self.state.lock().durable.clone()
    }

    /// How many calls of that kind were made, faulty ones included.
    #[must_use]
    pub fn calls(&self, operation: Operation) -> u64 {
        self.state.lock().calls.get(&operation).copied().unwrap_or(0)
    }

    /// Begins a call that is to be answered at once, if it is this one's turn and nothing has to be waited for.
    fn begin_at_once(&self, operation: Operation) -> Option<Result<(), DeviceError>> {
        let mut state = self.state.lock();
        let calls = state.calls.entry(operation).or_default();
        let mut faults = self.faults.lock();
        let queue = faults.entry(operation).or_default();
        if calls.is_multiple_of(2) || matches!(queue.front(), Some(Fault::Wait(_))) {
            return None;
        }
        *calls += 1;
        match queue.pop_front() {
            Some(Fault::Error(error)) => Some(Err(error)),
            Some(Fault::Panic) => panic!("a panic in {operation:?}, as ordered"),
            // One that waits was left where it is.
            Some(Fault::Wait(_)) | None => Some(Ok(())),
        }
    }

    async fn begin(&self, operation: Operation) -> Result<(), DeviceError> {
        *self.state.lock().calls.entry(operation).or_default() += 1;
        let fault = self
            .faults
            .lock()
            .get_mut(&operation)
            .and_then(VecDeque::pop_front);
        match fault {
            None => Ok(()),
            Some(Fault::Error(error)) => Err(error),
            Some(Fault::Panic) => panic!("a panic in {operation:?}, as ordered"),
            Some(Fault::Wait(gate)) => match gate.acquire().await {
                Ok(permit) => {
                    permit.forget();
                    Ok(())
                }
                Err(_) => Err(DeviceError::new(
                    Errno::Shutdown,
                    "the gate of this fault was closed",
                )),
            },
        }
    }

    fn store(&self, offset: u64, data: &[u8], fua: bool) -> Result<(), DeviceError> {
        self.change(offset, data.len() as u64, fua, |state, range| {
            state.data[range.clone()].copy_from_slice(data);
            state.allocate(range);
        })
    }

    fn change(
        &self,
        offset: u64,
        length_bytes: u64,
        fua: bool,
        change: impl FnOnce(&mut State, std::ops::Range<usize>),
    ) -> Result<(), DeviceError> {
        let mut state = self.state.lock();
        let range = range(&state.data, offset, length_bytes)?;
        change(&mut state, range.clone());
        let State {
            data,
            durable: Some(durable),
            ..
        } = &mut *state
        else {
            return Ok(());
        };
        if fua {
            durable.resize(data.len(), 0);
            durable[range.clone()].copy_from_slice(&data[range]);
        }
        Ok(())
    }
}

impl State {
    fn allocate(&mut self, range: std::ops::Range<usize>) {
        if !range.is_empty() {
            let last = (range.end - 1) / MEMORY_BLOCK_BYTES;
            self.allocated[range.start / MEMORY_BLOCK_BYTES..=last].fill(true);
        }
    }

    /// Zeroes a range and gives back the blocks that lie in it whole.
    fn punch(&mut self, range: std::ops::Range<usize>) {
        self.data[range.clone()].fill(0);
        let first = range.start.div_ceil(MEMORY_BLOCK_BYTES);
        let to_the_end = range.end == self.data.len();
        let end = if to_the_end {
            self.allocated.len()
        } else {
            range.end / MEMORY_BLOCK_BYTES
        };
        if first < end {
            self.allocated[first..end].fill(false);
        }
    }

    /// The end of the run of blocks that has the state of the one at `at`, cut to `end`.
    fn run_end(&self, at: usize, end: usize) -> (bool, usize) {
        let block = at / MEMORY_BLOCK_BYTES;
        let allocated = self.allocated[block];
        let blocks = self.allocated[block..end.div_ceil(MEMORY_BLOCK_BYTES)]
            .iter()
            .take_while(|state| **state == allocated)
            .count();
        (allocated, ((block + blocks) * MEMORY_BLOCK_BYTES).min(end))
    }
}

fn range(data: &[u8], offset: u64, length_bytes: u64) -> Result<std::ops::Range<usize>, DeviceError> {
    let end = offset
        .checked_add(length_bytes)
        .filter(|end| *end <= data.len() as u64);
    match end {
        // Both lie within a buffer.
        Some(end) => Ok(offset as usize..end as usize),
        None => Err(DeviceError::new(
            Errno::Io,
            format!(
                "memory device: {length_bytes} bytes at offset {offset} are beyond its end at {}",
                data.len()
            ),
        )),
    }
}

#[async_trait]
impl BlockDevice for MemoryDevice {
    fn size_bytes(&self) -> u64 {
        self.state.lock().data.len() as u64
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn block_sizes(&self) -> BlockSizes {
        self.block_sizes
    }

    fn can_multi_conn(&self) -> bool {
        self.multi_conn
    }

    fn try_read(&self, offset: u64, out: &mut [u8]) -> Option<Result<QuickRead, DeviceError>> {
        {
            let state = self.state.lock();
            let range = range(&state.data, offset, out.len() as u64).ok()?;
            if state.run_end(range.start, range.end).1 < range.end {
                return None;
            }
        }
        if let Err(error) = self.begin_at_once(Operation::Read)? {
            return Some(Err(error));
        }
        let state = self.state.lock();
        let range = match range(&state.data, offset, out.len() as u64) {
            Ok(range) => range,
            Err(error) => return Some(Err(error)),
        };
        if state.run_end(range.start, range.end) == (false, range.end) {
            return Some(Ok(QuickRead::Zeroes));
        }
        out.copy_from_slice(&state.data[range]);
        Some(Ok(QuickRead::Data))
    }

    fn try_write(&self, offset: u64, data: &[u8], fua: bool) -> Option<Result<(), DeviceError>> {
        if let Err(error) = self.begin_at_once(Operation::Write)? {
            return Some(Err(error));
        }
        Some(self.store(offset, data, fua))
    }

    async fn read(&self, offset: u64, length: u32) -> Result<Bytes, DeviceError> {
        self.begin(Operation::Read).await?;
        let state = self.state.lock();
        let range = range(&state.data, offset, u64::from(length))?;
        Ok(Bytes::copy_from_slice(&state.data[range]))
    }

    async fn read_sparse(&self, offset: u64, length: u32) -> Result<Vec<ReadExtent>, DeviceError> {
        self.begin(Operation::Read).await?;
        let state = self.state.lock();
        let range = range(&state.data, offset, u64::from(length))?;
        let mut extents = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let (allocated, end) = state.run_end(at, range.end);
            extents.push(if allocated {
                ReadExtent::Data(Bytes::copy_from_slice(&state.data[at..end]))
            } else {
                // At most `length`.
                ReadExtent::Zeroes {
                    length_bytes: (end - at) as u32,
                }
            });
            at = end;
        }
        Ok(extents)
    }

    async fn write(&self, offset: u64, data: Bytes, fua: bool) -> Result<(), DeviceError> {
        self.begin(Operation::Write).await?;
        self.store(offset, &data, fua)
    }

    async fn trim(&self, offset: u64, length_bytes: u64, fua: bool) -> Result<(), DeviceError> {
        self.begin(Operation::Trim).await?;
        self.change(offset, length_bytes, fua, State::punch)
    }

    async fn write_zeroes(
        &self,
        offset: u64,
        length_bytes: u64,
        no_hole: bool,
        fua: bool,
    ) -> Result<(), DeviceError> {
        self.begin(Operation::WriteZeroes).await?;
        self.change(offset, length_bytes, fua, |state, range| {
            if no_hole {
                state.data[range.clone()].fill(0);
                state.allocate(range);
            } else {
                state.punch(range);
            }
        })
    }

    fn is_fast_zero(&self, _offset: u64, _length_bytes: u64, no_hole: bool) -> bool {
        !no_hole
    }

    async fn cache(&self, _offset: u64, _length_bytes: u64) -> Result<(), DeviceError> {
        self.begin(Operation::Cache).await
    }

    async fn flush(&self) -> Result<(), DeviceError> {
        self.begin(Operation::Flush).await?;
        let mut state = self.state.lock();
        if state.durable.is_some() {
            state.durable = Some(state.data.clone());
        }
        Ok(())
    }

    async fn block_status(
        &self,
        offset: u64,
        length_bytes: u64,
        max_extents: usize,
    ) -> Result<Vec<Extent>, DeviceError> {
        self.begin(Operation::BlockStatus).await?;
        let state = self.state.lock();
        let range = range(&state.data, offset, length_bytes)?;
        let mut extents = Vec::new();
        let mut at = range.start;
        while at < range.end && extents.len() < max_extents {
            let (allocated, end) = state.run_end(at, range.end);
            extents.push(Extent {
                length_bytes: (end - at) as u64,
                hole: !allocated,
                zero: !allocated,
            });
            at = end;
        }
        Ok(extents)
    }
}

/// Exports over devices that exist, which counts what is opened and closed.
#[derive(Default)]
pub struct MemoryExports {
    exports: Vec<(ExportInfo, Arc<dyn BlockDevice>)>,
    counts: Mutex<(u64, u64)>,
}

impl std::fmt::Debug for MemoryExports {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list()
            .entries(self.exports.iter().map(|(info, _)| info))
            .finish()
    }
}

impl MemoryExports {
    /// Without any export.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// With one more.
    #[must_use]
    pub fn with(mut self, name: &str, description: &str, device: Arc<dyn BlockDevice>) -> Self {
        let info = ExportInfo {
            name: name.to_owned(),
            description: description.to_owned(),
        };
        self.exports.push((info, device));
        self
    }

    /// How often a device was opened.
    #[must_use]
    pub fn opened(&self) -> u64 {
        self.counts.lock().0
    }

    /// How often a device was closed.
    #[must_use]
    pub fn closed(&self) -> u64 {
        self.counts.lock().1
    }
}

#[async_trait]
impl Exports for MemoryExports {
    async fn list(&self) -> Result<Vec<ExportInfo>, OpenError> {
        Ok(self.exports.iter().map(|(info, _)| info.clone()).collect())
    }

    async fn open(&self, name: &str) -> Result<Arc<dyn BlockDevice>, OpenError> {
        let found = self.exports.iter().find(|(info, _)| info.name == name);
        let Some((_, device)) = found else {
            return Err(OpenError::new(
                OpenErrorKind::Unknown,
                format!("there is no export \"{name}\""),
            ));
        };
        self.counts.lock().0 += 1;
        Ok(Arc::clone(device))
    }

    async fn close(&self, _device: Arc<dyn BlockDevice>) -> Result<(), DeviceError> {
        self.counts.lock().1 += 1;
        Ok(())
    }
}
