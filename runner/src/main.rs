//! The binary; everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    runner::args::main(std::env::args_os().skip(1).collect())
}
