//! Files of Ceph's `rbd` 16.2.15 (tests/golden, made on a cluster) against ours, and hostile ones.

#![allow(clippy::unwrap_used)] // a test that cannot go on says so by panicking

mod support;

use std::collections::BTreeMap;
use std::io::Cursor;
use std::path::Path;

use bytes::Bytes;
use ferry_image::admin::create::{self, CreateOptions};
use ferry_image::admin::export_diff::{export_diff, export_image};
use ferry_image::admin::import::ImportOptions;
use ferry_image::admin::import_diff::{Obstacle, import_diff, import_image};
use ferry_image::admin::{list, metadata};
use ferry_image::export_format::diff::{self, encode_end, encode_head, encode_run};
use ferry_image::export_format::merge::{MergeStep, merge};
use ferry_image::export_format::{DiffHead, DiffReader, ImageHead, Input, Run, RunKind, Version};
use ferry_image::{ErrorKind, Image, ImageKey, OpenOptions, Progress, SnapKey};
use ferry_store::{Errno, IoCtx};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use support::{Engine, pool};

fn silent() -> Progress {
    Progress::silent()
}

fn golden(name: &str) -> Vec<u8> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    std::fs::read(directory.join(name)).unwrap()
}

async fn place() -> IoCtx {
    pool(&Engine::memory().connect().await, "rbd").await
}

async fn open(io: &IoCtx, name: &str) -> Image {
    Image::open(io, ImageKey::Name(name), OpenOptions::read_write())
        .await
        .unwrap()
}

async fn at(io: &IoCtx, name: &str, snap: &str) -> Image {
    let options = match snap {
        "" => OpenOptions::read_only(),
        snap => OpenOptions::read_only().at(SnapKey::Name(snap.to_owned())),
    };
    Image::open(io, ImageKey::Name(name), options).await.unwrap()
}

async fn bytes_of(io: &IoCtx, name: &str, snap: &str) -> Vec<u8> {
    let image = at(io, name, snap).await;
    let data = image.read(0, image.size_bytes()).await.unwrap().to_vec();
    image.close().await.unwrap();
    data
}

async fn export(io: &IoCtx, name: &str) -> Vec<u8> {
    let image = at(io, name, "").await;
    let mut out = Vec::new();
    export_image(&image, &mut out, &silent()).await.unwrap();
    image.close().await.unwrap();
    out
}

async fn apply(image: &Image, data: &[u8]) -> Result<(), (Option<Obstacle>, ferry_image::ImageError)> {
    let mut cursor = Cursor::new(data.to_vec());
    let applied = import_diff(image, &mut Input::file(&mut cursor), 4096, &silent()).await;
    applied
        .map(|_| ())
        .map_err(|failure| (failure.obstacle, failure.error))
}

