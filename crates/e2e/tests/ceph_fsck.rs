//! The check of images on a real cluster, which the test has to itself: what Ceph's own `rbd` made is sound in our eyes, in every state
//! of its migrations too; what is damaged behind its back is found and named, and works for Ceph's `rbd` again when it is repaired.

#![allow(clippy::unwrap_used)] // A test fails by panicking.

use ferry_e2e::ceph::OwnCluster;
use ferry_e2e::{Ferry, Finished, Side, run};
use serde_json::Value;

/// Ceph's own `rbd` died, as it does at times: then nothing can be said.
struct Crash(String);

struct World {
    ferry: Ferry,
    // Ends after it.
    _cluster: OwnCluster,
}

impl World {
    fn new() -> Option<Self> {
        let shared = Ferry::on_ceph()?;
        let cluster = OwnCluster::new();
        let ferry = shared.on_another_ceph(cluster.conf());
        Some(Self {
            ferry,
            _cluster: cluster,
        })
    }

    fn run(&self, side: Side, line: &str) -> Finished {
        let words: Vec<&str> = line.split(' ').collect();
        // Ceph makes images of format 1 only when it is told twice.
        run(self.ferry.command_as(side, &words).env("RBD_FORCE_ALLOW_V1", "1"))
    }

    /// Ceph's `rbd`, which must succeed, unless it crashes.
    fn ceph(&self, line: &str) -> Result<String, Crash> {
        let ended = self.run(Side::Ceph, line);
        match ended.code {
            // By a signal.
            -1 => Err(Crash(ended.to_string())),
            _ => Ok(ended.ok().stdout),
        }
    }

    /// What is found, as `(state, kind, place and words)`; that the cluster checks itself is left out.
    fn findings(&self, options: &str) -> Vec<(String, String, String)> {
        let said = self.run(Side::Ferry, &format!("fsck --no-progress --format json{options}"));
        let parsed: Value =
            serde_json::from_str(&said.stdout).unwrap_or_else(|error| panic!("{error}: {said:?}"));
        let text = |finding: &Value, key: &str| finding[key].as_str().unwrap().to_owned();
        let findings = parsed.as_array().unwrap().iter().map(|finding| {
            let words = format!("{}: {}", text(finding, "place"), text(finding, "what"));
            (text(finding, "state"), text(finding, "kind"), words)
        });
        findings
            .filter(|(_, kind, _)| kind != "engine-not-checked")
            .collect()
    }

    #[track_caller]
    fn sound(&self, when: &str) {
        assert_eq!(self.findings(""), [], "{when}");
    }

    /// A field of what Ceph says of an image.
    fn info(&self, image: &str, field: &str) -> Result<String, Crash> {
        let info = self.ceph(&format!("info --format json {image}"))?;
        let info: Value = serde_json::from_str(&info).unwrap();
        Ok(info[field].as_str().unwrap().to_owned())
    }

    /// `rados` in the pool `rbd`.
    #[track_caller]
    fn rados(&self, line: &str) -> String {
        let words: Vec<&str> = ["-p", "rbd"].into_iter().chain(line.split(' ')).collect();
        self.ferry.rados(&words)
    }
}

const WRITE: &str = "bench --io-type write --io-size 64K --io-total 2M --io-pattern rand";

#[test]
fn what_ceph_made_is_sound_and_what_is_damaged_is_found_and_works_for_ceph_when_repaired() {
    let Some(world) = World::new() else { return };
    if let Err(Crash(how)) = every_state_is_sound(&world).and_then(|()| damage_is_found(&world)) {
        eprintln!("LEFT OUT: Ceph's rbd died: {how}");
    }
}

