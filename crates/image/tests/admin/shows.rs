//! What is shown: listings, locks, usage.

use bytes::Bytes;
use ferry_cls::rbd::feature;
use ferry_image::admin::locks::LockShape;
use ferry_image::admin::{info, list, locks, status, usage};
use ferry_image::{ImageKey, SnapKey};

use super::{MIB, image_with_history, make, open, rbd, silent};

async fn listings_show_snapshots_and_locks(on: &str) {
    let (_engine, io) = rbd(on).await;
    make(&io, "b").await;
    make(&io, "a").await;
    let image = open(&io, "a").await;
    image.write(0, Bytes::from_static(b"x")).await.unwrap();
    for snap in ["s2", "s1"] {
        image.snap_create(snap, &silent()).await.unwrap();
    }
    image.snap_protect("s1").await.unwrap();
    let listing = list::long(&io).await.unwrap();
    let rows: Vec<_> = listing
        .entries
        .iter()
        .map(|entry| {
            (
                entry.name.as_str(),
                entry.snapshot.as_ref().map(|(name, _)| name.as_str()),
                entry.protected,
                entry.lock,
            )
        })
        .collect();
    let excl = Some(LockShape::Exclusive);
    assert_eq!(
        rows,
        [
            ("a", None, false, excl),
            ("a", Some("s2"), false, None),
            ("a", Some("s1"), true, None),
            ("b", None, false, None)
        ]
    );
    assert!(listing.failed.is_empty());
    let held = locks::list(&io, "a").await.unwrap().unwrap();
    assert_eq!(
        (held.shape, held.tag.as_str(), held.lockers.len()),
        (LockShape::Exclusive, "internal", 1)
    );
    assert_eq!(held.lockers[0].client, io.store().instance().to_string());
    assert!(held.lockers[0].cookie.starts_with("auto "), "{held:?}");
    let watchers = status::status(&io, ImageKey::Name("a")).await.unwrap().watchers;
    assert_eq!(watchers.len(), 1);
    let at = info::info(&io, ImageKey::Name("a"), Some(&SnapKey::Name("s1".into())))
        .await
        .unwrap();
    assert_eq!((at.protected, at.snapshot_count), (Some(true), 2));
    image.close().await.unwrap();
    assert_eq!(locks::list(&io, "a").await.unwrap(), None);
    assert_eq!(
        status::status(&io, ImageKey::Name("a")).await.unwrap().watchers,
        []
    );
}

async fn a_damaged_header_is_named_and_does_not_hide_the_others(on: &str) {
    let (_engine, io) = rbd(on).await;
    make(&io, "a").await;
    let id = make(&io, "b").await;
    let key = Bytes::from_static(b"snap_seq");
    let op = ferry_store::WriteOp::new().step(ferry_store::WriteStep::OmapSet(
        [(key, Bytes::from_static(b"?"))].into_iter().collect(),
    ));
    io.write_meta(&format!("rbd_header.{id}"), op).await.unwrap();
    let listing = list::long(&io).await.unwrap();
    assert_eq!(listing.entries.len(), 1);
    assert_eq!((listing.failed.len(), listing.failed[0].0.as_str()), (1, "b"));
}

fn used(usage: &usage::ImageUsage) -> Vec<u64> {
    usage.rows.iter().map(|row| row.used_bytes).collect()
}

async fn usage_is_what_was_written_since_the_snapshot_before(on: &str) {
    for features in [None, Some(feature::LAYERING)] {
        let (_engine, io) = rbd(on).await;
        let image = image_with_history(&io, features).await;
        let whole = usage::usage(&io, "a", None, false).await.unwrap();
        assert_eq!(whole.from_object_maps, features.is_none());
        assert_eq!(used(&whole), [2 * MIB + 4096, MIB, MIB], "{features:?}");
        let names: Vec<_> = whole
            .rows
            .iter()
            .map(|row| row.snapshot.as_ref().map(|snap| &snap.0[..]))
            .collect();
        assert_eq!(names, [Some("s1"), Some("s2"), None]);
        assert!(
            whole
                .rows
                .iter()
                .all(|row| row.provisioned_bytes == 5 * MIB + 4096)
        );
        let exact = usage::usage(&io, "a", None, true).await.unwrap();
        assert_eq!(used(&exact), [16384, 4096, 4096], "{features:?}");
        let one = usage::usage(&io, "a", Some(&SnapKey::Name("s2".into())), false)
            .await
            .unwrap();
        assert_eq!(used(&one), [2 * MIB + 4096, MIB], "up to the snapshot");
        image.close().await.unwrap();
    }
}

on_every_engine! {
    listings_show_snapshots_and_locks,
    a_damaged_header_is_named_and_does_not_hide_the_others,
    usage_is_what_was_written_since_the_snapshot_before,
}
