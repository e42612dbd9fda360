//! `rbd device list`, `map` and `unmap`: images as block devices of this machine, through the kernel's NBD client.
//!
//! `map` starts `rbd serve` for the image in a process of its own, negotiates a connection to it, hands that to the kernel
//! ([`ferry_nbd::kernel`]) and ends. `unmap` has the kernel give the connection up, and ends the server, which flushes.
//!
//! What it does not know: the machine that it works on ([`Machine`]), which tests replace.
//!
//! | file | what it holds |
//! |---|---|
//! | `records.rs` | which device shows which image, and by which process |
//! | `server.rs` | that process, and the connection to it |

mod records;
mod server;

use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ferry_image::{OpenOptions, SnapKey};
use ferry_nbd::kernel::{Attach, KernelError, KernelNbd, Link, NetlinkSocket};
use ferry_store::Errno;
use rustix::fs::{Mode, OFlags};

use super::session::Session;
use crate::exit::{EBUSY, EINVAL, EIO, Failure};
use crate::grammar::Args;
use crate::output::{Align, Document, Node, OutputFormat, TextTable};
use crate::spec::{ImageQuery, ImageSpec, SnapRule};
use records::{Mapped, Records};
use server::Server;

/// `ENODEV`.
const NO_DEVICE: i32 = 19;

/// What devices are made with: the kernel's driver, what is known of its devices, and the program that serves.
pub struct Machine<L = NetlinkSocket> {
    kernel: Box<dyn Fn() -> Result<KernelNbd<L>, KernelError> + Send + Sync>,
    records: Records,
    program: PathBuf,
}

impl<L> std::fmt::Debug for Machine<L> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Machine")
            .field("records", &self.records)
            .field("program", &self.program)
            .finish_non_exhaustive()
    }
}

impl Machine {
    /// The one that this process runs on.
    pub(super) fn this() -> Result<Self, Failure> {
        let program = std::env::current_exe().map_err(|error| {
            Failure::errno(
                "cannot find the program itself",
                error.raw_os_error().unwrap_or(EIO),
            )
        })?;
        Ok(Self {
            kernel: Box::new(KernelNbd::open),
            records: Records::of_machine(),
            program,
        })
    }
}

impl<L> Machine<L> {
    /// One whose driver is found by `kernel`, whose devices stand in `directory` and are connected when `blocks/nbdN/pid` exists, and
    /// whose `rbd` is `program`.
    pub fn new(
        kernel: impl Fn() -> Result<KernelNbd<L>, KernelError> + Send + Sync + 'static,
        directory: &Path,
        blocks: &Path,
        program: &Path,
    ) -> Self {
        Self {
            kernel: Box::new(kernel),
            records: Records::at(directory, blocks),
            program: program.to_owned(),
        }
    }

    fn driver(&self) -> Result<KernelNbd<L>, Failure> {
        (self.kernel)().map_err(kernel_failed)
    }
}

/// Only `nbd`, which is also what is meant when nothing is said.
fn check_type(args: &Args) -> Result<(), Failure> {
    match args.text("device-type") {
        None | Some("nbd") => Ok(()),
        Some("krbd") => Err(Failure::not_supported(
            "device type krbd",
            "it is Ceph's own client in the kernel, which knows neither local stores nor Ferry's migrations; use '-t nbd'",
        )),
        Some("ggate") => Err(Failure::message(
            "rbd: ggate is only supported on FreeBSD",
            Errno::EOPNOTSUPP.0,
        )),
        Some(_) => Err(Failure::usage(
            "the argument for option '--device-type' is invalid",
        )),
    }
}

/// What `-o` says.
#[derive(Debug, Default, PartialEq, Eq)]
struct Options {
    timeout: Duration,
    force: bool,
}

