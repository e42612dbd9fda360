//! A store on a real cluster, and Ceph's own `rbd` beside ours.
//!
//! The cluster is the one whose configuration `FERRY_TEST_CEPH` names (`scripts/test` starts one, `scripts/ceph-dev` by
//! hand). It is shared by all tests: each gives its images names of their own.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::Command;

use crate::ferry::{Ferry, wait_until};
use crate::process::{Background, Finished, run};
use crate::tools::skip;

/// Whose `rbd` is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Ours.
    Ferry,
    /// Ceph's.
    Ceph,
}

impl Side {
    /// Both.
    pub const BOTH: [Side; 2] = [Side::Ferry, Side::Ceph];

    /// The other.
    pub fn other(self) -> Self {
        match self {
            Side::Ferry => Side::Ceph,
            Side::Ceph => Side::Ferry,
        }
    }
}

/// A user of the cluster.
#[derive(Debug)]
pub struct User {
    /// Its name without `client.`.
    pub id: String,
    /// The file with its key.
    pub keyring: String,
}

/// Ceph's own command.
const CEPH_RBD: &str = "/usr/bin/rbd";

impl Ferry {
    /// The images of the cluster; `None`, with a message, where there is none.
    #[track_caller]
    pub fn on_ceph() -> Option<Self> {
        let Some(conf) = std::env::var_os("FERRY_TEST_CEPH") else {
            eprintln!("LEFT OUT: FERRY_TEST_CEPH names no cluster");
            return None;
        };
        if !std::path::Path::new(CEPH_RBD).is_file() {
            skip("Ceph's rbd is not installed");
            return None;
        }
        let mut ferry = Self::bare();
        let directory = ferry.into_directory();
        ferry = Self::at("ceph".into(), directory);
        ferry.ceph = Some(PathBuf::from(conf));
        Some(ferry)
    }

    /// The images of another cluster.
    pub fn on_another_ceph(mut self, conf: PathBuf) -> Self {
        self.ceph = Some(conf);
        self
    }

    /// Configuration of the cluster.
    ///
    /// # Panics
    /// If the store is not on one.
    pub fn ceph_conf(&self) -> &std::path::Path {
        self.ceph.as_ref().expect("a store on a cluster")
    }

    /// Runs either side's `rbd` with these words to its end.
    ///
    /// # Panics
    /// If the store is not on a cluster.
    #[track_caller]
    pub fn run_as<S: AsRef<OsStr>>(&self, side: Side, words: &[S]) -> Finished {
        run(&mut self.command_as(side, words))
    }

    /// Either side's `rbd` with these words.
    ///
    /// # Panics
    /// If the store is not on a cluster.
    pub fn command_as<S: AsRef<OsStr>>(&self, side: Side, words: &[S]) -> Command {
        match side {
            Side::Ferry => self.command(words),
            Side::Ceph => {
                let mut command = Command::new(CEPH_RBD);
                command
                    .arg("-c")
                    .arg(self.ceph_conf())
                    .args(words)
                    .env("TZ", "UTC")
                    .envs(self.variables().iter().cloned());
                command
            }
        }
    }

    /// Starts either side's `rbd` with these words.
    #[track_caller]
    pub fn start_as<S: AsRef<OsStr>>(&self, side: Side, words: &[S]) -> Background {
        Background::start(&mut self.command_as(side, words), &self.path(""), &unique("job"))
    }

    /// Names of the objects of a pool of the cluster that contain `part`, in all namespaces.
    ///
    /// # Panics
    /// If they can't be listed.
    #[track_caller]
    pub fn rados_objects(&self, pool: &str, part: &str) -> Vec<String> {
        let listing = self.rados(&["-p", pool, "ls", "--all"]);
        listing
            .lines()
            .filter(|line| line.contains(part))
            .map(str::to_owned)
            .collect()
    }

