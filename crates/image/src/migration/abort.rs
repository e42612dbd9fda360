//! `migration abort`: brings the source back, with what was changed on the target, and removes the target.
//!
//! Rows "abort" of `docs/migration.md`. Order: mark both "aborting"; make the source's head what the target's head is
//! and check that it is; note that in the source's record; move clones and the place in a group back; remove the target; put the source back under its name; take
//! its record off. Each step may be killed and run again. What cannot be kept is named before anything is touched.

use ferry_cls::encoding::MAX_OBJECTS;
use ferry_cls::rbd::{MigrationState, SnapshotNamespace, client, feature};
use ferry_store::{Errno, IoCtx, SnapId};

use super::pair::{self, Found, Pair};
use super::record::Side;
use crate::admin;
use crate::error::{ErrorKind, ImageError, Result};
use crate::image::{Image, OpenOptions};
use crate::progress::Progress;

mod copy_back;

/// What the source's record says once its head is what the target's was.
const COPIED_BACK: &str = "changes copied back";

/// How to abort.
#[derive(Debug, Clone, Copy, Default)]
pub struct AbortOptions {
    /// Drop what cannot be kept.
    pub force: bool,
}

/// Runs the verb for the migration that `name` belongs to.
pub async fn abort(io: &IoCtx, name: &str, options: AbortOptions, progress: &Progress) -> Result<()> {
    if let Found::Pair(pair) = pair::find(io, name).await? {
        // A prepare, commit or abort under way keeps the source open. What it does is looked at anew when it is not.
        check_no_watchers(&pair.source).await?;
    }
    match pair::find(io, name).await? {
        Found::Pair(pair) => abort_pair(*pair, options, progress).await,
        Found::TrashEntry(side) => {
            // The header is marked before the image goes to the trash, so this is somebody else's interrupted prepare, or
            // what an interrupted commit left.
            if side.io.exists(&side.header_object()).await? {
                relink(&side).await
            } else {
                admin::trash::forget(&side.io, &side.id).await
            }
        }
        Found::Leftover(side) => Err(ImageError::of(
            ErrorKind::MigrationState,
            Errno::EINVAL,
            format!("migration of '{}' is being committed", side.name),
        )
        .hint("finish it with 'rbd migration commit'")),
        Found::NotMigrating(side) => Err(pair::not_migrating(&side)),
    }
}

async fn abort_pair(mut pair: Pair, options: AbortOptions, progress: &Progress) -> Result<()> {
    check_name_is_free(&pair).await?;
    if pair.target_exists {
        check_no_watchers(&pair.target).await?;
    }
    let has_clients_data = pair.target_exists
        && matches!(
            pair.target.state(),
            Some(
                MigrationState::Prepared
                    | MigrationState::Executing
                    | MigrationState::Executed
                    | MigrationState::Aborting
            )
        );
    let copied_back =
        pair.source.spec.as_ref().is_some_and(|spec| {
            spec.state == MigrationState::Aborting && spec.state_description == COPIED_BACK
        });
    let was_prepared = pair
        .source
        .spec
        .as_ref()
        .is_some_and(|spec| spec.state != MigrationState::Preparing)
        || pair
            .target
            .spec
            .as_ref()
            .is_some_and(|spec| spec.state == MigrationState::Prepared);
    if pair.target_exists && !copied_back {
        check_no_new_clones(&pair).await?;
    }
    if has_clients_data && !copied_back && was_prepared {
        if !options.force {
            check_keepable(&pair).await?;
        }
        mark(&mut pair).await?;
        fence_lost_owner(&pair.target).await?;
        copy_back::copy_back(&pair, progress).await?;
        pair.source
            .set_state(MigrationState::Aborting, COPIED_BACK)
            .await?;
    }
    undo(pair, progress).await
}

/// Marks both sides. A client that opened the target just before shows now, and gets its migration back; later ones are
/// refused.
async fn mark(pair: &mut Pair) -> Result<()> {
    let before = (pair.source.state(), pair.target.state());
    if pair.target.state() != Some(MigrationState::Aborting) {
        // The target first: a commit that takes its record off now has the migration, and nothing here goes on.
        pair.target.set_state(MigrationState::Aborting, "").await?;
    }
    pair.source.set_state(MigrationState::Aborting, "").await?;
    let free = check_no_watchers(&pair.target).await;
    if free.is_err()
        && let (Some(source), Some(target)) = before
    {
        // The target last: while it is marked nobody commits, so no source that is being removed is marked.
        pair.source.set_state(source, "").await?;
        pair.target.set_state(target, "").await?;
    }
    free
}

/// Keeps a client from writing to the target that owns its lock and is taken for dead: what it is still told was written would
/// be lost. Nobody else can take the lock now, as the mark refuses whoever has taken it.
async fn fence_lost_owner(target: &Side) -> Result<()> {
    let header = crate::header::load(&target.io, &target.key(), true).await?;
    if header.lock.lockers.is_empty() || header.lock.tag != crate::names::LOCK_TAG {
        return Ok(());
    }
    let image = open(target, OpenOptions::read_write().ignoring_parent()).await?;
    let fenced = image.acquire_lock().await;
    fenced.and(image.close().await)
}

