//! Raw export: the bytes of an image or snapshot into a file (holes stay holes) or a pipe.
//!
//! Several reads are in flight; at most [`super::CONCURRENT`] slices are in memory. A file that could not be
//! written whole does not remain.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use ferry_store::Errno;
use futures::stream::{Stream, StreamExt as _, TryStreamExt as _};
use tokio::io::{AsyncWrite, AsyncWriteExt as _, BufWriter};

use super::CONCURRENT;
use crate::error::{ImageError, Result};
use crate::image::Image;
use crate::io::read::Run;
use crate::progress::Progress;

/// Bytes read in one request.
const SLICE_BYTES: u64 = 4 << 20;
/// Zeros for pipes.
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

struct Slice {
    offset: u64,
    length_bytes: u64,
    runs: Vec<Run>,
}

/// Slices of what the handle shows, in order, read ahead.
fn slices(image: &Image, size_bytes: u64) -> impl Stream<Item = Result<Slice>> + '_ {
    futures::stream::iter((0..size_bytes).step_by(SLICE_BYTES as usize))
        .map(move |offset| async move {
            let length_bytes = SLICE_BYTES.min(size_bytes - offset);
            let runs = image.read_sparse(offset, length_bytes).await?;
            Ok(Slice {
                offset,
                length_bytes,
                runs,
            })
        })
        .buffered(CONCURRENT)
}

/// Exports what the handle shows to a new file. `EEXIST` when there is one already.
pub async fn to_file(image: &Image, path: &Path, progress: &Progress) -> Result<()> {
    let place = |error: &std::io::Error| {
        ImageError::new(
            Errno::of_io(error),
            format!("writing '{}' ({error})", path.display()),
        )
    };
    let target = path.to_owned();
    let created = blocking(move || File::create_new(target)).await?;
    let file = Arc::new(created.map_err(|error| place(&error))?);
    let written = async {
        let size_bytes = image.size_bytes();
        let mut slices = std::pin::pin!(slices(image, size_bytes));
        while let Some(slice) = slices.try_next().await? {
            let end = slice.offset + slice.length_bytes;
            let file = file.clone();
            let written = blocking(move || {
                slice
                    .runs
                    .iter()
                    .try_for_each(|(at, data)| file.write_all_at(data, *at))
            })
            .await?;
            written.map_err(|error| place(&error))?;
            progress.update(end, size_bytes);
        }
        let file = file.clone();
        let finished = blocking(move || {
            file.set_len(size_bytes)?;
            file.sync_all()
        })
        .await?;
        finished.map_err(|error| place(&error))?;
        progress.update(size_bytes.max(1), size_bytes.max(1));
        Ok(())
    }
    .await;
    if written.is_err() {
        forget(path).await;
    }
    written
}

/// Has a new file filled and makes it durable. `EEXIST` when there is one already; one that could not be filled does not
/// remain.
pub async fn new_file(
    path: &Path,
    fill: impl AsyncFnOnce(&mut (dyn AsyncWrite + Unpin + Send)) -> Result<()>,
) -> Result<()> {
    let place = |error: std::io::Error| {
        ImageError::new(
            Errno::of_io(&error),
            format!("writing '{}' ({error})", path.display()),
        )
    };
    let target = path.to_owned();
    let file = blocking(move || File::create_new(target)).await?.map_err(place)?;
    let written = async {
        let mut buffered = BufWriter::with_capacity(SLICE_BYTES as usize, tokio::fs::File::from_std(file));
        fill(&mut buffered).await?;
        buffered.flush().await.map_err(place)?;
        buffered.into_inner().sync_all().await.map_err(place)
    }
    .await;
    if written.is_err() {
        forget(path).await;
    }
    written
}

/// Removes a file that was not written whole.
async fn forget(path: &Path) {
    let target = path.to_owned();
    if let Ok(Err(error)) = blocking(move || std::fs::remove_file(target)).await {
        tracing::warn!(path = %path.display(), %error, "cannot remove a half-written export");
    }
}

/// Runs what may block where that is allowed.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| ImageError::new(Errno::EIO, format!("a worker thread broke off ({error})")))
}

/// Exports what the handle shows to a pipe; holes become zeros.
pub async fn to_writer(
    image: &Image,
    writer: &mut (dyn AsyncWrite + Unpin + Send),
    progress: &Progress,
) -> Result<()> {
    let failed = |error: std::io::Error| {
        ImageError::new(
            Errno::of_io(&error),
            format!("writing the export of '{}' ({error})", image.name()),
        )
    };
    let size_bytes = image.size_bytes();
    let mut slices = std::pin::pin!(slices(image, size_bytes));
    while let Some(slice) = slices.try_next().await? {
        let mut at = slice.offset;
        let end = slice.offset + slice.length_bytes;
        for (run_at, data) in slice.runs {
            zeroes(writer, run_at - at).await.map_err(failed)?;
            writer.write_all(&data).await.map_err(failed)?;
            at = run_at + data.len() as u64;
        }
        zeroes(writer, end - at).await.map_err(failed)?;
        progress.update(end, size_bytes);
    }
    writer.flush().await.map_err(failed)?;
    progress.update(size_bytes.max(1), size_bytes.max(1));
    Ok(())
}

async fn zeroes(writer: &mut (dyn AsyncWrite + Unpin + Send), mut length_bytes: u64) -> std::io::Result<()> {
    while length_bytes > 0 {
        let piece = length_bytes.min(ZEROES.len() as u64);
        writer.write_all(&ZEROES[..piece as usize]).await?;
        length_bytes -= piece;
    }
    Ok(())
}
