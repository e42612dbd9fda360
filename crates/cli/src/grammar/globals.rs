//! Options of every command: which engine, which store, which Ceph user.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use ferry_store_ceph::CephConfig;

use crate::exit::Failure;

/// What the frame takes from the process's environment; tests and embedders fill it themselves.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Environment {
    /// `FERRY_STORE`.
    pub ferry_store: Option<OsString>,
    /// `XDG_DATA_HOME`.
    pub data_home: Option<OsString>,
    /// `HOME`.
    pub home: Option<OsString>,
    /// `XDG_RUNTIME_DIR`.
    pub runtime_dir: Option<OsString>,
    /// `CEPH_ARGS`.
    pub ceph_args: Option<OsString>,
}

impl Environment {
    /// The environment of this process. Empty variables count as unset.
    pub fn from_process() -> Self {
        let get = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        Self {
            ferry_store: get("FERRY_STORE"),
            data_home: get("XDG_DATA_HOME"),
            home: get("HOME"),
            runtime_dir: get("XDG_RUNTIME_DIR"),
            ceph_args: get("CEPH_ARGS"),
        }
    }
}

/// Which engine a command works on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Engine {
    /// The local engine on this directory, which may not exist yet.
    Local(PathBuf),
    /// A Ceph cluster.
    Ceph,
}

/// The global options. Giving any of the Ceph ones chooses the ceph engine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Globals {
    /// `-c`, `--conf`.
    pub conf: Option<String>,
    /// `--cluster`.
    pub cluster: Option<String>,
    /// `--id`.
    pub id: Option<String>,
    /// `-n`, `--name`.
    pub name: Option<String>,
    /// `-m`, `--mon_host`.
    pub mon_host: Option<String>,
    /// `-K`, `--keyfile`.
    pub keyfile: Option<String>,
    /// `-k`, `--keyring`.
    pub keyring: Option<String>,
    /// `--connect-timeout`, in seconds.
    pub connect_timeout_s: Option<u64>,
    /// `--store`, as given.
    pub store: Option<String>,
    pub(super) environment: Environment,
}

