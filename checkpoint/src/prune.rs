//! Forgets checkpoints: what no kept one needs is removed.
//!
//! New packs are whole and synced before old ones go, so a crash at any point costs nothing but space.

use crate::{
    error::Error,
    objects,
    oid::Oid,
    pack_read::{Pack, Packs},
    store::Store,
    tree::What,
};
use rustix::fs::{AtFlags, unlinkat};
use std::{collections::HashSet, time::Instant};

/// More packs than this are joined: each costs two open files and a look per object.
const PACKS_MAX: usize = 40;
/// Packs larger than this are not written again just to have fewer.
const JOIN_MAX: u64 = 32 << 20;

/// Removes what `roots` do not need.
pub(crate) fn prune(store: &Store, roots: &[Oid], until: Instant) -> Result<(), Error> {
    store.clean()?;
    let packs = store.packs()?;
    let mut needed = HashSet::new();
    for root in roots {
        match mark(&packs, root, &mut needed, until) {
            // A damaged one keeps what is left of it; a restore tells.
            Ok(()) | Err(Error::Corrupt(_)) => {}
            Err(error) => return Err(error),
        }
    }
    let mut rewrite = Vec::new();
    let mut keep = Vec::new();
    for pack in &packs.packs {
        let alive = alive(pack, &needed)?;
        if u64::from(alive) * 4 < u64::from(pack.count()) * 3 {
            rewrite.push(pack);
        } else {
            keep.push(pack);
        }
    }
    if keep.len() > PACKS_MAX {
        rewrite.extend(keep.into_iter().filter(|pack| pack.bytes() <= JOIN_MAX));
    }
    if !rewrite.is_empty() {
        replace(store, &rewrite, &needed, until)?;
    }
    store.keep_cache(roots)
}

fn alive(pack: &Pack, needed: &HashSet<Oid>) -> Result<u32, Error> {
    let mut alive = 0;
    for at in 0..pack.count() {
        alive += u32::from(needed.contains(&pack.oid(at)?));
    }
    Ok(alive)
}

/// Everything that a tree holds.
fn mark(packs: &Packs, tree: &Oid, needed: &mut HashSet<Oid>, until: Instant) -> Result<(), Error> {
    if needed.contains(tree) {
        return Ok(());
    }
    if Instant::now() > until {
        return Err(Error::TooSlow);
    }
    let (nodes, modes) = objects::raw(packs, tree)?;
    needed.extend(modes);
    let mut missing = None;
    for node in nodes {
        let marked = match node.what {
            What::Dir => mark(packs, &node.oid, needed, until),
            What::File | What::Link => {
                needed.insert(node.oid);
                Ok(())
            }
        };
        match marked {
            Err(Error::Corrupt(what)) => missing = Some(what),
            marked => marked?,
        }
    }
    needed.insert(*tree);
    missing.map_or(Ok(()), |what| Err(Error::Corrupt(what)))
}

fn replace(
    store: &Store,
    rewrite: &[&Pack],
    needed: &HashSet<Oid>,
    until: Instant,
) -> Result<(), Error> {
    let (mut writer, temporary) = store.begin_pack(u64::MAX)?;
    for pack in rewrite {
        let mut places = Vec::with_capacity(pack.count() as usize);
        for at in 0..pack.count() {
            places.push((pack.offset(at)?, pack.oid(at)?));
        }
        places.sort_unstable();
        // The pack ends with its own hash of 32 bytes.
        let ends = places.iter().skip(1).map(|(offset, _)| *offset);
        let ends: Vec<u64> = ends.chain([pack.data_len.saturating_sub(32)]).collect();
        for ((offset, oid), end) in places.iter().zip(ends) {
            if Instant::now() > until {
                return Err(Error::TooSlow);
            }
            if needed.contains(oid) {
                let length = end
                    .checked_sub(*offset)
                    .ok_or_else(|| Error::corrupt("entries of a pack overlap"))?;
                writer.put_raw(*oid, &pack.data, *offset, length)?;
            }
        }
    }
    let made = store.finish_pack(writer, &temporary)?;
    for pack in rewrite {
        // The same entries make the same pack again: then it is the new one.
        if made.as_ref() == Some(&pack.name) {
            continue;
        }
        for suffix in [".idx", ".pack"] {
            let name = format!("{}{suffix}", pack.name);
            let _ = unlinkat(&store.packs, name, AtFlags::empty());
        }
    }
    Ok(())
}
