//! What lies under a migration target: its source image, and how the target's snapshots map to the source's.
//!
//! Invariants: the source is only read. An object of the target is *complete* when its snapset has reached the newest
//! snapshot that came with the migration; until then neither its head nor its snapshots may be read from the target.

use std::collections::BTreeMap;
use std::sync::Arc;

use ferry_cls::rbd::{MigrationSpec, MigrationState};
use ferry_store::{Errno, SnapContext, SnapId};

use super::record;
use crate::error::{ErrorKind, ImageError, Result};
use crate::header::Header;
use crate::image::{Image, ImageKey, OpenOptions};
use crate::io::read::Found;
use crate::layout::ObjectNo;
use crate::object_set::{self, ObjectSet};

/// Objects of the source looked at before other tasks get their turn.
const OBJECTS_PER_TURN: usize = 4096;

/// A snapshot that came with the migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MigratedSnap {
    /// The target's snapshot.
    pub target: SnapId,
    /// Its twin on the source.
    pub source: SnapId,
    /// Whether the target still has it.
    pub living: bool,
}

/// An open source, and the mapping that the target's record holds.
#[derive(Debug)]
pub struct MigrationSource {
    image: Image,
    /// Living snapshots that came with the migration: target id to source id, ascending.
    snaps: BTreeMap<SnapId, SnapId>,
    /// All snapshots that came with the migration, removed ones too, ascending by target id. An object half copied when
    /// one of them was removed goes on where it stopped.
    history: Vec<MigratedSnap>,
    /// Newest snapshot id of the target that came with the migration, living or removed since; 0 without.
    base_seq: u64,
    /// What the target's head shows of the source: its head, or a snapshot if that is copied.
    head: SnapId,
    /// Whether the target is a mere copy.
    copied_alone: bool,
    /// Size of the source's head at prepare.
    overlap_bytes: u64,
    /// Whether what the source shows of its parent is copied too.
    flattened: bool,
    /// Largest extent of the image at which the source may have data, over head and snapshots.
    copy_overlap_bytes: u64,
}

/// How often a reader looks whether an abort finds that it cannot be, and the pause between.
const PASSING_ABORT_LOOKS: usize = 20;
const PASSING_ABORT_PAUSE_MS: u64 = 100;

impl MigrationSource {
    /// The source that a target with this header needs, opening it unless `current` serves. `None` for an image that
    /// is no target, or one that has all of its data.
    pub(crate) async fn for_header(
        target: &Image,
        header: &Header,
        current: Option<Arc<Self>>,
    ) -> Result<Option<Arc<Self>>> {
        let Some(spec) = header.migration_target() else {
            return Ok(None);
        };
        let shows_source = match spec.state {
            MigrationState::Prepared | MigrationState::Executing => true,
            // While it still has children, their snapshots show through.
            MigrationState::Aborting => target.serves_as_parent(),
            _ => false,
        };
        if !shows_source {
            return Ok(None);
        }
        let image = match &current {
            Some(current) => current.image.clone(),
            None => Box::pin(open(target, spec)).await?,
        };
        let made = Self::new(image, header, spec);
        Ok(Some(match current {
            Some(current)
                if current.snaps == made.snaps && current.copy_overlap_bytes == made.copy_overlap_bytes =>
            {
                current
            }
            _ => Arc::new(made),
        }))
    }

    /// The mapping of `spec` without what was removed since, over an open source.
    pub(crate) fn new(image: Image, header: &Header, spec: &MigrationSpec) -> Self {
        let source_header = image.header();
        let snaps: BTreeMap<SnapId, SnapId> = spec
            .snap_seqs
            .iter()
            .filter(|(source, target)| {
                header.snaps.contains_key(target) && source_header.snaps.contains_key(source)
            })
            .map(|(source, target)| (*target, *source))
            .collect();
        let mut history: Vec<MigratedSnap> = spec
            .snap_seqs
            .iter()
            .filter(|(source, _)| source_header.snaps.contains_key(source))
            .map(|(source, target)| MigratedSnap {
                target: *target,
                source: *source,
                living: header.snaps.contains_key(target),
            })
            .collect();
        history.sort_by_key(|snap| snap.target);
        let sizes = history
            .iter()
            .filter_map(|snap| source_header.size_at(snap.source));
        let copy_overlap_bytes = sizes.chain([spec.overlap_bytes]).max().unwrap_or(0);
        // Removed ones count: an object half copied when its newest snapshot was removed is still half copied.
        let base_seq = spec.snap_seqs.values().map(|id| id.0).max().unwrap_or(0);
        Self {
            image,
            snaps,
            history,
            base_seq,
            head: SnapId::HEAD,
            copied_alone: false,
            overlap_bytes: spec.overlap_bytes,
            flattened: spec.flatten,
            copy_overlap_bytes,
        }
    }

