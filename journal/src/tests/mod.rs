//! Tests that see the inside: the committer is stepped by hand, the file system is a model.

mod basics;
mod crash;
mod damage;
mod faults;
mod inspect;
mod memfs;
mod model;
mod oversize;
mod support;
mod world;
