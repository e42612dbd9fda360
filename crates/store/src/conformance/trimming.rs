//! Cases: snapshot ids, and what becomes of clones when ids are given up.

use super::fixture::{
    Fixture, Outcome, content, context, ensure, ensure_eq, ensure_errno, eventually, head, pattern,
};
use super::snapshots::{clone, head_of};
use crate::types::SnapId;

pub(super) async fn snapshot_ids_grow_and_are_never_given_twice(t: Fixture) -> Outcome {
    let mut last = t.snap().await?;
    for round in 0..6 {
        let io = if round % 2 == 0 { &t.b } else { &t.a };
        let id = io.store().snap_id_create(io.pool()).await?;
        ensure!(id > last && id <= SnapId::MAX, "id {id} after {last}");
        io.store().snap_id_remove(io.pool(), id).await?;
        last = id;
    }
    Ok(())
}

pub(super) async fn removing_the_only_snapshot_of_a_clone_takes_the_clone_away(t: Fixture) -> Outcome {
    t.a.write_meta("o", t.op().write(0, pattern(1, 9000))).await?;
    t.a.write_meta("gone", t.op().write(0, "x")).await?;
    let id = t.snap().await?;
    t.a.write("o", &context(&[id]), t.op().write(0, "y")).await?;
    t.a.write("gone", &context(&[id]), t.op().remove()).await?;
    t.store().snap_id_remove(t.a.pool(), id).await?;
    t.store().snap_id_remove(t.a.pool(), id).await?;
    eventually("the clone of the removed snapshot goes away", || async {
        Ok(t.listed("o").await?.clones == vec![head_of(9000)])
    })
    .await?;
    eventually("an object without head and clones leaves the listing", || async {
        Ok(t.store().list_objects(t.scope(), "", "", 10).await? == vec!["o".to_owned()])
    })
    .await?;
    ensure_errno!(t.b.list_snaps("gone", &[id]).await, ENOENT);
    ensure_eq!(
        &head(&t.b, "o").await?[..2],
        &[b'y', pattern(1, 2)[1]][..],
        "content of the head"
    );
    Ok(())
}

pub(super) async fn a_clone_lives_until_its_last_snapshot_is_removed(t: Fixture) -> Outcome {
    t.a.write_meta("o", t.op().write(0, "old")).await?;
    let ids: [SnapId; 3] = t.snaps().await?;
    t.a.write("o", &context(&ids), t.op().write(0, "new")).await?;
    for (id, left) in [(ids[1], vec![ids[0], ids[2]]), (ids[2], vec![ids[0]])] {
        t.store().snap_id_remove(t.a.pool(), id).await?;
        eventually("the clone no longer serves the removed snapshot", || async {
            let clones = t.listed("o").await?.clones;
            Ok(clones.len() == 2 && clones[0].snaps == left)
        })
        .await?;
        ensure_eq!(
            content(&t.b, "o", ids[0]).await?,
            Some("old".into()),
            "content at the first"
        );
    }
    t.store().snap_id_remove(t.a.pool(), ids[0]).await?;
    eventually("the clone goes away", || async {
        Ok(t.listed("o").await?.clones == vec![head_of(3)])
    })
    .await
}

pub(super) async fn trimming_a_middle_clone_joins_the_overlaps(t: Fixture) -> Outcome {
    let grain = t.grain_bytes();
    let mut ids = Vec::new();
    t.a.write_meta("o", t.op().write(0, t.grains(1, 100))).await?;
    for (offset, length) in [(0, 10), (20, 10), (50, 50)] {
        ids.push(t.snap().await?);
        t.a.write(
            "o",
            &context(&ids),
            t.op().write(offset * grain, t.grains(offset as u8 + 2, length)),
        )
        .await?;
    }
    let old = content(&t.a, "o", ids[0]).await?;
    t.store().snap_id_remove(t.a.pool(), ids[1]).await?;
    let expected = vec![
        clone(
            ids[0],
            &[ids[0]],
            &[(10 * grain, 10 * grain), (30 * grain, 70 * grain)],
            100 * grain,
        ),
        clone(ids[2], &[ids[2]], &[(0, 50 * grain)], 100 * grain),
        head_of(100 * grain),
    ];
    eventually("the middle clone goes away", || async {
        Ok(t.listed("o").await?.clones.len() == 3)
    })
    .await?;
    ensure_eq!(
        t.listed("o").await?.clones,
        t.told_clones(expected),
        "list_snaps without the middle clone"
    );
    ensure_eq!(content(&t.b, "o", ids[0]).await?, old, "content at the first");
    t.store().snap_id_remove(t.a.pool(), ids[2]).await?;
    let expected = vec![
        clone(
            ids[0],
            &[ids[0]],
            &[(10 * grain, 10 * grain), (30 * grain, 20 * grain)],
            100 * grain,
        ),
        head_of(100 * grain),
    ];
    eventually("the newest clone goes away", || async {
        Ok(t.listed("o").await?.clones.len() == 2)
    })
    .await?;
    ensure_eq!(
        t.listed("o").await?.clones,
        t.told_clones(expected),
        "list_snaps without the newest clone"
    );
    ensure_eq!(content(&t.b, "o", ids[0]).await?, old, "content at the first");
    Ok(())
}

pub(super) async fn a_stale_context_makes_no_clone_for_a_removed_snapshot(t: Fixture) -> Outcome {
    t.a.write_meta("o", t.op().write(0, "old")).await?;
    let [kept, removed] = t.snaps().await?;
    t.store().snap_id_remove(t.a.pool(), removed).await?;
    t.a.write("o", &context(&[kept, removed]), t.op().write(0, "new"))
        .await?;
    eventually("no clone serves the removed snapshot", || async {
        let clones = t.listed("o").await?.clones;
        Ok(clones.len() == 2 && clones[0].snaps == vec![kept])
    })
    .await?;
    ensure_eq!(
        content(&t.b, "o", kept).await?,
        Some("old".into()),
        "content at the living snapshot"
    );
    Ok(())
}
