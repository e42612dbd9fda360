//! Many hostile clients of one server, and a good one beside them that keeps writing and reading back.
//!
//! `FERRY_HOSTILE_SESSIONS` (2000) is how many random sessions there are, `FERRY_HOSTILE_PER_SECOND` how many of them begin
//! in a second at most (without it, as many as can), `FERRY_HALF_OPEN` (10000) how many connections
//! that never finish their handshake. A failing session prints its seed; `FERRY_SEED` plays from there. How fast the
//! good client is beside them is printed, not judged: that is for a machine that has nothing else to do.

#![allow(clippy::unwrap_used)] // A test fails by panicking.

mod common;

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use common::random::{SIZE, random_session};
use common::{EXPORT, connect, one_export};
use ferry_nbd::client::{Client, ClientConfig, Negotiation};
use ferry_nbd::testing::{MemoryDevice, MemoryExports};
use ferry_nbd::{
    BlockDevice, DeviceError, Extent, Listener, ServeSummary, Server, ServerConfig, ServerError,
    ShutdownTrigger, shutdown_channel,
};
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::task::JoinHandle;

/// No session comes near it: the limit turns a hang into a failure.
const PATIENCE: Duration = Duration::from_secs(60);
/// Hostile sessions at a time.
const AT_A_TIME: u64 = 4;
/// Where no hostile request goes: the good client's own part of the device. A session changes one byte of a request now and then; no
/// number that it is made of comes near this one by one byte.
const OWN_OFFSET: u64 = 0x0a_5500;
const _: () = assert!(OWN_OFFSET > 2 * SIZE as u64);
const OWN_BYTES: usize = 16 << 10;

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().unwrap())
}

struct Running {
    socket: PathBuf,
    exports: Arc<MemoryExports>,
    trigger: ShutdownTrigger,
    server: JoinHandle<Result<ServeSummary, ServerError>>,
    _directory: tempfile::TempDir,
}

impl Running {
    async fn start(config: ServerConfig) -> Self {
        let device = Arc::new(MemoryDevice::new(OWN_OFFSET as usize + OWN_BYTES));
        Self::with_exports(one_export(&device), config).await
    }

    async fn with_exports(exports: Arc<MemoryExports>, config: ServerConfig) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("nbd.sock");
        let listener = Listener::unix(&socket).await.unwrap();
        let (trigger, shutdown) = shutdown_channel();
        let server = tokio::spawn(Server::run(vec![listener], exports.clone(), config, shutdown));
        Self {
            socket,
            exports,
            trigger,
            server,
            _directory: directory,
        }
    }

    async fn client(&self) -> Client {
        let config = ClientConfig::default();
        let negotiation = Negotiation::connect_unix(&self.socket, config).await.unwrap();
        negotiation.go(EXPORT).await.unwrap()
    }

    async fn stop(self) -> ServeSummary {
        self.trigger.shut_down();
        let summary = self.server.await.unwrap().unwrap();
        // One device, which the good client has open all the time.
        assert_eq!(self.exports.closed(), 1);
        summary
    }
}

/// A client that writes and reads back without end, in a task.
struct Good {
    rounds: Arc<AtomicU64>,
    enough: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Good {
    fn start(client: Client) -> Self {
        let rounds = Arc::new(AtomicU64::new(0));
        let enough = Arc::new(AtomicBool::new(false));
        let (done, stop) = (Arc::clone(&rounds), Arc::clone(&enough));
        let task = tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                let round = done.fetch_add(1, Ordering::Relaxed);
                let data: Vec<u8> = round.to_le_bytes().repeat(OWN_BYTES / 8);
                client
                    .write(OWN_OFFSET, data.clone().into(), false)
                    .await
                    .unwrap();
                let found = client.read(OWN_OFFSET, OWN_BYTES as u32).await.unwrap();
                let differs = (0..OWN_BYTES).find(|at| found[*at] != data[*at]);
                assert_eq!(
                    differs, None,
                    "the first byte that is not its own, in round {round}"
                );
            }
            client.disconnect().await.unwrap();
        });
        Self { rounds, enough, task }
    }

    /// Rounds per second while something lasts.
    async fn rate_during<T>(&self, something: impl Future<Output = T>) -> (f64, T) {
        let (began, before) = (Instant::now(), self.rounds.load(Ordering::Relaxed));
        let done = something.await;
        let rounds = self.rounds.load(Ordering::Relaxed) - before;
        (rounds as f64 / began.elapsed().as_secs_f64(), done)
    }

    async fn stop(self) {
        self.enough.store(true, Ordering::Relaxed);
        self.task.await.unwrap();
    }
}

