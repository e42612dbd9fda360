//! What an execute has done so far: counted while it copies, shown by the open image, noted in the target's header for
//! everybody else.
//!
//! The note is a record of its own omap key (see [`super::settings`]), rewritten at most every [`NOTE_MS`]. It may be of
//! an execute that is dead: its time says how old it is.

use std::time::Duration;

use bytes::Bytes;
use ferry_cls::encoding::{Decoder, Encoder};
use ferry_cls::rbd::MigrationSpec;
use ferry_store::{IoCtx, Timestamp, WriteOp, WriteStep};
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::settings::{self, ExecuteSettings, PROGRESS_KEY, SETTINGS_KEY};
use crate::error::Result;
use crate::image::Image;

/// Least pause between two notes.
const NOTE_MS: u64 = 500;
/// A note that changes nothing is written all the same when the last one is so old, to show that somebody copies.
const HEARTBEAT_MS: u64 = 3_000;
/// How old the note of a living execute can be.
const FRESH_SECONDS: u32 = 10;
/// The rate is that of about the last so many seconds.
const RATE_WINDOW_SECONDS: f64 = 5.0;
/// How often the rate is taken.
const RATE_SAMPLE_MS: u64 = 250;

/// How far an execute is. Bytes are those of the image at its size when the migration was prepared (or of its
/// largest snapshot, if that is larger).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExecuteProgress {
    /// Objects that are done; those of earlier runs count from the start of this one.
    pub objects_done: u64,
    /// Objects that exist at the source.
    pub objects_total: u64,
    /// Bytes of data written by this run, with history: may exceed the size of the image.
    pub bytes_copied: u64,
    /// Bytes that needed no copy: holes, zeroes, what was there already.
    pub bytes_skipped: u64,
    /// Bytes of objects that are not done.
    pub bytes_left: u64,
    /// Bytes of data written per second, lately.
    pub bytes_per_second: u64,
    /// Time left at the present speed; `None` while unknown.
    pub seconds_left: Option<u64>,
    /// Whether it waits to be resumed.
    pub paused: bool,
    /// Whether it copies little because clients use the image.
    pub yielding: bool,
    /// Whether it waits for space.
    pub no_space: bool,
}

impl ExecuteProgress {
    fn encode(&self, noted: Timestamp) -> Bytes {
        let mut out = Encoder::new();
        out.frame(2, 1, |e| {
            e.put(noted.seconds);
            e.put(self.objects_done).put(self.objects_total);
            e.put(self.bytes_copied)
                .put(self.bytes_skipped)
                .put(self.bytes_left);
            e.put(self.bytes_per_second)
                .put(self.seconds_left.unwrap_or(u64::MAX));
            e.put(self.paused).put(self.yielding).put(self.no_space);
        });
        out.finish()
    }

    /// Reads a note. One that does not decode shows nothing; it is rewritten soon. The rates of one that is no longer
    /// kept up are left out.
    pub(crate) fn decode(raw: &[u8], now: Timestamp) -> Option<Self> {
        let read = Decoder::new(raw).frame("execute progress", 2, |version, _, d| {
            let noted: u32 = d.get("time of the note")?;
            let mut progress = Self {
                objects_done: d.get("objects done")?,
                objects_total: d.get("objects in all")?,
                bytes_copied: d.get("bytes copied")?,
                bytes_skipped: d.get("bytes skipped")?,
                bytes_left: d.get("bytes left")?,
                bytes_per_second: d.get("rate")?,
                seconds_left: Some(d.get("time left")?).filter(|seconds| *seconds != u64::MAX),
                paused: d.get("paused")?,
                yielding: d.get("yielding")?,
                no_space: false,
            };
            if version >= 2 {
                progress.no_space = d.get("no space")?;
            }
            if now.seconds.abs_diff(noted) > FRESH_SECONDS {
                progress.bytes_per_second = 0;
                progress.seconds_left = None;
                progress.yielding = false;
                progress.no_space = false;
            }
            Ok(progress)
        });
        read.inspect_err(|error| tracing::debug!(%error, "progress of a migration does not decode"))
            .ok()
    }
}

