//! The random history of `ferry-image`'s model test, through the real binary: a client on NBD writes, trims, zeroes and
//! reads, the command snapshots, resizes, rolls back and migrates, and everything is compared byte for byte.

#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::collections::BTreeMap;

use bytes::Bytes;
use ferry_e2e::load::{connect, read_all};
use ferry_e2e::tools::seed;
use ferry_e2e::{Ferry, Served};
use ferry_nbd::client::Client;
use ferry_reference::{Exact, Version};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

const MAX_SIZE: u64 = 1 << 20;
const LAYOUTS: [&[&str]; 4] = [
    &["--object-size", "64K"],
    &["--object-size", "4K"],
    &[
        "--object-size",
        "32K",
        "--stripe-unit",
        "4K",
        "--stripe-count",
        "3",
    ],
    &["--object-size", "256K"],
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Plain,
    Prepared,
    Executed,
}

struct World {
    ferry: Ferry,
    rng: StdRng,
    spec: String,
    state: State,
    reference: Exact,
    before: Option<(BTreeMap<String, Version>, String)>,
    served: Option<(Served, Client)>,
    names: u32,
}

impl World {
    fn new(seed: u64) -> Self {
        let ferry = Ferry::new();
        let mut rng = StdRng::seed_from_u64(seed);
        let kib = rng.random_range(16..1024u64);
        let layout = LAYOUTS[rng.random_range(0..LAYOUTS.len())];
        let size = format!("{kib}K");
        ferry.ok(&[&["create", "rbd/image", "--size", &size], layout].concat());
        Self {
            ferry,
            rng,
            spec: "rbd/image".to_owned(),
            state: State::Plain,
            reference: Exact::new(kib << 10),
            before: None,
            served: None,
            names: 0,
        }
    }

    async fn client(&mut self) -> &Client {
        if self.served.is_none() {
            let served = self.ferry.serve(&[&self.spec]);
            let client = connect(&served.socket, &self.spec).await;
            self.served = Some((served, client));
        }
        &self.served.as_ref().expect("just made").1
    }

    async fn stop(&mut self) {
        if let Some((served, client)) = self.served.take() {
            client.disconnect().await.expect("a clean end");
            served.stop();
        }
    }

    fn range(&mut self) -> (u64, u32) {
        let size = self.reference.size_bytes();
        if size == 0 {
            return (0, 0);
        }
        let offset = self.rng.random_range(0..size);
        let most = (size - offset).min(100_000);
        (offset, self.rng.random_range(1..=most) as u32)
    }

    async fn step(&mut self) {
        match self.rng.random_range(0..100u32) {
            0..=39 => self.write().await,
            40..=54 => self.zero().await,
            55..=64 => self.check_head().await,
            65..=71 => self.snap_create(),
            72..=74 => self.snap_remove(),
            75..=79 => self.resize().await,
            80..=83 => self.stop().await,
            84..=87 => self.check_all().await,
            _ => self.migrate().await,
        }
    }

    async fn write(&mut self) {
        let (offset, length) = self.range();
        if length == 0 {
            return;
        }
        let fua = self.rng.random_bool(0.1);
        let sent = Bytes::from(self.reference.write_tagged(offset, length.into()));
        self.client()
            .await
            .write(offset, sent, fua)
            .await
            .expect("a write");
        if self.rng.random_bool(0.1) {
            self.client().await.flush().await.expect("a flush");
        }
    }

    async fn zero(&mut self) {
        let (offset, length) = self.range();
        if length == 0 {
            return;
        }
        let kind = self.rng.random_range(0..3u32);
        let client = self.client().await;
        match kind {
            0 => client.trim(offset, u64::from(length), false).await,
            1 => client.write_zeroes(offset, u64::from(length), true, false).await,
            _ => client.write_zeroes(offset, u64::from(length), false, false).await,
        }
        .expect("zeroes");
        self.reference.zero(offset, length.into());
    }

    async fn check_head(&mut self) {
        let seen = read_all(self.client().await).await;
        self.check(&self.reference.head, &seen, &self.spec);
    }

    async fn check_all(&mut self) {
        self.check_head().await;
        for (name, version) in &self.reference.snaps {
            let spec = format!("{}@{name}", self.spec);
            let seen = self.ferry.export(&spec);
            self.check(version, &seen, &spec);
        }
    }

