//! A whole session over a socket pair, with a device in memory: what the protocol costs at both ends, without a disk.

#![allow(missing_docs, clippy::unwrap_used)]

use std::sync::Arc;

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ferry_nbd::client::{Client, ClientConfig, Negotiation};
use ferry_nbd::testing::{MemoryDevice, MemoryExports};
use ferry_nbd::{Server, ServerConfig, ShutdownTrigger, shutdown_channel};
use futures::future::try_join_all;
use tokio::net::UnixStream;

const EXPORT: &str = "disk";
const DEVICE_BYTES: usize = 64 << 20;
const BLOCK_BYTES: u32 = 4096;

/// A client of a server that runs until the trigger is dropped.
async fn session() -> (Client, ShutdownTrigger) {
    let (near, far) = UnixStream::pair().unwrap();
    let (trigger, shutdown) = shutdown_channel();
    let exports = MemoryExports::new().with(EXPORT, "", Arc::new(MemoryDevice::new(DEVICE_BYTES)));
    tokio::spawn(async move {
        let (reader, writer) = near.into_split();
        Server::run_connection(
            reader,
            writer,
            Arc::new(exports),
            ServerConfig::default(),
            shutdown,
        )
        .await
        .unwrap()
    });
    let (reader, writer) = far.into_split();
    let negotiation = Negotiation::over(reader, writer, ClientConfig::default())
        .await
        .unwrap();
    (negotiation.go(EXPORT).await.unwrap(), trigger)
}

fn blocks(depth: u64) -> impl Iterator<Item = u64> {
    (0..depth).map(|number| number * 97 * u64::from(BLOCK_BYTES))
}

fn sessions(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (client, _trigger) = runtime.block_on(session());
    let mut group = criterion.benchmark_group("session");
    for depth in [1, 16] {
        group.throughput(Throughput::Elements(depth));
        group.bench_with_input(
            BenchmarkId::new("4 KiB reads at depth", depth),
            &depth,
            |bencher, &depth| {
                bencher.iter(|| {
                    let reads = blocks(depth).map(|offset| client.read(offset, BLOCK_BYTES));
                    runtime.block_on(try_join_all(reads)).unwrap()
                });
            },
        );
        let data = Bytes::from(vec![0x5a; BLOCK_BYTES as usize]);
        group.bench_with_input(
            BenchmarkId::new("4 KiB writes at depth", depth),
            &depth,
            |bencher, &depth| {
                bencher.iter(|| {
                    let writes = blocks(depth).map(|offset| client.write(offset, data.clone(), false));
                    runtime.block_on(try_join_all(writes)).unwrap()
                });
            },
        );
    }
    group.finish();
}

criterion_group!(benches, sessions);
criterion_main!(benches);
