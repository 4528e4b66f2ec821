//! Captures of the real OpenCode, and what an attacker might send.

mod capture;
mod gaps;
mod garbage;
mod golden;
mod restarts;
mod rules;
