//! `kill -9` of the real processes at random moments: nothing that was flushed is lost, and every verb can be run
//! again. `FERRY_KILLS` sets how many (`FERRY_CEPH_KILLS` on a cluster), `FERRY_SEED` replays the choices (not the moments).

#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::time::Duration;

use ferry_e2e::ceph::{Side, unique};
use ferry_e2e::librbd::Librbd;
use ferry_e2e::load::{BLOCK_BYTES, Journal, connect, read_all, write_until_gone};
use ferry_e2e::process::LIMIT;
use ferry_e2e::tools::{kills, seed};
use ferry_e2e::{Ferry, Served};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::runtime::Runtime;

const BLOCKS: u32 = 2048;
const LAYOUTS: [&[&str]; 4] = [
    &["--object-size", "256K"],
    &["--object-size", "1M"],
    &["--object-size", "64K"],
    &[
        "--object-size",
        "512K",
        "--stripe-unit",
        "64K",
        "--stripe-count",
        "2",
    ],
];

/// An image that is on its way, and what is known of it.
struct Traveller {
    ferry: Ferry,
    /// Its two names.
    places: [String; 2],
    rng: StdRng,
    journal: Journal,
    runtime: Runtime,
    /// Whether Ceph's clients can have it too.
    is_on_ceph: bool,
    /// Pool where the image is, or where it is going to.
    pool: usize,
    /// Snapshot taken before the last prepare, with its bytes.
    snapshot: Option<(String, Vec<u8>)>,
    migrations: u32,
}

impl Traveller {
    fn new(name: &str) -> Self {
        let places = ["rbd/disk", "fast/disk"].map(str::to_owned);
        Self::between(name, Ferry::new(), places)
    }

    /// On the cluster, if there is one.
    fn on_ceph(name: &str) -> Option<Self> {
        let image = unique("traveller");
        let places = ["rbd", "other"].map(|pool| format!("{pool}/{image}"));
        let mut traveller = Self::between(name, Ferry::on_ceph()?, places);
        traveller.is_on_ceph = true;
        Some(traveller)
    }

    fn between(name: &str, ferry: Ferry, places: [String; 2]) -> Self {
        let mut rng = StdRng::seed_from_u64(seed(name));
        let journal = Journal::filled(BLOCKS, 60, &mut rng);
        ferry.import(&journal.bytes(), &places[0], &["--object-size", "1M"]);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        Self {
            ferry,
            places,
            rng,
            journal,
            runtime,
            is_on_ceph: false,
            pool: 0,
            snapshot: None,
            migrations: 0,
        }
    }

    fn spec(&self) -> String {
        self.places[self.pool].clone()
    }

    fn pause(&mut self, longest_ms: u64) {
        let pause = Duration::from_micros(self.rng.random_range(0..longest_ms * 1000));
        std::thread::sleep(pause);
    }

    /// Takes a snapshot and prepares a migration to the other pool.
    fn prepare(&mut self) {
        let from = self.spec();
        if let Some((old, _)) = self.snapshot.take() {
            self.ferry
                .ok(&["snap", "rm", "--no-progress", &format!("{from}@{old}")]);
        }
        let name = format!("s{}", self.migrations);
        self.ferry
            .ok(&["snap", "create", "--no-progress", &format!("{from}@{name}")]);
        self.snapshot = Some((name, self.journal.bytes()));
        self.pool = 1 - self.pool;
        let to = self.spec();
        let layout = LAYOUTS[self.rng.random_range(0..LAYOUTS.len())];
        let words: Vec<_> = ["migration", "prepare", &from, &to]
            .into_iter()
            .chain(layout.iter().copied())
            .collect();
        self.ferry.ok(&words);
        self.migrations += 1;
    }

    /// Reads everything through a server and compares it with what must be there.
    fn check(&mut self, served: &Served, what: &str) {
        if let Err(error) = self.look(served) {
            panic!("{what}: {error}");
        }
    }

