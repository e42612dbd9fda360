//! Snapshot records and their namespaces.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use ferry_store::{PoolId, SnapId, Timestamp};

use super::{GroupSpec, StoredParent, byte_enum};
use crate::encoding::{Decode, DecodeError, Decoder, Encode, Encoder};

byte_enum! {
    /// Whether a snapshot may have clone-v1 children and may not be removed.
    ProtectionStatus("protection status") {
        /// May be removed.
        Unprotected = 0,
        /// On the way to unprotected; new children are refused.
        Unprotecting = 1,
        /// May have children, may not be removed.
        Protected = 2,
    }
}

byte_enum! {
    /// Role of a mirror snapshot.
    MirrorSnapshotState("mirror snapshot state") {
        /// Made on the primary.
        Primary = 0,
        /// The primary's last before it was demoted.
        PrimaryDemoted = 1,
        /// Copied from the primary.
        NonPrimary = 2,
        /// Copy of a demoted primary's.
        NonPrimaryDemoted = 3,
    }
}

/// What a mirror snapshot records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MirrorNamespace {
    /// Role.
    pub state: MirrorSnapshotState,
    /// Whether the copy is complete.
    pub complete: bool,
    /// Peers that still need it.
    pub mirror_peer_uuids: BTreeSet<String>,
    /// The primary's mirror uuid.
    pub primary_mirror_uuid: String,
    /// Snapshot of the primary (for primaries: clean since this snapshot).
    pub primary_snap_id: SnapId,
    /// Objects copied so far.
    pub last_copied_object_number: u64,
    /// Snapshot ids of the primary to ours.
    pub snap_seqs: BTreeMap<SnapId, SnapId>,
    /// Group and group snapshot (newer releases only).
    pub group: Option<(GroupSpec, String)>,
}

/// Why a snapshot exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SnapshotNamespace {
    /// A user made it.
    User,
    /// Part of a group snapshot.
    Group {
        /// Pool of the group.
        group_pool: PoolId,
        /// Id of the group.
        group_id: String,
        /// Id of the group snapshot.
        group_snapshot_id: String,
    },
    /// Removed by its user, kept for its children.
    Trash {
        /// Name it had.
        original_name: String,
        /// Namespace type it had.
        original_namespace_type: u32,
    },
    /// Made by mirroring.
    Mirror(MirrorNamespace),
    /// A type of a newer release, kept as it was read.
    Unknown {
        /// Frame version it was written with.
        version: u8,
        /// Type number.
        kind: u32,
        /// The rest of the frame.
        body: Bytes,
    },
}

impl SnapshotNamespace {
    /// Type number of [`SnapshotNamespace::User`].
    pub const USER: u32 = 0;
    /// Type number of [`SnapshotNamespace::Group`].
    pub const GROUP: u32 = 1;
    /// Type number of [`SnapshotNamespace::Trash`].
    pub const TRASH: u32 = 2;
    /// Type number of [`SnapshotNamespace::Mirror`].
    pub const MIRROR: u32 = 3;

    /// Type number, as stored.
    pub fn kind(&self) -> u32 {
        match self {
            Self::User => Self::USER,
            Self::Group { .. } => Self::GROUP,
            Self::Trash { .. } => Self::TRASH,
            Self::Mirror(_) => Self::MIRROR,
            Self::Unknown { kind, .. } => *kind,
        }
    }

    /// Name of the type, as `rbd snap ls --all` shows it.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Group { .. } => "group",
            Self::Trash { .. } => "trash",
            Self::Mirror(_) => "mirror",
            Self::Unknown { .. } => "unknown",
        }
    }

    /// Whether two snapshots of one name would clash: equal namespaces, where all trash namespaces count as equal.
    pub fn clashes_with(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Trash { .. }, Self::Trash { .. }) => true,
            _ => self == other,
        }
    }
}

