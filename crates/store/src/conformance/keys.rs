//! Cases: omap and xattrs, with any bytes in keys and values.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::fixture::{
    Fixture, Outcome, content, ensure, ensure_eq, ensure_errno, head, omap, version, xattr,
};
use crate::IoCtx;
use crate::op::{ReadOp, ReadResult, ReadStep, WriteOp, WriteStep};
use crate::types::SnapId;

type Page = (Vec<(Bytes, Bytes)>, bool);

async fn page(io: &IoCtx, start_after: &[u8], prefix: &[u8], max: usize) -> Outcome<Page> {
    let step = ReadStep::OmapGetVals {
        start_after: Bytes::copy_from_slice(start_after),
        prefix: Bytes::copy_from_slice(prefix),
        max,
    };
    let reply = io.read("o", SnapId::HEAD, ReadOp::new().step(step)).await?;
    match reply.results.into_iter().next() {
        Some(ReadResult::Omap { values, more }) => Ok((values.into_iter().collect(), more)),
        other => Err(format!("an omap listing answered {other:?}").into()),
    }
}

fn set<const COUNT: usize>(pairs: [(&'static [u8], &'static [u8]); COUNT]) -> WriteStep {
    let pairs = pairs.into_iter();
    WriteStep::OmapSet(pairs.map(|(key, value)| (key.into(), value.into())).collect())
}

fn pairs<const COUNT: usize>(pairs: [(&'static [u8], &'static [u8]); COUNT]) -> Vec<(Bytes, Bytes)> {
    let pairs = pairs.into_iter();
    pairs.map(|(key, value)| (key.into(), value.into())).collect()
}

fn set_xattr(name: &str, value: &'static [u8]) -> WriteStep {
    WriteStep::SetXattr {
        name: name.to_owned(),
        value: value.into(),
    }
}

pub(super) async fn omap_keys_are_set_replaced_and_removed(t: Fixture) -> Outcome {
    t.a.write_meta("o", t.op().step(set([(b"a", b"1"), (b"b", b"2"), (b"c", b"3")])))
        .await?;
    t.b.write_meta("o", t.op().step(set([(b"b", b"two"), (b"d", b"")])))
        .await?;
    t.b.write_meta(
        "o",
        t.op()
            .step(WriteStep::OmapRemove(vec!["a".into(), "never there".into()])),
    )
    .await?;
    let expected = pairs([(b"b", b"two"), (b"c", b"3"), (b"d", b"")]);
    ensure_eq!(omap(&t.a, "o", SnapId::HEAD).await?, expected, "omap");
    ensure_eq!(head(&t.a, "o").await?, "", "an object made by omap is empty");
    Ok(())
}

pub(super) async fn omap_keys_and_values_may_be_any_bytes(t: Fixture) -> Outcome {
    let every: Bytes = (0..=255u8).collect::<Vec<_>>().into();
    let mut expected: BTreeMap<Bytes, Bytes> = BTreeMap::new();
    for byte in 0..=255u8 {
        expected.insert(vec![byte].into(), every.clone());
        expected.insert(vec![0, byte].into(), vec![byte, 0, byte].into());
    }
    expected.insert(every.clone(), Bytes::from(vec![0xff; 70_000]));
    expected.insert(b"\xff\xff\xff".as_slice().into(), b"\0".as_slice().into());
    t.a.write_meta("o", t.op().step(WriteStep::OmapSet(expected.clone())))
        .await?;
    let listed = omap(&t.b, "o", SnapId::HEAD).await?;
    ensure!(
        listed == expected.into_iter().collect::<Vec<_>>(),
        "binary keys or values came back otherwise"
    );
    let doomed = vec![Bytes::from(vec![0]), Bytes::from(vec![0, 0]), every.clone()];
    t.a.write_meta("o", t.op().step(WriteStep::OmapRemove(doomed.clone())))
        .await?;
    let reply =
        t.b.read(
            "o",
            SnapId::HEAD,
            ReadOp::new().step(ReadStep::OmapGetValsByKeys(doomed)),
        )
        .await?;
    let none = ReadResult::Omap {
        values: BTreeMap::new(),
        more: false,
    };
    ensure_eq!(reply.results[0], none, "removed binary keys");
    Ok(())
}

pub(super) async fn omap_listing_pages_in_byte_order_and_tells_of_more(t: Fixture) -> Outcome {
    let keys: Vec<Bytes> = (0..25u8)
        .map(|index| vec![b'k', index.wrapping_mul(11)].into())
        .collect();
    let all: BTreeMap<Bytes, Bytes> = keys.iter().map(|key| (key.clone(), key.slice(1..))).collect();
    t.a.write_meta("o", t.op().step(WriteStep::OmapSet(all.clone())))
        .await?;
    for size in [1, 7, 24, 25, 26] {
        let (mut seen, mut last) = (Vec::new(), Bytes::new());
        loop {
            let (pairs, more) = page(&t.b, &last, b"", size).await?;
            ensure!(
                pairs.len() <= size,
                "a page of {} pairs, {size} asked",
                pairs.len()
            );
            seen.extend(pairs);
            if !more {
                break;
            }
            ensure!(
                seen.last().is_some_and(|(key, _)| *key > last),
                "more is promised but nothing came"
            );
            last = seen.last().map(|(key, _)| key.clone()).unwrap_or_default();
        }
        ensure_eq!(
            seen,
            all.clone().into_iter().collect::<Vec<_>>(),
            "all pages of {size}"
        );
    }
    Ok(())
}

