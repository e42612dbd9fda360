//! One object: head, clones, and how effects change them. RADOS' snapshot rules live here.
//!
//! Invariants: clones ascend by id and each serves at least one snapshot; an overlap lies inside both versions and holds
//! equal bytes. All functions are total: they cannot fail, because a replay after a power loss runs effects on another
//! state than they were made for.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::data::SparseBytes;
use super::extents::ExtentSet;
use crate::types::{CloneInfo, SnapContext, SnapId, SnapSet, Timestamp};

/// What one version of an object holds.
#[derive(Debug, Clone, Default)]
pub(super) struct Content {
    pub(super) data: SparseBytes,
    pub(super) omap: BTreeMap<Bytes, Bytes>,
    pub(super) xattrs: BTreeMap<String, Bytes>,
    pub(super) version: u64,
    pub(super) mtime: Timestamp,
}

#[derive(Debug, Clone)]
struct CloneVersion {
    id: u64,
    /// Ascending.
    snaps: Vec<SnapId>,
    overlap: ExtentSet,
    content: Content,
}

/// One change of a head.
#[derive(Debug, Clone)]
pub(super) enum Effect {
    Create,
    Write(u64, Bytes),
    WriteFull(Bytes),
    Zero(u64, u64),
    Truncate(u64),
    Remove,
    OmapSet(BTreeMap<Bytes, Bytes>),
    OmapRemove(Vec<Bytes>),
    XattrSet(String, Bytes),
    XattrRemove(String),
}

/// Under what a change is made.
#[derive(Debug, Clone)]
pub(super) struct Under<'a> {
    pub(super) snapc: &'a SnapContext,
    /// Ids of the pool that were given up.
    pub(super) removed: &'a BTreeSet<SnapId>,
    /// Version of the head after the change.
    pub(super) version: u64,
    pub(super) now: Timestamp,
}

/// Head, clones and snapset sequence.
#[derive(Debug, Clone, Default)]
pub(super) struct Object {
    seq: u64,
    clones: Vec<CloneVersion>,
    head: Option<Content>,
}

impl Object {
    /// Neither head nor clones.
    pub(super) fn is_gone(&self) -> bool {
        self.head.is_none() && self.clones.is_empty()
    }

    /// The head.
    pub(super) fn head(&self) -> Option<&Content> {
        self.head.as_ref()
    }

    /// Newest sequence that wrote to it.
    pub(super) fn seq(&self) -> Option<u64> {
        (!self.is_gone()).then_some(self.seq)
    }

    /// Bytes that its blocks hold, counting shared ones once per version.
    pub(super) fn allocated_bytes(&self) -> u64 {
        let clones = self.clones.iter().map(|clone| &clone.content);
        clones
            .chain(&self.head)
            .map(|content| content.data.allocated_bytes())
            .sum()
    }

    /// What a read at `snap` sees.
    pub(super) fn at(&self, snap: SnapId) -> Option<&Content> {
        if snap.is_head() || snap.0 > self.seq {
            return self.head.as_ref();
        }
        let clone = self.clones.iter().find(|clone| clone.snaps.contains(&snap))?;
        Some(&clone.content)
    }

    /// What `list_snaps` tells.
    pub(super) fn snapset(&self) -> SnapSet {
        let mut clones: Vec<_> = self
            .clones
            .iter()
            .map(|clone| CloneInfo {
                id: SnapId(clone.id),
                snaps: clone.snaps.clone(),
                overlap: Some(clone.overlap.extents().to_vec()),
                size_bytes: clone.content.data.size_bytes(),
            })
            .collect();
        if let Some(head) = &self.head {
            clones.push(CloneInfo {
                id: SnapId::HEAD,
                snaps: Vec::new(),
                overlap: None,
                size_bytes: head.data.size_bytes(),
            });
        }
        SnapSet {
            seq: self.seq,
            clones,
        }
    }

    /// Keeps the head for the snapshots since its last write, and takes over the context's sequence.
    fn preserve(&mut self, under: &Under<'_>) {
        if self.is_gone() {
            // Whatever was here before left nothing: its sequence is no longer known.
            self.seq = under.snapc.seq();
        }
        if let Some(head) = &self.head {
            let newer = under.snapc.snaps().iter().copied();
            let mut snaps: Vec<_> = newer
                .filter(|id| id.0 > self.seq && !under.removed.contains(id))
                .collect();
            snaps.reverse();
            if !snaps.is_empty() {
                self.clones.push(CloneVersion {
                    id: under.snapc.seq(),
                    snaps,
                    overlap: ExtentSet::whole(head.data.size_bytes()),
                    content: head.clone(),
                });
            }
        }
        self.seq = self.seq.max(under.snapc.seq());
    }