impl Globals {
    /// The first Ceph option that was given.
    fn ceph_option(&self) -> Option<&'static str> {
        let given = [
            ("--conf", &self.conf),
            ("--cluster", &self.cluster),
            ("--id", &self.id),
            ("--name", &self.name),
            ("--mon_host", &self.mon_host),
            ("--keyfile", &self.keyfile),
            ("--keyring", &self.keyring),
        ];
        given
            .into_iter()
            .find(|(_, value)| value.is_some())
            .map(|(name, _)| name)
    }

    /// The engine: `--store`, else the Ceph options, else `FERRY_STORE`, else the local store in the user's data home
    /// (`$XDG_DATA_HOME/ferry/store`, `~/.local/share/ferry/store`).
    ///
    /// # Errors
    /// Exit 22 if `--store DIR` and a Ceph option contradict each other, or if no place for a store is known.
    pub fn engine(&self) -> Result<Engine, Failure> {
        match (self.store.as_deref(), self.ceph_option()) {
            (Some("ceph"), _) => return Ok(Engine::Ceph),
            (Some(""), _) => return Err(Failure::invalid("--store needs a directory or the word ceph")),
            (Some(_), Some(option)) => {
                return Err(Failure::invalid(format_args!(
                    "cannot use {option}, which is for a Ceph cluster, with a local --store"
                )));
            }
            (Some(directory), None) => return Ok(Engine::Local(directory.into())),
            (None, Some(_)) => return Ok(Engine::Ceph),
            (None, None) => {}
        }
        match &self.environment.ferry_store {
            Some(store) if store == "ceph" => return Ok(Engine::Ceph),
            Some(store) => return Ok(Engine::Local(store.into())),
            None => {}
        }
        let data_home = self
            .environment
            .data_home
            .as_ref()
            .map(PathBuf::from)
            .filter(|path| path.is_absolute());
        let home = || {
            self.environment
                .home
                .as_ref()
                .map(|home| PathBuf::from(home).join(".local/share"))
        };
        match data_home.or_else(home) {
            Some(base) => Ok(Engine::Local(base.join("ferry/store"))),
            None => Err(Failure::invalid(
                "HOME is not set; name the store with --store or FERRY_STORE",
            )),
        }
    }

    /// How to reach the Ceph cluster: what the command line says, else `CEPH_ARGS`; the rest is found as Ceph finds it.
    ///
    /// # Errors
    /// Exit 22 if both `--id` and `--name` are given and name different users, or for a user without a type.
    pub fn ceph(&self) -> Result<CephConfig, Failure> {
        let said = self.environment.ceph_args.as_deref().unwrap_or_default();
        let said = said.to_string_lossy();
        let words: Vec<&str> = said.split_whitespace().collect();
        let from_environment = |names: &[&str]| word_after(&words, names).map(str::to_owned);
        let user = |id: Option<String>, name: Option<String>| match (id, name) {
            (Some(id), Some(name)) if name != format!("client.{id}") => Err(Failure::invalid(format_args!(
                "--id {id} and --name {name} are different users"
            ))),
            (_, Some(name)) if !name.contains('.') => Err(Failure::invalid(format_args!(
                "--name {name}: the user's type is missing, as in client.{name}; or use --id"
            ))),
            (_, Some(name)) => Ok(Some(name)),
            (Some(id), None) => Ok(Some(format!("client.{id}"))),
            (None, None) => Ok(None),
        };
        let name = match user(self.id.clone(), self.name.clone())? {
            Some(name) => Some(name),
            None => user(
                from_environment(&["--id", "--user"]),
                from_environment(&["--name", "-n"]),
            )?,
        };
        Ok(CephConfig {
            conf: self
                .conf
                .clone()
                .or_else(|| from_environment(&["--conf", "-c"]))
                .map(PathBuf::from),
            cluster: self.cluster.clone().or_else(|| from_environment(&["--cluster"])),
            name,
            mon_host: self.mon_host.clone(),
            keyring: self.keyring.clone().map(PathBuf::from),
            keyfile: self.keyfile.clone().map(PathBuf::from),
            connect_timeout: match self.connect_timeout_s {
                Some(seconds) => Duration::from_secs(seconds.max(1)),
                None => CephConfig::CONNECT_TIMEOUT,
            },
            ..CephConfig::default()
        })
    }

    /// The words that say the same to another `rbd`; the environment says the rest.
    pub fn to_words(&self) -> Vec<String> {
        let given = [
            ("--conf", &self.conf),
            ("--cluster", &self.cluster),
            ("--id", &self.id),
            ("--name", &self.name),
            ("--mon_host", &self.mon_host),
            ("--keyfile", &self.keyfile),
            ("--keyring", &self.keyring),
            ("--store", &self.store),
        ];
        let mut words = Vec::new();
        for (option, value) in given {
            if let Some(value) = value {
                words.extend([option.to_owned(), value.clone()]);
            }
        }
        if let Some(seconds) = self.connect_timeout_s {
            words.extend(["--connect-timeout".to_owned(), seconds.to_string()]);
        }
        words
    }

    /// Where sockets and other things of this user's running programs lie: the store's own directory, or
    /// `$XDG_RUNTIME_DIR/ferry` when the images are on a cluster.
    ///
    /// # Errors
    /// Those of [`Globals::engine`]; exit 22 if no such place is known.
    pub fn run_directory(&self) -> Result<PathBuf, Failure> {
        match (self.engine()?, &self.environment.runtime_dir) {
            (Engine::Local(store), _) => Ok(store.join("run")),
            (Engine::Ceph, Some(runtime)) => Ok(PathBuf::from(runtime).join("ferry")),
            (Engine::Ceph, None) => Err(Failure::invalid(
                "XDG_RUNTIME_DIR is not set; name the socket with --socket",
            )),
        }
    }
}

