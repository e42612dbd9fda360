//! One object with snapshots, written through two handles over a simulated disk, and what of it may be seen: as long as the
//! power stays, and after a loss.

use std::path::Path;
use std::sync::Arc;

use super::{at, buffered, context, full, io, open};
use ferry_store::{Durability, IoCtx, SnapId, Store, WriteOp};
use ferry_store_local::LocalStore;
use ferry_store_local::disk::sim::{Fault, SimDisk};
use rand::RngExt;
use rand::rngs::StdRng;

pub const BLOCK: usize = 4096;
pub const SIZE: usize = 12 * BLOCK;

pub fn disks() -> [SimDisk; 2] {
    [SimDisk::new(), SimDisk::with_reflinks()]
}

/// One version of the object. Per byte a bit for each value that it may have; past the end is zero.
#[derive(Clone)]
pub struct Version {
    /// As long as the power stays.
    pub now: Vec<u64>,
    /// After a power loss.
    pub after: Vec<u64>,
}

impl Version {
    pub fn check(&self, found: Option<&[u8]>, lost_power: bool, place: &str) {
        let masks = if lost_power { &self.after } else { &self.now };
        let found = found.unwrap_or_default();
        assert!(found.len() <= SIZE, "{place}: {} bytes", found.len());
        for (index, mask) in masks.iter().enumerate() {
            let byte = found.get(index).copied().unwrap_or(0);
            assert!(
                mask & (1 << byte) != 0,
                "{place}: byte {index} is {byte}, may be {mask:b}"
            );
        }
    }
}

pub struct Scene {
    pub sim: SimDisk,
    pub root: std::path::PathBuf,
    pub handles: Vec<(Arc<LocalStore>, IoCtx)>,
    pub snaps: Vec<SnapId>,
    pub history: Vec<Version>,
    pub head: Version,
}

impl Scene {
    pub fn new(root: &Path, sim: SimDisk) -> Self {
        let handles = (0..2).map(|_| {
            let store = open(root, Some(&sim)).unwrap();
            let io = io(&store);
            (store, io)
        });
        let head = Version {
            now: vec![1; SIZE],
            after: vec![1; SIZE],
        };
        Self {
            handles: handles.collect(),
            sim,
            root: root.to_owned(),
            snaps: Vec::new(),
            history: Vec::new(),
            head,
        }
    }

    pub fn io(&self, handle: usize) -> &IoCtx {
        &self.handles[handle].1
    }

    /// Notes that bytes were, or if it failed may have been, made these.
    pub fn changed(&mut self, range: std::ops::Range<usize>, new: &Version, ok: bool, durable: bool) {
        for index in range {
            let (now, after) = (new.now[index], new.after[index]);
            self.head.now[index] = if ok { now } else { self.head.now[index] | now };
            self.head.after[index] = if ok && durable {
                now
            } else {
                self.head.after[index] | now | after
            };
        }
    }

    pub async fn write(
        &mut self,
        handle: usize,
        op: WriteOp,
        offset: usize,
        length: usize,
        fill: u8,
    ) -> bool {
        let durable = op.durability == Durability::Full;
        let op = op.write(offset as u64, vec![fill; length]);
        let done = self.io(handle).write("o", &context(&self.snaps), op).await;
        let new = Version {
            now: vec![1 << fill; SIZE],
            after: vec![1 << fill; SIZE],
        };
        self.changed(offset..offset + length, &new, done.is_ok(), durable);
        done.is_ok()
    }

    pub async fn snapshot(&mut self) {
        self.snaps
            .push(self.handles[0].0.snap_id_create(self.io(0).pool()).await.unwrap());
        self.history.push(self.head.clone());
    }

    pub async fn flush(&mut self, handle: usize) -> bool {
        let (store, io) = &self.handles[handle];
        store.flush(io.scope(), "o").await.is_ok()
    }

    pub fn all_is_durable(&mut self) {
        for version in self.history.iter_mut().chain([&mut self.head]) {
            version.after.clone_from(&version.now);
        }
    }

