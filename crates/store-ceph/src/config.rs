//! Where the cluster is and who we are, as every client of Ceph is told.

use std::fmt;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ferry_store::{Errno, WriteAround};

use crate::sys::{Cluster, LoadError, library};

/// Longest file with a secret that is read; keys are shorter than 100 bytes.
const SECRET_BYTES_MAX: u64 = 64 << 10;

/// How to reach a cluster. What is left out is found as Ceph's own clients find it: `CEPH_CONF`, `CEPH_ARGS`, `CEPH_KEYRING`,
/// `/etc/ceph/CLUSTER.conf`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CephConfig {
    /// Configuration file (`-c`).
    pub conf: Option<PathBuf>,
    /// Name of the cluster (`--cluster`); `ceph` without it.
    pub cluster: Option<String>,
    /// Full name of the user (`-n`), such as `client.admin`, which it is without it.
    pub name: Option<String>,
    /// Addresses of the monitors (`-m`).
    pub mon_host: Option<String>,
    /// Keyring file (`-k`).
    pub keyring: Option<PathBuf>,
    /// File with the secret alone (`-K`).
    pub keyfile: Option<PathBuf>,
    /// Longest that connecting, and each question to the monitors, may take.
    pub connect_timeout: Duration,
    /// Longest that an operation may wait for an OSD; `None`: for ever, as Ceph's clients do. Ceph's own option
    /// `rados_osd_op_timeout` wins where it is set. What was given up may still take effect, as what a killed client had sent.
    pub op_timeout: Option<Duration>,
    /// Other options of Ceph's, names and values, the last of a name counts.
    pub settings: Vec<(String, String)>,
    /// Leave alone what librados exports for C++ only, as with a library that lacks it. Without being asked for,
    /// `FERRY_RADOS_CXX=0` in the environment says so.
    pub c_interface_only: bool,
}

impl Default for CephConfig {
    fn default() -> Self {
        Self {
            conf: None,
            cluster: None,
            name: None,
            mon_host: None,
            keyring: None,
            keyfile: None,
            connect_timeout: Self::CONNECT_TIMEOUT,
            op_timeout: None,
            settings: Vec::new(),
            c_interface_only: std::env::var_os("FERRY_RADOS_CXX").is_some_and(|value| value == "0"),
        }
    }
}

/// Why there is no connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OpenError {
    /// There is no librados to speak through.
    Library(LoadError),
    /// The configuration cannot be used: what, and why.
    Config(String, Errno),
    /// The cluster did not take us.
    Connect(String, Errno),
}

impl OpenError {
    /// What a command may act on.
    pub fn errno(&self) -> Errno {
        match self {
            Self::Library(_) => Errno::ENOENT,
            Self::Config(_, errno) | Self::Connect(_, errno) => *errno,
        }
    }
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Library(error) => write!(f, "{error}"),
            Self::Config(what, errno) => write!(f, "{what}: {errno}"),
            Self::Connect(what, errno) => write!(f, "{what}: {errno}{}", hint(*errno)),
        }
    }
}

impl std::error::Error for OpenError {}

fn hint(errno: Errno) -> &'static str {
    match errno {
        Errno::ETIMEDOUT => "; no monitor answered in time: is the cluster up, and is it this one?",
        Errno::EACCES => "; the cluster does not accept this user's key",
        Errno::EINVAL => "; the secret is no key of Ceph's, or the configuration is wrong",
        Errno::EPERM => "; this user has no capability 'mon allow r', or its key is another",
        Errno::ENOENT => "; no keyring or no monitors were found: name them with -k, -c or -m",
        _ => "",
    }
}

impl CephConfig {
    /// How long connecting may take when nothing else is said.
    pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

