//! A cluster without room, without its OSD, without a class, or whose other clients may not be fenced: what waits goes on and loses
//! nothing, all else is a clear error in bounded time, and nothing is half-done.

#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use bytes::Bytes;
use ferry_e2e::ceph::OwnCluster;
use ferry_e2e::ferry::wait_until;
use ferry_e2e::load::{BLOCK_BYTES, Journal, connect, write_until_gone};
use ferry_e2e::process::LIMIT;
use ferry_e2e::tools::skip;
use ferry_e2e::{Ferry, Served, Side, run};
use ferry_nbd::Errno;
use ferry_nbd::client::{Client, ClientError};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

const MIB: usize = 1 << 20;

#[test]
fn a_full_cluster_says_so_one_without_its_osd_is_waited_for_and_a_missing_class_is_named() {
    let Some(ferry) = Ferry::on_ceph() else { return };
    // One for all of it: it takes seconds to start.
    let cluster = OwnCluster::new();
    let ferry = ferry.on_another_ceph(cluster.conf());
    let bytes: Vec<u8> = (0..24 * MIB).map(|at| (at / 4096 % 251) as u8 | 1).collect();
    ferry.import(&bytes, "disk", &["--object-size", "1M"]);
    ferry.ok(&["migration", "prepare", "disk", "other/disk"]);
    a_full_cluster(&ferry, &bytes);
    a_cluster_whose_osd_is_away(&ferry, &cluster);
    assert!(ferry.export_as(Side::Ceph, "other/disk") == bytes);
    an_osd_that_lacks_a_class(&ferry, &cluster);
}

/// How full the cluster is when it warns, and when it takes no more.
fn full_at(ferry: &Ferry, near: f64, full: f64) {
    for (what, ratio) in [
        ("nearfull", near),
        ("backfillfull", (near + full) / 2.0),
        ("full", full),
    ] {
        let ratio = format!("{ratio:.9}");
        ferry.ceph(&["osd", &format!("set-{what}-ratio"), &ratio]);
    }
}

/// Whether the health of the cluster tells of this.
fn has_health(ferry: &Ferry, what: &str) -> bool {
    ferry.ceph(&["health", "detail"]).contains(what)
}

fn a_full_cluster(ferry: &Ferry, bytes: &[u8]) {
    // Nearly full: everything goes on.
    full_at(ferry, 0.000_1, 0.9);
    wait_until("the OSD is nearly full", || has_health(ferry, "OSD_NEARFULL"));
    ferry.import(&bytes[..MIB], "near", &[]);
    ferry.ok(&["rm", "--no-progress", "near"]);

    full_at(ferry, 0.000_1, 0.000_2);
    wait_until("the OSD is full", || has_health(ferry, "OSD_FULL"));
    let objects = || ["rbd", "other"].map(|pool| ferry.all_objects(pool));
    let before = objects();
    // Nobody waits for room: a command that did would not end in time.
    ferry.rbd(&["create", "--size", "8M", "new"]).fails(28, "is full");
    assert_eq!(objects(), before);
    ferry
        .rbd(&["migration", "execute", "--no-progress", "other/disk"])
        .fails(28, "is full");
    let served = ferry.serve(&["other/disk"]);
    let uri = served.uri("other%2fdisk");
    let mut write = Command::new("/usr/bin/python3");
    write.args(["-m", "nbd", "-u", &uri, "-c", "h.pwrite(b'x'*4096, 0)"]);
    run(&mut write).fails(1, "No space left");
    served.stop();
    assert!(ferry.export("other/disk") == bytes, "a full cluster can be read");
    full_at(ferry, 0.85, 0.95);
    wait_until("there is room", || !has_health(ferry, "OSD_FULL"));
    assert_eq!(ferry.ok(&["ls"]), "", "something half made is listed");
    ferry.ok(&["create", "--size", "8M", "new"]);
}

