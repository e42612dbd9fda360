//! Work on an image whose exclusive lock a client of the other side owns: it is asked for, done by the owner, and seen by both.

#![allow(clippy::unwrap_used)] // A test fails by panicking.

use ferry_e2e::ceph::unique;
use ferry_e2e::ferry::wait_until;
use ferry_e2e::load::{BLOCK_BYTES, Journal, connect, read_all, write_until_gone};
use ferry_e2e::{Ferry, History, Librbd, Served, Shape, Side, check_map, check_maps};
use rand::SeedableRng;
use rand::rngs::StdRng;

/// An owner of the lock that writes all the time.
enum Owner {
    Librbd(Librbd),
    Server {
        served: Served,
        runtime: tokio::runtime::Runtime,
        load: tokio::task::JoinHandle<Journal>,
    },
}

impl Owner {
    fn start(ferry: &Ferry, side: Side, pool: &str, name: &str) -> Self {
        match side {
            Side::Ceph => {
                let mut client = Librbd::open(ferry, pool, name);
                client.ok("lock");
                client.tell("hammer 7");
                Self::Librbd(client)
            }
            Side::Ferry => {
                let spec = format!("{pool}/{name}");
                let served = ferry.serve(&[&spec]);
                let runtime = tokio::runtime::Builder::new_multi_thread()
                    .worker_threads(1)
                    .enable_all()
                    .build()
                    .unwrap();
                let client = runtime.block_on(connect(&served.socket, &spec));
                // The smallest size that the image has meanwhile.
                let journal = Journal::zeroes(1024);
                let load = runtime.spawn(write_until_gone(client, journal, 4, u32::MAX, 1));
                Self::Server {
                    served,
                    runtime,
                    load,
                }
            }
        }
    }

    /// Whether it still writes, and can still be asked.
    fn is_at_work(&mut self) -> bool {
        match self {
            Self::Librbd(client) => {
                let count = client.ok("owner");
                assert!(count.parse::<u64>().is_ok_and(|writes| writes > 0), "{count}");
                let owner = client.answer() == "ok True";
                client.tell("hammer 8");
                owner
            }
            Self::Server { load, .. } => !load.is_finished(),
        }
    }

    /// Ends it. What the client of a server has written is in its journal; librbd's has filled blocks with 7 or 8.
    fn stop(self) -> Option<Journal> {
        match self {
            Self::Librbd(mut client) => {
                client.ok("flush");
                assert_eq!(client.answer(), "ok");
                client.close();
                None
            }
            Self::Server {
                served,
                runtime,
                load,
            } => {
                served.stop();
                Some(runtime.block_on(load).unwrap())
            }
        }
    }
}

/// An image that was `before`, and that an owner has written to since, holds what the owner has written, and around it what it held.
#[track_caller]
fn check_written(found: &[u8], before: &[u8], journal: Option<Journal>) {
    assert_eq!(found.len(), before.len());
    let block_bytes = BLOCK_BYTES as usize;
    let Some(mut journal) = journal else {
        let wrong = found
            .chunks(block_bytes)
            .zip(before.chunks(block_bytes))
            .position(|(found, before)| {
                let is_filled = [7u8, 8].iter().any(|fill| found.iter().all(|byte| byte == fill));
                found != before && !is_filled
            });
        assert_eq!(wrong, None, "a block that nobody has written so");
        return;
    };
    let (part, rest) = found.split_at(journal.blocks() as usize * block_bytes);
    assert!(
        *rest == before[part.len()..],
        "something has changed where nobody wrote"
    );
    // The journal takes what it has not written for zeroes.
    let mut part = part.to_vec();
    for (block, before) in part.chunks_mut(block_bytes).zip(before.chunks(block_bytes)) {
        if *block == *before {
            block.fill(0);
        }
    }
    assert_eq!(journal.settle(&part), Ok(()));
}

fn holder(ferry: &Ferry, image: &str) -> String {
    let locks = ferry.ok_as(Side::Ceph, &["lock", "ls", "--format", "json", image]);
    let locks: serde_json::Value = serde_json::from_str(&locks).unwrap();
    locks[0]["locker"].as_str().unwrap_or("nobody").to_owned()
}

