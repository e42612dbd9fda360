//! Raw import: a file (its holes stay holes) or a pipe of unknown length becomes an image.
//!
//! The image has no name until it is whole and on the medium ([`super::staged`]): a failed import leaves nothing, and what
//! a killed one leaves is cleared by the next command that uses the name. Runs of zeros are not written. Several writes
//! are in flight; at most [`super::CONCURRENT`] slices and one are in memory.

use std::fs::File;
use std::os::unix::fs::{FileExt as _, FileTypeExt as _};
use std::path::Path;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use ferry_store::{Errno, IoCtx};
use futures::stream::{FuturesUnordered, StreamExt as _, TryStreamExt as _};
use rustix::fs::SeekFrom;
use tokio::io::{AsyncRead, AsyncReadExt as _};

use super::create::{self, CreateOptions};
use super::export::blocking;
use super::{CONCURRENT, staged, trash};
use crate::error::{ImageError, Result};
use crate::image::{Image, ImageKey, OpenOptions};
use crate::progress::Progress;

/// Runs of zeros of this length are not written, when nothing else is said.
pub const DEFAULT_SPARSE_SIZE_BYTES: u64 = 4096;
/// Bytes read in one request.
const SLICE_BYTES: u64 = 4 << 20;
/// How much an image of unknown length grows at a time: as much as it has, within these bounds.
const MIN_GROWTH_BYTES: u64 = 64 << 20;
const MAX_GROWTH_BYTES: u64 = 16 << 30;
static ZEROES: [u8; 4096] = [0; 4096];

/// How to import.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportOptions {
    /// The new image; its size comes from what is imported.
    pub create: CreateOptions,
    /// Zeros are left out in units of this many bytes: a power of two from 512 to the object size.
    pub sparse_size_bytes: u64,
}

impl Default for ImportOptions {
    fn default() -> Self {
        Self {
            create: CreateOptions::default(),
            sparse_size_bytes: DEFAULT_SPARSE_SIZE_BYTES,
        }
    }
}

/// Imports a file, block device or pipe by path. Errors are those of opening and reading it, and of
/// [`create::create`].
pub async fn from_path(
    io: &IoCtx,
    name: &str,
    path: &Path,
    options: &ImportOptions,
    progress: &Progress,
) -> Result<()> {
    let failed = |error: std::io::Error| {
        ImageError::new(
            Errno::of_io(&error),
            format!("reading '{}' ({error})", path.display()),
        )
    };
    let source = path.to_owned();
    let opened = blocking(move || {
        let file = File::open(source)?;
        let metadata = file.metadata()?;
        Ok((file, metadata))
    })
    .await?;
    let (file, metadata) = opened.map_err(failed)?;
    if metadata.is_dir() {
        return Err(ImageError::new(
            Errno::EISDIR,
            format!("'{}' is a directory", path.display()),
        ));
    }
    if !metadata.is_file() && !metadata.file_type().is_block_device() {
        let mut reader = tokio::fs::File::from_std(file);
        return from_reader(io, name, &mut reader, options, progress).await;
    }
    let size_bytes = rustix::fs::seek(&file, SeekFrom::End(0)).map_err(|error| failed(error.into()))?;
    let mut options = options.clone();
    options.create.size_bytes = size_bytes;
    let place = path.display().to_string();
    make(io, name, &options, async |image: &Image| {
        copy_file(
            image,
            Arc::new(file),
            &place,
            size_bytes,
            options.sparse_size_bytes,
            progress,
        )
        .await
    })
    .await
}

/// Imports all that a pipe gives until it ends.
pub async fn from_reader(
    io: &IoCtx,
    name: &str,
    reader: &mut (dyn AsyncRead + Unpin + Send),
    options: &ImportOptions,
    progress: &Progress,
) -> Result<()> {
    let mut options = options.clone();
    options.create.size_bytes = 0;
    make(io, name, &options, async |image: &Image| {
        copy_stream(image, reader, options.sparse_size_bytes, progress).await
    })
    .await
}

/// Makes an image, has it filled, and gives it its name when it is durable.
pub(super) async fn make(
    io: &IoCtx,
    name: &str,
    options: &ImportOptions,
    fill: impl AsyncFnOnce(&Image) -> Result<()>,
) -> Result<()> {
    let accept = |object_size_bytes| check_unit(options.sparse_size_bytes, object_size_bytes);
    make_image(io, name, &options.create, accept, fill).await
}