    /// The same for a copy that nobody sees before it is whole, with `head` of the source in the place of its head.
    pub(crate) fn for_copy(mut self, head: SnapId) -> Self {
        self.head = head;
        self.copied_alone = true;
        self
    }

    /// Whether nobody looks at the objects to know how far they have been copied.
    pub(crate) fn is_copied_alone(&self) -> bool {
        self.copied_alone
    }

    /// What the target's head shows of the source.
    pub(crate) fn head(&self) -> SnapId {
        self.head
    }

    /// The source image.
    pub fn image(&self) -> &Image {
        &self.image
    }

    pub(crate) async fn close(&self) {
        if let Err(error) = self.image.close().await {
            tracing::debug!(%error, "closing a migration source");
        }
    }

    /// Living snapshots that came with the migration, target id to source id, ascending.
    pub fn snaps(&self) -> &BTreeMap<SnapId, SnapId> {
        &self.snaps
    }

    /// All snapshots that came with the migration, removed ones too, ascending by target id.
    pub(crate) fn history(&self) -> &[MigratedSnap] {
        &self.history
    }

    /// Newest snapshot id of the target that came with the migration; 0 without.
    pub(crate) fn base_seq(&self) -> u64 {
        self.base_seq
    }

    /// Largest extent of the image at which the source may have data.
    pub fn copy_overlap_bytes(&self) -> u64 {
        self.copy_overlap_bytes
    }

    /// Size of the source's head at prepare.
    pub fn head_overlap_bytes(&self) -> u64 {
        self.overlap_bytes
    }

    /// Objects of the target for which the source may have data.
    pub fn object_count(&self, target: &Image) -> u64 {
        target.layout().object_count(self.copy_overlap_bytes)
    }

    /// Whether the source may have data for an object of the target.
    pub fn covers(&self, target: &Image, object_no: ObjectNo) -> bool {
        object_no.0 < self.object_count(target)
    }

    /// Whether what the source shows of its parent is copied like its own bytes.
    pub(crate) fn is_flattened(&self) -> bool {
        self.flattened && self.image.header().parent.is_some()
    }

    /// Objects of the target through which the source's head shows the source's own parent, where it has no object itself.
    pub(crate) fn parent_object_count(&self, target: &Image) -> u64 {
        let overlap_bytes = self.image.header().parent_overlap_bytes(self.head);
        target.layout().object_count(overlap_bytes)
    }

    /// The context of a write that is newer than every snapshot that came with the migration, and older than any
    /// taken since.
    pub fn base_context(&self) -> SnapContext {
        let ids: Vec<SnapId> = self.snaps.keys().rev().copied().collect();
        SnapContext::new(self.base_seq, ids).unwrap_or_default()
    }

    /// Which snapshot of the source shows through snapshot `snap` of the target, and how far. `None`: nothing does.
    pub fn view(&self, header: &Header, snap: SnapId) -> Option<(SnapId, u64)> {
        let size = header.size_at(snap)?;
        let source_header = self.image.header();
        if snap.is_head() {
            return Some((self.head, size.min(self.overlap_bytes)));
        }
        match self.snaps.get(&snap) {
            Some(source_snap) => {
                let source_size = source_header.size_at(*source_snap)?;
                Some((*source_snap, size.min(source_size)))
            }
            // Taken since: it shows what the head showed.
            None => Some((self.head, size.min(self.overlap_bytes))),
        }
    }

    /// `ESTALE` ([`ErrorKind::Removed`]) or `EROFS` ([`ErrorKind::Migrating`]) unless what was just read of the source's head is what
    /// it was before the migration: an abort writes to it, and takes no notice of a reader whose watch was lost. Snapshots that only
    /// the target has show that head. The mark comes before the first write, so without it nothing had been written yet; and an
    /// abort that finds that it cannot be takes it away again.
    pub(crate) async fn check_head_is_kept(target: &Image) -> Result<()> {
        for _ in 0..PASSING_ABORT_LOOKS {
            match record::read(target.io(), target.key()).await? {
                None => {
                    return Err(target.was_removed("if its migration was aborted, open the source"));
                }
                Some(Some(spec)) if spec.state == MigrationState::Aborting => {
                    tokio::time::sleep(std::time::Duration::from_millis(PASSING_ABORT_PAUSE_MS)).await;
                }
                Some(_) => return Ok(()),
            }
        }
        Err(ImageError::of(
            ErrorKind::Migrating,
            Errno::EROFS,
            format!("migration of '{}' is being aborted", target.name()),
        )
        .hint("open the source when 'rbd migration abort' is done"))
    }

