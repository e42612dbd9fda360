//! `migration execute`: copies what the source still has for the target, in the background of its clients.
//!
//! Rows "execute" of `docs/migration.md`. It may be killed at any point and run again: copied objects are recognised.
//! The copying itself runs in the owner of the target's exclusive lock, wherever that is.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ferry_cls::rbd::MigrationState;
use ferry_store::{Errno, IoCtx};
use futures::FutureExt as _;
use futures::stream::{FuturesUnordered, StreamExt as _};
use tokio::time::Instant;

use super::execution::{self, Meter};
use super::pace::{self, Pace};
use super::pair::{self, Found, Pair};
use super::room::{self, Room};
use super::settings::{self, OnNoSpace, SettingsChange};
use super::source::MigrationSource;
use crate::deep_copy::{self, Copied, CopyOptions};
use crate::error::{ImageError, Result};
use crate::image::{Image, ImageKey, OpenOptions};
use crate::layout::ObjectNo;
use crate::object_map::ahead;
use crate::object_set::ObjectSet;
use crate::progress::Progress;
use crate::watch::messages::Request;

/// Objects copied at the same time when nothing else is said (`rbd_concurrent_management_ops`).
pub const DEFAULT_CONCURRENT_OBJECTS: usize = 10;
/// Most objects copied at the same time.
pub const MAX_CONCURRENT_OBJECTS: usize = 256;
/// Pause between two writes of the percentage into the headers.
const DESCRIBE_PAUSE_MS: u64 = 500;
/// How often an execute that copies nothing (paused, or waiting for its rate) says that it lives, and shows itself.
const SIGN_OF_LIFE_MS: u64 = 1_000;
/// How often the settings are read although nobody said that they changed.
const SETTINGS_MS: u64 = 5_000;

/// Objects that an execute in this process copies at the same time.
static CONCURRENT_OBJECTS: AtomicUsize = AtomicUsize::new(DEFAULT_CONCURRENT_OBJECTS);

/// Sets how many objects an execute in this process copies at the same time; clamped to 1..=256.
pub fn set_concurrent_objects(objects: usize) {
    CONCURRENT_OBJECTS.store(objects.clamp(1, MAX_CONCURRENT_OBJECTS), Ordering::Relaxed);
}

/// Runs the verb for the migration that `name` belongs to. It waits while the migration is paused.
pub async fn execute(io: &IoCtx, name: &str, progress: &Progress) -> Result<()> {
    execute_with(io, name, &SettingsChange::default(), progress).await
}

/// The same with other settings, which stay for later runs.
pub async fn execute_with(
    io: &IoCtx,
    name: &str,
    change: &SettingsChange,
    progress: &Progress,
) -> Result<()> {
    let mut pair = match pair::find(io, name).await? {
        Found::Pair(pair) => *pair,
        Found::NotMigrating(side) => return Err(pair::not_migrating(&side)),
        Found::TrashEntry(side) => {
            return Err(
                pair::not_migrating(&side).hint("run 'rbd migration abort' to get it out of the trash")
            );
        }
        Found::Leftover(side) => {
            return Err(pair::not_migrating(&side).hint("finish the commit with 'rbd migration commit'"));
        }
    };
    match pair.target.state() {
        Some(MigrationState::Prepared | MigrationState::Executing) => {}
        Some(MigrationState::Executed) => {
            return Err(pair::wrong_state(&pair, "prepared", "rbd migration commit"));
        }
        _ => return Err(pair::wrong_state(&pair, "prepared", "rbd migration abort")),
    }
    // A prepare that was killed may have left clones at the source.
    super::relink::to_target(&pair).await?;
    settings::change_in(&pair.target.io, &pair.target.header_object(), change).await?;
    // Open from before the first mark until after the last: an abort sees the watch, and waits its turn.
    let image = Image::open(
        &pair.target.io,
        ImageKey::Id(&pair.target.id),
        OpenOptions::read_write(),
    )
    .await?;
    let executed = with_target(&image, &mut pair, progress).await;
    executed.and(image.close().await)?;
    progress.update(1, 1);
    Ok(())
}

