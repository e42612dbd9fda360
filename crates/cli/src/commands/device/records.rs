//! Which devices of this machine show which images: one small file each, under a directory that a reboot empties.
//!
//! What it keeps: a device counts as mapped only while the kernel says that it is connected, and a server is spoken of only
//! while the process that the file names is still the one that was started. What it does not know: how devices are made.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::spec::ImageSpec;

/// Most devices that are listed; the kernel has fewer.
const RECORDS_MAX: usize = 4096;
/// Longest record, in bytes.
const RECORD_BYTES_MAX: u64 = 64 << 10;

/// A process, told from a later one of the same number by when it began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) pid: u32,
    /// Clock ticks since the machine started.
    pub(super) began: u64,
}

/// A device that was made to show an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mapped {
    /// N of `/dev/nbdN`.
    pub(super) index: u32,
    pub(super) image: ImageSpec,
    pub(super) server: Process,
    /// What the server's files are called, without their endings.
    pub(super) files: String,
}

impl Mapped {
    /// Path of the device.
    pub(super) fn device(&self) -> String {
        format!("/dev/nbd{}", self.index)
    }

    fn encode(&self) -> String {
        json!({
            "server": self.server.pid,
            "began": self.server.began,
            "files": self.files,
            "pool": self.image.pool,
            "namespace": self.image.namespace,
            "image": self.image.image,
            "snap": self.image.snap,
        })
        .to_string()
    }

    fn decode(index: u32, text: &str) -> Option<Self> {
        let record: Value = serde_json::from_str(text).ok()?;
        let text = |key: &str| record.get(key)?.as_str().map(str::to_owned);
        Some(Self {
            index,
            image: ImageSpec {
                pool: text("pool")?,
                namespace: text("namespace")?,
                image: text("image")?,
                snap: text("snap"),
            },
            server: Process {
                pid: u32::try_from(record.get("server")?.as_u64()?).ok()?,
                began: record.get("began")?.as_u64()?,
            },
            files: text("files").filter(|name| !name.contains('/'))?,
        })
    }
}

/// See the module's text.
#[derive(Debug)]
pub(super) struct Records {
    directory: PathBuf,
    blocks: PathBuf,
    processes: PathBuf,
}

impl Records {
    /// Those of this machine. Devices belong to the machine, so there is one place for all users and stores.
    pub(super) fn of_machine() -> Self {
        Self::at(Path::new("/run/ferry/devices"), Path::new("/sys/block"))
    }

