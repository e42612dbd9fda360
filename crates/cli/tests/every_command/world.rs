//! A store to run command lines on, and copies of it: each trial starts from the same bytes.

use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ferry_cli::commands::run_on;
use ferry_cli::exit::Failure;
use ferry_cli::grammar::{Environment, Parsed, parse};
use ferry_cls::rbd::GroupSnapshotState;
use ferry_image::admin::{locks, pool, trash};
use ferry_image::group::Group;
use ferry_image::{Image, ImageKey, OpenOptions};
use ferry_store::memory::MemoryCluster;
use ferry_store::wrappers::FaultyStore;
use ferry_store::{IoCtx, PoolOptions, Store};

use super::rows::{BASE, Row};

/// A command that takes longer hangs.
const LIMIT: Duration = Duration::from_secs(120);

/// A row's store before its command.
pub struct World {
    cluster: MemoryCluster,
    words: Words,
}

/// What stands for `{...}` in lines.
#[derive(Clone, Default)]
pub struct Words {
    dir: String,
    old: String,
    locker: String,
}

/// What a server had been told to do, and had confirmed.
pub type Flushed = Vec<(u64, u64, u8)>;

/// A client that is made to fail or to die.
pub struct Client {
    pub store: Arc<FaultyStore>,
    kill: Box<dyn Fn() + Send + Sync>,
}

impl Client {
    /// Ends it as the end of its process does.
    pub fn bury(self) {
        (self.kill)();
    }
}

impl World {
    /// Sets the store of a row up. Files of its lines go to `dir`.
    pub async fn before(row: &Row, dir: &Path) -> Self {
        let cluster = MemoryCluster::new(ferry_cls::registry());
        let store: Arc<dyn Store> = cluster.connect();
        for name in ["rbd", "p2"] {
            store.pool_create(name, PoolOptions::default()).await.unwrap();
        }
        let raw: Vec<u8> = (0..60_000u32)
            .map(|n| if n < 20_000 { 7 } else { (n / 40_000) as u8 })
            .collect();
        std::fs::write(dir.join("raw"), raw).unwrap();
        let mut world = Self {
            cluster,
            words: Words {
                dir: dir.to_str().unwrap().to_owned(),
                ..Words::default()
            },
        };
        for line in BASE.iter().chain(row.setup) {
            if let Err(failure) = world.run(line).await {
                panic!("setting up for '{}': '{line}': {}", row.line, failure.text());
            }
            let io = pool::open(&store, "rbd", "").await.unwrap();
            let trashed = trash::list(&io).await.unwrap();
            if let Some((id, _)) = trashed.iter().find(|(_, entry)| entry.name == "old") {
                world.words.old.clone_from(id);
            }
            if line.starts_with("lock add") {
                let held = locks::list(&io, "vm").await.unwrap().unwrap();
                world.words.locker.clone_from(&held.lockers[0].client);
            }
        }
        world
    }

    /// The same store once more.
    pub fn fork(&self) -> Self {
        Self {
            cluster: self.cluster.fork(),
            words: self.words.clone(),
        }
    }

    /// A client to look at the store with.
    pub fn connect(&self) -> Arc<dyn Store> {
        self.cluster.connect()
    }

    /// A client with nothing programmed yet.
    pub fn client(&self) -> Client {
        let inner = self.cluster.connect();
        let (dying, buried) = (inner.clone(), inner.clone());
        Client {
            store: FaultyStore::with_death(inner, move || dying.kill()),
            kill: Box::new(move || buried.kill()),
        }
    }

    pub fn power_loss(&self, seed: u64) {
        self.cluster.power_loss(seed);
    }

    /// Runs a line with a client of its own, as a process would.
    pub async fn run(&self, line: &str) -> Result<(), Failure> {
        self.run_on(self.connect(), line, &mut Flushed::new()).await
    }

