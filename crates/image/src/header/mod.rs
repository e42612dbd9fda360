//! The header of an image: what is fixed at creation, what changes, and how both are read.
//!
//! Invariant: a [`Header`] is one consistent reading; it is never changed in place but replaced by the next reading.
//! It does not know open handles, locks or I/O.

mod format_1;
mod key;
mod load;

use std::collections::BTreeMap;
use std::sync::Arc;

use ferry_cls::lock::LockInfo;
use ferry_cls::rbd::{
    MigrationHeaderType, MigrationSpec, ParentImageSpec, ProtectionStatus, SnapshotNamespace, feature,
};
use ferry_store::{IoCtx, PoolId, SnapContext, SnapId, Timestamp};

use crate::error::{ErrorKind, ImageError, Result};
use crate::layout::Layout;
use ferry_store::Errno;

pub(crate) use key::has_format_1;
pub use key::{HeaderKey, find, find_id};
pub use load::{load, load_fixed};

/// What is fixed when an image is created.
#[derive(Debug, Clone)]
pub struct Fixed {
    /// Which header.
    pub key: HeaderKey,
    /// Image id; empty for format 1.
    pub id: Arc<str>,
    /// Prefix of data objects.
    pub object_prefix: Arc<str>,
    /// How the image is cut into objects.
    pub layout: Layout,
    /// Pool of the data objects, if not the metadata pool.
    pub data_pool: Option<PoolId>,
    /// When it was created.
    pub create_timestamp: Timestamp,
}

/// One snapshot, as the header has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapRecord {
    /// Id.
    pub id: SnapId,
    /// Name.
    pub name: String,
    /// User, group, trash or mirror.
    pub namespace: SnapshotNamespace,
    /// Size of the image at the snapshot.
    pub size_bytes: u64,
    /// When it was taken.
    pub timestamp: Timestamp,
    /// Format-2 clones.
    pub child_count: u32,
    /// Protection.
    pub protection: ProtectionStatus,
    /// Object-map flags of the snapshot.
    pub flags: u64,
    /// Parent overlap at the snapshot.
    pub parent_overlap_bytes: Option<u64>,
}

/// A clone's link to its parent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParentLink {
    /// The parent snapshot.
    pub spec: ParentImageSpec,
    /// Bytes of the head that the parent still shows through; `None` when only snapshots have the parent.
    pub head_overlap_bytes: Option<u64>,
}

/// One reading of what changes in a header.
#[derive(Debug, Clone)]
pub struct Header {
    /// Size of the head.
    pub size_bytes: u64,
    /// Feature bits.
    pub features: u64,
    /// Feature bits that a client must know to use the image in the way it was opened.
    pub incompatible_features: u64,
    /// Object-map flags of the head.
    pub flags: u64,
    /// Operation features.
    pub op_features: u64,
    /// Snapshot context for data writes.
    pub snapc: SnapContext,
    /// Snapshots by id, ascending.
    pub snaps: BTreeMap<SnapId, SnapRecord>,
    /// Clone parent.
    pub parent: Option<ParentLink>,
    /// Migration record.
    pub migration: Option<MigrationSpec>,
    /// State of the header's lock.
    pub lock: LockInfo,
    /// Last access noted.
    pub access_timestamp: Timestamp,
    /// Last change noted.
    pub modify_timestamp: Timestamp,
}

impl Header {
    /// Whether all bits of `feature` are set.
    pub fn has(&self, feature: u64) -> bool {
        self.features & feature == feature
    }

    /// The snapshot of this name in the user namespace.
    pub fn snap_by_name(&self, name: &str) -> Option<&SnapRecord> {
        self.snaps
            .values()
            .find(|snap| snap.name == name && snap.namespace == SnapshotNamespace::User)
    }

    /// Size of the head or of a snapshot.
    pub fn size_at(&self, snap: SnapId) -> Option<u64> {
        if snap.is_head() {
            Some(self.size_bytes)
        } else {
            self.snaps.get(&snap).map(|record| record.size_bytes)
        }
    }

    /// Snapshots in the user namespace, ascending by id.
    pub fn user_snaps(&self) -> impl Iterator<Item = &SnapRecord> {
        self.snaps
            .values()
            .filter(|snap| snap.namespace == SnapshotNamespace::User)
    }

    /// The migration record if this image is the source of one.
    pub fn migration_source(&self) -> Option<&MigrationSpec> {
        self.migration
            .as_ref()
            .filter(|spec| spec.header_type == MigrationHeaderType::Source)
    }

    /// The migration record if this image is the target of one.
    pub fn migration_target(&self) -> Option<&MigrationSpec> {
        self.migration
            .as_ref()
            .filter(|spec| spec.header_type == MigrationHeaderType::Destination)
    }

    /// How far a migration target may hold objects that stand for (or hide) the source's: the largest of the source's
    /// size and those of the snapshots that came along. 0 for any other image.
    pub fn migration_overlap_bytes(&self) -> u64 {
        let Some(spec) = self.migration_target() else {
            return 0;
        };
        let sizes = spec
            .snap_seqs
            .values()
            .filter_map(|id| self.snaps.get(id))
            .map(|snap| snap.size_bytes);
        sizes.chain([spec.overlap_bytes]).max().unwrap_or(0)
    }

    /// How far the clone parent shows through the head or a snapshot where the image has no object; 0 without a parent.
    pub fn parent_overlap_bytes(&self, snap: SnapId) -> u64 {
        let Some(link) = &self.parent else { return 0 };
        let overlap = if snap.is_head() {
            link.head_overlap_bytes
        } else {
            let record = self.snaps.get(&snap);
            record.and_then(|record| record.parent_overlap_bytes)
        };
        overlap.unwrap_or(0)
    }

    /// How far the clone parent shows through any version; 0 without a parent.
    pub fn largest_parent_overlap_bytes(&self) -> u64 {
        let versions = self.snaps.keys().copied().chain([SnapId::HEAD]);
        let overlaps = versions.map(|snap| self.parent_overlap_bytes(snap));
        overlaps.max().unwrap_or(0)
    }

    /// Whether writers need the managed lock.
    pub fn needs_lock(&self) -> bool {
        self.has(feature::EXCLUSIVE_LOCK)
    }

    /// Whether the object map of `snap` exists and can be believed.
    pub fn object_map_valid(&self, snap: SnapId) -> bool {
        let flags = if snap.is_head() {
            Some(self.flags)
        } else {
            self.snaps.get(&snap).map(|record| record.flags)
        };
        self.has(feature::OBJECT_MAP)
            && flags.is_some_and(|flags| flags & ferry_cls::rbd::flag::OBJECT_MAP_INVALID == 0)
    }
}

/// Writes an image's header and everything that a new image needs, except its names.
pub fn damaged(io: &IoCtx, object: &str, what: impl std::fmt::Display) -> ImageError {
    ImageError::of(
        ErrorKind::Damaged,
        Errno::EIO,
        format!("{}: {what}", io.object(object)),
    )
    .hint("the stored metadata is damaged; restore it from a backup")
}

/// Checks a layout read from disk, which must make sense.
fn stored_layout(io: &IoCtx, object: &str, order: u8, unit: u64, count: u64) -> Result<Layout> {
    Layout::new(order, unit, count).map_err(|error| damaged(io, object, error.message))
}