async fn with_target(image: &Image, pair: &mut Pair, progress: &Progress) -> Result<()> {
    image.refresh().await?;
    match image.header().migration_target().map(|spec| spec.state) {
        Some(MigrationState::Prepared | MigrationState::Executing) => {}
        _ => {
            return Err(
                pair::wrong_state(pair, "prepared", "rbd status").context("the migration went on meanwhile")
            );
        }
    }
    // The target first: if a commit has just taken its record off, the source must not be touched any more.
    pair.target.advance(MigrationState::Executing, "").await?;
    pair.source.advance(MigrationState::Executing, "").await?;
    copy(image, pair, progress).await?;
    // The source first: a target that says "executed" may be committed, and then the source must say so too.
    pair.source.advance(MigrationState::Executed, "").await?;
    pair.target.advance(MigrationState::Executed, "").await
}

async fn copy(image: &Image, pair: &Pair, progress: &Progress) -> Result<()> {
    let (describing, describer) = describe_progress(image, pair, progress);
    let migrated = image.maintain(&Request::Migrate, &describing).await;
    drop(describing);
    // Its last write must not come after the final state.
    if describer.await.is_err() {
        return Err(ImageError::new(
            Errno::EIO,
            "writing the progress of a migration broke off",
        ));
    }
    migrated?;
    // Whoever copied, whoever was killed before: all of it is on the medium before the source may go.
    image.sync_all_data().await
}

/// A progress that also writes the percentage into both headers, and has the details shown to whoever wants them.
fn describe_progress(
    image: &Image,
    pair: &Pair,
    progress: &Progress,
) -> (Progress, tokio::task::JoinHandle<()>) {
    let (sender, mut receiver) = tokio::sync::watch::channel(None);
    let (ending, mut ended) = tokio::sync::oneshot::channel::<()>();
    let (source, target) = (pair.source.clone(), pair.target.clone());
    let (image, shown) = (image.clone(), progress.clone());
    let pause = Duration::from_millis(DESCRIBE_PAUSE_MS);
    let task = tokio::spawn(async move {
        let mut over = false;
        loop {
            let changed = tokio::time::timeout(pause, receiver.changed()).await;
            let percent: Option<u64> = match changed {
                Ok(Ok(())) => *receiver.borrow_and_update(),
                Ok(Err(_)) => return,
                Err(_) => None,
            };
            if let Some(percent) = percent {
                let text = format!("{percent}% complete");
                for side in [&target, &source] {
                    if let Err(error) = side.describe(MigrationState::Executing, &text).await {
                        tracing::debug!(%error, "cannot write the progress into a header");
                    }
                }
            }
            if let Some(report) = shown.of_execute()
                && let Some(details) = execution::anywhere(&image).await
            {
                report(&details);
            }
            // Until the next time, or the end of the work.
            over = over || tokio::time::timeout(pause, &mut ended).await.is_ok();
        }
    });
    let progress = progress.clone();
    let describing = Progress::new(move |done, total| {
        let _lives_as_long_as_the_work = &ending;
        progress.update(done, total);
        let percent = done.saturating_mul(100).checked_div(total).unwrap_or(0);
        sender.send_if_modified(|last| {
            let changed = *last != Some(percent);
            *last = Some(percent);
            changed
        });
    });
    (describing, task)
}

/// Copies every object that is not complete yet. Runs in the lock owner.
pub(crate) async fn copy_all(image: &Image, progress: &Progress) -> Result<()> {
    image.refresh().await?;
    let Some(source) = image.source() else {
        let executed =
            image.header().migration_target().map(|spec| spec.state) == Some(MigrationState::Executed);
        return if executed {
            Ok(())
        } else {
            Err(ImageError::new(
                Errno::EINVAL,
                format!("image '{}' takes part in no migration", image.name()),
            ))
        };
    };
    let objects = source.objects_to_copy(image).await?;
    let settings = settings::load(image.io(), &image.inner.header_object).await?;
    let activity = &image.inner.activity;
    let default_concurrency = CONCURRENT_OBJECTS.load(Ordering::Relaxed);
    let mut run = Run {
        image,
        progress,
        pace: Pace::new(settings, default_concurrency, activity, Instant::now()),
        meter: Meter::start(
            image,
            objects.len(),
            bytes_of(image, &source, &objects).await,
            source.copy_overlap_bytes(),
        ),
        room: Room::new(image.data_io()),
        shown: Instant::now(),
        settings_read: Instant::now(),
        uncopied: ObjectSet::default(),
    };
    let copied = run.copy(&source, &objects).await;
    let Run { meter, uncopied, .. } = run;
    meter.finish().await;
    copied?;
    ahead::take_back(image, &uncopied).await?;
    // Copies may be buffered. If a flush failed meanwhile, only this handle knows.
    image.flush_data().await?;
    let total = objects.len().max(1);
    progress.update(total, total);
    Ok(())
}

