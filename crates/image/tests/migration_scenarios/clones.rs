//! Clones that move, and parents that move under their clones, also when a process died between the links that make a clone one.

use ferry_cls::rbd::{ChildImageSpec, ParentImageSpec, client};
use ferry_image::admin::{info, remove};
use ferry_image::layering::clone::CloneFormat;
use ferry_image::{Image, ImageKey, OpenOptions, Progress};
use ferry_store::{IoCtx, SnapId};

use super::scene::{At, Contents, PIECE_BYTES, Place, Scene, everywhere};
use super::support::reference::compare_version;

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_of_a_clone_moves_with_what_each_of_them_changed() {
    everywhere(&[Contents::Nothing], async |scene| {
        scene.write(0, PIECE_BYTES, 1).await;
        scene.write(2 * PIECE_BYTES, PIECE_BYTES, 1).await;
        scene.snap("s").await;
        scene.become_clone("s", "child").await;
        scene.write(0, 1_000, 2).await;
        scene.discard(1_010, 1_000).await;
        scene.snap("s").await;
        scene.become_clone("s", "grandchild").await;
        scene.write(1_000, 1_000, 3).await;
        scene.discard(2_010, 1_000).await;
        scene.migrate(Place::Here).await;
        let child = At {
            io: scene.io.clone(),
            name: "child".to_owned(),
        };
        assert_eq!(scene.children(&child).await, ["grandchild"]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_names_the_parent_of_its_source() {
    everywhere(&[Contents::Plain], async |scene| {
        scene.snap("s").await;
        let id = scene.client().await.id().to_owned();
        scene.become_clone("s", "child").await;
        scene.prepare(Place::Here).await;
        let io = scene.by_verbs(&scene.now);
        let shown = info::info(&io, ImageKey::Name("child"), None).await.unwrap();
        let parent = shown.parent.unwrap();
        assert_eq!(
            (&*parent.image, &*parent.image_id, &*parent.snapshot),
            ("image", &*id, "s")
        );
        scene.abort(true).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_of_one_byte_to_a_target_keeps_what_the_parent_shows_around_it() {
    everywhere(&[Contents::Nothing], async |scene| {
        scene.write(0, 10, 1).await;
        scene.snap("s").await;
        scene.become_clone("s", "child").await;
        scene.prepare(Place::Here).await;
        scene.write(0, 1, 2).await;
        scene.finish().await;
    })
    .await;
}

/// Plays with a clone of the image, which another client has open.
async fn with_a_clone(play: impl AsyncFn(&mut Scene)) {
    for format in [CloneFormat::One, CloneFormat::Two] {
        everywhere(&[Contents::Nothing], async |scene| {
            scene.write(0, 10, 1).await;
            scene.snap("s").await;
            scene.clone_of("s", "child", format).await;
            let shown = scene.reference.head.clone();
            let child = Image::open(&scene.io, ImageKey::Name("child"), OpenOptions::read_write())
                .await
                .unwrap();
            play(scene).await;
            child.refresh().await.unwrap();
            compare_version(&child, &shown, "the open clone").await;
            child.close().await.unwrap();
            assert_eq!(scene.children(&scene.now).await, ["child"]);
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parent_moves_under_its_open_clone() {
    with_a_clone(async |scene| scene.migrate(Place::Here).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parent_comes_back_under_its_open_clone() {
    with_a_clone(async |scene| {
        scene.prepare(Place::Here).await;
        scene.abort(true).await;
    })
    .await;
}

/// What the links between a parent and its clone say, which the source lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Links {
    /// Whether the clone names the source; if not, the target.
    names_source: bool,
    /// Whether the target lists it too.
    target_lists_it: bool,
}

/// Whether a parent lists the clone.
async fn list(io: &IoCtx, parent: &ParentImageSpec, child: &str, format: CloneFormat, is_listed: bool) {
    let (object, call) = match format {
        CloneFormat::One if is_listed => ("rbd_children".to_owned(), client::add_child(parent, child)),
        CloneFormat::One => ("rbd_children".to_owned(), client::remove_child(parent, child)),
        CloneFormat::Two => {
            let spec = ChildImageSpec {
                pool_id: io.pool(),
                pool_namespace: io.scope().namespace.to_string(),
                image_id: child.to_owned(),
            };
            let call = match is_listed {
                true => client::child_attach(parent.snap_id, &spec),
                false => client::child_detach(parent.snap_id, &spec),
            };
            (format!("rbd_header.{}", parent.image_id), call)
        }
    };
    ferry_cls::exec_write(io, &object, call).await.unwrap();
}

/// Leaves the links of a prepared parent's clone as a death of the process that moved them would.
async fn leave(scene: &mut Scene, format: CloneFormat, links: Links) {
    let status = scene.status().await;
    let io = scene.io.clone();
    let snap_of = async |id: &str| -> SnapId {
        let image = Image::open(
            &io,
            ImageKey::Id(id),
            OpenOptions::read_only().ignoring_migration(),
        )
        .await
        .unwrap();
        let snap = image.header().snap_by_name("s").unwrap().id;
        image.close().await.unwrap();
        snap
    };
    let mut specs = Vec::new();
    for id in [&status.source.image_id, &status.dest.image_id] {
        specs.push(ParentImageSpec {
            pool_id: io.pool(),
            pool_namespace: io.scope().namespace.to_string(),
            image_id: id.clone(),
            snap_id: snap_of(id).await,
        });
    }
    let [source, target] = &specs[..] else {
        unreachable!()
    };
    let child = Image::open(&io, ImageKey::Name("child"), OpenOptions::read_only())
        .await
        .unwrap();
    let id = child.id().to_owned();
    let overlap = child.header().parent.as_ref().unwrap().head_overlap_bytes;
    child.close().await.unwrap();
    if links.names_source {
        let call = client::parent_attach(source, overlap.unwrap(), true);
        ferry_cls::exec_write(&io, &format!("rbd_header.{id}"), call)
            .await
            .unwrap();
    }
    list(&io, source, &id, format, true).await;
    if !links.target_lists_it {
        list(&io, target, &id, format, false).await;
    }
}

/// Whatever links there are, an abort makes the clone one of the source and of nothing else.
async fn abort_repairs(links: Links) {
    for format in [CloneFormat::One, CloneFormat::Two] {
        everywhere(&[Contents::Nothing], async |scene| {
            scene.write(0, 10, 1).await;
            scene.snap("s").await;
            scene.clone_of("s", "child", format).await;
            let shown = scene.reference.head.clone();
            scene.prepare(Place::Here).await;
            scene.close().await;
            leave(scene, format, links).await;
            scene.abort(true).await;
            assert_eq!(scene.children(&scene.now).await, ["child"]);
            let child = Image::open(&scene.io, ImageKey::Name("child"), OpenOptions::read_write())
                .await
                .unwrap();
            compare_version(&child, &shown, "the clone").await;
            child.close().await.unwrap();
            // No list keeps it.
            let silent = Progress::silent();
            remove::remove(&scene.io, "child", &silent).await.unwrap();
            let parent = scene.client().await;
            parent.snap_unprotect("s").await.unwrap();
            parent.snap_remove("s", &silent).await.unwrap();
            assert!(parent.header().snaps.is_empty());
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_that_both_images_list_is_the_source_s_after_an_abort() {
    abort_repairs(Links {
        names_source: false,
        target_lists_it: true,
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_that_names_the_target_and_only_the_source_lists_is_the_source_s_after_an_abort() {
    abort_repairs(Links {
        names_source: false,
        target_lists_it: false,
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_that_was_not_moved_yet_stays_the_source_s_after_an_abort() {
    abort_repairs(Links {
        names_source: true,
        target_lists_it: false,
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_that_names_the_source_and_both_images_list_is_the_source_s_after_an_abort() {
    abort_repairs(Links {
        names_source: true,
        target_lists_it: true,
    })
    .await;
}
