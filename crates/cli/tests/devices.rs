//! Devices from `map` to `unmap`, on a machine whose kernel is played by this test: it understands the messages by itself,
//! takes the connection out of them as the kernel does, and then speaks NBD on it as the kernel does.
//!
//! What this cannot show is the kernel's own part.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail their test")]

mod support;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ferry_cli::commands::{Machine, run_device_on};
use ferry_cli::exit::Failure;
use ferry_cli::grammar::{Environment, Parsed, parse};
use ferry_nbd::kernel::{KernelNbd, Link};
use parking_lot::Mutex;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, Signal, kill_process, pidfd_getfd, pidfd_open};
use serde_json::Value;
use support::store::TestStore;

/// Numbers of `linux/nbd-netlink.h`.
const CONNECT: u8 = 1;
const DISCONNECT: u8 = 2;
/// What this kernel calls the family `nbd`.
const FAMILY: u16 = 0x23;

/// A connected device.
#[derive(Debug)]
struct Device {
    connection: UnixStream,
    size_bytes: u64,
    flags: u64,
    timeout_s: Option<u64>,
    backend: String,
    requests: u64,
}

impl Device {
    fn request(&mut self, kind: u16, offset: u64, length: u32, data: &[u8]) -> u64 {
        self.requests += 1;
        let mut request = 0x2560_9513_u32.to_be_bytes().to_vec();
        request.extend(0u16.to_be_bytes());
        request.extend(kind.to_be_bytes());
        request.extend(self.requests.to_be_bytes());
        request.extend(offset.to_be_bytes());
        request.extend(length.to_be_bytes());
        request.extend(data);
        self.connection.write_all(&request).unwrap();
        self.requests
    }

    /// The error of a reply, and its data.
    fn ask(&mut self, kind: u16, offset: u64, length: u32, data: &[u8], answer: usize) -> (u32, Vec<u8>) {
        let handle = self.request(kind, offset, length, data);
        let mut head = [0; 16];
        self.connection.read_exact(&mut head).unwrap();
        assert_eq!(head[..4], 0x6744_6698_u32.to_be_bytes());
        assert_eq!(head[8..], handle.to_be_bytes());
        let error = u32::from_be_bytes(head[4..8].try_into().unwrap());
        let mut read = vec![0; if error == 0 { answer } else { 0 }];
        self.connection.read_exact(&mut read).unwrap();
        (error, read)
    }

    fn read(&mut self, offset: u64, length: u32) -> Vec<u8> {
        let (error, read) = self.ask(0, offset, length, &[], length as usize);
        assert_eq!(error, 0);
        read
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> u32 {
        self.ask(1, offset, u32::try_from(data.len()).unwrap(), data, 0).0
    }
}

/// The kernel of this test.
#[derive(Debug, Default)]
struct Kernel {
    devices: BTreeMap<u32, Device>,
    refuses: Option<i32>,
    blocks: PathBuf,
}

/// The attributes of a message, by number.
fn attributes(mut bytes: &[u8]) -> BTreeMap<u16, Vec<u8>> {
    let mut found = BTreeMap::new();
    while !bytes.is_empty() {
        let length = usize::from(u16::from_ne_bytes([bytes[0], bytes[1]]));
        let kind = u16::from_ne_bytes([bytes[2], bytes[3]]) & 0x3fff;
        found.insert(kind, bytes[4..length].to_vec());
        bytes = &bytes[length.next_multiple_of(4).min(bytes.len())..];
    }
    found
}

fn number(value: &[u8]) -> u64 {
    match value.len() {
        4 => u32::from_ne_bytes(value.try_into().unwrap()).into(),
        _ => u64::from_ne_bytes(value.try_into().unwrap()),
    }
}

impl Kernel {
    fn connect(&mut self, asked: &BTreeMap<u16, Vec<u8>>) -> u32 {
        let index = (0..).find(|index| !self.devices.contains_key(index)).unwrap();
        // NBD_ATTR_SOCKETS holds an NBD_SOCK_ITEM, which holds an NBD_SOCK_FD.
        let item = attributes(&asked[&7]);
        let socket = number(&attributes(&item[&1])[&1]);
        let own = pidfd_open(rustix::process::getpid(), PidfdFlags::empty()).unwrap();
        let socket = i32::try_from(socket).unwrap();
        let connection = pidfd_getfd(own, socket, PidfdGetfdFlags::empty()).unwrap();
        let connection = UnixStream::from(connection);
        connection
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        let block = self.blocks.join(format!("nbd{index}"));
        std::fs::create_dir_all(&block).unwrap();
        std::fs::write(block.join("pid"), "1\n").unwrap();
        let backend = asked[&10].strip_suffix(&[0]).unwrap().to_vec();
        let device = Device {
            connection,
            size_bytes: number(&asked[&2]),
            flags: number(&asked[&5]),
            timeout_s: asked.get(&4).map(|value| number(value)),
            backend: String::from_utf8(backend).unwrap(),
            requests: 0,
        };
        self.devices.insert(index, device);
        index
    }

