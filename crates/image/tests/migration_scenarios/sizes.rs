//! Sizes and snapshots that change between the verbs.

use ferry_image::{Image, ImageKey, OpenOptions, SnapKey};

use super::scene::{Contents, OBJECT_BYTES, Place, SIZE, everywhere};
use super::support::reference::compare_version;

const BOTH: [Contents; 2] = [Contents::Plain, Contents::History];

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_shrank_before_execute_stays_as_it_is() {
    everywhere(&BOTH, async |scene| {
        scene.prepare(Place::Here).await;
        scene.resize(SIZE / 2).await;
        scene.finish().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_of_no_bytes_moves_with_its_snapshots() {
    everywhere(&BOTH, async |scene| {
        scene.resize(0).await;
        scene.migrate(Place::Here).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_shrank_to_nothing_keeps_its_snapshots() {
    everywhere(&BOTH, async |scene| {
        scene.prepare(Place::Here).await;
        scene.resize(0).await;
        scene.finish().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_grew_before_execute_is_zero_behind_its_old_end() {
    everywhere(&BOTH, async |scene| {
        scene.prepare(Place::Here).await;
        scene.resize(2 * SIZE).await;
        scene.write(SIZE, 1_000, 9).await;
        scene.finish().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_a_snapshot_still_holds_is_not_seen_when_the_target_grows_over_it() {
    everywhere(&[Contents::Nothing], async |scene| {
        scene.write(SIZE / 2, 10, 1).await;
        scene.snap("s1").await;
        scene.resize(SIZE / 2).await;
        scene.prepare(Place::Here).await;
        scene.resize(SIZE).await;
        scene.write(SIZE / 2, 5, 2).await;
        scene.check("grown").await;
        scene.finish().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_of_a_target_keeps_what_the_target_then_loses() {
    everywhere(&BOTH, async |scene| {
        scene.prepare(Place::Here).await;
        // A reader of one that came along.
        if let Some(shown) = scene.reference.snaps.get("s3").cloned() {
            let (io, name) = (scene.by_verbs(&scene.now), scene.now.name.clone());
            let at = OpenOptions::read_only().at(SnapKey::Name("s3".to_owned()));
            let reader = Image::open(&io, ImageKey::Name(&name), at).await.unwrap();
            compare_version(&reader, &shown, "a snapshot that came along").await;
            reader.close().await.unwrap();
        }
        scene.snap("since").await;
        scene.resize(SIZE / 2).await;
        scene.write(0, 1_000, 9).await;
        scene.finish().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_of_a_target_ends_where_it_ended_when_the_target_then_grows() {
    everywhere(&BOTH, async |scene| {
        scene.prepare(Place::Here).await;
        scene.snap("since").await;
        scene.resize(2 * SIZE).await;
        scene.write(SIZE, 1_000, 9).await;
        scene.finish().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_a_write_has_copied_is_not_copied_over_when_less_of_it_shows() {
    everywhere(&[Contents::Nothing], async |scene| {
        let middle = SIZE / 2;
        scene.write(middle, 10, 1).await;
        scene.snap("s1").await;
        scene.write(middle + 1, 10, 2).await;
        scene.prepare(Place::Here).await;
        // Copies the object, with its past.
        scene.write(middle + 2, 10, 3).await;
        scene.snap("s2").await;
        // From here on the head has nothing there: an execute knows of less than the write did.
        scene.resize(middle).await;
        scene.finish().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_grows_and_shrinks_between_snapshots_keeps_each_of_them() {
    everywhere(&[Contents::Nothing], async |scene| {
        let middle = SIZE / 2;
        assert_eq!(middle % OBJECT_BYTES, 0);
        scene.write(middle, 10, 1).await;
        scene.snap("s1").await;
        scene.resize(middle).await;
        scene.prepare(Place::Here).await;
        scene.resize(SIZE).await;
        scene.snap("s3").await;
        scene.write(middle, 10, 2).await;
        scene.snap("s4").await;
        scene.resize(middle).await;
        scene.finish().await;
    })
    .await;
}
