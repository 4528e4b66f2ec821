//! Differences as a patch that `git apply` takes, binary files included.

use crate::{
    diff::{self, Change},
    error::Error,
    oid::{Algo, Kind, Oid},
    pack_read::Packs,
    tree::Node,
};
use flate2::{Compress, Compression, FlushCompress, Status};
use std::time::Instant;

/// Bytes of one line of a binary patch.
const LINE: usize = 52;
const DIGITS: &[u8; 85] =
    b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;<=>?@^_`{|}~";

/// Writes the patch from one checkpoint to another, at most `most` bytes.
pub(crate) fn write(
    packs: &Packs,
    old: Option<Oid>,
    new: Option<Oid>,
    most: u64,
    until: Instant,
    sink: &mut dyn FnMut(&[u8]) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut left = most;
    let mut out = |bytes: &[u8]| {
        left = left.checked_sub(bytes.len() as u64).ok_or_else(|| {
            Error::TooLarge(format!(
                "the patch has more than {most} bytes; make a branch instead"
            ))
        })?;
        sink(bytes)
    };
    diff::changes(packs, old, new, until, &mut |change| {
        match (&change.old, &change.new) {
            // Git knows no change of a file into a link.
            (Some(a), Some(b)) if a.what != b.what => {
                for (old, new) in [(Some(a.clone()), None), (None, Some(b.clone()))] {
                    let path = change.path.clone();
                    one(packs, &Change { path, old, new }, &mut out)?;
                }
            }
            _ => one(packs, &change, &mut out)?,
        }
        Ok(true)
    })?;
    Ok(())
}

fn one(
    packs: &Packs,
    change: &Change,
    out: &mut dyn FnMut(&[u8]) -> Result<(), Error>,
) -> Result<(), Error> {
    let (old, new) = (change.old.as_ref(), change.new.as_ref());
    let modes = (old.map(Node::git_mode), new.map(Node::git_mode));
    let same_content = matches!((old, new), (Some(a), Some(b)) if a.oid == b.oid);
    if same_content && modes.0 == modes.1 {
        // Modes that git does not know.
        return Ok(());
    }
    let a = diff::quoted("a/", &change.path);
    let b = diff::quoted("b/", &change.path);
    out(&[b"diff --git ", &a[..], b" ", &b[..], b"\n"].concat())?;
    match modes {
        (None, Some(mode)) => out(format!("new file mode {mode}\n").as_bytes())?,
        (Some(mode), None) => out(format!("deleted file mode {mode}\n").as_bytes())?,
        (Some(from), Some(to)) if from != to => {
            out(format!("old mode {from}\nnew mode {to}\n").as_bytes())?;
        }
        _ => {}
    }
    if same_content {
        return Ok(());
    }
    let contents = (diff::content(packs, old)?, diff::content(packs, new)?);
    let text = match &contents {
        (Some(old), Some(new)) if !diff::is_binary(old) && !diff::is_binary(new) => {
            Some((old, new))
        }
        _ => None,
    };
    let names = (sha1(packs, old)?, sha1(packs, new)?);
    let index = match (modes.0, modes.1) {
        (Some(from), Some(to)) if from == to => format!("index {}..{} {to}\n", names.0, names.1),
        _ => format!("index {}..{}\n", names.0, names.1),
    };
    out(index.as_bytes())?;
    match text {
        Some((old_text, new_text)) => {
            let (hunks, _, _) = diff::unified(old_text, new_text);
            if hunks.is_empty() {
                return Ok(());
            }
            let side = |quoted: &[u8], there: bool| {
                let name = if there { quoted } else { b"/dev/null" };
                // A name with a space ends in a tab, so that nobody takes it for a date.
                let tab = if there && name.contains(&b' ') {
                    "\t"
                } else {
                    ""
                };
                [name, tab.as_bytes(), b"\n"].concat()
            };
            out(&[b"--- ", &side(&a, old.is_some())[..]].concat())?;
            out(&[b"+++ ", &side(&b, new.is_some())[..]].concat())?;
            out(&hunks)
        }
        None => {
            out(b"GIT binary patch\n")?;
            literal(packs, new, out)?;
            literal(packs, old, out)
        }
    }
}

/// The name that git would give the content in a repository of SHA-1: `git apply` compares it.
fn sha1(packs: &Packs, node: Option<&Node>) -> Result<String, Error> {
    let Some(node) = node else {
        return Ok("0".repeat(40));
    };
    let size = packs.size(&node.oid, Kind::Blob)?;
    let mut hasher = Algo::Sha1.object(Kind::Blob, size);
    packs.copy(&node.oid, Kind::Blob, &mut |bytes| {
        hasher.update(bytes);
        Ok(())
    })?;
    Ok(hasher.finish().hex(Algo::Sha1))
}

/// The whole content, deflated, in lines of base 85.
fn literal(
    packs: &Packs,
    node: Option<&Node>,
    out: &mut dyn FnMut(&[u8]) -> Result<(), Error>,
) -> Result<(), Error> {
    let size = match node {
        Some(node) => packs.size(&node.oid, Kind::Blob)?,
        None => 0,
    };
    out(format!("literal {size}\n").as_bytes())?;
    let mut lines = Lines {
        compress: Compress::new(Compression::fast(), true),
        held: Vec::new(),
    };
    if let Some(node) = node {
        packs.copy(&node.oid, Kind::Blob, &mut |bytes| {
            lines.add(bytes, FlushCompress::None, out)
        })?;
    }
    lines.add(b"", FlushCompress::Finish, out)?;
    if !lines.held.is_empty() {
        out(&line(&lines.held))?;
    }
    out(b"\n")
}

struct Lines {
    compress: Compress,
    held: Vec<u8>,
}

impl Lines {
    fn add(
        &mut self,
        mut input: &[u8],
        flush: FlushCompress,
        out: &mut dyn FnMut(&[u8]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        loop {
            self.held.reserve(32 * 1024);
            let before = self.compress.total_in();
            let status = self
                .compress
                .compress_vec(input, &mut self.held, flush)
                .map_err(|error| Error::corrupt(error.to_string()))?;
            let taken = usize::try_from(self.compress.total_in() - before).unwrap_or(0);
            input = &input[taken..];
            let whole = self.held.len() / LINE * LINE;
            let mut text = Vec::with_capacity(whole * 3 / 2);
            for piece in self.held[..whole].chunks(LINE) {
                text.extend_from_slice(&line(piece));
            }
            out(&text)?;
            self.held.drain(..whole);
            let done = match flush {
                FlushCompress::Finish => status == Status::StreamEnd,
                _ => input.is_empty(),
            };
            if done {
                return Ok(());
            }
        }
    }
}

fn line(bytes: &[u8]) -> Vec<u8> {
    let length = u8::try_from(bytes.len()).unwrap_or(0);
    let first = match length {
        0..=26 => b'A' + length.saturating_sub(1),
        _ => b'a' + length - 27,
    };
    let mut out = vec![first];
    for group in bytes.chunks(4) {
        let mut four = [0; 4];
        four[..group.len()].copy_from_slice(group);
        let mut value = u32::from_be_bytes(four);
        let mut digits = [0; 5];
        for digit in digits.iter_mut().rev() {
            *digit = DIGITS[(value % 85) as usize];
            value /= 85;
        }
        out.extend_from_slice(&digits);
    }
    out.push(b'\n');
    out
}