fn report(what: &str, alone: f64, beside: f64) {
    println!(
        "{what}; good client alone={alone:.0}/s beside={beside:.0}/s share={:.2}",
        beside / alone
    );
}

/// Sends a random session, takes whatever comes, and leaves.
fn session(socket: &Path, seed: u64) {
    session_within(socket, seed, PATIENCE);
}

fn session_within(socket: &Path, seed: u64, patience: Duration) {
    let bytes = random_session(&mut StdRng::seed_from_u64(seed));
    let mut stream = StdUnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(patience)).unwrap();
    let mut sender = stream.try_clone().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            // The server may have closed.
            let _ = sender.write_all(&bytes);
            let _ = sender.shutdown(Shutdown::Write);
        });
        let mut sink = [0; 16 << 10];
        loop {
            match stream.read(&mut sink) {
                Ok(1..) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    panic!("a session hangs: FERRY_SEED={seed}")
                }
                // A reset is a way to close as well.
                Ok(0) | Err(_) => return,
            }
        }
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_good_client_never_notices_random_hostile_sessions() {
    let sessions = number("FERRY_HOSTILE_SESSIONS", 2000);
    let first = number("FERRY_SEED", ferry_reference::drawn());
    println!("FERRY_SEED={first}");
    let running = Running::start(ServerConfig::default()).await;
    let good = Good::start(running.client().await);
    let (alone, ()) = good
        .rate_during(tokio::time::sleep(Duration::from_millis(500)))
        .await;
    let mut peer = Peer::start(&running.socket, "sessions", sessions, first);
    let (beside, ended) = good
        .rate_during(async {
            tokio::task::spawn_blocking(move || peer.0.wait().unwrap())
                .await
                .unwrap()
        })
        .await;
    assert!(ended.success(), "the hostile peer: {ended}");
    report(&format!("hostile sessions={sessions} failures=0"), alone, beside);
    good.stop().await;
    let summary = running.stop().await;
    assert!(summary.is_clean(), "{summary:?}");
    assert_eq!(summary.connections_refused, 0);
    assert_eq!(summary.connections_served, sessions + 1);
}

/// What a half-open connection has said: nothing, a part of the flags, of an option's header, of its data.
fn half_a_handshake(number: u64) -> Vec<u8> {
    let mut bytes = vec![0, 0, 0, 3];
    bytes.extend(b"IHAVEOPT\0\0\0\x07\0\0\0\x10\0\0\0\x04di");
    bytes.truncate((number % 7) as usize * 4);
    bytes
}

/// Another process, for one process may not have as many files open: this test binary once more, as [`peer`].
struct Peer(Child);

