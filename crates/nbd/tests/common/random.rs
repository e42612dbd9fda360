//! Hostile clients' bytes, near enough to the protocol to get far into a server.

use ferry_nbd::proto::{Framing, OptionHeader, RequestHeader, opt};
use rand::RngExt;
use rand::rngs::StdRng;

use super::{EXPORT, go_data, meta_data};

/// Size of the device that ranges are chosen for.
pub const SIZE: usize = 256 << 10;

/// Bytes that mean nothing, at most so many.
pub fn garbage(rng: &mut StdRng, most: usize) -> Vec<u8> {
    let mut bytes = vec![0; rng.random_range(0..=most)];
    rng.fill(bytes.as_mut_slice());
    bytes
}

/// A number that is often near a boundary.
fn edge(rng: &mut StdRng) -> u64 {
    let near = [0, 1, 512, 4096, SIZE as u64, 32 << 20, 1 << 32, u64::MAX];
    let base = near[rng.random_range(0..near.len())];
    base.wrapping_add(rng.random_range(0..3)).wrapping_sub(1)
}

/// An option as a client would send it, or nearly.
pub fn random_option(rng: &mut StdRng) -> Vec<u8> {
    let mut data = match rng.random_range(0..4) {
        0 => garbage(rng, 40),
        1 => go_data(EXPORT, &[3]),
        2 => meta_data(EXPORT, &["base:allocation"]),
        _ => vec![],
    };
    if !data.is_empty() && rng.random_ratio(1, 3) {
        let at = rng.random_range(0..data.len());
        data[at] = rng.random();
    }
    // Never longer than what is sent, mostly, or the rest of the stream would be taken for data.
    let length = if rng.random_ratio(1, 30) {
        edge(rng) as u32
    } else {
        data.len() as u32
    };
    let mut out = OptionHeader {
        option: rng.random_range(0..13),
        length,
    }
    .encode()
    .to_vec();
    out.extend(data);
    out
}

/// A request as a client would send it, or nearly, with its payload.
pub fn random_request(rng: &mut StdRng, extended: bool) -> Vec<u8> {
    let command = if rng.random_ratio(1, 10) {
        rng.random()
    } else {
        rng.random_range(0..9)
    };
    let flags = if rng.random_bool(0.5) {
        0
    } else {
        rng.random_range(0..64)
    };
    let mut header = RequestHeader {
        flags,
        command,
        cookie: rng.random(),
        offset: edge(rng),
        length: edge(rng),
    };
    let framing = if extended {
        Framing::Extended
    } else {
        header.length &= u64::from(u32::MAX);
        Framing::Structured
    };
    // Mostly, or the rest of the stream would be taken for payload.
    if header.payload_bytes(framing) > 0 && !rng.random_ratio(1, 50) {
        header.length = rng.random_range(0..10_000);
    }
    let mut out = match framing {
        Framing::Extended => header.encode_extended().to_vec(),
        Framing::Simple | Framing::Structured => header.encode().to_vec(),
    };
    if header.payload_bytes(framing) <= 10_000 && header.payload_bytes(framing) > 0 {
        let mut data = vec![0; header.length as usize];
        rng.fill(data.as_mut_slice());
        out.extend(data);
    }
    if rng.random_ratio(1, 40) {
        let at = rng.random_range(0..out.len());
        out[at] ^= rng.random::<u8>() | 1;
    }
    out
}

/// All that a hostile client sends in one session, from its flags on.
pub fn random_session(rng: &mut StdRng) -> Vec<u8> {
    if rng.random_ratio(1, 10) {
        return garbage(rng, 2000);
    }
    let mut bytes = vec![0, 0, 0, 3];
    for _ in 0..rng.random_range(0..6) {
        bytes.extend(random_option(rng));
    }
    if rng.random_ratio(1, 4) {
        return cut(rng, bytes);
    }
    let option = |option, data: &[u8]| {
        let length = data.len() as u32;
        [&OptionHeader { option, length }.encode()[..], data].concat()
    };
    let extended = rng.random();
    if extended {
        bytes.extend(option(opt::EXTENDED_HEADERS, &[]));
    } else if rng.random() {
        bytes.extend(option(opt::STRUCTURED_REPLY, &[]));
    }
    if rng.random() {
        bytes.extend(option(
            opt::SET_META_CONTEXT,
            &meta_data(EXPORT, &["base:allocation"]),
        ));
    }
    bytes.extend(option(opt::GO, &go_data(EXPORT, &[3])));
    for _ in 0..rng.random_range(0..12) {
        bytes.extend(random_request(rng, extended));
    }
    cut(rng, bytes)
}

/// Often the end is missing.
fn cut(rng: &mut StdRng, mut bytes: Vec<u8>) -> Vec<u8> {
    if rng.random_ratio(1, 3) {
        bytes.truncate(rng.random_range(0..=bytes.len()));
    }
    bytes
}
