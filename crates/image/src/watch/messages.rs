//! Notify payloads on image headers (rbd-format sheet, section 5.1): encode, decode, name.
//!
//! Pure bytes. A payload that does not decode is an error, never a guess; unknown operations keep their number.

use bytes::Bytes;
use ferry_cls::encoding::{Decode as _, DecodeError, Decoder, Encoder};
use ferry_cls::rbd::SnapshotNamespace;
use ferry_store::SnapId;

/// Who sent a notify: an open handle of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ClientId {
    /// The client's number.
    pub gid: u64,
    /// Cookie of its watch on the header.
    pub handle: u64,
}

/// Names one request that a lock owner works on for somebody else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct AsyncRequestId {
    /// Who asked.
    pub client: ClientId,
    /// Counted by whoever asked.
    pub request: u64,
}

/// What a notify says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// The sender owns the exclusive lock now.
    AcquiredLock(ClientId),
    /// The sender owns it no longer.
    ReleasedLock(ClientId),
    /// The sender wants it.
    RequestLock {
        /// Who.
        client: ClientId,
        /// Even from an owner that keeps it.
        force: bool,
    },
    /// Read the header again.
    HeaderUpdate,
    /// How far a request is.
    AsyncProgress {
        /// Which.
        id: AsyncRequestId,
        /// Done.
        offset: u64,
        /// Of.
        total: u64,
    },
    /// A request has ended.
    AsyncComplete {
        /// Which.
        id: AsyncRequestId,
        /// 0 or a negative errno.
        result: i32,
    },
    /// Work for the lock owner.
    Request {
        /// What.
        request: Request,
        /// Its name; `None` from old clients that wait for the ack.
        id: Option<AsyncRequestId>,
    },
    /// Hold writes back: a snapshot is about to be taken.
    Quiesce(AsyncRequestId),
    /// Go on writing.
    Unquiesce(AsyncRequestId),
    /// An operation this version does not know.
    Unknown(u32),
}

/// Work that only the owner of the exclusive lock may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Cut an image loose from its parent.
    Flatten,
    /// Change the size.
    Resize {
        /// New size.
        size_bytes: u64,
        /// Whether it may become smaller.
        allow_shrink: bool,
    },
    /// Take a snapshot.
    SnapCreate {
        /// Name.
        name: String,
        /// Namespace.
        namespace: SnapshotNamespace,
        /// Flags; 0.
        flags: u64,
    },
    /// Remove a snapshot.
    SnapRemove {
        /// Name.
        name: String,
        /// Namespace.
        namespace: SnapshotNamespace,
    },
    /// Make the object map anew.
    RebuildObjectMap,
    /// Rename a snapshot.
    SnapRename {
        /// Which.
        snap: SnapId,
        /// New name.
        new_name: String,
    },
    /// Protect a snapshot.
    SnapProtect {
        /// Name.
        name: String,
        /// Namespace.
        namespace: SnapshotNamespace,
    },
    /// Unprotect a snapshot.
    SnapUnprotect {
        /// Name.
        name: String,
        /// Namespace.
        namespace: SnapshotNamespace,
    },
    /// Rename the image.
    Rename {
        /// New name.
        new_name: String,
    },
    /// Switch features.
    UpdateFeatures {
        /// Which.
        features: u64,
        /// On or off.
        enabled: bool,
    },
    /// Copy the rest of a migration.
    Migrate,
    /// Give back zeroed space.
    Sparsify {
        /// Granularity.
        sparse_size_bytes: u64,
    },
    /// Change image metadata.
    MetadataUpdate {
        /// Key.
        key: String,
        /// Value; `None` removes.
        value: Option<Bytes>,
    },
}

const VERSION: u8 = 7;

impl Message {
    /// Ceph's name of the operation, as `rbd watch` prints it.
    pub fn name(&self) -> String {
        let name = match self {
            Message::AcquiredLock(_) => "AcquiredLock",
            Message::ReleasedLock(_) => "ReleasedLock",
            Message::RequestLock { .. } => "RequestLock",
            Message::HeaderUpdate => "HeaderUpdate",
            Message::AsyncProgress { .. } => "AsyncProgress",
            Message::AsyncComplete { .. } => "AsyncComplete",
            Message::Quiesce(_) => "Quiesce",
            Message::Unquiesce(_) => "Unquiesce",
            Message::Unknown(op) => return format!("Unknown ({op})"),
            Message::Request { request, .. } => match request {
                Request::Flatten => "Flatten",
                Request::Resize { .. } => "Resize",
                Request::SnapCreate { .. } => "SnapCreate",
                Request::SnapRemove { .. } => "SnapRemove",
                Request::RebuildObjectMap => "RebuildObjectMap",
                Request::SnapRename { .. } => "SnapRename",
                Request::SnapProtect { .. } => "SnapProtect",
                Request::SnapUnprotect { .. } => "SnapUnprotect",
                Request::Rename { .. } => "Rename",
                Request::UpdateFeatures { .. } => "UpdateFeatures",
                Request::Migrate => "Migrate",
                Request::Sparsify { .. } => "Sparsify",
                Request::MetadataUpdate { .. } => "MetadataUpdate",
            },
        };
        name.to_owned()
    }

