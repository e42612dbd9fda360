//! Open images of both sides while the other side's commands change them: what an open handle sees of a change, and that snapshots are
//! one moment of what is being written.

#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use ferry_e2e::ceph::unique;
use ferry_e2e::ferry::wait_until;
use ferry_e2e::load::{connect, read_all};
use ferry_e2e::tools::installed;
use ferry_e2e::{Ferry, Librbd, Side, check_map, check_maps, run_ok};
use ferry_nbd::client::Client;

const MIB: u64 = 1 << 20;
const KIB: u64 = 1 << 10;
/// Object map and fast diff, which go together.
const MAPS: u64 = 8 | 16;

/// An image that Ceph's `rbd` has made: its name in the pool `rbd`, and with it.
fn image(ferry: &Ferry, size: &str, object_size: &str) -> (String, String) {
    let name = unique("updates");
    let spec = format!("rbd/{name}");
    let words = ["create", "--size", size, "--object-size", object_size, &spec];
    ferry.ok_as(Side::Ceph, &words);
    (name, spec)
}

/// The digest that the librbd client gives of these bytes.
fn digest(ferry: &Ferry, bytes: &[u8]) -> String {
    let path = ferry.file("digest");
    std::fs::write(&path, bytes).unwrap();
    let told = run_ok("sha256sum", &[&path]);
    told.split(' ').next().unwrap().to_owned()
}

/// The bytes of the image, which are the same to Ceph's `rbd export`, to ours and to the open client.
#[track_caller]
fn same_to_all(ferry: &Ferry, librbd: &mut Librbd, spec: &str, when: &str) -> Vec<u8> {
    let [ours, theirs] = Side::BOTH.map(|side| ferry.export_as(side, spec));
    assert!(ours == theirs, "{when}: the exports differ");
    let read = librbd.ok(&format!("read 0 {}", ours.len()));
    assert_eq!(
        read,
        digest(ferry, &ours),
        "{when}: the open image reads otherwise"
    );
    ours
}

