//! The store: a bare git repository of SHA-256 objects, all of them in packs.
//!
//! Git itself is never run on it. It may be looked at with `git --git-dir=… cat-file`, and carries
//! `gc.auto=0`, because its checkpoints have no refs: which ones count is known to the sidecar alone.

use crate::{
    cache::{Head, Reader},
    error::{Context as _, Error},
    oid::{Algo, Oid},
    pack_read::{Pack, Packs},
    pack_write::PackWriter,
    sys,
};
use rustix::fs::{AtFlags, unlinkat};
use std::{
    fs::File,
    io::{Read as _, Write as _},
    os::fd::OwnedFd,
    path::Path,
};

const CONFIG: &[u8] = b"[core]\n\trepositoryformatversion = 1\n\tfilemode = true\n\tbare = true\n\
[extensions]\n\tobjectformat = sha256\n[gc]\n\tauto = 0\n[maintenance]\n\tauto = false\n";
const HEAD: &str = "cache.json";
/// Largest small file that is read, in bytes.
const SMALL_MAX: u64 = 256 * 1024 * 1024;
const NAMES_MAX: usize = 100_000;

/// The store's folders.
#[derive(Debug)]
pub(crate) struct Store {
    pub(crate) dir: OwnedFd,
    pub(crate) packs: OwnedFd,
}

impl Store {
    /// Opens it, and makes it if it is not there. `base` is trusted, the names below are not followed
    /// if they are links.
    pub(crate) fn open(base: &Path, below: &str) -> Result<Self, Error> {
        let mut dir = sys::open_root(base)?;
        for name in below.split('/') {
            dir = sys::ensure_dir(&dir, name.as_bytes(), 0o700).context("make the store")?;
        }
        let objects = sys::ensure_dir(&dir, b"objects", 0o700).context("make the store")?;
        let packs = sys::ensure_dir(&objects, b"pack", 0o700).context("make the store")?;
        sys::ensure_dir(&dir, b"refs", 0o700).context("make the store")?;
        let store = Self { dir, packs };
        if sys::look(&store.dir, b"HEAD")
            .context("look at the store")?
            .is_none()
        {
            sys::replace(&store.dir, b"config", CONFIG)?;
            sys::replace(&store.dir, b"HEAD", b"ref: refs/heads/none\n")?;
        }
        Ok(store)
    }

    /// All packs that can be read. Damaged ones are left out: their objects are then missing.
    pub(crate) fn packs(&self) -> Result<Packs, Error> {
        let mut packs = Packs::default();
        let mut names = sys::names(&self.packs, NAMES_MAX)?;
        names.sort_unstable();
        for name in names {
            let Some(stem) = name.strip_suffix(b".idx") else {
                continue;
            };
            let Ok(stem) = String::from_utf8(stem.to_vec()) else {
                continue;
            };
            let open = |suffix: &str| {
                sys::open_file(&self.packs, format!("{stem}{suffix}").as_bytes())
                    .map(|opened| opened.0)
            };
            let (Ok(index), Ok(data)) = (open(".idx"), open(".pack")) else {
                continue;
            };
            if let Ok(pack) = Pack::open(stem, index, data) {
                packs.packs.push(pack);
            }
        }
        Ok(packs)
    }

    /// Bytes of the store: packs and all else that lies there.
    pub(crate) fn bytes(&self) -> Result<u64, Error> {
        let mut sum = 0;
        for dir in [&self.packs, &self.dir] {
            for name in sys::names(dir, NAMES_MAX)? {
                if let Ok(Some(stat)) = sys::look(dir, &name)
                    && sys::kind(&stat).is_file()
                {
                    sum += u64::try_from(stat.st_size).unwrap_or(0);
                }
            }
        }
        Ok(sum)
    }

    /// Removes what a process that died left.
    pub(crate) fn clean(&self) -> Result<(), Error> {
        let head = self.head();
        for (dir, keep) in [(&self.packs, None), (&self.dir, head.map(|head| head.file))] {
            for name in sys::names(dir, NAMES_MAX)? {
                let kept = keep
                    .as_ref()
                    .is_some_and(|keep| keep.as_bytes() == &name[..]);
                let ours = name.starts_with(b"tmp-") || name.starts_with(b"cache-");
                if ours && !kept {
                    let _ = unlinkat(dir, &name[..], AtFlags::empty());
                }
            }
        }
        // A pack without an index was not finished, or is half removed.
        for name in sys::names(&self.packs, NAMES_MAX)? {
            if let Some(stem) = name.strip_suffix(b".pack") {
                let index = [stem, b".idx"].concat();
                if matches!(sys::look(&self.packs, &index), Ok(None)) {
                    let _ = unlinkat(&self.packs, &name[..], AtFlags::empty());
                }
            }
        }
        Ok(())
    }

