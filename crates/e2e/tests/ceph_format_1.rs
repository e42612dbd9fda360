//! Images of format 1 on a real cluster: both sides make the same bytes, read what the other made, and take their migrations
//! over from one another.

#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::fs;

use ferry_e2e::ceph::unique;
use ferry_e2e::load::connect;
use ferry_e2e::{Ferry, Finished, Librbd, Side, run};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

const SIZE: usize = 6 << 20;

/// A command that may make images of format 1.
fn old(ferry: &Ferry, side: Side, line: &str) -> Finished {
    let words: Vec<&str> = line.split(' ').collect();
    let mut command = ferry.command_as(side, &words);
    run(command.env("RBD_FORCE_ALLOW_V1", "1"))
}

fn write(ferry: &Ferry, side: Side, name: &str, offset: u64, byte: u8, length: u32) {
    if side == Side::Ceph {
        let mut client = Librbd::open(ferry, "rbd", name);
        client.ok(&format!("write {offset} {length} {byte}"));
        client.ok("flush");
        client.close();
        return;
    }
    let spec = format!("rbd/{name}");
    let served = ferry.serve(&[&spec]);
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let client = connect(&served.socket, &spec).await;
        let data = bytes::Bytes::from(vec![byte; length as usize]);
        client.write(offset, data, false).await.unwrap();
        client.flush().await.unwrap();
        client.disconnect().await.unwrap();
    });
    served.stop();
}

/// An image with two snapshots, made by one side, written by both; and what its versions hold.
struct Past {
    name: String,
    versions: Vec<(&'static str, Vec<u8>)>,
}

impl Past {
    fn new(ferry: &Ferry, maker: Side, seed: u64) -> Self {
        let name = unique("old");
        old(
            ferry,
            maker,
            &format!("create --image-format 1 --size 6M --object-size 1M {name}"),
        )
        .ok();
        let mut rng = StdRng::seed_from_u64(seed);
        let mut bytes = vec![0u8; SIZE];
        let mut versions = Vec::new();
        for snap in ["a", "b", ""] {
            for side in [maker, maker.other()] {
                let at = rng.random_range(0..SIZE - 300_000);
                let length = rng.random_range(1..300_000usize);
                let byte = rng.random_range(1..=255u8);
                write(ferry, side, &name, at as u64, byte, length as u32);
                bytes[at..at + length].fill(byte);
            }
            if !snap.is_empty() {
                let taker = if snap == "a" { maker } else { maker.other() };
                ferry.ok_as(
                    taker,
                    &["snap", "create", "--no-progress", &format!("{name}@{snap}")],
                );
            }
            versions.push((snap, bytes.clone()));
        }
        Self { name, versions }
    }

    fn write(&mut self, ferry: &Ferry, side: Side, image: &str, byte: u8) {
        write(ferry, side, image, 1_500_000, byte, 700_000);
        self.versions.last_mut().unwrap().1[1_500_000..2_200_000].fill(byte);
    }

