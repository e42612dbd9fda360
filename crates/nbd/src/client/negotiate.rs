//! The client's side of the handshake.
//!
//! The promise: every step has a time limit, every reply a bound on its length and every list one on its entries.

use std::collections::HashSet;
use std::future::Future;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, ToSocketAddrs, UnixStream};
use tokio::time::timeout;

use super::{BoxReader, BoxWriter, Client, ClientConfig, ClientError, ExportDetails};
use crate::device::BlockSizes;
use crate::exports::ExportInfo;
use crate::listen;
use crate::option::{Info, InfoRequest, Malformed, MetaRequest, parse_meta_context, parse_server, text};
use crate::proto::{
    self, BadMagic, EXPORT_NAME_PADDING_BYTES, Framing, MAX_STRING_BYTES, OptionHeader, OptionReplyHeader,
    handshake_flag, opt, rep, transmission_flag,
};
use crate::tls::TlsClient;
use crate::wire::FrameReader;

/// Longest data of a reply: an export with name and description.
const MAX_REPLY_BYTES: u32 = 4 + 2 * MAX_STRING_BYTES as u32;
/// Most replies to one option other than a list.
const MAX_REPLIES: usize = 1024;

/// A connection in the handshake phase.
pub struct Negotiation {
    frames: FrameReader<BoxReader>,
    writer: BoxWriter,
    config: ClientConfig,
    no_zeroes: bool,
}

impl std::fmt::Debug for Negotiation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Negotiation")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl From<BadMagic> for ClientError {
    fn from(error: BadMagic) -> Self {
        Self::Protocol(error.to_string())
    }
}

impl From<Malformed> for ClientError {
    fn from(error: Malformed) -> Self {
        Self::Protocol(error.to_string())
    }
}

/// The final reply to an option.
enum Final {
    Accepted,
    Refused { kind: u32, message: String },
}

impl Final {
    fn accepted(self) -> Result<(), ClientError> {
        match self {
            Self::Accepted => Ok(()),
            Self::Refused { kind, message } => Err(ClientError::Refused { kind, message }),
        }
    }
}

impl Negotiation {
    /// Connects to a Unix socket.
    ///
    /// # Errors
    /// [`ClientError`], when there is no server or it does not speak fixed newstyle.
    pub async fn connect_unix(path: impl AsRef<Path>, config: ClientConfig) -> Result<Self, ClientError> {
        let stream = within(&config, async { Ok(UnixStream::connect(path).await?) }).await?;
        let (reader, writer) = stream.into_split();
        Self::over(reader, writer, config).await
    }

    /// Connects to a TCP address; the protocol's port is 10809.
    ///
    /// # Errors
    /// [`ClientError`], when there is no server or it does not speak fixed newstyle.
    pub async fn connect_tcp(address: impl ToSocketAddrs, config: ClientConfig) -> Result<Self, ClientError> {
        let stream = within(&config, async { Ok(TcpStream::connect(address).await?) }).await?;
        listen::prepare(&stream);
        let (reader, writer) = stream.into_split();
        Self::over(reader, writer, config).await
    }

    /// Starts on a connection that exists.
    ///
    /// # Errors
    /// [`ClientError`], when the server does not speak fixed newstyle.
    pub async fn over<R, W>(reader: R, writer: W, config: ClientConfig) -> Result<Self, ClientError>
    where
        R: AsyncRead + Send + Unpin + 'static,
        W: AsyncWrite + Send + Unpin + 'static,
    {
        if config.max_in_flight_requests == 0 {
            return Err(ClientError::Unsupported(
                "max_in_flight_requests must not be zero".into(),
            ));
        }
        let mut negotiation = Self {
            frames: FrameReader::new(Box::new(reader)),
            writer: Box::new(writer),
            config,
            no_zeroes: false,
        };
        let config = negotiation.config.clone();
        within(&config, negotiation.greet()).await?;
        match &config.tls {
            Some(tls) => within(&config, negotiation.start_tls(tls)).await,
            None => Ok(negotiation),
        }
    }

