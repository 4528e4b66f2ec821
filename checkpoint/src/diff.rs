//! What differs between two checkpoints. What lies in a `.git` is not told: it is no work.

use crate::{
    error::Error,
    objects::{folder, join, pairs},
    oid::{Kind, Oid},
    pack_read::Packs,
    tree::{Node, What},
};
use bstr::ByteSlice as _;
use imara_diff::{Algorithm, Diff, InternedInput, sources::byte_lines};
use std::{ops::Range, time::Instant};

/// Largest file that is compared line by line, in bytes.
pub(crate) const TEXT_MAX: u64 = 1 << 20;
/// Bytes at a file's beginning that tell text from the rest, as in git.
const BINARY_PROBE: usize = 8000;
const CONTEXT: u32 = 3;

/// One file that differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) path: Vec<u8>,
    pub(crate) old: Option<Node>,
    pub(crate) new: Option<Node>,
}

/// Tells every file that differs, in order. A name that was a folder on one side is told as what
/// was added and removed.
pub(crate) fn changes(
    packs: &Packs,
    old: Option<Oid>,
    new: Option<Oid>,
    until: Instant,
    tell: &mut dyn FnMut(Change) -> Result<bool, Error>,
) -> Result<bool, Error> {
    walk(packs, b"", old, new, until, tell)
}

