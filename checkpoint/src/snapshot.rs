//! Takes a checkpoint: walks the folder, reads what changed, writes one pack.

use crate::{
    Limits, Skipped, Taken,
    cache::{Block, Known, Mark, Reader, Writer},
    error::{Context as _, Error},
    ignore::Ignore,
    objects::{self, join},
    oid::{Algo, Kind, Oid},
    pack_read::Packs,
    pack_write::{PackWriter, Streamed},
    store::Store,
    sys,
    tree::{self, Node, What},
};
use rustix::{
    fs::{FileType, Stat, fstat, fstatvfs, readlinkat},
    io::Errno,
};
use std::{
    io::Read as _,
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

/// Folders within folders: each holds a descriptor open while it is walked.
const DEPTH_MAX: usize = 256;
/// Files up to this many bytes are read whole; larger ones are streamed.
const WHOLE_MAX: u64 = 1 << 20;
/// Times that a file which changes while it is read is read again.
const TRIES: u32 = 3;
/// Names that are told of what was left out.
const NAMED_MAX: usize = 100;
/// How often free space is looked at, in bytes of the pack.
const LOOK_EVERY: u64 = 8 << 20;
/// Free space that a checkpoint leaves: a twentieth of the volume, at most this.
const LEAVE_MAX: u64 = 256 << 20;
/// Folders at the top with this prefix belong to a restore.
pub(crate) const STAGING: &[u8] = b".opencode-operator-restore-";

pub(crate) struct Walk<'a> {
    store: &'a Store,
    packs: &'a Packs,
    pack: PackWriter,
    old: Reader,
    new: Writer,
    ignore: Ignore,
    limits: &'a Limits,
    started: Instant,
    /// The file system's own clock when the walk began.
    now: i64,
    /// Device and inode of the store, which may lie in the folder.
    own: (u64, u64),
    device: u64,
    next_look: u64,
    buffer: Vec<u8>,
    taken: Taken,
}

/// Where the walk is.
#[derive(Clone, Copy, Default)]
struct At {
    depth: usize,
    /// Below a `.git`: all is kept.
    in_git: bool,
    /// Below an ignored folder: only what git tracks or the guide has is kept.
    ignored: bool,
}

/// Takes a checkpoint of `top`. What `guide` has (another checkpoint) is kept even where it is ignored.
pub(crate) fn take(
    store: &Store,
    top: &OwnedFd,
    limits: &Limits,
    guide: Option<Oid>,
) -> Result<Taken, Error> {
    store.clean()?;
    let packs = store.packs()?;
    let (pack, temporary) = store.begin_pack(limits.max_pack_bytes)?;
    let (cache, cache_name) = store.begin_cache()?;
    let now = Mark::of(&fstat(pack.file()).context("look at the store")?).ctime;
    let own = fstat(&store.dir).context("look at the store")?;
    let mut walk = Walk {
        store,
        packs: &packs,
        pack,
        old: store.cache(&packs),
        new: Writer::new(cache),
        ignore: Ignore::default(),
        limits,
        started: Instant::now(),
        now,
        own: (own.st_dev, own.st_ino),
        device: fstat(top).context("look at the folder")?.st_dev,
        next_look: 0,
        buffer: Vec::new(),
        taken: Taken::empty(),
    };
    let walked = walk.check().and_then(|()| {
        let guide = guide
            .map(|tree| objects::folder(&packs, &tree))
            .transpose()?;
        walk.dir(top, &mut Vec::new(), At::default(), guide.as_deref())
    });
    let done = walked.and_then(|root| {
        let Walk {
            pack,
            new,
            mut taken,
            ..
        } = walk;
        taken.root = root;
        taken.new_objects = pack.count() as u64;
        taken.new_bytes = pack.len();
        store.finish_pack(pack, &temporary)?;
        // Only a hint for the next time: a full disk does not take the checkpoint back.
        let _ = new
            .finish()
            .context("write a cache")
            .and_then(|_| store.set_cache(&cache_name, &root));
        taken.store_bytes = store.bytes()?;
        taken.packs = store.packs()?.packs.len() as u64;
        Ok(taken)
    });
    if done.is_err() {
        let _ = store.clean();
    }
    done
}

