//! What `rbd serve` serves to whom: images, pools, listeners, bounds, sockets of systemd. Real clients where there are.

#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};

use ferry_e2e::certificates;
use ferry_e2e::ferry::wait_until;
use ferry_e2e::load::connect;
use ferry_e2e::tools::installed;
use ferry_e2e::{Background, Ferry, Served, run, run_ok};
use ferry_nbd::client::{ClientConfig, Negotiation};
use serde_json::Value;

/// Names of the exports that a client is told of.
fn listed(served: &Served) -> Vec<String> {
    let list: Value =
        serde_json::from_str(&run_ok("nbdinfo", &["--list", "--json", &served.uri("")])).unwrap();
    let exports = list["exports"].as_array().cloned().unwrap_or_default();
    let mut names: Vec<String> = exports
        .iter()
        .map(|export| export["export-name"].as_str().unwrap().to_owned())
        .collect();
    names.sort();
    names
}

fn size_bytes(served: &Served, export: &str) -> String {
    run_ok("nbdinfo", &["--size", &served.uri(export)])
        .trim()
        .to_owned()
}

#[track_caller]
fn is_unknown(served: &Served, export: &str) {
    let found = run(Command::new("nbdinfo").args(["--size", &served.uri(export)]));
    assert_ne!(found.code, 0, "{export}: {found}");
}

fn pools() -> Ferry {
    let ferry = Ferry::new();
    ferry.ok(&["namespace", "create", "fast/ns"]);
    for (image, size) in [("rbd/disk", "4M"), ("fast/disk", "8M"), ("fast/ns/disk", "12M")] {
        ferry.ok(&["create", image, "--size", size]);
    }
    ferry
}

#[test]
fn a_read_only_server_refuses_changes_and_leaves_the_image_to_others() {
    if !installed(&["nbdinfo", "qemu-io"]) {
        return;
    }
    let ferry = Ferry::new();
    ferry.import(&[7; 1 << 20], "rbd/disk", &[]);
    let served = ferry.serve(&["--read-only", "rbd/disk"]);
    let uri = served.uri("rbd/disk");
    let info: Value = serde_json::from_str(&run_ok("nbdinfo", &["--json", &uri])).unwrap();
    assert_eq!(info["exports"][0]["is_read_only"], true, "{info}");
    for change in ["write 0 4k", "write -z 0 4k", "discard 0 4k"] {
        let refused = run(Command::new("qemu-io").args(["-f", "raw", "-c", change, &uri]));
        assert_ne!(refused.code, 0, "{refused}");
    }
    let read = run(Command::new("qemu-io").args(["-r", "-f", "raw", "-c", "read -P 7 0 1M", &uri])).ok();
    assert!(!read.stdout.contains("verification failed"), "{read}");
    // Neither watched nor locked: another server may write meanwhile.
    assert_eq!(ferry.ok(&["status", "rbd/disk"]), "Watchers: none\n");
    let writing = ferry.serve(&["rbd/disk"]);
    run(Command::new("qemu-io").args(["-f", "raw", "-c", "write -P 9 0 4k", &writing.uri("rbd/disk")])).ok();
    writing.stop();
    let read = run(Command::new("qemu-io").args(["-r", "-f", "raw", "-c", "read -P 9 0 4k", &uri])).ok();
    assert!(!read.stdout.contains("verification failed"), "{read}");
    served.stop();
}

#[test]
fn a_server_of_a_pool_shows_its_images_old_and_new_and_no_other() {
    if !installed(&["nbdinfo"]) {
        return;
    }
    let ferry = pools();
    let served = ferry.serve(&["--pool", "fast"]);
    assert!(
        served
            .process
            .stderr()
            .contains("every image of pool fast, as nbd+unix:///fast/IMAGE?"),
        "{}",
        served.process.stderr()
    );
    assert_eq!(listed(&served), ["fast/disk", "fast/ns/disk"]);
    assert_eq!(
        size_bytes(&served, "disk"),
        "8388608",
        "a short name is one of the pool"
    );
    assert_eq!(size_bytes(&served, "fast/ns/disk"), "12582912");
    is_unknown(&served, "rbd/disk");
    ferry.ok(&["create", "fast/late", "--size", "16M"]);
    ferry.ok(&["snap", "create", "fast/late@then", "--no-progress"]);
    assert_eq!(listed(&served), ["fast/disk", "fast/late", "fast/ns/disk"]);
    assert_eq!(size_bytes(&served, "fast/late@then"), "16777216");
    served.stop();
}

