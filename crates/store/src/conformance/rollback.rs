//! Cases: making the head as it was at a snapshot.

use bytes::Bytes;

use super::fixture::{
    Fixture, Outcome, content, context, ensure, ensure_eq, head, omap, pattern, version, xattr,
};
use crate::IoCtx;
use crate::op::{Durability, WriteStep};
use crate::types::{SnapContext, SnapId};

async fn roll_back(io: &IoCtx, snapc: &SnapContext, snap: SnapId) -> Outcome {
    Ok(io
        .store()
        .rollback(io.object("o"), snapc, snap, Durability::Full)
        .await?)
}

pub(super) async fn rollback_brings_back_data_keys_and_xattrs(t: Fixture) -> Outcome {
    let keys = |value: &'static str| WriteStep::OmapSet([("k".into(), value.into())].into());
    let attribute = |value: &'static str| WriteStep::SetXattr {
        name: "x".into(),
        value: value.into(),
    };
    t.a.write_meta(
        "o",
        t.op()
            .write(0, pattern(1, 20_000))
            .step(keys("1"))
            .step(attribute("1")),
    )
    .await?;
    let id = t.snap().await?;
    let now = context(&[id]);
    t.a.write(
        "o",
        &now,
        t.op()
            .write(500, pattern(2, 30_000))
            .step(keys("2"))
            .step(attribute("2")),
    )
    .await?;
    let before = version(&t.a, "o").await?;
    roll_back(&t.a, &now, id).await?;
    ensure_eq!(head(&t.b, "o").await?, pattern(1, 20_000), "data");
    ensure_eq!(
        omap(&t.b, "o", SnapId::HEAD).await?,
        vec![("k".into(), "1".into())],
        "omap"
    );
    ensure_eq!(xattr(&t.b, "o", "x").await?, Some("1".into()), "xattr");
    ensure!(
        version(&t.b, "o").await? > before,
        "a rollback is a change of the head"
    );
    ensure_eq!(
        content(&t.b, "o", id).await?,
        Some(pattern(1, 20_000)),
        "content at the snapshot"
    );
    t.a.write("o", &now, t.op().write(0, "after")).await?;
    ensure_eq!(
        content(&t.b, "o", id).await?,
        Some(pattern(1, 20_000)),
        "content at the snapshot after a write"
    );
    Ok(())
}

pub(super) async fn rollback_keeps_what_newer_snapshots_hold(t: Fixture) -> Outcome {
    t.a.write_meta("o", t.op().write(0, "first")).await?;
    let first = t.snap().await?;
    t.a.write("o", &context(&[first]), t.op().write_full("second"))
        .await?;
    let second = t.snap().await?;
    roll_back(&t.a, &context(&[first, second]), first).await?;
    ensure_eq!(head(&t.b, "o").await?, "first", "head");
    ensure_eq!(
        content(&t.b, "o", second).await?,
        Some("second".into()),
        "content at the second"
    );
    roll_back(&t.b, &context(&[first, second]), second).await?;
    ensure_eq!(head(&t.b, "o").await?, "second", "head");
    ensure_eq!(
        content(&t.b, "o", first).await?,
        Some("first".into()),
        "content at the first"
    );
    Ok(())
}

pub(super) async fn rollback_to_a_time_without_the_object_removes_it(t: Fixture) -> Outcome {
    let id = t.snap().await?;
    t.a.write("o", &context(&[id]), t.op().write(0, "younger"))
        .await?;
    roll_back(&t.a, &context(&[id]), id).await?;
    ensure_eq!(content(&t.b, "o", SnapId::HEAD).await?, None, "head");
    Ok(())
}

pub(super) async fn rollback_where_nothing_was_and_nothing_is_does_nothing(t: Fixture) -> Outcome {
    let id = t.snap().await?;
    roll_back(&t.a, &context(&[id]), id).await?;
    ensure_eq!(content(&t.b, "o", SnapId::HEAD).await?, None, "head");
    ensure_eq!(
        t.store().list_objects(t.scope(), "", "", 10).await?,
        Vec::<String>::new(),
        "listing"
    );
    Ok(())
}

pub(super) async fn rollback_revives_a_removed_head(t: Fixture) -> Outcome {
    t.a.write_meta("o", t.op().write(0, pattern(1, 5000))).await?;
    let id = t.snap().await?;
    t.a.write("o", &context(&[id]), t.op().remove()).await?;
    roll_back(&t.a, &context(&[id]), id).await?;
    ensure_eq!(head(&t.b, "o").await?, pattern(1, 5000), "head");
    t.a.write(
        "o",
        &context(&[id]),
        t.op().write(0, Bytes::from_static(b"changed")),
    )
    .await?;
    ensure_eq!(
        content(&t.b, "o", id).await?,
        Some(pattern(1, 5000)),
        "content at the snapshot"
    );
    Ok(())
}

pub(super) async fn rollback_to_what_the_head_still_is_changes_nothing(t: Fixture) -> Outcome {
    t.a.write_meta("o", t.op().write(0, "same")).await?;
    let id = t.snap().await?;
    roll_back(&t.a, &context(&[id]), id).await?;
    ensure_eq!(head(&t.b, "o").await?, "same", "head");
    ensure_eq!(
        content(&t.b, "o", id).await?,
        Some("same".into()),
        "content at the snapshot"
    );
    t.a.write("o", &context(&[id]), t.op().write(0, "diff")).await?;
    ensure_eq!(
        content(&t.b, "o", id).await?,
        Some("same".into()),
        "content at the snapshot after a write"
    );
    Ok(())
}

pub(super) async fn overlaps_after_a_rollback_hold_only_equal_bytes(t: Fixture) -> Outcome {
    t.a.write_meta("o", t.op().write(0, pattern(1, 1000))).await?;
    let mut ids = Vec::new();
    for (offset, length) in [(100, 100), (300, 500)] {
        ids.push(t.snap().await?);
        t.a.write(
            "o",
            &context(&ids),
            t.op().write(offset, pattern(offset as u8, length)),
        )
        .await?;
    }
    ids.push(t.snap().await?);
    roll_back(&t.a, &context(&ids), ids[0]).await?;
    ensure_eq!(head(&t.b, "o").await?, pattern(1, 1000), "head");
    super::model::check_overlaps(&t.b, "o", &ids).await
}
