//! Exports of what differs: `export-diff`, and `export --export-format 2`, which is the properties of an image and one
//! difference for each snapshot and the head.
//!
//! Reads of several extents are in flight; extents larger than [`READ_AHEAD_BYTES`] are read in pieces. Data that turns
//! out to be zero is written as a run of zeroes.

use bytes::Bytes;
use ferry_store::{Errno, SnapId};
use futures::stream::{StreamExt as _, TryStreamExt as _};
use tokio::io::{AsyncWrite, AsyncWriteExt as _};

use super::import::is_zero;
use super::{CONCURRENT, metadata};
use crate::diff::{Diff, DiffExtent};
use crate::error::{ImageError, Result};
use crate::export_format::diff::{encode_end, encode_head, encode_run};
use crate::export_format::{DiffHead, ImageHead, Run, RunKind, Version};
use crate::image::{Image, OpenOptions, SnapKey};
use crate::io::read::MAX_READ_BYTES;
use crate::progress::Progress;

/// Largest extent that is read as a whole, ahead of being written.
const READ_AHEAD_BYTES: u64 = 4 << 20;
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

type Writer<'a> = &'a mut (dyn AsyncWrite + Unpin + Send);

/// Writes what differs between the snapshot `from` (or nothing) and what the handle shows. `ENOENT`
/// ([`crate::ErrorKind::SnapMissing`]), `EINVAL` for a start that is newer than the end, and what writing gives.
pub async fn export_diff(
    image: &Image,
    from: Option<SnapId>,
    whole_object: bool,
    out: Writer<'_>,
    progress: &Progress,
) -> Result<()> {
    let diff = Diff::new(image, from, whole_object).await?;
    one_diff(image, &diff, from, Version::V1, out, progress).await?;
    flush(out).await
}

/// Writes the image with all of its snapshots, whatever version the handle shows.
pub async fn export_image(image: &Image, out: Writer<'_>, progress: &Progress) -> Result<()> {
    image.refresh_for_client().await?;
    let header = image.header();
    let layout = image.layout();
    let snaps: Vec<SnapId> = header.user_snaps().map(|snap| snap.id).collect();
    let diffs = snaps.len() as u64 + 1;
    let head = ImageHead {
        order: Some(u64::from(layout.order())),
        features: Some(header.features),
        stripe_unit_bytes: Some(layout.stripe_unit_bytes()),
        stripe_count: Some(layout.stripe_count()),
        metadata: metadata::list(image).await?,
        diffs,
        skipped_tags: Vec::new(),
    };
    write(out, &head.encode()).await?;
    let mut from = None;
    for (done, snap) in (1..).zip(snaps.into_iter().map(Some).chain([None])) {
        let options = match snap {
            Some(snap) => OpenOptions::read_only().at(SnapKey::Id(snap)),
            None => OpenOptions::read_only(),
        };
        let version = Image::open(image.io(), image.key().as_image_key(), options).await?;
        let written = async {
            let diff = Diff::new(&version, from, false).await?;
            one_diff(&version, &diff, from, Version::V2, out, &Progress::silent()).await
        }
        .await;
        let closed = version.close().await;
        written?;
        closed?;
        progress.update(done, diffs);
        from = snap;
    }
    flush(out).await
}

async fn one_diff(
    image: &Image,
    diff: &Diff,
    from: Option<SnapId>,
    version: Version,
    out: Writer<'_>,
    progress: &Progress,
) -> Result<()> {
    let header = image.header();
    let name = |snap: SnapId| header.snaps.get(&snap).map(|snap| snap.name.clone());
    let end = header.snaps.get(&image.read_snap());
    let head = DiffHead {
        from: from.and_then(name),
        to: end.map(|snap| snap.name.clone()),
        protected: end.is_some_and(|snap| snap.protection == ferry_cls::rbd::ProtectionStatus::Protected),
        size_bytes: diff.size_bytes(),
    };
    write(out, &encode_head(version, &head)).await?;
    let extents = diff
        .extents()
        .map_ok(|extents| futures::stream::iter(extents.into_iter().map(Ok)))
        .try_flatten();
    let mut ahead = std::pin::pin!(
        extents
            .map(|extent: Result<DiffExtent>| async move {
                let extent = extent?;
                let data = match extent.exists && extent.length_bytes <= READ_AHEAD_BYTES {
                    true => Some(image.read(extent.offset.0, extent.length_bytes).await?),
                    false => None,
                };
                Ok::<_, ImageError>((extent, data))
            })
            .buffered(CONCURRENT)
    );
    while let Some((extent, data)) = ahead.try_next().await? {
        one_run(image, version, extent, data, out).await?;
        progress.update(extent.offset.0, head.size_bytes);
    }
    write(out, &encode_end()).await?;
    progress.update(head.size_bytes.max(1), head.size_bytes.max(1));
    Ok(())
}

async fn one_run(
    image: &Image,
    version: Version,
    extent: DiffExtent,
    data: Option<Bytes>,
    out: Writer<'_>,
) -> Result<()> {
    let run = |kind| {
        let run = Run {
            kind,
            offset: extent.offset.0,
            length_bytes: extent.length_bytes,
        };
        encode_run(version, run)
    };
    match data {
        Some(data) if is_zero(&data) => write(out, &run(RunKind::Zero)).await,
        Some(data) => {
            write(out, &run(RunKind::Write)).await?;
            write(out, &data).await
        }
        None if !extent.exists => write(out, &run(RunKind::Zero)).await,
        // Piece by piece; the record's kind is known when the first byte of data is found.
        None => {
            let mut zeroes = 0;
            let mut begun = false;
            let mut at = extent.offset.0;
            while at < extent.end() {
                let piece = (extent.end() - at).min(READ_AHEAD_BYTES.min(MAX_READ_BYTES));
                let data = image.read(at, piece).await?;
                at += piece;
                if !begun && is_zero(&data) {
                    zeroes += piece;
                    continue;
                }
                if !begun {
                    begun = true;
                    write(out, &run(RunKind::Write)).await?;
                    while zeroes > 0 {
                        let piece = zeroes.min(ZEROES.len() as u64);
                        write(out, &ZEROES[..piece as usize]).await?;
                        zeroes -= piece;
                    }
                }
                write(out, &data).await?;
            }
            match begun {
                true => Ok(()),
                false => write(out, &run(RunKind::Zero)).await,
            }
        }
    }
}

async fn write(out: Writer<'_>, data: &[u8]) -> Result<()> {
    out.write_all(data).await.map_err(|error| failed(&error))
}

async fn flush(out: Writer<'_>) -> Result<()> {
    out.flush().await.map_err(|error| failed(&error))
}

fn failed(error: &std::io::Error) -> ImageError {
    ImageError::new(Errno::of_io(error), format!("writing the export ({error})"))
}
