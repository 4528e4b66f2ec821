//! An `OpenCodeSession`, from what is declared to what is.
//!
//! *observe → validate → decide → build → apply → status*: [`observe`] reads, [`validate`], [`decide`],
//! [`build`] and [`status`] are pure (no client, no clock, no environment; time is an argument), and
//! [`crate::apply`] alone writes. [`reconcile`] is the sentence.

pub mod build;
pub mod decide;
pub mod names;
pub mod observe;
pub mod reconcile;
pub mod status;
pub mod validate;
