//! TLS between the server and the crate's own client, certificates made on the spot, and what must be refused.

#![allow(clippy::unwrap_used)] // A test fails by panicking.

mod common;

use std::fs;
use std::path::Path;
use std::sync::Arc;

use common::certificates::{Authority, write_identity};
use common::{EXPORT, Raw, Served, go_data, one_export, serve, serve_device};
use ferry_nbd::client::{Client, ClientConfig, ClientError, Negotiation};
use ferry_nbd::proto::{opt, rep};
use ferry_nbd::testing::MemoryDevice;
use ferry_nbd::{ServerConfig, TlsClient, TlsError, TlsServer};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// A directory with everything both ends need.
fn directory() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::new("the authority");
    authority.write(directory.path());
    write_identity(directory.path(), "server", &authority.server("localhost"));
    write_identity(directory.path(), "client", &authority.client("a client"));
    directory
}

fn config(directory: &Path, verify_clients: bool) -> ServerConfig {
    ServerConfig {
        tls: Some(TlsServer::from_directory(directory, verify_clients).unwrap()),
        ..ServerConfig::default()
    }
}

fn device() -> Arc<MemoryDevice> {
    Arc::new(MemoryDevice::new(1 << 20))
}

fn serve_tls(directory: &Path, verify_clients: bool) -> Served {
    serve(one_export(&device()), config(directory, verify_clients))
}

async fn enter(stream: UnixStream, tls: Option<TlsClient>) -> Result<Client, ClientError> {
    let (reader, writer) = stream.into_split();
    let config = ClientConfig {
        tls,
        ..ClientConfig::default()
    };
    Negotiation::over(reader, writer, config).await?.go(EXPORT).await
}

fn client(directory: &Path) -> TlsClient {
    TlsClient::from_directory(directory, "localhost").unwrap()
}

#[tokio::test]
async fn an_encrypted_session_reads_what_it_wrote() {
    let directory = directory();
    for verify_clients in [false, true] {
        let served = serve_tls(directory.path(), verify_clients);
        let client = enter(served.stream, Some(client(directory.path())))
            .await
            .unwrap();
        let data: Vec<u8> = (0..700_000u32).map(|i| (i % 251) as u8).collect();
        client.write(4096, data.clone().into(), true).await.unwrap();
        assert_eq!(client.read(4096, 700_000).await.unwrap(), data);
        assert!(client.has_block_status());
        assert_eq!(client.block_status(0, 1 << 20, false).await.unwrap().len(), 3);
        client.disconnect().await.unwrap();
        assert!(served.server.await.unwrap().is_clean());
    }
}

#[tokio::test]
async fn nothing_shows_on_the_wire_once_tls_is_active() {
    let directory = directory();
    let Served {
        server,
        mut stream,
        trigger: _trigger,
    } = serve_tls(directory.path(), false);
    let (near, far) = UnixStream::pair().unwrap();
    let (mut far_reader, mut far_writer) = far.into_split();
    let relay = tokio::spawn(async move {
        let (mut reader, mut writer) = stream.split();
        let (mut up, mut down) = (Vec::new(), Vec::new());
        let upwards = async {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = far_reader.read(&mut buffer).await {
                up.extend_from_slice(&buffer[..count]);
                writer.write_all(&buffer[..count]).await.unwrap();
            }
            let _ = writer.shutdown().await;
        };
        let downwards = async {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = reader.read(&mut buffer).await {
                down.extend_from_slice(&buffer[..count]);
                if far_writer.write_all(&buffer[..count]).await.is_err() {
                    break;
                }
            }
        };
        tokio::join!(upwards, downwards);
        (up, down)
    });
    let client = enter(near, Some(client(directory.path()))).await.unwrap();
    client.write(0, b"a secret".to_vec().into(), false).await.unwrap();
    assert_eq!(client.read(0, 8).await.unwrap()[..], b"a secret"[..]);
    client.disconnect().await.unwrap();
    let (up, down) = relay.await.unwrap();
    assert!(server.await.unwrap().is_clean());
    for (bytes, way) in [(up, "up"), (down, "down")] {
        assert!(bytes.len() > 500, "{way}");
        for secret in [&b"a secret"[..], EXPORT.as_bytes(), b"base:allocation"] {
            assert!(
                !bytes.windows(secret.len()).any(|window| window == secret),
                "{way}: {secret:?}"
            );
        }
    }
}