impl Walk<'_> {
    /// Time and space.
    fn check(&mut self) -> Result<(), Error> {
        if self.started.elapsed() > self.limits.time {
            return Err(Error::TooSlow);
        }
        if self.pack.len() >= self.next_look {
            self.next_look = self.pack.len() + LOOK_EVERY;
            let volume = fstatvfs(&self.store.dir).context("look at the volume")?;
            let total = volume.f_blocks.saturating_mul(volume.f_frsize);
            let free = volume.f_bavail.saturating_mul(volume.f_frsize);
            let leave = (total / 20).min(LEAVE_MAX);
            if free < leave {
                return Err(Error::Full(format!(
                    "{free} bytes are free, and a checkpoint leaves {leave} to the agent"
                )));
            }
        }
        Ok(())
    }

    fn skip(&mut self, path: &[u8], why: &'static str) {
        self.taken.skipped_count += 1;
        if self.taken.skipped.len() < NAMED_MAX {
            self.taken.skipped.push(Skipped {
                path: path.to_vec(),
                why,
            });
        }
    }

    /// Walks one folder, folders in it first; returns its tree.
    fn dir(
        &mut self,
        dir: &OwnedFd,
        path: &mut Vec<u8>,
        at: At,
        guide: Option<&[Node]>,
    ) -> Result<Oid, Error> {
        if at.depth > DEPTH_MAX {
            return Err(Error::TooLarge(format!(
                "folders lie deeper than {DEPTH_MAX} within each other"
            )));
        }
        let room = usize::try_from(self.limits.max_files).unwrap_or(usize::MAX);
        let mut names = sys::names(dir, room)?;
        names.sort_unstable();
        let is_repo = !at.in_git && names.binary_search(&b".git".to_vec()).is_ok();
        let entered = (!at.in_git && !self.limits.include_ignored)
            .then(|| self.ignore.enter(dir, path, is_repo));
        let mut nodes = Vec::new();
        let mut files = Vec::new();
        for name in names {
            if path.is_empty() && name.starts_with(STAGING) {
                continue;
            }
            let length = path.len();
            *path = join(path, &name);
            let guided = guide.and_then(|nodes| find(nodes, &name));
            self.entry(dir, name, path, at, guided, &mut nodes, &mut files)?;
            path.truncate(length);
        }
        // Files after folders, so that the old cache is read in its own order.
        let block = self.old.take(path);
        let mut known = Vec::new();
        for (name, stat) in files {
            let length = path.len();
            *path = join(path, &name);
            self.file(
                dir,
                name,
                path,
                &stat,
                block.as_ref(),
                &mut nodes,
                &mut known,
            )?;
            path.truncate(length);
        }
        if let Some(entered) = entered {
            self.ignore.leave(&entered);
        }
        nodes.sort_by(|a, b| a.name.cmp(&b.name));
        let tree = self.tree(&nodes, block.map(|block| block.tree))?;
        let block = Block {
            path: path.clone(),
            tree,
            files: known,
        };
        self.new.block(&block).context("write a cache")?;
        Ok(tree)
    }

    /// Looks at one name: walks folders, reads links, keeps files for later.
    #[expect(
        clippy::too_many_arguments,
        reason = "one step of a walk, taken out of its loop"
    )]
    fn entry(
        &mut self,
        dir: &OwnedFd,
        name: Vec<u8>,
        path: &mut Vec<u8>,
        at: At,
        guided: Option<&Node>,
        nodes: &mut Vec<Node>,
        files: &mut Vec<(Vec<u8>, Stat)>,
    ) -> Result<(), Error> {
        self.check()?;
        let stat = match sys::look(dir, &name) {
            Ok(Some(stat)) => stat,
            Ok(None) => return Ok(()),
            Err(error) => return Err(error).context("look at a file"),
        };
        let kind = sys::kind(&stat);
        let is_dir = kind == FileType::Directory;
        let is_git = !at.in_git && name == b".git";
        let mut ignored = false;
        if !at.in_git && !is_git && !self.limits.include_ignored {
            ignored = at.ignored || self.ignore.matches(path, is_dir);
            if ignored && guided.is_none() && !self.ignore.tracks(path, is_dir) {
                return Ok(());
            }
        }
        self.taken.entries += 1;
        if self.taken.entries > self.limits.max_files {
            return Err(Error::TooLarge(format!(
                "more than {} files; let .gitignore name what need not be kept",
                self.limits.max_files
            )));
        }
        match kind {
            FileType::Directory => {
                if (stat.st_dev, stat.st_ino) == self.own {
                    return Ok(());
                }
                if stat.st_dev != self.device {
                    self.skip(path, "another file system");
                    return Ok(());
                }
                let sub = match sys::open_dir(dir, &name) {
                    Ok(sub) => sub,
                    // It went, or became something else, since it was looked at.
                    Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {
                        self.skip(path, "changed while it was read");
                        return Ok(());
                    }
                    Err(Errno::ACCESS) => {
                        self.skip(path, "unreadable");
                        return Ok(());
                    }
                    Err(error) => return Err(error).context("open a folder"),
                };
                let below = At {
                    depth: at.depth + 1,
                    in_git: at.in_git || is_git,
                    ignored,
                };
                let guide = match guided {
                    Some(node) if node.what == What::Dir => {
                        Some(objects::folder(self.packs, &node.oid)?)
                    }
                    _ => None,
                };
                // A folder that may not be searched shows names and nothing of them.
                let oid = match self.dir(&sub, path, below, guide.as_deref()) {
                    Err(Error::Io { source, .. })
                        if source.raw_os_error() == Some(Errno::ACCESS.raw_os_error()) =>
                    {
                        self.skip(path, "unreadable");
                        return Ok(());
                    }
                    walked => walked?,
                };
                nodes.push(Node {
                    name,
                    what: What::Dir,
                    mode: stat.st_mode & 0o3777,
                    oid,
                });
            }
            FileType::RegularFile => files.push((name, stat)),
            FileType::Symlink => match readlinkat(dir, &name[..], Vec::new()) {
                Ok(target) => {
                    let oid = self.blob(target.as_bytes())?;
                    nodes.push(Node {
                        name,
                        what: What::Link,
                        mode: 0,
                        oid,
                    });
                }
                Err(_) => self.skip(path, "changed while it was read"),
            },
            FileType::Fifo => self.skip(path, "a pipe"),
            FileType::Socket => self.skip(path, "a socket"),
            _ => self.skip(path, "a device"),
        }
        Ok(())
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "one step of a walk, taken out of its loop"
    )]
    fn file(
        &mut self,
        dir: &OwnedFd,
        name: Vec<u8>,
        path: &[u8],
        stat: &Stat,
        block: Option<&Block>,
        nodes: &mut Vec<Node>,
        known: &mut Vec<Known>,
    ) -> Result<(), Error> {
        let mut mark = Mark::of(stat);
        let cached = block.and_then(|block| {
            let at = block.files.binary_search_by(|file| file.name.cmp(&name));
            at.ok()
                .map(|at| &block.files[at])
                .filter(|file| file.mark == mark)
        });
        let oid = match cached {
            Some(file) => file.oid,
            None => match self.read(dir, &name, path)? {
                Some((oid, read)) => {
                    mark = read;
                    oid
                }
                None => return Ok(()),
            },
        };
        self.taken.files += 1;
        self.taken.bytes += mark.size;
        nodes.push(Node {
            name: name.clone(),
            what: What::File,
            mode: mark.mode & 0o777,
            oid,
        });
        if mark.is_racy(self.now) {
            // Never equal to a real one: it is read again the next time.
            mark.ctime = i64::MIN;
        }
        known.push(Known { name, mark, oid });
        Ok(())
    }

    /// Reads a file into the store. What changes meanwhile is read again, in the end as it comes.
    fn read(
        &mut self,
        dir: &OwnedFd,
        name: &[u8],
        path: &[u8],
    ) -> Result<Option<(Oid, Mark)>, Error> {
        let mut last = None;
        for _ in 0..TRIES {
            self.check()?;
            let (mut file, stat) = match sys::open_file(dir, name) {
                Ok(opened) => opened,
                Err(Errno::ACCESS | Errno::PERM) => {
                    self.skip(path, "unreadable");
                    return Ok(None);
                }
                Err(Errno::NOENT | Errno::LOOP | Errno::INVAL | Errno::NXIO) => {
                    self.skip(path, "changed while it was read");
                    return Ok(None);
                }
                Err(error) => return Err(error).context("open a file"),
            };
            let mark = Mark::of(&stat);
            let read = if mark.size <= WHOLE_MAX {
                self.buffer.clear();
                let mut buffer = std::mem::take(&mut self.buffer);
                let read = (&mut file).take(mark.size + 1).read_to_end(&mut buffer);
                self.buffer = buffer;
                read.context("read a file")?;
                if self.buffer.len() as u64 == mark.size {
                    let content = std::mem::take(&mut self.buffer);
                    let oid = self.blob(&content);
                    self.buffer = content;
                    Some(oid?)
                } else {
                    None
                }
            } else {
                self.stream(&mut file, mark.size)?
            };
            let after = Mark::of(&fstat(&file).context("look at a file")?);
            match read {
                Some(oid) if after == mark => return Ok(Some((oid, mark))),
                Some(oid) => last = Some((oid, mark)),
                None => {}
            }
        }
        self.taken.changing += 1;
        if last.is_none() {
            self.skip(path, "changed while it was read");
        }
        Ok(last)
    }

    fn stream(&mut self, file: &mut std::fs::File, size: u64) -> Result<Option<Oid>, Error> {
        let packs = self.packs;
        let mut bounded = Bounded {
            file,
            started: self.started,
            time: self.limits.time,
        };
        let streamed = self
            .pack
            .put_stream(size, &mut bounded, &mut |oid| packs.contains(oid));
        match streamed {
            Ok(Streamed::Done(oid)) => Ok(Some(oid)),
            Ok(Streamed::Short) => Ok(None),
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::TimedOut => {
                Err(Error::TooSlow)
            }
            Err(error) => Err(error),
        }
    }

    fn blob(&mut self, content: &[u8]) -> Result<Oid, Error> {
        let oid = tree::blob(content);
        if !self.pack.contains(&oid) && !self.packs.contains(&oid)? {
            self.pack.put(oid, Kind::Blob, content)?;
        }
        Ok(oid)
    }

    fn tree(&mut self, nodes: &[Node], before: Option<Oid>) -> Result<Oid, Error> {
        let modes = tree::modes(nodes);
        let bytes = tree::encode(nodes, modes.as_deref().map(tree::blob));
        let oid = Algo::Sha256.name(Kind::Tree, &bytes);
        // The cache belongs to these packs: what it names is in them.
        if before == Some(oid) {
            return Ok(oid);
        }
        if let Some(modes) = modes {
            self.blob(&modes)?;
        }
        if !self.pack.contains(&oid) && !self.packs.contains(&oid)? {
            self.pack.put(oid, Kind::Tree, &bytes)?;
        }
        Ok(oid)
    }
}

fn find<'a>(nodes: &'a [Node], name: &[u8]) -> Option<&'a Node> {
    let at = nodes.binary_search_by(|node| node.name[..].cmp(name));
    at.ok().map(|at| &nodes[at])
}

/// A file that is no longer read once the time is over.
struct Bounded<'a> {
    file: &'a mut std::fs::File,
    started: Instant,
    time: Duration,
}

impl std::io::Read for Bounded<'_> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        if self.started.elapsed() > self.time {
            return Err(std::io::ErrorKind::TimedOut.into());
        }
        self.file.read(into)
    }
}