    /// The payload.
    pub fn encode(&self) -> Bytes {
        let mut encoder = Encoder::new();
        encoder.frame(VERSION, 1, |e| self.encode_body(e));
        encoder.finish()
    }

    fn encode_body(&self, e: &mut Encoder) {
        match self {
            Message::AcquiredLock(client) => put_client(e.put(0u32), *client),
            Message::ReleasedLock(client) => put_client(e.put(1u32), *client),
            Message::RequestLock { client, force } => {
                put_client(e.put(2u32), *client);
                e.put(*force);
            }
            Message::HeaderUpdate => {
                e.put(3u32);
            }
            Message::AsyncProgress { id, offset, total } => {
                put_id(e.put(4u32), *id);
                e.put(*offset).put(*total);
            }
            Message::AsyncComplete { id, result } => {
                put_id(e.put(5u32), *id);
                e.put(*result);
            }
            Message::Quiesce(id) => put_id(e.put(18u32), *id),
            Message::Unquiesce(id) => put_id(e.put(19u32), *id),
            Message::Unknown(op) => {
                e.put(*op);
            }
            Message::Request { request, id } => encode_request(e, request, *id),
        }
    }

    /// Reads a payload; an empty one is the legacy header update.
    pub fn decode(payload: &[u8]) -> Result<Self, DecodeError> {
        if payload.is_empty() {
            return Ok(Message::HeaderUpdate);
        }
        Decoder::new(payload).frame("notify message", VERSION, |_version, _compat, d| decode_body(d))
    }
}

fn put_client(e: &mut Encoder, client: ClientId) {
    e.put(client.gid).put(client.handle);
}

fn put_id(e: &mut Encoder, id: AsyncRequestId) {
    put_client(e, id.client);
    e.put(id.request);
}

fn put_optional_id(e: &mut Encoder, id: Option<AsyncRequestId>) {
    if let Some(id) = id {
        put_id(e, id);
    }
}

fn encode_request(e: &mut Encoder, request: &Request, id: Option<AsyncRequestId>) {
    match request {
        Request::Flatten => put_optional_id(e.put(6u32), id),
        Request::Resize {
            size_bytes,
            allow_shrink,
        } => {
            put_optional_id(e.put(7u32).put(*size_bytes), id);
            e.put(*allow_shrink);
        }
        Request::SnapCreate {
            name,
            namespace,
            flags,
        } => {
            put_optional_id(e.put(8u32).put(name.as_str()).put(namespace), id);
            e.put(*flags);
        }
        Request::SnapRemove { name, namespace } => {
            put_optional_id(e.put(9u32).put(name.as_str()).put(namespace), id);
        }
        Request::RebuildObjectMap => put_optional_id(e.put(10u32), id),
        Request::SnapRename { snap, new_name } => {
            e.put(11u32)
                .put(snap.0)
                .put(new_name.as_str())
                .put(&SnapshotNamespace::User);
            put_optional_id(e, id);
        }
        Request::SnapProtect { name, namespace } => {
            put_optional_id(e.put(12u32).put(name.as_str()).put(namespace), id);
        }
        Request::SnapUnprotect { name, namespace } => {
            put_optional_id(e.put(13u32).put(name.as_str()).put(namespace), id);
        }
        Request::Rename { new_name } => put_optional_id(e.put(14u32).put(new_name.as_str()), id),
        Request::UpdateFeatures { features, enabled } => {
            put_optional_id(e.put(15u32).put(*features).put(*enabled), id);
        }
        Request::Migrate => put_optional_id(e.put(16u32), id),
        Request::Sparsify { sparse_size_bytes } => {
            put_optional_id(e.put(17u32), id);
            e.put(*sparse_size_bytes);
        }
        Request::MetadataUpdate { key, value } => {
            e.put(20u32).put(key.as_str());
            match value {
                None => {
                    e.put(false);
                }
                Some(value) => {
                    e.put(true).put_bytes(value);
                }
            }
            put_optional_id(e, id);
        }
    }
}

