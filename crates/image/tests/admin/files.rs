//! Exports to files and pipes, and imports from them.

use std::io::{Seek as _, SeekFrom, Write as _};
use std::sync::Arc;

use ferry_image::admin::import::ImportOptions;
use ferry_image::admin::{create, export, import, list, remove, trash};
use ferry_image::{ErrorKind, Image, ImageKey, OpenOptions, Progress, SnapKey};
use ferry_store::wrappers::{Fault, FaultyStore, OpKind};
use ferry_store::{Errno, IoCtx, Scope, Store, Timestamp};

use super::{MIB, image_with_history, objects, open, rbd, silent, sized};

async fn exports_are_sparse_and_byte_exact(on: &str) {
    let (_engine, io) = rbd(on).await;
    let image = image_with_history(&io, None).await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("head.raw");
    export::to_file(&image, &path, &silent()).await.unwrap();
    let mut expected = vec![0; (5 * MIB + 4096) as usize];
    expected[MIB as usize..][..4096].fill(1);
    expected[MIB as usize + 4096..][..4096].fill(2);
    expected[2 * MIB as usize..][..4096].fill(3);
    expected[5 * MIB as usize..].fill(1);
    assert!(std::fs::read(&path).unwrap() == expected);
    let blocks = std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(&path).unwrap());
    assert!(blocks * 512 < MIB, "{blocks} blocks");
    let error = export::to_file(&image, &path, &silent()).await.unwrap_err();
    assert_eq!(error.errno, Errno::EEXIST);
    let mut pipe = Vec::new();
    export::to_writer(&image, &mut pipe, &silent()).await.unwrap();
    assert!(pipe == expected);
    let at = OpenOptions::read_only().at(SnapKey::Name("s1".into()));
    let snap = Image::open(&io, ImageKey::Name("a"), at).await.unwrap();
    let mut pipe = Vec::new();
    export::to_writer(&snap, &mut pipe, &silent()).await.unwrap();
    expected[..4096].fill(1);
    expected[MIB as usize..][..8192].fill(1);
    expected[2 * MIB as usize..][..4096].fill(0);
    assert!(pipe == expected);
    snap.close().await.unwrap();
    image.close().await.unwrap();
}

async fn a_failed_export_leaves_no_file(on: &str) {
    let (_engine, io) = rbd(on).await;
    image_with_history(&io, None).await.close().await.unwrap();
    let faulty = FaultyStore::new(io.store().clone());
    let image = open(&IoCtx::new(faulty.clone(), io.scope().clone()), "a").await;
    faulty.hook().add(
        Fault::new(OpKind::Read, Errno::EIO)
            .on("rbd_data.")
            .times(u64::MAX),
    );
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("half.raw");
    assert_eq!(
        export::to_file(&image, &path, &silent()).await.unwrap_err().errno,
        Errno::EIO
    );
    assert!(!path.exists());
    image.close().await.unwrap();
}

async fn imports_of_files_keep_holes_and_leave_zeros_out(on: &str) {
    let (_engine, io) = rbd(on).await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.raw");
    let mut file = std::fs::File::create(&path).unwrap();
    file.write_all(&[5; 3000]).unwrap();
    file.seek(SeekFrom::Start(6 * MIB)).unwrap();
    file.write_all(&[6; 100]).unwrap();
    // Zeros that are written, not a hole.
    file.seek(SeekFrom::Start(7 * MIB)).unwrap();
    file.write_all(&vec![0; MIB as usize]).unwrap();
    file.set_len(9 * MIB + 77).unwrap();
    let options = ImportOptions {
        create: sized(0),
        ..ImportOptions::default()
    };
    import::from_path(&io, "a", &path, &options, &silent())
        .await
        .unwrap();
    let image = open(&io, "a").await;
    assert_eq!(image.size_bytes(), 9 * MIB + 77);
    let mut back = Vec::new();
    export::to_writer(&image, &mut back, &silent()).await.unwrap();
    assert!(back == std::fs::read(&path).unwrap());
    image.close().await.unwrap();
    let data = io
        .store()
        .list_objects(io.scope(), "rbd_data.", "", 100)
        .await
        .unwrap();
    assert_eq!(data.len(), 2, "{data:?}");
    assert!(trash::list(&io).await.unwrap().is_empty());
    let error = import::from_path(&io, "a", &path, &options, &silent())
        .await
        .unwrap_err();
    assert_eq!(error.kind, ErrorKind::ImageExists);
    let error = import::from_path(&io, "b", &dir.path().join("no"), &options, &silent())
        .await
        .unwrap_err();
    assert_eq!(error.errno, Errno::ENOENT);
    let odd = ImportOptions {
        sparse_size_bytes: 3000,
        ..options
    };
    assert_eq!(
        import::from_path(&io, "b", &path, &odd, &silent())
            .await
            .unwrap_err()
            .errno,
        Errno::EINVAL
    );
    assert_eq!(list::names(&io).await.unwrap(), ["a"]);
}

