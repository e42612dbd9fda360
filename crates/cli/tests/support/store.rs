//! The real binary on stores of its own.

use std::io::{BufRead as _, BufReader, Read as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

/// A fresh store, and a directory to run commands in.
#[derive(Debug)]
pub struct TestStore {
    directory: TempDir,
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
    pub fn new() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
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
        let mut command = Command::new(env!("CARGO_BIN_EXE_rbd"));
        command
            .args(words)
            .current_dir(self.directory())
            .env("FERRY_STORE", self.root())
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

    /// Starts `rbd serve` with these words and waits until it listens.
    #[track_caller]
    pub fn serve(&self, line: &str) -> Served {
        let mut words = vec!["serve"];
        words.extend(line.split_whitespace());
        let mut child = self
            .command(&words)
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
            socket: self.root().join("run/nbd.sock"),
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
    /// The default socket.
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
