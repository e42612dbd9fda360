//! Striping: which object, and where in it, an image offset lies, and back (rbd-format sheet, 6.1).
//!
//! Invariant: [`Layout::map`] and [`Layout::unmap`] are inverse to each other for every valid layout. Pure arithmetic.

use ferry_store::Errno;

use crate::error::{ImageError, Result};

/// Byte offset in an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ImageOffset(pub u64);

/// Byte offset in an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectOffset(pub u64);

/// Number of an object of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectNo(pub u64);

/// A run of bytes of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ImageExtent {
    /// First byte.
    pub offset: ImageOffset,
    /// Length in bytes.
    pub length_bytes: u64,
}

/// A run of bytes inside one object, and the image offset of its first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ObjectExtent {
    /// The object.
    pub object_no: ObjectNo,
    /// First byte in it.
    pub offset: ObjectOffset,
    /// Length in bytes; never crosses a stripe unit.
    pub length_bytes: u64,
    /// Where its first byte lies in the image.
    pub image_offset: ImageOffset,
}

/// Smallest object size exponent (4 KiB).
pub const MIN_ORDER: u8 = 12;
/// Largest object size exponent (32 MiB).
pub const MAX_ORDER: u8 = 25;
/// Object size exponent of an image when none is given (4 MiB).
pub const DEFAULT_ORDER: u8 = 22;

/// How an image is cut into objects. Fixed at creation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Layout {
    order: u8,
    stripe_unit_bytes: u64,
    stripe_count: u64,
}

impl Layout {
    /// A layout; a stripe unit or count of 0 means the default (object size, 1). `EDOM` for an order out of range,
    /// `EINVAL` for striping that does not divide the object.
    pub fn new(order: u8, stripe_unit_bytes: u64, stripe_count: u64) -> Result<Self> {
        if !(MIN_ORDER..=MAX_ORDER).contains(&order) {
            return Err(ImageError::new(
                Errno::EDOM,
                format!("order {order} must be in the range [{MIN_ORDER}, {MAX_ORDER}]"),
            ));
        }
        let object_size = 1u64 << order;
        let (unit, count) = match (stripe_unit_bytes, stripe_count) {
            (0, 0) => (object_size, 1),
            (0, 1) => (object_size, 1),
            (unit, count) => (unit, count),
        };
        if unit == 0 || count == 0 {
            return Err(
                ImageError::new(Errno::EINVAL, "stripe unit and stripe count").hint("give both, or neither")
            );
        }
        if unit > object_size || !object_size.is_multiple_of(unit) {
            return Err(ImageError::new(
                Errno::EINVAL,
                format!(
                    "stripe unit of {unit} bytes is not a factor of the object size of {object_size} bytes"
                ),
            ));
        }
        if count > 1 << 20 {
            return Err(ImageError::new(
                Errno::EINVAL,
                format!("stripe count {count} is larger than 2^20"),
            ));
        }
        Ok(Self {
            order,
            stripe_unit_bytes: unit,
            stripe_count: count,
        })
    }

    /// Object size exponent.
    pub fn order(&self) -> u8 {
        self.order
    }

    /// Object size.
    pub fn object_size_bytes(&self) -> u64 {
        1 << self.order
    }

    /// Stripe unit.
    pub fn stripe_unit_bytes(&self) -> u64 {
        self.stripe_unit_bytes
    }

    /// Objects that a stripe goes over.
    pub fn stripe_count(&self) -> u64 {
        self.stripe_count
    }

    /// Whether the striping feature bit is needed to say this layout.
    pub fn is_striped(&self) -> bool {
        self.stripe_unit_bytes != self.object_size_bytes() || self.stripe_count != 1
    }

    /// Objects that an image of `size_bytes` consists of.
    pub fn object_count(&self, size_bytes: u64) -> u64 {
        let period = self.object_size_bytes().saturating_mul(self.stripe_count);
        let rest = size_bytes % period;
        let partial = if rest == 0 {
            0
        } else {
            self.stripe_count.min(rest.div_ceil(self.stripe_unit_bytes))
        };
        (size_bytes / period) * self.stripe_count + partial
    }

    /// Cuts an image extent into object extents, in image order; runs that are contiguous in both are joined.
    pub fn map(&self, extent: ImageExtent) -> Vec<ObjectExtent> {
        let mut out: Vec<ObjectExtent> = Vec::new();
        let mut at = extent.offset.0;
        let end = at.saturating_add(extent.length_bytes);
        while at < end {
            let (object_no, offset, room) = self.locate(at);
            let length = room.min(end - at);
            match out.last_mut() {
                Some(last)
                    if last.object_no == object_no && last.offset.0 + last.length_bytes == offset.0 =>
                {
                    last.length_bytes += length;
                }
                _ => out.push(ObjectExtent {
                    object_no,
                    offset,
                    length_bytes: length,
                    image_offset: ImageOffset(at),
                }),
            }
            at += length;
        }
        out
    }

    /// The object extent of a run of the image that lies inside one stripe unit; `None` for any other.
    pub fn map_one(&self, offset: ImageOffset, length_bytes: u64) -> Option<ObjectExtent> {
        let (object_no, at, room) = self.locate(offset.0);
        (length_bytes <= room).then_some(ObjectExtent {
            object_no,
            offset: at,
            length_bytes,
            image_offset: offset,
        })
    }

