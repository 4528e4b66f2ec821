//! SQLite as one would use it for the same: one table, the number is the row id, prepared statements, WAL.

use crate::{ours::payload, table::Failure};
use rusqlite::Connection;
use std::path::Path;

pub(crate) const INSERT: &str = "INSERT INTO events (n, payload) VALUES (?1, ?2)";
pub(crate) const POINT: &str = "SELECT payload FROM events WHERE n = ?1";
pub(crate) const RANGE: &str = "SELECT n, payload FROM events WHERE n > ?1 ORDER BY n LIMIT ?2";

/// All of it in memory, without a system call for a read: as good as it gets.
pub(crate) fn tune(db: &Connection) -> Result<(), Failure> {
    db.pragma_update(None, "cache_size", -262_144)?;
    Ok(db.pragma_update(None, "mmap_size", 1_i64 << 30)?)
}

/// `synchronous`: NORMAL or FULL.
pub(crate) fn open(path: &Path, synchronous: &str) -> Result<Connection, Failure> {
    let db = Connection::open(path)?;
    db.pragma_update(None, "journal_mode", "WAL")?;
    db.pragma_update(None, "synchronous", synchronous)?;
    db.execute_batch("CREATE TABLE events (n INTEGER PRIMARY KEY, payload BLOB NOT NULL)")?;
    Ok(db)
}

/// Events 1 to `count` in one transaction.
pub(crate) fn fill(db: &mut Connection, count: u64, bytes: usize) -> Result<(), Failure> {
    let all = db.transaction()?;
    {
        let mut insert = all.prepare(INSERT)?;
        let mut out = Vec::new();
        for n in 1..=count {
            out.clear();
            payload(n, bytes, &mut out);
            insert.execute((n as i64, &out))?;
        }
    }
    Ok(all.commit()?)
}
