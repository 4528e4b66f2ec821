//! The search and what it reports.

use tests::Namespace;

const SEARCH: &str = include_str!("search.pl");

/// A key and the forms in which it may be hidden.
pub(crate) struct Needles {
    key: String,
}

impl Needles {
    /// A new one.
    pub(crate) fn new() -> Self {
        Self {
            key: format!("sk-canary-{}", uuid::Uuid::new_v4().simple()),
        }
    }

    /// The key itself.
    pub(crate) fn key(&self) -> &str {
        &self.key
    }

    /// The key, its hex form, backwards, and base64 at each of its three alignments (without the ends that depend on what stands beside it).
    pub(crate) fn forms(&self) -> Vec<String> {
        let bytes = self.key.as_bytes();
        let hex = bytes.iter().map(|b| format!("{b:02x}")).collect();
        let mut forms = vec![self.key.clone(), hex, self.key.chars().rev().collect()];
        for skip in 0..3 {
            let whole = (bytes.len() - skip) / 3 * 3;
            forms.push(base64(&bytes[skip..skip + whole]));
        }
        // UTF-16, as JavaScript's strings may be.
        forms.push(self.key.chars().flat_map(|c| [c, '\0']).collect());
        forms
    }

    /// Whether a text holds one.
    pub(crate) fn in_text(&self, text: &str) -> bool {
        self.forms().iter().any(|form| text.contains(form.as_str()))
    }

    /// For the search: each form cut in two, as Perl writes it.
    fn halves(&self) -> String {
        let quoted = |text: &str| {
            let hex: String = text.bytes().map(|b| format!("\\x{b:02x}")).collect();
            format!("\"{hex}\"")
        };
        let pairs: Vec<_> = self
            .forms()
            .iter()
            .map(|form| {
                let (head, tail) = form.split_at(form.len() / 2);
                format!("[{}, {}]", quoted(head), quoted(tail))
            })
            .collect();
        format!("our @halves = ({});\n", pairs.join(", "))
    }
}

/// Base64 of as many bytes as fill whole groups of three.
pub(crate) fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in bytes.chunks_exact(3) {
        let n = u32::from(three[0]) << 16 | u32::from(three[1]) << 8 | u32::from(three[2]);
        for shift in [18, 12, 6, 0] {
            text.push(LETTERS[(n >> shift & 63) as usize] as char);
        }
    }
    text
}

/// What a search found and where it looked.
#[derive(Debug)]
pub(super) struct Report {
    /// Places that hold the key.
    pub(super) found: Vec<String>,
    /// What was looked at.
    looked: Vec<String>,
}

impl Report {
    /// Searches from inside a container. The script goes in by standard input: it is in no argument and no file.
    pub(super) async fn of(ns: &Namespace, pod: &str, container: &str, needles: &Needles) -> Self {
        let script = format!("{}{SEARCH}", needles.halves());
        assert!(
            !needles.in_text(&script),
            "the search must not hold what it looks for"
        );
        let said = ns
            .try_kubectl(
                &["exec", "-i", pod, "-c", container, "--", "perl", "-"],
                &script,
            )
            .await;
        assert!(
            said.out.ends_with("looked at all\n"),
            "the search in {container} did not end: {} {}",
            said.out,
            said.err
        );
        let (looked, found): (Vec<_>, Vec<_>) = said
            .out
            .lines()
            .map(str::to_owned)
            .partition(|line| line.starts_with("looked at "));
        Self { found, looked }
    }

    /// In one line.
    pub(super) fn looked_at(&self) -> String {
        self.looked.join("; ").replace("looked at ", "")
    }

    /// Whether a find begins so.
    pub(super) fn has(&self, begins: &str) -> bool {
        self.found.iter().any(|find| find.starts_with(begins))
    }

    /// Insists that the search saw files, and read the memory of this program: else finding nothing would mean nothing.
    pub(super) fn looked_well(&self, program: &str) {
        let figure = |what: &str| -> u64 {
            let line = self
                .looked
                .iter()
                .find_map(|line| line.strip_prefix(&format!("looked at {what} ")));
            line.and_then(|n| n.parse().ok()).unwrap_or(0)
        };
        assert!(
            figure("files") > 300 && figure("bytes") > 50_000_000,
            "{:?}",
            self.looked
        );
        let memory = self
            .looked
            .iter()
            .filter(|line| line.contains(&format!("/{program} memory ")))
            .filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok());
        assert!(
            memory.max().unwrap_or(0) > 50_000_000,
            "the memory of {program} was not read: {:?}",
            self.looked
        );
    }
}
