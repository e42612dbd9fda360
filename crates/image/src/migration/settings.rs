//! How an execute may go about its work: limits, pause, what it leaves out. Set by commands, read by whoever copies.
//!
//! The record lies in the target's header, under an omap key of its own that no other client of the image looks at. It
//! reaches the copying process, whichever that is, by the notification of any header change; it outlives every process,
//! goes with the target on an abort, and is taken off with the migration's record by a commit. No record: all defaults.

use bytes::Bytes;
use ferry_cls::encoding::{Decoder, Encoder};
use ferry_cls::rbd::MigrationState;
use ferry_store::{Errno, IoCtx, ReadOp, ReadResult, ReadStep, SnapId, WriteOp, WriteStep};

use super::execute::MAX_CONCURRENT_OBJECTS;
use super::pair::{self, Found};
use crate::error::{ErrorKind, ImageError, Result, optional};
use crate::names;
use crate::watch::notify_header_update;

/// Omap key of the settings in the target's header.
pub(crate) const SETTINGS_KEY: &[u8] = b"ferry_execute";
/// Omap key of the progress in the target's header.
pub(crate) const PROGRESS_KEY: &[u8] = b"ferry_progress";

/// How fast an execute may copy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Rate {
    /// Full speed while no client uses the image, little while one does.
    #[default]
    Adaptive,
    /// As fast as it goes.
    Unlimited,
    /// At most so many bytes of data a second, on average; at least 1.
    BytesPerSecond(u64),
}

/// What an execute does when no space is left but what clients are to have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OnNoSpace {
    /// It waits until there is more.
    #[default]
    Pause,
    /// It ends with `ENOSPC`; what is copied stays.
    Fail,
}

/// What an execute is to observe.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ExecuteSettings {
    /// How fast.
    pub rate: Rate,
    /// Objects copied at the same time, 1 to 256; `None`: as many as seems good.
    pub concurrency: Option<u16>,
    /// Nothing more is copied until this is taken back.
    pub paused: bool,
    /// Blocks that hold only zeroes are not written.
    pub zero_detect: bool,
    /// Bytes of free space that are left to clients. 0: nobody looks; `None`: as [`default_reserve_bytes`] says.
    ///
    /// [`default_reserve_bytes`]: super::room::default_reserve_bytes
    pub reserve_bytes: Option<u64>,
    /// When there is no more than that.
    pub on_no_space: OnNoSpace,
}

/// Changes of settings; what is `None` stays.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SettingsChange {
    /// How fast.
    pub rate: Option<Rate>,
    /// Objects at the same time; `Some(None)`: as many as seems good.
    pub concurrency: Option<Option<u16>>,
    /// Pause, or go on.
    pub paused: Option<bool>,
    /// Leave zeroes out.
    pub zero_detect: Option<bool>,
    /// Free space that is left to clients; `Some(None)`: as seems good.
    pub reserve_bytes: Option<Option<u64>>,
    /// Wait for space, or end.
    pub on_no_space: Option<OnNoSpace>,
}

impl SettingsChange {
    /// Whether nothing is to change.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn apply(&self, settings: &mut ExecuteSettings) {
        settings.rate = self.rate.unwrap_or(settings.rate);
        settings.concurrency = self.concurrency.unwrap_or(settings.concurrency);
        settings.paused = self.paused.unwrap_or(settings.paused);
        settings.zero_detect = self.zero_detect.unwrap_or(settings.zero_detect);
        settings.reserve_bytes = self.reserve_bytes.unwrap_or(settings.reserve_bytes);
        settings.on_no_space = self.on_no_space.unwrap_or(settings.on_no_space);
    }
}

impl ExecuteSettings {
    /// Whether the limits are left to Ferry.
    pub fn is_adaptive(&self) -> bool {
        self.rate == Rate::Adaptive && self.concurrency.is_none()
    }

    fn encode(&self) -> Bytes {
        let (kind, bytes) = match self.rate {
            Rate::Adaptive => (0u8, 0),
            Rate::Unlimited => (1, 0),
            Rate::BytesPerSecond(bytes) => (2, bytes),
        };
        let mut out = Encoder::new();
        out.frame(2, 1, |e| {
            e.put(kind).put(bytes).put(self.concurrency.unwrap_or(0));
            e.put(self.paused).put(self.zero_detect);
            e.put(self.reserve_bytes.is_some());
            e.put(self.reserve_bytes.unwrap_or(0));
            e.put(self.on_no_space == OnNoSpace::Fail);
        });
        out.finish()
    }

