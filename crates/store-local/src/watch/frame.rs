//! Frames on a client's socket, and their bounds.
//!
//! A request is `magic u32, length u32`, then as many bytes: `kind u8`, and for a notify `notify_id u64, notifier u64,
//! pool i64`, namespace, name and payload each as `length u32` and bytes. An answer is `cookie u64, length u32` and bytes;
//! the length [`REFUSED`] says that the watch takes no more. Numbers are little-endian. The end of the connection ends
//! the answers.

use std::io;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt};

use super::registry::Target;

const MAGIC: u32 = u32::from_le_bytes(*b"FNT1");
/// Longest payload of a notify or an answer.
pub(crate) const PAYLOAD_BYTES_MAX: usize = 1 << 20;
/// Longest request.
const REQUEST_BYTES_MAX: usize = PAYLOAD_BYTES_MAX + (16 << 10);
/// Length of the answer of a watch whose queue is full.
const REFUSED: u32 = u32::MAX;
const KIND_NOTIFY: u8 = 1;
const KIND_CHECK: u8 = 2;

/// A notify.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) notify_id: u64,
    pub(crate) notifier_gid: u64,
    pub(crate) target: Target,
    pub(crate) payload: Bytes,
}

/// What may come in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Incoming {
    /// A notify.
    Notify(Request),
    /// A hint to look whether this client is fenced.
    Check,
}

/// Bytes of a request.
pub(crate) fn encode(incoming: &Incoming) -> Vec<u8> {
    let mut body = Vec::new();
    match incoming {
        Incoming::Check => body.push(KIND_CHECK),
        Incoming::Notify(request) => {
            body.push(KIND_NOTIFY);
            body.extend_from_slice(&request.notify_id.to_le_bytes());
            body.extend_from_slice(&request.notifier_gid.to_le_bytes());
            body.extend_from_slice(&request.target.pool.to_le_bytes());
            for part in [
                request.target.namespace.as_bytes(),
                request.target.name.as_bytes(),
                &request.payload,
            ] {
                body.extend_from_slice(&(part.len() as u32).to_le_bytes());
                body.extend_from_slice(part);
            }
        }
    }
    let mut bytes = MAGIC.to_le_bytes().to_vec();
    bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&body);
    bytes
}

fn damaged() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "a damaged frame on a watch socket")
}

/// Reads one request.
pub(crate) async fn read_request(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Incoming> {
    let magic = stream.read_u32_le().await?;
    let length = stream.read_u32_le().await? as usize;
    if magic != MAGIC || length > REQUEST_BYTES_MAX {
        return Err(damaged());
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    decode(&body).ok_or_else(damaged)
}

fn decode(body: &[u8]) -> Option<Incoming> {
    let (kind, mut rest) = body.split_first()?;
    if *kind == KIND_CHECK {
        return Some(Incoming::Check);
    }
    if *kind != KIND_NOTIFY {
        return None;
    }
    let mut number = || {
        let (bytes, after) = rest.split_first_chunk::<8>()?;
        rest = after;
        Some(u64::from_le_bytes(*bytes))
    };
    let (notify_id, notifier_gid, pool) = (number()?, number()?, number()? as i64);
    let mut part = || {
        let (length, after) = rest.split_first_chunk::<4>()?;
        let (bytes, after) = after.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        rest = after;
        Some(bytes)
    };
    let namespace = std::str::from_utf8(part()?).ok()?.to_owned();
    let name = std::str::from_utf8(part()?).ok()?.to_owned();
    let payload = Bytes::copy_from_slice(part()?);
    Some(Incoming::Notify(Request {
        notify_id,
        notifier_gid,
        target: Target {
            pool,
            namespace,
            name,
        },
        payload,
    }))
}

/// Bytes of an answer, `None` of one who takes no more; an answer that is too long is sent as empty.
pub(crate) fn encode_answer(cookie: u64, answer: Option<&[u8]>) -> Vec<u8> {
    let mut frame = cookie.to_le_bytes().to_vec();
    match answer {
        None => frame.extend_from_slice(&REFUSED.to_le_bytes()),
        Some(bytes) => {
            let bytes = if bytes.len() > PAYLOAD_BYTES_MAX {
                &[]
            } else {
                bytes
            };
            frame.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
            frame.extend_from_slice(bytes);
        }
    }
    frame
}

/// Reads one answer.
pub(crate) async fn read_answer(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<(u64, Option<Bytes>)> {
    let cookie = stream.read_u64_le().await?;
    let length = stream.read_u32_le().await?;
    if length == REFUSED {
        return Ok((cookie, None));
    }
    if length as usize > PAYLOAD_BYTES_MAX {
        return Err(damaged());
    }
    let mut bytes = vec![0; length as usize];
    stream.read_exact(&mut bytes).await?;
    Ok((cookie, Some(bytes.into())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn requests_come_back_and_damaged_ones_are_refused() {
        let request = Incoming::Notify(Request {
            notify_id: 7,
            notifier_gid: 4100,
            target: Target {
                pool: 3,
                namespace: "ns".into(),
                name: "object".into(),
            },
            payload: Bytes::from_static(b"hello"),
        });
        let bytes = encode(&request);
        assert_eq!(read_request(&mut &bytes[..]).await.unwrap(), request);
        for cut in 0..bytes.len() {
            assert!(read_request(&mut &bytes[..cut]).await.is_err(), "cut at {cut}");
        }
        let mut huge = bytes.clone();
        huge[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(read_request(&mut &huge[..]).await.is_err());
        let mut long_part = bytes;
        long_part[33..37].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(read_request(&mut &long_part[..]).await.is_err());
    }
}
