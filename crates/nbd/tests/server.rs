//! Sockets and connections of a whole server.

#![allow(clippy::unwrap_used)] // A test fails by panicking.

mod common;

use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::sync::Arc;

use common::{EXPORT, Raw, go_data, one_export, settle, until};
use ferry_nbd::client::{Client, ClientConfig, Negotiation};
use ferry_nbd::proto::{opt, rep};
use ferry_nbd::testing::{Fault, MemoryDevice, MemoryExports, Operation};
use ferry_nbd::{
    Exports, ListenError, Listener, ServeSummary, Server, ServerConfig, ServerError, ShutdownTrigger,
    shutdown_channel,
};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::task::JoinHandle;

struct Running {
    socket: PathBuf,
    trigger: ShutdownTrigger,
    server: JoinHandle<Result<ServeSummary, ServerError>>,
    _directory: tempfile::TempDir,
}

async fn start(exports: Arc<dyn Exports>, config: ServerConfig) -> Running {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("nbd.sock");
    let listener = Listener::unix(&socket).await.unwrap();
    let (trigger, shutdown) = shutdown_channel();
    let server = tokio::spawn(Server::run(vec![listener], exports, config, shutdown));
    Running {
        socket,
        trigger,
        server,
        _directory: directory,
    }
}

impl Running {
    async fn client(&self) -> Client {
        let negotiation = Negotiation::connect_unix(&self.socket, ClientConfig::default())
            .await
            .unwrap();
        negotiation.go(EXPORT).await.unwrap()
    }

    async fn stop(self) -> ServeSummary {
        self.trigger.shut_down();
        self.server.await.unwrap().unwrap()
    }
}

fn device() -> Arc<MemoryDevice> {
    Arc::new(MemoryDevice::new(1 << 20))
}

#[tokio::test]
async fn connections_share_a_device_that_is_closed_after_the_last() {
    let exports = one_export(&device());
    let running = start(exports.clone(), ServerConfig::default()).await;
    let first = running.client().await;
    let second = running.client().await;
    first.write(0, vec![1; 100].into(), false).await.unwrap();
    assert_eq!(second.read(0, 100).await.unwrap(), [1; 100][..]);
    first.disconnect().await.unwrap();
    settle().await;
    assert_eq!((exports.opened(), exports.closed()), (2, 0));
    second.disconnect().await.unwrap();
    until(|| exports.closed() == 1).await;
    let third = running.client().await;
    assert_eq!(third.read(0, 100).await.unwrap(), [1; 100][..]);
    let summary = running.stop().await;
    assert!(summary.is_clean());
    assert_eq!(summary.connections_served, 3);
    assert_eq!((exports.opened(), exports.closed()), (3, 2));
}

#[tokio::test]
async fn a_hostile_connection_ends_alone() {
    let running = start(one_export(&device()), ServerConfig::default()).await;
    let client = running.client().await;
    for bytes in [&[0xff; 400][..], b"GET / HTTP/1.1\r\n\r\n", b""] {
        let mut hostile = UnixStream::connect(&running.socket).await.unwrap();
        hostile.write_all(bytes).await.unwrap();
        let mut hostile = Raw(hostile);
        hostile.0.shutdown().await.unwrap();
        hostile.until_closed().await;
    }
    let mut hostile = Raw::enter(UnixStream::connect(&running.socket).await.unwrap(), true).await;
    hostile.0.write_all(&[0xee; 28]).await.unwrap();
    assert!(hostile.until_closed().await.is_empty());
    client.write(0, vec![1; 100].into(), true).await.unwrap();
    assert!(running.stop().await.is_clean());
}

#[tokio::test]
async fn connections_beyond_the_bound_are_closed_and_room_is_made_again() {
    let config = ServerConfig {
        max_connections: 2,
        ..ServerConfig::default()
    };
    let stats = Arc::clone(&config.stats);
    let running = start(one_export(&device()), config).await;
    let first = running.client().await;
    let second = running.client().await;
    let mut third = Raw(UnixStream::connect(&running.socket).await.unwrap());
    assert!(third.until_closed().await.is_empty());
    first.disconnect().await.unwrap();
    until(|| stats.connections_now() == 1).await;
    let fourth = running.client().await;
    fourth.flush().await.unwrap();
    second.flush().await.unwrap();
    let summary = running.stop().await;
    assert_eq!((summary.connections_served, summary.connections_refused), (3, 1));
}

#[tokio::test]
async fn a_shutdown_ends_idle_clients_and_removes_the_socket() {
    let exports = one_export(&device());
    let running = start(exports.clone(), ServerConfig::default()).await;
    let client = running.client().await;
    let idle = Raw::greet(UnixStream::connect(&running.socket).await.unwrap(), 3).await;
    client.write(0, vec![1; 100].into(), false).await.unwrap();
    let socket = running.socket.clone();
    assert!(socket.exists());
    let directory = running._directory.path().to_owned();
    running.trigger.shut_down();
    assert!(running.server.await.unwrap().unwrap().is_clean());
    assert!(!socket.exists());
    assert_eq!(
        std::fs::read_dir(directory).unwrap().count(),
        0,
        "nothing is left behind"
    );
    assert!(client.read(0, 1).await.is_err());
    assert_eq!((exports.opened(), exports.closed()), (1, 1));
    drop(idle);
}

