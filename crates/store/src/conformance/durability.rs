//! Cases: flush and sync_all, and what a power loss leaves (with harnesses that can cut the power).

use bytes::Bytes;

use super::fixture::{Fixture, Outcome, content, context, ensure, ensure_eq, head, omap, pattern};
use crate::IoCtx;
use crate::op::{Durability, WriteStep};
use crate::types::SnapId;

const SEEDS: u64 = 8;

/// Cuts the power and connects anew; `None` when the harness cannot.
async fn after_power_loss(t: &Fixture, seed: u64) -> Option<IoCtx> {
    if t.harness.power_loss(seed).await {
        Some(t.another().await)
    } else {
        eprintln!("not checked: this harness cannot cut the power");
        None
    }
}

pub(super) async fn flush_and_sync_all_return_when_nothing_is_to_do(t: Fixture) -> Outcome {
    t.a.store().flush(t.scope(), "").await?;
    t.a.store().flush(t.scope(), "none.").await?;
    t.a.store().sync_all(t.scope(), "none.").await?;
    t.a.store().flush(t.a.with_namespace("none").scope(), "x").await?;
    Ok(())
}

pub(super) async fn flush_and_sync_all_keep_every_content(t: Fixture) -> Outcome {
    let id = t.snap().await?;
    for index in 0..6u8 {
        let name = format!("data.{index}");
        t.a.write_meta(&name, t.buffered().write(0, pattern(index, 9000)))
            .await?;
        t.b.write(
            &name,
            &context(&[id]),
            t.buffered().write(u64::from(index) * 1000, "B"),
        )
        .await?;
    }
    t.a.write_meta("data.0", t.op().remove()).await?;
    t.a.store().flush(t.scope(), "data.").await?;
    t.b.store().flush(t.scope(), "data.3").await?;
    t.a.store().sync_all(t.scope(), "").await?;
    for index in 1..6u8 {
        let name = format!("data.{index}");
        let mut expected = pattern(index, 9000).to_vec();
        expected[usize::from(index) * 1000] = b'B';
        ensure_eq!(head(&t.b, &name).await?, expected, "content of {name}");
        ensure_eq!(
            content(&t.b, &name, id).await?,
            Some(pattern(index, 9000)),
            "content of {name} at the snapshot"
        );
    }
    ensure_eq!(
        content(&t.a, "data.0", SnapId::HEAD).await?,
        None,
        "the removed object"
    );
    Ok(())
}

pub(super) async fn full_writes_survive_power_loss_whole(t: Fixture) -> Outcome {
    let mut io = t.another().await;
    let mut expected = Vec::new();
    for seed in 0..SEEDS {
        let name = format!("o{seed}");
        let keys = WriteStep::OmapSet([(Bytes::from("k"), Bytes::from(name.clone()))].into());
        io.write_meta(&name, t.op().write(0, pattern(seed as u8, 70_000)).step(keys))
            .await?;
        io.write_meta(&name, t.op().write(100, "overwritten")).await?;
        let mut data = pattern(seed as u8, 70_000).to_vec();
        data[100..111].copy_from_slice(b"overwritten");
        expected.push((name, data));
        io.write_meta("removed", t.op().write(0, "x")).await?;
        io.write_meta("removed", t.op().remove()).await?;
        match after_power_loss(&t, seed).await {
            Some(reopened) => io = reopened,
            None => return Ok(()),
        }
        for (name, data) in &expected {
            ensure_eq!(
                head(&io, name).await?,
                data,
                "content of {name} after power loss {seed}"
            );
            let keys = vec![("k".into(), Bytes::from(name.clone()))];
            ensure_eq!(omap(&io, name, SnapId::HEAD).await?, keys, "omap of {name}");
        }
        ensure!(
            !io.exists("removed").await?,
            "a removed object came back after power loss {seed}"
        );
    }
    Ok(())
}

pub(super) async fn what_follows_an_ordered_write_is_never_kept_without_it(t: Fixture) -> Outcome {
    let mut io = t.another().await;
    io.write_meta("marks", t.op().create(false)).await?;
    for seed in 0..SEEDS {
        let (first, second) = (format!("a{seed}"), format!("b{seed}"));
        let mark = |key: &str| {
            let mut op = t.op().step(WriteStep::OmapSet(
                [(Bytes::from(key.to_owned()), "".into())].into(),
            ));
            op.durability = Durability::Ordered;
            op
        };
        io.write_meta("marks", mark(&first)).await?;
        ensure!(
            marked(&t.another().await, &first).await?,
            "others do not see the mark of {first}"
        );
        io.write_meta(&first, t.buffered().write(0, pattern(1, 50_000)))
            .await?;
        io.store().flush(io.scope(), &first).await?;
        io.write_meta("marks", mark(&second)).await?;
        io.write_meta(&second, t.buffered().write(0, pattern(2, 50_000)))
            .await?;
        match after_power_loss(&t, seed).await {
            Some(reopened) => io = reopened,
            None => return Ok(()),
        }
        ensure_eq!(
            head(&io, &first).await?,
            pattern(1, 50_000),
            "content of {first}, power loss {seed}"
        );
        ensure!(
            marked(&io, &first).await?,
            "{first} was flushed, and its mark is lost, power loss {seed}"
        );
        ensure!(
            !io.exists(&second).await? || marked(&io, &second).await?,
            "{second} is there without its mark, power loss {seed}"
        );
    }
    Ok(())
}