/// The same for an image that is filled from elsewhere; `accept` may refuse its object size.
pub(super) async fn make_image(
    io: &IoCtx,
    name: &str,
    options: &CreateOptions,
    accept: impl FnOnce(u64) -> Result<()>,
    fill: impl AsyncFnOnce(&Image) -> Result<()>,
) -> Result<()> {
    let checked = create::check(io, name, options).await?;
    accept(checked.layout.object_size_bytes())?;
    staged::clear(io, name).await?;
    let id = staged::begin(io, name).await?;
    let made = async {
        create::write_objects(io, &id, &checked).await?;
        let image = Image::open(io, ImageKey::Id(&id), OpenOptions::read_write()).await?;
        let filled = match still_staged(io, name, &id).await {
            Ok(()) => fill(&image).await,
            Err(error) => Err(error),
        };
        let flushed = match filled {
            Ok(()) => image.flush().await,
            Err(error) => Err(error),
        };
        let closed = image.close().await;
        flushed?;
        closed?;
        staged::finish(io, name, &id).await
    }
    .await;
    if made.is_err() {
        staged::abandon(io, name, &id).await;
    }
    made
}

/// Refuses a unit of zeroes that the image cannot have. `EINVAL`.
pub(super) fn check_sparse_size(unit: u64, image: &Image) -> Result<()> {
    check_unit(unit, image.layout().object_size_bytes())
}

pub(super) fn check_unit(unit: u64, object_size_bytes: u64) -> Result<()> {
    if !unit.is_power_of_two() || unit < 512 || unit > object_size_bytes {
        return Err(
            ImageError::new(Errno::EINVAL, format!("sparse size of {unit} bytes"))
                .hint("use a power of two from 512 to the object size"),
        );
    }
    Ok(())
}

/// From here on the open image keeps others from clearing it away; they may have begun just before.
async fn still_staged(io: &IoCtx, name: &str, id: &str) -> Result<()> {
    let entry = trash::find(io, id).await?;
    if entry.is_some_and(|entry| entry.state == ferry_cls::rbd::TrashImageState::Normal) {
        return Ok(());
    }
    Err(ImageError::new(
        Errno::ECANCELED,
        format!("image '{name}' was cleared away while it was being made"),
    )
    .hint("another command worked on the same name; run this one again"))
}

async fn copy_file(
    image: &Image,
    file: Arc<File>,
    place: &str,
    size_bytes: u64,
    unit: u64,
    progress: &Progress,
) -> Result<()> {
    let mut segments = Segments {
        file: file.clone(),
        at: 0,
        end: 0,
        size_bytes,
    };
    let slices = futures::stream::iter(std::iter::from_fn(move || segments.next_slice().transpose()));
    let failed =
        |error: std::io::Error| ImageError::new(Errno::of_io(&error), format!("reading '{place}' ({error})"));
    let mut written = slices
        .map(|slice| {
            let file = file.clone();
            async move {
                let (offset, length_bytes) = slice.map_err(failed)?;
                let read = blocking(move || {
                    let mut data = BytesMut::zeroed(length_bytes as usize);
                    file.read_exact_at(&mut data, offset).map(|()| data.freeze())
                })
                .await?;
                write_sparse(image, offset, read.map_err(failed)?, unit).await?;
                Ok::<u64, ImageError>(offset + length_bytes)
            }
        })
        .buffered(CONCURRENT);
    while let Some(done) = written.try_next().await? {
        progress.update(done, size_bytes);
    }
    progress.update(size_bytes.max(1), size_bytes.max(1));
    Ok(())
}

/// The parts of a file that are no holes, in slices that begin at multiples of [`SLICE_BYTES`] where they can.
struct Segments {
    file: Arc<File>,
    at: u64,
    /// End of the run of data that `at` is in.
    end: u64,
    size_bytes: u64,
}

impl Segments {
    fn next_slice(&mut self) -> std::io::Result<Option<(u64, u64)>> {
        if self.at >= self.end && !self.find_data()? {
            return Ok(None);
        }
        let border = (self.at / SLICE_BYTES + 1) * SLICE_BYTES;
        let offset = self.at;
        self.at = border.min(self.end);
        Ok(Some((offset, self.at - offset)))
    }

