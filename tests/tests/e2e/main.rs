//! End to end on a real cluster with the real agent; the language model is the only double.

mod bad_day;
mod canary;
mod checkpoints;
mod egress;
mod leaks;
mod lifecycle;
mod limits;
mod path;
mod refused;
mod streams;
