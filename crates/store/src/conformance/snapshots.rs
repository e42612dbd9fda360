//! Cases: clones, overlaps, reads at snapshots, what `list_snaps` tells.

use bytes::Bytes;

use super::fixture::{
    Fixture, Outcome, content, context, ensure, ensure_eq, ensure_errno, head, omap, pattern, xattr,
};
use crate::op::{ReadOp, ReadStep, WriteStep};
use crate::types::{CloneInfo, Extent, SnapContext, SnapId, SnapSet};

pub(super) fn clone(id: SnapId, snaps: &[SnapId], overlap: &[(u64, u64)], size_bytes: u64) -> CloneInfo {
    CloneInfo {
        id,
        snaps: snaps.to_vec(),
        overlap: (!id.is_head()).then(|| {
            let extents = overlap.iter();
            extents
                .map(|(offset, length)| Extent::new(*offset, *length))
                .collect()
        }),
        size_bytes,
    }
}

pub(super) fn head_of(size_bytes: u64) -> CloneInfo {
    clone(SnapId::HEAD, &[], &[], size_bytes)
}

pub(super) async fn the_first_write_after_a_snapshot_keeps_the_old_bytes(t: Fixture) -> Outcome {
    t.a.write_meta("o", t.op().write(0, pattern(1, 9000))).await?;
    let id = t.snap().await?;
    t.a.write("o", &context(&[id]), t.op().write(4000, pattern(2, 100)))
        .await?;
    t.b.write("o", &context(&[id]), t.op().write(0, pattern(3, 100)))
        .await?;
    ensure_eq!(
        content(&t.b, "o", id).await?,
        Some(pattern(1, 9000)),
        "content at the snapshot"
    );
    let mut now = pattern(1, 9000).to_vec();
    now[4000..4100].copy_from_slice(&pattern(2, 100));
    now[..100].copy_from_slice(&pattern(3, 100));
    ensure_eq!(head(&t.b, "o").await?, now, "content of the head");
    Ok(())
}

pub(super) async fn buffered_writes_keep_the_old_bytes_too(t: Fixture) -> Outcome {
    t.a.write_meta("o", t.buffered().write(0, pattern(1, 50_000)))
        .await?;
    let id = t.snap().await?;
    t.a.write("o", &context(&[id]), t.buffered().write(1000, pattern(2, 9000)))
        .await?;
    t.a.write("o", &context(&[id]), t.buffered().zero(20_000, 9000))
        .await?;
    ensure_eq!(
        content(&t.b, "o", id).await?,
        Some(pattern(1, 50_000)),
        "content at the snapshot"
    );
    Ok(())
}

pub(super) async fn an_unwritten_object_serves_later_snapshots_from_its_head(t: Fixture) -> Outcome {
    t.a.write_meta("o", t.op().write(0, "same")).await?;
    let [first, second] = t.snaps().await?;
    ensure_eq!(
        content(&t.b, "o", first).await?,
        Some("same".into()),
        "content at the first"
    );
    ensure_eq!(
        content(&t.b, "o", second).await?,
        Some("same".into()),
        "content at the second"
    );
    let expected = SnapSet {
        seq: 0,
        clones: vec![head_of(4)],
    };
    ensure_eq!(t.listed("o").await?, t.told(expected), "list_snaps");
    Ok(())
}

pub(super) async fn one_clone_serves_all_snapshots_since_the_last_write(t: Fixture) -> Outcome {
    let grain = t.grain_bytes();
    let [first, second, third] = t.snaps().await?;
    t.a.write("o", &context(&[first]), t.op().write(0, t.grains(1, 100)))
        .await?;
    t.a.write(
        "o",
        &context(&[first, second, third]),
        t.op().write(0, t.grains(2, 1)),
    )
    .await?;
    let expected = SnapSet {
        seq: third.0,
        clones: vec![
            clone(third, &[second, third], &[(grain, 99 * grain)], 100 * grain),
            head_of(100 * grain),
        ],
    };
    ensure_eq!(t.listed("o").await?, t.told(expected), "list_snaps");
    ensure_eq!(
        content(&t.b, "o", first).await?,
        None,
        "the object is younger than the first snapshot"
    );
    ensure_eq!(
        content(&t.b, "o", second).await?,
        Some(t.grains(1, 100)),
        "content at the second"
    );
    ensure_eq!(
        content(&t.b, "o", third).await?,
        Some(t.grains(1, 100)),
        "content at the third"
    );
    Ok(())
}

