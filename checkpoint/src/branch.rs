//! Writes a checkpoint as a branch into the folder's own repository: objects and one new ref, nothing
//! else. Working files, index and HEAD stay; no program is run and no configuration obeyed.

use crate::{
    error::{Context as _, Error},
    objects::folder,
    oid::{Algo, Kind, Oid},
    pack_read::Packs,
    pack_write::PackWriter,
    sys,
    tree::{self, What},
};
use bstr::ByteSlice as _;
use rustix::{
    fs::{AtFlags, unlinkat},
    io::Errno,
};
use std::{
    collections::HashMap,
    io::{Read as _, Write as _},
    os::fd::OwnedFd,
    time::Instant,
};

const SMALL_MAX: u64 = 64 << 20;
const SYMREFS_MAX: u32 = 5;
const NAME_MAX: usize = 200;

/// What a branch is made of.
#[derive(Clone, Debug)]
pub struct Branch {
    /// Name below `refs/heads/`.
    pub name: String,
    /// Message of its commit.
    pub message: String,
    /// Seconds since 1970, of author and committer.
    pub time: i64,
}

/// A branch that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Made {
    /// Its commit.
    pub commit: String,
    /// The commit of HEAD, which is its parent.
    pub parent: Option<String>,
}

pub(crate) fn make(
    packs: &Packs,
    top: &OwnedFd,
    root: Oid,
    branch: &Branch,
    until: Instant,
) -> Result<Made, Error> {
    if !is_branch_name(&branch.name) {
        return Err(Error::Invalid(format!(
            "{:?} is no name of a branch",
            branch.name
        )));
    }
    let git = sys::open_dir(top, b".git").map_err(|error| {
        Error::Blocked(match error {
            Errno::NOENT => "the workspace is no git repository".to_owned(),
            _ => {
                "the workspace's .git is no folder; only plain repositories get branches".to_owned()
            }
        })
    })?;
    let algo = algo(&git)?;
    let refname = format!("refs/heads/{}", branch.name);
    let packed = small(&git, b"packed-refs").unwrap_or_default();
    if is_taken(&git, &packed, &refname) {
        return Err(Error::Blocked(format!(
            "a branch {} exists, or one whose name excludes it; choose another name",
            branch.name
        )));
    }
    let parent = head(&git, &packed, algo);
    let commit = write_objects(packs, &git, root, algo, parent.as_deref(), branch, until)?;
    set_ref(&git, &refname, &commit)?;
    Ok(Made { commit, parent })
}

fn small(dir: &OwnedFd, name: &[u8]) -> Option<Vec<u8>> {
    let (dir, name) = sys::open_parent(dir, name).ok()?;
    let (file, _) = sys::open_file(&dir, name).ok()?;
    let mut bytes = Vec::new();
    file.take(SMALL_MAX).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

/// The hash of a repository, by the only two settings that matter here.
fn algo(git: &OwnedFd) -> Result<Algo, Error> {
    let config = small(git, b"config").unwrap_or_default();
    let config = config.to_str_lossy().to_ascii_lowercase();
    let value = |key: &str| {
        config.lines().find_map(|line| {
            let (name, value) = line.split_once('=')?;
            (name.trim() == key).then(|| value.trim().trim_matches('"').to_owned())
        })
    };
    if value("refstorage").is_some_and(|storage| storage != "files") {
        return Err(Error::Blocked(
            "the repository keeps its refs in a way that is not written here".to_owned(),
        ));
    }
    match value("objectformat").as_deref() {
        None | Some("sha1") => Ok(Algo::Sha1),
        Some("sha256") => Ok(Algo::Sha256),
        Some(other) => Err(Error::Blocked(format!(
            "the repository has objects of the unknown format {other:?}"
        ))),
    }
}

/// By the rules of git-check-ref-format.
fn is_branch_name(name: &str) -> bool {
    let bad = |c: char| c.is_control() || " ~^:?*[\\\u{7f}".contains(c);
    name.len() <= NAME_MAX
        && !name.contains(bad)
        && !name.contains("..")
        && !name.contains("@{")
        && name != "@"
        && name != "HEAD"
        && !name.starts_with('-')
        && name.split('/').all(|part| {
            !part.is_empty()
                && !part.starts_with('.')
                && !part.ends_with('.')
                && !part.ends_with(".lock")
        })
}

fn packed_ref<'a>(packed: &'a [u8], name: &str) -> Option<&'a [u8]> {
    packed.lines().find_map(|line| {
        let (oid, found) = line.split_once_str(" ")?;
        (found == name.as_bytes()).then_some(oid)
    })
}

