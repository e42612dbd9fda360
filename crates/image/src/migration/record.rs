//! The migration records in both headers (rbd-format sheet, section 3.8), byte for byte Ceph's.

use bytes::Bytes;
use ferry_cls::CallExt as _;
use ferry_cls::encoding::{Decode as _, Decoder};
use ferry_cls::rbd::{MigrationSpec, MigrationState, client};
use ferry_store::{Errno, IoCtx, WriteOp, WriteStep};

use crate::error::{ErrorKind, ImageError, Result, absent_is_fine};
use crate::header::{HeaderKey, damaged};
use crate::image::ImageKey;
use crate::watch::notify_header_update;

/// Omap key of the record.
const RECORD_KEY: &[u8] = b"migration";

/// One image of a migration: where its header is, and what its record says.
#[derive(Debug, Clone)]
pub struct Side {
    /// Pool and namespace of the header.
    pub io: IoCtx,
    /// Image id; empty for a source of format 1.
    pub id: String,
    /// Name; the one it had, for a source in the trash.
    pub name: String,
    /// The record, if the header has one.
    pub spec: Option<MigrationSpec>,
}

impl Side {
    /// Name of the header object.
    pub fn header_object(&self) -> String {
        self.key().object()
    }

    /// Which header it has.
    pub fn key(&self) -> HeaderKey {
        HeaderKey::of_record(&self.id, &self.name)
    }

    /// How it is opened.
    pub(crate) fn image_key(&self) -> ImageKey<'_> {
        match self.id.as_str() {
            "" => ImageKey::Format1(&self.name),
            id => ImageKey::Id(id),
        }
    }

    /// Whether it is an image of format 1, which can only be a source: the trash does not hold it, it has no clones, and its
    /// name opens it although it is not listed.
    pub(crate) fn is_format_1(&self) -> bool {
        self.id.is_empty()
    }

    /// The size of its largest version: as far as that, a target may have objects. `None` without an image.
    pub(crate) async fn largest_size_bytes(&self) -> Result<Option<u64>> {
        match crate::header::load(&self.io, &self.key(), true).await {
            Ok(header) => {
                let sizes = header.snaps.values().map(|snap| snap.size_bytes);
                Ok(sizes.chain([header.size_bytes]).max())
            }
            Err(error) if error.kind == ErrorKind::ImageMissing => Ok(None),
            Err(error) => Err(error),
        }
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
        let (io, object) = (&self.io, self.header_object());
        match state {
            // Whoever finds what was there before instead begins once more, and finds what was copied.
            MigrationState::Executing => ferry_cls::exec_write_ordered(io, &object, call).await?,
            _ => ferry_cls::exec_write(io, &object, call).await?,
        }
        Ok(())
    }

    /// Removes the record, with what Ferry notes beside it, and tells all who have the image open. A header without one, or none, is fine.
    pub(crate) async fn remove(&mut self) -> Result<()> {
        let op = WriteOp::new().class_call(&client::migration_remove());
        let op = super::settings::remove_keys(op);
        self.remove_by(op).await
    }

    /// The same in a commit, if the record still says *executed*, with notes of what is left to do. [`ErrorKind::MigrationState`] if
    /// it does not.
    pub(crate) async fn remove_for_commit(&mut self, source: &Self) -> Result<()> {
        let object = self.header_object();
        let found = super::settings::read_keys(&self.io, &object, &[RECORD_KEY]).await?;
        let mut op = WriteOp::new().step(WriteStep::AssertExists);
        if let Some(raw) = found.into_iter().flatten().next() {
            let spec = MigrationSpec::decode(&mut Decoder::new(&raw))
                .map_err(|error| damaged(&self.io, &object, error))?;
            if spec.state != MigrationState::Executed {
                return Err(self.overtaken());
            }
            // An abort that marks it just now has the migration, and this must not remove the source.
            op = op.step(WriteStep::OmapCompare {
                key: Bytes::from_static(RECORD_KEY),
                value: raw,
            });
        }
        let op = op.class_call(&client::migration_remove());
        let op = super::settings::remove_keys(op);
        let op = super::leftover::note(op, source, self);
        match self.io.write_meta(&object, op).await {
            // Gone: an abort has removed the target.
            Err(error) if matches!(error.errno, Errno::ECANCELED | Errno::ENOENT) => {
                return Err(self.overtaken());
            }
            // Another commit was here before.
            Err(error) if error.errno == Errno::EINVAL => {}
            result => {
                result?;
            }
        }
        self.spec = None;
        notify_header_update(&self.io, &object, None).await
    }

    fn overtaken(&self) -> ImageError {
        ImageError::of(
            ErrorKind::MigrationState,
            Errno::EINVAL,
            format!("the migration of '{}' changed its state just now", self.name),
        )
        .hint("look at it with 'rbd status'")
    }

    async fn remove_by(&mut self, op: WriteOp) -> Result<()> {
        match self.io.write_meta(&self.header_object(), op).await.map(|_| ()) {
            Err(error) if error.errno == Errno::EINVAL => {}
            result => absent_is_fine(result)?,
        }
        self.spec = None;
        notify_header_update(&self.io, &self.header_object(), None).await
    }
}

/// The record of a header: outer `None` when there is no header, inner when it has no record.
pub(crate) async fn read(io: &IoCtx, key: &HeaderKey) -> Result<Option<Option<MigrationSpec>>> {
    let object = key.object();
    match ferry_cls::exec_read(io, &object, client::migration_get()).await {
        Ok(spec) => Ok(Some(Some(spec))),
        Err(error) if error.errno == Errno::EINVAL => Ok(Some(None)),
        Err(error) if error.errno == Errno::ENOENT => {
            // No header, or one whose record went away between two steps of its removal.
            let there = io.exists(&object).await?;
            Ok(there.then_some(None))
        }
        Err(error) => Err(error.into()),
    }
}