    fn decode(raw: &[u8]) -> Result<Self> {
        let read = Decoder::new(raw).frame("execute settings", 2, |version, _, d| {
            let kind: u8 = d.get("rate kind")?;
            let bytes: u64 = d.get("rate")?;
            let rate = match kind {
                0 => Rate::Adaptive,
                1 => Rate::Unlimited,
                2 if bytes > 0 => Rate::BytesPerSecond(bytes),
                other => return Err(d.bad_value("rate kind", other.into())),
            };
            let concurrency: u16 = d.get("concurrency")?;
            if usize::from(concurrency) > MAX_CONCURRENT_OBJECTS {
                return Err(d.bad_value("concurrency", concurrency.into()));
            }
            let mut settings = Self {
                rate,
                concurrency: (concurrency > 0).then_some(concurrency),
                paused: d.get("paused")?,
                zero_detect: d.get("zero detect")?,
                ..Self::default()
            };
            if version >= 2 {
                let is_set: bool = d.get("whether a reserve is set")?;
                let reserve_bytes: u64 = d.get("reserve")?;
                settings.reserve_bytes = is_set.then_some(reserve_bytes);
                if d.get("end without space")? {
                    settings.on_no_space = OnNoSpace::Fail;
                }
            }
            Ok(settings)
        });
        read.map_err(|error| {
            ImageError::of(
                ErrorKind::Damaged,
                Errno::EIO,
                format!("settings of the migration: {error}"),
            )
            .hint("set them anew with 'rbd migration throttle'")
        })
    }
}

/// Decodes any bytes, and what came out of them once more.
pub(crate) fn check_decoding(raw: &[u8]) {
    let _ = super::execution::ExecuteProgress::decode(raw, ferry_store::Timestamp::default());
    if let Ok(settings) = ExecuteSettings::decode(raw) {
        assert_eq!(ExecuteSettings::decode(&settings.encode()).ok(), Some(settings));
    }
}

