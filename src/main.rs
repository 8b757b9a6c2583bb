//! The binary: runs the command of its arguments and exits with its code.

use std::process::ExitCode;

/// Measured a few percent faster than the system's allocator with many small messages.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    jeton::cli::run(std::env::args_os())
}