fn get_client(d: &mut Decoder<'_>) -> Result<ClientId, DecodeError> {
    Ok(ClientId {
        gid: d.get("client gid")?,
        handle: d.get("watch handle")?,
    })
}

fn get_id(d: &mut Decoder<'_>) -> Result<AsyncRequestId, DecodeError> {
    Ok(AsyncRequestId {
        client: get_client(d)?,
        request: d.get("request id")?,
    })
}

/// Old clients leave the id out at the end of a message.
fn get_trailing_id(d: &mut Decoder<'_>) -> Result<Option<AsyncRequestId>, DecodeError> {
    if d.is_empty() {
        Ok(None)
    } else {
        get_id(d).map(Some)
    }
}

fn decode_body(d: &mut Decoder<'_>) -> Result<Message, DecodeError> {
    let op: u32 = d.get("operation")?;
    Ok(match op {
        0 => Message::AcquiredLock(get_client(d)?),
        1 => Message::ReleasedLock(get_client(d)?),
        2 => Message::RequestLock {
            client: get_client(d)?,
            force: d.get_trailing("force")?.unwrap_or(false),
        },
        3 => Message::HeaderUpdate,
        4 => Message::AsyncProgress {
            id: get_id(d)?,
            offset: d.get("offset")?,
            total: d.get("total")?,
        },
        5 => Message::AsyncComplete {
            id: get_id(d)?,
            result: d.get("result")?,
        },
        18 => Message::Quiesce(get_id(d)?),
        19 => Message::Unquiesce(get_id(d)?),
        6..=17 | 20 => decode_request(op, d)?,
        other => Message::Unknown(other),
    })
}

fn decode_request(op: u32, d: &mut Decoder<'_>) -> Result<Message, DecodeError> {
    let (request, id) = match op {
        6 => (Request::Flatten, get_trailing_id(d)?),
        7 => {
            let size_bytes = d.get("size")?;
            let id = get_trailing_id(d)?;
            (
                Request::Resize {
                    size_bytes,
                    allow_shrink: d.get_trailing("allow shrink")?.unwrap_or(true),
                },
                id,
            )
        }
        8 => {
            let name = d.get("snapshot name")?;
            let namespace = SnapshotNamespace::decode(d)?;
            let id = get_trailing_id(d)?;
            (
                Request::SnapCreate {
                    name,
                    namespace,
                    flags: d.get_trailing("flags")?.unwrap_or(0),
                },
                id,
            )
        }
        9 => {
            let name = d.get("snapshot name")?;
            (
                Request::SnapRemove {
                    name,
                    namespace: SnapshotNamespace::decode(d)?,
                },
                get_trailing_id(d)?,
            )
        }
        10 => (Request::RebuildObjectMap, get_trailing_id(d)?),
        11 => {
            let snap = SnapId(d.get("snapshot id")?);
            let new_name = d.get("snapshot name")?;
            let _user = SnapshotNamespace::decode(d)?;
            (Request::SnapRename { snap, new_name }, get_trailing_id(d)?)
        }
        12 | 13 => {
            let name = d.get("snapshot name")?;
            let namespace = SnapshotNamespace::decode(d)?;
            let request = if op == 12 {
                Request::SnapProtect { name, namespace }
            } else {
                Request::SnapUnprotect { name, namespace }
            };
            (request, get_trailing_id(d)?)
        }
        14 => (
            Request::Rename {
                new_name: d.get("image name")?,
            },
            get_trailing_id(d)?,
        ),
        15 => {
            let features = d.get("features")?;
            (
                Request::UpdateFeatures {
                    features,
                    enabled: d.get("enabled")?,
                },
                get_trailing_id(d)?,
            )
        }
        16 => (Request::Migrate, get_trailing_id(d)?),
        17 => {
            let id = get_trailing_id(d)?;
            (
                Request::Sparsify {
                    sparse_size_bytes: d.get("sparse size")?,
                },
                id,
            )
        }
        _ => {
            let key = d.get("key")?;
            let set: bool = d.get("value present")?;
            let value = if set {
                Some(Bytes::copy_from_slice(d.bytes("value")?))
            } else {
                None
            };
            (Request::MetadataUpdate { key, value }, get_trailing_id(d)?)
        }
    };
    Ok(Message::Request { request, id })
}

