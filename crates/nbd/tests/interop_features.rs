//! The newer parts of the protocol with other people's programs: extended headers, caching, fast zeroes, flushes
//! across connections.

#![allow(clippy::unwrap_used)] // A test fails by panicking.

mod common;

use std::path::PathBuf;
use std::sync::Arc;

use common::tools::{ForeignServer, installed, succeed};
use common::{EXPORT, one_export};
use ferry_nbd::client::{Client, ClientConfig, Negotiation};
use ferry_nbd::proto::transmission_flag;
use ferry_nbd::testing::{MemoryDevice, Operation};
use ferry_nbd::{BlockDevice, Listener, Server, ServerConfig, ShutdownTrigger, shutdown_channel};
use tempfile::TempDir;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

async fn start(disk: &Arc<MemoryDevice>) -> (TempDir, String, ShutdownTrigger) {
    let directory = tempfile::tempdir().unwrap();
    let listener = Listener::unix(directory.path().join("nbd.sock")).await.unwrap();
    let uri = listener.uri(EXPORT);
    let exports = one_export(disk);
    let (trigger, shutdown) = shutdown_channel();
    tokio::spawn(Server::run(
        vec![listener],
        exports,
        ServerConfig::default(),
        shutdown,
    ));
    (directory, uri, trigger)
}

