//! Large writes, whose bytes are lent to librados: what arrives, and that it gives them back.
//!
//! On the cluster that `FERRY_TEST_CEPH` names; without it the test says that it was left out.

// All of this file is test; the lint spares only functions that carry the attribute.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use ferry_store::{IoCtx, ReadOp, Scope, SnapId, Store, WriteOp, WriteStep};
use ferry_store_ceph::{CephConfig, CephStore};

/// Bytes that say when they are gone.
struct Counted {
    bytes: Vec<u8>,
    living: Arc<AtomicUsize>,
}

impl Counted {
    fn new(bytes: Vec<u8>, living: &Arc<AtomicUsize>) -> Self {
        living.fetch_add(1, Ordering::SeqCst);
        Self {
            bytes,
            living: living.clone(),
        }
    }
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.living.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn bytes_arrive_and_come_back(c_interface_only: bool) {
    let Some(conf) = std::env::var_os("FERRY_TEST_CEPH") else {
        eprintln!("LEFT OUT: FERRY_TEST_CEPH names no cluster");
        return;
    };
    let config = CephConfig {
        conf: Some(conf.into()),
        c_interface_only,
        ..CephConfig::default()
    };
    let store: Arc<dyn Store> = CephStore::connect(config).await.unwrap();
    let pools = store.pool_list().await.unwrap();
    let pool = pools.iter().find(|pool| pool.name == "rbd").unwrap().id;
    let namespace = format!("large-{:016x}", rand::random::<u64>());
    let io = IoCtx::new(store, Scope::with_namespace(pool, &namespace));
    let living = Arc::new(AtomicUsize::new(0));
    let mut expected = vec![0_u8; 4 << 20];
    // Lengths around that from which on bytes are lent; starts and places that are at no page.
    for (round, length) in [(64 << 10) - 1, 64 << 10, (64 << 10) + 1, 1 << 20, (4 << 20) - 777]
        .into_iter()
        .enumerate()
    {
        let mut data = vec![0_u8; length + 3];
        rand::fill(&mut data[..]);
        let bytes = Bytes::from_owner(Counted::new(data.clone(), &living));
        let offset = 777 - round;
        let write = WriteOp::new().write(offset as u64, bytes.slice(3..));
        // One that is given up on the way keeps the bytes for as long as the library needs them.
        let given_up = io.write_meta("o", write.clone());
        let _ = tokio::time::timeout(Duration::from_micros(50), given_up).await;
        io.write_meta("o", write).await.unwrap();
        expected[offset..offset + length].copy_from_slice(&data[3..]);
        let found = io
            .read("o", SnapId::HEAD, ReadOp::new().read(0, 8 << 20))
            .await
            .unwrap();
        let end = offset + length;
        assert!(found.data(0) == expected[..end], "{length} bytes at {offset}");
        let full = WriteOp::new().step(WriteStep::WriteFull {
            data: bytes.slice(..length),
        });
        io.write_meta("full", full).await.unwrap();
        let found = io
            .read("full", SnapId::HEAD, ReadOp::new().read(0, 8 << 20))
            .await
            .unwrap();
        assert!(found.data(0) == data[..length], "{length} bytes in full");
    }
    // The library lets go of a message when the OSD has said that it has it.
    for _ in 0..12_000 {
        if living.load(Ordering::SeqCst) == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{} buffers did not come back", living.load(Ordering::SeqCst));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_are_lent_arrive_and_come_back() {
    bytes_arrive_and_come_back(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_are_copied_arrive_and_come_back() {
    bytes_arrive_and_come_back(true).await;
}

#[tokio::test]
async fn more_than_the_library_s_bounds_allow_is_done_on_one_thread_too() {
    let Some(conf) = std::env::var_os("FERRY_TEST_CEPH") else {
        eprintln!("LEFT OUT: FERRY_TEST_CEPH names no cluster");
        return;
    };
    let bound = |option: &str, value: &str| (option.to_owned(), value.to_owned());
    let config = CephConfig {
        conf: Some(conf.into()),
        settings: vec![
            bound("objecter_inflight_ops", "3"),
            bound("objecter_inflight_op_bytes", "300000"),
        ],
        ..CephConfig::default()
    };
    let store: Arc<dyn Store> = CephStore::connect(config).await.unwrap();
    let pools = store.pool_list().await.unwrap();
    let pool = pools.iter().find(|pool| pool.name == "rbd").unwrap().id;
    let namespace = format!("bounds-{:016x}", rand::random::<u64>());
    let io = IoCtx::new(store, Scope::with_namespace(pool, &namespace));
    // Some are larger than all that may be under way, and some are given up while they wait.
    let one = |n: usize| {
        let io = io.clone();
        async move {
            let (name, data) = (format!("o{n}"), vec![n as u8; 70_000 * (n % 7)]);
            let write = WriteOp::new()
                .write(0, data.clone())
                .step(WriteStep::Create { exclusive: false });
            if n.is_multiple_of(5) {
                let given_up = io.write_meta(&name, write.clone());
                let _ = tokio::time::timeout(Duration::from_micros(50), given_up).await;
            }
            io.write_meta(&name, write).await.unwrap();
            let found = io.read(&name, SnapId::HEAD, ReadOp::new().read(0, 1 << 20)).await;
            assert!(found.unwrap().data(0) == data, "{name}");
        }
    };
    futures::future::join_all((0..60).map(one)).await;
}
