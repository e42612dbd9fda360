//! Ceph's encoding: little-endian primitives, length-prefixed strings and collections, versioned sections.
//!
//! What it keeps: nothing read here can panic or allocate more than a constant times the bytes given; every length is
//! checked against what is left before it is used; an error names the field and the byte offset. What it does not
//! know: what the values mean. Source of the format: fact sheet `rbd-format`, sections 0 and 6.3.

mod bit_vector;
mod decoder;
mod encoder;
mod entity;
mod values;

pub use bit_vector::{BLOCK_BYTES, BitVector, HEADER_BYTES, MAX_OBJECTS, block_crc};
pub use decoder::{Decode, DecodeError, DecodeErrorKind, Decoder};
pub use encoder::{Encode, Encoder};
pub use entity::{EntityAddress, EntityName};

pub(crate) use bit_vector::{MapLayout, parse_header};