/// Removes the target, whatever there is of it, and puts the source back. Used by abort and by a failed prepare.
pub(super) async fn undo(mut pair: Pair, progress: &Progress) -> Result<()> {
    if pair.source.spec.as_ref().is_some_and(pair::was_prepared) {
        // Its target was not yet. A prepared source without a target would be taken for what a commit left, and removed.
        pair.source.set_state(MigrationState::Preparing, "").await?;
    }
    if pair.target_exists {
        super::relink::to_source(&pair).await?;
        let (source, target) = (&pair.source, &pair.target);
        crate::group::move_membership(&target.io, &target.id, &source.io, &source.id).await?;
    }
    admin::remove::remove_names(&pair.target.io, &pair.target.name, &pair.target.id).await?;
    // As far as any version of the source goes the target may have objects, also empty ones beyond its end that hid it there.
    let reach_bytes = pair.source.largest_size_bytes().await?.unwrap_or(0);
    admin::remove::remove_unneeded(&pair.target.io, pair.target.image_key(), reach_bytes, progress).await?;
    super::relink::forget_flat_target(&pair.source, &pair.target.io, &pair.target.id).await?;
    relink(&pair.source).await?;
    pair.source.remove().await?;
    progress.update(1, 1);
    Ok(())
}

async fn relink(source: &Side) -> Result<()> {
    match source.is_format_1() {
        true => admin::format_1::add(&source.io, &source.name).await,
        false => admin::trash::relink(&source.io, &source.id, &source.name).await,
    }
}

/// Somebody may have taken the source's name meanwhile; better to know before the target is gone.
async fn check_name_is_free(pair: &Pair) -> Result<()> {
    let source = &pair.source;
    let call = client::dir_get_id(&source.name);
    let taken =
        crate::error::optional(ferry_cls::exec_read(&source.io, crate::names::DIRECTORY, call).await)?;
    let same_place = source.io.scope() == pair.target.io.scope();
    match taken {
        Some(id) if id != source.id && !(same_place && id == pair.target.id) => Err(ImageError::of(
            ErrorKind::ImageExists,
            Errno::EEXIST,
            format!("another image is called '{}' now", source.name),
        )
        .hint("rename that image, then run 'rbd migration abort' again")),
        _ => Ok(()),
    }
}

async fn check_no_watchers(target: &Side) -> Result<()> {
    let object = target.header_object();
    let watchers = target.io.store().list_watchers(target.io.object(&object)).await?;
    if watchers.is_empty() {
        return Ok(());
    }
    Err(ImageError::of(
        ErrorKind::HasWatchers,
        Errno::EBUSY,
        format!("image '{}' is in use by {}", target.name, watchers[0]),
    )
    .hint("stop the clients of the image and run 'rbd migration abort' again"))
}

/// Clones of snapshots that only the target has cannot be moved to the source, and would lose their parent.
async fn check_no_new_clones(pair: &Pair) -> Result<()> {
    let Some(spec) = &pair.target.spec else {
        return Ok(());
    };
    let header = crate::header::load(&pair.target.io, &pair.target.id, true).await?;
    // A source of format 1 can take no clones back.
    let came_along: Vec<SnapId> = match pair.source.is_format_1() {
        true => Vec::new(),
        false => spec.snap_seqs.values().copied().collect(),
    };
    let new = header.snaps.into_keys().filter(|snap| !came_along.contains(snap));
    let hint = "the source cannot have these clones; flatten or remove them first";
    super::relink::check_no_children(&pair.target, new, hint).await
}

/// Names what an abort would lose: snapshots taken since the migration was prepared.
async fn check_keepable(pair: &Pair) -> Result<()> {
    let Some(spec) = &pair.target.spec else {
        return Ok(());
    };
    let header = crate::header::load(&pair.target.io, &pair.target.id, true).await?;
    check_fits(&pair.source, header.size_bytes).await?;
    let lost: Vec<String> = header
        .snaps
        .values()
        .filter(|snap| !matches!(snap.namespace, SnapshotNamespace::Trash { .. }))
        .filter(|snap| !spec.snap_seqs.values().any(|id| *id == snap.id))
        .map(|snap| format!("'{}'", snap.name))
        .collect();
    if lost.is_empty() {
        return Ok(());
    }
    Err(ImageError::of(
        ErrorKind::WouldLose,
        Errno::EBUSY,
        format!(
            "aborting would lose the snapshot(s) {} of '{}', taken since the migration was prepared",
            lost.join(", "),
            pair.target.name
        ),
    )
    .hint("export or remove them first, or run 'rbd migration abort --force' to drop them"))
}

/// The source must be able to take the target's size; better to know before anything is marked.
async fn check_fits(source: &Side, size_bytes: u64) -> Result<()> {
    let fixed = crate::header::load_fixed(&source.io, &source.key()).await?;
    let header = crate::header::load(&source.io, &source.key(), true).await?;
    let objects = fixed.layout.object_count(size_bytes);
    if header.has(feature::OBJECT_MAP) && objects > MAX_OBJECTS {
        return Err(ImageError::of(
            ErrorKind::WouldLose,
            Errno::EFBIG,
            format!(
                "the source cannot take the target's {size_bytes} bytes: its object map would be too large"
            ),
        )
        .hint("shrink the target first"));
    }
    Ok(())
}

/// Opens an image of the pair as it is.
async fn open(side: &Side, options: OpenOptions) -> Result<Image> {
    Image::open(&side.io, side.image_key(), options.ignoring_migration()).await
}