pub(super) async fn omap_listing_honours_start_and_prefix(t: Fixture) -> Outcome {
    let all = set([
        (b"a", b"0"),
        (b"p", b"1"),
        (b"p\0", b"2"),
        (b"pa", b"3"),
        (b"p\xff", b"4"),
        (b"q", b"5"),
    ]);
    t.a.write_meta("o", t.op().step(all)).await?;
    let middle = pairs([(b"p", b"1"), (b"p\0", b"2"), (b"pa", b"3"), (b"p\xff", b"4")]);
    ensure_eq!(
        page(&t.b, b"", b"p", 10).await?,
        (middle.clone(), false),
        "prefix alone"
    );
    ensure_eq!(
        page(&t.b, b"p\0", b"p", 10).await?,
        (middle[2..].to_vec(), false),
        "start inside the prefix"
    );
    ensure_eq!(
        page(&t.b, b"b", b"p", 2).await?,
        (middle[..2].to_vec(), true),
        "start before the prefix"
    );
    ensure_eq!(
        page(&t.b, b"", b"p", 4).await?,
        (middle.clone(), false),
        "the page ends where the prefix ends"
    );
    ensure_eq!(
        page(&t.b, b"p\xff", b"p", 4).await?,
        (Vec::new(), false),
        "start at the last one"
    );
    ensure_eq!(
        page(&t.b, b"q", b"p", 4).await?,
        (Vec::new(), false),
        "start behind the prefix"
    );
    ensure_eq!(
        page(&t.b, b"pz", b"", 4).await?,
        (pairs([(b"p\xff", b"4"), (b"q", b"5")]), false),
        "no prefix"
    );
    Ok(())
}

pub(super) async fn omap_values_by_key_leave_missing_ones_out(t: Fixture) -> Outcome {
    t.a.write_meta("o", t.op().step(set([(b"a", b"1"), (b"b", b""), (b"c", b"3")])))
        .await?;
    let keys = vec!["c".into(), "nope".into(), "b".into()];
    let reply =
        t.b.read(
            "o",
            SnapId::HEAD,
            ReadOp::new().step(ReadStep::OmapGetValsByKeys(keys)),
        )
        .await?;
    let expected = ReadResult::Omap {
        values: pairs([(b"b", b""), (b"c", b"3")]).into_iter().collect(),
        more: false,
    };
    ensure_eq!(reply.results[0], expected, "values");
    Ok(())
}

pub(super) async fn omap_compare_takes_a_missing_key_for_empty(t: Fixture) -> Outcome {
    let expect = |key: &'static str, value: &'static str| WriteStep::OmapCompare {
        key: key.into(),
        value: value.into(),
    };
    t.a.write_meta("missing", WriteOp::new().step(expect("k", "")))
        .await?;
    ensure_errno!(t.a.write_meta("missing", WriteOp::new().step(expect("k", "v"))).await, ECANCELED, step 0);
    ensure!(!t.b.exists("missing").await?, "a comparison made the object");
    t.a.write_meta("o", t.op().step(set([(b"k", b"v")]))).await?;
    t.a.write_meta(
        "o",
        t.op()
            .step(expect("k", "v"))
            .step(expect("none", ""))
            .write(0, "y"),
    )
    .await?;
    ensure_eq!(head(&t.b, "o").await?, "y", "content");
    for (key, value) in [("k", ""), ("k", "w"), ("none", "v")] {
        let op = t.op().write(0, "x").step(expect(key, value));
        ensure_errno!(t.a.write_meta("o", op).await, ECANCELED, step t.lead() + 1);
    }
    ensure_eq!(head(&t.b, "o").await?, "y", "content after mismatches");
    Ok(())
}

pub(super) async fn removing_omap_keys_of_a_missing_object_is_enoent(t: Fixture) -> Outcome {
    let op = WriteOp::new().step(WriteStep::OmapRemove(vec!["k".into()]));
    ensure_errno!(t.a.write_meta("o", op).await, ENOENT, step 0);
    ensure!(!t.b.exists("o").await?, "the removal of a key made the object");
    Ok(())
}