#[test]
fn a_server_of_a_namespace_shows_that_namespace_only() {
    if !installed(&["nbdinfo"]) {
        return;
    }
    let ferry = pools();
    let served = ferry.serve(&["--pool", "fast", "--namespace", "ns"]);
    assert_eq!(listed(&served), ["fast/ns/disk"]);
    assert_eq!(size_bytes(&served, "disk"), "12582912");
    is_unknown(&served, "fast/disk");
    is_unknown(&served, "rbd/disk");
    served.stop();
    ferry
        .rbd(&["serve", "--pool", "fast", "--namespace", "nosuch"])
        .fails(2, "namespace 'nosuch' does not exist");
}

#[test]
fn images_that_are_named_are_served_together_and_nothing_beside_them() {
    if !installed(&["nbdinfo"]) {
        return;
    }
    let ferry = pools();
    let served = ferry.serve(&["rbd/disk", "fast/disk"]);
    assert_eq!(listed(&served), ["fast/disk", "rbd/disk"]);
    assert_eq!(size_bytes(&served, "rbd/disk"), "4194304");
    assert_eq!(size_bytes(&served, "fast/disk"), "8388608");
    is_unknown(&served, "fast/ns/disk");
    served.stop();
}

#[test]
fn one_server_listens_on_several_sockets_and_addresses() {
    if !installed(&["nbdinfo"]) {
        return;
    }
    let ferry = pools();
    let second = ferry.file("second.sock");
    let listen = [
        "--socket",
        &second,
        "--listen",
        "127.0.0.1:0",
        "--listen",
        "127.0.0.1:0",
    ];
    let served = ferry.serve(&[&listen[..], &["rbd/disk"]].concat());
    let said = served.process.stderr();
    let uris: Vec<&str> = said
        .trim()
        .strip_prefix("rbd: serving ")
        .unwrap()
        .split(' ')
        .collect();
    assert_eq!(uris.len(), 4, "{said}");
    for uri in uris {
        assert_eq!(run_ok("nbdinfo", &["--size", uri]).trim(), "4194304", "{uri}");
    }
    served.stop();
}

#[test]
fn one_connection_too_many_is_closed_and_a_place_is_free_again_later() {
    let ferry = pools();
    let served = ferry.serve(&["--max-connections", "2", "rbd/disk"]);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let first = connect(&served.socket, "rbd/disk").await;
        let second = connect(&served.socket, "rbd/disk").await;
        let third = Negotiation::connect_unix(&served.socket, ClientConfig::default()).await;
        assert!(third.is_err(), "two is the bound");
        first.read(0, 512).await.unwrap();
        second.disconnect().await.unwrap();
    });
    wait_until("the place is free", || {
        let again = Negotiation::connect_unix(&served.socket, ClientConfig::default());
        runtime.block_on(again).is_ok()
    });
    served.stop();
}

#[test]
fn a_client_that_says_nothing_is_let_go_after_the_handshakes_time() {
    let ferry = pools();
    let served = ferry.serve(&["--handshake-timeout", "1", "rbd/disk"]);
    let mut silent = UnixStream::connect(&served.socket).unwrap();
    silent.set_read_timeout(Some(ferry_e2e::process::LIMIT)).unwrap();
    let mut greeting = Vec::new();
    // It ends: the server has hung up.
    silent.read_to_end(&mut greeting).unwrap();
    assert!(greeting.starts_with(b"NBDMAGIC"));
    served.stop();
}

#[test]
fn the_service_manager_is_told_when_the_server_is_ready_and_when_it_stops() {
    let ferry = pools();
    let notices = UnixDatagram::bind(ferry.path("notify")).unwrap();
    notices.set_read_timeout(Some(ferry_e2e::process::LIMIT)).unwrap();
    let heard = || {
        let mut buffer = [0; 256];
        let length = notices.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    };
    let socket = ferry.file("nbd.sock");
    let mut command = ferry.command(&["serve", "--socket", &socket, "rbd/disk"]);
    command.env("NOTIFY_SOCKET", ferry.path("notify"));
    let server = Background::start(&mut command, &ferry.path(""), "server");
    assert_eq!(heard(), "READY=1\n");
    assert!(ferry.path("nbd.sock").exists(), "ready means listening");
    server.signal(rustix::process::Signal::TERM);
    assert_eq!(heard(), "STOPPING=1\n");
    server.finish().ok();
}

