//! Readers of the local engine: columns, rows, frames of watchers, and whole directories with damaged files.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use ferry_store::{IoCtx, PoolOptions, ReadOp, Scope, SnapContext, SnapId, Store, WriteOp, WriteStep};
use ferry_store_local::{LocalOptions, LocalStore, fuzzing};
use tempfile::TempDir;

use crate::runtime::block_on;
use crate::shape::Parts;

/// Values of columns, and frames of watchers.
pub fn columns(data: &[u8]) {
    fuzzing::columns(data);
    block_on(fuzzing::watch_frames(data));
}

/// The rows of an object.
pub fn rows(data: &[u8]) {
    fuzzing::rows(data);
}

thread_local! {
    static STORE: Sample = block_on(Sample::new());
}

/// A directory with a small store, and what its files were.
struct Sample {
    dir: TempDir,
    files: BTreeMap<PathBuf, Vec<u8>>,
}

/// A store's directory in which some bytes of some files were changed: an edit is a file, a place, and what is put
/// there. Opening it and reading all that was in it gives data or errors.
pub fn files(data: &[u8]) {
    STORE.with(|sample| {
        sample.put_back();
        sample.edit(Parts(data));
        block_on(async {
            if let Ok(store) = open(sample.dir.path()) {
                look(&store).await;
            }
        });
    });
}

fn open(dir: &Path) -> ferry_store::Result<Arc<dyn Store>> {
    let options = LocalOptions {
        registry: ferry_cls::registry(),
        disk: None,
    };
    Ok(LocalStore::open(dir, options)?)
}

/// Objects of the sample.
const OBJECTS: [&str; 3] = ["bulk", "inline", "keys"];

impl Sample {
    /// # Panics
    /// When the directory cannot be made.
    async fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        Self::fill(dir.path()).await.expect("a store in it");
        let mut files = BTreeMap::new();
        collect(dir.path(), &mut files).expect("files that can be read");
        Self { dir, files }
    }

    async fn fill(dir: &Path) -> ferry_store::Result<()> {
        let store = open(dir)?;
        let pool = store.pool_create("p", PoolOptions::default()).await?;
        let io = IoCtx::new(store, Scope::new(pool));
        let write = |data: Vec<u8>| {
            WriteOp::new()
                .step(WriteStep::AllocHint {
                    object_size_bytes: 4 << 20,
                    write_size_bytes: 4 << 20,
                })
                .step(WriteStep::Write {
                    offset: 0,
                    data: data.into(),
                })
        };
        let first = io.store().snap_id_create(pool).await?;
        io.write("bulk", &SnapContext::default(), write(vec![1; 16 << 10]))
            .await?;
        if let Some(snapc) = SnapContext::new(first.0, vec![first]) {
            io.write("bulk", &snapc, write(vec![2; 4 << 10])).await?;
        }
        let data = Bytes::from_static(b"inline bytes");
        io.write_meta("inline", WriteOp::new().step(WriteStep::WriteFull { data }))
            .await?;
        let pairs = BTreeMap::from([(Bytes::from_static(b"k"), Bytes::from_static(b"v"))]);
        io.write_meta("keys", WriteOp::new().step(WriteStep::OmapSet(pairs)))
            .await?;
        Ok(())
    }

    fn put_back(&self) {
        let mut now = BTreeMap::new();
        let _ = collect(self.dir.path(), &mut now);
        for path in now.keys().filter(|path| !self.files.contains_key(*path)) {
            let _ = fs::remove_file(path);
        }
        for (path, bytes) in &self.files {
            if now.get(path) != Some(bytes) {
                let _ = fs::write(path, bytes);
            }
        }
    }

    fn edit(&self, mut parts: Parts<'_>) {
        let paths: Vec<&PathBuf> = self.files.keys().collect();
        for _ in 0..16 {
            if parts.is_empty() {
                return;
            }
            let path = *parts.one_of(&paths);
            let how = parts.byte();
            let place = parts.long() as usize;
            let with = parts.part();
            let mut bytes = fs::read(path).unwrap_or_default();
            let place = place % (bytes.len() + 1);
            match how % 4 {
                0 => bytes.truncate(place),
                1 => bytes.extend_from_slice(with),
                _ => bytes
                    .iter_mut()
                    .skip(place)
                    .zip(with)
                    .for_each(|(old, new)| *old = *new),
            }
            let _ = fs::write(path, bytes);
        }
    }
}

/// All files below a directory.
fn collect(dir: &Path, files: &mut BTreeMap<PathBuf, Vec<u8>>) -> std::io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            collect(&entry.path(), files)?;
        } else if kind.is_file() {
            files.insert(entry.path(), fs::read(entry.path())?);
        }
    }
    Ok(())
}

async fn look(store: &Arc<dyn Store>) {
    let Ok(pools) = store.pool_list().await else {
        return;
    };
    for pool in pools.iter().take(4) {
        let io = IoCtx::new(Arc::clone(store), Scope::new(pool.id));
        for name in OBJECTS {
            let _ = io.list_snaps(name, &[]).await;
            for snap in [SnapId::HEAD, SnapId(1)] {
                let _ = io.read(name, snap, ReadOp::new().read(0, 32 << 10)).await;
            }
        }
        // One write in place; what is buffered costs no sync.
        let op = WriteOp::buffered().write(5000, Bytes::from_static(b"after"));
        let _ = io.write(OBJECTS[0], &SnapContext::default(), op).await;
    }
}
