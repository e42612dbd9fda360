//! Cases: what class methods see inside an operation, and what becomes of what they do.

use bytes::Bytes;

use super::classes::{CAPTURED, CLASS, OMAP_KEY, Report, XATTR, offset_input, range_input};
use super::fixture::{
    Fixture, Outcome, content, context, ensure, ensure_eq, ensure_errno, head, omap, pattern, version, xattr,
};
use crate::op::{ReadOp, WriteOp, WriteStep};
use crate::types::SnapId;

const MISSING: Report<'_> = Report {
    exists: false,
    size_bytes: 0,
    data: "",
    omap: "-",
    xattr: "-",
};

fn marks(value: &'static str) -> [WriteStep; 2] {
    let omap = WriteStep::OmapSet([(OMAP_KEY.into(), value.into())].into());
    let xattr = WriteStep::SetXattr {
        name: XATTR.to_owned(),
        value: value.into(),
    };
    [omap, xattr]
}

fn marked(op: WriteOp, value: &'static str) -> WriteOp {
    marks(value).into_iter().fold(op, WriteOp::step)
}

pub(super) async fn outputs_come_back_by_step(t: Fixture) -> Outcome {
    t.a.write_meta("o", t.op().write(0, "data")).await?;
    let op = ReadOp::new()
        .call(CLASS, "echo", "one")
        .stat()
        .call(CLASS, "echo", Bytes::new())
        .call(CLASS, "echo", "\0two");
    let reply = t.b.read("o", SnapId::HEAD, op).await?;
    ensure_eq!(reply.output(0), b"one", "first output");
    ensure_eq!(reply.output(2), b"", "empty output");
    ensure_eq!(reply.output(3), b"\0two", "third output");
    let big = pattern(1, 1 << 20);
    let reply =
        t.b.read("o", SnapId::HEAD, ReadOp::new().call(CLASS, "echo", big.clone()))
            .await?;
    ensure!(reply.output(0) == &big[..], "a large output came back otherwise");
    Ok(())
}

pub(super) async fn unknown_classes_and_methods_are_not_supported(t: Fixture) -> Outcome {
    t.a.write_meta("o", t.op().write(0, "data")).await?;
    let before = version(&t.a, "o").await?;
    for (class, method) in [(CLASS, "none"), ("none", "echo")] {
        let read = ReadOp::new().stat().call(class, method, "");
        ensure_errno!(t.a.read("o", SnapId::HEAD, read).await, EOPNOTSUPP, step 1);
        let write = t.op().write(0, "x").call(class, method, "");
        ensure_errno!(t.a.write_meta("o", write).await, EOPNOTSUPP, step t.lead() + 1);
    }
    ensure_eq!(version(&t.b, "o").await?, before, "version");
    Ok(())
}

pub(super) async fn writing_methods_are_refused_in_reads(t: Fixture) -> Outcome {
    t.a.write_meta("o", t.op().write(0, "data")).await?;
    ensure_errno!(t.a.call_read("o", CLASS, "write_full", "x".into()).await, EINVAL, step 0);
    ensure!(
        t.a.call_read("o", CLASS, "sneaky", "".into()).await.is_err(),
        "a reading method could write"
    );
    ensure_eq!(head(&t.b, "o").await?, "data", "content");
    Ok(())
}

pub(super) async fn reading_methods_may_run_in_writes(t: Fixture) -> Outcome {
    t.a.write_meta(
        "o",
        t.op().write(0, "data").call(CLASS, "echo", "x").write(4, "!"),
    )
    .await?;
    ensure_eq!(head(&t.b, "o").await?, "data!", "content");
    let failing = t.op().write(0, "lost").call(CLASS, "fail", offset_input(33, b""));
    ensure_errno!(t.a.write_meta("o", failing).await, EDOM, step t.lead() + 1);
    ensure_eq!(
        head(&t.b, "o").await?,
        "data!",
        "content after a reading method failed"
    );
    Ok(())
}

