//! The data of handshake options and of their replies.
//!
//! The promise: a parser takes bytes that were read within bounds, checks every length in them, and returns a
//! value or says which rule is broken; nothing is opened. Both ends use this file: what the client builds the
//! server parses, and the other way round.

use crate::device::{BlockSizes, wire_string};
use crate::proto::{self, MAX_STRING_BYTES, info};

/// A rule of the protocol that option data breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    #[error("{0} ends too early")]
    Short(&'static str),
    #[error("{0} is followed by bytes that don't belong to it")]
    Trailing(&'static str),
    #[error("{0} is longer than 4096 bytes")]
    LongString(&'static str),
    #[error("{0} is not text: invalid UTF-8 or a NUL byte")]
    NotText(&'static str),
}

/// Takes fields off the front of a slice.
struct Fields<'a> {
    what: &'static str,
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    fn new(what: &'static str, data: &'a [u8]) -> Self {
        Self { what, rest: data }
    }

    fn bytes(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let (head, rest) = self
            .rest
            .split_at_checked(length)
            .ok_or(Malformed::Short(self.what))?;
        self.rest = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (head, rest) = self.rest.split_first_chunk().ok_or(Malformed::Short(self.what))?;
        self.rest = rest;
        Ok(*head)
    }

    fn u16(&mut self) -> Result<u16, Malformed> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, Malformed> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    /// A 32-bit length and that many bytes.
    fn counted(&mut self) -> Result<&'a [u8], Malformed> {
        let length = self.u32()?;
        self.bytes(usize::try_from(length).map_err(|_| Malformed::Short(self.what))?)
    }

    fn end(self) -> Result<(), Malformed> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(Malformed::Trailing(self.what))
        }
    }
}

/// A string as the protocol allows it.
pub(crate) fn text<'a>(what: &'static str, bytes: &'a [u8]) -> Result<&'a str, Malformed> {
    if bytes.len() > MAX_STRING_BYTES {
        return Err(Malformed::LongString(what));
    }
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.contains('\0') => Ok(text),
        _ => Err(Malformed::NotText(what)),
    }
}

/// Data of `NBD_OPT_INFO` and `NBD_OPT_GO`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct InfoRequest<'a> {
    pub(crate) name: &'a str,
    pub(crate) wants_name: bool,
    pub(crate) wants_block_size: bool,
}

impl<'a> InfoRequest<'a> {
    pub(crate) fn parse(data: &'a [u8]) -> Result<Self, Malformed> {
        let mut fields = Fields::new("the request for an export", data);
        let name = text("the export name", fields.counted()?)?;
        let mut request = Self {
            name,
            wants_name: false,
            wants_block_size: false,
        };
        for _ in 0..fields.u16()? {
            match fields.u16()? {
                info::NAME => request.wants_name = true,
                info::BLOCK_SIZE => request.wants_block_size = true,
                // Export information is sent in any case, and unknown kinds must be ignored.
                _ => {}
            }
        }
        fields.end()?;
        Ok(request)
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut kinds = Vec::new();
        if self.wants_name {
            kinds.push(info::NAME);
        }
        if self.wants_block_size {
            kinds.push(info::BLOCK_SIZE);
        }
        let mut out = counted_string(self.name);
        out.extend_from_slice(&(kinds.len() as u16).to_be_bytes());
        for kind in kinds {
            out.extend_from_slice(&kind.to_be_bytes());
        }
        out
    }
}

/// Data of `NBD_OPT_LIST_META_CONTEXT` and `NBD_OPT_SET_META_CONTEXT`, as far as `base:allocation` is concerned:
/// queries for anything else find nothing here and are passed over.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct MetaRequest<'a> {
    pub(crate) name: &'a str,
    /// Number of queries.
    pub(crate) queries: u32,
    /// One of them was `base:allocation`.
    pub(crate) exact: bool,
    /// One of them was `base:`, which lists everything of the namespace but selects nothing.
    pub(crate) wildcard: bool,
}

impl<'a> MetaRequest<'a> {
    pub(crate) fn parse(data: &'a [u8]) -> Result<Self, Malformed> {
        let mut fields = Fields::new("the request for metadata contexts", data);
        let name = text("the export name", fields.counted()?)?;
        let queries = fields.u32()?;
        let mut request = Self {
            name,
            queries,
            exact: false,
            wildcard: false,
        };
        // Every query takes at least four bytes, so a lying count ends this loop at the end of the data.
        for _ in 0..queries {
            let query = text("a query for metadata contexts", fields.counted()?)?;
            request.exact |= query == proto::BASE_ALLOCATION;
            request.wildcard |= query == "base:";
        }
        fields.end()?;
        Ok(request)
    }

    pub(crate) fn encode(name: &str, queries: &[&str]) -> Vec<u8> {
        let mut out = counted_string(name);
        out.extend_from_slice(&(queries.len() as u32).to_be_bytes());
        for query in queries {
            out.extend_from_slice(&counted_string(query));
        }
        out
    }
}

/// A 32-bit length and the string, cut to what the protocol can carry.
pub(crate) fn counted_string(text: &str) -> Vec<u8> {
    let text = wire_string(text);
    let mut out = (text.len() as u32).to_be_bytes().to_vec();
    out.extend_from_slice(text.as_bytes());
    out
}

/// Data of a reply with an export of a list.
pub(crate) fn parse_server(data: &[u8]) -> Result<(&str, &str), Malformed> {
    let mut fields = Fields::new("an entry of the export list", data);
    let name = text("the export name", fields.counted()?)?;
    Ok((name, text("the export description", fields.rest)?))
}