/// Images, snapshots, clones of both formats, a group with a snapshot, the trash, namespaces, a data pool, format 1; and migrations.
fn every_state_is_sound(world: &World) -> Result<(), Crash> {
    for line in [
        "namespace create rbd/n",
        "create --size 16M vm",
        "snap create --no-progress vm@s",
        "snap protect vm@s",
        "clone --rbd-default-clone-format 1 vm@s one",
        "clone --rbd-default-clone-format 2 vm@s other/two",
        "clone --rbd-default-clone-format 2 vm@s rbd/n/three",
        "create --size 16M --data-pool other apart",
        "create --size 8M --object-size 1M --stripe-unit 64K --stripe-count 4 striped",
        "create --size 8M rbd/n/within",
        "create --size 8M gone",
        "trash mv gone",
        "create --size 8M kept",
        "group create g",
        "group image add g kept",
        "group image add g other/two",
        "group snap create g@gs",
        "create --image-format 1 --size 8M --object-size 1M old",
        "snap create --no-progress old@s",
    ] {
        world.ceph(line)?;
    }
    for image in ["vm", "one", "other/two", "rbd/n/three", "apart", "striped", "old"] {
        world.ceph(&format!("{WRITE} {image}"))?;
    }
    world.sound("all that images can be");
    // With these a migration is refused.
    world.ceph("group snap rm g@gs")?;
    for (source, end) in [
        ("one", "abort"),
        ("one", "commit"),
        ("vm", "abort"),
        ("old", "commit"),
    ] {
        world.ceph(&format!("migration prepare {source} other/moved-{source}"))?;
        world.sound(&format!("{source} prepared"));
        world.ceph(&format!("{WRITE} other/moved-{source}"))?;
        world.sound(&format!("{source} written"));
        world.ceph(&format!("migration execute --no-progress other/moved-{source}"))?;
        world.sound(&format!("{source} executed"));
        world.ceph(&format!("migration {end} --no-progress other/moved-{source}"))?;
        world.sound(&format!("{source}, after {end}"));
    }
    Ok(())
}

fn damage_is_found(world: &World) -> Result<(), Crash> {
    for line in [
        "create --size 16M mapless",
        "create --size 16M headless",
        "create --image-format 1 --size 8M --object-size 1M older",
        "group create lost",
        "group image add lost striped",
    ] {
        world.ceph(line)?;
    }
    for image in ["mapless", "headless", "older"] {
        world.ceph(&format!("{WRITE} {image}"))?;
    }
    let (mapless, headless) = (world.info("mapless", "id")?, world.info("headless", "id")?);
    let older = world.info("older", "block_name_prefix")?;
    let value = world.ferry.path("value");
    let get = format!("getomapval rbd_group_directory name_lost {}", value.display());
    world.rados(&get);
    let group = String::from_utf8(std::fs::read(value).unwrap().split_off(4)).unwrap();
    for line in [
        "rm rbd_id.vm".to_owned(),
        format!("rm rbd_object_map.{mapless}"),
        format!("rm rbd_header.{headless}"),
        "rm older.rbd".to_owned(),
        format!("rmomapkey rbd_group_directory id_{group}"),
        "rmomapkey rbd_group_directory name_lost".to_owned(),
        "create rbd_group_header.cafe".to_owned(),
        "create rb.0.cafe.1.000000000007".to_owned(),
        "create rbd_data.cafe.0000000000000007".to_owned(),
        "rmomapkey rbd_directory name_apart".to_owned(),
    ] {
        world.rados(&line);
    }
    let expected = [
        ("damaged", "id-object", "rbd/vm"),
        ("leftover", "object-map-missing", "rbd/mapless"),
        ("damaged", "header-missing", "rbd/headless"),
        ("leftover", "name-of-nothing", "rbd/older"),
        ("leftover", "data-stray", &older),
        ("damaged", "group-header-stray", &group),
        ("damaged", "group-image", "rbd/striped"),
        ("leftover", "group-header-stray", "cafe"),
        ("leftover", "data-stray", "rb.0.cafe.1"),
        ("leftover", "data-stray", "rbd_data.cafe"),
        ("damaged", "directory-one-way", "rbd/apart"),
    ];
    let found = world.findings("");
    let is = |(state, kind, words): &(String, String, String), what: &(&str, &str, &str)| {
        state == what.0 && kind == what.1 && words.contains(what.2)
    };
    for damage in &expected {
        assert!(
            found.iter().any(|found| is(found, damage)),
            "{damage:?}: {found:#?}"
        );
    }
    // Of the image that lost its header: what it had.
    let more = ("leftover", "data-stray", headless.as_str());
    let unexpected: Vec<_> = found
        .iter()
        .filter(|found| !expected.iter().chain([&more]).any(|damage| is(found, damage)))
        .collect();
    assert!(unexpected.is_empty(), "{unexpected:#?}");
    let repaired = world.findings(" --repair");
    let mended = repaired.iter().filter(|found| found.0 == "repaired");
    let mut kinds: Vec<&str> = mended.map(|found| found.1.as_str()).collect();
    kinds.sort_unstable();
    let mendable = [
        "directory-one-way",
        "group-header-stray",
        "id-object",
        "name-of-nothing",
        "object-map-missing",
    ];
    assert_eq!(kinds, mendable, "{repaired:#?}");
    for image in ["vm", "mapless", "apart"] {
        world.ceph(&format!("info {image}"))?;
        world.ceph(&format!("object-map check --no-progress {image}"))?;
        assert!(
            !world.ceph(&format!("info {image}"))?.contains("invalid"),
            "{image}"
        );
    }
    Ok(())
}
