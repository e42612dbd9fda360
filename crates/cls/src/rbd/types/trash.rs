//! Trash entries (fact sheet sections 2.4 and 3.9).

use ferry_store::Timestamp;

use super::byte_enum;
use crate::encoding::{Decode, DecodeError, Decoder, Encode, Encoder};

byte_enum! {
    /// Why an image is in the trash.
    TrashImageSource("trash source") {
        /// A user moved it there.
        User = 0,
        /// Mirroring did.
        Mirroring = 1,
        /// It is the source of a migration.
        Migration = 2,
        /// It is being removed.
        Removing = 3,
        /// A user moved it there and it has clones.
        UserParent = 4,
    }
}

impl TrashImageSource {
    /// Name as `rbd trash ls --all` shows it.
    pub fn name(self) -> &'static str {
        match self {
            Self::User => "USER",
            Self::Mirroring => "MIRRORING",
            Self::Migration => "MIGRATION",
            Self::Removing => "REMOVING",
            Self::UserParent => "USER_PARENT",
        }
    }
}

byte_enum! {
    /// What is being done with a trash entry.
    TrashImageState("trash state") {
        /// Nothing.
        Normal = 0,
        /// Being moved into the trash.
        Moving = 1,
        /// Being removed.
        Removing = 2,
        /// Being restored.
        Restoring = 3,
    }
}

/// An entry of the trash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrashImageSpec {
    /// Why it is there.
    pub source: TrashImageSource,
    /// Name it had.
    pub name: String,
    /// When it was moved there.
    pub deletion_time: Timestamp,
    /// Until when it must not be removed without force.
    pub deferment_end_time: Timestamp,
    /// What is being done with it.
    pub state: TrashImageState,
}

impl Encode for TrashImageSpec {
    fn encode(&self, encoder: &mut Encoder) {
        encoder.frame(2, 1, |body| {
            body.put(self.source)
                .put(&self.name)
                .put(self.deletion_time)
                .put(self.deferment_end_time)
                .put(self.state);
        });
    }
}

impl Decode for TrashImageSpec {
    const MIN_BYTES: usize = 27;

    fn decode(decoder: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        decoder.frame("trash entry", 2, |version, _, body| {
            Ok(Self {
                source: body.get("trash source")?,
                name: body.get("trash image name")?,
                deletion_time: body.get("deletion time")?,
                deferment_end_time: body.get("deferment end time")?,
                state: if version >= 2 {
                    body.get("trash state")?
                } else {
                    TrashImageState::Normal
                },
            })
        })
    }
}