    /// What Ceph's `rados` answers to these words.
    ///
    /// # Panics
    /// If it fails.
    #[track_caller]
    pub fn rados<S: AsRef<OsStr>>(&self, words: &[S]) -> String {
        let mut command = Command::new("rados");
        run(command.arg("-c").arg(self.ceph_conf()).args(words))
            .ok()
            .stdout
    }

    /// All objects of a pool, in all namespaces, in order.
    ///
    /// # Panics
    /// If they can't be listed.
    #[track_caller]
    pub fn all_objects(&self, pool: &str) -> Vec<String> {
        let mut objects = self.rados_objects(pool, "");
        objects.sort_unstable();
        objects
    }

    /// What Ceph's `ceph` answers to these words.
    ///
    /// # Panics
    /// If it fails.
    #[track_caller]
    pub fn ceph<S: AsRef<OsStr>>(&self, words: &[S]) -> String {
        let mut command = Command::new("/usr/bin/ceph");
        // Its Python is the system's.
        command.env("PATH", "/usr/bin:/bin");
        run(command.arg("-c").arg(self.ceph_conf()).args(words))
            .ok()
            .stdout
    }

    /// A new pool for images, which no other test uses; its name.
    ///
    /// # Panics
    /// If it can't be made.
    #[track_caller]
    pub fn make_pool(&self, what: &str) -> String {
        let pool = unique(what);
        self.ok(&["pool", "create", &pool]);
        pool
    }

    /// Removes a pool with everything in it, as an administrator does.
    ///
    /// # Panics
    /// If it can't be removed.
    #[track_caller]
    pub fn delete_pool(&self, pool: &str) {
        let sure = "--yes-i-really-really-mean-it";
        self.ceph(&["osd", "pool", "delete", pool, pool, sure]);
    }

    /// A new user with these capabilities.
    ///
    /// # Panics
    /// If it can't be made.
    #[track_caller]
    pub fn user(&self, caps: &[&str]) -> User {
        let id = unique("user");
        let keyring = self.file(&id);
        let name = format!("client.{id}");
        let make = ["auth", "get-or-create", name.as_str()];
        self.ceph(&[&make[..], caps, &["-o", keyring.as_str()]].concat());
        User { id, keyring }
    }

    /// Runs our `rbd` as that user to its end.
    #[track_caller]
    pub fn rbd_as_user(&self, user: &User, words: &[&str]) -> Finished {
        let who = ["--id", user.id.as_str(), "-k", user.keyring.as_str()];
        self.rbd(&[&who[..], words].concat())
    }

    /// Waits until an image is watched, and tells the first watcher's address.
    ///
    /// # Panics
    /// If it isn't in time.
    #[track_caller]
    pub fn watcher(&self, image: &str) -> String {
        let mut address = None;
        wait_until("the image is watched", || {
            let status = self.json(&["status", image]);
            address = status["watchers"][0]["address"].as_str().map(str::to_owned);
            address.is_some()
        });
        address.expect("a watcher's address")
    }

    /// The id of an image.
    ///
    /// # Panics
    /// If there is no such image.
    #[track_caller]
    pub fn image_id(&self, image: &str) -> String {
        let info = self.json(&["info", image]);
        info["id"].as_str().expect("an id").to_owned()
    }

    /// Nothing of the image that had this id is left in a pool, nor in its trash.
    ///
    /// # Panics
    /// If something is; `when` is for the message.
    #[track_caller]
    pub fn nothing_is_left(&self, pool: &str, id: &str, when: &str) {
        // An id may begin another one, so a part of a name is not enough.
        let is_its =
            |name: &String| name.split('.').any(|part| part == id) || name.ends_with(&format!("_{id}"));
        let objects = self.rados_objects(pool, id);
        let left: Vec<_> = objects.into_iter().filter(is_its).collect();
        assert!(left.is_empty(), "{when}: left behind: {left:?}");
        let trash = self.ok(&["trash", "ls", "--all", pool]);
        let is_listed = trash.lines().any(|line| line.split(' ').next() == Some(id));
        assert!(!is_listed, "{when}: {id} is in the trash: {trash}");
    }

