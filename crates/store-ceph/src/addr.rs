//! Addresses of clients, as Ceph writes them.

use ferry_store::EntityAddr;

/// The first IPv4 address in `127.0.0.1:0/430048628` or `[v2:127.0.0.1:0/1,v1:127.0.0.1:0/1]`. IPv6 ones are not
/// understood: the encodings of locks that Ferry reads and writes hold IPv4 addresses only.
pub(crate) fn parse(text: &str) -> Option<EntityAddr> {
    let inside = text.trim_start_matches('[').trim_end_matches(']');
    inside.split(',').find_map(one)
}

fn one(text: &str) -> Option<EntityAddr> {
    let text = ["v1:", "v2:", "any:"]
        .iter()
        .find_map(|kind| text.strip_prefix(kind))
        .unwrap_or(text);
    let (place, nonce) = text.split_once('/')?;
    let (ip, port) = place.rsplit_once(':')?;
    let ip: std::net::Ipv4Addr = ip.parse().ok()?;
    Some(EntityAddr {
        ip: ip.octets(),
        port: port.parse().ok()?,
        nonce: nonce.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_in_every_form_ceph_writes() {
        let addr = EntityAddr {
            ip: [127, 0, 0, 1],
            port: 0,
            nonce: 430_048_628,
        };
        assert_eq!(parse("127.0.0.1:0/430048628"), Some(addr));
        assert_eq!(parse("v1:127.0.0.1:0/430048628"), Some(addr));
        assert_eq!(
            parse("[v2:127.0.0.1:0/430048628,v1:127.0.0.1:0/430048628]"),
            Some(addr)
        );
    }

    #[test]
    fn what_is_no_ipv4_address_is_refused() {
        for text in ["", "-", "[::1]:0/1", "127.0.0.1:0", "127.0.0.1:x/1", "v2:/"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