/// `rbd serve` as systemd starts it: with `socket` as descriptor 3. A shell puts it there; its process becomes the server.
fn activated(ferry: &Ferry, socket: OwnedFd, words: &[&str]) -> Background {
    let serve = ferry.command(words);
    let mut shell = Command::new("sh");
    shell
        .args([
            "-c",
            "export LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=nbd; exec \"$@\" 3<&0 </dev/null",
        ])
        .arg("sh")
        .arg(serve.get_program())
        .args(serve.get_args());
    Background::start_with_stdin(&mut shell, Stdio::from(socket), &ferry.path(""), "activated")
}

#[test]
fn a_socket_that_systemd_opened_is_served_and_left_where_it_is() {
    if !installed(&["nbdinfo"]) {
        return;
    }
    let ferry = pools();
    let path = ferry.path("activation.sock");
    let socket = UnixListener::bind(&path).unwrap();
    for _ in 0..2 {
        // The client may come before the server does.
        let client = Background::start(
            Command::new("nbdinfo").args([
                "--size",
                &format!("nbd+unix:///rbd/disk?socket={}", path.display()),
            ]),
            &ferry.path(""),
            "client",
        );
        let server = activated(&ferry, socket.try_clone().unwrap().into(), &["serve", "rbd/disk"]);
        assert_eq!(client.finish().ok().stdout.trim(), "4194304");
        server.signal(rustix::process::Signal::TERM);
        server.finish().ok();
        assert!(path.exists(), "the socket is systemd's");
    }
    assert!(
        !ferry.store().join("run/nbd.sock").exists(),
        "no other socket was needed"
    );
}

#[test]
fn a_client_of_libnbd_starts_the_server_by_socket_activation() {
    if !installed(&["nbdinfo"]) {
        return;
    }
    let ferry = pools();
    let serve = ferry.command(&["serve", "rbd/disk"]);
    let mut nbdinfo = Command::new("nbdinfo");
    nbdinfo.args(["--size", "--", "["]);
    nbdinfo.arg(serve.get_program()).args(serve.get_args()).arg("]");
    assert_eq!(run(&mut nbdinfo).ok().stdout.trim(), "4194304");
}

#[test]
fn a_descriptor_that_is_no_listening_socket_is_refused() {
    let ferry = pools();
    let file = std::fs::File::create(ferry.path("file")).unwrap();
    activated(&ferry, file.into(), &["serve", "rbd/disk"])
        .finish()
        .fails(22, "inherited descriptor 3");
}

/// The URI of an export over TLS, with certificates for the client.
fn tls_uri(served: &Served, certificates: &Path) -> String {
    format!(
        "nbds+unix:///rbd/disk?socket={}&tls-certificates={}",
        served.socket.display(),
        certificates.display()
    )
}

#[test]
fn only_clients_with_a_certificate_of_our_authority_get_in_when_peers_are_verified() {
    if !installed(&["nbdinfo", "qemu-img"]) {
        return;
    }
    let ferry = pools();
    let (ours, theirs) = (ferry.path("ours"), ferry.path("theirs"));
    certificates::write(&ours);
    certificates::write(&theirs);
    // Somebody who believes in our authority, and has no certificate or one of another authority.
    let (nobody, stranger) = (ferry.path("nobody"), ferry.path("stranger"));
    for directory in [&nobody, &stranger] {
        std::fs::create_dir(directory).unwrap();
        std::fs::copy(ours.join("ca-cert.pem"), directory.join("ca-cert.pem")).unwrap();
    }
    for file in ["client-cert.pem", "client-key.pem"] {
        std::fs::copy(theirs.join(file), stranger.join(file)).unwrap();
    }

    let directory = ours.to_string_lossy().into_owned();
    let served = ferry.serve(&[
        "--tls-certificates",
        &directory,
        "--tls-verify-peer",
        "--listen",
        "127.0.0.1:0",
        "rbd/disk",
    ]);
    let said = served.process.stderr();
    assert!(
        said.contains("nbds://127.0.0.1:") && said.contains("nbds+unix:///"),
        "{said}"
    );
    let size = |uri: &str| run(Command::new("nbdinfo").args(["--size", uri]));
    assert_eq!(size(&tls_uri(&served, &ours)).ok().stdout.trim(), "4194304");
    for refused in [
        tls_uri(&served, &nobody),
        tls_uri(&served, &stranger),
        // And in plain text.
        served.uri("rbd/disk"),
    ] {
        let answer = size(&refused);
        assert_ne!(answer.code, 0, "{answer}");
    }
    // QEMU checks that the server is who it says it is.
    let port = said
        .split("127.0.0.1:")
        .nth(1)
        .and_then(|rest| rest.split('/').next())
        .unwrap();
    let image = format!(
        "driver=nbd,server.type=inet,server.host=localhost,server.port={port},export=rbd/disk,tls-creds=tls"
    );
    let credentials = |directory: &Path| {
        format!(
            "tls-creds-x509,id=tls,endpoint=client,dir={}",
            directory.display()
        )
    };
    let info = |directory: &Path| {
        run(Command::new("qemu-img").args([
            "info",
            "--object",
            &credentials(directory),
            "--image-opts",
            &image,
        ]))
    };
    let found = info(&ours).ok();
    assert!(found.stdout.contains("4 MiB"), "{found}");
    assert_ne!(info(&stranger).code, 0);
    served.stop();
}

