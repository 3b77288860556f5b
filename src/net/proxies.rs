//! Owns which peers are believed when they say which client they forward for. Pure.

use std::net::{IpAddr, SocketAddr};

use http::HeaderMap;

/// The proxies whose `X-Forwarded-For` counts. None by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustedProxies(Vec<Network>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Network {
    address: IpAddr,
    /// How many of its leading bits count.
    bits: u32,
}

impl TrustedProxies {
    /// Reads addresses and networks, as `10.0.0.7, 192.0.2.0/24, 2001:db8::/32`.
    ///
    /// # Errors
    /// Names the first part that is neither, and why.
    pub fn parse(text: &str) -> Result<Self, String> {
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        parts.map(Network::parse).collect::<Result<_, _>>().map(Self)
    }

    fn trusts(&self, address: IpAddr) -> bool {
        self.0.iter().any(|network| network.holds(address))
    }

    /// The client: `peer`, or the one that a trusted peer forwards for. The header is read from its end, where the nearest
    /// proxy has written, up to the first address that is not trusted. What stands before that, anybody can invent.
    pub(super) fn client(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let mut client = peer;
        for value in headers.get_all("x-forwarded-for").iter().rev() {
            for part in value.to_str().unwrap_or_default().rsplit(',') {
                if !self.trusts(client) {
                    return client;
                }
                let Some(address) = forwarded(part.trim()) else { return client };
                client = address;
            }
        }
        client
    }
}

/// An address, with or without a port.
fn forwarded(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let address = bare.parse().ok().or_else(|| Some(text.parse::<SocketAddr>().ok()?.ip()));
    address.map(|address: IpAddr| address.to_canonical())
}

impl Network {
    fn parse(text: &str) -> Result<Self, String> {
        let (address, bits) =
            text.split_once('/').map_or((text, None), |(address, bits)| (address, Some(bits)));
        let address: IpAddr = address.parse().map_err(|_| format!("{text:?} is no address"))?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.map_or(Ok(most), str::parse).ok().filter(|bits| *bits <= most);
        Ok(Self { address, bits: bits.ok_or_else(|| format!("{text:?} is no network"))? })
    }

    fn holds(&self, address: IpAddr) -> bool {
        let differing = match (self.address, address) {
            (IpAddr::V4(ours), IpAddr::V4(other)) => (ours.to_bits() ^ other.to_bits()).leading_zeros(),
            (IpAddr::V6(ours), IpAddr::V6(other)) => (ours.to_bits() ^ other.to_bits()).leading_zeros(),
            _ => return false,
        };
        differing >= self.bits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(trusted: &str, peer: &str, forwarded: &[&str]) -> String {
        let mut headers = HeaderMap::new();
        for value in forwarded {
            headers.append("x-forwarded-for", value.parse().unwrap());
        }
        let trusted = TrustedProxies::parse(trusted).unwrap();
        trusted.client(peer.parse().unwrap(), &headers).to_string()
    }

    #[test]
    fn a_forwarded_address_counts_from_trusted_proxies_only() {
        let trusted = "10.0.0.0/8, 2001:db8::7";
        for (peer, forwarded, expected) in [
            ("192.0.2.1", &["203.0.113.9"][..], "192.0.2.1"),
            ("11.0.0.1", &["203.0.113.9"], "11.0.0.1"),
            ("10.1.2.3", &["203.0.113.9"], "203.0.113.9"),
            ("2001:db8::7", &["203.0.113.9:4711"], "203.0.113.9"),
            ("2001:db8::8", &["203.0.113.9"], "2001:db8::8"),
            ("10.1.2.3", &[], "10.1.2.3"),
            ("10.1.2.3", &["1.1.1.1, 203.0.113.9 , 10.9.9.9"], "203.0.113.9"),
            ("10.1.2.3", &["1.1.1.1, 203.0.113.9", "10.9.9.9"], "203.0.113.9"),
            ("10.1.2.3", &["10.7.7.7"], "10.7.7.7"),
            ("10.1.2.3", &["203.0.113.9, unknown"], "10.1.2.3"),
            ("10.1.2.3", &["[2001:db8::9]:443"], "2001:db8::9"),
            ("10.1.2.3", &["[2001:db8::9]"], "2001:db8::9"),
            ("10.1.2.3", &["::ffff:203.0.113.9"], "203.0.113.9"),
        ] {
            assert_eq!(client(trusted, peer, forwarded), expected, "{peer} {forwarded:?}");
        }
        assert_eq!(client("", "10.1.2.3", &["203.0.113.9"]), "10.1.2.3");
        assert_eq!(client("0.0.0.0/0", "192.0.2.1", &["203.0.113.9"]), "203.0.113.9");
    }

    #[test]
    fn what_is_no_network_is_named() {
        for wrong in ["proxy.example", "10.0.0.0/33", "10.0.0.0/", "::/129", "10.0.0.0/-1", "10.0.0"] {
            assert!(TrustedProxies::parse(wrong).unwrap_err().contains(wrong), "{wrong}");
        }
    }
}
