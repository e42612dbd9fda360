//! Engines to run image tests on, and the byte-exact reference that images are compared with.
#![allow(dead_code)] // each test binary uses its part

pub mod damage;
pub mod losing;
pub mod reference;

use std::sync::Arc;

use ferry_image::admin::create::CreateOptions;
use ferry_image::admin::namespace;
use ferry_store::check::{CheckOptions, Finding, Gravity};
use ferry_store::memory::MemoryCluster;
use ferry_store::wrappers::{FaultyStore, Moment, Probing, ProbingStore};
use ferry_store::{IoCtx, PoolOptions, Scope, Store};
use ferry_store_ceph::{CephConfig, CephStore};
use ferry_store_local::disk::sim::SimDisk;

/// A store that can be opened several times, as by several processes.
pub enum Engine {
    Memory(MemoryCluster),
    /// The memory engine as if it had no list of clones.
    Probing(MemoryCluster),
    /// The memory engine with a defect.
    Losing(MemoryCluster, Arc<losing::Count>),
    Local(tempfile::TempDir),
    /// The local engine over the simulated disk.
    Simulated(tempfile::TempDir, Arc<SimDisk>),
    /// A real cluster, and the namespace in its pools that this test has to itself.
    Ceph(CephConfig, String),
}

impl Engine {
    pub fn memory() -> Self {
        Self::Memory(MemoryCluster::new(ferry_cls::registry()))
    }

    pub fn probing() -> Self {
        Self::Probing(MemoryCluster::new(ferry_cls::registry()))
    }

    pub fn local() -> Self {
        Self::Local(tempfile::tempdir().unwrap())
    }

    pub fn simulated() -> Self {
        Self::Simulated(tempfile::tempdir().unwrap(), Arc::new(SimDisk::new()))
    }

    /// The cluster that `FERRY_TEST_CEPH` names; `None`, with a message, if it names none.
    pub fn ceph() -> Option<Self> {
        let Some(conf) = std::env::var_os("FERRY_TEST_CEPH") else {
            eprintln!("LEFT OUT: FERRY_TEST_CEPH names no cluster");
            return None;
        };
        let config = CephConfig {
            conf: Some(conf.into()),
            ..CephConfig::default()
        };
        Some(Self::Ceph(
            config,
            format!("image-{:016x}", rand::random::<u64>()),
        ))
    }

    /// The test's place in the pool called `name`, which is created if it is missing.
    pub async fn place(&self, store: &Arc<dyn Store>, name: &str) -> IoCtx {
        let io = pool(store, name).await;
        match self {
            Self::Ceph(_, namespace) => {
                if !namespace::exists(&io, namespace).await.unwrap() {
                    namespace::create(&io, namespace).await.unwrap();
                }
                io.with_namespace(namespace)
            }
            _ => io,
        }
    }

    /// A client that dies at its `nth` change: that and every later operation of it fail.
    pub async fn doomed(&self, nth: u64, moment: Moment) -> Doomed {
        let (inner, store): (Arc<dyn Store>, Arc<FaultyStore>) = match self {
            Self::Memory(cluster) => {
                let inner = cluster.connect();
                let dying = inner.clone();
                (
                    inner.clone(),
                    FaultyStore::with_death(inner, move || dying.kill()),
                )
            }
            _ => {
                let inner = self.connect().await;
                (inner.clone(), FaultyStore::with_death(inner, || {}))
            }
        };
        store.hook().kill_at(nth, moment);
        Doomed { inner, store }
    }

    /// Takes the power away: what was not flushed may be lost. All clients must have ended.
    pub fn power_loss(&self, seed: u64) {
        match self {
            Self::Memory(cluster) | Self::Probing(cluster) | Self::Losing(cluster, _) => {
                cluster.power_loss(seed);
            }
            Self::Simulated(_, disk) => disk.crash(seed),
            Self::Local(_) | Self::Ceph(..) => panic!("a real disk keeps its power"),
        }
    }

