//! How much memory an execute takes when objects are large and every snapshot has changed all of them.
//!
//! Measured as the peak of this process, so this file has one test.

#![allow(clippy::unwrap_used)] // a test that cannot go on says so by panicking

mod support;

use bytes::Bytes;
use ferry_image::admin::create;
use ferry_image::migration::execute::execute;
use ferry_image::migration::prepare::{PrepareOptions, prepare};
use ferry_image::{Image, ImageKey, OpenOptions, Progress, SnapKey};
use support::{Engine, TestLayout, pool};

const MIB: u64 = 1 << 20;
const OBJECT: u64 = 32 * MIB;
const OBJECTS: u64 = 4;
const SNAPSHOTS: u64 = 2;

/// The most that this process has had in memory since [`forget_peak`], in bytes.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .unwrap();
    line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap() << 10
}

fn forget_peak() {
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
}

/// What a chunk of an object holds at a version.
fn chunk(version: u64, offset: u64) -> Bytes {
    vec![(version * 100 + offset / MIB % 90 + 1) as u8; MIB as usize].into()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_objects_with_history_are_copied_in_bounded_memory() {
    let engine = Engine::local();
    let io = pool(&engine.connect().await, "rbd").await;
    let size_bytes = OBJECTS * OBJECT;
    create::create(&io, "src", &TestLayout(25, 0, 0).create(size_bytes))
        .await
        .unwrap();
    let open = async |name| {
        Image::open(&io, ImageKey::Name(name), OpenOptions::read_write())
            .await
            .unwrap()
    };
    let image = open("src").await;
    for version in 0..=SNAPSHOTS {
        for offset in (0..size_bytes).step_by(MIB as usize) {
            image.write(offset, chunk(version, offset)).await.unwrap();
        }
        if version < SNAPSHOTS {
            image
                .snap_create(&format!("s{version}"), &Progress::silent())
                .await
                .unwrap();
        }
    }
    image.close().await.unwrap();
    prepare(&io, "src", &io, "dst", &PrepareOptions::default())
        .await
        .unwrap();
    forget_peak();
    let before = peak();
    execute(&io, "dst", &Progress::silent()).await.unwrap();
    let taken = peak() - before;
    assert!(
        taken < 112 * MIB,
        "{} MiB taken for {} MiB of data",
        taken / MIB,
        (SNAPSHOTS + 1) * size_bytes / MIB
    );
    let image = open("dst").await;
    for version in 0..=SNAPSHOTS {
        let view = if version < SNAPSHOTS {
            let options = OpenOptions::read_only().at(SnapKey::Name(format!("s{version}")));
            Image::open(&io, ImageKey::Name("dst"), options).await.unwrap()
        } else {
            image.clone()
        };
        for offset in (0..size_bytes).step_by(MIB as usize) {
            let found = view.read(offset, MIB).await.unwrap();
            assert!(found == chunk(version, offset), "version {version} at {offset}");
        }
    }
}
