//! One diff: what precedes its runs, and the runs.

use bytes::Bytes;

use super::{Input, MAX_NAME_BYTES, damaged};
use crate::admin::create::MAX_SIZE_BYTES;
use crate::error::Result;

const FROM_SNAP: u8 = b'f';
const TO_SNAP: u8 = b't';
const PROTECTION: u8 = b'p';
const SIZE: u8 = b's';
const WRITE: u8 = b'w';
const ZERO: u8 = b'z';
const END: u8 = b'e';
/// Length that Ceph 16.2.15 states of a protection record. Its content is one byte all the same; later releases state that.
const STATED_PROTECTION_BYTES: u64 = 8;

/// Which framing the records have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// Files of `export-diff`.
    V1,
    /// Diffs inside exports of format 2; every record states its length.
    V2,
}

impl Version {
    fn banner(self) -> &'static [u8; 12] {
        match self {
            Version::V1 => b"rbd diff v1\n",
            Version::V2 => b"rbd diff v2\n",
        }
    }
}

/// What a diff says of itself before its runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DiffHead {
    /// Snapshot that it starts from; without it, from the image's creation.
    pub from: Option<String>,
    /// Snapshot that it leads to; without it, the head.
    pub to: Option<String>,
    /// Whether the snapshot that it leads to is protected. Version 2 only.
    pub protected: bool,
    /// Size of the image at the end.
    pub size_bytes: u64,
}

/// What a run says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunKind {
    /// Its bytes follow.
    Write,
    /// It reads as zero.
    Zero,
}

/// A run of the image: `length_bytes` is at least 1, and it ends within the diff's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Its kind.
    pub kind: RunKind,
    /// First byte.
    pub offset: u64,
    /// Length in bytes.
    pub length_bytes: u64,
}

impl Run {
    /// Offset behind the last byte.
    pub fn end(&self) -> u64 {
        self.offset + self.length_bytes
    }
}

/// The bytes of everything before the runs.
pub fn encode_head(version: Version, head: &DiffHead) -> Vec<u8> {
    let mut out = version.banner().to_vec();
    let mut start = |tag, stated_bytes: u64, content: &[u8]| {
        out.push(tag);
        if version == Version::V2 {
            out.extend(stated_bytes.to_le_bytes());
        }
        out.extend(content);
    };
    for (tag, name) in [(FROM_SNAP, &head.from), (TO_SNAP, &head.to)] {
        if let Some(name) = name {
            let content = [&(name.len() as u32).to_le_bytes(), name.as_bytes()].concat();
            start(tag, content.len() as u64, &content);
        }
    }
    if version == Version::V2 && head.to.is_some() {
        start(PROTECTION, STATED_PROTECTION_BYTES, &[u8::from(head.protected)]);
    }
    start(SIZE, 8, &head.size_bytes.to_le_bytes());
    out
}

/// The bytes that announce a run; of one with data, its data follows.
pub fn encode_run(version: Version, run: Run) -> Vec<u8> {
    let (tag, data_bytes) = match run.kind {
        RunKind::Write => (WRITE, run.length_bytes),
        RunKind::Zero => (ZERO, 0),
    };
    let mut out = vec![tag];
    if version == Version::V2 {
        out.extend((16 + data_bytes).to_le_bytes());
    }
    out.extend(run.offset.to_le_bytes());
    out.extend(run.length_bytes.to_le_bytes());
    out
}

/// The byte that ends a diff.
pub const fn encode_end() -> [u8; 1] {
    [END]
}

/// Reads one diff: [`DiffReader::begin`], then [`DiffReader::next_run`] until it gives nothing more.
#[derive(Debug)]
pub struct DiffReader {
    version: Version,
    head: DiffHead,
    /// A record's tag that was read already.
    pending: Option<u8>,
    /// Data of the last run that nobody has taken yet.
    data_bytes: u64,
    /// Tags that nobody here knows, each once.
    skipped: Vec<u8>,
}

impl DiffReader {
    /// Reads all that precedes the runs.
    pub async fn begin(input: &mut Input<'_>, version: Version) -> Result<Self> {
        let at = input.at();
        let mut banner = [0; 12];
        input.exact(&mut banner, "the diff banner").await?;
        if banner != *version.banner() {
            return Err(damaged(at, "no diff banner of the expected version"));
        }
        let mut reader = Self {
            version,
            head: DiffHead::default(),
            pending: None,
            data_bytes: 0,
            skipped: Vec::new(),
        };
        let mut seen = Vec::new();
        loop {
            let at = input.at();
            let tag = input.u8("a record's tag").await?;
            if matches!(tag, WRITE | ZERO | END) {
                if !seen.contains(&SIZE) {
                    return Err(damaged(at, "the diff states no image size"));
                }
                reader.pending = Some(tag);
                return Ok(reader);
            }
            let known =
                matches!(tag, FROM_SNAP | TO_SNAP | SIZE) || (tag == PROTECTION && version == Version::V2);
            if known && seen.contains(&tag) {
                return Err(damaged(at, format_args!("second record '{}'", char::from(tag))));
            }
            reader.metadata(input, tag, at).await?;
            seen.push(tag);
            // Unknown ones are not remembered one by one.
            seen.retain(|tag| matches!(*tag, FROM_SNAP | TO_SNAP | SIZE | PROTECTION));
        }
    }

