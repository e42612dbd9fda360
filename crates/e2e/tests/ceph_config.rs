//! `rbd config` of both sides on one cluster: the same answers, and each honours what the other has set.

#![allow(clippy::unwrap_used)] // A test fails by panicking.

use ferry_e2e::ceph::unique;
use ferry_e2e::{Ferry, Side};

const KEY: &str = "rbd_clone_copy_on_read";

/// A pool of its own, with an image; removed with the last.
struct World {
    ferry: Ferry,
    pool: String,
    client: String,
}

impl World {
    fn new() -> Option<Self> {
        let ferry = Ferry::on_ceph()?;
        let (pool, client) = (unique("config"), unique("client.config"));
        let world = Self { ferry, pool, client };
        for line in ["pool create POOL", "pool init POOL", "create --size 8M POOL/i"] {
            world.ok(Side::Ferry, line);
        }
        Some(world)
    }

    fn words(&self, line: &str) -> Vec<String> {
        let line = line.replace("POOL", &self.pool).replace("CLIENT", &self.client);
        line.replace("KEY", KEY).split(' ').map(str::to_owned).collect()
    }

    #[track_caller]
    fn ok(&self, side: Side, line: &str) -> String {
        self.ferry.ok_as(side, &self.words(line))
    }

    /// Output, code and the last line of what went wrong, which are the same of both sides.
    #[track_caller]
    fn both(&self, line: &str) -> (String, i32) {
        let [ours, theirs] = Side::BOTH.map(|side| {
            let done = self.ferry.run_as(side, &self.words(line));
            let said = done.stderr.lines().rfind(|line| !line.starts_with("rbd: note: "));
            let said = said.unwrap_or_default().to_owned();
            // The monitors, not Ceph's command, say why a value is refused.
            let said = said
                .split(": error parsing")
                .next()
                .unwrap_or_default()
                .to_owned();
            (done.stdout, done.code, said)
        });
        let reason = ours.2.strip_suffix(": (22) Invalid argument");
        match reason {
            Some(before) if before.starts_with("rbd: error setting") => {
                assert!(
                    theirs.2.starts_with(before),
                    "{line}: {} and {}",
                    ours.2,
                    theirs.2
                );
                assert_eq!((&ours.0, ours.1), (&theirs.0, theirs.1), "{line}");
            }
            _ => assert_eq!(ours, theirs, "{line}"),
        }
        (ours.0, ours.1)
    }

    /// What both sides list of the setting: value and source.
    #[track_caller]
    fn listed(&self, line: &str) -> (String, String) {
        self.listed_of(KEY, line)
    }

    #[track_caller]
    fn listed_of(&self, key: &str, line: &str) -> (String, String) {
        let [ours, theirs] = Side::BOTH.map(|side| {
            let listed = self.ok(side, &format!("{line} --format json"));
            let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
            let found = listed
                .as_array()
                .unwrap()
                .iter()
                .find(|one| one["name"] == key)
                .cloned();
            found.unwrap()
        });
        assert_eq!(ours, theirs, "{line}");
        let text = |key: &str| ours[key].as_str().unwrap().to_owned();
        (text("value"), text("source"))
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for line in [
            "config global rm CLIENT KEY",
            "rm --no-progress POOL/i",
            "pool remove POOL",
        ] {
            let _ = self.ferry.run_as(Side::Ferry, &self.words(line));
        }
    }
}

#[test]
fn settings_of_images_and_pools_are_read_listed_and_removed_by_the_other_side() {
    let Some(world) = World::new() else { return };
    for maker in Side::BOTH {
        for (what, name, source) in [("pool", "POOL", "pool"), ("image", "POOL/i", "image")] {
            assert_eq!(world.both(&format!("config {what} get {name} KEY")).1, 2);
            world.ok(maker, &format!("config {what} set {name} KEY true"));
            assert_eq!(world.both(&format!("config {what} get {name} KEY")).0, "true\n");
            let expected = ("true".to_owned(), source.to_owned());
            assert_eq!(world.listed(&format!("config {what} list {name}")), expected);
            assert_eq!(world.listed("config image ls POOL/i"), expected);
        }
        world.ok(maker, "config image set POOL/i KEY 0");
        assert_eq!(
            world.listed("config image ls POOL/i"),
            ("0".to_owned(), "image".to_owned())
        );
        world.ok(maker.other(), "config image rm POOL/i KEY");
        assert_eq!(
            world.listed("config image ls POOL/i"),
            ("true".to_owned(), "pool".to_owned())
        );
        world.ok(maker.other(), "config pool remove POOL KEY");
        assert_eq!(
            world.listed("config image ls POOL/i"),
            ("false".to_owned(), "config".to_owned())
        );
    }
    for wrong in [
        "config image rm POOL/i KEY",
        "config pool rm POOL KEY",
        "config image set POOL/i KEY banana",
        "config image set POOL/i KEY yes",
        "config image set POOL/i KEY",
        "config image set POOL/i bogus 1",
        "config image get POOL/i rbd_nope",
        "config pool set POOL KEY banana",
        "config pool set POOL KEY 0x1",
        "config pool get nosuchpool KEY",
        "config image get POOL/nosuch KEY",
    ] {
        assert_ne!(world.both(wrong).1, 0, "{wrong}");
    }
}

