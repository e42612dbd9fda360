//! Cases: a write happens whole or not at all; what each asserting step refuses, and which step is blamed.

use bytes::Bytes;

use super::fixture::{
    Fixture, Outcome, content, ensure, ensure_eq, ensure_errno, head, omap, pattern, version, xattr,
};
use crate::op::{ReadOp, ReadResult, ReadStep, WriteOp, WriteStep};
use crate::types::SnapId;

fn compare(offset: u64, expected: impl Into<Bytes>) -> WriteStep {
    WriteStep::CompareExtent {
        offset,
        expected: expected.into(),
    }
}

fn read_compare(offset: u64, expected: impl Into<Bytes>) -> ReadOp {
    ReadOp::new().step(ReadStep::CompareExtent {
        offset,
        expected: expected.into(),
    })
}

pub(super) async fn create_makes_an_empty_object_and_exclusive_refuses_an_old_one(t: Fixture) -> Outcome {
    t.a.write_meta("o", t.op().create(true)).await?;
    ensure_eq!(
        content(&t.b, "o", SnapId::HEAD).await?,
        Some(Bytes::new()),
        "content"
    );
    t.a.write_meta("o", t.op().write(0, "data")).await?;
    t.b.write_meta("o", t.op().create(false)).await?;
    ensure_eq!(
        head(&t.a, "o").await?,
        "data",
        "content after a second, not exclusive create"
    );
    ensure_errno!(t.b.write_meta("o", t.op().create(true)).await, EEXIST, step t.lead());
    Ok(())
}

pub(super) async fn exclusive_create_has_one_winner(t: Fixture) -> Outcome {
    for round in 0..10 {
        let name = format!("o{round}");
        let (first, second) = tokio::join!(
            t.a.write_meta(&name, t.op().create(true).write(0, "a")),
            t.b.write_meta(&name, t.op().create(true).write(0, "b")),
        );
        ensure!(
            first.is_ok() != second.is_ok(),
            "{first:?} and {second:?} in round {round}"
        );
        let winner = if first.is_ok() { "a" } else { "b" };
        ensure_eq!(head(&t.a, &name).await?, winner, "content is the winner's");
    }
    Ok(())
}

pub(super) async fn existence_seen_by_create_includes_earlier_steps(t: Fixture) -> Outcome {
    ensure_errno!(t.a.write_meta("o", t.op().write(0, "x").create(true)).await, EEXIST, step t.lead() + 1);
    ensure!(!t.b.exists("o").await?, "the failed operation left the object");
    t.a.write_meta("o", t.op().write(0, "old")).await?;
    t.a.write_meta("o", t.op().remove().create(true).write(0, "n"))
        .await?;
    ensure_eq!(head(&t.b, "o").await?, "n", "content");
    Ok(())
}

pub(super) async fn a_failing_step_undoes_the_steps_before_it(t: Fixture) -> Outcome {
    let op = t
        .op()
        .write(0, pattern(1, 5000))
        .step(WriteStep::OmapSet([("k".into(), "v".into())].into()));
    let op = op.step(WriteStep::SetXattr {
        name: "x".into(),
        value: "1".into(),
    });
    t.a.write_meta("o", op).await?;
    let before = version(&t.a, "o").await?;
    let doomed = t
        .op()
        .write(0, pattern(2, 9000))
        .zero(10, 100)
        .truncate(7)
        .step(WriteStep::OmapSet(
            [("k".into(), "w".into()), ("l".into(), "n".into())].into(),
        ))
        .step(WriteStep::OmapRemove(vec!["k".into()]))
        .step(WriteStep::SetXattr {
            name: "x".into(),
            value: "2".into(),
        })
        .step(compare(0, "not this"));
    ensure_errno!(t.a.write_meta("o", doomed).await, EILSEQ, step t.lead() + 6);
    ensure_eq!(head(&t.b, "o").await?, pattern(1, 5000), "data");
    ensure_eq!(
        omap(&t.b, "o", SnapId::HEAD).await?,
        vec![("k".into(), "v".into())],
        "omap"
    );
    ensure_eq!(xattr(&t.b, "o", "x").await?, Some("1".into()), "xattr");
    ensure_eq!(version(&t.b, "o").await?, before, "version");
    ensure_errno!(
        t.a.write_meta("new", t.op().write_full("x").step(WriteStep::AssertVersion(99)))
            .await,
        EOVERFLOW
    );
    ensure!(!t.b.exists("new").await?, "a failed write made the object");
    Ok(())
}

