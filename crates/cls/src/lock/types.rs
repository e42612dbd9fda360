//! Records of class `lock`.

use std::collections::BTreeMap;

use ferry_store::Timestamp;

use crate::encoding::{Decode, DecodeError, Decoder, Encode, Encoder, EntityAddress, EntityName};
use crate::rbd::types::byte_enum;

/// Flags of a lock request.
pub mod flag {
    /// Taking a lock that one holds refreshes it.
    pub const MAY_RENEW: u8 = 1;
    /// Only refresh: `ENOENT` if one does not hold it. Not together with [`MAY_RENEW`].
    pub const MUST_RENEW: u8 = 2;
}

byte_enum! {
    /// Who may hold a lock together.
    LockKind("lock type") {
        /// Never taken.
        None = 0,
        /// One locker.
        Exclusive = 1,
        /// Lockers of one tag.
        Shared = 2,
        /// One locker; the object is removed when it unlocks.
        ExclusiveEphemeral = 3,
    }
}

impl LockKind {
    /// Whether only one locker may hold it.
    pub fn is_exclusive(self) -> bool {
        matches!(self, Self::Exclusive | Self::ExclusiveEphemeral)
    }
}

/// A locker: who, and under which cookie.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LockerId {
    /// The client.
    pub entity: EntityName,
    /// Tells several locks of one client apart.
    pub cookie: String,
}

impl Encode for LockerId {
    fn encode(&self, encoder: &mut Encoder) {
        encoder.frame(1, 1, |body| {
            body.put(self.entity).put(&self.cookie);
        });
    }
}

impl Decode for LockerId {
    const MIN_BYTES: usize = 19;

    fn decode(decoder: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        decoder.frame("locker id", 1, |_, _, body| {
            Ok(Self {
                entity: body.get("locker")?,
                cookie: body.get("lock cookie")?,
            })
        })
    }
}

/// What is known of a locker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LockerInfo {
    /// When it lapses; zero for never.
    pub expiration: Timestamp,
    /// Where the client is.
    pub address: EntityAddress,
    /// Free text.
    pub description: String,
}

impl Encode for LockerInfo {
    fn encode(&self, encoder: &mut Encoder) {
        encoder.frame(1, 1, |body| {
            body.put(self.expiration)
                .put(&self.address)
                .put(&self.description);
        });
    }
}

impl Decode for LockerInfo {
    const MIN_BYTES: usize = 37;

    fn decode(decoder: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        decoder.frame("locker info", 1, |_, _, body| {
            Ok(Self {
                expiration: body.get("lock expiration")?,
                address: body.get("locker address")?,
                description: body.get("lock description")?,
            })
        })
    }
}

/// A lock, as stored and as `get_info` answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LockInfo {
    /// Who holds it.
    pub lockers: BTreeMap<LockerId, LockerInfo>,
    /// How it is, or was last, held.
    pub kind: LockKind,
    /// Lockers of a shared lock must agree on it.
    pub tag: String,
}

impl Default for LockInfo {
    /// A lock that was never taken.
    fn default() -> Self {
        Self {
            lockers: BTreeMap::new(),
            kind: LockKind::None,
            tag: String::new(),
        }
    }
}

impl Encode for LockInfo {
    fn encode(&self, encoder: &mut Encoder) {
        encoder.frame(1, 1, |body| {
            body.put(&self.lockers).put(self.kind).put(&self.tag);
        });
    }
}

impl Decode for LockInfo {
    const MIN_BYTES: usize = 15;

    fn decode(decoder: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        decoder.frame("lock", 1, |_, _, body| {
            Ok(Self {
                lockers: body.get("lockers")?,
                kind: body.get("lock type")?,
                tag: body.get("lock tag")?,
            })
        })
    }
}
