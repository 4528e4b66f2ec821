//! The runner as a process, with real children.

// `cfg(test)` is always set here; clippy knows by it that helpers are tests too.
#[cfg(test)]
mod checkpoints;
#[cfg(test)]
mod harness;
#[cfg(test)]
mod isolation;
#[cfg(test)]
mod lifecycle;
#[cfg(test)]
mod limits;
#[cfg(test)]
mod offline;
#[cfg(test)]
mod reaping;
#[cfg(test)]
mod requests;