fn is_taken(git: &OwnedFd, packed: &[u8], name: &str) -> bool {
    let below = format!("{name}/");
    let packed = packed.lines().any(|line| {
        line.split_once_str(" ").is_some_and(|(_, found)| {
            let found = found.to_str_lossy();
            found == name || found.starts_with(&below) || name.starts_with(&format!("{found}/"))
        })
    });
    let loose = sys::open_parent(git, name.as_bytes())
        .and_then(|(dir, last)| sys::look(&dir, last))
        .is_ok_and(|stat| stat.is_some());
    packed || loose
}

/// The commit of HEAD.
fn head(git: &OwnedFd, packed: &[u8], algo: Algo) -> Option<String> {
    let mut name = "HEAD".to_owned();
    for _ in 0..SYMREFS_MAX {
        let loose = small(git, name.as_bytes());
        let value = match &loose {
            Some(value) => value.trim(),
            None => packed_ref(packed, &name)?,
        };
        let value = value.to_str().ok()?;
        match value.strip_prefix("ref:") {
            Some(target) => {
                target.trim().clone_into(&mut name);
                if !name.starts_with("refs/") {
                    return None;
                }
            }
            None => {
                let good = value.len() == 2 * algo.len()
                    && value.bytes().all(|byte| byte.is_ascii_hexdigit());
                return good.then(|| value.to_owned());
            }
        }
    }
    None
}

fn write_objects(
    packs: &Packs,
    git: &OwnedFd,
    root: Oid,
    algo: Algo,
    parent: Option<&str>,
    branch: &Branch,
    until: Instant,
) -> Result<String, Error> {
    let objects = sys::ensure_dir(git, b"objects", 0o755).context("write a branch")?;
    let dir = sys::ensure_dir(&objects, b"pack", 0o755).context("write a branch")?;
    let temporary = format!("tmp_pack_{}", sys::random());
    let file = sys::create(&dir, temporary.as_bytes(), 0o444).context("write a branch")?;
    let written = (|| {
        let mut copy = Copy {
            packs,
            to: PackWriter::new(file, algo, u64::MAX),
            done: HashMap::new(),
            until,
        };
        let tree = match copy.tree(&root)? {
            Some(tree) => tree,
            None => copy.add(Kind::Tree, b"")?,
        };
        let who = format!(
            "opencode-operator <opencode-operator@localhost> {} +0000",
            branch.time
        );
        let parent = parent.map(|parent| format!("parent {parent}\n"));
        let commit = format!(
            "tree {}\n{}author {who}\ncommitter {who}\n\n{}\n",
            tree.hex(algo),
            parent.unwrap_or_default(),
            branch.message.trim_end()
        );
        let commit = copy.add(Kind::Commit, commit.as_bytes())?;
        let (name, index) = copy.to.finish()?;
        let stem = format!("pack-{}", name.hex(algo));
        sys::rename(
            &dir,
            temporary.as_bytes(),
            &dir,
            format!("{stem}.pack").as_bytes(),
            true,
        )
        .context("write a branch")?;
        let mut file = sys::create(&dir, temporary.as_bytes(), 0o444).context("write a branch")?;
        file.write_all(&index).context("write a branch")?;
        file.sync_all().context("write a branch")?;
        sys::rename(
            &dir,
            temporary.as_bytes(),
            &dir,
            format!("{stem}.idx").as_bytes(),
            true,
        )
        .context("write a branch")?;
        sys::sync_dir(&dir)?;
        Ok(commit.hex(algo))
    })();
    if written.is_err() {
        let _ = unlinkat(&dir, temporary, AtFlags::empty());
    }
    written
}

