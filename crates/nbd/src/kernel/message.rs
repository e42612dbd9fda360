//! Messages of generic netlink, as far as the kernel's `nbd` family needs them: encoding of requests, parsing of answers.
//! Pure; names and numbers are those of `linux/netlink.h`, `linux/genetlink.h` and `linux/nbd-netlink.h`.
//!
//! Everything is in the machine's own byte order, and attributes begin at multiples of four bytes.

use std::fmt;

/// `NLM_F_REQUEST`.
pub(super) const REQUEST: u16 = 0x1;
/// `NLM_F_ACK`: an answer also to what gives none.
pub(super) const ACK: u16 = 0x4;
/// `NLMSG_ERROR`: an error, or with number 0 the acknowledgement.
const ERROR: u16 = 0x2;
/// `NLA_F_NESTED`.
const NESTED: u16 = 0x8000;
/// `NLA_TYPE_MASK`.
const TYPE_MASK: u16 = 0x3fff;
/// Bytes of `struct nlmsghdr`, and of `struct genlmsghdr` behind it.
const HEADER_BYTES: usize = 16;
const GENERIC_BYTES: usize = 4;

/// The family that tells the numbers of others.
pub(super) mod control {
    pub(in super::super) const FAMILY: u16 = 0x10;
    pub(in super::super) const GET_FAMILY: u8 = 3;
    pub(in super::super) const FAMILY_ID: u16 = 1;
    pub(in super::super) const FAMILY_NAME: u16 = 2;
}

/// The family of network block devices.
pub(super) mod nbd {
    pub(in super::super) const NAME: &str = "nbd";
    pub(in super::super) const CONNECT: u8 = 1;
    pub(in super::super) const DISCONNECT: u8 = 2;
    pub(in super::super) const INDEX: u16 = 1;
    pub(in super::super) const SIZE_BYTES: u16 = 2;
    pub(in super::super) const BLOCK_SIZE_BYTES: u16 = 3;
    pub(in super::super) const TIMEOUT: u16 = 4;
    pub(in super::super) const SERVER_FLAGS: u16 = 5;
    pub(in super::super) const SOCKETS: u16 = 7;
    pub(in super::super) const BACKEND_IDENTIFIER: u16 = 10;
    pub(in super::super) const SOCK_ITEM: u16 = 1;
    pub(in super::super) const SOCK_FD: u16 = 1;
}

/// A message in the making.
#[derive(Debug)]
pub(super) struct Message {
    bytes: Vec<u8>,
    nests: Vec<usize>,
}

impl Message {
    /// A request of a family's command.
    pub(super) fn new(family: u16, flags: u16, sequence: u32, command: u8) -> Self {
        let mut bytes = vec![0; 4];
        bytes.extend(family.to_ne_bytes());
        bytes.extend((REQUEST | flags).to_ne_bytes());
        bytes.extend(sequence.to_ne_bytes());
        // The kernel is port 0, and gives us ours.
        bytes.extend([0; 4]);
        bytes.extend([command, 1, 0, 0]);
        Self {
            bytes,
            nests: Vec::new(),
        }
    }

    /// Adds an attribute.
    pub(super) fn put(mut self, kind: u16, value: &[u8]) -> Self {
        let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
        debug_assert_eq!(usize::from(length), 4 + value.len(), "attributes are short");
        self.bytes.extend(length.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        self
    }

    /// Adds a number.
    pub(super) fn put_u32(self, kind: u16, value: u32) -> Self {
        self.put(kind, &value.to_ne_bytes())
    }

    /// Adds a long number.
    pub(super) fn put_u64(self, kind: u16, value: u64) -> Self {
        self.put(kind, &value.to_ne_bytes())
    }

    /// Adds a text, which ends with a zero byte.
    pub(super) fn put_text(self, kind: u16, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.put(kind, &bytes)
    }

    /// What follows, up to the matching [`Message::end`], is inside this attribute.
    pub(super) fn begin(mut self, kind: u16) -> Self {
        self.nests.push(self.bytes.len());
        self.put(kind | NESTED, &[])
    }

    /// Ends the innermost nest.
    pub(super) fn end(mut self) -> Self {
        if let Some(start) = self.nests.pop() {
            let length = u16::try_from(self.bytes.len() - start).unwrap_or(u16::MAX);
            self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        }
        self
    }

    /// The whole message.
    pub(super) fn encode(mut self) -> Vec<u8> {
        debug_assert!(self.nests.is_empty(), "a nest is open");
        let length = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        self.bytes[..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes
    }
}

/// What the kernel said.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// Done, and nothing to say.
    Done,
    /// The errno of a refusal.
    Refused(i32),
    /// The attributes of a reply.
    Reply(Attributes),
}

/// An answer that makes no sense.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Malformed;

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the kernel's answer over netlink makes no sense")
    }
}

/// Attributes, not looked into.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Attributes(Vec<(u16, Vec<u8>)>);