    /// An unconnected handle with everything set. Reads files; blocks.
    pub(crate) fn handle(&self) -> Result<Cluster, OpenError> {
        let library = library().map_err(OpenError::Library)?;
        tracing::debug!(?library, "loaded");
        let cluster = self.cluster.as_deref().unwrap_or("ceph");
        let name = self.name.as_deref().unwrap_or("client.admin");
        let handle = Cluster::new(library, cluster, name).map_err(|errno| {
            let what = format!("'{name}' is no name of a Ceph user of cluster '{cluster}'");
            OpenError::Config(what, errno)
        })?;
        self.read_files(&handle)?;
        handle
            .read_environment()
            .map_err(|errno| OpenError::Config("cannot use what CEPH_ARGS says".to_owned(), errno))?;
        // What was said on the command line wins over files and environment.
        let path = |path: &PathBuf| path.to_string_lossy().into_owned();
        let seconds = self.connect_timeout.as_secs().max(1).to_string();
        let is_set = handle
            .get("rados_osd_op_timeout")
            .is_some_and(|value| value.parse() != Ok(0.0));
        let op_timeout = self.op_timeout.filter(|_| !is_set);
        let said = [
            ("mon_host", self.mon_host.clone()),
            ("keyring", self.keyring.as_ref().map(path)),
            ("client_mount_timeout", Some(seconds.clone())),
            ("rados_mon_op_timeout", Some(seconds)),
            (
                "rados_osd_op_timeout",
                op_timeout.map(|timeout| timeout.as_secs().max(1).to_string()),
            ),
        ];
        for (option, value) in said {
            let Some(value) = value else { continue };
            handle.set(option, &value).map_err(|errno| {
                OpenError::Config(format!("cannot set Ceph's option {option} to '{value}'"), errno)
            })?;
        }
        for (option, value) in &self.settings {
            handle.set(option, value).map_err(|errno| {
                OpenError::Config(format!("cannot set Ceph's option {option} to '{value}'"), errno)
            })?;
        }
        if let Some(path) = &self.keyfile {
            self.read_key(&handle, path)?;
        }
        Ok(handle)
    }

    /// Takes the secret out of its file, as Ceph's own commands do. It appears in no message.
    fn read_key(&self, handle: &Cluster, path: &Path) -> Result<(), OpenError> {
        let failed = |errno| {
            let what = format!("cannot read a Ceph user's secret from '{}'", path.display());
            OpenError::Config(what, errno)
        };
        let mut secret = Vec::new();
        let read =
            std::fs::File::open(path).and_then(|file| file.take(SECRET_BYTES_MAX).read_to_end(&mut secret));
        read.map_err(|error| failed(Errno(error.raw_os_error().unwrap_or(Errno::EIO.0))))?;
        let secret = std::str::from_utf8(&secret).map_err(|_| failed(Errno::EINVAL))?;
        handle.set("key", secret.trim()).map_err(failed)
    }

    /// Ceph's options of the cache of images, as a client with `librbd` has them. Its policies `writearound` and
    /// `writeback` are one here: bytes are sent at once, and kept only until they have arrived.
    pub(crate) fn write_around(handle: &Cluster) -> Option<WriteAround> {
        let is = |option, value: &str| handle.get(option).is_some_and(|found| found == value);
        if !is("rbd_cache", "true") || is("rbd_cache_policy", "writethrough") {
            return None;
        }
        let max_bytes = handle.get("rbd_cache_max_dirty")?.parse().ok()?;
        (max_bytes > 0).then(|| WriteAround {
            max_bytes,
            until_flush: is("rbd_cache_writethrough_until_flush", "true"),
        })
    }

    /// Ceph's options that allow reading ahead. How far and for how long is not theirs: here it goes on as long as the client
    /// does.
    pub(crate) fn reads_ahead(handle: &Cluster) -> bool {
        let is = |option, value: &str| handle.get(option).is_some_and(|found| found == value);
        is("rbd_cache", "true") && !is("rbd_readahead_max_bytes", "0")
    }

    fn read_files(&self, handle: &Cluster) -> Result<(), OpenError> {
        match (handle.read_conf(self.conf.as_deref()), &self.conf) {
            (Ok(()), _) => Ok(()),
            // Without a file, the monitors may be on the command line, in the environment or in the DNS.
            (Err(Errno::ENOENT), None) => Ok(()),
            (Err(errno), None) => Err(OpenError::Config(
                "cannot read Ceph's configuration".to_owned(),
                errno,
            )),
            (Err(errno), Some(path)) => Err(OpenError::Config(
                format!("cannot read Ceph's configuration '{}'", path.display()),
                errno,
            )),
        }
    }

    /// Connects. Blocks for as long as [`CephConfig::connect_timeout`] says.
    pub(crate) fn connect(&self) -> Result<Cluster, OpenError> {
        let mut handle = self.handle()?;
        handle.connect().map_err(|errno| {
            let monitors = match handle.get("mon_host") {
                Some(hosts) if !hosts.is_empty() => format!(" at {hosts}"),
                _ => String::new(),
            };
            let name = self.name.as_deref().unwrap_or("client.admin");
            OpenError::Connect(
                format!("cannot connect to the Ceph cluster{monitors} as {name}"),
                errno,
            )
        })?;
        Ok(handle)
    }
}