    /// Runs either side's `rbd`, which must succeed, and gives its standard output.
    ///
    /// # Panics
    /// If it fails.
    #[track_caller]
    pub fn ok_as<S: AsRef<OsStr>>(&self, side: Side, words: &[S]) -> String {
        self.run_as(side, words).ok().stdout
    }

    /// Runs a verb of a migration that must succeed, with either side's `rbd`. Where an assertion of Ceph's own ends its command
    /// (the `execute` of 16.2.15 does that now and then), it is run again, as a person would.
    ///
    /// # Panics
    /// If it fails.
    #[track_caller]
    pub fn migrate_as(&self, side: Side, verb: &str, image: &str) -> String {
        let words = ["migration", verb, "--no-progress", image];
        for _ in 0..3 {
            let finished = self.run_as(side, &words);
            if side == Side::Ceph && finished.code == -1 {
                eprintln!("run again: {finished}");
            } else {
                return finished.ok().stdout;
            }
        }
        self.ok_as(side, &words)
    }

    /// Size of the objects of an image.
    ///
    /// # Panics
    /// If there is no such image.
    #[track_caller]
    pub fn object_bytes(&self, image: &str) -> usize {
        let size = self.json(&["info", image])["object_size"].as_u64();
        usize::try_from(size.expect("a size")).expect("a size of memory")
    }

    /// The bytes of an image or snapshot, as either side reads them.
    ///
    /// # Panics
    /// If it can't be exported.
    #[track_caller]
    pub fn export_as(&self, side: Side, spec: &str) -> Vec<u8> {
        let path = self.path(&format!("export-{side:?}"));
        let _ = std::fs::remove_file(&path);
        self.ok_as(side, &["export", "--no-progress", spec, &path.to_string_lossy()]);
        std::fs::read(&path).expect("the exported file")
    }
}

/// A cluster that a test has to itself, because it breaks it or needs it empty. It ends when this is dropped.
#[derive(Debug)]
pub struct OwnCluster {
    directory: tempfile::TempDir,
}

impl OwnCluster {
    /// Starts one.
    ///
    /// # Panics
    /// If it doesn't come up.
    #[track_caller]
    #[expect(clippy::new_without_default, reason = "it starts programs")]
    pub fn new() -> Self {
        let directory = tempfile::Builder::new()
            .prefix("ferry-ceph-")
            .tempdir()
            .expect("a temporary directory");
        let cluster = Self { directory };
        cluster.dev("up");
        cluster
    }

    /// Runs a verb of `scripts/ceph-dev` on it.
    ///
    /// # Panics
    /// If it fails.
    #[track_caller]
    pub fn dev(&self, verb: &str) {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../scripts/ceph-dev");
        let path = self.directory.path().join("c");
        run(Command::new(script).arg(verb).arg(path)).ok();
    }

    /// Its configuration.
    pub fn conf(&self) -> PathBuf {
        self.directory.path().join("c/ceph.conf")
    }
}

impl Drop for OwnCluster {
    fn drop(&mut self) {
        self.dev("down");
    }
}

/// The words of a line, with names of images in one namespace: `/NAME` is in the pool `rbd`, `+/NAME` in the pool `other`.
pub fn in_namespace(line: &str, namespace: &str) -> Vec<String> {
    line.split(' ')
        .map(|word| match (word.strip_prefix("+/"), word.strip_prefix('/')) {
            (Some(""), _) => format!("other/{namespace}"),
            (_, Some("")) => format!("rbd/{namespace}"),
            (Some(name), _) => format!("other/{namespace}/{name}"),
            (_, Some(name)) => format!("rbd/{namespace}/{name}"),
            _ => word.to_owned(),
        })
        .collect()
}

/// A name that no other test uses.
pub fn unique(what: &str) -> String {
    format!("{what}-{:016x}", rand::random::<u64>())
}