#[test]
fn work_of_one_side_is_done_by_the_lock_s_owner_of_the_other_while_that_writes() {
    let Some(ferry) = Ferry::on_ceph() else { return };
    for owner_side in Side::BOTH {
        let asker = owner_side.other();
        let name = unique("owned");
        let renamed = format!("{name}-2");
        let image = format!("rbd/{name}");
        ferry.ok_as(
            Side::Ceph,
            &["create", "--size", "8M", "--object-size", "1M", &image],
        );
        let mut owner = Owner::start(&ferry, owner_side, "rbd", &name);
        wait_until("the owner has the lock", || holder(&ferry, &image) != "nobody");
        let locker = holder(&ferry, &image);
        let snap = |name: &str| format!("{image}@{name}");
        let ask = |words: &[&str]| {
            ferry.ok_as(asker, words);
            assert_eq!(
                holder(&ferry, &image),
                locker,
                "{asker:?} took the lock from {owner_side:?} for {words:?}"
            );
        };
        ask(&["resize", "--no-progress", "--size", "12M", &image]);
        ask(&["snap", "create", "--no-progress", &snap("a")]);
        ask(&["snap", "create", "--no-progress", &snap("b")]);
        ask(&["snap", "rename", &snap("b"), &snap("c")]);
        ask(&["snap", "protect", &snap("a")]);
        ferry
            .run_as(asker, &["snap", "rm", "--no-progress", &snap("a")])
            .fails(16, "");
        ask(&["snap", "unprotect", &snap("a")]);
        ask(&["snap", "rm", "--no-progress", &snap("c")]);
        ask(&["object-map", "rebuild", "--no-progress", &image]);
        ask(&["image-meta", "set", &image, "key", "value"]);
        ask(&["image-meta", "set", &image, "gone", "value"]);
        ask(&["image-meta", "remove", &image, "gone"]);
        ask(&[
            "resize",
            "--no-progress",
            "--size",
            "9M",
            "--allow-shrink",
            &image,
        ]);
        ask(&["sparsify", "--no-progress", &image]);
        ferry
            .run_as(asker, &["flatten", "--no-progress", &image])
            .fails(22, "flatten error");
        ferry
            .run_as(asker, &["snap", "create", "--no-progress", &snap("a")])
            .fails(17, "");
        ferry
            .run_as(asker, &["snap", "rm", "--no-progress", &snap("nothing")])
            .fails(2, "");
        ask(&["feature", "disable", &image, "object-map"]);
        ask(&["feature", "enable", &image, "object-map"]);
        ask(&["feature", "disable", &image, "deep-flatten"]);
        ferry
            .run_as(asker, &["feature", "enable", &image, "deep-flatten"])
            .fails(22, "failed to update image features");
        ask(&["object-map", "rebuild", "--no-progress", &image]);
        assert!(owner.is_at_work(), "{owner_side:?} has stopped");
        // The name comes last, as it names the export.
        ferry.ok_as(asker, &["mv", &image, &format!("rbd/{renamed}")]);
        let journal = owner.stop();
        let image = format!("rbd/{renamed}");
        let found = ferry.export_as(asker, &image);
        check_written(&found, &vec![0; found.len()], journal);
        for side in Side::BOTH {
            let info = ferry.ok_as(side, &["info", &image]);
            let features = "features: layering, exclusive-lock, object-map, fast-diff\n";
            for said in [
                "size 9 MiB in 9 objects",
                "snapshot_count: 1",
                features,
                "flags: \n",
            ] {
                assert!(
                    info.contains(said),
                    "{side:?} of {owner_side:?}: no {said:?} in {info}"
                );
            }
            let meta = ferry.ok_as(side, &["image-meta", "list", "--format", "json", &image]);
            assert_eq!(meta.trim(), r#"{"key":"value"}"#, "{side:?} of {owner_side:?}");
        }
        // Now and then more marks than objects; what is there must be marked. The snapshot's map is out of it: Ceph's owner rebuilds
        // the head's alone.
        for side in Side::BOTH {
            check_map(&ferry, side, &image, &format!("written by {owner_side:?}"));
        }
    }
}

/// Ceph's owner is asked for one of an image without bytes only ([`work_of_one_side_is_done_by_the_lock_s_owner_of_the_other_while_that_writes`]):
/// a librbd that writes while it executes, for Ceph's own `rbd` too, now and then never comes back from a write (16.2.15).
#[test]
fn an_execute_that_ceph_asks_ferry_s_owner_for_copies_every_version_while_the_owner_writes() {
    let Some(ferry) = Ferry::on_ceph() else { return };
    // Enough objects that the owner can't have written to all of them before it is asked.
    let shape = Shape {
        image_bytes: 24 << 20,
        data_bytes: 16 << 20,
        options: &["--object-size", "64K"],
    };
    let mut history = History::new(&ferry, Side::Ferry, 31, shape);
    let name = unique("owned");
    let image = format!("rbd/{name}");
    ferry.ok_as(Side::Ceph, &["migration", "prepare", &history.name, &image]);
    let mut owner = Owner::start(&ferry, Side::Ferry, "rbd", &name);
    wait_until("the owner has the lock", || holder(&ferry, &image) != "nobody");
    let locker = holder(&ferry, &image);
    ferry.migrate_as(Side::Ceph, "execute", &image);
    let status = ferry.ok_as(Side::Ceph, &["status", &image]);
    assert!(status.contains("state: executed"), "{status}");
    assert_eq!(holder(&ferry, &image), locker, "the lock was taken");
    ferry.migrate_as(Side::Ceph, "commit", &image);
    assert!(owner.is_at_work(), "it has stopped");
    let journal = owner.stop();
    let found = ferry.export_as(Side::Ceph, &image);
    check_written(&found, history.head(), journal);
    history.head_is_now(found);
    history.check(&ferry, &image, "executed by Ferry's owner of the lock for Ceph");
}

#[test]
fn the_lock_goes_back_and_forth_between_writers_of_both_sides() {
    let Some(ferry) = Ferry::on_ceph() else { return };
    let name = unique("shared");
    let spec = format!("rbd/{name}");
    ferry.ok_as(
        Side::Ceph,
        &["create", "--size", "8M", "--object-size", "256K", &spec],
    );
    let served = ferry.serve(&[&spec]);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let client = runtime.block_on(connect(&served.socket, &spec));
    let mut librbd = Librbd::open(&ferry, "rbd", &name);
    for round in 0..20u8 {
        let theirs = u64::from(round) * 65536;
        librbd.ok(&format!("write {theirs} 4096 {}", round + 1));
        let ours = theirs + 8192;
        let data = bytes::Bytes::from(vec![round + 101; 4096]);
        runtime.block_on(client.write(ours, data, true)).unwrap();
    }
    librbd.ok("flush");
    let image = runtime.block_on(read_all(&client));
    for round in 0..20usize {
        let at = round * 65536;
        assert!(
            image[at..at + 4096].iter().all(|byte| *byte == round as u8 + 1),
            "{round}"
        );
        let at = at + 8192;
        assert!(
            image[at..at + 4096].iter().all(|byte| *byte == round as u8 + 101),
            "{round}"
        );
    }
    librbd.close();
    drop(client);
    served.stop();
    assert!(ferry.export_as(Side::Ceph, &spec) == image);
    check_maps(&ferry, &spec, &[], "written by both");
}

#[test]
fn the_lock_of_a_killed_client_is_taken_over_by_the_other_side() {
    let Some(ferry) = Ferry::on_ceph() else { return };
    let name = unique("orphan");
    let spec = format!("rbd/{name}");
    ferry.ok_as(
        Side::Ceph,
        &["create", "--size", "8M", "--object-size", "256K", &spec],
    );
    // Ferry takes it from librbd.
    let mut librbd = Librbd::open(&ferry, "rbd", &name);
    librbd.ok("lock");
    librbd.ok("write 0 4096 5");
    librbd.ok("flush");
    let dead = holder(&ferry, &spec);
    librbd.kill();
    let served = ferry.serve(&[&spec]);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut rng = StdRng::seed_from_u64(1);
    let client = runtime.block_on(connect(&served.socket, &spec));
    let data = bytes::Bytes::from(vec![6; 4096]);
    runtime.block_on(client.write(4096, data, true)).unwrap();
    assert_ne!(holder(&ferry, &spec), dead);
    // Before the load: its journal would take a block that was lost for one that nobody has written.
    let image = runtime.block_on(read_all(&client));
    let expected = [vec![5u8; 4096], vec![6; 4096], vec![0; (8 << 20) - 8192]].concat();
    assert!(image == expected, "what librbd had flushed is not there");
    // And librbd from Ferry, which is killed under load.
    let journal = Journal::filled(2048, 0, &mut rng);
    let load = runtime.spawn(write_until_gone(client, journal, 1, 200, 1));
    std::thread::sleep(std::time::Duration::from_millis(100));
    let dead = holder(&ferry, &spec);
    served.kill();
    let mut journal = runtime.block_on(load).unwrap();
    let mut librbd = Librbd::open(&ferry, "rbd", &name);
    librbd.ok("lock");
    assert_ne!(holder(&ferry, &spec), dead);
    let image = ferry.export_as(Side::Ceph, &spec);
    let mut known = image.clone();
    // The two writes from before, where nothing was written since, are not in the journal's book.
    for (at, byte) in [(0, 5u8), (4096, 6)] {
        if known[at..at + 4096].iter().all(|found| *found == byte) {
            known[at..at + 4096].fill(0);
        }
    }
    assert_eq!(journal.settle(&known), Ok(()));
    librbd.ok("write 8192 4096 9");
    librbd.close();
    let mut expected = image;
    expected[8192..12288].fill(9);
    for side in Side::BOTH {
        assert!(ferry.export_as(side, &spec) == expected, "{side:?}");
    }
    check_maps(&ferry, &spec, &[], "taken over twice");
}
