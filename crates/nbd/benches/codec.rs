//! The fixed-size headers of requests and replies.

#![allow(missing_docs, clippy::unwrap_used)]

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use ferry_nbd::proto::{ChunkHeader, ReplyHeader, RequestHeader, SimpleReply, chunk, cmd};

fn requests(criterion: &mut Criterion) {
    let request = RequestHeader {
        flags: 0,
        command: cmd::READ,
        cookie: 0x0102_0304_0506_0708,
        offset: 3 << 40,
        length: 4096,
    };
    let bytes = request.encode();
    criterion.bench_function("request/encode", |bencher| {
        bencher.iter(|| black_box(&request).encode())
    });
    criterion.bench_function("request/decode", |bencher| {
        bencher.iter(|| RequestHeader::decode(black_box(&bytes)).unwrap());
    });
}

fn replies(criterion: &mut Criterion) {
    let simple = SimpleReply { error: 0, cookie: 7 };
    let data = ChunkHeader {
        flags: chunk::FLAG_DONE,
        kind: chunk::OFFSET_DATA,
        cookie: 7,
        length: 4096 + 8,
    };
    let bytes = simple.encode();
    criterion.bench_function("reply/encode simple", |bencher| {
        bencher.iter(|| black_box(&simple).encode())
    });
    criterion.bench_function("reply/encode chunk", |bencher| {
        bencher.iter(|| black_box(&data).encode())
    });
    criterion.bench_function("reply/decode", |bencher| {
        bencher.iter(|| ReplyHeader::decode(black_box(&bytes)).unwrap());
    });
}

criterion_group!(benches, requests, replies);
criterion_main!(benches);
