//! Readers of images: headers of both formats, messages of watchers, files of exports.

use std::collections::BTreeMap;
use std::io::Cursor;
use std::sync::Arc;

use bytes::Bytes;
use ferry_image::admin::import::ImportOptions;
use ferry_image::admin::{create, import_diff};
use ferry_image::export_format::{DiffReader, ImageHead, Input, Version, merge};
use ferry_image::header::{self, HeaderKey};
use ferry_image::watch::messages::Message;
use ferry_image::{Image, ImageKey, OpenOptions, Progress, fuzzing};
use ferry_store::memory::MemoryCluster;
use ferry_store::{IoCtx, PoolOptions, Scope, Store, WriteOp, WriteStep};

use crate::cls::RICH;
use crate::runtime::block_on;
use crate::shape::Parts;

/// Most objects of an image that is imported here. What states a larger one takes as long as that image's objects are many, as
/// with Ceph's `rbd`: it is the size that was asked for, and a command that can be interrupted.
const MAX_OBJECTS: u64 = 4096;
/// Id of the image whose header is hostile.
const ID: &str = "1a";

/// A pool of its own in memory.
async fn pool() -> Option<IoCtx> {
    let store: Arc<dyn Store> = MemoryCluster::new(ferry_cls::registry()).connect();
    let id = store.pool_create("rbd", PoolOptions::default()).await.ok()?;
    Some(IoCtx::new(store, Scope::new(id)))
}

thread_local! {
    /// A pool for headers alone, which are replaced whole.
    static HEADERS: Option<IoCtx> = block_on(pool());
}

/// Puts a header in the place of the one before, and reads it.
fn with_header(key: HeaderKey, op: WriteOp) {
    // Taken out of the cell: a runtime runs nothing inside another one.
    let Some(io) = HEADERS.with(Clone::clone) else {
        return;
    };
    block_on(async {
        let object = key.object();
        // Missing at first.
        let _ = io
            .write_meta(&object, WriteOp::new().step(WriteStep::Remove))
            .await;
        io.write_meta(&object, op).await.ok()?;
        read_header(&io, key).await
    });
}

/// A header of format 2 whose values are hostile: those of a good one, some of them replaced. A value under one of
/// Ferry's own keys too.
pub fn header(data: &[u8]) {
    fuzzing::settings(data);
    let keys: Vec<Bytes> = RICH.omap.keys().cloned().collect();
    let mut omap = RICH.omap.clone();
    let mut parts = Parts(data);
    for _ in 0..16 {
        if parts.is_empty() {
            break;
        }
        let key = parts.one_of(&keys).clone();
        let value = Bytes::copy_from_slice(parts.part());
        if value.is_empty() {
            omap.remove(&key);
        } else {
            omap.insert(key, value);
        }
    }
    let op = WriteOp::new().step(WriteStep::OmapSet(omap.into_iter().collect::<BTreeMap<_, _>>()));
    with_header(HeaderKey::Id(ID.to_owned()), op);
}

/// A header of format 1: all its bytes.
pub fn header_v1(data: &[u8]) {
    let data = Bytes::copy_from_slice(data);
    let op = WriteOp::new().step(WriteStep::WriteFull { data });
    with_header(HeaderKey::Name("img".to_owned()), op);
}

async fn read_header(io: &IoCtx, key: HeaderKey) -> Option<()> {
    let fixed = header::load_fixed(io, key.clone()).await;
    let found = header::load(io, key, true).await.ok()?;
    let fixed = fixed.ok()?;
    for snap in found.snaps.keys() {
        let _ = (found.size_at(*snap), found.parent_overlap_bytes(*snap));
        let _ = found.object_map_valid(*snap);
    }
    let _ = found
        .migration_overlap_bytes()
        .max(found.largest_parent_overlap_bytes());
    let _ = fixed.layout.object_count(found.size_bytes);
    Some(())
}

