//! A store, commands on it, a server on it.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::process::{Background, Finished, LIMIT, POLL, run};

/// Where the `rbd` binary is.
///
/// # Panics
/// If it has not been built.
pub fn binary() -> PathBuf {
    let path = std::env::var_os("FERRY_RBD").map_or_else(
        || {
            // <build directory>/<profile>/deps/<test>
            let test = std::env::current_exe().expect("the path of the test");
            let profile = test.parent().and_then(Path::parent).expect("a build directory");
            profile.join("rbd")
        },
        PathBuf::from,
    );
    assert!(
        path.is_file(),
        "{} is missing: run `cargo build -p ferry-cli` first",
        path.display()
    );
    path
}

/// A store of one test with the pools `rbd` and `fast`, and a directory for files.
#[derive(Debug)]
pub struct Ferry {
    directory: TempDir,
    store: PathBuf,
    binary: PathBuf,
    servers: AtomicU32,
    /// Configuration of the Ceph cluster, when the store is one.
    pub(crate) ceph: Option<PathBuf>,
    /// More variables of the environment of every command.
    variables: Vec<(String, String)>,
}

impl Ferry {
    /// A store in a temporary directory.
    ///
    /// # Panics
    /// If it can't be made.
    pub fn new() -> Self {
        let ferry = Self::bare();
        ferry.ok(&["pool", "create", "fast"]);
        ferry
    }

    /// A temporary directory without a store yet.
    ///
    /// # Panics
    /// If it can't be made.
    pub fn bare() -> Self {
        let directory = tempfile::Builder::new()
            .prefix("ferry-e2e-")
            .tempdir()
            .expect("a temporary directory");
        Self::at(directory.path().join("store"), directory)
    }

    /// A store at `store`, with `directory` for files.
    pub fn at(store: PathBuf, directory: TempDir) -> Self {
        Self {
            store,
            directory,
            binary: binary(),
            servers: AtomicU32::new(0),
            ceph: None,
            variables: Vec::new(),
        }
    }

