//! An image with a past on a cluster, made by both sides in turns, and the bytes that each version of it holds.
//!
//! Promise: [`History::check`] passes only if both sides list the snapshots and read every version as they were, find the object maps
//! right, and if what each side's `rbd diff` says between two versions covers every byte in which they differ. There are two exceptions,
//! both of Ceph's. Of an object that an `execute` was killed in, its clients see an older version until the next `execute` (their reads
//! ask for the object, not for how much of its history is there; ours ask). And between two versions of an image that still needs its
//! source its `rbd diff` lists nothing.
//!
//! An `object-map check` succeeds on either side whatever it finds. [`map_fault`] knows where each says it, and [`check_map`] and
//! [`check_maps`] fail.

use std::fs;
use std::ops::Range;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::Value;

use crate::ceph::{Side, unique};
use crate::ferry::Ferry;

/// What the image is made of.
#[derive(Debug, Clone, Copy)]
pub struct Shape<'a> {
    /// Its size.
    pub image_bytes: usize,
    /// Length of the data that its first version begins with.
    pub data_bytes: usize,
    /// Options of `rbd import`.
    pub options: &'a [&'a str],
}

/// An image with two snapshots and a head, all of them different.
#[derive(Debug, Clone)]
pub struct History {
    /// Name of the image in the pool `rbd`.
    pub name: String,
    /// Snapshots, oldest first, then the head (`""`), with their bytes.
    pub versions: Vec<(String, Vec<u8>)>,
}

impl History {
    /// Imports the image by `maker`; the sides take the snapshots and write to it by turns.
    ///
    /// # Panics
    /// If a command fails.
    #[track_caller]
    pub fn new(ferry: &Ferry, maker: Side, seed: u64, shape: Shape<'_>) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let name = unique("source");
        let mut bytes = vec![0u8; shape.image_bytes];
        rng.fill(&mut bytes[..shape.data_bytes]);
        // An island, so that there are holes on both sides of something.
        let island = shape.image_bytes / 9 * 5;
        rng.fill(&mut bytes[island..island + 100_000]);
        let path = ferry.file("source");
        fs::write(&path, &bytes).expect("a file to import");
        let words = [
            &["import", "--no-progress"][..],
            shape.options,
            &[path.as_str(), name.as_str()],
        ]
        .concat();
        ferry.ok_as(maker, &words);
        let mut history = Self {
            name,
            versions: vec![(String::new(), bytes)],
        };
        for (snap, side) in [("s1", maker), ("s2", maker.other())] {
            let spec = format!("{}@{snap}", history.name);
            ferry.ok_as(side, &["snap", "create", "--no-progress", &spec]);
            let head = history.head().to_vec();
            let place = history.versions.len() - 1;
            history.versions.insert(place, (snap.to_owned(), head));
            let image = history.name.clone();
            history.write(ferry, side, &image);
        }
        history
    }

    /// Bytes of the head.
    ///
    /// # Panics
    /// Never: there is always a head.
    pub fn head(&self) -> &[u8] {
        &self.versions.last().expect("a head").1
    }

    /// The snapshots, oldest first.
    fn snaps(&self) -> &[(String, Vec<u8>)] {
        &self.versions[..self.versions.len() - 1]
    }

    /// The head holds these bytes from now on: somebody has written to it, and the caller knows that this is right.
    ///
    /// # Panics
    /// Never: there is always a head.
    pub fn head_is_now(&mut self, bytes: Vec<u8>) {
        self.versions.last_mut().expect("a head").1 = bytes;
    }

    /// A client has written to `range` of the head of `image`, which is this history wherever it is now. What it wrote there is its own
    /// business.
    ///
    /// # Panics
    /// If something beside the range is not as it was.
    #[track_caller]
    pub fn was_written(&mut self, ferry: &Ferry, image: &str, range: Range<usize>) {
        let bytes = ferry.export_as(Side::Ferry, image);
        let mut expected = self.head().to_vec();
        assert_eq!(bytes.len(), expected.len(), "{image} has another size");
        expected[range.clone()].copy_from_slice(&bytes[range.clone()]);
        let wrong = expected
            .iter()
            .zip(&bytes)
            .position(|(left, right)| left != right);
        assert!(
            wrong.is_none(),
            "{image} has changed at {wrong:?}, beside {range:?}"
        );
        self.head_is_now(bytes);
    }

