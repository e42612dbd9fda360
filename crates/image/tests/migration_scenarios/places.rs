//! Every place that an image can move to, with nothing, something and a history in it, and back from there.

use ferry_cls::rbd::feature;
use ferry_image::ErrorKind;
use ferry_image::ImageKey;
use ferry_image::admin::info;
use ferry_image::group::{self, Group};
use ferry_image::migration::prepare::PrepareOptions;
use ferry_store::Errno;

use super::scene::{Contents, Place, Scene, everywhere};

const ALL: [Contents; 3] = [Contents::Nothing, Contents::Plain, Contents::History];

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_holds_nothing_gets_other_features_in_its_place() {
    everywhere(&[Contents::Nothing], async |scene| {
        let was = scene.client().await.header().features;
        assert_ne!(was & feature::LAYERING, 0);
        scene.target.features = Some(was & !feature::LAYERING);
        scene.migrate(Place::Here).await;
        let client = scene.client().await;
        client.refresh().await.unwrap();
        let now = client.header().features;
        assert_eq!(now & !feature::STRIPINGV2, was & !feature::LAYERING);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_changes_in_its_place() {
    everywhere(&ALL, async |scene| scene.migrate(Place::Here).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_moves_to_another_name() {
    everywhere(&ALL, async |scene| scene.migrate(Place::Name).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_moves_to_another_pool() {
    everywhere(&ALL, async |scene| scene.migrate(Place::Pool).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_moves_to_another_namespace() {
    everywhere(&ALL, async |scene| scene.migrate(Place::Namespace).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_data_of_an_image_move_to_another_pool() {
    everywhere(&ALL, async |scene| scene.migrate(Place::DataPool).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prepared_migration_to_any_place_is_taken_back() {
    everywhere(&[Contents::History], async |scene| {
        for place in Place::ALL {
            scene.prepare(place).await;
            scene.abort(true).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_executed_migration_to_any_place_is_taken_back_by_the_name_of_either_image() {
    everywhere(&[Contents::History], async |scene| {
        for (number, place) in Place::ALL.into_iter().enumerate() {
            scene.prepare(place).await;
            scene.execute().await;
            scene.abort(number % 2 == 0).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_written_since_comes_back_and_snapshots_taken_since_do_not() {
    everywhere(&[Contents::Plain, Contents::History], async |scene| {
        scene.prepare(Place::Here).await;
        scene.write(5, 200_000, 8).await;
        scene.snap("since").await;
        scene.discard(70_000, 80_000).await;
        scene.execute().await;
        scene.write(100_000, 10, 9).await;
        scene.abort(false).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prepare_that_fails_leaves_the_image_as_it_was() {
    everywhere(&[Contents::History], async |scene| {
        let options = PrepareOptions {
            data_pool: Some("no-such-pool".to_owned()),
            ..PrepareOptions::default()
        };
        let refused = scene.refused_prepare(&options).await;
        assert_eq!(
            (refused.kind, refused.errno),
            (ErrorKind::PoolMissing, Errno::ENOENT)
        );
        scene.check("refused").await;
        // Nothing of it is in anybody's way.
        scene.write(0, 100_000, 7).await;
        scene.migrate(Place::Here).await;
    })
    .await;
}

/// The group that an image says that it is in, and the images that the group says are in it.
async fn membership(scene: &Scene, group: &Group) -> (String, Vec<String>) {
    let (io, at) = (scene.by_verbs(&scene.now), &scene.now);
    let shown = info::info(&io, ImageKey::Name(&at.name), None).await.unwrap();
    let images = group.images().await.unwrap();
    assert!(images.iter().all(|image| image.is_attached));
    let names = images.into_iter().map(|image| image.name).collect();
    (shown.group.unwrap().name, names)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_of_a_group_stays_one_wherever_it_goes_and_when_it_comes_back() {
    everywhere(&[Contents::Plain], async |scene| {
        group::create(&scene.io, "g").await.unwrap();
        let group = Group::open(&scene.io, "g").await.unwrap();
        group.add_image(&scene.io, "image").await.unwrap();
        let is_in = |name: &str| ("g".to_owned(), vec![name.to_owned()]);

        scene.prepare(Place::Name).await;
        assert_eq!(membership(scene, &group).await, is_in("image-moved"));
        scene.abort(true).await;
        assert_eq!(membership(scene, &group).await, is_in("image"));
        scene.migrate(Place::Name).await;
        assert_eq!(membership(scene, &group).await, is_in("image-moved"));

        group.remove_image(&scene.io, "image-moved").await.unwrap();
        group::remove(&scene.io, "g").await.unwrap();
    })
    .await;
}