/// The execute that runs in this handle, if one does.
#[derive(Debug, Default)]
pub(crate) struct Execution {
    /// The header may have changed, and with it the settings.
    pub(crate) poked: Notify,
    progress: Mutex<Option<ExecuteProgress>>,
}

impl Image {
    /// How far the execute is that copies in this handle, for itself or for another process; `None`: none runs here. After
    /// its end the last figures stay.
    pub fn execute_progress(&self) -> Option<ExecuteProgress> {
        *self.inner.execution.progress.lock()
    }
}

/// Counts what one execute does.
pub(super) struct Meter {
    image: Image,
    now: ExecuteProgress,
    /// Exponential averages of data written and of image covered, in bytes a second.
    written_rate: f64,
    covered_rate: f64,
    sampled: Instant,
    sampled_written: u64,
    sampled_left: u64,
    notes: tokio::sync::watch::Sender<ExecuteProgress>,
    /// Dropped to end the notes without delay.
    ending: oneshot::Sender<()>,
    noting: tokio::task::JoinHandle<()>,
}

impl Meter {
    /// An execute of `objects_total` objects, of `bytes_left` together, in an image of `bytes_total`.
    pub(super) fn start(image: &Image, objects_total: u64, bytes_left: u64, bytes_total: u64) -> Self {
        let now = ExecuteProgress {
            objects_total,
            bytes_left,
            bytes_skipped: bytes_total.saturating_sub(bytes_left),
            ..ExecuteProgress::default()
        };
        let (notes, noted) = tokio::sync::watch::channel(now);
        let (ending, ended) = oneshot::channel();
        let meter = Self {
            image: image.clone(),
            now,
            written_rate: 0.0,
            covered_rate: 0.0,
            sampled: Instant::now(),
            sampled_written: 0,
            sampled_left: bytes_left,
            notes,
            ending,
            noting: tokio::spawn(write_notes(image.clone(), noted, ended)),
        };
        meter.show();
        meter
    }

    /// An object of `object_bytes` is done, with so much data written.
    pub(super) fn done(&mut self, object_bytes: u64, data_bytes: u64) {
        self.now.objects_done += 1;
        self.now.bytes_copied += data_bytes;
        self.now.bytes_left = self.now.bytes_left.saturating_sub(object_bytes);
        self.now.bytes_skipped += object_bytes.saturating_sub(data_bytes);
    }

    /// Brings rates up to date and shows everything.
    pub(super) fn tick(&mut self, paused: bool, yielding: bool, no_space: bool) {
        self.now.paused = paused;
        self.now.yielding = yielding;
        self.now.no_space = no_space;
        let stands = paused || no_space;
        let passed = self.sampled.elapsed();
        if passed >= Duration::from_millis(RATE_SAMPLE_MS) {
            let seconds = passed.as_secs_f64();
            let weight = 1.0 - (-seconds / RATE_WINDOW_SECONDS).exp();
            let average = |old: f64, bytes: u64| {
                let rate = bytes as f64 / seconds;
                if old == 0.0 {
                    rate
                } else {
                    old + weight * (rate - old)
                }
            };
            let covered = self.sampled_left.saturating_sub(self.now.bytes_left);
            self.written_rate = average(self.written_rate, self.now.bytes_copied - self.sampled_written);
            self.covered_rate = average(self.covered_rate, covered);
            self.sampled = Instant::now();
            self.sampled_written = self.now.bytes_copied;
            self.sampled_left = self.now.bytes_left;
        }
        // Conversions of floats saturate.
        self.now.bytes_per_second = if stands { 0 } else { self.written_rate as u64 };
        self.now.seconds_left = (!stands && self.covered_rate >= 1.0)
            .then(|| (self.now.bytes_left as f64 / self.covered_rate) as u64);
        self.show();
    }