impl Options {
    /// `timeout` and `io-timeout` (seconds) when a device is made, `force` when it is taken away; `try-netlink` says what is
    /// done anyway.
    fn parse(text: &str, of_map: bool) -> Result<Self, Failure> {
        let mut options = Self::default();
        for option in text.split(',').filter(|option| !option.is_empty()) {
            let (name, value) = match option.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (option, None),
            };
            match (name, value) {
                ("timeout" | "io-timeout", Some(value)) if of_map => {
                    let seconds = value.parse().map_err(|_| {
                        Failure::invalid(format_args!(
                            "'{value}' is no number of seconds for option {name}"
                        ))
                    })?;
                    options.timeout = Duration::from_secs(seconds);
                }
                ("try-netlink", None) if of_map => {}
                ("force", None) if !of_map => options.force = true,
                _ => {
                    let known = if of_map {
                        "timeout=SECONDS, io-timeout=SECONDS, try-netlink"
                    } else {
                        "force"
                    };
                    return Err(Failure::invalid(format_args!("unknown device option '{option}'"))
                        .with_line(format_args!("rbd: note: known are {known}")));
                }
            }
        }
        Ok(options)
    }
}

fn records_failed(error: io::Error) -> Failure {
    Failure::errno(
        "cannot read which devices are mapped",
        error.raw_os_error().unwrap_or(EIO),
    )
}

fn kernel_failed(error: KernelError) -> Failure {
    let (code, what_now) = match &error {
        KernelError::NoDriver => (
            NO_DEVICE,
            "load it with 'modprobe nbd'; without it, 'rbd serve' shows the image to any NBD client (qemu-nbd, nbdfuse, nbdcopy)",
        ),
        KernelError::Refused { source, .. } => {
            let code = source.raw_os_error().unwrap_or(EIO);
            let what_now = match code {
                1 => "this needs the right to administer the system (root)",
                _ => "the kernel's log may say more",
            };
            (code, what_now)
        }
        _ => (EIO, "the kernel's log may say more"),
    };
    Failure::message(format!("rbd: nbd: {error}"), code).with_line(format_args!("rbd: note: {what_now}"))
}

/// Gives what is to be printed.
pub(super) fn list<L>(session: &Session, machine: &Machine<L>) -> Result<String, Failure> {
    let args = session.args();
    check_type(args)?;
    let format = args.output_format()?;
    args.finish()?;
    let mapped = machine.records.connected().map_err(records_failed)?;
    Ok(match format {
        OutputFormat::Plain => table(&mapped),
        shown => document(&mapped).render(shown),
    })
}

fn table(mapped: &[Mapped]) -> String {
    if mapped.is_empty() {
        return String::new();
    }
    let columns = ["id", "pool", "namespace", "image", "snap", "device", "cookie"];
    let mut table = TextTable::new(&columns.map(|name| (name, Align::Left)));
    for one in mapped {
        let image = &one.image;
        table.row([
            one.server.pid.to_string(),
            image.pool.clone(),
            image.namespace.clone(),
            image.image.clone(),
            image.snap.clone().unwrap_or_else(|| "-".to_owned()),
            one.device(),
        ]);
    }
    table.to_string()
}

fn document(mapped: &[Mapped]) -> Document {
    let mut list = Node::list("device");
    for one in mapped {
        let image = &one.image;
        list.add(
            Node::map()
                .with("id", u64::from(one.server.pid))
                .with("pool", &image.pool)
                .with("namespace", &image.namespace)
                .with("image", &image.image)
                .with("snap", image.snap_name())
                .with("device", one.device())
                .with("cookie", ""),
        );
    }
    Document::new("devices", list)
}