/// Bytes of the image that lie in some objects.
async fn bytes_of(image: &Image, source: &MigrationSource, objects: &ObjectSet) -> u64 {
    let mut bytes = 0;
    for (index, object_no) in objects.iter().enumerate() {
        bytes += image
            .layout()
            .object_bytes_used(object_no, source.copy_overlap_bytes());
        if index % 4096 == 4095 {
            tokio::task::yield_now().await;
        }
    }
    bytes
}

/// The copying of one execute.
struct Run<'a> {
    image: &'a Image,
    progress: &'a Progress,
    pace: Pace,
    meter: Meter,
    room: Room,
    /// When progress was last shown.
    shown: Instant,
    settings_read: Instant,
    /// Found to need no copy: nothing was there, or somebody else did it, or there was nothing to do.
    uncopied: ObjectSet,
}

impl Run<'_> {
    async fn copy(&mut self, source: &MigrationSource, objects: &ObjectSet) -> Result<()> {
        let image = self.image;
        let marks = Marks::new(objects);
        let overlap_bytes = source.copy_overlap_bytes();
        let mut waiting = objects.iter().peekable();
        // Refused for want of space; at most as many as were under way.
        let mut again = Vec::new();
        let mut running = FuturesUnordered::new();
        let mut running_bytes = 0;
        let mut done = 0;
        self.show(done, objects.len());
        loop {
            let mut wake = Duration::from_millis(if self.pace.settings().is_adaptive() {
                pace::SAMPLE_MS
            } else {
                SIGN_OF_LIFE_MS
            });
            let reserve_bytes = self.pace.settings().reserve_bytes;
            let mut no_room_for = None;
            while running.len() < self.pace.concurrency() {
                let Some(object_no) = again.last().or(waiting.peek()).copied() else {
                    break;
                };
                if let Some(wait) = self.pace.wait(Instant::now()) {
                    wake = wake.min(wait);
                    break;
                }
                let object_bytes = image.layout().object_bytes_used(object_no, overlap_bytes);
                if !image.inner.complete.contains(object_no)
                    && !self.room.take(object_bytes, running_bytes, reserve_bytes).await
                {
                    wake = wake.min(Duration::from_millis(room::LOOK_MS));
                    no_room_for = Some(object_bytes);
                    break;
                }
                if again.pop().is_none() {
                    waiting.next();
                }
                running_bytes += object_bytes;
                self.pace.charge(object_bytes);
                let zero_detect = self.pace.settings().zero_detect;
                // Boxed: unboxed, all of this is nested deeper than the compiler looks.
                running.push(copy_one(image, &marks, object_no, object_bytes, zero_detect).boxed());
            }
            if running.is_empty() && again.is_empty() && waiting.peek().is_none() {
                return Ok(());
            }
            if let Some(object_bytes) = no_room_for
                && running.is_empty()
                && self.pace.settings().on_no_space == OnNoSpace::Fail
            {
                // Those that were under way may have taken less than their size.
                if self.room.confirms(object_bytes, reserve_bytes, false).await {
                    return Err(self.no_space());
                }
                continue;
            }
            tokio::select! {
                // In this order, so that a simulation can be repeated.
                biased;
                Some(one) = running.next() => {
                    let One { object_no, object_bytes, copied } = one;
                    running_bytes -= object_bytes;
                    let copied = match copied {
                        Ok(copied) => copied,
                        Err(error) => {
                            self.refused(object_bytes, error, !running.is_empty()).await?;
                            self.pace.settle(object_bytes, 0);
                            again.push(object_no);
                            continue;
                        }
                    };
                    self.pace.settle(object_bytes, copied.data_bytes + copied.zero_bytes);
                    self.meter.done(object_bytes, copied.data_bytes);
                    self.room.copied(reserve_bytes);
                    if !copied.exists {
                        self.uncopied.insert(object_no);
                    }
                    done += 1;
                    self.progress.update(done, objects.len());
                }
                () = image.inner.execution.poked.notified() => self.read_settings().await,
                () = tokio::time::sleep(wake) => {}
            }
            self.look_around(done, objects.len()).await;
        }
    }

    /// An object was not copied. Fine, if that is for want of space, which the store confirms; else the error.
    async fn refused(&mut self, object_bytes: u64, error: ImageError, others_run: bool) -> Result<()> {
        let settings = *self.pace.settings();
        let waits = matches!(error.errno, Errno::ENOSPC | Errno::EDQUOT)
            && settings.on_no_space == OnNoSpace::Pause
            && self
                .room
                .confirms(object_bytes, settings.reserve_bytes, others_run)
                .await;
        if waits { Ok(()) } else { Err(error) }
    }

    fn no_space(&self) -> ImageError {
        let what = format!("copying image '{}': {}", self.image.name(), self.room.text());
        ImageError::new(Errno::ENOSPC, what).hint(
            "make room and run it again, or say how much is to be left (rbd migration throttle --reserve-bytes)",
        )
    }

    async fn look_around(&mut self, done: u64, total: u64) {
        let now = Instant::now();
        self.pace.sample(&self.image.inner.activity, now);
        if now.saturating_duration_since(self.settings_read) >= Duration::from_millis(SETTINGS_MS) {
            self.read_settings().await;
        }
        let pause = if done == total { 0 } else { DESCRIBE_PAUSE_MS };
        if now.saturating_duration_since(self.shown) >= Duration::from_millis(pause) {
            self.show(done, total);
        }
    }

    fn show(&mut self, done: u64, total: u64) {
        self.shown = Instant::now();
        let paused = self.pace.settings().paused;
        let (yielding, no_space) = (self.pace.is_yielding(), self.room.is_short());
        self.meter.tick(paused, yielding, no_space);
        // Also when nothing has moved: whoever asked for the copy hears that it goes on.
        self.progress.update(done, total);
    }

    async fn read_settings(&mut self) {
        self.settings_read = Instant::now();
        match settings::load(self.image.io(), &self.image.inner.header_object).await {
            Ok(settings) => {
                self.room.forget();
                self.pace.set(settings, Instant::now());
            }
            Err(error) => {
                tracing::warn!(image = self.image.name(), %error, "keeping the settings of the migration");
            }
        }
    }
}

