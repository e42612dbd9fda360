//! Imports of what differs: `import-diff`, and `import --export-format 2`.
//!
//! A diff in a file is read as a whole before the image is touched, so that one that is truncated or makes no sense changes
//! nothing; so do one whose start snapshot the image does not have, and one whose end snapshot it has already. Of a pipe
//! the rest of this can only be seen on the way: the error says so. The end snapshot is taken last. A diff that was not
//! applied whole, for whatever reason, may be applied again.

use bytes::Bytes;
use ferry_store::{Errno, IoCtx};
use futures::stream::{FuturesUnordered, TryStreamExt as _};

use super::create::CreateOptions;
use super::import::{self, ImportOptions, data_runs};
use super::{CONCURRENT, metadata};
use crate::error::{ErrorKind, ImageError, Result};
use crate::export_format::{DiffHead, DiffReader, ImageHead, Input, RunKind, Version, diff};
use crate::image::Image;
use crate::layout::MAX_ORDER;
use crate::progress::Progress;

use ferry_cls::rbd::feature;

/// Bytes of data held by one write.
const PIECE_BYTES: u64 = 4 << 20;
/// Features that say what state an image is in, not what was wished for.
const NOT_IMPORTED: u64 =
    feature::NON_PRIMARY | feature::DIRTY_CACHE | feature::OPERATIONS | feature::MIGRATING;

/// What an import noticed that is no error.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Noticed {
    /// Tags of records that were skipped as nobody here knows them.
    pub skipped_tags: Vec<u8>,
}

/// What stands in the way of a diff.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Obstacle {
    /// The image does not have its start snapshot.
    StartMissing(String),
    /// The image has its end snapshot already.
    EndExists(String),
}

/// Why a diff was not applied.
#[derive(Debug)]
pub struct ImportDiffError {
    /// What stands in the way, if the diff itself is in order.
    pub obstacle: Option<Obstacle>,
    /// The error.
    pub error: ImageError,
}

impl From<ImageError> for ImportDiffError {
    fn from(error: ImageError) -> Self {
        Self {
            obstacle: None,
            error,
        }
    }
}

/// Applies a diff of version 1 to the head, and takes the snapshot that it leads to. `EINVAL` without its start snapshot,
/// `EEXIST` with its end snapshot; [`ErrorKind::Damaged`].
pub async fn import_diff(
    image: &Image,
    input: &mut Input<'_>,
    sparse_size_bytes: u64,
    progress: &Progress,
) -> Result<Noticed, ImportDiffError> {
    import::check_sparse_size(sparse_size_bytes, image)?;
    if input.is_file() {
        let head = diff::check(input, Version::V1).await?;
        check(image, &head).await?;
        input.rewind().await?;
    }
    let mut reader = DiffReader::begin(input, Version::V1).await?;
    check(image, reader.head()).await?;
    let head = reader.head().clone();
    let applied = apply(image, &mut reader, input, sparse_size_bytes, true, progress).await;
    applied.map_err(|error| {
        let hint = match &head.from {
            Some(from) => format!(
                "the image may hold a part of the diff: import it again, or go back with 'rbd snap rollback {}@{from}'",
                image.name()
            ),
            None => "the image may hold a part of the diff: import it again".to_owned(),
        };
        ImportDiffError::from(error.hint(hint))
    })?;
    Ok(Noticed {
        skipped_tags: reader.skipped_tags().to_vec(),
    })
}

/// Whether a diff fits the snapshots of the image.
async fn check(image: &Image, head: &DiffHead) -> Result<(), ImportDiffError> {
    image.refresh_for_client().await?;
    let header = image.header();
    if let Some(from) = &head.from
        && header.snap_by_name(from).is_none()
    {
        let what = format!(
            "image '{}' has no snapshot '{from}', which the diff starts from",
            image.name()
        );
        return Err(ImportDiffError {
            obstacle: Some(Obstacle::StartMissing(from.clone())),
            error: ImageError::new(Errno::EINVAL, what),
        });
    }
    if let Some(to) = &head.to {
        crate::names::check_snap_name(to)?;
        if header.snap_by_name(to).is_some() {
            let what = format!("image '{}' has snapshot '{to}' already", image.name());
            return Err(ImportDiffError {
                obstacle: Some(Obstacle::EndExists(to.clone())),
                error: ImageError::new(Errno::EEXIST, what),
            });
        }
    }
    Ok(())
}

