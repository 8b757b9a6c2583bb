//! The binary: arguments in, exit code out.

use std::process::ExitCode;

/// Measured some percent faster than the system's allocator under many small messages.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    jeton::cli::run(std::env::args_os())
}