impl Attributes {
    /// The value of the first of this kind, cut or filled up to `N` bytes: `None` if it has another length.
    pub(super) fn get<const N: usize>(&self, kind: u16) -> Option<[u8; N]> {
        let (_, value) = self.0.iter().find(|(found, _)| *found == kind)?;
        value.as_slice().try_into().ok()
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// The first message of a datagram, which must answer the request of this number.
pub(super) fn parse(datagram: &[u8], sequence: u32) -> Result<Answer, Malformed> {
    parse_whole(datagram, sequence).ok_or(Malformed)
}

fn parse_whole(datagram: &[u8], sequence: u32) -> Option<Answer> {
    let length = usize::try_from(u32_at(datagram, 0)?).ok()?;
    let message = datagram.get(..length)?;
    if u32_at(message, 8)? != sequence {
        return None;
    }
    if u16_at(message, 4)? == ERROR {
        let number = u32_at(message, HEADER_BYTES)?.cast_signed();
        return Some(match number {
            0 => Answer::Done,
            _ => Answer::Refused(number.checked_neg()?),
        });
    }
    let mut rest = message.get(HEADER_BYTES + GENERIC_BYTES..)?;
    let mut attributes = Vec::new();
    while !rest.is_empty() {
        let length = usize::from(u16_at(rest, 0)?);
        let kind = u16_at(rest, 2)? & TYPE_MASK;
        attributes.push((kind, rest.get(4..length)?.to_vec()));
        // The last one may end without its padding.
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Some(Answer::Reply(Attributes(attributes)))
}

#[cfg(all(test, target_endian = "little"))]
#[allow(clippy::unwrap_used, reason = "helpers of tests fail their test")]
mod tests {
    use super::*;

    fn bytes(hex: &str) -> Vec<u8> {
        let digits = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
        (0..hex.len()).step_by(2).map(digits).collect()
    }

    /// Made by a program in C from the kernel's headers.
    const FAMILY: &str = "1c00000010000100010000000000000003010000080002006e626400";
    const CONNECT: &str = "680000001d00010002000000000000000101000008000100030000000c00020000001000000000000c000300001000000000\
                           00000c0004001e000000000000000c0005002700000000000000100007800c00018008000100070000000a000a007262642f\
                           69000000";
    const DISCONNECT: &str = "1c0000001d0005000300000000000000020100000800010003000000";
    const REPLY: &str = "1c0000001d0000000200000000000000010100000800010005000000";
    const FAMILY_REPLY: &str =
        "2c00000010000000010000000000000001020000080002006e626400060001001d0000000800030001000000";
    const BUSY: &str = "24000000020000000200000000000000f0ffffff00000000000000000000000000000000";

    #[test]
    fn requests_are_the_bytes_that_the_kernel_s_headers_make() {
        let family = Message::new(control::FAMILY, 0, 1, control::GET_FAMILY);
        let family = family.put_text(control::FAMILY_NAME, nbd::NAME).encode();
        assert_eq!(family, bytes(FAMILY));
        let connect = Message::new(0x1d, 0, 2, nbd::CONNECT)
            .put_u32(nbd::INDEX, 3)
            .put_u64(nbd::SIZE_BYTES, 1 << 20)
            .put_u64(nbd::BLOCK_SIZE_BYTES, 4096)
            .put_u64(nbd::TIMEOUT, 30)
            .put_u64(nbd::SERVER_FLAGS, 0x27)
            .begin(nbd::SOCKETS)
            .begin(nbd::SOCK_ITEM)
            .put_u32(nbd::SOCK_FD, 7)
            .end()
            .end()
            .put_text(nbd::BACKEND_IDENTIFIER, "rbd/i")
            .encode();
        assert_eq!(connect, bytes(CONNECT));
        let disconnect = Message::new(0x1d, ACK, 3, nbd::DISCONNECT).put_u32(nbd::INDEX, 3);
        assert_eq!(disconnect.encode(), bytes(DISCONNECT));
    }

    #[test]
    fn answers_tell_what_was_asked_or_why_not() {
        let Answer::Reply(reply) = parse(&bytes(REPLY), 2).unwrap() else {
            panic!("no reply")
        };
        assert_eq!(reply.get(nbd::INDEX).map(u32::from_ne_bytes), Some(5));
        assert_eq!(reply.get::<8>(nbd::INDEX), None);
        assert_eq!(reply.get::<4>(nbd::SIZE_BYTES), None);
        let Answer::Reply(family) = parse(&bytes(FAMILY_REPLY), 1).unwrap() else {
            panic!("no reply")
        };
        assert_eq!(family.get(control::FAMILY_ID).map(u16::from_ne_bytes), Some(0x1d));
        assert_eq!(parse(&bytes(BUSY), 2), Ok(Answer::Refused(16)));
        let done = BUSY.replace("f0ffffff", "00000000");
        assert_eq!(parse(&bytes(&done), 2), Ok(Answer::Done));
    }

    #[test]
    fn answers_that_are_cut_off_or_not_ours_are_no_answers() {
        for whole in [REPLY, FAMILY_REPLY, BUSY] {
            let whole = bytes(whole);
            for length in 0..whole.len() {
                assert_eq!(parse(&whole[..length], 2), Err(Malformed), "{length}");
            }
        }
        assert_eq!(parse(&bytes(REPLY), 3), Err(Malformed));
        // An attribute that is shorter than its head, and one that is longer than the message.
        for length in ["0300", "0900"] {
            let wrong = REPLY.replace("08000100", &format!("{length}0100"));
            assert_eq!(parse(&bytes(&wrong), 2), Err(Malformed), "{length}");
        }
    }
}
