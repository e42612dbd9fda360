//! The real binary on stores of its own.

use std::io::{BufRead as _, BufReader, Read as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

/// A store, and a directory to run commands in.
#[derive(Debug)]
pub struct TestStore {
    directory: TempDir,
    /// Whose command is run, and what only it hears of.
    program: PathBuf,
    environment: Vec<(&'static str, PathBuf)>,
}

/// What a command printed and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ran {
    /// stdout and stderr as they came.
    pub output: String,
    /// Exit code.
    pub code: i32,
}

impl TestStore {
    /// A fresh local store.
    pub fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let environment = vec![("FERRY_STORE", directory.path().join("store"))];
        Self {
            directory,
            program: env!("CARGO_BIN_EXE_rbd").into(),
            environment,
        }
    }

    /// The cluster of this configuration, worked on with `program`, if it is another than ours.
    pub fn on_ceph(conf: &Path, program: Option<&Path>) -> Self {
        let environment = vec![("FERRY_STORE", "ceph".into()), ("CEPH_CONF", conf.to_owned())];
        Self {
            program: program.map_or_else(|| env!("CARGO_BIN_EXE_rbd").into(), Path::to_owned),
            environment,
            ..Self::new()
        }
    }

    /// Where commands are run.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The store's directory.
    pub fn root(&self) -> PathBuf {
        self.directory().join("store")
    }

    /// The command, with nothing said about its input and output.
    pub fn command(&self, words: &[&str]) -> Command {
        self.command_of(&self.program, words)
    }

    fn command_of(&self, program: &Path, words: &[&str]) -> Command {
        let mut command = Command::new(program);
        command
            .args(words)
            .current_dir(self.directory())
            .envs(self.environment.iter().cloned())
            .env("TZ", "UTC")
            .stdin(Stdio::null());
        command
    }

    /// Runs words; stdout and stderr go to one pipe, as in a terminal.
    pub fn run(&self, words: &[&str]) -> Ran {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let mut command = self.command(words);
        command
            .stdout(Stdio::from(OwnedFd::from(writer.try_clone().unwrap())))
            .stderr(Stdio::from(OwnedFd::from(writer)));
        let mut child = command.spawn().unwrap();
        // Else its ends of the pipe stay open here.
        drop(command);
        let mut output = String::new();
        reader.read_to_string(&mut output).unwrap();
        let code = child.wait().unwrap().code().unwrap_or(-1);
        Ran { output, code }
    }

    /// Runs a line without its `rbd` that must succeed; gives its output.
    #[track_caller]
    pub fn ok(&self, line: &str) -> String {
        let words: Vec<&str> = line.split_whitespace().collect();
        let ran = self.run(&words);
        assert_eq!(ran.code, 0, "rbd {line}\n{}", ran.output);
        ran.output
    }

    /// Runs a line without its `rbd` that must fail with `code`; gives its output.
    #[track_caller]
    pub fn fails(&self, line: &str, code: i32) -> String {
        let words: Vec<&str> = line.split_whitespace().collect();
        let ran = self.run(&words);
        assert_eq!(ran.code, code, "rbd {line}\n{}", ran.output);
        ran.output
    }

    /// Starts our `rbd serve` with these words and waits until it listens.
    #[track_caller]
    pub fn serve(&self, line: &str) -> Served {
        let on_ceph = self.environment.iter().any(|(_, value)| value == "ceph");
        // The default socket of a cluster's images is the user's, not the store's.
        let own = self.directory().join("nbd.sock");
        let mut words = vec!["serve"];
        words.extend(line.split_whitespace());
        if on_ceph {
            words.extend(["--socket", own.to_str().unwrap()]);
        }
        let socket = if on_ceph {
            own.clone()
        } else {
            self.root().join("run/nbd.sock")
        };
        let mut child = self
            .command_of(Path::new(env!("CARGO_BIN_EXE_rbd")), &words)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let mut first = String::new();
        stderr.read_line(&mut first).unwrap();
        assert!(first.starts_with("rbd: serving "), "rbd serve {line}: {first}");
        Served {
            child,
            stderr,
            first,
            socket,
        }
    }
}

/// A running `rbd serve`; killed when dropped.
#[derive(Debug)]
pub struct Served {
    child: Child,
    stderr: BufReader<std::process::ChildStderr>,
    /// The line that said it listens.
    pub first: String,
    /// Where it listens.
    pub socket: PathBuf,
}

impl Served {
    /// Asks it to end; gives what it said on stderr and its exit code.
    pub fn stop(mut self) -> (String, i32) {
        let pid = self.child.id().to_string();
        assert!(
            Command::new("kill")
                .args(["-TERM", &pid])
                .status()
                .unwrap()
                .success()
        );
        let mut said = String::new();
        self.stderr.read_to_string(&mut said).unwrap();
        (said, self.child.wait().unwrap().code().unwrap_or(-1))
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
