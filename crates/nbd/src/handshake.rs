//! Option haggling, server side: fixed newstyle.
//!
//! The promise: every option gets the protocol's answer, malformed ones an error and the session goes on; only a
//! broken frame or client flags that the server must refuse end it. Option data is read within
//! [`MAX_OPTION_BYTES`]; longer data is skipped unread. The caller bounds the time.
//!
//! What it doesn't know: sockets. It works on any reader and writer, which is also where TLS will fit: an
//! accepted `NBD_OPT_STARTTLS` replaces both and starts again with empty state.

use std::io;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tracing::{debug, warn};

use crate::device::{BlockDevice, wire_string};
use crate::exports::{OpenError, OpenErrorKind};
use crate::option::{Info, InfoRequest, Malformed, MetaRequest, counted_string, text};
use crate::proto::{
    self, BadMagic, EXPORT_NAME_PADDING_BYTES, MAX_STRING_BYTES, OptionHeader, OptionReplyHeader,
    handshake_flag, opt, rep, transmission_flag,
};
use crate::registry::{OpenExport, Registry};
use crate::reply::ALLOCATION_CONTEXT_ID;
use crate::wire::FrameReader;

/// Longest option data that is looked at: a name and plenty of queries or information requests.
pub(crate) const MAX_OPTION_BYTES: u32 = (64 << 10) + 4 + MAX_STRING_BYTES as u32;
/// Replies are sent when this much of them is collected.
const REPLY_BUFFER_BYTES: usize = 64 << 10;

/// What the two ends agreed on.
pub(crate) struct Negotiated {
    pub(crate) export: OpenExport,
    pub(crate) name: String,
    pub(crate) structured: bool,
    pub(crate) allocation: bool,
}

