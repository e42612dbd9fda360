//! Things that a client must not do, and what the server must do then.

use ferry_nbd::proto::{Framing, OptionHeader, RequestHeader, cmd, cmd_flag, opt, rep};

use super::{EXPORT, go_data, meta_data, string};

/// Size of the device.
pub const SIZE: u64 = 1 << 20;

/// How far a client has got when it misbehaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// It has read the greeting and said nothing.
    Greeted,
    /// It has answered the greeting.
    Haggling,
    /// It has agreed on structured replies, and goes on haggling.
    HagglingStructured,
    /// It has agreed on extended headers, and goes on haggling.
    HagglingExtended,
    /// It is in the transmission phase of a device that can be written.
    Entered(Framing),
    /// It is in the transmission phase of one that cannot.
    ReadOnly(Framing),
}

/// What the server must do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// End the connection, and answer nothing.
    Close,
    /// End the connection; an error of the request may come first.
    End,
    /// Answer the option with this error, and go on.
    Refuse(u32),
    /// Answer the request with this error of the protocol, and go on.
    Fail(u32),
}

/// One of these things.
#[derive(Debug, Clone)]
pub struct Abuse {
    pub name: String,
    pub stage: Stage,
    pub bytes: Vec<u8>,
    pub then: Then,
}

const EPERM: u32 = 1;
const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;
const EOVERFLOW: u32 = 75;
const FRAMINGS: [Framing; 3] = [Framing::Simple, Framing::Structured, Framing::Extended];
/// Cookie of the requests here.
pub const COOKIE: u64 = 0xabad_1dea;

fn abuse(name: impl Into<String>, stage: Stage, bytes: impl Into<Vec<u8>>, then: Then) -> Abuse {
    Abuse {
        name: name.into(),
        stage,
        bytes: bytes.into(),
        then,
    }
}

/// All of them.
pub fn all() -> Vec<Abuse> {
    let mut all = greetings();
    all.extend(option_frames());
    all.extend(export_options());
    all.extend(context_options());
    all.extend(other_options());
    for framing in FRAMINGS {
        all.extend(request_frames(framing));
        all.extend(unknown_commands(framing));
        all.extend(ranges(framing));
        all.extend(flags(framing));
        all.extend(read_only(framing));
    }
    all
}

fn option(option: u32, data: &[u8]) -> Vec<u8> {
    let length = data.len() as u32;
    [&OptionHeader { option, length }.encode()[..], data].concat()
}

fn greetings() -> Vec<Abuse> {
    let mut all = Vec::new();
    for bit in 2..32 {
        let flags = (1u32 << bit | 3).to_be_bytes();
        all.push(abuse(
            format!("client flag {bit}"),
            Stage::Greeted,
            flags,
            Then::Close,
        ));
    }
    for cut in 0..4 {
        all.push(abuse(
            format!("{cut} bytes of client flags"),
            Stage::Greeted,
            vec![0; cut],
            Then::Close,
        ));
    }
    for (name, bytes) in [
        ("an HTTP request", &b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..]),
        ("an SSH banner", b"SSH-2.0-OpenSSH_9.6\r\n"),
        ("a TLS hello", b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03"),
        (
            "an oldstyle greeting",
            b"NBDMAGIC\x00\x00\x42\x02\x81\x86\x12\x53",
        ),
    ] {
        all.push(abuse(name, Stage::Greeted, bytes, Then::Close));
    }
    all
}

