//! Header replies and snapshot records: what is decoded whenever an image is opened or refreshed.

#![allow(missing_docs, clippy::unwrap_used)]

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use ferry_cls::encoding::{Decode, Encode, Encoder};
use ferry_cls::rbd::client;
use ferry_cls::rbd::types::{ProtectionStatus, SnapContextReply, SnapshotNamespace, StoredSnapshot};
use ferry_store::{SnapId, Timestamp};

const SNAPSHOTS: u64 = 500;

fn encoded(value: impl Encode) -> Vec<u8> {
    let mut encoder = Encoder::new();
    encoder.put(value);
    encoder.finish().to_vec()
}

fn snapshot(id: u64) -> StoredSnapshot {
    StoredSnapshot {
        id: SnapId(id),
        name: format!("nightly-{id:06}"),
        image_size_bytes: 16 << 40,
        protection_status: ProtectionStatus::Unprotected,
        flags: 0,
        namespace: SnapshotNamespace::User,
        timestamp: Timestamp {
            seconds: 1_795_000_000,
            nanoseconds: 0,
        },
        child_count: 0,
        parent_overlap_bytes: None,
        legacy_parent: None,
    }
}

fn header_replies(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("header");
    group.bench_function("encode a request", |bencher| {
        bencher.iter(|| client::get_size(black_box(SnapId::HEAD)));
    });
    let call = client::get_size(SnapId::HEAD);
    let reply = [encoded(22u8), encoded(16u64 << 40)].concat();
    group.bench_function("decode a size", |bencher| {
        bencher.iter(|| call.decode(black_box(&reply)).unwrap());
    });
    let call = client::get_snapcontext();
    let reply = encoded(SnapContextReply {
        snap_seq: SNAPSHOTS,
        snap_ids: (1..=SNAPSHOTS).rev().map(SnapId).collect(),
    });
    group.bench_function("decode a snapshot context of 500", |bencher| {
        bencher.iter(|| call.decode(black_box(&reply)).unwrap());
    });
    group.finish();
}

fn snapshots(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("snapshot");
    let record = snapshot(7);
    let bytes = encoded(&record);
    group.bench_function("encode", |bencher| bencher.iter(|| encoded(black_box(&record))));
    group.bench_function("decode", |bencher| {
        bencher.iter(|| StoredSnapshot::from_slice(black_box(&bytes)).unwrap());
    });
    group.finish();
}

criterion_group!(benches, header_replies, snapshots);
criterion_main!(benches);