/// The migration is done in the end.
fn a_cluster_whose_osd_is_away(ferry: &Ferry, cluster: &OwnCluster) {
    let clients = Clients::start(ferry);
    let pace = ["--max-bytes-per-second", "128K"];
    let execute = ["migration", "execute", "--no-progress", "other/disk"];
    let mut execute = ferry.start(&[&execute[..], &pace].concat());
    ferry.watcher("other/disk");
    cluster.dev("osd-down");
    let waiting = clients.write(200);
    // Who serves or moves waits; others tell that nobody answers.
    for words in [
        &["ls", "--connect-timeout", "3"][..],
        &["info", "new", "--connect-timeout", "3"],
    ] {
        ferry.rbd(words).fails(110, "did not answer in time");
    }
    assert!(execute.is_running(), "{}", execute.stderr());
    assert!(!waiting.is_finished(), "answered without an OSD");
    clients.are_at_work();
    cluster.dev("osd-up");
    clients.is_answered(waiting);
    clients.write_often();
    clients.are_at_work();
    clients.end(ferry);
    // The rest need not take minutes.
    let unbound = ["--max-bytes-per-second", "none"];
    ferry.ok(&[&["migration", "throttle", "other/disk"][..], &unbound].concat());
    assert!(execute.is_running(), "{}", execute.stderr());
    execute.finish().ok();
    ferry.ok(&["migration", "commit", "--no-progress", "other/disk"]);
}

/// Clients of one server that write without a break.
struct Clients {
    served: Served,
    runtime: Runtime,
    /// Each has an image and keeps a journal of it. They ask for one thing at a time, so the first error ends them.
    writers: Vec<(String, JoinHandle<Journal>)>,
    /// One more, which does as it is told.
    told: Arc<Client>,
}

/// The image of the client that does as it is told.
const TOLD: &str = "rbd/told";
/// What its block holds in the end.
const LAST: u8 = 50;
const IMAGE_BLOCKS: u32 = 2048;

impl Clients {
    fn start(ferry: &Ferry) -> Self {
        let images = ["rbd/first", "rbd/second", TOLD];
        for image in images {
            ferry.ok(&["create", "--size", "8M", "--object-size", "1M", image]);
        }
        let served = ferry.serve(&images);
        let runtime = Runtime::new().unwrap();
        let mut writers = Vec::new();
        for (seed, image) in (1..).zip(&images[..2]) {
            let client = runtime.block_on(connect(&served.socket, image));
            let journal = Journal::zeroes(IMAGE_BLOCKS);
            let writer = write_until_gone(client, journal, 1, u32::MAX, seed);
            writers.push(((*image).to_owned(), runtime.spawn(writer)));
        }
        let told = Arc::new(runtime.block_on(connect(&served.socket, TOLD)));
        let clients = Self {
            served,
            runtime,
            writers,
            told,
        };
        clients.write_often();
        clients
    }

    /// Writes a block, which is answered when the cluster has it.
    fn write(&self, byte: u8) -> JoinHandle<Result<(), ClientError>> {
        let told = Arc::clone(&self.told);
        let data = Bytes::from(vec![byte; BLOCK_BYTES as usize]);
        self.runtime.spawn(async move { told.write(0, data, true).await })
    }

    #[track_caller]
    fn is_answered(&self, write: JoinHandle<Result<(), ClientError>>) {
        within_limit(&self.runtime, write).unwrap().unwrap();
    }

    /// Long enough for the others to have done something, too.
    #[track_caller]
    fn write_often(&self) {
        for byte in 1..=LAST {
            self.is_answered(self.write(byte));
        }
    }

    #[track_caller]
    fn are_at_work(&self) {
        for (image, writer) in &self.writers {
            assert!(!writer.is_finished(), "the client of {image} got an error");
        }
    }

    /// Stops the server. All that was flushed is there.
    #[track_caller]
    fn end(self, ferry: &Ferry) {
        drop(self.told);
        self.served.stop();
        for (image, writer) in self.writers {
            let mut journal = within_limit(&self.runtime, writer).unwrap();
            let bytes = ferry.export(&image);
            assert!(
                bytes.iter().any(|byte| *byte != 0),
                "nobody has written to {image}"
            );
            assert_eq!(journal.settle(&bytes), Ok(()), "{image}");
        }
        let bytes = ferry.export(TOLD);
        assert!(bytes[..BLOCK_BYTES as usize].iter().all(|byte| *byte == LAST));
    }
}

