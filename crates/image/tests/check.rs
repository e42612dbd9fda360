//! The check of images: what is sound gives no findings, in every state that the verbs leave; each damage made on purpose is found
//! and named; a repair mends what can be derived and nothing else, and a second check has nothing of that to say.

#![allow(clippy::unwrap_used)] // a test that cannot go on says so by panicking

mod support;

use std::collections::BTreeSet;

use bytes::Bytes;
use ferry_cls::CallExt as _;
use ferry_cls::encoding::{Decode as _, Encode as _};
use ferry_cls::rbd::v1::{HEADER_TEXT, Tmap};
use ferry_cls::rbd::{
    ChildImageSpec, GroupImageSpec, ObjectState, SnapshotNamespace, TrashImageSource, client,
    names as objects,
};
use ferry_image::admin::create::CreateOptions;
use ferry_image::admin::{create, directory, namespace, trash};
use ferry_image::group::{self, Group};
use ferry_image::header::HeaderKey;
use ferry_image::layering::clone::{CloneFormat, CloneOptions, clone};
use ferry_image::migration::abort::{AbortOptions, abort};
use ferry_image::migration::commit::commit;
use ferry_image::migration::execute::execute;
use ferry_image::migration::prepare::{PrepareOptions, prepare};
use ferry_image::{Image, ImageKey, OpenOptions, Progress, SnapKey, check, header, names};
use ferry_store::check::{CheckOptions, Finding, Gravity};
use ferry_store::{IoCtx, ReadOp, SnapId, WriteOp, WriteStep};
use support::{Engine, TestLayout, pool, sound};

const SIZE: u64 = 1 << 20;
/// Objects of 64 KiB.
const LAYOUT: TestLayout = TestLayout(16, 0, 0);
const REPAIR: CheckOptions = CheckOptions {
    repair: true,
    read_data: false,
};

fn silent() -> Progress {
    Progress::silent()
}

async fn open(io: &IoCtx, name: &str) -> Image {
    Image::open(io, ImageKey::Name(name), OpenOptions::read_write())
        .await
        .unwrap()
}

/// An image with bytes in some objects, and a protected snapshot `s`. Gives its id.
async fn make(io: &IoCtx, name: &str) -> String {
    create::create(io, name, &LAYOUT.create(SIZE)).await.unwrap();
    let image = open(io, name).await;
    image.write(0, vec![1; 200_000].into()).await.unwrap();
    image.snap_create("s", &silent()).await.unwrap();
    image.snap_protect("s").await.unwrap();
    image.write(70_000, vec![2; 10].into()).await.unwrap();
    image.write(900_000, vec![3; 10].into()).await.unwrap();
    image.close().await.unwrap();
    directory::id_of_name(io, name).await.unwrap().unwrap()
}

/// An image of format 1 with bytes in some objects, and a snapshot. Gives the prefix of its data objects.
async fn make_format_1(io: &IoCtx, name: &str) -> String {
    let options = CreateOptions {
        format_1: true,
        ..LAYOUT.create(SIZE)
    };
    create::create(io, name, &options).await.unwrap();
    let image = open(io, name).await;
    image.write(0, vec![1; 200_000].into()).await.unwrap();
    image.snap_create("s", &silent()).await.unwrap();
    image.write(70_000, vec![2; 10].into()).await.unwrap();
    image.close().await.unwrap();
    let fixed = header::load_fixed(io, HeaderKey::Name(name.to_owned())).await;
    fixed.unwrap().object_prefix.to_string()
}

/// Changes the list of images of format 1.
async fn change_list(io: &IoCtx, change: impl FnOnce(&mut Tmap)) {
    let op = ReadOp::new().read(0, 1 << 20);
    let found = io.read(names::DIRECTORY, SnapId::HEAD, op).await.unwrap();
    let mut list = Tmap::from_slice(&found.data(0)).unwrap();
    change(&mut list);
    let op = WriteOp::new().write_full(list.to_bytes());
    io.write_meta(names::DIRECTORY, op).await.unwrap();
}