    fn check(&self, version: &Version, seen: &[u8], spec: &str) {
        assert_eq!(
            seen.len() as u64,
            version.size_bytes(),
            "{spec} ({:?})",
            self.state
        );
        if let Err(violation) = version.check(0, seen) {
            panic!("{spec} ({:?}): {violation}", self.state);
        }
    }

    fn snap_create(&mut self) {
        if self.reference.snaps.len() >= 5 {
            return;
        }
        self.names += 1;
        let name = format!("s{}", self.names);
        self.ferry.ok(&[
            "snap",
            "create",
            "--no-progress",
            &format!("{}@{name}", self.spec),
        ]);
        self.reference.snap(&name);
    }

    fn snap_remove(&mut self) {
        let Some(name) = self.reference.snaps.keys().next().cloned() else {
            return;
        };
        self.ferry
            .ok(&["snap", "rm", "--no-progress", &format!("{}@{name}", self.spec)]);
        self.reference.snaps.remove(&name);
    }

    async fn resize(&mut self) {
        let kib = self.rng.random_range(1..MAX_SIZE >> 10);
        if kib << 10 == self.reference.size_bytes() {
            return;
        }
        // Half of the time under a client, which has to come again to see the new size.
        if self.rng.random_bool(0.5) {
            self.client().await;
        }
        self.ferry.ok(&[
            "resize",
            "--no-progress",
            "--allow-shrink",
            "--size",
            &format!("{kib}K"),
            &self.spec,
        ]);
        self.reference.resize(kib << 10);
        if let Some((served, client)) = self.served.take() {
            let _ = client.disconnect().await;
            let client = connect(&served.socket, &self.spec).await;
            self.served = Some((served, client));
        }
    }

    async fn migrate(&mut self) {
        match self.state {
            State::Plain => self.prepare().await,
            State::Prepared if self.rng.random_bool(0.25) => self.abort().await,
            State::Prepared => {
                self.ferry
                    .ok(&["migration", "execute", "--no-progress", &self.spec]);
                self.state = State::Executed;
            }
            State::Executed if self.rng.random_bool(0.3) => self.abort().await,
            State::Executed => {
                self.ferry
                    .ok(&["migration", "commit", "--no-progress", &self.spec]);
                self.state = State::Plain;
                self.before = None;
            }
        }
        self.check_all().await;
    }

    async fn prepare(&mut self) {
        self.stop().await;
        self.names += 1;
        let pool = ["rbd", "fast"][self.rng.random_range(0..2usize)];
        let target = format!("{pool}/image{}", self.names);
        let layout = LAYOUTS[self.rng.random_range(0..LAYOUTS.len())];
        self.ferry
            .ok(&[&["migration", "prepare", &self.spec, &target], layout].concat());
        self.before = Some((self.reference.snaps.clone(), self.spec.clone()));
        self.spec = target;
        self.state = State::Prepared;
    }

    async fn abort(&mut self) {
        self.stop().await;
        let Some((snaps, spec)) = self.before.take() else {
            return;
        };
        // What the abort cannot keep it must name before it drops it.
        let new: Vec<&String> = self
            .reference
            .snaps
            .keys()
            .filter(|name| !snaps.contains_key(*name))
            .collect();
        if !new.is_empty() {
            let refused = self
                .ferry
                .rbd(&["migration", "abort", "--no-progress", &self.spec]);
            assert_eq!(refused.code, 16, "{refused}");
            for name in new {
                assert!(refused.stderr.contains(name.as_str()), "{refused}");
            }
        }
        self.ferry
            .ok(&["migration", "abort", "--no-progress", "--force", &self.spec]);
        self.reference.snaps = snaps;
        self.spec = spec;
        self.state = State::Plain;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn random_histories_through_nbd_and_the_command_equal_the_reference() {
    let steps = std::env::var("FERRY_STEPS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(60u32);
    let histories = std::env::var("FERRY_HISTORIES")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(2u64);
    let first = seed("model through NBD");
    for history in 0..histories {
        println!("history {history} of seed {first}");
        let mut world = World::new(first.wrapping_add(history));
        for _ in 0..steps {
            world.step().await;
        }
        world.check_all().await;
        world.stop().await;
    }
}