    async fn metadata(&mut self, input: &mut Input<'_>, tag: u8, at: u64) -> Result<()> {
        let stated_bytes = self.stated(input).await?;
        match tag {
            FROM_SNAP => self.head.from = Some(name(input, stated_bytes, "the start snapshot's name").await?),
            TO_SNAP => self.head.to = Some(name(input, stated_bytes, "the end snapshot's name").await?),
            SIZE => {
                check_stated(at, stated_bytes, &[8])?;
                let size_bytes = input.u64("the image size").await?;
                if size_bytes > MAX_SIZE_BYTES {
                    return Err(damaged(at, format_args!("impossible image size {size_bytes}")));
                }
                self.head.size_bytes = size_bytes;
            }
            PROTECTION if self.version == Version::V2 => {
                check_stated(at, stated_bytes, &[1, STATED_PROTECTION_BYTES])?;
                self.head.protected = input.u8("the protection status").await? != 0;
            }
            _ => self.unknown(input, tag, at, stated_bytes).await?,
        }
        Ok(())
    }

    /// The length that a record states, in version 2.
    async fn stated(&self, input: &mut Input<'_>) -> Result<Option<u64>> {
        match self.version {
            Version::V1 => Ok(None),
            Version::V2 => Ok(Some(input.u64("a record's length").await?)),
        }
    }

    async fn unknown(&mut self, input: &mut Input<'_>, tag: u8, at: u64, stated: Option<u64>) -> Result<()> {
        let Some(length_bytes) = stated else {
            return Err(damaged(at, format_args!("unrecognized tag byte {tag}")));
        };
        if !self.skipped.contains(&tag) {
            self.skipped.push(tag);
        }
        input.skip(length_bytes, "a record of unknown kind").await
    }

    /// What the diff says of itself.
    pub fn head(&self) -> &DiffHead {
        &self.head
    }

    /// Tags of records that were skipped as nobody here knows them, each once.
    pub fn skipped_tags(&self) -> &[u8] {
        &self.skipped
    }

    /// The next run; `None` at the end. Data of the run before that was not taken is passed over.
    pub async fn next_run(&mut self, input: &mut Input<'_>) -> Result<Option<Run>> {
        self.skip_data(input, self.data_bytes).await?;
        loop {
            let (tag, at) = match self.pending.take() {
                Some(tag) => (tag, input.at() - 1),
                None => {
                    let at = input.at();
                    (input.u8("a record's tag").await?, at)
                }
            };
            let kind = match tag {
                END => {
                    self.pending = Some(END);
                    return Ok(None);
                }
                WRITE => RunKind::Write,
                ZERO => RunKind::Zero,
                FROM_SNAP | TO_SNAP | SIZE => {
                    return Err(damaged(
                        at,
                        format_args!("record '{}' behind the data", char::from(tag)),
                    ));
                }
                _ => {
                    let stated = self.stated(input).await?;
                    self.unknown(input, tag, at, stated).await?;
                    continue;
                }
            };
            return self.run(input, kind, at).await.map(Some);
        }
    }

    async fn run(&mut self, input: &mut Input<'_>, kind: RunKind, at: u64) -> Result<Run> {
        let stated = self.stated(input).await?;
        let offset = input.u64("a run's offset").await?;
        let length_bytes = input.u64("a run's length").await?;
        let end = offset.checked_add(length_bytes);
        if length_bytes == 0 || end.is_none_or(|end| end > self.head.size_bytes) {
            return Err(damaged(
                at,
                format_args!(
                    "run of {length_bytes} bytes at {offset} of an image of {} bytes",
                    self.head.size_bytes
                ),
            ));
        }
        self.data_bytes = match kind {
            RunKind::Write => length_bytes,
            RunKind::Zero => 0,
        };
        check_stated(at, stated, &[16 + self.data_bytes])?;
        Ok(Run {
            kind,
            offset,
            length_bytes,
        })
    }

    /// Up to `most_bytes` of the last run's data; empty when all of it was taken.
    pub async fn data(&mut self, input: &mut Input<'_>, most_bytes: u64) -> Result<Bytes> {
        let length_bytes = self.data_bytes.min(most_bytes);
        let data = input.bytes(length_bytes, "a run's data").await?;
        self.data_bytes -= length_bytes;
        Ok(data)
    }

    /// Passes over some of the last run's data, at most all of it.
    pub(crate) async fn skip_data(&mut self, input: &mut Input<'_>, length_bytes: u64) -> Result<()> {
        let length_bytes = length_bytes.min(self.data_bytes);
        if length_bytes > 0 {
            input.skip(length_bytes, "a run's data").await?;
            self.data_bytes -= length_bytes;
        }
        Ok(())
    }
}

/// Reads a whole diff and forgets it: whether it is one.
pub async fn check(input: &mut Input<'_>, version: Version) -> Result<DiffHead> {
    let mut reader = DiffReader::begin(input, version).await?;
    while reader.next_run(input).await?.is_some() {}
    Ok(reader.head)
}

async fn name(input: &mut Input<'_>, stated: Option<u64>, what: &str) -> Result<String> {
    let at = input.at();
    let length_bytes = u64::from(input.u32(what).await?);
    if length_bytes == 0 || length_bytes > MAX_NAME_BYTES {
        return Err(damaged(at, format_args!("{what} has {length_bytes} bytes")));
    }
    check_stated(at, stated, &[4 + length_bytes])?;
    let bytes = input.bytes(length_bytes, what).await?;
    String::from_utf8(bytes.into()).map_err(|_| damaged(at, format_args!("{what} is not UTF-8")))
}

fn check_stated(at: u64, stated: Option<u64>, allowed: &[u64]) -> Result<()> {
    match stated {
        Some(stated) if !allowed.contains(&stated) => Err(damaged(
            at,
            format_args!("a record states {stated} bytes and has {}", allowed[0]),
        )),
        _ => Ok(()),
    }
}
