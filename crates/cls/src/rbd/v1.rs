//! Format-1 images: the header object's bytes and the directory's tmap (fact sheet section 1.2).
//!
//! Keeps: a decoded header's names are as many as its snapshots, UTF-8 and without NUL; snapshots are newest first.

use std::collections::BTreeMap;

use bytes::Bytes;
use ferry_store::SnapId;

use crate::encoding::{Decode, DecodeError, DecodeErrorKind, Decoder, Encode, Encoder};

/// Text at the start of a header.
pub const HEADER_TEXT: &[u8; 33] = b"<<< Rados Block Device Image >>>\n";
/// The same while the image is being migrated.
pub const MIGRATING_TEXT: &[u8; 33] = b"<<< Migrating RBD Image      >>>\n";
/// Bytes of the header before the snapshots.
pub const FIXED_BYTES: usize = 112;
/// Offset of the image size, which a resize overwrites.
pub const IMAGE_SIZE_OFFSET: u64 = 80;

const TEXT_BYTES: usize = 40;
const BLOCK_NAME_BYTES: usize = 24;
const SIGNATURE: &[u8; 4] = b"RBD\0";
const VERSION: &[u8; 8] = b"001.005\0";

/// A snapshot of a format-1 image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct V1Snapshot {
    /// Id.
    pub id: SnapId,
    /// Image size when it was made.
    pub image_size_bytes: u64,
    /// Name; unique.
    pub name: String,
}

/// Header of a format-1 image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct V1Header {
    /// Whether the text says that the image is being migrated.
    pub migrating: bool,
    /// Prefix of the data objects, at most 23 bytes.
    pub block_name: String,
    /// Object size as a power of two.
    pub order: u8,
    /// Image size in bytes.
    pub image_size_bytes: u64,
    /// Newest snapshot id.
    pub snap_seq: u64,
    /// Snapshots, newest first.
    pub snaps: Vec<V1Snapshot>,
}

impl Encode for V1Header {
    /// A block name longer than its field is cut.
    fn encode(&self, encoder: &mut Encoder) {
        let text = if self.migrating {
            MIGRATING_TEXT
        } else {
            HEADER_TEXT
        };
        put_padded(encoder, text, TEXT_BYTES);
        let name = self.block_name.as_bytes();
        put_padded(
            encoder,
            &name[..name.len().min(BLOCK_NAME_BYTES - 1)],
            BLOCK_NAME_BYTES,
        );
        let names_bytes: usize = self.snaps.iter().map(|snap| snap.name.len() + 1).sum();
        encoder
            .put_raw(SIGNATURE)
            .put_raw(VERSION)
            .put_raw(&[self.order, 0, 0, 0])
            .put(self.image_size_bytes)
            .put(self.snap_seq)
            .put(self.snaps.len() as u32)
            .put(0u32)
            .put(names_bytes as u64);
        for snap in &self.snaps {
            encoder.put(snap.id).put(snap.image_size_bytes);
        }
        for snap in &self.snaps {
            encoder.put_raw(snap.name.as_bytes()).put_raw(&[0]);
        }
    }
}

fn put_padded(encoder: &mut Encoder, bytes: &[u8], length: usize) {
    encoder.put_raw(bytes);
    for _ in bytes.len()..length {
        encoder.put_raw(&[0]);
    }
}

impl Decode for V1Header {
    const MIN_BYTES: usize = FIXED_BYTES;

    fn decode(decoder: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        let text = decoder.take(TEXT_BYTES)?;
        let migrating = if text.starts_with(HEADER_TEXT) {
            false
        } else if text.starts_with(MIGRATING_TEXT) {
            true
        } else {
            return Err(decoder.bad_value("header text", u64::from(text[0])));
        };
        let block_name = decoder.take(BLOCK_NAME_BYTES)?;
        let block_name = block_name.split(|byte| *byte == 0).next().unwrap_or_default();
        let block_name = utf8(decoder, block_name, "block name")?;
        if decoder.take(4)? != SIGNATURE {
            return Err(decoder.bad_value("signature", 0));
        }
        let _version = decoder.take(8)?;
        let order = decoder.get("order")?;
        let _unused = decoder.take(3)?;
        let image_size_bytes = decoder.get("image size")?;
        let snap_seq = decoder.get("snapshot sequence")?;
        let count: u32 = decoder.get("snapshot count")?;
        let _reserved: u32 = decoder.get("reserved")?;
        let names_bytes: u64 = decoder.get("snapshot names length")?;

        let left = decoder.remaining() as u64;
        let needed = (u64::from(count) * 16).saturating_add(names_bytes);
        if needed > left {
            return Err(decoder.error(DecodeErrorKind::Truncated { needed, left }));
        }
        let mut records = Vec::new();
        for _ in 0..count {
            let id: SnapId = decoder.get("snapshot id")?;
            let size: u64 = decoder.get("snapshot image size")?;
            records.push((id, size));
        }
        let mut names = decoder.take(names_bytes as usize)?;
        let mut snaps = Vec::new();
        for (id, image_size_bytes) in records {
            let end = names.iter().position(|byte| *byte == 0);
            let end = end.ok_or_else(|| decoder.bad_value("snapshot names", names.len() as u64))?;
            snaps.push(V1Snapshot {
                id,
                image_size_bytes,
                name: utf8(decoder, &names[..end], "snapshot name")?,
            });
            names = &names[end + 1..];
        }
        Ok(Self {
            migrating,
            block_name,
            order,
            image_size_bytes,
            snap_seq,
            snaps,
        })
    }
}

fn utf8(decoder: &Decoder<'_>, bytes: &[u8], field: &'static str) -> Result<String, DecodeError> {
    std::str::from_utf8(bytes)
        .map(str::to_owned)
        .map_err(|_| DecodeError {
            kind: DecodeErrorKind::NotUtf8,
            field,
            offset: decoder.offset(),
        })
}

/// The "trivial map" that lists format-1 images in the directory's data. An empty object is an empty map.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tmap {
    /// Header bytes; empty in directories.
    pub header: Bytes,
    /// Entries; values are empty in directories.
    pub entries: BTreeMap<String, Bytes>,
}

impl Encode for Tmap {
    fn encode(&self, encoder: &mut Encoder) {
        encoder.put(&self.header).put(&self.entries);
    }
}

impl Decode for Tmap {
    fn decode(decoder: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        if decoder.is_empty() {
            return Ok(Self::default());
        }
        Ok(Self {
            header: decoder.get("tmap header")?,
            entries: decoder.get("tmap entries")?,
        })
    }
}
