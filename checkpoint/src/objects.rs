//! Folders of a checkpoint, read from the store.

use crate::{
    error::Error,
    oid::{Kind, Oid},
    pack_read::Packs,
    tree::{self, Node, TREE_MAX},
};

/// The entries of a folder, sorted by name.
pub(crate) fn folder(packs: &Packs, tree: &Oid) -> Result<Vec<Node>, Error> {
    let bytes = packs.read(tree, Kind::Tree, TREE_MAX)?;
    tree::decode(&bytes, &mut |modes| packs.read(modes, Kind::Blob, TREE_MAX))
}

/// The entries of a folder and the name of its blob of modes.
pub(crate) fn raw(packs: &Packs, tree: &Oid) -> Result<(Vec<Node>, Option<Oid>), Error> {
    let bytes = packs.read(tree, Kind::Tree, TREE_MAX)?;
    let mut modes = None;
    let nodes = tree::decode(&bytes, &mut |oid| {
        modes = Some(*oid);
        packs.read(oid, Kind::Blob, TREE_MAX)
    })?;
    Ok((nodes, modes))
}

/// Two folders side by side: entries of one name, in order.
pub(crate) fn pairs(old: Vec<Node>, new: Vec<Node>) -> Vec<(Option<Node>, Option<Node>)> {
    let mut pairs = Vec::with_capacity(old.len().max(new.len()));
    let (mut old, mut new) = (old.into_iter().peekable(), new.into_iter().peekable());
    loop {
        let order = match (old.peek(), new.peek()) {
            (None, None) => return pairs,
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (Some(a), Some(b)) => a.name.cmp(&b.name),
        };
        pairs.push(match order {
            std::cmp::Ordering::Less => (old.next(), None),
            std::cmp::Ordering::Greater => (None, new.next()),
            std::cmp::Ordering::Equal => (old.next(), new.next()),
        });
    }
}

/// A path one name longer.
pub(crate) fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    if path.is_empty() {
        name.to_vec()
    } else {
        [path, b"/", name].concat()
    }
}
