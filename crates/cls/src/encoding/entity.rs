//! Who and where a client is, in Ceph's encoding: `entity_name_t` and `entity_addr_t` (fact sheet section 0).

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use ferry_store::{ClientInstance, EntityAddr};

use super::decoder::{Decode, DecodeError, DecodeErrorKind, Decoder};
use super::encoder::{Encode, Encoder};

const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
/// Largest socket address any system has (`sockaddr_storage`).
const MAX_SOCKADDR_BYTES: usize = 128;

/// Kind and number of a participant: `client.4123`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EntityName {
    /// 1 mon, 2 mds, 4 osd, 8 client, 16 mgr.
    pub kind: u8,
    /// Global id of a client.
    pub number: i64,
}

impl EntityName {
    /// Kind of clients.
    pub const CLIENT: u8 = 8;

    /// `client.GID`.
    pub fn client(gid: u64) -> Self {
        Self {
            kind: Self::CLIENT,
            number: gid as i64, // Ceph's field is signed; ids stay far below the sign
        }
    }

    /// The client's global id; `None` for what is not a client.
    pub fn client_gid(self) -> Option<u64> {
        if self.kind != Self::CLIENT {
            return None;
        }
        u64::try_from(self.number).ok()
    }

    /// Reads `client.4123`.
    pub fn parse(text: &str) -> Option<Self> {
        let number: u64 = text.strip_prefix("client.")?.parse().ok()?;
        i64::try_from(number).ok()?;
        Some(Self::client(number))
    }
}

impl fmt::Display for EntityName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            1 => write!(f, "mon.{}", self.number),
            2 => write!(f, "mds.{}", self.number),
            4 => write!(f, "osd.{}", self.number),
            8 => write!(f, "client.{}", self.number),
            16 => write!(f, "mgr.{}", self.number),
            other => write!(f, "unknown{other}.{}", self.number),
        }
    }
}

impl Encode for EntityName {
    fn encode(&self, encoder: &mut Encoder) {
        encoder.put(self.kind).put(self.number);
    }
}

impl Decode for EntityName {
    const MIN_BYTES: usize = 9;

    fn decode(decoder: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            kind: decoder.get("entity type")?,
            number: decoder.get("entity number")?,
        })
    }
}

/// A network address with the nonce that tells processes apart. Keeps the socket address as stored, so that address
/// families unknown here survive a rewrite.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct EntityAddress {
    /// 0 none, 1 legacy, 2 messenger 2, 3 any.
    pub kind: u32,
    /// Distinguishes processes at one address.
    pub nonce: u32,
    /// `sockaddr` as stored: family little-endian, port and address in network order. At most 128 bytes.
    pub sockaddr: Vec<u8>,
}

impl EntityAddress {
    /// The legacy kind, which locks always store.
    pub const LEGACY: u32 = 1;

    /// The address of a store's client, as locks store it.
    pub fn legacy(addr: EntityAddr) -> Self {
        let mut sockaddr = vec![0; 16];
        sockaddr[..2].copy_from_slice(&AF_INET.to_le_bytes());
        sockaddr[2..4].copy_from_slice(&addr.port.to_be_bytes());
        sockaddr[4..8].copy_from_slice(&addr.ip);
        Self {
            kind: Self::LEGACY,
            nonce: addr.nonce,
            sockaddr,
        }
    }

    /// The store contract's form; `None` unless it is IPv4.
    pub fn to_store_addr(&self) -> Option<EntityAddr> {
        match *self.sockaddr.as_slice() {
            [f0, f1, p0, p1, a, b, c, d, ..] if u16::from_le_bytes([f0, f1]) == AF_INET => Some(EntityAddr {
                ip: [a, b, c, d],
                port: u16::from_be_bytes([p0, p1]),
                nonce: self.nonce,
            }),
            _ => None,
        }
    }

    /// The client `name` at this address, to fence it; `None` unless it is a client at an IPv4 address.
    pub fn client_instance(&self, name: EntityName) -> Option<ClientInstance> {
        Some(ClientInstance {
            gid: name.client_gid()?,
            addr: self.to_store_addr()?,
        })
    }
}

impl fmt::Display for EntityAddress {
    /// `127.0.0.1:0/1115468069`, as `rbd lock ls` shows it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let raw = self.sockaddr.as_slice();
        let port = |raw: &[u8]| u16::from_be_bytes([raw[2], raw[3]]);
        match raw.first_chunk::<2>().map(|family| u16::from_le_bytes(*family)) {
            Some(AF_INET) if raw.len() >= 8 => {
                let ip = Ipv4Addr::new(raw[4], raw[5], raw[6], raw[7]);
                write!(f, "{ip}:{}/{}", port(raw), self.nonce)
            }
            Some(AF_INET6) if raw.len() >= 24 => {
                let mut ip = [0; 16];
                ip.copy_from_slice(&raw[8..24]);
                write!(f, "[{}]:{}/{}", Ipv6Addr::from(ip), port(raw), self.nonce)
            }
            _ => write!(f, "-/{}", self.nonce),
        }
    }
}

impl Encode for EntityAddress {
    fn encode(&self, encoder: &mut Encoder) {
        encoder.put(1u8).frame(1, 1, |body| {
            body.put(self.kind).put(self.nonce).put_bytes(&self.sockaddr);
        });
    }
}

impl Decode for EntityAddress {
    const MIN_BYTES: usize = 19;

    fn decode(decoder: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        let marker: u8 = decoder.get("address marker")?;
        if marker != 1 {
            return Err(decoder.bad_value("address marker", u64::from(marker)));
        }
        decoder.frame("entity address", 1, |_, _, body| {
            let kind = body.get("address type")?;
            let nonce = body.get("address nonce")?;
            let sockaddr = body.bytes("socket address")?;
            if sockaddr.len() > MAX_SOCKADDR_BYTES {
                return Err(body.error(DecodeErrorKind::BadValue(sockaddr.len() as u64)));
            }
            Ok(Self {
                kind,
                nonce,
                sockaddr: sockaddr.to_vec(),
            })
        })
    }
}