    fn find_data(&mut self) -> std::io::Result<bool> {
        if self.at >= self.size_bytes {
            return Ok(false);
        }
        match rustix::fs::seek(&*self.file, SeekFrom::Data(self.at)) {
            Ok(data) => {
                self.at = data;
                self.end = rustix::fs::seek(&*self.file, SeekFrom::Hole(data))?.min(self.size_bytes);
                Ok(self.at < self.end)
            }
            // Nothing but a hole to the end.
            Err(rustix::io::Errno::NXIO) => Ok(false),
            // Devices and some file systems do not tell.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::OPNOTSUPP) => {
                self.end = self.size_bytes;
                Ok(true)
            }
            Err(error) => Err(error.into()),
        }
    }
}

async fn copy_stream(
    image: &Image,
    reader: &mut (dyn AsyncRead + Unpin + Send),
    unit: u64,
    progress: &Progress,
) -> Result<()> {
    let mut size_bytes = 0;
    let mut at = 0;
    let mut writes = FuturesUnordered::new();
    loop {
        let data = read_slice(reader).await.map_err(|error| {
            ImageError::new(
                Errno::of_io(&error),
                format!("reading the import at {at} ({error})"),
            )
        })?;
        if data.is_empty() {
            break;
        }
        let end = at + data.len() as u64;
        if end > size_bytes {
            // Resizing waits for writes under way, and nobody drives them meanwhile: so they are finished first.
            while writes.try_next().await?.is_some() {}
            size_bytes = end + size_bytes.clamp(MIN_GROWTH_BYTES, MAX_GROWTH_BYTES);
            image.resize(size_bytes, false, &Progress::silent()).await?;
        }
        writes.push(write_sparse(image, at, data, unit));
        while writes.len() >= CONCURRENT {
            writes.try_next().await?;
        }
        at = end;
        progress.update(at, size_bytes);
    }
    while writes.try_next().await?.is_some() {}
    image.resize(at, true, &Progress::silent()).await?;
    progress.update(at.max(1), at.max(1));
    Ok(())
}

/// The next slice; short only at the end, empty after it.
async fn read_slice(reader: &mut (dyn AsyncRead + Unpin + Send)) -> std::io::Result<Bytes> {
    let mut data = BytesMut::with_capacity(SLICE_BYTES as usize);
    let mut limited = reader.take(SLICE_BYTES);
    while limited.read_buf(&mut data).await? > 0 {}
    Ok(data.freeze())
}

/// Writes what is not zero, in units that begin at multiples of `unit`.
pub(super) async fn write_sparse(image: &Image, offset: u64, data: Bytes, unit: u64) -> Result<()> {
    for (start, end) in data_runs(&data, offset, unit) {
        image.write(offset + start as u64, data.slice(start..end)).await?;
    }
    Ok(())
}

/// Runs (from, to) of units that are not all zero.
pub(super) fn data_runs(data: &[u8], offset: u64, unit: u64) -> Vec<(usize, usize)> {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    let mut at = 0;
    while at < data.len() {
        let to_border = unit - (offset + at as u64) % unit;
        let end = data.len().min(at.saturating_add(to_border as usize));
        if !is_zero(&data[at..end]) {
            match runs.last_mut() {
                Some(run) if run.1 == at => run.1 = end,
                _ => runs.push((at, end)),
            }
        }
        at = end;
    }
    runs
}

pub(super) fn is_zero(data: &[u8]) -> bool {
    data.chunks(ZEROES.len())
        .all(|chunk| *chunk == ZEROES[..chunk.len()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_are_left_out_in_whole_units() {
        let mut data = vec![0u8; 4096];
        data[600] = 1;
        data[1023] = 1;
        data[1024] = 1;
        assert_eq!(data_runs(&data, 0, 512), [(512, 1536)]);
        assert_eq!(data_runs(&data, 0, 4096), [(0, 4096)]);
        assert_eq!(
            data_runs(&data, 256, 512),
            [(256, 1280)],
            "units lie in the image, not in the slice"
        );
        assert_eq!(data_runs(&[0; 100], 0, 512), []);
    }
}
