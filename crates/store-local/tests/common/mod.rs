//! What the tests of the engine share.

#![allow(clippy::unwrap_used, dead_code)]

pub mod scene;

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use ferry_store::{IoCtx, PoolId, ReadOp, Result, Scope, SnapContext, SnapId, WriteOp};
use ferry_store_local::disk::Disk;
use ferry_store_local::disk::sim::SimDisk;
use ferry_store_local::{LocalOptions, LocalStore};

/// Size that the hint of bulk objects names.
pub const OBJECT_BYTES: u64 = 4 << 20;

/// Opens a store on the machine's disk, or on a simulated one.
pub fn open(root: &Path, sim: Option<&SimDisk>) -> Result<Arc<LocalStore>> {
    let disk = sim.map(|sim| Arc::new(sim.clone()) as Arc<dyn Disk>);
    LocalStore::open(
        root,
        LocalOptions {
            disk,
            ..LocalOptions::default()
        },
    )
}

/// Pool `rbd` of a store.
pub fn io(store: &Arc<LocalStore>) -> IoCtx {
    IoCtx::new(store.clone(), Scope::new(PoolId(1)))
}

/// A full write on a bulk object.
pub fn full() -> WriteOp {
    WriteOp::new().alloc_hint(OBJECT_BYTES)
}

/// A buffered write on a bulk object.
pub fn buffered() -> WriteOp {
    WriteOp::buffered().alloc_hint(OBJECT_BYTES)
}

/// The whole head, or `None`.
pub async fn head(io: &IoCtx, name: &str) -> Option<Bytes> {
    at(io, name, SnapId::HEAD).await
}

/// The whole object at a snapshot, or `None`.
pub async fn at(io: &IoCtx, name: &str, snap: SnapId) -> Option<Bytes> {
    match io.read(name, snap, ReadOp::new().read(0, OBJECT_BYTES)).await {
        Ok(reply) => Some(reply.data(0)),
        Err(error) if error.errno == ferry_store::Errno::ENOENT => None,
        Err(error) => panic!("{error}"),
    }
}

/// The context in which all of `snaps`, ascending, live.
pub fn context(snaps: &[SnapId]) -> SnapContext {
    let newest = snaps.last().map_or(0, |snap| snap.0);
    SnapContext::new(newest, snaps.iter().rev().copied().collect()).unwrap()
}

/// All files below a directory.
pub fn files_below(dir: &Path) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => files.extend(files_below(&path)),
            false => files.push(path),
        }
    }
    files
}

/// How many bytes of a log were synced at least, by the note of that in the side file (docs/format-local.md, 3.1): no loss of power
/// takes them.
pub fn synced_of_log(side: &[u8], log: &[u8]) -> usize {
    const FRAME: usize = 24 + 4096;
    let is_of_this_log =
        side.len() >= 64 && &side[16..24] == b"FERRYLOG" && log.get(16..24) == Some(&side[40..48]);
    match is_of_this_log {
        true => 32 + FRAME * u64::from_le_bytes(side[48..56].try_into().unwrap()) as usize,
        false => 0,
    }
}
