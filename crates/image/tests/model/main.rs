//! Random histories of an image, its clones, its group and its migrations against the reference.
//!
//! A history is a seed: `FERRY_SEED=<seed>` replays one, `FERRY_STEPS` and `FERRY_HISTORIES` make runs longer. Every
//! operation is done to the image and to the reference; everything readable is compared again and again, through the
//! writing handle, through a second client, and at every snapshot.

#![allow(clippy::unwrap_used)] // a test that cannot go on says so by panicking

#[path = "../support/mod.rs"]
mod support;

mod client;
mod clones;
mod groups;
mod migration;

use std::collections::BTreeMap;
use std::sync::Arc;

use clones::{ancestor, check_snapshots_can_be_cut_loose, make_clone};
use ferry_cls::rbd::{GroupSnapshot, feature};
use ferry_image::admin::{create, remove};
use ferry_image::group::{self, Group};
use ferry_image::layering::clone::{self, CloneFormat, CloneOptions};
use ferry_image::layout::{ObjectNo, ObjectOffset};
use ferry_image::migration::abort::{AbortOptions, abort};
use ferry_image::migration::commit::commit;
use ferry_image::migration::execute::execute;
use ferry_image::migration::prepare::{PrepareOptions, prepare};
use ferry_image::object_map::rebuild;
use ferry_image::{ErrorKind, Image, ImageKey, OpenOptions, Progress, SnapKey};
use ferry_reference::Version;
use ferry_store::wrappers::{FaultyStore, Moment};
use ferry_store::{Errno, IoCtx, Scope, Store};
use groups::Together;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use support::reference::{Compared as _, Reference, compare_version};
use support::{Engine, TestLayout, sound};

const MAX_SIZE: u64 = 512 << 10;
const LAYOUTS: [TestLayout; 5] = [
    TestLayout(12, 0, 0),
    TestLayout(15, 0, 0),
    TestLayout(17, 0, 0),
    TestLayout(14, 4096, 3),
    TestLayout(16, 8192, 2),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Plain,
    Prepared,
    Executed,
}

struct History {
    rng: StdRng,
    engine: Engine,
    scopes: [Scope; 2],
    place: usize,
    name: String,
    state: State,
    reference: Reference,
    /// Snapshots at prepare, and where the source was.
    before: Option<(Reference, usize, String)>,
    client: Option<Image>,
    names_used: u32,
    /// Clones of snapshots of the image, and what they must show.
    children: Vec<(String, Reference)>,
    /// Those that were made of snapshots taken since the migration was prepared.
    children_of_new: std::collections::BTreeSet<String>,
    together: Together,
}

impl History {
    async fn new(engine: Engine, seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let store = engine.connect().await;
        let scopes = [
            engine.place(&store, "rbd").await.scope().clone(),
            engine.place(&store, "p2").await.scope().clone(),
        ];
        let size = rng.random_range(1..MAX_SIZE);
        let layout = LAYOUTS[rng.random_range(0..LAYOUTS.len())];
        let io = IoCtx::new(store.clone(), scopes[0].clone());
        let mut options = layout.create(size);
        if rng.random_bool(0.2) {
            options.features = Some(ferry_cls::rbd::feature::LAYERING);
        }
        if rng.random_bool(0.2) {
            options.data_pool = Some("p2".to_owned());
        }
        let reference = if rng.random_bool(0.5) {
            let p2 = IoCtx::new(store.clone(), scopes[1].clone());
            let mut of = ancestor(&mut rng, &p2, "base", None).await;
            for n in 0..rng.random_range(0..3) {
                of = ancestor(&mut rng, &p2, &format!("mid{n}"), Some(&of)).await;
            }
            make_clone(&mut rng, &p2, &of, &io, "image", layout).await;
            Reference::of(&of.shown)
        } else {
            create::create(&io, "image", &options).await.unwrap();
            Reference::new(size)
        };
        let together = Together::new(store, &scopes).await;
        Self {
            rng,
            engine,
            scopes,
            place: 0,
            name: "image".to_owned(),
            state: State::Plain,
            reference,
            before: None,
            client: None,
            names_used: 0,
            children: Vec::new(),
            children_of_new: Default::default(),
            together,
        }
    }

    async fn io(&self) -> IoCtx {
        IoCtx::new(self.engine.connect().await, self.scopes[self.place].clone())
    }

