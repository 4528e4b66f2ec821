//! Folders as git's trees.
//!
//! A git tree knows two modes of files and none of folders, and may not have an entry `.git`. So an
//! entry `.git` (in any case) is written as `%2Egit`, a name that begins with `%` as `%25…`, and what
//! git cannot say about modes is in a blob `%modes` of the folder, which most folders do not need.

use crate::{
    error::Error,
    oid::{Algo, Kind, Oid},
};
use bstr::ByteSlice as _;
use std::collections::BTreeMap;

/// Largest tree or blob of modes that is read, in bytes.
pub(crate) const TREE_MAX: u64 = 256 * 1024 * 1024;
const MODES: &[u8] = b"%modes";

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum What {
    File,
    Link,
    Dir,
}

/// An entry of a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    /// Its name, as the file system has it.
    pub(crate) name: Vec<u8>,
    pub(crate) what: What,
    /// Permission bits; 0 for links.
    pub(crate) mode: u32,
    pub(crate) oid: Oid,
}

impl Node {
    /// Mode as git writes it.
    pub(crate) fn git_mode(&self) -> &'static str {
        match self.what {
            What::Dir => "40000",
            What::Link => "120000",
            What::File if self.mode & 0o100 != 0 => "100755",
            What::File => "100644",
        }
    }

    fn class(&self) -> Option<Class> {
        match self.what {
            What::Link => None,
            What::Dir => Some(Class::Dir),
            What::File if self.mode & 0o100 != 0 => Some(Class::Exec),
            What::File => Some(Class::File),
        }
    }
}

/// Entries whose modes have the same default.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Class {
    File,
    Exec,
    Dir,
}

impl Class {
    const ALL: [Self; 3] = [Self::File, Self::Exec, Self::Dir];

    fn letter(self) -> u8 {
        match self {
            Self::File => b'f',
            Self::Exec => b'x',
            Self::Dir => b'd',
        }
    }

    fn default_mode(self) -> u32 {
        match self {
            Self::File => 0o644,
            Self::Exec | Self::Dir => 0o755,
        }
    }
}

fn escape(name: &[u8]) -> Vec<u8> {
    if name.starts_with(b"%") {
        [b"%25", &name[1..]].concat()
    } else if name.eq_ignore_ascii_case(b".git") {
        [b"%2E", &name[1..]].concat()
    } else {
        name.to_vec()
    }
}

fn unescape(name: &[u8]) -> Option<Vec<u8>> {
    match name.strip_prefix(b"%") {
        None => Some(name.to_vec()),
        Some(rest) => match (rest.strip_prefix(b"25"), rest.strip_prefix(b"2E")) {
            (Some(rest), _) => Some([b"%", rest].concat()),
            (_, Some(rest)) => Some([b".", rest].concat()),
            _ => None,
        },
    }
}

/// What `%modes` of these entries says; `None`: all are as git would make them.
pub(crate) fn modes(nodes: &[Node]) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    let mut exceptions = Vec::new();
    for class in Class::ALL {
        let of_class = || nodes.iter().filter(|node| node.class() == Some(class));
        let mut counts: BTreeMap<u32, usize> = BTreeMap::new();
        for node in of_class() {
            *counts.entry(node.mode).or_default() += 1;
        }
        let usual = counts.iter().max_by_key(|(_, count)| **count);
        let usual = usual.map_or(class.default_mode(), |(mode, _)| *mode);
        if usual != class.default_mode() {
            out.extend_from_slice(format!("{} {usual:o}\0", class.letter() as char).as_bytes());
        }
        for node in of_class().filter(|node| node.mode != usual) {
            exceptions.extend_from_slice(format!("{:o} ", node.mode).as_bytes());
            exceptions.extend_from_slice(&node.name);
            exceptions.push(0);
        }
    }
    out.extend_from_slice(&exceptions);
    (!out.is_empty()).then_some(out)
}