pub(super) async fn a_failed_removal_keeps_the_object(t: Fixture) -> Outcome {
    t.a.write_meta("o", t.op().write(0, "keep me")).await?;
    ensure_errno!(
        t.a.write_meta("o", t.op().remove().step(compare(0, "other")))
            .await,
        EILSEQ
    );
    ensure_eq!(head(&t.b, "o").await?, "keep me", "content");
    Ok(())
}

pub(super) async fn assert_exists_needs_the_object_and_makes_none(t: Fixture) -> Outcome {
    ensure_errno!(t.a.write_meta("o", t.op().step(WriteStep::AssertExists).write(0, "x")).await, ENOENT, step t.lead());
    ensure_errno!(t.a.write_meta("o", WriteOp::new().step(WriteStep::AssertExists)).await, ENOENT, step 0);
    ensure!(!t.b.exists("o").await?, "a failed assertion made the object");
    t.a.write_meta("o", t.op().create(true)).await?;
    t.a.write_meta("o", t.op().step(WriteStep::AssertExists).write(0, "x"))
        .await?;
    ensure_eq!(head(&t.b, "o").await?, "x", "content");
    t.a.read("o", SnapId::HEAD, ReadOp::new().step(ReadStep::AssertExists))
        .await?;
    Ok(())
}

pub(super) async fn assert_version_tells_newer_from_older(t: Fixture) -> Outcome {
    t.a.write_meta("o", t.op().write(0, "1")).await?;
    let old = version(&t.a, "o").await?;
    t.a.write_meta("o", t.op().write(0, "2")).await?;
    let now = version(&t.a, "o").await?;
    let read = |version| ReadOp::new().step(ReadStep::AssertVersion(version)).read(0, 9);
    let write = |version| t.op().step(WriteStep::AssertVersion(version)).write(0, "3");
    ensure_errno!(t.b.read("o", SnapId::HEAD, read(old)).await, ERANGE, step 0);
    ensure_errno!(t.b.read("o", SnapId::HEAD, read(now + 1)).await, EOVERFLOW, step 0);
    ensure_errno!(t.b.write_meta("o", write(old)).await, ERANGE, step t.lead());
    ensure_errno!(t.b.write_meta("o", write(now + 1)).await, EOVERFLOW, step t.lead());
    let reply = t.b.read("o", SnapId::HEAD, read(now)).await?;
    ensure_eq!(reply.results[0], ReadResult::Done, "result of an assertion");
    ensure_eq!(reply.data(1), "2", "content");
    t.b.write_meta("o", write(now)).await?;
    ensure_eq!(head(&t.a, "o").await?, "3", "content");
    Ok(())
}

pub(super) async fn compare_extent_guards_a_write(t: Fixture) -> Outcome {
    t.a.write_meta("o", t.op().write(0, "hello")).await?;
    t.a.write_meta("o", t.op().step(compare(1, "ell")).write(0, "J"))
        .await?;
    ensure_eq!(head(&t.b, "o").await?, "Jello", "content");
    ensure_errno!(t.b.write_meta("o", t.op().step(compare(0, "hello")).write(0, "x")).await, EILSEQ, step t.lead());
    ensure_eq!(head(&t.b, "o").await?, "Jello", "content after a mismatch");
    ensure_errno!(t.b.read("o", SnapId::HEAD, read_compare(0, "hello")).await, EILSEQ, step 0);
    let reply = t.b.read("o", SnapId::HEAD, read_compare(0, "Jel")).await?;
    ensure_eq!(reply.results[0], ReadResult::Done, "result of a comparison");
    Ok(())
}

