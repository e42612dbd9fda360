//! The way of a write: judged, then done in place if it only changes bytes of a bulk head, else as one transaction.

use bytes::Bytes;
use ferry_store::class::CallContext;
use ferry_store::{Durability, Errno, Result, SnapContext, SnapId, StoreError, WriteOp, WriteReply};
use rusqlite::OptionalExtension;

use super::change::{Edit, FileEdit};
use super::compact::CHAIN_MAX;
use super::key::ObjectKey;
use super::{Place, Pool, redo};
use crate::db::{Commit, SqlContext};
use crate::object::combine::combine;
use crate::object::data::{Bulk, DataStep};
use crate::object::plan::{Change, Judge, Plan};
use crate::object::rows::{Layer, Object};
use crate::object::view::View;

/// A clone to be made: its id and the snapshots it serves, ascending.
pub(crate) type NewClone = (SnapId, Vec<SnapId>);

impl Pool {
    /// Runs a write. Only under the exclusive hold of the object.
    pub(crate) fn write(
        &self,
        key: &ObjectKey,
        snapc: &SnapContext,
        op: &WriteOp,
        context: &CallContext,
    ) -> Result<WriteReply> {
        let place = Place {
            pool: self.id,
            key,
            action: "write to",
        };
        let cached = self.load_exclusive(key)?;
        let object = cached.as_deref();
        let version = self.version_of(key, object);
        let head = object.and_then(|object| object.head.as_ref());
        let (plan, size_before) = {
            let view = View::new(&self.db, &self.files, object, head)?;
            let judge = Judge {
                registry: &self.registry,
                context,
                version,
                place: &place,
            };
            (judge.plan(&view, op)?, view.size_bytes())
        };
        if plan.changes.is_empty() {
            return Ok(WriteReply { version });
        }
        if op.durability == Durability::Buffered && self.dirty.is_poisoned(key.namespace(), key.name()) {
            return Err(StoreError::new(
                Errno::EIO,
                format!("{place}: an earlier flush failed; reopen the store to write there again"),
            ));
        }
        if let Some(object) = object
            && op.durability == Durability::Buffered
            && let Some(done) = self.overwrite(key, object, snapc, size_before, &plan)?
        {
            return Ok(done);
        }
        let clone = self.clone_due(object, snapc)?;
        if clone.is_some()
            && let Some(object) = object
            && let Some(layer) = object.head_layer()
            && object.depth(layer.lid) >= CHAIN_MAX
        {
            self.flatten(key, object, layer.lid)?;
            return self.write(key, snapc, op, context);
        }
        let version = self.next_version()?;
        let edit = Edit {
            key: key.clone(),
            object: cached.clone(),
            size_before,
            version_before: self.version_of(key, object),
            clone,
            snap_seq: snapc.seq(),
            version,
            now: context.now,
            exists: plan.exists,
            size_bytes: plan.size_bytes,
            bulk_if_new: plan.bulk_hint,
            changes: plan.changes,
            copied: None,
        };
        self.change(edit, op.durability)?;
        Ok(WriteReply { version })
    }

    /// Does a buffered change of a bulk head's bytes in place; `None` when it is more than that.
    fn overwrite(
        &self,
        key: &ObjectKey,
        object: &Object,
        snapc: &SnapContext,
        size_before: u64,
        plan: &Plan,
    ) -> Result<Option<WriteReply>> {
        let Some(layer) = object.head_layer() else {
            return Ok(None);
        };
        let Some(steps) = in_place_steps(layer, size_before, &plan.changes) else {
            return Ok(None);
        };
        if snapc.seq() > object.snap_seq {
            if self.clone_due(Some(object), snapc)?.is_some() {
                return Ok(None);
            }
            self.raise_snap_seq(key, object, snapc.seq())?;
        }
        let bulk = Bulk::new(&self.files, object);
        if bulk.needs_sidecar(layer, &steps) {
            self.make_live_sidecar(key, layer, &layer.map)?;
            return match self.load_exclusive(key)?.as_deref() {
                Some(object) => self.overwrite(key, object, snapc, size_before, plan),
                None => Ok(None),
            };
        }
        bulk.reserve(layer, &steps, false)?;
        let version = self.next_version()?;
        self.slots.set_overwrite_version(key, version);
        let mut outcome = Ok(());
        for step in &steps {
            outcome = outcome.and_then(|()| bulk.apply(layer, step));
        }
        self.mark_dirty(key, layer, object.sidecar, object.below(layer))?;
        outcome.map(|()| Some(WriteReply { version }))
    }

    fn raise_snap_seq(&self, key: &ObjectKey, object: &Object, seq: u64) -> Result<()> {
        self.slots.bump(key.slot());
        let (oid, path) = (object.oid, self.db.path().to_owned());
        // Lazy: without a clone, forgetting the number only means raising it again.
        self.db.write(Commit::Lazy, move |connection| {
            connection
                .prepare_cached("UPDATE objects SET snap_seq = ?2 WHERE oid = ?1")
                .and_then(|mut statement| statement.execute((oid, seq as i64)))
                .at(&path, "write")
                .map(|_| ())
        })
    }

