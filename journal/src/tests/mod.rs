//! Tests that see the inside: the committer is stepped by hand, the file system is a model.

mod basics;
mod support;
