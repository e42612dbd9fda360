//! Encodings of plain values, collections and the store contract's ids.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use ferry_store::{PoolId, SnapId, Timestamp};

use super::decoder::{Decode, DecodeError, Decoder};
use super::encoder::{Encode, Encoder};

macro_rules! integers {
    ($($int:ty),*) => {$(
        impl Encode for $int {
            fn encode(&self, encoder: &mut Encoder) {
                encoder.put_raw(&self.to_le_bytes());
            }
        }

        impl Decode for $int {
            const MIN_BYTES: usize = size_of::<$int>();

            fn decode(decoder: &mut Decoder<'_>) -> Result<Self, DecodeError> {
                let mut raw = [0; size_of::<$int>()];
                raw.copy_from_slice(decoder.take(size_of::<$int>())?);
                Ok(<$int>::from_le_bytes(raw))
            }
        }
    )*};
}

integers!(u8, u16, u32, u64, i32, i64);

impl Encode for bool {
    fn encode(&self, encoder: &mut Encoder) {
        u8::from(*self).encode(encoder);
    }
}

impl Decode for bool {
    fn decode(decoder: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        Ok(u8::decode(decoder)? != 0)
    }
}

impl Encode for str {
    fn encode(&self, encoder: &mut Encoder) {
        encoder.put_bytes(self.as_bytes());
    }
}

impl Encode for String {
    fn encode(&self, encoder: &mut Encoder) {
        self.as_str().encode(encoder);
    }
}

impl Encode for Bytes {
    fn encode(&self, encoder: &mut Encoder) {
        encoder.put_bytes(self);
    }
}

impl<T: Encode> Encode for Option<T> {
    fn encode(&self, encoder: &mut Encoder) {
        encoder.put(self.is_some());
        if let Some(value) = self {
            value.encode(encoder);
        }
    }
}

impl<T: Decode> Decode for Option<T> {
    fn decode(decoder: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        if bool::decode(decoder)? {
            T::decode(decoder).map(Some)
        } else {
            Ok(None)
        }
    }
}

impl<T: Encode> Encode for [T] {
    fn encode(&self, encoder: &mut Encoder) {
        encoder.put_length(self.len());
        for item in self {
            item.encode(encoder);
        }
    }
}

impl<T: Encode> Encode for Vec<T> {
    fn encode(&self, encoder: &mut Encoder) {
        self.as_slice().encode(encoder);
    }
}

impl<T: Decode> Decode for Vec<T> {
    const MIN_BYTES: usize = 4;

    fn decode(decoder: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        let count = decoder.count(T::MIN_BYTES)?;
        let mut items = Vec::new(); // grows with what really decodes, not with what the count claims
        for _ in 0..count {
            items.push(T::decode(decoder)?);
        }
        Ok(items)
    }
}

impl<T: Encode> Encode for BTreeSet<T> {
    fn encode(&self, encoder: &mut Encoder) {
        encoder.put_length(self.len());
        for item in self {
            item.encode(encoder);
        }
    }
}

impl<T: Decode + Ord> Decode for BTreeSet<T> {
    const MIN_BYTES: usize = 4;

    fn decode(decoder: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        let count = decoder.count(T::MIN_BYTES)?;
        let mut items = BTreeSet::new();
        for _ in 0..count {
            items.insert(T::decode(decoder)?);
        }
        Ok(items)
    }
}

impl<K: Encode, V: Encode> Encode for BTreeMap<K, V> {
    fn encode(&self, encoder: &mut Encoder) {
        encoder.put_length(self.len());
        for (key, value) in self {
            key.encode(encoder);
            value.encode(encoder);
        }
    }
}

impl<K: Decode + Ord, V: Decode> Decode for BTreeMap<K, V> {
    const MIN_BYTES: usize = 4;

    fn decode(decoder: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        let count = decoder.count(K::MIN_BYTES + V::MIN_BYTES)?;
        let mut pairs = BTreeMap::new();
        for _ in 0..count {
            let key = K::decode(decoder)?;
            pairs.insert(key, V::decode(decoder)?);
        }
        Ok(pairs)
    }
}

impl Encode for Timestamp {
    fn encode(&self, encoder: &mut Encoder) {
        encoder.put(self.seconds).put(self.nanoseconds);
    }
}

impl Decode for Timestamp {
    const MIN_BYTES: usize = 8;

    fn decode(decoder: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            seconds: u32::decode(decoder)?,
            nanoseconds: u32::decode(decoder)?,
        })
    }
}

impl Encode for SnapId {
    fn encode(&self, encoder: &mut Encoder) {
        self.0.encode(encoder);
    }
}

impl Decode for SnapId {
    const MIN_BYTES: usize = 8;

    fn decode(decoder: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        u64::decode(decoder).map(Self)
    }
}

impl Encode for PoolId {
    fn encode(&self, encoder: &mut Encoder) {
        self.0.encode(encoder);
    }
}

impl Decode for PoolId {
    const MIN_BYTES: usize = 8;

    fn decode(decoder: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        i64::decode(decoder).map(Self)
    }
}
