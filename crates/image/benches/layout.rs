//! Extent maths: done once for every request of a client.

#![allow(missing_docs, clippy::unwrap_used)]

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use ferry_image::layout::{ImageExtent, ImageOffset, Layout, ObjectNo, ObjectOffset};

const IMAGE_BYTES: u64 = 16 << 40;
/// A prime number of sectors, so that successive extents lie in all kinds of places.
const STEP_BYTES: u64 = 7_340_033 * 512;

fn layouts() -> [(&'static str, Layout); 2] {
    [
        ("plain", Layout::new(22, 0, 0).unwrap()),
        ("striped", Layout::new(22, 64 << 10, 8).unwrap()),
    ]
}

fn map(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("map");
    for (name, layout) in layouts() {
        for (size, length_bytes) in [("4 KiB", 4 << 10), ("1 MiB", 1 << 20), ("64 MiB", 64 << 20)] {
            let mut at = 0;
            group.bench_function(format!("{size}, {name}"), |bencher| {
                bencher.iter(|| {
                    at = (at + STEP_BYTES) % (IMAGE_BYTES - length_bytes);
                    layout.map(black_box(ImageExtent {
                        offset: ImageOffset(at),
                        length_bytes,
                    }))
                });
            });
        }
    }
    group.finish();
}

fn unmap(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("unmap");
    for (name, layout) in layouts() {
        let objects = layout.object_count(IMAGE_BYTES);
        let mut object = 0;
        group.bench_function(format!("a whole object, {name}"), |bencher| {
            bencher.iter(|| {
                object = (object + 7919) % objects;
                layout.unmap(
                    black_box(ObjectNo(object)),
                    ObjectOffset(0),
                    layout.object_size_bytes(),
                )
            });
        });
    }
    group.finish();
}

criterion_group!(benches, map, unmap);
criterion_main!(benches);