    /// Starts TLS, before any option that could tell or decide something.
    async fn start_tls(mut self, tls: &TlsClient) -> Result<Self, ClientError> {
        self.bare_option(opt::STARTTLS).await?.accepted()?;
        if self.frames.buffered() > 0 {
            return Err(ClientError::Protocol(
                "the server sent unencrypted bytes behind its agreement to TLS".into(),
            ));
        }
        let stream = tls
            .connect(tokio::io::join(self.frames.into_inner(), self.writer))
            .await
            .map_err(|error| ClientError::Tls(Arc::new(error)))?;
        let (reader, writer) = tokio::io::split(stream);
        Ok(Self {
            frames: FrameReader::new(Box::new(reader)),
            writer: Box::new(writer),
            config: self.config,
            no_zeroes: self.no_zeroes,
        })
    }

    async fn greet(&mut self) -> Result<(), ClientError> {
        let magic: [u8; 8] = self.frames.read_array().await?.ok_or(ClientError::Closed)?;
        proto::expect_magic64("greeting", proto::INIT_MAGIC, &magic)?;
        let magic: [u8; 8] = self.frames.require_array().await?;
        proto::expect_magic64("newstyle greeting", proto::OPTION_MAGIC, &magic)?;
        let offered = u16::from_be_bytes(self.frames.require_array().await?);
        if offered & handshake_flag::FIXED_NEWSTYLE == 0 {
            return Err(ClientError::Protocol(
                "the server does not speak fixed newstyle".into(),
            ));
        }
        let agreed = offered & (handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES);
        self.no_zeroes = agreed & handshake_flag::NO_ZEROES != 0;
        self.writer.write_all(&u32::from(agreed).to_be_bytes()).await?;
        self.writer.flush().await?;
        Ok(())
    }

    /// The server's exports.
    ///
    /// # Errors
    /// [`ClientError::Refused`] when the server keeps its list to itself; the negotiation can go on.
    pub async fn list(&mut self) -> Result<Vec<ExportInfo>, ClientError> {
        let config = self.config.clone();
        within(&config, async {
            let mut exports = Vec::new();
            let limit = self.config.max_list_entries;
            self.option(opt::LIST, &[], limit, |kind, data| {
                if kind != rep::SERVER {
                    return Err(unexpected(kind));
                }
                let (name, description) = parse_server(data)?;
                exports.push(ExportInfo {
                    name: name.to_owned(),
                    description: description.to_owned(),
                });
                Ok(())
            })
            .await?
            .accepted()?;
            Ok(exports)
        })
        .await
    }

    /// What the server says of an export, without entering it.
    ///
    /// # Errors
    /// [`ClientError::Refused`], after which the negotiation can go on.
    pub async fn info(&mut self, name: &str) -> Result<ExportDetails, ClientError> {
        check_name(name)?;
        let config = self.config.clone();
        within(&config, self.describe(opt::INFO, name)).await
    }

    /// Enters the export. Structured replies and block status are used as far as the server has them.
    ///
    /// # Errors
    /// [`ClientError::Refused`] when the server won't open it.
    pub async fn go(mut self, name: &str) -> Result<Client, ClientError> {
        check_name(name)?;
        let config = self.config.clone();
        let (details, framing, allocation) = within(&config, self.agree(name)).await?;
        Ok(Client::start(
            self.frames,
            self.writer,
            details,
            config,
            framing,
            allocation,
        ))
    }

    /// Enters the export for somebody who speaks the rest on the connection himself, with simple replies; the streams of this
    /// negotiation are dropped.
    ///
    /// # Errors
    /// As [`Negotiation::go`]; [`ClientError::Protocol`] if anything else was agreed on or the server has spoken unasked.
    pub async fn hand_over(mut self, name: &str) -> Result<ExportDetails, ClientError> {
        check_name(name)?;
        let config = self.config.clone();
        let (details, framing, _) = within(&config, self.agree(name)).await?;
        if framing != Framing::Simple || self.frames.buffered() > 0 {
            return Err(ClientError::Protocol(
                "more than simple replies was agreed on, or the server spoke unasked".into(),
            ));
        }
        Ok(details)
    }