#[test]
fn an_open_librbd_image_sees_what_ferry_s_commands_change() {
    let Some(ferry) = Ferry::on_ceph() else { return };
    for owner in [false, true] {
        let (name, spec) = image(&ferry, "8M", "1M");
        let ours = |words: &[&str]| ferry.ok_as(Side::Ferry, words);
        let mut librbd = Librbd::open(&ferry, "rbd", &name);
        let bench = [
            "bench",
            "--io-type",
            "write",
            "--io-size",
            "64K",
            "--io-total",
            "3M",
        ];
        ours(&[&bench[..], &[spec.as_str()]].concat());
        if owner {
            librbd.ok("write 0 4096 5");
            librbd.ok("flush");
        }
        let owns = if owner { "True" } else { "False" };
        assert_eq!(librbd.ok("owner"), owns);
        let when = |what: &str| format!("owner {owns}, after {what}");
        same_to_all(&ferry, &mut librbd, &spec, &when("the writes"));

        ours(&["resize", "--no-progress", "--size", "12M", &spec]);
        assert_eq!(librbd.ok("size"), (12 * MIB).to_string(), "{}", when("resize"));
        same_to_all(&ferry, &mut librbd, &spec, &when("growing"));
        let small = ["resize", "--no-progress", "--size", "2M", "--allow-shrink", &spec];
        ours(&small);
        assert_eq!(librbd.ok("size"), (2 * MIB).to_string(), "{}", when("shrinking"));
        ours(&["resize", "--no-progress", "--size", "8M", &spec]);
        // Librbd's read goes as far as the size that it knew before (after a resize of Ceph's own too).
        assert_eq!(librbd.ok("size"), (8 * MIB).to_string());
        let bytes = same_to_all(&ferry, &mut librbd, &spec, &when("shrinking and growing"));
        assert!(
            bytes[2 << 20..].iter().all(|byte| *byte == 0),
            "{} what was cut off is back",
            when("growing again")
        );

        for snap in ["a", "b"] {
            ours(&["snap", "create", "--no-progress", &format!("{spec}@{snap}")]);
        }
        let snaps = |librbd: &mut Librbd| {
            let told = librbd.ok("snaps");
            let mut snaps: Vec<String> = told.split_whitespace().map(str::to_owned).collect();
            snaps.sort();
            snaps
        };
        assert_eq!(snaps(&mut librbd), ["a", "b"], "{}", when("snap create"));
        ours(&["snap", "rm", "--no-progress", &format!("{spec}@a")]);
        assert_eq!(snaps(&mut librbd), ["b"], "{}", when("snap rm"));

        ours(&["image-meta", "set", &spec, "key", "value"]);
        assert_eq!(librbd.ok("metadata key"), "value");
        ours(&["image-meta", "set", &spec, "key", "other"]);
        assert_eq!(librbd.ok("metadata key"), "other");
        ours(&["image-meta", "remove", &spec, "key"]);
        librbd.tell("metadata key");
        let answer = librbd.answer();
        assert!(answer.starts_with("error"), "{answer}");

        let features = |librbd: &mut Librbd| librbd.ok("features").parse::<u64>().unwrap();
        let before = features(&mut librbd);
        assert_eq!(before & MAPS, MAPS);
        ours(&["feature", "disable", &spec, "object-map"]);
        assert_eq!(
            features(&mut librbd),
            before & !MAPS,
            "{}",
            when("feature disable")
        );
        ours(&["feature", "enable", &spec, "object-map"]);
        assert_eq!(features(&mut librbd), before, "{}", when("feature enable"));
        ours(&["object-map", "rebuild", "--no-progress", &spec]);
        assert_eq!(librbd.ok("owner"), owns, "a command has moved the lock");

        // What it knows is enough to write by: into an object that the new map does not have, and not into the snapshot.
        librbd.ok(&format!("write {} 4096 6", 6 * MIB));
        librbd.ok("write 4096 4096 7");
        librbd.ok("flush");
        for side in Side::BOTH {
            let snapshot = ferry.export_as(side, &format!("{spec}@b"));
            assert!(
                snapshot == bytes,
                "{side:?}: {}",
                when("writes behind a snapshot")
            );
        }
        let head = same_to_all(&ferry, &mut librbd, &spec, &when("the last writes"));
        assert!(head[4096..8192].iter().all(|byte| *byte == 7));
        librbd.close();
        // The head's: librbd rebuilds no other.
        for side in Side::BOTH {
            check_map(&ferry, side, &spec, &when("everything"));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_server_shows_the_size_that_ceph_s_resize_gave() {
    if !installed(&["nbdinfo"]) {
        return;
    }
    let Some(ferry) = Ferry::on_ceph() else { return };
    let (_, spec) = image(&ferry, "8M", "1M");
    let theirs = |size: &str| {
        let words = ["resize", "--no-progress", "--allow-shrink", "--size", size, &spec];
        ferry.ok_as(Side::Ceph, &words)
    };
    let served = ferry.serve(&[&spec]);
    let uri = served.uri(&spec.replace('/', "%2f"));
    let shown = || run_ok("nbdinfo", &["--size", &uri]).trim().to_owned();
    let client = connect(&served.socket, &spec).await;
    assert_eq!(client.details().size_bytes, 8 * MIB);
    // Nobody has the lock: Ceph's does it.
    theirs("12M");
    assert_eq!(shown(), (12 * MIB).to_string());
    let grown = connect(&served.socket, &spec).await;
    assert_eq!(grown.details().size_bytes, 12 * MIB);
    grown.write(11 * MIB, data(7), true).await.unwrap();
    client.write(0, data(9), true).await.unwrap();
    // Now the server has it, and does it for Ceph's.
    theirs("16M");
    assert_eq!(shown(), (16 * MIB).to_string());
    theirs("4M");
    assert_eq!(shown(), (4 * MIB).to_string());
    assert!(
        grown.write(11 * MIB, data(7), true).await.is_err(),
        "a client that knows the old size can't write beyond the new one"
    );
    assert_eq!(client.read(0, 4096).await.unwrap(), data(9));
    theirs("12M");
    let again = connect(&served.socket, &spec).await;
    assert_eq!(again.details().size_bytes, 12 * MIB);
    assert_eq!(
        again.read(11 * MIB, 4096).await.unwrap(),
        data(0),
        "what was cut off does not come back"
    );
    again.write(10 * MIB, data(5), true).await.unwrap();
    let bytes = read_all(&again).await;
    for client in [client, grown, again] {
        client.disconnect().await.unwrap();
    }
    served.stop();
    for side in Side::BOTH {
        assert!(ferry.export_as(side, &spec) == bytes, "{side:?} reads otherwise");
    }
    check_maps(&ferry, &spec, &[], "resized under a server");
}

/// One block of this byte.
fn data(byte: u8) -> Bytes {
    Bytes::from(vec![byte; 4096])
}

/// A server's client and a librbd client, both open on one image, and what they have written.
struct Both<'a> {
    ferry: &'a Ferry,
    client: Client,
    librbd: Librbd,
    bytes: Vec<u8>,
}

impl Both<'_> {
    /// Writes, durably; the lock goes to that side for it.
    async fn write(&mut self, side: Side, offset: u64, length: u64, byte: u8) {
        match side {
            Side::Ferry => {
                let data = Bytes::from(vec![byte; length as usize]);
                self.client.write(offset, data, false).await.unwrap();
                self.client.flush().await.unwrap();
            }
            Side::Ceph => {
                self.librbd.ok(&format!("write {offset} {length} {byte}"));
                self.librbd.ok("flush");
            }
        }
        self.bytes[offset as usize..][..length as usize].fill(byte);
    }

    #[track_caller]
    fn check(&self, snapshots: &[(String, Vec<u8>)]) {
        for side in Side::BOTH {
            for (snapshot, bytes) in snapshots {
                let found = self.ferry.export_as(side, snapshot);
                let wrong = found.iter().zip(bytes).position(|(left, right)| left != right);
                assert_eq!(wrong, None, "{side:?}: {snapshot} has changed");
                assert_eq!(found.len(), bytes.len(), "{side:?}: {snapshot}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn writers_of_both_sides_leave_the_snapshots_as_they_were_whoever_took_them_and_had_the_lock() {
    let Some(ferry) = Ferry::on_ceph() else { return };
    let (name, spec) = image(&ferry, "4M", "64K");
    let served = ferry.serve(&[&spec]);
    let mut both = Both {
        ferry: &ferry,
        client: connect(&served.socket, &spec).await,
        librbd: Librbd::open(&ferry, "rbd", &name),
        bytes: vec![0; 4 << 20],
    };
    let mut snapshots = Vec::new();
    let mut byte = 0_u8;
    for (round, (owner, taker)) in [
        (Side::Ferry, Side::Ceph),
        (Side::Ceph, Side::Ceph),
        (Side::Ceph, Side::Ferry),
        (Side::Ferry, Side::Ferry),
        (Side::Ferry, Side::Ceph),
        (Side::Ceph, Side::Ceph),
    ]
    .into_iter()
    .enumerate()
    {
        let mut next = || {
            byte += 1;
            byte
        };
        // Parts of objects, whole ones, and ones that were not there.
        both.write(owner, 0, 160 * KIB, next()).await;
        both.write(owner, (round as u64 + 1) * 512 * KIB, 64 * KIB, next())
            .await;
        let snapshot = format!("{spec}@s{round}");
        ferry.ok_as(taker, &["snap", "create", "--no-progress", &snapshot]);
        snapshots.push((snapshot, both.bytes.clone()));
        // The first to write is the one that has heard of the snapshot only, or the one that had the lock while it was taken.
        let first = if round < 4 { owner.other() } else { owner };
        both.write(first, 32 * KIB, 96 * KIB, next()).await;
        both.write(first.other(), 96 * KIB, 96 * KIB, next()).await;
        // Where there was nothing at the snapshot.
        both.write(first, (round as u64 + 1) * 512 * KIB + 96 * KIB, 48 * KIB, next())
            .await;
    }
    both.check(&snapshots);
    for (remover, snapshot) in [(Side::Ceph, 1), (Side::Ferry, 0)] {
        let (gone, _) = snapshots.remove(snapshot);
        ferry.ok_as(remover, &["snap", "rm", "--no-progress", &gone]);
        for side in Side::BOTH {
            both.write(side, 0, 4096, 200 + snapshot as u8).await;
        }
    }
    both.check(&snapshots);
    let read = read_all(&both.client).await;
    assert!(read == both.bytes, "the server's client reads otherwise");
    let Both {
        client,
        librbd,
        bytes,
        ..
    } = both;
    librbd.close();
    client.disconnect().await.unwrap();
    served.stop();
    for side in Side::BOTH {
        assert!(ferry.export_as(side, &spec) == bytes, "{side:?} reads otherwise");
    }
    check_maps(&ferry, &spec, &["s2", "s3", "s4", "s5"], "written by both");
}

/// Blocks that stamps are written to in turn: the stamp `n` to the block `(n - 1) % BLOCKS`, over the whole block.
const BLOCKS: u64 = 64;
const BLOCK: usize = 4096;
/// From one block to the next: they lie in many objects, and two of them in one now and then.
const STRIDE: u64 = 31 * BLOCK as u64;
const SNAPSHOTS: u64 = 5;

fn place(stamp: u64) -> u64 {
    (stamp - 1) % BLOCKS * STRIDE
}

fn stamped(stamp: u64) -> Vec<u8> {
    stamp.to_le_bytes().repeat(BLOCK / 8)
}

/// The moment that an image is of: the last stamp, if all that were written before it are there and none that came later.
fn moment(image: &[u8]) -> Result<u64, String> {
    let blocks: Vec<&[u8]> = (0..BLOCKS)
        .map(|block| &image[(block * STRIDE) as usize..][..BLOCK])
        .collect();
    let stamps: Vec<u64> = blocks
        .iter()
        .map(|block| u64::from_le_bytes(block[..8].try_into().unwrap()))
        .collect();
    let last = stamps.iter().copied().max().unwrap_or(0);
    for (first, (block, stamp)) in (1_u64..).zip(blocks.iter().zip(&stamps)) {
        let expected = match first <= last {
            true => last - (last - first) % BLOCKS,
            false => 0,
        };
        if *block != stamped(expected) {
            return Err(format!(
                "{last} is there, and the block of {first} holds {stamp} or is torn, not {expected}: {stamps:?}"
            ));
        }
    }
    Ok(last)
}

#[test]
fn canary_an_image_of_two_moments_is_noticed() {
    let image = |stamps: &[u64]| {
        let mut image = vec![0_u8; (BLOCKS * STRIDE) as usize];
        for stamp in stamps {
            image[place(*stamp) as usize..][..BLOCK].copy_from_slice(&stamped(*stamp));
        }
        image
    };
    let all: Vec<u64> = (1..=200).collect();
    assert_eq!(moment(&image(&[])), Ok(0));
    assert_eq!(moment(&image(&all[..10])), Ok(10));
    assert_eq!(moment(&image(&all)), Ok(200));
    let without = |gone: u64| -> Vec<u64> { all.iter().copied().filter(|stamp| *stamp != gone).collect() };
    for gone in [199, 170, 137] {
        assert!(moment(&image(&without(gone))).is_err(), "{gone} is not there");
    }
    assert!(moment(&image(&[&all[..], &[202]].concat())).is_err());
    let mut torn = image(&all);
    let end = place(200) as usize + BLOCK;
    torn[end - 8..end].copy_from_slice(&136_u64.to_le_bytes());
    assert!(moment(&torn).is_err());
}

/// A snapshot, and between which stamps it was taken.
struct Taken {
    spec: String,
    least: u64,
    most: u64,
}

/// Takes snapshots while stamps are being written; `acknowledged` tells the last that was.
fn take_snapshots(
    ferry: &Ferry,
    taker: Side,
    image: &str,
    mut acknowledged: impl FnMut() -> u64,
) -> Vec<Taken> {
    let mut goal = 1;
    let mut taken = Vec::new();
    for number in 0..SNAPSHOTS {
        wait_until("the writer goes on", || acknowledged() >= goal);
        let spec = format!("{image}@s{number}");
        let least = acknowledged();
        ferry.ok_as(taker, &["snap", "create", "--no-progress", &spec]);
        // One more may be on its way.
        let most = acknowledged() + 1;
        taken.push(Taken { spec, least, most });
        // Each block is written to again before the next.
        goal = most + BLOCKS;
    }
    taken
}

/// Each snapshot is one moment of its time, and the same to both sides; the head is all that was written; the object maps are right.
#[track_caller]
fn all_are_moments(ferry: &Ferry, taken: &[Taken], image: &str, last: u64) {
    let head = Taken {
        spec: image.to_owned(),
        least: last,
        most: last,
    };
    for taken in taken.iter().chain([&head]) {
        let Taken { spec, least, most } = taken;
        let [ours, theirs] = Side::BOTH.map(|side| {
            let found = moment(&ferry.export_as(side, spec));
            found.unwrap_or_else(|error| panic!("{side:?}: {spec} is no moment: {error}"))
        });
        assert_eq!(ours, theirs, "{spec} is of two moments");
        assert!(
            (*least..=*most).contains(&ours),
            "{spec} shows {ours}, taken between {least} and {most}"
        );
    }
    let names: Vec<&str> = taken
        .iter()
        .filter_map(|taken| taken.spec.split('@').nth(1))
        .collect();
    check_maps(ferry, image, &names, "snapshots under a writer");
}

async fn write_stamps(client: Client, acknowledged: Arc<AtomicU64>, ends: Arc<AtomicBool>) {
    let mut stamp = 0_u64;
    while !ends.load(Ordering::SeqCst) {
        stamp += 1;
        // Also those that are acknowledged before they are durable: the snapshot makes them so.
        let durable = stamp.is_multiple_of(3);
        let answer = client
            .write(place(stamp), Bytes::from(stamped(stamp)), durable)
            .await;
        answer.unwrap_or_else(|error| panic!("stamp {stamp}: {error}"));
        if stamp.is_multiple_of(16) {
            client.flush().await.unwrap();
        }
        acknowledged.store(stamp, Ordering::SeqCst);
    }
    client.flush().await.unwrap();
    client.disconnect().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn ceph_s_snapshot_of_an_image_that_a_server_s_client_writes_to_is_one_moment() {
    let Some(ferry) = Ferry::on_ceph() else { return };
    let (_, spec) = image(&ferry, "8M", "128K");
    let served = ferry.serve(&[&spec]);
    let client = connect(&served.socket, &spec).await;
    let (acknowledged, ends) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let writer = tokio::spawn(write_stamps(client, Arc::clone(&acknowledged), Arc::clone(&ends)));
    let taken = take_snapshots(&ferry, Side::Ceph, &spec, || {
        assert!(!writer.is_finished(), "a write has failed");
        acknowledged.load(Ordering::SeqCst)
    });
    ends.store(true, Ordering::SeqCst);
    writer.await.unwrap();
    served.stop();
    let last = acknowledged.load(Ordering::SeqCst);
    all_are_moments(&ferry, &taken, &spec, last);
}

#[test]
fn ferry_s_snapshot_of_an_image_that_a_librbd_client_writes_to_is_one_moment() {
    let Some(ferry) = Ferry::on_ceph() else { return };
    let (name, spec) = image(&ferry, "8M", "128K");
    let mut librbd = Librbd::open(&ferry, "rbd", &name);
    librbd.ok(&format!("stamps {BLOCKS} {STRIDE}"));
    let taken = take_snapshots(&ferry, Side::Ferry, &spec, || librbd.ok("where").parse().unwrap());
    let last = librbd.ok("halt").parse().unwrap();
    librbd.close();
    all_are_moments(&ferry, &taken, &spec, last);
}