/// The session ended without agreement, and not as the protocol foresees.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HandshakeError {
    #[error("connection failed: {0}")]
    Io(#[from] io::Error),
    #[error(transparent)]
    BadMagic(#[from] BadMagic),
    #[error("client flags {0:#x} are not known")]
    ClientFlags(u32),
    #[error("export name of {0} bytes is too long")]
    LongName(u32),
    #[error("export name refused: {0}")]
    BadName(#[from] Malformed),
    #[error("export refused, and NBD_OPT_EXPORT_NAME has no way to say so: {0}")]
    Refused(#[from] OpenError),
}

/// Haggles until an export is chosen; `None` when the client leaves as it may. Clients are told of no maximum
/// block size above `max_payload_bytes`.
pub(crate) async fn negotiate<R, W>(
    frames: &mut FrameReader<R>,
    writer: &mut W,
    registry: &Arc<Registry>,
    max_payload_bytes: u32,
) -> Result<Option<Negotiated>, HandshakeError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let flags = handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES;
    let mut greeting = proto::INIT_MAGIC.to_be_bytes().to_vec();
    greeting.extend_from_slice(&proto::OPTION_MAGIC.to_be_bytes());
    greeting.extend_from_slice(&flags.to_be_bytes());
    writer.write_all(&greeting).await?;
    writer.flush().await?;

    let Some(client_flags) = frames.read_array().await? else {
        return Ok(None);
    };
    let client_flags = u32::from_be_bytes(client_flags);
    if client_flags & !u32::from(flags) != 0 {
        return Err(HandshakeError::ClientFlags(client_flags));
    }
    let mut session = Session {
        frames,
        writer,
        registry,
        max_payload_bytes,
        no_zeroes: client_flags & u32::from(handshake_flag::NO_ZEROES) != 0,
        structured: false,
        allocation_for: None,
        opened: None,
        replies: Vec::new(),
    };
    loop {
        let Some(header) = session.frames.read_array().await? else {
            return Ok(None);
        };
        match session.option(OptionHeader::decode(&header)?).await? {
            Step::Continue => {}
            Step::Leave => return Ok(None),
            Step::Enter(negotiated) => return Ok(Some(negotiated)),
        }
    }
}

enum Step {
    Continue,
    Leave,
    Enter(Negotiated),
}

/// An error reply to an option.
struct Refusal {
    kind: u32,
    message: String,
}

impl From<Malformed> for Refusal {
    fn from(malformed: Malformed) -> Self {
        Self {
            kind: rep::ERR_INVALID,
            message: malformed.to_string(),
        }
    }
}

impl From<OpenError> for Refusal {
    fn from(error: OpenError) -> Self {
        let kind = match error.kind {
            OpenErrorKind::Policy => rep::ERR_POLICY,
            OpenErrorKind::Shutdown => rep::ERR_SHUTDOWN,
            // "Not available" is the only answer the protocol has for an export that fails to open.
            OpenErrorKind::Unknown | OpenErrorKind::Io => rep::ERR_UNKNOWN,
        };
        Self {
            kind,
            message: error.message,
        }
    }
}

fn invalid(message: &str) -> Refusal {
    Refusal {
        kind: rep::ERR_INVALID,
        message: message.to_owned(),
    }
}

struct Session<'a, R, W> {
    frames: &'a mut FrameReader<R>,
    writer: &'a mut W,
    registry: &'a Arc<Registry>,
    max_payload_bytes: u32,
    no_zeroes: bool,
    structured: bool,
    /// The export that `base:allocation` was selected for.
    allocation_for: Option<String>,
    /// The export that was last asked about: it stays open so that the choice that follows sees the same device.
    opened: Option<(String, OpenExport)>,
    replies: Vec<u8>,
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> Session<'_, R, W> {
    async fn option(&mut self, header: OptionHeader) -> Result<Step, HandshakeError> {
        let OptionHeader { option, length } = header;
        if option == opt::EXPORT_NAME {
            return self.export_name(length).await;
        }
        let data = if length <= MAX_OPTION_BYTES {
            self.frames.read_payload(length as usize).await?
        } else {
            self.frames.discard(u64::from(length)).await?;
            bytes::Bytes::new()
        };
        let known = matches!(option, opt::ABORT..=opt::LIST | opt::INFO..=opt::SET_META_CONTEXT);
        let answer = if !known {
            Err(Refusal {
                kind: rep::ERR_UNSUP,
                message: format!("option {option} is not supported"),
            })
        } else if length > MAX_OPTION_BYTES && option != opt::ABORT {
            let message =
                format!("option data of {length} bytes is too long, the limit is {MAX_OPTION_BYTES}");
            Err(Refusal {
                kind: rep::ERR_TOO_BIG,
                message,
            })
        } else {
            match option {
                opt::ABORT => Ok(()),
                opt::LIST => self.list(&data).await,
                opt::STRUCTURED_REPLY => self.structured_reply(&data),
                opt::LIST_META_CONTEXT => self.list_contexts(&data).await,
                opt::SET_META_CONTEXT => self.set_contexts(&data).await,
                _ => self.describe(option, &data).await,
            }
        };
        let accepted = answer.is_ok();
        match answer {
            Ok(()) => self.reply(option, rep::ACK, &[]),
            Err(Refusal { kind, message }) => {
                debug!(option, kind, %message, "option refused");
                self.reply(option, kind, wire_string(&message).as_bytes());
            }
        }
        let sent = self.send().await;
        if option == opt::ABORT {
            // The client may be gone without waiting for the answer.
            return Ok(Step::Leave);
        }
        sent?;
        if accepted
            && option == opt::GO
            && let Some((name, export)) = self.opened.take()
        {
            return Ok(Step::Enter(self.negotiated(name, export)));
        }
        Ok(Step::Continue)
    }

    /// `NBD_OPT_EXPORT_NAME`: answers with size and flags, or not at all.
    async fn export_name(&mut self, length: u32) -> Result<Step, HandshakeError> {
        if length as usize > MAX_STRING_BYTES {
            return Err(HandshakeError::LongName(length));
        }
        let data = self.frames.read_payload(length as usize).await?;
        let name = text("the export name", &data)?;
        self.open(name).await?;
        let Some((name, export)) = self.opened.take() else {
            return Ok(Step::Leave);
        };
        let device = export.device();
        self.replies.extend_from_slice(&device.size_bytes().to_be_bytes());
        self.replies
            .extend_from_slice(&transmission_flags(device.as_ref(), self.structured).to_be_bytes());
        if !self.no_zeroes {
            self.replies.extend_from_slice(&[0; EXPORT_NAME_PADDING_BYTES]);
        }
        self.send().await?;
        Ok(Step::Enter(self.negotiated(name, export)))
    }

    fn negotiated(&mut self, name: String, export: OpenExport) -> Negotiated {
        // A selection counts only for the export it was made for.
        let allocation = self
            .allocation_for
            .take()
            .is_some_and(|selected| selected == name);
        Negotiated {
            export,
            name,
            structured: self.structured,
            allocation,
        }
    }

    async fn list(&mut self, data: &[u8]) -> Result<(), Refusal> {
        if !data.is_empty() {
            return Err(invalid("NBD_OPT_LIST takes no data"));
        }
        let exports = self.registry.list().await.map_err(|error| Refusal {
            kind: rep::ERR_PLATFORM,
            message: error.to_string(),
        })?;
        for export in exports {
            if export.name.len() > MAX_STRING_BYTES {
                warn!(
                    name = wire_string(&export.name),
                    "export not listed: its name is longer than 4096 bytes"
                );
                continue;
            }
            let mut entry = counted_string(&export.name);
            entry.extend_from_slice(wire_string(&export.description).as_bytes());
            self.reply(opt::LIST, rep::SERVER, &entry);
            if self.replies.len() >= REPLY_BUFFER_BYTES && self.send().await.is_err() {
                // The final reply will meet the same error.
                break;
            }
        }
        Ok(())
    }

    fn structured_reply(&mut self, data: &[u8]) -> Result<(), Refusal> {
        if !data.is_empty() {
            return Err(invalid("NBD_OPT_STRUCTURED_REPLY takes no data"));
        }
        self.structured = true;
        Ok(())
    }

    async fn list_contexts(&mut self, data: &[u8]) -> Result<(), Refusal> {
        self.require_structured()?;
        let request = MetaRequest::parse(data)?;
        self.open(request.name).await?;
        if request.queries == 0 || request.exact || request.wildcard {
            self.context_reply(opt::LIST_META_CONTEXT, 0);
        }
        Ok(())
    }

    async fn set_contexts(&mut self, data: &[u8]) -> Result<(), Refusal> {
        // A new selection replaces the old one, also when it fails.
        self.allocation_for = None;
        self.require_structured()?;
        let request = MetaRequest::parse(data)?;
        self.open(request.name).await?;
        if request.exact {
            self.allocation_for = Some(request.name.to_owned());
            self.context_reply(opt::SET_META_CONTEXT, ALLOCATION_CONTEXT_ID);
        }
        Ok(())
    }

    fn require_structured(&self) -> Result<(), Refusal> {
        if self.structured {
            Ok(())
        } else {
            Err(invalid("metadata contexts need structured replies first"))
        }
    }

    fn context_reply(&mut self, option: u32, id: u32) {
        let mut data = id.to_be_bytes().to_vec();
        data.extend_from_slice(proto::BASE_ALLOCATION.as_bytes());
        self.reply(option, rep::META_CONTEXT, &data);
    }

    /// `NBD_OPT_INFO` and `NBD_OPT_GO`.
    async fn describe(&mut self, option: u32, data: &[u8]) -> Result<(), Refusal> {
        let request = InfoRequest::parse(data)?;
        let device = self.open(request.name).await?;
        let flags = transmission_flags(device.as_ref(), self.structured);
        let export = Info::Export {
            size_bytes: device.size_bytes(),
            flags,
        };
        self.reply(option, rep::INFO, &export.encode());
        if request.wants_name {
            self.reply(option, rep::INFO, &Info::Name(request.name).encode());
        }
        if request.wants_block_size {
            let sizes = device.block_sizes().limited_to(self.max_payload_bytes);
            self.reply(option, rep::INFO, &Info::BlockSize(sizes).encode());
        }
        Ok(())
    }

    /// Opens the export of that name, or finds it open from the option before.
    async fn open(&mut self, name: &str) -> Result<Arc<dyn BlockDevice>, OpenError> {
        if let Some((open, export)) = &self.opened
            && open == name
        {
            return Ok(Arc::clone(export.device()));
        }
        self.opened = None;
        let export = self.registry.open(name).await?;
        let device = Arc::clone(export.device());
        if let Err(error) = device.block_sizes().validate() {
            warn!(name, %error, "export refused: its block sizes break the protocol");
            return Err(OpenError::new(OpenErrorKind::Io, error.to_string()));
        }
        self.opened = Some((name.to_owned(), export));
        Ok(device)
    }

    fn reply(&mut self, option: u32, kind: u32, data: &[u8]) {
        let header = OptionReplyHeader {
            option,
            kind,
            length: data.len() as u32,
        };
        self.replies.extend_from_slice(&header.encode());
        self.replies.extend_from_slice(data);
    }

    async fn send(&mut self) -> io::Result<()> {
        let sent = self.writer.write_all(&self.replies).await;
        self.replies.clear();
        sent?;
        self.writer.flush().await
    }
}

/// What the device offers to a client.
pub(crate) fn transmission_flags(device: &dyn BlockDevice, structured: bool) -> u16 {
    let mut flags =
        transmission_flag::HAS_FLAGS | transmission_flag::SEND_FLUSH | transmission_flag::SEND_FUA;
    if device.read_only() {
        flags |= transmission_flag::READ_ONLY;
    } else {
        flags |= transmission_flag::SEND_TRIM | transmission_flag::SEND_WRITE_ZEROES;
    }
    if structured {
        flags |= transmission_flag::SEND_DF;
    }
    if device.can_multi_conn() {
        flags |= transmission_flag::CAN_MULTI_CONN;
    }
    flags
}