/// A message to whoever watches an image's header.
///
/// # Panics
/// When what decodes does not come back from its encoding.
pub fn messages(data: &[u8]) {
    if let Ok(message) = Message::decode(data) {
        let _ = message.name();
        // Requests without a name come from old clients only; nobody sends them on.
        if !matches!(message, Message::Request { id: None, .. }) {
            let again = Message::decode(&message.encode());
            assert_eq!(again.as_ref(), Ok(&message));
        }
    }
}

/// Files of exports, read to their end: the first byte says which kind, and whether as a pipe.
pub fn export_files(data: &[u8]) {
    let mut parts = Parts(data);
    let kind = parts.byte();
    if kind & 6 == 6 {
        let first = parts.part();
        let (mut first, mut second) = (Cursor::new(first), Cursor::new(parts.0));
        let _ = block_on(async {
            let mut out = tokio::io::sink();
            let (mut first, mut second) = (Input::file(&mut first), Input::file(&mut second));
            merge::merge(&mut first, &mut second, &mut out, &Progress::silent()).await
        });
        return;
    }
    let mut file = Cursor::new(parts.0);
    let mut pipe = parts.0;
    block_on(async {
        let mut input = match kind & 1 {
            0 => Input::file(&mut file),
            _ => Input::pipe(&mut pipe),
        };
        let (version, diffs) = match kind & 6 {
            0 => (Version::V1, 1),
            2 => (Version::V2, 1),
            _ => (Version::V2, ImageHead::decode(&mut input).await.ok()?.diffs),
        };
        for _ in 0..diffs {
            let mut reader = DiffReader::begin(&mut input, version).await.ok()?;
            let size_bytes = reader.head().size_bytes;
            while let Some(run) = reader.next_run(&mut input).await.ok()? {
                assert!(run.length_bytes > 0 && run.end() <= size_bytes);
                let _ = reader.data(&mut input, 1 << 16).await.ok()?;
            }
        }
        Some(())
    });
}

/// Files of exports, imported into a store in memory. What fails leaves no image.
///
/// # Panics
/// When it leaves one.
pub fn import_files(data: &[u8]) {
    let mut parts = Parts(data);
    let whole = parts.byte() & 1 == 0;
    let data = parts.0;
    if block_on(objects_stated(data, whole)) > MAX_OBJECTS {
        return;
    }
    let mut file = Cursor::new(data);
    block_on(async {
        let io = pool().await?;
        let mut input = Input::file(&mut file);
        let quiet = Progress::silent();
        if whole {
            let done =
                import_diff::import_image(&io, "new", &mut input, &ImportOptions::default(), &quiet).await;
            let left = header::find(&io, "new").await;
            assert_eq!(done.is_ok(), left.is_ok(), "{done:?}");
            return Some(());
        }
        let options = create::CreateOptions {
            size_bytes: 1 << 20,
            ..create::CreateOptions::default()
        };
        create::create(&io, "old", &options).await.ok()?;
        let image = Image::open(&io, ImageKey::Name("old"), OpenOptions::read_write())
            .await
            .ok()?;
        let _ = import_diff::import_diff(&image, &mut input, 4096, &quiet).await;
        image.close().await.ok()
    });
}

/// How many objects the largest image has that a file states, as far as the file can be read.
async fn objects_stated(data: &[u8], whole: bool) -> u64 {
    let mut file = Cursor::new(data);
    let mut input = Input::file(&mut file);
    let (version, diffs, order) = match whole {
        false => (Version::V1, 1, 22),
        true => match ImageHead::decode(&mut input).await {
            Ok(head) => (Version::V2, head.diffs, head.order.unwrap_or(22)),
            Err(_) => return 0,
        },
    };
    let mut largest = 0;
    for _ in 0..diffs {
        let Ok(mut reader) = DiffReader::begin(&mut input, version).await else {
            break;
        };
        largest = largest.max(reader.head().size_bytes >> order.clamp(12, 25));
        while let Ok(Some(_)) = reader.next_run(&mut input).await {}
    }
    largest
}