    fn disconnect(&mut self, index: u32) -> i32 {
        let Some(mut device) = self.devices.remove(&index) else {
            return 22;
        };
        std::fs::remove_dir_all(self.blocks.join(format!("nbd{index}"))).unwrap();
        // The server may be gone; that is nobody's failure.
        let mut farewell = 0x2560_9513_u32.to_be_bytes().to_vec();
        farewell.extend([0, 0, 0, 2]);
        farewell.extend([0; 20]);
        let _ = device.connection.write_all(&farewell);
        0
    }
}

/// A socket to it.
#[derive(Debug)]
struct Line(Arc<Mutex<Kernel>>);

impl Link for Line {
    fn exchange(&mut self, request: &[u8]) -> io::Result<Vec<u8>> {
        let family = u16::from_ne_bytes([request[4], request[5]]);
        let message = |kind: u16, body: &[u8]| {
            let mut answer = u32::try_from(16 + body.len()).unwrap().to_ne_bytes().to_vec();
            answer.extend(kind.to_ne_bytes());
            answer.extend([0; 2]);
            answer.extend(&request[8..12]);
            answer.extend([0; 4]);
            answer.extend(body);
            Ok(answer)
        };
        let error = |number: i32| message(2, &[&(-number).to_ne_bytes(), &request[..16]].concat());
        if family == 0x10 {
            // CTRL_ATTR_FAMILY_ID.
            let id = [[3, 1, 0, 0], [6, 0, 1, 0]].concat();
            return message(0x10, &[&id, &FAMILY.to_ne_bytes()[..], &[0; 2]].concat());
        }
        assert_eq!(family, FAMILY);
        let asked = attributes(&request[20..]);
        let mut kernel = self.0.lock();
        match (kernel.refuses, request[16]) {
            (Some(number), _) => error(number),
            (None, CONNECT) => {
                let index = kernel.connect(&asked).to_ne_bytes();
                let head = [[CONNECT, 1, 0, 0], [8, 0, 1, 0]].concat();
                message(FAMILY, &[&head, &index[..]].concat())
            }
            (None, DISCONNECT) => {
                let index = u32::from_ne_bytes(asked[&1].as_slice().try_into().unwrap());
                error(kernel.disconnect(index))
            }
            other => panic!("{other:?}"),
        }
    }
}

/// A store, and a machine that shows its images.
struct World {
    store: TestStore,
    kernel: Arc<Mutex<Kernel>>,
    machine: Machine<Line>,
    runtime: tokio::runtime::Runtime,
}

impl World {
    fn new() -> Self {
        let store = TestStore::new();
        let blocks = store.directory().join("block");
        let kernel = Arc::new(Mutex::new(Kernel {
            blocks: blocks.clone(),
            ..Kernel::default()
        }));
        let line = Arc::clone(&kernel);
        let machine = Machine::new(
            move || KernelNbd::over(Line(Arc::clone(&line))),
            &store.directory().join("devices"),
            &blocks,
            Path::new(env!("CARGO_BIN_EXE_rbd")),
        );
        Self {
            store,
            kernel,
            machine,
            runtime: tokio::runtime::Runtime::new().unwrap(),
        }
    }

    fn run(&self, line: &str) -> Result<String, Failure> {
        let mut words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        words.extend(["--store".into(), self.store.root().into()]);
        let Ok(Parsed::Run(invocation)) = parse(words, &Environment::default()) else {
            panic!("{line}")
        };
        self.runtime.block_on(run_device_on(invocation, &self.machine))
    }