struct Copy<'a> {
    packs: &'a Packs,
    to: PackWriter,
    done: HashMap<Oid, Oid>,
    until: Instant,
}

impl Copy<'_> {
    fn add(&mut self, kind: Kind, content: &[u8]) -> Result<Oid, Error> {
        let oid = self.to.algo().name(kind, content);
        self.to.put(oid, kind, content)?;
        Ok(oid)
    }

    /// A tree without what git does not keep: `.git`, empty folders. `None`: nothing is left.
    fn tree(&mut self, tree: &Oid) -> Result<Option<Oid>, Error> {
        if Instant::now() > self.until {
            return Err(Error::TooSlow);
        }
        let mut entries = Vec::new();
        for node in folder(self.packs, tree)? {
            if node.name.eq_ignore_ascii_case(b".git") {
                continue;
            }
            let oid = match node.what {
                What::Dir => self.tree(&node.oid)?,
                What::File | What::Link => Some(self.blob(&node.oid)?),
            };
            entries.extend(oid.map(|oid| (node.name.clone(), node.git_mode(), oid)));
        }
        if entries.is_empty() {
            return Ok(None);
        }
        let bytes = tree::write(entries, self.to.algo());
        self.add(Kind::Tree, &bytes).map(Some)
    }

    fn blob(&mut self, oid: &Oid) -> Result<Oid, Error> {
        if let Some(done) = self.done.get(oid) {
            return Ok(*done);
        }
        let size = self.packs.size(oid, Kind::Blob)?;
        let mut blob = self.to.begin_blob(size);
        let to = &mut self.to;
        self.packs
            .copy(oid, Kind::Blob, &mut |bytes| to.feed(&mut blob, bytes))?;
        let made = self.to.end_blob(blob, &mut |_| Ok(false))?;
        self.done.insert(*oid, made);
        Ok(made)
    }
}

/// Makes the ref, as git does: a lock that nobody else has, then its name.
fn set_ref(git: &OwnedFd, name: &str, commit: &str) -> Result<(), Error> {
    let (folders, last) = name.rsplit_once('/').unwrap_or(("", name));
    let mut dir = sys::open_path(git, b"").context("write a ref")?;
    for folder in folders.split('/') {
        dir = sys::ensure_dir(&dir, folder.as_bytes(), 0o755).map_err(|error| {
            Error::Blocked(format!("the branch's folder cannot be made: {error}"))
        })?;
    }
    let lock = format!("{last}.lock");
    let mut file = sys::create(&dir, lock.as_bytes(), 0o644).map_err(|error| {
        Error::Blocked(format!(
            "somebody else holds the lock of the branch: {error}"
        ))
    })?;
    let written = (|| {
        file.write_all(format!("{commit}\n").as_bytes())
            .context("write a ref")?;
        file.sync_all().context("write a ref")?;
        sys::rename(&dir, lock.as_bytes(), &dir, last.as_bytes(), false).context("write a ref")?;
        sys::sync_dir(&dir)
    })();
    if written.is_err() {
        let _ = unlinkat(&dir, lock, AtFlags::empty());
    }
    written
}

#[cfg(test)]
mod tests {
    use super::is_branch_name;

    #[test]
    fn names_of_branches_are_those_of_git() {
        for good in ["main", "a/b", "feature-1", "checkpoint/c3", "ü"] {
            assert!(is_branch_name(good), "{good}");
        }
        for bad in [
            "", "-x", "a..b", "a b", "a~", "a^", "a:", "/a", "a/", "a//b", ".a", "a/.b", "a.lock",
            "a.", "@", "a@{b", "HEAD", "a\\b", "a*", "../x", "a\nb",
        ] {
            assert!(!is_branch_name(bad), "{bad}");
        }
    }
}
