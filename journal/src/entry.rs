//! What a log is made of.

/// Something that can be appended to a log.
pub trait Entry: Sized + Send + 'static {
    /// Whether this is a numbered event (1, 2, 3 … per log without holes) or an unnumbered note
    /// for the writer's own use.
    fn is_event(&self) -> bool;

    /// Tries to take `next` into `self`, which is the last entry that still waits in the queue
    /// behind a sync; `Err` gives it back. Both then become durable as one entry.
    fn merge(&mut self, next: Self) -> Result<(), Self>;

    /// Bytes held in memory, for the bound of the queue. Must not change while queued, except
    /// by [`merge`](Self::merge).
    fn size(&self) -> usize;

    /// Appends the payload to `out`, at most [`MAX_PAYLOAD`](crate::MAX_PAYLOAD) bytes of it
    /// (an entry of [`MAX_ENTRY`](crate::MAX_ENTRY) may grow eightfold); see
    /// [`stand_in`](Self::stand_in) for more. Called by the committer, again if a write has to be
    /// repeated.
    fn encode(&self, out: &mut Vec<u8>);

    /// What is written in the place of an entry whose payload came out with `len` bytes, above
    /// [`MAX_PAYLOAD`](crate::MAX_PAYLOAD). Without one, or if that is too large as well, nothing
    /// is written and [`Log::refused`](crate::Log::refused) says so. Entries around it are not
    /// affected.
    fn stand_in(&self, len: usize) -> Option<Self> {
        let _ = len;
        None
    }
}