/// Gives what is to be printed.
pub(super) async fn map<L: Link>(session: &Session, machine: &Machine<L>) -> Result<String, Failure> {
    let args = session.args();
    check_type(args)?;
    let image = args.image(ImageQuery::source().snap(SnapRule::Optional))?;
    let options = Options::parse(args.text("options").unwrap_or_default(), true)?;
    let read_only = args.flag("read-only");
    args.finish()?;
    let opening = OpenOptions::read_only();
    let opening = match &image.snap {
        Some(snap) => opening.at(SnapKey::Name(snap.clone())),
        None => opening,
    };
    session.image(&image, opening).await?;
    let mut kernel = machine.driver()?;
    let records = &machine.records;
    let mut server = Server::start(session, machine, &image, read_only)?;
    let (connection, details) = server.connect().await?;
    let process = server.process(records);
    let process = process.ok_or_else(|| Failure::errno("the server of the image ended", EIO))?;
    let name = image.to_string();
    let attached = kernel.attach(&Attach {
        connection: connection.as_fd(),
        details: &details,
        timeout: options.timeout,
        name: &name,
    });
    let mapped = Mapped {
        index: attached.map_err(kernel_failed)?,
        image,
        server: process,
        files: server.files.clone(),
    };
    if let Err(error) = records.add(&mapped) {
        // A device that nobody knows of could not be taken away again.
        let detached = kernel.detach(mapped.index).map_err(kernel_failed);
        let what = format!("cannot write down that {} is mapped", mapped.device());
        return detached.and(Err(Failure::errno(what, error.raw_os_error().unwrap_or(EIO))));
    }
    server.keep();
    Ok(format!("{}\n", mapped.device()))
}

/// What is to be taken away.
#[derive(Debug)]
enum Wanted {
    Device(String),
    Image(ImageSpec),
}

impl Wanted {
    fn of(args: &Args) -> Result<Self, Failure> {
        let device = args.peek_positional().filter(|word| word.starts_with('/'));
        if let Some(device) = device {
            args.next_positional();
            return Ok(Self::Device(device.to_owned()));
        }
        args.image(ImageQuery::source().snap(SnapRule::Optional))
            .map(Self::Image)
    }

    fn is(&self, mapped: &Mapped) -> bool {
        match self {
            Self::Device(path) => *path == mapped.device(),
            Self::Image(image) => *image == mapped.image,
        }
    }

    fn kind(&self) -> &'static str {
        match self {
            Self::Device(_) => "device",
            Self::Image(_) => "image or snapshot",
        }
    }

    /// The only device of those that is meant.
    fn find(&self, mapped: Vec<Mapped>) -> Result<Mapped, Failure> {
        let mut found: Vec<Mapped> = mapped.into_iter().filter(|one| self.is(one)).collect();
        let name = match self {
            Self::Device(path) => path.clone(),
            Self::Image(image) => image.to_string(),
        };
        match (found.pop(), found.len()) {
            (Some(one), 0) => Ok(one),
            (Some(_), _) => Err(Failure::invalid(format_args!(
                "{name} is mapped more than once; name the device"
            ))),
            (None, _) => Err(
                Failure::invalid(format_args!("{name}: not a mapped {}", self.kind()))
                    .with_line("rbd: unmap failed: (22) Invalid argument"),
            ),
        }
    }
}

/// Whether somebody has the device for himself: it is mounted, or part of another device.
fn is_in_use(device: &str) -> Result<bool, Failure> {
    match rustix::fs::open(
        device,
        OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC,
        Mode::empty(),
    ) {
        Err(rustix::io::Errno::BUSY) => Ok(true),
        Err(error) if error == rustix::io::Errno::ACCESS || error == rustix::io::Errno::PERM => Err(
            Failure::errno(format_args!("cannot open {device}"), error.raw_os_error()),
        ),
        // A device without its server, or gone, is in nobody's use.
        Ok(_) | Err(_) => Ok(false),
    }
}