impl Encode for SnapshotNamespace {
    fn encode(&self, encoder: &mut Encoder) {
        let version = match self {
            Self::Unknown { version, .. } => *version,
            Self::Mirror(mirror) if mirror.group.is_some() => 2,
            _ => 1,
        };
        encoder.frame(version, 1, |frame| {
            frame.put(self.kind());
            match self {
                Self::User => {}
                Self::Group {
                    group_pool,
                    group_id,
                    group_snapshot_id,
                } => {
                    frame.put(*group_pool).put(group_id).put(group_snapshot_id);
                }
                Self::Trash {
                    original_name,
                    original_namespace_type,
                } => {
                    frame.put(original_name).put(*original_namespace_type);
                }
                Self::Mirror(mirror) => mirror.encode_body(frame),
                Self::Unknown { body, .. } => {
                    frame.put_raw(body);
                }
            }
        });
    }
}

impl Decode for SnapshotNamespace {
    const MIN_BYTES: usize = 10;

    fn decode(decoder: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        decoder.frame("snapshot namespace", 2, |version, _, frame| {
            let kind: u32 = frame.get("snapshot namespace type")?;
            Ok(match kind {
                Self::USER => Self::User,
                Self::GROUP => Self::Group {
                    group_pool: frame.get("group pool")?,
                    group_id: frame.get("group id")?,
                    group_snapshot_id: frame.get("group snapshot id")?,
                },
                Self::TRASH => Self::Trash {
                    original_name: frame.get("original snapshot name")?,
                    original_namespace_type: frame.get("original namespace type")?,
                },
                Self::MIRROR => Self::Mirror(MirrorNamespace::decode_body(version, frame)?),
                kind => Self::Unknown {
                    version,
                    kind,
                    body: Bytes::copy_from_slice(frame.take_rest()),
                },
            })
        })
    }
}

impl MirrorNamespace {
    fn encode_body(&self, frame: &mut Encoder) {
        frame
            .put(self.state)
            .put(self.complete)
            .put(&self.mirror_peer_uuids)
            .put(&self.primary_mirror_uuid)
            .put(self.primary_snap_id)
            .put(self.last_copied_object_number)
            .put(&self.snap_seqs);
        if let Some((group, group_snap_id)) = &self.group {
            frame.put(group).put(group_snap_id);
        }
    }

    fn decode_body(version: u8, frame: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            state: frame.get("mirror snapshot state")?,
            complete: frame.get("mirror snapshot complete")?,
            mirror_peer_uuids: frame.get("mirror peer uuids")?,
            primary_mirror_uuid: frame.get("primary mirror uuid")?,
            primary_snap_id: frame.get("primary snapshot id")?,
            last_copied_object_number: frame.get("last copied object")?,
            snap_seqs: frame.get("mirror snapshot map")?,
            group: if version >= 2 {
                Some((frame.get("mirror group")?, frame.get("mirror group snapshot id")?))
            } else {
                None
            },
        })
    }
}

/// A `snapshot_*` key of a header (`cls_rbd_snap`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredSnapshot {
    /// Id.
    pub id: SnapId,
    /// Name; unique within a namespace.
    pub name: String,
    /// Image size when it was made.
    pub image_size_bytes: u64,
    /// Protection.
    pub protection_status: ProtectionStatus,
    /// Flags of the object map, see [`crate::rbd::flag`].
    pub flags: u64,
    /// Why it exists.
    pub namespace: SnapshotNamespace,
    /// When it was made.
    pub timestamp: Timestamp,
    /// Clone-v2 children.
    pub child_count: u32,
    /// How many bytes come from the parent; `None` without parent.
    pub parent_overlap_bytes: Option<u64>,
    /// Full link to the parent in records written before Nautilus; never written here (see
    /// `rbd::methods`: a rewrite moves it to the header's `parent` key).
    pub legacy_parent: Option<StoredParent>,
}

