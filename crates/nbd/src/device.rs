//! The block device that the server serves.
//!
//! The promise: everything the protocol layer needs to know of a device stands in [`BlockDevice`]; the server
//! checks every request against `size_bytes`, `read_only` and `block_sizes` before a method is called, so an
//! implementation sees only ranges that were inside the device a moment ago.

use std::fmt;
use std::io;

use async_trait::async_trait;
use bytes::Bytes;

use crate::proto;

/// Bytes read at a time when a range is only to be cached.
const CACHE_STEP_BYTES: u64 = 1 << 20;

/// What a request does next ([`BlockDevice::go_on_here`]). It never blocks.
pub type Next = Box<dyn FnOnce() + Send>;

/// Something with bytes to serve.
///
/// Calls run concurrently, from one connection and from several. A call that was answered is complete for every
/// later call on any connection; calls in flight at the same time may take effect in any order.
///
/// A future is run to its end, also when its client has gone away. Only a shutdown whose grace has run out drops
/// futures halfway.
///
/// A panic in a method becomes an `EIO` reply to that one request.
#[async_trait]
pub trait BlockDevice: Send + Sync {
    /// Size now, in bytes. It may change while clients are connected; requests are checked against the size of
    /// the moment, though the protocol has no way to tell a client of a new one.
    fn size_bytes(&self) -> u64;

    /// Whether writes of every kind are refused with `EPERM`.
    fn read_only(&self) -> bool;

    /// Limits that clients are told and requests are checked against.
    fn block_sizes(&self) -> BlockSizes {
        BlockSizes::default()
    }

    /// Whether a flush on one connection makes durable what was answered on the others, so that a client may
    /// spread its work over several connections.
    fn can_multi_conn(&self) -> bool;

    /// Reads exactly `length` bytes at `offset`.
    async fn read(&self, offset: u64, length: u32) -> Result<Bytes, DeviceError>;

    /// Reads exactly `length` bytes at `offset` as consecutive pieces. The server reads through this method, so a
    /// device that knows its holes, or that has its bytes in several buffers, need not build one buffer.
    async fn read_sparse(&self, offset: u64, length: u32) -> Result<Vec<ReadExtent>, DeviceError> {
        Ok(vec![ReadExtent::Data(self.read(offset, length).await?)])
    }

    /// Reads like [`read_sparse`](BlockDevice::read_sparse), but at once or not at all: fills `out` with the bytes
    /// at `offset`, or says that all of them are zeroes. `None` means that the read would have to wait for more
    /// than the page cache (a lock that is held, metadata that is not loaded, a copy-up, a range that is partly
    /// hole); the server then calls [`read_sparse`](BlockDevice::read_sparse), and what `out` holds by then does
    /// not matter.
    ///
    /// The server tries this first, on the thread of the connection, inside its tokio runtime but outside any task.
    /// It may make system calls that the page cache mostly answers; it must not wait for other requests or tasks.
    /// `out` is not empty, and holds old bytes when it comes.
    fn try_read(&self, offset: u64, out: &mut [u8]) -> Option<Result<QuickRead, DeviceError>> {
        let _ = (offset, out);
        None
    }

    /// Writes like [`write`](BlockDevice::write), but at once or not at all, in the way of
    /// [`try_read`](BlockDevice::try_read). `None` means that nothing was changed, and the server then calls
    /// [`write`](BlockDevice::write). A write with `fua` that would have to wait for a disk is `None` too.
    fn try_write(&self, offset: u64, data: &[u8], fua: bool) -> Option<Result<(), DeviceError>> {
        let _ = (offset, data, fua);
        None
    }

    /// Flushes like [`flush`](BlockDevice::flush), on the calling thread, which may block: it has nothing else to do. The
    /// server asks on the thread of a connection whose client waits for every reply. `None`: nothing was done, and the
    /// server calls [`flush`](BlockDevice::flush).
    fn flush_here(&self) -> Option<Result<(), DeviceError>> {
        None
    }

