//! Cases: bytes of objects, without snapshots. Run on plain and on bulk objects.

use bytes::Bytes;

use super::fixture::{
    Fixture, Outcome, content, ensure, ensure_eq, ensure_errno, filled, head, pattern, size_of, sparse_of,
    version,
};
use crate::op::{ReadOp, ReadResult, ReadStep};
use crate::types::{SnapContext, SnapId, Timestamp};

pub(super) async fn a_write_is_read_back_by_every_client(t: Fixture) -> Outcome {
    t.a.write_meta("o", t.op().write(0, "hello")).await?;
    ensure_eq!(head(&t.a, "o").await?, "hello", "the writer reads");
    ensure_eq!(head(&t.b, "o").await?, "hello", "another client reads");
    t.b.write_meta("o", t.op().write(1, "ipp")).await?;
    ensure_eq!(head(&t.a, "o").await?, "hippo", "after the other's write");
    Ok(())
}

pub(super) async fn buffered_writes_are_visible_to_everyone_at_once(t: Fixture) -> Outcome {
    t.a.write_meta("o", t.buffered().write(0, "buffered")).await?;
    ensure_eq!(head(&t.b, "o").await?, "buffered", "another client reads");
    t.b.write_meta("o", t.op().write(0, "F")).await?;
    t.a.write_meta("o", t.buffered().write(7, "D")).await?;
    ensure_eq!(
        head(&t.b, "o").await?,
        "FuffereD",
        "after a full and a buffered write"
    );
    Ok(())
}

pub(super) async fn a_write_past_the_end_leaves_zeros_between(t: Fixture) -> Outcome {
    t.a.write_meta("o", t.op().write(0, "ab")).await?;
    t.a.write_meta("o", t.op().write(100_000, "yz")).await?;
    let data = head(&t.b, "o").await?;
    ensure_eq!(data.len(), 100_002, "size");
    ensure_eq!(&data[..2], b"ab", "start");
    ensure!(
        data[2..100_000].iter().all(|byte| *byte == 0),
        "the gap is not all zero"
    );
    ensure_eq!(&data[100_000..], b"yz", "end");
    Ok(())
}

pub(super) async fn a_first_write_at_an_offset_makes_the_bytes_before_zero(t: Fixture) -> Outcome {
    t.a.write_meta("o", t.op().write(70_000, pattern(1, 5000)))
        .await?;
    let data = head(&t.a, "o").await?;
    ensure_eq!(data.len(), 75_000, "size");
    ensure!(
        data[..70_000].iter().all(|byte| *byte == 0),
        "bytes before the write are not zero"
    );
    ensure_eq!(&data[70_000..], &pattern(1, 5000)[..], "written bytes");
    Ok(())
}

pub(super) async fn an_empty_write_at_zero_creates_an_empty_object(t: Fixture) -> Outcome {
    t.a.write_meta("o", t.op().write(0, Bytes::new())).await?;
    ensure_eq!(
        content(&t.b, "o", SnapId::HEAD).await?,
        Some(Bytes::new()),
        "content"
    );
    t.a.write_meta("p", t.op().write(0, "stays")).await?;
    t.a.write_meta("p", t.op().write(0, Bytes::new())).await?;
    ensure_eq!(head(&t.a, "p").await?, "stays", "content after an empty write");
    Ok(())
}

pub(super) async fn unaligned_overwrites_keep_their_neighbours(t: Fixture) -> Outcome {
    let mut expected = pattern(1, 40_000).to_vec();
    t.a.write_meta("o", t.op().write(0, expected.clone())).await?;
    let writes = [
        (1, 1),
        (511, 2),
        (4095, 2),
        (4096, 4096),
        (8191, 4098),
        (39_999, 1),
        (12_345, 6789),
    ];
    for (round, (offset, length)) in writes.into_iter().enumerate() {
        let data = pattern(round as u8 + 2, length);
        expected[offset..offset + length].copy_from_slice(&data);
        let op = if round % 2 == 0 { t.buffered() } else { t.op() };
        t.a.write_meta("o", op.write(offset as u64, data)).await?;
        ensure_eq!(
            head(&t.b, "o").await?,
            expected,
            "content after {length} bytes at {offset}"
        );
    }
    Ok(())
}