impl StoredSnapshot {
    /// How many bytes come from the parent, in either form of the record.
    pub fn effective_parent_overlap_bytes(&self) -> Option<u64> {
        let legacy = || self.legacy_parent.as_ref()?.head_overlap_bytes;
        self.parent_overlap_bytes.or_else(legacy)
    }

    /// Whether it has a parent, in either form of the record.
    pub fn has_parent(&self) -> bool {
        self.parent_overlap_bytes.is_some() || self.legacy_parent.is_some()
    }

    /// What `snapshot_get` tells of it.
    pub fn info(&self) -> SnapshotInfo {
        SnapshotInfo {
            id: self.id,
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            image_size_bytes: self.image_size_bytes,
            timestamp: self.timestamp,
            child_count: self.child_count,
        }
    }
}

impl Encode for StoredSnapshot {
    fn encode(&self, encoder: &mut Encoder) {
        encoder.frame(8, 8, |body| {
            body.put(self.id)
                .put(&self.name)
                .put(self.image_size_bytes)
                .put(self.protection_status)
                .put(self.flags)
                .put(&self.namespace)
                .put(self.timestamp)
                .put(self.child_count)
                .put(self.parent_overlap_bytes);
        });
    }
}

impl Decode for StoredSnapshot {
    const MIN_BYTES: usize = 26;

    /// Tells the legacy layout by the compat version, as Ceph does: both layouts call themselves version 8.
    fn decode(decoder: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        decoder.frame("snapshot", 8, |version, compat, body| {
            let id = body.get("snapshot id")?;
            let name = body.get("snapshot name")?;
            let image_size_bytes = body.get("snapshot image size")?;
            let mut legacy_parent = None;
            if compat < 8 {
                let _features: u64 = body.get("snapshot features")?;
                if version >= 2 {
                    let parent: StoredParent = body.get("snapshot parent")?;
                    legacy_parent = parent.spec.exists().then_some(parent);
                }
            }
            let since = |first: u8| version >= first;
            Ok(Self {
                id,
                name,
                image_size_bytes,
                protection_status: if since(3) {
                    body.get("protection status")?
                } else {
                    ProtectionStatus::Unprotected
                },
                flags: if since(4) { body.get("snapshot flags")? } else { 0 },
                namespace: if since(5) {
                    body.get("snapshot namespace")?
                } else {
                    SnapshotNamespace::User
                },
                timestamp: if since(6) {
                    body.get("snapshot timestamp")?
                } else {
                    Timestamp::default()
                },
                child_count: if since(7) { body.get("child count")? } else { 0 },
                parent_overlap_bytes: if since(8) {
                    body.get("snapshot parent overlap")?
                } else {
                    None
                },
                legacy_parent,
            })
        })
    }
}

/// What `snapshot_get` answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// Id.
    pub id: SnapId,
    /// Why it exists.
    pub namespace: SnapshotNamespace,
    /// Name; unique within a namespace.
    pub name: String,
    /// Image size when it was made.
    pub image_size_bytes: u64,
    /// When it was made.
    pub timestamp: Timestamp,
    /// Clone-v2 children.
    pub child_count: u32,
}

impl Encode for SnapshotInfo {
    fn encode(&self, encoder: &mut Encoder) {
        encoder.frame(1, 1, |body| {
            body.put(self.id)
                .put(&self.namespace)
                .put(&self.name)
                .put(self.image_size_bytes)
                .put(self.timestamp)
                .put(self.child_count);
        });
    }
}

impl Decode for SnapshotInfo {
    const MIN_BYTES: usize = 44;

    fn decode(decoder: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        decoder.frame("snapshot info", 1, |_, _, body| {
            Ok(Self {
                id: body.get("snapshot id")?,
                namespace: body.get("snapshot namespace")?,
                name: body.get("snapshot name")?,
                image_size_bytes: body.get("snapshot image size")?,
                timestamp: body.get("snapshot timestamp")?,
                child_count: body.get("child count")?,
            })
        })
    }
}