    /// By name, for test matrices.
    pub fn named(name: &str) -> Self {
        match name {
            "memory" => Self::memory(),
            "probing" => Self::probing(),
            "losing" => Self::Losing(MemoryCluster::new(ferry_cls::registry()), Arc::default()),
            "local" => Self::local(),
            "simulated" => Self::simulated(),
            "ceph" => Self::ceph().expect("a cluster"),
            other => panic!("no engine '{other}'"),
        }
    }

    /// One more client.
    pub async fn connect(&self) -> Arc<dyn Store> {
        match self {
            Self::Memory(cluster) => cluster.connect(),
            Self::Probing(cluster) => ProbingStore::with_hook(cluster.connect(), Probing),
            Self::Losing(cluster, count) => losing::store(cluster.connect(), count.clone()),
            Self::Local(dir) => open_local(dir.path(), None),
            Self::Simulated(dir, disk) => open_local(dir.path(), Some(disk.clone())),
            Self::Ceph(config, _) => CephStore::connect(config.clone()).await.unwrap(),
        }
    }
}

/// A client that is made to die.
pub struct Doomed {
    inner: Arc<dyn Store>,
    pub store: Arc<FaultyStore>,
}

impl Doomed {
    pub fn is_dead(&self) -> bool {
        self.store.hook().is_dead()
    }

    /// Waits until nothing of it is left: its watches, as the death of its process ends them.
    pub async fn bury(self) {
        let _ = self.inner.shutdown().await;
    }
}

pub fn open_local(path: &std::path::Path, disk: Option<Arc<SimDisk>>) -> Arc<dyn Store> {
    let disk = disk.map(|disk| disk as Arc<dyn ferry_store_local::disk::Disk>);
    let options = ferry_store_local::LocalOptions {
        registry: ferry_cls::registry(),
        disk,
    };
    ferry_store_local::LocalStore::open(path, options).unwrap()
}

/// Default namespace of the pool called `name`, which is created if it is missing.
pub async fn pool(store: &Arc<dyn Store>, name: &str) -> IoCtx {
    let pools = store.pool_list().await.unwrap();
    let id = match pools.iter().find(|pool| pool.name == name) {
        Some(pool) => pool.id,
        None => store.pool_create(name, PoolOptions::default()).await.unwrap(),
    };
    IoCtx::new(store.clone(), Scope::new(id))
}

/// A layout to test with: order, stripe unit, stripe count.
#[derive(Debug, Clone, Copy)]
pub struct TestLayout(pub u8, pub u64, pub u64);

impl TestLayout {
    pub fn create(self, size_bytes: u64) -> CreateOptions {
        CreateOptions {
            size_bytes,
            order: Some(self.0),
            stripe_unit_bytes: self.1,
            stripe_count: self.2,
            ..CreateOptions::default()
        }
    }
}

/// What is found of all images of a store that nobody uses.
pub async fn findings(store: &Arc<dyn Store>, options: CheckOptions) -> Vec<Finding> {
    let mut found = Vec::new();
    for of in store.pool_list().await.unwrap() {
        let of_pool = ferry_image::check::pool_at_rest(store, &of, options).await;
        found.extend(of_pool.unwrap());
    }
    found
}

/// Checks all images of a store, which must be sound.
pub async fn sound(store: &Arc<dyn Store>, when: &str) {
    assert_eq!(findings(store, CheckOptions::default()).await, [], "{when}");
}

/// The same, but for findings of one kind.
pub async fn sound_but_for(store: &Arc<dyn Store>, kind: &str, when: &str) {
    let mut found = findings(store, CheckOptions::default()).await;
    found.retain(|found| found.gravity != Gravity::Leftover || found.kind != kind);
    assert_eq!(found, [], "{when}");
}

/// The same after a kill, which may leave what is to be finished, and no damage. With `repair` what can be is put right first.
pub async fn undamaged(store: &Arc<dyn Store>, repair: bool, when: &str) {
    let options = CheckOptions {
        repair,
        read_data: false,
    };
    let mut found = findings(store, options).await;
    found.retain(|found| found.gravity == Gravity::Damage);
    assert_eq!(found, [], "{when}");
}