fn apply_modes(nodes: &mut [Node], text: &[u8]) -> Option<()> {
    let mut exceptions: BTreeMap<&[u8], u32> = BTreeMap::new();
    let mut usual: BTreeMap<Class, u32> = BTreeMap::new();
    for line in text
        .split(|byte| *byte == 0)
        .filter(|line| !line.is_empty())
    {
        let (first, rest) = line.split_once_str(" ")?;
        let class = Class::ALL
            .into_iter()
            .find(|class| first == [class.letter()]);
        let number = |text: &[u8]| {
            let mode = u32::from_str_radix(text.to_str().ok()?, 8).ok()?;
            (mode <= 0o3777).then_some(mode)
        };
        match class {
            Some(class) => drop(usual.insert(class, number(rest)?)),
            None => drop(exceptions.insert(rest, number(first)?)),
        }
    }
    for node in nodes {
        if let Some(class) = node.class() {
            let mode = exceptions.get(&node.name[..]).or_else(|| usual.get(&class));
            node.mode = *mode.unwrap_or(&class.default_mode());
        }
    }
    Some(())
}

/// The bytes of a tree. `modes` is the name of its blob of modes.
pub(crate) fn encode(nodes: &[Node], modes: Option<Oid>) -> Vec<u8> {
    let mut entries: Vec<(Vec<u8>, &'static str, Oid)> = nodes
        .iter()
        .map(|node| (escape(&node.name), node.git_mode(), node.oid))
        .collect();
    entries.extend(modes.map(|oid| (MODES.to_vec(), "100644", oid)));
    write(entries, Algo::Sha256)
}

/// The bytes of a tree of plain names, in git's order: a folder sorts as if its name ended in `/`.
pub(crate) fn write(mut entries: Vec<(Vec<u8>, &'static str, Oid)>, algo: Algo) -> Vec<u8> {
    let end = |mode: &str| if mode == "40000" { &b"/"[..] } else { b"" };
    entries.sort_by(|a, b| {
        let (a_end, b_end) = (end(a.1), end(b.1));
        a.0.iter().chain(a_end).cmp(b.0.iter().chain(b_end))
    });
    let mut out = Vec::new();
    for (name, mode, oid) in entries {
        out.extend_from_slice(mode.as_bytes());
        out.push(b' ');
        out.extend_from_slice(&name);
        out.push(0);
        out.extend_from_slice(&oid.0[..algo.len()]);
    }
    out
}

/// Reads a tree: its entries sorted by name, with modes where `read_modes` is given the blob.
///
/// # Errors
/// [`Error::Corrupt`] for anything that this program does not write, above all for names that would
/// lead out of the folder.
pub(crate) fn decode(
    bytes: &[u8],
    read_modes: &mut dyn FnMut(&Oid) -> Result<Vec<u8>, Error>,
) -> Result<Vec<Node>, Error> {
    let bad = || Error::corrupt("a tree makes no sense");
    let mut nodes: Vec<Node> = Vec::new();
    let mut modes = None;
    let mut rest = bytes;
    while !rest.is_empty() {
        let (mode, tail) = rest.split_once_str(" ").ok_or_else(bad)?;
        let (stored, tail) = tail.split_once_str("\0").ok_or_else(bad)?;
        let (oid, tail) = tail.split_at_checked(32).ok_or_else(bad)?;
        rest = tail;
        let oid = Oid(oid.try_into().map_err(|_| bad())?);
        if stored == MODES {
            modes = Some(oid);
            continue;
        }
        let (what, mode) = match mode {
            b"40000" => (What::Dir, 0o755),
            b"120000" => (What::Link, 0),
            b"100644" => (What::File, 0o644),
            b"100755" => (What::File, 0o755),
            _ => return Err(bad()),
        };
        let name = unescape(stored).ok_or_else(bad)?;
        if name.is_empty() || name == b"." || name == b".." || name.contains(&b'/') {
            return Err(bad());
        }
        nodes.push(Node {
            name,
            what,
            mode,
            oid,
        });
    }
    nodes.sort_by(|a, b| a.name.cmp(&b.name));
    if nodes.windows(2).any(|pair| pair[0].name == pair[1].name) {
        return Err(bad());
    }
    if let Some(oid) = modes {
        apply_modes(&mut nodes, &read_modes(&oid)?).ok_or_else(bad)?;
    }
    Ok(nodes)
}

/// The name of a blob.
pub(crate) fn blob(content: &[u8]) -> Oid {
    Algo::Sha256.name(Kind::Blob, content)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn round_trip(nodes: &[Node]) -> Vec<Node> {
        let modes = modes(nodes);
        let bytes = encode(nodes, modes.as_deref().map(blob));
        decode(&bytes, &mut |_| Ok(modes.clone().unwrap_or_default())).unwrap()
    }

    fn nodes() -> impl Strategy<Value = Vec<Node>> {
        let name = prop_oneof![
            Just(b".git".to_vec()),
            Just(b".GIT".to_vec()),
            Just(b"%modes".to_vec()),
            Just(b"%2Egit".to_vec()),
            prop::collection::vec(
                any::<u8>().prop_filter("no name", |b| *b != 0 && *b != b'/'),
                1..6
            )
            .prop_filter("no name", |n| n != b"." && n != b".."),
        ];
        let node = (name, 0..3_u8, 0..0o1000_u32, any::<[u8; 32]>()).prop_map(
            |(name, what, mode, oid)| {
                let what = [What::File, What::Link, What::Dir][usize::from(what)];
                let mode = if what == What::Link { 0 } else { mode };
                Node {
                    name,
                    what,
                    mode,
                    oid: Oid(oid),
                }
            },
        );
        prop::collection::vec(node, 0..12).prop_map(|mut nodes| {
            nodes.sort_by(|a, b| a.name.cmp(&b.name));
            nodes.dedup_by(|a, b| a.name == b.name);
            nodes
        })
    }

    proptest! {
        #[test]
        fn names_and_modes_survive(nodes in nodes()) {
            prop_assert_eq!(round_trip(&nodes), nodes);
        }

        #[test]
        fn garbage_is_refused_or_harmless(bytes in prop::collection::vec(any::<u8>(), 0..200), modes in prop::collection::vec(any::<u8>(), 0..60)) {
            if let Ok(nodes) = decode(&bytes, &mut |_| Ok(modes.clone())) {
                for node in nodes {
                    prop_assert!(!node.name.contains(&b'/') && node.name != b"..");
                }
            }
        }
    }

    #[test]
    fn usual_modes_need_no_blob_and_uncommon_ones_little() {
        let node = |name: &str, mode| Node {
            name: name.into(),
            what: What::File,
            mode,
            oid: Oid([7; 32]),
        };
        assert_eq!(modes(&[node("a", 0o644), node("b", 0o755)]), None);
        let most = [node("a", 0o664), node("b", 0o664), node("c", 0o600)];
        assert_eq!(modes(&most).unwrap(), b"f 664\x00600 c\0");
    }

    #[test]
    fn hostile_names_are_refused() {
        for name in [&b".."[..], b".", b"", b"a/b", b"%x", b"%2E.", b"%2E"] {
            let mut bytes = b"100644 ".to_vec();
            bytes.extend_from_slice(name);
            bytes.push(0);
            bytes.extend_from_slice(&[1; 32]);
            assert!(
                decode(&bytes, &mut |_| Ok(Vec::new())).is_err(),
                "{}",
                name.as_bstr()
            );
        }
        let twice = [&b"100644 a\0"[..], &[1; 32], b"40000 a\0", &[1; 32]].concat();
        assert!(decode(&twice, &mut |_| Ok(Vec::new())).is_err());
    }
}
