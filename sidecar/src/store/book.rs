//! Which checkpoints there are: rebuilt from the pod's own journal.

use contract::checkpoint::Checkpoint;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// What became of checkpoints, as the pod's journal has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "entry", rename_all = "snake_case")]
pub(crate) enum Entry {
    /// One was taken.
    Taken {
        checkpoint: Box<Checkpoint>,
        /// Bytes of the store then.
        store_bytes: u64,
    },
    /// These are no longer kept.
    Forgotten { ids: Vec<String> },
    /// The workspace is about to become what it was: what follows may be cut by a crash.
    Restoring {
        checkpoint_id: String,
        root: String,
        at: Timestamp,
    },
    /// It is, or it stayed as it was.
    Restored {
        checkpoint_id: String,
        at: Timestamp,
        done: bool,
    },
}

/// A restore that was begun.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Begun {
    pub checkpoint_id: String,
    pub root: String,
}

/// All checkpoints.
#[derive(Debug, Default)]
pub(crate) struct Book {
    /// Oldest first.
    kept: Vec<Checkpoint>,
    /// Number of the last id that was given away.
    last: u64,
    /// Bytes of the store when last heard of.
    store_bytes: u64,
    restoring: Option<Begun>,
}

impl Book {
    pub(super) fn apply(&mut self, entry: &Entry) {
        match entry {
            Entry::Taken {
                checkpoint,
                store_bytes,
            } => {
                let number = checkpoint.checkpoint_id.strip_prefix('c');
                let number = number.and_then(|digits| digits.parse().ok());
                self.last = self.last.max(number.unwrap_or(0));
                self.store_bytes = *store_bytes;
                self.kept
                    .retain(|kept| kept.checkpoint_id != checkpoint.checkpoint_id);
                self.kept.push((**checkpoint).clone());
            }
            Entry::Forgotten { ids } => {
                self.kept.retain(|kept| !ids.contains(&kept.checkpoint_id));
            }
            Entry::Restoring {
                checkpoint_id,
                root,
                at: _,
            } => {
                self.restoring = Some(Begun {
                    checkpoint_id: checkpoint_id.clone(),
                    root: root.clone(),
                });
            }
            Entry::Restored { .. } => self.restoring = None,
        }
    }

    /// An id that no other checkpoint has or had.
    pub(crate) fn next_id(&mut self) -> String {
        self.last += 1;
        format!("c{}", self.last)
    }

    /// Oldest first.
    pub(crate) fn kept(&self) -> &[Checkpoint] {
        &self.kept
    }

    pub(crate) fn get(&self, id: &str) -> Option<&Checkpoint> {
        self.kept.iter().find(|kept| kept.checkpoint_id == id)
    }

    /// The restore that has no end yet.
    pub(crate) fn restoring(&self) -> Option<&Begun> {
        self.restoring.as_ref()
    }

    pub(crate) fn store_bytes(&self) -> u64 {
        self.store_bytes
    }

    pub(crate) fn set_store_bytes(&mut self, bytes: u64) {
        self.store_bytes = bytes;
    }

    /// The oldest ones, so that `keep` are left; never the newest.
    pub(crate) fn surplus(&self, keep: usize) -> Vec<String> {
        let many = self.kept.len().saturating_sub(keep.max(1));
        let oldest = self.kept.iter().take(many);
        oldest.map(|kept| kept.checkpoint_id.clone()).collect()
    }

    /// What the store must not forget.
    pub(crate) fn roots(&self) -> Vec<String> {
        let mut roots: Vec<String> = self.kept.iter().map(|kept| kept.root.clone()).collect();
        roots.extend(self.restoring.iter().map(|begun| begun.root.clone()));
        roots.sort_unstable();
        roots.dedup();
        roots
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use contract::checkpoint::CheckpointKind;

    pub(crate) fn taken(id: &str, store_bytes: u64) -> Entry {
        let checkpoint = Checkpoint {
            checkpoint_id: id.to_owned(),
            created_at: Timestamp::UNIX_EPOCH,
            kind: CheckpointKind::Manual,
            session_id: None,
            turn: None,
            mixed: false,
            root: "0a".repeat(32),
            files: 1,
            bytes: 2,
            stored_bytes: 3,
            changing: 0,
            include_ignored: false,
            skipped: Vec::new(),
            skipped_count: 0,
        };
        Entry::Taken {
            checkpoint: Box::new(checkpoint),
            store_bytes,
        }
    }

    #[test]
    fn ids_are_never_used_again_and_the_newest_stays() {
        let mut book = Book::default();
        for n in 1..=5 {
            let id = book.next_id();
            assert_eq!(id, format!("c{n}"));
            book.apply(&taken(&id, n));
        }
        assert_eq!(book.surplus(3), ["c1", "c2"]);
        assert_eq!(book.surplus(0).len(), 4, "the newest stays");
        let ids = book.surplus(0);
        book.apply(&Entry::Forgotten { ids });
        assert_eq!(book.kept().len(), 1);
        assert!(book.get("c4").is_none() && book.get("c5").is_some());
        assert_eq!(book.next_id(), "c6");
        assert_eq!(book.store_bytes(), 5);
    }

    #[test]
    fn a_restore_without_an_end_is_known_and_its_root_is_kept() {
        let mut book = Book::default();
        book.apply(&Entry::Restoring {
            checkpoint_id: "c1".into(),
            root: "r".into(),
            at: Timestamp::UNIX_EPOCH,
        });
        assert_eq!(book.restoring().unwrap().checkpoint_id, "c1");
        assert_eq!(book.roots(), ["r"]);
        book.apply(&Entry::Restored {
            checkpoint_id: "c1".into(),
            at: Timestamp::UNIX_EPOCH,
            done: false,
        });
        assert!(book.restoring().is_none());
    }

    #[test]
    fn entries_have_a_form_that_lasts() {
        let json =
            serde_json::to_string(&super::super::record::Note::Checkpoints(Entry::Forgotten {
                ids: vec!["c1".into()],
            }));
        assert_eq!(
            json.unwrap(),
            r#"{"note":"checkpoints","entry":"forgotten","ids":["c1"]}"#
        );
    }
}