#[tokio::test]
async fn a_device_that_panics_when_it_is_closed_does_not_take_the_server_along() {
    let device = device();
    let running = start(one_export(&device), ServerConfig::default()).await;
    let client = running.client().await;
    device.inject(Operation::Flush, Fault::Panic);
    client.disconnect().await.unwrap();
    let client = running.client().await;
    client.flush().await.unwrap();
    client.disconnect().await.unwrap();
    let summary = running.stop().await;
    assert_eq!(summary.close_failures, 1);
    assert_eq!(
        summary.last_close_failure.as_deref(),
        Some("flush of a device panicked")
    );
}

#[tokio::test]
async fn a_server_listens_on_tcp_and_unix_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let unix = Listener::unix(directory.path().join("a b.sock")).await.unwrap();
    let tcp = Listener::tcp("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address: SocketAddr = tcp.tcp_address().unwrap();
    assert_eq!(tcp.uri("rbd/a@b"), format!("nbd://{address}/rbd/a%40b"));
    assert!(unix.uri("").ends_with("a%20b.sock"), "{}", unix.uri(""));
    assert_eq!(tcp.to_string(), address.to_string());
    let (trigger, shutdown) = shutdown_channel();
    let exports = one_export(&device());
    let server = tokio::spawn(Server::run(
        vec![unix, tcp],
        exports,
        ServerConfig::default(),
        shutdown,
    ));
    let config = ClientConfig::default();
    let over_tcp = Negotiation::connect_tcp(address, config.clone()).await.unwrap();
    let over_tcp = over_tcp.go(EXPORT).await.unwrap();
    over_tcp.write(5, vec![3; 300_000].into(), false).await.unwrap();
    let over_unix = Negotiation::connect_unix(directory.path().join("a b.sock"), config)
        .await
        .unwrap();
    let over_unix = over_unix.go(EXPORT).await.unwrap();
    assert_eq!(over_unix.read(5, 300_000).await.unwrap(), vec![3; 300_000]);
    trigger.shut_down();
    assert!(server.await.unwrap().unwrap().is_clean());
}

#[tokio::test]
async fn a_server_without_a_socket_is_refused() {
    let (_trigger, shutdown) = shutdown_channel();
    let exports = Arc::new(MemoryExports::new());
    let refused = Server::run(vec![], exports, ServerConfig::default(), shutdown).await;
    assert!(matches!(refused, Err(ServerError::NoListener)));
}

#[tokio::test]
async fn the_socket_of_a_living_server_is_not_taken() {
    let running = start(one_export(&device()), ServerConfig::default()).await;
    let refused = Listener::unix(&running.socket).await;
    assert!(matches!(refused, Err(ListenError::InUse { .. })), "{refused:?}");
    let mut raw = Raw::greet(UnixStream::connect(&running.socket).await.unwrap(), 3).await;
    assert_eq!(raw.verdict(opt::GO, &go_data(EXPORT, &[])).await, rep::ACK);
}

#[tokio::test]
async fn the_socket_of_a_killed_server_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("nbd.sock");
    // The standard library's listener leaves its file behind, as a killed server does.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let listener = Listener::unix(&path).await.unwrap();
    assert!(UnixStream::connect(&path).await.is_ok());
    drop(listener);
    assert!(!path.exists());
}

#[tokio::test]
async fn what_is_not_a_socket_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    std::fs::write(&file, "precious").unwrap();
    let link = directory.path().join("link");
    symlink(&file, &link).unwrap();
    for path in [&file, &link] {
        let refused = Listener::unix(path).await;
        assert!(
            matches!(refused, Err(ListenError::NotASocket { .. })),
            "{refused:?}"
        );
    }
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
    assert!(matches!(
        Listener::unix(directory.path().join("no/such")).await,
        Err(ListenError::Io { .. })
    ));
    let long = Listener::unix(directory.path().join("x".repeat(200))).await;
    assert!(matches!(long, Err(ListenError::Io { .. })), "{long:?}");
}

#[tokio::test]
async fn a_socket_that_someone_else_put_there_is_not_removed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("nbd.sock");
    let listener = Listener::unix(&path).await.unwrap();
    std::fs::rename(&path, directory.path().join("moved")).unwrap();
    let _other = std::os::unix::net::UnixListener::bind(&path).unwrap();
    drop(listener);
    assert!(path.exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_servers_that_start_at_once_exactly_one_gets_the_socket() {
    for _ in 0..20 {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("nbd.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let starts: Vec<_> = (0..4)
            .map(|_| tokio::spawn(Listener::unix(path.clone())))
            .collect();
        let mut listeners = Vec::new();
        for start in starts {
            match start.await.unwrap() {
                Ok(listener) => listeners.push(listener),
                Err(ListenError::InUse { .. }) => {}
                Err(other) => panic!("{other}"),
            }
        }
        assert_eq!(listeners.len(), 1);
        assert!(path.exists());
    }
}

#[tokio::test]
async fn a_socket_is_for_its_owner_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let running = start(one_export(&device()), ServerConfig::default()).await;
    let mode = std::fs::metadata(&running.socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
    running.client().await.disconnect().await.unwrap();
    assert!(running.stop().await.is_clean());
}
