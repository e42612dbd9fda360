//! Records of class `rbd`, as stored and as sent (fact sheet sections 2, 3.8 and 3.9).
//!
//! Every type decodes older versions of itself, skips what newer ones append, and encodes as 16.2.15 does.

mod group;
mod migration;
mod parent;
mod replies;
mod snapshot;
mod trash;

pub use group::{
    GroupImageSpec, GroupImageStatus, GroupLinkState, GroupSnapshot, GroupSnapshotState, GroupSpec,
    ImageSnapshotSpec,
};
pub use migration::{MigrationHeaderType, MigrationSpec, MigrationState, MirrorImageMode};
pub use parent::{ChildImageSpec, ParentImageSpec, StoredParent};
pub use replies::{
    DirectoryState, FeaturesReply, LegacyParent, ObjectState, SizeReply, SnapContextReply, SnapcAssertion,
    StripeReply,
};
pub use snapshot::{
    MirrorNamespace, MirrorSnapshotState, ProtectionStatus, SnapshotInfo, SnapshotNamespace, StoredSnapshot,
};
pub use trash::{TrashImageSource, TrashImageSpec, TrashImageState};

/// Declares a one-byte enum with its encoding; unknown bytes are refused.
macro_rules! byte_enum {
    (
        $(#[$outer:meta])*
        $name:ident ($field:literal) { $($(#[$inner:meta])* $variant:ident = $value:literal,)* }
    ) => {
        $(#[$outer])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum $name {
            $($(#[$inner])* $variant = $value,)*
        }

        impl $name {
            /// The variant of a stored byte.
            pub fn from_byte(byte: u8) -> Option<Self> {
                match byte {
                    $($value => Some(Self::$variant),)*
                    _ => None,
                }
            }

            /// The byte that is stored.
            pub fn byte(self) -> u8 {
                self as u8
            }
        }

        impl crate::encoding::Encode for $name {
            fn encode(&self, encoder: &mut crate::encoding::Encoder) {
                encoder.put(self.byte());
            }
        }

        impl crate::encoding::Decode for $name {
            fn decode(
                decoder: &mut crate::encoding::Decoder<'_>,
            ) -> Result<Self, crate::encoding::DecodeError> {
                let byte: u8 = decoder.get($field)?;
                Self::from_byte(byte).ok_or_else(|| decoder.bad_value($field, u64::from(byte)))
            }
        }
    };
}
pub(crate) use byte_enum;
