//! What goes wrong in a cluster, and what must still hold then.
//!
//! `deaths` needs to run on the node (the built-in cluster has one, this machine): it kills processes of pods.

mod deaths;
mod ended;
mod foreign;
mod operator;
mod secrets;
mod unparsable;