/// Encodes a lock owner's answer: 0 or a negative errno.
pub fn encode_response(result: i32) -> Bytes {
    let mut encoder = Encoder::new();
    encoder.frame(1, 1, |e| {
        e.put(result);
    });
    encoder.finish()
}

/// Reads a lock owner's answer.
pub fn decode_response(payload: &[u8]) -> Result<i32, DecodeError> {
    Decoder::new(payload).frame("notify response", 1, |_version, _compat, d| d.get("result"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(hex: &str) -> Vec<u8> {
        (0..hex.len())
            .step_by(2)
            .map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap())
            .collect()
    }

    fn id(gid: u64, handle: u64) -> AsyncRequestId {
        AsyncRequestId {
            client: ClientId { gid, handle },
            request: 1,
        }
    }

    #[test]
    fn every_captured_payload_is_read_and_written_as_librbd_does() {
        let request = |request, id| Message::Request {
            request,
            id: Some(id),
        };
        let golden: Vec<(&str, Message)> = vec![
            ("07010400000003000000", Message::HeaderUpdate),
            (
                "0701140000000000 00005e10000000000000007d04e4c27f0000",
                Message::AcquiredLock(ClientId {
                    gid: 0x105e,
                    handle: 0x7fc2_e404_7d00,
                }),
            ),
            (
                "0701250000000700000000008001000000006c10000000000000b0010644127f0000010000000000000000",
                request(
                    Request::Resize {
                        size_bytes: 24 << 20,
                        allow_shrink: false,
                    },
                    id(0x106c, 0x7f12_4406_01b0),
                ),
            ),
            (
                "0701330000000b00000004000000000000000100000062010104000000000000001510000000000000206301206d7f00000100000000000000",
                request(
                    Request::SnapRename {
                        snap: SnapId(4),
                        new_name: "b".into(),
                    },
                    id(0x1015, 0x7f6d_2001_6320),
                ),
            ),
            (
                "07012900000014000000020000006b6b010200000076766e1000000000000050720194677f00000100000000000000",
                request(
                    Request::MetadataUpdate {
                        key: "kk".into(),
                        value: Some(Bytes::from_static(b"vv")),
                    },
                    id(0x106e, 0x7f67_9401_7250),
                ),
            ),
            (
                "07012300000014000000020000006b6b00701000000000000080bc0558137f00000100000000000000",
                request(
                    Request::MetadataUpdate {
                        key: "kk".into(),
                        value: None,
                    },
                    id(0x1070, 0x7f13_5805_bc80),
                ),
            ),
            (
                "0701250000000f00000010000000000000000072100000000000005016021c017f00000100000000000000",
                request(
                    Request::UpdateFeatures {
                        features: 16,
                        enabled: false,
                    },
                    id(0x1072, 0x7f01_1c02_1650),
                ),
            ),
            (
                "07012c00000004000000621000000000000060140208327f0000010000000000000001000000000000000a00000000000000",
                Message::AsyncProgress {
                    id: id(0x1062, 0x7f32_0802_1460),
                    offset: 1,
                    total: 10,
                },
            ),
            (
                "07012000000005000000621000000000000060140208327f0000010000000000000000000000",
                Message::AsyncComplete {
                    id: id(0x1062, 0x7f32_0802_1460),
                    result: 0,
                },
            ),
            (
                "070115000000020000001d10000000000000e06701e4f37f000000",
                Message::RequestLock {
                    client: ClientId {
                        gid: 0x101d,
                        handle: 0x7ff3_e401_67e0,
                    },
                    force: false,
                },
            ),
        ];
        for (hex, message) in golden {
            let raw = bytes(&hex.replace(' ', ""));
            assert_eq!(Message::decode(&raw).unwrap(), message);
            assert_eq!(message.encode(), raw, "{message:?}");
        }
    }

    #[test]
    fn an_empty_payload_is_a_header_update() {
        assert_eq!(Message::decode(&[]).unwrap(), Message::HeaderUpdate);
    }

    #[test]
    fn cut_payloads_are_errors() {
        let whole = Message::Request {
            request: Request::Rename { new_name: "x".into() },
            id: Some(id(1, 2)),
        }
        .encode();
        for end in 1..whole.len() {
            assert!(Message::decode(&whole[..end]).is_err(), "{end}");
        }
    }

    #[test]
    fn unknown_operations_keep_their_number() {
        let raw = Message::Unknown(99).encode();
        assert_eq!(Message::decode(&raw).unwrap(), Message::Unknown(99));
    }
}