/// Makes the image that the files `gold*` were made of, by the same steps, and gives what its versions hold.
async fn gold(io: &IoCtx, name: &str) -> BTreeMap<&'static str, Vec<u8>> {
    let options = CreateOptions {
        size_bytes: 40_960,
        order: Some(12),
        ..CreateOptions::default()
    };
    create::create(io, name, &options).await.unwrap();
    let image = open(io, name).await;
    let mut head = vec![0; 40_960];
    let mut versions = BTreeMap::new();
    let write = async |head: &mut Vec<u8>, offset: usize, data: Vec<u8>| {
        head[offset..][..data.len()].copy_from_slice(&data);
        image.write(offset as u64, data.into()).await.unwrap();
    };
    write(&mut head, 100, b"one".repeat(200)).await;
    write(&mut head, 20_000, b"two".repeat(50)).await;
    image.snap_create("a", &silent()).await.unwrap();
    image.snap_protect("a").await.unwrap();
    versions.insert("a", head.clone());
    write(&mut head, 4000, b"three".repeat(30)).await;
    image.discard(16_384, 4096).await.unwrap();
    head[16_384..20_480].fill(0);
    image.resize(36_864, true, &silent()).await.unwrap();
    head.truncate(36_864);
    image.snap_create("b", &silent()).await.unwrap();
    versions.insert("b", head.clone());
    write(&mut head, 8192, vec![0; 100]).await;
    write(&mut head, 36_863, b"4".to_vec()).await;
    versions.insert("", head);
    for (key, value) in [("key", "value"), ("conf_rbd_cache", "false")] {
        metadata::set(&image, key, Bytes::from(value)).await.unwrap();
    }
    image.close().await.unwrap();
    versions
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_with_snapshots_is_byte_for_byte_ceph_s() {
    let io = place().await;
    gold(&io, "gold").await;
    assert!(export(&io, "gold").await == golden("gold.v2"));
    for (from, to, file) in [
        (None, "a", "gold-a.diff"),
        (Some("a"), "b", "gold-ab.diff"),
        (Some("b"), "", "gold-b.diff"),
    ] {
        let image = at(&io, "gold", to).await;
        let from = from.map(|name| image.header().snap_by_name(name).unwrap().id);
        let mut out = Vec::new();
        export_diff(&image, from, false, &mut out, &silent())
            .await
            .unwrap();
        assert!(out == golden(file), "{file}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ceph_s_files_become_the_image_they_were_made_of() {
    let io = place().await;
    let versions = gold(&io, "gold").await;
    let file = golden("gold.v2");
    for piped in [false, true] {
        let name = format!("imported-{piped}");
        let mut pipe = &file[..];
        let mut cursor = Cursor::new(file.clone());
        let mut input = match piped {
            true => Input::pipe(&mut pipe),
            false => Input::file(&mut cursor),
        };
        let noticed = import_image(&io, &name, &mut input, &ImportOptions::default(), &silent()).await;
        assert!(noticed.unwrap().skipped_tags.is_empty());
        let image = at(&io, &name, "").await;
        assert_eq!(image.layout().order(), 12);
        let list = metadata::list(&image).await.unwrap();
        assert_eq!(list.get("key").unwrap(), "value");
        let protected = |snap: &str| format!("{:?}", image.header().snap_by_name(snap).unwrap().protection);
        assert_eq!(
            (protected("a").as_str(), protected("b").as_str()),
            ("Protected", "Unprotected")
        );
        for (snap, bytes) in &versions {
            assert!(bytes_of(&io, &name, snap).await == *bytes, "{name}@{snap}");
        }
    }
    create::create(&io, "diffs", &CreateOptions::default())
        .await
        .unwrap();
    let image = open(&io, "diffs").await;
    for file in ["gold-a.diff", "gold-ab.diff", "gold-b.diff"] {
        apply(&image, &golden(file)).await.unwrap();
    }
    image.close().await.unwrap();
    for (snap, bytes) in &versions {
        assert!(bytes_of(&io, "diffs", snap).await == *bytes, "diffs@{snap}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_striped_image_comes_back_striped_unless_asked_otherwise() {
    let io = place().await;
    let file = golden("golds.v2");
    let layouts = [
        (CreateOptions::default(), (13, 4096, 2)),
        (
            CreateOptions {
                order: Some(14),
                stripe_unit_bytes: 8192,
                stripe_count: 3,
                ..CreateOptions::default()
            },
            (14, 8192, 3),
        ),
    ];
    for (name, (create, expected)) in ["one", "two"].into_iter().zip(layouts) {
        let options = ImportOptions {
            create,
            ..ImportOptions::default()
        };
        let mut pipe = &file[..];
        import_image(&io, name, &mut Input::pipe(&mut pipe), &options, &silent())
            .await
            .unwrap();
        let image = at(&io, name, "a").await;
        let layout = image.layout();
        let found = (layout.order(), layout.stripe_unit_bytes(), layout.stripe_count());
        assert_eq!(found, expected);
        assert_eq!(image.header().features & !2, 1);
        let data = image.read(0, 40_000).await.unwrap();
        let mut wanted = vec![0; 40_000];
        wanted[100..6100].copy_from_slice(&b"one".repeat(2000));
        assert!(data == wanted);
    }
}

async fn merged(first: &[u8], second: &[u8]) -> Result<Vec<u8>, (MergeStep, Errno)> {
    let (mut first, mut second) = (Cursor::new(first.to_vec()), second);
    let mut out = Vec::new();
    let done = merge(
        &mut Input::file(&mut first),
        &mut Input::pipe(&mut second),
        &mut out,
        &silent(),
    )
    .await;
    done.map(|()| out)
        .map_err(|failure| (failure.during, failure.error.errno))
}

#[tokio::test]
async fn merged_diffs_are_byte_for_byte_ceph_s() {
    for (first, second, expected) in [("d0", "d1", "m01"), ("d1", "d2", "m12"), ("d2", "d3", "m23")] {
        let found = merged(&golden(first), &golden(second)).await.unwrap();
        assert!(found == golden(expected), "{first} {second}");
    }
}

#[tokio::test]
async fn diffs_that_do_not_follow_each_other_are_not_merged() {
    let (d0, d2) = (golden("d0"), golden("d2"));
    assert_eq!(merged(&d0, &d2).await, Err((MergeStep::Match, Errno::EINVAL)));
    assert_eq!(
        merged(&d0[..20], &d2).await,
        Err((MergeStep::FirstHead, Errno::EBADMSG))
    );
    assert_eq!(
        merged(&d0, b"").await,
        Err((MergeStep::SecondHead, Errno::EBADMSG))
    );
    assert_eq!(
        merged(&d0[..100], &golden("d1")).await,
        Err((MergeStep::Data, Errno::EBADMSG))
    );
    let descending = written(1 << 20, &[(70_000, b"BB"), (0, b"A")]);
    assert_eq!(
        merged(&descending, &descending).await,
        Err((MergeStep::FirstOrder, Errno::EOPNOTSUPP))
    );
}

/// A diff without snapshots.
fn written(size_bytes: u64, runs: &[(u64, &[u8])]) -> Vec<u8> {
    let head = DiffHead {
        size_bytes,
        ..DiffHead::default()
    };
    let mut out = encode_head(Version::V1, &head);
    for (offset, data) in runs {
        let run = Run {
            kind: RunKind::Write,
            offset: *offset,
            length_bytes: data.len() as u64,
        };
        out.extend(encode_run(Version::V1, run));
        out.extend(*data);
    }
    out.extend(encode_end());
    out
}

#[tokio::test(flavor = "multi_thread")]
async fn a_diff_in_a_file_that_cannot_be_applied_whole_changes_nothing() {
    let io = place().await;
    gold(&io, "gold").await;
    let before = export(&io, "gold").await;
    let image = open(&io, "gold").await;
    let next = DiffHead {
        from: Some("b".into()),
        to: Some("c".into()),
        protected: false,
        size_bytes: 20_000,
    };
    let mut good = encode_head(Version::V1, &next);
    good.extend(&written(20_000, &[(0, b"new"), (9000, &[5; 5000])])[21..]);
    for length in 0..good.len() {
        let (obstacle, error) = apply(&image, &good[..length]).await.unwrap_err();
        assert_eq!(
            (obstacle, error.kind, error.errno),
            (None, ErrorKind::Damaged, Errno::EBADMSG),
            "{length}"
        );
    }
    let lies: [(Vec<u8>, &str); 7] = [
        (written(100, &[(90, &[1; 11])]), "beyond the end"),
        (written(100, &[(u64::MAX, b"1")]), "at the end of all numbers"),
        (written(100, &[(5, b"")]), "an empty run"),
        (written(u64::MAX, &[]), "an impossible size"),
        ([b"rbd diff v2\n", &good[12..]].concat(), "another version"),
        ([b"rbd diff v1\nq", &good[12..]].concat(), "an unknown record"),
        (
            [&b"rbd diff v1\nt\xff\xff\xff\xff"[..], &[b'x'; 9000]].concat(),
            "a long name",
        ),
    ];
    for (bytes, what) in &lies {
        let (_, error) = apply(&image, bytes).await.unwrap_err();
        assert_eq!(
            (error.kind, error.errno),
            (ErrorKind::Damaged, Errno::EINVAL),
            "{what}: {error}"
        );
    }
    let (obstacle, error) = apply(&image, &golden("gold-ab.diff")).await.unwrap_err();
    assert_eq!(
        (obstacle, error.errno),
        (Some(Obstacle::EndExists("b".into())), Errno::EEXIST)
    );
    let (obstacle, error) = apply(&image, &golden("d3")).await.unwrap_err();
    assert_eq!(
        (obstacle, error.errno),
        (Some(Obstacle::StartMissing("c".into())), Errno::EINVAL)
    );
    assert!(export(&io, "gold").await == before);
    apply(&image, &good).await.unwrap();
    assert_eq!(&bytes_of(&io, "gold", "c").await[..3], b"new");
    image.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_that_is_cut_off_or_damaged_leaves_no_image() {
    let io = place().await;
    let file = golden("golds.v2");
    for length in (0..file.len()).step_by(97) {
        let mut pipe = &file[..length];
        let mut input = Input::pipe(&mut pipe);
        let options = ImportOptions::default();
        let imported = import_image(&io, "image", &mut input, &options, &silent()).await;
        let error = imported.unwrap_err();
        assert_eq!(
            (error.kind, error.errno),
            (ErrorKind::Damaged, Errno::EBADMSG),
            "{length}: {error}"
        );
        assert_eq!(list::names(&io).await.unwrap(), Vec::<String>::new());
    }
    let left = ferry_image::admin::trash::list(&io).await.unwrap();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn damaged_bytes_are_errors_and_take_no_memory() {
    let seed = ferry_reference::seed();
    println!("FERRY_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    for round in 0..4000 {
        let mut file = golden(["gold.v2", "d1", "m12", "gold-ab.diff"][round % 4]);
        for _ in 0..rng.random_range(1..4) {
            let at = rng.random_range(0..file.len().min(200));
            file[at] = [rng.random(), 0, 0xff, b'w'][rng.random_range(0..4)];
        }
        let mut cursor = Cursor::new(file.clone());
        if round % 4 == 0 {
            let mut input = Input::file(&mut cursor);
            if let Ok(head) = ImageHead::decode(&mut input).await {
                for _ in 0..head.diffs.min(10) {
                    if diff::check(&mut input, Version::V2).await.is_err() {
                        break;
                    }
                }
            }
        } else {
            // An error or a diff that holds together; either way it ends.
            let mut input = Input::file(&mut cursor);
            if let Ok(mut reader) = DiffReader::begin(&mut input, Version::V1).await {
                while let Ok(Some(run)) = reader.next_run(&mut input).await {
                    assert!(run.length_bytes > 0 && run.end() <= reader.head().size_bytes);
                    let Ok(data) = reader.data(&mut input, 1 << 16).await else {
                        break;
                    };
                    assert!(data.len() <= 1 << 16);
                }
            }
            let _ = merged(&file, &golden("d2")).await;
        }
    }
}

#[tokio::test]
async fn records_of_unknown_kind_are_skipped_by_their_length() {
    let head = DiffHead {
        to: Some("a".into()),
        protected: true,
        size_bytes: 10,
        ..DiffHead::default()
    };
    let mut bytes = encode_head(Version::V2, &head);
    for _ in 0..2 {
        bytes.extend([b'?', 3, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3]);
    }
    bytes.extend(encode_end());
    let mut pipe = &bytes[..];
    let mut input = Input::pipe(&mut pipe);
    let mut reader = DiffReader::begin(&mut input, Version::V2).await.unwrap();
    assert_eq!(reader.next_run(&mut input).await.unwrap(), None);
    assert_eq!(reader.head(), &head);
    assert_eq!(reader.skipped_tags(), b"?");
}
