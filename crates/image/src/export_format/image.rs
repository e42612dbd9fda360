//! What precedes the diffs of an export of format 2.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::{Input, damaged};
use crate::error::Result;

const BANNER: &[u8; 13] = b"rbd image v2\n";
const DIFFS_BANNER: &[u8; 19] = b"rbd image diffs v2\n";
const ORDER: u8 = b'O';
const FEATURES: u8 = b'T';
const STRIPE_UNIT: u8 = b'U';
const STRIPE_COUNT: u8 = b'C';
const METADATA: u8 = b'M';
const END: u8 = b'E';
/// Most bytes of all metadata together.
const MAX_METADATA_BYTES: u64 = 64 << 20;

/// Properties and metadata of an exported image. What is `None` was not stated.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageHead {
    /// Object size exponent.
    pub order: Option<u64>,
    /// Feature bits.
    pub features: Option<u64>,
    /// Stripe unit in bytes.
    pub stripe_unit_bytes: Option<u64>,
    /// Stripe count.
    pub stripe_count: Option<u64>,
    /// Image metadata.
    pub metadata: BTreeMap<String, Bytes>,
    /// Diffs that follow.
    pub diffs: u64,
    /// Tags of records that were skipped as nobody here knows them, each once.
    pub skipped_tags: Vec<u8>,
}

impl ImageHead {
    /// The bytes, up to where the first diff begins.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = BANNER.to_vec();
        let numbers = [
            (ORDER, self.order),
            (FEATURES, self.features),
            (STRIPE_UNIT, self.stripe_unit_bytes),
            (STRIPE_COUNT, self.stripe_count),
        ];
        for (tag, number) in numbers {
            if let Some(number) = number {
                out.push(tag);
                out.extend(8u64.to_le_bytes());
                out.extend(number.to_le_bytes());
            }
        }
        for (key, value) in &self.metadata {
            out.push(METADATA);
            out.extend(((key.len() + value.len()) as u64 + 8).to_le_bytes());
            for part in [key.as_bytes(), value] {
                out.extend((part.len() as u32).to_le_bytes());
                out.extend(part);
            }
        }
        out.push(END);
        out.extend(DIFFS_BANNER);
        out.extend(self.diffs.to_le_bytes());
        out
    }

    /// Reads up to where the first diff begins.
    pub async fn decode(input: &mut Input<'_>) -> Result<Self> {
        let mut banner = [0; BANNER.len()];
        input.exact(&mut banner, "the image banner").await?;
        if banner != *BANNER {
            return Err(damaged(0, "no image banner of export format 2"));
        }
        let mut head = Self::default();
        let mut metadata_bytes = 0;
        loop {
            let at = input.at();
            let tag = input.u8("a record's tag").await?;
            if tag == END {
                break;
            }
            let stated_bytes = input.u64("a record's length").await?;
            let number = match tag {
                ORDER => &mut head.order,
                FEATURES => &mut head.features,
                STRIPE_UNIT => &mut head.stripe_unit_bytes,
                STRIPE_COUNT => &mut head.stripe_count,
                METADATA => {
                    metadata_bytes += stated_bytes.min(MAX_METADATA_BYTES + 1);
                    if metadata_bytes > MAX_METADATA_BYTES {
                        return Err(damaged(at, "more than 64 MiB of image metadata"));
                    }
                    let (key, value) = pair(input, at, stated_bytes).await?;
                    head.metadata.insert(key, value);
                    continue;
                }
                _ => {
                    if !head.skipped_tags.contains(&tag) {
                        head.skipped_tags.push(tag);
                    }
                    input.skip(stated_bytes, "a record of unknown kind").await?;
                    continue;
                }
            };
            if stated_bytes != 8 || number.is_some() {
                let tag = char::from(tag);
                return Err(damaged(
                    at,
                    format_args!("record '{tag}' comes twice or has not the length of a number"),
                ));
            }
            *number = Some(input.u64("a property").await?);
        }
        let at = input.at();
        let mut banner = [0; DIFFS_BANNER.len()];
        input.exact(&mut banner, "the banner of the diffs").await?;
        if banner != *DIFFS_BANNER {
            return Err(damaged(at, "no banner of diffs"));
        }
        head.diffs = input.u64("the number of diffs").await?;
        if head.diffs == 0 {
            return Err(damaged(
                at,
                "the export holds no diff, so nothing says how large the image is",
            ));
        }
        Ok(head)
    }
}

async fn pair(input: &mut Input<'_>, at: u64, stated_bytes: u64) -> Result<(String, Bytes)> {
    let wrong = || damaged(at, "the lengths of a metadatum contradict each other");
    let left = stated_bytes.checked_sub(8).ok_or_else(wrong)?;
    let key_bytes = u64::from(input.u32("a metadata key").await?);
    let left = left.checked_sub(key_bytes).ok_or_else(wrong)?;
    let key = input.bytes(key_bytes, "a metadata key").await?;
    let value_bytes = u64::from(input.u32("a metadata value").await?);
    if value_bytes != left {
        return Err(wrong());
    }
    let value = input.bytes(value_bytes, "a metadata value").await?;
    let key = String::from_utf8(key.into()).map_err(|_| damaged(at, "a metadata key is not UTF-8"))?;
    Ok((key, value))
}