/// The values of some keys of a header, as far as they are there.
pub(crate) async fn read_keys(
    io: &IoCtx,
    header_object: &str,
    keys: &[&'static [u8]],
) -> Result<Vec<Option<Bytes>>> {
    let wanted = keys.iter().copied().map(Bytes::from_static).collect();
    let op = ReadOp::new().step(ReadStep::OmapGetValsByKeys(wanted));
    let found = optional(io.read(header_object, SnapId::HEAD, op).await)?;
    let found = found.and_then(|reply| reply.results.into_iter().next());
    let Some(ReadResult::Omap { values, .. }) = found else {
        return Ok(vec![None; keys.len()]);
    };
    let value = |key: &&[u8]| {
        let mut pairs = values.iter();
        pairs
            .find(|(name, _)| name[..] == **key)
            .map(|(_, value)| value.clone())
    };
    Ok(keys.iter().map(value).collect())
}

/// The settings in a target's header.
pub(crate) async fn load(io: &IoCtx, header_object: &str) -> Result<ExecuteSettings> {
    let found = read_keys(io, header_object, &[SETTINGS_KEY])
        .await?
        .into_iter()
        .next();
    match found.flatten() {
        Some(raw) => ExecuteSettings::decode(&raw),
        None => Ok(ExecuteSettings::default()),
    }
}

/// Reads the settings from a value that was read with others.
pub(crate) fn parse(raw: Option<&Bytes>) -> Result<ExecuteSettings> {
    raw.map_or(Ok(ExecuteSettings::default()), |raw| ExecuteSettings::decode(raw))
}

/// Changes the settings of the migration that `name` belongs to, tells whoever copies, and returns the new ones. An
/// empty change only returns them. `EINVAL` ([`ErrorKind::MigrationState`]) unless the migration is prepared or executing,
/// [`ErrorKind::NotMigrating`] without one.
pub async fn change(io: &IoCtx, name: &str, change: &SettingsChange) -> Result<ExecuteSettings> {
    let pair = match pair::find(io, name).await? {
        Found::Pair(pair) => pair,
        Found::NotMigrating(side) | Found::TrashEntry(side) | Found::Leftover(side) => {
            return Err(pair::not_migrating(&side));
        }
    };
    match pair.target.state() {
        Some(MigrationState::Prepared | MigrationState::Executing) => {}
        Some(MigrationState::Executed) => {
            return Err(pair::wrong_state(&pair, "prepared", "rbd migration commit"));
        }
        _ => return Err(pair::wrong_state(&pair, "prepared", "rbd migration abort")),
    }
    change_in(&pair.target.io, &pair.target.header_object(), change).await
}

pub(crate) async fn change_in(
    io: &IoCtx,
    header_object: &str,
    change: &SettingsChange,
) -> Result<ExecuteSettings> {
    let mut settings = match load(io, header_object).await {
        // Damaged ones are replaced by whoever sets new ones.
        Err(error) if error.kind == ErrorKind::Damaged && !change.is_empty() => ExecuteSettings::default(),
        loaded => loaded?,
    };
    if change.is_empty() {
        return Ok(settings);
    }
    change.apply(&mut settings);
    let pairs = [(Bytes::from_static(SETTINGS_KEY), settings.encode())];
    let op = WriteOp::new()
        .step(WriteStep::AssertExists)
        .step(WriteStep::OmapSet(pairs.into_iter().collect()));
    io.write_meta(header_object, op).await?;
    notify_header_update(io, header_object, None).await?;
    Ok(settings)
}

/// Takes settings and progress off in the same step in which the migration's record goes.
pub(crate) fn remove_keys(op: WriteOp) -> WriteOp {
    op.step(WriteStep::OmapRemove(vec![
        Bytes::from_static(SETTINGS_KEY),
        Bytes::from_static(PROGRESS_KEY),
    ]))
}

/// Header object of the target whose record, or whose source's record, this is; with its place.
pub(crate) fn target_header(io: &IoCtx, id: &str, spec: &ferry_cls::rbd::MigrationSpec) -> (IoCtx, String) {
    match spec.header_type {
        ferry_cls::rbd::MigrationHeaderType::Destination => (io.clone(), names::header_object(id)),
        ferry_cls::rbd::MigrationHeaderType::Source => (
            io.with_pool(spec.pool_id).with_namespace(&spec.pool_namespace),
            names::header_object(&spec.image_id),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_come_back_as_they_were_written() {
        for rate in [Rate::Adaptive, Rate::Unlimited, Rate::BytesPerSecond(7)] {
            for concurrency in [None, Some(1), Some(256)] {
                let settings = ExecuteSettings {
                    rate,
                    concurrency,
                    paused: rate == Rate::Unlimited,
                    zero_detect: concurrency.is_none(),
                    reserve_bytes: concurrency.map(u64::from),
                    on_no_space: match concurrency {
                        None => OnNoSpace::Fail,
                        Some(_) => OnNoSpace::Pause,
                    },
                };
                assert_eq!(ExecuteSettings::decode(&settings.encode()).unwrap(), settings);
            }
        }
    }

    #[test]
    fn settings_of_a_time_before_there_was_a_reserve_are_read() {
        // 8 MiB a second, 3 objects, paused.
        let mut raw = vec![1, 1, 13, 0, 0, 0, 2];
        raw.extend_from_slice(&(8u64 << 20).to_le_bytes());
        raw.extend_from_slice(&[3, 0, 1, 0]);
        let expected = ExecuteSettings {
            rate: Rate::BytesPerSecond(8 << 20),
            concurrency: Some(3),
            paused: true,
            ..ExecuteSettings::default()
        };
        assert_eq!(ExecuteSettings::decode(&raw).unwrap(), expected);
    }

    #[test]
    fn settings_that_make_no_sense_are_errors() {
        let whole = ExecuteSettings::default().encode();
        for end in 0..whole.len() {
            assert!(ExecuteSettings::decode(&whole[..end]).is_err(), "{end}");
        }
        let mut unknown_rate = whole.to_vec();
        unknown_rate[6] = 9;
        assert!(ExecuteSettings::decode(&unknown_rate).is_err());
        let mut no_rate = whole.to_vec();
        no_rate[6] = 2;
        assert!(ExecuteSettings::decode(&no_rate).is_err());
    }
}
