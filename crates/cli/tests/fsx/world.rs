//! A store, its server, the images, and what is known of them.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ferry_cls::rbd::feature;
use ferry_image::admin::create::{self, CreateOptions};
use ferry_image::object_map::rebuild;
use ferry_image::{ErrorKind, Image, ImageError, ImageKey, OpenOptions, Progress, SnapKey};
use ferry_nbd::client::{Client, ClientConfig, Negotiation};
use ferry_nbd::{
    Listener, ServeSummary, Server, ServerConfig, ServerError, ShutdownTrigger, shutdown_channel,
};
use ferry_reference::{Clock, History};
use ferry_store::memory::{MemoryCluster, MemoryStore};
use ferry_store::{IoCtx, PoolOptions, Scope, Store};
use ferry_store_local::{LocalOptions, LocalStore};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::task::JoinHandle;

use super::liar::{Lie, Lying};

pub const MAX_SIZE: u64 = 768 << 10;
const POOLS: [&str; 2] = ["rbd", "p2"];
/// A server that has not ended by then, or an image that is not closed, hangs.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Order, stripe unit and stripe count.
pub const LAYOUTS: [(u8, u64, u64); 7] = [
    (12, 0, 0),
    (14, 0, 0),
    (16, 0, 0),
    (18, 0, 0),
    (14, 4096, 3),
    (16, 8192, 2),
    (15, 512, 5),
];

/// What a history is made of.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// On the local engine, where no power is lost.
    pub local: bool,
    /// One request at a time.
    pub one_at_a_time: bool,
    pub phases: u64,
    pub lie: Lie,
}

/// What was done.
#[derive(Debug, Default)]
pub struct Stats {
    pub requests: AtomicU64,
    pub migrations: u64,
    pub prepared: u64,
    pub aborts: u64,
    pub snaps: u64,
    pub clones: u64,
    pub kills: u64,
    pub power_losses: u64,
    pub resizes: u64,
}

impl Stats {
    pub fn add(&mut self, other: &Self) {
        *self.requests.get_mut() += other.requests.load(Ordering::Relaxed);
        self.migrations += other.migrations;
        self.prepared += other.prepared;
        self.aborts += other.aborts;
        self.snaps += other.snaps;
        self.clones += other.clones;
        self.kills += other.kills;
        self.power_losses += other.power_losses;
        self.resizes += other.resizes;
    }
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "executions={} migrations={} prepared={} aborts={} snapshots={} clones={} resizes={} killed={} power={}",
            self.requests.load(Ordering::Relaxed),
            self.migrations,
            self.prepared,
            self.aborts,
            self.snaps,
            self.clones,
            self.resizes,
            self.kills,
            self.power_losses
        )
    }
}

/// Where a migration stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Plain,
    Prepared,
    Executed,
}

/// An image, and what it must show.
pub struct Shown {
    /// What does not change when it moves.
    pub number: u32,
    pub place: usize,
    pub name: String,
    pub state: State,
    /// Where it was when the migration was prepared, and whether it was flattened.
    pub source: Option<(usize, String, bool)>,
    /// Number of the image and name of the snapshot that it is a clone of.
    pub parent: Option<(u32, String)>,
    /// What was cut loose from its parent, or is being.
    pub flattened: bool,
    pub history: Arc<Mutex<History>>,
    pub clients: Vec<Arc<Client>>,
}

impl Shown {
    pub fn export(&self) -> String {
        format!("{}/{}", POOLS[self.place], self.name)
    }
}

pub enum Engine {
    Memory(MemoryCluster),
    Local(tempfile::TempDir),
}

/// A server in this process, with a store of its own.
pub struct Running {
    trigger: ShutdownTrigger,
    task: JoinHandle<Result<ServeSummary, ServerError>>,
    store: Arc<dyn Store>,
    /// The same store, if it can be killed.
    pub mortal: Option<Arc<MemoryStore>>,
}

