//! One binary for all tests of the operator: each further one would be linked anew.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]
#![expect(clippy::large_futures, reason = "a test may use its stack")]

mod build;
mod conversation;
mod crash;
mod decide;
mod errors_doc;
mod fake_api;
mod fixtures;
mod metrics;
mod status;
mod summaries;
mod validate;