    fn locate(&self, image_offset: u64) -> (ObjectNo, ObjectOffset, u64) {
        let unit = self.stripe_unit_bytes;
        let units_per_object = self.object_size_bytes() / unit;
        let block = image_offset / unit;
        let stripe = block / self.stripe_count;
        let position = block % self.stripe_count;
        let set = stripe / units_per_object;
        let in_unit = image_offset % unit;
        (
            ObjectNo(set * self.stripe_count + position),
            ObjectOffset((stripe % units_per_object) * unit + in_unit),
            unit - in_unit,
        )
    }

    /// Where a run of an object lies in the image: image extents in object order, joined where contiguous.
    pub fn unmap(&self, object_no: ObjectNo, offset: ObjectOffset, length_bytes: u64) -> Vec<ImageExtent> {
        let unit = self.stripe_unit_bytes;
        let units_per_object = self.object_size_bytes() / unit;
        let set = object_no.0 / self.stripe_count;
        let position = object_no.0 % self.stripe_count;
        let mut out: Vec<ImageExtent> = Vec::new();
        let mut at = offset.0;
        let end = at.saturating_add(length_bytes).min(self.object_size_bytes());
        while at < end {
            let stripe = set * units_per_object + at / unit;
            let block = stripe * self.stripe_count + position;
            let in_unit = at % unit;
            let length = (unit - in_unit).min(end - at);
            let image_offset = block * unit + in_unit;
            match out.last_mut() {
                Some(last) if last.offset.0 + last.length_bytes == image_offset => {
                    last.length_bytes += length
                }
                _ => out.push(ImageExtent {
                    offset: ImageOffset(image_offset),
                    length_bytes: length,
                }),
            }
            at += length;
        }
        out
    }

    /// Calls `each` with the objects of another layout that have bytes of the image in common with an object of this one, perhaps
    /// more than once.
    pub(crate) fn each_object_over(&self, object_no: ObjectNo, other: &Self, mut each: impl FnMut(ObjectNo)) {
        if self == other {
            return each(object_no);
        }
        for extent in self.unmap(object_no, ObjectOffset(0), self.object_size_bytes()) {
            if other.is_striped() {
                other.map(extent).iter().for_each(|piece| each(piece.object_no));
            } else {
                let last = extent.offset.0 + (extent.length_bytes - 1);
                let size = other.object_size_bytes();
                (extent.offset.0 / size..=last / size).for_each(|object| each(ObjectNo(object)));
            }
        }
    }

    /// Bytes of object `object_no` that belong to an image of `size_bytes`.
    pub fn object_bytes_used(&self, object_no: ObjectNo, size_bytes: u64) -> u64 {
        let mut used = 0;
        for extent in self.unmap(object_no, ObjectOffset(0), self.object_size_bytes()) {
            if extent.offset.0 >= size_bytes {
                break;
            }
            used += extent.length_bytes.min(size_bytes - extent.offset.0);
        }
        used
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::StdRng;
    use rand::{RngExt as _, SeedableRng as _};

    #[test]
    fn object_count_is_that_of_ceph() {
        let layout = Layout::new(20, 65536, 4).unwrap();
        assert_eq!(layout.object_count(10 << 20), 12);
        assert_eq!(Layout::new(22, 0, 0).unwrap().object_count((8 << 20) + 1), 3);
        assert_eq!(Layout::new(22, 0, 0).unwrap().object_count(0), 0);
    }

    #[test]
    fn impossible_layouts_are_refused() {
        assert!(Layout::new(11, 0, 0).is_err());
        assert!(Layout::new(26, 0, 0).is_err());
        assert!(Layout::new(22, 3000, 2).is_err());
        assert!(Layout::new(20, 1 << 21, 1).is_err());
        assert!(Layout::new(22, 4096, 0).is_err());
    }

    #[test]
    fn mapping_there_and_back_is_the_identity() {
        let seed: u64 = rand::rng().random();
        println!("seed {seed}");
        let mut rng = StdRng::seed_from_u64(seed);
        for _ in 0..300 {
            let order = rng.random_range(12..=16u8);
            let unit = 1u64 << rng.random_range(9..=u32::from(order));
            let layout = Layout::new(order, unit, rng.random_range(1..6)).unwrap();
            let extent = ImageExtent {
                offset: ImageOffset(rng.random_range(0..1 << 20)),
                length_bytes: rng.random_range(1..1 << 18),
            };
            let pieces = layout.map(extent);
            if let Some(whole) = layout.map_one(extent.offset, extent.length_bytes) {
                assert_eq!(pieces, [whole]);
            }
            let mut at = extent.offset.0;
            for piece in pieces {
                assert_eq!(piece.image_offset.0, at);
                let back = layout.unmap(piece.object_no, piece.offset, piece.length_bytes);
                assert_eq!(
                    back.iter().map(|e| e.length_bytes).sum::<u64>(),
                    piece.length_bytes
                );
                assert_eq!(back[0].offset.0, at);
                at += piece.length_bytes;
            }
            assert_eq!(at, extent.offset.0 + extent.length_bytes);
        }
    }

    #[test]
    fn partly_used_objects_say_how_much() {
        let layout = Layout::new(12, 1024, 2).unwrap();
        assert_eq!(layout.object_bytes_used(ObjectNo(0), 1500), 1024);
        assert_eq!(layout.object_bytes_used(ObjectNo(1), 1500), 476);
        assert_eq!(layout.object_bytes_used(ObjectNo(2), 1500), 0);
    }
}
