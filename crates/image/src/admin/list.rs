//! What `rbd ls -l` shows: every image and every snapshot of a namespace.

use ferry_cls::rbd::ProtectionStatus;
use ferry_store::{IoCtx, SnapId};
use futures::stream::StreamExt as _;

use super::info::{self, ParentInfo};
use super::locks::{self, LockShape};
use super::{CONCURRENT, directory};
use crate::error::{ErrorKind, ImageError, Result};
use crate::header;

/// One line: an image, or one of its snapshots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListEntry {
    /// Image name.
    pub name: String,
    /// Image id.
    pub id: String,
    /// Snapshot name; `None` for the image itself.
    pub snapshot: Option<String>,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Parent.
    pub parent: Option<ParentInfo>,
    /// Whether the snapshot is protected.
    pub protected: bool,
    /// How the image is locked.
    pub lock: Option<LockShape>,
}

/// The lines of a listing, and what could not be read.
#[derive(Debug, Default)]
pub struct Listing {
    /// Images by name, each followed by its user snapshots, oldest first.
    pub entries: Vec<ListEntry>,
    /// Images whose headers cannot be read, with the reason.
    pub failed: Vec<(String, ImageError)>,
}

/// Names of all images, sorted.
pub async fn names(io: &IoCtx) -> Result<Vec<String>> {
    Ok(directory::list(io).await?.into_keys().collect())
}

/// Lists all images with their snapshots. Images that are removed meanwhile are left out.
pub async fn long(io: &IoCtx) -> Result<Listing> {
    let images = directory::list(io).await?;
    let mut found = futures::stream::iter(images)
        .map(|(name, id)| async move {
            let entries = image(io, &name, &id).await;
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

async fn image(io: &IoCtx, name: &str, id: &str) -> Result<Vec<ListEntry>> {
    let header = header::load(io, id, true).await?;
    let lock = locks::held(header.lock.clone()).map(|held| held.shape);
    let entry = |snapshot, size_bytes| ListEntry {
        name: name.to_owned(),
        id: id.to_owned(),
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
            ..entry(Some(snap.name.clone()), snap.size_bytes)
        });
    }
    Ok(entries)
}
