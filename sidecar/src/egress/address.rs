//! Which addresses a name may lead to.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Where an address leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Reach {
    /// The Internet.
    Public,
    /// A network of one's own: RFC 1918, RFC 6598, RFC 4193, benchmarks (RFC 2544).
    Private,
    /// This very machine, the link (and with it the metadata services of clouds), nowhere, or everybody.
    Never,
}

/// Where it leads. Addresses that carry another one inside (IPv4-mapped, 6to4, NAT64) lead where that
/// one does.
pub(super) fn reach(address: IpAddr) -> Reach {
    match address {
        IpAddr::V4(v4) => reach_v4(v4),
        IpAddr::V6(v6) => match inner(v6) {
            Some(v4) => reach_v4(v4),
            None => reach_v6(v6),
        },
    }
}

fn reach_v4(v4: Ipv4Addr) -> Reach {
    let [a, b, c, _] = v4.octets();
    match (a, b, c) {
        (0 | 127, ..) | (169, 254, _) | (224.., ..) => Reach::Never,
        (10, ..)
        | (172, 16..=31, _)
        | (192, 168, _)
        | (100, 64..=127, _)
        | (192, 0, 0)
        | (198, 18..=19, _) => Reach::Private,
        _ => Reach::Public,
    }
}

fn reach_v6(v6: Ipv6Addr) -> Reach {
    if v6.is_unspecified() || v6.is_loopback() || v6.is_multicast() || v6.is_unicast_link_local() {
        return Reach::Never;
    }
    let first = v6.segments()[0];
    // fec0::/10 was private once and is unroutable now.
    if v6.is_unique_local() || first & 0xffc0 == 0xfec0 {
        return Reach::Private;
    }
    Reach::Public
}

/// The IPv4 address that an IPv6 address stands for.
fn inner(v6: Ipv6Addr) -> Option<Ipv4Addr> {
    let s = v6.segments();
    let v4 = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        Ipv4Addr::new(a, b, c, d)
    };
    match s {
        // ::ffff:a.b.c.d, and the long dead ::a.b.c.d
        [0, 0, 0, 0, 0, 0xffff, high, low] => Some(v4(high, low)),
        [0, 0, 0, 0, 0, 0, high, low] if high != 0 => Some(v4(high, low)),
        // NAT64, RFC 6052
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => Some(v4(high, low)),
        // 6to4, RFC 3056
        [0x2002, high, low, ..] => Some(v4(high, low)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_address_leads_where_it_says_however_it_is_dressed() {
        for (text, expected) in [
            ("93.184.216.34", Reach::Public),
            ("2606:4700::1111", Reach::Public),
            ("::ffff:93.184.216.34", Reach::Public),
            ("10.1.2.3", Reach::Private),
            ("172.15.0.1", Reach::Public),
            ("172.16.0.1", Reach::Private),
            ("172.31.255.255", Reach::Private),
            ("172.32.0.1", Reach::Public),
            ("192.168.0.1", Reach::Private),
            ("100.64.0.1", Reach::Private),
            ("100.128.0.1", Reach::Public),
            ("198.18.0.1", Reach::Private),
            ("fd00:ec2::254", Reach::Private),
            ("fec0::1", Reach::Private),
            ("::ffff:10.0.0.1", Reach::Private),
            ("64:ff9b::10.0.0.1", Reach::Private),
            ("2002:0a00:0001::", Reach::Private),
            ("127.0.0.1", Reach::Never),
            ("127.9.9.9", Reach::Never),
            ("0.0.0.0", Reach::Never),
            ("0.1.2.3", Reach::Never),
            ("169.254.169.254", Reach::Never),
            ("224.0.0.1", Reach::Never),
            ("255.255.255.255", Reach::Never),
            ("240.0.0.1", Reach::Never),
            ("::", Reach::Never),
            ("::1", Reach::Never),
            ("::ffff:127.0.0.1", Reach::Never),
            ("::127.0.0.1", Reach::Never),
            ("64:ff9b::169.254.169.254", Reach::Never),
            ("2002:7f00:0001::", Reach::Never),
            ("fe80::1", Reach::Never),
            ("ff02::1", Reach::Never),
        ] {
            assert_eq!(reach(text.parse().unwrap()), expected, "{text}");
        }
    }
}
