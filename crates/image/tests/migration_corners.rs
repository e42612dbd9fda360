//! Corners of a migration that random histories rarely reach.

#![allow(clippy::unwrap_used)] // a test that cannot go on says so by panicking

mod support;

use ferry_cls::rbd::{MigrationState, client};
use ferry_image::admin::{create, trash};
use ferry_image::diff::Diff;
use ferry_image::migration::abort::{AbortOptions, abort};
use ferry_image::migration::commit::commit;
use ferry_image::migration::execute::execute;
use ferry_image::migration::prepare::{PrepareOptions, prepare};
use ferry_image::{ErrorKind, Image, ImageKey, OpenOptions, Progress, SnapKey};
use ferry_store::wrappers::Moment;
use ferry_store::{Errno, IoCtx, SnapContext, WriteOp, WriteStep};
use futures::TryStreamExt as _;
use support::reference::{Compared as _, Reference};
use support::{Engine, TestLayout, pool, sound};

const SIZE: u64 = 96 << 10;

fn silent() -> Progress {
    Progress::silent()
}

async fn open(io: &IoCtx, name: &str) -> Image {
    Image::open(io, ImageKey::Name(name), OpenOptions::read_write())
        .await
        .unwrap()
}

/// An image `src` with snapshots s1, s2, s3; each has bytes of its own in every object, one object comes and goes.
async fn source(io: &IoCtx) -> Reference {
    create::create(io, "src", &TestLayout(15, 0, 0).create(SIZE))
        .await
        .unwrap();
    let image = open(io, "src").await;
    let mut reference = Reference::new(SIZE);
    for (byte, snap) in [(1u8, "s1"), (2, "s2"), (3, "s3"), (4, "")] {
        for offset in [0, 40_000] {
            let data = vec![byte; 9_000 - usize::from(byte) * 1_000];
            image.write(offset, data.clone().into()).await.unwrap();
            reference.write(offset, &data);
        }
        if byte == 2 {
            image.write(70_000, vec![7; 5_000].into()).await.unwrap();
            reference.write(70_000, &[7; 5_000]);
        } else {
            image.discard(65_536, 32_768).await.unwrap();
            reference.zero(65_536, 32_768);
        }
        if !snap.is_empty() {
            image.snap_create(snap, &silent()).await.unwrap();
            reference.snap(snap);
        }
    }
    image.close().await.unwrap();
    reference
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_removed_while_objects_are_half_copied_takes_nothing_with_it() {
    for removed in ["s1", "s2", "s3"] {
        for nth in 1.. {
            let engine = Engine::memory();
            let io = pool(&engine.connect().await, "rbd").await;
            let mut reference = source(&io).await;
            let options = PrepareOptions {
                order: Some(14),
                ..PrepareOptions::default()
            };
            prepare(&io, "src", &io, "dst", &options).await.unwrap();
            let doomed = engine.doomed(nth, Moment::After).await;
            let dying = IoCtx::new(doomed.store.clone(), io.scope().clone());
            let killed = execute(&dying, "dst", &silent()).await.is_err();
            doomed.bury().await;
            let image = open(&io, "dst").await;
            image.snap_remove(removed, &silent()).await.unwrap();
            image.close().await.unwrap();
            reference.snaps.remove(removed);
            let when = format!("killed at {nth}, {removed} removed");
            reference.check_all(&io, "dst", &when).await;
            if killed {
                match execute(&io, "dst", &silent()).await {
                    Ok(()) => {}
                    Err(error) => assert_eq!(error.kind, ErrorKind::MigrationState, "{when}: {error}"),
                }
            }
            reference
                .check_all(&io, "dst", &format!("executed, {when}"))
                .await;
            commit(&io, "dst", &silent()).await.unwrap();
            reference
                .check_all(&io, "dst", &format!("committed, {when}"))
                .await;
            if !killed {
                break;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn swapped_and_reused_snapshot_names_come_back_with_an_abort() {
    let engine = Engine::memory();
    let io = pool(&engine.connect().await, "rbd").await;
    let mut reference = source(&io).await;
    prepare(&io, "src", &io, "dst", &PrepareOptions::default())
        .await
        .unwrap();
    let image = open(&io, "dst").await;
    image.snap_remove("s1", &silent()).await.unwrap();
    image.snap_rename("s2", "s1").await.unwrap();
    image.snap_rename("s3", "s2").await.unwrap();
    image.close().await.unwrap();
    abort(&io, "dst", AbortOptions::default(), &silent())
        .await
        .unwrap();
    let old = reference.snaps.clone();
    reference.snaps = [("s1", "s2"), ("s2", "s3")]
        .map(|(new, name)| (new.to_owned(), old[name].clone()))
        .into();
    let image = Image::open(&io, ImageKey::Name("src"), OpenOptions::read_only())
        .await
        .unwrap();
    let names: Vec<String> = image
        .header()
        .user_snaps()
        .map(|snap| snap.name.clone())
        .collect();
    image.close().await.unwrap();
    // The one that was removed on the target is back, under a name that nobody has.
    let returned = names.iter().find(|name| name.starts_with("s1.")).unwrap();
    reference.snaps.insert(returned.clone(), old["s1"].clone());
    reference.check_all(&io, "src", "after the abort").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_prepared_again_after_a_killed_commit_is_not_taken_for_the_old_migration() {
    let engine = Engine::memory();
    let io = pool(&engine.connect().await, "rbd").await;
    let reference = source(&io).await;
    prepare(&io, "src", &io, "dst", &PrepareOptions::default())
        .await
        .unwrap();
    execute(&io, "dst", &silent()).await.unwrap();
    let doomed = engine.doomed(3, Moment::After).await;
    let dying = IoCtx::new(doomed.store.clone(), io.scope().clone());
    commit(&dying, "dst", &silent()).await.unwrap_err();
    doomed.bury().await;
    prepare(&io, "dst", &io, "next", &PrepareOptions::default())
        .await
        .unwrap();

    let refused = abort(&io, "src", AbortOptions { force: true }, &silent())
        .await
        .unwrap_err();
    assert_eq!(refused.kind, ErrorKind::MigrationState, "{refused}");
    commit(&io, "src", &silent()).await.unwrap();
    reference
        .check_all(&io, "next", "while the second migration goes on")
        .await;
    execute(&io, "next", &silent()).await.unwrap();
    commit(&io, "next", &silent()).await.unwrap();
    reference.check_all(&io, "next", "at the end").await;
    assert!(trash::list(&io).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_abort_that_finds_a_client_gives_it_its_migration_back() {
    let engine = Engine::memory();
    let io = pool(&engine.connect().await, "rbd").await;
    let mut reference = source(&io).await;
    prepare(&io, "src", &io, "dst", &PrepareOptions::default())
        .await
        .unwrap();
    let client = open(&io, "dst").await;
    let busy = abort(&io, "dst", AbortOptions::default(), &silent())
        .await
        .unwrap_err();
    assert_eq!((busy.kind, busy.errno), (ErrorKind::HasWatchers, Errno::EBUSY));
    client.write(50, vec![9; 100].into()).await.unwrap();
    reference.write(50, &[9; 100]);
    reference.check_head(&client, "after the refused abort").await;
    client.close().await.unwrap();
    reference.check_all(&io, "dst", "after the refused abort").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_of_the_source_is_told_when_a_commit_takes_it_away() {
    let engine = Engine::memory();
    let io = pool(&engine.connect().await, "rbd").await;
    let reference = source(&io).await;
    let reader = Image::open(&io, ImageKey::Name("src"), OpenOptions::read_only())
        .await
        .unwrap();
    prepare(&io, "src", &io, "dst", &PrepareOptions::default())
        .await
        .unwrap();
    reference
        .check_head(&reader, "while the source is still whole")
        .await;
    execute(&io, "dst", &silent()).await.unwrap();
    commit(&io, "dst", &silent()).await.unwrap();
    let stale = reader.read(0, 4096).await.unwrap_err();
    assert_eq!(stale.errno, Errno::ESTALE, "{stale}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_to_a_snapshot_that_was_just_removed_changes_nothing() {
    let engine = Engine::memory();
    let io = pool(&engine.connect().await, "rbd").await;
    let mut reference = source(&io).await;
    let slow = open(&io, "src").await;
    let other_io = IoCtx::new(engine.connect().await, io.scope().clone());
    let other = open(&other_io, "src").await;
    other.write(0, vec![8; 10].into()).await.unwrap();
    reference.write(0, &[8; 10]);
    other.snap_remove("s1", &silent()).await.unwrap();
    reference.snaps.remove("s1");
    let missing = slow.snap_rollback("s1", &silent()).await.unwrap_err();
    assert_eq!(missing.kind, ErrorKind::SnapMissing, "{missing}");
    reference.check_head(&other, "after the refused rollback").await;
    slow.close().await.unwrap();
    other.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_of_a_target_takes_away_what_only_the_sources_head_has() {
    for snap in ["s1", "s2", "s3"] {
        let engine = Engine::memory();
        let io = pool(&engine.connect().await, "rbd").await;
        let mut reference = source(&io).await;
        let image = open(&io, "src").await;
        image.write(66_000, vec![9; 20_000].into()).await.unwrap();
        image.close().await.unwrap();
        prepare(&io, "src", &io, "dst", &PrepareOptions::default())
            .await
            .unwrap();
        let target = open(&io, "dst").await;
        target.snap_rollback(snap, &silent()).await.unwrap();
        target.close().await.unwrap();
        reference.head = reference.snaps[snap].clone();
        reference.check_all(&io, "dst", "after the rollback").await;
        execute(&io, "dst", &silent()).await.unwrap();
        commit(&io, "dst", &silent()).await.unwrap();
        reference.check_all(&io, "dst", "after the migration").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_abort_puts_back_what_was_written_and_no_zeroes_around_it() {
    let engine = Engine::memory();
    let io = pool(&engine.connect().await, "rbd").await;
    let size = 1 << 20;
    create::create(&io, "src", &TestLayout(14, 4096, 4).create(size))
        .await
        .unwrap();
    let options = PrepareOptions {
        order: Some(16),
        ..PrepareOptions::default()
    };
    prepare(&io, "src", &io, "dst", &options).await.unwrap();
    let target = open(&io, "dst").await;
    // The head, the middle and the end of objects of 64 KiB, which are four of the source's.
    let written = [(0, 13), (3 * 65_536 + 20_000, 9_000), (6 * 65_536 - 1, 1)];
    let mut reference = Reference::new(size);
    for (offset, length) in written {
        target.write(offset, vec![8; length].into()).await.unwrap();
        reference.write(offset, &vec![8; length]);
    }
    target.close().await.unwrap();
    abort(&io, "dst", AbortOptions::default(), &silent())
        .await
        .unwrap();
    reference.check_all(&io, "src", "after the abort").await;
    let source = open(&io, "src").await;
    let diff = Diff::new(&source, None, false).await.unwrap();
    let told: Vec<_> = diff.extents().try_collect().await.unwrap();
    let told: u64 = told.into_iter().flatten().map(|extent| extent.length_bytes).sum();
    // An object of the source is told from its beginning to where its data end: 13 bytes of the first; of four others up to the end
    // of the second write; the whole of the one whose last byte was written.
    assert_eq!(told, 13 + 29_000 + 16_384);
    source.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_abort_leaves_nothing_of_a_target_whose_snapshots_are_larger_than_its_head() {
    for shrinks_target in [false, true] {
        let engine = Engine::memory();
        let store = engine.connect().await;
        let io = pool(&store, "rbd").await;
        let mut reference = source(&io).await;
        let shrink = async |name: &str| {
            let image = open(&io, name).await;
            image.resize(20_000, true, &silent()).await.unwrap();
            image.close().await.unwrap();
        };
        if !shrinks_target {
            shrink("src").await;
        }
        prepare(&io, "src", &io, "dst", &PrepareOptions::default())
            .await
            .unwrap();
        if shrinks_target {
            shrink("dst").await;
        }
        reference.resize(20_000);
        execute(&io, "dst", &silent()).await.unwrap();
        reference.check_all(&io, "dst", "executed").await;
        abort(&io, "dst", AbortOptions::default(), &silent())
            .await
            .unwrap();
        reference.check_all(&io, "src", "after the abort").await;
        sound(&store, "after the abort").await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_that_only_the_target_has_is_not_read_from_a_source_that_an_abort_writes_to() {
    let engine = Engine::memory();
    let io = pool(&engine.connect().await, "rbd").await;
    source(&io).await;
    prepare(&io, "src", &io, "dst", &PrepareOptions::default())
        .await
        .unwrap();
    let target = open(&io, "dst").await;
    target.snap_create("t0", &silent()).await.unwrap();
    let at = OpenOptions::read_only().at(SnapKey::Name("t0".to_owned()));
    let shown = Image::open(&io, ImageKey::Id(target.id()), at).await.unwrap();
    let before = shown.read(0, 9_000).await.unwrap();
    let source_id = target.header().migration_target().unwrap().image_id.clone();
    let header = format!("rbd_header.{}", target.id());
    target.close().await.unwrap();

    // Nobody is told, as if the watch were lost.
    let mark = async |state| {
        let call = client::migration_set_state(state, "");
        ferry_cls::exec_write(&io, &header, call).await.unwrap();
    };
    mark(MigrationState::Aborting).await;
    let passing = async {
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        mark(MigrationState::Prepared).await;
    };
    let (read, ()) = futures::join!(shown.read(0, 9_000), passing);
    assert_eq!(read.unwrap(), before, "an abort found that it could not be");

    mark(MigrationState::Aborting).await;
    let object = format!("rbd_data.{source_id}.{:016x}", 0);
    let op = WriteOp::new().write(0, vec![9; 9_000]);
    io.write(&object, &SnapContext::default(), op).await.unwrap();
    let read = shown.read(0, 9_000).await;
    assert_eq!(read.map_err(|error| error.kind), Err(ErrorKind::Migrating));

    io.write_meta(&header, WriteOp::new().step(WriteStep::Remove))
        .await
        .unwrap();
    let read = shown.read(0, 9_000).await;
    assert_eq!(read.map_err(|error| error.kind), Err(ErrorKind::Removed));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_commit_is_finished_although_two_executes_left_the_source_as_executing() {
    for nth in 1.. {
        let engine = Engine::memory();
        let io = pool(&engine.connect().await, "rbd").await;
        let reference = source(&io).await;
        prepare(&io, "src", &io, "dst", &PrepareOptions::default())
            .await
            .unwrap();
        execute(&io, "dst", &silent()).await.unwrap();
        let target = open(&io, "dst").await;
        let source_id = target.header().migration_target().unwrap().image_id.clone();
        target.close().await.unwrap();
        let call = client::migration_set_state(MigrationState::Executing, "99% complete");
        ferry_cls::exec_write(&io, &format!("rbd_header.{source_id}"), call)
            .await
            .unwrap();
        let doomed = engine.doomed(nth, Moment::After).await;
        let dying = IoCtx::new(doomed.store.clone(), io.scope().clone());
        let killed = commit(&dying, "dst", &silent()).await.is_err();
        doomed.bury().await;
        if killed && let Err(error) = commit(&io, "dst", &silent()).await {
            assert_eq!(error.kind, ErrorKind::NotMigrating, "killed at {nth}: {error}");
        }
        reference.check_all(&io, "dst", &format!("killed at {nth}")).await;
        assert!(trash::list(&io).await.unwrap().is_empty(), "killed at {nth}");
        if !killed {
            break;
        }
    }
}