    /// The newest clone no longer shares this range with the head.
    fn changed(&mut self, offset: u64, length_bytes: u64) {
        if let Some(newest) = self.clones.last_mut() {
            newest.overlap.subtract(offset, length_bytes);
        }
    }

    /// Changes the head.
    pub(super) fn apply(&mut self, under: &Under<'_>, effects: &[Effect]) {
        if effects.is_empty() {
            return;
        }
        self.preserve(under);
        for effect in effects {
            self.apply_one(effect);
        }
        if let Some(head) = &mut self.head {
            head.version = under.version;
            head.mtime = under.now;
        }
    }

    /// As [`Object::apply`], but takes over the context even when there is nothing else to do.
    pub(super) fn apply_preserving(&mut self, under: &Under<'_>, effects: &[Effect]) {
        if !self.is_gone() {
            self.preserve(under);
        }
        self.apply(under, effects);
    }

    fn apply_one(&mut self, effect: &Effect) {
        match effect {
            Effect::Write(offset, data) => self.changed(*offset, data.len() as u64),
            Effect::Zero(offset, length_bytes) => self.changed(*offset, *length_bytes),
            Effect::Truncate(size_bytes) => self.changed(*size_bytes, u64::MAX),
            Effect::WriteFull(_) | Effect::Remove => self.changed(0, u64::MAX),
            _ => {}
        }
        match effect {
            Effect::Create => {
                self.head.get_or_insert_default();
            }
            Effect::Write(offset, data) => self.head.get_or_insert_default().data.write(*offset, data),
            Effect::WriteFull(data) => {
                let head = self.head.get_or_insert_default();
                head.data = SparseBytes::default();
                head.data.write(0, data);
            }
            Effect::Zero(offset, length_bytes) => {
                if let Some(head) = &mut self.head {
                    head.data.zero(*offset, *length_bytes);
                }
            }
            Effect::Truncate(size_bytes) => {
                if let Some(head) = &mut self.head {
                    head.data.truncate(*size_bytes);
                }
            }
            Effect::Remove => self.head = None,
            Effect::OmapSet(pairs) => {
                let pairs = pairs.iter().map(|(key, value)| (key.clone(), value.clone()));
                self.head.get_or_insert_default().omap.extend(pairs);
            }
            Effect::OmapRemove(keys) => {
                if let Some(head) = &mut self.head {
                    head.omap.retain(|key, _| !keys.contains(key));
                }
            }
            Effect::XattrSet(name, value) => {
                self.head
                    .get_or_insert_default()
                    .xattrs
                    .insert(name.clone(), value.clone());
            }
            Effect::XattrRemove(name) => {
                if let Some(head) = &mut self.head {
                    head.xattrs.remove(name);
                }
            }
        }
    }

    /// Whether a rollback to `snap` would change the head.
    pub(super) fn rollback_changes(&self, snap: SnapId) -> bool {
        !snap.is_head() && snap.0 <= self.seq && (self.head.is_some() || self.at(snap).is_some())
    }

    /// Makes the head as it was at `snap`.
    pub(super) fn roll_back(&mut self, under: &Under<'_>, snap: SnapId) {
        if !self.rollback_changes(snap) {
            return;
        }
        let Some(target) = self.clones.iter().position(|clone| clone.snaps.contains(&snap)) else {
            return self.apply(under, &[Effect::Remove]);
        };
        // What every version from the target to the head shares is still equal after the rollback.
        let mut kept = self.clones[target].overlap.clone();
        for clone in &self.clones[target + 1..] {
            kept.intersect(&clone.overlap);
        }
        let mut content = self.clones[target].content.clone();
        self.preserve(under);
        if let Some(newest) = self.clones.last_mut() {
            newest.overlap.intersect(&kept);
        }
        content.version = under.version;
        content.mtime = under.now;
        self.head = Some(content);
    }

    /// Whether some clone serves `snap`.
    pub(super) fn serves(&self, snap: SnapId) -> bool {
        self.clones.iter().any(|clone| clone.snaps.contains(&snap))
    }

    /// Gives a snapshot up.
    pub(super) fn trim(&mut self, snap: SnapId) {
        for clone in &mut self.clones {
            clone.snaps.retain(|id| *id != snap);
        }
        while let Some(empty) = self.clones.iter().position(|clone| clone.snaps.is_empty()) {
            let gone = self.clones.remove(empty);
            if let Some(older) = empty.checked_sub(1).and_then(|index| self.clones.get_mut(index)) {
                older.overlap.intersect(&gone.overlap);
            }
        }
    }
}
