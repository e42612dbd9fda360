//! TLS with other people's programs: QEMU's and libnbd's clients against our server, our client against `qemu-nbd`
//! and nbdkit. Certificates are made on the spot, in the directory layout that all of them share.

#![allow(clippy::unwrap_used)] // A test fails by panicking.

mod common;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::certificates::{Authority, write_identity};
use common::tools::{ForeignServer, installed, run, succeed};
use common::{EXPORT, one_export};
use ferry_nbd::client::{ClientConfig, ClientError, Negotiation};
use ferry_nbd::testing::MemoryDevice;
use ferry_nbd::{
    Listener, ServeSummary, Server, ServerConfig, ShutdownTrigger, TlsClient, TlsServer, shutdown_channel,
};
use tempfile::TempDir;
use tokio::task::JoinHandle;

const MIB: usize = 1 << 20;

/// Directories with certificates: of the server and a client of one authority, of a client that has only the
/// authority, and of a client of another authority.
struct Credentials(TempDir);

impl Credentials {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| {
            let path = directory.path().join(name);
            std::fs::create_dir(&path).unwrap();
            path
        };
        let authority = Authority::new("the authority");
        let (good, bare, foreign) = (path("good"), path("bare"), path("foreign"));
        for directory in [&good, &bare, &foreign] {
            authority.write(directory);
        }
        write_identity(&good, "server", &authority.server("localhost"));
        write_identity(&good, "client", &authority.client("a client"));
        write_identity(&foreign, "client", &Authority::new("another").client("x"));
        Self(directory)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

struct Running {
    port: u16,
    trigger: ShutdownTrigger,
    server: JoinHandle<ServeSummary>,
}

async fn start(disk: &Arc<MemoryDevice>, credentials: &Credentials, verify_clients: bool) -> Running {
    let listener = Listener::tcp("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let port = listener.tcp_address().unwrap().port();
    let config = ServerConfig {
        tls: Some(TlsServer::from_directory(credentials.path("good"), verify_clients).unwrap()),
        ..ServerConfig::default()
    };
    let exports = one_export(disk);
    let (trigger, shutdown) = shutdown_channel();
    let server = tokio::spawn(async move {
        Server::run(vec![listener], exports, config, shutdown)
            .await
            .unwrap()
    });
    Running {
        port,
        trigger,
        server,
    }
}

impl Running {
    async fn stop(self) {
        self.trigger.shut_down();
        let summary = self.server.await.unwrap();
        assert!(summary.is_clean(), "{summary:?}");
    }
}

fn data() -> Vec<u8> {
    (0..6 * MIB + 512).map(|at| (at / 7 % 251) as u8).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn qemu_img_copies_both_ways_over_tls() {
    if !installed(&["qemu-img"]) {
        return;
    }
    let credentials = Credentials::new();
    let work = tempfile::tempdir().unwrap();
    let data = data();
    std::fs::write(work.path().join("in.raw"), &data).unwrap();
    for verify in [false, true] {
        let disk = Arc::new(MemoryDevice::new(data.len()));
        let running = start(&disk, &credentials, verify).await;
        let object = |name: &str| {
            let directory = credentials.path(name);
            format!(
                "tls-creds-x509,id=tls,endpoint=client,dir={}",
                directory.display()
            )
        };
        let target = format!(
            "driver=nbd,host=127.0.0.1,port={},export={EXPORT},tls-creds=tls,tls-hostname=localhost",
            running.port
        );
        let convert = |object: &str, from: &str, to: &str, flags: &[&str]| {
            let mut command = vec!["qemu-img", "convert", "--object", object];
            command.extend(flags);
            command.extend(["-n", from, to]);
            command.into_iter().map(str::to_owned).collect::<Vec<_>>()
        };
        let good = object("good");
        let up = convert(
            &good,
            "driver=raw,file.driver=file,file.filename=in.raw",
            &target,
            &["--image-opts", "--target-image-opts"],
        );
        let up: Vec<&str> = up.iter().map(String::as_str).collect();
        succeed(work.path(), &up).await;
        assert!(
            disk.snapshot() == data,
            "the disk differs from what was copied to it"
        );
        let compare = [
            "qemu-img",
            "compare",
            "--object",
            &good,
            "--image-opts",
            "driver=raw,file.driver=file,file.filename=in.raw",
            &target,
        ];
        succeed(work.path(), &compare).await;
        // A client of another authority is refused by QEMU itself, which compares its own files.
        let bare = object("bare");
        let info = ["qemu-img", "info", "--object", &bare, "--image-opts", &target];
        let output = run(work.path(), &info).await;
        assert_eq!(output.status.success(), !verify, "without a certificate");
        let plain = format!("nbd://127.0.0.1:{}/{EXPORT}", running.port);
        let output = run(work.path(), &["qemu-img", "info", &plain]).await;
        assert!(!output.status.success(), "plain text got in");
        let message = String::from_utf8_lossy(&output.stderr);
        assert!(message.contains("TLS"), "{message}");
        running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn libnbd_copies_both_ways_over_tls() {
    if !installed(&["nbdinfo", "nbdcopy"]) {
        return;
    }
    let credentials = Credentials::new();
    let work = tempfile::tempdir().unwrap();
    let data = data();
    std::fs::write(work.path().join("in.raw"), &data).unwrap();
    for verify in [false, true] {
        let disk = Arc::new(MemoryDevice::new(data.len()));
        let running = start(&disk, &credentials, verify).await;
        let uri = |name: &str| {
            format!(
                "nbds://127.0.0.1:{}/{EXPORT}?tls-certificates={}",
                running.port,
                credentials.path(name).display()
            )
        };
        let good = uri("good");
        let info = succeed(work.path(), &["nbdinfo", &good]).await;
        assert!(info.contains("with TLS"), "{info}");
        let up = ["nbdcopy", "--flush", "--connections=4", "in.raw", &good];
        succeed(work.path(), &up).await;
        assert!(
            disk.snapshot() == data,
            "the disk differs from what was copied to it"
        );
        succeed(work.path(), &["nbdcopy", &good, "out.raw"]).await;
        assert!(std::fs::read(work.path().join("out.raw")).unwrap() == data);
        let list = succeed(work.path(), &["nbdinfo", "--list", &good]).await;
        assert!(list.contains(EXPORT), "{list}");
        for name in ["bare", "foreign"] {
            let output = run(work.path(), &["nbdinfo", "--size", &uri(name)]).await;
            assert_eq!(output.status.success(), !verify, "{name}, verifying {verify}");
        }
        let plain = format!("nbd://127.0.0.1:{}/", running.port);
        for command in [&["nbdinfo", "--list", &plain][..], &["nbdinfo", &plain]] {
            let output = run(work.path(), command).await;
            assert!(!output.status.success(), "plain text got in");
            let told = [output.stdout, output.stderr].concat();
            assert!(
                !String::from_utf8_lossy(&told).contains(EXPORT),
                "the name of the export leaked"
            );
        }
        running.stop().await;
    }
}

async fn enter(socket: &Path, export: &str, tls: Option<TlsClient>) -> Result<(), ClientError> {
    let config = ClientConfig {
        tls,
        ..ClientConfig::default()
    };
    let client = Negotiation::connect_unix(socket, config)
        .await?
        .go(export)
        .await?;
    client.write(4096, vec![7; 100_000].into(), true).await?;
    assert_eq!(client.read(4096, 100_000).await?, [7; 100_000][..]);
    client.flush().await?;
    client.disconnect().await
}

async fn our_client_against(socket: &Path, credentials: &Credentials, export: &str) {
    let tls = |name: &str| TlsClient::from_directory(credentials.path(name), "localhost").unwrap();
    enter(socket, export, Some(tls("good"))).await.unwrap();
    let refused = enter(socket, export, Some(tls("bare"))).await;
    assert!(refused.is_err(), "a client without a certificate got in");
    let other_name = TlsClient::from_directory(credentials.path("good"), "example.org").unwrap();
    let refused = enter(socket, export, Some(other_name)).await.unwrap_err();
    assert!(matches!(refused, ClientError::Tls(_)), "{refused}");
    let refused = enter(socket, export, None).await.unwrap_err();
    assert!(matches!(refused, ClientError::Refused { .. }), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn our_client_uses_qemu_nbd_over_tls() {
    if !installed(&["qemu-nbd"]) {
        return;
    }
    let credentials = Credentials::new();
    let work = tempfile::tempdir().unwrap();
    let socket = work.path().join("qemu.sock");
    std::fs::write(work.path().join("disk.raw"), vec![0; MIB]).unwrap();
    let object = format!(
        "tls-creds-x509,id=tls,endpoint=server,verify-peer=on,dir={}",
        credentials.path("good").display()
    );
    let path = socket.to_string_lossy().into_owned();
    let command = [
        "qemu-nbd",
        "--object",
        &object,
        "--tls-creds",
        "tls",
        "-x",
        EXPORT,
        "-f",
        "raw",
        "-t",
        "-e",
        "8",
        "-k",
        &path,
        "disk.raw",
    ];
    let _server = ForeignServer::start(work.path(), &command, &socket).await;
    our_client_against(&socket, &credentials, EXPORT).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn our_client_uses_nbdkit_over_tls() {
    if !installed(&["nbdkit"]) {
        return;
    }
    let credentials = Credentials::new();
    let work = tempfile::tempdir().unwrap();
    let socket = work.path().join("nbdkit.sock");
    let certificates = format!("--tls-certificates={}", credentials.path("good").display());
    let path = socket.to_string_lossy().into_owned();
    let command = [
        "nbdkit",
        "-f",
        "--tls=require",
        "--tls-verify-peer",
        &certificates,
        "-U",
        &path,
        "memory",
        "1M",
    ];
    let _server = ForeignServer::start(work.path(), &command, &socket).await;
    our_client_against(&socket, &credentials, EXPORT).await;
}