    /// Asked when a request that waited for this device is woken, on the thread that wakes it: takes what is to be done
    /// next if that thread will do it very soon, with nothing held, and has the time to encode and send a reply. Otherwise
    /// it gives it back, and it becomes a task of the runtime.
    fn go_on_here(&self, next: Next) -> Result<(), Next> {
        Err(next)
    }

    /// Writes `data` at `offset`; with `fua` it is durable before the call returns.
    ///
    /// Small `data` may be a slice of a larger receive buffer: copy it rather than keep it.
    async fn write(&self, offset: u64, data: Bytes, fua: bool) -> Result<(), DeviceError>;

    /// Takes note that the content of a range is no longer needed. `length_bytes` is at most 1 GiB: the server
    /// splits longer requests.
    async fn trim(&self, offset: u64, length_bytes: u64, fua: bool) -> Result<(), DeviceError>;

    /// Makes a range read as zeroes. With `no_hole` the range must be allocated, so that a later write can't run
    /// out of space. `length_bytes` is at most 1 GiB: the server splits longer requests.
    async fn write_zeroes(
        &self,
        offset: u64,
        length_bytes: u64,
        no_hole: bool,
        fua: bool,
    ) -> Result<(), DeviceError>;

    /// Whether [`write_zeroes`](BlockDevice::write_zeroes) with these arguments, of any length, would surely take
    /// less time than writing that many bytes. Clients that would rather write the zeroes themselves are told so
    /// at once when it is false. Must not wait for anything.
    fn is_fast_zero(&self, offset: u64, length_bytes: u64, no_hole: bool) -> bool {
        let _ = (offset, length_bytes, no_hole);
        false
    }

    /// Takes note that a range, at most 64 MiB long, will be read soon. What it does changes no content, only the
    /// time that later calls take. By default the range is read and the bytes are dropped, which fills the caches
    /// on the way.
    async fn cache(&self, offset: u64, length_bytes: u64) -> Result<(), DeviceError> {
        let end = offset.saturating_add(length_bytes);
        let mut at = offset;
        while at < end {
            // At most CACHE_STEP_BYTES.
            let step = (end - at).min(CACHE_STEP_BYTES) as u32;
            self.read_sparse(at, step).await?;
            at += u64::from(step);
        }
        Ok(())
    }

    /// Makes durable every write, trim and write of zeroes that was answered before this call.
    async fn flush(&self) -> Result<(), DeviceError>;

    /// What is allocated (context `base:allocation`), as consecutive extents from `offset`: at least one, at most
    /// `max_extents`. They may end before the range does, when finding out more would be slow; what reaches
    /// beyond the range is cut off by the server.
    async fn block_status(
        &self,
        offset: u64,
        length_bytes: u64,
        max_extents: usize,
    ) -> Result<Vec<Extent>, DeviceError>;
}

/// What [`BlockDevice::try_read`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QuickRead {
    /// The buffer was filled.
    Data,
    /// The whole range reads as zeroes, and is told to the client as a hole; the buffer need not be filled.
    Zeroes,
}

/// A piece of a read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReadExtent {
    /// Bytes.
    Data(Bytes),
    /// That many zero bytes, without a buffer that holds them.
    Zeroes {
        /// Length in bytes.
        length_bytes: u32,
    },
}

impl ReadExtent {
    /// Length in bytes.
    #[must_use]
    pub fn length_bytes(&self) -> u64 {
        match self {
            Self::Data(data) => data.len() as u64,
            Self::Zeroes { length_bytes } => u64::from(*length_bytes),
        }
    }
}

/// A range with one allocation state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Length in bytes, not zero.
    pub length_bytes: u64,
    /// Not allocated: a write may run out of space.
    pub hole: bool,
    /// Reads as zeroes. When false the content is not known.
    pub zero: bool,
}

/// Size limits of a device, all in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockSizes {
    /// Offsets and lengths must be multiples of this. A power of two, at most 64 KiB.
    pub minimum: u32,
    /// From this size on, aligned requests are efficient. A power of two, at least 512 and `minimum`.
    pub preferred: u32,
    /// Longest read or write. At least `preferred`.
    pub maximum: u32,
}

impl Default for BlockSizes {
    /// What the protocol expects when nothing is said: 1, 4096, 32 MiB.
    fn default() -> Self {
        Self {
            minimum: 1,
            preferred: 4096,
            maximum: 32 << 20,
        }
    }
}