pub(super) async fn a_methods_errno_is_the_operations(t: Fixture) -> Outcome {
    t.a.write_meta("o", marked(t.op().write(0, "data"), "mark"))
        .await?;
    for errno in [2, 17, 28, 39, 116] {
        let op = ReadOp::new().stat().call(CLASS, "fail", offset_input(errno, b""));
        match t.b.read("o", SnapId::HEAD, op).await {
            Err(error) if error.errno.0 as u64 == errno && error.step == Some(1) => {}
            other => return Err(format!("errno {errno} of a method came as {other:?}").into()),
        }
    }
    let failing = t.op().write(0, "lost").call(CLASS, "write_then_fail", "");
    ensure_errno!(t.a.write_meta("o", failing).await, EDOM, step t.lead() + 1);
    ensure_eq!(
        head(&t.b, "o").await?,
        "data",
        "content after a method wrote and failed"
    );
    ensure_eq!(
        omap(&t.b, "o", SnapId::HEAD).await?,
        vec![(OMAP_KEY.into(), "mark".into())],
        "omap after that"
    );
    ensure_errno!(t.a.write_meta("p", WriteOp::new().call(CLASS, "write_then_fail", "")).await, EDOM, step 0);
    ensure!(!t.b.exists("p").await?, "a failing method made the object");
    Ok(())
}

pub(super) async fn methods_see_a_missing_object_as_missing(t: Fixture) -> Outcome {
    let seen = t.a.call_read("o", CLASS, "inspect", Bytes::new()).await?;
    ensure_eq!(seen, MISSING.text(), "report");
    ensure_eq!(
        t.a.call_read("o", CLASS, "seq", Bytes::new()).await?,
        "none",
        "snapset sequence"
    );
    let reply =
        t.a.read(
            "o",
            SnapId::HEAD,
            ReadOp::new().call(CLASS, "echo", "a").call(CLASS, "echo", "b"),
        )
        .await?;
    ensure_eq!(reply.version, 0, "version");
    ensure_errno!(
        t.a.read("o", SnapId::HEAD, ReadOp::new().call(CLASS, "echo", "").stat())
            .await,
        ENOENT
    );
    Ok(())
}

pub(super) async fn methods_read_data_keys_and_xattrs(t: Fixture) -> Outcome {
    let keys = ["a1", "a2", "a3", "b1"].map(|key| (Bytes::from(key), Bytes::new()));
    t.a.write_meta(
        "o",
        marked(t.op().write(0, "0123456789"), "m").step(WriteStep::OmapSet(keys.into())),
    )
    .await?;
    let seen = t.b.call_read("o", CLASS, "inspect", Bytes::new()).await?;
    let expected = Report {
        exists: true,
        size_bytes: 10,
        data: "0123456789",
        omap: "m",
        xattr: "m",
    };
    ensure_eq!(seen, expected.text(), "report");
    ensure_eq!(
        t.b.call_read("o", CLASS, "read", range_input(8, 100)).await?,
        "89",
        "short read"
    );
    ensure_eq!(
        t.b.call_read("o", CLASS, "read", range_input(99, 1)).await?,
        "",
        "read behind the end"
    );
    ensure_eq!(
        t.b.call_read("o", CLASS, "omap_get", OMAP_KEY.into()).await?,
        "m",
        "omap value"
    );
    ensure_errno!(
        t.b.call_read("o", CLASS, "omap_get", "none".into()).await,
        ENODATA
    );
    ensure_eq!(
        t.b.call_read("o", CLASS, "omap_list", offset_input(2, b"a"))
            .await?,
        "a1,a2+",
        "page of keys"
    );
    ensure_eq!(
        t.b.call_read("o", CLASS, "omap_list", offset_input(3, b"a"))
            .await?,
        "a1,a2,a3",
        "all keys"
    );
    ensure_eq!(
        t.b.call_read("o", CLASS, "xattr_get", XATTR.into()).await?,
        "m",
        "xattr"
    );
    Ok(())
}