/// False: told to stop.
fn walk(
    packs: &Packs,
    path: &[u8],
    old: Option<Oid>,
    new: Option<Oid>,
    until: Instant,
    tell: &mut dyn FnMut(Change) -> Result<bool, Error>,
) -> Result<bool, Error> {
    if old == new {
        return Ok(true);
    }
    if Instant::now() > until {
        return Err(Error::TooSlow);
    }
    let read = |tree: Option<Oid>| tree.map_or(Ok(Vec::new()), |tree| folder(packs, &tree));
    for (old, new) in pairs(read(old)?, read(new)?) {
        let name = match (&old, &new) {
            (Some(node), _) | (None, Some(node)) => node.name.clone(),
            (None, None) => continue,
        };
        if name.eq_ignore_ascii_case(b".git") || old == new {
            continue;
        }
        let path = join(path, &name);
        let is_dir = |node: &Option<Node>| node.as_ref().is_some_and(|n| n.what == What::Dir);
        let dir =
            |node: &Option<Node>| node.as_ref().filter(|n| n.what == What::Dir).map(|n| n.oid);
        let file = |node: Option<Node>| node.filter(|n| n.what != What::Dir);
        let dirs = (dir(&old), dir(&new));
        let (was_dir, is_new_dir) = (is_dir(&old), is_dir(&new));
        let files = (file(old), file(new));
        // What is removed comes first, so that its name is free.
        if is_new_dir && files.0.is_some() {
            let removed = Change {
                path: path.clone(),
                old: files.0,
                new: None,
            };
            if !tell(removed)? || !walk(packs, &path, None, dirs.1, until, tell)? {
                return Ok(false);
            }
            continue;
        }
        if (was_dir || is_new_dir) && !walk(packs, &path, dirs.0, dirs.1, until, tell)? {
            return Ok(false);
        }
        if files.0.is_some() || files.1.is_some() {
            let change = Change {
                path,
                old: files.0,
                new: files.1,
            };
            if !tell(change)? {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

/// Content of one side; `None`: too large for lines.
pub(crate) fn content(packs: &Packs, node: Option<&Node>) -> Result<Option<Vec<u8>>, Error> {
    match node {
        None => Ok(Some(Vec::new())),
        Some(node) if packs.size(&node.oid, Kind::Blob)? > TEXT_MAX => Ok(None),
        Some(node) => packs.read(&node.oid, Kind::Blob, TEXT_MAX).map(Some),
    }
}

pub(crate) fn is_binary(content: &[u8]) -> bool {
    content[..content.len().min(BINARY_PROBE)].contains(&0)
}

/// Lines of a unified diff, without its header, and how many lines came and went.
pub(crate) fn unified(old: &[u8], new: &[u8]) -> (Vec<u8>, u64, u64) {
    let input = InternedInput::new(byte_lines(old), byte_lines(new));
    let mut diff = Diff::compute(Algorithm::Histogram, &input);
    diff.postprocess_lines(&input);
    let mut out = Vec::new();
    let hunks: Vec<_> = diff.hunks().collect();
    let mut at = 0;
    while at < hunks.len() {
        // Hunks whose contexts meet become one.
        let mut last = at;
        while last + 1 < hunks.len()
            && hunks[last + 1].before.start - hunks[last].before.end <= 2 * CONTEXT
        {
            last += 1;
        }
        let group = &hunks[at..=last];
        let before = around(
            &group[0].before,
            &group[group.len() - 1].before,
            input.before.len(),
        );
        let after = around(
            &group[0].after,
            &group[group.len() - 1].after,
            input.after.len(),
        );
        out.extend_from_slice(format!("@@ -{} +{} @@\n", place(&before), place(&after)).as_bytes());
        let line = |sign: u8, token: imara_diff::Token, out: &mut Vec<u8>| {
            let text: &[u8] = input.interner[token];
            out.push(sign);
            out.extend_from_slice(text);
            if !text.ends_with(b"\n") {
                out.extend_from_slice(b"\n\\ No newline at end of file\n");
            }
        };
        let mut next = before.start;
        for hunk in group {
            for token in &input.before[index(&(next..hunk.before.start))] {
                line(b' ', *token, &mut out);
            }
            for token in &input.before[index(&hunk.before)] {
                line(b'-', *token, &mut out);
            }
            for token in &input.after[index(&hunk.after)] {
                line(b'+', *token, &mut out);
            }
            next = hunk.before.end;
        }
        for token in &input.before[index(&(next..before.end))] {
            line(b' ', *token, &mut out);
        }
        at = last + 1;
    }
    (
        out,
        u64::from(diff.count_additions()),
        u64::from(diff.count_removals()),
    )
}

fn index(range: &Range<u32>) -> Range<usize> {
    range.start as usize..range.end as usize
}

fn around(first: &Range<u32>, last: &Range<u32>, lines: usize) -> Range<u32> {
    let lines = u32::try_from(lines).unwrap_or(u32::MAX);
    first.start.saturating_sub(CONTEXT)..(last.end + CONTEXT).min(lines)
}

fn place(range: &Range<u32>) -> String {
    let length = range.end - range.start;
    // An empty range is named by the line before it.
    let start = if length == 0 {
        range.start
    } else {
        range.start + 1
    };
    if length == 1 {
        start.to_string()
    } else {
        format!("{start},{length}")
    }
}

/// A path as git writes it: quoted where it has bytes that a line cannot show.
pub(crate) fn quoted(prefix: &str, path: &[u8]) -> Vec<u8> {
    let plain = |byte: &u8| (0x20..0x7f).contains(byte) && *byte != b'"' && *byte != b'\\';
    let mut out = Vec::with_capacity(path.len() + 8);
    if path.iter().all(plain) {
        out.extend_from_slice(prefix.as_bytes());
        out.extend_from_slice(path);
        return out;
    }
    out.push(b'"');
    out.extend_from_slice(prefix.as_bytes());
    for byte in path {
        match byte {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', *byte]),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\t' => out.extend_from_slice(b"\\t"),
            byte if plain(byte) => out.push(*byte),
            byte => out.extend_from_slice(format!("\\{byte:03o}").as_bytes()),
        }
    }
    out.push(b'"');
    out
}

/// A path for people and JSON.
pub(crate) fn shown(path: &[u8]) -> String {
    path.to_str_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(old: &str, new: &str) -> String {
        String::from_utf8(unified(old.as_bytes(), new.as_bytes()).0).unwrap()
    }

    #[test]
    fn hunks_are_those_of_diff() {
        assert_eq!(text("a\n", "a\n"), "");
        assert_eq!(text("", "a\n"), "@@ -0,0 +1 @@\n+a\n");
        assert_eq!(text("a\n", ""), "@@ -1 +0,0 @@\n-a\n");
        assert_eq!(
            text("a\nb", "a\nc"),
            "@@ -1,2 +1,2 @@\n a\n-b\n\\ No newline at end of file\n+c\n\\ No newline at end of file\n"
        );
        let old: String = (0..40).map(|n| format!("{n}\n")).collect();
        let new = old.replace("\n5\n", "\nfive\n").replace("\n30\n", "\n");
        let hunks = text(&old, &new);
        assert_eq!(hunks.matches("@@ -").count(), 2, "{hunks}");
        assert!(hunks.contains("@@ -3,7 +3,7 @@\n"), "{hunks}");
        assert!(hunks.contains("@@ -28,7 +28,6 @@\n"), "{hunks}");
    }

    #[test]
    fn odd_names_are_quoted_as_git_does() {
        assert_eq!(quoted("a/", b"x y"), b"a/x y");
        assert_eq!(quoted("a/", b"\xff\n\"q\\"), br#""a/\377\n\"q\\""#.to_vec());
    }
}
