//! One binary for all tests of the operator: each further one would be linked anew.

mod build;
mod conversation;
mod crash;
mod decide;
mod fake_api;
mod fixtures;
mod status;
mod summaries;
mod validate;