impl Peer {
    fn start(socket: &Path, task: &str, count: u64, seed: u64) -> Self {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "peer", "--nocapture"])
            .env("FERRY_PEER_SOCKET", socket)
            .env("FERRY_PEER_TASK", task)
            .env("FERRY_PEER_COUNT", count.to_string())
            .env("FERRY_SEED", seed.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Self(child)
    }

    /// Waits until it has all its connections.
    fn wait(&mut self) {
        let output = BufReader::new(self.0.stdout.take().unwrap());
        let ready = output
            .lines()
            .map_while(Result::ok)
            .any(|line| line.ends_with("all open"));
        assert!(ready, "the peer has ended");
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[test]
#[ignore = "run by the other tests, in a process of its own"]
fn peer() {
    let Some(socket) = std::env::var_os("FERRY_PEER_SOCKET") else {
        return;
    };
    let socket = Path::new(&socket);
    let count = number("FERRY_PEER_COUNT", 0);
    match std::env::var("FERRY_PEER_TASK").unwrap().as_str() {
        "half-open" => hold_half_open(socket, count),
        "flood" => flood(socket, count),
        "sessions" => run_sessions(socket, count, number("FERRY_SEED", 0)),
        other => panic!("{other}"),
    }
}

fn hold_half_open(socket: &Path, count: u64) {
    let held: Vec<StdUnixStream> = (0..count)
        .map(|number| {
            let mut stream = StdUnixStream::connect(socket).unwrap();
            // One that is refused is closed at once.
            let _ = stream.write_all(&half_a_handshake(number));
            stream
        })
        .collect();
    println!("all open");
    // Until the test lets go.
    let _ = std::io::stdin().read(&mut [0]);
    drop(held);
}

/// Opens one after the other and holds the last `count`, until the test lets go.
fn flood(socket: &Path, count: u64) {
    static ENOUGH: AtomicBool = AtomicBool::new(false);
    std::thread::spawn(|| {
        let _ = std::io::stdin().read(&mut [0]);
        ENOUGH.store(true, Ordering::Relaxed);
    });
    let mut held = VecDeque::new();
    for number in 0.. {
        if ENOUGH.load(Ordering::Relaxed) {
            return;
        }
        let mut stream = StdUnixStream::connect(socket).unwrap();
        let _ = stream.write_all(&half_a_handshake(number));
        held.push_back(stream);
        if held.len() as u64 > count {
            held.pop_front();
        }
        if number == count {
            println!("all open");
        }
    }
}

fn run_sessions(socket: &Path, count: u64, first: u64) {
    let (began, per_second) = (Instant::now(), number("FERRY_HOSTILE_PER_SECOND", 0));
    let next = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..AT_A_TIME {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        return;
                    }
                    if let Some(due) = (number * 1_000_000).checked_div(per_second) {
                        let due = began + Duration::from_micros(due);
                        std::thread::sleep(due.saturating_duration_since(Instant::now()));
                    }
                    session(socket, first.wrapping_add(number));
                }
            });
        }
    });
}

