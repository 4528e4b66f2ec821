//! What is allowed: a list of hosts and ports.

use contract::pod::{Egress, EgressMode, EgressRule};
use std::net::IpAddr;

/// Ports of a rule that names none.
const DEFAULT_PORTS: [u16; 1] = [443];

/// Where somebody wants to go.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Destination {
    /// A name in lower case without a dot at its end, or an address as it is written usually.
    pub host: String,
    pub port: u16,
}

impl Destination {
    /// `host:port` as in a CONNECT request or an authority. `None` for what is no host or no port.
    pub(super) fn parse(authority: &str, default_port: Option<u16>) -> Option<Self> {
        let (host, port) = match authority.strip_prefix('[') {
            Some(rest) => {
                let (host, port) = rest.split_once(']')?;
                let address: IpAddr = host.parse().ok()?;
                address.is_ipv6().then_some(())?;
                (address.to_string(), port.strip_prefix(':'))
            }
            None => match authority.split_once(':') {
                Some((host, port)) => (name(host)?, Some(port)),
                None => (name(authority)?, None),
            },
        };
        let port = match port {
            // `+80` and ` 80` are numbers to the standard library.
            Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => digits.parse().ok()?,
            Some(_) => return None,
            None => default_port?,
        };
        (port != 0).then_some(Self { host, port })
    }

    pub(super) fn address(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }
}

/// A DNS name or an IPv4 address in its usual form. Other spellings of addresses (`0x7f.1`,
/// `2130706433`, `127.1`) are neither: resolvers read them as addresses.
fn name(text: &str) -> Option<String> {
    let text = text.strip_suffix('.').unwrap_or(text);
    if let Ok(address) = text.parse::<std::net::Ipv4Addr>() {
        return Some(address.to_string());
    }
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let last = text.rsplit('.').next()?;
    let numeric =
        last.bytes().all(|b| b.is_ascii_digit()) || last.to_ascii_lowercase().starts_with("0x");
    (text.len() <= 253 && text.split('.').all(label) && !numeric).then(|| text.to_ascii_lowercase())
}

/// What came of a wish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Go, if no address is worse than this.
    Go { private: bool },
    /// The list has no such host and port.
    NotListed,
    /// The agent is to connect directly.
    Direct,
}

/// What the list says.
pub(super) fn verdict(egress: &Egress, wanted: &Destination) -> Verdict {
    if egress.mode == EgressMode::Open {
        return Verdict::Direct;
    }
    // The most generous of the rules that fit.
    egress
        .allow
        .iter()
        .filter(|rule| fits(rule, wanted))
        .map(|rule| rule.private)
        .reduce(|a, b| a || b)
        .map_or(Verdict::NotListed, |private| Verdict::Go { private })
}

fn fits(rule: &EgressRule, wanted: &Destination) -> bool {
    let ports = if rule.ports.is_empty() {
        &DEFAULT_PORTS[..]
    } else {
        &rule.ports[..]
    };
    if !ports.contains(&wanted.port) {
        return false;
    }
    match rule.host.strip_prefix("*.") {
        // An address is never below a name.
        Some(suffix) => {
            wanted.address().is_none()
                && wanted
                    .host
                    .strip_suffix(&suffix.to_ascii_lowercase())
                    .is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
        }
        None => match (rule.host.parse::<IpAddr>(), wanted.address()) {
            (Ok(rule), Some(wanted)) => rule == wanted,
            (Err(_), None) => rule.host.eq_ignore_ascii_case(&wanted.host),
            _ => false,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to(text: &str) -> Destination {
        Destination::parse(text, None).unwrap_or_else(|| panic!("{text} is no destination"))
    }

    fn rule(host: &str, ports: &[u16], private: bool) -> EgressRule {
        EgressRule {
            host: host.into(),
            ports: ports.to_vec(),
            private,
        }
    }

    #[test]
    fn destinations_are_read_strictly() {
        assert_eq!(to("Example.COM.:443").host, "example.com");
        assert_eq!(to("[2606:4700:0:0::1111]:443").host, "2606:4700::1111");
        assert_eq!(to("1.2.3.4:80").address(), "1.2.3.4".parse().ok());
        assert_eq!(
            Destination::parse("a.test", Some(80)),
            Some(to("a.test:80"))
        );
        for bad in [
            "",
            ":443",
            "a.test",
            "a.test:",
            "a.test:0",
            "a.test:65536",
            "a.test:+80",
            "a.test: 80",
            "a.test:80:80",
            "user@a.test:443",
            "a.test/x:443",
            "a..test:443",
            "-a.test:443",
            "a b:443",
            "2130706433:443",
            "0x7f000001:443",
            "0x7f.1:443",
            "127.1:443",
            "1.2.3.4.5:443",
            "1.2.3.04:443",
            "[::1:443",
            "[1.2.3.4]:443",
            "[::1]443",
            "::1:443",
            "a.test\r\n:443",
            "ä.test:443",
            "%31.test:443",
        ] {
            assert_eq!(Destination::parse(bad, None), None, "{bad:?}");
        }
        assert!(Destination::parse(&format!("{}a:1", "a.".repeat(127)), None).is_none());
    }

    #[test]
    fn only_what_is_listed_may_pass() {
        let egress = Egress {
            mode: EgressMode::ProxyOnly,
            allow: vec![
                rule("pypi.test", &[], false),
                rule("*.Hosted.test", &[443, 8443], false),
                rule("mirror.corp.test", &[80], true),
                rule("192.0.2.7", &[443], false),
            ],
        };
        let go = |private| Verdict::Go { private };
        for (wanted, expected) in [
            ("pypi.test:443", go(false)),
            ("PYPI.test.:443", go(false)),
            ("pypi.test:80", Verdict::NotListed),
            ("x.pypi.test:443", Verdict::NotListed),
            ("pypi.test.evil.test:443", Verdict::NotListed),
            ("files.hosted.test:443", go(false)),
            ("a.b.hosted.test:8443", go(false)),
            ("hosted.test:443", Verdict::NotListed),
            ("evilhosted.test:443", Verdict::NotListed),
            ("mirror.corp.test:80", go(true)),
            ("192.0.2.7:443", go(false)),
            ("192.0.2.8:443", Verdict::NotListed),
            ("[::ffff:192.0.2.7]:443", Verdict::NotListed),
        ] {
            assert_eq!(verdict(&egress, &to(wanted)), expected, "{wanted}");
        }
        let open = Egress {
            mode: EgressMode::Open,
            ..egress
        };
        assert_eq!(verdict(&open, &to("pypi.test:443")), Verdict::Direct);
    }
}