#[test]
fn without_verification_any_client_that_speaks_tls_gets_in_and_no_other() {
    if !installed(&["nbdinfo"]) {
        return;
    }
    let ferry = pools();
    let (ours, nobody) = (ferry.path("ours"), ferry.path("nobody"));
    certificates::write(&ours);
    std::fs::create_dir(&nobody).unwrap();
    std::fs::copy(ours.join("ca-cert.pem"), nobody.join("ca-cert.pem")).unwrap();
    let directory = ours.to_string_lossy().into_owned();
    let served = ferry.serve(&["--tls-certificates", &directory, "rbd/disk"]);
    let size = |uri: &str| run(Command::new("nbdinfo").args(["--size", uri]));
    assert_eq!(size(&tls_uri(&served, &nobody)).ok().stdout.trim(), "4194304");
    assert_ne!(size(&served.uri("rbd/disk")).code, 0);
    served.stop();
    std::fs::remove_file(ours.join("server-key.pem")).unwrap();
    ferry
        .rbd(&["serve", "--tls-certificates", &directory, "rbd/disk"])
        .fails(22, "server-key.pem");
}

/// What `rbd device map` gives to the kernel, which then speaks for itself: plain requests, simple replies.
#[test]
fn a_connection_that_is_handed_over_answers_plain_requests_with_simple_replies() {
    use std::io::{Read as _, Write as _};

    let ferry = Ferry::new();
    ferry.import(&[7; 1 << 20], "rbd/disk", &[]);
    let served = ferry.serve(&["rbd/disk"]);
    let mut stream = std::os::unix::net::UnixStream::connect(&served.socket).unwrap();
    stream.set_read_timeout(Some(ferry_e2e::process::LIMIT)).unwrap();
    let ours = stream.try_clone().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let details = runtime.block_on(async {
        ours.set_nonblocking(true).unwrap();
        let ours = tokio::net::UnixStream::from_std(ours).unwrap();
        let (reader, writer) = tokio::io::split(ours);
        let config = ferry_nbd::client::ClientConfig {
            structured_replies: false,
            extended_headers: false,
            block_status: false,
            ..Default::default()
        };
        let negotiation = ferry_nbd::client::Negotiation::over(reader, writer, config).await;
        negotiation.unwrap().hand_over("").await.unwrap()
    });
    drop(runtime);
    stream.set_nonblocking(false).unwrap();
    assert_eq!(details.size_bytes, 1 << 20);
    assert!(!details.read_only());

    let mut exchange = |kind: u16, handle: u64, offset: u64, length: u32, data: &[u8], answer: usize| {
        let mut request = 0x2560_9513_u32.to_be_bytes().to_vec();
        request.extend(0u16.to_be_bytes());
        request.extend(kind.to_be_bytes());
        request.extend(handle.to_be_bytes());
        request.extend(offset.to_be_bytes());
        request.extend(length.to_be_bytes());
        request.extend(data);
        stream.write_all(&request).unwrap();
        let mut reply = vec![0; 16 + answer];
        stream.read_exact(&mut reply).unwrap();
        assert_eq!(reply[..4], 0x6744_6698_u32.to_be_bytes());
        assert_eq!(reply[4..8], [0; 4], "no error");
        assert_eq!(reply[8..16], handle.to_be_bytes());
        reply.split_off(16)
    };
    assert_eq!(exchange(0, 1, 4096, 512, &[], 512), [7; 512]);
    exchange(1, 2, 4096, 512, &[9; 512], 0);
    exchange(3, 3, 0, 0, &[], 0);
    assert_eq!(exchange(0, 4, 4096, 512, &[], 512), [9; 512]);
    // The kernel's farewell.
    let mut farewell = 0x2560_9513_u32.to_be_bytes().to_vec();
    farewell.extend([0, 0, 0, 2]);
    farewell.extend([0; 20]);
    stream.write_all(&farewell).unwrap();
    assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0, "the server hangs up");
    served.stop();
    assert_eq!(ferry.export("rbd/disk")[4096..4608], [9; 512]);
}
