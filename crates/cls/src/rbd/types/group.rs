//! Consistency groups.

use ferry_store::{PoolId, SnapId};

use super::byte_enum;
use crate::encoding::{Decode, DecodeError, Decoder, Encode, Encoder};

/// Names a group.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct GroupSpec {
    /// Pool of the group.
    pub pool_id: PoolId,
    /// Id of the group.
    pub group_id: String,
}

impl GroupSpec {
    /// "In no group": pool -1, empty id.
    pub fn none() -> Self {
        Self {
            pool_id: PoolId::NONE,
            group_id: String::new(),
        }
    }

    /// Whether this names a group.
    pub fn exists(&self) -> bool {
        self.pool_id != PoolId::NONE && !self.group_id.is_empty()
    }
}

impl Encode for GroupSpec {
    fn encode(&self, encoder: &mut Encoder) {
        encoder.frame(1, 1, |body| {
            body.put(self.pool_id).put(&self.group_id);
        });
    }
}

impl Decode for GroupSpec {
    const MIN_BYTES: usize = 18;

    fn decode(decoder: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        decoder.frame("group spec", 1, |_, _, body| {
            Ok(Self {
                pool_id: body.get("group pool")?,
                group_id: body.get("group id")?,
            })
        })
    }
}

/// Names an image of a group. Ordered by pool, then id, as its keys in the group's header.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct GroupImageSpec {
    /// Image id.
    pub image_id: String,
    /// Pool of the image.
    pub pool_id: PoolId,
}

impl Encode for GroupImageSpec {
    fn encode(&self, encoder: &mut Encoder) {
        encoder.frame(1, 1, |body| {
            body.put(&self.image_id).put(self.pool_id);
        });
    }
}

impl Decode for GroupImageSpec {
    const MIN_BYTES: usize = 18;

    fn decode(decoder: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        decoder.frame("group image spec", 1, |_, _, body| {
            Ok(Self {
                image_id: body.get("image id")?,
                pool_id: body.get("image pool")?,
            })
        })
    }
}

byte_enum! {
    /// Whether the link between group and image is complete on both sides.
    GroupLinkState("group link state") {
        /// Both sides know.
        Attached = 0,
        /// Being made or removed.
        Incomplete = 1,
    }
}

/// An image of a group with its link's state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupImageStatus {
    /// The image.
    pub spec: GroupImageSpec,
    /// State of the link.
    pub state: GroupLinkState,
}

impl Encode for GroupImageStatus {
    fn encode(&self, encoder: &mut Encoder) {
        encoder.frame(1, 1, |body| {
            body.put(&self.spec).put(self.state);
        });
    }
}

impl Decode for GroupImageStatus {
    const MIN_BYTES: usize = 25;

    fn decode(decoder: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        decoder.frame("group image status", 1, |_, _, body| {
            Ok(Self {
                spec: body.get("group image spec")?,
                state: body.get("group link state")?,
            })
        })
    }
}

byte_enum! {
    /// How far a snapshot of a group has come.
    GroupSnapshotState("group snapshot state") {
        /// Being taken, or left by one that was interrupted: not all images have it.
        Incomplete = 0,
        /// All images have it.
        Complete = 1,
    }
}

/// The part that one image has in a snapshot of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageSnapshotSpec {
    /// Pool of the image.
    pub pool_id: PoolId,
    /// Id of the image.
    pub image_id: String,
    /// Its snapshot; 0 while the group snapshot is incomplete.
    pub snap_id: SnapId,
}

impl Encode for ImageSnapshotSpec {
    fn encode(&self, encoder: &mut Encoder) {
        encoder.frame(1, 1, |body| {
            body.put(self.pool_id).put(&self.image_id).put(self.snap_id);
        });
    }
}

impl Decode for ImageSnapshotSpec {
    const MIN_BYTES: usize = 26;

    fn decode(decoder: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        decoder.frame("image snapshot spec", 1, |_, _, body| {
            Ok(Self {
                pool_id: body.get("image pool")?,
                image_id: body.get("image id")?,
                snap_id: body.get("image snapshot id")?,
            })
        })
    }
}

/// A snapshot of a group, as the group's header keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupSnapshot {
    /// Id, in no use before.
    pub id: String,
    /// Name; no two snapshots of a group share one.
    pub name: String,
    /// How far it has come.
    pub state: GroupSnapshotState,
    /// The snapshots of the images that were in the group.
    pub snaps: Vec<ImageSnapshotSpec>,
}

impl Encode for GroupSnapshot {
    fn encode(&self, encoder: &mut Encoder) {
        encoder.frame(1, 1, |body| {
            body.put(&self.id)
                .put(&self.name)
                .put(self.state)
                .put(&self.snaps);
        });
    }
}

impl Decode for GroupSnapshot {
    const MIN_BYTES: usize = 19;

    fn decode(decoder: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        decoder.frame("group snapshot", 1, |_, _, body| {
            Ok(Self {
                id: body.get("group snapshot id")?,
                name: body.get("group snapshot name")?,
                state: body.get("group snapshot state")?,
                snaps: body.get("group snapshot images")?,
            })
        })
    }
}
