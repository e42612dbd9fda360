//! What a handle counts while its image migrates, compared with what was asked of it.

#![allow(clippy::unwrap_used)] // a test that cannot go on says so by panicking

mod support;

use ferry_image::admin::create;
use ferry_image::layering::clone::{CloneOptions, clone};
use ferry_image::migration::execute::execute;
use ferry_image::migration::prepare::{PrepareOptions, prepare};
use ferry_image::{Image, ImageKey, OpenOptions, Progress, SnapKey};
use ferry_store::ReadNow;
use support::{Engine, TestLayout, pool};

const OBJECT_BYTES: u64 = 64 << 10;
const LAYOUT: TestLayout = TestLayout(16, 0, 0);

#[tokio::test]
async fn redirected_reads_and_copy_ups_are_counted_and_ordinary_ones_are_not() {
    let store = Engine::memory().connect().await;
    let io = pool(&store, "rbd").await;
    create::create(&io, "src", &LAYOUT.create(8 * OBJECT_BYTES))
        .await
        .unwrap();
    let source = Image::open(&io, ImageKey::Name("src"), OpenOptions::read_write())
        .await
        .unwrap();
    source
        .write(0, vec![1; 4 * OBJECT_BYTES as usize].into())
        .await
        .unwrap();
    source.read(0, OBJECT_BYTES).await.unwrap();
    assert_eq!(source.stats().snapshot(), Default::default());
    source.close().await.unwrap();

    prepare(&io, "src", &io, "dst", &PrepareOptions::default())
        .await
        .unwrap();
    let target = Image::open(&io, ImageKey::Name("dst"), OpenOptions::read_write())
        .await
        .unwrap();
    // Two objects, one of them in part; and one that the source does not have either.
    target.read(0, OBJECT_BYTES + 512).await.unwrap();
    target.read(7 * OBJECT_BYTES, 4096).await.unwrap();
    let seen = target.stats().snapshot();
    assert_eq!(
        (seen.source_reads, seen.source_read_bytes),
        (3, OBJECT_BYTES + 512 + 4096)
    );
    assert_eq!(seen.copy_up_waits.count(), 0);

    // A copy, the same object again, an object that has nothing to copy, and one that is replaced whole.
    target.write(10, vec![2; 100].into()).await.unwrap();
    target.write(500, vec![3; 100].into()).await.unwrap();
    target.write(7 * OBJECT_BYTES, vec![4; 100].into()).await.unwrap();
    target
        .write(OBJECT_BYTES, vec![5; OBJECT_BYTES as usize].into())
        .await
        .unwrap();
    let seen = target.stats().snapshot();
    assert_eq!((seen.copied_up_objects, seen.copied_up_bytes), (1, OBJECT_BYTES));
    assert_eq!(seen.copy_up_waits.count(), 2);

    // What was copied is read from the target itself.
    target.read(0, 2 * OBJECT_BYTES).await.unwrap();
    assert_eq!(target.stats().snapshot().source_reads, 3);
    execute(&io, "dst", &Progress::silent()).await.unwrap();
    let after = target.stats().snapshot();
    assert_eq!(after.copied_up_objects, 1, "execute copies for nobody");
    target.close().await.unwrap();
}

#[tokio::test]
async fn reads_that_a_parent_answers_are_counted_and_those_of_the_clone_s_own_objects_are_not() {
    let store = Engine::memory().connect().await;
    let io = pool(&store, "rbd").await;
    create::create(&io, "base", &LAYOUT.create(4 * OBJECT_BYTES))
        .await
        .unwrap();
    let base = Image::open(&io, ImageKey::Name("base"), OpenOptions::read_write())
        .await
        .unwrap();
    base.write(0, vec![1; 3 * OBJECT_BYTES as usize].into())
        .await
        .unwrap();
    base.snap_create("s", &Progress::silent()).await.unwrap();
    base.snap_protect("s").await.unwrap();
    base.close().await.unwrap();
    clone(
        &io,
        "base",
        &SnapKey::Name("s".to_owned()),
        &io,
        "child",
        &CloneOptions::default(),
    )
    .await
    .unwrap();

    let child = Image::open(&io, ImageKey::Name("child"), OpenOptions::read_write())
        .await
        .unwrap();
    let count = || {
        let seen = child.stats().snapshot();
        (seen.parent_reads, seen.parent_read_bytes)
    };
    child.read(512, OBJECT_BYTES).await.unwrap();
    assert_eq!(count(), (2, OBJECT_BYTES));
    // The parent has no object there either, but was asked.
    child.read(3 * OBJECT_BYTES, 100).await.unwrap();
    assert_eq!(count(), (3, OBJECT_BYTES + 100));
    let now = child.read_now(OBJECT_BYTES, &mut [0; 512]);
    let expected = match now {
        ReadNow::Filled => (4, OBJECT_BYTES + 612),
        ReadNow::Absent | ReadNow::WouldWait => (3, OBJECT_BYTES + 100),
    };
    assert_eq!(count(), expected);

    // The copy that a write needs is none of a client's reads.
    child.write(10, vec![2; 100].into()).await.unwrap();
    child.read(0, OBJECT_BYTES).await.unwrap();
    assert_eq!(count(), expected);
    assert_eq!(child.stats().snapshot().source_reads, 0);
    child.close().await.unwrap();
}