/// Data of an information reply.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Info<'a> {
    Export { size_bytes: u64, flags: u16 },
    Name(&'a str),
    BlockSize(BlockSizes),
    Other,
}

impl<'a> Info<'a> {
    pub(crate) fn parse(data: &'a [u8]) -> Result<Self, Malformed> {
        let mut fields = Fields::new("information about the export", data);
        let parsed = match fields.u16()? {
            info::EXPORT => Self::Export {
                size_bytes: fields.u64()?,
                flags: fields.u16()?,
            },
            info::NAME => return Ok(Self::Name(text("the export name", fields.rest)?)),
            info::BLOCK_SIZE => Self::BlockSize(BlockSizes {
                minimum: fields.u32()?,
                preferred: fields.u32()?,
                maximum: fields.u32()?,
            }),
            _ => return Ok(Self::Other),
        };
        fields.end()?;
        Ok(parsed)
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(16);
        match self {
            Self::Export { size_bytes, flags } => {
                out.extend_from_slice(&info::EXPORT.to_be_bytes());
                out.extend_from_slice(&size_bytes.to_be_bytes());
                out.extend_from_slice(&flags.to_be_bytes());
            }
            Self::Name(name) => {
                out.extend_from_slice(&info::NAME.to_be_bytes());
                out.extend_from_slice(name.as_bytes());
            }
            Self::BlockSize(sizes) => {
                out.extend_from_slice(&info::BLOCK_SIZE.to_be_bytes());
                out.extend_from_slice(&sizes.minimum.to_be_bytes());
                out.extend_from_slice(&sizes.preferred.to_be_bytes());
                out.extend_from_slice(&sizes.maximum.to_be_bytes());
            }
            Self::Other => {}
        }
        out
    }
}

/// Data of a reply with a metadata context.
pub(crate) fn parse_meta_context(data: &[u8]) -> Result<(u32, &str), Malformed> {
    let mut fields = Fields::new("a metadata context", data);
    let id = fields.u32()?;
    Ok((id, text("the context name", fields.rest)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_export_request_survives_the_round_trip() {
        let request = InfoRequest {
            name: "rbd/a",
            wants_name: true,
            wants_block_size: true,
        };
        assert_eq!(InfoRequest::parse(&request.encode()), Ok(request));
        let plain = InfoRequest {
            name: "",
            wants_name: false,
            wants_block_size: false,
        };
        assert_eq!(plain.encode(), [0, 0, 0, 0, 0, 0]);
        assert_eq!(InfoRequest::parse(&plain.encode()), Ok(plain));
    }

    #[test]
    fn every_cut_of_a_request_is_refused() {
        let whole = InfoRequest {
            name: "image",
            wants_name: true,
            wants_block_size: true,
        }
        .encode();
        for end in 0..whole.len() {
            assert!(InfoRequest::parse(&whole[..end]).is_err(), "cut at {end}");
        }
        let whole = MetaRequest::encode("image", &["base:", "qemu:dirty-bitmap:x"]);
        for end in 0..whole.len() {
            assert!(MetaRequest::parse(&whole[..end]).is_err(), "cut at {end}");
        }
    }

    #[test]
    fn lengths_that_lie_are_refused() {
        let mut data = counted_string("name");
        data[..4].copy_from_slice(&u32::MAX.to_be_bytes());
        data.extend_from_slice(&[0, 0]);
        assert_eq!(
            InfoRequest::parse(&data),
            Err(Malformed::Short("the request for an export"))
        );
        let mut data = MetaRequest::encode("name", &[]);
        let count = data.len() - 4;
        data[count..].copy_from_slice(&u32::MAX.to_be_bytes());
        assert_eq!(
            MetaRequest::parse(&data),
            Err(Malformed::Short("the request for metadata contexts"))
        );
        data[count..].copy_from_slice(&0u32.to_be_bytes());
        data.push(0);
        assert_eq!(
            MetaRequest::parse(&data),
            Err(Malformed::Trailing("the request for metadata contexts"))
        );
    }

    #[test]
    fn names_that_are_no_text_are_refused() {
        assert_eq!(text("it", b"a\0b"), Err(Malformed::NotText("it")));
        assert_eq!(text("it", b"\xff"), Err(Malformed::NotText("it")));
        assert_eq!(text("it", &[b'x'; 4097]), Err(Malformed::LongString("it")));
        assert!(text("it", &[b'x'; 4096]).is_ok());
    }

    #[test]
    fn queries_select_by_exact_name_and_list_by_namespace() {
        let parse = |queries: &[&str]| {
            let data = MetaRequest::encode("e", queries);
            let request = MetaRequest::parse(&data).unwrap();
            (request.queries, request.exact, request.wildcard)
        };
        assert_eq!(parse(&[]), (0, false, false));
        assert_eq!(parse(&["base:"]), (1, false, true));
        assert_eq!(parse(&["base:allocation"]), (1, true, false));
        assert_eq!(
            parse(&["base:allocatio", "base:allocation2", "qemu:", "nonsense"]),
            (4, false, false)
        );
    }

    #[test]
    fn information_survives_the_round_trip() {
        for item in [
            Info::Export {
                size_bytes: 1 << 40,
                flags: 0x1ff,
            },
            Info::Name("rbd/a"),
            Info::BlockSize(BlockSizes::default()),
        ] {
            assert_eq!(Info::parse(&item.encode()), Ok(item));
        }
        assert_eq!(Info::parse(&[0xff, 0xff, 1, 2, 3]), Ok(Info::Other));
        assert!(Info::parse(&[0, 0, 1]).is_err());
        assert!(Info::parse(&[0]).is_err());
    }
}