impl BlockSizes {
    /// Whether the three obey the protocol's rules, as stated at each field.
    ///
    /// # Errors
    /// The rule that is broken.
    pub fn validate(&self) -> Result<(), BlockSizesError> {
        if !self.minimum.is_power_of_two() || self.minimum > 1 << 16 {
            return Err(BlockSizesError::Minimum(self.minimum));
        }
        if !self.preferred.is_power_of_two() || self.preferred < self.minimum.max(512) {
            return Err(BlockSizesError::Preferred(self.preferred));
        }
        if self.maximum < self.preferred {
            return Err(BlockSizesError::Maximum(self.maximum));
        }
        Ok(())
    }

    /// The same sizes with none above `limit_bytes`, which must be at least 64 KiB for valid sizes to stay valid.
    #[must_use]
    pub(crate) fn limited_to(self, limit_bytes: u32) -> Self {
        let largest_power = 1u32 << (31 - limit_bytes.max(1).leading_zeros());
        Self {
            minimum: self.minimum,
            preferred: self.preferred.min(largest_power),
            maximum: self.maximum.min(limit_bytes),
        }
    }
}

/// Why block sizes are not valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BlockSizesError {
    /// The minimum is not a power of two up to 64 KiB.
    #[error("minimum block size {0} is not a power of two up to 65536")]
    Minimum(u32),
    /// The preferred size is not a power of two from 512 and the minimum on.
    #[error("preferred block size {0} is not a power of two of at least 512 and the minimum")]
    Preferred(u32),
    /// The maximum is below the preferred size.
    #[error("maximum block size {0} is below the preferred size")]
    Maximum(u32),
}

/// The error numbers that the protocol knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Errno {
    /// Not permitted, also: device is read-only.
    Perm,
    /// Input or output failed.
    Io,
    /// Out of memory.
    NoMem,
    /// Not a valid request.
    Inval,
    /// No space left, also: beyond the end of the device.
    NoSpc,
    /// Too large.
    Overflow,
    /// Not supported.
    NotSup,
    /// The server is going down.
    Shutdown,
}

impl Errno {
    /// The number on the wire.
    #[must_use]
    pub const fn code(self) -> u32 {
        match self {
            Self::Perm => 1,
            Self::Io => 5,
            Self::NoMem => 12,
            Self::Inval => 22,
            Self::NoSpc => 28,
            Self::Overflow => 75,
            Self::NotSup => 95,
            Self::Shutdown => 108,
        }
    }

    /// The error for a number from the wire. The protocol asks clients to read an unknown one as `EINVAL`.
    #[must_use]
    pub const fn from_code(code: u32) -> Self {
        match code {
            1 => Self::Perm,
            5 => Self::Io,
            12 => Self::NoMem,
            28 => Self::NoSpc,
            75 => Self::Overflow,
            95 => Self::NotSup,
            108 => Self::Shutdown,
            _ => Self::Inval,
        }
    }

    /// The nearest error for a Linux errno. What has no counterpart is an I/O error.
    #[must_use]
    pub const fn from_linux(errno: i32) -> Self {
        match errno {
            // EPERM, EACCES, EROFS
            1 | 13 | 30 => Self::Perm,
            12 => Self::NoMem,
            22 => Self::Inval,
            // ENOSPC, EFBIG, EDQUOT
            28 | 27 | 122 => Self::NoSpc,
            75 => Self::Overflow,
            95 => Self::NotSup,
            108 => Self::Shutdown,
            _ => Self::Io,
        }
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Perm => "EPERM",
            Self::Io => "EIO",
            Self::NoMem => "ENOMEM",
            Self::Inval => "EINVAL",
            Self::NoSpc => "ENOSPC",
            Self::Overflow => "EOVERFLOW",
            Self::NotSup => "ENOTSUP",
            Self::Shutdown => "ESHUTDOWN",
        })
    }
}

