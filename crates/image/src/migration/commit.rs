//! `migration commit`: takes the cross-links off and removes the source.
//!
//! Rows "commit" of `docs/migration.md`. The target's record goes first, so that from then on nothing (neither Ferry nor
//! Ceph) can abort into a source that is being removed; the source's record says "executed" and names the target until
//! its header goes last, so that a killed commit is found and finished from either name.

use ferry_cls::rbd::{MigrationSpec, MigrationState};
use ferry_store::IoCtx;

use super::pair::{self, Found};
use super::record::Side;
use crate::admin;
use crate::error::{ErrorKind, Result};
use crate::header;
use crate::image::{Image, ImageKey, OpenOptions};
use crate::progress::Progress;

/// Runs the verb for the migration that `name` belongs to.
pub async fn commit(io: &IoCtx, name: &str, progress: &Progress) -> Result<()> {
    let source = match pair::find(io, name).await? {
        Found::Pair(mut pair) => {
            if pair.target.state() != Some(MigrationState::Executed) {
                let next = match pair.target.state() {
                    Some(MigrationState::Prepared | MigrationState::Executing) => "rbd migration execute",
                    _ => "rbd migration abort",
                };
                return Err(pair::wrong_state(&pair, "executed", next));
            }
            // Nobody but a kill leaves any there; what cannot be moved is not removed.
            super::relink::to_target(&pair).await?;
            let snaps = header::load(&pair.source.io, &pair.source.key(), true)
                .await?
                .snaps;
            super::relink::check_no_children(
                &pair.source,
                snaps.into_keys(),
                "flatten the clones, or run 'rbd migration abort'",
            )
            .await?;
            if pair.source.state() != Some(MigrationState::Executed) {
                // By this a source is known that a killed commit left. Two executes beside each other may have ended otherwise.
                pair.source.advance(MigrationState::Executed, "").await?;
            }
            pair.target.remove_for_commit(&pair.source).await?;
            pair.source
        }
        Found::Leftover(source) => source,
        // Only its trash entry is left; a source without a record was about to be abandoned by nobody but a commit.
        Found::TrashEntry(side) if !side_has_header(&side).await? => side,
        Found::TrashEntry(side) => {
            return Err(
                pair::not_migrating(&side).hint("run 'rbd migration abort' to get it out of the trash")
            );
        }
        Found::NotMigrating(side) => {
            let rest = pair::dangling_entries(io).await?;
            if rest.is_empty() {
                return Err(pair::not_migrating(&side));
            }
            for entry in rest {
                admin::trash::forget(&entry.io, &entry.id).await?;
            }
            progress.update(1, 1);
            return Ok(());
        }
    };
    tidy_target(&source).await?;
    if let Some(spec) = &source.spec {
        let target_io = source
            .io
            .with_pool(spec.pool_id)
            .with_namespace(&spec.pool_namespace);
        super::relink::forget_flat_target(&source, &target_io, &spec.image_id).await?;
    }
    admin::remove::remove_unneeded(&source.io, source.image_key(), 0, progress).await?;
    match &source.spec {
        Some(spec) if source.is_format_1() => {
            let target_io = source
                .io
                .with_pool(spec.pool_id)
                .with_namespace(&spec.pool_namespace);
            super::leftover::forget(&target_io, &spec.image_id).await?;
        }
        _ => admin::trash::forget(&source.io, &source.id).await?,
    }
    progress.update(1, 1);
    Ok(())
}

/// A target that was shrunk kept empty objects beyond its end, to hide the source. There is nothing to hide any more.
async fn tidy_target(source: &Side) -> Result<()> {
    let Some(spec) = &source.spec else { return Ok(()) };
    remove_hiding(source, spec).await?;
    let io = source
        .io
        .with_pool(spec.pool_id)
        .with_namespace(&spec.pool_namespace);
    super::leftover::nothing_hides(&io, &spec.image_id).await
}

async fn remove_hiding(source: &Side, spec: &MigrationSpec) -> Result<()> {
    // None: removed by an earlier run, which had tidied before.
    let Some(overlap_bytes) = source.largest_size_bytes().await? else {
        return Ok(());
    };
    let io = source
        .io
        .with_pool(spec.pool_id)
        .with_namespace(&spec.pool_namespace);
    match header::load(&io, &spec.image_id, true).await {
        Ok(target) if target.size_bytes < overlap_bytes && target.migration.is_none() => {}
        // Large enough, or on its way elsewhere, or removed by its user: nothing to tidy, or nobody to miss it.
        Ok(_) => return Ok(()),
        Err(error) if error.kind == ErrorKind::ImageMissing => return Ok(()),
        Err(error) => return Err(error),
    }
    let target = Image::open(&io, ImageKey::Id(&spec.image_id), OpenOptions::read_write()).await?;
    let tidied = crate::io::trim::remove_hiding(&target, overlap_bytes).await;
    tidied.and(target.close().await)
}

async fn side_has_header(side: &Side) -> Result<bool> {
    Ok(side.io.exists(&side.header_object()).await?)
}