pub(super) async fn an_object_of_full_size_keeps_all_its_bytes(t: Fixture) -> Outcome {
    let data = pattern(7, 4 << 20);
    for chunk in 0..4 {
        let range = chunk << 20..(chunk + 1) << 20;
        t.a.write_meta("o", t.buffered().write((chunk as u64) << 20, data.slice(range)))
            .await?;
    }
    ensure!(head(&t.b, "o").await? == data, "4 MiB come back otherwise");
    Ok(())
}

pub(super) async fn write_full_replaces_the_whole_content(t: Fixture) -> Outcome {
    t.a.write_meta("o", t.op().write_full(pattern(1, 9000))).await?;
    ensure_eq!(head(&t.a, "o").await?, pattern(1, 9000), "first content");
    t.a.write_meta("o", t.op().write_full("short")).await?;
    ensure_eq!(head(&t.b, "o").await?, "short", "shorter content");
    t.a.write_meta("o", t.op().write(10, "x")).await?;
    ensure_eq!(
        head(&t.b, "o").await?,
        &b"short\0\0\0\0\0x"[..],
        "old bytes must not come back when it grows"
    );
    t.a.write_meta("o", t.op().write_full(Bytes::new())).await?;
    ensure_eq!(head(&t.b, "o").await?, "", "empty content");
    Ok(())
}

pub(super) async fn zero_clears_a_range_and_never_grows_the_object(t: Fixture) -> Outcome {
    let mut expected = pattern(1, 20_000).to_vec();
    t.a.write_meta("o", t.op().write(0, expected.clone())).await?;
    for (offset, length) in [
        (0, 10),
        (4096, 8192),
        (500, 5000),
        (19_990, 1_000_000),
        (50_000, 10),
    ] {
        t.a.write_meta("o", t.op().zero(offset as u64, length as u64))
            .await?;
        let end = (offset + length).min(expected.len());
        if offset < end && end == expected.len() && t.harness.is_osd() {
            expected.truncate(offset);
        } else if offset < end {
            expected[offset..end].fill(0);
        }
        ensure_eq!(
            head(&t.b, "o").await?,
            expected,
            "content after zeroing {length} bytes at {offset}"
        );
    }
    Ok(())
}

pub(super) async fn truncate_cuts_and_grows_with_zeros(t: Fixture) -> Outcome {
    t.a.write_meta("o", t.op().write(0, pattern(1, 10_000))).await?;
    t.a.write_meta("o", t.op().truncate(5001)).await?;
    ensure_eq!(head(&t.b, "o").await?, pattern(1, 5001), "cut content");
    t.a.write_meta("o", t.op().truncate(10_000)).await?;
    let mut expected = pattern(1, 5001).to_vec();
    expected.resize(10_000, 0);
    ensure_eq!(
        head(&t.b, "o").await?,
        expected,
        "bytes cut off must not come back"
    );
    t.a.write_meta("o", t.op().truncate(10_000)).await?;
    ensure_eq!(
        head(&t.b, "o").await?,
        expected,
        "content after truncating to its own size"
    );
    t.a.write_meta("o", t.op().truncate(0)).await?;
    ensure_eq!(
        content(&t.b, "o", SnapId::HEAD).await?,
        Some(Bytes::new()),
        "an emptied object exists"
    );
    Ok(())
}

pub(super) async fn zero_and_truncate_leave_a_missing_object_missing(t: Fixture) -> Outcome {
    t.a.write_meta("o", crate::WriteOp::new().zero(0, 100)).await?;
    t.a.write_meta("o", crate::WriteOp::new().truncate(100)).await?;
    t.a.write_meta("o", crate::WriteOp::new().truncate(0).zero(5, 5))
        .await?;
    ensure!(!t.b.exists("o").await?, "zero or truncate made the object");
    ensure_eq!(
        t.store().list_objects(t.scope(), "", "", 10).await?,
        Vec::<String>::new(),
        "listing"
    );
    Ok(())
}