/// Waits for a client; one that gets no answer is a failure, not a test that never ends.
#[track_caller]
fn within_limit<F: Future>(runtime: &Runtime, client: F) -> F::Output {
    let answered = runtime.block_on(async { tokio::time::timeout(LIMIT, client).await });
    answered.expect("an answer from the server in time")
}

fn an_osd_that_lacks_a_class(ferry: &Ferry, cluster: &OwnCluster) {
    let plain = std::fs::read_to_string(cluster.conf()).unwrap();
    let restart_with = |setting: &str| {
        cluster.dev("osd-down");
        std::fs::write(cluster.conf(), format!("{plain}[osd]\n{setting}\n")).unwrap();
        cluster.dev("osd-up");
    };
    let objects = || ["rbd", "other"].map(|pool| ferry.all_objects(pool));
    let before = objects();

    // It may not load the class.
    restart_with("osd class load list = lock");
    for words in [
        &["create", "--size", "8M", "classless"][..],
        &["migration", "prepare", "new", "other/new"],
    ] {
        ferry.rbd(words).fails(1, "class 'rbd' is refused");
    }
    assert_eq!(objects(), before);

    // It has none of this name.
    let mut look_up = Command::new("/usr/bin/ceph-conf");
    look_up.arg("-c").arg(cluster.conf());
    let place = run(look_up.args(["--show-config-value", "osd_class_dir"])).ok();
    let classes = ferry.path("classes");
    let only = "libcls_rbd.so";
    std::fs::create_dir(&classes).unwrap();
    std::os::unix::fs::symlink(Path::new(place.stdout.trim()).join(only), classes.join(only)).unwrap();
    restart_with(&format!("osd class dir = {}", classes.display()));
    let write = ["bench", "--io-type", "write", "--io-total", "4K", "new"];
    let refused = ferry.rbd(&write).fails(95, "the OSD has no method");
    assert!(refused.stderr.contains("of class 'lock'"), "{refused}");
    assert_eq!(objects(), before);
}

/// Whether writes to a pool are refused for its quota. A manager has to count first.
fn is_over_its_quota(ferry: &Ferry, pool: &str) -> bool {
    let pools = ferry.ceph(&["osd", "pool", "ls", "detail"]);
    let named = format!("'{pool}'");
    let line = pools.lines().find(|line| line.contains(&named));
    line.unwrap().contains("full_quota")
}