pub(super) async fn methods_know_who_calls(t: Fixture) -> Outcome {
    t.a.write_meta("o", t.op().create(true)).await?;
    for io in [&t.a, &t.b] {
        let told = io.call_read("o", CLASS, "client", Bytes::new()).await?;
        ensure_eq!(told, io.store().instance().gid.to_string(), "gid of the caller");
    }
    Ok(())
}

pub(super) async fn methods_see_contents_before_the_operation_but_existence_and_size_after_earlier_steps(
    t: Fixture,
) -> Outcome {
    t.a.write_meta("o", marked(t.op().write(0, "before"), "before"))
        .await?;
    let op = marked(t.op().write(0, "after---longer"), "after").call(CLASS, "capture", "");
    t.a.write_meta("o", op).await?;
    let expected = Report {
        exists: true,
        size_bytes: 14,
        data: "before",
        omap: "before",
        xattr: "before",
    };
    ensure_eq!(
        xattr(&t.b, "o", CAPTURED).await?,
        Some(expected.text().into()),
        "report inside the operation"
    );
    let seen = t.b.call_read("o", CLASS, "inspect", Bytes::new()).await?;
    let expected = Report {
        data: "after---longer",
        omap: "after",
        xattr: "after",
        ..expected
    };
    ensure_eq!(seen, expected.text(), "report after the operation");
    Ok(())
}

pub(super) async fn methods_see_an_object_that_earlier_steps_made(t: Fixture) -> Outcome {
    let op = marked(t.op().create(true).write(0, "new"), "new").call(CLASS, "capture", "");
    t.a.write_meta("o", op).await?;
    let expected = Report {
        exists: true,
        size_bytes: 3,
        ..MISSING
    };
    ensure_eq!(
        xattr(&t.b, "o", CAPTURED).await?,
        Some(expected.text().into()),
        "report"
    );
    let exclusive = t.op().create(false).call(CLASS, "create", &b"\x01"[..]);
    ensure_errno!(t.a.write_meta("p", exclusive).await, EEXIST, step t.lead() + 1);
    Ok(())
}

pub(super) async fn methods_see_existence_and_size_that_earlier_methods_made(t: Fixture) -> Outcome {
    let op = t
        .op()
        .call(CLASS, "write", offset_input(7, b"xyz"))
        .call(CLASS, "truncate", offset_input(9, b""))
        .call(CLASS, "capture", "");
    t.a.write_meta("o", op).await?;
    let expected = Report {
        exists: true,
        size_bytes: 9,
        ..MISSING
    };
    ensure_eq!(
        xattr(&t.b, "o", CAPTURED).await?,
        Some(expected.text().into()),
        "report"
    );
    ensure_eq!(head(&t.b, "o").await?, &b"\0\0\0\0\0\0\0xy"[..], "content");
    Ok(())
}

pub(super) async fn equal_calls_in_one_operation_do_not_see_each_other(t: Fixture) -> Outcome {
    let add = |op: WriteOp| op.call(CLASS, "omap_add", "name=id");
    t.a.write_meta("o", add(add(t.op()))).await?;
    ensure_eq!(
        omap(&t.b, "o", SnapId::HEAD).await?,
        vec![("name".into(), "id".into())],
        "omap"
    );
    ensure_errno!(t.a.write_meta("o", add(t.op())).await, EEXIST, step t.lead());
    Ok(())
}