/// The word after one of these options, or behind its `=`.
fn word_after<'a>(words: &[&'a str], names: &[&str]) -> Option<&'a str> {
    let mut words = words.iter().copied();
    while let Some(word) = words.next() {
        for name in names {
            match word.strip_prefix(name) {
                Some("") => return words.next(),
                Some(rest) if rest.starts_with('=') => return rest.get(1..),
                _ => {}
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment() -> Environment {
        Environment {
            home: Some("/home/u".into()),
            ..Environment::default()
        }
    }

    #[test]
    fn the_nearest_choice_of_an_engine_wins() {
        let mut globals = Globals {
            environment: environment(),
            ..Globals::default()
        };
        assert_eq!(
            globals.engine().unwrap(),
            Engine::Local("/home/u/.local/share/ferry/store".into())
        );
        globals.environment.data_home = Some("/data".into());
        assert_eq!(
            globals.engine().unwrap(),
            Engine::Local("/data/ferry/store".into())
        );
        globals.environment.ferry_store = Some("/env".into());
        assert_eq!(globals.engine().unwrap(), Engine::Local("/env".into()));
        globals.id = Some("admin".into());
        assert_eq!(globals.engine().unwrap(), Engine::Ceph);
        globals.store = Some("ceph".into());
        assert_eq!(globals.engine().unwrap(), Engine::Ceph);
        globals.id = None;
        globals.store = Some("/flag".into());
        assert_eq!(globals.engine().unwrap(), Engine::Local("/flag".into()));
    }

    #[test]
    fn a_local_store_and_a_ceph_option_contradict_each_other() {
        let globals = Globals {
            store: Some("/s".into()),
            conf: Some("c".into()),
            environment: environment(),
            ..Globals::default()
        };
        assert_eq!(globals.engine().unwrap_err().code(), 22);
    }

    #[test]
    fn the_command_line_says_who_we_are_else_ceph_args_does() {
        let mut globals = Globals::default();
        assert_eq!(globals.ceph().unwrap(), CephConfig::default());
        globals.environment.ceph_args = Some("--id=guest --debug-ms 1 -c /etc/other.conf".into());
        let config = globals.ceph().unwrap();
        assert_eq!(config.name.as_deref(), Some("client.guest"));
        assert_eq!(config.conf, Some("/etc/other.conf".into()));
        globals.id = Some("me".into());
        globals.conf = Some("/c".into());
        globals.connect_timeout_s = Some(3);
        let config = globals.ceph().unwrap();
        assert_eq!(config.name.as_deref(), Some("client.me"));
        assert_eq!(config.conf, Some("/c".into()));
        assert_eq!(config.connect_timeout, Duration::from_secs(3));
    }

    #[test]
    fn words_for_another_command_name_the_same_store_and_user() {
        let globals = Globals {
            store: Some("ceph".into()),
            id: Some("me".into()),
            connect_timeout_s: Some(3),
            ..Globals::default()
        };
        assert_eq!(
            globals.to_words(),
            ["--id", "me", "--store", "ceph", "--connect-timeout", "3"]
        );
        assert!(Globals::default().to_words().is_empty());
    }

    #[test]
    fn users_that_contradict_each_other_or_have_no_type_are_refused() {
        let user = |id: Option<&str>, name: Option<&str>| Globals {
            id: id.map(str::to_owned),
            name: name.map(str::to_owned),
            ..Globals::default()
        };
        assert_eq!(user(Some("a"), Some("client.b")).ceph().unwrap_err().code(), 22);
        assert_eq!(user(None, Some("admin")).ceph().unwrap_err().code(), 22);
        let both = user(Some("a"), Some("client.a")).ceph().unwrap();
        assert_eq!(both.name.as_deref(), Some("client.a"));
    }

    #[test]
    fn sockets_of_a_cluster_s_images_lie_in_the_user_s_runtime_directory() {
        let mut globals = Globals {
            store: Some("ceph".into()),
            ..Globals::default()
        };
        assert_eq!(globals.run_directory().unwrap_err().code(), 22);
        globals.environment.runtime_dir = Some("/run/user/7".into());
        assert_eq!(
            globals.run_directory().unwrap(),
            PathBuf::from("/run/user/7/ferry")
        );
        globals.store = Some("/s".into());
        assert_eq!(globals.run_directory().unwrap(), PathBuf::from("/s/run"));
    }
}
