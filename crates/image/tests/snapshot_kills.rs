//! Clients that die at each step of taking a snapshot, and of removing one: whoever goes on, and whatever an execute copies and
//! marks in between, no object map calls an object unchanged that has changed, or an incremental export would leave it out.

#![allow(clippy::unwrap_used)] // a test that cannot go on says so by panicking

mod support;

use std::sync::Arc;

use ferry_image::admin::create;
use ferry_image::layering::clone::{CloneFormat, CloneOptions, clone};
use ferry_image::migration::execute::execute;
use ferry_image::migration::prepare::{PrepareOptions, prepare};
use ferry_image::object_map::rebuild;
use ferry_image::{ErrorKind, Image, ImageKey, OpenOptions, Progress, Result, SnapKey};
use ferry_store::memory::MemoryCluster;
use ferry_store::wrappers::{FaultyStore, Moment};
use ferry_store::{IoCtx, Scope, SnapId, Store};
use support::{TestLayout, pool};

const OBJECT_BYTES: u64 = 4096;
const OBJECTS: u64 = 6;
/// Reaching it means that a command does not end.
const MOST_STEPS: u64 = 200;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Plain,
    /// Target of a prepared migration, which execute marks ahead.
    Target,
    /// The same, of a clone, which execute marks object by object.
    TargetOfClone,
}

impl Kind {
    fn is_target(self) -> bool {
        self != Self::Plain
    }

    fn name(self) -> &'static str {
        if self.is_target() { "moved" } else { "image" }
    }
}

/// A store with one image, to be forked for each death.
struct World {
    kind: Kind,
    cluster: MemoryCluster,
    scope: Scope,
}

async fn open(io: &IoCtx, name: &str) -> Result<Image> {
    Image::open(io, ImageKey::Name(name), OpenOptions::read_write()).await
}

impl World {
    /// Snapshots "old" and "mid". Object 1 changed between them, object 3 came after them, object 2 changed both times; the last
    /// two have never been written.
    async fn new(kind: Kind) -> Self {
        let cluster = MemoryCluster::new(ferry_cls::registry());
        let store: Arc<dyn Store> = cluster.connect();
        let io = pool(&store, "rbd").await;
        let silent = Progress::silent();
        let layout = TestLayout(12, 0, 0).create(OBJECTS * OBJECT_BYTES);
        if kind == Kind::TargetOfClone {
            create::create(&io, "base", &layout).await.unwrap();
            let base = open(&io, "base").await.unwrap();
            base.write(0, vec![9; 2 * OBJECT_BYTES as usize].into())
                .await
                .unwrap();
            base.snap_create("s", &silent).await.unwrap();
            base.close().await.unwrap();
            let snap = SnapKey::Name("s".to_owned());
            let options = CloneOptions {
                format: Some(CloneFormat::Two),
                ..CloneOptions::default()
            };
            clone(&io, "base", &snap, &io, "image", &options).await.unwrap();
        } else {
            create::create(&io, "image", &layout).await.unwrap();
        }
        let image = open(&io, "image").await.unwrap();
        for (written, snap) in [
            (&[0, 1, 2][..], Some("old")),
            (&[1, 2], Some("mid")),
            (&[2, 3], None),
        ] {
            for object in written {
                let bytes = vec![snap.map_or(1, |name| name.as_bytes()[0]); 1000];
                image.write(object * OBJECT_BYTES, bytes.into()).await.unwrap();
            }
            if let Some(name) = snap {
                image.snap_create(name, &silent).await.unwrap();
            }
        }
        image.close().await.unwrap();
        if kind.is_target() {
            prepare(&io, "image", &io, "moved", &PrepareOptions::default())
                .await
                .unwrap();
        }
        store.shutdown().await.unwrap();
        Self {
            kind,
            cluster,
            scope: io.scope().clone(),
        }
    }

    fn fork(&self) -> Self {
        Self {
            kind: self.kind,
            cluster: self.cluster.fork(),
            scope: self.scope.clone(),
        }
    }

    /// A client of its own.
    fn io(&self) -> IoCtx {
        IoCtx::new(self.cluster.connect(), self.scope.clone())
    }

    async fn open(&self) -> Image {
        open(&self.io(), self.kind.name()).await.unwrap()
    }

    /// By a client that dies at its `nth` change. False: it did not come so far, and has done it.
    async fn killed(&self, nth: u64, command: Command) -> bool {
        let inner = self.cluster.connect();
        let dying = inner.clone();
        let store = FaultyStore::with_death(inner, move || dying.kill());
        store.hook().kill_at(nth, Moment::Before);
        let io = IoCtx::new(store.clone(), self.scope.clone());
        let done = self.run(&io, command).await;
        let died = store.hook().is_dead();
        if !died {
            done.unwrap_or_else(|error| panic!("{command:?} without a kill: {error}"));
        }
        died
    }

