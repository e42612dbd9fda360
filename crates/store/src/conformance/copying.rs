//! Cases: copies that the engine makes itself. An engine that answers `EOPNOTSUPP` passes them, and says so.

use bytes::Bytes;

use super::classes::{CLASS, offset_input};
use super::fixture::{
    BULK_OBJECT_BYTES, Fixture, Outcome, content, context, ensure, ensure_eq, ensure_errno, head, pattern,
    sparse_of,
};
use crate::error::{Errno, StoreError};
use crate::op::{CopyRange, CopyReply, ReadOp, WriteOp, WriteStep};
use crate::types::{SnapContext, SnapId};
use crate::{COPY_RANGES_MAX, IoCtx, PoolOptions};

const SEEDS: u64 = 8;

fn full() -> WriteOp {
    WriteOp::new().alloc_hint(BULK_OBJECT_BYTES)
}

fn buffered() -> WriteOp {
    WriteOp::buffered().alloc_hint(BULK_OBJECT_BYTES)
}

/// `length_bytes` from `offset` of the head of `name`, to the same place.
fn same<'a>(io: &'a IoCtx, name: &'a str, offset: u64, length_bytes: u64) -> CopyRange<'a> {
    CopyRange {
        object: io.object(name),
        snap: SnapId::HEAD,
        offset,
        length_bytes,
        target_offset: offset,
    }
}

fn whole<'a>(io: &'a IoCtx, name: &'a str) -> CopyRange<'a> {
    same(io, name, 0, BULK_OBJECT_BYTES)
}

