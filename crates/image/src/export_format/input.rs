//! Bytes to decode, with the position that errors tell.

use bytes::{Bytes, BytesMut};
use ferry_store::Errno;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncSeek, AsyncSeekExt as _, SeekFrom};

use super::truncated;
use crate::error::{ImageError, Result};

/// Less than this is read over, not sought over.
const MIN_SEEK_BYTES: u64 = 1 << 20;
/// Bytes read over at a time.
const SKIP_BYTES: u64 = 64 << 10;

/// Something that can be read and sought: an open file.
pub trait ReadSeek: AsyncRead + AsyncSeek + Unpin + Send {}
impl<T: AsyncRead + AsyncSeek + Unpin + Send> ReadSeek for T {}

/// Where bytes come from. Buffer what you give: records are read piece by piece.
pub struct Input<'a> {
    from: From<'a>,
    at: u64,
}

enum From<'a> {
    Pipe(&'a mut (dyn AsyncRead + Unpin + Send)),
    File(&'a mut dyn ReadSeek),
}

impl std::fmt::Debug for Input<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Input")
            .field("at", &self.at)
            .finish_non_exhaustive()
    }
}

impl<'a> Input<'a> {
    /// Bytes that come once.
    pub fn pipe(reader: &'a mut (dyn AsyncRead + Unpin + Send)) -> Self {
        Self {
            from: From::Pipe(reader),
            at: 0,
        }
    }

    /// Bytes that can be skipped and read again; the file stands at its beginning.
    pub fn file(file: &'a mut dyn ReadSeek) -> Self {
        Self {
            from: From::File(file),
            at: 0,
        }
    }

    /// Bytes consumed so far.
    pub fn at(&self) -> u64 {
        self.at
    }

    /// Whether it can be read again.
    pub fn is_file(&self) -> bool {
        matches!(self.from, From::File(_))
    }

    /// Goes back to the first byte. Nothing happens on a pipe.
    pub async fn rewind(&mut self) -> Result<()> {
        if let From::File(file) = &mut self.from {
            file.seek(SeekFrom::Start(0))
                .await
                .map_err(|error| failed(self.at, &error))?;
            self.at = 0;
        }
        Ok(())
    }

    /// Fills `buffer`, a part of `what`.
    pub(crate) async fn exact(&mut self, buffer: &mut [u8], what: &str) -> Result<()> {
        let mut filled = 0;
        while filled < buffer.len() {
            let read = match &mut self.from {
                From::Pipe(reader) => reader.read(&mut buffer[filled..]).await,
                From::File(file) => file.read(&mut buffer[filled..]).await,
            };
            match read {
                Ok(0) => return Err(truncated(self.at, what)),
                Ok(count) => {
                    filled += count;
                    self.at += count as u64;
                }
                Err(error) => return Err(failed(self.at, &error)),
            }
        }
        Ok(())
    }

    pub(crate) async fn u8(&mut self, what: &str) -> Result<u8> {
        let mut byte = [0];
        self.exact(&mut byte, what).await?;
        Ok(byte[0])
    }

    pub(crate) async fn u32(&mut self, what: &str) -> Result<u32> {
        let mut word = [0; 4];
        self.exact(&mut word, what).await?;
        Ok(u32::from_le_bytes(word))
    }

    pub(crate) async fn u64(&mut self, what: &str) -> Result<u64> {
        let mut word = [0; 8];
        self.exact(&mut word, what).await?;
        Ok(u64::from_le_bytes(word))
    }

    /// `length_bytes` bytes, which the caller has bounded.
    pub(crate) async fn bytes(&mut self, length_bytes: u64, what: &str) -> Result<Bytes> {
        let mut data = BytesMut::zeroed(length_bytes as usize);
        self.exact(&mut data, what).await?;
        Ok(data.freeze())
    }

    /// Passes over bytes. The end of a file is noticed by whoever reads next.
    pub(crate) async fn skip(&mut self, length_bytes: u64, what: &str) -> Result<()> {
        if length_bytes >= MIN_SEEK_BYTES
            && let From::File(file) = &mut self.from
        {
            let by = i64::try_from(length_bytes).map_err(|_| truncated(self.at, what))?;
            file.seek(SeekFrom::Current(by))
                .await
                .map_err(|error| failed(self.at, &error))?;
            self.at = self.at.saturating_add(length_bytes);
            return Ok(());
        }
        let mut scratch = vec![0; length_bytes.min(SKIP_BYTES) as usize];
        let mut left = length_bytes;
        while left > 0 {
            let piece = left.min(SKIP_BYTES) as usize;
            self.exact(&mut scratch[..piece], what).await?;
            left -= piece as u64;
        }
        Ok(())
    }
}

fn failed(at: u64, error: &std::io::Error) -> ImageError {
    ImageError::new(
        Errno::of_io(error),
        format!("reading the file at byte {at} ({error})"),
    )
}