/// Opens them all and keeps them open while the good client works.
async fn beside_half_open(config: ServerConfig, connections: u64) -> ServeSummary {
    let running = Running::start(config).await;
    let good = Good::start(running.client().await);
    let (alone, ()) = good
        .rate_during(tokio::time::sleep(Duration::from_millis(300)))
        .await;
    let mut peer = Peer::start(&running.socket, "half-open", connections, 0);
    let (during, peer) = good
        .rate_during(async {
            tokio::task::spawn_blocking(move || {
                peer.wait();
                peer
            })
            .await
            .unwrap()
        })
        .await;
    let (beside, ()) = good
        .rate_during(tokio::time::sleep(Duration::from_millis(300)))
        .await;
    report(
        &format!("half-open connections={connections}, while they come"),
        alone,
        during,
    );
    report(
        &format!("half-open connections={connections}, while they stay"),
        alone,
        beside,
    );
    drop(peer);
    good.stop().await;
    running.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_good_client_goes_on_while_ten_thousand_half_open_connections_are_held() {
    let most = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    // The test's own files, and the server's.
    let connections = number("FERRY_HALF_OPEN", 10_000).min(most.unwrap_or(u64::MAX).saturating_sub(100));
    let config = ServerConfig {
        max_connections: connections as usize + 10,
        // Longer than the test: all of them are there at once.
        handshake_timeout: Duration::from_secs(600),
        ..ServerConfig::default()
    };
    let summary = beside_half_open(config, connections).await;
    assert!(summary.is_clean(), "{summary:?}");
    assert_eq!(summary.connections_refused, 0, "{summary:?}");
    assert_eq!(summary.connections_served, connections + 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_good_client_goes_on_while_a_flood_drives_itself_out_of_the_usual_bound() {
    let connections = number("FERRY_HALF_OPEN", 10_000);
    let config = ServerConfig {
        // Longer than the test: none leaves by itself.
        handshake_timeout: Duration::from_secs(600),
        ..ServerConfig::default()
    };
    let bound = config.max_connections as u64;
    let summary = beside_half_open(config, connections).await;
    assert!(summary.is_clean(), "{summary:?}");
    assert_eq!(summary.connections_served, connections + 1);
    assert_eq!(summary.connections_refused, 0);
    assert_eq!(summary.connections_put_out, connections + 1 - bound);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_comes_during_a_flood_is_let_in() {
    let config = ServerConfig {
        handshake_timeout: Duration::from_secs(600),
        ..ServerConfig::default()
    };
    let running = Running::start(config).await;
    // The device stays open.
    let first = running.client().await;
    let mut peer = Peer::start(&running.socket, "flood", 1000, 0);
    let mut peer = tokio::task::spawn_blocking(move || {
        peer.wait();
        peer
    })
    .await
    .unwrap();
    for round in 0..50u8 {
        // Waits while the queue of the socket is full, as most clients do; the runtime's own way of connecting would not.
        let socket = running.socket.clone();
        let stream = tokio::task::spawn_blocking(move || StdUnixStream::connect(socket).unwrap());
        let stream = stream.await.unwrap();
        stream.set_nonblocking(true).unwrap();
        let stream = tokio::net::UnixStream::from_std(stream).unwrap();
        let client = tokio::time::timeout(PATIENCE, connect(stream, ClientConfig::default()))
            .await
            .expect("a client was kept out");
        client
            .write(OWN_OFFSET, vec![round; 512].into(), false)
            .await
            .unwrap();
        assert_eq!(first.read(OWN_OFFSET, 512).await.unwrap(), vec![round; 512]);
        client.disconnect().await.unwrap();
    }
    drop(peer.0.stdin.take());
    drop(peer);
    first.disconnect().await.unwrap();
    let summary = running.stop().await;
    assert!(summary.is_clean(), "{summary:?}");
    assert!(summary.connections_put_out > 0, "{summary:?}");
}

/// A device on which others' writes spoil those of the good client from then on.
struct Mixing {
    inner: MemoryDevice,
    spoils: AtomicBool,
}

#[async_trait]
impl BlockDevice for Mixing {
    fn size_bytes(&self) -> u64 {
        self.inner.size_bytes()
    }

    fn read_only(&self) -> bool {
        false
    }

    fn can_multi_conn(&self) -> bool {
        self.inner.can_multi_conn()
    }

    async fn read(&self, offset: u64, length: u32) -> Result<Bytes, DeviceError> {
        self.inner.read(offset, length).await
    }

    async fn write(&self, offset: u64, data: Bytes, fua: bool) -> Result<(), DeviceError> {
        let mut data = data.to_vec();
        match (offset == OWN_OFFSET, data.first_mut()) {
            (true, Some(first)) if self.spoils.load(Ordering::SeqCst) => *first ^= 1,
            (false, Some(_)) => self.spoils.store(true, Ordering::SeqCst),
            _ => {}
        }
        self.inner.write(offset, data.into(), fua).await
    }

    async fn trim(&self, offset: u64, length_bytes: u64, fua: bool) -> Result<(), DeviceError> {
        self.inner.trim(offset, length_bytes, fua).await
    }

    async fn write_zeroes(
        &self,
        offset: u64,
        length_bytes: u64,
        no_hole: bool,
        fua: bool,
    ) -> Result<(), DeviceError> {
        self.inner.write_zeroes(offset, length_bytes, no_hole, fua).await
    }

    async fn flush(&self) -> Result<(), DeviceError> {
        self.inner.flush().await
    }

    async fn block_status(
        &self,
        offset: u64,
        length_bytes: u64,
        max_extents: usize,
    ) -> Result<Vec<Extent>, DeviceError> {
        self.inner.block_status(offset, length_bytes, max_extents).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn canary_a_device_that_mixes_clients_up_is_noticed() {
    let device = Arc::new(Mixing {
        inner: MemoryDevice::new(OWN_OFFSET as usize + OWN_BYTES),
        spoils: AtomicBool::new(false),
    });
    let exports = Arc::new(MemoryExports::new().with(EXPORT, "", device.clone()));
    let running = Running::with_exports(exports, ServerConfig::default()).await;
    let good = Good::start(running.client().await);
    let socket = running.socket.clone();
    let sessions = tokio::task::spawn_blocking(move || (0..300).for_each(|seed| session(&socket, seed)));
    sessions.await.unwrap();
    assert!(
        device.spoils.load(Ordering::SeqCst),
        "none of the sessions has written anything"
    );
    let ended = tokio::time::timeout(PATIENCE, good.task).await;
    let noticed = ended.expect("the good client goes on as if nothing had happened");
    assert!(noticed.is_err_and(|error| error.is_panic()));
    running.trigger.shut_down();
}

#[test]
fn canary_a_server_that_never_answers_is_noticed() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("silent.sock");
    let _silent = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    // One that the socket holds, or its sender would wait too.
    let fits = |seed: &u64| random_session(&mut StdRng::seed_from_u64(*seed)).len() < 4096;
    let seed = (0..).find(fits).unwrap();
    let session = std::thread::spawn(move || session_within(&socket, seed, Duration::from_millis(100)));
    assert!(session.join().is_err());
}
