//! Real clients against the server over a Unix socket: QEMU's tools, libnbd's tools, fio.
//!
//! A tool that is not installed skips its test with a message; where `CI` or `FERRY_REQUIRE_TOOLS` is set it fails
//! the test instead.

#![allow(clippy::unwrap_used)] // A test fails by panicking.

mod common;

use std::path::PathBuf;
use std::sync::Arc;

use common::tools::{installed, run};
use ferry_nbd::testing::{MemoryDevice, MemoryExports, Operation};
use ferry_nbd::{
    BlockDevice, Listener, ServeSummary, Server, ServerConfig, ShutdownTrigger, shutdown_channel,
};
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use tempfile::TempDir;
use tokio::task::JoinHandle;

const MIB: usize = 1 << 20;

struct Running {
    directory: TempDir,
    uri: String,
    other_uri: String,
    trigger: ShutdownTrigger,
    server: JoinHandle<ServeSummary>,
}

/// Serves `disk` and, for copies, `other`.
async fn start(disk: &Arc<MemoryDevice>, other: &Arc<MemoryDevice>) -> Running {
    let directory = tempfile::tempdir().unwrap();
    let listener = Listener::unix(directory.path().join("nbd.sock")).await.unwrap();
    let (uri, other_uri) = (listener.uri("rbd/disk"), listener.uri("rbd/other"));
    let exports = MemoryExports::new()
        .with("rbd/disk", "the first disk", disk.clone() as Arc<dyn BlockDevice>)
        .with(
            "rbd/other",
            "the second disk",
            other.clone() as Arc<dyn BlockDevice>,
        );
    let (trigger, shutdown) = shutdown_channel();
    let server = tokio::spawn(async move {
        Server::run(
            vec![listener],
            Arc::new(exports),
            ServerConfig::default(),
            shutdown,
        )
        .await
        .unwrap()
    });
    Running {
        directory,
        uri,
        other_uri,
        trigger,
        server,
    }
}

impl Running {
    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    async fn stop(self) {
        self.trigger.shut_down();
        let summary = self.server.await.unwrap();
        assert!(summary.is_clean(), "{summary:?}");
    }
}

/// Runs a command that must succeed, and returns its standard output.
async fn succeed(running: &Running, command: &[&str]) -> String {
    let output = run(running.directory.path(), command).await;
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// An image with data, zeroes and a tail that is no multiple of anything.
fn image(seed: u64) -> Vec<u8> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut data = vec![0; 20 * MIB + 1536];
    for _ in 0..30 {
        let start = rng.random_range(0..data.len());
        let end = (start + rng.random_range(1..400_000)).min(data.len());
        rng.fill_bytes(&mut data[start..end]);
    }
    data
}

fn empty(length: usize) -> Arc<MemoryDevice> {
    Arc::new(MemoryDevice::new(length))
}