    /// `side` writes a little to the head of `image`, which is this history wherever it is now.
    ///
    /// # Panics
    /// If it can't, or if more than that changed.
    #[track_caller]
    pub fn write(&mut self, ferry: &Ferry, side: Side, image: &str) {
        ferry.ok_as(
            side,
            &[
                "bench",
                "--io-type",
                "write",
                "--io-size",
                "4096",
                "--io-total",
                "65536",
                "--io-pattern",
                "rand",
                image,
            ],
        );
        let bytes = ferry.export_as(Side::Ferry, image);
        let blocks = self.head().chunks(4096).zip(bytes.chunks(4096));
        let changed = blocks.filter(|(before, after)| before != after).count();
        assert!(
            changed <= 16 && bytes.len() == self.head().len(),
            "{side:?} wrote 16 blocks to {image}, and {changed} are different"
        );
        self.head_is_now(bytes);
    }

    /// Whether `found` is the version at `index`, but for one object that shows an older version.
    fn lacks_one_object_of(&self, found: &[u8], index: usize, object_bytes: usize) -> bool {
        let (_, expected) = &self.versions[index];
        let mut objects = (0..)
            .zip(found.chunks(object_bytes).zip(expected.chunks(object_bytes)))
            .filter(|(_, (found, expected))| found != expected);
        let (Some((object, (shown, _))), None) = (objects.next(), objects.next()) else {
            return false;
        };
        let shows = |bytes: &Vec<u8>| bytes.chunks(object_bytes).nth(object) == Some(shown);
        found.len() == expected.len() && self.versions[..index].iter().any(|(_, older)| shows(older))
    }

    /// Every version of `image` is as it was, in the eyes of both sides; there are no others, and the object maps hold.
    ///
    /// # Panics
    /// If not; `when` is for the message.
    #[track_caller]
    pub fn check(&self, ferry: &Ferry, image: &str, when: &str) {
        let state = ferry.migration_state(image);
        let needs_source = matches!(state.as_str(), "prepared" | "executing");
        self.check_list(ferry, image, when);
        let mut older: Option<&(String, Vec<u8>)> = None;
        for (index, version) in self.versions.iter().enumerate() {
            let (snap, expected) = version;
            let spec = match snap.is_empty() {
                true => image.to_owned(),
                false => format!("{image}@{snap}"),
            };
            for side in Side::BOTH {
                let found = ferry.export_as(side, &spec);
                let is_right = found == *expected
                    || side == Side::Ceph
                        && state == "executing"
                        && self.lacks_one_object_of(&found, index, ferry.object_bytes(image));
                assert!(is_right, "{when}: {side:?} reads {spec} otherwise");
                // Between two versions of an image that still needs its source, Ceph's `rbd diff` lists nothing (16.2.15).
                if side == Side::Ferry || older.is_none() || !needs_source {
                    check_diff(ferry, side, &spec, older, expected, when);
                }
            }
            older = Some(version);
        }
        let snaps: Vec<&str> = self.snaps().iter().map(|(snap, _)| snap.as_str()).collect();
        check_maps(ferry, image, &snaps, when);
    }

    /// Both sides list the snapshots that `image` should have, with their sizes, and no others.
    #[track_caller]
    fn check_list(&self, ferry: &Ferry, image: &str, when: &str) {
        let expected: Vec<(&str, u64)> = self
            .snaps()
            .iter()
            .map(|(snap, bytes)| (snap.as_str(), bytes.len() as u64))
            .collect();
        for side in Side::BOTH {
            let list = parsed(&ferry.ok_as(side, &["snap", "ls", "--format", "json", image]));
            let listed: Vec<(&str, u64)> = list
                .as_array()
                .expect("a list of snapshots")
                .iter()
                .map(|snap| {
                    let name = snap["name"].as_str().expect("a name");
                    (name, snap["size"].as_u64().expect("a size"))
                })
                .collect();
            assert_eq!(
                listed, expected,
                "{when}: {side:?} lists other snapshots of {image}"
            );
        }
    }
}