pub(super) async fn xattrs_are_set_read_listed_and_removed(t: Fixture) -> Outcome {
    t.a.write_meta(
        "o",
        t.op()
            .step(set_xattr("one", b"1"))
            .step(set_xattr("two", b"\0\xff")),
    )
    .await?;
    t.b.write_meta(
        "o",
        t.op()
            .step(set_xattr("one", b"uno"))
            .step(set_xattr("empty", b"")),
    )
    .await?;
    ensure_eq!(
        xattr(&t.a, "o", "one").await?,
        Some("uno".into()),
        "a replaced xattr"
    );
    ensure_eq!(
        xattr(&t.a, "o", "empty").await?,
        Some(Bytes::new()),
        "an empty xattr"
    );
    let reply =
        t.a.read("o", SnapId::HEAD, ReadOp::new().step(ReadStep::GetXattrs))
            .await?;
    let expected = [("one", &b"uno"[..]), ("two", b"\0\xff"), ("empty", b"")];
    let expected = expected
        .into_iter()
        .map(|(name, value)| (name.to_owned(), Bytes::from(value)));
    ensure_eq!(
        reply.results[0],
        ReadResult::Xattrs(expected.collect()),
        "all xattrs"
    );
    t.b.write_meta("o", t.op().step(WriteStep::RemoveXattr("one".into())))
        .await?;
    ensure_eq!(xattr(&t.a, "o", "one").await?, None, "a removed xattr");
    ensure_eq!(head(&t.a, "o").await?, "", "an object made by an xattr is empty");
    Ok(())
}

pub(super) async fn missing_xattrs_are_enodata(t: Fixture) -> Outcome {
    t.a.write_meta("o", t.op().create(true)).await?;
    let read = ReadOp::new().stat().step(ReadStep::GetXattr("none".into()));
    ensure_errno!(t.a.read("o", SnapId::HEAD, read).await, ENODATA, step 1);
    let write = t.op().write(0, "x").step(WriteStep::RemoveXattr("none".into()));
    if t.harness.is_osd() {
        t.a.write_meta("o", write).await?;
    } else {
        ensure_errno!(t.a.write_meta("o", write).await, ENODATA, step t.lead() + 1);
        ensure_eq!(head(&t.b, "o").await?, "", "content after the failed operation");
    }
    let write = WriteOp::new().step(WriteStep::RemoveXattr("none".into()));
    ensure_errno!(t.a.write_meta("missing", write).await, ENODATA | ENOENT, step 0);
    ensure!(
        !t.b.exists("missing").await?,
        "the removal of an xattr made the object"
    );
    Ok(())
}

pub(super) async fn keys_xattrs_and_data_change_together_and_go_together(t: Fixture) -> Outcome {
    let all = |op: WriteOp| {
        op.write(0, "data")
            .step(set([(b"k", b"v")]))
            .step(set_xattr("x", b"y"))
    };
    t.a.write_meta("o", all(t.op())).await?;
    let before = version(&t.a, "o").await?;
    t.a.write_meta("o", t.op().step(set([(b"k", b"w")]))).await?;
    let between = version(&t.a, "o").await?;
    t.a.write_meta("o", t.op().step(set_xattr("x", b"z"))).await?;
    let after = version(&t.a, "o").await?;
    ensure!(
        before < between && between < after,
        "versions {before}, {between}, {after} must grow"
    );
    ensure_eq!(head(&t.b, "o").await?, "data", "data after key changes");
    t.a.write_meta("o", t.op().write_full("other")).await?;
    ensure_eq!(
        omap(&t.b, "o", SnapId::HEAD).await?,
        pairs([(b"k", b"w")]),
        "omap after write_full"
    );
    ensure_eq!(
        xattr(&t.b, "o", "x").await?,
        Some("z".into()),
        "xattr after write_full"
    );
    t.a.write_meta("o", t.op().remove()).await?;
    t.a.write_meta("o", t.op().create(true)).await?;
    ensure_eq!(
        omap(&t.b, "o", SnapId::HEAD).await?,
        Vec::new(),
        "omap of a new object"
    );
    ensure_eq!(xattr(&t.b, "o", "x").await?, None, "xattr of a new object");
    t.a.write_meta("o", all(t.op())).await?;
    t.a.write_meta("o", t.op().remove().create(true)).await?;
    ensure_eq!(
        omap(&t.b, "o", SnapId::HEAD).await?,
        Vec::new(),
        "omap after removing and making in one operation"
    );
    ensure_eq!(
        content(&t.b, "o", SnapId::HEAD).await?,
        Some(Bytes::new()),
        "data after that"
    );
    Ok(())
}

pub(super) async fn ten_thousand_keys_are_no_burden(t: Fixture) -> Outcome {
    for batch in 0..10u32 {
        let keys = (0..1000u32).map(|index| {
            let number = batch * 1000 + index;
            (
                Bytes::from(format!("key{number:08}")),
                Bytes::from(number.to_le_bytes().to_vec()),
            )
        });
        t.a.write_meta("o", t.op().step(WriteStep::OmapSet(keys.collect())))
            .await?;
    }
    let (values, more) = page(&t.b, b"key00004999", b"key", 1001).await?;
    ensure!(more, "more must be promised");
    ensure_eq!(values.len(), 1001, "pairs in the page");
    ensure_eq!(values[0].0, "key00005000", "first key of the page");
    ensure_eq!(values[1000].0, "key00006000", "last key of the page");
    Ok(())
}
