//! Two processes on one image: what the one does, the other sees, and nobody steps on the other's toes.

#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::time::Duration;

use bytes::Bytes;
use ferry_e2e::Ferry;
use ferry_e2e::ferry::wait_until;
use ferry_e2e::load::{Journal, connect, read_all, write_until_gone};
use ferry_e2e::tools::seed;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

const MIB: u64 = 1 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn execute_is_done_by_the_serving_writer_and_its_progress_is_seen_by_both() {
    let ferry = Ferry::new();
    let mut rng = StdRng::seed_from_u64(seed("forwarded"));
    let mut journal = Journal::filled(8192, 90, &mut rng);
    ferry.import(&journal.bytes(), "rbd/src", &["--object-size", "64K"]);
    ferry.ok(&[
        "migration",
        "prepare",
        "rbd/src",
        "fast/dst",
        "--object-size",
        "128K",
    ]);
    let served = ferry.serve(&["fast/dst"]);
    let client = connect(&served.socket, "fast/dst").await;
    // The first write takes the lock, so the server is the one who copies.
    let load = tokio::spawn(write_until_gone(client, journal.clone(), 4, 4000, rng.random()));
    wait_until("the server has the lock", || {
        ferry
            .json(&["lock", "ls", "fast/dst"])
            .to_string()
            .contains("auto")
    });
    // So slow that it is seen, however busy the machine is; once it was, it may hurry.
    let throttle = ["migration", "throttle", "fast/dst", "--max-bytes-per-second"];
    ferry.ok(&[&throttle[..], &["1M"]].concat());
    let mut execute = ferry.start(&["migration", "execute", "fast/dst"]);
    let mut states = Vec::new();
    wait_until("it is seen by both", || {
        states.push(ferry.ok(&["status", "fast/dst"]));
        // Forwarded progress: more than the beginning.
        let told = execute.stderr().matches("% complete").count() > 1;
        told && states.iter().any(|text| text.contains("state: executing")) || !execute.is_running()
    });
    assert!(execute.is_running(), "{}", execute.stderr());
    ferry.ok(&[&throttle[..], &["none"]].concat());
    while execute.is_running() {
        states.push(ferry.ok(&["status", "fast/dst"]));
    }
    let execute = execute.finish().ok();
    assert!(execute.stderr.contains("100% complete...done."), "{execute}");
    assert!(execute.stderr.matches("% complete").count() > 2, "{execute}");
    let executing: Vec<_> = states
        .iter()
        .filter(|text| text.contains("state: executing"))
        .collect();
    assert!(!executing.is_empty(), "{states:?}");
    assert!(
        executing.iter().all(|text| text.contains("watcher=")),
        "the server is a watcher all the time: {executing:?}"
    );
    journal = load.await.unwrap();
    let locks = ferry.json(&["lock", "ls", "fast/dst"]).to_string();
    assert!(locks.contains("auto"), "the writer kept its lock: {locks}");
    let client = connect(&served.socket, "fast/dst").await;
    assert_eq!(journal.settle(&read_all(&client).await), Ok(()));
    client.disconnect().await.unwrap();
    served.stop();
    ferry.ok(&["migration", "commit", "fast/dst", "--no-progress"]);
    assert_eq!(journal.settle(&ferry.export("fast/dst")), Ok(()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_by_the_command_parts_what_the_served_writer_wrote_before_and_after() {
    let ferry = Ferry::new();
    ferry.ok(&["create", "rbd/disk", "--size", "8M", "--object-size", "1M"]);
    let served = ferry.serve(&["rbd/disk"]);
    let client = connect(&served.socket, "rbd/disk").await;
    let write = async |byte: u8| {
        client
            .write(MIB / 2, Bytes::from(vec![byte; MIB as usize]), false)
            .await
            .unwrap();
    };
    write(1).await;
    ferry.ok(&["snap", "create", "rbd/disk@one", "--no-progress"]);
    write(2).await;
    ferry.ok(&["snap", "create", "rbd/disk@two", "--no-progress"]);
    write(3).await;
    let half = (MIB / 2) as usize;
    for (snapshot, byte) in [("rbd/disk@one", 1), ("rbd/disk@two", 2)] {
        let bytes = ferry.export(snapshot);
        assert!(
            bytes[half..half + MIB as usize]
                .iter()
                .all(|found| *found == byte),
            "{snapshot}"
        );
        assert!(bytes[..half].iter().all(|found| *found == 0), "{snapshot}");
    }
    client.disconnect().await.unwrap();
    served.stop();
    assert!(
        ferry.export("rbd/disk")[half..half + MIB as usize]
            .iter()
            .all(|found| *found == 3)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resize_is_seen_by_the_running_server() {
    let ferry = Ferry::new();
    ferry.ok(&["create", "rbd/disk", "--size", "8M", "--object-size", "1M"]);
    let served = ferry.serve(&["rbd/disk"]);
    let client = connect(&served.socket, "rbd/disk").await;
    client
        .write(0, Bytes::from_static(&[9; 4096]), false)
        .await
        .unwrap();
    ferry.ok(&["resize", "rbd/disk", "--size", "12M", "--no-progress"]);
    let grown = connect(&served.socket, "rbd/disk").await;
    assert_eq!(grown.details().size_bytes, 12 * MIB);
    grown
        .write(11 * MIB, Bytes::from_static(&[7; 4096]), true)
        .await
        .unwrap();
    ferry.ok(&[
        "resize",
        "rbd/disk",
        "--size",
        "4M",
        "--allow-shrink",
        "--no-progress",
    ]);
    let shrunk = connect(&served.socket, "rbd/disk").await;
    assert_eq!(shrunk.details().size_bytes, 4 * MIB);
    assert!(
        grown
            .write(11 * MIB, Bytes::from_static(&[7; 4096]), true)
            .await
            .is_err(),
        "a client that knows the old size can't write beyond the new one"
    );
    assert_eq!(&client.read(0, 4096).await.unwrap()[..], &[9; 4096]);
    ferry.ok(&["resize", "rbd/disk", "--size", "12M", "--no-progress"]);
    let again = connect(&served.socket, "rbd/disk").await;
    assert_eq!(
        &again.read(11 * MIB, 4096).await.unwrap()[..],
        &[0; 4096],
        "what was cut off does not come back"
    );
    for client in [client, grown, shrunk, again] {
        client.disconnect().await.unwrap();
    }
    served.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_writer_is_handed_the_lock_and_both_see_one_image() {
    let ferry = Ferry::new();
    ferry.ok(&["create", "rbd/disk", "--size", "8M", "--object-size", "1M"]);
    let (first, second) = (ferry.serve(&["rbd/disk"]), ferry.serve(&["rbd/disk"]));
    let one = connect(&first.socket, "rbd/disk").await;
    let two = connect(&second.socket, "rbd/disk").await;
    for round in 1..=6_u8 {
        let (writer, reader) = if round % 2 == 0 {
            (&one, &two)
        } else {
            (&two, &one)
        };
        let offset = u64::from(round) * 4096;
        writer
            .write(offset, Bytes::from(vec![round; 4096]), true)
            .await
            .unwrap();
        assert_eq!(&reader.read(offset, 4096).await.unwrap()[..], &[round; 4096]);
        let locks = ferry.json(&["lock", "ls", "rbd/disk"]);
        assert_eq!(locks.as_array().map(Vec::len), Some(1), "{locks}");
    }
    let watchers = ferry.json(&["status", "rbd/disk"]);
    assert_eq!(
        watchers["watchers"].as_array().map(Vec::len),
        Some(2),
        "{watchers}"
    );
    // The owner dies: the other takes the lock over.
    first.kill();
    two.write(0, Bytes::from_static(&[8; 4096]), true).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(&two.read(4096, 4096).await.unwrap()[..], &[1; 4096]);
    two.disconnect().await.unwrap();
    second.stop();
    assert_eq!(ferry.ok(&["status", "rbd/disk"]), "Watchers: none\n");
    assert_eq!(ferry.ok(&["lock", "ls", "rbd/disk"]), "");
}

#[test]
fn a_served_image_is_a_watcher_and_can_not_be_prepared_or_removed() {
    let ferry = Ferry::new();
    ferry.ok(&["create", "rbd/disk", "--size", "8M"]);
    let served = ferry.serve(&["rbd/disk"]);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let client = runtime.block_on(connect(&served.socket, "rbd/disk"));
    let status = ferry.ok(&["status", "rbd/disk"]);
    assert!(status.starts_with("Watchers:\n\twatcher="), "{status}");
    assert!(
        status.contains(" client.") && status.contains(" cookie="),
        "{status}"
    );
    ferry
        .rbd(&["migration", "prepare", "rbd/disk", "fast/disk"])
        .fails(
            16,
            "rbd: preparing migration failed: (16) Device or resource busy",
        );
    ferry
        .rbd(&["rm", "rbd/disk"])
        .fails(16, "rbd: error: image still has watchers");
    runtime.block_on(client.disconnect()).unwrap();
    served.stop();
    assert_eq!(ferry.ok(&["status", "rbd/disk"]), "Watchers: none\n");
    ferry.ok(&["migration", "prepare", "rbd/disk", "fast/disk"]);
}
