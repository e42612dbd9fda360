//! What `rbd ls -l` shows: every image and every snapshot of a namespace.

use ferry_cls::rbd::ProtectionStatus;
use ferry_store::{IoCtx, SnapId};
use futures::stream::StreamExt as _;

use super::info::{self, ParentInfo};
use super::locks::{self, LockShape};
use super::{CONCURRENT, directory, format_1};
use crate::error::{ErrorKind, ImageError, Result};
use crate::header::{self, HeaderKey};

/// One line: an image, or one of its snapshots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListEntry {
    /// Image name.
    pub name: String,
    /// Image id; empty for format 1.
    pub id: String,
    /// Snapshot name and id; `None` for the image itself.
    pub snapshot: Option<(String, SnapId)>,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Parent.
    pub parent: Option<ParentInfo>,
    /// Whether the snapshot is protected.
    pub protected: bool,
    /// How the image is locked.
    pub lock: Option<LockShape>,
}

impl ListEntry {
    /// Image format, 1 or 2.
    pub fn format(&self) -> u64 {
        match self.id.is_empty() {
            true => 1,
            false => 2,
        }
    }
}

/// The lines of a listing, and what could not be read.
#[derive(Debug, Default)]
pub struct Listing {
    /// Images of format 1, then of format 2, by name, each followed by its user snapshots, oldest first.
    pub entries: Vec<ListEntry>,
    /// Images whose headers cannot be read, with the reason.
    pub failed: Vec<(String, ImageError)>,
}

/// Names of all images: those of format 1, then those of format 2, each sorted.
pub async fn names(io: &IoCtx) -> Result<Vec<String>> {
    let mut names = format_1::list(io).await?;
    names.extend(directory::list(io).await?.into_keys());
    Ok(names)
}

/// Lists all images with their snapshots. Images that are removed meanwhile are left out.
pub async fn long(io: &IoCtx) -> Result<Listing> {
    let format_1 = format_1::list(io).await?.into_iter();
    let format_1 = format_1.map(|name| (name.clone(), HeaderKey::Name(name)));
    let format_2 = directory::list(io).await?.into_iter();
    let format_2 = format_2.map(|(name, id)| (name, HeaderKey::Id(id)));
    let images: Vec<_> = format_1.chain(format_2).collect();
    let mut found = futures::stream::iter(images)
        .map(|(name, key)| async move {
            let entries = image(io, &name, &key).await;
            (name, entries)
        })
        .buffered(CONCURRENT);
    let mut listing = Listing::default();
    while let Some((name, entries)) = found.next().await {
        match entries {
            Ok(entries) => listing.entries.extend(entries),
            Err(error) if error.kind == ErrorKind::ImageMissing => {}
            Err(error) => listing.failed.push((name, error)),
        }
    }
    Ok(listing)
}

async fn image(io: &IoCtx, name: &str, key: &HeaderKey) -> Result<Vec<ListEntry>> {
    let header = header::load(io, key, true).await?;
    let lock = locks::held(header.lock.clone()).map(|held| held.shape);
    let entry = |snapshot, size_bytes| ListEntry {
        name: name.to_owned(),
        id: key.id().to_owned(),
        snapshot,
        size_bytes,
        parent: None,
        protected: false,
        lock: None,
    };
    let parent = info::parent(io, &header, SnapId::HEAD).await?;
    let mut entries = vec![ListEntry {
        parent,
        lock,
        ..entry(None, header.size_bytes)
    }];
    for snap in header.user_snaps() {
        entries.push(ListEntry {
            parent: info::parent(io, &header, snap.id).await?,
            protected: snap.protection != ProtectionStatus::Unprotected,
            ..entry(Some((snap.name.clone(), snap.id)), snap.size_bytes)
        });
    }
    Ok(entries)
}
