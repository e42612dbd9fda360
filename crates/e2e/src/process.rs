//! Commands with their output, and children that die with their owner.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::ferry::wait_until;

/// Longest time that one command may take. A test that waits longer has found a hang.
pub const LIMIT: Duration = Duration::from_secs(240);

/// Time between two looks at a child.
pub const POLL: Duration = Duration::from_millis(5);

/// A command that ended.
#[derive(Debug)]
pub struct Finished {
    /// The words, for messages.
    pub words: String,
    /// Exit code; -1 if a signal ended it.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Finished {
    /// The command itself, once it is known to have succeeded.
    ///
    /// # Panics
    /// If it failed.
    #[track_caller]
    pub fn ok(self) -> Self {
        assert_eq!(self.code, 0, "{self}");
        self
    }

    /// The command itself, once it is known to have failed in this way.
    ///
    /// # Panics
    /// If it succeeded, or failed otherwise.
    #[track_caller]
    pub fn fails(self, code: i32, stderr_holds: &str) -> Self {
        assert_eq!(self.code, code, "{self}");
        assert!(
            self.stderr.contains(stderr_holds),
            "no {stderr_holds:?} in {self}"
        );
        self
    }
}

impl std::fmt::Display for Finished {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "$ {}\n[code {}]\n{}\n{}",
            self.words, self.code, self.stdout, self.stderr
        )
    }
}

/// Runs a command to its end, within [`LIMIT`].
///
/// # Panics
/// If it can't be started or doesn't end.
#[track_caller]
pub fn run(command: &mut Command) -> Finished {
    let scratch = tempfile::tempdir().expect("a temporary directory");
    let child = Background::start(command, scratch.path(), "command");
    child.finish()
}

/// Runs a command that must succeed, and gives its standard output.
///
/// # Panics
/// If it fails.
#[track_caller]
pub fn run_ok(program: &str, words: &[&str]) -> String {
    run(Command::new(program).args(words)).ok().stdout
}

/// A child whose output goes to files. Dropping it kills it.
#[derive(Debug)]
pub struct Background {
    words: String,
    child: Child,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Background {
    /// Starts a command; its output goes to `<name>.out` and `<name>.err` in `directory`.
    ///
    /// # Panics
    /// If it can't be started.
    #[track_caller]
    pub fn start(command: &mut Command, directory: &Path, name: &str) -> Self {
        Self::start_with_stdin(command, Stdio::null(), directory, name)
    }

    /// The same with something to read.
    ///
    /// # Panics
    /// If it can't be started.
    #[track_caller]
    pub fn start_with_stdin(command: &mut Command, stdin: Stdio, directory: &Path, name: &str) -> Self {
        let words = std::iter::once(command.get_program())
            .chain(command.get_args())
            .map(|word| word.to_string_lossy())
            .collect::<Vec<_>>()
            .join(" ");
        let (stdout, stderr) = (
            directory.join(format!("{name}.out")),
            directory.join(format!("{name}.err")),
        );
        let file =
            |path: &Path| File::create(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let child = command
            .stdin(stdin)
            .stdout(file(&stdout))
            .stderr(file(&stderr))
            .spawn()
            .unwrap_or_else(|error| panic!("{words}: {error}"));
        Self {
            words,
            child,
            stdout,
            stderr,
        }
    }

    /// Standard output so far.
    pub fn stdout(&self) -> String {
        read(&self.stdout)
    }

    /// Standard error so far.
    pub fn stderr(&self) -> String {
        read(&self.stderr)
    }

    /// Sends a signal; a child that has ended already does not mind.
    pub fn signal(&self, signal: Signal) {
        send(self.child.id(), signal);
    }

    /// `kill -9`, and waits until the process is gone.
    pub fn kill(mut self) -> Finished {
        let _ = self.child.kill();
        let status = self.child.wait().expect("a child to wait for");
        self.finished(status)
    }

    /// Whether the process still runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("a child to wait for").is_none()
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// After [`LIMIT`].
    #[track_caller]
    pub fn finish(mut self) -> Finished {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("a child to wait for") {
                return self.finished(status);
            }
            if start.elapsed() >= LIMIT {
                let (stdout, stderr) = (self.stdout(), self.stderr());
                panic!("{} still runs after {LIMIT:?}\n{stdout}\n{stderr}", self.words);
            }
            std::thread::sleep(POLL);
        }
    }

    fn finished(&self, status: ExitStatus) -> Finished {
        Finished {
            words: self.words.clone(),
            code: status.code().unwrap_or(-1),
            stdout: self.stdout(),
            stderr: self.stderr(),
        }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn read(path: &Path) -> String {
    let bytes = std::fs::read(path).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Sends a signal to a process; after `STOP`, waits until all of its threads stand still, so that it notices nothing that comes next.
pub(crate) fn send(process: u32, signal: Signal) {
    let pid = i32::try_from(process).ok().and_then(Pid::from_raw);
    let _ = pid.map(|pid| kill_process(pid, signal));
    if signal == Signal::STOP {
        wait_until("the process stands still", || {
            all_stand_still(process).unwrap_or(true)
        });
    }
}

/// `None`: it is gone.
fn all_stand_still(process: u32) -> Option<bool> {
    let mut threads = std::fs::read_dir(format!("/proc/{process}/task")).ok()?.flatten();
    Some(threads.all(|thread| {
        let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        // The state is behind the name, which is in parentheses and may have some of its own.
        let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
        matches!(state, None | Some('T' | 'Z' | 'X'))
    }))
}