/// What became of one object.
struct One {
    object_no: ObjectNo,
    object_bytes: u64,
    copied: Result<Copied>,
}

async fn copy_one(
    image: &Image,
    marks: &Marks<'_>,
    object_no: ObjectNo,
    object_bytes: u64,
    zero_detect: bool,
) -> One {
    One {
        object_no,
        object_bytes,
        copied: copy_object(image, marks, object_no, zero_detect).await,
    }
}

async fn copy_object(
    image: &Image,
    marks: &Marks<'_>,
    object_no: ObjectNo,
    zero_detect: bool,
) -> Result<Copied> {
    if image.inner.complete.contains(object_no) {
        return Ok(Copied::default());
    }
    let _guard = image.begin_write().await?;
    // Asked for anew: snapshots of the target may have gone since.
    let Some(source) = image.source() else {
        let state = image.header().migration_target().map(|spec| spec.state);
        if matches!(state, None | Some(MigrationState::Executed)) {
            // Another execute has copied all of it, and its commit may be over too.
            return Ok(Copied::default());
        }
        return Err(ImageError::new(
            Errno::ECANCELED,
            format!("migration of image '{}' was ended", image.name()),
        ));
    };
    marks.ensure(image, &source).await?;
    let how = CopyOptions { zero_detect };
    deep_copy::ensure_copied_with(image, &source, object_no, how).await
}

/// Object maps marked ahead of the copies, and again when somebody made the marks void.
struct Marks<'a> {
    objects: &'a ObjectSet,
    /// False once it turned out that objects must be marked one by one.
    possible: tokio::sync::Mutex<bool>,
}

impl<'a> Marks<'a> {
    fn new(objects: &'a ObjectSet) -> Self {
        Self {
            objects,
            possible: tokio::sync::Mutex::new(true),
        }
    }

    /// The caller holds a write guard.
    async fn ensure(&self, image: &Image, source: &MigrationSource) -> Result<()> {
        if image.inner.head_map.is_marked_ahead() {
            return Ok(());
        }
        let mut possible = self.possible.lock().await;
        if *possible && !image.inner.head_map.is_marked_ahead() {
            *possible = ahead::mark(image, source, self.objects).await?;
        }
        Ok(())
    }
}