    /// Leaves politely.
    ///
    /// # Errors
    /// When the connection fails. A server that closes without an answer is fine.
    pub async fn abort(mut self) -> Result<(), ClientError> {
        let config = self.config.clone();
        let left = within(&config, self.bare_option(opt::ABORT)).await;
        match left {
            Ok(_) | Err(ClientError::Closed) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn agree(&mut self, name: &str) -> Result<(ExportDetails, Framing, Option<u32>), ClientError> {
        let framing = self.choose_framing().await?;
        let mut allocation = None;
        if framing.has_chunks() && self.config.block_status {
            allocation = self.select_allocation(name).await?;
        }
        match self.describe(opt::GO, name).await {
            // A server of extended headers has this option, so the older one is allowed here.
            Err(ClientError::Refused {
                kind: rep::ERR_UNSUP, ..
            }) if framing != Framing::Extended => Ok((self.enter_by_name(name).await?, framing, allocation)),
            Err(error) => Err(error),
            Ok(details) => Ok((details, framing, allocation)),
        }
    }

    /// The best form that both ends know.
    async fn choose_framing(&mut self) -> Result<Framing, ClientError> {
        let wishes = [
            (
                self.config.extended_headers,
                opt::EXTENDED_HEADERS,
                Framing::Extended,
            ),
            (
                self.config.structured_replies,
                opt::STRUCTURED_REPLY,
                Framing::Structured,
            ),
        ];
        for (wanted, option, framing) in wishes {
            if wanted && let Final::Accepted = self.bare_option(option).await? {
                return Ok(framing);
            }
        }
        Ok(Framing::Simple)
    }

    /// An option without data whose only reply is the last.
    async fn bare_option(&mut self, option: u32) -> Result<Final, ClientError> {
        self.option(option, &[], MAX_REPLIES, |kind, _| Err(unexpected(kind)))
            .await
    }

    async fn select_allocation(&mut self, name: &str) -> Result<Option<u32>, ClientError> {
        let data = MetaRequest::encode(name, &[proto::BASE_ALLOCATION]);
        let mut selected = None;
        let answer = self
            .option(opt::SET_META_CONTEXT, &data, MAX_REPLIES, |kind, data| {
                if kind != rep::META_CONTEXT {
                    return Err(unexpected(kind));
                }
                let (id, context) = parse_meta_context(data)?;
                if context != proto::BASE_ALLOCATION || selected.is_some() {
                    return Err(ClientError::Protocol(
                        "a context was selected that was not asked for".into(),
                    ));
                }
                selected = Some(id);
                Ok(())
            })
            .await?;
        // A refusal is no failure: the choice of the export will tell if there is one.
        Ok(selected.filter(|_| matches!(answer, Final::Accepted)))
    }

    async fn describe(&mut self, option: u32, name: &str) -> Result<ExportDetails, ClientError> {
        let data = InfoRequest {
            name,
            wants_name: true,
            wants_block_size: true,
        }
        .encode();
        let mut export = None;
        let mut canonical_name = None;
        let mut block_sizes = BlockSizes::default();
        let mut seen = HashSet::new();
        self.option(option, &data, MAX_REPLIES, |kind, data| {
            if kind != rep::INFO {
                return Err(unexpected(kind));
            }
            let item = Info::parse(data)?;
            // What was parsed has its two bytes of type.
            if item != Info::Other && !seen.insert([data[0], data[1]]) {
                return Err(ClientError::Protocol(
                    "the same information was sent twice".into(),
                ));
            }
            match item {
                Info::Export { size_bytes, flags } => export = Some((size_bytes, flags)),
                Info::Name(name) => canonical_name = Some(name.to_owned()),
                Info::BlockSize(sizes) => {
                    sizes
                        .validate()
                        .map_err(|error| ClientError::Protocol(error.to_string()))?;
                    block_sizes = sizes;
                }
                Info::Other => {}
            }
            Ok(())
        })
        .await?
        .accepted()?;
        let (size_bytes, flags) =
            export.ok_or_else(|| ClientError::Protocol("the size of the export was not sent".into()))?;
        Ok(ExportDetails {
            size_bytes,
            flags: checked_flags(flags)?,
            block_sizes,
            canonical_name,
        })
    }

    /// `NBD_OPT_EXPORT_NAME`, for servers that know no `NBD_OPT_GO`.
    async fn enter_by_name(&mut self, name: &str) -> Result<ExportDetails, ClientError> {
        self.send_option(opt::EXPORT_NAME, name.as_bytes()).await?;
        let size: [u8; 8] = self.frames.read_array().await?.ok_or(ClientError::Refused {
            kind: rep::ERR_UNKNOWN,
            message: "the server closed the connection".into(),
        })?;
        let flags = u16::from_be_bytes(self.frames.require_array().await?);
        if !self.no_zeroes {
            self.frames.discard(EXPORT_NAME_PADDING_BYTES as u64).await?;
        }
        Ok(ExportDetails {
            size_bytes: u64::from_be_bytes(size),
            flags: checked_flags(flags)?,
            block_sizes: BlockSizes::default(),
            canonical_name: None,
        })
    }

    async fn send_option(&mut self, option: u32, data: &[u8]) -> Result<(), ClientError> {
        let mut message = OptionHeader {
            option,
            length: data.len() as u32,
        }
        .encode()
        .to_vec();
        message.extend_from_slice(data);
        self.writer.write_all(&message).await?;
        self.writer.flush().await?;
        Ok(())
    }

    /// Sends an option, hands each reply before the last to `each`, at most `limit` of them.
    async fn option(
        &mut self,
        option: u32,
        data: &[u8],
        limit: usize,
        mut each: impl FnMut(u32, &[u8]) -> Result<(), ClientError>,
    ) -> Result<Final, ClientError> {
        self.send_option(option, data).await?;
        for _ in 0..=limit {
            let header = self.frames.read_array().await?.ok_or(ClientError::Closed)?;
            let header = OptionReplyHeader::decode(&header)?;
            if header.option != option {
                return Err(ClientError::Protocol(format!(
                    "option {option} was answered with a reply to option {}",
                    header.option
                )));
            }
            if header.length > MAX_REPLY_BYTES {
                return Err(ClientError::Protocol(format!(
                    "a reply of {} bytes is too long",
                    header.length
                )));
            }
            let data: Bytes = self.frames.read_payload(header.length as usize).await?;
            match header.kind {
                rep::ACK if data.is_empty() => return Ok(Final::Accepted),
                rep::ACK => return Err(ClientError::Protocol("an acknowledgement carried data".into())),
                kind if kind & rep::ERROR_BIT != 0 => {
                    let message = text("the message of a refusal", &data)?.to_owned();
                    return Ok(Final::Refused { kind, message });
                }
                kind => each(kind, &data)?,
            }
        }
        Err(ClientError::Protocol(format!(
            "option {option} has more than {limit} replies"
        )))
    }
}

fn unexpected(kind: u32) -> ClientError {
    ClientError::Protocol(format!("reply type {kind} does not belong to this option"))
}

fn checked_flags(flags: u16) -> Result<u16, ClientError> {
    if flags & transmission_flag::HAS_FLAGS == 0 {
        return Err(ClientError::Protocol(
            "the transmission flags lack their mark".into(),
        ));
    }
    Ok(flags)
}

fn check_name(name: &str) -> Result<(), ClientError> {
    text("the export name", name.as_bytes())
        .map(drop)
        .map_err(|malformed| ClientError::Unsupported(malformed.to_string()))
}

async fn within<T>(
    config: &ClientConfig,
    step: impl Future<Output = Result<T, ClientError>>,
) -> Result<T, ClientError> {
    let limit = config.handshake_timeout;
    timeout(limit, step)
        .await
        .unwrap_or(Err(ClientError::Timeout(limit)))
}
