//! Groups that Ferry and Ceph's own `rbd` share on one cluster: each lists, snapshots, rolls back and removes what the other
//! made, and sees the same.

#![allow(clippy::unwrap_used)] // A test fails by panicking.

use ferry_e2e::ceph::unique;
use ferry_e2e::load::connect;
use ferry_e2e::{Ferry, Side, check_maps};

/// Images `a` in one pool and `c` in another, with `g`, which has both.
struct World {
    ferry: Ferry,
    place: String,
    other: String,
}

impl World {
    fn new(maker: Side) -> Option<Self> {
        let ferry = Ferry::on_ceph()?;
        let namespace = unique("groups");
        let (place, other) = (format!("rbd/{namespace}"), format!("other/{namespace}"));
        let world = Self { ferry, place, other };
        for line in [
            "namespace create P",
            "namespace create O",
            "create --size 8M P/a",
            "create --size 8M O/c",
            "group create P/g",
            "group image add P/g P/a",
            "group image add P/g O/c",
        ] {
            world.ok(maker, line);
        }
        Some(world)
    }

    fn words(&self, line: &str) -> Vec<String> {
        let place = |word: &str| match word.split_once('/') {
            Some(("P", name)) => format!("{}/{name}", self.place),
            Some(("O", name)) => format!("{}/{name}", self.other),
            _ if word == "P" => self.place.clone(),
            _ if word == "O" => self.other.clone(),
            _ => word.to_owned(),
        };
        line.split(' ').map(place).collect()
    }

    fn ok(&self, side: Side, line: &str) -> String {
        self.ferry.ok_as(side, &self.words(line))
    }

    fn code(&self, side: Side, line: &str) -> i32 {
        self.ferry.run_as(side, &self.words(line)).code
    }

    /// What both sides print, which is the same.
    #[track_caller]
    fn both(&self, line: &str) -> String {
        let [ours, theirs] = Side::BOTH.map(|side| self.ok(side, line));
        assert_eq!(ours, theirs, "{line}");
        ours
    }

    fn fill(&self, side: Side) {
        let pattern = [
            "bench",
            "--io-type",
            "write",
            "--io-size",
            "1M",
            "--io-total",
            "2M",
        ];
        for image in ["P/a", "O/c"] {
            // Something new at least; what it is, the exports tell.
            let mut words: Vec<String> = pattern.iter().map(|word| (*word).to_owned()).collect();
            words.extend(self.words(image));
            self.ferry.ok_as(side, &words);
        }
    }

    fn bytes(&self, side: Side) -> [Vec<u8>; 2] {
        [format!("{}/a", self.place), format!("{}/c", self.other)]
            .map(|spec| self.ferry.export_as(side, &spec))
    }
}

fn shared(maker: Side) {
    let Some(world) = World::new(maker) else { return };
    let other = maker.other();
    assert!(world.both("group image ls P/g").contains("/a "));
    world.both("group image ls P/g --format json");
    world.both("group ls P --format xml");
    world.ok(maker, "group snap create P/g@empty");
    let before = world.bytes(other);
    world.fill(maker);
    let filled = world.bytes(other);
    assert_ne!(before, filled);
    world.ok(other, "group snap create P/g@filled");
    for line in [
        "group snap ls P/g",
        "snap ls --all P/a",
        "snap ls --all O/c --format json",
        "info P/a",
        "info O/c --format json",
    ] {
        world.both(line);
    }
    assert_eq!(world.code(other, "group snap create P/g@filled"), 17);
    world.ok(other, "group snap rollback --no-progress P/g@empty");
    assert_eq!(world.bytes(maker), before);
    world.ok(maker, "group snap rollback --no-progress P/g@filled");
    assert_eq!(world.bytes(other), filled);
    for spec in [format!("{}/a", world.place), format!("{}/c", world.other)] {
        check_maps(&world.ferry, &spec, &[], "rolled back twice");
    }
    for side in Side::BOTH {
        assert_eq!(world.code(side, "migration prepare P/a O/a"), 16);
        assert_eq!(world.code(side, "group create P/g"), 17);
    }
    world.ok(other, "group snap rename P/g@filled f");
    world.ok(maker, "group snap rm P/g@f");
    world.ok(other, "group snap rm P/g@empty");
    for side in Side::BOTH {
        assert_eq!(world.code(side, "rm --no-progress P/a"), 31);
    }
    // A migration by one, finished by the other, and one that is taken back.
    world.ok(maker, "migration prepare P/a O/a");
    assert!(world.both("group image ls P/g").contains("/a "));
    world.ok(other, "migration abort --no-progress O/a");
    assert!(world.both("info P/a").contains("group: "));
    world.ok(maker, "migration prepare P/a O/a");
    world.ok(other, "migration execute --no-progress O/a");
    world.ok(other, "migration commit --no-progress O/a");
    assert!(world.both("info O/a").contains("group: "));
    world.both("group image ls P/g --format json");
    world.ok(other, "group rename P/g P/k");
    world.ok(maker, "group image rm P/k O/a");
    world.ok(other, "group rm P/k");
    assert_eq!(world.both("group ls P"), "");
    for image in ["O/a", "O/c"] {
        world.ok(maker, &format!("rm --no-progress {image}"));
    }
}

#[test]
fn a_group_that_ferry_made_is_used_by_ceph() {
    shared(Side::Ferry);
}

#[test]
fn a_group_that_ceph_made_is_used_by_ferry() {
    shared(Side::Ceph);
}

#[test]
fn ceph_s_group_snapshot_takes_the_lock_from_a_ferry_server_and_gives_it_back() {
    let Some(world) = World::new(Side::Ferry) else {
        return;
    };
    let spec = format!("{}/a", world.place);
    let served = world.ferry.serve(&[&spec]);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let client = connect(&served.socket, &spec).await;
        for (turn, side) in Side::BOTH.into_iter().cycle().take(4).enumerate() {
            let data = bytes::Bytes::from(vec![turn as u8 + 1; 4096]);
            client.write(0, data, true).await.unwrap();
            world.ok(side, &format!("group snap create P/g@s{turn}"));
        }
        client.disconnect().await.unwrap();
    });
    served.stop();
    for (turn, side) in Side::BOTH.into_iter().cycle().take(4).enumerate() {
        world.ok(side, &format!("group snap rollback --no-progress P/g@s{turn}"));
        let bytes = &world.bytes(side)[0];
        assert!(
            bytes[..4096].iter().all(|byte| usize::from(*byte) == turn + 1),
            "s{turn}"
        );
    }
    world.ok(Side::Ceph, "group rm P/g");
}