pub(super) async fn compare_extent_takes_bytes_past_the_end_for_zero(t: Fixture) -> Outcome {
    t.a.write_meta("o", t.op().write(0, "ab")).await?;
    t.a.write_meta(
        "o",
        t.op()
            .step(compare(1, &b"b\0\0\0"[..]))
            .step(compare(9_999, vec![0; 5000])),
    )
    .await?;
    t.a.read("o", SnapId::HEAD, read_compare(0, &b"ab\0"[..])).await?;
    ensure_errno!(t.a.write_meta("o", t.op().step(compare(1, &b"b\0x"[..]))).await, EILSEQ, step t.lead());
    ensure_errno!(t.a.read("o", SnapId::HEAD, read_compare(2, "x")).await, EILSEQ, step 0);
    ensure_eq!(head(&t.b, "o").await?, "ab", "content");
    t.a.write_meta("missing", WriteOp::new().step(compare(0, vec![0; 10])))
        .await?;
    ensure_errno!(t.a.write_meta("missing", WriteOp::new().step(compare(0, "x")).write(0, "y")).await, EILSEQ, step 0);
    ensure!(!t.b.exists("missing").await?, "a comparison made the object");
    Ok(())
}

pub(super) async fn comparisons_see_the_object_as_it_was_before_the_operation(t: Fixture) -> Outcome {
    t.a.write_meta("o", t.op().write(0, "old")).await?;
    t.a.write_meta("o", t.op().write(0, "new").step(compare(0, "old")))
        .await?;
    ensure_eq!(head(&t.b, "o").await?, "new", "content");
    ensure_errno!(t.a.write_meta("o", t.op().write(0, "xyz").step(compare(0, "xyz"))).await, EILSEQ, step t.lead() + 1);
    let set = |value: &'static str| WriteStep::OmapSet([("k".into(), value.into())].into());
    let expect = |value: &'static str| WriteStep::OmapCompare {
        key: "k".into(),
        value: value.into(),
    };
    t.a.write_meta("o", t.op().step(set("1")).step(expect("")))
        .await?;
    t.a.write_meta("o", t.op().step(set("2")).step(expect("1")))
        .await?;
    ensure_errno!(t.a.write_meta("o", t.op().step(set("3")).step(expect("3"))).await, ECANCELED, step t.lead() + 1);
    ensure_eq!(
        omap(&t.b, "o", SnapId::HEAD).await?,
        vec![("k".into(), "2".into())],
        "omap"
    );
    Ok(())
}

pub(super) async fn of_racing_compare_and_writes_one_wins(t: Fixture) -> Outcome {
    t.a.write_meta("o", t.op().write(0, vec![0u8; 8])).await?;
    for round in 0..20u64 {
        let step = |io: crate::IoCtx, op: WriteOp, mark: u8| async move {
            let next = [&(round + 1).to_le_bytes()[..7], &[mark]].concat();
            io.write_meta("o", op.write(0, next)).await
        };
        let current = head(&t.a, "o").await?;
        let (first, second) = tokio::join!(
            step(t.a.clone(), t.op().step(compare(0, current.clone())), 1),
            step(t.b.clone(), t.op().step(compare(0, current.clone())), 2),
        );
        ensure!(
            first.is_ok() != second.is_ok(),
            "{first:?} and {second:?} in round {round}"
        );
        let mark = if first.is_ok() { 1 } else { 2 };
        ensure_eq!(
            head(&t.b, "o").await?[7],
            mark,
            "the winner's mark in round {round}"
        );
    }
    Ok(())
}

pub(super) async fn operations_that_only_assert_change_nothing(t: Fixture) -> Outcome {
    t.a.write_meta("o", t.op().write(0, "x")).await?;
    let before = version(&t.a, "o").await?;
    let id = t.snap().await?;
    let op = WriteOp::new()
        .step(WriteStep::AssertExists)
        .step(compare(0, "x"))
        .step(WriteStep::AssertVersion(before));
    let reply = t.a.write("o", &super::fixture::context(&[id]), op).await?;
    ensure_eq!(reply.version, before, "version in the reply");
    ensure_eq!(version(&t.b, "o").await?, before, "version");
    ensure_eq!(
        t.listed("o").await?.clones.len(),
        1,
        "clones and head after assertions under a new snapshot"
    );
    Ok(())
}

pub(super) async fn errors_name_the_object(t: Fixture) -> Outcome {
    let error = ensure_errno!(
        t.a.read("some-object", SnapId::HEAD, ReadOp::new().stat()).await,
        ENOENT
    );
    ensure!(
        error.to_string().contains("some-object"),
        "'{error}' does not name the object"
    );
    let error = ensure_errno!(t.a.write_meta("some-object", t.op().remove()).await, ENOENT);
    ensure!(
        error.to_string().contains("some-object"),
        "'{error}' does not name the object"
    );
    Ok(())
}
