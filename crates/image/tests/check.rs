//! The check of images: what is sound gives no findings, in every state that the verbs leave; each damage made on purpose is found
//! and named; a repair mends what can be derived and nothing else, and a second check has nothing of that to say.

#![allow(clippy::unwrap_used)] // a test that cannot go on says so by panicking

mod support;

use std::collections::BTreeSet;

use bytes::Bytes;
use ferry_cls::rbd::{ObjectState, client};
use ferry_image::admin::create::CreateOptions;
use ferry_image::admin::{create, namespace, trash};
use ferry_image::group::{self, Group};
use ferry_image::layering::clone::CloneFormat;
use ferry_image::migration::abort::{AbortOptions, abort};
use ferry_image::migration::commit::commit;
use ferry_image::migration::execute::execute;
use ferry_image::migration::prepare::{PrepareOptions, prepare};
use ferry_image::{check, names};
use ferry_store::check::{CheckOptions, Finding, Gravity};
use ferry_store::{SnapId, WriteOp};
use support::damage::{
    LAYOUT, REPAIR, SIZE, as_text, clone_of, damage_everything, find, make, make_format_1, open,
    remove_object, says, silent,
};
use support::{Engine, pool, sound};

/// A world with all that images can be, which is checked in every state of a migration.
async fn every_state_is_sound(engine: Engine) {
    let store = engine.connect().await;
    let (io, other) = (pool(&store, "rbd").await, pool(&store, "p2").await);
    namespace::create(&io, "ns").await.unwrap();
    let inside = io.with_namespace("ns");
    make(&io, "parent").await;
    make(&inside, "within").await;
    clone_of(&io, "parent", &io, "one", CloneFormat::One).await;
    clone_of(&io, "parent", &other, "two", CloneFormat::Two).await;
    clone_of(&io, "parent", &inside, "three", CloneFormat::Two).await;
    let options = CreateOptions {
        data_pool: Some("p2".to_owned()),
        ..LAYOUT.create(SIZE)
    };
    create::create(&io, "apart", &options).await.unwrap();
    let apart = open(&io, "apart").await;
    apart.write(0, vec![9; 100_000].into()).await.unwrap();
    apart.close().await.unwrap();
    group::create(&io, "g").await.unwrap();
    let group = Group::open(&io, "g").await.unwrap();
    group.add_image(&io, "parent").await.unwrap();
    group.add_image(&other, "two").await.unwrap();
    group.create_snapshot("gs", false).await.unwrap();
    make(&io, "trashed").await;
    trash::move_image(&io, "trashed", None).await.unwrap();
    make_format_1(&io, "old").await;
    sound(&store, "all that images can be").await;
    // With these a migration is refused.
    let snapshot = group.snapshot("gs").await.unwrap();
    group.remove_snapshot(&snapshot).await.unwrap();

    for (source, source_io, flatten) in [
        ("parent", &io, false),
        ("two", &other, false),
        ("one", &io, true),
        ("old", &io, false),
    ] {
        for ends_by_abort in [true, false] {
            let options = PrepareOptions {
                order: Some(15),
                flatten,
                ..PrepareOptions::default()
            };
            let target = format!("{source}-moved");
            prepare(source_io, source, &other, &target, &options)
                .await
                .unwrap();
            sound(&store, &format!("{source}, prepared")).await;
            let image = open(&other, &target).await;
            image.write(400_000, vec![5; 10].into()).await.unwrap();
            image.snap_create("later", &silent()).await.unwrap();
            image.snap_remove("later", &silent()).await.unwrap();
            image.close().await.unwrap();
            sound(&store, &format!("{source}, written")).await;
            execute(&other, &target, &silent()).await.unwrap();
            sound(&store, &format!("{source}, executed")).await;
            match ends_by_abort {
                true => abort(&other, &target, AbortOptions::default(), &silent())
                    .await
                    .unwrap(),
                false => commit(&other, &target, &silent()).await.unwrap(),
            }
            sound(&store, &format!("{source}, ended by abort: {ends_by_abort}")).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clones_groups_trash_and_migrations_in_every_state_give_no_findings() {
    every_state_is_sound(Engine::memory()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clones_groups_trash_and_migrations_give_no_findings_on_the_local_engine() {
    every_state_is_sound(Engine::local()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clones_groups_trash_and_migrations_give_no_findings_without_a_list_of_clones() {
    every_state_is_sound(Engine::probing()).await;
}

async fn damage_is_found(engine: Engine) {
    let store = engine.connect().await;
    let (io, other) = (pool(&store, "rbd").await, pool(&store, "p2").await);
    make(&io, "sound").await;
    let expected = damage_everything(&io, &other).await;

    let found = find(&io, CheckOptions::default()).await;
    for damage in &expected {
        assert!(
            found.iter().any(|found| says(found, damage)),
            "{damage:?} is not found:\n{}",
            as_text(&found)
        );
    }
    let unexpected: Vec<Finding> = found
        .iter()
        .filter(|found| !expected.iter().any(|damage| says(found, damage)))
        .cloned()
        .collect();
    // Of the prefix that was changed, and of images that lost their headers.
    let kinds: BTreeSet<&str> = unexpected.iter().map(|found| found.kind).collect();
    assert!(
        kinds.iter().all(|kind| *kind == "data-stray"),
        "more than was damaged:\n{}",
        as_text(&unexpected)
    );
    assert!(!found.iter().any(|found| found.place.contains("'rbd/sound'")));
    let orphaned = find(&other, CheckOptions::default()).await;
    assert!(
        orphaned
            .iter()
            .any(|found| found.kind == "parent-missing" && found.place.contains("orphan")),
        "{}",
        as_text(&orphaned)
    );

    let repaired = find(&io, REPAIR).await;
    for damage in &expected {
        let is_as_expected = repaired
            .iter()
            .any(|found| says(found, damage) && found.mended == damage.2);
        assert!(is_as_expected, "{damage:?}:\n{}", as_text(&repaired));
    }
    assert!(
        !repaired.iter().any(|found| found.kind == "repair-failed"),
        "{}",
        as_text(&repaired)
    );
    let left = find(&io, CheckOptions::default()).await;
    for damage in expected.iter().filter(|damage| damage.2) {
        assert!(
            !left.iter().any(|found| says(found, damage)),
            "{damage:?} is still found:\n{}",
            as_text(&left)
        );
    }
    // Nothing that may be all that is left of something was removed.
    assert!(
        io.exists(&names::data_object("rbd_data.cafe02", 2))
            .await
            .unwrap()
    );
    for name in [
        "no-id-object",
        "no-id-key",
        "no-name-key",
        "unlisted",
        "lying-map",
        "no-map",
        "forgotten",
    ] {
        let image = open(&io, name).await;
        assert_eq!(image.read(0, 200).await.unwrap(), vec![1; 200], "{name}");
        image.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_damage_is_found_and_named_and_mended_where_nothing_can_be_lost() {
    damage_is_found(Engine::memory()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_damage_is_found_and_named_and_mended_on_the_local_engine() {
    damage_is_found(Engine::local()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_image_is_checked_alone_and_one_in_use_is_not_compared_with_its_objects() {
    let store = Engine::memory().connect().await;
    let io = pool(&store, "rbd").await;
    make(&io, "broken").await;
    remove_object(&io, &names::id_object("broken")).await;
    let id = make(&io, "used").await;
    let image = open(&io, "used").await;
    let found = check::image(&io, "used", CheckOptions::default()).await.unwrap();
    let seen: Vec<_> = found.iter().map(|found| (found.gravity, found.kind)).collect();
    assert_eq!(seen, [(Gravity::Unjudged, "image-in-use")], "{}", as_text(&found));
    image.close().await.unwrap();
    let call = client::object_map_update(0, 1, ObjectState::Nonexistent, None);
    ferry_cls::exec_write(&io, &names::object_map_object(&id, SnapId::HEAD), call)
        .await
        .unwrap();
    let found = check::image(&io, "used", REPAIR).await.unwrap();
    assert!(found.iter().all(|found| found.mended), "{}", as_text(&found));
    assert_eq!(check::image(&io, "used", REPAIR).await.unwrap(), []);
    let missing = check::image(&io, "nowhere", REPAIR).await.unwrap_err();
    assert_eq!(missing.errno, ferry_store::Errno::ENOENT);
    let found = check::image(&io, "broken", REPAIR).await.unwrap();
    assert!(found.len() == 1 && found[0].mended, "{}", as_text(&found));
    let prefix = make_format_1(&io, "old").await;
    assert_eq!(check::image(&io, "old", REPAIR).await.unwrap(), []);
    let op = WriteOp::new().write(0, Bytes::from_static(b"whose"));
    let beyond = names::v1_data_object(&prefix, 99);
    io.write_meta(&beyond, op).await.unwrap();
    let found = check::image(&io, "old", REPAIR).await.unwrap();
    assert!(
        found.len() == 1 && found[0].kind == "data-beyond-end",
        "{}",
        as_text(&found)
    );
}