/// Copies under no snapshots; `None` when the engine does not copy.
async fn copy(
    io: &IoCtx,
    target: &str,
    op: WriteOp,
    ranges: &[CopyRange<'_>],
) -> Result<Option<CopyReply>, StoreError> {
    match io.copy_into(target, &SnapContext::empty(), op, ranges).await {
        Ok(reply) => Ok(Some(reply)),
        Err(error) if error.errno == Errno::EOPNOTSUPP => {
            eprintln!("not checked: this engine does not copy");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

pub(super) async fn a_copy_holds_exactly_the_bytes_of_its_ranges(t: Fixture) -> Outcome {
    let data = pattern(1, 300_000);
    t.a.write_meta("o", t.op().write(0, data.clone())).await?;
    t.b.write_meta("o", t.buffered().write(70_001, "unflushed"))
        .await?;
    let mut data = data.to_vec();
    data[70_001..70_010].copy_from_slice(b"unflushed");
    t.a.write_meta("p", t.op().write(0, pattern(2, 9000))).await?;
    let Some(reply) = copy(&t.a, "whole", full(), &[whole(&t.a, "o")]).await? else {
        return Ok(());
    };
    ensure_eq!(head(&t.b, "whole").await?, data, "a whole copy");
    ensure_eq!(reply.data_bytes, 300_000, "bytes of data");
    let stat = t.b.read("whole", SnapId::HEAD, ReadOp::new().stat()).await?;
    ensure_eq!(stat.version, reply.version, "version");
    let mut parts = [
        same(&t.a, "o", 100, 5000),
        same(&t.a, "p", 4096, 1_000_000),
        same(&t.a, "o", 8192, 65_536),
        same(&t.a, "o", 400_000, 5),
    ];
    parts[1].target_offset = 6000;
    parts[2].target_offset = 1 << 20;
    parts[3].target_offset = 2 << 20;
    parts[1].length_bytes = 500_000;
    if copy(&t.b, "parts", full(), &parts).await?.is_none() {
        // It copies whole objects only.
        return Ok(());
    }
    let mut expected = vec![0; (1 << 20) + 65_536];
    expected[100..5100].copy_from_slice(&data[100..5100]);
    expected[6000..6000 + 4904].copy_from_slice(&pattern(2, 9000)[4096..]);
    expected[1 << 20..].copy_from_slice(&data[8192..8192 + 65_536]);
    ensure_eq!(head(&t.a, "parts").await?, expected, "a copy of parts");
    copy(&t.a, "empty", full(), &[]).await?;
    ensure_eq!(head(&t.a, "empty").await?, "", "a copy of nothing");
    Ok(())
}

pub(super) async fn a_copy_is_a_thing_of_its_own(t: Fixture) -> Outcome {
    t.a.write_meta("o", t.op().write(0, pattern(1, 200_000))).await?;
    if copy(&t.a, "c", buffered(), &[whole(&t.a, "o")]).await?.is_none() {
        return Ok(());
    }
    t.a.write_meta("o", t.buffered().write(5000, pattern(2, 10_000)))
        .await?;
    ensure_eq!(
        head(&t.b, "c").await?,
        pattern(1, 200_000),
        "the copy after a write to what it was made from"
    );
    t.b.write_meta("c", t.buffered().write(100_000, "mine")).await?;
    t.a.write_meta("o", t.op().remove()).await?;
    let mut expected = pattern(1, 200_000).to_vec();
    expected[100_000..100_004].copy_from_slice(b"mine");
    ensure_eq!(head(&t.a, "c").await?, expected, "the copy after all");
    Ok(())
}

pub(super) async fn holes_stay_holes_in_a_copy(t: Fixture) -> Outcome {
    let op = t.op().write(0, pattern(1, 8192)).write(3 << 20, pattern(2, 8192));
    t.a.write_meta("o", op).await?;
    let Some(reply) = copy(&t.a, "c", full(), &[whole(&t.a, "o")]).await? else {
        return Ok(());
    };
    let op = ReadOp::new().sparse_read(0, BULK_OBJECT_BYTES);
    let before = sparse_of(&t.a.read("o", SnapId::HEAD, op.clone()).await?, 0)?;
    let after = sparse_of(&t.a.read("c", SnapId::HEAD, op).await?, 0)?;
    let bytes = |runs: &[(u64, Bytes)]| runs.iter().map(|(_, data)| data.len() as u64).sum::<u64>();
    ensure!(
        bytes(&after) <= bytes(&before),
        "{} bytes in {} of the copy",
        bytes(&after),
        bytes(&before)
    );
    ensure_eq!(reply.data_bytes, bytes(&before), "bytes of data");
    ensure_eq!(head(&t.a, "c").await?, head(&t.a, "o").await?, "content");
    Ok(())
}

pub(super) async fn copies_read_snapshots_as_they_were(t: Fixture) -> Outcome {
    let mut expected = vec![pattern(1, 100_000).to_vec()];
    t.a.write_meta("o", t.op().write(0, pattern(1, 100_000))).await?;
    let mut ids = Vec::new();
    for round in 0..4u8 {
        ids.push(t.snap().await?);
        let mut now = expected[usize::from(round)].clone();
        let at = usize::from(round) * 20_000 + 333;
        now[at..at + 10_000].copy_from_slice(&pattern(10 + round, 10_000));
        t.a.write(
            "o",
            &context(&ids),
            t.buffered().write(at as u64, pattern(10 + round, 10_000)),
        )
        .await?;
        expected.push(now);
    }
    ids.push(SnapId::HEAD);
    for (index, id) in ids.iter().enumerate() {
        let name = format!("c{index}");
        let mut range = whole(&t.a, "o");
        range.snap = *id;
        if copy(&t.b, &name, full(), &[range]).await?.is_none() {
            return Ok(());
        }
        ensure!(
            head(&t.a, &name).await? == expected[index],
            "copy of version {index}"
        );
    }
    Ok(())
}

pub(super) async fn copies_go_to_other_pools_and_namespaces(t: Fixture) -> Outcome {
    t.a.write_meta("o", t.op().write(0, pattern(1, 50_000))).await?;
    let name = format!("copies-{:016x}", rand::random::<u64>());
    let pool = t.store().pool_create(&name, PoolOptions::default()).await?;
    for far in [
        t.a.with_namespace(&name),
        t.a.with_pool(pool),
        t.a.with_pool(pool).with_namespace("far"),
    ] {
        if copy(&far, "o", full(), &[whole(&t.a, "o")]).await?.is_none() {
            return Ok(());
        }
        ensure_eq!(head(&far, "o").await?, pattern(1, 50_000), "the far copy");
    }
    ensure_eq!(head(&t.a, "o").await?, pattern(1, 50_000), "what was copied");
    Ok(())
}

pub(super) async fn a_copy_that_may_not_be_changes_nothing(t: Fixture) -> Outcome {
    t.a.write_meta("o", t.op().write(0, pattern(1, 50_000))).await?;
    let ranges = [whole(&t.a, "o")];
    if copy(&t.a, "there", full(), &ranges).await?.is_none() {
        return Ok(());
    }
    let none = SnapContext::empty();
    let make = |op: WriteOp| t.a.copy_into("new", &none, op, &ranges);
    if !t.harness.is_osd() {
        // An OSD does not have the class of these tests.
        ensure_errno!(make(full().call(CLASS, "fail", offset_input(17, b""))).await, EEXIST, step 1);
        ensure_errno!(make(full().call(CLASS, "create", "")).await, EINVAL);
    }
    ensure_errno!(make(full().write(0, "x")).await, EINVAL, step 1);
    ensure_errno!(make(WriteOp::new()).await, EINVAL);
    ensure_errno!(t.a.copy_into("there", &none, full(), &ranges).await, EEXIST);
    let absent = [whole(&t.a, "absent")];
    ensure_errno!(t.a.copy_into("new", &none, full(), &absent).await, ENOENT);
    let absent = [whole(&t.a, "o"), same(&t.a, "absent", BULK_OBJECT_BYTES, 5)];
    ensure_errno!(
        t.a.copy_into("new", &none, full(), &absent).await,
        ENOENT | EOPNOTSUPP
    );
    let touching = [whole(&t.a, "o"), same(&t.a, "o", 5, 5)];
    ensure_errno!(t.a.copy_into("new", &none, full(), &touching).await, EINVAL);
    let many = vec![same(&t.a, "o", 0, 0); COPY_RANGES_MAX + 1];
    ensure_errno!(t.a.copy_into("new", &none, full(), &many).await, EINVAL);
    let endless = [same(&t.a, "o", 5, u64::MAX)];
    ensure_errno!(t.a.copy_into("new", &none, full(), &endless).await, EFBIG);
    let mut far = ranges;
    far[0].target_offset = u64::MAX - BULK_OBJECT_BYTES;
    ensure_errno!(
        t.a.copy_into("new", &none, full(), &far).await,
        EFBIG | EOPNOTSUPP
    );
    ensure_eq!(
        content(&t.b, "new", SnapId::HEAD).await?,
        None,
        "the refused copy"
    );
    ensure_eq!(
        head(&t.b, "there").await?,
        pattern(1, 50_000),
        "the copy that was there"
    );
    ensure_eq!(
        t.a.store().list_objects(t.scope(), "", "", 10).await?,
        ["o", "there"],
        "objects"
    );
    Ok(())
}

pub(super) async fn of_racing_copies_one_makes_the_object(t: Fixture) -> Outcome {
    t.a.write_meta("one", t.op().write(0, pattern(1, 50_000))).await?;
    t.a.write_meta("two", t.op().write(0, pattern(2, 50_000))).await?;
    for round in 0..10 {
        let name = format!("c{round}");
        let (ones, twos) = ([whole(&t.a, "one")], [whole(&t.b, "two")]);
        let none = SnapContext::empty();
        let (first, second) = tokio::join!(
            t.a.copy_into(&name, &none, full(), &ones),
            t.b.copy_into(&name, &none, buffered(), &twos),
        );
        if matches!(&first, Err(error) if error.errno == Errno::EOPNOTSUPP) {
            return Ok(());
        }
        ensure!(
            first.is_ok() != second.is_ok(),
            "{first:?} and {second:?} in round {round}"
        );
        let winner = if first.is_ok() { 1 } else { 2 };
        ensure_eq!(head(&t.a, &name).await?, pattern(winner, 50_000), "the winner's");
    }
    Ok(())
}

pub(super) async fn a_copy_is_a_write_under_its_context(t: Fixture) -> Outcome {
    t.a.write_meta("o", t.op().write(0, pattern(1, 50_000))).await?;
    let [first, second] = t.snaps().await?;
    let ranges = [whole(&t.a, "o")];
    for op in [full(), buffered()] {
        let name = format!("{:?}", op.durability);
        let copied = t.a.copy_into(&name, &context(&[first]), op, &ranges).await;
        if matches!(&copied, Err(error) if error.errno == Errno::EOPNOTSUPP) {
            return Ok(());
        }
        let set = t.listed(&name).await?;
        ensure_eq!((set.seq, set.clones.len()), (first.0, 1), "sequence and clones");
        ensure_eq!(
            content(&t.b, &name, first).await?,
            None,
            "the copy at a snapshot that it came after"
        );
        let now = context(&[first, second]);
        t.b.write(&name, &now, t.buffered().write(0, "later")).await?;
        ensure_eq!(
            content(&t.a, &name, second).await?,
            Some(pattern(1, 50_000)),
            "the copy at a snapshot taken since"
        );
        t.a.write(&name, &now, t.op().step(WriteStep::Remove)).await?;
        t.a.copy_into(&name, &now, full(), &ranges).await?;
        ensure_eq!(head(&t.b, &name).await?, pattern(1, 50_000), "the second copy");
        ensure_eq!(
            content(&t.a, &name, second).await?,
            Some(pattern(1, 50_000)),
            "the first copy at its snapshot, below the second"
        );
    }
    Ok(())
}

pub(super) async fn a_buffered_copy_is_whole_or_absent_after_power_loss(t: Fixture) -> Outcome {
    let mut io = t.another().await;
    io.write_meta("o", t.op().write(0, pattern(1, 150_000))).await?;
    let mut absent = 0;
    for seed in 0..SEEDS * 2 {
        let name = |what: &str| format!("{what}{seed}");
        let ranges = [whole(&io, "o")];
        for (what, op) in [
            ("lost", buffered()),
            ("written", buffered()),
            ("flushed", buffered()),
            ("settled", buffered()),
            ("full", full()),
        ] {
            if copy(&io, &name(what), op, &ranges).await?.is_none() {
                return Ok(());
            }
        }
        io.write_meta(&name("written"), t.buffered().write(5000, pattern(2, 9000)))
            .await?;
        // What another client makes durable brings the copy along.
        let other = t.another().await;
        other
            .write_meta(&name("flushed"), t.buffered().write(0, "f"))
            .await?;
        other.store().flush(other.scope(), &name("flushed")).await?;
        other.write_meta(&name("settled"), t.op().write(0, "s")).await?;
        drop(other);
        if !t.harness.power_loss(seed).await {
            eprintln!("not checked: this harness cannot cut the power");
            return Ok(());
        }
        io = t.another().await;
        let old = pattern(1, 150_000);
        let is = |found: &Option<Bytes>, first: u8| {
            found
                .as_ref()
                .is_some_and(|found| found.len() == old.len() && found[0] == first && found[1..] == old[1..])
        };
        let lost = content(&io, &name("lost"), SnapId::HEAD).await?;
        ensure!(
            lost.is_none() || is(&lost, old[0]),
            "a torn copy, power loss {seed}"
        );
        absent += u64::from(lost.is_none());
        if let Some(found) = content(&io, &name("written"), SnapId::HEAD).await? {
            let new = pattern(2, 9000);
            ensure_eq!(found.len(), old.len(), "size, power loss {seed}");
            let wrong = (0..old.len()).find(|at| {
                let changed = (5000..14_000).contains(at) && found[*at] == new[*at - 5000];
                found[*at] != old[*at] && !changed
            });
            ensure_eq!(
                wrong,
                None,
                "first wrong byte of the written copy, power loss {seed}"
            );
        }
        for (what, first) in [("flushed", b'f'), ("settled", b's'), ("full", old[0])] {
            let found = content(&io, &name(what), SnapId::HEAD).await?;
            ensure!(is(&found, first), "{what} copy, power loss {seed}");
        }
        ensure_eq!(head(&io, "o").await?, old, "what was copied");
    }
    eprintln!("{absent} of {} unflushed copies were absent", SEEDS * 2);
    Ok(())
}