fn option_frames() -> Vec<Abuse> {
    let mut all = Vec::new();
    let good = option(opt::LIST, &[]);
    for byte in 0..8 {
        let mut bytes = good.clone();
        bytes[byte] ^= 0x20;
        let name = format!("byte {byte} of an option's magic is wrong");
        all.push(abuse(name, Stage::Haggling, bytes, Then::Close));
    }
    for cut in [1, 7, 8, 11, 12, 15] {
        let name = format!("an option's header ends after {cut} bytes");
        all.push(abuse(name, Stage::Haggling, &good[..cut], Then::Close));
    }
    for kind in [opt::GO, opt::INFO, opt::LIST, opt::EXPORT_NAME, 99] {
        let mut bytes = option(kind, &[7; 30]);
        bytes.truncate(20);
        let name = format!("option {kind} ends in the middle of its data");
        all.push(abuse(name, Stage::Haggling, bytes, Then::Close));
    }
    all.push(abuse(
        "options without end",
        Stage::Haggling,
        option(99, &[]).repeat(1025),
        Then::Close,
    ));
    all.push(abuse(
        "an abort",
        Stage::Haggling,
        option(opt::ABORT, &[]),
        Then::Close,
    ));
    all
}

/// Data that names an export wrongly; the rest is right. A length that lies may come with any bytes.
fn bad_names(rest: &[u8]) -> Vec<(&'static str, Vec<u8>, u32)> {
    let with = |name: &[u8]| [&(name.len() as u32).to_be_bytes()[..], name, rest].concat();
    let lying = |length: u32| [&length.to_be_bytes()[..], EXPORT.as_bytes(), rest].concat();
    vec![
        ("no data", vec![], rep::ERR_INVALID),
        ("a cut length", vec![0, 0, 0], rep::ERR_INVALID),
        ("a name of 4 GiB", lying(u32::MAX), rep::ERR_INVALID),
        ("a name of 2 GiB", lying(1 << 31), rep::ERR_INVALID),
        (
            "a name that reaches behind the data",
            lying(200),
            rep::ERR_INVALID,
        ),
        ("a name that is no text", with(b"\xff\xfe"), rep::ERR_INVALID),
        ("a name with NUL", with(b"di\0sk"), rep::ERR_INVALID),
        ("a name of 4097 bytes", with(&[b'x'; 4097]), rep::ERR_INVALID),
        ("a name of 4096 bytes", with(&[b'x'; 4096]), rep::ERR_UNKNOWN),
        ("a path", with(b"../../etc/passwd"), rep::ERR_UNKNOWN),
        ("an absolute path", with(b"/dev/sda"), rep::ERR_UNKNOWN),
        ("a format", with(b"%s%n%x"), rep::ERR_UNKNOWN),
        ("a name with a line's end", with(b"disk\n"), rep::ERR_UNKNOWN),
        ("a name in other letters", with(b"DISK"), rep::ERR_UNKNOWN),
    ]
}

fn export_options() -> Vec<Abuse> {
    let mut all = Vec::new();
    for kind in [opt::GO, opt::INFO] {
        for (what, data, error) in bad_names(&[0, 0]) {
            let name = format!("option {kind} with {what}");
            all.push(abuse(
                name,
                Stage::Haggling,
                option(kind, &data),
                Then::Refuse(error),
            ));
        }
        let good = go_data(EXPORT, &[3]);
        for (what, data) in [
            ("no count", string(EXPORT)),
            ("half a count", good[..good.len() - 3].to_vec()),
            (
                "too high a count",
                [string(EXPORT), vec![0xff, 0xff, 0, 3]].concat(),
            ),
            ("too low a count", [string(EXPORT), vec![0, 0, 0, 3]].concat()),
            ("something behind it", [&good[..], b"x"].concat()),
        ] {
            let name = format!("option {kind} with {what}");
            all.push(abuse(
                name,
                Stage::Haggling,
                option(kind, &data),
                Then::Refuse(rep::ERR_INVALID),
            ));
        }
    }
    for (what, data) in [
        ("nobody knows", &b"nothing"[..]),
        ("that is no text", b"\xff"),
        ("with NUL", b"di\0sk"),
        ("of 4097 bytes", &[b'x'; 4097]),
    ] {
        let name = format!("an export chosen by a name {what}");
        all.push(abuse(
            name,
            Stage::Haggling,
            option(opt::EXPORT_NAME, data),
            Then::Close,
        ));
    }
    let header = OptionHeader {
        option: opt::EXPORT_NAME,
        length: u32::MAX,
    };
    all.push(abuse(
        "an export chosen by a name of 4 GiB",
        Stage::Haggling,
        header.encode(),
        Then::Close,
    ));
    let name = option(opt::EXPORT_NAME, EXPORT.as_bytes());
    all.push(abuse(
        "an export chosen by name after extended headers",
        Stage::HagglingExtended,
        name,
        Then::Close,
    ));
    all
}