async fn clone_of(io: &IoCtx, parent: &str, child_io: &IoCtx, child: &str, format: CloneFormat) {
    let options = CloneOptions {
        format: Some(format),
        ..CloneOptions::default()
    };
    let snap = SnapKey::Name("s".to_owned());
    clone(io, parent, &snap, child_io, child, &options).await.unwrap();
    let image = open(child_io, child).await;
    image.write(300_000, vec![4; 10].into()).await.unwrap();
    image.close().await.unwrap();
}

async fn find(io: &IoCtx, options: CheckOptions) -> Vec<Finding> {
    let pools = io.store().pool_list().await.unwrap();
    let of = pools.iter().find(|of| of.id == io.pool()).unwrap();
    check::pool(io.store(), of, options).await.unwrap()
}

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

async fn remove_object(io: &IoCtx, object: &str) {
    io.write_meta(object, WriteOp::new().remove()).await.unwrap();
}

async fn remove_keys(io: &IoCtx, object: &str, keys: &[String]) {
    let keys = keys.iter().map(|key| Bytes::from(key.clone())).collect();
    let op = WriteOp::new().step(WriteStep::OmapRemove(keys));
    io.write_meta(object, op).await.unwrap();
}

async fn set_key(io: &IoCtx, object: &str, key: &str, value: Bytes) {
    let op = WriteOp::new().step(WriteStep::OmapSet([(Bytes::from(key.to_owned()), value)].into()));
    io.write_meta(object, op).await.unwrap();
}

