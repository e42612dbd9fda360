//! The server behind a device: `rbd serve` in a process of its own, and its connection for the kernel.

use std::fs::{self, File, OpenOptions};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ferry_nbd::client::{ClientConfig, ExportDetails, Negotiation};

use super::super::session::Session;
use super::Machine;
use super::records::{Process, Records};
use crate::exit::{EIO, Failure};
use crate::spec::ImageSpec;

/// How long a server may take until it listens, and how often that is looked at.
const START: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);
/// How long it may take to flush and to let go of the image.
const END: Duration = Duration::from_secs(60);
/// Most bytes of what a server said that are shown.
const SAID_BYTES_MAX: usize = 4096;

/// A server that was started here; killed when dropped, unless it is kept.
#[derive(Debug)]
pub(super) struct Server {
    child: Option<Child>,
    socket: PathBuf,
    log: PathBuf,
    /// What its files are called, without their endings.
    pub(super) files: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
            let _ = fs::remove_file(&self.log);
            let _ = fs::remove_file(&self.socket);
        }
    }
}

fn failed(what: impl std::fmt::Display) -> impl FnOnce(std::io::Error) -> Failure {
    move |error| Failure::errno(what, error.raw_os_error().unwrap_or(EIO))
}

impl Server {
    /// Starts a server of one image. Its messages go to a file.
    pub(super) fn start<L>(
        session: &Session,
        machine: &Machine<L>,
        image: &ImageSpec,
        read_only: bool,
    ) -> Result<Self, Failure> {
        let directory = machine.records.directory();
        fs::create_dir_all(directory)
            .map_err(failed(format_args!("cannot make '{}'", directory.display())))?;
        let files = format!("server-{:016x}", rand::random::<u64>());
        let (socket, log) = (
            directory.join(format!("{files}.sock")),
            directory.join(format!("{files}.log")),
        );
        let messages = OpenOptions::new().write(true).create_new(true).open(&log);
        let messages: File = messages.map_err(failed(format_args!("cannot make '{}'", log.display())))?;
        let settings = session.invocation().config_overrides.entries().iter();
        let settings = settings.map(|(name, value)| format!("--{name}={value}"));
        let mut command = Command::new(&machine.program);
        command
            .args(session.invocation().globals.to_words())
            .args(settings)
            .arg("serve")
            .arg("--socket")
            .arg(&socket)
            .args(read_only.then_some("--read-only"))
            .arg("--")
            .arg(image.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(messages)
            // A terminal's interrupts are not for it.
            .process_group(0);
        for passed_on in ["NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"] {
            command.env_remove(passed_on);
        }
        let child = command.spawn().map_err(failed("cannot start a server"))?;
        Ok(Self {
            child: Some(child),
            socket,
            log,
            files,
        })
    }

    /// A connection that is negotiated as the kernel needs it, and what was agreed on.
    pub(super) async fn connect(&mut self) -> Result<(UnixStream, ExportDetails), Failure> {
        let until = Instant::now() + START;
        let stream = loop {
            match UnixStream::connect(&self.socket) {
                Ok(stream) => break stream,
                Err(error) if Instant::now() > until => {
                    return Err(failed("the server does not listen")(error).with_line(self.said()));
                }
                Err(_) => {}
            }
            if let Some(child) = &mut self.child
                && let Ok(Some(status)) = child.try_wait()
            {
                let code = status.code().unwrap_or(EIO);
                return Err(Failure::errno("the server of the image ended", code).with_line(self.said()));
            }
            tokio::time::sleep(POLL).await;
        };
        let ours = stream
            .try_clone()
            .map_err(failed("cannot connect to the server"))?;
        ours.set_nonblocking(true)
            .map_err(failed("cannot connect to the server"))?;
        let ours = tokio::net::UnixStream::from_std(ours).map_err(failed("cannot connect to the server"))?;
        let (reader, writer) = tokio::io::split(ours);
        let config = ClientConfig {
            structured_replies: false,
            extended_headers: false,
            block_status: false,
            ..ClientConfig::default()
        };
        let agreed = async {
            Negotiation::over(reader, writer, config)
                .await?
                .hand_over("")
                .await
        };
        let details = agreed
            .await
            .map_err(|error| Failure::errno(format_args!("cannot speak to the server ({error})"), EIO))?;
        stream
            .set_nonblocking(false)
            .map_err(failed("cannot connect to the server"))?;
        Ok((stream, details))
    }

    /// What it said.
    fn said(&self) -> String {
        let said = fs::read(&self.log).unwrap_or_default();
        let start = said.len().saturating_sub(SAID_BYTES_MAX);
        String::from_utf8_lossy(&said[start..]).trim_end().to_owned()
    }

    /// Which process it is.
    pub(super) fn process(&self, records: &Records) -> Option<Process> {
        records.process(self.child.as_ref()?.id())
    }

    /// It goes on when this command has ended.
    pub(super) fn keep(mut self) {
        self.child = None;
    }
}

/// Asks a server to end, and waits until it has flushed and let go of its image. One that ended already is fine.
pub(super) async fn end(records: &Records, server: Process) -> Result<(), Failure> {
    let pid = i32::try_from(server.pid)
        .ok()
        .and_then(rustix::process::Pid::from_raw);
    let Some(pid) = pid.filter(|_| records.lives(server)) else {
        return Ok(());
    };
    match rustix::process::kill_process(pid, rustix::process::Signal::TERM) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => {}
        Err(error) => {
            let what = format!("cannot end the server, process {}", server.pid);
            return Err(Failure::errno(what, error.raw_os_error()));
        }
    }
    let until = Instant::now() + END;
    while records.lives(server) {
        if Instant::now() > until {
            let what = format!("the server, process {}, has not ended", server.pid);
            let failure = Failure::errno(what, ferry_store::Errno::ETIMEDOUT.0);
            return Err(failure.with_line("rbd: note: the device is detached; end the process by hand"));
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}