    /// Those in `directory`, of devices that the kernel shows in `blocks`.
    pub(super) fn at(directory: &Path, blocks: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
            blocks: blocks.to_owned(),
            processes: "/proc".into(),
        }
    }

    /// Where they are, and the files of servers beside them.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    fn path(&self, index: u32) -> PathBuf {
        self.directory.join(format!("nbd{index}.json"))
    }

    /// Writes one down, in place of what a device of the same number was before the last reboot or kill.
    pub(super) fn add(&self, mapped: &Mapped) -> io::Result<()> {
        let (path, staged) = (self.path(mapped.index), self.directory.join(&mapped.files));
        fs::write(&staged, mapped.encode())?;
        fs::rename(staged, path)
    }

    /// Forgets one, with the files of its server.
    pub(super) fn forget(&self, mapped: &Mapped) -> io::Result<()> {
        for ending in ["sock", "log"] {
            absent_is_fine(fs::remove_file(
                self.directory.join(format!("{}.{ending}", mapped.files)),
            ))?;
        }
        absent_is_fine(fs::remove_file(self.path(mapped.index)))
    }

    /// All that were written down, by number; also those whose device or server is gone. Files that are no records are passed over.
    pub(super) fn all(&self) -> io::Result<Vec<Mapped>> {
        let entries = match fs::read_dir(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut found = Vec::new();
        for entry in entries.take(RECORDS_MAX * 3) {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let index = name
                .strip_prefix("nbd")
                .and_then(|rest| rest.strip_suffix(".json"));
            let Some(index) = index.and_then(|index| index.parse().ok()) else {
                continue;
            };
            if entry.metadata()?.len() > RECORD_BYTES_MAX {
                continue;
            }
            match fs::read_to_string(entry.path()) {
                Ok(text) => found.extend(Mapped::decode(index, &text)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        found.sort_by_key(|mapped: &Mapped| mapped.index);
        Ok(found)
    }

    /// Those whose device shows something.
    pub(super) fn connected(&self) -> io::Result<Vec<Mapped>> {
        let mut found = self.all()?;
        found.retain(|mapped| self.is_connected(mapped.index));
        Ok(found)
    }

    /// Whether the kernel has a connection behind `/dev/nbdN`.
    pub(super) fn is_connected(&self, index: u32) -> bool {
        self.blocks.join(format!("nbd{index}")).join("pid").exists()
    }

    /// The process of this number; `None`: there is none.
    pub(super) fn process(&self, pid: u32) -> Option<Process> {
        let stat = fs::read_to_string(self.processes.join(pid.to_string()).join("stat")).ok()?;
        // The name, in parentheses, may hold anything.
        let (_, fields) = stat.rsplit_once(')')?;
        let mut fields = fields.split_whitespace();
        let is_gone = matches!(fields.next()?, "Z" | "X");
        let began = fields.nth(18)?.parse().ok()?;
        (!is_gone).then_some(Process { pid, began })
    }

    /// Whether this very process lives.
    pub(super) fn lives(&self, process: Process) -> bool {
        self.process(process.pid) == Some(process)
    }
}

fn absent_is_fine(done: io::Result<()>) -> io::Result<()> {
    match done {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "helpers of tests fail their test")]
mod tests {
    use super::*;

    struct Machine {
        _directory: tempfile::TempDir,
        records: Records,
    }

    impl Machine {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let records = Records {
                directory: directory.path().join("devices"),
                blocks: directory.path().join("block"),
                processes: directory.path().join("proc"),
            };
            fs::create_dir(&records.directory).unwrap();
            Self {
                _directory: directory,
                records,
            }
        }

        fn connect(&self, index: u32) {
            let device = self.records.blocks.join(format!("nbd{index}"));
            fs::create_dir_all(&device).unwrap();
            fs::write(device.join("pid"), "1\n").unwrap();
        }

        fn run(&self, pid: u32, name: &str, state: char, began: u64) {
            let process = self.records.processes.join(pid.to_string());
            fs::create_dir_all(&process).unwrap();
            let middle = "0 ".repeat(18);
            fs::write(
                process.join("stat"),
                format!("{pid} ({name}) {state} {middle}{began} 0 0\n"),
            )
            .unwrap();
        }
    }

    fn mapped(index: u32, snap: Option<&str>) -> Mapped {
        Mapped {
            index,
            image: ImageSpec {
                pool: "p".to_owned(),
                namespace: "n".to_owned(),
                image: "a \"b\"".to_owned(),
                snap: snap.map(str::to_owned),
            },
            server: Process { pid: 7, began: 99 },
            files: format!("server-{index}"),
        }
    }

    #[test]
    fn what_is_written_down_comes_back_by_number_and_goes_with_its_files() {
        let machine = Machine::new();
        let records = &machine.records;
        assert_eq!(records.all().unwrap(), []);
        for (index, snap) in [(10, None), (2, Some("s"))] {
            records.add(&mapped(index, snap)).unwrap();
        }
        fs::write(records.directory.join("server-2.log"), "x").unwrap();
        assert_eq!(records.all().unwrap(), [mapped(2, Some("s")), mapped(10, None)]);
        assert_eq!(records.connected().unwrap(), [], "the kernel knows of none");
        machine.connect(10);
        assert_eq!(records.connected().unwrap(), [mapped(10, None)]);
        records.forget(&mapped(2, Some("s"))).unwrap();
        records.forget(&mapped(2, Some("s"))).unwrap();
        assert_eq!(records.all().unwrap(), [mapped(10, None)]);
        assert!(!records.directory.join("server-2.log").exists());
    }

    #[test]
    fn no_directory_is_no_devices_and_other_files_are_none() {
        let machine = Machine::new();
        let records = &machine.records;
        for (name, text) in [
            ("nbd1.json", "{}"),
            ("nbdx.json", "{}"),
            ("nbd2.json", "not JSON"),
            (
                "nbd3.json",
                r#"{"server":1,"began":2,"files":"../x","pool":"p","namespace":"","image":"i"}"#,
            ),
            ("other", ""),
        ] {
            fs::write(records.directory.join(name), text).unwrap();
        }
        assert_eq!(records.all().unwrap(), []);
        fs::remove_dir_all(&records.directory).unwrap();
        assert_eq!(records.all().unwrap(), []);
    }

    #[test]
    fn a_process_is_told_from_a_later_one_of_its_number() {
        let machine = Machine::new();
        let records = &machine.records;
        machine.run(7, "rbd (x) y", 'S', 99);
        let process = Process { pid: 7, began: 99 };
        assert_eq!(records.process(7), Some(process));
        assert!(records.lives(process));
        machine.run(7, "rbd", 'S', 100);
        assert!(!records.lives(process));
        machine.run(7, "rbd", 'Z', 99);
        assert!(!records.lives(process), "it has ended");
        assert_eq!(records.process(8), None);
    }

    #[test]
    fn this_process_is_found_on_this_machine() {
        let records = Records::of_machine();
        let own = records.process(std::process::id()).unwrap();
        assert!(records.lives(own) && own.began > 0);
    }
}