    fn check(&self, ferry: &Ferry, image: &str, when: &str) {
        for side in Side::BOTH {
            for (snap, bytes) in &self.versions {
                let spec = match *snap {
                    "" => image.to_owned(),
                    snap => format!("{image}@{snap}"),
                };
                assert!(
                    ferry.export_as(side, &spec) == *bytes,
                    "{spec} as {side:?} reads it, {when}"
                );
            }
        }
    }
}

/// The header without the name of the data objects and the ids of snapshots.
fn header(ferry: &Ferry, name: &str) -> Vec<u8> {
    let file = ferry.file("header");
    ferry.rados(&["-p", "rbd", "get", &format!("{name}.rbd"), &file]);
    let mut bytes = fs::read(file).unwrap();
    let prefix = String::from_utf8_lossy(&bytes[40..64]).into_owned();
    let parts: Vec<&str> = prefix.trim_end_matches('\0').split('.').collect();
    assert!(
        matches!(parts[..], ["rb", "0", _, _]),
        "{prefix:?} names the data objects"
    );
    bytes[40..64].fill(0);
    bytes[88..96].fill(0);
    let snaps = u32::from_le_bytes(bytes[96..100].try_into().unwrap()) as usize;
    for n in 0..snaps {
        bytes[112 + 16 * n..][..8].fill(0);
    }
    bytes
}

/// What is printed of an image, without what differs between two of them.
fn printed(ferry: &Ferry, side: Side, name: &str) -> String {
    let mut out = String::new();
    for line in [
        "info NAME",
        "info --format json NAME",
        "info --format xml NAME@b",
        "snap ls --format json NAME",
        "snap ls NAME",
        "du --format json NAME",
        "diff --format json NAME",
        "status NAME",
        "lock ls NAME",
        "image-meta list NAME",
        "children NAME@b",
    ] {
        let line = line.replace("NAME", name);
        let words: Vec<&str> = line.split(' ').collect();
        let text = ferry.ok_as(side, &words);
        out.push_str(&format!("{line}: {text}\n").replace(name, "NAME"));
    }
    let ids = ["\"id\":", "\"snapshot_id\":", "block_name_prefix", "SNAPID"];
    let lines = out.split_inclusive([',', '\n']);
    let kept = lines.filter(|line| {
        !ids.iter().any(|id| line.contains(id))
            && !line.trim_start().starts_with(|c: char| c.is_ascii_digit())
    });
    kept.collect()
}

#[test]
fn images_of_format_1_are_the_same_bytes_and_print_the_same() {
    let Some(ferry) = Ferry::on_ceph() else { return };
    let made = Side::BOTH.map(|side| {
        let name = unique("old");
        old(
            &ferry,
            side,
            &format!("create --image-format 1 --size 8M --object-size 1M {name}"),
        )
        .ok();
        write(&ferry, side, &name, 5_000, 7, 2_000_000);
        for line in [
            "snap create --no-progress NAME@a",
            "snap create --no-progress NAME@b",
            "resize --no-progress --size 12M NAME",
            "snap create --no-progress NAME@gone",
            "snap rename NAME@a NAME@first",
            "snap rm --no-progress NAME@gone",
            "resize --no-progress --size 5M --allow-shrink NAME",
            "image-meta set NAME key value",
            "lock add NAME me",
        ] {
            let line = line.replace("NAME", &name);
            let words: Vec<&str> = line.split(' ').collect();
            ferry.ok_as(side, &words);
        }
        let new_name = unique("renamed");
        if side == Side::Ferry {
            // Ceph's loses the lock and the metadata of what it renames.
            ferry.ok_as(side, &["mv", &name, &new_name]);
            ferry.ok_as(side, &["mv", &new_name, &name]);
        }
        for locker in ferry.ok_as(side, &["lock", "ls", &name]).lines().skip(2) {
            let words: Vec<&str> = locker.split_whitespace().collect();
            ferry.ok_as(side, &["lock", "rm", &name, words[1], words[0]]);
        }
        name
    });
    let [ours, theirs] = &made;
    assert_eq!(header(&ferry, ours), header(&ferry, theirs));
    let prints = Side::BOTH.map(|side| made.clone().map(|name| printed(&ferry, side, &name)));
    assert_eq!(prints[0][0], prints[0][1], "as Ferry prints them");
    assert_eq!(prints[1][0], prints[1][1], "as Ceph prints them");
    assert_eq!(prints[0][0], prints[1][0], "as both print Ferry's");
    for format in ["plain", "json"] {
        let lists = Side::BOTH.map(|side| ferry.ok_as(side, &["ls", "-l", "--format", format]));
        // Other tests make and remove images meanwhile.
        let of_ours = lists.map(|list| {
            let parts = list.split_inclusive(if format == "json" { '}' } else { '\n' });
            let ours = parts.filter(|part| made.iter().any(|name| part.contains(name.as_str())));
            let words = ours.flat_map(|part| part.split_whitespace().map(str::to_owned));
            words.collect::<Vec<_>>()
        });
        assert_eq!(of_ours[0], of_ours[1]);
        assert!(!of_ours[0].is_empty());
    }
    for (name, side) in made.iter().zip([Side::Ceph, Side::Ferry]) {
        ferry.ok_as(side, &["snap", "purge", "--no-progress", name]);
        ferry.ok_as(side, &["rm", "--no-progress", name]);
        assert!(ferry.rados_objects("rbd", name).is_empty());
        let list = ferry.ok_as(side.other(), &["ls"]);
        assert!(!list.lines().any(|line| line == name), "{name} in {list}");
    }
}

#[test]
fn each_side_refuses_for_format_1_what_the_other_refuses() {
    let Some(ferry) = Ferry::on_ceph() else { return };
    let past = Past::new(&ferry, Side::Ceph, 1);
    let name = &past.name;
    for line in [
        "create --image-format 1 --size 1M NAME",
        "create --size 1M NAME",
        "clone NAME@a NAME-child",
        "snap protect NAME@a",
        "snap unprotect NAME@a",
        "snap rename NAME@a NAME@b",
        "trash mv NAME",
        "feature enable NAME exclusive-lock",
        "flatten --no-progress NAME",
        "object-map rebuild --no-progress NAME",
        "resize --no-progress --size 1M NAME",
        "rm --no-progress NAME",
        "migration prepare NAME --image-format 1",
        "migration status NAME",
    ] {
        let codes = Side::BOTH.map(|side| old(&ferry, side, &line.replace("NAME", name)).code);
        assert_eq!(codes[0], codes[1], "{line}");
        assert_ne!(codes[0], 0, "{line}");
    }
    let unforced = ["create", "--image-format", "1", "--size", "1M", "x"];
    for side in Side::BOTH {
        assert_eq!(ferry.run_as(side, &unforced).code, 22);
    }
    past.check(&ferry, name, "after all of that");
}

#[test]
fn an_image_of_format_1_is_in_no_group_in_the_eyes_of_both_sides() {
    let Some(ferry) = Ferry::on_ceph() else { return };
    let past = Past::new(&ferry, Side::Ferry, 2);
    let (name, group) = (&past.name, unique("group"));
    ferry.ok(&["group", "create", &group]);
    for verb in ["add", "rm"] {
        let said = Side::BOTH.map(|side| {
            let done = ferry.run_as(side, &["group", "image", verb, &group, name]);
            let lines: Vec<&str> = done.stderr.lines().collect();
            let said = lines.iter().find(|line| line.starts_with("rbd: ")).copied();
            (done.code, done.stdout.clone(), said.map(str::to_owned))
        });
        assert_eq!(said[0], said[1], "{verb}");
        assert_eq!(said[0].0, 2, "{verb}");
    }
    for side in Side::BOTH {
        assert_eq!(ferry.ok_as(side, &["group", "image", "ls", &group]), "");
    }
    past.check(&ferry, name, "after it was refused");

    // As format 2 it may be in one.
    ferry.ok(&["migration", "prepare", name]);
    ferry.ok(&["migration", "execute", "--no-progress", name]);
    ferry.ok(&["migration", "commit", "--no-progress", name]);
    ferry.ok_as(Side::Ceph, &["group", "image", "add", &group, name]);
    for side in Side::BOTH {
        let listed = ferry.ok_as(side, &["group", "image", "ls", &group]);
        assert_eq!(listed.trim_end(), format!("rbd/{name}"));
    }
    ferry.ok(&["group", "rm", &group]);
}

#[test]
fn a_migration_from_format_1_changes_hands_at_every_verb() {
    let Some(ferry) = Ferry::on_ceph() else { return };
    for combination in 0..16u64 {
        let side = |bit: u64| Side::BOTH[(combination >> bit & 1) as usize];
        let (prepares, executes, ends) = (side(0), side(1), side(2));
        let aborts = combination & 8 != 0;
        let mut past = Past::new(&ferry, side(3).other(), combination);
        let name = past.name.clone();
        // In place, and to another name.
        let target = if combination % 3 == 0 {
            name.clone()
        } else {
            unique("new")
        };
        let when = format!("{prepares:?} prepares, {executes:?} executes, {ends:?} ends; aborts: {aborts}");
        ferry.ok_as(prepares, &["migration", "prepare", &name, &target]);
        past.check(&ferry, &target, &format!("prepared; {when}"));
        let status = Side::BOTH.map(|side| ferry.ok_as(side, &["status", "--format", "json", &target]));
        for text in &status {
            assert!(text.contains("\"source_image_id\":\"\""), "{text}");
            assert!(text.contains("\"state\":\"prepared\""), "{text}");
        }
        past.write(&ferry, executes, &target, 1 + combination as u8);
        past.check(&ferry, &target, &format!("written; {when}"));
        ferry.migrate_as(executes, "execute", &target);
        past.check(&ferry, &target, &format!("executed; {when}"));
        if aborts {
            ferry.migrate_as(ends, "abort", &target);
            past.check(&ferry, &name, &format!("aborted; {when}"));
            for side in Side::BOTH {
                let list = ferry.ok_as(side, &["ls"]);
                assert!(list.lines().any(|line| line == name), "{when}");
                assert!(
                    ferry.ok_as(side, &["info", &name]).contains("format: 1"),
                    "{when}"
                );
            }
        } else {
            ferry.migrate_as(ends, "commit", &target);
            past.check(&ferry, &target, &format!("committed; {when}"));
            let left = ferry.rados_objects("rbd", &format!("{name}.rbd"));
            assert!(left.is_empty(), "{left:?} after {when}");
            assert!(ferry.ok_as(Side::Ceph, &["info", &target]).contains("format: 2"));
        }
    }
}