pub(super) async fn the_clone_is_named_by_the_sequence_of_the_context(t: Fixture) -> Outcome {
    t.a.write_meta("o", t.op().write(0, "old")).await?;
    let [first, second, third] = t.snaps().await?;
    let newer_seq = SnapContext::new(third.0, vec![second, first]).unwrap_or_default();
    t.a.write("o", &newer_seq, t.op().write(0, "new")).await?;
    let expected = SnapSet {
        seq: third.0,
        clones: vec![clone(third, &[first, second], &[], 3), head_of(3)],
    };
    ensure_eq!(t.listed("o").await?, t.told(expected), "list_snaps");
    ensure_eq!(
        content(&t.b, "o", second).await?,
        Some("old".into()),
        "content at the second"
    );
    Ok(())
}

pub(super) async fn a_newer_sequence_without_newer_snapshots_makes_no_clone(t: Fixture) -> Outcome {
    let [first, second] = t.snaps().await?;
    t.a.write("o", &context(&[first]), t.op().write(0, "old")).await?;
    let raised = SnapContext::new(second.0, vec![first]).unwrap_or_default();
    t.a.write("o", &raised, t.op().write(0, "new")).await?;
    let expected = SnapSet {
        seq: second.0,
        clones: vec![head_of(3)],
    };
    ensure_eq!(t.listed("o").await?, t.told(expected), "list_snaps");
    Ok(())
}

pub(super) async fn the_first_write_of_a_missing_object_makes_no_clone(t: Fixture) -> Outcome {
    let [first, second] = t.snaps().await?;
    t.a.write("o", &context(&[first, second]), t.op().write(0, "new"))
        .await?;
    let expected = SnapSet {
        seq: second.0,
        clones: vec![head_of(3)],
    };
    ensure_eq!(t.listed("o").await?, t.told(expected), "list_snaps");
    ensure_eq!(
        content(&t.b, "o", second).await?,
        None,
        "the object is younger than the snapshot"
    );
    let later = t.snap().await?;
    ensure_eq!(
        content(&t.b, "o", later).await?,
        Some("new".into()),
        "content at a later snapshot"
    );
    Ok(())
}

pub(super) async fn a_write_with_an_older_context_goes_to_the_head_under_the_newer(t: Fixture) -> Outcome {
    let grain = t.grain_bytes();
    let byte = |letter: u8| vec![letter; grain as usize];
    let [first, second] = t.snaps().await?;
    t.a.write_meta(
        "o",
        t.op()
            .write(0, [byte(b'a'), byte(b'a'), byte(b'a'), byte(b'a')].concat()),
    )
    .await?;
    t.a.write("o", &context(&[first, second]), t.op().write(0, byte(b'b')))
        .await?;
    t.b.write("o", &context(&[first]), t.op().write(grain, byte(b'c')))
        .await?;
    t.b.write_meta("o", t.op().write(2 * grain, byte(b'd'))).await?;
    let expected = SnapSet {
        seq: second.0,
        clones: vec![
            clone(second, &[first, second], &[(3 * grain, grain)], 4 * grain),
            head_of(4 * grain),
        ],
    };
    ensure_eq!(t.listed("o").await?, t.told(expected), "list_snaps");
    let now = [byte(b'b'), byte(b'c'), byte(b'd'), byte(b'a')].concat();
    ensure_eq!(head(&t.a, "o").await?, now, "content of the head");
    ensure_eq!(
        content(&t.a, "o", second).await?,
        Some(vec![b'a'; 4 * grain as usize].into()),
        "content at the snapshot"
    );
    Ok(())
}

