//! Option haggling, server side: fixed newstyle.
//!
//! The promise: every option gets the protocol's answer, malformed ones an error and the session goes on; only a
//! broken frame, client flags that the server must refuse, or too many options end it. Option data is read
//! within a bound; longer data is skipped unread. The caller bounds the time. A server with TLS tells a client
//! without it nothing but that TLS is required. A client that reads the answer which ends the handshake has its place already.
//!
//! What it doesn't know: sockets, certificates. It works on any reader and writer: an accepted `NBD_OPT_STARTTLS`
//! returns to the caller, who replaces both and calls [`negotiate`] again, which starts with empty state.

use std::io;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tracing::{debug, warn};

use crate::device::{BlockDevice, wire_string};
use crate::exports::{OpenError, OpenErrorKind};
use crate::half_open::{Place, PutOut};
use crate::option::{Info, InfoRequest, Malformed, MetaRequest, counted_string, text};
use crate::proto::{
    self, BadMagic, EXPORT_NAME_PADDING_BYTES, Framing, MAX_STRING_BYTES, OptionHeader, OptionReplyHeader,
    handshake_flag, opt, rep, transmission_flag,
};
use crate::registry::{OpenExport, Registry};
use crate::reply::ALLOCATION_CONTEXT_ID;
use crate::wire::FrameReader;

/// Replies are sent when this much of them is collected.
const REPLY_BUFFER_BYTES: usize = 64 << 10;

/// What the two ends agreed on.
pub(crate) struct Negotiated {
    pub(crate) export: OpenExport,
    pub(crate) name: String,
    pub(crate) framing: Framing,
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
    #[error("the client sent more than {0} options")]
    TooManyOptions(u32),
    #[error("the client chose an export without TLS, which is required")]
    TlsRequired,
    #[error("the client sent {0} bytes behind NBD_OPT_STARTTLS without waiting for its answer")]
    Injected(usize),
    #[error("the client chose an export with NBD_OPT_EXPORT_NAME after it asked for extended headers")]
    NameAfterExtended,
    #[error("export name of {0} bytes is too long")]
    LongName(u32),
    #[error("export name refused: {0}")]
    BadName(#[from] Malformed),
    #[error("export refused, and NBD_OPT_EXPORT_NAME has no way to say so: {0}")]
    Refused(#[from] OpenError),
    #[error(transparent)]
    PutOut(#[from] PutOut),
}

/// How TLS stands on this connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TlsState {
    /// The server has none.
    Off,
    /// Nothing goes without, and the connection is not encrypted yet.
    Required,
    /// The connection is encrypted.
    Active,
}

/// What a server grants and demands in the handshake.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terms {
    /// Clients are told of no maximum block size above.
    pub(crate) max_payload_bytes: u32,
    pub(crate) max_options: u32,
    /// Longest option data that is looked at.
    pub(crate) max_option_bytes: u32,
    pub(crate) tls: TlsState,
}

/// What the client said in answer to the greeting.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ClientFlags {
    fixed_newstyle: bool,
    no_zeroes: bool,
}

/// How the haggling ended.
pub(crate) enum Outcome {
    /// The client left, as it may.
    Left,
    /// Both ends start TLS now; nothing that was said before counts.
    StartTls,
    Entered(Negotiated),
}

/// Sends the greeting; `None` when the client leaves.
pub(crate) async fn greet<R, W>(
    frames: &mut FrameReader<R>,
    writer: &mut W,
) -> Result<Option<ClientFlags>, HandshakeError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let offered = handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES;
    let mut greeting = proto::INIT_MAGIC.to_be_bytes().to_vec();
    greeting.extend_from_slice(&proto::OPTION_MAGIC.to_be_bytes());
    greeting.extend_from_slice(&offered.to_be_bytes());
    writer.write_all(&greeting).await?;
    writer.flush().await?;

    let Some(flags) = frames.read_array().await? else {
        return Ok(None);
    };
    let flags = u32::from_be_bytes(flags);
    if flags & !u32::from(offered) != 0 {
        return Err(HandshakeError::ClientFlags(flags));
    }
    let has = |flag| flags & u32::from(flag) != 0;
    Ok(Some(ClientFlags {
        fixed_newstyle: has(handshake_flag::FIXED_NEWSTYLE),
        no_zeroes: has(handshake_flag::NO_ZEROES),
    }))
}

/// Haggles until an export is chosen, TLS starts, or the client leaves.
pub(crate) async fn negotiate<R, W>(
    frames: &mut FrameReader<R>,
    writer: &mut W,
    registry: &Arc<Registry>,
    place: &mut Place,
    client: ClientFlags,
    terms: Terms,
) -> Result<Outcome, HandshakeError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut session = Session {
        frames,
        writer,
        registry,
        place,
        client,
        terms,
        framing: Framing::Simple,
        allocation_for: None,
        opened: None,
        replies: Vec::new(),
    };
    for _ in 0..terms.max_options {
        let Some(header) = session.frames.read_array().await? else {
            return Ok(Outcome::Left);
        };
        match session.option(OptionHeader::decode(&header)?).await? {
            Step::Continue => {}
            Step::End(outcome) => return Ok(outcome),
        }
    }
    Err(HandshakeError::TooManyOptions(terms.max_options))
}