    fn show(&self) {
        *self.image.inner.execution.progress.lock() = Some(self.now);
        let _ = self.notes.send(self.now);
    }

    /// Ends the notes; the last one says what is true now.
    pub(super) async fn finish(mut self) {
        self.tick(false, false, false);
        let Self {
            notes,
            ending,
            noting,
            ..
        } = self;
        drop((notes, ending));
        let _ = noting.await;
    }
}

/// Writes what it is sent, not too often; ends when nothing more will come.
async fn write_notes(
    image: Image,
    mut noted: tokio::sync::watch::Receiver<ExecuteProgress>,
    mut ended: oneshot::Receiver<()>,
) {
    let mut last = None;
    let mut written = Instant::now();
    let mut over = false;
    loop {
        let more = noted.changed().await.is_ok();
        let now = *noted.borrow_and_update();
        let due = last != Some(now) || written.elapsed() >= Duration::from_millis(HEARTBEAT_MS);
        if due {
            if let Err(error) = write_note(&image, &now).await {
                tracing::debug!(image = image.name(), %error, "cannot note the progress of the migration");
            }
            last = Some(now);
            written = Instant::now();
        }
        if !more {
            return;
        }
        let pause = Duration::from_millis(NOTE_MS);
        over = over || tokio::time::timeout(pause, &mut ended).await.is_ok();
    }
}

async fn write_note(image: &Image, progress: &ExecuteProgress) -> Result<()> {
    let pairs = [(
        Bytes::from_static(PROGRESS_KEY),
        progress.encode(Timestamp::now()),
    )];
    let op = WriteOp::ordered()
        .step(WriteStep::AssertExists)
        .step(WriteStep::OmapSet(pairs.into_iter().collect()));
    image.io().write_meta(&image.inner.header_object, op).await?;
    Ok(())
}

/// Settings and noted progress of the migration that the record `spec` of image `id` tells of, from the target's header.
pub(crate) async fn look(
    io: &IoCtx,
    id: &str,
    spec: &MigrationSpec,
) -> Result<(ExecuteSettings, Option<ExecuteProgress>)> {
    let (io, header_object) = settings::target_header(io, id, spec);
    let found = settings::read_keys(&io, &header_object, &[SETTINGS_KEY, PROGRESS_KEY]).await?;
    let [settings, progress] = [0, 1].map(|index| found.get(index).cloned().flatten());
    let progress = progress.and_then(|raw| ExecuteProgress::decode(&raw, Timestamp::now()));
    Ok((settings::parse(settings.as_ref())?, progress))
}

/// How far the execute of an open target is, wherever it runs.
pub(super) async fn anywhere(image: &Image) -> Option<ExecuteProgress> {
    if let Some(progress) = image.execute_progress() {
        return Some(progress);
    }
    let keys = [PROGRESS_KEY];
    let found = settings::read_keys(image.io(), &image.inner.header_object, &keys).await;
    let raw = found.ok()?.into_iter().next().flatten()?;
    ExecuteProgress::decode(&raw, Timestamp::now())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_come_back_as_they_were_written_and_old_ones_without_rates() {
        let progress = ExecuteProgress {
            objects_done: 1,
            objects_total: 2,
            bytes_copied: 3,
            bytes_skipped: 4,
            bytes_left: 5,
            bytes_per_second: 6,
            seconds_left: Some(7),
            paused: false,
            yielding: true,
            no_space: true,
        };
        let noted = Timestamp {
            seconds: 1000,
            nanoseconds: 0,
        };
        let raw = progress.encode(noted);
        assert_eq!(ExecuteProgress::decode(&raw, noted), Some(progress));
        let later = Timestamp {
            seconds: 2000,
            nanoseconds: 0,
        };
        let old = ExecuteProgress::decode(&raw, later).unwrap();
        assert_eq!(
            (old.bytes_left, old.bytes_per_second, old.seconds_left),
            (5, 0, None)
        );
        for end in 0..raw.len() {
            assert_eq!(ExecuteProgress::decode(&raw[..end], noted), None);
        }
    }
}