pub(super) async fn overlap_shrinks_by_what_the_next_version_changes(t: Fixture) -> Outcome {
    const BLOCK: u64 = 65_536;
    t.a.write_meta("o", t.op().write(0, pattern(1, 10 * BLOCK as usize)))
        .await?;
    let id = t.snap().await?;
    let now = context(&[id]);
    let overlap = |extents: &'static [(u64, u64)], size: u64| {
        let extents: Vec<_> = extents
            .iter()
            .map(|(first, count)| (first * BLOCK, count * BLOCK))
            .collect();
        vec![clone(id, &[id], &extents, 10 * BLOCK), head_of(size * BLOCK)]
    };
    t.a.write("o", &now, t.op().write(2 * BLOCK, pattern(2, BLOCK as usize)))
        .await?;
    ensure_eq!(
        t.listed("o").await?.clones,
        t.told_clones(overlap(&[(0, 2), (3, 7)], 10)),
        "after a write"
    );
    t.a.write("o", &now, t.op().zero(5 * BLOCK, BLOCK)).await?;
    ensure_eq!(
        t.listed("o").await?.clones,
        t.told_clones(overlap(&[(0, 2), (3, 2), (6, 4)], 10)),
        "after a zero"
    );
    t.a.write("o", &now, t.op().truncate(8 * BLOCK)).await?;
    ensure_eq!(
        t.listed("o").await?.clones,
        t.told_clones(overlap(&[(0, 2), (3, 2), (6, 2)], 8)),
        "after a cut"
    );
    t.a.write("o", &now, t.op().truncate(10 * BLOCK)).await?;
    ensure_eq!(
        t.listed("o").await?.clones,
        t.told_clones(overlap(&[(0, 2), (3, 2), (6, 2)], 10)),
        "after growing"
    );
    t.a.write("o", &now, t.op().write(12 * BLOCK, pattern(3, BLOCK as usize)))
        .await?;
    ensure_eq!(
        t.listed("o").await?.clones,
        t.told_clones(overlap(&[(0, 2), (3, 2), (6, 2)], 13)),
        "after an append"
    );
    t.a.write("o", &now, t.op().write_full("x")).await?;
    let expected = vec![clone(id, &[id], &[], 10 * BLOCK), head_of(1)];
    ensure_eq!(
        t.listed("o").await?.clones,
        t.told_clones(expected),
        "after write_full"
    );
    ensure_eq!(
        content(&t.b, "o", id).await?,
        Some(pattern(1, 10 * BLOCK as usize)),
        "content at the snapshot"
    );
    Ok(())
}

pub(super) async fn an_older_clones_overlap_stays_when_the_head_changes(t: Fixture) -> Outcome {
    let grain = t.grain_bytes();
    t.a.write_meta("o", t.op().write(0, t.grains(1, 100))).await?;
    let first = t.snap().await?;
    t.a.write("o", &context(&[first]), t.op().write(0, t.grains(2, 10)))
        .await?;
    let second = t.snap().await?;
    t.a.write(
        "o",
        &context(&[first, second]),
        t.op().write(90 * grain, t.grains(3, 20)),
    )
    .await?;
    let expected = vec![
        clone(first, &[first], &[(10 * grain, 90 * grain)], 100 * grain),
        clone(second, &[second], &[(0, 90 * grain)], 100 * grain),
        head_of(110 * grain),
    ];
    ensure_eq!(t.listed("o").await?.clones, t.told_clones(expected), "list_snaps");
    Ok(())
}

pub(super) async fn a_change_of_keys_alone_keeps_the_whole_overlap(t: Fixture) -> Outcome {
    let set = |value: &'static str| WriteStep::OmapSet([("k".into(), value.into())].into());
    let attribute = |value: &'static str| WriteStep::SetXattr {
        name: "x".into(),
        value: value.into(),
    };
    t.a.write_meta("o", t.op().write(0, "data").step(set("1")).step(attribute("1")))
        .await?;
    let id = t.snap().await?;
    t.a.write("o", &context(&[id]), t.op().step(set("2")).step(attribute("2")))
        .await?;
    let expected = vec![clone(id, &[id], &[(0, 4)], 4), head_of(4)];
    ensure_eq!(t.listed("o").await?.clones, t.told_clones(expected), "list_snaps");
    ensure_eq!(
        omap(&t.b, "o", id).await?,
        vec![("k".into(), "1".into())],
        "omap at the snapshot"
    );
    ensure_eq!(
        omap(&t.b, "o", SnapId::HEAD).await?,
        vec![("k".into(), "2".into())],
        "omap of the head"
    );
    let reply =
        t.b.read("o", id, ReadOp::new().step(ReadStep::GetXattr("x".into())))
            .await?;
    ensure_eq!(
        reply.results[0],
        crate::ReadResult::Xattr("1".into()),
        "xattr at the snapshot"
    );
    ensure_eq!(
        xattr(&t.b, "o", "x").await?,
        Some("2".into()),
        "xattr of the head"
    );
    Ok(())
}