/// A request that a device could not carry out. Number and message both reach a client that agreed to structured
/// replies; others get the number.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{errno}: {message}")]
pub struct DeviceError {
    /// What kind of failure.
    pub errno: Errno,
    /// What and where, for a person. Only the first 4096 bytes are sent.
    pub message: String,
    out_of_space: bool,
}

impl DeviceError {
    /// An error of the given kind.
    pub fn new(errno: Errno, message: impl Into<String>) -> Self {
        Self {
            errno,
            message: message.into(),
            out_of_space: false,
        }
    }

    /// A change did not find the space that it needs, and might find it later.
    pub fn out_of_space(message: impl Into<String>) -> Self {
        Self {
            out_of_space: true,
            ..Self::new(Errno::NoSpc, message)
        }
    }

    /// Whether the same request may succeed once somebody has made room.
    #[must_use]
    pub fn is_out_of_space(&self) -> bool {
        self.out_of_space
    }
}

impl From<io::Error> for DeviceError {
    fn from(error: io::Error) -> Self {
        match error.raw_os_error() {
            // ENOSPC, EDQUOT
            Some(28 | 122) => Self::out_of_space(error.to_string()),
            errno => Self::new(errno.map_or(Errno::Io, Errno::from_linux), error.to_string()),
        }
    }
}

/// The longest prefix of `text` that the protocol can carry as a string.
pub(crate) fn wire_string(text: &str) -> &str {
    let mut end = text.len().min(proto::MAX_STRING_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_number_survives_the_wire() {
        for errno in [
            Errno::Perm,
            Errno::Io,
            Errno::NoMem,
            Errno::Inval,
            Errno::NoSpc,
            Errno::Overflow,
            Errno::NotSup,
            Errno::Shutdown,
        ] {
            assert_eq!(Errno::from_code(errno.code()), errno);
        }
        assert_eq!(Errno::from_code(4711), Errno::Inval);
    }

    #[test]
    fn errors_of_the_operating_system_map_to_the_nearest() {
        assert_eq!(
            DeviceError::from(io::Error::from_raw_os_error(122)).errno,
            Errno::NoSpc
        );
        for (errno, out_of_space) in [(28, true), (122, true), (27, false), (5, false)] {
            let error = DeviceError::from(io::Error::from_raw_os_error(errno));
            assert_eq!(error.is_out_of_space(), out_of_space, "{error}");
        }
        assert_eq!(
            DeviceError::from(io::Error::from_raw_os_error(30)).errno,
            Errno::Perm
        );
        assert_eq!(
            DeviceError::from(io::Error::from_raw_os_error(110)).errno,
            Errno::Io
        );
        assert_eq!(DeviceError::from(io::Error::other("x")).errno, Errno::Io);
    }

    #[test]
    fn block_sizes_that_break_a_rule_are_refused() {
        let good = BlockSizes::default();
        assert_eq!(good.validate(), Ok(()));
        assert_eq!(
            BlockSizes { minimum: 0, ..good }.validate(),
            Err(BlockSizesError::Minimum(0))
        );
        assert_eq!(
            BlockSizes {
                minimum: 1 << 17,
                ..good
            }
            .validate(),
            Err(BlockSizesError::Minimum(1 << 17))
        );
        assert_eq!(
            BlockSizes {
                preferred: 256,
                ..good
            }
            .validate(),
            Err(BlockSizesError::Preferred(256))
        );
        assert_eq!(
            BlockSizes { maximum: 512, ..good }.validate(),
            Err(BlockSizesError::Maximum(512))
        );
    }

    #[test]
    fn limited_sizes_stay_valid() {
        let sizes = BlockSizes {
            minimum: 512,
            preferred: 4 << 20,
            maximum: 32 << 20,
        };
        let limited = sizes.limited_to(3 << 20);
        assert_eq!(
            limited,
            BlockSizes {
                minimum: 512,
                preferred: 2 << 20,
                maximum: 3 << 20
            }
        );
        assert_eq!(limited.validate(), Ok(()));
    }

    #[test]
    fn a_long_message_is_cut_between_characters() {
        let text = format!("{}ä", "x".repeat(4095));
        assert_eq!(wire_string(&text).len(), 4095);
        assert_eq!(wire_string("short"), "short");
    }
}