    /// Runs a line with this client. `flushed` gets what a server has confirmed.
    pub async fn run_on(
        &self,
        store: Arc<dyn Store>,
        line: &str,
        flushed: &mut Flushed,
    ) -> Result<(), Failure> {
        let line = line
            .replace("{dir}", &self.words.dir)
            .replace("{old}", &self.words.old)
            .replace("{locker}", &self.words.locker);
        let words: Vec<&str> = line.split_whitespace().collect();
        let work = async {
            match words[..] {
                ["write", image, offset, length, byte] => {
                    let numbers = [offset, length, byte].map(|text| text.parse().unwrap());
                    write(&store, image, numbers).await
                }
                ["clear", group] => clear(&store, group).await,
                ["serve", image] => serve(&store, image, flushed).await,
                _ => {
                    let arguments = words.iter().map(OsString::from);
                    match parse(arguments, &Environment::default())? {
                        Parsed::Run(invocation) => run_on(invocation, store).await,
                        Parsed::Print(text) => panic!("'{line}' only prints {text}"),
                    }
                }
            }
        };
        let ended = tokio::time::timeout(LIMIT, work).await;
        ended.unwrap_or_else(|_| panic!("'{line}' does not end"))
    }
}

/// Opens `[POOL/]IMAGE`.
pub async fn open(store: &Arc<dyn Store>, image: &str, options: OpenOptions) -> ferry_image::Result<Image> {
    let (in_pool, name) = image.split_once('/').unwrap_or(("rbd", image));
    let io: IoCtx = pool::open(store, in_pool, "").await?;
    Image::open(&io, ImageKey::Name(name), options).await
}

fn failed(error: ferry_image::ImageError) -> Failure {
    Failure::errno(&error, error.errno.0)
}

async fn write(store: &Arc<dyn Store>, image: &str, [offset, length, byte]: [u64; 3]) -> Result<(), Failure> {
    let image = open(store, image, OpenOptions::read_write())
        .await
        .map_err(failed)?;
    let written = image
        .write(offset, vec![byte as u8; length as usize].into())
        .await;
    let closed = image.close().await;
    written.and(closed).map_err(failed)?;
    store.shutdown().await.map_err(|error| failed(error.into()))
}

/// What a server does to a store for a client: lock and object map, writes of new and of old objects, discards, zeroes, flushes.
/// The confirmed ones are in areas of their own.
async fn serve(store: &Arc<dyn Store>, image: &str, flushed: &mut Flushed) -> Result<(), Failure> {
    let image = open(store, image, OpenOptions::read_write())
        .await
        .map_err(failed)?;
    let session = async {
        image.write(1000, vec![21; 3000].into()).await?;
        image.flush().await?;
        flushed.push((1000, 3000, 21));
        image.write(50_000, vec![22; 20_000].into()).await?;
        image.discard(16_384, 16_384).await?;
        image.flush().await?;
        flushed.extend([(50_000, 20_000, 22), (16_384, 16_384, 0)]);
        image.write_zeroes(40_000, 5_000, true).await?;
        image.write(90_000, vec![23; 4_000].into()).await?;
        image.flush().await?;
        flushed.extend([(40_000, 5_000, 0), (90_000, 4_000, 23)]);
        Ok(())
    };
    let done = session.await;
    let closed = image.close().await;
    done.and(closed).map_err(failed)?;
    store.shutdown().await.map_err(|error| failed(error.into()))
}

/// A snapshot of a group that says that it is incomplete is removed.
async fn clear(store: &Arc<dyn Store>, group: &str) -> Result<(), Failure> {
    let io: IoCtx = pool::open(store, "rbd", "").await.map_err(failed)?;
    let group = Group::open(&io, group).await.map_err(failed)?;
    for snapshot in group.snapshots().await.map_err(failed)? {
        if snapshot.state == GroupSnapshotState::Incomplete {
            group.remove_snapshot(&snapshot).await.map_err(failed)?;
        }
    }
    Ok(())
}