pub(super) async fn removing_the_head_keeps_its_clones(t: Fixture) -> Outcome {
    t.a.write_meta("o", t.op().write(0, "old")).await?;
    let id = t.snap().await?;
    t.a.write("o", &context(&[id]), t.op().remove()).await?;
    ensure_eq!(
        content(&t.b, "o", SnapId::HEAD).await?,
        None,
        "content of the head"
    );
    ensure_eq!(
        content(&t.b, "o", id).await?,
        Some("old".into()),
        "content at the snapshot"
    );
    let expected = SnapSet {
        seq: id.0,
        clones: vec![clone(id, &[id], &[], 3)],
    };
    ensure_eq!(t.listed("o").await?, t.told(expected), "list_snaps");
    ensure_eq!(
        t.store().list_objects(t.scope(), "", "", 10).await?,
        vec!["o".to_owned()],
        "listing"
    );
    ensure_errno!(t.a.write("o", &context(&[id]), t.op().remove()).await, ENOENT, step t.lead());
    t.a.write("o", &context(&[id]), t.op().create(true).write(1, "n"))
        .await?;
    ensure_eq!(head(&t.b, "o").await?, "\0n", "content of the new head");
    let expected = SnapSet {
        seq: id.0,
        clones: vec![clone(id, &[id], &[], 3), head_of(2)],
    };
    ensure_eq!(
        t.listed("o").await?,
        t.told(expected),
        "list_snaps with a new head"
    );
    Ok(())
}

pub(super) async fn an_object_that_was_away_at_a_snapshot_is_enoent_there(t: Fixture) -> Outcome {
    t.a.write_meta("o", t.op().write(0, "first life")).await?;
    let [alive, gone] = [t.snap().await?, t.snap().await?];
    t.a.write("o", &context(&[alive]), t.op().remove()).await?;
    t.a.write("o", &context(&[alive, gone]), t.op().write(0, "second life"))
        .await?;
    ensure_eq!(
        content(&t.b, "o", alive).await?,
        Some("first life".into()),
        "content at the first"
    );
    ensure_eq!(content(&t.b, "o", gone).await?, None, "content at the second");
    ensure_eq!(head(&t.b, "o").await?, "second life", "content of the head");
    Ok(())
}

pub(super) async fn a_long_history_reads_right_at_every_snapshot(t: Fixture) -> Outcome {
    let (mut ids, mut states, mut now) = (Vec::new(), Vec::new(), vec![0u8; 0]);
    for round in 0..12usize {
        let data = pattern(round as u8 + 1, 3000);
        let offset = round * 1777 % 20_000;
        now.resize(now.len().max(offset + data.len()), 0);
        now[offset..offset + data.len()].copy_from_slice(&data);
        let op = if round % 2 == 0 { t.op() } else { t.buffered() };
        t.a.write("o", &context(&ids), op.write(offset as u64, data))
            .await?;
        if round % 3 != 2 {
            ids.push(t.snap().await?);
            states.push(Bytes::from(now.clone()));
        }
    }
    for (id, state) in ids.iter().zip(&states) {
        ensure_eq!(
            content(&t.b, "o", *id).await?.as_ref(),
            Some(state),
            "content at {id}"
        );
    }
    ensure_eq!(head(&t.b, "o").await?, now, "content of the head");
    let listed = t.listed("o").await?.clones;
    ensure!(
        listed.windows(2).all(|pair| pair[0].id < pair[1].id),
        "clones do not ascend: {listed:?}"
    );
    let served: Vec<SnapId> = listed.iter().flat_map(|clone| clone.snaps.clone()).collect();
    ensure_eq!(&served[..], &ids[..served.len()], "snapshots served by clones");
    Ok(())
}

