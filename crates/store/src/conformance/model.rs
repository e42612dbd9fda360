//! Random histories against a reference that is too simple to be wrong: an object is a vector of bytes and two maps, a
//! snapshot is a copy of all objects.
//!
//! Every choice comes from one seed, which each failure names; `FERRY_SEED` runs the cases with that seed alone. Kept by
//! the generator: snapshots are taken when all is synced, and an old context is used only on objects that have seen the
//! newest sequence, as librbd does both; otherwise snapshots hold what RADOS leaves undefined.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::Harness;
use super::fixture::{
    BULK_OBJECT_BYTES, Failure, Fixture, Flavour, Outcome, content, ensure, ensure_eq, ensure_errno,
    eventually, omap, pattern,
};
use crate::op::{Durability, ReadOp, WriteOp, WriteStep};
use crate::types::{SnapContext, SnapId};
use crate::{IoCtx, ReadResult, ReadStep};

const OBJECTS: usize = 4;
const LARGEST_OFFSET: u64 = 150_000;
const MOST_SNAPS: usize = 5;

/// Runs `steps` random operations as `seed` says and compares all along. The error names the seed and the step.
pub async fn run(harness: Arc<dyn Harness>, seed: u64, steps: usize) -> Result<(), String> {
    let fixture = Fixture::new(harness, Flavour::Plain)
        .await
        .map_err(|failure| failure.0)?;
    history(fixture, seed, steps, false)
        .await
        .map_err(|failure| failure.0)
}

pub(super) async fn random_histories_agree_with_the_reference(t: Fixture) -> Outcome {
    for seed in seeds() {
        let fixture = Fixture::new(t.harness.clone(), Flavour::Plain).await?;
        history(fixture, seed, 150, false).await?;
    }
    Ok(())
}

pub(super) async fn random_histories_survive_power_loss(t: Fixture) -> Outcome {
    for seed in seeds() {
        let fixture = Fixture::new(t.harness.clone(), Flavour::Plain).await?;
        history(fixture, seed, 150, true).await?;
    }
    Ok(())
}

fn seeds() -> Vec<u64> {
    match std::env::var("FERRY_SEED")
        .ok()
        .and_then(|text| text.parse().ok())
    {
        Some(seed) => vec![seed],
        None => vec![1, 2, ferry_reference::drawn()],
    }
}