pub struct World {
    pub plan: Plan,
    pub rng: StdRng,
    pub engine: Engine,
    pub scopes: [Scope; 2],
    directory: tempfile::TempDir,
    pub server: Option<Running>,
    pub images: Vec<Shown>,
    pub names_used: u32,
    pub stats: Stats,
    pub trace: bool,
}

pub type Outcome<T = ()> = Result<T, String>;

/// Runs a step that needs an image to be closed; the server closes it a little after its last client has left.
pub async fn once_closed<T, F: Future<Output = ferry_image::Result<T>>>(
    mut step: impl FnMut() -> F,
) -> ferry_image::Result<T> {
    let begun = Instant::now();
    loop {
        match step().await {
            Err(error) if error.kind == ErrorKind::HasWatchers && begun.elapsed() < PATIENCE => {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            other => return other,
        }
    }
}

pub fn failed(what: &str, error: &ImageError) -> String {
    format!("{what}: {error}")
}

impl World {
    /// Plays one history.
    pub async fn run(plan: Plan, seed: u64) -> (Stats, Outcome) {
        let mut world = Self::new(plan, seed).await;
        let result = world.play().await;
        let stopped = match &result {
            Ok(()) => world.stop().await,
            Err(_) => {
                world.abandon().await;
                Ok(())
            }
        };
        (world.stats, result.and(stopped))
    }

    async fn new(plan: Plan, seed: u64) -> Self {
        let engine = match plan.local {
            true => Engine::Local(tempfile::tempdir().unwrap()),
            false => Engine::Memory(MemoryCluster::new(ferry_cls::registry())),
        };
        let mut rng = StdRng::seed_from_u64(seed);
        let clock = Clock::default();
        let store = connect(&engine);
        let mut scopes = Vec::new();
        for name in POOLS {
            let pools = store.pool_list().await.unwrap();
            let id = match pools.iter().find(|pool| pool.name == name) {
                Some(pool) => pool.id,
                None => store.pool_create(name, PoolOptions::default()).await.unwrap(),
            };
            scopes.push(Scope::new(id));
        }
        let size = size(&mut rng);
        let (order, stripe_unit_bytes, stripe_count) = LAYOUTS[rng.random_range(0..LAYOUTS.len())];
        let options = CreateOptions {
            size_bytes: size,
            order: Some(order),
            stripe_unit_bytes,
            stripe_count,
            features: rng.random_bool(0.15).then_some(feature::LAYERING),
            data_pool: rng.random_bool(0.15).then(|| POOLS[1].to_owned()),
            ..CreateOptions::default()
        };
        let io = IoCtx::new(store, scopes[0].clone());
        create::create(&io, "image", &options).await.unwrap();
        let image = Shown {
            number: 0,
            place: 0,
            name: "image".to_owned(),
            state: State::Plain,
            source: None,
            parent: None,
            flattened: false,
            history: Arc::new(Mutex::new(History::new(&clock, size))),
            clients: Vec::new(),
        };
        Self {
            plan,
            rng,
            engine,
            scopes: scopes.try_into().unwrap(),
            directory: tempfile::tempdir().unwrap(),
            server: None,
            images: vec![image],
            names_used: 0,
            stats: Stats::default(),
            trace: std::env::var_os("FERRY_TRACE").is_some(),
        }
    }

    async fn play(&mut self) -> Outcome {
        for turn in 0..self.plan.phases {
            self.trace(|| format!("phase {turn}"));
            self.turn().await.map_err(|problem| {
                let images: Vec<String> = self
                    .images
                    .iter()
                    .map(|image| format!("{} {:?}", image.export(), image.state))
                    .collect();
                format!("in phase {turn} ({}): {problem}", images.join(", "))
            })?;
        }
        for index in 0..self.images.len() {
            self.check(index, "at the end").await?;
        }
        Ok(())
    }

    async fn turn(&mut self) -> Outcome {
        let index = self.rng.random_range(0..self.images.len());
        match self.rng.random_range(0..100u32) {
            0..=63 => self.phase(index).await,
            64..=67 => self.disconnect(index).await,
            68..=72 => self.check(index, "now and then").await,
            73..=77 => self.kill(index).await,
            78..=80 => self.roll_back(index).await,
            81..=83 => self.clone_snap(index).await,
            84 => self.remove(index).await,
            _ => self.next_of_migration(index).await,
        }
    }

    pub fn trace(&self, text: impl FnOnce() -> String) {
        if self.trace {
            println!("  {}", text());
        }
    }

    /// One more client of the store, as another process.
    pub fn connect(&self) -> Arc<dyn Store> {
        connect(&self.engine)
    }

    pub fn io(&self, place: usize) -> IoCtx {
        IoCtx::new(self.connect(), self.scopes[place].clone())
    }

    /// Clients of an image, as many as asked for.
    pub async fn clients(&mut self, index: usize, count: usize) -> Outcome {
        self.serve().await?;
        let socket = self.socket();
        let export = self.images[index].export();
        while self.images[index].clients.len() < count {
            let config = ClientConfig {
                structured_replies: self.rng.random_bool(0.8),
                ..ClientConfig::default()
            };
            let config = match config.structured_replies {
                true => ClientConfig {
                    extended_headers: self.rng.random_bool(0.6),
                    ..config
                },
                false => ClientConfig {
                    extended_headers: false,
                    ..config
                },
            };
            let negotiation = Negotiation::connect_unix(&socket, config).await;
            let client = match negotiation {
                Ok(negotiation) => negotiation.go(&export).await,
                Err(error) => Err(error),
            };
            let client = client.map_err(|error| format!("connecting to {export}: {error}"))?;
            self.images[index].clients.push(Arc::new(client));
        }
        Ok(())
    }

    fn socket(&self) -> std::path::PathBuf {
        self.directory.path().join("nbd.sock")
    }

    async fn serve(&mut self) -> Outcome {
        if self.server.is_some() {
            return Ok(());
        }
        let (store, mortal): (Arc<dyn Store>, _) = match &self.engine {
            Engine::Memory(cluster) => {
                let store = cluster.connect();
                (store.clone(), Some(store))
            }
            Engine::Local(_) => (self.connect(), None),
        };
        let listener = Listener::unix(&self.socket())
            .await
            .map_err(|error| error.to_string())?;
        let exports = Lying::over(ferry_cli::commands::exports_of(store.clone()), self.plan.lie);
        let (trigger, shutdown) = shutdown_channel();
        let config = ServerConfig {
            shutdown_grace: Duration::from_secs(5),
            close_timeout: Duration::from_secs(5),
            ..ServerConfig::default()
        };
        let task = tokio::spawn(Server::run(vec![listener], exports, config, shutdown));
        self.server = Some(Running {
            trigger,
            task,
            store,
            mortal,
        });
        Ok(())
    }

    /// Lets all clients of an image go.
    pub async fn disconnect(&mut self, index: usize) -> Outcome {
        for client in std::mem::take(&mut self.images[index].clients) {
            let client = Arc::into_inner(client).ok_or("a client is still used")?;
            client.disconnect().await.map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    /// Ends the server in good order.
    pub async fn stop(&mut self) -> Outcome {
        for index in 0..self.images.len() {
            self.disconnect(index).await?;
        }
        let Some(server) = self.server.take() else {
            return Ok(());
        };
        server.trigger.shut_down();
        let ended = tokio::time::timeout(PATIENCE, server.task)
            .await
            .map_err(|_| "the server does not end")?;
        let summary = ended
            .map_err(|error| error.to_string())?
            .map_err(|error| error.to_string())?;
        let _ = server.store.shutdown().await;
        match summary.is_clean() {
            true => Ok(()),
            false => Err(format!("the server has not ended cleanly: {summary:?}")),
        }
    }

    /// Drops a server whose store is dead, with all its clients.
    pub async fn abandon(&mut self) {
        for image in &mut self.images {
            image.clients.clear();
        }
        let Some(server) = self.server.take() else { return };
        server.trigger.shut_down();
        let _ = tokio::time::timeout(PATIENCE, server.task).await;
    }

    /// Reads everything that the image shows, through a client and beside it, and judges it.
    pub async fn check(&mut self, index: usize, when: &str) -> Outcome {
        self.clients(index, 1).await?;
        let image = &self.images[index];
        let when = format!("{} ({:?}) {when}", image.export(), image.state);
        let client = Arc::clone(&image.clients[0]);
        let history = Arc::clone(&image.history);
        let size = history.lock().size_bytes();
        let mut offset = 0;
        while offset < size {
            let length = (size - offset).min(256 << 10);
            let reading = history.lock().begin_read(offset, length);
            let bytes = client.read(offset, length as u32).await;
            let bytes = bytes.map_err(|error| format!("{when}: reading at {offset}: {error}"))?;
            self.stats.requests.fetch_add(1, Ordering::Relaxed);
            let judged = history.lock().end_read(reading, &bytes);
            judged.map_err(|violation| format!("{when}: {violation}"))?;
            offset += length;
        }
        drop(client);
        let io = self.io(image.place);
        let name = image.name.clone();
        check_beside(&io, &name, &history, &when).await
    }
}

/// What another process sees: the size, all snapshots, and object maps that are right.
async fn check_beside(io: &IoCtx, name: &str, history: &Mutex<History>, when: &str) -> Outcome {
    let wrong = |error: ImageError| failed(when, &error);
    let image = Image::open(io, ImageKey::Name(name), OpenOptions::read_write())
        .await
        .map_err(wrong)?;
    image.refresh().await.map_err(wrong)?;
    let header = image.header();
    let mut names: Vec<String> = header.user_snaps().map(|snap| snap.name.clone()).collect();
    names.sort();
    let (size, expected) = {
        let history = history.lock();
        (history.size_bytes(), history.snap_names())
    };
    if (header.size_bytes, &names) != (size, &expected) {
        return Err(format!(
            "{when}: {} bytes with snapshots {names:?}, not {size} with {expected:?}",
            header.size_bytes
        ));
    }
    if header.has(feature::OBJECT_MAP) {
        let mismatches = rebuild::verify(&image, &Progress::silent())
            .await
            .map_err(wrong)?;
        if !mismatches.is_empty() {
            return Err(format!("{when}: object map {mismatches:?}"));
        }
    }
    image.close().await.map_err(wrong)?;
    for snap in expected {
        check_snap(io, name, &snap, history, when).await?;
    }
    Ok(())
}

/// Judges what a snapshot shows.
pub async fn check_snap(io: &IoCtx, name: &str, snap: &str, history: &Mutex<History>, when: &str) -> Outcome {
    let wrong = |error: ImageError| failed(&format!("snapshot '{snap}', {when}"), &error);
    let options = OpenOptions::read_only().at(SnapKey::Name(snap.to_owned()));
    let image = Image::open(io, ImageKey::Name(name), options)
        .await
        .map_err(wrong)?;
    let size = image.size_bytes();
    let expected = history.lock().snap_size_bytes(snap);
    if size != expected {
        return Err(format!("snapshot '{snap}', {when}: {size} bytes, not {expected}"));
    }
    let bytes = image.read(0, size).await.map_err(wrong)?;
    image.close().await.map_err(wrong)?;
    let judged = history.lock().check_snap(snap, 0, &bytes);
    judged.map_err(|violation| format!("snapshot '{snap}', {when}: {violation}"))
}

fn connect(engine: &Engine) -> Arc<dyn Store> {
    match engine {
        Engine::Memory(cluster) => cluster.connect(),
        Engine::Local(directory) => {
            let options = LocalOptions {
                registry: ferry_cls::registry(),
                disk: None,
            };
            LocalStore::open(directory.path(), options).unwrap()
        }
    }
}

/// A size: of whole sectors mostly, odd now and then.
pub fn size(rng: &mut StdRng) -> u64 {
    let size = rng.random_range(4096..MAX_SIZE);
    match rng.random_bool(0.3) {
        true => size,
        false => size & !511,
    }
}
