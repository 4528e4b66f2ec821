//! What was refused, so that people can decide whether it should be allowed.

use super::policy::Destination;
use contract::egress::{EgressReport, RefusedDestination};
use jiff::Timestamp;
use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::{Mutex, PoisonError},
};

/// Destinations that are remembered; the agent decides how many it tries.
const REMEMBERED: usize = 256;

/// Destinations that the list lacks, with how often they were asked for.
#[derive(Debug, Default)]
pub(crate) struct Refused(Mutex<Memory>);

#[derive(Debug, Default)]
struct Memory {
    seen: BTreeMap<Destination, (u64, Timestamp)>,
    /// Asked for when there was no room for more.
    forgotten: u64,
}

impl Refused {
    pub(super) fn note(&self, wanted: &Destination, now: Timestamp) {
        let mut memory = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((count, last)) = memory.seen.get_mut(wanted) {
            *count += 1;
            *last = now;
        } else if memory.seen.len() < REMEMBERED {
            memory.seen.insert(wanted.clone(), (1, now));
        } else {
            memory.forgotten += 1;
        }
    }

    /// What was refused, and the piece of a spec that would allow it.
    pub(crate) fn report(&self) -> EgressReport {
        let memory = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let refused = memory
            .seen
            .iter()
            .map(|(wanted, (count, last))| RefusedDestination {
                host: wanted.host.clone(),
                port: wanted.port,
                count: *count,
                last: *last,
            })
            .collect();
        EgressReport {
            refused,
            forgotten: memory.forgotten,
            fragment: fragment(memory.seen.keys()),
        }
    }
}

/// YAML for `spec`. Hosts are names or addresses of a checked alphabet: nothing to escape but what
/// quotes are for.
fn fragment<'a>(wanted: impl Iterator<Item = &'a Destination>) -> String {
    let mut hosts: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for wanted in wanted {
        hosts
            .entry(&wanted.host)
            .or_default()
            .push(wanted.port.to_string());
    }
    if hosts.is_empty() {
        return String::new();
    }
    let mut text = "network:\n  egress:\n    mode: proxy-only\n    allow:\n".to_owned();
    for (host, ports) in hosts {
        // A String takes everything.
        let _ = writeln!(
            text,
            "      - {{host: \"{host}\", ports: [{}]}}",
            ports.join(", ")
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_refused_is_told_once_each_and_bounded() {
        let refused = Refused::default();
        assert_eq!(refused.report().fragment, "");
        let now = Timestamp::UNIX_EPOCH;
        let to = |host: &str, port| Destination {
            host: host.into(),
            port,
        };
        for wanted in [
            to("b.test", 443),
            to("a.test", 80),
            to("b.test", 22),
            to("b.test", 443),
        ] {
            refused.note(&wanted, now);
        }
        let report = refused.report();
        let told: Vec<_> = report
            .refused
            .iter()
            .map(|r| (r.host.as_str(), r.port, r.count))
            .collect();
        assert_eq!(
            told,
            [("a.test", 80, 1), ("b.test", 22, 1), ("b.test", 443, 2)]
        );
        assert_eq!(
            report.fragment,
            "network:\n  egress:\n    mode: proxy-only\n    allow:\n      - {host: \"a.test\", ports: [80]}\n      \
             - {host: \"b.test\", ports: [22, 443]}\n"
        );
        for n in 0..1000 {
            refused.note(&to(&format!("n{n}.test"), 443), now);
        }
        let report = refused.report();
        assert_eq!(report.refused.len(), REMEMBERED);
        assert_eq!(report.forgotten, 1000 - (REMEMBERED as u64 - 3));
    }
}
