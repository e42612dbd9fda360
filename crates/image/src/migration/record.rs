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
/// How often a record may change between a look and a write that counts on it.
const MAX_OVERTAKEN: usize = 16;

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

    /// Changes the state, whatever it was, and tells all who have the image open.
    pub(crate) async fn set_state(&mut self, state: MigrationState, description: &str) -> Result<()> {
        let call = client::migration_set_state(state, description);
        ferry_cls::exec_write(&self.io, &self.header_object(), call).await?;
        self.is_now(state, description).await
    }

    /// The same for a step of an execute, which an abort may have overtaken: [`ErrorKind::MigrationState`] if it has.
    pub(crate) async fn advance(&mut self, state: MigrationState, description: &str) -> Result<()> {
        self.describe(state, description).await?;
        self.is_now(state, description).await
    }

    async fn is_now(&mut self, state: MigrationState, description: &str) -> Result<()> {
        if let Some(spec) = &mut self.spec {
            spec.state = state;
            description.clone_into(&mut spec.state_description);
        }
        notify_header_update(&self.io, &self.header_object(), None).await
    }

    /// As [`Side::advance`], and tells nobody. An executor that stood still while its watch was lost must not write over the mark of
    /// an abort: a source that says *executing* and has no target is what a commit leaves, and the next one would remove it.
    pub(crate) async fn describe(&self, state: MigrationState, description: &str) -> Result<()> {
        let object = self.header_object();
        for _ in 0..MAX_OVERTAKEN {
            let mut op = match state {
                // Whoever finds what was there before instead begins once more, and finds what was copied.
                MigrationState::Executing => WriteOp::ordered(),
                _ => WriteOp::new(),
            };
            let found = super::settings::read_keys(&self.io, &object, &[RECORD_KEY]).await?;
            // Without a record the class says what is wrong.
            if let Some(raw) = found.into_iter().flatten().next() {
                let spec = MigrationSpec::decode(&mut Decoder::new(&raw))
                    .map_err(|error| damaged(&self.io, &object, error))?;
                if matches!(spec.state, MigrationState::Aborting | MigrationState::Preparing) {
                    return Err(self.overtaken());
                }
                if spec.state == MigrationState::Executed && state == MigrationState::Executing {
                    // Another execute has done it all; a commit may count on that from now on.
                    return Ok(());
                }
                op = op.step(WriteStep::OmapCompare {
                    key: Bytes::from_static(RECORD_KEY),
                    value: raw,
                });
            }
            let op = op.class_call(&client::migration_set_state(state, description));
            match self.io.write_meta(&object, op).await {
                // The one who copies describes its progress beside others.
                Err(error) if error.errno == Errno::ECANCELED => {}
                result => return result.map(|_| ()).map_err(Into::into),
            }
        }
        Err(self.overtaken())
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::in_memory;
    use crate::migration::abort::{AbortOptions, abort};
    use crate::migration::commit::commit;
    use crate::migration::pair::{self, Found};
    use crate::migration::prepare::{PrepareOptions, prepare};
    use crate::progress::Progress;

    /// A prepared migration from `old` to `new`, in memory.
    async fn prepared() -> (IoCtx, pair::Pair) {
        let io = in_memory::pool().await;
        in_memory::create_small(&io, "old").await;
        prepare(&io, "old", &io, "new", &PrepareOptions::default())
            .await
            .unwrap();
        match pair::find(&io, "new").await.unwrap() {
            Found::Pair(pair) => (io, *pair),
            found => panic!("{found:?}"),
        }
    }

    #[tokio::test]
    async fn an_executor_that_stood_still_does_not_write_over_the_mark_of_an_abort() {
        let (io, pair) = prepared().await;
        for side in [pair.source, pair.target] {
            let mut late = side.clone();
            late.advance(MigrationState::Executing, "").await.unwrap();
            side.clone()
                .set_state(MigrationState::Aborting, "")
                .await
                .unwrap();
            let refused = late.advance(MigrationState::Executed, "").await.unwrap_err();
            assert_eq!(refused.kind, ErrorKind::MigrationState);
            let refused = late.describe(MigrationState::Executing, "9%").await.unwrap_err();
            assert_eq!(refused.kind, ErrorKind::MigrationState);
            let found = read(&io, &side.key()).await.unwrap().flatten().unwrap();
            assert_eq!(found.state, MigrationState::Aborting);
        }
    }

    #[tokio::test]
    async fn what_one_execute_has_ended_another_one_does_not_begin_again() {
        let (io, pair) = prepared().await;
        for mut side in [pair.source, pair.target] {
            side.advance(MigrationState::Executed, "").await.unwrap();
            side.describe(MigrationState::Executing, "9%").await.unwrap();
            let found = read(&io, &side.key()).await.unwrap().flatten().unwrap();
            assert_eq!(found.state, MigrationState::Executed);
        }
    }

    #[tokio::test]
    async fn a_source_whose_target_an_abort_removed_is_kept_although_a_late_executor_marked_it() {
        let (io, pair) = prepared().await;
        let quiet = Progress::silent();
        let target = pair.target.header_object();
        // The abort was killed when the target was gone; then Ceph's executor went on, which asks nobody.
        io.write_meta(&target, WriteOp::new().remove()).await.unwrap();
        let mut source = pair.source;
        source.set_state(MigrationState::Executing, "").await.unwrap();
        let refused = commit(&io, "old", &quiet).await.unwrap_err();
        assert_eq!(refused.kind, ErrorKind::MigrationState, "{refused}");
        abort(&io, "old", AbortOptions::default(), &quiet).await.unwrap();
        let found = pair::find(&io, "old").await.unwrap();
        assert!(matches!(found, Found::NotMigrating(_)), "{found:?}");
    }
}