/// Writes the runs of a diff, and takes its snapshot. With `over` there may be something where a run is zero.
async fn apply(
    image: &Image,
    reader: &mut DiffReader,
    input: &mut Input<'_>,
    unit: u64,
    over: bool,
    progress: &Progress,
) -> Result<()> {
    let head = reader.head().clone();
    image.refresh_for_client().await?;
    if image.header().size_bytes != head.size_bytes {
        image.resize(head.size_bytes, true, &Progress::silent()).await?;
    }
    let mut writes = FuturesUnordered::new();
    let mut end = 0;
    while let Some(run) = reader.next_run(input).await? {
        if run.offset < end {
            // Runs need not ascend; of two that overlap the later counts.
            while writes.try_next().await?.is_some() {}
        }
        end = end.max(run.end());
        let mut at = run.offset;
        while at < run.end() {
            let change = match run.kind {
                RunKind::Zero => Written::Zero(run.length_bytes),
                RunKind::Write => Written::Data(reader.data(input, PIECE_BYTES).await?),
            };
            let length_bytes = change.length_bytes();
            writes.push(write(image, at, change, unit, over));
            while writes.len() >= CONCURRENT {
                writes.try_next().await?;
            }
            at += length_bytes;
        }
        progress.update(run.end(), head.size_bytes);
    }
    while writes.try_next().await?.is_some() {}
    image.flush().await?;
    if let Some(to) = &head.to {
        image.snap_create(to, &Progress::silent()).await?;
        if head.protected {
            image.snap_protect(to).await?;
        }
    }
    progress.update(head.size_bytes.max(1), head.size_bytes.max(1));
    Ok(())
}

enum Written {
    Zero(u64),
    Data(Bytes),
}

impl Written {
    fn length_bytes(&self) -> u64 {
        match self {
            Self::Zero(length_bytes) => *length_bytes,
            Self::Data(data) => data.len() as u64,
        }
    }
}

async fn write(image: &Image, offset: u64, change: Written, unit: u64, over: bool) -> Result<()> {
    let data = match change {
        Written::Zero(length_bytes) if over => return image.discard(offset, length_bytes).await,
        Written::Zero(_) => return Ok(()),
        Written::Data(data) => data,
    };
    let mut at = 0;
    for (start, end) in data_runs(&data, offset, unit) {
        if over && start > at {
            image.discard(offset + at as u64, (start - at) as u64).await?;
        }
        image.write(offset + start as u64, data.slice(start..end)).await?;
        at = end;
    }
    if over && at < data.len() {
        image
            .discard(offset + at as u64, (data.len() - at) as u64)
            .await?;
    }
    Ok(())
}

/// Makes the image `name` from an export of format 2, with its snapshots and metadata. What `options` leave open comes from
/// the export. Errors are those of [`super::create::create`], and [`ErrorKind::Damaged`]; after one no image remains.
pub async fn import_image(
    io: &IoCtx,
    name: &str,
    input: &mut Input<'_>,
    options: &ImportOptions,
    progress: &Progress,
) -> Result<Noticed> {
    let head = ImageHead::decode(input).await?;
    let mut noticed = Noticed {
        skipped_tags: head.skipped_tags.clone(),
    };
    let options = ImportOptions {
        create: from_export(&options.create, &head)?,
        ..options.clone()
    };
    let unit = options.sparse_size_bytes;
    import::make(io, name, &options, async |image: &Image| {
        for (key, value) in &head.metadata {
            metadata::set(image, key, value.clone()).await?;
        }
        for number in 0..head.diffs {
            let failed = |error: ImageError| error.context(format!("diff {} of {}", number + 1, head.diffs));
            let mut reader = DiffReader::begin(input, Version::V2).await.map_err(failed)?;
            let fits = check(image, reader.head()).await;
            fits.map_err(|failure| {
                failed(ImageError {
                    kind: ErrorKind::Damaged,
                    ..failure.error
                })
            })?;
            apply(image, &mut reader, input, unit, number > 0, &Progress::silent())
                .await
                .map_err(failed)?;
            let new = reader.skipped_tags().iter();
            let new: Vec<u8> = new
                .copied()
                .filter(|tag| !noticed.skipped_tags.contains(tag))
                .collect();
            noticed.skipped_tags.extend(new);
            progress.update(number + 1, head.diffs);
        }
        Ok(())
    })
    .await?;
    Ok(noticed)
}

/// What a new image is to be: what was asked for, else what the export says.
fn from_export(asked: &CreateOptions, head: &ImageHead) -> Result<CreateOptions> {
    let order = match head.order {
        Some(order) if order > u64::from(MAX_ORDER) => {
            return Err(ImageError::of(
                ErrorKind::Damaged,
                Errno::EDOM,
                format!("the export states an object size of 2^{order} bytes"),
            ));
        }
        order => order.map(|order| order as u8),
    };
    let mut create = asked.clone();
    create.size_bytes = 0;
    create.features = asked.features.or(head.features.map(|bits| bits & !NOT_IMPORTED));
    create.order = asked.order.or(order);
    let default_striping = head.stripe_count.unwrap_or(1) == 1
        && head
            .stripe_unit_bytes
            .is_none_or(|unit| order.is_some_and(|order| unit == 1 << order));
    if asked.stripe_unit_bytes == 0 && asked.stripe_count == 0 && !default_striping {
        create.stripe_unit_bytes = head.stripe_unit_bytes.unwrap_or(0);
        create.stripe_count = head.stripe_count.unwrap_or(0);
    }
    Ok(create)
}