/// What `side` says of the object map of `spec` (an image, or a snapshot of one) if it finds it wrong, or what Ceph's `info` says if
/// the map is marked as invalid. Neither minds marks of objects that are not there.
///
/// # Panics
/// If it can't be checked.
#[track_caller]
pub fn map_fault(ferry: &Ferry, side: Side, spec: &str) -> Option<String> {
    // A map that is marked as invalid already is not compared any more, so the check alone may find nothing.
    found_wrong(ferry, side, spec).or_else(|| marked_invalid(ferry, spec))
}

/// `side` finds nothing wrong with the object map of `spec`, and nobody has marked it as invalid.
///
/// # Panics
/// If not; `when` is for the message.
#[track_caller]
pub fn check_map(ferry: &Ferry, side: Side, spec: &str, when: &str) {
    if let Some(fault) = map_fault(ferry, side, spec) {
        panic!("{when}: {side:?} finds the object map of {spec} wrong: {fault}");
    }
}

/// The same of both sides, for the head of `image` and for these snapshots.
///
/// # Panics
/// If not; `when` is for the message.
#[track_caller]
pub fn check_maps(ferry: &Ferry, image: &str, snaps: &[&str], when: &str) {
    // Ours looks at the maps of an image and of all of its snapshots at once, Ceph's at the one that is named.
    if let Some(fault) = found_wrong(ferry, Side::Ferry, image) {
        panic!("{when}: Ferry finds the object maps of {image} wrong: {fault}");
    }
    check_map(ferry, Side::Ceph, image, when);
    for snap in snaps {
        check_map(ferry, Side::Ceph, &format!("{image}@{snap}"), when);
    }
}

#[track_caller]
fn found_wrong(ferry: &Ferry, side: Side, spec: &str) -> Option<String> {
    let words = ["object-map", "check", "--no-progress", spec];
    // Ceph's says what it finds in its log, and nothing else tells that it found anything.
    let words = match side {
        Side::Ferry => words.to_vec(),
        Side::Ceph => [&["--log-to-stderr=true"][..], &words].concat(),
    };
    let check = ferry.run_as(side, &words).ok();
    let is_wrong = ["object map error", "wrong entries"]
        .iter()
        .any(|words| check.stderr.contains(words));
    is_wrong.then(|| check.to_string())
}

#[track_caller]
fn marked_invalid(ferry: &Ferry, spec: &str) -> Option<String> {
    let info = ferry.ok_as(Side::Ceph, &["info", spec]);
    info.contains("invalid").then_some(info)
}

/// What changed since `older` (or since there was nothing) lies in the extents that the `rbd diff` of `side` lists.
#[track_caller]
fn check_diff(
    ferry: &Ferry,
    side: Side,
    spec: &str,
    older: Option<&(String, Vec<u8>)>,
    newer: &[u8],
    when: &str,
) {
    for whole_object in [false, true] {
        let mut words = vec!["diff", "--format", "json", spec];
        if let Some((snap, _)) = older {
            words.extend(["--from-snap", snap]);
        }
        if whole_object {
            words.push("--whole-object");
        }
        let extents = parsed(&ferry.ok_as(side, &words));
        // The bytes outside of all extents are those of the older version.
        let mut patched = older.map_or_else(|| vec![0; newer.len()], |(_, bytes)| bytes.clone());
        patched.resize(newer.len(), 0);
        for extent in extents.as_array().expect("a list of extents") {
            let number = |key: &str| extent[key].as_u64().expect("a number") as usize;
            let start = number("offset").min(newer.len());
            let end = (start + number("length")).min(newer.len());
            if extent["exists"] == "false" {
                let zeroes = newer[start..end].iter().all(|byte| *byte == 0);
                assert!(zeroes, "{when}: {side:?}, {words:?} calls data at {start} zeroes");
            }
            patched[start..end].copy_from_slice(&newer[start..end]);
        }
        let wrong = patched.iter().zip(newer).position(|(left, right)| left != right);
        assert!(
            wrong.is_none(),
            "{when}: {side:?}, {words:?} leaves out a change at {wrong:?}"
        );
    }
}

/// What a command said as JSON.
#[track_caller]
fn parsed(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}
