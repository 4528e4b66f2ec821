//! Captures of the real OpenCode, and what an attacker might send.