    /// Reads the source's image.
    pub(crate) async fn read(&self, offset: u64, length_bytes: u64, snap: SnapId) -> Result<Found> {
        Box::pin(self.image.read_found(offset, length_bytes, snap)).await
    }

    /// Whether the target's object holds all of its history; remembers a yes.
    pub(crate) async fn is_complete(&self, target: &Image, object_no: ObjectNo) -> Result<bool> {
        if target.inner.complete.contains(object_no) {
            return Ok(true);
        }
        let object = target.data_object(object_no.0);
        let reached = target.inner.data_io.snap_seq_reached(&object, self.base_seq);
        let complete = reached.await?;
        if complete {
            target.inner.complete.insert(object_no);
        }
        Ok(complete)
    }

    /// As [`MigrationSource::is_complete`], if that needs no waiting.
    pub(crate) fn is_complete_now(&self, target: &Image, object_no: ObjectNo) -> Option<bool> {
        if target.inner.complete.contains(object_no) {
            return Some(true);
        }
        let object = target.data_object(object_no.0);
        let seq = target.inner.data_io.snap_seq_now(&object)?;
        let complete = seq.is_some_and(|seq| seq >= self.base_seq);
        if complete {
            target.inner.complete.insert(object_no);
        }
        Some(complete)
    }

    /// Objects of the target for which the source may have data in some version. Costs follow what exists: with object
    /// maps their words are looked through, without them the source's objects are listed, page by page.
    pub(crate) async fn objects_to_copy(&self, target: &Image) -> Result<ObjectSet> {
        let existing = match self.objects_by_maps().await? {
            Some(objects) => objects,
            None => object_set::existing(&self.image).await?,
        };
        let mut out = ObjectSet::default();
        let end = self.object_count(target);
        for (index, object_no) in existing.iter().enumerate() {
            self.each_target_object(target, object_no, |object| {
                if object.0 < end {
                    out.insert(object);
                }
            });
            if index % OBJECTS_PER_TURN == OBJECTS_PER_TURN - 1 {
                tokio::task::yield_now().await;
            }
        }
        if self.is_flattened() {
            // All through which the parent may show; whether it has anything there is seen when they are copied.
            let shown_bytes = self.image.header().largest_parent_overlap_bytes();
            let shown = target.layout().object_count(shown_bytes).min(end);
            out.extend((0..shown).map(ObjectNo));
        }
        Ok(out)
    }

    /// Objects of the source that exist at the head or a migrated snapshot, as its object maps say; `None` when one of
    /// the maps cannot be believed.
    async fn objects_by_maps(&self) -> Result<Option<ObjectSet>> {
        let mut objects = ObjectSet::default();
        let versions = self.history.iter().map(|snap| snap.source);
        for snap in versions.chain([self.head]) {
            let Some(map) = crate::object_map::snap::load(&self.image, snap).await? else {
                return Ok(None);
            };
            objects.extend(map.iter_nonzero().map(|(object, _)| ObjectNo(object)));
            tokio::task::yield_now().await;
        }
        Ok(Some(objects))
    }

    /// Calls `each` for every object of the target that shows bytes of an object of the source; some may come twice.
    pub(crate) fn each_target_object(
        &self,
        target: &Image,
        source_object: ObjectNo,
        mut each: impl FnMut(ObjectNo),
    ) {
        self.image
            .layout()
            .each_object_over(source_object, target.layout(), &mut each);
    }
}

async fn open(target: &Image, spec: &MigrationSpec) -> Result<Image> {
    if !spec.source_spec.is_empty() {
        return Err(ImageError::new(
            Errno::EOPNOTSUPP,
            format!(
                "image '{}' is being imported from {}",
                target.name(),
                spec.source_spec
            ),
        )
        .hint("this version cannot read foreign sources; use the version that prepared it"));
    }
    let io = target
        .inner
        .io
        .with_pool(spec.pool_id)
        .with_namespace(&spec.pool_namespace);
    let options = OpenOptions::read_only().ignoring_migration();
    let key = match spec.image_id.as_str() {
        "" => ImageKey::Format1(&spec.image_name),
        id => ImageKey::Id(id),
    };
    Image::open(&io, key, options).await.map_err(|error| {
        error.context(format!(
            "migration source '{}' (id {})",
            spec.image_name, spec.image_id
        ))
    })
}