    /// Every command gets this variable in its environment from now on.
    pub fn with_variable(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The command is this program from now on: one that is wrong on purpose.
    pub fn with_binary(mut self, binary: PathBuf) -> Self {
        self.binary = binary;
        self
    }

    pub(crate) fn variables(&self) -> &[(String, String)] {
        &self.variables
    }

    /// The directory for files alone.
    pub(crate) fn into_directory(self) -> TempDir {
        self.directory
    }

    /// What a shell needs to know to use this store with a bare `rbd`.
    pub fn environment(&self) -> Vec<(&'static str, PathBuf)> {
        let conf = self.ceph.clone().map(|conf| ("CEPH_CONF", conf));
        std::iter::once(("FERRY_STORE", self.store.clone()))
            .chain(conf)
            .collect()
    }

    /// The store's directory.
    pub fn store(&self) -> &Path {
        &self.store
    }

    /// A path for a file of the test.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The same as text.
    pub fn file(&self, name: &str) -> String {
        self.path(name).to_string_lossy().into_owned()
    }

    /// The command `rbd` with these words on this store.
    pub fn command<S: AsRef<OsStr>>(&self, words: &[S]) -> Command {
        let mut command = Command::new(&self.binary);
        command.arg("--store").arg(&self.store).args(words);
        command.env_remove("FERRY_STORE").env("TZ", "UTC");
        if let Some(conf) = &self.ceph {
            command.env("CEPH_CONF", conf);
        }
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        command.current_dir(self.directory.path());
        command
    }

    /// Runs `rbd` with these words to its end.
    #[track_caller]
    pub fn rbd<S: AsRef<OsStr>>(&self, words: &[S]) -> Finished {
        run(&mut self.command(words))
    }

    /// Runs `rbd`, which must succeed, and gives its standard output.
    ///
    /// # Panics
    /// If it fails.
    #[track_caller]
    pub fn ok<S: AsRef<OsStr>>(&self, words: &[S]) -> String {
        self.rbd(words).ok().stdout
    }

    /// What `rbd` says as JSON.
    ///
    /// # Panics
    /// If it fails or says something else.
    #[track_caller]
    pub fn json(&self, words: &[&str]) -> Value {
        let words: Vec<_> = words.iter().copied().chain(["--format", "json"]).collect();
        let text = self.ok(&words);
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{words:?}: {error}: {text}"))
    }

    /// The state of the migration that `rbd status` shows, or an empty string.
    #[track_caller]
    pub fn migration_state(&self, image: &str) -> String {
        let status = self.json(&["status", image]);
        status["migration"]["state"].as_str().unwrap_or("").to_owned()
    }

    /// Starts `rbd` with these words.
    #[track_caller]
    pub fn start(&self, words: &[&str]) -> Background {
        let number = self.servers.fetch_add(1, Ordering::Relaxed);
        Background::start(
            &mut self.command(words),
            self.directory.path(),
            &format!("job{number}"),
        )
    }

    /// The bytes of an image or snapshot.
    ///
    /// # Panics
    /// If it can't be exported.
    #[track_caller]
    pub fn export(&self, spec: &str) -> Vec<u8> {
        let number = self.servers.fetch_add(1, Ordering::Relaxed);
        let path = self.path(&format!("export{number}"));
        self.ok(&["export", "--no-progress", spec, &path.to_string_lossy()]);
        let bytes = std::fs::read(&path).expect("the exported file");
        let _ = std::fs::remove_file(&path);
        bytes
    }

    /// Makes an image of these bytes.
    ///
    /// # Panics
    /// If it can't be made.
    #[track_caller]
    pub fn import(&self, bytes: &[u8], spec: &str, options: &[&str]) {
        let number = self.servers.fetch_add(1, Ordering::Relaxed);
        let path = self.file(&format!("import{number}"));
        std::fs::write(&path, bytes).expect("a file to import");
        let words: Vec<_> = ["import", "--no-progress", path.as_str(), spec]
            .into_iter()
            .chain(options.iter().copied())
            .collect();
        self.ok(&words);
        let _ = std::fs::remove_file(&path);
    }

    /// Serves images, and waits until the server listens.
    ///
    /// # Panics
    /// If it doesn't come up.
    #[track_caller]
    pub fn serve(&self, specs: &[&str]) -> Served {
        self.try_serve(specs).unwrap_or_else(|error| panic!("{error}"))
    }

    /// The same, where a server may refuse to come up.
    ///
    /// # Errors
    /// What it said.
    ///
    /// # Panics
    /// If it neither comes up nor ends in time.
    #[track_caller]
    pub fn try_serve(&self, specs: &[&str]) -> Result<Served, String> {
        let number = self.servers.fetch_add(1, Ordering::Relaxed);
        let socket = self.path(&format!("nbd{number}.sock"));
        let socket_text = socket.to_string_lossy().into_owned();
        let words: Vec<_> = ["serve", "--socket", &socket_text]
            .into_iter()
            .chain(specs.iter().copied())
            .collect();
        let mut process = self.start(&words);
        let start = Instant::now();
        while !process.stderr().contains('\n') {
            assert!(start.elapsed() < LIMIT, "rbd {words:?} neither comes up nor ends");
            if !process.is_running() {
                break;
            }
            std::thread::sleep(POLL);
        }
        match process.is_running() && socket.exists() {
            true => Ok(Served { process, socket }),
            false => Err(format!("rbd {words:?} did not come up: {}", process.stderr())),
        }
    }
}

impl Default for Ferry {
    fn default() -> Self {
        Self::new()
    }
}

/// A running `rbd serve`. Dropping it kills it.
#[derive(Debug)]
pub struct Served {
    /// The process.
    pub process: Background,
    /// Its socket.
    pub socket: PathBuf,
}

impl Served {
    /// The NBD URI of one export, or of the server (`""`).
    pub fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.socket.display())
    }

    /// SIGTERM, after which the server must end well.
    ///
    /// # Panics
    /// If it doesn't.
    #[track_caller]
    pub fn stop(self) -> Finished {
        self.process.signal(Signal::TERM);
        self.process.finish().ok()
    }

    /// `kill -9`.
    pub fn kill(self) -> Finished {
        self.process.kill()
    }
}

/// Waits until something holds, and fails the test with `what` after [`LIMIT`].
///
/// # Panics
/// When the time is over.
#[track_caller]
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < LIMIT, "waited too long until {what}");
        std::thread::sleep(POLL);
    }
}