fn context_options() -> Vec<Abuse> {
    let mut all = Vec::new();
    for kind in [opt::LIST_META_CONTEXT, opt::SET_META_CONTEXT] {
        let good = meta_data(EXPORT, &["base:allocation"]);
        let early = option(kind, &good);
        let name = format!("option {kind} before structured replies");
        all.push(abuse(
            name,
            Stage::Haggling,
            early,
            Then::Refuse(rep::ERR_INVALID),
        ));
        for (what, data, error) in bad_names(&[0, 0, 0, 0]) {
            let name = format!("option {kind} with {what}");
            all.push(abuse(
                name,
                Stage::HagglingStructured,
                option(kind, &data),
                Then::Refuse(error),
            ));
        }
        let query = |count: u32, query: &[u8]| [&string(EXPORT)[..], &count.to_be_bytes(), query].concat();
        let long = string(&"q".repeat(4097));
        for (what, data) in [
            ("4 Gi queries", query(u32::MAX, &string("base:allocation"))),
            ("one query too few", query(2, &string("base:allocation"))),
            ("one query too many", query(0, &string("base:allocation"))),
            ("a query of 4 GiB", query(1, &[0xff; 5])),
            ("a query that is no text", query(1, b"\0\0\0\x01\xff")),
            ("a query with NUL", query(1, b"\0\0\0\x02a\0")),
            ("a query of 4097 bytes", query(1, &long)),
        ] {
            let name = format!("option {kind} with {what}");
            let bytes = option(kind, &data);
            all.push(abuse(
                name,
                Stage::HagglingStructured,
                bytes,
                Then::Refuse(rep::ERR_INVALID),
            ));
        }
    }
    all
}

fn other_options() -> Vec<Abuse> {
    let mut all = Vec::new();
    let mut refused = |name: String, stage, bytes: Vec<u8>, error| {
        all.push(abuse(name, stage, bytes, Then::Refuse(error)));
    };
    for kind in [opt::LIST, opt::STRUCTURED_REPLY, opt::EXTENDED_HEADERS] {
        for length in [1, 4096] {
            let bytes = option(kind, &vec![1; length]);
            refused(
                format!("option {kind} with {length} bytes"),
                Stage::Haggling,
                bytes,
                rep::ERR_INVALID,
            );
        }
    }
    let known = [
        opt::LIST,
        opt::INFO,
        opt::GO,
        opt::STRUCTURED_REPLY,
        opt::LIST_META_CONTEXT,
        opt::SET_META_CONTEXT,
        opt::EXTENDED_HEADERS,
    ];
    for kind in known {
        let bytes = option(kind, &vec![0; 100_000]);
        refused(
            format!("option {kind} with 100000 bytes"),
            Stage::Haggling,
            bytes,
            rep::ERR_TOO_BIG,
        );
    }
    let again = option(opt::STRUCTURED_REPLY, &[]);
    refused(
        "structured replies after extended headers".into(),
        Stage::HagglingExtended,
        again,
        rep::ERR_EXT_HEADER_REQD,
    );
    for data in [&[][..], b"now"] {
        let bytes = option(opt::STARTTLS, data);
        let name = format!("TLS with {} bytes where there is none", data.len());
        refused(name, Stage::Haggling, bytes, rep::ERR_POLICY);
    }
    for kind in [0, 4, 12, 13, 0x7fff_ffff, 0x8000_0001, u32::MAX] {
        for length in [0, 9, 100_000] {
            let bytes = option(kind, &vec![3; length]);
            refused(
                format!("unknown option {kind} with {length} bytes"),
                Stage::Haggling,
                bytes,
                rep::ERR_UNSUP,
            );
        }
    }
    all
}