    async fn client(&mut self) -> Image {
        if self.client.is_none() {
            let io = self.io().await;
            let key = ImageKey::Name(&self.name);
            let around = self.rng.random_bool(0.5).then(|| ferry_store::WriteAround {
                max_bytes: 256 << 10,
                until_flush: self.rng.random(),
            });
            let ahead = self.rng.random_bool(0.5).then_some(true);
            let options = OpenOptions::read_write()
                .writing_around(around)
                .reading_ahead(ahead);
            self.client = Some(Image::open(&io, key, options).await.unwrap());
        }
        self.client.clone().unwrap()
    }

    async fn close(&mut self) {
        if let Some(client) = self.client.take() {
            client.close().await.unwrap();
        }
    }

    fn range(&mut self) -> (u64, u64) {
        let size = self.reference.size_bytes();
        let offset = self.rng.random_range(0..=size);
        let most = if self.rng.random_bool(0.3) {
            size - offset
        } else {
            (size - offset).min(20_000)
        };
        (offset, self.rng.random_range(0..=most))
    }

    async fn step(&mut self) {
        let choice = self.rng.random_range(0..100u32);
        if std::env::var_os("FERRY_TRACE").is_some() {
            println!("  choice {choice}, snapshots {:?}", self.reference.snaps.keys());
        }
        match choice {
            0..=24 => self.write().await,
            25..=29 => self.group().await,
            30..=39 => self.discard().await,
            40..=44 => self.compare_and_write().await,
            45..=54 => self.read().await,
            55..=61 => self.snap_create().await,
            62..=64 => self.snap_remove().await,
            65..=67 => self.rollback().await,
            68..=73 => self.resize().await,
            74..=77 => self.close().await,
            78..=83 => self.check("now and then").await,
            84 => self.rename_snap().await,
            85 => self.flatten().await,
            86 => self.clone_snap().await,
            87 => self.use_child().await,
            _ => self.migrate().await,
        }
    }
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}

/// Plays one history.
async fn history(engine: &str, seed: u64, steps: u64) {
    println!("engine {engine}, FERRY_SEED={seed} FERRY_STEPS={steps}");
    let mut history = History::new(Engine::named(engine), seed).await;
    for step in 0..steps {
        if std::env::var_os("FERRY_TRACE").is_some() {
            println!(
                "step {step}: {:?} '{}' {} bytes",
                history.state,
                history.name,
                history.reference.size_bytes()
            );
        }
        history.step().await;
        if std::env::var_os("FERRY_CHECK_EACH").is_some() {
            history.check("after a step").await;
        }
    }
    history.check("at the end").await;
    history.close().await;
    // A cluster has images of other tests.
    if engine != "ceph" {
        let store = history.engine.connect().await;
        sound(&store, &format!("FERRY_SEED={seed}, at the end")).await;
    }
}

async fn histories(engine: &str, histories: u64) {
    let steps = number("FERRY_STEPS", 80);
    // Few histories fit on a cluster: the same ones each time; FERRY_HISTORIES and FERRY_SEED ask for others.
    let usual = match engine {
        "ceph" if histories == number("FERRY_HISTORIES", histories) => 313_958_928,
        _ => ferry_reference::drawn() >> 32,
    };
    let first = number("FERRY_SEED", usual);
    let usual = match std::env::var_os("FERRY_SEED") {
        Some(_) => 1,
        None => histories,
    };
    let histories = number("FERRY_HISTORIES", usual);
    for seed in first..first + histories {
        history(engine, seed, steps).await;
    }
    println!("campaign: model engine={engine} seed={first} histories={histories}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_histories_equal_the_reference_on_the_memory_engine() {
    histories("memory", 30).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_histories_equal_the_reference_on_an_engine_without_a_list_of_clones() {
    histories("probing", 60).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_histories_equal_the_reference_on_the_local_engine() {
    histories("local", 4).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_histories_equal_the_reference_on_a_real_cluster() {
    if Engine::ceph().is_some() {
        histories("ceph", 2).await;
    }
}

/// The canary.
#[test]
fn a_store_that_loses_writes_of_data_is_noticed() {
    let mut named = 0;
    for seed in 1..9 {
        let played = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build();
            runtime.unwrap().block_on(history("losing", seed, 80));
        });
        let Err(panic) = played.join() else { continue };
        // Some are noticed by what a loss does to object maps or clones; most by a byte, which is then named.
        let by_a_byte = panic
            .downcast_ref::<String>()
            .is_some_and(|told| told.contains("may come from write"));
        named += usize::from(by_a_byte);
    }
    assert!(named > 2, "{named} of 8 histories stopped at a lost write");
}
