//! Where the cluster is and who we are, as every client of Ceph is told.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use ferry_store::Errno;

use crate::sys::{Cluster, LoadError, library};

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
        let said = [
            ("mon_host", self.mon_host.clone()),
            ("keyring", self.keyring.as_ref().map(path)),
            ("keyfile", self.keyfile.as_ref().map(path)),
            ("client_mount_timeout", Some(seconds.clone())),
            ("rados_mon_op_timeout", Some(seconds)),
        ];
        for (option, value) in said {
            let Some(value) = value else { continue };
            handle.set(option, &value).map_err(|errno| {
                OpenError::Config(format!("cannot set Ceph's option {option} to '{value}'"), errno)
            })?;
        }
        Ok(handle)
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
        let handle = self.handle()?;
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