#[test]
fn settings_of_the_cache_take_what_ceph_takes_and_show_the_same() {
    let Some(world) = World::new() else { return };
    let size = &["0", "4096B", "1K", "32M", "32Mi"][..];
    let no_size = &[
        "32MiB",
        "32m",
        "1.5M",
        "0x10",
        "banana",
        "16E",
        "99999999999999999999",
    ][..];
    for (key, good, bad) in [
        ("rbd_cache", &["false", "1"][..], &["no", "banana"][..]),
        ("rbd_cache_writethrough_until_flush", &["true", "0"], &["off"]),
        (
            "rbd_cache_policy",
            &["writethrough", "writeback", "writearound"],
            &["WriteBack", "1"],
        ),
        ("rbd_cache_max_dirty", size, no_size),
        ("rbd_readahead_max_bytes", size, no_size),
    ] {
        // Ceph's command turns this one off for itself, and lists that.
        if key != "rbd_cache_writethrough_until_flush" {
            world.listed_of(key, "config image ls POOL/i");
        }
        for (what, name) in [("pool", "POOL"), ("image", "POOL/i")] {
            for (index, value) in good.iter().enumerate() {
                let maker = Side::BOTH[index % 2];
                world.ok(maker, &format!("config {what} set {name} {key} {value}"));
                let listed = world.listed_of(key, "config image ls POOL/i");
                assert_eq!(listed, ((*value).to_owned(), what.to_owned()), "{key}");
            }
            for value in bad {
                let line = format!("config {what} set {name} {key} {value}");
                assert_eq!(world.both(&line).1, 22, "{line}");
            }
        }
        for value in good {
            world.ok(Side::Ferry, &format!("config global set CLIENT {key} {value}"));
            assert_eq!(world.both(&format!("config global get CLIENT {key}")).1, 0);
        }
        for value in bad.iter().filter(|value| !["no", "off"].contains(value)) {
            assert_eq!(
                world.both(&format!("config global set CLIENT {key} {value}")).1,
                22
            );
        }
        world.ok(Side::Ceph, &format!("config global rm CLIENT {key}"));
    }
}

#[test]
fn settings_that_the_monitors_keep_are_those_of_both_sides() {
    let Some(world) = World::new() else { return };
    for maker in Side::BOTH {
        assert_eq!(world.both("config global get CLIENT KEY").1, 2);
        world.ok(maker, "config global set CLIENT KEY 1");
        assert_eq!(world.both("config global get CLIENT KEY").0, "true\n");
        let listed = world.both("config global list CLIENT --format json").0;
        assert!(listed.contains(&world.client), "{listed}");
        world.both("config global list CLIENT");
        world.both("config global list CLIENT --format xml --pretty-format");
        world.ok(maker.other(), "config global rm CLIENT KEY");
        assert_eq!(world.both("config global rm CLIENT KEY").1, 0);
    }
    for wrong in [
        "config global get osd KEY",
        "config global list osd",
        "config global get",
        "config global get global",
        "config global get client.nobody KEY",
        "config global set client.a/b KEY true",
        "config global set CLIENT KEY banana",
        "config global set CLIENT KEY",
        "config global set CLIENT bogus 1",
        "config global remove CLIENT rbd_nope",
    ] {
        assert_ne!(world.both(wrong).1, 0, "{wrong}");
    }
}

#[test]
fn what_the_cluster_s_configuration_says_is_the_source_of_what_nobody_has_set() {
    let Some(mut world) = World::new() else { return };
    let conf = std::fs::read_to_string(world.ferry.ceph_conf()).unwrap();
    let more = world.ferry.path("more.conf");
    std::fs::write(&more, format!("{conf}\n[client]\n{KEY} = true\n")).unwrap();
    let other = Ferry::on_ceph().unwrap().on_another_ceph(more);
    let before = std::mem::replace(&mut world.ferry, other);
    let listed = world.listed("config image list POOL/i");
    world.ferry = before;
    assert_eq!(listed, ("true".to_owned(), "config".to_owned()));
}