    /// One more step; whether it was a buffered write of bytes, whose commit may be lazy.
    pub async fn random_step(&mut self, rng: &mut StdRng) -> bool {
        let handle = rng.random_range(0..2);
        let fill = rng.random_range(2..60);
        match rng.random_range(0..100) {
            0..55 => {
                let offset = rng.random_range(0..SIZE - 1);
                let length = rng.random_range(1..=(SIZE - offset).min(2 * BLOCK));
                let op = if rng.random_bool(0.9) { buffered() } else { full() };
                let is_buffered = op.durability == Durability::Buffered;
                self.write(handle, op, offset, length, fill).await;
                return is_buffered;
            }
            55..75 => self.snapshot().await,
            75..83 => {
                let both = [self.flush(0).await, self.flush(1).await];
                if both == [true, true] {
                    self.all_is_durable();
                }
            }
            83..86 => {
                self.flush(handle).await;
            }
            86..89 => {
                let (store, io) = &self.handles[handle];
                if store.sync_all(io.scope(), "").await.is_ok() {
                    self.all_is_durable();
                }
            }
            89..94 if !self.snaps.is_empty() => {
                let index = rng.random_range(0..self.snaps.len());
                let snap = self.snaps.remove(index);
                self.history.remove(index);
                let _ = self.handles[handle]
                    .0
                    .snap_id_remove(self.io(0).pool(), snap)
                    .await;
            }
            94..97 if !self.snaps.is_empty() => {
                let index = rng.random_range(0..self.snaps.len());
                let (store, io) = &self.handles[handle];
                let now = context(&self.snaps);
                let done = store
                    .rollback(io.object("o"), &now, self.snaps[index], Durability::Buffered)
                    .await;
                let target = self.history[index].clone();
                self.changed(0..SIZE, &target, done.is_ok(), false);
            }
            _ => {
                let op = WriteOp {
                    steps: vec![ferry_store::WriteStep::Remove],
                    durability: Durability::Buffered,
                };
                let done = self.io(handle).write("o", &context(&self.snaps), op).await;
                let gone = Version {
                    now: vec![1; SIZE],
                    after: vec![1; SIZE],
                };
                self.changed(0..SIZE, &gone, done.is_ok(), false);
            }
        }
        false
    }

    pub async fn check(&self, lost_power: bool, place: &str) {
        for (handle, (_, io)) in self.handles.iter().enumerate() {
            let place = format!("{place}, handle {handle}");
            let head = at(io, "o", SnapId::HEAD).await;
            self.head
                .check(head.as_deref(), lost_power, &format!("{place}, head"));
            let mut found = Vec::new();
            for (snap, version) in self.snaps.iter().zip(&self.history) {
                let bytes = at(io, "o", *snap).await;
                version.check(bytes.as_deref(), lost_power, &format!("{place}, snapshot {snap}"));
                found.push((*snap, bytes));
            }
            let Ok(set) = io.list_snaps("o", &[]).await else {
                continue;
            };
            for pair in set.clones.windows(2) {
                // What is said to be the same is the same.
                let of = |clone: &ferry_store::CloneInfo| match clone.snaps.last() {
                    Some(snap) => found
                        .iter()
                        .find(|(id, _)| id == snap)
                        .and_then(|(_, bytes)| bytes.clone()),
                    None => head.clone(),
                };
                let (Some(old), Some(new)) = (of(&pair[0]), of(&pair[1])) else {
                    continue;
                };
                for extent in pair[0].overlap.iter().flatten() {
                    let range = extent.offset as usize..extent.end() as usize;
                    assert!(
                        old[range.clone()] == new[range.clone()],
                        "{place}: overlap {range:?} differs"
                    );
                }
            }
        }
    }

    /// Ends all handles, as a kill does, and opens the store anew; before that the power is cut if so wanted.
    pub fn reopen(&mut self, crash: Option<u64>) {
        for (store, _) in self.handles.drain(..) {
            store.abandon();
        }
        if let Some(seed) = crash {
            self.sim.crash(seed);
        }
        for fault in [Fault::Reads, Fault::Writes, Fault::Syncs] {
            self.sim.fail(fault, 0);
        }
        self.sim.set_capacity(None);
        for _ in 0..2 {
            let store = open(&self.root, Some(&self.sim)).unwrap();
            let io = io(&store);
            self.handles.push((store, io));
        }
    }
}
