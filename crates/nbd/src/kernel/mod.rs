//! Block devices of the Linux kernel's NBD client: a negotiated connection becomes `/dev/nbdN`.
//!
//! The promise: [`KernelNbd`] asks the kernel through its `nbd` family of generic netlink, and says of every refusal what it
//! was. Once a device is attached the kernel has the connection, whatever becomes of this process.
//!
//! What this module does not know: servers, images, and who may use the device.

mod message;

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, send, socket_with,
};

use crate::client::ExportDetails;
use crate::proto::transmission_flag;
use message::{ACK, Answer, Attributes, Message, control, nbd, parse};

/// Bytes of a logical block of a device.
pub const BLOCK_BYTES: u64 = 512;
/// Longest answer that is read.
const ANSWER_BYTES: usize = 16 << 10;
/// How long the kernel may take for an answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// What the kernel understands of a server's flags.
const KNOWN_FLAGS: u16 = transmission_flag::HAS_FLAGS
    | transmission_flag::READ_ONLY
    | transmission_flag::SEND_FLUSH
    | transmission_flag::SEND_FUA
    | transmission_flag::SEND_TRIM
    | transmission_flag::CAN_MULTI_CONN;

/// Why the kernel has no device for us.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// There is no such driver in the kernel, or it is not loaded.
    #[error("the kernel has no driver for network block devices (nbd)")]
    NoDriver,
    /// The kernel refused.
    #[error("{action}: {source}")]
    Refused {
        /// What was asked.
        action: String,
        /// Its answer.
        source: io::Error,
    },
    /// It could not be asked, or the answer is not understood.
    #[error("{0}")]
    Netlink(io::Error),
}

/// Where requests to the kernel go.
pub trait Link {
    /// Sends a message and gives the datagram that answers it.
    ///
    /// # Errors
    /// Those of the socket.
    fn exchange(&mut self, request: &[u8]) -> io::Result<Vec<u8>>;
}

/// A socket of generic netlink.
#[derive(Debug)]
pub struct NetlinkSocket(OwnedFd);

impl NetlinkSocket {
    fn open() -> io::Result<Self> {
        let socket = socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            Some(netlink::GENERIC),
        )?;
        bind(&socket, &SocketAddrNetlink::new(0, 0))?;
        set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE))?;
        Ok(Self(socket))
    }
}

impl Link for NetlinkSocket {
    fn exchange(&mut self, request: &[u8]) -> io::Result<Vec<u8>> {
        send(&self.0, request, SendFlags::empty())?;
        let mut answer = vec![0; ANSWER_BYTES];
        let (length, _) = recv(&self.0, answer.as_mut_slice(), RecvFlags::empty())?;
        answer.truncate(length);
        Ok(answer)
    }
}

/// What a device is to be.
#[derive(Debug)]
pub struct Attach<'a> {
    /// A connection in its transmission phase, with simple replies.
    pub connection: BorrowedFd<'a>,
    /// What was agreed on it.
    pub details: &'a ExportDetails,
    /// After which time without an answer the kernel fails a request; zero: never.
    pub timeout: Duration,
    /// What the kernel shows as the device's backend.
    pub name: &'a str,
}

/// The kernel's driver.
#[derive(Debug)]
pub struct KernelNbd<L = NetlinkSocket> {
    link: L,
    family: u16,
    sequence: u32,
}

impl KernelNbd {
    /// Finds the driver.
    ///
    /// # Errors
    /// [`KernelError::NoDriver`] where there is none.
    pub fn open() -> Result<Self, KernelError> {
        Self::over(NetlinkSocket::open().map_err(KernelError::Netlink)?)
    }
}

