//! Names of objects: hashes of `<kind> <size>\0<content>`, as git makes them.

use crate::error::Error;
use sha1::Sha1;
use sha2::{Digest, Sha256};
use std::fmt;

/// Which hash. The store uses SHA-256, so that nobody can make two contents of one name; SHA-1 is for
/// branches that leave for a repository that has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Algo {
    Sha256,
    Sha1,
}

impl Algo {
    /// Bytes of a name.
    pub(crate) fn len(self) -> usize {
        match self {
            Self::Sha256 => 32,
            Self::Sha1 => 20,
        }
    }

    pub(crate) fn hasher(self) -> Hasher {
        match self {
            Self::Sha256 => Hasher::Sha256(Sha256::new()),
            Self::Sha1 => Hasher::Sha1(Sha1::new()),
        }
    }

    /// The beginning of an object's hash.
    pub(crate) fn object(self, kind: Kind, size: u64) -> Hasher {
        let mut hasher = self.hasher();
        hasher.update(format!("{} {size}\0", kind.name()).as_bytes());
        hasher
    }

    pub(crate) fn name(self, kind: Kind, content: &[u8]) -> Oid {
        let mut hasher = self.object(kind, content.len() as u64);
        hasher.update(content);
        hasher.finish()
    }
}

/// A hash under way.
pub(crate) enum Hasher {
    Sha256(Sha256),
    Sha1(Sha1),
}

impl Hasher {
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Sha1(hasher) => hasher.update(bytes),
        }
    }

    pub(crate) fn finish(self) -> Oid {
        let mut oid = [0; 32];
        match self {
            Self::Sha256(hasher) => oid.copy_from_slice(&hasher.finalize()),
            Self::Sha1(hasher) => oid[..20].copy_from_slice(&hasher.finalize()),
        }
        Oid(oid)
    }
}

/// Kind of an object, by its number in packs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Commit = 1,
    Tree = 2,
    Blob = 3,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Commit => "commit",
            Self::Tree => "tree",
            Self::Blob => "blob",
        }
    }
}

/// Name of an object. One of SHA-1 is filled up with zeros.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Oid(pub(crate) [u8; 32]);

impl Oid {
    /// Reads 64 hexadecimal digits.
    ///
    /// # Errors
    /// [`Error::Invalid`] for anything else.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let invalid = || Error::Invalid("a root is 64 hexadecimal digits".to_owned());
        let bytes = text.as_bytes();
        if bytes.len() != 64 || !bytes.iter().all(u8::is_ascii_hexdigit) {
            return Err(invalid());
        }
        let mut oid = [0; 32];
        for (at, byte) in oid.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).map_err(|_| invalid())?;
        }
        Ok(Self(oid))
    }

    pub(crate) fn hex(&self, algo: Algo) -> String {
        self.0[..algo.len()]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }
}

impl fmt::Display for Oid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.hex(Algo::Sha256))
    }
}

impl fmt::Debug for Oid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.hex(Algo::Sha256)[..12])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_git() {
        // `git hash-object --stdin </dev/null` and the empty tree, in both formats.
        let hex = |algo: Algo, kind| algo.name(kind, b"").hex(algo);
        assert_eq!(
            hex(Algo::Sha1, Kind::Blob),
            "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"
        );
        assert_eq!(
            hex(Algo::Sha1, Kind::Tree),
            "4b825dc642cb6eb9a060e54bf8d69288fbee4904"
        );
        assert_eq!(
            hex(Algo::Sha256, Kind::Blob),
            "473a0f4c3be8a93681a267e3b1e9a7dcda1185436fe141f7749120a303721813"
        );
        let oid = Algo::Sha256.name(Kind::Blob, b"x");
        assert_eq!(Oid::parse(&oid.to_string()).unwrap(), oid);
        for wrong in ["", "zz", &"g".repeat(64), &"a".repeat(63), &"é".repeat(32)] {
            assert!(Oid::parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