pub(super) async fn remove_takes_all_away_and_a_new_object_starts_empty(t: Fixture) -> Outcome {
    let op = t.op().write(0, pattern(1, 5000));
    t.a.write_meta("o", op).await?;
    t.a.write_meta("o", t.op().remove()).await?;
    ensure_eq!(
        content(&t.b, "o", SnapId::HEAD).await?,
        None,
        "content of the removed object"
    );
    ensure_errno!(t.a.list_snaps("o", &[]).await, ENOENT);
    t.a.write_meta("o", t.op().write(5, "x")).await?;
    ensure_eq!(
        head(&t.b, "o").await?,
        &b"\0\0\0\0\0x"[..],
        "old bytes must not come back"
    );
    Ok(())
}

pub(super) async fn removing_a_missing_object_is_enoent(t: Fixture) -> Outcome {
    ensure_errno!(t.a.write_meta("o", t.op().remove()).await, ENOENT, step t.lead());
    t.a.write_meta("o", t.op().create(false)).await?;
    t.a.write_meta("o", t.op().remove()).await?;
    ensure_errno!(t.a.write_meta("o", t.op().remove()).await, ENOENT, step t.lead());
    Ok(())
}

pub(super) async fn an_operation_may_remove_and_make_again(t: Fixture) -> Outcome {
    t.a.write_meta("o", t.op().write(0, pattern(1, 100))).await?;
    t.a.write_meta("o", t.op().remove().write(2, "new")).await?;
    ensure_eq!(head(&t.b, "o").await?, &b"\0\0new"[..], "content");
    t.a.write_meta("p", t.op().write(0, "x").remove()).await?;
    ensure!(
        !t.b.exists("p").await?,
        "made and removed in one operation, but exists"
    );
    Ok(())
}

pub(super) async fn steps_of_a_write_take_effect_in_order(t: Fixture) -> Outcome {
    let op = t
        .op()
        .write(0, "aaaaaaaaaa")
        .write(2, "bbbb")
        .zero(4, 2)
        .truncate(8)
        .write(9, "c");
    t.a.write_meta("o", op).await?;
    ensure_eq!(head(&t.b, "o").await?, &b"aabb\0\0aa\0c"[..], "content");
    t.a.write_meta("o", t.op().write(0, "lost").write_full("kept").write(4, "!"))
        .await?;
    ensure_eq!(head(&t.b, "o").await?, "kept!", "content");
    Ok(())
}

pub(super) async fn reads_are_short_at_the_end(t: Fixture) -> Outcome {
    t.a.write_meta("o", t.op().write(0, "0123456789")).await?;
    let op = ReadOp::new()
        .read(8, 100)
        .read(10, 5)
        .read(1 << 40, 5)
        .read(3, 0)
        .read(2, 3);
    let reply = t.b.read("o", SnapId::HEAD, op).await?;
    let expected = ["89", "", "", "", "234"];
    for (step, expected) in expected.into_iter().enumerate() {
        ensure_eq!(
            reply.results[step],
            ReadResult::Data(expected.into()),
            "read {step}"
        );
    }
    Ok(())
}

pub(super) async fn a_read_longer_than_memory_is_short_not_fatal(t: Fixture) -> Outcome {
    t.a.write_meta("o", t.op().write(0, "small")).await?;
    let op = ReadOp::new()
        .read(0, 1 << 50)
        .sparse_read(0, 1 << 50)
        .read(1, u64::MAX);
    let reply = t.b.read("o", SnapId::HEAD, op).await?;
    ensure_eq!(reply.data(0), "small", "read");
    ensure_eq!(filled(&sparse_of(&reply, 1)?, 5)?, "small", "sparse read");
    ensure_eq!(reply.data(2), "mall", "read whose end overflows");
    Ok(())
}

pub(super) async fn a_write_that_ends_behind_every_offset_fails_without_effect(t: Fixture) -> Outcome {
    t.a.write_meta("o", t.op().write(0, "x")).await?;
    ensure_errno!(
        t.a.write_meta("o", t.op().write(0, "y").write(u64::MAX - 1, "overflow"))
            .await,
        EFBIG | EINVAL
    );
    ensure_errno!(
        t.a.write_meta("o", t.op().write(0, "y").truncate(u64::MAX)).await,
        EFBIG | EINVAL
    );
    ensure_eq!(head(&t.b, "o").await?, "x", "content");
    Ok(())
}