/// A request in that form.
pub fn request(framing: Framing, command: u16, flags: u16, offset: u64, length: u64) -> Vec<u8> {
    let header = RequestHeader {
        flags,
        command,
        cookie: COOKIE,
        offset,
        length,
    };
    match framing {
        Framing::Extended => header.encode_extended().to_vec(),
        Framing::Simple | Framing::Structured => header.encode().to_vec(),
    }
}

fn request_frames(framing: Framing) -> Vec<Abuse> {
    let stage = Stage::Entered(framing);
    let good = request(framing, cmd::READ, 0, 0, 512);
    let mut all = Vec::new();
    for byte in 0..4 {
        let mut bytes = good.clone();
        bytes[byte] ^= 0x80;
        all.push(abuse(
            format!("{framing:?}: byte {byte} of a request's magic is wrong"),
            stage,
            bytes,
            Then::Close,
        ));
    }
    for cut in [1, 4, 20, good.len() - 1] {
        let name = format!("{framing:?}: a request's header ends after {cut} bytes");
        all.push(abuse(name, stage, &good[..cut], Then::Close));
    }
    let other = match framing {
        Framing::Extended => Framing::Simple,
        Framing::Simple | Framing::Structured => Framing::Extended,
    };
    let bytes = request(other, cmd::READ, 0, 0, 512).repeat(2);
    all.push(abuse(
        format!("{framing:?}: a request in the other form"),
        stage,
        bytes,
        Then::Close,
    ));
    let bytes = option(opt::GO, &go_data(EXPORT, &[]));
    all.push(abuse(
        format!("{framing:?}: an option once more"),
        stage,
        bytes,
        Then::Close,
    ));
    for sent in [0, 511] {
        let mut bytes = request(framing, cmd::WRITE, 0, 0, 512);
        bytes.extend(vec![7; sent]);
        all.push(abuse(
            format!("{framing:?}: {sent} of 512 bytes of a write"),
            stage,
            bytes,
            Then::Close,
        ));
    }
    // Nothing of what was announced comes: memory for it must not be taken, nor may the write be made.
    for length in [64 << 20, u64::from(u32::MAX)] {
        let bytes = request(framing, cmd::WRITE, 0, 0, length);
        all.push(abuse(
            format!("{framing:?}: a write of {length} bytes that do not come"),
            stage,
            bytes,
            Then::End,
        ));
    }
    if framing == Framing::Extended {
        let bytes = request(framing, cmd::READ, cmd_flag::PAYLOAD_LEN, 0, u64::MAX);
        all.push(abuse(
            "Extended: a read with all payload there is",
            stage,
            bytes,
            Then::Close,
        ));
        let bytes = request(framing, cmd::WRITE, cmd_flag::PAYLOAD_LEN, 0, u64::MAX);
        all.push(abuse(
            "Extended: a write of all bytes there are",
            stage,
            bytes,
            Then::Close,
        ));
    }
    all
}

fn unknown_commands(framing: Framing) -> Vec<Abuse> {
    [8, 9, 100, 0x7fff, u16::MAX]
        .into_iter()
        .map(|command| {
            let bytes = request(framing, command, 0, 0, 512);
            let name = format!("{framing:?}: command {command}");
            abuse(name, Stage::Entered(framing), bytes, Then::Fail(EINVAL))
        })
        .collect()
}

/// With its payload, if it has one.
fn with_payload(framing: Framing, command: u16, flags: u16, offset: u64, length: u64) -> Vec<u8> {
    let mut bytes = request(framing, command, flags, offset, length);
    if command == cmd::WRITE {
        bytes.extend(vec![0xee; length as usize]);
    }
    bytes
}