async fn imports_of_pipes_end_with_the_size_that_came(on: &str) {
    for length in [0u64, 1, 4 * MIB, 70 * MIB + 123] {
        let (_engine, io) = rbd(on).await;
        let data: Vec<u8> = (0..length).map(|at| (at / 100_000 % 3) as u8).collect();
        let mut pipe = &data[..];
        let options = ImportOptions::default();
        import::from_reader(&io, "a", &mut pipe, &options, &silent())
            .await
            .unwrap();
        let image = open(&io, "a").await;
        assert_eq!(image.size_bytes(), length);
        let mut back = Vec::new();
        export::to_writer(&image, &mut back, &silent()).await.unwrap();
        assert!(back == data, "{length}");
        assert_eq!(
            ferry_image::object_map::rebuild::verify(&image, &silent())
                .await
                .unwrap(),
            []
        );
        image.close().await.unwrap();
    }
}

/// A pipe that breaks.
struct Broken(u64);

impl tokio::io::AsyncRead for Broken {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
        buffer: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        if self.0 == 0 {
            return std::task::Poll::Ready(Err(std::io::ErrorKind::BrokenPipe.into()));
        }
        let length = buffer.remaining().min(self.0 as usize);
        buffer.initialize_unfilled_to(length).fill(9);
        buffer.advance(length);
        self.0 -= length as u64;
        std::task::Poll::Ready(Ok(()))
    }
}

async fn a_failed_import_leaves_nothing(on: &str) {
    let (_engine, io) = rbd(on).await;
    let options = ImportOptions {
        create: sized(0),
        ..ImportOptions::default()
    };
    let error = import::from_reader(&io, "a", &mut Broken(9 * MIB), &options, &silent())
        .await
        .unwrap_err();
    assert_eq!(error.errno, Errno::EIO, "{error}");
    let left = objects(&io).await;
    assert!(
        left.iter()
            .all(|name| ["rbd_directory", "rbd_trash"].contains(&name.as_str())),
        "{left:?}"
    );
    assert!(trash::list(&io).await.unwrap().is_empty());
    // Out of space in the middle.
    let faulty = FaultyStore::new(io.store().clone());
    faulty.hook().add(
        Fault::new(OpKind::Write, Errno::ENOSPC)
            .on("rbd_data.")
            .skipping(3)
            .times(u64::MAX),
    );
    let full = IoCtx::new(faulty, io.scope().clone());
    let data = vec![1; 8 << 20];
    let error = import::from_reader(&full, "a", &mut &data[..], &options, &silent())
        .await
        .unwrap_err();
    assert_eq!(error.errno, Errno::ENOSPC);
    // Removing needs writes to the data too, which fail here; the next command clears up.
    import::from_reader(&io, "a", &mut &data[..], &options, &silent())
        .await
        .unwrap();
    remove::remove(&io, "a", &silent()).await.unwrap();
    assert!(
        io.store()
            .list_objects(io.scope(), "rbd_data.", "", 100)
            .await
            .unwrap()
            .is_empty()
    );
}

async fn an_image_being_imported_is_not_cleared_away_by_others(on: &str) {
    let (engine, io) = rbd(on).await;
    let (mut writer, mut reader) = tokio::io::duplex(1 << 16);
    let importing = {
        let io = io.clone();
        tokio::spawn(async move {
            let options = ImportOptions::default();
            import::from_reader(&io, "a", &mut reader, &options, &Progress::silent()).await
        })
    };
    use tokio::io::AsyncWriteExt as _;
    writer.write_all(&vec![4; 5 << 20]).await.unwrap();
    let store: Arc<dyn Store> = engine.connect().await;
    let other = IoCtx::new(store, Scope::clone(io.scope()));
    let error = remove::remove(&other, "a", &silent()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::HasWatchers, "{error}");
    assert_eq!(
        trash::purge(&other, Timestamp::now(), &silent()).await.unwrap(),
        0
    );
    create::create(&other, "b", &sized(MIB)).await.unwrap();
    // Somebody takes the name meanwhile: the import says so, and its image goes.
    create::create(&other, "a", &sized(MIB)).await.unwrap();
    drop(writer);
    let error = importing.await.unwrap().unwrap_err();
    assert_eq!(error.kind, ErrorKind::ImageExists, "{error}");
    assert_eq!(list::names(&io).await.unwrap(), ["a", "b"]);
    assert!(trash::list(&io).await.unwrap().is_empty());
    assert!(
        io.store()
            .list_objects(io.scope(), "rbd_data.", "", 100)
            .await
            .unwrap()
            .is_empty()
    );
}

on_every_engine! {
    exports_are_sparse_and_byte_exact,
    a_failed_export_leaves_no_file,
    imports_of_files_keep_holes_and_leave_zeros_out,
    imports_of_pipes_end_with_the_size_that_came,
    a_failed_import_leaves_nothing,
    an_image_being_imported_is_not_cleared_away_by_others,
}
