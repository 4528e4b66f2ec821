//! Patterns as OpenCode matches them: `*` is any text, `?` one character, and ` *` at the end may also
//! be nothing, so that `ls *` is `ls` too. Backslashes count as slashes on both sides.
//!
//! Source: `Wildcard.match` in OpenCode 1.18.33, a regular expression without JavaScript's `u` flag; so
//! a character is a unit of UTF-16 here as well.

/// Whether `pattern` matches all of `text`. Time is at most the product of the lengths.
pub(crate) fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (units(pattern), units(text));
    let tail: Vec<u16> = " *".encode_utf16().collect();
    glob(&pattern, &text)
        || pattern
            .strip_suffix(tail.as_slice())
            .is_some_and(|head| glob(head, &text))
}

fn units(text: &str) -> Vec<u16> {
    text.replace('\\', "/").encode_utf16().collect()
}

/// Greedy, going back to the last `*` only: a later one makes what an earlier one took irrelevant.
fn glob(pattern: &[u16], text: &[u16]) -> bool {
    const STAR: u16 = b'*' as u16;
    const ONE: u16 = b'?' as u16;
    let (mut p, mut t) = (0, 0);
    let mut back: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(&STAR) => {
                back = Some((p + 1, t));
                p += 1;
            }
            Some(unit) if *unit == ONE || *unit == text[t] => {
                p += 1;
                t += 1;
            }
            _ => match back {
                Some((after, from)) => {
                    back = Some((after, from + 1));
                    (p, t) = (after, from + 1);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|unit| *unit == STAR)
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn patterns_match_as_opencode_does() {
        for (pattern, text, yes) in [
            ("*", "", true),
            ("*", "bash", true),
            ("bash", "bash", true),
            ("bash", "bash2", false),
            ("web*", "webfetch", true),
            ("*fetch", "webfetch", true),
            ("a*b*c", "aXbYc", true),
            ("a*b*c", "acb", false),
            ("a*a", "a", false),
            ("", "x", false),
            ("", "", true),
            ("ls *", "ls", true),
            ("ls *", "ls -la", true),
            ("ls *", "lsof", false),
            ("ls*", "lsof", true),
            (" *", "", true),
            ("git push *", "git push", true),
            ("git push *", "git pushx", false),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("?", "é", true),
            ("?", "👩", false),
            ("??", "👩", true),
            ("src\\*", "src/a.rs", true),
            ("*.env", "a/b/.env", true),
            ("a.c", "abc", false),
            ("[a](b)+{c}^$|", "[a](b)+{c}^$|", true),
            ("a*\n*b", "a x\ny b", true),
        ] {
            assert_eq!(matches(pattern, text), yes, "{pattern:?} {text:?}");
        }
    }

    #[test]
    fn hostile_patterns_take_no_exponential_time() {
        let pattern = "*a".repeat(200);
        let text = "a".repeat(199) + &"b".repeat(20_000);
        let began = std::time::Instant::now();
        assert!(!matches(&pattern, &text));
        assert!(began.elapsed() < std::time::Duration::from_secs(5));
    }
}
