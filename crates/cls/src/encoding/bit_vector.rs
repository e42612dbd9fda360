//! [`BitVector`]: two bits per object, the object map's content (fact sheet section 6.3).
//!
//! Layout: `u32` header length, header (versioned section with the `u64` count), data (four objects a byte, the first in
//! the most significant bits), footer (`u32` length, header CRC, block count, one CRC per 4096 data bytes). A footer of
//! length 0 means "no checksums". CRC is CRC-32C from 0 without final inversion; the header's covers the versioned
//! section only.
//!
//! Keeps: the data has exactly the bytes that the count needs, and bits past the last object are zero.

use super::decoder::{Decode, DecodeError, DecodeErrorKind, Decoder};
use super::encoder::{Encode, Encoder};

/// Most objects a map may have.
pub const MAX_OBJECTS: u64 = 256_000_000;
/// Data bytes covered by one checksum.
pub const BLOCK_BYTES: u64 = 4096;
/// Bytes before the data, as written here: length word and header.
pub const HEADER_BYTES: u64 = 18;

const OBJECTS_PER_BYTE: u64 = 4;
/// Longest header of newer writers that is put up with.
const MAX_HEADER_BYTES: u32 = 4096;

/// Ceph's block checksum: CRC-32C started at 0, not inverted at the end.
pub fn block_crc(data: &[u8]) -> u32 {
    !crc32c::crc32c_append(u32::MAX, data)
}

/// Where things are in an encoded map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MapLayout {
    pub(crate) objects: u64,
    /// Offset of the data.
    pub(crate) data_offset: u64,
    /// Checksum of the header as it was read.
    pub(crate) header_crc: u32,
}

impl MapLayout {
    pub(crate) fn data_bytes(&self) -> u64 {
        self.objects.div_ceil(OBJECTS_PER_BYTE)
    }

    pub(crate) fn footer_offset(&self) -> u64 {
        self.data_offset + self.data_bytes()
    }

    pub(crate) fn blocks(&self) -> u64 {
        self.data_bytes().div_ceil(BLOCK_BYTES)
    }

    /// Offset of the checksum of data block `block`.
    pub(crate) fn block_crc_offset(&self, block: u64) -> u64 {
        self.footer_offset() + 12 + 4 * block
    }

    /// What the footer's length field says when there are checksums.
    pub(crate) fn footer_length(&self) -> u64 {
        8 + 4 * self.blocks()
    }
}

/// Reads the start of an encoded map: at least [`HEADER_BYTES`] bytes.
pub(crate) fn parse_header(decoder: &mut Decoder<'_>) -> Result<MapLayout, DecodeError> {
    let length: u32 = decoder.get("object map header length")?;
    if length > MAX_HEADER_BYTES {
        return Err(decoder.bad_value("object map header length", u64::from(length)));
    }
    let header = decoder.take(length as usize)?;
    let objects = Decoder::new(header).frame("object map header", 1, |_, _, body| {
        body.get::<u64>("object count")
    })?;
    if objects > MAX_OBJECTS {
        return Err(decoder.bad_value("object count", objects));
    }
    Ok(MapLayout {
        objects,
        data_offset: 4 + u64::from(length),
        header_crc: block_crc(header),
    })
}

/// A vector of two-bit states.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BitVector {
    objects: u64,
    data: Vec<u8>,
}

impl BitVector {
    /// `objects` times `state` (0 to 3). `None` past [`MAX_OBJECTS`] or for a larger state.
    pub fn new(objects: u64, state: u8) -> Option<Self> {
        let mut vector = Self::default();
        vector.resize(objects, state).then_some(vector)
    }

    /// Number of objects.
    pub fn len(&self) -> u64 {
        self.objects
    }

    /// Whether there are no objects.
    pub fn is_empty(&self) -> bool {
        self.objects == 0
    }

    /// State of an object; `None` past the end.
    pub fn get(&self, object: u64) -> Option<u8> {
        if object >= self.objects {
            return None;
        }
        let byte = self.data.get((object / OBJECTS_PER_BYTE) as usize)?;
        Some((byte >> shift(object)) & 3)
    }

    /// Sets the state of an object; `false` (and no change) past the end or for a state above 3.
    pub fn set(&mut self, object: u64, state: u8) -> bool {
        if object >= self.objects || state > 3 {
            return false;
        }
        let byte = &mut self.data[(object / OBJECTS_PER_BYTE) as usize];
        *byte = (*byte & !(3 << shift(object))) | (state << shift(object));
        true
    }