pub(super) async fn a_sparse_read_agrees_with_a_plain_one_in_every_window(t: Fixture) -> Outcome {
    t.a.write_meta("o", t.op().write(0, pattern(1, 100))).await?;
    t.a.write_meta("o", t.op().write(300_000, pattern(2, 70_000)))
        .await?;
    t.a.write_meta("o", t.op().zero(310_000, 40_000)).await?;
    let whole = head(&t.a, "o").await?;
    for (offset, length) in [
        (0, 370_000),
        (50, 100),
        (200_000, 50_000),
        (299_999, 2),
        (305_000, 50_000),
        (369_999, 9),
    ] {
        let reply =
            t.b.read("o", SnapId::HEAD, ReadOp::new().sparse_read(offset, length))
                .await?;
        let end = (offset + length).min(whole.len() as u64);
        let mut window = vec![0; (end - offset) as usize];
        for (start, bytes) in sparse_of(&reply, 0)? {
            ensure!(
                start >= offset && start + bytes.len() as u64 <= end,
                "a run leaves the window"
            );
            window[(start - offset) as usize..][..bytes.len()].copy_from_slice(&bytes);
        }
        ensure_eq!(
            &window[..],
            &whole[offset as usize..end as usize],
            "window {offset}~{length}"
        );
    }
    Ok(())
}

pub(super) async fn steps_of_a_read_all_see_one_moment(t: Fixture) -> Outcome {
    t.a.write_meta(
        "o",
        t.op().write(0, pattern(0, 4096)).write(4096, pattern(0, 4096)),
    )
    .await?;
    let writer = {
        let (io, first, second) = (t.b.clone(), t.op(), t.op());
        tokio::spawn(async move {
            for round in 0..40u8 {
                let op = if round % 2 == 0 {
                    first.clone()
                } else {
                    second.clone()
                };
                let op = op
                    .write(0, pattern(round, 4096))
                    .write(4096, pattern(round, 4096));
                io.write_meta("o", op).await?;
            }
            Ok::<_, crate::StoreError>(())
        })
    };
    while !writer.is_finished() {
        let op = ReadOp::new().read(0, 4096).stat().read(4096, 4096);
        let reply = t.a.read("o", SnapId::HEAD, op).await?;
        ensure!(
            reply.data(0) == reply.data(2),
            "one read saw two versions of the object"
        );
        tokio::task::yield_now().await;
    }
    writer.await.map_err(|error| error.to_string())??;
    Ok(())
}

pub(super) async fn stat_tells_size_and_time(t: Fixture) -> Outcome {
    t.a.write_meta("o", t.op().write(0, pattern(1, 4097))).await?;
    let reply = t.b.read("o", SnapId::HEAD, ReadOp::new().stat()).await?;
    ensure_eq!(size_of(&reply, 0)?, 4097, "size");
    let timeless =
        matches!(&reply.results[0], ReadResult::Stat { mtime, .. } if *mtime == Timestamp::default());
    ensure!(!timeless, "the object has no modification time");
    Ok(())
}

pub(super) async fn a_missing_object_reads_as_enoent(t: Fixture) -> Outcome {
    for op in [
        ReadOp::new().stat(),
        ReadOp::new().read(0, 10),
        ReadOp::new().sparse_read(0, 10),
        ReadOp::new().step(ReadStep::AssertExists),
        ReadOp::new().step(ReadStep::GetXattrs),
        ReadOp::new().step(ReadStep::GetXattr("x".into())),
        ReadOp::new().step(ReadStep::OmapGetValsByKeys(vec!["k".into()])),
        ReadOp::new().step(ReadStep::CompareExtent {
            offset: 0,
            expected: Bytes::new(),
        }),
    ] {
        ensure_errno!(t.a.read("o", SnapId::HEAD, op).await, ENOENT);
    }
    Ok(())
}

pub(super) async fn versions_grow_with_every_change_and_not_with_reads(t: Fixture) -> Outcome {
    ensure_eq!(version(&t.a, "o").await?, 0, "version of a missing object");
    let mut last = 0;
    for op in [
        t.op().create(true),
        t.op().write(0, "abc"),
        t.buffered().write(0, "abd"),
        t.op().zero(0, 1),
        t.op().truncate(2),
        t.op().write_full("new"),
    ] {
        let told = t.a.write_meta("o", op).await?.version;
        let seen = version(&t.b, "o").await?;
        ensure_eq!(
            told,
            seen,
            "version in the reply of the write against that of a read"
        );
        ensure!(seen > last, "version {seen} after {last}");
        ensure_eq!(version(&t.a, "o").await?, seen, "version after a read");
        last = seen;
    }
    t.a.write_meta("o", t.op().remove()).await?;
    ensure_eq!(version(&t.b, "o").await?, 0, "version of a removed object");
    t.a.write_meta("o", t.op().write(0, "again")).await?;
    ensure!(
        version(&t.b, "o").await? > last,
        "a new object must not reuse versions of a removed one"
    );
    Ok(())
}

