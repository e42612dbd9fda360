//! Small values that only requests and answers have.

use ferry_store::{PoolId, SnapContext, SnapId};

use super::{ParentImageSpec, byte_enum};
use crate::encoding::{Decode, DecodeError, Decoder, Encode, Encoder};

/// Declares a struct whose encoding is its fields in order, without a frame.
macro_rules! plain_reply {
    (
        $(#[$outer:meta])*
        $name:ident { $($(#[$inner:meta])* $field:ident: $kind:ty = $label:literal,)* }
    ) => {
        $(#[$outer])*
        pub struct $name {
            $($(#[$inner])* pub $field: $kind,)*
        }

        impl Encode for $name {
            fn encode(&self, encoder: &mut Encoder) {
                encoder$(.put(&self.$field))*;
            }
        }

        impl Decode for $name {
            const MIN_BYTES: usize = 0 $(+ <$kind as Decode>::MIN_BYTES)*;

            fn decode(decoder: &mut Decoder<'_>) -> Result<Self, DecodeError> {
                Ok(Self { $($field: decoder.get($label)?,)* })
            }
        }
    };
}

plain_reply! {
    /// What `get_size` answers.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    SizeReply {
        /// Object size as a power of two.
        order: u8 = "order",
        /// Image size in bytes.
        size_bytes: u64 = "size",
    }
}

plain_reply! {
    /// What `get_features` answers.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    FeaturesReply {
        /// Feature bits of the image.
        features: u64 = "features",
        /// Those that a client must know to open the image as it asked.
        incompatible: u64 = "incompatible features",
    }
}

plain_reply! {
    /// What `get_snapcontext` answers.
    #[derive(Debug, Clone, PartialEq, Eq)]
    SnapContextReply {
        /// Highest snapshot id ever added.
        snap_seq: u64 = "snapshot sequence",
        /// Living ids, descending.
        snap_ids: Vec<SnapId> = "snapshot ids",
    }
}

impl SnapContextReply {
    /// The context for data writes; `None` when the header's sequence and ids contradict each other.
    pub fn to_snap_context(&self) -> Option<SnapContext> {
        SnapContext::new(self.snap_seq, self.snap_ids.clone())
    }
}

plain_reply! {
    /// What `get_stripe_unit_count` answers.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    StripeReply {
        /// Bytes written to one object before the next.
        stripe_unit_bytes: u64 = "stripe unit",
        /// Objects in a stripe.
        stripe_count: u64 = "stripe count",
    }
}

plain_reply! {
    /// What the legacy method `get_parent` answers.
    #[derive(Debug, Clone, PartialEq, Eq)]
    LegacyParent {
        /// Pool; -1 without parent.
        pool_id: PoolId = "parent pool",
        /// Image id.
        image_id: String = "parent image id",
        /// Snapshot; the head without parent.
        snap_id: SnapId = "parent snapshot id",
        /// Overlap in bytes; 0 without parent.
        overlap_bytes: u64 = "parent overlap",
    }
}

impl LegacyParent {
    /// The same link in today's form, in the default namespace.
    pub fn spec(&self) -> ParentImageSpec {
        ParentImageSpec {
            pool_id: self.pool_id,
            pool_namespace: String::new(),
            image_id: self.image_id.clone(),
            snap_id: self.snap_id,
        }
    }
}

byte_enum! {
    /// State of one object in an object map.
    ObjectState("object state") {
        /// Surely absent.
        Nonexistent = 0,
        /// May exist and may have changed since the previous snapshot.
        Exists = 1,
        /// Is being removed.
        Pending = 2,
        /// May exist, has not changed since the previous snapshot.
        ExistsClean = 3,
    }
}

byte_enum! {
    /// Whether a namespace's directory takes new images.
    DirectoryState("directory state") {
        /// Takes them.
        Ready = 0,
        /// Refuses them: the namespace is being removed.
        AddDisabled = 1,
    }
}

byte_enum! {
    /// What `assert_snapc_seq` compares the object's newest snapshot sequence with.
    SnapcAssertion("snapshot context assertion") {
        /// The object is absent or was last written under an older sequence than the given one.
        GreaterThanObject = 0,
        /// The object is present and was written under the given sequence or a newer one.
        LessOrEqualObject = 1,
    }
}