    /// Changes the number of objects; new ones get `state`. `false` (and no change) past [`MAX_OBJECTS`] or for a
    /// state above 3.
    pub fn resize(&mut self, objects: u64, state: u8) -> bool {
        if objects > MAX_OBJECTS || state > 3 {
            return false;
        }
        let before = self.objects;
        let fill = state * 0b0101_0101;
        self.data
            .resize(objects.div_ceil(OBJECTS_PER_BYTE) as usize, fill);
        self.objects = objects;
        // The byte that was partly used before was not filled by the resize.
        let partial_end = before.next_multiple_of(OBJECTS_PER_BYTE).min(objects);
        for object in before..partial_end {
            self.set(object, state);
        }
        self.clear_tail();
        true
    }

    fn clear_tail(&mut self) {
        let used = self.objects % OBJECTS_PER_BYTE;
        if let (true, Some(last)) = (used != 0, self.data.last_mut()) {
            *last &= !(0xff >> (2 * used));
        }
    }

    /// How many objects have `state`.
    pub fn count(&self, state: u8) -> u64 {
        self.iter().filter(|found| *found == state).count() as u64
    }

    /// All states in order.
    pub fn iter(&self) -> impl Iterator<Item = u8> + '_ {
        (0..self.objects).filter_map(|object| self.get(object))
    }

    /// Objects whose state is not 0, with their state, ascending. Runs of zeros cost a look at every eight bytes.
    pub fn iter_nonzero(&self) -> impl Iterator<Item = (u64, u8)> + '_ {
        const CHUNK_BYTES: usize = 8;
        self.data
            .chunks(CHUNK_BYTES)
            .enumerate()
            .filter(|(_, bytes)| bytes.iter().any(|byte| *byte != 0))
            .flat_map(|(index, bytes)| {
                let first = (index * CHUNK_BYTES) as u64 * OBJECTS_PER_BYTE;
                let objects = first..first + bytes.len() as u64 * OBJECTS_PER_BYTE;
                objects.filter_map(|object| {
                    let state = self.get(object).filter(|state| *state != 0)?;
                    Some((object, state))
                })
            })
    }

    /// The packed data: four objects a byte.
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// A vector over packed data (padded with zeros, or cut, to what `objects` needs).
    pub(crate) fn from_data(objects: u64, mut data: Vec<u8>) -> Self {
        data.resize(objects.div_ceil(OBJECTS_PER_BYTE) as usize, 0);
        let mut vector = Self { objects, data };
        vector.clear_tail();
        vector
    }

    /// Appends the vector without checksums: what `object_map_load` answers.
    pub fn encode_without_crc(&self, encoder: &mut Encoder) {
        self.encode_header(encoder);
        encoder.put_raw(&self.data).put(0u32);
    }

    fn encode_header(&self, encoder: &mut Encoder) -> u32 {
        let mut header = Encoder::new();
        header.frame(1, 1, |body| {
            body.put(self.objects);
        });
        let header = header.into_vec();
        encoder.put_bytes(&header);
        block_crc(&header)
    }
}

fn shift(object: u64) -> u32 {
    (3 - (object % OBJECTS_PER_BYTE) as u32) * 2
}

impl Encode for BitVector {
    /// With checksums: the form that is stored.
    fn encode(&self, encoder: &mut Encoder) {
        let header_crc = self.encode_header(encoder);
        encoder.put_raw(&self.data);
        let mut footer = Encoder::new();
        footer.put(header_crc);
        let crcs: Vec<u32> = self.data.chunks(BLOCK_BYTES as usize).map(block_crc).collect();
        footer.put(crcs);
        encoder.put_bytes(&footer.into_vec());
    }
}

impl Decode for BitVector {
    const MIN_BYTES: usize = 22;

    /// Takes both forms; checks the checksums when there are any.
    fn decode(decoder: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        let layout = parse_header(decoder)?;
        let data = decoder.take(layout.data_bytes() as usize)?;
        let footer = decoder.bytes("object map footer")?;
        if !footer.is_empty() {
            check_footer(decoder, &layout, data, footer)?;
        }
        Ok(Self::from_data(layout.objects, data.to_vec()))
    }
}

fn check_footer(
    decoder: &Decoder<'_>,
    layout: &MapLayout,
    data: &[u8],
    footer: &[u8],
) -> Result<(), DecodeError> {
    let mut footer = Decoder::new(footer);
    let expect = |stored: u32, computed: u32, field: &'static str| {
        if stored == computed {
            return Ok(());
        }
        Err(DecodeError {
            kind: DecodeErrorKind::BadChecksum { stored, computed },
            field,
            offset: decoder.offset(),
        })
    };
    expect(
        footer.get("header checksum")?,
        layout.header_crc,
        "header checksum",
    )?;
    let blocks: u32 = footer.get("block count")?;
    if u64::from(blocks) != layout.blocks() {
        return Err(decoder.bad_value("block count", u64::from(blocks)));
    }
    for block in data.chunks(BLOCK_BYTES as usize) {
        expect(footer.get("block checksum")?, block_crc(block), "block checksum")?;
    }
    Ok(())
}