    fn look(&mut self, served: &Served) -> Result<(), String> {
        let spec = self.spec();
        let image = self.within_limit(async {
            let client = connect(&served.socket, &spec).await;
            let image = read_all(&client).await;
            client.disconnect().await.unwrap();
            image
        });
        self.journal.settle(&image)?;
        if let Some((name, bytes)) = &self.snapshot {
            let export = format!("{spec}@{name}");
            let image = self.within_limit(async {
                let client = connect(&served.socket, &export).await;
                read_all(&client).await
            });
            if &image != bytes {
                return Err("the snapshot has changed".to_owned());
            }
        }
        Ok(())
    }

    /// Ceph's client takes the image over from whoever was killed with it, and sees everything.
    fn is_whole_for_ceph(&mut self, what: &str) {
        let spec = self.spec();
        match self.ferry.migration_state(&spec).as_str() {
            // Of an object in which an execute was killed Ceph's clients see an older version until the next execute.
            "prepared" | "executing" => {
                self.ferry.migrate_as(Side::Ceph, "execute", &spec);
            }
            _ => {
                let (pool, name) = spec.split_once('/').unwrap();
                let mut client = Librbd::open(&self.ferry, pool, name);
                client.ok("lock");
                client.close();
            }
        }
        let image = self.ferry.export_as(Side::Ceph, &spec);
        if let Err(error) = self.journal.settle(&image) {
            panic!("{what}, to Ceph's client: {error}");
        }
        if let Some((name, bytes)) = &self.snapshot {
            let image = self.ferry.export_as(Side::Ceph, &format!("{spec}@{name}"));
            assert!(
                &image == bytes,
                "{what}, to Ceph's client: the snapshot has changed"
            );
        }
    }

    /// Writes until the server is gone; `meanwhile` sees to that.
    fn under_load<T>(&mut self, served: &Served, requests: u32, meanwhile: impl FnOnce(&mut Self) -> T) -> T {
        let spec = self.spec();
        let client = self.runtime.block_on(connect(&served.socket, &spec));
        let load = self.runtime.spawn(write_until_gone(
            client,
            self.journal.clone(),
            8,
            requests,
            self.rng.random(),
        ));
        let result = meanwhile(self);
        self.journal = self.within_limit(load).unwrap();
        result
    }

    fn serve(&self) -> Served {
        self.ferry.serve(&[])
    }

    /// Waits for a client; one that gets no answer is a failure, not a test that never ends.
    #[track_caller]
    fn within_limit<F: Future>(&self, client: F) -> F::Output {
        let answered = self
            .runtime
            .block_on(async { tokio::time::timeout(LIMIT, client).await });
        answered.expect("an answer from the server in time")
    }
}

#[test]
fn killed_servers_under_load_lose_nothing_that_was_flushed() {
    kill_servers(Traveller::new("killed_servers"), kills(40));
}

/// The next server waits until the cluster has given the dead one's watch up, seconds each time.
fn kills_on_ceph() -> u32 {
    std::env::var("FERRY_CEPH_KILLS").map_or(4, |text| text.parse().unwrap())
}

#[test]
fn killed_servers_on_a_cluster_lose_nothing_that_was_flushed() {
    if let Some(traveller) = Traveller::on_ceph("killed_servers_ceph") {
        kill_servers(traveller, kills_on_ceph());
    }
}

