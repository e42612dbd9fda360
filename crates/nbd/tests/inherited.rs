//! Servers on sockets that another process opened, in this process and in a child that is told so as systemd does.

#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, Stdio};
use std::sync::Arc;

use ferry_nbd::client::{ClientConfig, Negotiation};
use ferry_nbd::testing::{MemoryDevice, MemoryExports};
use ferry_nbd::{ListenError, Listener, Server, ServerConfig, shutdown_channel};

fn exports() -> Arc<MemoryExports> {
    Arc::new(MemoryExports::new().with("disk", "", Arc::new(MemoryDevice::new(4096))))
}

#[tokio::test]
async fn inherited_sockets_serve_and_keep_their_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("given.sock");
    let unix = Listener::inherited(UnixListener::bind(&path).unwrap().into()).unwrap();
    let tcp = Listener::inherited(TcpListener::bind("127.0.0.1:0").unwrap().into()).unwrap();
    assert_eq!(unix.to_string(), path.display().to_string());
    assert!(unix.uri("disk").ends_with("given.sock"), "{}", unix.uri("disk"));
    let address = tcp.tcp_address().unwrap();
    let (trigger, shutdown) = shutdown_channel();
    let server = tokio::spawn(Server::run(
        vec![unix, tcp],
        exports(),
        ServerConfig::default(),
        shutdown,
    ));
    let mut over_unix = Negotiation::connect_unix(&path, ClientConfig::default())
        .await
        .unwrap();
    assert_eq!(over_unix.list().await.unwrap().len(), 1);
    let mut over_tcp = Negotiation::connect_tcp(address, ClientConfig::default())
        .await
        .unwrap();
    assert_eq!(over_tcp.list().await.unwrap().len(), 1);
    trigger.shut_down();
    assert!(server.await.unwrap().unwrap().is_clean());
    assert!(path.exists(), "the socket belongs to whoever made it");
}

#[tokio::test]
async fn descriptors_that_are_no_listening_socket_are_refused() {
    let connected = UnixStream::pair().unwrap().0;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let tcp = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
    let file = tempfile::tempfile().unwrap();
    let descriptors: [OwnedFd; 4] = [connected.into(), tcp.into(), datagrams.into(), file.into()];
    for descriptor in descriptors {
        let refused = Listener::inherited(descriptor).unwrap_err();
        assert!(matches!(refused, ListenError::Unusable { .. }), "{refused}");
    }
}

/// The other half of the tests below: what it finds, it prints.
#[tokio::test]
async fn child_that_takes_what_it_is_given() {
    if std::env::var_os("FERRY_TEST_CHILD").is_none() {
        return;
    }
    match Listener::from_systemd() {
        Err(error) => println!("CHILD refused: {error}"),
        Ok(listeners) if listeners.is_empty() => println!("CHILD found none"),
        Ok(listeners) => {
            let again = Listener::from_systemd().unwrap_err();
            println!("CHILD again: {again}");
            let (trigger, shutdown) = shutdown_channel();
            let server = tokio::spawn(Server::run(
                listeners,
                exports(),
                ServerConfig::default(),
                shutdown,
            ));
            // The end of standard input is the sign to stop.
            tokio::task::spawn_blocking(|| std::io::read_to_string(std::io::stdin()))
                .await
                .unwrap()
                .unwrap();
            trigger.shut_down();
            assert!(server.await.unwrap().unwrap().is_clean());
        }
    }
}

/// Runs the child with the socket as descriptor 3, its standard input piped.
fn child(socket: OwnedFd, variables: &str) -> std::process::Child {
    let script = format!("exec 3<&1 1>&2 0<&0; {variables} exec \"$@\"");
    // The shell gets the socket as its standard output and moves it; what the child prints goes to its errors.
    Command::new("sh")
        .args(["-c", &script, "sh"])
        .arg(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "child_that_takes_what_it_is_given",
            "--nocapture",
            "--test-threads=1",
        ])
        .env("FERRY_TEST_CHILD", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::from(socket))
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

#[tokio::test]
async fn a_server_started_with_a_socket_serves_on_it_once() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("given.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let mut child = child(listener.into(), "LISTEN_PID=$$ LISTEN_FDS=1");
    // The socket was listening before the child ran, so nothing has to be waited for.
    let client = Negotiation::connect_unix(&path, ClientConfig::default())
        .await
        .unwrap()
        .go("disk")
        .await
        .unwrap();
    client.write(0, vec![7; 512].into(), true).await.unwrap();
    assert_eq!(client.read(0, 512).await.unwrap()[..], [7; 512]);
    client.disconnect().await.unwrap();
    drop(child.stdin.take());
    let output = tokio::task::spawn_blocking(|| child.wait_with_output().unwrap())
        .await
        .unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
    assert!(
        told.contains("CHILD again: the inherited sockets were taken before"),
        "{told}"
    );
}

#[tokio::test]
async fn sockets_of_another_process_or_that_are_not_there_are_not_taken() {
    for (variables, told) in [
        ("LISTEN_PID=1 LISTEN_FDS=1", "CHILD found none"),
        ("LISTEN_PID=$$ LISTEN_FDS=0", "CHILD found none"),
        (
            "LISTEN_PID=$$ LISTEN_FDS=x",
            "CHILD refused: LISTEN_FDS=\"x\" is not a number",
        ),
        ("LISTEN_PID=$$ LISTEN_FDS=99", "which is not open"),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("given.sock")).unwrap();
        let mut child = child(listener.into(), variables);
        drop(child.stdin.take());
        let output = tokio::task::spawn_blocking(|| child.wait_with_output().unwrap())
            .await
            .unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(errors.contains(told), "{variables}: {errors}");
    }
}