/// What a damage must be found as: kind, what the finding names, whether a repair mends it.
type Expected = (&'static str, String, bool);

/// Does each damage to an image of its own.
#[allow(clippy::too_many_lines)] // a table
async fn damage_everything(io: &IoCtx, other: &IoCtx) -> Vec<Expected> {
    let mut expected: Vec<Expected> = Vec::new();
    let mut expect = |kind, name: &str, mended| expected.push((kind, name.to_owned(), mended));
    let dir = names::DIRECTORY;

    make(io, "no-id-object").await;
    remove_object(io, &names::id_object("no-id-object")).await;
    expect("id-object", "no-id-object", true);

    let id = make(io, "wrong-id-object").await;
    let op = WriteOp::new().write_full("nobody".to_owned().to_bytes());
    io.write_meta(&names::id_object("wrong-id-object"), op)
        .await
        .unwrap();
    expect("id-object", &id, false);

    let id = make(io, "no-id-key").await;
    remove_keys(io, dir, &[format!("id_{id}")]).await;
    expect("directory-one-way", "no-id-key", true);

    make(io, "no-name-key").await;
    remove_keys(io, dir, &["name_no-name-key".to_owned()]).await;
    expect("directory-one-way", "no-name-key", true);

    let id = make(io, "unlisted").await;
    remove_keys(io, dir, &[format!("id_{id}"), "name_unlisted".to_owned()]).await;
    expect("directory-unlisted", "unlisted", true);

    let id = make(io, "nameless").await;
    directory::remove(io, "nameless", &id).await.unwrap();
    expect("image-nameless", &id, false);

    set_key(io, dir, "name_garbage", Bytes::from_static(b"\xff\xff\xff\xff")).await;
    expect("directory-entry", "name_garbage", false);

    let id = make(io, "headless").await;
    remove_object(io, &names::header_object(&id)).await;
    expect("header-missing", "headless", false);
    expect("data-stray", &id, false);

    directory::add(io, "nothing", "abcdef0123").await.unwrap();
    expect("name-of-nothing", "nothing", true);
    trash::move_to_trash(io, "abcdef0124", "trashed-nothing", TrashImageSource::User, 0)
        .await
        .unwrap();
    expect("name-of-nothing", "abcdef0124", true);

    let id = make(io, "alias").await;
    let op = WriteOp::new().create(true).class_call(&client::set_id(&id));
    io.write_meta(&names::id_object("old-name"), op).await.unwrap();
    expect("id-object-stray", "old-name", true);

    let id = make(io, "no-size").await;
    remove_keys(io, &names::header_object(&id), &["size".to_owned()]).await;
    expect("header", "no-size", false);

    let id = make(io, "other-prefix").await;
    let prefix = "rbd_data.feed".to_owned().to_bytes();
    set_key(io, &names::header_object(&id), "object_prefix", prefix).await;
    expect("header-prefix", "other-prefix", false);

    let id = make(io, "odd-order").await;
    set_key(
        io,
        &names::header_object(&id),
        "order",
        Bytes::from_static(&[200]),
    )
    .await;
    expect("header", "odd-order", false);

    let id = make(io, "no-map").await;
    remove_object(io, &names::object_map_object(&id, SnapId::HEAD)).await;
    expect("object-map-missing", "no-map", true);

    let id = make(io, "flipped-map").await;
    let snap = header::load(io, &id, true)
        .await
        .unwrap()
        .snap_by_name("s")
        .unwrap()
        .id;
    let op = WriteOp::new().write(18, Bytes::from_static(&[0xaa]));
    io.write_meta(&names::object_map_object(&id, snap), op)
        .await
        .unwrap();
    expect("object-map", "flipped-map", true);

    let id = make(io, "lying-map").await;
    let call = client::object_map_update(0, 1, ObjectState::Nonexistent, None);
    ferry_cls::exec_write(io, &names::object_map_object(&id, SnapId::HEAD), call)
        .await
        .unwrap();
    expect("object-map-wrong", "lying-map", true);

    let id = make(io, "pending-map").await;
    let call = client::object_map_update(0, 1, ObjectState::Pending, None);
    ferry_cls::exec_write(io, &names::object_map_object(&id, SnapId::HEAD), call)
        .await
        .unwrap();
    expect("object-map-pending", "pending-map", true);

    let op = WriteOp::new().create(true);
    io.write_meta("rbd_object_map.cafe01.0000000000000004", op)
        .await
        .unwrap();
    expect("object-map-stray", "cafe01", true);

    let op = || WriteOp::new().write(0, Bytes::from_static(b"whose"));
    for number in 0..3 {
        io.write_meta(&names::data_object("rbd_data.cafe02", number), op())
            .await
            .unwrap();
    }
    expect("data-stray", "3 data objects 'rbd_data.cafe02.*'", false);

    let id = make(io, "beyond").await;
    io.write_meta(&names::data_object(&format!("rbd_data.{id}"), 77), op())
        .await
        .unwrap();
    expect("data-beyond-end", "beyond", false);

    let id = make(io, "forgetful").await;
    let snap = header::load(io, &id, true)
        .await
        .unwrap()
        .snap_by_name("s")
        .unwrap()
        .id;
    clone_of(io, "forgetful", io, "forgotten", CloneFormat::Two).await;
    let child = |id: &str| ChildImageSpec {
        pool_id: io.pool(),
        pool_namespace: String::new(),
        image_id: id.to_owned(),
    };
    let forgotten = directory::id_of_name(io, "forgotten").await.unwrap().unwrap();
    let parent = names::header_object(&id);
    ferry_cls::exec_write(io, &parent, client::child_detach(snap, &child(&forgotten)))
        .await
        .unwrap();
    expect("clone-not-listed", "forgotten", true);

    ferry_cls::exec_write(io, &parent, client::child_attach(snap, &child("bad0")))
        .await
        .unwrap();
    expect("clone-listed", "bad0", true);

    let id = make(io, "lost-parent").await;
    clone_of(io, "lost-parent", other, "orphan", CloneFormat::Two).await;
    remove_object(io, &names::header_object(&id)).await;
    expect("header-missing", "lost-parent", false);

    group::create(io, "g").await.unwrap();
    let group = Group::open(io, "g").await.unwrap();
    let in_group = make(io, "left").await;
    group.add_image(io, "left").await.unwrap();
    let call = client::group_image_remove(&GroupImageSpec {
        image_id: in_group,
        pool_id: io.pool(),
    });
    ferry_cls::exec_write(io, &objects::group_header(group.id()), call)
        .await
        .unwrap();
    expect("group-image", "left", true);

    let in_group = make(io, "went").await;
    group.add_image(io, "went").await.unwrap();
    remove_keys(
        io,
        &names::header_object(&in_group),
        &["rbd_group_ref".to_owned()],
    )
    .await;
    expect("group-image", &in_group, true);

    damage_format_1(io, &mut expect).await;

    io.write_meta(&objects::group_header("cafe03"), WriteOp::new().create(true))
        .await
        .unwrap();
    expect("group-header-stray", "cafe03", true);

    group::create(io, "lost").await.unwrap();
    let lost = Group::open(io, "lost").await.unwrap();
    make(io, "lost-member").await;
    lost.add_image(io, "lost-member").await.unwrap();
    let call = client::group_dir_remove("lost", lost.id());
    ferry_cls::exec_write(io, objects::GROUP_DIRECTORY, call)
        .await
        .unwrap();
    expect("group-header-stray", lost.id(), false);
    expect("group-image", "lost-member", false);

    let id = make(io, "part").await;
    let part = SnapshotNamespace::Group {
        group_pool: io.pool(),
        group_id: group.id().to_owned(),
        group_snapshot_id: "none".to_owned(),
    };
    let snap = io.store().snap_id_create(io.pool()).await.unwrap();
    let call = client::snapshot_add(".group.x", snap, &part);
    ferry_cls::exec_write(io, &names::header_object(&id), call)
        .await
        .unwrap();
    expect("group-snapshot-part", "part", false);
    // It came without a map.
    expect("object-map-missing", "part", true);
    expected
}

async fn damage_format_1(io: &IoCtx, expect: &mut impl FnMut(&'static str, &str, bool)) {
    make_format_1(io, "old-unlisted").await;
    change_list(io, |list| drop(list.entries.remove("old-unlisted"))).await;
    expect("directory-unlisted", "old-unlisted", true);

    change_list(io, |list| {
        drop(list.entries.insert("old-nothing".to_owned(), Bytes::new()));
    })
    .await;
    expect("name-of-nothing", "old-nothing", true);

    let prefix = make_format_1(io, "old-broken").await;
    let op = WriteOp::new().write_full(Bytes::from_static(HEADER_TEXT));
    io.write_meta(&names::v1_header_object("old-broken"), op)
        .await
        .unwrap();
    expect("header", "old-broken", false);
    expect("data-stray", &prefix, false);

    let prefix = make_format_1(io, "old-headless").await;
    remove_object(io, &names::v1_header_object("old-headless")).await;
    expect("name-of-nothing", "old-headless", true);
    expect("data-stray", &prefix, false);

    let prefix = make_format_1(io, "old-beyond").await;
    let op = WriteOp::new().write(0, Bytes::from_static(b"whose"));
    io.write_meta(&names::v1_data_object(&prefix, 99), op)
        .await
        .unwrap();
    expect("data-beyond-end", "old-beyond", false);

    // Called like a header, and none.
    let op = WriteOp::new().write(0, Bytes::from_static(b"what"));
    io.write_meta("what.rbd", op).await.unwrap();
}

fn says(found: &Finding, (kind, names, _): &Expected) -> bool {
    found.kind == *kind && (found.place.contains(names.as_str()) || found.what.contains(names.as_str()))
}

fn as_text(found: &[Finding]) -> String {
    let line = |found: &Finding| {
        format!(
            "{:?} {} [{}] {} | {} | mended {}\n",
            found.gravity, found.place, found.kind, found.what, found.advice, found.mended
        )
    };
    found.iter().map(line).collect()
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