pub(super) async fn a_write_that_fails_changes_no_version(t: Fixture) -> Outcome {
    t.a.write_meta("o", t.op().write(0, "abc")).await?;
    let before = version(&t.a, "o").await?;
    ensure_errno!(
        t.a.write_meta("o", t.op().write(0, "x").create(true)).await,
        EEXIST
    );
    ensure_eq!(version(&t.b, "o").await?, before, "version");
    Ok(())
}

pub(super) async fn a_hint_changes_no_content(t: Fixture) -> Outcome {
    let hint = || crate::WriteOp::new().alloc_hint(4 << 20);
    t.a.write_meta("made-plain", crate::WriteOp::new().write(0, pattern(1, 5000)))
        .await?;
    t.a.write_meta("made-plain", hint()).await?;
    ensure_eq!(
        head(&t.a, "made-plain").await?,
        pattern(1, 5000),
        "content after a hint alone"
    );
    t.a.write_meta("made-plain", hint().write(5000, "tail")).await?;
    t.a.write_meta("made-bulk", hint().write(0, pattern(1, 5000)))
        .await?;
    t.a.write_meta("made-bulk", crate::WriteOp::new().write(5000, "tail"))
        .await?;
    ensure_eq!(
        head(&t.b, "made-plain").await?,
        head(&t.b, "made-bulk").await?,
        "content of both"
    );
    Ok(())
}

pub(super) async fn names_may_be_long_and_odd(t: Fixture) -> Outcome {
    let long = "n".repeat(crate::ObjectRef::MAX_NAME_BYTES);
    let names = [
        long.as_str(),
        ".",
        "..",
        "a/b",
        "../up",
        "with space",
        "ünï©ode",
        "%2F",
        "UPPER",
        "upper",
        "new\nline",
        "-x",
        "a\\b",
        "rbd_data.10226b8b4567.0000000000000000",
        "quote'\"",
        "*?",
        "CON",
        "~",
        "a:b",
    ];
    for (index, name) in names.iter().enumerate() {
        t.a.write_meta(name, t.op().write(0, format!("content {index}")))
            .await?;
    }
    for (index, name) in names.iter().enumerate() {
        ensure_eq!(
            head(&t.b, name).await?,
            format!("content {index}"),
            "content of {name:?}"
        );
    }
    let mut sorted: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    sorted.sort();
    ensure_eq!(
        t.store().list_objects(t.scope(), "", "", 100).await?,
        sorted,
        "listing"
    );
    for name in names {
        t.a.write_meta(name, t.op().remove()).await?;
    }
    ensure_eq!(
        t.store().list_objects(t.scope(), "", "", 100).await?,
        Vec::<String>::new(),
        "listing"
    );
    Ok(())
}

pub(super) async fn concurrent_writers_of_one_object_lose_nothing(t: Fixture) -> Outcome {
    let context = SnapContext::empty();
    let mut tasks = Vec::new();
    for writer in 0..16u64 {
        let io = if writer % 2 == 0 { t.a.clone() } else { t.b.clone() };
        let (op, context) = (
            if writer % 3 == 0 { t.op() } else { t.buffered() },
            context.clone(),
        );
        tasks.push(tokio::spawn(async move {
            let data = pattern(writer as u8, 1000);
            io.write("o", &context, op.write(writer * 1000, data)).await
        }));
    }
    for task in tasks {
        task.await.map_err(|error| error.to_string())??;
    }
    let data = head(&t.a, "o").await?;
    for writer in 0..16 {
        ensure_eq!(
            &data[writer * 1000..][..1000],
            &pattern(writer as u8, 1000)[..],
            "bytes of writer {writer}"
        );
    }
    Ok(())
}