enum Step {
    Continue,
    End(Outcome),
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
    place: &'a mut Place,
    client: ClientFlags,
    terms: Terms,
    framing: Framing,
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
        let limit = self.terms.max_option_bytes;
        let data = if length <= limit {
            self.frames.read_payload(length as usize).await?
        } else {
            self.frames.discard(u64::from(length)).await?;
            bytes::Bytes::new()
        };
        let answer = match option {
            opt::ABORT => Ok(()),
            opt::STARTTLS => self.start_tls(length),
            _ if self.terms.tls == TlsState::Required => Err(Refusal {
                kind: rep::ERR_TLS_REQD,
                message: "this server requires TLS before anything else".to_owned(),
            }),
            opt::LIST | opt::INFO..=opt::EXTENDED_HEADERS if length > limit => Err(Refusal {
                kind: rep::ERR_TOO_BIG,
                message: format!("option data of {length} bytes is too long, the limit is {limit}"),
            }),
            opt::LIST => self.list(&data).await,
            opt::STRUCTURED_REPLY => self.structured_reply(&data),
            opt::EXTENDED_HEADERS => self.extended_headers(&data),
            opt::LIST_META_CONTEXT => self.list_contexts(&data).await,
            opt::SET_META_CONTEXT => self.set_contexts(&data).await,
            opt::INFO | opt::GO => self.describe(option, &data).await,
            _ => Err(Refusal {
                kind: rep::ERR_UNSUP,
                message: format!("option {option} is not supported"),
            }),
        };
        if option == opt::STARTTLS && answer.is_ok() {
            // What was sent unencrypted must not be taken for what comes encrypted.
            let injected = self.frames.buffered();
            if injected > 0 {
                return Err(HandshakeError::Injected(injected));
            }
        }
        let accepted = answer.is_ok();
        match answer {
            Ok(()) => self.reply(option, rep::ACK, &[]),
            Err(Refusal { kind, message }) => {
                debug!(option, kind, %message, "option refused");
                self.reply(option, kind, wire_string(&message).as_bytes());
            }
        }
        if option == opt::GO && accepted {
            self.place.keep()?;
        }
        let sent = self.send().await;
        if option == opt::ABORT {
            // The client may be gone without waiting for the answer.
            return Ok(Step::End(Outcome::Left));
        }
        sent?;
        match option {
            opt::STARTTLS if accepted => Ok(Step::End(Outcome::StartTls)),
            opt::GO if accepted => Ok(self.enter()),
            _ => Ok(Step::Continue),
        }
    }

    fn start_tls(&self, length: u32) -> Result<(), Refusal> {
        match self.terms.tls {
            TlsState::Off => Err(Refusal {
                kind: rep::ERR_POLICY,
                message: "this server was started without TLS".to_owned(),
            }),
            TlsState::Active => Err(invalid("TLS is active already")),
            TlsState::Required if length > 0 => Err(invalid("NBD_OPT_STARTTLS takes no data")),
            TlsState::Required if !self.client.fixed_newstyle => {
                Err(invalid("TLS needs fixed newstyle negotiation"))
            }
            TlsState::Required => Ok(()),
        }
    }

    /// `NBD_OPT_EXPORT_NAME`: answers with size and flags, or not at all.
    async fn export_name(&mut self, length: u32) -> Result<Step, HandshakeError> {
        if self.terms.tls == TlsState::Required {
            return Err(HandshakeError::TlsRequired);
        }
        if self.framing == Framing::Extended {
            return Err(HandshakeError::NameAfterExtended);
        }
        if length as usize > MAX_STRING_BYTES {
            return Err(HandshakeError::LongName(length));
        }
        let data = self.frames.read_payload(length as usize).await?;
        let name = text("the export name", &data)?;
        let device = self.open(name).await?;
        self.replies.extend_from_slice(&device.size_bytes().to_be_bytes());
        self.replies
            .extend_from_slice(&transmission_flags(device.as_ref(), self.framing).to_be_bytes());
        if !self.client.no_zeroes {
            self.replies.extend_from_slice(&[0; EXPORT_NAME_PADDING_BYTES]);
        }
        self.place.keep()?;
        self.send().await?;
        Ok(self.enter())
    }

    /// Enters the export that was opened last.
    fn enter(&mut self) -> Step {
        let Some((name, export)) = self.opened.take() else {
            return Step::Continue;
        };
        // A selection counts only for the export it was made for.
        let allocation = self
            .allocation_for
            .take()
            .is_some_and(|selected| selected == name);
        Step::End(Outcome::Entered(Negotiated {
            export,
            name,
            framing: self.framing,
            allocation,
        }))
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
        if self.framing == Framing::Extended {
            return Err(Refusal {
                kind: rep::ERR_EXT_HEADER_REQD,
                message: "extended headers are agreed on already, and include structured replies".to_owned(),
            });
        }
        self.framing = Framing::Structured;
        Ok(())
    }

    fn extended_headers(&mut self, data: &[u8]) -> Result<(), Refusal> {
        if !data.is_empty() {
            return Err(invalid("NBD_OPT_EXTENDED_HEADERS takes no data"));
        }
        self.framing = Framing::Extended;
        Ok(())
    }

    async fn list_contexts(&mut self, data: &[u8]) -> Result<(), Refusal> {
        self.require_chunks()?;
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
        self.require_chunks()?;
        let request = MetaRequest::parse(data)?;
        self.open(request.name).await?;
        if request.exact {
            self.allocation_for = Some(request.name.to_owned());
            self.context_reply(opt::SET_META_CONTEXT, ALLOCATION_CONTEXT_ID);
        }
        Ok(())
    }

    fn require_chunks(&self) -> Result<(), Refusal> {
        if self.framing.has_chunks() {
            Ok(())
        } else {
            Err(invalid(
                "metadata contexts need structured replies or extended headers first",
            ))
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
        let flags = transmission_flags(device.as_ref(), self.framing);
        let export = Info::Export {
            size_bytes: device.size_bytes(),
            flags,
        };
        self.reply(option, rep::INFO, &export.encode());
        if request.wants_name {
            self.reply(option, rep::INFO, &Info::Name(request.name).encode());
        }
        if request.wants_block_size {
            let sizes = device.block_sizes().limited_to(self.terms.max_payload_bytes);
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
pub(crate) fn transmission_flags(device: &dyn BlockDevice, framing: Framing) -> u16 {
    let mut flags = transmission_flag::HAS_FLAGS
        | transmission_flag::SEND_FLUSH
        | transmission_flag::SEND_FUA
        | transmission_flag::SEND_CACHE;
    if device.read_only() {
        flags |= transmission_flag::READ_ONLY;
    } else {
        flags |= transmission_flag::SEND_TRIM
            | transmission_flag::SEND_WRITE_ZEROES
            | transmission_flag::SEND_FAST_ZERO;
    }
    if framing.has_chunks() {
        flags |= transmission_flag::SEND_DF;
    }
    if device.can_multi_conn() {
        flags |= transmission_flag::CAN_MULTI_CONN;
    }
    flags
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, duplex, split};

    use super::*;
    use crate::half_open::{HalfOpen, Peer};
    use crate::testing::{MemoryDevice, MemoryExports};

    /// Sends one option and reads all of its answer but the last byte; the end of the answer is still held back by the full pipe.
    async fn nobody_is_put_out_before_the_last_byte_of(option: u32, data: &[u8], answer_bytes: usize) {
        let exports = MemoryExports::new().with("disk", "", Arc::new(MemoryDevice::new(8192)));
        let registry = Registry::new(Arc::new(exports));
        let table = Arc::<HalfOpen>::default();
        let (mut client, server) = duplex(answer_bytes - 1);
        let (reader, mut writer) = split(server);
        let mut place = Place::HalfOpen(table.enter(Peer::Unknown));
        let serving = tokio::spawn(async move {
            let client = ClientFlags {
                fixed_newstyle: true,
                no_zeroes: true,
            };
            let terms = Terms {
                max_payload_bytes: 1 << 20,
                max_options: 10,
                max_option_bytes: 1 << 10,
                tls: TlsState::Off,
            };
            let mut frames = FrameReader::new(reader);
            negotiate(&mut frames, &mut writer, &registry, &mut place, client, terms)
                .await
                .map(|outcome| (outcome, place))
        });
        table.started(1, serving.abort_handle());
        let header = [&proto::OPTION_MAGIC.to_be_bytes()[..], &option.to_be_bytes()].concat();
        client.write_all(&header).await.unwrap();
        client
            .write_all(&(data.len() as u32).to_be_bytes())
            .await
            .unwrap();
        client.write_all(data).await.unwrap();
        let mut first = [0; 1];
        client.read_exact(&mut first).await.unwrap();
        assert!(
            !table.put_one_out(),
            "option {option}: put out with its answer on the way"
        );
        client.read_exact(&mut vec![0; answer_bytes - 1]).await.unwrap();
        let (outcome, place) = serving.await.unwrap().unwrap();
        assert!(matches!(outcome, Outcome::Entered(_)));
        assert_eq!(table.living(), 1);
        drop(place);
        assert_eq!(table.living(), 0);
    }

    #[tokio::test]
    async fn a_client_that_reads_the_last_answer_of_its_handshake_cannot_be_put_out_any_more() {
        // Size and flags.
        nobody_is_put_out_before_the_last_byte_of(opt::EXPORT_NAME, b"disk", 8 + 2).await;
        // NBD_INFO_EXPORT and the end, each with a header of 20 bytes.
        let go = [&4_u32.to_be_bytes()[..], b"disk", &0_u16.to_be_bytes()].concat();
        nobody_is_put_out_before_the_last_byte_of(opt::GO, &go, 20 + 12 + 20).await;
    }
}
