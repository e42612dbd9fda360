//! The migration record that source and destination headers carry (fact sheet section 3.8).

use std::collections::BTreeMap;

use ferry_store::{PoolId, SnapId};

use super::byte_enum;
use crate::encoding::{Decode, DecodeError, Decoder, Encode, Encoder};

byte_enum! {
    /// Which side of a migration a header is.
    MigrationHeaderType("migration header type") {
        /// The image that is moved; the record names the destination.
        Source = 1,
        /// The image it becomes; the record names the source.
        Destination = 2,
    }
}

byte_enum! {
    /// How far a migration is.
    MigrationState("migration state") {
        /// Failed; see the description.
        Error = 0,
        /// The destination is being made.
        Preparing = 1,
        /// The destination is in use, nothing is copied in the background.
        Prepared = 2,
        /// Copying.
        Executing = 3,
        /// Copied.
        Executed = 4,
        /// Going back to the source.
        Aborting = 5,
    }
}

impl MigrationState {
    /// Lower-case name, as `rbd status` shows it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Preparing => "preparing",
            Self::Prepared => "prepared",
            Self::Executing => "executing",
            Self::Executed => "executed",
            Self::Aborting => "aborting",
        }
    }
}

byte_enum! {
    /// How the source was mirrored before the migration.
    MirrorImageMode("mirror image mode") {
        /// By journal.
        Journal = 0,
        /// By snapshots.
        Snapshot = 1,
    }
}

/// A `migration` key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MigrationSpec {
    /// Which side this header is. The image fields below name the other side.
    pub header_type: MigrationHeaderType,
    /// Pool of the other side; -1 for a source that is no RBD image.
    pub pool_id: PoolId,
    /// RADOS namespace of the other side.
    pub pool_namespace: String,
    /// Image name of the other side.
    pub image_name: String,
    /// Image id of the other side; empty for a format-1 source.
    pub image_id: String,
    /// Source snapshot ids to destination ids (destination headers).
    pub snap_seqs: BTreeMap<SnapId, SnapId>,
    /// Source size when prepared (destination headers).
    pub overlap_bytes: u64,
    /// The destination is made independent of the source's parent.
    pub flatten: bool,
    /// The source was mirrored.
    pub mirroring: bool,
    /// How far the migration is.
    pub state: MigrationState,
    /// Progress or error text.
    pub state_description: String,
    /// How the source was mirrored.
    pub mirror_image_mode: MirrorImageMode,
    /// JSON text naming a source that is no RBD image; empty for RBD sources.
    pub source_spec: String,
}

impl Encode for MigrationSpec {
    fn encode(&self, encoder: &mut Encoder) {
        let compat = if self.source_spec.is_empty() { 1 } else { 3 };
        encoder.frame(3, compat, |body| {
            body.put(self.header_type)
                .put(self.pool_id)
                .put(&self.pool_namespace)
                .put(&self.image_name)
                .put(&self.image_id)
                .put(&self.snap_seqs)
                .put(self.overlap_bytes)
                .put(self.flatten)
                .put(self.mirroring)
                .put(self.state)
                .put(&self.state_description)
                .put(self.mirror_image_mode)
                .put(&self.source_spec);
        });
    }
}

impl Decode for MigrationSpec {
    const MIN_BYTES: usize = 50;

    fn decode(decoder: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        decoder.frame("migration", 3, |version, _, body| {
            Ok(Self {
                header_type: body.get("migration header type")?,
                pool_id: body.get("migration pool")?,
                pool_namespace: body.get("migration namespace")?,
                image_name: body.get("migration image name")?,
                image_id: body.get("migration image id")?,
                snap_seqs: body.get("migration snapshot map")?,
                overlap_bytes: body.get("migration overlap")?,
                flatten: body.get("migration flatten")?,
                mirroring: body.get("migration mirroring")?,
                state: body.get("migration state")?,
                state_description: body.get("migration state description")?,
                mirror_image_mode: if version >= 2 {
                    body.get("mirror image mode")?
                } else {
                    MirrorImageMode::Journal
                },
                source_spec: if version >= 3 {
                    body.get("migration source spec")?
                } else {
                    String::new()
                },
            })
        })
    }
}
