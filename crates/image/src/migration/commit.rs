//! `migration commit`: takes the cross-links off and removes the source.
//!
//! Rows "commit" of `docs/migration.md`. The target's record goes first, so that from then on nothing (neither Ferry nor
//! Ceph) can abort into a source that is being removed; the source's record says "executed" and names the target until
//! its header goes last, so that a killed commit is found and finished from either name.

use ferry_cls::rbd::MigrationState;
use ferry_store::IoCtx;

use super::pair::{self, Found};
use super::record::Side;
use crate::admin;
use crate::error::Result;
use crate::progress::Progress;

/// Runs the verb for the migration that `name` belongs to.
pub async fn commit(io: &IoCtx, name: &str, progress: &Progress) -> Result<()> {
    let mut source = match pair::find(io, name).await? {
        Found::Pair(mut pair) => {
            if pair.target.state() != Some(MigrationState::Executed) {
                let next = match pair.target.state() {
                    Some(MigrationState::Prepared | MigrationState::Executing) => "rbd migration execute",
                    _ => "rbd migration abort",
                };
                return Err(pair::wrong_state(&pair, "executed", next));
            }
            super::check_no_children(&pair.source).await?;
            pair.target.remove().await?;
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
        Found::NotMigrating(side) => return Err(pair::not_migrating(&side)),
    };
    remove_source(&mut source, progress).await
}

async fn side_has_header(side: &Side) -> Result<bool> {
    Ok(side.io.exists(&side.header_object()).await?)
}

async fn remove_source(source: &mut Side, progress: &Progress) -> Result<()> {
    admin::remove::remove_by_id(&source.io, &source.id, progress).await?;
    admin::trash::forget(&source.io, &source.id).await?;
    progress.update(1, 1);
    Ok(())
}