pub(super) async fn unmap<L: Link>(session: &Session, machine: &Machine<L>) -> Result<(), Failure> {
    let args = session.args();
    check_type(args)?;
    let wanted = Wanted::of(args)?;
    let options = Options::parse(args.text("options").unwrap_or_default(), false)?;
    args.finish()?;
    let records = &machine.records;
    let mapped = wanted.find(records.all().map_err(records_failed)?)?;
    let device = mapped.device();
    if records.is_connected(mapped.index) {
        if !options.force && is_in_use(&device)? {
            return Err(Failure::errno(format_args!("{device} is in use"), EBUSY)
                .with_line("rbd: note: unmount it first; '-o force' takes it away nevertheless"));
        }
        let mut kernel = machine.driver()?;
        match kernel.detach(mapped.index) {
            // It may have come loose in this very moment.
            Err(KernelError::Refused { source, .. })
                if source.raw_os_error() == Some(EINVAL) && !records.is_connected(mapped.index) => {}
            detached => detached.map_err(kernel_failed)?,
        }
    }
    server::end(records, mapped.server).await?;
    records.forget(&mapped).map_err(records_failed)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "helpers of tests fail their test")]
mod tests {
    use super::records::Process;
    use super::*;

    fn mapped(index: u32, image: &str, snap: Option<&str>) -> Mapped {
        Mapped {
            index,
            image: ImageSpec {
                pool: "rbd".to_owned(),
                namespace: String::new(),
                image: image.to_owned(),
                snap: snap.map(str::to_owned),
            },
            server: Process { pid: 4711, began: 1 },
            files: "f".to_owned(),
        }
    }

    #[test]
    fn devices_are_listed_in_the_shape_of_ceph_s_list() {
        let both = [mapped(0, "disk", None), mapped(11, "i", Some("s"))];
        assert_eq!(
            table(&both),
            "id    pool  namespace  image  snap  device      cookie\n\
             4711  rbd              disk   -     /dev/nbd0         \n\
             4711  rbd              i      s     /dev/nbd11        \n"
        );
        assert_eq!(
            document(&both[1..]).render(crate::output::OutputFormat::Json { pretty: false }),
            "[{\"id\":4711,\"pool\":\"rbd\",\"namespace\":\"\",\"image\":\"i\",\"snap\":\"s\",\
             \"device\":\"/dev/nbd11\",\"cookie\":\"\"}]\n"
        );
        assert_eq!(table(&[]), "");
    }

    #[test]
    fn a_device_is_found_by_its_path_and_by_what_it_shows_unless_that_is_shown_twice() {
        let all = || {
            vec![
                mapped(0, "a", None),
                mapped(1, "a", Some("s")),
                mapped(2, "b", None),
                mapped(3, "b", None),
            ]
        };
        let device = |path: &str| Wanted::Device(path.to_owned()).find(all());
        let image = |image: &str, snap| Wanted::Image(mapped(9, image, snap).image).find(all());
        assert_eq!(device("/dev/nbd2").unwrap().index, 2);
        assert_eq!(device("/dev/nbd4").unwrap_err().code(), 22);
        assert_eq!(image("a", None).unwrap().index, 0);
        assert_eq!(image("a", Some("s")).unwrap().index, 1);
        assert!(image("b", None).unwrap_err().text().contains("more than once"));
        assert!(image("c", None).unwrap_err().text().contains("not a mapped"));
    }

    #[test]
    fn options_are_known_or_refused() {
        let seconds = Options::parse("try-netlink,io-timeout=5", true).unwrap().timeout;
        assert_eq!(seconds, Duration::from_secs(5));
        assert!(Options::parse("force", false).unwrap().force);
        for (text, of_map) in [
            ("force", true),
            ("timeout=x", true),
            ("timeout=1", false),
            ("noudev", true),
        ] {
            assert_eq!(Options::parse(text, of_map).unwrap_err().code(), 22, "{text}");
        }
    }

    #[test]
    fn what_the_kernel_refuses_is_told_with_what_to_do() {
        let none = kernel_failed(KernelError::NoDriver);
        assert_eq!(none.code(), 19);
        assert!(
            none.text().contains("modprobe nbd") && none.text().contains("rbd serve"),
            "{none}"
        );
        let refused = kernel_failed(KernelError::Refused {
            action: "attach a device".to_owned(),
            source: io::Error::from_raw_os_error(1),
        });
        assert_eq!(refused.code(), 1);
        assert!(refused.text().contains("root"), "{refused}");
    }
}
