//! The answer to a notify, as librados hands it over: untrusted bytes.
//!
//! Form: u32 count of acks, each u64 client, u64 cookie, u32 length, bytes; u32 count of watchers that were late, each u64
//! client, u64 cookie. All little endian.

use bytes::{Buf, Bytes};
use ferry_store::{NotifyReply, WatchCookie};

/// Reads an answer; `None` if it is cut short.
pub(crate) fn decode(mut bytes: Bytes) -> Option<NotifyReply> {
    let mut reply = NotifyReply::default();
    if bytes.is_empty() {
        return Some(reply);
    }
    for _ in 0..bytes.try_get_u32_le().ok()? {
        let gid = bytes.try_get_u64_le().ok()?;
        let cookie = WatchCookie(bytes.try_get_u64_le().ok()?);
        let length = usize::try_from(bytes.try_get_u32_le().ok()?).ok()?;
        if bytes.len() < length {
            return None;
        }
        reply.acks.push((gid, cookie, bytes.split_to(length)));
    }
    for _ in 0..bytes.try_get_u32_le().ok()? {
        let gid = bytes.try_get_u64_le().ok()?;
        reply
            .timeouts
            .push((gid, WatchCookie(bytes.try_get_u64_le().ok()?)));
    }
    Some(reply)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two clients that answered "ACK", as a Pacific cluster sent it.
    const TWO_ACKS: &[u8] = b"\x02\0\0\0\x33\x11\0\0\0\0\0\0\xd0\xa0\x73\x31\0\0\0\0\x03\0\0\0ACK\
        \x33\x11\0\0\0\0\0\0\xe0\xe8\x73\x31\0\0\0\0\x03\0\0\0ACK\0\0\0\0";

    #[test]
    fn a_captured_answer_is_read() {
        let reply = decode(Bytes::from_static(TWO_ACKS)).unwrap();
        let ack = |cookie| (0x1133, WatchCookie(cookie), Bytes::from("ACK"));
        assert_eq!(reply.acks, [ack(0x3173_a0d0), ack(0x3173_e8e0)]);
        assert_eq!(reply.timeouts, []);
    }

    #[test]
    fn an_answer_that_is_cut_or_lies_about_its_length_is_refused() {
        for length in 1..TWO_ACKS.len() {
            assert_eq!(decode(Bytes::from_static(&TWO_ACKS[..length])), None, "{length}");
        }
        assert_eq!(decode(Bytes::from_static(&[0xff; 40])), None);
        assert_eq!(decode(Bytes::new()), Some(NotifyReply::default()));
    }
}
