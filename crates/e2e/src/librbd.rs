//! A client on Ceph's librbd that stays open and does what a test tells it (`tests/python/librbd_client.py`).

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use rustix::process::Signal;

use crate::ferry::Ferry;
use crate::process::{LIMIT, send};

/// An open image. Dropping it kills the client.
#[derive(Debug)]
pub struct Librbd {
    child: Child,
    stdin: ChildStdin,
    answers: Receiver<String>,
}

impl Librbd {
    /// Opens the image `name` of `place` (`POOL[/NAMESPACE]`).
    ///
    /// # Panics
    /// If it can't be opened.
    #[track_caller]
    pub fn open(ferry: &Ferry, place: &str, name: &str) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/librbd_client.py");
        let mut child = Command::new("/usr/bin/python3")
            .arg(script)
            .arg(ferry.ceph_conf())
            .args([place, name])
            .env_remove("PYTHONPATH")
            .env_remove("PYTHONHOME")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 with the modules rados and rbd");
        let stdin = child.stdin.take().expect("a pipe");
        let stdout = child.stdout.take().expect("a pipe");
        let (sender, answers) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let client = Self {
            child,
            stdin,
            answers,
        };
        assert_eq!(client.answer(), "ok", "{place}/{name} can't be opened");
        client
    }

    /// Tells the client something, without waiting for its answer.
    ///
    /// # Panics
    /// If it is gone.
    #[track_caller]
    pub fn tell(&mut self, line: &str) {
        writeln!(self.stdin, "{line}").expect("a client that listens");
    }

    /// The next answer.
    ///
    /// # Panics
    /// If none comes.
    #[track_caller]
    pub fn answer(&self) -> String {
        let answer = self.answers.recv_timeout(LIMIT);
        answer.expect("an answer of the librbd client").trim().to_owned()
    }

    /// The next answer; `None` if there is none within that time, or the client is gone.
    pub fn answer_within(&self, limit: Duration) -> Option<String> {
        let answer = self.answers.recv_timeout(limit).ok()?;
        Some(answer.trim().to_owned())
    }

    /// Sends the client a signal; one that is gone does not mind.
    pub fn signal(&self, signal: Signal) {
        send(self.child.id(), signal);
    }

    /// Tells the client to do something, which must succeed; what it says to that.
    ///
    /// # Panics
    /// If it fails.
    #[track_caller]
    pub fn ok(&mut self, line: &str) -> String {
        self.tell(line);
        let answer = self.answer();
        match answer.strip_prefix("ok") {
            Some(said) => said.trim().to_owned(),
            None => panic!("librbd client told to {line}: {answer}"),
        }
    }

    /// Closes the image.
    ///
    /// # Panics
    /// If that fails.
    #[track_caller]
    pub fn close(mut self) {
        self.ok("close");
        let _ = self.child.wait();
    }

    /// `kill -9`.
    pub fn kill(mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Librbd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
