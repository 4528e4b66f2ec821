//! Which files git ignores: `.gitignore` on the way, `.git/info/exclude`, and never what git tracks.
//! `core.excludesFile` is not read: it is not part of the folder.

use crate::sys;
use bstr::ByteSlice as _;
use gix_glob::{Pattern, pattern::Case, wildmatch};
use std::{collections::BTreeSet, io::Read as _, ops::Bound, os::fd::OwnedFd};

/// Largest `.gitignore`, in bytes; a larger one is not read.
const IGNORE_MAX: u64 = 1 << 20;
/// Largest index of a repository, in bytes; with a larger one nothing counts as tracked.
const INDEX_MAX: u64 = 256 << 20;

/// The rules that hold where the walk is.
#[derive(Default)]
pub(crate) struct Ignore {
    levels: Vec<Level>,
    repos: Vec<Repo>,
}

struct Level {
    /// Bytes of the folder's path with its slash.
    base: usize,
    patterns: Vec<Pattern>,
}

struct Repo {
    /// Rules of the folders above do not reach into a repository of its own.
    first_level: usize,
    base: usize,
    tracked: BTreeSet<Vec<u8>>,
}

/// What to take back when a folder is left.
pub(crate) struct Entered {
    levels: usize,
    repos: usize,
}

impl Ignore {
    /// Reads what a folder says; `path` is relative to the top.
    pub(crate) fn enter(&mut self, dir: &OwnedFd, path: &[u8], is_repo: bool) -> Entered {
        let before = Entered {
            levels: self.levels.len(),
            repos: self.repos.len(),
        };
        let base = if path.is_empty() { 0 } else { path.len() + 1 };
        if is_repo {
            self.repos.push(Repo {
                first_level: self.levels.len(),
                base,
                tracked: tracked(dir),
            });
            if let Ok(info) = sys::open_path(dir, b".git/info") {
                self.read(&info, b"exclude", base);
            }
        }
        self.read(dir, b".gitignore", base);
        before
    }

    pub(crate) fn leave(&mut self, before: &Entered) {
        self.levels.truncate(before.levels);
        self.repos.truncate(before.repos);
    }

    fn read(&mut self, dir: &OwnedFd, name: &[u8], base: usize) {
        let Some(bytes) = small(dir, name, IGNORE_MAX) else {
            return;
        };
        let patterns: Vec<Pattern> = gix_ignore::parse(&bytes, false)
            .map(|(pattern, _, _)| pattern)
            .collect();
        if !patterns.is_empty() {
            self.levels.push(Level { base, patterns });
        }
    }

    /// Whether a rule ignores it. That git tracks it is another question.
    pub(crate) fn matches(&self, path: &[u8], is_dir: bool) -> bool {
        let first = self.repos.last().map_or(0, |repo| repo.first_level);
        for level in self.levels[first..].iter().rev() {
            let relative = path[level.base..].as_bstr();
            let name = relative.rfind_byte(b'/').map(|slash| slash + 1);
            let matching = level.patterns.iter().rev().find(|pattern| {
                pattern.matches_repo_relative_path(
                    relative,
                    name,
                    Some(is_dir),
                    Case::Sensitive,
                    wildmatch::Mode::NO_MATCH_SLASH_LITERAL,
                )
            });
            if let Some(pattern) = matching {
                return !pattern.is_negative();
            }
        }
        false
    }

    /// Whether git tracks the file, or something in the folder.
    pub(crate) fn tracks(&self, path: &[u8], is_dir: bool) -> bool {
        let Some(repo) = self.repos.last() else {
            return false;
        };
        let path = &path[repo.base..];
        if !is_dir {
            return repo.tracked.contains(path);
        }
        let below = [path, b"/"].concat();
        let from = (Bound::Included(below.clone()), Bound::Unbounded);
        repo.tracked
            .range::<Vec<u8>, _>(from)
            .next()
            .is_some_and(|next| next.starts_with(&below))
    }
}

fn small(dir: &OwnedFd, name: &[u8], most: u64) -> Option<Vec<u8>> {
    let (file, stat) = sys::open_file(dir, name).ok()?;
    if u64::try_from(stat.st_size).ok()? > most {
        return None;
    }
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

fn tracked(dir: &OwnedFd) -> BTreeSet<Vec<u8>> {
    sys::open_path(dir, b".git")
        .ok()
        .and_then(|git| small(&git, b"index", INDEX_MAX))
        .and_then(|bytes| index_paths(&bytes))
        .unwrap_or_default()
}

/// The paths of a git index, versions 2 to 4 (gitformat-index); SHA-1 and SHA-256 are told apart by
/// which of them parses. `None`: it is none.
fn index_paths(bytes: &[u8]) -> Option<BTreeSet<Vec<u8>>> {
    let header = bytes.get(..12)?;
    if &header[..4] != b"DIRC" {
        return None;
    }
    let version = number(&header[4..8]);
    let count = number(&header[8..12]);
    if !(2..=4).contains(&version) {
        return None;
    }
    [20, 32]
        .into_iter()
        .find_map(|hash| entries(&bytes[12..], version, count, hash))
}

fn entries(bytes: &[u8], version: u32, count: u32, hash: usize) -> Option<BTreeSet<Vec<u8>>> {
    let mut paths = BTreeSet::new();
    let mut rest = bytes;
    let mut last: Vec<u8> = Vec::new();
    for _ in 0..count {
        let flags = number(rest.get(40 + hash..42 + hash)?);
        let extended = flags & 0x4000 != 0;
        if extended && version == 2 {
            return None;
        }
        let mut at = 42 + hash + if extended { 2 } else { 0 };
        if version == 4 {
            let (cut, used) = varint(rest.get(at..)?)?;
            at += used;
            last.truncate(last.len().checked_sub(cut)?);
        } else {
            last.clear();
        }
        let length = rest.get(at..)?.iter().position(|byte| *byte == 0)?;
        last.extend_from_slice(&rest[at..at + length]);
        at += length;
        // Padded with 1 to 8 zeros; version 4 has one.
        let end = if version == 4 { at + 1 } else { (at + 8) & !7 };
        let padding = rest.get(at..end)?;
        if padding.iter().any(|byte| *byte != 0) || last.is_empty() {
            return None;
        }
        rest = &rest[end..];
        paths.insert(last.clone());
    }
    Some(paths)
}

fn number(bytes: &[u8]) -> u32 {
    bytes
        .iter()
        .fold(0, |sum, byte| (sum << 8) | u32::from(*byte))
}

/// Git's variable-width number of index version 4.
fn varint(bytes: &[u8]) -> Option<(usize, usize)> {
    let mut value = usize::from(bytes.first()? & 0x7f);
    let mut used = 1;
    while bytes[used - 1] & 0x80 != 0 {
        if used > 4 {
            return None;
        }
        value = ((value + 1) << 7) | usize::from(bytes.get(used)? & 0x7f);
        used += 1;
    }
    Some((value, used))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_index_makes_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), version in 2..=4_u8) {
            let mut index = b"DIRC\0\0\0".to_vec();
            index.push(version);
            index.extend_from_slice(&[0, 0, 0, 3]);
            index.extend_from_slice(&bytes);
            let _ = index_paths(&index);
            let _ = index_paths(&bytes);
        }
    }
}