#[tokio::test(flavor = "multi_thread")]
async fn nbdinfo_lists_describes_and_maps() {
    if !installed(&["nbdinfo"]) {
        return;
    }
    let disk = empty(4 * MIB);
    disk.write(MIB as u64, vec![1; MIB].into(), false).await.unwrap();
    let running = start(
        &disk,
        &Arc::new(MemoryDevice::with_data(vec![1; 512]).read_only()),
    )
    .await;

    let list = succeed(&running, &["nbdinfo", "--list", "--json", &running.uri]).await;
    for text in [
        "\"export-name\": \"rbd/disk\"",
        "\"export-name\": \"rbd/other\"",
        "\"description\": \"the first disk\"",
        "\"structured\": true",
        "\"export-size\": 4194304",
        "\"base:allocation\"",
    ] {
        assert!(list.contains(text), "{text} is not in {list}");
    }
    let disk_info = succeed(&running, &["nbdinfo", &running.uri]).await;
    for text in [
        "can_flush: true",
        "can_fua: true",
        "can_trim: true",
        "can_zero: true",
        "can_df: true",
        "can_multi_conn: true",
        "can_cache: true",
        "can_fast_zero: true",
        "is_rotational: false",
        "is_read_only: false",
        "block_size_minimum: 1",
        "block_size_maximum: 33554432",
    ] {
        assert!(disk_info.contains(text), "{text} is not in {disk_info}");
    }
    let other_info = succeed(&running, &["nbdinfo", &running.other_uri]).await;
    assert!(other_info.contains("is_read_only: true"), "{other_info}");

    let map = succeed(&running, &["nbdinfo", "--map", &running.uri]).await;
    let rows: Vec<Vec<&str>> = map
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(
        rows,
        [
            vec!["0", "1048576", "3", "hole,zero"],
            vec!["1048576", "1048576", "0", "data"],
            vec!["2097152", "2097152", "3", "hole,zero"]
        ]
    );
    let unknown = running.uri.replace("rbd/disk", "rbd/unknown");
    let refused = run(running.directory.path(), &["nbdinfo", &unknown]).await;
    assert!(!refused.status.success());
    let message = String::from_utf8_lossy(&refused.stderr);
    assert!(message.contains("rbd/unknown"), "{message}");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn qemu_img_converts_compares_and_maps() {
    if !installed(&["qemu-img"]) {
        return;
    }
    let data = image(ferry_reference::seed());
    let disk = empty(data.len());
    let running = start(&disk, &empty(data.len())).await;
    std::fs::write(running.path("in.raw"), &data).unwrap();
    let uri = running.uri.clone();
    succeed(
        &running,
        &[
            "qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", "in.raw", &uri,
        ],
    )
    .await;
    assert!(
        disk.snapshot() == data,
        "the disk differs from what was converted to it"
    );
    succeed(
        &running,
        &["qemu-img", "compare", "-f", "raw", "-F", "raw", "in.raw", &uri],
    )
    .await;
    succeed(
        &running,
        &[
            "qemu-img",
            "convert",
            "-f",
            "raw",
            "-O",
            "qcow2",
            &uri,
            "out.qcow2",
        ],
    )
    .await;
    succeed(
        &running,
        &[
            "qemu-img",
            "convert",
            "-f",
            "qcow2",
            "-O",
            "raw",
            "out.qcow2",
            "out.raw",
        ],
    )
    .await;
    assert!(
        std::fs::read(running.path("out.raw")).unwrap() == data,
        "the way back changed the data"
    );
    let other = running.other_uri.clone();
    // Out of order and with many requests at a time.
    let convert = [
        "qemu-img", "convert", "-n", "-W", "-m", "16", "-f", "raw", "-O", "raw", &uri, &other,
    ];
    succeed(&running, &convert).await;
    succeed(
        &running,
        &["qemu-img", "compare", "-f", "raw", "-F", "raw", &uri, &other],
    )
    .await;

    disk.trim(0, data.len() as u64, false).await.unwrap();
    disk.write(8 * MIB as u64, vec![1; 65536].into(), false)
        .await
        .unwrap();
    let map = succeed(&running, &["qemu-img", "map", "--output=json", "-f", "raw", &uri]).await;
    let data_rows: Vec<_> = map
        .lines()
        .filter(|line| line.contains("\"data\": true"))
        .collect();
    assert_eq!(data_rows.len(), 1, "{map}");
    assert!(
        data_rows[0].contains("\"start\": 8388608, \"length\": 65536"),
        "{map}"
    );
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn qemu_io_writes_zeroes_discards_and_flushes() {
    if !installed(&["qemu-io"]) {
        return;
    }
    let disk = empty(16 * MIB);
    let running = start(
        &disk,
        &Arc::new(MemoryDevice::with_data(vec![7; 65536]).read_only()),
    )
    .await;
    let uri = running.uri.clone();
    let steps = [
        "write -P 0x5a 0 1M",
        "write -f -P 0x3c 4097 1000",
        "aio_write -P 0x11 2M 4M",
        "aio_write -P 0x22 6M 4M",
        "aio_flush",
        "read -P 0x11 2M 4M",
        "read -P 0x22 6M 4M",
        "write -z 64k 64k",
        "write -z -u 256k 64k",
        "discard 512k 64k",
        "flush",
        "read -P 0x3c 4097 1000",
        "read -P 0 64k 64k",
        "read -P 0 256k 64k",
        "read -P 0x5a 128k 64k",
        "read -P 0x5a 1023k 1k",
    ];
    let mut command = vec!["qemu-io", "-f", "raw", "-t", "none"];
    steps.iter().for_each(|step| command.extend(["-c", *step]));
    command.push(&uri);
    let output = succeed(&running, &command).await;
    assert!(
        !output.contains("verification failed") && !output.contains("rror"),
        "{output}"
    );
    assert_eq!(disk.snapshot()[64 << 10..128 << 10], vec![0; 64 << 10]);
    assert!(disk.calls(Operation::Trim) > 0 && disk.calls(Operation::Flush) > 0);

    let other = running.other_uri.clone();
    let read = ["qemu-io", "-r", "-f", "raw", "-c", "read -P 7 0 64k", &other];
    let output = succeed(&running, &read).await;
    assert!(!output.contains("verification failed"), "{output}");
    let write = ["qemu-io", "-f", "raw", "-c", "write 0 4k", &other];
    assert!(
        !run(running.directory.path(), &write).await.status.success(),
        "a read-only disk was written"
    );
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nbdcopy_copies_in_and_out_and_across() {
    if !installed(&["nbdcopy"]) {
        return;
    }
    let data = image(ferry_reference::seed());
    let (disk, other) = (empty(data.len()), empty(data.len()));
    let running = start(&disk, &other).await;
    std::fs::write(running.path("in.raw"), &data).unwrap();
    succeed(
        &running,
        &["nbdcopy", "--flush", "--connections=4", "in.raw", &running.uri],
    )
    .await;
    assert!(
        disk.snapshot() == data,
        "the disk differs from what was copied to it"
    );
    succeed(
        &running,
        &["nbdcopy", "--request-size=1048576", &running.uri, "out.raw"],
    )
    .await;
    assert!(
        std::fs::read(running.path("out.raw")).unwrap() == data,
        "the way back changed the data"
    );
    let across = [
        "nbdcopy",
        "--requests=64",
        "--destination-is-zero",
        &running.uri,
        &running.other_uri,
    ];
    succeed(&running, &across).await;
    assert!(other.snapshot() == data, "the copy differs");
    succeed(
        &running,
        &[
            "nbdcopy",
            "--synchronous",
            "--no-extents",
            &running.uri,
            "out.raw",
        ],
    )
    .await;
    assert!(
        std::fs::read(running.path("out.raw")).unwrap() == data,
        "the copy one by one differs"
    );
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fio_verifies_what_it_wrote() {
    if !installed(&["fio"]) {
        return;
    }
    let disk = empty(64 * MIB);
    let running = start(&disk, &empty(512)).await;
    let uri = format!("--uri={}", running.uri);
    for options in [
        &["--bs=4k", "--iodepth=32", "--rw=randwrite", "--size=16M"][..],
        &[
            "--bsrange=512-256k",
            "--bs_unaligned",
            "--iodepth=16",
            "--rw=randrw",
            "--size=48M",
        ],
        &["--bs=1M", "--iodepth=8", "--rw=write", "--size=64M", "--fsync=7"],
    ] {
        let mut command = vec![
            "fio",
            "--name=verify",
            "--ioengine=nbd",
            &uri,
            "--verify=crc32c",
            "--verify_fatal=1",
        ];
        command.extend(["--do_verify=1", "--verify_state_save=0"]);
        command.extend(options);
        let output = succeed(&running, &command).await;
        assert!(output.contains("err= 0"), "{output}");
    }
    assert!(disk.calls(Operation::Write) > 4000);
    running.stop().await;
}
