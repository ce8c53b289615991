//! The command line `lockstep`: topics, groups, messages, measurements.

#[path = "../cli/mod.rs"]
mod cli;

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    cli::main()
}