impl<L: Link> KernelNbd<L> {
    /// Finds the driver at the other end of `link`.
    ///
    /// # Errors
    /// As [`KernelNbd::open`].
    pub fn over(link: L) -> Result<Self, KernelError> {
        let mut kernel = Self {
            link,
            family: control::FAMILY,
            sequence: 0,
        };
        let ask = |message: Message| message.put_text(control::FAMILY_NAME, nbd::NAME);
        let found = match kernel.ask("find the driver", 0, control::GET_FAMILY, ask) {
            Err(KernelError::Refused { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Err(KernelError::NoDriver);
            }
            found => required(found?)?,
        };
        let family = found.get(control::FAMILY_ID).map(u16::from_ne_bytes);
        kernel.family = family.ok_or_else(nonsense)?;
        Ok(kernel)
    }

    /// Makes a device of a connection; the kernel chooses its number N of `/dev/nbdN`.
    ///
    /// # Errors
    /// [`KernelError::Refused`], with `EPERM` for whoever may not administer the system.
    pub fn attach(&mut self, attach: &Attach<'_>) -> Result<u32, KernelError> {
        let socket = attach.connection.as_fd().as_raw_fd().cast_unsigned();
        let fill = |message: Message| {
            let message = message
                .put_u64(nbd::SIZE_BYTES, attach.details.size_bytes)
                .put_u64(nbd::BLOCK_SIZE_BYTES, BLOCK_BYTES);
            let message = match attach.timeout.as_secs() {
                0 => message,
                seconds => message.put_u64(nbd::TIMEOUT, seconds),
            };
            message
                .put_u64(nbd::SERVER_FLAGS, u64::from(attach.details.flags & KNOWN_FLAGS))
                .begin(nbd::SOCKETS)
                .begin(nbd::SOCK_ITEM)
                .put_u32(nbd::SOCK_FD, socket)
                .end()
                .end()
                .put_text(nbd::BACKEND_IDENTIFIER, attach.name)
        };
        let reply = self.ask("attach a device", 0, nbd::CONNECT, fill)?;
        let index = required(reply)?.get(nbd::INDEX).map(u32::from_ne_bytes);
        index.ok_or_else(nonsense)
    }

    /// Takes `/dev/nbdN` off its connection, which the kernel ends.
    ///
    /// # Errors
    /// [`KernelError::Refused`], with `EINVAL` or `ENOENT` for a device that is not attached.
    pub fn detach(&mut self, index: u32) -> Result<(), KernelError> {
        let what = format!("detach /dev/nbd{index}");
        let fill = |message: Message| message.put_u32(nbd::INDEX, index);
        self.ask(&what, ACK, nbd::DISCONNECT, fill).map(drop)
    }

    fn ask(
        &mut self,
        action: &str,
        flags: u16,
        command: u8,
        fill: impl FnOnce(Message) -> Message,
    ) -> Result<Option<Attributes>, KernelError> {
        self.sequence += 1;
        let message = fill(Message::new(self.family, flags, self.sequence, command));
        let answer = self.link.exchange(&message.encode());
        let answer = answer.map_err(KernelError::Netlink)?;
        match parse(&answer, self.sequence) {
            Ok(Answer::Done) => Ok(None),
            Ok(Answer::Reply(attributes)) => Ok(Some(attributes)),
            Ok(Answer::Refused(number)) => Err(KernelError::Refused {
                action: action.to_owned(),
                source: io::Error::from_raw_os_error(number),
            }),
            Err(_) => Err(nonsense()),
        }
    }
}

fn nonsense() -> KernelError {
    KernelError::Netlink(io::Error::new(
        io::ErrorKind::InvalidData,
        message::Malformed.to_string(),
    ))
}

fn required(reply: Option<Attributes>) -> Result<Attributes, KernelError> {
    reply.ok_or_else(nonsense)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "helpers of tests fail their test")]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::device::BlockSizes;

    /// A kernel with numbered devices, which understands what it must.
    #[derive(Debug, Default)]
    struct FakeKernel {
        no_driver: bool,
        devices: BTreeMap<u32, Vec<u8>>,
        refuses: Option<i32>,
    }

    const FAKE_FAMILY: u16 = 0x21;

    impl FakeKernel {
        fn error(request: &[u8], number: i32) -> Vec<u8> {
            let mut answer = Vec::new();
            answer.extend(36u32.to_ne_bytes());
            answer.extend(2u16.to_ne_bytes());
            answer.extend(0u16.to_ne_bytes());
            answer.extend(&request[8..12]);
            answer.extend([0; 4]);
            answer.extend((-number).to_ne_bytes());
            answer.extend(&request[..16]);
            answer
        }

        fn reply(request: &[u8], kind: u16, value: &[u8]) -> Vec<u8> {
            let family = u16::from_ne_bytes([request[4], request[5]]);
            let sequence = u32::from_ne_bytes(request[8..12].try_into().unwrap());
            Message::new(family, 0, sequence, request[16])
                .put(kind, value)
                .encode()
        }
    }

    impl Link for FakeKernel {
        fn exchange(&mut self, request: &[u8]) -> io::Result<Vec<u8>> {
            let family = u16::from_ne_bytes([request[4], request[5]]);
            if family == control::FAMILY {
                return Ok(match self.no_driver {
                    true => Self::error(request, 2),
                    false => Self::reply(request, control::FAMILY_ID, &FAKE_FAMILY.to_ne_bytes()),
                });
            }
            assert_eq!(family, FAKE_FAMILY);
            if let Some(number) = self.refuses {
                return Ok(Self::error(request, number));
            }
            // Requests have the form of replies.
            let sequence = u32::from_ne_bytes(request[8..12].try_into().unwrap());
            let Ok(Answer::Reply(asked)) = parse(request, sequence) else {
                panic!("{request:?}")
            };
            if request[16] == nbd::CONNECT {
                let index = u32::try_from(self.devices.len()).unwrap();
                let flags: [u8; 8] = asked.get(nbd::SERVER_FLAGS).unwrap();
                self.devices.insert(index, flags.to_vec());
                return Ok(Self::reply(request, nbd::INDEX, &index.to_ne_bytes()));
            }
            let index = u32::from_ne_bytes(asked.get(nbd::INDEX).unwrap());
            let code = if self.devices.remove(&index).is_some() {
                0
            } else {
                22
            };
            Ok(Self::error(request, code))
        }
    }

    fn attach(kernel: &mut KernelNbd<FakeKernel>) -> Result<u32, KernelError> {
        let (ours, _theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let details = ExportDetails {
            size_bytes: 1 << 20,
            flags: u16::MAX,
            block_sizes: BlockSizes::default(),
            canonical_name: None,
        };
        kernel.attach(&Attach {
            connection: ours.as_fd(),
            details: &details,
            timeout: Duration::ZERO,
            name: "rbd/i",
        })
    }

    #[test]
    fn devices_are_attached_with_what_the_kernel_knows_of_the_flags_and_detached_once() {
        let mut kernel = KernelNbd::over(FakeKernel::default()).unwrap();
        assert_eq!(attach(&mut kernel).unwrap(), 0);
        assert_eq!(attach(&mut kernel).unwrap(), 1);
        let flags = u64::from(KNOWN_FLAGS).to_ne_bytes();
        assert_eq!(kernel.link.devices[&0], flags);
        kernel.detach(0).unwrap();
        let gone = kernel.detach(0).unwrap_err();
        assert!(
            matches!(&gone, KernelError::Refused { source, .. } if source.raw_os_error() == Some(22)),
            "{gone}"
        );
        assert!(gone.to_string().contains("/dev/nbd0"), "{gone}");
    }

    #[test]
    fn a_kernel_without_the_driver_and_one_that_refuses_say_so() {
        let no_driver = FakeKernel {
            no_driver: true,
            ..FakeKernel::default()
        };
        assert!(matches!(KernelNbd::over(no_driver), Err(KernelError::NoDriver)));
        let refuses = FakeKernel {
            refuses: Some(1),
            ..FakeKernel::default()
        };
        let refused = attach(&mut KernelNbd::over(refuses).unwrap()).unwrap_err();
        assert!(
            matches!(&refused, KernelError::Refused { source, .. } if source.raw_os_error() == Some(1)),
            "{refused}"
        );
    }

    /// Not every kernel has the driver; every one has the family that tells so.
    #[test]
    fn the_kernel_of_this_machine_is_asked_and_answers() {
        match KernelNbd::open() {
            Ok(_) | Err(KernelError::NoDriver) => {}
            Err(error) => panic!("{error}"),
        }
    }
}
