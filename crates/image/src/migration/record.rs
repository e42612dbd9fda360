//! The migration records in both headers (rbd-format sheet, section 3.8), byte for byte Ceph's.

use ferry_cls::CallExt as _;
use ferry_cls::rbd::{MigrationSpec, MigrationState, client};
use ferry_store::{Errno, IoCtx, WriteOp};

use crate::error::{Result, absent_is_fine};
use crate::names;
use crate::watch::notify_header_update;

/// One image of a migration: where its header is, and what its record says.
#[derive(Debug, Clone)]
pub struct Side {
    /// Pool and namespace of the header.
    pub io: IoCtx,
    /// Image id.
    pub id: String,
    /// Name; the one it had, for a source in the trash.
    pub name: String,
    /// The record, if the header has one.
    pub spec: Option<MigrationSpec>,
}

impl Side {
    /// Name of the header object.
    pub fn header_object(&self) -> String {
        names::header_object(&self.id)
    }

    /// State in the record.
    pub fn state(&self) -> Option<MigrationState> {
        self.spec.as_ref().map(|spec| spec.state)
    }

    /// Writes a new record and tells all who have the image open.
    pub(crate) async fn set(&mut self, spec: MigrationSpec) -> Result<()> {
        ferry_cls::exec_write(&self.io, &self.header_object(), client::migration_set(&spec)).await?;
        self.spec = Some(spec);
        notify_header_update(&self.io, &self.header_object(), None).await
    }

    /// Changes the state and tells all who have the image open.
    pub(crate) async fn set_state(&mut self, state: MigrationState, description: &str) -> Result<()> {
        self.describe(state, description).await?;
        if let Some(spec) = &mut self.spec {
            spec.state = state;
            description.clone_into(&mut spec.state_description);
        }
        notify_header_update(&self.io, &self.header_object(), None).await
    }

    /// Changes state and description and tells nobody.
    pub(crate) async fn describe(&self, state: MigrationState, description: &str) -> Result<()> {
        let call = client::migration_set_state(state, description);
        Ok(ferry_cls::exec_write(&self.io, &self.header_object(), call).await?)
    }

    /// Removes the record, with what Ferry notes beside it, and tells all who have the image open. A header without one, or none, is fine.
    pub(crate) async fn remove(&mut self) -> Result<()> {
        let op = WriteOp::new().class_call(&client::migration_remove());
        let op = super::settings::remove_keys(op);
        match self.io.write_meta(&self.header_object(), op).await.map(|_| ()) {
            Err(error) if error.errno == Errno::EINVAL => {}
            result => absent_is_fine(result)?,
        }
        self.spec = None;
        notify_header_update(&self.io, &self.header_object(), None).await
    }
}

/// The record of a header: outer `None` when there is no header, inner when it has no record.
pub(crate) async fn read(io: &IoCtx, id: &str) -> Result<Option<Option<MigrationSpec>>> {
    match ferry_cls::exec_read(io, &names::header_object(id), client::migration_get()).await {
        Ok(spec) => Ok(Some(Some(spec))),
        Err(error) if error.errno == Errno::EINVAL => Ok(Some(None)),
        Err(error) if error.errno == Errno::ENOENT => {
            // No header, or one whose record went away between two steps of its removal.
            let there = io.exists(&names::header_object(id)).await?;
            Ok(there.then_some(None))
        }
        Err(error) => Err(error.into()),
    }
}