fn kill_servers(mut traveller: Traveller, count: u32) {
    for kill in 0..count {
        if kill % 20 == 0 {
            println!("killed_servers: {kill} of {count}");
        }
        let spec = traveller.spec();
        let state = traveller.ferry.migration_state(&spec);
        match state.as_str() {
            "" => traveller.prepare(),
            "executed" => {
                traveller
                    .ferry
                    .ok(&["migration", "commit", "--no-progress", &spec]);
                let served = traveller.serve();
                traveller.check(&served, "after a commit");
                served.stop();
                traveller.prepare();
            }
            _ => {}
        }
        let spec = traveller.spec();
        let served = traveller.serve();
        traveller.check(&served, &format!("before kill {kill} in state {state:?}"));
        let socket = served.socket.clone();
        let mut served = Some(served);
        let migrate = traveller.rng.random_range(0..3) > 0;
        let wait = traveller.rng.random_range(0..2) == 0;
        let holder = Served {
            process: served.take().unwrap().process,
            socket: socket.clone(),
        };
        let spec_of_load = spec.clone();
        let client = traveller.runtime.block_on(connect(&socket, &spec_of_load));
        let load = traveller.runtime.spawn(write_until_gone(
            client,
            traveller.journal.clone(),
            8,
            u32::MAX,
            traveller.rng.random(),
        ));
        let execute = migrate.then(|| traveller.ferry.start(&["migration", "execute", &spec]));
        traveller.pause(250);
        holder.kill();
        traveller.journal = traveller.within_limit(load).unwrap();
        if let Some(execute) = execute {
            if wait {
                // It was forwarded or never started: either way it goes on alone, without anybody's help.
                execute.finish().ok();
            } else {
                traveller.pause(50);
                execute.kill();
            }
        }
        if traveller.is_on_ceph && kill % 2 == 1 {
            traveller.is_whole_for_ceph(&format!("after kill {kill}"));
        }
    }
    let served = traveller.serve();
    traveller.check(&served, "at the end");
    served.stop();
    println!("{count} kills of serve, {} migrations", traveller.migrations);
    println!("campaign: real-kills of=serve kills={count}");
    assert!(traveller.migrations > 0);
}

#[test]
fn killed_executes_beside_a_writer_are_continued_by_the_next() {
    kill_executes(Traveller::new("killed_executes"), kills(40));
}

#[test]
fn killed_executes_on_a_cluster_are_continued_by_the_next() {
    if let Some(traveller) = Traveller::on_ceph("killed_executes_ceph") {
        kill_executes(traveller, kills_on_ceph());
    }
}

fn kill_executes(mut traveller: Traveller, count: u32) {
    let mut killed = 0;
    while killed < count {
        let spec = traveller.spec();
        match traveller.ferry.migration_state(&spec).as_str() {
            "" => traveller.prepare(),
            "executed" => {
                let commit = ["migration", "commit", "--no-progress", &spec];
                traveller.ferry.ok(&commit);
                traveller.prepare();
            }
            _ => {}
        }
        let spec = traveller.spec();
        let alone = traveller.rng.random_range(0..2) == 0;
        if alone {
            let execute = traveller.ferry.start(&["migration", "execute", &spec]);
            traveller.pause(120);
            execute.kill();
        } else {
            let served = traveller.serve();
            traveller.under_load(&served, 1500, |traveller| {
                traveller.pause(60);
                let execute = traveller.ferry.start(&["migration", "execute", &spec]);
                traveller.pause(120);
                execute.kill();
            });
            // The writer is still there, so its flush counts as well.
            traveller.check(&served, &format!("in the server, after kill {killed}"));
            served.stop();
        }
        killed += 1;
        if traveller.is_on_ceph && killed % 2 == 0 {
            traveller.is_whole_for_ceph(&format!("after kill {killed}"));
        }
        let served = traveller.serve();
        traveller.check(&served, &format!("after kill {killed}"));
        served.stop();
    }
    let spec = traveller.spec();
    if traveller.ferry.migration_state(&spec) != "executed" {
        traveller
            .ferry
            .ok(&["migration", "execute", "--no-progress", &spec]);
    }
    traveller
        .ferry
        .ok(&["migration", "commit", "--no-progress", &spec]);
    let served = traveller.serve();
    traveller.check(&served, "after the last commit");
    served.stop();
    for place in &traveller.places {
        let (pool, name) = place.split_once('/').unwrap();
        let trash = traveller.ferry.ok(&["trash", "ls", "--all", pool]);
        assert!(!trash.contains(name), "{trash}");
    }
    println!("{count} kills of execute, {} migrations", traveller.migrations);
    println!("campaign: real-kills of=execute kills={count}");
}

/// Runs a verb again until it succeeds or says that it has already been done.
fn run_again(ferry: &Ferry, words: &[&str], done: i32) {
    let finished = ferry.rbd(words);
    assert!(finished.code == 0 || finished.code == done, "{finished}");
}