    /// A new pack of at most `limit` bytes, and the name of its file.
    pub(crate) fn begin_pack(&self, limit: u64) -> Result<(PackWriter, String), Error> {
        let name = format!("tmp-{}", sys::random());
        let file = sys::create(&self.packs, name.as_bytes(), 0o600).context("make a pack")?;
        Ok((PackWriter::new(file, Algo::Sha256, limit), name))
    }

    /// Gives a finished pack its name; objects in it count from here on, also after a power cut.
    /// Returns the name; `None`: there was nothing in it.
    pub(crate) fn finish_pack(
        &self,
        writer: PackWriter,
        temporary: &str,
    ) -> Result<Option<String>, Error> {
        if writer.is_empty() {
            unlinkat(&self.packs, temporary, AtFlags::empty()).context("remove a pack")?;
            return Ok(None);
        }
        let (name, index) = writer.finish()?;
        let stem = format!("pack-{name}");
        sys::rename(
            &self.packs,
            temporary.as_bytes(),
            &self.packs,
            format!("{stem}.pack").as_bytes(),
            true,
        )
        .context("name a pack")?;
        let temporary = format!("tmp-{}", sys::random());
        let mut file = sys::create(&self.packs, temporary.as_bytes(), 0o600).context("index")?;
        file.write_all(&index).context("write an index")?;
        file.sync_all().context("sync an index")?;
        sys::rename(
            &self.packs,
            temporary.as_bytes(),
            &self.packs,
            format!("{stem}.idx").as_bytes(),
            true,
        )
        .context("name an index")?;
        sys::sync_dir(&self.packs)?;
        Ok(Some(stem))
    }

    /// A small file of the store; `None`: not there, or not to be read.
    pub(crate) fn small(&self, name: &str) -> Option<Vec<u8>> {
        let (file, _) = sys::open_file(&self.dir, name.as_bytes()).ok()?;
        let mut bytes = Vec::new();
        file.take(SMALL_MAX).read_to_end(&mut bytes).ok()?;
        Some(bytes)
    }

    pub(crate) fn remove(&self, name: &str) {
        let _ = unlinkat(&self.dir, name, AtFlags::empty());
        let _ = sys::sync_dir(&self.dir);
    }

    fn head(&self) -> Option<Head> {
        let head: Head = serde_json::from_slice(&self.small(HEAD)?).ok()?;
        head.file.starts_with("cache-").then_some(head)
    }

    /// The cache, if it fits to the packs that are there.
    pub(crate) fn cache(&self, packs: &Packs) -> Reader {
        self.head()
            .filter(|head| head.packs == listed(packs))
            .and_then(|head| sys::open_file(&self.dir, head.file.as_bytes()).ok())
            .map_or_else(Reader::none, |(file, _)| Reader::open(file))
    }

    /// A file for a new cache.
    pub(crate) fn begin_cache(&self) -> Result<(File, String), Error> {
        let name = format!("cache-{}", sys::random());
        let file = sys::create(&self.dir, name.as_bytes(), 0o600).context("make a cache")?;
        Ok((file, name))
    }

    /// Makes a cache count, for the packs that are there now.
    pub(crate) fn set_cache(&self, file: &str, root: &Oid) -> Result<(), Error> {
        let head = Head {
            file: file.to_owned(),
            root: root.to_string(),
            packs: listed(&self.packs()?),
        };
        let json = serde_json::to_vec(&head).map_err(std::io::Error::from);
        sys::replace(&self.dir, HEAD.as_bytes(), &json.context("write a cache")?)?;
        self.clean()
    }

    /// After packs changed: the cache stays if the checkpoint that it was made with does.
    pub(crate) fn keep_cache(&self, roots: &[Oid]) -> Result<(), Error> {
        let kept = self.head().and_then(|head| {
            let root = Oid::parse(&head.root).ok()?;
            roots.contains(&root).then_some((head.file, root))
        });
        match kept {
            Some((file, root)) => self.set_cache(&file, &root),
            None => {
                self.remove(HEAD);
                self.clean()
            }
        }
    }
}

fn listed(packs: &Packs) -> Vec<(String, u64)> {
    let listed = packs.packs.iter();
    listed
        .map(|pack| (pack.name.clone(), pack.bytes()))
        .collect()
}