#[test]
fn a_pool_over_its_quota_takes_no_more_but_gives_and_goes_on_when_there_is_none() {
    let Some(ferry) = Ferry::on_ceph() else { return };
    let manager = ferry.ceph(&["mgr", "dump", "--format", "json"]);
    let manager: serde_json::Value = serde_json::from_str(&manager).unwrap();
    if manager["available"] != true {
        skip("a cluster without a manager knows of no quotas");
        return;
    }
    let pool = ferry.make_pool("quota");
    let [image, spare, new] = ["disk", "spare", "new"].map(|name| format!("{pool}/{name}"));
    // The first object is absent, the second is there.
    let mut bytes = vec![0; 8 * MIB];
    bytes[MIB..2 * MIB].fill(7);
    ferry.import(&bytes, &image, &["--object-size", "1M"]);
    ferry.ok(&["create", "--size", "8M", &spare]);
    let before = ferry.all_objects(&pool);
    let set_quota = |objects: &str| {
        ferry.ceph(&["osd", "pool", "set-quota", &pool, "max_objects", objects]);
    };
    set_quota("1");
    wait_until("the pool is over its quota", || is_over_its_quota(&ferry, &pool));

    // Nobody waits for room: a command that did would not end in time.
    let raw = ferry.file("raw");
    std::fs::write(&raw, vec![1; MIB]).unwrap();
    let write = ["bench", "--io-type", "write", "--io-total", "4K", &image];
    for words in [
        &["create", "--size", "8M", &new][..],
        &["import", "--no-progress", &raw, &new],
        &write,
    ] {
        ferry.rbd(words).fails(122, "quota is used up");
    }
    assert_eq!(ferry.all_objects(&pool), before);
    assert_eq!(ferry.ok_as(Side::Ceph, &["ls", &pool]), "disk\nspare\n");
    assert_eq!(ferry.ok(&["trash", "ls", "--all", &pool]), "");
    let served = ferry.serve(&[&image]);
    let runtime = Runtime::new().unwrap();
    let client = within_limit(&runtime, connect(&served.socket, &image));
    let first = Bytes::from(vec![9; BLOCK_BYTES as usize]);
    let refused = within_limit(&runtime, client.write(0, first.clone(), true));
    let is_full = |error: &ClientError| {
        matches!(
            error,
            ClientError::Server {
                errno: Errno::NoSpc,
                ..
            }
        )
    };
    assert!(refused.as_ref().is_err_and(is_full), "{refused:?}");
    let read = within_limit(&runtime, client.read(MIB as u64, BLOCK_BYTES)).unwrap();
    assert!(read.iter().all(|byte| *byte == 7), "what is there can be read");
    ferry.ok(&["rm", "--no-progress", &spare]);

    set_quota("0");
    wait_until("the quota is gone", || !is_over_its_quota(&ferry, &pool));
    // The OSD may hear of it a moment later than we. The server and its client have not suffered.
    wait_until("the OSD takes the write", || {
        within_limit(&runtime, client.write(0, first.clone(), true)).is_ok()
    });
    within_limit(&runtime, client.disconnect()).unwrap();
    served.stop();
    ferry.ok(&["create", "--size", "8M", &new]);
    bytes[..first.len()].copy_from_slice(&first);
    assert!(ferry.export_as(Side::Ceph, &image) == bytes);
    ferry.delete_pool(&pool);
}

#[test]
fn who_may_not_fence_leaves_a_dead_owner_s_lock_to_who_may() {
    let Some(ferry) = Ferry::on_ceph() else { return };
    let pool = ferry.make_pool("fencing");
    let image = format!("{pool}/disk");
    ferry.ok(&["create", "--size", "8M", "--object-size", "1M", &image]);
    let served = ferry.serve(&[&image]);
    let runtime = Runtime::new().unwrap();
    let client = within_limit(&runtime, connect(&served.socket, &image));
    let data = Bytes::from(vec![7; MIB]);
    within_limit(&runtime, client.write(MIB as u64, data, true)).unwrap();
    drop(client);
    served.kill();
    let locks = || ferry.ok_as(Side::Ceph, &["lock", "ls", "--format", "json", &image]);
    let (locked, objects) = (locks(), ferry.all_objects(&pool));
    assert!(locked.contains("\"auto "), "{locked}");

    let caps = format!("allow rwx pool={pool}");
    let writer = ferry.user(&["mon", "allow r", "osd", &caps]);
    let write = ["bench", "--io-type", "write", "--io-total", "4K", &image];
    // It is the monitors that refuse, each in its own words.
    let refused = ferry.rbd_as_user(&writer, &write).fails(13, "capabilities");
    assert!(refused.stderr.contains("blocklist"), "{refused}");
    assert_eq!(locks(), locked, "the dead owner can still write");
    assert_eq!(ferry.all_objects(&pool), objects);

    let caps = format!("profile rbd pool={pool}");
    let user = ferry.user(&["mon", "profile rbd", "osd", &caps]);
    ferry.rbd_as_user(&user, &write).ok();
    assert!(!locks().contains("\"auto "), "{}", locks());
    let bytes = ferry.export_as(Side::Ceph, &image);
    assert!(bytes[MIB..2 * MIB].iter().all(|byte| *byte == 7));
    assert!(bytes[..4096].iter().any(|byte| *byte != 0));
    ferry.delete_pool(&pool);
}
