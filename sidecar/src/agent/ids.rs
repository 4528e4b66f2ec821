//! Ids of OpenCode's making, made by us: a session or prompt whose id we chose can be asked for
//! again after a lost answer, without a second one coming into being.
//!
//! The format is OpenCode's own: prefix, 12 hex digits of `ms * 4096 + counter` cut to 48 bits, 14
//! characters of base 62. OpenCode 1.18 orders messages by the time at which it stored them and only
//! then by id, so a clock that differs from its own does no harm.

use std::sync::atomic::{AtomicU64, Ordering};

const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
/// Counters per millisecond, as in OpenCode.
const PER_MS: u64 = 4096;
/// What fits in 12 hex digits. It wraps every 2.2 years (next in October 2028), as OpenCode's does.
const MASK: u64 = 0xffff_ffff_ffff;

static LAST: AtomicU64 = AtomicU64::new(0);

/// A new session's id, random.
pub(crate) fn session_id() -> String {
    let mut bytes = [0; 6];
    fill(&mut bytes);
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("ses_{hex}{}", random())
}

/// A new message's id: greater than every one before it from this process, even if the clock stands
/// still or goes back. `now_ms` is the time since 1970 in milliseconds.
pub(crate) fn message_id(now_ms: u64) -> String {
    next_message_id(&LAST, now_ms)
}

fn next_message_id(last: &AtomicU64, now_ms: u64) -> String {
    let wanted = now_ms.saturating_mul(PER_MS);
    let next = |last: u64| wanted.max(last.saturating_add(1));
    let stamp = match last.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| {
        Some(next(last))
    }) {
        Ok(last) | Err(last) => next(last),
    };
    format!("msg_{:012x}{}", stamp & MASK, random())
}

fn random() -> String {
    let mut bytes = [0; 14];
    fill(&mut bytes);
    bytes
        .iter()
        .map(|byte| char::from(BASE62[usize::from(*byte) % BASE62.len()]))
        .collect()
}

fn fill(bytes: &mut [u8]) {
    getrandom::fill(bytes).expect("the kernel gives random bytes");
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn well_formed(id: &str, prefix: &str) -> bool {
        let rest = id.strip_prefix(prefix).unwrap();
        rest.len() == 26
            && rest[..12]
                .chars()
                .all(|c| c.is_ascii_digit() || ('a'..='f').contains(&c))
            && rest[12..].chars().all(|c| c.is_ascii_alphanumeric())
    }

    #[test]
    fn sessions_are_well_formed_and_differ() {
        let ids: HashSet<String> = (0..1000).map(|_| session_id()).collect();
        assert_eq!(ids.len(), 1000);
        assert!(ids.iter().all(|id| well_formed(id, "ses_")));
    }

    #[test]
    fn a_message_has_the_time_in_it_as_opencode_writes_it() {
        // Captured from OpenCode: created at this millisecond, counter 1.
        let id = next_message_id(&AtomicU64::new(1_795_226_000_667 * 4096), 1_795_226_000_667);
        assert!(id.starts_with("msg_1fbcedd1b001"), "{id}");
        assert!(well_formed(&id, "msg_"));
    }

    #[test]
    fn messages_ascend_when_the_clock_stands_jumps_or_goes_back() {
        let last = AtomicU64::new(0);
        let start = 1_795_226_000_667;
        let clock = (0..5000)
            .map(|_| start)
            .chain([start - 3_600_000, start - 1, 0])
            .chain([start + 1, start + 2, start + 3_600_000, start]);
        let ids: Vec<String> = clock.map(|now| next_message_id(&last, now)).collect();
        assert!(ids.windows(2).all(|pair| pair[0][..16] < pair[1][..16]));
    }

    #[test]
    fn messages_of_many_threads_never_share_a_stamp() {
        let last = AtomicU64::new(0);
        let ids: Vec<String> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        (0..500)
                            .map(|_| next_message_id(&last, 7))
                            .collect::<Vec<_>>()
                    })
                })
                .collect();
            threads
                .into_iter()
                .flat_map(|thread| thread.join().unwrap())
                .collect()
        });
        let stamps: HashSet<&str> = ids.iter().map(|id| &id[..16]).collect();
        assert_eq!(stamps.len(), 4000);
    }
}