pub(super) async fn methods_that_write_make_the_object_and_others_do_not(t: Fixture) -> Outcome {
    t.a.write_meta("nothing", WriteOp::new().call(CLASS, "nothing", ""))
        .await?;
    t.a.write_meta("nothing", WriteOp::new().call(CLASS, "echo", "x"))
        .await?;
    t.a.write_meta("nothing", WriteOp::new().call(CLASS, "zero", range_input(0, 9)))
        .await?;
    t.a.write_meta(
        "nothing",
        WriteOp::new().call(CLASS, "truncate", offset_input(9, b"")),
    )
    .await?;
    ensure!(
        !t.b.exists("nothing").await?,
        "a method that writes nothing made the object"
    );
    let writers: [(&'static str, Bytes, &str); 5] = [
        ("create", Bytes::new(), ""),
        ("write", offset_input(1, b"x"), "\0x"),
        ("write_full", "full".into(), "full"),
        ("omap_set", "k=v".into(), ""),
        ("xattr_set", "k=v".into(), ""),
    ];
    for (method, input, expected) in writers {
        t.a.call_write(method, CLASS, method, input).await?;
        ensure_eq!(head(&t.b, method).await?, expected, "content made by {method}");
    }
    ensure_errno!(t.a.call_write("nothing", CLASS, "remove", Bytes::new()).await, ENOENT, step 0);
    Ok(())
}

pub(super) async fn methods_change_everything_that_steps_can(t: Fixture) -> Outcome {
    let op = t
        .op()
        .call(CLASS, "write_full", "0123456789")
        .call(CLASS, "zero", range_input(2, 3))
        .call(CLASS, "write", offset_input(8, b"xyz"))
        .call(CLASS, "omap_set", "a=1")
        .call(CLASS, "omap_set", "b=2")
        .call(CLASS, "omap_remove", "a")
        .call(CLASS, "xattr_set", "n=v");
    t.a.write_meta("o", op).await?;
    ensure_eq!(head(&t.b, "o").await?, &b"01\0\0\x00567xyz"[..], "data");
    ensure_eq!(
        omap(&t.b, "o", SnapId::HEAD).await?,
        vec![("b".into(), "2".into())],
        "omap"
    );
    ensure_eq!(xattr(&t.b, "o", "n").await?, Some("v".into()), "xattr");
    t.a.call_write("o", CLASS, "remove", Bytes::new()).await?;
    ensure!(!t.b.exists("o").await?, "removed by a method, but exists");
    Ok(())
}

pub(super) async fn methods_write_under_the_snapshot_context(t: Fixture) -> Outcome {
    t.a.write_meta("o", marked(t.op().write(0, "old"), "old")).await?;
    ensure_eq!(
        t.b.call_read("o", CLASS, "seq", Bytes::new()).await?,
        "0",
        "snapset sequence"
    );
    let id = t.snap().await?;
    t.a.write("o", &context(&[id]), t.op().call(CLASS, "write_full", "newer"))
        .await?;
    ensure_eq!(
        content(&t.b, "o", id).await?,
        Some("old".into()),
        "content at the snapshot"
    );
    let seen =
        t.b.read("o", id, ReadOp::new().call(CLASS, "inspect", ""))
            .await?;
    let expected = Report {
        exists: true,
        size_bytes: 3,
        data: "old",
        omap: "old",
        xattr: "old",
    };
    ensure_eq!(
        seen.output(0),
        expected.text().as_bytes(),
        "report at the snapshot"
    );
    ensure_eq!(
        t.b.call_read("o", CLASS, "seq", Bytes::new()).await?,
        id.to_string(),
        "snapset sequence"
    );
    t.a.write("o", &context(&[id]), t.op().remove()).await?;
    let seen = t.b.call_read("o", CLASS, "seq", Bytes::new()).await?;
    ensure_eq!(
        seen,
        id.to_string(),
        "snapset sequence of an object that has only clones"
    );
    let seen = t.b.call_read("o", CLASS, "inspect", Bytes::new()).await?;
    ensure_eq!(seen, MISSING.text(), "report on a head that is away");
    Ok(())
}

pub(super) async fn racing_calls_are_one_after_the_other(t: Fixture) -> Outcome {
    for round in 0..10 {
        let name = format!("o{round}");
        let add = || "k=v".into();
        let (first, second) = tokio::join!(
            t.a.call_write(&name, CLASS, "omap_add", add()),
            t.b.call_write(&name, CLASS, "omap_add", add()),
        );
        ensure!(
            first.is_ok() != second.is_ok(),
            "{first:?} and {second:?} in round {round}"
        );
    }
    Ok(())
}