#[tokio::test]
async fn without_tls_nothing_is_told_but_that_it_is_required() {
    let directory = directory();
    let served = serve_tls(directory.path(), false);
    let mut raw = Raw::greet(served.stream, 3).await;
    for name in [EXPORT, "unknown"] {
        for option in [opt::INFO, opt::GO, opt::LIST_META_CONTEXT, opt::SET_META_CONTEXT] {
            let replies = raw.option(option, &go_data(name, &[])).await;
            assert_eq!(replies.len(), 1);
            assert_eq!(replies[0].0, rep::ERR_TLS_REQD);
            assert!(!String::from_utf8_lossy(&replies[0].1).contains(name));
        }
    }
    for option in [opt::LIST, opt::STRUCTURED_REPLY, 11, 12, 4711] {
        let replies = raw.option(option, &[]).await;
        assert_eq!(replies.len(), 1, "option {option}");
        assert_eq!(replies[0].0, rep::ERR_TLS_REQD, "option {option}");
    }
    let long = vec![0; 1 << 20];
    assert_eq!(raw.verdict(opt::GO, &long).await, rep::ERR_TLS_REQD);
    assert_eq!(raw.verdict(opt::STARTTLS, b"data").await, rep::ERR_INVALID);
    raw.send_option(opt::EXPORT_NAME, EXPORT.as_bytes()).await;
    assert!(raw.until_closed().await.is_empty());
    assert!(served.server.await.unwrap().is_clean());

    let served = serve_tls(directory.path(), false);
    let mut raw = Raw::greet(served.stream, 3).await;
    assert_eq!(raw.verdict(opt::ABORT, &[]).await, rep::ACK);

    let served = serve_tls(directory.path(), false);
    match enter(served.stream, None).await {
        Err(ClientError::Refused {
            kind: rep::ERR_TLS_REQD,
            ..
        }) => {}
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_server_without_tls_says_so_and_a_client_that_wants_it_goes_no_further() {
    let served = serve_device(&device());
    let mut raw = Raw::greet(served.stream, 3).await;
    assert_eq!(raw.verdict(opt::STARTTLS, &[]).await, rep::ERR_POLICY);
    assert_eq!(raw.verdict(opt::LIST, &[]).await, rep::ACK);

    let directory = directory();
    let served = serve_device(&device());
    match enter(served.stream, Some(client(directory.path()))).await {
        Err(ClientError::Refused {
            kind: rep::ERR_POLICY,
            ..
        }) => {}
        other => panic!("{other:?}"),
    }
    assert!(served.server.await.unwrap().is_clean());
}

#[tokio::test]
async fn bytes_behind_starttls_that_did_not_wait_end_the_connection() {
    let directory = directory();
    let served = serve_tls(directory.path(), false);
    let mut raw = Raw::greet(served.stream, 3).await;
    // Both options in one write, so that they arrive together.
    let mut both = ferry_nbd::proto::OptionHeader {
        option: opt::STARTTLS,
        length: 0,
    }
    .encode()
    .to_vec();
    both.extend_from_slice(
        &ferry_nbd::proto::OptionHeader {
            option: opt::LIST,
            length: 0,
        }
        .encode(),
    );
    raw.0.write_all(&both).await.unwrap();
    assert!(raw.until_closed().await.is_empty(), "not even an acknowledgement");
    assert!(served.server.await.unwrap().is_clean());
}

#[tokio::test]
async fn plain_text_after_the_agreement_to_tls_is_not_followed() {
    let directory = directory();
    let served = serve_tls(directory.path(), false);
    let mut raw = Raw::greet(served.stream, 3).await;
    assert_eq!(raw.verdict(opt::STARTTLS, &[]).await, rep::ACK);
    raw.send_option(opt::GO, &go_data(EXPORT, &[])).await;
    let rest = raw.until_closed().await;
    assert!(
        !rest
            .windows(EXPORT.len())
            .any(|window| window == EXPORT.as_bytes()),
        "{rest:?}"
    );
    assert!(served.server.await.unwrap().is_clean());
}

#[tokio::test]
async fn a_second_starttls_is_refused_and_the_session_goes_on() {
    // The client upgrades once; the second option is sent over the encrypted stream by hand.
    let directory = directory();
    let served = serve_tls(directory.path(), false);
    let mut raw = Raw::greet(served.stream, 3).await;
    assert_eq!(raw.verdict(opt::STARTTLS, &[]).await, rep::ACK);
    let mut roots = tokio_rustls::rustls::RootCertStore::empty();
    let pem = fs::read(directory.path().join("ca-cert.pem")).unwrap();
    let authority = <tokio_rustls::rustls::pki_types::CertificateDer<'_> as
        tokio_rustls::rustls::pki_types::pem::PemObject>::from_pem_slice(&pem)
    .unwrap();
    roots.add(authority).unwrap();
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let config = tokio_rustls::rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut stream = tokio_rustls::TlsConnector::from(Arc::new(config))
        .connect("localhost".try_into().unwrap(), raw.0)
        .await
        .unwrap();
    for (option, kind) in [
        (opt::STARTTLS, rep::ERR_INVALID),
        (opt::SET_META_CONTEXT, rep::ERR_INVALID),
        (opt::ABORT, rep::ACK),
    ] {
        let header = ferry_nbd::proto::OptionHeader { option, length: 0 };
        stream.write_all(&header.encode()).await.unwrap();
        let mut reply = [0; 20];
        stream.read_exact(&mut reply).await.unwrap();
        let reply = ferry_nbd::proto::OptionReplyHeader::decode(&reply).unwrap();
        assert_eq!((reply.option, reply.kind), (option, kind));
        let mut message = vec![0; reply.length as usize];
        stream.read_exact(&mut message).await.unwrap();
    }
    assert!(served.server.await.unwrap().is_clean());
}

#[tokio::test]
async fn only_clients_of_the_authority_get_in_where_they_are_verified() {
    let directory = directory();
    let without = tempfile::tempdir().unwrap();
    fs::copy(
        directory.path().join("ca-cert.pem"),
        without.path().join("ca-cert.pem"),
    )
    .unwrap();
    let foreign = tempfile::tempdir().unwrap();
    fs::copy(
        directory.path().join("ca-cert.pem"),
        foreign.path().join("ca-cert.pem"),
    )
    .unwrap();
    write_identity(
        foreign.path(),
        "client",
        &Authority::new("another").client("a client"),
    );
    for (credentials, verify, allowed) in [
        (without.path(), false, true),
        (foreign.path(), false, true),
        (directory.path(), true, true),
        (without.path(), true, false),
        (foreign.path(), true, false),
    ] {
        let device = device();
        let exports = one_export(&device);
        let served = serve(exports.clone(), config(directory.path(), verify));
        let entered = enter(served.stream, Some(client(credentials))).await;
        assert_eq!(entered.is_ok(), allowed, "{entered:?}");
        drop(entered);
        assert!(served.server.await.unwrap().is_clean());
        assert_eq!(exports.opened(), u64::from(allowed));
    }
}

#[tokio::test]
async fn a_revoked_client_does_not_get_in() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::new("the authority");
    authority.write(directory.path());
    write_identity(directory.path(), "server", &authority.server("localhost"));
    let (good, revoked) = (authority.client("good"), authority.client("revoked"));
    authority.write_revocations(directory.path(), &[&revoked]);
    for (identity, allowed) in [(&good, true), (&revoked, false)] {
        let credentials = tempfile::tempdir().unwrap();
        authority.write(credentials.path());
        write_identity(credentials.path(), "client", identity);
        let served = serve_tls(directory.path(), true);
        let entered = enter(served.stream, Some(client(credentials.path()))).await;
        assert_eq!(entered.is_ok(), allowed, "{entered:?}");
    }
}

#[tokio::test]
async fn a_client_believes_only_the_named_server_of_its_authority() {
    let directory = directory();
    let other = tempfile::tempdir().unwrap();
    Authority::new("another").write(other.path());
    for tls in [
        TlsClient::from_directory(other.path(), "localhost").unwrap(),
        TlsClient::from_directory(directory.path(), "example.org").unwrap(),
        TlsClient::from_directory(directory.path(), "192.0.2.1").unwrap(),
    ] {
        let served = serve_tls(directory.path(), false);
        let refused = enter(served.stream, Some(tls)).await.unwrap_err();
        assert!(matches!(refused, ClientError::Tls(_)), "{refused}");
        assert!(served.server.await.unwrap().is_clean());
    }
}

#[tokio::test]
async fn a_client_that_stalls_in_the_upgrade_is_sent_away() {
    let directory = directory();
    let served = serve(one_export(&device()), config(directory.path(), false));
    let mut raw = Raw::greet(served.stream, 3).await;
    assert_eq!(raw.verdict(opt::STARTTLS, &[]).await, rep::ACK);
    // The start of a handshake record, whose rest never comes.
    raw.0.write_all(&[22, 3, 1, 1, 0, 1]).await.unwrap();
    // From here on the time that nobody needs is skipped.
    tokio::time::pause();
    raw.until_closed().await;
    assert!(served.server.await.unwrap().is_clean());
}

#[test]
fn what_is_wrong_with_a_directory_names_the_file() {
    let check = |change: &dyn Fn(&Path), verify: bool, file: &str, word: &str| {
        let directory = directory();
        change(directory.path());
        let error = TlsServer::from_directory(directory.path(), verify)
            .unwrap_err()
            .to_string();
        assert!(error.contains(file) && error.contains(word), "{error}");
    };
    let remove = |file: &'static str| move |path: &Path| fs::remove_file(path.join(file)).unwrap();
    let write =
        |file: &'static str, text: &'static str| move |path: &Path| fs::write(path.join(file), text).unwrap();
    check(&remove("server-cert.pem"), false, "server-cert.pem", "can't read");
    check(&remove("server-key.pem"), false, "server-key.pem", "can't read");
    check(&remove("ca-cert.pem"), true, "ca-cert.pem", "can't read");
    check(&write("server-cert.pem", ""), false, "server-cert.pem", "PEM");
    check(&write("server-key.pem", "no key"), false, "server-key.pem", "PEM");
    check(&write("ca-cert.pem", "garbage"), true, "ca-cert.pem", "PEM");
    check(&write("ca-crl.pem", "garbage"), true, "ca-crl.pem", "PEM");
    check(
        &|path| {
            let other = Authority::new("x").server("localhost");
            fs::write(path.join("server-key.pem"), other.key.serialize_pem()).unwrap();
        },
        false,
        "server-key.pem",
        "made for",
    );
    check(
        &|path| fs::write(path.join("server-cert.pem"), vec![b'x'; (1 << 20) + 1]).unwrap(),
        false,
        "server-cert.pem",
        "1 MiB",
    );

    let directory = directory();
    fs::remove_file(directory.path().join("ca-cert.pem")).unwrap();
    TlsServer::from_directory(directory.path(), false).expect("without verification, no authority is needed");
    let error = TlsClient::from_directory(directory.path(), "localhost").unwrap_err();
    assert!(error.to_string().contains("ca-cert.pem"), "{error}");
}

#[test]
fn half_a_pair_and_an_impossible_server_name_are_refused() {
    let directory = directory();
    assert!(matches!(
        TlsClient::from_directory(directory.path(), "no name"),
        Err(TlsError::ServerName { .. })
    ));
    fs::remove_file(directory.path().join("client-key.pem")).unwrap();
    let error = TlsClient::from_directory(directory.path(), "localhost").unwrap_err();
    assert!(error.to_string().contains("client-key.pem"), "{error}");
    fs::copy(
        directory.path().join("server-key.pem"),
        directory.path().join("client-key.pem"),
    )
    .unwrap();
    fs::remove_file(directory.path().join("client-cert.pem")).unwrap();
    let error = TlsClient::from_directory(directory.path(), "localhost").unwrap_err();
    assert!(error.to_string().contains("client-cert.pem"), "{error}");
}
