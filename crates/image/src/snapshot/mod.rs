//! Snapshots of an image: create, remove, rename, roll back, protect, limit.
//!
//! Invariants: a snapshot id exists in the store before the header names it and until the header forgot it; while one
//! is taken no write is under way and what was written before is flushed. Everything here may be killed and run again.

mod change;
pub(crate) mod diff;
pub(crate) mod kept;
mod rollback;

pub(crate) use change::{
    SKIP_QUIESCE, check_is_new, create_here, protect_here, quiesce, remove_here, remove_snap,
    remove_unneeded, rename_here, unprotect_here, unquiesce,
};
pub use change::{get_limit, set_limit};
pub(crate) use rollback::roll_back_here;

use ferry_cls::rbd::SnapshotNamespace;
use ferry_store::SnapId;

use crate::error::Result;
use crate::image::{Image, SnapKey, find_snap};
use crate::progress::Progress;
use crate::watch::messages::Request;

impl Image {
    /// Takes a snapshot of the head. `EEXIST`; `EDQUOT` at the snapshot limit.
    pub async fn snap_create(&self, name: &str, progress: &Progress) -> Result<()> {
        self.snap_create_flagged(name, 0, progress).await
    }

    /// The same without asking the image's other users to hold their writes back meanwhile.
    pub async fn snap_create_unquiesced(&self, name: &str, progress: &Progress) -> Result<()> {
        self.snap_create_flagged(name, change::SKIP_QUIESCE, progress)
            .await
    }

    async fn snap_create_flagged(&self, name: &str, flags: u64, progress: &Progress) -> Result<()> {
        crate::names::check_snap_name(name)?;
        let request = Request::SnapCreate {
            name: name.to_owned(),
            namespace: SnapshotNamespace::User,
            flags,
        };
        self.maintain(&request, progress).await
    }

    /// Removes a snapshot. `ENOENT`; `EBUSY` while it is protected. One that has clones goes to the trash, and away with the
    /// last of them. A removal of that name that was interrupted is finished.
    pub async fn snap_remove(&self, name: &str, progress: &Progress) -> Result<()> {
        self.refresh_for_client().await?;
        let header = self.header();
        let snap = match find_snap(&header, &SnapKey::Name(name.to_owned())) {
            Ok(snap) => snap,
            Err(error) => match change::interrupted(self, name).await? {
                Some(snap) => return self.snap_remove_by_id(snap, progress).await,
                None => return Err(error),
            },
        };
        change::check_removable(self, &header, snap)?;
        let request = Request::SnapRemove {
            name: name.to_owned(),
            namespace: SnapshotNamespace::User,
        };
        self.maintain(&request, progress).await
    }

    /// Finishes removals of snapshots that were interrupted.
    pub async fn snap_finish_removals(&self, progress: &Progress) -> Result<()> {
        self.refresh_for_client().await?;
        for snap in change::all_interrupted(self).await? {
            self.snap_remove_by_id(snap, progress).await?;
        }
        Ok(())
    }

    /// Removes a snapshot by id, whatever its namespace. Errors as [`Image::snap_remove`]; one in the trash that clones
    /// need is `EBUSY` ([`crate::ErrorKind::HasChildren`]).
    pub async fn snap_remove_by_id(&self, snap: SnapId, progress: &Progress) -> Result<()> {
        self.refresh_for_client().await?;
        let header = self.header();
        let snap = find_snap(&header, &SnapKey::Id(snap))?;
        change::check_removable(self, &header, snap)?;
        let Some(record) = header.snaps.get(&snap) else {
            return Ok(());
        };
        let request = Request::SnapRemove {
            name: record.name.clone(),
            namespace: record.namespace.clone(),
        };
        self.maintain(&request, progress).await
    }

    /// Renames a snapshot. `EEXIST`, `ENOENT`.
    pub async fn snap_rename(&self, name: &str, new_name: &str) -> Result<()> {
        crate::names::check_snap_name(new_name)?;
        self.refresh_for_client().await?;
        let snap = find_snap(&self.header(), &SnapKey::Name(name.to_owned()))?;
        rename_here(self, snap, new_name).await
    }

    /// Protects a snapshot from removal. `EBUSY` when it is protected already.
    pub async fn snap_protect(&self, name: &str) -> Result<()> {
        protect_here(self, name, &SnapshotNamespace::User).await
    }

    /// Ends the protection. `EINVAL` when it is not protected, `EBUSY` ([`crate::ErrorKind::HasChildren`]) while it has
    /// clones of format 1.
    pub async fn snap_unprotect(&self, name: &str) -> Result<()> {
        unprotect_here(self, name, &SnapshotNamespace::User).await
    }

    /// Makes the head what it was at a snapshot, size included. Takes the lock.
    pub async fn snap_rollback(&self, name: &str, progress: &Progress) -> Result<()> {
        rollback::roll_back(self, name, progress).await
    }
}