    fn listed(&self) -> Vec<Value> {
        let text = self.run("device list --format json").unwrap();
        serde_json::from_str::<Value>(&text)
            .unwrap()
            .as_array()
            .unwrap()
            .clone()
    }

    /// What lies where servers have their files.
    fn files(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.store.directory().join("devices")).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn with_device<T>(&self, index: u32, what: impl FnOnce(&mut Device) -> T) -> T {
        what(self.kernel.lock().devices.get_mut(&index).unwrap())
    }
}

#[test]
fn a_mapped_image_is_read_and_written_by_the_kernel_until_it_is_unmapped_which_flushes() {
    let world = World::new();
    world.store.ok("create --size 4M disk");
    assert_eq!(
        world.run("device map -t nbd disk -o timeout=30").unwrap(),
        "/dev/nbd0\n"
    );
    world.with_device(0, |device| {
        assert_eq!((device.size_bytes, device.timeout_s), (4 << 20, Some(30)));
        assert_eq!(device.backend, "rbd/disk");
        assert_eq!(device.flags & 0b111, 0b101, "flags are told, writable, flushes");
        assert_eq!(device.read(0, 4096), [0; 4096]);
        assert_eq!(device.write(4096, &[9; 4096]), 0);
        assert_eq!(device.read(4096, 4096), [9; 4096]);
    });
    assert!(
        world.store.ok("status disk").contains("watcher="),
        "the server has it open"
    );
    let listed = world.listed();
    assert_eq!(listed.len(), 1);
    assert_eq!(
        (&listed[0]["image"], &listed[0]["device"]),
        (&"disk".into(), &"/dev/nbd0".into())
    );
    world.run("device unmap /dev/nbd0").unwrap();
    assert!(world.kernel.lock().devices.is_empty());
    assert_eq!(world.listed(), [Value::Null; 0]);
    assert_eq!(world.files(), [""; 0], "nothing is left behind");
    assert_eq!(world.store.ok("status disk"), "Watchers: none\n");
    world.store.ok("export --no-progress disk raw");
    let raw = std::fs::read(world.store.directory().join("raw")).unwrap();
    assert_eq!(raw[4096..8192], [9; 4096]);
}

#[test]
fn snapshots_and_read_only_devices_refuse_writes_and_are_unmapped_by_name() {
    let world = World::new();
    world.store.ok("create --size 1M disk");
    world.store.ok("snap create --no-progress disk@s");
    assert_eq!(world.run("map disk@s").unwrap(), "/dev/nbd0\n");
    assert_eq!(world.run("map --read-only disk").unwrap(), "/dev/nbd1\n");
    for index in [0, 1] {
        world.with_device(index, |device| {
            assert_eq!(device.flags & 0b10, 0b10, "read-only");
            assert_eq!(device.write(0, &[1; 512]), 1, "not permitted");
        });
    }
    assert_eq!(world.run("unmap disk@nosuch").unwrap_err().code(), 22);
    world.run("unmap disk@s").unwrap();
    assert_eq!(world.listed()[0]["device"], "/dev/nbd1");
    world.run("unmap disk").unwrap();
    assert_eq!(world.files(), [""; 0]);
}

#[test]
fn a_device_whose_server_was_killed_is_listed_and_taken_away() {
    let world = World::new();
    world.store.ok("create --size 1M disk");
    world.run("device map disk").unwrap();
    let server = world.listed()[0]["id"].as_u64().unwrap();
    let server = Pid::from_raw(i32::try_from(server).unwrap()).unwrap();
    kill_process(server, Signal::KILL).unwrap();
    world.with_device(0, |device| {
        assert_eq!(device.connection.read(&mut [0]).unwrap(), 0, "it hung up");
    });
    assert_eq!(world.listed().len(), 1);
    world.run("device unmap disk").unwrap();
    assert_eq!(world.files(), [""; 0]);
}

#[test]
fn a_kernel_that_refuses_leaves_no_server_and_no_record() {
    let world = World::new();
    world.store.ok("create --size 1M disk");
    world.kernel.lock().refuses = Some(16);
    let failure = world.run("device map disk").unwrap_err();
    assert_eq!(failure.code(), 16);
    assert!(failure.text().contains("attach a device"), "{failure}");
    assert_eq!(world.files(), [""; 0]);
    assert_eq!(world.listed(), [Value::Null; 0]);
    world.store.ok("rm --no-progress disk");
}