    async fn run(&self, io: &IoCtx, command: Command) -> Result<()> {
        let image = open(io, self.kind.name()).await?;
        let silent = Progress::silent();
        let done = match command {
            Command::Take(name) => image.snap_create(name, &silent).await,
            Command::Remove(name) => match image.snap_remove(name, &silent).await {
                // It never was, or is gone already.
                Err(error) if error.kind == ErrorKind::SnapMissing => Ok(()),
                removed => removed,
            },
        };
        done.and(image.close().await)
    }

    async fn execute(&self) {
        if self.kind.is_target() {
            execute(&self.io(), "moved", &Progress::silent()).await.unwrap();
        }
    }

    async fn check(&self, when: &str) {
        let image = self.open().await;
        image.acquire_lock().await.unwrap();
        let wrong = rebuild::verify(&image, &Progress::silent()).await.unwrap();
        assert_eq!(wrong, [], "{when}");
        image.close().await.unwrap();
    }
}

#[derive(Debug, Clone, Copy)]
enum Command {
    Take(&'static str),
    Remove(&'static str),
}

/// When the migration is executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Executed {
    /// Before the snapshots are removed.
    First,
    /// When the removal of the first of them has been interrupted.
    Between,
}

/// Removes snapshots one after the other, the first of them by a client that dies at its `nth` change, and takes a new one.
async fn remove(world: &World, nth: u64, executed: Executed, order: &[&'static str], when: &str) -> bool {
    if executed == Executed::First {
        world.execute().await;
    }
    let died = world.killed(nth, Command::Remove(order[0])).await;
    let when = format!("{when}, executed {executed:?}, removal of {order:?} killed at {nth}");
    if executed == Executed::Between {
        world.execute().await;
    }
    world.check(&when).await;
    for name in order {
        world.run(&world.io(), Command::Remove(name)).await.unwrap();
        world.check(&format!("{when}, {name} removed")).await;
    }
    world.run(&world.io(), Command::Take("new")).await.unwrap();
    world.check(&format!("{when}, a new one taken")).await;
    died
}

async fn kill_everywhere(kind: Kind) {
    const ORDERS: [&[&str]; 4] = [
        &["dead"],
        &["mid", "dead"],
        &["dead", "mid"],
        &["mid", "old", "dead"],
    ];
    let built = World::new(kind).await;
    let executed: &[Executed] = match kind.is_target() {
        true => &[Executed::First, Executed::Between],
        false => &[Executed::First],
    };
    for nth in 1.. {
        assert!(nth < MOST_STEPS, "to take a snapshot does not end");
        let taken = built.fork();
        let died = taken.killed(nth, Command::Take("dead")).await;
        for (order, executed) in ORDERS
            .iter()
            .flat_map(|order| executed.iter().map(move |when| (order, *when)))
        {
            for step in 1.. {
                assert!(step < MOST_STEPS, "to remove a snapshot does not end");
                let when = format!("{kind:?}, killed at step {nth}");
                if !remove(&taken.fork(), step, executed, order, &when).await {
                    break;
                }
            }
        }
        if !died {
            break;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn maps_tell_of_all_changes_whoever_dies_while_a_snapshot_comes_or_goes() {
    kill_everywhere(Kind::Plain).await;
}

#[tokio::test(start_paused = true)]
async fn so_they_do_where_execute_marks_ahead() {
    kill_everywhere(Kind::Target).await;
}

#[tokio::test(start_paused = true)]
async fn so_they_do_where_execute_marks_object_by_object() {
    kill_everywhere(Kind::TargetOfClone).await;
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_without_a_map_passes_on_what_an_older_one_knew() {
    let built = World::new(Kind::Plain).await;
    let mut without_a_map = 0;
    for nth in 1..MOST_STEPS {
        let world = built.fork();
        let died = world.killed(nth, Command::Take("dead")).await;
        let image = world.open().await;
        let dead = image.header().snap_by_name("dead").map(|snap| snap.id);
        let map = |snap: SnapId| format!("rbd_object_map.{}.{:016x}", image.id(), snap.0);
        let io = world.io();
        let has_map = match dead {
            Some(dead) => io.exists(&map(dead)).await.unwrap(),
            None => true,
        };
        without_a_map += u64::from(!has_map);
        let silent = Progress::silent();
        image.snap_remove("mid", &silent).await.unwrap();
        if dead.is_some() {
            image.snap_remove("dead", &silent).await.unwrap();
        }
        // Nothing was unknown, so nothing has to be declared so.
        image.refresh().await.unwrap();
        assert!(image.header().object_map_valid(SnapId::HEAD), "step {nth}");
        image.close().await.unwrap();
        world.check(&format!("killed at step {nth}")).await;
        if !died {
            break;
        }
    }
    assert!(without_a_map > 0, "no kill came between the snapshot and its map");
}
