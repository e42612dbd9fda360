//! Images with all that a check looks at, and every damage that it finds.

use bytes::Bytes;
use ferry_cls::CallExt as _;
use ferry_cls::encoding::{Decode as _, Encode as _};
use ferry_cls::rbd::v1::{HEADER_TEXT, Tmap};
use ferry_cls::rbd::{
    ChildImageSpec, GroupImageSpec, ObjectState, SnapshotNamespace, TrashImageSource, client,
    names as objects,
};
use ferry_image::admin::create::CreateOptions;
use ferry_image::admin::{create, directory, trash};
use ferry_image::group::{self, Group};
use ferry_image::header::HeaderKey;
use ferry_image::layering::clone::{CloneFormat, CloneOptions, clone};
use ferry_image::{Image, ImageKey, OpenOptions, Progress, SnapKey, check, header, names};
use ferry_store::check::{CheckOptions, Finding};
use ferry_store::{IoCtx, ReadOp, SnapId, WriteOp, WriteStep};

use super::TestLayout;

pub const SIZE: u64 = 1 << 20;
/// Objects of 64 KiB.
pub const LAYOUT: TestLayout = TestLayout(16, 0, 0);
pub const REPAIR: CheckOptions = CheckOptions {
    repair: true,
    read_data: false,
};

pub fn silent() -> Progress {
    Progress::silent()
}

pub async fn open(io: &IoCtx, name: &str) -> Image {
    Image::open(io, ImageKey::Name(name), OpenOptions::read_write())
        .await
        .unwrap()
}

/// An image with bytes in some objects, and a protected snapshot `s`. Gives its id.
pub async fn make(io: &IoCtx, name: &str) -> String {
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
pub async fn make_format_1(io: &IoCtx, name: &str) -> String {
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

pub async fn clone_of(io: &IoCtx, parent: &str, child_io: &IoCtx, child: &str, format: CloneFormat) {
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

pub async fn find(io: &IoCtx, options: CheckOptions) -> Vec<Finding> {
    let pools = io.store().pool_list().await.unwrap();
    let of = pools.iter().find(|of| of.id == io.pool()).unwrap();
    check::pool(io.store(), of, options).await.unwrap()
}

pub async fn remove_object(io: &IoCtx, object: &str) {
    io.write_meta(object, WriteOp::new().remove()).await.unwrap();
}

pub async fn remove_keys(io: &IoCtx, object: &str, keys: &[String]) {
    let keys = keys.iter().map(|key| Bytes::from(key.clone())).collect();
    let op = WriteOp::new().step(WriteStep::OmapRemove(keys));
    io.write_meta(object, op).await.unwrap();
}

pub async fn set_key(io: &IoCtx, object: &str, key: &str, value: Bytes) {
    let op = WriteOp::new().step(WriteStep::OmapSet([(Bytes::from(key.to_owned()), value)].into()));
    io.write_meta(object, op).await.unwrap();
}

/// What a damage must be found as: kind, what the finding names, whether a repair mends it.
pub type Expected = (&'static str, String, bool);

/// Does each damage to an image of its own.
#[allow(clippy::too_many_lines)] // a table
pub async fn damage_everything(io: &IoCtx, other: &IoCtx) -> Vec<Expected> {
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

pub fn says(found: &Finding, (kind, names, _): &Expected) -> bool {
    found.kind == *kind && (found.place.contains(names.as_str()) || found.what.contains(names.as_str()))
}

pub fn as_text(found: &[Finding]) -> String {
    let line = |found: &Finding| {
        format!(
            "{:?} {} [{}] {} | {} | mended {}\n",
            found.gravity, found.place, found.kind, found.what, found.advice, found.mended
        )
    };
    found.iter().map(line).collect()
}
