//! A real file system runs full under a serving writer: the client gets the error or is held, as the server was told; what was
//! acknowledged is there, nothing is damaged, and work goes on when there is room.

#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use ferry_e2e::ferry::wait_until;
use ferry_e2e::load::{connect, read_all};
use ferry_e2e::process::LIMIT;
use ferry_e2e::tools::{can_mount, installed};
use ferry_e2e::{Ferry, run, run_ok};
use ferry_nbd::client::{Client, ClientError};
use tokio::task::JoinSet;

const MIB: usize = 1 << 20;
/// Of the image; more than the file systems hold.
const IMAGE_MIB: u64 = 256;

/// A small file system of its own, unmounted at the end.
struct Small(PathBuf);

impl Small {
    /// `None`: this machine does not let us.
    fn mount(kind: &str, directory: &Path, size_mib: usize) -> Option<Self> {
        if !can_mount() || !installed(&["mkfs.ext4"]) {
            return None;
        }
        let place = directory.join(kind);
        std::fs::create_dir_all(&place).unwrap();
        let place_text = place.to_string_lossy().into_owned();
        if kind == "tmpfs" {
            let size = format!("size={size_mib}M");
            run_ok("mount", &["-t", "tmpfs", "-o", &size, "tmpfs", &place_text]);
        } else {
            let medium = directory.join("medium");
            let file = std::fs::File::create(&medium).unwrap();
            file.set_len((size_mib * MIB) as u64).unwrap();
            let medium = medium.to_string_lossy().into_owned();
            run_ok("mkfs.ext4", &["-q", "-m", "0", &medium]);
            run_ok("mount", &["-o", "loop", &medium, &place_text]);
        }
        Some(Self(place))
    }

    fn free_bytes(&self) -> u64 {
        let stat = rustix::fs::statvfs(&self.0).unwrap();
        stat.f_bavail * stat.f_frsize
    }

    /// Takes space, but for so much; what is given back is the file to remove.
    fn fill_up_to(&self, left_mib: usize) -> PathBuf {
        let path = self.0.join("ballast");
        let size = (self.free_bytes() as usize).saturating_sub(left_mib * MIB);
        std::fs::write(&path, vec![1; size]).unwrap();
        path
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        run(Command::new("umount").arg("--lazy").arg(&self.0));
    }
}

fn block(number: u64) -> Bytes {
    let words = (0..MIB as u64 / 8).flat_map(|word| ((number << 32) | word | 1 << 62).to_le_bytes());
    words.collect::<Vec<u8>>().into()
}

/// A store with an image `disk` on a file system that has room for 16 MiB, and the file that takes the rest.
fn nearly_full(kind: &str) -> Option<(Small, Ferry, PathBuf)> {
    let directory = tempfile::tempdir().unwrap();
    let disk = Small::mount(kind, directory.path(), 96)?;
    let ferry = Ferry::at(disk.0.join("store"), directory);
    ferry.ok(&["create", "disk", "--size", "256M", "--object-size", "1M"]);
    let ballast = disk.fill_up_to(16);
    Some((disk, ferry, ballast))
}