pub(super) async fn equal_versions_at_two_snapshots_mean_equal_contents(t: Fixture) -> Outcome {
    t.a.write_meta("o", t.op().write(0, "one")).await?;
    let [first, second] = t.snaps().await?;
    t.a.write("o", &context(&[first, second]), t.op().write(0, "two"))
        .await?;
    let third = t.snap().await?;
    let mut versions = Vec::new();
    for snap in [first, second, third, SnapId::HEAD] {
        versions.push(t.b.read("o", snap, ReadOp::new().stat()).await?.version);
    }
    ensure_eq!(versions[0], versions[1], "versions of two snapshots in one clone");
    ensure_eq!(
        versions[2],
        versions[3],
        "versions of the head and of a snapshot that it serves"
    );
    ensure!(
        versions[1] < versions[2],
        "versions {versions:?} of different contents"
    );
    Ok(())
}

pub(super) async fn reading_steps_all_work_at_a_snapshot(t: Fixture) -> Outcome {
    t.a.write_meta("o", t.op().write(0, "old")).await?;
    let id = t.snap().await?;
    t.a.write("o", &context(&[id]), t.op().write_full("changed"))
        .await?;
    let compare = |expected: &'static str| ReadStep::CompareExtent {
        offset: 0,
        expected: expected.into(),
    };
    let op = ReadOp::new()
        .step(ReadStep::AssertExists)
        .step(compare("old"))
        .read(1, 10)
        .stat();
    let reply = t.b.read("o", id, op).await?;
    ensure_eq!(reply.data(2), "ld", "bytes at the snapshot");
    ensure_errno!(t.b.read("o", id, ReadOp::new().step(compare("changed"))).await, EILSEQ, step 0);
    Ok(())
}

pub(super) async fn the_sequence_that_an_object_has_reached_is_exact(t: Fixture) -> Outcome {
    let [first, second, third] = t.snaps().await?;
    ensure!(!t.a.snap_seq_reached("o", 1).await?, "of a missing object");
    let raised = SnapContext::new(second.0, vec![first]).unwrap_or_default();
    for (what, context, op) in [
        ("a first write", context(&[first]), t.op().write(0, "x")),
        ("a write that makes no clone", raised, t.op().write(0, "y")),
        (
            "a removal that leaves a clone",
            context(&[first, second, third]),
            t.op().remove(),
        ),
    ] {
        let reached = context.seq();
        t.a.write("o", &context, op).await?;
        for io in [&t.a, &t.b] {
            ensure!(io.snap_seq_reached("o", reached).await?, "not reached by {what}");
            ensure!(
                io.snap_seq_reached("o", first.0 - 1).await?,
                "nor what is below it, by {what}"
            );
            ensure!(
                !io.snap_seq_reached("o", reached + 1).await?,
                "too far, by {what}"
            );
        }
    }
    ensure_errno!(t.a.read("o", SnapId::HEAD, ReadOp::new().stat()).await, ENOENT);
    Ok(())
}

pub(super) async fn list_snaps_of_a_missing_object_is_enoent(t: Fixture) -> Outcome {
    ensure_errno!(t.a.list_snaps("none", &[]).await, ENOENT);
    Ok(())
}

pub(super) async fn a_failing_write_makes_no_clone(t: Fixture) -> Outcome {
    t.a.write_meta("o", t.op().write(0, "old")).await?;
    let id = t.snap().await?;
    ensure_errno!(
        t.a.write("o", &context(&[id]), t.op().write(0, "new").create(true))
            .await,
        EEXIST
    );
    let expected = SnapSet {
        seq: 0,
        clones: vec![head_of(3)],
    };
    ensure_eq!(t.listed("o").await?, t.told(expected), "list_snaps");
    Ok(())
}