fn ranges(framing: Framing) -> Vec<Abuse> {
    let stage = Stage::Entered(framing);
    let mut all = Vec::new();
    let mut failed = |name: String, bytes, error| all.push(abuse(name, stage, bytes, Then::Fail(error)));
    for command in [
        cmd::READ,
        cmd::WRITE,
        cmd::TRIM,
        cmd::CACHE,
        cmd::WRITE_ZEROES,
        cmd::BLOCK_STATUS,
    ] {
        if command == cmd::BLOCK_STATUS && framing != Framing::Extended {
            continue;
        }
        let error = match command {
            cmd::WRITE | cmd::WRITE_ZEROES => ENOSPC,
            _ => EINVAL,
        };
        for (offset, length) in [
            (SIZE, 1),
            (SIZE - 1, 2),
            (SIZE / 2, SIZE),
            (1 << 40, 512),
            (1 << 63, 512),
            (u64::MAX, 1),
            (u64::MAX - 511, 512),
        ] {
            let bytes = with_payload(framing, command, 0, offset, length);
            failed(
                format!("{framing:?}: command {command} on {length} bytes at {offset}"),
                bytes,
                error,
            );
        }
    }
    let too_long = match framing {
        Framing::Simple => EINVAL,
        Framing::Structured | Framing::Extended => EOVERFLOW,
    };
    for length in [(32 << 20) + 1, u64::from(u32::MAX)] {
        let bytes = request(framing, cmd::READ, 0, 0, length);
        failed(format!("{framing:?}: a read of {length} bytes"), bytes, too_long);
    }
    for (offset, length) in [(1, 0), (0, 1), (u64::MAX, u64::from(u32::MAX))] {
        let bytes = request(framing, cmd::FLUSH, 0, offset, length);
        failed(
            format!("{framing:?}: a flush of {length} bytes at {offset}"),
            bytes,
            EINVAL,
        );
    }
    let length = if framing == Framing::Extended { 0 } else { 512 };
    let bytes = request(framing, cmd::BLOCK_STATUS, 0, 0, length);
    failed(
        format!("{framing:?}: a block status that cannot be"),
        bytes,
        EINVAL,
    );
    all
}

fn flags(framing: Framing) -> Vec<Abuse> {
    let mut all = Vec::new();
    let commands = [
        (
            cmd::READ,
            if framing == Framing::Simple {
                0
            } else {
                cmd_flag::DF
            },
        ),
        (
            cmd::WRITE,
            if framing == Framing::Extended {
                cmd_flag::PAYLOAD_LEN
            } else {
                0
            },
        ),
        (cmd::FLUSH, 0),
        (cmd::TRIM, 0),
        (cmd::CACHE, 0),
        (cmd::WRITE_ZEROES, cmd_flag::NO_HOLE | cmd_flag::FAST_ZERO),
        (cmd::BLOCK_STATUS, cmd_flag::REQ_ONE),
    ];
    for (command, allowed) in commands {
        let allowed = allowed | cmd_flag::FUA;
        let length = if command == cmd::FLUSH { 0 } else { 512 };
        for bit in [1, 2, 3, 4, 5, 6, 15] {
            let flag = 1 << bit;
            if allowed & flag != 0 {
                continue;
            }
            let mut bytes = with_payload(framing, command, flag, 0, length);
            if framing == Framing::Extended && flag == cmd_flag::PAYLOAD_LEN {
                // What the flag announces follows.
                bytes.extend(vec![0xee; length as usize]);
            }
            let name = format!("{framing:?}: command {command} with flag {bit}");
            all.push(abuse(name, Stage::Entered(framing), bytes, Then::Fail(EINVAL)));
        }
    }
    all
}

fn read_only(framing: Framing) -> Vec<Abuse> {
    [cmd::WRITE, cmd::TRIM, cmd::WRITE_ZEROES]
        .into_iter()
        .map(|command| {
            let bytes = with_payload(framing, command, 0, 0, 512);
            let name = format!("{framing:?}: command {command} where nothing may be written");
            abuse(name, Stage::ReadOnly(framing), bytes, Then::Fail(EPERM))
        })
        .collect()
}