#[test]
fn every_verb_killed_at_any_moment_finishes_when_it_is_run_again() {
    let mut rng = StdRng::seed_from_u64(seed("killed_verbs"));
    let count = kills(40);
    let ferry = Ferry::new();
    let mut journal = Journal::filled(BLOCKS / 4, 60, &mut rng);
    let bytes = journal.bytes();
    ferry.import(&bytes, "rbd/disk", &["--object-size", "256K"]);
    ferry.ok(&["snap", "create", "--no-progress", "rbd/disk@s"]);
    let names = ["rbd/disk", "fast/disk"];
    let mut at = 0;
    let mut killed = 0;
    while killed < count {
        let (from, to) = (names[at], names[1 - at]);
        let from_pool = ["rbd", "fast"][at];
        let layout = LAYOUTS[rng.random_range(0..LAYOUTS.len())];
        let prepare: Vec<_> = ["migration", "prepare", from, to]
            .into_iter()
            .chain(layout.iter().copied())
            .collect();
        let abort = rng.random_range(0..3) == 0;
        let last: &[&str] = if abort {
            &["migration", "abort", to]
        } else {
            &["migration", "commit", to]
        };
        let verbs: [(&[&str], i32); 3] = [
            (&prepare, 2),
            (&["migration", "execute", to], 22),
            // After the last step the image takes part in no migration; after an abort it has no name.
            (last, if abort { 2 } else { 22 }),
        ];
        for (words, done) in verbs {
            let process = ferry.start(words);
            std::thread::sleep(Duration::from_micros(rng.random_range(0..150_000)));
            process.kill();
            killed += 1;
            if abort && words[1] == "abort" {
                // Once its name is gone, the migration is found by the source's.
                let again = ferry.rbd(words);
                if again.code == 2 {
                    run_again(&ferry, &["migration", "abort", from], 22);
                } else {
                    assert_eq!(again.code, 0, "{again}");
                }
            } else {
                run_again(&ferry, words, done);
                if words[1] == "commit" && !ferry.ok(&["trash", "ls", "--all", from_pool]).is_empty() {
                    // Killed before its last step: the target is an ordinary image by now, and what is left is found
                    // by the source's name (docs/migration.md, commit, row 3).
                    ferry.ok(&["migration", "commit", "--no-progress", from]);
                }
            }
        }
        if !abort {
            at = 1 - at;
        }
        let image = ferry.export(names[at]);
        assert_eq!(journal.settle(&image), Ok(()), "after {killed} kills");
        assert!(
            ferry.export(&format!("{}@s", names[at])) == bytes,
            "snapshot after {killed} kills"
        );
        for pool in ["rbd", "fast"] {
            let trash = ferry.ok(&["trash", "ls", "--all", pool]);
            assert_eq!(trash, "", "in pool {pool} after {killed} kills");
        }
        assert_eq!(ferry.ok(&["ls", names[1 - at].split('/').next().unwrap()]), "");
        assert_eq!(image.len(), (BLOCKS / 4 * BLOCK_BYTES) as usize);
    }
    println!("{killed} kills of verbs");
    println!("campaign: real-kills of=verbs kills={killed}");
}

/// What was flushed is gone after the kill, as from a disk that loses what was synced.
#[test]
fn canary_a_store_that_lost_what_was_flushed_is_noticed() {
    let mut traveller = Traveller::new("canary_of_kills");
    let earlier = traveller.ferry.path("earlier");
    let served = traveller.serve();
    traveller.under_load(&served, 100, |_| ());
    traveller.check(&served, "before anything was lost");
    served.kill();
    let store = traveller.ferry.store().to_owned();
    let copied = std::process::Command::new("cp")
        .arg("-a")
        .args([&store, &earlier])
        .status();
    assert!(copied.unwrap().success());
    let served = traveller.serve();
    traveller.check(&served, "after a kill");
    traveller.under_load(&served, 400, |_| ());
    served.kill();
    std::fs::remove_dir_all(&store).unwrap();
    std::fs::rename(&earlier, &store).unwrap();
    let served = traveller.serve();
    let seen = traveller.look(&served);
    let told = seen.expect_err("what was flushed is gone, and nobody notices");
    assert!(told.contains("holds version"), "{told}");
    served.stop();
}