async fn marked(io: &IoCtx, key: &str) -> Outcome<bool> {
    let keys = omap(io, "marks", SnapId::HEAD).await?;
    Ok(keys.iter().any(|(name, _)| name == key.as_bytes()))
}

pub(super) async fn flushed_writes_survive_power_loss(t: Fixture) -> Outcome {
    let mut io = t.another().await;
    for seed in 0..SEEDS {
        let name = format!("o{seed}");
        io.write_meta(&name, t.buffered().write(0, pattern(1, 50_000)))
            .await?;
        io.write_meta(&name, t.buffered().zero(10_000, 10_000)).await?;
        io.write_meta(&name, t.buffered().truncate(45_000)).await?;
        io.store().flush(io.scope(), "o").await?;
        match after_power_loss(&t, seed).await {
            Some(reopened) => io = reopened,
            None => return Ok(()),
        }
        let mut expected = pattern(1, 45_000).to_vec();
        expected[10_000..20_000].fill(0);
        ensure_eq!(
            head(&io, &name).await?,
            expected,
            "content of {name} after power loss {seed}"
        );
    }
    Ok(())
}

pub(super) async fn sync_all_makes_the_writes_of_others_durable(t: Fixture) -> Outcome {
    for seed in 0..SEEDS {
        let (writer, syncer) = (t.another().await, t.another().await);
        let name = format!("o{seed}");
        writer
            .write_meta(&name, t.buffered().write(0, pattern(3, 50_000)))
            .await?;
        syncer.store().sync_all(syncer.scope(), "o").await?;
        let Some(io) = after_power_loss(&t, seed).await else {
            return Ok(());
        };
        ensure_eq!(
            head(&io, &name).await?,
            pattern(3, 50_000),
            "content of {name} after power loss {seed}"
        );
    }
    Ok(())
}

pub(super) async fn unflushed_bytes_are_old_or_new_after_power_loss(t: Fixture) -> Outcome {
    let mut io = t.another().await;
    for seed in 0..SEEDS * 2 {
        let name = format!("o{seed}");
        io.write_meta(&name, t.op().write(0, pattern(1, 40_000))).await?;
        io.write_meta(&name, t.buffered().write(5000, pattern(2, 20_000)))
            .await?;
        io.write_meta(&name, t.op().write(7000, pattern(3, 100))).await?;
        match after_power_loss(&t, seed).await {
            Some(reopened) => io = reopened,
            None => return Ok(()),
        }
        let (data, old) = (head(&io, &name).await?, pattern(1, 40_000));
        let mut new = old.to_vec();
        new[5000..25_000].copy_from_slice(&pattern(2, 20_000));
        new[7000..7100].copy_from_slice(&pattern(3, 100));
        ensure_eq!(data.len(), new.len(), "size");
        let wrong = (0..new.len()).find(|at| data[*at] != old[*at] && data[*at] != new[*at]);
        ensure_eq!(
            wrong,
            None,
            "first byte that is neither old nor new, power loss {seed}"
        );
        ensure_eq!(
            &data[7000..7100],
            &pattern(3, 100)[..],
            "bytes of the full write, power loss {seed}"
        );
    }
    Ok(())
}

pub(super) async fn snapshots_survive_buffered_writes_and_power_loss(t: Fixture) -> Outcome {
    let mut io = t.another().await;
    for seed in 0..SEEDS * 2 {
        let name = format!("o{seed}");
        io.write_meta(&name, t.buffered().write(0, pattern(1, 40_000)))
            .await?;
        io.store().flush(io.scope(), &name).await?;
        let id = io.store().snap_id_create(io.pool()).await?;
        let now = context(&[id]);
        io.write(&name, &now, t.buffered().write(3000, pattern(2, 20_000)))
            .await?;
        io.write(&name, &now, t.buffered().write(10_000, pattern(4, 9)))
            .await?;
        // A writer that does not know of the snapshot yet: what it overwrites must stay kept, whatever is lost.
        io.write_meta(&name, t.buffered().write(30_000, pattern(6, 5000)))
            .await?;
        match after_power_loss(&t, seed).await {
            Some(reopened) => io = reopened,
            None => return Ok(()),
        }
        let found = content(&io, &name, id).await?;
        ensure_eq!(
            found,
            Some(pattern(1, 40_000)),
            "content at the snapshot after power loss {seed}"
        );
        io.write(&name, &now, t.op().write(0, pattern(5, 40_000))).await?;
        let found = content(&io, &name, id).await?;
        ensure_eq!(
            found,
            Some(pattern(1, 40_000)),
            "content at the snapshot after another write"
        );
    }
    Ok(())
}