#[tokio::test(flavor = "multi_thread")]
async fn qemu_agrees_on_extended_headers_and_maps_what_is_beyond_four_gibibytes() {
    if !installed(&["qemu-img", "qemu-io"]) {
        return;
    }
    // The memory of what is never touched is never there.
    let disk = Arc::new(MemoryDevice::new(6 * GIB as usize));
    disk.write(5 * GIB, vec![1; MIB as usize].into(), false)
        .await
        .unwrap();
    let (directory, uri, _running) = start(&disk).await;
    let trace = succeed(
        directory.path(),
        &[
            "qemu-io",
            "-T",
            "nbd_receive_option_reply",
            "-f",
            "raw",
            "-c",
            "length",
            &uri,
        ],
    )
    .await;
    assert!(
        trace.contains("(extended headers), type 1 (ack)"),
        "QEMU did not get extended headers: {trace}"
    );
    let map = succeed(
        directory.path(),
        &["qemu-img", "map", "--output=json", "-f", "raw", &uri],
    )
    .await;
    let rows: Vec<&str> = map.lines().filter(|line| line.contains("start")).collect();
    assert_eq!(rows.len(), 3, "{map}");
    assert!(
        rows[0].contains(&format!("\"start\": 0, \"length\": {}", 5 * GIB)),
        "{map}"
    );
    assert!(
        rows[1].contains(&format!("\"start\": {}, \"length\": {MIB}", 5 * GIB)),
        "{map}"
    );
    let steps = [
        "qemu-io",
        "-f",
        "raw",
        "-c",
        "write -P 7 4100M 3M",
        "-c",
        "write -z -u 4101M 1M",
        "-c",
        "read -P 7 4100M 1M",
        "-c",
        "read -P 0 4101M 1M",
        "-c",
        "read -P 7 4102M 1M",
        "-c",
        "discard 4102M 1M",
        "-c",
        "flush",
        &uri,
    ];
    let output = succeed(directory.path(), &steps).await;
    assert!(
        !output.contains("verification failed") && !output.contains("rror"),
        "{output}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn libnbd_caches_zeroes_fast_and_flushes_across_connections() {
    if !installed(&["nbdsh"]) {
        return;
    }
    let disk = Arc::new(MemoryDevice::new(4 << 20).tracking_durability());
    let (directory, uri, _running) = start(&disk).await;
    let script = format!(
        r#"
import errno
h.connect_uri("{uri}")
assert h.can_cache() and h.can_fast_zero() and h.can_multi_conn() and h.can_df()
assert not h.is_rotational()
h.cache(1 << 20, 4096)
h.pwrite(b"x" * 65536, 0)
h.zero(32768, 0, nbd.CMD_FLAG_FAST_ZERO)
chunks = []
def chunk(data, offset, status, error):
    chunks.append((offset, len(data)))
    return 0
expected = bytearray(32768) + b"x" * 32768
assert h.pread_structured(65536, 0, chunk) == expected
assert len(chunks) == 2, chunks
chunks.clear()
assert h.pread_structured(65536, 0, chunk, nbd.CMD_FLAG_DF) == expected
assert chunks == [(0, 65536)], chunks
try:
    h.zero(32768, 0, nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_NO_HOLE)
    assert False
except nbd.Error as error:
    assert error.errnum == errno.ENOTSUP, error
other = nbd.NBD()
other.connect_uri("{uri}")
other.pwrite(b"y" * 4096, 1 << 20)
h.flush()
h.set_strict_mode(0)
for flags in (nbd.CMD_FLAG_DF, 1 << 5, 1 << 15):
    try:
        h.pwrite(b"z" * 512, 0, flags)
        assert False
    except nbd.Error as error:
        assert error.errnum == errno.EINVAL, error
other.shutdown()
h.shutdown()
"#
    );
    // The module belongs to the system's Python, which need not be the first one found.
    let command = ["env", "PATH=/usr/bin:/bin", "nbdsh", "-c", &script];
    succeed(directory.path(), &command).await;
    assert_eq!(disk.calls(Operation::Cache), 1);
    let durable = disk.durable().unwrap();
    assert_eq!(durable[1 << 20..(1 << 20) + 4096], [b'y'; 4096]);
    assert_eq!(durable[32768..65536], [b'x'; 32768]);
    assert_eq!(durable[..32768], [0; 32768]);
}

async fn connect(socket: &PathBuf) -> Client {
    Negotiation::connect_unix(socket, ClientConfig::default())
        .await
        .unwrap()
        .go(EXPORT)
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn our_client_covers_many_gibibytes_of_qemu_nbd_in_one_request() {
    if !installed(&["qemu-nbd"]) {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    let file = std::fs::File::create(work.path().join("disk.raw")).unwrap();
    file.set_len(64 * GIB).unwrap();
    let socket = work.path().join("qemu.sock");
    let path = socket.to_string_lossy().into_owned();
    let command = [
        "qemu-nbd",
        "-x",
        EXPORT,
        "-f",
        "raw",
        "-t",
        "-e",
        "8",
        "--discard=unmap",
        "-k",
        &path,
        "disk.raw",
    ];
    let _server = ForeignServer::start(work.path(), &command, &socket).await;
    let client = connect(&socket).await;
    assert!(client.has_extended_headers());
    assert!(
        client
            .details()
            .has(transmission_flag::SEND_FAST_ZERO | transmission_flag::SEND_CACHE)
    );
    client.write(33 * GIB, vec![5; 65536].into(), true).await.unwrap();
    client.cache(33 * GIB, 65536).await.unwrap();
    let extents = client.block_status(0, 64 * GIB, false).await.unwrap();
    assert_eq!(extents[0].length_bytes, 33 * GIB, "{extents:?}");
    assert!(extents[0].hole && extents[0].zero);
    assert!(!extents[1].hole, "{extents:?}");
    client
        .write_zeroes(32 * GIB, 6 * GIB, false, false)
        .await
        .unwrap();
    assert_eq!(client.read(33 * GIB, 65536).await.unwrap(), [0; 65536][..]);
    client.trim(8 * GIB, 40 * GIB, true).await.unwrap();
    client.disconnect().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn our_client_does_with_less_where_nbdkit_knows_no_extended_headers() {
    if !installed(&["nbdkit"]) {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    let socket = work.path().join("nbdkit.sock");
    let path = socket.to_string_lossy().into_owned();
    let command = ["nbdkit", "-f", "-U", &path, "memory", "8G"];
    let _server = ForeignServer::start(work.path(), &command, &socket).await;
    let client = connect(&socket).await;
    if client.has_extended_headers() {
        eprintln!("this nbdkit knows extended headers: nothing to see here");
        return;
    }
    assert!(client.has_block_status());
    client.write(7 * GIB, vec![5; 65536].into(), false).await.unwrap();
    assert_eq!(client.read(7 * GIB, 65536).await.unwrap(), [5; 65536][..]);
    let extents = client
        .block_status(4 * GIB, 3 * GIB + 65536, false)
        .await
        .unwrap();
    assert!(extents[0].hole, "{extents:?}");
    client.write_zeroes(7 * GIB, 65536, false, false).await.unwrap();
    client.disconnect().await.unwrap();
}
