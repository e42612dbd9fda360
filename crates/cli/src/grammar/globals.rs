//! Options of every command: which engine, which store, which Ceph user.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::VERSION;
use crate::exit::{EOPNOTSUPP, Failure};

/// What the frame takes from the process's environment; tests and embedders fill it themselves.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Environment {
    /// `FERRY_STORE`.
    pub ferry_store: Option<OsString>,
    /// `XDG_DATA_HOME`.
    pub data_home: Option<OsString>,
    /// `HOME`.
    pub home: Option<OsString>,
}

impl Environment {
    /// The environment of this process. Empty variables count as unset.
    pub fn from_process() -> Self {
        let get = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        Self {
            ferry_store: get("FERRY_STORE"),
            data_home: get("XDG_DATA_HOME"),
            home: get("HOME"),
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

    /// The directory of the local store, for as long as the ceph engine is not built.
    ///
    /// # Errors
    /// Those of [`Globals::engine`]; exit 95 if the ceph engine is asked for.
    pub fn local_store(&self) -> Result<PathBuf, Failure> {
        match self.engine()? {
            Engine::Local(directory) => Ok(directory),
            Engine::Ceph => {
                let why = self
                    .ceph_option()
                    .map(|option| format!(", which {option} asks for,"))
                    .unwrap_or_default();
                Err(Failure::message(
                    format!("rbd: the ceph engine{why} is not implemented yet in Ferry {VERSION}"),
                    EOPNOTSUPP,
                ))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment() -> Environment {
        Environment {
            ferry_store: None,
            data_home: None,
            home: Some("/home/u".into()),
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
    fn the_ceph_engine_is_named_and_refused() {
        let globals = Globals {
            mon_host: Some("a".into()),
            ..Globals::default()
        };
        let failure = globals.local_store().unwrap_err();
        assert_eq!(failure.code(), 95);
        assert!(failure.text().contains("--mon_host"), "{failure}");
        assert_eq!(Globals::default().local_store().unwrap_err().code(), 22);
    }
}