async fn history(fixture: Fixture, seed: u64, steps: usize, power: bool) -> Outcome {
    eprintln!("random history: seed {seed}, {steps} steps, power losses: {power}");
    let mut model = Model::new(fixture, seed);
    for step in 0..steps {
        model.step(power).await.map_err(|failure| {
            let log = model.log.join("\n  ");
            Failure(format!(
                "seed {seed} (FERRY_SEED={seed}), step {step}: {}\n  {log}",
                failure.0
            ))
        })?;
    }
    Ok(())
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct State {
    data: Vec<u8>,
    omap: BTreeMap<Bytes, Bytes>,
    xattrs: BTreeMap<String, Bytes>,
}

impl State {
    fn write(&mut self, offset: usize, data: &[u8]) {
        let end = offset + data.len();
        self.data.resize(self.data.len().max(end), 0);
        self.data[offset..end].copy_from_slice(data);
    }
}

#[derive(Debug, Default)]
struct Object {
    state: Option<State>,
    /// Newest context sequence that wrote to it.
    seen: u64,
    /// What its data may be after a power loss: every state since the last sync. Empty when all is synced.
    unsynced: Vec<Option<State>>,
    /// Since the last sync, what says whether it exists may be lost.
    unsettled: bool,
}

struct Model {
    t: Fixture,
    rng: StdRng,
    objects: Vec<Object>,
    snaps: BTreeMap<SnapId, Vec<Option<State>>>,
    seq: u64,
    versions: HashMap<(usize, u64), State>,
    log: Vec<String>,
}

fn name(object: usize) -> String {
    format!("object.{object}")
}

async fn is_trimmed(t: &Fixture, id: SnapId) -> Outcome<bool> {
    for object in 0..OBJECTS {
        let clones = match t.a.list_snaps(&name(object), &[id]).await {
            Ok(set) => set.clones,
            Err(error) if error.errno == crate::Errno::ENOENT => continue,
            Err(error) => return Err(error.into()),
        };
        if clones.iter().any(|clone| clone.snaps.contains(&id)) {
            return Ok(false);
        }
    }
    Ok(true)
}

impl Model {
    fn new(t: Fixture, seed: u64) -> Self {
        Self {
            t,
            rng: StdRng::seed_from_u64(seed),
            objects: (0..OBJECTS).map(|_| Object::default()).collect(),
            snaps: BTreeMap::new(),
            seq: 0,
            versions: HashMap::new(),
            log: Vec::new(),
        }
    }

    fn client(&mut self) -> IoCtx {
        if self.rng.random() {
            self.t.a.clone()
        } else {
            self.t.b.clone()
        }
    }

    fn note(&mut self, text: String) {
        if self.log.len() >= 60 {
            self.log.remove(0);
        }
        self.log.push(text);
    }

    /// A context that may be used on the object.
    fn context(&mut self, object: usize) -> SnapContext {
        let (mut seq, mut ids): (u64, Vec<SnapId>) = (self.seq, self.snaps.keys().rev().copied().collect());
        let known = &self.objects[object];
        if known.state.is_some() && known.seen == seq && self.rng.random_ratio(1, 4) {
            let keep = self.rng.random_range(0..=ids.len());
            ids.drain(..ids.len() - keep);
            seq = ids.first().map_or(0, |id| id.0);
        }
        SnapContext::new(seq, ids).unwrap_or_default()
    }

    async fn step(&mut self, power: bool) -> Outcome {
        match self.rng.random_range(0..100) {
            0..62 => self.write().await?,
            62..68 => self.fail().await?,
            68..78 => self.take_snapshot().await?,
            78..84 => self.remove_snapshot().await?,
            84..91 => self.roll_back().await?,
            91..94 => self.sync().await?,
            _ if power => self.cut_power().await?,
            _ => self.check_all().await?,
        }
        let object = self.rng.random_range(0..OBJECTS);
        self.check(object, None).await?;
        if let Some(snap) = self.some_snap() {
            self.check(object, Some(snap)).await?;
        }
        Ok(())
    }

    fn some_snap(&mut self) -> Option<SnapId> {
        let nth = self.rng.random_range(0..self.snaps.len().max(1));
        self.snaps.keys().nth(nth).copied()
    }

    fn offset(&mut self) -> u64 {
        let offset = self.rng.random_range(0..LARGEST_OFFSET);
        match self.rng.random_range(0..4) {
            0 => offset & !0xfff,
            1 => offset & !0xffff,
            _ => offset,
        }
    }

    fn length(&mut self) -> u64 {
        match self.rng.random_range(0..4) {
            0 => self.rng.random_range(0..16),
            1 => 4096 * self.rng.random_range(1..12),
            _ => self.rng.random_range(1..30_000),
        }
    }

    /// To an OSD, a range behind the end is no change, and an operation without a change takes no snapshot into account.
    fn may_zero(&self, state: Option<&State>, start: usize, length_bytes: u64) -> bool {
        state.is_some_and(|state| !self.t.harness.is_osd() || (start < state.data.len() && length_bytes > 0))
    }

    /// A random step that succeeds on `state`, applied to it.
    fn random_step(&mut self, state: &mut Option<State>, data_only: bool) -> WriteStep {
        let (offset, length_bytes) = (self.offset(), self.length());
        let data = pattern(self.rng.random(), length_bytes as usize);
        let start = offset as usize;
        match self.rng.random_range(0..if data_only { 12 } else { 18 }) {
            0 | 1 if self.may_zero(state.as_ref(), start, length_bytes) => {
                let state = state.get_or_insert_default();
                let end = (start + length_bytes as usize).min(state.data.len());
                if end == state.data.len() && self.t.harness.is_osd() {
                    state.data.truncate(start);
                } else if start < end {
                    state.data[start..end].fill(0);
                }
                WriteStep::Zero { offset, length_bytes }
            }
            0..=3 if state.is_some() => {
                state.get_or_insert_default().data.resize(start, 0);
                WriteStep::Truncate { size_bytes: offset }
            }
            4 => {
                state.get_or_insert_default().data = data.to_vec();
                WriteStep::WriteFull { data }
            }
            12 if state.is_some() => {
                *state = None;
                WriteStep::Remove
            }
            13 | 14 => {
                let pairs: BTreeMap<_, _> = (0..3)
                    .map(|_| {
                        (
                            Bytes::from(vec![self.rng.random_range(0..9u8)]),
                            data.slice(..data.len().min(40)),
                        )
                    })
                    .collect();
                state.get_or_insert_default().omap.extend(pairs.clone());
                WriteStep::OmapSet(pairs)
            }
            15 if state.is_some() => {
                let key = Bytes::from(vec![self.rng.random_range(0..9u8)]);
                state.get_or_insert_default().omap.remove(&key);
                WriteStep::OmapRemove(vec![key])
            }
            16 => {
                let attribute = format!("x{}", self.rng.random_range(0..4));
                let value = data.slice(..data.len().min(40));
                state
                    .get_or_insert_default()
                    .xattrs
                    .insert(attribute.clone(), value.clone());
                WriteStep::SetXattr {
                    name: attribute,
                    value,
                }
            }
            17 => {
                state.get_or_insert_default();
                WriteStep::Create { exclusive: false }
            }
            _ => {
                let offset = if data.is_empty() { 0 } else { offset };
                state.get_or_insert_default().write(offset as usize, &data);
                WriteStep::Write { offset, data }
            }
        }
    }

    fn random_op(&mut self, state: &mut Option<State>) -> WriteOp {
        let mut op = if self.rng.random() {
            WriteOp::buffered()
        } else {
            WriteOp::new()
        };
        if self.rng.random() {
            op = op.alloc_hint(BULK_OBJECT_BYTES);
        }
        let data_only = op.durability == Durability::Buffered;
        for _ in 0..self.rng.random_range(1..4) {
            let before = state.clone();
            let step = self.random_step(state, data_only);
            if step == WriteStep::Remove && op.steps.contains(&step) && self.t.harness.is_osd() {
                *state = before;
                continue;
            }
            op = op.step(step);
        }
        op
    }

    async fn write(&mut self) -> Outcome {
        let object = self.rng.random_range(0..OBJECTS);
        let snapc = self.context(object);
        let before = self.objects[object].state.clone();
        let mut after = before.clone();
        let op = self.random_op(&mut after);
        let io = self.client();
        self.note(format!(
            "write {} under {} {:?}: {}",
            name(object),
            snapc.seq(),
            snapc.snaps(),
            summary(&op)
        ));
        let durability = op.durability;
        io.write(&name(object), &snapc, op).await?;
        let seen = if before.is_none() && after.is_none() {
            0
        } else {
            snapc.seq()
        };
        let was_missing = before.is_none();
        let object = &mut self.objects[object];
        object.seen = object.seen.max(seen);
        object.state = after;
        let buffered = durability == Durability::Buffered;
        if buffered && object.unsynced.is_empty() {
            object.unsynced.push(before);
        }
        if !object.unsynced.is_empty() {
            object.unsynced.push(object.state.clone());
        }
        // A full operation settles whether the object exists; a buffered one that makes it does not.
        object.unsettled = buffered && (object.unsettled || was_missing);
        Ok(())
    }

    async fn fail(&mut self) -> Outcome {
        let object = self.rng.random_range(0..OBJECTS);
        let snapc = self.context(object);
        let mut state = self.objects[object].state.clone();
        let op = self
            .random_op(&mut state)
            .step(WriteStep::AssertVersion(u64::MAX));
        self.note(format!("failing write {}: {}", name(object), summary(&op)));
        ensure_errno!(self.client().write(&name(object), &snapc, op).await, EOVERFLOW);
        Ok(())
    }

    async fn sync(&mut self) -> Outcome {
        self.note("sync".to_owned());
        if self.rng.random() {
            self.t.a.store().sync_all(self.t.scope(), "").await?;
        } else {
            self.t.a.store().flush(self.t.scope(), "object.").await?;
            self.t.b.store().flush(self.t.scope(), "").await?;
        }
        for object in &mut self.objects {
            object.unsynced.clear();
            object.unsettled = false;
        }
        Ok(())
    }

    async fn take_snapshot(&mut self) -> Outcome {
        if self.snaps.len() >= MOST_SNAPS {
            return Ok(());
        }
        self.sync().await?;
        let io = self.client();
        let id = io.store().snap_id_create(io.pool()).await?;
        self.note(format!("snapshot {id}"));
        ensure!(id.0 > self.seq, "new id {id} after {}", self.seq);
        self.seq = id.0;
        self.snaps.insert(
            id,
            self.objects.iter().map(|object| object.state.clone()).collect(),
        );
        Ok(())
    }

    async fn remove_snapshot(&mut self) -> Outcome {
        let Some(id) = self.some_snap() else { return Ok(()) };
        self.note(format!("remove snapshot {id}"));
        let io = self.client();
        io.store().snap_id_remove(io.pool(), id).await?;
        self.snaps.remove(&id);
        if self.t.harness.is_osd() {
            // An OSD lists what a removed snapshot had until it has trimmed it.
            let t = &self.t;
            return eventually("clones of a removed snapshot go", || is_trimmed(t, id)).await;
        }
        Ok(())
    }

    async fn roll_back(&mut self) -> Outcome {
        let Some(id) = self.some_snap() else { return Ok(()) };
        let object = self.rng.random_range(0..OBJECTS);
        self.note(format!("roll {} back to {id}", name(object)));
        // Under the newest context only: an old one lacks snapshots that the head may still serve.
        let snapc =
            SnapContext::new(self.seq, self.snaps.keys().rev().copied().collect()).unwrap_or_default();
        let (io, target) = (self.client(), name(object));
        io.store()
            .rollback(io.object(&target), &snapc, id, Durability::Full)
            .await?;
        // What was written since the last sync may be what the rollback leaves in place, so sync before power goes.
        self.objects[object].state = self.snaps[&id][object].clone();
        self.sync().await
    }

    /// Cuts the power and takes what is left, when that is allowed, for the new state.
    async fn cut_power(&mut self) -> Outcome {
        let seed = self.rng.random();
        self.note(format!("power loss {seed}"));
        if !self.t.harness.power_loss(seed).await {
            return Ok(());
        }
        self.t.a = self.t.another().await;
        self.t.b = self.t.another().await;
        self.versions.clear();
        for object in 0..OBJECTS {
            let possible = std::mem::take(&mut self.objects[object].unsynced);
            let unsettled = std::mem::take(&mut self.objects[object].unsettled);
            if possible.is_empty() {
                continue;
            }
            let found = content(&self.t.a, &name(object), SnapId::HEAD).await?;
            let state = &mut self.objects[object].state;
            match found {
                None => {
                    let may_be = unsettled || state.is_none();
                    ensure!(may_be, "{} is gone after power loss", name(object));
                    *state = None;
                }
                Some(data) => {
                    ensure!(state.is_some(), "{} came back after power loss", name(object));
                    let longest = possible.iter().flatten().map(|state| state.data.len()).max();
                    ensure!(
                        longest >= Some(data.len()),
                        "{} is too long after power loss",
                        name(object)
                    );
                    let wrong = (0..data.len()).find(|at| {
                        let byte = |state: &Option<State>| {
                            state
                                .as_ref()
                                .and_then(|state| state.data.get(*at))
                                .copied()
                                .unwrap_or(0)
                        };
                        !possible.iter().any(|state| byte(state) == data[*at])
                    });
                    ensure_eq!(
                        wrong,
                        None,
                        "byte of {} that was never written, after power loss",
                        name(object)
                    );
                    state.get_or_insert_default().data = data.to_vec();
                }
            }
        }
        self.check_all().await
    }

    async fn check_all(&mut self) -> Outcome {
        let snaps: Vec<_> = self.snaps.keys().copied().collect();
        for object in 0..OBJECTS {
            self.check(object, None).await?;
            for snap in &snaps {
                self.check(object, Some(*snap)).await?;
            }
            check_overlaps(&self.t.b, &name(object), &snaps).await?;
        }
        let listed = self
            .t
            .a
            .store()
            .list_objects(self.t.scope(), "object.", "", 100)
            .await?;
        for object in 0..OBJECTS {
            let alive = self.objects[object].state.is_some()
                || self.snaps.values().any(|states| states[object].is_some());
            ensure!(
                !alive || listed.contains(&name(object)),
                "{} is not listed",
                name(object)
            );
        }
        Ok(())
    }

    async fn check(&mut self, object: usize, snap: Option<SnapId>) -> Outcome {
        let expected = match snap {
            Some(snap) => self.snaps[&snap][object].clone(),
            None => self.objects[object].state.clone(),
        };
        let (io, name, snap) = (self.client(), name(object), snap.unwrap_or(SnapId::HEAD));
        let found = content(&io, &name, snap).await?;
        let Some(expected) = expected else {
            ensure!(found.is_none(), "{name}@{snap} exists, but must not");
            return Ok(());
        };
        let Some(found) = found else {
            return Err(Failure(format!("{name}@{snap} does not exist, but must")));
        };
        ensure_eq!(found.len(), expected.data.len(), "size of {name}@{snap}");
        let wrong = (0..found.len()).find(|at| found[*at] != expected.data[*at]);
        ensure_eq!(wrong, None, "first wrong byte of {name}@{snap}");
        let pairs: Vec<_> = expected.omap.clone().into_iter().collect();
        ensure_eq!(omap(&io, &name, snap).await?, pairs, "omap of {name}@{snap}");
        let reply = io
            .read(&name, snap, ReadOp::new().step(ReadStep::GetXattrs))
            .await?;
        ensure_eq!(
            reply.results[0],
            ReadResult::Xattrs(expected.xattrs.clone()),
            "xattrs of {name}@{snap}"
        );
        if let Some(other) = self.versions.insert((object, reply.version), expected.clone()) {
            ensure!(
                other == expected,
                "{name} had version {} with another content",
                reply.version
            );
        }
        Ok(())
    }
}

fn summary(op: &WriteOp) -> String {
    let steps = op.steps.iter().map(|step| match step {
        WriteStep::Write { offset, data } => format!("write {offset}~{}", data.len()),
        WriteStep::WriteFull { data } => format!("write_full {}", data.len()),
        WriteStep::OmapSet(pairs) => format!("omap_set {} keys", pairs.len()),
        WriteStep::SetXattr { name, .. } => format!("set_xattr {name}"),
        other => format!("{other:?}"),
    });
    format!("{:?} {}", op.durability, steps.collect::<Vec<_>>().join(", "))
}

/// Checks that `list_snaps` is well formed, and that the bytes that it calls equal to the next newer version are.
pub(super) async fn check_overlaps(io: &IoCtx, name: &str, asked: &[SnapId]) -> Outcome {
    let listed = match io.list_snaps(name, asked).await {
        Ok(listed) => listed.clones,
        Err(error) if error.errno == crate::Errno::ENOENT => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    ensure!(
        listed.windows(2).all(|pair| pair[0].id < pair[1].id),
        "clones of {name} do not ascend: {listed:?}"
    );
    let mut contents = Vec::new();
    for clone in &listed {
        let snap = if clone.id.is_head() {
            Some(SnapId::HEAD)
        } else {
            clone.snaps.first().copied()
        };
        let Some(snap) = snap else {
            return Err(Failure(format!(
                "clone {} of {name} serves no snapshot",
                clone.id
            )));
        };
        let Some(data) = content(io, name, snap).await? else {
            return Err(Failure(format!(
                "clone {} of {name} cannot be read at {snap}",
                clone.id
            )));
        };
        ensure_eq!(
            data.len() as u64,
            clone.size_bytes,
            "size of clone {} of {name}",
            clone.id
        );
        contents.push(data);
    }
    for (index, pair) in contents.windows(2).enumerate() {
        for extent in listed[index].overlap.iter().flatten() {
            let range = extent.offset as usize..extent.end() as usize;
            let equal = pair[0]
                .get(range.clone())
                .is_some_and(|bytes| Some(bytes) == pair[1].get(range));
            ensure!(
                equal,
                "overlap {extent:?} of clone {} of {name} holds changed bytes",
                listed[index].id
            );
        }
    }
    Ok(())
}
