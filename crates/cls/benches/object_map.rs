//! The object map of a 16 TiB image with 4 MiB objects: two bits each of 4,194,304 objects.

#![allow(missing_docs, clippy::unwrap_used)]

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ferry_cls::encoding::{BLOCK_BYTES, BitVector, Decode, Encoder, block_crc};
use ferry_cls::exec_write;
use ferry_cls::rbd::client;
use ferry_cls::rbd::types::ObjectState;
use ferry_store::memory::MemoryCluster;
use ferry_store::{IoCtx, PoolOptions, Scope, Store};

const OBJECTS: u64 = 4 << 20;
const EXISTS: u8 = 1;

/// A thin image: every 1024th object exists.
fn thin_map() -> BitVector {
    let mut map = BitVector::new(OBJECTS, 0).unwrap();
    for object in (0..OBJECTS).step_by(1024) {
        map.set(object, EXISTS);
    }
    map
}

fn encoded(map: &BitVector) -> Vec<u8> {
    let mut encoder = Encoder::new();
    encoder.put(map);
    encoder.finish().to_vec()
}

fn in_memory(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("object map");
    let mut map = thin_map();
    let mut object = 0;
    group.bench_function("get", |bencher| {
        bencher.iter(|| {
            object = (object + 7919) % OBJECTS;
            map.get(black_box(object))
        });
    });
    group.bench_function("set", |bencher| {
        bencher.iter(|| {
            object = (object + 7919) % OBJECTS;
            map.set(black_box(object), EXISTS)
        });
    });
    let map = thin_map();
    group.throughput(Throughput::Elements(OBJECTS));
    group.bench_function("count", |bencher| bencher.iter(|| black_box(&map).count(EXISTS)));
    group.bench_function("scan for what exists", |bencher| {
        bencher.iter(|| black_box(&map).iter().filter(|state| *state != 0).count());
    });
    group.finish();
}

fn as_stored(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("stored object map");
    let map = thin_map();
    let bytes = encoded(&map);
    group.throughput(Throughput::Bytes(bytes.len() as u64));
    group.bench_function("encode with checksums", |bencher| {
        bencher.iter(|| encoded(black_box(&map)));
    });
    group.bench_function("decode and check", |bencher| {
        bencher.iter(|| BitVector::from_slice(black_box(&bytes)).unwrap());
    });
    let block = vec![0x5a; usize::try_from(BLOCK_BYTES).unwrap()];
    group.throughput(Throughput::Bytes(BLOCK_BYTES));
    group.bench_function("checksum of a block", |bencher| {
        bencher.iter(|| block_crc(black_box(&block)))
    });
    group.finish();
}

/// The method as an engine without OSDs runs it: what one write to a new object costs beside the write itself.
fn updated_in_place(criterion: &mut Criterion) {
    const NAME: &str = "rbd_object_map.1";
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let io = runtime.block_on(async {
        let store: std::sync::Arc<dyn Store> = MemoryCluster::new(ferry_cls::registry()).connect();
        let pool = store.pool_create("bench", PoolOptions::default()).await.unwrap();
        let io = IoCtx::new(store, Scope::new(pool));
        exec_write(&io, NAME, client::object_map_save(&thin_map()))
            .await
            .unwrap();
        io
    });
    let mut object = 0;
    criterion.bench_function("object map/update one object in a memory store", |bencher| {
        bencher.iter(|| {
            object = (object + 7919) % OBJECTS;
            let update = client::object_map_update(object, object + 1, ObjectState::Exists, None);
            runtime.block_on(exec_write(&io, NAME, update)).unwrap();
        });
    });
}

criterion_group!(benches, in_memory, as_stored, updated_in_place);
criterion_main!(benches);