/// Neither the store nor what was acknowledged has suffered.
fn check(ferry: &Ferry, image: &str, written: impl Fn(u64) -> bool) {
    // A writer that found no room for its marks gives the object map up, which harms nobody.
    let found = ferry.rbd(&["fsck", "--no-progress"]);
    let kinds = found.stdout.matches("object-map-invalid").count();
    assert!(
        found.code == 0 || found.code == 117 && kinds > 0,
        "{}",
        found.stdout
    );
    ferry.ok(&["fsck", "--no-progress", "--repair"]);
    ferry.ok(&["fsck", "--no-progress"]);
    let bytes = ferry.export(image);
    for number in 0..IMAGE_MIB {
        let at = number as usize * MIB;
        let found = &bytes[at..at + MIB];
        if written(number) {
            assert!(found == block(number), "MiB {number} was acknowledged");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_file_system_holds_its_writers_until_there_is_room() {
    for kind in ["ext4", "tmpfs"] {
        let Some((_mounted, ferry, ballast)) = nearly_full(kind) else {
            return;
        };
        let served = ferry.serve(&["rbd/disk", "--on-enospc", "pause"]);
        let client = Arc::new(connect(&served.socket, "rbd/disk").await);
        let acknowledged = Arc::new(AtomicU64::new(0));
        let mut writers = JoinSet::new();
        for number in 0..40 {
            let (client, acknowledged) = (Arc::clone(&client), Arc::clone(&acknowledged));
            writers.spawn(async move {
                let fua = number % 3 == 0;
                client
                    .write(number * MIB as u64, block(number), fua)
                    .await
                    .unwrap();
                acknowledged.fetch_add(1, Ordering::SeqCst);
            });
        }
        wait_until("some fit and the others are held", || {
            acknowledged.load(Ordering::SeqCst) > 0
                && served.process.stderr().contains("held until there is room")
        });
        tokio::time::sleep(Duration::from_secs(2)).await;
        let before = acknowledged.load(Ordering::SeqCst);
        assert!(
            (1..40).contains(&before),
            "{kind}: {before} of 40 fit into 16 MiB"
        );
        // Another client is served meanwhile.
        let other = connect(&served.socket, "rbd/disk").await;
        other.read(200 * MIB as u64, MIB as u32).await.unwrap();
        std::fs::remove_file(&ballast).unwrap();
        while let Some(written) = tokio::time::timeout(LIMIT, writers.join_next())
            .await
            .unwrap_or_else(|_| panic!("{kind}: still held although there is room"))
        {
            written.unwrap();
        }
        client.flush().await.unwrap();
        for number in 0..40 {
            let found = client.read(number * MIB as u64, MIB as u32).await.unwrap();
            assert!(found == block(number), "{kind}: MiB {number}");
        }
        drop((client, other));
        served.stop();
        check(&ferry, "disk", |number| number < 40);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_file_system_refuses_its_writers_and_harms_nothing() {
    for kind in ["ext4", "tmpfs"] {
        let Some((_mounted, ferry, ballast)) = nearly_full(kind) else {
            return;
        };
        let served = ferry.serve(&["rbd/disk"]);
        let client = connect(&served.socket, "rbd/disk").await;
        let mut written = Vec::new();
        let mut refused = 0;
        for number in 0..40 {
            match client.write(number * MIB as u64, block(number), false).await {
                Ok(()) => written.push(number),
                Err(error) => {
                    assert!(error.to_string().to_uppercase().contains("ENOSPC"), "{error}");
                    refused += 1;
                }
            }
        }
        assert!(refused > 0 && !written.is_empty(), "{kind}: {written:?}");
        // What makes writes durable may need space itself; it says so then.
        if let Err(error) = client.flush().await {
            assert!(error.to_string().to_uppercase().contains("ENOSPC"), "{error}");
        }
        for number in &written {
            let found = client.read(number * MIB as u64, MIB as u32).await.unwrap();
            assert!(found == block(*number), "{kind}: MiB {number}");
        }
        std::fs::remove_file(&ballast).unwrap();
        client.flush().await.unwrap();
        for number in 40..48 {
            client
                .write(number * MIB as u64, block(number), true)
                .await
                .unwrap();
            written.push(number);
        }
        drop(client);
        served.stop();
        check(&ferry, "disk", |number| written.contains(&number));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_holds_writes_can_be_stopped() {
    let directory = tempfile::tempdir().unwrap();
    let Some(disk) = Small::mount("tmpfs", directory.path(), 32) else {
        return;
    };
    let ferry = Ferry::at(disk.0.join("store"), directory);
    ferry.ok(&["create", "disk", "--size", "256M", "--object-size", "1M"]);
    let served = ferry.serve(&["rbd/disk", "--on-enospc", "pause"]);
    let client = Arc::new(connect(&served.socket, "rbd/disk").await);
    let mut writers = JoinSet::new();
    for number in 0..60 {
        let client = Arc::clone(&client);
        writers.spawn(async move {
            (
                number,
                client
                    .write(number * MIB as u64, block(number), false)
                    .await
                    .is_ok(),
            )
        });
    }
    wait_until("requests are held", || {
        served.process.stderr().contains("held until there is room")
    });
    served.stop();
    let ends = writers.join_all().await;
    let acknowledged: Vec<u64> = ends
        .iter()
        .filter(|(_, done)| *done)
        .map(|(number, _)| *number)
        .collect();
    assert!(acknowledged.len() < 60);
    check(&ferry, "disk", |number| acknowledged.contains(&number));
}

/// A prepared migration of 48 MiB of data to `tight/disk`, whose pool has 32 MiB left until the file is removed.
fn prepared(disk: &Small, directory: tempfile::TempDir) -> (Ferry, Vec<u8>, PathBuf) {
    let ferry = Ferry::at(directory.path().join("store"), directory);
    let pool = disk.0.join("pool");
    ferry.ok(&["pool", "create", "tight", "--path", &pool.to_string_lossy()]);
    let data: Vec<u8> = (0..48).flat_map(|number| block(number).to_vec()).collect();
    ferry.import(&data, "disk", &["--object-size", "1M"]);
    ferry.ok(&["migration", "prepare", "disk", "tight/disk"]);
    let ballast = disk.fill_up_to(32);
    (ferry, data, ballast)
}

const EXECUTE: &[&str] = &["migration", "execute", "tight/disk", "--no-progress"];

fn wait_for_the_pause(ferry: &Ferry) {
    wait_until("the execute waits for space", || {
        ferry.ok(&["status", "tight/disk"]).contains("paused: no space")
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn an_execute_waits_before_it_takes_the_last_space_from_clients() {
    let directory = tempfile::tempdir().unwrap();
    let Some(disk) = Small::mount("ext4", directory.path(), 128) else {
        return;
    };
    let (ferry, data, ballast) = prepared(&disk, directory);
    let served = ferry.serve(&["tight/disk", "--on-enospc", "pause"]);
    let client = connect(&served.socket, "tight/disk").await;
    client.write(0, block(1000), true).await.unwrap();
    let mut execute = ferry.start(&[EXECUTE, &["--reserve-bytes", "16M"]].concat());
    wait_for_the_pause(&ferry);
    assert!(execute.is_running(), "{}", execute.stderr());
    let before = disk.free_bytes();
    assert!(before >= 12 * MIB as u64, "{before} bytes are left to clients");
    // They have it: new bytes, of objects that have to be copied first.
    for number in 40..46 {
        client
            .write(number * MIB as u64, block(1000 + number).slice(..MIB / 2), true)
            .await
            .unwrap();
    }
    wait_for_the_pause(&ferry);
    assert!(execute.is_running(), "{}", execute.stderr());
    std::fs::remove_file(&ballast).unwrap();
    execute.finish().ok();
    drop(client);
    served.stop();
    ferry.ok(&["migration", "commit", "tight/disk", "--no-progress"]);
    let mut expected = data;
    expected[..MIB].copy_from_slice(&block(1000));
    for number in 40..46usize {
        let at = number * MIB;
        expected[at..at + MIB / 2].copy_from_slice(&block(1000 + number as u64)[..MIB / 2]);
    }
    assert!(ferry.export("tight/disk") == expected);
    ferry.ok(&["fsck", "--no-progress"]);
}

#[test]
fn an_execute_that_is_killed_while_it_waits_for_space_is_run_again() {
    let directory = tempfile::tempdir().unwrap();
    let Some(disk) = Small::mount("tmpfs", directory.path(), 96) else {
        return;
    };
    let (ferry, data, ballast) = prepared(&disk, directory);
    let execute = ferry.start(&[EXECUTE, &["--reserve-bytes", "16M"]].concat());
    wait_for_the_pause(&ferry);
    execute.kill();
    assert_eq!(ferry.migration_state("tight/disk"), "executing");
    assert!(ferry.export("tight/disk") == data);
    let refused = ferry.rbd(&[EXECUTE, &["--on-enospc", "fail"]].concat());
    assert!(
        refused.code == 28 && refused.stderr.contains("left to clients"),
        "{refused}"
    );
    std::fs::remove_file(&ballast).unwrap();
    ferry.ok(EXECUTE);
    ferry.ok(&["migration", "commit", "tight/disk", "--no-progress"]);
    assert!(ferry.export("tight/disk") == data);
    ferry.ok(&["fsck", "--no-progress"]);
}

/// What a client asks for while there is no space; each of a MiB of its own.
#[derive(Clone, Copy, PartialEq)]
enum Asked {
    DurableWrite,
    Write,
    Zeroes,
    Trim,
}

impl Asked {
    fn of(number: u64) -> Self {
        [Self::DurableWrite, Self::Write, Self::Zeroes, Self::Trim][number as usize % 4]
    }

    async fn ask(self, client: &Client, number: u64) -> Result<(), ClientError> {
        let at = number * MIB as u64;
        match self {
            Self::DurableWrite => client.write(at, self.leaves(number), true).await,
            Self::Write => client.write(at, self.leaves(number), false).await,
            Self::Zeroes => client.write_zeroes(at, MIB as u64, false, false).await,
            Self::Trim => client.trim(at, MIB as u64, false).await,
        }
    }

    fn leaves(self, number: u64) -> Bytes {
        match self {
            Self::DurableWrite | Self::Write => block(1000 + number),
            Self::Zeroes | Self::Trim => vec![0; MIB].into(),
        }
    }
}

/// MiB that were flushed before the disk was full, and MiB that are asked to change then.
const FLUSHED: u64 = 24;
const CHANGED: u64 = 64;

/// Each MiB is as it was before or as it was to be, block by block; as it was to be, where that was durably acknowledged.
fn judge_killed(bytes: &[u8], acknowledged: &[u64], when: &str) {
    for number in 0..IMAGE_MIB {
        let (asked, at) = (Asked::of(number), number as usize * MIB);
        let before = match number {
            0..FLUSHED => block(number),
            _ => vec![0; MIB].into(),
        };
        let after = match number {
            0..CHANGED => asked.leaves(number),
            _ => before.clone(),
        };
        let must_be_after = asked == Asked::DurableWrite && acknowledged.contains(&number);
        for start in (0..MIB).step_by(4096) {
            let range = start..start + 4096;
            let found = &bytes[at + start..at + start + 4096];
            let (before, after) = (&before[range.clone()], &after[range]);
            assert!(
                found == after || (!must_be_after && found == before),
                "{when}: MiB {number}, byte {start}, acknowledged durably: {must_be_after}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_killed_while_it_holds_requests_has_answered_none_of_them_and_lost_nothing() {
    for kind in ["ext4", "tmpfs"] {
        let directory = tempfile::tempdir().unwrap();
        let Some(disk) = Small::mount(kind, directory.path(), 96) else {
            return;
        };
        let ferry = Ferry::at(disk.0.join("store"), directory);
        ferry.ok(&["create", "disk", "--size", "256M", "--object-size", "1M"]);
        let served = ferry.serve(&["rbd/disk", "--on-enospc", "pause"]);
        let client = Arc::new(connect(&served.socket, "rbd/disk").await);
        for number in 0..FLUSHED {
            client
                .write(number * MIB as u64, block(number), false)
                .await
                .unwrap();
        }
        client.flush().await.unwrap();
        // From here on changes of what is there take space too.
        ferry.ok(&["snap", "create", "--no-progress", "rbd/disk@s"]);
        let ballast = disk.fill_up_to(8);
        let mut requests = JoinSet::new();
        for number in 0..CHANGED {
            let client = Arc::clone(&client);
            requests.spawn(async move { (number, Asked::of(number).ask(&client, number).await) });
        }
        wait_until("requests are held", || {
            served.process.stderr().contains("held until there is room")
        });
        tokio::time::sleep(Duration::from_secs(1)).await;
        let mut acknowledged = Vec::new();
        while let Some(answered) = requests.try_join_next() {
            let (number, answer) = answered.unwrap();
            answer.unwrap_or_else(|error| panic!("{kind}: MiB {number} was not held: {error}"));
            acknowledged.push(number);
        }
        assert!(!requests.is_empty(), "{kind}: 32 MiB fit into 8");
        served.kill();
        let mut unanswered = 0;
        while let Some(ended) = requests.join_next().await {
            match ended.unwrap() {
                // Its answer was on the way.
                (number, Ok(())) => acknowledged.push(number),
                (_, Err(ClientError::Io(_) | ClientError::Closed)) => unanswered += 1,
                (number, Err(error)) => panic!("{kind}: MiB {number} was held and answered: {error}"),
            }
        }
        assert!(unanswered > 0, "{kind}: the server was killed after all was done");
        std::fs::remove_file(&ballast).unwrap();
        let served = ferry.serve(&["rbd/disk", "--on-enospc", "pause"]);
        let client = connect(&served.socket, "rbd/disk").await;
        judge_killed(&read_all(&client).await, &acknowledged, kind);
        client
            .write(CHANGED * MIB as u64, block(CHANGED), true)
            .await
            .unwrap();
        drop(client);
        served.stop();
        check(&ferry, "disk", |number| number == CHANGED);
        let kept = ferry.export("disk@s");
        for number in 0..FLUSHED {
            let at = number as usize * MIB;
            assert!(
                kept[at..at + MIB] == block(number),
                "{kind}: MiB {number} of the snapshot"
            );
        }
    }
}
