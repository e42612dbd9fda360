//! `migration execute`: copies what the source still has for the target, in the background of its clients.
//!
//! Rows "execute" of `docs/migration.md`. It may be killed at any point and run again: copied objects are recognised.
//! The copying itself runs in the owner of the target's exclusive lock, wherever that is.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ferry_cls::rbd::MigrationState;
use ferry_store::{Errno, IoCtx};
use futures::stream::{StreamExt as _, TryStreamExt as _};

use super::pair::{self, Found, Pair};
use super::source::MigrationSource;
use crate::deep_copy::{self, Copied};
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
const DESCRIBE_PAUSE_MS: u64 = 200;

/// Objects that an execute in this process copies at the same time.
static CONCURRENT_OBJECTS: AtomicUsize = AtomicUsize::new(DEFAULT_CONCURRENT_OBJECTS);

/// Sets how many objects an execute in this process copies at the same time; clamped to 1..=256.
pub fn set_concurrent_objects(objects: usize) {
    CONCURRENT_OBJECTS.store(objects.clamp(1, MAX_CONCURRENT_OBJECTS), Ordering::Relaxed);
}

/// Runs the verb for the migration that `name` belongs to.
pub async fn execute(io: &IoCtx, name: &str, progress: &Progress) -> Result<()> {
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
    pair.target.set_state(MigrationState::Executing, "").await?;
    pair.source.set_state(MigrationState::Executing, "").await?;
    copy(image, pair, progress).await?;
    // The source first: a target that says "executed" may be committed, and then the source must say so too.
    pair.source.set_state(MigrationState::Executed, "").await?;
    pair.target.set_state(MigrationState::Executed, "").await
}

async fn copy(image: &Image, pair: &Pair, progress: &Progress) -> Result<()> {
    let (describing, describer) = describe_progress(pair, progress);
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

/// A progress that also writes the percentage into both headers.
fn describe_progress(pair: &Pair, progress: &Progress) -> (Progress, tokio::task::JoinHandle<()>) {
    let (sender, mut receiver) = tokio::sync::watch::channel(None);
    let (source, target) = (pair.source.clone(), pair.target.clone());
    let task = tokio::spawn(async move {
        while receiver.changed().await.is_ok() {
            let percent: Option<u64> = *receiver.borrow_and_update();
            if let Some(percent) = percent {
                let text = format!("{percent}% complete");
                for side in [&target, &source] {
                    if let Err(error) = side.describe(MigrationState::Executing, &text).await {
                        tracing::debug!(%error, "cannot write the progress into a header");
                    }
                }
            }
            tokio::time::sleep(Duration::from_millis(DESCRIBE_PAUSE_MS)).await;
        }
    });
    let progress = progress.clone();
    let describing = Progress::new(move |done, total| {
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
    let total = objects.len();
    let marks = Marks::new(&objects);
    let mut done = 0;
    // Found to need no copy: nothing was there, or somebody else did it, or there was nothing to do.
    let mut uncopied = ObjectSet::default();
    let concurrent = CONCURRENT_OBJECTS.load(Ordering::Relaxed);
    let mut copies = futures::stream::iter(objects.iter())
        .map(|object_no| copy_one(image, &marks, object_no))
        .buffer_unordered(concurrent);
    while let Some((object_no, copied)) = copies.try_next().await? {
        if !copied.exists {
            uncopied.insert(object_no);
        }
        done += 1;
        progress.update(done, total);
    }
    drop(copies);
    ahead::take_back(image, &uncopied).await?;
    progress.update(total.max(1), total.max(1));
    Ok(())
}

async fn copy_one(image: &Image, marks: &Marks<'_>, object_no: ObjectNo) -> Result<(ObjectNo, Copied)> {
    if image.inner.complete.contains(object_no) {
        return Ok((object_no, Copied::default()));
    }
    let _guard = image.begin_write().await?;
    // Asked for anew: snapshots of the target may have gone since.
    let Some(source) = image.source() else {
        return Err(ImageError::new(
            Errno::ECANCELED,
            format!("migration of image '{}' was ended", image.name()),
        ));
    };
    marks.ensure(image, &source).await?;
    let copied = deep_copy::ensure_copied(image, &source, object_no).await?;
    Ok((object_no, copied))
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