    /// The clone that a write under `snapc` must make of the head first.
    pub(crate) fn clone_due(&self, object: Option<&Object>, snapc: &SnapContext) -> Result<Option<NewClone>> {
        let Some(object) = object.filter(|object| object.head.is_some()) else {
            return Ok(None);
        };
        let mut snaps: Vec<SnapId> = snapc
            .snaps()
            .iter()
            .copied()
            .filter(|snap| snap.0 > object.snap_seq)
            .collect();
        if snaps.is_empty() {
            return Ok(None);
        }
        let reader = self.db.reader()?;
        let mut living = Vec::with_capacity(snaps.len());
        snaps.reverse();
        for snap in snaps {
            let removed: Option<i64> = reader
                .prepare_cached("SELECT done FROM removed_snaps WHERE snap = ?1")
                .and_then(|mut statement| statement.query_row([snap.0 as i64], |row| row.get(0)).optional())
                .at(self.db.path(), "read")?;
            if removed.is_none() {
                living.push(snap);
            }
        }
        Ok((!living.is_empty()).then(|| (SnapId(snapc.seq()), living)))
    }

    /// What must happen to files for an edit of a head that is bulk before or after.
    pub(crate) fn prepare_files(&self, edit: &Edit, durability: Durability) -> Result<FileEdit> {
        let object = edit.object.as_deref();
        let old = object.and_then(|object| object.head_layer());
        let clone = edit.clone.is_some();
        let removal = edit.changes.iter().rposition(|change| *change == Change::Remove);
        let tail = &edit.changes[removal.map_or(0, |index| index + 1)..];
        let fresh = removal.is_some() || object.is_none_or(|object| object.head.is_none());
        let bulk_after = edit.exists && if fresh { edit.bulk_if_new } else { old.is_some() };
        let (steps, replaced) = steps_of(tail);
        let shrinks = steps
            .iter()
            .any(|step| matches!(step, DataStep::Truncate { size_bytes } if *size_bytes < edit.size_before));
        let durable = durability != Durability::Buffered || shrinks;
        if let (Some(layer), Some(object)) = (old, object) {
            let on_top = clone && bulk_after && !fresh && !replaced;
            if on_top
                && !durable
                && let Some(parent) = self.in_row(object, layer)?
            {
                return Ok(FileEdit {
                    new: Some(self.new_child(object, &parent, edit.size_before, &steps, false)?),
                    ..FileEdit::default()
                });
            }
            if fresh && !clone {
                self.settle_below(&edit.key, object, layer)?;
            }
        }
        // What a clone keeps, or what stays the head's while rows change, is made durable first.
        let keeps_old = old.is_some() && (clone || !fresh);
        let settled = match (old, object) {
            (Some(layer), Some(object)) if keeps_old && (clone || layer.provisional) => {
                Some(self.settle(&edit.key, object, layer)?)
            }
            _ => None,
        };
        if !bulk_after {
            return Ok(FileEdit {
                settled,
                ..FileEdit::default()
            });
        }
        if fresh || replaced {
            // Where a power loss could not fall back to the old head, the new one must be whole before it replaces it.
            let replaces = object.is_some_and(|object| object.head.is_some());
            let new = self.new_base(&steps, durability != Durability::Buffered || replaces)?;
            return Ok(FileEdit {
                settled,
                new: Some(new),
                ..FileEdit::default()
            });
        }
        let (Some(object), Some(old)) = (object, old) else {
            return Err(StoreError::new(
                Errno::EIO,
                format!("{}: a bulk head without a layer", edit.key),
            ));
        };
        if clone {
            let parent = settled.as_ref().unwrap_or(old);
            let new = self.new_child(object, parent, edit.size_before, &steps, durable)?;
            return Ok(FileEdit {
                settled,
                new: Some(new),
                ..FileEdit::default()
            });
        }
        Bulk::new(&self.files, object).reserve(old, &steps, true)?;
        let covered = steps.iter().fold(old.covered_bytes, |covered, step| match step {
            DataStep::Truncate { size_bytes } => covered.min(*size_bytes),
            _ => covered,
        });
        Ok(FileEdit {
            settled,
            covered: (covered < old.covered_bytes).then_some((old.lid, covered)),
            redo: (!steps.is_empty()).then(|| redo::encode(&steps)),
            ..FileEdit::default()
        })
    }
}

/// The byte changes of `changes` as steps, from the last replacement on; and whether there was one.
fn steps_of(changes: &[Change]) -> (Vec<DataStep>, bool) {
    let replacement = changes
        .iter()
        .rposition(|change| matches!(change, Change::Replace(_)));
    let steps = changes[replacement.unwrap_or(0)..]
        .iter()
        .filter_map(|change| match change {
            Change::Data(step) => Some(step.clone()),
            Change::Replace(data) if !data.is_empty() => Some(write_at_start(data)),
            _ => None,
        });
    (steps.collect(), replacement.is_some())
}

fn write_at_start(data: &Bytes) -> DataStep {
    DataStep::Write {
        offset: 0,
        data: data.clone(),
    }
}

/// The changes as steps that may be done in the layer's file without touching rows; `None` when rows must change.
fn in_place_steps(layer: &Layer, size_before: u64, changes: &[Change]) -> Option<Vec<DataStep>> {
    let mut steps = Vec::with_capacity(changes.len());
    for change in changes {
        match change {
            Change::Data(step) => steps.push(step.clone()),
            Change::Replace(data) => {
                steps.push(DataStep::Truncate {
                    size_bytes: data.len() as u64,
                });
                if !data.is_empty() {
                    steps.push(write_at_start(data));
                }
            }
            _ => return None,
        }
    }
    let steps = combine(size_before, &steps);
    let severs = |step: &DataStep| matches!(step, DataStep::Truncate { size_bytes } if layer.parent.is_some() && *size_bytes < layer.covered_bytes);
    (!steps.iter().any(severs)).then_some(steps)
}
